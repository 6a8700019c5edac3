//! The sending side of a link: frames from memory while the mirror is near, from the journal while it is not, and the
//! chunks of a full copy in between.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::stats::Stage;
use super::{DiskOp, DiskResult, File, Group, LinkId, Pending};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{ByteRange, Lsn, Message, Start, VolumeId};
use crate::core::{Event, Link};
use crate::journal::{Cursor, Frame, Next, is_zero};
use crate::store::{Content, HoldId, Source};

/// Bytes handed to a link's socket and not sent yet, at most.
const QUEUE_BYTES: u64 = 8 << 20;

/// Frame bytes sent and not yet durable at the mirror, at most: this bounds the mirror's memory.
const WINDOW_BYTES: u64 = 32 << 20;

/// Size of a chunk of a full copy, bytes.
const CHUNK_BYTES: u64 = 256 << 10;

/// Chunks being read at once.
const CHUNKS_READING: usize = 4;

/// What is sent on one link.
pub(super) struct Stream {
    next: Lsn,
    end: Option<Lsn>,
    ended: bool,
    /// Handed to the socket, by its last report.
    queued_bytes: u64,
    /// Sent and not acknowledged as durable.
    unacked: VecDeque<Sent>,
    unacked_bytes: u64,
    cursor: Option<Cursor>,
    reading: bool,
    read_frames: VecDeque<Frame>,
    copy: Option<Copy>,
    proposed: Option<Lsn>,
}

struct Sent {
    last: Lsn,
    len: u64,
    at: Duration,
}

/// A full copy on its way.
#[derive(Default)]
struct Copy {
    /// Index of the volume and offset of the next chunk to read.
    volume: usize,
    offset: u64,
    parts: Vec<Part>,
    next_part: u64,
    done_bytes: u64,
    total_bytes: u64,
}

/// A chunk being read.
struct Part {
    id: u64,
    volume: VolumeId,
    range: ByteRange,
    hold: HoldId,
    reading: bool,
}

impl Stream {
    fn new(next: Lsn, end: Option<Lsn>) -> Stream {
        Stream {
            next,
            end,
            ended: false,
            queued_bytes: 0,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            cursor: None,
            reading: false,
            read_frames: VecDeque::new(),
            copy: None,
            proposed: None,
        }
    }

    /// First LSN not sent yet: the journal keeps it.
    pub fn next(&self) -> Lsn {
        self.proposed.map_or(self.next, Lsn::next)
    }

    /// Progress of a full copy: bytes done and in all.
    pub fn copy_progress(&self) -> Option<(u64, u64)> {
        self.copy.as_ref().map(|c| (c.done_bytes, c.total_bytes))
    }

    fn has_room(&self) -> bool {
        self.queued_bytes < QUEUE_BYTES && self.unacked_bytes < WINDOW_BYTES
    }
}

impl Group {
    pub(super) fn start_stream(&mut self, link: LinkId, from: Lsn, end: Option<Lsn>) {
        self.streams.insert(link, Stream::new(from, end));
        self.pump(link);
    }

    /// Proposes a full copy based on the last closed frame.
    pub(super) fn propose_copy(&mut self, link: LinkId) {
        let base = self.frames.sealed();
        let facts = self.core.facts();
        let mut lineage = facts.lineage.clone();
        lineage.truncate_after(base);
        let start = Start::Copy {
            group_id: facts.group_id,
            base,
            chain: self.frames.chain(),
            lineage,
            volumes: self.volumes.clone(),
            ack: facts.ack,
            resume: None,
        };
        let mut stream = Stream::new(base.next(), None);
        stream.proposed = Some(base);
        self.streams.insert(link, stream);
        self.send(link, Message::Start(Box::new(start)));
    }

    pub(super) fn start_copy(&mut self, link: LinkId) {
        let total_bytes = self.volumes.iter().map(|v| v.size).sum();
        if let Some(stream) = self.streams.get_mut(&link) {
            stream.proposed = None;
            stream.copy = Some(Copy {
                total_bytes,
                ..Copy::default()
            });
        }
        self.pump(link);
    }

    pub(super) fn link_drained(&mut self, link: LinkId, queued_bytes: u64) {
        if let Some(stream) = self.streams.get_mut(&link) {
            stream.queued_bytes = queued_bytes;
        }
    }

    /// The mirror holds everything up to here on stable storage.
    pub(super) fn stream_acked(&mut self, link: LinkId, durable: Lsn) {
        let now = self.now.mono;
        let Some(stream) = self.streams.get_mut(&link) else {
            return;
        };
        while stream.unacked.front().is_some_and(|s| s.last <= durable) {
            let sent = stream.unacked.pop_front().expect("just seen");
            stream.unacked_bytes -= sent.len;
            self.stats.record(Stage::Link, now.saturating_sub(sent.at));
        }
    }

