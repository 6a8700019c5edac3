//! Single rules of the engine, and every cell of the promise matrix.

use std::time::Duration;

use super::sim::{SECTOR, Sim, VOLUME, config};
use crate::base::{
    AckMode, AlignedBuf, ByteRange, Compress, Hindrance, OnPeerLoss, Role, VolumeId,
};
use crate::engine::{Command, Disk, DiskOp, DiskResult, File, Group, Input, Output, Pending};
use crate::journal::STATE_FILE_BYTES;
use crate::nbd::Errno;
use crate::status::{GroupState, PeerState};

fn pair(ack: AckMode, policy: OnPeerLoss) -> Sim {
    let mut sim = Sim::new(7, ack, policy);
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    sim
}

#[test]
fn frames_are_kept_in_memory_until_they_are_durable_and_sent_to_whoever_follows() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    let kept = |sim: &Sim, at: usize| {
        let group = sim.sites[at].group.as_ref().expect("alive");
        group.frames.cached_bytes()
    };
    sim.hold_journal(0, true);
    sim.write(0, ByteRange::new(0, 8 * SECTOR), false);
    sim.settle();
    assert!(kept(&sim, 0) > 0, "not durable yet");
    assert_eq!(kept(&sim, 1), 0, "nobody follows the mirror");
    sim.hold_journal(0, false);
    sim.settle();
    assert_eq!(kept(&sim, 0), 0);
    // Who comes back is sent what it lacks from the journal.
    sim.kill(1);
    sim.pass(Duration::from_secs(1));
    sim.write(0, ByteRange::new(0, 8 * SECTOR), false);
    sim.settle();
    assert_eq!(kept(&sim, 0), 0);
    sim.start(1).expect("a restart");
    sim.heal();
    assert!(sim.in_sync() && sim.all_homes_are_equal());
}

/// How the group is when a request comes.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Situation {
    InSync,
    Suspect,
    CatchingUp,
    Inconsistent,
    Alone,
    Frozen,
    Restarting,
}

use Situation::{Alone, CatchingUp, Frozen, InSync, Inconsistent, Restarting, Suspect};

/// What an acknowledgement proves: durable here, received there, durable there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// None while the situation lasts.
    Waits,
    /// With this much done before it.
    After {
        local: bool,
        received: bool,
        remote: bool,
    },
}

const BOTH: Answer = Answer::After {
    local: true,
    received: true,
    remote: true,
};
const HERE: Answer = Answer::After {
    local: true,
    received: false,
    remote: false,
};
const MEMORY: Answer = Answer::After {
    local: false,
    received: true,
    remote: false,
};

/// The promise matrix, as ARCHITECTURE.md publishes it.
fn promised(ack: AckMode, durable: bool, situation: Situation) -> Answer {
    match (situation, ack, durable) {
        (Frozen | Restarting, ..) => Answer::Waits,
        (Suspect, AckMode::Sync | AckMode::Memsync, _) => Answer::Waits,
        (Alone | CatchingUp | Inconsistent, ..) => HERE,
        (InSync | Suspect, AckMode::Async, _) => HERE,
        (InSync, AckMode::Memsync, false) => MEMORY,
        (InSync, AckMode::Sync, _) | (InSync, AckMode::Memsync, true) => BOTH,
    }
}

/// A pair in this situation, with the client attached where that is possible.
fn in_situation(ack: AckMode, situation: Situation) -> Sim {
    let policy = if situation == Frozen {
        OnPeerLoss::Freeze
    } else {
        OnPeerLoss::Continue
    };
    let mut sim = pair(ack, policy);
    let range = ByteRange::new(0, 8 * SECTOR);
    sim.write(0, range, false);
    sim.settle();
    match situation {
        InSync => {}
        Suspect => sim.cut(),
        Alone | Frozen => {
            sim.kill(1);
            sim.pass(Duration::from_secs(1));
        }
        CatchingUp => {
            sim.kill(1);
            sim.pass(Duration::from_secs(1));
            for n in 0..40 {
                sim.write(0, ByteRange::new(n * 4096, 4096), false);
                sim.settle();
            }
            sim.hold_disk(1, true);
            sim.start(1).expect("a restart");
            sim.hold_disk(1, true);
        }
        Inconsistent => {
            sim.kill(1);
            sim.wipe(1);
            sim.forget_old_journal(0);
            sim.start(1).expect("a first start");
            sim.pass_until(Duration::from_secs(3), |sim| {
                sim.status(1).state == GroupState::Inconsistent
                    && sim.status(0).peers[0].state == PeerState::Copying
            });
            sim.hold_disk(1, true);
        }
        Restarting => {
            sim.cut();
            sim.kill(0);
            sim.start(0).expect("a restart");
            sim.pass(Duration::from_secs(12));
        }
    }
    sim
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Write,
    Fua,
    Flush,
}

/// Issues the request with some disks stopped, and tells whether it is answered.
fn answered_with(
    ack: AckMode,
    kind: Kind,
    situation: Situation,
    local: bool,
    remote: bool,
    link: bool,
) -> bool {
    let mut sim = in_situation(ack, situation);
    if situation == Restarting {
        return sim.attach(0);
    }
    if !local {
        sim.hold_disk(0, true);
    }
    if !remote {
        sim.hold_disk(1, true);
    }
    if !link {
        sim.cut();
    }
    let range = ByteRange::new(4096, 4096);
    let before = sim.outstanding();
    match kind {
        Kind::Write => {
            sim.write(0, range, false);
        }
        Kind::Fua => {
            sim.write(0, range, true);
        }
        Kind::Flush => {
            // A flush speaks for writes before it; in the same moment, so that they are under way.
            sim.write(0, range, false);
            sim.flush(0);
        }
    }
    sim.run_for(Duration::from_secs(3));
    sim.outstanding() == before
}

#[test]
fn every_cell_of_the_promise_matrix_holds() {
    for ack in [AckMode::Sync, AckMode::Memsync, AckMode::Async] {
        for situation in [
            InSync,
            Suspect,
            CatchingUp,
            Inconsistent,
            Alone,
            Frozen,
            Restarting,
        ] {
            for kind in [Kind::Write, Kind::Fua, Kind::Flush] {
                let durable = !matches!(kind, Kind::Write);
                let cell = format!("{ack}, {situation:?}, {kind:?}");
                match promised(ack, durable, situation) {
                    Answer::Waits => {
                        assert!(
                            !answered_with(ack, kind, situation, true, true, true),
                            "{cell}: answered"
                        );
                    }
                    Answer::After {
                        local,
                        received,
                        remote,
                    } => {
                        let all = answered_with(ack, kind, situation, true, true, true);
                        assert!(all, "{cell}: not answered with everything running");
                        let without_local = answered_with(ack, kind, situation, false, true, true);
                        assert_eq!(
                            without_local, !local,
                            "{cell}: answered without the local disk"
                        );
                        if situation != InSync {
                            continue;
                        }
                        let without_remote = answered_with(ack, kind, situation, true, false, true);
                        assert_eq!(
                            without_remote, !remote,
                            "{cell}: answered without the mirror's disk"
                        );
                        let without_link = answered_with(ack, kind, situation, true, true, false);
                        assert_eq!(without_link, !received, "{cell}: answered without the link");
                    }
                }
            }
        }
    }
}

