//! Copies of what differs, forks that are given up, and growing volumes.

use std::time::Duration;

use super::sim::{Sim, VOLUME, config};
use crate::base::sabotage::Sabotage;
use crate::base::{AckMode, BLOCK, ByteRange, CHUNK_BYTES, Hindrance, OnPeerLoss, Role, VolumeId};
use crate::engine::{Command, File, Force};
use crate::journal::Frame;
use crate::status::{GroupState, PeerState};

const HOME: File = File::Home(VolumeId(0));

pub(super) fn pair(seed: u64) -> Sim {
    let mut sim = Sim::new(seed, AckMode::Sync, OnPeerLoss::Continue);
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    // All of the volume holds something, and has been in the homes for a while.
    for n in 0..8 {
        sim.write(0, ByteRange::new(n * (VOLUME / 8), VOLUME / 8), false);
        sim.settle();
    }
    for _ in 0..8 {
        sim.write(0, ByteRange::new(2 * CHUNK_BYTES, CHUNK_BYTES), false);
        sim.settle();
    }
    sim.pass(Duration::from_secs(15));
    sim
}

/// Writes to one chunk until the journal no longer holds what is before.
pub(super) fn forget_the_journal_writing_chunk(sim: &mut Sim, at: usize, chunk: u64) {
    let first = sim.status(at).tail_lsn;
    let mut writes = 0;
    while sim.status(at).journal.first_lsn <= first {
        sim.write(at, ByteRange::new(chunk * CHUNK_BYTES, CHUNK_BYTES), false);
        sim.settle();
        writes += 1;
        if writes % 16 == 0 {
            sim.pass(Duration::from_secs(1));
        }
        assert!(writes < 2000, "the journal never goes round");
    }
}

pub(super) fn assert_same(sim: &mut Sim) {
    sim.heal();
    let [a, b] = sim.homes();
    let differs = a.iter().zip(&b).position(|(x, y)| x != y);
    assert_eq!(differs, None, "the homes differ:\n{}", sim.logs());
    let serving = sim.attached().expect("somebody serves");
    let content = sim.read_all(serving);
    sim.record.check(0, &content).unwrap();
    assert_eq!(sim.violations, Vec::<String>::new());
}

/// The frames of one request wait for their turn at the journal; that is no reason to take the mirror for overtaken.
#[test]
fn a_request_of_many_frames_is_streamed() {
    let (sync, policy) = (AckMode::Sync, OnPeerLoss::Continue);
    let mut primary = config("a", Some("b"), Role::Primary, sync, policy);
    primary.volumes[0].1 = 8 << 20;
    let mirror = config("b", Some("a"), Role::Mirror, sync, policy);
    let mut sim = Sim::with(1, primary, mirror);
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    sim.hold_journal(0, true);
    sim.write(0, ByteRange::new(0, 6 << 20), false);
    sim.pass(Duration::from_secs(1));
    sim.hold_journal(0, false);
    sim.pass(Duration::from_secs(1));
    assert!(sim.in_sync(), "{}", sim.logs());
    assert!(!sim.logs().contains("no longer holds"), "{}", sim.logs());
    assert_eq!(sim.violations, Vec::<String>::new());
    let [a, b] = [0, 1].map(|at| sim.sites[at].disk.content(HOME, 0, 8 << 20));
    assert!(a == b && a[(6 << 20) - 8] != 0);
}

#[test]
fn a_mirror_that_the_journal_no_longer_reaches_gets_only_what_changed() {
    let mut sim = pair(1);
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    forget_the_journal_writing_chunk(&mut sim, 0, 2);
    let sent = sim.chunk_bytes;
    sim.start(1).unwrap();
    assert_same(&mut sim);
    assert!(
        sim.logs().contains("copying to b: 256 KiB"),
        "{}",
        sim.logs()
    );
    assert!(sim.chunk_bytes - sent <= CHUNK_BYTES);
}

#[test]
fn what_a_mirror_lacks_is_still_known_after_the_primary_crashed() {
    let mut sim = pair(2);
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    forget_the_journal_writing_chunk(&mut sim, 0, 1);
    sim.kill(0);
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(1));
    assert!(sim.attach(0), "it was alone by its record");
    forget_the_journal_writing_chunk(&mut sim, 0, 3);
    sim.start(1).unwrap();
    assert_same(&mut sim);
}

#[test]
fn a_chunk_that_is_the_same_already_is_not_sent() {
    let mut sim = pair(3);
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    // The journal goes round, and what the record says may differ is everything.
    forget_the_journal_writing_chunk(&mut sim, 0, 0);
    sim.forget_changes(0);
    let sent = sim.chunk_bytes;
    sim.start(1).unwrap();
    assert_same(&mut sim);
    assert!(
        sim.logs().contains("copying to b: 1024 KiB"),
        "{}",
        sim.logs()
    );
    assert!(sim.chunk_bytes - sent <= CHUNK_BYTES, "three were the same");
}

