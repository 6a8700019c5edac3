//! The homes: applying what is committed, keeping space for it, and checkpoints.

use std::collections::BTreeSet;
use std::time::Duration;

use super::stats::Stage;
use super::{DiskOp, File, Group, Pending};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{
    ByteRange, CHUNK_BYTES, ChunkSet, Lsn, Op, OpKind, Role, SHORT_OF_SPACE_BYTES, VolumeId,
    VolumeSpec, counted_bytes, unapplied_most_bytes,
};
use crate::core::{Event, Peer};
use crate::journal;
use crate::store::{Apply, Content};

/// Free space that is never promised, in bytes: for the file system's own needs.
pub(super) const SPACE_MARGIN: u64 = 64 << 20;

/// How often it is said again that there is no space.
const REMIND: Duration = Duration::from_secs(60);

/// A disk on which a copy found no space is called full for this long, until a chunk is written again.
const COPY_FULL: Duration = Duration::from_secs(20);

/// How often a home without space is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// How old the knowledge of free space may get under writes, and what share of it may be promised before it is renewed:
/// other groups and programs take from the same file system.
const SPACE_AGE: Duration = Duration::from_millis(500);
const SPACE_SHARE: u64 = 8;

/// With less than this left to promise it is looked at again and again, whether anybody writes or not: who was refused
/// may be waiting for somebody to free some.
const SHORT_RETRY: Duration = Duration::from_secs(1);

/// A checkpoint is begun when this share of the journal was written since the last one was, and after this time at the latest. As
/// much is written while the homes are synced, which may take all of that: so under steady writes one follows the other, the
/// homes are written at an even pace, and a block that is written again within two fifths of a journal goes out only once.
const CHECKPOINT_SHARE: f64 = 0.45;
const CHECKPOINT_AGE: Duration = Duration::from_secs(10);

/// Share of the room that is left for the journal when a checkpoint is begun, by which its syncs are to be through. The rest is for
/// disks that get slower meanwhile.
const SYNC_SHARE: f64 = 0.8;

/// What a copy has brought is made durable, and taken off the record of what is missing, after so many bytes or so long. The
/// volumes of tests are small.
const COPY_BYTES: u64 = if cfg!(test) { CHUNK_BYTES } else { 64 << 20 };
const COPY_AGE: Duration = Duration::from_secs(1);

/// The homes' side of a group.
pub(super) struct Homes {
    /// Homes with writes that *completed* since their last sync began. A write that is under way then may complete after
    /// the sync, and is for the next one.
    dirty: BTreeSet<VolumeId>,
    checkpoint: Lsn,
    /// Journal bytes ever written at the last checkpoint.
    bytes_at_checkpoint: u64,
    last_checkpoint: Duration,
    running: Option<Running>,
    wanted: bool,
    space: Space,
    /// When it was last told that writes are refused for lack of it.
    no_space: Option<Duration>,
    /// Length of the last write that was refused for lack of it, bytes, until one of this length would not be.
    refused_bytes: Option<u64>,
    /// Applies that found no space, and when they are tried again.
    full: Full,
    /// When a copy last found no space here.
    copy_refused: Option<Duration>,
    /// Since when a site is full, seconds since the Unix epoch.
    full_since: Option<u64>,
    /// It was told that space is nearly out here.
    low_told: bool,
}

/// What waits for space in a home. The operations are in the journal, and stay there until they are in the home.
#[derive(Default)]
struct Full {
    applies: Vec<Lsn>,
    retry_at: Option<Duration>,
}

/// What is known of the space for homes. Unknown counts as unbounded: a block device has all it needs.
#[derive(Default)]
struct Space {
    /// The question that is under way.
    asked: Option<Asked>,
    known: Option<Known>,
}

/// A question, as of when it was asked.
struct Asked {
    at: Duration,
    /// Everything that was ever promised, bytes.
    promised: u64,
    /// Of this, what the answer accounts for, bytes.
    allocated: u64,
}

/// An answer.
struct Known {
    free_bytes: u64,
    asked: Asked,
}

