//! Two sites of doublure, as an operator would run them, with their journals and homes on the disk that is measured.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use doublure::status::{GroupState, GroupStatus, PeerState, SiteStatus};

use super::{Candidate, Counts, Meter, STEP};
use crate::load::{Durable, Job, Load, Pattern, Until};
use crate::nbd::{Address, Door};
use crate::payload::Data;
use crate::place::{address, free_port};
use crate::process::{PATIENCE, Process, eventually};

/// What a pair is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    pub name: &'static str,
    pub ack: &'static str,
    /// Bytes.
    pub journal: u64,
    /// Size of each volume, bytes.
    pub size: u64,
    /// Groups of one volume each.
    pub groups: usize,
    pub compress: &'static str,
    /// A copy keeps what it replaces (`resync_undo`), as it does unless configured otherwise.
    pub undo: bool,
    /// Clients connect over TCP.
    pub tcp: bool,
}

/// One site.
pub struct Site {
    part: &'static str,
    dir: PathBuf,
    nbd: Address,
    process: Option<Process>,
}

/// A primary and its mirror.
pub struct Pair {
    pub setup: Setup,
    pub primary: Site,
    pub mirror: Site,
}

impl Pair {
    /// Configures both, starts both, waits until they are in sync.
    pub fn start(dir: &Path, setup: Setup) -> anyhow::Result<Pair> {
        let dir = dir.join(setup.name);
        let site = |part: &'static str| -> anyhow::Result<Site> {
            Ok(Site {
                part,
                dir: dir.join(part),
                nbd: address(&dir.join(part), setup.tcp)?,
                process: None,
            })
        };
        let mut pair = Pair {
            primary: site("primary")?,
            mirror: site("mirror")?,
            setup,
        };
        let ports = [free_port()?, free_port()?];
        pair.primary
            .configure(&pair.setup, &pair.mirror, ports[0], ports[1])?;
        pair.mirror
            .configure(&pair.setup, &pair.primary, ports[1], ports[0])?;
        pair.mirror.start()?;
        pair.primary.start()?;
        pair.wait_in_sync(PATIENCE)?;
        Ok(pair)
    }

    /// Starts a pair and writes to every block of its volumes once, so that none of them is a hole any more.
    pub fn filled(dir: &Path, setup: Setup) -> anyhow::Result<Pair> {
        let mut pair = Pair::start(dir, setup)?;
        pair.fill(Pattern::Sequential, 1 << 20, pair.setup.size, 0)?;
        super::forget(&mut pair)?;
        Ok(pair)
    }

    /// Writes so many bytes to each volume; every run with another seed writes other bytes.
    pub fn fill(
        &mut self,
        pattern: Pattern,
        block: u32,
        bytes: u64,
        seed: u64,
    ) -> anyhow::Result<()> {
        let before = self.counts()?.writes;
        let wanted = bytes / u64::from(block) * self.setup.groups as u64;
        let job = Job {
            writes_percent: 100,
            pattern,
            block,
            depth: if block > 65_536 { 8 } else { 32 } * self.setup.groups,
            connections: 1,
            durable: Durable::No,
            data: Data::Random,
            span: 0,
        };
        let done = std::sync::atomic::AtomicBool::new(false);
        let doors = self.doors();
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                Load::connect(&doors, job, seed)?.run(
                    Duration::ZERO,
                    Until::Told(&done),
                    |_| Ok(()),
                )
            });
            let enough = eventually("the volumes are filled", STEP, 5 * PATIENCE, || {
                ensure!(!load.is_finished(), "the load ended by itself");
                Ok((self.counts()?.writes - before >= wanted).then_some(()))
            });
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            load.join().expect("no panic")?;
            enough
        })
    }

    /// Waits until every group serves with its mirror in sync; says how long that took.
    pub fn wait_in_sync(&self, patience: Duration) -> anyhow::Result<Duration> {
        let since = Instant::now();
        eventually("the sites are in sync", STEP, patience, || {
            let groups = self.primary.groups();
            Ok(groups
                .is_some_and(|g| g.len() == self.setup.groups && g.iter().all(in_sync))
                .then_some(()))
        })?;
        Ok(since.elapsed())
    }

    /// Ends both and gives the space on the disk back.
    pub fn remove(&mut self) -> anyhow::Result<()> {
        self.primary.kill();
        self.mirror.kill();
        for site in [&self.primary, &self.mirror] {
            std::fs::remove_dir_all(&site.dir)?;
        }
        Ok(())
    }

    /// Kills the mirror, and waits until the primary goes on alone.
    pub fn lose_mirror(&mut self) -> anyhow::Result<()> {
        self.mirror.kill();
        eventually("the primary goes on alone", STEP, PATIENCE, || {
            let groups = self.primary.groups().unwrap_or_default();
            Ok(groups
                .iter()
                .all(|g| g.state == GroupState::Alone || g.alone.is_some())
                .then_some(()))
        })
    }
}

