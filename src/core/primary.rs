//! The primary's side: opening epochs, going alone, waiting for peers, letting them in again.

use std::time::Duration;

use super::{Action, Alone, Core, Left, Link, Mode, PeerPhase, Question, Severity, Then, View};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{AckMode, Epoch, Hindrance, Lineage, Lsn, Message, OnPeerLoss, Role, Start};

impl Core {
    /// Primary by record: ask the peers first, whatever the record says.
    pub(super) fn begin_returning(&mut self, view: &View) {
        self.set_mode(Mode::Returning);
        for peer in &mut self.peers {
            peer.asked = false;
        }
        self.connect_all();
        self.try_to_open(view);
    }

    pub(super) fn connect_all(&mut self) {
        let now = self.now;
        for peer in &mut self.peers {
            if !peer.cut
                && peer.link().is_none()
                && !matches!(peer.phase, PeerPhase::Connecting { .. })
            {
                peer.retry_now(now);
            }
        }
        self.start_due_connects();
    }

    pub(super) fn start_due_connects(&mut self) {
        let now = self.now;
        for at in 0..self.peers.len() {
            let peer = &self.peers[at];
            let due = matches!(peer.phase, PeerPhase::Down { retry_at: Some(at) } if at <= now);
            if due && !peer.cut && self.opens_link_to(&peer.name) {
                let name = peer.name.clone();
                self.peers[at].phase = PeerPhase::Connecting { since: now };
                self.actions.push(Action::Connect(name));
            }
        }
    }

    /// Whether every peer that acknowledgements wait for has a link on which it can confirm.
    pub fn hears_its_peers(&self) -> bool {
        let confirms = |p: &super::Peer| !p.gated || p.streaming_link().is_some();
        self.peers.iter().all(confirms)
    }

    /// Whether this site is one that opens links: it is or wants to be primary, or has a role to deliver, which is for one
    /// peer only.
    pub(super) fn opens_link_to(&self, peer: &str) -> bool {
        let wants = match &self.mode {
            Mode::Mirror | Mode::Probing | Mode::GoingBack | Mode::Fenced(_) | Mode::Stopped => {
                false
            }
            // What others have is seen against what it has then.
            Mode::Fetching(_) => false,
            #[cfg(test)]
            Mode::HandedOver if sabotaged(Sabotage::HandToAnybody) => true,
            Mode::HandedOver => self.facts.handed.as_ref().is_some_and(|h| h.to == peer),
            _ => true,
        };
        wants && !self.closing
    }

