//! The files of a group: where they are, how they are opened, created and locked, and blocking access to them for the
//! time before the group runs.
//!
//! - Nothing that exists is truncated, shrunk or created again. Journal and state are made under another name and
//!   renamed when they are complete and durable, so that a file of the right name is whole.
//! - The group's directory and its homes are locked for as long as they are open: no second daemon, and no second group
//!   of this one, gets at them.
//! - A home belongs to one volume by its uuid. The same number, or the same name, may be given again in another history; what
//!   the volume before held is put aside then, never handed on.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::{
    Access, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom,
};
use rustix::io::{Errno, IoSlice, ReadWriteFlags};
use smallvec::{SmallVec, smallvec};
use uuid::Uuid;

use super::GroupPaths;
use super::sync::{self, Unsynced};
use super::writer::SyncDue;
use crate::base::{AlignedBuf, BLOCK, ByteRange, VolumeId, VolumeSpec, counted_bytes, exact_bytes};
use crate::engine::{Disk, File};

/// Zeroes are written in pieces of this many bytes.
const ZEROES: usize = 1 << 20;

/// The page cache keeps what is written, or read ahead, at once in one folio as large as that. ext4 looks at every block of
/// a folio for every write to a part of it: 33 us for 4 KiB in one of 1 MiB, 1.4 us in one of 4 KiB, 1.8 us in one of 16 KiB.
/// So homes are written in pieces of this many bytes, and not read ahead.
const BUFFERED_PIECE: usize = 32 << 10;

/// Between the name of a home and the uuid of the volume, when what it held is kept aside.
const ASIDE: &str = ".discarded-";

/// A killed daemon's ring keeps its files open until the kernel has wound it up, a moment after the process is gone. The
/// kernel announces that to nobody, so a lock that is held is tried again for so long at the start.
const PREDECESSOR_GONE: Duration = Duration::from_secs(5);

/// Why something could not be done to a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// `errno`.
    pub errno: i32,
    /// A sentence that names file and operation.
    pub message: String,
}

type Result<T> = std::result::Result<T, Failure>;

/// An open file of a group.
pub struct Handle {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    /// Direct IO.
    direct: bool,
    /// Bytes of a block device's logical block; `None` of a regular file.
    device_block: Option<u64>,
    /// The file system said that it cannot.
    no_punch: AtomicBool,
    no_zero_range: AtomicBool,
    unsynced: Unsynced,
}

/// A part of zeroing a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// By `fallocate`.
    Allocate(FallocateFlags, ByteRange),
    /// By writing zeroes.
    Fill(ByteRange),
}

/// All files of a group.
pub struct Files {
    /// Open and locked.
    directory: Arc<OwnedFd>,
    paths: GroupPaths,
    journal: Option<Arc<Handle>>,
    state: Option<Arc<Handle>>,
    homes: BTreeMap<VolumeId, Home>,
    /// Homes at configured places that are closed once the last request to them is done. Until then they are locked, and who
    /// gets the place next goes on with the same lock.
    former: BTreeMap<PathBuf, Weak<Handle>>,
    /// The same without the page cache, opened when they are first wanted.
    media: BTreeMap<VolumeId, Arc<Handle>>,
    discarded: BTreeMap<Uuid, Arc<Handle>>,
    undo: Option<Arc<Handle>>,
    /// The same file, past the page cache.
    undo_direct: Option<Arc<Handle>>,
    /// How far the syncs of the homes should be.
    pub(super) sync_due: Arc<SyncDue>,
}

/// An open home.
struct Home {
    /// Whose it is. Numbers are given again after a fork, uuids never.
    uuid: Uuid,
    handle: Arc<Handle>,
}

/// Work that may take seconds: not for the thread that serves clients.
pub type Slow = Box<dyn FnOnce() -> Result<()> + Send>;

