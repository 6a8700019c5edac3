//! Clients' requests: admission of writes, planning and assembly of reads, replies.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use smallvec::SmallVec;

use super::stats::Stage;
use super::{ClientId, DiskOp, DiskResult, File, Group, Output, Pending};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{ByteRange, MAX_DATALESS_OP, MAX_WRITE_OP, Op, OpKind, VolumeId};
use crate::core::{Strength, Token};
use crate::journal::is_zero;
use crate::nbd::{Command, Errno, Extent, Piece, Reply, ReplyBody, ReplyTo, Request};
use crate::store::Source;

/// Extents in one block status answer at most.
const EXTENTS: usize = 1024;

/// The clients of a group and what they wait for.
#[derive(Default)]
pub(super) struct Clients {
    attached: BTreeMap<ClientId, VolumeId>,
    waiting: Slab<Waiting>,
    /// Mutating requests that cannot be admitted yet, in order of arrival.
    stalled: VecDeque<Mutation>,
    reads: Slab<Read>,
    /// Reads that touch an operation of the open frame: planned again once it closed.
    unplanned: Vec<(ClientId, Request, Duration)>,
    /// When the last write was admitted.
    last_write: Option<Duration>,
}

/// After so long without a write a copy does not give way any more.
const MOMENT: Duration = Duration::from_millis(100);

/// A mutating request. A large one enters the journal operation by operation, as there is room: what has an LSN must find its
/// place in the journal whether the mirrors answer or not, for what opens an epoch without them comes behind it.
struct Mutation {
    client: ClientId,
    request: Request,
    since: Duration,
    /// So many bytes of it have LSNs.
    entered: u64,
}

/// A reply that waits for its LSN.
struct Waiting {
    client: ClientId,
    to: ReplyTo,
    since: Duration,
    kind: Kind,
}

enum Kind {
    Write { bytes: u64 },
    Flush,
    Read { read: usize },
}

/// A read whose pieces are being gathered.
struct Read {
    client: ClientId,
    to: ReplyTo,
    since: Duration,
    volume: VolumeId,
    range: ByteRange,
    /// Per piece of the plan, in order.
    slots: SmallVec<[Slot; 4]>,
    /// Disk requests under way.
    pending: usize,
    /// The commit LSN has not reached what it touches.
    held: bool,
    failed: Option<String>,
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read { holes: bool },
    Status { one: bool },
    Prefetch,
}

struct Slot {
    range: ByteRange,
    pieces: SmallVec<[Piece; 2]>,
    extents: SmallVec<[Extent; 2]>,
    /// Offsets of the home parts whose content is being read, with their place in `pieces`.
    reading: SmallVec<[usize; 2]>,
}

impl Clients {
    pub fn attached(&self) -> &BTreeMap<ClientId, VolumeId> {
        &self.attached
    }

    /// Requests received and not answered.
    pub fn in_flight(&self) -> u64 {
        (self.waiting.len() + self.stalled.len() + self.reads.len() + self.unplanned.len()) as u64
    }

    /// They have written within the last moment.
    pub fn write(&self, now: Duration) -> bool {
        self.last_write.is_some_and(|at| now < at + MOMENT)
    }

    /// Some requests wait to be admitted.
    pub fn are_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// The site stops: what is not admitted yet will not be, and nobody waits for it.
    pub fn stop(&mut self) {
        self.stalled.clear();
    }

    /// Nothing is owed to anybody.
    pub fn idle(&self) -> bool {
        self.in_flight() == 0
    }

    pub fn closed(&mut self, client: ClientId) {
        #[cfg(test)]
        if sabotaged(Sabotage::AdmitForTheDead) {
            return;
        }
        self.attached.remove(&client);
        // What was not admitted yet is forgotten: it was not acknowledged, and a request of a dead connection must not
        // come after what the client does on its next one.
        self.stalled.retain(|m| m.client != client);
        self.unplanned.retain(|(c, ..)| *c != client);
    }
}

impl Group {
    pub(super) fn client_opened(&mut self, client: ClientId, volume: VolumeId) {
        let known = self.volumes.iter().any(|v| v.id == volume);
        if !known || !self.core.serving() {
            self.outputs.push(Output::CloseClient { client });
            return;
        }
        self.clients.attached.insert(client, volume);
    }

