//! fio: on the bare file, and through its own NBD client.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::figures::Sample;
use super::load::{Durable, Job, Pattern};
use super::nbd::Door;
use super::payload::Data;

/// What fio works on.
pub enum Target<'a> {
    /// A file, with `io_uring` past the page cache; each write durable (`RWF_DSYNC`) or not.
    File { path: &'a Path, dsync: bool },
    /// An export, through fio's nbd engine.
    Export(&'a Door),
}

/// Runs one job. A write is followed by an fsync (a flush) where `job` wants it to be durable: fio's NBD client knows no FUA.
pub fn run(
    dir: &Path,
    target: &Target,
    job: &Job,
    size: u64,
    warm_up: Duration,
    interval: Duration,
) -> anyhow::Result<Sample> {
    let sequential = job.pattern == Pattern::Sequential;
    let rw = match (job.writes_percent, sequential) {
        (100, false) => "randwrite",
        (100, true) => "write",
        (0, false) => "randread",
        (0, true) => "read",
        (_, false) => "randrw",
        (_, true) => "rw",
    };
    let share = job.connections.max(1);
    let mut text = format!(
        "[job]\nrw={rw}\nbs={}\niodepth={}\nnumjobs={share}\nruntime={}ms\nramp_time={}ms\n\
         randrepeat=0\ngroup_reporting=1\nthread=1\nrefill_buffers=1\n",
        job.block,
        (job.depth / share).max(1),
        interval.as_millis(),
        warm_up.as_millis(),
    );
    let size = if job.span == 0 { size } else { job.span };
    writeln!(text, "size={size}")?;
    // Every place once, or any place for as long as it lasts.
    if job.pattern != Pattern::Scattered {
        text += "time_based=1\nnorandommap=1\n";
    }
    if !matches!(job.writes_percent, 0 | 100) {
        writeln!(text, "rwmixwrite={}", job.writes_percent)?;
    }
    if job.data == Data::Compressible {
        text += "buffer_compress_percentage=50\n";
    }
    let mut command = Command::new("fio");
    match target {
        Target::File { path, dsync } => {
            writeln!(
                text,
                "ioengine=io_uring\ndirect=1\nfilename={}",
                path.display()
            )?;
            if *dsync {
                text += "sync=dsync\n";
            }
        }
        Target::Export(door) => {
            text += "ioengine=nbd\nuri=${URI}\n";
            if job.durable != Durable::No {
                text += "fsync=1\n";
            }
            // fio takes a colon in a URI literally only from the environment.
            command.env("URI", door.uri());
        }
    }
    let file = dir.join("job.fio");
    std::fs::write(&file, text)?;
    let output = command
        .arg("--output-format=json+")
        .arg(&file)
        .current_dir(dir)
        .output()
        .context("fio")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "fio: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    parse(&said)
}

/// Reads the report of one job.
pub fn parse(said: &str) -> anyhow::Result<Sample> {
    // fio's NBD engine says that it connected before the report begins.
    let json = &said[said.find('{').context("fio made no report")?..];
    let report: serde_json::Value = serde_json::from_str(json).context("fio's report")?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio: error {}", job["error"]);
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
    let sum = |field: &str| number(&job["read"][field]) + number(&job["write"][field]);
    // Of a mixture the writes' latencies are told.
    let side = if number(&job["write"]["iops"]) > 0.0 {
        &job["write"]
    } else {
        &job["read"]
    };
    // Of an engine that completes at once all latency is in the submission.
    let latency = &side["clat_ns"];
    let percentile = |name: &str| number(&latency["percentile"][name]) / 1e3;
    Ok(Sample {
        per_second: sum("iops"),
        bytes_per_second: sum("bw_bytes"),
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
        max_us: number(&latency["max"]) / 1e3,
        ..Sample::default()
    })
}