    /// In `Returning` or `Waiting`: opens the epoch if every peer has answered, or need not.
    ///
    /// What was acknowledged is on every peer that acknowledgements waited for, so that each of them alone could bring it
    /// back. All have to answer nevertheless: any of them may have been promoted meanwhile.
    pub(super) fn try_to_open(&mut self, view: &View) {
        // Stepping down is not done before it is on record.
        let stays = self.facts.role == Role::Primary;
        if !matches!(self.mode, Mode::Returning | Mode::Waiting(_)) || !stays {
            return;
        }
        let longer = |p: &super::Peer| matches!(p.phase, PeerPhase::Longer { .. });
        if self.peers.iter().any(longer) {
            if self.peers.iter().all(|p| p.asked || p.cut) {
                self.fetch_longest();
            }
            return;
        }
        if self.gives_itself_up() {
            let text = self.order_text();
            self.wait(text);
            return;
        }
        if self.lost_history() {
            let text = self.lost_history_text(super::Overrides::default());
            self.wait(text);
            return;
        }
        if let Some(former) = self.facts.former_peer(&self.config.peers) {
            let text = format!(
                "{former} is not among the peers in the configuration any more, and when this site stopped the two were in \
                 sync: {former} may be primary by now. Name it again and restart doublure here; {} makes this site serve \
                 without it",
                super::Overrides::default()
                    .without_asking()
                    .command(&self.config.group)
            );
            self.wait(text);
            return;
        }
        let mut unasked = None;
        for at in 0..self.peers.len() {
            let peer = &self.peers[at];
            if matches!(peer.phase, PeerPhase::Agreed { copy: false, .. }) {
                continue;
            }
            #[cfg(test)]
            if sabotaged(Sabotage::ServeWithoutAsking) {
                continue;
            }
            if !peer.asked && !peer.cut {
                return;
            }
            if let Some(refused) = peer.refused.clone() {
                self.wait(refused);
                return;
            }
            if self.facts.without(&peer.name) {
                continue;
            }
            let name = peer.name.clone();
            if self.facts.ever_in_sync && !matches!(peer.phase, PeerPhase::Agreed { .. }) {
                let why = peer.hindrance().unwrap_or(Hindrance::Unreachable);
                let text = format!(
                    "{}, and when this site stopped the two were in sync: {name} may be primary by now{}. It goes on by itself \
                     when {name} answers; {} makes this site serve without it",
                    why.clause(&name),
                    match self.facts.ack {
                        AckMode::Memsync => ", or alone have what was acknowledged last",
                        AckMode::Sync | AckMode::Async => "",
                    },
                    super::Overrides::default()
                        .without_asking()
                        .command(&self.config.group)
                );
                self.wait(text);
                return;
            }
            // Never in sync with it, or it needs a copy first: it cannot be waited for.
            unasked = unasked.or(Some((at, name)));
        }
        // Only once nothing else speaks against opening: what the arbiter grants goes on record.
        match unasked {
            Some((at, peer)) => {
                let first = !self.facts.ever_in_sync;
                self.ask_to_go_alone(at, Question::GoAlone { peer, first });
            }
            None => self.open_epoch(view),
        }
    }

    /// All peers were asked, and some have more of this history: takes over the longest, from one of them.
    ///
    /// The others are greeted anew afterwards. In doubt the one whose epochs go on counts for more than the one with more
    /// operations: those were never acknowledged, or they would be in both.
    fn fetch_longest(&mut self) {
        let mut best: Option<(usize, Lsn, &Lineage)> = None;
        for (at, peer) in self.peers.iter().enumerate() {
            let PeerPhase::Longer { tail, lineage, .. } = &peer.phase else {
                continue;
            };
            let better = best.is_none_or(|(_, than, known)| {
                lineage.common(*tail, known, than).is_some_and(|c| {
                    c.i_went_on && !c.they_went_on
                        || c.i_went_on == c.they_went_on && c.mine > c.theirs
                })
            });
            if better {
                best = Some((at, *tail, lineage));
            }
        }
        let Some((at, tail, _)) = best else { return };
        let (name, from) = (self.peers[at].name.clone(), self.tail.next());
        let link = self.peers[at].link().expect("it answered on one");
        self.log(
            Severity::Info,
            format!("{name} has history up to LSN {tail}; taking over LSN {from} and after"),
        );
        for other in 0..self.peers.len() {
            let open = matches!(
                self.peers[other].phase,
                PeerPhase::Longer { .. } | PeerPhase::Greeting { .. }
            );
            if other != at && open {
                self.peer_link_down(other, Some("another site's history is taken over first"));
            }
        }
        self.peers[at].phase = PeerPhase::Fetching { link };
        self.actions.push(Action::Send(
            link,
            Message::Start(Box::new(Start::Fetch { from })),
        ));
        self.begin_fetch(link, name);
    }

    /// Why this site does not serve although it is primary by its record: it once held more.
    pub(super) fn lost_history_text(&self, given: super::Overrides) -> String {
        let nobody_has_it = self.everybody_agreed();
        let needed = super::Overrides {
            behind: true,
            peer_unreachable: given.peer_unreachable || !nobody_has_it,
            ..given
        };
        let who = if nobody_has_it {
            "that no peer has either".to_owned()
        } else if let Some(alone) = self.facts.alone.first() {
            // What a peer that was away should give back it never had.
            format!(
                "that {} lacks, too, from LSN {} on: they were not in sync, and the folder '{}' in the data directory here \
                 may hold the only remains. Copy it to another disk before anything else",
                alone.peer, alone.from_lsn, self.config.group
            )
        } else {
            "that only a peer can give back".to_owned()
        };
        format!(
            "its journal ends at LSN {}, but it once held LSN {}: its disk lost history {who}; {} gives it up",
            self.tail,
            self.facts.floor,
            needed.command(&self.config.group)
        )
    }

