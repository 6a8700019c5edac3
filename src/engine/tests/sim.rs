//! Two sites or three, their disks, the network between them and a client, all under one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::Rng;
use super::disk::SimDisk;
use crate::base::{
    AckMode, ByteRange, Compress, Lsn, Message, OnPeerLoss, Role, VolumeId, VolumeSpec,
};
use crate::engine::{
    ClientId, Command, File, Force, Group, GroupConfig, Input, LinkId, Now, OpenError, Output,
};
use crate::nbd::{self, Piece, ReplyBody, ReplyTo, Request};

pub const VOLUME: u64 = 1 << 20;
pub const SECTOR: u64 = 512;
const JOURNAL: u64 = 32 << 20;

/// What the client knows of one write.
#[derive(Clone, Copy, Debug)]
struct Written {
    id: u64,
    issued: u64,
    acked: Option<u64>,
}

/// What every sector may hold, by what was acknowledged.
#[derive(Default)]
pub struct Record {
    sectors: BTreeMap<u64, Vec<Written>>,
    /// Every write a sector was ever given.
    ever: BTreeSet<(u64, u64)>,
    clock: u64,
}

impl Record {
    fn issue(&mut self, range: ByteRange, id: u64) {
        self.clock += 1;
        for sector in range.offset / SECTOR..range.end() / SECTOR {
            self.ever.insert((sector, id));
            self.sectors.entry(sector).or_default().push(Written {
                id,
                issued: self.clock,
                acked: None,
            });
        }
    }

    fn ack(&mut self, range: ByteRange, id: u64) {
        self.clock += 1;
        for sector in range.offset / SECTOR..range.end() / SECTOR {
            let writes = self.sectors.get_mut(&sector).expect("issued");
            let write = writes.iter_mut().find(|w| w.id == id).expect("issued");
            write.acked = Some(self.clock);
            // What was acknowledged before this was issued can never be seen again.
            let issued = write.issued;
            writes.retain(|w| w.acked.is_none_or(|acked| acked > issued));
        }
    }

    /// What the sectors of a range may hold now.
    fn snapshot(&self, range: ByteRange) -> BTreeMap<u64, Vec<Written>> {
        let sectors = range.offset / SECTOR..range.end().div_ceil(SECTOR);
        self.sectors
            .range(sectors)
            .map(|(s, w)| (*s, w.clone()))
            .collect()
    }

    /// Holds a content against the record.
    pub fn check(&self, offset: u64, content: &[u8]) -> Result<(), String> {
        self.check_since(offset, content, &BTreeMap::new(), u64::MAX)
    }

    /// The same for a read that was issued when the sectors could still hold `before`.
    fn check_since(
        &self,
        offset: u64,
        content: &[u8],
        before: &BTreeMap<u64, Vec<Written>>,
        issued: u64,
    ) -> Result<(), String> {
        for (n, sector) in content.chunks(SECTOR as usize).enumerate() {
            let at = offset / SECTOR + n as u64;
            let ids: Vec<u64> = sector
                .chunks(8)
                .map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes")))
                .collect();
            let found = ids[0];
            if ids.iter().any(|id| *id != found) {
                return Err(format!(
                    "sector {at} mixes the writes {found} and {:?}",
                    ids.iter().find(|i| **i != found)
                ));
            }
            let none = Vec::new();
            let writes = self.sectors.get(&at).unwrap_or(&none);
            let earlier = before.get(&at);
            let unwritten =
                |w: Option<&Vec<Written>>| w.is_none_or(|w| w.iter().all(|w| w.acked.is_none()));
            let untouched =
                found == 0 && (unwritten(Some(writes)) || issued != u64::MAX && unwritten(earlier));
            // A write that was issued, acknowledged and replaced while the read was under way.
            let during = found > issued && self.ever.contains(&(at, found));
            if !untouched
                && !during
                && !writes
                    .iter()
                    .chain(earlier.unwrap_or(&none))
                    .any(|w| w.id == found)
            {
                return Err(format!(
                    "sector {at} holds write {found}; allowed are {writes:?}, when it was issued {earlier:?}"
                ));
            }
        }
        Ok(())
    }

