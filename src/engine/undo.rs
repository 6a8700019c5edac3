//! Going back to before a copy: a copy makes a mirror inconsistent, and if its primary dies in the middle, what the mirror
//! held before is the best there is. So that is kept until the copy is complete.
//!
//! # Order
//! 1. *Prepare*, before the proposed copy is agreed to: what is allowed to be in the homes is applied and synced; the homes
//!    are cloned where the file system can; what follows in the journal is copied into the undo file, with the record of
//!    state. All of it is durable before the copy is agreed to, and the record of the copy names the file.
//! 2. *In force*: without clones, the old content of a chunk is durable in the file before the first write to that chunk of
//!    the home, whether that is part of the copy, of the stream behind it, or of a replay.
//! 3. *Retire*: when the copy is durable, or space runs out. First the record forgets the file, then the file is removed.
//! 4. *Go back*, instead, when an operator promotes this site in the middle of the copy: the homes become what they were (after
//!    the record says that no chunk of them is what the copy brought, should it go on),
//!    the frames that they lacked are applied, all is synced, and the history ends where it ended then. The record of the
//!    promotion is the first that knows of it: a crash before leaves everything as it was, to be begun again.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use uuid::Uuid;

use super::homes::SPACE_MARGIN;
use super::open::OpenError;
use super::{Disk, DiskOp, DiskResult, File, Group, Pending};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{
    AlignedBuf, BLOCK, ByteRange, CHUNK_BYTES, ChunkSet, OpKind, VolumeId, VolumeSpec,
    counted_bytes,
};
use crate::core::{Event, Severity, UndoPoint, WentBack};
use crate::journal::{
    self, Cursor, Frame, Next, UNDO_ENTRY_BYTES, UNDO_HEAD_BYTES, UndoEntry, UndoHead, UndoPlace,
    UndoRead,
};
use crate::status::UndoStatus;

/// Chunks being read at once to be kept.
const READS: usize = 8;

/// Entries are written as many at once as fit so many bytes.
const BATCH_BYTES: usize = 2 << 20;
const BATCH: usize = BATCH_BYTES / UNDO_ENTRY_BYTES as usize;

/// When less than this can still be promised to clients, keeping ends: bytes. Their writes come first.
const RESERVE: u64 = 256 << 20;

/// What is kept of a group.
#[derive(Default)]
pub(super) struct Undo {
    phase: Phase,
    /// Requests under way that belong to what was given up count no more.
    generation: u64,
    /// Requests under way.
    busy: usize,
    /// The core waits for the preparation.
    asked: bool,
    /// The file is to go once nothing is under way to it.
    remove: bool,
}

#[derive(Default)]
enum Phase {
    /// Nothing is kept.
    #[default]
    Off,
    Preparing(Preparing),
    /// Durable, and no copy has begun.
    Ready(Box<Kept>),
    /// A copy is under way.
    InForce(Box<Kept>),
    /// Counts no more; the record is to say so, and then the file is to go.
    Retiring(Box<Kept>),
    GoingBack(Box<GoingBack>),
}

/// Making the present durable.
enum Preparing {
    /// Is there space?
    Measuring,
    /// Until nothing is under way to the homes or the journal.
    Settling,
    Syncing {
        left: usize,
    },
    Removing,
    Cloning {
        left: usize,
        failed: bool,
    },
    Frames {
        head: Box<UndoHead>,
        cursor: Cursor,
    },
    Head(Box<UndoHead>),
}

/// What makes going back possible.
struct Kept {
    head: UndoHead,
    /// Volumes of the point that are no longer part of the history: what they held is put aside as a whole. Their numbers may
    /// be those of others now.
    gone: BTreeSet<VolumeId>,
    /// Chunks whose old content is durable in the file.
    saved: ChunkSet,
    /// Those, and the ones that are on their way.
    asked: ChunkSet,
    /// Still to be read.
    wanted: VecDeque<(VolumeId, ByteRange)>,
    reading: usize,
    /// Entries to be written.
    batch: Option<AlignedBuf>,
    batched: Vec<(VolumeId, ByteRange)>,
    /// Being written.
    writing: Option<(u64, Vec<(VolumeId, ByteRange)>)>,
    /// Entries made, and those of them that are durable.
    made: u64,
    durable: u64,
    /// Where the next entry goes, bytes.
    end: u64,
    /// Writes to homes that wait for their chunks.
    waiting: Vec<(VolumeId, ByteRange, Pending, DiskOp)>,
}

/// Undoing the copy.
struct GoingBack {
    head: UndoHead,
    end: u64,
    steps: VecDeque<Step>,
    /// Bytes of frames not parsed yet.
    rest: Bytes,
    volumes: Vec<VolumeSpec>,
    lineage: crate::base::Lineage,
    began: bool,
    /// Why it is no good: the homes are what the copy wants again once the steps are done.
    failed: Option<String>,
}

/// One thing at a time.
enum Step {
    Do(DiskOp),
    /// The entry with this number lies here.
    Entry {
        number: u64,
        at: u64,
    },
    Frames {
        at: u64,
    },
    Sync,
}

impl Kept {
    fn new(head: UndoHead, saved: ChunkSet, made: u64, end: u64) -> Kept {
        Kept {
            asked: saved.clone(),
            head,
            gone: BTreeSet::new(),
            saved,
            wanted: VecDeque::new(),
            reading: 0,
            batch: None,
            batched: Vec::new(),
            writing: None,
            made,
            durable: made,
            end,
            waiting: Vec::new(),
        }
    }

