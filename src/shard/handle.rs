//! How the control plane talks to a shard.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bytes::BytesMut;
use tokio::sync::oneshot;

use crate::base::VolumeId;
use crate::engine::{Command, Exports, GroupConfig};
use crate::status::GroupStatus;

/// Where a group's files are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupPaths {
    /// Directory of journal and state: `DATA/GROUP`. Homes default to `DATA/GROUP/NAME.home`.
    pub dir: PathBuf,
    /// Homes that the configuration places elsewhere, by volume name.
    pub homes: HashMap<String, PathBuf>,
}

/// What the control plane tells a shard.
pub enum ToShard {
    /// Open (create or recover) a group and run it. Answered when recovery is done.
    AddGroup {
        /// Its configuration.
        config: Box<GroupConfig>,
        /// Its files.
        paths: GroupPaths,
        /// The outcome.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// A client finished its handshake.
    Client {
        /// Group of its export.
        group: String,
        /// Its export.
        volume: VolumeId,
        /// The socket, non-blocking or not.
        socket: OwnedFd,
        /// What was negotiated.
        session: crate::nbd::Session,
        /// Bytes received beyond the handshake.
        received: BytesMut,
    },
    /// A peer connected; its greeting names the group.
    LinkAccepted {
        /// The group.
        group: String,
        /// The socket.
        socket: OwnedFd,
        /// Everything received so far, the greeting included.
        received: BytesMut,
    },
    /// `FromShard::Connect` succeeded or failed.
    LinkConnected {
        /// The group.
        group: String,
        /// The peer's site.
        peer: String,
        /// The socket, or whether the peer's machine refused, and why.
        outcome: Result<OwnedFd, (bool, String)>,
    },
    /// A command for a group.
    Command {
        /// The group.
        group: String,
        /// The command.
        command: Command,
        /// The outcome.
        done: oneshot::Sender<Result<String, String>>,
    },
    /// Status of all groups of this shard.
    Status {
        /// The answer.
        done: oneshot::Sender<Vec<GroupStatus>>,
    },
    /// Stop all groups cleanly, then the thread.
    Shutdown,
}

/// What a shard tells the control plane.
#[derive(Debug)]
pub enum FromShard {
    /// Connect to a peer of a group; answered by `ToShard::LinkConnected`.
    Connect {
        /// The group.
        group: String,
        /// The peer's site.
        peer: String,
    },
    /// A group's exports changed.
    Exports {
        /// The group.
        group: String,
        /// The exports.
        exports: Exports,
    },
    /// A group stopped.
    Stopped {
        /// The group.
        group: String,
    },
}
