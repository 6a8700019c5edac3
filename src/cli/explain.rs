//! `doublure explain`: why a group is in its state, what it waits for, and what each choice would lose. From the status
//! alone, so that whatever it says a program can see, too.

use std::fmt::Write;

use super::units;
use crate::base::{AckMode, CHUNK_BYTES, Hindrance, Role, Step};
use crate::status::{
    AloneStatus, DifferingRange, ForkSide, ForkStatus, GroupState, GroupStatus, PeerState,
    PeerStatus, VerifyStatus,
};

/// Something the operator can do: one step after the other, and what comes of them, and what it loses.
#[derive(Clone)]
struct Choice {
    steps: Vec<Step>,
    effect: String,
}

fn choice(step: Step, effect: impl Into<String>) -> Choice {
    Choice {
        steps: vec![step],
        effect: effect.into(),
    }
}

fn here(command: impl Into<String>) -> Step {
    Step::Here(command.into())
}

fn at(site: &str, command: impl Into<String>) -> Step {
    Step::At(site.to_owned(), command.into())
}

/// What gets rid of what keeps the peer away.
fn mended(group: &GroupStatus) -> Choice {
    let advice = hindrance(group).advice(other(group), &group.name);
    choice(advice.step, advice.effect)
}

/// What keeps the peer away; nothing is known of one that never was there.
fn hindrance(group: &GroupStatus) -> Hindrance {
    let known = group.peers.first().and_then(|p| p.hindrance);
    known.unwrap_or(Hindrance::Unreachable)
}

