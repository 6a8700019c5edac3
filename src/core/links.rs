//! Connections: greetings, keepalive, loss, reconnection. Who says what on a link, for either side.

use std::time::Duration;

use uuid::Uuid;

use super::handshake::mixes;
use super::peer::{Conflict, Fork, Left};
use super::{Action, Core, Drain, Link, Mode, Outcome, PeerPhase, Severity, View, decide};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{Common, Hello, Lsn, Message, Refusal, Stance, Start};

/// A connection that a peer opened and that is not in use yet.
#[derive(Debug)]
pub(super) struct Handshake {
    pub link: Link,
    pub since: Duration,
    /// What both greetings led to, and who is at the other end.
    pub agreed: Option<Agreed>,
}

/// What two greetings led to.
#[derive(Clone, Debug)]
pub(super) struct Agreed {
    pub site: String,
    pub group_id: Uuid,
    /// How far the other side had committed.
    pub commit: Lsn,
    pub outcome: Outcome,
}

/// What an acknowledgement says.
pub(super) struct Progress {
    pub received: Lsn,
    pub durable: Lsn,
    pub applied: Lsn,
    pub credit_bytes: u64,
    pub inconsistent: bool,
}

impl Core {
    pub(super) fn peer_on(&self, link: Link) -> Option<usize> {
        self.peers.iter().position(|p| p.link() == Some(link))
    }

    /// The peer at the other end of a link that this site opened.
    pub fn peer_name(&self, link: Link) -> Option<String> {
        self.peer_on(link).map(|at| self.peers[at].name.clone())
    }

    /// The greeting of this site towards a peer. The caller completes what `View` holds when it sends it; here it is
    /// complete already, because it also decides.
    pub(super) fn hello(&self, to: &str, view: &View) -> Hello {
        let stance = match self.mode {
            // It acknowledges nothing: whoever was promoted meanwhile is followed, if nothing is lost by that.
            Mode::Serving if self.frozen() => Stance::Returning,
            Mode::Serving | Mode::Draining(_) => Stance::Serving,
            Mode::Opening if self.facts_served() => Stance::Serving,
            Mode::Opening | Mode::Returning | Mode::Waiting(_) | Mode::Fetching(_) => {
                Stance::Returning
            }
            // To anybody else it is still the one by whose record the group is led: nobody else may take it.
            Mode::HandedOver if self.opens_link_to(to) => Stance::HandedOver,
            Mode::HandedOver => Stance::Returning,
            Mode::Probing => Stance::Probe,
            Mode::Mirror | Mode::GoingBack | Mode::Fenced(_) | Mode::Stopped => Stance::Mirror,
        };
        Hello {
            group_id: self.facts.group_id,
            group: self.config.group.clone(),
            site: self.config.site.clone(),
            to_site: to.to_owned(),
            stance,
            lineage: self.facts.lineage.clone(),
            tail: self.tail,
            commit: self.commit,
            chain: view.chain,
            told_durable: self.facts.told_durable(to),
            floor: self.facts.floor,
            inconsistent_until: self.facts.inconsistent_until,
            alone: self.facts.without(to),
            ack: self.facts.ack,
            volumes: view.volumes.to_vec(),
            journal_first: view.journal_first,
            given_up: self.facts.given_up,
            mixture: self.facts.untold_mixture(),
            written: Some(self.facts.written),
        }
    }

    /// In `Opening`: whether this site was serving already, and opens a further epoch.
    fn facts_served(&self) -> bool {
        self.reopening()
    }

    /// A connection that this site asked for is up.
    pub(super) fn connected(&mut self, link: Link, name: &str, view: &View) {
        if self.probe_connected(link, name, view) {
            return;
        }
        let since = self.now;
        match self.peers.iter().position(|p| p.name == name) {
            Some(at)
                if matches!(self.peers[at].phase, PeerPhase::Connecting { .. })
                    && self.opens_link_to(name) =>
            {
                self.peers[at].phase = PeerPhase::Greeting { link, since };
                let hello = self.hello(name, view);
                self.actions
                    .push(Action::Send(link, Message::Hello(Box::new(hello))));
            }
            at => {
                self.actions.push(Action::Close(link));
                let now = self.now;
                let came_late =
                    |p: &&mut super::Peer| matches!(p.phase, PeerPhase::Connecting { .. });
                if let Some(peer) = at.map(|at| &mut self.peers[at]).filter(came_late) {
                    peer.link_lost(now);
                }
            }
        }
    }

