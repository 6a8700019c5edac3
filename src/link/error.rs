//! What can be wrong with a link's bytes.

use super::wire::{Kind, Limits, MAGIC, Versions};

/// Why a message cannot be understood, or not be sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// Something else talks to us, or the stream lost its place.
    #[error(
        "not a message of a doublure link: it begins with {found:02x?} instead of {MAGIC:02x?}"
    )]
    Magic {
        /// The first bytes.
        found: [u8; 4],
    },
    /// No message of this version has this number.
    #[error("unknown message kind {found}; version {} has kinds 1 to {}", Versions::OURS.newest, Kind::ALL.len())]
    Kind {
        /// What the header says.
        found: u16,
    },
    /// A header flag that this version does not know.
    #[error("a {kind} message has the unknown header flags {found:#06x}")]
    Flags {
        /// The message.
        kind: Kind,
        /// What the header says.
        found: u16,
    },
    /// A length that such a message cannot have.
    #[error("a {kind} message with a body of {found} bytes; allowed are {allowed}")]
    Length {
        /// The message.
        kind: Kind,
        /// What the header says, in bytes.
        found: u32,
        /// What it may say.
        allowed: Limits,
    },
    /// Bytes changed on the way.
    #[error(
        "a {kind} message arrived damaged: its CRC-32 is {computed:#010x}, it says {found:#010x}"
    )]
    Checksum {
        /// The message.
        kind: Kind,
        /// What the message says.
        found: u32,
        /// What it is.
        computed: u32,
    },
    /// The first message must introduce the peer.
    #[error("the link begins with a {kind} message instead of a hello")]
    NoHello {
        /// The message.
        kind: Kind,
    },
    /// No protocol version in common.
    #[error("the peer speaks link protocol {theirs}, this site {ours}: upgrade the older one")]
    Version {
        /// What the peer's greeting says.
        theirs: Versions,
        /// What we speak.
        ours: Versions,
    },
    /// The peer insists on something that this version does not have.
    #[error(
        "the peer requires link features {unknown:#018x}, which this site does not know: upgrade it"
    )]
    Features {
        /// The feature bits that we do not know.
        unknown: u64,
    },
    /// A field that makes no sense.
    #[error("a {kind} message: {field} is {found}; allowed: {allowed}")]
    Field {
        /// The message.
        kind: Kind,
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        allowed: String,
    },
    /// Our own message is beyond what the peer would accept.
    #[error("cannot send a {kind} message: {field} is {found}; allowed: {allowed}")]
    Unsendable {
        /// The message.
        kind: Kind,
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        allowed: String,
    },
}
