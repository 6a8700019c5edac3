//! Opening a group: creation at the first start, recovery at every later one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use bytes::Bytes;
use slab::Slab;
use uuid::Uuid;

use super::changes::Changes;
use super::undo::{FoundUndo, Undo};
use super::{
    Disk, File, Group, GroupConfig, Now, clients, frames, homes, questions, receive, state, stats,
};
use crate::base::{
    AckMode, AlignedBuf, BLOCK, ByteRange, Lsn, Op, OpKind, Role, Verified, VolumeSpec,
    exact_bytes, utc,
};
use crate::core::{self, Core};
use crate::journal::{
    self, Frame, Log, ReadJournal, Recovered, Recovery, STATE_FILE_BYTES, StateError, StateFile,
    StateRecord,
};
use crate::store::{Content, Store};

/// Why a group could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What is on the disk is not what it should be; says what was found and what to do.
    #[error("{0}")]
    Refused(String),
}

/// What recovery found, ready to run.
struct Opened {
    record: StateRecord,
    state_file: StateFile,
    log: Log,
    store: Store,
    volumes: Vec<VolumeSpec>,
    tail: Lsn,
    chain: u32,
    commit: Lsn,
    time_ns: u64,
    notes: Vec<(core::Severity, String)>,
    /// Where the journal is damaged, in words.
    damage: Option<String>,
    changes: Changes,
    undo: Option<FoundUndo>,
    /// An undo file lies there that nobody needs.
    stale_undo: bool,
}

impl Group {
    /// Opens the group's files: creates them at the first start, recovers them at any later one.
    ///
    /// `seed` feeds the ids of groups, volumes and epochs; never use one twice.
    pub fn open(
        config: GroupConfig,
        disk: &mut dyn Disk,
        seed: u128,
        now: Now,
    ) -> Result<Group, OpenError> {
        let opened = match (disk.len(File::State)?, disk.len(File::Journal)?) {
            (None, None) => create(&config, disk, seed)?,
            (None, Some(_)) => {
                return Err(OpenError::Refused(format!(
                    "group {} has a journal but no state file: something removed the state. Put it back from where it \
                     went; doublure does not guess what the journal means. {}",
                    config.group,
                    start_over(&config, None)
                )));
            }
            (Some(_), _) => recover(&config, disk, seed)?,
        };
        disk.check_blank(&opened.volumes)?;
        Ok(Group::assemble(config, opened, seed, now))
    }

    fn assemble(config: GroupConfig, opened: Opened, seed: u128, now: Now) -> Group {
        let Opened {
            record,
            state_file,
            log,
            store,
            volumes,
            tail,
            chain,
            commit,
            time_ns,
            notes,
            damage,
            changes,
            undo,
            stale_undo,
        } = opened;
        let core_config = core::Config {
            site: config.site.clone(),
            group: config.group.clone(),
            peers: config.peers.clone(),
            on_peer_loss: config.on_peer_loss,
            timeout: config.timeout,
        };
        let disagreements = disagreements(&config, &record);
        let mut core = Core::new(core_config, state::facts_of(&record), tail, commit, seed);
        core.note_applied(store.applied_lsn());
        let mut group = Group {
            core,
            store,
            next_volume_id: volumes.iter().map(|v| v.id.0 + 1).max().unwrap_or(0),
            volumes,
            parting: Vec::new(),
            clients: clients::Clients::default(),
            frames: frames::Frames::new(tail, chain, time_ns),
            homes: homes::Homes::new(record.checkpoint.lsn, now.mono),
            state: state::State::new(state_file, record.checkpoint, seed.rotate_left(64)),
            log,
            streams: BTreeMap::new(),
            receive: receive::Receive::default(),
            questions: questions::Questions::default(),
            changes,
            undo: Undo::found(undo),
            verified: record.verified,
            block_reads: Slab::new(),
            keeping: None,
            keepings: 0,
            resizing: None,
            state_since: (None, 0),
            state_may_differ: true,
            disk: Slab::new(),
            syncs: BTreeMap::new(),
            stats: stats::Stats::new(now.mono),
            marks: stats::Marks::default(),
            disagreements,
            damage,
            stopping: None,
            events: VecDeque::new(),
            actions: Vec::new(),
            outputs: Vec::new(),
            now,
            config,
        };
        if stale_undo {
            group.remove_stale_undo();
        }
        // Replay wrote to homes without syncing them.
        for volume in &group.volumes {
            group.homes.touch(volume.id);
        }
        for (severity, text) in notes {
            group.log_line(severity, text);
        }
        for text in group.disagreements() {
            group.log_line(core::Severity::Warn, text);
        }
        group.with_view(Core::start);
        group.finish_batch(now);
        group
    }
}

