//! Two sites in two network namespaces: the wire between them is cut under load, and mended.

mod support;

use std::time::{Duration, Instant};

use doublure::status::{GroupState, PeerState};
use support::netns::Wire;
use support::tools::root_or_skip;
use support::{Checker, Pair, Plan, Setup, need};

/// Longer than the timeout by enough that nobody can take it for a hiccup.
const OUTAGE: Duration = Duration::from_secs(8);

fn setup(ack: &'static str, on_peer_loss: &'static str) -> Setup {
    Setup {
        ack,
        on_peer_loss,
        timeout: "2s",
        ..Setup::default()
    }
}

/// Cuts the wire of a pair under load; `during` is called when the cut was noticed.
fn outage(setup: Setup, during: impl FnOnce(&Pair, &Checker)) {
    need(&["ip"]);
    if !root_or_skip("a network namespace") {
        return;
    }
    let wire = Wire::new();
    let mut pair = Pair::on_wire(setup, &wire);
    pair.start_both();
    // No trims of the record here: the clients are on the primary's side of the cut.
    let checker = Checker::start(Plan::new(42, pair.setup.size), vec![pair.clichy.target()]);
    checker.wait_for(300);
    let cut = Instant::now();
    wire.cut();
    during(&pair, &checker);
    std::thread::sleep(OUTAGE.saturating_sub(cut.elapsed()));
    wire.up();
    pair.wait_in_sync();
    checker.wait_for(300);
    let mut verdict = checker.stop();
    assert_eq!(verdict.connected, 4, "no client lost its connection");
    verdict.assert_agrees(&pair.clichy.target());
    pair.stop_and_compare();
    verdict.assert_image_agrees(&pair.chelles.home());
}

fn goes_on_alone(pair: &Pair, checker: &Checker) {
    let group = pair.clichy.wait_state(GroupState::Alone);
    let alone = group.alone.expect("a record of going alone");
    assert_eq!(alone.peer, "chelles");
    assert!(!group.healthy);
    checker.wait_for(300);
    let group = pair.clichy.group();
    assert!(
        group.alone.expect("still alone").operations > 0,
        "what is on one site only is counted"
    );
    assert_eq!(
        pair.clichy.cli(&["status"]).status.code(),
        Some(3),
        "degraded"
    );
    assert_eq!(
        pair.chelles.wait_state(GroupState::Disconnected).role,
        doublure::base::Role::Mirror
    );
    assert!(
        pair.chelles
            .refused(&["promote", "demo"])
            .contains("peer-unreachable")
    );
}

fn freezes(pair: &Pair, checker: &Checker) {
    let group = pair.clichy.wait_state(GroupState::Frozen);
    assert!(group.alone.is_none() && !group.healthy, "{group:?}");
    let (acknowledged, commit) = (checker.acknowledged(), group.commit_lsn);
    // That nothing happens can only be watched for a while.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(
        checker.acknowledged(),
        acknowledged,
        "a frozen group acknowledges nothing"
    );
    assert_eq!(pair.clichy.group().commit_lsn, commit);
}

fn goes_on_regardless(pair: &Pair, checker: &Checker) {
    checker.wait_for(300);
    pair.clichy
        .wait_until("the peer is noticed to be gone", |g| {
            g.peers[0].state != PeerState::InSync
        });
    checker.wait_for(300);
    assert!(pair.clichy.group().peers[0].lag_operations > 0);
}

#[test]
fn in_sync_mode_a_cut_wire_is_survived_alone_and_caught_up() {
    outage(setup("sync", "continue"), goes_on_alone);
}

#[test]
fn in_memsync_mode_a_cut_wire_is_survived_alone_and_caught_up() {
    outage(setup("memsync", "continue"), goes_on_alone);
}

#[test]
fn in_async_mode_a_cut_wire_is_not_waited_for_and_caught_up() {
    outage(setup("async", "continue"), goes_on_regardless);
}

#[test]
fn in_sync_mode_freeze_acknowledges_nothing_until_the_wire_is_mended() {
    outage(setup("sync", "freeze"), freezes);
}

#[test]
fn in_memsync_mode_freeze_acknowledges_nothing_until_the_wire_is_mended() {
    outage(setup("memsync", "freeze"), freezes);
}

#[test]
fn in_async_mode_freeze_acknowledges_nothing_until_the_wire_is_mended() {
    outage(setup("async", "freeze"), freezes);
}

#[test]
fn a_dead_peer_is_noticed_within_the_configured_time() {
    outage(
        Setup {
            timeout: "3s",
            ..setup("sync", "continue")
        },
        |pair, _| {
            let cut = Instant::now();
            pair.clichy.wait_state(GroupState::Alone);
            let noticed = cut.elapsed();
            assert!(
                (Duration::from_secs(2)..Duration::from_secs(6)).contains(&noticed),
                "noticed after {noticed:?} with a timeout of 3 s"
            );
        },
    );
}

#[test]
fn a_wire_that_flaps_loses_nothing() {
    need(&["ip"]);
    if !root_or_skip("a network namespace") {
        return;
    }
    let wire = Wire::new();
    let mut pair = Pair::on_wire(setup("sync", "continue"), &wire);
    pair.start_both();
    let checker = Checker::start(Plan::new(43, pair.setup.size), vec![pair.clichy.target()]);
    for milliseconds in [100, 700, 1500, 2500, 300, 4000] {
        checker.wait_for(50);
        wire.cut();
        std::thread::sleep(Duration::from_millis(milliseconds));
        wire.up();
        std::thread::sleep(Duration::from_millis(milliseconds / 3));
    }
    pair.wait_in_sync();
    let mut verdict = checker.stop();
    verdict.assert_agrees(&pair.clichy.target());
    pair.stop_and_compare();
}

#[test]
fn a_mirror_promoted_behind_a_cut_wire_and_a_primary_that_went_on_are_told_apart_not_merged() {
    need(&["ip"]);
    if !root_or_skip("a network namespace") {
        return;
    }
    let wire = Wire::new();
    let mut pair = Pair::on_wire(setup("sync", "continue"), &wire);
    pair.start_both();
    let checker = Checker::start(Plan::new(44, pair.setup.size), vec![pair.clichy.target()]);
    checker.wait_for(300);
    wire.cut();
    pair.clichy.wait_state(GroupState::Alone);
    pair.chelles.wait_state(GroupState::Disconnected);
    pair.chelles
        .order(&["promote", "demo", "--force", "peer-unreachable"]);
    pair.chelles.wait_state(GroupState::Alone);
    checker.wait_for(100);
    wire.up();
    for site in [&pair.clichy, &pair.chelles] {
        let group = site.wait_until("both sites see that both are primary", |g| {
            matches!(g.state, GroupState::BothPrimary | GroupState::Forked)
                || g.peers.iter().any(|p| p.state == PeerState::Refused)
        });
        assert!(
            !group.healthy && !group.peers[0].detail.is_empty(),
            "{group:?}"
        );
    }
    checker.wait_for(100);
    let mut verdict = checker.stop();
    verdict.assert_agrees(&pair.clichy.target());
}
