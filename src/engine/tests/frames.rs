//! Frames on their way to the journal.

use std::time::Duration;

use super::sim::{SECTOR, Sim};
use crate::base::{AckMode, ByteRange, OnPeerLoss};
use crate::engine::{File, Input};

/// A pair whose mirror's journal stands still, with so many frames on the way to it.
fn with_frames_waiting(frames: u64) -> Sim {
    let mut sim = Sim::new(7, AckMode::Sync, OnPeerLoss::Continue);
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    sim.settle();
    sim.hold_journal(1, true);
    for n in 0..frames {
        write(&mut sim, n);
    }
    sim
}

fn write(sim: &mut Sim, sector: u64) {
    sim.write(0, ByteRange::new(sector * SECTOR, SECTOR), false);
    sim.settle();
}

/// Lets one write to the mirror's journal reach it, and nothing else happen.
fn complete_one(sim: &mut Sim) {
    let done = sim.sites[1].disk.complete_of(File::Journal);
    let (id, result) = done.expect("a write is under way");
    sim.input(1, Input::Disk { id, result });
}

fn durable(sim: &mut Sim) -> u64 {
    sim.status(1).durable_lsn.0
}

#[test]
fn frames_that_wait_for_a_mirror_s_journal_go_there_together() {
    let mut sim = with_frames_waiting(12);
    let before = durable(&mut sim);
    // Two were on their way before the others came.
    for n in 1..=2 {
        complete_one(&mut sim);
        assert_eq!(durable(&mut sim), before + n);
    }
    complete_one(&mut sim);
    assert_eq!(durable(&mut sim), before + 12);
    sim.hold_journal(1, false);
    sim.settle();
    assert_eq!(sim.outstanding(), 0);
    // They lie there as if each had come alone.
    sim.kill_unlucky(1);
    sim.start(1).expect("a restart");
    assert_eq!(durable(&mut sim), before + 12);
    sim.heal();
    assert!(sim.in_sync() && sim.all_homes_are_equal());
}

#[test]
fn of_frames_that_are_written_together_some_are_truncated() {
    let mut sim = with_frames_waiting(3);
    let before = durable(&mut sim);
    // The primary will know nothing of the last two.
    sim.hold_journal(0, true);
    for n in 3..5 {
        write(&mut sim, n);
    }
    for _ in 0..2 {
        complete_one(&mut sim);
    }
    sim.cut();
    sim.kill_unlucky(0);
    sim.hold_journal(0, false);
    sim.break_links();
    sim.start(0).expect("a restart");
    sim.promote(0).expect("its peer cannot be asked");
    assert!(sim.attach(0), "{}", sim.logs());
    sim.connected = true;
    sim.run_for(Duration::from_secs(10));
    assert!(
        sim.logs().contains("dropping 2 operations"),
        "{}",
        sim.logs()
    );
    // What opens the new epoch is not written in their place before they are through.
    let under_way = sim.sites[1].disk.writes_under_way(File::Journal);
    assert_eq!(under_way, 1);
    complete_one(&mut sim);
    assert_eq!(durable(&mut sim), before + 3);
    sim.hold_journal(1, false);
    sim.heal();
    assert!(sim.in_sync() && sim.all_homes_are_equal(), "{}", sim.logs());
}
