//! How reads and status requests are answered while operations wait to be applied.

use smallvec::SmallVec;

use super::Content;
use crate::base::{ByteRange, Lsn};

/// Where a piece of a read comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The home has it.
    Home,
    /// This operation has it.
    Overlay(Lsn),
}

/// A part of a range that comes from one source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The part.
    pub range: ByteRange,
    /// Where it comes from.
    pub source: Source,
}

/// How to answer a read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadPlan {
    /// They cover the range, in order and without gaps.
    pub pieces: SmallVec<[Piece; 4]>,
    /// The newest operation not yet applied that touches the range: the reply waits until it is committed.
    pub newest: Option<Lsn>,
}

impl ReadPlan {
    /// All of the range comes from the home.
    pub(super) fn home(range: ByteRange) -> ReadPlan {
        let mut plan = ReadPlan::default();
        if range.len > 0 {
            plan.push(range.offset, range.end(), Source::Home);
        }
        plan
    }

    pub(super) fn push(&mut self, start: u64, end: u64, source: Source) {
        self.pieces.push(Piece {
            range: ByteRange::new(start, end - start),
            source,
        });
    }
}

/// What is known about the allocation of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatusSource {
    /// Ask the home.
    Home,
    /// Allocated, with data (also while the content of a write is not attached yet).
    Data,
    /// Reads as zeroes.
    Zero {
        /// Allocated; else a hole.
        keep: bool,
    },
}

/// A part of a range of which one thing is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusPiece {
    /// The part.
    pub range: ByteRange,
    /// What is known.
    pub source: StatusSource,
}

/// How to answer a request for allocation status.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StatusPlan {
    /// They cover the range, in order and without gaps; no two neighbours say the same.
    pub pieces: SmallVec<[StatusPiece; 4]>,
    /// As in [`ReadPlan`].
    pub newest: Option<Lsn>,
}

impl StatusPlan {
    pub(super) fn of<'a>(
        plan: &ReadPlan,
        content: impl Fn(Lsn) -> Option<&'a Content>,
    ) -> StatusPlan {
        let mut pieces: SmallVec<[StatusPiece; 4]> = SmallVec::new();
        for piece in &plan.pieces {
            let source = match piece.source {
                Source::Home => StatusSource::Home,
                Source::Overlay(lsn) => match content(lsn) {
                    Some(&Content::Zero { keep }) => StatusSource::Zero { keep },
                    _ => StatusSource::Data,
                },
            };
            match pieces.last_mut() {
                Some(last) if last.source == source => last.range.len += piece.range.len,
                _ => pieces.push(StatusPiece {
                    range: piece.range,
                    source,
                }),
            }
        }
        StatusPlan {
            pieces,
            newest: plan.newest,
        }
    }
}
