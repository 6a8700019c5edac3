//! What operators and programs are told: the schema of `status --json` and of the control API. Stable: fields are
//! added, never renamed. Numbers end in their unit.

use serde::{Deserialize, Serialize};

use crate::base::{AckMode, Hindrance, Lsn, OnPeerLoss, Role};

/// One site.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SiteStatus {
    /// Name of the site.
    pub site: String,
    /// Version of the program.
    pub version: String,
    /// Since the daemon started.
    pub uptime_seconds: u64,
    /// Its groups, by name.
    pub groups: Vec<GroupStatus>,
    /// What its shards have done, in their order.
    #[serde(default)]
    pub shards: Vec<ShardStatus>,
    /// What should be known of the site besides: sentences for people.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One shard, a thread that runs groups: totals since the daemon started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Requests of NBD clients that it took.
    pub requests: u64,
    /// Calls of `io_uring_enter`.
    pub ring_enters: u64,
    /// Of those, calls that waited.
    pub ring_waits: u64,
    /// Operations that the kernel completed for it.
    pub ring_operations: u64,
}

/// How a group is, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupState {
    /// Primary by its record, talking to its peers before it may serve.
    Starting,
    /// Primary by its record, but only a peer or the operator can say whether it still may serve.
    WaitingForPeer,
    /// Primary; every peer is in sync (or none is configured).
    Serving,
    /// Primary; acknowledges without a peer that the rule would need.
    Alone,
    /// Primary; a peer is silent and not yet declared dead: acknowledgements wait.
    Suspect,
    /// Primary; acknowledges nothing until the peer is back (`on_peer_loss = "freeze"`).
    Frozen,
    /// Primary; finishing what is in flight before it hands over or gives up the role.
    Draining,
    /// Handed the role to the peer, which has not confirmed yet.
    HandedOver,
    /// Mirror; follows its primary, consistent.
    Following,
    /// Mirror; consistent, no primary is connected.
    Disconnected,
    /// Mirror; in the middle of a copy, usable only as it was before, if that was kept (`undo`).
    Inconsistent,
    /// Both sides are primary; the link is refused until an operator demotes one.
    BothPrimary,
    /// Both sides went on after their last common LSN; an operator must choose.
    Forked,
    /// A disk of this site failed for this group; it has stopped acknowledging.
    Fenced,
}

