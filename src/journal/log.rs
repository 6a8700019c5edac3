//! Where frames lie: appending, releasing, and finding them again.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::frame::{Frame, FrameError, MAX_FRAME};
use crate::base::{AlignedBuf, BLOCK, Lsn, round_up};

const MAGIC: [u8; 8] = *b"DBLRSEG1";
const VERSION: u16 = 1;

/// Smallest and largest segment, bytes.
const SEGMENT_SMALLEST: u64 = 4 << 20;
const SEGMENT_LARGEST: u64 = 64 << 20;

/// Segments that only frames which open an epoch, and what must go out before them, may enter.
const RESERVE: usize = 1;

/// Bytes of the newest frames whose places are all known; older ones are found from the nearest known one.
const EXACT_BYTES: u64 = 128 << 20;

/// Distance of known places among older frames, bytes.
const SPARSE_BYTES: u32 = 64 << 10;

/// Bytes read at once for a mirror that catches up.
const READ_BYTES: u32 = 1 << 20;

const _: () = assert!(MAX_FRAME as u64 <= SEGMENT_SMALLEST);

/// Size of the segments of a journal of this size, bytes.
pub fn segment_bytes(capacity: u64) -> u64 {
    let wanted = (capacity / 32).clamp(SEGMENT_SMALLEST + BLOCK as u64, SEGMENT_LARGEST);
    round_up(wanted as usize, BLOCK) as u64
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub(super) struct SegmentHeader {
    magic: [u8; 8],
    version: U16,
    reserved: U16,
    incompat: U32,
    group: [u8; 16],
    sequence: U64,
    first_lsn: U64,
    prev: U32,
    crc: U32,
}

const _: () = assert!(size_of::<SegmentHeader>() == 56);

impl SegmentHeader {
    fn new(group: Uuid, sequence: u64, first_lsn: Lsn, prev: u32) -> SegmentHeader {
        let mut header = SegmentHeader::new_zeroed();
        header.magic = MAGIC;
        header.version = U16::new(VERSION);
        header.group = group.into_bytes();
        header.sequence = U64::new(sequence);
        header.first_lsn = U64::new(first_lsn.0);
        header.prev = U32::new(prev);
        header.crc = U32::new(crc32fast::hash(header.as_bytes()));
        header
    }

    /// The header of a segment of this group, if these bytes begin with a valid one.
    pub fn parse(block: &[u8], group: Uuid) -> Option<SegmentHeader> {
        let (header, _) = SegmentHeader::read_from_prefix(block).ok()?;
        let mut plain = header;
        plain.crc = U32::ZERO;
        let valid = header.magic == MAGIC
            && header.version.get() == VERSION
            && header.incompat.get() == 0
            && header.group == group.into_bytes()
            && header.crc.get() == crc32fast::hash(plain.as_bytes());
        valid.then_some(header)
    }

    pub fn sequence(&self) -> u64 {
        self.sequence.get()
    }

    pub fn first_lsn(&self) -> Lsn {
        Lsn(self.first_lsn.get())
    }

    pub fn prev(&self) -> u32 {
        self.prev.get()
    }
}

/// A place in the journal, as a checkpoint records it: recovery begins with the frame there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// The checkpoint: everything up to here is in the homes. May lie within the frame at this place.
    pub lsn: Lsn,
    /// LSN of the first operation of the frame at this place.
    pub next: Lsn,
    /// Sequence number of the segment.
    pub segment: u64,
    /// Offset in the segment, bytes; the frame may turn out to be the first of the next segment.
    pub offset: u32,
    /// Checksum of the frame before.
    pub chain: u32,
}

/// One write to the journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// Where, bytes from the start of the file.
    pub offset: u64,
    /// What: aligned in memory.
    pub bytes: Bytes,
}

/// A frame whose place is known.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: Lsn,
    offset: u32,
    prev: u32,
}

#[derive(Debug)]
struct Segment {
    sequence: u64,
    /// Frames in order; never empty. The older the sparser.
    places: Vec<Place>,
    last: Lsn,
    /// End of the last frame, offset in the segment.
    end: u32,
}

impl Segment {
    fn first(&self) -> Lsn {
        self.places[0].first
    }

