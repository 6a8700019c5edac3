//! Where a verification found the sites to differ: who is wrong, and how that is mended.
//!
//! - What the journal proves, or what only one site can read, is right. Where neither says anything, nothing is guessed: the
//!   operator names the site whose content is kept.
//! - What is wrong at the mirror is sent to it as a chunk. What is wrong at the primary goes as a write through the
//!   journal, and so to both sites; only if nobody wrote there since the sites were compared, else they are compared again.
//! - What was mended is compared again, and counts as repaired only if it is the same then.

use bytes::Bytes;

use super::blocks::{ChunkRead, block_of, blocks_in, blocks_touched};
use super::proof::{Proof, Proving};
use super::verify::Verifying;
use super::walk::{Job, Look};
use super::{Group, LinkId};
use crate::base::{BLOCK, ByteRange, Finding, Lsn, Op, OpKind, Remedy, Sides, VolumeId};
use crate::core::Severity;
use crate::journal::is_zero;

/// Differing blocks that are held for one pass over the journal. Each is kept as it is here and there, and as the journal
/// says that it must be.
pub(super) const BATCH_BLOCKS: usize = 1024;

/// How often a chunk that is written to all the time is compared again before it is left as it is.
const MOST_TRIES: u8 = 16;

/// A chunk that differs, as of one LSN.
pub(super) struct Doubt {
    pub volume: VolumeId,
    pub range: ByteRange,
    pub lsn: Lsn,
    /// Blocks that were written to since.
    pub touched: u64,
    /// How often it was looked at before.
    pub tries: u8,
    /// What differs.
    pub blocks: Vec<Block>,
}

/// A block that differs. `None` where it could not be read.
pub(super) struct Block {
    index: u32,
    len: usize,
    ours: Option<Vec<u8>>,
    theirs: Option<Vec<u8>>,
    pub proof: Proof,
}

/// What came of it.
struct Verdict {
    wrong: Sides,
    unreadable: Sides,
    /// What is right, if that is known.
    right: Option<Vec<u8>>,
}

/// A chunk in which something is to be written at both sites.
pub(super) struct Mend {
    volume: VolumeId,
    range: ByteRange,
    touched: u64,
    tries: u8,
    /// By the first of their blocks.
    writes: Vec<(u32, Vec<u8>)>,
    plan: Plan,
}

/// What is known of a chunk, and what is done about it.
#[derive(Default)]
struct Plan {
    findings: Vec<Finding>,
    /// To be sent to the mirror.
    sends: Vec<ByteRange>,
    /// Blocks that are the same afterwards.
    mended: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Nothing,
    Send,
    Write,
}

impl Block {
    pub fn place(&self, chunk: ByteRange) -> ByteRange {
        block_of(chunk, self.index)
    }

    fn bit(&self) -> u64 {
        1 << self.index
    }

    /// Who is wrong. Both sites may be, and not only where they differ.
    fn decide(&self) -> Verdict {
        let side = |content: &Option<Vec<u8>>, side| match content {
            Some(_) => Sides::NONE,
            None => side,
        };
        let unreadable = side(&self.ours, Sides::PRIMARY).and(side(&self.theirs, Sides::MIRROR));
        let mut wrong = unreadable;
        let readable = self.ours.as_ref().or(self.theirs.as_ref());
        let mut right = readable.cloned().unwrap_or_else(|| vec![0; self.len]);
        for (at, byte) in right.iter_mut().enumerate() {
            let ours = self.ours.as_ref().map(|c| c[at]);
            let theirs = self.theirs.as_ref().map(|c| c[at]);
            match self.proof.byte(at) {
                Some(proven) => {
                    if ours.is_some_and(|b| b != proven) {
                        wrong = wrong.and(Sides::PRIMARY);
                    }
                    if theirs.is_some_and(|b| b != proven) {
                        wrong = wrong.and(Sides::MIRROR);
                    }
                    *byte = proven;
                }
                None if ours.is_some() && theirs.is_some() && ours != theirs => {
                    return Verdict {
                        wrong: Sides::NONE,
                        unreadable,
                        right: None,
                    };
                }
                None if ours.is_none() && theirs.is_none() => {
                    return Verdict {
                        wrong,
                        unreadable,
                        right: None,
                    };
                }
                None => {}
            }
        }
        Verdict {
            wrong,
            unreadable,
            right: Some(right),
        }
    }
}

