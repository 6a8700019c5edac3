//! The bars: what must be reached, and how it is computed from what was measured.

use super::cases::{Case, Point, Who};
use super::figures::Record;
use super::load::Durable;

/// Which side of the bar is good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    AtLeast,
    AtMost,
}

/// A bar. Ratios are those of one round, so that what the machine does to all of them cancels out.
pub struct Bar {
    /// For `--only`.
    pub name: &'static str,
    /// What is measured, in words.
    pub title: &'static str,
    /// `x` for ratios.
    pub unit: &'static str,
    pub goal: Goal,
    /// `None`: only told.
    pub bar: Option<f64>,
    pub stretch: Option<f64>,
    /// What must have been measured.
    pub points: Vec<Point>,
    /// What else must have happened.
    pub scenario: Option<Scenario>,
    pub value: Value,
}

/// Measurements that are more than a load on a candidate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scenario {
    /// Round trips and durable writes of the machine itself.
    Steps,
}

/// How the value of a round is computed.
pub enum Value {
    /// Operations per second of the first point over those of the second.
    Rate(Point, Point),
    /// The quotient of 99th percentile and median of the first over that of the second.
    Tail(Point, Point),
    /// A number noted by a scenario.
    Noted(&'static str),
    /// The median latency over the least that the machine allows.
    OverFloor(Point),
    /// CPU time of all processes per operation of the first over that of the second.
    Cpu(Point, Point),
    /// Calls of `io_uring_enter` per operation.
    Enters(Point),
}

impl Value {
    /// In this round.
    pub fn of(&self, record: &Record, round: usize) -> Option<f64> {
        let sample = |point: &Point| record.sample(point, round);
        Some(match self {
            Value::Rate(a, b) => sample(a)?.per_second / sample(b)?.per_second,
            Value::Tail(a, b) => {
                let (a, b) = (sample(a)?, sample(b)?);
                (a.p99_us / a.p50_us) / (b.p99_us / b.p50_us)
            }
            Value::Noted(name) => *record.scalar(name).get(round)?,
            Value::OverFloor(point) => {
                sample(point)?.p50_us / record.scalar("floor_us").get(round)?
            }
            Value::Cpu(a, b) => {
                sample(a)?.cpu_us.values().sum::<f64>() / sample(b)?.cpu_us.values().sum::<f64>()
            }
            Value::Enters(point) => sample(point)?.ring_enters,
        })
    }

    fn points(&self) -> Vec<Point> {
        match self {
            Value::Rate(a, b) | Value::Tail(a, b) | Value::Cpu(a, b) => vec![*a, *b],
            Value::OverFloor(a) | Value::Enters(a) => vec![*a],
            Value::Noted(_) => Vec::new(),
        }
    }

    /// The medians behind it, in words.
    pub fn figures(&self, record: &Record) -> String {
        use super::figures::short;
        let median = |point: &Point, field: fn(&super::figures::Sample) -> f64| {
            record
                .spread(point, field)
                .map_or_else(|| "?".to_owned(), |s| short(s.median))
        };
        match self {
            Value::Rate(a, b) => format!(
                "{} : {} /s",
                median(a, |s| s.per_second),
                median(b, |s| s.per_second)
            ),
            Value::Tail(a, b) => format!(
                "{}/{} : {}/{} us",
                median(a, |s| s.p99_us),
                median(a, |s| s.p50_us),
                median(b, |s| s.p99_us),
                median(b, |s| s.p50_us)
            ),
            Value::Cpu(a, b) => format!(
                "{} : {} us",
                median(a, |s| s.cpu_us.values().sum()),
                median(b, |s| s.cpu_us.values().sum())
            ),
            Value::OverFloor(a) => {
                let noted = |name: &str| {
                    super::figures::Spread::of(record.scalar(name))
                        .map_or_else(|| "?".to_owned(), |s| short(s.median))
                };
                format!(
                    "{} : {} + max({durable}, {} + {durable}) us",
                    median(a, |s| s.p50_us),
                    noted("client_us"),
                    noted("link_us"),
                    durable = noted("durable_us"),
                )
            }
            Value::Enters(_) | Value::Noted(_) => String::new(),
        }
    }
}

impl Bar {
    fn new(name: &'static str, title: &'static str, goal: Goal, value: Value) -> Bar {
        Bar {
            name,
            title,
            unit: "x",
            goal,
            bar: None,
            stretch: None,
            points: value.points(),
            scenario: None,
            value,
        }
    }

