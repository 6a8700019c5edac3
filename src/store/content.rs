//! What an operation puts into its range.

use bytes::Bytes;

use crate::base::{ByteRange, Op, OpKind};

/// What an operation puts into its range, or says to the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// These bytes, as many as the range has; not compressed.
    Data(Bytes),
    /// Zeroes.
    Zero {
        /// The range stays or becomes allocated; else its space is given back.
        keep: bool,
    },
    /// The payload of a control operation, for whoever performs it.
    Control(Bytes),
}

impl Content {
    /// The content of an operation whose (uncompressed) payload is this.
    pub fn of(op: &Op, payload: Bytes) -> Content {
        Content::implied(op).unwrap_or(match op.kind {
            OpKind::OpenEpoch | OpKind::CreateVolume | OpKind::ResizeVolume => {
                Content::Control(payload)
            }
            _ => Content::Data(payload),
        })
    }

    /// The content of operations that have no payload.
    pub(super) fn implied(op: &Op) -> Option<Content> {
        match op.kind {
            OpKind::WriteZeroes { no_hole } => Some(Content::Zero { keep: no_hole }),
            OpKind::Trim => Some(Content::Zero { keep: false }),
            OpKind::Write | OpKind::OpenEpoch | OpKind::CreateVolume | OpKind::ResizeVolume => None,
        }
    }

    /// Whether an operation can have this content.
    pub(super) fn fits(&self, op: &Op) -> bool {
        match (op.kind, self) {
            (OpKind::Write, Content::Data(data)) => data.len() as u64 == op.range.len,
            // A write of nothing but zeroes may be stored as what it is.
            (OpKind::Write, Content::Zero { .. })
            | (
                OpKind::OpenEpoch | OpKind::CreateVolume | OpKind::ResizeVolume,
                Content::Control(_),
            ) => true,
            (_, content) => Content::implied(op).as_ref() == Some(content),
        }
    }

    /// The content of `part`, this being the content of `whole`.
    pub(super) fn part(&self, whole: ByteRange, part: ByteRange) -> Content {
        assert!(
            whole.offset <= part.offset && part.end() <= whole.end(),
            "{part:?} is not part of {whole:?}"
        );
        match self {
            Content::Data(data) => {
                let start = (part.offset - whole.offset) as usize;
                Content::Data(data.slice(start..start + part.len as usize))
            }
            other => other.clone(),
        }
    }
}
