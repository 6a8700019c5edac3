//! NBD, the server's side, without IO.
//!
//! A connection is first a [`Handshake`], which answers options until an export is chosen, then a [`Transmission`],
//! which turns bytes into [`Request`]s and [`Reply`]s into bytes. Between the two stands a [`Session`]: what was
//! negotiated, as plain data that can be handed to another thread.
//!
//! What holds, whatever a client sends:
//!
//! - A [`Request`] is in range and carries only what was negotiated; nobody behind this module checks it again.
//! - No length that a client claims is allocated. Nothing is kept here but the data of one option
//!   ([`OPTION_DATA_MAX`]); payloads stay in the caller's buffer, and the caller learns from [`Transmission::wants`]
//!   how large they will be before it makes room.
//! - The stream keeps its framing: a request that is refused has its payload skipped, and an answer that would not
//!   have the length the client counts on becomes an error.
//!
//! This module knows neither sockets nor sites; what exports there are it asks of [`Exports`].

mod handshake;
mod options;
mod reply;
mod request;
mod transmission;
mod wire;

#[cfg(test)]
mod tests;

pub use handshake::{Export, Exports, Handshake, OPTION_DATA_MAX, Step, Unavailable};
pub use reply::Outbox;
pub use request::{Command, Errno, Extent, Piece, Reply, ReplyBody, ReplyTo, Request};
pub use transmission::{Event, Transmission, Wants};

/// Largest payload of one request, in bytes.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Smallest unit of offsets and lengths, in bytes.
pub const MIN_BLOCK: u32 = 1;

/// Requests that are multiples of this many bytes are the quickest.
pub const PREFERRED_BLOCK: u32 = 4096;

/// How replies look, from the least to the most capable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Replies {
    /// One header, then the content of a read.
    Simple,
    /// Chunks.
    Structured,
    /// Chunks; requests and replies have 32-byte headers and 64-bit lengths.
    Extended,
}

/// What a client negotiated: all the transmission phase needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// Name of the export, never the empty name of the default export.
    pub export: String,
    /// Bytes of the export.
    pub size: u64,
    /// How replies look.
    pub replies: Replies,
    /// `base:allocation` was selected for this export.
    pub allocation: bool,
}

impl Session {
    /// The transmission flags. All sites offer the same ones, so that a client can go on after a failover.
    fn flags(&self) -> u16 {
        use wire::export_flag as flag;
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES
            | flag::CAN_MULTI_CONN
            | flag::SEND_CACHE
            | flag::SEND_FAST_ZERO;
        if self.replies >= Replies::Structured {
            flags |= flag::SEND_DF;
        }
        if self.replies == Replies::Extended && self.allocation {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }
}
