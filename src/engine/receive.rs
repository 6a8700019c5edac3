//! The receiving side of a link: frames into journal and overlay, chunks of a full copy into the homes.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::blocks::ChunkRead;
use super::questions::Question;
use super::{DiskOp, File, Group, LinkId, Pending};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{
    ByteRange, ChunkSet, Lsn, Message, Op, OpKind, Refusal, Role, VolumeId, VolumeSpec,
};
use crate::core::{Event, FrameInfo, Link};
use crate::journal::{self, Frame};
use crate::store::{Content, HoldId};

/// The primary is told of chunks in the homes once it is so much of them, or all.
const PLACED_BYTES: u64 = 2 << 20;

/// Chunks that arrived and are not in the homes yet.
#[derive(Default)]
pub(super) struct Receive {
    waiting: VecDeque<Chunk>,
    writing: Vec<Writing>,
    /// Homes with chunks that were written and may not be on stable storage.
    unsynced: BTreeMap<VolumeId, u64>,
    written: u64,
    /// Of chunks that came on this link, in the homes and not yet told.
    placed: Option<(LinkId, u64)>,
    /// What the core allows the homes to hold.
    allowed: Lsn,
    ended: bool,
    /// Homes still to be created before a reset is put on record, and other requests to be done.
    homes_missing: usize,
    /// What is to be created once the homes of volumes that are gone are put aside.
    making: Option<Vec<VolumeSpec>>,
    /// That is under way.
    put_aside: bool,
    /// What a primary knows of that is to be copied, said on this link before it proposes that.
    pub announced: Option<(LinkId, ChunkSet)>,
    /// Chunks of a copy that count as confirmed when they are in the homes, and the journal is durable up to this LSN.
    confirming: VecDeque<(Lsn, ChunkSet)>,
    /// Those of which that is true, until the homes are synced.
    confirmed: ChunkSet,
    /// Chunks that the copy on this link is still to ask about or to bring.
    awaited: Option<(LinkId, ChunkSet)>,
}

/// A copy begins.
pub(super) struct Reset {
    /// The primary that copies.
    pub from: String,
    /// Both sites have the history up to here.
    pub shared: Lsn,
    /// An earlier copy was cut off.
    pub interrupted: bool,
    /// The disk lost history.
    pub lost: bool,
    /// Where the new history begins (exclusive).
    pub base: Lsn,
    /// Checksum of the frame that ends there.
    pub chain: u32,
    /// The primary's frame clock, no earlier than that frame.
    pub time_ns: u64,
    /// The volumes.
    pub volumes: Vec<VolumeSpec>,
}

struct Chunk {
    link: LinkId,
    volume: VolumeId,
    range: ByteRange,
    data: Option<Bytes>,
    place: Place,
}

/// A chunk on its way into a home.
struct Writing {
    hold: HoldId,
    link: LinkId,
    volume: VolumeId,
    range: ByteRange,
}

/// When a chunk may be written.
#[derive(Clone, Copy)]
enum Place {
    /// Once no apply is touching its range, which is held.
    Held(HoldId),
    /// Of a repair, and with it everything up to this LSN: once all of that is committed and durable here. A home that is a
    /// prefix of the history stays one. Nothing later is applied before.
    AsOf(Lsn),
}

impl Receive {
    /// A reset is not complete: nothing may be recorded that names homes which do not exist.
    pub fn resetting(&self) -> bool {
        self.homes_missing > 0
    }

    /// A copy came to its end, and all of it was written.
    pub fn chunks_done(&self) -> bool {
        #[cfg(test)]
        if sabotaged(Sabotage::CopyEndsEarly) {
            return self.ended;
        }
        self.ended && self.waiting.is_empty() && self.writing.is_empty()
    }

