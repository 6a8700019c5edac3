//! When and how operations are written to the homes: the knobs of write-back.
//!
//! This is the place for pacing (spreading applies over time so that clients' reads and the journal keep the disk) and
//! for coalescing (leaving out operations that newer allowed ones cover completely, joining neighbours). Both are
//! decisions about which [`super::Apply`] comes next and never about order: that is `schedule`'s.

/// How applies are scheduled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Applies that may be in flight at once.
    pub max_in_flight: usize,
    /// Applies that may be overtaken at once. Every later one is compared with each of them, so that this bounds the
    /// work per operation when many writes go to the same place.
    pub max_waiting: usize,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            max_in_flight: 64,
            max_waiting: 32,
        }
    }
}