/// The blocks of a chunk, among these, in which the sites differ.
pub(super) fn differing_blocks(
    chunk: ByteRange,
    ours: &ChunkRead,
    theirs: &ChunkRead,
    among: u64,
) -> Vec<Block> {
    let mut blocks = Vec::new();
    for index in 0..blocks_in(chunk) {
        let at = index as usize * BLOCK;
        let to = at + block_of(chunk, index).len as usize;
        let (a, b) = (&ours.data[at..to], &theirs.data[at..to]);
        let unreadable = |read: &ChunkRead| read.unreadable >> index & 1 == 1;
        let (no_a, no_b) = (unreadable(ours), unreadable(theirs));
        if among >> index & 1 == 1 && (no_a || no_b || a != b) {
            blocks.push(Block {
                index,
                len: a.len(),
                ours: (!no_a).then(|| a.to_vec()),
                theirs: (!no_b).then(|| b.to_vec()),
                proof: Proof::default(),
            });
        }
    }
    blocks
}

impl Doubt {
    /// Who is wrong where, and what is to be done.
    fn decide(self, remedy: Remedy) -> Mend {
        let mut mend = Mend {
            volume: self.volume,
            range: self.range,
            touched: self.touched,
            tries: self.tries,
            writes: Vec::new(),
            plan: Plan::default(),
        };
        // The last block, and what was found and done there: its neighbour may be the same.
        let mut last: Option<(u32, Sides, Sides, Action)> = None;
        for block in self.blocks {
            let place = block.place(self.range);
            let verdict = block.decide();
            let (action, content) = verdict.action(&block, remedy);
            let now = (block.index, verdict.wrong, verdict.unreadable, action);
            let follows = last.is_some_and(|(index, wrong, unreadable, act)| {
                (index + 1, wrong, unreadable, act) == now
            });
            last = Some(now);
            let grow = |range: &mut ByteRange| range.len += place.len;
            let plan = &mut mend.plan;
            match plan.findings.last_mut().filter(|_| follows) {
                Some(finding) => grow(&mut finding.range),
                None => plan.findings.push(Finding {
                    volume: self.volume,
                    range: place,
                    wrong: verdict.wrong,
                    unreadable: verdict.unreadable,
                    repaired: false,
                }),
            }
            match action {
                Action::Nothing => continue,
                Action::Send => match plan.sends.last_mut().filter(|_| follows) {
                    Some(range) => grow(range),
                    None => plan.sends.push(place),
                },
                Action::Write => match mend.writes.last_mut().filter(|_| follows) {
                    Some((_, data)) => data.extend_from_slice(&content),
                    None => mend.writes.push((block.index, content)),
                },
            }
            plan.mended |= block.bit();
        }
        mend
    }
}

impl Verdict {
    /// What mends a block, and what is written, if it is a write.
    fn action(&self, block: &Block, remedy: Remedy) -> (Action, Vec<u8>) {
        let none = (Action::Nothing, Vec::new());
        if !remedy.repair {
            return none;
        }
        match &self.right {
            Some(right) if self.wrong.has(Sides::PRIMARY) => (Action::Write, right.clone()),
            Some(_) => (Action::Send, Vec::new()),
            None if self.wrong != Sides::NONE => none,
            None => match (remedy.keep, &block.theirs) {
                (Sides::PRIMARY, _) => (Action::Send, Vec::new()),
                (Sides::MIRROR, Some(theirs)) => (Action::Write, theirs.clone()),
                _ => none,
            },
        }
    }
}

impl Mend {
    /// Blocks that would be written.
    fn written(&self) -> u64 {
        let of = |(first, data): &(u32, Vec<u8>)| {
            let place = ByteRange::new(
                self.range.offset + u64::from(*first) * BLOCK as u64,
                data.len() as u64,
            );
            blocks_touched(self.range, place)
        };
        self.writes.iter().map(of).fold(0, |a, b| a | b)
    }
}

impl Verifying {
    /// A chunk differs.
    pub fn doubt(&mut self, doubt: Doubt) {
        self.gathered += doubt.blocks.len();
        self.doubts.push(doubt);
    }

