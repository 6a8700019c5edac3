//! What must hold, at every moment. Each check names the promise it is for.
//!
//! - *Same bytes*: what a site's home and overlay show together is what its history says.
//! - *Prefix*: a site's history is always an end of the one tree; what it no longer holds was not promised to anybody, or
//!   the other site has it, or an operator gave it up.
//! - *Promise matrix*: at the moment of an answer the disks and memories hold what the mode promises.
//! - *One writer*: an LSN of an epoch is used once and by one site (`history`); two sites answer clients at the same time only
//!   after an operator has overridden one of them.
//! - *In sync*: said only of a mirror whose disk has confirmed what is claimed.
//! - *WAL rule*: a home never receives what is not committed and durable in the site's own journal.
//! - *Bounds*: memory, queues and journal.

use std::collections::BTreeSet;
use std::time::Duration;

use super::history::{Place, ROOT, reads_as};
use super::ledger::{Asked, Promise, Waiver, readable};
use super::world::{Happening, NAMES, World, site_named};
use crate::base::{AckMode, ByteRange, Compress, Lsn, VolumeId};
use crate::core::Mode;
use crate::engine::{DiskOp, File};
use crate::journal::{STATE_FILE_BYTES, StateFile};
use crate::nbd::Piece;
use crate::store::{Content, Source};

use super::history::SECTOR;

/// Home and overlay of a site are compared with its history every so many turns, and when something decisive happened.
const COMPARE_EVERY: u64 = 64;

/// What is not applied yet may exceed a quarter of the journal by what is admitted at once, bytes.
const UNAPPLIED_SLACK: u64 = 8 << 20;

/// Sent and not confirmed, bytes.
const WINDOW: u64 = 32 << 20;

/// Bytes on their way to a peer: what the stream may queue, and one message more.
const FLYING: u64 = (8 << 20) + (5 << 20);

/// Disk requests of a site under way: applies, chunks, reads of clients.
const DISK_REQUESTS: usize = 512;

/// Sequence number of the record in a slot, and without whom it says that the site acknowledges.
pub fn record_in(slot: &[u8]) -> (u64, BTreeSet<String>) {
    let mut file = vec![0; STATE_FILE_BYTES as usize / 2];
    file[..slot.len()].copy_from_slice(slot);
    match StateFile::load(&file) {
        Ok(Some((_, record))) => {
            let alone = record.peers.into_iter().filter(|p| p.alone.is_some());
            (record.sequence, alone.map(|p| p.site).collect())
        }
        _ => (0, BTreeSet::new()),
    }
}

impl World {
    /// A site was started: what it found on its disk is what it must have.
    pub fn opened(&mut self, at: usize) {
        self.follow(at);
        self.sites[at].copied_to = self.is_copied_to(at);
        // What recovery found is on the disk, also if the power went before the disk could say so.
        let site = &mut self.sites[at];
        site.durable.extend(site.chain.places());
        let result = self
            .compare(at)
            .map_err(|text| format!("{} after its start: {text}", NAMES[at]));
        self.check(result);
    }

    /// A site has finished a batch.
    pub fn turned(&mut self, at: usize) {
        self.follow(at);
        self.copy_can_be_undone(at);
        self.sites[at].turns += 1;
        self.meets_its_fate(at);
        let copied_to = self.is_copied_to(at);
        let complete = std::mem::replace(&mut self.sites[at].copied_to, copied_to) && !copied_to;
        if complete || self.sites[at].turns.is_multiple_of(COMPARE_EVERY) {
            let result = self
                .compare(at)
                .map_err(|text| format!("{}: {text}", NAMES[at]));
            self.check(result);
        }
        if complete && std::mem::take(&mut self.sites[at].dies_when_consistent) {
            let down = Duration::from_millis(500);
            self.later(Duration::ZERO, Happening::Die(at, down));
        }
        let result = self.bounds(at).and_then(|()| self.in_sync_is_confirmed(at));
        let result = result.map_err(|text| format!("{}: {text}", NAMES[at]));
        self.check(result);
    }