impl Space {
    /// What may still be promised after `promised` bytes in all.
    fn credit_bytes(&self, promised: u64) -> u64 {
        match &self.known {
            Some(known) if known.free_bytes != u64::MAX => known
                .free_bytes
                .saturating_sub(promised.saturating_sub(known.asked.allocated))
                .saturating_sub(SPACE_MARGIN),
            _ => u64::MAX,
        }
    }

    /// When it is to be looked at again although nobody asks.
    fn retry_at(&self, promised: u64) -> Option<Duration> {
        let known = self.known.as_ref().filter(|_| self.asked.is_none())?;
        (self.credit_bytes(promised) < SHORT_OF_SPACE_BYTES).then(|| known.asked.at + SHORT_RETRY)
    }

    fn is_old(&self, now: Duration, promised: u64) -> bool {
        self.known.as_ref().is_none_or(|known| {
            // Not since what was allocated: if much waits to be applied, the next answer could be no newer than this one.
            let since = promised.saturating_sub(known.asked.promised);
            now >= known.asked.at + SPACE_AGE || since > known.free_bytes / SPACE_SHARE
        })
    }
}

/// A checkpoint under way.
struct Running {
    target: Lsn,
    syncs: usize,
    /// Journal bytes ever written when it began.
    bytes: u64,
    /// Journal bytes that may be written until it is through.
    room: f64,
    /// Chunks of a copy that are as they should be with this.
    confirmed: ChunkSet,
    /// Ends a full copy.
    ends_copy: bool,
}

impl Homes {
    pub fn new(checkpoint: Lsn, now: Duration) -> Homes {
        Homes {
            dirty: BTreeSet::new(),
            checkpoint,
            bytes_at_checkpoint: 0,
            last_checkpoint: now,
            running: None,
            wanted: false,
            space: Space::default(),
            no_space: None,
            refused_bytes: None,
            full: Full::default(),
            copy_refused: None,
            full_since: None,
            low_told: false,
        }
    }

    /// Since when a site is full, seconds since the Unix epoch.
    pub fn full_since(&self) -> Option<u64> {
        self.full_since
    }

    /// Length of the last write that was refused for lack of space.
    pub fn refused_bytes(&self) -> Option<u64> {
        self.refused_bytes
    }

    /// A copy found no space.
    pub fn copy_refused(&mut self, now: Duration) {
        self.copy_refused = Some(now);
    }

    /// A chunk was written. One that needs no new space says little: the disk counts as full for a while.
    pub fn copy_has_space(&mut self, now: Duration) {
        self.copy_refused.take_if(|at| now >= *at + COPY_FULL);
    }

    /// Everything up to here is durable in the homes, on record.
    pub fn checkpoint(&self) -> Lsn {
        self.checkpoint
    }

    /// A write to the home of this volume completed.
    pub fn touch(&mut self, volume: VolumeId) {
        self.dirty.insert(volume);
    }

    /// A checkpoint as soon as possible.
    pub fn want_checkpoint(&mut self) {
        self.wanted = true;
    }

    /// No checkpoint is running or wanted.
    pub fn idle(&self) -> bool {
        self.running.is_none() && !self.wanted
    }

    /// When something is due: the next checkpoint by its age (without anything newer than the last there is none to
    /// make), chunks of a copy that are to be taken off the record, a home without space, a look at the space. `promised`:
    /// everything that ever was, bytes.
    pub fn deadline(
        &self,
        applied: Lsn,
        promised: u64,
        confirmed: bool,
        fenced: bool,
    ) -> Option<Duration> {
        let may = !fenced && self.running.is_none();
        let age = (may && applied > self.checkpoint).then(|| self.last_checkpoint + CHECKPOINT_AGE);
        let copy = (may && confirmed).then(|| self.last_checkpoint + COPY_AGE);
        let space = self.space.retry_at(promised).filter(|_| !fenced);
        [age, copy, self.full.retry_at, space]
            .into_iter()
            .flatten()
            .min()
    }

    pub fn free_space(&mut self, bytes: u64) {
        if let Some(asked) = self.space.asked.take() {
            self.space.known = Some(Known {
                free_bytes: bytes,
                asked,
            });
        }
    }

    pub fn forget(&mut self, base: Lsn) {
        self.dirty.clear();
        self.running = None;
        self.wanted = false;
        self.checkpoint = base;
        // The store begins to count anew.
        self.space = Space::default();
    }
}

