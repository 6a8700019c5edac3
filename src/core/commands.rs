//! What operators order: promote, demote, switchover, connect, disconnect, stop.

use std::time::Duration;

use super::{
    Action, Alone, Command, Core, Drain, Handed, Left, Link, Mode, Overrides, PeerPhase, Severity,
    Then, View,
};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{Hello, Hindrance, Lsn, Message, Refusal, Role, Stance, lsns};

/// Asking the peers before a promotion.
#[derive(Debug)]
pub(super) struct Probe {
    command: u64,
    overrides: Overrides,
    since: Duration,
    asked: Vec<Asked>,
    /// The primary whose link is still up said something since.
    upstream_spoke: bool,
}

#[derive(Debug)]
struct Asked {
    peer: String,
    link: Option<Link>,
    answer: Option<Result<Box<Hello>, String>>,
}

/// A fork that is to be resolved, once the peer has said that it serves no more.
#[derive(Debug)]
pub(super) struct Resolving {
    command: u64,
    discard: String,
    since: Duration,
}

/// A peer with which there is a fork is asked whether it is there, before this site is promoted past it.
#[derive(Debug)]
pub(super) struct Passing {
    command: u64,
    overrides: Overrides,
    peer: String,
    since: Duration,
}

/// The operator's word on a fork, until the two are connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The site that gives up its writes.
    pub discard: String,
    /// When that was ordered, nanoseconds since the Unix epoch.
    pub since_ns: u64,
}

impl Core {
    pub(super) fn command(&mut self, id: u64, command: Command, view: &View) {
        match command {
            Command::Promote(overrides) => self.promote(id, overrides, view),
            Command::Demote => self.demote(id),
            Command::Switchover => self.switchover(id),
            Command::Connect => {
                let was_cut = self.peers.iter().any(|p| p.cut);
                for peer in &mut self.peers {
                    peer.cut = false;
                }
                self.connect_all();
                let text = if was_cut {
                    "the link may connect again"
                } else {
                    "the link was not cut here"
                };
                let text = format!(
                    "{text}; `doublure status {}` shows how it is",
                    self.config.group
                );
                self.done(id, Ok(text));
            }
            Command::Disconnect => self.disconnect(id, view),
            Command::Resolve { discard } => self.resolve(id, &discard, view),
            Command::Shutdown => {
                self.closing = true;
                self.actions.push(Action::Stop);
                self.done(id, Ok("stopping".into()));
            }
        }
    }

    fn done(&mut self, id: u64, result: Result<String, String>) {
        self.actions.push(Action::CommandDone(id, result));
    }

    /// Ends a promotion that waited for its outcome.
    pub(super) fn promised_done(&mut self, result: Result<String, String>) {
        if let Some(id) = self.promised_command.take() {
            self.done(id, result);
        }
    }

    /// Nothing that operators asked for comes about any more, except what is on its way to the record already.
    pub(super) fn end_commands(&mut self, why: &str) {
        #[cfg(test)]
        if sabotaged(Sabotage::LeaveTheFence) {
            return;
        }
        if let Some(probe) = self.probe.take() {
            let links = probe.asked.iter().filter_map(|asked| asked.link);
            self.actions.extend(links.map(Action::Close));
            self.done(probe.command, Err(why.to_owned()));
        }
        self.promised_done(Err(why.to_owned()));
        if let Some(passing) = self.passing.take() {
            self.done(passing.command, Err(why.to_owned()));
        }
        if let Some(resolving) = self.resolving.take() {
            self.done(resolving.command, Err(why.to_owned()));
        }
        if let Mode::Draining(drain) = &self.mode {
            let id = match drain {
                Drain::Demote(id) | Drain::Switchover(id, _) => *id,
            };
            if !self.drain_is_recorded() {
                self.done(id, Err(why.to_owned()));
            }
        }
    }

    /// What a demotion or switchover comes to is on its way to the record.
    fn drain_is_recorded(&self) -> bool {
        self.saves
            .iter()
            .any(|(_, then)| matches!(then, Then::Handed(_) | Then::Demoted(_)))
    }

    fn promote(&mut self, id: u64, overrides: Overrides, view: &View) {
        let (me, group) = (self.config.site.clone(), self.config.group.clone());
        match &self.mode {
            Mode::Serving if self.frozen() => self.promote_frozen(id, overrides, view),
            Mode::Serving | Mode::Draining(_) => {
                self.done(id, Ok(format!("{me} is primary of {group} already")));
            }
            Mode::Opening => self.done(id, Ok(format!("{me} is becoming primary of {group}"))),
            Mode::Probing | Mode::GoingBack => {
                self.done(id, Err("another promotion is under way".into()));
            }
            Mode::Fenced(why) => {
                let text = format!(
                    "{group} is fenced on {me}: {why}. `doublure explain {group}` tells what can be done"
                );
                self.done(id, Err(text));
            }
            Mode::Stopped => self.done(id, Err("stopping".into())),
            Mode::Returning | Mode::Waiting(_) | Mode::Fetching(_) => {
                self.promote_waiting(id, overrides, view);
            }
            Mode::HandedOver if !overrides.peer_unreachable => {
                let to = self.primary_name();
                let text = format!(
                    "{group} was handed to {to} and this completes by itself when {to} answers; if {to} is gone for good, {} \
                     takes it back (both would be primary if {to} took it)",
                    overrides.without_asking().command(&group)
                );
                self.done(id, Err(text));
            }
            Mode::HandedOver | Mode::Mirror => {
                if let Err(text) = self.may_promote(overrides, view) {
                    self.done(id, Err(text));
                } else {
                    self.begin_probe(id, overrides, view);
                }
            }
        }
    }

