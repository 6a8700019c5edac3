//! Walking over the chunks of the volumes together with a mirror: to copy those that differ, or to verify that none does.
//!
//! The mirror is asked for the hash of a chunk as of one LSN, and the same is read here; only if the two differ is the
//! content sent. Writes go on meanwhile, on both sides:
//!
//! - To compare exactly, the question is put into the stream right after a closed frame. What the overlay holds of the chunk
//!   at that moment is taken along, and no apply to the chunk starts until the home was read: together they are the chunk as
//!   of that frame. The mirror does the same when it gets there.
//! - A chunk that is sent is as of its place in the stream or later; what follows in the stream is applied on top of it.
//! - Where a verification finds a difference, it asks again for the content of both sides, as of one LSN, and leaves it to
//!   `mend` to find out who is wrong.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::blocks::{ChunkRead, Reader, laid_over};
use super::mend::{Doubt, differing_blocks};
use super::verify::Verifying;
use super::{DiskOp, DiskResult, File, Group, LinkId, Pending};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{ByteRange, CHUNK_BYTES, ChunkSet, Lsn, Message, VolumeId};
use crate::core::{Event, Link, Severity};
use crate::journal::is_zero;
use crate::store::{Content, HoldId, Source};

/// Chunks under way at once.
pub(super) const PARTS: usize = 8;

/// After so many comparisons in a row that found a difference, chunks are sent without asking ...
const MISSES: u32 = 8;

/// ... except for every so many.
const ASK_EVERY: u64 = 16;

/// The mirror is told what of a copy it has once it is so many bytes or so long. The volumes of tests are small.
const CONFIRM_BYTES: u64 = if cfg!(test) { CHUNK_BYTES } else { 4 << 20 };
const CONFIRM_AGE: Duration = Duration::from_secs(1);

/// Bytes per second of a copy while clients write, unless the configuration says otherwise.
const GIVING_WAY: u64 = 64 << 20;

/// How much of a second's worth may go out at once when the rate is limited.
const BURST: Duration = Duration::from_millis(100);

/// What a walk is for.
pub(super) enum Purpose {
    /// The mirror is inconsistent until it has everything that differs.
    Copy,
    /// The mirror is in sync, and this shows whether that is true.
    Verify(Box<Verifying>),
}

/// One pass over a set of chunks.
pub(super) struct Walk {
    purpose: Purpose,
    chunks: ChunkSet,
    /// Index of the volume, and where its next chunk is looked for.
    volume: usize,
    offset: u64,
    pub parts: Vec<Part>,
    next_part: u64,
    /// Written to at this moment: asked about later.
    busy: VecDeque<(VolumeId, ByteRange)>,
    /// Known to differ.
    pub send: VecDeque<(VolumeId, ByteRange)>,
    /// To be looked at closely.
    pub looks: VecDeque<Look>,
    misses: u32,
    pub pace: Pace,
    pub progress: Progress,
    confirming: Confirming,
}

/// Chunks of a copy that the mirror has, and that it is to be told of.
#[derive(Default)]
struct Confirming {
    gathered: ChunkSet,
    bytes: u64,
    /// What is gathered is as of this LSN or before.
    lsn: Lsn,
    since: Duration,
    /// No more are added to these: they wait until their LSN is committed and was sent.
    waiting: Option<(Lsn, ChunkSet)>,
}

impl Confirming {
    fn add(&mut self, volume: VolumeId, range: ByteRange, lsn: Lsn, now: Duration) {
        if self.bytes == 0 {
            self.since = now;
        }
        self.bytes += range.len;
        self.gathered.insert(volume, range);
        self.lsn = self.lsn.max(lsn);
    }

    /// What may be told now that everything up to `reached` is committed and was sent.
    fn next(&mut self, reached: Lsn, now: Duration) -> Option<ChunkSet> {
        let due = self.bytes >= CONFIRM_BYTES || now >= self.since + CONFIRM_AGE;
        if self.waiting.is_none() && self.bytes > 0 && due {
            self.waiting = Some((self.lsn, std::mem::take(&mut self.gathered)));
            self.bytes = 0;
        }
        let (_, chunks) = self.waiting.take_if(|(lsn, _)| *lsn <= reached)?;
        Some(chunks)
    }
}