    /// The site's own view of its history, as far as its frames are closed.
    fn follow(&mut self, at: usize) {
        let Some(group) = self.sites[at].group.as_ref() else {
            return;
        };
        let head = (group.frames.sealed(), group.frames.chain());
        if head == self.sites[at].chain.head() {
            // It may stand for what was in memory only.
            self.copy_begins(at);
            return;
        }
        let site = &mut self.sites[at];
        site.went_back |= site.going_back.is_some() && site.held == Some(head);
        site.heads.push(site.chain.head());
        let mut chain = std::mem::take(&mut self.sites[at].chain);
        let change = chain.move_to(head, &self.history);
        self.sites[at].chain = chain;
        if let Some(dropped) = change {
            self.dropped(at, &dropped);
            self.copy_begins(at);
        }
    }

    /// What can be undone is remembered when it begins.
    fn copy_can_be_undone(&mut self, at: usize) {
        let site = &mut self.sites[at];
        let undo = site.group.as_ref().and_then(|g| g.undo.status());
        let Some(undo) = undo else {
            if site.going_back.is_none() {
                site.held = None;
            }
            return;
        };
        if site.held.is_none() {
            let ends = site.heads.iter().rev().chain([&ROOT]);
            site.held = ends.copied().find(|place| place.0 == undo.lsn);
        }
    }

    /// An operator took what a site held before a copy: it must be just that.
    fn is_what_it_held(&mut self, at: usize, parent: Place) -> Result<(), String> {
        let site = &mut self.sites[at];
        let Some(command) = site.going_back.take() else {
            return Ok(());
        };
        let refused =
            |(id, result): &(u64, Result<String, String>)| *id == command && result.is_err();
        let held = site.held.take();
        if held == Some(parent) || site.went_back || self.answers.iter().any(refused) {
            return Ok(());
        }
        Err(format!(
            "{} goes back to {parent:?}, but held {held:?} before the copy",
            NAMES[at]
        ))
    }

    /// A full copy stands for all of the history before it.
    fn copy_begins(&mut self, at: usize) {
        let site = &mut self.sites[at];
        let group = site.group.as_ref().expect("followed");
        let head = site.chain.head();
        let copies = group.core.facts().inconsistent_until.is_some();
        if copies && group.log.first_lsn() == head.0.next() && !site.durable.contains(&head) {
            site.durable.extend(site.chain.places());
            // A copy is to be made while clients write.
            if self.ledger.open.is_empty() {
                self.hurry();
            }
        }
    }

    /// *Prefix*: a site forgot a part of its history.
    fn dropped(&mut self, at: usize, dropped: &[Place]) {
        if dropped.is_empty() {
            return;
        }
        self.note(|| format!("{} drops {dropped:?}", NAMES[at]));
        let lost: Vec<Promise> = self
            .ledger
            .standing()
            .filter(|p| dropped.contains(&p.place))
            .copied()
            .collect();
        for promise in lost {
            let elsewhere = self
                .others(at)
                .any(|other| self.sites[other].chain.contains(promise.place));
            if elsewhere {
                continue;
            }
            if self.sites[at].going_back.is_some() {
                self.ledger.waive(&promise, Waiver::Discarded);
                continue;
            }
            if self.may_have_been_in_memory_only(&promise) {
                self.ledger.waive(&promise, Waiver::Memory);
                continue;
            }
            // Whom an operator promoted by force had it, and its disk lost it.
            let robbed = self
                .others(at)
                .any(|other| self.sites[other].durable.contains(&promise.place));
            if self.overridden && robbed {
                self.ledger.waive(&promise, Waiver::Discarded);
                continue;
            }
            self.violate(format!(
                "{} drops LSN {}, although request {} was acknowledged by {} and nobody else has it",
                NAMES[at], promise.place.0, promise.number, NAMES[promise.site]
            ));
        }
    }