    /// The policy lets a frozen primary wait; the operator may decide otherwise.
    fn promote_frozen(&mut self, id: u64, overrides: Overrides, view: &View) {
        let dead = |p: &super::Peer| p.gated && p.dead;
        // Going on beside a peer that serves, or has gone on by itself, would only make a fork.
        let conflict = |p: &&super::Peer| dead(p) && p.conflict.is_some();
        if let Some(peer) = self.peers.iter().find(conflict) {
            let text = peer.refused.clone().unwrap_or_default();
            self.done(id, Err(text));
            return;
        }
        if !overrides.peer_unreachable {
            let names: Vec<&str> = self
                .peers
                .iter()
                .filter(|p| dead(p))
                .map(|p| p.name.as_str())
                .collect();
            let name = names.join(" and ");
            let text = format!(
                "{} is primary of {} already and acknowledges nothing without {name}; {} lets it go on alone: what it \
                 acknowledges then is on this site only until {name} is back",
                self.config.site,
                self.config.group,
                overrides.without_asking().command(&self.config.group)
            );
            self.done(id, Err(text));
            return;
        }
        self.promised_command = Some(id);
        for at in 0..self.peers.len() {
            if dead(&self.peers[at]) {
                self.leave_behind(at, view);
            }
        }
        self.open_epoch(view);
    }

    /// What this site knows by itself that speaks against a promotion.
    fn may_promote(&self, overrides: Overrides, view: &View) -> Result<(), String> {
        let me = &self.config.site;
        #[cfg(test)]
        if sabotaged(Sabotage::PromoteInconsistent) {
            return Ok(());
        }
        if self.facts.inconsistent_until.is_some() && !overrides.inconsistent {
            let group = &self.config.group;
            let needed = Overrides {
                inconsistent: true,
                ..overrides
            };
            let (command, unasked) = (
                needed.command(group),
                needed.without_asking().command(group),
            );
            let unasked = if needed.peer_unreachable {
                String::new()
            } else {
                format!("; if its primary cannot be asked, {unasked}")
            };
            if let Some(point) = view.undo {
                let age = view.time_ns.saturating_sub(point.time_ns) / 1_000_000_000;
                return Err(format!(
                    "{me} is in the middle of a copy, and kept what it held before. {command} goes back to that: to LSN {}, \
                     written {age} s ago{unasked}. Everything written to the group since then is lost here; if its primary \
                     may come back, wait for it instead",
                    point.lsn
                ));
            }
            return Err(format!(
                "{me} is in the middle of a copy: its volumes mix old and new content and are most likely unusable. \
                 {command} promotes it all the same{unasked}"
            ));
        }
        if self.facts.lineage.is_empty() {
            return Err(format!(
                "{me} holds nothing of group {} yet",
                self.config.group
            ));
        }
        if self.gives_itself_up() && !overrides.peer_unreachable {
            return Err(self.order_text());
        }
        if self.lost_history() && !overrides.behind {
            let needed = Overrides {
                behind: true,
                ..overrides
            };
            return Err(format!(
                "{me} once held everything up to LSN {} and now ends at LSN {}: its disk lost history. {} gives up {}; if a peer \
                 still has that, promote that one instead",
                self.facts.floor,
                self.tail,
                needed.command(&self.config.group),
                lsns(self.tail.next(), self.facts.floor),
            ));
        }
        Ok(())
    }

    fn begin_probe(&mut self, id: u64, overrides: Overrides, view: &View) {
        let asked = self
            .peers
            .iter()
            .map(|p| Asked {
                peer: p.name.clone(),
                link: None,
                answer: None,
            })
            .collect();
        self.probe = Some(Probe {
            command: id,
            overrides,
            since: self.now,
            asked,
            upstream_spoke: false,
        });
        // It may have died a moment ago, and the connection not have noticed.
        if let Some(link) = self.upstream.as_ref().map(|u| u.link) {
            self.actions
                .push(Action::Send(link, Message::Ping { token: 0 }));
        }
        for at in 0..self.peers.len() {
            self.peer_link_down(at, None);
            self.peers[at].phase = PeerPhase::Down { retry_at: None };
            self.actions
                .push(Action::Connect(self.peers[at].name.clone()));
        }
        self.set_mode(Mode::Probing);
        self.probe_complete(view);
    }

    pub(super) fn probe_connected(&mut self, link: Link, name: &str, view: &View) -> bool {
        if self.mode != Mode::Probing {
            return false;
        }
        let hello = self.hello(name, view);
        let asked = self
            .probe
            .as_mut()
            .and_then(|p| p.asked.iter_mut().find(|a| a.peer == name));
        match asked {
            Some(asked) if asked.answer.is_none() => {
                asked.link = Some(link);
                self.actions
                    .push(Action::Send(link, Message::Hello(Box::new(hello))));
            }
            _ => self.actions.push(Action::Close(link)),
        }
        true
    }

    pub(super) fn probe_failed(&mut self, name: &str, reason: &str, view: &View) -> bool {
        if self.mode != Mode::Probing {
            return false;
        }
        self.probe_answer(|a| a.peer == name, Err(reason.to_owned()), view);
        true
    }

    pub(super) fn probe_closed(&mut self, link: Link, reason: &str, view: &View) -> bool {
        if !self.is_probe(link) {
            return false;
        }
        self.probe_answer(|a| a.link == Some(link), Err(reason.to_owned()), view);
        true
    }

    pub(super) fn is_probe(&self, link: Link) -> bool {
        self.probe
            .as_ref()
            .is_some_and(|p| p.asked.iter().any(|a| a.link == Some(link)))
    }

    pub(super) fn probe_message(&mut self, link: Link, message: &Message, view: &View) -> bool {
        if !self.is_probe(link) {
            return false;
        }
        let asked = self.probe.iter().flat_map(|p| &p.asked);
        let name = asked
            .into_iter()
            .find(|a| a.link == Some(link))
            .map(|a| a.peer.clone());
        if let Some(peer) = self
            .peers
            .iter_mut()
            .find(|p| Some(&p.name) == name.as_ref())
        {
            peer.last_heard = Some(self.now);
            if let Message::Refuse { refusal, .. } = message
                && *refusal == Refusal::Fenced
            {
                peer.left = Some(Left::Fenced);
            }
        }
        let answer = match message {
            Message::Hello(theirs) => Ok(theirs.clone()),
            Message::Refuse { text, .. } | Message::Bye { reason: text } => Err(text.clone()),
            other => Err(format!("answered with {}", super::links::kind(other))),
        };
        self.actions.push(Action::Close(link));
        self.probe_answer(|a| a.link == Some(link), answer, view);
        true
    }