#[test]
fn a_new_mirror_of_an_old_group_is_copied_to_while_writes_go_on() {
    let mut sim = Sim::new(3, AckMode::Sync, OnPeerLoss::Continue);
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(1));
    assert!(sim.attach(0));
    for n in 0..100 {
        sim.write(0, ByteRange::new(n * 8192, 8192), false);
        sim.settle();
    }
    sim.forget_old_journal(0);
    sim.start(1).unwrap();
    sim.pass_until(Duration::from_secs(5), |sim| {
        sim.status(1).state == GroupState::Inconsistent
    });
    for _ in 0..2000 {
        if sim.outstanding() < 8 {
            sim.random_request();
        }
        sim.step();
    }
    check_both_sides(&mut sim);
}

#[test]
fn compressed_frames_mean_the_same_on_both_sides_and_after_recovery() {
    for compress in [Compress::Lz4, Compress::Auto] {
        let mut a = config(
            "a",
            Some("b"),
            Role::Primary,
            AckMode::Sync,
            OnPeerLoss::Continue,
        );
        a.compress = compress;
        let b = config(
            "b",
            Some("a"),
            Role::Mirror,
            AckMode::Sync,
            OnPeerLoss::Continue,
        );
        let mut sim = Sim::with(4, a, b);
        for at in [1, 0] {
            sim.start(at).unwrap();
        }
        sim.heal();
        for _ in 0..300 {
            sim.random_request();
            sim.step();
        }
        sim.kill(0);
        sim.start(0).unwrap();
        sim.pass(Duration::from_secs(3));
        check_both_sides(&mut sim);
    }
}

/// In sync, equal, and holding what was acknowledged on either side.
fn check_both_sides(sim: &mut Sim) {
    sim.heal();
    let [a, b] = sim.homes();
    assert!(a == b, "the homes differ");
    sim.kill(0);
    sim.promote(1).unwrap();
    assert!(sim.attach(1));
    let content = sim.read_all(1);
    sim.record.check(0, &content).unwrap();
    assert_eq!(sim.violations, Vec::<String>::new());
}

#[test]
fn a_mirror_in_the_middle_of_a_copy_is_not_promoted_without_saying_so() {
    let mut sim = in_situation(AckMode::Sync, Inconsistent);
    sim.kill(0);
    sim.hold_disk(1, false);
    let answer = sim.promote(1).unwrap_err();
    assert!(answer.contains("--force inconsistent"), "{answer}");
    sim.kill(1);
    sim.start(1).unwrap();
    assert_eq!(
        sim.status(1).state,
        GroupState::Inconsistent,
        "also after a restart"
    );
}

#[test]
fn a_copy_that_is_cut_off_starts_again_and_ends() {
    let mut sim = in_situation(AckMode::Sync, Inconsistent);
    sim.kill(1);
    sim.hold_disk(1, false);
    sim.start(1).unwrap();
    sim.heal();
    let [a, b] = sim.homes();
    assert!(a == b, "the homes differ");
}

#[test]
fn a_copy_whose_end_was_known_when_the_power_went_starts_again() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.forget_old_journal(0);
    sim.kill(1);
    sim.wipe(1);
    sim.start(1).unwrap();
    // All chunks have been sent, and the homes are not synced.
    sim.pass_until(Duration::from_secs(5), |sim| {
        let status = sim.status(1);
        status.inconsistent && status.inconsistent_until_lsn.is_some()
    });
    sim.settle_disk(1, File::State);
    sim.kill(1);
    let peer = sim.status(0).peers.remove(0);
    assert!(peer.needs_copy, "cut off in the middle: {peer:?}");
    sim.start(1).unwrap();
    sim.heal();
    assert!(!sim.status(0).peers[0].needs_copy);
    // The link is still the one of the copy.
    let there = sim.status(1);
    assert!(!there.inconsistent, "{there:?}");
    assert_eq!(there.inconsistent_until_lsn, None);
    check_both_sides(&mut sim);
}

/// Its machine answers, and its disk does not: nothing is acknowledged meanwhile, and that is told before it is declared dead.
#[test]
fn a_mirror_that_confirms_nothing_is_told_as_suspect_although_its_link_is_up() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.hold_journal(1, true);
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.settle();
    assert_eq!(
        sim.status(0).state,
        GroupState::Serving,
        "a moment is nothing"
    );
    sim.pass(Duration::from_secs(2));
    let status = sim.status(0);
    assert_eq!(status.state, GroupState::Suspect);
    assert_eq!(status.peers[0].state, PeerState::Suspect);
    assert!(
        status.reason.contains("b has confirmed nothing"),
        "{}",
        status.reason
    );
    sim.hold_journal(1, false);
    sim.settle();
    assert_eq!(sim.status(0).state, GroupState::Serving);
    assert_eq!(sim.outstanding(), 0);
}

#[test]
fn a_copy_waits_for_what_is_still_on_its_way_to_the_old_homes() {
    for resync_undo in [false, true] {
        copy_onto_busy_homes(resync_undo);
    }
}

fn copy_onto_busy_homes(resync_undo: bool) {
    let mut sim = Sim::new(7, AckMode::Sync, OnPeerLoss::Continue);
    sim.sites[1].config.resync_undo = resync_undo;
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    sim.hold_homes(1, true);
    for n in 0..8 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
    }
    sim.settle();
    sim.command(0, Command::Disconnect);
    sim.pass(Duration::from_secs(10));
    sim.forget_old_journal(0);
    sim.command(0, Command::Connect);
    sim.pass(Duration::from_secs(3));
    // To be able to go back it does not even agree before.
    let inconsistent = sim.status(1).state == GroupState::Inconsistent;
    assert_eq!(inconsistent, !resync_undo, "{}", sim.logs());
    assert_eq!(sim.status(0).peers[0].copied_bytes, 0);
    sim.hold_homes(1, false);
    sim.heal();
    let [a, b] = sim.homes();
    assert!(a == b, "the homes differ");
}

