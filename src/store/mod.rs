//! Operations that are admitted and not yet in the homes: what they hold, what they cover, and which may be applied.
//!
//! # Invariants
//! - An operation is handed out for applying only up to the LSN that [`Store::allow`] named (the WAL rule).
//! - Two operations whose ranges overlap are applied one after the other, in LSN order.
//! - What an operation covers is seen by reads from its admission until its own apply has completed.
//!
//! It knows no journal, no link and no acknowledgement. How eagerly operations are applied is decided here, in
//! [`Store::next_apply`]; a policy that delays and coalesces belongs there.

mod overlay;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;
use slab::Slab;
use smallvec::SmallVec;

use self::overlay::Overlay;
use crate::base::{ByteRange, Lsn, Op, OpKind, VolumeId};

/// Applies under way at once.
const MAX_IN_FLIGHT: usize = 64;

/// What an operation brings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Exactly as many bytes as the range has.
    Data(Bytes),
    /// Zeroes; the range stays allocated if `keep`.
    Zero {
        /// Keep the range allocated.
        keep: bool,
    },
    /// The payload of an operation on the group.
    Control(Bytes),
}

impl Content {
    /// What an operation with this payload brings.
    pub fn of(op: &Op, payload: Bytes) -> Content {
        match op.kind {
            OpKind::Write => Content::Data(payload),
            OpKind::WriteZeroes { no_hole } => Content::Zero { keep: no_hole },
            OpKind::Trim => Content::Zero { keep: false },
            OpKind::OpenEpoch | OpKind::CreateVolume => Content::Control(payload),
        }
    }
}

/// An operation that may be applied now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Apply {
    /// Its LSN; report it with [`Store::applied`].
    pub lsn: Lsn,
    /// The operation.
    pub op: Op,
    /// What it brings.
    pub content: Content,
}

/// Where a piece of a read comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The home.
    Home,
    /// This operation: see [`Store::content`].
    Overlay(Lsn),
}

/// A piece of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlanPiece {
    /// Bytes of the volume.
    pub range: ByteRange,
    /// Where they are.
    pub source: Source,
}

/// How to answer a read at this moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadPlan {
    /// Pieces in order, without gaps.
    pub pieces: SmallVec<[PlanPiece; 4]>,
    /// Highest LSN among the pieces: the reply must wait until it is committed.
    pub newest: Option<Lsn>,
}

/// A range on which no apply starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldId(usize);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    Waiting,
    Started,
    Applied,
}

#[derive(Debug)]
struct Entry {
    op: Op,
    content: Option<Content>,
    progress: Progress,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Store {
    /// Everything after this LSN, in order.
    applied: Lsn,
    entries: VecDeque<Entry>,
    overlay: Overlay,
    allowed: Lsn,
    /// First entry that has not started.
    next: Lsn,
    in_flight: Vec<(Lsn, VolumeId, ByteRange)>,
    holds: Slab<(VolumeId, ByteRange)>,
    unapplied_bytes: u64,
}

impl Store {
    /// A store whose homes hold everything up to `applied`.
    pub fn new(applied: Lsn) -> Store {
        Store {
            applied,
            entries: VecDeque::new(),
            overlay: Overlay::default(),
            allowed: applied,
            next: applied.next(),
            in_flight: Vec::new(),
            holds: Slab::new(),
            unapplied_bytes: 0,
        }
    }

    fn index(&self, lsn: Lsn) -> Option<usize> {
        let at = lsn.0.checked_sub(self.applied.0 + 1)?;
        usize::try_from(at)
            .ok()
            .filter(|at| *at < self.entries.len())
    }

    /// Bytes of memory that an operation is counted with: its content, and the bookkeeping.
    fn weight(op: &Op) -> u64 {
        128 + if op.kind == OpKind::Write {
            op.range.len
        } else {
            0
        }
    }

    /// Enters the operation after the last one. Its content may follow later.
    ///
    /// # Panics
    /// If `lsn` is not the next.
    pub fn admit(&mut self, lsn: Lsn, op: &Op) {
        assert_eq!(
            lsn,
            self.applied.plus(self.entries.len() as u64 + 1),
            "operations enter in LSN order"
        );
        if !op.kind.is_control() {
            self.overlay.cover(op.volume, op.range, lsn);
        }
        self.unapplied_bytes += Store::weight(op);
        self.entries.push_back(Entry {
            op: *op,
            content: None,
            progress: Progress::Waiting,
        });
    }

    /// What the operation at `lsn` brings.
    pub fn attach(&mut self, lsn: Lsn, content: Content) {
        if let Some(at) = self.index(lsn) {
            self.entries[at].content = Some(content);
        }
    }

    /// The homes may hold everything up to here. Never goes back.
    pub fn allow(&mut self, lsn: Lsn) {
        self.allowed = self.allowed.max(lsn);
    }

