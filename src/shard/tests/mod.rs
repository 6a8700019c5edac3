//! The shard with real sockets, files and a ring, and a stand-in for the engine: a disk without journal or peers, that
//! reports what happens to it.

mod clients;
mod disk;
mod links;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::group::Machine;
use super::handle::spawn_with;
use super::reactor::Limits;
use super::{FromShard, GroupPaths, ShardHandle, ToShard};
use crate::base::{
    AckMode, AlignedBuf, Compress, Hello, Lineage, Lsn, Message, OnPeerLoss, Role, Stance,
    VolumeId, VolumeSpec,
};
use crate::engine::{
    ClientId, Command, Disk, DiskId, DiskOp, DiskResult, Exports, File, GroupConfig, Input, LinkId,
    Now, Output,
};
use crate::nbd::{self, Errno, Extent, Piece, Replies, Reply, ReplyBody, ReplyTo, Session};
use crate::status::GroupStatus;

/// Size of the volume.
const SIZE: u64 = 64 << 20;

/// Clients of a group of this name get no answer to their writes before `Command::Promote`.
const FROZEN: &str = "frozen";

/// Bytes of a frame that a link's test sends.
const FRAME: usize = 1 << 20;

/// Frames sent on a new link.
const FRAMES: u64 = 24;

/// The stand-in.
struct Fake {
    config: GroupConfig,
    outputs: Vec<Output>,
    clients: HashMap<ClientId, VolumeId>,
    requests: HashMap<DiskId, (ClientId, ReplyTo, nbd::Command)>,
    frames: HashMap<DiskId, (LinkId, u64)>,
    held: Vec<(ClientId, nbd::Request)>,
    received: u64,
    /// The link that frames are sent on.
    sending: Option<LinkId>,
    sent: u64,
    next: u64,
    ticks: u64,
    ticked: Duration,
    links: Vec<LinkId>,
}

impl Fake {
    fn report(&mut self, text: impl Into<String>) {
        self.outputs.push(Output::Exports(Exports {
            open: Err(text.into()),
            volumes: Vec::new(),
            commit: Lsn::ZERO,
            passing: false,
        }));
    }

    fn disk(&mut self, op: DiskOp) -> DiskId {
        self.next += 1;
        let id = DiskId(self.next);
        self.outputs.push(Output::Disk { id, op });
        id
    }

    fn request(&mut self, client: ClientId, request: nbd::Request) {
        let file = File::Home(self.clients[&client]);
        let op = match request.command.clone() {
            nbd::Command::Write { offset, data, fua } => DiskOp::Write {
                file,
                offset,
                data,
                durable: fua,
            },
            nbd::Command::Read { range, .. } | nbd::Command::Cache { range } => DiskOp::Read {
                file,
                offset: range.offset,
                len: range.len,
                medium: false,
            },
            nbd::Command::Flush => DiskOp::sync(file),
            nbd::Command::Trim { range, .. } => DiskOp::Zero {
                file,
                range,
                keep: false,
            },
            nbd::Command::WriteZeroes { range, no_hole, .. } => DiskOp::Zero {
                file,
                range,
                keep: no_hole,
            },
            nbd::Command::BlockStatus { range, one } => DiskOp::Extents {
                file,
                range,
                limit: if one { 1 } else { 100 },
            },
        };
        let id = self.disk(op);
        self.requests
            .insert(id, (client, request.reply_to, request.command));
    }

