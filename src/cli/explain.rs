//! `doublure explain`: why a group is in its state, what it waits for, and what each choice would lose. From the status
//! alone, so that whatever it says a program can see, too.

use std::fmt::Write;

use super::units;
use crate::base::{AckMode, OnPeerLoss, Role};
use crate::status::{ForkSide, ForkStatus, GroupState, GroupStatus, PeerState, PeerStatus};

/// Something the operator can do.
#[derive(Clone)]
struct Choice {
    /// What to type, or what to see to.
    action: String,
    /// What comes of it, and what it loses.
    effect: String,
}

fn choice(action: impl Into<String>, effect: impl Into<String>) -> Choice {
    Choice {
        action: action.into(),
        effect: effect.into(),
    }
}

/// The explanation, in plain words. `now` is in seconds since the Unix epoch.
pub fn explain(site: &str, group: &GroupStatus, now: u64) -> String {
    let (meaning, choices) = case(site, group);
    let mut text = format!("Group {} on site {site}: {}, ", group.name, group.role);
    let _ = write!(text, "{}", word(group.state));
    if group.state_since_unix_seconds > 0 {
        let age = now.saturating_sub(group.state_since_unix_seconds);
        let _ = write!(
            text,
            " for {} (since {})",
            units::seconds(age as f64),
            units::utc(group.state_since_unix_seconds)
        );
    }
    text.push_str(".\n\n");
    let _ = writeln!(text, "Why: {}.", group.reason.trim_end_matches('.'));
    for line in meaning {
        let _ = writeln!(text, "{line}");
    }
    if let Some(fork) = &group.fork {
        text.push_str(&sides(fork));
    }
    for peer in group.peers.iter().filter(|p| !p.detail.is_empty()) {
        let _ = writeln!(
            text,
            "{} says: {}.",
            peer.site,
            peer.detail.trim_end_matches('.')
        );
    }
    let choices = [difference(group, &mut text), choices].concat();
    if choices.is_empty() {
        text.push_str("\nThere is nothing to do.\n");
        return text;
    }
    text.push_str("\nWhat can be done:\n");
    for Choice { action, effect } in choices {
        let _ = writeln!(text, "\n  {action}");
        let _ = writeln!(text, "      {effect}");
    }
    text
}

fn word(state: GroupState) -> String {
    let word = serde_json::to_value(state).expect("a word");
    word.as_str().unwrap_or_default().replace('_', " ")
}

fn sides(fork: &ForkStatus) -> String {
    let mut text = format!(
        "Both sites have the same history up to LSN {}. Since then:\n",
        fork.shared_lsn
    );
    for side in &fork.sides {
        let _ = writeln!(text, "  {}", side_text(side));
    }
    text
}

fn side_text(side: &ForkSide) -> String {
    let mut text = format!(
        "{} wrote {} (LSN {} to {})",
        side.site,
        units::counted(side.operations, "operation"),
        side.first_lsn,
        side.last_lsn
    );
    if side.acknowledged_operations > 0 {
        let _ = write!(
            text,
            ", of which it may have acknowledged {}",
            units::grouped(side.acknowledged_operations)
        );
    }
    if let Some(since) = side.since_unix_seconds {
        let _ = write!(text, ", the last epoch from {} on", units::utc(since));
    }
    if let Some(bytes) = side.touched_bytes {
        let _ = write!(text, ", in chunks of {} in all", units::bytes(bytes));
    }
    text
}

/// Who is meant by 'the other site'.
fn other(group: &GroupStatus) -> &str {
    group.peers.first().map_or("the peer", |p| p.site.as_str())
}

