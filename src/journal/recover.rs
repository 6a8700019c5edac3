//! Recovery: following the chain of frames from the checkpoint to the first hole, and judging the hole.
//!
//! | behind the hole | verdict |
//! | --- | --- |
//! | no valid later frame | the end: clean, or a torn tail that was never confirmed |
//! | valid later frames, none of which claims the hole to be committed | a torn tail: writes that overtook it |
//! | a valid later frame that claims the hole to be committed | damage |
//!
//! 'Later' is by LSN and of an epoch that the lineage knows: what a recycled or abandoned place holds is neither.

use std::io;

use bytes::Bytes;
use uuid::Uuid;

use super::frame::{Frame, FrameError, is_zero};
use super::log::{Log, Position, SegmentHeader, segment_bytes};
use super::records::decode_epoch;
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{AlignedBuf, BLOCK, Lineage, Lsn, OpKind};

/// Bytes read at once.
const WINDOW: usize = 4 << 20;

/// Access to the journal's file.
pub trait ReadJournal {
    /// Fills `buf` from this place in the file. All are multiples of 4096.
    ///
    /// # Errors
    /// If the disk fails; recovery stops.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// Why recovery cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The disk failed.
    #[error("the journal cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A frame that this program does not understand.
    #[error("the journal holds what this program does not understand: {0}")]
    Unknown(FrameError),
}

/// Acknowledged history is missing in the middle of the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// First LSN that is missing.
    pub lsn: Lsn,
    /// Everything up to here was committed, by what later frames say.
    pub claims: Lsn,
    /// Last LSN of the frames behind it that can still be read: once durable here, committed or not.
    pub last: Lsn,
    /// Where, bytes from the start of the file.
    pub offset: u64,
}

/// What recovery found.
#[derive(Debug)]
pub struct Recovered {
    /// Ready to append.
    pub log: Log,
    /// Last LSN.
    pub tail: Lsn,
    /// Checksum of the last frame.
    pub chain: u32,
    /// A torn tail was dropped; it began after this LSN.
    pub torn: Option<Lsn>,
    /// Damage; the journal ends before it.
    pub damage: Option<Damage>,
    /// Frames that were followed.
    pub frames: u64,
    /// The journal holds neither what follows the checkpoint nor what is before it: it is older than the record.
    pub stale: bool,
}

/// Recovery under way. Call [`Recovery::next`] until it yields nothing, then [`Recovery::finish`].
#[derive(Debug)]
pub struct Recovery {
    log: Log,
    group: Uuid,
    lineage: Lineage,
    capacity: u64,
    segment: u64,
    offset: u32,
    next: Lsn,
    chain: u32,
    from: Position,
    window: Window,
    frames: u64,
    started: bool,
}

/// The part of the file that was read last.
#[derive(Debug, Default)]
struct Window {
    start: u64,
    data: Bytes,
}

impl Window {
    /// `len` bytes at `offset`; reads on up to `limit`.
    fn get(
        &mut self,
        reader: &mut dyn ReadJournal,
        offset: u64,
        len: usize,
        limit: u64,
    ) -> io::Result<Bytes> {
        let end = self.start + self.data.len() as u64;
        if offset < self.start || offset + len as u64 > end {
            let want = WINDOW
                .max(len)
                .min(usize::try_from(limit - offset).unwrap_or(usize::MAX));
            let mut buf = AlignedBuf::zeroed(want);
            reader.read(offset, &mut buf)?;
            (self.start, self.data) = (offset, Bytes::from_owner(buf));
        }
        let from = (offset - self.start) as usize;
        Ok(self.data.slice(from..from + len))
    }
}

impl Recovery {
    /// Recovery of a journal of this size from a checkpoint. The lineage may know more epochs than the journal holds.
    pub fn new(capacity: u64, group: Uuid, from: Position, lineage: &Lineage) -> Recovery {
        Recovery {
            log: Log::at(capacity, group, from.next.prev(), from.chain, from.segment),
            group,
            lineage: lineage.clone(),
            capacity,
            segment: from.segment,
            offset: from.offset,
            next: from.next,
            chain: from.chain,
            from,
            window: Window::default(),
            frames: 0,
            started: false,
        }
    }

