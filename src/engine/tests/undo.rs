//! Going back to what a mirror held before a copy that was not completed.

use std::time::Duration;

use super::sim::{Sim, VOLUME};
use crate::base::{AckMode, ByteRange, CHUNK_BYTES, OnPeerLoss, VolumeId};
use crate::engine::{Command, File, Force};
use crate::status::GroupState;

const HOME: File = File::Home(VolumeId(0));

/// How the old content is kept.
#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    Clones,
    File,
}

/// A mirror whose primary has rewritten everything without it, so that a copy begins as soon as they meet. What it held,
/// and what it then was.
fn before_a_copy(seed: u64, by: By) -> (Sim, Vec<u8>) {
    let mut sim = Sim::new(seed, AckMode::Sync, OnPeerLoss::Continue);
    for at in [1, 0] {
        sim.sites[at].disk.can_clone = by == By::Clones;
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    for n in 0..8 {
        sim.write(0, ByteRange::new(n * (VOLUME / 8), VOLUME / 8), false);
        sim.settle();
    }
    sim.pass(Duration::from_secs(15));
    // The last writes are acknowledged, but the mirror is never told so, and its homes lack them.
    sim.hold_homes(1, true);
    for n in 0..5 {
        let range = ByteRange::new(CHUNK_BYTES - 8192 + n * 4096, 4096);
        sim.write(0, range, false);
        sim.settle();
    }
    let then = sim.read_all(0);
    sim.break_links();
    sim.kill(1);
    sim.hold_homes(1, false);
    sim.pass(Duration::from_secs(8));
    let first = sim.status(0).tail_lsn;
    while sim.status(0).journal.first_lsn <= first {
        for n in 0..8 {
            sim.write(0, ByteRange::new(n * (VOLUME / 8), VOLUME / 8), false);
            sim.settle();
        }
        sim.pass(Duration::from_secs(1));
    }
    (sim, then)
}

/// Goes on until the copy has written to the mirror's home.
fn until_mixed(sim: &mut Sim) {
    let most = Duration::from_secs(60);
    sim.pass_until(most, |sim| sim.status(1).state == GroupState::Inconsistent);
    let before = sim.sites[1].disk.content(HOME, 0, VOLUME as usize);
    sim.pass_until(most, |sim| {
        sim.sites[1].disk.content(HOME, 0, VOLUME as usize) != before
    });
    assert_eq!(sim.status(1).state, GroupState::Inconsistent);
}

fn promote(sim: &mut Sim, force: &[Force]) -> Result<String, String> {
    let force = force.to_vec();
    let id = sim.command(1, Command::Promote { force });
    sim.pass(Duration::from_secs(20));
    sim.answers
        .get(&id)
        .cloned()
        .unwrap_or_else(|| panic!("no answer\n{}", sim.logs()))
}

const BOTH: [Force; 2] = [Force::Inconsistent, Force::PeerUnreachable];

/// The mirror serves what it held before the copy; then the other comes back, and is given up.
fn holds_what_it_held(mut sim: Sim, then: &[u8]) {
    assert!(sim.attach(1), "{}", sim.logs());
    assert!(sim.read_all(1) == then, "not what it held:\n{}", sim.logs());
    assert_eq!(sim.status(1).state, GroupState::Alone);
    // What the other acknowledged alone is given up by the promotion.
    sim.record = super::sim::Record::default();
    sim.record.settle(0, then);
    sim.violations.clear();
    for n in 0..4 {
        sim.write(1, ByteRange::new(n * CHUNK_BYTES, 4096), false);
        sim.settle();
    }
    let files: Vec<File> = sim.sites[1].disk.files().collect();
    assert!(!files.contains(&File::Undo), "nobody needs it any more");
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(8));
    let states = [sim.status(0).state, sim.status(1).state];
    assert!(states.contains(&GroupState::Forked), "{states:?}");
    sim.command(0, Command::Demote);
    sim.pass(Duration::from_secs(8));
    let discard = "a".into();
    sim.command(1, Command::Resolve { discard });
    sim.heal();
    let [a, b] = sim.homes();
    assert!(a == b, "the homes differ:\n{}", sim.logs());
    let content = sim.read_all(1);
    sim.record.check(0, &content).unwrap();
    assert_eq!(sim.violations, Vec::<String>::new());
}

