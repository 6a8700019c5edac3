//! A primary's and a mirror's core driven against each other: virtual time, links that can be cut at any message, disks
//! that finish when the test says so.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::base::sabotage::Sabotage;
use crate::base::{Epoch, Hello, Hindrance, Start};

const TIMEOUT: Duration = Duration::from_secs(5);

/// One site: a core, and the least of a journal and a state file that lets it run.
struct Site {
    name: &'static str,
    peer: &'static str,
    policy: OnPeerLoss,
    core: Core,
    /// What a crash leaves: facts, and the LSN up to which the journal is durable.
    saved: Facts,
    journal: Vec<(Uuid, Option<Epoch>)>,
    durable: Lsn,
    replies: Vec<Token>,
    /// Copies that were proposed; there is nothing to copy here, and the link stays as it is.
    copies: usize,
    /// Messages, beside frames.
    sent: u64,
    reads: Vec<Token>,
    allowed: Lsn,
    done: Vec<(u64, Result<String, String>)>,
    exports: Option<Result<(), String>>,
    streams: BTreeMap<Link, (Lsn, Option<Lsn>)>,
    journal_first: Lsn,
    seeds: u128,
    /// The disk of this site takes part (else durable reports are held back).
    disk_runs: bool,
    saves_run: bool,
    pending_saves: Vec<u64>,
}

#[derive(Clone)]
enum Wire {
    Message(Message),
    Frame {
        lsn: Lsn,
        epoch: Uuid,
        opens: Option<Epoch>,
        commit: Lsn,
    },
    Closed,
}

/// Two sites, the wires between them, and the time.
struct Pair {
    sites: [Site; 2],
    alive: [bool; 2],
    connected: bool,
    /// Both ends of a link have the same id.
    wires: BTreeMap<Link, [VecDeque<Wire>; 2]>,
    now: Duration,
    next_link: u64,
    next_token: u64,
}

fn facts(role: Role, ack: AckMode) -> Facts {
    Facts::new(
        if role == Role::Primary {
            Uuid::from_u128(99)
        } else {
            Uuid::nil()
        },
        role,
        ack,
    )
}

impl Site {
    fn new(
        name: &'static str,
        peer: &'static str,
        role: Role,
        ack: AckMode,
        policy: OnPeerLoss,
    ) -> Site {
        let saved = facts(role, ack);
        let seeds = name.as_bytes()[0].into();
        Site {
            name,
            peer,
            policy,
            core: Core::new(
                Site::config(name, peer, policy),
                saved.clone(),
                Lsn::ZERO,
                Lsn::ZERO,
                seeds,
            ),
            saved,
            journal: Vec::new(),
            durable: Lsn::ZERO,
            replies: Vec::new(),
            copies: 0,
            sent: 0,
            reads: Vec::new(),
            allowed: Lsn::ZERO,
            done: Vec::new(),
            exports: None,
            streams: BTreeMap::new(),
            journal_first: Lsn(1),
            seeds,
            disk_runs: true,
            saves_run: true,
            pending_saves: Vec::new(),
        }
    }

    fn config(name: &str, peer: &str, on_peer_loss: OnPeerLoss) -> Config {
        Config {
            site: name.into(),
            group: "g".into(),
            peers: vec![peer.into()],
            on_peer_loss,
            timeout: TIMEOUT,
        }
    }

    fn tail(&self) -> Lsn {
        Lsn(self.journal.len() as u64)
    }
}

fn view(first: Lsn, now: Duration) -> View<'static> {
    View {
        chain: 0,
        journal_first: first,
        volumes: &[],
        undo: None,
        time_ns: now.as_nanos() as u64 + 1,
    }
}

impl Pair {
    fn new(ack: AckMode, policy: OnPeerLoss) -> Pair {
        let mut pair = Pair {
            sites: [
                Site::new("a", "b", Role::Primary, ack, policy),
                Site::new("b", "a", Role::Mirror, ack, policy),
            ],
            alive: [true, true],
            connected: true,
            wires: BTreeMap::new(),
            now: Duration::ZERO,
            next_link: 1,
            next_token: 1,
        };
        for at in [1, 0] {
            let v = view(Lsn(1), pair.now);
            pair.sites[at].core.start(pair.now, &v);
        }
        pair
    }

    /// In sync, with a few operations written.
    fn in_sync(ack: AckMode, policy: OnPeerLoss) -> Pair {
        let mut pair = Pair::new(ack, policy);
        pair.settle();
        assert!(
            pair.sites[0].core.peers()[0].in_sync,
            "{:?}",
            pair.sites[0].core.peers()[0]
        );
        for _ in 0..3 {
            let token = pair.write(0);
            pair.settle();
            assert!(pair.sites[0].replies.contains(&token));
        }
        pair
    }

    fn handle(&mut self, at: usize, event: Event) {
        let v = view(self.sites[at].journal_first, self.now);
        self.sites[at].core.handle(self.now, event, &v);
    }

    /// Admits one write; its reply has this token.
    fn write(&mut self, at: usize) -> Token {
        self.write_with(at, Strength::Commit)
    }

