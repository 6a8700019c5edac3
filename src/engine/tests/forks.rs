//! Forks over restarts, and what operators order about them.

use std::time::Duration;

use super::resync::{assert_same, discarded, forked, pair, settle_for_what_is_read};
use super::sim::{Sim, VOLUME, config};
use crate::base::{AckMode, ByteRange, CHUNK_BYTES, OnPeerLoss, Role};
use crate::engine::{Command, Force, GroupConfig};
use crate::status::GroupState;

fn discard(site: &str) -> Command {
    Command::Resolve {
        discard: site.into(),
    }
}

/// It is forked, serves nobody, and says what it knows of the other site.
fn serves_nobody(sim: &mut Sim, at: usize) {
    assert!(!sim.attach(at), "{}", sim.logs());
    let status = sim.status(at);
    assert_eq!(status.state, GroupState::Forked, "{}", status.reason);
    let fork = status.fork.expect("it is known");
    assert!(
        fork.sides.iter().all(|side| side.operations > 0),
        "{fork:?}"
    );
}

#[test]
fn a_site_that_is_to_discard_its_own_side_never_serves_and_does_it_when_the_other_is_back() {
    for restarted in [false, true] {
        let mut sim = forked(5);
        sim.kill(1);
        let id = sim.command(0, discard("a"));
        let answer = sim.answers[&id].clone();
        assert!(
            answer.as_ref().is_ok_and(|t| t.contains("gives up LSN")),
            "{answer:?}"
        );
        sim.pass(Duration::from_secs(20));
        if restarted {
            sim.kill(0);
            sim.start(0).unwrap();
            sim.pass(Duration::from_secs(20));
        }
        serves_nobody(&mut sim, 0);
        let status = sim.status(0);
        let since = "the order to discard what a wrote stands since 2023-11-14 ";
        assert!(status.reason.starts_with(since), "{}", status.reason);
        assert_eq!(status.fork.expect("still").discarding.as_deref(), Some("a"));
        // Nor because somebody promotes it in passing.
        let id = sim.command(0, Command::Promote { force: vec![] });
        sim.pass(Duration::from_secs(10));
        let refused = sim.answers[&id].clone().unwrap_err();
        assert!(refused.contains("takes the order back"), "{refused}");
        sim.start(1).unwrap();
        sim.pass(Duration::from_secs(10));
        assert!(sim.attach(1), "{}", sim.logs());
        assert_same(&mut sim);
        assert_eq!(discarded(&sim, 0), 1, "what was given up is kept");
    }
}

#[test]
fn a_side_of_a_fork_does_not_serve_after_a_restart_while_the_other_one_is_silent() {
    for first in [0, 1] {
        let mut sim = forked(5);
        for at in 0..2 {
            sim.kill(at);
        }
        sim.start(first).unwrap();
        sim.pass(Duration::from_secs(20));
        serves_nobody(&mut sim, first);
        sim.start(1 - first).unwrap();
        sim.pass(Duration::from_secs(10));
        for at in 0..2 {
            serves_nobody(&mut sim, at);
        }
        let id = sim.command(first, discard("a"));
        assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
        sim.pass(Duration::from_secs(10));
        assert!(sim.attach(1), "{}", sim.logs());
        assert_same(&mut sim);
        // Nothing of it is remembered.
        sim.kill(0);
        sim.pass(Duration::from_secs(8));
        sim.kill(1);
        sim.start(1).unwrap();
        sim.pass(Duration::from_secs(8));
        assert_eq!(sim.status(1).fork, None);
        assert!(sim.attach(1), "{}", sim.logs());
    }
}

#[test]
fn a_side_of_a_fork_says_after_a_restart_too_what_it_acknowledged_alone() {
    let mut sim = pair(6);
    sim.cut();
    sim.pass(Duration::from_secs(20));
    for n in 0..2 {
        sim.write(0, ByteRange::new(n * CHUNK_BYTES, 4096), false);
        sim.settle();
    }
    let alone = |sim: &mut Sim| {
        let alone = sim.status(0).alone.expect("it is alone");
        (alone.operations, alone.from_lsn)
    };
    let before = alone(&mut sim);
    assert_eq!(before.0, 2);
    sim.kill(0);
    sim.break_links();
    sim.promote(1).expect("its peer cannot be asked");
    assert!(sim.attach(1), "{}", sim.logs());
    sim.write(1, ByteRange::new(0, 4096), false);
    sim.connected = true;
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(10));
    assert_eq!(sim.status(0).state, GroupState::Forked, "{}", sim.logs());
    assert_eq!(alone(&mut sim), before);
}

#[test]
fn an_order_to_discard_its_own_side_is_taken_back_by_a_promotion_past_a_silent_peer() {
    let mut sim = forked(5);
    sim.kill(1);
    sim.command(0, discard("a"));
    sim.pass(Duration::from_secs(10));
    let force = vec![Force::PeerUnreachable];
    let id = sim.command(0, Command::Promote { force });
    sim.pass(Duration::from_secs(20));
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
    assert!(sim.attach(0), "{}", sim.logs());
    assert_eq!(sim.status(0).fork.expect("still").discarding, None);
}