    fn probe_answer(
        &mut self,
        which: impl Fn(&Asked) -> bool,
        answer: Result<Box<Hello>, String>,
        view: &View,
    ) {
        if let Some(asked) = self
            .probe
            .as_mut()
            .and_then(|p| p.asked.iter_mut().find(|a| which(a)))
        {
            asked.link = None;
            asked.answer.get_or_insert(answer);
        }
        self.probe_complete(view);
    }

    pub(super) fn probe_deadline(&self) -> Option<Duration> {
        let handing = matches!(self.mode, Mode::HandedOver) && self.promised_command.is_some();
        let handed = handing.then(|| self.handed_at + self.config.timeout * 2);
        self.probe
            .as_ref()
            .map(|p| p.since + self.config.timeout)
            .or(handed)
    }

    pub(super) fn probe_tick(&mut self, view: &View) {
        let now = self.now;
        let timeout = self.config.timeout;
        if matches!(self.mode, Mode::HandedOver) && now >= self.handed_at + timeout * 2 {
            let to = self.primary_name();
            self.promised_done(Err(format!(
                "the group is handed to {to}, which has not confirmed yet; nobody serves until it does. This goes on by \
                 itself when {to} answers"
            )));
        }
        let Some(probe) = self.probe.as_mut().filter(|p| now >= p.since + timeout) else {
            return;
        };
        let mut late = Vec::new();
        for asked in probe.asked.iter_mut().filter(|a| a.answer.is_none()) {
            asked.answer = Some(Err(format!("no answer within {timeout:?}")));
            late.extend(asked.link.take());
        }
        self.actions.extend(late.into_iter().map(Action::Close));
        self.probe_complete(view);
    }

    /// All peers have answered or cannot: promote, or say why not.
    pub(super) fn probe_complete(&mut self, view: &View) {
        if self
            .probe
            .as_ref()
            .is_none_or(|p| p.asked.iter().any(|a| a.answer.is_none()))
        {
            return;
        }
        let waits = |p: &Probe| !p.upstream_spoke && self.now < p.since + self.config.timeout;
        if self.upstream.is_some() && self.probe.as_ref().is_some_and(waits) {
            return;
        }
        let probe = self.probe.take().expect("just seen");
        if let Some(upstream) = &self.upstream {
            if probe.upstream_spoke {
                let text = format!(
                    "{} answers as primary; `doublure switchover {}` on {} hands the role over and loses nothing",
                    upstream.site, self.config.group, upstream.site
                );
                self.set_mode(Mode::Mirror);
                self.done(probe.command, Err(text));
                return;
            }
            self.forget_upstream("silent, and this site is to be promoted");
        }
        let back = if self.facts.handed.is_some() {
            Mode::HandedOver
        } else {
            Mode::Mirror
        };
        let mut unreachable = Vec::new();
        for asked in &probe.asked {
            let verdict = match asked.answer.as_ref().expect("all answered") {
                Ok(theirs) => self.objection(theirs, probe.overrides),
                Err(reason) if probe.overrides.peer_unreachable => {
                    unreachable.push(asked.peer.clone());
                    self.log(
                        Severity::Warn,
                        format!("promotion without {}: {reason}", asked.peer),
                    );
                    None
                }
                Err(reason) => {
                    let since = probe.since;
                    Some(self.unreachable_text(&asked.peer, reason, probe.overrides, since, view))
                }
            };
            if let Some(text) = verdict {
                self.set_mode(back.clone());
                self.done(probe.command, Err(text));
                self.connect_all();
                return;
            }
        }
        self.become_primary(probe.command, &unreachable, view);
    }

    /// Something came on the link to the primary while this site asks whether it may be promoted.
    pub(super) fn upstream_spoke(&mut self, link: Link, view: &View) {
        let is_upstream = self.upstream.as_ref().is_some_and(|u| u.link == link);
        if let Some(probe) = self.probe.as_mut().filter(|_| is_upstream) {
            probe.upstream_spoke = true;
            self.probe_complete(view);
        }
    }

    /// What a peer's answer has against this site becoming primary.
    fn objection(&self, theirs: &Hello, overrides: Overrides) -> Option<String> {
        let group = &self.config.group;
        match theirs.stance {
            Stance::Serving => Some(format!(
                "{} answers as primary; `doublure switchover {group}` on {} hands the role over and loses nothing",
                theirs.site, theirs.site
            )),
            Stance::Returning => Some(format!(
                "{} is primary by its record and is starting; if it shall not be, `doublure demote {group}` on {} comes first",
                theirs.site, theirs.site
            )),
            Stance::HandedOver | Stance::Probe => None,
            Stance::Mirror => {
                let common = self
                    .facts
                    .lineage
                    .common(self.tail, &theirs.lineage, theirs.tail);
                let has_more = common.is_none_or(|c| c.they_went_on || c.theirs > c.mine);
                let needed = Overrides {
                    behind: true,
                    ..overrides
                };
                let fork = common.filter(|c| c.i_went_on && c.they_went_on);
                (has_more && !overrides.behind).then(|| {
                    if let Some(common) = fork {
                        return self.neither_is_primary(&theirs.site, theirs.tail, common.lsn());
                    }
                    format!(
                        "{} has more: its history ends at LSN {}, here it ends at LSN {}. `doublure promote {group}` on {} \
                         loses nothing; {} here gives its surplus up",
                        theirs.site,
                        theirs.tail,
                        self.tail,
                        theirs.site,
                        needed.command(group)
                    )
                })
            }
        }
    }