#[test]
fn a_copy_that_is_interrupted_again_and_again_ends_at_last_while_writes_go_on() {
    let mut sim = pair(4);
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    forget_the_journal_writing_chunk(&mut sim, 0, 2);
    sim.start(1).unwrap();
    for round in 0..12 {
        for _ in 0..20 {
            sim.write(
                0,
                ByteRange::new(round % 4 * CHUNK_BYTES + 4096, 4096),
                false,
            );
            for _ in 0..=round {
                sim.step();
            }
        }
        if round % 3 == 0 {
            sim.kill(1);
            sim.start(1).unwrap();
        } else {
            sim.cut();
            sim.pass(Duration::from_millis(200));
            sim.connected = true;
        }
    }
    assert_same(&mut sim);
}

/// A volume of 32 chunks, at a rate at which a copy of them takes eight seconds; the mirror lacks a few, and which is not known.
fn slowly_copied(seed: u64) -> Sim {
    let (sync, policy) = (AckMode::Sync, OnPeerLoss::Continue);
    let slow = |mut config: crate::engine::GroupConfig| {
        config.resync_rate = Some(4 * CHUNK_BYTES);
        config
    };
    let mut primary = slow(config("a", Some("b"), Role::Primary, sync, policy));
    primary.volumes[0].1 = 32 * CHUNK_BYTES;
    let mirror = slow(config("b", Some("a"), Role::Mirror, sync, policy));
    let mut sim = Sim::with(seed, primary, mirror);
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    for chunk in 0..32 {
        sim.write(0, ByteRange::new(chunk * CHUNK_BYTES, CHUNK_BYTES), false);
        sim.settle();
    }
    sim.pass(Duration::from_secs(15));
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    for chunk in [3, 9, 20, 21, 30] {
        sim.write(0, ByteRange::new(chunk * CHUNK_BYTES, 4096), false);
    }
    forget_the_journal_writing_chunk(&mut sim, 0, 2);
    sim.forget_changes(0);
    sim
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum BreaksOff {
    Link,
    Mirror,
    Primary,
}

#[test]
fn a_copy_that_is_broken_off_again_and_again_goes_on_where_it_was() {
    use BreaksOff::{Link, Mirror, Primary};
    for (seed, what) in (0..).zip([Link, Mirror, Primary, Mirror, Primary]) {
        let mut sim = slowly_copied(seed);
        sim.start(1).unwrap();
        let mut left = Vec::new();
        while !sim.in_sync() {
            assert!(left.len() < 12, "{what:?}: {left:?}\n{}", sim.logs());
            sim.pass_until(Duration::from_secs(20), |sim| {
                sim.status(1).state == GroupState::Inconsistent
            });
            // Not enough for a copy, but for a part of one. Clients go on writing into what is there already.
            for n in 0..3 {
                sim.pass(Duration::from_secs(1));
                if n == 0 {
                    left.push(sim.status(0).peers[0].copy_total_bytes / CHUNK_BYTES);
                }
                if sim.attach(0) {
                    sim.write(0, ByteRange::new(n * CHUNK_BYTES + 8192, 4096), false);
                }
            }
            match what {
                _ if sim.in_sync() => {}
                Link => {
                    sim.cut();
                    sim.pass(Duration::from_secs(6));
                    sim.connected = true;
                }
                Mirror => {
                    sim.kill(1);
                    sim.start(1).unwrap();
                }
                Primary => {
                    sim.kill(0);
                    sim.start(0).unwrap();
                }
            }
        }
        assert!(left[0] >= 31 && left.len() > 2, "{what:?}: {left:?}");
        sim.pass(Duration::from_secs(15));
        let size = 32 * CHUNK_BYTES as usize;
        let [a, b] = [0, 1].map(|at| sim.sites[at].disk.content(HOME, 0, size));
        assert!(a == b, "{what:?}: the homes differ\n{}", sim.logs());
        assert_eq!(sim.violations, Vec::<String>::new());
    }
}

/// A copy of 32 chunks that all differ, while clients write into chunks that it has brought and into others that it has not.
/// The bytes written to the mirror's home meanwhile, and whether both homes are the same in the end.
fn copied_under_writes(seed: u64) -> (u64, bool) {
    let mut sim = slowly_copied(seed);
    for chunk in 0..32 {
        sim.write(0, ByteRange::new(chunk * CHUNK_BYTES, CHUNK_BYTES), false);
        sim.settle();
    }
    sim.start(1).unwrap();
    let before = sim.status(1).totals.home_bytes;
    sim.pass_until(Duration::from_secs(20), |sim| {
        sim.status(1).state == GroupState::Inconsistent
    });
    for _ in 0..7 {
        sim.pass(Duration::from_secs(1));
        for block in 0..8 {
            // One that is sent without a question, after so many that differ.
            let early = 12 * CHUNK_BYTES + block * 4096;
            sim.write(0, ByteRange::new(early, 4096), false);
            let late = 31 * CHUNK_BYTES + block * 32_768;
            sim.write(0, ByteRange::new(late, 32_768), false);
        }
    }
    sim.pass_until(Duration::from_secs(60), Sim::in_sync);
    sim.pass(Duration::from_secs(15));
    let size = 32 * CHUNK_BYTES as usize;
    let [a, b] = [0, 1].map(|at| sim.sites[at].disk.content(HOME, 0, size));
    (sim.status(1).totals.home_bytes - before, a == b)
}

#[test]
fn what_is_written_into_a_chunk_is_left_to_the_copy_until_that_has_brought_it_and_not_after() {
    let (bytes, same) = copied_under_writes(7);
    assert!(same);
    // Seven times the last chunk, if all of it were applied at once.
    let (copied, early) = (32 * CHUNK_BYTES, 7 * 8 * 4096);
    assert!(
        bytes <= copied + early + 2 * CHUNK_BYTES,
        "{bytes} bytes were written"
    );
    // It is looked for where it would hurt.
    let (_, same) = Sabotage::AwaitWhatCame.during(|| copied_under_writes(7));
    assert!(
        !same,
        "what came after a chunk was left out, and nothing shows it"
    );
}

/// Chunks are being read to be sent when clients write to them: what of that is committed has to wait, and lies beneath what is
/// in the open frame by the time they are sent. Whether both homes are the same in the end.
fn copied_beneath_an_open_frame(seed: u64) -> bool {
    let mut sim = slowly_copied(seed);
    for chunk in 0..32 {
        sim.write(0, ByteRange::new(chunk * CHUNK_BYTES, CHUNK_BYTES), false);
        sim.settle();
    }
    sim.start(1).unwrap();
    sim.pass_until(Duration::from_secs(20), |sim| {
        sim.status(1).state == GroupState::Inconsistent
    });
    // So many have differed that the next are sent without a question.
    sim.pass(Duration::from_secs(6));
    sim.hold_home_reads(0, true);
    sim.run_for(Duration::from_secs(1));
    let write_to_all = |sim: &mut Sim, block: u64| {
        for chunk in 8..28 {
            let place = chunk * CHUNK_BYTES + block * 4096;
            sim.write(0, ByteRange::new(place, 4096), false);
        }
    };
    write_to_all(&mut sim, 0);
    sim.run_for(Duration::from_millis(100));
    sim.hold_journal(0, true);
    // Two frames are being written: what comes then stays in the open one.
    for _ in 0..2 {
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.run_for(Duration::from_millis(10));
    }
    write_to_all(&mut sim, 5);
    sim.hold_home_reads(0, false);
    sim.run_for(Duration::from_millis(10));
    sim.hold_journal(0, false);
    sim.pass_until(Duration::from_secs(60), Sim::in_sync);
    sim.pass(Duration::from_secs(15));
    let size = 32 * CHUNK_BYTES as usize;
    let [a, b] = [0, 1].map(|at| sim.sites[at].disk.content(HOME, 0, size));
    a == b
}

#[test]
fn a_chunk_is_sent_with_what_lies_beneath_the_open_frame() {
    assert!(copied_beneath_an_open_frame(8));
    let same = Sabotage::CopyOnlyTheHome.during(|| copied_beneath_an_open_frame(8));
    assert!(!same, "it is not there, and nothing shows it");
}

/// From here on the truth is what this site holds.
pub(super) fn settle_for_what_is_read(sim: &mut Sim, at: usize) {
    let content = sim.read_all(at);
    sim.record = super::sim::Record::default();
    sim.record.settle(0, &content);
    sim.violations.clear();
}

#[test]
fn a_new_mirror_whose_first_copy_was_cut_off_gets_all_of_it_although_the_journal_holds_everything()
{
    for steps in 0..40 {
        let mut sim = pair(14);
        sim.kill(1);
        sim.wipe(1);
        sim.pass(Duration::from_secs(8));
        // The journal reaches back to the beginning, but a place in it is damaged: the mirror is copied to.
        let place = sim.journal_place(0, 3);
        sim.kill(0);
        sim.sites[0].disk.rot(File::Journal, place + 100);
        sim.start(0).unwrap();
        sim.pass(Duration::from_secs(2));
        assert!(sim.attach(0), "{}", sim.logs());
        sim.start(1).unwrap();
        sim.pass_until(Duration::from_secs(10), |sim| {
            sim.status(1).state == GroupState::Inconsistent
        });
        for _ in 0..steps {
            sim.step();
        }
        sim.kill(1);
        sim.start(1).unwrap();
        assert_same(&mut sim);
    }
}

/// Copies of these files from before the last writes are put back at a site that was stopped.
fn put_back(at: usize, files: &[File]) -> (Sim, Result<(), String>) {
    let mut sim = pair(31);
    let image = sim.sites[at].disk.image(files);
    for _ in 0..3 {
        for chunk in [0, 3] {
            let range = ByteRange::new(chunk * CHUNK_BYTES, CHUNK_BYTES);
            sim.write(0, range, false);
            sim.settle();
        }
        sim.pass(Duration::from_secs(11));
    }
    sim.kill(at);
    sim.sites[at].disk.put_back(&image);
    let started = sim.start(at).map_err(|error| error.to_string());
    (sim, started)
}

#[test]
fn an_old_copy_of_a_mirror_s_files_under_a_newer_record_is_compared_before_it_counts() {
    for files in [&[File::Journal][..], &[File::Journal, HOME]] {
        let (mut sim, started) = put_back(1, files);
        started.expect("a mirror starts");
        assert!(
            sim.logs().contains("older than the record of state"),
            "{}",
            sim.logs()
        );
        assert_same(&mut sim);
    }
    for files in [&[File::Journal, HOME, File::State][..], &[File::State]] {
        let (mut sim, started) = put_back(1, files);
        started.expect("a mirror starts");
        assert_same(&mut sim);
    }
}

#[test]
fn an_old_copy_of_a_primary_s_journal_under_a_newer_record_is_refused() {
    for files in [&[File::Journal][..], &[File::Journal, HOME]] {
        let refused = put_back(0, files).1.unwrap_err();
        assert!(refused.contains("older than its record"), "{refused}");
        assert!(refused.contains("b has the data"), "{refused}");
    }
    for files in [&[File::Journal, HOME, File::State][..], &[File::State]] {
        let (mut sim, started) = put_back(0, files);
        started.expect("it starts, and asks its mirror");
        sim.pass(Duration::from_secs(5));
        assert!(sim.attach(0), "{}", sim.logs());
        assert_same(&mut sim);
    }
}

/// Both sites went on by themselves: the first wrote chunk 0 alone, the second was promoted and wrote chunk 1.
pub(super) fn forked(seed: u64) -> Sim {
    let mut sim = pair(seed);
    fork(&mut sim, false);
    sim
}

/// As [`forked`] says; meanwhile the first one's journal may rot where the second of its lone writes is.
fn fork(sim: &mut Sim, rots: bool) {
    sim.cut();
    sim.pass(Duration::from_secs(8));
    assert_eq!(sim.status(0).state, GroupState::Alone);
    for n in 0..5 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
    }
    let tail = sim.status(0).tail_lsn.0;
    let second = sim.journal_place(0, tail - 3);
    sim.kill(0);
    let force = vec![Force::PeerUnreachable];
    sim.command(1, Command::Promote { force });
    sim.pass(Duration::from_secs(12));
    assert!(sim.attach(1), "{}", sim.logs());
    // What the first one acknowledged alone is given up by the promotion.
    settle_for_what_is_read(sim, 1);
    for n in 0..7 {
        sim.write(1, ByteRange::new(CHUNK_BYTES + n * 4096, 4096), false);
        sim.settle();
    }
    if rots {
        sim.sites[0].disk.rot(File::Journal, second);
    }
    sim.connected = true;
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(5));
    assert_eq!(sim.status(0).state, GroupState::Forked, "{}", sim.logs());
    assert_eq!(sim.status(1).peers[0].state, PeerState::Refused);
}