    fn at(mut self, bar: f64, stretch: f64) -> Bar {
        (self.bar, self.stretch) = (Some(bar), Some(stretch));
        self
    }

    fn in_unit(mut self, unit: &'static str) -> Bar {
        self.unit = unit;
        self
    }

    fn after(mut self, scenario: Scenario) -> Bar {
        self.scenario = Some(scenario);
        self
    }

    /// Whether a value is good enough.
    pub fn meets(&self, value: f64, limit: f64) -> bool {
        match self.goal {
            Goal::AtLeast => value >= limit,
            Goal::AtMost => value <= limit,
        }
    }
}

/// All of them, in the order of the table.
pub fn all() -> Vec<Bar> {
    use Goal::{AtLeast, AtMost};
    let (one, many) = (Case::write(1), Case::write(32));
    let stream = Case::stream(1 << 20);
    let read = Case::read(32);
    let fua = one.durable(Durable::Fua);
    vec![
        Bar::new(
            "write-1-sync",
            "4 KiB random write, depth 1, sync : qemu mirror with FUA",
            AtLeast,
            Value::Rate(one.by(Who::Sync), fua.by(Who::Qemu)),
        )
        .at(1.5, 2.0),
        Bar::new(
            "write-1-memsync",
            "4 KiB random write, depth 1, memsync : qemu mirror",
            AtLeast,
            Value::Rate(one.by(Who::Memsync), one.by(Who::Qemu)),
        )
        .at(1.7, 2.5),
        Bar::new(
            "latency-1",
            "latency of it, sync : client round trip + max(durable, link round trip + durable)",
            AtMost,
            Value::OverFloor(one.by(Who::Sync)),
        )
        .at(1.2, 1.0)
        .after(Scenario::Steps),
        Bar::new(
            "write-32-sync",
            "4 KiB random write, depth 32, sync : bare disk with DSYNC",
            AtLeast,
            Value::Rate(many.by(Who::Sync), many.by(Who::BareDsync)),
        )
        .at(0.6, 1.0),
        Bar::new(
            "write-32-memsync",
            "the same, memsync",
            AtLeast,
            Value::Rate(many.by(Who::Memsync), many.by(Who::BareDsync)),
        )
        .at(1.0, 1.3),
        Bar::new(
            "write-32-sync-nbdkit",
            "the same, sync : nbdkit, unreplicated",
            AtLeast,
            Value::Rate(many.by(Who::Sync), many.by(Who::Nbdkit)),
        ),
        Bar::new(
            "write-32-memsync-nbdkit",
            "the same, memsync : nbdkit, unreplicated",
            AtLeast,
            Value::Rate(many.by(Who::Memsync), many.by(Who::Nbdkit)),
        ),
        Bar::new(
            "write-32-sync-qemu",
            "the same, sync : qemu mirror",
            AtLeast,
            Value::Rate(many.by(Who::Sync), many.by(Who::Qemu)),
        ),
        Bar::new(
            "write-32-memsync-qemu",
            "the same, memsync : qemu mirror",
            AtLeast,
            Value::Rate(many.by(Who::Memsync), many.by(Who::Qemu)),
        ),
        Bar::new(
            "stream-sync",
            "1 MiB sequential write, depth 8, sync : qemu mirror",
            AtLeast,
            Value::Rate(stream.by(Who::Sync), stream.by(Who::Qemu)),
        )
        .at(1.1, 2.0),
        Bar::new(
            "read-32",
            "4 KiB random read, depth 32, cached : nbdkit",
            AtLeast,
            Value::Rate(read.by(Who::Sync), read.by(Who::Nbdkit)),
        )
        .at(1.3, 1.8),
        Bar::new(
            "tail-1",
            "p99 over median, depth 1, sync : the same of the bare disk with DSYNC",
            AtMost,
            Value::Tail(one.by(Who::Sync), one.by(Who::BareDsync)),
        )
        .at(1.3, 1.0),
        Bar::new(
            "cpu-32",
            "CPU per 4 KiB write, depth 32, primary + mirror : nbdkit, unreplicated",
            AtMost,
            Value::Cpu(many.by(Who::Sync), many.by(Who::Nbdkit)),
        )
        .at(2.5, 1.8),
        Bar::new(
            "enters-32",
            "io_uring_enter per 4 KiB write, depth 32, primary + mirror",
            AtMost,
            Value::Enters(many.by(Who::Sync)),
        )
        .at(1.0, 0.6)
        .in_unit(""),
    ]
}
