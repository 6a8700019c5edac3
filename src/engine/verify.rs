//! `doublure verify`, and the same by itself from time to time: walking over all chunks of a pair that is in sync.
//!
//! Every few seconds the walk comes to rest: all that was begun is ended, and where it is goes on record, here and at the
//! mirror. From there it goes on after a lost link, a restart or a switchover, at whichever site is primary then.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::Duration;

use super::mend::{BATCH_BLOCKS, Doubt, Mend};
use super::proof::Proving;
use super::walk::{Pace, Progress, Purpose, Walk};
use super::{Group, LinkId};
use crate::base::{
    ChunkSet, Finding, Hindrance, Lsn, Message, Remedy, Role, Sides, VerifyRun, VolumeId,
    counted_bytes,
};
use crate::core::Severity;
use crate::status::{DifferingRange, VerifyState, VerifyStatus};

/// How often its place goes on record.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// A scrub is spread over one part in so many of its period ...
const SCRUB_SHARE: u64 = 10;

/// ... but is not slower than this, bytes per second.
const SCRUB_SLOWEST: u64 = 1 << 20;

const SECOND_NS: u64 = 1_000_000_000;

/// What a walk that verifies has under way besides its chunks.
pub(super) struct Verifying {
    pub run: VerifyRun,
    /// Found to differ; nobody knows yet who is wrong.
    pub doubts: Vec<Doubt>,
    /// Blocks in them.
    pub gathered: usize,
    pub proving: Option<Proving>,
    /// Decided, and to be carried out.
    pub mends: VecDeque<Mend>,
    /// The last LSN that mends something.
    pub mended_at: Lsn,
    /// When its place is to go on record.
    save_due: Duration,
    /// It comes to rest for that.
    pausing: bool,
    /// It begins anew, with this remedy, once it has come to rest.
    anew: Option<Remedy>,
    /// What was done before this process or link took it up.
    before: (u64, u64),
}

impl Verifying {
    fn new(run: VerifyRun, now: Duration) -> Verifying {
        Verifying {
            before: (run.done_bytes, run.took_ms),
            run,
            doubts: Vec::new(),
            gathered: 0,
            proving: None,
            mends: VecDeque::new(),
            mended_at: Lsn::ZERO,
            save_due: now + SAVE_EVERY,
            pausing: false,
            anew: None,
        }
    }

    /// Whether no further chunk is to be taken now.
    pub fn waits(&mut self, now: Duration, parts: usize, crowded: bool) -> bool {
        self.pausing |= now >= self.save_due;
        self.is_due()
            || self.proving.is_some()
            || !self.mends.is_empty()
            || self.gathered >= BATCH_BLOCKS
            || self.run.scrub && (parts > 0 || crowded)
    }

    /// It is to come to rest.
    pub fn is_due(&self) -> bool {
        self.pausing || self.anew.is_some()
    }

    pub fn begins_anew(&self) -> bool {
        self.anew.is_some()
    }

    /// Nothing is left to be decided or carried out.
    pub fn is_settled(&self, commit: Lsn) -> bool {
        self.doubts.is_empty()
            && self.proving.is_none()
            && self.mends.is_empty()
            && commit >= self.mended_at
    }

    /// The run as of now.
    fn run_at(&self, progress: &Progress, now: Duration) -> VerifyRun {
        let took = now.saturating_sub(progress.began).as_millis();
        VerifyRun {
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            took_ms: self.before.1 + u64::try_from(took).unwrap_or(u64::MAX),
            ..self.run.clone()
        }
    }
}

