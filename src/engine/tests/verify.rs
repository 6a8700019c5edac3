//! Verification: what differs is found, whoever is wrong is proven so, and it is mended on either side.

use std::time::Duration;

use super::resync::{assert_same, forget_the_journal_writing_chunk, pair};
use super::sim::{Sim, VOLUME};
use crate::base::{BLOCK, CHUNK_BYTES, VolumeId};
use crate::engine::{Command, File};
use crate::status::{DifferingRange, GroupState, VerifyState, VerifyStatus};

const HOME: File = File::Home(VolumeId(0));
const BLOCK_BYTES: u64 = BLOCK as u64;

/// Somewhere in the last chunk.
const PLACE: u64 = 3 * CHUNK_BYTES + 5 * BLOCK_BYTES;

fn command(sim: &mut Sim, repair: bool, keep: Option<&str>) -> Result<String, String> {
    let keep = keep.map(str::to_owned);
    let id = sim.command(0, Command::Verify { repair, keep });
    sim.answers[&id].clone()
}

fn verified(sim: &mut Sim, at: usize) -> VerifyStatus {
    sim.pass_until(Duration::from_secs(60), |sim| {
        sim.status(at)
            .verify
            .is_some_and(|v| v.ended_unix_seconds.is_some())
    });
    sim.status(at).verify.unwrap()
}

fn verify(sim: &mut Sim, repair: bool, keep: Option<&str>) -> VerifyStatus {
    command(sim, repair, keep).unwrap();
    verified(sim, 0)
}

fn rot(sim: &mut Sim, at: usize, place: u64) {
    sim.homes();
    sim.sites[at].disk.rot(HOME, place);
}

/// One range of one block at `PLACE`.
fn one_block(wrong_on: &[&str], unreadable_on: &[&str], repaired: bool) -> Vec<DifferingRange> {
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    vec![DifferingRange {
        volume: "v".into(),
        offset: PLACE,
        bytes: BLOCK_BYTES,
        wrong_on: names(wrong_on),
        unreadable_on: names(unreadable_on),
        repaired,
    }]
}

#[test]
fn a_verification_under_load_raises_no_false_alarm() {
    let mut sim = pair(8);
    for round in 0..20 {
        command(&mut sim, false, None).unwrap();
        let mut turns = 0;
        while sim.status(0).verify.unwrap().state == VerifyState::Running {
            if sim.outstanding() < 32 {
                sim.random_request();
            }
            for _ in 0..sim.rng.below(8) {
                sim.step();
            }
            turns += 1;
            assert!(turns < 20_000, "round {round}: it never ends");
        }
        let found = sim.status(0).verify.unwrap();
        assert_eq!(found.state, VerifyState::Equal, "round {round}: {found:?}");
        assert_eq!(found.done_bytes, VOLUME);
    }
    assert!(sim.acked > 100);
    assert_same(&mut sim);
}

#[test]
fn rot_on_either_side_is_proven_by_the_journal_and_mended() {
    for (at, name) in [(0, "a"), (1, "b")] {
        let mut sim = pair(9);
        rot(&mut sim, at, PLACE + 77);
        let found = verify(&mut sim, false, None);
        assert_eq!(found.state, VerifyState::Differs);
        assert_eq!(found.differing, one_block(&[name], &[], false));
        assert_eq!(found.differing_bytes, BLOCK_BYTES);
        let wrong = (found.wrong_on_primary_bytes, found.wrong_on_peer_bytes);
        let here = if at == 0 {
            (BLOCK_BYTES, 0)
        } else {
            (0, BLOCK_BYTES)
        };
        assert_eq!(wrong, here);
        sim.settle();
        assert!(!sim.status(0).healthy && !sim.status(1).healthy);
        assert_eq!(sim.status(0).state, GroupState::Serving);

        let found = verify(&mut sim, true, None);
        assert_eq!(found.state, VerifyState::Repaired, "{}", sim.logs());
        assert_eq!(found.differing, one_block(&[name], &[], true));
        sim.settle();
        assert!(sim.status(0).healthy && sim.status(1).healthy);
        assert_eq!(verify(&mut sim, false, None).state, VerifyState::Equal);
        assert_same(&mut sim);
    }
}