    /// Two mirrors with a fork between them: whose writes to keep decides which one is to be promoted.
    fn neither_is_primary(&self, peer: &str, their_tail: Lsn, shared: Lsn) -> String {
        let (me, group, first) = (&self.config.site, &self.config.group, shared.next());
        format!(
            "{me} and {peer} have the same history up to LSN {shared}, and each has gone on by itself: {me} from LSN {first} to \
             {}, {peer} to {their_tail}. To keep what {me} wrote, run `doublure promote {group} --force behind` and then \
             `doublure resolve {group} --discard {peer}`; to keep what {peer} wrote, `doublure promote {group} --force \
             behind` on {peer} and then `doublure resolve {group} --discard {me}` on {peer}",
            self.tail
        )
    }

    fn unreachable_text(
        &self,
        peer: &str,
        reason: &str,
        overrides: Overrides,
        asked_at: Duration,
        view: &View,
    ) -> String {
        let heard = self
            .peers
            .iter()
            .find(|p| p.name == peer)
            .and_then(|p| p.last_heard);
        let heard = heard.map_or_else(
            || "it was not heard of since this daemon started".to_owned(),
            |at| {
                format!(
                    "it was last heard of {} s ago",
                    self.now.saturating_sub(at).as_secs()
                )
            },
        );
        let loss = match self.facts.ack {
            crate::base::AckMode::Async => "writes it acknowledged since then are lost",
            _ => "writes it acknowledged alone since then, if any, are not here",
        };
        let held = match view
            .undo
            .filter(|_| self.facts.inconsistent_until.is_some())
        {
            Some(point) => format!(
                "This site is in the middle of a copy and goes back to LSN {}, what it held before",
                point.lsn
            ),
            None => format!(
                "This site is at LSN {} (committed {})",
                self.tail, self.commit
            ),
        };
        let known = self.peers.iter().find(|p| p.name == peer);
        let answers = |p: &super::Peer| p.last_heard.is_some_and(|heard| heard >= asked_at);
        if known.is_some_and(|p| p.left == Some(Left::Fenced) && answers(p)) {
            return format!(
                "{peer} answers, but its disk failed ({reason}): it acknowledges nothing any more, and cannot say what it has; \
                 {loss}. {held}. {} goes on without it",
                overrides.without_asking().command(&self.config.group)
            );
        }
        format!(
            "{peer} cannot be reached ({reason}); {heard}. If it still serves, two primaries would write apart from each \
             other; {loss}. {held}. When you are sure that {peer} is down: {}",
            overrides.without_asking().command(&self.config.group)
        )
    }

    /// The engine has undone the copy, or cannot.
    pub(super) fn went_back(&mut self, result: Result<Box<super::WentBack>, String>, view: &View) {
        let Some((command, unreachable)) = self.going_back.take() else {
            return;
        };
        if self.mode != Mode::GoingBack {
            // The disk failed, or the site was told to stop: the copy is still on record.
            self.done(
                command,
                Err("this site stopped before it had gone back".into()),
            );
            return;
        }
        match result {
            Ok(back) => {
                let super::WentBack {
                    tail,
                    lineage,
                    facts,
                } = *back;
                self.log(
                    Severity::Warn,
                    format!("went back to LSN {tail}, what this site held before the copy began"),
                );
                self.facts = facts;
                self.facts.lineage = lineage;
                self.facts.inconsistent_until = None;
                self.facts.given_up = uuid::Uuid::nil();
                self.facts.written = tail;
                self.facts.wrote_alone = false;
                self.forget_conflicts();
                (
                    self.tail,
                    self.durable,
                    self.commit,
                    self.claimed,
                    self.applied,
                ) = (tail, tail, tail, tail, tail);
                self.become_primary(command, &unreachable, view);
            }
            Err(why) => {
                self.set_mode(Mode::Mirror);
                self.done(command, Err(why));
                self.connect_all();
            }
        }
    }

    fn become_primary(&mut self, command: u64, unreachable: &[String], view: &View) {
        if self.facts.inconsistent_until.is_some() && view.undo.is_some() {
            self.going_back = Some((command, unreachable.to_vec()));
            self.set_mode(Mode::GoingBack);
            self.actions.push(Action::GoBack);
            return;
        }
        let (from_lsn, since_ns) = (self.commit.next(), view.time_ns);
        #[cfg(test)]
        if sabotaged(Sabotage::PromoteWithoutTail) && self.commit < self.tail {
            self.actions.push(Action::Truncate(self.commit));
            (self.tail, self.durable) = (self.commit, self.commit);
            self.facts.lineage.truncate_after(self.tail);
            self.facts.written = self.facts.written.min(self.tail);
        }
        self.log(Severity::Warn, format!("promoted at LSN {}", self.tail));
        if !unreachable.is_empty() {
            self.take_order_back();
        }
        self.facts.role = Role::Primary;
        self.facts.handed = None;
        self.facts.floor = self.facts.floor.min(self.tail);
        if self.facts.inconsistent_until.take().is_some() {
            self.actions.push(Action::Distrust);
            self.facts.mixture = Some(super::Mixture {
                id: self.fresh_id(),
                lsn: self.tail,
                since_ns,
            });
        }
        let alone = |peer: &String| Alone {
            peer: peer.clone(),
            since_ns,
            from_lsn,
        };
        for site in unreachable {
            self.go_past(site);
        }
        self.facts.alone = unreachable.iter().map(alone).collect();
        self.facts.told_durable.clear();
        self.promised_command = Some(command);
        self.set_mode(Mode::Returning);
        for peer in &mut self.peers {
            peer.asked = unreachable.contains(&peer.name);
            peer.let_go();
            peer.dead = false;
            peer.follows_since = None;
            // What it confirmed, if ever, it confirmed to another history's end.
            (peer.received, peer.durable, peer.applied) = (Lsn::ZERO, Lsn::ZERO, Lsn::ZERO);
        }
        self.connect_all();
        self.try_to_open(view);
    }

