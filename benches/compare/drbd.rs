//! DRBD in the kernel of an emulated machine, and doublure beside it over the same kind of ram disks.
//!
//! The machine is QEMU without hardware's help, its root the tree of this machine, read-only. `tools/emulate` boots it,
//! `tools/bench-guest` is what runs in it. Emulation makes user space dear, so that only the ratios of one boot mean something.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::candidates::doublure::program;
use super::figures::{Spread, short};
use super::fio;
use super::options::Options;
use super::place::Place;
use super::process::{Process, eventually};
use super::report::table;

const CANDIDATES: [&str; 5] = ["raw", "drbd", "nbdkit", "memsync", "sync"];
const CASES: [(&str, &str); 5] = [
    ("write-1", "4 KiB random write, depth 1"),
    ("write-16", "4 KiB random write, depth 16"),
    ("write-32", "4 KiB random write, depth 32"),
    ("large-8", "128 KiB random write, depth 8"),
    ("read-32", "4 KiB random read, depth 32"),
];
/// Some boots crash in the emulator.
const ATTEMPTS: usize = 3;
const BOOT: Duration = Duration::from_mins(5);

/// Boots, measures, prints and writes `drbd.txt` and `drbd.json`.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let place = Place::new(&options.dir.canonicalize()?)?;
    let seconds = if options.quick { 3 } else { 8 };
    let work = prepare(&place, options.rounds(), seconds)?;
    let points = options.rounds() * CANDIDATES.len() * CASES.len();
    let limit = BOOT + Duration::from_secs((seconds + 4) * points as u64 * 2);
    let mut attempt = 1;
    while let Err(error) = boot(&place, &work, limit) {
        ensure!(attempt < ATTEMPTS, "{error:#}");
        eprintln!("the machine failed, once more: {error:#}");
        attempt += 1;
    }
    report(options, &work)
}

/// The folder that the machine sees as `/run/work`, with its first program.
fn prepare(place: &Place, rounds: usize, seconds: u64) -> anyhow::Result<PathBuf> {
    let work = place.dir("work")?;
    fs::copy(program(), work.join("doublure"))?;
    for (from, to) in [("bench-guest", "guest"), ("guest-common", "common")] {
        fs::copy(tools().join(from), work.join(to))?;
    }
    let settings = format!("rounds={rounds}\nseconds={seconds}\n");
    fs::write(work.join("settings"), settings)?;
    Ok(work)
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools")
}

/// Runs the machine to its end.
fn boot(place: &Place, work: &Path, limit: Duration) -> anyhow::Result<()> {
    let mut emulate = Command::new(tools().join("emulate"));
    emulate.arg(work);
    let mut machine = Process::start("machine", &emulate, &place.path().join("emulate.log"))?;
    let mut told = 0;
    eventually(
        "the machine ends",
        Duration::from_millis(500),
        limit,
        || {
            let done = fs::read_dir(work)?.count();
            if done > told {
                told = done;
                eprint!(".");
            }
            Ok(machine.check().is_err().then_some(()))
        },
    )?;
    eprintln!();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    if read(work.join("result")).trim() != "passed" {
        let console = read(work.join("console"));
        let lines: Vec<_> = console.lines().collect();
        bail!(
            "{}\n{}\n{}",
            lines[lines.len().saturating_sub(20)..].join("\n"),
            read(place.path().join("emulate.log")),
            read(work.join("log"))
        );
    }
    Ok(())
}

type Rates = BTreeMap<(&'static str, &'static str), Vec<f64>>;

fn report(options: &Options, work: &Path) -> anyhow::Result<()> {
    let rounds = options.rounds();
    let mut rates = Rates::new();
    for (case, _) in CASES {
        for candidate in CANDIDATES {
            for round in 0..rounds {
                let file = work.join(format!("fio-{round}-{case}-{candidate}.json"));
                let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                let rate = fio::parse(&text)?.per_second;
                rates.entry((case, candidate)).or_default().push(rate);
            }
        }
    }
    let text = tables(&rates, rounds);
    println!("\n{text}");
    fs::create_dir_all(&options.out)?;
    fs::write(options.out.join("drbd.txt"), &text)?;
    let figures: Vec<_> = rates
        .iter()
        .map(|((case, candidate), values)| {
            json!({"case": case, "candidate": candidate, "per_second": values, "measured": Spread::of(values)})
        })
        .collect();
    fs::write(
        options.out.join("drbd.json"),
        serde_json::to_string_pretty(&figures)?,
    )?;
    Ok(())
}

fn tables(rates: &Rates, rounds: usize) -> String {
    let mut all = vec![["case", "raw", "DRBD C", "nbdkit", "memsync", "sync"].map(str::to_owned)];
    for (case, title) in CASES {
        let cell = |who| Spread::of(&rates[&(case, who)]).map_or_else(String::new, told);
        let [raw, drbd, nbdkit, memsync, sync] = CANDIDATES.map(cell);
        all.push([title.to_owned(), raw, drbd, nbdkit, memsync, sync]);
    }
    let header = [
        "case",
        "candidate",
        ": raw",
        ": DRBD C",
        ": nbdkit",
        "bar",
        "stretch",
        "",
    ];
    let mut ratios = vec![header.map(str::to_owned)];
    for (case, title) in CASES {
        for who in ["drbd", "memsync", "sync"] {
            let against = |other| ratio(rates, case, who, other, rounds);
            let nbdkit = against("nbdkit");
            let bar = if case == "write-1" { 0.5 } else { 0.8 };
            let (limits, word) = if who == "drbd" {
                ([String::new(), String::new()], "")
            } else {
                let word = match nbdkit.median {
                    m if m >= 1.0 => "stretch",
                    m if m >= bar => "met",
                    _ => "NOT MET",
                };
                ([format!(">= {bar}x"), ">= 1x".to_owned()], word)
            };
            let [bar, stretch] = limits;
            ratios.push([
                title.to_owned(),
                who.to_owned(),
                told(against("raw")),
                told(against("drbd")),
                told(nbdkit),
                bar,
                stretch,
                word.to_owned(),
            ]);
        }
    }
    format!(
        "In an emulated machine (QEMU TCG), ram disks, fio on block devices; nbdkit, memsync and sync behind the kernel's NBD\n\
         client; {rounds} round(s). Operations per second:\n\n{}\nRatios; the bars are against nbdkit, which replicates nothing:\n\n{}",
        table(&all),
        table(&ratios)
    )
}

fn ratio(
    rates: &Rates,
    case: &'static str,
    a: &'static str,
    b: &'static str,
    rounds: usize,
) -> Spread {
    let values: Vec<f64> = (0..rounds)
        .map(|round| rates[&(case, a)][round] / rates[&(case, b)][round])
        .collect();
    Spread::of(&values).expect("a round")
}

fn told(spread: Spread) -> String {
    let median = short(spread.median);
    if spread.rounds > 1 {
        format!("{median} ({} to {})", short(spread.low), short(spread.high))
    } else {
        median
    }
}
