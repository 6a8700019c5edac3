//! NBD, the server's side, without IO.

mod request;

pub use request::{Command, Errno, Extent, Piece, Reply, ReplyBody, ReplyTo, Request};

/// Largest payload of one request, in bytes.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// What a client negotiated: all the transmission phase needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {}
