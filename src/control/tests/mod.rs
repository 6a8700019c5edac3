//! The control plane over real sockets, with threads that answer as shards would.

use std::collections::HashMap;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, WeakUnboundedSender, unbounded_channel};

use super::listen::Listener;
use super::shards::{Condition, Member, Post, Shards};
use super::site::Listeners;
use crate::base::{AckMode, Compress, Lsn, OnPeerLoss, Role, VolumeId, VolumeSpec};
use crate::engine::{Command, Exports, GroupConfig};
use crate::shard::{FromShard, ToShard};
use crate::status::{
    GroupState, GroupStatus, JournalStatus, PeerState, PeerStatus, Rates, SiteStatus,
    StageLatencies, Totals, VolumeStatus,
};

/// A group as a serving primary with one peer in sync reports it.
pub fn group_status(name: &str) -> GroupStatus {
    GroupStatus {
        name: name.to_owned(),
        id: uuid::Uuid::from_u128(7).to_string(),
        role: Role::Primary,
        state: GroupState::Serving,
        reason: "every peer is in sync".to_owned(),
        state_since_unix_seconds: 1_800_000_000,
        healthy: true,
        ack: AckMode::Sync,
        on_peer_loss: OnPeerLoss::Continue,
        epoch: None,
        tail_lsn: Lsn(100),
        durable_lsn: Lsn(99),
        commit_lsn: Lsn(98),
        applied_lsn: Lsn(97),
        checkpoint_lsn: Lsn(50),
        inconsistent: false,
        mixture: None,
        inconsistent_until_lsn: None,
        lost_until_lsn: None,
        journal_damage: None,
        configured_role: None,
        journal: JournalStatus {
            capacity_bytes: 1 << 30,
            used_bytes: 0,
            first_lsn: Lsn(1),
            writers_wait: false,
            held_by: "checkpoint".to_owned(),
        },
        alone: None,
        peers: vec![PeerStatus {
            site: "chelles".to_owned(),
            state: PeerState::InSync,
            hindrance: None,
            detail: String::new(),
            received_lsn: Lsn(100),
            durable_lsn: Lsn(98),
            applied_lsn: Lsn(90),
            needs_copy: false,
            lag_operations: 2,
            lag_bytes: 8192,
            lag_seconds: 0.0,
            last_heard_seconds: Some(0.25),
            copied_bytes: 0,
            copy_total_bytes: 0,
            copy_eta_seconds: None,
            space_left_bytes: None,
        }],
        fork: None,
        undo: None,
        verify: None,
        last_verify: None,
        next_scrub_unix_seconds: None,
        unrepaired_bytes: 0,
        volumes: vec![VolumeStatus {
            name: format!("{name}-data"),
            uuid: uuid::Uuid::from_u128(8).to_string(),
            size_bytes: 10 << 30,
            clients: 1,
        }],
        clients: 1,
        in_flight_requests: 0,
        home_hangs_seconds: None,
        no_space: false,
        full_sites: Vec::new(),
        full_since_unix_seconds: None,
        space_needed_bytes: None,
        space_left_bytes: None,
        unapplied_bytes: 0,
        totals: Totals::default(),
        rates: Rates::default(),
        latency: StageLatencies::default(),
        disagreements: Vec::new(),
    }
}

/// A site of these groups, 61 seconds after its start.
pub fn site_status(groups: Vec<GroupStatus>) -> SiteStatus {
    SiteStatus {
        site: "clichy".to_owned(),
        version: "0.1.0".to_owned(),
        uptime_seconds: 61,
        groups,
        shards: Vec::new(),
        notes: Vec::new(),
    }
}

