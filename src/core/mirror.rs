//! The mirror's side: accepting what the primary proposes, taking frames, acknowledging them. A returning primary
//! takes a mirror's longer tail by the same means.

use std::time::Duration;

use uuid::Uuid;

use super::links::Agreed;
use super::{Action, Core, Left, Link, Mode, NEWS_DELAY, Outcome, Severity, Then, View};
#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{AckMode, Epoch, Lsn, Message, Refusal, Role, Start, counted, lsns};

/// What may be promised here is news to the primary when it changes by this much, bytes.
const CREDIT_NEWS_BYTES: u64 = 1 << 20;

/// The link that frames come in on.
#[derive(Debug)]
pub(super) struct Upstream {
    pub link: Link,
    pub site: String,
    /// What the other side had committed when the link began.
    promised: Lsn,
    pub last_heard: Duration,
    pub last_ping: Duration,
    /// Frames may come: what had to be durable before is.
    pub started: bool,
    /// A fetched tail ends here.
    pub fetch_end: Option<Lsn>,
    /// A copy is complete: consistent once this LSN is applied and all of it is durable.
    copy_end: Option<Lsn>,
    /// What the last acknowledgement said: received, durable, inconsistent.
    acked: Option<(Lsn, Lsn, bool)>,
    /// And applied.
    applied_told: Lsn,
    /// Since when more is applied than it said.
    applied_since: Option<Duration>,
    /// What it said may still be promised here, bytes.
    credit_told: u64,
    /// A copy's base, until the reset is durable.
    resetting: Option<Lsn>,
}

/// What must be durable before a copy is agreed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    /// What it discards.
    Kept,
    /// What going back takes.
    Undo,
    /// Nothing more.
    Nothing,
}

impl Upstream {
    fn new(link: Link, site: String, promised: Lsn, now: Duration) -> Upstream {
        Upstream {
            link,
            site,
            promised,
            last_heard: now,
            last_ping: now,
            started: false,
            fetch_end: None,
            copy_end: None,
            acked: None,
            applied_told: Lsn::ZERO,
            applied_since: None,
            credit_told: u64::MAX,
            resetting: None,
        }
    }
}

/// A proposed copy, and what is done here before it is agreed to.
#[derive(Debug)]
pub(super) struct Keeping {
    link: Link,
    agreed: Agreed,
    start: Start,
    waits_for: Before,
}

impl Keeping {
    pub(super) fn is_on(&self, link: Link) -> bool {
        self.link == link
    }
}

/// What a frame says of itself, for the core to judge.
#[derive(Clone, Copy, Debug)]
pub struct FrameInfo<'a> {
    /// LSN of its first operation.
    pub first: Lsn,
    /// LSN of its last operation.
    pub last: Lsn,
    /// What the primary had committed when it closed the frame.
    pub commit: Lsn,
    /// Group it belongs to.
    pub group: Uuid,
    /// Epoch it belongs to.
    pub epoch: Uuid,
    /// The epoch that its first operation opens, if it does.
    pub opens: Option<&'a Epoch>,
}

impl Core {
    /// The link to the primary ends; when it was last heard of is remembered.
    pub(super) fn leave_upstream(&mut self) -> Option<Upstream> {
        let upstream = self.upstream.take()?;
        if let Some(peer) = self.peers.iter_mut().find(|p| p.name == upstream.site) {
            peer.last_heard = peer.last_heard.max(Some(upstream.last_heard));
        }
        Some(upstream)
    }

    pub(super) fn forget_upstream(&mut self, why: &str) {
        if let Some(upstream) = self.leave_upstream() {
            self.log(
                super::Severity::Info,
                format!("link to {} closed: {why}", upstream.site),
            );
            self.actions.push(Action::Close(upstream.link));
            if let Some(peer) = self.peers.iter_mut().find(|p| p.name == upstream.site) {
                peer.trouble = Some(format!("the link to {} ended: {why}", upstream.site));
            }
        }
    }