/// The first start of a site.
fn create(config: &GroupConfig, disk: &mut dyn Disk, seed: u128) -> Result<Opened, OpenError> {
    let group_id = match config.role {
        Role::Primary => {
            uuid::Builder::from_random_bytes(seed.rotate_left(17).to_be_bytes()).into_uuid()
        }
        // A mirror learns it from its primary.
        Role::Mirror => Uuid::nil(),
    };
    // The state comes last: a crash before leaves a journal without one only if nothing was ever acknowledged, and the
    // message for that case would send the operator looking for nothing. So an empty journal is created again.
    disk.create(File::State, STATE_FILE_BYTES)?;
    disk.create(File::Journal, config.journal_bytes)?;
    let log = Log::new(config.journal_bytes, group_id);
    let record = StateRecord {
        sequence: 0,
        group_id,
        site: config.site.clone(),
        group: config.group.clone(),
        role: config.role,
        ack: config.ack,
        lineage: crate::base::Lineage::default(),
        handed: None,
        floor: Lsn::ZERO,
        ever_in_sync: false,
        inconsistent_until: None,
        checkpoint: log.position(Lsn::ZERO),
        commit: Lsn::ZERO,
        frame_time_ns: 0,
        clean_shutdown: false,
        journal_bytes: config.journal_bytes,
        volumes: Vec::new(),
        peers: Vec::new(),
        given_up: Uuid::nil(),
        given_up_ns: 0,
        forks: Vec::new(),
        mixture: None,
        written: None,
        undo: Uuid::nil(),
        readable_from: Lsn::ZERO,
        verified: Verified::default(),
    };
    let mut state_file = StateFile::new();
    write_record(&mut state_file, &record, disk)?;
    let note = format!("created as {}", config.role);
    let changes = Changes::new(config.journal_bytes, Lsn::ZERO, BTreeMap::new(), None);
    Ok(Opened {
        changes,
        undo: None,
        stale_undo: false,
        record,
        state_file,
        log,
        store: Store::new(Lsn::ZERO),
        volumes: Vec::new(),
        tail: Lsn::ZERO,
        chain: 0,
        commit: Lsn::ZERO,
        time_ns: 0,
        notes: vec![(core::Severity::Info, note)],
        damage: None,
    })
}

fn write_record(file: &mut StateFile, record: &StateRecord, disk: &mut dyn Disk) -> io::Result<()> {
    let (offsets, data) = file.plan_write(record);
    for offset in offsets {
        disk.write(File::State, offset, &data, true)?;
    }
    Ok(())
}

struct JournalReader<'a>(&'a mut dyn Disk);

impl ReadJournal for JournalReader<'_> {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read(File::Journal, offset, buf)
    }
}

