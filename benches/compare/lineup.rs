//! The candidates side by side: each is started when it is first needed, and then stays.

use std::collections::BTreeMap;

use anyhow::Context;

use super::candidates::bare::Bare;
use super::candidates::doublure::{Pair, Setup};
use super::candidates::nbdkit::Nbdkit;
use super::candidates::qemu::{Durable, Qemu};
use super::candidates::{Candidate, check_copies, settle};
use super::cases::{Point, Tool, Who};
use super::figures::Sample;
use super::measure::{self, Times};
use super::options::Options;
use super::place::Place;
use super::{fio, probe};

/// Whoever has been started.
pub struct Lineup {
    pub options: Options,
    pub place: Place,
    bare: Option<Bare>,
    servers: BTreeMap<Who, Box<dyn Candidate>>,
    seed: u64,
}

impl Lineup {
    pub fn new(options: Options) -> anyhow::Result<Lineup> {
        std::fs::create_dir_all(&options.dir)?;
        Ok(Lineup {
            place: Place::new(&options.dir.canonicalize()?)?,
            options,
            bare: None,
            servers: BTreeMap::new(),
            seed: 0,
        })
    }

    /// Measures.
    pub fn sample(&mut self, point: &Point, times: Times) -> anyhow::Result<Sample> {
        self.seed += 1;
        let (seed, size) = (self.seed, self.options.size());
        if point.who.is_bare() {
            let scratch = self.place.dir("fio")?;
            let target = fio::Target::File {
                path: &self.bare()?.path.clone(),
                dsync: point.who == Who::BareDsync,
            };
            let job = &point.case.job;
            return fio::run(&scratch, &target, job, size, times.warm_up, times.interval);
        }
        let scratch = self.place.dir("fio")?;
        let server = self.server(point.who)?;
        match point.tool {
            Tool::Own => measure::own(server, &point.case, times, seed),
            Tool::Fio => measure::with_fio(&scratch, server, &point.case, times, size),
        }
    }

    /// What the machine itself needs.
    pub fn steps(&mut self) -> anyhow::Result<probe::Steps> {
        let each = self.options.times(&super::cases::Case::write(1)).interval / 4;
        probe::steps(self.place.path(), each)
    }

    fn bare(&mut self) -> anyhow::Result<&Bare> {
        if self.bare.is_none() {
            self.bare = Some(Bare::start(self.place.path(), self.options.size())?);
        }
        Ok(self.bare.as_ref().expect("just started"))
    }

    /// A server, started if need be.
    pub fn server(&mut self, who: Who) -> anyhow::Result<&mut dyn Candidate> {
        if !self.servers.contains_key(&who) {
            let mut server = self.start(who)?;
            settle(&mut *server)?;
            self.servers.insert(who, server);
        }
        Ok(&mut **self.servers.get_mut(&who).expect("just started"))
    }

    fn start(&self, who: Who) -> anyhow::Result<Box<dyn Candidate>> {
        let (dir, size) = (self.place.path(), self.options.size());
        let pair = |ack| Pair::filled(dir, self.setup(who.name(), ack, self.options.journal()));
        Ok(match who {
            Who::Bare | Who::BareDsync => unreachable!("no server"),
            Who::Nbdkit => Box::new(Nbdkit::start(dir, size, self.options.tcp)?),
            Who::Qemu => Box::new(Qemu::start(dir, size, self.options.tcp, Durable::Nowhere)?),
            Who::QemuDurable => Box::new(Qemu::start(dir, size, self.options.tcp, Durable::Both)?),
            Who::Sync => Box::new(pair("sync")?),
            Who::Memsync => Box::new(pair("memsync")?),
            Who::Async => Box::new(pair("async")?),
            Who::Alone => {
                let mut pair = pair("sync")?;
                pair.lose_mirror()?;
                Box::new(pair)
            }
        })
    }

    /// Fails unless every mirror there is holds what its primary holds.
    pub fn check_copies(&mut self) -> anyhow::Result<()> {
        for (who, server) in &mut self.servers {
            check_copies(&mut **server).with_context(|| who.name())?;
        }
        Ok(())
    }

    /// A pair with one volume, of the size of all volumes.
    pub fn setup(&self, name: &'static str, ack: &'static str, journal: u64) -> Setup {
        Setup {
            name,
            ack,
            journal,
            size: self.options.size(),
            groups: 1,
            compress: "off",
            undo: true,
            tcp: self.options.tcp,
        }
    }
}
