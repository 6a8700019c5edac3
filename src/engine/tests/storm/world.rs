//! The world of a run: the sites with their disks and clocks, the network, virtual time. It carries out what the engine
//! wants and lets everything arrive when it is due; what is right and wrong is for `checks`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::clients::Client;
use super::history::{Chain, History, Place, frames_of, place_of};
use super::ledger::Ledger;
use super::plan::{Fault, Order, Plan};
use super::rare::Awaited;
use super::wires::{Arrival, Wire};
use crate::base::{ByteRange, Lsn, Message, Role, VolumeId};
use crate::engine::tests::Rng;
use crate::engine::tests::disk::SimDisk;
use crate::engine::{
    ClientId, Command, DiskId, DiskOp, DiskResult, Exports, File, Force, Group, GroupConfig, Input,
    LinkId, Now, Output,
};
use crate::journal::Frame;
use crate::status::GroupStatus;

pub const NAMES: [&str; 3] = ["a", "b", "c"];

/// A deadline that stays due over so many turns never goes away.
const SPINS: u32 = 200;

/// No disk request takes longer.
const SLOWEST: Duration = Duration::from_secs(20);

/// What a site says to a journal of a later version, and to one that lacks what its record names.
const REFUSALS: [&str; 2] = [
    "this program does not understand",
    "older than its record of state",
];

/// One site.
pub struct Site {
    pub config: GroupConfig,
    pub disk: SimDisk,
    pub group: Option<Group>,
    /// Counts starts: what was meant for an earlier process does not reach a later one.
    pub life: u64,
    pub exports: Option<Exports>,
    pub paused_until: Duration,
    /// Of its wall clock.
    pub skew_ms: i64,
    pub slow: u32,
    /// Only what is read from its homes and written to them.
    pub slow_homes: u32,
    pub slow_sync: u32,
    tick_at: Option<Duration>,
    /// Its deadline stayed due after so many ticks in a row.
    spins: u32,
    finishing: bool,
    seed: u128,
    pub stopped: bool,
    /// The peer cannot tell that it is dead.
    pub silent: bool,
    /// Frames on their way to its journal.
    writing: BTreeMap<DiskId, Vec<Place>>,
    /// State records on their way: their sequence number, and without whom they say that the site acknowledges.
    recording: BTreeMap<DiskId, (u64, BTreeSet<String>)>,
    /// Sequence number of the record that a slot was given last: the second slot makes it durable.
    recorded: u64,
    /// Without whom it acknowledges, according to its durable record.
    pub alone: BTreeSet<String>,
    /// Frames that its disk confirmed.
    pub durable: BTreeSet<Place>,
    /// Frames that it took from its primary.
    pub received: BTreeSet<Place>,
    /// Its process has taken frames from a primary.
    pub followed: bool,
    pub chain: Chain,
    pub turns: u64,
    /// Ends of its history, as it has come to them.
    pub heads: Vec<Place>,
    /// A copy can be undone: the end of the history that the site held before.
    pub held: Option<Place>,
    /// The command of an operator who takes that.
    pub going_back: Option<u64>,
    /// Its history has ended there since. What it takes from a peer that has more of it comes on top.
    pub went_back: bool,
    /// The operator ordered it to become primary whatever the peer says.
    pub forced: bool,
    /// It was `forced` when it died; whether the order got as far as the disk is seen at the next start.
    pub ordered: bool,
    /// At the last turn it was inconsistent.
    pub copied_to: bool,
    /// It loses power when it has just put on record that it acknowledges alone.
    pub dies_when_alone: bool,
    /// It loses power as soon as it is consistent again.
    pub dies_when_consistent: bool,
    /// Its disk lost frames that it had confirmed: its home may be ahead of its journal up to here.
    pub robbed_until: Lsn,
}