#[test]
fn a_first_start_that_was_cut_off_is_made_again_and_a_lost_record_is_not() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    for n in 0..3 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
    }
    sim.settle();
    sim.kill(0);
    // Both slots blank, as a first start leaves them before it has a record; but there is a journal.
    sim.sites[0].disk.remove(File::State);
    Disk::create(&mut sim.sites[0].disk, File::State, STATE_FILE_BYTES).unwrap();
    let error = sim.start(0).unwrap_err().to_string();
    assert!(error.contains("the state file holds no record"), "{error}");
    // The record begun and torn, nothing in the journal.
    sim.wipe(0);
    let disk = &mut sim.sites[0].disk;
    Disk::create(disk, File::State, STATE_FILE_BYTES).unwrap();
    Disk::create(disk, File::Journal, 32 << 20).unwrap();
    let mut torn = AlignedBuf::zeroed(4096);
    torn[..9].copy_from_slice(b"DBLRSTA1\x01");
    Disk::write(disk, File::State, 0, &torn, true).unwrap();
    sim.start(0).expect("nobody was served yet");
}

#[test]
fn a_missing_journal_or_home_is_refused_and_never_made_anew() {
    for file in [File::Journal, File::State, File::Home(VolumeId(0))] {
        let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.settle();
        // The volume is on record once a checkpoint was made.
        sim.pass(Duration::from_secs(15));
        sim.kill(0);
        sim.sites[0].disk.remove(file);
        let error = sim.start(0).unwrap_err().to_string();
        let named = match file {
            File::Journal => "journal of group g is missing",
            File::State => "no state file",
            _ => "home of volume 'v' is missing",
        };
        assert!(error.contains(named), "{error}");
    }
}

/// What only this site holds must not be thrown away on the word of a message.
#[test]
fn whoever_was_alone_is_told_to_keep_what_the_peer_lacks() {
    for (was_alone, file) in [
        (false, File::Journal),
        (true, File::Journal),
        (true, File::Home(VolumeId(0))),
    ] {
        let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
        sim.pass(Duration::from_secs(15));
        let tail = sim.status(0).tail_lsn;
        if was_alone {
            sim.cut();
            sim.pass(Duration::from_secs(8));
            assert_eq!(sim.status(0).state, GroupState::Alone);
        }
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.settle();
        sim.kill(0);
        sim.sites[0].disk.remove(file);
        let error = sim.start(0).unwrap_err().to_string();
        assert_eq!(error.contains("KEEP the folder 'g'"), was_alone, "{error}");
        assert_eq!(error.contains("b has the data"), !was_alone, "{error}");
        let lacks = format!(
            "b was NOT in sync: it lacks what was acknowledged here since LSN {} (2023-11-14 ",
            tail.next()
        );
        assert_eq!(error.contains(&lacks), was_alone, "{error}");
    }
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.kill(0);
    sim.sites[0].disk.remove(File::State);
    let error = sim.start(0).unwrap_err().to_string();
    assert!(error.contains("not known whether b was in sync"), "{error}");
}

#[test]
fn a_journal_that_is_damaged_where_it_was_alone_is_not_to_be_given_back_by_the_peer() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.cut();
    sim.pass(Duration::from_secs(8));
    for n in 0..20 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
    }
    let tail = sim.status(0).tail_lsn.0;
    let place = sim.journal_place(0, tail - 9);
    sim.kill(0);
    sim.sites[0].disk.rot(File::Journal, place);
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(2));
    let status = sim.status(0);
    assert_eq!(status.state, GroupState::WaitingForPeer);
    let logs = sim.logs();
    for text in [&logs, &status.reason] {
        assert!(
            text.contains("not in sync") || text.contains("NOT in sync"),
            "{text}"
        );
        assert!(
            text.contains("to another disk before anything else"),
            "{text}"
        );
    }
    assert!(!logs.contains("needs the rest from its peer"), "{logs}");
}

/// A pair that holds twenty writes, and where in the first site's journal one in the middle is.
fn with_twenty_writes() -> (Sim, u64) {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    for n in 0..20 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
    }
    let place = sim.journal_place(0, 8);
    (sim, place)
}

#[test]
fn a_primary_with_a_damaged_journal_takes_the_lost_part_from_its_mirror() {
    let (mut sim, place) = with_twenty_writes();
    sim.kill(0);
    sim.sites[0].disk.rot(File::Journal, place);
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(2));
    sim.heal();
    assert!(
        sim.logs().contains("the journal is damaged"),
        "{}",
        sim.logs()
    );
    assert!(sim.attach(0));
    let content = sim.read_all(0);
    sim.record.check(0, &content).unwrap();
}

#[test]
fn a_new_mirror_is_copied_to_when_the_journal_is_damaged_behind_the_checkpoint() {
    // In a frame's header, and in its payload.
    for within in [0, 5000] {
        let (mut sim, place) = with_twenty_writes();
        sim.pass(Duration::from_secs(15));
        sim.kill(0);
        sim.sites[0].disk.rot(File::Journal, place + within);
        sim.start(0).unwrap();
        sim.heal();
        sim.kill(1);
        sim.wipe(1);
        sim.start(1).unwrap();
        check_both_sides(&mut sim);
    }
}

#[test]
fn a_primary_with_a_damaged_journal_and_no_peer_serves_nobody() {
    let (mut sim, place) = with_twenty_writes();
    sim.kill(0);
    sim.kill(1);
    sim.sites[0].disk.rot(File::Journal, place);
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(20));
    assert!(!sim.attach(0));
    let status = sim.status(0);
    assert_eq!(status.state, GroupState::WaitingForPeer);
    assert!(
        status.reason.contains("disk lost history"),
        "{}",
        status.reason
    );
    let damage = status.journal_damage.expect("it is told where");
    assert!(
        damage.contains(&format!("(at byte {place} of the journal) is missing")),
        "{damage}"
    );
}

#[test]
fn volumes_are_not_made_again_while_their_creation_is_on_its_way_back_from_the_mirror() {
    let mut sim = Sim::new(7, AckMode::Sync, OnPeerLoss::Continue);
    for at in [1, 0] {
        sim.start(at).unwrap();
    }
    sim.pass_until(Duration::from_secs(3), |sim| sim.attach(0));
    for n in 0..3 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
    }
    assert_eq!(sim.outstanding(), 0);
    // The operation that made the volume, which no record knows of yet.
    let place = sim.journal_place(0, 2);
    sim.kill(0);
    sim.sites[0].disk.rot(File::Journal, place);
    sim.start(0).unwrap();
    sim.heal();
    assert!(
        sim.logs().contains("the journal is damaged"),
        "{}",
        sim.logs()
    );
    assert!(sim.attach(0));
    let content = sim.read_all(0);
    sim.record.check(0, &content).unwrap();
}