    fn disk_done(&mut self, id: DiskId, result: DiskResult) {
        if let Some((link, lsn)) = self.frames.remove(&id) {
            assert_eq!(result, DiskResult::Done);
            let message = Message::Ack {
                received: Lsn(lsn),
                durable: Lsn(lsn),
                applied: Lsn::ZERO,
                credit_bytes: 0,
                inconsistent_until: None,
            };
            return self.outputs.push(Output::Send { link, message });
        }
        let (client, reply_to, command) = self.requests.remove(&id).expect("asked for");
        let offset = match command {
            nbd::Command::Read { range, .. } | nbd::Command::BlockStatus { range, .. } => {
                range.offset
            }
            _ => 0,
        };
        let body = match (result, command) {
            (DiskResult::Data(data), nbd::Command::Read { .. }) => ReplyBody::Data {
                offset,
                pieces: vec![Piece::Data(data)],
            },
            (DiskResult::Extents(extents), _) => {
                let extent = |(len, allocated): (u64, bool)| Extent {
                    len,
                    hole: !allocated,
                    zero: !allocated,
                };
                ReplyBody::Status {
                    offset,
                    extents: extents.into_iter().map(extent).collect(),
                }
            }
            (DiskResult::Failed { message, .. }, _) => ReplyBody::Error {
                errno: Errno::Io,
                message,
            },
            _ => ReplyBody::Done,
        };
        if self.clients.contains_key(&client) {
            self.outputs.push(Output::Reply {
                client,
                reply: Reply { reply_to, body },
            });
        }
    }

    fn message(&mut self, link: LinkId, message: Message) {
        match message {
            Message::Hello(hello) => self.report(format!("hello from {}", hello.site)),
            Message::Frame(data) => {
                assert_eq!(
                    data.as_ptr() as usize % 4096,
                    0,
                    "a frame in memory for direct IO"
                );
                let offset = self.received * FRAME as u64;
                self.received += 1;
                let id = self.disk(DiskOp::Write {
                    file: File::Journal,
                    offset,
                    data,
                    durable: true,
                });
                self.frames.insert(id, (link, self.received));
            }
            Message::Ack { durable, .. } => self.report(format!("ack {durable}")),
            Message::Bye { reason } => self.report(format!("bye: {reason}")),
            other => self.report(format!("{other:?}")),
        }
    }

    fn greet(&mut self, link: LinkId) {
        let message = Message::Hello(Box::new(hello(&self.config)));
        self.outputs.push(Output::Send { link, message });
    }

    /// Two frames whenever the link has drained.
    fn send_frames(&mut self, link: LinkId) {
        for _ in 0..2 {
            let mut frame = AlignedBuf::zeroed(FRAME);
            frame.fill(self.sent as u8);
            self.sent += 1;
            let message = Message::Frame(Bytes::from_owner(frame));
            self.outputs.push(Output::Send { link, message });
        }
    }
}

impl Machine for Fake {
    fn open(config: GroupConfig, disk: &mut dyn Disk, seed: u128, _: Now) -> Result<Fake, String> {
        assert_ne!(seed, 0);
        let mut create = || {
            disk.create(File::State, 8192)?;
            disk.create(File::Journal, config.journal_bytes)?;
            config
                .volumes
                .iter()
                .enumerate()
                .try_for_each(|(id, (name, size))| {
                    disk.create_home(&volume(id as u32, name, *size))
                })
        };
        create().map_err(|error: std::io::Error| error.to_string())?;
        let mut fake = Fake {
            config,
            outputs: Vec::new(),
            clients: HashMap::new(),
            requests: HashMap::new(),
            frames: HashMap::new(),
            held: Vec::new(),
            received: 0,
            sending: None,
            sent: 0,
            next: 0,
            ticks: 0,
            ticked: Duration::ZERO,
            links: Vec::new(),
        };
        fake.report("up");
        Ok(fake)
    }

    fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::ClientOpened { client, volume } => {
                self.clients.insert(client, volume);
                self.report("client opened");
            }
            Input::Request { client, request } => {
                let is_write = matches!(request.command, nbd::Command::Write { .. });
                if is_write && self.config.group == FROZEN {
                    self.held.push((client, request));
                } else {
                    self.request(client, request);
                }
            }
            Input::ClientClosed { client } => {
                assert!(self.clients.remove(&client).is_some(), "closed twice");
                self.report("client closed");
            }
            Input::Disk { id, result } => self.disk_done(id, result),
            Input::LinkConnected { link, peer } => {
                self.report(format!("connected to {peer}"));
                self.links.push(link);
                self.greet(link);
                self.sending = Some(link);
            }
            Input::LinkAccepted { link } => {
                self.links.push(link);
                self.greet(link);
                self.report("link accepted");
            }
            Input::Link { link, message } => self.message(link, message),
            Input::LinkDrained { link, queued_bytes } => {
                if queued_bytes == 0 && self.sending == Some(link) && self.sent < FRAMES {
                    self.send_frames(link);
                }
            }
            Input::LinkClosed { reason, .. } => self.report(format!("link closed: {reason}")),
            Input::ConnectFailed {
                peer,
                refused,
                reason,
            } => {
                self.report(format!("no connection to {peer}: {reason} ({refused})"));
            }
            Input::Command { id, command } => {
                match command {
                    Command::Promote { .. } => {
                        for (client, request) in std::mem::take(&mut self.held) {
                            self.request(client, request);
                        }
                    }
                    Command::Demote => {
                        let clients = std::mem::take(&mut self.clients).into_keys();
                        self.outputs
                            .extend(clients.map(|client| Output::CloseClient { client }));
                    }
                    Command::Connect => {
                        let peer = "chelles".to_owned();
                        self.outputs.push(Output::Connect { peer });
                    }
                    Command::Disconnect => {
                        for link in std::mem::take(&mut self.links) {
                            let message = Message::Bye {
                                reason: "the operator".into(),
                            };
                            self.outputs.push(Output::Send { link, message });
                            self.outputs.push(Output::CloseLink { link });
                        }
                    }
                    Command::Shutdown => self.outputs.push(Output::Stopped),
                    Command::Switchover
                    | Command::Resolve { .. }
                    | Command::Resize { .. }
                    | Command::Verify { .. } => {}
                }
                let result = Ok(format!("{} ticks", self.ticks));
                self.outputs.push(Output::CommandDone { id, result });
            }
            Input::Tick => {
                assert!(now.mono >= self.ticked + self.config.timeout, "too early");
                self.ticks += 1;
                self.ticked = now.mono;
                if self.ticks.is_multiple_of(10) {
                    self.report("ten ticks");
                }
            }
        }
    }

    fn finish_batch(&mut self, _: Now) {}

    fn take_outputs(&mut self, spare: Vec<Output>) -> Vec<Output> {
        std::mem::replace(&mut self.outputs, spare)
    }

    fn sync_due(&self) -> f64 {
        1.0
    }

    fn deadline(&self) -> Option<Duration> {
        Some(self.ticked + self.config.timeout)
    }

    fn status(&mut self, _: Now) -> GroupStatus {
        unreachable!("nobody asks for it")
    }
}

fn volume(id: u32, name: &str, size: u64) -> VolumeSpec {
    VolumeSpec {
        id: VolumeId(id),
        uuid: uuid::Uuid::from_u128(id.into()),
        name: name.into(),
        size,
    }
}

fn hello(config: &GroupConfig) -> Hello {
    Hello {
        group_id: uuid::Uuid::nil(),
        group: config.group.clone(),
        site: config.site.clone(),
        to_site: "chelles".into(),
        stance: Stance::Mirror,
        lineage: Lineage::default(),
        tail: Lsn::ZERO,
        commit: Lsn::ZERO,
        chain: 0,
        told_durable: Lsn::ZERO,
        floor: Lsn::ZERO,
        inconsistent_until: None,
        alone: false,
        ack: AckMode::Sync,
        volumes: Vec::new(),
        journal_first: Lsn(1),
        given_up: uuid::Uuid::nil(),
        mixture: uuid::Uuid::nil(),
        written: None,
    }
}

/// A running shard with a group.
struct Shard {
    handle: ShardHandle,
    group: String,
    dir: TempDir,
}

impl Shard {
    fn start(group: &str) -> Shard {
        Shard::with(group, Limits::default(), Duration::from_hours(1))
    }

    fn with(group: &str, limits: Limits, tick: Duration) -> Shard {
        let handle = spawn_with::<Fake>(0, limits).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut shard = Shard {
            handle,
            group: group.into(),
            dir,
        };
        shard.add_group(tick).unwrap();
        shard.until("up");
        shard
    }