    /// Moves on what is confirmed and by now in homes and journal.
    pub fn consider_confirmed(&mut self, durable: Lsn) {
        while let Some((lsn, chunks)) = self.confirming.front() {
            let under_way = |volume: VolumeId, range: ByteRange| chunks.holds(volume, range.offset);
            let quiet = !self.waiting.iter().any(|c| under_way(c.volume, c.range))
                && !self.writing.iter().any(|w| under_way(w.volume, w.range));
            if *lsn > durable || !quiet {
                return;
            }
            let (_, chunks) = self.confirming.pop_front().expect("just seen");
            self.confirmed.union(&chunks);
        }
    }

    /// A copy asks about this range, or brings it: from here on its home has to follow the stream.
    fn no_longer_awaited(&mut self, volume: VolumeId, range: ByteRange, volumes: &[VolumeSpec]) {
        if let Some((_, awaited)) = &mut self.awaited {
            let mut chunks = ChunkSet::new();
            chunks.insert(volume, range);
            awaited.subtract(&chunks, volumes);
        }
    }

    /// Chunks of a copy that can be taken off the record once the homes are synced.
    pub fn confirmed(&self) -> &ChunkSet {
        &self.confirmed
    }

    /// The same, for who begins to sync.
    pub fn take_confirmed(&mut self) -> ChunkSet {
        std::mem::take(&mut self.confirmed)
    }

    /// Nothing after this LSN may be applied before the repairs that came are written.
    fn cap(&self) -> Lsn {
        let as_of = |chunk: &Chunk| match chunk.place {
            Place::AsOf(lsn) => Some(lsn),
            Place::Held(_) => None,
        };
        let all = self.waiting.iter().filter_map(as_of);
        all.min().unwrap_or(Lsn(u64::MAX))
    }

    /// No chunk is on its way into a home.
    pub fn idle(&self) -> bool {
        self.waiting.is_empty() && self.writing.is_empty()
    }

    /// Forgets all, once this many requests to homes are done.
    pub fn clear(&mut self, under_way: usize) {
        *self = Receive {
            homes_missing: under_way,
            ..Receive::default()
        };
    }

    /// The last chunk that was written to this home, if it may not be on stable storage.
    pub fn unsynced(&self, volume: VolumeId) -> Option<u64> {
        self.unsynced.get(&volume).copied()
    }

    /// Everything up to this chunk is on stable storage.
    pub fn synced(&mut self, volume: VolumeId, chunk: u64) {
        if self
            .unsynced
            .get(&volume)
            .is_some_and(|last| *last <= chunk)
        {
            self.unsynced.remove(&volume);
        }
    }

    /// No chunk is on its way into this range of a home.
    pub fn quiet(&self, volume: VolumeId, range: ByteRange) -> bool {
        let meets = |v: VolumeId, r: ByteRange| v == volume && r.overlaps(range);
        !self.waiting.iter().any(|c| meets(c.volume, c.range))
            && !self.writing.iter().any(|w| meets(w.volume, w.range))
    }
}

