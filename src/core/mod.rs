//! The replication state machine of one group at one site.
//!
//! Events go in through [`Core::handle`], actions come out of [`Core::take_actions`]; the same events give the same actions.
//! It knows no sockets, files, clocks, threads or random numbers. Every rule about acknowledging, epochs, roles,
//! going alone, catching up and promotion is here and nowhere else.
//!
//! # Invariants
//! - A reply is released only when its LSN has met the acknowledgement rule ([`Core::commit`]), and, for flush and FUA,
//!   when it is durable on every site that the rule names.
//! - An epoch is opened in this order: lineage durable, then the operation that opens it, then acknowledgements.
//! - A gated peer stops being waited for only after a durable record says that this site is alone.
//! - The record is taken back, durably, before the peer is called in sync.
//!
//! # What the caller does
//! It appends the operations it got LSNs for, in order; reports durable LSNs; saves [`Core::facts`] when asked to and
//! answers with [`Event::Saved`]; carries messages; and calls [`Core::handle`] with [`Event::Tick`] when
//! [`Core::deadline`] is due. [`Core::end_batch`] lets it gather acknowledgements.

mod acks;
mod commands;
mod facts;
mod handshake;
mod links;
mod mirror;
mod peer;
mod primary;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use uuid::Uuid;

pub use self::acks::{Strength, Token};
pub use self::facts::{Alone, Facts, Handed, Mixture};
pub use self::handshake::{Outcome, decide};
pub use self::mirror::FrameInfo;
pub use self::peer::{Conflict, Fork, Left, Peer, PeerPhase};

use self::acks::Acks;
use crate::base::{AckMode, Epoch, Lineage, Lsn, Message, OnPeerLoss, Role, VolumeSpec};

/// What nobody waits for is told by a message of its own only when nothing else went out for this long.
const NEWS_DELAY: Duration = Duration::from_millis(5);

/// A link's connection, as the caller names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Link(pub u64);

/// What the configuration says.
#[derive(Clone, Debug)]
pub struct Config {
    /// This site.
    pub site: String,
    /// The group.
    pub group: String,
    /// The peers' sites.
    pub peers: Vec<String>,
    /// What to do when a peer is lost.
    pub on_peer_loss: OnPeerLoss,
    /// A peer without progress for this long is dead.
    pub timeout: Duration,
}

/// What the journal and the volumes look like at the moment of an event.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Checksum of the frame that ends at the last sealed LSN.
    pub chain: u32,
    /// Oldest LSN the journal can stream.
    pub journal_first: Lsn,
    /// The volumes.
    pub volumes: &'a [VolumeSpec],
    /// Where this site, in the middle of a copy, can go back to.
    pub undo: Option<UndoPoint>,
    /// Nanoseconds since the Unix epoch by the frame clock, for records.
    pub time_ns: u64,
}

/// The end of the history that a site held before a copy began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UndoPoint {
    /// Its last LSN.
    pub lsn: Lsn,
    /// When that was written, nanoseconds since the Unix epoch.
    pub time_ns: u64,
}

/// The history that a site went back to.
#[derive(Clone, PartialEq, Debug)]
pub struct WentBack {
    /// Its last LSN. All of it is in the homes, durably.
    pub tail: Lsn,
    /// Its epochs.
    pub lineage: Lineage,
    /// What was on record then.
    pub facts: Facts,
}

/// What the operator overrides in a promotion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Overrides {
    /// The peer cannot be asked.
    pub peer_unreachable: bool,
    /// The homes are in the middle of a copy.
    pub inconsistent: bool,
    /// The peer has, or this site once had, more history.
    pub behind: bool,
}

impl Overrides {
    /// The whole command that promotes with these, for texts.
    pub fn command(self, group: &str) -> String {
        let words = [
            (self.inconsistent, "inconsistent"),
            (self.behind, "behind"),
            (self.peer_unreachable, "peer-unreachable"),
        ];
        let words: Vec<&str> = words.iter().filter(|w| w.0).map(|w| w.1).collect();
        if words.is_empty() {
            format!("`doublure promote {group}`")
        } else {
            format!("`doublure promote {group} --force {}`", words.join(","))
        }
    }

    /// These, and that the peer cannot be asked.
    pub(super) fn without_asking(self) -> Overrides {
        Overrides {
            peer_unreachable: true,
            ..self
        }
    }
}