/// A step as a line that can be pasted into a shell, if it is a command.
fn line(step: &Step, site: &str) -> String {
    match step {
        Step::Here(command) => format!("doublure {command}"),
        Step::At(other, command) if other == site => format!("doublure {command}"),
        Step::At(site, command) => format!("doublure {command}  # on {site}"),
        Step::SeeTo(what) => what.clone(),
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
    if let Some(damage) = &group.journal_damage {
        let _ = writeln!(text, "The journal here is damaged: {damage}.");
    }
    if let Some(fork) = &group.fork {
        text.push_str(&sides(&group.name, fork));
    }
    for peer in group.peers.iter().filter(|p| !p.detail.is_empty()) {
        let detail = peer.detail.trim_end_matches('.');
        // The reason may be the very same.
        if !group.reason.contains(detail) {
            let _ = match detail.strip_prefix("the link to ") {
                Some(rest) => writeln!(text, "The link to {rest}."),
                None => writeln!(text, "Link to {}: {detail}.", peer.site),
            };
        }
    }
    let choices = [
        space(site, group, &mut text),
        difference(site, group, &mut text),
        choices,
    ]
    .concat();
    if choices.is_empty() {
        text.push_str("\nThere is nothing to do.\n");
        return text;
    }
    text.push_str("\nWhat can be done:\n");
    for Choice { steps, effect } in choices {
        text.push('\n');
        for step in &steps {
            let _ = writeln!(text, "  {}", line(step, site));
        }
        let _ = writeln!(text, "      {effect}");
    }
    text
}

fn word(state: GroupState) -> String {
    let word = serde_json::to_value(state).expect("a word");
    word.as_str().unwrap_or_default().replace('_', " ")
}

fn sides(group: &str, fork: &ForkStatus) -> String {
    let mut text = format!(
        "Both sites have the same history up to LSN {}. Since then:\n",
        fork.shared_lsn
    );
    for side in &fork.sides {
        let _ = writeln!(text, "  {}", side_text(side));
        if let Some(known) = where_text(side) {
            let _ = writeln!(text, "    {known}");
        }
        for range in &side.touched {
            let _ = writeln!(
                text,
                "      {} at byte {}, {}",
                range.volume,
                units::grouped(range.offset),
                units::bytes(range.bytes)
            );
        }
        let listed: u64 = side.touched.iter().map(|r| r.bytes).sum();
        if let Some(more) = side.touched_bytes.filter(|all| *all > listed) {
            let _ = writeln!(text, "      and {} more", units::bytes(more - listed));
        }
    }
    // A site knows its own journal only.
    for side in fork.sides.iter().skip(1).filter(|s| s.operations > 0) {
        let _ = writeln!(
            text,
            "Where {} wrote, `doublure explain {group}` on {} tells.",
            side.site, side.site
        );
    }
    text
}

/// What is known of where a side wrote, before its ranges are listed. Chunks are noted for a stretch of the journal at a time,
/// and one that began before the fork brings what was written then, too.
fn where_text(side: &ForkSide) -> Option<String> {
    if side.operations == 0 {
        return None;
    }
    let since = match side.touched_from_lsn {
        Some(from) if from > side.first_lsn => {
            format!("where it wrote before LSN {from} is not known any more; from there on ")
        }
        _ => String::new(),
    };
    match (side.touched_bytes, side.touched_from_lsn) {
        (Some(bytes), _) => Some(format!(
            "{since}it wrote nowhere but in these {}, and perhaps not in all of them (whole chunks of {}):",
            units::bytes(bytes),
            units::bytes(CHUNK_BYTES)
        )),
        (None, Some(_)) => Some("where it wrote is not known any more".to_owned()),
        (None, None) => None,
    }
}

fn side_text(side: &ForkSide) -> String {
    let serves = if side.serving {
        "; it serves clients now"
    } else {
        "; it serves nobody now"
    };
    let serves = if side.mixture {
        format!("; its content is a MIXTURE of old and new{serves}")
    } else {
        serves.to_owned()
    };
    if side.operations == 0 {
        return format!("{} wrote nothing{serves}", side.site);
    }
    let openings = (side.last_lsn.since(side.first_lsn) + 1).saturating_sub(side.operations);
    let opens = match openings {
        0 => String::new(),
        1 => ", one of which opens an epoch and wrote nothing".to_owned(),
        n => format!(", {n} of which open epochs and wrote nothing"),
    };
    let mut text = format!(
        "{} wrote {} ({}{opens})",
        side.site,
        units::counted(side.operations, "operation"),
        units::lsns(side.first_lsn, side.last_lsn)
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
    if let Some(last) = side.last_write_unix_seconds {
        let _ = write!(text, ", the last at {}", units::utc(last));
    }
    text + &serves
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
                here(format!("status {name} --watch")),
                "shows how it goes on; nothing is lost by waiting",
            )],
        ),
        GroupState::WaitingForPeer => waiting(site, group, peer),
        GroupState::Alone => alone(group),
        GroupState::Suspect => (
            vec![match hindrance(group) {
                Hindrance::Unreachable | Hindrance::Settling | Hindrance::Connecting => {
                    "Writes wait, they are not refused. When the peer stays silent for the configured timeout it is \
                     declared dead, and on_peer_loss decides."
                        .into()
                }
                _ => "Writes wait, they are not refused.".into(),
            }],
            vec![mended(group)],
        ),
        GroupState::Frozen => frozen(site, group, peer),
        GroupState::HandedOver => (
            vec![format!(
                "The role was handed to {peer}, durably, and {peer} has not said that it took it. It goes on by itself \
                 when {peer} answers."
            )],
            vec![
                mended(group),
                choice(
                    here(format!("promote {name} --force peer-unreachable")),
                    format!("takes the role back; if {peer} took it, both are primary and their writes fork"),
                ),
            ],
        ),
        GroupState::Disconnected => disconnected(site, group, peer),
        GroupState::Inconsistent => inconsistent(group, peer),
        GroupState::BothPrimary => both_primary(site, name, peer),
        GroupState::Forked => forked(site, group, peer),
        GroupState::Fenced => fenced(site, group, peer),
    }
}

