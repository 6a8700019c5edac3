//! Who holds an address: an error that names the process saves the operator the search.

use std::collections::HashSet;
use std::fs;
use std::net::ToSocketAddrs;
use std::os::unix::net::UnixStream;

use rustix::net::sockopt;

/// Names the process that listens on the TCP port of `address`.
pub fn of_tcp_listener(address: &str) -> String {
    let port = address
        .to_socket_addrs()
        .ok()
        .and_then(|mut a| a.next())
        .map(|a| a.port());
    port.map(listening_inodes)
        .and_then(|inodes| holder_of(&inodes))
        .unwrap_or_else(|| "another process (`ss -ltnp` as root shows which)".to_owned())
}

/// Names the process at the other end of a Unix socket.
pub fn of_unix_peer(stream: &UnixStream) -> String {
    match sockopt::socket_peercred(stream) {
        Ok(peer) => named(&peer.pid.as_raw_nonzero().to_string()),
        Err(_) => "another process".to_owned(),
    }
}

fn named(pid: &str) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(command) => format!("process {pid} ({})", command.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

/// Inodes of the sockets that listen on `port`, from the tables of proc(5).
fn listening_inodes(port: u16) -> HashSet<String> {
    const LISTENING: &str = "0A";
    let suffix = format!(":{port:04X}");
    let mut inodes = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            if let (Some(local), Some(&LISTENING), Some(inode)) =
                (fields.get(1), fields.get(3), fields.get(9))
                && local.ends_with(&suffix)
            {
                inodes.insert(format!("socket:[{inode}]"));
            }
        }
    }
    inodes
}

/// The process with one of these sockets open, among those this process may look into.
fn holder_of(inodes: &HashSet<String>) -> Option<String> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().into_string().ok()?;
        pid.parse::<u32>().ok()?;
        let held = fs::read_dir(entry.path().join("fd"))
            .ok()?
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|target| target.to_str().is_some_and(|t| inodes.contains(t)));
        held.then(|| named(&pid))
    })
}
