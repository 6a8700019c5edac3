//! Frames: the open one fills while others are being written; when the journal can take one more, it closes.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::stats::Stage;
use super::streams::Stream;
use super::{DiskOp, File, Group, Pending};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{AlignedBuf, ByteRange, Compress, Epoch, Lsn, Op, OpKind, VolumeId};
use crate::core::Event;
use crate::journal::{self, Compressor, Encoding, Frame, FrameBuilder};
use crate::store::Content;

/// Writes to the journal under way at once. More would not be faster: the device is kept busy by two, and each
/// holds back the frame that fills behind it.
const IN_FLIGHT: usize = 2;

/// A frame takes no more once it holds this many payload bytes.
const FULL_BYTES: usize = 1 << 20;

/// Frames that wait go to the journal together, up to so many bytes. At a mirror they wait whenever its journal is slower than the
/// link: then each write would take as long as one of a hundred times the size.
const TOGETHER_BYTES: usize = 1 << 20;

/// Frames kept in memory for mirrors that they were not sent to yet, in bytes. Older ones are read back from the journal.
const CACHE_BYTES: u64 = 8 << 20;

/// Frames on their way.
pub(super) struct Frames {
    /// The open frame.
    open: Option<Open>,
    /// Closed, waiting for a write slot or space, oldest first. Control frames may use the reserve.
    closed: VecDeque<Frame>,
    /// Handed to the journal, oldest first.
    writing: VecDeque<Writing>,
    /// Writes of frames that were truncated meanwhile: their place is not written again before they are done.
    stale: usize,
    /// Handed to the journal, newest last.
    cache: VecDeque<Frame>,
    cache_bytes: u64,
    compressor: Compressor,
    /// Payload of the last frame, as a guess at the next.
    last_payload: usize,
    chain: u32,
    sealed: Lsn,
    durable: Lsn,
    time_ns: u64,
    /// The journal had no room for the open frame.
    pub full: bool,
}

/// A write to the journal, of one frame or several.
struct Writing {
    /// First and last LSN in it.
    begin: Lsn,
    end: Lsn,
    /// Last LSN in it that counts: what follows was truncated meanwhile.
    last: Lsn,
    done: bool,
}

impl Writing {
    /// Its place is not written again before it is done.
    fn is_in_the_way(&self) -> bool {
        self.last < self.end && !self.done
    }
}

struct Open {
    builder: FrameBuilder,
    first: Lsn,
    count: u64,
    /// Contents that the frame holds compressed, as they were.
    raw: Vec<(Lsn, Content)>,
}

impl Frames {
    pub fn new(sealed: Lsn, chain: u32, time_ns: u64) -> Frames {
        Frames {
            open: None,
            closed: VecDeque::new(),
            writing: VecDeque::new(),
            stale: 0,
            cache: VecDeque::new(),
            cache_bytes: 0,
            compressor: Compressor::default(),
            last_payload: 0,
            chain,
            sealed,
            durable: sealed,
            time_ns,
            full: false,
        }
    }

    /// Checksum of the last closed frame.
    pub fn chain(&self) -> u32 {
        self.chain
    }

    /// Last LSN in a closed frame.
    pub fn sealed(&self) -> Lsn {
        self.sealed
    }

    /// The frame clock: never goes back, also not under another primary.
    pub fn time_after(&self, wall_ns: u64) -> u64 {
        #[cfg(test)]
        if sabotaged(Sabotage::TurnBackFrameClock) {
            return wall_ns;
        }
        wall_ns.max(self.time_ns.saturating_add(1))
    }

    /// When the newest frame was closed, by the frame clock.
    pub fn time_ns(&self) -> u64 {
        self.time_ns
    }

    /// Last LSN on stable storage.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Closes and starts over after `base`: what is being written is forgotten.
    fn restart(&mut self, base: Lsn, chain: u32) {
        self.stale += self.writing.iter().filter(|w| !w.done).count();
        let stale = self.stale;
        *self = Frames {
            stale,
            ..Frames::new(base, chain, self.time_ns)
        };
    }