pub(super) fn discarded(sim: &Sim, at: usize) -> usize {
    let files = sim.sites[at].disk.files();
    files.filter(|f| matches!(f, File::Discarded(_))).count()
}

#[test]
fn a_fork_is_resolved_on_either_site_in_favour_of_the_one_that_serves() {
    for commanded in [0, 1] {
        let mut sim = forked(5);
        let discard = "a".to_owned();
        let id = sim.command(commanded, Command::Resolve { discard });
        let answer = sim.answers[&id].clone();
        assert!(
            answer.as_ref().is_ok_and(|t| t.contains("gives up LSN")),
            "{answer:?}"
        );
        sim.attach(1);
        assert_same(&mut sim);
        assert_eq!(discarded(&sim, 0), 1, "what was given up is kept");
        assert_eq!(discarded(&sim, 1), 0);
    }
}

/// What it acknowledged alone is in its homes and nowhere else: neither is it given up by itself, nor does it stay there.
#[test]
fn a_site_whose_journal_lost_what_it_acknowledged_alone_is_a_fork_and_is_compared() {
    let mut sim = pair(9);
    fork(&mut sim, true);
    assert!(
        sim.logs().contains("the journal is damaged"),
        "{}",
        sim.logs()
    );
    let discard = "a".to_owned();
    let id = sim.command(1, Command::Resolve { discard });
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
    sim.attach(1);
    assert_same(&mut sim);
}

