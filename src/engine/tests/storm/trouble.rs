//! What goes wrong, and that a correct system can survive it: never is the only copy of an acknowledged operation damaged.

use std::time::Duration;

use super::checks::record_in;
use super::plan::{Fault, Order};
use super::wires::Wire;
use super::world::{Happening, NAMES, World};
use crate::base::AckMode;
use crate::engine::tests::disk::Damage;
use crate::engine::{Command, File, Force};
use crate::status::GroupState;

impl World {
    /// A fault of the plan.
    pub fn strike(&mut self, index: usize) {
        if self.healing {
            return;
        }
        let fault = self.plan.events[index].fault.clone();
        self.note(|| format!("trouble {index}: {fault:?}"));
        let lasting = match &fault {
            Fault::Crash {
                site,
                down,
                silent,
                damage,
            } => {
                self.crash(*site, *down, *silent, *damage);
                None
            }
            Fault::CrashAll { down } => {
                for (site, down) in down.iter().enumerate().take(self.sites.len()) {
                    self.crash(site, *down, false, None);
                }
                None
            }
            Fault::Failover {
                site,
                silent,
                after,
                down,
            } => {
                self.crash(*site, *down, *silent, None);
                let other = self.another(*site);
                self.promote_later(other, *after);
                None
            }
            Fault::Split {
                site,
                after,
                lasting,
            } => {
                self.unreachable_until = [self.now + *lasting; 3];
                self.promote_later(*site, *after);
                None
            }
            // Of who is dead it would last beyond the death that it is for, and into the healed world.
            Fault::SlowSync { site, .. } if !self.alive(*site) => None,
            Fault::SlowSync { site, crash_after } => {
                self.sites[*site].slow_sync = 1000;
                self.hurry();
                let down = Duration::from_secs(1);
                self.later(*crash_after, Happening::Die(*site, down));
                None
            }
            Fault::Replace { site, alone_after } => {
                self.replace(*site, *alone_after);
                None
            }
            Fault::Pause { site, lasting } => {
                let until = &mut self.sites[*site].paused_until;
                *until = (*until).max(self.now + *lasting);
                None
            }
            Fault::CutLinks => {
                self.cut_links();
                None
            }
            Fault::Deaf { site, lasting } => {
                self.unreachable_until[*site] = self.now + *lasting;
                None
            }
            Fault::Partition { lasting } => {
                self.unreachable_until = [self.now + *lasting; 3];
                None
            }
            Fault::Apart { sites, lasting } => {
                let ends = Wire::between(sites[0], sites[1]).ends;
                self.apart_until.insert(ends, self.now + *lasting);
                None
            }
            Fault::SlowLink { by, lasting } => {
                self.latency = *by;
                Some(*lasting)
            }
            Fault::SlowDisk {
                site,
                factor,
                lasting,
            } => {
                self.sites[*site].slow = *factor;
                Some(*lasting)
            }
            Fault::FailJournalWrite { site } => {
                // Not both at once: what is in the memory of both would be lost with two disks.
                let failing = self.others(*site).any(|other| {
                    self.sites[other].disk.fail_next_journal_write
                        || self
                            .status(other)
                            .is_some_and(|s| s.state == GroupState::Fenced)
                });
                self.sites[*site].disk.fail_next_journal_write = self.alive(*site) && !failing;
                None
            }
            Fault::FailHomeSync { site } => {
                self.sites[*site].disk.fail_next_home_sync = self.alive(*site);
                None
            }
            Fault::FailHomeWrite { site } => {
                self.sites[*site].disk.fail_next_home_write = self.alive(*site);
                None
            }
            Fault::LittleSpace {
                site,
                free_bytes,
                lasting,
            } => {
                self.sites[*site].disk.free_bytes = Some(*free_bytes);
                Some(*lasting)
            }
            Fault::Behind { site, away, within } => {
                self.fall_behind(*site, *away, *within);
                None
            }
            Fault::Copy { .. } => {
                self.fall_behind_for_a_copy(index);
                None
            }
            Fault::LostHistory {
                damage,
                down,
                lasting,
            } => {
                self.lose_history(*damage, *down, *lasting);
                None
            }
            Fault::Fork { .. } => {
                self.fork(index);
                None
            }
            Fault::RotState { site } => {
                self.rot_state(*site);
                None
            }
            Fault::ClockJump { site, by_ms } => {
                self.sites[*site].skew_ms += by_ms;
                None
            }
            Fault::Order { site, order } => {
                self.order(*site, order);
                None
            }
        };
        if let Some(lasting) = lasting {
            self.later(lasting, Happening::Over(Box::new(fault)));
        }
    }

