//! One group at one site: puts `core`, `journal`, `store` and the messages of `link` together. Still without IO:
//! inputs in, outputs out; the same inputs give the same outputs.
//!
//! # Where a write passes
//! `clients` admits it (LSN from the core, content into the open frame, range into the overlay), `frames` closes
//! the frame and writes it to the journal, `streams` sends the same bytes to the mirror, the core releases the
//! reply, `homes` applies it. At the mirror, `receive` takes the frame from the link and the rest is the same.
//!
//! # Who decides
//! Rules about acknowledging, roles and peers are the core's; this module only carries them out. What it decides by
//! itself is about resources: when a frame closes, what waits for space, what is read from where.

mod arbiter;
mod blocks;
mod changes;
mod clients;
mod discard;
mod frames;
mod homes;
mod io;
mod mend;
mod open;
mod proof;
mod questions;
mod receive;
mod report;
mod resize;
mod state;
mod stats;
mod streams;
#[cfg(test)]
mod tests;
mod undo;
mod verify;
mod walk;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use slab::Slab;

pub use io::{
    ClientId, Command, Disk, DiskId, DiskOp, DiskResult, Exports, File, Force, Input, Level,
    LinkId, Now, Output,
};
pub use open::OpenError;

use crate::base::{
    AckMode, ByteRange, Compress, Lsn, Message, OnPeerLoss, Role, Verified, VolumeId, VolumeSpec,
};
use crate::core::{self, Action, Core, Event, Link, Overrides, Severity, View};
use crate::journal;
use crate::store::{Content, Store};

/// What the configuration says about a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupConfig {
    /// This site's name.
    pub site: String,
    /// Name of the group.
    pub group: String,
    /// Role at the first start only.
    pub role: Role,
    /// Acknowledgement mode at the first start only.
    pub ack: AckMode,
    /// Compression of payloads.
    pub compress: Compress,
    /// What to do when the peer is lost.
    pub on_peer_loss: OnPeerLoss,
    /// A peer without progress for this long is dead.
    pub timeout: Duration,
    /// Size of the journal in bytes, at the first start only.
    pub journal_bytes: u64,
    /// Bytes per second that a copy or verification may read at most, 0 for no limit. `None`: no limit either, but a copy gives
    /// way to clients.
    pub resync_rate: Option<u64>,
    /// Keep what a copy replaces until it is complete, so that this site can go back to it.
    pub resync_undo: bool,
    /// Verify by itself when the last complete verification is older than this; zero for never.
    pub scrub: Duration,
    /// Names of the peers' sites.
    pub peers: Vec<String>,
    /// Volumes `(name, size in bytes)` a primary creates if the group has none of that name.
    pub volumes: Vec<(String, u64)>,
}

/// One group at one site.
pub struct Group {
    config: GroupConfig,
    core: Core,
    log: journal::Log,
    store: Store,
    volumes: Vec<VolumeSpec>,
    /// No longer part of the history; their homes are still to be put aside.
    parting: Vec<VolumeSpec>,
    next_volume_id: u32,
    clients: clients::Clients,
    frames: frames::Frames,
    homes: homes::Homes,
    state: state::State,
    streams: BTreeMap<LinkId, streams::Stream>,
    receive: receive::Receive,
    questions: questions::Questions,
    changes: changes::Changes,
    undo: undo::Undo,
    verified: Verified,
    block_reads: Slab<blocks::BlockRead>,
    keeping: Option<discard::Keeping>,
    keepings: u64,
    resizing: Option<resize::Resizing>,
    /// The state as it was last looked at, and since when, seconds since the Unix epoch.
    state_since: (Option<crate::status::GroupState>, u64),
    /// Something happened that may have changed it.
    state_may_differ: bool,
    disk: Slab<Pending>,
    /// Syncs of each home: the first is under way.
    syncs: BTreeMap<VolumeId, VecDeque<DiskId>>,
    stats: stats::Stats,
    marks: stats::Marks,
    /// What the configuration says otherwise than the disk, beside the volumes.
    disagreements: Vec<String>,
    /// Where the journal was found to be damaged at the start, in words.
    damage: Option<String>,
    stopping: Option<Stopping>,
    events: VecDeque<Event>,
    /// Empty: the list for the core's next actions.
    actions: Vec<Action>,
    outputs: Vec<Output>,
    now: Now,
}