/// Nothing behind it tells that it was there: it looks like a write that was under way.
#[test]
fn the_only_write_that_a_site_acknowledged_alone_makes_a_fork_also_when_its_frame_is_damaged() {
    for ack in [AckMode::Sync, AckMode::Memsync, AckMode::Async] {
        let mut sim = Sim::new(3, ack, OnPeerLoss::Continue);
        for at in [1, 0] {
            sim.start(at).expect("a first start");
        }
        sim.heal();
        assert!(sim.attach(0));
        sim.write(0, ByteRange::new(CHUNK_BYTES, 4096), false);
        sim.settle();
        sim.cut();
        sim.pass(Duration::from_secs(8));
        assert_eq!(sim.status(0).state, GroupState::Alone);
        let before = sim.acked;
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.settle();
        assert_eq!(sim.acked, before + 1);
        let tail = sim.status(0).tail_lsn.0;
        let place = sim.journal_place(0, tail);
        sim.kill(0);
        sim.sites[0].disk.rot(File::Journal, place + 4096 + 5);
        let force = vec![Force::PeerUnreachable];
        sim.command(1, Command::Promote { force });
        sim.pass(Duration::from_secs(12));
        assert!(sim.attach(1), "{}", sim.logs());
        settle_for_what_is_read(&mut sim, 1);
        sim.write(1, ByteRange::new(CHUNK_BYTES, 4096), false);
        sim.settle();
        sim.connected = true;
        sim.start(0).unwrap();
        sim.pass(Duration::from_secs(5));
        assert_eq!(sim.status(0).tail_lsn.0, tail - 1, "the frame is gone");
        assert_eq!(
            sim.status(0).state,
            GroupState::Forked,
            "{ack}: {}",
            sim.logs()
        );
    }
}

