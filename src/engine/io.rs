//! What the engine asks of the outside and what the outside tells it: plain data, so that a ring, a test or a
//! simulator can stand behind it.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::base::{ByteRange, Lsn, Message, VolumeId, VolumeSpec};
use crate::nbd::{Reply, Request};

/// The time, read once per batch of inputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Since an arbitrary start; never goes back.
    pub mono: Duration,
    /// Nanoseconds since the Unix epoch; may jump.
    pub wall_ns: u64,
}

/// An NBD connection, unique for the life of the shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u64);

/// A link's TCP connection, unique for the life of the shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// A disk request, unique for the life of the group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskId(pub u64);

/// A file of a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum File {
    /// The journal: opened for direct IO, preallocated. Offsets, lengths and memory are multiples of 4096.
    Journal,
    /// The two state slots. Direct IO likewise.
    State,
    /// The home of a volume: buffered IO at any offset.
    Home(VolumeId),
    /// What is needed to go back to before a copy. Made when it is first written.
    Undo,
    /// Frames that were given up after a fork, which ended in this epoch. Made when it is first written.
    Discarded(Uuid),
}

/// One request to a disk. Requests may complete in any order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskOp {
    /// Write all of it.
    Write {
        /// Where.
        file: File,
        /// Where in the file, bytes.
        offset: u64,
        /// What.
        data: Bytes,
        /// On stable storage before it completes (`RWF_DSYNC`).
        durable: bool,
    },
    /// Read exactly this much. Beyond the end of a file is an error.
    Read {
        /// Where.
        file: File,
        /// Where in the file, bytes.
        offset: u64,
        /// Bytes.
        len: u64,
        /// From the medium, past the page cache (homes only).
        medium: bool,
    },
    /// All completed writes of the file are on stable storage before it completes (`fdatasync`).
    Sync {
        /// Which.
        file: File,
        /// What it may take, so that it need not be in the way of others: a wish, as long as [`super::Group::sync_due`] does not
        /// ask for more. Zero: the sooner the better.
        within: Duration,
    },
    /// The range reads as zeroes afterwards; deallocated where the home can, unless `keep` (then allocated).
    Zero {
        /// Which.
        file: File,
        /// Where.
        range: ByteRange,
        /// Keep or make it allocated.
        keep: bool,
    },
    /// Which parts of the range are allocated, in order and without gaps. `limit` extents are enough.
    Extents {
        /// Which.
        file: File,
        /// Where.
        range: ByteRange,
        /// At most this many extents; they cover the range from its start.
        limit: usize,
    },
    /// Free bytes of the file system that holds the homes of the group (`u64::MAX` for block devices).
    FreeSpace,
    /// Make the volume's home as long as the volume is now, durably; or only say whether that can be.
    GrowHome {
        /// The volume with its new size.
        volume: VolumeSpec,
        /// Change nothing.
        only_check: bool,
    },
    /// Keep the home's present content aside, sharing its blocks, durably. Fails where the file system cannot.
    CloneHome {
        /// The volume.
        volume: VolumeId,
    },
    /// Make the home what was kept aside.
    RestoreHome {
        /// The volume.
        volume: VolumeId,
    },
    /// Remove the undo file and all homes that were kept aside.
    RemoveUndo,
    /// Open the volume's home; create it (sparse, of the given size) if it does not exist.
    CreateHome {
        /// The volume.
        volume: VolumeSpec,
        /// One that is there and too short is made longer: a copy replaces its content anyway. Else it is refused.
        lengthen: bool,
    },
    /// These volumes are no longer part of the history: close their homes, and put what they hold aside, durably, so that
    /// nobody takes it for that of another volume. `CreateHome` of the very volume takes it back.
    PutAside {
        /// The volumes. One whose home is not there, or was put aside before, is passed over.
        volumes: Vec<VolumeSpec>,
    },
    /// Open the home of a volume that was put aside or closed. Fails if nothing is there.
    TakeBack {
        /// The volume.
        volume: VolumeSpec,
    },
}