    /// What was seen after everything settled is how it stays: no other write may come back.
    pub fn settle(&mut self, offset: u64, content: &[u8]) {
        self.clock += 1;
        let clock = self.clock;
        for (n, sector) in content.chunks(SECTOR as usize).enumerate() {
            let at = offset / SECTOR + n as u64;
            let id = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
            self.sectors.insert(
                at,
                vec![Written {
                    id,
                    issued: clock,
                    acked: Some(clock),
                }],
            );
        }
    }
}

enum Asked {
    Write {
        range: ByteRange,
        id: u64,
    },
    /// What the sectors could hold when it was issued.
    Read {
        before: BTreeMap<u64, Vec<Written>>,
    },
    Other,
}

pub struct Site {
    pub name: &'static str,
    pub config: GroupConfig,
    pub disk: SimDisk,
    pub group: Option<Group>,
    pub open: bool,
    pub logs: Vec<String>,
    pub stopped: bool,
    seed: u128,
}

/// A connection: what is on its way to the site at each end, `None` for the end of it.
struct Wire {
    ends: [usize; 2],
    queues: [VecDeque<Option<Message>>; 2],
}

impl Wire {
    /// What is on its way to this site, if it is at one of the ends.
    fn to(&mut self, at: usize) -> Option<&mut VecDeque<Option<Message>>> {
        let end = self.ends.iter().position(|end| *end == at)?;
        Some(&mut self.queues[end])
    }

    /// The same to the other end.
    fn from(&mut self, at: usize) -> Option<&mut VecDeque<Option<Message>>> {
        let end = self.ends.iter().position(|end| *end == at)?;
        Some(&mut self.queues[1 - end])
    }
}

pub struct Sim {
    pub sites: Vec<Site>,
    pub rng: Rng,
    pub now: Duration,
    /// The wall clocks are late by this.
    pub late: Duration,
    pub record: Record,
    pub connected: bool,
    /// Nothing reaches these or comes from them.
    pub isolated: BTreeSet<usize>,
    /// Their machines accept connections, and their processes do nothing.
    hung: BTreeSet<usize>,
    wires: BTreeMap<LinkId, Wire>,
    next_link: u64,
    client: ClientId,
    attached: Option<usize>,
    asked: BTreeMap<u64, Asked>,
    next_cookie: u64,
    pub acked: u64,
    /// Errors that clients got. Nobody may get one unless a test says that it is to be.
    pub refused: Vec<nbd::Errno>,
    pub errors_expected: bool,
    pub reads: Vec<(u64, Vec<u8>)>,
    pub answers: BTreeMap<u64, Result<String, String>>,
    next_command: u64,
    pub violations: Vec<String>,
    /// Bytes of chunks that were sent.
    pub chunk_bytes: u64,
}

pub fn config(
    site: &str,
    peer: Option<&str>,
    role: Role,
    ack: AckMode,
    policy: OnPeerLoss,
) -> GroupConfig {
    GroupConfig {
        site: site.into(),
        group: "g".into(),
        role,
        ack,
        compress: Compress::Off,
        on_peer_loss: policy,
        timeout: Duration::from_secs(5),
        journal_bytes: JOURNAL,
        resync_rate: None,
        resync_undo: true,
        scrub: Duration::ZERO,
        peers: peer.map(str::to_owned).into_iter().collect(),
        volumes: if role == Role::Primary {
            vec![("v".into(), VOLUME)]
        } else {
            Vec::new()
        },
    }
}

impl Sim {
    pub fn new(seed: u64, ack: AckMode, policy: OnPeerLoss) -> Sim {
        Sim::with(
            seed,
            config("a", Some("b"), Role::Primary, ack, policy),
            config("b", Some("a"), Role::Mirror, ack, policy),
        )
    }

    pub fn with(seed: u64, a: GroupConfig, b: GroupConfig) -> Sim {
        Sim::of(seed, vec![("a", a), ("b", b)])
    }

    /// A primary and two mirrors.
    pub fn three(seed: u64, ack: AckMode, policy: OnPeerLoss) -> Sim {
        let names = ["a", "b", "c"];
        let site = |name| {
            let role = if name == "a" {
                Role::Primary
            } else {
                Role::Mirror
            };
            let mut config = config(name, None, role, ack, policy);
            let others = names.iter().filter(|other| **other != name);
            config.peers = others.map(|other| (*other).into()).collect();
            (name, config)
        };
        Sim::of(seed, names.map(site).into())
    }

