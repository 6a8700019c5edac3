//! The client's side of the NBD handshake, and a plain read: what a load needs before and after it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

const MAGIC_INIT: u64 = 0x4e42_444d_4147_4943;
const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const MAGIC_REQUEST: u32 = 0x2560_9513;
const MAGIC_SIMPLE: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
/// The export takes FUA.
const EXPORT_FUA: u16 = 1 << 3;

/// Length of a request without its payload, bytes.
pub const REQUEST: usize = 28;
/// Length of a simple reply without its payload, bytes.
pub const REPLY: usize = 16;
/// Request flag: durable before the reply.
pub const FUA: u16 = 1;
pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const FLUSH: u16 = 3;

/// No request takes longer, also when the machine is busy and a mirror has to be declared dead.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// An export of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Door {
    pub address: Address,
    pub export: String,
}

impl Address {
    /// Whether somebody listens.
    pub fn is_open(&self) -> bool {
        match self {
            Address::Unix(path) => UnixStream::connect(path).is_ok(),
            Address::Tcp(address) => TcpStream::connect(address).is_ok(),
        }
    }
}

impl Door {
    /// For fio and other clients.
    pub fn uri(&self) -> String {
        match &self.address {
            Address::Unix(path) => {
                format!("nbd+unix:///{}?socket={}", self.export, path.display())
            }
            Address::Tcp(address) => format!("nbd://{address}/{}", self.export),
        }
    }

    /// Connects and negotiates simple replies.
    pub fn open(&self) -> anyhow::Result<Connection> {
        let opened = match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                negotiate(stream, &self.export)
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                negotiate(stream, &self.export)
            }
        };
        opened.with_context(|| self.uri())
    }
}

/// An attached client.
#[derive(Debug)]
pub struct Connection {
    pub socket: OwnedFd,
    /// Size of the export, bytes.
    pub size: u64,
}

fn negotiate<S>(mut stream: S, export: &str) -> anyhow::Result<Connection>
where
    S: Read + Write + Into<OwnedFd>,
{
    ensure!(number(&mut stream)? == MAGIC_INIT, "not an NBD server");
    ensure!(
        number(&mut stream)? == MAGIC_OPTION,
        "an NBD server of the old style"
    );
    let mut flags = [0; 2];
    stream.read_exact(&mut flags)?;
    let mut hello = FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes().to_vec();
    hello.extend(MAGIC_OPTION.to_be_bytes());
    hello.extend(OPT_GO.to_be_bytes());
    hello.extend((export.len() as u32 + 6).to_be_bytes());
    hello.extend((export.len() as u32).to_be_bytes());
    hello.extend(export.as_bytes());
    hello.extend([0; 2]); // asks for no information: the export's always comes
    stream.write_all(&hello)?;
    let mut size = None;
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        ensure!(
            head[..8] == MAGIC_OPTION_REPLY.to_be_bytes(),
            "not the answer to an option"
        );
        let (kind, len) = (word(12), word(16));
        ensure!(len <= 4096 + 64, "an answer of {len} bytes");
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        match kind {
            REP_ACK => break,
            REP_INFO if data.len() == 12 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                let flags = u16::from_be_bytes([data[10], data[11]]);
                ensure!(flags & EXPORT_FUA != 0, "the export does not take FUA");
                size = Some(u64::from_be_bytes(data[2..10].try_into().expect("8 bytes")));
            }
            REP_INFO => {}
            _ if kind & REP_ERROR != 0 => bail!(
                "refused ({kind:#x}): {}",
                String::from_utf8_lossy(&data).trim()
            ),
            _ => bail!("an answer of unknown kind {kind:#x}"),
        }
    }
    Ok(Connection {
        socket: stream.into(),
        size: size.context("the server did not tell the size")?,
    })
}

fn number(stream: &mut impl Read) -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

/// A request's header.
pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// The cookie of a simple reply that says success.
pub fn reply(bytes: &[u8; REPLY]) -> anyhow::Result<u64> {
    ensure!(bytes[..4] == MAGIC_SIMPLE.to_be_bytes(), "not a reply");
    let errno = u32::from_be_bytes(bytes[4..8].try_into().expect("4 bytes"));
    ensure!(errno == 0, "the server answered with NBD error {errno}");
    Ok(u64::from_be_bytes(bytes[8..].try_into().expect("8 bytes")))
}

impl Connection {
    /// Reads, with nothing else in flight.
    pub fn read(&self, offset: u64, len: u32) -> anyhow::Result<Vec<u8>> {
        self.call(READ, 0, offset, len, &[])?;
        let mut data = vec![0; len as usize];
        self.take(&mut data)?;
        Ok(data)
    }

    /// Writes, with nothing else in flight.
    pub fn write(&self, flags: u16, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        self.call(WRITE, flags, offset, data.len() as u32, data)
    }

    fn call(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> anyhow::Result<()> {
        const COOKIE: u64 = 0xa5a5;
        let mut bytes = request(command, flags, COOKIE, offset, len).to_vec();
        bytes.extend(data);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let sent = rustix::net::send(&self.socket, rest, rustix::net::SendFlags::NOSIGNAL)?;
            rest = &rest[sent..];
        }
        let mut head = [0; REPLY];
        self.take(&mut head)?;
        ensure!(reply(&head)? == COOKIE, "an answer to nothing");
        Ok(())
    }

    fn take(&self, mut into: &mut [u8]) -> anyhow::Result<()> {
        while !into.is_empty() {
            let flags = rustix::net::RecvFlags::empty();
            let (len, _) = rustix::net::recv(&self.socket, &mut *into, flags)?;
            ensure!(len > 0, "the server closed the connection");
            into = &mut into[len..];
        }
        Ok(())
    }
}
