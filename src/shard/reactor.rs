//! The loop of a shard: completions become inputs, inputs become outputs, outputs become operations, and one system call
//! hands all of them over and waits for the next completions.
//!
//! Nothing is decided here about replication: a batch of inputs goes to each group's engine, and what it puts out is
//! carried out in order.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::BytesMut;
use slab::Slab;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::budget::Budget;
use super::client::Client;
use super::disk::{Files, Slow};
use super::group::{Clock, Machine, Slot};
use super::job::{self, Begun, Job, Next};
use super::link::Link;
use super::ring::{Done, Op, ReadBuf, Ring};
use super::spin::{Sender, Spin};
use super::stats::Counters;
use super::stream::Stream;
use super::writer::{HomeDone, HomeOp, HomeThreads, HomeWork};
use super::{FromShard, ToShard};
use crate::engine::{ClientId, Command, DiskId, DiskOp, DiskResult, Input, LinkId, Now, Output};

/// Room for receiving, beyond what each client has anyway, bytes.
const ROOMS_BYTES: usize = 64 << 20;

/// An engine that asks for a time that has passed is not asked more often than this.
const TICK_MIN: Duration = Duration::from_millis(1);

/// What a shard gives to whom.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Memory that clients may make the shard hold beyond their allowances, bytes.
    pub shard_bytes: usize,
    /// The same for the clients of one group: not all of it, so that a group that is frozen with its requests leaves
    /// some to the others.
    pub group_bytes: usize,
    /// While somebody waits for memory, whoever holds some and does not do his part for this long is disconnected.
    pub patience: Duration,
    /// How long a connection that the engine closes may take for what is queued on it.
    pub close_grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            shard_bytes: 256 << 20,
            group_bytes: 128 << 20,
            patience: Duration::from_secs(10),
            close_grace: Duration::from_secs(5),
        }
    }
}

/// What an operation on the ring was for: a key of one of the tables.
#[derive(Clone, Copy)]
enum Token {
    Bell,
    ClientReceive(usize),
    ClientSend(usize),
    LinkReceive(usize),
    LinkSend(usize),
    Disk(usize),
}

/// What arrives from other threads.
pub enum Inbound<M> {
    /// From the control plane.
    Message(ToShard),
    /// From the thread that carried out a disk request.
    Slow {
        /// Key of the group.
        group: usize,
        /// The request.
        id: DiskId,
        /// What came of it.
        result: DiskResult,
    },
    /// From the thread that opened a group.
    Opened {
        /// Name of the group.
        name: String,
        /// What came of it.
        result: Result<Box<(M, Files)>, String>,
        /// Who wants to know.
        done: oneshot::Sender<Result<(), String>>,
    },
}

/// Where other threads put it.
pub struct Postbox<M> {
    /// The queue.
    pub queue: mpsc::Sender<Inbound<M>>,
    /// Wakes the ring.
    pub bell: Arc<OwnedFd>,
}

/// A disk request on the ring.
struct Running {
    group: usize,
    id: DiskId,
    job: Job,
}

/// A shard.
pub struct Reactor<M> {
    limits: Limits,
    ring: Ring<Token>,
    clock: Clock,
    now: Now,
    inbox: mpsc::Receiver<Inbound<M>>,
    postbox: Postbox<M>,
    events: UnboundedSender<FromShard>,
    counters: Arc<Counters>,
    groups: Slab<Slot<M>>,
    names: HashMap<String, usize>,
    clients: Slab<Client>,
    links: Slab<Link>,
    jobs: Slab<Running>,
    /// Distinguishes the users of one key.
    serial: u64,
    /// Groups with inputs since their last batch.
    touched: Vec<usize>,
    homes: HomeThreads,
    syncs: HomeThreads,
    spin: Spin,
    /// Connections to look after before the turn ends.
    clients_due: Vec<usize>,
    links_due: Vec<usize>,
    outputs: Vec<Output>,
    memory: Arc<Budget>,
    /// Clients without memory for their next request.
    starving: Vec<usize>,
    /// Sum of the clients' extra room.
    rooms: usize,
    /// When connections that are being closed run out of grace, in order.
    closing: VecDeque<(Duration, Connection)>,
    /// Groups being opened by a thread of their own.
    opening: usize,
    stopping: bool,
}

#[derive(Clone, Copy)]
enum Connection {
    Client(ClientId),
    Link(LinkId),
}