    /// `memsync` keeps an operation in two memories for a moment: if both are lost before either disk has it, it is gone.
    fn may_have_been_in_memory_only(&self, promise: &Promise) -> bool {
        self.plan.ack == AckMode::Memsync
            && !self
                .sites
                .iter()
                .any(|s| s.durable.contains(&promise.place))
    }

    /// A site opens an epoch: what was promised must be in its history.
    pub fn epoch_opened(&mut self, at: usize, place: Place) {
        let parent = self.history.get(place).expect("just entered").parent;
        let mut chain = std::mem::take(&mut self.sites[at].chain);
        let known = chain.move_to(parent, &self.history);
        self.sites[at].chain = chain;
        if let Some(dropped) = known {
            self.dropped(at, &dropped);
        }
        let result = self.is_what_it_held(at, parent);
        self.check(result);
        if self.sites[at].forced {
            self.overridden = true;
        }
        let missing: Vec<Promise> = {
            let chain = &self.sites[at].chain;
            self.ledger
                .standing()
                .filter(|p| !chain.contains(p.place))
                .copied()
                .collect()
        };
        for promise in missing {
            // That its disk lost it the site knows, and without `--force behind` it does not go on.
            let lost = self.fragile == Some(at) && self.sites[at].durable.contains(&promise.place);
            if lost && !self.healing {
                self.violate(format!(
                    "{} opens an epoch at LSN {} although its disk lost LSN {}, acknowledged to request {}",
                    NAMES[at], place.0, promise.place.0, promise.number
                ));
                continue;
            }
            if self.overridden {
                self.note(|| format!("{promise:?} is overridden"));
                continue;
            }
            if self.may_have_been_in_memory_only(&promise) {
                self.ledger.waive(&promise, Waiver::Memory);
                continue;
            }
            self.violate(format!(
                "{} opens an epoch at LSN {} without LSN {}, although request {} was acknowledged by {}",
                NAMES[at], place.0, promise.place.0, promise.number, NAMES[promise.site]
            ));
        }
        let result = self
            .compare(at)
            .map_err(|text| format!("{} opens an epoch: {text}", NAMES[at]));
        self.check(result);
    }

    /// *Same bytes*.
    pub fn compare(&mut self, at: usize) -> Result<(), String> {
        let site = &mut self.sites[at];
        let Some(group) = site.group.as_ref() else {
            return Ok(());
        };
        let head = (group.frames.sealed(), group.frames.chain());
        let inconsistent = group.core.facts().inconsistent_until.is_some();
        let betrayed = self.examined == Some(at);
        if betrayed || inconsistent || site.chain.head() != head || head.0 < site.robbed_until {
            return Ok(());
        }
        for (volume, sectors) in site.chain.volumes() {
            let Some(known) = group.volumes.iter().find(|v| v.id == *volume) else {
                continue;
            };
            // It grows in the home only once that is committed.
            let bytes = (sectors.len() as u64 * SECTOR).min(known.size);
            let sectors = &sectors[..(bytes / SECTOR) as usize];
            let mut content = site.disk.content(File::Home(*volume), 0, bytes as usize);
            let all = ByteRange::new(0, bytes);
            let mut unknown = Vec::new();
            for piece in group.store.read_plan(*volume, all).pieces {
                let Source::Overlay(lsn) = piece.source else {
                    continue;
                };
                let within = piece.range.offset as usize..piece.range.end() as usize;
                match group.store.content(lsn, piece.range) {
                    Some(Content::Data(data)) => content[within].copy_from_slice(&data),
                    Some(Content::Zero { .. }) if lsn <= head.0 => content[within].fill(0),
                    _ => unknown.push(piece.range),
                }
            }
            for (n, versions) in sectors.iter().enumerate() {
                let offset = n * SECTOR as usize;
                let (lsn, request) = versions.last().copied().unwrap_or_default();
                let expected = reads_as(request).to_le_bytes();
                let sector = &content[offset..offset + SECTOR as usize];
                let hidden = || {
                    unknown
                        .iter()
                        .any(|r| r.overlaps(ByteRange::new(offset as u64, SECTOR)))
                };
                if !sector
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .all(|word| *word == expected)
                    && !hidden()
                {
                    return Err(format!(
                        "sector {n} of volume {} should hold request {} of LSN {lsn} at LSN {}, but begins with {:?}; its history \
                         is {versions:?}",
                        volume.0,
                        reads_as(request),
                        head.0,
                        u64::from_le_bytes(sector[..8].try_into().expect("eight"))
                    ));
                }
            }
        }
        Ok(())
    }

