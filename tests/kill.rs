//! Nothing acknowledged is lost, whichever process is killed, and whenever.

mod support;

use std::process::Child;
use std::thread;
use std::time::Duration;

use doublure::base::Role;
use doublure::status::{GroupState, PeerState};
use support::site::PATIENCE;
use support::tools::{Running, command, eventually, succeeded};
use support::{Checker, Client, Dialect, Dice, Pair, Plan, Setup, Site, fio, need, run};

fn check(pair: &Pair, seed: u64) -> Checker {
    Checker::start(Plan::new(seed, pair.setup.size), pair.targets())
}

/// The end of every test here: both sites agree with the record, each as primary, and with each other byte for byte.
fn hold_both_sites_to_the_record(pair: &mut Pair, checker: Checker) {
    let mut verdict = checker.stop();
    pair.wait_in_sync();
    verdict.assert_agrees(&pair.primary().target());
    pair.stop_and_compare();
    verdict.assert_image_agrees(&pair.clichy.home());
    pair.start_both();
    pair.primary().order(&["switchover", "demo"]);
    pair.wait_in_sync();
    verdict.assert_agrees(&pair.primary().target());
    pair.stop_and_compare();
    verdict.assert_image_agrees(&pair.chelles.home());
}

fn lead_and_follow(pair: &mut Pair) -> (&mut Site, &mut Site) {
    if pair.clichy.group().role == Role::Primary {
        (&mut pair.clichy, &mut pair.chelles)
    } else {
        (&mut pair.chelles, &mut pair.clichy)
    }
}

fn kill_each_five_times(setup: Setup, seed: u64) {
    let mut pair = Pair::start(Setup {
        timeout: "2s",
        ..setup
    });
    let checker = check(&pair, seed);
    checker.wait_for(300);
    for round in 0..10 {
        let (primary, mirror) = lead_and_follow(&mut pair);
        if round % 2 == 0 {
            mirror.kill();
            // Some of the work is done without the mirror, so that it has something to catch up with.
            checker.wait_for(200);
            mirror.start();
        } else {
            primary.crash();
            checker.wait_for(1);
        }
        pair.wait_in_sync();
        checker.wait_for(200);
    }
    hold_both_sites_to_the_record(&mut pair, checker);
}

#[test]
fn ten_kills_of_primary_and_mirror_under_load_lose_nothing_in_sync_mode() {
    kill_each_five_times(Setup::default(), 101);
}

#[test]
fn ten_kills_of_primary_and_mirror_under_load_lose_nothing_in_memsync_mode() {
    kill_each_five_times(
        Setup {
            ack: "memsync",
            ..Setup::default()
        },
        102,
    );
}

#[test]
fn ten_kills_of_primary_and_mirror_under_load_lose_nothing_in_async_mode_while_the_primary_returns()
{
    kill_each_five_times(
        Setup {
            ack: "async",
            ..Setup::default()
        },
        103,
    );
}

#[test]
fn ten_kills_lose_nothing_with_a_small_journal_that_is_reused_all_the_time_and_compressed() {
    let setup = Setup {
        journal: "32MiB",
        group_lines: "compress = \"auto\"",
        ..Setup::default()
    };
    kill_each_five_times(setup, 104);
}

#[test]
fn every_write_that_fio_saw_acknowledged_reads_back_after_ten_kills_on_both_sites() {
    need(&["fio", "nbdkit"]);
    let mut pair = Pair::start(Setup {
        timeout: "2s",
        ..Setup::default()
    });
    // fio gives up with its connection; nbdkit in between connects again and sends again what was not answered.
    let socket = pair.scratch().join("retry");
    let mut nbdkit = command("nbdkit");
    nbdkit
        .args(["--foreground", "--filter=retry", "--unix"])
        .arg(&socket)
        .arg("nbd");
    nbdkit.arg(format!("uri={}", pair.clichy.uri()));
    nbdkit.args(["retries=1000", "retry-delay=1", "retry-exponential=no"]);
    let _nbdkit = Running::start(&mut nbdkit);
    eventually("nbdkit listens", PATIENCE, || socket.exists());
    let uri = format!("nbd+unix:///demo?socket={}", socket.display());
    let writing = fio::write_slowly_and_verify(pair.scratch(), &uri, "900k");
    for round in 0..10 {
        let before = pair.clichy.group().totals.writes;
        pair.clichy
            .wait_until("fio writes", |g| g.totals.writes > before + 5);
        if round % 2 == 0 {
            pair.chelles.crash();
        } else {
            pair.clichy.crash();
        }
        pair.wait_in_sync();
    }
    finish(writing);
    run(&mut fio::verify_again(pair.scratch(), &pair.clichy.uri()));
    pair.stop_and_compare();
    pair.start_both();
    pair.clichy.order(&["switchover", "demo"]);
    pair.chelles.wait_in_sync();
    run(&mut fio::verify_again(pair.scratch(), &pair.chelles.uri()));
    pair.stop_and_compare();
}

fn finish(mut fio: Child) {
    assert!(
        fio.try_wait().unwrap().is_none(),
        "fio wrote during all of the kills"
    );
    let output = fio.wait_with_output().unwrap();
    succeeded("fio during the kills", &output);
}