impl Group {
    /// Whether another operation may be held in memory until it is applied.
    pub(super) fn homes_have_budget(&self) -> bool {
        #[cfg(test)]
        if sabotaged(Sabotage::UnboundedMemory) {
            return true;
        }
        self.store.unapplied_bytes() < unapplied_most_bytes(self.log.capacity())
    }

    /// A mirror's homes are behind with what they may have, and it holds as much as it may for them. Then its journal waits, too:
    /// what is not durable here is no longer sent (`WINDOW_BYTES`), and its primary's writers wait. Nothing else is waited for
    /// than this site's own disk, so that it comes to an end.
    pub(super) fn homes_lag(&self) -> bool {
        let ready = self.core.commit().min(self.frames.durable());
        self.core.upstream().is_some()
            && self.store.applied_lsn() < ready
            && !self.homes_have_budget()
    }

    /// Whether a write to this range may be promised space, here and at the mirrors.
    ///
    /// With little space left every write counts as allocating: telling which are not would take a look at the home's
    /// extents for each.
    pub(super) fn space_for(&mut self, range: ByteRange) -> bool {
        self.refresh_free_space();
        let there = self.core.peers().iter().filter(|p| p.gated);
        let there = there.filter_map(|p| self.space_left_at(p));
        range.len <= there.fold(self.space_credit(), u64::min)
    }

    /// What may still be promised here, bytes; `None` if that is not known, or without bounds.
    pub(super) fn space_left(&self) -> Option<u64> {
        Some(self.space_credit()).filter(|bytes| *bytes != u64::MAX)
    }

    /// The same at a peer. What it said does not count what is on its way to it, which is not applied here either.
    pub(super) fn space_left_at(&self, peer: &Peer) -> Option<u64> {
        let said = Some(peer.credit_bytes).filter(|bytes| *bytes != u64::MAX)?;
        Some(said.saturating_sub(self.store.allocating_bytes()))
    }

    /// The sites without room for what was refused last, or for anything at all.
    pub(super) fn full_sites(&self) -> Vec<String> {
        let needed = self.homes.refused_bytes.unwrap_or(1);
        let here = self.space_credit() < needed
            || self.homes.full.retry_at.is_some()
            || self.homes.copy_refused.is_some();
        let here = here.then(|| self.config.site.clone());
        let full = |p: &&Peer| p.gated && self.space_left_at(p).is_some_and(|left| left < needed);
        let there = self.core.peers().iter().filter(full);
        here.into_iter()
            .chain(there.map(|p| p.name.clone()))
            .collect()
    }

    /// A write was refused for lack of space: say so, now and then.
    pub(super) fn note_no_space(&mut self, bytes: u64) {
        self.stats.totals.refused_no_space += 1;
        self.homes.refused_bytes = Some(bytes);
        let now = self.now.mono;
        let old = self.homes.no_space.is_none_or(|told| now >= told + REMIND);
        if !old {
            return;
        }
        self.homes.no_space = Some(now);
        let whose = self.full_sites().join(" and ");
        self.log_line(
            crate::core::Severity::Error,
            format!(
                "NO SPACE for the homes on {whose}: clients' writes are refused with ENOSPC. Free some (64 MiB are \
                 never promised), or trim the volumes"
            ),
        );
    }

    /// A home has no room for an operation that was promised: somebody else took the space. Nothing is lost, the operation is
    /// in the journal; it is tried again until there is room. Meanwhile the journal fills, and then writers wait.
    ///
    /// Unlike a failed sync this leaves nothing in doubt: the write says itself that it was not made.
    pub(super) fn home_full(&mut self, lsn: Lsn, message: &str) {
        let now = self.now.mono;
        self.homes.full.retry_at = Some(now + FULL_RETRY);
        if self.homes.no_space.is_none_or(|told| now >= told + REMIND) {
            self.homes.no_space = Some(now);
            let text = format!(
                "NO SPACE in a home: {message}. What is acknowledged is in the journal and waits there; free some \
                 space before the journal is full"
            );
            self.log_line(crate::core::Severity::Error, text);
        }
        self.homes.full.applies.push(lsn);
        // What was known of the space is wrong.
        self.homes.space.known = None;
        self.refresh_free_space();
    }

