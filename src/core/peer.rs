//! What a primary knows of one peer.

use std::collections::VecDeque;
use std::time::Duration;

use uuid::Uuid;

use super::Link;
use crate::base::{Epoch, Hindrance, Lineage, Lsn, Refusal, Stance};

/// First and longest pause between attempts to connect.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(2);

/// A peer lost this often within [`FLAP_WINDOW`] is held down: it catches up, but is not waited for, for
/// [`FLAP_HOLD`] after its last loss.
const FLAPS: usize = 3;
const FLAP_WINDOW: Duration = Duration::from_secs(60);
const FLAP_HOLD: Duration = Duration::from_secs(10);

/// Where the link to a peer stands, from the side of the site that connects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerPhase {
    /// No link; the next attempt is due at this time (`None`: not now, or cut).
    Down {
        /// When to connect.
        retry_at: Option<Duration>,
    },
    /// Connecting since.
    Connecting {
        /// When it began.
        since: Duration,
    },
    /// Our greeting is sent.
    Greeting {
        /// The connection.
        link: Link,
        /// When it began.
        since: Duration,
    },
    /// The greetings led to an outcome that waits for the group to open its epoch.
    Agreed {
        /// The connection.
        link: Link,
        /// Its last LSN.
        tail: Lsn,
        /// It needs a copy first.
        copy: bool,
    },
    /// It has more of the same history; what is taken over is settled once all peers were asked.
    Longer {
        /// The connection.
        link: Link,
        /// Its last LSN.
        tail: Lsn,
        /// Its epochs.
        lineage: Box<Lineage>,
    },
    /// Our proposal is sent; the peer prepares.
    Proposed {
        /// The connection.
        link: Link,
        /// First LSN of the stream.
        from: Lsn,
        /// It is a copy.
        copy: bool,
        /// When it began.
        since: Duration,
    },
    /// The longer tail of this peer is being fetched.
    Fetching {
        /// The connection.
        link: Link,
    },
    /// Frames flow.
    Streaming {
        /// The connection.
        link: Link,
        /// The peer is not consistent: a copy is under way or not yet durable.
        copying: bool,
    },
    /// The role is being handed over on this link.
    Handing {
        /// The connection.
        link: Link,
        /// When it began.
        since: Duration,
    },
}

/// One peer.
#[derive(Debug)]
pub struct Peer {
    /// Its site's name.
    pub name: String,
    /// Where the link stands.
    pub phase: PeerPhase,
    /// Acknowledgements wait for it (also while it is silent and not yet declared dead).
    pub gated: bool,
    /// It is in sync: gated, streaming, confirmed, and on record.
    pub in_sync: bool,
    /// The operator cut the link.
    pub cut: bool,
    /// It was declared dead since it was last streaming.
    pub dead: bool,
    /// Why the last attempt to connect failed.
    pub trouble: Option<String>,
    /// How it left when it was primary and this site followed it.
    pub left: Option<Left>,
    /// Why the link is refused, if it is.
    pub refused: Option<String>,
    /// What the peer last said instead of accepting the link.
    pub(super) refusal: Option<Refusal>,
    /// The refusal is a fork or both sides being primary, for the group's state.
    pub conflict: Option<Conflict>,
    /// What it told of itself when the fork was found.
    pub fork: Option<Fork>,
    /// Validated in its memory up to here.
    pub received: Lsn,
    /// Durable in its journal up to here.
    pub durable: Lsn,
    /// In its homes up to here.
    pub applied: Lsn,
    /// Handed to its link up to here. For what waits here, on this site's own disk, the peer owes nothing.
    pub(super) sent: Lsn,
    /// What it can still promise for allocating writes, bytes.
    pub credit_bytes: u64,
    /// It must reach this LSN before it counts as in sync (set when it is gated).
    pub gate_lsn: Lsn,
    /// When it was last heard of.
    pub last_heard: Option<Duration>,
    /// Since when it owes progress: frames that were sent and not acknowledged, or a link.
    pub owes_since: Option<Duration>,
    /// A copy to it began, and it has not said since that it is consistent.
    pub needs_copy: bool,
    /// Catching up does not converge; writers should be slowed.
    pub cannot_keep_up: bool,
    /// Answered or failed at least once since the start.
    pub asked: bool,
    /// Since when it says that it follows another site.
    pub(super) follows_since: Option<Duration>,
    pub(super) last_ping: Duration,
    pub(super) recording: bool,
    pub(super) asking: bool,
    backoff: Duration,
    losses: VecDeque<Duration>,
    round: Option<Round>,
}

/// How a primary left a mirror, as far as it said so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Its operator cut the link.
    Cut,
    /// Its disk failed.
    Fenced,
    /// It gave up the role; nobody is primary.
    Demoted,
    /// Only for now, since this time: the role changes hands, or it is there again. Whoever is primary is about to connect.
    ForNow(Duration),
}

impl Left {
    /// What a site says when an operator cuts the link.
    pub(super) const CUT: &str = "the operator cut the link";
    /// What a site says when it hands the role over.
    pub(super) const SWITCHOVER: &str = "switchover";
    /// What a site says when it gives up the role.
    pub(super) const DEMOTED: &str = "demoted";