    /// The chunks of this range that need keeping: what was there at the point.
    fn chunks(
        &self,
        volume: VolumeId,
        range: ByteRange,
    ) -> impl Iterator<Item = ByteRange> + use<> {
        chunks_of(&self.head, &self.gone, volume, range)
    }

    fn covers(&self, volume: VolumeId, range: ByteRange) -> bool {
        self.head.clones
            || self
                .chunks(volume, range)
                .all(|chunk| self.saved.holds(volume, chunk.offset))
    }

    fn want(&mut self, volume: VolumeId, range: ByteRange) {
        for chunk in self.chunks(volume, range) {
            if !self.asked.holds(volume, chunk.offset) {
                self.asked.insert(volume, chunk);
                self.wanted.push_back((volume, chunk));
            }
        }
    }
}

/// The chunks in which this range lies, of the volume as it was at the point.
fn chunks_of(
    head: &UndoHead,
    gone: &BTreeSet<VolumeId>,
    volume: VolumeId,
    range: ByteRange,
) -> impl Iterator<Item = ByteRange> + use<> {
    let known = !gone.contains(&volume);
    let spec = head.record.volumes.iter().find(|v| v.id == volume);
    let spec = spec.filter(|_| known);
    let size = spec.map_or(0, |v| v.size);
    let end = range.end().min(size);
    let first = range.offset - range.offset % CHUNK_BYTES;
    (first..end)
        .step_by(CHUNK_BYTES as usize)
        .map(move |start| ByteRange::new(start, CHUNK_BYTES.min(size - start)))
}

/// Volumes that were there at the point and are not among these.
fn gone<'a>(head: &'a UndoHead, volumes: &'a [VolumeSpec]) -> impl Iterator<Item = &'a VolumeSpec> {
    let then = head.record.volumes.iter();
    then.filter(|then| volumes.iter().all(|now| now.uuid != then.uuid))
}

/// Whether another volume of this name was there at the point: there is one place for both.
fn needs_place_of(head: &UndoHead, volume: &VolumeSpec) -> bool {
    let mut then = head.record.volumes.iter();
    then.any(|then| then.name == volume.name && then.uuid != volume.uuid)
}

impl Undo {
    /// As it was found at the start.
    pub fn found(kept: Option<FoundUndo>) -> Undo {
        let phase = match kept {
            Some(FoundUndo {
                head,
                gone,
                saved,
                entries,
                end,
            }) => {
                let mut kept = Kept::new(head, saved, entries, end);
                kept.gone = gone;
                Phase::InForce(Box::new(kept))
            }
            None => Phase::Off,
        };
        Undo {
            phase,
            ..Undo::default()
        }
    }

    /// The file that the record names.
    pub fn id(&self) -> Uuid {
        match &self.phase {
            Phase::InForce(kept) => kept.head.id,
            Phase::GoingBack(back) => back.head.id,
            _ => Uuid::nil(),
        }
    }

    /// Where this site can go back to.
    pub fn point(&self) -> Option<UndoPoint> {
        match &self.phase {
            Phase::InForce(kept) => Some(UndoPoint {
                lsn: kept.head.point,
                time_ns: kept.head.time_ns,
            }),
            _ => None,
        }
    }

    /// These are the volumes from now on: of others that were there at the point nothing is to be kept, what they hold is put
    /// aside.
    pub fn volumes_are(&mut self, volumes: &[VolumeSpec]) {
        if let Phase::InForce(kept) = &mut self.phase {
            kept.gone = gone(&kept.head, volumes).map(|v| v.id).collect();
            let gone = &kept.gone;
            kept.wanted.retain(|(volume, _)| !gone.contains(volume));
        }
    }

    /// No request is under way.
    pub fn is_quiet(&self) -> bool {
        self.busy == 0
    }

    pub fn status(&self) -> Option<UndoStatus> {
        match &self.phase {
            Phase::InForce(kept) => Some(UndoStatus {
                lsn: kept.head.point,
                unix_seconds: kept.head.time_ns / 1_000_000_000,
                file_bytes: kept.end,
            }),
            _ => None,
        }
    }
}

impl Group {
    fn undo_submit(&mut self, op: DiskOp) {
        self.undo.busy += 1;
        let generation = self.undo.generation;
        self.submit(Pending::Undo { generation }, op);
    }

    /// A copy is proposed: make it possible to go back. Answers at once if that is so, or not to be.
    pub(super) fn prepare_undo(&mut self) {
        let wanted = self.config.resync_undo
            && !self.core.lineage().is_empty()
            && self.core.facts().inconsistent_until.is_none();
        match &self.undo.phase {
            Phase::Off if wanted => {
                self.undo.asked = true;
                // What is left of an earlier one goes on the way.
                self.undo.remove = false;
                self.undo.phase = Phase::Preparing(Preparing::Measuring);
                self.undo_submit(DiskOp::FreeSpace);
            }
            Phase::Preparing(_) | Phase::Retiring(_) => self.undo.asked = true,
            _ => self.event(Event::UndoPrepared),
        }
    }

    /// A file is left that no record names.
    pub(super) fn remove_stale_undo(&mut self) {
        self.undo_submit(DiskOp::RemoveUndo);
    }

    /// The history goes on, or is cut, before a copy began: what was prepared is not the present any more.
    pub(super) fn abandon_undo(&mut self) {
        if matches!(self.undo.phase, Phase::Preparing(_) | Phase::Ready(_)) {
            self.undo.phase = Phase::Off;
            self.undo.generation += 1;
            self.undo.asked = false;
            self.undo_submit(DiskOp::RemoveUndo);
        }
    }

