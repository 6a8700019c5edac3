use super::*;
use crate::base::{AckMode, OnPeerLoss};
use crate::status::{
    EpochStatus, ForkSide, ForkStatus, JournalStatus, Rates, StageLatencies, Totals, VolumeStatus,
};

const NOW: u64 = 1_795_399_152;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn layout() -> Layout {
    Layout {
        paint: Paint { colours: false },
        width: 80,
        now_unix_seconds: NOW,
    }
}

fn latency(count: u64, p50_us: f64, p99_us: f64, max_us: f64) -> Latency {
    Latency {
        count,
        p50_us,
        p99_us,
        max_us,
    }
}

/// A primary with its mirror in sync, under load.
pub fn in_sync() -> GroupStatus {
    GroupStatus {
        name: "registry".to_owned(),
        id: "01939d6e-0000-7000-8000-000000000001".to_owned(),
        role: Role::Primary,
        state: GroupState::Serving,
        reason: "every peer is in sync".to_owned(),
        state_since_unix_seconds: NOW - 273_600,
        healthy: true,
        ack: AckMode::Sync,
        on_peer_loss: OnPeerLoss::Continue,
        epoch: Some(EpochStatus {
            number: 4,
            id: "7f0e61b2-0000-4000-8000-000000000004".to_owned(),
            site: "clichy".to_owned(),
            first_lsn: Lsn(98_301),
        }),
        tail_lsn: Lsn(1_234_567),
        durable_lsn: Lsn(1_234_560),
        commit_lsn: Lsn(1_234_555),
        applied_lsn: Lsn(1_234_500),
        checkpoint_lsn: Lsn(1_230_000),
        inconsistent: false,
        mixture: None,
        inconsistent_until_lsn: None,
        lost_until_lsn: None,
        journal_damage: None,
        configured_role: None,
        journal: JournalStatus {
            capacity_bytes: GIB,
            used_bytes: 276 * MIB,
            first_lsn: Lsn(1_198_000),
            writers_wait: false,
            held_by: "checkpoint".to_owned(),
        },
        alone: None,
        peers: vec![PeerStatus {
            site: "chelles".to_owned(),
            state: PeerState::InSync,
            hindrance: None,
            detail: String::new(),
            received_lsn: Lsn(1_234_565),
            durable_lsn: Lsn(1_234_555),
            applied_lsn: Lsn(1_234_490),
            needs_copy: false,
            lag_operations: 12,
            lag_bytes: 48 << 10,
            lag_seconds: 0.000_4,
            last_heard_seconds: Some(0.001),
            copied_bytes: 0,
            copy_total_bytes: 0,
            copy_eta_seconds: None,
            space_left_bytes: None,
        }],
        fork: None,
        undo: None,
        verify: None,
        last_verify: None,
        next_scrub_unix_seconds: None,
        unrepaired_bytes: 0,
        volumes: vec![
            VolumeStatus {
                name: "registry-data".to_owned(),
                uuid: "01939d6e-0000-7000-8000-000000000002".to_owned(),
                size_bytes: 10 * GIB,
                clients: 2,
            },
            VolumeStatus {
                name: "registry-log".to_owned(),
                uuid: "01939d6e-0000-7000-8000-000000000003".to_owned(),
                size_bytes: 512 * MIB,
                clients: 1,
            },
        ],
        clients: 3,
        in_flight_requests: 12,
        home_hangs_seconds: None,
        no_space: false,
        full_sites: Vec::new(),
        full_since_unix_seconds: None,
        space_needed_bytes: None,
        space_left_bytes: None,
        unapplied_bytes: 1_300_000,
        totals: Totals::default(),
        rates: Rates {
            window_seconds: 5.0,
            reads_per_second: 1_204.2,
            writes_per_second: 12_345.6,
            read_bytes_per_second: 4_932_403.0,
            write_bytes_per_second: 50_567_577.0,
        },
        latency: StageLatencies {
            write: latency(61_728, 310.0, 1_240.0, 4_012.0),
            read: latency(6_021, 85.0, 190.0, 730.0),
            journal: latency(2_000, 91.0, 240.0, 1_800.0),
            link: latency(2_000, 215.0, 900.0, 3_900.0),
            apply: latency(61_000, 2_100.0, 14_000.0, 102_000.0),
        },
        disagreements: Vec::new(),
    }
}

