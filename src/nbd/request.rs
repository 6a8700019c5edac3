//! Requests and replies as the rest of the program sees them: valid, in range, and free of NBD's bytes.

use bytes::Bytes;

use crate::base::ByteRange;

/// The errors NBD knows, with their numbers on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted.
    Perm = 1,
    /// Input or output error.
    Io = 5,
    /// Out of memory.
    NoMem = 12,
    /// Invalid argument.
    Inval = 22,
    /// No space left.
    NoSpc = 28,
    /// Value too large.
    Overflow = 75,
    /// Not supported.
    NotSup = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

/// Which request a reply answers: all that its encoding needs to know. Copied from request to reply, otherwise opaque.
///
/// Cookies are the client's choice and may repeat; two of these are equal if client and server cannot tell the
/// requests apart either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyTo {
    pub(super) cookie: u64,
    /// Of the request; extended replies repeat it.
    pub(super) offset: u64,
    /// Bytes the command concerns: a read's answer covers them exactly.
    pub(super) len: u64,
    pub(super) shape: Shape,
}

/// What an answer looks like if the request succeeds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    /// No content.
    Plain,
    /// Content in any number of chunks.
    Read,
    /// Content in one chunk (DF).
    ReadWhole,
    /// Extents.
    Status,
    /// One extent, no longer than asked.
    StatusOne,
}

impl ReplyTo {
    /// A request that carries this cookie and whose answer has no content.
    pub fn plain(cookie: u64) -> ReplyTo {
        ReplyTo {
            cookie,
            offset: 0,
            len: 0,
            shape: Shape::Plain,
        }
    }

    /// The client's name for the request.
    pub fn cookie(self) -> u64 {
        self.cookie
    }
}

/// One request of a client: checked against the export's size, flags and negotiated features.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Goes into the reply.
    pub reply_to: ReplyTo,
    /// What it asks.
    pub command: Command,
}

/// What a client asks. Ranges lie within the volume and may be empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read.
    Read {
        /// Bytes to read.
        range: ByteRange,
        /// Whether holes may be answered as holes (structured or extended replies without DF).
        holes: bool,
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// Content.
        data: Bytes,
        /// Durable before the reply.
        fua: bool,
    },
    /// All writes replied to so far are durable before the reply.
    Flush,
    /// Discard; reads as zeroes afterwards.
    Trim {
        /// Bytes to discard.
        range: ByteRange,
        /// Durable before the reply.
        fua: bool,
    },
    /// Write zeroes.
    WriteZeroes {
        /// Bytes to zero.
        range: ByteRange,
        /// Durable before the reply.
        fua: bool,
        /// Keep the range allocated.
        no_hole: bool,
    },
    /// Prefetch.
    Cache {
        /// Bytes to prefetch.
        range: ByteRange,
    },
    /// Allocation status.
    BlockStatus {
        /// Bytes asked about; not empty.
        range: ByteRange,
        /// Only one extent is wanted, no longer than asked.
        one: bool,
    },
}

/// A piece of a read, in order and without gaps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Content.
    Data(Bytes),
    /// This many zero bytes that occupy no space.
    Hole(u64),
}

/// An extent of a block status reply, in order and without gaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Bytes; not zero.
    pub len: u64,
    /// Occupies no space.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// From the request.
    pub reply_to: ReplyTo,
    /// What to say.
    pub body: ReplyBody,
}

impl Reply {
    /// The request is done.
    pub fn done(reply_to: ReplyTo) -> Reply {
        Reply {
            reply_to,
            body: ReplyBody::Done,
        }
    }

    /// The request failed.
    pub fn error(reply_to: ReplyTo, errno: Errno, message: impl Into<String>) -> Reply {
        Reply {
            reply_to,
            body: ReplyBody::Error {
                errno,
                message: message.into(),
            },
        }
    }
}

/// What to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplyBody {
    /// Done.
    Done,
    /// Content of the range that starts at `offset`.
    Data {
        /// First byte.
        offset: u64,
        /// Covers what was asked.
        pieces: Vec<Piece>,
    },
    /// Allocation from `offset` on.
    Status {
        /// First byte.
        offset: u64,
        /// At least one.
        extents: Vec<Extent>,
    },
    /// It failed; nothing was changed unless the message says so.
    Error {
        /// Which error.
        errno: Errno,
        /// For people.
        message: String,
    },
}