    fn thin(&mut self) {
        let mut kept = 0;
        let mut first = true;
        self.places.retain(|p| {
            let keep = first || p.offset - kept >= SPARSE_BYTES;
            if keep {
                (kept, first) = (p.offset, false);
            }
            keep
        });
        self.places.shrink_to_fit();
    }
}

/// The planner of a journal. It says what to write where; somebody else writes it.
#[derive(Debug)]
pub struct Log {
    group: Uuid,
    capacity: u64,
    segment_bytes: u64,
    /// Oldest first, sequence numbers without gaps.
    segments: VecDeque<Segment>,
    next_sequence: u64,
    /// What is before this LSN is released.
    keep_from: Lsn,
    /// What is before this LSN is damaged in parts: nobody is streamed to from there.
    readable_from: Lsn,
    tail: Lsn,
    chain: u32,
}

impl Log {
    /// An empty journal of this size in bytes.
    pub fn new(capacity: u64, group: Uuid) -> Log {
        Log::at(capacity, group, Lsn::ZERO, 0, 1)
    }

    /// An empty journal whose next frame follows `tail` with checksum `chain`.
    pub(super) fn at(capacity: u64, group: Uuid, tail: Lsn, chain: u32, next_sequence: u64) -> Log {
        Log {
            group,
            capacity,
            segment_bytes: segment_bytes(capacity),
            segments: VecDeque::new(),
            next_sequence,
            keep_from: tail.next(),
            readable_from: Lsn::ZERO,
            tail,
            chain,
        }
    }

    /// Forgets everything; the next frame follows `tail` with checksum `chain`. Old segments cannot be mistaken for new
    /// ones: sequence numbers go on rising.
    pub fn reset(&mut self, group: Uuid, tail: Lsn, chain: u32) {
        *self = Log::at(self.capacity, group, tail, chain, self.next_sequence);
    }

    /// A new mirror learns the group's identity from its primary, before the first frame.
    pub fn set_group(&mut self, group: Uuid) {
        debug_assert!(self.segments.is_empty() || self.group == group);
        self.group = group;
    }

    fn slots(&self) -> usize {
        (self.capacity / self.segment_bytes) as usize
    }

    fn base(&self, sequence: u64) -> u64 {
        (sequence % self.slots() as u64) * self.segment_bytes
    }

    fn fits_segment(&self, segment: &Segment, len: usize) -> bool {
        u64::from(segment.end) + len as u64 <= self.segment_bytes
    }

    fn released_segments(&self) -> usize {
        self.segments
            .iter()
            .take_while(|s| s.last < self.keep_from)
            .count()
    }

    /// Whether a frame of this length can be appended. `control`: it may use what is held back.
    pub fn can_append(&self, len: usize, control: bool) -> bool {
        if self.continues(len) {
            return true;
        }
        let free = self.slots() - self.segments.len() + self.released_segments();
        free > if control { 0 } else { RESERVE }
    }

    /// Whether a frame of this length would lie right behind the last one.
    pub fn continues(&self, len: usize) -> bool {
        let last = self.segments.back();
        last.is_some_and(|s| self.fits_segment(s, len))
    }

    /// Gives the next frame its place.
    ///
    /// # Panics
    /// If it does not follow, or if [`Log::can_append`] says no.
    pub fn append(&mut self, frame: &Frame) -> Write {
        assert_eq!(
            frame.first_lsn(),
            self.tail.next(),
            "frames are appended in order"
        );
        assert_eq!(
            frame.prev(),
            self.chain,
            "frames are appended along the chain"
        );
        let place = |offset| Place {
            first: frame.first_lsn(),
            offset,
            prev: frame.prev(),
        };
        self.tail = frame.last_lsn();
        self.chain = frame.checksum();
        if self.continues(frame.len()) {
            let segment = self.segments.back_mut().expect("just seen");
            let at = segment.end;
            segment.places.push(place(at));
            segment.end += frame.len() as u32;
            segment.last = frame.last_lsn();
            let offset = self.base(self.next_sequence - 1) + u64::from(at);
            return Write {
                offset,
                bytes: frame.bytes().clone(),
            };
        }
        self.open_segment(frame, place(BLOCK as u32))
    }