/// Ids carry their key in the table, so that they are found without a map.
const KEY_BITS: u32 = 24;

fn key_of(id: u64) -> usize {
    (id & ((1 << KEY_BITS) - 1)) as usize
}

impl<M: Machine> Reactor<M> {
    /// A shard for the calling thread.
    pub fn new(
        limits: Limits,
        inbox: mpsc::Receiver<Inbound<M>>,
        postbox: Postbox<M>,
        events: UnboundedSender<FromShard>,
        counters: Arc<Counters>,
    ) -> io::Result<Reactor<M>> {
        let clock = Clock::start();
        let homes = HomeThreads::for_writes(postbox.bell.clone());
        let syncs = HomeThreads::for_syncs(postbox.bell.clone());
        Ok(Reactor {
            limits,
            ring: Ring::new()?,
            clock,
            now: clock.now(),
            inbox,
            postbox,
            events,
            counters,
            groups: Slab::new(),
            names: HashMap::new(),
            clients: Slab::new(),
            links: Slab::new(),
            jobs: Slab::new(),
            serial: 0,
            touched: Vec::new(),
            homes,
            syncs,
            spin: Spin::default(),
            clients_due: Vec::new(),
            links_due: Vec::new(),
            outputs: Vec::new(),
            memory: Budget::root(limits.shard_bytes),
            starving: Vec::new(),
            rooms: 0,
            closing: VecDeque::new(),
            opening: 0,
            stopping: false,
        })
    }