impl Group {
    pub(super) fn message(&mut self, link: LinkId, message: Message) {
        match message {
            Message::Frame(bytes) => {
                self.event(Event::Heard(Link(link.0)));
                if let Err(text) = self.frame_arrived(link, bytes) {
                    self.link_fault(link, &text);
                }
            }
            Message::Chunk {
                volume,
                range,
                data,
                ..
            } => {
                self.event(Event::Heard(Link(link.0)));
                if let Err(text) = self.chunk_arrived(link, volume, range, data) {
                    self.link_fault(link, &text);
                }
            }
            Message::ChunksEnd { .. } => {
                self.receive.ended = true;
                self.receive.awaited = None;
                self.event(Event::Message(Link(link.0), message));
                self.check_copy_end();
            }
            Message::Touched { chunks } => {
                self.event(Event::Heard(Link(link.0)));
                self.touched(link, chunks);
            }
            Message::Confirmed { chunks } => {
                self.event(Event::Heard(Link(link.0)));
                if self.core.follows(Link(link.0)) && self.core.facts().inconsistent_until.is_some()
                {
                    #[cfg(test)]
                    if sabotaged(Sabotage::ConfirmBeforeSync) {
                        self.changes.confirm_own(&chunks, &self.volumes);
                        self.state.request_write();
                        return;
                    }
                    let sealed = self.frames.sealed();
                    self.receive.confirming.push_back((sealed, chunks));
                }
            }
            Message::Placed { bytes } => {
                self.event(Event::Heard(Link(link.0)));
                let placed = self.streams.get_mut(&link).map(|s| s.placed(bytes));
                if let Some(Err(text)) = placed {
                    self.link_fault(link, &text);
                }
            }
            Message::Compare {
                volume,
                range,
                lsn,
                medium,
                content,
            } => {
                self.event(Event::Heard(Link(link.0)));
                let question = Question {
                    link,
                    volume,
                    range,
                    lsn,
                    medium,
                    content,
                };
                let asked = if self.core.follows(Link(link.0)) {
                    let asked = range;
                    #[cfg(test)]
                    let asked = nothing_of(asked, Sabotage::AwaitWhatWasAsked);
                    self.receive.no_longer_awaited(volume, asked, &self.volumes);
                    self.asked_to_compare(question)
                } else {
                    Err("a question about a chunk on a link that is not streaming".into())
                };
                if let Err(text) = asked {
                    self.link_fault(link, &text);
                }
            }
            Message::CanGrow { volume, size } => {
                self.event(Event::Heard(Link(link.0)));
                self.asked_to_grow(link, volume, size);
            }
            Message::MayGrow {
                volume,
                size,
                refusal,
            } => {
                self.event(Event::Heard(Link(link.0)));
                self.may_grow(link, volume, size, &refusal);
            }
            Message::Compared {
                volume,
                range,
                hash,
            } => {
                self.event(Event::Heard(Link(link.0)));
                if let Err(text) = self.compared(link, volume, range, hash) {
                    self.link_fault(link, &text);
                }
            }
            Message::Content {
                volume,
                range,
                data,
                unreadable,
                ..
            } => {
                self.event(Event::Heard(Link(link.0)));
                let read = ChunkRead {
                    data: data.unwrap_or_else(|| vec![0; range.len as usize].into()),
                    unreadable,
                };
                if let Err(text) = self.content_came(link, volume, range, read) {
                    self.link_fault(link, &text);
                }
            }
            Message::Verified(verified) => {
                self.event(Event::Heard(Link(link.0)));
                if self.core.follows(Link(link.0)) {
                    self.verified = *verified;
                    self.state.request_verified();
                }
            }
            Message::Ack { durable, .. } => {
                self.stream_acked(link, durable);
                self.event(Event::Message(Link(link.0), message));
            }
            other => self.event(Event::Message(Link(link.0), other)),
        }
    }

    /// The peer sent what it must not: drop the link, saying why.
    pub(super) fn link_fault(&mut self, link: LinkId, text: &str) {
        let reason = text.to_owned();
        self.end_link(link, Message::Bye { reason }, text);
    }

    fn end_link(&mut self, link: LinkId, last: Message, text: &str) {
        self.drop_stream(link);
        self.send(link, last);
        self.outputs.push(super::Output::CloseLink { link });
        self.event(Event::Closed(Link(link.0), text.to_owned()));
    }

