//! The journal of a group at a site: frames in segments of one preallocated file, and the record of state beside it.
//! Formats, placement and recovery; no IO.
//!
//! # The file
//! `journal` is divided into equal segments, used round robin. A segment begins with a header block, then frames follow
//! without gaps; no frame crosses into the next segment. The header is written together with the segment's first frame,
//! in one durable write: so a segment that has a header has a frame.
//!
//! ```text
//! offset size  segment header (one block of 4096 bytes)
//!      0    8  magic "DBLRSEG1"
//!      8    2  version (1)
//!     10    2  reserved, zero
//!     12    4  incompat bits
//!     16   16  group id
//!     32    8  sequence number of the segment, from 1
//!     40    8  LSN of its first operation
//!     48    4  checksum of the frame before it
//!     52    4  CRC-32 of the header (this field zero)
//!     56       zero
//! ```
//!
//! # Invariants
//! - Every write is durable on its own (`RWF_DSYNC`), and a block that holds a frame somebody may still need is never
//!   written again: a segment is reused only once all of it was released.
//! - Frames form a chain by LSN and checksum. Recovery follows it from the checkpoint and stops at the first hole.
//! - A hole with a valid later frame behind it that claims the hole to be committed is damage, and is never taken for
//!   the end; without one it is the torn tail of a crash.
//! - Some space is held back for frames that open epochs: going alone must be possible with a full journal.

mod frame;
mod log;
mod records;
mod recover;
mod state;
#[cfg(test)]
mod tests;
mod undo;

pub use self::frame::{
    Compressor, Encoding, Frame, FrameBuilder, FrameError, MAX_FRAME, MAX_OPS, Payload, is_zero,
};
pub use self::log::{Cursor, Log, Next, Position, Write, segment_bytes};
pub use self::records::{RecordError, decode_epoch, decode_volume, encode_epoch, encode_volume};
pub use self::recover::{Damage, ReadJournal, RecoverError, Recovered, Recovery};
pub use self::state::{
    AloneRecord, Dirty, ForkRecord, HandedRecord, MixtureRecord, PeerRecord, STATE_FILE_BYTES,
    StateError, StateFile, StateRecord,
};
pub use self::undo::{UNDO_ENTRY_BYTES, UNDO_HEAD_BYTES, UndoEntry, UndoHead, UndoPlace, UndoRead};
