//! The durable facts: one record at a time, written as a whole into both slots, one after the other. It counts as saved
//! once both hold it.

use std::collections::BTreeSet;

use bytes::Bytes;
use uuid::Uuid;

use super::{DiskOp, File, Group, Pending};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{Lsn, Stance};
use crate::core::{Alone, Event, Facts, Fork, Handed, Mixture};
use crate::journal::{self, Position, StateFile, StateRecord};

/// What is recorded besides the core's facts, and the order of writes.
pub(super) struct State {
    file: StateFile,
    pub checkpoint: Position,
    pub clean: bool,
    /// Names of volumes whose creation was entered by this process.
    pub creating: BTreeSet<String>,
    /// Volumes may be missing; it shows once everything before the current epoch is applied.
    pub volumes_due: bool,
    ids: u128,
    wanted: Option<u64>,
    checkpoint_wanted: bool,
    verified_wanted: bool,
    writing: Option<Writing>,
    reset: bool,
    /// Something else in it changed.
    changed: bool,
    /// The journal before this LSN may go once the peers' sets of chunks are on record.
    release: Option<Lsn>,
}

struct Writing {
    seq: u64,
    checkpoint: Option<Lsn>,
    reset: bool,
    release: Option<Lsn>,
    /// The undo file it names.
    undo: Uuid,
    /// What goes into the second slot, until it is under way.
    second: Option<(u64, Bytes)>,
}

impl State {
    pub fn new(file: StateFile, checkpoint: Position, ids: u128) -> State {
        State {
            file,
            checkpoint,
            clean: false,
            creating: BTreeSet::new(),
            volumes_due: false,
            ids,
            wanted: None,
            checkpoint_wanted: false,
            verified_wanted: false,
            writing: None,
            reset: false,
            changed: false,
            release: None,
        }
    }

    /// The core wants its facts saved under this number.
    pub fn request_save(&mut self, seq: u64) {
        self.wanted = Some(seq);
    }

    pub fn request_checkpoint(&mut self) {
        self.checkpoint_wanted = true;
    }

    /// What is known of verifications has changed.
    pub fn request_verified(&mut self) {
        self.verified_wanted = true;
    }

    /// A checkpoint of a history that is being replaced counts no more, also if its record is being written.
    pub fn forget_checkpoint(&mut self) {
        self.checkpoint_wanted = false;
        self.reset = false;
        self.release = None;
        if let Some(writing) = &mut self.writing {
            (writing.checkpoint, writing.release, writing.reset) = (None, None, false);
        }
    }

    /// Give the journal before this LSN back once the record is written.
    pub fn request_release(&mut self, keep: Lsn) {
        self.release = self.release.max(Some(keep));
    }

    pub fn request_reset(&mut self) {
        self.reset = true;
    }

    /// Something in the record changed that nobody else asks to be saved.
    pub fn request_write(&mut self) {
        self.changed = true;
    }

    /// Nothing that [`State::request_write`] asked for is still to be written.
    pub fn is_written(&self) -> bool {
        !self.changed && self.writing.is_none()
    }

    pub fn idle(&self) -> bool {
        self.wanted.is_none()
            && !self.checkpoint_wanted
            && !self.verified_wanted
            && !self.reset
            && self.writing.is_none()
    }

    pub fn fresh_volume_uuid(&mut self) -> Uuid {
        self.ids = self
            .ids
            .wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645)
            .wrapping_add(1);
        uuid::Builder::from_random_bytes(self.ids.rotate_left(61).to_be_bytes()).into_uuid()
    }
}

impl Group {
    /// Writes the record if something in it is wanted durable and no write is under way.
    pub(super) fn write_state(&mut self) {
        let state = &self.state;
        if state.writing.is_some()
            || self.receive.resetting()
            || (state.wanted.is_none()
                && !state.checkpoint_wanted
                && !state.verified_wanted
                && !state.reset
                && !state.changed
                && state.release.is_none())
        {
            return;
        }
        let seq = self.state.wanted.take().unwrap_or(0);
        let checkpoint =
            std::mem::take(&mut self.state.checkpoint_wanted).then_some(self.state.checkpoint.lsn);
        let reset = std::mem::take(&mut self.state.reset);
        self.state.changed = false;
        self.state.verified_wanted = false;
        self.forget_what_is_in_sync();
        let record = self.record();
        let ([first, second], data) = self.state.file.plan_write(&record);
        self.state.writing = Some(Writing {
            seq,
            checkpoint,
            reset,
            release: self.state.release.take(),
            undo: record.undo,
            second: Some((second, data.clone())),
        });
        self.write_slot(first, data);
    }

    fn write_slot(&mut self, offset: u64, data: Bytes) {
        let op = DiskOp::Write {
            file: File::State,
            offset,
            data,
            durable: true,
        };
        #[cfg(test)]
        let op = super::tests::without_dsync(op, Sabotage::RecordNotDurable);
        self.submit(Pending::StateWrite, op);
    }

    /// A slot holds the record.
    pub(super) fn state_written(&mut self) {
        let second = self.state.writing.as_mut().and_then(|w| w.second.take());
        #[cfg(test)]
        let second = second.filter(|_| !sabotaged(Sabotage::SaveInOneSlot));
        if let Some((offset, data)) = second {
            return self.write_slot(offset, data);
        }
        let writing = self
            .state
            .writing
            .take()
            .expect("a state write ends only if one began");
        if let Some(lsn) = writing.checkpoint {
            self.checkpoint_recorded(lsn);
        }
        if let Some(keep) = writing.release {
            self.log.release_before(keep);
        }
        if writing.reset {
            self.reset_recorded();
        }
        self.undo_recorded(writing.undo);
        if writing.seq > 0 {
            self.event(Event::Saved(writing.seq));
        }
        self.write_state();
    }