    /// Primary by record, and the operator says that it shall serve.
    fn promote_waiting(&mut self, id: u64, overrides: Overrides, view: &View) {
        if self.gives_itself_up() && !overrides.peer_unreachable {
            let text = self.order_text();
            self.done(id, Err(text));
            return;
        }
        if self.lost_history() && !overrides.behind {
            let why = self.lost_history_text(overrides);
            self.done(id, Err(why));
            return;
        }
        let refusing = self.peers.iter().position(|p| p.refused.is_some());
        if let Some(at) = refusing {
            self.promote_past(id, overrides, at, view);
            return;
        }
        if self.lost_history() && self.everybody_agreed() {
            self.distrust_homes();
            self.facts.floor = self.tail;
            self.promised_command = Some(id);
            self.try_to_open(view);
            return;
        }
        if !overrides.peer_unreachable {
            let why = match &self.mode {
                // What is overridden already is not asked for again.
                Mode::Waiting(_) if self.lost_history() => self.lost_history_text(overrides),
                Mode::Waiting(why) => why.clone(),
                _ => "this site is primary by its record and is asking its peer; it serves as soon as that is settled".into(),
            };
            self.done(id, Err(why));
            return;
        }
        if let Mode::Fetching(_) = self.mode {
            self.done(
                id,
                Err("the peer answers; its tail is being taken over".into()),
            );
            return;
        }
        if self.facts.role != Role::Primary {
            let text = format!("{} is becoming a mirror", self.config.site);
            self.done(id, Err(text));
            return;
        }
        let settling = |p: &super::Peer| {
            matches!(
                p.phase,
                PeerPhase::Longer { .. } | PeerPhase::Greeting { .. }
            )
        };
        if let Some(peer) = self.peers.iter().find(|p| settling(p)) {
            let text = format!(
                "{} answers; this site will serve as soon as the two have agreed",
                peer.name
            );
            self.done(id, Err(text));
            return;
        }
        if self.lost_history() {
            self.distrust_homes();
        }
        self.take_order_back();
        self.facts.floor = self.facts.floor.min(self.tail);
        self.facts.forget_all_but(&self.config.peers);
        let (from_lsn, since_ns) = (self.commit.next(), view.time_ns);
        for peer in &mut self.peers {
            let agreed = matches!(peer.phase, PeerPhase::Agreed { copy: false, .. });
            if !agreed && !self.facts.without(&peer.name) {
                self.facts.go_without(Alone {
                    peer: peer.name.clone(),
                    since_ns,
                    from_lsn,
                });
            }
            peer.asked = true;
        }
        self.promised_command = Some(id);
        self.try_to_open(view);
    }

    /// A peer refused the link. Past one with which there is a fork an operator may go if it is silent: it is asked first.
    fn promote_past(&mut self, id: u64, overrides: Overrides, at: usize, view: &View) {
        let peer = &self.peers[at];
        let refused = peer.refused.clone().unwrap_or_default();
        let Some(fork) = &peer.fork else {
            self.done(id, Err(refused));
            return;
        };
        if !overrides.peer_unreachable {
            let text = format!(
                "{refused}. {}",
                self.past_text(peer, fork, overrides.without_asking())
            );
            self.done(id, Err(text));
            return;
        }
        if self.passing.is_some() {
            self.done(id, Err("another promotion is under way".into()));
            return;
        }
        self.passing = Some(Passing {
            command: id,
            overrides,
            peer: peer.name.clone(),
            since: self.now,
        });
        if peer.cut {
            let name = peer.name.clone();
            self.pass_unheard(&name, view);
        } else {
            self.connect_all();
        }
    }

    /// What the other side of a fork wrote, when it was last heard of, and what goes on without it.
    fn past_text(&self, peer: &super::Peer, fork: &super::Fork, needed: Overrides) -> String {
        let (name, me, group) = (&peer.name, &self.config.site, &self.config.group);
        let written = fork.their_tail.since(fork.shared);
        let written = match written.saturating_sub(fork.their_epochs) {
            0 => format!("{name} had written nothing since LSN {}", fork.shared),
            n => format!(
                "{name} had written {} (up to LSN {})",
                crate::base::counted(n, "operation"),
                fork.their_tail
            ),
        };
        let heard = peer.last_heard.map_or_else(
            || "it was not heard of since this daemon started".to_owned(),
            |at| {
                format!(
                    "it was last heard of {} s ago",
                    self.now.saturating_sub(at).as_secs()
                )
            },
        );
        format!(
            "When the fork was found, {written}; {heard}. If {name} is gone for good, or for too long, {} makes {me} serve what \
             it holds: the fork stands, and is resolved when {name} is back",
            needed.command(group)
        )
    }

    /// The peer answers: nobody goes past it.
    pub(super) fn pass_heard(&mut self, site: &str) {
        if let Some(passing) = self.passing.take_if(|p| p.peer == site) {
            let peer = self.peers.iter().find(|p| p.name == site);
            let refused = peer.and_then(|p| p.refused.clone()).unwrap_or_default();
            let text = format!("{site} answers, and is not to be gone past: {refused}");
            self.done(passing.command, Err(text));
        }
    }

    /// The peer does not answer: an operator takes it upon himself that this site goes on with its side of the fork.
    pub(super) fn pass_unheard(&mut self, site: &str, view: &View) {
        let Some(passing) = self.passing.take_if(|p| p.peer == site) else {
            return;
        };
        self.go_past(site);
        if matches!(self.mode, Mode::Returning | Mode::Waiting(_)) {
            self.promote_waiting(passing.command, passing.overrides, view);
        } else {
            let text = format!("not while the group is {}", state_word(&self.mode));
            self.done(passing.command, Err(text));
        }
    }

    /// This site serves in spite of a fork with this peer, until that one is heard again.
    fn go_past(&mut self, site: &str) {
        let me = self.config.site.clone();
        let peer = self.peers.iter_mut().find(|p| p.name == site);
        let Some(peer) = peer.filter(|p| p.fork.is_some()) else {
            return;
        };
        peer.refused = None;
        if let Some(fork) = &mut peer.fork {
            fork.past = true;
        }
        self.log(
            Severity::Warn,
            format!("{me} is promoted past {site}; the fork with it stands"),
        );
    }