    fn write_with(&mut self, at: usize, strength: Strength) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        let site = &mut self.sites[at];
        let lsn = site.core.assign(1);
        let epoch = site.core.lineage().last().unwrap().id;
        site.journal.push((epoch, None));
        assert_eq!(site.tail(), lsn);
        site.core.reply_when(lsn, strength, token);
        token
    }

    /// What may be in the homes is there.
    fn apply(&mut self, at: usize) {
        let allowed = self.sites[at].allowed;
        self.handle(at, Event::Applied(allowed));
    }

    fn replied(&self, at: usize, token: Token) -> bool {
        self.sites[at].replies.contains(&token)
    }

    /// Carries out what the cores want, one thing; false if there is nothing to do now.
    fn step(&mut self) -> bool {
        for at in 0..2 {
            if !self.alive[at] {
                continue;
            }
            self.sites[at].core.end_batch(self.now);
            let actions: Vec<Action> = self.sites[at].core.take_actions(Vec::new());
            if !actions.is_empty() {
                for action in actions {
                    self.act(at, action);
                }
                return true;
            }
            if self.sites[at].saves_run && !self.sites[at].pending_saves.is_empty() {
                let seq = *self.sites[at].pending_saves.last().unwrap();
                self.sites[at].pending_saves.clear();
                self.sites[at].saved = self.sites[at].core.facts().clone();
                self.handle(at, Event::Saved(seq));
                return true;
            }
            let tail = self.sites[at].tail();
            if self.sites[at].disk_runs && self.sites[at].durable < tail {
                self.sites[at].durable = tail;
                self.handle(at, Event::Durable(tail));
                return true;
            }
            if self.stream(at) || self.deliver(at) {
                return true;
            }
        }
        false
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                // Pauses between attempts to connect are short; pass over those.
                let due = (0..2)
                    .filter(|&at| self.alive[at])
                    .filter_map(|at| self.sites[at].core.deadline())
                    .min();
                match due {
                    Some(due) if due <= self.now + Duration::from_millis(300) => {
                        self.advance_to(due);
                    }
                    _ => return,
                }
            }
        }
        panic!(
            "never settles: {:?} / {:?}",
            self.sites[0].core, self.sites[1].core
        );
    }

    fn advance_to(&mut self, time: Duration) {
        self.now = self.now.max(time);
        for at in 0..2 {
            if self.alive[at] {
                self.handle(at, Event::Tick);
            }
        }
    }

    /// Lets time pass, event by event.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while self.step() {}
            let due = (0..2)
                .filter(|&at| self.alive[at])
                .filter_map(|at| self.sites[at].core.deadline())
                .min();
            match due {
                Some(due) if due <= end => {
                    self.advance_to(due.max(self.now + Duration::from_millis(1)));
                }
                _ => break,
            }
        }
        self.now = end;
        self.advance_to(end);
        while self.step() {}
    }

    fn act(&mut self, at: usize, action: Action) {
        match action {
            Action::Save(seq) => self.sites[at].pending_saves.push(seq),
            Action::OpenEpoch(epoch) => {
                let site = &mut self.sites[at];
                assert!(
                    site.saved.lineage.contains(epoch.id),
                    "an epoch opened before its lineage was durable"
                );
                site.journal.push((epoch.id, Some(epoch.clone())));
                assert_eq!(site.tail(), epoch.first_lsn);
            }
            Action::Reply(token) => self.sites[at].replies.push(token),
            Action::ReleaseRead(token) => self.sites[at].reads.push(token),
            Action::Allow(lsn) => {
                let site = &mut self.sites[at];
                assert!(lsn <= site.durable, "homes ahead of the journal");
                site.allowed = site.allowed.max(lsn);
            }
            Action::Connect(peer) => self.connect(at, peer),
            Action::Send(link, message) => {
                self.sites[at].sent += 1;
                if let Some(wires) = self.wires.get_mut(&link) {
                    wires[1 - at].push_back(Wire::Message(message));
                }
            }
            Action::Close(link) => {
                self.sites[at].streams.remove(&link);
                if let Some(wires) = self.wires.get_mut(&link) {
                    wires[1 - at].push_back(Wire::Closed);
                    wires[at].clear();
                }
            }
            Action::Stream { link, from, end } => {
                self.sites[at].streams.insert(link, (from, end));
            }
            Action::StopStream(link) => {
                self.sites[at].streams.remove(&link);
            }
            Action::ProposeCopy { .. } => self.sites[at].copies += 1,
            Action::Copy(_)
            | Action::Keep(_)
            | Action::PrepareUndo
            | Action::GoBack
            | Action::Reset { .. } => {
                panic!("no copies in these tests")
            }
            // There are no homes here.
            Action::Distrust => {}
            Action::Truncate(lsn) => {
                let site = &mut self.sites[at];
                assert!(lsn >= site.allowed, "dropped what the homes may hold");
                site.journal.truncate(lsn.0 as usize);
                site.durable = site.durable.min(lsn);
            }
            Action::Exports(open) => self.sites[at].exports = Some(open),
            Action::CloseClients | Action::Log(..) | Action::Stop => {}
            Action::Ask(question) => {
                let Question::GoAlone { first, .. } = &question;
                let event = if self.sites[at].policy == OnPeerLoss::Continue || *first {
                    Event::Granted(question)
                } else {
                    Event::Denied(question, "frozen by policy".into())
                };
                self.handle(at, event);
            }
            Action::CommandDone(id, result) => self.sites[at].done.push((id, result)),
        }
    }

    fn connect(&mut self, at: usize, peer: String) {
        if self.connected && self.alive[1 - at] {
            let link = Link(self.next_link);
            self.next_link += 1;
            self.wires.insert(link, Default::default());
            self.handle(1 - at, Event::Accepted(link));
            self.handle(at, Event::Connected(link, peer));
        } else {
            let refused = self.connected;
            self.handle(
                at,
                Event::ConnectFailed {
                    peer,
                    refused,
                    reason: "no way".into(),
                },
            );
        }
    }

    fn stream(&mut self, at: usize) -> bool {
        let tail = self.sites[at].tail();
        let links: Vec<Link> = self.sites[at].streams.keys().copied().collect();
        for link in links {
            let (next, end) = self.sites[at].streams[&link];
            if next > end.unwrap_or(tail) {
                if let Some(end) = end {
                    self.sites[at].streams.remove(&link);
                    self.act(at, Action::Send(link, Message::FetchEnd { tail: end }));
                    return true;
                }
                continue;
            }
            let (epoch, opens) = self.sites[at].journal[next.0 as usize - 1].clone();
            let commit = self.sites[at].core.commit();
            self.sites[at].core.frame_tells_commit();
            self.sites[at].core.sent(link, next, self.now);
            self.sites[at].streams.insert(link, (next.next(), end));
            if let Some(wires) = self.wires.get_mut(&link) {
                wires[1 - at].push_back(Wire::Frame {
                    lsn: next,
                    epoch,
                    opens,
                    commit,
                });
            }
            return true;
        }
        false
    }

    fn deliver(&mut self, at: usize) -> bool {
        if !self.connected {
            return false;
        }
        let Some((link, wire)) = self
            .wires
            .iter_mut()
            .find_map(|(link, wires)| wires[at].pop_front().map(|wire| (*link, wire)))
        else {
            return false;
        };
        match wire {
            Wire::Message(message) => self.handle(at, Event::Message(link, message)),
            Wire::Closed => {
                self.wires.remove(&link);
                self.handle(at, Event::Closed(link, "closed by the other side".into()));
            }
            Wire::Frame {
                lsn,
                epoch,
                opens,
                commit,
            } => {
                self.handle(at, Event::Heard(link));
                let info = FrameInfo {
                    first: lsn,
                    last: lsn,
                    commit,
                    group: Uuid::from_u128(99),
                    epoch,
                    opens: opens.as_ref(),
                };
                match self.sites[at].core.offer_frame(link, &info) {
                    Ok(()) => self.sites[at].journal.push((epoch, opens)),
                    Err(text) => {
                        self.act(at, Action::Close(link));
                        self.handle(at, Event::Closed(link, text));
                    }
                }
            }
        }
        true
    }

    /// SIGKILL and power cut in one: what was not durable is gone.
    fn kill(&mut self, at: usize) {
        self.alive[at] = false;
        let site = &mut self.sites[at];
        site.journal.truncate(site.durable.0 as usize);
        site.streams.clear();
        site.pending_saves.clear();
        let links: Vec<Link> = self.wires.keys().copied().collect();
        for link in links {
            let wires = self.wires.get_mut(&link).unwrap();
            wires[at].clear();
            wires[1 - at].push_back(Wire::Closed);
        }
    }

    fn restart(&mut self, at: usize) {
        self.alive[at] = true;
        let now = self.now;
        let site = &mut self.sites[at];
        site.seeds += 1000;
        let mut saved = site.saved.clone();
        // Recovery learns from the journal which epochs were opened, and what was written.
        for (lsn, (_, opens)) in site.journal.iter().enumerate() {
            if opens.is_none() {
                saved.written = saved.written.max(Lsn(lsn as u64 + 1));
            }
            if let Some(epoch) = opens.as_ref().filter(|e| !saved.lineage.contains(e.id)) {
                saved.lineage.truncate_after(Lsn(lsn as u64));
                saved.lineage.push(epoch.clone()).unwrap();
            }
        }
        let config = Site::config(site.name, site.peer, site.policy);
        site.core = Core::new(config, saved, site.tail(), site.allowed, site.seeds);
        site.exports = None;
        site.disk_runs = true;
        site.saves_run = true;
        let v = view(site.journal_first, now);
        site.core.start(now, &v);
    }

    fn cut(&mut self) {
        self.connected = false;
    }

    fn mend(&mut self) {
        self.connected = true;
        // What was on the old connections is lost with them.
        for wires in self.wires.values_mut() {
            for wire in wires {
                wire.clear();
                wire.push_back(Wire::Closed);
            }
        }
    }

    fn command(&mut self, at: usize, command: Command) -> u64 {
        let id = 1000 + self.next_token;
        self.next_token += 1;
        self.handle(at, Event::Command(id, command));
        id
    }

    fn result(&self, at: usize, id: u64) -> Option<&Result<String, String>> {
        self.sites[at]
            .done
            .iter()
            .find(|(done, _)| *done == id)
            .map(|(_, result)| result)
    }

    fn same_history(&self) -> bool {
        let ids = |at: usize| {
            self.sites[at]
                .journal
                .iter()
                .map(|(id, _)| *id)
                .collect::<Vec<_>>()
        };
        ids(0) == ids(1)
    }

    fn mode(&self, at: usize) -> &Mode {
        self.sites[at].core.mode()
    }
}

