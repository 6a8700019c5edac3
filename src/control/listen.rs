//! Listening sockets: made from an address of the configuration, or inherited from the service manager.
//!
//! One type serves TCP and Unix sockets alike, because all that is done with a connection here is to read and write
//! a little and to hand its descriptor on.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::BytesMut;
use rustix::io::Errno;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::lobby::Lobby;
use super::owner;

/// Connections that wait to be accepted. A thousand clients that come back at once after a restart must not be
/// told to try again in a second, which is what TCP does beyond this.
const BACKLOG: i32 = 1024;

/// How long the accept loop rests when the machine has no descriptor or memory left: no event says when that ends.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Room made for each read from a socket, in bytes.
const READ_SIZE: usize = 16 << 10;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// `ADDRESS:PORT`, resolved, or `unix:PATH`.
    pub address: String,
    file: Option<SocketFile>,
}

/// The file of a Unix socket that this process bound; removed when it is dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have cleaned up already; nothing depends on it.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens on `ADDRESS:PORT` or `unix:PATH`.
    ///
    /// A Unix socket gets mode 0660, its directory is created if missing, and a file left behind by a process that
    /// no longer listens on it is replaced.
    ///
    /// # Errors
    /// Names the address, who has it if it is taken, and what to do.
    pub fn bind(address: &str) -> anyhow::Result<Listener> {
        let listener = match address.strip_prefix("unix:").map(Path::new) {
            Some(path) => bind_unix(path)?,
            None => bind_tcp(address)?,
        };
        rustix::net::listen(&listener.fd, BACKLOG)
            .with_context(|| format!("cannot listen on {address}"))?;
        Ok(listener)
    }

    /// The sockets that the service manager passed (`LISTEN_FDS`), named by `LISTEN_FDNAMES` in the log.
    ///
    /// Call it before any thread is started: it takes the variables out of the environment.
    ///
    /// # Errors
    /// Names the descriptor that is not a listening stream socket.
    pub fn inherited() -> anyhow::Result<Vec<Listener>> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = listenfd::ListenFd::from_env();
        let mut listeners = Vec::new();
        for index in 0..passed.len() {
            let name = names.next().filter(|n| !n.is_empty()).unwrap_or("unnamed");
            let listener = take_inherited(&mut passed, index)
                .with_context(|| format!("socket {index} of LISTEN_FDS ({name})"))?;
            tracing::info!(address = %listener.address, name, "inherited a listening socket");
            listeners.push(listener);
        }
        Ok(listeners)
    }

    /// The descriptor, and the guard that removes the socket's file when the listening ends.
    pub fn into_parts(self) -> (OwnedFd, Option<SocketFile>) {
        (self.fd, self.file)
    }

    /// Accepts for ever. Each connection waits in the lobby while `greet` deals with it.
    ///
    /// Errors never end it: one that concerns a single connection is skipped; when descriptors or memory run out,
    /// the connection that has waited longest in the lobby is given up to make room.
    ///
    /// # Errors
    /// Only if the socket cannot be registered with the runtime.
    pub async fn accept_all<F>(
        self,
        lobby: Lobby,
        greet: impl Fn(Socket) -> F,
    ) -> anyhow::Result<std::convert::Infallible>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Listener {
            fd,
            address,
            file: _file,
        } = self;
        let door = Door::new(fd, &address)
            .with_context(|| format!("cannot watch the listener on {address}"))?;
        loop {
            match door.accept().await {
                Ok(socket) => lobby.admit(greet(socket)),
                Err(error) => recover(&error, &address, &lobby).await,
            }
        }
    }
}

/// A listener watched by the runtime.
enum Door {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Door {
    fn new(fd: OwnedFd, address: &str) -> io::Result<Door> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        if address.starts_with("unix:") {
            let listener = tokio::net::UnixListener::from_std(fd.into())?;
            Ok(Door::Unix(listener))
        } else {
            let listener = tokio::net::TcpListener::from_std(fd.into())?;
            Ok(Door::Tcp(listener))
        }
    }

    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Door::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                // A client whose machine vanished must not stay attached for ever.
                sockopt::set_socket_keepalive(&stream, true)?;
                Ok(Socket {
                    stream: Stream::Tcp(stream),
                    peer: peer.to_string(),
                })
            }
            Door::Unix(listener) => Ok(Socket {
                stream: Stream::Unix(listener.accept().await?.0),
                peer: "a local process".to_owned(),
            }),
        }
    }
}

async fn recover(error: &io::Error, address: &str, lobby: &Lobby) {
    if concerns_one_connection(error) {
        tracing::debug!(address, %error, "a connection failed before it was accepted");
        return;
    }
    if let Some(suppressed) = lobby.complaints.permit() {
        tracing::error!(
            address, %error, suppressed,
            "cannot accept connections; if it says 'too many open files', raise LimitNOFILE or `ulimit -n`"
        );
    }
    if lobby.make_room() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(EXHAUSTED_PAUSE).await;
    }
}