/// What to do when something of a group is gone for good. The `record` of state tells, if there is one, whether the peer
/// has all that was acknowledged here; where it may not, nothing here may be thrown away.
fn start_over(config: &GroupConfig, record: Option<&StateRecord>) -> String {
    let group = &config.group;
    let Some(peer) = config.peers.first() else {
        return "If it is gone for good, restore a backup: no peer is configured that has the data"
            .into();
    };
    let promote = format!(
        "`doublure promote {group} --force peer-unreachable` on {peer}, unless it is primary already; then stop doublure here, \
         move the folder '{group}' in its data directory away, set role = \"mirror\" for the group and start doublure: it gets \
         a copy"
    );
    match only_here(record, peer) {
        None => format!("If it is gone for good, {peer} has the data: {promote}"),
        Some(only_here) => format!(
            "{only_here}. KEEP the folder '{group}' in this site's data directory, and copy it to another disk before anything \
             else. If what is missing can be put back, nothing is lost. If it is gone for good, the choice is to go on with what \
             {peer} has, and lose the rest: {promote}. What {peer} lacks is then in the folder that was moved away, and nowhere \
             else"
        ),
    }
}

/// Why this site may hold what its peer lacks.
fn only_here(record: Option<&StateRecord>, peer: &str) -> Option<String> {
    let Some(record) = record else {
        return Some(format!(
            "Without the record of state it is not known whether {peer} was in sync: this folder may hold the only copy of what \
             was acknowledged last"
        ));
    };
    let known = record.peers.iter().find(|p| p.site == peer);
    if let Some(alone) = known.and_then(|p| p.alone.as_ref()) {
        return Some(format!(
            "{peer} was NOT in sync: it lacks what was acknowledged here since LSN {} ({}), and this folder holds the only copy \
             of that",
            alone.from_lsn,
            utc(alone.since_ns / 1_000_000_000)
        ));
    }
    (record.role == Role::Primary && record.ack == AckMode::Async).then(|| {
        let confirmed = known.map_or(Lsn::ZERO, |p| p.told_durable);
        format!(
            "In async mode {peer} may lack what was acknowledged last: on record it has everything up to LSN {confirmed}. This \
             folder holds the only copy of what it lacks"
        )
    })
}

/// Every later start.
fn recover(config: &GroupConfig, disk: &mut dyn Disk, seed: u128) -> Result<Opened, OpenError> {
    let Some((mut state_file, mut record)) = load_state(config, disk)? else {
        // Created, but never completely written: the first start did not get as far as serving anybody.
        check_blank_journal(config, disk)?;
        return create(config, disk, seed);
    };
    if record.group != config.group || record.site != config.site {
        return Err(OpenError::Refused(format!(
            "the state file belongs to group '{}' of site '{}', the configuration says group '{}' of site '{}'",
            record.group, record.site, config.group, config.site
        )));
    }
    match disk.len(File::Journal)? {
        Some(len) if len == record.journal_bytes => {}
        Some(len) => {
            return Err(OpenError::Refused(format!(
                "the journal has {len} bytes, its record says {}: it is not the journal of this group's last run. Put that \
                 back and restart doublure here. {}",
                record.journal_bytes,
                start_over(config, Some(&record))
            )));
        }
        None => {
            return Err(OpenError::Refused(format!(
                "the journal of group {} is missing (is its device mounted?). It holds acknowledged writes; doublure does \
                 not create a new one in its place. Put it back and restart doublure here. {}",
                config.group,
                start_over(config, Some(&record))
            )));
        }
    }
    check_homes(config, &record, disk)?;
    let lost = state_file.lost_slot();
    if state_file.is_at_risk() {
        // Before anything is done that follows from it.
        write_record(&mut state_file, &record, disk)?;
    }
    let mut opened = replay(config, &mut record, state_file, disk)?;
    opened.notes.extend(lost.map(lost_slot));
    Ok(opened)
}

fn lost_slot(slot: usize) -> (core::Severity, String) {
    let text = format!(
        "slot {slot} of the state file held no valid record: a write was cut off, or the disk has damaged it. The other \
         one counts, and both were written again"
    );
    (core::Severity::Warn, text)
}

