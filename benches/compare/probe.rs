//! What the machine itself needs for the steps of one write: round trips and durable overwrites.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use doublure::base::AlignedBuf;

use super::load::histogram;

/// A durable overwrite is this long, bytes.
const BLOCK: usize = 4096;

/// Medians.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Steps {
    /// A request with 4 KiB and its reply over a unix socket, a thread blocking at each end.
    pub client: Duration,
    /// A frame of one operation and its acknowledgement over loopback TCP, likewise.
    pub link: Duration,
    /// A 4 KiB overwrite of a preallocated file with `O_DIRECT` and `O_DSYNC`, one after the other.
    pub durable: Duration,
}

impl Steps {
    /// The least that a write in `sync` mode can take, without polling and with nothing left out.
    pub fn floor(&self) -> Duration {
        self.client + self.durable.max(self.link + self.durable)
    }
}

/// Measures each for so long.
pub fn steps(dir: &Path, each: Duration) -> anyhow::Result<Steps> {
    let (near, far) = UnixStream::pair()?;
    let client = echo(near, far, 28 + BLOCK, 16, each)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let link = echo(near, far, 32 + 2 * BLOCK, 64, each)?;
    let durable = overwrite(dir, each)?;
    Ok(Steps {
        client,
        link,
        durable,
    })
}

fn echo<S>(
    mut near: S,
    mut far: S,
    request: usize,
    reply: usize,
    limit: Duration,
) -> anyhow::Result<Duration>
where
    S: Read + Write + Send,
{
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut data = vec![0; request];
            // Ends when the other end is dropped.
            while far.read_exact(&mut data).is_ok() && far.write_all(&data[..reply]).is_ok() {}
        });
        let data = vec![7; request];
        let mut answer = vec![0; reply];
        let mut times = histogram();
        let end = Instant::now() + limit;
        let mut since = Instant::now();
        while since < end {
            near.write_all(&data)?;
            near.read_exact(&mut answer)?;
            let now = Instant::now();
            times.saturating_record((now - since).as_nanos() as u64);
            since = now;
        }
        drop(near);
        Ok(Duration::from_nanos(times.value_at_quantile(0.5)))
    })
}

fn overwrite(dir: &Path, limit: Duration) -> anyhow::Result<Duration> {
    const LEN: u64 = 32 << 20;
    let path = dir.join("durable");
    let mut data = AlignedBuf::zeroed(1 << 20);
    data.fill(7);
    let fresh = File::create(&path)?;
    for at in (0..LEN).step_by(data.len()) {
        fresh.write_all_at(&data, at)?;
    }
    fresh.sync_all()?;
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(&path)?;
    let mut times = histogram();
    let end = Instant::now() + limit;
    let mut at = 0;
    let mut since = Instant::now();
    while since < end {
        file.write_all_at(&data[..BLOCK], at)?;
        at = (at + BLOCK as u64) % LEN;
        let now = Instant::now();
        times.saturating_record((now - since).as_nanos() as u64);
        since = now;
    }
    std::fs::remove_file(&path)?;
    Ok(Duration::from_nanos(times.value_at_quantile(0.5)))
}

/// Copies so many bytes from file to file in pieces of 1 MiB past the page cache, with a final fdatasync; says how long
/// that took. The target is preallocated, as a home is.
pub fn copy(from: &Path, to: &Path, bytes: u64) -> anyhow::Result<Duration> {
    super::candidates::filled_file(to, bytes)?;
    let direct = |write: bool| {
        OpenOptions::new()
            .read(!write)
            .write(write)
            .custom_flags(libc::O_DIRECT)
            .open(if write { to } else { from })
    };
    let (source, target) = (direct(false)?, direct(true)?);
    let mut data = AlignedBuf::zeroed(1 << 20);
    let since = Instant::now();
    for at in (0..bytes).step_by(data.len()) {
        source.read_exact_at(&mut data, at)?;
        target.write_all_at(&data, at)?;
    }
    target.sync_data()?;
    Ok(since.elapsed())
}
