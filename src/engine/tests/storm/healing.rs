//! After the trouble: everything works again, an operator does what `status` asks for, and within bounded time both
//! sites must be in sync.

use std::time::Duration;

use super::ledger::{Promise, Waiver};
use super::world::{Happening, NAMES, World};
use crate::base::{Lsn, Role};
use crate::engine::{Command, Force};
use crate::status::{GroupState, GroupStatus, PeerState};

/// Everything must be in sync again by then.
const HEALED_WITHIN: Duration = Duration::from_secs(240);

/// Requests must be answered by then.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// Nobody serves for so long before an operator is called.
const PATIENCE: Duration = Duration::from_secs(15);

impl World {
    /// A time of trouble, and the healing after it.
    pub fn phase(&mut self, phase: usize) {
        (self.healing, self.resting) = (false, false);
        let start = self.now;
        for index in 0..self.plan.events.len() {
            let event = &self.plan.events[index];
            if event.phase == phase {
                let at = event.at;
                self.later(at, Happening::Fault(index));
            }
        }
        let requests = if self.plan.large { 40 } else { 120 };
        for client in 0..self.clients.len() {
            self.clients[client].left = 20 + self.rng.below(requests);
            self.later(Duration::ZERO, Happening::Client(client));
        }
        let end = start + self.plan.phases[phase];
        while self.step(end) {}
        if self.violation.is_none() {
            self.heal();
        }
    }

    fn everything_works_again(&mut self) {
        self.healing = true;
        self.latency = Duration::from_micros(50);
        self.half = None;
        self.unreachable_until = [self.now; 2];
        // What was held back arrives now, the end of a connection, too.
        for link in self.wires.keys().copied().collect::<Vec<_>>() {
            for to in 0..2 {
                self.later(Duration::ZERO, Happening::Arrive { link, to });
            }
        }
        for at in 0..2 {
            let site = &mut self.sites[at];
            (site.slow, site.slow_homes, site.slow_sync) = (1, 1, 1);
            (site.dies_when_alone, site.dies_when_consistent) = (false, false);
            site.disk.free_bytes = None;
            site.disk.fail_next_journal_write = false;
            site.disk.fail_next_home_sync = false;
            site.disk.fail_next_home_write = false;
            if self.alive(at) {
                self.command(at, Command::Connect);
            }
        }
    }

    fn heal(&mut self) {
        self.note(|| "the world heals".into());
        self.everything_works_again();
        let deadline = self.now + HEALED_WITHIN;
        let mut operator = Operator::default();
        while self.violation.is_none() && !self.is_healed() {
            if self.now >= deadline {
                let status = self.summary();
                self.violate(format!(
                    "does not heal within {HEALED_WITHIN:?}: {status:?}"
                ));
                return;
            }
            self.look_after(&mut operator);
            let until = self.now + Duration::from_secs(1);
            while self.step(until) {}
        }
        self.come_to_rest();
        if self.violation.is_none() && self.decay.below(3) == 0 {
            self.examine();
        }
    }

    /// No more requests; what was asked is answered and applied on both sides.
    pub fn rest(&mut self) {
        self.resting = true;
        for client in &mut self.clients {
            client.left = 0;
        }
        let mut operator = Operator::default();
        let deadline = self.now + ANSWERED_WITHIN;
        while self.violation.is_none() && !(self.is_idle() && self.is_healed()) {
            if self.now >= deadline {
                let open: Vec<_> = self.ledger.open.values().take(4).collect();
                let text = format!("does not come to rest: {open:?}");
                let text = format!("{text} {:?}", self.summary());
                self.violate(text);
            }
            self.look_after(&mut operator);
            let until = self.now + Duration::from_millis(500);
            while self.step(until) {}
        }
    }

    /// What was promised is there, and the same on both sides.
    fn come_to_rest(&mut self) {
        self.rest();
        if self.violation.is_some() {
            return;
        }
        for at in 0..2 {
            let result = self.compare(at);
            self.check(result);
        }
        let result = self.homes_are_equal();
        self.check(result);
        let lost = self
            .ledger
            .standing()
            .find(|p| !self.sites[0].chain.contains(p.place))
            .copied();
        if let Some(lost) = lost {
            self.violate(format!("after the healing {lost:?} is not in the history"));
        }
        self.fragile = None;
        self.overridden = false;
        for site in &mut self.sites {
            site.forced = false;
        }
        self.note(|| "healed".into());
    }

    /// Enough of both sites' status to see what they wait for.
    fn summary(&mut self) -> Vec<String> {
        let said = |s: GroupStatus| {
            let lsns = [
                s.tail_lsn,
                s.durable_lsn,
                s.commit_lsn,
                s.applied_lsn,
                s.checkpoint_lsn,
            ];
            format!(
                "{:?} ({}), {:?}, LSNs {lsns:?}, {:?}",
                s.state, s.reason, s.peers[0].state, s.journal
            )
        };
        (0..2).filter_map(|at| self.status(at).map(said)).collect()
    }