#[test]
fn a_mirror_promoted_in_the_middle_of_a_copy_goes_back_to_what_it_held() {
    for by in [By::File, By::Clones] {
        let mut went_back = 0;
        for seed in 0..6 {
            let (mut sim, then) = before_a_copy(seed, by);
            sim.start(1).unwrap();
            until_mixed(&mut sim);
            sim.kill(0);
            sim.pass(Duration::from_secs(8));
            if sim.status(1).state != GroupState::Inconsistent {
                continue; // all of it was on its way already
            }
            let point = sim.status(1).undo.expect("there is a way back").lsn;
            let reason = sim.status(1).reason;
            let told = format!("can only be promoted to what it held before, LSN {point} of 2023-");
            assert!(reason.contains(&told), "{reason}");
            let refused = promote(&mut sim, &[Force::PeerUnreachable]).unwrap_err();
            let there = format!("goes back to that: to LSN {point}");
            assert!(refused.contains(&there), "{refused}");
            let refused = promote(&mut sim, &[Force::Inconsistent]).unwrap_err();
            let there = format!("goes back to LSN {point}");
            assert!(refused.contains(&there), "{refused}");
            promote(&mut sim, &BOTH).unwrap();
            let logs = sim.logs();
            assert!(
                logs.contains(&format!("went back to LSN {point}")),
                "{logs}"
            );
            holds_what_it_held(sim, &then);
            went_back += 1;
        }
        assert!(went_back > 0);
    }
}

/// What the homes were allowed to hold of the copy's history says nothing of the one that begins instead.
#[test]
fn after_going_back_a_home_waits_for_the_journal() {
    let (mut sim, then) = before_a_copy(0, By::File);
    sim.start(1).unwrap();
    sim.pass_until(Duration::from_secs(60), |sim| {
        sim.status(1).state == GroupState::Inconsistent
    });
    sim.hold_journal(1, true);
    for n in 0..40 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.step();
    }
    sim.kill(0);
    sim.pass(Duration::from_secs(8));
    let force = BOTH.to_vec();
    sim.command(1, Command::Promote { force });
    sim.hold_journal(1, false);
    sim.pass(Duration::from_secs(20));
    assert!(sim.attach(1), "{}", sim.logs());
    sim.hold_journal(1, true);
    sim.write(1, ByteRange::new(0, 4096), false);
    sim.settle();
    let home = sim.sites[1].disk.content(HOME, 0, 4096);
    assert!(home == then[..4096], "a home has what the journal has not");
    sim.hold_journal(1, false);
    sim.settle();
    let home = sim.sites[1].disk.content(HOME, 0, 4096);
    assert!(home != then[..4096]);
}

#[test]
fn a_copy_that_is_completed_leaves_nothing_to_go_back_to() {
    for (seed, by) in [(3, By::File), (4, By::Clones)] {
        let (mut sim, _) = before_a_copy(seed, by);
        sim.start(1).unwrap();
        until_mixed(&mut sim);
        sim.heal();
        let files: Vec<File> = sim.sites[1].disk.files().collect();
        assert!(!files.contains(&File::Undo), "{files:?}");
        let [a, b] = sim.homes();
        assert!(a == b);
    }
}

/// At any step of the copy, with writes going on, with crashes of the mirror before and in the middle of going back.
#[test]
fn there_is_a_way_back_from_every_step_of_a_copy() {
    for by in [By::File, By::Clones] {
        for steps in (0..400_u64).step_by(7) {
            let (mut sim, then) = before_a_copy(5, by);
            sim.start(1).unwrap();
            sim.pass_until(Duration::from_secs(60), |sim| {
                sim.status(1).state == GroupState::Inconsistent
            });
            for step in 0..steps {
                if step % 20 == 0 {
                    let at = step * 4096 % VOLUME;
                    sim.write(0, ByteRange::new(at, 4096), false);
                }
                sim.step();
            }
            if sim.status(1).state != GroupState::Inconsistent {
                break;
            }
            sim.kill(0);
            if steps % 2 == 1 {
                sim.kill(1);
                sim.start(1).unwrap();
            }
            sim.pass(Duration::from_secs(8));
            if sim.status(1).state != GroupState::Inconsistent {
                continue; // all of it was on its way already
            }
            // Gone down in the middle of going back: begun again.
            let force = BOTH.to_vec();
            sim.command(1, Command::Promote { force });
            for _ in 0..steps % 60 {
                sim.step();
            }
            sim.kill(1);
            sim.start(1).unwrap();
            sim.pass(Duration::from_secs(8));
            if sim.status(1).state != GroupState::Alone {
                promote(&mut sim, &BOTH).unwrap_or_else(|e| panic!("{e}\n{}", sim.logs()));
            }
            holds_what_it_held(sim, &then);
        }
    }
}

