//! The sending side of a link: frames from memory while the mirror is near, from the journal while it is not.

use std::collections::VecDeque;
use std::time::Duration;

use super::stats::Stage;
use super::walk::{Progress, Purpose, Walk};
use super::{DiskOp, DiskResult, File, Group, LinkId, Pending};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{ChunkSet, Lsn, Message, Start};
use crate::core::{Event, Link};
use crate::journal::{Cursor, Frame, Next};

/// Bytes handed to a link's socket and not sent yet, at most.
const QUEUE_BYTES: u64 = 8 << 20;

/// Content sent and not yet durable at the mirror, bytes at most: this bounds the mirror's memory, which holds it decompressed.
const WINDOW_BYTES: u64 = 32 << 20;

/// Bytes of chunks sent and not yet in the mirror's homes, at most: the same, where old content is to be kept before.
const CHUNKS_BYTES: u64 = 16 << 20;

/// Reads of the journal under way at once for a mirror that is behind: while one is sent, the next come from the disk.
const READS: usize = 4;

/// What is sent on one link.
pub(super) struct Stream {
    next: Lsn,
    end: Option<Lsn>,
    /// Handed to the socket, by its last report.
    pub queued_bytes: u64,
    /// Sent and not acknowledged as durable.
    unacked: VecDeque<Sent>,
    unacked_bytes: u64,
    cursor: Option<Cursor>,
    reads: Reads,
    read_frames: VecDeque<Frame>,
    /// Of chunks, sent and not in the mirror's homes.
    unplaced_bytes: u64,
    /// Chunks that are copied or verified beside the frames.
    pub walk: Option<Walk>,
    /// The mirror was told what is known of verifications.
    pub told_verified: bool,
    proposed: Option<Lsn>,
}

/// Reads of the journal, which may complete in any order.
#[derive(Default)]
struct Reads {
    /// The number of the oldest that is under way, and what has come of it and those after it.
    first: u64,
    came: VecDeque<Option<DiskResult>>,
}

impl Reads {
    fn begin(&mut self) -> u64 {
        self.came.push_back(None);
        self.first + self.came.len() as u64 - 1
    }

    /// Forgets what is under way.
    fn clear(&mut self) {
        self.first += self.came.len() as u64;
        self.came.clear();
    }

    fn came(&mut self, read: u64, result: DiskResult) {
        let at = read.checked_sub(self.first);
        if let Some(place) = at.and_then(|at| self.came.get_mut(at as usize)) {
            *place = Some(result);
        }
    }

    /// The next result in order, if it has come.
    fn next(&mut self) -> Option<DiskResult> {
        let result = self.came.front_mut()?.take()?;
        self.came.pop_front();
        self.first += 1;
        Some(result)
    }
}

struct Sent {
    last: Lsn,
    /// What the mirror holds of it, bytes.
    held: u64,
    at: Duration,
}

impl Stream {
    fn new(next: Lsn, end: Option<Lsn>) -> Stream {
        Stream {
            next,
            end,
            queued_bytes: 0,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            cursor: None,
            reads: Reads::default(),
            read_frames: VecDeque::new(),
            unplaced_bytes: 0,
            walk: None,
            told_verified: false,
            proposed: None,
        }
    }

    /// First LSN not sent yet: the journal keeps it.
    pub fn next(&self) -> Lsn {
        self.proposed.map_or(self.next, Lsn::next)
    }

    /// Progress of a copy.
    pub fn copy_progress(&self) -> Option<&Progress> {
        let walk = self.walk.as_ref()?;
        walk.verifying().is_none().then_some(&walk.progress)
    }

    /// The mirror agreed to what was proposed.
    pub fn has_started(&self) -> bool {
        self.proposed.is_none()
    }

    pub fn has_room(&self) -> bool {
        self.queued_bytes < QUEUE_BYTES && self.unacked_bytes < WINDOW_BYTES
    }

    /// The same for chunks.
    pub fn has_room_for_chunks(&self) -> bool {
        self.has_room() && self.unplaced_bytes < CHUNKS_BYTES
    }

    /// A chunk is sent.
    pub fn chunk_sent(&mut self, len: u64) {
        self.unplaced_bytes += len;
    }

    /// The mirror has so much of them in its homes.
    pub fn placed(&mut self, bytes: u64) -> Result<(), String> {
        match self.unplaced_bytes.checked_sub(bytes) {
            Some(left) => self.unplaced_bytes = left,
            None => {
                return Err(format!(
                    "{bytes} bytes of chunks are said to be in the homes, {} were under way",
                    self.unplaced_bytes
                ));
            }
        }
        Ok(())
    }
}

impl Group {
    pub(super) fn start_stream(&mut self, link: LinkId, from: Lsn, end: Option<Lsn>) {
        self.streams.insert(link, Stream::new(from, end));
        self.pump(link);
    }

    /// Proposes a copy of the chunks in which the mirror may differ. It is based on the last frame that is committed as a
    /// whole: what somebody still waits for goes through the mirror's journal, and its confirmation means what it says.
    /// Nor beyond what is applied: the volumes are told as they are by then, and what makes or grows one later is streamed.
    pub(super) fn propose_copy(&mut self, link: LinkId, shared: Lsn) {
        let applied = self.store.applied_lsn();
        let place = self.log.position(self.core.commit().min(applied));
        let base = place.next.prev();
        let facts = self.core.facts();
        let mut lineage = facts.lineage.clone();
        lineage.truncate_after(base);
        let start = Start::Copy {
            group_id: facts.group_id,
            base,
            chain: place.chain,
            lineage,
            volumes: self.volumes.clone(),
            ack: facts.ack,
            time_ns: self.frames.time_ns(),
        };
        let peer = self.core.peer_name(Link(link.0)).unwrap_or_default();
        let chunks = self.changes.lacking(&peer, shared);
        #[cfg(test)]
        if sabotaged(Sabotage::ClearDirtyByInference) {
            self.changes.empty(&peer);
        }
        let mut stream = Stream::new(base.next(), None);
        stream.proposed = Some(base);
        let announced = Message::Touched {
            chunks: chunks.clone(),
        };
        stream.walk = Some(Walk::new(Purpose::Copy, chunks, 0, 0));
        self.streams.insert(link, stream);
        self.send(link, announced);
        self.send(link, Message::Start(Box::new(start)));
    }