fn idle(mut group: GroupStatus) -> GroupStatus {
    group.rates = Rates {
        window_seconds: 5.0,
        ..Rates::default()
    };
    group.latency = StageLatencies::default();
    group.clients = 0;
    group.in_flight_requests = 0;
    group.unapplied_bytes = 0;
    for volume in &mut group.volumes {
        volume.clients = 0;
    }
    group
}

fn alone() -> GroupStatus {
    let mut group = in_sync();
    group.state = GroupState::Alone;
    group.reason = "chelles has been silent for longer than 5s; its machine refuses connections. Writes go on \
                    without it and are caught up when it is back"
        .to_owned();
    group.state_since_unix_seconds = NOW - 724;
    group.healthy = false;
    group.alone = Some(AloneStatus {
        peer: "chelles".to_owned(),
        since_unix_seconds: NOW - 724,
        from_lsn: Lsn(1_234_556),
        operations: 18_234,
    });
    group.journal.held_by = "chelles".to_owned();
    let peer = &mut group.peers[0];
    peer.state = PeerState::Connecting;
    peer.detail = "10.0.0.2:10810: connection refused; next attempt in 4 s".to_owned();
    peer.lag_operations = 18_234;
    peer.lag_bytes = 74_700_000;
    peer.lag_seconds = 724.0;
    peer.last_heard_seconds = Some(729.0);
    group
}

fn mirror() -> GroupStatus {
    let mut group = idle(in_sync());
    group.role = Role::Mirror;
    group.state = GroupState::Following;
    group.reason = "follows clichy, consistent".to_owned();
    group.latency.journal = latency(2_000, 88.0, 230.0, 1_700.0);
    group.latency.apply = latency(61_000, 1_900.0, 12_000.0, 99_000.0);
    group.peers[0] = PeerStatus {
        site: "clichy".to_owned(),
        state: PeerState::Connected,
        needs_copy: false,
        lag_operations: 0,
        lag_bytes: 0,
        lag_seconds: 0.0,
        ..group.peers[0].clone()
    };
    group
}