#[test]
fn what_a_mirror_greets_with_does_not_count_as_durable_there() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Freeze);
    sim.hold_journal(1, true);
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.run_for(Duration::from_secs(1));
    // The mirror has it in memory when the link breaks. It connects again, and its journal still stands still.
    sim.break_links();
    sim.run_for(Duration::from_secs(3));
    assert_eq!(
        sim.outstanding(),
        1,
        "acknowledged without the mirror's disk"
    );
    sim.hold_journal(1, false);
    sim.heal();
    assert_eq!(sim.outstanding(), 0);
}

#[test]
fn an_idle_group_sleeps_after_a_restart() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.pass(Duration::from_secs(15));
    for at in [0, 1] {
        sim.command(at, Command::Shutdown);
        sim.pass(Duration::from_secs(6));
        sim.kill(at);
    }
    // Its homes count as dirty, but there is nothing to make a checkpoint of.
    sim.start(1).unwrap();
    sim.now += Duration::from_secs(30);
    sim.input(1, Input::Tick);
    let due = sim.sites[1].group.as_ref().unwrap().deadline();
    assert!(
        due.is_none_or(|due| due > sim.now),
        "it is due, and stays due"
    );
}

#[test]
fn a_group_that_stops_on_a_slow_disk_sleeps_until_it_gives_up() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.settle();
    sim.hold_disk(0, true);
    sim.command(0, Command::Shutdown);
    let mut ended = false;
    for _ in 0..15 {
        sim.run_for(Duration::from_secs(1));
        let group = sim.sites[0].group.as_ref().unwrap();
        let due = group.deadline();
        assert!(
            due.is_none_or(|due| due > sim.now),
            "it is due, and stays due"
        );
        ended |= sim.sites[0].stopped;
    }
    assert!(ended, "{}", sim.logs());
}

#[test]
fn a_mirror_that_comes_back_empty_is_still_waited_for_unless_a_record_says_otherwise() {
    for policy in [OnPeerLoss::Continue, OnPeerLoss::Freeze] {
        let mut sim = pair(AckMode::Sync, policy);
        sim.forget_old_journal(0);
        // So quickly that nobody has declared it dead.
        sim.kill(1);
        sim.wipe(1);
        sim.start(1).unwrap();
        sim.pass_until(Duration::from_secs(3), |sim| {
            sim.status(0).peers[0].state == PeerState::Copying
        });
        sim.hold_disk(1, true);
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.run_for(Duration::from_secs(2));
        let alone = sim.status(0).alone.is_some();
        assert_eq!(alone, policy == OnPeerLoss::Continue);
        assert_eq!(sim.outstanding() == 0, alone, "{policy}: {}", sim.logs());
        sim.hold_disk(1, false);
        check_both_sides(&mut sim);
    }
}

#[test]
fn a_mirror_whose_tail_was_taken_over_keeps_no_journal_for_that() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.hold_journal(0, true);
    sim.write(0, ByteRange::new(0, VOLUME / 4), false);
    sim.settle();
    sim.kill_unlucky(0);
    sim.hold_journal(0, false);
    sim.start(0).expect("it starts again");
    sim.heal();
    assert!(sim.logs().contains("taking over LSN"), "{}", sim.logs());
    assert!(sim.attach(0));
    sim.forget_old_journal(0);
    sim.pass(Duration::from_secs(15));
    let logs = sim.logs();
    assert!(
        !logs.contains("no progress"),
        "the mirror had no room:\n{logs}"
    );
}

#[test]
fn a_mirror_that_was_primary_keeps_no_journal_for_its_primary() {
    let journal = |mut config: crate::engine::GroupConfig| {
        config.journal_bytes = 13 << 20;
        config
    };
    let (sync, policy) = (AckMode::Sync, OnPeerLoss::Continue);
    let a = journal(config("a", Some("b"), Role::Primary, sync, policy));
    let b = journal(config("b", Some("a"), Role::Mirror, sync, policy));
    let mut sim = Sim::with(7, a, b);
    for at in [1, 0] {
        sim.start(at).unwrap();
    }
    sim.heal();
    sim.command(0, Command::Switchover);
    sim.heal();
    assert!(sim.attach(1));
    // Three of these fill a segment and leave a quarter of it empty.
    for _ in 0..40 {
        sim.write(1, ByteRange::new(0, VOLUME), false);
        sim.pass(Duration::from_millis(100));
    }
    assert_eq!(sim.outstanding(), 0, "{:#?}", sim.status(0).journal);
    assert!(sim.in_sync(), "{}", sim.logs());
}

#[test]
fn a_mirror_that_caught_up_slowly_is_let_in_without_further_writes() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.kill(1);
    sim.pass(Duration::from_secs(1));
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.settle();
    // Its journal takes seconds for what it missed, and its homes another one: it has nothing to say in between.
    sim.hold_journal(1, true);
    sim.hold_homes(1, true);
    sim.start(1).unwrap();
    sim.run_for(Duration::from_secs(4));
    assert_eq!(sim.status(0).peers[0].state, PeerState::CatchingUp);
    sim.hold_journal(1, false);
    sim.run_for(Duration::from_secs(1));
    sim.hold_homes(1, false);
    sim.run_for(Duration::from_secs(60));
    assert!(sim.in_sync(), "{:#?}", sim.status(0).peers);
}

#[test]
fn the_frame_clock_does_not_go_back_with_the_wall_clock_over_a_restart() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.settle();
    let clock = |sim: &Sim| sim.sites[0].group.as_ref().unwrap().frames.time_ns();
    let before = clock(&sim);
    // A clean stop leaves no frame behind the checkpoint for recovery to read.
    sim.command(0, Command::Shutdown);
    sim.pass(Duration::from_secs(6));
    sim.kill(0);
    sim.late = Duration::from_secs(3600);
    sim.start(0).unwrap();
    assert!(clock(&sim) >= before);
}

#[test]
fn a_failed_journal_write_fences_the_group_and_closes_its_clients() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.sites[0].disk.fail_next_journal_write = true;
    let before = sim.acked;
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.pass(Duration::from_secs(1));
    assert_eq!(sim.acked, before);
    assert_eq!(sim.status(0).state, GroupState::Fenced);
    assert!(!sim.attach(0));
    let promote = Command::Promote { force: Vec::new() };
    for command in [promote, Command::Demote, Command::Switchover] {
        let id = sim.command(0, command.clone());
        sim.pass(Duration::from_secs(1));
        let refused = sim.answers[&id].clone().unwrap_err();
        assert!(refused.contains("fenced"), "{command:?}: {refused}");
        assert!(
            refused.contains("`doublure explain g`"),
            "{command:?}: {refused}"
        );
    }
}