/// One consistency group at one site.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Name of the group.
    pub name: String,
    /// Identity of the group; nil before a new mirror has met its primary.
    pub id: String,
    /// Role of this site.
    pub role: Role,
    /// In one word.
    pub state: GroupState,
    /// In one sentence: why, and what it waits for.
    pub reason: String,
    /// Since when, seconds since the Unix epoch.
    pub state_since_unix_seconds: u64,
    /// Nothing is missing, no verification has found a difference that is not mended, and writes have room: exit code 0 of
    /// `doublure status`.
    pub healthy: bool,
    /// Acknowledgement mode.
    pub ack: AckMode,
    /// What happens when the peer is lost.
    pub on_peer_loss: OnPeerLoss,
    /// Current epoch, if any.
    pub epoch: Option<EpochStatus>,
    /// Last LSN in the journal or on its way there.
    pub tail_lsn: Lsn,
    /// Durable here up to this LSN.
    pub durable_lsn: Lsn,
    /// Committed up to this LSN.
    pub commit_lsn: Lsn,
    /// In the homes up to this LSN.
    pub applied_lsn: Lsn,
    /// Durable in the homes up to this LSN.
    pub checkpoint_lsn: Lsn,
    /// The homes here are a mixture of old and new: a mirror in a copy, which is not usable, or a site that was promoted in one
    /// (`mixture`).
    #[serde(default)]
    pub inconsistent: bool,
    /// The same: consistent once this LSN is durable here; `None` while that is not known.
    pub inconsistent_until_lsn: Option<Lsn>,
    /// This site was promoted in the middle of a copy, and neither a copy has superseded its content nor does its peer follow.
    #[serde(default)]
    pub mixture: Option<MixtureStatus>,
    /// This site's disk lost what it once held, up to this LSN.
    #[serde(default)]
    pub lost_until_lsn: Option<Lsn>,
    /// Where the journal is damaged, if that is how it was lost: a clause for people.
    #[serde(default)]
    pub journal_damage: Option<String>,
    /// The role in the configuration, which counts at the first start only.
    #[serde(default)]
    pub configured_role: Option<Role>,
    /// The journal.
    pub journal: JournalStatus,
    /// The record of acknowledging without a peer, if it stands.
    pub alone: Option<AloneStatus>,
    /// The peers.
    pub peers: Vec<PeerStatus>,
    /// Two histories that went on separately, while nobody has decided which counts.
    #[serde(default)]
    pub fork: Option<ForkStatus>,
    /// Mirror in a copy: what it held before, which it can go back to until the copy is complete.
    #[serde(default)]
    pub undo: Option<UndoStatus>,
    /// The last verification since the daemon started, or the one under way.
    /// The verification under way, or else the last one.
    #[serde(default)]
    pub verify: Option<VerifyStatus>,
    /// The last verification that came to its end.
    #[serde(default)]
    pub last_verify: Option<VerifyStatus>,
    /// When the next one begins by itself; `None` if `scrub` is off.
    #[serde(default)]
    pub next_scrub_unix_seconds: Option<u64>,
    /// What verifications found to differ and nobody mended.
    #[serde(default)]
    pub unrepaired_bytes: u64,
    /// The volumes.
    pub volumes: Vec<VolumeStatus>,
    /// Attached NBD clients.
    pub clients: u64,
    /// Requests received and not yet answered.
    pub in_flight_requests: u64,
    /// Bytes of operations not yet in the homes.
    pub unapplied_bytes: u64,
    /// For so long, in seconds, a write to a home has been under way: its disk hangs, or is much too slow. `None` below five.
    #[serde(default)]
    pub home_hangs_seconds: Option<f64>,
    /// The file system of a home, here or at a mirror in sync, has no room: writes are refused, or wait in the journal.
    #[serde(default)]
    pub no_space: bool,
    /// The sites where that is so.
    #[serde(default)]
    pub full_sites: Vec<String>,
    /// Since when.
    #[serde(default)]
    pub full_since_unix_seconds: Option<u64>,
    /// Length of the write that was refused last for lack of space; `None` if none was.
    #[serde(default)]
    pub space_needed_bytes: Option<u64>,
    /// What may still be promised to writers here; `None` if that is not known, or without bounds (block devices).
    #[serde(default)]
    pub space_left_bytes: Option<u64>,
    /// Totals since the daemon started.
    pub totals: Totals,
    /// Averages over the last seconds.
    pub rates: Rates,
    /// Latencies over the last seconds, by stage.
    pub latency: StageLatencies,
    /// Where the state on disk and the configuration disagree (the disk wins).
    pub disagreements: Vec<String>,
}

/// An epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EpochStatus {
    /// Counts up.
    pub number: u64,
    /// Unique.
    pub id: String,
    /// Who wrote it.
    pub site: String,
    /// Where it begins.
    pub first_lsn: Lsn,
}

/// The journal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Size.
    pub capacity_bytes: u64,
    /// In use.
    pub used_bytes: u64,
    /// Oldest LSN it holds.
    pub first_lsn: Lsn,
    /// Writers wait for space.
    pub writers_wait: bool,
    /// What keeps its oldest part: `checkpoint`, a peer's name, or `verify` while proof is looked for in it.
    pub held_by: String,
}

/// Acknowledging without a peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AloneStatus {
    /// Without whom.
    pub peer: String,
    /// Since when.
    pub since_unix_seconds: u64,
    /// From this LSN on: the first that the peer has not confirmed and that a client asked for.
    pub from_lsn: Lsn,
    /// Operations acknowledged here that are not known to be on stable storage at the peer.
    pub operations: u64,
}

/// How a peer is, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Consistent, streaming, and acknowledgements wait for it.
    InSync,
    /// Receives the journal it missed.
    CatchingUp,
    /// Receives a copy of what may differ.
    Copying,
    /// Silent, not yet declared dead.
    Suspect,
    /// No link; connecting again and again.
    Connecting,
    /// The operator cut the link.
    CutByOperator,
    /// The link is refused; see the detail.
    Refused,
    /// Seen from a mirror: the primary is connected.
    Connected,
    /// Seen from a mirror: no primary is connected.
    Absent,
}

