//! Many groups on two sites, and what memory they take.

use std::time::Duration;

use crate::candidates::doublure::{Pair, Setup};
use crate::candidates::{Candidate, forget};
use crate::cases::Case;
use crate::figures::Record;
use crate::lineup::Lineup;
use crate::load::Pattern;
use crate::measure;
use crate::process::{forget_peak, memory};

const COUNTS: [usize; 3] = [1, 8, 100];
/// Requests in flight over all groups; one for each where there are most.
const DEPTH: usize = 100;

/// The same load on one group, on eight, on a hundred; and a hundred times the load on a hundred.
pub fn side_by_side(lineup: &mut Lineup, record: &mut Record) -> anyhow::Result<()> {
    let options = lineup.options.clone();
    let (mut spread, mut deep) = (Vec::new(), Vec::new());
    for groups in COUNTS {
        if groups == 8 && options.quick {
            continue; // no bar needs it
        }
        let mut pair = Pair::start(
            lineup.place.path(),
            Setup {
                name: "groups",
                ack: "sync",
                journal: 32 << 20,
                size: (options.size() / groups as u64).next_multiple_of(1 << 20),
                groups,
                compress: "off",
                undo: true,
                tcp: options.tcp,
            },
        )?;
        // What the start itself took is given back, or is not, by now.
        std::thread::sleep(Duration::from_millis(500));
        record.note(&format!("memory_idle_{groups}"), resident(&pair)?);
        // As in every other comparison: what is measured is not how the file system finds room for what was a hole.
        pair.fill(Pattern::Sequential, 32 << 10, pair.setup.size, 0)?;
        forget(&mut pair)?;
        let mut case = Case::write(DEPTH);
        let sample = measure::own(&mut pair, &case, options.times(&case), 21)?;
        record.note(&format!("groups_{groups}"), sample.per_second);
        spread.push(sample.per_second);
        eprintln!("    {groups} groups: {:.0}/s", sample.per_second);
        case.job.depth = 32 * groups;
        let sample = measure::own(&mut pair, &case, options.times(&case), 22)?;
        record.note(&format!("groups_{groups}_at_32"), sample.per_second);
        deep.push(sample.per_second);
        eprintln!(
            "    {groups} groups at depth 32 each: {:.0}/s",
            sample.per_second
        );
        if groups == 1 {
            record.note("memory_load", under_load(&mut pair, &options)?);
        }
        pair.remove()?;
    }
    let last_over_first = |rates: &[f64]| rates[rates.len() - 1] / rates[0];
    record.note("groups_ratio", last_over_first(&spread));
    record.note("groups_at_32_ratio", last_over_first(&deep));
    Ok(())
}

/// MiB of the larger site.
fn resident(pair: &Pair) -> anyhow::Result<f64> {
    let mut most = 0;
    for (_, pid) in pair.processes() {
        most = most.max(memory(pid)?.0);
    }
    Ok(most as f64 / f64::from(1 << 20))
}

/// MiB of the larger site at its highest, under small writes at depth 128 and large ones.
fn under_load(pair: &mut Pair, options: &crate::options::Options) -> anyhow::Result<f64> {
    let mut most = 0;
    for case in [Case::write(128), Case::stream(1 << 20)] {
        let sample = measure::own(pair, &case, options.times(&case), 23)?;
        most = most.max(sample.memory_peak.values().copied().max().unwrap_or(0));
    }
    for (_, pid) in pair.processes() {
        forget_peak(pid)?;
    }
    Ok(most as f64 / f64::from(1 << 20))
}
