use super::*;
use crate::base::{AckMode, Lsn};
use crate::cli::table::tests::in_sync;
use crate::status::{TouchedRange, UndoStatus, VerifyState};

const NOW: u64 = 1_795_399_152;

#[test]
fn a_damaged_journal_is_told_with_the_place() {
    let mut group = in_state(GroupState::WaitingForPeer);
    group.journal_damage = Some("LSN 17 (at byte 8192 of the journal) is missing".into());
    let text = explain("clichy", &group, NOW);
    assert!(
        text.contains(
            "The journal here is damaged: LSN 17 (at byte 8192 of the journal) is missing."
        ),
        "{text}"
    );
}

fn in_state(state: GroupState) -> GroupStatus {
    GroupStatus {
        state,
        reason: "a reason".into(),
        healthy: false,
        ..in_sync()
    }
}

#[test]
fn every_state_is_explained_and_whatever_is_wrong_has_a_way_out() {
    use GroupState as S;
    for state in [
        S::Starting,
        S::WaitingForPeer,
        S::Serving,
        S::Alone,
        S::Suspect,
        S::Frozen,
        S::Draining,
        S::HandedOver,
        S::Following,
        S::Disconnected,
        S::Inconsistent,
        S::BothPrimary,
        S::Forked,
        S::Fenced,
    ] {
        let text = explain("clichy", &in_state(state), NOW);
        assert!(
            text.starts_with("Group registry on site clichy: primary, "),
            "{text}"
        );
        assert!(text.contains("Why: a reason."), "{text}");
        assert!(
            text.contains("What can be done:") || text.contains("nothing to do"),
            "{text}"
        );
    }
}

/// A verification that found a block in which nothing shows who is right.
fn verified() -> VerifyStatus {
    VerifyStatus {
        state: VerifyState::Differs,
        primary: "clichy".into(),
        peer: "chelles".into(),
        repair: false,
        keep: None,
        scrub: true,
        began_unix_seconds: NOW - 60,
        ended_unix_seconds: Some(NOW - 30),
        lsn: Some(Lsn(77)),
        seconds: 30.0,
        eta_seconds: None,
        done_bytes: 1 << 30,
        total_bytes: 1 << 30,
        differing_bytes: 4096,
        wrong_on_primary_bytes: 0,
        wrong_on_peer_bytes: 0,
        undecided_bytes: 4096,
        unreadable_bytes: 0,
        repaired_bytes: 0,
        differing: vec![DifferingRange {
            volume: "registry-data".into(),
            offset: 8192,
            bytes: 4096,
            wrong_on: Vec::new(),
            unreadable_on: Vec::new(),
            repaired: false,
        }],
    }
}

