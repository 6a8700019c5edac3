//! Walking over the chunks of the volumes together with a mirror: to copy those that differ, or to verify that none does.
//!
//! The mirror is asked for the hash of a chunk as of one LSN, and the same is read here; only if the two differ is the
//! content sent. Writes go on meanwhile, on both sides:
//!
//! - To compare exactly, the question is put into the stream right after a closed frame. What the overlay holds of the chunk
//!   at that moment is taken along, and no apply to the chunk starts until the home was read: together they are the chunk as
//!   of that frame. The mirror does the same when it gets there.
//! - A chunk that is sent is as of its place in the stream or later; what follows in the stream is applied on top of it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::{DiskOp, DiskResult, File, Group, LinkId, Pending};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{ByteRange, ChunkSet, Lsn, Message, VolumeId};
use crate::core::{Event, Link, Severity};
use crate::journal::is_zero;
use crate::store::{Content, HoldId, Source};

/// Chunks under way at once.
const PARTS: usize = 8;

/// After so many comparisons in a row that found a difference, chunks are sent without asking ...
const MISSES: u32 = 8;

/// ... except for every so many.
const ASK_EVERY: u64 = 16;

/// Differing ranges that are remembered one by one.
const RANGES_KEPT: usize = 32;

/// How much of a second's worth may go out at once when the rate is limited.
const BURST: Duration = Duration::from_millis(100);

/// What a walk is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// The mirror is inconsistent until it has everything that differs.
    Copy,
    /// The mirror is in sync, and this shows whether that is true.
    Verify {
        /// Send it what differs.
        repair: bool,
    },
}

/// One pass over a set of chunks.
pub(super) struct Walk {
    purpose: Purpose,
    chunks: ChunkSet,
    /// Index of the volume, and where its next chunk is looked for.
    volume: usize,
    offset: u64,
    parts: Vec<Part>,
    next_part: u64,
    /// Written to at this moment: asked about later.
    busy: VecDeque<(VolumeId, ByteRange)>,
    /// Known to differ.
    send: VecDeque<(VolumeId, ByteRange)>,
    misses: u32,
    pace: Pace,
    pub progress: Progress,
}

/// How far a walk is.
#[derive(Clone, Default, Debug)]
pub(super) struct Progress {
    /// When it began, by the group's clock.
    pub began: Duration,
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// Of chunks that differed.
    pub differing_bytes: u64,
    /// The first of them.
    pub differing: Vec<(VolumeId, ByteRange)>,
}

/// A chunk under way.
struct Part {
    id: u64,
    volume: VolumeId,
    range: ByteRange,
    hold: Option<HoldId>,
    job: Job,
}

enum Job {
    /// To be read and sent once no apply is touching it.
    Send { reading: bool },
    /// Being read here and there.
    Compare {
        overlay: Vec<(ByteRange, Content)>,
        ours: Option<[u8; 32]>,
        theirs: Option<[u8; 32]>,
    },
}

/// Keeps to a rate.
#[derive(Clone, Copy, Default)]
struct Pace {
    /// Bytes per second; 0 for no limit.
    rate: u64,
    next: Duration,
}