/// How far a walk is.
#[derive(Clone, Default, Debug)]
pub(super) struct Progress {
    /// When it began, by the group's clock.
    pub began: Duration,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

impl Progress {
    /// How long the rest takes at the rate there was so far.
    pub fn eta_seconds(&self, now: Duration) -> Option<f64> {
        let took = now.saturating_sub(self.began).as_secs_f64();
        let left = self.total_bytes.saturating_sub(self.done_bytes);
        (self.done_bytes > 0).then(|| took * left as f64 / self.done_bytes as f64)
    }
}

/// A chunk whose content is to be compared here.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub volume: VolumeId,
    pub range: ByteRange,
    /// Of these blocks, the first in the lowest bit.
    pub blocks: u64,
    /// How often this was tried before.
    pub tries: u8,
    /// They were mended, and this shows whether that is true.
    pub mended: bool,
}

/// A chunk under way.
pub(super) struct Part {
    id: u64,
    pub volume: VolumeId,
    pub range: ByteRange,
    hold: Option<HoldId>,
    pub job: Job,
}

/// A hash; `None` inside if the home could not be read.
type Hash = Option<Option<[u8; 32]>>;

pub(super) enum Job {
    /// To be read and sent once no apply is touching it.
    Send { reading: bool },
    /// Being read here and there.
    Compare {
        lsn: Lsn,
        overlay: Vec<(ByteRange, Content)>,
        ours: Hash,
        theirs: Hash,
    },
    /// The same, with all of its content.
    Look {
        look: Look,
        lsn: Lsn,
        /// Blocks that were written to since.
        touched: u64,
        overlay: Vec<(ByteRange, Content)>,
        ours: Option<ChunkRead>,
        theirs: Option<ChunkRead>,
    },
}

/// Keeps to a rate.
#[derive(Clone, Copy, Default)]
pub(super) struct Pace {
    /// Bytes per second; 0 for no limit.
    pub rate: u64,
    next: Duration,
}

impl Pace {
    pub fn new(rate: u64) -> Pace {
        Pace {
            rate,
            next: Duration::ZERO,
        }
    }

    fn may_go(&self, now: Duration) -> bool {
        self.rate == 0 || now + BURST >= self.next
    }

    fn went(&mut self, now: Duration, bytes: u64) {
        if self.rate > 0 {
            let takes = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            self.next = self.next.max(now) + takes;
        }
    }
}

impl Walk {
    pub fn new(purpose: Purpose, chunks: ChunkSet, total_bytes: u64, rate: u64) -> Walk {
        Walk {
            purpose,
            chunks,
            volume: 0,
            offset: 0,
            parts: Vec::new(),
            next_part: 0,
            busy: VecDeque::new(),
            send: VecDeque::new(),
            looks: VecDeque::new(),
            misses: 0,
            pace: Pace::new(rate),
            progress: Progress {
                total_bytes,
                ..Progress::default()
            },
            confirming: Confirming::default(),
        }
    }

    /// The verification, if it is one.
    pub fn verifying(&self) -> Option<&Verifying> {
        match &self.purpose {
            Purpose::Verify(verifying) => Some(verifying),
            Purpose::Copy => None,
        }
    }

    /// The same, to be gone on with.
    pub fn verifying_mut(&mut self) -> Option<&mut Verifying> {
        match &mut self.purpose {
            Purpose::Verify(verifying) => Some(verifying),
            Purpose::Copy => None,
        }
    }

    /// Where it goes on: index of the volume, and offset.
    pub fn place(&self) -> (usize, u64) {
        (self.volume, self.offset)
    }

    /// Goes on there.
    pub fn go_to(&mut self, volume: usize, offset: u64) {
        (self.volume, self.offset) = (volume, offset);
    }

