//! The status of a site as text, for an operator at 3 a.m.: first how it is and why, then what is missing, then the
//! numbers. Pure: the same status gives the same text.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Color, Table, presets};

use super::terminal::{Paint, Tone, wrap};
use super::units;
use crate::base::{Lsn, Role, SHORT_OF_SPACE_BYTES, unapplied_most_bytes};
use crate::status::{
    AloneStatus, GroupState, GroupStatus, Latency, PeerState, PeerStatus, SiteStatus, VerifyState,
};

/// How to lay it out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Colours or none.
    pub paint: Paint,
    /// Columns for running text.
    pub width: usize,
    /// The time, to tell ages.
    pub now_unix_seconds: u64,
}

/// A state in words and in colour.
pub fn group_state(state: GroupState) -> (&'static str, Tone) {
    match state {
        GroupState::Starting => ("STARTING", Tone::Busy),
        GroupState::WaitingForPeer => ("WAITING FOR PEER", Tone::Bad),
        GroupState::Serving => ("SERVING", Tone::Good),
        GroupState::Alone => ("ALONE", Tone::Bad),
        GroupState::Suspect => ("SUSPECT", Tone::Busy),
        GroupState::Frozen => ("FROZEN", Tone::Bad),
        GroupState::Draining => ("DRAINING", Tone::Busy),
        GroupState::HandedOver => ("HANDED OVER", Tone::Busy),
        GroupState::Following => ("FOLLOWING", Tone::Good),
        GroupState::Disconnected => ("DISCONNECTED", Tone::Bad),
        GroupState::Inconsistent => ("INCONSISTENT", Tone::Bad),
        GroupState::BothPrimary => ("BOTH PRIMARY", Tone::Bad),
        GroupState::Forked => ("FORKED", Tone::Bad),
        GroupState::Fenced => ("FENCED", Tone::Bad),
    }
}

fn peer_state(state: PeerState) -> (&'static str, Tone) {
    match state {
        PeerState::InSync => ("in sync", Tone::Good),
        PeerState::CatchingUp => ("catching up", Tone::Busy),
        PeerState::Copying => ("copying", Tone::Busy),
        PeerState::Suspect => ("suspect", Tone::Busy),
        PeerState::Connecting => ("connecting", Tone::Bad),
        PeerState::CutByOperator => ("cut by operator", Tone::Bad),
        PeerState::Refused => ("refused", Tone::Bad),
        PeerState::Connected => ("connected", Tone::Good),
        PeerState::Absent => ("absent", Tone::Bad),
    }
}

/// A state that is good by itself is not if something is missing all the same: a primary serves while its mirror still
/// catches up.
fn group_tone(group: &GroupStatus) -> Tone {
    match group_state(group.state).1 {
        Tone::Good if !group.healthy => Tone::Busy,
        tone => tone,
    }
}

/// The state, and what is wrong although the state is as it should be.
fn state_words(group: &GroupStatus) -> String {
    let mut words = group_state(group.state).0.to_owned();
    if group.no_space {
        words += ", NO SPACE";
    }
    if group.home_hangs_seconds.is_some() {
        words += ", HOME HANGS";
    }
    if group.unrepaired_bytes > 0 {
        words += ", SITES DIFFER";
    }
    words
}

/// A whole site.
pub fn site(site: &SiteStatus, layout: &Layout) -> String {
    let name = layout.paint.text(Tone::Strong, &site.site);
    let uptime = units::seconds(site.uptime_seconds as f64);
    let mut text = format!("site {name}, doublure {}, up {uptime}\n", site.version);
    for note in &site.notes {
        for (index, line) in wrap(note, layout.width - 4).iter().enumerate() {
            let margin = if index == 0 { "!" } else { " " };
            let line = layout.paint.text(Tone::Bad, &format!("{margin} {line}"));
            let _ = writeln!(text, "  {line}");
        }
    }
    if site.groups.is_empty() {
        text += "no groups are configured\n";
    }
    if site.groups.len() > 1 {
        text.push('\n');
        text += &overview(site, layout);
    }
    for status in &site.groups {
        text.push('\n');
        text += &group(status, layout);
    }
    text
}

