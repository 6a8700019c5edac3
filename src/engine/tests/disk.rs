//! A disk on which a power cut shows: what was not written durably or synced survives sector by sector, or not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::Rng;
use crate::base::{BLOCK, ByteRange, VolumeId, VolumeSpec};
use crate::engine::{Disk, DiskId, DiskOp, DiskResult, File};
use crate::journal::STATE_FILE_BYTES;

/// What survives or not, as a whole.
const SECTOR: usize = 512;

/// Bytes of a file, zero where never written.
#[derive(Clone, Default)]
struct Medium {
    /// Shared between what is read and what is stable, so that a sync costs little.
    blocks: BTreeMap<u64, Arc<[u8; BLOCK]>>,
}

impl Medium {
    fn read(&self, offset: u64, buf: &mut [u8]) {
        for (at, byte_run) in runs(offset, buf.len()) {
            let (block, from) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let to = (at - offset) as usize;
            match self.blocks.get(&block) {
                Some(data) => buf[to..to + byte_run].copy_from_slice(&data[from..from + byte_run]),
                None => buf[to..to + byte_run].fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte_run) in runs(offset, data.len()) {
            let (block, from) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let source = (at - offset) as usize;
            let target = self
                .blocks
                .entry(block)
                .or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(target)[from..from + byte_run]
                .copy_from_slice(&data[source..source + byte_run]);
        }
    }

    /// Gives back the blocks that lie in the range as a whole.
    fn punch(&mut self, range: ByteRange) {
        let block = BLOCK as u64;
        let whole = range.offset.div_ceil(block)..range.end() / block;
        if !whole.is_empty() {
            self.blocks.extract_if(whole, |_, _| true).for_each(drop);
        }
    }

    /// What is allocated: `(length, allocated)`, neighbours joined.
    fn extents(&self, range: ByteRange) -> Vec<(u64, bool)> {
        let mut all: Vec<(u64, bool)> = Vec::new();
        for (at, len) in runs(range.offset, range.len as usize) {
            let allocated = self.blocks.contains_key(&(at / BLOCK as u64));
            match all.last_mut() {
                Some(last) if last.1 == allocated => last.0 += len as u64,
                _ => all.push((len as u64, allocated)),
            }
        }
        all
    }
}

/// Splits a range at block borders: `(offset, length)`.
fn runs(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let run = (BLOCK as u64 - at % BLOCK as u64).min(end - at);
            let start = at;
            at += run;
            (start, run as usize)
        })
    })
}

#[derive(Clone, Default)]
struct SimFile {
    len: u64,
    /// What is read.
    current: Medium,
    /// What a power cut surely leaves.
    stable: Medium,
    /// Written since the last sync, in order.
    unsynced: Vec<(u64, Vec<u8>)>,
}

impl SimFile {
    fn is_blank(&self) -> bool {
        let mut blocks = self.current.blocks.values();
        blocks.all(|block| block.iter().all(|b| *b == 0))
    }
}

/// Copies of files.
#[derive(Clone)]
pub struct Image(Vec<(File, Medium)>);