    pub(super) fn pump_streams(&mut self) {
        let links: smallvec::SmallVec<[LinkId; 4]> = self.streams.keys().copied().collect();
        for link in links {
            self.pump(link);
        }
    }

    /// Sends what the link takes.
    fn pump(&mut self, link: LinkId) {
        let sealed = self.frames.sealed();
        while let Some(stream) = self.streams.get_mut(&link) {
            if stream.proposed.is_some() || stream.ended {
                return;
            }
            if !stream.has_room() {
                self.core.tell_commit();
                return;
            }
            let end = stream.end.unwrap_or(sealed);
            if stream.next > end {
                if stream.end.is_some() {
                    stream.ended = true;
                    self.send(link, Message::FetchEnd { tail: end });
                }
                return;
            }
            if let Some(frame) = stream.read_frames.pop_front() {
                self.send_frame(link, &frame);
                continue;
            }
            if let Some(frame) = self.frames.cached(stream.next).cloned() {
                if let Some(stream) = self.streams.get_mut(&link) {
                    stream.cursor = None;
                }
                self.send_frame(link, &frame);
                continue;
            }
            self.read_for_stream(link);
            return;
        }
    }

    fn send_frame(&mut self, link: LinkId, frame: &Frame) {
        let now = self.now.mono;
        let Some(stream) = self.streams.get_mut(&link) else {
            return;
        };
        if frame.last_lsn() < stream.next {
            return;
        }
        let len = frame.len() as u64;
        stream.next = frame.last_lsn().next();
        stream.queued_bytes += len;
        stream.unacked_bytes += len;
        stream.unacked.push_back(Sent {
            last: frame.last_lsn(),
            len,
            at: now,
        });
        self.stats.totals.link_bytes += len;
        self.send(link, Message::Frame(frame.bytes().clone()));
    }

    /// Reads on in the journal for a mirror that is behind what memory holds.
    fn read_for_stream(&mut self, link: LinkId) {
        let Some(stream) = self.streams.get_mut(&link) else {
            return;
        };
        if stream.reading {
            return;
        }
        let next = stream.next;
        let Some(mut cursor) = stream.cursor.take().or_else(|| self.log.cursor(next)) else {
            self.stream_overtaken(link, next);
            return;
        };
        match cursor.next_read(&self.log, self.frames.durable()) {
            Next::Read { offset, len } => {
                let stream = self.streams.get_mut(&link).expect("just seen");
                stream.cursor = Some(cursor);
                stream.reading = true;
                self.submit(
                    Pending::StreamRead { link },
                    DiskOp::Read {
                        file: File::Journal,
                        offset,
                        len,
                    },
                );
            }
            Next::CaughtUp => {}
            Next::Recycled => self.stream_overtaken(link, next),
        }
    }

    /// The journal no longer holds what the mirror needs next: it connects again, and gets a copy.
    fn stream_overtaken(&mut self, link: LinkId, next: Lsn) {
        let reason = format!(
            "the journal begins at LSN {} and no longer holds LSN {next}",
            self.log.first_lsn()
        );
        self.streams.remove(&link);
        self.send(
            link,
            Message::Bye {
                reason: reason.clone(),
            },
        );
        self.outputs.push(super::Output::CloseLink { link });
        self.event(Event::Closed(Link(link.0), reason));
    }

    pub(super) fn stream_read(&mut self, link: LinkId, result: DiskResult) {
        let Some(stream) = self.streams.get_mut(&link) else {
            return;
        };
        stream.reading = false;
        let Some(cursor) = stream.cursor.as_mut() else {
            return;
        };
        let problem = match result {
            DiskResult::Data(data) => match cursor.feed(data) {
                Ok(frames) => {
                    stream.read_frames.extend(frames);
                    None
                }
                Err(error) => {
                    // The next try would fail at the same place, and so on for ever: the mirror gets a copy instead.
                    self.log.unreadable_before(self.frames.sealed().next());
                    Some(format!(
                        "the journal cannot be read for the mirror, which needs a full copy now: {error}"
                    ))
                }
            },
            DiskResult::Failed { message, .. } => Some(message),
            other => Some(format!("the driver answered a read with {other:?}")),
        };
        match problem {
            None => self.pump(link),
            Some(text) => {
                self.log_line(crate::core::Severity::Error, text.clone());
                self.streams.remove(&link);
                self.outputs.push(super::Output::CloseLink { link });
                self.event(Event::Closed(Link(link.0), text));
            }
        }
    }

    /// Goes on with full copies.
    pub(super) fn pump_copies(&mut self) {
        let links: smallvec::SmallVec<[LinkId; 4]> = self
            .streams
            .iter()
            .filter(|(_, s)| s.copy.is_some())
            .map(|(link, _)| *link)
            .collect();
        for link in links {
            while self.begin_part(link) {}
            self.read_quiet_parts(link);
            self.end_copy(link);
        }
    }

