//! Running the tools of others and saying plainly what went wrong.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

pub use std::process::Command;

/// Fails unless these programs are there, and says how to get them.
pub fn need(programs: &[&str]) {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| {
            !path
                .split(':')
                .any(|dir| Path::new(dir).join(program).exists())
        })
        .collect();
    assert!(
        missing.is_empty(),
        "this test needs {missing:?}; `tools/install-test-deps` installs all that is needed"
    );
}

/// A command of ours or of Debian's, found also where only root looks.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null());
    command
}

/// Runs to the end; fails with everything it printed unless it succeeds. Returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    succeeded(&format!("{command:?}"), &output)
}

/// Runs a shell script, with `set -e`.
pub fn shell(script: &str) -> String {
    run(command("bash").args(["-euo", "pipefail", "-c", script]))
}

/// Fails with everything a program printed unless it succeeded.
pub fn succeeded(what: &str, output: &Output) -> String {
    let text = said(output);
    assert!(output.status.success(), "{what}\n{}\n{text}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard output and standard error.
pub fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A program that is killed when the test is done with it.
pub struct Running(pub Child);

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Running {
        Running(
            command
                .spawn()
                .unwrap_or_else(|e| panic!("{command:?}: {e}")),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fails unless both files have the same content; says where they differ first.
pub fn assert_same_bytes(a: &Path, b: &Path) {
    const STEP: usize = 1 << 20;
    let (mut fa, mut fb) = (open(a), open(b));
    let (la, lb) = (fa.metadata().unwrap().len(), fb.metadata().unwrap().len());
    assert_eq!(
        la,
        lb,
        "{} and {} differ in length",
        a.display(),
        b.display()
    );
    let (mut da, mut db) = (vec![0; STEP], vec![0; STEP]);
    let mut at = 0;
    while at < la {
        let len = STEP.min((la - at) as usize);
        fa.read_exact(&mut da[..len]).unwrap();
        fb.read_exact(&mut db[..len]).unwrap();
        if da[..len] != db[..len] {
            let first = at + da.iter().zip(&db).position(|(x, y)| x != y).unwrap() as u64;
            let wrong = da[..len]
                .chunks(512)
                .zip(db[..len].chunks(512))
                .filter(|(x, y)| x != y)
                .count();
            panic!(
                "{} and {} differ, first at byte {first} (block {}); {wrong} blocks differ in that MiB",
                a.display(),
                b.display(),
                first / 512
            );
        }
        at += len as u64;
    }
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Polls until it is true; there is no event for what tests wait for in this way.
pub fn eventually(what: &str, patience: Duration, mut is_true: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + patience;
    while !is_true() {
        assert!(
            std::time::Instant::now() < deadline,
            "waited {patience:?} in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether this test runs as root; says that the test is skipped if not.
pub fn root_or_skip(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {what} needs root");
    }
    root
}

/// The top of the source tree.
pub fn source() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
