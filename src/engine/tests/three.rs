//! A primary with two mirrors. The configuration admits one mirror; the rules of the core are for any number.

use std::time::Duration;

use super::sim::Sim;
use crate::base::{AckMode, ByteRange, OnPeerLoss};
use crate::engine::{Command, Force};
use crate::status::{GroupState, PeerState};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

const BLOCK: u64 = 4096;

fn three(ack: AckMode) -> Sim {
    let mut sim = Sim::three(7, ack, OnPeerLoss::Continue);
    for at in [C, B, A] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(A));
    sim
}

fn block(n: u64) -> ByteRange {
    ByteRange::new(n * BLOCK, BLOCK)
}

/// Writes a block and lets come of it what can at once; whether it was acknowledged.
fn acknowledges(sim: &mut Sim, at: usize, n: u64) -> bool {
    let before = sim.acked;
    sim.write(at, block(n), false);
    while sim.step() {}
    sim.acked > before
}

/// What was on its way to who was isolated is lost.
fn end_isolation(sim: &mut Sim) {
    sim.break_links();
    sim.isolated.clear();
}

fn alone(sim: &mut Sim, at: usize) -> Option<String> {
    sim.status(at).alone.map(|alone| alone.peer)
}

fn peer_state(sim: &mut Sim, at: usize, peer: &str) -> PeerState {
    let peers = sim.status(at).peers;
    let found = peers.iter().find(|p| p.site == peer);
    found.expect("a peer").state
}

fn check_all(sim: &mut Sim) {
    sim.heal();
    assert!(sim.all_homes_are_equal(), "the homes differ");
    assert_eq!(sim.violations, Vec::<String>::new());
    let at = (A..=C).find(|at| sim.attach(*at)).expect("one serves");
    let content = sim.read_all(at);
    sim.record.check(0, &content).unwrap();
}

#[test]
fn every_mirror_is_waited_for() {
    for silent in [B, C] {
        let mut sim = three(AckMode::Sync);
        sim.hold_journal(silent, true);
        assert!(!acknowledges(&mut sim, A, 0));
        sim.hold_journal(silent, false);
        assert!(acknowledges(&mut sim, A, 1));
        check_all(&mut sim);
    }
}

#[test]
fn in_memsync_mode_every_mirror_must_have_it_in_memory() {
    let mut sim = three(AckMode::Memsync);
    for at in [A, B, C] {
        sim.hold_journal(at, true);
    }
    assert!(acknowledges(&mut sim, A, 0));
    sim.isolated.insert(C);
    assert!(!acknowledges(&mut sim, A, 1));
}

#[test]
fn without_one_mirror_the_other_one_is_still_waited_for() {
    let mut sim = three(AckMode::Sync);
    sim.kill(C);
    sim.pass(Duration::from_secs(8));
    assert_eq!(alone(&mut sim, A), Some("c".into()));
    assert_eq!(peer_state(&mut sim, A, "b"), PeerState::InSync);
    assert!(acknowledges(&mut sim, A, 0));
    sim.hold_journal(B, true);
    assert!(!acknowledges(&mut sim, A, 1));
    sim.hold_journal(B, false);
    sim.settle();
    sim.start(C).unwrap();
    sim.heal();
    assert_eq!(alone(&mut sim, A), None);
    check_all(&mut sim);
}

#[test]
fn mirrors_lost_one_after_the_other_are_each_on_record_and_come_back_one_by_one() {
    let mut sim = three(AckMode::Sync);
    sim.kill(C);
    sim.pass(Duration::from_secs(8));
    sim.kill(B);
    sim.pass(Duration::from_secs(8));
    assert_eq!(alone(&mut sim, A), Some("c and b".into()));
    // The record outlives a restart, which does not wait for them.
    sim.kill(A);
    sim.start(A).unwrap();
    sim.pass(Duration::from_secs(8));
    assert!(sim.attach(A));
    assert!(acknowledges(&mut sim, A, 0));
    sim.start(B).unwrap();
    sim.pass(Duration::from_secs(8));
    assert_eq!(alone(&mut sim, A), Some("c".into()));
    sim.start(C).unwrap();
    check_all(&mut sim);
}