/// What the operator wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Become primary.
    Promote(Overrides),
    /// Give the role up.
    Demote,
    /// Hand the role to the peer.
    Switchover,
    /// Let links connect.
    Connect,
    /// Cut the links and keep them cut.
    Disconnect,
    /// End a fork: give up what this site wrote since.
    Resolve {
        /// The site that gives up.
        discard: String,
    },
    /// Stop.
    Shutdown,
}

/// What happens.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The journal holds everything up to here on stable storage.
    Durable(Lsn),
    /// `Action::Save` with this number, and all before it, is on stable storage.
    Saved(u64),
    /// `Action::Keep` is done, durably.
    Kept,
    /// `Action::PrepareUndo` is done, as far as it can be.
    UndoPrepared,
    /// `Action::GoBack` is done, or why it cannot be.
    WentBack(Result<Box<WentBack>, String>),
    /// `Action::Reset` is done, durably.
    ResetDone,
    /// The homes hold everything up to here.
    Applied(Lsn),
    /// A copy was received completely, and the homes are durable up to its end.
    CopyDurable,
    /// The copy to this link was sent completely, up to this LSN.
    CopySent(Link, Lsn),
    /// A connection asked for by `Action::Connect` is up.
    Connected(Link, String),
    /// A peer connected.
    Accepted(Link),
    /// Connecting failed; `refused` if the peer's machine says that nothing listens.
    ConnectFailed {
        /// The peer.
        peer: String,
        /// Nothing listens there.
        refused: bool,
        /// For people.
        reason: String,
    },
    /// A message other than frames and chunks.
    Message(Link, Message),
    /// Bytes came in on a link (frames and chunks included).
    Heard(Link),
    /// The connection is gone.
    Closed(Link, String),
    /// The arbiter's answer to `Action::Ask`.
    Granted(Question),
    /// The arbiter refused, and why.
    Denied(Question, String),
    /// The operator's command.
    Command(u64, Command),
    /// The journal or state of this site failed; nothing may be acknowledged here any more.
    DiskFailed(String),
    /// Time passed.
    Tick,
}

/// What the arbiter is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// May this site acknowledge without this peer? `first` if the two were never in sync.
    GoAlone {
        /// The peer.
        peer: String,
        /// They were never in sync.
        first: bool,
    },
}

/// What is to be done, in this order.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Make [`Core::facts`] durable; answer with `Event::Saved`.
    Save(u64),
    /// Append the operation that opens this epoch (its `first_lsn` is its LSN) and use the epoch from then on.
    OpenEpoch(Epoch),
    /// Answer the client.
    Reply(Token),
    /// A held read may be answered.
    ReleaseRead(Token),
    /// The homes may hold everything up to here.
    Allow(Lsn),
    /// Connect to this peer.
    Connect(String),
    /// Send; greetings are completed by the caller with what `View` holds at that moment.
    Send(Link, Message),
    /// Close after what was sent.
    Close(Link),
    /// Stream frames on this link from this LSN; up to `end` and then `FetchEnd`, or for ever.
    Stream {
        /// Where.
        link: Link,
        /// First LSN.
        from: Lsn,
        /// Last LSN, if it ends.
        end: Option<Lsn>,
    },
    /// Stop streaming and copying on this link.
    StopStream(Link),
    /// Propose a copy on this link: send `Start::Copy`; once `Started` arrives (`Action::Copy`) begin.
    ProposeCopy {
        /// Where.
        link: Link,
        /// The mirror has the history up to here; what changed after it may differ.
        shared: Lsn,
    },
    /// Stream frames from the LSN after the proposed base, and copy the chunks that may differ.
    Copy(Link),
    /// Forget the journal's tail after this LSN; none of it was allowed.
    Truncate(Lsn),
    /// Keep the journal's operations after this LSN in a file of their own: they are about to be given up. Answer with
    /// `Event::Kept`.
    Keep(Lsn),
    /// A copy will begin: make it possible to undo it, if that is wanted. Answer with `Event::UndoPrepared`.
    PrepareUndo,
    /// Undo the copy that is not complete; answer with `Event::WentBack`.
    GoBack,
    /// Forget everything and start over at this point, durably; answer with `Event::ResetDone`.
    Reset {
        /// The primary that copies.
        from: String,
        /// Both have the history up to here. What this site has after it is kept in a file and given up.
        shared: Lsn,
        /// An earlier copy was cut off.
        interrupted: bool,
        /// The disk lost history: what of it the homes hold is not known.
        lost: bool,
        /// The LSN where the new history starts (exclusive).
        base: Lsn,
        /// Checksum of the frame that ends there.
        chain: u32,
        /// The primary's frame clock, no earlier than that frame; nanoseconds since 1970.
        time_ns: u64,
        /// The volumes.
        volumes: Vec<VolumeSpec>,
    },
    /// This site becomes primary with homes that mix histories: nobody can be brought up to them by its journal.
    Distrust,
    /// Who may attach changed.
    Exports(Result<(), String>),
    /// Close all clients' connections.
    CloseClients,
    /// Ask the arbiter.
    Ask(Question),
    /// A command is done.
    CommandDone(u64, Result<String, String>),
    /// For the operator's log.
    Log(Severity, String),
    /// Operations assigned but not yet acknowledged go on; nothing new. The caller may stop once it is idle.
    Stop,
}