/// A group of site clichy with the peer chelles, on this shard.
pub fn member(name: &str, shard: usize) -> Member {
    Member {
        config: GroupConfig {
            site: "clichy".to_owned(),
            group: name.to_owned(),
            role: Role::Primary,
            ack: AckMode::Sync,
            compress: Compress::Off,
            on_peer_loss: OnPeerLoss::Continue,
            timeout: Duration::from_secs(5),
            journal_bytes: 1 << 30,
            resync_rate: None,
            resync_undo: true,
            scrub: Duration::ZERO,
            peers: vec!["chelles".to_owned()],
            volumes: vec![(format!("{name}-data"), 10 << 30)],
        },
        addresses: HashMap::new(),
        exports: vec![format!("{name}-data")],
        shard,
    }
}

/// A thread that does with each message what a test wants, until that returns false or all senders are gone.
pub struct FakeShard {
    /// Sends to it.
    pub post: Post,
    /// What it has to say.
    pub events: UnboundedReceiver<FromShard>,
    /// Speaks in its name while it runs.
    pub voice: WeakUnboundedSender<FromShard>,
}

impl FakeShard {
    pub fn new(mut handle: impl FnMut(ToShard) -> bool + Send + 'static) -> FakeShard {
        let (tx, rx) = std_mpsc::channel();
        let (say, events) = unbounded_channel();
        let voice = say.downgrade();
        std::thread::spawn(move || {
            while let Ok(message) = rx.recv() {
                if !handle(message) {
                    break;
                }
            }
            drop(rx);
            drop(say); // last, as in a shard: who sees this can rely on the rest
        });
        FakeShard {
            post: Box::new(move |message| tx.send(message).is_ok()),
            events,
            voice,
        }
    }

    /// Answers status and commands for these groups: everything is done but what is refused by rule, a demotion.
    pub fn answering(groups: Vec<GroupStatus>) -> FakeShard {
        FakeShard::new(move |message| match message {
            ToShard::Status { done } => {
                let _ = done.send(groups.clone());
                true
            }
            ToShard::Command {
                group,
                command,
                done,
            } => {
                let _ = done.send(match command {
                    Command::Demote => Err(format!("{group} has attached clients")),
                    command => Ok(format!("{group}: {command:?}")),
                });
                true
            }
            ToShard::Shutdown => false,
            _ => true,
        })
    }

    /// Takes messages and never answers.
    pub fn silent() -> FakeShard {
        let mut kept = Vec::new();
        FakeShard::new(move |message| {
            let go_on = !matches!(message, ToShard::Shutdown);
            kept.push(message);
            go_on
        })
    }
}

/// Shards with one open group each: group 0 is `registry`, then `archive`, `tax`.
pub fn shards(fakes: Vec<FakeShard>) -> Shards {
    let names = ["registry", "archive", "tax"];
    let members = (0..fakes.len()).map(|i| member(names[i], i)).collect();
    let shards = Shards::new(
        "clichy",
        members,
        fakes.into_iter().map(|f| f.post).collect(),
        Vec::new(),
        Vec::new(),
    );
    for name in shards.members().keys() {
        shards.set_condition(name, Condition::Open);
    }
    shards
}

/// Longer than any test.
const LONG: Duration = Duration::from_hours(1);

mod activation;
mod clients;
mod operators;
mod peers;

/// Listeners of a site in this directory: NBD on a Unix socket and a free port, HTTP and link on free ports.
pub fn listeners(dir: &std::path::Path) -> Listeners {
    let unix = |name: &str| format!("unix:{}", dir.join(name).display());
    let bind = |address: &str| Listener::bind(address).unwrap();
    Listeners {
        nbd: vec![bind(&unix("nbd.sock")), bind("127.0.0.1:0")],
        link: Some(bind("127.0.0.1:0")),
        control: bind(&unix("control.sock")),
        http: Some(bind("127.0.0.1:0")),
    }
}

/// What a group says when its clients may attach.
pub fn open_exports(group: &str) -> Exports {
    Exports {
        open: Ok(()),
        volumes: vec![VolumeSpec {
            id: VolumeId(1),
            uuid: uuid::Uuid::from_u128(8),
            name: format!("{group}-data"),
            size: 10 << 30,
        }],
        commit: Lsn(98),
        passing: false,
    }
}