#[test]
fn a_restarted_primary_waits_for_both_mirrors_and_serves_without_the_one_that_it_may() {
    let mut sim = three(AckMode::Sync);
    for at in [A, C] {
        sim.kill(at);
    }
    sim.start(A).unwrap();
    sim.pass(Duration::from_secs(12));
    assert_eq!(sim.status(A).state, GroupState::WaitingForPeer);
    sim.promote(A).unwrap();
    assert_eq!(alone(&mut sim, A), Some("c".into()));
    assert_eq!(peer_state(&mut sim, A, "b"), PeerState::InSync);
    sim.start(C).unwrap();
    check_all(&mut sim);
}

#[test]
fn a_promoted_mirror_is_followed_by_the_other_one_and_by_the_old_primary() {
    for ack in [AckMode::Sync, AckMode::Memsync] {
        let mut sim = three(ack);
        for n in 0..8 {
            sim.write(A, block(n), false);
        }
        sim.settle();
        sim.kill(A);
        sim.promote(B).unwrap();
        assert_eq!(alone(&mut sim, B), Some("a".into()));
        sim.pass(Duration::from_secs(8));
        assert_eq!(peer_state(&mut sim, B, "c"), PeerState::InSync);
        assert!(sim.attach(B));
        assert!(acknowledges(&mut sim, B, 9));
        sim.start(A).unwrap();
        check_all(&mut sim);
        assert_eq!(sim.status(B).state, GroupState::Serving);
    }
}

#[test]
fn the_mirror_with_less_is_not_promoted_while_the_one_with_more_answers() {
    let mut sim = three(AckMode::Sync);
    sim.isolated.insert(C);
    assert!(!acknowledges(&mut sim, A, 0), "c has not confirmed");
    sim.kill(A);
    end_isolation(&mut sim);
    let refused = sim.promote(C).unwrap_err();
    assert!(refused.contains("b has more"), "{refused}");
    sim.promote(B).unwrap();
    sim.start(A).unwrap();
    check_all(&mut sim);
}

#[test]
fn a_tail_that_was_never_acknowledged_gives_way_to_the_mirror_that_was_promoted() {
    let mut sim = three(AckMode::Sync);
    sim.isolated.insert(C);
    assert!(!acknowledges(&mut sim, A, 0), "c has not confirmed");
    sim.kill(A);
    sim.kill(B);
    end_isolation(&mut sim);
    sim.promote(C).unwrap();
    for at in [B, A] {
        sim.start(at).unwrap();
    }
    check_all(&mut sim);
    assert!(
        sim.logs().contains("dropping 1 operation after"),
        "{}",
        sim.logs()
    );
}

/// The mirror holds it in its tail and was not told that it is committed: the acknowledgement did not wait for the third site.
#[test]
fn what_was_acknowledged_without_a_third_site_is_a_fork_when_that_one_is_promoted() {
    let mut sim = three(AckMode::Sync);
    sim.kill(C);
    sim.pass(Duration::from_secs(8));
    // The news that it is committed never comes to the mirror.
    let before = sim.acked;
    sim.write(A, block(0), false);
    sim.pass_until(Duration::from_secs(1), |sim| sim.acked > before);
    sim.kill(A);
    sim.kill(B);
    sim.start(C).unwrap();
    sim.promote(C).unwrap();
    sim.start(B).unwrap();
    sim.pass(Duration::from_secs(8));
    assert!(sim.status(B).tail_lsn > sim.status(B).commit_lsn);
    assert_eq!(sim.status(C).state, GroupState::Forked, "{}", sim.logs());
}

