//! A site as a child process: started apart from the terminal, asked to stop, never left behind.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

use super::place::SiteFiles;

/// How long a site may take to finish what is in flight and write its last checkpoint.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const LOG_TAIL_LINES: usize = 15;
const LOG_TAIL_BYTES: u64 = 64 << 10;

/// The process of a site.
pub struct Site {
    /// Name of the site.
    pub name: &'static str,
    /// Its process, also after its end.
    pub pid: u32,
    /// How it ended, if it has.
    pub ended: Option<ExitStatus>,
    child: Child,
    log: PathBuf,
    /// Where this run begins in the log.
    log_start: u64,
}

impl Site {
    /// Starts `serve` of this program.
    ///
    /// Must run on a thread that lives as long as the process: the kernel ends the child with the thread.
    pub fn start(program: &Path, files: &SiteFiles) -> anyhow::Result<Site> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&files.log)
            .with_context(|| format!("cannot open {}", files.log.display()))?;
        let log_start = log.metadata()?.len();
        let child = Command::new(program)
            .arg("serve")
            .arg("--config")
            .arg(&files.config)
            .arg("--with-parent")
            .arg(std::process::id().to_string())
            // What a service manager told this process is not meant for a site.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A process group of its own: the terminal's Ctrl-C is not for the sites, which are asked in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Site {
            name: files.name,
            pid: child.id(),
            ended: None,
            child,
            log: files.log.clone(),
            log_start,
        })
    }

    /// Whether it has ended since this was last asked.
    pub fn has_just_ended(&mut self) -> anyhow::Result<bool> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
            return Ok(self.ended.is_some());
        }
        Ok(false)
    }

    /// How it ended, for people.
    pub fn obituary(&self) -> String {
        let Some(status) = self.ended else {
            return format!("{} (process {}) runs", self.name, self.pid);
        };
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        format!("{} (process {}) {how}", self.name, self.pid)
    }

    /// What it last wrote into its log in this run.
    pub fn last_words(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let end = file.metadata()?.len();
            let from = self.log_start.max(end.saturating_sub(LOG_TAIL_BYTES));
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!(
            "end of {}:\n  | {}\n",
            self.log.display(),
            tail.join("\n  | ")
        )
    }

    /// Asks it to stop and waits until it has; kills it if it takes too long. `true` if it stopped as asked.
    pub async fn stop(&mut self, ended: &mut Ended) -> anyhow::Result<bool> {
        self.has_just_ended()?;
        if self.ended.is_some() {
            return Ok(true);
        }
        self.send(Signal::TERM);
        let waited = tokio::time::timeout(STOP_LIMIT, async {
            while !self.has_just_ended()? {
                ended.recv().await;
            }
            anyhow::Ok(())
        });
        if let Ok(result) = waited.await {
            return result.map(|()| true);
        }
        self.kill()?;
        Ok(false)
    }

    /// Ends it now, as a power cut would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.ended.is_none() {
            self.send(Signal::KILL);
            self.ended = Some(self.child.wait()?);
        }
        Ok(())
    }

    fn send(&self, signal: Signal) {
        // It has not been waited for, so the id is still its own; it may be gone all the same.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }
}

/// However this ends, even by a panic: no site is left behind.
impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Tells that some child has ended.
pub struct Ended(SignalStream);

impl Ended {
    /// Listens from now on; create it before the first child.
    pub fn new() -> anyhow::Result<Ended> {
        let stream =
            signal(SignalKind::child()).context("cannot listen for the end of children")?;
        Ok(Ended(stream))
    }

    /// Returns when a child has ended, which may be any.
    pub async fn recv(&mut self) {
        self.0.recv().await;
    }
}