fn case(site: &str, group: &GroupStatus) -> (Vec<String>, Vec<Choice>) {
    let name = &group.name;
    let peer = other(group);
    let peer_status = group.peers.first();
    match group.state {
        GroupState::Serving | GroupState::Following => calm(group, peer_status),
        GroupState::Starting | GroupState::Draining => (
            vec!["This passes by itself.".into()],
            vec![choice(
                format!("doublure status {name} --watch"),
                "shows how it goes on; nothing is lost by waiting",
            )],
        ),
        GroupState::WaitingForPeer => waiting(site, group, peer),
        GroupState::Alone => alone(group, peer),
        GroupState::Suspect => (
            vec![
                "Writes wait, they are not refused. When the peer stays silent for the configured timeout it is \
                 declared dead, and on_peer_loss decides."
                    .into(),
            ],
            vec![choice(
                format!("see to {peer} and the network between the sites"),
                "nothing is lost; what waits is acknowledged when the peer answers",
            )],
        ),
        GroupState::Frozen => frozen(group, peer),
        GroupState::HandedOver => (
            vec![format!(
                "The role was handed to {peer}, durably, and {peer} has not said that it took it. It goes on by itself \
                 when {peer} answers."
            )],
            vec![
                choice(
                    format!("start {peer}, or mend the network"),
                    "nothing is lost",
                ),
                choice(
                    format!("doublure promote {name} --force peer-unreachable"),
                    format!("takes the role back; if {peer} took it, both are primary and their writes fork"),
                ),
            ],
        ),
        GroupState::Disconnected => disconnected(site, group, peer),
        GroupState::Inconsistent => (
            vec![
                "The homes here mix old and new content until the copy ends; nobody may use them before.".into(),
            ],
            vec![
                choice(
                    format!("start {peer}, or mend the network"),
                    "the copy goes on; what was copied already is recognised and not sent again",
                ),
                choice(
                    format!("doublure promote {name} --force inconsistent,peer-unreachable"),
                    match &group.undo {
                        Some(undo) => format!(
                            "undoes the copy and serves what was here before it: up to LSN {}, written {}. What {peer} \
                             acknowledged after that is lost if {peer} does not come back, and a fork if it does",
                            undo.lsn,
                            units::utc(undo.unix_seconds)
                        ),
                        None => "serves the mixture: file systems in it are most likely damaged. Only if there is \
                                 nothing better"
                            .into(),
                    },
                ),
            ],
        ),
        GroupState::BothPrimary => (
            vec!["Each site acknowledges writes that the other does not have.".into()],
            vec![
                choice(
                    format!("doublure demote {name}   (here, on {site})"),
                    format!("then `doublure resolve {name} --discard {site}` gives up what was written here since the fork"),
                ),
                choice(
                    format!("doublure demote {name}   (on {peer})"),
                    format!("then `doublure resolve {name} --discard {peer}` gives up what was written there since the fork"),
                ),
            ],
        ),
        GroupState::Forked => forked(site, group, peer),
        GroupState::Fenced => (
            vec![
                "What reached the disk is not known, so nothing is acknowledged here any more. What was acknowledged \
                 before is in the journals."
                    .into(),
            ],
            vec![
                choice(
                    format!("doublure promote {name} --force peer-unreachable   (on {peer})"),
                    format!("{peer} serves, with everything that was acknowledged while in sync"),
                ),
                choice(
                    "mend the disk, then restart doublure here",
                    "recovers from the journal, and asks the peer before it serves",
                ),
            ],
        ),
    }
}

/// What a verification found and nobody mended.
fn difference(group: &GroupStatus, text: &mut String) -> Vec<Choice> {
    if group.unrepaired_bytes == 0 {
        return Vec::new();
    }
    let name = &group.name;
    let _ = writeln!(
        text,
        "A verification found {} in which the sites do not hold the same:",
        units::bytes(group.unrepaired_bytes)
    );
    let ended = group.last_verify.as_ref().filter(|v| v.differing_bytes > 0);
    let Some(verify) = ended.or(group.verify.as_ref()) else {
        return Vec::new();
    };
    for range in verify.differing.iter().filter(|r| !r.repaired) {
        let _ = writeln!(
            text,
            "  {} at byte {}, {}: {}",
            range.volume,
            units::grouped(range.offset),
            units::bytes(range.bytes),
            super::verify::verdict(range)
        );
    }
    let mut choices = vec![choice(
        format!("doublure verify {name} --repair   (on the primary)"),
        "compares again, and mends what the journal proves to be wrong or a site cannot read, on either site; nothing is \
         guessed",
    )];
    for (kept, other) in [
        (&verify.primary, &verify.peer),
        (&verify.peer, &verify.primary),
    ] {
        if verify.undecided_bytes > 0 {
            choices.push(choice(
                format!("doublure verify {name} --repair --keep {kept}   (on the primary)"),
                format!(
                    "the same, and where nothing shows what is right {other} gets what {kept} holds: what {other} holds \
                     there is lost"
                ),
            ));
        }
    }
    choices
}

fn calm(group: &GroupStatus, peer: Option<&PeerStatus>) -> (Vec<String>, Vec<Choice>) {
    let mut text = Vec::new();
    match (group.role, peer) {
        (_, None) => text.push("No peer is configured: everything is on this site only.".into()),
        (Role::Primary, Some(_)) if group.unrepaired_bytes > 0 => {}
        (Role::Primary, Some(_)) => text.push("Nothing is missing.".into()),
        (Role::Mirror, Some(peer)) => text.push(format!(
            "This site follows {}; clients attach there.",
            peer.site
        )),
    }
    let mut choices = Vec::new();
    if group.journal.writers_wait {
        text.push(format!(
            "The journal is full and writers wait; its oldest part is held by {}.",
            group.journal.held_by
        ));
    }
    if group.role == Role::Primary && peer.is_some_and(|p| p.state == PeerState::InSync) {
        choices.push(choice(
            format!("doublure switchover {}", group.name),
            "hands the primary role to the peer; nothing is lost",
        ));
    }
    (text, choices)
}

