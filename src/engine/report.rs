//! What operators are told about a group.

use std::time::Duration;

use super::open::volume_disagreements;
use super::{Group, LinkId, Now, Pending};
use crate::base::{AckMode, ChunkSet, Epoch, Hindrance, Lsn, OnPeerLoss, Role, Stance, utc};
use crate::core::{Alone, Conflict, Left, Mode, Overrides, Peer};
use crate::status::{
    AloneStatus, EpochStatus, ForkSide, ForkStatus, GroupState, GroupStatus, JournalStatus,
    MixtureStatus, PeerState, PeerStatus, TouchedRange, VolumeStatus,
};

const SECOND_NS: u64 = 1_000_000_000;

/// A write to a home that has been under way for so long hangs.
const HANGS: Duration = Duration::from_secs(5);

/// Ranges of a fork that are told, at most.
const TOUCHED_MAX: usize = 16;

impl Group {
    /// For operators.
    pub fn status(&mut self, now: Now) -> GroupStatus {
        self.now = now;
        self.stats.turn(now.mono);
        let (state, reason) = self.state_and_reason();
        self.note_state();
        self.watch_space();
        let facts = self.core.facts();
        let commit = self.core.commit();
        let (verify, last_verify) = self.verify_status();
        let unrepaired = self.unrepaired_bytes();
        let full_sites = self.full_sites();
        let home_hangs = self.home_hangs();
        GroupStatus {
            name: self.config.group.clone(),
            id: facts.group_id.to_string(),
            role: facts.role,
            state,
            reason,
            state_since_unix_seconds: self.state_since.1,
            healthy: matches!(state, GroupState::Serving | GroupState::Following)
                && unrepaired == 0
                && facts.mixture.is_none()
                && full_sites.is_empty()
                && home_hangs.is_none(),
            ack: facts.ack,
            on_peer_loss: self.config.on_peer_loss,
            epoch: facts.lineage.last().map(|e| EpochStatus {
                number: e.number,
                id: e.id.to_string(),
                site: e.site.clone(),
                first_lsn: e.first_lsn,
            }),
            tail_lsn: self.core.tail(),
            durable_lsn: self.core.durable(),
            commit_lsn: commit,
            applied_lsn: self.store.applied_lsn(),
            checkpoint_lsn: self.homes.checkpoint(),
            inconsistent: facts.inconsistent_until.is_some() || facts.mixture.is_some(),
            mixture: facts.mixture.as_ref().map(|m| MixtureStatus {
                since_lsn: m.lsn,
                since_unix_seconds: m.since_ns / SECOND_NS,
            }),
            inconsistent_until_lsn: self.core.copy_end(),
            lost_until_lsn: self.core.lost_history().then_some(facts.floor),
            journal_damage: self.damage.clone().filter(|_| self.core.lost_history()),
            configured_role: Some(self.config.role),
            journal: JournalStatus {
                capacity_bytes: self.log.capacity(),
                used_bytes: self.log.used_bytes(),
                first_lsn: self.log.first_lsn(),
                writers_wait: self.frames.full,
                held_by: self.journal_holder(),
            },
            alone: self.alone_status(),
            peers: self
                .core
                .peers()
                .iter()
                .map(|p| self.peer_status(p))
                .collect(),
            fork: self.fork_status(),
            undo: self.undo.status(),
            verify,
            last_verify,
            next_scrub_unix_seconds: self.scrub_due(),
            unrepaired_bytes: unrepaired,
            volumes: self.volume_status(),
            clients: self.clients.attached().len() as u64,
            in_flight_requests: self.clients.in_flight(),
            no_space: !full_sites.is_empty(),
            full_sites,
            full_since_unix_seconds: self.homes.full_since(),
            space_needed_bytes: self.homes.refused_bytes(),
            space_left_bytes: self.space_left(),
            unapplied_bytes: self.store.unapplied_bytes(),
            home_hangs_seconds: home_hangs.map(|long| long.as_secs_f64()),
            totals: self.stats.totals,
            rates: self.stats.rates(now.mono),
            latency: self.stats.latencies(),
            disagreements: self.disagreements(),
        }
    }

    /// How long a write to a home has been under way, if that is worth a word.
    fn home_hangs(&self) -> Option<Duration> {
        let since = |pending: &Pending| match pending {
            Pending::ApplyWrite { since, .. } => Some(*since),
            _ => None,
        };
        let oldest = self.disk.iter().filter_map(|(_, p)| since(p)).min()?;
        let long = self.now.mono.saturating_sub(oldest);
        (long >= HANGS).then_some(long)
    }