    /// A trouble that lasted is over.
    pub fn relieve(&mut self, fault: &Fault) {
        match fault {
            Fault::SlowLink { .. } => self.latency = Duration::from_micros(50),
            Fault::SlowDisk { site, .. } => self.sites[*site].slow = 1,
            Fault::Copy { .. } => {
                self.half = None;
                for site in &mut self.sites {
                    (site.slow_homes, site.slow_sync) = (1, 1);
                }
            }
            Fault::LittleSpace { site, .. } => self.sites[*site].disk.free_bytes = None,
            other => unreachable!("{other:?} does not last"),
        }
    }

    /// An operator who does not ask why.
    pub fn promote_later(&mut self, site: usize, after: Duration) {
        let order = Order::Promote(vec![Force::PeerUnreachable]);
        self.later(after, Happening::Order(site, order));
    }

    /// Clients write while the site is away, and it is copied to when it comes back.
    fn fall_behind(&mut self, site: usize, away: Duration, within: Duration) {
        self.crash(site, away, false, None);
        for n in 0..30 {
            for client in 0..self.clients.len() {
                let after = Duration::from_millis(n * 150) + Duration::from_secs(1);
                self.later(after, Happening::Burst(client));
            }
        }
        let tries = 2000;
        let watch = Happening::Watch {
            site,
            within,
            tries,
        };
        self.later(away, watch);
    }

    /// Waits for a copy that can be undone; then the one who copies dies.
    pub fn watch(&mut self, site: usize, within: Duration, tries: u32) {
        if self.healing || tries == 0 {
            return;
        }
        if !self.can_go_back(site) {
            let tries = tries - 1;
            let watch = Happening::Watch {
                site,
                within,
                tries,
            };
            self.later(Duration::from_millis(2), watch);
            return;
        }
        let lasting = within + Duration::from_secs(4);
        let slow = Fault::SlowDisk {
            site,
            factor: 100,
            lasting,
        };
        self.sites[site].slow = 100;
        self.later(lasting, Happening::Over(Box::new(slow)));
        let primary = self.primary_of(site);
        self.later(within, Happening::Die(primary, Duration::from_secs(6)));
        self.take_what_it_held(site, within);
    }

    /// An operator takes what a mirror held before the copy that its primary did not complete, once that died after so long.
    pub fn take_what_it_held(&mut self, site: usize, within: Duration) {
        let order = Order::Promote(vec![Force::Inconsistent, Force::PeerUnreachable]);
        for retry in 1..4 {
            let after = within + Duration::from_millis(900) * retry;
            self.later(after, Happening::Order(site, order.clone()));
        }
    }

    fn can_go_back(&self, at: usize) -> bool {
        let group = self.sites[at].group.as_ref();
        group.is_some_and(|g| g.undo.status().is_some())
    }

    /// All clients ask a lot at once.
    pub fn hurry(&mut self) {
        for n in 0..6 {
            for client in 0..self.clients.len() {
                let after = Duration::from_millis(n) * 3;
                self.later(after, Happening::Burst(client));
            }
        }
    }

    /// The site's disk is replaced, if the others hold all that it held.
    fn replace(&mut self, at: usize, alone_after: Option<Duration>) {
        if !self.alive(at) || !self.others_hold_all_of(at) {
            return;
        }
        self.kill(at, false);
        self.empty(at);
        let life = self.sites[at].life;
        self.later(
            Duration::from_millis(1),
            Happening::Start { site: at, life },
        );
        if let Some(after) = alone_after {
            let down = Duration::from_secs(3);
            let other = self.another(at);
            self.later(after, Happening::Die(other, down));
            for retry in 1..4 {
                self.promote_later(at, after + Duration::from_millis(10) * retry);
            }
        }
    }