    pub(super) fn connect_failed(&mut self, name: &str, refused: bool, reason: &str, view: &View) {
        if self.probe_failed(name, reason, view) {
            return;
        }
        let Some(at) = self.peers.iter().position(|p| p.name == name) else {
            return;
        };
        if !matches!(self.peers[at].phase, PeerPhase::Connecting { .. }) {
            return;
        }
        let now = self.now;
        self.peers[at].asked = true;
        self.peers[at].trouble = Some(reason.to_owned());
        if self.peers[at].refusal.take() == Some(Refusal::Cut) {
            // Whether it still wants that, it can no longer say.
            self.peers[at].refused = None;
        }
        self.peers[at].link_lost(now);
        if refused && self.peers[at].gated {
            self.peer_lost(at, reason);
        }
        self.resolve_unheard(name, reason);
        self.pass_unheard(name, view);
        if self.peers[at].follows_since.take().is_some() {
            self.settle_loss(at);
        }
        self.try_to_open(view);
    }

    /// A peer connected to this site.
    pub(super) fn accepted(&mut self, link: Link) {
        if let Mode::Fenced(why) = &self.mode {
            let text = format!(
                "group {} is fenced at {}: {why}",
                self.config.group, self.config.site
            );
            self.refuse(link, Refusal::Fenced, text);
            return;
        }
        if self.closing || self.mode == Mode::Stopped {
            self.refuse(
                link,
                Refusal::Busy,
                format!("{} is not available for this group", self.config.site),
            );
            return;
        }
        self.handshakes.push(Handshake {
            link,
            since: self.now,
            agreed: None,
        });
    }

    pub(super) fn refuse(&mut self, link: Link, refusal: Refusal, text: String) {
        self.actions
            .push(Action::Send(link, Message::Refuse { refusal, text }));
        self.actions.push(Action::Close(link));
    }

    pub(super) fn heard(&mut self, link: Link) {
        let now = self.now;
        if let Some(at) = self.peer_on(link) {
            self.peers[at].last_heard = Some(now);
        }
        if let Some(upstream) = self.upstream.as_mut().filter(|u| u.link == link) {
            upstream.last_heard = now;
        }
    }

    /// Anything but frames and chunks.
    pub(super) fn message(&mut self, link: Link, message: Message, view: &View) {
        if let Some(at) = self.peer_on(link)
            && self.silent_too_long(at)
        {
            // This site slept, or the network did. The peer may have been promoted meanwhile: what it said before is not
            // acted upon any more.
            self.peer_tick(at, view);
            return;
        }
        if !self.knows(link) {
            // Nobody here waits for anything on it: the other side shall not wait either.
            self.actions.push(Action::Close(link));
            return;
        }
        self.heard(link);
        self.upstream_spoke(link, view);
        if let Message::Ping { token } = message {
            self.actions
                .push(Action::Send(link, Message::Pong { token }));
            return;
        }
        if self.probe_message(link, &message, view) {
            return;
        }
        if let Some(at) = self.handshakes.iter().position(|h| h.link == link) {
            self.handshake_message(at, message, view);
        } else if self.upstream.as_ref().is_some_and(|u| u.link == link) {
            self.upstream_message(message, view);
        } else if let Some(at) = self.peer_on(link) {
            self.peer_message(at, message, view);
        }
    }

    /// Whether this link has a purpose here.
    fn knows(&self, link: Link) -> bool {
        self.handshakes.iter().any(|h| h.link == link)
            || self.upstream.as_ref().is_some_and(|u| u.link == link)
            || self.peer_on(link).is_some()
            || self.is_probe(link)
    }

    /// On a link that a peer opened and whose purpose is not settled.
    fn handshake_message(&mut self, at: usize, message: Message, view: &View) {
        let link = self.handshakes[at].link;
        match message {
            Message::Hello(theirs) if self.handshakes[at].agreed.is_none() => {
                self.greeted(at, &theirs, view);
            }
            Message::Start(start) => {
                let handshake = self.handshakes.swap_remove(at);
                match handshake.agreed {
                    Some(agreed) => self.start_proposed(link, agreed, *start, view),
                    None => self.protocol_error(link, "a proposal before the greeting"),
                }
            }
            Message::Refuse { text, .. } | Message::Bye { reason: text } => {
                let from = self.handshakes.swap_remove(at);
                let site = from
                    .agreed
                    .map_or_else(|| "a peer".into(), |agreed| agreed.site);
                self.log(
                    Severity::Warn,
                    format!("{site} ended the handshake: {text}"),
                );
                self.actions.push(Action::Close(link));
            }
            other => {
                self.handshakes.swap_remove(at);
                self.protocol_error(link, &format!("{} during the handshake", kind(&other)));
            }
        }
    }

    pub(super) fn protocol_error(&mut self, link: Link, what: &str) {
        let text = format!("protocol error: {what}");
        self.log(Severity::Warn, text.clone());
        self.refuse(link, Refusal::Disagree, text);
    }

