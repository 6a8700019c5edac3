//! How the control plane talks to a shard.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use bytes::BytesMut;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

use super::group::Machine;
use super::reactor::{Inbound, Limits, Postbox, Reactor, ring_bell};
use super::stats::{Counters, ShardStats};
use crate::base::VolumeId;
use crate::engine::{Command, Exports, Group, GroupConfig};
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

/// A running shard.
pub struct ShardHandle {
    /// Sends it messages.
    pub poster: Poster,
    /// What it has to say. Ends when its thread does.
    pub events: UnboundedReceiver<FromShard>,
    thread: JoinHandle<io::Result<()>>,
    counters: Arc<Counters>,
}

/// Sends messages to a shard; to be cloned and shared.
#[derive(Clone)]
pub struct Poster(Arc<dyn Fn(ToShard) -> bool + Send + Sync>);

impl Poster {
    /// Sends a message; `false` if the shard is gone, and with it what was in the message.
    pub fn send(&self, message: ToShard) -> bool {
        (self.0)(message)
    }
}

impl ShardHandle {
    /// Sends a message; `false` if the shard is gone.
    pub fn send(&self, message: ToShard) -> bool {
        self.poster.send(message)
    }

    /// What it did so far.
    pub fn stats(&self) -> ShardStats {
        self.counters.snapshot()
    }

    /// Reads [`ShardHandle::stats`] also when this handle has been taken apart.
    pub fn counts(&self) -> impl Fn() -> ShardStats + Send + Sync + use<> {
        let counters = self.counters.clone();
        move || counters.snapshot()
    }

    /// Waits for its thread, which ends after [`ToShard::Shutdown`] when all groups have stopped.
    ///
    /// # Errors
    /// When the ring failed, or the thread panicked.
    pub fn join(self) -> io::Result<()> {
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the shard's thread panicked")))
    }
}

/// Starts a shard.
///
/// # Errors
/// When there is no thread or no `io_uring` to be had; says what to do then.
pub fn spawn(index: usize) -> io::Result<ShardHandle> {
    spawn_with::<Group>(index, Limits::default())
}

/// Starts a shard that runs such machines.
pub(super) fn spawn_with<M: Machine>(index: usize, limits: Limits) -> io::Result<ShardHandle> {
    // In blocking mode: the ring waits for it.
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (queue, inbox) = mpsc::channel::<Inbound<M>>();
    let (event, events) = unbounded_channel();
    let counters = Arc::new(Counters::default());
    let postbox = Postbox {
        queue: queue.clone(),
        bell: bell.clone(),
    };
    let (ready, started) = mpsc::channel();
    let counts = counters.clone();
    let thread = std::thread::Builder::new()
        .name(format!("shard-{index}"))
        .spawn(move || {
            // The ring belongs to the thread that makes it.
            let reactor = match Reactor::new(limits, inbox, postbox, event, counts) {
                Ok(reactor) => reactor,
                Err(error) => {
                    let _ = ready.send(Err(error)); // `spawn` waits for it
                    return Ok(());
                }
            };
            let _ = ready.send(Ok(()));
            let result = reactor.run();
            if let Err(error) = &result {
                tracing::error!(shard = index, "the ring failed: {error}");
            }
            result
        })?;
    started
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the shard's thread ended at once")))?;
    let post = move |message| {
        let sent = queue.send(Inbound::Message(message)).is_ok();
        if sent {
            ring_bell(&bell);
        }
        sent
    };
    Ok(ShardHandle {
        poster: Poster(Arc::new(post)),
        events,
        thread,
        counters,
    })
}