const FORCE: Overrides = Overrides {
    peer_unreachable: true,
    inconsistent: false,
    behind: false,
};

#[test]
fn a_new_pair_gets_in_sync_and_both_hold_the_same() {
    let pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    assert!(pair.same_history());
    assert_eq!(pair.sites[0].exports, Some(Ok(())));
    let refusal = pair.sites[1].exports.clone().unwrap().unwrap_err();
    assert!(refusal.contains("the primary is a"), "{refusal}");
    assert!(pair.sites[0].saved.alone.is_empty());
    assert!(pair.sites[0].saved.ever_in_sync);
}

#[test]
fn sync_waits_for_both_journals_and_memsync_for_both_memories() {
    for (ack, without_local, without_remote) in [
        (AckMode::Sync, false, false),
        (AckMode::Memsync, true, true),
        (AckMode::Async, false, true),
    ] {
        for (slow, replied) in [(0, without_local), (1, without_remote)] {
            let mut pair = Pair::in_sync(ack, OnPeerLoss::Continue);
            pair.sites[slow].disk_runs = false;
            let plain = pair.write(0);
            let fua = pair.write_with(0, Strength::Durable);
            pair.settle();
            assert_eq!(
                pair.replied(0, plain),
                replied,
                "{ack} with a slow disk at {slow}"
            );
            let fua_needs_it = slow == 0 || ack != AckMode::Async;
            assert_eq!(
                pair.replied(0, fua),
                !fua_needs_it,
                "FUA in {ack} with a slow disk at {slow}"
            );
            pair.sites[slow].disk_runs = true;
            pair.settle();
            assert!(pair.replied(0, plain) && pair.replied(0, fua));
        }
    }
}

#[test]
fn what_a_mirror_has_in_memory_only_does_not_count_as_durable_after_a_new_connection() {
    for (ack, strength) in [
        (AckMode::Sync, Strength::Commit),
        (AckMode::Memsync, Strength::Durable),
    ] {
        let mut pair = Pair::in_sync(ack, OnPeerLoss::Continue);
        pair.sites[1].disk_runs = false;
        let token = pair.write_with(0, strength);
        pair.settle();
        assert!(pair.sites[1].tail() > pair.sites[1].durable);
        pair.mend();
        pair.settle();
        assert!(
            pair.sites[0].core.peers()[0].streaming_link().is_some(),
            "{:?}",
            pair.sites[0].core.peers()[0]
        );
        assert!(!pair.replied(0, token), "{ack:?}: not durable there");
        assert!(pair.sites[0].core.facts().told_durable("b") <= pair.sites[1].durable);
        pair.sites[1].disk_runs = true;
        pair.settle();
        assert!(pair.replied(0, token));
    }
}