    /// Runs until it was told to shut down and all groups have stopped.
    ///
    /// # Errors
    /// When the ring fails.
    pub fn run(mut self) -> io::Result<()> {
        self.listen();
        while !self.is_over() {
            let (before, left) = (self.clock.mono(), self.time_left());
            match self.spin.patience() {
                Some(patience) => self.ring.enter_patiently(patience, left)?,
                None => self.ring.enter(true, left)?,
            }
            self.now = self.clock.now();
            let moved = self.counters.bytes();
            while let Some(done) = self.ring.reap() {
                self.complete(done);
            }
            let moved = self.counters.bytes() - moved;
            self.spin.waited(self.now.mono - before, moved);
            self.collect_home_work();
            self.tick();
            self.settle();
            self.hand_over_home_work();
            self.counters.note_ring(self.ring.counts());
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.stopping && self.opening == 0 && self.groups.is_empty()
    }

    /// Waits for the bell.
    fn listen(&mut self) {
        let into = ReadBuf::Plain(BytesMut::with_capacity(8));
        let file = self.postbox.bell.clone();
        let read = Op::Read {
            file,
            offset: 0,
            into,
            len: 8,
        };
        self.ring.push(Token::Bell, read);
    }

    /// How long nothing has to be done unless something happens.
    fn time_left(&self) -> Option<Duration> {
        let groups = self.groups.iter().filter_map(|(_, group)| group.deadline);
        let closing = self.closing.front().map(|(at, _)| *at);
        // Patience that has run out without anybody to blame is asked again now and then.
        let again = self.now.mono + self.limits.patience / 10;
        let starving = self.starving.iter().filter_map(|&key| {
            let since = self.clients.get(key)?.starving_since?;
            Some((since + self.limits.patience).max(again))
        });
        let due = groups.chain(closing).chain(starving).min()?;
        // What was due already was told so in this turn.
        Some(due.saturating_sub(self.clock.mono()).max(TICK_MIN))
    }

    fn complete(&mut self, done: Done<Token>) {
        let Done { token, op, result } = done;
        match (token, op) {
            (Token::Bell, _) => {
                self.listen();
                while let Ok(inbound) = self.inbox.try_recv() {
                    self.accept(inbound);
                }
            }
            (Token::Disk(key), op) => self.disk_done(key, op, result),
            (Token::ClientReceive(key), Op::Receive { into, .. }) => {
                let client = &mut self.clients[key];
                self.rooms -= client.extra_room();
                self.counters.received.add(*result.as_ref().unwrap_or(&0));
                self.spin.heard(Sender::Client(key));
                client.received(into, result);
                self.read_client(key);
            }
            (Token::ClientSend(key), Op::Send { parts, .. }) => {
                self.counters.sent.add(*result.as_ref().unwrap_or(&0));
                self.clients[key].sent(parts, result);
                self.clients_due.push(key);
            }
            (Token::LinkReceive(key), Op::Receive { into, .. }) => {
                self.counters
                    .link_received
                    .add(*result.as_ref().unwrap_or(&0));
                self.spin.heard(Sender::Link(key));
                self.links[key].received(into, result);
                self.read_link(key);
            }
            (Token::LinkSend(key), Op::Send { parts, .. }) => {
                self.counters.link_sent.add(*result.as_ref().unwrap_or(&0));
                self.link_sent(key, parts, result);
            }
            _ => unreachable!("an operation comes back as it went"),
        }
    }

    /// Gives a group an input.
    fn input(&mut self, group: usize, input: Input) {
        let slot = &mut self.groups[group];
        let Some(machine) = &mut slot.machine else {
            return;
        };
        machine.handle(self.now, input);
        if !mem::replace(&mut slot.touched, true) {
            self.touched.push(group);
        }
    }

    /// Lets time pass for those who asked for it.
    fn tick(&mut self) {
        let due = |deadline: Option<Duration>| deadline.is_some_and(|at| at <= self.now.mono);
        let groups: Vec<usize> = self
            .groups
            .iter()
            .filter(|(_, g)| due(g.deadline))
            .map(|(key, _)| key)
            .collect();
        for group in groups {
            self.input(group, Input::Tick);
        }
        while let Some(&(at, connection)) = self.closing.front() {
            if at > self.now.mono {
                break;
            }
            self.closing.pop_front();
            self.cut(connection);
        }
        self.evict();
    }

    /// Ends batches and carries out what comes of it until nothing is left to do but to wait.
    fn settle(&mut self) {
        loop {
            while let Some(group) = self.touched.pop() {
                self.end_batch(group);
            }
            for key in mem::take(&mut self.clients_due) {
                self.tend_client(key);
            }
            for key in mem::take(&mut self.links_due) {
                self.tend_link(key);
            }
            self.feed();
            if self.touched.is_empty() && self.clients_due.is_empty() && self.links_due.is_empty() {
                return;
            }
        }
    }

    fn end_batch(&mut self, group: usize) {
        let Some(slot) = self.groups.get_mut(group) else {
            return;
        };
        slot.touched = false;
        let Some(machine) = &mut slot.machine else {
            return;
        };
        machine.finish_batch(self.now);
        slot.deadline = machine.deadline();
        if let Some(files) = &slot.files {
            files.sync_due.set(machine.sync_due());
        }
        let mut outputs = machine.take_outputs(mem::take(&mut self.outputs));
        let stopped = outputs.contains(&Output::Stopped);
        for output in outputs.drain(..) {
            self.carry_out(group, output);
        }
        self.outputs = outputs;
        if stopped {
            self.stopped(group);
        }
    }

    fn carry_out(&mut self, group: usize, output: Output) {
        match output {
            Output::Disk { id, op } => self.disk(group, id, op),
            Output::Reply { client, reply } => {
                if let Some(client) = self.client(client) {
                    self.clients[client].answer(reply);
                    self.clients_due.push(client);
                }
            }
            Output::CloseClient { client } => {
                if let Some(key) = self.client(client) {
                    self.close_client(key);
                }
            }
            Output::Send { link, message } => {
                if let Some(key) = self.link(link) {
                    self.links[key].queue(&message);
                    self.links_due.push(key);
                }
            }
            Output::CloseLink { link } => {
                if let Some(key) = self.link(link) {
                    self.close_link(key);
                }
            }
            Output::Connect { peer } => {
                let group = self.groups[group].name.clone();
                self.tell(FromShard::Connect { group, peer });
            }
            Output::Exports(exports) => {
                let group = self.groups[group].name.clone();
                self.tell(FromShard::Exports { group, exports });
            }
            Output::CommandDone { id, result } => self.groups[group].command_done(id, result),
            Output::Stopped => {} // the last thing to be done in a batch
            Output::Log { level, text } => {
                let slot = &mut self.groups[group];
                slot.log.write(&slot.name, level, &text, self.now.mono);
            }
        }
    }

    fn tell(&self, event: FromShard) {
        let _ = self.events.send(event); // whoever listened has gone; then nobody is left to serve either
    }
}

/// Disk requests.
impl<M: Machine> Reactor<M> {
    fn disk(&mut self, group: usize, id: DiskId, op: DiskOp) {
        let files = self.groups[group]
            .files
            .as_mut()
            .expect("open while the engine runs");
        match job::begin(files, op) {
            Begun::Answer(result) => self.input(group, Input::Disk { id, result }),
            Begun::Job(job, op) => self.run_job(group, id, job, op),
            Begun::Home(file, what) => {
                self.groups[group].jobs += 1;
                let threads = match what {
                    HomeOp::Write(..) => &mut self.homes,
                    HomeOp::Sync(_) => &mut self.syncs,
                };
                threads.push(HomeWork {
                    group,
                    id,
                    file,
                    what,
                });
            }
            Begun::Slow(work) => self.do_slowly(group, id, work),
        }
    }

