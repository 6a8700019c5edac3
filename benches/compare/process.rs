//! Programs that are measured: started, accounted for, and ended by their own handle.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How long a program may take to come up.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// A program that is killed when nobody needs it any more, or when we are.
#[derive(Debug)]
pub struct Process {
    /// What it does among those it works with.
    pub part: &'static str,
    child: Child,
}

impl Process {
    /// Starts it; what it says goes to a file.
    pub fn start(part: &'static str, command: &Command, log: &Path) -> anyhow::Result<Process> {
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        // Becomes the program once it has arranged that the kernel kills it when we are gone, however that happens.
        let mut wrapped = Command::new("setpriv");
        wrapped
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        for (name, value) in command.get_envs() {
            wrapped.env(name, value.unwrap_or_default());
        }
        let child = wrapped.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Process { part, child })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait();
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the {} ended with {status}", self.part),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Time on a CPU of all threads there are, in the kernel and outside.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let ns = text.split(' ').next().and_then(|n| n.parse().ok());
        total += Duration::from_nanos(ns.context("schedstat: nanoseconds")?);
    }
    Ok(total)
}

/// Bytes of memory in use now, and at most so far.
pub fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> anyhow::Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next());
        Ok(kib.and_then(|kib| kib.parse::<u64>().ok()).context("KiB")? << 10)
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

/// The peak of [`memory`] begins anew.
pub fn forget_peak(pid: u32) -> anyhow::Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// Polls until there is a value: what is waited for sends no events to us.
pub fn eventually<T>(
    what: &str,
    step: Duration,
    patience: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("waited {patience:?} in vain: {what}");
        }
        sleep(step);
    }
}