    pub(super) fn wait(&mut self, text: String) {
        match self.promoted_in_a_fork() {
            // The order is carried out, and goes no further by itself.
            Some(accepted) if self.promised_command.is_some() => {
                self.save(Then::Nothing);
                self.promised_done(Ok(accepted));
            }
            _ => self.promised_done(Err(text.clone())),
        }
        if !matches!(self.mode, Mode::Waiting(_)) {
            self.log(Severity::Warn, format!("not serving yet: {text}"));
        }
        self.set_mode(Mode::Waiting(text));
    }

    fn promoted_in_a_fork(&self) -> Option<String> {
        let (me, group) = (&self.config.site, &self.config.group);
        let peer = self.peers.iter().find(|p| p.fork.is_some())?;
        Some(format!(
            "{me} is primary of {group} by its record now. It serves nobody before the fork is resolved: `doublure resolve \
             {group} --discard {}` keeps what {me} wrote",
            peer.name
        ))
    }

    fn ask_to_go_alone(&mut self, at: usize, question: Question) {
        if !self.peers[at].asking {
            self.peers[at].asking = true;
            self.actions.push(Action::Ask(question));
        }
    }

    /// Makes the lineage with one more epoch durable, then has it opened. Nothing is admitted meanwhile.
    pub(super) fn open_epoch(&mut self, view: &View) {
        #[cfg(test)]
        if sabotaged(Sabotage::ReuseLsns)
            && self.facts.lineage.last().map(|e| e.site.as_str()) == Some(&self.config.site)
        {
            self.set_mode(Mode::Serving);
            return self.propose_to_agreed();
        }
        self.set_mode(Mode::Opening);
        self.gate_agreed();
        // One that was put on record and never opened gives way.
        self.facts.lineage.truncate_after(self.tail);
        let epoch = self.next_epoch(view);
        self.facts.role = Role::Primary;
        self.facts.handed = None;
        self.facts
            .lineage
            .push(epoch.clone())
            .expect("numbers and LSNs rise");
        self.save(Then::OpenEpoch(epoch));
    }

    /// The peers that made it possible to open are waited for from here on, also if they are lost before it is open.
    fn gate_agreed(&mut self) {
        let (now, first) = (self.now, self.tail.next());
        for peer in &mut self.peers {
            let agreed = matches!(peer.phase, PeerPhase::Agreed { copy: false, .. });
            if agreed && !self.facts.without(&peer.name) {
                peer.gated = true;
                peer.gate_lsn = first;
                peer.owes_since = Some(now);
            }
        }
    }

    pub(super) fn next_epoch(&mut self, view: &View) -> Epoch {
        Epoch {
            number: self.facts.lineage.last().map_or(1, |e| e.number + 1),
            id: self.fresh_id(),
            site: self.config.site.clone(),
            first_lsn: self.tail.next(),
            ack: self.facts.ack,
            alone: !self.facts.alone.is_empty(),
            complete: self
                .promised
                .take()
                .is_some_and(|promised| self.tail >= promised),
            mixture: !self.facts.untold_mixture().is_nil(),
            time_ns: view.time_ns,
        }
    }