impl Pace {
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
            misses: 0,
            pace: Pace {
                rate,
                next: Duration::ZERO,
            },
            progress: Progress {
                total_bytes,
                ..Progress::default()
            },
        }
    }

    pub fn purpose(&self) -> Purpose {
        self.purpose
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

    /// Whether the next chunk shall be sent without a question: so many differ that asking is a waste.
    fn sends_blindly(&self) -> bool {
        self.purpose == Purpose::Copy
            && self.misses >= MISSES
            && !self.next_part.is_multiple_of(ASK_EVERY)
    }

    fn note_difference(&mut self, volume: VolumeId, range: ByteRange) {
        self.progress.differing_bytes += range.len;
        if self.progress.differing.len() < RANGES_KEPT {
            self.progress.differing.push((volume, range));
        }
    }

    fn done(&mut self, range: ByteRange) {
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
            while self.begin_part(link) {}
            self.read_quiet_parts(link);
            self.end_walk(link);
        }
    }

    /// Takes the next chunk. False if none can be taken now.
    fn begin_part(&mut self, link: LinkId) -> bool {
        let now = self.now.mono;
        let Some(stream) = self.streams.get_mut(&link) else {
            return false;
        };
        let has_room = stream.has_room();
        let Some(walk) = stream.walk.as_mut() else {
            return false;
        };
        if walk.parts.len() >= PARTS || !has_room || !walk.pace.may_go(now) {
            return false;
        }
        if let Some((volume, range)) = walk.send.pop_front() {
            self.begin_sending(link, volume, range);
            return true;
        }
        if let Some((volume, range)) = walk.busy.pop_front() {
            // If it is still being written to, the next batch of requests will find it again.
            return self.begin_comparing(link, volume, range);
        }
        let Some(spec) = self.volumes.get(walk.volume) else {
            return false;
        };
        let Some(range) = walk.chunks.next(spec, walk.offset) else {
            walk.volume += 1;
            walk.offset = 0;
            return true;
        };
        walk.offset = range.end();
        let volume = spec.id;
        if walk.sends_blindly() {
            walk.note_difference(volume, range);
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

    fn walk(&mut self, link: LinkId) -> Option<&mut Walk> {
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
        let job = Job::Compare {
            overlay,
            ours: None,
            theirs: None,
        };
        let part = self.push_part(link, volume, range, job);
        let walk = self.walk(link).expect("the caller looked");
        let medium = matches!(walk.purpose, Purpose::Verify { .. });
        let lsn = self.frames.sealed();
        self.send(
            link,
            Message::Compare {
                volume,
                range,
                lsn,
                medium,
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
        true
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
        if let Some(walk) = self.streams.get_mut(&link).and_then(|s| s.walk.as_mut()) {
            for part in &mut walk.parts {
                if let Job::Send { reading } = &mut part.job
                    && !*reading
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
                    medium: false,
                },
            );
        }
    }

    /// A part's home was read.
    pub(super) fn walk_read(&mut self, link: LinkId, part: u64, result: DiskResult) {
        let Some(walk) = self.walk(link) else { return };
        let Some(at) = walk.parts.iter().position(|p| p.id == part) else {
            return;
        };
        let hold = walk.parts[at].hold.take();
        let home = match result {
            DiskResult::Data(home) => home,
            failed => {
                let text = format!("a home cannot be read for its mirror: {failed:?}");
                self.log_line(Severity::Error, text.clone());
                self.store.release(hold.expect("held while it is read"));
                self.drop_stream(link);
                self.outputs.push(super::Output::CloseLink { link });
                self.event(Event::Closed(Link(link.0), text));
                return;
            }
        };
        let part = &mut walk.parts[at];
        if let Job::Compare { overlay, ours, .. } = &mut part.job {
            let content = laid_over(home, part.range, &std::mem::take(overlay));
            *ours = Some(*blake3::hash(&content).as_bytes());
        } else {
            let part = walk.parts.swap_remove(at);
            self.send_chunk(link, &part, home);
        }
        self.store.release(hold.expect("held while it is read"));
        self.judge(link);
    }

    /// A range as of now: the home, with what is closed and not applied yet laid over it.
    fn send_chunk(&mut self, link: LinkId, part: &Part, home: Bytes) {
        let (volume, range) = (part.volume, part.range);
        let mut overlay = Vec::new();
        for piece in self.store.read_plan(volume, range).pieces {
            // What is in the open frame follows in the stream.
            #[cfg(test)]
            if sabotaged(Sabotage::CopyWithoutOverlay) {
                continue;
            }
            if let Source::Overlay(lsn) = piece.source
                && lsn <= self.frames.sealed()
                && let Some(content) = self.store.content(lsn, piece.range)
            {
                overlay.push((piece.range, content));
            }
        }
        let data = laid_over(home, range, &overlay);
        let data = if is_zero(&data) { None } else { Some(data) };
        let crc = data.as_ref().map_or(0, |d| crc32fast::hash(d));
        if let Some(stream) = self.streams.get_mut(&link) {
            stream.queued_bytes += data.as_ref().map_or(64, |d| d.len() as u64);
            if let Some(walk) = stream.walk.as_mut() {
                walk.done(range);
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
        hash: [u8; 32],
    ) -> Result<(), String> {
        let part = self
            .walk(link)
            .into_iter()
            .flat_map(|walk| &mut walk.parts)
            .find(|p| p.volume == volume && p.range == range);
        let Some(Part {
            job: Job::Compare { theirs, .. },
            ..
        }) = part
        else {
            return Err(format!("a hash of {range:?}, which was not asked for"));
        };
        *theirs = Some(hash);
        self.judge(link);
        Ok(())
    }

    /// Ends the comparisons whose hashes are both known.
    fn judge(&mut self, link: LinkId) {
        let Some(walk) = self.walk(link) else { return };
        let mut at = 0;
        while let Some(part) = walk.parts.get(at) {
            let Job::Compare {
                ours: Some(ours),
                theirs: Some(theirs),
                ..
            } = part.job
            else {
                at += 1;
                continue;
            };
            let Part { volume, range, .. } = walk.parts.swap_remove(at);
            if ours == theirs {
                walk.misses = 0;
                walk.done(range);
                continue;
            }
            walk.misses += 1;
            walk.note_difference(volume, range);
            match walk.purpose {
                Purpose::Copy | Purpose::Verify { repair: true } => {
                    walk.send.push_back((volume, range));
                }
                Purpose::Verify { repair: false } => walk.done(range),
            }
        }
    }

    fn end_walk(&mut self, link: LinkId) {
        let volumes = self.volumes.len();
        let sealed = self.frames.sealed();
        let Some(stream) = self.streams.get_mut(&link) else {
            return;
        };
        let done = stream.walk.as_ref().is_some_and(|w| {
            w.parts.is_empty() && w.send.is_empty() && w.busy.is_empty() && w.volume >= volumes
        });
        if !done {
            return;
        }
        let walk = stream.walk.take().expect("just seen");
        match walk.purpose {
            Purpose::Copy => self.event(Event::CopySent(Link(link.0), sealed)),
            Purpose::Verify { repair } => self.verified(&walk.progress, repair, sealed),
        }
    }

    /// Forgets what was to be sent on a link, and lets the ranges go that were held for it.
    pub(super) fn drop_stream(&mut self, link: LinkId) {
        self.questions.waiting.retain(|q| q.link != link);
        self.resize_lost(link);
        let Some(stream) = self.streams.remove(&link) else {
            return;
        };
        let Some(walk) = stream.walk else { return };
        for hold in walk.parts.into_iter().filter_map(|p| p.hold) {
            self.store.release(hold);
        }
        if let Purpose::Verify { .. } = walk.purpose {
            self.verify_interrupted(&walk.progress);
        }
    }
}

/// What the mirror is asked.
pub(super) struct Question {
    link: LinkId,
    volume: VolumeId,
    range: ByteRange,
    lsn: Lsn,
    medium: bool,
}

/// The mirror's side of comparisons.
#[derive(Default)]
pub(super) struct Questions {
    /// Their frames have not all come.
    waiting: VecDeque<Question>,
    /// As of their LSN, but a chunk that came before is still on its way into the home.
    held: Vec<Held>,
}

/// A question whose overlay was taken along.
struct Held {
    question: Question,
    overlay: Vec<(ByteRange, Content)>,
    hold: HoldId,
}

impl Group {
    /// The primary asks for a hash.
    pub(super) fn asked_to_compare(&mut self, question: Question) -> Result<(), String> {
        let Question {
            volume, range, lsn, ..
        } = question;
        let Some(spec) = self.volumes.iter().find(|v| v.id == volume) else {
            return Err(format!(
                "a question about volume {}, which does not exist",
                volume.0
            ));
        };
        if range.end() > spec.size {
            return Err(format!(
                "a question beyond the end of volume '{}'",
                spec.name
            ));
        }
        let sealed = self.frames.sealed();
        if lsn < sealed || self.questions.waiting.len() + self.questions.held.len() > PARTS {
            return Err(format!(
                "a question as of LSN {lsn}, with {} waiting; this site has LSN {sealed}",
                self.questions.waiting.len()
            ));
        }
        self.questions.waiting.push_back(question);
        self.answer_questions();
        Ok(())
    }

    /// Takes up the questions as of the frame that came last.
    pub(super) fn answer_questions(&mut self) {
        let sealed = self.frames.sealed();
        while self
            .questions
            .waiting
            .front()
            .is_some_and(|q| q.lsn <= sealed)
        {
            let question = self.questions.waiting.pop_front().expect("just seen");
            let (volume, range) = (question.volume, question.range);
            let overlay = self
                .overlay_of(volume, range)
                .expect("a mirror has no open frame");
            let hold = self.store.hold(volume, range);
            self.questions.held.push(Held {
                question,
                overlay,
                hold,
            });
        }
        self.read_held_questions();
    }

    /// Reads for the questions whose homes are at rest.
    pub(super) fn read_held_questions(&mut self) {
        let receive = &self.receive;
        let ready = |held: &mut Held| receive.quiet(held.question.volume, held.question.range);
        for held in self
            .questions
            .held
            .extract_if(.., ready)
            .collect::<Vec<_>>()
        {
            let Question {
                link,
                volume,
                range,
                medium,
                ..
            } = held.question;
            let pending = Pending::AnswerRead {
                link,
                volume,
                range,
                overlay: held.overlay,
                hold: held.hold,
            };
            let read = DiskOp::Read {
                file: File::Home(volume),
                offset: range.offset,
                len: range.len,
                medium,
            };
            self.submit(pending, read);
        }
    }

    pub(super) fn answer_read(
        &mut self,
        link: LinkId,
        volume: VolumeId,
        range: ByteRange,
        overlay: &[(ByteRange, Content)],
        result: DiskResult,
    ) {
        match result {
            DiskResult::Data(home) => {
                let content = laid_over(home, range, overlay);
                let hash = *blake3::hash(&content).as_bytes();
                self.send(
                    link,
                    Message::Compared {
                        volume,
                        range,
                        hash,
                    },
                );
            }
            failed => {
                self.link_fault(
                    link,
                    &format!("a home cannot be read to compare it: {failed:?}"),
                );
            }
        }
    }
}

impl Question {
    pub fn new(
        link: LinkId,
        volume: VolumeId,
        range: ByteRange,
        lsn: Lsn,
        medium: bool,
    ) -> Question {
        Question {
            link,
            volume,
            range,
            lsn,
            medium,
        }
    }
}

impl Questions {
    /// The history they are about is replaced, and with it the store that holds their ranges.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.held.clear();
    }
}

/// The home's content of a range with these pieces over it.
fn laid_over(home: Bytes, range: ByteRange, overlay: &[(ByteRange, Content)]) -> Bytes {
    if overlay.is_empty() {
        return home;
    }
    let mut all = home.to_vec();
    for (piece, content) in overlay {
        let from = (piece.offset - range.offset) as usize;
        let to = from + piece.len as usize;
        match content {
            Content::Data(data) => all[from..to].copy_from_slice(data),
            Content::Zero { .. } => all[from..to].fill(0),
            Content::Control(_) => {}
        }
    }
    Bytes::from(all)
}
