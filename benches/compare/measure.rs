//! One case on one candidate.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::fs::{Advice, fadvise};

use super::candidates::{Candidate, Counts, forget, settle};
use super::cases::Case;
use super::figures::Sample;
use super::fio;
use super::load::{Load, Moment, Until};
use super::process::{cpu_time, eventually, forget_peak, memory};

/// How long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    pub warm_up: Duration,
    /// At least.
    pub interval: Duration,
    /// A journal is to be written from end to end so often within the interval.
    pub turnovers: u64,
}

/// Who has not turned the journal over in this time will not be waited for any longer.
const TURNOVERS: Duration = Duration::from_mins(2);
/// How often it is looked at: seldom enough to be no load.
const METER: Duration = Duration::from_millis(500);

/// Readings of all clocks at one instant.
struct Reading {
    parts: Vec<(&'static str, Duration)>,
    load: Duration,
    /// Jiffies of all CPUs: busy, and all.
    machine: (u64, u64),
    counts: Counts,
}

impl Reading {
    fn take(candidate: &mut dyn Candidate) -> anyhow::Result<Reading> {
        let mut parts = Vec::new();
        for (part, pid) in candidate.processes() {
            parts.push((part, cpu_time(pid)?));
        }
        Ok(Reading {
            counts: candidate.counts()?,
            parts,
            load: cpu_time(std::process::id())?,
            machine: machine()?,
        })
    }
}

fn machine() -> anyhow::Result<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|n| n.parse().ok())
        .collect();
    ensure!(fields.len() == 8, "/proc/stat: {line}");
    let all: u64 = fields.iter().sum();
    // Idle, and waiting for disks.
    Ok((all - fields[3] - fields[4], all))
}

/// With our own load.
pub fn own(
    candidate: &mut dyn Candidate,
    case: &Case,
    times: Times,
    seed: u64,
) -> anyhow::Result<Sample> {
    prepare(candidate, case)?;
    for (_, pid) in candidate.processes() {
        forget_peak(pid)?;
    }
    let at_first = candidate.counts()?;
    let mut readings = Vec::new();
    let mut load = Load::connect(&candidate.doors(), case.job, seed)?;
    let (tell, told) = mpsc::channel();
    let enough = AtomicBool::new(false);
    let written = times.turnovers * candidate.journal().unwrap_or(0);
    let meter = candidate.meter();
    let outcome = std::thread::scope(|scope| {
        let (enough, load) = (&enough, &mut load);
        let tell = tell; // without it nobody waits for the beginning any more
        scope.spawn(move || {
            let first: Option<u64> = told.recv().ok();
            if let (Some(meter), Some(first)) = (meter, first) {
                // Whether it was in time, the count at the end tells.
                let _ = eventually("the journal turns over", METER, TURNOVERS, || {
                    Ok((meter()? - first >= written).then_some(()))
                });
            }
            enough.store(true, Relaxed);
        });
        let until = Until::Both(times.interval, enough);
        load.run(times.warm_up, until, |_: Moment| {
            let reading = Reading::take(candidate)?;
            let _ = tell.send(reading.counts.journal_bytes); // at the end nobody listens any more
            readings.push(reading);
            Ok(())
        })
    })?;
    let at_last = candidate.counts()?;
    if candidate.journal().is_some() {
        let counted = at_last.writes - at_first.writes;
        ensure!(
            counted == outcome.issued_writes,
            "{counted} writes are counted by the server, {} were sent",
            outcome.issued_writes
        );
    }
    if case.job.writes_percent > 0 {
        ensure!(outcome.checked_blocks > 0, "nothing could be read back");
    }
    let [begin, end] = &readings[..] else {
        anyhow::bail!("the load was not measured");
    };
    let operations = outcome.operations as f64;
    ensure!(operations > 0.0, "nothing was done");
    let per_operation =
        |from: Duration, to: Duration| (to.saturating_sub(from)).as_secs_f64() * 1e6 / operations;
    let cpu_us: BTreeMap<_, _> = begin
        .parts
        .iter()
        .zip(&end.parts)
        .map(|((part, from), (_, to))| (*part, per_operation(*from, *to)))
        .collect();
    let mut memory_peak = BTreeMap::new();
    for (part, pid) in candidate.processes() {
        memory_peak.insert(part, memory(pid)?.1);
    }
    let ours: Duration = begin
        .parts
        .iter()
        .zip(&end.parts)
        .map(|((_, from), (_, to))| to.saturating_sub(*from))
        .sum::<Duration>()
        + end.load.saturating_sub(begin.load);
    let cpus = std::thread::available_parallelism()?.get() as f64;
    let all = (end.machine.1 - begin.machine.1).max(1) as f64;
    let machine_busy = (end.machine.0 - begin.machine.0) as f64 / all;
    let ours_busy = ours.as_secs_f64() / (outcome.seconds * cpus);
    let quantile = |q: f64| outcome.latency.value_at_quantile(q) as f64 / 1e3;
    let journaled = (end.counts.journal_bytes - begin.counts.journal_bytes) as f64;
    settle(candidate)?;
    Ok(Sample {
        per_second: outcome.per_second(),
        bytes_per_second: outcome.per_second() * f64::from(case.job.block),
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        p999_us: quantile(0.999),
        max_us: outcome.latency.max() as f64 / 1e3,
        cpu_us,
        load_cpu_us: per_operation(begin.load, end.load),
        machine_busy,
        others_busy: (machine_busy - ours_busy).max(0.0),
        ring_enters: (end.counts.ring_enters - begin.counts.ring_enters) as f64 / operations,
        journal_turnovers: candidate
            .journal()
            .map_or(0.0, |capacity| journaled / capacity as f64),
        checkpoints: end.counts.checkpoints - begin.counts.checkpoints,
        memory_peak,
        checked_blocks: outcome.checked_blocks,
    })
}

/// With fio's NBD client.
pub fn with_fio(
    dir: &std::path::Path,
    candidate: &mut dyn Candidate,
    case: &Case,
    times: Times,
    size: u64,
) -> anyhow::Result<Sample> {
    prepare(candidate, case)?;
    let doors = candidate.doors();
    let before = candidate.counts()?;
    let target = fio::Target::Export(&doors[0]);
    let mut sample = fio::run(dir, &target, &case.job, size, times.warm_up, times.interval)?;
    let after = candidate.counts()?;
    settle(candidate)?;
    sample.checkpoints = after.checkpoints - before.checkpoints;
    if let Some(capacity) = candidate.journal() {
        let journaled = after.journal_bytes - before.journal_bytes;
        sample.journal_turnovers = journaled as f64 / capacity as f64;
    }
    Ok(sample)
}

fn prepare(candidate: &mut dyn Candidate, case: &Case) -> anyhow::Result<()> {
    if case.cold {
        return forget(candidate);
    }
    // All of it is in the page cache, of every candidate alike: who writes faster would else fill its own sooner, and pay
    // less for each write of the interval. In single pages: read ahead, it would lie there in large folios, in which a write
    // of 4 KiB takes ext4 twenty times as long, whoever makes it.
    for file in candidate.files() {
        let mut file = std::fs::File::open(file)?;
        fadvise(&file, 0, None, Advice::Random)?;
        std::io::copy(&mut file, &mut std::io::sink())?;
    }
    Ok(())
}