    fn frame_arrived(&mut self, link: LinkId, bytes: Bytes) -> Result<(), String> {
        let frame = Frame::parse(bytes).map_err(|e| format!("a bad frame: {e}"))?;
        frame
            .verify_payloads()
            .map_err(|e| format!("a bad frame: {e}"))?;
        let follows = frame.prev() == self.frames.chain();
        #[cfg(test)]
        let follows = follows || sabotaged(Sabotage::SkipChecksumChain);
        if !follows {
            return Err(format!(
                "the frame at LSN {} follows a frame with checksum {:#010x}, the one here has {:#010x}: the histories \
                 differ before it",
                frame.first_lsn(),
                frame.prev(),
                self.frames.chain()
            ));
        }
        let mut contents = Vec::with_capacity(frame.count() as usize);
        let mut opens = None;
        for (lsn, op, payload) in frame.ops() {
            let content = payload.content().map_err(|e| format!("a bad frame: {e}"))?;
            if op.kind == OpKind::OpenEpoch {
                opens =
                    Some(journal::decode_epoch(&content).map_err(|e| format!("a bad epoch: {e}"))?);
            }
            contents.push((lsn, op, Content::of(&op, content)));
        }
        let info = FrameInfo {
            first: frame.first_lsn(),
            last: frame.last_lsn(),
            commit: frame.commit_lsn(),
            group: frame.group_id(),
            epoch: frame.epoch_id(),
            opens: opens.as_ref(),
        };
        self.core.offer_frame(Link(link.0), &info)?;
        self.take_frame(frame, contents);
        self.answer_questions();
        Ok(())
    }

    /// Part of a copy, or what a verification found to differ. Operations on the range that come after it in the stream wait until it is written.
    fn chunk_arrived(
        &mut self,
        link: LinkId,
        volume: VolumeId,
        range: ByteRange,
        data: Option<Bytes>,
    ) -> Result<(), String> {
        if !self.core.follows(Link(link.0)) {
            return Err("a chunk on a link that is not streaming".into());
        }
        let Some(spec) = self.volumes.iter().find(|v| v.id == volume) else {
            return Err(format!(
                "a chunk of volume {}, which does not exist",
                volume.0
            ));
        };
        if range
            .offset
            .checked_add(range.len)
            .is_none_or(|end| end > spec.size)
        {
            return Err(format!("a chunk beyond the end of volume '{}'", spec.name));
        }
        let came = range;
        #[cfg(test)]
        let came = nothing_of(came, Sabotage::AwaitWhatCame);
        self.receive.no_longer_awaited(volume, came, &self.volumes);
        let place = if self.core.facts().inconsistent_until.is_some() {
            Place::Held(self.store.hold(volume, range))
        } else {
            Place::AsOf(self.frames.sealed())
        };
        self.receive.waiting.push_back(Chunk {
            link,
            volume,
            range,
            data,
            place,
        });
        Ok(())
    }

    /// The core allows the homes to hold everything up to here.
    pub(super) fn allow(&mut self, lsn: Lsn) {
        #[cfg(test)]
        let lsn = if sabotaged(Sabotage::ApplyUncommitted) {
            self.frames.sealed()
        } else {
            lsn
        };
        self.receive.allowed = self.receive.allowed.max(lsn);
        self.store.allow(lsn.min(self.receive.cap()));
    }

    /// Repairs whose place in the history is reached, and durable, hold their ranges from now on.
    fn place_repairs(&mut self) {
        let reached = self.receive.allowed.min(self.frames.durable());
        for chunk in &mut self.receive.waiting {
            if matches!(chunk.place, Place::AsOf(lsn) if lsn <= reached) {
                chunk.place = Place::Held(self.store.hold(chunk.volume, chunk.range));
            }
        }
        self.store
            .allow(self.receive.allowed.min(self.receive.cap()));
    }

    /// Repairs that came on this link, and whose place in the history may now never come.
    pub(super) fn drop_repairs(&mut self, link: LinkId) {
        let waits = |chunk: &Chunk| chunk.link == link && matches!(chunk.place, Place::AsOf(_));
        self.receive.waiting.retain(|chunk| !waits(chunk));
        self.place_repairs();
    }