impl Files {
    /// Takes hold of the group's directory, which is created if it is missing, and of what is in it.
    pub fn open(paths: GroupPaths) -> Result<Files> {
        let dir = paths.dir.clone();
        if !dir.is_dir() {
            std::fs::create_dir_all(&dir).map_err(|error| fail(&dir, "create directory", error))?;
            sync_directory(dir.parent().unwrap_or(Path::new("/")))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(&dir, flags, Mode::empty()).map_err(|e| fail(&dir, "open", e))?;
        lock(&directory, &dir, PREDECESSOR_GONE)?;
        let mut files = Files {
            directory: Arc::new(directory),
            paths,
            journal: None,
            state: None,
            homes: BTreeMap::new(),
            former: BTreeMap::new(),
            media: BTreeMap::new(),
            discarded: BTreeMap::new(),
            undo: None,
            undo_direct: None,
            sync_due: Arc::default(),
        };
        files.journal = open_direct(&files.path_of(File::Journal))?;
        files.state = open_direct(&files.path_of(File::State))?;
        files.undo = open_buffered(&files.path_of(File::Undo))?;
        files.undo_direct = open_direct(&files.path_of(File::Undo))?;
        Ok(files)
    }

    /// An open file.
    pub fn handle(&self, file: File) -> Result<&Arc<Handle>> {
        let handle = match file {
            File::Journal => self.journal.as_ref(),
            File::State => self.state.as_ref(),
            File::Home(volume) => self.homes.get(&volume).map(|h| &h.handle),
            File::Discarded(epoch) => self.discarded.get(&epoch),
            File::Undo => self.undo.as_ref(),
        };
        handle.ok_or_else(|| Failure {
            errno: Errno::NOENT.raw_os_error(),
            message: format!("{} is not open", self.path_of(file).display()),
        })
    }

    /// A home for reading past the page cache. `None` where that cannot be: for other files, and for the odd end of a volume
    /// whose size is no multiple of 4096.
    pub fn medium(&mut self, file: File, len: u64) -> Result<Option<Arc<Handle>>> {
        let File::Home(volume) = file else {
            return Ok(None);
        };
        if !len.is_multiple_of(BLOCK as u64) {
            return Ok(None);
        }
        if let Some(medium) = self.media.get(&volume) {
            return Ok(Some(medium.clone()));
        }
        let opened = open_direct(&self.path_of(file))?;
        if let Some(medium) = &opened {
            self.media.insert(volume, medium.clone());
        }
        Ok(opened)
    }

    /// Makes a file that comes into being when it is first written: for what is given up after a fork, or to go back to
    /// before a copy. Nothing to do for the others.
    pub fn make(&mut self, file: File) -> Result<()> {
        if !matches!(file, File::Discarded(_) | File::Undo) || self.handle(file).is_ok() {
            return Ok(());
        }
        let path = self.path_of(file);
        let fd = open_file(&path, OFlags::CREATE).map_err(|e| fail(&path, "create", e))?;
        rustix::fs::fsync(&self.directory).map_err(|e| fail(&self.paths.dir, "sync", e))?;
        let handle = Some(Arc::new(Handle::new(fd, &path, false)?));
        match file {
            File::Discarded(epoch) => self.discarded.extend(handle.map(|h| (epoch, h))),
            _ => {
                self.undo = handle;
                self.undo_direct = open_direct(&path)?;
            }
        }
        Ok(())
    }

    /// The file for a durable write. What is kept while a copy runs goes past the page cache, through which it takes two to six
    /// times as long, if it lies in memory as that demands.
    pub fn for_durable(&self, file: File, offset: u64, data: &[u8]) -> Result<&Arc<Handle>> {
        let aligned = |n: u64| n.is_multiple_of(BLOCK as u64);
        let fits =
            aligned(offset) && aligned(data.len() as u64) && aligned(data.as_ptr().addr() as u64);
        match &self.undo_direct {
            Some(direct) if file == File::Undo && fits => Ok(direct),
            _ => self.handle(file),
        }
    }

    /// What keeps the home's content aside, in a file that shares its blocks, durably. A home of many extents takes seconds.
    pub fn clone_home(&mut self, volume: VolumeId) -> Result<Slow> {
        let home = self.handle(File::Home(volume))?.clone();
        let (path, dir) = (clone_path(home.path()), self.paths.dir.clone());
        Ok(Box::new(move || {
            if home.device_block.is_some() {
                return Err(fail(home.path(), "clone", Errno::OPNOTSUPP));
            }
            let flags = OFlags::CREATE | OFlags::TRUNC;
            let clone = open_file(&path, flags).map_err(|e| fail(&path, "create", e))?;
            let cloned = rustix::fs::ioctl_ficlone(&clone, &home.fd)
                .and_then(|()| rustix::fs::fsync(&clone))
                .map_err(|e| fail(home.path(), "clone", e));
            if cloned.is_err() {
                let _ = std::fs::remove_file(&path); // empty, and made a moment ago
                return cloned;
            }
            sync_directory(path.parent().unwrap_or(&dir))
        }))
    }

    /// What makes the home what was kept aside. Syncing it is left to the caller.
    pub fn restore_home(&mut self, volume: VolumeId) -> Result<Slow> {
        let home = self.handle(File::Home(volume))?.clone();
        Ok(Box::new(move || {
            let path = clone_path(home.path());
            let clone = open_file(&path, OFlags::empty()).map_err(|e| fail(&path, "open", e))?;
            let cloned = rustix::fs::ioctl_ficlone(&home.fd, &clone);
            home.note_other_change();
            cloned.map_err(|e| fail(&path, "clone back", e))
        }))
    }

    /// Removes what was kept for going back.
    pub fn remove_undo(&mut self) -> Result<()> {
        let undo = [self.undo.take(), self.undo_direct.take()];
        let mut open: Vec<Arc<Handle>> = undo.into_iter().flatten().collect();
        let open_homes = self.homes.values().map(|h| h.handle.path());
        let configured = self.paths.homes.values().map(PathBuf::as_path);
        let mut places: Vec<PathBuf> = open_homes.chain(configured).map(clone_path).collect();
        places.push(self.path_of(File::Undo));
        for entry in std::fs::read_dir(&self.paths.dir)
            .map_err(|error| fail(&self.paths.dir, "read", error))?
            .flatten()
        {
            if entry
                .file_name()
                .as_encoded_bytes()
                .ends_with(b".home.undo")
            {
                places.push(entry.path());
            }
        }
        for place in places {
            open.extend(open_buffered(&place)?);
            match std::fs::remove_file(&place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(fail(&place, "remove", error));
                }
                _ => {}
            }
        }
        // The blocks of a large file are given back when it is closed, and that can take its time.
        std::thread::spawn(move || drop(open));
        rustix::fs::fsync(&self.directory).map_err(|e| fail(&self.paths.dir, "sync", e))
    }