#[test]
fn what_a_verification_found_is_explained_with_what_to_do() {
    let verify = verified();
    let mut group = GroupStatus {
        verify: Some(verify.clone()),
        last_verify: Some(verify),
        unrepaired_bytes: 8192,
        ..in_state(GroupState::Serving)
    };
    let text = explain("clichy", &group, NOW);
    for part in [
        "registry-data at byte 8,192, 4.0 KiB: undecided",
        "  doublure verify registry --repair\n",
        "--keep clichy",
        "--keep chelles",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Nothing is decided: there is nothing that a repair would mend by itself.
    group.unrepaired_bytes = 4096;
    let text = explain("clichy", &group, NOW);
    assert!(!text.contains("--repair\n"), "{text}");
    assert!(text.contains("--repair --keep clichy\n"), "{text}");
    for part in [
        "takes ALL undecided ranges from clichy: chelles then holds there what clichy holds, right or wrong",
        "\n  dd if=HOME iflag=direct,skip_bytes,count_bytes bs=4096 skip=8192 count=4096 status=none | xxd\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // One of the two is wrong: that is not where the clients should go.
    group.peers[0].state = PeerState::InSync;
    let text = explain("clichy", &group, NOW);
    assert!(!text.contains("switchover"), "{text}");
    // The roles have changed since: who is primary now compares.
    let text = explain("chelles", &group, NOW);
    assert!(
        text.contains("  doublure verify registry --repair --keep clichy\n"),
        "{text}"
    );
}

#[test]
fn a_mirror_offers_verification_where_it_is_not_refused() {
    let mut group = GroupStatus {
        unrepaired_bytes: 8192,
        role: Role::Mirror,
        ..in_state(GroupState::Following)
    };
    group.peers[0].site = "clichy".into();
    group.last_verify = Some(verified());
    let text = explain("chelles", &group, NOW);
    assert!(
        text.contains("  doublure verify registry --repair  # on clichy\n"),
        "{text}"
    );
}

#[test]
fn what_is_on_one_site_only_is_counted() {
    let mut group = in_state(GroupState::Alone);
    group.alone = Some(AloneStatus {
        peer: "chelles".into(),
        since_unix_seconds: NOW - 60,
        from_lsn: Lsn(100),
        operations: 4321,
    });
    let text = explain("clichy", &group, NOW);
    assert!(
        text.contains("4,321 acknowledged operations are on this site only"),
        "{text}"
    );
    assert!(
        text.contains("start chelles (restart it if it hangs), or mend the network"),
        "{text}"
    );
    for (count, expected) in [
        (0, "Nothing was acknowledged on this site only yet"),
        (
            1,
            "1 acknowledged operation is on this site only, as far as is known",
        ),
    ] {
        group.alone.as_mut().expect("just set").operations = count;
        let text = explain("clichy", &group, NOW);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_fork_is_told_side_by_side_with_what_each_choice_gives_up() {
    let mut group = in_state(GroupState::Forked);
    let side = |site: &str, last| ForkSide {
        site: site.into(),
        first_lsn: Lsn(101),
        last_lsn: Lsn(last),
        operations: last - 100,
        acknowledged_operations: last - 101,
        since_unix_seconds: Some(NOW - 3600),
        last_write_unix_seconds: (site == "clichy").then_some(NOW),
        touched_bytes: (site == "clichy").then_some(3 << 20),
        touched_from_lsn: (site == "clichy").then_some(Lsn(101)),
        touched: Vec::from_iter((site == "clichy").then(|| TouchedRange {
            volume: "data".into(),
            offset: 1 << 20,
            bytes: 2 << 20,
        })),
        primary: site == "chelles",
        serving: site == "chelles",
        mixture: false,
        kept_from_lsn: Some(Lsn(if site == "clichy" { 120 } else { 101 })),
    };
    group.fork = Some(ForkStatus {
        shared_lsn: Lsn(100),
        sides: vec![side("clichy", 140), side("chelles", 105)],
        discarding: None,
    });
    let text = explain("clichy", &group, NOW);
    for part in [
        "the same history up to LSN 100",
        "clichy wrote 40 operations (LSN 101 to 140), of which it may have acknowledged 39",
        "; it serves nobody now\n",
        "it wrote nowhere but in these 3.0 MiB, and perhaps not in all of them (whole chunks of 256.0 KiB):\n",
        "the last at 2026-11-23 01:59:12 UTC",
        "data at byte 1,048,576, 2.0 MiB",
        "and 1.0 MiB more",
        "Where chelles wrote, `doublure explain registry` on chelles tells.",
        "chelles wrote 5 operations (LSN 101 to 105)",
        "doublure resolve registry --discard clichy",
        "keeps what chelles holds and gives up LSN 101 to 140 of clichy",
        "doublure resolve registry --discard chelles",
        "only LSN 120 to 140 is kept, in a file in clichy's data directory",
        "that is kept in a file in chelles's data directory",
        // Chelles serves, and clichy is a mirror: what has to come first is named, in order.
        "  doublure demote registry  # on chelles\n  doublure promote registry --force behind\n  doublure resolve registry \
         --discard chelles\n",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    // Whoever is asked, and in whatever order the sides stand: who serves is given up last.
    let mut seen_from_chelles = group.clone();
    seen_from_chelles.peers[0].site = "clichy".into();
    let fork = seen_from_chelles.fork.as_mut().expect("just set");
    fork.sides.reverse();
    for (site, group) in [("clichy", &group), ("chelles", &seen_from_chelles)] {
        let text = explain(site, group, NOW);
        let offered = |loser: &str| text.find(&format!("--discard {loser}"));
        assert!(offered("clichy") < offered("chelles"), "{site}: {text}");
    }
    group.fork.as_mut().expect("just set").sides[1].operations = 0;
    let text = explain("clichy", &group, NOW);
    let nothing = "gives up nothing, as chelles wrote nothing. chelles becomes a mirror";
    assert!(text.contains(nothing), "{text}");
    group.fork.as_mut().expect("just set").discarding = Some("clichy".into());
    let text = explain("clichy", &group, NOW);
    assert!(!text.contains("doublure resolve"), "{text}");
    assert!(
        text.contains("  start chelles (restart it if it hangs), or mend the network"),
        "{text}"
    );
}

fn kept_apart_by(state: GroupState, hindrance: Hindrance) -> String {
    let mut group = in_state(state);
    group.peers[0].hindrance = Some(hindrance);
    group.peers[0].state = PeerState::Connecting;
    explain("clichy", &group, NOW)
}

#[test]
fn a_frozen_group_is_offered_what_unfreezes_it_and_no_restart() {
    let text = kept_apart_by(GroupState::Frozen, Hindrance::Unreachable);
    let command = "\n  doublure promote registry --force peer-unreachable\n";
    assert!(text.contains(command), "{text}");
    assert!(text.contains("start chelles"), "{text}");
    assert!(text.contains("A restart does not help"), "{text}");
}

#[test]
fn a_peer_is_started_only_if_it_does_not_answer_whatever_the_state() {
    use GroupState as S;
    for state in [
        S::WaitingForPeer,
        S::Alone,
        S::Suspect,
        S::Frozen,
        S::HandedOver,
        S::Disconnected,
        S::Inconsistent,
    ] {
        let cut = kept_apart_by(state, Hindrance::CutHere);
        assert!(!cut.contains("start chelles"), "{cut}");
        assert!(cut.contains("\n  doublure connect registry\n"), "{cut}");
        let cut = kept_apart_by(state, Hindrance::CutThere);
        assert!(
            cut.contains("\n  doublure connect registry  # on chelles\n"),
            "{cut}"
        );
        let silent = kept_apart_by(state, Hindrance::Unreachable);
        assert!(silent.contains("start chelles"), "{silent}");
        let there = kept_apart_by(state, Hindrance::Connecting);
        assert!(!there.contains("start chelles"), "{there}");
    }
}

#[test]
fn a_mirror_whose_primary_was_demoted_is_offered_both_promotions_and_none_by_force() {
    for demoted in [Hindrance::DemotedHere, Hindrance::DemotedThere] {
        let text = kept_apart_by(GroupState::Disconnected, demoted);
        assert!(!text.contains("start chelles"), "{text}");
        assert!(!text.contains("--force"), "{text}");
        assert!(text.contains("\n  doublure promote registry\n"), "{text}");
        assert!(
            text.contains("\n  doublure promote registry  # on chelles\n"),
            "{text}"
        );
        assert_eq!(text.matches("  doublure promote").count(), 2, "{text}");
    }
}

#[test]
fn a_mirror_of_a_fenced_primary_is_offered_the_promotion_that_is_not_refused() {
    let text = kept_apart_by(GroupState::Disconnected, Hindrance::Fenced);
    assert!(!text.contains("\n  doublure promote registry\n"), "{text}");
    assert!(!text.contains("start chelles,"), "{text}");
    for part in [
        "\n  doublure promote registry --force peer-unreachable\n",
        "mend the disk of chelles",
        "chelles acknowledges nothing any more since its disk failed",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
}

#[test]
fn just_after_a_switchover_there_is_nothing_but_to_wait() {
    let text = kept_apart_by(GroupState::Disconnected, Hindrance::Connecting);
    assert!(!text.contains("promote"), "{text}");
    assert!(text.contains("doublure status registry --watch"), "{text}");
}

#[test]
fn a_mirror_in_the_middle_of_a_copy_says_what_it_can_go_back_to() {
    let mut group = in_state(GroupState::Inconsistent);
    group.peers[0].hindrance = Some(Hindrance::Copying);
    let text = explain("clichy", &group, NOW);
    assert!(text.contains("nobody may use them before"), "{text}");
    group.undo = Some(UndoStatus {
        lsn: Lsn(77),
        unix_seconds: NOW,
        file_bytes: 0,
    });
    let text = explain("clichy", &group, NOW);
    assert!(!text.contains("nobody may use them"), "{text}");
    let command = "`doublure promote registry --force inconsistent,peer-unreachable` serves that, up to LSN 77, written \
                   2026-11-23 01:59:12 UTC";
    assert!(text.contains(command), "{text}");
}

#[test]
fn where_a_side_of_a_fork_wrote_is_told_as_far_as_it_is_known() {
    let mut side = ForkSide {
        site: "clichy".into(),
        first_lsn: Lsn(13),
        last_lsn: Lsn(14),
        operations: 1,
        acknowledged_operations: 1,
        since_unix_seconds: None,
        last_write_unix_seconds: None,
        touched_bytes: None,
        touched_from_lsn: Some(Lsn(15)),
        touched: Vec::new(),
        primary: true,
        serving: true,
        mixture: false,
        kept_from_lsn: Some(Lsn(13)),
    };
    let text = side_text(&side);
    assert!(
        text.starts_with(
            "clichy wrote 1 operation (LSN 13 to 14, one of which opens an epoch and wrote nothing)"
        ),
        "{text}"
    );
    let text = where_text(&side).expect("something");
    assert!(
        text.starts_with("where it wrote is not known any more"),
        "{text}"
    );
    (side.touched_bytes, side.touched_from_lsn) = (Some(1 << 20), Some(Lsn(14)));
    let text = where_text(&side).expect("something");
    let part = "where it wrote before LSN 14 is not known any more; from there on it wrote nowhere \
                but in these 1.0 MiB";
    assert!(text.starts_with(part), "{text}");
    side.touched_from_lsn = Some(Lsn(13));
    let text = where_text(&side).expect("something");
    assert!(text.starts_with("it wrote nowhere but in these"), "{text}");
}

#[test]
fn what_would_be_refused_is_not_offered() {
    let text = kept_apart_by(GroupState::WaitingForPeer, Hindrance::Refused);
    assert!(!text.contains("--force"), "{text}");
    let mut group = in_state(GroupState::WaitingForPeer);
    group.lost_until_lsn = Some(Lsn(2_000_000));
    let text = explain("clichy", &group, NOW);
    let command = "\n  doublure promote registry --force behind,peer-unreachable\n";
    assert!(text.contains(command), "{text}");
}

#[test]
fn only_the_memory_of_a_site_that_stopped_is_gone_and_only_memsync_counted_on_it() {
    let mut group = in_state(GroupState::WaitingForPeer);
    for (ack, told) in [
        (AckMode::Sync, false),
        (AckMode::Memsync, true),
        (AckMode::Async, false),
    ] {
        group.ack = ack;
        let text = explain("clichy", &group, NOW);
        let part = "alone holds what was acknowledged last before clichy stopped";
        assert_eq!(text.contains(part), told, "{ack:?}: {text}");
    }
}

#[test]
fn no_offered_command_has_anything_behind_it_that_a_shell_would_not_take() {
    use GroupState as S;
    for state in [S::BothPrimary, S::Fenced, S::Disconnected, S::Inconsistent] {
        let text = kept_apart_by(state, Hindrance::Unreachable);
        for line in text
            .lines()
            .filter(|l| l.trim_start().starts_with("doublure "))
        {
            let command = line.split("  # on ").next().expect("one part at least");
            assert!(!command.contains(['(', ')', '`', '{']), "{line}");
        }
    }
}

#[test]
fn the_link_is_told_of_and_not_the_peer_that_says_nothing() {
    let mut group = in_state(GroupState::Alone);
    group.peers[0].detail = "cannot connect to 10.0.0.2:10810".into();
    let text = explain("clichy", &group, NOW);
    assert!(
        text.contains("Link to chelles: cannot connect to 10.0.0.2:10810."),
        "{text}"
    );
    assert!(!text.contains("chelles says"), "{text}");
    group.peers[0].detail = "the link to chelles ended: broken".into();
    let text = explain("clichy", &group, NOW);
    assert!(
        text.contains("\nThe link to chelles ended: broken.\n"),
        "{text}"
    );
}

#[test]
fn a_fenced_site_that_was_alone_holds_the_only_copy_and_says_so() {
    let mut group = in_state(GroupState::Fenced);
    let text = explain("clichy", &group, NOW);
    assert!(!text.contains("only copy"), "{text}");
    assert!(
        text.contains("with everything that was acknowledged"),
        "{text}"
    );
    group.alone = Some(AloneStatus {
        peer: "chelles".into(),
        since_unix_seconds: NOW,
        from_lsn: Lsn(100),
        operations: 4321,
    });
    for state in [GroupState::Fenced, GroupState::WaitingForPeer] {
        group.state = state;
        group.lost_until_lsn = Some(Lsn(2_000_000));
        let text = explain("clichy", &group, NOW);
        for part in [
            "chelles was NOT in sync: it lacks what was acknowledged here since LSN 100 (2026-11-23 01:59:12 UTC), 4,321 \
             operations",
            "KEEP it, and copy it to another disk",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert!(
            !text.contains("with everything that was acknowledged"),
            "{text}"
        );
    }
    group.alone = None;
    group.state = GroupState::Fenced;
    group.epoch = None;
    let text = explain("clichy", &group, NOW);
    assert!(text.contains("Keep the folder 'registry'"), "{text}");
}

#[test]
fn a_home_that_hangs_is_told_with_what_becomes_of_writers() {
    let mut group = in_state(GroupState::Serving);
    let hangs = "A write to a home here has been under way for 12s";
    assert!(!explain("clichy", &group, NOW).contains("under way"));
    group.home_hangs_seconds = Some(12.0);
    let text = explain("clichy", &group, NOW);
    assert!(
        text.contains(hangs) && text.contains("writers wait"),
        "{text}"
    );
}

#[test]
fn a_site_without_space_is_named_with_since_when_and_how_much_is_needed() {
    let mut group = in_state(GroupState::Serving);
    group.space_left_bytes = Some(300 << 20);
    let text = explain("clichy", &group, NOW);
    assert!(
        text.contains(
            "Space for the homes on clichy is nearly out: 300.0 MiB may still be promised"
        ),
        "{text}"
    );
    assert!(text.contains("\n  free space on clichy"), "{text}");
    assert!(!text.contains("nothing to do"), "{text}");
    group.no_space = true;
    group.full_sites = vec!["clichy".into()];
    group.full_since_unix_seconds = Some(NOW);
    group.space_needed_bytes = Some(4 << 20);
    group.space_left_bytes = Some(4096);
    let text = explain("clichy", &group, NOW);
    for part in [
        "NO SPACE is left for the homes on clichy, since 2026-11-23 01:59:12 UTC: clients' writes",
        "needs 4.0 MiB, and 4.0 KiB are left to promise; 64 MiB on top",
        "\n  free space on clichy, where the homes of registry are",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert!(!text.contains("Nothing is missing"), "{text}");
    // A full site is not where the clients should go.
    assert!(text.contains("doublure switchover"), "{text}");
    group.full_sites = vec!["chelles".into()];
    let text = explain("clichy", &group, NOW);
    assert!(!text.contains("switchover"), "{text}");
    let text = kept_apart_by(GroupState::Alone, Hindrance::NoSpace);
    assert!(text.contains("\n  free space on chelles"), "{text}");
}