#[test]
fn a_mirror_lost_while_the_epoch_is_being_opened_is_waited_for_all_the_same() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Freeze);
    pair.kill(0);
    pair.settle();
    pair.restart(0);
    pair.sites[0].saves_run = false;
    pair.settle();
    assert_eq!(pair.mode(0), &Mode::Opening);
    pair.kill(1);
    pair.settle();
    pair.sites[0].saves_run = true;
    pair.settle();
    assert_eq!(pair.mode(0), &Mode::Serving);
    let token = pair.write(0);
    pair.pass(TIMEOUT * 4);
    assert!(!pair.replied(0, token), "on one site only, and frozen");
    pair.restart(1);
    pair.pass(TIMEOUT);
    assert!(pair.replied(0, token));
}

#[test]
fn a_primary_whose_peer_was_promoted_does_not_go_on_alone() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    // The primary sleeps; the mirror is promoted meanwhile.
    pair.cut();
    pair.alive[0] = false;
    pair.pass(TIMEOUT * 2);
    pair.command(1, Command::Promote(FORCE));
    pair.pass(TIMEOUT);
    assert_eq!(pair.mode(1), &Mode::Serving);
    pair.alive[0] = true;
    pair.mend();
    pair.settle();
    let token = pair.write(0);
    pair.pass(TIMEOUT * 4);
    assert!(!pair.replied(0, token), "nothing is acknowledged apart");
    assert_eq!(
        pair.sites[0].core.peers()[0].conflict,
        Some(Conflict::BothPrimary)
    );
    assert!(pair.sites[0].core.facts().alone.is_empty());
}

#[test]
fn a_silent_mirror_holds_acknowledgements_until_the_timeout_and_the_record() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.cut();
    let token = pair.write(0);
    pair.pass(TIMEOUT - Duration::from_millis(10));
    assert!(!pair.replied(0, token), "suspect: nothing is acknowledged");
    pair.sites[0].saves_run = false;
    pair.pass(Duration::from_secs(1));
    assert!(!pair.replied(0, token), "the record is not durable yet");
    pair.sites[0].saves_run = true;
    pair.pass(Duration::from_millis(10));
    assert!(pair.replied(0, token));
    let alone = pair.sites[0].saved.alone[0].clone();
    assert_eq!(alone.peer, "b");
}

#[test]
fn a_write_after_another_costs_one_message_beside_its_frame_and_the_rest_is_told_soon() {
    const WRITES: u64 = 100;
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.apply(1);
    pair.settle();
    let before = [0, 1].map(|at| pair.sites[at].sent);
    for _ in 0..WRITES {
        let token = pair.write(0);
        while pair.step() {}
        assert!(pair.replied(0, token));
        pair.apply(1);
        pair.now += Duration::from_micros(200);
    }
    let sent = [0, 1].map(|at| pair.sites[at].sent - before[at]);
    assert_eq!(sent, [0, WRITES], "by the primary and by the mirror");
    let tail = pair.sites[0].core.tail();
    assert!(pair.sites[1].core.commit() < tail);
    pair.pass(2 * NEWS_DELAY);
    assert_eq!(pair.sites[1].core.commit(), tail);
    pair.apply(1);
    pair.pass(2 * NEWS_DELAY);
    assert_eq!(pair.sites[0].core.peers()[0].applied, tail);
}

#[test]
fn what_is_committed_is_told_soon_also_while_more_is_under_way() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.write(0);
    while pair.step() {}
    let committed = pair.sites[0].core.commit();
    assert!(pair.sites[1].core.commit() < committed, "told already");
    // Its frame waits, for room that the mirror makes only when it knows.
    pair.sites[0].streams.clear();
    let token = pair.write(0);
    pair.pass(2 * NEWS_DELAY);
    assert!(!pair.replied(0, token));
    assert_eq!(pair.sites[1].core.commit(), committed);
}

#[test]
fn a_mirror_owes_nothing_for_what_waits_on_the_primary_s_own_disk() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    // Nothing is handed to the link: its content is still to be read here.
    let streams = std::mem::take(&mut pair.sites[0].streams);
    let token = pair.write(0);
    pair.pass(4 * TIMEOUT);
    assert!(pair.sites[0].core.peers()[0].in_sync, "{:?}", pair.mode(0));
    assert!(!pair.replied(0, token));
    // From here on it does.
    pair.sites[0].streams = streams;
    pair.sites[1].disk_runs = false;
    pair.pass(TIMEOUT / 2);
    assert!(!pair.replied(0, token) && pair.sites[0].core.peers()[0].in_sync);
    pair.pass(TIMEOUT);
    assert!(pair.replied(0, token), "alone, on record");
}

#[test]
fn a_mirror_that_is_certainly_gone_is_not_waited_for() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.kill(1);
    let token = pair.write(0);
    pair.settle();
    assert!(pair.replied(0, token), "{:?}", pair.mode(0));
    assert!(pair.now < TIMEOUT);
}

#[test]
fn freeze_acknowledges_nothing_alone_and_resumes_when_the_mirror_is_back() {
    for ack in [AckMode::Sync, AckMode::Memsync, AckMode::Async] {
        let mut pair = Pair::in_sync(ack, OnPeerLoss::Freeze);
        pair.kill(1);
        pair.settle();
        assert!(pair.sites[0].core.frozen(), "{ack}");
        let token = pair.write(0);
        let fua = pair.write_with(0, Strength::Durable);
        pair.pass(TIMEOUT * 4);
        assert!(!pair.replied(0, token) && !pair.replied(0, fua), "{ack}");
        assert!(pair.sites[0].saved.alone.is_empty());
        pair.restart(1);
        pair.pass(TIMEOUT);
        assert!(pair.replied(0, token) && pair.replied(0, fua), "{ack}");
        assert!(pair.same_history());
    }
}

#[test]
fn a_mirror_that_was_away_catches_up_and_the_record_goes_before_it_is_in_sync() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.kill(1);
    pair.settle();
    for _ in 0..50 {
        pair.write(0);
        pair.settle();
    }
    pair.restart(1);
    pair.sites[0].saves_run = false;
    pair.pass(TIMEOUT);
    assert!(
        !pair.sites[0].core.peers()[0].in_sync,
        "the record still says alone"
    );
    assert!(!pair.sites[0].saved.alone.is_empty());
    pair.sites[0].saves_run = true;
    pair.pass(TIMEOUT);
    assert!(pair.sites[0].core.peers()[0].in_sync);
    assert!(pair.sites[0].saved.alone.is_empty());
    assert!(pair.same_history());
}