    pub(super) fn close_clients(&mut self) {
        self.resize_abandoned();
        self.clients.stalled.clear();
        self.clients.unplanned.clear();
        // What has an LSN keeps it, also if nobody is told.
        self.seal_for_more();
        let waiting: Vec<Waiting> = self.clients.waiting.drain().collect();
        for client in std::mem::take(&mut self.clients.attached).into_keys() {
            self.outputs.push(Output::CloseClient { client });
        }
        // Reads that were held for an acknowledgement end as soon as their disk requests have.
        for held in waiting {
            if let Kind::Read { read } = held.kind {
                self.clients.reads[read].held = false;
                self.finish_read_if_ready(read);
            }
        }
    }

    pub(super) fn request(&mut self, client: ClientId, request: Request) {
        let Some(&volume) = self.clients.attached.get(&client) else {
            return;
        };
        if self.stopping.is_some() {
            // It would keep the site from stopping. Its connection is about to end, and the client asks again elsewhere.
            return;
        }
        let since = self.now.mono;
        match request.command {
            Command::Read { .. } | Command::BlockStatus { .. } | Command::Cache { .. } => {
                self.plan_read(client, volume, request, since);
            }
            Command::Flush => self.flush(client, request.reply_to, since),
            _ => {
                let mutation = Mutation {
                    client,
                    request,
                    since,
                    entered: 0,
                };
                let waits = if self.clients.stalled.is_empty() {
                    self.admit(volume, mutation)
                } else {
                    Some(mutation)
                };
                self.clients.stalled.extend(waits);
            }
        }
    }

    /// Tries again what had to wait.
    pub(super) fn resume_stalled(&mut self) {
        while let Some(mutation) = self.clients.stalled.pop_front() {
            let Some(&volume) = self.clients.attached.get(&mutation.client) else {
                continue;
            };
            let Some(waits) = self.admit(volume, mutation) else {
                continue;
            };
            self.clients.stalled.push_front(waits);
            // A frame that closes makes room for the next.
            let sealed = self.frames.sealed();
            self.close_frames();
            if self.frames.sealed() == sealed {
                return;
            }
        }
    }

    fn flush(&mut self, client: ClientId, to: ReplyTo, since: Duration) {
        let waiting = Waiting {
            client,
            to,
            since,
            kind: Kind::Flush,
        };
        let token = Token(self.clients.waiting.insert(waiting) as u64);
        self.core
            .reply_when(self.core.tail(), Strength::Durable, token);
        self.carry_out();
    }

    /// Gives a mutating request its LSNs, or gives it back if some of it has to wait.
    fn admit(&mut self, volume: VolumeId, mut mutation: Mutation) -> Option<Mutation> {
        let (client, to) = (mutation.client, mutation.request.reply_to);
        let (range, fua, data) = match &mutation.request.command {
            Command::Write { offset, data, fua } => {
                (ByteRange::new(*offset, data.len() as u64), *fua, Some(data))
            }
            Command::Trim { range, fua } | Command::WriteZeroes { range, fua, .. } => {
                (*range, *fua, None)
            }
            _ => unreachable!("only mutating requests are admitted"),
        };
        if range.len == 0 {
            self.done(client, to);
            return None;
        }
        if !self.has_budget_for_requests() {
            return Some(mutation);
        }
        // What is punched needs no room. All of the rest is promised room before anything happens.
        let asks = mutation.entered == 0
            && matches!(
                mutation.request.command,
                Command::Write { .. } | Command::WriteZeroes { no_hole: true, .. }
            );
        if asks && !self.space_for(range) {
            self.note_no_space(range.len);
            self.error(
                client,
                to,
                Errno::NoSpc,
                format!(
                    "no space left for the homes on {}",
                    self.full_sites().join(" and ")
                ),
            );
            return None;
        }
        let step = if data.is_some() {
            MAX_WRITE_OP
        } else {
            MAX_DATALESS_OP
        };
        while mutation.entered < range.len {
            let part = ByteRange::new(
                range.offset + mutation.entered,
                step.min(range.len - mutation.entered),
            );
            let payload = data.map_or_else(Bytes::new, |d| {
                let from = mutation.entered as usize;
                d.slice(from..from + part.len as usize)
            });
            let (kind, payload) = match mutation.request.command {
                Command::Trim { .. } => (OpKind::Trim, Bytes::new()),
                Command::WriteZeroes { no_hole, .. } => {
                    (OpKind::WriteZeroes { no_hole }, Bytes::new())
                }
                _ if is_zero(&payload) => (OpKind::WriteZeroes { no_hole: false }, Bytes::new()),
                _ => (OpKind::Write, payload),
            };
            if !self.has_budget_for_requests() || !self.frame_has_room(payload.len()) {
                return Some(mutation);
            }
            self.marks.wrote(self.frames.time_after(self.now.wall_ns));
            self.clients.last_write = Some(self.now.mono);
            let lsn = self.core.assign(1);
            let op = Op {
                kind,
                volume,
                range: part,
                fua,
            };
            self.enter(lsn, &op, &payload);
            mutation.entered += part.len;
        }
        let bytes = data.map_or(0, |d| d.len() as u64);
        let strength = if fua {
            Strength::Durable
        } else {
            Strength::Commit
        };
        let token = Token(self.clients.waiting.insert(Waiting {
            client,
            to,
            since: mutation.since,
            kind: Kind::Write { bytes },
        }) as u64);
        self.core.reply_when(self.core.tail(), strength, token);
        None
    }