#[test]
fn rot_on_both_sides_of_one_block_is_mended_from_the_journal() {
    let mut sim = pair(15);
    rot(&mut sim, 0, PLACE + 9);
    rot(&mut sim, 1, PLACE + 2000);
    let found = verify(&mut sim, true, None);
    assert_eq!(found.state, VerifyState::Repaired, "{}", sim.logs());
    assert_eq!(found.differing, one_block(&["a", "b"], &[], true));
    assert_same(&mut sim);
}

#[test]
fn without_proof_nothing_is_guessed_and_the_operator_says_whose_content_is_kept() {
    for (kept, rotten) in [("a", 1), ("b", 0)] {
        let mut sim = pair(16);
        forget_the_journal_writing_chunk(&mut sim, 0, 1);
        rot(&mut sim, rotten, PLACE + 4);
        let before = sim.homes();
        let found = verify(&mut sim, true, None);
        assert_eq!(found.state, VerifyState::Differs);
        assert_eq!(found.differing, one_block(&[], &[], false));
        assert_eq!(found.undecided_bytes, BLOCK_BYTES);
        assert!(sim.logs().contains("--keep SITE"), "{}", sim.logs());
        assert!(sim.homes() == before, "nothing was touched");

        let found = verify(&mut sim, true, Some(kept));
        assert_eq!(found.state, VerifyState::Repaired, "{}", sim.logs());
        assert_eq!(found.keep.as_deref(), Some(kept));
        assert_eq!(found.differing, one_block(&[], &[], true));
        assert_same(&mut sim);
    }
    let mut sim = pair(16);
    let refused = command(&mut sim, true, Some("x")).unwrap_err();
    assert!(refused.contains("a, b"), "{refused}");
    assert!(command(&mut sim, false, Some("a")).is_err());
}

#[test]
fn what_a_site_cannot_read_is_a_finding_and_is_written_again() {
    for proof in [true, false] {
        for (at, name) in [(0, "a"), (1, "b")] {
            let mut sim = pair(17);
            if !proof {
                forget_the_journal_writing_chunk(&mut sim, 0, 1);
            }
            sim.homes();
            let block = (HOME, PLACE / BLOCK_BYTES);
            sim.sites[at].disk.unreadable.insert(block);
            let found = verify(&mut sim, false, None);
            assert_eq!(found.state, VerifyState::Differs, "{}", sim.logs());
            assert_eq!(found.differing, one_block(&[name], &[name], false));
            assert_eq!(found.unreadable_bytes, BLOCK_BYTES);
            let found = verify(&mut sim, true, None);
            assert_eq!(found.state, VerifyState::Repaired, "{}", sim.logs());
            sim.settle();
            assert!(sim.sites[at].disk.unreadable.is_empty());
            assert!(!sim.logs().contains("cannot be read for its mirror"));
            assert_same(&mut sim);
        }
    }
}

#[test]
fn what_neither_site_can_read_comes_from_the_journal_or_stays() {
    for proof in [true, false] {
        let mut sim = pair(18);
        if !proof {
            forget_the_journal_writing_chunk(&mut sim, 0, 1);
        }
        sim.homes();
        for at in [0, 1] {
            let block = (HOME, PLACE / BLOCK_BYTES);
            sim.sites[at].disk.unreadable.insert(block);
        }
        let found = verify(&mut sim, true, None);
        assert_eq!(
            found.differing,
            one_block(&["a", "b"], &["a", "b"], proof),
            "{}",
            sim.logs()
        );
        let state = if proof {
            VerifyState::Repaired
        } else {
            VerifyState::Differs
        };
        assert_eq!(found.state, state);
    }
}

#[test]
fn very_many_differences_are_counted_and_mended_one_and_all() {
    let mut sim = pair(19);
    sim.homes();
    // Every other block, on one site and the other by turns.
    for block in (0..VOLUME / BLOCK_BYTES).step_by(2) {
        let at = (block / 2 % 2) as usize;
        sim.sites[at].disk.rot(HOME, block * BLOCK_BYTES + 50);
    }
    let found = verify(&mut sim, true, None);
    assert_eq!(found.state, VerifyState::Repaired, "{found:?}");
    assert_eq!(found.differing_bytes, VOLUME / 2);
    assert_eq!(found.wrong_on_primary_bytes, VOLUME / 4);
    assert_eq!(found.differing.len(), 32);
    assert!(found.differing.iter().all(|r| r.repaired));
    assert_same(&mut sim);
}