/// What a disk request was for.
#[derive(Debug)]
enum Pending {
    JournalWrite {
        last: Lsn,
        since: Duration,
    },
    StateWrite,
    ApplyWrite {
        lsn: Lsn,
        volume: VolumeId,
        since: Duration,
    },
    CreateHome {
        lsn: Lsn,
        volume: VolumeSpec,
    },
    ClearHome {
        lsn: Lsn,
        volume: VolumeSpec,
    },
    /// Of a history that a full copy has replaced meanwhile.
    OldHistory,
    PutAside,
    ResetHome,
    HomeSync,
    FreeSpace,
    ReadPiece {
        read: usize,
        slot: usize,
    },
    ReadExtents {
        read: usize,
        slot: usize,
    },
    StreamRead {
        link: LinkId,
        read: u64,
    },
    WalkRead {
        link: LinkId,
        part: u64,
    },
    AnswerRead {
        question: questions::Question,
        overlay: Vec<(ByteRange, Content)>,
        hold: crate::store::HoldId,
    },
    /// What a chunk brought is on stable storage before its content is told.
    AnswerSync {
        question: questions::Question,
        chunk: u64,
        overlay: Vec<(ByteRange, Content)>,
        hold: crate::store::HoldId,
    },
    /// One block of a chunk that could not be read as a whole.
    ReadBlock {
        read: usize,
        block: u32,
    },
    ProofRead {
        link: LinkId,
    },
    /// A read for a history that a copy has replaced meanwhile.
    Forgotten,
    CheckGrow {
        /// Who asked; nobody if the operator of this site did.
        link: Option<LinkId>,
        volume: VolumeId,
        size: u64,
    },
    GrowHome {
        lsn: Lsn,
        volume: VolumeSpec,
    },
    ClearGrown {
        lsn: Lsn,
        volume: VolumeSpec,
    },
    SyncGrown {
        lsn: Lsn,
        volume: VolumeSpec,
    },
    /// The old content of a chunk that is to be written to.
    UndoRead {
        generation: u64,
        volume: VolumeId,
        range: ByteRange,
    },
    /// Anything else that keeping it, or going back to it, takes.
    Undo {
        generation: u64,
    },
    Keep(u64, discard::KeepStep),
    ChunkWrite {
        hold: crate::store::HoldId,
        volume: VolumeId,
    },
}

/// Stopping by command.
#[derive(Debug)]
struct Stopping {
    give_up_at: Duration,
    said_goodbye: bool,
    stopped: bool,
}

impl Stopping {
    /// After the goodbye there is as much time again for what is under way to the disk.
    fn grace(&self) -> Duration {
        if self.said_goodbye {
            STOP_GRACE
        } else {
            Duration::ZERO
        }
    }
}

/// `ENOSPC` and `EDQUOT`: there may be space later.
const NO_SPACE: [i32; 2] = [28, 122];

/// Requests that are under way when the daemon is told to stop get this long to finish.
const STOP_GRACE: Duration = Duration::from_secs(5);

impl Group {
    /// Takes an input. Outputs gather until [`Group::take_outputs`].
    pub fn handle(&mut self, now: Now, input: Input) {
        self.now = now;
        self.stats.turn(now.mono);
        match input {
            Input::ClientOpened { client, volume } => self.client_opened(client, volume),
            Input::Request { client, request } => self.request(client, request),
            Input::ClientClosed { client } => self.clients.closed(client),
            Input::Disk { id, result } => self.disk_done(id, result),
            Input::LinkConnected { link, peer } => self.event(Event::Connected(Link(link.0), peer)),
            Input::LinkAccepted { link } => self.event(Event::Accepted(Link(link.0))),
            Input::Link { link, message } => self.message(link, message),
            Input::LinkDrained { link, queued_bytes } => self.link_drained(link, queued_bytes),
            Input::LinkClosed { link, reason } => {
                self.drop_stream(link);
                self.event(Event::Closed(Link(link.0), reason));
            }
            Input::ConnectFailed {
                peer,
                refused,
                reason,
            } => {
                self.event(Event::ConnectFailed {
                    peer,
                    refused,
                    reason,
                });
            }
            Input::Command { id, command } => self.command(id, &command),
            Input::Tick => self.event(Event::Tick),
        }
    }

    /// Ends a batch of inputs: closes the open frame if the journal can take it, sends what was gathered.
    pub fn finish_batch(&mut self, now: Now) {
        self.now = now;
        if self.frames.full {
            // What held the journal may have moved on since the last checkpoint: a mirror that catches up.
            self.release_journal();
        }
        self.resume_stalled();
        self.close_frames();
        self.retry_reads();
        self.pump_streams();
        self.consider_verify();
        self.pump_walks();
        self.tell_credit();
        self.core.end_batch(now.mono);
        self.carry_out();
        self.retry_full_homes();
        self.apply();
        // Some may count as applied already, and frames of a mirror wait for that.
        self.write_closed_frames(false);
        self.write_chunks();
        self.continue_reset();
        self.continue_undo();
        self.consider_checkpoint();
        self.write_state();
        self.continue_stopping();
        if std::mem::take(&mut self.state_may_differ) {
            self.note_state();
        }
    }