#[test]
fn a_restarted_primary_adopts_the_longer_tail_of_its_mirror() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.sites[0].disk_runs = false;
    pair.write(0);
    pair.write(0);
    pair.settle();
    let tail = pair.sites[1].tail();
    pair.kill(0);
    assert!(pair.sites[0].tail() < tail);
    pair.restart(0);
    pair.settle();
    assert_eq!(pair.mode(0), &Mode::Serving);
    assert!(pair.sites[0].tail() > tail);
    assert!(pair.same_history());
    assert!(pair.sites[0].core.peers()[0].in_sync);
}

/// Connections are independent of each other: a greeting on one that was given up may be read after that on a newer one.
#[test]
fn a_greeting_that_comes_late_does_not_leave_the_newer_connection_without_an_answer() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.sites[0].disk_runs = false;
    pair.write(0);
    pair.settle();
    pair.kill(0);
    pair.restart(0);
    let greeting = |pair: &Pair| {
        let mut under_way = pair.wires.values().flat_map(|w| &w[1]);
        under_way.find_map(|wire| match wire {
            Wire::Message(hello @ Message::Hello(_)) => Some(hello.clone()),
            _ => None,
        })
    };
    while greeting(&pair).is_none() {
        assert!(pair.step(), "it greets its mirror");
    }
    let late = greeting(&pair).expect("just seen");
    while greeting(&pair).is_some() {
        assert!(pair.deliver(1), "the mirror answers");
    }
    let old = Link(900);
    pair.handle(1, Event::Accepted(old));
    pair.handle(1, Event::Message(old, late));
    pair.pass(TIMEOUT * 3);
    assert_eq!(pair.mode(0), &Mode::Serving);
    assert!(pair.sites[0].core.peers()[0].in_sync);
}

#[test]
fn a_restarted_primary_without_its_peer_waits_unless_it_was_alone() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.kill(0);
    pair.kill(1);
    pair.restart(0);
    pair.pass(TIMEOUT * 3);
    assert!(
        matches!(pair.mode(0), Mode::Waiting(_)),
        "{:?}",
        pair.mode(0)
    );
    let id = pair.command(0, Command::Promote(Overrides::default()));
    pair.settle();
    assert!(pair.result(0, id).unwrap().is_err());
    let id = pair.command(0, Command::Promote(FORCE));
    pair.settle();
    assert!(
        pair.result(0, id).unwrap().is_ok(),
        "{:?}",
        pair.result(0, id)
    );
    let token = pair.write(0);
    pair.settle();
    assert!(pair.replied(0, token));
    // Alone by record now: it serves again without being told.
    pair.kill(0);
    pair.restart(0);
    pair.settle();
    assert_eq!(pair.mode(0), &Mode::Serving);
    pair.restart(1);
    pair.pass(TIMEOUT);
    assert!(pair.same_history());
    assert!(pair.sites[0].core.peers()[0].in_sync);
}

#[test]
fn both_killed_at_once_come_back_in_sync_without_help() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    let token = pair.write(0);
    pair.settle();
    assert!(pair.replied(0, token));
    let tail = pair.sites[0].tail();
    pair.kill(0);
    pair.kill(1);
    pair.restart(1);
    pair.restart(0);
    pair.pass(TIMEOUT);
    assert_eq!(pair.mode(0), &Mode::Serving);
    assert!(pair.sites[0].tail() > tail);
    assert!(pair.same_history());
}

#[test]
fn promotion_is_refused_while_the_primary_answers_and_needs_force_while_it_cannot_be_asked() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    let id = pair.command(1, Command::Promote(FORCE));
    pair.settle();
    let text = pair.result(1, id).unwrap().clone().unwrap_err();
    assert!(text.contains("answers as primary"), "{text}");
    pair.kill(0);
    pair.settle();
    let id = pair.command(1, Command::Promote(Overrides::default()));
    pair.settle();
    let text = pair.result(1, id).unwrap().clone().unwrap_err();
    assert!(text.contains("--force peer-unreachable"), "{text}");
    assert_eq!(pair.mode(1), &Mode::Mirror);
    let id = pair.command(1, Command::Promote(FORCE));
    pair.settle();
    assert!(pair.result(1, id).unwrap().is_ok());
    assert_eq!(pair.mode(1), &Mode::Serving);
}

/// Who follows a refusal's advice to the letter is not sent back to where he was.
#[test]
fn a_refusal_prints_the_whole_command_with_all_that_is_overridden_already() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.kill(1);
    pair.sites[1].saved.inconsistent_until = Some(Lsn(u64::MAX));
    pair.kill(0);
    pair.restart(1);
    pair.settle();
    let mut overrides = Overrides::default();
    let mut ask = |overrides| {
        let id = pair.command(1, Command::Promote(overrides));
        pair.settle();
        pair.result(1, id).unwrap().clone()
    };
    let text = ask(overrides).unwrap_err();
    for command in [
        "`doublure promote g --force inconsistent`",
        "`doublure promote g --force inconsistent,peer-unreachable`",
    ] {
        assert!(text.contains(command), "{text}");
    }
    overrides.inconsistent = true;
    let text = ask(overrides).unwrap_err();
    let command = "`doublure promote g --force inconsistent,peer-unreachable`";
    assert!(text.ends_with(command), "{text}");
}

#[test]
fn a_link_that_one_side_cut_is_mended_on_that_side() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    let why = |pair: &Pair| pair.sites[0].core.peers()[0].hindrance();
    assert_eq!(why(&pair), None);
    pair.command(1, Command::Disconnect);
    pair.settle();
    // It said so: nobody waits until the primary's patience ends.
    assert_eq!(pair.sites[0].core.facts().alone.len(), 1);
    pair.pass(TIMEOUT * 2);
    assert_eq!(why(&pair), Some(Hindrance::CutThere));
    let id = pair.command(0, Command::Switchover);
    pair.settle();
    let text = pair.result(0, id).unwrap().clone().unwrap_err();
    assert!(text.contains("`doublure connect g` on b"), "{text}");
    pair.command(0, Command::Disconnect);
    pair.settle();
    assert_eq!(why(&pair), Some(Hindrance::CutHere));
    pair.command(0, Command::Connect);
    pair.command(1, Command::Connect);
    pair.pass(TIMEOUT * 2);
    assert_eq!(why(&pair), None);
    pair.kill(1);
    pair.pass(TIMEOUT * 2);
    assert_eq!(why(&pair), Some(Hindrance::Unreachable));
}

