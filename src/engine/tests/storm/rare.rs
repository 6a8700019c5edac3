//! Situations that chance alone hardly ever brings about: copies that clients write into and that are cut off, a primary whose
//! disk lost what its mirror has, and histories that forked. All of them are about a primary and its only mirror.

use std::time::Duration;

use super::plan::{Ending, Fault, Order};
use super::world::{Happening, World};
use crate::base::Lsn;
use crate::engine::tests::disk::Damage;
use crate::engine::{Force, Group};

/// Clients write to one part of the volume so often while a mirror is away, and then to the other part until the journal holds
/// nothing else.
const FIRST_ROUNDS: u32 = 12;

/// Between two of them.
const ROUND: Duration = Duration::from_millis(30);

/// A copy that is about to begin is waited for by looking so often ...
const LOOK: Duration = Duration::from_micros(400);

/// ... and no more than so many times.
const LOOKS: u32 = 5000;

/// What is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Awaited {
    /// The event that is about it.
    event: usize,
    /// Who was mirror when it began.
    mirror: usize,
    /// Before a copy, the journal of the primary is to begin after this one.
    after: Lsn,
    tries: u32,
}

impl World {
    fn serves(&self, at: usize) -> bool {
        let exports = self.sites[at].exports.as_ref();
        self.alive(at) && exports.is_some_and(|e| e.open.is_ok())
    }

    /// Who answers clients.
    fn serving(&self) -> Option<usize> {
        (0..2).find(|at| self.serves(*at))
    }

    /// All clients ask, again and again.
    fn keep_asking(&mut self, from: Duration, every: Duration, times: u32) {
        for client in 0..self.clients.len() {
            if self.clients[client].at.is_none() {
                self.clients[client].left += 8;
                self.later(Duration::ZERO, Happening::Client(client));
            }
        }
        for n in 0..times {
            for client in 0..self.clients.len() {
                // Not in the moment in which it attaches: it would go away before it is there.
                let after = from + every * n + Duration::from_micros(1);
                self.later(after, Happening::Burst(client));
            }
        }
    }

    /// Clients write while the mirror is away, so much that it is copied to when it comes back.
    pub fn fall_behind_for_a_copy(&mut self, event: usize) {
        let Some(primary) = self.serving().filter(|at| self.alive(1 - *at)) else {
            return;
        };
        let mirror = 1 - primary;
        self.crash(mirror, Duration::from_secs(30), false, None);
        self.await_next(Awaited {
            event,
            mirror,
            after: Lsn::ZERO,
            tries: LOOKS,
        });
    }

    /// The next step of what such an event brings about, if it is time for it.
    pub fn await_next(&mut self, mut awaited: Awaited) {
        if self.healing || awaited.tries == 0 {
            return;
        }
        awaited.tries -= 1;
        match self.plan.events[awaited.event].fault {
            Fault::Fork {
                quiet,
                within,
                down,
            } => self.await_fork(awaited, quiet, within, down),
            _ => self.await_copy(awaited),
        }
    }

    fn await_copy(&mut self, mut awaited: Awaited) {
        let pause = if !self.alive(awaited.mirror) {
            self.fill_the_journal(&mut awaited);
            ROUND
        } else if self.copy_is_ripe(awaited) {
            return self.disturb_the_copy(awaited);
        } else {
            LOOK
        };
        self.later(pause, Happening::Await(awaited));
    }

    fn fill_the_journal(&mut self, awaited: &mut Awaited) {
        let (mirror, primary) = (awaited.mirror, 1 - awaited.mirror);
        let first_half = LOOKS - awaited.tries <= FIRST_ROUNDS;
        self.half = Some(usize::from(!first_half));
        self.keep_asking(Duration::ZERO, ROUND / 2, 2);
        let Some(group) = self.sites[primary].group.as_ref() else {
            return;
        };
        if first_half {
            awaited.after = group.frames.sealed();
        } else if group.log.first_lsn() > awaited.after {
            self.come_back(awaited.event, mirror);
        }
    }

    /// The mirror starts, and homes are slow.
    fn come_back(&mut self, event: usize, mirror: usize) {
        let fault = self.plan.events[event].fault.clone();
        let Fault::Copy { slow, ending, .. } = fault else {
            unreachable!("a copy is waited for");
        };
        self.sites[mirror].slow_homes = slow[0];
        self.sites[1 - mirror].slow_homes = slow[1];
        self.start(mirror);
        // For a cut before the copy, clients stay in their half: what is written all over would show where to look.
        if ending == Ending::CutBefore {
            // What is kept is to be durable before the copy begins.
            self.sites[mirror].slow_sync = 30;
        } else {
            self.half = None;
        }
        self.later(Duration::from_secs(3), Happening::Over(Box::new(fault)));
    }

