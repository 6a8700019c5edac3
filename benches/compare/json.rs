//! Everything that was measured, for programs.

use serde_json::{Value, json};

use super::bars::Goal;
use super::figures::Record;
use super::options::Options;
use super::report::Verdict;

/// The whole run. Latencies are in microseconds, sizes in bytes; `samples` and `values` are by round.
pub fn document(options: &Options, record: &Record, verdicts: &[Verdict]) -> Value {
    let bars: Vec<_> = verdicts.iter().map(bar).collect();
    let points: Vec<_> = record
        .points()
        .map(|(point, samples)| {
            let job = &point.case.job;
            json!({
                "case": point.case.to_string(),
                "candidate": point.who.name(),
                "by": point.tool.name(),
                "block_bytes": job.block,
                "depth": job.depth,
                "connections": job.connections,
                "writes_percent": job.writes_percent,
                "samples": samples,
            })
        })
        .collect();
    json!({
        "machine": machine(),
        "options": {
            "quick": options.quick,
            "rounds": options.rounds(),
            "journal_bytes": options.journal(),
            "volume_bytes": options.size(),
            "replay_bytes": options.replay(),
            "away_seconds": options.away().as_secs(),
            "tcp": options.tcp,
        },
        "bars": bars,
        "points": points,
        "other": record.scalars(),
    })
}

fn bar(verdict: &Verdict) -> Value {
    let bar = verdict.bar;
    json!({
        "name": bar.name,
        "title": bar.title,
        "unit": bar.unit,
        "goal": match bar.goal {
            Goal::AtLeast => "at_least",
            Goal::AtMost => "at_most",
        },
        "bar": bar.limit,
        "stretch": bar.stretch,
        "measured": verdict.spread,
        "values": verdict.values,
        "verdict": verdict.word(),
    })
}

/// What kind of machine it was.
fn machine() -> Value {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "load_average_at_the_end": read("/proc/loadavg"),
    })
}