/// What was brought before, and is not any more, must be brought again.
#[test]
fn a_way_back_that_was_cut_off_does_not_spoil_the_copy() {
    for by in [By::File, By::Clones] {
        let mut cut_off = 0;
        for steps in 0..80_u64 {
            let (mut sim, _) = before_a_copy(5, by);
            sim.start(1).unwrap();
            until_mixed(&mut sim);
            // Some chunks are off the record of what is missing.
            sim.pass_until(Duration::from_secs(60), |sim| {
                let group = sim.sites[1].group.as_ref().expect("alive");
                let lacks = group.changes.own().map(|own| own.bytes(&group.volumes));
                lacks.is_none_or(|bytes| bytes < VOLUME)
            });
            sim.kill(0);
            sim.pass(Duration::from_secs(3));
            if sim.status(1).state != GroupState::Inconsistent {
                continue;
            }
            let force = BOTH.to_vec();
            sim.command(1, Command::Promote { force });
            for _ in 0..steps {
                sim.step();
            }
            if sim.status(1).state != GroupState::Inconsistent {
                break;
            }
            sim.kill(1);
            sim.start(0).unwrap();
            sim.start(1).unwrap();
            sim.heal();
            let [a, b] = sim.homes();
            assert!(
                a == b,
                "the homes differ after {steps} steps:\n{}",
                sim.logs()
            );
            cut_off += 1;
        }
        assert!(cut_off > 5, "{cut_off}");
    }
}

#[test]
fn a_damaged_undo_file_is_told_and_not_gone_back_to() {
    let (mut sim, _) = before_a_copy(6, By::File);
    sim.start(1).unwrap();
    until_mixed(&mut sim);
    sim.kill(0);
    sim.pass(Duration::from_secs(8));
    let place = crate::journal::UNDO_HEAD_BYTES + 3 * 4096;
    let there = sim.sites[1].disk.content(File::Undo, place, 4096);
    assert!(there.iter().any(|b| *b != 0), "something lies there");
    sim.sites[1].disk.rot(File::Undo, place + 5);
    let refused = promote(&mut sim, &BOTH).unwrap_err();
    assert!(refused.contains("damaged"), "{refused}");
    // What there is can still be had.
    let done = promote(&mut sim, &BOTH);
    assert!(done.is_ok(), "{done:?}");
}

#[test]
fn keeping_ends_when_the_space_is_needed_and_the_copy_goes_on() {
    let (mut sim, _) = before_a_copy(7, By::File);
    sim.start(1).unwrap();
    until_mixed(&mut sim);
    sim.sites[1].disk.free_bytes = Some(200 << 20);
    for n in 0..20 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
        sim.pass(Duration::from_millis(600));
    }
    sim.heal();
    let logs = sim.logs();
    assert!(logs.contains("the space is needed for writes"), "{logs}");
    let [a, b] = sim.homes();
    assert!(a == b);
}

#[test]
fn without_space_to_keep_it_the_old_content_is_not_kept_from_the_start() {
    let (mut sim, _) = before_a_copy(9, By::File);
    // More than what is never promised (64 MiB), less than what keeping takes besides (256 MiB).
    sim.sites[1].disk.free_bytes = Some(300 << 20);
    sim.start(1).unwrap();
    sim.heal();
    let logs = sim.logs();
    let told = "does not keep what it holds while it is copied to: 300.0 MiB are free";
    assert!(logs.contains(told), "{logs}");
    assert!(!logs.contains("can be undone"), "{logs}");
    let [a, b] = sim.homes();
    assert!(a == b);
}

/// Else the copy would begin again for ever: what it needs is what the old content takes.
#[test]
fn keeping_ends_when_a_home_has_no_space_for_the_copy() {
    for by in [By::Clones, By::File] {
        let (mut sim, _) = before_a_copy(8, by);
        sim.start(1).unwrap();
        until_mixed(&mut sim);
        sim.sites[1].disk.homes_full = true;
        sim.pass(Duration::from_secs(10));
        assert!(
            sim.logs().contains("the space is needed for the copy"),
            "{}",
            sim.logs()
        );
        let kept = sim.sites[1].disk.files().any(|f| f == File::Undo);
        assert!(!kept, "{by:?}: {}", sim.logs());
        sim.sites[1].disk.homes_full = false;
        sim.heal();
        let [a, b] = sim.homes();
        assert!(a == b);
    }
}
