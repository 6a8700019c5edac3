//! Torture: two sites in network namespaces, each on a small disk of its own; clients that record every
//! acknowledgement; and a schedule of faults that a seed decides. Afterwards everything that was acknowledged is there,
//! and both homes are the same, byte for byte.
//!
//! The schedule keeps to what a correct system survives: never is the only copy of something acknowledged destroyed, and
//! nobody is promoted unless the other held nothing more. So whatever is found wrong is wrong. Moments are those of the
//! machine: a seed repeats the faults, in their order and length, but not each step between them.
//!
//! `tools/torture` runs it for as long as one likes.

mod support;

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use doublure::base::Role;
use doublure::status::GroupState;
use rustix::process::Signal;
use support::fio::Rounds;
use support::mount::SmallDisk;
use support::nbd::ENOSPC;
use support::netns::Wire;
use support::site::{PATIENCE, serves_in_sync};
use support::tools::{eventually, root_or_skip, said};
use support::{Checker, Client, Dialect, Dice, MIB, Pair, Plan, Setup, Site, need};

/// The checker has the beginning of the volume, fio the rest.
const CHECKED: u64 = 48 * MIB;
/// Size of each site's file system: journal, state, home, and some air.
const DISK: u64 = 288 * MIB;
/// What a full disk still has: less than the margin that is kept for operations already promised.
const LEFT_ON_A_FULL_DISK: u64 = 40 * MIB;
/// How long one seed is tried before the next.
const EPISODE: Duration = Duration::from_mins(1);

/// One run with one seed.
struct Torture {
    seed: u64,
    dice: Dice,
    began: Instant,
    schedule: Vec<String>,
    /// Acknowledged in memory only: two crashes at once may lose something, and must not happen.
    memory_counts: bool,
    rounds: Option<Rounds>,
    pair: Pair,
    wire: Wire,
    disks: [SmallDisk; 2],
}

impl Drop for Torture {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        eprintln!("---- torture failed with seed {}; its schedule:", self.seed);
        for line in &self.schedule {
            eprintln!("{line}");
        }
        // The pair prints the ends of both logs; all of them are kept.
        let keep =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("torture-{}", self.seed));
        let _ = fs::create_dir_all(&keep);
        let _ = fs::write(keep.join("schedule"), self.schedule.join("\n"));
        for site in [&self.pair.clichy, &self.pair.chelles] {
            let _ = fs::write(keep.join(site.name), site.log());
        }
        eprintln!("---- whole logs: {}", keep.display());
    }
}

impl Torture {
    fn new(seed: u64) -> Torture {
        let mut dice = Dice::new(seed);
        // The first numbers of neighbouring seeds are alike.
        for _ in 0..8 {
            dice.roll();
        }
        let ack = if dice.below(4) == 0 {
            "memsync"
        } else {
            "sync"
        };
        let compress = ["", "compress = \"auto\""][dice.below(2) as usize];
        let setup = Setup {
            ack,
            timeout: "1s",
            journal: "32MiB",
            group_lines: compress,
            ..Setup::default()
        };
        let wire = Wire::new();
        let pair = Pair::on_wire(setup, &wire);
        let disks = [SmallDisk::new(DISK), SmallDisk::new(DISK)];
        for (site, disk) in [&pair.clichy, &pair.chelles].into_iter().zip(&disks) {
            std::os::unix::fs::symlink(disk.path(), site.data()).expect("a link");
        }
        let mut torture = Torture {
            seed,
            dice,
            began: Instant::now(),
            schedule: Vec::new(),
            memory_counts: ack == "memsync",
            rounds: None,
            pair,
            wire,
            disks,
        };
        torture.say(format!("seed {seed}: {ack}, {compress:?}"));
        torture
    }

    fn say(&mut self, what: impl Display) {
        let line = format!("{:8.3} s  {what}", self.began.elapsed().as_secs_f64());
        eprintln!("{line}");
        self.schedule.push(line);
    }

