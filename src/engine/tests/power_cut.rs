//! Power cuts at every step of seeded workloads: nothing acknowledged is lost, on either site.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::sim::Sim;
use crate::base::sabotage::Sabotage;
use crate::base::{AckMode, OnPeerLoss};

fn pair(seed: u64, ack: AckMode) -> Sim {
    let mut sim = Sim::new(seed, ack, OnPeerLoss::Continue);
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    sim
}

/// Reads everything through a serving site and holds it against what was acknowledged.
fn verify(sim: &mut Sim, at: usize) -> Result<(), String> {
    if !sim.attach(at) {
        return Err(format!(
            "{} does not serve:\n{}",
            sim.sites[at].name,
            sim.logs()
        ));
    }
    let content = sim.read_all(at);
    sim.record.check(0, &content)?;
    sim.record.settle(0, &content);
    if let Some(text) = sim.violations.first() {
        return Err(text.clone());
    }
    Ok(())
}

fn load(sim: &mut Sim, requests: u64, steps_each: u64) {
    for _ in 0..requests {
        if sim.outstanding() < 32 {
            sim.random_request();
        }
        for _ in 0..sim.rng.below(steps_each + 1) {
            sim.step();
        }
    }
}

/// One life: load, a cut at a random step, recovery, verification; several times over.
fn life(seed: u64, ack: AckMode) -> Result<u64, String> {
    let mut sim = pair(seed, ack);
    for round in 0..4 {
        let requests = 20 + sim.rng.below(150);
        load(&mut sim, requests, 6);
        // Now and then a checkpoint falls into the workload.
        if sim.rng.below(3) == 0 {
            sim.now += Duration::from_secs(11);
            sim.input(0, crate::engine::Input::Tick);
            sim.input(1, crate::engine::Input::Tick);
            // And the cut into the checkpoint.
            let requests = sim.rng.below(12);
            load(&mut sim, requests, 3);
        }
        match sim.rng.below(4) {
            // The primary: it comes back and serves again.
            0 => {
                sim.kill(0);
                sim.settle();
                sim.start(0).map_err(|e| e.to_string())?;
            }
            // The mirror: the primary goes on without it, then brings it in sync.
            1 => {
                sim.kill(1);
                load(&mut sim, 30, 6);
                sim.start(1).map_err(|e| e.to_string())?;
            }
            // Both at once, and the recovery of one is cut off, too.
            2 => {
                sim.kill(0);
                sim.kill(1);
                sim.start(1).map_err(|e| e.to_string())?;
                for _ in 0..sim.rng.below(10) {
                    sim.step();
                }
                sim.kill(1);
                sim.start(0).map_err(|e| e.to_string())?;
                sim.start(1).map_err(|e| e.to_string())?;
            }
            // The primary for good, as far as the mirror knows: it is promoted, then the old one returns.
            _ => {
                if !sim.in_sync() {
                    sim.heal();
                }
                let primary = sim.attached().unwrap_or(0);
                sim.kill(primary);
                sim.settle();
                sim.promote(1 - primary)?;
                verify(&mut sim, 1 - primary)
                    .map_err(|e| format!("promoted mirror, round {round}: {e}"))?;
                load(&mut sim, 30, 6);
                sim.start(primary).map_err(|e| e.to_string())?;
            }
        }
        if ack == AckMode::Sync || sim.alive(0) && sim.alive(1) {
            sim.heal();
        }
        let serving = sim.attached().ok_or("nobody serves")?;
        verify(&mut sim, serving).map_err(|e| format!("round {round}: {e}\n{}", sim.logs()))?;
        let [a, b] = sim.homes();
        if a != b {
            let at = a.iter().zip(&b).position(|(x, y)| x != y).unwrap_or(0);
            return Err(format!(
                "round {round}: the homes differ at byte {at} while in sync"
            ));
        }
    }
    Ok(sim.acked)
}

#[test]
fn nothing_acknowledged_is_lost_by_power_cuts_in_sync_mode() {
    let mut acked = 0;
    for seed in 0..std::env::var("SEEDS").map_or(60, |s| s.parse().unwrap()) {
        acked += life(seed, AckMode::Sync).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    assert!(
        acked > 1000,
        "only {acked} writes were acknowledged: the test shows nothing"
    );
}

/// Runs seeds until one fails; a panic counts.
fn first_failure(seeds: u64, sabotage: Sabotage) -> Option<u64> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = sabotage.during(|| {
        (0..seeds).find(|&seed| {
            !matches!(
                catch_unwind(AssertUnwindSafe(|| life(seed, AckMode::Sync))),
                Ok(Ok(_))
            )
        })
    });
    std::panic::set_hook(hook);
    found
}

#[test]
fn without_dsync_the_test_fails() {
    assert!(first_failure(60, Sabotage::NoDsync).is_some());
}

#[test]
fn without_the_wal_rule_the_test_fails() {
    assert!(first_failure(60, Sabotage::ApplyUncommitted).is_some());
}

#[test]
fn with_checkpoints_before_the_sync_the_test_fails() {
    assert!(first_failure(60, Sabotage::CheckpointBeforeSync).is_some());
}
