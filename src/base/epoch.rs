//! Positions in a group's history: LSNs, epochs and the lineage that orders them.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::AckMode;
#[cfg(test)]
use super::sabotage::{Sabotage, sabotaged};

/// Log sequence number: the position of one operation in a group's history.
///
/// The first operation has LSN 1; 0 stands for 'before everything'. There are no gaps.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before the first operation.
    pub const ZERO: Lsn = Lsn(0);

    /// The position after this one.
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }

    /// The position before this one; `ZERO` stays `ZERO`.
    pub fn prev(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }

    /// The position `count` operations later.
    pub fn plus(self, count: u64) -> Lsn {
        Lsn(self.0 + count)
    }

    /// How many operations `self` is ahead of `other`; 0 if it is not.
    pub fn since(self, other: Lsn) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A stretch of history written by one primary without interruption.
///
/// Two epochs are the same epoch if and only if their ids are equal; the number is for people and for ordering.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Epoch {
    /// Counts up along a lineage, from 1.
    pub number: u64,
    /// Random, unique for ever.
    pub id: Uuid,
    /// Name of the site that wrote it.
    pub site: String,
    /// LSN of its first operation, which is the operation that opens it.
    pub first_lsn: Lsn,
    /// How operations of this epoch are acknowledged.
    pub ack: AckMode,
    /// Whether the epoch was opened to serve without a peer that the rule would need.
    pub alone: bool,
    /// Whether the site that opened it held everything that the epoch before can have acknowledged in sync, be it in
    /// memory only. A mirror that was restarted since the primary's last word cannot say so.
    pub complete: bool,
    /// Whether the site that opened it had homes in the middle of a copy: their content is a mixture of old and new, and this
    /// epoch is not what the history before it says. For good: whoever holds a whole copy of that history is a fork.
    pub mixture: bool,
    /// When it was opened, in nanoseconds since the Unix epoch, by the frame clock.
    pub time_ns: u64,
}

impl Epoch {
    fn check_follows(&self, last: Option<&Epoch>) -> Result<(), String> {
        if self.first_lsn == Lsn::ZERO {
            return Err(format!(
                "epoch {} begins at LSN 0; the first LSN is 1",
                self.number
            ));
        }
        let Some(last) = last else { return Ok(()) };
        if self.number <= last.number {
            return Err(format!(
                "epoch {} follows epoch {}; numbers must rise",
                self.number, last.number
            ));
        }
        if self.first_lsn <= last.first_lsn {
            return Err(format!(
                "epoch {} begins at LSN {}, not after LSN {} where epoch {} began",
                self.number, self.first_lsn, last.first_lsn, last.number
            ));
        }
        Ok(())
    }
}

/// The epochs of a group from the beginning, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage(Vec<Epoch>);

/// How two histories relate: the newest epoch both have and where each leaves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Common {
    /// Last LSN of this side's history that lies in or before the newest shared epoch.
    pub mine: Lsn,
    /// The same of the other side.
    pub theirs: Lsn,
    /// This side has epochs that the other does not know.
    pub i_went_on: bool,
    /// The other side has epochs that this one does not know.
    pub they_went_on: bool,
}

impl Common {
    /// The last LSN at which both histories are the same.
    pub fn lsn(self) -> Lsn {
        self.mine.min(self.theirs)
    }
}

