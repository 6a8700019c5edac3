//! Syncing a home in small portions.
//!
//! `fdatasync` hands the disk all that is dirty at once: thousands of scattered blocks, which fill its queue for as long as a
//! checkpoint takes, so that every journal write on the same disk waits behind a hundred others. And it goes on until it has
//! written also what has become dirty meanwhile, and will again before the next checkpoint.
//!
//! Here the blocks that were written since the last sync go out in their order on the disk, a few at a time, and no faster than
//! whoever waits for the sync needs it: who is ahead of that pauses, who is behind has as many under way as keep the disk busy, and no
//! more than that unless it falls far behind ([`Pace`]). Each portion is waited for with the strength of `fdatasync`
//! (`SYNC_FILE_RANGE_WRITE_AND_WAIT` writes all that is dirty in its range, since Linux 5.2). What is left for the end is what
//! the file system knows about the file, and the disk's cache: `msync` of a single page syncs that page, the inode and the disk.
//!
//! That is enough where the end of a page's write-back is the end of all that belongs to it but the inode: so it is for ext4, XFS
//! and block devices. Elsewhere `fdatasync` does the rest, and also if anything but [`Unsynced::note`] tells of a change.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use roaring::RoaringBitmap;
use rustix::fs::FileType;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use crate::base::ByteRange;

/// The unit of what is remembered, bytes; the size of a page.
const BLOCK: u64 = 4096;

/// Bytes that the kernel writes with one request, about.
const REQUEST: u64 = 256 << 10;

/// Who is ahead looks again after so long, and after twice as long each time, but goes on all the same after so many times: little is
/// done soon whatever is due.
const NAP: Duration = Duration::from_micros(500);
const MOST_NAPS: u32 = 5;

/// Who is behind by more than this share of all hurries.
const LATE: f64 = 1.0 / 64.0;

/// No disk writes anything in less than this.
const NOTHING: Duration = Duration::from_micros(20);

/// `f_type` of file systems for which portions and a single page are enough.
const EXT: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;

/// What was written since the last sync began.
pub struct Unsynced(Mutex<Written>);

struct Written {
    blocks: RoaringBitmap,
    /// More than these, or nobody knows.
    others: bool,
}

impl Unsynced {
    /// Of a file that was just opened: what others have left in the page cache nobody knows.
    pub fn new() -> Unsynced {
        Unsynced(Mutex::new(Written {
            blocks: RoaringBitmap::new(),
            others: true,
        }))
    }

    /// A write to the page cache is complete, and nobody was told so yet.
    pub fn note(&self, offset: u64, len: usize) {
        let block = |at: u64| u32::try_from(at / BLOCK);
        let mut written = self.lock();
        match (block(offset), block(offset + len as u64 - 1)) {
            (Ok(first), Ok(last)) => {
                written.blocks.insert_range(first..=last);
            }
            // Beyond 16 TiB.
            _ => written.others = true,
        }
    }

    /// Something else is changed.
    pub fn note_other(&self) {
        self.lock().others = true;
    }

    fn take(&self) -> Written {
        let none = Written {
            blocks: RoaringBitmap::new(),
            others: false,
        };
        std::mem::replace(&mut *self.lock(), none)
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts all completed writes on stable storage, blocking; so that always as large a share of it is done as is `due` (0 to 1), if
/// that can be, and otherwise as gently as can be.
///
/// # Errors
/// The first error of writing back, which the kernel tells only once.
pub fn sync(fd: &OwnedFd, unsynced: &Unsynced, due: &dyn Fn() -> f64) -> io::Result<()> {
    let Written { blocks, others } = unsynced.take();
    let mut portions = Portions::of(&blocks);
    let mut pace = Pace::default();
    let mut under_way: Option<(ByteRange, Instant)> = None;
    let mut supported = true;
    let mut naps = 0;
    while supported && portions.taken < blocks.len() {
        let behind = due() - portions.taken as f64 / blocks.len() as f64;
        let next = if behind > 0.0 || naps == MOST_NAPS {
            portions.next(pace.requests)
        } else {
            None
        };
        if let Some(next) = next {
            supported &= write_back(fd, next, libc::SYNC_FILE_RANGE_WRITE)?;
        }
        let next = next.map(|portion| (portion, Instant::now()));
        if let Some((before, since)) = std::mem::replace(&mut under_way, next) {
            supported &= write_back(fd, before, WRITE_AND_WAIT)?;
            pace.took(since.elapsed(), behind > LATE);
        }
        if next.is_some() {
            naps = 0;
        } else {
            pace.has_time();
            std::thread::sleep(NAP * (1 << naps));
            naps += 1;
        }
    }
    if let Some((last, _)) = under_way {
        supported &= write_back(fd, last, WRITE_AND_WAIT)?;
    }
    if supported && !others && ends_with_write_back(fd)? {
        sync_page(fd)
    } else {
        Ok(rustix::fs::fdatasync(fd)?)
    }
}

const WRITE_AND_WAIT: libc::c_uint = libc::SYNC_FILE_RANGE_WAIT_BEFORE
    | libc::SYNC_FILE_RANGE_WRITE
    | libc::SYNC_FILE_RANGE_WAIT_AFTER;

/// Begins to write back a range, or does it; false if that is not to be had here.
fn write_back(fd: &OwnedFd, range: ByteRange, flags: libc::c_uint) -> io::Result<bool> {
    let (offset, len) = (range.offset.cast_signed(), range.len.cast_signed());
    loop {
        // SAFETY: the descriptor is open, and nothing else is handed over.
        if unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, flags) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE) => return Ok(false),
            _ => return Err(error),
        }
    }
}