    /// The first message of a peer that connected.
    fn greeted(&mut self, at: usize, theirs: &Hello, view: &View) {
        let link = self.handshakes[at].link;
        let known = self.config.peers.contains(&theirs.site);
        // Who only asks is told that this site is there and what it is.
        let asks = theirs.stance == Stance::Probe;
        let cut = !asks && self.peers.iter().any(|p| p.name == theirs.site && p.cut);
        if !known || cut {
            self.handshakes.swap_remove(at);
            let text = if cut {
                format!(
                    "the link to {} was cut by the operator of {}",
                    theirs.site, self.config.site
                )
            } else {
                format!(
                    "'{}' is not a peer of group {} on {}",
                    theirs.site, self.config.group, self.config.site
                )
            };
            let refusal = if cut {
                Refusal::Cut
            } else {
                Refusal::WrongGroup
            };
            self.refuse(link, refusal, text);
            return;
        }
        if !asks && matches!(self.mode, Mode::Probing | Mode::GoingBack) {
            // Not a mirror for the moment, and not yet anything else.
            self.handshakes.swap_remove(at);
            let text = format!(
                "{} is about to be promoted; connect again",
                self.config.site
            );
            self.refuse(link, Refusal::Busy, text);
            return;
        }
        if !asks && let Some(text) = self.follows_another(&theirs.site) {
            self.handshakes.swap_remove(at);
            self.refuse(link, Refusal::Following, text);
            return;
        }
        if !asks {
            self.forget_upstream("its primary connected anew");
            if let Some(peer) = self.peers.iter_mut().find(|p| p.name == theirs.site) {
                (peer.left, peer.trouble) = (Some(Left::ForNow(self.now)), None);
            }
            // Greetings on several connections may come in any order: whose handshake ends here must learn it.
            let (old, fine): (Vec<_>, Vec<_>) = std::mem::take(&mut self.handshakes)
                .into_iter()
                .partition(|h| {
                    let with = h.agreed.as_ref().map(|agreed| &agreed.site);
                    h.link != link && with == Some(&theirs.site)
                });
            self.handshakes = fine;
            self.actions
                .extend(old.into_iter().map(|h| Action::Close(h.link)));
        }
        let mut mine = self.hello(&theirs.site, view);
        if asks && self.mode == Mode::Serving {
            mine.stance = Stance::Serving;
        }
        let outcome = decide(theirs, &mine);
        let at = self
            .handshakes
            .iter()
            .position(|h| h.link == link)
            .expect("still there");
        match &outcome {
            Outcome::WrongGroup(text) => {
                let text = text.clone();
                self.handshakes.swap_remove(at);
                self.log(Severity::Error, format!("link refused: {text}"));
                self.refuse(link, Refusal::WrongGroup, text);
                return;
            }
            Outcome::AcceptorStepsDown => {
                self.handshakes.swap_remove(at);
                self.refuse(
                    link,
                    Refusal::Busy,
                    format!("{} is becoming a mirror; connect again", self.config.site),
                );
                self.drop_all_links("becoming a mirror");
                let why = format!("{} is primary and has gone on from here", theirs.site);
                self.step_down(&why);
                return;
            }
            Outcome::BothPrimary
            | Outcome::Forked { .. }
            | Outcome::Unrelated
            | Outcome::Disagree(_) => {
                self.note_conflict(theirs, &outcome, view);
                self.resolve_heard(&theirs.site, view);
                self.pass_heard(&theirs.site);
            }
            // Whoever only asks settles nothing: a fork stands until an operator decides.
            Outcome::Probe => self.note_floor(theirs),
            _ => {
                self.note_floor(theirs);
                if let Some(peer) = self.peers.iter_mut().find(|p| p.name == theirs.site) {
                    (peer.conflict, peer.refused, peer.fork) = (None, None, None);
                }
            }
        }
        self.handshakes[at].agreed = Some(Agreed {
            site: theirs.site.clone(),
            group_id: theirs.group_id,
            commit: theirs.commit,
            outcome,
        });
        self.actions
            .push(Action::Send(link, Message::Hello(Box::new(mine))));
    }

    /// A mirror has one primary at a time. Who else wants to be its primary has to come to terms with that one, or wait until
    /// it is silent.
    fn follows_another(&self, site: &str) -> Option<String> {
        #[cfg(test)]
        if sabotaged(Sabotage::FollowAnybody) {
            return None;
        }
        let upstream = self.upstream.as_ref().filter(|u| u.site != site)?;
        let heard = self.now.saturating_sub(upstream.last_heard);
        Some(format!(
            "{} follows {}, of which it heard {heard:?} ago",
            self.config.site, upstream.site
        ))
    }

