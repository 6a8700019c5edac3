//! The bridge to the shards: which group lives where, messages to it, and what all of them say about themselves.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::lobby::lock;
use crate::base::{Lsn, Role};
use crate::engine::{Command, GroupConfig};
use crate::shard::ToShard;
use crate::status::{
    GroupState, GroupStatus, JournalStatus, PeerState, PeerStatus, Rates, ShardStatus, SiteStatus,
    StageLatencies, Totals, VolumeStatus,
};

/// How long a shard may take to say how it is.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// How long a command may take before its caller is told to look at the status instead.
const COMMAND_LIMIT: Duration = Duration::from_mins(1);

/// Sends a message to a shard; `false` if its thread is gone.
pub type Post = Box<dyn Fn(ToShard) -> bool + Send + Sync>;

/// Reads what a shard has counted.
pub type Tally = Box<dyn Fn() -> ShardStatus + Send + Sync>;

/// A group of this site and the shard it lives on.
pub struct Member {
    /// Its configuration.
    pub config: GroupConfig,
    /// Where its peers listen, `HOST:PORT`, by site.
    pub addresses: HashMap<String, String>,
    /// Names of its volumes in the configuration; a mirror may leave their sizes to its primary.
    pub exports: Vec<String>,
    /// Index of its shard.
    pub shard: usize,
}

/// All shards of this site. Clones are the same shards.
#[derive(Clone)]
pub struct Shards(Arc<Inner>);

struct Inner {
    site: String,
    started: Instant,
    started_unix_seconds: u64,
    stopping: AtomicBool,
    members: BTreeMap<String, Member>,
    posts: Vec<Post>,
    tallies: Vec<Tally>,
    /// What should be known of the site, found at the start.
    notes: Vec<String>,
    /// What is known here about groups that their shard does not speak for.
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Clone, Default)]
struct Known {
    condition: Condition,
    /// `None`: since the start.
    since_unix_seconds: Option<u64>,
    last: Option<(Instant, GroupStatus)>,
}

/// How a group is, seen from here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Condition {
    /// Its files are being created or recovered.
    #[default]
    Opening,
    /// Its shard speaks for it.
    Open,
    /// It does not run; why.
    Fenced(String),
}

/// What the shards say when asked how they are.
pub struct Answers {
    /// All groups, by name; those of silent shards as they were last known.
    pub groups: Vec<GroupStatus>,
    /// Shards that did not answer in time.
    pub silent: Vec<usize>,
}

/// Why a command was not done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// There is no such group; the sentence lists those there are.
    UnknownGroup(String),
    /// The rules forbid it, or the group cannot.
    ByRule(String),
    /// The shard did not answer.
    NoAnswer(String),
}

impl Shards {
    /// These groups on these shards.
    pub fn new(
        site: &str,
        members: Vec<Member>,
        posts: Vec<Post>,
        tallies: Vec<Tally>,
        notes: Vec<String>,
    ) -> Shards {
        assert!(members.iter().all(|m| m.shard < posts.len()));
        Shards(Arc::new(Inner {
            site: site.to_owned(),
            started: Instant::now(),
            started_unix_seconds: unix_seconds(),
            stopping: AtomicBool::new(false),
            members: members
                .into_iter()
                .map(|m| (m.config.group.clone(), m))
                .collect(),
            posts,
            tallies,
            notes,
            known: Mutex::default(),
        }))
    }

    /// Name of this site.
    pub fn site(&self) -> &str {
        &self.0.site
    }

    /// The groups, by name.
    pub fn members(&self) -> &BTreeMap<String, Member> {
        &self.0.members
    }

    /// Sends a message to the shard of a group. If its thread is gone the message is dropped, and with it any socket
    /// in it; the group is then known to be fenced.
    pub fn post(&self, group: &str, message: ToShard) {
        if let Some(member) = self.0.members.get(group) {
            self.post_to(member.shard, message);
        }
    }

    fn post_to(&self, shard: usize, message: ToShard) {
        if !self.0.posts[shard](message) {
            self.lost(shard);
        }
    }

    /// Asks every shard to stop its groups cleanly.
    pub fn shut_down(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        for post in &self.0.posts {
            post(ToShard::Shutdown); // one that is gone has nothing left to stop
        }
    }

