//! The tables that people read.

use std::fmt::Write as _;

use super::bars::{Bar, Goal};
use super::cases::Point;
use super::figures::{Record, Spread, short};

/// A bar with what came of it.
pub struct Verdict<'a> {
    pub bar: &'a Bar,
    /// By round.
    pub values: Vec<f64>,
    pub spread: Option<Spread>,
    pub figures: String,
}

impl<'a> Verdict<'a> {
    pub fn of(bar: &'a Bar, record: &Record, rounds: usize) -> Verdict<'a> {
        let values: Vec<f64> = (0..rounds)
            .filter_map(|round| bar.value.of(record, round))
            .collect();
        Verdict {
            spread: Spread::of(&values),
            values,
            figures: bar.value.figures(record),
            bar,
        }
    }

    /// `met`, `stretch`, `NOT MET`, or why there is no such word; what was met by the median and not in each round says so.
    pub fn word(&self) -> &'static str {
        let (Some(spread), bar) = (self.spread, self.bar) else {
            return "not measured";
        };
        match (bar.limit, bar.stretch) {
            (_, Some(stretch)) if bar.meets(spread.median, stretch) => "stretch",
            (Some(limit), _) if !bar.meets(spread.median, limit) => "NOT MET",
            (Some(limit), _) if !self.values.iter().all(|v| bar.meets(*v, limit)) => {
                "met, NOT IN EACH ROUND"
            }
            (Some(_), _) => "met",
            (None, _) => "told",
        }
    }
}

/// The table of the bars.
pub fn bars(verdicts: &[Verdict]) -> String {
    let mut rows = vec![["case", "measured", "bar", "stretch", "", "medians"].map(str::to_owned)];
    for verdict in verdicts {
        let bar = verdict.bar;
        let sign = match bar.goal {
            Goal::AtLeast => ">=",
            Goal::AtMost => "<=",
        };
        let limit = |limit: Option<f64>| {
            limit.map_or_else(String::new, |l| format!("{sign} {l}{}", spaced(bar.unit)))
        };
        rows.push([
            format!("{} [{}]", bar.title, bar.name),
            verdict
                .spread
                .map_or_else(|| "-".to_owned(), |s| told(&s, bar.unit)),
            limit(bar.limit),
            limit(bar.stretch),
            verdict.word().to_owned(),
            verdict.figures.clone(),
        ]);
    }
    table(&rows)
        + "measured: the median of the rounds, and from which to which round it differed; a ratio is of two figures of one round.\n\
           bar: what must be reached; stretch: what would be nice. medians: the figures behind it.\n"
}

/// As much of all CPUs may be busy with something else, such as the kernel's write-back, before it is told.
const NOISE: f64 = 0.15;

/// The table of all points.
pub fn points(record: &Record) -> String {
    let mut rows = vec![
        [
            "case",
            "candidate",
            "by",
            "per second",
            "MB/s",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "max us",
            "CPU us per operation",
            "notes",
        ]
        .map(str::to_owned),
    ];
    let mut last = String::new();
    for (point, _) in record.points() {
        let case = point.case.to_string();
        rows.push(point_row(
            record,
            point,
            if case == last { "" } else { &case },
        ));
        last = case;
    }
    table(&rows)
        + "by: fio, or own, which is tools/bench's own load. CPU: of each process that takes part; `others used` is what nobody of\n\
           them did, such as the kernel's write-back. enters: calls of io_uring_enter per operation, both sites together.\n"
}

fn point_row(record: &Record, point: &Point, case: &str) -> [String; 11] {
    let number = |field: fn(&super::figures::Sample) -> f64| {
        record
            .spread(point, field)
            .map_or_else(String::new, |s| short(s.median))
    };
    let last = record.sample(point, 0).expect("a point has a sample");
    let cpu: Vec<_> = last
        .cpu_us
        .keys()
        .map(|part| {
            let spread = record.spread(point, |s| s.cpu_us.get(part).copied().unwrap_or(0.0));
            format!("{part} {:.1}", spread.map_or(0.0, |s| s.median))
        })
        .collect();
    let mut notes = Vec::new();
    if let Some(others) = record.spread(point, |s| s.others_busy)
        && others.median > NOISE
    {
        notes.push(format!("others used {:.0} % CPU", others.median * 100.0));
    }
    if last.ring_enters > 0.0 {
        notes.push(format!("{} enters", number(|s| s.ring_enters)));
    }
    if last.journal_turnovers > 0.0 {
        let turnovers = number(|s| s.journal_turnovers);
        let few = if last.journal_turnovers < 3.0 {
            " (FEW)"
        } else {
            ""
        };
        notes.push(format!(
            "journal turned over {turnovers} times{few}, {} checkpoints",
            number(|s| s.checkpoints as f64)
        ));
    }
    [
        case.to_owned(),
        point.who.name().to_owned(),
        point.tool.name().to_owned(),
        record
            .spread(point, |s| s.per_second)
            .map_or_else(String::new, |s| told(&s, "")),
        number(|s| s.bytes_per_second / 1e6),
        number(|s| s.p50_us),
        number(|s| s.p99_us),
        number(|s| s.p999_us),
        number(|s| s.max_us),
        cpu.join(", "),
        notes.join(", "),
    ]
}

/// The median, and the spread if there is more than one value.
fn told(spread: &Spread, unit: &str) -> String {
    let mut text = format!("{}{}", short(spread.median), spaced(unit));
    if spread.rounds > 1 {
        write!(text, " ({} to {})", short(spread.low), short(spread.high)).expect("a string");
    }
    text
}

fn spaced(unit: &str) -> String {
    match unit {
        "" | "x" => unit.to_owned(),
        unit => format!(" {unit}"),
    }
}

/// Columns as wide as they need to be.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<_> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(text, "| {} |", cells.join(" | ")).expect("a string");
        if index == 0 {
            let lines: Vec<_> = widths.iter().map(|w| "-".repeat(*w)).collect();
            writeln!(text, "| {} |", lines.join(" | ")).expect("a string");
        }
    }
    text
}