    /// Tries once more what found no space.
    pub(super) fn retry_full_homes(&mut self) {
        let now = self.now.mono;
        if self.homes.full.retry_at.is_none_or(|at| now < at) {
            return;
        }
        self.homes.full.retry_at = None;
        for lsn in std::mem::take(&mut self.homes.full.applies) {
            let Apply { lsn, op, content } = self.store.again(lsn);
            self.apply_to_home(lsn, &op, content);
        }
    }

    /// The history is replaced, and with it what waits for space.
    pub(super) fn forget_full_homes(&mut self) {
        self.homes.full = Full::default();
    }

    /// What was refused fits again: it is not remembered.
    fn consider_refused(&mut self) {
        if self.homes.refused_bytes.is_some() && self.full_sites().is_empty() {
            self.homes.refused_bytes = None;
        }
    }

    /// Keeps the time since which a site is full, and says on this one when space is nearly out and when it is.
    pub(super) fn watch_space(&mut self) {
        if self.core.facts().inconsistent_until.is_none() {
            self.homes.copy_refused = None;
        }
        let full = self.full_sites();
        if full.is_empty() {
            if self.homes.full_since.take().is_some() {
                let text = "there is space for the homes again";
                self.log_line(crate::core::Severity::Info, text.to_owned());
            }
        } else {
            let since = self.now.wall_ns / 1_000_000_000;
            self.homes.full_since.get_or_insert(since);
        }
        let credit = self.space_credit();
        if credit >= 2 * SHORT_OF_SPACE_BYTES {
            self.homes.low_told = false;
        } else if credit < SHORT_OF_SPACE_BYTES && !self.homes.low_told {
            self.homes.low_told = true;
            let left = counted_bytes(credit);
            let text = format!(
                "space for the homes here is nearly out: {left} more can be promised to writers, then their \
                 writes are refused (ENOSPC). Free some, or trim the volumes"
            );
            self.log_line(crate::core::Severity::Warn, text);
        }
        let now = self.now.mono;
        let told = self.homes.no_space.is_some_and(|at| now < at + REMIND);
        if full.contains(&self.config.site) && !told {
            self.homes.no_space = Some(now);
            let text = format!(
                "NO SPACE for the homes here, on {}: what needs more is refused or waits until some is freed (64 MiB \
                 are never promised)",
                self.config.site
            );
            self.log_line(crate::core::Severity::Error, text);
        }
    }

    /// Asks how much space there is, if the last answer is old.
    fn refresh_free_space(&mut self) {
        let promised = self.store.allocating_total();
        if self.homes.space.asked.is_none() && self.homes.space.is_old(self.now.mono, promised) {
            self.homes.space.asked = Some(Asked {
                at: self.now.mono,
                promised,
                allocated: promised - self.store.allocating_bytes(),
            });
            self.submit(Pending::FreeSpace, DiskOp::FreeSpace);
        }
    }

    /// A mirror tells its primary how much it can still promise, with what it acknowledges and whenever that is little.
    pub(super) fn tell_credit(&mut self) {
        let takes = self.core.upstream().is_some() && !self.frames.idle();
        let due = self.homes.space.retry_at(self.store.allocating_total());
        if takes || due.is_some_and(|at| self.now.mono >= at) {
            self.refresh_free_space();
        }
        self.consider_refused();
        self.watch_space();
        self.watch_undo_space();
        self.core.set_credit(self.space_credit());
    }

    /// What this site can still promise, bytes.
    pub(super) fn space_credit(&self) -> u64 {
        self.homes.space.credit_bytes(self.store.allocating_total())
    }

    /// Starts what may be applied.
    pub(super) fn apply(&mut self) {
        if self.start_applies() {
            self.have_applied();
        }
    }