    fn run(mut self, length: Duration) {
        self.pair.start_both();
        let plan = Plan::new(self.seed, CHECKED);
        let checker = Checker::start(plan, self.pair.targets());
        let dir = self.pair.scratch().join("fio");
        let nbd = self.pair.clichy.dir.join("nbd");
        self.rounds = Some(Rounds::start(&dir, &nbd));
        checker.wait_for(100);
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.event();
            self.one_serves_at_most();
            let rounds = self.rounds.as_mut().expect("it runs").go_on();
            if self.dice.below(2) == 0 {
                self.in_sync();
                checker.wait_for(50);
                self.say(format!(
                    "in sync; {} acknowledged, fio in round {rounds}",
                    checker.acknowledged()
                ));
            } else {
                thread::sleep(Duration::from_millis(self.dice.below(500)));
            }
        }
        self.heal(checker);
    }

    /// The end: the sites agree with the record, each as primary, and with each other.
    fn heal(&mut self, checker: Checker) {
        self.say("heals");
        self.in_sync();
        checker.wait_for(50);
        let rounds = self.rounds.take().expect("it ran").finish();
        let mut verdict = checker.stop();
        let full = verdict.forgive(ENOSPC);
        verdict.assert_agrees(&self.pair.primary().target());
        // On a busy machine they may have lost each other once more until the last client had gone.
        self.in_sync();
        self.pair.stop_and_compare();
        verdict.assert_image_agrees(&self.pair.clichy.home());
        self.pair.start_both();
        self.pair.primary().order(&["switchover", "demo"]);
        self.in_sync();
        verdict.assert_agrees(&self.pair.primary().target());
        self.in_sync();
        self.pair.stop_and_compare();
        verdict.assert_image_agrees(&self.pair.chelles.home());
        self.say(format!(
            "clean: {} acknowledged, {full} refused for want of space, {rounds} rounds of fio",
            verdict.acknowledged
        ));
    }

    fn site(&mut self, at: usize) -> &mut Site {
        [&mut self.pair.clichy, &mut self.pair.chelles]
            .into_iter()
            .nth(at)
            .expect("two sites")
    }

    fn leads(&mut self, at: usize) -> bool {
        self.site(at)
            .try_group()
            .is_some_and(|g| g.role == Role::Primary)
    }

    /// The primary, by its own word, or the first site.
    fn lead(&mut self) -> usize {
        usize::from(!self.leads(0) && self.leads(1))
    }

    fn either(&mut self) -> usize {
        self.dice.below(2) as usize
    }

    /// Waits until the pair is in sync, and shows fio the way.
    fn in_sync(&mut self) {
        self.pair.wait_in_sync();
        let lead = self.lead();
        let nbd = self.site(lead).dir.join("nbd");
        if let Some(rounds) = &self.rounds {
            rounds.lead_to(&nbd);
        }
    }

    /// Mostly short, sometimes longer than it takes to declare a peer dead.
    fn a_while(&mut self) -> Duration {
        let most = [30, 300, 3000][self.dice.below(3) as usize];
        Duration::from_millis(self.dice.below(most))
    }

    fn one_serves_at_most(&mut self) {
        let serves = |site: &Site| Client::attach(&site.target(), "demo", Dialect::Simple).is_ok();
        let (a, b) = (&self.pair.clichy, &self.pair.chelles);
        // Asked again, because the role may have moved from one to the other meanwhile.
        assert!(!(serves(a) && serves(b) && serves(a)), "both sites serve");
    }

    fn event(&mut self) {
        match self.dice.below(16) {
            0 | 1 => self.kill_one(),
            2 => self.kill_both(),
            3 => self.kill_again_and_again(),
            4 => self.sleep(),
            5 | 6 => self.cut(),
            7 => self.flap(),
            8 => self.mute(),
            9 => self.slow(),
            10 => self.fill_disk(),
            11 => self.rot(),
            12 => self.switch_over(),
            13 => self.switch_over_and_kill(),
            14 => self.fail_over(),
            _ => self.disconnect(),
        }
    }

    fn kill_one(&mut self) {
        let (at, pause) = (self.either(), self.a_while());
        if self.memory_counts {
            self.in_sync();
        }
        let name = self.site(at).name;
        self.say(format!("kills {name} for {pause:?}"));
        self.site(at).kill();
        thread::sleep(pause);
        self.site(at).start();
        if self.memory_counts {
            self.in_sync();
        }
    }

    fn kill_both(&mut self) {
        let (first, between, pause, gap) = (
            self.either(),
            self.a_while(),
            self.a_while(),
            self.a_while(),
        );
        let back = self.either();
        if self.memory_counts {
            return;
        }
        let name = self.site(first).name;
        self.say(format!(
            "kills {name}, {between:?} later the other; {pause:?} later starts site {back}, {gap:?} later the other"
        ));
        self.site(first).kill();
        thread::sleep(between);
        self.site(1 - first).kill();
        thread::sleep(pause);
        self.site(back).start();
        thread::sleep(gap);
        self.site(1 - back).start();
    }

    fn kill_again_and_again(&mut self) {
        let at = self.either();
        let delays: Vec<u64> = (0..4).map(|_| self.dice.below(30_000)).collect();
        if self.memory_counts {
            self.in_sync();
        }
        let name = self.site(at).name;
        self.say(format!("kills {name} while it recovers: {delays:?} us"));
        self.site(at).kill();
        for delay in delays {
            self.site(at).spawn();
            thread::sleep(Duration::from_micros(delay));
            self.site(at).kill();
        }
        self.site(at).start();
    }

    fn sleep(&mut self) {
        let (at, pause) = (self.either(), self.a_while());
        let name = self.site(at).name;
        self.say(format!("stops {name} for {pause:?}"));
        self.site(at).signal(Signal::STOP);
        thread::sleep(pause);
        self.site(at).signal(Signal::CONT);
    }

    fn cut(&mut self) {
        let pause = self.a_while();
        self.say(format!("cuts the wire for {pause:?}"));
        self.wire.cut();
        thread::sleep(pause);
        self.wire.up();
    }

    fn flap(&mut self) {
        let pauses: Vec<u64> = (0..6).map(|_| self.dice.below(1500)).collect();
        self.say(format!("cuts and mends the wire after ms: {pauses:?}"));
        for pause in pauses.chunks(2) {
            self.wire.cut();
            thread::sleep(Duration::from_millis(pause[0]));
            self.wire.up();
            thread::sleep(Duration::from_millis(pause[1] / 3));
        }
    }

    fn mute(&mut self) {
        let (at, pause) = (self.either(), self.a_while());
        let name = self.site(at).name;
        self.say(format!("lets nothing from {name} through for {pause:?}"));
        self.wire.mute(at == 0);
        thread::sleep(pause);
        self.wire.unshape();
    }

    fn slow(&mut self) {
        let (at, pause) = (self.either(), self.a_while());
        let name = self.site(at).name;
        self.say(format!("slows down what {name} sends for {pause:?}"));
        self.wire.slow(at == 0);
        thread::sleep(pause);
        self.wire.unshape();
    }

    fn fill_disk(&mut self) {
        let (at, pause, kill) = (self.either(), self.a_while(), self.dice.below(4) == 0);
        let name = self.site(at).name;
        let kill = kill && !self.memory_counts;
        let then = if kill { " and kills it meanwhile" } else { "" };
        self.say(format!("fills the disk of {name} for {pause:?}{then}"));
        self.disks[at].fill(LEFT_ON_A_FULL_DISK);
        thread::sleep(pause);
        if kill {
            self.site(at).crash();
            thread::sleep(pause);
        }
        self.disks[at].empty();
    }

    /// Kills a site that was in sync. Whether the other then has everything: it has not if the killed one had just gone
    /// on alone.
    fn kill_in_sync(&mut self, at: usize) -> bool {
        loop {
            self.in_sync();
            let opened = epochs_opened(self.site(at));
            let lead = self.lead();
            if !self
                .site(lead)
                .try_group()
                .is_some_and(|g| serves_in_sync(&g))
            {
                continue;
            }
            self.site(at).kill();
            return epochs_opened(self.site(at)) == opened;
        }
    }

    fn rot(&mut self) {
        let at = self.either();
        let places: Vec<(u64, u64)> = (0..=self.dice.below(12))
            .map(|_| {
                (
                    self.dice.below(32 * MIB / 512) * 512,
                    1 + self.dice.below(4096),
                )
            })
            .collect();
        let name = self.site(at).name;
        let rots = self.kill_in_sync(at);
        self.say(format!(
            "kills {name} in sync; the other has all of it: {rots}"
        ));
        if rots {
            self.say(format!(
                "the journal of {name} rots at (offset, bytes) {places:?}"
            ));
            let journal = self.site(at).data().join("demo/journal");
            let file = OpenOptions::new()
                .write(true)
                .open(journal)
                .expect("a journal");
            for (offset, len) in places {
                let noise: Vec<u8> = (0..len)
                    .map(|n| (n * 37 + offset / 512) as u8 ^ 0xa5)
                    .collect();
                let len = noise.len().min((32 * MIB - offset) as usize);
                file.write_all_at(&noise[..len], offset).expect("written");
            }
            // Pages that are still on their way to the disk get between the daemon's direct writes, and the kernel calls that
            // EIO: a fault that nobody here has asked for.
            file.sync_all().expect("synced");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
        }
        self.site(at).start();
        // One copy at a time.
        self.in_sync();
    }

    fn switch_over(&mut self) {
        self.in_sync();
        let lead = self.lead();
        let name = self.site(lead).name;
        let output = self.site(lead).cli(&["switchover", "demo"]);
        // Flapping shortly before may have made them lose each other again: then it is refused.
        self.say(format!("switchover from {name}: {}", said(&output).trim()));
    }

    fn switch_over_and_kill(&mut self) {
        let (victim, delay) = (self.either(), self.dice.below(20_000));
        self.in_sync();
        let lead = self.lead();
        let names = (self.site(lead).name, self.site(victim).name);
        self.say(format!(
            "switchover from {}, kills {} after {delay} us",
            names.0, names.1
        ));
        let sites = [&self.pair.clichy, &self.pair.chelles];
        thread::scope(|scope| {
            let ordering = scope.spawn(|| sites[lead].cli(&["switchover", "demo"]));
            thread::sleep(Duration::from_micros(delay));
            sites[victim].signal(Signal::KILL);
            ordering.join().unwrap();
        });
        self.site(victim).crash();
        self.in_sync();
    }

    fn fail_over(&mut self) {
        let (pause, gap) = (self.a_while(), self.a_while());
        self.in_sync();
        let lead = self.lead();
        let name = self.site(lead).name;
        let complete = self.kill_in_sync(lead);
        self.say(format!(
            "kills {name} in sync; the other has all of it: {complete}"
        ));
        if complete {
            thread::sleep(pause);
            let other = self.site(1 - lead);
            other.wait_state(GroupState::Disconnected);
            other.order(&["promote", "demo", "--force", "peer-unreachable"]);
            let name = other.name;
            self.say(format!(
                "{name} is promoted; the old primary returns after {gap:?}"
            ));
            thread::sleep(gap);
        }
        self.site(lead).start();
        self.in_sync();
    }

    fn disconnect(&mut self) {
        let (at, pause) = (self.either(), self.a_while());
        let name = self.site(at).name;
        self.say(format!("disconnects {name} for {pause:?}"));
        self.site(at).cli(&["disconnect", "demo"]);
        thread::sleep(pause);
        eventually("it connects again", PATIENCE, || {
            self.pair.clichy.cli(&["connect", "demo"]).status.success()
                | self.pair.chelles.cli(&["connect", "demo"]).status.success()
        });
    }
}

