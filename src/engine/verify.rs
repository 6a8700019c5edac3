//! `doublure verify`: walking over all chunks of a pair that is in sync.

use std::time::Duration;

use super::walk::{Progress, Purpose, Walk};
use super::{Group, LinkId};
use crate::base::{ChunkSet, Lsn};
use crate::core::Severity;
use crate::status::{DifferingRange, VerifyState, VerifyStatus};

/// The last verification, or the one under way.
pub(super) struct Verification {
    peer: String,
    repair: bool,
    began_unix_seconds: u64,
    /// Once it has ended.
    ended: Option<Ended>,
}

struct Ended {
    state: VerifyState,
    progress: Progress,
    lsn: Lsn,
    took: Duration,
    unix_seconds: u64,
}

impl Group {
    /// Begins a verification.
    ///
    /// # Errors
    /// Says why it cannot be now.
    pub(super) fn begin_verify(&mut self, repair: bool) -> Result<String, String> {
        let group = self.config.group.clone();
        if !self.core.serving() {
            return Err(format!(
                "{} is not serving {group}; give the command to its primary",
                self.config.site
            ));
        }
        let Some(peer) = self.core.peers().iter().find(|p| p.in_sync) else {
            return Err(format!(
                "no peer of {group} is in sync: a peer that is not gets what it lacks by itself, and can be verified then"
            ));
        };
        let name = peer.name.clone();
        let link = LinkId(peer.streaming_link().expect("in sync").0);
        let total: u64 = self.volumes.iter().map(|v| v.size).sum();
        let began = self.now.mono;
        let stream = self.streams.get_mut(&link).expect("in sync");
        if stream.walk.is_some() {
            return Err(format!("{group} is being verified already"));
        }
        let mut walk = Walk::new(
            Purpose::Verify { repair },
            ChunkSet::everything(),
            total,
            self.config.resync_rate,
        );
        walk.progress.began = began;
        stream.walk = Some(walk);
        self.verification = Some(Verification {
            peer: name.clone(),
            repair,
            began_unix_seconds: self.now.wall_ns / 1_000_000_000,
            ended: None,
        });
        let text = format!("comparing {total} bytes with {name}");
        self.log_line(Severity::Info, format!("group {group}: {text}"));
        Ok(format!(
            "{text}; `doublure status {group}` shows how far it is"
        ))
    }

    /// All chunks were compared.
    pub(super) fn verified(&mut self, progress: &Progress, repair: bool, lsn: Lsn) {
        let state = match (progress.differing_bytes, repair) {
            (0, _) => VerifyState::Equal,
            (_, true) => VerifyState::Repaired,
            (_, false) => VerifyState::Differs,
        };
        let group = &self.config.group;
        let (severity, text) = match state {
            VerifyState::Equal => (
                Severity::Info,
                format!("group {group}: verified, both sites hold the same"),
            ),
            _ => (
                Severity::Error,
                format!(
                    "group {group}: the sites differ in chunks of {} bytes in all ({}); {}",
                    progress.differing_bytes,
                    self.first_ranges(progress),
                    if repair {
                        "the mirror was given what is here"
                    } else {
                        "`doublure verify --repair` gives the mirror what is here"
                    }
                ),
            ),
        };
        self.log_line(severity, text);
        self.end_verification(state, progress, lsn);
    }

    /// The link broke before the end.
    pub(super) fn verify_interrupted(&mut self, progress: &Progress) {
        self.log_line(
            Severity::Warn,
            format!(
                "group {}: the verification was interrupted after {} of {} bytes",
                self.config.group, progress.done_bytes, progress.total_bytes
            ),
        );
        let lsn = self.frames.sealed();
        self.end_verification(VerifyState::Interrupted, progress, lsn);
    }

    fn end_verification(&mut self, state: VerifyState, progress: &Progress, lsn: Lsn) {
        let now = self.now;
        if let Some(verification) = &mut self.verification {
            verification.ended = Some(Ended {
                state,
                progress: progress.clone(),
                lsn,
                took: now.mono.saturating_sub(progress.began),
                unix_seconds: now.wall_ns / 1_000_000_000,
            });
        }
    }

    fn ranges(&self, progress: &Progress) -> Vec<DifferingRange> {
        let name = |id| self.volumes.iter().find(|v| v.id == id);
        progress
            .differing
            .iter()
            .map(|(id, range)| DifferingRange {
                volume: name(*id).map_or_else(|| id.0.to_string(), |v| v.name.clone()),
                offset: range.offset,
                bytes: range.len,
            })
            .collect()
    }

    fn first_ranges(&self, progress: &Progress) -> String {
        let ranges = self.ranges(progress);
        let mut text: Vec<String> = ranges
            .iter()
            .take(4)
            .map(|r| format!("{} at byte {}", r.volume, r.offset))
            .collect();
        if ranges.len() > text.len() {
            text.push("...".into());
        }
        text.join(", ")
    }

    pub(super) fn verify_status(&self) -> Option<VerifyStatus> {
        let verification = self.verification.as_ref()?;
        let running = self
            .streams
            .values()
            .filter_map(|s| s.walk.as_ref())
            .find(|w| matches!(w.purpose(), Purpose::Verify { .. }));
        let (state, progress, took, lsn, ended) = match (&verification.ended, running) {
            (Some(ended), _) => (
                ended.state,
                &ended.progress,
                ended.took,
                Some(ended.lsn),
                Some(ended.unix_seconds),
            ),
            (None, Some(walk)) => {
                let took = self.now.mono.saturating_sub(walk.progress.began);
                (VerifyState::Running, &walk.progress, took, None, None)
            }
            (None, None) => return None,
        };
        Some(VerifyStatus {
            state,
            peer: verification.peer.clone(),
            repair: verification.repair,
            began_unix_seconds: verification.began_unix_seconds,
            ended_unix_seconds: ended,
            lsn,
            seconds: took.as_secs_f64(),
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            differing_bytes: progress.differing_bytes,
            differing: self.ranges(progress),
        })
    }
}