    /// The copy begins: what was prepared counts from its record on.
    pub(super) fn begin_undo(&mut self) {
        let (point, chain) = (self.frames.sealed(), self.frames.chain());
        self.undo.phase = match std::mem::take(&mut self.undo.phase) {
            Phase::Ready(kept) if (kept.head.point, kept.head.chain) == (point, chain) => {
                let text = format!(
                    "the copy can be undone as long as it is not complete: back to LSN {}",
                    kept.head.point
                );
                self.log_line(Severity::Info, text);
                Phase::InForce(kept)
            }
            // A copy that was cut off is begun again.
            Phase::InForce(mut kept) => {
                kept.waiting.clear();
                Phase::InForce(kept)
            }
            other => other,
        };
        self.abandon_undo();
    }

    /// What is kept is not needed any more, or cannot be kept any longer.
    pub(super) fn retire_undo(&mut self, why: Option<&str>) {
        match std::mem::take(&mut self.undo.phase) {
            Phase::InForce(kept) => {
                if let Some(why) = why {
                    let text = format!(
                        "what this site held before the copy is not kept any longer: {why}. Until the copy ends, \
                         it cannot go back"
                    );
                    self.log_line(Severity::Warn, text);
                }
                self.undo.generation += 1;
                self.undo.phase = Phase::Retiring(kept);
                self.state.request_write();
            }
            other => self.undo.phase = other,
        }
    }

    /// A record is durable that names this undo file.
    pub(super) fn undo_recorded(&mut self, named: Uuid) {
        if !matches!(self.undo.phase, Phase::Retiring(_)) || !named.is_nil() {
            return;
        }
        let Phase::Retiring(kept) = std::mem::take(&mut self.undo.phase) else {
            unreachable!("just seen");
        };
        for (_, _, pending, op) in kept.waiting {
            self.submit(pending, op);
        }
        self.undo.remove = true;
        self.remove_retired();
        if std::mem::take(&mut self.undo.asked) {
            self.event(Event::UndoPrepared);
        }
    }

    /// A write that is under way would make the file again.
    fn remove_retired(&mut self) {
        if self.undo.remove && self.undo.busy == 0 {
            self.undo.remove = false;
            self.undo_submit(DiskOp::RemoveUndo);
        }
    }

    /// A write to a home: submitted once it can be undone, if that is promised.
    pub(super) fn submit_home(
        &mut self,
        pending: Pending,
        volume: VolumeId,
        range: ByteRange,
        op: DiskOp,
    ) {
        #[cfg(test)]
        if sabotaged(Sabotage::WriteBeforeKept) {
            self.submit(pending, op);
            return;
        }
        match &mut self.undo.phase {
            Phase::InForce(kept) if !kept.covers(volume, range) => {
                kept.want(volume, range);
                kept.waiting.push((volume, range, pending, op));
                self.keep_chunks();
            }
            // Until the record says that there is no way back, a crash must find one.
            Phase::Retiring(kept) if !kept.covers(volume, range) => {
                kept.waiting.push((volume, range, pending, op));
            }
            _ => self.submit(pending, op),
        }
    }

    /// A new volume gets the place of one that was there at the point: this site cannot go back any more.
    pub(super) fn free_place_of(&mut self, volume: &VolumeSpec) {
        if matches!(&self.undo.phase, Phase::InForce(kept) if needs_place_of(&kept.head, volume)) {
            let name = &volume.name;
            let why = format!("a new volume {name} takes the place of the one that was here");
            self.retire_undo(Some(&why));
        }
    }

    /// Not before the record says that there is no way back, if it is about to say so.
    pub(super) fn submit_after_retiring(&mut self, pending: Pending, op: DiskOp) {
        match &mut self.undo.phase {
            Phase::Retiring(kept) => {
                let none = ByteRange::new(0, 0);
                kept.waiting.push((VolumeId(0), none, pending, op));
            }
            _ => self.submit(pending, op),
        }
    }

    /// Writes to homes that wait belong to a history that is being replaced.
    pub(super) fn forget_waiting_writes(&mut self) {
        if let Phase::InForce(kept) | Phase::Retiring(kept) = &mut self.undo.phase {
            kept.waiting.clear();
        }
    }

    /// Reads and writes what is to be kept.
    fn keep_chunks(&mut self) {
        loop {
            let Phase::InForce(kept) = &mut self.undo.phase else {
                return;
            };
            if kept.writing.is_none()
                && let Some(batch) = kept.batch.take()
            {
                let data = Bytes::from_owner(batch);
                let offset = kept.end;
                kept.end += data.len() as u64;
                kept.writing = Some((kept.made, std::mem::take(&mut kept.batched)));
                let op = DiskOp::Write {
                    file: File::Undo,
                    offset,
                    data,
                    durable: true,
                };
                self.undo_submit(op);
                continue;
            }
            if kept.reading >= READS || kept.batched.len() + kept.reading >= BATCH {
                return;
            }
            let Some((volume, range)) = kept.wanted.pop_front() else {
                return;
            };
            kept.reading += 1;
            self.undo.busy += 1;
            let generation = self.undo.generation;
            self.submit(
                Pending::UndoRead {
                    generation,
                    volume,
                    range,
                },
                DiskOp::Read {
                    file: File::Home(volume),
                    offset: range.offset,
                    len: range.len,
                    medium: false,
                },
            );
        }
    }

