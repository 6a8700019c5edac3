//! A running site: its groups opened, its doors open, its events answered, until it is stopped.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::exports::Directory;
use super::listen::Listener;
use super::lobby::{Lobby, RateLimit};
use super::shards::{Condition, Shards};
use super::visitors::Visitors;
use super::{api, connect, link, nbd, systemd};
use crate::shard::{FromShard, ToShard};

/// How long NBD clients are kept waiting at the door for groups that are slow to open. Clients do not try again when
/// they are refused, so it is kinder to let them wait; but one slow group must not keep out the others' clients.
const OPEN_GRACE: Duration = Duration::from_secs(10);

const PANICKED: &str = "a task of the control plane panicked";

/// All listening sockets of a site.
pub struct Listeners {
    /// For NBD clients.
    pub nbd: Vec<Listener>,
    /// For peers.
    pub link: Option<Listener>,
    /// For operators.
    pub control: Listener,
    /// For scrapers and browsers.
    pub http: Option<Listener>,
}

/// A group that is being opened, and what will come of it.
pub struct Opening {
    /// Its name.
    pub group: String,
    /// The outcome.
    pub done: oneshot::Receiver<Result<(), String>>,
}

type Tasks = JoinSet<anyhow::Result<Infallible>>;

/// A running site.
pub struct Site {
    shards: Shards,
    exports: Directory,
    /// End when the stop begins.
    doors: Tasks,
    /// End when everything has stopped, so that a stop can be watched.
    services: Tasks,
    /// One for each shard: does what it asks for until its thread ends, then yields its number.
    threads: JoinSet<usize>,
    /// Shards whose thread has not ended.
    running: BTreeSet<usize>,
}

impl Site {
    /// A site of these shards; `events` is what each of them has to say.
    pub fn new(shards: Shards, events: Vec<UnboundedReceiver<FromShard>>) -> Site {
        let exports = Directory::default();
        for (group, member) in shards.members() {
            for volume in &member.exports {
                exports.announce(group, volume);
            }
        }
        let running = (0..events.len()).collect();
        let mut threads = JoinSet::new();
        for (shard, events) in events.into_iter().enumerate() {
            threads.spawn(listen_to_shard(
                shard,
                events,
                shards.clone(),
                exports.clone(),
            ));
        }
        Site {
            shards,
            exports,
            doors: JoinSet::new(),
            services: JoinSet::new(),
            threads,
            running,
        }
    }

    /// Runs. Status and metrics answer at once, peers are let in at once, clients when the groups are open.
    ///
    /// # Errors
    /// When no group could be opened, or something that should run for ever ended.
    pub async fn live(
        &mut self,
        listeners: Listeners,
        opening: Vec<Opening>,
    ) -> anyhow::Result<Infallible> {
        let (shards, exports) = (self.shards.clone(), self.exports.clone());
        self.services.spawn(serve_control(
            listeners.control,
            api::control(shards.clone()),
        ));
        if let Some(http) = listeners.http {
            self.services
                .spawn(serve_http(http, api::public(shards.clone())));
        }
        if let Some(link) = listeners.link {
            self.admit_peers(link);
        }
        let mut opening = std::pin::pin!(open(opening, shards.clone(), exports));
        let opened = timeout(OPEN_GRACE, &mut opening).await;
        self.admit_clients(listeners.nbd);
        if let Ok(opened) = opened {
            opened?;
        } else {
            tracing::warn!("some groups are still being opened; serving the others");
            opening.await?;
        }
        systemd::ready();
        tracing::info!(
            site = shards.site(),
            version = env!("CARGO_PKG_VERSION"),
            "ready"
        );
        if systemd::Manager::is_there() {
            self.services.spawn(report_to_manager(shards));
        }
        self.watch().await
    }

    fn admit_clients(&mut self, listeners: Vec<Listener>) {
        let lobby = Lobby::new(nbd::HANDSHAKES_MAX, nbd::HANDSHAKE_LIMIT);
        for listener in listeners {
            tracing::info!(address = listener.address, "NBD clients are welcome");
            let (shards, exports) = (self.shards.clone(), self.exports.clone());
            self.doors
                .spawn(listener.accept_all(lobby.clone(), move |socket| {
                    nbd::greet(socket, exports.clone(), shards.clone())
                }));
        }
    }

    fn admit_peers(&mut self, listener: Listener) {
        tracing::info!(address = listener.address, "peers are welcome");
        let lobby = Lobby::new(link::GREETINGS_MAX, link::GREETING_LIMIT);
        let shards = self.shards.clone();
        let refusals = std::sync::Arc::new(RateLimit::default());
        self.doors.spawn(listener.accept_all(lobby, move |socket| {
            link::greet(socket, shards.clone(), refusals.clone())
        }));
    }

    /// Waits for anything to end that should run for ever.
    async fn watch(&mut self) -> anyhow::Result<Infallible> {
        loop {
            let ended = tokio::select! {
                Some(ended) = self.doors.join_next() => ended,
                Some(ended) = self.services.join_next() => ended,
                ended = next_ended(&mut self.threads, &mut self.running) => match ended? {
                    Some(_) => continue, // the other shards go on
                    None => bail!("every shard has ended"),
                },
            };
            return ended.context(PANICKED)?;
        }
    }