/// One line per group, for a site that has several.
fn overview(site: &SiteStatus, layout: &Layout) -> String {
    let mut table = Grid::new(
        layout.paint,
        &["GROUP", "ROLE", "STATE", "CLIENTS", "LACKS AT PEER"],
    );
    for group in &site.groups {
        let word = state_words(group);
        let lacks: Vec<String> = group.peers.iter().map(|peer| lacks(group, peer)).collect();
        table.row(vec![
            Cell::new(&group.name),
            Cell::new(group.role),
            tinted(&word, group_tone(group)),
            Cell::new(group.clients),
            Cell::new(lacks.join("; ")),
        ]);
    }
    table.right(&[3]).render()
}

/// One group.
pub fn group(group: &GroupStatus, layout: &Layout) -> String {
    let mut text = headline(group, layout);
    let mut block = |part: String| {
        if !part.is_empty() {
            text.push('\n');
            text += &part;
        }
    };
    block(alarms(group, layout));
    block(peers(group, layout));
    block(positions(group, layout));
    block(facts(group, layout));
    block(stages(group, layout));
    block(volumes(group, layout));
    block(verification(group, layout));
    text
}

/// Name, role, state, since when, and why.
fn headline(group: &GroupStatus, layout: &Layout) -> String {
    let paint = layout.paint;
    let mut text = format!(
        "{}  {}  {}{}\n",
        paint.text(Tone::Strong, &group.name),
        group.role,
        paint.text(group_tone(group), &state_words(group)),
        age(group.state_since_unix_seconds, layout),
    );
    for line in wrap(&group.reason, layout.width - 2) {
        let _ = writeln!(text, "  {line}");
    }
    text
}

fn age(since_unix_seconds: u64, layout: &Layout) -> String {
    if since_unix_seconds == 0 {
        return String::new();
    }
    let age = layout.now_unix_seconds.saturating_sub(since_unix_seconds);
    let since = units::utc(since_unix_seconds);
    format!("  for {} (since {since})", units::seconds(age as f64))
}

