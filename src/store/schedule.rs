//! Which applies may run at the same time.

use super::Policy;
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{ByteRange, Lsn, Op, VolumeId};

/// Names a range that is kept still.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HoldId(pub u64);

/// What an apply touches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    lsn: Lsn,
    volume: VolumeId,
    range: ByteRange,
    /// Nothing runs beside it.
    barrier: bool,
}

impl Span {
    pub(super) fn of(lsn: Lsn, op: &Op) -> Span {
        Span {
            lsn,
            volume: op.volume,
            range: op.range,
            barrier: op.kind.is_control(),
        }
    }

    fn touches(&self, volume: VolumeId, range: ByteRange) -> bool {
        !self.barrier && self.volume == volume && self.range.overlaps(range)
    }

    fn collides(&self, other: &Span) -> bool {
        #[cfg(test)]
        if sabotaged(Sabotage::ApplyOutOfOrder) {
            return self.barrier || other.barrier;
        }
        self.barrier || other.barrier || self.touches(other.volume, other.range)
    }
}

/// A range that is kept still.
#[derive(Debug)]
struct Hold {
    id: HoldId,
    volume: VolumeId,
    range: ByteRange,
    /// What is not later than this may be applied nevertheless.
    after: Lsn,
}

impl Hold {
    fn stops(&self, span: &Span) -> bool {
        span.lsn > self.after && span.touches(self.volume, self.range)
    }
}

/// What became of an apply that was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Offer {
    /// It runs.
    Started,
    /// It must wait and is remembered; later ones may be offered.
    Waits,
    /// It must wait and so must all later ones: offer it again.
    Refused,
}

/// Applies in flight, applies that were overtaken, and ranges kept still.
///
/// All three are short lists, bounded by the policy and by how many chunks a copy has under way: comparing with each is
/// faster than keeping a tree.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    running: Vec<Span>,
    /// In LSN order.
    waiting: Vec<Span>,
    /// The first so many of `waiting` cannot start before something ends.
    blocked: usize,
    holds: Vec<Hold>,
    last_hold: u64,
}

impl Schedule {
    /// Applies in flight.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Starts the first of those that wait and need not any more.
    pub(super) fn next_waiting(&mut self) -> Option<Lsn> {
        while self.blocked < self.waiting.len() {
            let (earlier, rest) = self.waiting.split_at(self.blocked);
            let span = rest[0];
            if self.must_wait(&span, earlier) {
                self.blocked += 1;
            } else {
                self.waiting.remove(self.blocked);
                self.running.push(span);
                return Some(span.lsn);
            }
        }
        None
    }

    /// Starts an apply later than all before, if it may. To be asked after [`Schedule::next_waiting`] had none.
    pub(super) fn offer(&mut self, span: Span, policy: &Policy) -> Offer {
        if !self.must_wait(&span, &self.waiting) {
            self.running.push(span);
            return Offer::Started;
        }
        if self.waiting.len() >= policy.max_waiting {
            return Offer::Refused;
        }
        self.waiting.push(span);
        self.blocked = self.waiting.len();
        Offer::Waits
    }

    fn must_wait(&self, span: &Span, earlier: &[Span]) -> bool {
        #[cfg(test)]
        if sabotaged(Sabotage::IgnoreHolds) {
            return self.running.iter().chain(earlier).any(|s| s.collides(span));
        }
        self.running.iter().any(|s| s.collides(span))
            || earlier.iter().any(|s| s.collides(span))
            || self.holds.iter().any(|hold| hold.stops(span))
    }

    /// An apply completed; false if it does not run.
    pub(super) fn finish(&mut self, lsn: Lsn) -> bool {
        let Some(at) = self.running.iter().position(|s| s.lsn == lsn) else {
            return false;
        };
        self.running.swap_remove(at);
        self.blocked = 0;
        true
    }

    pub(super) fn hold(&mut self, volume: VolumeId, range: ByteRange, after: Lsn) -> HoldId {
        self.last_hold += 1;
        let id = HoldId(self.last_hold);
        self.holds.push(Hold {
            id,
            volume,
            range,
            after,
        });
        id
    }

    /// Ends a hold; false if there is none.
    pub(super) fn release(&mut self, hold: HoldId) -> bool {
        let Some(at) = self.holds.iter().position(|h| h.id == hold) else {
            return false;
        };
        self.holds.swap_remove(at);
        self.blocked = 0;
        true
    }

    pub(super) fn quiet(&self, volume: VolumeId, range: ByteRange) -> bool {
        !self.running.iter().any(|s| s.touches(volume, range))
    }
}