impl DiskOp {
    /// A sync that somebody waits for.
    pub fn sync(file: File) -> DiskOp {
        let within = Duration::ZERO;
        DiskOp::Sync { file, within }
    }
}

/// What came of a disk request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskResult {
    /// Done (write, sync, zero, create).
    Done,
    /// Content of a read.
    Data(Bytes),
    /// `(length, allocated)` in order, from the start of the range.
    Extents(Vec<(u64, bool)>),
    /// Free bytes.
    FreeSpace(u64),
    /// It failed: the operating system's error number and a sentence that names file and operation.
    Failed {
        /// `errno`.
        errno: i32,
        /// For people.
        message: String,
    },
}

/// A command of the operator or of the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Make this site the primary.
    Promote {
        /// What the operator overrides.
        force: Vec<Force>,
    },
    /// Give the role up; nobody is primary afterwards.
    Demote,
    /// Hand the role to the peer, losing nothing.
    Switchover,
    /// Let the link connect again.
    Connect,
    /// Cut the link and keep it cut.
    Disconnect,
    /// End a fork.
    Resolve {
        /// The site whose writes since the fork are given up.
        discard: String,
    },
    /// Grow a volume.
    Resize {
        /// Its name.
        volume: String,
        /// Its new size in bytes.
        size: u64,
    },
    /// Compare the mirror with this site, chunk by chunk.
    Verify {
        /// Mend what is shown to be wrong.
        repair: bool,
        /// The site whose content is kept where nothing shows what is right.
        keep: Option<String>,
    },
    /// Stop: finish what is in flight, write a last checkpoint.
    Shutdown,
}

/// What a forced promotion overrides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Force {
    /// The peer cannot be asked whether it is primary.
    PeerUnreachable,
    /// The homes are in the middle of a copy.
    Inconsistent,
    /// The peer has, or this site once had, more history.
    Behind,
}

/// What happens to a group.
#[derive(Clone, PartialEq, Debug)]
pub enum Input {
    /// A client attached to a volume.
    ClientOpened {
        /// The connection.
        client: ClientId,
        /// Its volume.
        volume: VolumeId,
    },
    /// A valid request of an attached client.
    Request {
        /// The connection.
        client: ClientId,
        /// The request.
        request: Request,
    },
    /// The client is gone; no reply can reach it.
    ClientClosed {
        /// The connection.
        client: ClientId,
    },
    /// A disk request completed.
    Disk {
        /// Which.
        id: DiskId,
        /// How.
        result: DiskResult,
    },
    /// A TCP connection to a peer is up and nothing was sent or received on it yet.
    LinkConnected {
        /// The connection.
        link: LinkId,
        /// Name of the peer's site.
        peer: String,
    },
    /// A peer connected to us; its greeting arrives as the first message.
    LinkAccepted {
        /// The connection.
        link: LinkId,
    },
    /// A message arrived, complete and with a right checksum.
    Link {
        /// The connection.
        link: LinkId,
        /// The message.
        message: Message,
    },
    /// The bytes queued on the link fell to this many.
    LinkDrained {
        /// The connection.
        link: LinkId,
        /// Bytes still unsent.
        queued_bytes: u64,
    },
    /// The connection is gone.
    LinkClosed {
        /// The connection.
        link: LinkId,
        /// Why, for people.
        reason: String,
    },
    /// Connecting to a peer failed.
    ConnectFailed {
        /// Name of the peer's site.
        peer: String,
        /// The peer's machine answered that nothing listens there.
        refused: bool,
        /// Why, for people.
        reason: String,
    },
    /// A command; answered by `Output::CommandDone` with the same id.
    Command {
        /// Chosen by the caller.
        id: u64,
        /// What to do.
        command: Command,
    },
    /// Nothing happened but time.
    Tick,
}