    fn of(seed: u64, configs: Vec<(&'static str, GroupConfig)>) -> Sim {
        let site = |name, config, seed| Site {
            name,
            config,
            disk: SimDisk::default(),
            group: None,
            open: false,
            logs: Vec::new(),
            stopped: false,
            seed,
        };
        Sim {
            sites: (1..)
                .zip(configs)
                .map(|(n, (name, config))| site(name, config, u128::from(seed) << 8 | n))
                .collect(),
            rng: Rng::new(seed),
            now: Duration::from_secs(1),
            late: Duration::ZERO,
            record: Record::default(),
            connected: true,
            isolated: BTreeSet::new(),
            hung: BTreeSet::new(),
            wires: BTreeMap::new(),
            next_link: 1,
            client: ClientId(1),
            attached: None,
            asked: BTreeMap::new(),
            next_cookie: 1,
            acked: 0,
            refused: Vec::new(),
            errors_expected: false,
            reads: Vec::new(),
            answers: BTreeMap::new(),
            next_command: 1,
            violations: Vec::new(),
            chunk_bytes: 0,
        }
    }

    pub fn time(&self) -> Now {
        Now {
            mono: self.now,
            wall_ns: 1_700_000_000_000_000_000 + self.now.as_nanos() as u64
                - self.late.as_nanos() as u64,
        }
    }

    pub fn start(&mut self, at: usize) -> Result<(), OpenError> {
        let now = self.time();
        let site = &mut self.sites[at];
        site.seed += 1 << 20;
        site.disk.close_homes();
        let group = Group::open(site.config.clone(), &mut site.disk, site.seed, now)?;
        site.group = Some(group);
        site.stopped = false;
        self.carry_out(at);
        Ok(())
    }

    pub fn alive(&self, at: usize) -> bool {
        self.sites[at].group.is_some()
    }

    /// The site loses power.
    pub fn kill(&mut self, at: usize) {
        let site = &mut self.sites[at];
        site.group = None;
        site.open = false;
        site.disk.power_cut(&mut self.rng);
        if self.attached == Some(at) {
            self.attached = None;
            self.asked.clear();
        }
        for wire in self.wires.values_mut() {
            wire.to(at).map(VecDeque::clear);
            wire.from(at).into_iter().for_each(|q| q.push_back(None));
        }
    }

    /// The same, and nothing survives that was not synced.
    pub fn kill_unlucky(&mut self, at: usize) {
        self.sites[at].disk.lose_unsynced();
        self.kill(at);
    }

    /// The process stops, as by SIGSTOP, and its machine does not.
    pub fn hang(&mut self, at: usize) {
        self.hung.insert(at);
    }

    pub fn input(&mut self, at: usize, input: Input) {
        let now = self.time();
        if self.hung.contains(&at) {
            return;
        }
        if let Some(group) = self.sites[at].group.as_mut() {
            group.handle(now, input);
            group.finish_batch(now);
            self.carry_out(at);
        }
    }

    fn carry_out(&mut self, at: usize) {
        let Some(group) = self.sites[at].group.as_mut() else {
            return;
        };
        let outputs: Vec<Output> = group.take_outputs(Vec::new());
        for output in outputs {
            match output {
                Output::Disk { id, op } => self.sites[at].disk.submit(id, op),
                Output::Reply { client, reply } => self.answered(at, client, reply),
                Output::CloseClient { .. } => {
                    self.attached = None;
                    self.asked.clear();
                }
                Output::Send { link, message } => {
                    if let Message::Chunk {
                        data: Some(data), ..
                    } = &message
                    {
                        self.chunk_bytes += data.len() as u64;
                    }
                    let wire = self.wires.get_mut(&link);
                    if let Some(queue) = wire.and_then(|wire| wire.from(at)) {
                        queue.push_back(Some(message));
                    }
                    self.input(
                        at,
                        Input::LinkDrained {
                            link,
                            queued_bytes: 0,
                        },
                    );
                }
                Output::CloseLink { link } => {
                    if let Some(wire) = self.wires.get_mut(&link) {
                        wire.to(at).map(VecDeque::clear);
                        wire.from(at).into_iter().for_each(|q| q.push_back(None));
                    }
                }
                Output::Connect { peer } => self.connect(at, peer),
                Output::Exports(exports) => {
                    self.sites[at].open = exports.open.is_ok() && !exports.volumes.is_empty();
                }
                Output::CommandDone { id, result } => {
                    self.answers.insert(id, result);
                }
                Output::Stopped => self.sites[at].stopped = true,
                Output::Log { level, text } => {
                    let line = format!("{:?} {} {level:?} {text}", self.now, self.sites[at].name);
                    self.sites[at].logs.push(line);
                }
            }
        }
    }

    fn connect(&mut self, at: usize, peer: String) {
        let named = |site: &Site| site.name == peer;
        let other = self.sites.iter().position(named).expect("a site");
        let lost = [at, other].iter().any(|end| self.isolated.contains(end));
        if self.connected && !lost && self.alive(other) {
            let link = LinkId(self.next_link);
            self.next_link += 1;
            let wire = Wire {
                ends: [at, other],
                queues: Default::default(),
            };
            self.wires.insert(link, wire);
            self.input(other, Input::LinkAccepted { link });
            self.input(at, Input::LinkConnected { link, peer });
        } else {
            let refused = self.connected && !lost;
            self.input(
                at,
                Input::ConnectFailed {
                    peer,
                    refused,
                    reason: "cannot connect".into(),
                },
            );
        }
    }

    /// Every connection breaks; new ones can be made at once.
    pub fn break_links(&mut self) {
        for (link, wire) in std::mem::take(&mut self.wires) {
            let mut ends = wire.ends;
            ends.sort_unstable();
            for at in ends {
                let reason = "broken".into();
                self.input(at, Input::LinkClosed { link, reason });
            }
        }
    }

    pub fn cut(&mut self) {
        self.connected = false;
    }

    /// Makes one thing happen, chosen by the seed; false if nothing is under way.
    pub fn step(&mut self) -> bool {
        let sites = self.sites.len();
        let first = self.rng.below(sites as u64) as usize;
        for at in (first..first + sites).map(|at| at % sites) {
            let disk_first = self.rng.below(2) == 0;
            for disk in [disk_first, !disk_first] {
                if disk && self.complete_disk(at) || !disk && self.deliver(at) {
                    return true;
                }
            }
        }
        false
    }

    fn complete_disk(&mut self, at: usize) -> bool {
        if !self.alive(at) {
            return false;
        }
        let Some((id, result)) = self.sites[at].disk.complete_one(&mut self.rng) else {
            return false;
        };
        self.input(at, Input::Disk { id, result });
        true
    }

    fn deliver(&mut self, at: usize) -> bool {
        if !self.connected || !self.alive(at) || self.isolated.contains(&at) {
            return false;
        }
        let isolated = &self.isolated;
        let ready: Vec<LinkId> = self
            .wires
            .iter_mut()
            .filter(|(_, w)| !w.ends.iter().any(|end| isolated.contains(end)))
            .filter_map(|(link, w)| w.to(at).filter(|q| !q.is_empty()).map(|_| *link))
            .collect();
        if ready.is_empty() {
            return false;
        }
        let link = ready[self.rng.below(ready.len() as u64) as usize];
        match self
            .wires
            .get_mut(&link)
            .and_then(|w| w.to(at)?.pop_front())
            .flatten()
        {
            Some(message) => self.input(at, Input::Link { link, message }),
            None => {
                self.wires.remove(&link);
                self.input(
                    at,
                    Input::LinkClosed {
                        link,
                        reason: "the other side closed".into(),
                    },
                );
            }
        }
        true
    }

    /// Lets everything under way finish, without time passing but for short pauses.
    pub fn settle(&mut self) {
        for _ in 0..30_000 {
            if self.step() {
                continue;
            }
            let due = self.due();
            match due {
                Some(due) if due <= self.now + Duration::from_millis(300) => self.advance_to(due),
                _ => return,
            }
        }
        panic!("never settles:\n{}", self.logs());
    }

    fn due(&self) -> Option<Duration> {
        self.sites
            .iter()
            .enumerate()
            .filter(|(at, _)| !self.hung.contains(at))
            .filter_map(|(_, s)| s.group.as_ref().and_then(Group::deadline))
            .min()
    }

    fn advance_to(&mut self, time: Duration) {
        self.now = self.now.max(time) + Duration::from_nanos(1000);
        for at in 0..self.sites.len() {
            self.input(at, Input::Tick);
        }
    }

    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            while self.step() {}
            let next = self.due().map_or(end, |due| due.min(end));
            self.advance_to(next.max(self.now));
        }
        while self.step() {}
    }

    pub fn logs(&self) -> String {
        let mut all: Vec<&String> = self.sites.iter().flat_map(|s| &s.logs).collect();
        all.sort();
        all.iter().map(|l| format!("{l}\n")).collect()
    }

    /// Attaches the client to a site that exports the volume.
    pub fn attach(&mut self, at: usize) -> bool {
        if !self.sites[at].open {
            return false;
        }
        self.client = ClientId(self.client.0 + 1);
        self.attached = Some(at);
        self.asked.clear();
        let (client, volume) = (self.client, VolumeId(0));
        self.input(at, Input::ClientOpened { client, volume });
        true
    }

    /// Attaches the client to another volume.
    pub fn attach_to(&mut self, at: usize, volume: &str) {
        let volume = self.volume(at, volume).id;
        self.client = ClientId(self.client.0 + 1);
        self.attached = Some(at);
        self.asked.clear();
        let client = self.client;
        self.input(at, Input::ClientOpened { client, volume });
    }

    /// The volume of this name as a site knows it.
    pub fn volume(&self, at: usize, name: &str) -> VolumeSpec {
        let group = self.sites[at].group.as_ref().expect("alive");
        let found = group.volumes().iter().find(|v| v.name == name);
        found
            .unwrap_or_else(|| panic!("no {name} at {at}:\n{}", self.logs()))
            .clone()
    }

    /// The site the client is attached to; attaches it to whichever serves.
    pub fn attached(&mut self) -> Option<usize> {
        if self.attached.is_none() {
            let _ = (0..self.sites.len()).any(|at| self.attach(at));
        }
        self.attached
    }

    fn ask(&mut self, at: usize, command: nbd::Command, asked: Asked) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.asked.insert(cookie, asked);
        let request = Request {
            reply_to: ReplyTo::plain(cookie),
            command,
        };
        self.input(
            at,
            Input::Request {
                client: self.client,
                request,
            },
        );
        cookie
    }

    /// Writes a range with content that names the write.
    pub fn write(&mut self, at: usize, range: ByteRange, fua: bool) -> u64 {
        let id = self.next_cookie;
        self.record.issue(range, id);
        let data: Vec<u8> = id.to_le_bytes().repeat(range.len as usize / 8);
        let command = nbd::Command::Write {
            offset: range.offset,
            data: Bytes::from(data),
            fua,
        };
        self.ask(at, command, Asked::Write { range, id })
    }

    /// Writes a range beyond what the record of contents covers: every byte is `byte`.
    pub fn write_filled(&mut self, at: usize, range: ByteRange, byte: u8) -> u64 {
        let command = nbd::Command::Write {
            offset: range.offset,
            data: Bytes::from(vec![byte; range.len as usize]),
            fua: false,
        };
        self.ask(at, command, Asked::Other)
    }

    /// Trims a range beyond what the record of contents covers.
    pub fn trim(&mut self, at: usize, range: ByteRange) -> u64 {
        self.ask(at, nbd::Command::Trim { range, fua: false }, Asked::Other)
    }

    /// Zeroes a range beyond what the record of contents covers.
    pub fn zero(&mut self, at: usize, range: ByteRange, no_hole: bool) -> u64 {
        let command = nbd::Command::WriteZeroes {
            range,
            no_hole,
            fua: false,
        };
        self.ask(at, command, Asked::Other)
    }

    /// The client's connection ends.
    pub fn detach(&mut self, at: usize) {
        let client = self.client;
        self.input(at, Input::ClientClosed { client });
        self.attached = None;
        self.asked.clear();
    }

    pub fn random_range(&mut self) -> ByteRange {
        let len = [1, 1, 8, 8, 8, 64, 100][self.rng.below(7) as usize] * SECTOR;
        // Half of the writes go to a narrow part, so that they overlap.
        let space = if self.rng.below(2) == 0 {
            VOLUME
        } else {
            64 << 10
        };
        let offset = self.rng.below((space - len.min(space - SECTOR)) / SECTOR) * SECTOR;
        ByteRange::new(offset, len.min(VOLUME - offset))
    }

    pub fn random_request(&mut self) {
        let Some(at) = self.attached() else { return };
        let range = self.random_range();
        match self.rng.below(10) {
            0 => {
                let before = self.record.snapshot(range);
                self.ask(
                    at,
                    nbd::Command::Read {
                        range,
                        holes: false,
                    },
                    Asked::Read { before },
                );
            }
            1 => {
                self.ask(at, nbd::Command::Flush, Asked::Other);
            }
            n => {
                self.write(at, range, n == 2);
            }
        }
    }

    fn answered(&mut self, at: usize, client: ClientId, reply: nbd::Reply) {
        if client != self.client || self.attached != Some(at) {
            return;
        }
        let Some(asked) = self.asked.remove(&reply.reply_to.cookie()) else {
            self.violations
                .push(format!("an answer to nothing: {reply:?}"));
            return;
        };
        match (asked, reply.body) {
            (Asked::Write { range, id }, ReplyBody::Done) => {
                self.acked += 1;
                self.record.ack(range, id);
            }
            (Asked::Read { before }, ReplyBody::Data { offset, pieces }) => {
                let content = join(pieces);
                if let Err(text) =
                    self.record
                        .check_since(offset, &content, &before, reply.reply_to.cookie())
                {
                    self.violations
                        .push(format!("a read returned what it must not: {text}"));
                }
                self.reads.push((offset, content));
            }
            (Asked::Other, ReplyBody::Done) => {}
            (_, ReplyBody::Error { errno, .. }) if self.errors_expected => self.refused.push(errno),
            (_, body) => self
                .violations
                .push(format!("an unexpected answer: {body:?}")),
        }
    }

    pub fn outstanding(&self) -> usize {
        self.asked.len()
    }

    /// Reads the whole volume through the engine.
    pub fn read_all(&mut self, at: usize) -> Vec<u8> {
        self.reads.clear();
        let range = ByteRange::new(0, VOLUME);
        let before = self.record.snapshot(range);
        let cookie = self.ask(
            at,
            nbd::Command::Read {
                range,
                holes: false,
            },
            Asked::Read { before },
        );
        for _ in 0..100 {
            self.settle();
            if !self.asked.contains_key(&cookie) {
                break;
            }
            self.pass(Duration::from_secs(1));
        }
        self.reads
            .pop()
            .unwrap_or_else(|| panic!("no answer to a read:\n{}", self.logs()))
            .1
    }

    pub fn command(&mut self, at: usize, command: Command) -> u64 {
        let id = self.next_command;
        self.next_command += 1;
        self.input(at, Input::Command { id, command });
        id
    }

    pub fn promote(&mut self, at: usize) -> Result<String, String> {
        self.settle();
        let force = vec![Force::PeerUnreachable];
        let id = self.command(at, Command::Promote { force });
        self.pass(Duration::from_secs(12));
        self.answers
            .get(&id)
            .cloned()
            .unwrap_or_else(|| Err(format!("no answer\n{}", self.logs())))
    }

    pub fn in_sync(&mut self) -> bool {
        let now = self.time();
        self.sites.iter_mut().any(|s| {
            s.group.as_mut().is_some_and(|g| {
                let status = g.status(now);
                status
                    .peers
                    .iter()
                    .all(|p| p.state == crate::status::PeerState::InSync)
                    && status.healthy
            })
        })
    }

    /// Waits until one side serves and the others are in sync.
    pub fn heal(&mut self) {
        for _ in 0..60 {
            if self.in_sync() {
                self.settle();
                return;
            }
            self.pass(Duration::from_secs(1));
        }
        let now = self.time();
        let status: Vec<String> = self
            .sites
            .iter_mut()
            .map(|s| {
                s.group
                    .as_mut()
                    .map_or("down".into(), |g| format!("{:?}", g.status(now)))
            })
            .collect();
        panic!("does not heal:\n{}\n{status:#?}", self.logs());
    }

    /// Stops a site's disk, or lets it go on.
    pub fn hold_disk(&mut self, at: usize, held: bool) {
        self.sites[at].disk.held = held;
    }

    /// The same for its homes only.
    pub fn hold_homes(&mut self, at: usize, held: bool) {
        self.sites[at].disk.homes_held = held;
    }

    /// The same for reads of its homes only.
    pub fn hold_home_reads(&mut self, at: usize, held: bool) {
        self.sites[at].disk.home_reads_held = held;
    }

    /// The same for syncs of its homes only.
    pub fn hold_home_syncs(&mut self, at: usize, held: bool) {
        self.sites[at].disk.home_syncs_held = held;
    }

    /// The same for writes to its journal only.
    pub fn hold_journal(&mut self, at: usize, held: bool) {
        self.sites[at].disk.journal_held = held;
    }

    /// Lets what is under way to one file reach it; nothing else happens.
    pub fn settle_disk(&mut self, at: usize, file: File) {
        while let Some((id, result)) = self.sites[at].disk.complete_of(file) {
            self.input(at, Input::Disk { id, result });
        }
    }

    /// A new, empty disk.
    pub fn wipe(&mut self, at: usize) {
        self.sites[at].disk = SimDisk::default();
    }

    /// Writes until the journal has gone round, so that it no longer holds its beginning.
    pub fn forget_old_journal(&mut self, at: usize) {
        let mut turns = 0;
        while self.status(at).journal.first_lsn.0 <= 1 {
            for n in 0..8 {
                self.write(at, ByteRange::new(n * (VOLUME / 8), VOLUME / 8), false);
                self.settle();
            }
            self.pass(Duration::from_secs(1));
            turns += 1;
            assert!(
                turns < 200,
                "the journal never goes round: {:?}",
                self.status(at).journal
            );
        }
    }

    pub fn status(&mut self, at: usize) -> crate::status::GroupStatus {
        let now = self.time();
        self.sites[at].group.as_mut().expect("alive").status(now)
    }

    /// Time passes until this holds, and fails if it never does.
    pub fn pass_until(&mut self, most: Duration, holds: impl Fn(&mut Sim) -> bool) {
        let end = self.now + most;
        while !holds(self) {
            assert!(self.now < end, "never came about:\n{}", self.logs());
            if !self.step() {
                let next = self.due().map_or(end, |due| due.min(end));
                self.advance_to(next.max(self.now));
            }
        }
    }

    /// Time passes, as far as `time`; unlike `pass`, what cannot finish does not matter.
    pub fn run_for(&mut self, time: Duration) {
        self.pass(time);
    }

    /// Asks for a flush.
    pub fn flush(&mut self, at: usize) {
        self.ask(at, nbd::Command::Flush, Asked::Other);
    }

    /// Reads a range.
    pub fn read(&mut self, at: usize, range: ByteRange) {
        let before = self.record.snapshot(range);
        self.ask(
            at,
            nbd::Command::Read {
                range,
                holes: false,
            },
            Asked::Read { before },
        );
    }

    /// Forgets which chunks a mirror lacks, as if the record had been lost.
    pub fn forget_changes(&mut self, at: usize) {
        self.sites[at]
            .group
            .as_mut()
            .expect("alive")
            .forget_changes();
    }

    /// Where the frame of this LSN lies in the journal, bytes from the start of the file.
    pub fn journal_place(&mut self, at: usize, lsn: u64) -> u64 {
        self.sites[at]
            .group
            .as_ref()
            .expect("alive")
            .journal_place(Lsn(lsn))
    }

    /// All homes are the same, byte for byte, after everything was applied.
    pub fn all_homes_are_equal(&mut self) -> bool {
        self.pass(Duration::from_secs(1));
        let home = File::Home(VolumeId(0));
        let content = |site: &mut Site| site.disk.content(home, 0, VOLUME as usize).clone();
        let all: Vec<Vec<u8>> = self.sites.iter_mut().map(content).collect();
        all.windows(2).all(|two| two[0] == two[1])
    }

    /// Both homes, byte for byte, after everything was applied.
    pub fn homes(&mut self) -> [Vec<u8>; 2] {
        self.pass(Duration::from_secs(1));
        let home = File::Home(VolumeId(0));
        [0, 1].map(|at| self.sites[at].disk.content(home, 0, VOLUME as usize))
    }
}

fn join(pieces: Vec<Piece>) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => all.extend_from_slice(&data),
            Piece::Hole(len) => all.resize(all.len() + len as usize, 0),
        }
    }
    all
}