    /// Stops cleanly: nobody new is let in, the groups finish, then all threads end. All that within `limit`.
    ///
    /// # Errors
    /// Names the groups that did not finish in time.
    pub async fn stop(&mut self, limit: Duration) -> anyhow::Result<()> {
        systemd::stopping();
        self.doors.shutdown().await;
        self.shards.shut_down();
        let all = async {
            while next_ended(&mut self.threads, &mut self.running)
                .await?
                .is_some()
            {}
            anyhow::Ok(())
        };
        let finished = timeout(limit, all).await;
        self.services.shutdown().await;
        finished.unwrap_or_else(|_| {
            bail!(
                "not stopped after {limit:?}: {}; what was acknowledged is safe in the journals",
                self.unfinished()
            )
        })
    }

    fn unfinished(&self) -> String {
        let running = &self.running;
        let groups = self.shards.members().iter().filter_map(|(name, member)| {
            let stopped = matches!(self.shards.condition(name), Condition::Fenced(_));
            (running.contains(&member.shard) && !stopped).then(|| format!("group {name}"))
        });
        let groups: Vec<_> = groups.collect();
        if groups.is_empty() {
            format!("the threads of shards {running:?}")
        } else {
            groups.join(", ")
        }
    }
}

/// Waits until the thread of one more shard ends; `None` when there are no more.
async fn next_ended(
    threads: &mut JoinSet<usize>,
    running: &mut BTreeSet<usize>,
) -> anyhow::Result<Option<usize>> {
    let Some(ended) = threads.join_next().await else {
        return Ok(None);
    };
    let shard = ended.context(PANICKED)?;
    running.remove(&shard);
    Ok(Some(shard))
}

/// Waits until every group is open or known not to open.
async fn open(opening: Vec<Opening>, shards: Shards, exports: Directory) -> anyhow::Result<()> {
    let mut outcomes = JoinSet::new();
    for group in opening {
        outcomes.spawn(open_one(group, shards.clone(), exports.clone()));
    }
    let opened = outcomes.join_all().await;
    if !opened.is_empty() && !opened.contains(&true) {
        bail!("no group could be opened; the reasons are above");
    }
    Ok(())
}

async fn open_one(opening: Opening, shards: Shards, exports: Directory) -> bool {
    let Opening { group, done } = opening;
    let outcome = done
        .await
        .unwrap_or_else(|_| Err("its shard ended while it was being opened".to_owned()));
    match &outcome {
        Ok(()) => {
            tracing::info!(group, "open");
            shards.opened(&group);
        }
        Err(why) => {
            tracing::error!(group, "FENCED, it cannot be opened: {why}");
            exports.close(&group, &format!("group {group} cannot be opened: {why}"));
            shards.set_condition(
                &group,
                Condition::Fenced(format!("cannot be opened: {why}")),
            );
        }
    }
    outcome.is_ok()
}

/// Does what a shard asks for until its thread ends.
async fn listen_to_shard(
    shard: usize,
    mut events: UnboundedReceiver<FromShard>,
    shards: Shards,
    directory: Directory,
) -> usize {
    while let Some(event) = events.recv().await {
        match event {
            FromShard::Connect { group, peer } => {
                tokio::spawn(connect_peer(group, peer, shards.clone()));
            }
            FromShard::Exports { group, exports } => directory.update(&group, &exports),
            FromShard::Stopped { group } => stopped(&group, &shards, &directory),
        }
    }
    shards.lost(shard);
    shard
}

fn stopped(group: &str, shards: &Shards, exports: &Directory) {
    let why = if shards.is_stopping() {
        tracing::info!(group, "stopped");
        "stopped with the daemon"
    } else {
        tracing::error!(group, "FENCED: it stopped by itself");
        "it stopped by itself; the log says why"
    };
    exports.close(group, &format!("group {group}: {why}"));
    shards.set_condition(group, Condition::Fenced(why.to_owned()));
}

async fn connect_peer(group: String, peer: String, shards: Shards) {
    let outcome = dial(&group, &peer, &shards).await;
    let name = group.clone();
    shards.post(
        &name,
        ToShard::LinkConnected {
            group,
            peer,
            outcome,
        },
    );
}

async fn dial(group: &str, peer: &str, shards: &Shards) -> Result<OwnedFd, (bool, String)> {
    let member = shards.members().get(group);
    let address = member.and_then(|m| Some((m, m.addresses.get(peer)?)));
    let Some((member, address)) = address else {
        return Err((
            false,
            format!("the configuration has no address of {peer} for {group}"),
        ));
    };
    connect::connect(address, member.config.timeout)
        .await
        .map_err(|failure| (failure.refused, failure.reason))
}

async fn report_to_manager(shards: Shards) -> anyhow::Result<Infallible> {
    let mut manager = systemd::Manager::from_env();
    let mut ticks = tokio::time::interval(manager.interval());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        manager.report(&shards.ask(manager.interval()).await);
    }
}

async fn serve_control(listener: Listener, routes: Router) -> anyhow::Result<Infallible> {
    let (fd, _file) = listener.into_parts();
    let listener = std::os::unix::net::UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    axum::serve(UnixListener::from_std(listener)?, routes).await?;
    bail!("the control API ended")
}

async fn serve_http(listener: Listener, routes: Router) -> anyhow::Result<Infallible> {
    tracing::info!(address = listener.address, "metrics and status over HTTP");
    let (fd, _file) = listener.into_parts();
    let listener = std::net::TcpListener::from(fd);
    listener.set_nonblocking(true)?;
    let visitors = Visitors::new(TcpListener::from_std(listener)?);
    axum::serve(visitors, routes).await?;
    bail!("the HTTP service ended")
}