    /// The same. True if some counts as applied by that.
    fn start_applies(&mut self) -> bool {
        let mut some = false;
        while let Some(Apply { lsn, op, content }) = self.store.next_apply() {
            match (op.kind, content) {
                (OpKind::OpenEpoch, _) => self.applied(lsn, None),
                (OpKind::CreateVolume, Content::Control(payload)) => {
                    self.create_volume(lsn, &payload);
                }
                (OpKind::ResizeVolume, Content::Control(payload)) => {
                    self.grow_volume(lsn, &payload);
                }
                _ if self.copy_brings(&op) => {
                    self.store.applied(lsn);
                    some = true;
                }
                (_, content) => self.apply_to_home(lsn, &op, content),
            }
        }
        some
    }

    fn apply_to_home(&mut self, lsn: Lsn, op: &Op, content: Content) {
        let file = File::Home(op.volume);
        let request = match content {
            Content::Data(data) => {
                self.stats.totals.home_bytes += data.len() as u64;
                DiskOp::Write {
                    file,
                    offset: op.range.offset,
                    data,
                    durable: false,
                }
            }
            Content::Zero { keep } => DiskOp::Zero {
                file,
                range: op.range,
                keep,
            },
            Content::Control(_) => {
                self.event(Event::DiskFailed(format!(
                    "operation {lsn} ({:?}) came without content",
                    op.kind
                )));
                return;
            }
        };
        let pending = Pending::ApplyWrite {
            lsn,
            volume: op.volume,
            since: self.now.mono,
        };
        self.submit_home(pending, op.volume, op.range, request);
    }

    pub(super) fn applied(&mut self, lsn: Lsn, since: Option<Duration>) {
        if let Some(since) = since {
            self.stats
                .record(Stage::Apply, self.now.mono.saturating_sub(since));
        }
        self.store.applied(lsn);
        self.have_applied();
    }

    fn have_applied(&mut self) {
        self.event(Event::Applied(self.store.applied_lsn()));
        while self.start_applies() {
            self.event(Event::Applied(self.store.applied_lsn()));
        }
        if self.state.volumes_due {
            self.create_missing_volumes();
        }
        let reached = self.store.applied_lsn();
        let copy_ends = self.core.copy_end().is_some_and(|until| until <= reached);
        if copy_ends && self.receive.chunks_done() {
            self.homes.want_checkpoint();
        }
    }

    /// A volume of the history: create its home.
    fn create_volume(&mut self, lsn: Lsn, payload: &[u8]) {
        let volume = match journal::decode_volume(payload) {
            Ok(volume) => volume,
            Err(error) => {
                self.event(Event::DiskFailed(format!("operation {lsn}: {error}")));
                return;
            }
        };
        match self.volumes.iter().find(|v| v.id == volume.id) {
            // A copy began in the middle of the frame that creates it.
            Some(known) if known.uuid == volume.uuid => self.applied(lsn, None),
            // One history gives a number once. What is here is not what it should be, and nothing may be written to it.
            Some(known) => {
                let text = format!(
                    "operation {lsn} creates volume {} ({}), but volume {} is {} ({}) here",
                    volume.name, volume.uuid, volume.id.0, known.name, known.uuid
                );
                self.event(Event::DiskFailed(text));
            }
            None => {
                self.free_place_of(&volume);
                let pending = Pending::CreateHome {
                    lsn,
                    volume: volume.clone(),
                };
                let lengthen = false;
                self.submit_after_retiring(pending, DiskOp::CreateHome { volume, lengthen });
            }
        }
    }

    pub(super) fn note_volume(&mut self, volume: VolumeSpec) {
        self.next_volume_id = self.next_volume_id.max(volume.id.0 + 1);
        if !self.volumes.iter().any(|v| v.uuid == volume.uuid) {
            self.volumes.push(volume);
        }
    }

    /// A new volume reads as zeroes on every site, whatever its device held.
    pub(super) fn clear_home(&mut self, lsn: Lsn, volume: VolumeSpec) {
        let file = File::Home(volume.id);
        let range = ByteRange::new(0, volume.size);
        self.submit(
            Pending::ClearHome { lsn, volume },
            DiskOp::Zero {
                file,
                range,
                keep: false,
            },
        );
    }

    /// Only now that its home exists may the volume enter the record: a later start refuses to miss one.
    pub(super) fn home_created(&mut self, lsn: Lsn, volume: VolumeSpec) {
        self.homes.touch(volume.id);
        self.note_volume(volume);
        self.applied(lsn, None);
        // Clients may attach to it from now on.
        let open = self.core.open_to_clients();
        self.exports(open);
    }

