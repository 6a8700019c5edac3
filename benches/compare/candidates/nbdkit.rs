//! `nbdkit file`: one site, no replication, volatile until flushed.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Candidate, STEP, filled_file};
use crate::nbd::{Address, Door};
use crate::place::address;
use crate::process::{PATIENCE, Process, eventually};

pub struct Nbdkit {
    file: PathBuf,
    address: Address,
    process: Process,
}

impl Nbdkit {
    pub fn start(dir: &Path, size: u64, tcp: bool) -> anyhow::Result<Nbdkit> {
        let dir = dir.join("nbdkit");
        std::fs::create_dir_all(&dir)?;
        let (file, address) = (dir.join("file"), address(&dir, tcp)?);
        filled_file(&file, size)?;
        let mut command = Command::new("nbdkit");
        command.arg("--foreground");
        match &address {
            Address::Unix(path) => command.arg("--unix").arg(path),
            Address::Tcp(at) => {
                command.args(["--ipaddr", "127.0.0.1", "--port", &at.port().to_string()])
            }
        };
        command.arg("file").arg(&file);
        let mut process = Process::start("server", &command, &dir.join("log"))?;
        eventually("nbdkit listens", STEP, PATIENCE, || {
            process.check()?;
            Ok(address.is_open().then_some(()))
        })?;
        Ok(Nbdkit {
            file,
            address,
            process,
        })
    }
}

impl Candidate for Nbdkit {
    fn doors(&self) -> Vec<Door> {
        vec![Door {
            address: self.address.clone(),
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