    /// The mirror says what else may differ.
    pub fn add(&mut self, chunks: &ChunkSet) {
        self.chunks.union(chunks);
    }

    pub fn chunks(&self) -> &ChunkSet {
        &self.chunks
    }

    /// When it may go on, if only its rate holds it back.
    pub fn deadline(&self, now: Duration) -> Option<Duration> {
        (!self.pace.may_go(now)).then(|| self.pace.next.saturating_sub(BURST))
    }

    /// No chunk is under way or waits for its turn.
    pub fn is_quiet(&self) -> bool {
        self.parts.is_empty()
            && self.send.is_empty()
            && self.busy.is_empty()
            && self.looks.is_empty()
    }

    /// Whether something is still to be sent; what is looked at again comes after it in the stream.
    fn sends(&self) -> bool {
        let sending = |part: &Part| matches!(part.job, Job::Send { .. });
        !self.send.is_empty() || self.parts.iter().any(sending)
    }

    /// Whether the next chunk shall be sent without a question: so many differ that asking is a waste.
    fn sends_blindly(&self) -> bool {
        matches!(self.purpose, Purpose::Copy)
            && self.misses >= MISSES
            && !self.next_part.is_multiple_of(ASK_EVERY)
    }

    pub fn done(&mut self, range: ByteRange) {
        self.progress.done_bytes += range.len;
    }
}

impl Group {
    /// Goes on with copies and verifications.
    pub(super) fn pump_walks(&mut self) {
        let links: smallvec::SmallVec<[LinkId; 4]> = self
            .streams
            .iter()
            .filter(|(_, s)| s.walk.is_some() && s.has_started())
            .map(|(link, _)| *link)
            .collect();
        for link in links {
            self.carry_mends(link);
            while self.begin_part(link) {}
            self.read_quiet_parts(link);
            self.prove(link);
            self.confirm_chunks(link);
            self.end_walk(link);
        }
    }

    /// Takes the next chunk. False if none can be taken now.
    fn begin_part(&mut self, link: LinkId) -> bool {
        let now = self.now.mono;
        let crowded = self.writers_wait();
        let copy_rate = match self.config.resync_rate {
            Some(rate) => rate,
            None if self.clients.write(now) => GIVING_WAY,
            None => 0,
        };
        let Some(stream) = self.streams.get_mut(&link) else {
            return false;
        };
        let has_room = stream.has_room_for_chunks();
        let Some(walk) = stream.walk.as_mut() else {
            return false;
        };
        if matches!(walk.purpose, Purpose::Copy) {
            walk.pace.rate = copy_rate;
        }
        if walk.parts.len() >= PARTS || !has_room || !walk.pace.may_go(now) {
            return false;
        }
        if let Some((volume, range)) = walk.send.pop_front() {
            self.begin_sending(link, volume, range);
            return true;
        }
        if !walk.sends()
            && let Some(look) = walk.looks.pop_front()
        {
            return self.begin_looking(link, look);
        }
        if let Some((volume, range)) = walk.busy.pop_front() {
            // If it is still being written to, the next batch of requests will find it again.
            return self.begin_comparing(link, volume, range);
        }
        let parts = walk.parts.len();
        if walk
            .verifying_mut()
            .is_some_and(|v| v.waits(now, parts, crowded))
        {
            return false;
        }
        let Some(spec) = self.volumes.get(walk.volume) else {
            return false;
        };
        let Some(range) = walk.chunks.next(spec, walk.offset) else {
            walk.go_to(walk.volume + 1, 0);
            return true;
        };
        walk.offset = range.end();
        let volume = spec.id;
        if walk.sends_blindly() {
            self.begin_sending(link, volume, range);
            return true;
        }
        self.begin_comparing(link, volume, range);
        true
    }

    fn push_part(&mut self, link: LinkId, volume: VolumeId, range: ByteRange, job: Job) -> u64 {
        let hold = Some(self.store.hold(volume, range));
        let now = self.now.mono;
        let walk = self.walk(link).expect("a walk begins its parts");
        let id = walk.next_part;
        walk.next_part += 1;
        walk.pace.went(now, range.len);
        walk.parts.push(Part {
            id,
            volume,
            range,
            hold,
            job,
        });
        id
    }