#[test]
fn a_failed_sync_of_a_home_fences_and_is_never_tried_again() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    let checkpoint = sim.status(0).checkpoint_lsn;
    sim.sites[0].disk.fail_next_home_sync = true;
    for n in 0..4 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
    }
    sim.pass(Duration::from_secs(30));
    assert_eq!(sim.status(0).state, GroupState::Fenced, "{}", sim.logs());
    assert_eq!(sim.status(0).checkpoint_lsn, checkpoint);
    assert!(!sim.attach(0));
    // Recovery writes from the journal what the sync dropped.
    sim.kill(0);
    sim.start(0).unwrap();
    check_both_sides(&mut sim);
}

/// The sync of a volume that grew is not a checkpoint's: the next checkpoint would find nothing to sync, and be wrong.
#[test]
fn after_any_failed_sync_no_checkpoint_is_made() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    for n in 0..4 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
    }
    let checkpoint = sim.status(0).checkpoint_lsn;
    sim.sites[0].disk.fail_next_home_sync = true;
    let volume = sim.status(0).volumes[0].name.clone();
    let size = VOLUME + 4096;
    sim.command(0, Command::Resize { volume, size });
    sim.pass(Duration::from_secs(30));
    assert_eq!(sim.status(0).state, GroupState::Fenced, "{}", sim.logs());
    sim.command(0, Command::Shutdown);
    sim.pass(Duration::from_secs(15));
    assert!(sim.sites[0].stopped);
    assert_eq!(sim.status(0).checkpoint_lsn, checkpoint);
    sim.kill(0);
    sim.start(0).unwrap();
    check_both_sides(&mut sim);
}

/// The kernel tells only one of those that wait for it.
#[test]
fn syncs_of_a_home_take_turns_and_fail_together() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    let now = sim.time();
    let group = sim.sites[0].group.as_mut().expect("it runs");
    let idle = group.disk.len();
    let submitted = |group: &mut Group| {
        let mut ids = Vec::new();
        for output in group.take_outputs(Vec::new()) {
            if let Output::Disk { id, .. } = output {
                ids.push(id);
            }
        }
        ids
    };
    for _ in 0..3 {
        let file = File::Home(VolumeId(0));
        group.submit(Pending::Forgotten, DiskOp::sync(file));
    }
    for (result, left) in [(DiskResult::Done, 2), (failed(), 0)] {
        let [id] = submitted(group)[..] else {
            panic!("one is under way at a time");
        };
        group.handle(now, Input::Disk { id, result });
        assert_eq!(group.disk.len(), idle + left);
    }
    assert_eq!(submitted(group), [], "none is tried after the failed one");
}

fn failed() -> DiskResult {
    DiskResult::Failed {
        errno: 5,
        message: "Input/output error".into(),
    }
}

#[test]
fn a_copy_that_begins_before_a_volume_has_grown_brings_its_growth() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    let volume = sim.status(0).volumes[0].name.clone();
    let size = VOLUME + 4096;
    // An empty mirror is not reached by the journal, and is copied to.
    sim.forget_old_journal(0);
    let before = sim.status(0).tail_lsn;
    sim.command(0, Command::Resize { volume, size });
    while sim.status(0).tail_lsn == before {
        assert!(sim.step(), "all sites agree to it");
    }
    // Committed, and not applied when the mirror comes back empty.
    sim.hold_homes(0, true);
    sim.settle();
    assert!(sim.status(0).commit_lsn > before);
    sim.kill(1);
    sim.wipe(1);
    sim.start(1).expect("a first start");
    sim.pass(Duration::from_secs(8));
    assert_eq!(sim.status(0).applied_lsn, before);
    sim.hold_homes(0, false);
    sim.heal();
    assert!(sim.logs().contains("copying to b"), "{}", sim.logs());
    let sizes = [0, 1].map(|at| sim.status(at).volumes[0].size_bytes);
    assert_eq!(sizes, [size; 2], "{}", sim.logs());
}

#[test]
fn a_read_error_is_answered_and_nothing_else_suffers() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    let home = File::Home(VolumeId(0));
    sim.write(0, ByteRange::new(0, 8192), false);
    sim.pass(Duration::from_secs(20));
    sim.sites[0].disk.unreadable.insert((home, 0));
    sim.errors_expected = true;
    sim.read(0, ByteRange::new(0, 4096));
    sim.settle();
    assert_eq!(sim.refused, [Errno::Io], "{}", sim.logs());
    sim.read(0, ByteRange::new(4096, 4096));
    sim.settle();
    assert_eq!(sim.refused.len(), 1, "the block beside it is there");
    assert_eq!(sim.status(0).state, GroupState::Serving);
    // Written again, it can be read.
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.pass(Duration::from_secs(20));
    sim.read(0, ByteRange::new(0, 4096));
    sim.settle();
    assert_eq!(sim.refused.len(), 1);
    check_both_sides(&mut sim);
}

/// On either site: nothing is promised that has no place in the home.
/// A request becomes many frames at once, and only two are written at a time: the mirror gets the others in their turn.
#[test]
fn a_request_as_large_as_is_allowed_goes_to_the_mirror_without_a_lost_link() {
    const SIZE: u64 = 64 << 20;
    let (ack, policy) = (AckMode::Sync, OnPeerLoss::Continue);
    let mut primary = config("a", Some("b"), Role::Primary, ack, policy);
    primary.volumes = vec![("v".into(), SIZE)];
    let mirror = config("b", Some("a"), Role::Mirror, ack, policy);
    let mut sim = Sim::with(11, primary, mirror);
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    let epoch = sim.status(0).epoch.expect("serving").number;
    // The last one is as large as the journal.
    for (byte, mib) in [(1, 4), (2, 16), (3, 32)] {
        let range = ByteRange::new(u64::from(byte) << 20, mib << 20);
        sim.write_filled(0, range, byte);
        sim.pass(Duration::from_secs(3));
        assert_eq!(sim.outstanding(), 0, "{mib} MiB:\n{}", sim.logs());
        let status = sim.status(0);
        assert_eq!(status.peers[0].state, PeerState::InSync, "{}", sim.logs());
        let now = status.epoch.expect("serving").number;
        assert_eq!(now, epoch, "it was never alone:\n{}", sim.logs());
        let logs = sim.logs();
        assert!(
            !logs.contains("no longer holds"),
            "the link was cut:\n{logs}"
        );
        for at in [0, 1] {
            let home = File::Home(VolumeId(0));
            let disk = &mut sim.sites[at].disk;
            let content = disk.content(home, range.offset, range.len as usize);
            assert!(content.iter().all(|b| *b == byte), "{mib} MiB at site {at}");
        }
    }
}

