//! `nbdkit file`: one site, no replication, volatile until flushed.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Candidate, STEP, filled_file};
use crate::nbd::{Address, Door};
use crate::process::{PATIENCE, Process, eventually};

pub struct Nbdkit {
    file: PathBuf,
    socket: PathBuf,
    process: Process,
}

impl Nbdkit {
    pub fn start(dir: &Path, size: u64) -> anyhow::Result<Nbdkit> {
        let dir = dir.join("nbdkit");
        std::fs::create_dir_all(&dir)?;
        let (file, socket) = (dir.join("file"), dir.join("nbd"));
        filled_file(&file, size)?;
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(&socket);
        command.arg("file").arg(&file);
        let mut process = Process::start("server", command, &dir.join("log"))?;
        eventually("nbdkit listens", STEP, PATIENCE, || {
            process.check()?;
            Ok(socket.exists().then_some(()))
        })?;
        Ok(Nbdkit {
            file,
            socket,
            process,
        })
    }
}

impl Candidate for Nbdkit {
    fn doors(&self) -> Vec<Door> {
        vec![Door {
            address: Address::Unix(self.socket.clone()),
            export: String::new(),
        }]
    }

    fn processes(&self) -> Vec<(&'static str, u32)> {
        vec![(self.process.part, self.process.pid())]
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.file.clone()]
    }
}