    fn slots(&self) -> u64 {
        self.capacity / segment_bytes(self.capacity)
    }

    fn base(&self, sequence: u64) -> u64 {
        (sequence % self.slots()) * segment_bytes(self.capacity)
    }

    fn limit(&self, sequence: u64) -> u64 {
        self.base(sequence) + segment_bytes(self.capacity)
    }

    /// The next frame of the chain.
    ///
    /// # Errors
    /// If the disk fails, or a frame was made by a program that knows more.
    pub fn next(&mut self, reader: &mut dyn ReadJournal) -> Result<Option<Frame>, RecoverError> {
        // A checkpoint before the first frame of a segment names the place where the segment will begin.
        if !self.started
            && u64::from(self.offset) == BLOCK as u64
            && !self.header_follows(reader, self.segment)?
        {
            return Ok(None);
        }
        self.started = true;
        if let Some(frame) = self.frame_here(reader)? {
            return Ok(Some(self.take(frame)));
        }
        if !self.header_follows(reader, self.segment + 1)? {
            return Ok(None);
        }
        let (segment, offset) = (self.segment, self.offset);
        (self.segment, self.offset) = (self.segment + 1, BLOCK as u32);
        match self.frame_here(reader)? {
            Some(frame) => Ok(Some(self.take(frame))),
            None => {
                (self.segment, self.offset) = (segment, offset);
                Ok(None)
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Frame {
        self.log.recovered(&frame, self.segment, self.offset);
        self.offset += frame.len() as u32;
        self.next = frame.last_lsn().next();
        self.chain = frame.checksum();
        self.frames += 1;
        frame
    }

    /// Whether this segment is the one that continues the chain.
    fn header_follows(
        &mut self,
        reader: &mut dyn ReadJournal,
        sequence: u64,
    ) -> Result<bool, RecoverError> {
        let header = self.header(reader, sequence)?;
        Ok(header.is_some_and(|h| {
            h.sequence() == sequence && h.first_lsn() == self.next && h.prev() == self.chain
        }))
    }

    fn header(
        &mut self,
        reader: &mut dyn ReadJournal,
        sequence: u64,
    ) -> Result<Option<SegmentHeader>, RecoverError> {
        let base = self.base(sequence);
        let mut block = AlignedBuf::zeroed(BLOCK);
        reader.read(base, &mut block)?;
        Ok(SegmentHeader::parse(&block, self.group))
    }

    /// The frame at this place, if it is valid and the next of the chain.
    fn frame_here(&mut self, reader: &mut dyn ReadJournal) -> Result<Option<Frame>, RecoverError> {
        let at = self.base(self.segment) + u64::from(self.offset);
        let Some(frame) = self.frame_at(reader, at, self.limit(self.segment))? else {
            return Ok(None);
        };
        let follows = frame.prev() == self.chain;
        #[cfg(test)]
        let follows = follows || sabotaged(Sabotage::SkipChecksumChain);
        if frame.first_lsn() != self.next || !follows || !self.epoch_follows(&frame) {
            return Ok(None);
        }
        Ok(Some(frame))
    }

    /// The valid frame of this group at this place of the file, if there is one.
    fn frame_at(
        &mut self,
        reader: &mut dyn ReadJournal,
        at: u64,
        limit: u64,
    ) -> Result<Option<Frame>, RecoverError> {
        if at + BLOCK as u64 > limit {
            return Ok(None);
        }
        let start = self.window.get(reader, at, BLOCK, limit)?;
        let len = match Frame::peek_len(&start) {
            Ok(len) if at + len as u64 <= limit => len,
            Ok(_) | Err(FrameError::NotAFrame | FrameError::Damaged(_)) => return Ok(None),
            Err(unknown) => return Err(RecoverError::Unknown(unknown)),
        };
        let bytes = self.window.get(reader, at, len, limit)?;
        #[cfg(test)]
        if sabotaged(Sabotage::SkipPayloadChecksums) {
            return Ok(Frame::parse(bytes).ok());
        }
        let frame = Frame::parse(bytes).and_then(|f| f.verify_payloads().map(|()| f));
        Ok(frame.ok().filter(|f| f.group_id() == self.group))
    }

    /// Whether a frame's epoch is the current one, or one that it opens.
    fn epoch_follows(&mut self, frame: &Frame) -> bool {
        let opened = frame
            .ops()
            .next()
            .filter(|(_, op, _)| op.kind == OpKind::OpenEpoch);
        let Some((lsn, _, payload)) = opened else {
            return self
                .lineage
                .at(frame.first_lsn())
                .is_some_and(|e| e.id == frame.epoch_id());
        };
        let Some(epoch) = payload.content().ok().and_then(|c| decode_epoch(&c).ok()) else {
            return false;
        };
        if epoch.id != frame.epoch_id() || epoch.first_lsn != lsn {
            return false;
        }
        if self.lineage.at(lsn).is_some_and(|e| e.id == epoch.id) {
            return true;
        }
        // The lineage on record may name an epoch that was prepared at this place and then not opened.
        self.lineage.truncate_after(lsn.prev());
        self.lineage.push(epoch).is_ok()
    }

    /// Judges the hole behind the last frame, and finds the older segments that can still be streamed from.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn finish(mut self, reader: &mut dyn ReadJournal) -> Result<Recovered, RecoverError> {
        let stale = self.frames == 0 && !self.reaches_the_checkpoint(reader)?;
        let (torn, damage) = self.judge_hole(reader)?;
        let headers = self.headers(reader)?;
        self.older_segments(&headers);
        if self.log.first_lsn() == self.next {
            // Nothing is left to append behind.
            let fresh = if self.offset == BLOCK as u32 {
                self.segment
            } else {
                self.segment + 1
            };
            self.log.set_next_sequence(fresh);
        }
        self.log
            .set_keep_from(self.from.lsn.next().min(self.from.next));
        let (tail, chain, frames) = (self.next.prev(), self.chain, self.frames);
        Ok(Recovered {
            log: self.log,
            tail,
            chain,
            torn,
            damage,
            frames,
            stale,
        })
    }

    /// Whether the journal holds the frame that ends where recovery begins, or what is newer in its place. One that was put
    /// back from a copy that is older than the record does not.
    fn reaches_the_checkpoint(
        &mut self,
        reader: &mut dyn ReadJournal,
    ) -> Result<bool, RecoverError> {
        let from = self.from;
        let first = u64::from(from.offset) == BLOCK as u64;
        if from.next == Lsn(1) || first && from.segment == 0 {
            return Ok(true); // nothing is before it
        }
        let segment = if first {
            from.segment - 1
        } else {
            from.segment
        };
        let header = self.header(reader, segment)?;
        if header.is_some_and(|h| h.sequence() > segment) {
            return Ok(true);
        }
        let (start, limit) = (self.base(segment) + BLOCK as u64, self.limit(segment));
        let end = if first {
            limit
        } else {
            self.base(segment) + u64::from(from.offset)
        };
        // The newest first: it ends there, or somewhere before the end of a full segment.
        let mut window_end = end;
        while window_end > start {
            let window_start = start.max(window_end.saturating_sub(WINDOW as u64));
            let mut window = AlignedBuf::zeroed((window_end - window_start) as usize);
            reader.read(window_start, &mut window)?;
            for (n, block) in window.chunks_exact(BLOCK).enumerate().rev() {
                let Ok(len) = Frame::peek_len(block) else {
                    continue;
                };
                let at = window_start + (n * BLOCK) as u64;
                let ends_there = at + len as u64 == end || first && at + len as u64 <= end;
                if ends_there
                    && let Some(frame) = self.frame_at(reader, at, limit)?
                    && frame.checksum() == from.chain
                {
                    return Ok(true);
                }
            }
            window_end = window_start;
        }
        Ok(false)
    }

    fn headers(
        &mut self,
        reader: &mut dyn ReadJournal,
    ) -> Result<Vec<SegmentHeader>, RecoverError> {
        let mut headers = Vec::new();
        for slot in 0..self.slots() {
            headers.extend(
                self.header(reader, slot)?
                    .filter(|h| h.sequence() % self.slots() == slot),
            );
        }
        Ok(headers)
    }

    /// Whether the segment in this slot comes after the current one, or has a header that says nothing.
    fn header_may_be_later(
        &mut self,
        reader: &mut dyn ReadJournal,
        slot: u64,
    ) -> Result<bool, RecoverError> {
        let mut block = AlignedBuf::zeroed(BLOCK);
        reader.read(self.base(slot), &mut block)?;
        Ok(match SegmentHeader::parse(&block, self.group) {
            Some(header) => header.sequence() > self.segment,
            None => !is_zero(&block),
        })
    }

    /// Segments before the checkpoint, as far back as their numbers are unbroken.
    fn older_segments(&mut self, headers: &[SegmentHeader]) {
        let of = |sequence: u64| headers.iter().find(|h| h.sequence() == sequence);
        // The segment of the checkpoint itself may begin before it.
        let mut first_known = self.from.next;
        let mut sequence = self.from.segment;
        if self.from.offset != BLOCK as u32 {
            // If the disk lost its header, nothing before the checkpoint can be found, and nothing must be appended here.
            let header = of(sequence).filter(|h| h.first_lsn() < first_known);
            let Some(header) = header.filter(|h| {
                self.log
                    .extend_back(h, self.from.offset, first_known.prev())
            }) else {
                return;
            };
            first_known = header.first_lsn();
        }
        while let Some(header) = sequence.checked_sub(1).and_then(of) {
            if header.first_lsn() >= first_known {
                return;
            }
            self.log.recovered_older(header, first_known.prev());
            first_known = header.first_lsn();
            sequence -= 1;
        }
    }

    fn judge_hole(
        &mut self,
        reader: &mut dyn ReadJournal,
    ) -> Result<(Option<Lsn>, Option<Damage>), RecoverError> {
        let hole = self.next;
        let offset = self.base(self.segment) + u64::from(self.offset);
        let mut later = false;
        let (mut claims, mut last) = (Lsn::ZERO, Lsn::ZERO);
        let mut opened = Vec::new();
        let mut places = vec![(offset, self.limit(self.segment))];
        for slot in 0..self.slots() {
            // A header that rotted must not hide what its segment says, nor one of the next segment that the crash lost: with
            // two writes under way, what followed it may have come before it.
            let next = slot == (self.segment + 1) % self.slots();
            if slot != self.segment % self.slots()
                && (next || self.header_may_be_later(reader, slot)?)
            {
                places.push((self.base(slot) + BLOCK as u64, self.limit(slot)));
            }
        }
        for (from, limit) in places {
            let mut at = from;
            while at + BLOCK as u64 <= limit {
                let frame = self.frame_at(reader, at, limit).ok().flatten();
                let step = frame.as_ref().map_or(BLOCK, Frame::len);
                if let Some(frame) =
                    frame.filter(|f| f.first_lsn() > hole && self.may_follow(f, &mut opened))
                {
                    later = true;
                    claims = claims.max(frame.commit_lsn());
                    last = last.max(frame.last_lsn());
                }
                at += step as u64;
            }
        }
        if claims >= hole {
            return Ok((
                None,
                Some(Damage {
                    lsn: hole,
                    claims,
                    last,
                    offset,
                }),
            ));
        }
        Ok((later.then_some(hole.prev()), None))
    }

    /// Whether a frame behind the hole can be of this history: of an epoch that is known, or that a frame opens which
    /// follows all known ones.
    fn may_follow(&self, frame: &Frame, opened: &mut Vec<Uuid>) -> bool {
        if self.lineage.contains(frame.epoch_id()) {
            // Beyond its epoch's end it is of a history that was given up.
            let epoch = self.lineage.at(frame.first_lsn());
            return epoch.is_some_and(|e| e.id == frame.epoch_id());
        }
        if opened.contains(&frame.epoch_id()) {
            return true;
        }
        let newest = self.lineage.last().map_or(0, |e| e.number);
        let opens = frame
            .ops()
            .next()
            .filter(|(_, op, _)| op.kind == OpKind::OpenEpoch)
            .and_then(|(_, _, payload)| decode_epoch(&payload.content().ok()?).ok())
            .is_some_and(|e| e.id == frame.epoch_id() && e.number > newest);
        if opens {
            opened.push(frame.epoch_id());
        }
        opens
    }
}
