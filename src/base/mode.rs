//! What the operator may choose for a group.

use std::fmt;

use serde::{Deserialize, Serialize};

/// When an operation is acknowledged to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckMode {
    /// Durable in the journals of both sites.
    #[default]
    Sync,
    /// Validated and contiguous in the memory of both sites.
    Memsync,
    /// Durable at the primary; the mirror follows in order.
    Async,
}

/// What the primary does when a peer that acknowledgements wait for is declared dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPeerLoss {
    /// Records durably that it is alone, then goes on.
    #[default]
    Continue,
    /// Acknowledges nothing until the peer is back.
    Freeze,
}

/// Whether payloads are compressed when they enter the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// Never.
    #[default]
    Off,
    /// LZ4 whenever it makes the payload smaller.
    Lz4,
    /// LZ4, but stops trying for a while on data that does not shrink.
    Auto,
}

/// What a site is for a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Exports the volumes and writes the history.
    Primary,
    /// Follows the primary.
    Mirror,
}

impl fmt::Display for AckMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AckMode::Sync => "sync",
            AckMode::Memsync => "memsync",
            AckMode::Async => "async",
        })
    }
}

impl fmt::Display for OnPeerLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnPeerLoss::Continue => "continue",
            OnPeerLoss::Freeze => "freeze",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Primary => "primary",
            Role::Mirror => "mirror",
        })
    }
}
