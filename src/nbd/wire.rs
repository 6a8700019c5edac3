//! The bytes of NBD: numbers, magic values and the layout of every structure, all big endian.
//!
//! Section names refer to `doc/proto.md` of the NBD project; what concerns extended headers is in its
//! `extension-ext-header` branch.
//!
//! Handshake:
//!
//! ```text
//! Greeting          magic 8 | option magic 8 | handshake flags 2                       server, once
//! client flags      flags 4                                                            client, once
//! OptionHeader      option magic 8 | option 4 | length 4 | data                        client
//! AnswerHeader      magic 8 | option 4 | kind 4 | length 4 | data                      server
//! ExportNameAnswer  size 8 | transmission flags 2 | 124 zero bytes unless NO_ZEROES    server, EXPORT_NAME only
//! InfoExport        kind 2 | size 8 | transmission flags 2                             data of INFO answers
//! InfoBlockSize     kind 2 | minimum 4 | preferred 4 | maximum payload 4
//! ```
//!
//! Transmission:
//!
//! ```text
//! CompactRequest    magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 4 | payload of WRITE
//! ExtendedRequest   magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 8 | payload of WRITE, or if PAYLOAD_LEN
//! SimpleReply       magic 4 | error 4 | cookie 8 | payload of READ
//! StructuredChunk   magic 4 | flags 2 | kind 2 | cookie 8 | length 4 | payload
//! ExtendedChunk     magic 4 | flags 2 | kind 2 | cookie 8 | offset 8 | length 8 | payload
//! ```
//!
//! Payloads of chunks and of `BLOCK_STATUS`:
//!
//! ```text
//! OffsetData        offset 8 | content
//! OffsetHole        offset 8 | length 4
//! Status            context id 4 | n x (length 4 | state 4)
//! StatusExt         context id 4 | n 4 | n x (length 8 | state 8)
//! ErrorHead         error 4 | text length 2 | text
//! StatusFilter      effect length 8 | n x context id 4, with n = 1 as we know one context only
//! ```

use std::borrow::Cow;

use zerocopy::byteorder::network_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First eight bytes of a server: `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Before every option, and in the greeting: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every answer to an option.
pub const ANSWER_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before a request with compact header.
pub const COMPACT_REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before a request with extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Before a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Before a chunk of an extended reply.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Longest string of the protocol, in bytes.
pub const STRING_MAX: usize = 4096;
/// Zero bytes after the answer to `EXPORT_NAME`, unless the client declined them.
pub const EXPORT_NAME_PADDING: usize = 124;

/// Handshake flags, and the client flags that answer them.
pub mod handshake_flag {
    /// Options are answered.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The padding after `EXPORT_NAME` may be left out.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags: what an export can do.
pub mod export_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// FLUSH.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` and the `NO_HOLE` flag.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag of READ.
    pub const SEND_DF: u16 = 1 << 7;
    /// FLUSH and FUA hold across connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The `FAST_ZERO` flag of `WRITE_ZEROES`.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// `BLOCK_STATUS` may name the contexts it wants.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Options of the handshake.