fn ends_with_write_back(fd: &OwnedFd) -> io::Result<bool> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => true,
        // A single page there is only if there is one.
        _ if stat.st_size < BLOCK.cast_signed() => false,
        _ => matches!(rustix::fs::fstatfs(fd)?.f_type.cast_unsigned(), EXT | XFS),
    })
}

/// Puts the length of a file on stable storage, and of its content no more than must be.
///
/// # Errors
/// What the file system says.
pub fn sync_size(fd: &OwnedFd) -> io::Result<()> {
    if ends_with_write_back(fd)? {
        sync_page(fd)
    } else {
        Ok(rustix::fs::fsync(fd)?)
    }
}

/// `fdatasync` as if nothing but the first page were dirty.
fn sync_page(fd: &OwnedFd) -> io::Result<()> {
    let len = BLOCK as usize;
    // SAFETY: a mapping at a place of the kernel's choice, that nobody reads or writes, and that is undone here.
    unsafe {
        let page = mmap(null_mut(), len, ProtFlags::READ, MapFlags::SHARED, fd, 0)?;
        let result = msync(page, len, MsyncFlags::SYNC);
        munmap(page, len)?;
        Ok(result?)
    }
}

/// How many requests a portion has: as many as the disk works on at once. More of them only wait for each other, and whatever else
/// is to be written waits for them. It is the rule by which TCP Vegas finds the window of a path, from nothing but the time that
/// things take.
struct Pace {
    requests: u64,
    /// The least that a portion took: the disk's latency, hardly more.
    least: Duration,
}

impl Pace {
    /// With eight there were a seventh fewer writes of 4 KiB at depth 32, because journal writes wait behind them; with two as many,
    /// at more of the processors' time.
    const FEWEST: u64 = 4;
    const MOST: u64 = 64;

    /// More is done than is due.
    fn has_time(&mut self) {
        self.requests = (self.requests - 1).max(Pace::FEWEST);
    }

    /// A portion took so long, from when it was begun.
    fn took(&mut self, time: Duration, late: bool) {
        // Something had written all of it already.
        if time < NOTHING {
            return;
        }
        self.least = self.least.min(time);
        if late {
            self.requests = (self.requests + self.requests.div_ceil(4)).min(Pace::MOST);
        } else if 2 * time < 3 * self.least {
            self.requests = (self.requests + 1).min(Pace::MOST);
        } else if time > 2 * self.least {
            self.requests = (self.requests - 1).max(Pace::FEWEST);
        }
    }
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            requests: 2 * Pace::FEWEST,
            least: Duration::MAX,
        }
    }
}

/// The blocks in order, in ranges that hold so many requests each, about.
struct Portions<'a> {
    runs: roaring::bitmap::Iter<'a>,
    /// What is left of a run.
    rest: Option<ByteRange>,
    /// Blocks in all portions so far.
    taken: u64,
}