    pub(super) fn pass_deadline(&self) -> Option<Duration> {
        Some(self.passing.as_ref()?.since + self.config.timeout)
    }

    pub(super) fn pass_tick(&mut self, view: &View) {
        if self.pass_deadline().is_some_and(|due| due <= self.now) {
            let site = self.passing.as_ref().expect("just seen").peer.clone();
            self.pass_unheard(&site, view);
        }
    }

    /// The homes hold what the journal has lost and an operator gives up: whoever follows is compared with them.
    fn distrust_homes(&mut self) {
        self.actions.push(Action::Distrust);
        for peer in &mut self.peers {
            if let PeerPhase::Agreed { copy, .. } = &mut peer.phase {
                *copy = true;
            }
        }
    }

    fn demote(&mut self, id: u64) {
        match &self.mode {
            Mode::Mirror | Mode::Probing => {
                self.done(id, Ok(format!("{} is a mirror already", self.config.site)));
            }
            Mode::Returning | Mode::Waiting(_) => {
                self.drop_all_links(Left::DEMOTED);
                self.become_mirror();
                self.save(Then::Demoted(id));
            }
            Mode::Serving => {
                let stuck = self.commit < self.tail
                    && self
                        .peers
                        .iter()
                        .any(|p| p.gated && p.streaming_link().is_none());
                if stuck && (self.frozen() || self.peers.iter().any(|p| p.conflict.is_some())) {
                    // They wait for a peer that will not confirm them, and nobody was told that they are written.
                    let dropped = crate::base::counted(self.tail.since(self.commit), "operation");
                    self.log(
                        Severity::Warn,
                        format!("demoted; never acknowledged: {dropped}"),
                    );
                    self.facts.role = Role::Mirror;
                    self.save(Then::Demoted(id));
                    return;
                }
                if stuck {
                    let waiting = crate::base::counted(self.tail.since(self.commit), "operation");
                    let text = format!(
                        "not while writes wait ({waiting}) for a peer that is silent; try again when it is back or declared \
                         dead"
                    );
                    self.done(id, Err(text));
                    return;
                }
                self.set_mode(Mode::Draining(Drain::Demote(id)));
                self.continue_drain();
            }
            other => {
                let (state, group) = (state_word(other), &self.config.group);
                let text = format!(
                    "not while the group is {state}; `doublure explain {group}` tells what can be done"
                );
                self.done(id, Err(text));
            }
        }
    }

    fn switchover(&mut self, id: u64) {
        let group = self.config.group.clone();
        if self.mode != Mode::Serving {
            let text = match &self.mode {
                Mode::Mirror | Mode::Probing => {
                    format!(
                        "{} is a mirror: `doublure switchover {group}` on {} does it. If neither is primary, `doublure \
                         promote {group}` makes one",
                        self.config.site,
                        self.primary_name(),
                    )
                }
                Mode::Waiting(why) => why.clone(),
                other => format!(
                    "not while the group is {}; `doublure explain {group}` tells what can be done",
                    state_word(other)
                ),
            };
            self.done(id, Err(text));
            return;
        }
        let Some(peer) = self.peers.iter().find(|p| p.in_sync) else {
            let text = match self.peers.first() {
                None => "no peer is configured".to_owned(),
                Some(p) => {
                    let why = p.hindrance().unwrap_or(Hindrance::CatchingUp);
                    format!(
                        "{} is not in sync, and a switchover now would lose writes. {}. `doublure status {group}` shows when \
                         it is",
                        p.name,
                        why.sentence(&p.name, &group)
                    )
                }
            };
            self.done(id, Err(text));
            return;
        };
        let to = peer.name.clone();
        self.log(Severity::Info, format!("switching over to {to}"));
        self.set_mode(Mode::Draining(Drain::Switchover(id, to)));
        self.continue_drain();
    }

    /// Goes on with a demotion or switchover once nothing is in flight any more.
    pub(super) fn continue_drain(&mut self) {
        let Mode::Draining(drain) = &self.mode else {
            return;
        };
        let settled = |p: &super::Peer| !p.gated || p.durable >= self.tail;
        if self.drain_is_recorded()
            || self.commit < self.tail
            || self.durable < self.tail
            || !self.peers.iter().all(settled)
        {
            return;
        }
        match drain.clone() {
            Drain::Demote(id) => {
                self.facts.role = Role::Mirror;
                self.save(Then::Demoted(id));
            }
            Drain::Switchover(id, to) => {
                let epoch_id = self
                    .facts
                    .lineage
                    .last()
                    .expect("a serving site has an epoch")
                    .id;
                self.facts.handed = Some(Handed {
                    to,
                    epoch_id,
                    lsn: self.tail,
                });
                self.save(Then::Handed(id));
            }
        }
    }

    pub(super) fn demoted(&mut self, id: u64) {
        self.drop_all_links(Left::DEMOTED);
        self.set_mode(Mode::Mirror);
        self.peers.iter_mut().for_each(super::Peer::let_go);
        self.claimed = self.commit;
        self.close_clients();
        let (me, group) = (&self.config.site, &self.config.group);
        let forked = self.peers.iter().find(|p| p.fork.is_some());
        let text = match forked {
            Some(peer) => format!(
                "{me} is a mirror now. The fork between it and {} stands until it is resolved: `doublure explain {group}` \
                 tells what each site wrote, and which commands end it",
                peer.name
            ),
            None => format!(
                "{me} is a mirror now; nobody is primary until one is promoted: `doublure promote {group}`"
            ),
        };
        self.done(id, Ok(text));
    }

    /// The handing over is durable: from here on this site never serves by itself. Deliver it.
    pub(super) fn handed_recorded(&mut self, id: u64) {
        self.promised_command = Some(id);
        self.handed_at = self.now;
        self.set_mode(Mode::HandedOver);
        self.close_clients();
        for at in 0..self.peers.len() {
            self.peer_link_down(at, Some(Left::SWITCHOVER));
            self.peers[at].let_go();
        }
        self.connect_all();
    }