/// How much a log line matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Normal.
    Info,
    /// Should be known.
    Warn,
    /// Needs action.
    Error,
}

/// What this site is doing for the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Primary by its record: asks its peers first.
    Returning,
    /// Primary by its record, and neither a peer nor the record nor the arbiter lets it serve.
    Waiting(String),
    /// Taking over the longer tail of this link's mirror.
    Fetching(Link),
    /// Opening an epoch: facts are being saved, then the epoch operation becomes durable.
    Opening,
    /// Primary, admitting operations.
    Serving,
    /// Primary, admitting nothing new, until all is committed.
    Draining(Drain),
    /// The role is handed to a peer, which has not confirmed.
    HandedOver,
    /// Mirror.
    Mirror,
    /// Mirror that asks its peers before it becomes primary.
    Probing,
    /// Mirror that undoes a copy before it becomes primary.
    GoingBack,
    /// Stopped by a disk failure.
    Fenced(String),
    /// Stopped by command.
    Stopped,
}

/// Why operations are drained.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Drain {
    /// To give up the role.
    Demote(u64),
    /// To hand it to this peer.
    Switchover(u64, String),
}

/// What follows once facts are durable.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Then {
    Nothing,
    OpenEpoch(Epoch),
    InSync(usize),
    StepDown,
    Demoted(u64),
    Handed(u64),
    Started(Link),
    Taken(Link, Epoch),
    WroteAlone,
}

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Core {
    config: Config,
    facts: Facts,
    mode: Mode,
    mode_since_ns: u64,
    peers: Vec<Peer>,
    /// Last assigned LSN (primary) or last accepted (mirror).
    tail: Lsn,
    durable: Lsn,
    commit: Lsn,
    applied: Lsn,
    /// What the primary says is committed (mirror).
    claimed: Lsn,
    acks: Acks,
    saves: VecDeque<(u64, Then)>,
    /// From here on nothing is committed before it is on record that something was written alone.
    unrecorded_from: Option<Lsn>,
    save_seq: u64,
    upstream: Option<mirror::Upstream>,
    /// Who has this knows of all that can have been acknowledged by now: a mirror, what its primary's greeting told before
    /// their last stream began; a primary, where its own epoch began. `None` if neither was since this process started.
    promised: Option<Lsn>,
    /// A copy that was proposed and waits until what it discards is kept.
    keeping: Option<mirror::Keeping>,
    /// The promotion that waits for going back: its command, and who cannot be reached.
    going_back: Option<(u64, Vec<String>)>,
    handshakes: Vec<links::Handshake>,
    probe: Option<commands::Probe>,
    promised_command: Option<u64>,
    resolving: Option<commands::Resolving>,
    passing: Option<commands::Passing>,
    handed_at: Duration,
    closing: bool,
    credit_bytes: u64,
    ids: u128,
    actions: Vec<Action>,
    now: Duration,
    now_ns: u64,
    exported: Option<Exported>,
}

/// Who may attach, as it was told last, and what of: that is asked after every event, and seldom another one.
#[derive(Debug)]
struct Exported {
    mode: Mode,
    primary: String,
    open: Result<(), String>,
}