#[test]
fn without_space_to_keep_it_nothing_is_given_up_and_later_it_is() {
    let mut sim = forked(5);
    sim.sites[0].disk.homes_full = true;
    let discard = "a".to_owned();
    let id = sim.command(1, Command::Resolve { discard });
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
    sim.pass(Duration::from_secs(10));
    assert!(sim.logs().contains("no space to keep"), "{}", sim.logs());
    assert_ne!(sim.status(0).state, GroupState::Fenced, "{}", sim.logs());
    assert_eq!(sim.status(1).peers[0].hindrance, Some(Hindrance::NoSpace));
    sim.sites[0].disk.homes_full = false;
    sim.attach(1);
    assert_same(&mut sim);
    assert_eq!(discarded(&sim, 0), 1);
}

#[test]
fn the_writes_of_the_promoted_site_can_be_given_up_instead() {
    let mut sim = forked(6);
    let discard = |site: &str| Command::Resolve {
        discard: site.into(),
    };
    let id = sim.command(1, discard("b"));
    let refused = sim.answers[&id].clone().unwrap_err();
    assert!(refused.contains("demote g"), "{refused}");
    let id = sim.command(1, discard("x"));
    let refused = sim.answers[&id].clone().unwrap_err();
    assert!(refused.contains("neither of the two"), "{refused}");
    sim.command(1, Command::Demote);
    sim.pass(Duration::from_secs(3));
    sim.command(1, discard("b"));
    sim.pass(Duration::from_secs(5));
    assert!(sim.attach(0), "{}", sim.logs());
    settle_for_what_is_read(&mut sim, 0);
    assert_same(&mut sim);
    assert_eq!(discarded(&sim, 1), 1);
}

/// Nobody serves a side of a fork by himself: who was refused waits for the operator's word, whoever asks meanwhile.
#[test]
fn a_side_of_a_fork_does_not_serve_because_the_other_one_was_demoted_or_asks() {
    let mut sim = forked(8);
    sim.command(1, Command::Demote);
    sim.pass(Duration::from_secs(20));
    assert_eq!(sim.status(0).state, GroupState::Forked, "{}", sim.logs());
    for force in [vec![], vec![Force::PeerUnreachable]] {
        let id = sim.command(1, Command::Promote { force });
        sim.pass(Duration::from_secs(20));
        assert!(sim.answers[&id].is_err(), "{:?}", sim.answers[&id]);
        for at in 0..2 {
            assert_eq!(sim.status(at).state, GroupState::Forked, "{}", sim.logs());
            assert!(!sim.attach(at), "{}", sim.logs());
        }
        assert_eq!(
            sim.status(1).role,
            Role::Mirror,
            "a refusal changes nothing"
        );
    }
}

/// The news of a demotion may still be on their way, or never come.
#[test]
fn a_fork_is_resolved_against_who_was_demoted_a_moment_ago() {
    let discard = || Command::Resolve {
        discard: "b".into(),
    };
    let mut sim = forked(8);
    let id = sim.command(0, discard());
    sim.settle();
    let refused = sim.answers[&id].clone().unwrap_err();
    assert!(refused.contains("`doublure demote g` on b"), "{refused}");
    sim.cut();
    let demoted = sim.command(1, Command::Demote);
    sim.settle();
    assert!(sim.answers[&demoted].is_ok());
    assert!(
        sim.status(0).fork.expect("known").sides[1].serving,
        "not yet heard"
    );
    sim.connected = true;
    let id = sim.command(0, discard());
    sim.settle();
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
    sim.pass(Duration::from_secs(5));
    assert!(sim.attach(0), "{}", sim.logs());

    let mut sim = forked(8);
    sim.kill(1);
    let id = sim.command(0, discard());
    sim.pass(Duration::from_secs(10));
    let refused = sim.answers[&id].clone().unwrap_err();
    assert!(refused.contains("was not yet heard of since"), "{refused}");
}

