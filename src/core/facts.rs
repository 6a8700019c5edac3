//! What a site must remember across a crash to keep the promise. Saved as a whole, before what depends on it is done.

use uuid::Uuid;

use super::peer::Fork;
use crate::base::{AckMode, Lineage, Lsn, Role};

/// The record of acknowledging without a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alone {
    /// Without whom.
    pub peer: String,
    /// Since when, nanoseconds since the Unix epoch.
    pub since_ns: u64,
    /// From this LSN on: the first that it had not confirmed then. What was in flight counts, it is acknowledged without it.
    pub from_lsn: Lsn,
}

/// The record of having handed the role over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handed {
    /// To whom.
    pub to: String,
    /// In this epoch.
    pub epoch_id: Uuid,
    /// At this LSN.
    pub lsn: Lsn,
}

/// The record of having been promoted in the middle of a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mixture {
    /// Names the fork that this is, until an epoch tells of it.
    pub id: Uuid,
    /// At this LSN.
    pub lsn: Lsn,
    /// Since when, nanoseconds since the Unix epoch.
    pub since_ns: u64,
}

/// The durable facts of a group at a site, except for what journal and homes say by themselves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Identity of the group; nil until a new mirror has met its primary.
    pub group_id: Uuid,
    /// Role of this site.
    pub role: Role,
    /// Mode of acknowledgement.
    pub ack: AckMode,
    /// The epochs. May name one more than the journal holds operations of.
    pub lineage: Lineage,
    /// Per peer, set before the first acknowledgement without it, cleared before it counts as in sync.
    pub alone: Vec<Alone>,
    /// Set before the role is handed over, cleared once it was taken.
    pub handed: Option<Handed>,
    /// Highest LSN that this site was told it held durable. Above the journal's tail after a disk lost history.
    pub floor: Lsn,
    /// This site was in sync with a peer once: from then on `freeze` binds.
    pub ever_in_sync: bool,
    /// The homes are no prefix of any history until this LSN is durable and applied; `u64::MAX` while unknown.
    pub inconsistent_until: Option<Lsn>,
    /// Per peer: highest LSN it confirmed durable.
    pub told_durable: Vec<(String, Lsn)>,
    /// Last epoch of a fork that an operator gave up, here or at the peer; nil if none.
    pub given_up: Uuid,
    /// When that was ordered, nanoseconds since the Unix epoch.
    pub given_up_ns: u64,
    /// Per peer: the fork for which a link with it was refused, until the two go together again. Whoever has one on record
    /// does not begin to serve by itself.
    pub forks: Vec<(String, Fork)>,
    /// The homes here are a mixture. Until a copy supersedes it, or a peer follows after all.
    pub mixture: Option<Mixture>,
    /// No operation in the journal here after this LSN does anything but open an epoch: nobody waited for those. What is not known
    /// counts as written, so that this is never below the truth.
    pub written: Lsn,
    /// Something was acknowledged, or is about to be, for which not every peer was waited. On record before the first of it is:
    /// what the disk loses of it afterwards must not look as if it had never been.
    pub wrote_alone: bool,
}

impl Facts {
    /// A site that has no history yet.
    pub fn new(group_id: Uuid, role: Role, ack: AckMode) -> Facts {
        Facts {
            group_id,
            role,
            ack,
            lineage: Lineage::default(),
            alone: Vec::new(),
            handed: None,
            floor: Lsn::ZERO,
            ever_in_sync: false,
            inconsistent_until: None,
            told_durable: Vec::new(),
            given_up: Uuid::nil(),
            given_up_ns: 0,
            forks: Vec::new(),
            mixture: None,
            written: Lsn::ZERO,
            wrote_alone: false,
        }
    }

    /// A mixture of which no epoch tells yet: nil if there is none.
    pub fn untold_mixture(&self) -> Uuid {
        let told = |mixture: &&Mixture| {
            let epoch = self.lineage.last_mixture();
            epoch.is_none_or(|e| e.first_lsn <= mixture.lsn)
        };
        let untold = self.mixture.as_ref().filter(told);
        untold.map_or(Uuid::nil(), |m| m.id)
    }

    /// What names this side in an order to discard it.
    pub fn side_id(&self) -> Option<Uuid> {
        let untold = Some(self.untold_mixture()).filter(|id| !id.is_nil());
        untold.or(self.lineage.last().map(|e| e.id))
    }

    /// Whether this site acknowledges, or is about to, without this peer.
    pub fn without(&self, peer: &str) -> bool {
        self.alone.iter().any(|a| a.peer == peer)
    }

    /// From here on this site acknowledges without this peer.
    pub fn go_without(&mut self, alone: Alone) {
        self.alone.retain(|a| a.peer != alone.peer);
        self.alone.push(alone);
    }

    /// Highest LSN that this peer confirmed durable.
    pub fn told_durable(&self, peer: &str) -> Lsn {
        self.told_durable
            .iter()
            .find(|(name, _)| name == peer)
            .map_or(Lsn::ZERO, |&(_, lsn)| lsn)
    }

    /// A site that is not among these, confirmed what was acknowledged, and was not gone without: it may be primary by now.
    pub fn former_peer(&self, configured: &[String]) -> Option<&str> {
        self.told_durable
            .iter()
            .map(|(name, _)| name.as_str())
            .find(|name| !configured.iter().any(|c| c == name) && !self.without(name))
    }

    /// Nobody but these counts any more.
    pub fn forget_all_but(&mut self, configured: &[String]) {
        self.told_durable
            .retain(|(name, _)| configured.contains(name));
    }

    /// Notes what a peer confirmed. Saved with the next save; no save is owed for it alone.
    pub fn note_told_durable(&mut self, peer: &str, lsn: Lsn) {
        match self.told_durable.iter_mut().find(|(name, _)| name == peer) {
            Some((_, known)) => *known = lsn,
            None => self.told_durable.push((peer.to_owned(), lsn)),
        }
    }
}