impl Group {
    /// Begins a verification, or has the one under way do what is asked for.
    ///
    /// # Errors
    /// Says why it cannot be now.
    pub(super) fn begin_verify(
        &mut self,
        repair: bool,
        keep: Option<&str>,
    ) -> Result<String, String> {
        let group = self.config.group.clone();
        if !self.core.serving() {
            let me = &self.config.site;
            let conflict = self
                .core
                .peers()
                .iter()
                .find(|p| p.conflict.is_some())
                .and_then(|p| Some(p.hindrance()?.sentence(&p.name, &group)));
            return Err(match (conflict, self.core.facts().role) {
                (Some(why), _) => {
                    format!("there is nothing to compare before the two agree. {why}")
                }
                (None, Role::Mirror) => {
                    let primary = self.core.primary_name();
                    format!("{me} is a mirror: `doublure verify {group}` on {primary} does it")
                }
                (None, Role::Primary) => format!(
                    "{me} does not serve {group} yet; `doublure explain {group}` tells what it waits for"
                ),
            });
        }
        let keep = match keep {
            None => Sides::NONE,
            Some(_) if !repair => {
                return Err("to keep one site's content is part of a repair".into());
            }
            Some(site) if site == self.config.site => Sides::PRIMARY,
            Some(site) if self.config.peers.iter().any(|p| p == site) => Sides::MIRROR,
            Some(site) => {
                let own = std::slice::from_ref(&self.config.site);
                let sites = [own, &self.config.peers[..]].concat();
                return Err(format!(
                    "{site} is none of the sites of {group}: {}",
                    sites.join(", ")
                ));
            }
        };
        self.consider_verify();
        let Some((name, link)) = self.verified_peer() else {
            let interrupted = if self.verified.under_way.is_some() {
                "; the verification that was interrupted then goes on by itself"
            } else {
                ""
            };
            let Some(peer) = self.core.peers().first() else {
                return Err(format!("{group} has no peer to compare with"));
            };
            let why = peer.hindrance().unwrap_or(Hindrance::CatchingUp);
            return Err(format!(
                "there is nothing to compare before {} is in sync{interrupted}. {}",
                peer.name,
                why.sentence(&peer.name, &group)
            ));
        };
        let remedy = Remedy { repair, keep };
        let text = match self.streams.get(&link).and_then(|s| s.walk.as_ref()) {
            Some(_) => self.take_over(link, remedy),
            None => {
                let run = self.new_run(&name, remedy, false);
                let total = run.total_bytes;
                self.start_verifying(link, run);
                {
                    let total = counted_bytes(total);
                    format!("comparing {total} with {name}")
                }
            }
        };
        self.log_line(Severity::Info, text.clone());
        Ok(format!(
            "{text}; `doublure status {group}` shows how far it is"
        ))
    }

    /// One is under way: at full rate from now on, and with this remedy if it is the stronger.
    fn take_over(&mut self, link: LinkId, remedy: Remedy) -> String {
        let rate = self.config.resync_rate.unwrap_or(0);
        let Some(walk) = self.walk(link) else {
            return "nothing is under way".into();
        };
        walk.pace = Pace::new(rate);
        let Some(verifying) = walk.verifying_mut() else {
            return "a copy is under way already".into();
        };
        verifying.run.scrub = false;
        if !remedy.repair || verifying.run.remedy == remedy {
            return "a verification is under way already, and goes on".into();
        }
        if verifying.run.found.differing == 0 && verifying.is_settled(Lsn(u64::MAX)) {
            verifying.run.remedy = remedy;
            return "a verification is under way already, and repairs what it finds from now on"
                .into();
        }
        // What was found before would not be repaired.
        verifying.anew = Some(remedy);
        "the verification that is under way begins anew, and repairs what it finds".into()
    }

    /// The peer that can be verified.
    fn verified_peer(&self) -> Option<(String, LinkId)> {
        let peer = self.core.peers().iter().find(|p| p.in_sync)?;
        let link = LinkId(peer.streaming_link()?.0);
        self.streams.get(&link).filter(|s| s.has_started())?;
        Some((peer.name.clone(), link))
    }

    fn new_run(&self, mirror: &str, remedy: Remedy, scrub: bool) -> VerifyRun {
        VerifyRun {
            primary: self.config.site.clone(),
            mirror: mirror.to_owned(),
            remedy,
            scrub,
            began_unix_seconds: self.now.wall_ns / SECOND_NS,
            total_bytes: self.volumes.iter().map(|v| v.size).sum(),
            ..VerifyRun::default()
        }
    }