/// The disk of one site.
#[derive(Clone)]
pub struct SimDisk {
    files: BTreeMap<File, SimFile>,
    in_flight: Vec<(DiskId, DiskOp)>,
    /// What reads under way have seen already.
    seen: BTreeMap<DiskId, DiskResult>,
    /// Homes cannot be longer.
    pub most_bytes: u64,
    /// Nothing completes.
    pub held: bool,
    /// No write to the journal completes.
    pub journal_held: bool,
    /// Nothing on homes completes.
    pub homes_held: bool,
    /// Reads of them.
    pub home_reads_held: bool,
    /// Syncs of them.
    pub home_syncs_held: bool,
    /// The next write to the journal fails.
    pub fail_next_journal_write: bool,
    /// The next sync of a home fails.
    pub fail_next_home_sync: bool,
    /// The next write to a home fails.
    pub fail_next_home_write: bool,
    /// Homes have no room for anything.
    pub homes_full: bool,
    /// Blocks of homes that cannot be read until they are written again.
    pub unreadable: BTreeSet<(File, u64)>,
    /// What the file system of the homes has left, if that is bounded.
    pub free_bytes: Option<u64>,
    /// The file system shares blocks between files.
    pub can_clone: bool,
    clones: BTreeMap<VolumeId, Medium>,
    /// Whose the homes are that are open.
    owners: BTreeMap<VolumeId, VolumeSpec>,
    /// Homes that no volume of the record has, by the name of the volume they were made for.
    closed: BTreeMap<String, (Uuid, SimFile)>,
    /// Volumes that were on record at some start.
    recorded: BTreeSet<Uuid>,
    /// What volumes held that are no longer part of the history.
    aside: BTreeMap<Uuid, SimFile>,
    /// Homes stay where they are when they are put aside, as at a configured place: these volumes were given up there.
    pub homes_stay: bool,
    given_up: BTreeMap<Uuid, String>,
    /// Writes to homes so far.
    pub home_writes: u64,
    /// Which of those to come are lost, or go to about this place.
    pub betrayals: BTreeMap<u64, (Damage, u64)>,
    /// The last writes to the journal, with what was there before: one of them may turn out to be lost.
    recent: VecDeque<Recent>,
}

/// A write to the journal.
#[derive(Clone)]
struct Recent {
    offset: u64,
    before: Vec<u8>,
    after: Bytes,
}

/// So many writes to the journal may turn out to be lost.
const RECENT: usize = 6;

/// How a disk betrays its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// A bit of a frame flips.
    Rot,
    /// A write to the journal was confirmed and never made.
    Lost,
    /// A write to the journal was confirmed and went somewhere else.
    Misdirected,
}

impl Default for SimDisk {
    fn default() -> SimDisk {
        SimDisk {
            files: BTreeMap::new(),
            in_flight: Vec::new(),
            seen: BTreeMap::new(),
            most_bytes: 1 << 30,
            held: false,
            homes_held: false,
            home_reads_held: false,
            home_syncs_held: false,
            journal_held: false,
            fail_next_journal_write: false,
            fail_next_home_sync: false,
            fail_next_home_write: false,
            homes_full: false,
            unreadable: BTreeSet::new(),
            free_bytes: None,
            can_clone: false,
            clones: BTreeMap::new(),
            owners: BTreeMap::new(),
            closed: BTreeMap::new(),
            recorded: BTreeSet::new(),
            aside: BTreeMap::new(),
            homes_stay: false,
            given_up: BTreeMap::new(),
            home_writes: 0,
            betrayals: BTreeMap::new(),
            recent: VecDeque::new(),
        }
    }
}

impl SimDisk {
    pub fn submit(&mut self, id: DiskId, op: DiskOp) {
        self.in_flight.push((id, op));
    }

    /// A read sees the medium at some moment before it completes: this one sees it now.
    pub fn look(&mut self, id: DiskId) {
        let found = self.in_flight.iter().find(|(other, _)| *other == id);
        let op = found.expect("under way").1.clone();
        if let Ok(result) = self.perform(op) {
            self.seen.insert(id, result);
        }
    }

    /// Completes one request, any of those under way.
    pub fn complete_one(&mut self, rng: &mut Rng) -> Option<(DiskId, DiskResult)> {
        if self.in_flight.is_empty() {
            return None;
        }
        let ready: Vec<usize> = (0..self.in_flight.len())
            .filter(|at| self.may_complete(*at))
            .collect();
        if ready.is_empty() {
            return None;
        }
        let at = ready[rng.below(ready.len() as u64) as usize];
        let (id, op) = self.in_flight.swap_remove(at);
        let result = self.perform(op).unwrap_or_else(|e| DiskResult::Failed {
            errno: e.raw_os_error().unwrap_or(5),
            message: e.to_string(),
        });
        Some((id, result))
    }

    /// Completes this request.
    pub fn complete(&mut self, id: DiskId) -> Option<(DiskOp, DiskResult)> {
        let at = self.in_flight.iter().position(|(i, _)| *i == id)?;
        let (_, op) = self.in_flight.swap_remove(at);
        if let Some(seen) = self.seen.remove(&id) {
            return Some((op, seen));
        }
        let result = self
            .perform(op.clone())
            .unwrap_or_else(|e| DiskResult::Failed {
                errno: e.raw_os_error().unwrap_or(5),
                message: e.to_string(),
            });
        Some((op, result))
    }

