//! Volumes that come and go with a history: by a fork that is given up, by a copy, by going back.

use std::time::Duration;

use super::sim::{Sim, VOLUME};
use crate::base::{AckMode, ByteRange, CHUNK_BYTES, OnPeerLoss};
use crate::engine::{Command, File, Force};
use crate::status::GroupState;

/// Names, sizes, and with what a volume is filled: the same byte in each of its blocks that are written.
type Volumes<'a> = &'a [(&'a str, u64)];

const SIZE: u64 = VOLUME / 2;

fn names(sim: &mut Sim, at: usize, volumes: Volumes) {
    let volumes = volumes.iter().map(|(name, size)| ((*name).into(), *size));
    sim.sites[at].config.volumes = [("v".to_owned(), VOLUME)]
        .into_iter()
        .chain(volumes)
        .collect();
}

fn restart(sim: &mut Sim, at: usize) {
    sim.kill(at);
    sim.start(at)
        .unwrap_or_else(|e| panic!("{e}\n{}", sim.logs()));
}

fn promote(sim: &mut Sim, at: usize, force: &[Force]) {
    let force = force.to_vec();
    let id = sim.command(at, Command::Promote { force });
    sim.pass(Duration::from_secs(12));
    let answer = sim.answers.get(&id).cloned();
    assert!(matches!(answer, Some(Ok(_))), "{answer:?}\n{}", sim.logs());
}

/// Fills a few blocks at both ends.
fn fill(sim: &mut Sim, at: usize, volume: &str, byte: u8) {
    let end = sim.volume(at, volume).size - 4096;
    sim.attach_to(at, volume);
    for offset in [0, 8192, end] {
        sim.write_filled(at, ByteRange::new(offset, 4096), byte);
        sim.settle();
    }
    assert_eq!(sim.outstanding(), 0, "{}", sim.logs());
}

/// What the home of a volume holds at its beginning, in its middle, and at its end.
fn holds(sim: &mut Sim, at: usize, volume: &str) -> [u8; 3] {
    let spec = sim.volume(at, volume);
    let byte = |offset| sim.sites[at].disk.content(File::Home(spec.id), offset, 1)[0];
    [0, 16384, spec.size - 1].map(byte)
}

/// A pair in sync, and then each without the other: the first with these volumes more, filled with 7s, the second with those,
/// filled with 9s.
fn forked(seed: u64, first: Volumes, second: Volumes, homes_stay: bool) -> Sim {
    let mut sim = Sim::new(seed, AckMode::Sync, OnPeerLoss::Continue);
    for at in [1, 0] {
        sim.sites[at].disk.homes_stay = homes_stay;
        sim.start(at).unwrap();
    }
    sim.heal();
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    names(&mut sim, 0, first);
    restart(&mut sim, 0);
    promote(&mut sim, 0, &[Force::PeerUnreachable]);
    for (name, _) in first {
        fill(&mut sim, 0, name, 7);
    }
    sim.pass(Duration::from_secs(15));
    sim.kill(0);
    names(&mut sim, 1, second);
    sim.start(1).unwrap();
    promote(&mut sim, 1, &[Force::PeerUnreachable]);
    for (name, _) in second {
        fill(&mut sim, 1, name, 9);
    }
    sim.pass(Duration::from_secs(15));
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(5));
    assert_eq!(sim.status(0).state, GroupState::Forked, "{}", sim.logs());
    sim
}

fn discard_first(sim: &mut Sim) {
    let discard = "a".into();
    let id = sim.command(1, Command::Resolve { discard });
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
}

/// The second site loses its power for ever; the first one starts and serves.
fn first_alone(sim: &mut Sim) {
    sim.kill(1);
    restart(sim, 0);
    promote(sim, 0, &[Force::PeerUnreachable]);
    assert_eq!(sim.status(0).state, GroupState::Alone, "{}", sim.logs());
}

#[test]
fn a_volume_never_gets_the_home_of_another_one_that_had_its_number() {
    for homes_stay in [false, true] {
        for size in [SIZE / 2, SIZE, 2 * SIZE] {
            let mut sim = forked(1, &[("x", SIZE), ("z", SIZE)], &[], homes_stay);
            let x = sim.volume(0, "x");
            discard_first(&mut sim);
            sim.heal();
            names(&mut sim, 1, &[("y", size)]);
            restart(&mut sim, 1);
            sim.heal();
            let y = sim.volume(0, "y");
            assert_eq!((y.id, y.size), (x.id, size));
            assert_ne!(y.uuid, x.uuid);
            fill(&mut sim, 1, "y", 5);
            sim.pass(Duration::from_secs(15));
            for at in [0, 1] {
                assert_eq!(holds(&mut sim, at, "y"), [5, 0, 5]);
            }
            if !homes_stay {
                let kept = sim.sites[0].disk.aside_byte(x.uuid, 0);
                assert_eq!(kept, Some(7), "what was given up is kept");
            }
            first_alone(&mut sim);
            assert_eq!(holds(&mut sim, 0, "y"), [5, 0, 5]);
        }
    }
}

#[test]
fn a_volume_of_a_name_that_was_given_up_begins_with_zeroes() {
    for homes_stay in [false, true] {
        for restarts in [false, true] {
            let mut sim = forked(2, &[("x", SIZE)], &[], homes_stay);
            let x = sim.volume(0, "x");
            discard_first(&mut sim);
            sim.heal();
            if restarts {
                restart(&mut sim, 0);
                sim.heal();
            }
            sim.command(1, Command::Switchover);
            sim.pass(Duration::from_secs(5));
            sim.heal();
            assert_eq!(sim.status(0).state, GroupState::Serving, "{}", sim.logs());
            for at in [0, 1] {
                assert_ne!(sim.volume(at, "x").uuid, x.uuid);
                assert_eq!(holds(&mut sim, at, "x"), [0, 0, 0]);
            }
            fill(&mut sim, 0, "x", 5);
            sim.pass(Duration::from_secs(15));
            first_alone(&mut sim);
            assert_eq!(holds(&mut sim, 0, "x"), [5, 0, 5]);
        }
    }
}

#[test]
fn a_fork_in_which_both_sites_made_volumes_is_resolved() {
    let x = ("x", SIZE);
    let cases: [(Volumes, Volumes); 5] = [
        (&[x], &[("y", SIZE)]),
        (&[x], &[x]),
        (&[x], &[("x", 2 * SIZE)]),
        (&[("x", 2 * SIZE)], &[x]),
        (&[x, ("y", SIZE)], &[("y", SIZE), x]),
    ];
    for homes_stay in [false, true] {
        for (first, second) in cases {
            let mut sim = forked(3, first, second, homes_stay);
            discard_first(&mut sim);
            sim.heal();
            sim.pass(Duration::from_secs(15));
            for (name, size) in second {
                assert_eq!(sim.volume(0, name), sim.volume(1, name));
                assert_eq!(sim.volume(0, name).size, *size);
                assert_eq!(holds(&mut sim, 0, name), [9, 0, 9]);
            }
            first_alone(&mut sim);
            for (name, _) in second {
                assert_eq!(holds(&mut sim, 0, name), [9, 0, 9]);
            }
        }
    }
}

#[test]
fn a_crash_at_any_step_of_giving_volumes_up_leaves_it_to_be_gone_on_with() {
    for homes_stay in [false, true] {
        for steps in 0..90 {
            let second = [("y", 2 * SIZE), ("x", SIZE)];
            let mut sim = forked(4, &[("x", SIZE)], &second, homes_stay);
            let x = sim.volume(0, "x").uuid;
            discard_first(&mut sim);
            for _ in 0..steps {
                sim.step();
            }
            restart(&mut sim, 0);
            sim.heal();
            sim.pass(Duration::from_secs(15));
            for (name, _) in second {
                assert_eq!(holds(&mut sim, 0, name), [9, 0, 9], "after {steps} steps");
            }
            if !homes_stay {
                assert_eq!(sim.sites[0].disk.aside_byte(x, 0), Some(7));
            }
            restart(&mut sim, 0);
            sim.heal();
        }
    }
}

/// The mirror's chunks that the copy replaces take a while: it is in the middle of the copy now.
fn until_copying(sim: &mut Sim, at: usize) {
    sim.pass_until(Duration::from_secs(60), |sim| {
        sim.alive(at) && sim.status(at).state == GroupState::Inconsistent
    });
}

const BOTH: [Force; 2] = [Force::Inconsistent, Force::PeerUnreachable];

#[test]
fn going_back_to_before_a_fork_was_given_up_brings_its_volumes_back() {
    let mut went_back = 0;
    for clones in [false, true] {
        for steps in (0..240).step_by(3) {
            let mut sim = forked(5, &[("x", SIZE)], &[("y", SIZE)], false);
            sim.sites[0].disk.can_clone = clones;
            let x = sim.volume(0, "x");
            discard_first(&mut sim);
            until_copying(&mut sim, 0);
            for _ in 0..steps {
                sim.step();
            }
            sim.kill(1);
            if steps % 2 == 0 {
                restart(&mut sim, 0);
            }
            sim.pass(Duration::from_secs(8));
            if sim.status(0).state != GroupState::Inconsistent {
                continue;
            }
            let force = BOTH.to_vec();
            sim.command(0, Command::Promote { force });
            for _ in 0..steps % 20 {
                sim.step();
            }
            if steps % 4 < 2 {
                // Gone down in the middle of it: begun again.
                restart(&mut sim, 0);
            }
            sim.pass(Duration::from_secs(20));
            if sim.status(0).state != GroupState::Alone {
                promote(&mut sim, 0, &BOTH);
            }
            assert!(sim.logs().contains("went back"), "{}", sim.logs());
            assert_eq!(sim.volume(0, "x"), x);
            assert_eq!(holds(&mut sim, 0, "x"), [7, 0, 7]);
            fill(&mut sim, 0, "x", 3);
            sim.pass(Duration::from_secs(15));
            restart(&mut sim, 0);
            assert_eq!(holds(&mut sim, 0, "x"), [3, 0, 3]);
            went_back += 1;
        }
    }
    assert!(went_back > 5, "{went_back}");
}

/// A mirror in the middle of a copy that brings it volumes which it never had.
fn copied_volumes(seed: u64, homes_stay: bool) -> Sim {
    let mut sim = Sim::new(seed, AckMode::Sync, OnPeerLoss::Continue);
    for at in [1, 0] {
        sim.sites[at].disk.homes_stay = homes_stay;
        sim.start(at).unwrap();
    }
    sim.heal();
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    names(&mut sim, 0, &[("x", SIZE), ("y", SIZE)]);
    restart(&mut sim, 0);
    promote(&mut sim, 0, &[Force::PeerUnreachable]);
    for name in ["x", "y"] {
        fill(&mut sim, 0, name, 7);
    }
    assert!(sim.attach(0));
    sim.forget_old_journal(0);
    let last = sim.status(0).tail_lsn;
    while sim.status(0).journal.first_lsn <= last {
        for n in 0..8 {
            sim.write(0, ByteRange::new(n * (VOLUME / 8), VOLUME / 8), false);
            sim.settle();
        }
        sim.pass(Duration::from_secs(1));
    }
    sim
}

#[test]
fn volumes_that_a_copy_brought_are_made_anew_after_going_back() {
    let mut went_back = 0;
    for homes_stay in [false, true] {
        for wanted in [&[][..], &[("y", 2 * SIZE)], &[("x", SIZE), ("y", SIZE)]] {
            for steps in [0, 7, 15, 40] {
                let mut sim = copied_volumes(6, homes_stay);
                names(&mut sim, 1, wanted);
                sim.start(1).unwrap();
                until_copying(&mut sim, 1);
                for _ in 0..steps {
                    sim.step();
                }
                sim.kill(0);
                if steps % 2 == 1 {
                    restart(&mut sim, 1);
                }
                sim.pass(Duration::from_secs(8));
                if sim.status(1).state != GroupState::Inconsistent {
                    continue;
                }
                promote(&mut sim, 1, &BOTH);
                assert_eq!(sim.status(1).state, GroupState::Alone, "{}", sim.logs());
                for (name, size) in wanted {
                    assert_eq!(sim.volume(1, name).size, *size);
                    assert_eq!(holds(&mut sim, 1, name), [0, 0, 0]);
                    fill(&mut sim, 1, name, 3);
                }
                sim.pass(Duration::from_secs(15));
                restart(&mut sim, 1);
                for (name, _) in wanted {
                    assert_eq!(holds(&mut sim, 1, name), [3, 0, 3]);
                }
                went_back += 1;
            }
        }
    }
    assert!(went_back > 5, "{went_back}");
}

#[test]
fn a_way_back_that_is_damaged_leaves_the_volumes_of_the_copy() {
    let mut refused = 0;
    for steps in (0..120).step_by(10) {
        let mut sim = forked(7, &[("x", SIZE)], &[("y", SIZE)], false);
        discard_first(&mut sim);
        until_copying(&mut sim, 0);
        for _ in 0..steps {
            sim.step();
        }
        sim.kill(1);
        sim.pass(Duration::from_secs(8));
        let undo = sim.sites[0].disk.files().any(|f| f == File::Undo);
        if sim.status(0).state != GroupState::Inconsistent || !undo {
            continue;
        }
        let x = sim.sites[0].disk.lose_what_was_put_aside();
        assert_eq!(x, 1);
        let force = BOTH.to_vec();
        let id = sim.command(0, Command::Promote { force });
        sim.pass(Duration::from_secs(12));
        let answer = sim.answers.get(&id).cloned();
        assert!(
            matches!(&answer, Some(Err(why)) if why.contains("cannot go back")),
            "{answer:?}"
        );
        sim.start(1).unwrap();
        sim.heal();
        sim.pass(Duration::from_secs(15));
        assert_eq!(holds(&mut sim, 0, "y"), [9, 0, 9]);
        restart(&mut sim, 0);
        sim.heal();
        assert_eq!(holds(&mut sim, 0, "y"), [9, 0, 9]);
        refused += 1;
    }
    assert!(refused > 0);
}

const _: () = assert!(SIZE >= 2 * CHUNK_BYTES);