    fn start_verifying(&mut self, link: LinkId, run: VerifyRun) {
        let now = self.now.mono;
        let rate = if run.scrub {
            self.scrub_rate(run.total_bytes)
        } else {
            self.config.resync_rate.unwrap_or(0)
        };
        let (volume, offset) = run.next;
        let volume = self.volumes.iter().position(|v| v.id >= volume);
        let place = (volume.unwrap_or(self.volumes.len()), offset);
        let (done, total) = (run.done_bytes, run.total_bytes);
        self.verified.under_way = Some(run.clone());
        let purpose = Purpose::Verify(Box::new(Verifying::new(run, now)));
        let mut walk = Walk::new(purpose, ChunkSet::everything(), total, rate);
        walk.progress.began = now;
        walk.progress.done_bytes = done;
        walk.go_to(place.0, place.1);
        if let Some(stream) = self.streams.get_mut(&link) {
            stream.walk = Some(walk);
        }
        self.tell_verified(link);
    }

    /// Goes on with what was interrupted, and begins what is due.
    pub(super) fn consider_verify(&mut self) {
        if !self.core.serving() {
            return;
        }
        let waits = self.verified.under_way.is_some();
        let due = self.scrub_due().is_some_and(|due| due <= self.wall());
        let untold = !self.verified.is_empty();
        if !(waits || due || untold) {
            return;
        }
        let Some((name, link)) = self.verified_peer() else {
            return;
        };
        let Some(stream) = self.streams.get_mut(&link) else {
            return;
        };
        if stream.walk.is_some() {
            return;
        }
        if untold && !std::mem::replace(&mut stream.told_verified, true) {
            self.tell_verified(link);
        }
        if let Some(run) = self.verified.under_way.clone() {
            self.resume_verify(link, &name, run);
        } else if due {
            let run = self.new_run(&name, Remedy::default(), true);
            let rate = self.scrub_rate(run.total_bytes);
            self.log_line(
                Severity::Info,
                format!(
                    "it is time to verify; comparing {} with {name}, {rate} a second at most",
                    counted_bytes(run.total_bytes)
                ),
            );
            self.start_verifying(link, run);
        }
    }

    fn resume_verify(&mut self, link: LinkId, peer: &str, mut run: VerifyRun) {
        if run.mirror == self.config.site {
            // The roles have changed since.
            run.swap();
        }
        if run.primary != self.config.site || run.mirror != peer {
            self.log_line(
                Severity::Warn,
                format!(
                    "the verification of {} by {} is given up, it is not about {peer}",
                    run.mirror, run.primary
                ),
            );
            self.verified.under_way = None;
            self.state.request_verified();
            return;
        }
        run.total_bytes = self.volumes.iter().map(|v| v.size).sum();
        self.log_line(
            Severity::Info,
            format!(
                "the verification goes on after {} of {}",
                counted_bytes(run.done_bytes),
                counted_bytes(run.total_bytes)
            ),
        );
        self.start_verifying(link, run);
    }

    /// What is known goes on record, and to the mirror.
    fn tell_verified(&mut self, link: LinkId) {
        self.state.request_verified();
        if let Some(stream) = self.streams.get_mut(&link) {
            stream.told_verified = true;
        }
        self.send(link, Message::Verified(Box::new(self.verified.clone())));
    }

    /// The walk has come to rest: where it is goes on record, or it begins anew.
    pub(super) fn save_place(&mut self, link: LinkId) {
        let now = self.now.mono;
        let end = self.volumes.last().map_or(0, |v| v.id.0 + 1);
        let ids: Vec<VolumeId> = self.volumes.iter().map(|v| v.id).collect();
        let Some(walk) = self.walk(link) else { return };
        let (volume, offset) = walk.place();
        let progress = walk.progress.clone();
        let Some(verifying) = walk.verifying_mut() else {
            return;
        };
        if let Some(remedy) = verifying.anew.take() {
            let peer = verifying.run.mirror.clone();
            let run = self.new_run(&peer, remedy, false);
            self.start_verifying(link, run);
            return;
        }
        verifying.pausing = false;
        verifying.save_due = now + SAVE_EVERY;
        verifying.run.next = (ids.get(volume).copied().unwrap_or(VolumeId(end)), offset);
        let run = verifying.run_at(&progress, now);
        self.verified.under_way = Some(run);
        self.tell_verified(link);
    }

    /// A range differs.
    pub(super) fn note_finding(&mut self, link: LinkId, finding: Finding) {
        let Some(verifying) = self.walk(link).and_then(|w| w.verifying_mut()) else {
            return;
        };
        let first = verifying.run.found.differing == 0;
        verifying.run.note(finding);
        if first {
            let run = verifying.run.clone();
            let text = format!(
                "the sites differ: {}; the verification goes on",
                self.first_ranges(&run)
            );
            self.log_line(Severity::Warn, text);
        }
    }