impl Core {
    /// A site with these durable facts, whose journal ends at `tail` (all of it durable) and knows that everything
    /// up to `commit` is committed. Call [`Core::start`] next.
    ///
    /// `seed` feeds the ids of epochs; it must never be used twice.
    pub fn new(config: Config, mut facts: Facts, tail: Lsn, commit: Lsn, seed: u128) -> Core {
        facts.lineage.truncate_after(tail);
        facts.written = facts.written.min(tail);
        let peers = config
            .peers
            .iter()
            .map(|name| Peer::new(name.clone()))
            .collect();
        let mut core = Core {
            config,
            facts,
            mode: Mode::Mirror,
            mode_since_ns: 0,
            peers,
            tail,
            durable: tail,
            commit,
            applied: Lsn::ZERO,
            claimed: commit,
            acks: Acks::default(),
            saves: VecDeque::new(),
            unrecorded_from: None,
            save_seq: 0,
            upstream: None,
            promised: None,
            keeping: None,
            going_back: None,
            handshakes: Vec::new(),
            probe: None,
            promised_command: None,
            resolving: None,
            passing: None,
            handed_at: Duration::ZERO,
            closing: false,
            credit_bytes: u64::MAX,
            ids: seed,
            actions: Vec::new(),
            now: Duration::ZERO,
            now_ns: 0,
            exported: None,
        };
        core.remember_forks();
        core
    }

    /// Begins: a mirror waits for its primary, a primary asks its peers whether it still may serve.
    pub fn start(&mut self, now: Duration, view: &View) {
        (self.now, self.now_ns) = (now, view.time_ns);
        self.mode_since_ns = view.time_ns;
        if self.facts.handed.is_some() {
            self.set_mode(Mode::HandedOver);
            self.connect_all();
        } else if self.facts.role == Role::Primary {
            self.begin_returning(view);
        } else {
            self.set_mode(Mode::Mirror);
        }
        self.announce_exports();
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Duration, event: Event, view: &View) {
        (self.now, self.now_ns) = (now, view.time_ns);
        match event {
            Event::Durable(lsn) => self.local_durable(lsn, view),
            Event::Saved(seq) => self.saved(seq),
            Event::Kept => self.kept(view),
            Event::UndoPrepared => self.undo_prepared(view),
            Event::WentBack(result) => self.went_back(result, view),
            Event::ResetDone => self.reset_done(),
            Event::Applied(lsn) => self.applied = self.applied.max(lsn),
            Event::CopyDurable => self.copy_durable(),
            Event::CopySent(link, lsn) => self.copy_sent(link, lsn),
            Event::Connected(link, peer) => self.connected(link, &peer, view),
            Event::Accepted(link) => self.accepted(link),
            Event::ConnectFailed {
                peer,
                refused,
                reason,
            } => self.connect_failed(&peer, refused, &reason, view),
            Event::Message(link, message) => self.message(link, message, view),
            Event::Heard(link) => {
                self.heard(link);
                self.upstream_spoke(link, view);
            }
            Event::Closed(link, reason) => self.closed(link, &reason, view),
            Event::Granted(question) => self.granted(&question, view),
            Event::Denied(question, reason) => self.denied(&question, &reason),
            Event::Command(id, command) => self.command(id, command, view),
            Event::DiskFailed(reason) => self.disk_failed(&reason),
            Event::Tick => self.tick(view),
        }
        self.record_forks();
        self.announce_exports();
    }

    /// Sends what gathers over a batch of events: acknowledgements of a mirror, commit news of a primary.
    pub fn end_batch(&mut self, now: Duration) {
        self.now = now;
        self.flush_ack();
        self.flush_commit_news();
    }

    /// A disk failed: nothing is done here any more until the site is started again.
    pub fn is_fenced(&self) -> bool {
        matches!(self.mode, Mode::Fenced(_))
    }

    /// Everybody was asked, and there is nothing to be had from anybody.
    pub(super) fn everybody_agreed(&self) -> bool {
        self.peers
            .iter()
            .all(|p| matches!(p.phase, PeerPhase::Agreed { .. }))
    }

    /// The disk does not hold what it once held.
    pub fn lost_history(&self) -> bool {
        #[cfg(test)]
        if crate::base::sabotage::sabotaged(crate::base::sabotage::Sabotage::IgnoreFloor) {
            return false;
        }
        self.tail < self.facts.floor
    }

    /// What is to be done, in order. The next are collected in `spare`, which is empty: lists are used again and again.
    pub fn take_actions(&mut self, spare: Vec<Action>) -> Vec<Action> {
        debug_assert!(spare.is_empty());
        std::mem::replace(&mut self.actions, spare)
    }

    /// Whether [`Core::take_actions`] would yield anything.
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Whether operations may be admitted now. If not, they wait; they are not refused.
    pub fn admitting(&self) -> bool {
        self.mode == Mode::Serving && !self.closing
    }