    /// Opens the volume's home if there is one. Who holds its lock may take so long to let go.
    pub(super) fn attach(&mut self, volume: &VolumeSpec, patience: Duration) -> Result<()> {
        if let Some(home) = self.homes.get(&volume.id) {
            if home.uuid == volume.uuid {
                return Ok(());
            }
            return Err(Failure {
                errno: Errno::EXIST.raw_os_error(),
                message: format!(
                    "{} is open as the home of volume {} with uuid {}; volume {} with uuid {} is another one",
                    home.handle.path().display(),
                    volume.id.0,
                    home.uuid,
                    volume.name,
                    volume.uuid
                ),
            });
        }
        self.take_back(volume)?;
        let path = self.home_path(&volume.name);
        let former = self.former.remove(&path).and_then(|h| h.upgrade());
        let handle = match former {
            Some(handle) => Some(handle),
            None => open_home(&path, patience)?.map(Arc::new),
        };
        if let Some(handle) = handle {
            let uuid = volume.uuid;
            self.homes.insert(volume.id, Home { uuid, handle });
        }
        Ok(())
    }

    /// Closes the home of a volume that is no longer part of the history, and keeps what it holds under another name, durably.
    /// A home at a configured place stays there; a symbolic link beside the others says that what it holds was given up.
    pub fn put_aside(&mut self, volume: &VolumeSpec) -> Result<()> {
        let home = self.home_path(&volume.name);
        let configured = self.paths.homes.contains_key(&volume.name);
        let is_open = |home: &Home| home.uuid == volume.uuid;
        if self.homes.get(&volume.id).is_some_and(is_open)
            && let Some(open) = self.homes.remove(&volume.id)
        {
            self.media.remove(&volume.id);
            if configured {
                let handle = Arc::downgrade(&open.handle);
                self.former.insert(home.clone(), handle);
            }
        }
        let aside = self.aside_path(volume);
        let taken = self.homes.values().any(|other| other.handle.path == home);
        if taken || exists(&aside)? || !exists(&home)? {
            return Ok(());
        }
        if configured {
            rustix::fs::symlink(&home, &aside).map_err(|e| fail(&aside, "create", e))?;
        } else {
            rustix::fs::renameat_with(CWD, &home, CWD, &aside, RenameFlags::NOREPLACE)
                .map_err(|e| fail(&home, "rename", e))?;
        }
        rustix::fs::fsync(&self.directory).map_err(|e| fail(&self.paths.dir, "sync", e))?;
        tracing::warn!(
            volume = %volume.name,
            kept = %aside.display(),
            "the volume is not part of the history any more; what its home held is kept aside until somebody deletes it{}",
            if configured { ", or a new volume of this name takes the place" } else { "" }
        );
        Ok(())
    }

    /// A volume that was put aside is part of the history after all: that it was not is on no record, or was gone back on.
    fn take_back(&mut self, volume: &VolumeSpec) -> Result<()> {
        let aside = self.aside_path(volume);
        let home = self.home_path(&volume.name);
        let Ok(found) = std::fs::symlink_metadata(&aside) else {
            return Ok(());
        };
        if found.is_symlink() {
            std::fs::remove_file(&aside).map_err(|e| fail(&aside, "remove", e))?;
        } else if self.paths.homes.contains_key(&volume.name) {
            return Ok(());
        } else {
            // At most what was made for another volume of this name and never came on record.
            if !blank(&home).map_err(|e| fail(&home, "look at", e))? {
                return Err(Failure {
                    errno: Errno::EXIST.raw_os_error(),
                    message: format!(
                        "{} holds content, and what belongs there is in {}; move the one that does not count away",
                        home.display(),
                        aside.display()
                    ),
                });
            }
            std::fs::rename(&aside, &home).map_err(|e| fail(&aside, "rename", e))?;
        }
        rustix::fs::fsync(&self.directory).map_err(|e| fail(&self.paths.dir, "sync", e))
    }

    /// Where the content of a volume is kept that is no longer part of the history.
    fn aside_path(&self, volume: &VolumeSpec) -> PathBuf {
        let name = format!("{}{ASIDE}{}", file_name(&volume.name), volume.uuid);
        self.paths.dir.join(name)
    }