    /// Writes to a file that are under way.
    pub fn writes_under_way(&self, wanted: File) -> usize {
        let of = |op: &DiskOp| matches!(op, DiskOp::Write { file, .. } if *file == wanted);
        self.in_flight.iter().filter(|(_, op)| of(op)).count()
    }

    /// Completes a write to this file, if one is under way.
    pub fn complete_of(&mut self, wanted: File) -> Option<(DiskId, DiskResult)> {
        let of = |op: &DiskOp| matches!(op, DiskOp::Write { file, .. } if *file == wanted);
        let id = self.in_flight.iter().find(|(_, op)| of(op))?.0;
        self.complete(id).map(|(_, result)| (id, result))
    }

    /// Which requests are under way.
    pub fn under_way(&self) -> Vec<DiskId> {
        self.in_flight.iter().map(|(id, _)| *id).collect()
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// One of the last writes to the journal turns out bad; false if there was none.
    pub fn betray(&mut self, damage: Damage, rng: &mut Rng) -> bool {
        if self.recent.is_empty() {
            return false;
        }
        let at = rng.below(self.recent.len() as u64) as usize;
        let write = self.recent.remove(at).expect("within");
        let file = self.files.get_mut(&File::Journal).expect("written to");
        let mut put = |offset: u64, data: &[u8]| {
            file.stable.write(offset, data);
            file.current.write(offset, data);
        };
        match damage {
            Damage::Rot => {
                let at = rng.below(write.after.len() as u64) as usize;
                let mut bytes = write.after.to_vec();
                bytes[at] ^= 1 << rng.below(8);
                put(write.offset, &bytes);
            }
            Damage::Lost => put(write.offset, &write.before),
            Damage::Misdirected => {
                put(write.offset, &write.before);
                let room = (file.len - write.after.len() as u64) / BLOCK as u64;
                let offset = rng.below(room) * BLOCK as u64;
                file.stable.write(offset, &write.after);
                file.current.write(offset, &write.after);
            }
        }
        true
    }

    fn may_complete(&self, at: usize) -> bool {
        let home = match &self.in_flight[at].1 {
            DiskOp::Write { file, .. } | DiskOp::Sync { file, .. } | DiskOp::Zero { file, .. } => {
                matches!(file, File::Home(_))
            }
            _ => false,
        };
        let journal =
            matches!(&self.in_flight[at].1, DiskOp::Write { file, .. } if *file == File::Journal);
        let read = matches!(
            &self.in_flight[at].1,
            DiskOp::Read {
                file: File::Home(_),
                ..
            }
        );
        let sync = matches!(&self.in_flight[at].1, DiskOp::Sync { .. });
        !(self.held
            || home && self.homes_held
            || home && sync && self.home_syncs_held
            || read && self.home_reads_held
            || journal && self.journal_held)
    }

    fn perform(&mut self, op: DiskOp) -> io::Result<DiskResult> {
        Ok(match op {
            DiskOp::Write {
                file: File::Journal,
                ..
            } if std::mem::take(&mut self.fail_next_journal_write) => {
                return Err(io::Error::from_raw_os_error(5));
            }
            DiskOp::Write {
                file: File::Home(_),
                ..
            } if std::mem::take(&mut self.fail_next_home_write) => {
                return Err(io::Error::from_raw_os_error(28));
            }
            DiskOp::Write {
                file: File::Home(_) | File::Discarded(_),
                ..
            } if self.homes_full => return Err(io::Error::from_raw_os_error(28)),
            DiskOp::Sync {
                file: File::Home(volume),
                ..
            } if std::mem::take(&mut self.fail_next_home_sync) => {
                // As Linux does it: the pages count as clean, and what they held may never reach the medium.
                let f = self.file(File::Home(volume))?;
                f.unsynced.clear();
                return Err(io::Error::from_raw_os_error(5));
            }
            DiskOp::Write {
                file,
                offset,
                data,
                durable,
            } => {
                if file == File::Journal {
                    self.remember(offset, &data)?;
                }
                let offset = if matches!(file, File::Home(_)) {
                    self.home_writes += 1;
                    match self.betrayals.remove(&(self.home_writes - 1)) {
                        Some((Damage::Misdirected, place)) => {
                            let last = self.file(file)?.len - data.len() as u64;
                            place.min(last) / BLOCK as u64 * BLOCK as u64
                        }
                        Some(_) => return Ok(DiskResult::Done),
                        None => offset,
                    }
                } else {
                    offset
                };
                Disk::write(self, file, offset, &data, durable)?;
                DiskResult::Done
            }
            DiskOp::Read {
                file, offset, len, ..
            } => {
                let mut blocks = runs(offset, len as usize).map(|(at, _)| at / BLOCK as u64);
                if blocks.any(|block| self.unreadable.contains(&(file, block))) {
                    return Err(io::Error::from_raw_os_error(5));
                }
                let mut buf = vec![0; len as usize];
                Disk::read(self, file, offset, &mut buf)?;
                DiskResult::Data(Bytes::from(buf))
            }
            DiskOp::Sync { file, .. } => {
                self.sync(file)?;
                DiskResult::Done
            }
            DiskOp::Zero { file, range, keep } => {
                self.zero(file, range, keep)?;
                DiskResult::Done
            }
            DiskOp::Extents { file, range, limit } => {
                let mut extents = self.file(file)?.current.extents(range);
                extents.truncate(limit);
                DiskResult::Extents(extents)
            }
            DiskOp::FreeSpace => DiskResult::FreeSpace(self.free_bytes.unwrap_or(u64::MAX)),
            DiskOp::GrowHome { volume, only_check } => {
                if volume.size > self.most_bytes {
                    return Err(io::Error::other("the device is too small"));
                }
                if !only_check {
                    self.grow_home(&volume)?;
                }
                DiskResult::Done
            }
            DiskOp::CloneHome { .. } if !self.can_clone => {
                return Err(io::Error::from_raw_os_error(95));
            }
            DiskOp::CloneHome { volume } => {
                let content = self.file(File::Home(volume))?.current.clone();
                self.clones.insert(volume, content);
                DiskResult::Done
            }
            DiskOp::RestoreHome { volume } => {
                let clone = self.clones.get(&volume).cloned();
                let clone = clone.ok_or_else(|| io::Error::from_raw_os_error(2))?;
                let home = self.file(File::Home(volume))?;
                for (at, len) in runs(0, home.len as usize) {
                    let mut block = vec![0; len];
                    clone.read(at, &mut block);
                    home.unsynced.push((at, block));
                }
                home.current = clone;
                DiskResult::Done
            }
            DiskOp::RemoveUndo => {
                self.files.remove(&File::Undo);
                self.clones.clear();
                DiskResult::Done
            }
            DiskOp::CreateHome { volume, lengthen } => {
                self.attach_home(&volume)?;
                if lengthen && self.files.contains_key(&File::Home(volume.id)) {
                    self.grow_home(&volume)?;
                }
                self.create_home(&volume)?;
                DiskResult::Done
            }
            DiskOp::TakeBack { volume } => {
                self.attach_home(&volume)?;
                self.file(File::Home(volume.id))?;
                DiskResult::Done
            }
            DiskOp::PutAside { volumes } => {
                for volume in &volumes {
                    self.put_aside(volume)?;
                }
                DiskResult::Done
            }
        })
    }

    /// Some files come into being, and grow, when they are written.
    fn make_room(&mut self, file: File, len: u64) -> io::Result<()> {
        if !matches!(file, File::Discarded(_) | File::Undo) {
            return Ok(());
        }
        if !self.files.contains_key(&file) {
            self.create(file, 0)?;
        }
        let file = self.file(file)?;
        file.len = file.len.max(len);
        Ok(())
    }

    fn remember(&mut self, offset: u64, after: &Bytes) -> io::Result<()> {
        const LONGEST: usize = 256 << 10;
        if after.len() <= LONGEST {
            let mut before = vec![0; after.len()];
            self.file(File::Journal)?.current.read(offset, &mut before);
            let after = after.clone();
            self.recent.push_back(Recent {
                offset,
                before,
                after,
            });
        }
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        Ok(())
    }

    fn file(&mut self, file: File) -> io::Result<&mut SimFile> {
        self.files
            .get_mut(&file)
            .ok_or_else(|| io::Error::other(format!("{file:?} does not exist")))
    }

    /// What is stable of these files now, to be put back later.
    pub fn image(&self, files: &[File]) -> Image {
        let of = |file: &File| Some((*file, self.files.get(file)?.stable.clone()));
        Image(files.iter().filter_map(of).collect())
    }

    /// Puts an image back, of files that nobody has open.
    pub fn put_back(&mut self, image: &Image) {
        for (file, medium) in &image.0 {
            let file = self.files.get_mut(file).expect("files stay");
            file.stable = medium.clone();
            file.current = medium.clone();
            file.unsynced.clear();
        }
    }

    /// Whatever is not stable yet is lost with the power, all of it.
    pub fn lose_unsynced(&mut self) {
        self.in_flight.clear();
        let closed = self.closed.values_mut().map(|(_, home)| home);
        let closed = closed.chain(self.aside.values_mut());
        for file in self.files.values_mut().chain(closed) {
            file.unsynced.clear();
        }
    }

    /// The power goes. Requests under way and writes not synced leave any subset of their sectors behind.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        self.seen.clear();
        for (_, op) in std::mem::take(&mut self.in_flight) {
            let (file, offset, data) = match op {
                DiskOp::Write {
                    file, offset, data, ..
                } => (file, offset, data.to_vec()),
                DiskOp::Zero { file, range, .. } => {
                    (file, range.offset, vec![0; range.len as usize])
                }
                DiskOp::PutAside { volumes } => {
                    // Done as far as some one of them.
                    for volume in volumes.iter().filter(|_| rng.below(2) == 0) {
                        self.put_aside(volume).expect("it cannot fail");
                    }
                    continue;
                }
                _ => continue,
            };
            if let Some(f) = self.files.get_mut(&file) {
                if file == File::Undo {
                    f.len = f.len.max(offset + data.len() as u64);
                }
                f.unsynced.push((offset, data));
            }
        }
        let closed = self.closed.values_mut().map(|(_, home)| home);
        let closed = closed.chain(self.aside.values_mut());
        for file in self.files.values_mut().chain(closed) {
            // A lucky cut keeps nearly all, an unlucky one nearly nothing; most are in between.
            let chance = rng.below(5) * 25;
            for (offset, data) in std::mem::take(&mut file.unsynced) {
                for (n, sector) in data.chunks(SECTOR).enumerate() {
                    if rng.below(100) < chance {
                        file.stable.write(offset + (n * SECTOR) as u64, sector);
                    }
                }
            }
            file.current = file.stable.clone();
        }
    }