    /// Before a copy is proposed, the primary says what of it it knows. What the mirror adds makes the whole; from then on that
    /// is the mirror's to remember.
    pub(super) fn touched(&mut self, link: LinkId, mut chunks: ChunkSet) {
        let Some(stream) = self.streams.get_mut(&link) else {
            self.receive.announced = Some((link, chunks));
            return;
        };
        let (Some(base), Some(walk)) = (stream.proposed, stream.walk.as_mut()) else {
            return;
        };
        // A peer may name volumes that do not exist, again and again.
        chunks.clip(&self.volumes);
        walk.add(&chunks);
        if let Some(peer) = self.core.peer_name(Link(link.0)) {
            self.changes.lacks_nothing_after(&peer, base);
            self.state.request_write();
        }
    }

    pub(super) fn start_copy(&mut self, link: LinkId) {
        let now = self.now.mono;
        if let Some(stream) = self.streams.get_mut(&link) {
            stream.proposed = None;
            if let Some(walk) = stream.walk.as_mut() {
                walk.progress.began = now;
                walk.progress.total_bytes = walk.chunks().bytes(&self.volumes);
                let text = format!(
                    "copying to {}: {} KiB of the volumes may differ and are compared first",
                    self.core.peer_name(Link(link.0)).unwrap_or_default(),
                    walk.progress.total_bytes.div_ceil(1 << 10)
                );
                self.log_line(crate::core::Severity::Info, text);
            }
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
            stream.unacked_bytes -= sent.held;
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
            if stream.proposed.is_some() {
                return;
            }
            if !stream.has_room() {
                self.core.tell_commit();
                return;
            }
            let end = stream.end.unwrap_or(sealed);
            if stream.next > end {
                if stream.end.is_some() {
                    // All of it is sent; it keeps nothing of the journal any more.
                    self.streams.remove(&link);
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
                    stream.reads.clear();
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
        let held = frame.content_len().max(len);
        stream.unacked_bytes += held;
        stream.unacked.push_back(Sent {
            last: frame.last_lsn(),
            held,
            at: now,
        });
        self.stats.totals.link_bytes += len;
        self.core.sent(Link(link.0), frame.last_lsn(), now);
        self.send(link, Message::Frame(frame.bytes().clone()));
    }

    /// Reads on in the journal for a mirror that is behind what memory holds.
    fn read_for_stream(&mut self, link: LinkId) {
        let Some(stream) = self.streams.get_mut(&link) else {
            return;
        };
        let next = stream.next;
        if next > self.log.tail() {
            // A frame of a large request that waits for a write slot or for space.
            return;
        }
        if stream.cursor.is_none() {
            stream.cursor = self.log.cursor(next);
        }
        let mut wanted = Vec::new();
        let mut overtaken = stream.cursor.is_none();
        if let Some(cursor) = &mut stream.cursor {
            while stream.reads.came.len() < READS {
                match cursor.next_read(&self.log, self.frames.durable()) {
                    Next::Read { offset, len } => {
                        wanted.push((stream.reads.begin(), offset, len));
                    }
                    Next::CaughtUp => break,
                    Next::Recycled => {
                        overtaken = true;
                        break;
                    }
                }
            }
        }
        if overtaken {
            self.stream_overtaken(link, next);
            return;
        }
        for (read, offset, len) in wanted {
            self.submit(
                Pending::StreamRead { link, read },
                DiskOp::Read {
                    file: File::Journal,
                    offset,
                    len,
                    medium: false,
                },
            );
        }
    }

    /// The journal no longer holds what the mirror needs next: it connects again, and gets a copy.
    fn stream_overtaken(&mut self, link: LinkId, next: Lsn) {
        let reason = format!(
            "the journal begins at LSN {} and no longer holds LSN {next}",
            self.log.first_lsn()
        );
        self.drop_stream(link);
        self.send(
            link,
            Message::Bye {
                reason: reason.clone(),
            },
        );
        self.outputs.push(super::Output::CloseLink { link });
        self.event(Event::Closed(Link(link.0), reason));
    }

    pub(super) fn stream_read(&mut self, link: LinkId, read: u64, result: DiskResult) {
        let Some(stream) = self.streams.get_mut(&link) else {
            return;
        };
        stream.reads.came(read, result);
        let mut problem = None;
        while let Some(result) = stream.reads.next() {
            let cursor = stream.cursor.as_mut().expect("it asked for the read");
            problem = match result {
                DiskResult::Data(data) => match cursor.feed(data) {
                    Ok(frames) => {
                        stream.read_frames.extend(frames);
                        continue;
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
            break;
        }
        match problem {
            None => self.pump(link),
            Some(text) => {
                self.log_line(crate::core::Severity::Error, text.clone());
                self.drop_stream(link);
                self.outputs.push(super::Output::CloseLink { link });
                self.event(Event::Closed(Link(link.0), text));
            }
        }
    }
}