#[test]
fn rot_is_mended_while_clients_write_all_around_it() {
    for seed in 0..12 {
        let mut sim = pair(100 + seed);
        sim.homes();
        for n in 0..6 {
            let at = (n + seed) as usize % 2;
            sim.sites[at].disk.rot(HOME, n * 11 * BLOCK_BYTES + 50);
        }
        command(&mut sim, true, None).unwrap();
        let mut turns = 0;
        while sim.status(0).verify.unwrap().state == VerifyState::Running {
            if sim.outstanding() < 16 {
                // No reads: what rotted may be seen until it is mended.
                let range = sim.random_range();
                sim.write(0, range, false);
            }
            for _ in 0..sim.rng.below(8) {
                sim.step();
            }
            turns += 1;
            assert!(turns < 40_000, "it never ends: {:?}", sim.status(0).verify);
        }
        let found = sim.status(0).verify.unwrap();
        assert_eq!(found.undecided_bytes, 0, "{found:?}");
        // What was written to without a pause may be left for the next time.
        verify(&mut sim, true, None);
        assert_eq!(verify(&mut sim, true, None).state, VerifyState::Equal);
        assert_same(&mut sim);
    }
}

/// The mirror is consistent: a repair must not bring what may still be dropped into its home.
#[test]
fn a_repair_brings_nothing_into_a_home_that_is_not_committed_and_durable_there() {
    let mut sim = pair(77);
    rot(&mut sim, 1, PLACE + 77);
    sim.hold_journal(1, true);
    let before = sim.homes()[1].clone();
    let written = PLACE as usize + 512..PLACE as usize + 1024;
    let range = crate::base::ByteRange::new(written.start as u64, 512);
    sim.write(0, range, false);
    let sent = sim.chunk_bytes;
    command(&mut sim, true, None).unwrap();
    sim.pass_until(Duration::from_secs(4), |sim| sim.chunk_bytes > sent);
    sim.pass(Duration::from_millis(100));
    let home = sim.sites[1].disk.content(HOME, 0, VOLUME as usize);
    assert_eq!(home[written.clone()], before[written.clone()]);
    assert_eq!(sim.outstanding(), 1, "it is not acknowledged either");
    sim.hold_journal(1, false);
    let found = verified(&mut sim, 0);
    assert_eq!(found.state, VerifyState::Repaired, "{}", sim.logs());
    assert_same(&mut sim);
    assert_ne!(sim.homes()[1][written.clone()], before[written]);
}

#[test]
fn a_damaged_journal_proves_nothing_about_what_is_before_the_damage() {
    let mut sim = pair(20);
    let place = sim.journal_place(0, 5);
    sim.sites[0].disk.rot(File::Journal, place + 100);
    rot(&mut sim, 1, PLACE + 4);
    let found = verify(&mut sim, true, None);
    assert_eq!(found.differing, one_block(&[], &[], false));
    assert!(sim.logs().contains("proves nothing"), "{}", sim.logs());
    let found = verify(&mut sim, true, Some("a"));
    assert_eq!(found.state, VerifyState::Repaired);
    assert_same(&mut sim);
}

/// Slow enough that a verification takes a while: a chunk in four seconds.
fn slowly(sim: &mut Sim) {
    for at in [0, 1] {
        sim.sites[at].config.resync_rate = Some(CHUNK_BYTES / 4);
        sim.kill(at);
    }
    for at in [1, 0] {
        sim.start(at).unwrap();
    }
    sim.heal();
    assert!(sim.attach(0));
}

/// The first chunk is done, and its differences are known at both sites.
fn get_past_one_chunk(sim: &mut Sim) {
    sim.pass_until(Duration::from_secs(60), |sim| {
        sim.status(1).verify.is_some_and(|v| v.differing_bytes > 0)
    });
    sim.pass(Duration::from_secs(1));
    let found = sim.status(0).verify.unwrap();
    assert_eq!(found.state, VerifyState::Running, "{}", sim.logs());
}