    /// Writes the chunks whose ranges no apply is touching.
    pub(super) fn write_chunks(&mut self) {
        self.place_repairs();
        for _ in 0..self.receive.waiting.len() {
            let chunk = self.receive.waiting.pop_front().expect("counted");
            let hold = match chunk.place {
                Place::Held(hold) if self.store.quiet(chunk.volume, chunk.range) => hold,
                _ => {
                    self.receive.waiting.push_back(chunk);
                    continue;
                }
            };
            self.receive.writing.push(Writing {
                hold,
                link: chunk.link,
                volume: chunk.volume,
                range: chunk.range,
            });
            let file = File::Home(chunk.volume);
            let op = match chunk.data {
                Some(data) => {
                    self.stats.totals.home_bytes += data.len() as u64;
                    DiskOp::Write {
                        file,
                        offset: chunk.range.offset,
                        data,
                        durable: false,
                    }
                }
                None => DiskOp::Zero {
                    file,
                    range: chunk.range,
                    keep: false,
                },
            };
            let pending = Pending::ChunkWrite {
                hold,
                volume: chunk.volume,
            };
            self.submit_home(pending, chunk.volume, chunk.range, op);
        }
    }

    /// A home has no room for a chunk: the link goes down, loudly, and with the next one all is compared again. What is kept
    /// of the old content takes room, too, and would for ever if the copy never ended.
    pub(super) fn chunk_refused(&mut self, hold: HoldId, message: &str) {
        self.retire_undo(Some("the space is needed for the copy"));
        self.copy_has_no_space(&format!("no space for what the primary sends: {message}"));
        // It counts as sent, but it is not here.
        self.receive.confirming.clear();
        self.chunk_written(hold);
    }

    /// Ends the link on which a copy is to be made, or is.
    pub(super) fn copy_has_no_space(&mut self, text: &str) {
        self.homes.copy_refused(self.now.mono);
        if let Some(link) = self.core.copy_link() {
            self.log_line(crate::core::Severity::Error, text.to_owned());
            let refuse = Message::Refuse {
                refusal: Refusal::NoSpace,
                text: text.to_owned(),
            };
            self.end_link(LinkId(link.0), refuse, text);
        }
    }

    pub(super) fn chunk_written(&mut self, hold: HoldId) {
        self.store.release(hold);
        let receive = &mut self.receive;
        for chunk in receive.writing.extract_if(.., |w| w.hold == hold) {
            receive.written += 1;
            receive.unsynced.insert(chunk.volume, receive.written);
            let placed = receive.placed.filter(|(link, _)| *link == chunk.link);
            let placed = placed.map_or(0, |(_, bytes)| bytes) + chunk.range.len;
            receive.placed = Some((chunk.link, placed));
        }
        self.tell_placed();
        // A repair is in no journal: a power cut must not bring back what it has mended.
        if self.core.facts().inconsistent_until.is_none() && self.receive.idle() {
            self.homes.want_checkpoint();
        }
        self.check_copy_end();
        self.read_held_questions();
    }

    /// The primary has only so much of chunks under way: it learns what is in the homes, not for each of them.
    fn tell_placed(&mut self) {
        let idle = self.receive.idle();
        let due = |(_, bytes): &mut (LinkId, u64)| *bytes >= PLACED_BYTES || idle;
        if let Some((link, bytes)) = self.receive.placed.take_if(due)
            && self.core.follows(Link(link.0))
        {
            self.send(link, Message::Placed { bytes });
        }
    }

    /// A complete copy becomes consistent with the next checkpoint.
    fn check_copy_end(&mut self) {
        let reached = self.store.applied_lsn();
        let until = self.core.copy_end();
        if self.receive.chunks_done() && until.is_some_and(|until| until <= reached) {
            self.homes.want_checkpoint();
        }
    }