    fn run_job(&mut self, group: usize, id: DiskId, job: Job, op: Op) {
        self.groups[group].jobs += 1;
        let key = self.jobs.insert(Running { group, id, job });
        self.ring.push(Token::Disk(key), op);
    }

    /// The batch of this turn goes to the threads; without any, to the ring: slower, but it is done.
    fn hand_over_home_work(&mut self) {
        let left = [self.homes.hand_over(), self.syncs.hand_over()];
        for work in left.into_iter().flatten() {
            let HomeWork {
                group,
                id,
                file,
                what,
            } = work;
            let (job, op) = Job::at_home(file, what);
            self.groups[group].jobs -= 1;
            self.run_job(group, id, job, op);
        }
    }

    fn collect_home_work(&mut self) {
        let done = [self.homes.take_done(), self.syncs.take_done()];
        for written in done.into_iter().flatten() {
            let HomeDone {
                group,
                id,
                result,
                data,
            } = written;
            drop(data);
            self.request_done(group, id, result);
        }
    }

    /// A thread of its own does it, so that everybody else goes on.
    fn do_slowly(&mut self, group: usize, id: DiskId, work: Slow) {
        let (queue, bell) = (self.postbox.queue.clone(), self.postbox.bell.clone());
        let work = move || {
            let failed = |_| DiskResult::Failed {
                errno: libc::EIO,
                message: "the thread of a disk request panicked; see the log".into(),
            };
            let result =
                catch_unwind(AssertUnwindSafe(|| job::do_slowly(work))).unwrap_or_else(failed);
            if queue.send(Inbound::Slow { group, id, result }).is_ok() {
                ring_bell(&bell);
            }
        };
        match std::thread::Builder::new().name("disk".into()).spawn(work) {
            Ok(_) => self.groups[group].jobs += 1,
            Err(error) => {
                let result = DiskResult::Failed {
                    errno: error.raw_os_error().unwrap_or(libc::EAGAIN),
                    message: format!("no thread for a disk request: {error}"),
                };
                self.input(group, Input::Disk { id, result });
            }
        }
    }

    /// The group is still there: it waits for its requests.
    fn request_done(&mut self, group: usize, id: DiskId, result: DiskResult) {
        self.groups[group].jobs -= 1;
        self.input(group, Input::Disk { id, result });
        self.clear_away(group);
    }

    fn disk_done(&mut self, key: usize, op: Op, result: io::Result<usize>) {
        let result: DiskResult = match self.jobs[key].job.advance(op, result) {
            Next::Submit(op) => return self.ring.push(Token::Disk(key), op),
            Next::Done(result) => result,
        };
        let Running { group, id, .. } = self.jobs.remove(key);
        self.request_done(group, id, result);
    }
}

/// Clients.
impl<M: Machine> Reactor<M> {
    fn add_client(&mut self, message: ClientMessage) {
        let ClientMessage {
            group,
            volume,
            socket,
            session,
            received,
        } = message;
        let Some(group) = self.running(&group) else {
            return;
        };
        let stream = match Stream::adopt(socket) {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!("a client's socket is no use: {error}"),
        };
        self.serial += 1;
        let id = ClientId(self.serial << KEY_BITS | self.clients.vacant_key() as u64);
        let memory = &self.groups[group].memory;
        let client = Client::new(id, group, stream, session, received, memory);
        let key = self.clients.insert(client);
        self.groups[group].connections += 1;
        self.input(group, Input::ClientOpened { client: id, volume });
        self.read_client(key);
    }

    fn client(&self, id: ClientId) -> Option<usize> {
        let key = key_of(id.0);
        self.clients
            .get(key)
            .is_some_and(|client| client.id() == id)
            .then_some(key)
    }