    /// Whether [`Shards::shut_down`] was called.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Relaxed)
    }

    /// Notes that the thread of a shard is gone.
    pub fn lost(&self, shard: usize) {
        if self.is_stopping() {
            return;
        }
        for (name, member) in &self.0.members {
            let condition = self.condition(name);
            if member.shard == shard && !matches!(condition, Condition::Fenced(_)) {
                let why = format!("its shard {shard} ended unexpectedly; restart the daemon");
                tracing::error!(group = name, "fenced: {why}");
                self.set_condition(name, Condition::Fenced(why));
            }
        }
    }

    /// How a group is, seen from here.
    pub fn condition(&self, group: &str) -> Condition {
        let known = lock(&self.0.known);
        known
            .get(group)
            .map(|k| k.condition.clone())
            .unwrap_or_default()
    }

    /// Notes that a group is open, unless it was fenced meanwhile: the two news may overtake each other.
    pub fn opened(&self, group: &str) {
        if self.condition(group) == Condition::Opening {
            self.set_condition(group, Condition::Open);
        }
    }

    /// Notes how a group is.
    pub fn set_condition(&self, group: &str, condition: Condition) {
        let mut known = lock(&self.0.known);
        let known = known.entry(group.to_owned()).or_default();
        known.condition = condition;
        known.since_unix_seconds = Some(unix_seconds());
    }

    /// Runs a command of the operator.
    pub async fn command(&self, group: &str, command: Command) -> Result<String, Refused> {
        if !self.0.members.contains_key(group) {
            return Err(Refused::UnknownGroup(self.unknown(group)));
        }
        match self.condition(group) {
            Condition::Open => {}
            Condition::Opening => {
                return Err(Refused::ByRule(format!(
                    "{group} is being opened; try again"
                )));
            }
            Condition::Fenced(why) => {
                return Err(Refused::ByRule(format!("{group} is fenced: {why}")));
            }
        }
        let (done, answer) = oneshot::channel();
        let message = ToShard::Command {
            group: group.to_owned(),
            command,
            done,
        };
        self.post(group, message);
        match tokio::time::timeout(COMMAND_LIMIT, answer).await {
            Ok(Ok(result)) => result.map_err(Refused::ByRule),
            Ok(Err(_)) => Err(Refused::NoAnswer(format!(
                "{group} stopped before the command was done; see its status"
            ))),
            Err(_) => Err(Refused::NoAnswer(format!(
                "{group} has not finished the command after a minute; it goes on, see its status"
            ))),
        }
    }

    /// The sentence for a group that does not exist.
    pub fn unknown(&self, group: &str) -> String {
        let names: Vec<&str> = self.0.members.keys().map(String::as_str).collect();
        format!(
            "there is no group {group:?} at {}; there is {}",
            self.0.site,
            names.join(", ")
        )
    }

    /// The whole site.
    pub async fn status(&self) -> SiteStatus {
        SiteStatus {
            site: self.0.site.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.0.started.elapsed().as_secs(),
            groups: self.ask(STATUS_LIMIT).await.groups,
            shards: self.0.tallies.iter().map(|tally| tally()).collect(),
            notes: self.0.notes.clone(),
        }
    }

    /// Asks all shards how they are; all together have `limit`, at most two seconds.
    pub async fn ask(&self, limit: Duration) -> Answers {
        let deadline = tokio::time::Instant::now() + limit.min(STATUS_LIMIT);
        let questions: Vec<_> = (0..self.0.posts.len())
            .map(|shard| self.question(shard))
            .collect();
        let mut answered = HashMap::new();
        let mut silent = Vec::new();
        for (shard, question) in questions.into_iter().enumerate() {
            match tokio::time::timeout_at(deadline, question).await {
                Ok(Ok(groups)) => answered.extend(groups.into_iter().map(|g| (g.name.clone(), g))),
                Ok(Err(_)) | Err(_) => silent.push(shard),
            }
        }
        let groups = self
            .0
            .members
            .iter()
            .map(|(name, member)| match answered.remove(name) {
                Some(status) => self.remember(status),
                None => self.recall(member, silent.contains(&member.shard)),
            })
            .collect();
        Answers { groups, silent }
    }

    fn question(&self, shard: usize) -> oneshot::Receiver<Vec<GroupStatus>> {
        let (done, answer) = oneshot::channel();
        self.post_to(shard, ToShard::Status { done });
        answer
    }

    fn remember(&self, status: GroupStatus) -> GroupStatus {
        let mut known = lock(&self.0.known);
        known.entry(status.name.clone()).or_default().last = Some((Instant::now(), status.clone()));
        status
    }

    /// What can be said of a group that its shard said nothing about. Never healthy.
    fn recall(&self, member: &Member, silent: bool) -> GroupStatus {
        let Known {
            condition,
            since_unix_seconds,
            last,
        } = lock(&self.0.known)
            .get(&member.config.group)
            .cloned()
            .unwrap_or_default();
        let age = last.as_ref().map(|(when, _)| when.elapsed().as_secs());
        let mut status = last.map_or_else(|| blank(&member.config), |(_, status)| status);
        status.healthy = false;
        if condition != Condition::Open {
            status.state_since_unix_seconds =
                since_unix_seconds.unwrap_or(self.0.started_unix_seconds);
        }
        (status.state, status.reason) = match condition {
            Condition::Fenced(why) => (GroupState::Fenced, why),
            Condition::Opening => (
                GroupState::Starting,
                "the journal is being opened".to_owned(),
            ),
            Condition::Open => {
                let shard = member.shard;
                let what = if silent {
                    "does not answer"
                } else {
                    "does not speak of this group"
                };
                let reason = match age {
                    Some(age) => format!("shard {shard} {what}; all numbers are {age} s old"),
                    None => format!("shard {shard} {what}"),
                };
                (status.state, reason)
            }
        };
        status
    }
}