    /// The lineage with this epoch is durable: append the operation that opens it, and serve.
    pub(super) fn facts_hold_epoch(&mut self, epoch: Epoch) {
        // On its way to the record when this site began to step down.
        let gives_way = self.facts.role != Role::Primary;
        let replaced = self.facts.lineage.last().map(|e| e.id) != Some(epoch.id) || gives_way;
        if self.mode != Mode::Opening || epoch.first_lsn != self.tail.next() || replaced {
            return;
        }
        self.tail = epoch.first_lsn;
        // Whatever is acknowledged from here on passes through this memory, and only what never was is dropped again.
        self.promised = Some(epoch.first_lsn);
        self.peers.iter_mut().for_each(|p| p.left = None);
        let alone: String = self
            .facts
            .alone
            .iter()
            .map(|a| format!(", without {}", a.peer))
            .collect();
        self.log(
            Severity::Info,
            format!(
                "epoch {} opened at LSN {}{alone}",
                epoch.number, epoch.first_lsn
            ),
        );
        self.actions.push(Action::OpenEpoch(epoch));
        self.set_mode(Mode::Serving);
        self.propose_to_agreed();
        // Who was told that this site is primary may attach at once.
        self.announce_exports();
        let (me, group) = (&self.config.site, &self.config.group);
        let without: Vec<&str> = self.facts.alone.iter().map(|a| a.peer.as_str()).collect();
        let how = if without.is_empty() {
            "clients may attach here".to_owned()
        } else {
            let without = without.join(" and ");
            let forks = self.facts.mixture.is_some() || self.peers.iter().any(|p| p.fork.is_some());
            let until = if forks {
                "in sync: there is a fork to be resolved first"
            } else {
                "in sync, which needs no command"
            };
            format!(
                "clients may attach here. It acknowledges alone, without {without}: what is written from LSN {} on is on \
                 this site only until {without} is back and {until}",
                self.tail.next()
            )
        };
        let text = match self.mixture_text() {
            Some(mixture) => format!("{me} is primary of {group}. {mixture}; {how}"),
            None => format!(
                "{me} is primary of {group}, which it holds up to LSN {}; {how}",
                self.tail
            ),
        };
        self.promised_done(Ok(text));
        for at in 0..self.peers.len() {
            self.settle_loss(at);
        }
        self.advance_commit();
    }

    /// What is to be known of the content here, if this site was promoted in the middle of a copy.
    pub fn mixture_text(&self) -> Option<String> {
        let mixture = self.facts.mixture.as_ref()?;
        let (me, group) = (&self.config.site, &self.config.group);
        let names: Vec<&str> = self.peers.iter().map(|p| p.name.as_str()).collect();
        let peers = names.join(" and ");
        Some(format!(
            "Its content is a MIXTURE of old and new since LSN {} ({}): {me} was promoted in the middle of a copy, and what it \
             holds is no state that {group} ever had. KEEP what {peers} holds, it may be the only whole copy: when it is back, \
             nothing of it is overwritten before an operator says (`doublure explain {group}`) whose content is kept",
            mixture.lsn,
            crate::base::utc(mixture.since_ns / 1_000_000_000)
        ))
    }

    /// Peers whose greeting led to an agreement before the epoch was open.
    pub(super) fn propose_to_agreed(&mut self) {
        for at in 0..self.peers.len() {
            if let PeerPhase::Agreed { link, tail, copy } = self.peers[at].phase {
                let on_record = self.facts.without(&self.peers[at].name);
                if !copy && !on_record {
                    // The two were in sync, or neither has any history: acknowledgements wait for it from the first on.
                    self.peers[at].gated = true;
                    self.peers[at].gate_lsn = self.tail;
                    self.peers[at].owes_since = Some(self.now);
                }
                self.propose(at, link, tail.next(), copy);
            }
        }
    }

    pub(super) fn propose(&mut self, at: usize, link: Link, from: Lsn, copy: bool) {
        let since = self.now;
        self.peers[at].phase = PeerPhase::Proposed {
            link,
            from,
            copy,
            since,
        };
        if copy {
            let shared = from.prev();
            self.actions.push(Action::ProposeCopy { link, shared });
        } else {
            self.actions.push(Action::Send(
                link,
                Message::Start(Box::new(Start::Stream { from })),
            ));
        }
    }

