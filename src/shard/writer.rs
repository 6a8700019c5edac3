//! Writes to the homes of a group, by a thread of its own.
//!
//! A write to the page cache is a few microseconds of work that may block all the same, so that the ring hands each one to a
//! kernel thread and wakes the shard for each that is done. Nobody waits for them as long as there is room for more. So they
//! go to a thread in batches, one for each turn of the shard, and what was done is told once it is much, or has waited for
//! a while: small writes in `sync` mode took 25 us of CPU on both sites before, and [`REPORT`] and [`LINGER`] say how often the
//! shard is woken now.
//!
//! What overlaps is never under way at once, so that the order is free.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use std::os::fd::OwnedFd;

use bytes::Bytes;

use super::disk::Handle;
use super::reactor::ring_bell;
use crate::engine::{DiskId, DiskResult};

/// The shard is woken for so many completed writes...
const REPORT: usize = 24;

/// ... or when there was nothing to write for so long after the last one.
const LINGER: Duration = Duration::from_millis(1);

/// A write to a home.
pub struct HomeWrite {
    /// The request.
    pub id: DiskId,
    /// The home.
    pub file: Arc<Handle>,
    /// Where, bytes.
    pub offset: u64,
    /// What.
    pub data: Bytes,
}

/// What was done and not told yet.
#[derive(Default)]
struct Done {
    count: AtomicUsize,
    results: Mutex<Vec<(DiskId, DiskResult)>>,
}

/// The shard's side of it. When it is dropped the thread ends after the last write.
pub struct HomeWriter {
    batch: Vec<HomeWrite>,
    queue: mpsc::Sender<Vec<HomeWrite>>,
    done: Arc<Done>,
}

impl HomeWriter {
    /// Starts the thread; `bell` wakes the shard.
    pub fn start(group: &str, bell: Arc<OwnedFd>) -> std::io::Result<HomeWriter> {
        let (queue, batches) = mpsc::channel();
        let done = Arc::new(Done::default());
        let theirs = done.clone();
        // Linux shows fifteen bytes of it.
        let name = format!("home {group}");
        std::thread::Builder::new()
            .name(name)
            .stack_size(128 << 10)
            .spawn(move || write_all(&batches, &theirs, &bell))?;
        Ok(HomeWriter {
            batch: Vec::new(),
            queue,
            done,
        })
    }

    /// Adds a write to the batch of this turn.
    pub fn push(&mut self, write: HomeWrite) {
        self.batch.push(write);
    }

    /// Hands the batch over. What was not taken comes back: the thread is gone.
    pub fn hand_over(&mut self) -> Vec<HomeWrite> {
        if self.batch.is_empty() {
            return Vec::new();
        }
        let batch = std::mem::take(&mut self.batch);
        self.queue
            .send(batch)
            .map_or_else(|refused| refused.0, |()| Vec::new())
    }

    /// What was done since the last time.
    pub fn take_done(&self) -> Vec<(DiskId, DiskResult)> {
        if self.done.count.load(Acquire) == 0 {
            return Vec::new();
        }
        let mut results = self
            .done
            .results
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.done
            .count
            .store(0, std::sync::atomic::Ordering::Release);
        std::mem::take(&mut *results)
    }
}

/// The thread.
fn write_all(batches: &mpsc::Receiver<Vec<HomeWrite>>, done: &Done, bell: &OwnedFd) {
    loop {
        let batch = if done.count.load(Acquire) == 0 {
            let Ok(batch) = batches.recv() else { return };
            batch
        } else {
            match batches.recv_timeout(LINGER) {
                Ok(batch) => batch,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    ring_bell(bell);
                    let Ok(batch) = batches.recv() else { return };
                    batch
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        };
        for write in batch {
            let id = write.id;
            let result = catch_unwind(AssertUnwindSafe(|| carry_out(&write)));
            let result = result.unwrap_or_else(|_| DiskResult::Failed {
                errno: libc::EIO,
                message: "the thread that writes to the homes panicked; see the log".into(),
            });
            drop(write);
            let mut results = done.results.lock().unwrap_or_else(PoisonError::into_inner);
            results.push((id, result));
            let count = done.count.fetch_add(1, AcqRel) + 1;
            drop(results);
            if count == REPORT {
                ring_bell(bell);
            }
        }
    }
}

fn carry_out(write: &HomeWrite) -> DiskResult {
    match write.file.write(write.offset, &write.data, false) {
        Ok(()) => DiskResult::Done,
        Err(failure) => DiskResult::Failed {
            errno: failure.errno,
            message: failure.message,
        },
    }
}