    /// The links that say which configured places hold what was given up: each with the place.
    fn given_up_places(&self) -> io::Result<Vec<(PathBuf, PathBuf)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.paths.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let aside = name.to_str().is_some_and(|n| n.contains(ASIDE));
            if aside && entry.file_type()?.is_symlink() {
                let link = entry.path();
                let place = std::fs::read_link(&link)?;
                all.push((link, place));
            }
        }
        Ok(all)
    }

    /// Opens the volume's home, or creates it, sparse and of the volume's size. A file that is too short is refused, unless it
    /// is to be made longer.
    pub fn create_home(&mut self, volume: &VolumeSpec, lengthen: bool) -> Result<()> {
        // The shard calls this, and others wait for the shard.
        self.attach(volume, Duration::ZERO)?;
        let path = self.home_path(&volume.name);
        let home = if let Some(home) = self.homes.get(&volume.id) {
            home.handle.clone()
        } else {
            let handle = Arc::new(create_sparse(&path)?);
            let uuid = volume.uuid;
            let home = handle.clone();
            self.homes.insert(volume.id, Home { uuid, handle });
            home
        };
        let len = home.len()?;
        if len >= volume.size {
            return Ok(());
        }
        // Blank: made by an earlier attempt that was cut off, or for a volume that never came on record. Of a place that was
        // given up a new volume takes nothing over but the place.
        let free = lengthen
            || blank(&path).map_err(|e| fail(&path, "look at", e))?
            || self.is_given_up(&path)?;
        if !free || home.device_block.is_some() {
            self.homes.remove(&volume.id);
            return Err(too_short(&path, len, volume.size));
        }
        rustix::fs::ftruncate(&home.fd, volume.size).map_err(|e| too_large(&path, volume, e))?;
        rustix::fs::fsync(&home.fd).map_err(|e| fail(&path, "sync", e))?;
        sync_directory(path.parent().unwrap_or(&self.paths.dir))
    }

    fn is_given_up(&self, home: &Path) -> Result<bool> {
        let places = self.given_up_places();
        let places = places.map_err(|e| fail(&self.paths.dir, "read", e))?;
        Ok(places.iter().any(|(_, place)| place == home))
    }

    /// What makes the volume's home as long as the volume is now, durably, or only finds out whether that can be. A device must be
    /// that long already.
    pub fn grow_home(&mut self, volume: VolumeSpec, only_check: bool) -> Result<Slow> {
        let home = self.handle(File::Home(volume.id))?.clone();
        Ok(Box::new(move || {
            let (path, len) = (home.path(), home.len()?);
            if len >= volume.size {
                return Ok(());
            }
            if home.device_block.is_some() {
                return Err(Failure {
                    errno: Errno::NOSPC.raw_os_error(),
                    message: format!(
                        "{} has {len} bytes, volume {} would need {}: grow the device first",
                        path.display(),
                        volume.name,
                        volume.size
                    ),
                });
            }
            if only_check {
                return can_be_as_long(path, volume.size);
            }
            rustix::fs::ftruncate(&home.fd, volume.size)
                .map_err(|e| fail(path, "set size of", e))?;
            // The block that the file ended in may have changed, too.
            home.note_other_change();
            sync::sync_size(&home.fd).map_err(|e| fail(path, "sync", e))
        }))
    }

    /// Whether the homes that are still to be made can be: those of these volumes (name, bytes), and those that have a place of
    /// their own. Once a volume is in the history every site must have it.
    pub fn can_make(&self, volumes: &[(String, u64)]) -> Result<()> {
        let places = self.paths.homes.iter();
        let places = places.map(|(name, path)| (name, path.clone(), 0));
        let volumes = volumes.iter();
        let volumes = volumes.map(|(name, size)| (name, self.home_path(name), *size));
        for (name, path, size) in places.chain(volumes) {
            if self.homes.values().any(|home| home.handle.path() == path) {
                continue; // made long ago, however long it is
            }
            let result = if path.exists() {
                self.can_take(&path, size)
            } else {
                self.can_create(&path, size)
            };
            result.map_err(|failure| Failure {
                message: format!(
                    "volume {name} cannot be: {}. Make its home possible, or change the configuration",
                    failure.message
                ),
                ..failure
            })?;
        }
        Ok(())
    }

    /// Whether a new home can be there, where nothing is.
    fn can_create(&self, path: &Path, size: u64) -> Result<()> {
        let parent = path.parent().unwrap_or(&self.paths.dir);
        let may = match rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK) {
            _ if path.starts_with("/dev") => Err(Errno::NOENT),
            other => other,
        };
        may.map_err(|e| fail(path, "create", e))?;
        takes_size(parent, size)
    }

    /// Whether what is there can become the home of a new volume, by its length. By its content that is seen when it is taken.
    fn can_take(&self, path: &Path, size: u64) -> Result<()> {
        let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let home = Handle::new(fd.map_err(|e| fail(path, "open", e))?, path, false)?;
        let len = home.len()?;
        if len >= size {
            return Ok(());
        }
        let free = blank(path).map_err(|e| fail(path, "look at", e))? || self.is_given_up(path)?;
        if free && home.device_block.is_none() {
            return can_be_as_long(path, size);
        }
        Err(too_short(path, len, size))
    }

    /// Free bytes of the fullest file system that holds a home; `u64::MAX` if all homes are block devices.
    pub fn free_space(&self) -> Result<u64> {
        let free = |fd: &OwnedFd, path: &Path| {
            let stat =
                rustix::fs::fstatvfs(fd).map_err(|e| fail(path, "ask for free space of", e))?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        };
        if self.homes.is_empty() {
            return free(&self.directory, &self.paths.dir);
        }
        let sparse = self
            .homes
            .values()
            .map(|home| &home.handle)
            .filter(|home| home.device_block.is_none());
        sparse
            .map(|home| free(&home.fd, &home.path))
            .try_fold(u64::MAX, |min, free| Ok(min.min(free?)))
    }

    fn path_of(&self, file: File) -> PathBuf {
        match file {
            File::Journal => self.paths.dir.join("journal"),
            File::State => self.paths.dir.join("state"),
            File::Undo => self.paths.dir.join("undo"),
            File::Discarded(epoch) => self.paths.dir.join(format!("discarded-{epoch}.frames")),
            File::Home(volume) => match self.homes.get(&volume) {
                Some(home) => home.handle.path.clone(),
                None => self
                    .paths
                    .dir
                    .join(format!("(home of volume {})", volume.0)),
            },
        }
    }

    fn home_path(&self, name: &str) -> PathBuf {
        let default = || self.paths.dir.join(file_name(name));
        self.paths.homes.get(name).cloned().unwrap_or_else(default)
    }

    /// Journal or state: allocated, zeroes written, durable together with its name.
    fn create_filled(&mut self, file: File, len: u64) -> Result<()> {
        let path = self.path_of(file);
        let unfinished = path.with_extension("new");
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fail(&unfinished, "remove", error));
            }
            _ => {}
        }
        if let Err(failure) = fill(&unfinished, len) {
            // What was allocated so far may be all the space there is.
            let _ = std::fs::remove_file(&unfinished);
            return Err(failure);
        }
        rustix::fs::renameat_with(CWD, &unfinished, CWD, &path, RenameFlags::NOREPLACE)
            .map_err(|e| fail(&unfinished, "rename", e))?;
        rustix::fs::fsync(&self.directory).map_err(|e| fail(&self.paths.dir, "sync", e))?;
        let handle = open_direct(&path)?;
        match file {
            File::Journal => self.journal = handle,
            _ => self.state = handle,
        }
        Ok(())
    }
}