    /// Content of a home as it is read.
    pub fn content(&mut self, file: File, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        Disk::read(self, file, offset, &mut buf).expect("within the file");
        buf
    }

    /// Damages a byte where it surely is.
    pub fn rot(&mut self, file: File, offset: u64) {
        let file = self.files.get_mut(&file).expect("exists");
        let mut byte = [0];
        file.stable.read(offset, &mut byte);
        byte[0] ^= 0x40;
        file.stable.write(offset, &byte);
        file.current.write(offset, &byte);
    }

    /// What lies in both slots of the state file.
    pub fn slots(&mut self) -> [Vec<u8>; 2] {
        [0, STATE_FILE_BYTES / 2].map(|at| {
            let head = self.content(File::State, at, BLOCK);
            let len = u32::from_le_bytes([head[24], head[25], head[26], head[27]]) as usize;
            let len = len.clamp(BLOCK, STATE_FILE_BYTES as usize / 2);
            self.content(File::State, at, len)
        })
    }

    /// Damages a byte of this slot.
    pub fn rot_slot(&mut self, slot: u64, rng: &mut Rng) {
        let at = rng.below(512) + slot * STATE_FILE_BYTES / 2;
        self.rot(File::State, at);
    }

    /// A request on this file is under way.
    pub fn is_busy(&self, wanted: File) -> bool {
        let of = |op: &DiskOp| matches!(op, DiskOp::Write { file, .. } if *file == wanted);
        self.in_flight.iter().any(|(_, op)| of(op))
    }

