//! What the service manager is told: ready, a line of status, alive, stopping.
//!
//! All of it is silent without `NOTIFY_SOCKET`.

use std::time::Duration;

use sd_notify::NotifyState;

use super::metrics::word;
use super::shards::Answers;

/// How often the status line is refreshed when no watchdog asks for more.
const REFRESH: Duration = Duration::from_secs(1);

/// The connection to the service manager.
pub struct Manager {
    watchdog: Option<Duration>,
    last_line: String,
}

impl Manager {
    /// Reads the environment.
    pub fn from_env() -> Manager {
        Manager {
            watchdog: sd_notify::watchdog_enabled(),
            last_line: String::new(),
        }
    }

    /// Whether anybody listens.
    pub fn is_there() -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some()
    }

    /// How often [`Manager::report`] wants to be called: at least twice as often as the watchdog bites.
    pub fn interval(&self) -> Duration {
        self.watchdog.map_or(REFRESH, |w| REFRESH.min(w / 2))
    }

    /// Reports the state of all groups, and that the daemon is alive if every shard is.
    pub fn report(&mut self, answers: &Answers) {
        if self.watchdog.is_some() && answers.silent.is_empty() {
            notify(&NotifyState::Watchdog);
        }
        let line = summary(answers);
        if line != self.last_line {
            notify(&NotifyState::Status(&line));
            self.last_line = line;
        }
    }
}

/// Listeners are up and groups are open.
pub fn ready() {
    notify(&NotifyState::Ready);
}

/// A clean stop has begun.
pub fn stopping() {
    notify(&NotifyState::Stopping);
    notify(&NotifyState::Status("stopping"));
}

fn notify(state: &NotifyState) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

/// One line, `registry: primary serving, chelles in_sync`. Only names and words: a message of a peer must not reach
/// the manager, where a line break would start another assignment.
fn summary(answers: &Answers) -> String {
    let mut parts: Vec<String> = answers
        .groups
        .iter()
        .map(|group| {
            let peers = group
                .peers
                .iter()
                .map(|p| format!(", {} {}", p.site, word(&p.state)));
            let peers: String = peers.collect();
            format!(
                "{}: {} {}{peers}",
                group.name,
                group.role,
                word(&group.state)
            )
        })
        .collect();
    if !answers.silent.is_empty() {
        parts.push(format!("shards that do not answer: {:?}", answers.silent));
    }
    parts.join("; ")
}