#[test]
fn a_fork_tells_what_clients_wrote_and_when_and_where_it_will_be_kept() {
    let mut sim = forked(8);
    let status = sim.status(1);
    let fork = status.fork.expect("a fork");
    for (side, written) in [(&fork.sides[0], 7), (&fork.sides[1], 5)] {
        let counted = (side.operations, side.acknowledged_operations);
        assert_eq!(counted, (written, written), "{side:?}");
    }
    let last = fork.sides[0]
        .last_write_unix_seconds
        .expect("since it started");
    let discard = "b".to_owned();
    sim.command(1, Command::Demote);
    sim.pass(Duration::from_secs(30));
    // What opens an epoch no client wrote.
    let force = vec![Force::Behind];
    sim.command(1, Command::Promote { force });
    sim.pass(Duration::from_secs(5));
    let fork = sim.status(1).fork.expect("a fork");
    assert_eq!(fork.sides[0].last_write_unix_seconds, Some(last));
    sim.command(1, Command::Demote);
    sim.pass(Duration::from_secs(5));
    let id = sim.command(0, Command::Resolve { discard });
    sim.pass(Duration::from_secs(10));
    let text = sim.answers[&id].clone().unwrap();
    let file = sim.sites[1].disk.files().find_map(|f| match f {
        File::Discarded(epoch) => Some(format!(
            "the file g/discarded-{epoch}.frames in its data directory"
        )),
        _ => None,
    });
    assert!(text.contains(&file.expect("it is kept")), "{text}");
}

#[test]
fn a_decided_fork_that_waits_for_the_link_says_so() {
    let mut sim = forked(8);
    sim.cut();
    let discard = "a".to_owned();
    let id = sim.command(1, Command::Resolve { discard });
    assert!(sim.answers[&id].is_ok());
    sim.pass(Duration::from_secs(20));
    let status = sim.status(1);
    assert_eq!(status.state, GroupState::Forked);
    let since = "the order to discard what a wrote stands since 2023-11-14 ";
    assert!(status.reason.starts_with(since), "{}", status.reason);
    assert_eq!(status.fork.expect("still").discarding.as_deref(), Some("a"));
    sim.connected = true;
    sim.heal();
    let status = sim.status(1);
    assert_eq!((status.state, status.fork), (GroupState::Serving, None));
}

/// What a site serves it does not give up, and it would never come to that: the other site says so at once.
#[test]
fn a_fork_is_not_resolved_against_who_serves_and_the_way_to_it_is_told() {
    let mut sim = forked(8);
    let discard = || Command::Resolve {
        discard: "b".into(),
    };
    let id = sim.command(0, discard());
    sim.settle();
    let refused = sim.answers[&id].clone().unwrap_err();
    assert!(refused.contains("`doublure demote g` on b"), "{refused}");
    let fork = sim.status(0).fork.expect("a fork");
    assert!(fork.sides[0].primary && !fork.sides[0].serving);
    assert!(fork.sides[1].primary && fork.sides[1].serving);
    sim.command(1, Command::Demote);
    sim.pass(Duration::from_secs(5));
    assert!(!sim.status(0).fork.expect("a fork").sides[1].serving);
    let id = sim.command(0, discard());
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
    sim.pass(Duration::from_secs(5));
    assert!(sim.attach(0), "{}", sim.logs());
    settle_for_what_is_read(&mut sim, 0);
    assert_same(&mut sim);
}