    fn open_segment(&mut self, frame: &Frame, place: Place) -> Write {
        if self.segments.len() == self.slots() {
            let oldest = self
                .segments
                .pop_front()
                .expect("a full journal has segments");
            assert!(
                oldest.last < self.keep_from,
                "a segment is reused only once it was released"
            );
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.segments.push_back(Segment {
            sequence,
            places: vec![place],
            last: frame.last_lsn(),
            end: (BLOCK + frame.len()) as u32,
        });
        self.thin();
        let header = SegmentHeader::new(self.group, sequence, frame.first_lsn(), frame.prev());
        let mut both = AlignedBuf::with_capacity(BLOCK + frame.len());
        both.extend_from_slice(header.as_bytes());
        let end = both.len();
        both.set_len(BLOCK);
        both[end..].fill(0);
        both.extend_from_slice(frame.bytes());
        Write {
            offset: self.base(sequence),
            bytes: Bytes::from_owner(both),
        }
    }

    /// Places of frames that are old enough are known only here and there.
    fn thin(&mut self) {
        let exact = (EXACT_BYTES / self.segment_bytes).max(2) as usize;
        if let Some(at) = self.segments.len().checked_sub(exact + 1) {
            self.segments[at].thin();
        }
    }

    /// A frame found by recovery, at this place.
    pub(super) fn recovered(&mut self, frame: &Frame, sequence: u64, offset: u32) {
        let place = Place {
            first: frame.first_lsn(),
            offset,
            prev: frame.prev(),
        };
        let end = offset + frame.len() as u32;
        match self.segments.back_mut() {
            Some(segment) if segment.sequence == sequence => {
                segment.places.push(place);
                segment.last = frame.last_lsn();
                segment.end = end;
            }
            _ => {
                self.segments.push_back(Segment {
                    sequence,
                    places: vec![place],
                    last: frame.last_lsn(),
                    end,
                });
                self.thin();
            }
        }
        self.next_sequence = sequence + 1;
        self.tail = frame.last_lsn();
        self.chain = frame.checksum();
    }

    /// An older segment that recovery did not read: its header says what it begins with. Newest first.
    pub(super) fn recovered_older(&mut self, header: &SegmentHeader, last: Lsn) {
        let place = Place {
            first: header.first_lsn(),
            offset: BLOCK as u32,
            prev: header.prev(),
        };
        self.segments.push_front(Segment {
            sequence: header.sequence(),
            places: vec![place],
            last,
            end: self.segment_bytes as u32,
        });
    }

    /// The segment in which recovery began starts before that place: its header says with what. False if the two do not
    /// fit together.
    pub(super) fn extend_back(&mut self, header: &SegmentHeader, end: u32, last: Lsn) -> bool {
        let place = Place {
            first: header.first_lsn(),
            offset: BLOCK as u32,
            prev: header.prev(),
        };
        match self.segments.front_mut() {
            Some(segment) if segment.sequence == header.sequence() => {
                segment.places.insert(0, place);
            }
            Some(segment) if segment.sequence != header.sequence() + 1 => return false,
            _ => {
                let sequence = header.sequence();
                self.segments.push_front(Segment {
                    sequence,
                    places: vec![place],
                    last,
                    end,
                });
                self.next_sequence = self.next_sequence.max(sequence + 1);
            }
        }
        true
    }

    pub(super) fn set_keep_from(&mut self, lsn: Lsn) {
        self.keep_from = lsn;
    }

    pub(super) fn set_next_sequence(&mut self, sequence: u64) {
        self.next_sequence = sequence;
    }

    /// Size of the file, bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes of segments that somebody may still need.
    pub fn used_bytes(&self) -> u64 {
        self.bytes_from(self.keep_from)
    }

    /// Bytes of the segments that hold anything from this LSN on.
    pub fn bytes_from(&self, lsn: Lsn) -> u64 {
        let held = self.segments.iter().filter(|s| s.last >= lsn);
        held.map(|s| u64::from(s.end)).sum()
    }

    /// Bytes for what is written, if all of it were still needed: without the segments that are held back, and the one in which
    /// the oldest begins anywhere.
    pub fn usable_bytes(&self) -> u64 {
        let segments = self.slots().saturating_sub(RESERVE + 1).max(1);
        segments as u64 * self.segment_bytes
    }

    /// Bytes of whole segments that are left for what is written next, if nothing but what is from this LSN on is kept.
    pub fn room_beyond(&self, lsn: Lsn) -> u64 {
        let held = self.segments.iter().filter(|s| s.last >= lsn).count();
        let left = self.slots().saturating_sub(RESERVE + held);
        left as u64 * self.segment_bytes
    }

    /// Oldest LSN that can still be read, released or not; the one after the tail if there is none.
    pub fn first_lsn(&self) -> Lsn {
        self.segments
            .front()
            .map_or(self.tail.next(), Segment::first)
            .max(self.readable_from)
    }

    /// A frame before this LSN turned out to be damaged: who needs what is before gets it elsewhere.
    pub fn unreadable_before(&mut self, lsn: Lsn) {
        self.readable_from = self.readable_from.max(lsn);
    }

    /// As [`Log::unreadable_before`] says.
    pub fn readable_from(&self) -> Lsn {
        self.readable_from
    }

    /// Where the segment begins that follows the one with this LSN; the LSN after the tail if there is none.
    pub fn next_segment_after(&self, lsn: Lsn) -> Lsn {
        let later = self.segments.iter().find(|s| s.first() > lsn);
        later.map_or(self.tail.next(), Segment::first)
    }

    /// Last LSN.
    pub fn tail(&self) -> Lsn {
        self.tail
    }

    /// Checksum of the last frame.
    pub fn chain(&self) -> u32 {
        self.chain
    }

    /// Nobody needs what is before this LSN any more. Never goes back.
    pub fn release_before(&mut self, lsn: Lsn) {
        self.keep_from = self.keep_from.max(lsn);
    }

    /// Where recovery has to begin once everything up to `lsn` is in the homes.
    pub fn position(&self, lsn: Lsn) -> Position {
        let next = lsn.next();
        if let Some(segment) = self
            .segments
            .iter()
            .rev()
            .find(|s| s.first() <= next && next <= s.last)
        {
            let at = segment.places.partition_point(|p| p.first <= next) - 1;
            let place = segment.places[at];
            return Position {
                lsn,
                next: place.first,
                segment: segment.sequence,
                offset: place.offset,
                chain: place.prev,
            };
        }
        let (segment, offset) = match self.segments.back() {
            Some(segment) => (segment.sequence, segment.end),
            None => (self.next_sequence, BLOCK as u32),
        };
        Position {
            lsn,
            next: self.tail.next(),
            segment,
            offset,
            chain: self.chain,
        }
    }

    /// Forgets the frames after `lsn`, which ends a frame. Their place is written again.
    ///
    /// # Panics
    /// If `lsn` lies within a frame, or so far back that the places are not all known.
    pub fn truncate_after(&mut self, lsn: Lsn) {
        while let Some(segment) = self.segments.back_mut() {
            if segment.last <= lsn {
                break;
            }
            let at = segment.places.partition_point(|p| p.first <= lsn);
            let cut = segment.places[at];
            assert!(
                at == 0 || cut.first == lsn.next(),
                "a journal is cut between frames"
            );
            self.chain = cut.prev;
            self.tail = cut.first.prev();
            if at == 0 {
                self.next_sequence = segment.sequence;
                self.segments.pop_back();
            } else {
                segment.places.truncate(at);
                segment.end = cut.offset;
                segment.last = lsn;
            }
        }
    }

    /// A reader that finds the frame with this LSN and all after it. `None` if the journal does not hold it (yet).
    pub fn cursor(&self, lsn: Lsn) -> Option<Cursor> {
        let segment = self
            .segments
            .iter()
            .rev()
            .find(|s| s.first() <= lsn && lsn <= s.last)?;
        let at = segment.places.partition_point(|p| p.first <= lsn) - 1;
        let place = segment.places[at];
        Some(Cursor {
            sequence: segment.sequence,
            offset: place.offset,
            asked: VecDeque::new(),
            next: place.first,
            chain: place.prev,
            rest: BytesMut::new(),
        })
    }

    /// What may be read of a segment from there, if only what is up to `durable` may be.
    fn readable(&self, sequence: u64, from: u32, durable: Lsn) -> Option<Readable> {
        let oldest = self.segments.front()?.sequence;
        let segment = self
            .segments
            .get(usize::try_from(sequence.checked_sub(oldest)?).ok()?)?;
        let mut readable = (segment.end, segment.last);
        if segment.last > durable {
            let at = segment.places.partition_point(|p| p.first <= durable);
            let cut = segment.places.get(at);
            readable = cut.map_or((segment.end, durable), |p| (p.offset, p.first.prev()));
        }
        let (end, last) = readable;
        let most = from.saturating_add(READ_BYTES);
        let frames = segment.places.partition_point(|p| p.offset <= most);
        let border = segment.places[..frames].last().map(|p| p.offset);
        let (stop, whole) = match border.filter(|border| *border > from) {
            _ if end <= most => (end, true),
            Some(border) => (border, true),
            None => (most, false),
        };
        Some(Readable {
            end,
            last,
            len: stop.saturating_sub(from),
            whole,
        })
    }
}

/// What may be read of a segment.
struct Readable {
    /// Where it ends, offset in the segment.
    end: u32,
    /// Its last LSN.
    last: Lsn,
    /// How much of it to read at once, bytes.
    len: u32,
    /// These are whole frames, as far as their places are known.
    whole: bool,
}

/// What a [`Cursor`] wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Read this part of the file and give it to [`Cursor::feed`].
    Read {
        /// Bytes from the start of the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Everything durable was read.
    CaughtUp,
    /// The place was reused meanwhile.
    Recycled,
}

/// Reads frames in order, for a mirror that catches up. Several reads may be under way.
#[derive(Debug)]
pub struct Cursor {
    sequence: u64,
    /// Where the next read begins, offset in the segment.
    offset: u32,
    /// Reads that were asked for and not fed yet, oldest first.
    asked: VecDeque<Asked>,
    next: Lsn,
    chain: u32,
    /// The beginning of a frame whose end was not read yet.
    rest: BytesMut,
}

/// A read that a cursor has asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// The last LSN of the segment, as far as it was durable. What lies behind that in the file means nothing.
    last: Lsn,
    /// No frame goes on behind it.
    whole: bool,
}