#[test]
fn the_old_primary_becomes_the_mirror_of_the_promoted_one() {
    for ack in [AckMode::Sync, AckMode::Memsync] {
        the_old_primary_follows(ack);
    }
}

fn the_old_primary_follows(ack: AckMode) {
    let mut pair = Pair::in_sync(ack, OnPeerLoss::Continue);
    // One operation is durable here only: nobody was told that it is written.
    pair.cut();
    let token = pair.write(0);
    pair.pass(Duration::from_millis(10));
    assert!(!pair.replied(0, token));
    pair.kill(0);
    pair.mend();
    pair.settle();
    pair.command(1, Command::Promote(FORCE));
    pair.settle();
    let token = pair.write(1);
    pair.settle();
    assert!(pair.replied(1, token));
    pair.restart(0);
    pair.pass(TIMEOUT);
    assert_eq!(pair.mode(0), &Mode::Mirror);
    assert!(
        pair.sites[1].core.peers()[0].in_sync,
        "{:?}",
        pair.sites[1].core.peers()[0]
    );
    assert!(pair.same_history());
}

#[test]
fn a_mirror_that_lost_its_memory_cannot_vouch_for_what_memsync_acknowledged() {
    let mut pair = Pair::in_sync(AckMode::Memsync, OnPeerLoss::Continue);
    pair.sites[1].disk_runs = false;
    let token = pair.write(0);
    pair.settle();
    assert!(pair.replied(0, token), "in the memory of both");
    let kept = pair.sites[0].tail();
    pair.kill(0);
    pair.kill(1);
    pair.restart(1);
    pair.command(1, Command::Promote(FORCE));
    pair.settle();
    assert_eq!(pair.mode(1), &Mode::Serving);
    pair.restart(0);
    pair.pass(TIMEOUT * 2);
    assert_eq!(
        pair.sites[0].core.peers()[0].conflict,
        Some(Conflict::Forked)
    );
    assert_eq!(pair.sites[0].tail(), kept);
}

#[test]
fn what_was_acknowledged_alone_makes_a_fork_and_is_never_dropped() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.cut();
    let token = pair.write(0);
    pair.pass(TIMEOUT * 2);
    assert!(pair.replied(0, token), "acknowledged alone");
    let kept = pair.sites[0].tail();
    pair.kill(0);
    pair.command(1, Command::Promote(FORCE));
    pair.pass(TIMEOUT);
    assert_eq!(pair.mode(1), &Mode::Serving);
    pair.mend();
    pair.restart(0);
    pair.pass(TIMEOUT * 2);
    assert!(
        matches!(pair.mode(0), Mode::Waiting(_)),
        "{:?}",
        pair.mode(0)
    );
    assert_eq!(
        pair.sites[0].core.peers()[0].conflict,
        Some(Conflict::Forked)
    );
    assert_eq!(pair.sites[0].tail(), kept);
}

#[test]
fn a_fork_that_is_heard_of_while_the_epoch_is_being_opened_keeps_it_closed() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.cut();
    pair.write(0);
    pair.pass(TIMEOUT * 2);
    let kept = pair.sites[0].tail();
    pair.kill(0);
    pair.command(1, Command::Promote(FORCE));
    pair.pass(TIMEOUT);
    assert_eq!(pair.mode(1), &Mode::Serving);
    // It acknowledged alone, hears nothing of its peer and is about to serve again, when the peer greets it.
    pair.restart(0);
    pair.sites[0].saves_run = false;
    pair.pass(TIMEOUT);
    assert_eq!(pair.mode(0), &Mode::Opening);
    pair.mend();
    pair.pass(TIMEOUT * 2);
    pair.sites[0].saves_run = true;
    pair.pass(TIMEOUT);
    assert!(
        matches!(pair.mode(0), Mode::Waiting(_)),
        "{:?}",
        pair.mode(0)
    );
    assert_eq!(pair.sites[0].tail(), kept, "no epoch is opened in a fork");
}

#[test]
fn a_link_that_is_cut_while_a_tail_is_taken_over_can_connect_again() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.sites[0].disk_runs = false;
    pair.write(0);
    pair.settle();
    pair.kill(0);
    pair.settle();
    pair.restart(0);
    pair.sites[0].disk_runs = false;
    pair.settle();
    assert!(
        matches!(pair.mode(0), Mode::Fetching(_)),
        "{:?}",
        pair.mode(0)
    );
    pair.command(0, Command::Disconnect);
    pair.settle();
    assert!(
        !matches!(pair.mode(0), Mode::Fetching(_)),
        "{:?}",
        pair.mode(0)
    );
    pair.sites[0].disk_runs = true;
    pair.command(0, Command::Connect);
    pair.pass(TIMEOUT);
    assert_eq!(pair.mode(0), &Mode::Serving);
    assert!(pair.same_history());
}

#[test]
fn two_primaries_refuse_each_other_and_a_demoted_one_says_so() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.cut();
    pair.pass(TIMEOUT * 2);
    let id = pair.command(1, Command::Promote(FORCE));
    pair.pass(TIMEOUT * 2);
    assert!(pair.result(1, id).unwrap().is_ok());
    pair.mend();
    pair.pass(TIMEOUT * 2);
    for at in 0..2 {
        assert_eq!(
            pair.sites[at].core.peers()[0].conflict,
            Some(Conflict::BothPrimary),
            "site {at}"
        );
        assert!(!pair.sites[at].core.peers()[0].in_sync);
        // Both can tell what each wrote since, and neither gives up what is still being written.
        let fork = pair.sites[at].core.peers()[0].fork.clone();
        assert!(fork.expect("known").their_stance == crate::base::Stance::Serving);
        let other = ["b", "a"][at].to_owned();
        let discard = Command::Resolve {
            discard: other.clone(),
        };
        let id = pair.command(at, discard);
        pair.settle();
        let text = pair.result(at, id).unwrap().clone().unwrap_err();
        let demote = format!("run `doublure demote g` on {other}, and then this again");
        assert!(text.contains(&demote), "{text}");
    }
}