#[test]
fn an_interrupted_verification_goes_on_by_itself() {
    for trouble in 0..3 {
        let mut sim = pair(21);
        rot(&mut sim, 1, 100);
        slowly(&mut sim);
        command(&mut sim, true, None).unwrap();
        get_past_one_chunk(&mut sim);
        let began = sim.status(0).verify.unwrap();
        assert_eq!(began.repaired_bytes, BLOCK_BYTES);
        match trouble {
            0 => sim.break_links(),
            1 => {
                sim.kill(1);
                sim.start(1).unwrap();
            }
            _ => {
                sim.kill(0);
                sim.start(0).unwrap();
            }
        }
        sim.heal();
        let found = verified(&mut sim, 0);
        assert!(sim.logs().contains("goes on after"), "{}", sim.logs());
        assert_eq!(found.state, VerifyState::Repaired);
        assert_eq!(found.began_unix_seconds, began.began_unix_seconds);
        assert_eq!(found.differing_bytes, BLOCK_BYTES, "counted once");
        assert_eq!(found.done_bytes, VOLUME);
        assert_same(&mut sim);
    }
}

#[test]
fn after_a_switchover_the_new_primary_goes_on_and_knows_what_was_found() {
    let mut sim = pair(22);
    rot(&mut sim, 1, 100);
    slowly(&mut sim);
    command(&mut sim, false, None).unwrap();
    get_past_one_chunk(&mut sim);
    assert!(!sim.status(1).healthy, "the mirror was told");
    sim.command(0, Command::Switchover);
    sim.pass_until(Duration::from_secs(20), |sim| {
        sim.status(1).state == GroupState::Serving
    });
    let found = verified(&mut sim, 1);
    assert_eq!((found.primary.as_str(), found.peer.as_str()), ("b", "a"));
    assert_eq!(found.differing[0].wrong_on, ["b"]);
    assert_eq!(found.wrong_on_primary_bytes, BLOCK_BYTES);
    assert_eq!(found.done_bytes, VOLUME);
    sim.pass(Duration::from_secs(1));
    // The last result is known after a restart, on either site.
    for at in [0, 1] {
        sim.kill(at);
        sim.start(at).unwrap();
        let last = sim.status(at).last_verify.unwrap();
        assert_eq!(last.differing, found.differing);
    }
}

#[test]
fn a_verification_needs_a_mirror_in_sync_and_waits_for_it() {
    let mut sim = pair(10);
    let (repair, keep) = (false, None);
    let id = sim.command(1, Command::Verify { repair, keep });
    let refused = sim.answers[&id].clone().unwrap_err();
    assert!(refused.contains("`doublure verify g` on a"), "{refused}");
    sim.hold_disk(1, true);
    command(&mut sim, false, None).unwrap();
    let again = command(&mut sim, false, None).unwrap();
    assert!(again.contains("already"), "{again}");
    sim.kill(1);
    sim.pass(Duration::from_secs(1));
    let found = sim.status(0).verify.unwrap();
    assert_eq!(found.state, VerifyState::Interrupted);
    let refused = command(&mut sim, false, None).unwrap_err();
    assert!(refused.contains("in sync"), "{refused}");
    assert!(refused.contains("goes on by itself"), "{refused}");
    sim.hold_disk(1, false);
    sim.start(1).unwrap();
    sim.heal();
    assert_eq!(verified(&mut sim, 0).state, VerifyState::Equal);
    assert_same(&mut sim);
}

#[test]
fn a_repair_that_comes_while_differences_were_found_already_begins_anew() {
    let mut sim = pair(23);
    rot(&mut sim, 1, 100);
    slowly(&mut sim);
    command(&mut sim, false, None).unwrap();
    get_past_one_chunk(&mut sim);
    let text = command(&mut sim, true, None).unwrap();
    assert!(text.contains("anew"), "{text}");
    let found = verified(&mut sim, 0);
    assert_eq!(found.state, VerifyState::Repaired);
    assert_eq!(found.done_bytes, VOLUME);
    assert_same(&mut sim);
}