    /// The next operation that may be applied now, if any.
    ///
    /// Operations start in LSN order; one that overlaps an apply under way or a held range waits, and those behind it
    /// wait with it. An operation on the group starts when everything before it has completed, and what comes after it
    /// waits for it.
    pub fn next_apply(&mut self) -> Option<Apply> {
        if self.next > self.allowed || self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let lsn = self.next;
        let at = self.index(lsn)?;
        let entry = &self.entries[at];
        let op = entry.op;
        let content = entry.content.clone()?;
        let barrier =
            op.kind.is_control() || self.in_flight.iter().any(|(l, ..)| self.is_control(*l));
        let blocked = if barrier {
            !self.in_flight.is_empty()
        } else {
            !self.quiet(op.volume, op.range) || self.held(op.volume, op.range)
        };
        if blocked {
            return None;
        }
        self.entries[at].progress = Progress::Started;
        self.in_flight.push((lsn, op.volume, op.range));
        self.next = lsn.next();
        Some(Apply { lsn, op, content })
    }

    fn is_control(&self, lsn: Lsn) -> bool {
        self.index(lsn)
            .is_some_and(|at| self.entries[at].op.kind.is_control())
    }

    /// The apply of this operation completed.
    pub fn applied(&mut self, lsn: Lsn) {
        self.in_flight.retain(|(l, ..)| *l != lsn);
        let Some(at) = self.index(lsn) else { return };
        let op = self.entries[at].op;
        self.entries[at].progress = Progress::Applied;
        self.entries[at].content = None;
        self.unapplied_bytes -= Store::weight(&op);
        if !op.kind.is_control() {
            self.overlay.uncover(op.volume, op.range, lsn);
        }
        while self
            .entries
            .front()
            .is_some_and(|e| e.progress == Progress::Applied)
        {
            self.entries.pop_front();
            self.applied = self.applied.next();
        }
    }

    /// The homes hold everything up to here.
    pub fn applied_lsn(&self) -> Lsn {
        self.applied
    }

    /// Memory held by operations not yet applied, in bytes.
    pub fn unapplied_bytes(&self) -> u64 {
        self.unapplied_bytes
    }

    /// Operations not yet applied.
    pub fn unapplied_ops(&self) -> usize {
        self.entries
            .iter()
            .filter(|e| e.progress != Progress::Applied)
            .count()
    }

    /// How to answer a read of this range at this moment.
    pub fn read_plan(&self, volume: VolumeId, range: ByteRange) -> ReadPlan {
        let mut plan = ReadPlan {
            pieces: SmallVec::new(),
            newest: None,
        };
        let mut at = range.offset;
        let home = |from: u64, to: u64, pieces: &mut SmallVec<[PlanPiece; 4]>| {
            if from < to {
                pieces.push(PlanPiece {
                    range: ByteRange::new(from, to - from),
                    source: Source::Home,
                });
            }
        };
        for (covered, lsn) in self.overlay.covering(volume, range) {
            home(at, covered.offset, &mut plan.pieces);
            plan.pieces.push(PlanPiece {
                range: covered,
                source: Source::Overlay(lsn),
            });
            plan.newest = plan.newest.max(Some(lsn));
            at = covered.end();
        }
        home(at, range.end(), &mut plan.pieces);
        plan
    }

    /// What the operation at `lsn` brings to this part of its range. `None` before [`Store::attach`], and once it was
    /// applied: take it when the plan is made.
    pub fn content(&self, lsn: Lsn, range: ByteRange) -> Option<Content> {
        let entry = &self.entries[self.index(lsn)?];
        match entry.content.as_ref()? {
            Content::Data(data) => {
                let from = usize::try_from(range.offset - entry.op.range.offset).ok()?;
                let to = from + usize::try_from(range.len).ok()?;
                Some(Content::Data(data.slice(from..to)))
            }
            other => Some(other.clone()),
        }
    }

    /// Forgets the operations after `lsn`, none of which was allowed. What they covered is seen as before them.
    pub fn truncate_after(&mut self, lsn: Lsn) {
        let keep = usize::try_from(lsn.since(self.applied)).expect("bounded by memory");
        while self.entries.len() > keep {
            let entry = self.entries.pop_back().expect("longer than what is kept");
            debug_assert_eq!(
                entry.progress,
                Progress::Waiting,
                "what was allowed is never dropped"
            );
            self.unapplied_bytes -= Store::weight(&entry.op);
        }
        self.overlay = Overlay::default();
        for (n, entry) in self.entries.iter().enumerate() {
            if entry.progress != Progress::Applied && !entry.op.kind.is_control() {
                let lsn = self.applied.plus(n as u64 + 1);
                self.overlay.cover(entry.op.volume, entry.op.range, lsn);
            }
        }
    }

    /// From now on no apply that touches the range starts.
    pub fn hold(&mut self, volume: VolumeId, range: ByteRange) -> HoldId {
        HoldId(self.holds.insert((volume, range)))
    }

    /// Ends a hold.
    pub fn release(&mut self, hold: HoldId) {
        self.holds.try_remove(hold.0);
    }

    fn held(&self, volume: VolumeId, range: ByteRange) -> bool {
        self.holds
            .iter()
            .any(|(_, (v, r))| *v == volume && r.overlaps(range))
    }

    /// Whether no apply that touches the range is under way.
    pub fn quiet(&self, volume: VolumeId, range: ByteRange) -> bool {
        !self
            .in_flight
            .iter()
            .any(|(_, v, r)| *v == volume && r.overlaps(range))
    }
}