    /// *WAL rule*.
    pub fn home_write(&mut self, at: usize, op: &DiskOp) -> Result<(), String> {
        let DiskOp::Write { data, offset, .. } = op else {
            return Ok(());
        };
        let site = &self.sites[at];
        let Some(group) = site.group.as_ref() else {
            return Ok(());
        };
        // A copy, or a repair, brings content without its history.
        if self.examined == Some(at) {
            return Ok(());
        }
        if group.core.facts().inconsistent_until.is_some() {
            return Ok(());
        }
        let number = data
            .first_chunk()
            .map_or(0, |first| u64::from_le_bytes(*first));
        let place = self.ledger.place(number).ok_or_else(|| {
            format!(
                "{} writes to a home what has no LSN, at {offset}: {number}",
                NAMES[at]
            )
        })?;
        if !site.durable.contains(&place) {
            return Err(format!(
                "{} writes LSN {} to a home, which is not durable in its journal",
                NAMES[at], place.0
            ));
        }
        // Whose record it is that says so: a mirror's primary's, or its own with two sites.
        let without = |other: usize| match self.sites.len() {
            2 => !site.alone.is_empty(),
            _ => self.left.contains(&other),
        };
        let lacks = |other: &usize| !self.was_at(*other, place) && !without(*other);
        if let Some(other) = self.others(at).find(lacks)
            && self.plan.ack != AckMode::Async
        {
            return Err(format!(
                "{} writes LSN {} to a home, although {} does not have it and nobody goes on without it",
                NAMES[at], place.0, NAMES[other]
            ));
        }
        Ok(())
    }

    /// Whether a site ever had this in its memory.
    fn was_at(&self, at: usize, place: Place) -> bool {
        let wrote = self
            .history
            .get(place)
            .is_some_and(|node| node.writer == at);
        wrote || self.sites[at].received.contains(&place) || self.sites[at].durable.contains(&place)
    }

    /// *Promise matrix*: what an answer needs, held against disks and memories.
    fn promise_is_covered(&self, at: usize, place: Place, durable: bool) -> Result<(), String> {
        let here = &self.sites[at];
        let local = here.durable.contains(&place);
        // What an earlier epoch committed was acknowledged by the record that was in force then.
        let epoch = self.history.get(place).map(|node| node.epoch);
        let current = here.group.as_ref().and_then(|g| g.core.lineage().last());
        let earlier = self.sites.len() > 2 && epoch != current.map(|e| e.id);
        let without = |other: &usize| {
            here.alone.contains(NAMES[*other]) || earlier && self.left.contains(other)
        };
        let has = |other: &usize| self.sites[*other].durable.contains(&place);
        let remote = self.others(at).all(|other| has(&other) || without(&other));
        // Of those that are waited for all have it, and one site's memory is not enough.
        let memory = self
            .others(at)
            .all(|other| self.was_at(other, place) || without(&other));
        let second = local || self.others(at).any(|other| self.was_at(other, place));
        let met = match (self.plan.ack, durable) {
            (AckMode::Async, _) => local,
            (AckMode::Memsync, false) => memory && second,
            (AckMode::Sync, _) | (AckMode::Memsync, true) => local && remote,
        };
        if met {
            return Ok(());
        }
        Err(format!(
            "LSN {} was acknowledged in mode {} (durably: {durable}), but: durable here {local}, durable there {remote}, in \
             memory there {memory}, on record without {:?}",
            place.0, self.plan.ack, here.alone
        ))
    }

