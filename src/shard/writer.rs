//! Writes to the homes and their syncs, by threads of their own.
//!
//! A write to the page cache is a few microseconds of work that may block all the same, so that the ring hands each one to a
//! thread of the kernel and wakes the shard for each that is done. Nobody waits for them as long as there is room for more. So
//! they go to a thread in batches, one for each turn of the shard, and what was done is told once it is much, or has waited
//! for a while.
//!
//! One thread does it as long as it gets on. Where a home hangs, another one is started for the others, and no more than a few ever
//! wait for the homes of one group. What overlaps is never under way at once, so that the order is free. Syncs take long and wait
//! for nobody: they have threads besides.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::disk::{Failure, Handle};
use super::reactor::ring_bell;
use crate::engine::{DiskId, DiskResult};

/// The shard is woken for so many completed writes, or so many bytes ...
const REPORT: usize = 24;
const REPORT_BYTES: usize = 1 << 20;

/// ... or when there was nothing to write for so long after the last one.
const LINGER: Duration = Duration::from_millis(1);

/// What the threads of one kind do.
struct Kind {
    name: &'static str,
    /// A thread takes so much at once.
    take: usize,
    /// Most threads of a shard.
    most: usize,
    /// Of these, most that do something for the same group: the others are for the other groups when its homes hang.
    most_of_group: usize,
    /// When no thread has come back for more for so long, another one is started. Without it each work has a thread at once.
    stuck: Option<Duration>,
    /// A thread that has just done something is woken for so many, or so many bytes; for less it is left to rest for [`LINGER`].
    plenty: (usize, usize),
}

/// Each is a few microseconds.
const WRITES: Kind = Kind {
    name: "homes",
    take: 16,
    most: 64,
    most_of_group: 4,
    stuck: Some(Duration::from_millis(20)),
    plenty: (64, 256 << 10),
};

/// Each takes as long as its home has much to write.
const SYNCS: Kind = Kind {
    name: "syncs",
    take: 1,
    most: 128,
    most_of_group: usize::MAX,
    stuck: None,
    plenty: (0, 0),
};

/// Something to be done to a home.
pub struct HomeWork {
    /// Key of the group.
    pub group: usize,
    /// The request.
    pub id: DiskId,
    /// The home.
    pub file: Arc<Handle>,
    /// What it is.
    pub what: HomeOp,
}

/// What is done to a home.
pub enum HomeOp {
    /// A write at this offset, in bytes.
    Write(u64, Bytes),
    /// All completed writes are put on stable storage.
    Sync(Schedule),
}

impl HomeOp {
    /// What it writes, bytes.
    fn len(&self) -> usize {
        match self {
            HomeOp::Write(_, data) => data.len(),
            HomeOp::Sync(_) => 0,
        }
    }
}

/// How much of a group's syncs should be done by now, 0 to 1: the shard says so, and the threads look. At first all of it.
#[derive(Default)]
pub struct SyncDue {
    /// What need not be done yet, as the bits of an `f64`.
    later: AtomicU64,
}

impl SyncDue {
    /// From now on.
    pub fn set(&self, share: f64) {
        self.later.store((1.0 - share).to_bits(), Relaxed);
    }

    fn get(&self) -> f64 {
        1.0 - f64::from_bits(self.later.load(Relaxed))
    }
}

/// When how much of a sync should be done.
pub struct Schedule {
    begun: Instant,
    within: Duration,
    due: Arc<SyncDue>,
}

impl Schedule {
    /// All within this time, and as much as is due sooner than that.
    pub fn from_now(within: Duration, due: Arc<SyncDue>) -> Schedule {
        let begun = Instant::now();
        Schedule { begun, within, due }
    }

    fn due(&self) -> f64 {
        if self.within.is_zero() {
            return 1.0;
        }
        let passed = self.begun.elapsed().as_secs_f64() / self.within.as_secs_f64();
        passed.max(self.due.get())
    }
}

/// Something that is over.
pub struct HomeDone {
    /// Key of the group.
    pub group: usize,
    /// The request.
    pub id: DiskId,
    /// What came of it.
    pub result: DiskResult,
    /// What was written: memory goes back to the thread it came from, which keeps it for what comes next.
    pub data: Bytes,
}

