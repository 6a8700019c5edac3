//! The cases, and who is measured in them.

use std::fmt;

use super::load::{Durable, Job, Pattern};
use super::payload::Data;

/// A candidate, by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    /// The bare file, volatile in the disk's cache.
    Bare,
    /// The bare file, each write durable.
    BareDsync,
    Nbdkit,
    Qemu,
    /// The same; both sites flush after each write.
    QemuDurable,
    Sync,
    Memsync,
    Async,
    /// doublure in `sync` mode whose mirror is away.
    Alone,
}

impl Who {
    pub const ALL: [Who; 9] = [
        Who::Bare,
        Who::BareDsync,
        Who::Nbdkit,
        Who::Qemu,
        Who::QemuDurable,
        Who::Sync,
        Who::Memsync,
        Who::Async,
        Who::Alone,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Who::Bare => "bare",
            Who::BareDsync => "bare-dsync",
            Who::Nbdkit => "nbdkit",
            Who::Qemu => "qemu-mirror",
            Who::QemuDurable => "qemu-durable",
            Who::Sync => "sync",
            Who::Memsync => "memsync",
            Who::Async => "async",
            Who::Alone => "alone",
        }
    }

    /// Has no server.
    pub fn is_bare(self) -> bool {
        matches!(self, Who::Bare | Who::BareDsync)
    }
}

/// Who makes the requests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tool {
    /// Our own load.
    Own,
    Fio,
}

impl Tool {
    pub fn name(self) -> &'static str {
        match self {
            Tool::Own => "own",
            Tool::Fio => "fio",
        }
    }
}

/// A load and the state of the caches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Case {
    pub job: Job,
    /// The page cache has been made to forget the volume.
    pub cold: bool,
}

/// A figure of the comparison.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Point {
    pub case: Case,
    pub who: Who,
    pub tool: Tool,
}

impl Case {
    /// Requests of this length, in bytes, from one connection.
    fn of(block: u32, pattern: Pattern, writes_percent: u8, depth: usize) -> Case {
        Case {
            job: Job {
                writes_percent,
                pattern,
                block,
                depth,
                connections: 1,
                durable: Durable::No,
                data: Data::Random,
                span: 0,
            },
            cold: false,
        }
    }

    /// 4 KiB random writes.
    pub fn write(depth: usize) -> Case {
        Case::of(4096, Pattern::Random, 100, depth)
    }

    /// 4 KiB random reads, from the page cache.
    pub fn read(depth: usize) -> Case {
        Case::of(4096, Pattern::Random, 0, depth)
    }

    /// Sequential writes at depth 8.
    pub fn stream(block: u32) -> Case {
        Case::of(block, Pattern::Sequential, 100, 8)
    }

    pub fn durable(mut self, durable: Durable) -> Case {
        self.job.durable = durable;
        self
    }

    fn cold(mut self) -> Case {
        self.cold = true;
        if self.job.pattern == Pattern::Random {
            self.job.pattern = Pattern::Scattered;
        }
        self
    }

    fn connections(mut self, connections: usize) -> Case {
        self.job.connections = connections;
        self
    }

    /// By whom, with our own load; the bare file is always measured by fio.
    pub fn by(self, who: Who) -> Point {
        let tool = if who.is_bare() { Tool::Fio } else { Tool::Own };
        Point {
            case: self,
            who,
            tool,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let job = &self.job;
        if job.block < 1 << 20 {
            write!(f, "{} KiB", job.block >> 10)?;
        } else {
            write!(f, "{} MiB", job.block >> 20)?;
        }
        let pattern = match job.pattern {
            Pattern::Random | Pattern::Scattered => "random",
            Pattern::Sequential => "sequential",
        };
        match job.writes_percent {
            100 => write!(f, " {pattern} write")?,
            0 => write!(f, " {pattern} read")?,
            writes => write!(
                f,
                " {pattern} mix of {} reads to {writes} writes",
                100 - writes
            )?,
        }
        write!(f, ", depth {}", job.depth)?;
        match job.durable {
            Durable::No => {}
            Durable::Fua => f.write_str(", FUA")?,
            Durable::Flush => f.write_str(", flushed")?,
        }
        if job.connections > 1 {
            write!(f, ", {} connections", job.connections)?;
        }
        if job.data == Data::Compressible {
            f.write_str(", compressible")?;
        }
        if self.cold {
            f.write_str(", cold")?;
        }
        Ok(())
    }
}

/// All cases of the comparison.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for depth in [1, 4, 32, 128] {
        let write = Case::write(depth);
        cases.extend([
            write,
            write.durable(Durable::Fua),
            write.durable(Durable::Flush),
        ]);
    }
    for depth in [1, 32] {
        cases.extend([Case::read(depth), Case::read(depth).cold()]);
    }
    for block in [64 << 10, 1 << 20] {
        cases.push(Case::stream(block));
        cases.push(Case::of(block, Pattern::Sequential, 0, 8).cold());
    }
    cases.push(Case::of(4096, Pattern::Random, 30, 32));
    cases.push(Case::write(32).connections(4));
    cases.push(Case::read(32).connections(4));
    let mut compressible = Case::write(32);
    compressible.job.data = Data::Compressible;
    cases.push(compressible);
    cases
}

/// All points of the comparison.
pub fn points(cases: &[Case], who: &[Who]) -> Vec<Point> {
    let mut points = Vec::new();
    for case in cases {
        for who in who {
            // What makes a write durable is the file's own matter there.
            if who.is_bare() && case.job.durable != Durable::No {
                continue;
            }
            // Without writes both are the same.
            if *who == Who::BareDsync && case.job.writes_percent == 0 {
                continue;
            }
            points.push(case.by(*who));
            // fio knows no FUA.
            if !who.is_bare() && case.job.durable != Durable::Fua {
                points.push(Point {
                    tool: Tool::Fio,
                    ..case.by(*who)
                });
            }
        }
    }
    points
}