impl Cursor {
    /// What to read next, of what is durable up to `durable`. What it asks for is to be fed, in this order.
    pub fn next_read(&mut self, log: &Log, durable: Lsn) -> Next {
        loop {
            let Some(readable) = log.readable(self.sequence, self.offset, durable) else {
                let oldest = log
                    .segments
                    .front()
                    .map_or(log.next_sequence, |s| s.sequence);
                return if self.sequence < oldest {
                    Next::Recycled
                } else {
                    Next::CaughtUp
                };
            };
            if self.offset < readable.end {
                let Readable {
                    last, len, whole, ..
                } = readable;
                let offset = log.base(self.sequence) + u64::from(self.offset);
                self.offset += len;
                self.asked.push_back(Asked { last, whole });
                return Next::Read {
                    offset,
                    len: u64::from(len),
                };
            }
            if self.sequence + 1 >= log.next_sequence {
                return Next::CaughtUp;
            }
            (self.sequence, self.offset) = (self.sequence + 1, BLOCK as u32);
        }
    }

    /// Reads that were asked for and not fed yet.
    #[cfg(test)]
    pub fn asked(&self) -> usize {
        self.asked.len()
    }

    /// Takes what was read; returns the frames that are complete.
    ///
    /// # Errors
    /// If a frame is damaged, or is not the next of the chain (its place was reused while it was read, or its write was lost).
    ///
    /// # Panics
    /// If nothing was asked for.
    pub fn feed(&mut self, data: Bytes) -> Result<Vec<Frame>, FrameError> {
        let asked = self.asked.pop_front();
        let Asked { last, whole } = asked.expect("what is fed was asked for");
        let mut data = if self.rest.is_empty() {
            data
        } else {
            let mut all = std::mem::take(&mut self.rest);
            all.extend_from_slice(&data);
            all.freeze()
        };
        let mut frames = Vec::new();
        while data.len() >= BLOCK && self.next <= last {
            let len = Frame::peek_len(&data)?;
            if data.len() < len {
                break;
            }
            let frame = Frame::parse(data.split_to(len))?;
            frame.verify_payloads()?;
            if frame.first_lsn() != self.next || frame.prev() != self.chain {
                return Err(FrameError::Damaged("the chain is broken"));
            }
            self.next = frame.last_lsn().next();
            self.chain = frame.checksum();
            frames.push(frame);
        }
        if self.next <= last && !data.is_empty() {
            // What lies there instead of the next frame claims to be longer than that is.
            if whole {
                return Err(FrameError::Damaged("a frame is longer than its place"));
            }
            self.rest = BytesMut::from(&data[..]);
        }
        Ok(frames)
    }
}