/// Or a mirror could hold what was acknowledged without a third site, and not the epoch that says so.
#[test]
fn what_an_epoch_left_open_is_acknowledged_only_with_the_beginning_of_the_next_one() {
    let mut sim = three(AckMode::Sync);
    sim.isolated.insert(B);
    assert!(!acknowledges(&mut sim, A, 0), "b has not confirmed");
    sim.pass(Duration::from_secs(4));
    sim.hold_journal(C, true);
    sim.pass(Duration::from_secs(3));
    assert_eq!(alone(&mut sim, A), Some("b".into()));
    assert_eq!(sim.status(C).durable_lsn.next(), sim.status(A).tail_lsn);
    let before = sim.acked;
    assert_eq!(sim.status(A).in_flight_requests, 1);
    sim.hold_journal(C, false);
    while sim.step() {}
    assert_eq!(sim.acked, before + 1);
}

#[test]
fn a_switchover_goes_to_one_mirror_and_the_new_primary_waits_for_the_other_one_too() {
    let mut sim = three(AckMode::Sync);
    let id = sim.command(A, Command::Switchover);
    sim.pass(Duration::from_secs(1));
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
    assert_eq!(sim.status(C).state, GroupState::Following);
    assert!(sim.attach(B));
    sim.hold_journal(C, true);
    assert!(!acknowledges(&mut sim, B, 0));
    sim.hold_journal(C, false);
    sim.settle();
    check_all(&mut sim);
}

#[test]
pub(super) fn who_was_handed_to_another_site_is_no_reason_to_promote_a_third() {
    let mut sim = three(AckMode::Sync);
    let id = sim.command(A, Command::Switchover);
    sim.pass_until(Duration::from_secs(1), |sim| {
        sim.status(A).state == GroupState::HandedOver
    });
    sim.kill(B);
    sim.pass(Duration::from_secs(12));
    assert!(sim.answers[&id].is_err());
    let refused = sim.promote(C).unwrap_err();
    assert!(refused.contains("a is primary by its record"), "{refused}");
    sim.start(B).unwrap();
    check_all(&mut sim);
}

#[test]
pub(super) fn a_mirror_that_follows_one_primary_is_not_taken_by_another() {
    let mut sim = three(AckMode::Sync);
    // The primary is cut off from one mirror, and that one is promoted by force while the other one still follows.
    sim.isolated.insert(B);
    sim.pass(Duration::from_secs(8));
    assert!(sim.promote(B).is_ok());
    sim.isolated.clear();
    sim.pass(Duration::from_secs(8));
    assert_eq!(sim.status(C).state, GroupState::Following);
    let (a, b) = (sim.status(A).state, sim.status(B).state);
    assert!(a == GroupState::BothPrimary && b == a, "{a:?} {b:?}");
    assert!(acknowledges(&mut sim, A, 0), "a and c go on");
}

#[test]
fn of_two_mirrors_that_have_more_the_longest_tail_is_taken_over() {
    let mut sim = three(AckMode::Sync);
    sim.hold_journal(A, true);
    assert!(!acknowledges(&mut sim, A, 0));
    sim.isolated.insert(B);
    assert!(!acknowledges(&mut sim, A, 1));
    let tails = [A, B, C].map(|at| sim.status(at).durable_lsn);
    assert!(tails[A] < tails[B] && tails[B] < tails[C], "{tails:?}");
    sim.kill_unlucky(A);
    end_isolation(&mut sim);
    sim.hold_journal(A, false);
    sim.start(A).unwrap();
    check_all(&mut sim);
    let text = format!("c has history up to LSN {}", tails[C]);
    assert!(sim.logs().contains(&text), "{}", sim.logs());
}

#[test]
fn a_frozen_primary_goes_on_without_all_that_are_lost_on_the_operators_word() {
    let mut sim = Sim::three(7, AckMode::Sync, OnPeerLoss::Freeze);
    for at in [C, B, A] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    for at in [B, C] {
        sim.kill(at);
    }
    sim.pass(Duration::from_secs(8));
    assert_eq!(sim.status(A).state, GroupState::Frozen);
    let force = vec![Force::PeerUnreachable];
    let id = sim.command(A, Command::Promote { force });
    sim.pass(Duration::from_secs(1));
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
    assert_eq!(alone(&mut sim, A), Some("b and c".into()));
}
