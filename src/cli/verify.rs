//! `doublure verify`: starts a verification and follows it to its end.

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};

use super::client::Client;
use super::{EXIT_DEGRADED, terminal, units};
use crate::status::{CommandRequest, DifferingRange, VerifyState, VerifyStatus};

/// How often the site is asked how far it is.
const INTERVAL: Duration = Duration::from_millis(250);

/// Code 3 if the sites differ and that is not mended, an error (code 1) if it could not run or did not come to its end.
pub async fn run(
    client: &Client,
    group: &str,
    request: &CommandRequest,
    detach: bool,
) -> anyhow::Result<ExitCode> {
    let message = client.command(group, "verify", request).await?;
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
            bail!("the site knows of no verification any more");
        };
        bar.set_length(verify.total_bytes);
        bar.set_position(verify.done_bytes);
        if verify.state != VerifyState::Running {
            break verify;
        }
    };
    bar.finish_and_clear();
    terminal::print(&client.complete(&summary(group, &verify, "")))?;
    Ok(ExitCode::from(exit_code(verify.state)))
}

fn exit_code(state: VerifyState) -> u8 {
    match state {
        VerifyState::Equal | VerifyState::Repaired => 0,
        VerifyState::Differs => EXIT_DEGRADED,
        VerifyState::Running | VerifyState::Interrupted => 1,
    }
}

/// What came of it. `on` stands behind its commands: where they belong, if that is not the site that is asked.
pub fn summary(group: &str, verify: &VerifyStatus, on: &str) -> String {
    let whole = format!(
        "{} compared with {} in {}",
        units::bytes(verify.done_bytes),
        verify.peer,
        units::seconds(verify.seconds)
    );
    let differing = units::bytes(verify.differing_bytes);
    let left = units::bytes(verify.differing_bytes.saturating_sub(verify.repaired_bytes));
    let mut text = match verify.state {
        VerifyState::Running => format!("{group}: {whole} so far\n"),
        VerifyState::Equal => format!("{group}: {whole}, both sites hold the same\n"),
        VerifyState::Differs if verify.repair => format!(
            "{group}: {whole}, {differing} were different and {left} still are: nothing shows which site is right. \
             `doublure verify {group} --repair --keep SITE`{on} takes ALL of that from one of them; `doublure explain {group}` \
             tells how to look first\n"
        ),
        VerifyState::Differs if verify.undecided_bytes == verify.differing_bytes => format!(
            "{group}: {whole}, DIFFERENT in {left}: nothing shows which site is right. `doublure verify {group} --repair --keep \
             SITE`{on} takes ALL of that from one of them; `doublure explain {group}` tells how to look first\n"
        ),
        VerifyState::Differs => format!(
            "{group}: {whole}, DIFFERENT in {left}. `doublure verify {group} --repair`{on} mends what is shown to be wrong, on \
             either site\n"
        ),
        VerifyState::Repaired => {
            let kept = match &verify.keep {
                Some(site) if verify.undecided_bytes > 0 => format!(
                    ". Nothing showed which site was right in {}: what {site} held there was taken, right or wrong",
                    units::bytes(verify.undecided_bytes)
                ),
                _ => String::new(),
            };
            format!("{group}: {whole}; {differing} were different, and are the same now{kept}\n")
        }
        VerifyState::Interrupted => format!(
            "{group}: interrupted after {} of {}; it goes on by itself when the sites are in sync again\n",
            units::bytes(verify.done_bytes),
            units::bytes(verify.total_bytes)
        ),
    };
    for range in &verify.differing {
        let _ = writeln!(
            text,
            "  {} at byte {}, {}: {}",
            range.volume,
            units::grouped(range.offset),
            units::bytes(range.bytes),
            verdict(range)
        );
    }
    let listed: u64 = verify.differing.iter().map(|r| r.bytes).sum();
    if verify.differing_bytes > listed {
        let _ = writeln!(
            text,
            "  and {} more",
            units::bytes(verify.differing_bytes - listed)
        );
    }
    if verify.wrong_on_primary_bytes + verify.undecided_bytes > 0 {
        let what = match (verify.wrong_on_primary_bytes, verify.undecided_bytes) {
            (0, _) => "may have got",
            _ => "got",
        };
        let _ = writeln!(
            text,
            "  Who read what was wrong on {} {what} wrong content: check what depends on it.",
            verify.primary
        );
    }
    text
}