#[test]
fn a_scrub_begins_by_itself_when_it_is_due_and_takes_its_time() {
    const PERIOD: Duration = Duration::from_secs(1000);
    let mut sim = pair(24);
    for at in [0, 1] {
        sim.sites[at].config.scrub = PERIOD;
        sim.sites[at].config.resync_rate = Some(64 << 10);
        sim.kill(at);
    }
    for at in [1, 0] {
        sim.start(at).unwrap();
    }
    sim.heal();
    rot(&mut sim, 0, PLACE);
    let due = sim.status(0).next_scrub_unix_seconds.unwrap();
    let now = 1_700_000_000 + sim.now.as_secs();
    assert!(due > now + 900, "{due} {now}");
    sim.pass(Duration::from_secs(due - now - 5));
    assert!(sim.status(0).verify.is_none());
    sim.pass(Duration::from_secs(10));
    let found = sim.status(0).verify.unwrap();
    assert!(found.scrub && found.state == VerifyState::Running);
    let found = verified(&mut sim, 0);
    assert!(found.seconds > 14.0, "1 MiB at 64 KiB/s: {found:?}");
    assert_eq!(found.differing, one_block(&["a"], &[], false));
    assert!(!sim.status(0).healthy);
    let told = sim.logs().matches("the sites differ in").count();
    assert_eq!(told, 1, "{}", sim.logs());
    let next = sim.status(0).next_scrub_unix_seconds.unwrap();
    assert_eq!(next, found.ended_unix_seconds.unwrap() + PERIOD.as_secs());

    // The next one is taken over by the operator, at full rate.
    sim.pass(PERIOD + Duration::from_secs(2));
    assert!(sim.status(0).verify.unwrap().scrub);
    for at in [0, 1] {
        sim.sites[at].config.resync_rate = Some(0);
    }
    command(&mut sim, true, None).unwrap();
    let found = verified(&mut sim, 0);
    assert_eq!(found.state, VerifyState::Repaired);
    assert!(!found.scrub);
    assert_same(&mut sim);
}

#[test]
fn what_is_mended_is_not_seen_wrong_again_by_clients() {
    let mut sim = pair(25);
    rot(&mut sim, 0, PLACE + 77);
    command(&mut sim, true, None).unwrap();
    sim.hold_homes(0, true);
    sim.pass_until(Duration::from_secs(20), |sim| {
        sim.status(0).verify.is_some_and(|v| v.differing_bytes > 0)
    });
    sim.settle();
    // The right content waits to be applied, and is what is read already.
    let content = sim.read_all(0);
    sim.record.check(0, &content).unwrap();
    sim.hold_homes(0, false);
    assert_eq!(verified(&mut sim, 0).state, VerifyState::Repaired);
    assert_same(&mut sim);
}

#[test]
fn a_new_volume_is_zeroes_by_the_journal() {
    let mut sim = Sim::new(
        26,
        crate::base::AckMode::Sync,
        crate::base::OnPeerLoss::Continue,
    );
    for at in [1, 0] {
        sim.start(at).unwrap();
    }
    sim.heal();
    assert!(sim.attach(0));
    sim.write(0, crate::base::ByteRange::new(0, 4096), false);
    rot(&mut sim, 0, PLACE + 77);
    let found = verify(&mut sim, true, None);
    assert_eq!(found.differing, one_block(&["a"], &[], true));
    assert_same(&mut sim);
}

#[test]
fn restarts_and_lost_links_make_no_difference_to_what_is_found() {
    for seed in 0..10 {
        let mut sim = pair(200 + seed);
        sim.homes();
        if seed % 2 == 1 {
            sim.sites[1].disk.rot(HOME, PLACE + 1);
        }
        for turn in 1..=300 {
            // Whoever reads what rotted sees it.
            let at = sim.attached();
            if let Some(at) = at.filter(|_| sim.outstanding() < 16) {
                let range = sim.random_range();
                sim.write(at, range, false);
            }
            for _ in 0..sim.rng.below(12) {
                sim.step();
            }
            if turn % 20 == 0 {
                let _ = command(&mut sim, true, None);
            }
            if turn % 50 == 0 {
                match sim.rng.below(3) {
                    0 => sim.break_links(),
                    at => {
                        let at = at as usize - 1;
                        sim.kill(at);
                        sim.start(at).unwrap();
                    }
                }
                sim.pass(Duration::from_millis(300));
            }
        }
        sim.pass(Duration::from_secs(60));
        let rotten = |sim: &mut Sim| sim.status(0).last_verify.map(|v| v.differing_bytes);
        let found = rotten(&mut sim);
        if seed % 2 == 0 {
            assert!(found.is_none_or(|bytes| bytes == 0), "{}", sim.logs());
        }
        assert!(found.is_none_or(|bytes| bytes <= BLOCK_BYTES));
        verify(&mut sim, true, None);
        assert_eq!(verify(&mut sim, true, None).state, VerifyState::Equal);
        assert_same(&mut sim);
    }
}
