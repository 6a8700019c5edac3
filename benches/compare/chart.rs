//! Charts, as SVG written by hand: bars from left to right with the spread of the rounds across their ends.

use std::fmt::Write as _;

use super::bars::Goal;
use super::cases::{Point, Tool, Who};
use super::figures::{Record, Spread, short};
use super::load::{Durable, Pattern};
use super::report::Verdict;

const WIDTH: f64 = 900.0;
const ROW: f64 = 20.0;
const FONT: &str = "font-family=\"sans-serif\"";

/// A chart under way.
struct Svg {
    body: String,
    height: f64,
}

impl Svg {
    fn new(title: &str) -> Svg {
        let mut svg = Svg {
            body: String::new(),
            height: 30.0,
        };
        svg.text(10.0, 20.0, 15, "start", "#222", title);
        svg
    }

    fn text(&mut self, x: f64, y: f64, size: u32, anchor: &str, colour: &str, text: &str) {
        let text = text
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" {FONT} font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>"
        )
        .expect("a string");
    }

    fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, colour: &str) {
        writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>",
            width.max(0.5)
        )
        .expect("a string");
    }

    /// A line with ends, for a spread.
    fn whisker(&mut self, low: f64, high: f64, y: f64) {
        self.rectangle(low, y - 0.5, high - low, 1.0, "#222");
        self.rectangle(low, y - 3.0, 1.0, 6.0, "#222");
        self.rectangle(high, y - 3.0, 1.0, 6.0, "#222");
    }

    fn finish(self) -> String {
        let height = self.height + 10.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

fn colour(who: Who) -> &'static str {
    match who {
        Who::Bare | Who::BareDsync => "#9a9a9a",
        Who::Nbdkit => "#d9b44a",
        Who::Qemu => "#c8643c",
        Who::QemuDurable => "#8f3f22",
        Who::Sync => "#1f6f8b",
        Who::Memsync => "#3aa0bf",
        Who::Async => "#86c5d8",
        Who::Alone => "#7a8fb5",
    }
}

/// A family of cases that one chart shows.
struct Family {
    file: &'static str,
    title: &'static str,
    has: fn(&Point) -> bool,
}

const FAMILIES: [Family; 5] = [
    Family {
        file: "writes.svg",
        title: "4 KiB random writes, operations per second",
        has: |p| p.tool == own(p) && is_plain_write(p) && p.case.job.durable == Durable::No,
    },
    Family {
        file: "durable-writes.svg",
        title: "4 KiB random writes, each with FUA or flushed, operations per second",
        has: |p| p.tool == own(p) && is_plain_write(p) && p.case.job.durable != Durable::No,
    },
    Family {
        file: "reads.svg",
        title: "4 KiB random reads and mixtures, operations per second",
        has: |p| {
            p.tool == own(p)
                && p.case.job.pattern != Pattern::Sequential
                && p.case.job.writes_percent < 100
        },
    },
    Family {
        file: "streams.svg",
        title: "sequential reads and writes at depth 8, operations per second",
        has: |p| p.tool == own(p) && p.case.job.pattern == Pattern::Sequential,
    },
    Family {
        file: "fio.svg",
        title: "the same by fio, operations per second",
        has: |p| p.tool == Tool::Fio,
    },
];

/// The bare file is always measured by fio.
fn own(point: &Point) -> Tool {
    point.case.by(point.who).tool
}

fn is_plain_write(point: &Point) -> bool {
    point.case.job.pattern == Pattern::Random && point.case.job.writes_percent == 100
}

/// Charts of the candidates, case by case: `(file, SVG)`. Those without a case are left out.
pub fn candidates(record: &Record) -> Vec<(&'static str, String)> {
    let mut charts = Vec::new();
    for family in &FAMILIES {
        let points: Vec<_> = record
            .points()
            .map(|(point, _)| point)
            .filter(|point| (family.has)(point))
            .collect();
        if !points.is_empty() {
            charts.push((family.file, chart(record, family.title, &points)));
        }
    }
    charts
}

fn chart(record: &Record, title: &str, points: &[&Point]) -> String {
    const LEFT: f64 = 110.0;
    let mut svg = Svg::new(title);
    for case in points.chunk_by(|a, b| a.case == b.case) {
        svg.height += 18.0;
        let y = svg.height;
        svg.text(10.0, y, 12, "start", "#222", &case[0].case.to_string());
        svg.height += 6.0;
        let spreads: Vec<(&Point, Spread)> = case
            .iter()
            .filter_map(|point| Some((*point, record.spread(point, |s| s.per_second)?)))
            .collect();
        let most = spreads.iter().map(|(_, s)| s.high).fold(1.0, f64::max);
        let x = |value: f64| LEFT + value / most * (WIDTH - LEFT - 110.0);
        for (point, spread) in spreads {
            let y = svg.height;
            svg.text(LEFT - 6.0, y + 14.0, 11, "end", "#444", point.who.name());
            svg.rectangle(
                LEFT,
                y + 3.0,
                x(spread.median) - LEFT,
                ROW - 6.0,
                colour(point.who),
            );
            if spread.rounds > 1 {
                svg.whisker(x(spread.low), x(spread.high), y + ROW / 2.0);
            }
            let end = x(spread.high) + 6.0;
            svg.text(end, y + 14.0, 11, "start", "#222", &short(spread.median));
            svg.height += ROW;
        }
    }
    svg.finish()
}

/// How far above or below its bar each value is: the line at 1 is the bar, to the right of it is good.
pub fn bars(verdicts: &[Verdict]) -> String {
    const LEFT: f64 = 560.0;
    /// From a quarter of the bar to four times.
    const REACH: f64 = 4.0;
    let x = |factor: f64| {
        let middle = f64::midpoint(LEFT, WIDTH - 60.0);
        let half = (WIDTH - 60.0 - LEFT) / 2.0;
        middle + (factor.ln() / REACH.ln()).clamp(-1.0, 1.0) * half
    };
    let mut svg =
        Svg::new("the bars: measured against wanted (line), stretch (dot); right is better");
    for verdict in verdicts {
        let (Some(spread), Some(limit)) = (verdict.spread, verdict.bar.limit) else {
            continue;
        };
        let factor = |value: f64| match verdict.bar.goal {
            Goal::AtLeast => value / limit,
            Goal::AtMost => limit / value,
        };
        let y = svg.height;
        // What stands in brackets has no room here; the table has it.
        let title = verdict.bar.title;
        let title = title.split_once(" (").map_or(title, |(title, _)| title);
        svg.text(LEFT - 8.0, y + 14.0, 11, "end", "#222", title);
        let (from, to) = (x(1.0), x(factor(spread.median)));
        let good = factor(spread.median) >= 1.0;
        let colour = if good { "#2f8f5b" } else { "#c0392b" };
        svg.rectangle(from.min(to), y + 3.0, (to - from).abs(), ROW - 6.0, colour);
        if spread.rounds > 1 {
            let (a, b) = (x(factor(spread.low)), x(factor(spread.high)));
            svg.whisker(a.min(b), a.max(b), y + ROW / 2.0);
        }
        if let Some(stretch) = verdict.bar.stretch {
            svg.rectangle(
                x(factor(stretch)) - 2.0,
                y + ROW / 2.0 - 2.0,
                4.0,
                4.0,
                "#222",
            );
        }
        svg.rectangle(from, y, 1.0, ROW, "#222");
        let value = format!("{}{}", short(spread.median), verdict.bar.unit);
        svg.text(WIDTH - 50.0, y + 14.0, 11, "start", "#222", &value);
        svg.height += ROW;
    }
    svg.finish()
}