    pub(super) fn walk(&mut self, link: LinkId) -> Option<&mut Walk> {
        self.streams.get_mut(&link)?.walk.as_mut()
    }

    /// From here on no operation on the range is applied until its chunk is sent.
    fn begin_sending(&mut self, link: LinkId, volume: VolumeId, range: ByteRange) {
        self.push_part(link, volume, range, Job::Send { reading: false });
    }

    /// Asks the mirror for the hash as of the last closed frame, and reads the same here. False if an operation of the open
    /// frame covers what is to be read.
    fn begin_comparing(&mut self, link: LinkId, volume: VolumeId, range: ByteRange) -> bool {
        let Some(overlay) = self.overlay_of(volume, range) else {
            let walk = self.walk(link).expect("the caller looked");
            walk.busy.push_back((volume, range));
            return false;
        };
        let walk = self.walk(link).expect("the caller looked");
        let medium = walk.verifying().is_some();
        let job = Job::Compare {
            lsn: self.frames.sealed(),
            overlay,
            ours: None,
            theirs: None,
        };
        self.ask(link, volume, range, job, medium, false);
        true
    }

    /// The same for the content.
    fn begin_looking(&mut self, link: LinkId, look: Look) -> bool {
        let Some(overlay) = self.overlay_of(look.volume, look.range) else {
            let walk = self.walk(link).expect("the caller looked");
            walk.looks.push_back(look);
            return false;
        };
        let job = Job::Look {
            look,
            lsn: self.frames.sealed(),
            touched: 0,
            overlay,
            ours: None,
            theirs: None,
        };
        self.ask(link, look.volume, look.range, job, true, true);
        true
    }

    fn ask(
        &mut self,
        link: LinkId,
        volume: VolumeId,
        range: ByteRange,
        job: Job,
        medium: bool,
        content: bool,
    ) {
        let part = self.push_part(link, volume, range, job);
        let lsn = self.frames.sealed();
        self.send(
            link,
            Message::Compare {
                volume,
                range,
                lsn,
                medium,
                content,
            },
        );
        self.submit(
            Pending::WalkRead { link, part },
            DiskOp::Read {
                file: File::Home(volume),
                offset: range.offset,
                len: range.len,
                medium,
            },
        );
    }

    /// What is not in the home yet of this range, as of the last closed frame. `None` while the open frame covers some of it.
    pub(super) fn overlay_of(
        &self,
        volume: VolumeId,
        range: ByteRange,
    ) -> Option<Vec<(ByteRange, Content)>> {
        let mut overlay = Vec::new();
        let sealed = self.frames.sealed();
        for piece in self.store.read_plan(volume, range).pieces {
            if let Source::Overlay(lsn) = piece.source {
                // Of zeroes the content is known also before their frame is closed.
                if lsn > sealed {
                    return None;
                }
                overlay.push((piece.range, self.store.content(lsn, piece.range)?));
            }
        }
        Some(overlay)
    }

    /// Reads the ranges to be sent whose applies have come to rest.
    fn read_quiet_parts(&mut self, link: LinkId) {
        let mut reads = Vec::new();
        let mut medium = false;
        let behind = self.is_behind(link);
        if let Some(walk) = self.streams.get_mut(&link).and_then(|s| s.walk.as_mut()) {
            // What was found to be right was read there.
            medium = walk.verifying().is_some();
            for part in &mut walk.parts {
                if let Job::Send { reading } = &mut part.job
                    && !*reading
                    && !(medium && behind)
                    && self.store.quiet(part.volume, part.range)
                {
                    *reading = true;
                    reads.push((part.id, part.volume, part.range));
                }
            }
        }
        for (part, volume, range) in reads {
            self.submit(
                Pending::WalkRead { link, part },
                DiskOp::Read {
                    file: File::Home(volume),
                    offset: range.offset,
                    len: range.len,
                    medium,
                },
            );
        }
    }

