//! After the trouble: everything works again, an operator does what `status` asks for, and within bounded time all
//! sites must be in sync.

use std::cmp::Reverse;
use std::time::Duration;

use super::ledger::{Promise, Waiver};
use super::world::{Happening, NAMES, World, site_named};
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
        self.unreachable_until = [self.now; 3];
        self.apart_until.clear();
        // What was held back arrives now, the end of a connection, too.
        for link in self.wires.keys().copied().collect::<Vec<_>>() {
            for to in self.wires[&link].ends {
                self.later(Duration::ZERO, Happening::Arrive { link, to });
            }
        }
        for at in 0..self.sites.len() {
            let site = &mut self.sites[at];
            (site.slow, site.slow_homes, site.slow_sync) = (1, 1, 1);
            (site.dies_when_alone, site.dies_when_consistent) = (false, false);
            site.disk.free_bytes = None;
            site.disk.fail_next_journal_write = false;
            site.disk.fail_next_home_sync = false;
            site.disk.fail_next_home_write = false;
            // What was begun while the disk was slow would take as long as it did then.
            let (life, under_way) = (site.life, site.disk.under_way());
            for id in under_way {
                let done = Happening::DiskDone { site: at, life, id };
                self.later(Duration::from_millis(5), done);
            }
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

    /// No more requests; what was asked is answered and applied on all sides.
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

    /// What was promised is there, and the same on all sides.
    fn come_to_rest(&mut self) {
        self.rest();
        if self.violation.is_some() {
            return;
        }
        for at in 0..self.sites.len() {
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
        let alone = self.sites.iter().flat_map(|site| &site.alone);
        self.left = alone.map(|peer| site_named(peer)).collect();
        for site in &mut self.sites {
            site.forced = false;
            site.ordered = false;
        }
        self.note(|| "healed".into());
    }

    /// Enough of all sites' status to see what they wait for.
    fn summary(&mut self) -> Vec<String> {
        let said = |s: GroupStatus| {
            let lsns = [
                s.tail_lsn,
                s.durable_lsn,
                s.commit_lsn,
                s.applied_lsn,
                s.checkpoint_lsn,
            ];
            let peers: Vec<_> = s.peers.iter().map(|p| p.state).collect();
            format!(
                "{:?} ({}), {peers:?}, LSNs {lsns:?}, {:?}",
                s.state, s.reason, s.journal
            )
        };
        let sites = 0..self.sites.len();
        sites.filter_map(|at| self.status(at).map(said)).collect()
    }

    fn is_idle(&mut self) -> bool {
        let applied = |s: &GroupStatus| s.applied_lsn == s.tail_lsn;
        let all = self.all_status();
        self.ledger.open.is_empty()
            && all.iter().flatten().all(applied)
            && all
                .windows(2)
                .all(|s| s[0].as_ref().map(|s| s.tail_lsn) == s[1].as_ref().map(|s| s.tail_lsn))
    }

    fn all_status(&mut self) -> Vec<Option<GroupStatus>> {
        (0..self.sites.len()).map(|at| self.status(at)).collect()
    }

    fn is_healed(&mut self) -> bool {
        // Who sleeps is still in the state of before, and its peers may not have missed it yet.
        if (0..self.sites.len()).any(|at| self.paused(at)) {
            return false;
        }
        let all = self.all_status();
        let serving = |s: &GroupStatus| {
            s.state == GroupState::Serving && s.peers.iter().all(|p| p.state == PeerState::InSync)
        };
        let following = |s: &GroupStatus| s.state == GroupState::Following;
        let count = |which: &dyn Fn(&GroupStatus) -> bool| {
            all.iter().flatten().filter(|s| which(s)).count()
        };
        count(&serving) == 1 && count(&following) == all.len() - 1
    }

    /// What an operator does who reads `status` once a second.
    fn look_after(&mut self, operator: &mut Operator) {
        for at in 0..self.sites.len() {
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
        let all: Option<Vec<GroupStatus>> = self.all_status().into_iter().collect();
        let Some(all) = all else {
            return;
        };
        let conflicts = self.conflicts(&all);
        if !conflicts.is_empty() {
            operator.conflict_for += 1;
            if operator.conflict_for > 3 {
                operator.conflict_for = 0;
                self.end_fork(&all, &conflicts);
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
        if all.iter().any(|s| serves(&s)) {
            operator.nobody_since = None;
            return;
        }
        let since = *operator.nobody_since.get_or_insert(self.now);
        if self.now < since + PATIENCE {
            return;
        }
        operator.nobody_since = Some(self.now);
        operator.attempts += 1;
        self.find_a_primary(operator.attempts, &all);
    }

    /// Who says that it cannot go together with whom.
    fn conflicts(&self, all: &[GroupStatus]) -> Vec<[usize; 2]> {
        let mut found = Vec::new();
        for (at, site) in self.sites.iter().enumerate() {
            let Some(group) = &site.group else { continue };
            for peer in group.core.peers().iter().filter(|p| p.conflict.is_some()) {
                let pair = [at, site_named(&peer.name)];
                // What a mirror says of a peer that was emptied since is old: it is to be promoted.
                if pair.iter().all(|at| all[*at].tail_lsn > Lsn::ZERO) {
                    found.push(pair);
                }
            }
        }
        found
    }

    /// One side's writes are given up: the one's that does not serve, or has less.
    fn end_fork(&mut self, all: &[GroupStatus], conflicts: &[[usize; 2]]) {
        let usable = |at: usize| !all[at].inconsistent && self.fragile != Some(at);
        let serves = |at: usize| {
            self.sites[at]
                .exports
                .as_ref()
                .is_some_and(|e| e.open.is_ok())
        };
        let rank = |at: usize| (usable(at), serves(at), all[at].tail_lsn, Reverse(at));
        let keep = conflicts
            .iter()
            .flatten()
            .copied()
            .max_by_key(|at| rank(*at));
        let keep = keep.expect("a conflict");
        let against = conflicts.iter().filter(|pair| pair.contains(&keep));
        let against = against.flatten().copied().filter(|at| *at != keep);
        let loser = against.min_by_key(|at| rank(*at)).expect("a conflict");
        self.discard(loser);
        self.start(loser);
    }

    /// A site is emptied: what only it had is given up.
    fn discard(&mut self, at: usize) {
        let kept = |p: &&Promise| {
            self.others(at)
                .any(|other| self.sites[other].chain.contains(p.place))
        };
        let given_up: Vec<Promise> = self
            .ledger
            .standing()
            .filter(|p| !kept(p))
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

    /// Nobody serves: the one that has most is promoted; if that is refused, another one; by force only if nothing else
    /// helps.
    fn find_a_primary(&mut self, attempt: u64, all: &[GroupStatus]) {
        let consistent = |at: usize| !all[at].inconsistent;
        let usable = |at: usize| consistent(at) && self.fragile != Some(at);
        let rank = |at: usize| (usable(at), all[at].tail_lsn, Reverse(at));
        let mut sites: Vec<usize> = (0..all.len()).collect();
        sites.sort_by_key(|at| Reverse(rank(*at)));
        let second = sites[1 + (attempt / 4) as usize % (sites.len() - 1)];
        let chosen = if attempt % 4 == 3 && consistent(second) {
            second
        } else {
            sites[0]
        };
        let reasons: Vec<&String> = all.iter().map(|s| &s.reason).collect();
        self.note(|| format!("nobody serves: {reasons:?}"));
        let leads = |at: &usize| all[*at].role == Role::Primary;
        let primary = self.others(chosen).find(leads);
        if let Some(primary) = primary.filter(|_| attempt.is_multiple_of(2)) {
            self.command(primary, Command::Demote);
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