    /// Takes requests out of what a client sent.
    fn read_client(&mut self, key: usize) {
        let client = &mut self.clients[key];
        let (id, group) = (client.id(), client.group);
        while let Some(request) = self.clients[key].request(self.now.mono) {
            self.counters.requests.add(1);
            self.input(
                group,
                Input::Request {
                    client: id,
                    request,
                },
            );
        }
        self.clients_due.push(key);
    }

    /// Goes on with whatever a client can go on with.
    fn tend_client(&mut self, key: usize) {
        // It may be due more than once, and gone the second time.
        if !self.clients.contains(key) {
            return;
        }
        let now = self.now.mono;
        if self.clients[key].has_input() {
            let due = self.clients_due.len();
            self.read_client(key);
            self.clients_due.truncate(due);
        }
        let client = &mut self.clients[key];
        if let Some(send) = client.send(now) {
            self.ring.push(Token::ClientSend(key), send);
        }
        if let Some(receive) = client.receive(now, self.rooms < ROOMS_BYTES) {
            self.rooms += client.extra_room();
            self.ring.push(Token::ClientReceive(key), receive);
        }
        if client.starving_since.is_some() && !self.starving.contains(&key) {
            self.starving.push(key);
        }
        client.finish();
        if client.is_broken() && !mem::replace(&mut client.detached, true) {
            if let Some(reason) = client.reason() {
                tracing::debug!(export = client.export(), "client gone: {reason}");
            }
            let (id, group) = (client.id(), client.group);
            self.input(group, Input::ClientClosed { client: id });
        }
        if self.clients[key].is_gone() {
            let client = self.clients.remove(key);
            self.leave(client.group);
        }
    }

    /// The engine has said its last word to a client.
    fn close_client(&mut self, key: usize) {
        let client = &mut self.clients[key];
        client.close();
        let grace = (
            self.now.mono + self.limits.close_grace,
            Connection::Client(client.id()),
        );
        self.closing.push_back(grace);
        self.clients_due.push(key);
    }

    /// Goes on with those who found no memory before, longest first. Who finds none again puts itself back.
    fn feed(&mut self) {
        for key in mem::take(&mut self.starving) {
            if self.is_starving(key) {
                self.tend_client(key);
            }
        }
    }

    fn is_starving(&self, key: usize) -> bool {
        self.clients
            .get(key)
            .is_some_and(|client| client.starving_since.is_some())
    }

    /// When somebody has waited for memory for long, takes it from whoever holds most of it without doing his part.
    fn evict(&mut self) {
        let Some(since) = self.now.mono.checked_sub(self.limits.patience) else {
            return;
        };
        let starved = |key: &usize| {
            self.clients
                .get(*key)
                .is_some_and(|c| c.starving_since.is_some_and(|at| at <= since))
        };
        if !self.starving.iter().any(starved) {
            return;
        }
        let hoards = self
            .clients
            .iter()
            .map(|(key, client)| (client.hoards(since), key));
        if let Some((held @ 1.., key)) = hoards.max() {
            let client = &mut self.clients[key];
            let export = client.export();
            tracing::warn!(
                export,
                "a client holds {held} bytes and neither reads nor sends: disconnected"
            );
            client.fail("others wait for its memory".into());
            self.clients_due.push(key);
        }
    }
}

/// Links.
impl<M: Machine> Reactor<M> {
    fn add_link(&mut self, group: usize, socket: OwnedFd, received: BytesMut) -> io::Result<usize> {
        let stream = Stream::adopt(socket)?;
        self.serial += 1;
        let id = LinkId(self.serial << KEY_BITS | self.links.vacant_key() as u64);
        let key = self.links.insert(Link::new(id, group, stream, received));
        self.groups[group].connections += 1;
        Ok(key)
    }

    fn link_accepted(&mut self, group: &str, socket: OwnedFd, received: BytesMut) {
        let Some(group) = self.running(group) else {
            return;
        };
        match self.add_link(group, socket, received) {
            Ok(key) => {
                let link = self.links[key].id();
                self.input(group, Input::LinkAccepted { link });
                self.read_link(key);
            }
            Err(error) => tracing::warn!("a peer's socket is no use: {error}"),
        }
    }

    fn link_connected(
        &mut self,
        group: &str,
        peer: String,
        outcome: Result<OwnedFd, (bool, String)>,
    ) {
        let Some(group) = self.running(group) else {
            return;
        };
        let outcome = outcome.and_then(|socket| {
            let added = self.add_link(group, socket, BytesMut::new());
            added.map_err(|error| (false, format!("the socket is no use: {error}")))
        });
        match outcome {
            Ok(key) => {
                let link = self.links[key].id();
                self.input(group, Input::LinkConnected { link, peer });
                self.links_due.push(key);
            }
            Err((refused, reason)) => {
                let failed = Input::ConnectFailed {
                    peer,
                    refused,
                    reason,
                };
                self.input(group, failed);
            }
        }
    }