    /// Whether an operation on a volume's content may get an LSN now, as far as that does not depend on the operation.
    pub(super) fn has_budget_for_requests(&self) -> bool {
        self.core.admitting()
            && self.homes_have_budget()
            && (!self.core.throttled() || self.frames.idle())
    }

    /// A reply's LSN has met its rule.
    pub(super) fn reply_token(&mut self, token: Token) {
        let waiting = self.clients.waiting.remove(token.0 as usize);
        match waiting.kind {
            Kind::Write { bytes } => {
                self.stats.totals.writes += 1;
                self.stats.totals.write_bytes += bytes;
                self.stats
                    .record(Stage::Write, self.now.mono.saturating_sub(waiting.since));
            }
            Kind::Flush => self.stats.totals.flushes += 1,
            Kind::Read { .. } => unreachable!("reads are released, not replied to"),
        }
        self.done(waiting.client, waiting.to);
    }

    fn done(&mut self, client: ClientId, to: ReplyTo) {
        self.reply(client, to, ReplyBody::Done);
    }

    fn reply(&mut self, client: ClientId, to: ReplyTo, body: ReplyBody) {
        if self.clients.attached.contains_key(&client) {
            self.outputs.push(Output::Reply {
                client,
                reply: Reply { reply_to: to, body },
            });
        }
    }

    fn error(&mut self, client: ClientId, to: ReplyTo, errno: Errno, message: String) {
        self.stats.totals.errors += 1;
        self.reply(client, to, ReplyBody::Error { errno, message });
    }

    /// Reads that touched the open frame, now that it may have closed.
    pub(super) fn retry_reads(&mut self) {
        for (client, request, since) in std::mem::take(&mut self.clients.unplanned) {
            if let Some(&volume) = self.clients.attached.get(&client) {
                self.plan_read(client, volume, request, since);
            }
        }
    }