/// What must not be overlooked.
fn alarms(group: &GroupStatus, layout: &Layout) -> String {
    let mut alarms: Vec<(Tone, String)> = Vec::new();
    if let Some(alone) = &group.alone {
        alarms.push((Tone::Bad, alone_alarm(alone, layout)));
    }
    if let Some(mixture) = &group.mixture {
        alarms.push((
            Tone::Bad,
            format!(
                "MIXTURE: promoted in the middle of a copy, at LSN {}; the content mixes old and new. `doublure explain {}` tells \
                 more.",
                mixture.since_lsn, group.name
            ),
        ));
    } else if group.inconsistent {
        let until = group
            .inconsistent_until_lsn
            .map_or_else(String::new, |lsn| {
                format!(" until LSN {lsn} is durable here")
            });
        alarms.push((
            Tone::Bad,
            match &group.undo {
                Some(undo) => format!(
                    "INCONSISTENT: a copy is not complete; the content is a mixture{until}. What was here before is kept, LSN {} \
                     of {}: `doublure promote {} --force inconsistent` goes back to it.",
                    undo.lsn,
                    units::utc(undo.unix_seconds),
                    group.name
                ),
                None => {
                    format!("INCONSISTENT: a copy is not complete; the content is a mixture{until}.")
                }
            },
        ));
    }
    if let Some(damage) = &group.journal_damage {
        alarms.push((Tone::Bad, format!("JOURNAL DAMAGED: {damage}.")));
    }
    if group.journal.writers_wait {
        alarms.push((
            Tone::Bad,
            format!(
                "JOURNAL FULL: writers wait; held by {}.",
                group.journal.held_by
            ),
        ));
    }
    if let Some(seconds) = group.home_hangs_seconds {
        let text = format!(
            "A HOME HANGS: a write to it has been under way for {}. What is acknowledged is in the journal; writers wait when that \
             is full, or {} are not in the homes. Look at the disk of the homes (`dmesg`).",
            units::seconds(seconds),
            units::bytes(unapplied_most_bytes(group.journal.capacity_bytes)),
        );
        alarms.push((Tone::Bad, text));
    }
    if group.no_space {
        alarms.push((
            Tone::Bad,
            format!(
                "NO SPACE left for the homes on {}: writes are refused (ENOSPC) until some is freed there.",
                group.full_sites.join(" and ")
            ),
        ));
    } else {
        for (at, left) in short_of_space("this site", group) {
            let left = units::bytes(left);
            let text = format!(
                "SPACE IS NEARLY OUT for the homes on {at}: {left} may still be promised; a write that needs more is refused (ENOSPC)."
            );
            alarms.push((Tone::Busy, text));
        }
    }
    if let Some(fork) = &group.fork {
        let serving = fork.sides.iter().filter(|side| side.serving);
        let serving: Vec<&str> = serving.map(|side| side.site.as_str()).collect();
        let who = match serving[..] {
            [] => "none of them serves clients".to_owned(),
            [site] => format!("{site} serves clients"),
            _ => format!("{} serve clients", serving.join(" and ")),
        };
        let text = format!(
            "FORK: each site wrote what the other does not have; {who}. `doublure explain {}` tells what, and what to do.",
            group.name
        );
        alarms.push((Tone::Bad, text));
    }
    if group.unrepaired_bytes > 0 {
        // A mirror refuses to verify.
        let primary = group.peers.first().filter(|_| group.role == Role::Mirror);
        let on = primary.map_or_else(String::new, |p| format!(" on {}", p.site));
        let last = group.last_verify.as_ref().or(group.verify.as_ref());
        let text = last
            .filter(|v| v.state == VerifyState::Differs)
            .map(|v| super::verify::summary(&group.name, v, &on));
        let text = text.as_deref().and_then(|t| t.lines().next());
        let text = format!(
            "THE SITES DIFFER: {}",
            text.unwrap_or("the verification under way has found what is not the same")
        );
        alarms.push((Tone::Bad, text));
    }
    for disagreement in &group.disagreements {
        let text = format!("DISK AND CONFIGURATION DISAGREE, the disk wins: {disagreement}");
        alarms.push((Tone::Busy, text));
    }
    let mut text = String::new();
    for (tone, alarm) in alarms {
        for (index, line) in wrap(&alarm, layout.width - 4).iter().enumerate() {
            let margin = if index == 0 { "!" } else { " " };
            let line = layout.paint.text(tone, &format!("{margin} {line}"));
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

/// Where little may still be promised to writers, and how many bytes. `here`: this site in words.
pub fn short_of_space<'a>(here: &'a str, group: &'a GroupStatus) -> Vec<(&'a str, u64)> {
    let there = group
        .peers
        .iter()
        .map(|p| (p.site.as_str(), p.space_left_bytes));
    std::iter::once((here, group.space_left_bytes))
        .chain(there)
        .filter_map(|(at, left)| Some((at, left.filter(|bytes| *bytes < SHORT_OF_SPACE_BYTES)?)))
        .collect()
}

fn alone_alarm(alone: &AloneStatus, layout: &Layout) -> String {
    let since = alone.since_unix_seconds;
    let age = layout.now_unix_seconds.saturating_sub(since);
    let what = match alone.operations {
        0 => "nothing was acknowledged on this site only yet".to_owned(),
        1 => format!(
            "1 acknowledged operation is on this site only, LSN {}",
            alone.from_lsn
        ),
        n => format!(
            "{} are on this site only, from LSN {} on",
            units::counted(n, "acknowledged operation"),
            alone.from_lsn
        ),
    };
    format!(
        "ALONE without {} for {} (since {}): {what}.",
        alone.peer,
        units::seconds(age as f64),
        units::utc(since),
    )
}

fn peers(group: &GroupStatus, layout: &Layout) -> String {
    if group.peers.is_empty() {
        return "  no peer is configured: everything is on this site only\n".to_owned();
    }
    let mut table = Grid::new(
        layout.paint,
        &["PEER", "STATE", "LACKS", "BEHIND", "LAST HEARD"],
    );
    let mut details = String::new();
    for peer in &group.peers {
        let (word, tone) = peer_state(peer.state);
        let lags = peer.lag_operations > 0 && peer.state != PeerState::InSync;
        let behind = if lags && lag_is_known(group, peer) {
            units::seconds(peer.lag_seconds)
        } else {
            "-".to_owned()
        };
        let heard = match peer.last_heard_seconds {
            Some(..1.0) => "just now".to_owned(),
            Some(seconds) => format!("{} ago", units::seconds(seconds)),
            None => "never".to_owned(),
        };
        table.row(vec![
            Cell::new(&peer.site),
            tinted(word, tone),
            Cell::new(lacks(group, peer)),
            Cell::new(behind),
            Cell::new(heard),
        ]);
        if !peer.detail.is_empty() {
            let detail = format!("{}: {}", peer.site, peer.detail);
            for (index, line) in wrap(&detail, layout.width - 4).iter().enumerate() {
                let margin = if index == 0 { "" } else { "  " };
                let _ = writeln!(details, "  {margin}{line}");
            }
        }
    }
    table.render() + &details
}

/// A mirror does not know how far others are, and nobody knows of a peer that was never heard of.
fn lag_is_known(group: &GroupStatus, peer: &PeerStatus) -> bool {
    group.role == Role::Primary && peer.last_heard_seconds.is_some() && peer.durable_lsn > Lsn(0)
}

fn lacks(group: &GroupStatus, peer: &PeerStatus) -> String {
    if peer.copy_total_bytes > 0 {
        let eta = peer
            .copy_eta_seconds
            .map_or_else(String::new, |eta| format!(", {} left", units::seconds(eta)));
        return format!(
            "{} of {} ({}){eta}",
            units::bytes(peer.copied_bytes),
            units::bytes(peer.copy_total_bytes),
            units::percent(peer.copied_bytes, peer.copy_total_bytes),
        );
    }
    match peer.lag_operations {
        _ if group.role == Role::Mirror => "-".to_owned(),
        _ if peer.needs_copy => "a copy".to_owned(),
        _ if !lag_is_known(group, peer) => "unknown".to_owned(),
        0 => "nothing".to_owned(),
        // Acknowledgements wait for it, so nothing that matters to anybody is missing.
        n if peer.state == PeerState::InSync => {
            format!("{} in flight", units::counted(n, "operation"))
        }
        n => format!(
            "{}, {}",
            units::counted(n, "operation"),
            units::bytes(peer.lag_bytes)
        ),
    }
}

/// The last verification, or how far the present one is.
fn verification(group: &GroupStatus, layout: &Layout) -> String {
    // The primary begins it.
    let due = group
        .next_scrub_unix_seconds
        .filter(|_| group.role == Role::Primary);
    let next = match due {
        None => String::new(),
        Some(due) if due > layout.now_unix_seconds => format!(
            "  the next verification begins by itself at {}\n",
            units::utc(due)
        ),
        Some(_) => {
            "  a verification is due, and begins by itself once the sites are in sync\n".to_owned()
        }
    };
    let Some(verify) = &group.verify else {
        return next;
    };
    let far = format!(
        "{} of {} compared with {} ({})",
        units::bytes(verify.done_bytes),
        units::bytes(verify.total_bytes),
        verify.peer,
        units::percent(verify.done_bytes, verify.total_bytes),
    );
    let mut text = match verify.state {
        VerifyState::Running if verify.scrub => format!("scrubbing: {far}"),
        VerifyState::Running => format!("verifying: {far}"),
        VerifyState::Equal => format!("verified: both sites hold the same ({})", verify.peer),
        VerifyState::Differs => "verified: THE SITES DIFFER".to_owned(),
        VerifyState::Repaired => "verified: the sites differed, and were mended".to_owned(),
        VerifyState::Interrupted => format!("verification interrupted, goes on by itself: {far}"),
    };
    if let Some(eta) = verify.eta_seconds {
        let _ = write!(text, ", {} to go", units::seconds(eta));
    }
    if let Some(ended) = verify.ended_unix_seconds {
        let age = layout.now_unix_seconds.saturating_sub(ended);
        let _ = write!(text, ", {} ago", units::seconds(age as f64));
    }
    // One that is under way is the next one.
    let next = match verify.state {
        VerifyState::Running | VerifyState::Interrupted => "",
        _ => next.as_str(),
    };
    format!("  {text}\n{next}")
}

fn positions(group: &GroupStatus, layout: &Layout) -> String {
    let header = [
        "LSN",
        "TAIL",
        "DURABLE",
        "COMMIT",
        "APPLIED",
        "CHECKPOINT",
        "OLDEST",
    ];
    let mut table = Grid::new(layout.paint, &header);
    table.row(vec![
        Cell::new("here"),
        Cell::new(group.tail_lsn),
        Cell::new(group.durable_lsn),
        Cell::new(group.commit_lsn),
        Cell::new(group.applied_lsn),
        Cell::new(group.checkpoint_lsn),
        Cell::new(group.journal.first_lsn),
    ]);
    // A peer that was heard of and has told nothing of these yet.
    let told = |lsn: Lsn| {
        if lsn == Lsn::ZERO {
            Cell::new("-")
        } else {
            Cell::new(lsn)
        }
    };
    for peer in &group.peers {
        if group.role == Role::Primary && peer.last_heard_seconds.is_some() {
            table.row(vec![
                Cell::new(&peer.site),
                told(peer.received_lsn),
                told(peer.durable_lsn),
                Cell::new("-"),
                told(peer.applied_lsn),
                Cell::new("-"),
                Cell::new("-"),
            ]);
        }
    }
    table.right(&[1, 2, 3, 4, 5, 6]).render()
}

fn facts(group: &GroupStatus, layout: &Layout) -> String {
    let journal = &group.journal;
    let mut fill = format!(
        "{} {} of {}",
        units::bar(journal.used_bytes, journal.capacity_bytes),
        units::percent(journal.used_bytes, journal.capacity_bytes),
        units::bytes(journal.capacity_bytes),
    );
    if journal.writers_wait {
        fill = layout.paint.text(Tone::Bad, &fill);
    }
    if !journal.held_by.is_empty() {
        let _ = write!(fill, ", held by {}", journal.held_by);
    }
    let epoch = group.epoch.as_ref().map_or_else(
        || "none yet".to_owned(),
        |epoch| {
            format!(
                "{}, by {} from LSN {}",
                epoch.number, epoch.site, epoch.first_lsn
            )
        },
    );
    let clients = format!(
        "{}; {} in flight; {} not yet in the homes",
        group.clients,
        units::counted(group.in_flight_requests, "request"),
        units::bytes(group.unapplied_bytes),
    );
    let mut policy = format!("ack {}, on_peer_loss {}", group.ack, group.on_peer_loss);
    // Nothing is wrong with that: roles change hands, files do not.
    if let Some(role) = group.configured_role.filter(|r| *r != group.role) {
        let _ = write!(policy, "; began as {role}");
    }
    let facts = [
        ("journal", fill),
        ("epoch", epoch),
        ("policy", policy),
        ("clients", clients),
    ];
    facts
        .map(|(name, value)| {
            format!(
                "  {}  {value}\n",
                layout.paint.text(Tone::Faint, &format!("{name:<7}"))
            )
        })
        .concat()
}

/// What came through in the last seconds, and how long each stage of it took.
fn stages(group: &GroupStatus, layout: &Layout) -> String {
    let (rates, latency) = (&group.rates, &group.latency);
    let window = format!("LAST {:.0}s", rates.window_seconds);
    let header = [window.as_str(), "IOPS", "THROUGHPUT", "P50", "P99", "MAX"];
    let mut table = Grid::new(layout.paint, &header);
    let mut row = |stage: &str, flow: Option<(f64, f64)>, latency: &Latency| {
        let (iops, throughput) = flow.map_or_else(Default::default, |(requests, bytes)| {
            (units::rate(requests), units::bytes_per_second(bytes))
        });
        let time = |us| match latency.count {
            0 => "-".to_owned(),
            _ => units::microseconds(us),
        };
        table.row(vec![
            Cell::new(stage),
            Cell::new(iops),
            Cell::new(throughput),
            Cell::new(time(latency.p50_us)),
            Cell::new(time(latency.p99_us)),
            Cell::new(time(latency.max_us)),
        ]);
    };
    let writes = (rates.writes_per_second, rates.write_bytes_per_second);
    let reads = (rates.reads_per_second, rates.read_bytes_per_second);
    row("write", Some(writes), &latency.write);
    row("  journal", None, &latency.journal);
    row("  link", None, &latency.link);
    row("  apply", None, &latency.apply);
    row("read", Some(reads), &latency.read);
    table.right(&[1, 2, 3, 4, 5]).render()
}

fn volumes(group: &GroupStatus, layout: &Layout) -> String {
    if group.volumes.is_empty() {
        return String::new();
    }
    let mut table = Grid::new(layout.paint, &["VOLUME", "SIZE", "CLIENTS"]);
    for volume in &group.volumes {
        table.row(vec![
            Cell::new(&volume.name),
            Cell::new(units::bytes(volume.size_bytes)),
            Cell::new(volume.clients),
        ]);
    }
    table.right(&[1, 2]).render()
}

/// Sites side by side, a line each, for the live view of `try`. A site that does not answer has its trouble instead.
pub fn side_by_side(
    group: &str,
    sites: &[(&str, Result<SiteStatus, String>)],
    layout: &Layout,
) -> String {
    let header = [
        "SITE", "ROLE", "STATE", "COMMIT", "WRITES/S", "P99", "READS/S", "JOURNAL",
    ];
    let mut table = Grid::new(layout.paint, &header);
    let mut notes = String::new();
    for (name, answer) in sites {
        let found = answer
            .as_ref()
            .map(|site| site.groups.iter().find(|g| g.name == group));
        let (state, tone, note) = match &found {
            Ok(Some(status)) => {
                let note = if status.healthy {
                    ""
                } else {
                    status.reason.as_str()
                };
                (group_state(status.state).0, group_tone(status), note)
            }
            Ok(None) => ("STARTING", Tone::Busy, ""),
            Err(trouble) => ("DOWN", Tone::Bad, trouble.as_str()),
        };
        for (index, line) in wrap(note, layout.width.saturating_sub(name.len() + 6))
            .iter()
            .enumerate()
        {
            let label = if index == 0 {
                format!("{name}:")
            } else {
                String::new()
            };
            let _ = writeln!(notes, "  {label:<width$} {line}", width = name.len() + 1);
        }
        let mut row = vec![Cell::new(name)];
        match found {
            Ok(Some(status)) => {
                let latency = &status.latency.write;
                let p99 = match latency.count {
                    0 => "-".to_owned(),
                    _ => units::microseconds(latency.p99_us),
                };
                let journal = &status.journal;
                row.extend([
                    Cell::new(status.role),
                    tinted(state, tone),
                    Cell::new(status.commit_lsn),
                    Cell::new(units::rate(status.rates.writes_per_second)),
                    Cell::new(p99),
                    Cell::new(units::rate(status.rates.reads_per_second)),
                    Cell::new(units::percent(journal.used_bytes, journal.capacity_bytes)),
                ]);
            }
            _ => row.extend([Cell::new("-"), tinted(state, tone)]),
        }
        table.row(row);
    }
    table.right(&[3, 4, 5, 6, 7]).render() + &notes
}

fn tinted(text: &str, tone: Tone) -> Cell {
    let cell = Cell::new(text);
    match tone {
        Tone::Good => cell.fg(Color::Green),
        Tone::Busy => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Strong | Tone::Faint => cell,
    }
}

/// A table without lines, indented by two columns.
struct Grid(Table);

impl Grid {
    fn new(paint: Paint, header: &[&str]) -> Grid {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if paint.colours {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let faint = |name: &&str| {
            let cell = Cell::new(name);
            cell.fg(Color::DarkGrey)
        };
        table.set_header(header.iter().map(faint).collect::<Vec<_>>());
        Grid(table)
    }

    fn row(&mut self, cells: Vec<Cell>) {
        self.0.add_row(cells);
    }

    /// Aligns these columns to the right, as numbers are.
    fn right(mut self, columns: &[usize]) -> Grid {
        for column in columns {
            if let Some(column) = self.0.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self
    }

    fn render(mut self) -> String {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for line in self.0.lines() {
            let _ = writeln!(text, "  {}", line.trim_end());
        }
        text
    }
}

#[cfg(test)]
pub(super) mod tests;