    /// A copy begins: the journal here counts no more, and of the homes only what the primary finds to be the same.
    ///
    /// Which chunks may differ is on record from here on, until each is confirmed: what the primary knows of, what was written
    /// here after the last LSN that both share, what of that history had not reached the homes, and what an interrupted copy
    /// was still to bring. In all others the homes are what the new journal says.
    pub(super) fn reset(&mut self, reset: Reset) {
        let Reset {
            from,
            shared,
            interrupted,
            lost,
            base,
            chain,
            time_ns,
            volumes,
        } = reset;
        self.begin_undo();
        let link = self.core.upstream_link();
        let announced = self.receive.announced.take();
        let mut chunks = match announced {
            #[cfg(test)]
            _ if sabotaged(Sabotage::RememberOnlyTheOwn) => ChunkSet::new(),
            Some((on, chunks)) if Some(Link(on.0)) == link => chunks,
            _ => ChunkSet::everything(),
        };
        let sound = self.store.applied_lsn().min(shared);
        chunks.union(&self.changes.after(sound));
        if lost || interrupted && self.changes.own().is_none() {
            chunks = ChunkSet::everything();
        } else if interrupted && let Some(own) = self.changes.own() {
            chunks.union(own);
        }
        if let Some(known) = self.changes.set_of(&from) {
            chunks.union(&known.chunks);
        }
        // No operation touches what a volume grew by, nor all of one that is new here: its home may be at a place that held
        // something before.
        for volume in &volumes {
            let known = self.volumes.iter().find(|v| v.uuid == volume.uuid);
            let size = known.map_or(0, |v| v.size);
            if size < volume.size {
                chunks.insert(volume.id, ByteRange::new(size, volume.size - size));
            }
        }
        // Sets of other peers are about the history that is given up.
        self.changes.begin_own(chunks);
        self.changes.restart(base);
        let under_way = self.forget_home_requests();
        self.receive.clear(under_way);
        self.state.creating.clear();
        let parting = !self.parting.is_empty();
        self.parting.append(&mut self.volumes);
        self.parting
            .retain(|gone| volumes.iter().all(|v| v.uuid != gone.uuid));
        for volume in &volumes {
            self.note_volume(volume.clone());
            self.free_place_of(volume);
        }
        self.undo.volumes_are(&self.volumes);
        // One that is put aside may be taken back, or its number be given to another one: everything in its turn.
        let in_turn = parting || !self.parting.is_empty();
        let none = volumes.is_empty() && under_way == 0 && !in_turn;
        if in_turn {
            self.receive.homes_missing += 1;
            self.receive.making = Some(volumes);
        } else {
            self.make_homes(volumes);
        }
        self.reset_frames(base, chain, time_ns);
        // What older segments of the file hold is another history.
        self.log.unreadable_before(base.next());
        self.state.checkpoint = self.log.position(base);
        self.homes.forget(base);
        // What was written to them before and not synced yet counts in the comparison as if it were durable.
        for volume in &self.volumes {
            self.homes.touch(volume.id);
        }
        if none {
            self.state.request_reset();
        }
    }

    fn make_homes(&mut self, volumes: Vec<VolumeSpec>) {
        self.receive.homes_missing += volumes.len();
        for volume in volumes {
            // It may be there, and short, although no record names it: made by an operation that was never committed here.
            let lengthen = true;
            self.submit(Pending::ResetHome, DiskOp::CreateHome { volume, lengthen });
        }
    }

    /// Once nothing that was meant for the old homes is under way, those of volumes that are gone are put aside.
    pub(super) fn continue_reset(&mut self) {
        let alone = self.receive.homes_missing == 1 && self.receive.making.is_some();
        if alone && !self.receive.put_aside && self.undo.is_quiet() && self.syncs.is_empty() {
            self.receive.put_aside = true;
            let volumes = self.parting.clone();
            self.submit(Pending::PutAside, DiskOp::PutAside { volumes });
        }
    }

    pub(super) fn homes_put_aside(&mut self) {
        for volume in std::mem::take(&mut self.parting) {
            let text = format!(
                "volume {} ({}) is not part of the history any more; what its home held is kept aside",
                volume.name, volume.uuid
            );
            self.log_line(crate::core::Severity::Warn, text);
        }
        let volumes = self.receive.making.take().unwrap_or_default();
        self.make_homes(volumes);
        self.reset_home_created();
    }