    /// The peer is ready for frames.
    pub(super) fn peer_started(&mut self, at: usize) {
        let PeerPhase::Proposed {
            link, from, copy, ..
        } = self.peers[at].phase
        else {
            return;
        };
        let now = self.now;
        self.acks.forget_told();
        let peer = &mut self.peers[at];
        peer.stream_began(now);
        peer.phase = PeerPhase::Streaming {
            link,
            copying: copy,
        };
        if copy {
            (peer.received, peer.durable, peer.applied) = (Lsn::ZERO, Lsn::ZERO, Lsn::ZERO);
            peer.sent = Lsn::ZERO;
            self.actions.push(Action::Copy(link));
        } else {
            // It has what comes before in its memory. What of that is durable there only its acknowledgements tell.
            let confirmed = self.facts.told_durable(&peer.name).min(from.prev());
            (peer.received, peer.durable) = (from.prev(), confirmed);
            peer.sent = from.prev();
            peer.applied = peer.applied.min(from.prev());
            self.actions.push(Action::Stream {
                link,
                from,
                end: None,
            });
        }
        let peer = &mut self.peers[at];
        if peer.gated {
            // What is durable there already it will not acknowledge again.
            peer.owes_from(now);
        }
        self.check_progress(at);
    }

    /// A frame up to this LSN was handed to a link.
    pub fn sent(&mut self, link: Link, lsn: Lsn, now: Duration) {
        let peer = self
            .peers
            .iter_mut()
            .find(|p| p.streaming_link() == Some(link));
        if let Some(peer) = peer {
            peer.sent = peer.sent.max(lsn);
            if peer.gated && peer.owes_since.is_none() {
                peer.owes_from(now);
            }
        }
    }

    /// The journal here is durable up to `lsn`.
    pub(super) fn local_durable(&mut self, lsn: Lsn, view: &View) {
        self.durable = self.durable.max(lsn);
        match self.mode {
            Mode::Fetching(link) => {
                self.mirror_durable();
                self.fetched_durable(link, view);
            }
            Mode::Mirror | Mode::Probing => self.mirror_durable(),
            _ => self.advance_commit(),
        }
        self.continue_drain();
    }

    /// A mirror told its progress.
    pub(super) fn acked(&mut self, at: usize, ack: &super::links::Progress) {
        let now = self.now;
        let tail = self.tail;
        let confirmed = ack.durable;
        #[cfg(test)]
        let confirmed = if sabotaged(Sabotage::ReceivedIsDurable) {
            ack.received
        } else {
            confirmed
        };
        let peer = &mut self.peers[at];
        let PeerPhase::Streaming {
            ref mut copying, ..
        } = peer.phase
        else {
            return;
        };
        if ack.received > tail || ack.durable > ack.received {
            let text = format!(
                "{} acknowledged LSN {} (durable {}) but LSN {tail} is the last",
                peer.name, ack.received, ack.durable
            );
            self.drop_peer_link(at, &text);
            return;
        }
        let complete = std::mem::replace(copying, ack.inconsistent) && !ack.inconsistent;
        let progress = ack.durable > peer.durable || ack.received > peer.received;
        peer.needs_copy = ack.inconsistent;
        peer.received = peer.received.max(ack.received);
        peer.durable = peer.durable.max(confirmed);
        if complete {
            // From here on what it confirms counts; in sync it is once it has all of it.
            peer.gate_lsn = tail;
        }
        if complete || progress {
            peer.owes_from(now);
        }
        peer.applied = peer.applied.max(ack.applied);
        peer.credit_bytes = ack.credit_bytes;
        let (name, durable) = (peer.name.clone(), peer.durable);
        self.facts.note_told_durable(&name, durable);
        self.advance_commit();
        self.check_progress(at);
        self.continue_drain();
    }