    /// A part's home was read.
    pub(super) fn walk_read(&mut self, link: LinkId, id: u64, result: DiskResult) {
        let behind = self.is_behind(link);
        let Some(walk) = self.walk(link) else { return };
        let Some(at) = walk.parts.iter().position(|p| p.id == id) else {
            return;
        };
        let verifies = walk.verifying().is_some();
        let part = &mut walk.parts[at];
        let (volume, range) = (part.volume, part.range);
        match (&mut part.job, result) {
            // What is closed and not sent is in the chunk, and a consistent mirror could not tell as of when it is.
            (Job::Send { reading }, DiskResult::Data(_)) if verifies && behind => *reading = false,
            (Job::Send { .. }, DiskResult::Data(home)) => {
                let hold = part.hold.take().expect("held while it is read");
                walk.parts.swap_remove(at);
                self.send_chunk(link, volume, range, home);
                self.store.release(hold);
            }
            // Looked at again, it still differs, and is reported so.
            (Job::Send { .. }, _) if verifies => {
                let hold = part.hold.take().expect("held while it is read");
                walk.parts.swap_remove(at);
                self.store.release(hold);
            }
            (Job::Compare { overlay, ours, .. }, DiskResult::Data(home)) => {
                let hold = part.hold.take().expect("held while it is read");
                let read = laid_over(home, 0, range, &std::mem::take(overlay));
                *ours = Some(Some(*blake3::hash(&read.data).as_bytes()));
                self.store.release(hold);
            }
            (Job::Compare { ours, .. }, _) if verifies => {
                let hold = part.hold.take().expect("held while it is read");
                *ours = Some(None);
                self.store.release(hold);
            }
            (Job::Look { .. }, DiskResult::Data(home)) => {
                self.part_read(link, id, home, 0);
                return;
            }
            (Job::Look { .. }, _) => {
                let reader = Reader::Part { link, part: id };
                self.read_blocks(reader, volume, range, true);
                return;
            }
            (_, failed) => {
                let text = format!("a home cannot be read for its mirror: {failed:?}");
                self.log_line(Severity::Error, text.clone());
                self.drop_stream(link);
                self.outputs.push(super::Output::CloseLink { link });
                self.event(Event::Closed(Link(link.0), text));
                return;
            }
        }
        self.judge(link);
    }

    /// The content of a part that is looked at closely.
    pub(super) fn part_read(&mut self, link: LinkId, id: u64, home: Bytes, unreadable: u64) {
        let Some(walk) = self.walk(link) else { return };
        let Some(part) = walk.parts.iter_mut().find(|p| p.id == id) else {
            return;
        };
        if let Job::Look { overlay, ours, .. } = &mut part.job {
            let overlay = std::mem::take(overlay);
            *ours = Some(laid_over(home, unreadable, part.range, &overlay));
            let hold = part.hold.take().expect("held while it is read");
            self.store.release(hold);
            self.judge(link);
        }
    }

    /// Frames are closed that were not sent on this link.
    fn is_behind(&self, link: LinkId) -> bool {
        let sealed = self.frames.sealed();
        self.streams.get(&link).is_some_and(|s| s.next() <= sealed)
    }