    /// The connecting side's proposal, which must be what both greetings led to.
    pub(super) fn start_proposed(&mut self, link: Link, agreed: Agreed, start: Start, view: &View) {
        let Agreed {
            site,
            group_id: theirs,
            commit: promised,
            outcome,
        } = agreed;
        if self.mode != Mode::Mirror {
            self.refuse(
                link,
                Refusal::Busy,
                format!("{} is not a mirror any more", self.config.site),
            );
            return;
        }
        // What was agreed with anybody else counted for what is here now.
        self.end_other_handshakes(link);
        match (&outcome, start) {
            (Outcome::Stream { .. } | Outcome::Copy { .. }, Start::Stream { from }) => {
                self.begin_stream(Upstream::new(link, site, promised, self.now), theirs, from);
            }
            (
                Outcome::Stream { .. } | Outcome::Copy { .. },
                Start::Copy {
                    group_id,
                    base,
                    chain,
                    lineage,
                    volumes,
                    ack,
                    time_ns,
                },
            ) => {
                let shared = match outcome {
                    Outcome::Copy { shared } => shared,
                    // The journal was given up since the greeting.
                    Outcome::Stream { from } => from.prev(),
                    _ => unreachable!("one of the two"),
                };
                // What opens epochs is nothing to keep.
                let wrote = self.facts.written > shared || self.lost_history();
                let gives_up = self.tail > shared && self.commit > shared && wrote;
                let done = self.keeping.as_ref().filter(|k| k.link == link);
                let waits_for = match done.map(|k| k.waits_for) {
                    None if gives_up => Before::Kept,
                    None | Some(Before::Kept) => Before::Undo,
                    Some(_) => Before::Nothing,
                };
                if waits_for == Before::Kept {
                    self.log(
                        Severity::Warn,
                        format!(
                            "giving up {}; what was written then is kept in a file first",
                            lsns(shared.next(), self.tail)
                        ),
                    );
                }
                if waits_for != Before::Nothing {
                    let start = Start::Copy {
                        group_id,
                        base,
                        chain,
                        lineage,
                        volumes,
                        ack,
                        time_ns,
                    };
                    let agreed = Agreed {
                        site,
                        group_id: theirs,
                        commit: promised,
                        outcome,
                    };
                    self.keeping = Some(Keeping {
                        link,
                        agreed,
                        start,
                        waits_for,
                    });
                    self.actions.push(match waits_for {
                        Before::Kept => Action::Keep(shared),
                        _ => Action::PrepareUndo,
                    });
                    return;
                }
                self.keeping = None;
                let from = site.clone();
                let interrupted = self.facts.inconsistent_until.is_some();
                let lost = self.lost_history() || self.facts.mixture.take().is_some();
                self.upstream = Some(Upstream::new(link, site, promised, self.now));
                self.upstream.as_mut().expect("just set").resetting = Some(base);
                self.facts.given_up = Uuid::nil();
                self.promised = Some(promised);
                self.facts.group_id = group_id;
                self.facts.ack = ack;
                self.facts.lineage = lineage;
                self.facts.alone.clear();
                self.facts.wrote_alone = false;
                self.facts.floor = Lsn::ZERO;
                self.facts.told_durable.clear();
                self.facts.written = base;
                self.facts.inconsistent_until = Some(Lsn(u64::MAX));
                (
                    self.tail,
                    self.durable,
                    self.commit,
                    self.claimed,
                    self.applied,
                ) = (base, base, base, base, base);
                self.log(
                    Severity::Warn,
                    "a copy begins; this site is not usable until it ends".to_owned(),
                );
                self.actions.push(Action::Reset {
                    from,
                    shared,
                    interrupted,
                    lost,
                    base,
                    chain,
                    time_ns,
                    volumes,
                });
            }
            (Outcome::Fetch { .. }, Start::Fetch { from }) => {
                self.upstream = Some(Upstream::new(link, site, promised, self.now));
                self.actions.push(Action::Send(link, Message::Started));
                // A long tail fits the other journal only if what is committed of it can go to the homes meanwhile.
                let lsn = self.commit;
                self.actions
                    .push(Action::Send(link, Message::Commit { lsn }));
                let end = Some(self.tail);
                self.actions.push(Action::Stream { link, from, end });
            }
            (Outcome::Handover, Start::Handover { epoch_id, lsn }) => {
                self.take_over(link, &site, epoch_id, lsn, view);
            }
            (outcome, start) => {
                let text = format!(
                    "the proposal {start:?} does not follow from the greetings ({outcome:?})"
                );
                self.protocol_error(link, &text);
            }
        }
    }

    /// Ends the handshakes with other sites that would lead to something here.
    fn end_other_handshakes(&mut self, link: Link) {
        let leads = |agreed: &Agreed| agreed.outcome != Outcome::Probe;
        let ended = self.handshakes.extract_if(.., |h| {
            h.link != link && h.agreed.as_ref().is_some_and(leads)
        });
        self.actions.extend(ended.map(|h| Action::Close(h.link)));
    }

    /// What is to be discarded is in a file: go on with the copy, if its link is still there.
    pub(super) fn kept(&mut self, view: &View) {
        self.go_on_with_copy(Before::Kept, view);
    }