    /// The old content of a chunk.
    pub(super) fn undo_read(
        &mut self,
        generation: u64,
        volume: VolumeId,
        range: ByteRange,
        result: DiskResult,
    ) {
        self.undo.busy -= 1;
        if generation != self.undo.generation {
            self.continue_undo();
            return;
        }
        match (&mut self.undo.phase, result) {
            (Phase::InForce(kept), DiskResult::Data(content)) => {
                kept.reading -= 1;
                let place = UndoPlace {
                    id: kept.head.id,
                    number: kept.made,
                    durable: kept.durable,
                };
                let batch = kept
                    .batch
                    .get_or_insert_with(|| AlignedBuf::with_capacity(BATCH_BYTES));
                UndoEntry::encode(place, volume, range, &content, batch);
                kept.made += 1;
                kept.batched.push((volume, range));
                self.keep_chunks();
            }
            (_, result) => {
                let why = format!("a home cannot be read ({result:?})");
                self.retire_undo(Some(&why));
            }
        }
    }

    /// One of the other requests is done.
    pub(super) fn undo_done(&mut self, generation: u64, result: DiskResult) {
        self.undo.busy -= 1;
        if generation != self.undo.generation {
            self.continue_undo();
            return;
        }
        match &self.undo.phase {
            Phase::InForce(_) => self.undo_entries_written(result),
            Phase::Preparing(_) => self.undo_prepared(result),
            Phase::GoingBack(_) => self.went_a_step(result),
            Phase::Off | Phase::Ready(_) | Phase::Retiring(_) => {
                if let DiskResult::Failed { message, .. } = result {
                    let text = format!("what was kept is in the way: {message}");
                    self.log_line(Severity::Warn, text);
                }
            }
        }
    }