    /// Peers whose homes are known to be the same have no set of chunks any more, nor has this site when it is consistent.
    fn forget_what_is_in_sync(&mut self) {
        if self.core.facts().inconsistent_until.is_none() {
            self.changes.forget_own();
        }
        for peer in self.core.peers().iter().filter(|p| p.in_sync) {
            self.changes.forget(&peer.name);
        }
    }

    pub(super) fn record(&self) -> StateRecord {
        let facts = self.core.facts();
        let former = facts.former_peer(&self.config.peers);
        let former = former.map(|site| journal::PeerRecord {
            site: site.to_owned(),
            told_durable: facts.told_durable(site),
            alone: None,
            dirty: None,
        });
        // What the homes here lack stands under the name of this site.
        let own = self.changes.own().map(|chunks| journal::PeerRecord {
            site: self.config.site.clone(),
            told_durable: Lsn::ZERO,
            alone: None,
            dirty: Some(journal::Dirty {
                since: Lsn::ZERO,
                until: Lsn::ZERO,
                chunks: chunks.clone(),
            }),
        });
        StateRecord {
            sequence: 0,
            group_id: facts.group_id,
            site: self.config.site.clone(),
            group: self.config.group.clone(),
            role: facts.role,
            ack: facts.ack,
            lineage: facts.lineage.clone(),
            handed: facts.handed.as_ref().map(|h| journal::HandedRecord {
                to: h.to.clone(),
                epoch_id: h.epoch_id,
                lsn: h.lsn,
            }),
            floor: facts.floor,
            ever_in_sync: facts.ever_in_sync,
            inconsistent_until: facts.inconsistent_until,
            checkpoint: self.state.checkpoint,
            commit: self.core.commit(),
            frame_time_ns: self.frames.time_ns(),
            clean_shutdown: self.state.clean,
            journal_bytes: self.log.capacity(),
            volumes: self.volumes.clone(),
            peers: self
                .core
                .peers()
                .iter()
                .map(|peer| journal::PeerRecord {
                    site: peer.name.clone(),
                    told_durable: facts.told_durable(&peer.name),
                    alone: facts.alone.iter().find(|a| a.peer == peer.name).map(|a| {
                        journal::AloneRecord {
                            since_ns: a.since_ns,
                            from_lsn: a.from_lsn,
                        }
                    }),
                    dirty: self.changes.set_of(&peer.name).cloned(),
                })
                .chain(former)
                .chain(own)
                .collect(),
            given_up: facts.given_up,
            given_up_ns: facts.given_up_ns,
            forks: facts.forks.iter().map(fork_record).collect(),
            written: (!facts.wrote_alone).then_some(facts.written),
            mixture: facts.mixture.as_ref().map(|m| journal::MixtureRecord {
                id: m.id,
                lsn: m.lsn,
                since_ns: m.since_ns,
            }),
            undo: self.undo.id(),
            readable_from: self.log.readable_from(),
            verified: self.verified.clone(),
        }
    }
}

/// The core's part of a record.
pub(super) fn facts_of(record: &StateRecord) -> Facts {
    Facts {
        group_id: record.group_id,
        role: record.role,
        ack: record.ack,
        lineage: record.lineage.clone(),
        alone: record
            .peers
            .iter()
            .filter_map(|peer| {
                let alone = peer.alone.as_ref()?;
                Some(Alone {
                    peer: peer.site.clone(),
                    since_ns: alone.since_ns,
                    from_lsn: alone.from_lsn,
                })
            })
            .collect(),
        handed: record.handed.as_ref().map(|h| Handed {
            to: h.to.clone(),
            epoch_id: h.epoch_id,
            lsn: h.lsn,
        }),
        floor: record.floor,
        ever_in_sync: record.ever_in_sync,
        inconsistent_until: record.inconsistent_until,
        told_durable: record
            .peers
            .iter()
            .filter(|p| p.told_durable > Lsn::ZERO)
            .map(|p| (p.site.clone(), p.told_durable))
            .collect(),
        given_up: record.given_up,
        given_up_ns: record.given_up_ns,
        forks: record.forks.iter().map(fork_of).collect(),
        // Bounded by the journal's end.
        written: record.written.unwrap_or(Lsn(u64::MAX)),
        wrote_alone: record.written.is_none(),
        mixture: record.mixture.as_ref().map(|m| Mixture {
            id: m.id,
            lsn: m.lsn,
            since_ns: m.since_ns,
        }),
    }
}

fn fork_record((peer, fork): &(String, Fork)) -> journal::ForkRecord {
    journal::ForkRecord {
        peer: peer.clone(),
        shared: fork.shared,
        tail: fork.their_tail,
        commit: fork.their_commit,
        epoch: fork.their_epoch.clone(),
        openings: fork.their_epochs,
        journal_first: fork.their_journal_first,
        serving: fork.their_stance == Stance::Serving,
        primary: fork.their_stance != Stance::Mirror,
        id: fork.their_id,
        their_mixture: fork.their_mixture,
        my_mixture: fork.my_mixture,
        past: fork.past,
    }
}

fn fork_of(record: &journal::ForkRecord) -> (String, Fork) {
    let fork = Fork {
        shared: record.shared,
        their_tail: record.tail,
        their_commit: record.commit,
        their_epoch: record.epoch.clone(),
        their_epochs: record.openings,
        their_journal_first: record.journal_first,
        their_stance: match (record.serving, record.primary) {
            (true, _) => Stance::Serving,
            (false, true) => Stance::Returning,
            (false, false) => Stance::Mirror,
        },
        their_id: record.id,
        their_mixture: record.their_mixture,
        my_mixture: record.my_mixture,
        past: record.past,
    };
    (record.peer.clone(), fork)
}