/// The shard's side of it. When it is dropped the threads end after the last write.
pub struct HomeThreads {
    batch: Vec<HomeWork>,
    shared: Arc<Shared>,
}

struct Shared {
    work: Mutex<Work>,
    wake: Condvar,
    /// Completed and not told yet.
    done: Mutex<Written>,
    /// How many those are.
    count: AtomicUsize,
    /// How many wait for a thread.
    waiting: AtomicUsize,
    bell: Arc<OwnedFd>,
    kind: Kind,
    /// How it is done; tests have their own way.
    carry_out: CarryOut,
}

/// Does it. The counter says how many wait for a thread.
type CarryOut = fn(&HomeWork, &AtomicUsize) -> Result<(), Failure>;

#[derive(Default)]
struct Written {
    writes: Vec<HomeDone>,
    bytes: usize,
}

struct Work {
    queue: VecDeque<HomeWork>,
    /// What the queue writes.
    bytes: usize,
    threads: usize,
    /// Of these, how many wait for work or were only just started.
    idle: usize,
    /// Of these, how many rest.
    resting: usize,
    /// For which group each of the others does something.
    busy: Vec<usize>,
    /// When a thread last took something.
    taken: Instant,
    closed: bool,
}

impl Work {
    fn new() -> Work {
        Work {
            queue: VecDeque::new(),
            bytes: 0,
            threads: 0,
            idle: 0,
            resting: 0,
            busy: Vec::new(),
            taken: Instant::now(),
            closed: false,
        }
    }

    /// What a thread does next, if there is anything for one more: of one group, for behind a home that hangs is to be nothing of
    /// another.
    fn take(&mut self, kind: &Kind) -> Option<Vec<HomeWork>> {
        let busy = |group| self.busy.iter().filter(|other| **other == group).count();
        let may = |work: &HomeWork| busy(work.group) < kind.most_of_group;
        let from = self.queue.iter().position(may)?;
        let group = self.queue[from].group;
        let same = |work: &&HomeWork| work.group == group;
        let next = self.queue.iter().skip(from).take(kind.take);
        let to = from + next.take_while(same).count();
        let taken: Vec<HomeWork> = self.queue.drain(from..to).collect();
        self.bytes -= taken.iter().map(|work| work.what.len()).sum::<usize>();
        self.busy.push(group);
        self.taken = Instant::now();
        Some(taken)
    }

    /// A thread has done what it took for this group.
    fn done(&mut self, group: usize) {
        let at = self.busy.iter().position(|other| *other == group);
        self.busy
            .swap_remove(at.expect("it said so when it took it"));
    }