    /// Where configuration and disk differ. Volumes grow while the group runs.
    pub(super) fn disagreements(&self) -> Vec<String> {
        let volumes = volume_disagreements(&self.config, &self.volumes);
        [self.disagreements.clone(), volumes].concat()
    }

    fn state_and_reason(&self) -> (GroupState, String) {
        let (state, mut reason) = self.state_and_why();
        let text = self.core.mixture_text();
        if let Some(text) = text.filter(|_| self.core.facts().role == Role::Primary) {
            reason = format!("{}. {text}", reason.trim_end_matches('.'));
        }
        (state, reason)
    }

    fn state_and_why(&self) -> (GroupState, String) {
        let site = &self.config.site;
        // A site that is fenced takes part in nothing until it is started again.
        let fenced = self.core.is_fenced();
        let conflict = self.core.peers().iter().find(|p| p.conflict.is_some());
        if let Some(peer) = conflict.filter(|_| !fenced) {
            let state = match peer.conflict.expect("just seen") {
                Conflict::BothPrimary => GroupState::BothPrimary,
                Conflict::Forked => GroupState::Forked,
            };
            let reason = match self.core.resolved_fork() {
                Some(order) => format!(
                    "the order to discard what {} wrote stands since {} and waits for the link to {}",
                    order.discard,
                    utc(order.since_ns / SECOND_NS),
                    peer.name
                ),
                None => peer.refused.clone().unwrap_or_else(|| {
                    format!(
                        "{site} was promoted past {}, which was silent; the fork with it stands, and is resolved when {} is back",
                        peer.name, peer.name
                    )
                }),
            };
            return (state, reason);
        }
        match self.core.mode() {
            Mode::Returning => (
                GroupState::Starting,
                "asking the peer whether this site may serve".into(),
            ),
            Mode::Fetching(_) => (
                GroupState::Starting,
                "taking over the peer's longer tail".into(),
            ),
            Mode::Opening if self.core.serving() => (
                GroupState::Suspect,
                "putting on record that this site goes on without its peer".into(),
            ),
            Mode::Opening => (GroupState::Starting, "opening an epoch".into()),
            Mode::Waiting(why) => (GroupState::WaitingForPeer, why.clone()),
            Mode::Draining(_) => (GroupState::Draining, "finishing what is in flight".into()),
            Mode::HandedOver => {
                let to = self.core.primary_name();
                (
                    GroupState::HandedOver,
                    format!("handed to {to}, which has not confirmed yet"),
                )
            }
            Mode::Fenced(why) => (GroupState::Fenced, why.clone()),
            Mode::Stopped => (GroupState::Disconnected, "stopping".into()),
            Mode::Probing => (
                GroupState::Disconnected,
                "asking the peers before the promotion".into(),
            ),
            Mode::GoingBack => (
                GroupState::Inconsistent,
                "going back to what this site held before the copy".into(),
            ),
            Mode::Mirror => self.mirror_state(),
            Mode::Serving => self.serving_state(site),
        }
    }

    fn mirror_state(&self) -> (GroupState, String) {
        let connected = self.core.upstream().map(|(name, _)| name.to_owned());
        if self.core.facts().inconsistent_until.is_some() {
            let until_then = match self.undo.status() {
                Some(undo) => format!(
                    "until it ends this site can only be promoted to what it held before, LSN {} of {} (`doublure promote {} \
                     --force inconsistent`)",
                    undo.lsn,
                    utc(undo.unix_seconds),
                    self.config.group
                ),
                None => "not usable until it ends".to_owned(),
            };
            let reason = match connected {
                Some(name) => format!("a copy from {name} is under way; {until_then}"),
                None => format!(
                    "a copy was cut off, and goes on when the primary connects; {until_then}. {}",
                    self.what_keeps_the_primary_away()
                ),
            };
            return (GroupState::Inconsistent, reason);
        }
        match connected {
            Some(name) => (GroupState::Following, format!("following {name}")),
            None if self.core.lineage().is_empty() => (
                GroupState::Disconnected,
                format!(
                    "new; waiting for its primary to connect. {}",
                    self.what_keeps_the_primary_away()
                ),
            ),
            None => {
                let mut text = format!(
                    "consistent up to LSN {}, and no primary is connected. {}",
                    self.core.commit(),
                    self.what_keeps_the_primary_away()
                );
                // Where it is known that somebody is primary, or which promotion to run, that is said already.
                let peers = self.core.peers();
                let open = |p: &Peer| self.hindrance(p) == Some(Hindrance::Unreachable);
                if peers.is_empty() || peers.iter().any(open) {
                    text.push_str(". If no site is primary, ");
                    text.push_str(&Overrides::default().command(&self.config.group));
                    text.push_str(" makes this one");
                }
                (GroupState::Disconnected, text)
            }
        }
    }