/// The first site wrote alone; the second one is promoted by force in the middle of the copy of that, and serves.
fn with_a_mixture(seed: u64) -> Sim {
    let mut sim = Sim::with(seed, keeping_nothing("a"), keeping_nothing("b"));
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    fill(&mut sim, 0, 0x11);
    sim.pass(Duration::from_secs(3));
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    let known = sim.status(0).tail_lsn;
    while sim.status(0).journal.first_lsn <= known {
        fill(&mut sim, 0, 0x22);
        sim.pass(Duration::from_secs(1));
    }
    sim.start(1).unwrap();
    sim.pass_until(Duration::from_secs(20), |sim| {
        let copying = sim.status(1).state == GroupState::Inconsistent;
        copying && sim.chunk_bytes > 2 * CHUNK_BYTES
    });
    assert!(sim.status(1).inconsistent, "{}", sim.logs());
    sim.kill(0);
    sim.pass(Duration::from_secs(8));
    let force = vec![Force::Inconsistent, Force::PeerUnreachable];
    let id = sim.command(1, Command::Promote { force });
    sim.pass(Duration::from_secs(12));
    let answer = sim.answers[&id].clone().unwrap();
    assert!(
        answer.contains("MIXTURE") && answer.contains("KEEP what a holds"),
        "{answer}"
    );
    assert!(!answer.contains("which it holds up to"), "{answer}");
    assert!(sim.attach(1), "{}", sim.logs());
    settle_for_what_is_read(&mut sim, 1);
    sim
}

fn keeping_nothing(site: &str) -> GroupConfig {
    let (peer, role) = match site {
        "a" => ("b", Role::Primary),
        _ => ("a", Role::Mirror),
    };
    let mut config = config(site, Some(peer), role, AckMode::Sync, OnPeerLoss::Continue);
    config.resync_undo = false;
    config.resync_rate = Some(1 << 20);
    config
}

fn fill(sim: &mut Sim, at: usize, byte: u8) {
    for n in 0..8 {
        sim.write_filled(at, ByteRange::new(n * (VOLUME / 8), VOLUME / 8), byte);
        sim.settle();
    }
}

fn is_a_mixture(sim: &mut Sim) {
    let status = sim.status(1);
    assert!(status.inconsistent && !status.healthy, "{status:?}");
    assert!(status.mixture.is_some());
    assert!(status.reason.contains("MIXTURE"), "{}", status.reason);
}

#[test]
fn a_promoted_mixture_never_overwrites_the_whole_copy_without_an_operators_word() {
    for restarted in [false, true] {
        let mut sim = with_a_mixture(3);
        is_a_mixture(&mut sim);
        if restarted {
            sim.kill(1);
            sim.start(1).unwrap();
            sim.pass(Duration::from_secs(10));
            is_a_mixture(&mut sim);
        }
        let [whole, _] = sim.homes();
        sim.start(0).unwrap();
        sim.pass(Duration::from_secs(20));
        for at in 0..2 {
            let status = sim.status(at);
            assert_eq!(status.state, GroupState::Forked, "{}", sim.logs());
            let fork = status.fork.expect("it is told");
            let mixes: Vec<(&str, bool)> = fork
                .sides
                .iter()
                .map(|s| (s.site.as_str(), s.mixture))
                .collect();
            assert!(
                mixes.contains(&("a", false)) && mixes.contains(&("b", true)),
                "{mixes:?}"
            );
        }
        assert!(!sim.attach(0));
        assert_eq!(sim.homes()[0], whole, "nothing was overwritten");
    }
}

#[test]
fn the_fork_of_a_mixture_and_a_whole_copy_is_resolved_in_either_direction_and_all_is_compared() {
    for (commanded, loser) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let mut sim = with_a_mixture(3);
        sim.write_filled(1, ByteRange::new(0, CHUNK_BYTES), 0x33);
        sim.settle();
        sim.start(0).unwrap();
        sim.pass(Duration::from_secs(10));
        let [whole, _] = sim.homes();
        if loser == 1 {
            sim.command(1, Command::Demote);
            sim.pass(Duration::from_secs(5));
            assert!(!sim.attach(0), "a demotion decides nothing");
        }
        let name = ["a", "b"][loser];
        let id = sim.command(commanded, discard(name));
        let answer = sim.answers[&id].clone();
        let whole_copy = answer.as_ref().is_ok_and(|t| t.contains("its whole copy"));
        assert_eq!(whole_copy, loser == 0, "{answer:?}");
        sim.pass(Duration::from_secs(5));
        sim.heal();
        let [a, b] = sim.homes();
        assert!(a == b, "the homes differ:\n{}", sim.logs());
        assert_eq!(a == whole, loser == 1, "{}", sim.logs());
        for at in 0..2 {
            let status = sim.status(at);
            assert_eq!((status.fork, status.mixture), (None, None));
        }
        // Nor does a restart bring it back.
        sim.kill(1 - loser);
        sim.start(1 - loser).unwrap();
        sim.heal();
    }
}