impl Disk for Files {
    fn len(&mut self, file: File) -> io::Result<Option<u64>> {
        match self.handle(file) {
            Ok(handle) => Ok(Some(handle.len()?)),
            Err(_) => Ok(None),
        }
    }

    fn create(&mut self, file: File, len: u64) -> io::Result<()> {
        if matches!(file, File::Home(_)) {
            return Err(io::Error::other("homes are created with their volume"));
        }
        match Disk::len(self, file)? {
            None => Ok(self.create_filled(file, len)?),
            Some(found) if found == len => Ok(()),
            Some(found) => Err(io::Error::other(format!(
                "{} exists and has {found} bytes instead of {len}; it is left alone",
                self.path_of(file).display()
            ))),
        }
    }

    fn read(&mut self, file: File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Ok(self.handle(file)?.read(offset, buf)?)
    }

    fn write(&mut self, file: File, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        Ok(self.handle(file)?.write(offset, data, durable)?)
    }

    fn zero(&mut self, file: File, range: ByteRange, keep: bool) -> io::Result<()> {
        Ok(self.handle(file)?.zero(range, keep)?)
    }

    fn sync(&mut self, file: File) -> io::Result<()> {
        Ok(self.handle(file)?.sync(&|| 1.0)?)
    }

    fn has_clone(&mut self, volume: &VolumeSpec) -> io::Result<bool> {
        clone_path(&self.home_path(&volume.name)).try_exists()
    }

    fn attach_home(&mut self, volume: &VolumeSpec) -> io::Result<()> {
        Ok(self.attach(volume, PREDECESSOR_GONE)?)
    }

    fn check_blank(&mut self, known: &[VolumeSpec]) -> io::Result<()> {
        let mut places: Vec<PathBuf> = self.paths.homes.values().cloned().collect();
        for entry in std::fs::read_dir(&self.paths.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "home") {
                places.push(path);
            }
        }
        let taken: Vec<PathBuf> = known.iter().map(|v| self.home_path(&v.name)).collect();
        let mut given_up = Vec::new();
        for (link, place) in self.given_up_places()? {
            if taken.contains(&place) {
                // A new volume has the place: what was given up there is gone.
                std::fs::remove_file(&link)?;
            } else {
                given_up.push(place);
            }
        }
        let unknown = |place: &&PathBuf| !taken.contains(place) && !given_up.contains(place);
        for place in places.iter().filter(unknown) {
            if !blank(place)? {
                return Err(io::Error::other(format!(
                    "{} holds content, but is the home of no volume of this group's record. A new volume there would \
                     overwrite it. Move it away, or clear it (blkdiscard or dd for a device) and start again; what it \
                     holds can be copied into the new volume with nbdcopy",
                    place.display()
                )));
            }
        }
        Ok(())
    }

    fn grow_home(&mut self, volume: &VolumeSpec) -> io::Result<()> {
        Ok(Files::grow_home(self, volume.clone(), false)?()?)
    }

    fn create_home(&mut self, volume: &VolumeSpec) -> io::Result<()> {
        Ok(Files::create_home(self, volume, false)?)
    }

    fn put_aside(&mut self, volume: &VolumeSpec) -> io::Result<()> {
        Ok(Files::put_aside(self, volume)?)
    }
}