#[test]
fn a_write_without_space_is_refused_before_anything_happened() {
    for at in 0..2 {
        let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.sites[at].disk.free_bytes = Some(64 << 20);
        sim.pass(Duration::from_secs(20));
        // What is known of the mirror's space comes with its answers.
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.pass(Duration::from_secs(2));
        sim.errors_expected = true;
        let tail = sim.status(0).tail_lsn;
        sim.write(0, ByteRange::new(8192, 4096), false);
        sim.settle();
        assert_eq!(sim.refused, [Errno::NoSpc], "{}", sim.logs());
        assert_eq!(sim.status(0).tail_lsn, tail);
        assert_eq!(sim.status(0).state, GroupState::Serving);
    }
}

/// Refused writes bring no acknowledgements, and those carry what a mirror can promise: it has to say by itself that there
/// is space again.
#[test]
fn what_needs_no_space_is_not_refused_for_lack_of_it() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.sites[0].disk.free_bytes = Some(64 << 20);
    sim.errors_expected = true;
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.pass(Duration::from_secs(2));
    assert!(sim.status(0).no_space);
    let refused = sim.refused.len();
    sim.trim(0, ByteRange::new(0, VOLUME));
    sim.zero(0, ByteRange::new(0, VOLUME), false);
    sim.settle();
    assert_eq!(sim.outstanding(), 0);
    assert_eq!(sim.refused.len(), refused, "{}", sim.logs());
    sim.zero(0, ByteRange::new(0, VOLUME), true);
    sim.settle();
    assert_eq!(sim.refused.len(), refused + 1, "it is to be allocated");
}

#[test]
fn writes_go_on_by_themselves_once_there_is_space_again_on_either_site() {
    for at in 0..2 {
        let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
        sim.sites[at].disk.free_bytes = Some(64 << 20);
        sim.errors_expected = true;
        for n in 0..4 {
            sim.write(0, ByteRange::new(n * 4096, 4096), false);
            sim.pass(Duration::from_secs(2));
        }
        assert!(sim.refused.contains(&Errno::NoSpc), "{}", sim.logs());
        // Nobody writes any more: it is told all the same, for as long as it lasts.
        sim.pass(Duration::from_secs(300));
        let status = sim.status(0);
        assert_eq!(status.full_sites, [["a", "b"][at]], "the site is named");
        assert!(status.no_space && !status.healthy, "{status:?}");
        let left = [status.space_left_bytes, status.peers[0].space_left_bytes];
        assert_eq!(left[at], Some(0));
        assert_eq!(left[1 - at], None, "unknown, or without bounds");
        let there = sim.status(1);
        assert_eq!(there.no_space, at == 1, "a full mirror says it, too");
        assert_eq!(there.healthy, at == 0);
        let since = sim.status(at).full_since_unix_seconds.expect("since when");
        assert!(since < sim.time().wall_ns / 1_000_000_000 - 250);
        assert!(status.space_needed_bytes.is_some());
        let logs = sim.logs();
        let own = format!("NO SPACE for the homes here, on {}", ["a", "b"][at]);
        assert!(logs.contains("nearly out"), "{logs}");
        assert!(at == 0 || logs.contains(&own), "{logs}");
        let refused = sim.refused.len();
        sim.sites[at].disk.free_bytes = Some(1 << 40);
        sim.pass(Duration::from_secs(2));
        let status = sim.status(0);
        assert!(status.full_sites.is_empty() && !status.no_space && status.healthy);
        let again = "there is space for the homes again";
        assert!(!logs.contains(again) && sim.logs().contains(again));
        sim.write(0, ByteRange::new(65536, 4096), false);
        sim.settle();
        assert_eq!(sim.outstanding(), 0);
        assert_eq!(sim.refused.len(), refused, "{}", sim.logs());
    }
}

#[test]
fn a_full_journal_makes_writers_wait_and_loses_nothing() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    // The homes stand still: nothing can be released.
    sim.hold_homes(0, true);
    let mut waits = false;
    for n in 0..400u64 {
        sim.write(0, ByteRange::new(n % 8 * (VOLUME / 8), VOLUME / 8), false);
        while sim.step() {}
        let status = sim.status(0);
        waits |= status.in_flight_requests > 0;
        assert!(status.unapplied_bytes <= 64 << 20, "memory is bounded");
    }
    assert!(waits);
    assert_eq!(sim.status(0).home_hangs_seconds, None, "not for long");
    sim.pass(Duration::from_secs(6));
    let status = sim.status(0);
    assert!(
        status
            .home_hangs_seconds
            .is_some_and(|s| (5.0..7.0).contains(&s))
    );
    assert!(!status.healthy);
    sim.hold_homes(0, false);
    sim.pass(Duration::from_secs(5));
    let status = sim.status(0);
    assert!(status.home_hangs_seconds.is_none() && status.healthy);
    assert_eq!(sim.outstanding(), 0, "all were answered in the end");
    let content = sim.read_all(0);
    sim.record.check(0, &content).unwrap();
}

#[test]
fn a_clean_stop_leaves_nothing_to_replay_and_equal_homes() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    for n in 0..30 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
    }
    for at in [0, 1] {
        sim.command(at, Command::Shutdown);
        sim.pass(Duration::from_secs(6));
        assert!(sim.sites[at].stopped, "{}", sim.logs());
        assert_eq!(sim.outstanding(), 0);
        sim.kill(at);
    }
    let [a, b] = sim.homes();
    assert!(a == b);
    sim.record.check(0, &a).unwrap();
}

#[test]
fn a_slow_client_request_for_a_range_being_written_sees_one_version() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    let range = ByteRange::new(0, 4096);
    sim.write(0, range, false);
    sim.settle();
    sim.hold_disk(1, true);
    sim.write(0, range, false);
    sim.read(0, range);
    sim.run_for(Duration::from_millis(100));
    assert!(
        sim.reads.is_empty(),
        "a read of what is not committed was answered"
    );
    sim.hold_disk(1, false);
    sim.settle();
    assert_eq!(sim.reads.len(), 1);
    assert_eq!(sim.violations, Vec::<String>::new());
    sim.input(0, Input::Tick);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
        for _ in 0..200 {
            sim.random_request();
            sim.step();
        }
        sim.kill(0);
        sim.settle();
        (sim.logs(), sim.acked, sim.rng.next())
    };
    assert_eq!(run(), run());
}