fn load_state(
    config: &GroupConfig,
    disk: &mut dyn Disk,
) -> Result<Option<(StateFile, StateRecord)>, OpenError> {
    let len = disk.len(File::State)?.unwrap_or(0);
    if len < STATE_FILE_BYTES {
        return Err(OpenError::Refused(format!(
            "the state file has {len} bytes instead of {STATE_FILE_BYTES}: it was cut short. Put it back and restart doublure \
             here. {}",
            start_over(config, None)
        )));
    }
    let mut all = AlignedBuf::zeroed(STATE_FILE_BYTES as usize);
    disk.read(File::State, 0, &mut all)?;
    match StateFile::load(&all) {
        Err(StateError::Unfinished(_)) => Ok(None),
        Err(damaged @ StateError::Damaged(..)) => Err(OpenError::Refused(format!(
            "{damaged}. Put it back and restart doublure here. {}",
            start_over(config, None)
        ))),
        loaded => loaded.map_err(|e| OpenError::Refused(e.to_string())),
    }
}

/// No frame is written before the state is on record: a journal with frames and no record means that the record was lost.
fn check_blank_journal(config: &GroupConfig, disk: &mut dyn Disk) -> Result<(), OpenError> {
    let len = disk.len(File::Journal)?.unwrap_or(0);
    let segment = journal::segment_bytes(len);
    let mut header = AlignedBuf::zeroed(BLOCK);
    for at in 0..len / segment {
        disk.read(File::Journal, at * segment, &mut header)?;
        if !journal::is_zero(&header) {
            return Err(OpenError::Refused(format!(
                "the journal holds frames, but the state file holds no record: it was damaged or replaced. Put it back \
                     and restart doublure here. {}",
                start_over(config, None)
            )));
        }
    }
    Ok(())
}

fn check_homes(
    config: &GroupConfig,
    record: &StateRecord,
    disk: &mut dyn Disk,
) -> Result<(), OpenError> {
    for volume in &record.volumes {
        disk.attach_home(volume)?;
        match disk.len(File::Home(volume.id))? {
            Some(len) if len >= volume.size => {}
            Some(len) => {
                return Err(OpenError::Refused(format!(
                    "the home of volume '{}' has {len} bytes, the volume has {}: it was cut short or replaced. Put it back \
                     and restart doublure here. {}",
                    volume.name,
                    volume.size,
                    start_over(config, Some(record))
                )));
            }
            None => {
                return Err(OpenError::Refused(format!(
                    "the home of volume '{}' is missing (is its device mounted?); doublure does not create an empty one \
                     in its place. Put it back and restart doublure here. {}",
                    volume.name,
                    start_over(config, Some(record))
                )));
            }
        }
    }
    Ok(())
}

/// Brings the homes up to the last commit the journal knows of, and the overlay up to its tail.
struct Replay<'a> {
    disk: &'a mut dyn Disk,
    /// What must be kept before a home is written to.
    undo: Option<FoundUndo>,
    checkpoint: Lsn,
    commit: Lsn,
    time_ns: u64,
    volumes: Vec<VolumeSpec>,
    /// Beyond the commit LSN known so far.
    pending: VecDeque<(Lsn, Op, Bytes)>,
    /// Last operation after the checkpoint that does not open an epoch.
    written: Lsn,
    lineage: crate::base::Lineage,
}

