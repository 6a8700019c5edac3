//! What the journal says that a block must hold: the newest operation it still has that covers it, at or below the LSN as of
//! which the sites were compared.
//!
//! The journal is read once for many blocks, from its oldest frame to the newest that matters. Frames carry checksums and
//! a chain; where that breaks, what was read before proves nothing any more: an operation behind it may have been the last.

use bytes::Bytes;

use super::mend::Doubt;
use super::{DiskOp, DiskResult, File, Group, LinkId, Pending};
use crate::base::{BLOCK, ByteRange, ChunkSet, Lsn, OpKind, VolumeId};
use crate::core::Severity;
use crate::journal::{self, Cursor, Frame, Next};

/// What is known of the content of a block.
#[derive(Default)]
pub(super) struct Proof {
    content: Vec<u8>,
    /// For each byte of it.
    known: Vec<bool>,
}

impl Proof {
    /// What this byte must be, if that is known.
    pub fn byte(&self, at: usize) -> Option<u8> {
        self.known.get(at).filter(|k| **k)?;
        Some(self.content[at])
    }

    /// An operation wrote this part of the block; `None` for zeroes.
    pub fn write(&mut self, at: usize, len: usize, data: Option<&[u8]>) {
        if self.known.is_empty() {
            self.content = vec![0; BLOCK];
            self.known = vec![false; BLOCK];
        }
        match data {
            Some(data) => self.content[at..at + len].copy_from_slice(data),
            None => self.content[at..at + len].fill(0),
        }
        self.known[at..at + len].fill(true);
    }

    fn forget(&mut self) {
        *self = Proof::default();
    }
}

/// One pass over the journal.
pub(super) struct Proving {
    pub doubts: Vec<Doubt>,
    /// The last LSN that matters.
    target: Lsn,
    /// The next one to be read: the journal is kept from here on.
    next: Lsn,
    cursor: Option<Cursor>,
    reading: bool,
    /// The chunks in question.
    wanted: ChunkSet,
}

impl Proving {
    pub fn new(doubts: Vec<Doubt>, first: Lsn) -> Proving {
        let mut wanted = ChunkSet::new();
        for doubt in &doubts {
            wanted.insert(doubt.volume, doubt.range);
        }
        Proving {
            wanted,
            target: doubts.iter().map(|d| d.lsn).max().unwrap_or_default(),
            doubts,
            next: first,
            cursor: None,
            reading: false,
        }
    }

    fn is_done(&self) -> bool {
        self.next > self.target
    }

    /// What was read so far proves nothing any more.
    fn start_over(&mut self, from: Lsn) {
        for doubt in &mut self.doubts {
            for block in &mut doubt.blocks {
                block.proof.forget();
            }
        }
        (self.next, self.cursor) = (from, None);
    }

    fn take(&mut self, frame: &Frame) -> Result<(), String> {
        for (lsn, op, payload) in frame.ops() {
            let (volume, range) = match op.kind {
                OpKind::Write | OpKind::WriteZeroes { .. } | OpKind::Trim => (op.volume, op.range),
                // A new volume is zeroes all over.
                OpKind::CreateVolume => {
                    let content = payload.content().map_err(|e| e.to_string())?;
                    let spec = journal::decode_volume(&content).map_err(|e| e.to_string())?;
                    (spec.id, ByteRange::new(0, spec.size))
                }
                OpKind::OpenEpoch | OpKind::ResizeVolume => continue,
            };
            let mut data = None;
            for doubt in self.meeting(lsn, volume, range) {
                if op.kind == OpKind::Write && data.is_none() {
                    data = Some(payload.content().map_err(|e| e.to_string())?);
                }
                doubt.prove(range, data.as_ref());
            }
        }
        self.next = self.next.max(frame.last_lsn().next());
        Ok(())
    }

    fn meeting(
        &mut self,
        lsn: Lsn,
        volume: VolumeId,
        range: ByteRange,
    ) -> impl Iterator<Item = &mut Doubt> {
        let meets =
            move |d: &&mut Doubt| lsn <= d.lsn && d.volume == volume && d.range.overlaps(range);
        self.doubts.iter_mut().filter(meets)
    }
}