    /// Whether this site answers its clients' reads.
    pub fn serving(&self) -> bool {
        matches!(self.mode, Mode::Serving | Mode::Draining(_)) || self.reopening()
    }

    /// Opening a further epoch while clients stay attached (going alone).
    fn reopening(&self) -> bool {
        let exported = self.exported.as_ref();
        self.mode == Mode::Opening && exported.is_some_and(|e| e.open.is_ok())
    }

    /// What this site can still promise for allocating writes, bytes: acknowledgements carry it to the primary.
    pub fn set_credit(&mut self, bytes: u64) {
        self.credit_bytes = bytes;
    }

    /// Recovery brought the homes up to here.
    pub fn note_applied(&mut self, lsn: Lsn) {
        self.applied = lsn;
    }

    /// Gives the next `count` LSNs to operations; returns the first.
    ///
    /// # Panics
    /// If nothing may be admitted.
    pub fn assign(&mut self, count: u64) -> Lsn {
        assert!(
            self.admitting(),
            "an LSN was asked for in mode {:?}",
            self.mode
        );
        let first = self.tail.next();
        self.tail = self.tail.plus(count);
        self.facts.written = self.tail;
        if !self.facts.wrote_alone && self.acknowledges_without_a_peer() {
            self.facts.wrote_alone = true;
            self.unrecorded_from = Some(first);
            self.save(Then::WroteAlone);
        }
        first
    }

    /// Releases `Action::Reply(token)` once everything up to `lsn` is acknowledged at this strength.
    pub fn reply_when(&mut self, lsn: Lsn, strength: Strength, token: Token) {
        self.acks.reply_when(lsn, strength, token);
        self.release();
    }

    /// Releases `Action::ReleaseRead(token)` once everything up to `lsn` is committed.
    pub fn read_when(&mut self, lsn: Lsn, token: Token) {
        self.acks.read_when(lsn, token);
        self.release();
    }

    /// The durable facts as they should be saved now.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What this site is doing.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Since when, by the frame clock.
    pub fn mode_since_ns(&self) -> u64 {
        self.mode_since_ns
    }

    /// Last LSN assigned or accepted.
    pub fn tail(&self) -> Lsn {
        self.tail
    }

    /// Last LSN durable in the journal here.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Last LSN that has met the acknowledgement rule.
    pub fn commit(&self) -> Lsn {
        self.commit
    }

    /// The peers, in the order of the configuration.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The mirror's link to its primary: its name, and when it was last heard of.
    pub fn upstream(&self) -> Option<(&str, Duration)> {
        self.upstream
            .as_ref()
            .filter(|u| u.started)
            .map(|u| (u.site.as_str(), u.last_heard))
    }

    /// The mode of acknowledgement in force.
    pub fn ack_mode(&self) -> AckMode {
        self.facts.ack
    }

    /// Lowest LSN that some peer may still need from the journal; `None` if nobody needs any.
    ///
    /// A peer that is being caught up or copied to, or that was lost, holds its journal until space is short:
    /// see [`Peer::holds_from`].
    pub fn pinned_from(&self) -> Option<Lsn> {
        self.peers.iter().filter_map(Peer::holds_from).min()
    }

    /// Whether writers should be slowed so that a peer that catches up can.
    pub fn throttled(&self) -> bool {
        self.mode == Mode::Serving && self.peers.iter().any(|p| p.cannot_keep_up)
    }

    fn set_mode(&mut self, mode: Mode) {
        // Only a new start ends these, whatever was under way when they began.
        let is_final = matches!(self.mode, Mode::Fenced(_) | Mode::Stopped);
        #[cfg(test)]
        let is_final = is_final
            && !crate::base::sabotage::sabotaged(crate::base::sabotage::Sabotage::LeaveTheFence);
        if self.mode != mode && !is_final {
            self.mode = mode;
            self.mode_since_ns = self.now_ns;
        }
    }

    /// Nobody is answered any more; what was not acknowledged never will be.
    fn close_clients(&mut self) {
        self.acks.clear();
        self.actions.push(Action::CloseClients);
    }

    fn log(&mut self, severity: Severity, text: impl Into<String>) {
        self.actions.push(Action::Log(severity, text.into()));
    }

    fn save(&mut self, then: Then) {
        self.save_seq += 1;
        self.saves.push_back((self.save_seq, then));
        self.actions.push(Action::Save(self.save_seq));
    }

