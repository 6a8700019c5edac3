//! Bounds that the engine keeps and operators are told.

/// With less than so many bytes left to promise to writers, space for the homes is called nearly out.
pub const SHORT_OF_SPACE_BYTES: u64 = 1 << 30;

/// Most bytes of operations that are not yet in the homes: they are held in memory until then. 64 MiB, or a quarter of a journal of
/// this size, if that is less.
pub fn unapplied_most_bytes(journal_bytes: u64) -> u64 {
    (journal_bytes / 4).min(64 << 20)
}
