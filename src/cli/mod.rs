//! The command line: what an operator types, what is printed, and how it ends.
//!
//! `serve` runs a site in this process. `try` runs two as children. All others are clients of the control API of a
//! running site and know nothing of its files.

mod client;
mod explain;
mod offers;
mod status;
mod table;
mod terminal;
mod tryout;
mod units;
mod verify;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use client::{Client, ClientError};

use crate::config::{Config, DEFAULT_CONTROL, is_plain_name};
use crate::status::CommandRequest;

/// Ended, but not all is well: a group of `status` is degraded, `verify` found a difference and did not mend it.
const EXIT_DEGRADED: u8 = 3;
/// The command line makes no sense; clap ends with the same code.
const EXIT_USAGE: u8 = 2;

/// A block replicator: an NBD disk whose every acknowledged write is on two sites.
#[derive(Parser, Debug)]
#[command(
    name = "doublure",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 degraded (status) or different (verify)."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a site
    Serve {
        /// Configuration of the site
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Stop when this process is gone. For `try`, whose sites must not outlive it
        #[arg(long, value_name = "PID", hide = true)]
        with_parent: Option<i32>,
    },
    /// Check a configuration and report everything wrong with it
    Check {
        /// Configuration of a site
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Run two sites on this machine, ready to use: no configuration, no root
    Try {
        /// Where configuration, data and logs go; a second run picks up the same data
        #[arg(long, value_name = "DIR", default_value = "doublure-try")]
        dir: PathBuf,
    },
    /// Show how a site and its groups are
    Status {
        /// This group only
        group: Option<String>,
        /// Print JSON (with --watch one document per line)
        #[arg(long)]
        json: bool,
        /// Show it again every second, until Ctrl-C
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        site: SiteArgument,
    },
    /// Make this site the primary of a group
    ///
    /// The peer is asked first. Refused while it answers as primary, which nothing overrides, and whenever something may
    /// be lost; the refusal says what, and prints the command that overrides it.
    Promote {
        #[command(flatten)]
        target: Target,
        /// Override a refusal; may be repeated or comma separated
        #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
        force: Vec<Force>,
    },
    /// Give up the primary role of a group; nobody is primary afterwards
    Demote {
        #[command(flatten)]
        target: Target,
    },
    /// Hand the primary role of a group to the peer, losing nothing
    Switchover {
        #[command(flatten)]
        target: Target,
    },
    /// Say why a group is in its state, what it waits for, and what each choice would lose
    Explain {
        #[command(flatten)]
        target: Target,
    },
    /// Grow a volume while it is in use
    ///
    /// Given to the primary. All sites are checked before anything is changed; a volume never shrinks. A home that is a
    /// device must be grown first. Clients see the new size when they connect again.
    Resize {
        #[command(flatten)]
        target: Target,
        /// Name of the volume
        volume: String,
        /// Its new size, such as 20GiB
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Compare the sites of a group, chunk by chunk, while it is in use
    ///
    /// Given to the primary. Every chunk is compared exactly, as of one LSN, and read from the medium on both sites. Where
    /// they differ, the journal tells who is wrong, as far as it reaches back. What was interrupted goes on by itself; the
    /// command joins it, or takes over a scrub at full rate.
    Verify {
        #[command(flatten)]
        target: Target,
        /// Mend what the journal proves to be wrong, or a site cannot read, on either site
        #[arg(long)]
        repair: bool,
        /// Where nothing shows what is right, keep what this site holds
        #[arg(long, value_name = "SITE", requires = "repair")]
        keep: Option<String>,
        /// Do not wait for the end
        #[arg(long)]
        detach: bool,
    },
    /// End a fork: one site gives up what it wrote since
    ///
    /// What it gives up is kept in a file in its data directory. `doublure explain` tells what each site wrote.
    Resolve {
        #[command(flatten)]
        target: Target,
        /// The site that gives up its writes and becomes a mirror
        #[arg(long, value_name = "SITE")]
        discard: String,
    },
    /// Let a group's link connect again after `disconnect`
    Connect {
        #[command(flatten)]
        target: Target,
    },
    /// Cut a group's link and keep it cut
    Disconnect {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Args, Debug)]
struct Target {
    /// Name of the group
    group: String,
    #[command(flatten)]
    site: SiteArgument,
}

#[derive(Args, Debug)]
struct SiteArgument {
    /// Control socket of the site
    #[arg(
        short,
        long,
        value_name = "PATH",
        value_parser = parse_socket,
        default_value_os_t = PathBuf::from(DEFAULT_CONTROL)
    )]
    socket: PathBuf,
}

/// What a promotion may override.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Force {
    /// The peer cannot be asked whether it is primary: make sure that it is down
    PeerUnreachable,
    /// This site is in the middle of a copy: it goes back to what it held before, or serves a mixture if it kept nothing
    Inconsistent,
    /// A peer has, or this site once had, more history: it is given up
    Behind,
}

/// `unix:PATH`, as the configuration writes it, or a bare path.
fn parse_socket(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:").unwrap_or(text) {
        "" => Err("allowed: PATH or unix:PATH".to_owned()),
        path => Ok(PathBuf::from(path)),
    }
}