/// A peer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its site's name.
    pub site: String,
    /// How it is.
    pub state: PeerState,
    /// What stands between it and being in sync; nothing if it is.
    #[serde(default)]
    pub hindrance: Option<Hindrance>,
    /// Why, where that needs saying; empty otherwise.
    pub detail: String,
    /// It has received up to this LSN; 0, here and in the next two, where it has told nothing, as a mirror is not told.
    pub received_lsn: Lsn,
    /// Durable there up to this LSN.
    pub durable_lsn: Lsn,
    /// In its homes up to this LSN.
    pub applied_lsn: Lsn,
    /// A copy to it is not complete, whether one is under way or was cut off: it is not usable, and what follows counts the
    /// journal only.
    #[serde(default)]
    pub needs_copy: bool,
    /// Operations it lacks.
    pub lag_operations: u64,
    /// Journal bytes it lacks.
    pub lag_bytes: u64,
    /// How far it is behind in time.
    pub lag_seconds: f64,
    /// Seconds since it was last heard of; `None` if never.
    pub last_heard_seconds: Option<f64>,
    /// Copy: bytes done, which are compared, and copied where they differ. What is the same, such as holes, goes fast.
    pub copied_bytes: u64,
    /// Copy: bytes in all (0 if none is running).
    pub copy_total_bytes: u64,
    /// Copy: how long it will go on at the rate it had so far.
    #[serde(default)]
    pub copy_eta_seconds: Option<f64>,
    /// What may still be promised to writers there; `None` if that is not known, or without bounds.
    #[serde(default)]
    pub space_left_bytes: Option<u64>,
}

/// The content is a mixture of old and new.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MixtureStatus {
    /// The site was promoted at this LSN.
    pub since_lsn: Lsn,
    /// When, seconds since the Unix epoch.
    pub since_unix_seconds: u64,
}

/// What a mirror in the middle of a copy can go back to.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct UndoStatus {
    /// The history it held ends here.
    pub lsn: Lsn,
    /// When that was written, seconds since the Unix epoch.
    pub unix_seconds: u64,
    /// Bytes of the file that holds the old content; clones share their blocks and are not counted.
    pub file_bytes: u64,
}

/// A fork: both sites went on after the last LSN they share.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForkStatus {
    /// The last LSN that both share.
    pub shared_lsn: Lsn,
    /// What each wrote since; this site first.
    pub sides: Vec<ForkSide>,
    /// The site whose side is given up, if that was ordered: it waits for the link.
    #[serde(default)]
    pub discarding: Option<String>,
}

/// One side of a fork.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForkSide {
    /// The site.
    pub site: String,
    /// First LSN that the other does not have.
    pub first_lsn: Lsn,
    /// Last LSN; below the first if it wrote nothing.
    pub last_lsn: Lsn,
    /// How many operations clients asked for.
    pub operations: u64,
    /// Of those, how many may have been acknowledged: all, where the site wrote alone; else what it knew to be committed.
    pub acknowledged_operations: u64,
    /// When its last epoch began.
    pub since_unix_seconds: Option<u64>,
    /// When it last wrote; only known of this site, and since its daemon started.
    #[serde(default)]
    pub last_write_unix_seconds: Option<u64>,
    /// Bytes of the chunks they touch, at most: a stretch of journal that began before the fork brings what was written then,
    /// too. Only known of this site, and as far as its journal reaches back.
    pub touched_bytes: Option<u64>,
    /// From this LSN on those are known; `None` of the other site. Above the first LSN, what is before is not known any more.
    #[serde(default)]
    pub touched_from_lsn: Option<Lsn>,
    /// Where those chunks lie, the first of them.
    #[serde(default)]
    pub touched: Vec<TouchedRange>,
    /// The site is primary by its record, as of when the two last met.
    #[serde(default)]
    pub primary: bool,
    /// It serves clients, likewise.
    #[serde(default)]
    pub serving: bool,
    /// Its content is a mixture of old and new, which pretends to continue the history of the other, a whole copy.
    #[serde(default)]
    pub mixture: bool,
    /// What would be kept if it were given up begins here, because its journal does; `None` if that holds nothing of it.
    #[serde(default)]
    pub kept_from_lsn: Option<Lsn>,
}

/// A range that was written to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TouchedRange {
    /// The volume.
    pub volume: String,
    /// Where it begins, bytes.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

/// How a verification is, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyState {
    /// Under way.
    Running,
    /// Both sites hold the same.
    Equal,
    /// They do not.
    Differs,
    /// They did not, and do now.
    Repaired,
    /// The link was lost before the end; it goes on by itself when the sites are in sync.
    Interrupted,
}