    /// The copy can be undone, as far as that can be.
    pub(super) fn undo_prepared(&mut self, view: &View) {
        self.go_on_with_copy(Before::Undo, view);
    }

    fn go_on_with_copy(&mut self, done: Before, view: &View) {
        let Some(keeping) = self.keeping.as_ref().filter(|k| k.waits_for == done) else {
            return;
        };
        let (link, agreed, start) = (keeping.link, keeping.agreed.clone(), keeping.start.clone());
        self.start_proposed(link, agreed, start, view);
        self.keeping.take_if(|k| k.waits_for == done);
    }

    fn begin_stream(&mut self, upstream: Upstream, group_id: Uuid, from: Lsn) {
        let link = upstream.link;
        let keep = from.prev();
        if keep > self.tail || keep < self.commit {
            let text = format!(
                "frames from LSN {from} do not follow: the journal here ends at LSN {}, committed up to LSN {}",
                self.tail, self.commit
            );
            self.protocol_error(link, &text);
            return;
        }
        let dropped = self.tail.since(keep);
        if dropped > 0 {
            self.log(
                Severity::Info,
                format!(
                    "dropping {} after LSN {keep}, which nobody was told is written",
                    counted(dropped, "operation")
                ),
            );
            self.actions.push(Action::Truncate(keep));
            (self.tail, self.durable) = (keep, self.durable.min(keep));
            // What is dropped by rule was not lost by the disk.
            self.facts.floor = self.facts.floor.min(keep);
        }
        // A new mirror learns which group it is of; its journal is found again by that.
        if self.facts.group_id.is_nil() {
            self.facts.group_id = group_id;
        }
        self.facts.lineage.truncate_after(keep);
        self.facts.written = self.facts.written.min(keep);
        // Whatever was ordered of this side is done, and what it holds the primary holds, too.
        self.facts.given_up = Uuid::nil();
        self.facts.mixture = None;
        // An earlier primary's word about what is committed does not hold for this one's history.
        self.claimed = self.commit;
        // What this site acknowledged by itself, if it ever did, is part of the shared history now.
        self.facts.alone.clear();
        self.facts.wrote_alone = false;
        self.facts.told_durable.clear();
        self.promised = Some(upstream.promised);
        self.upstream = Some(upstream);
        self.save(Then::Started(link));
    }

    /// The facts under which the stream may begin are durable.
    pub(super) fn started_recorded(&mut self, link: Link) {
        if let Some(upstream) = self.upstream.as_mut().filter(|u| u.link == link) {
            upstream.started = true;
            self.actions.push(Action::Send(link, Message::Started));
            self.forget_conflicts();
        }
    }

    /// Who follows a primary is in conflict with nobody: with whom that one cannot go together it tells itself.
    pub(super) fn forget_conflicts(&mut self) {
        for peer in &mut self.peers {
            (peer.conflict, peer.refused, peer.fork) = (None, None, None);
            // How the link ended before, and what was in its way, is over, too.
            (peer.left, peer.trouble) = (None, None);
        }
    }

    pub(super) fn reset_done(&mut self) {
        let Some(upstream) = self.upstream.as_mut() else {
            return;
        };
        if upstream.resetting.take().is_some() {
            upstream.started = true;
            let link = upstream.link;
            self.actions.push(Action::Send(link, Message::Started));
            self.forget_conflicts();
        }
    }

    /// Whether this frame is the next of the history. If so it counts as received, and the caller appends it.
    ///
    /// # Errors
    /// Says what is wrong with it; the link should be dropped with that text.
    pub fn offer_frame(&mut self, link: Link, frame: &FrameInfo) -> Result<(), String> {
        let Some(upstream) = self
            .upstream
            .as_ref()
            .filter(|u| u.link == link && u.started)
        else {
            return Err("a frame on a link that is not streaming".into());
        };
        if frame.group != self.facts.group_id {
            return Err(format!(
                "a frame of group {}, not of {}",
                frame.group, self.facts.group_id
            ));
        }
        if frame.first != self.tail.next() {
            return Err(format!(
                "a frame that begins at LSN {}; LSN {} comes next",
                frame.first,
                self.tail.next()
            ));
        }
        if upstream.fetch_end.is_some_and(|end| frame.last > end) {
            return Err(format!(
                "a frame up to LSN {}, beyond the end of the fetched tail",
                frame.last
            ));
        }
        let current = self.facts.lineage.last().map(|e| e.id) == Some(frame.epoch);
        #[cfg(test)]
        let current = current
            || sabotaged(Sabotage::AcceptOldEpochs) && self.facts.lineage.contains(frame.epoch);
        if let Some(epoch) = frame.opens {
            if epoch.id != frame.epoch || epoch.first_lsn != frame.first {
                return Err(
                    "a frame whose header and first operation name different epochs".into(),
                );
            }
            self.facts.lineage.push(epoch.clone())?;
            self.facts.ack = epoch.ack;
            // On record soon, so that damage to the very frame that opens it is not taken for a torn tail.
            self.save(Then::Nothing);
        } else if !current {
            return Err(format!(
                "a frame of epoch {}, which is not the current one",
                frame.epoch
            ));
        }
        if frame.opens.is_none() || frame.last > frame.first {
            self.facts.written = frame.last;
        }
        self.tail = frame.last;
        self.learn_commit(frame.commit);
        Ok(())
    }

