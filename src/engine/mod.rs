//! One group at one site: puts `core`, `journal`, `store` and the messages of `link` together. Still without IO:
//! inputs in, outputs out; the same inputs give the same outputs.

mod io;

use std::time::Duration;

pub use io::{
    ClientId, Command, Disk, DiskId, DiskOp, DiskResult, Exports, File, Force, Input, Level,
    LinkId, Now, Output,
};

use crate::base::{AckMode, Compress, OnPeerLoss, Role, VolumeSpec};
use crate::status::GroupStatus;

/// What the configuration says about a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupConfig {
    /// This site's name.
    pub site: String,
    /// Name of the group.
    pub group: String,
    /// Role at the first start only.
    pub role: Role,
    /// Acknowledgement mode at the first start only.
    pub ack: AckMode,
    /// Compression of payloads.
    pub compress: Compress,
    /// What to do when the peer is lost.
    pub on_peer_loss: OnPeerLoss,
    /// A peer without progress for this long is dead.
    pub timeout: Duration,
    /// Size of the journal in bytes, at the first start only.
    pub journal_bytes: u64,
    /// Names of the peers' sites.
    pub peers: Vec<String>,
    /// Volumes `(name, size in bytes)` a primary creates if the group has none of that name.
    pub volumes: Vec<(String, u64)>,
}

/// Why a group could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// What is on the disk is not what it should be; says what was found and what to do.
    #[error("{0}")]
    Refused(String),
}

/// One group at one site.
pub struct Group {
    outputs: Vec<Output>,
}

impl Group {
    /// Opens the group's files: creates them at the first start, recovers them at any later one.
    ///
    /// `seed` feeds the ids of groups, volumes and epochs; never use one twice.
    pub fn open(
        config: GroupConfig,
        disk: &mut dyn Disk,
        seed: u128,
        now: Now,
    ) -> Result<Group, OpenError> {
        let _ = (config, disk, seed, now);
        todo!()
    }

    /// Takes an input. Outputs gather until [`Group::drain`].
    pub fn handle(&mut self, now: Now, input: Input) {
        let _ = (now, input);
        todo!()
    }

    /// Ends a batch of inputs: closes the open frame if the journal can take it, sends what was gathered.
    pub fn finish_batch(&mut self, now: Now) {
        let _ = now;
        todo!()
    }

    /// What is to be done, in order.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Output> {
        self.outputs.drain(..)
    }

    /// When `Input::Tick` is due at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        todo!()
    }

    /// The volumes as of now.
    pub fn volumes(&self) -> &[VolumeSpec] {
        todo!()
    }

    /// For operators.
    pub fn status(&mut self, now: Now) -> GroupStatus {
        let _ = now;
        todo!()
    }
}
