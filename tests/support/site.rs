//! Sites that run the real program in a directory of their own.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use doublure::status::{GroupState, GroupStatus, PeerState, SiteStatus};

use super::nbd::Target;
use super::tools::{Command, command, said, succeeded};

/// How long anything may take that is not under a test's control. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The program under test.
pub fn program() -> PathBuf {
    std::env::var_os("DOUBLURE_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_doublure").into(), PathBuf::from)
}

/// An address nobody else uses: a loopback address made of the process id, a port of a counter.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(10_810);
    let [_, a, b, c] = (std::process::id() << 2 | 2).to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, a, b, c), NEXT.fetch_add(1, Relaxed)))
}

/// What may differ between the pairs of tests.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub ack: &'static str,
    pub on_peer_loss: &'static str,
    pub timeout: &'static str,
    pub journal: &'static str,
    /// Bytes, a multiple of a mebibyte.
    pub size: u64,
    /// More lines for the group.
    pub group_lines: &'static str,
    /// Whether the mirror's configuration names the volume too.
    pub mirror_knows_volume: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            ack: "sync",
            on_peer_loss: "continue",
            timeout: "5s",
            journal: "64MiB",
            size: 64 << 20,
            group_lines: "",
            mirror_knows_volume: true,
        }
    }
}

/// One site.
pub struct Site {
    pub name: &'static str,
    pub dir: PathBuf,
    pub nbd: SocketAddr,
    pub link: SocketAddr,
    pub http: SocketAddr,
    netns: Option<String>,
    child: Option<Child>,
}

/// A primary and a mirror of the group `demo` with the volume `demo`.
pub struct Pair {
    /// Primary at the first start.
    pub clichy: Site,
    /// Mirror at the first start.
    pub chelles: Site,
    /// What both were configured with.
    pub setup: Setup,
    dir: tempfile::TempDir,
}

impl Pair {
    /// Writes the configurations; starts nothing.
    pub fn new(setup: Setup) -> Pair {
        Pair::between(setup, None)
    }

    /// Both ends of a wire: the sites run in its namespaces and reach each other at its addresses.
    pub fn on_wire(setup: Setup, wire: &super::netns::Wire) -> Pair {
        Pair::between(setup, Some(wire))
    }

    fn between(setup: Setup, wire: Option<&super::netns::Wire>) -> Pair {
        let dir = tempfile::Builder::new()
            .prefix("dbl")
            .tempdir()
            .expect("a temporary directory");
        let site = |name: &'static str| {
            let site = Site {
                name,
                dir: dir.path().join(name),
                nbd: free_address(),
                link: free_address(),
                http: free_address(),
                netns: None,
                child: None,
            };
            fs::create_dir(&site.dir).expect("a fresh directory");
            site
        };
        let mut pair = Pair {
            clichy: site("clichy"),
            chelles: site("chelles"),
            setup,
            dir,
        };
        if let Some(wire) = wire {
            pair.clichy.netns = Some(wire.left().to_owned());
            pair.chelles.netns = Some(wire.right().to_owned());
            pair.clichy.link = format!("{}:10810", super::netns::LEFT)
                .parse()
                .expect("an address");
            pair.chelles.link = format!("{}:10810", super::netns::RIGHT)
                .parse()
                .expect("an address");
        }
        let (clichy, chelles) = (&pair.clichy, &pair.chelles);
        clichy.write_config(&pair.setup, "primary", chelles, true);
        chelles.write_config(
            &pair.setup,
            "mirror",
            clichy,
            pair.setup.mirror_knows_volume,
        );
        pair
    }

    /// Starts both and waits until they are in sync.
    pub fn start(setup: Setup) -> Pair {
        let mut pair = Pair::new(setup);
        pair.start_both();
        pair
    }

    /// Starts both, again or for the first time, and waits until they are in sync.
    pub fn start_both(&mut self) {
        self.chelles.start();
        self.clichy.start();
        self.wait_in_sync();
    }

    /// Waits until one of the sites serves and says that the other is in sync.
    pub fn wait_in_sync(&self) {
        super::tools::eventually("the pair is in sync", PATIENCE, || {
            [&self.clichy, &self.chelles]
                .iter()
                .any(|s| s.try_group().is_some_and(|g| serves_in_sync(&g)))
        });
    }

    /// The site that is primary by its own word.
    pub fn primary(&self) -> &Site {
        let both = [&self.clichy, &self.chelles];
        both.into_iter()
            .find(|s| {
                s.try_group()
                    .is_some_and(|g| g.role == doublure::base::Role::Primary)
            })
            .expect("a primary")
    }

    /// Where a client may find the volume, whoever is primary.
    pub fn targets(&self) -> Vec<Target> {
        vec![self.clichy.target(), self.chelles.target()]
    }

    /// Stops both cleanly, the primary first so that the mirror has everything.
    pub fn stop_both(&mut self) {
        let clichy_leads = self
            .clichy
            .try_group()
            .is_some_and(|g| g.role == doublure::base::Role::Primary);
        let (first, second) = if clichy_leads {
            (&mut self.clichy, &mut self.chelles)
        } else {
            (&mut self.chelles, &mut self.clichy)
        };
        for site in [first, second] {
            let status = site.stop();
            assert!(status.success(), "{} stops cleanly: {status}", site.name);
        }
    }

    /// Stops both cleanly and fails unless their homes are the same, byte for byte.
    pub fn stop_and_compare(&mut self) {
        self.stop_both();
        super::tools::assert_same_bytes(&self.clichy.home(), &self.chelles.home());
    }

    /// The directory of the pair, for whatever else a test makes.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for site in [&self.clichy, &self.chelles] {
                site.tell_state();
            }
        }
        // The daemons first, then their directory.
        self.clichy.kill();
        self.chelles.kill();
    }
}