impl Portions<'_> {
    fn of(blocks: &RoaringBitmap) -> Portions<'_> {
        Portions {
            runs: blocks.iter(),
            rest: None,
            taken: 0,
        }
    }

    fn run(&mut self) -> Option<ByteRange> {
        self.rest.take().or_else(|| {
            let blocks = self.runs.next_range()?;
            let (first, end) = (u64::from(*blocks.start()), u64::from(*blocks.end()) + 1);
            Some(ByteRange::new(first * BLOCK, (end - first) * BLOCK))
        })
    }

    fn next(&mut self, requests: u64) -> Option<ByteRange> {
        let mut run = self.run()?;
        let (start, mut left) = (run.offset, requests);
        loop {
            let bytes = run.len.min(left * REQUEST);
            left -= bytes.div_ceil(REQUEST);
            self.taken += bytes / BLOCK;
            let end = run.offset + bytes;
            if bytes < run.len {
                self.rest = Some(ByteRange::new(end, run.len - bytes));
            }
            match if left > 0 { self.run() } else { None } {
                Some(next) => run = next,
                None => return Some(ByteRange::new(start, end - start)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn portions(blocks: impl IntoIterator<Item = u32>) -> Vec<(u64, u64)> {
        let blocks: RoaringBitmap = blocks.into_iter().collect();
        let mut portions = Portions::of(&blocks);
        let next = || portions.next(16);
        std::iter::from_fn(next)
            .map(|r| (r.offset / BLOCK, r.len / BLOCK))
            .collect()
    }

    #[test]
    fn portions_are_in_order_and_hold_what_was_written() {
        assert_eq!(portions([]), []);
        assert_eq!(portions([7]), [(7, 1)]);
        // Scattered blocks: sixteen of them, with what lies between.
        let scattered: Vec<u32> = (0..40).map(|n| n * 10).collect();
        assert_eq!(portions(scattered), [(0, 151), (160, 151), (320, 71)]);
        // One long run is cut where the requests are used up.
        let most = (16 * REQUEST / BLOCK) as u32;
        let (whole, run) = (u64::from(most), 3 + 2 * most);
        let cut = [(3, whole), (3 + whole, whole)];
        assert_eq!(portions(3..run), cut);
        // The rest of a run begins the next portion.
        let cut = [(3, whole), (3 + whole, 101)];
        assert_eq!(portions((3..=3 + most).chain([103 + most])), cut);
    }

    #[test]
    fn a_portion_grows_until_its_requests_wait_for_each_other() {
        let (latency, busy) = (100, 30);
        let settled = |parallel: u64| {
            let mut pace = Pace::default();
            for _ in 0..200 {
                let time = latency.max(pace.requests * latency / parallel) + busy;
                pace.took(Duration::from_micros(time), false);
            }
            pace.requests
        };
        // A disk that does so much at once gets a bit more than that, and none gets less or more than is good for it.
        assert!((8..=2 * 8).contains(&settled(8)), "{}", settled(8));
        assert_eq!(settled(1000), Pace::MOST);
        let mut pace = Pace::default();
        pace.took(Duration::from_micros(50), false);
        for _ in 0..100 {
            pace.took(Duration::from_millis(1), false);
        }
        assert_eq!(pace.requests, Pace::FEWEST);
        // Who is ahead writes as little at once as pays.
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.took(Duration::from_micros(50), false);
        }
        for _ in 0..100 {
            pace.has_time();
        }
        assert_eq!(pace.requests, Pace::FEWEST);
        // In a hurry nothing of that counts.
        for _ in 0..20 {
            pace.took(Duration::from_millis(1), true);
        }
        assert_eq!(pace.requests, Pace::MOST);
        // What took no time was written already.
        let mut pace = Pace::default();
        pace.took(Duration::from_micros(2), false);
        assert_eq!(pace.least, Duration::MAX);
    }

    /// Bytes of a file that are in the page cache and not on the disk.
    fn dirty_bytes(fd: &OwnedFd, offset: u64, len: u64) -> u64 {
        #[repr(C)]
        struct Range {
            offset: u64,
            len: u64,
        }
        #[derive(Default)]
        #[repr(C)]
        struct Stat {
            cached: u64,
            dirty: u64,
            writeback: u64,
            evicted: u64,
            recently_evicted: u64,
        }
        const CACHESTAT: libc::c_long = 451;
        let (range, mut stat) = (Range { offset, len }, Stat::default());
        // SAFETY: both live as long as the call, and are laid out as it wants them.
        let result = unsafe {
            let stat: *mut Stat = &raw mut stat;
            libc::syscall(CACHESTAT, fd.as_raw_fd(), &raw const range, stat, 0)
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        (stat.dirty + stat.writeback) * BLOCK
    }

    /// A file of the file system that the build is on: the directory for temporary files may be in memory.
    fn file() -> OwnedFd {
        let dir = std::env::current_exe().unwrap();
        let file = tempfile::tempfile_in(dir.parent().unwrap()).unwrap();
        file.set_len(64 << 20).unwrap();
        OwnedFd::from(file)
    }

    fn write(fd: &OwnedFd, unsynced: &Unsynced, block: u64) {
        let (data, offset) = ([7; BLOCK as usize], block * BLOCK);
        assert_eq!(rustix::io::pwrite(fd, &data, offset).unwrap(), data.len());
        unsynced.note(offset, data.len());
    }

    #[test]
    fn nothing_that_was_written_is_only_in_the_cache_after_a_sync() {
        let (fd, unsynced) = (file(), Unsynced::new());
        // First all that anybody wrote, then what this one did.
        for round in 0..3 {
            for n in 0..1000 {
                write(&fd, &unsynced, n * 7 + round);
            }
            if round == 1 {
                rustix::io::pwrite(&fd, &[1; 4096], 60 << 20).unwrap();
                unsynced.note_other();
            }
            assert!(dirty_bytes(&fd, 0, 64 << 20) > 0);
            sync(&fd, &unsynced, &|| 1.0).unwrap();
            assert_eq!(dirty_bytes(&fd, 0, 64 << 20), 0, "round {round}");
        }
    }

    #[test]
    fn what_is_written_later_is_left_to_the_next_sync() {
        let (fd, unsynced) = (file(), Unsynced::new());
        sync(&fd, &unsynced, &|| 1.0).unwrap();
        if !ends_with_write_back(&fd).unwrap() {
            return; // all of it is written, which is no fault
        }
        write(&fd, &unsynced, 5);
        // As if it were not complete before the sync began.
        rustix::io::pwrite(&fd, &[1; 4096], 32 << 20).unwrap();
        sync(&fd, &unsynced, &|| 1.0).unwrap();
        assert_eq!(dirty_bytes(&fd, 0, 1 << 20), 0);
        assert_eq!(dirty_bytes(&fd, 32 << 20, 4096), BLOCK);
    }

    #[test]
    fn nothing_is_written_before_it_is_due_but_little_is_soon() {
        let (fd, unsynced) = (file(), Unsynced::new());
        sync(&fd, &unsynced, &|| 1.0).unwrap();
        if !ends_with_write_back(&fd).unwrap() {
            return; // all of it is written at once, as it must be
        }
        let count = 200;
        let write_all = || (0..count).for_each(|n| write(&fd, &unsynced, n * 7));
        let left = || dirty_bytes(&fd, 0, 64 << 20) / BLOCK;
        // Half of it for as long as nobody can lose patience, and then the rest.
        write_all();
        let half = Cell::new(0);
        let due = || {
            if left() > count / 2 {
                return 0.5;
            }
            half.set(half.get() + 1);
            if half.get() < MOST_NAPS { 0.5 } else { 1.0 }
        };
        sync(&fd, &unsynced, &due).unwrap();
        assert!(half.get() >= MOST_NAPS, "it was written before it was due");
        assert_eq!(left(), 0);
        // Nothing is ever due: it takes its time, a nap or more for each portion.
        write_all();
        let naps = Cell::new(0);
        let due = || {
            naps.set(naps.get() + 1);
            0.0
        };
        sync(&fd, &unsynced, &due).unwrap();
        assert_eq!(left(), 0);
        assert!(naps.get() >= u64::from(MOST_NAPS) * count / (2 * Pace::FEWEST));
    }

    #[test]
    fn what_is_not_remembered_is_synced_as_a_whole() {
        let unsynced = Unsynced::new();
        assert!(unsynced.take().others, "who opens it knows nothing");
        assert!(!unsynced.take().others);
        unsynced.note((1 << 44) - 1, 2);
        assert!(unsynced.take().others, "beyond 16 TiB");
        unsynced.note(4000, 5000);
        let noted: Vec<u32> = unsynced.take().blocks.iter().collect();
        assert_eq!(noted, [0, 1, 2]);
    }

    #[test]
    fn what_cannot_be_synced_is_an_error() {
        let (_read, write) = rustix::pipe::pipe().unwrap();
        let unsynced = Unsynced::new();
        unsynced.note(0, 4096);
        assert!(sync(&write, &unsynced, &|| 1.0).is_err());
    }
}