impl Doubt {
    fn prove(&mut self, range: ByteRange, data: Option<&Bytes>) {
        for block in &mut self.blocks {
            let place = block.place(self.range);
            let Some(part) = place.intersection(range) else {
                continue;
            };
            let at = (part.offset - place.offset) as usize;
            let len = part.len as usize;
            let source = (part.offset - range.offset) as usize;
            let data = data.map(|d| &d[source..source + len]);
            block.proof.write(at, len, data);
        }
    }
}

impl Group {
    /// Where the journal must be kept from for those who look for proof.
    pub(super) fn proof_pin(&self) -> Option<Lsn> {
        let walks = self.streams.values().filter_map(|s| s.walk.as_ref());
        let provings = walks.filter_map(|w| w.verifying()?.proving.as_ref());
        provings.map(|p| p.next).min()
    }

    fn proving(&mut self, link: LinkId) -> Option<&mut Proving> {
        self.walk(link)?.verifying_mut()?.proving.as_mut()
    }

    /// Reads on in the journal for what was found to differ, and judges it at the end.
    pub(super) fn prove(&mut self, link: LinkId) {
        self.begin_proving(link);
        loop {
            let durable = self.frames.durable();
            let first = self.log.first_lsn();
            let Some(verifying) = self
                .streams
                .get_mut(&link)
                .and_then(|s| s.walk.as_mut()?.verifying_mut())
            else {
                return;
            };
            let Some(proving) = verifying.proving.as_mut().filter(|p| !p.reading) else {
                return;
            };
            let next = self.changes.next_touching(proving.next, &proving.wanted);
            if next > proving.next {
                // A cursor may begin before: what it reads twice proves the same.
                (proving.next, proving.cursor) = (next, None);
            }
            if proving.is_done() {
                let doubts = verifying
                    .proving
                    .take()
                    .map(|p| p.doubts)
                    .unwrap_or_default();
                self.settle(link, doubts);
                return;
            }
            if proving.cursor.is_none() {
                proving.cursor = self.log.cursor(proving.next);
            }
            let next = match &mut proving.cursor {
                Some(cursor) => cursor.next_read(&self.log, durable),
                // Not durable yet, or not there any more.
                None if proving.next > durable => Next::CaughtUp,
                None => Next::Recycled,
            };
            match next {
                Next::Read { offset, len } => {
                    proving.reading = true;
                    let read = DiskOp::Read {
                        file: File::Journal,
                        offset,
                        len,
                        medium: false,
                    };
                    self.submit(Pending::ProofRead { link }, read);
                    return;
                }
                // The rest is on its way to the disk.
                Next::CaughtUp => return,
                Next::Recycled if first > proving.next => proving.start_over(first),
                Next::Recycled => {
                    let target = proving.target.next();
                    proving.start_over(target);
                }
            }
        }
    }

    pub(super) fn proof_read(&mut self, link: LinkId, result: DiskResult) {
        let Some(proving) = self.proving(link).filter(|p| p.reading) else {
            return;
        };
        proving.reading = false;
        let problem = match (result, &mut proving.cursor) {
            (DiskResult::Data(data), Some(cursor)) => match cursor.feed(data) {
                Ok(frames) => frames.iter().find_map(|frame| proving.take(frame).err()),
                Err(error) => Some(error.to_string()),
            },
            (DiskResult::Failed { message, .. }, _) => Some(message),
            (other, _) => Some(format!("the driver answered a read with {other:?}")),
        };
        let Some(problem) = problem else { return };
        let bad = proving.next;
        let first = self.log.first_lsn();
        // Its place was reused while it was read; else it is damaged, and what follows it in its segment is not found.
        let from = if first > bad {
            first
        } else {
            let next = self.log.next_segment_after(bad);
            self.log.unreadable_before(next);
            self.log_line(
                Severity::Error,
                format!(
                    "the journal cannot be read at LSN {bad}, and proves nothing about what is before LSN {next}: {problem}"
                ),
            );
            next
        };
        if let Some(proving) = self.proving(link) {
            proving.start_over(from);
        }
    }
}