fn fenced(site: &str, group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let name = &group.name;
    let promote = |effect| {
        choice(
            at(peer, format!("promote {name} --force peer-unreachable")),
            effect,
        )
    };
    if group.epoch.is_none() {
        let meaning = "The group could not be opened, and nothing was changed.";
        let restart = "settle that, then restart doublure here".to_owned();
        let mut choices = vec![choice(Step::SeeTo(restart), RECOVERS)];
        let mut meaning = vec![meaning.to_owned()];
        if !group.peers.is_empty() {
            meaning.push(format!(
                "Keep the folder '{name}' in the data directory here until it is sure that {peer} has all that was acknowledged."
            ));
            choices.push(promote(format!(
                "{peer} serves, if it does not already, with everything that was acknowledged while in sync; what {site} \
                 acknowledged alone is not there, and lost if the folder here is"
            )));
        }
        return (meaning, choices);
    }
    let mut meaning = vec![
        "What reached the disk is not known, so nothing is acknowledged here any more. What was acknowledged before is in the \
         journals."
            .to_owned(),
    ];
    let restart = format!("mend the disk of {site}, then restart doublure here");
    let mut choices = vec![choice(Step::SeeTo(restart), RECOVERS)];
    if let Some(lacks) = only_here(group, peer) {
        meaning.push(format!(
            "{lacks}. The folder '{name}' in the data directory of {site} holds the only copy of that: KEEP it, and copy it to \
             another disk before anything else."
        ));
        choices[0].effect = "recovers from the journal, and asks the peer before it serves; nothing is lost that the disk can \
                             still read"
            .into();
        choices.push(promote(format!(
            "{peer} serves, if it does not already, without what only {site} holds: to the clients that is lost, and a fork if \
             {site} comes back with it"
        )));
    } else if !group.peers.is_empty() {
        choices.push(promote(format!(
            "{peer} serves, if it does not already, with everything that was acknowledged"
        )));
    }
    (meaning, choices)
}

const RECOVERS: &str =
    "recovers from the journal, and asks the peer before it serves; nothing is lost";

/// What a primary acknowledged and its peer lacks, if it lacks anything.
fn only_here(group: &GroupStatus, peer: &str) -> Option<String> {
    let counts = |a: &&AloneStatus| a.operations > 0 || group.lost_until_lsn.is_some();
    if let Some(alone) = group.alone.as_ref().filter(counts) {
        return Some(format!(
            "{} was NOT in sync: it lacks what was acknowledged here since LSN {} ({}), {}",
            alone.peer,
            alone.from_lsn,
            units::utc(alone.since_unix_seconds),
            units::counted(alone.operations, "operation")
        ));
    }
    let confirmed = group.peers.first()?.durable_lsn;
    (group.role == Role::Primary && group.ack == AckMode::Async && confirmed < group.durable_lsn)
        .then(|| {
            format!(
                "{peer} lacks what it has not confirmed, {}; in async mode that was acknowledged without it",
                units::lsns(confirmed.next(), group.durable_lsn)
            )
        })
}

/// Sites without space for the homes, or nearly.
fn space(site: &str, group: &GroupStatus, text: &mut String) -> Vec<Choice> {
    let name = &group.name;
    let free = |at: &str| {
        let step =
            format!("free space on {at}, where the homes of {name} are, or trim the volumes");
        choice(
            Step::SeeTo(step),
            "what waits goes on by itself, and writes are taken again; nothing is lost",
        )
    };
    if group.full_sites.is_empty() {
        let short = super::table::short_of_space(site, group);
        for (at, left) in &short {
            let left = units::bytes(*left);
            let _ = writeln!(
                text,
                "Space for the homes on {at} is nearly out: {left} may still be promised to writers. A write that needs more is \
                 refused (ENOSPC)."
            );
        }
        return short.iter().map(|(at, _)| free(at)).collect();
    }
    let _ = write!(
        text,
        "NO SPACE is left for the homes on {}",
        group.full_sites.join(" and ")
    );
    if let Some(since) = group.full_since_unix_seconds {
        let _ = write!(text, ", since {}", units::utc(since));
    }
    text.push_str(match (group.role, group.inconsistent) {
        (Role::Primary, _) => {
            ": clients' writes that need more are refused (ENOSPC); what was acknowledged is in the journal"
        }
        (Role::Mirror, true) => ": the copy breaks off, and is tried again and again",
        (Role::Mirror, false) => {
            ": the primary refuses its clients' writes (ENOSPC), and what was acknowledged waits in the journal"
        }
    });
    text.push_str(".\n");
    if let Some(needed) = group.space_needed_bytes {
        let left = group
            .space_left_bytes
            .filter(|_| group.full_sites == [site]);
        let left = left.map_or_else(String::new, |left| {
            format!(", and {} are left to promise", units::bytes(left))
        });
        let _ = writeln!(
            text,
            "The last write that was refused needs {}{left}; 64 MiB on top are never promised.",
            units::bytes(needed)
        );
    }
    group.full_sites.iter().map(|at| free(at)).collect()
}