/// Whether nothing was written to a home: no data in a sparse file, zeroes at both ends of anything else.
fn blank(path: &Path) -> io::Result<bool> {
    const LOOK: u64 = 1 << 20;
    let fd = match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(true),
        Err(error) => return Err(fail(path, "open", error).into()),
    };
    let stat = rustix::fs::fstat(&fd)?;
    let file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if file && rustix::fs::seek(&fd, SeekFrom::Data(0)) == Err(Errno::NXIO) {
        return Ok(true);
    }
    let len = rustix::fs::seek(&fd, SeekFrom::End(0))?;
    for start in [0, len.saturating_sub(LOOK)] {
        let mut look = vec![0; usize::try_from(LOOK.min(len - start)).expect("a megabyte")];
        let mut at = 0;
        while at < look.len() {
            let read = rustix::io::pread(&fd, &mut look[at..], start + at as u64);
            match read.map_err(|error| fail(path, "read", error))? {
                0 => break,
                n => at += n,
            }
        }
        if look.iter().any(|b| *b != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Handle {
    fn new(fd: OwnedFd, path: &Path, direct: bool) -> Result<Handle> {
        let stat = rustix::fs::fstat(&fd).map_err(|e| fail(path, "look at", e))?;
        let device_block = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => None,
            FileType::BlockDevice => Some(u64::from(
                rustix::fs::ioctl_blksszget(&fd)
                    .map_err(|e| fail(path, "ask for the block size of", e))?,
            )),
            _ => {
                return Err(Failure {
                    errno: Errno::INVAL.raw_os_error(),
                    message: format!("{} is neither a file nor a block device", path.display()),
                });
            }
        };
        if !direct && device_block.is_none() {
            // Only advice.
            let _ = rustix::fs::fadvise(&fd, 0, None, rustix::fs::Advice::Random);
        }
        Ok(Handle {
            fd: Arc::new(fd),
            path: path.to_owned(),
            direct,
            device_block,
            no_punch: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
            unsynced: Unsynced::new(),
        })
    }

    /// The descriptor.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As much is written at once, bytes. What is to be durable is written as a whole.
    pub fn write_piece(&self, durable: bool) -> usize {
        if self.direct || durable {
            usize::MAX
        } else {
            BUFFERED_PIECE
        }
    }

    /// Whether memory, offsets and lengths must be aligned.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Bytes.
    pub fn len(&self) -> Result<u64> {
        // Works for devices too. Nothing else relies on the file position.
        rustix::fs::seek(&self.fd, SeekFrom::End(0)).map_err(|e| fail(&self.path, "measure", e))
    }

    /// Which parts of the range are allocated: `(length, allocated)`, at most `limit`.
    pub fn extents(&self, range: ByteRange, limit: usize) -> Result<Vec<(u64, bool)>> {
        let mut extents = Vec::new();
        let mut at = range.offset;
        while at < range.end() && extents.len() < limit {
            let data = match rustix::fs::seek(&self.fd, SeekFrom::Data(at)) {
                Ok(data) => data.min(range.end()),
                Err(Errno::NXIO) => range.end(),
                Err(Errno::INVAL | Errno::OPNOTSUPP) => at, // cannot tell: all of it counts as allocated
                Err(error) => return Err(fail(&self.path, "look for extents of", error)),
            };
            if data > at {
                extents.push((data - at, false));
                at = data;
                continue;
            }
            let hole = match rustix::fs::seek(&self.fd, SeekFrom::Hole(at)) {
                Ok(hole) if hole > at => hole.min(range.end()),
                Ok(_) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NXIO) => range.end(),
                Err(error) => return Err(fail(&self.path, "look for extents of", error)),
            };
            extents.push((hole - at, true));
            at = hole;
        }
        Ok(extents)
    }

    /// How to make a range read as zeroes.
    pub fn zero_steps(&self, range: ByteRange, keep: bool) -> SmallVec<[Step; 3]> {
        let (flags, unsupported) = if keep {
            (FallocateFlags::ZERO_RANGE, &self.no_zero_range)
        } else {
            (FallocateFlags::PUNCH_HOLE, &self.no_punch)
        };
        if range.len == 0 {
            return smallvec![];
        }
        if unsupported.load(Relaxed) {
            return smallvec![Step::Fill(range)];
        }
        let block = self.device_block.unwrap_or(1);
        let start = range.offset.next_multiple_of(block);
        let end = range.end() - range.end() % block;
        if start >= end {
            return smallvec![Step::Fill(range)];
        }
        [
            Step::Fill(ByteRange::new(range.offset, start - range.offset)),
            Step::Allocate(
                flags | FallocateFlags::KEEP_SIZE,
                ByteRange::new(start, end - start),
            ),
            Step::Fill(ByteRange::new(end, range.end() - end)),
        ]
        .into_iter()
        .filter(|step| step.range().len > 0)
        .collect()
    }

    /// What to do instead of a step that failed; `None` if nothing helps.
    pub fn instead_of(&self, step: Step, errno: i32) -> Option<Step> {
        let Step::Allocate(flags, range) = step else {
            return None;
        };
        let cannot = [Errno::OPNOTSUPP, Errno::NOSYS, Errno::NODEV];
        if !cannot.contains(&Errno::from_raw_os_error(errno)) {
            return None;
        }
        let unsupported = if flags.contains(FallocateFlags::ZERO_RANGE) {
            &self.no_zero_range
        } else {
            &self.no_punch
        };
        if !unsupported.swap(true, Relaxed) {
            tracing::info!(file = %self.path.display(), "cannot {flags:?}; zeroes are written instead");
        }
        Some(Step::Fill(range))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(&self.fd, &mut buf[done..], offset + done as u64) {
                Ok(0) => return Err(self.short(offset + done as u64)),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(fail(&self.path, "read", error)),
            }
        }
        Ok(())
    }

    /// Writes all of it, blocking.
    pub fn write(&self, offset: u64, data: &[u8], durable: bool) -> Result<()> {
        let flags = if durable {
            ReadWriteFlags::DSYNC
        } else {
            ReadWriteFlags::empty()
        };
        let mut done = 0;
        while done < data.len() {
            let piece = &data[done..];
            let piece = &piece[..piece.len().min(self.write_piece(durable))];
            let rest = [IoSlice::new(piece)];
            match rustix::io::pwritev2(&self.fd, &rest, offset + done as u64, flags) {
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.note_other_change();
                    let (len, at) = (data.len() - done, offset + done as u64);
                    let what = format!("write {len} bytes at {at} of");
                    return Err(fail(&self.path, &what, error));
                }
            }
        }
        if durable {
            self.unsynced.note_other();
        } else if !data.is_empty() {
            self.unsynced.note(offset, data.len());
        }
        Ok(())
    }

    /// It is changed in another way than by [`Handle::write`]: the next sync is one of all there is.
    pub fn note_other_change(&self) {
        self.unsynced.note_other();
    }

    /// Puts all completed writes on stable storage, blocking; as gently as can be with always as large a share of it done as is
    /// due (0 to 1).
    pub fn sync(&self, due: &dyn Fn() -> f64) -> Result<()> {
        let result = if self.direct {
            rustix::fs::fdatasync(&self.fd).map_err(io::Error::from)
        } else {
            sync::sync(&self.fd, &self.unsynced, due)
        };
        result.map_err(|e| fail(&self.path, "sync", e))
    }

    fn zero(&self, range: ByteRange, keep: bool) -> Result<()> {
        for step in self.zero_steps(range, keep) {
            let step = match step {
                Step::Fill(_) => step,
                Step::Allocate(flags, range) => {
                    match rustix::fs::fallocate(&self.fd, flags, range.offset, range.len) {
                        Ok(()) => {
                            self.note_other_change();
                            continue;
                        }
                        Err(error) => self
                            .instead_of(step, error.raw_os_error())
                            .ok_or_else(|| fail(&self.path, "zero a range of", error))?,
                    }
                }
            };
            let range = step.range();
            for (offset, len) in pieces(range) {
                self.write(offset, &zeroes(len), false)?;
            }
        }
        Ok(())
    }

    /// The failure of a read beyond the end.
    pub fn short(&self, offset: u64) -> Failure {
        Failure {
            errno: Errno::IO.raw_os_error(),
            message: format!(
                "{} ends at byte {offset}, where more was to be read",
                self.path.display()
            ),
        }
    }
}