    /// Whether a thread is to be woken for what is in the queue.
    fn wakes(&self, plenty: (usize, usize)) -> bool {
        let plenty = self.queue.len() >= plenty.0 || self.bytes >= plenty.1;
        self.idle > 0 && (plenty || self.resting == 0)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whatever panicked elsewhere, what is behind these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HomeThreads {
    /// For the writes of the shard that `bell` wakes.
    pub fn for_writes(bell: Arc<OwnedFd>) -> HomeThreads {
        HomeThreads::with(bell, WRITES, carry_out)
    }

    /// The same for syncs.
    pub fn for_syncs(bell: Arc<OwnedFd>) -> HomeThreads {
        HomeThreads::with(bell, SYNCS, carry_out)
    }

    fn with(bell: Arc<OwnedFd>, kind: Kind, carry_out: CarryOut) -> HomeThreads {
        HomeThreads {
            batch: Vec::new(),
            shared: Arc::new(Shared {
                work: Mutex::new(Work::new()),
                wake: Condvar::new(),
                done: Mutex::new(Written::default()),
                count: AtomicUsize::new(0),
                waiting: AtomicUsize::new(0),
                bell,
                kind,
                carry_out,
            }),
        }
    }

    /// Adds to the batch of this turn.
    pub fn push(&mut self, work: HomeWork) {
        self.batch.push(work);
    }

    /// Hands the batch over, in every turn: threads that hang are noticed here. What cannot be, because there is no thread, comes
    /// back.
    pub fn hand_over(&mut self) -> Vec<HomeWork> {
        if self.batch.is_empty() && self.shared.waiting.load(Relaxed) == 0 {
            return Vec::new();
        }
        let comes = !self.batch.is_empty();
        let mut work = locked(&self.shared.work);
        while self.lacks_thread(&work) {
            match self.start_thread() {
                Ok(()) => (work.threads, work.idle) = (work.threads + 1, work.idle + 1),
                Err(error) if work.threads == 0 => {
                    tracing::warn!("no thread for the homes: {error}");
                    return mem::take(&mut self.batch);
                }
                Err(_) => break, // the others will get to it
            }
            work.taken = Instant::now();
        }
        work.bytes += self.batch.iter().map(|work| work.what.len()).sum::<usize>();
        work.queue.extend(self.batch.drain(..));
        self.shared.waiting.store(work.queue.len(), Relaxed);
        let wake = comes && work.wakes(self.shared.kind.plenty);
        drop(work);
        if wake && self.shared.kind.stuck.is_some() {
            self.shared.wake.notify_one();
        } else if wake {
            self.shared.wake.notify_all();
        }
        Vec::new()
    }

    /// Whether the batch needs one more than there are.
    fn lacks_thread(&self, work: &Work) -> bool {
        let lacks = match self.shared.kind.stuck {
            Some(_) if work.threads == 0 => true,
            Some(stuck) => work.idle == 0 && work.taken.elapsed() > stuck,
            None => work.idle < work.queue.len() + self.batch.len(),
        };
        lacks && work.threads < self.shared.kind.most
    }

    /// What was done since the last time.
    pub fn take_done(&self) -> Vec<HomeDone> {
        if self.shared.count.load(Relaxed) == 0 {
            return Vec::new();
        }
        let mut done = locked(&self.shared.done);
        self.shared.count.store(0, Relaxed);
        mem::take(&mut *done).writes
    }

    fn start_thread(&self) -> io::Result<()> {
        let shared = self.shared.clone();
        std::thread::Builder::new()
            .name(self.shared.kind.name.into())
            .stack_size(256 << 10)
            .spawn(move || shared.work())
            .map(drop)
    }
}

fn carry_out(work: &HomeWork, waiting: &AtomicUsize) -> Result<(), Failure> {
    match &work.what {
        HomeOp::Write(offset, data) => work.file.write(*offset, data, false),
        // A thread that takes its time is one that others do not have.
        HomeOp::Sync(schedule) => work.file.sync(&|| match waiting.load(Relaxed) {
            0 => schedule.due(),
            _ => 1.0,
        }),
    }
}

impl Drop for HomeThreads {
    fn drop(&mut self) {
        locked(&self.shared.work).closed = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    /// A thread's life.
    fn work(&self) {
        // It has done something that was perhaps not told yet.
        let mut owes = false;
        let mut work = locked(&self.work);
        work.idle -= 1;
        loop {
            let taken = loop {
                if let Some(taken) = work.take(&self.kind) {
                    break taken;
                }
                if work.closed {
                    return;
                }
                work.idle += 1;
                let (woken, in_time) = if owes {
                    work.resting += 1;
                    let waited = self.wake.wait_timeout(work, LINGER);
                    let (mut work, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                    work.resting -= 1;
                    (work, !waited.timed_out())
                } else {
                    let woken = self.wake.wait(work);
                    (woken.unwrap_or_else(PoisonError::into_inner), true)
                };
                work = woken;
                work.idle -= 1;
                if !in_time {
                    owes = false;
                    if self.count.load(Relaxed) > 0 {
                        ring_bell(&self.bell);
                    }
                }
            };
            self.waiting.store(work.queue.len(), Relaxed);
            drop(work);
            let group = taken[0].group;
            for work in taken {
                self.finish(work);
            }
            owes = true;
            work = locked(&self.work);
            work.done(group);
        }
    }

    fn finish(&self, work: HomeWork) {
        let result = match catch_unwind(AssertUnwindSafe(|| (self.carry_out)(&work, &self.waiting)))
        {
            Ok(Ok(())) => DiskResult::Done,
            Ok(Err(failure)) => DiskResult::Failed {
                errno: failure.errno,
                message: failure.message,
            },
            Err(_) => DiskResult::Failed {
                errno: libc::EIO,
                message: "a thread of the homes panicked; see the log".into(),
            },
        };
        let HomeWork {
            group, id, what, ..
        } = work;
        let data = match what {
            HomeOp::Write(_, data) => data,
            HomeOp::Sync(_) => Bytes::new(),
        };
        let len = data.len();
        let mut done = locked(&self.done);
        let before = (done.writes.len(), done.bytes);
        done.bytes += len;
        done.writes.push(HomeDone {
            group,
            id,
            result,
            data,
        });
        let after = (done.writes.len(), done.bytes);
        self.count.store(after.0, Relaxed);
        drop(done);
        let much = |(writes, bytes)| writes >= REPORT || bytes >= REPORT_BYTES;
        if much(after) && !much(before) {
            ring_bell(&self.bell);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Barrier, OnceLock};

    use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

    use super::*;
    use crate::base::{VolumeId, VolumeSpec};
    use crate::engine::File;
    use crate::shard::GroupPaths;
    use crate::shard::disk::Files;

    const BLOCK: u64 = 4096;

    fn home(dir: &tempfile::TempDir) -> Arc<Handle> {
        let paths = GroupPaths {
            dir: dir.path().join("g"),
            homes: std::collections::HashMap::new(),
        };
        let mut files = Files::open(paths).unwrap();
        let volume = VolumeSpec {
            id: VolumeId(0),
            uuid: uuid::Uuid::nil(),
            name: "v".into(),
            size: 1 << 20,
        };
        files.create_home(&volume, false).unwrap();
        files.handle(File::Home(volume.id)).unwrap().clone()
    }

    fn write(home: &Arc<Handle>, number: u64) -> HomeWork {
        let data = vec![number as u8; BLOCK as usize];
        HomeWork {
            group: 0,
            id: DiskId(number),
            file: home.clone(),
            what: HomeOp::Write(number * BLOCK, data.into()),
        }
    }

    /// Waits for the bell until so many are done.
    fn until_done(writer: &HomeThreads, count: usize) -> Vec<u64> {
        let mut done = Vec::new();
        while done.len() < count {
            let mut bell = [PollFd::new(&*writer.shared.bell, PollFlags::IN)];
            let limit = rustix::time::Timespec {
                tv_sec: 30,
                tv_nsec: 0,
            };
            assert!(
                poll(&mut bell, Some(&limit)).unwrap() > 0,
                "the bell does not ring"
            );
            rustix::io::read(&*writer.shared.bell, &mut [0; 8]).unwrap();
            for HomeDone { id, result, .. } in writer.take_done() {
                assert_eq!(result, DiskResult::Done);
                done.push(id.0);
            }
        }
        done.sort_unstable();
        done
    }

    fn bell() -> Arc<OwnedFd> {
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap())
    }

    #[test]
    fn what_was_written_is_told_whether_it_was_much_or_little() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(&dir);
        let mut writer = HomeThreads::for_writes(bell());
        for (from, to) in [(0, 1), (1, 3), (3, 200)] {
            for number in from..to {
                writer.push(write(&home, number));
            }
            assert!(writer.hand_over().is_empty());
            let all: Vec<u64> = (from..to).collect();
            assert_eq!(until_done(&writer, all.len()), all);
        }
        let content = std::fs::read(home.path()).unwrap();
        for (number, block) in content.chunks(BLOCK as usize).take(200).enumerate() {
            assert!(
                block.iter().all(|byte| *byte == number as u8),
                "block {number}"
            );
        }
    }

    #[test]
    fn a_write_that_hangs_does_not_keep_others_from_being_written() {
        type Gate = Mutex<(Sender<()>, Receiver<()>)>;
        static GATE: OnceLock<Gate> = OnceLock::new();
        let (open, gate) = channel();
        GATE.get_or_init(|| Mutex::new((open.clone(), gate)));
        let dir = tempfile::tempdir().unwrap();
        let home = home(&dir);
        let mut writer = HomeThreads::with(bell(), WRITES, |work, _| {
            if work.id.0 == 0 {
                let _ = GATE.get().expect("made before").lock().unwrap().1.recv();
            }
            Ok(())
        });
        writer.push(write(&home, 0));
        writer.hand_over();
        let since = Instant::now();
        while since.elapsed() <= 2 * WRITES.stuck.expect("they share a thread") {
            std::thread::yield_now();
        }
        writer.push(write(&home, 1));
        writer.hand_over();
        assert_eq!(until_done(&writer, 1), [1]);
        open.send(()).unwrap();
        assert_eq!(until_done(&writer, 1), [0]);
    }

    #[test]
    fn who_rests_is_woken_for_plenty_only() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(&dir);
        let mut work = Work::new();
        let (number, bytes) = WRITES.plenty;
        work.queue.push_back(write(&home, 0));
        assert!(!work.wakes(WRITES.plenty), "all of them are busy");
        work.idle = 1;
        assert!(work.wakes(WRITES.plenty), "it waits for whatever comes");
        work.resting = 1;
        assert!(!work.wakes(WRITES.plenty));
        work.bytes = bytes;
        assert!(work.wakes(WRITES.plenty));
        work.bytes = 0;
        work.queue
            .extend((1..number as u64).map(|n| write(&home, n)));
        assert!(work.wakes(WRITES.plenty));
        work.queue.pop_back();
        assert!(!work.wakes(WRITES.plenty));
        assert!(work.wakes(SYNCS.plenty), "a sync has a thread at once");
    }

    #[test]
    fn a_home_that_hangs_keeps_no_other_group_from_its_own() {
        static GATE: Mutex<()> = Mutex::new(());
        let dir = tempfile::tempdir().unwrap();
        let home = home(&dir);
        let few = Kind {
            most: WRITES.most_of_group + 1,
            ..WRITES
        };
        let mut writer = HomeThreads::with(bell(), few, |work, _| {
            if work.group == 0 {
                drop(locked(&GATE));
            }
            Ok(())
        });
        let of = |group, number| HomeWork {
            group,
            ..write(&home, number)
        };
        let closed = locked(&GATE);
        // In the same batch and behind it, and more than enough for all threads.
        (0..200).for_each(|number| writer.push(of(0, number)));
        (200..203).for_each(|number| writer.push(of(1, number)));
        let mut done = Vec::new();
        let since = Instant::now();
        while done.len() < 3 {
            assert!(since.elapsed() < Duration::from_secs(30), "{done:?}");
            writer.hand_over();
            done.extend(writer.take_done().iter().map(|done| done.id.0));
            std::thread::yield_now();
        }
        assert_eq!(done, [200, 201, 202]);
        drop(closed);
        let all: Vec<u64> = (0..200).collect();
        assert_eq!(until_done(&writer, all.len()), all);
    }

    #[test]
    fn each_sync_has_a_thread_at_once() {
        static BOTH: Barrier = Barrier::new(2);
        let dir = tempfile::tempdir().unwrap();
        let home = home(&dir);
        // Each waits until the other has begun.
        let mut threads = HomeThreads::with(bell(), SYNCS, |_, _| {
            BOTH.wait();
            Ok(())
        });
        for batch in 0..3 {
            for number in 0..2 {
                threads.push(write(&home, batch * 2 + number));
            }
            assert!(threads.hand_over().is_empty());
            assert_eq!(until_done(&threads, 2), [batch * 2, batch * 2 + 1]);
        }
    }

    #[test]
    fn a_sync_is_due_when_its_time_is_up_or_when_the_shard_says_so() {
        let (hour, due) = (Duration::from_secs(3600), Arc::new(SyncDue::default()));
        let never = Schedule::from_now(hour, due.clone());
        let soon = Schedule::from_now(Duration::from_nanos(1), due.clone());
        let now = Schedule::from_now(Duration::ZERO, due.clone());
        assert!(never.due() >= 1.0, "nobody has said anything yet");
        due.set(0.25);
        assert!((0.24..0.26).contains(&never.due()));
        assert!(soon.due() >= 1.0);
        assert!(now.due() >= 1.0);
        due.set(0.0);
        assert!((0.0..0.01).contains(&never.due()));
    }
}