/// What a verification found and nobody mended.
fn difference(site: &str, group: &GroupStatus, text: &mut String) -> Vec<Choice> {
    if group.unrepaired_bytes == 0 {
        return Vec::new();
    }
    let name = &group.name;
    // The roles may have changed since: the primary of today compares.
    let primary = match group.role {
        Role::Primary => site,
        Role::Mirror => other(group),
    };
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
    if verify.undecided_bytes > 0 {
        undecided(name, verify, text);
    }
    let mut choices = Vec::new();
    // Where nothing is decided there is nothing that a repair would mend by itself.
    if verify.undecided_bytes < group.unrepaired_bytes {
        choices.push(choice(
            at(primary, format!("verify {name} --repair")),
            "compares again, and mends what the journal proves to be wrong or a site cannot read, on either site; nothing is \
             guessed",
        ));
    }
    if verify.undecided_bytes == 0 {
        return choices;
    }
    for (kept, other) in [
        (&verify.primary, &verify.peer),
        (&verify.peer, &verify.primary),
    ] {
        choices.push(choice(
            at(primary, format!("verify {name} --repair --keep {kept}")),
            format!(
                "compares again, mends what is proven, and takes ALL undecided ranges from {kept}: {other} then holds there what \
                 {kept} holds, right or wrong, and what {other} held there is lost"
            ),
        ));
    }
    choices
}

/// How somebody who has to decide can look at what each site holds.
fn undecided(group: &str, verify: &VerifyStatus, text: &mut String) {
    let undecided = |r: &&DifferingRange| !r.repaired && r.wrong_on.is_empty();
    let Some(range) = verify.differing.iter().find(undecided) else {
        return;
    };
    let _ = writeln!(
        text,
        "Nothing shows which site is right where it says undecided, and the two are not told apart by guessing. To see what each \
         of {} and {} holds there, run this on both, with HOME the volume's home (the key `home` of the volume in the \
         configuration; without it, {group}/{}.home in the data directory):",
        verify.primary, verify.peer, range.volume
    );
    for range in verify.differing.iter().filter(undecided) {
        let _ = writeln!(
            text,
            "  dd if=HOME iflag=direct,skip_bytes,count_bytes bs=4096 skip={} count={} status=none | xxd",
            range.offset, range.bytes
        );
    }
}

fn calm(group: &GroupStatus, peer: Option<&PeerStatus>) -> (Vec<String>, Vec<Choice>) {
    let mut text = Vec::new();
    match (group.role, peer) {
        (_, None) => text.push("No peer is configured: everything is on this site only.".into()),
        (Role::Primary, Some(_))
            if group.unrepaired_bytes > 0
                || group.no_space
                || group.home_hangs_seconds.is_some() => {}
        (Role::Primary, Some(_)) => text.push("Nothing is missing.".into()),
        (Role::Mirror, Some(peer)) => text.push(format!(
            "This site follows {}; clients attach there.",
            peer.site
        )),
    }
    let mut choices = Vec::new();
    if let Some(seconds) = group.home_hangs_seconds {
        text.push(format!(
            "A write to a home here has been under way for {}: its disk hangs, or is much too slow. What is acknowledged is in the \
             journal and waits there; when there is no more room for it writers wait.",
            units::seconds(seconds)
        ));
    }
    if group.journal.writers_wait {
        text.push(format!(
            "The journal is full and writers wait; its oldest part is held by {}.",
            group.journal.held_by
        ));
    }
    // What is wrong, or full, is not where anybody wants the clients.
    let fit = |p: &PeerStatus| {
        let full = group.full_sites.contains(&p.site);
        p.state == PeerState::InSync && !full && group.unrepaired_bytes == 0
    };
    if group.role == Role::Primary && peer.is_some_and(fit) {
        choices.push(choice(
            here(format!("switchover {}", group.name)),
            "hands the primary role to the peer; nothing is lost",
        ));
    }
    (text, choices)
}