/// Somebody else took the space that was promised: nothing is lost, and it goes on when there is space again.
#[test]
fn a_home_without_space_is_tried_again_until_there_is_some() {
    for at in 0..2 {
        let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
        sim.sites[at].disk.homes_full = true;
        for n in 0..4 {
            sim.write(0, ByteRange::new(n * 4096, 4096), false);
            sim.settle();
        }
        sim.pass(Duration::from_secs(5));
        assert_eq!(
            sim.outstanding(),
            0,
            "the journal has room:\n{}",
            sim.logs()
        );
        assert!(sim.status(at).no_space, "it is told");
        assert_ne!(sim.status(at).state, GroupState::Fenced);
        let told = sim.logs().matches("NO SPACE in a home").count();
        assert_eq!(told, 1, "{}", sim.logs());
        sim.sites[at].disk.homes_full = false;
        sim.pass(Duration::from_secs(62));
        assert!(!sim.status(at).no_space);
        let status = sim.status(at);
        assert_eq!(status.applied_lsn, status.commit_lsn);
        check_both_sides(&mut sim);
    }
}

/// A copy that finds no space on the mirror breaks off, says so, and is made once there is some.
#[test]
fn a_copy_without_space_breaks_off_and_is_made_later() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.forget_old_journal(0);
    sim.kill(1);
    sim.wipe(1);
    sim.sites[1].disk.homes_full = true;
    sim.start(1).unwrap();
    sim.pass(Duration::from_secs(30));
    assert_eq!(sim.status(1).state, GroupState::Inconsistent);
    let logs = sim.logs();
    assert!(
        logs.contains("no space for what the primary sends"),
        "{logs}"
    );
    let there = sim.status(1);
    assert_eq!(there.full_sites, ["b"]);
    assert!(there.full_since_unix_seconds.is_some());
    sim.pass_until(Duration::from_secs(30), |sim| {
        sim.status(0).peers[0].hindrance == Some(Hindrance::NoSpace)
    });
    let status = sim.status(0);
    assert!(
        status.reason.contains("free space on b"),
        "{}",
        status.reason
    );
    sim.sites[1].disk.homes_full = false;
    check_both_sides(&mut sim);
    assert!(sim.status(1).full_sites.is_empty());
}

#[test]
fn a_mirror_that_comes_back_at_once_and_lacks_nothing_owes_nothing() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.pass(Duration::from_secs(20));
    sim.kill(1);
    sim.start(1).unwrap();
    sim.heal();
    let epoch = sim.status(0).epoch.unwrap().number;
    sim.pass(Duration::from_secs(20));
    assert_eq!(sim.status(0).epoch.unwrap().number, epoch, "{}", sim.logs());
}

/// Under `freeze`, with a mirror that is new: the copy is what it waits for, and it is made.
#[test]
fn a_mirror_promoted_beside_a_replaced_primary_copies_to_it_under_freeze() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Freeze);
    for n in 0..4 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
    }
    sim.kill(0);
    sim.wipe(0);
    sim.sites[0].config.role = Role::Mirror;
    sim.sites[0].config.volumes.clear();
    sim.start(0).unwrap();
    sim.pass(Duration::from_secs(10));
    let force = Vec::new();
    sim.command(1, Command::Promote { force });
    sim.heal();
    assert!(sim.attach(1), "{}", sim.logs());
    let [a, b] = sim.homes();
    assert!(a == b, "the homes differ");
}

/// It acknowledged nothing since: whatever it holds beyond was told to nobody.
#[test]
fn a_frozen_primary_whose_mirror_was_promoted_follows_it_by_itself() {
    for (ack, in_flight) in [
        (AckMode::Sync, false),
        (AckMode::Sync, true),
        (AckMode::Memsync, true),
    ] {
        let mut sim = pair(ack, OnPeerLoss::Freeze);
        for n in 0..4 {
            sim.write(0, ByteRange::new(n * 4096, 4096), false);
            sim.settle();
        }
        sim.cut();
        let before = sim.acked;
        if in_flight {
            sim.write(0, ByteRange::new(0, 4096), false);
        }
        sim.pass(Duration::from_secs(10));
        assert_eq!(sim.acked, before);
        assert_eq!(sim.status(0).state, GroupState::Frozen, "{}", sim.logs());
        let force = vec![crate::engine::Force::PeerUnreachable];
        sim.command(1, Command::Promote { force });
        sim.pass(Duration::from_secs(8));
        // Its own copy of what it waits for may hold it back, but nobody thaws the old one.
        sim.connected = true;
        sim.heal();
        assert_eq!(sim.status(0).role, Role::Mirror, "{}", sim.logs());
        assert!(sim.attach(1), "{}", sim.logs());
        let [a, b] = sim.homes();
        assert!(a == b, "the homes differ");
        assert_eq!(sim.violations, Vec::<String>::new());
    }
}

/// The peer is silent, and what was in flight then is acknowledged without it.
#[test]
fn a_write_that_was_in_flight_when_the_peer_went_silent_counts_as_here_only() {
    for ack in [AckMode::Sync, AckMode::Memsync, AckMode::Async] {
        let mut sim = pair(ack, OnPeerLoss::Continue);
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.settle();
        sim.cut();
        let before = sim.acked;
        sim.write(0, ByteRange::new(4096, 4096), false);
        sim.pass(Duration::from_secs(8));
        assert_eq!(sim.acked, before + 1, "{ack}: {}", sim.logs());
        let alone = sim.status(0).alone.expect("alone");
        assert_eq!(alone.operations, 1, "{ack}: {alone:?}");
        let reason = sim.status(0).reason;
        assert!(
            reason.contains("writes are on a only, without b"),
            "{ack}: {reason}"
        );
        // It is on record.
        sim.kill(0);
        sim.start(0).expect("a restart");
        sim.pass(Duration::from_secs(8));
        assert_eq!(sim.status(0).alone.expect("alone"), alone, "{ack}");
        assert!(sim.attach(0), "{}", sim.logs());
        sim.write(0, ByteRange::new(0, 4096), false);
        sim.pass(Duration::from_secs(1));
        assert_eq!(sim.status(0).alone.expect("alone").operations, 2, "{ack}");
    }
}

#[test]
fn nothing_counts_as_acknowledged_alone_before_the_operation_is_durable_that_says_so() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.cut();
    let before = sim.acked;
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.settle();
    sim.hold_journal(0, true);
    sim.pass(Duration::from_secs(8));
    assert_eq!(sim.acked, before);
    let alone = sim.status(0).alone.expect("alone, on record");
    assert_eq!(alone.operations, 0, "{}", sim.logs());
    sim.hold_journal(0, false);
    sim.pass(Duration::from_secs(1));
    assert_eq!(sim.acked, before + 1);
    assert_eq!(sim.status(0).alone.expect("alone").operations, 1);
}