    fn undo_entries_written(&mut self, result: DiskResult) {
        if let DiskResult::Failed { message, .. } = result {
            self.retire_undo(Some(&message));
            return;
        }
        let Phase::InForce(kept) = &mut self.undo.phase else {
            return;
        };
        let (durable, chunks) = kept.writing.take().expect("a write was under way");
        kept.durable = durable;
        for (volume, range) in chunks {
            kept.saved.insert(volume, range);
        }
        let waiting = std::mem::take(&mut kept.waiting);
        let (ready, waiting): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|(volume, range, ..)| kept.covers(*volume, *range));
        kept.waiting = waiting;
        for (_, _, pending, op) in ready {
            self.submit(pending, op);
        }
        self.keep_chunks();
    }

    /// Gives up keeping when the space is needed.
    pub(super) fn watch_undo_space(&mut self) {
        if self.undo.point().is_some() && self.space_credit() < RESERVE {
            self.retire_undo(Some("the space is needed for writes"));
        }
    }

    /// Goes on with what waits for other things to come to rest.
    pub(super) fn continue_undo(&mut self) {
        self.remove_retired();
        match &self.undo.phase {
            Phase::Preparing(Preparing::Settling)
                if self.undo.busy == 0
                    && self.store.settled()
                    && self.receive.idle()
                    && self.frames.durable() == self.frames.sealed() =>
            {
                self.undo.phase = Phase::Preparing(Preparing::Syncing {
                    left: self.volumes.len(),
                });
                for volume in self.volumes.clone() {
                    self.undo_submit(DiskOp::sync(File::Home(volume.id)));
                }
                if self.volumes.is_empty() {
                    self.remove_old_undo();
                }
            }
            Phase::GoingBack(back)
                if !back.began
                    && self.undo.busy == 0
                    && !self.receive.resetting()
                    && self.state.is_written() =>
            {
                self.begin_going_back();
            }
            _ => {}
        }
    }

    fn remove_old_undo(&mut self) {
        self.undo.phase = Phase::Preparing(Preparing::Removing);
        self.undo_submit(DiskOp::RemoveUndo);
    }

    fn undo_prepared(&mut self, result: DiskResult) {
        let Phase::Preparing(step) = &mut self.undo.phase else {
            return;
        };
        match (step, result) {
            (Preparing::Measuring, DiskResult::FreeSpace(bytes)) => {
                let promised = self.store.allocating_bytes() + SPACE_MARGIN;
                if bytes.saturating_sub(promised) < RESERVE {
                    let left = counted_bytes(bytes);
                    let text = format!(
                        "this site does not keep what it holds while it is copied to: {left} are free"
                    );
                    self.cannot_keep(text);
                    return;
                }
                self.undo.phase = Phase::Preparing(Preparing::Settling);
                self.continue_undo();
            }
            // Whether the homes hold what they should is not known any more.
            (Preparing::Syncing { .. }, DiskResult::Failed { message, .. }) => {
                self.event(Event::DiskFailed(message));
            }
            (Preparing::Syncing { left }, _) => {
                *left -= 1;
                if *left == 0 {
                    self.remove_old_undo();
                }
            }
            (Preparing::Removing, DiskResult::Done) => self.clone_homes(),
            (Preparing::Cloning { left, failed }, result) => {
                *failed |= matches!(result, DiskResult::Failed { .. });
                *left -= 1;
                if *left == 0 {
                    let clones = !*failed;
                    self.keep_tail(clones);
                }
            }
            (Preparing::Frames { .. }, DiskResult::Data(data)) => self.tail_read(data),
            (Preparing::Frames { .. }, DiskResult::Done) => self.keep_more_tail(),
            (Preparing::Head(_), DiskResult::Done) => {
                let Phase::Preparing(Preparing::Head(head)) = std::mem::take(&mut self.undo.phase)
                else {
                    unreachable!("just seen");
                };
                let end = head.entries_at();
                let kept = Kept::new(*head, ChunkSet::new(), 0, end);
                self.undo.phase = Phase::Ready(Box::new(kept));
                self.undo.asked = false;
                self.event(Event::UndoPrepared);
            }
            (_, result) => {
                let text = format!(
                    "this site cannot keep what it holds while it is copied to: {}",
                    match result {
                        DiskResult::Failed { message, .. } => message,
                        other => format!("{other:?}"),
                    }
                );
                self.cannot_keep(text);
            }
        }
    }

    /// The copy is made without a way back.
    fn cannot_keep(&mut self, text: String) {
        self.log_line(Severity::Warn, text);
        self.abandon_undo();
        self.event(Event::UndoPrepared);
    }

    fn clone_homes(&mut self) {
        let volumes = self.volumes.clone();
        if volumes.is_empty() {
            self.keep_tail(true);
            return;
        }
        self.undo.phase = Phase::Preparing(Preparing::Cloning {
            left: volumes.len(),
            failed: false,
        });
        for volume in volumes {
            self.undo_submit(DiskOp::CloneHome { volume: volume.id });
        }
    }

    /// What the homes lack of the history follows as frames.
    fn keep_tail(&mut self, clones: bool) {
        let homes = self.store.applied_lsn();
        let head = UndoHead {
            id: self.state.fresh_volume_uuid(),
            clones,
            point: self.frames.sealed(),
            homes,
            time_ns: self.frames.time_ns(),
            chain: self.frames.chain(),
            frames_len: 0,
            record: self.record(),
        };
        let cursor = (homes < head.point)
            .then(|| self.log.cursor(homes.next()))
            .flatten();
        if let Some(cursor) = cursor {
            let head = Box::new(head);
            self.undo.phase = Phase::Preparing(Preparing::Frames { head, cursor });
            self.keep_more_tail();
        } else {
            self.write_undo_head(head);
        }
    }

    fn keep_more_tail(&mut self) {
        let durable = self.frames.durable();
        let Phase::Preparing(Preparing::Frames { cursor, .. }) = &mut self.undo.phase else {
            return;
        };
        if let Next::Read { offset, len } = cursor.next_read(&self.log, durable) {
            self.undo_submit(DiskOp::Read {
                file: File::Journal,
                offset,
                len,
                medium: false,
            });
            return;
        }
        let Phase::Preparing(Preparing::Frames { head, .. }) = std::mem::take(&mut self.undo.phase)
        else {
            unreachable!("just seen");
        };
        self.write_undo_head(*head);
    }

    fn tail_read(&mut self, data: Bytes) {
        let Phase::Preparing(Preparing::Frames { head, cursor }) = &mut self.undo.phase else {
            return;
        };
        let frames = match cursor.feed(data) {
            Ok(frames) => frames,
            Err(error) => {
                let message = format!("the journal cannot be read: {error}");
                let failed = DiskResult::Failed { errno: 5, message };
                self.undo_prepared(failed);
                return;
            }
        };
        let bytes: Vec<u8> = frames.iter().flat_map(|f| f.bytes().to_vec()).collect();
        if bytes.is_empty() {
            self.keep_more_tail();
            return;
        }
        let offset = UndoHead::frames_at() + head.frames_len;
        head.frames_len += bytes.len() as u64;
        self.undo_submit(DiskOp::Write {
            file: File::Undo,
            offset,
            data: bytes.into(),
            durable: true,
        });
    }

    fn write_undo_head(&mut self, head: UndoHead) {
        let data = head.encode();
        self.undo.phase = Phase::Preparing(Preparing::Head(Box::new(head)));
        self.undo_submit(DiskOp::Write {
            file: File::Undo,
            offset: 0,
            data,
            durable: true,
        });
    }
}

/// Going back.
impl Group {
    /// The operator promotes this site in the middle of a copy: undo it.
    pub(super) fn go_back(&mut self) {
        let Phase::InForce(kept) = std::mem::take(&mut self.undo.phase) else {
            let text = "what this site held before the copy is not kept".to_owned();
            self.event(Event::WentBack(Err(text)));
            return;
        };
        let under_way = self.forget_home_requests();
        self.receive.clear(under_way);
        let mut lineage = kept.head.record.lineage.clone();
        lineage.truncate_after(kept.head.point);
        self.undo.phase = Phase::GoingBack(Box::new(GoingBack {
            end: kept.end,
            steps: VecDeque::new(),
            rest: Bytes::new(),
            volumes: kept.head.record.volumes.clone(),
            lineage,
            began: false,
            failed: None,
            head: kept.head,
        }));
        self.undo.generation += 1;
        // Cut off, it leaves a mixture: what the copy had confirmed would not be compared again.
        self.changes.begin_own(ChunkSet::everything());
        self.state.request_write();
        self.continue_undo();
    }