    /// A sentence without its full stop.
    fn what_keeps_the_primary_away(&self) -> String {
        let name = self.core.primary_name();
        let peers = self.core.peers();
        let peer = peers.iter().find(|p| p.name == name).or(peers.first());
        let Some(peer) = peer else {
            return "No peer is configured".into();
        };
        let why = self.hindrance(peer).unwrap_or(Hindrance::Unreachable);
        why.sentence_since(&peer.name, &self.config.group, self.last_heard(peer))
    }

    /// What keeps a peer from being in sync, as a sentence without its full stop.
    fn why_away(&self, peer: &Peer) -> Option<String> {
        let heard = self.last_heard(peer);
        let why = self.hindrance(peer)?;
        Some(why.sentence_since(&peer.name, &self.config.group, heard))
    }

    /// When a peer was last heard of, in words.
    fn last_heard(&self, peer: &Peer) -> Option<String> {
        let ago = self.now.mono.saturating_sub(peer.last_heard?);
        let ago_ns = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
        Some(utc(self.now.wall_ns.saturating_sub(ago_ns) / SECOND_NS))
    }

    /// What stands between this site and a peer. A mirror opens no links, so that it asks nobody: it knows how its primary
    /// left.
    fn hindrance(&self, peer: &Peer) -> Option<Hindrance> {
        let follows = self
            .core
            .upstream()
            .is_some_and(|(name, _)| name == peer.name);
        let why = peer.hindrance().filter(|_| !follows)?;
        let silent = matches!(why, Hindrance::Unreachable | Hindrance::Connecting);
        if !silent || self.core.facts().role != Role::Mirror {
            return Some(why);
        }
        let wrote_last = self.core.lineage().last().map(|e| e.site.as_str());
        Some(match peer.left {
            Some(Left::Cut) => Hindrance::CutThere,
            Some(Left::Fenced) => Hindrance::Fenced,
            Some(Left::Demoted) => Hindrance::DemotedThere,
            Some(Left::ForNow(at)) if self.now.mono < at + self.config.timeout * 2 => {
                Hindrance::Connecting
            }
            None if wrote_last == Some(self.config.site.as_str()) => Hindrance::DemotedHere,
            None | Some(Left::ForNow(_)) => Hindrance::Unreachable,
        })
    }

    fn serving_state(&self, site: &str) -> (GroupState, String) {
        if self.core.frozen() {
            let group = &self.config.group;
            let dead = self.core.peers().iter().find(|p| p.gated && p.dead);
            let peer = dead.map_or("the peer", |p| p.name.as_str());
            let why = dead
                .and_then(|p| self.why_away(p))
                .unwrap_or_else(|| Hindrance::Unreachable.sentence(peer, group));
            let text = format!(
                "acknowledging nothing until {peer} is back (on_peer_loss is \"freeze\"). {why}. `doublure promote {group} \
                 --force peer-unreachable` goes on without it"
            );
            return (GroupState::Frozen, text);
        }
        if let Some(peer) = self
            .core
            .peers()
            .iter()
            .find(|p| p.gated && p.streaming_link().is_none())
        {
            let text = match peer.hindrance() {
                None
                | Some(Hindrance::Unreachable | Hindrance::Settling | Hindrance::Connecting) => {
                    format!(
                        "{} is silent; writes wait until it answers or is declared dead",
                        peer.name
                    )
                }
                Some(why) => format!(
                    "writes wait for {}. {}",
                    peer.name,
                    why.sentence(&peer.name, &self.config.group)
                ),
            };
            return (GroupState::Suspect, text);
        }
        if let Some((peer, silent)) = self
            .core
            .peers()
            .iter()
            .find_map(|p| Some((p, self.stalls(p)?)))
        {
            let text = format!(
                "{} has confirmed nothing for {:.0} s; writes wait until it does or is declared dead",
                peer.name,
                silent.as_secs_f64()
            );
            return (GroupState::Suspect, text);
        }
        let facts = self.core.facts();
        if !facts.alone.is_empty() {
            let (without, with): (Vec<&Peer>, Vec<&Peer>) = self
                .core
                .peers()
                .iter()
                .partition(|p| facts.without(&p.name));
            let whereto = if with.is_empty() {
                format!("{site} only")
            } else {
                format!("{site} and {}", names(&with))
            };
            let why: Vec<String> = without.iter().filter_map(|p| self.why_away(p)).collect();
            let without = names(&without);
            let nothing_yet = self.alone_status().is_none_or(|a| a.operations == 0);
            let what = if nothing_yet {
                format!("what is written from now on is on {whereto}, without {without}")
            } else {
                format!("writes are on {whereto}, without {without}")
            };
            let mut text = format!("{what}. {}", why.join(". "));
            if self.config.on_peer_loss == OnPeerLoss::Freeze && !facts.ever_in_sync {
                text += "; on_peer_loss = \"freeze\" binds from the first time in sync on";
            }
            return (GroupState::Alone, text);
        }
        if let Some(peer) = self.core.peers().iter().find(|p| !p.in_sync) {
            let text = format!(
                "writes wait for {}, which is being brought in sync",
                peer.name
            );
            return (GroupState::Suspect, text);
        }
        let text = match self.core.peers() {
            [] => "no peer is configured: writes are on this site only".to_owned(),
            [peer] => format!("in sync with {}", peer.name),
            _ => "all peers in sync".to_owned(),
        };
        (GroupState::Serving, text)
    }