    fn saved(&mut self, seq: u64) {
        while self.saves.front().is_some_and(|(s, _)| *s <= seq) {
            let (_, then) = self.saves.pop_front().expect("just seen");
            match then {
                Then::Nothing => {}
                Then::OpenEpoch(epoch) => self.facts_hold_epoch(epoch),
                Then::InSync(peer) => self.in_sync_recorded(peer),
                Then::StepDown => self.stepped_down(),
                Then::Demoted(command) => self.demoted(command),
                Then::Handed(command) => self.handed_recorded(command),
                Then::Started(link) => self.started_recorded(link),
                Then::Taken(link, epoch) => self.taken_recorded(link, epoch),
                Then::WroteAlone => {
                    self.unrecorded_from = None;
                    self.advance_commit();
                }
            }
        }
    }

    /// Fresh, unique for this seed: a counter through a mixing function (the finaliser of `MurmurHash3`, twice).
    fn fresh_id(&mut self) -> Uuid {
        fn mix(mut x: u64) -> u64 {
            x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
            x ^ (x >> 33)
        }
        self.ids = self
            .ids
            .wrapping_add(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let (high, low) = ((self.ids >> 64) as u64, self.ids as u64);
        let id = u128::from(mix(high ^ mix(low))) << 64
            | u128::from(mix(low ^ mix(high.rotate_left(32))));
        uuid::Builder::from_random_bytes(id.to_be_bytes()).into_uuid()
    }

    fn disk_failed(&mut self, reason: &str) {
        if self.is_fenced() {
            return;
        }
        self.log(Severity::Error, format!("fenced at this site: {reason}"));
        let text = Left::fenced(&self.config.site, reason);
        self.end_commands(&text);
        self.set_mode(Mode::Fenced(reason.to_owned()));
        self.drop_all_links(&text);
        self.close_clients();
    }

    /// Tells the caller who may attach, when that changed.
    fn announce_exports(&mut self) {
        let told = self.exported.as_ref();
        if told.is_some_and(|e| e.mode == self.mode && e.primary == self.primary()) {
            return;
        }
        let open = self.open_to_clients();
        if told.is_none_or(|e| e.open != open) {
            self.actions.push(Action::Exports(open.clone()));
        }
        self.exported = Some(Exported {
            mode: self.mode.clone(),
            primary: self.primary().to_owned(),
            open,
        });
    }

    /// Whether this site is about to serve, as far as it knows.
    pub fn is_starting(&self) -> bool {
        matches!(
            self.mode,
            Mode::Opening | Mode::Returning | Mode::Fetching(_)
        )
    }

    /// Who may attach: nobody, and why, unless this site serves.
    pub fn open_to_clients(&self) -> Result<(), String> {
        let group = &self.config.group;
        match &self.mode {
            Mode::Serving => Ok(()),
            Mode::Opening if self.reopening() => Ok(()),
            Mode::Opening | Mode::Returning | Mode::Fetching(_) => Err(format!(
                "group {group} is starting on {}; try again",
                self.config.site
            )),
            Mode::Waiting(why) => Err(format!(
                "group {group} does not serve on {} yet: {why}",
                self.config.site
            )),
            Mode::Draining(_) => Err(format!("group {group} is leaving {}", self.config.site)),
            Mode::HandedOver => Err(format!(
                "group {group} was handed to {}",
                self.primary_name()
            )),
            Mode::Mirror | Mode::Probing | Mode::GoingBack => Err(format!(
                "{} is a mirror of group {group}; the primary is {}",
                self.config.site,
                self.primary_name()
            )),
            Mode::Fenced(why) => Err(format!(
                "group {group} is fenced on {}: {why}",
                self.config.site
            )),
            Mode::Stopped => Err(format!("{} is stopping", self.config.site)),
        }
    }

    /// The best guess at who is primary, for messages.
    pub fn primary_name(&self) -> String {
        self.primary().to_owned()
    }

    fn primary(&self) -> &str {
        if let Some(handed) = &self.facts.handed {
            return &handed.to;
        }
        if let Some(upstream) = &self.upstream {
            return &upstream.site;
        }
        match self.facts.lineage.last() {
            Some(epoch) if epoch.site != self.config.site => &epoch.site,
            _ => self.config.peers.first().map_or("not known", |p| p),
        }
    }

    /// The lineage in force.
    pub fn lineage(&self) -> &Lineage {
        &self.facts.lineage
    }
}