    /// Nothing is under way any more.
    fn begin_going_back(&mut self) {
        let Phase::GoingBack(back) = &mut self.undo.phase else {
            return;
        };
        back.began = true;
        // What the copy brought and was not there at the point is put aside, and what it put aside is taken back.
        let mut brought = std::mem::take(&mut self.parting);
        brought.extend(self.volumes.iter().cloned());
        brought.retain(|now| back.volumes.iter().all(|then| then.uuid != now.uuid));
        let missing = gone(&back.head, &self.volumes).cloned();
        let missing: Vec<VolumeSpec> = missing.collect();
        if !brought.is_empty() || !missing.is_empty() {
            let volumes = brought;
            back.steps.push_back(Step::Do(DiskOp::PutAside { volumes }));
        }
        for volume in missing {
            back.steps.push_back(Step::Do(DiskOp::TakeBack { volume }));
        }
        // What a volume grew by reads as zeroes, as if it had never been.
        for now in &self.volumes {
            let then = back.volumes.iter().find(|v| v.uuid == now.uuid);
            if let Some(size) = then.map(|v| v.size).filter(|size| *size < now.size) {
                back.steps.push_back(Step::Do(DiskOp::Zero {
                    file: File::Home(now.id),
                    range: ByteRange::new(size, now.size - size),
                    keep: false,
                }));
            }
        }
        if back.head.clones {
            let restore = |v: &VolumeSpec| Step::Do(DiskOp::RestoreHome { volume: v.id });
            back.steps.extend(back.volumes.iter().map(restore));
        } else {
            let at = back.head.entries_at();
            back.steps.push_back(Step::Entry { number: 0, at });
        }
        if back.head.frames_len > 0 {
            let at = UndoHead::frames_at();
            back.steps.push_back(Step::Frames { at });
        }
        back.steps.push_back(Step::Sync);
        self.go_a_step();
    }

    fn go_a_step(&mut self) {
        let Phase::GoingBack(back) = &mut self.undo.phase else {
            return;
        };
        let read = |at: u64, most: u64, end: u64| DiskOp::Read {
            file: File::Undo,
            offset: at,
            len: most.min(end - at),
            medium: false,
        };
        let op = match back.steps.front() {
            None => {
                match back.failed.take() {
                    None => self.gone_back(),
                    Some(why) => self.stays_in_copy(&why),
                }
                return;
            }
            Some(Step::Do(op)) => op.clone(),
            Some(Step::Entry { at, .. }) if *at >= back.end => {
                back.steps.pop_front();
                self.go_a_step();
                return;
            }
            Some(Step::Entry { at, .. }) => read(*at, UNDO_ENTRY_BYTES, back.end),
            Some(Step::Frames { at }) if *at >= back.head.entries_at() => {
                back.steps.pop_front();
                self.go_a_step();
                return;
            }
            Some(Step::Frames { at }) => read(*at, 4 << 20, back.head.entries_at()),
            Some(Step::Sync) => {
                back.steps.pop_front();
                for volume in back.volumes.iter().rev() {
                    let file = File::Home(volume.id);
                    back.steps.push_front(Step::Do(DiskOp::sync(file)));
                }
                self.go_a_step();
                return;
            }
        };
        self.undo_submit(op);
    }

    fn went_a_step(&mut self, result: DiskResult) {
        let Phase::GoingBack(back) = &mut self.undo.phase else {
            return;
        };
        let step = back.steps.pop_front().expect("one was under way");
        match (step, result) {
            (Step::Do(_), DiskResult::Done) => self.go_a_step(),
            (Step::Entry { number, at }, DiskResult::Data(data)) => {
                match UndoEntry::decode(back.head.id, number, &data) {
                    UndoRead::Entry(entry, len) => {
                        let next = Step::Entry {
                            number: number + 1,
                            at: at + len,
                        };
                        back.steps.push_front(next);
                        let file = File::Home(entry.volume);
                        back.steps.push_front(Step::Do(match entry.content {
                            Some(data) => DiskOp::Write {
                                file,
                                offset: entry.range.offset,
                                data,
                                durable: false,
                            },
                            None => DiskOp::Zero {
                                file,
                                range: entry.range,
                                keep: false,
                            },
                        }));
                        self.go_a_step();
                    }
                    UndoRead::Broken | UndoRead::Nothing => self.cannot_go_back(&format!(
                        "entry {number} of the undo file, at byte {at}, is damaged"
                    )),
                }
            }
            (Step::Frames { at }, DiskResult::Data(data)) => {
                let next = at + data.len() as u64;
                let data = if back.rest.is_empty() {
                    data
                } else {
                    [&back.rest[..], &data[..]].concat().into()
                };
                back.rest = data;
                match back.steps_of_frames() {
                    Ok(steps) => {
                        back.steps.push_front(Step::Frames { at: next });
                        for step in steps.into_iter().rev() {
                            back.steps.push_front(Step::Do(step));
                        }
                        self.go_a_step();
                    }
                    Err(why) => self.cannot_go_back(&why),
                }
            }
            (
                Step::Do(DiskOp::RestoreHome { .. } | DiskOp::TakeBack { .. }),
                DiskResult::Failed { message, .. },
            ) if back.failed.is_none() => self.cannot_go_back(&message),
            (Step::Entry { .. } | Step::Frames { .. }, DiskResult::Failed { message, .. }) => {
                self.cannot_go_back(&message);
            }
            (_, DiskResult::Failed { message, .. }) => self.event(Event::DiskFailed(message)),
            (_, other) => {
                let text = format!("the driver answered a step back with {other:?}");
                self.event(Event::DiskFailed(text));
            }
        }
    }