    /// What is to be done, in order. The next are collected in `spare`, which is empty: lists are used again and again.
    pub fn take_outputs(&mut self, spare: Vec<Output>) -> Vec<Output> {
        debug_assert!(spare.is_empty());
        std::mem::replace(&mut self.outputs, spare)
    }

    /// When `Input::Tick` is due at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let stopping = self
            .stopping
            .as_ref()
            .filter(|s| !s.stopped)
            .map(|s| s.give_up_at + s.grace());
        let now = self.now.mono;
        let walks = self
            .streams
            .values()
            .filter_map(|s| s.walk.as_ref()?.deadline(now))
            .min();
        let fenced = self.core.is_fenced();
        [
            self.core.deadline(),
            self.homes.deadline(
                self.store.applied_lsn(),
                self.store.allocating_total(),
                !self.receive.confirmed().is_empty(),
                fenced,
            ),
            stopping,
            walks,
            self.scrub_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The volumes as of now.
    pub fn volumes(&self) -> &[VolumeSpec] {
        &self.volumes
    }

    fn command(&mut self, id: u64, command: &Command) {
        let command = match command {
            Command::Promote { force } => core::Command::Promote(Overrides {
                peer_unreachable: force.contains(&Force::PeerUnreachable),
                inconsistent: force.contains(&Force::Inconsistent),
                behind: force.contains(&Force::Behind),
            }),
            Command::Demote => core::Command::Demote,
            Command::Switchover => core::Command::Switchover,
            Command::Connect => core::Command::Connect,
            Command::Disconnect => core::Command::Disconnect,
            Command::Resolve { discard } => core::Command::Resolve {
                discard: discard.clone(),
            },
            Command::Verify { repair, keep } => {
                let result = self.begin_verify(*repair, keep.as_deref());
                self.outputs.push(Output::CommandDone { id, result });
                return;
            }
            Command::Resize { volume, size } => {
                self.begin_resize(id, volume, *size);
                return;
            }
            Command::Shutdown => core::Command::Shutdown,
        };
        self.event(Event::Command(id, command));
    }

    /// Tells the core, and carries out what it wants.
    fn event(&mut self, event: Event) {
        self.events.push_back(event);
        self.carry_out();
    }

    /// Calls the core with what it must know of journal and volumes.
    fn with_view<T>(&mut self, call: impl FnOnce(&mut Core, Duration, &View) -> T) -> T {
        let view = View {
            chain: self.frames.chain(),
            journal_first: self.log.first_lsn(),
            volumes: &self.volumes,
            undo: self.undo.point(),
            time_ns: self.frames.time_after(self.now.wall_ns),
        };
        call(&mut self.core, self.now.mono, &view)
    }

    /// Carries out actions, and feeds the events they cause, until neither is left.
    fn carry_out(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        loop {
            actions = self.core.take_actions(actions);
            if actions.is_empty() && self.events.is_empty() {
                self.actions = actions;
                return;
            }
            for action in actions.drain(..) {
                self.act(action);
            }
            if let Some(event) = self.events.pop_front() {
                self.with_view(|core, now, view| core.handle(now, event, view));
            }
        }
    }

    fn act(&mut self, action: Action) {
        self.state_may_differ |= matches!(
            action,
            Action::Save(_) | Action::Log(..) | Action::Exports(_) | Action::StopStream(_)
        );
        match action {
            Action::Save(seq) => self.state.request_save(seq),
            Action::OpenEpoch(epoch) => self.open_epoch(&epoch),
            Action::Reply(token) => self.reply_token(token),
            Action::ReleaseRead(token) => self.release_read(token),
            Action::Allow(lsn) => self.allow(lsn),
            Action::Connect(peer) => self.outputs.push(Output::Connect { peer }),
            Action::Send(link, message) => self.send(LinkId(link.0), message),
            Action::Close(link) => {
                self.drop_stream(LinkId(link.0));
                self.outputs.push(Output::CloseLink {
                    link: LinkId(link.0),
                });
            }
            Action::Stream { link, from, end } => self.start_stream(LinkId(link.0), from, end),
            Action::StopStream(link) => {
                self.drop_stream(LinkId(link.0));
            }
            Action::ProposeCopy { link, shared } => self.propose_copy(LinkId(link.0), shared),
            Action::Copy(link) => self.start_copy(LinkId(link.0)),
            Action::Truncate(lsn) => self.truncate_after(lsn),
            Action::Keep(after) => self.keep_after(after),
            Action::PrepareUndo => self.prepare_undo(),
            Action::GoBack => self.go_back(),
            Action::Reset {
                from,
                shared,
                interrupted,
                lost,
                base,
                chain,
                time_ns,
                volumes,
            } => self.reset(receive::Reset {
                from,
                shared,
                interrupted,
                lost,
                base,
                chain,
                time_ns,
                volumes,
            }),
            Action::Distrust => self.distrust(),
            Action::Exports(open) => self.exports(open),
            Action::CloseClients => self.close_clients(),
            Action::Ask(question) => {
                let answer = arbiter::answer(&self.config, question);
                self.events.push_back(answer);
            }
            Action::CommandDone(id, result) => {
                self.outputs.push(Output::CommandDone { id, result });
            }
            Action::Log(severity, text) => self.log_line(severity, text),
            Action::Stop => {
                self.clients.stop();
                self.stopping.get_or_insert(Stopping {
                    give_up_at: self.now.mono + STOP_GRACE,
                    said_goodbye: false,
                    stopped: false,
                });
            }
        }
    }

    fn exports(&mut self, open: Result<(), String>) {
        let opened = open.is_ok();
        let exports = Exports {
            open,
            volumes: self.volumes.clone(),
            commit: self.core.commit(),
            passing: !opened && self.core.is_starting(),
        };
        self.outputs.push(Output::Exports(exports));
        if opened {
            self.create_missing_volumes();
        }
    }

    fn log_line(&mut self, severity: Severity, text: String) {
        let level = match severity {
            Severity::Info => Level::Info,
            Severity::Warn => Level::Warn,
            Severity::Error => Level::Error,
        };
        self.outputs.push(Output::Log { level, text });
    }

    fn submit(&mut self, pending: Pending, op: DiskOp) {
        let id = DiskId(self.disk.insert(pending) as u64);
        if let DiskOp::Sync {
            file: File::Home(volume),
            ..
        } = op
        {
            let turn = self.syncs.entry(volume).or_default();
            turn.push_back(id);
            if turn.len() > 1 {
                return;
            }
        }
        self.outputs.push(Output::Disk { id, op });
    }

    /// Syncs of one home run one after the other: the kernel reports a failed write-back to one of those that wait, and the
    /// others would succeed although the same pages were dropped (`fsync(2)`; errseq in `mm/filemap.c`).
    /// A failure counts for all of them: no later one may say that all is well. Returns those that fail with it.
    fn next_sync(&mut self, id: DiskId, result: &DiskResult) -> VecDeque<DiskId> {
        let mine = self
            .syncs
            .iter_mut()
            .find(|(_, turn)| turn.front() == Some(&id));
        let Some((&volume, turn)) = mine else {
            return VecDeque::new();
        };
        turn.pop_front();
        let failed = matches!(result, DiskResult::Failed { .. });
        match turn.front() {
            Some(&id) if !failed => {
                let op = DiskOp::sync(File::Home(volume));
                self.outputs.push(Output::Disk { id, op });
                VecDeque::new()
            }
            _ => self.syncs.remove(&volume).expect("just seen"),
        }
    }

    fn send(&mut self, link: LinkId, message: Message) {
        self.outputs.push(Output::Send { link, message });
    }

    fn disk_done(&mut self, id: DiskId, result: DiskResult) {
        let pending = self
            .disk
            .remove(usize::try_from(id.0).expect("an id of this slab"));
        #[cfg(test)]
        let result = tests::forgiven(&pending, result);
        let too = self.next_sync(id, &result);
        let too: Vec<_> = too.into_iter().map(|id| (id, result.clone())).collect();
        self.disk_ended(pending, result);
        for (id, result) in too {
            self.disk_done(id, result);
        }
    }

    fn disk_ended(&mut self, pending: Pending, result: DiskResult) {
        match (pending, result) {
            (Pending::JournalWrite { last, since }, DiskResult::Done) => {
                self.frame_written(last, since);
            }
            (Pending::StateWrite, DiskResult::Done) => self.state_written(),
            (Pending::ApplyWrite { lsn, volume, since }, DiskResult::Done) => {
                self.homes.touch(volume);
                self.applied(lsn, Some(since));
            }

            (Pending::ApplyWrite { lsn, .. }, DiskResult::Failed { errno, message })
                if NO_SPACE.contains(&errno) =>
            {
                self.home_full(lsn, &message);
            }
            (Pending::ChunkWrite { hold, .. }, DiskResult::Failed { errno, message })
                if NO_SPACE.contains(&errno) =>
            {
                self.chunk_refused(hold, &message);
            }
            (Pending::OldHistory, DiskResult::Failed { errno, .. })
                if NO_SPACE.contains(&errno) =>
            {
                self.reset_home_created();
            }
            (Pending::CreateHome { lsn, volume }, DiskResult::Done) => self.clear_home(lsn, volume),
            (Pending::ClearHome { lsn, volume }, DiskResult::Done) => {
                self.home_created(lsn, volume);
            }
            (Pending::ResetHome | Pending::OldHistory, DiskResult::Done) => {
                self.reset_home_created();
            }
            (Pending::PutAside, DiskResult::Done) => self.homes_put_aside(),
            (Pending::HomeSync, DiskResult::Done) => self.home_synced(),
            (Pending::FreeSpace, DiskResult::FreeSpace(bytes)) => self.homes.free_space(bytes),
            (Pending::FreeSpace, _) => self.homes.free_space(u64::MAX),
            (Pending::ReadPiece { read, slot }, result) => self.piece_read(read, slot, result),
            (Pending::ReadExtents { read, slot }, result) => self.extents_read(read, slot, result),
            (Pending::StreamRead { link, read }, result) => self.stream_read(link, read, result),
            (Pending::WalkRead { link, part }, result) => self.walk_read(link, part, result),
            (
                Pending::AnswerRead {
                    question,
                    overlay,
                    hold,
                },
                result,
            ) => {
                self.answer_read(question, overlay, hold, result);
            }
            (
                Pending::AnswerSync {
                    question,
                    chunk,
                    overlay,
                    hold,
                },
                DiskResult::Done,
            ) => {
                self.receive.synced(question.volume, chunk);
                self.read_for_answer(question, overlay, hold);
            }
            (Pending::ReadBlock { read, block }, result) => self.block_read(read, block, result),
            (Pending::ProofRead { link }, result) => self.proof_read(link, result),
            (Pending::Forgotten, _) => {}
            (Pending::CheckGrow { link, volume, size }, result) => {
                self.grow_checked(link, volume, size, result);
            }
            (Pending::GrowHome { lsn, volume }, DiskResult::Done) => self.clear_grown(lsn, volume),
            (Pending::ClearGrown { lsn, volume }, DiskResult::Done) => {
                self.sync_grown(lsn, volume);
            }
            (Pending::SyncGrown { lsn, volume }, DiskResult::Done) => {
                self.home_grown(lsn, &volume);
            }
            (
                Pending::UndoRead {
                    generation,
                    volume,
                    range,
                },
                result,
            ) => self.undo_read(generation, volume, range, result),
            (Pending::Undo { generation }, result) => self.undo_done(generation, result),
            (Pending::Keep(id, step), result) => self.keep_done(id, step, result),
            (Pending::ChunkWrite { hold, volume }, DiskResult::Done) => {
                self.homes.touch(volume);
                self.homes.copy_has_space(self.now.mono);
                self.chunk_written(hold);
            }
            // What reached the disk is not known; nothing that builds on it may be said any more. Never tried again: a
            // second fdatasync may succeed although the pages were dropped.
            (_, DiskResult::Failed { message, .. }) => self.event(Event::DiskFailed(message)),
            (pending, result) => {
                self.event(Event::DiskFailed(format!(
                    "the driver answered {pending:?} with {result:?}"
                )));
            }
        }
    }

    fn continue_stopping(&mut self) {
        let Some(stopping) = self.stopping.as_ref().filter(|s| !s.stopped) else {
            return;
        };
        let fenced = self.core.is_fenced();
        if !stopping.said_goodbye {
            let answered = !self.core.serving()
                || (self.clients.idle()
                    && (self.core.commit() >= self.core.tail() || !self.core.hears_its_peers()));
            let applied = self.store.applied_lsn() >= self.core.commit().min(self.core.durable());
            let finished = answered && applied && self.frames.idle();
            if !(finished || self.now.mono >= stopping.give_up_at || fenced) {
                return;
            }
            self.with_view(Core::goodbye);
            self.carry_out();
            self.stopping.as_mut().expect("just seen").said_goodbye = true;
            self.homes.want_checkpoint();
            self.consider_checkpoint();
            self.write_state();
        }
        let stopping = self.stopping.as_ref().expect("just seen");
        let settled = self.homes.idle() && self.state.idle() && self.frames.idle();
        let given_up = self.now.mono >= stopping.give_up_at + STOP_GRACE;
        if fenced || settled || given_up {
            self.outputs.push(Output::Stopped);
            self.stopping.as_mut().expect("just seen").stopped = true;
        }
    }
}