    fn is_idle(&mut self) -> bool {
        let applied = |s: &GroupStatus| s.applied_lsn == s.tail_lsn;
        let both = [0, 1].map(|at| self.status(at));
        self.ledger.open.is_empty()
            && both.iter().flatten().all(applied)
            && both[0].as_ref().map(|s| s.tail_lsn) == both[1].as_ref().map(|s| s.tail_lsn)
    }

    fn is_healed(&mut self) -> bool {
        // Who sleeps is still in the state of before, and its peer may not have missed it yet.
        if [0, 1].iter().any(|at| self.paused(*at)) {
            return false;
        }
        let states = [0, 1].map(|at| self.status(at));
        let [Some(a), Some(b)] = &states else {
            return false;
        };
        let serving = |s: &GroupStatus| {
            s.state == GroupState::Serving && s.peers.iter().all(|p| p.state == PeerState::InSync)
        };
        let following = |s: &GroupStatus| s.state == GroupState::Following;
        serving(a) && following(b) || serving(b) && following(a)
    }

    /// What an operator does who reads `status` once a second.
    fn look_after(&mut self, operator: &mut Operator) {
        for at in 0..2 {
            let gone = self.sites[at].stopped
                || self
                    .status(at)
                    .is_some_and(|s| s.state == GroupState::Fenced);
            if gone {
                self.kill(at, false);
            }
            if !self.alive(at) {
                self.start(at);
            }
        }
        let states = [0, 1].map(|at| self.status(at));
        let [Some(a), Some(b)] = &states else {
            return;
        };
        let both = [a, b];
        let conflict =
            |s: &&GroupStatus| matches!(s.state, GroupState::Forked | GroupState::BothPrimary);
        // What a mirror says of a peer that was emptied since is old: it is to be promoted.
        let settled = both.iter().any(|s| s.tail_lsn == Lsn::ZERO);
        if both.iter().any(conflict) && !settled {
            operator.conflict_for += 1;
            if operator.conflict_for > 3 {
                operator.conflict_for = 0;
                self.end_fork(&both.map(Clone::clone));
            }
            return;
        }
        operator.conflict_for = 0;
        let serves = |s: &&GroupStatus| {
            s.role == Role::Primary
                && !matches!(
                    s.state,
                    GroupState::Starting | GroupState::WaitingForPeer | GroupState::HandedOver
                )
        };
        if both.iter().any(serves) {
            operator.nobody_since = None;
            return;
        }
        let since = *operator.nobody_since.get_or_insert(self.now);
        if self.now < since + PATIENCE {
            return;
        }
        operator.nobody_since = Some(self.now);
        operator.attempts += 1;
        self.find_a_primary(operator.attempts, &both.map(Clone::clone));
    }

    /// One side's writes are given up: the one's that does not serve, or has less.
    fn end_fork(&mut self, both: &[GroupStatus; 2]) {
        let usable =
            |at: usize| both[at].inconsistent_until_lsn.is_none() && self.fragile != Some(at);
        let serves = |at: usize| {
            self.sites[at]
                .exports
                .as_ref()
                .is_some_and(|e| e.open.is_ok())
        };
        let rank = |at: usize| (usable(at), serves(at), both[at].tail_lsn);
        let keep = usize::from(rank(1) > rank(0));
        self.discard(1 - keep);
        self.start(1 - keep);
    }

    /// A site is emptied: what only it had is given up.
    fn discard(&mut self, at: usize) {
        let kept = &self.sites[1 - at].chain;
        let given_up: Vec<Promise> = self
            .ledger
            .standing()
            .filter(|p| !kept.contains(p.place))
            .copied()
            .collect();
        for promise in given_up {
            self.note(|| format!("{promise:?} is given up"));
            self.ledger.waive(&promise, Waiver::Discarded);
        }
        self.kill(at, false);
        self.empty(at);
        if self.fragile == Some(at) {
            self.fragile = None;
        }
    }

    /// Nobody serves: the one that has most is promoted; if that is refused, the other one; by force only if nothing else
    /// helps.
    fn find_a_primary(&mut self, attempt: u64, both: &[GroupStatus; 2]) {
        let usable =
            |at: usize| both[at].inconsistent_until_lsn.is_none() && self.fragile != Some(at);
        let rank = |at: usize| (usable(at), both[at].tail_lsn);
        let better = usize::from(rank(1) > rank(0));
        let chosen = if attempt % 4 == 3 && both[1 - better].inconsistent_until_lsn.is_none() {
            1 - better
        } else {
            better
        };
        self.note(|| format!("nobody serves: {:?} {:?}", both[0].reason, both[1].reason));
        let other = 1 - chosen;
        if both[other].role == Role::Primary && attempt.is_multiple_of(2) {
            self.command(other, Command::Demote);
            return;
        }
        // Two mirrors that forked have each more than the other: only the operator can say whose surplus goes.
        let force = match attempt {
            0..=6 => Vec::new(),
            7..=9 => vec![Force::PeerUnreachable],
            _ => vec![Force::PeerUnreachable, Force::Behind],
        };
        self.command(chosen, Command::Promote { force });
        self.note(|| format!("{} is to become primary", NAMES[chosen]));
    }
}

/// What the operator remembers.
#[derive(Default)]
struct Operator {
    conflict_for: u32,
    nobody_since: Option<Duration>,
    attempts: u64,
}