    /// What was kept turned out to be damaged. The volumes are those of the copy again, with the homes that they had.
    fn cannot_go_back(&mut self, why: &str) {
        let Phase::GoingBack(back) = &mut self.undo.phase else {
            return;
        };
        let here =
            |volume: &VolumeSpec, all: &[VolumeSpec]| all.iter().any(|v| v.uuid == volume.uuid);
        let mut parting = back.volumes.clone();
        parting.retain(|then| !here(then, &self.volumes));
        let brought = self.volumes.iter();
        let brought = brought.filter(|now| !here(now, &back.head.record.volumes));
        back.steps.clear();
        if !parting.is_empty() {
            let volumes = parting;
            back.steps.push_back(Step::Do(DiskOp::PutAside { volumes }));
        }
        for volume in brought.cloned() {
            back.steps.push_back(Step::Do(DiskOp::TakeBack { volume }));
        }
        back.failed = Some(why.to_owned());
        self.go_a_step();
    }

    /// It counts no more, so that the operator can still take what there is.
    fn stays_in_copy(&mut self, why: &str) {
        let Phase::GoingBack(back) = std::mem::take(&mut self.undo.phase) else {
            return;
        };
        let end = back.head.entries_at();
        self.undo.phase = Phase::InForce(Box::new(Kept::new(back.head, ChunkSet::new(), 0, end)));
        self.retire_undo(Some(why));
        let text = format!(
            "it cannot go back to before the copy: {why}. `--force inconsistent` once more promotes the mix of old and new \
             content that is there"
        );
        self.event(Event::WentBack(Err(text)));
    }

    /// The homes hold what they held before the copy, durably.
    fn gone_back(&mut self) {
        let Phase::GoingBack(back) = std::mem::take(&mut self.undo.phase) else {
            return;
        };
        let (point, chain) = (back.head.point, back.head.chain);
        // Frames of the copy's history that became durable meanwhile have allowed LSNs which now get another meaning.
        self.receive.clear(0);
        self.volumes.clone_from(&back.volumes);
        self.state.creating.clear();
        self.changes.restart(point);
        self.changes.forget_own();
        for peer in self.config.peers.clone() {
            self.changes.forget(&peer);
            self.changes.put(&peer, point, &ChunkSet::everything());
        }
        self.reset_frames(point, chain, back.head.time_ns);
        self.log.unreadable_before(point.next());
        self.state.checkpoint = self.log.position(point);
        self.homes.forget(point);
        let record = &back.head.record;
        let gone = WentBack {
            tail: point,
            lineage: back.lineage.clone(),
            facts: super::state::facts_of(record),
        };
        // The record of the promotion forgets the file.
        self.undo.phase = Phase::Retiring(Box::new(Kept::new(
            back.head.clone(),
            ChunkSet::everything(),
            0,
            0,
        )));
        self.event(Event::WentBack(Ok(Box::new(gone))));
    }
}

impl GoingBack {
    /// What the complete frames among the bytes at hand do to the homes.
    fn steps_of_frames(&mut self) -> Result<Vec<DiskOp>, String> {
        let mut steps = Vec::new();
        while let Ok(len) = Frame::peek_len(&self.rest)
            && self.rest.len() >= len
        {
            let bytes = self.rest.split_to(len);
            let bad =
                |e: &dyn std::fmt::Display| format!("a frame of the undo file is damaged: {e}");
            let frame = Frame::parse(bytes).map_err(|e| bad(&e))?;
            frame.verify_payloads().map_err(|e| bad(&e))?;
            for (lsn, op, payload) in frame.ops() {
                if lsn <= self.head.homes || lsn > self.head.point {
                    continue;
                }
                let content = payload.content().map_err(|e| bad(&e))?;
                let file = File::Home(op.volume);
                let zero = |range, keep| DiskOp::Zero { file, range, keep };
                match op.kind {
                    OpKind::Write => steps.push(DiskOp::Write {
                        file,
                        offset: op.range.offset,
                        data: content,
                        durable: false,
                    }),
                    OpKind::WriteZeroes { no_hole } => steps.push(zero(op.range, no_hole)),
                    OpKind::Trim => steps.push(zero(op.range, false)),
                    OpKind::OpenEpoch => {
                        let epoch = journal::decode_epoch(&content).map_err(|e| bad(&e))?;
                        if !self.lineage.contains(epoch.id) {
                            self.lineage.truncate_after(lsn.prev());
                            self.lineage.push(epoch)?;
                        }
                    }
                    OpKind::CreateVolume => {
                        let volume = journal::decode_volume(&content).map_err(|e| bad(&e))?;
                        self.volumes.retain(|v| v.id != volume.id);
                        self.volumes.push(volume.clone());
                        let all = ByteRange::new(0, volume.size);
                        steps.push(DiskOp::CreateHome {
                            volume,
                            lengthen: false,
                        });
                        steps.push(zero(all, false));
                    }
                    OpKind::ResizeVolume => {
                        let volume = journal::decode_volume(&content).map_err(|e| bad(&e))?;
                        self.volumes.retain(|v| v.id != volume.id);
                        self.volumes.push(volume.clone());
                        self.volumes.sort_by_key(|v| v.id);
                        steps.push(DiskOp::GrowHome {
                            volume,
                            only_check: false,
                        });
                    }
                }
            }
        }
        Ok(steps)
    }
}

/// An undo file that is in force at the start.
pub(super) struct FoundUndo {
    head: UndoHead,
    gone: BTreeSet<VolumeId>,
    saved: ChunkSet,
    entries: u64,
    end: u64,
}