    /// The other side knows that this one once held more than it has: its disk lost history.
    ///
    /// Unless this side has gone on in an epoch that the other does not know: that was opened by a decision which gave up
    /// what lay beyond, and what the other was told belongs to its own branch.
    fn note_floor(&mut self, theirs: &Hello) {
        let mine = &self.facts.lineage;
        let went_on = mine
            .common(self.tail, &theirs.lineage, theirs.tail)
            .is_none_or(|common| common.i_went_on);
        if went_on {
            return;
        }
        if theirs.told_durable > self.facts.floor && theirs.told_durable > self.tail {
            let text = format!(
                "{} was told that LSN {} is durable here, but the journal ends at LSN {}: this site's disk lost history",
                theirs.site, theirs.told_durable, self.tail
            );
            if mine.is_empty() {
                // A new machine in the place of another one, most likely.
                let text = format!(
                    "this site is empty, and {} was told that LSN {} is durable here: it gets a copy before it can be \
                     promoted",
                    theirs.site, theirs.told_durable
                );
                self.log(Severity::Info, text);
            } else {
                self.log(Severity::Error, text);
            }
            self.facts.floor = theirs.told_durable;
            self.save(super::Then::Nothing);
        }
    }

    fn note_conflict(&mut self, theirs: &Hello, outcome: &Outcome, view: &View) {
        let site = &theirs.site;
        let mine = self.hello(site, view);
        let (their_mixture, my_mixture) = (mixes(theirs, &mine), mixes(&mine, theirs));
        let mixture = self.who_mixes(site, their_mixture, my_mixture);
        let text = self.conflict_text(site, outcome, mixture);
        let lineage = &self.facts.lineage;
        let shared = match outcome {
            Outcome::Forked { common } => Some(*common),
            Outcome::BothPrimary => lineage
                .common(self.tail, &theirs.lineage, theirs.tail)
                .map(Common::lsn),
            _ => None,
        };
        let Some(peer) = self.peers.iter_mut().find(|p| p.name == *site) else {
            return;
        };
        let unknown = peer.fork.is_none();
        peer.fork = shared.map(|shared| Fork {
            shared,
            their_tail: theirs.tail,
            their_commit: theirs.commit,
            their_epoch: theirs.lineage.last().cloned(),
            their_epochs: theirs.lineage.opened_after(shared),
            their_journal_first: theirs.journal_first,
            their_stance: theirs.stance,
            their_id: super::handshake::side_id(theirs).unwrap_or_default(),
            their_mixture,
            my_mixture,
            past: false,
        });
        peer.last_heard = Some(self.now);
        peer.conflict = match outcome {
            Outcome::BothPrimary => Some(Conflict::BothPrimary),
            Outcome::Forked { .. } => Some(Conflict::Forked),
            _ => None,
        };
        if peer.refused.as_ref() != Some(&text) {
            peer.refused = Some(text.clone());
            self.log(Severity::Error, format!("link refused: {text}"));
        }
        // It was decided to serve before this was known; the epoch is not open yet, so that it is not too late.
        if unknown && shared.is_some() && self.mode == Mode::Opening {
            self.set_mode(Mode::Returning);
            self.try_to_open(view);
        }
    }

    /// What the record says of forks holds until the peer says otherwise.
    pub(super) fn remember_forks(&mut self) {
        for (name, fork) in self.facts.forks.clone() {
            let common = fork.shared;
            let mixture = self.who_mixes(&name, fork.their_mixture, fork.my_mixture);
            let text = self.conflict_text(&name, &Outcome::Forked { common }, mixture);
            let stands = self.ordered_to_discard(&fork) || fork.past;
            let Some(peer) = self.peers.iter_mut().find(|p| p.name == name) else {
                continue;
            };
            peer.conflict = Some(Conflict::Forked);
            peer.fork = Some(fork);
            // An operator decided against the peer, or past it: there is nothing to wait for.
            peer.refused = (!stands).then_some(text);
        }
    }

    /// Forks go on record when they are found, and off it when the two go together again.
    pub(super) fn record_forks(&mut self) {
        let known = |name: &str| self.facts.forks.iter().find(|(n, _)| n == name);
        let same = |p: &super::Peer| known(&p.name).map(|(_, f)| f) == p.fork.as_ref();
        if self.peers.iter().all(same) {
            return;
        }
        let is_news = self.peers.iter().any(|p| match (&p.fork, known(&p.name)) {
            (Some(fork), Some((_, known))) => fork.is_news_to(known),
            (fork, known) => fork.is_some() || known.is_some(),
        });
        let forks = self.peers.iter();
        self.facts.forks = forks
            .filter_map(|p| Some((p.name.clone(), p.fork.clone()?)))
            .collect();
        if is_news {
            self.save(super::Then::Nothing);
        }
    }

    /// Whose content is a mixture, and who holds a whole copy of what that pretends to continue.
    fn who_mixes(&self, site: &str, they: bool, i: bool) -> Option<[String; 2]> {
        let (me, site) = (self.config.site.clone(), site.to_owned());
        match (they, i) {
            (true, false) => Some([site, me]),
            (false, true) => Some([me, site]),
            _ => None,
        }
    }