/// Serving, and every peer in sync.
pub fn in_sync(group: &GroupStatus) -> bool {
    group.state == GroupState::Serving && group.peers.iter().all(|p| p.state == PeerState::InSync)
}

impl Site {
    fn configure(
        &self,
        setup: &Setup,
        peer: &Site,
        port: u16,
        peer_port: u16,
    ) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let dir = self.dir.display();
        let (role, size, journal) = (self.part, setup.size, setup.journal);
        let nbd = match &self.nbd {
            Address::Unix(path) => format!("unix:{}", path.display()),
            Address::Tcp(address) => address.to_string(),
        };
        let mut text = format!(
            "[site]\nname = \"{role}\"\ndata = \"{dir}/data\"\nnbd = [\"{nbd}\"]\n\
             link = \"127.0.0.1:{port}\"\ncontrol = \"unix:{dir}/control\"\n"
        );
        for group in 0..setup.groups {
            write!(
                text,
                "\n[[group]]\nname = \"g{group}\"\nrole = \"{role}\"\nack = \"{}\"\ncompress = \"{}\"\njournal = {journal}\n\
                 peers = [{{ site = \"{}\", link = \"127.0.0.1:{peer_port}\" }}]\non_peer_loss = \"continue\"\n\
                 timeout = \"2s\"\nscrub = \"off\"\nresync_undo = {}\n[[group.volume]]\nname = \"v{group}\"\nsize = {size}\n",
                setup.ack, setup.compress, peer.part, setup.undo
            )?;
        }
        Ok(std::fs::write(self.dir.join("site.toml"), text)?)
    }

    /// Starts it and waits for `READY=1`.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let notify = self.dir.join("notify");
        let _ = std::fs::remove_file(&notify); // there is none at the first start
        let ready = UnixDatagram::bind(&notify)?;
        ready.set_read_timeout(Some(Duration::from_millis(100)))?;
        self.spawn()?;
        let dir = self.dir.clone();
        let process = self.process.as_mut().expect("just started");
        eventually("doublure is ready", Duration::ZERO, PATIENCE, || {
            process.check().with_context(|| log_end(&dir.join("log")))?;
            let mut said = [0; 4096];
            let Ok(len) = ready.recv(&mut said) else {
                return Ok(None);
            };
            let said = String::from_utf8_lossy(&said[..len]);
            Ok(said.lines().any(|l| l == "READY=1").then_some(()))
        })
    }

    /// Starts it and waits for nothing.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(program());
        command
            .args(["serve", "-c"])
            .arg(self.dir.join("site.toml"))
            .env("NOTIFY_SOCKET", self.dir.join("notify"));
        self.process = Some(Process::start(self.part, &command, &self.dir.join("log"))?);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The export of a group.
    pub fn door(&self, group: usize) -> Door {
        Door {
            address: self.nbd.clone(),
            export: format!("v{group}"),
        }
    }

    /// The home of a group's volume.
    pub fn home(&self, group: usize) -> PathBuf {
        self.dir.join(format!("data/g{group}/v{group}.home"))
    }

    /// The journal of a group.
    pub fn journal(&self, group: usize) -> PathBuf {
        self.dir.join(format!("data/g{group}/journal"))
    }

    /// What it says about itself, if it answers.
    pub fn status(&self) -> Option<SiteStatus> {
        Site::status_of(&self.dir)
    }

    fn status_of(dir: &Path) -> Option<SiteStatus> {
        let mut stream = UnixStream::connect(dir.join("control")).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .ok()?;
        write!(
            stream,
            "GET /v1/status HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        if !head.starts_with("HTTP/1.1 200") {
            return None;
        }
        serde_json::from_str(body).ok()
    }

    /// Its only group.
    pub fn group(&self) -> anyhow::Result<GroupStatus> {
        let groups = self.groups().context("a site tells no status")?;
        groups.into_iter().next().context("a site without a group")
    }

    pub fn groups(&self) -> Option<Vec<GroupStatus>> {
        Some(self.status()?.groups)
    }

    /// Gives an operator's order.
    pub fn order(&self, words: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(program())
            .args(words)
            .arg("--socket")
            .arg(format!("unix:{}", self.dir.join("control").display()))
            .output()?;
        ensure!(
            output.status.success(),
            "doublure {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// The program that is measured.
pub fn program() -> PathBuf {
    std::env::var_os("DOUBLURE_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_doublure").into(), PathBuf::from)
}

fn log_end(path: &Path) -> String {
    let log = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

impl Candidate for Pair {
    fn doors(&self) -> Vec<Door> {
        (0..self.setup.groups)
            .map(|g| self.primary.door(g))
            .collect()
    }

    fn processes(&self) -> Vec<(&'static str, u32)> {
        [&self.primary, &self.mirror]
            .iter()
            .filter_map(|site| Some((site.part, site.pid()?)))
            .collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        (0..self.setup.groups)
            .flat_map(|g| [self.primary.home(g), self.mirror.home(g)])
            .collect()
    }

    fn drain(&mut self) -> anyhow::Result<()> {
        if self.mirror.pid().is_some() {
            eventually("the mirror has it all", STEP, PATIENCE, || {
                let groups = self.primary.groups().unwrap_or_default();
                // One that was cut off is not waited for.
                let level = |g: &GroupStatus| {
                    g.alone.is_some() || g.peers.iter().all(|p| p.received_lsn == g.tail_lsn)
                };
                Ok((!groups.is_empty() && groups.iter().all(level)).then_some(()))
            })?;
        }
        for site in [&self.primary, &self.mirror] {
            if site.pid().is_none() {
                continue;
            }
            eventually("all is in the homes", STEP, PATIENCE, || {
                let groups = site.groups().unwrap_or_default();
                let done = |g: &GroupStatus| g.unapplied_bytes == 0 && g.in_flight_requests == 0;
                Ok((!groups.is_empty() && groups.iter().all(done)).then_some(()))
            })?;
        }
        Ok(())
    }

    fn counts(&mut self) -> anyhow::Result<Counts> {
        let primary = self
            .primary
            .status()
            .context("the primary tells no status")?;
        let mirror = self.mirror.status();
        let mut counts = Counts::default();
        for site in [Some(&primary), mirror.as_ref()].into_iter().flatten() {
            counts.ring_enters += site.shards.iter().map(|s| s.ring_enters).sum::<u64>();
        }
        for group in &primary.groups {
            counts.writes += group.totals.writes;
            counts.journal_bytes += group.totals.journal_bytes;
            counts.checkpoints += group.totals.checkpoints;
        }
        Ok(counts)
    }

    fn journal(&self) -> Option<u64> {
        Some(self.setup.journal)
    }

    fn meter(&self) -> Option<Meter> {
        let dir = self.primary.dir.clone();
        Some(Box::new(move || {
            let status = Site::status_of(&dir).context("the primary tells no status")?;
            Ok(status.groups.iter().map(|g| g.totals.journal_bytes).sum())
        }))
    }
}