#[test]
fn the_promoted_mirror_of_a_killed_primary_has_everything_that_was_acknowledged() {
    for (seed, ack) in [(201, "sync"), (202, "memsync")] {
        let mut pair = Pair::start(Setup {
            ack,
            timeout: "2s",
            ..Setup::default()
        });
        let checker = check(&pair, seed);
        for _ in 0..3 {
            checker.wait_for(500);
            let (primary, mirror) = lead_and_follow(&mut pair);
            primary.kill();
            let said = mirror.refused(&["promote", "demo"]);
            assert!(
                said.contains("peer-unreachable"),
                "it says what --force would override: {said}"
            );
            mirror.order(&["promote", "demo", "--force", "peer-unreachable"]);
            checker.wait_for(100);
            // The old primary comes back, sees that its epoch is over, and follows.
            primary.start();
            pair.wait_in_sync();
        }
        hold_both_sites_to_the_record(&mut pair, checker);
    }
}

#[test]
fn a_primary_restarted_without_its_peer_waits_and_serves_nobody_until_the_peer_is_there() {
    let mut pair = Pair::start(Setup {
        timeout: "2s",
        ..Setup::default()
    });
    let checker = check(&pair, 301);
    checker.wait_for(500);
    pair.clichy.kill();
    pair.chelles.kill();
    pair.clichy.start();
    let waiting = pair.clichy.wait_state(GroupState::WaitingForPeer);
    assert!(
        waiting.reason.contains("chelles"),
        "it says for whom it waits: {}",
        waiting.reason
    );
    assert!(!waiting.healthy);
    let before = checker.acknowledged();
    let refusal = Client::attach(&pair.clichy.target(), "demo", Dialect::Simple)
        .err()
        .expect("no client is served");
    assert_eq!(
        refusal.kind(),
        std::io::ErrorKind::PermissionDenied,
        "{refusal}"
    );
    assert_eq!(checker.acknowledged(), before);
    pair.chelles.start();
    pair.wait_in_sync();
    checker.wait_for(200);
    hold_both_sites_to_the_record(&mut pair, checker);
}

#[test]
fn a_waiting_primary_serves_when_the_operator_says_that_the_peer_is_gone() {
    let mut pair = Pair::start(Setup {
        timeout: "2s",
        ..Setup::default()
    });
    let checker = check(&pair, 302);
    checker.wait_for(500);
    pair.clichy.kill();
    pair.chelles.kill();
    pair.clichy.start();
    pair.clichy.wait_state(GroupState::WaitingForPeer);
    pair.clichy
        .order(&["promote", "demo", "--force", "peer-unreachable"]);
    pair.clichy.wait_state(GroupState::Alone);
    checker.wait_for(200);
    // Alone on durable record: the next restart needs nobody's leave.
    pair.clichy.crash();
    checker.wait_for(200);
    pair.chelles.start();
    pair.wait_in_sync();
    hold_both_sites_to_the_record(&mut pair, checker);
}

#[test]
fn both_sites_killed_at_once_come_back_with_everything() {
    let mut pair = Pair::start(Setup::default());
    let checker = check(&pair, 401);
    for _ in 0..4 {
        checker.wait_for(400);
        pair.clichy.kill();
        pair.chelles.kill();
        pair.start_both();
    }
    hold_both_sites_to_the_record(&mut pair, checker);
}

#[test]
fn a_site_killed_again_and_again_while_it_recovers_comes_back_with_everything() {
    let mut pair = Pair::start(Setup::default());
    let mut dice = Dice::new(7);
    let checker = check(&pair, 501);
    for _ in 0..3 {
        checker.wait_for(600);
        pair.clichy.kill();
        for _ in 0..4 {
            // No event marks the middle of a recovery: any moment will do, and each run draws others.
            pair.clichy.spawn();
            thread::sleep(Duration::from_micros(dice.below(30_000)));
            pair.clichy.kill();
        }
        pair.clichy.start();
        pair.wait_in_sync();
        pair.chelles.kill();
        for _ in 0..4 {
            pair.chelles.spawn();
            thread::sleep(Duration::from_micros(dice.below(30_000)));
            pair.chelles.kill();
        }
        pair.chelles.start();
        pair.wait_in_sync();
    }
    hold_both_sites_to_the_record(&mut pair, checker);
}

#[test]
fn a_mirror_killed_while_it_is_promoted_is_promoted_at_the_next_try_with_everything() {
    let mut dice = Dice::new(8);
    let mut pair = Pair::start(Setup {
        timeout: "2s",
        ..Setup::default()
    });
    let checker = check(&pair, 601);
    for _ in 0..4 {
        checker.wait_for(400);
        let (primary, mirror) = lead_and_follow(&mut pair);
        primary.kill();
        let delay = Duration::from_micros(dice.below(20_000));
        thread::scope(|scope| {
            let site = &*mirror;
            scope.spawn(|| site.cli(&["promote", "demo", "--force", "peer-unreachable"]));
            thread::sleep(delay);
            site.signal(rustix::process::Signal::KILL);
        });
        mirror.crash();
        mirror.order(&["promote", "demo", "--force", "peer-unreachable"]);
        mirror.wait_until("primary", |g| {
            g.role == Role::Primary && g.state == GroupState::Alone
        });
        checker.wait_for(50);
        primary.start();
        pair.wait_in_sync();
    }
    hold_both_sites_to_the_record(&mut pair, checker);
}