    /// Captures what the overlay has, asks the home for the rest, and holds the reply until what it touches is
    /// committed. The home only ever holds committed operations, so that what comes from it needs no holding.
    fn plan_read(&mut self, client: ClientId, volume: VolumeId, request: Request, since: Duration) {
        let (range, purpose) = match request.command {
            Command::Read { range, holes } => (range, Purpose::Read { holes }),
            Command::BlockStatus { range, one } => (range, Purpose::Status { one }),
            Command::Cache { range } => {
                let most = range.len.min(u64::from(crate::nbd::MAX_PAYLOAD));
                (ByteRange::new(range.offset, most), Purpose::Prefetch)
            }
            _ => unreachable!("only reads are planned"),
        };
        if range.len == 0 {
            let body = self.read_body(range, purpose, since, Vec::new(), Vec::new());
            self.reply(client, request.reply_to, body);
            return;
        }
        let plan = self.store.read_plan(volume, range);
        #[cfg(test)]
        let plan = if sabotaged(Sabotage::ReadWithoutOverlay) {
            crate::store::Store::new(crate::base::Lsn::ZERO).read_plan(volume, range)
        } else {
            plan
        };
        if plan.newest.is_some_and(|lsn| lsn > self.frames.sealed()) {
            self.clients.unplanned.push((client, request, since));
            return;
        }
        let held = plan.newest.is_some_and(|lsn| lsn > self.core.commit());
        #[cfg(test)]
        let held = held && !sabotaged(Sabotage::ReadUncommitted);
        let read = Read {
            client,
            to: request.reply_to,
            since,
            volume,
            range,
            slots: SmallVec::new(),
            pending: 0,
            held,
            failed: None,
            purpose,
        };
        let read = self.clients.reads.insert(read);
        for piece in plan.pieces {
            self.plan_piece(read, volume, piece.range, piece.source, purpose);
        }
        if held {
            let waiting = Waiting {
                client,
                to: request.reply_to,
                since,
                kind: Kind::Read { read },
            };
            let token = Token(self.clients.waiting.insert(waiting) as u64);
            self.core
                .read_when(plan.newest.expect("held for it"), token);
            self.carry_out();
        }
        self.finish_read_if_ready(read);
    }

    fn plan_piece(
        &mut self,
        read: usize,
        volume: VolumeId,
        range: ByteRange,
        source: Source,
        purpose: Purpose,
    ) {
        let mut slot = Slot {
            range,
            pieces: SmallVec::new(),
            extents: SmallVec::new(),
            reading: SmallVec::new(),
        };
        let file = File::Home(volume);
        let at = self.clients.reads[read].slots.len();
        let request = match source {
            Source::Overlay(lsn) => {
                match self.store.content(lsn, range) {
                    Some(crate::store::Content::Data(data)) => {
                        slot.extents.push(Extent {
                            len: range.len,
                            hole: false,
                            zero: false,
                        });
                        slot.pieces.push(Piece::Data(data));
                    }
                    Some(crate::store::Content::Zero { keep }) => {
                        slot.extents.push(Extent {
                            len: range.len,
                            hole: !keep,
                            zero: true,
                        });
                        slot.pieces.push(Piece::Hole(range.len));
                    }
                    _ => unreachable!("a planned piece has content: its frame is closed"),
                }
                None
            }
            Source::Home => match purpose {
                Purpose::Read { holes: true } => {
                    let limit = EXTENTS;
                    Some((
                        Pending::ReadExtents { read, slot: at },
                        DiskOp::Extents { file, range, limit },
                    ))
                }
                Purpose::Status { one } => {
                    let limit = if one { 1 } else { EXTENTS };
                    Some((
                        Pending::ReadExtents { read, slot: at },
                        DiskOp::Extents { file, range, limit },
                    ))
                }
                Purpose::Read { holes: false } | Purpose::Prefetch => {
                    slot.reading.push(0);
                    slot.pieces.push(Piece::Hole(range.len));
                    let op = DiskOp::Read {
                        file,
                        offset: range.offset,
                        len: range.len,
                        medium: false,
                    };
                    Some((
                        Pending::ReadPiece {
                            read,
                            slot: at << 16,
                        },
                        op,
                    ))
                }
            },
        };
        self.clients.reads[read].slots.push(slot);
        if let Some((pending, op)) = request {
            self.clients.reads[read].pending += 1;
            self.submit(pending, op);
        }
    }