    /// What was mended was looked at again.
    pub fn looked_again(&mut self, look: &Look, differing: &[Block]) {
        let still = differing.iter().fold(0, |bits, b| bits | b.bit());
        let mended = look.blocks & !still;
        let mut bytes = 0;
        for index in (0..blocks_in(look.range)).filter(|index| mended >> index & 1 == 1) {
            bytes += block_of(look.range, index).len;
        }
        self.run.found.repaired += bytes;
        let meant = |f: &&mut Finding| f.volume == look.volume && f.range.overlaps(look.range);
        for finding in self.run.findings.iter_mut().filter(meant) {
            let blocks = blocks_touched(look.range, finding.range);
            finding.repaired |= blocks & mended == blocks;
        }
    }
}

impl Group {
    /// An operation enters: what is known of its range as of an earlier LSN is old.
    pub(super) fn note_touched(&mut self, op: &Op) {
        for walk in self.streams.values_mut().filter_map(|s| s.walk.as_mut()) {
            if walk.verifying().is_none() {
                continue;
            }
            for part in walk.parts.iter_mut().filter(|p| p.volume == op.volume) {
                if let Job::Look { touched, .. } = &mut part.job {
                    *touched |= blocks_touched(part.range, op.range);
                }
            }
            let Some(verifying) = walk.verifying_mut() else {
                continue;
            };
            let proving = verifying.proving.iter_mut().flat_map(|p| &mut p.doubts);
            let doubts = verifying.doubts.iter_mut().chain(proving);
            let doubts = doubts.map(|d| (d.volume, d.range, &mut d.touched));
            let mends = verifying.mends.iter_mut();
            let mends = mends.map(|m| (m.volume, m.range, &mut m.touched));
            for (volume, range, touched) in doubts.chain(mends) {
                if volume == op.volume {
                    *touched |= blocks_touched(range, op.range);
                }
            }
        }
    }

    /// Begins a pass over the journal, once that is worth it or nothing else is left to do.
    pub(super) fn begin_proving(&mut self, link: LinkId) {
        let volumes = self.volumes.len();
        let first = self.log.first_lsn();
        let Some(walk) = self.walk(link) else { return };
        let idle = walk.is_quiet();
        let ended = walk.place().0 >= volumes;
        let Some(verifying) = walk.verifying_mut() else {
            return;
        };
        let due = verifying.gathered >= BATCH_BLOCKS || idle && (ended || verifying.is_due());
        if due && verifying.proving.is_none() && !verifying.doubts.is_empty() {
            let doubts = std::mem::take(&mut verifying.doubts);
            verifying.gathered = 0;
            verifying.proving = Some(Proving::new(doubts, first));
        }
    }

    /// What the journal has to say about them is known.
    pub(super) fn settle(&mut self, link: LinkId, doubts: Vec<Doubt>) {
        if let Some(verifying) = self.walk(link).and_then(|w| w.verifying_mut()) {
            let remedy = verifying.run.remedy;
            let mends = doubts.into_iter().map(|d| d.decide(remedy));
            verifying.mends.extend(mends);
        }
        self.carry_mends(link);
    }

    /// Carries out what was decided, as far as operations are admitted.
    pub(super) fn carry_mends(&mut self, link: LinkId) {
        loop {
            let Some(walk) = self.walk(link) else { return };
            let Some(verifying) = walk.verifying_mut() else {
                return;
            };
            let Some(mut mend) = verifying.mends.pop_front() else {
                return;
            };
            if mend.touched & mend.written() != 0 {
                if mend.tries < MOST_TRIES {
                    walk.looks.push_back(Look {
                        volume: mend.volume,
                        range: mend.range,
                        blocks: u64::MAX,
                        tries: mend.tries + 1,
                        mended: false,
                    });
                    continue;
                }
                // Written to without a pause: found, and left for the next time.
                mend.plan.mended &= !mend.written();
                mend.writes.clear();
            }
            if !mend.writes.is_empty() && !self.writes_enter(link, &mut mend) {
                if let Some(verifying) = self.walk(link).and_then(|w| w.verifying_mut()) {
                    verifying.mends.push_front(mend);
                }
                return;
            }
            self.follow(link, mend);
        }
    }