    /// Nothing in the homes is lost if the power goes.
    pub fn homes_are_synced(&self) -> bool {
        let home = |(file, _): &(&File, _)| matches!(file, File::Home(_));
        let mut homes = self.files.iter().filter(home);
        homes.all(|(_, home)| home.unsynced.is_empty())
    }

    /// Somebody deletes what was put aside. How many there were.
    pub fn lose_what_was_put_aside(&mut self) -> usize {
        std::mem::take(&mut self.aside).len()
    }

    /// What was put aside holds of this byte at this place.
    pub fn aside_byte(&self, volume: Uuid, offset: u64) -> Option<u8> {
        let mut byte = [0];
        self.aside.get(&volume)?.current.read(offset, &mut byte);
        Some(byte[0])
    }

    /// A home is closed, and lies where it was.
    fn close(&mut self, volume: VolumeId) {
        if let Some(owner) = self.owners.remove(&volume)
            && let Some(home) = self.files.remove(&File::Home(volume))
        {
            self.closed.insert(owner.name, (owner.uuid, home));
        }
    }

    /// Nobody has the files open any more: a new start opens what its record names.
    pub fn close_homes(&mut self) {
        let open: Vec<VolumeId> = self.owners.keys().copied().collect();
        for volume in open {
            self.close(volume);
        }
    }