    /// The configured volumes that the history does not have yet.
    pub(super) fn create_missing_volumes(&mut self) {
        // What this epoch continues may create them: that is known once it is applied.
        let epoch = self.core.lineage().last();
        let before = epoch.map_or(Lsn::ZERO, |e| e.first_lsn.prev());
        self.state.volumes_due = self.store.applied_lsn() < before;
        if self.state.volumes_due {
            return;
        }
        for (name, size) in self.config.volumes.clone() {
            let known = self.volumes.iter().any(|v| v.name == name);
            if known || !self.core.admitting() || !self.state.creating.insert(name.clone()) {
                continue;
            }
            let id = VolumeId(self.next_volume_id);
            self.next_volume_id += 1;
            let uuid = self.state.fresh_volume_uuid();
            let spec = VolumeSpec {
                id,
                uuid,
                name,
                size,
            };
            let op = Op {
                kind: OpKind::CreateVolume,
                volume: id,
                range: ByteRange::new(0, 0),
                fua: false,
            };
            let lsn = self.core.assign(1);
            self.enter(lsn, &op, &journal::encode_volume(&spec).into());
        }
    }

    /// Begins a checkpoint if one is due.
    pub(super) fn consider_checkpoint(&mut self) {
        let target = self.store.applied_lsn();
        let bytes = self.stats.totals.journal_bytes;
        self.receive.consider_confirmed(self.frames.durable());
        let confirmed = self.receive.confirmed();
        if !confirmed.is_empty()
            && (self.now.mono >= self.homes.last_checkpoint + COPY_AGE
                || confirmed.bytes(&self.volumes) >= COPY_BYTES)
        {
            self.homes.wanted = true;
        }
        let homes = &self.homes;
        // If it was a sync that failed, the next one says nothing: what the pages held may be gone.
        if homes.running.is_some() || self.core.is_fenced() {
            return;
        }
        let since = bytes - homes.bytes_at_checkpoint;
        let due = homes.wanted
            || since as f64 >= self.log.usable_bytes() as f64 * CHECKPOINT_SHARE
            || self.frames.full
            || (target > homes.checkpoint
                && self.now.mono >= homes.last_checkpoint + CHECKPOINT_AGE);
        if !due || (target <= homes.checkpoint && !homes.wanted) {
            return;
        }
        // What a copy brought counts only once its chunks are in, and its last LSN applied.
        let ends_copy =
            self.core.copy_end().is_some_and(|until| until <= target) && self.receive.chunks_done();
        let within = if homes.wanted {
            Duration::ZERO
        } else {
            CHECKPOINT_AGE
        };
        let room = self.log.room_beyond(homes.checkpoint.next());
        self.homes.wanted = false;
        let dirty = std::mem::take(&mut self.homes.dirty);
        let running = Running {
            target,
            syncs: dirty.len(),
            bytes,
            room: room as f64 * SYNC_SHARE,
            confirmed: self.receive.take_confirmed(),
            ends_copy,
        };
        let nothing_to_sync = dirty.is_empty();
        self.homes.running = Some(running);
        self.homes.last_checkpoint = self.now.mono;
        #[cfg(test)]
        if sabotaged(Sabotage::CheckpointBeforeSync) {
            self.record_checkpoint();
        }
        for volume in dirty {
            self.submit(
                Pending::HomeSync,
                DiskOp::Sync {
                    file: File::Home(volume),
                    within,
                },
            );
        }
        if nothing_to_sync {
            self.homes_durable();
        }
    }

    /// How much of what a checkpoint syncs should be done by now, for the journal to have room when it is through: 0 to 1. More is
    /// no fault. All of it where somebody waits for it: the whole group, or who wants a sync of his own of the same home.
    pub fn sync_due(&self) -> f64 {
        let Some(running) = &self.homes.running else {
            return 1.0;
        };
        let queued = self.syncs.values().any(|turn| turn.len() > 1);
        if self.homes.wanted || self.frames.full || queued {
            return 1.0;
        }
        let written = self.stats.totals.journal_bytes - running.bytes;
        (written as f64 / running.room).min(1.0) // without any room: all of it
    }