impl Replay<'_> {
    fn visit(&mut self, frame: &Frame) -> Result<(), OpenError> {
        self.time_ns = self.time_ns.max(frame.time_ns());
        self.commit = self.commit.max(frame.commit_lsn());
        for (lsn, op, payload) in frame.ops() {
            if lsn <= self.checkpoint {
                continue;
            }
            let content = payload
                .content()
                .map_err(|e| OpenError::Refused(format!("operation {lsn}: {e}")))?;
            if op.kind == OpKind::OpenEpoch {
                let epoch = journal::decode_epoch(&content)
                    .map_err(|e| OpenError::Refused(format!("operation {lsn}: {e}")))?;
                if !self.lineage.contains(epoch.id) {
                    self.lineage.truncate_after(lsn.prev());
                    self.lineage.push(epoch).map_err(OpenError::Refused)?;
                }
            } else {
                self.written = self.written.max(lsn);
            }
            self.pending.push_back((lsn, op, content));
        }
        self.apply_committed()
    }

    fn apply_committed(&mut self) -> Result<(), OpenError> {
        while self
            .pending
            .front()
            .is_some_and(|(lsn, ..)| *lsn <= self.commit)
        {
            let (lsn, op, content) = self.pending.pop_front().expect("just seen");
            let file = File::Home(op.volume);
            if let Some(undo) = self.undo.as_mut().filter(|_| !op.kind.is_control()) {
                undo.keep(op.volume, op.range, self.disk)?;
            }
            match op.kind {
                OpKind::Write => self.disk.write(file, op.range.offset, &content, false)?,
                OpKind::WriteZeroes { no_hole } => self.disk.zero(file, op.range, no_hole)?,
                OpKind::Trim => self.disk.zero(file, op.range, false)?,
                OpKind::OpenEpoch => {}
                OpKind::ResizeVolume => {
                    let volume = journal::decode_volume(&content)
                        .map_err(|e| OpenError::Refused(format!("operation {lsn}: {e}")))?;
                    self.disk.grow_home(&volume)?;
                    let known = self.volumes.iter().find(|v| v.id == volume.id);
                    let size = known.map_or(0, |v| v.size);
                    if size < volume.size {
                        let grown = ByteRange::new(size, volume.size - size);
                        self.disk.zero(file, grown, false)?;
                    }
                    self.volumes.retain(|v| v.id != volume.id);
                    self.volumes.push(volume);
                    self.volumes.sort_by_key(|v| v.id);
                }
                OpKind::CreateVolume => {
                    let volume = journal::decode_volume(&content)
                        .map_err(|e| OpenError::Refused(format!("operation {lsn}: {e}")))?;
                    if let Some(known) = self.volumes.iter().find(|v| v.id == volume.id)
                        && known.uuid != volume.uuid
                    {
                        return Err(OpenError::Refused(format!(
                            "operation {lsn} creates volume {} ({}), but the record of state has {} ({}) under that number",
                            volume.name, volume.uuid, known.name, known.uuid
                        )));
                    }
                    // As at run time: it takes the place of what this site could go back to.
                    self.undo.take_if(|undo| undo.needs_place_of(&volume));
                    self.disk.create_home(&volume)?;
                    self.disk
                        .zero(File::Home(volume.id), ByteRange::new(0, volume.size), false)?;
                    if !self.volumes.iter().any(|v| v.id == volume.id) {
                        self.volumes.push(volume);
                    }
                }
            }
        }
        Ok(())
    }
}