/// Who is wrong in a range, and whether that is mended.
pub fn verdict(range: &DifferingRange) -> String {
    let sites = |sites: &[String]| sites.join(" and ");
    let mut text = if range.wrong_on.is_empty() && range.repaired {
        // By the operator's word.
        return "undecided, the same on both sites now".to_owned();
    } else if range.wrong_on.is_empty() {
        "undecided".to_owned()
    } else if range.unreadable_on.is_empty() {
        format!("wrong on {}", sites(&range.wrong_on))
    } else {
        let mut text = format!("unreadable on {}", sites(&range.unreadable_on));
        let mut others = range.wrong_on.clone();
        others.retain(|site| !range.unreadable_on.contains(site));
        if !others.is_empty() {
            let _ = write!(text, ", wrong on {}", sites(&others));
        }
        text
    };
    text += if range.repaired {
        ", mended"
    } else {
        ", not mended"
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(state: VerifyState) -> VerifyStatus {
        let range = |offset, wrong: &[&str], unreadable: &[&str], repaired| DifferingRange {
            volume: "data".into(),
            offset,
            bytes: 4096,
            wrong_on: wrong.iter().map(|s| (*s).to_owned()).collect(),
            unreadable_on: unreadable.iter().map(|s| (*s).to_owned()).collect(),
            repaired,
        };
        VerifyStatus {
            state,
            primary: "clichy".into(),
            peer: "chelles".into(),
            repair: true,
            keep: None,
            scrub: false,
            began_unix_seconds: 1,
            ended_unix_seconds: Some(2),
            lsn: None,
            seconds: 1.0,
            eta_seconds: None,
            done_bytes: 1 << 30,
            total_bytes: 1 << 30,
            differing_bytes: 16384,
            wrong_on_primary_bytes: 4096,
            wrong_on_peer_bytes: 8192,
            undecided_bytes: 4096,
            unreadable_bytes: 4096,
            repaired_bytes: 8192,
            differing: vec![
                range(4096, &["clichy"], &[], true),
                range(8192, &["clichy", "chelles"], &["chelles"], true),
                range(1_048_576, &[], &[], false),
            ],
        }
    }

    #[test]
    fn sites_that_differ_are_told_from_a_verification_that_could_not_end() {
        assert_eq!(exit_code(VerifyState::Equal), 0);
        assert_eq!(exit_code(VerifyState::Repaired), 0);
        assert_eq!(exit_code(VerifyState::Interrupted), 1);
        assert_eq!(exit_code(VerifyState::Differs), 3);
    }

    #[test]
    fn what_was_found_is_told_range_by_range_with_what_to_do() {
        let text = summary("registry", &found(VerifyState::Differs), "");
        for part in [
            "--repair --keep SITE",
            "data at byte 4,096, 4.0 KiB: wrong on clichy, mended",
            "unreadable on chelles, wrong on clichy, mended",
            "data at byte 1,048,576, 4.0 KiB: undecided, not mended",
            "and 4.0 KiB more",
            "on clichy got wrong content",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let kept = VerifyStatus {
            keep: Some("clichy".into()),
            ..found(VerifyState::Repaired)
        };
        let text = summary("registry", &kept, "");
        assert!(
            text.contains("what clichy held there was taken, right or wrong"),
            "{text}"
        );
        let text = summary("registry", &found(VerifyState::Interrupted), "");
        assert!(text.contains("goes on by itself"), "{text}");
    }
}