    fn conflict_text(&self, site: &str, outcome: &Outcome, mix: Option<[String; 2]>) -> String {
        let me = &self.config.site;
        let group = &self.config.group;
        if let (Outcome::Forked { common }, Some([mixed, whole])) = (outcome, mix) {
            return format!(
                "{mixed} was promoted in the middle of a copy: its content is a mixture of old and new. {whole} holds a whole \
                 copy; the history of both is the same up to LSN {common}. Which one is kept only an operator can decide: \
                 `doublure explain {group}` tells what each side wrote, and what to do"
            );
        }
        match outcome {
            Outcome::BothPrimary => format!(
                "both {me} and {site} are primary; one side's writes must be given up, which only an operator can decide: \
                 `doublure explain {group}` tells what each side wrote, and what to do"
            ),
            Outcome::Forked { common } => format!(
                "{me} and {site} have the same history up to LSN {common}, and each has gone on by itself; one side's \
                 writes since must be given up, which only an operator can decide: `doublure explain {group}` tells what \
                 each side wrote, and what to do"
            ),
            Outcome::Unrelated => format!(
                "{me} and {site} both have a history of group {group} and share nothing: one of them must be emptied \
                 (stop it, move the group's folder in its data directory away, set role = \"mirror\" and start it)"
            ),
            Outcome::Disagree(text) | Outcome::WrongGroup(text) => text.clone(),
            other => format!("{other:?}"),
        }
    }

    /// On a link that this site opened.
    fn peer_message(&mut self, at: usize, message: Message, view: &View) {
        let phase = self.peers[at].phase.clone();
        match (phase, message) {
            (PeerPhase::Greeting { link, .. }, Message::Hello(theirs)) => {
                self.answered(at, link, &theirs, view);
            }
            (PeerPhase::Proposed { .. }, Message::Started) => self.peer_started(at),
            (PeerPhase::Fetching { .. } | PeerPhase::Handing { .. }, Message::Started) => {}
            (
                PeerPhase::Streaming { .. },
                Message::Ack {
                    received,
                    durable,
                    applied,
                    credit_bytes,
                    inconsistent_until,
                    ..
                },
            ) => {
                let inconsistent = inconsistent_until.is_some();
                self.acked(
                    at,
                    &Progress {
                        received,
                        durable,
                        applied,
                        credit_bytes,
                        inconsistent,
                    },
                );
            }
            (PeerPhase::Handing { .. }, Message::Taken) => self.taken(at),
            (_, Message::Pong { .. }) => {}
            (_, Message::Refuse { refusal, text }) => {
                let now = self.now;
                let name = self.peers[at].name.clone();
                self.resolve_unheard(&name, &text);
                self.pass_heard(&name);
                let link = self.peers[at].link();
                self.peers[at].link_lost(now);
                self.actions.extend(link.map(Action::Close));
                if refusal == Refusal::Following {
                    self.follows_somebody_else(at, text);
                    return;
                }
                self.peers[at].asked = true;
                self.note_refusal(at, refusal, &text);
                if refusal == Refusal::NoSpace {
                    // It found out in the middle of a copy, and would again at once.
                    self.peers[at].retry_later(now);
                    if self.peers[at].gated {
                        self.peer_lost(at, &text);
                    }
                }
                self.try_to_open(view);
            }
            (_, Message::Bye { reason }) => {
                let name = self.peers[at].name.clone();
                self.log(Severity::Info, format!("{name} closed the link: {reason}"));
                let link = self.peers[at].link();
                let now = self.now;
                self.peers[at].link_lost(now);
                self.actions.extend(link.map(Action::Close));
                if self.peers[at].gated {
                    self.peer_lost(at, &reason);
                }
            }
            (phase, other) => {
                let text = format!("{} in phase {phase:?}", kind(&other));
                self.drop_peer_link(at, &text);
            }
        }
    }

    /// The peer says why it does not want the link. What it says again is not news.
    fn note_refusal(&mut self, at: usize, refusal: Refusal, text: &str) {
        let peer = &mut self.peers[at];
        let known = peer.refused.as_deref().or(peer.trouble.as_deref()) == Some(text);
        peer.refusal = Some(refusal);
        match refusal {
            Refusal::Busy => return,
            // It may go on later, or without this site being changed: that is no disagreement.
            Refusal::Fenced | Refusal::NoSpace => peer.trouble = Some(text.to_owned()),
            _ => peer.refused = Some(text.to_owned()),
        }
        let severity = match refusal {
            Refusal::Cut => Severity::Warn,
            _ => Severity::Error,
        };
        if !known {
            let name = self.peers[at].name.clone();
            self.log(severity, format!("{name} refused the link: {text}"));
        }
    }

    /// The peer has another primary, or did not notice yet that it is gone. It counts as asked once it is free.
    fn follows_somebody_else(&mut self, at: usize, text: String) {
        let (now, timeout) = (self.now, self.config.timeout);
        let peer = &mut self.peers[at];
        let since = *peer.follows_since.get_or_insert(now);
        peer.trouble = Some(text.clone());
        // It serves no more, if it did; what it wrote is its primary's matter.
        (peer.conflict, peer.refused, peer.fork) = (None, None, None);
        if !matches!(self.mode, Mode::Returning | Mode::Waiting(_)) {
            return;
        }
        peer.asked = false;
        if now >= since + timeout {
            self.wait(text);
        }
    }