/// Whether the connection died before it was accepted: accept(2) lists what Linux passes on from the network.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::INTR
                | Errno::PROTO
                | Errno::PERM
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
        )
    )
}

/// A connection.
pub struct Socket {
    stream: Stream,
    /// Who is at the other end, for the log.
    pub peer: String,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Appends what the other side sent; 0 at the end of the stream.
    ///
    /// # Errors
    /// As `read(2)`.
    pub async fn read(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        into.reserve(READ_SIZE);
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read_buf(into).await,
            Stream::Unix(stream) => stream.read_buf(into).await,
        }
    }

    /// Sends all of it.
    ///
    /// # Errors
    /// As `write(2)`.
    pub async fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(data).await,
            Stream::Unix(stream) => stream.write_all(data).await,
        }
    }

    /// Tells the other side that nothing more will be sent.
    ///
    /// # Errors
    /// As `shutdown(2)`.
    pub async fn finish(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.shutdown().await,
            Stream::Unix(stream) => stream.shutdown().await,
        }
    }

    /// The descriptor, non-blocking and no longer watched by the runtime.
    ///
    /// # Errors
    /// If the runtime cannot let go of it.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(match self.stream {
            Stream::Tcp(stream) => stream.into_std()?.into(),
            Stream::Unix(stream) => stream.into_std()?.into(),
        })
    }
}

fn bind_tcp(address: &str) -> anyhow::Result<Listener> {
    let listener = TcpListener::bind(address).map_err(|error| {
        anyhow!(
            "cannot listen on {address}: {error}{}",
            tcp_hint(&error, address)
        )
    })?;
    Ok(Listener {
        address: listener.local_addr()?.to_string(),
        fd: listener.into(),
        file: None,
    })
}

/// What to do about it.
fn tcp_hint(error: &io::Error, address: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            ": {} listens there; stop it or configure another port",
            owner::of_tcp_listener(address)
        ),
        io::ErrorKind::AddrNotAvailable => {
            ": this machine has no such address; `ip address` lists those it has".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            ": ports below 1024 need CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => String::new(),
    }
}

fn bind_unix(path: &Path) -> anyhow::Result<Listener> {
    let shown = path.display();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot create {} for the socket {shown}", dir.display()))?;
    }
    remove_stale(path)?;
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on unix:{shown}"))?;
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {shown} to 0660"))?;
    Ok(Listener {
        fd: listener.into(),
        address: format!("unix:{shown}"),
        file: Some(file),
    })
}

/// Removes a socket's file if nobody listens on it.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(()); // binding says what is wrong with the path, if anything is
    };
    if !metadata.file_type().is_socket() {
        bail!(
            "cannot listen on unix:{shown}: it exists and is not a socket; remove it or configure another path"
        );
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(stream) => bail!(
            "cannot listen on unix:{shown}: {} listens there; stop it or configure another path",
            owner::of_unix_peer(&stream)
        ),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| {
                format!("cannot remove {shown}, left behind by a process that is gone")
            })
        }
        Err(error) => bail!(
            "cannot listen on unix:{shown}: it exists and it cannot be told whether somebody uses it ({error})"
        ),
    }
}

fn take_inherited(passed: &mut listenfd::ListenFd, index: usize) -> anyhow::Result<Listener> {
    let (fd, address) = if let Ok(Some(tcp)) = passed.take_tcp_listener(index) {
        let address = tcp.local_addr()?.to_string();
        (OwnedFd::from(tcp), address)
    } else {
        let unix = passed
            .take_unix_listener(index)
            .context("neither a TCP nor a Unix stream socket")?
            .context("taken twice")?;
        let address = unix.local_addr()?;
        let path = address.as_pathname().unwrap_or(Path::new("(no path)"));
        (OwnedFd::from(unix), format!("unix:{}", path.display()))
    };
    if !sockopt::socket_acceptconn(fd.as_fd())? {
        bail!("{address} does not listen; the socket unit needs Accept=no");
    }
    Ok(Listener {
        fd,
        address,
        file: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &Path) -> String {
        format!("unix:{}", path.display())
    }

    #[test]
    fn a_taken_port_is_reported_with_the_process_that_has_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = Listener::bind(&address).unwrap_err().to_string();
        let me = format!("process {}", std::process::id());
        assert!(error.contains(&address) && error.contains(&me), "{error}");
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for/it/nbd.sock");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap()); // leaves its file behind
        let live = Listener::bind(&unix(&path)).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);

        let error = Listener::bind(&unix(&path)).unwrap_err().to_string();
        let me = format!("process {}", std::process::id());
        assert!(error.contains(&me), "{error}");
        drop(live);
        assert!(!path.exists(), "the socket's file outlived its listener");
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "keep").unwrap();
        let error = Listener::bind(&unix(&path)).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"keep");
    }
}
