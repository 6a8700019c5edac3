//! Where it all happens: a directory of our own that is gone afterwards, and ports that nobody uses.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::nbd::Address;

/// The directory.
pub struct Place(tempfile::TempDir);

impl Place {
    /// Below `parent`, which decides the disk that is measured.
    pub fn new(parent: &Path) -> anyhow::Result<Place> {
        let dir = tempfile::Builder::new()
            .prefix("doublure-bench-")
            .tempdir_in(parent)
            .with_context(|| format!("no directory below {}", parent.display()))?;
        Ok(Place(dir))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A directory in it.
    pub fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.path().join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

/// Where a server is to listen for clients: over TCP, or on a socket in its directory.
pub fn address(dir: &Path, tcp: bool) -> anyhow::Result<Address> {
    Ok(if tcp {
        Address::Tcp((Ipv4Addr::LOCALHOST, free_port()?).into())
    } else {
        Address::Unix(dir.join("nbd"))
    })
}

/// A port on the loopback address that was free a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}