    /// Somebody was told of this place in the history.
    fn promised(
        &mut self,
        at: usize,
        number: u64,
        place: Place,
        durable: bool,
    ) -> Result<(), String> {
        self.follow(at);
        if !self.sites[at].chain.contains(place) {
            return Err(format!("LSN {} is not in its history", place.0));
        }
        self.promise_is_covered(at, place, durable)?;
        if !self.overridden {
            let chain = &self.sites[at].chain;
            let foreign = self
                .ledger
                .standing()
                .rfind(|p| p.site != at && !chain.contains(p.place));
            if let Some(foreign) = foreign {
                return Err(format!(
                    "{} acknowledged request {} at LSN {}, which is not in its history: both acknowledge",
                    NAMES[foreign.site], foreign.number, foreign.place.0
                ));
            }
        }
        let site = at;
        self.ledger.promise(Promise {
            number,
            place,
            site,
        });
        Ok(())
    }

    pub fn write_acknowledged(&mut self, asked: &Asked, fua: bool) -> Result<(), String> {
        self.ledger.acknowledged += 1;
        let place = self.ledger.place(asked.number).ok_or("it is in no frame")?;
        self.promised(asked.site, asked.number, place, fua)
    }

    /// A flush speaks for what was acknowledged before it came.
    pub fn flush_acknowledged(
        &mut self,
        asked: &Asked,
        after: Option<Promise>,
    ) -> Result<(), String> {
        let Some(promise) = after.filter(|p| self.sites[asked.site].chain.contains(p.place)) else {
            return Ok(());
        };
        self.promise_is_covered(asked.site, promise.place, true)
    }

    /// A read shows what is committed, at the least what was there when it came; what it has shown stays.
    pub fn read_answered(
        &mut self,
        asked: &Asked,
        range: ByteRange,
        offset: u64,
        pieces: Vec<Piece>,
    ) -> Result<(), String> {
        self.ledger.reads += 1;
        let at = asked.site;
        self.follow(at);
        let mut content = Vec::with_capacity(range.len as usize);
        for piece in pieces {
            match piece {
                Piece::Data(data) => content.extend_from_slice(&data),
                Piece::Hole(len) => content.resize(content.len() + len as usize, 0),
            }
        }
        if (offset, content.len() as u64) != (range.offset, range.len) {
            return Err(format!("{} bytes at {offset} for {range:?}", content.len()));
        }
        let commit = self.sites[at]
            .group
            .as_ref()
            .map_or(Lsn::ZERO, |g| g.core.commit());
        let mut newest = Lsn::ZERO;
        for (n, sector) in content.chunks(SECTOR as usize).enumerate() {
            let number = range.offset / SECTOR + n as u64;
            let (first, rest) = sector
                .as_chunks::<8>()
                .0
                .split_first()
                .ok_or("less than a sector")?;
            let found = u64::from_le_bytes(*first);
            let versions = self.sites[at].chain.versions(asked.volume, number);
            let seen = readable(versions, asked.tail, commit, found);
            let Some(lsn) = seen.filter(|_| rest.iter().all(|word| word == first)) else {
                return Err(format!(
                    "sector {number} of volume {} read as {found} (committed up to LSN {commit}, LSN {} was the last when it \
                     came); its history is {versions:?}",
                    asked.volume.0, asked.tail
                ));
            };
            newest = newest.max(lsn);
        }
        match self.sites[at].chain.at(newest) {
            Some(place) if newest > Lsn::ZERO => self.promised(at, asked.number, place, false),
            _ => Ok(()),
        }
    }