#[track_caller]
fn fits_80_columns(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn a_primary_in_sync_shows_its_numbers() {
    let text = group(&in_sync(), &layout());
    fits_80_columns(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn a_primary_alone_says_what_is_only_here() {
    let text = group(&alone(), &layout());
    fits_80_columns(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn a_primary_whose_mirror_catches_up_says_how_much_is_missing() {
    let mut status = alone();
    status.state = GroupState::Serving;
    status.reason =
        "chelles catches up; until it is in sync, acknowledgements do not wait for it".to_owned();
    status.peers[0].state = PeerState::CatchingUp;
    status.peers[0].detail = String::new();
    status.peers[0].last_heard_seconds = Some(0.02);
    let text = group(&status, &layout());
    fits_80_columns(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn a_frozen_primary_says_that_writers_wait_and_for_whom() {
    let mut status = idle(alone());
    status.state = GroupState::Frozen;
    status.reason =
        "on_peer_loss = freeze and chelles is lost: nothing is acknowledged until it is back"
            .to_owned();
    status.on_peer_loss = OnPeerLoss::Freeze;
    status.alone = None;
    status.in_flight_requests = 32;
    status.journal.used_bytes = GIB;
    status.journal.writers_wait = true;
    let text = group(&status, &layout());
    fits_80_columns(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn a_mirror_that_follows_shows_its_own_stages() {
    let text = group(&mirror(), &layout());
    fits_80_columns(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn an_inconsistent_copy_is_loud_and_says_how_far_it_is() {
    let mut status = mirror();
    status.state = GroupState::Inconsistent;
    status.reason = "receives a full copy from clichy".to_owned();
    status.healthy = false;
    status.inconsistent = true;
    status.peers[0].copied_bytes = 3 * GIB;
    status.peers[0].copy_total_bytes = 10 * GIB;
    status.peers[0].copy_eta_seconds = Some(754.0);
    let text = group(&status, &layout());
    fits_80_columns(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn a_fork_names_both_sides_and_the_disagreements_of_the_configuration() {
    let mut status = idle(alone());
    status.state = GroupState::Forked;
    status.reason = "clichy and chelles both went on after LSN 1234555; an operator must choose which side's writes \
                     are kept"
        .to_owned();
    status.peers[0].state = PeerState::Refused;
    status.peers[0].detail = "fork after LSN 1234555: 18,234 operations here, 77 there".to_owned();
    status.disagreements = vec![
        "role is mirror in the file and primary on disk".to_owned(),
        "journal is 2.0 GiB in the file and 1.0 GiB on disk".to_owned(),
    ];
    let text = group(&status, &layout());
    fits_80_columns(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn a_home_that_hangs_is_loud() {
    let mut status = in_sync();
    status.home_hangs_seconds = Some(12.0);
    let text = group(&status, &layout());
    assert!(text.contains("SERVING, HOME HANGS"), "{text}");
    assert!(text.contains("! A HOME HANGS: a write to it"), "{text}");
}

#[test]
fn a_fork_says_who_serves_clients() {
    let side = |site: &str, serving| ForkSide {
        site: site.to_owned(),
        first_lsn: Lsn(1_234_556),
        last_lsn: Lsn(1_234_560),
        operations: 5,
        acknowledged_operations: 5,
        since_unix_seconds: None,
        last_write_unix_seconds: None,
        touched_bytes: None,
        touched_from_lsn: None,
        touched: Vec::new(),
        primary: serving,
        serving,
        kept_from_lsn: None,
        mixture: false,
    };
    let said = |here, there| {
        let mut status = idle(alone());
        status.state = GroupState::Forked;
        status.fork = Some(ForkStatus {
            sides: vec![side("clichy", here), side("chelles", there)],
            shared_lsn: Lsn(1_234_555),
            discarding: None,
        });
        group(&status, &layout()).replace("\n    ", " ")
    };
    assert!(said(false, false).contains("; none of them serves clients."));
    assert!(said(false, true).contains("; chelles serves clients."));
    assert!(said(true, true).contains("; clichy and chelles serve clients."));
}

#[test]
fn a_peer_that_was_heard_of_and_has_told_nothing_yet_has_no_positions() {
    let mut status = idle(alone());
    let peer = &mut status.peers[0];
    (peer.received_lsn, peer.durable_lsn, peer.applied_lsn) = (Lsn(0), Lsn(0), Lsn(0));
    assert!(peer.last_heard_seconds.is_some());
    let text = group(&status, &layout());
    let row = text
        .lines()
        .rfind(|line| line.trim().starts_with("chelles"));
    let words: Vec<&str> = row.unwrap().split_whitespace().collect();
    assert_eq!(words, ["chelles", "-", "-", "-", "-", "-", "-"]);
}

#[test]
fn a_new_group_that_never_met_its_peer_claims_nothing_about_it() {
    let mut status = idle(in_sync());
    status.state = GroupState::WaitingForPeer;
    status.reason =
        "was in sync with chelles and cannot reach it; it may have gone on without this site"
            .to_owned();
    status.healthy = false;
    status.state_since_unix_seconds = NOW - 3;
    status.epoch = None;
    status.peers[0].state = PeerState::Connecting;
    status.peers[0].lag_operations = 0;
    status.peers[0].last_heard_seconds = None;
    status.volumes.clear();
    let text = group(&status, &layout());
    fits_80_columns(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn a_mirror_that_can_go_back_says_to_what_and_with_which_command() {
    let mut status = mirror();
    status.inconsistent = true;
    status.undo = Some(crate::status::UndoStatus {
        lsn: Lsn(77),
        unix_seconds: NOW,
        file_bytes: 0,
    });
    let text = group(&status, &layout());
    fits_80_columns(&text);
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(!flat.contains("full copy"), "{flat}");
    let part = "LSN 77 of 2026-11-23 01:59:12 UTC: `doublure promote registry --force inconsistent` goes back to it.";
    assert!(flat.contains(part), "{flat}");
}

#[test]
fn what_is_wrong_stands_beside_a_state_that_is_as_it_should_be() {
    let mut status = in_sync();
    status.healthy = false;
    status.no_space = true;
    status.full_sites = vec!["chelles".to_owned()];
    status.unrepaired_bytes = 4096;
    let text = group(&status, &layout());
    let first = text.lines().next().expect("a line");
    assert!(first.contains("SERVING, NO SPACE, SITES DIFFER"), "{first}");
}

#[test]
fn a_mirror_says_where_a_verification_is_to_be_asked_for() {
    use crate::status::VerifyStatus;
    let mut status = mirror();
    status.unrepaired_bytes = 4096;
    status.last_verify = Some(VerifyStatus {
        state: VerifyState::Differs,
        primary: "clichy".to_owned(),
        peer: "chelles".to_owned(),
        repair: false,
        keep: None,
        scrub: true,
        began_unix_seconds: NOW - 60,
        ended_unix_seconds: Some(NOW - 30),
        lsn: Some(Lsn(77)),
        seconds: 30.0,
        eta_seconds: None,
        done_bytes: GIB,
        total_bytes: GIB,
        differing_bytes: 4096,
        wrong_on_primary_bytes: 4096,
        wrong_on_peer_bytes: 0,
        undecided_bytes: 0,
        unreadable_bytes: 0,
        repaired_bytes: 0,
        differing: Vec::new(),
    });
    let told = |status: &GroupStatus| {
        let text = group(status, &layout()).replace("\n    ", " ");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let text = told(&status);
    assert!(
        text.contains("`doublure verify registry --repair` on clichy mends"),
        "{text}"
    );
    status.role = Role::Primary;
    let text = told(&status);
    assert!(
        text.contains("`doublure verify registry --repair` mends"),
        "{text}"
    );
}

#[test]
fn the_next_verification_is_announced_unless_one_is_under_way() {
    let mut status = in_sync();
    status.next_scrub_unix_seconds = Some(NOW + 60);
    let text = group(&status, &layout());
    assert!(
        text.contains("the next verification begins by itself at 2026-11-23 02:00:12 UTC"),
        "{text}"
    );
    status.next_scrub_unix_seconds = Some(NOW - 60);
    let text = group(&status, &layout());
    assert!(text.contains("a verification is due"), "{text}");
    // The primary begins it.
    status.role = Role::Mirror;
    let text = group(&status, &layout());
    assert!(!text.contains("a verification is due"), "{text}");
}

#[test]
fn a_site_names_the_group_that_its_configuration_does_not() {
    let mut status = site_of("clichy", Vec::new());
    status.notes =
        vec!["/data/registry holds a group that the configuration does not name".to_owned()];
    let text = site(&status, &layout());
    assert!(text.contains("! /data/registry holds a group"), "{text}");
}

fn site_of(name: &str, groups: Vec<GroupStatus>) -> SiteStatus {
    SiteStatus {
        site: name.to_owned(),
        version: "0.1.0".to_owned(),
        uptime_seconds: 273_612,
        groups,
        shards: Vec::new(),
        notes: Vec::new(),
    }
}

#[test]
fn a_site_with_several_groups_begins_with_a_line_for_each() {
    let mut schools = mirror();
    schools.name = "schools".to_owned();
    let text = site(&site_of("clichy", vec![alone(), schools]), &layout());
    fits_80_columns(&text);
    insta::assert_snapshot!(text.lines().take(8).collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_site_without_groups_says_so() {
    let text = site(&site_of("clichy", Vec::new()), &layout());
    assert_eq!(
        text,
        "site clichy, doublure 0.1.0, up 3d 4h\nno groups are configured\n"
    );
}

#[test]
fn colours_add_nothing_but_colours() {
    let mut coloured = layout();
    coloured.paint.colours = true;
    let text = group(&alone(), &coloured);
    assert!(text.contains("\x1b["));
    let mut plain = String::new();
    let mut in_escape = false;
    for c in text.chars() {
        match c {
            '\x1b' => in_escape = true,
            c if in_escape => in_escape = !c.is_ascii_alphabetic(),
            c => plain.push(c),
        }
    }
    let trimmed: Vec<&str> = plain.lines().map(str::trim_end).collect();
    assert_eq!(trimmed.join("\n") + "\n", group(&alone(), &layout()));
}

#[test]
fn two_sites_side_by_side_take_a_line_each_and_a_note_for_trouble() {
    let mut lead = alone();
    lead.name = "demo".to_owned();
    let sites = [
        ("lead", Ok(site_of("lead", vec![lead]))),
        (
            "understudy",
            Err("process 4242 was killed by SIGKILL".to_owned()),
        ),
    ];
    let text = side_by_side("demo", &sites, &layout());
    fits_80_columns(&text);
    insta::assert_snapshot!(text);
}