    /// How long acknowledgements have waited for this peer, if that is worth a word: a fifth of the time after which it is
    /// declared dead.
    fn stalls(&self, peer: &Peer) -> Option<std::time::Duration> {
        let waited_for = peer.gated && self.core.facts().ack != AckMode::Async;
        let since = peer.owes_since.filter(|_| waited_for)?;
        let silent = self.now.mono.saturating_sub(since);
        (silent >= self.config.timeout / 5).then_some(silent)
    }

    /// Keeps the time at which the state became what it is.
    pub(super) fn note_state(&mut self) {
        let (state, _) = self.state_and_reason();
        if self.state_since.0 != Some(state) {
            self.state_since = (Some(state), self.now.wall_ns / SECOND_NS);
        }
    }

    fn alone_status(&self) -> Option<AloneStatus> {
        let facts = self.core.facts();
        // A mirror acknowledges nothing, whatever it did before.
        if facts.role != Role::Primary {
            return None;
        }
        let alone = facts.alone.iter().min_by_key(|a| a.from_lsn)?;
        let before = facts.alone.iter().map(|a| self.confirmed_by(a)).min()?;
        // Nobody waits for the operations that open epochs. There is an epoch for every start since.
        let epochs = facts.lineage.epochs();
        let opens = |lsn: Lsn| epochs.iter().any(|e| e.first_lsn == lsn);
        // Who is alone acknowledges what is durable, once the operation is that opened the epoch. After a restart the commit LSN is
        // what the last frame told, until the site serves again.
        let durable = self.core.durable();
        let commit = match epochs.last() {
            Some(epoch) if epoch.alone && epoch.first_lsn <= durable => {
                self.core.commit().max(durable)
            }
            _ => self.core.commit(),
        };
        let openings = epochs
            .iter()
            .filter(|e| e.first_lsn > before && e.first_lsn <= commit)
            .count() as u64;
        let mut from_lsn = before.next();
        while opens(from_lsn) {
            from_lsn = from_lsn.next();
        }
        Some(AloneStatus {
            peer: {
                let all: Vec<&str> = facts.alone.iter().map(|a| a.peer.as_str()).collect();
                all.join(" and ")
            },
            since_unix_seconds: alone.since_ns / SECOND_NS,
            from_lsn,
            operations: commit.since(before) - openings,
        })
    }

    /// Up to where a peer that this site goes on without is known to hold the history, durably.
    fn confirmed_by(&self, alone: &Alone) -> Lsn {
        let facts = self.core.facts();
        let peer = self.core.peers().iter().find(|p| p.name == alone.peer);
        let told = facts.told_durable(&alone.peer);
        let mut known = alone.from_lsn.prev();
        if told == Lsn::ZERO {
            // It has confirmed nothing since this site is primary.
        } else if told < known && facts.ack != AckMode::Sync {
            // Acknowledged without its word.
            known = told;
        } else if !peer.is_some_and(|p| p.needs_copy) {
            // It is catching up. What the journal of one in the middle of a copy holds counts for nothing.
            known = known.max(told);
        }
        // What it wrote itself it holds.
        let epochs = facts.lineage.epochs();
        let own = epochs.iter().rposition(|e| e.site == alone.peer);
        let next = own.and_then(|at| epochs.get(at + 1));
        known.max(next.map_or(Lsn::ZERO, |e| e.first_lsn.prev()))
    }