    /// What a site whose disk failed says.
    pub(super) fn fenced(site: &str, why: &str) -> String {
        format!("{site} is fenced: {why}")
    }

    /// What the goodbye of this primary says of it. For advice only: no rule follows from it.
    pub(super) fn by(site: &str, goodbye: &str, now: Duration) -> Option<Left> {
        match goodbye {
            Left::SWITCHOVER => Some(Left::ForNow(now)),
            Left::CUT => Some(Left::Cut),
            Left::DEMOTED => Some(Left::Demoted),
            text if text.starts_with(&Left::fenced(site, "")) => Some(Left::Fenced),
            _ => None,
        }
    }
}

/// Why a link cannot be, beyond what the sites can settle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conflict {
    /// Both serve.
    BothPrimary,
    /// Both went on.
    Forked,
}

/// Two histories that went on separately.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fork {
    /// The last LSN that both share.
    pub shared: Lsn,
    /// The peer's last LSN.
    pub their_tail: Lsn,
    /// The peer had committed up to here.
    pub their_commit: Lsn,
    /// The peer's last epoch.
    pub their_epoch: Option<Epoch>,
    /// Epochs that the peer opened since. Nobody wrote the operations that open them.
    pub their_epochs: u64,
    /// Oldest LSN that the peer's journal still held.
    pub their_journal_first: Lsn,
    /// What the peer was when they last met.
    pub their_stance: Stance,
    /// What names the peer's side in an order to discard it.
    pub their_id: Uuid,
    /// The peer's content is a mixture, which pretends to continue the history here.
    pub their_mixture: bool,
    /// The same the other way round.
    pub my_mixture: bool,
    /// An operator lets this site serve although the peer was silent; until it is heard of again.
    pub past: bool,
}

impl Fork {
    /// What stays the same as long as nobody goes on: worth a write of the record when it changes.
    pub(super) fn is_news_to(&self, known: &Fork) -> bool {
        (self.shared, self.their_stance, self.their_id, self.past)
            != (known.shared, known.their_stance, known.their_id, known.past)
    }
}

/// One round of catching up: the peer must reach what was the tail when it began.
#[derive(Debug)]
struct Round {
    target: Lsn,
    began: Duration,
    last: Option<Duration>,
    stalled: u32,
}

impl Peer {
    pub(super) fn new(name: String) -> Peer {
        Peer {
            name,
            phase: PeerPhase::Down { retry_at: None },
            gated: false,
            in_sync: false,
            cut: false,
            dead: false,
            trouble: None,
            left: None,
            refused: None,
            refusal: None,
            conflict: None,
            fork: None,
            received: Lsn::ZERO,
            durable: Lsn::ZERO,
            applied: Lsn::ZERO,
            sent: Lsn::ZERO,
            credit_bytes: u64::MAX,
            gate_lsn: Lsn::ZERO,
            last_heard: None,
            owes_since: None,
            needs_copy: false,
            cannot_keep_up: false,
            asked: false,
            follows_since: None,
            last_ping: Duration::ZERO,
            recording: false,
            asking: false,
            backoff: BACKOFF_FIRST,
            losses: VecDeque::new(),
            round: None,
        }
    }

    /// Its connection, if there is one.
    pub fn link(&self) -> Option<Link> {
        match self.phase {
            PeerPhase::Down { .. } | PeerPhase::Connecting { .. } => None,
            PeerPhase::Greeting { link, .. }
            | PeerPhase::Agreed { link, .. }
            | PeerPhase::Longer { link, .. }
            | PeerPhase::Proposed { link, .. }
            | PeerPhase::Fetching { link }
            | PeerPhase::Streaming { link, .. }
            | PeerPhase::Handing { link, .. } => Some(link),
        }
    }

    /// It answers that it follows another primary.
    pub fn follows_another(&self) -> bool {
        self.follows_since.is_some()
    }

    /// What stands between this site, which is or wants to be primary, and the peer; nothing if it is in sync.
    pub fn hindrance(&self) -> Option<Hindrance> {
        if self.in_sync {
            return None;
        }
        Some(match (self.conflict, self.refusal) {
            _ if self.cut => Hindrance::CutHere,
            (Some(Conflict::BothPrimary), _) => Hindrance::BothPrimary,
            (Some(Conflict::Forked), _) => Hindrance::Forked,
            _ if self.copying() => Hindrance::Copying,
            _ if self.streaming_link().is_some() => Hindrance::CatchingUp,
            (None, Some(Refusal::Cut)) => Hindrance::CutThere,
            (None, Some(Refusal::Fenced)) => Hindrance::Fenced,
            (None, Some(Refusal::NoSpace)) => Hindrance::NoSpace,
            _ if self.refused.is_some() => Hindrance::Refused,
            (None, None) if self.link().is_some() && !self.is_being_asked() => Hindrance::Settling,
            _ if self.follows_another() => Hindrance::FollowsAnother,
            _ if !self.dead && self.trouble.is_none() => Hindrance::Connecting,
            _ => Hindrance::Unreachable,
        })
    }