    /// All files there are.
    pub fn files(&self) -> impl Iterator<Item = File> + '_ {
        self.files.keys().copied()
    }

    pub fn remove(&mut self, file: File) {
        self.files.remove(&file);
    }
}

impl Disk for SimDisk {
    fn len(&mut self, file: File) -> io::Result<Option<u64>> {
        Ok(self.files.get(&file).map(|f| f.len))
    }

    fn create(&mut self, file: File, len: u64) -> io::Result<()> {
        self.files.insert(
            file,
            SimFile {
                len,
                ..SimFile::default()
            },
        );
        Ok(())
    }

    fn read(&mut self, file: File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let f = self.file(file)?;
        if offset + buf.len() as u64 > f.len {
            return Err(io::Error::other(format!("read beyond the end of {file:?}")));
        }
        f.current.read(offset, buf);
        Ok(())
    }

    fn has_clone(&mut self, volume: &VolumeSpec) -> io::Result<bool> {
        Ok(self.clones.contains_key(&volume.id))
    }

    fn write(&mut self, file: File, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        self.make_room(file, offset + data.len() as u64)?;
        let direct = matches!(file, File::Journal | File::State);
        if direct {
            assert!(
                offset.is_multiple_of(BLOCK as u64) && data.len().is_multiple_of(BLOCK),
                "direct IO of {} at {offset}",
                data.len()
            );
        }
        for (at, len) in runs(offset, data.len()) {
            if len == BLOCK {
                self.unreadable.remove(&(file, at / BLOCK as u64));
            }
        }
        let f = self.file(file)?;
        if offset + data.len() as u64 > f.len {
            return Err(io::Error::other(format!(
                "write beyond the end of {file:?}"
            )));
        }
        f.current.write(offset, data);
        if durable {
            f.stable.write(offset, data);
            // What was written there before and not synced can no longer come back over it.
            let end = offset + data.len() as u64;
            f.unsynced
                .retain(|(o, d)| o + d.len() as u64 <= offset || *o >= end);
        } else {
            f.unsynced.push((offset, data.to_vec()));
        }
        Ok(())
    }

    fn zero(&mut self, file: File, range: ByteRange, keep: bool) -> io::Result<()> {
        // A hole stays one, and may be of any size.
        let extents = self.file(file)?.current.extents(range);
        if !keep && !extents.iter().any(|(_, allocated)| *allocated) {
            return Ok(());
        }
        let zeroes = vec![0; range.len as usize];
        Disk::write(self, file, range.offset, &zeroes, false)?;
        if !keep {
            self.file(file)?.current.punch(range);
        }
        Ok(())
    }

