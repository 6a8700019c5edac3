//! What is compared. All of them run side by side for the whole time; only one has work at a time.

pub mod bare;
pub mod doublure;
pub mod nbdkit;
pub mod qemu;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;

use rustix::fs::{Advice, fadvise};

use super::dice::Dice;
use super::nbd::Door;

/// What a candidate counts itself; zero where it does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Writes acknowledged to clients.
    pub writes: u64,
    /// Bytes written to the primary's journal.
    pub journal_bytes: u64,
    /// Checkpoints completed by the primary.
    pub checkpoints: u64,
    /// Calls of `io_uring_enter` by all sites.
    pub ring_enters: u64,
}

/// Fails if the site tells nothing.
pub type Meter = Box<dyn Fn() -> anyhow::Result<u64> + Send>;

/// A server of an NBD export.
pub trait Candidate {
    /// Its exports.
    fn doors(&self) -> Vec<Door>;
    /// Process ids of its parts.
    fn processes(&self) -> Vec<(&'static str, u32)>;
    /// The files that hold the volumes.
    fn files(&self) -> Vec<PathBuf>;
    /// Waits until everything acknowledged is in these files.
    fn drain(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
    /// What it counted so far.
    fn counts(&mut self) -> anyhow::Result<Counts> {
        Ok(Counts::default())
    }
    /// Size of its journal, bytes, if it has one.
    fn journal(&self) -> Option<u64> {
        None
    }
    /// Tells from another thread how many bytes were ever written to the journal.
    fn meter(&self) -> Option<Meter> {
        None
    }
}

/// Leaves nothing dirty behind that would burden who is measured next.
pub fn settle(candidate: &mut dyn Candidate) -> anyhow::Result<()> {
    candidate.drain()?;
    for file in candidate.files() {
        File::open(file)?.sync_data()?;
    }
    Ok(())
}

/// Fails unless a candidate with two sites holds the same on both, byte for byte.
pub fn check_copies(candidate: &mut dyn Candidate) -> anyhow::Result<()> {
    settle(candidate)?;
    let (files, sites) = (candidate.files(), candidate.processes().len());
    if let ([near, far], 2) = (&files[..], sites) {
        let compared = Command::new("cmp").args([near, far]).output()?;
        ensure!(
            compared.status.success(),
            "the sites differ: {}",
            String::from_utf8_lossy(&compared.stdout)
        );
    }
    Ok(())
}

/// The page cache forgets the volumes.
pub fn forget(candidate: &mut dyn Candidate) -> anyhow::Result<()> {
    settle(candidate)?;
    for file in candidate.files() {
        drop_pages(&file)?;
    }
    Ok(())
}

/// The page cache forgets this file, and nothing else of the machine.
pub fn drop_pages(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path)?;
    file.sync_data()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}

/// A file of random bytes, all of it allocated and durable.
pub fn filled_file(path: &Path, size: u64) -> anyhow::Result<()> {
    const STEP: usize = 1 << 20;
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path)?;
    let mut dice = Dice::new(size);
    let mut data = vec![0; STEP];
    for at in (0..size).step_by(STEP) {
        for chunk in data.chunks_exact_mut(64) {
            chunk[..8].copy_from_slice(&dice.next().to_le_bytes());
        }
        let len = STEP.min((size - at) as usize);
        file.write_all_at(&data[..len], at)?;
    }
    file.sync_all()?;
    drop_pages(path)
}

/// Between two looks at something that is about to happen.
pub const STEP: Duration = Duration::from_millis(5);