    /// The new primary has opened its epoch.
    pub(super) fn taken(&mut self, at: usize) {
        let name = self.peers[at].name.clone();
        self.peer_link_down(at, None);
        self.log(Severity::Info, format!("{name} is primary now"));
        self.facts.role = Role::Mirror;
        self.facts.handed = None;
        self.somebody_took_over();
        self.save(Then::StepDown);
        self.promised_done(Ok(format!("{name} is primary now; nothing was lost")));
    }

    /// The operator decides a fork. From here on the handshake lets the losing side become a mirror.
    fn resolve(&mut self, id: u64, discard: &str, view: &View) {
        let result = self.give_up(discard, view);
        if result.is_ok() || self.resolving.is_some() || !self.can_ask_whether_it_serves(discard) {
            self.decide_fork(id, discard, result, view);
            return;
        }
        // That it serves may be old news: it was demoted a moment ago.
        self.resolving = Some(Resolving {
            command: id,
            discard: discard.to_owned(),
            since: self.now,
        });
        self.connect_all();
    }

    fn can_ask_whether_it_serves(&self, site: &str) -> bool {
        let served = |p: &super::Peer| {
            p.name == site
                && !p.cut
                && p.fork
                    .as_ref()
                    .is_some_and(|f| f.their_stance == Stance::Serving)
        };
        self.facts.role == Role::Primary && self.peers.iter().any(served)
    }

    /// A peer said how it is, whose fork may be about to be resolved.
    pub(super) fn resolve_heard(&mut self, site: &str, view: &View) {
        if let Some(resolving) = self.resolving.take_if(|r| r.discard == site) {
            let result = self.give_up(site, view);
            self.decide_fork(resolving.command, site, result, view);
        }
    }

    /// It cannot be asked, because of this.
    pub(super) fn resolve_unheard(&mut self, site: &str, why: &str) {
        if let Some(resolving) = self.resolving.take_if(|r| r.discard == site) {
            let group = &self.config.group;
            let text = format!(
                "{site} served clients with what is to be given up when it was last heard of, and was not yet heard of since \
                 ({why}). Make sure that `doublure demote {group}` on {site} was done, and run this again when {site} answers. If \
                 {site} is gone for good, {} makes {} serve meanwhile",
                Overrides::default().without_asking().command(group),
                self.config.site
            );
            self.done(resolving.command, Err(text));
        }
    }

    pub(super) fn resolve_deadline(&self) -> Option<Duration> {
        Some(self.resolving.as_ref()?.since + self.config.timeout)
    }

    pub(super) fn resolve_tick(&mut self) {
        if self.resolve_deadline().is_some_and(|due| due <= self.now) {
            let site = self.resolving.as_ref().expect("just seen").discard.clone();
            let timeout = self.config.timeout;
            self.resolve_unheard(&site, &format!("no answer within {timeout:?}"));
        }
    }

    fn decide_fork(&mut self, id: u64, discard: &str, result: Result<String, String>, view: &View) {
        if let (Ok(_), Some(epoch)) = (&result, self.losing_epoch(discard)) {
            (self.facts.given_up, self.facts.given_up_ns) = (epoch, view.time_ns);
            self.save(Then::Nothing);
            for peer in &mut self.peers {
                peer.refused = None;
            }
            self.connect_all();
        }
        self.done(id, result);
    }

    /// The fork that was decided, while the two have not met since. On record: it holds over a restart.
    pub fn resolved_fork(&self) -> Option<Resolved> {
        let forks = || {
            self.peers
                .iter()
                .filter_map(|p| Some((p, p.fork.as_ref()?)))
        };
        let peer = forks().find(|(_, fork)| self.ordered_to_discard(fork));
        let discard = match peer {
            Some((peer, _)) => peer.name.clone(),
            None if self.gives_itself_up() && forks().next().is_some() => self.config.site.clone(),
            None => return None,
        };
        Some(Resolved {
            discard,
            since_ns: self.facts.given_up_ns,
        })
    }

    /// An operator's order to discard what the peer wrote stands.
    pub(super) fn ordered_to_discard(&self, fork: &super::Fork) -> bool {
        !fork.their_id.is_nil() && fork.their_id == self.facts.given_up
    }

    /// An operator's order to discard what this site wrote stands.
    pub(super) fn gives_itself_up(&self) -> bool {
        self.facts.side_id() == Some(self.facts.given_up)
    }

    /// An operator lets this site serve past a silent peer: what was ordered of its own side holds no more.
    fn take_order_back(&mut self) {
        if self.gives_itself_up() {
            self.facts.given_up = uuid::Uuid::nil();
            let me = &self.config.site;
            let text = format!("the order to discard what {me} wrote is taken back");
            self.log(Severity::Warn, text);
        }
    }

    /// Why a site that is to discard its own side does not serve.
    pub(super) fn order_text(&self) -> String {
        let (me, group) = (&self.config.site, &self.config.group);
        let forked = self.peers.iter().find(|p| p.fork.is_some());
        let peer = forked.or(self.peers.first());
        let peer = peer.map_or("its peer", |p| p.name.as_str());
        format!(
            "the order to discard what {me} wrote stands since {}: {me} serves nobody, and becomes a mirror as soon as it and \
             {peer} are connected. `doublure resolve {group} --discard {peer}` orders the contrary; if {peer} is gone for good, \
             {} takes the order back and makes {me} serve",
            crate::base::utc(self.facts.given_up_ns / 1_000_000_000),
            Overrides::default().without_asking().command(group)
        )
    }