/// Serving, and every peer in sync.
pub fn serves_in_sync(group: &GroupStatus) -> bool {
    group.state == GroupState::Serving
        && !group.peers.is_empty()
        && group.peers.iter().all(|p| p.state == PeerState::InSync)
}

impl Site {
    fn write_config(&self, setup: &Setup, role: &str, peer: &Site, with_volume: bool) {
        let dir = self.dir.display();
        let mut text = String::new();
        writeln!(text, "[site]").unwrap();
        writeln!(text, "name = \"{}\"", self.name).unwrap();
        writeln!(text, "data = \"{dir}/data\"").unwrap();
        writeln!(text, "nbd = [\"unix:{dir}/nbd\", \"{}\"]", self.nbd).unwrap();
        writeln!(text, "link = \"{}\"", self.link).unwrap();
        writeln!(text, "control = \"unix:{dir}/control\"").unwrap();
        writeln!(text, "http = \"{}\"", self.http).unwrap();
        writeln!(text, "\n[[group]]\nname = \"demo\"\nrole = \"{role}\"").unwrap();
        writeln!(text, "ack = \"{}\"", setup.ack).unwrap();
        writeln!(text, "journal = \"{}\"", setup.journal).unwrap();
        writeln!(
            text,
            "peers = [{{ site = \"{}\", link = \"{}\" }}]",
            peer.name, peer.link
        )
        .unwrap();
        writeln!(text, "on_peer_loss = \"{}\"", setup.on_peer_loss).unwrap();
        writeln!(
            text,
            "timeout = \"{}\"\n{}",
            setup.timeout, setup.group_lines
        )
        .unwrap();
        if with_volume {
            writeln!(
                text,
                "\n[[group.volume]]\nname = \"demo\"\nsize = \"{}\"",
                setup.size
            )
            .unwrap();
        }
        fs::write(self.config(), text).expect("the configuration is written");
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("site.toml")
    }

    /// The image that the journal is applied to.
    pub fn home(&self) -> PathBuf {
        self.dir.join("data/demo/demo.home")
    }

    /// Journals, homes and state.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where the volume is exported, for our own client.
    pub fn target(&self) -> Target {
        Target::Unix(self.dir.join("nbd"))
    }

