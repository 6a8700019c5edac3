//! When checkpoints are made, how fast the homes are to be synced for them, and what the journal keeps meanwhile.

use std::time::Duration;

use super::resync::{assert_same, pair};
use super::sim::{Sim, VOLUME};
use crate::base::{AckMode, ByteRange, ChunkSet, Compress, OnPeerLoss};
use crate::engine::Command;

/// Writes to the primary and says what share of a sync is due then.
fn write(sim: &mut Sim, n: u64) -> f64 {
    sim.write(0, ByteRange::new(n % 8 * (VOLUME / 8), VOLUME / 8), false);
    sim.settle();
    due(sim)
}

fn due(sim: &Sim) -> f64 {
    sim.sites[0].group.as_ref().expect("alive").sync_due()
}

/// Writes until a checkpoint has begun, whose syncs are held. How many writes that took.
fn begin_checkpoint(sim: &mut Sim) -> u64 {
    sim.hold_home_syncs(0, true);
    let first = (0..400).find(|&n| write(sim, n) < 1.0);
    first.expect("a checkpoint begins sooner or later") + 1
}

#[test]
fn homes_are_to_be_synced_as_fast_as_the_journal_fills() {
    let mut sim = pair(11);
    assert!(due(&sim) >= 1.0, "nothing is under way");
    let before = sim.status(0);
    let until_begun = begin_checkpoint(&mut sim);
    let begun = due(&sim);
    assert!(begun < 0.05, "{begun}");
    let mut last = begun;
    let mut until_due = 0;
    while last < 1.0 {
        until_due += 1;
        let now = write(&mut sim, until_due);
        assert!(now > last, "{now} after {last}");
        last = now;
    }
    // One checkpoint takes as much of the journal as lies between two, and some is left for a disk that got slower.
    let shares = until_due as f64 / until_begun as f64;
    assert!((0.6..1.2).contains(&shares), "{until_due}, {until_begun}");
    assert_eq!(sim.outstanding(), 0, "nobody waits for room yet");
    assert_eq!(sim.status(0).checkpoint_lsn, before.checkpoint_lsn);
    sim.hold_home_syncs(0, false);
    sim.settle();
    assert!(sim.status(0).checkpoint_lsn > before.checkpoint_lsn);
    assert_same(&mut sim);
}

#[test]
fn who_stops_does_not_wait_for_a_checkpoint_that_takes_its_time() {
    let mut sim = pair(12);
    begin_checkpoint(&mut sim);
    assert!(due(&sim) < 1.0);
    sim.command(0, Command::Shutdown);
    sim.settle();
    assert!(due(&sim) >= 1.0);
    sim.hold_home_syncs(0, false);
    sim.pass(Duration::from_secs(6));
    assert!(sim.sites[0].stopped, "{}", sim.logs());
}

#[test]
fn who_wants_a_sync_of_his_own_does_not_wait_for_a_checkpoint_that_takes_its_time() {
    let mut sim = pair(14);
    begin_checkpoint(&mut sim);
    assert!(due(&sim) < 1.0);
    let (volume, size) = ("v".into(), 2 * VOLUME);
    let resize = sim.command(0, Command::Resize { volume, size });
    sim.settle();
    assert!(due(&sim) >= 1.0, "{}", sim.logs());
    sim.hold_home_syncs(0, false);
    sim.settle();
    assert!(sim.answers[&resize].is_ok());
}

/// Whoever goes on asking is answered elsewhere.
#[test]
fn who_stops_waits_for_nothing_that_was_not_admitted() {
    let mut sim = pair(15);
    let before = sim.status(1).durable_lsn.0;
    sim.hold_journal(0, true);
    for n in 0..40 {
        sim.write(0, ByteRange::new(n % 8 * (VOLUME / 8), VOLUME / 8), false);
    }
    sim.settle();
    sim.command(0, Command::Shutdown);
    sim.write(0, ByteRange::new(0, VOLUME / 8), false);
    sim.read(0, ByteRange::new(0, VOLUME / 8));
    let since = sim.now;
    sim.hold_journal(0, false);
    sim.settle();
    let admitted = sim.status(1).durable_lsn.0 - before;
    assert!(admitted < 40, "all were admitted");
    assert!(sim.sites[0].stopped, "{}", sim.logs());
    assert!(sim.now < since + Duration::from_secs(1));
}

/// Its memory is bounded, however much its journal could take.
#[test]
fn a_mirror_whose_homes_stand_still_lets_its_journal_wait() {
    let mut sim = pair(16);
    let before = sim.status(1).durable_lsn.0;
    sim.hold_homes(1, true);
    let most = sim.status(1).journal.capacity_bytes / 4;
    let each = VOLUME / 8;
    let mut n = 0;
    while sim.outstanding() == 0 {
        write(&mut sim, n);
        n += 1;
        assert!(n < 200, "the primary's writers wait for nothing");
    }
    let journaled = (sim.status(1).durable_lsn.0 - before) * each;
    assert!(
        (most / 2..most + 4 * each).contains(&journaled),
        "{journaled} of {most}"
    );
    // Nobody waits longer than for a mirror that is dead.
    sim.pass(Duration::from_secs(8));
    assert_eq!(sim.outstanding(), 0);
    sim.hold_homes(1, false);
    assert_same(&mut sim);
}

/// It holds it as it was before it was compressed.
#[test]
fn a_mirror_whose_journal_stands_still_is_not_sent_more_than_it_is_to_hold() {
    let mut sim = Sim::new(17, AckMode::Memsync, OnPeerLoss::Continue);
    for site in &mut sim.sites {
        site.config.compress = Compress::Lz4;
    }
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    let received = |sim: &mut Sim| sim.status(0).peers[0].received_lsn.0;
    let (before, link) = (received(&mut sim), sim.status(0).totals.link_bytes);
    sim.hold_journal(1, true);
    for n in 0..400 {
        write(&mut sim, n);
    }
    let sent = sim.status(0).totals.link_bytes - link;
    assert!(sent < 4 << 20, "it was not compressed: {sent} bytes");
    let held = (received(&mut sim) - before) * (VOLUME / 8);
    assert!(((28 << 20)..=(34 << 20)).contains(&held), "{held} bytes");
    sim.hold_journal(1, false);
    sim.settle();
    assert_eq!(sim.outstanding(), 0);
    assert!(sim.all_homes_are_equal());
}

/// What a checkpoint keeps is not held against a mirror that needs less.
#[test]
fn what_a_mirror_lacks_is_kept_for_it_as_long_as_it_is_less_than_half_of_the_journal() {
    let mut sim = pair(13);
    begin_checkpoint(&mut sim);
    sim.hold_home_syncs(0, false);
    sim.settle();
    for n in 0..40 {
        write(&mut sim, n);
    }
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    // The next one is beyond what the mirror has, and takes so long that half of the journal is in use.
    begin_checkpoint(&mut sim);
    let mut n = 0;
    let half = |sim: &mut Sim| {
        let journal = sim.status(0).journal;
        journal.used_bytes > journal.capacity_bytes / 2
    };
    while !half(&mut sim) {
        write(&mut sim, n);
        n += 1;
    }
    sim.hold_home_syncs(0, false);
    sim.pass(Duration::from_secs(15));
    let group = sim.sites[0].group.as_ref().expect("alive");
    let given_up = group.changes.set_of("b").map(|dirty| &dirty.chunks);
    assert!(given_up.is_none_or(ChunkSet::is_empty), "{given_up:?}");
    sim.start(1).unwrap();
    assert_same(&mut sim);
    assert!(!sim.logs().contains("copying to b"), "{}", sim.logs());
}
