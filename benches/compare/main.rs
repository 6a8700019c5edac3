//! doublure beside what one would use instead: the same loads, the same files, the same run. `tools/bench` runs it.

mod bars;
mod candidates;
mod cases;
mod chart;
mod dice;
mod drbd;
mod figures;

mod fio;
mod json;
mod lineup;
mod load;
mod measure;
mod nbd;
mod options;
mod payload;
mod place;
mod probe;
mod process;
mod report;
mod scenarios;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Instant;

use anyhow::{bail, ensure};
use clap::Parser;

use bars::Bar;
use cases::{Case, Point, Who};
use figures::Record;
use lineup::Lineup;
use options::Options;
use report::Verdict;
use scenarios::Scenario;

/// What is to be done in each round.
struct Plan {
    bars: Vec<Bar>,
    points: BTreeSet<Point>,
    scenarios: BTreeSet<Scenario>,
}

impl Plan {
    fn of(options: &Options) -> anyhow::Result<Plan> {
        let mut bars = bars::all();
        let known: Vec<_> = bars.iter().map(|bar| bar.name).collect();
        for name in &options.only {
            if name != "cases" && !known.contains(&name.as_str()) {
                bail!("there is no bar {name:?}; there are {}", known.join(", "));
            }
        }
        if !options.only.is_empty() {
            bars.retain(|bar| options.only.iter().any(|name| name == bar.name));
        }
        let mut cases = cases::all();
        if let Some(text) = &options.case {
            cases.retain(|case| case.to_string().contains(text));
            ensure!(!cases.is_empty(), "no case has {text:?} in its title");
            bars.clear();
        }
        let mut points: BTreeSet<Point> = bars.iter().flat_map(|bar| bar.points.clone()).collect();
        let bars_only = options.bars || options.quick || !options.only.is_empty();
        let all_cases = options.case.is_some() || !bars_only;
        if all_cases || options.only.iter().any(|name| name == "cases") {
            points.extend(cases::points(&cases, &Who::ALL));
        }
        Ok(Plan {
            scenarios: bars.iter().filter_map(|bar| bar.scenario).collect(),
            bars,
            points,
        })
    }

    /// The cases, and who takes part in each. In each round another one begins.
    fn turns(&self, round: usize) -> Vec<(Case, Vec<Point>)> {
        let cases: BTreeSet<Case> = self.points.iter().map(|p| p.case).collect();
        let turn = |case: Case| {
            let mut points: Vec<_> = self
                .points
                .iter()
                .copied()
                .filter(|p| p.case == case)
                .collect();
            let first = round % points.len();
            points.rotate_left(first);
            (case, points)
        };
        cases.into_iter().map(turn).collect()
    }
}

fn measure(lineup: &mut Lineup, plan: &Plan, record: &mut Record) -> anyhow::Result<()> {
    let rounds = lineup.options.rounds();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for scenario in &plan.scenarios {
            eprintln!("  {}", scenario.name());
            let since = Instant::now();
            scenario.run(lineup, record)?;
            eprintln!("    ({:.0} s)", since.elapsed().as_secs_f64());
        }
        for (case, points) in plan.turns(round) {
            eprintln!("  {case}");
            for point in points {
                let times = if plan.bars.iter().any(|bar| bar.points.contains(&point)) {
                    lineup.options.times_of_bar(&case)
                } else {
                    lineup.options.times(&case)
                };
                let sample = lineup.sample(&point, times)?;
                eprintln!(
                    "    {:12} {:4} {:>8}/s",
                    point.who.name(),
                    point.tool.name(),
                    figures::short(sample.per_second)
                );
                record.add(point, sample);
            }
        }
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if options.list {
        for bar in bars::all() {
            println!("{:24} {}", bar.name, bar.title);
        }
        return Ok(());
    }
    ensure!(
        !cfg!(debug_assertions),
        "nothing is measured without optimisation: use tools/bench"
    );
    if options.drbd {
        return drbd::run(&options);
    }
    let plan = Plan::of(&options)?;
    let since = Instant::now();
    let mut record = Record::default();
    let mut lineup = Lineup::new(options.clone())?;
    measure(&mut lineup, &plan, &mut record)?;
    lineup.check_copies()?;
    drop(lineup);

    let rounds = options.rounds();
    let verdicts: Vec<_> = plan
        .bars
        .iter()
        .map(|bar| Verdict::of(bar, &record, rounds))
        .collect();
    let mut text = format!(
        "{} round(s) of {} s or more; volumes of {} MiB, journals of {} MiB\n\n",
        rounds,
        options.times(&Case::write(32)).interval.as_secs_f64(),
        options.size() >> 20,
        options.journal() >> 20,
    );
    if options.quick {
        write!(
            text,
            "Brief: what is marked FEW has not turned its journal over three times; a mirror is away for {} s, not 60; \
             {} MiB are replayed, not 1024.\n\n",
            options.away().as_secs(),
            options.replay() >> 20
        )?;
    }
    if record.points().next().is_some() {
        writeln!(text, "{}", report::points(&record))?;
    }
    if !verdicts.is_empty() {
        text += &report::bars(&verdicts);
    }
    println!("\n{text}");

    std::fs::create_dir_all(&options.out)?;
    let write = |name: &str, content: &str| std::fs::write(options.out.join(name), content);
    write("table.txt", &text)?;
    let document = json::document(&options, &record, &verdicts);
    write("figures.json", &serde_json::to_string_pretty(&document)?)?;
    write("bars.svg", &chart::bars(&verdicts))?;
    for (name, svg) in chart::candidates(&record) {
        write(name, &svg)?;
    }
    eprintln!(
        "{:.0} s in all; table, JSON and charts are in {}",
        since.elapsed().as_secs_f64(),
        options.out.display()
    );
    Ok(())
}