fn inconsistent(group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let name = &group.name;
    let meaning = match &group.undo {
        Some(undo) => format!(
            "The homes here mix old and new content until the copy ends. What they held before is kept: if {peer} is lost before \
             the end, `doublure promote {name} --force inconsistent,peer-unreachable` serves that, up to LSN {}, written {}.",
            undo.lsn,
            units::utc(undo.unix_seconds)
        ),
        None => "The homes here mix old and new content until the copy ends; nobody may use them before.".to_owned(),
    };
    let followed = group
        .peers
        .iter()
        .any(|p| p.state == PeerState::Connected || p.hindrance.is_some_and(Hindrance::passes));
    if followed {
        let wait = choice(
            at(peer, format!("status {name} --watch")),
            "shows how far the copy is; it ends by itself, and nothing is lost by waiting",
        );
        return (vec![meaning], vec![wait]);
    }
    let effect = match &group.undo {
        Some(undo) => format!(
            "once you are sure that {peer} is down: undoes the copy and serves what was here before it, up to LSN {}, written \
             {}. What {peer} acknowledged after that is lost if {peer} does not come back, and a fork if it does",
            undo.lsn,
            units::utc(undo.unix_seconds)
        ),
        None => "serves the mixture: file systems in it are most likely damaged. Only if there is nothing better".into(),
    };
    let force = here(format!(
        "promote {name} --force inconsistent,peer-unreachable"
    ));
    let goes_on = "When the primary connects the copy goes on; what was copied already is recognised and not sent again.";
    (
        vec![meaning, goes_on.into()],
        vec![mended(group), choice(force, effect)],
    )
}

fn both_primary(site: &str, name: &str, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let give_up = |(loser, keeper): (&str, &str)| Choice {
        steps: vec![
            at(loser, format!("demote {name}")),
            here(format!("resolve {name} --discard {loser}")),
        ],
        effect: format!(
            "{loser} stops serving and gives up what it wrote since the fork, which is kept in a file in its data directory; \
             {keeper} serves on, and loses nothing"
        ),
    };
    (
        vec![
            "Each site acknowledges writes that the other does not have. Stop the clients of one of them first."
                .into(),
        ],
        either_way(site, peer).map(give_up).to_vec(),
    )
}

/// Who gives up and who is kept, one way and the other, in the same order on both sites.
fn either_way<'a>(site: &'a str, peer: &'a str) -> [(&'a str, &'a str); 2] {
    let mut ways = [(site, peer), (peer, site)];
    ways.sort_unstable();
    ways
}

/// Primary by its record, and not allowed to serve.
fn waiting(site: &str, group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let name = &group.name;
    let demote = choice(
        here(format!("demote {name}")),
        format!("{site} becomes a mirror and waits for a primary; nothing is lost"),
    );
    let why = hindrance(group);
    if let Some(lost) = group.lost_until_lsn {
        let force = match why {
            Hindrance::Settling => "behind",
            _ => "behind,peer-unreachable",
        };
        let give_up = choice(
            here(format!("promote {name} --force {force}")),
            format!(
                "{site} serves what it has, up to LSN {}, and gives up {}: acknowledged writes among them",
                group.tail_lsn,
                units::lsns(group.tail_lsn.next(), lost)
            ),
        );
        let back = choice(
            mended(group).steps.remove(0),
            format!("if {peer} has what is missing it comes back by itself; nothing is lost"),
        );
        let mut text = vec![
            "This site's disk lost acknowledged writes. Before it serves, a peer is to give them back.".to_owned(),
        ];
        if let Some(lacks) = only_here(group, peer) {
            text.push(format!(
                "{lacks}. What remains of that is only in the folder '{name}' in the data directory of {site}: KEEP it, and copy \
                 it to another disk before anything else."
            ));
        }
        return (text, vec![back, give_up, demote]);
    }
    let mut choices = vec![mended(group)];
    // What the two say of each other is to be settled; going on regardless is refused.
    if !matches!(
        why,
        Hindrance::Refused | Hindrance::CutThere | Hindrance::Settling
    ) {
        // Its memory is gone, and held what was acknowledged last.
        let last = match group.ack {
            AckMode::Memsync => {
                format!(
                    ", or alone holds what was acknowledged last before {site} stopped (memsync)"
                )
            }
            AckMode::Sync | AckMode::Async => String::new(),
        };
        choices.push(choice(
            here(format!("promote {name} --force peer-unreachable")),
            format!(
                "{site} serves without {peer}. If {peer} acknowledged writes since{last}, they fork from what is written here, \
                 and one side's have to be given up later"
            ),
        ));
    }
    choices.push(demote);
    (
        vec![format!(
            "This site is primary by its record, but {peer} may have been promoted while it was down. Until that is known \
             nobody is served here."
        )],
        choices,
    )
}