#[test]
fn between_two_mirrors_with_a_fork_the_promotion_to_make_is_named_and_ends_it() {
    let mut sim = forked(9);
    for at in [0, 1] {
        let id = sim.command(at, Command::Demote);
        sim.pass(Duration::from_secs(5));
        let done = sim.answers[&id].clone().unwrap();
        assert!(done.contains("The fork between it and"), "{done}");
        assert!(!done.contains("nobody is primary"), "{done}");
    }
    let discard = || Command::Resolve {
        discard: "b".into(),
    };
    let id = sim.command(0, discard());
    let refused = sim.answers[&id].clone().unwrap_err();
    assert!(refused.contains("promote g --force behind"), "{refused}");
    let promote = |sim: &mut Sim, force: Vec<Force>| {
        let id = sim.command(0, Command::Promote { force });
        sim.pass(Duration::from_secs(5));
        sim.answers[&id].clone()
    };
    let refused = promote(&mut sim, Vec::new()).unwrap_err();
    for part in [
        "run `doublure promote g --force behind` and then `doublure resolve g --discard b`;",
        "`doublure promote g --force behind` on b and then `doublure resolve g --discard a` on b",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(
        sim.status(0).role,
        Role::Mirror,
        "a refusal changes nothing"
    );
    // As told. An order that is carried out is not refused.
    let accepted = promote(&mut sim, vec![Force::Behind]).unwrap();
    assert!(
        accepted.contains(
            "serves nobody before the fork is resolved: `doublure resolve g --discard b`"
        ),
        "{accepted}"
    );
    assert_eq!(sim.status(0).role, Role::Primary);
    assert!(!sim.attach(0));
    let id = sim.command(0, discard());
    assert!(
        sim.answers[&id].is_ok(),
        "{:?}\n{}",
        sim.answers[&id],
        sim.logs()
    );
    sim.pass(Duration::from_secs(5));
    assert!(sim.attach(0), "{}", sim.logs());
    settle_for_what_is_read(&mut sim, 0);
    assert_same(&mut sim);
    assert_eq!(discarded(&sim, 1), 1);
}

/// Alone for longer than its journal reaches back: what there is of it is kept, and what is not is told before.
#[test]
fn what_the_journal_still_holds_of_a_fork_is_kept() {
    let mut sim = pair(10);
    sim.cut();
    sim.pass(Duration::from_secs(8));
    let shared = sim.status(0).alone.expect("alone").from_lsn;
    while sim.status(0).journal.first_lsn <= shared {
        for n in 0..8 {
            let eighth = VOLUME / 8;
            sim.write(0, ByteRange::new(n * eighth, eighth), false);
            sim.settle();
        }
        sim.pass(Duration::from_secs(1));
    }
    sim.kill(0);
    let force = vec![Force::PeerUnreachable];
    sim.command(1, Command::Promote { force });
    sim.pass(Duration::from_secs(12));
    assert!(sim.attach(1), "{}", sim.logs());
    settle_for_what_is_read(&mut sim, 1);
    sim.write(1, ByteRange::new(0, 4096), false);
    sim.connected = true;
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(5));
    for (at, side) in [(0, 0), (1, 1)] {
        let fork = sim.status(at).fork.expect("a fork");
        let held = sim.status(0).journal.first_lsn;
        assert!(held > fork.sides[side].first_lsn);
        assert_eq!(fork.sides[side].kept_from_lsn, Some(held));
    }
    // Where it wrote is known as far as recovery has seen its journal, and what is not known is not called nothing.
    let side = sim.status(0).fork.expect("a fork").sides.remove(0);
    let known = side.touched_from_lsn.expect("told of this site");
    assert!(known > side.first_lsn, "{side:?}");
    assert_eq!(
        side.touched_bytes.is_some(),
        known <= side.last_lsn,
        "{side:?}"
    );
    let other = sim.status(0).fork.expect("a fork").sides.remove(1);
    assert_eq!((other.touched_from_lsn, other.touched_bytes), (None, None));
    let held = sim.status(0).journal.first_lsn;
    let discard = "a".to_owned();
    let id = sim.command(1, Command::Resolve { discard });
    let told = sim.answers[&id].clone().unwrap();
    assert!(told.contains(&format!("only LSN {held} to ")), "{told}");
    assert_same(&mut sim);
    let disk = &mut sim.sites[0].disk;
    let file = disk.files().find(|f| matches!(f, File::Discarded(_)));
    let file = file.expect("a file of what was given up");
    let len = Frame::peek_len(&disk.content(file, 0, BLOCK)).unwrap();
    let frame = Frame::parse(disk.content(file, 0, len).into()).unwrap();
    assert_eq!(frame.first_lsn(), held, "from the first frame there is");
}

/// Each start of a site that is alone opens an epoch; it has been alone since the first of them.
#[test]
fn a_restart_does_not_forget_what_was_acknowledged_alone() {
    let mut sim = pair(12);
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    for n in 0..5 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
    }
    let before = sim.status(0).alone.expect("alone");
    assert_eq!(before.operations, 5);
    for more in 0..2 {
        sim.kill(0);
        sim.start(0).unwrap();
        sim.pass(Duration::from_secs(8));
        assert!(sim.attach(0), "{}", sim.logs());
        let after = sim.status(0).alone.expect("alone");
        assert_eq!(after.from_lsn, before.from_lsn);
        assert_eq!(after.operations, 5 + more);
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.settle();
    }
}

#[test]
fn a_crash_at_any_step_of_giving_up_a_fork_leaves_it_to_be_gone_on_with() {
    for steps in 0..60 {
        let mut sim = forked(7);
        let discard = "a".to_owned();
        sim.command(0, Command::Resolve { discard });
        for _ in 0..steps * 3 {
            sim.step();
        }
        sim.kill(0);
        sim.start(0).unwrap();
        sim.pass(Duration::from_secs(3));
        if sim.status(0).state == GroupState::Forked {
            // It went down before the decision was on record.
            let discard = "a".to_owned();
            sim.command(0, Command::Resolve { discard });
        }
        sim.attach(1);
        assert_same(&mut sim);
    }
}