    /// Enters the writes of a chunk, all or none. False if they must wait.
    fn writes_enter(&mut self, link: LinkId, mend: &mut Mend) -> bool {
        if !self.has_budget_for_requests() {
            return false;
        }
        let bytes: usize = mend.writes.iter().map(|(_, data)| data.len()).sum();
        if !self.space_for(ByteRange::new(mend.range.offset, bytes as u64)) {
            let text = format!(
                "no space to mend {} bytes of volume {} at byte {}",
                bytes, mend.volume.0, mend.range.offset
            );
            self.log_line(Severity::Error, text);
            mend.plan.mended &= !mend.written();
            mend.writes.clear();
            return true;
        }
        if !self.frame_has_room(bytes) {
            return false;
        }
        let mut last = Lsn::ZERO;
        for (first, data) in std::mem::take(&mut mend.writes) {
            let at = mend.range.offset + u64::from(first) * BLOCK as u64;
            let zero = is_zero(&data);
            let op = Op {
                kind: if zero {
                    OpKind::WriteZeroes { no_hole: false }
                } else {
                    OpKind::Write
                },
                volume: mend.volume,
                range: ByteRange::new(at, data.len() as u64),
                fua: false,
            };
            let payload = if zero { Bytes::new() } else { data.into() };
            if !self.frame_has_room(payload.len()) {
                self.seal_for_more();
            }
            last = self.core.assign(1);
            self.enter(last, &op, &payload);
        }
        if let Some(verifying) = self.walk(link).and_then(|w| w.verifying_mut()) {
            verifying.mended_at = verifying.mended_at.max(last);
        }
        true
    }

    /// Notes what was found, sends what the mirror lacks, and has all of it looked at again.
    fn follow(&mut self, link: LinkId, mend: Mend) {
        let Plan {
            findings,
            sends,
            mended,
        } = mend.plan;
        for finding in findings {
            self.note_finding(link, finding);
        }
        let Some(walk) = self.walk(link) else { return };
        walk.send
            .extend(sends.into_iter().map(|range| (mend.volume, range)));
        if mended != 0 {
            walk.looks.push_back(Look {
                volume: mend.volume,
                range: mend.range,
                blocks: mended,
                tries: 0,
                mended: true,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(ours: Option<u8>, theirs: Option<u8>, proof: &[(usize, usize, u8)]) -> Block {
        let content = |byte: u8| {
            let mut all = vec![1; BLOCK];
            all[100] = byte;
            all
        };
        let mut known = Proof::default();
        for (at, len, byte) in proof {
            known.write(*at, *len, Some(&vec![*byte; *len]));
        }
        Block {
            index: 0,
            len: BLOCK,
            ours: ours.map(content),
            theirs: theirs.map(content),
            proof: known,
        }
    }

    fn decided(block: &Block) -> (Sides, Option<u8>) {
        let verdict = block.decide();
        (verdict.wrong, verdict.right.map(|r| r[100]))
    }

    #[test]
    fn who_differs_from_what_the_journal_says_is_wrong() {
        let all = [(0, BLOCK, 1)];
        assert_eq!(
            decided(&block(Some(9), Some(1), &all)),
            (Sides::PRIMARY, Some(1))
        );
        assert_eq!(
            decided(&block(Some(1), Some(9), &all)),
            (Sides::MIRROR, Some(1))
        );
        assert_eq!(
            decided(&block(Some(8), Some(9), &all)),
            (Sides::BOTH, Some(1))
        );
        // It is enough if the bytes in question are known.
        let some = [(96, 8, 1)];
        assert_eq!(
            decided(&block(Some(9), Some(1), &some)),
            (Sides::PRIMARY, Some(1))
        );
    }

    #[test]
    fn without_proof_for_every_byte_that_differs_nothing_is_decided() {
        for proof in [&[][..], &[(0, 100, 1)], &[(101, BLOCK - 101, 1)]] {
            assert_eq!(
                decided(&block(Some(9), Some(1), proof)),
                (Sides::NONE, None),
                "{proof:?}"
            );
        }
    }

    #[test]
    fn who_cannot_be_read_is_wrong_and_the_other_only_if_that_is_shown() {
        assert_eq!(
            decided(&block(None, Some(7), &[])),
            (Sides::PRIMARY, Some(7))
        );
        assert_eq!(
            decided(&block(Some(7), None, &[])),
            (Sides::MIRROR, Some(7))
        );
        assert_eq!(
            decided(&block(Some(7), None, &[(0, BLOCK, 1)])),
            (Sides::BOTH, Some(1))
        );
        assert_eq!(decided(&block(None, None, &[])), (Sides::BOTH, None));
        assert_eq!(
            decided(&block(None, None, &[(0, BLOCK, 1)])),
            (Sides::BOTH, Some(1))
        );
    }
}