    /// Lets a peer in when it is near, and counts it in sync when it has confirmed.
    pub(super) fn check_progress(&mut self, at: usize) {
        let now = self.now;
        let timeout = self.config.timeout;
        let tail = self.tail;
        let peer = &mut self.peers[at];
        if !matches!(peer.phase, PeerPhase::Streaming { copying: false, .. }) {
            return;
        }
        if !peer.gated {
            if peer.held_down_until().is_some_and(|until| now < until)
                || !peer.near_enough(tail, now, timeout)
            {
                return;
            }
            peer.gated = true;
            peer.gate_lsn = tail;
            #[cfg(test)]
            if sabotaged(Sabotage::InSyncByInference) {
                (peer.in_sync, peer.gate_lsn) = (true, Lsn::ZERO);
            }
            peer.cannot_keep_up = false;
            peer.owes_from(now);
        }
        if !peer.in_sync && !peer.recording && peer.durable >= peer.gate_lsn {
            peer.recording = true;
            let name = peer.name.clone();
            self.facts.ever_in_sync = true;
            self.facts.alone.retain(|a| a.peer != name);
            if self.facts.alone.is_empty() && self.facts.ack != AckMode::Async {
                self.facts.wrote_alone = false;
            }
            if self.peers.iter().all(|p| p.in_sync || p.name == name) {
                // All hold the same now, and nobody a whole copy besides.
                self.facts.mixture = None;
            }
            self.save(Then::InSync(at));
        }
    }

    /// It is on durable record that this peer is in sync (and that this site is not alone).
    pub(super) fn in_sync_recorded(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if peer.recording && peer.gated && peer.streaming_link().is_some() {
            peer.recording = false;
            peer.in_sync = true;
            let text = format!("{} is in sync", peer.name);
            self.log(Severity::Info, text);
        }
    }

    /// A gated peer's silence has lasted too long, or it is certainly gone.
    pub(super) fn peer_lost(&mut self, at: usize, reason: &str) {
        let now = self.now;
        let peer = &mut self.peers[at];
        if peer.dead {
            return;
        }
        peer.dead = true;
        peer.in_sync = false;
        peer.recording = false;
        let name = peer.name.clone();
        if peer.gated {
            peer.note_loss(now);
            self.log(Severity::Warn, format!("lost {name}: {reason}"));
        }
        self.abort_drain(&format!("{name} was lost"));
        self.settle_loss(at);
    }

    /// Asks whether this site may go on without a dead peer that acknowledgements wait for.
    pub(super) fn settle_loss(&mut self, at: usize) {
        let peer = &self.peers[at];
        // A peer that answers as primary, or follows another, is not lost: going on would only make a fork.
        let may_ask = matches!(self.mode, Mode::Serving)
            && peer.gated
            && peer.dead
            && peer.conflict.is_none()
            && !peer.follows_another();
        if may_ask {
            let question = Question::GoAlone {
                peer: peer.name.clone(),
                first: !self.facts.ever_in_sync,
            };
            self.ask_to_go_alone(at, question);
        }
    }

    pub(super) fn granted(&mut self, question: &Question, view: &View) {
        let Question::GoAlone { peer: name, .. } = question;
        let Some(at) = self.peers.iter().position(|p| &p.name == name) else {
            return;
        };
        self.peers[at].asking = false;
        let still_needed = match self.mode {
            Mode::Serving => {
                let peer = &self.peers[at];
                peer.gated && peer.dead && peer.conflict.is_none() && !peer.follows_another()
            }
            Mode::Returning | Mode::Waiting(_) => true,
            _ => false,
        };
        if !still_needed {
            return;
        }
        #[cfg(test)]
        if sabotaged(Sabotage::GoAloneWithoutRecord) && self.mode == Mode::Serving {
            self.peers[at].let_go();
            return self.advance_commit();
        }
        self.leave_behind(at, view);
        if self.mode == Mode::Serving {
            self.open_epoch(view);
        } else {
            self.try_to_open(view);
        }
    }

    /// From the next epoch on this peer is not waited for. The other ones are.
    pub(super) fn leave_behind(&mut self, at: usize, view: &View) {
        self.peers[at].let_go();
        let name = self.peers[at].name.clone();
        // What was acknowledged without its word (`async`, `memsync`, or before acknowledgements waited for it) is here only,
        // too. Nothing is on record of one that has confirmed nothing since this site is primary.
        let confirmed = match self.facts.told_durable(&name) {
            Lsn::ZERO => self.commit,
            told => told.min(self.commit),
        };
        self.facts.go_without(Alone {
            peer: name.clone(),
            since_ns: view.time_ns,
            from_lsn: confirmed.next(),
        });
        // What is under way is acknowledged without it, too.
        self.facts.wrote_alone |= self.facts.written > confirmed;
        let with: Vec<&str> = self
            .peers
            .iter()
            .filter(|p| !self.facts.without(&p.name))
            .map(|p| p.name.as_str())
            .collect();
        let whereto = if with.is_empty() {
            "this site only".to_owned()
        } else {
            format!("this site and {}", with.join(", "))
        };
        self.log(
            Severity::Warn,
            format!("going on without {name}; writes are on {whereto}"),
        );
    }