    /// The homes hold what the journal does not tell of: whoever follows is compared with them, chunk by chunk.
    pub(super) fn distrust(&mut self) {
        let next = self.frames.sealed().next();
        // Who ends where the journal ends has other homes, too: it must not be streamed the epoch that opens there.
        let primary = self.core.facts().role == Role::Primary;
        self.log
            .unreadable_before(if primary { next.next() } else { next });
        self.changes.forget_own();
        for peer in self.config.peers.clone() {
            self.changes.put(&peer, Lsn::ZERO, &ChunkSet::everything());
        }
    }

    /// Whether an operation need not reach the homes: the copy that is under way brings all it touches, as of a later LSN. Until
    /// then these chunks are on record as missing, whatever is in them.
    pub(super) fn copy_brings(&self, op: &Op) -> bool {
        let Some((link, awaited)) = &self.receive.awaited else {
            return false;
        };
        self.core.follows(Link(link.0)) && awaited.covers(op.volume, op.range)
    }

    /// The new beginning is on record: tell the primary where to look, before the agreement goes out.
    pub(super) fn reset_recorded(&mut self) {
        let chunks = self.changes.own().cloned();
        if let (Some(link), Some(chunks)) = (self.core.upstream_link(), chunks) {
            let link = LinkId(link.0);
            // Of the volumes there are: of others that are made or grow later nobody says what it will bring.
            let mut awaited = chunks.clone();
            awaited.subtract(&ChunkSet::new(), &self.volumes);
            awaited.clip(&self.volumes);
            self.receive.awaited = Some((link, awaited));
            self.send(link, Message::Touched { chunks });
        }
        self.event(Event::ResetDone);
    }

    /// Requests to the homes that are under way belong to the old history: their completion means nothing to the new one,
    /// but the new one must not begin before, lest they land on top of it. Returns how many there are.
    pub(super) fn forget_home_requests(&mut self) -> usize {
        let mut under_way = 0;
        self.questions.clear();
        self.forget_waiting_writes();
        self.forget_full_homes();
        self.block_reads.clear();
        for (_, pending) in &mut self.disk {
            if matches!(
                pending,
                Pending::AnswerRead { .. } | Pending::AnswerSync { .. } | Pending::ReadBlock { .. }
            ) {
                *pending = Pending::Forgotten;
            }
            // A home that no record will name.
            if let Pending::CreateHome { volume, .. } | Pending::ClearHome { volume, .. } = pending
            {
                self.parting.push(volume.clone());
            }
            let home = matches!(
                pending,
                Pending::ApplyWrite { .. }
                    | Pending::ChunkWrite { .. }
                    | Pending::CreateHome { .. }
                    | Pending::ClearHome { .. }
                    | Pending::GrowHome { .. }
                    | Pending::ClearGrown { .. }
                    | Pending::SyncGrown { .. }
                    | Pending::ResetHome
                    | Pending::PutAside
                    | Pending::OldHistory
                    | Pending::HomeSync
            );
            if home {
                *pending = Pending::OldHistory;
                under_way += 1;
            }
        }
        self.state.forget_checkpoint();
        under_way
    }

    /// Once all homes exist, and nothing of the old history is under way, the new beginning is put on record.
    pub(super) fn reset_home_created(&mut self) {
        self.receive.homes_missing -= 1;
        if self.receive.homes_missing > 0 {
            return;
        }
        if matches!(self.core.mode(), crate::core::Mode::GoingBack) {
            self.continue_undo();
        } else {
            self.state.request_reset();
        }
    }
}

/// An empty range, if this rule is broken.
#[cfg(test)]
fn nothing_of(range: ByteRange, rule: Sabotage) -> ByteRange {
    let len = if sabotaged(rule) { 0 } else { range.len };
    ByteRange::new(range.offset, len)
}
