//! For every byte of one volume: the newest operation that is not applied yet.

use std::collections::BTreeMap;

use super::{ReadPlan, Source};
use crate::base::{ByteRange, Lsn};

/// Disjoint ranges by their start.
///
/// `rangemap::RangeMap` was measured instead: 587 against 323 ns of CPU time per operation (random 4 KiB, 10,000 unapplied). It
/// cannot remove by value, where an apply takes only those parts with it that no newer operation covers, and it compares
/// neighbours that never are equal here.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    ranges: BTreeMap<u64, Tip>,
}

/// The visible operation from some start on.
#[derive(Clone, Copy, Debug)]
struct Tip {
    end: u64,
    lsn: Lsn,
}

impl Overlay {
    /// The operation covers the range, whatever was there.
    pub(super) fn insert(&mut self, range: ByteRange, lsn: Lsn) {
        if range.len == 0 {
            return;
        }
        let (start, end) = (range.offset, range.end());
        let new = Tip { end, lsn };
        // From the right: what begins last before our end is the only one that can reach beyond it.
        while let Some((&old_start, old)) = self.ranges.range_mut(..end).next_back() {
            if old.end <= start {
                break;
            }
            let right = (old.end > end).then_some(*old);
            if old_start < start {
                old.end = start;
                if let Some(right) = right {
                    self.ranges.insert(end, right);
                }
                break;
            }
            if old_start == start {
                *old = new;
                if let Some(right) = right {
                    self.ranges.insert(end, right);
                }
                return;
            }
            self.ranges.remove(&old_start);
            if let Some(right) = right {
                self.ranges.insert(end, right);
            }
        }
        self.ranges.insert(start, new);
    }

    /// Uncovers what is still visible of the operation; `range` is all of it.
    pub(super) fn remove(&mut self, range: ByteRange, lsn: Lsn) {
        if range.len == 0 {
            return;
        }
        self.ranges
            .extract_if(range.offset..range.end(), |_, tip| tip.lsn == lsn)
            .for_each(drop);
    }

    /// The range as pieces of operations and of the home.
    pub(super) fn plan(&self, range: ByteRange) -> ReadPlan {
        let mut plan = ReadPlan::default();
        if range.len == 0 {
            return plan;
        }
        let start = range.offset;
        // From right to left; everything from `planned` on is in the plan already.
        let mut planned = range.end();
        for (&tip_start, tip) in self.ranges.range(..range.end()).rev() {
            if tip.end <= start {
                break;
            }
            let tip_end = tip.end.min(range.end());
            if tip_end < planned {
                plan.push(tip_end, planned, Source::Home);
            }
            planned = tip_start.max(start);
            plan.push(planned, tip_end, Source::Overlay(tip.lsn));
            plan.newest = plan.newest.max(Some(tip.lsn));
        }
        if start < planned {
            plan.push(start, planned, Source::Home);
        }
        plan.pieces.reverse();
        plan
    }
}