impl Step {
    /// What it concerns.
    pub fn range(self) -> ByteRange {
        match self {
            Step::Allocate(_, range) | Step::Fill(range) => range,
        }
    }
}

/// `len` zero bytes, at most [`ZEROES`].
pub fn zeroes(len: usize) -> Bytes {
    static ALL: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
    ALL.get_or_init(|| Bytes::from_owner(AlignedBuf::zeroed(ZEROES)))
        .slice(..len)
}

/// A range in pieces that [`zeroes`] has.
fn pieces(range: ByteRange) -> impl Iterator<Item = (u64, usize)> {
    (0..range.len).step_by(ZEROES).map(move |at| {
        (
            range.offset + at,
            (range.len - at).min(ZEROES as u64) as usize,
        )
    })
}

/// First piece of a range, for those who go step by step.
pub fn first_piece(range: ByteRange) -> usize {
    range.len.min(ZEROES as u64) as usize
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        io::Error::new(
            io::Error::from_raw_os_error(failure.errno).kind(),
            failure.message,
        )
    }
}

/// The failure of an operation on a file.
pub fn fail(path: &Path, what: &str, error: impl Into<io::Error> + Display) -> Failure {
    let message = format!("cannot {what} {}: {error}", path.display());
    let error: io::Error = error.into();
    Failure {
        errno: error.raw_os_error().unwrap_or(libc::EIO),
        message,
    }
}

fn open_file(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        path,
        flags | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    )
}

/// Direct if the file system can; `None` if the file does not exist.
fn open_direct(path: &Path) -> Result<Option<Arc<Handle>>> {
    let (fd, direct) = match open_file(path, OFlags::DIRECT) {
        Ok(fd) => (fd, true),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::INVAL) => {
            tracing::warn!(file = %path.display(), "the file system has no direct IO; writes go through its cache");
            let fd = open_file(path, OFlags::empty()).map_err(|e| fail(path, "open", e))?;
            (fd, false)
        }
        Err(error) => return Err(fail(path, "open", error)),
    };
    Ok(Some(Arc::new(Handle::new(fd, path, direct)?)))
}

fn open_buffered(path: &Path) -> Result<Option<Arc<Handle>>> {
    match open_file(path, OFlags::empty()) {
        Ok(fd) => Ok(Some(Arc::new(Handle::new(fd, path, false)?))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(fail(path, "open", error)),
    }
}

/// Whether there is anything of this name.
fn exists(path: &Path) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(fail(path, "look at", error)),
    }
}