    /// A range as of now: the home, with what is closed and not applied yet laid over it.
    fn send_chunk(&mut self, link: LinkId, volume: VolumeId, range: ByteRange, home: Bytes) {
        // What is in the open frame follows in the stream; what lies beneath it is needed all the same, for a mirror that
        // calls itself consistent before that comes.
        let overlay = match self.overlay_of(volume, range) {
            #[cfg(test)]
            _ if sabotaged(Sabotage::CopyWithoutOverlay) => Vec::new(),
            #[cfg(test)]
            None if sabotaged(Sabotage::CopyOnlyTheHome) => Vec::new(),
            Some(overlay) => overlay,
            None => self.store.waiting(volume, range, self.frames.sealed()),
        };
        let data = laid_over(home, 0, range, &overlay).data;
        let data = if is_zero(&data) { None } else { Some(data) };
        let crc = data.as_ref().map_or(0, |d| crc32fast::hash(d));
        let (lsn, now) = (self.frames.sealed(), self.now.mono);
        if let Some(stream) = self.streams.get_mut(&link) {
            stream.queued_bytes += data.as_ref().map_or(64, |d| d.len() as u64);
            stream.chunk_sent(range.len);
            if let Some(walk) = stream.walk.as_mut()
                && walk.verifying().is_none()
            {
                walk.done(range);
                walk.confirming.add(volume, range, lsn, now);
            }
        }
        self.send(
            link,
            Message::Chunk {
                volume,
                range,
                data,
                crc,
            },
        );
    }

    /// The mirror's hash of a range.
    pub(super) fn compared(
        &mut self,
        link: LinkId,
        volume: VolumeId,
        range: ByteRange,
        hash: Option<[u8; 32]>,
    ) -> Result<(), String> {
        match self.asked_for(link, volume, range) {
            Some(Job::Compare { theirs, .. }) => *theirs = Some(hash),
            _ => return Err(format!("a hash of {range:?}, which was not asked for")),
        }
        self.judge(link);
        Ok(())
    }

    /// The mirror's content of a range.
    pub(super) fn content_came(
        &mut self,
        link: LinkId,
        volume: VolumeId,
        range: ByteRange,
        read: ChunkRead,
    ) -> Result<(), String> {
        match self.asked_for(link, volume, range) {
            Some(Job::Look { theirs, .. }) => *theirs = Some(read),
            _ => {
                return Err(format!("the content of {range:?}, which was not asked for"));
            }
        }
        self.judge(link);
        Ok(())
    }

    fn asked_for(&mut self, link: LinkId, volume: VolumeId, range: ByteRange) -> Option<&mut Job> {
        let parts = &mut self.walk(link)?.parts;
        let asked = |p: &&mut Part| {
            p.volume == volume && p.range == range && !matches!(p.job, Job::Send { .. })
        };
        parts.iter_mut().find(asked).map(|p| &mut p.job)
    }

    /// Tells the mirror which chunks of a copy it has. Not before everything that is in them is committed: it is to be on its
    /// record only as part of this history.
    fn confirm_chunks(&mut self, link: LinkId) {
        let (commit, now) = (self.core.commit(), self.now.mono);
        let Some(stream) = self.streams.get_mut(&link) else {
            return;
        };
        let reached = stream.next().prev().min(commit);
        let walk = stream.walk.as_mut();
        if let Some(chunks) = walk.and_then(|w| w.confirming.next(reached, now)) {
            self.send(link, Message::Confirmed { chunks });
        }
    }

    /// Ends the comparisons of which both sides are known.
    fn judge(&mut self, link: LinkId) {
        let now = self.now.mono;
        let Some(walk) = self.walk(link) else { return };
        let mut at = 0;
        while let Some(part) = walk.parts.get(at) {
            let known = match &part.job {
                Job::Send { .. } => false,
                Job::Compare { ours, theirs, .. } => ours.is_some() && theirs.is_some(),
                Job::Look { ours, theirs, .. } => ours.is_some() && theirs.is_some(),
            };
            if !known {
                at += 1;
                continue;
            }
            let Part {
                volume, range, job, ..
            } = walk.parts.swap_remove(at);
            match job {
                Job::Send { .. } => {}
                Job::Compare {
                    lsn, ours, theirs, ..
                } => {
                    let ours = ours.flatten();
                    if ours.is_some() && ours == theirs.flatten() {
                        walk.misses = 0;
                        walk.done(range);
                        if matches!(walk.purpose, Purpose::Copy) {
                            walk.confirming.add(volume, range, lsn, now);
                        }
                        continue;
                    }
                    walk.misses += 1;
                    match walk.purpose {
                        Purpose::Copy => walk.send.push_back((volume, range)),
                        Purpose::Verify(_) => walk.looks.push_back(Look {
                            volume,
                            range,
                            blocks: u64::MAX,
                            tries: 0,
                            mended: false,
                        }),
                    }
                }
                Job::Look {
                    look,
                    lsn,
                    touched,
                    ours: Some(ours),
                    theirs: Some(theirs),
                    ..
                } => {
                    let blocks = differing_blocks(range, &ours, &theirs, look.blocks);
                    walk.looked(look, lsn, touched, blocks);
                }
                Job::Look { .. } => unreachable!("just seen"),
            }
        }
    }