/// `20GiB`, `20GB` or a number of bytes, as the configuration writes it.
fn parse_size(text: &str) -> Result<u64, String> {
    let size: bytesize::ByteSize = text
        .parse()
        .map_err(|_| "allowed: a size such as 20GiB (1024s) or 20GB (1000s)".to_owned())?;
    Ok(size.as_u64())
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run(Arguments::parse_from(typed(std::env::args_os())).command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("doublure: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What was typed; `help` needs no help of its own, and takes `--help` as nothing more.
fn typed(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.collect();
    if words.get(1).is_some_and(|word| word == "help") {
        words.retain(|word| word != "--help" && word != "-h");
    }
    words
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve {
            config,
            with_parent,
        } => {
            if let Some(parent) = with_parent {
                terminal::end_with_parent(parent)?;
            }
            let Some(config) = load(&config)? else {
                return Ok(ExitCode::FAILURE);
            };
            crate::control::serve(config)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { config: file } => {
            let Some(config) = load(&file)? else {
                return Ok(ExitCode::FAILURE);
            };
            let line = format!(
                "{} is fine: site {}, {}, {}\n",
                file.display(),
                config.site.name,
                units::counted(config.groups.len() as u64, "group"),
                units::counted(config.volume_count() as u64, "volume"),
            );
            terminal::print(&line)?;
            for group in config.groups.iter().filter(|g| g.peers.is_empty()) {
                terminal::print(&format!(
                    "note: group {} has no peer: what is written to it is on {} only\n",
                    group.name, config.site.name
                ))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Try { dir } => terminal::runtime()?.block_on(tryout::run(&dir)),
        Command::Status {
            group,
            json,
            watch,
            site,
        } => {
            if let Some(code) = group.as_deref().and_then(refuse_group) {
                return Ok(code);
            }
            let client = Client::new(site.socket);
            let shown = status::Shown { group, json };
            terminal::runtime()?.block_on(async {
                if watch {
                    status::watch(&client, &shown).await
                } else {
                    status::once(&client, &shown).await
                }
            })
        }
        Command::Promote { target, force } => {
            let force = force.iter().filter_map(ValueEnum::to_possible_value);
            let force = force.map(|value| value.get_name().to_owned()).collect();
            let request = CommandRequest {
                force,
                ..CommandRequest::default()
            };
            send(&target, "promote", &request)
        }
        Command::Demote { target } => send(&target, "demote", &CommandRequest::default()),
        Command::Switchover { target } => send(&target, "switchover", &CommandRequest::default()),
        Command::Explain { target } => explain_group(&target),
        Command::Verify {
            target,
            repair,
            keep,
            detach,
        } => {
            if let Some(code) = refuse_group(&target.group) {
                return Ok(code);
            }
            let client = Client::new(target.site.socket);
            let request = CommandRequest {
                repair,
                keep,
                ..CommandRequest::default()
            };
            terminal::runtime()?.block_on(verify::run(&client, &target.group, &request, detach))
        }
        Command::Resize {
            target,
            volume,
            size,
        } => {
            let request = CommandRequest {
                volume: Some(volume),
                size_bytes: Some(size),
                ..CommandRequest::default()
            };
            send(&target, "resize", &request)
        }
        Command::Resolve { target, discard } => {
            let request = CommandRequest {
                discard: Some(discard),
                ..CommandRequest::default()
            };
            send(&target, "resolve", &request)
        }
        Command::Connect { target } => send(&target, "connect", &CommandRequest::default()),
        Command::Disconnect { target } => send(&target, "disconnect", &CommandRequest::default()),
    }
}

/// `None` if something is wrong with it, which is printed then.
fn load(file: &Path) -> anyhow::Result<Option<Config>> {
    match Config::load(file) {
        Ok(config) => Ok(Some(config)),
        Err(crate::config::ConfigError::Invalid(report)) => {
            // Each line begins with the file's name, as editors and terminals like it.
            eprintln!("{report}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn send(target: &Target, word: &str, request: &CommandRequest) -> anyhow::Result<ExitCode> {
    if let Some(code) = refuse_group(&target.group) {
        return Ok(code);
    }
    let client = Client::new(target.site.socket.clone());
    let message = terminal::runtime()?.block_on(client.command(&target.group, word, request))?;
    terminal::print(&format!("{message}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn explain_group(target: &Target) -> anyhow::Result<ExitCode> {
    if let Some(code) = refuse_group(&target.group) {
        return Ok(code);
    }
    let client = Client::new(target.site.socket.clone());
    let (site, group) = terminal::runtime()?.block_on(async {
        // The group's own answer says best that there is no such group.
        let group = client.group_status(&target.group).await?;
        Ok::<_, ClientError>((client.site_status().await?.site, group))
    })?;
    let text = explain::explain(&site, &group, status::now());
    terminal::print(&client.complete(&text))?;
    Ok(ExitCode::SUCCESS)
}

/// A name that no group can have is not worth a request; it could not even stand in one.
fn refuse_group(group: &str) -> Option<ExitCode> {
    if is_plain_name(group) {
        return None;
    }
    eprintln!("doublure: {group:?} cannot be the name of a group");
    Some(ExitCode::from(EXIT_USAGE))
}

#[cfg(test)]
mod tests;
