//! Replies and reads that wait for a position in the history.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Action, Core, Mode, NEWS_DELAY};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{AckMode, Lsn, Message};

/// The caller's name for something that waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// How strong an acknowledgement is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strength {
    /// The group's acknowledgement rule.
    Commit,
    /// Committed, and on stable storage wherever the mode promises durability (flush, FUA).
    Durable,
}

/// What waits. Replies come in LSN order per strength, so that two queues do; reads do not.
#[derive(Debug, Default)]
pub(super) struct Acks {
    commit: VecDeque<(Lsn, Token)>,
    durable: VecDeque<(Lsn, Token)>,
    reads: BTreeMap<Lsn, Vec<Token>>,
    /// Commit LSN that mirrors were last told by a message of its own.
    told: Lsn,
    /// Commit LSN in the last frame.
    carried: Lsn,
    /// Since when there is more to tell them.
    news_since: Option<Duration>,
}

impl Acks {
    pub fn reply_when(&mut self, lsn: Lsn, strength: Strength, token: Token) {
        let queue = match strength {
            Strength::Commit => &mut self.commit,
            Strength::Durable => &mut self.durable,
        };
        debug_assert!(
            queue.back().is_none_or(|&(last, _)| last <= lsn),
            "acknowledgements out of LSN order"
        );
        queue.push_back((lsn, token));
    }

    pub fn read_when(&mut self, lsn: Lsn, token: Token) {
        self.reads.entry(lsn).or_default().push(token);
    }

    /// Forgets all that wait.
    pub fn clear(&mut self) {
        self.commit.clear();
        self.durable.clear();
        self.reads.clear();
    }

    /// A mirror has connected: it was told nothing yet.
    pub fn forget_told(&mut self) {
        (self.told, self.carried) = (Lsn::ZERO, Lsn::ZERO);
    }

    fn release(&mut self, commit: Lsn, durable: Lsn, actions: &mut Vec<Action>) {
        for (queue, reached) in [(&mut self.commit, commit), (&mut self.durable, durable)] {
            while queue.front().is_some_and(|&(lsn, _)| lsn <= reached) {
                let (_, token) = queue.pop_front().expect("just seen");
                actions.push(Action::Reply(token));
            }
        }
        while let Some(entry) = self.reads.first_entry() {
            if *entry.key() > commit {
                break;
            }
            actions.extend(entry.remove().into_iter().map(Action::ReleaseRead));
        }
    }
}

impl Core {
    /// The commit rule of the primary, by mode. `None` while nothing may be committed here.
    fn rule_met(&self) -> Option<Lsn> {
        if !matches!(self.mode, Mode::Serving | Mode::Draining(_)) {
            return None;
        }
        if self.frozen() {
            return None;
        }
        #[cfg(test)]
        if sabotaged(Sabotage::AcknowledgeBeforePeer) {
            return Some(self.durable);
        }
        let here = self.durable;
        #[cfg(test)]
        let here = if sabotaged(Sabotage::AcknowledgeBeforeDurable) {
            self.tail
        } else {
            here
        };
        let gated = || self.peers.iter().filter(|p| p.gated);
        #[cfg(test)]
        let gated = || {
            gated().take(if sabotaged(Sabotage::WaitForOnePeer) {
                1
            } else {
                usize::MAX
            })
        };
        let met = match self.facts.ack {
            AckMode::Sync => gated().map(|p| p.durable).fold(here, Lsn::min),
            AckMode::Memsync => match gated().map(|p| p.received).min() {
                Some(received) => received.min(self.tail),
                // Without a peer, memory on one site is too little.
                None => here,
            },
            AckMode::Async => here,
        };
        let met = self.unrecorded_from.map_or(met, |lsn| met.min(lsn.prev()));
        // What an earlier epoch left open is committed by the rule of this one, which may wait for fewer peers: whoever holds
        // it then must be able to tell, by holding the beginning of this epoch, too.
        let opened = self.facts.lineage.last().map(|epoch| epoch.first_lsn);
        opened.is_none_or(|first| met >= first).then_some(met)
    }

    /// Whether a write that is admitted now may be acknowledged although a peer does not have it.
    pub(super) fn acknowledges_without_a_peer(&self) -> bool {
        let waits = self.facts.ack != AckMode::Async && self.peers.iter().all(|p| p.gated);
        !self.peers.is_empty() && !waits
    }

    /// Everything up to here is durable wherever the mode promises durability.
    fn durable_everywhere(&self) -> Lsn {
        #[cfg(test)]
        if sabotaged(Sabotage::FlushBeforePeer) {
            return self.durable;
        }
        match self.facts.ack {
            AckMode::Async => self.durable,
            AckMode::Sync | AckMode::Memsync => self
                .peers
                .iter()
                .filter(|p| p.gated)
                .map(|p| p.durable)
                .fold(self.durable, Lsn::min),
        }
    }

    /// Moves the commit LSN as far as the rule allows, and releases what waited for it.
    pub(super) fn advance_commit(&mut self) {
        if let Some(met) = self.rule_met()
            && met > self.commit
        {
            self.commit = met;
        }
        self.release();
    }

    /// Releases what is acknowledged by now. Not while frozen or being reopened: the positions stand still then.
    pub(super) fn release(&mut self) {
        if matches!(self.mode, Mode::Serving | Mode::Draining(_)) && !self.frozen() {
            let durable = self.durable_everywhere().min(self.commit);
            self.acks.release(self.commit, durable, &mut self.actions);
        }
        self.allow();
    }

    /// The WAL rule: homes hold what is committed and durable here, nothing else.
    pub(super) fn allow(&mut self) {
        let limit = self.commit.min(self.durable);
        #[cfg(test)]
        let limit = if sabotaged(Sabotage::ApplyBeforeDurable) {
            self.commit
        } else {
            limit
        };
        self.actions.push(Action::Allow(limit));
    }

    /// Tells mirrors the commit LSN although operations are under way: no frame can carry it, because the mirror has to
    /// make room first, and to do so it has to know what is committed.
    pub fn tell_commit(&mut self) {
        if self.commit > self.acks.told {
            self.send_commit();
        }
    }

    /// A frame closes, and carries the commit LSN.
    pub fn frame_tells_commit(&mut self) {
        (self.acks.carried, self.acks.news_since) = (self.commit, None);
    }

    /// Tells mirrors the commit LSN when no frame has carried it for a while. A client that waits for each answer before it
    /// writes again would else cost a message more for each, and the next frame tells anyway. Also while operations are under
    /// way: their frames may be closed already, and wait for the room that a mirror can only make once it knows.
    pub(super) fn flush_commit_news(&mut self) {
        let news = self.commit > self.acks.told.max(self.acks.carried)
            && matches!(self.mode, Mode::Serving | Mode::Draining(_));
        if !news {
            self.acks.news_since = None;
        } else if self.now >= *self.acks.news_since.get_or_insert(self.now) + NEWS_DELAY {
            self.send_commit();
        }
    }

    /// When mirrors are to be told.
    pub(super) fn commit_news_deadline(&self) -> Option<Duration> {
        Some(self.acks.news_since? + NEWS_DELAY)
    }

    fn send_commit(&mut self) {
        (self.acks.told, self.acks.news_since) = (self.commit, None);
        let lsn = self.commit;
        let links: Vec<_> = self
            .peers
            .iter()
            .filter_map(super::Peer::streaming_link)
            .collect();
        for link in links {
            self.actions
                .push(Action::Send(link, Message::Commit { lsn }));
        }
    }
}
