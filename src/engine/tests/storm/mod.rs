//! A whole world under one seed: two or three sites, their disks, the network, clients, operators, and everything that can go
//! wrong with them, for the very code that runs in production. `checks` holds every moment against what is promised.
//!
//! A seed gives the whole run, bit for bit. `tools/sim` runs, replays and shrinks seeds.

mod checks;
mod clients;
mod healing;
mod history;
mod homes;
mod hunt;
mod ledger;
mod mutations;
mod plan;
mod rare;
mod trouble;
mod wires;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use ledger::Waiver;
use plan::Plan;
use world::World;

/// What came of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub violation: Option<String>,
    pub trace: Vec<String>,
    pub events: u64,
    pub acknowledged: u64,
    pub reads: u64,
    pub refused: u64,
    /// Promises that were not kept, and why they need not be.
    pub waived: BTreeMap<Waiver, u64>,
    /// Tells two runs apart.
    pub fingerprint: u64,
}

/// Runs a plan. A panic of the code under test is a violation like any other.
pub fn run(plan: Plan, traced: bool) -> Report {
    let mut world = World::new(plan);
    if traced {
        world.trace = Some(Vec::new());
        let plan = format!("{:#?}", world.plan);
        world.note(|| plan);
    }
    let ended = catch_unwind(AssertUnwindSafe(|| live(&mut world)));
    if let Err(panic) = ended {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world.violate(format!("panic: {}", text.unwrap_or_default()));
    }
    let mut waived = BTreeMap::new();
    for waiver in world.ledger.waived.values() {
        *waived.entry(*waiver).or_default() += 1;
    }
    Report {
        violation: world.violation,
        trace: world.trace.unwrap_or_default(),
        events: world.events,
        acknowledged: world.ledger.acknowledged,
        reads: world.ledger.reads,
        refused: world.ledger.refused,
        waived,
        fingerprint: world.rng.next(),
    }
}

fn live(world: &mut World) {
    for at in (0..world.sites.len()).rev() {
        world.start(at);
    }
    for phase in 0..world.plan.phases.len() {
        if world.violation.is_none() {
            world.phase(phase);
        }
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Without the messages of panics in this thread, which are violations here.
fn quietly<T>(call: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = call();
    QUIET.set(false);
    result
}