    /// *In sync* is never concluded by inference.
    fn in_sync_is_confirmed(&self, at: usize) -> Result<(), String> {
        let here = &self.sites[at];
        let Some(group) = here.group.as_ref() else {
            return Ok(());
        };
        if !matches!(group.core.mode(), Mode::Serving | Mode::Draining(_)) {
            return Ok(());
        }
        for peer in group.core.peers().iter().filter(|p| p.in_sync) {
            let other = site_named(&peer.name);
            let there = &self.sites[other];
            let Some(place) = here.chain.at(peer.durable) else {
                continue;
            };
            if place.0 == peer.durable && !there.durable.contains(&place) && self.fragile.is_none()
            {
                return Err(format!(
                    "says that {} is in sync and durable up to LSN {}, which its disk never confirmed",
                    NAMES[other], peer.durable
                ));
            }
            if here.alone.contains(&peer.name) {
                return Err(format!(
                    "says that {} is in sync, and goes on without it on record",
                    NAMES[other]
                ));
            }
            let copied = there
                .group
                .as_ref()
                .is_some_and(|g| g.core.facts().inconsistent_until.is_some());
            if copied && self.alive(other) && peer.durable >= peer.gate_lsn && !self.overridden {
                return Err(format!(
                    "says that {} is in sync, which is inconsistent",
                    NAMES[other]
                ));
            }
        }
        Ok(())
    }

    /// *Bounds*.
    fn bounds(&self, at: usize) -> Result<(), String> {
        let Some(group) = self.sites[at].group.as_ref() else {
            return Ok(());
        };
        let unapplied = group.store.unapplied_bytes();
        // A mirror takes what its journal and the stream's window hold, as it is stored: compressed.
        let most = if self.sites[at].followed && self.plan.compress == Compress::Off {
            group.log.capacity() + WINDOW
        } else if self.sites[at].followed {
            u64::MAX - UNAPPLIED_SLACK
        } else {
            group.log.capacity() / 4
        };
        if unapplied > most + UNAPPLIED_SLACK {
            return Err(format!("{unapplied} bytes are not applied"));
        }
        if group.log.used_bytes() > group.log.capacity() {
            return Err(format!(
                "the journal holds {} bytes",
                group.log.used_bytes()
            ));
        }
        let requests = self.sites[at].disk.in_flight();
        if requests > DISK_REQUESTS {
            return Err(format!("{requests} disk requests are under way"));
        }
        for wire in self.wires.values() {
            let flying = wire.flying_from(at);
            if flying > FLYING {
                return Err(format!("{flying} bytes wait to be sent"));
            }
        }
        Ok(())
    }

    /// How long the volumes of a site are, bytes.
    pub fn sizes(&self, at: usize) -> Vec<u64> {
        let group = self.sites[at].group.as_ref();
        group.map_or_else(Vec::new, |g| g.volumes.iter().map(|v| v.size).collect())
    }

    /// All say in sync, and nothing is under way: the homes are the same, byte for byte.
    pub fn homes_are_equal(&mut self) -> Result<(), String> {
        for other in self.others(0) {
            let [a, b] = [0, other].map(|at| self.sizes(at));
            if a != b {
                return Err(format!(
                    "the volumes are {a:?} and {b:?} bytes long although {} and {} are in sync",
                    NAMES[0], NAMES[other]
                ));
            }
            for (n, size) in a.into_iter().enumerate() {
                let file = File::Home(VolumeId(n as u32));
                let contents = [0, other];
                let [a, b] = contents.map(|at| self.sites[at].disk.content(file, 0, size as usize));
                if let Some(byte) = a.iter().zip(&b).position(|(a, b)| a != b) {
                    return Err(format!(
                        "volume {n} differs at byte {byte} although {} and {} are in sync",
                        NAMES[0], NAMES[other]
                    ));
                }
            }
        }
        Ok(())
    }
}