fn waiting(site: &str, group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let name = &group.name;
    (
        vec![format!(
            "This site is primary by its record, but {peer} may have been promoted while it was down. Until that is known \
             nobody is served here."
        )],
        vec![
            choice(
                format!("start {peer}, or mend the network"),
                "this site then goes on by itself; nothing is lost",
            ),
            choice(
                format!("doublure promote {name} --force peer-unreachable"),
                format!(
                    "{site} serves without {peer}. If {peer} acknowledged writes since, they fork from what is written \
                     here, and one side's have to be given up later"
                ),
            ),
            choice(
                format!("doublure demote {name}"),
                format!("{site} becomes a mirror and waits for a primary"),
            ),
        ],
    )
}

fn alone(group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let written = group.alone.as_ref().map_or(0, |a| a.operations);
    let mut text = vec![format!(
        "{} are on this site only. If its disk is lost now, so are they.",
        units::counted(written, "acknowledged operation")
    )];
    let state = group.peers.first().map(|p| p.state);
    match state {
        Some(PeerState::CatchingUp) => {
            text.push(format!("{peer} is back and receives what it lacks."));
        }
        Some(PeerState::Copying) => text.push(format!(
            "{peer} is back; the chunks in which it may differ are compared and copied."
        )),
        _ => {}
    }
    (
        text,
        vec![choice(
            format!("start {peer}, or mend the network"),
            "it gets what it lacks by itself, and is in sync again afterwards; nothing is lost",
        )],
    )
}

fn frozen(group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let mut choices = vec![choice(
        format!("start {peer}, or mend the network"),
        "what waits is acknowledged then; nothing is lost",
    )];
    if group.on_peer_loss == OnPeerLoss::Freeze {
        choices.push(choice(
            "set on_peer_loss = \"continue\" in the configuration and restart doublure here",
            "the site goes on alone, on record; what it acknowledges then is on one site only",
        ));
    }
    (
        vec!["Writes wait, they are not refused; reads are answered.".into()],
        choices,
    )
}

fn disconnected(site: &str, group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let name = &group.name;
    let loss = match group.ack {
        AckMode::Async => format!("writes that {peer} acknowledged and had not sent are not here"),
        _ => format!(
            "writes that {peer} acknowledged alone since the link was lost, if any, are not here"
        ),
    };
    let mut choices = vec![choice(
        format!("start {peer}, or mend the network"),
        "this site follows again; nothing is lost",
    )];
    if group.epoch.is_some() {
        choices.push(choice(
            format!("doublure promote {name}"),
            format!(
                "{site} becomes primary, if {peer} answers and is not primary. If it cannot be asked: --force \
                 peer-unreachable, once you are sure that it is down; {loss}"
            ),
        ));
    }
    let text = format!(
        "What is here is consistent, a state that the primary's disk once had, up to LSN {}.",
        group.commit_lsn
    );
    let text = if group.epoch.is_some() {
        vec![text]
    } else {
        Vec::new()
    };
    (text, choices)
}

fn forked(site: &str, group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let name = &group.name;
    let written_by = |site: &str| {
        let sides = group.fork.iter().flat_map(|f| &f.sides);
        sides.into_iter().find(|s| s.site == site)
    };
    let give_up = |loser: &str, keeper: &str| {
        let lost = written_by(loser);
        let what = lost.map_or_else(
            || format!("what {loser} wrote since the fork"),
            |s| format!("LSN {} to {} of {loser}", s.first_lsn, s.last_lsn),
        );
        // Only a primary opens links, and nobody gives up what it serves.
        let keeper_waits = written_by(keeper).is_some_and(|s| !s.primary);
        let mut steps = Vec::new();
        if lost.is_some_and(|s| s.serving || s.primary && keeper_waits) {
            steps.push(format!("doublure demote {name}   (on {loser})"));
        }
        if keeper_waits {
            steps.push(format!(
                "doublure promote {name} --force behind   (on {keeper})"
            ));
        }
        steps.push(format!("doublure resolve {name} --discard {loser}"));
        choice(
            steps.join("\n  "),
            format!(
                "keeps what {keeper} holds and gives up {what}; {}. {loser} becomes a mirror and gets what differs",
                kept(lost, loser)
            ),
        )
    };
    (
        vec!["Nothing is given up without an operator's word.".into()],
        vec![give_up(site, peer), give_up(peer, site)],
    )
}

/// What remains of what a side gives up.
fn kept(lost: Option<&ForkSide>, loser: &str) -> String {
    match lost {
        Some(side) if side.operations > 0 => match side.kept_from_lsn {
            Some(from) if from > side.first_lsn => format!(
                "of that only LSN {from} to {} is kept, in a file in {loser}'s data directory: its journal no longer holds \
                 what is before",
                side.last_lsn
            ),
            Some(_) => format!("that is kept in a file in {loser}'s data directory"),
            None => format!("nothing of that is kept: {loser}'s journal no longer holds it"),
        },
        _ => format!("what there is of that is kept in a file in {loser}'s data directory"),
    }
}

#[cfg(test)]
mod tests;
