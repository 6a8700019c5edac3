//! fio's nbd engine, which checks what it reads against what it wrote.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use super::tools::{Command, Running, command, eventually};

/// Sections of a job on a volume of 64 MiB: sizes from 512 bytes to 1 MiB, small ones, and trims beside them.
const JOB: &str = "
[global]
ioengine=nbd
uri=${URI}
iodepth=32
verify=crc32c
verify_fatal=1
randseed=7
[mixed]
rw=randwrite
bssplit=512/20:4k/30:12k/10:64k/20:256k/10:1m/10
size=32M
fsync=128
loops=${LOOPS}
rate=${RATE}
[unaligned]
rw=randwrite
offset=48M
size=8M
bsrange=512-16k
rate=${RATE}
[trim]
rw=randtrim
verify=0
offset=56M
size=8M
bsrange=512-64k
rate=${RATE}
";

/// Writes and trims at depth 32, then reads back what it wrote.
pub fn write_and_verify(dir: &Path, uri: &str) -> Command {
    fio(dir, uri, &[])
}

/// The same, but slow enough (bytes a second and job, as fio writes them) that things can happen meanwhile.
pub fn write_slowly_and_verify(dir: &Path, uri: &str, rate: &str) -> Child {
    let mut fio = fio(dir, uri, &[]);
    fio.env("RATE", rate);
    fio.stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    fio.spawn().expect("fio starts")
}

/// Only reads back what the others wrote.
pub fn verify_again(dir: &Path, uri: &str) -> Command {
    fio(
        dir,
        uri,
        &["--verify_only=1", "--section=mixed", "--section=unaligned"],
    )
}

/// Any other job.
pub fn job(dir: &Path, uri: &str, text: &str, words: &[&str]) -> Command {
    let file = dir.join("job.fio");
    std::fs::write(&file, text).expect("a job file");
    let mut fio = command("fio");
    // fio takes a colon in a URI literally only from the environment.
    fio.args(words)
        .arg(file)
        .env("URI", uri)
        .env("LOOPS", "1")
        .env("RATE", "0")
        .current_dir(dir);
    fio
}

fn fio(dir: &Path, uri: &str, words: &[&str]) -> Command {
    job(dir, uri, JOB, words)
}

/// One round of a run that goes on for as long as a test likes: a few seconds of writing to the end of a volume
/// of 64 MiB, then reading them back.
const ROUND: &str = "
[global]
ioengine=nbd
uri=${URI}
iodepth=8
verify=crc32c
verify_fatal=1
[round]
rw=randwrite
offset=52M
size=4M
bssplit=512/20:4k/40:12k/10:64k/30
rate=1500k
";

/// fio, round after round, on a volume that moves from site to site: nbdkit in between connects again and sends again
/// what was not answered.
pub struct Rounds {
    fio: Option<Running>,
    _nbdkit: Running,
    dir: PathBuf,
    uri: String,
    begun: u64,
}

impl Rounds {
    /// Starts at the site with this socket; everything happens in this directory.
    pub fn start(dir: &Path, socket: &Path) -> Rounds {
        std::fs::create_dir_all(dir).expect("a directory");
        let door = dir.join("door");
        let mut nbdkit = command("nbdkit");
        nbdkit
            .args(["--foreground", "--filter=retry", "--unix"])
            .arg(&door)
            .arg("nbd");
        nbdkit.arg(format!(
            "uri=nbd+unix:///demo?socket={}",
            dir.join("current").display()
        ));
        nbdkit.args(["retries=100000", "retry-delay=1", "retry-exponential=no"]);
        nbdkit
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("nbdkit.log")).expect("a log"));
        lead_to(dir, socket);
        let mut rounds = Rounds {
            fio: None,
            _nbdkit: Running::start(&mut nbdkit),
            dir: dir.to_owned(),
            uri: format!("nbd+unix:///demo?socket={}", door.display()),
            begun: 0,
        };
        eventually("nbdkit listens", Duration::from_secs(30), || door.exists());
        rounds.next();
        rounds
    }

    fn next(&mut self) {
        self.begun += 1;
        let seed = format!("--randseed={}", self.begun);
        let mut fio = job(&self.dir, &self.uri, ROUND, &[&seed]);
        let log = File::create(self.dir.join("fio.log")).expect("a log");
        fio.stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        self.fio = Some(Running::start(&mut fio));
    }

    /// The volume is now served at this socket.
    pub fn lead_to(&self, socket: &Path) {
        lead_to(&self.dir, socket);
    }

    /// Fails if a round failed; begins the next one if one is over. Says how many there were.
    pub fn go_on(&mut self) -> u64 {
        if self.is_over() {
            self.next();
        }
        self.begun
    }

    fn is_over(&mut self) -> bool {
        let Some(fio) = &mut self.fio else {
            return true;
        };
        let Some(status) = fio.0.try_wait().expect("a child") else {
            return false;
        };
        let said = std::fs::read_to_string(self.dir.join("fio.log")).unwrap_or_default();
        // nbdkit tries again only once it was connected.
        let began = !said.contains("nbd_connect_uri");
        assert!(
            status.success() || !began,
            "fio: round {}: {status}\n{said}",
            self.begun
        );
        if !began {
            self.begun -= 1;
        }
        self.fio = None;
        true
    }

    /// Waits for the end of the round.
    pub fn finish(mut self) -> u64 {
        eventually("fio ends its round", Duration::from_mins(2), || {
            self.is_over()
        });
        self.begun
    }
}

fn lead_to(dir: &Path, socket: &Path) {
    let (fresh, current) = (dir.join("fresh"), dir.join("current"));
    let _ = std::fs::remove_file(&fresh);
    std::os::unix::fs::symlink(socket, &fresh).expect("a link");
    std::fs::rename(&fresh, &current).expect("renamed");
}