#[test]
fn a_volume_grows_on_both_sites_and_what_is_there_stays() {
    let mut sim = pair(11);
    let resize = |size| Command::Resize {
        volume: "v".into(),
        size,
    };
    let id = sim.command(0, resize(2 * VOLUME));
    sim.settle();
    let answer = sim.answers[&id].clone().unwrap();
    assert!(answer.contains("2.0 MiB (2,097,152 bytes) now"), "{answer}");
    sim.pass(Duration::from_secs(1));
    for at in [0, 1] {
        assert_eq!(sim.status(at).volumes[0].size_bytes, 2 * VOLUME);
    }
    sim.attach(0);
    sim.write(0, ByteRange::new(VOLUME + 4096, 4096), false);
    sim.settle();
    let beyond =
        |sim: &mut Sim, at: usize| sim.sites[at].disk.content(HOME, VOLUME, VOLUME as usize);
    // Both crash, and the growth comes back from the journal or the record.
    for at in [0, 1] {
        sim.kill(at);
        sim.start(at).unwrap();
    }
    assert_same(&mut sim);
    let (a, b) = (beyond(&mut sim, 0), beyond(&mut sim, 1));
    assert!(a == b && a[4096] != 0);
    for at in [0, 1] {
        assert_eq!(sim.status(at).volumes[0].size_bytes, 2 * VOLUME);
    }
}

#[test]
fn a_volume_that_grows_beyond_the_space_there_is_tells_so_and_where_the_configuration_differs() {
    for at in [0, 1] {
        let mut sim = pair(11);
        sim.sites[at].config.volumes = vec![("v".into(), VOLUME)];
        sim.kill(at);
        sim.start(at).unwrap();
        sim.heal();
        assert!(sim.status(at).disagreements.is_empty());
        sim.sites[at].disk.free_bytes = Some((64 << 20) + VOLUME / 2);
        // Space is looked at when somebody writes.
        sim.pass(Duration::from_secs(2));
        assert!(sim.attach(0));
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.pass(Duration::from_secs(2));
        let resize = Command::Resize {
            volume: "v".into(),
            size: 2 * VOLUME,
        };
        let id = sim.command(0, resize);
        sim.settle();
        let answer = sim.answers[&id].clone().unwrap();
        let left = format!("{} has space for 512.0 KiB more only", ["a", "b"][at]);
        assert!(answer.contains(&left), "{answer}");
        sim.pass(Duration::from_secs(1));
        let told = sim.status(at).disagreements;
        let size = "volume v: the configuration says 1.0 MiB (1,048,576 bytes), the volume has 2.0 MiB (2,097,152 bytes). `size \
                    = 2097152` for it";
        assert!(told.len() == 1 && told[0].starts_with(size), "{told:?}");
        assert!(sim.status(1 - at).disagreements.len() <= 1);
    }
}

#[test]
fn a_volume_grows_nowhere_if_it_cannot_grow_everywhere() {
    let mut sim = pair(12);
    sim.sites[1].disk.most_bytes = VOLUME;
    let refused = |sim: &mut Sim, volume: &str, size: u64| {
        let volume = volume.to_owned();
        let id = sim.command(0, Command::Resize { volume, size });
        sim.settle();
        sim.answers[&id].clone().unwrap_err()
    };
    let text = refused(&mut sim, "v", 2 * VOLUME);
    assert!(text.contains("b cannot hold the new size"), "{text}");
    let text = refused(&mut sim, "v", VOLUME / 2);
    assert!(
        text.contains("1.0 MiB (1,048,576 bytes) and never shrinks"),
        "{text}"
    );
    let text = refused(&mut sim, "w", 2 * VOLUME);
    assert!(text.contains("no volume 'w'; it has v"), "{text}");
    let text = refused(&mut sim, "v", 2 * VOLUME + 1);
    assert!(text.contains("multiple of 512"), "{text}");
    sim.kill(1);
    sim.pass(Duration::from_secs(8));
    let text = refused(&mut sim, "v", 2 * VOLUME);
    assert!(text.contains("b is not in sync"), "{text}");
    let volume = "v".to_owned();
    let id = sim.command(
        0,
        Command::Resize {
            volume,
            size: VOLUME,
        },
    );
    let text = sim.answers[&id].clone().unwrap();
    assert!(text.contains("already; nothing was changed"), "{text}");
    assert_eq!(sim.status(0).volumes[0].size_bytes, VOLUME);
    sim.start(1).unwrap();
    assert_same(&mut sim);
}

#[test]
fn a_mirror_that_was_away_while_a_volume_grew_has_its_size_afterwards() {
    let mut sim = pair(13);
    sim.command(
        0,
        Command::Resize {
            volume: "v".into(),
            size: 2 * VOLUME,
        },
    );
    // It goes down before it has applied that, and for longer than the journal reaches.
    sim.hold_homes(1, true);
    sim.settle();
    sim.kill(1);
    sim.hold_homes(1, false);
    sim.pass(Duration::from_secs(8));
    forget_the_journal_writing_chunk(&mut sim, 0, 2);
    sim.start(1).unwrap();
    assert_same(&mut sim);
    for at in [0, 1] {
        assert_eq!(sim.status(at).volumes[0].size_bytes, 2 * VOLUME);
    }
}