#[test]
fn either_site_killed_while_the_mirror_catches_up_comes_back_with_everything() {
    let mut pair = Pair::start(Setup {
        timeout: "2s",
        journal: "256MiB",
        ..Setup::default()
    });
    let checker = check(&pair, 701);
    checker.wait_for(200);
    for round in 0..4 {
        pair.chelles.kill();
        pair.clichy.wait_state(GroupState::Alone);
        checker.wait_for(400);
        pair.chelles.start();
        pair.clichy.wait_until("the mirror catches up", |g| {
            matches!(g.peers[0].state, PeerState::CatchingUp | PeerState::InSync)
        });
        if round % 2 == 0 {
            pair.chelles.crash();
        } else {
            pair.clichy.crash();
        }
        pair.wait_in_sync();
        checker.wait_for(100);
    }
    hold_both_sites_to_the_record(&mut pair, checker);
}

#[test]
fn a_primary_whose_mirror_is_ahead_adopts_the_mirror_s_longer_tail() {
    need(&["cp"]);
    let mut pair = Pair::start(Setup {
        timeout: "2s",
        ..Setup::default()
    });
    let checker = check(&pair, 801);
    checker.wait_for(500);
    // The primary's files as they are at one instant; what follows is only at the mirror once they are put back.
    pair.clichy.signal(rustix::process::Signal::STOP);
    let old = pair.scratch().join("old");
    run(command("cp")
        .args(["-a", "--sparse=always"])
        .arg(pair.clichy.data())
        .arg(&old));
    pair.clichy.signal(rustix::process::Signal::CONT);
    checker.wait_for(500);
    pair.clichy.kill();
    std::fs::remove_dir_all(pair.clichy.data()).unwrap();
    std::fs::rename(&old, pair.clichy.data()).unwrap();
    let behind = pair.chelles.group().tail_lsn;
    pair.clichy.start();
    let group = pair.clichy.wait_in_sync();
    assert!(
        group.commit_lsn >= behind,
        "{} adopted up to {}, the mirror had {behind}",
        pair.clichy.name,
        group.commit_lsn
    );
    checker.wait_for(100);
    hold_both_sites_to_the_record(&mut pair, checker);
}

#[test]
fn a_primary_put_back_to_an_older_epoch_never_serves_old_content() {
    need(&["cp"]);
    let mut pair = Pair::start(Setup {
        timeout: "2s",
        ..Setup::default()
    });
    let plan = Plan::new(802, pair.setup.size);
    let checker = Checker::start(plan.clone(), pair.targets());
    checker.wait_for(300);
    let verdict = checker.stop();
    pair.stop_both();
    let old = pair.scratch().join("old");
    run(command("cp")
        .args(["-a", "--sparse=always"])
        .arg(pair.clichy.data())
        .arg(&old));
    pair.start_both();
    let checker = verdict.resume(Plan { seed: 803, ..plan }, pair.targets());
    checker.wait_for(300);
    let mut verdict = checker.stop();
    pair.clichy.kill();
    std::fs::remove_dir_all(pair.clichy.data()).unwrap();
    std::fs::rename(&old, pair.clichy.data()).unwrap();
    pair.clichy.start();
    // It comes to rest: it fetched what it lost and serves, or it does not serve and says why.
    let group = pair
        .clichy
        .wait_until("at rest", |g| g.state != GroupState::Starting);
    if Client::attach(&pair.clichy.target(), "demo", Dialect::Simple).is_ok() {
        verdict.assert_agrees(&pair.clichy.target());
    } else {
        assert!(!group.reason.is_empty(), "{group:?}");
        // The mirror has everything, whatever the other one lost.
        if pair.chelles.group().role == Role::Mirror {
            pair.clichy.kill();
            pair.chelles
                .order(&["promote", "demo", "--force", "peer-unreachable"]);
        }
        verdict.assert_agrees(&pair.chelles.target());
    }
}

#[test]
fn an_empty_mirror_of_a_full_group_is_filled_under_load_and_may_be_killed_meanwhile() {
    let mut pair = Pair::new(Setup {
        timeout: "2s",
        ..Setup::default()
    });
    pair.clichy.start();
    pair.clichy.wait_state(GroupState::Alone);
    let checker = check(&pair, 901);
    checker.wait_for(1500);
    pair.chelles.start();
    pair.wait_in_sync();
    checker.wait_for(100);

    // Its disk is lost; a new one is filled again, with kills of either site on the way.
    pair.chelles.kill();
    std::fs::remove_dir_all(pair.chelles.data()).unwrap();
    checker.wait_for(100);
    pair.chelles.start();
    pair.chelles.crash();
    pair.clichy.crash();
    pair.wait_in_sync();
    checker.wait_for(100);
    hold_both_sites_to_the_record(&mut pair, checker);
}
