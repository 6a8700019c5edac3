//! Memory that clients may make the shard hold: payloads of writes on their way in, contents of reads on their way out.
//!
//! Budgets form a tree: what a client takes is also taken from its group's, and that from the shard's. The first
//! [`Budget::allowance`] bytes of a child come free, so that a client whose neighbours took everything still gets small
//! requests through; there are as many allowances as connections, which bounds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;

/// A limit on bytes held.
pub struct Budget {
    limit: usize,
    /// Bytes that are not charged to the parent.
    allowance: usize,
    held: AtomicUsize,
    parent: Option<Arc<Budget>>,
}

/// Bytes taken from a budget, until dropped.
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// The shard's.
    pub fn root(limit: usize) -> Arc<Budget> {
        Arc::new(Budget {
            limit,
            allowance: 0,
            held: AtomicUsize::new(0),
            parent: None,
        })
    }

    /// A part of this one.
    pub fn child(self: &Arc<Budget>, limit: usize, allowance: usize) -> Arc<Budget> {
        Arc::new(Budget {
            limit,
            allowance,
            held: AtomicUsize::new(0),
            parent: Some(self.clone()),
        })
    }

    /// Takes bytes, unless there are not enough left here or further up.
    pub fn take(self: &Arc<Budget>, bytes: usize) -> Option<Charge> {
        self.add(bytes).then(|| Charge {
            budget: self.clone(),
            bytes,
        })
    }

    /// Bytes held by this part.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    // Bytes are taken on the shard's thread alone; they may come back on any.
    fn add(&self, bytes: usize) -> bool {
        let held = self.held();
        if held + bytes > self.limit {
            return false;
        }
        let above = self.above(held + bytes) - self.above(held);
        if above > 0 && !self.parent.as_ref().is_none_or(|parent| parent.add(above)) {
            return false;
        }
        self.held.fetch_add(bytes, Relaxed);
        true
    }

    fn give_back(&self, bytes: usize) {
        let before = self.held.fetch_sub(bytes, Relaxed);
        let above = self.above(before) - self.above(before - bytes);
        if let (true, Some(parent)) = (above > 0, &self.parent) {
            parent.give_back(above);
        }
    }

    /// What of `held` is the parent's concern.
    fn above(&self, held: usize) -> usize {
        held.saturating_sub(self.allowance)
    }
}

impl Charge {
    /// `content`, which holds on to the charge for as long as any part of it lives.
    pub fn around(self, content: Bytes) -> Bytes {
        struct Charged {
            content: Bytes,
            _charge: Charge,
        }
        impl AsRef<[u8]> for Charged {
            fn as_ref(&self) -> &[u8] {
                &self.content
            }
        }
        Bytes::from_owner(Charged {
            content,
            _charge: self,
        })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_counts_further_up_beyond_the_allowance_and_comes_back_with_the_last_slice() {
        let shard = Budget::root(100);
        let group = shard.child(80, 0);
        let client = group.child(70, 10);
        let small = client.take(10).unwrap();
        assert_eq!((shard.held(), client.held()), (0, 10));
        let content = client.take(40).unwrap().around(Bytes::from(vec![7; 40]));
        assert_eq!((shard.held(), group.held(), client.held()), (40, 40, 50));
        let slice = content.slice(3..5);
        drop(content);
        assert_eq!(shard.held(), 40);
        drop(small);
        assert_eq!((shard.held(), client.held()), (30, 40));
        drop(slice);
        assert_eq!((shard.held(), group.held(), client.held()), (0, 0, 0));
    }

    #[test]
    fn nobody_takes_more_than_any_budget_above_has_but_the_allowance_is_always_there() {
        let shard = Budget::root(100);
        let (frozen, other) = (shard.child(60, 0), shard.child(60, 0));
        let greedy = frozen.child(1000, 10);
        let hold = greedy.take(70).unwrap();
        assert!(greedy.take(1).is_none(), "the group has no more");
        assert!(frozen.child(1000, 10).take(11).is_none());
        assert!(frozen.child(1000, 10).take(10).is_some());
        let neighbour = other.child(30, 10);
        assert!(neighbour.take(31).is_none(), "its own limit");
        let quiet = neighbour.take(30).unwrap();
        assert_eq!(shard.held(), 80);
        drop((hold, quiet));
        assert_eq!(shard.held(), 0);
    }
}
