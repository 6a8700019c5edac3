//! Two `qemu-storage-daemon`s of which the first mirrors each write to the second, over TCP, before it answers: the way to
//! replicate in user space that exists already.
//!
//! What a client wants durable (FUA, flush) is made durable by the first alone: neither reaches the second (seen with 7.2 and
//! 10.0). With [`Durable::Both`] both flush after each write, which is what doublure's `sync` promises.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use super::{Candidate, STEP, filled_file};
use crate::nbd::{Address, Door};
use crate::place::{address, free_port};
use crate::process::{PATIENCE, Process, eventually};

/// Where each write is durable before it is answered, asked for or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durable {
    Nowhere,
    Both,
}

pub struct Qemu {
    files: [PathBuf; 2],
    address: Address,
    processes: [Process; 2],
}

/// A conversation with a daemon about its block devices.
struct Qmp {
    stream: BufReader<UnixStream>,
    /// The mirror has told that it is ready; that may come before the answer to the command that began it.
    ready: bool,
}

impl Qmp {
    fn connect(socket: &Path) -> anyhow::Result<Qmp> {
        let stream = eventually("qemu-storage-daemon listens", STEP, PATIENCE, || {
            Ok(UnixStream::connect(socket).ok())
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
            ready: false,
        };
        qmp.until(|message| message.get("QMP").is_some())?;
        qmp.ask(&json!({"execute": "qmp_capabilities"}))?;
        Ok(qmp)
    }

    fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        loop {
            let mut line = String::new();
            ensure!(
                self.stream.read_line(&mut line)? > 0,
                "qemu-storage-daemon closed the conversation"
            );
            let message: Value = serde_json::from_str(&line)?;
            if message.get("error").is_some() || message["event"] == "BLOCK_JOB_ERROR" {
                bail!("qemu-storage-daemon: {message}");
            }
            self.ready |= message["event"] == "BLOCK_JOB_READY";
            if wanted(&message) {
                return Ok(());
            }
        }
    }

    fn ask(&mut self, command: &Value) -> anyhow::Result<()> {
        writeln!(self.stream.get_mut(), "{command}")?;
        self.until(|message| message.get("return").is_some())
    }
}

impl Qemu {
    pub fn start(dir: &Path, size: u64, tcp: bool, durable: Durable) -> anyhow::Result<Qemu> {
        let (name, option) = match durable {
            Durable::Nowhere => ("qemu", ""),
            Durable::Both => ("qemu-durable", ",writethrough=on"),
        };
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let files = [dir.join("near"), dir.join("far")];
        for file in &files {
            filled_file(file, size)?;
        }
        let link = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let port = link.port();
        let control = dir.join("qmp");
        let door = address(&dir, tcp)?;
        let served = match &door {
            Address::Unix(path) => format!("addr.type=unix,addr.path={}", path.display()),
            Address::Tcp(at) => {
                format!("addr.type=inet,addr.host=127.0.0.1,addr.port={}", at.port())
            }
        };
        let disk = |path: &Path| {
            format!(
                "driver=file,node-name=disk,filename={},cache.direct=on,discard=unmap",
                path.display()
            )
        };
        let mut far = Command::new("qemu-storage-daemon");
        far.args(["--blockdev", &disk(&files[1])]);
        far.args([
            "--nbd-server",
            &format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}"),
        ]);
        far.args([
            "--export",
            &format!("type=nbd,id=e,node-name=disk,name=far,writable=on{option}"),
        ]);
        let mut far = Process::start("mirror", &far, &dir.join("log"))?;
        eventually("the second listens", STEP, PATIENCE, || {
            far.check()?;
            Ok(TcpStream::connect(link).ok())
        })?;
        let mut near = Command::new("qemu-storage-daemon");
        near.args([
            "--chardev",
            &format!(
                "socket,id=qmp,path={},server=on,wait=off",
                control.display()
            ),
            "--monitor",
            "chardev=qmp",
            "--blockdev",
            &disk(&files[0]),
            "--blockdev",
            &format!(
                "driver=nbd,node-name=far,export=far,server.type=inet,server.host=127.0.0.1,server.port={port}"
            ),
            "--nbd-server",
            &served,
            "--export",
            &format!("type=nbd,id=e,node-name=disk,name=demo,writable=on{option}"),
        ]);
        let near = Process::start("primary", &near, &dir.join("log"))?;
        let mut qmp = Qmp::connect(&control)?;
        // Both files are the same already, so there is nothing to copy first.
        qmp.ask(&json!({"execute": "blockdev-mirror", "arguments": {
            "job-id": "mirror", "device": "disk", "target": "far", "sync": "none", "copy-mode": "write-blocking"}}))?;
        if !qmp.ready {
            qmp.until(|message| message["event"] == "BLOCK_JOB_READY")?;
        }
        Ok(Qemu {
            files,
            address: door,
            processes: [near, far],
        })
    }
}

impl Candidate for Qemu {
    fn doors(&self) -> Vec<Door> {
        vec![Door {
            address: self.address.clone(),
            export: "demo".to_owned(),
        }]
    }

    fn processes(&self) -> Vec<(&'static str, u32)> {
        self.processes.iter().map(|p| (p.part, p.pid())).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files.to_vec()
    }
}