    fn add_group(&mut self, tick: Duration) -> Result<(), String> {
        let config = GroupConfig {
            site: "clichy".into(),
            group: self.group.clone(),
            role: Role::Primary,
            ack: AckMode::Sync,
            compress: Compress::Off,
            on_peer_loss: OnPeerLoss::Continue,
            timeout: tick,
            journal_bytes: FRAMES * FRAME as u64,
            resync_rate: None,
            resync_undo: true,
            scrub: Duration::ZERO,
            peers: Vec::new(),
            volumes: vec![("v".into(), SIZE)],
        };
        let (done, answer) = oneshot::channel();
        let paths = paths(self.dir.path());
        let config = Box::new(config);
        assert!(self.handle.send(ToShard::AddGroup {
            config,
            paths,
            done
        }));
        answer.blocking_recv().unwrap()
    }

    /// The next report that begins with this.
    fn until(&mut self, start: &str) -> String {
        loop {
            match self.handle.events.blocking_recv().expect("the shard runs") {
                FromShard::Exports { exports, .. } => match exports.open.unwrap_err() {
                    text if text.starts_with(start) => return text,
                    _ => {}
                },
                FromShard::Stopped { .. } if start == "stopped" => return String::new(),
                FromShard::Connect { peer, .. } if start == "connect" => return peer,
                _ => {}
            }
        }
    }

    fn command(&self, command: Command) -> Result<String, String> {
        let (done, answer) = oneshot::channel();
        self.handle.send(ToShard::Command {
            group: self.group.clone(),
            command,
            done,
        });
        answer.blocking_recv().expect("an answer")
    }

    /// A client that has negotiated simple replies.
    fn client(&self) -> Client {
        self.client_that_sent(&[])
    }

    fn client_that_sent(&self, received: &[u8]) -> Client {
        let (mine, theirs) = UnixStream::pair().unwrap();
        let sent = self.handle.send(ToShard::Client {
            group: self.group.clone(),
            volume: VolumeId(0),
            socket: theirs.into(),
            session: Session {
                export: "v".into(),
                size: SIZE,
                replies: Replies::Simple,
                allocation: false,
            },
            received: BytesMut::from(received),
        });
        assert!(sent);
        mine.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        mine.set_write_timeout(Some(Duration::from_mins(1)))
            .unwrap();
        Client {
            socket: mine,
            cookie: 0,
        }
    }

    fn stop(self) {
        self.handle.send(ToShard::Shutdown);
        self.handle.join().unwrap();
    }
}

fn paths(dir: &Path) -> GroupPaths {
    GroupPaths {
        dir: dir.join("g"),
        homes: HashMap::new(),
    }
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

/// A client by hand.
struct Client {
    socket: UnixStream,
    cookie: u64,
}

fn header(command: u16, cookie: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend((len as u32).to_be_bytes());
    bytes
}

impl Client {
    fn ask(&mut self, command: u16, offset: u64, len: usize, payload: &[u8]) -> u64 {
        self.cookie += 1;
        let mut bytes = header(command, self.cookie, offset, len);
        bytes.extend(payload);
        self.socket.write_all(&bytes).unwrap();
        self.cookie
    }

    /// The cookie of the next reply and its content; `content` tells how much that is by cookie.
    fn reply(&mut self, content: impl Fn(u64) -> usize) -> (u64, Vec<u8>) {
        let cookie = self.reply_head();
        let mut data = vec![0; content(cookie)];
        self.socket.read_exact(&mut data).unwrap();
        (cookie, data)
    }

    /// The cookie of the next reply; its content follows.
    fn reply_head(&mut self) -> u64 {
        let mut head = [0; 16];
        self.socket.read_exact(&mut head).unwrap();
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(head[4..8], [0; 4], "an error");
        u64::from_be_bytes(head[8..].try_into().unwrap())
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let cookie = self.ask(WRITE, offset, data.len(), data);
        assert_eq!(self.reply(|_| 0).0, cookie);
    }

    fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let cookie = self.ask(READ, offset, len, &[]);
        let (answered, data) = self.reply(|_| len);
        assert_eq!(answered, cookie);
        data
    }

    fn expect_end(&mut self) {
        assert_eq!(self.socket.read(&mut [0]).unwrap(), 0);
    }
}