#[test]
fn a_mirror_whose_disk_fails_while_it_is_to_be_promoted_stays_fenced() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.kill(0);
    let id = pair.command(1, Command::Promote(FORCE));
    assert_eq!(pair.mode(1), &Mode::Probing);
    pair.handle(1, Event::DiskFailed("no more".into()));
    pair.pass(Duration::from_secs(20));
    assert!(matches!(pair.mode(1), Mode::Fenced(_)));
    let answer = pair.result(1, id).expect("an answer").clone();
    assert!(answer.unwrap_err().contains("b is fenced: no more"));
}

#[test]
fn that_a_site_leaves_its_fence_would_be_noticed() {
    let test = a_mirror_whose_disk_fails_while_it_is_to_be_promoted_stays_fenced;
    let left = Sabotage::LeaveTheFence.during(|| std::panic::catch_unwind(test));
    assert!(left.is_err());
}

#[test]
fn a_switchover_under_load_loses_nothing_and_both_sides_swap_roles() {
    for ack in [AckMode::Sync, AckMode::Memsync, AckMode::Async] {
        let mut pair = Pair::in_sync(ack, OnPeerLoss::Continue);
        let tokens: Vec<Token> = (0..5).map(|_| pair.write(0)).collect();
        let id = pair.command(0, Command::Switchover);
        assert!(!pair.sites[0].core.admitting());
        pair.pass(TIMEOUT);
        assert!(
            pair.result(0, id).unwrap().is_ok(),
            "{:?}",
            pair.result(0, id)
        );
        assert!(tokens.iter().all(|t| pair.replied(0, *t)), "{ack}");
        assert_eq!(
            (pair.mode(0), pair.mode(1)),
            (&Mode::Mirror, &Mode::Serving),
            "{ack}"
        );
        let token = pair.write(1);
        pair.pass(TIMEOUT);
        assert!(pair.replied(1, token));
        assert!(pair.sites[1].core.peers()[0].in_sync);
        assert!(pair.same_history());
    }
}

/// Kills one side, or both, after every single step of a switchover; afterwards at most one side serves, and with both
/// back exactly one does (or an operator's promotion makes it so).
#[test]
fn a_crash_at_any_step_of_a_switchover_never_leaves_two_primaries() {
    for steps in 0..80 {
        for victims in [&[0][..], &[1], &[0, 1]] {
            let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
            let token = pair.write(0);
            pair.command(0, Command::Switchover);
            for _ in 0..steps {
                pair.step();
            }
            let acked = pair.replied(0, token);
            for &at in victims {
                pair.kill(at);
            }
            let mut most = 0;
            for _ in 0..20 {
                pair.pass(Duration::from_millis(500));
                let serving = (0..2)
                    .filter(|&at| pair.alive[at] && pair.sites[at].core.serving())
                    .count();
                most = most.max(serving);
            }
            for &at in victims {
                pair.restart(at);
            }
            for _ in 0..40 {
                pair.pass(Duration::from_millis(500));
                let serving = (0..2).filter(|&at| pair.sites[at].core.serving()).count();
                most = most.max(serving);
            }
            assert!(
                most <= 1,
                "two primaries after {steps} steps, killing {victims:?}"
            );
            let serving: Vec<usize> = (0..2).filter(|&at| pair.sites[at].core.serving()).collect();
            assert_eq!(
                serving.len(),
                1,
                "after {steps} steps, killing {victims:?}: {:?} {:?}",
                pair.mode(0),
                pair.mode(1)
            );
            assert!(
                pair.same_history(),
                "after {steps} steps, killing {victims:?}"
            );
            if acked {
                assert!(pair.sites[serving[0]].tail() > Lsn(4));
            }
        }
    }
}

#[test]
fn a_switchover_whose_mirror_dies_is_taken_back() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.cut();
    let token = pair.write(0);
    let id = pair.command(0, Command::Switchover);
    pair.pass(TIMEOUT * 2);
    assert!(pair.result(0, id).unwrap().is_err());
    assert_eq!(pair.mode(0), &Mode::Serving);
    assert!(pair.replied(0, token));
}

#[test]
fn a_handing_over_whose_record_is_being_written_is_not_taken_back_when_the_mirror_is_lost() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.sites[0].saves_run = false;
    let id = pair.command(0, Command::Switchover);
    pair.settle();
    assert!(matches!(pair.mode(0), Mode::Draining(_)));
    pair.kill(1);
    pair.pass(TIMEOUT * 2);
    assert_eq!(pair.result(0, id), None, "nothing is taken back");
    pair.sites[0].saves_run = true;
    pair.settle();
    assert_eq!(pair.mode(0), &Mode::HandedOver);
    assert!(pair.sites[0].core.facts().alone.is_empty());
    pair.restart(1);
    pair.pass(TIMEOUT * 2);
    assert_eq!(pair.mode(1), &Mode::Serving);
    assert_eq!(pair.mode(0), &Mode::Mirror);
}

#[test]
fn demotion_leaves_nobody_primary_until_one_is_promoted() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    let id = pair.command(0, Command::Demote);
    pair.settle();
    assert!(pair.result(0, id).unwrap().is_ok());
    assert_eq!((pair.mode(0), pair.mode(1)), (&Mode::Mirror, &Mode::Mirror));
    let id = pair.command(1, Command::Promote(Overrides::default()));
    pair.pass(TIMEOUT);
    assert!(
        pair.result(1, id).unwrap().is_ok(),
        "{:?}",
        pair.result(1, id)
    );
    assert_eq!(pair.mode(1), &Mode::Serving);
    assert!(pair.sites[1].core.peers()[0].in_sync);
    assert!(
        pair.sites[1].saved.alone.is_empty(),
        "the other side answered: nobody was alone"
    );
}

#[test]
fn a_read_of_what_is_not_committed_is_held() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.sites[1].disk_runs = false;
    pair.write(0);
    let tail = pair.sites[0].core.tail();
    pair.sites[0].core.read_when(tail, Token(77));
    pair.settle();
    assert!(pair.sites[0].reads.is_empty());
    pair.sites[1].disk_runs = true;
    pair.settle();
    assert_eq!(pair.sites[0].reads, [Token(77)]);
}