/// What the configuration alone can say about a group.
fn blank(config: &GroupConfig) -> GroupStatus {
    GroupStatus {
        name: config.group.clone(),
        id: uuid::Uuid::nil().to_string(),
        role: config.role,
        state: GroupState::Starting,
        reason: String::new(),
        state_since_unix_seconds: 0,
        healthy: false,
        ack: config.ack,
        on_peer_loss: config.on_peer_loss,
        epoch: None,
        tail_lsn: Lsn::ZERO,
        durable_lsn: Lsn::ZERO,
        commit_lsn: Lsn::ZERO,
        applied_lsn: Lsn::ZERO,
        checkpoint_lsn: Lsn::ZERO,
        inconsistent: false,
        mixture: None,
        inconsistent_until_lsn: None,
        lost_until_lsn: None,
        journal_damage: None,
        configured_role: None,
        journal: JournalStatus {
            capacity_bytes: config.journal_bytes,
            used_bytes: 0,
            first_lsn: Lsn::ZERO,
            writers_wait: false,
            held_by: String::new(),
        },
        alone: None,
        peers: config
            .peers
            .iter()
            .map(|p| blank_peer(p, config.role))
            .collect(),
        fork: None,
        undo: None,
        verify: None,
        last_verify: None,
        next_scrub_unix_seconds: None,
        unrepaired_bytes: 0,
        volumes: config.volumes.iter().map(blank_volume).collect(),
        clients: 0,
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

fn blank_peer(site: &str, role: Role) -> PeerStatus {
    PeerStatus {
        site: site.to_owned(),
        state: match role {
            Role::Primary => PeerState::Connecting,
            Role::Mirror => PeerState::Absent,
        },
        hindrance: None,
        detail: String::new(),
        received_lsn: Lsn::ZERO,
        durable_lsn: Lsn::ZERO,
        applied_lsn: Lsn::ZERO,
        needs_copy: false,
        lag_operations: 0,
        lag_bytes: 0,
        lag_seconds: 0.0,
        last_heard_seconds: None,
        copied_bytes: 0,
        copy_total_bytes: 0,
        copy_eta_seconds: None,
        space_left_bytes: None,
    }
}

fn blank_volume((name, size): &(String, u64)) -> VolumeStatus {
    VolumeStatus {
        name: name.clone(),
        uuid: uuid::Uuid::nil().to_string(),
        size_bytes: *size,
        clients: 0,
    }
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
