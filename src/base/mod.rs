//! The small types every module shares, and nothing else.
//!
//! The sans-IO modules (`nbd`, `core`, `journal`, `store`, `link`) do not import each other; they meet only
//! here and in `engine`, which puts them together. Nothing here does IO, reads a clock or draws a random
//! number.

mod bounds;
mod buffer;
mod chunks;
mod epoch;
mod hindrance;
mod message;
mod mode;
mod op;
#[cfg(test)]
pub mod sabotage;
mod verified;
mod words;

pub use bounds::{SHORT_OF_SPACE_BYTES, unapplied_most_bytes};
pub use buffer::{AlignedBuf, BLOCK, round_up};
pub use chunks::{CHUNK_BYTES, ChunkSet, VOLUME_MAX_BYTES};
pub use epoch::{Common, Epoch, Lineage, Lsn};
pub use hindrance::{Advice, Hindrance, Step};
pub use message::{Hello, Message, Refusal, Stance, Start};
pub use mode::{AckMode, Compress, OnPeerLoss, Role};
pub use op::{ByteRange, MAX_DATALESS_OP, MAX_WRITE_OP, Op, OpKind, VolumeId, VolumeSpec};
pub use verified::{
    FINDINGS_MAX, Finding, Found, Remedy, Sides, VERIFIED_MAX, Verified, VerifyRun,
};
pub use words::{counted, counted_bytes, exact_bytes, grouped, lsns, utc};

/// Longest name of a site, group or volume, in bytes of UTF-8.
pub const NAME_MAX: usize = 64;