    /// It has not said anything on this connection. The machine of a process that hangs accepts connections, too.
    fn is_being_asked(&self) -> bool {
        matches!(
            self.phase,
            PeerPhase::Greeting { .. } | PeerPhase::Handing { .. }
        )
    }

    /// The connection on which frames flow.
    pub fn streaming_link(&self) -> Option<Link> {
        match self.phase {
            PeerPhase::Streaming { link, .. } => Some(link),
            _ => None,
        }
    }

    /// Whether a copy to it is under way.
    pub fn copying(&self) -> bool {
        matches!(
            self.phase,
            PeerPhase::Streaming { copying: true, .. } | PeerPhase::Proposed { copy: true, .. }
        )
    }

    /// From which LSN on the journal should be kept for it: what it has confirmed durable, plus one.
    pub fn holds_from(&self) -> Option<Lsn> {
        let known = self.durable > Lsn::ZERO || self.link().is_some();
        known.then(|| self.durable.next())
    }

    /// The link is gone: try again soon.
    pub(super) fn link_lost(&mut self, now: Duration) {
        let retry_at = if self.cut {
            None
        } else {
            Some(now + self.backoff)
        };
        self.backoff = (self.backoff * 2).min(BACKOFF_LONGEST);
        self.phase = PeerPhase::Down { retry_at };
        self.in_sync = false;
        self.recording = false;
        self.cannot_keep_up = false;
        self.round = None;
        if self.gated && self.owes_since.is_none() {
            self.owes_since = Some(now);
        }
    }

    /// Frames flow: the next loss starts with a short pause again.
    pub(super) fn stream_began(&mut self, now: Duration) {
        self.backoff = BACKOFF_FIRST;
        self.trouble = None;
        self.refused = None;
        self.conflict = None;
        self.fork = None;
        self.dead = false;
        self.asked = true;
        self.round = None;
        self.owes_since = None;
        self.last_heard = Some(now);
        self.last_ping = now;
    }

    /// It is waited for from here on, whatever was known of it under an earlier history; `has` is what it holds for sure.
    pub(super) fn wait_for(&mut self, has: Lsn, gate_lsn: Lsn, now: Duration) {
        self.gated = true;
        self.dead = false;
        (self.left, self.trouble) = (None, None);
        self.gate_lsn = gate_lsn;
        (self.received, self.durable, self.applied) = (has, has, Lsn::ZERO);
        self.owes_since = Some(now);
    }

    /// The time for what it owes begins anew: it made progress, or is waited for from now on.
    pub(super) fn owes_from(&mut self, now: Duration) {
        self.owes_since = (self.durable < self.sent).then_some(now);
    }

    /// It is waited for no more.
    pub(super) fn let_go(&mut self) {
        self.gated = false;
        self.owes_since = None;
    }

    /// Connect again after the longest pause, unless the link was cut by hand.
    pub(super) fn retry_later(&mut self, now: Duration) {
        self.backoff = BACKOFF_LONGEST;
        if let PeerPhase::Down { retry_at: Some(at) } = &mut self.phase {
            *at = now + BACKOFF_LONGEST;
        }
    }

    /// Connect again at once.
    pub(super) fn retry_now(&mut self, now: Duration) {
        self.backoff = BACKOFF_FIRST;
        self.phase = PeerPhase::Down {
            retry_at: Some(now),
        };
    }

    /// Counts a loss, for flapping.
    pub(super) fn note_loss(&mut self, now: Duration) {
        self.losses.push_back(now);
        while self
            .losses
            .front()
            .is_some_and(|&at| at + FLAP_WINDOW < now)
        {
            self.losses.pop_front();
        }
    }

    /// Until when it is not to be waited for, because it keeps getting lost.
    pub(super) fn held_down_until(&self) -> Option<Duration> {
        (self.losses.len() >= FLAPS).then(|| *self.losses.back().expect("not empty") + FLAP_HOLD)
    }

    /// Progress of catching up: whether the peer is near enough for writers to wait for it.
    ///
    /// Works in rounds: a round ends when the peer has what was the tail at its beginning. Short rounds mean a short
    /// wait. If rounds do not get shorter, waiting is what will make them so, provided the wait is bearable; else the
    /// writers must be slowed first.
    pub(super) fn near_enough(&mut self, tail: Lsn, now: Duration, timeout: Duration) -> bool {
        let round = self.round.get_or_insert(Round {
            target: tail,
            began: now,
            last: None,
            stalled: 0,
        });
        if self.durable < round.target {
            return false;
        }
        let took = now.saturating_sub(round.began);
        let stalled = if round.last.is_some_and(|last| took + took / 8 >= last) {
            round.stalled + 1
        } else {
            0
        };
        // Who has everything is near, however long the round was: without writes no shorter one would follow.
        let near =
            self.durable >= tail || took <= timeout / 50 || (stalled >= 2 && took <= timeout / 4);
        self.cannot_keep_up = stalled >= 2 && !near;
        self.round = Some(Round {
            target: tail,
            began: now,
            last: Some(took),
            stalled,
        });
        near
    }
}