fn alone(group: &GroupStatus) -> (Vec<String>, Vec<Choice>) {
    let written = group.alone.as_ref().map_or(0, |a| a.operations);
    let text = match written {
        0 => "Nothing was acknowledged on this site only yet; whatever is from now on is lost if its disk is lost.".into(),
        1 => "1 acknowledged operation is on this site only, as far as is known. If its disk is lost now, so is it.".into(),
        n => format!(
            "{} are on this site only, as far as is known. If its disk is lost now, so are they.",
            units::counted(n, "acknowledged operation")
        ),
    };
    (vec![text], vec![mended(group)])
}

fn frozen(site: &str, group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let name = &group.name;
    let go_on = choice(
        here(format!("promote {name} --force peer-unreachable")),
        format!(
            "{site} goes on alone, on record: what it acknowledges then is on this site only until {peer} is back, and lost \
             if its disk is lost. If {peer} was promoted meanwhile, the two fork"
        ),
    );
    let mut choices = vec![mended(group)];
    if !hindrance(group).passes() {
        choices.push(go_on);
    }
    (
        vec![
            "Writes wait, they are not refused; reads are answered.".into(),
            "A restart does not help: whoever froze asks its peer first. on_peer_loss = \"continue\" in the configuration \
             counts from the next loss on."
                .into(),
        ],
        choices,
    )
}

fn disconnected(site: &str, group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let name = &group.name;
    let why = hindrance(group);
    let mut choices = vec![mended(group)];
    if group.epoch.is_none() {
        return (Vec::new(), choices);
    }
    let text = format!(
        "What is here is consistent, a state that the primary's disk once had, up to LSN {}.",
        group.commit_lsn
    );
    if why.nobody_is_primary() {
        choices.push(choice(
            at(peer, format!("promote {name}")),
            format!("the same the other way round: {peer} is primary then and {site} its mirror"),
        ));
        return (vec![text], choices);
    }
    if why.passes() {
        return (vec![text], choices);
    }
    let loss = match group.ack {
        AckMode::Async => format!("what {peer} acknowledged and had not sent is not here"),
        _ => format!(
            "what {peer} acknowledged alone since the link was lost, if anything, is not here"
        ),
    };
    let heard = group.peers.first().and_then(|p| p.last_heard_seconds);
    let heard = heard.map_or_else(
        || "it was not heard of since doublure was started here".to_owned(),
        |s| format!("it was last heard of {} ago", units::seconds(s)),
    );
    // Who is known to be primary, or to answer nobody, need not be asked.
    if !matches!(why, Hindrance::Fenced | Hindrance::CutThere) {
        choices.push(choice(
            here(format!("promote {name}")),
            format!("asks {peer} first; {site} becomes primary if {peer} answers and is not primary itself. Nothing is lost"),
        ));
    }
    let effect = if why == Hindrance::Fenced {
        let lacks = match group.ack {
            AckMode::Async => format!("what {peer} acknowledged and had not sent is not here"),
            _ => format!(
                "what {peer} acknowledged while the two were not in sync, if they were not, is not here"
            ),
        };
        format!(
            "{peer} acknowledges nothing any more since its disk failed: {site} becomes primary, with all that was acknowledged \
             in sync; {lacks}, and a fork if {peer} comes back with it"
        )
    } else {
        format!(
            "once you are sure that {peer} is down ({heard}): {site} becomes primary; {loss}, and a fork if {peer} comes back \
             with it"
        )
    };
    choices.push(choice(
        here(format!("promote {name} --force peer-unreachable")),
        effect,
    ));
    (vec![text], choices)
}