    fn fork_status(&self) -> Option<ForkStatus> {
        let (peer, fork) = self
            .core
            .peers()
            .iter()
            .find_map(|p| Some((p, p.fork.as_ref()?)))?;
        let first = fork.shared.next();
        let side =
            |site: &str, tail: Lsn, commit: Lsn, epoch: Option<&Epoch>, openings, held: Lsn| {
                let written = |lsn: Lsn| lsn.since(fork.shared).saturating_sub(openings);
                // A frame tells of the commit LSN when it was closed. Who is alone acknowledges what is durable.
                let acknowledged = if epoch.is_some_and(|e| e.alone) {
                    tail
                } else {
                    commit
                };
                ForkSide {
                    site: site.to_owned(),
                    first_lsn: first,
                    last_lsn: tail,
                    operations: written(tail),
                    acknowledged_operations: written(acknowledged),
                    since_unix_seconds: epoch.map(|e| e.time_ns / SECOND_NS),
                    last_write_unix_seconds: None,
                    touched_bytes: None,
                    touched_from_lsn: None,
                    touched: Vec::new(),
                    primary: false,
                    serving: false,
                    mixture: false,
                    kept_from_lsn: Some(first.max(held)).filter(|lsn| *lsn <= tail),
                }
            };
        let tail = self.core.tail();
        let known_from = self
            .changes
            .known_from()
            .map_or(tail.next(), |lsn| lsn.max(first));
        let touched = self.changes.after(known_from.prev());
        // What opens an epoch touches nothing.
        let epochs = self.core.lineage().epochs();
        let opens = |lsn: Lsn| epochs.iter().any(|e| e.first_lsn == lsn);
        let mut told_from = known_from;
        while told_from > first && opens(told_from.prev()) {
            told_from = told_from.prev();
        }
        let mut here = side(
            &self.config.site,
            tail,
            self.core.commit(),
            self.core.lineage().last(),
            self.core.lineage().opened_after(fork.shared),
            self.log.first_lsn(),
        );
        here.primary = self.core.facts().role == Role::Primary;
        here.serving = self.core.serving();
        here.mixture = fork.my_mixture;
        here.last_write_unix_seconds = self.marks.last_write().map(|ns| ns / SECOND_NS);
        here.touched_from_lsn = Some(told_from);
        if known_from <= tail && !touched.is_everything() {
            here.touched_bytes = Some(touched.bytes(&self.volumes));
            here.touched = self.ranges_of(&touched);
        }
        let epoch = fork.their_epoch.as_ref();
        let mut there = side(
            &peer.name,
            fork.their_tail,
            fork.their_commit,
            epoch,
            fork.their_epochs,
            fork.their_journal_first,
        );
        there.primary = fork.their_stance != Stance::Mirror;
        there.mixture = fork.their_mixture;
        there.serving = fork.their_stance == Stance::Serving;
        Some(ForkStatus {
            shared_lsn: fork.shared,
            sides: vec![here, there],
            discarding: self.core.resolved_fork().map(|r| r.discard),
        })
    }

    /// The first runs of chunks of a set.
    fn ranges_of(&self, set: &ChunkSet) -> Vec<TouchedRange> {
        let mut ranges: Vec<TouchedRange> = Vec::new();
        for volume in &self.volumes {
            let mut from = 0;
            while let Some(chunk) = set.next(volume, from) {
                from = chunk.end();
                let adjoins = |last: &&mut TouchedRange| {
                    last.volume == volume.name && last.offset + last.bytes == chunk.offset
                };
                if let Some(last) = ranges.last_mut().filter(adjoins) {
                    last.bytes += chunk.len;
                } else if ranges.len() == TOUCHED_MAX {
                    return ranges;
                } else {
                    ranges.push(TouchedRange {
                        volume: volume.name.clone(),
                        offset: chunk.offset,
                        bytes: chunk.len,
                    });
                }
            }
        }
        ranges
    }