fn replay(
    config: &GroupConfig,
    record: &mut StateRecord,
    state_file: StateFile,
    disk: &mut dyn Disk,
) -> Result<Opened, OpenError> {
    let mut notes = Vec::new();
    let undo = find_undo(record, disk, &mut notes)?;
    let could_go_back = undo.is_some();
    if let Some(undo) = &undo {
        // Going back was cut off after it had taken their homes back.
        for volume in undo.volumes_gone(&record.volumes, disk)? {
            disk.put_aside(&volume)?;
        }
    }
    let stale_undo = undo.is_none() && disk.len(File::Undo)?.is_some();
    let mut recovery = Recovery::new(
        record.journal_bytes,
        record.group_id,
        record.checkpoint,
        &record.lineage,
    );
    let mut replay = Replay {
        disk,
        undo,
        checkpoint: record.checkpoint.lsn,
        commit: record.commit,
        // The frames before the checkpoint are not read again.
        time_ns: record.frame_time_ns,
        volumes: record.volumes.clone(),
        pending: VecDeque::new(),
        written: Lsn::ZERO,
        lineage: record.lineage.clone(),
    };
    let dirty = record
        .peers
        .iter()
        .filter_map(|p| Some((p.site.clone(), p.dirty.clone()?)));
    let mut dirty: BTreeMap<String, journal::Dirty> = dirty.collect();
    let own = dirty.remove(&record.site).map(|own| own.chunks);
    let mut changes = Changes::new(
        record.journal_bytes,
        record.checkpoint.next.prev(),
        dirty,
        own,
    );
    let refused = |e: journal::RecoverError| OpenError::Refused(e.to_string());
    while let Some(frame) = recovery
        .next(&mut JournalReader(replay.disk))
        .map_err(refused)?
    {
        changes.note(&frame);
        replay.visit(&frame)?;
    }
    let recovered = recovery
        .finish(&mut JournalReader(replay.disk))
        .map_err(refused)?;
    // What was before its beginning is not in a journal that began anew.
    if recovered.stale && record.checkpoint.next > record.readable_from {
        doubt_homes(config, record, &mut changes, &mut notes)?;
    }
    let count = recovered.frames;
    let commit = replay.commit.min(recovered.tail);
    let Replay {
        time_ns,
        volumes,
        pending,
        mut lineage,
        undo,
        written,
        ..
    } = replay;
    if could_go_back && undo.is_none() {
        let text = "what this site held before the copy is not kept any longer: a new volume takes the place of one of then";
        notes.push((core::Severity::Warn, text.into()));
    }
    lineage.truncate_after(recovered.tail);
    record.lineage = lineage;
    // What the record knew of when it was written, and what followed its checkpoint.
    record.written = record.written.map(|known| known.max(written));
    note_losses(record, &recovered, &mut notes);
    notes.push((
        core::Severity::Info,
        format!(
            "recovered {count} frames from the journal: LSN {} to {}, committed up to {commit}",
            record.checkpoint.lsn, recovered.tail
        ),
    ));
    let mut log = recovered.log;
    log.unreadable_before(record.readable_from);
    let mut store = Store::new(commit);
    for (lsn, op, content) in pending {
        store.admit(lsn, &op);
        store.attach(lsn, Content::of(&op, content));
    }
    Ok(Opened {
        changes,
        undo,
        stale_undo,
        record: record.clone(),
        state_file,
        log,
        store,
        volumes,
        tail: recovered.tail,
        chain: recovered.chain,
        commit,
        time_ns,
        notes,
        damage: recovered.damage.as_ref().map(damaged),
    })
}

/// Where a journal is damaged, as a clause.
fn damaged(damage: &journal::Damage) -> String {
    format!(
        "LSN {} (at byte {} of the journal) is missing although later frames show that everything up to LSN {} was committed",
        damage.lsn, damage.offset, damage.claims
    )
}

/// What makes it possible to go back to before a copy, if the record names something.
fn find_undo(
    record: &mut StateRecord,
    disk: &mut dyn Disk,
    notes: &mut Vec<(core::Severity, String)>,
) -> Result<Option<FoundUndo>, OpenError> {
    if record.undo.is_nil() {
        return Ok(None);
    }
    match FoundUndo::load(record.undo, &record.volumes, disk)? {
        Ok(found) => Ok(Some(found)),
        Err(why) => {
            let text = format!(
                "what this site held before the copy cannot be gone back to: {why}. The copy goes on when the primary connects"
            );
            notes.push((core::Severity::Error, text));
            record.undo = Uuid::nil();
            Ok(None)
        }
    }
}

/// What the journal or the record show to have been here and is not any more.
/// The journal is older than the record: a copy of the folder, or of its journal, was put back under a newer record. The homes may
/// be as old. A mirror is compared, chunk by chunk; a primary has nobody to be compared with while it serves.
fn doubt_homes(
    config: &GroupConfig,
    record: &mut StateRecord,
    changes: &mut Changes,
    notes: &mut Vec<(core::Severity, String)>,
) -> Result<(), OpenError> {
    let checkpoint = record.checkpoint.lsn;
    if record.role == Role::Primary {
        return Err(OpenError::Refused(format!(
            "the journal of group {} is older than its record of state, which says that everything up to LSN {checkpoint} is \
             in the homes: an old copy of the journal, and perhaps of the homes, was put in place of what belongs to that \
             record, or the disk has lost what was written last. Put journal, state and homes of one and the same moment back and restart doublure here. {}",
            config.group,
            start_over(config, Some(record))
        )));
    }
    record.inconsistent_until = Some(Lsn(u64::MAX));
    changes.forget_own();
    let text = format!(
        "the journal is older than the record of state, which says that everything up to LSN {checkpoint} is in the homes: an \
         old copy of the journal, and perhaps of the homes, was put in place of what belongs to that record, or the disk has \
         lost what was written last. This site is not usable until its primary has compared all of it"
    );
    notes.push((core::Severity::Error, text));
    Ok(())
}