    /// All chunks were compared.
    pub(super) fn verified(&mut self, link: LinkId, walk: &Walk, lsn: Lsn) {
        let Some(verifying) = walk.verifying() else {
            return;
        };
        let run = VerifyRun {
            ended_unix_seconds: self.wall().max(1),
            lsn,
            ..verifying.run_at(&walk.progress, self.now.mono)
        };
        let (severity, text) = match run.found.differing {
            0 => (
                Severity::Info,
                "verified, both sites hold the same".to_owned(),
            ),
            _ => (Severity::Error, self.differences(&run)),
        };
        self.log_line(severity, text);
        self.verified.last = Some(run);
        self.verified.under_way = None;
        self.state_may_differ = true;
        self.tell_verified(link);
    }

    /// For the log: what was found, and what became of it.
    fn differences(&self, run: &VerifyRun) -> String {
        let found = &run.found;
        let group = &self.config.group;
        let mut text = format!(
            "the sites differ in {} bytes ({}): wrong at {} {}, at {} {}, undecided {}, unreadable {}; ",
            found.differing,
            self.first_ranges(run),
            run.primary,
            found.primary,
            run.mirror,
            found.mirror,
            found.undecided,
            found.unreadable
        );
        let _ = match (run.unrepaired(), run.remedy.repair) {
            (0, _) => write!(text, "all of it was mended"),
            (left, false) => write!(
                text,
                "nothing was changed, {left} bytes are to be mended with `doublure verify {group} --repair`"
            ),
            (left, true) => write!(
                text,
                "{left} bytes are left: `doublure verify {group} --repair --keep SITE` takes one site's content"
            ),
        };
        if found.primary + found.undecided > 0 {
            let _ = write!(
                text,
                ". Who read what is wrong at {} got wrong content",
                run.primary
            );
        }
        text
    }

    /// The link broke before the end.
    pub(super) fn verify_interrupted(&mut self, progress: &Progress) {
        self.log_line(
            Severity::Warn,
            format!(
                "the verification was interrupted after {} of {}, and goes on once the sites are in sync again",
                counted_bytes(progress.done_bytes),
                counted_bytes(progress.total_bytes)
            ),
        );
    }

    fn wall(&self) -> u64 {
        self.now.wall_ns / SECOND_NS
    }

    /// Whether writers wait for something that a scrub could be in the way of.
    pub(super) fn writers_wait(&self) -> bool {
        self.frames.full || self.clients.are_stalled() || self.core.throttled()
    }

    /// Bytes per second.
    fn scrub_rate(&self, total: u64) -> u64 {
        let fair = total / (self.config.scrub.as_secs() / SCRUB_SHARE).max(1);
        match self.config.resync_rate.unwrap_or(0) {
            0 => fair.max(SCRUB_SLOWEST),
            most => fair.max(SCRUB_SLOWEST).min(most),
        }
    }

    /// When the next scrub begins, seconds since the Unix epoch: a period after the last complete verification, or after
    /// the group was made.
    pub(super) fn scrub_due(&self) -> Option<u64> {
        let period = self.config.scrub.as_secs();
        let since = match &self.verified.last {
            Some(last) => last.ended_unix_seconds,
            None => self.core.lineage().epochs().first()?.time_ns / SECOND_NS,
        };
        (period > 0).then(|| since.saturating_add(period))
    }

    /// When it is to be looked whether a scrub is due.
    pub(super) fn scrub_deadline(&self) -> Option<Duration> {
        if self.config.scrub.is_zero() || !self.core.serving() {
            return None;
        }
        let (_, link) = self.verified_peer()?;
        self.streams.get(&link).filter(|s| s.walk.is_none())?;
        let due_ns = self.scrub_due()?.saturating_mul(SECOND_NS);
        let left = Duration::from_nanos(due_ns.saturating_sub(self.now.wall_ns));
        Some(self.now.mono + left)
    }

    fn volume_name(&self, id: VolumeId) -> String {
        let found = self.volumes.iter().find(|v| v.id == id);
        found.map_or_else(|| id.0.to_string(), |v| v.name.clone())
    }

