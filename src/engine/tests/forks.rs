//! Forks over restarts, and what operators order about them.

use std::time::Duration;

use super::resync::{assert_same, discarded, forked};
use super::sim::Sim;
use crate::engine::{Command, Force};
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