/// How often this site began to serve, alone or not: it says so before it acknowledges anything.
fn epochs_opened(site: &Site) -> usize {
    site.log().matches(" opened at LSN ").count()
}

fn possible() -> bool {
    need(&[
        "ip",
        "tc",
        "fio",
        "nbdkit",
        "mkfs.ext4",
        "losetup",
        "fallocate",
    ]);
    root_or_skip("torture with network namespaces and file systems")
}

#[test]
fn nothing_acknowledged_is_lost_in_some_seconds_of_torture() {
    if possible() {
        Torture::new(1).run(Duration::from_secs(12));
    }
}

/// As long and with the seed that `tools/torture` says.
#[test]
#[ignore = "runs for as long as tools/torture says"]
fn nothing_acknowledged_is_lost_for_as_long_as_one_likes() {
    if !possible() {
        return;
    }
    let said = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let length = said("DOUBLURE_TORTURE_FOR").map_or(EPISODE, |text| {
        humantime::parse_duration(&text).expect("a time such as 5m")
    });
    if let Some(seed) = said("DOUBLURE_TORTURE_SEED") {
        return Torture::new(seed.parse().expect("a number")).run(length);
    }
    let end = Instant::now() + length;
    let mut seed = u64::from(std::process::id()) << 20 | u64::from(now().subsec_micros());
    while Instant::now() < end {
        Torture::new(seed).run(EPISODE.min(end.saturating_duration_since(Instant::now())));
        seed += 1;
    }
}

fn now() -> Duration {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970")
}