fn forked(site: &str, group: &GroupStatus, peer: &str) -> (Vec<String>, Vec<Choice>) {
    let name = &group.name;
    if let Some(loser) = group.fork.as_ref().and_then(|f| f.discarding.as_ref()) {
        let keeper = if loser == site { peer } else { site };
        let step = Step::SeeTo(
            Hindrance::Unreachable
                .advice(peer, name)
                .step
                .in_a_sentence(),
        );
        let effect = format!(
            "if they do not connect by themselves: {loser} then becomes a mirror of {keeper} and gets what differs"
        );
        return (
            vec![format!(
                "It was decided, and is on record; as soon as the two are connected it is done. Until then {loser} serves nobody."
            )],
            vec![choice(step, effect)],
        );
    }
    let written_by = |site: &str| {
        let sides = group.fork.iter().flat_map(|f| &f.sides);
        sides.into_iter().find(|s| s.site == site)
    };
    let give_up = |(loser, keeper): (&str, &str)| {
        let lost = written_by(loser);
        let what = lost.map_or_else(
            || format!("what {loser} wrote since the fork"),
            |s| match s.operations {
                0 => format!("nothing, as {loser} wrote nothing"),
                _ => format!("{} of {loser}", units::lsns(s.first_lsn, s.last_lsn)),
            },
        );
        // Only a primary opens links, and nobody gives up what it serves.
        let keeper_waits = written_by(keeper).is_some_and(|s| !s.primary);
        let what =
            if lost.is_some_and(|s| !s.mixture) && written_by(keeper).is_some_and(|s| s.mixture) {
                format!("the whole copy that {loser} holds, for a mixture of old and new")
            } else {
                what
            };
        let mut steps = Vec::new();
        if lost.is_some_and(|s| s.serving || s.primary && keeper_waits) {
            steps.push(at(loser, format!("demote {name}")));
        }
        if keeper_waits {
            steps.push(at(keeper, format!("promote {name} --force behind")));
        }
        steps.push(Step::Here(format!("resolve {name} --discard {loser}")));
        Choice {
            steps,
            effect: format!(
                "keeps what {keeper} holds and gives up {what}{}. {loser} becomes a mirror and gets what differs",
                kept(lost, loser)
            ),
        }
    };
    // First what stops nobody's clients, then what loses least.
    let mut ways = either_way(site, peer);
    ways.sort_by_key(|(loser, keeper)| {
        let lost = written_by(loser);
        (
            written_by(keeper).is_some_and(|s| s.mixture),
            lost.is_some_and(|s| s.serving),
            lost.map(|s| (s.acknowledged_operations, s.operations)),
        )
    });
    (
        vec![
            "Nothing is given up without an operator's word. Until then a site that does not serve does not begin to by itself, \
             and one that serves does not do so again after a restart."
                .into(),
        ],
        ways.map(give_up)
            .into_iter()
            .chain(written_by(site).filter(|s| !s.serving).map(|_| {
                choice(
                    here(format!("promote {name} --force peer-unreachable")),
                    format!(
                        "only if {peer} is gone for good, or for too long: {site} serves what it holds. The fork stands, and is \
                         resolved when {peer} is back; what is written until then belongs to {site}'s side of it"
                    ),
                )
            }))
            .collect(),
    )
}

/// What remains of what a side gives up, behind a semicolon.
fn kept(lost: Option<&ForkSide>, loser: &str) -> String {
    let file = format!("in a file in {loser}'s data directory, which the answer to resolve names");
    match lost {
        None => format!("; what there is of that is kept {file}"),
        Some(side) if side.operations == 0 => String::new(),
        Some(side) => match side.kept_from_lsn {
            Some(from) if from > side.first_lsn => format!(
                "; of that only {} is kept, {file}: its journal no longer holds what is before",
                units::lsns(from, side.last_lsn)
            ),
            Some(_) => format!("; that is kept {file}"),
            None => format!("; nothing of that is kept: {loser}'s journal no longer holds it"),
        },
    }
}

#[cfg(test)]
mod tests;
