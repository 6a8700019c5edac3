//! `doublure verify`: starts a verification and follows it to its end.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};

use super::client::Client;
use super::{terminal, units};
use crate::status::{CommandRequest, VerifyState, VerifyStatus};

/// How often the site is asked how far it is.
const INTERVAL: Duration = Duration::from_millis(250);

/// Code 1 if the sites differ, or if it did not come to its end.
pub async fn run(
    client: &Client,
    group: &str,
    repair: bool,
    detach: bool,
) -> anyhow::Result<ExitCode> {
    let request = CommandRequest {
        repair,
        ..CommandRequest::default()
    };
    let message = client.command(group, "verify", &request).await?;
    if detach {
        terminal::print(&format!("{message}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let bar = if io::stderr().is_terminal() {
        let style = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} to go";
        ProgressBar::new(0).with_style(ProgressStyle::with_template(style)?)
    } else {
        ProgressBar::hidden()
    };
    let mut tick = tokio::time::interval(INTERVAL);
    let verify = loop {
        tick.tick().await;
        let status = client.group_status(group).await?;
        let Some(verify) = status.verify else {
            bail!("the site was restarted: the verification is gone, nothing was changed by it");
        };
        bar.set_length(verify.total_bytes);
        bar.set_position(verify.done_bytes);
        if verify.state != VerifyState::Running {
            break verify;
        }
    };
    bar.finish_and_clear();
    terminal::print(&summary(group, &verify))?;
    Ok(match verify.state {
        VerifyState::Equal | VerifyState::Repaired => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// What came of it.
pub fn summary(group: &str, verify: &VerifyStatus) -> String {
    let whole = format!(
        "{} compared with {} in {}",
        units::bytes(verify.done_bytes),
        verify.peer,
        units::seconds(verify.seconds)
    );
    let differing = units::bytes(verify.differing_bytes);
    let mut text = match verify.state {
        VerifyState::Running => format!("{group}: {whole} so far\n"),
        VerifyState::Equal => format!("{group}: {whole}, both sites hold the same\n"),
        VerifyState::Differs => format!(
            "{group}: {whole}, DIFFERENT in chunks of {differing} in all. `doublure verify {group} --repair` gives {} what \
             this site holds; if {}'s is the right one, switch over first\n",
            verify.peer, verify.peer
        ),
        VerifyState::Repaired => format!(
            "{group}: {whole}; chunks of {differing} in all were different, and {} was given what this site holds\n",
            verify.peer
        ),
        VerifyState::Interrupted => format!(
            "{group}: interrupted, the link was lost after {} of {}\n",
            units::bytes(verify.done_bytes),
            units::bytes(verify.total_bytes)
        ),
    };
    for range in &verify.differing {
        text += &format!(
            "  {} at byte {}, {}\n",
            range.volume,
            units::grouped(range.offset),
            units::bytes(range.bytes)
        );
    }
    text
}