/// A verification of a mirror against its primary.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VerifyStatus {
    /// How it is.
    pub state: VerifyState,
    /// The site that compares.
    #[serde(default)]
    pub primary: String,
    /// The mirror.
    pub peer: String,
    /// What is shown to be wrong is mended.
    pub repair: bool,
    /// The site whose content is kept where nothing shows what is right.
    #[serde(default)]
    pub keep: Option<String>,
    /// It began by itself, and takes its time.
    #[serde(default)]
    pub scrub: bool,
    /// When it began.
    pub began_unix_seconds: u64,
    /// When it ended, if it has.
    pub ended_unix_seconds: Option<u64>,
    /// The LSN when it ended: every chunk was compared as of some LSN before.
    pub lsn: Option<Lsn>,
    /// How long it took, or has taken so far.
    pub seconds: f64,
    /// How long it will go on at the present rate.
    #[serde(default)]
    pub eta_seconds: Option<f64>,
    /// Compared so far.
    pub done_bytes: u64,
    /// To be compared in all.
    pub total_bytes: u64,
    /// Not the same on both sites, in blocks of 4 KiB.
    pub differing_bytes: u64,
    /// Of those, shown to be wrong at the primary, or unreadable there: who read them there got wrong content.
    #[serde(default)]
    pub wrong_on_primary_bytes: u64,
    /// Of those, shown to be wrong at the mirror, or unreadable there.
    #[serde(default)]
    pub wrong_on_peer_bytes: u64,
    /// Of those, where nothing shows which site is wrong.
    #[serde(default)]
    pub undecided_bytes: u64,
    /// Of those, what a site could not read.
    #[serde(default)]
    pub unreadable_bytes: u64,
    /// Of those, the same again.
    #[serde(default)]
    pub repaired_bytes: u64,
    /// The first of them.
    pub differing: Vec<DifferingRange>,
}

/// A range in which the sites differed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DifferingRange {
    /// The volume.
    pub volume: String,
    /// Where it begins, bytes.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// The sites whose content is wrong; empty while nothing shows which is.
    #[serde(default)]
    pub wrong_on: Vec<String>,
    /// Of those, the ones that cannot read it.
    #[serde(default)]
    pub unreadable_on: Vec<String>,
    /// Both sites hold the same since.
    #[serde(default)]
    pub repaired: bool,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Export name.
    pub name: String,
    /// Identity.
    pub uuid: String,
    /// Size.
    pub size_bytes: u64,
    /// Attached clients.
    pub clients: u64,
}

/// Counters since the daemon started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Read requests answered.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write, trim and write-zeroes requests acknowledged.
    pub writes: u64,
    /// Bytes of write requests acknowledged.
    pub write_bytes: u64,
    /// Flush requests acknowledged.
    pub flushes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Of those, writes refused because the homes' file systems have no space left.
    #[serde(default)]
    pub refused_no_space: u64,
    /// Frames written to the journal.
    pub frames: u64,
    /// Bytes written to the journal.
    pub journal_bytes: u64,
    /// Frame bytes sent to peers.
    pub link_bytes: u64,
    /// Bytes written to the homes.
    pub home_bytes: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
}

/// Averages over the last seconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Over how many seconds.
    pub window_seconds: f64,
    /// Read requests.
    pub reads_per_second: f64,
    /// Write requests.
    pub writes_per_second: f64,
    /// Read bytes.
    pub read_bytes_per_second: f64,
    /// Written bytes.
    pub write_bytes_per_second: f64,
}

/// Latencies over the last seconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StageLatencies {
    /// From a write's arrival to its reply.
    pub write: Latency,
    /// From a read's arrival to its reply.
    pub read: Latency,
    /// A frame's write to the local journal.
    pub journal: Latency,
    /// From a frame's sending to the peer's acknowledgement.
    pub link: Latency,
    /// From commit to the home.
    pub apply: Latency,
}

/// A distribution, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Samples.
    pub count: u64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Largest.
    pub max_us: f64,
}

/// Body of a command sent to the control API: `POST /v1/groups/NAME/COMMAND`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandRequest {
    /// What a promotion overrides: `peer-unreachable`, `inconsistent`, `behind`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub force: Vec<String>,
    /// `resolve`: the site that gives up what it wrote since the fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<String>,
    /// `verify`: mend what is shown to be wrong.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repair: bool,
    /// `verify`: the site whose content is kept where nothing shows what is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
    /// `resize`: the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// `resize`: its new size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// Answer to a command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommandAnswer {
    /// Whether it was done.
    pub ok: bool,
    /// For people.
    pub message: String,
}