    /// Where the volume is exported, for everybody else.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///demo?socket={}", self.dir.join("nbd").display())
    }

    /// The same over TCP.
    pub fn tcp_uri(&self) -> String {
        format!("nbd://{}/demo", self.nbd)
    }

    fn serve(&self) -> Command {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        let mut serve = match &self.netns {
            None => command(program().to_str().expect("a path in UTF-8")),
            Some(netns) => {
                let mut ip = command("ip");
                ip.args(["netns", "exec", netns]).arg(program());
                ip
            }
        };
        serve
            .args(["serve", "-c"])
            .arg(self.config())
            .env("NOTIFY_SOCKET", self.dir.join("notify"))
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        serve
    }

    /// Starts without waiting for anything.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        self.child = Some(self.serve().spawn().expect("the program starts"));
    }

    /// Starts and waits for `READY=1`.
    pub fn start(&mut self) {
        if let Err(why) = self.try_start() {
            panic!("{}: {why}\n{}", self.name, self.log());
        }
    }

    /// Starts and waits for `READY=1`, or for its end.
    pub fn try_start(&mut self) -> Result<(), String> {
        let path = self.dir.join("notify");
        let _ = fs::remove_file(&path);
        let notify = UnixDatagram::bind(&path).expect("a socket");
        notify
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a timeout");
        self.spawn();
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            if let Ok(len) = notify.recv(&mut buffer)
                && String::from_utf8_lossy(&buffer[..len])
                    .lines()
                    .any(|line| line == "READY=1")
            {
                return Ok(());
            }
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().ok().flatten())
            {
                self.child = None;
                return Err(format!("ended with {status} instead of getting ready"));
            }
            if Instant::now() > deadline {
                return Err(format!("not ready after {PATIENCE:?}"));
            }
        }
    }

    /// Whether the daemon was started and has not been stopped.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// SIGKILL, as a power cut would do to a process.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        let mut child = self.child.take().expect("a running daemon");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("a child") {
                return status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!(
                    "{} does not stop within {PATIENCE:?} of SIGTERM\n{}",
                    self.name,
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().expect("a running daemon"));
        rustix::process::kill_process(pid, signal).expect("a signal");
    }

    /// SIGKILL and a new start.
    pub fn crash(&mut self) {
        self.kill();
        self.start();
    }

    /// Memory in use, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let pid = self.child.as_ref().expect("a running daemon").id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let line = status
            .lines()
            .find(|l| l.starts_with("VmRSS:"))
            .expect("VmRSS");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse::<u64>().ok())
            .expect("a number")
            * 1024
    }

    /// What the control API says; `None` if it does not answer.
    pub fn try_status(&self) -> Option<SiteStatus> {
        let body = self.http_over(
            UnixStream::connect(self.dir.join("control")).ok()?,
            "/v1/status",
        )?;
        Some(
            serde_json::from_str(&body)
                .unwrap_or_else(|e| panic!("{}: status: {e}: {body}", self.name)),
        )
    }

    /// A GET on the control socket or another connection; the body of a 200.
    fn http_over(&self, mut stream: UnixStream, path: &str) -> Option<String> {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.name
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    /// The group, if the control API answers.
    pub fn try_group(&self) -> Option<GroupStatus> {
        self.child.as_ref()?;
        self.try_status()?
            .groups
            .into_iter()
            .find(|g| g.name == "demo")
    }

    /// The group.
    pub fn group(&self) -> GroupStatus {
        self.try_group()
            .unwrap_or_else(|| panic!("{} does not tell its status\n{}", self.name, self.log()))
    }

    /// Waits until the group is as wanted.
    pub fn wait_until(&self, what: &str, wanted: impl Fn(&GroupStatus) -> bool) -> GroupStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let group = self.try_group();
            if let Some(group) = &group
                && wanted(group)
            {
                return group.clone();
            }
            assert!(
                Instant::now() < deadline,
                "{}: waited {PATIENCE:?} in vain: {what}; the last status was {group:#?}",
                self.name
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a state.
    pub fn wait_state(&self, state: GroupState) -> GroupStatus {
        self.wait_until(&format!("{state:?}"), |g| g.state == state)
    }

    /// Waits until this site serves with its peer in sync.
    pub fn wait_in_sync(&self) -> GroupStatus {
        self.wait_until("serving in sync", serves_in_sync)
    }

    /// Runs a client command against this site.
    pub fn cli(&self, words: &[&str]) -> Output {
        let mut cli = command(program().to_str().expect("a path in UTF-8"));
        cli.args(words)
            .arg("--socket")
            .arg(format!("unix:{}", self.dir.join("control").display()));
        cli.output().expect("the program runs")
    }

    /// Runs a client command that must succeed.
    pub fn order(&self, words: &[&str]) -> String {
        succeeded(
            &format!("{}: doublure {words:?}", self.name),
            &self.cli(words),
        )
    }

    /// Runs a client command that must be refused with exit code 1; returns what it said.
    pub fn refused(&self, words: &[&str]) -> String {
        let output = self.cli(words);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{}: doublure {words:?}: {}",
            self.name,
            said(&output)
        );
        said(&output)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What the daemon logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn tell_state(&self) {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        eprintln!("---- {}: the end of its log", self.name);
        for line in &lines[lines.len().saturating_sub(60)..] {
            eprintln!("{line}");
        }
        match self.try_group() {
            None => eprintln!("---- {}: no status", self.name),
            Some(g) => eprintln!(
                "---- {}: {} {:?}: {}; tail {} durable {} commit {} applied {} checkpoint {}; alone {:?}; peers {:?}",
                self.name,
                g.role,
                g.state,
                g.reason,
                g.tail_lsn,
                g.durable_lsn,
                g.commit_lsn,
                g.applied_lsn,
                g.checkpoint_lsn,
                g.alone,
                g.peers
            ),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}