    fn link(&self, id: LinkId) -> Option<usize> {
        let key = key_of(id.0);
        self.links
            .get(key)
            .is_some_and(|link| link.id() == id)
            .then_some(key)
    }

    /// Takes messages out of what a peer sent.
    fn read_link(&mut self, key: usize) {
        let (link, group) = (self.links[key].id(), self.links[key].group);
        while let Some(message) = self.links[key].message() {
            self.input(group, Input::Link { link, message });
        }
        self.links_due.push(key);
    }

    fn link_sent(&mut self, key: usize, parts: Vec<bytes::Bytes>, result: io::Result<usize>) {
        let link = &mut self.links[key];
        link.sent(parts, result);
        let drained = Input::LinkDrained {
            link: link.id(),
            queued_bytes: link.queued() as u64,
        };
        let group = link.group;
        if !link.detached {
            self.input(group, drained);
        }
        self.links_due.push(key);
    }

    fn tend_link(&mut self, key: usize) {
        if !self.links.contains(key) {
            return;
        }
        let link = &mut self.links[key];
        if let Some(send) = link.send() {
            self.ring.push(Token::LinkSend(key), send);
        }
        if let Some(receive) = link.receive() {
            self.ring.push(Token::LinkReceive(key), receive);
        }
        link.finish();
        if let (Some(reason), false) = (link.broken(), link.detached) {
            let closed = Input::LinkClosed {
                link: link.id(),
                reason: reason.to_owned(),
            };
            link.detached = true;
            let group = link.group;
            self.input(group, closed);
        }
        if self.links[key].is_gone() {
            let link = self.links.remove(key);
            self.leave(link.group);
        }
    }

    fn close_link(&mut self, key: usize) {
        let link = &mut self.links[key];
        link.close();
        let grace = (
            self.now.mono + self.limits.close_grace,
            Connection::Link(link.id()),
        );
        self.closing.push_back(grace);
        self.links_due.push(key);
    }

    /// Ends a connection that had time enough.
    fn cut(&mut self, connection: Connection) {
        match connection {
            Connection::Client(id) => {
                if let Some(key) = self.client(id) {
                    self.clients[key].fail(String::new());
                    self.clients_due.push(key);
                }
            }
            Connection::Link(id) => {
                if let Some(key) = self.link(id) {
                    self.links[key].fail(String::new());
                    self.links_due.push(key);
                }
            }
        }
    }
}

/// What a client brings along.
struct ClientMessage {
    group: String,
    volume: crate::base::VolumeId,
    socket: OwnedFd,
    session: crate::nbd::Session,
    received: BytesMut,
}

/// Groups come and go.
impl<M: Machine> Reactor<M> {
    fn accept(&mut self, inbound: Inbound<M>) {
        match inbound {
            Inbound::Message(message) => self.message(message),
            Inbound::Slow { group, id, result } => self.request_done(group, id, result),
            Inbound::Opened { name, result, done } => self.opened(name, result, done),
        }
    }

    fn message(&mut self, message: ToShard) {
        match message {
            ToShard::AddGroup {
                config,
                paths,
                done,
            } => self.open(*config, paths, done),
            ToShard::Client {
                group,
                volume,
                socket,
                session,
                received,
            } => self.add_client(ClientMessage {
                group,
                volume,
                socket,
                session,
                received,
            }),
            ToShard::LinkAccepted {
                group,
                socket,
                received,
            } => self.link_accepted(&group, socket, received),
            ToShard::LinkConnected {
                group,
                peer,
                outcome,
            } => self.link_connected(&group, peer, outcome),
            ToShard::Command {
                group,
                command,
                done,
            } => match self.running(&group) {
                Some(key) => {
                    let input = self.groups[key].command(command, Some(done));
                    self.input(key, input);
                }
                None => {
                    let _ = done.send(Err(format!("{group} does not run")));
                }
            },
            ToShard::Status { done } => {
                let now = self.now;
                let machines = self
                    .groups
                    .iter_mut()
                    .filter_map(|(_, slot)| slot.machine.as_mut());
                let _ = done.send(machines.map(|machine| machine.status(now)).collect());
            }
            ToShard::Shutdown => {
                self.stopping = true;
                let groups: Vec<usize> = self.groups.iter().map(|(key, _)| key).collect();
                for group in groups {
                    self.shut_down(group);
                }
            }
        }
    }