    /// Whether nothing is open, closed or being written.
    pub fn idle(&self) -> bool {
        self.open.is_none() && self.closed.is_empty() && self.writing.is_empty() && self.stale == 0
    }

    /// The cached frame that begins at or contains `lsn`.
    pub fn cached(&self, lsn: Lsn) -> Option<&Frame> {
        let at = self.cache.partition_point(|f| f.last_lsn() < lsn);
        self.cache.get(at).filter(|f| f.first_lsn() <= lsn)
    }

    /// Bytes of frames that are kept for mirrors.
    #[cfg(test)]
    pub fn cached_bytes(&self) -> u64 {
        self.cache_bytes
    }

    /// Drops what is on stable storage and was sent to whoever follows; `unsent` is the first that was not.
    fn trim_cache(&mut self, unsent: Lsn) {
        while let Some(frame) = self.cache.front() {
            let needed = frame.last_lsn() >= unsent && self.cache_bytes <= CACHE_BYTES;
            if needed || frame.last_lsn() > self.durable {
                break;
            }
            self.cache_bytes -= frame.len() as u64;
            self.cache.pop_front();
        }
    }
}

impl Group {
    /// Whether an operation with this much payload can enter the open frame now.
    pub(super) fn frame_has_room(&self, payload: usize) -> bool {
        match &self.frames.open {
            None => self.frames.closed.is_empty(),
            Some(open) => open.builder.payload_len() < FULL_BYTES && open.builder.fits(payload),
        }
    }

    /// Enters an operation with its LSN into the open frame and the overlay.
    pub(super) fn enter(&mut self, lsn: Lsn, op: &Op, payload: &Bytes) {
        if self.frames.open.is_none() {
            let epoch = self
                .core
                .lineage()
                .last()
                .expect("an operation without an epoch")
                .id;
            let group = self.core.facts().group_id;
            let builder = FrameBuilder::new(group, epoch, lsn, self.frames.last_payload);
            self.frames.open = Some(Open {
                builder,
                first: lsn,
                count: 0,
                raw: Vec::new(),
            });
        }
        let open = self.frames.open.as_mut().expect("just opened");
        debug_assert_eq!(
            open.first.plus(open.count),
            lsn,
            "operations enter in LSN order"
        );
        let compress = if op.kind == OpKind::Write {
            self.config.compress
        } else {
            Compress::Off
        };
        match self.frames.compressor.compress(compress, payload) {
            Some(small) => {
                open.builder.push(op, &small, Encoding::Lz4);
                open.raw.push((lsn, Content::Data(payload.clone())));
            }
            None => open.builder.push(op, payload, Encoding::Raw),
        }
        open.count += 1;
        self.store.admit(lsn, op);
        self.note_touched(op);
    }

    /// Appends the operation that opens an epoch, in a frame of its own, after all that was admitted before.
    pub(super) fn open_epoch(&mut self, epoch: &Epoch) {
        self.close_open_frame();
        let op = Op {
            kind: OpKind::OpenEpoch,
            volume: VolumeId(0),
            range: ByteRange::new(0, 0),
            fua: false,
        };
        let mut builder =
            FrameBuilder::new(self.core.facts().group_id, epoch.id, epoch.first_lsn, 0);
        builder.push(&op, &journal::encode_epoch(epoch), Encoding::Raw);
        self.store.admit(epoch.first_lsn, &op);
        self.frames.open = Some(Open {
            builder,
            first: epoch.first_lsn,
            count: 1,
            raw: Vec::new(),
        });
        self.close_open_frame();
        self.write_closed_frames(true);
    }

