//! Bytes of a link to [`Message`](crate::base::Message)s and back.
//!
//! [`encode`] turns a message into a few [`bytes::Bytes`], the content of frames and chunks passed through as it is. A
//! [`Decoder`] takes what arrived and gives messages, each complete, within its limits and with a right checksum; a frame
//! comes in memory that direct IO accepts, so that it goes to the journal as it arrived. `wire` has the layouts.
//!
//! # Invariants
//! - No length that a peer claims is believed before it was held against the limit of its message.
//! - What a decoder accepts, an encoder would have written just so: reserved bytes are zero, absent values are zero,
//!   nothing follows the last field. (Only a greeting of a newer version may hold more; see `wire`.)
//! - Every error is the peer's fault or the network's: drop the link and say why. The one exception,
//!   [`LinkError::Unsendable`], is ours.
//!
//! # What it must not know
//! What messages mean and in which order they make sense (`core` does; only that a greeting comes first is checked
//! here, to bound what a stranger can make us receive), what is in a frame (`journal` does), and sockets.

mod codec;
mod error;
mod fields;
mod read;
#[cfg(test)]
mod tests;
mod wire;
mod write;

pub use self::codec::{Decoder, encode};
pub use self::error::LinkError;
pub use self::wire::{
    HEADER, Kind, Limits, MAX_CHUNK, MAX_CONTROL, MAX_EPOCHS, MAX_FRAME, MAX_TEXT, MAX_VOLUMES,
    VERSIONS, Versions,
};
