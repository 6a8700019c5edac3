//! The life of a site: start, run until told to stop, stop.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::listen::Listener;
use super::process::{init_log, lock_data, raise_descriptor_limit};
use super::site::{Listeners, Site};
use super::start::{Thread, start};
use crate::config::Config;
use crate::shard;
use crate::status::ShardStatus;

/// How long a clean stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Runs a site until it is told to stop by SIGTERM or SIGINT. A second signal ends the process at once.
///
/// # Errors
/// If the site cannot start (an address is taken, no group can be opened), or could not be stopped cleanly.
pub fn serve(config: Config) -> anyhow::Result<()> {
    init_log();
    raise_descriptor_limit();
    let inherited = Listener::inherited()?;
    let _lock = lock_data(&config.site.data)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control plane")?;
    let result = runtime.block_on(run(config, inherited));
    // A name lookup that hangs in the C library must not keep the process alive.
    runtime.shutdown_background();
    result
}

async fn run(config: Config, inherited: Vec<Listener>) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let listeners = bind_all(&config, inherited)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let started = start(&config, cores, spawn)?;
    let mut site = Site::new(started.shards, started.events);
    let outcome = tokio::select! {
        Err(error) = site.live(listeners, started.opening) => {
            tracing::error!("stopping: {error:#}");
            Err(error)
        }
        name = signals.next() => {
            tracing::info!("{name}: stopping");
            Ok(())
        }
    };
    let stopped = tokio::select! {
        stopped = site.stop(STOP_LIMIT) => stopped,
        name = signals.next() => {
            tracing::warn!("{name} while stopping: not waiting any longer");
            std::process::exit(1);
        }
    };
    outcome.and(stopped)
}

/// Starts a shard's thread. Nobody joins it: its events end with it.
fn spawn(shard: usize) -> anyhow::Result<Thread> {
    let handle = shard::spawn(shard).with_context(|| format!("cannot start shard {shard}"))?;
    let poster = handle.poster.clone();
    let counts = handle.counts();
    Ok(Thread {
        post: Box::new(move |message| poster.send(message)),
        tally: Box::new(move || {
            let stats = counts();
            ShardStatus {
                requests: stats.requests,
                ring_enters: stats.ring_enters,
                ring_waits: stats.ring_waits,
                ring_operations: stats.ring_operations,
            }
        }),
        events: handle.events,
    })
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("cannot watch SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot watch SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("cannot watch SIGHUP")?,
        })
    }

    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => tracing::info!(
                    "SIGHUP: nothing is reloaded; a changed configuration counts from the next start on"
                ),
            }
        }
    }
}

/// Binds all addresses before anything else is touched: a second start by mistake ends here.
fn bind_all(config: &Config, inherited: Vec<Listener>) -> anyhow::Result<Listeners> {
    let site = &config.site;
    let mut inherited = inherited;
    // A socket unit usually has the addresses of the configuration; whatever it has besides is for NBD clients.
    let mut take = |address: String| {
        let at = inherited.iter().position(|l| l.address == address);
        match at {
            Some(at) => Ok(inherited.swap_remove(at)),
            None => Listener::bind(&address),
        }
    };
    let link = site
        .link
        .as_ref()
        .map(|a| take(a.to_string()))
        .transpose()?;
    let http = site
        .http
        .as_ref()
        .map(|a| take(a.to_string()))
        .transpose()?;
    let control = take(format!("unix:{}", site.control.display()))?;
    let addresses = site.nbd.iter().map(|a| take(a.to_string()));
    let mut nbd = addresses.collect::<anyhow::Result<Vec<_>>>()?;
    nbd.append(&mut inherited);
    Ok(Listeners {
        nbd,
        link,
        control,
        http,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_was_inherited_is_not_bound_again() {
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().display();
        let passed = Listener::bind("127.0.0.1:0").unwrap();
        let address = passed.address.clone();
        let text = format!(
            "[site]\nname = \"clichy\"\ndata = \"{shown}\"\ncontrol = \"unix:{shown}/control.sock\"\n\
             nbd = [\"{address}\", \"unix:{shown}/nbd.sock\"]\n\
             [[group]]\nname = \"registry\"\nrole = \"primary\"\n\
             [[group.volume]]\nname = \"data\"\nsize = \"1GiB\"\n"
        );
        let config = Config::parse(&text, std::path::Path::new("test.toml")).unwrap();
        let listeners = bind_all(&config, vec![passed]).unwrap();
        let addresses: Vec<_> = listeners.nbd.iter().map(|l| l.address.clone()).collect();
        assert_eq!(addresses, [address, format!("unix:{shown}/nbd.sock")]);
    }
}
