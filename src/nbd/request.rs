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

/// One request of a client: checked against the export's size, flags and negotiated features.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The client's name for it; opaque.
    pub cookie: u64,
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
    pub cookie: u64,
    /// What to say.
    pub body: ReplyBody,
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