#[test]
fn neither_a_demotion_nor_a_restart_makes_a_mixture_forgotten() {
    let mut sim = with_a_mixture(3);
    sim.command(1, Command::Demote);
    sim.pass(Duration::from_secs(5));
    assert!(sim.status(1).mixture.is_some());
    sim.kill(1);
    sim.start(1).unwrap();
    assert!(sim.status(1).mixture.is_some());
    let force = vec![Force::PeerUnreachable];
    let id = sim.command(1, Command::Promote { force });
    sim.pass(Duration::from_secs(12));
    let answer = sim.answers[&id].clone().unwrap();
    assert!(answer.contains("MIXTURE"), "{answer}");
}

#[test]
fn a_side_of_a_fork_is_promoted_past_a_silent_peer_and_the_fork_stands() {
    let mut sim = forked(5);
    let promote = |force: Vec<Force>| Command::Promote { force };
    let id = sim.command(0, promote(vec![Force::PeerUnreachable]));
    sim.pass(Duration::from_secs(6));
    let refused = sim.answers[&id].clone().unwrap_err();
    assert!(refused.contains("b answers"), "{refused}");
    sim.kill(1);
    sim.pass(Duration::from_secs(10));
    let id = sim.command(0, promote(vec![]));
    sim.pass(Duration::from_secs(6));
    let refused = sim.answers[&id].clone().unwrap_err();
    for told in [
        "b had written 7 operations",
        "it was last heard of 1",
        "`doublure promote g --force peer-unreachable` makes a serve",
    ] {
        assert!(refused.contains(told), "{refused}");
    }
    let id = sim.command(0, discard("b"));
    sim.pass(Duration::from_secs(6));
    let refused = sim.answers[&id].clone().unwrap_err();
    assert!(refused.contains("--force peer-unreachable"), "{refused}");
    let id = sim.command(0, promote(vec![Force::PeerUnreachable]));
    sim.pass(Duration::from_secs(6));
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
    for restarted in [false, true] {
        if restarted {
            sim.kill(0);
            sim.start(0).unwrap();
            sim.pass(Duration::from_secs(6));
        }
        assert!(sim.attach(0), "{}", sim.logs());
        let status = sim.status(0);
        assert_eq!(status.state, GroupState::Forked);
        assert!(
            status.reason.contains("promoted past b"),
            "{}",
            status.reason
        );
        assert!(status.fork.is_some_and(|f| f.sides[0].serving));
    }
    settle_for_what_is_read(&mut sim, 0);
    sim.start(1).unwrap();
    sim.pass(Duration::from_secs(10));
    serves_nobody(&mut sim, 1);
    assert!(sim.attach(0));
    // It was heard of again: from now on it counts anew.
    sim.kill(1);
    sim.kill(0);
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(10));
    serves_nobody(&mut sim, 0);
    sim.start(1).unwrap();
    sim.pass(Duration::from_secs(10));
    let id = sim.command(0, discard("b"));
    sim.pass(Duration::from_secs(10));
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
    assert!(sim.attach(0), "{}", sim.logs());
    assert_same(&mut sim);
}

#[test]
fn a_site_that_only_opened_epochs_rolls_back_by_itself() {
    // What was written where since they parted, and whether that is a fork.
    for (here, there, is_fork) in [(0, 0, false), (0, 3, false), (3, 0, true), (3, 3, true)] {
        let mut sim = pair(5);
        sim.command(0, Command::Disconnect);
        sim.pass(Duration::from_secs(8));
        let write = |sim: &mut Sim, at: usize, count: u64| {
            for n in 0..count {
                sim.write(at, ByteRange::new(n * 4096, 4096), false);
                sim.settle();
            }
        };
        write(&mut sim, 0, here);
        // Also what lies before the checkpoint is known after a restart.
        for _ in 0..2 {
            sim.kill(0);
            sim.connected = false;
            sim.start(0).unwrap();
            sim.pass(Duration::from_secs(12));
        }
        assert!(sim.attach(0), "{}", sim.logs());
        sim.kill(0);
        sim.connected = true;
        sim.promote(1).unwrap();
        assert!(sim.attach(1), "{}", sim.logs());
        if here > 0 {
            settle_for_what_is_read(&mut sim, 1);
        }
        write(&mut sim, 1, there);
        sim.start(0).unwrap();
        sim.pass(Duration::from_secs(10));
        let forked = sim.status(0).state == GroupState::Forked;
        // Who serves does not step down, whatever it wrote.
        assert_eq!(forked, is_fork, "{here} {there}: {}", sim.logs());
        if !forked {
            assert_same(&mut sim);
            assert_eq!(discarded(&sim, 0), 0, "there is nothing to keep");
        }
    }
}