/// Where a home's content is kept aside.
fn clone_path(home: &Path) -> PathBuf {
    let mut path = home.as_os_str().to_owned();
    path.push(".undo");
    path.into()
}

fn open_home(path: &Path, patience: Duration) -> Result<Option<Handle>> {
    let fd = match open_file(path, OFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(fail(path, "open", error)),
    };
    lock(&fd, path, patience)?;
    Handle::new(fd, path, false).map(Some)
}

fn create_sparse(path: &Path) -> Result<Handle> {
    // A device that is missing must not become a file in memory.
    if path.starts_with("/dev") {
        return Err(fail(path, "open", Errno::NOENT));
    }
    let fd = open_file(path, OFlags::CREATE | OFlags::EXCL).map_err(|e| fail(path, "create", e))?;
    lock(&fd, path, Duration::ZERO)?;
    Handle::new(fd, path, false)
}

fn too_short(path: &Path, len: u64, needed: u64) -> Failure {
    Failure {
        errno: Errno::FBIG.raw_os_error(),
        message: format!(
            "{} has {len} bytes, its volume needs {needed}",
            path.display()
        ),
    }
}

/// Why a home cannot have its volume's size. Every site must have the volume, so that it is the file system that is wrong.
pub(super) fn too_large(path: &Path, volume: &VolumeSpec, error: Errno) -> Failure {
    let failure = fail(path, "set size of", error);
    if error != Errno::FBIG {
        return failure;
    }
    let message = format!(
        "{}: {} is more than the file system takes. Give volume {} a `home` on another one in this site's configuration, \
         and restart doublure here",
        failure.message,
        exact_bytes(volume.size),
        volume.name
    );
    Failure { message, ..failure }
}

/// Whether this file's file system takes it if it is so long.
fn can_be_as_long(path: &Path, len: u64) -> Result<()> {
    let path = path.canonicalize().map_err(|e| fail(path, "find", e))?;
    takes_size(path.parent().unwrap_or(Path::new("/")), len)
}

/// Whether the file system of this directory takes a file of `len` bytes: ext4, for one, takes 16 TiB at most. It is tried with a
/// file without a name; where there can be none it is not known, and nobody is refused for that.
fn takes_size(dir: &Path, len: u64) -> Result<()> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::open(dir, flags, Mode::from_raw_mode(0o600)) else {
        return Ok(());
    };
    let what = format!("make a file of {} in", counted_bytes(len));
    rustix::fs::ftruncate(&fd, len).map_err(|e| fail(dir, &what, e))
}

/// Creates a file of `len` written zeroes. A file of unwritten blocks would read the same, but every durable write to
/// it would wait for a commit of the file system.
fn fill(path: &Path, len: u64) -> Result<()> {
    let create = OFlags::CREATE | OFlags::EXCL;
    let fd = match open_file(path, create | OFlags::DIRECT) {
        // Some file systems create the file before they refuse.
        Err(Errno::INVAL) => open_file(path, OFlags::CREATE),
        other => other,
    };
    let fd = fd.map_err(|e| fail(path, "create", e))?;
    match rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len) {
        Ok(()) | Err(Errno::OPNOTSUPP) => {}
        Err(error) => return Err(fail(path, &format!("allocate {len} bytes for"), error)),
    }
    let handle = Handle::new(fd, path, true)?;
    for (offset, len) in pieces(ByteRange::new(0, len)) {
        handle.write(offset, &zeroes(len), false)?;
    }
    rustix::fs::fsync(&handle.fd).map_err(|e| fail(path, "sync", e))
}

/// Takes the lock of a file, or says that somebody has it and does not let go for so long.
fn lock(fd: &OwnedFd, path: &Path, patience: Duration) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(10);
    let began = Instant::now();
    let taken = loop {
        match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if began.elapsed() < patience => std::thread::sleep(PAUSE),
            other => break other,
        }
    };
    taken.map_err(|error| match error {
        Errno::WOULDBLOCK => Failure {
            errno: error.raw_os_error(),
            message: format!(
                "{} is in use: another daemon, or another group of this one, has it open",
                path.display()
            ),
        },
        error => fail(path, "lock", error),
    })
}

fn sync_directory(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .and_then(rustix::fs::fsync)
        .map_err(|e| fail(path, "sync", e))
}

/// A volume's name as the name of a file: what could mean something to a file system is escaped like in a URL.
fn file_name(volume: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut name = String::new();
    for (at, &byte) in volume.as_bytes().iter().enumerate() {
        match byte {
            b'.' if at == 0 => name.push_str("%2E"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => name.push(byte as char),
            _ => name.extend(
                [
                    b'%',
                    HEX[usize::from(byte >> 4)],
                    HEX[usize::from(byte & 15)],
                ]
                .map(char::from),
            ),
        }
    }
    name + ".home"
}

// Longest name: every byte escaped, with `.home.discarded-UUID`. File systems take 255.
const _: () = assert!(crate::base::NAME_MAX * 3 + 5 + ASIDE.len() + 36 <= 255);
const _: () = assert!(ZEROES.is_multiple_of(BLOCK));