    fn journal_holder(&self) -> String {
        let checkpoint = self.homes.checkpoint().next();
        if self.proof_pin().is_some_and(|lsn| lsn < checkpoint) {
            return "verify".to_owned();
        }
        let holder = self
            .core
            .peers()
            .iter()
            .filter_map(|p| p.holds_from().map(|lsn| (lsn, p.name.as_str())))
            .min()
            .filter(|(lsn, _)| *lsn < checkpoint);
        holder.map_or("checkpoint", |(_, name)| name).to_owned()
    }

    fn peer_status(&self, peer: &Peer) -> PeerStatus {
        if self.core.facts().role == Role::Mirror && peer.link().is_none() {
            return self.primary_seen_from_mirror(peer);
        }
        let state = if peer.in_sync && self.stalls(peer).is_some() {
            PeerState::Suspect
        } else if peer.in_sync {
            PeerState::InSync
        } else if peer.cut {
            PeerState::CutByOperator
        } else if peer.copying() {
            PeerState::Copying
        } else if peer.streaming_link().is_some() {
            PeerState::CatchingUp
        } else if peer.refused.is_some() {
            PeerState::Refused
        } else if peer.gated && !peer.dead {
            PeerState::Suspect
        } else {
            PeerState::Connecting
        };
        let copy = peer
            .link()
            .and_then(|l| self.streams.get(&LinkId(l.0)))
            .and_then(super::streams::Stream::copy_progress);
        let (copied_bytes, copy_total_bytes) =
            copy.map_or((0, 0), |c| (c.done_bytes, c.total_bytes));
        let copy_eta_seconds = copy.and_then(|c| c.eta_seconds(self.now.mono));
        let lag_from = peer.durable;
        let behind_ns = self.marks.time_after(lag_from.0).map_or(0, |t| {
            self.frames.time_after(self.now.wall_ns).saturating_sub(t)
        });
        PeerStatus {
            site: peer.name.clone(),
            state,
            hindrance: self.hindrance(peer),
            detail: peer
                .refused
                .clone()
                .or_else(|| peer.trouble.clone().filter(|_| peer.link().is_none()))
                .unwrap_or_default(),
            received_lsn: peer.received,
            durable_lsn: peer.durable,
            applied_lsn: peer.applied,
            needs_copy: peer.needs_copy,
            lag_operations: self.core.tail().since(peer.durable),
            lag_bytes: self.marks.bytes_after(lag_from.0),
            lag_seconds: behind_ns as f64 / 1e9,
            last_heard_seconds: peer
                .last_heard
                .map(|at| self.now.mono.saturating_sub(at).as_secs_f64()),
            copied_bytes,
            copy_total_bytes,
            copy_eta_seconds,
            space_left_bytes: peer.streaming_link().and_then(|_| self.space_left_at(peer)),
        }
    }

    fn primary_seen_from_mirror(&self, peer: &Peer) -> PeerStatus {
        let upstream = self.core.upstream().filter(|(name, _)| *name == peer.name);
        let state = match upstream {
            Some(_) => PeerState::Connected,
            None if peer.cut => PeerState::CutByOperator,
            None => PeerState::Absent,
        };
        PeerStatus {
            site: peer.name.clone(),
            state,
            hindrance: self.hindrance(peer),
            detail: peer
                .refused
                .clone()
                .or_else(|| peer.trouble.clone().filter(|_| upstream.is_none()))
                .unwrap_or_default(),
            received_lsn: Lsn::ZERO,
            durable_lsn: Lsn::ZERO,
            applied_lsn: Lsn::ZERO,
            needs_copy: false,
            lag_operations: 0,
            lag_bytes: 0,
            lag_seconds: 0.0,
            last_heard_seconds: upstream
                .map(|(_, at)| at)
                .or(peer.last_heard)
                .map(|at| self.now.mono.saturating_sub(at).as_secs_f64()),
            copied_bytes: 0,
            copy_total_bytes: 0,
            copy_eta_seconds: None,
            space_left_bytes: None,
        }
    }

    fn volume_status(&self) -> Vec<VolumeStatus> {
        let clients = self.clients.attached();
        self.volumes
            .iter()
            .map(|v| VolumeStatus {
                name: v.name.clone(),
                uuid: v.uuid.to_string(),
                size_bytes: v.size,
                clients: clients.values().filter(|id| **id == v.id).count() as u64,
            })
            .collect()
    }
}

fn names(peers: &[&Peer]) -> String {
    let names: Vec<&str> = peers.iter().map(|p| p.name.as_str()).collect();
    names.join(" and ")
}