/// What a group wants done, in this order.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// A disk request; answered by `Input::Disk`.
    Disk {
        /// Chosen by the engine.
        id: DiskId,
        /// What to do.
        op: DiskOp,
    },
    /// Answer a client.
    Reply {
        /// The connection.
        client: ClientId,
        /// The answer.
        reply: Reply,
    },
    /// Close a client's connection, after the replies so far.
    CloseClient {
        /// The connection.
        client: ClientId,
    },
    /// Send on a link.
    Send {
        /// The connection.
        link: LinkId,
        /// The message.
        message: Message,
    },
    /// Close a link after what was sent so far; no `LinkClosed` follows.
    CloseLink {
        /// The connection.
        link: LinkId,
    },
    /// Connect to a peer; answered by `LinkConnected` or `ConnectFailed`.
    Connect {
        /// Name of the peer's site.
        peer: String,
    },
    /// The exports of the group changed: who may attach, and why not.
    Exports(Exports),
    /// A command is done.
    CommandDone {
        /// From the command.
        id: u64,
        /// What to tell the operator.
        result: Result<String, String>,
    },
    /// The group has stopped after `Command::Shutdown`, or fenced itself: drop it.
    Stopped,
    /// Something the operator's log should hold.
    Log {
        /// How much it matters.
        level: Level,
        /// One sentence.
        text: String,
    },
}

/// How much a log line matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Normal.
    Info,
    /// The operator should know.
    Warn,
    /// The operator must act.
    Error,
}

/// Who may attach to the volumes of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exports {
    /// `Err` says why not, naming the primary where it is known.
    pub open: Result<(), String>,
    /// The volumes.
    pub volumes: Vec<VolumeSpec>,
    /// Last committed LSN, for the log.
    pub commit: Lsn,
    /// Closed only for a moment: the group is starting.
    pub passing: bool,
}

/// Blocking access to the same files, for the time before a group runs: creation and recovery.
pub trait Disk {
    /// Length in bytes; `None` if the file does not exist.
    fn len(&mut self, file: File) -> std::io::Result<Option<u64>>;
    /// Creates or opens a file of this length: `Journal` and `State` allocated and filled with zeroes,
    /// durable together with their directory entry; homes sparse.
    fn create(&mut self, file: File, len: u64) -> std::io::Result<()>;
    /// Fills `buf` (a multiple of 4096 in memory, offset and length for `Journal` and `State`).
    fn read(&mut self, file: File, offset: u64, buf: &mut [u8]) -> std::io::Result<()>;
    /// Writes all; durable when it returns if `durable`.
    fn write(&mut self, file: File, offset: u64, data: &[u8], durable: bool)
    -> std::io::Result<()>;
    /// As `DiskOp::Zero`.
    fn zero(&mut self, file: File, range: ByteRange, keep: bool) -> std::io::Result<()>;
    /// As `DiskOp::Sync`.
    fn sync(&mut self, file: File) -> std::io::Result<()>;
    /// Whether there is a clone of this volume's home.
    fn has_clone(&mut self, volume: &VolumeSpec) -> std::io::Result<bool>;
    /// Opens the home of a volume that exists by record, if it is there; never creates it. What was put aside and is on record
    /// all the same is taken back.
    fn attach_home(&mut self, volume: &VolumeSpec) -> std::io::Result<()>;
    /// Fails if a place meant for the home of a volume that is none of these holds content already: to make a volume
    /// there would wipe it.
    fn check_blank(&mut self, known: &[VolumeSpec]) -> std::io::Result<()>;
    /// As `DiskOp::GrowHome`, done.
    fn grow_home(&mut self, volume: &VolumeSpec) -> std::io::Result<()>;
    /// As `DiskOp::CreateHome`.
    fn create_home(&mut self, volume: &VolumeSpec) -> std::io::Result<()>;
    /// As `DiskOp::PutAside`, of one volume.
    fn put_aside(&mut self, volume: &VolumeSpec) -> std::io::Result<()>;
}