/// What happens next.
#[derive(Debug)]
pub enum Happening {
    Input {
        site: usize,
        life: u64,
        input: Input,
    },
    DiskDone {
        site: usize,
        life: u64,
        id: DiskId,
    },
    Arrive {
        link: LinkId,
        to: usize,
    },
    Finish {
        site: usize,
        life: u64,
    },
    Tick {
        site: usize,
        life: u64,
    },
    Connect {
        site: usize,
        life: u64,
        peer: String,
    },
    Client(usize),
    /// A client asks, whether it has something left to ask or not.
    Burst(usize),
    Fault(usize),
    /// A trouble that lasts ends.
    Over(Box<Fault>),
    Start {
        site: usize,
        life: u64,
    },
    Order(usize, Order),
    /// Is the site being copied to? Asked so many times more.
    Watch {
        site: usize,
        within: Duration,
        tries: u32,
    },
    Die(usize, Duration),
    /// Is it time for the next step of a rare situation?
    Await(Awaited),
    /// Every connection breaks.
    Cut,
}

pub struct World {
    pub plan: Plan,
    pub rng: Rng,
    /// For what rots when.
    pub decay: Rng,
    /// For what only three sites have to decide.
    pub third: Rng,
    /// For when a disk looks at what it reads.
    moments: Rng,
    pub now: Duration,
    queue: BTreeMap<(Duration, u64), Happening>,
    order: u64,
    /// The number of what happens now, unless something that it leads to has taken it.
    happening: Option<u64>,
    pub sites: Vec<Site>,
    pub wires: BTreeMap<LinkId, Wire>,
    next_link: u64,
    /// Nothing reaches this site before.
    pub unreachable_until: [Duration; 3],
    /// These two do not reach each other before.
    pub apart_until: BTreeMap<[usize; 2], Duration>,
    pub latency: Duration,
    /// Of large volumes, that clients write to; all if none.
    pub half: Option<usize>,
    pub clients: Vec<Client>,
    pub next_client: u64,
    pub ledger: Ledger,
    pub history: History,
    pub violation: Option<String>,
    pub trace: Option<Vec<String>>,
    pub answers: Vec<(u64, Result<String, String>)>,
    next_command: u64,
    /// The world heals, or has healed: no more trouble, and whoever dies is started again.
    pub healing: bool,
    /// No client asks anything any more.
    pub resting: bool,
    /// This site's disk has betrayed it: until all is in sync again the other one holds what it lost.
    pub fragile: Option<usize>,
    /// An operator promoted a site by force; both may acknowledge until all is in sync again.
    pub overridden: bool,
    /// Sites that some site has acknowledged without, on record, since all were in sync.
    pub left: BTreeSet<usize>,
    /// This mirror's homes have betrayed it, and that is not mended yet.
    pub examined: Option<usize>,
    /// What is damaged in them.
    pub damaged: Vec<(VolumeId, ByteRange)>,
    pub events: u64,
}

/// Which site has this name.
pub fn site_named(name: &str) -> usize {
    let at = NAMES.iter().position(|known| *known == name);
    at.expect("one of the sites")
}

fn disk(plan: &Plan, at: usize) -> SimDisk {
    let mut disk = SimDisk::default();
    disk.can_clone = plan.clones[at];
    disk
}

fn config(plan: &Plan, at: usize, role: Role) -> GroupConfig {
    GroupConfig {
        site: NAMES[at].into(),
        group: "g".into(),
        role,
        ack: plan.ack,
        compress: plan.compress,
        on_peer_loss: plan.policy,
        timeout: plan.timeout,
        journal_bytes: plan.journal_bytes,
        resync_rate: None,
        resync_undo: plan.undo[at],
        scrub: Duration::ZERO,
        peers: (0..plan.sites)
            .filter(|peer| *peer != at)
            .map(|peer| NAMES[peer].into())
            .collect(),
        volumes: if role == Role::Primary {
            (0..plan.volumes.len())
                .map(|n| (format!("v{n}"), plan.volumes[n]))
                .collect()
        } else {
            Vec::new()
        },
    }
}