    fn first_ranges(&self, run: &VerifyRun) -> String {
        let findings = run.findings.iter().take(4);
        let mut text: Vec<String> = findings
            .map(|f| format!("{} at byte {}", self.volume_name(f.volume), f.range.offset))
            .collect();
        if run.findings.len() > text.len() {
            text.push("...".into());
        }
        text.join(", ")
    }

    /// What was found and is not mended; also by the verification under way, unless that is there to mend it.
    pub(super) fn unrepaired_bytes(&self) -> u64 {
        let last = self.verified.last.as_ref().map_or(0, VerifyRun::unrepaired);
        let walks = self.streams.values().filter_map(|s| s.walk.as_ref());
        let running = walks.filter_map(Walk::verifying).map(|v| &v.run).next();
        let running = running.or(self.verified.under_way.as_ref());
        let found = running.filter(|r| !r.remedy.repair);
        last.max(found.map_or(0, VerifyRun::unrepaired))
    }

    /// The verification under way, or else the last one; and the last one.
    pub(super) fn verify_status(&self) -> (Option<VerifyStatus>, Option<VerifyStatus>) {
        let last = self.verified.last.as_ref().map(|run| {
            let state = match (run.found.differing, run.unrepaired()) {
                (0, _) => VerifyState::Equal,
                (_, 0) => VerifyState::Repaired,
                _ => VerifyState::Differs,
            };
            self.run_status(run, state, None)
        });
        let mut walks = self.streams.values().filter_map(|s| s.walk.as_ref());
        let running = walks.find_map(|w| Some((w.verifying()?, &w.progress)));
        let now = match (running, &self.verified.under_way) {
            (Some((verifying, progress)), _) => {
                let run = verifying.run_at(progress, self.now.mono);
                let took = self.now.mono.saturating_sub(progress.began).as_secs_f64();
                let done = run.done_bytes.saturating_sub(verifying.before.0);
                let left = run.total_bytes.saturating_sub(run.done_bytes);
                let eta = (done > 0).then(|| took * left as f64 / done as f64);
                Some(self.run_status(&run, VerifyState::Running, eta))
            }
            (None, Some(run)) => {
                // At the mirror it is what the primary said last.
                let state = if self.core.upstream().is_some() {
                    VerifyState::Running
                } else {
                    VerifyState::Interrupted
                };
                Some(self.run_status(run, state, None))
            }
            (None, None) => last.clone(),
        };
        (now, last)
    }

    fn run_status(&self, run: &VerifyRun, state: VerifyState, eta: Option<f64>) -> VerifyStatus {
        let sites = |sides: Sides| -> Vec<String> {
            [(Sides::PRIMARY, &run.primary), (Sides::MIRROR, &run.mirror)]
                .into_iter()
                .filter(|(side, _)| sides.has(*side))
                .map(|(_, name)| name.clone())
                .collect()
        };
        let ranges = run.findings.iter().map(|f| DifferingRange {
            volume: self.volume_name(f.volume),
            offset: f.range.offset,
            bytes: f.range.len,
            wrong_on: sites(f.wrong),
            unreadable_on: sites(f.unreadable),
            repaired: f.repaired,
        });
        VerifyStatus {
            state,
            primary: run.primary.clone(),
            peer: run.mirror.clone(),
            repair: run.remedy.repair,
            keep: sites(run.remedy.keep).pop(),
            scrub: run.scrub,
            began_unix_seconds: run.began_unix_seconds,
            ended_unix_seconds: (run.ended_unix_seconds > 0).then_some(run.ended_unix_seconds),
            lsn: (run.ended_unix_seconds > 0).then_some(run.lsn),
            seconds: run.took_ms as f64 / 1000.0,
            eta_seconds: eta,
            done_bytes: run.done_bytes,
            total_bytes: run.total_bytes,
            differing_bytes: run.found.differing,
            wrong_on_primary_bytes: run.found.primary,
            wrong_on_peer_bytes: run.found.mirror,
            undecided_bytes: run.found.undecided,
            unreadable_bytes: run.found.unreadable,
            repaired_bytes: run.found.repaired,
            differing: ranges.collect(),
        }
    }
}