    /// The peer answered our greeting.
    fn answered(&mut self, at: usize, link: Link, theirs: &Hello, view: &View) {
        let name = self.peers[at].name.clone();
        let mine = self.hello(&name, view);
        let outcome = decide(&mine, theirs);
        self.peers[at].asked = true;
        self.peers[at].follows_since = None;
        self.note_floor(theirs);
        match outcome {
            Outcome::Stream { from } => self.agreed(at, link, from.prev(), false, view),
            Outcome::Copy { shared } => self.agreed(at, link, shared, true, view),
            Outcome::Fetch { .. } if matches!(self.mode, Mode::Fetching(_)) => {
                self.peer_link_down(at, Some("not now"));
            }
            Outcome::Fetch { .. } => {
                let (tail, lineage) = (theirs.tail, Box::new(theirs.lineage.clone()));
                self.peers[at].phase = PeerPhase::Longer {
                    link,
                    tail,
                    lineage,
                };
                self.set_mode(Mode::Returning);
                self.try_to_open(view);
            }
            Outcome::Handover => {
                let handed = self
                    .facts
                    .handed
                    .clone()
                    .expect("only a site that handed over greets so");
                let start = Start::Handover {
                    epoch_id: handed.epoch_id,
                    lsn: handed.lsn,
                };
                self.peers[at].phase = PeerPhase::Handing {
                    link,
                    since: self.now,
                };
                self.actions
                    .push(Action::Send(link, Message::Start(Box::new(start))));
            }
            Outcome::InitiatorStepsDown => {
                self.drop_all_links(&format!("{} becomes a mirror", self.config.site));
                self.step_down(&format!(
                    "{name} is primary and has gone on from LSN {}",
                    theirs.tail
                ));
            }
            Outcome::AcceptorStepsDown | Outcome::Probe => self.peer_link_down(at, None),
            conflict => {
                self.note_conflict(theirs, &conflict, view);
                let text = self.peers[at].refused.clone().unwrap_or_default();
                let now = self.now;
                self.peers[at].link_lost(now);
                self.refuse(link, refusal(&conflict), text);
                self.try_to_open(view);
            }
        }
        self.resolve_heard(&name, view);
        self.pass_heard(&name);
    }

    fn agreed(&mut self, at: usize, link: Link, tail: Lsn, copy: bool, view: &View) {
        let name = self.peers[at].name.clone();
        // What a copy replaces counts for nothing until it is complete.
        let has = if copy { Lsn::ZERO } else { tail };
        let told = self.facts.told_durable(&name).min(has);
        self.facts.note_told_durable(&name, told);
        let peer = &mut self.peers[at];
        (peer.conflict, peer.refused, peer.fork) = (None, None, None);
        peer.refusal = None;
        peer.needs_copy = copy;
        if copy && matches!(self.mode, Mode::Serving | Mode::Draining(_)) {
            // It holds nothing to wait for until the copy is complete. Whether to go on without it is not decided here.
            if self.peers[at].gated {
                self.peer_lost(at, "it needs a copy of the volumes");
            }
        } else if copy {
            self.peers[at].gated = false;
        }
        match self.mode {
            Mode::Serving | Mode::Draining(_) => self.propose(at, link, tail.next(), copy),
            Mode::Opening | Mode::Returning | Mode::Waiting(_) => {
                self.peers[at].refused = None;
                self.peers[at].conflict = None;
                self.peers[at].fork = None;
                self.peers[at].phase = PeerPhase::Agreed { link, tail, copy };
                self.try_to_open(view);
            }
            _ => self.peer_link_down(at, Some("not now")),
        }
    }

    /// Closes a peer's link for a reason that it is told.
    pub(super) fn drop_peer_link(&mut self, at: usize, reason: &str) {
        let name = self.peers[at].name.clone();
        self.log(Severity::Warn, format!("link to {name} dropped: {reason}"));
        self.peer_link_down(at, Some(reason));
    }

    pub(super) fn peer_link_down(&mut self, at: usize, tell: Option<&str>) {
        let now = self.now;
        if let Some(link) = self.peers[at].link() {
            if let Some(reason) = tell {
                self.say_bye(link, reason);
            }
            self.actions.push(Action::StopStream(link));
            self.actions.push(Action::Close(link));
        }
        self.peers[at].link_lost(now);
    }

    pub(super) fn say_bye(&mut self, link: Link, reason: &str) {
        let reason = reason.to_owned();
        self.actions
            .push(Action::Send(link, Message::Bye { reason }));
    }