impl Lineage {
    /// A lineage of these epochs, oldest first.
    ///
    /// # Errors
    /// Says which rule is broken: numbers must rise, first LSNs must not fall, ids must be unique.
    pub fn new(epochs: Vec<Epoch>) -> Result<Lineage, String> {
        let mut last = None;
        for epoch in &epochs {
            epoch.check_follows(last)?;
            last = Some(epoch);
        }
        // Sorted, because comparing each with each takes seconds for as many as a peer may send.
        let mut ids: Vec<Uuid> = epochs.iter().map(|e| e.id).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("epoch id {} appears twice", pair[0])),
            None => Ok(Lineage(epochs)),
        }
    }

    /// Adds the next epoch.
    ///
    /// # Errors
    /// Refuses an epoch that cannot follow the last one, and says why.
    pub fn push(&mut self, epoch: Epoch) -> Result<(), String> {
        epoch.check_follows(self.0.last())?;
        if self.contains(epoch.id) {
            return Err(format!("epoch id {} appears twice", epoch.id));
        }
        self.0.push(epoch);
        Ok(())
    }

    /// The epochs, oldest first.
    pub fn epochs(&self) -> &[Epoch] {
        &self.0
    }

    /// The newest epoch.
    pub fn last(&self) -> Option<&Epoch> {
        self.0.last()
    }

    /// True before the first epoch was opened.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this epoch is part of the lineage.
    pub fn contains(&self, id: Uuid) -> bool {
        self.0.iter().rev().any(|e| e.id == id)
    }

    /// The epoch that the operation at `lsn` belongs to.
    pub fn at(&self, lsn: Lsn) -> Option<&Epoch> {
        self.0.iter().rev().find(|e| e.first_lsn <= lsn)
    }

    /// How many epochs were opened after this LSN: as many operations there are that no client asked for.
    pub fn opened_after(&self, lsn: Lsn) -> u64 {
        self.epochs().iter().filter(|e| e.first_lsn > lsn).count() as u64
    }

    /// Forgets the epochs that begin after `lsn`.
    pub fn truncate_after(&mut self, lsn: Lsn) {
        while self.0.last().is_some_and(|e| e.first_lsn > lsn) {
            self.0.pop();
        }
    }

    /// The epoch that follows the one with this id.
    pub fn after(&self, id: Uuid) -> Option<&Epoch> {
        let at = self.0.iter().position(|e| e.id == id)?;
        self.0.get(at + 1)
    }

    /// The last epoch that was opened on a mixture.
    pub fn last_mixture(&self) -> Option<&Epoch> {
        self.0.iter().rfind(|e| e.mixture)
    }

    /// Compares two histories that end at `tail` and `their_tail`.
    ///
    /// `None` if both have epochs but share none: the histories are unrelated. An empty history is a prefix of
    /// every other.
    pub fn common(&self, tail: Lsn, theirs: &Lineage, their_tail: Lsn) -> Option<Common> {
        if self.is_empty() || theirs.is_empty() {
            return Some(Common {
                mine: Lsn::ZERO,
                theirs: Lsn::ZERO,
                i_went_on: !self.is_empty(),
                they_went_on: !theirs.is_empty(),
            });
        }
        #[cfg(test)]
        if sabotaged(Sabotage::ForgetLineage) {
            return Some(Common {
                mine: tail,
                theirs: their_tail,
                i_went_on: false,
                they_went_on: false,
            });
        }
        let mine_at = self.0.iter().rposition(|e| theirs.contains(e.id))?;
        let id = self.0[mine_at].id;
        let theirs_at = theirs.0.iter().position(|e| e.id == id)?;
        #[cfg(test)]
        let (mine_at, theirs_at) = if sabotaged(Sabotage::CompareEpochNumbers) {
            let same = |e: &Epoch| theirs.0.iter().rposition(|t| t.number == e.number);
            let mine_at = self.0.iter().rposition(|e| same(e).is_some())?;
            (mine_at, same(&self.0[mine_at])?)
        } else {
            (mine_at, theirs_at)
        };
        let end = |epochs: &[Epoch], at: usize, tail: Lsn| {
            epochs.get(at + 1).map_or(tail, |e| e.first_lsn.prev())
        };
        Some(Common {
            mine: end(&self.0, mine_at, tail),
            theirs: end(&theirs.0, theirs_at, their_tail),
            i_went_on: mine_at + 1 < self.0.len(),
            they_went_on: theirs_at + 1 < theirs.0.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(number: u64, id: u128, first: u64) -> Epoch {
        Epoch {
            number,
            id: Uuid::from_u128(id),
            site: "clichy".into(),
            first_lsn: Lsn(first),
            ack: AckMode::Sync,
            alone: false,
            complete: false,
            mixture: false,
            time_ns: 0,
        }
    }

    fn lineage(epochs: &[(u64, u128, u64)]) -> Lineage {
        Lineage::new(epochs.iter().map(|&(n, id, l)| epoch(n, id, l)).collect()).unwrap()
    }

    #[test]
    fn a_longer_tail_in_the_same_epoch_shares_the_shorter_one() {
        let a = lineage(&[(1, 10, 1), (2, 20, 50)]);
        let c = a.common(Lsn(90), &a, Lsn(70)).unwrap();
        assert_eq!(
            (c.lsn(), c.i_went_on, c.they_went_on),
            (Lsn(70), false, false)
        );
    }

    #[test]
    fn a_fork_shares_the_history_up_to_where_either_side_left_the_common_epoch() {
        let a = lineage(&[(1, 10, 1), (2, 20, 51)]);
        let b = lineage(&[(1, 10, 1), (2, 21, 61)]);
        let c = a.common(Lsn(80), &b, Lsn(99)).unwrap();
        assert_eq!(
            c,
            Common {
                mine: Lsn(50),
                theirs: Lsn(60),
                i_went_on: true,
                they_went_on: true
            }
        );
    }

    #[test]
    fn histories_without_a_shared_epoch_are_unrelated_but_an_empty_one_is_a_prefix_of_all() {
        let a = lineage(&[(1, 10, 1)]);
        let b = lineage(&[(1, 11, 1)]);
        assert_eq!(a.common(Lsn(5), &b, Lsn(5)), None);
        let c = a.common(Lsn(5), &Lineage::default(), Lsn(0)).unwrap();
        assert_eq!(
            (c.lsn(), c.i_went_on, c.they_went_on),
            (Lsn(0), true, false)
        );
    }

    #[test]
    fn an_epoch_that_cannot_follow_is_refused() {
        let mut a = lineage(&[(1, 10, 1), (2, 20, 50)]);
        assert!(a.push(epoch(2, 30, 60)).is_err());
        assert!(a.push(epoch(3, 30, 50)).is_err());
        assert!(a.push(epoch(3, 10, 60)).is_err());
        assert!(Lineage::new(vec![epoch(1, 10, 1), epoch(2, 10, 50)]).is_err());
        assert!(Lineage::new(vec![epoch(1, 10, 0)]).is_err());
        assert!(a.push(epoch(3, 30, 60)).is_ok());
        a.truncate_after(Lsn(59));
        assert_eq!(a.last().unwrap().number, 2);
        assert_eq!(a.at(Lsn(49)).unwrap().number, 1);
    }
}