    /// The key of a group that runs.
    fn running(&self, name: &str) -> Option<usize> {
        let key = self.names.get(name).copied()?;
        self.groups[key].machine.is_some().then_some(key)
    }

    /// Creation and recovery take their time: a thread of their own does them, so that other groups go on.
    fn open(
        &mut self,
        config: crate::engine::GroupConfig,
        paths: super::GroupPaths,
        done: oneshot::Sender<Result<(), String>>,
    ) {
        let (queue, bell) = (self.postbox.queue.clone(), self.postbox.bell.clone());
        let (clock, name) = (self.clock, config.group.clone());
        self.opening += 1;
        let work = move || {
            // Whatever happens there, the shard must not wait for this thread for ever.
            let result = catch_unwind(|| open_group(config, paths, clock))
                .unwrap_or_else(|_| Err("opening the group panicked; see the log".into()));
            let opened = Inbound::Opened { name, result, done };
            if queue.send(opened).is_ok() {
                ring_bell(&bell);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("open".into()).spawn(work) {
            self.opening -= 1; // `done` went with the closure: whoever waits for it is told so
            tracing::error!("no thread to open a group: {error}");
        }
    }

    fn opened(
        &mut self,
        name: String,
        result: Result<Box<(M, Files)>, String>,
        done: oneshot::Sender<Result<(), String>>,
    ) {
        self.opening -= 1;
        let result = result.and_then(|opened| {
            if self.names.contains_key(&name) {
                return Err(format!("{name} is open already"));
            }
            let (machine, files) = *opened;
            let memory = self.memory.child(self.limits.group_bytes, 0);
            let group = self
                .groups
                .insert(Slot::new(name.clone(), machine, files, memory));
            self.names.insert(name, group);
            // It has something to say from the start.
            self.groups[group].touched = true;
            self.touched.push(group);
            if self.stopping {
                self.shut_down(group);
            }
            Ok(())
        });
        let _ = done.send(result);
    }

    fn shut_down(&mut self, group: usize) {
        let input = self.groups[group].command(Command::Shutdown, None);
        self.input(group, input);
    }

    /// The engine has stopped: its connections end when what is queued on them was sent.
    fn stopped(&mut self, group: usize) {
        self.groups[group].stop();
        let clients: Vec<usize> = self
            .clients
            .iter()
            .filter(|(_, c)| c.group == group)
            .map(|(key, _)| key)
            .collect();
        for key in clients {
            self.close_client(key);
        }
        let links: Vec<usize> = self
            .links
            .iter()
            .filter(|(_, l)| l.group == group)
            .map(|(key, _)| key)
            .collect();
        for key in links {
            self.close_link(key);
        }
        self.clear_away(group);
    }

    /// A connection of the group is gone.
    fn leave(&mut self, group: usize) {
        self.groups[group].connections -= 1;
        self.clear_away(group);
    }

    /// Lets go of a group that has stopped: of its files when nothing of it is on the ring, of the rest when its
    /// connections are gone.
    fn clear_away(&mut self, group: usize) {
        let slot = &mut self.groups[group];
        if slot.machine.is_some() || slot.jobs > 0 {
            return;
        }
        if slot.files.take().is_some() {
            let group = slot.name.clone();
            self.names.remove(&group);
            self.tell(FromShard::Stopped { group });
        }
        if self.groups[group].connections == 0 {
            self.groups.remove(group);
        }
    }
}

fn open_group<M: Machine>(
    config: crate::engine::GroupConfig,
    paths: super::GroupPaths,
    clock: Clock,
) -> Result<Box<(M, Files)>, String> {
    let mut files = Files::open(paths).map_err(|failure| failure.message)?;
    let seed = uuid::Uuid::new_v4().as_u128();
    let volumes = config.volumes.clone();
    let machine = M::open(config, &mut files, seed, clock.now())?;
    files
        .can_make(&volumes)
        .map_err(|failure| failure.message)?;
    Ok(Box::new((machine, files)))
}

/// Wakes the ring that waits for the bell.
pub fn ring_bell(bell: &OwnedFd) {
    // It fails only when the counter is full, and then the bell has rung.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}