    /// The primary says that everything up to here is committed.
    pub(super) fn learn_commit(&mut self, lsn: Lsn) {
        self.claimed = self.claimed.max(lsn);
        self.mirror_durable();
    }

    /// A mirror's commit LSN: what the primary said, as far as it is here.
    pub(super) fn mirror_durable(&mut self) {
        self.commit = self.commit.max(self.claimed.min(self.durable));
        self.allow();
    }

    /// Anything but frames and chunks, from the primary.
    pub(super) fn upstream_message(&mut self, message: Message, view: &View) {
        let link = self.upstream.as_ref().expect("the caller looked").link;
        match message {
            // In `async` mode it may be ahead of what has arrived.
            Message::Commit { lsn } => self.learn_commit(lsn),
            Message::ChunksEnd { lsn } => {
                // Not on record: until what was copied is durable, a crash leaves nothing to build on.
                let upstream = self.upstream.as_mut().expect("the caller looked");
                upstream.copy_end = self.facts.inconsistent_until.map(|_| lsn);
            }
            Message::FetchEnd { tail } => {
                if tail > self.tail {
                    self.protocol_error(link, "the end of a fetched tail before its frames");
                    return;
                }
                let upstream = self.upstream.as_mut().expect("the caller looked");
                upstream.fetch_end = Some(tail);
                self.local_durable(self.durable, view);
            }
            Message::Started => {
                if let Mode::Fetching(_) = self.mode {
                    self.upstream.as_mut().expect("the caller looked").started = true;
                }
            }
            // The one who fetches this mirror's tail acknowledges it; the engine has taken note.
            Message::Pong { .. } | Message::Ack { .. } => {}
            Message::Start(start) => {
                // After a fetch the same link carries the stream.
                let used = self.upstream.take().expect("the caller looked");
                let fetched = !used.started;
                match *start {
                    Start::Stream { from } if fetched && self.mode == Mode::Mirror => {
                        let upstream = Upstream::new(link, used.site, used.promised, self.now);
                        self.begin_stream(upstream, self.facts.group_id, from);
                    }
                    other => {
                        self.protocol_error(link, &format!("{other:?} on a link that is in use"));
                    }
                }
            }
            Message::Bye { reason } | Message::Refuse { text: reason, .. } => {
                let now = self.now;
                let from = self
                    .upstream
                    .as_ref()
                    .expect("the caller looked")
                    .site
                    .clone();
                self.forget_upstream(&reason);
                if let Some(peer) = self.peers.iter_mut().find(|p| p.name == from) {
                    peer.left = Left::by(&from, &reason, now);
                }
                if let Mode::Fetching(_) = self.mode {
                    self.closed(link, &reason, view);
                }
            }
            other => {
                self.upstream = None;
                self.protocol_error(
                    link,
                    &format!("{} from the primary", super::links::kind(&other)),
                );
            }
        }
    }

    /// Sends an acknowledgement if there is news. Nobody waits for what is only applied: it goes with the next, or after a
    /// while.
    pub(super) fn flush_ack(&mut self) {
        let (tail, durable, applied) = (self.tail, self.durable, self.applied);
        #[cfg(test)]
        let durable = if sabotaged(Sabotage::ConfirmBeforeDurable) {
            tail
        } else {
            durable
        };
        let inconsistent_until = self.facts.inconsistent_until;
        let (credit_bytes, now) = (self.credit_bytes, self.now);
        // Only `memsync` waits for what is in memory; elsewhere saying so would only wake the primary.
        let received = if self.facts.ack == AckMode::Memsync {
            tail
        } else {
            durable
        };
        let Some(upstream) = self.upstream.as_mut().filter(|u| u.started) else {
            return;
        };
        // A site that fetches a tail acknowledges it, too: the sender's window is bounded.
        if !matches!(self.mode, Mode::Mirror | Mode::Probing | Mode::Fetching(_)) {
            upstream.applied_since = None;
            return;
        }
        let news = (received, durable, inconsistent_until.is_some());
        let applied_news = applied > upstream.applied_told
            && now >= *upstream.applied_since.get_or_insert(now) + NEWS_DELAY;
        // While nothing is under way no other news would carry it, and writers may be refused because of it.
        let told = upstream.credit_told;
        let credit_news = applied == tail
            && (credit_bytes.abs_diff(told) >= CREDIT_NEWS_BYTES
                || (credit_bytes == 0) != (told == 0));
        if upstream.acked == Some(news) && !applied_news && !credit_news {
            return;
        }
        upstream.acked = Some(news);
        (upstream.applied_told, upstream.applied_since) = (applied, None);
        upstream.credit_told = credit_bytes;
        let link = upstream.link;
        self.actions.push(Action::Send(
            link,
            Message::Ack {
                received,
                durable,
                applied,
                credit_bytes,
                inconsistent_until,
            },
        ));
    }

