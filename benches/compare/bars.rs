//! The bars: what must be reached, and how it is computed from what was measured.

use super::cases::{Case, Point, Who};
use super::figures::Record;
use super::load::Durable;
use super::scenarios::Scenario;

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
    pub limit: Option<f64>,
    pub stretch: Option<f64>,
    /// What must have been measured.
    pub points: Vec<Point>,
    /// What else must have happened.
    pub scenario: Option<Scenario>,
    pub value: Value,
}

/// How the value of a round is computed.
pub enum Value {
    /// Operations per second of the first point over those of the second.
    Rate(Point, Point),
    /// The quotient of 99th percentile and median of the first over that of the second.
    Tail(Point, Point),
    /// A number noted by a scenario, and those behind it.
    Noted(&'static str, &'static [&'static str]),
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
            Value::Noted(name, _) => *record.scalar(name).get(round)?,
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
            Value::Noted(..) => Vec::new(),
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
        let noted = |name: &str| {
            super::figures::Spread::of(record.scalar(name))
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
            Value::OverFloor(a) => format!(
                "{} : {} + max({durable}, {} + {durable}) us",
                median(a, |s| s.p50_us),
                noted("client_us"),
                noted("link_us"),
                durable = noted("durable_us"),
            ),
            Value::Noted(_, behind) => {
                let told = |name: &&str| format!("{} {}", name.replace('_', " "), noted(name));
                behind.iter().map(told).collect::<Vec<_>>().join(", ")
            }
            Value::Enters(_) => String::new(),
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
            limit: None,
            stretch: None,
            points: value.points(),
            scenario: None,
            value,
        }
    }

    fn at(mut self, limit: f64, stretch: f64) -> Bar {
        (self.limit, self.stretch) = (Some(limit), Some(stretch));
        self
    }

    /// A bar without a stretch.
    fn within(mut self, limit: f64) -> Bar {
        self.limit = Some(limit);
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
    let (fsync, fua) = (one.durable(Durable::Flush), one.durable(Durable::Fua));
    vec![
        Bar::new(
            "write-1-sync",
            "4 KiB random write, depth 1, sync : qemu mirror with a flush after each write (durable at its primary only)",
            AtLeast,
            Value::Rate(one.by(Who::Sync), fsync.by(Who::Qemu)),
        )
        .at(1.5, 2.0),
        Bar::new(
            "write-1-sync-fua",
            "4 KiB random write, depth 1, sync : qemu mirror with FUA (durable at its primary only)",
            AtLeast,
            Value::Rate(one.by(Who::Sync), fua.by(Who::Qemu)),
        ),
        Bar::new(
            "write-1-sync-durable",
            "4 KiB random write, depth 1, sync : qemu mirror, both sites flushing after each write",
            AtLeast,
            Value::Rate(one.by(Who::Sync), one.by(Who::QemuDurable)),
        ),
        Bar::new(
            "write-1-memsync",
            "4 KiB random write, depth 1, memsync : qemu mirror",
            AtLeast,
            Value::Rate(one.by(Who::Memsync), one.by(Who::Qemu)),
        )
        .at(1.7, 2.5),
        Bar::new(
            "latency-1",
            "latency at depth 1, sync : client round trip + max(durable, link round trip + durable)",
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
            "4 KiB random write, depth 32, memsync : bare disk with DSYNC",
            AtLeast,
            Value::Rate(many.by(Who::Memsync), many.by(Who::BareDsync)),
        )
        .at(1.0, 1.3),
        Bar::new(
            "write-32-sync-nbdkit",
            "4 KiB random write, depth 32, sync : nbdkit, unreplicated",
            AtLeast,
            Value::Rate(many.by(Who::Sync), many.by(Who::Nbdkit)),
        ),
        Bar::new(
            "write-32-memsync-nbdkit",
            "4 KiB random write, depth 32, memsync : nbdkit, unreplicated",
            AtLeast,
            Value::Rate(many.by(Who::Memsync), many.by(Who::Nbdkit)),
        ),
        Bar::new(
            "write-32-sync-qemu",
            "4 KiB random write, depth 32, sync : qemu mirror",
            AtLeast,
            Value::Rate(many.by(Who::Sync), many.by(Who::Qemu)),
        ),
        Bar::new(
            "write-32-memsync-qemu",
            "4 KiB random write, depth 32, memsync : qemu mirror",
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
            "catching-up",
            "writes, depth 32, sync, while a mirror that was away catches up : in sync",
            AtLeast,
            Value::Noted(
                "catching_up_ratio",
                &[
                    "catching_up_per_second",
                    "in_sync_per_second",
                    "catching_up_seconds",
                ],
            ),
        )
        .at(0.7, 0.9)
        .after(Scenario::Away),
        Bar::new(
            "catching-up-tail",
            "p99.9 of writes, depth 32, sync, while a mirror catches up : in sync",
            AtMost,
            Value::Noted(
                "catching_up_p999_ratio",
                &["catching_up_p999_us", "in_sync_p999_us"],
            ),
        )
        .after(Scenario::Away),
        Bar::new(
            "catch-up-small",
            "catch-up from the journal, 4 KiB random writes : a direct copy of as many bytes",
            AtLeast,
            Value::Noted(
                "catch_up_small_ratio",
                &["catch_up_small_seconds", "catch_up_small_copy_seconds"],
            ),
        )
        .at(0.5, 0.8)
        .after(Scenario::CatchUp),
        Bar::new(
            "catch-up-large",
            "catch-up from the journal, 1 MiB writes : a direct copy of as many bytes",
            AtLeast,
            Value::Noted(
                "catch_up_large_ratio",
                &["catch_up_large_seconds", "catch_up_large_copy_seconds"],
            ),
        )
        .at(0.5, 0.8)
        .after(Scenario::CatchUp),
        Bar::new(
            "resync",
            "range resync with all data different : a direct copy of as many bytes",
            AtLeast,
            Value::Noted("resync_ratio", &["resync_seconds", "resync_copy_seconds"]),
        )
        .at(0.5, 0.8)
        .after(Scenario::Resync),
        Bar::new(
            "resync-without-undo",
            "the same with resync_undo = false: the mirror keeps nothing of what is replaced",
            AtLeast,
            Value::Noted(
                "resync_without_undo_ratio",
                &[
                    "resync_without_undo_seconds",
                    "resync_without_undo_copy_seconds",
                ],
            ),
        )
        .at(0.5, 0.8)
        .after(Scenario::Resync),
        Bar::new(
            "recovery",
            "from exec to the first acknowledged write after a kill, cold",
            AtMost,
            Value::Noted("recovery_seconds", &["recovery_mib"]),
        )
        .at(5.0, 2.0)
        .in_unit("s")
        .after(Scenario::Recovery),
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
        Bar::new(
            "groups-100",
            "4 KiB random writes on 100 groups, depth 1 each : on one, depth 100",
            AtLeast,
            Value::Noted("groups_ratio", &["groups_100", "groups_1"]),
        )
        .at(0.8, 1.0)
        .after(Scenario::Groups),
        Bar::new(
            "groups-100-at-32",
            "4 KiB random writes on 100 groups, depth 32 each : on one, depth 32",
            AtLeast,
            Value::Noted(
                "groups_at_32_ratio",
                &["groups_100_at_32", "groups_1_at_32"],
            ),
        )
        .at(0.8, 1.0)
        .after(Scenario::Groups),
        Bar::new(
            "memory-idle",
            "resident memory of a site, idle, one volume",
            AtMost,
            Value::Noted("memory_idle_1", &[]),
        )
        .within(32.0)
        .in_unit("MiB")
        .after(Scenario::Groups),
        Bar::new(
            "memory-load",
            "resident memory of a site, at its highest under full load",
            AtMost,
            Value::Noted("memory_load", &[]),
        )
        .within(256.0)
        .in_unit("MiB")
        .after(Scenario::Groups),
        Bar::new(
            "memory-100",
            "resident memory of a site, 100 idle groups",
            AtMost,
            Value::Noted("memory_idle_100", &[]),
        )
        .within(128.0)
        .in_unit("MiB")
        .after(Scenario::Groups),
    ]
}