    /// Whether this site may give up what a side wrote, and what happens then.
    fn give_up(&self, discard: &str, view: &View) -> Result<String, String> {
        let (me, group) = (&self.config.site, &self.config.group);
        let forks: Vec<_> = self
            .peers
            .iter()
            .filter_map(|p| Some((&p.name, p.fork.as_ref()?)))
            .collect();
        let Some(&first) = forks.first() else {
            return Err(format!(
                "no fork of {group} is known here: there is nothing to resolve"
            ));
        };
        let named = forks.iter().find(|(name, _)| *name == discard);
        let Some(&(peer, fork)) = named.or(forks.first().filter(|_| discard == me)) else {
            return Err(format!(
                "'{discard}' is neither of the two sites, {me} and {}",
                first.0
            ));
        };
        if discard == me && (self.serving() || self.mode == Mode::Opening) {
            return Err(format!(
                "{me} serves clients with what is to be given up: `doublure demote {group}` comes first"
            ));
        }
        let (me_primary, they_serve) = (
            self.facts.role == Role::Primary,
            fork.their_stance == Stance::Serving,
        );
        // Only a primary opens links: between two mirrors nothing would ever happen.
        let promote = if me_primary {
            String::new()
        } else {
            format!("`doublure promote {group} --force behind` here, ")
        };
        if discard == peer && (they_serve || !me_primary) {
            let demote = if they_serve {
                format!(
                    "{peer} serves clients with what is to be given up: run `doublure demote {group}` on {peer}"
                )
            } else {
                format!(
                    "{me} is a mirror and cannot take over by itself: make sure that {peer} is one, too"
                )
            };
            return Err(format!("{demote}, {promote}and then this again"));
        }
        if discard == me && !me_primary && fork.their_stance == Stance::Mirror {
            return Err(format!(
                "neither site is primary: run `doublure promote {group} --force behind` on {peer}, and then this again"
            ));
        }
        let first = fork.shared.next();
        let (other, tail, held, openings) = if discard == me {
            let openings = self.facts.lineage.opened_after(fork.shared);
            (peer, self.tail, view.journal_first, openings)
        } else {
            let (tail, held) = (fork.their_tail, fork.their_journal_first);
            (me, tail, held, fork.their_epochs)
        };
        let (loser_is_whole, keeper_mixes) = if discard == me {
            (fork.their_mixture, peer.as_str())
        } else {
            (fork.my_mixture, me.as_str())
        };
        if loser_is_whole {
            return Ok(format!(
                "{discard} gives up its whole copy of the history up to LSN {tail} as soon as it and {other} are connected: it \
                 becomes a mirror, all of it is compared, and what differs gets the content of {keeper_mixes}, which is a \
                 mixture of old and new. Nothing of the old content is kept after that"
            ));
        }
        // What opens an epoch nobody wrote.
        if tail.since(fork.shared) <= openings {
            return Ok(format!(
                "{discard} wrote nothing since LSN {}: it gives nothing up, and becomes a mirror as soon as it and {other} are \
                 connected",
                fork.shared
            ));
        }
        let file = self.losing_epoch(discard).map_or_else(
            || "a file".to_owned(),
            |epoch| format!("the file {group}/discarded-{epoch}.frames"),
        );
        let kept = if held <= first {
            format!("what it gives up is kept in {file} in its data directory")
        } else if held <= tail {
            format!(
                "of what it gives up only {} is kept, in {file} in its data directory: its journal no longer holds what is before",
                lsns(held, tail)
            )
        } else {
            "nothing of it is kept: its journal no longer holds that".to_owned()
        };
        Ok(format!(
            "{discard} gives up {} as soon as it and {other} are connected, and becomes a mirror; {kept}",
            lsns(first, tail)
        ))
    }

    fn losing_epoch(&self, discard: &str) -> Option<uuid::Uuid> {
        if discard == self.config.site {
            return self.facts.side_id();
        }
        let peer = self.peers.iter().find(|p| p.name == discard)?;
        peer.fork.as_ref().map(|fork| fork.their_id)
    }

    fn disconnect(&mut self, id: u64, view: &View) {
        if self.peers.is_empty() {
            self.done(id, Err("no peer is configured: there is no link".into()));
            return;
        }
        for at in 0..self.peers.len() {
            self.peers[at].cut = true;
            self.peer_link_down(at, Some(Left::CUT));
            if self.peers[at].gated {
                self.peer_lost(at, Left::CUT);
            }
        }
        // Else the primary's writers would wait until its patience ends.
        if let Some(link) = self.upstream.as_ref().map(|u| u.link) {
            self.say_bye(link, Left::CUT);
        }
        self.forget_upstream(Left::CUT);
        if let Mode::Fetching(_) = self.mode {
            // What was taken over so far stays; the rest once the link is back.
            self.set_mode(Mode::Returning);
            self.try_to_open(view);
        }
        self.done(
            id,
            Ok(format!(
                "the link is cut until `doublure connect {}`, or until doublure is restarted here",
                self.config.group
            )),
        );
    }

    /// All is finished that could be: says goodbye on every link and closes the clients.
    pub fn goodbye(&mut self, now: Duration, view: &View) {
        (self.now, self.now_ns) = (now, view.time_ns);
        // The mirrors are to apply all of it, too.
        if matches!(self.mode, Mode::Serving | Mode::Draining(_)) {
            self.tell_commit();
        }
        self.end_commands(&format!("{} stops", self.config.site));
        self.drop_all_links("stopping");
        // A fenced site stays fenced: its disk is not to be trusted with a last checkpoint either.
        self.set_mode(Mode::Stopped);
        self.close_clients();
        self.announce_exports();
    }
}

/// A mode in the words of a sentence.
fn state_word(mode: &Mode) -> &'static str {
    match mode {
        Mode::Returning | Mode::Waiting(_) | Mode::Fetching(_) => "waiting for its peer",
        Mode::Opening => "opening an epoch",
        Mode::Serving => "serving",
        Mode::Draining(_) => "finishing what is in flight",
        Mode::HandedOver => "handed over and not yet taken",
        Mode::Mirror | Mode::Probing => "a mirror here",
        Mode::GoingBack => "going back to before a copy",
        Mode::Fenced(_) => "fenced by a failed disk",
        Mode::Stopped => "stopping",
    }
}