    /// Drops every link, telling why.
    pub(super) fn drop_all_links(&mut self, reason: &str) {
        for at in 0..self.peers.len() {
            self.peer_link_down(at, Some(reason));
        }
        for handshake in std::mem::take(&mut self.handshakes) {
            self.actions.push(Action::Close(handshake.link));
        }
        if let Some(upstream) = self.upstream.take() {
            self.say_bye(upstream.link, reason);
            self.actions.push(Action::Close(upstream.link));
        }
    }

    /// A connection is gone.
    pub(super) fn closed(&mut self, link: Link, reason: &str, view: &View) {
        self.handshakes.retain(|h| h.link != link);
        self.keeping.take_if(|k| k.is_on(link));
        if self.probe_closed(link, reason, view) {
            return;
        }
        if self.upstream.as_ref().is_some_and(|u| u.link == link) {
            self.leave_upstream();
            self.log(
                Severity::Warn,
                format!("link to the primary lost: {reason}"),
            );
            self.probe_complete(view);
        }
        let Some(at) = self.peer_on(link) else { return };
        let now = self.now;
        let was = self.peers[at].phase.clone();
        self.actions.push(Action::StopStream(link));
        self.peers[at].link_lost(now);
        // A mirror does not wait for ever until this site has heard of its other peers; it is greeted anew.
        let expired = matches!(was, PeerPhase::Agreed { .. } | PeerPhase::Longer { .. })
            && matches!(self.mode, Mode::Returning | Mode::Waiting(_));
        // Whether it is gone or only the connection is will show at the next attempt, which comes at once.
        if matches!(was, PeerPhase::Streaming { .. }) {
            let name = self.peers[at].name.clone();
            self.log(Severity::Warn, format!("link to {name} lost: {reason}"));
            self.peers[at].retry_now(now);
        }
        self.peers[at].asked = !expired;
        if matches!(self.mode, Mode::Fetching(l) if l == link) {
            self.set_mode(Mode::Returning);
        }
        self.start_due_connects();
        self.try_to_open(view);
    }

    /// Everything that only time brings about.
    pub(super) fn tick(&mut self, view: &View) {
        self.start_due_connects();
        let now = self.now;
        let timeout = self.config.timeout;
        for at in 0..self.peers.len() {
            self.peer_tick(at, view);
        }
        if self
            .upstream
            .as_ref()
            .is_some_and(|u| now >= u.last_heard + timeout)
        {
            let site = self.primary_name();
            self.forget_upstream(&format!("{site} was silent for {timeout:?}"));
            if let Mode::Fetching(link) = self.mode {
                self.set_mode(Mode::Returning);
                if let Some(at) = self.peer_on(link) {
                    self.peer_link_down(at, None);
                }
            }
        }
        self.ping_while_fetching();
        let (late, fine): (Vec<_>, Vec<_>) = std::mem::take(&mut self.handshakes)
            .into_iter()
            .partition(|h| now >= h.since + timeout);
        self.handshakes = fine;
        self.actions
            .extend(late.into_iter().map(|h| Action::Close(h.link)));
        self.probe_tick(view);
        self.resolve_tick();
        self.pass_tick(view);
        self.try_to_open(view);
    }

    /// The mirror whose tail is being fetched would otherwise hear nothing from here.
    fn ping_while_fetching(&mut self) {
        let (now, interval) = (self.now, ping_interval(self.config.timeout));
        let Mode::Fetching(link) = self.mode else {
            return;
        };
        if let Some(upstream) = self
            .upstream
            .as_mut()
            .filter(|u| now >= u.last_ping + interval)
        {
            upstream.last_ping = now;
            self.actions
                .push(Action::Send(link, Message::Ping { token: 0 }));
        }
    }

    fn silent_too_long(&self, at: usize) -> bool {
        let peer = &self.peers[at];
        peer.streaming_link().is_some()
            && peer
                .last_heard
                .is_some_and(|heard| self.now >= heard + self.config.timeout)
    }

    fn peer_tick(&mut self, at: usize, view: &View) {
        let now = self.now;
        let timeout = self.config.timeout;
        match self.peers[at].phase {
            PeerPhase::Connecting { since } if now >= since + timeout * 2 => {
                let name = self.peers[at].name.clone();
                self.connect_failed(&name, false, "no answer", view);
            }
            PeerPhase::Greeting { since, .. } | PeerPhase::Handing { since, .. }
                if now >= since + timeout =>
            {
                self.peers[at].asked = true;
                self.peers[at].trouble = Some("no answer to the greeting".into());
                self.drop_peer_link(at, "no answer to the greeting");
            }
            PeerPhase::Proposed { since, .. } if now >= since + timeout * 3 => {
                self.drop_peer_link(at, "no answer to the proposal");
            }
            PeerPhase::Streaming { link, .. } => {
                if self.silent_too_long(at) {
                    self.drop_peer_link(at, &format!("silent for {timeout:?}"));
                    self.peers[at].owes_since = Some(now.saturating_sub(timeout));
                } else if now >= self.peers[at].last_ping + ping_interval(timeout) {
                    self.peers[at].last_ping = now;
                    let token = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
                    self.actions
                        .push(Action::Send(link, Message::Ping { token }));
                    self.check_progress(at);
                }
            }
            _ => {}
        }
        let overdue = self.peers[at]
            .owes_since
            .is_some_and(|since| now >= since + timeout);
        let copying = self.peers[at].copying();
        if overdue && self.peers[at].gated && !self.peers[at].dead && !copying {
            if self.peers[at].streaming_link().is_some() {
                self.drop_peer_link(at, &format!("no progress for {timeout:?}"));
            }
            self.peer_lost(at, &format!("no progress for {timeout:?}"));
        }
    }

