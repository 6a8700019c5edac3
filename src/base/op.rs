//! Operations: what a history is made of.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest data of one write operation, in bytes. Larger requests are split.
pub const MAX_WRITE_OP: u64 = 1 << 20;

/// Longest range of one operation without data (trim, write zeroes), in bytes. Larger requests are split.
pub const MAX_DATALESS_OP: u64 = 64 << 20;

/// A volume's number within its history: given at creation, once. Another history, after a fork, may give it to another volume:
/// who a volume is says its uuid.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct VolumeId(pub u32);

/// A half-open range of bytes of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl ByteRange {
    /// `len` bytes from `offset`.
    pub fn new(offset: u64, len: u64) -> ByteRange {
        ByteRange { offset, len }
    }

    /// First byte after the range.
    pub fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Whether any byte is in both.
    pub fn overlaps(self, other: ByteRange) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// What is in both, if anything is.
    pub fn intersection(self, other: ByteRange) -> Option<ByteRange> {
        let (from, to) = (self.offset.max(other.offset), self.end().min(other.end()));
        (from < to).then(|| ByteRange::new(from, to - from))
    }
}

/// What one operation does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OpKind {
    /// Replaces the range by the payload.
    Write,
    /// The range reads as zeroes afterwards; space may be given back unless `no_hole`.
    WriteZeroes {
        /// Keep the range allocated.
        no_hole: bool,
    },
    /// The range reads as zeroes afterwards and its space is given back.
    Trim,
    /// Opens an epoch; the payload is the encoded epoch. First operation of its frame.
    OpenEpoch,
    /// Creates a volume; the payload is the encoded volume specification.
    CreateVolume,
    /// Grows a volume; the payload is its encoded specification with the new size.
    ResizeVolume,
}

impl OpKind {
    /// Whether the operation concerns the group rather than the content of a volume.
    pub fn is_control(self) -> bool {
        matches!(
            self,
            OpKind::OpenEpoch | OpKind::CreateVolume | OpKind::ResizeVolume
        )
    }
}

/// One operation, without its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// What it does.
    pub kind: OpKind,
    /// The volume it concerns (0 for operations on the group).
    pub volume: VolumeId,
    /// The bytes of the volume it concerns (empty for operations on the group).
    pub range: ByteRange,
    /// The client asked for durability before the reply.
    pub fua: bool,
}

/// A volume as the history knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Number within the group.
    pub id: VolumeId,
    /// Identity for ever, on every site.
    pub uuid: Uuid,
    /// Export name; unique on a site.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
}
