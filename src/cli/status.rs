//! `doublure status`: once, or again every second.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::MissedTickBehavior;

use super::client::{Client, ClientError};
use super::table::{self, Layout};
use super::terminal::{self, Paint, Screen, StopSignals};
use super::{EXIT_DEGRADED, units};
use crate::status::{GroupStatus, SiteStatus};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// What is shown, and how.
pub struct Shown {
    /// This group, or the whole site.
    pub group: Option<String>,
    /// As JSON.
    pub json: bool,
}

enum Status {
    Site(Box<SiteStatus>),
    Group(Box<GroupStatus>),
}

/// Shows it once. Code 3 if a group that is shown is not healthy.
pub async fn once(client: &Client, shown: &Shown) -> anyhow::Result<ExitCode> {
    let status = fetch(client, shown).await?;
    let text = match (&status, shown.json) {
        (Status::Site(site), true) => serde_json::to_string_pretty(site)? + "\n",
        (Status::Group(group), true) => serde_json::to_string_pretty(group)? + "\n",
        (status, false) => client.complete(&picture(status)),
    };
    terminal::print(&text)?;
    Ok(if healthy(&status) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_DEGRADED)
    })
}

/// Shows it every second until a signal. A site that does not answer is waited for: it may be restarting.
pub async fn watch(client: &Client, shown: &Shown) -> anyhow::Result<ExitCode> {
    let mut stop = StopSignals::new()?;
    let on_screen = io::stdout().is_terminal() && !shown.json;
    // A mistake, such as a group that does not exist, is told at once and not every second. A site that is there and says
    // nothing is no mistake.
    let first = fetch(client, shown).await;
    let mut first = match first {
        Ok(_) | Err(ClientError::Silent(_)) => Some(first),
        Err(error) => return Err(error.into()),
    };
    let screen = if on_screen {
        Some(Screen::open()?)
    } else {
        None
    };
    let drawn = |status: &Status| client.complete(&picture(status));
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let known = first.take();
        let next = async {
            tick.tick().await;
            match known {
                Some(known) => known,
                None => fetch(client, shown).await,
            }
        };
        let result = tokio::select! {
            result = next => result,
            () = stop.recv() => return Ok(ExitCode::SUCCESS),
        };
        match &screen {
            Some(screen) => {
                let head = format!("{}, every second; Ctrl-C ends\n\n", units::utc(now()));
                screen.show(&(head + &result.as_ref().map_or_else(trouble, drawn)))?;
            }
            None if shown.json => match &result {
                Ok(Status::Site(site)) => terminal::print(&(serde_json::to_string(site)? + "\n"))?,
                Ok(Status::Group(group)) => {
                    terminal::print(&(serde_json::to_string(group)? + "\n"))?;
                }
                Err(error) => eprint!("{}", trouble(error)),
            },
            None => {
                let head = format!("---- {}\n", units::utc(now()));
                terminal::print(&(head + &result.as_ref().map_or_else(trouble, drawn)))?;
            }
        }
    }
}

async fn fetch(client: &Client, shown: &Shown) -> Result<Status, ClientError> {
    Ok(match &shown.group {
        Some(group) => Status::Group(Box::new(client.group_status(group).await?)),
        None => Status::Site(Box::new(client.site_status().await?)),
    })
}

fn picture(status: &Status) -> String {
    let layout = Layout {
        paint: Paint::for_stdout(),
        width: terminal::width(),
        now_unix_seconds: now(),
    };
    match status {
        Status::Site(site) => table::site(site, &layout),
        Status::Group(group) => table::group(group, &layout),
    }
}

fn trouble(error: &ClientError) -> String {
    format!("doublure: {error}\n")
}

fn healthy(status: &Status) -> bool {
    match status {
        Status::Site(site) => site.groups.iter().all(|group| group.healthy),
        Status::Group(group) => group.healthy,
    }
}

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