#[test]
fn a_peer_that_keeps_getting_lost_is_held_down() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    for _ in 0..3 {
        pair.kill(1);
        pair.settle();
        pair.restart(1);
        pair.pass(Duration::from_secs(3));
    }
    assert!(!pair.sites[0].core.peers()[0].gated, "held down");
    pair.pass(Duration::from_secs(12));
    assert!(pair.sites[0].core.peers()[0].in_sync, "let in again");
}

#[test]
fn a_mirror_whose_disk_lost_history_is_not_promoted_and_refetches() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.kill(1);
    let site = &mut pair.sites[1];
    site.journal.truncate(2);
    (site.durable, site.allowed) = (Lsn(2), Lsn(2));
    pair.restart(1);
    pair.pass(TIMEOUT);
    assert!(pair.same_history());
    assert!(pair.sites[0].core.peers()[0].in_sync);
}

#[test]
fn history_that_nobody_has_any_more_can_be_given_up_while_the_peer_answers() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    pair.kill(0);
    pair.kill(1);
    // A damaged journal ends before the damage, and its site remembers what it held.
    pair.sites[0].saved.floor = Lsn(50);
    pair.restart(1);
    pair.restart(0);
    pair.pass(TIMEOUT * 2);
    let Mode::Waiting(why) = pair.mode(0) else {
        panic!("{:?}", pair.mode(0));
    };
    assert!(
        why.contains("that no peer has either; `doublure promote g --force behind` gives it up"),
        "{why}"
    );
    let behind = Overrides {
        behind: true,
        ..Overrides::default()
    };
    let id = pair.command(0, Command::Promote(behind));
    pair.pass(TIMEOUT * 2);
    assert!(pair.result(0, id).unwrap().is_ok());
    // The homes may hold what was given up.
    assert!(pair.sites[0].copies > 0, "compared");
}

/// What the other side was told is durable here concerns its branch: the operator gave it up when this site was promoted
/// without it.
#[test]
fn what_an_operator_gave_up_is_not_missed_when_the_other_branch_comes_back() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    for _ in 0..20 {
        pair.write(0);
    }
    pair.settle();
    pair.kill(0);
    pair.kill(1);
    let site = &mut pair.sites[1];
    site.journal.truncate(3);
    (site.durable, site.allowed) = (Lsn(3), Lsn(3));
    pair.restart(1);
    pair.command(1, Command::Promote(FORCE));
    pair.pass(TIMEOUT * 2);
    assert_eq!(pair.mode(1), &Mode::Serving);
    pair.sites[0].saved.note_told_durable("b", Lsn(20));
    pair.restart(0);
    pair.pass(TIMEOUT * 2);
    let tail = pair.sites[1].tail();
    assert!(pair.sites[0].core.facts().told_durable("b") > tail);
    assert_eq!(
        pair.sites[0].core.peers()[0].conflict,
        Some(Conflict::Forked)
    );
    assert!(pair.sites[1].core.facts().floor <= tail);
}

#[test]
fn frames_that_do_not_follow_are_refused() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    let link = *pair.sites[0].streams.keys().next().unwrap();
    let epoch = pair.sites[1].core.lineage().last().unwrap().id;
    let tail = pair.sites[1].core.tail();
    let good = FrameInfo {
        first: tail.next(),
        last: tail.next(),
        commit: Lsn::ZERO,
        group: Uuid::from_u128(99),
        epoch,
        opens: None,
    };
    let core = &mut pair.sites[1].core;
    for bad in [
        FrameInfo {
            first: tail,
            ..good
        },
        FrameInfo {
            first: tail.plus(2),
            ..good
        },
        FrameInfo {
            epoch: Uuid::from_u128(5),
            ..good
        },
        FrameInfo {
            group: Uuid::from_u128(5),
            ..good
        },
    ] {
        assert!(core.offer_frame(link, &bad).is_err(), "{bad:?}");
    }
    assert!(core.offer_frame(Link(555), &good).is_err());
    assert!(core.offer_frame(link, &good).is_ok());
}

/// No seed of the simulator brings this about: what an old primary still sends comes on its own link, which is not followed
/// any more, and a stream goes through the epochs in order. The rule is for a peer that breaks its own.
#[test]
fn a_frame_of_an_epoch_that_has_ended_is_refused() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    let old = pair.sites[1].core.lineage().last().unwrap().id;
    pair.kill(0);
    pair.restart(0);
    pair.pass(TIMEOUT);
    let link = *pair.sites[0].streams.keys().next().unwrap();
    let core = &mut pair.sites[1].core;
    assert_ne!(core.lineage().last().unwrap().id, old);
    assert!(core.lineage().contains(old));
    let late = FrameInfo {
        first: core.tail().next(),
        last: core.tail().next(),
        commit: Lsn::ZERO,
        group: Uuid::from_u128(99),
        epoch: old,
        opens: None,
    };
    assert!(core.offer_frame(link, &late).is_err());
    let taken = Sabotage::AcceptOldEpochs.during(|| core.offer_frame(link, &late));
    assert!(taken.is_ok(), "nothing else refuses it: {taken:?}");
}

#[test]
fn a_stranger_and_a_confused_peer_are_refused() {
    let mut pair = Pair::in_sync(AckMode::Sync, OnPeerLoss::Continue);
    let mut hello: Hello = pair.sites[0].core.hello("b", &view(Lsn(1), pair.now));
    hello.site = "mallory".into();
    let link = Link(700);
    pair.wires.insert(link, Default::default());
    pair.handle(1, Event::Accepted(link));
    pair.handle(1, Event::Message(link, Message::Hello(Box::new(hello))));
    let refused = |a: &Action| matches!(a, Action::Send(_, Message::Refuse { .. }));
    let sends_refusal = |pair: &mut Pair| {
        let actions = pair.sites[1].core.take_actions(Vec::new());
        actions.iter().any(refused)
    };
    assert!(sends_refusal(&mut pair));
    let link = Link(701);
    pair.wires.insert(link, Default::default());
    pair.handle(1, Event::Accepted(link));
    let start = Start::Stream { from: Lsn(1) };
    pair.handle(1, Event::Message(link, Message::Start(Box::new(start))));
    assert!(sends_refusal(&mut pair));
    pair.settle();
    assert!(
        pair.sites[0].core.peers()[0].in_sync,
        "the real link is not disturbed"
    );
}