    /// Where the home has content: read that; holes need no reading.
    pub(super) fn extents_read(&mut self, read: usize, slot: usize, result: DiskResult) {
        let file = File::Home(self.clients.reads[read].volume);
        let state = &mut self.clients.reads[read];
        state.pending -= 1;
        let mut reads: SmallVec<[(usize, ByteRange); 4]> = SmallVec::new();
        match result {
            DiskResult::Extents(extents) => {
                let slot = &mut state.slots[slot];
                let mut offset = slot.range.offset;
                for (len, allocated) in extents {
                    let len = len.min(slot.range.end() - offset);
                    slot.extents.push(Extent {
                        len,
                        hole: !allocated,
                        zero: !allocated,
                    });
                    if let Purpose::Read { .. } = state.purpose {
                        if allocated {
                            reads.push((slot.pieces.len(), ByteRange::new(offset, len)));
                        }
                        slot.pieces.push(Piece::Hole(len));
                    }
                    offset += len;
                }
                let rest = slot.range.end() - offset;
                if rest > 0 && matches!(state.purpose, Purpose::Read { .. }) {
                    reads.push((slot.pieces.len(), ByteRange::new(offset, rest)));
                    slot.pieces.push(Piece::Hole(rest));
                }
            }
            DiskResult::Failed { message, .. } => state.failed = Some(message),
            other => {
                state.failed = Some(format!(
                    "the driver answered a question for extents with {other:?}"
                ));
            }
        }
        for (place, range) in reads {
            self.clients.reads[read].pending += 1;
            let op = DiskOp::Read {
                file,
                offset: range.offset,
                len: range.len,
                medium: false,
            };
            self.submit(
                Pending::ReadPiece {
                    read,
                    slot: slot << 16 | place,
                },
                op,
            );
        }
        self.finish_read_if_ready(read);
    }

    /// Content from the home. `slot` carries the slot and the place within it.
    pub(super) fn piece_read(&mut self, read: usize, slot: usize, result: DiskResult) {
        let state = &mut self.clients.reads[read];
        state.pending -= 1;
        match result {
            DiskResult::Data(data) => {
                state.slots[slot >> 16].pieces[slot & 0xffff] = Piece::Data(data);
            }
            DiskResult::Failed { message, .. } => state.failed = Some(message),
            other => state.failed = Some(format!("the driver answered a read with {other:?}")),
        }
        self.finish_read_if_ready(read);
    }

    /// What a held read touches is committed.
    pub(super) fn release_read(&mut self, token: Token) {
        let waiting = self.clients.waiting.remove(token.0 as usize);
        let Kind::Read { read } = waiting.kind else {
            unreachable!("only reads are released")
        };
        self.clients.reads[read].held = false;
        self.finish_read_if_ready(read);
    }

    fn finish_read_if_ready(&mut self, read: usize) {
        let state = &self.clients.reads[read];
        if state.pending > 0 || state.held {
            return;
        }
        let state = self.clients.reads.remove(read);
        if let Some(message) = state.failed {
            self.error(state.client, state.to, Errno::Io, message);
            return;
        }
        let mut pieces = Vec::new();
        let mut extents = Vec::new();
        for slot in state.slots {
            pieces.extend(slot.pieces);
            // A slot whose extents were cut short ends the answer.
            let covered: u64 = slot.extents.iter().map(|e| e.len).sum();
            extents.extend(slot.extents);
            if covered < slot.range.len && matches!(state.purpose, Purpose::Status { .. }) {
                break;
            }
        }
        let body = self.read_body(state.range, state.purpose, state.since, pieces, extents);
        self.reply(state.client, state.to, body);
    }

    /// What a read that is complete says.
    fn read_body(
        &mut self,
        range: ByteRange,
        purpose: Purpose,
        since: Duration,
        pieces: Vec<Piece>,
        extents: Vec<Extent>,
    ) -> ReplyBody {
        match purpose {
            Purpose::Prefetch => ReplyBody::Done,
            Purpose::Read { .. } => {
                self.stats.totals.reads += 1;
                self.stats.totals.read_bytes += range.len;
                self.stats
                    .record(Stage::Read, self.now.mono.saturating_sub(since));
                ReplyBody::Data {
                    offset: range.offset,
                    pieces,
                }
            }
            Purpose::Status { one } => {
                let mut merged = merge(extents);
                merged.truncate(if one { 1 } else { EXTENTS });
                ReplyBody::Status {
                    offset: range.offset,
                    extents: merged,
                }
            }
        }
    }
}

/// Joins neighbours of the same kind.
fn merge(extents: Vec<Extent>) -> Vec<Extent> {
    let mut merged: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match merged.last_mut() {
            Some(last) if last.hole == extent.hole && last.zero == extent.zero => {
                last.len += extent.len;
            }
            _ => merged.push(extent),
        }
    }
    merged
}