    pub fn crash(&mut self, at: usize, down: Duration, silent: bool, damage: Option<Damage>) {
        if !self.alive(at) {
            return;
        }
        let damage = damage.filter(|_| self.others_hold_all_of(at));
        self.kill(at, silent);
        if let Some(damage) = damage
            && self.sites[at].disk.betray(damage, &mut self.rng)
        {
            self.note(|| format!("the journal of {} suffers: {damage:?}", NAMES[at]));
            self.fragile = Some(at);
            self.sites[at].robbed_until = self.sites[at].chain.head().0;
        }
        if self.decay.below(4) == 0 {
            self.rot_state(at);
        }
        let life = self.sites[at].life;
        self.later(down, Happening::Start { site: at, life });
    }

    /// One slot of the state file rots; never both, and never one while the other one may be torn.
    fn rot_state(&mut self, at: usize) {
        let disk = &mut self.sites[at].disk;
        if !disk.files().any(|file| file == File::State) {
            return; // a new disk, not started with yet
        }
        let [one, two] = disk.slots().map(|slot| record_in(&slot).0);
        let slot = if self.sites[at].group.is_none() {
            self.decay.below(2)
        } else if one == two && !self.sites[at].disk.is_busy(File::State) {
            // The one that is written first: the other one is whole until then.
            0
        } else {
            return;
        };
        if one > 0 && two > 0 {
            self.note(|| format!("slot {slot} of the state file of {} rots", NAMES[at]));
            self.sites[at].disk.rot_slot(slot, &mut self.decay);
        }
    }

    /// Whether each other site has on its disk whatever this one may have promised or told anybody, and would be asked
    /// before this one serves again.
    fn others_hold_all_of(&self, at: usize) -> bool {
        self.others(at).all(|other| self.holds_all_of(other, at))
    }

    fn holds_all_of(&self, other: usize, at: usize) -> bool {
        let (here, there) = (&self.sites[at], &self.sites[other]);
        let Some(group) = here.group.as_ref() else {
            return false;
        };
        let facts = group.core.facts();
        // A fenced site may hold a frame whose predecessor's write failed: it is torn off at the next start.
        let useless = |g: &crate::engine::Group| {
            g.core.facts().inconsistent_until.is_some() || g.core.is_fenced()
        };
        if there.group.as_ref().is_none_or(useless) {
            return false;
        }
        let committed = here.chain.at(group.core.commit());
        self.fragile.is_none()
            && !self.overridden
            && here.alone.is_empty()
            && facts.alone.is_empty()
            && facts.ever_in_sync
            && facts.inconsistent_until.is_none()
            && committed
                .is_none_or(|place| there.durable.contains(&place) && there.chain.contains(place))
            && self
                .ledger
                .standing()
                .all(|p| there.durable.contains(&p.place) && there.chain.contains(p.place))
            && self.plan.ack != AckMode::Async
    }

    pub fn order(&mut self, site: usize, order: &Order) {
        if self.healing || !self.alive(site) || self.paused(site) {
            return;
        }
        let command = match order {
            Order::Promote(force) => {
                // A disk that betrayed its owner is not told to go on without the one who knows better.
                if self.fragile == Some(site) && force.contains(&Force::PeerUnreachable) {
                    let known = self.sites[site].group.as_ref();
                    let known = known.is_some_and(|g| g.core.facts().floor > g.core.tail());
                    if !known {
                        return;
                    }
                }
                // Nobody takes a mix of old and new content.
                if force.contains(&Force::Inconsistent) && !self.can_go_back(site) {
                    return;
                }
                Command::Promote {
                    force: force.clone(),
                }
            }
            Order::Demote => Command::Demote,
            Order::Switchover => Command::Switchover,
            Order::Disconnect => Command::Disconnect,
            Order::Connect => Command::Connect,
            Order::Stop => Command::Shutdown,
            Order::Grow { volume, by } => {
                let group = self.sites[site].group.as_ref().expect("alive");
                let volume = format!("v{volume}");
                let Some(known) = group.volumes.iter().find(|v| v.name == volume) else {
                    return;
                };
                Command::Resize {
                    size: known.size + by,
                    volume,
                }
            }
        };
        self.command(site, command);
    }
}