fn note_losses(
    record: &mut StateRecord,
    recovered: &Recovered,
    notes: &mut Vec<(core::Severity, String)>,
) {
    if let Some(torn) = &recovered.torn {
        let text = format!(
            "the journal's tail after LSN {torn} was torn by the crash and is dropped; it was not committed"
        );
        notes.push((core::Severity::Info, text));
    }
    let mut lost = record.commit;
    if let Some(damage) = &recovered.damage {
        let alone = record.peers.iter().find(|p| p.alone.is_some());
        let rest = alone
            .and_then(|peer| only_here(Some(record), &peer.site))
            .map_or_else(
                || " and needs the rest from its peer".to_owned(),
                |only_here| {
                    format!(
                        ". {only_here}, as far as it can still be read: copy the folder '{}' in this site's data directory to \
                         another disk before anything else",
                        record.group
                    )
                },
            );
        let text = format!(
            "the journal is damaged: {}. This site ends before it{rest}",
            damaged(damage)
        );
        notes.push((core::Severity::Error, text));
        lost = lost.max(damage.claims);
        let waited_for_nobody =
            record.ack == AckMode::Async || record.peers.iter().any(|p| p.alone.is_some());
        if record.role == Role::Primary && waited_for_nobody {
            // Acknowledged as soon as it was durable here.
            lost = lost.max(damage.last);
        }
    }
    if lost > recovered.tail {
        record.floor = record.floor.max(lost);
    }
}

/// Where configuration and disk differ. The disk wins.
fn disagreements(config: &GroupConfig, record: &StateRecord) -> Vec<String> {
    let mut all = Vec::new();
    if config.ack != record.ack {
        all.push(format!(
            "ack: the configuration says {0}, the group runs in {1}. `ack = \"{1}\"` in the configuration settles it",
            config.ack, record.ack
        ));
    }
    if config.journal_bytes != record.journal_bytes {
        all.push(format!(
            "journal: the configuration says {}, the journal has {}. `journal = {}` in the configuration settles it",
            exact_bytes(config.journal_bytes),
            exact_bytes(record.journal_bytes),
            record.journal_bytes
        ));
    }
    all
}

/// The same for the volumes, which grow while the group runs.
pub(super) fn volume_disagreements(config: &GroupConfig, volumes: &[VolumeSpec]) -> Vec<String> {
    let mut all = Vec::new();
    for (name, size) in &config.volumes {
        if let Some(volume) = volumes.iter().find(|v| v.name == *name && v.size != *size) {
            let grow = if *size < volume.size {
                " (a volume is never shrunk)".to_owned()
            } else {
                format!(
                    "; or `doublure resize {} {name} {size}` grows it",
                    config.group
                )
            };
            all.push(format!(
                "volume {name}: the configuration says {}, the volume has {}. `size = {}` for it in the configuration settles \
                 it{grow}",
                exact_bytes(*size),
                exact_bytes(volume.size),
                volume.size
            ));
        }
    }
    let known: BTreeSet<&str> = config
        .volumes
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    if !config.volumes.is_empty() {
        for volume in volumes.iter().filter(|v| !known.contains(v.name.as_str())) {
            all.push(format!(
                "volume {0}: it exists, but the configuration does not name it. A [[group.volume]] with `name = \"{0}\"` and \
                 `size = {1}` settles it",
                volume.name, volume.size
            ));
        }
    }
    all
}