    fn sync(&mut self, file: File) -> io::Result<()> {
        let f = self.file(file)?;
        // Not a copy of what is read: what a failed sync has dropped stays dropped.
        for (offset, data) in std::mem::take(&mut f.unsynced) {
            f.stable.write(offset, &data);
        }
        Ok(())
    }

    fn grow_home(&mut self, volume: &VolumeSpec) -> io::Result<()> {
        let home = self.file(File::Home(volume.id))?;
        home.len = home.len.max(volume.size);
        Ok(())
    }

    fn create_home(&mut self, volume: &VolumeSpec) -> io::Result<()> {
        self.attach_home(volume)?;
        let file = File::Home(volume.id);
        let free = |home: &SimFile| home.is_blank();
        match self.files.get_mut(&file) {
            Some(home) if home.len < volume.size && !free(home) => Err(io::Error::other(format!(
                "the home of {} has {} bytes, and needs {}",
                volume.name, home.len, volume.size
            ))),
            Some(home) => {
                home.len = home.len.max(volume.size);
                Ok(())
            }
            None => {
                self.owners.insert(volume.id, volume.clone());
                Ok(self.create(file, volume.size)?)
            }
        }
    }

    /// As on a real disk, where names are what counts: nothing that holds something may lie there without a volume.
    fn check_blank(&mut self, known: &[VolumeSpec]) -> io::Result<()> {
        let unknown = |owner: &VolumeSpec| known.iter().all(|v| v.uuid != owner.uuid);
        let closed: Vec<VolumeId> = self
            .owners
            .extract_if(.., |_, owner| unknown(owner))
            .map(|(id, _)| id)
            .collect();
        assert!(closed.is_empty(), "homes are opened by record only");
        self.given_up
            .retain(|_, name| known.iter().all(|v| v.name != *name));
        self.recorded.extend(known.iter().map(|v| v.uuid));
        for (name, (uuid, home)) in &self.closed {
            let given_up = self.given_up.values().any(|given_up| given_up == name);
            // A real disk refuses others, too: with a journal that lost the operation which made the volume.
            if self.recorded.contains(uuid) && !home.is_blank() && !given_up {
                return Err(io::Error::other(format!(
                    "the home of {name} holds content, and no volume has it"
                )));
            }
        }
        Ok(())
    }

    fn attach_home(&mut self, volume: &VolumeSpec) -> io::Result<()> {
        let file = File::Home(volume.id);
        match self.owners.get(&volume.id) {
            Some(owner) if owner.uuid == volume.uuid => return Ok(()),
            Some(owner) => {
                return Err(io::Error::other(format!(
                    "volume {} is {owner:?}, not {volume:?}",
                    volume.id.0
                )));
            }
            None => {}
        }
        if let Some(other) = self.owners.values().find(|o| o.name == volume.name) {
            return Err(io::Error::other(format!(
                "{other:?} has the place of {volume:?}"
            )));
        }
        self.given_up.remove(&volume.uuid);
        let found = if let Some(home) = self.aside.remove(&volume.uuid) {
            let there = self.closed.remove(&volume.name);
            assert!(
                there.is_none_or(|(_, home)| home.is_blank()),
                "in the way of what is taken back"
            );
            Some(home)
        } else {
            self.closed.remove(&volume.name).map(|(_, home)| home)
        };
        if let Some(home) = found {
            self.files.insert(file, home);
            self.owners.insert(volume.id, volume.clone());
        }
        Ok(())
    }

    fn put_aside(&mut self, volume: &VolumeSpec) -> io::Result<()> {
        let mine = |owner: &VolumeSpec| owner.uuid == volume.uuid;
        if self.owners.get(&volume.id).is_some_and(mine) {
            self.close(volume.id);
        }
        let taken = self.owners.values().any(|owner| owner.name == volume.name);
        if taken || self.aside.contains_key(&volume.uuid) {
            return Ok(());
        }
        if self.homes_stay {
            self.given_up.insert(volume.uuid, volume.name.clone());
        } else if let Some((_, home)) = self.closed.remove(&volume.name) {
            self.aside.insert(volume.uuid, home);
        }
        Ok(())
    }
}