#[test]
fn nothing_is_counted_that_the_peer_confirmed_or_wrote_itself() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    for n in 0..5 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
    }
    sim.kill(1);
    sim.pass(Duration::from_secs(1));
    let status = sim.status(0);
    assert_eq!(status.alone.expect("alone").operations, 0);
    assert!(
        status
            .reason
            .starts_with("what is written from now on is on a only, without b"),
        "{}",
        status.reason
    );

    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    for n in 0..5 {
        sim.write(0, ByteRange::new(n * 4096, 4096), false);
        sim.settle();
    }
    sim.kill(0);
    sim.promote(1).expect("promoted");
    assert_eq!(sim.status(1).alone.expect("alone").operations, 0);
    assert!(sim.attach(1));
    sim.write(1, ByteRange::new(0, 4096), false);
    sim.settle();
    assert_eq!(sim.status(1).alone.expect("alone").operations, 1);
}

#[test]
fn what_is_on_one_site_only_gets_less_while_the_peer_catches_up() {
    let mut sim = in_situation(AckMode::Sync, CatchingUp);
    let before = sim.status(0).alone.expect("alone").operations;
    assert!(before >= 40, "{before}");
    sim.hold_disk(1, false);
    sim.pass_until(Duration::from_secs(10), move |sim| {
        sim.status(0).alone.is_none_or(|a| a.operations < before)
    });
    sim.heal();
    assert_eq!(sim.status(0).alone, None);
}

/// What this site says of the other one.
fn hindrance(sim: &mut Sim, at: usize) -> Option<Hindrance> {
    sim.status(at).peers[0].hindrance
}

#[test]
fn after_a_demotion_both_sites_say_so_and_which_promotions_there_are() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.command(0, Command::Demote);
    sim.pass(Duration::from_secs(3));
    for (at, why) in [(0, Hindrance::DemotedHere), (1, Hindrance::DemotedThere)] {
        assert_eq!(hindrance(&mut sim, at), Some(why), "{}", sim.logs());
        let reason = sim.status(at).reason;
        let other = ["b", "a"][at];
        let both = format!(
            "`doublure promote g` makes this site the primary, `doublure promote g` on {other} that one"
        );
        assert!(reason.contains(&both), "{reason}");
        assert!(!reason.contains("start "), "{reason}");
    }
    // It is so after a restart, too.
    sim.kill(0);
    sim.start(0).expect("a restart");
    sim.pass(Duration::from_secs(1));
    assert_eq!(hindrance(&mut sim, 0), Some(Hindrance::DemotedHere));
    sim.command(1, Command::Promote { force: Vec::new() });
    sim.pass(Duration::from_secs(5));
    assert_eq!(sim.status(0).state, GroupState::Following);
    assert_eq!(hindrance(&mut sim, 0), None);
    // What the other one was counts no more.
    sim.command(1, Command::Demote);
    sim.pass(Duration::from_secs(3));
    assert_eq!(hindrance(&mut sim, 1), Some(Hindrance::DemotedHere));
    assert_eq!(hindrance(&mut sim, 0), Some(Hindrance::DemotedThere));
}

#[test]
fn a_mirror_whose_primary_s_operator_cut_the_link_says_where_it_is_mended() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.command(0, Command::Disconnect);
    sim.pass(Duration::from_secs(3));
    assert_eq!(hindrance(&mut sim, 1), Some(Hindrance::CutThere));
    let reason = sim.status(1).reason;
    assert!(reason.contains("`doublure connect g` on a"), "{reason}");
    assert!(!reason.contains("start a"), "{reason}");
    sim.command(0, Command::Connect);
    sim.heal();
    sim.kill(0);
    sim.pass(Duration::from_secs(8));
    let status = sim.status(1);
    assert_eq!(status.peers[0].hindrance, Some(Hindrance::Unreachable));
    let told = format!("{} {}", status.reason, status.peers[0].detail);
    assert!(!told.contains("cut the link"), "{told}");
    assert!(status.reason.contains("a does not answer since "), "{told}");
}

#[test]
fn a_mirror_of_a_fenced_primary_says_that_its_disk_failed_and_so_does_a_promotion() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.sites[0].disk.fail_next_journal_write = true;
    sim.write(0, ByteRange::new(0, 4096), false);
    sim.pass(Duration::from_secs(2));
    assert_eq!(sim.status(0).state, GroupState::Fenced);
    assert_eq!(
        hindrance(&mut sim, 1),
        Some(Hindrance::Fenced),
        "{}",
        sim.logs()
    );
    let reason = sim.status(1).reason;
    assert!(reason.contains("mend the disk of a"), "{reason}");
    let id = sim.command(1, Command::Promote { force: Vec::new() });
    sim.pass(Duration::from_secs(8));
    let refused = sim.answers[&id].clone().unwrap_err();
    assert!(
        refused.starts_with("a answers, but its disk failed"),
        "{refused}"
    );
    assert!(!refused.contains("cannot be reached"), "{refused}");
    assert!(
        refused.contains("`doublure promote g --force peer-unreachable` goes on without it"),
        "{refused}"
    );
}

#[test]
fn after_a_switchover_nobody_is_to_be_started() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    let id = sim.command(0, Command::Switchover);
    // At any moment of it.
    for _ in 0..400 {
        for at in [0, 1] {
            let why = hindrance(&mut sim, at);
            assert_ne!(why, Some(Hindrance::Unreachable), "{}", sim.logs());
            assert_ne!(why, Some(Hindrance::DemotedHere), "{}", sim.logs());
        }
        if !sim.step() {
            sim.pass(Duration::from_millis(1));
        }
    }
    assert!(sim.answers[&id].is_ok(), "{:?}", sim.answers[&id]);
    assert_eq!(sim.status(0).state, GroupState::Following);
}

#[test]
fn a_peer_that_accepts_connections_and_says_nothing_does_not_answer() {
    let mut sim = pair(AckMode::Sync, OnPeerLoss::Continue);
    sim.hang(1);
    sim.write(0, ByteRange::new(0, 4096), false);
    for _ in 0..20 {
        sim.pass(Duration::from_secs(1));
        let why = hindrance(&mut sim, 0);
        assert_ne!(why, Some(Hindrance::Settling), "{}", sim.logs());
    }
    let reason = sim.status(0).reason;
    assert!(reason.contains("b does not answer since 2023-"), "{reason}");
}