pub mod option {
    /// Choose an export; cannot fail but by closing.
    pub const EXPORT_NAME: u32 = 1;
    /// Give up.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Go on in TLS.
    pub const STARTTLS: u32 = 5;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use extended headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Kinds of answers to options.
pub mod answer {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export.
    pub const SERVER: u32 = 2;
    /// One fact about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is unknown.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// Known, but not allowed here.
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    /// Malformed, or not now.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// Too large to process.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    /// Only with extended headers.
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// Facts about an export.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// Its canonical name.
    pub const NAME: u16 = 1;
    /// A description for people.
    pub const DESCRIPTION: u16 = 2;
    /// Block sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Commands of the transmission phase.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Disconnect.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
    /// Prefetch.
    pub const CACHE: u16 = 5;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Allocation.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// `WRITE_ZEROES`: keep the range allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ: one chunk of content.
    pub const DF: u16 = 1 << 2;
    /// `BLOCK_STATUS`: one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// `WRITE_ZEROES`: only if that is quick.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload (extended headers only).
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Flag of a chunk: the last one of its reply.
pub const REPLY_DONE: u16 = 1 << 0;

/// Kinds of chunks.
pub mod chunk {
    /// Nothing but the end.
    pub const NONE: u16 = 0;
    /// Content.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents with 32-bit lengths.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents with 64-bit lengths.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// An error.
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// State bits of an extent in `base:allocation`.
pub mod state {
    /// Occupies no space.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
}

/// The one metadata context we know.
pub const ALLOCATION: &str = "base:allocation";
/// The number that `SET_META_CONTEXT` gives it.
pub const ALLOCATION_ID: u32 = 1;

/// Declares a structure of the wire, with its size asserted beside it.
macro_rules! wire {
    ($(#[$doc:meta])* $name:ident: $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

wire! {
    /// The server's first words.
    Greeting: 18 {
        /// [`GREETING_MAGIC`].
        magic: U64,
        /// [`OPTION_MAGIC`].
        option_magic: U64,
        /// [`handshake_flag`]s.
        flags: U16,
    }
}
wire! {
    /// Before the data of an option.
    OptionHeader: 16 {
        /// [`OPTION_MAGIC`].
        magic: U64,
        /// An [`option`].
        option: U32,
        /// Bytes of data that follow.
        len: U32,
    }
}
wire! {
    /// Before the data of an answer to an option.
    AnswerHeader: 20 {
        /// [`ANSWER_MAGIC`].
        magic: U64,
        /// The option it answers.
        option: U32,
        /// An [`answer`].
        kind: U32,
        /// Bytes of data that follow.
        len: U32,
    }
}
wire! {
    /// The answer to `EXPORT_NAME`, without its padding.
    ExportNameAnswer: 10 {
        /// Bytes of the export.
        size: U64,
        /// [`export_flag`]s.
        flags: U16,
    }
}
wire! {
    /// The fact [`info::EXPORT`].
    InfoExport: 12 {
        /// [`info::EXPORT`].
        kind: U16,
        /// Bytes of the export.
        size: U64,
        /// [`export_flag`]s.
        flags: U16,
    }
}
wire! {
    /// The fact [`info::BLOCK_SIZE`].
    InfoBlockSize: 14 {
        /// [`info::BLOCK_SIZE`].
        kind: U16,
        /// Bytes; offsets and lengths are multiples of it.
        minimum: U32,
        /// Bytes; multiples of it are quick.
        preferred: U32,
        /// Bytes of payload of one request.
        maximum: U32,
    }
}
wire! {
    /// Before the payload of a request, unless extended headers were negotiated.
    CompactRequest: 28 {
        /// [`COMPACT_REQUEST_MAGIC`].
        magic: U32,
        /// [`command_flag`]s.
        flags: U16,
        /// A [`command`].
        command: U16,
        /// The client's name for the request.
        cookie: U64,
        /// First byte.
        offset: U64,
        /// Bytes.
        len: U32,
    }
}
wire! {
    /// Before the payload of a request with extended headers.
    ExtendedRequest: 32 {
        /// [`EXTENDED_REQUEST_MAGIC`].
        magic: U32,
        /// [`command_flag`]s.
        flags: U16,
        /// A [`command`].
        command: U16,
        /// The client's name for the request.
        cookie: U64,
        /// First byte.
        offset: U64,
        /// Bytes: of payload with `PAYLOAD_LEN`, else those the command concerns.
        len: U64,
    }
}
wire! {
    /// A simple reply; the content of a READ follows.
    SimpleReply: 16 {
        /// [`SIMPLE_REPLY_MAGIC`].
        magic: U32,
        /// An error number, or 0.
        error: U32,
        /// From the request.
        cookie: U64,
    }
}
wire! {
    /// Before the payload of a chunk of a structured reply.
    StructuredChunk: 20 {
        /// [`STRUCTURED_REPLY_MAGIC`].
        magic: U32,
        /// [`REPLY_DONE`] or 0.
        flags: U16,
        /// A [`chunk`].
        kind: U16,
        /// From the request.
        cookie: U64,
        /// Bytes of payload.
        len: U32,
    }
}
wire! {
    /// Before the payload of a chunk of an extended reply.
    ExtendedChunk: 32 {
        /// [`EXTENDED_REPLY_MAGIC`].
        magic: U32,
        /// [`REPLY_DONE`] or 0.
        flags: U16,
        /// A [`chunk`].
        kind: U16,
        /// From the request.
        cookie: U64,
        /// From the request.
        offset: U64,
        /// Bytes of payload.
        len: U64,
    }
}
wire! {
    /// Before the content in a chunk of [`chunk::OFFSET_DATA`].
    OffsetData: 8 {
        /// First byte.
        offset: U64,
    }
}
wire! {
    /// A chunk of [`chunk::OFFSET_HOLE`].
    OffsetHole: 12 {
        /// First byte.
        offset: U64,
        /// Bytes; not 0.
        len: U32,
    }
}
wire! {
    /// Before the extents of [`chunk::BLOCK_STATUS`].
    Status: 4 {
        /// Number of the metadata context.
        context: U32,
    }
}
wire! {
    /// An extent of [`chunk::BLOCK_STATUS`].
    StatusExtent: 8 {
        /// Bytes; not 0.
        len: U32,
        /// [`state`] bits.
        state: U32,
    }
}
wire! {
    /// Before the extents of [`chunk::BLOCK_STATUS_EXT`].
    StatusExt: 8 {
        /// Number of the metadata context.
        context: U32,
        /// Number of extents; not 0.
        count: U32,
    }
}
wire! {
    /// An extent of [`chunk::BLOCK_STATUS_EXT`].
    StatusExtExtent: 16 {
        /// Bytes; not 0.
        len: U64,
        /// [`state`] bits.
        state: U64,
    }
}
wire! {
    /// Before the text in a chunk of [`chunk::ERROR`].
    ErrorHead: 6 {
        /// An error number.
        error: U32,
        /// Bytes of text.
        text_len: U16,
    }
}
wire! {
    /// Payload of `BLOCK_STATUS` that names the contexts wanted; the one there is can only be named once.
    StatusFilter: 12 {
        /// Bytes asked about.
        len: U64,
        /// Number of a metadata context.
        context: U32,
    }
}

/// The text as the protocol allows it: no NUL, at most [`STRING_MAX`] bytes.
pub fn string(text: &str) -> Cow<'_, str> {
    let end = text.floor_char_boundary(STRING_MAX.min(text.len()));
    let text = &text[..end];
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', " "))
    } else {
        Cow::Borrowed(text)
    }
}