    /// Closes and writes what the journal can take now.
    pub(super) fn close_frames(&mut self) {
        self.write_closed_frames(false);
        if !self.frames.closed.is_empty() || self.frames.writing.len() >= IN_FLIGHT {
            return;
        }
        let Some(open) = &self.frames.open else {
            self.frames.full = false;
            return;
        };
        self.frames.full = !self.log.can_append(open.builder.frame_len(), false);
        if !self.frames.full {
            self.close_open_frame();
            self.write_closed_frames(false);
        }
    }

    /// Gives the open frame its header. From here on its bytes do not change.
    fn close_open_frame(&mut self) {
        let Some(open) = self.frames.open.take() else {
            return;
        };
        let time_ns = self.frames.time_after(self.now.wall_ns);
        self.frames.last_payload = open.builder.payload_len();
        let frame = open
            .builder
            .seal(self.frames.chain, self.core.commit(), time_ns);
        self.core.frame_tells_commit();
        self.note_closed(&frame);
        let mut raw = open.raw.into_iter().peekable();
        for (lsn, op, payload) in frame.ops() {
            let content = match raw.next_if(|(l, _)| *l == lsn) {
                Some((_, content)) => content,
                None => Content::of(&op, payload.raw()),
            };
            self.store.attach(lsn, content);
        }
        self.frames.closed.push_back(frame);
    }

    fn note_closed(&mut self, frame: &Frame) {
        self.frames.chain = frame.checksum();
        self.frames.sealed = frame.last_lsn();
        self.frames.time_ns = frame.time_ns().max(self.frames.time_ns);
        self.marks
            .push(frame.last_lsn().0, frame.len() as u64, frame.time_ns());
        self.changes.note(frame);
    }

    /// A frame of the primary, checked and next in order: into the overlay and on its way to the journal.
    pub(super) fn take_frame(&mut self, frame: Frame, contents: Vec<(Lsn, Op, Content)>) {
        self.abandon_undo();
        self.note_closed(&frame);
        for (lsn, op, content) in contents {
            self.store.admit(lsn, &op);
            self.store.attach(lsn, content);
        }
        self.frames.closed.push_back(frame);
        self.write_closed_frames(false);
    }

    /// Hands closed frames to the journal, oldest first, as slots and space allow.
    pub(super) fn write_closed_frames(&mut self, control: bool) {
        while let Some(frame) = self.frames.closed.front() {
            let mut writing = self.frames.writing.iter();
            if self.frames.stale > 0 || writing.any(Writing::is_in_the_way) {
                return;
            }
            // What must go out before an epoch can be opened may use what is held back for that.
            let control = control || frame.opens_epoch();
            if !control && (self.frames.writing.len() >= IN_FLIGHT || self.homes_lag()) {
                return;
            }
            if !self.log.can_append(frame.len(), control) {
                self.frames.full = true;
                return;
            }
            let begin = frame.first_lsn();
            let (offset, data) = self.append_together();
            let last = self.log.tail();
            self.frames.writing.push_back(Writing {
                begin,
                end: last,
                last,
                done: false,
            });
            self.stats.totals.journal_bytes += data.len() as u64;
            let op = DiskOp::Write {
                file: File::Journal,
                offset,
                data,
                durable: true,
            };
            #[cfg(test)]
            let op = super::tests::without_dsync(op, Sabotage::NoDsync);
            self.submit(
                Pending::JournalWrite {
                    last,
                    since: self.now.mono,
                },
                op,
            );
        }
    }

    /// Gives the oldest closed frame its place in the journal, and those that wait behind it and follow it there. Returns where
    /// they begin, and their bytes.
    fn append_together(&mut self) -> (u64, Bytes) {
        self.log.set_group(self.core.facts().group_id);
        let mut writes: SmallVec<[journal::Write; 1]> = SmallVec::new();
        let mut bytes = 0;
        while let Some(frame) = self.frames.closed.pop_front() {
            let write = self.log.append(&frame);
            bytes += write.bytes.len();
            writes.push(write);
            self.frames.cache_bytes += frame.len() as u64;
            self.frames.cache.push_back(frame);
            self.stats.totals.frames += 1;
            let next = self.frames.closed.front().map(Frame::len);
            if !next.is_some_and(|len| bytes + len <= TOGETHER_BYTES && self.log.continues(len)) {
                break;
            }
        }
        let offset = writes[0].offset;
        if writes.len() == 1 {
            return (offset, writes.remove(0).bytes);
        }
        let mut together = AlignedBuf::with_capacity(bytes);
        for write in writes {
            together.extend_from_slice(&write.bytes);
        }
        (offset, Bytes::from_owner(together))
    }