impl FoundUndo {
    /// Looks at the undo file that the record names.
    ///
    /// # Errors
    /// If the disk fails. Damage is no error: the second `Err` says why there is no way back.
    pub fn load(
        id: Uuid,
        volumes: &[VolumeSpec],
        disk: &mut dyn Disk,
    ) -> Result<Result<FoundUndo, String>, OpenError> {
        let Some(len) = disk.len(File::Undo)? else {
            return Ok(Err("the undo file is missing".into()));
        };
        if len < UNDO_HEAD_BYTES {
            return Ok(Err(format!("the undo file has only {len} bytes")));
        }
        let mut bytes = vec![0; UNDO_HEAD_BYTES as usize];
        disk.read(File::Undo, 0, &mut bytes)?;
        let head = match UndoHead::decode(&bytes) {
            Ok(head) if head.id == id => head,
            Ok(head) => return Ok(Err(format!("the undo file is {}, not {id}", head.id))),
            Err(why) => return Ok(Err(format!("the undo file is damaged: {why}"))),
        };
        for volume in head.record.volumes.iter().filter(|_| head.clones) {
            if !disk.has_clone(volume)? {
                return Ok(Err(format!("the clone of {} is missing", volume.name)));
            }
        }
        let mut found = FoundUndo {
            end: head.entries_at(),
            gone: gone(&head, volumes).map(|v| v.id).collect(),
            head,
            saved: ChunkSet::new(),
            entries: 0,
        };
        Ok(found.scan(len, disk)?.map(|()| found))
    }

    /// Volumes that going back brings into being, and that are not among these.
    pub fn volumes_gone(
        &self,
        volumes: &[VolumeSpec],
        disk: &mut dyn Disk,
    ) -> Result<Vec<VolumeSpec>, OpenError> {
        let mut rest = Bytes::new();
        if disk.len(File::Undo)?.unwrap_or(0) >= self.head.entries_at() {
            let mut frames = vec![0; self.head.frames_len as usize];
            disk.read(File::Undo, UndoHead::frames_at(), &mut frames)?;
            rest = frames.into();
        }
        let mut all: Vec<VolumeSpec> = gone(&self.head, volumes).cloned().collect();
        while let Ok(len) = Frame::peek_len(&rest)
            && rest.len() >= len
        {
            // Damage is found, and told, by who goes back.
            let Ok(frame) = Frame::parse(rest.split_to(len)) else {
                break;
            };
            for (_, op, payload) in frame.ops() {
                if op.kind == OpKind::CreateVolume
                    && let Ok(content) = payload.content()
                    && let Ok(volume) = journal::decode_volume(&content)
                    && volumes.iter().all(|now| now.uuid != volume.uuid)
                {
                    all.push(volume);
                }
            }
        }
        Ok(all)
    }

    /// Whether another volume of this name was there at the point.
    pub fn needs_place_of(&self, volume: &VolumeSpec) -> bool {
        needs_place_of(&self.head, volume)
    }

    /// Follows the entries. What a later one calls durable need not be read; of the others only those count that are whole.
    fn scan(&mut self, len: u64, disk: &mut dyn Disk) -> Result<Result<(), String>, OpenError> {
        let mut block = vec![0; BLOCK];
        let mut doubtful = VecDeque::new();
        let (mut number, mut at) = (0, self.end);
        while at + BLOCK as u64 <= len {
            disk.read(File::Undo, at, &mut block)?;
            let Some((volume, range, bytes, durable)) =
                UndoEntry::peek(self.head.id, number, &block)
            else {
                break;
            };
            doubtful.push_back((number, at, bytes, volume, range));
            while let Some((_, at, bytes, volume, range)) =
                doubtful.pop_front_if(|(number, ..)| *number < durable)
            {
                self.take(at + bytes, volume, range);
            }
            (number, at) = (number + 1, at + bytes);
        }
        for (number, at, bytes, volume, range) in doubtful {
            let mut entry = vec![0; bytes.min(len - at) as usize];
            disk.read(File::Undo, at, &mut entry)?;
            if !matches!(
                UndoEntry::decode(self.head.id, number, &entry.into()),
                UndoRead::Entry(..)
            ) {
                break;
            }
            self.take(at + bytes, volume, range);
        }
        let mut at = self.end;
        while at + BLOCK as u64 <= len {
            disk.read(File::Undo, at, &mut block)?;
            if UndoEntry::vouches_for(self.head.id, self.entries, &block) {
                let text = format!("the undo file is damaged at byte {}", self.end);
                return Ok(Err(text));
            }
            at += BLOCK as u64;
        }
        Ok(Ok(()))
    }

    fn take(&mut self, end: u64, volume: VolumeId, range: ByteRange) {
        self.saved.insert(volume, range);
        self.entries += 1;
        self.end = end;
    }

    /// Before replay writes to a home: keeps what is there.
    pub fn keep(
        &mut self,
        volume: VolumeId,
        range: ByteRange,
        disk: &mut dyn Disk,
    ) -> Result<(), OpenError> {
        if self.head.clones {
            return Ok(());
        }
        for chunk in chunks_of(&self.head, &self.gone, volume, range) {
            if self.saved.holds(volume, chunk.offset) {
                continue;
            }
            let mut content = vec![0; chunk.len as usize];
            disk.read(File::Home(volume), chunk.offset, &mut content)?;
            let place = UndoPlace {
                id: self.head.id,
                number: self.entries,
                durable: self.entries,
            };
            let mut out = AlignedBuf::with_capacity(UNDO_ENTRY_BYTES as usize);
            UndoEntry::encode(place, volume, chunk, &content, &mut out);
            disk.write(File::Undo, self.end, &out, true)?;
            self.saved.insert(volume, chunk);
            self.entries += 1;
            self.end += out.len() as u64;
        }
        Ok(())
    }
}