    pub(super) fn denied(&mut self, question: &Question, reason: &str) {
        let Question::GoAlone { peer: name, .. } = question;
        let Some(at) = self.peers.iter().position(|p| &p.name == name) else {
            return;
        };
        self.peers[at].asking = false;
        self.log(Severity::Error, format!("frozen: {reason}"));
        if matches!(self.mode, Mode::Returning) {
            self.set_mode(Mode::Waiting(reason.to_owned()));
        }
    }

    /// Nothing is acknowledged because a dead peer is waited for.
    pub fn frozen(&self) -> bool {
        self.mode == Mode::Serving
            && self.config.on_peer_loss == OnPeerLoss::Freeze
            && self.peers.iter().any(|p| p.gated && p.dead)
    }

    /// A peer's fetched tail grew durable here.
    fn fetched_durable(&mut self, link: Link, view: &View) {
        let Some(upstream) = &self.upstream else {
            return;
        };
        if upstream.fetch_end.is_some_and(|end| end <= self.durable) {
            self.upstream = None;
            self.set_mode(Mode::Returning);
            if let Some(at) = self.peer_on(link) {
                let tail = self.tail;
                self.peers[at].asked = true;
                self.peers[at].phase = PeerPhase::Agreed {
                    link,
                    tail,
                    copy: false,
                };
            }
            // What the others have is to be seen against the history as it is now.
            let now = self.now;
            for peer in &mut self.peers {
                if !peer.cut && !matches!(peer.phase, PeerPhase::Agreed { .. }) {
                    peer.asked = false;
                    if let PeerPhase::Down { .. } = peer.phase {
                        peer.retry_now(now);
                    }
                }
            }
            self.start_due_connects();
            self.try_to_open(view);
        }
    }

    /// Bookkeeping for the tests and the caller: a copy to this link was sent up to `lsn`.
    pub(super) fn copy_sent(&mut self, link: Link, lsn: Lsn) {
        self.actions
            .push(Action::Send(link, Message::ChunksEnd { lsn }));
    }

    /// Becoming a mirror is on durable record.
    pub(super) fn stepped_down(&mut self) {
        if self.mode == Mode::Mirror {
            return;
        }
        self.set_mode(Mode::Mirror);
        self.claimed = self.commit;
        self.peers.iter_mut().for_each(super::Peer::let_go);
        self.close_clients();
    }

    /// Starts becoming a mirror because another site is rightfully primary.
    pub(super) fn step_down(&mut self, why: &str) {
        self.log(Severity::Warn, format!("becoming a mirror: {why}"));
        self.promised_done(match &self.facts.handed {
            Some(handed) => Ok(format!("{} is primary now; nothing was lost", handed.to)),
            None => Err(format!("this site becomes a mirror: {why}")),
        });
        self.become_mirror();
        self.facts.handed = None;
        self.somebody_took_over();
        self.save(Then::StepDown);
    }

    /// Another site is primary, and is about to connect.
    pub(super) fn somebody_took_over(&mut self) {
        let now = self.now;
        for peer in &mut self.peers {
            (peer.left, peer.trouble) = (Some(Left::ForNow(now)), None);
        }
    }

    /// The role ends. To be saved by the caller.
    pub(super) fn become_mirror(&mut self) {
        if self.facts.role == Role::Primary && self.lost_history() {
            // The homes hold what the journal has lost, and nobody can say where: all of them are compared.
            self.facts.inconsistent_until = Some(Lsn(u64::MAX));
            self.actions.push(Action::Distrust);
        }
        self.facts.role = Role::Mirror;
    }
}