    /// When [`super::Event::Tick`] is due at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let timeout = self.config.timeout;
        let mut due = Vec::with_capacity(4);
        for peer in &self.peers {
            match peer.phase {
                PeerPhase::Down { retry_at: Some(at) } if self.opens_link_to(&peer.name) => {
                    due.push(at);
                }
                PeerPhase::Connecting { since } => due.push(since + timeout * 2),
                PeerPhase::Greeting { since, .. } | PeerPhase::Handing { since, .. } => {
                    due.push(since + timeout);
                }
                PeerPhase::Proposed { since, .. } => due.push(since + timeout * 3),
                PeerPhase::Streaming { .. } => {
                    due.push(peer.last_ping + ping_interval(timeout));
                    due.extend(peer.last_heard.map(|heard| heard + timeout));
                }
                _ => {}
            }
            if peer.gated && !peer.dead && !peer.copying() {
                due.extend(peer.owes_since.map(|since| since + timeout));
            }
        }
        if let Some(upstream) = &self.upstream {
            due.push(upstream.last_heard + timeout);
            if let Mode::Fetching(_) = self.mode {
                due.push(upstream.last_ping + ping_interval(timeout));
            }
        }
        due.extend(self.handshakes.iter().map(|h| h.since + timeout));
        due.extend(self.commit_news_deadline());
        due.extend(self.applied_news_deadline());
        due.extend(self.probe_deadline());
        due.extend(self.resolve_deadline());
        due.extend(self.pass_deadline());
        due.into_iter().min()
    }

    /// A drain that cannot end (its peer is gone) is taken back.
    pub(super) fn abort_drain(&mut self, why: &str) {
        let Mode::Draining(drain) = &self.mode else {
            return;
        };
        let leaving =
            |then: &super::Then| matches!(then, super::Then::Handed(_) | super::Then::Demoted(_));
        if self.saves.iter().any(|(_, then)| leaving(then)) {
            // Everything is drained, and the record is on its way to the disk: it cannot be taken back any more.
            return;
        }
        let (Drain::Demote(command) | Drain::Switchover(command, _)) = *drain;
        self.actions.push(Action::CommandDone(
            command,
            Err(format!("taken back, nothing was changed: {why}")),
        ));
        self.set_mode(Mode::Serving);
        for at in 0..self.peers.len() {
            self.settle_loss(at);
        }
    }
}

fn ping_interval(timeout: Duration) -> Duration {
    timeout / 4
}

fn refusal(outcome: &Outcome) -> Refusal {
    match outcome {
        Outcome::BothPrimary => Refusal::BothPrimary,
        Outcome::Forked { .. } => Refusal::Forked,
        Outcome::Unrelated => Refusal::Unrelated,
        Outcome::WrongGroup(_) => Refusal::WrongGroup,
        _ => Refusal::Disagree,
    }
}

/// A message's kind, for messages to people.
pub(super) fn kind(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "a greeting",
        Message::Refuse { .. } => "a refusal",
        Message::Start(_) => "a proposal",
        Message::Started => "an agreement",
        Message::Frame(_) => "a frame",
        Message::Ack { .. } => "an acknowledgement",
        Message::Commit { .. } => "commit news",
        Message::Ping { .. } => "a ping",
        Message::Pong { .. } => "a pong",
        Message::Chunk { .. } => "a chunk",
        Message::ChunksEnd { .. } => "the end of a copy",
        Message::FetchEnd { .. } => "the end of a fetched tail",
        Message::Taken => "a taken handover",
        Message::Bye { .. } => "a goodbye",
        Message::Touched { .. } => "a set of chunks",
        Message::Confirmed { .. } => "what the mirror has of a copy",
        Message::Placed { .. } => "how much of a copy is in the homes",
        Message::Compare { .. } => "a hash to compare",
        Message::Compared { .. } => "the answer to a hash",
        Message::Content { .. } => "the content of a range",
        Message::Verified(_) => "what is known of verifications",
        Message::CanGrow { .. } => "a question about a volume's size",
        Message::MayGrow { .. } => "the answer about a volume's size",
    }
}