    /// When the primary is to be told what is applied.
    pub(super) fn applied_news_deadline(&self) -> Option<Duration> {
        Some(self.upstream.as_ref()?.applied_since? + NEWS_DELAY)
    }

    /// Everything of a copy has come; the homes are consistent once this LSN is applied and all is durable.
    pub fn copy_end(&self) -> Option<Lsn> {
        self.upstream.as_ref()?.copy_end
    }

    /// Whether frames come in on this link.
    pub fn follows(&self, link: Link) -> bool {
        matches!(self.mode, Mode::Mirror | Mode::Probing)
            && self
                .upstream
                .as_ref()
                .is_some_and(|u| u.link == link && u.started)
    }

    /// The link to the primary.
    pub fn upstream_link(&self) -> Option<Link> {
        self.upstream.as_ref().map(|u| u.link)
    }

    /// The link of a copy that is under way, or that something is done for before it is agreed to.
    pub fn copy_link(&self) -> Option<Link> {
        let proposed = self.keeping.as_ref().map(|k| k.link);
        proposed.or_else(|| self.upstream_link())
    }

    /// A returning primary begins to take the mirror's tail.
    pub(super) fn begin_fetch(&mut self, link: Link, site: String) {
        self.upstream = Some(Upstream::new(link, site, Lsn::ZERO, self.now));
        // What another mirror said before was about what it has.
        self.claimed = self.commit;
        self.set_mode(Mode::Fetching(link));
    }

    /// The homes hold a complete copy, durably: this site is consistent again.
    pub(super) fn copy_durable(&mut self) {
        if let Some(upstream) = self.upstream.as_mut() {
            upstream.copy_end = None;
        }
        if self.facts.inconsistent_until.take().is_some() {
            self.log(
                Severity::Info,
                "the copy is complete; consistent again".to_owned(),
            );
            self.save(Then::Nothing);
        }
    }

    /// The role was handed to this site: open an epoch, durably, then say so.
    fn take_over(&mut self, link: Link, site: &str, epoch_id: Uuid, lsn: Lsn, view: &View) {
        let mine = self.facts.lineage.last().map(|e| e.id);
        if mine != Some(epoch_id) || self.tail != lsn {
            let text = format!(
                "{site} hands over LSN {lsn}, but this site is at LSN {}",
                self.tail
            );
            self.refuse(link, Refusal::Disagree, text);
            return;
        }
        self.log(Severity::Info, format!("taking over from {site}"));
        self.facts.role = Role::Primary;
        self.facts.alone.clear();
        self.facts.wrote_alone = false;
        self.end_other_handshakes(link);
        self.set_mode(Mode::Opening);
        let epoch = self.next_epoch(view);
        self.facts
            .lineage
            .push(epoch.clone())
            .expect("numbers and LSNs rise");
        // The old primary holds all there is; acknowledgements go on waiting for it, and for whoever else it waited for. It
        // does not say for whom it did not: who stays away is lost by the rule, and on record.
        let now = self.now;
        for peer in &mut self.peers {
            let has = if peer.name == site { lsn } else { Lsn::ZERO };
            #[cfg(test)]
            if sabotaged(Sabotage::ForgetTheThird) && peer.name != site {
                continue;
            }
            peer.wait_for(has, lsn, now);
        }
        self.save(Then::Taken(link, epoch));
    }

    /// The taken role is durable: tell the old primary, serve, and connect to it as its primary.
    pub(super) fn taken_recorded(&mut self, link: Link, epoch: Epoch) {
        self.actions.push(Action::Send(link, Message::Taken));
        self.actions.push(Action::Close(link));
        self.facts_hold_epoch(epoch);
        self.connect_all();
    }
}