impl World {
    pub fn new(plan: Plan) -> World {
        let site = |at: usize, role| Site {
            config: config(&plan, at, role),
            disk: disk(&plan, at),
            group: None,
            life: 0,
            exports: None,
            paused_until: Duration::ZERO,
            skew_ms: 0,
            slow: 1,
            slow_homes: 1,
            slow_sync: 1,
            tick_at: None,
            spins: 0,
            finishing: false,
            seed: u128::from(plan.seed) << 32 | at as u128,
            stopped: false,
            silent: false,
            writing: BTreeMap::new(),
            recording: BTreeMap::new(),
            recorded: 0,
            alone: BTreeSet::new(),
            durable: BTreeSet::new(),
            received: BTreeSet::new(),
            followed: false,
            chain: Chain::default(),
            turns: 0,
            heads: Vec::new(),
            held: None,
            going_back: None,
            went_back: false,
            forced: false,
            ordered: false,
            copied_to: false,
            dies_when_alone: false,
            dies_when_consistent: false,
            robbed_until: Lsn::ZERO,
        };
        let role = |at| {
            if at == 0 { Role::Primary } else { Role::Mirror }
        };
        let sites = (0..plan.sites).map(|at| site(at, role(at))).collect();
        let clients = (0..plan.clients).map(|n| Client::new(n, &plan)).collect();
        World {
            rng: Rng::new(plan.seed ^ 0x005e_ed0f_7075),
            decay: Rng::new(plan.seed ^ 0x00de_ca1e_d000),
            third: Rng::new(plan.seed ^ 0x0074_4173_d000),
            moments: Rng::new(plan.seed ^ 0x0b5e_7fed_0000),
            now: Duration::from_secs(1),
            queue: BTreeMap::new(),
            order: 0,
            happening: None,
            sites,
            wires: BTreeMap::new(),
            next_link: 1,
            unreachable_until: [Duration::ZERO; 3],
            apart_until: BTreeMap::new(),
            latency: Duration::from_micros(50),
            half: None,
            clients,
            next_client: 1,
            ledger: Ledger::default(),
            history: History::default(),
            violation: None,
            trace: None,
            answers: Vec::new(),
            next_command: 1,
            healing: false,
            resting: false,
            fragile: None,
            overridden: false,
            left: BTreeSet::new(),
            examined: None,
            damaged: Vec::new(),
            events: 0,
            plan,
        }
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let line = format!("{:>12.6} {}", self.now.as_secs_f64(), text());
            trace.push(line);
        }
    }

    /// The first violation counts: what follows from it is noise.
    pub fn violate(&mut self, text: String) {
        self.note(|| format!("VIOLATION {text}"));
        self.violation.get_or_insert(text);
    }

    pub fn check(&mut self, result: Result<(), String>) {
        if let Err(text) = result {
            self.violate(text);
        }
    }

    pub fn later(&mut self, after: Duration, what: Happening) {
        self.order += 1;
        self.queue.insert((self.now + after, self.order), what);
    }

    fn time(&self, at: usize) -> Now {
        let since = i128::try_from(self.now.as_nanos()).expect("a short run");
        let skew = i128::from(self.sites[at].skew_ms) * 1_000_000;
        Now {
            mono: self.now,
            wall_ns: u64::try_from(1_700_000_000_000_000_000 + since + skew).expect("after 1970"),
        }
    }

    pub fn alive(&self, at: usize) -> bool {
        self.sites[at].group.is_some()
    }

    pub fn status(&mut self, at: usize) -> Option<GroupStatus> {
        let now = self.time(at);
        self.sites[at].group.as_mut().map(|g| g.status(now))
    }

    /// Makes the next thing happen, if it is due by `until`.
    pub fn step(&mut self, until: Duration) -> bool {
        let due = self.queue.first_key_value().map(|(key, _)| key.0);
        if due.is_none_or(|due| due > until) || self.violation.is_some() {
            self.now = self.now.max(until);
            return false;
        }
        let ((at, order), what) = self.queue.pop_first().expect("just seen");
        self.happening = Some(order);
        self.now = self.now.max(at);
        self.events += 1;
        self.happen(what);
        self.happening = None;
        true
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Input { site, life, input } => {
                if self.sites[site].life != life || !self.alive(site) {
                    return;
                }
                if self.asleep(site) {
                    // In the order in which it came, also if the site falls asleep again.
                    let order = self.happening.take().unwrap_or_else(|| {
                        self.order += 1;
                        self.order
                    });
                    let wakes = self.sites[site].paused_until;
                    let input = Happening::Input { site, life, input };
                    self.queue.insert((wakes, order), input);
                    return;
                }
                self.input(site, input);
            }
            Happening::DiskDone { site, life, id } => self.disk_done(site, life, id),
            Happening::Arrive { link, to } => self.arrive(link, to),
            Happening::Finish { site, life } => {
                if self.sites[site].life == life {
                    self.finish(site);
                }
            }
            Happening::Tick { site, life } => {
                if self.sites[site].life == life && self.sites[site].tick_at.is_some() {
                    self.sites[site].tick_at = None;
                    let input = Input::Tick;
                    self.happen(Happening::Input { site, life, input });
                }
            }
            Happening::Connect { site, life, peer } => {
                if self.sites[site].life == life {
                    self.connect_now(site, peer);
                }
            }
            Happening::Client(client) => self.client_turn(client),
            Happening::Burst(client) if self.clients[client].at.is_some() && !self.resting => {
                self.clients[client].left += 8;
                self.burst(client);
            }
            Happening::Burst(_) => {}
            Happening::Fault(index) => self.strike(index),
            Happening::Over(fault) => self.relieve(&fault),
            Happening::Watch {
                site,
                within,
                tries,
            } => self.watch(site, within, tries),
            Happening::Await(awaited) => self.await_next(awaited),
            Happening::Cut if !self.healing => self.cut_links(),
            Happening::Cut => {}
            Happening::Order(site, order) => self.order(site, &order),
            Happening::Die(site, down) if !self.healing => self.crash(site, down, false, None),
            Happening::Die(..) => {}
            Happening::Start { site, life } => {
                if self.sites[site].life == life && !self.alive(site) {
                    self.start(site);
                }
            }
        }
    }

    fn asleep(&self, at: usize) -> bool {
        self.sites[at].paused_until > self.now
    }

    /// Starts the site's process.
    pub fn start(&mut self, at: usize) {
        let now = self.time(at);
        self.note(|| format!("{} starts", NAMES[at]));
        // Who still has a connection to the dead process learns that it is one.
        self.break_wires(at);
        let site = &mut self.sites[at];
        site.seed += 1 << 64;
        site.life += 1;
        site.silent = false;
        site.followed = false;
        site.paused_until = Duration::ZERO;
        site.disk.close_homes();
        match Group::open(site.config.clone(), &mut site.disk, site.seed, now) {
            Ok(group) => {
                let alone = group.core.facts().alone.iter();
                let alone = alone.map(|a| a.peer.clone()).collect();
                site.group = Some(group);
                self.on_record(at, alone);
                let site = &mut self.sites[at];
                site.forced |= std::mem::take(&mut site.ordered) && !site.alone.is_empty();
                self.carry_out(at);
                self.opened(at);
            }
            Err(error)
                if self.fragile == Some(at)
                    && REFUSALS.iter().any(|text| error.to_string().contains(text)) =>
            {
                // Rot that looks like a later version is refused, by name, and so is a lost end; the peer has all of it.
                self.note(|| format!("{} does not start: {error}", NAMES[at]));
                self.empty(at);
                self.fragile = None;
                self.start(at);
            }
            Err(error) => self.violate(format!("{} does not start: {error}", NAMES[at])),
        }
    }

    /// The site loses power.
    pub fn kill(&mut self, at: usize, silent: bool) {
        self.note(|| {
            format!(
                "{} dies{}",
                NAMES[at],
                if silent { ", silently" } else { "" }
            )
        });
        let site = &mut self.sites[at];
        // Whoever was promoted by force has answered clients, also if the frame of its epoch never reached its journal.
        let open = site.exports.as_ref().is_some_and(|e| e.open.is_ok());
        self.overridden |= site.forced && open;
        site.group = None;
        site.life += 1;
        site.exports = None;
        site.stopped = false;
        site.silent = silent;
        site.finishing = false;
        site.slow_sync = 1;
        site.tick_at = None;
        site.writing.clear();
        site.recording.clear();
        // An order that is on record holds for the next start; whether it is, its disk tells then.
        site.ordered = site.forced;
        site.forced &= !site.alone.is_empty();
        site.going_back = None;
        site.disk.power_cut(&mut self.rng);
        for client in 0..self.clients.len() {
            if self.clients[client].at == Some(at) {
                self.client_lost(client);
            }
        }
        for wire in self.wires.values_mut() {
            if wire.ends.contains(&at) {
                wire.to(at).deafen();
            }
        }
        if !silent {
            self.break_wires(at);
        }
    }

    /// Connections of a site that is dead end for its peer, too.
    fn break_wires(&mut self, at: usize) {
        let links: Vec<LinkId> = self.wires.keys().copied().collect();
        for link in links {
            let now = self.now;
            let wire = self.wires.get_mut(&link).expect("just seen");
            let to = wire.other(at);
            if wire.ends.contains(&at) && wire.to(at).is_deaf() && !wire.to(to).is_deaf() {
                wire.to(to).cut(now, &mut self.rng);
                self.later(Duration::ZERO, Happening::Arrive { link, to });
            }
        }
    }

    /// Every connection breaks, at any byte.
    pub fn cut_links(&mut self) {
        let links: Vec<LinkId> = self.wires.keys().copied().collect();
        for link in links {
            for to in self.wires[&link].ends {
                let now = self.now;
                let pipe = self.wires.get_mut(&link).expect("just seen").to(to);
                if !pipe.is_deaf() {
                    pipe.cut(now, &mut self.rng);
                    self.later(Duration::ZERO, Happening::Arrive { link, to });
                }
            }
        }
    }

    pub fn input(&mut self, at: usize, input: Input) {
        let now = self.time(at);
        let site = &mut self.sites[at];
        let Some(group) = site.group.as_mut() else {
            return;
        };
        group.handle(now, input);
        if site.finishing {
            return;
        }
        // What arrives at the same moment is one batch.
        if self.rng.below(3) > 0 {
            self.sites[at].finishing = true;
            let life = self.sites[at].life;
            let after = Duration::from_micros(self.rng.below(20));
            self.later(after, Happening::Finish { site: at, life });
        } else {
            self.finish(at);
        }
    }

    fn finish(&mut self, at: usize) {
        let now = self.time(at);
        self.sites[at].finishing = false;
        let Some(group) = self.sites[at].group.as_mut() else {
            return;
        };
        group.finish_batch(now);
        self.carry_out(at);
        self.turned(at);
        self.schedule_tick(at);
    }

    fn schedule_tick(&mut self, at: usize) {
        let site = &self.sites[at];
        let Some(due) = site.group.as_ref().and_then(Group::deadline) else {
            return;
        };
        self.sites[at].spins = if due <= self.now {
            self.sites[at].spins + 1
        } else {
            0
        };
        if self.sites[at].spins > SPINS {
            self.violate(format!("{} spins: its deadline stays due", NAMES[at]));
            return;
        }
        let site = &self.sites[at];
        if site.tick_at.is_none_or(|tick| due < tick) {
            let life = site.life;
            self.sites[at].tick_at = Some(due);
            let after = due.saturating_sub(self.now) + Duration::from_micros(1);
            self.later(after, Happening::Tick { site: at, life });
        }
    }

    fn carry_out(&mut self, at: usize) {
        let Some(group) = self.sites[at].group.as_mut() else {
            return;
        };
        let outputs: Vec<Output> = group.take_outputs(Vec::new());
        for output in outputs {
            match output {
                Output::Disk { id, op } => self.submit(at, id, op),
                Output::Reply { client, reply } => self.replied(at, client, reply),
                Output::CloseClient { client } => self.closed_by_site(at, client),
                Output::Send { link, message } => self.send(at, link, &message),
                Output::CloseLink { link } => self.close_link(at, link),
                Output::Connect { peer } => {
                    let (site, life) = (at, self.sites[at].life);
                    let after = Duration::from_micros(50 + self.rng.below(200));
                    self.later(after, Happening::Connect { site, life, peer });
                }
                Output::Exports(exports) => self.sites[at].exports = Some(exports),
                Output::CommandDone { id, result } => {
                    self.note(|| format!("{} answers command {id}: {result:?}", NAMES[at]));
                    self.did_not_go_back(at, id, result.is_ok());
                    self.answers.push((id, result));
                }
                Output::Stopped => self.sites[at].stopped = true,
                Output::Log { level, text } => {
                    self.note(|| format!("{} {level:?}: {text}", NAMES[at]));
                }
            }
        }
    }

    fn submit(&mut self, at: usize, id: DiskId, op: DiskOp) {
        let micros = match &op {
            DiskOp::Write { durable: true, .. } => 80 + self.rng.below(120),
            DiskOp::Sync { .. } => 300 + self.rng.below(5000),
            DiskOp::FreeSpace => 5,
            _ => 20 + self.rng.below(80),
        };
        // Now and then one request takes far longer than the others.
        let hiccup = match &op {
            DiskOp::Sync { .. } => u64::from(self.sites[at].slow_sync),
            _ if self.rng.below(200) == 0 => 50,
            _ => 1,
        };
        let homes = match &op {
            DiskOp::Write { file, .. } | DiskOp::Read { file, .. } | DiskOp::Zero { file, .. }
                if matches!(file, File::Home(_)) =>
            {
                u64::from(self.sites[at].slow_homes)
            }
            _ => 1,
        };
        let slow = u64::from(self.sites[at].slow) * hiccup * homes;
        let after = Duration::from_micros(micros * slow).min(SLOWEST);
        if let DiskOp::Write { file, data, .. } = &op {
            match file {
                File::Journal => self.journal_written(at, id, data),
                File::State => {
                    let said = super::checks::record_in(data);
                    self.sites[at].recording.insert(id, said);
                }
                File::Home(_) => {
                    let result = self.home_write(at, &op);
                    self.check(result);
                }
                File::Discarded(_) | File::Undo => {}
            }
        }
        let early = matches!(op, DiskOp::Read { .. }) && self.moments.below(2) == 0;
        self.sites[at].disk.submit(id, op);
        if early {
            self.sites[at].disk.look(id);
        }
        let life = self.sites[at].life;
        self.later(after, Happening::DiskDone { site: at, life, id });
    }

    fn journal_written(&mut self, at: usize, id: DiskId, data: &bytes::Bytes) {
        let Some(frames) = frames_of(data) else {
            self.violate(format!("{} writes no frame to its journal", NAMES[at]));
            return;
        };
        let places = frames.iter().map(place_of).collect();
        self.sites[at].writing.insert(id, places);
        for frame in frames {
            self.frame_written(at, &frame);
        }
    }

    fn frame_written(&mut self, at: usize, frame: &Frame) {
        let place = place_of(frame);
        let ledger = &mut self.ledger;
        let entered = self
            .history
            .enter(frame, at, NAMES, |kind, volume, range, content| {
                ledger.find(at, place, kind, volume, range, content)
            });
        match entered {
            Ok(true) if frame.opens_epoch() => self.epoch_opened(at, place),
            Ok(_) => {}
            Err(text) => self.violate(format!("{} writes to its journal: {text}", NAMES[at])),
        }
    }

    fn disk_done(&mut self, at: usize, life: u64, id: DiskId) {
        let site = &mut self.sites[at];
        if site.life != life {
            return;
        }
        let Some((op, result)) = site.disk.complete(id) else {
            return;
        };
        let (frames, record) = (site.writing.remove(&id), site.recording.remove(&id));
        if let DiskOp::Write { durable: true, .. } = op
            && result == DiskResult::Done
        {
            site.durable.extend(frames.unwrap_or_default());
            if let Some((sequence, alone)) = record
                && std::mem::replace(&mut site.recorded, sequence) == sequence
            {
                self.on_record(at, alone);
            }
        }
        let input = Input::Disk { id, result };
        self.happen(Happening::Input {
            site: at,
            life,
            input,
        });
    }

    fn send(&mut self, at: usize, link: LinkId, message: &Message) {
        self.note(|| {
            let text: String = format!("{message:?}").chars().take(150).collect();
            format!("{} sends on link {}: {text}", NAMES[at], link.0)
        });
        let latency = self.latency + Duration::from_micros(self.rng.below(50));
        let arrives = self.now + latency;
        let Some(wire) = self.wires.get_mut(&link) else {
            return;
        };
        let to = wire.other(at);
        if wire.to(to).is_deaf() {
            return;
        }
        match wire.to(to).send(message, arrives) {
            Ok(due) => {
                let after = due - self.now;
                self.later(after, Happening::Arrive { link, to });
            }
            Err(text) => self.violate(text),
        }
    }

    fn close_link(&mut self, at: usize, link: LinkId) {
        let now = self.now + self.latency;
        if let Some(wire) = self.wires.get_mut(&link) {
            wire.to(at).deafen();
            let to = wire.other(at);
            if !wire.to(to).is_deaf() {
                let due = wire.to(to).end(now);
                let after = due - self.now;
                self.later(after, Happening::Arrive { link, to });
            }
        }
    }

    fn arrive(&mut self, link: LinkId, to: usize) {
        let Some(wire) = self.wires.get(&link) else {
            return;
        };
        let from = wire.other(to);
        let apart = self.apart_until.get(&wire.ends).copied();
        let held = self.unreachable_until[to]
            .max(self.sites[to].paused_until)
            .max(apart.unwrap_or_default());
        if held > self.now {
            let after = held - self.now;
            self.later(after, Happening::Arrive { link, to });
            return;
        }
        let now = self.now;
        let wire = self.wires.get_mut(&link).expect("just seen");
        let before = wire.to(to).flying_bytes();
        let received = wire.to(to).receive(now, &mut self.rng);
        let queued_bytes = wire.to(to).flying_bytes();
        let (deaf, sender_deaf) = (wire.to(to).is_deaf(), wire.to(from).is_deaf());
        let (arrived, later) = match received {
            Ok(received) => received,
            Err(text) => return self.violate(text),
        };
        if let Some(due) = later {
            self.later(due - now, Happening::Arrive { link, to });
        }
        if queued_bytes < before && !sender_deaf && !deaf {
            let (site, life) = (from, self.sites[from].life);
            let input = Input::LinkDrained { link, queued_bytes };
            self.later(Duration::ZERO, Happening::Input { site, life, input });
        }
        for arrival in arrived {
            match arrival {
                Arrival::Message(message) => {
                    let frame = match &message {
                        Message::Frame(bytes) => Frame::parse(bytes.clone()).ok(),
                        _ => None,
                    };
                    self.input(to, Input::Link { link, message });
                    if let Some(frame) = frame {
                        self.received(to, place_of(&frame));
                    }
                }
                Arrival::End => {
                    let reason = "the connection ended".into();
                    self.input(to, Input::LinkClosed { link, reason });
                }
            }
        }
        if deaf && sender_deaf {
            self.wires.remove(&link);
        }
    }

    /// The engine took the frame if its history ends with it or goes beyond.
    fn received(&mut self, at: usize, place: Place) {
        let taken = self.sites[at]
            .group
            .as_ref()
            .is_some_and(|g| (g.frames.sealed(), g.frames.chain()) == place);
        if taken {
            self.sites[at].received.insert(place);
            self.sites[at].followed = true;
        }
    }

    fn connect_now(&mut self, at: usize, peer: String) {
        let other = site_named(&peer);
        let life = self.sites[at].life;
        let wire = Wire::between(at, other);
        let apart = self.apart_until.get(&wire.ends);
        let lost = wire
            .ends
            .iter()
            .map(|end| &self.unreachable_until[*end])
            .chain(apart)
            .any(|until| *until > self.now);
        if lost || !self.alive(other) {
            let refused = !lost && !self.sites[other].silent;
            let after = if refused {
                Duration::from_micros(100)
            } else {
                Duration::from_millis(500 + self.rng.below(2000))
            };
            let reason = "cannot connect".into();
            let input = Input::ConnectFailed {
                peer,
                refused,
                reason,
            };
            self.later(
                after,
                Happening::Input {
                    site: at,
                    life,
                    input,
                },
            );
            return;
        }
        let link = LinkId(self.next_link);
        self.next_link += 1;
        self.wires.insert(link, wire);
        let theirs = self.sites[other].life;
        let input = Input::LinkAccepted { link };
        self.happen(Happening::Input {
            site: other,
            life: theirs,
            input,
        });
        let input = Input::LinkConnected { link, peer };
        self.happen(Happening::Input {
            site: at,
            life,
            input,
        });
    }

    /// An operator's command.
    pub fn command(&mut self, at: usize, command: Command) -> u64 {
        let id = self.next_command;
        self.next_command += 1;
        self.note(|| format!("operator, command {id} at {}: {command:?}", NAMES[at]));
        if let Command::Promote { force } = &command
            && !force.is_empty()
        {
            self.sites[at].forced = true;
            if force.contains(&Force::Inconsistent) {
                self.sites[at].going_back = Some(id);
                self.sites[at].went_back = false;
            }
        }
        let life = self.sites[at].life;
        self.happen(Happening::Input {
            site: at,
            life,
            input: Input::Command { id, command },
        });
        id
    }

    /// A new, empty disk; the site is a mirror that has nothing.
    pub fn empty(&mut self, at: usize) {
        self.note(|| format!("operator empties {}", NAMES[at]));
        let site = &mut self.sites[at];
        site.disk = disk(&self.plan, at);
        (site.heads, site.held) = (Vec::new(), None);
        site.config = config(&self.plan, at, Role::Mirror);
        site.alone = BTreeSet::new();
        site.chain = Chain::default();
        site.robbed_until = Lsn::ZERO;
    }

    /// The site's record says that it acknowledges without these peers.
    fn on_record(&mut self, at: usize, alone: BTreeSet<String>) {
        self.left.extend(alone.iter().map(|peer| site_named(peer)));
        self.sites[at].alone = alone;
    }

    /// A promotion that was to go back failed before it did.
    fn did_not_go_back(&mut self, at: usize, command: u64, done: bool) {
        let site = &mut self.sites[at];
        let copied = site
            .group
            .as_ref()
            .is_some_and(|g| g.core.facts().inconsistent_until.is_some());
        site.going_back
            .take_if(|id| *id == command && !done && copied);
    }

    /// All sites but this one.
    pub fn others(&self, at: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.sites.len()).filter(move |other| *other != at)
    }

    /// One of the other sites.
    pub fn another(&mut self, at: usize) -> usize {
        let others: Vec<usize> = self.others(at).collect();
        match others[..] {
            [other] => other,
            _ => others[self.third.below(others.len() as u64) as usize],
        }
    }

    /// Who is primary for this mirror.
    pub fn primary_of(&mut self, at: usize) -> usize {
        let group = self.sites[at].group.as_ref();
        let known = group.and_then(|g| g.core.upstream().map(|(name, _)| site_named(name)));
        known.unwrap_or_else(|| self.another(at))
    }

    pub fn tail(&self, at: usize) -> Lsn {
        self.sites[at]
            .group
            .as_ref()
            .map_or(Lsn::ZERO, |g| g.core.tail())
    }

    pub fn fresh_client(&mut self) -> ClientId {
        self.next_client += 1;
        ClientId(self.next_client)
    }
}