    pub(super) fn home_synced(&mut self) {
        let Some(running) = self.homes.running.as_mut() else {
            return;
        };
        running.syncs -= 1;
        if running.syncs == 0 {
            self.homes_durable();
        }
    }

    /// The homes are durable up to the target: put it on record. Only then does the journal give space back.
    fn homes_durable(&mut self) {
        let Some(running) = &self.homes.running else {
            return;
        };
        self.changes.confirm_own(&running.confirmed, &self.volumes);
        if running.ends_copy {
            self.retire_undo(None);
            self.changes.forget_own();
            self.event(Event::CopyDurable);
        }
        self.record_checkpoint();
    }

    fn record_checkpoint(&mut self) {
        let Some(running) = &self.homes.running else {
            return;
        };
        self.state.checkpoint = self.log.position(running.target);
        self.state.request_checkpoint();
    }

    /// The record of the checkpoint is durable.
    pub(super) fn checkpoint_recorded(&mut self, lsn: Lsn) {
        self.homes.checkpoint = self.homes.checkpoint.max(lsn);
        if self
            .homes
            .running
            .as_ref()
            .is_some_and(|r| r.target <= lsn && r.syncs == 0)
        {
            let running = self.homes.running.take().expect("just seen");
            self.homes.bytes_at_checkpoint = running.bytes;
            self.stats.totals.checkpoints += 1;
        }
        self.release_journal();
    }

    /// Gives back what neither recovery nor a peer needs. A peer that is away keeps its part of the journal until that is half of
    /// it; then what it lacks is noted chunk by chunk.
    pub(super) fn release_journal(&mut self) {
        let mut keep = self.homes.checkpoint.next();
        #[cfg(test)]
        if sabotaged(Sabotage::ReleaseBeforeCheckpoint) {
            keep = self.store.applied_lsn().next();
        }
        // Large frames leave gaps at the ends of segments: the journal can be full with less than half of it in use. But giving up
        // what the checkpoint holds besides makes no room.
        let crowded = |lsn: Lsn| {
            self.frames.full && lsn < self.homes.checkpoint.next()
                || self.log.bytes_from(lsn) > self.log.capacity() / 2
        };
        // A mirror keeps nothing for its primary, which has all of it.
        let primary = self.core.facts().role == Role::Primary;
        for peer in self.core.peers().iter().filter(|_| primary) {
            let streams = peer.streaming_link().is_some();
            if let Some(lsn) = peer.holds_from().filter(|lsn| streams || !crowded(*lsn)) {
                keep = keep.min(lsn);
            }
        }
        let streams = self.streams.values().map(super::streams::Stream::next);
        keep = streams.fold(keep, Lsn::min);
        // What a verification has still to look through for proof.
        keep = self.proof_pin().map_or(keep, |lsn| lsn.min(keep));
        // A mirror's history is its primary's; it only adds to sets that it has already.
        let leads = self.core.facts().role == Role::Primary;
        let confirmed = self
            .core
            .peers()
            .iter()
            .map(|peer| (peer.name.clone(), leads.then_some(peer.durable)));
        let confirmed: Vec<(String, Option<Lsn>)> = confirmed.collect();
        if self.changes.give_up_before(keep, &confirmed) {
            self.state.request_release(keep);
        } else {
            self.log.release_before(keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_about_free_space_is_new_however_much_waits_to_be_applied() {
        let at = Duration::from_secs(1);
        let asked = Asked {
            at,
            promised: 100 << 20,
            allocated: 10 << 20,
        };
        let known = Known {
            free_bytes: 200 << 20,
            asked,
        };
        let space = Space {
            asked: None,
            known: Some(known),
        };
        // 90 MiB wait, more than an eighth of 200: asking at once would give the same answer, again and again.
        assert!(!space.is_old(at, 100 << 20));
        assert!(!space.is_old(at, 120 << 20));
        assert!(space.is_old(at, 126 << 20));
        assert!(space.is_old(at + SPACE_AGE, 100 << 20));
        assert_eq!(space.credit_bytes(100 << 20), (200 - 90 - 64) << 20);
    }
}