    fn end_walk(&mut self, link: LinkId) {
        let volumes = self.volumes.len();
        let sealed = self.frames.sealed();
        let commit = self.core.commit();
        let Some(walk) = self.walk(link).filter(|w| w.is_quiet()) else {
            return;
        };
        let ended = walk.volume >= volumes;
        match &walk.purpose {
            Purpose::Copy if ended => {
                self.streams.get_mut(&link).expect("just seen").walk = None;
                self.event(Event::CopySent(Link(link.0), sealed));
            }
            Purpose::Verify(verifying) if verifying.is_settled(commit) => {
                if ended && !verifying.begins_anew() {
                    let stream = self.streams.get_mut(&link).expect("just seen");
                    if let Some(walk) = stream.walk.take() {
                        self.verified(link, &walk, sealed);
                    }
                } else if verifying.is_due() {
                    self.save_place(link);
                }
            }
            _ => {}
        }
    }

    /// Forgets what was to be sent on a link, and lets the ranges go that were held for it.
    pub(super) fn drop_stream(&mut self, link: LinkId) {
        self.questions.drop_link(link);
        self.resize_lost(link);
        self.drop_repairs(link);
        let Some(stream) = self.streams.remove(&link) else {
            return;
        };
        let Some(walk) = stream.walk else { return };
        let verifies = walk.verifying().is_some();
        for hold in walk.parts.into_iter().filter_map(|p| p.hold) {
            self.store.release(hold);
        }
        if verifies {
            self.verify_interrupted(&walk.progress);
        }
    }
}

impl Walk {
    /// Both sides of a chunk were looked at.
    fn looked(&mut self, look: Look, lsn: Lsn, touched: u64, blocks: Vec<super::mend::Block>) {
        let Purpose::Verify(verifying) = &mut self.purpose else {
            return;
        };
        if look.mended {
            verifying.looked_again(&look, &blocks);
            return;
        }
        if look.tries == 0 {
            self.progress.done_bytes += look.range.len;
        }
        // It may have been overwritten since the hashes were made.
        if !blocks.is_empty() {
            verifying.doubt(Doubt {
                volume: look.volume,
                range: look.range,
                lsn,
                touched,
                tries: look.tries,
                blocks,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_confirmed_once_all_that_is_in_it_is_committed_and_was_sent() {
        let at = Duration::from_secs;
        let chunk = |n| ByteRange::new(n * CHUNK_BYTES, CHUNK_BYTES);
        let mut confirming = Confirming::default();
        assert_eq!(confirming.next(Lsn(9), at(1)), None);
        confirming.add(VolumeId(0), chunk(1), Lsn(5), at(1));
        confirming.add(VolumeId(0), chunk(2), Lsn(4), at(1));
        assert_eq!(confirming.next(Lsn(4), at(3)), None);
        // What comes later does not hold it up.
        confirming.add(VolumeId(0), chunk(3), Lsn(8), at(3));
        assert_eq!(confirming.next(Lsn(4), at(5)), None);
        let first = confirming.next(Lsn(5), at(5)).expect("it is reached");
        assert!(first.holds(VolumeId(0), CHUNK_BYTES) && first.holds(VolumeId(0), 2 * CHUNK_BYTES));
        assert!(!first.holds(VolumeId(0), 3 * CHUNK_BYTES));
        assert_eq!(confirming.next(Lsn(7), at(6)), None);
        assert!(confirming.next(Lsn(8), at(6)).is_some());
    }
}