    /// Frames are on stable storage. They count in order.
    pub(super) fn frame_written(&mut self, last: Lsn, since: Duration) {
        self.stats
            .record(Stage::Journal, self.now.mono.saturating_sub(since));
        let found = self
            .frames
            .writing
            .iter_mut()
            .find(|w| w.end == last && !w.done);
        let Some(entry) = found else {
            self.frames.stale -= 1;
            self.write_closed_frames(false);
            return;
        };
        entry.done = true;
        let mut durable = None;
        while let Some(written) = self.frames.writing.pop_front_if(|w| w.done) {
            durable = Some(written.last);
        }
        if let Some(lsn) = durable {
            self.frames.durable = lsn;
            let next = self.streams.values().map(Stream::next).min();
            self.frames
                .trim_cache(next.unwrap_or(self.frames.sealed.next()));
            self.event(Event::Durable(lsn));
        }
    }

    /// A full copy begins: the history starts over after `base`, whose frame closed at `time_ns` or before.
    pub(super) fn reset_frames(&mut self, base: Lsn, chain: u32, time_ns: u64) {
        self.frames.restart(base, chain);
        self.frames.time_ns = self.frames.time_ns.max(time_ns);
        self.log.reset(self.core.facts().group_id, base, chain);
        self.store = crate::store::Store::new(base);
        self.marks = super::stats::Marks::default();
    }

    /// Closes the open frame in the middle of a request that is larger than a frame. It waits in the queue.
    pub(super) fn seal_for_more(&mut self) {
        self.close_open_frame();
        self.write_closed_frames(false);
    }

    /// Forgets the tail after `lsn`: a mirror whose primary went on without it.
    pub(super) fn truncate_after(&mut self, lsn: Lsn) {
        debug_assert!(self.frames.open.is_none(), "only mirrors truncate");
        self.abandon_undo();
        // What this process entered may be among it, and is to be entered again.
        self.state.creating.clear();
        let frames = &mut self.frames;
        frames.closed.retain(|f| f.last_lsn() <= lsn);
        frames.stale += frames
            .writing
            .iter()
            .filter(|w| w.begin > lsn && !w.done)
            .count();
        frames.writing.retain(|w| w.begin <= lsn);
        for writing in &mut frames.writing {
            writing.last = writing.last.min(lsn);
        }
        while frames.cache.back().is_some_and(|f| f.last_lsn() > lsn) {
            let frame = frames.cache.pop_back().expect("just seen");
            frames.cache_bytes -= frame.len() as u64;
        }
        self.store.truncate_after(lsn);
        self.changes.truncate_after(lsn);
        self.log.truncate_after(lsn);
        self.frames.sealed = lsn;
        self.frames.durable = self.frames.durable.min(lsn);
        self.frames.chain = self.log.chain();
    }

    /// As if nothing were on record about which chunks a peer lacks.
    #[cfg(test)]
    pub(super) fn forget_changes(&mut self) {
        self.changes.clear();
    }

    /// Where the frame with this LSN lies in the journal's file.
    #[cfg(test)]
    pub(super) fn journal_place(&self, lsn: Lsn) -> u64 {
        let mut cursor = self.log.cursor(lsn).expect("in the journal");
        match cursor.next_read(&self.log, self.frames.durable()) {
            journal::Next::Read { offset, .. } => offset,
            other => panic!("{other:?}"),
        }
    }
}