    /// Takes the next range: from here on no operation on it is applied until its chunk is sent.
    fn begin_part(&mut self, link: LinkId) -> bool {
        let Some(stream) = self.streams.get_mut(&link) else {
            return false;
        };
        let has_room = stream.has_room();
        let Some(copy) = stream.copy.as_mut() else {
            return false;
        };
        if copy.parts.len() >= CHUNKS_READING || !has_room {
            return false;
        }
        let Some(volume) = self.volumes.get(copy.volume) else {
            return false;
        };
        if copy.offset >= volume.size {
            copy.volume += 1;
            copy.offset = 0;
            return true;
        }
        let range = ByteRange::new(copy.offset, CHUNK_BYTES.min(volume.size - copy.offset));
        copy.offset = range.end();
        let hold = self.store.hold(volume.id, range);
        copy.parts.push(Part {
            id: copy.next_part,
            volume: volume.id,
            range,
            hold,
            reading: false,
        });
        copy.next_part += 1;
        true
    }

    /// Reads the ranges whose applies have come to rest.
    fn read_quiet_parts(&mut self, link: LinkId) {
        let mut reads = Vec::new();
        if let Some(copy) = self.streams.get_mut(&link).and_then(|s| s.copy.as_mut()) {
            for part in copy.parts.iter_mut().filter(|p| !p.reading) {
                if self.store.quiet(part.volume, part.range) {
                    part.reading = true;
                    reads.push((part.id, part.volume, part.range));
                }
            }
        }
        for (part, volume, range) in reads {
            let op = DiskOp::Read {
                file: File::Home(volume),
                offset: range.offset,
                len: range.len,
            };
            self.submit(Pending::CopyRead { link, part }, op);
        }
    }

    /// A range as of the last closed frame: the home, with what is closed and not applied yet laid over it.
    pub(super) fn copy_read(&mut self, link: LinkId, part: u64, result: DiskResult) {
        let found = self
            .streams
            .get_mut(&link)
            .and_then(|s| s.copy.as_mut())
            .and_then(|copy| {
                let at = copy.parts.iter().position(|p| p.id == part)?;
                Some(copy.parts.swap_remove(at))
            });
        let Some(part) = found else { return };
        let DiskResult::Data(home) = result else {
            self.store.release(part.hold);
            let text = format!("the home cannot be read for the copy: {result:?}");
            self.log_line(crate::core::Severity::Error, text.clone());
            self.streams.remove(&link);
            self.outputs.push(super::Output::CloseLink { link });
            self.event(Event::Closed(Link(link.0), text));
            return;
        };
        let data = self.lay_over(home, part.volume, part.range);
        self.store.release(part.hold);
        let data = if is_zero(&data) { None } else { Some(data) };
        let crc = data.as_ref().map_or(0, |d| crc32fast::hash(d));
        if let Some(stream) = self.streams.get_mut(&link) {
            stream.queued_bytes += data.as_ref().map_or(64, |d| d.len() as u64);
            if let Some(copy) = stream.copy.as_mut() {
                copy.done_bytes += part.range.len;
            }
        }
        self.send(
            link,
            Message::Chunk {
                volume: part.volume,
                range: part.range,
                data,
                crc,
            },
        );
    }

    fn lay_over(&self, home: Bytes, volume: VolumeId, range: ByteRange) -> Bytes {
        let plan = self.store.read_plan(volume, range);
        #[cfg(test)]
        if sabotaged(Sabotage::CopyWithoutOverlay) {
            return home;
        }
        if plan.pieces.iter().all(|p| p.source == Source::Home) {
            return home;
        }
        let mut all = home.to_vec();
        for piece in plan.pieces {
            let Source::Overlay(lsn) = piece.source else {
                continue;
            };
            let from = (piece.range.offset - range.offset) as usize;
            let to = from + piece.range.len as usize;
            // What is in the open frame follows in the stream.
            match self.store.content(lsn, piece.range) {
                Some(Content::Data(data)) => all[from..to].copy_from_slice(&data),
                Some(Content::Zero { .. }) => all[from..to].fill(0),
                _ => {}
            }
        }
        Bytes::from(all)
    }

    fn end_copy(&mut self, link: LinkId) {
        let volumes = self.volumes.len();
        let sealed = self.frames.sealed();
        let Some(stream) = self.streams.get_mut(&link) else {
            return;
        };
        let done = stream
            .copy
            .as_ref()
            .is_some_and(|c| c.parts.is_empty() && c.volume >= volumes);
        if done {
            stream.copy = None;
            self.event(Event::CopySent(Link(link.0), sealed));
        }
    }
}