    fn copy_is_ripe(&self, awaited: Awaited) -> bool {
        let fault = &self.plan.events[awaited.event].fault;
        let proposed = |group: &Group| {
            let mut streams = group.streams.values();
            streams.any(|s| s.walk.is_some() && !s.has_started())
        };
        let before = matches!(
            fault,
            Fault::Copy {
                ending: Ending::CutBefore,
                ..
            }
        );
        let primary = self.sites[1 - awaited.mirror].group.as_ref();
        self.is_copied_to(awaited.mirror) || before && primary.is_some_and(proposed)
    }

    /// Clients write into what is being copied, and then something ends that.
    fn disturb_the_copy(&mut self, awaited: Awaited) {
        let (mirror, primary) = (awaited.mirror, 1 - awaited.mirror);
        let Fault::Copy { within, ending, .. } = self.plan.events[awaited.event].fault else {
            unreachable!("a copy is waited for");
        };
        self.note(|| "the copy has begun".into());
        if ending != Ending::CutBefore {
            self.keep_asking(Duration::ZERO, Duration::from_millis(2), 20);
        }
        match ending {
            Ending::Nothing => {}
            Ending::CutBefore => self.later(within / 10, Happening::Cut),
            Ending::Cut => self.later(within, Happening::Cut),
            Ending::MirrorDies => {
                let down = Duration::from_secs(1);
                self.later(within, Happening::Die(mirror, down));
            }
            Ending::PrimaryDies => {
                self.later(within, Happening::Die(primary, Duration::from_secs(6)));
                self.take_what_it_held(mirror, within);
            }
            Ending::MirrorDiesAfter => self.sites[mirror].dies_when_consistent = true,
        }
    }

    pub fn is_copied_to(&self, at: usize) -> bool {
        let group = self.sites[at].group.as_ref();
        group.is_some_and(|g| g.core.facts().inconsistent_until.is_some())
    }

    /// The primary comes back without part of its journal and without its mirror, and is told to serve.
    pub fn lose_history(&mut self, damage: Damage, down: Duration, lasting: Duration) {
        let Some(primary) = self.serving() else {
            return;
        };
        self.crash(primary, down, false, Some(damage));
        if self.fragile != Some(primary) {
            return;
        }
        self.unreachable_until = [self.now + down + lasting; 3];
        for part in 1..4 {
            let order = Order::Promote(vec![Force::PeerUnreachable]);
            let after = down + lasting * part / 5;
            self.later(after, Happening::Order(primary, order));
        }
    }

    /// Both acknowledge, and then the one who was primary first asks the other one.
    pub fn fork(&mut self, event: usize) {
        let Some(primary) = self.serving().filter(|at| self.alive(1 - *at)) else {
            return;
        };
        self.unreachable_until = [self.now + Duration::from_secs(60); 3];
        self.keep_asking(Duration::ZERO, ROUND / 4, 2);
        self.await_next(Awaited {
            event,
            mirror: 1 - primary,
            after: Lsn::ZERO,
            tries: LOOKS,
        });
    }

    fn await_fork(&mut self, awaited: Awaited, quiet: bool, within: Duration, down: Duration) {
        let (mirror, primary) = (awaited.mirror, 1 - awaited.mirror);
        if quiet {
            return self.await_quiet_fork(awaited);
        }
        if self.sites[primary].alone.is_empty() {
            return self.later(ROUND, Happening::Await(awaited));
        }
        self.keep_asking(Duration::ZERO, ROUND, 1);
        if self.serves(mirror) && self.serves(primary) {
            self.unreachable_until = [self.now + within + down; 3];
            self.later(within, Happening::Die(primary, down));
            return;
        }
        if !self.sites[mirror].forced {
            self.promote_later(mirror, Duration::ZERO);
        }
        self.later(ROUND, Happening::Await(awaited));
    }

    /// The primary dies when it has just acknowledged alone what was under way.
    fn await_quiet_fork(&mut self, awaited: Awaited) {
        let (mirror, primary) = (awaited.mirror, 1 - awaited.mirror);
        let first = LOOKS - awaited.tries == 1;
        if first {
            self.sites[primary].dies_when_alone = true;
        } else if !self.alive(primary) && self.serves(mirror) {
            self.unreachable_until = [self.now; 3];
            return self.start(primary);
        } else if !self.alive(primary) && !self.sites[mirror].forced {
            self.promote_later(mirror, Duration::ZERO);
        }
        self.later(ROUND, Happening::Await(awaited));
    }

    /// A site has finished a batch: does it die, as was planned?
    pub fn meets_its_fate(&mut self, at: usize) {
        let site = &mut self.sites[at];
        if !site.alone.is_empty() && std::mem::take(&mut site.dies_when_alone) {
            let down = Duration::from_secs(30);
            let after = Duration::from_micros(self.rng.below(120));
            self.later(after, Happening::Die(at, down));
        }
    }
}
