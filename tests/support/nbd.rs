//! A small NBD client of our own, written from the specification and sharing nothing with the server under test.
//!
//! It exists because libnbd checks its users (and, in older releases, knows no extended headers), while tests must
//! also say things that no honest client says. Requests are sent and replies awaited separately, so that a test
//! decides how many are in flight.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

pub const MAGIC_INIT: u64 = 0x4e42_444d_4147_4943;
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
pub const MAGIC_REQUEST_EXT: u32 = 0x21e4_1c71;
pub const MAGIC_SIMPLE: u32 = 0x6744_6698;
pub const MAGIC_STRUCTURED: u32 = 0x668e_33ef;
pub const MAGIC_EXTENDED: u32 = 0x6e8a_278c;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META_CONTEXT: u32 = 4;
pub const REP_ERROR: u32 = 1 << 31;
pub const REP_ERR_UNSUP: u32 = REP_ERROR | 1;
pub const REP_ERR_INVALID: u32 = REP_ERROR | 3;
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR | 9;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_CACHE: u16 = 5;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

pub const FLAG_FUA: u16 = 1 << 0;
pub const FLAG_NO_HOLE: u16 = 1 << 1;
pub const FLAG_DF: u16 = 1 << 2;
pub const FLAG_REQ_ONE: u16 = 1 << 3;
pub const FLAG_FAST_ZERO: u16 = 1 << 4;
pub const FLAG_PAYLOAD_LEN: u16 = 1 << 5;

pub const EPERM: u32 = 1;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const EOVERFLOW: u32 = 75;

const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_STATUS: u16 = 5;
const CHUNK_STATUS_EXT: u16 = 6;
const CHUNK_ERROR: u16 = 1 << 15 | 1;
const CHUNK_ERROR_OFFSET: u16 = 1 << 15 | 2;

/// Longest payload this client believes; anything longer is a broken server.
const SANE: u64 = 64 << 20;

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

trait Stream: Read + Write + Send {
    fn limit(&self, patience: Option<Duration>) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn limit(&self, patience: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(patience)?;
        self.set_write_timeout(patience)
    }
}

impl Stream for TcpStream {
    fn limit(&self, patience: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(patience)?;
        self.set_write_timeout(patience)
    }
}

/// How replies look on a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Dialect {
    Simple,
    Structured,
    Extended,
}

/// What a server said about an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Export {
    pub size: u64,
    pub flags: u16,
    pub minimum_block: u32,
    pub preferred_block: u32,
    pub maximum_payload: u32,
}

/// One answer to an option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OptionReply {
    pub kind: u32,
    pub data: Vec<u8>,
}

impl OptionReply {
    /// The text of an error.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

/// A piece of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chunk {
    Data {
        offset: u64,
        data: Vec<u8>,
    },
    Hole {
        offset: u64,
        len: u64,
    },
    /// `(length, flags)`; bit 0: hole, bit 1: reads as zeroes.
    Status {
        context: u32,
        extents: Vec<(u64, u64)>,
    },
    Error {
        errno: u32,
        text: String,
    },
}

/// The complete answer to one request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub cookie: u64,
    pub errno: u32,
    pub chunks: Vec<Chunk>,
    /// Extended headers: the offset that the server echoed.
    pub echoed_offset: Option<u64>,
}

impl Answer {
    /// The text that came with the error, if any.
    pub fn text(&self) -> &str {
        self.chunks
            .iter()
            .find_map(|c| match c {
                Chunk::Error { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .unwrap_or("")
    }
}

/// A connection.
pub struct Client {
    stream: Box<dyn Stream>,
    pub dialect: Dialect,
    pub export: Export,
    /// Id of `base:allocation`, once negotiated.
    pub allocation: Option<u32>,
    next_cookie: u64,
    /// Lengths of reads in flight: a simple reply does not say how much follows.
    reads: Vec<(u64, usize)>,
    /// Chunks of answers that are not complete yet.
    partial: Vec<Answer>,
}

fn bad(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, text.into())
}

fn be16(data: &[u8]) -> u16 {
    u16::from_be_bytes(data[..2].try_into().expect("two bytes"))
}

fn be32(data: &[u8]) -> u32 {
    u32::from_be_bytes(data[..4].try_into().expect("four bytes"))
}

fn be64(data: &[u8]) -> u64 {
    u64::from_be_bytes(data[..8].try_into().expect("eight bytes"))
}

/// `name` and then `queries`, as INFO and the meta context options want them.
pub fn name_and(name: &str, rest: &[u8]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(rest);
    data
}

impl Client {
    /// Connects and exchanges the greeting; options may follow.
    pub fn greet(target: &Target) -> io::Result<Client> {
        let stream: Box<dyn Stream> = match target {
            Target::Unix(path) => Box::new(UnixStream::connect(path)?),
            Target::Tcp(addr) => {
                let stream = TcpStream::connect_timeout(addr, Duration::from_secs(5))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        let mut client = Client {
            stream,
            dialect: Dialect::Simple,
            export: Export::default(),
            allocation: None,
            next_cookie: 1,
            reads: Vec::new(),
            partial: Vec::new(),
        };
        client.patience(Some(Duration::from_mins(1)))?;
        let hello = client.take(18)?;
        if be64(&hello) != MAGIC_INIT || be64(&hello[8..]) != MAGIC_OPTION {
            return Err(bad("not a newstyle NBD server"));
        }
        let server_flags = be16(&hello[16..]);
        if server_flags & 3 != 3 {
            return Err(bad(format!(
                "server flags {server_flags:#x} lack fixed newstyle or no zeroes"
            )));
        }
        client.say(&3u32.to_be_bytes())?;
        Ok(client)
    }

    /// Connects, negotiates `dialect` (and `base:allocation` above simple) and attaches to `export`.
    pub fn attach(target: &Target, export: &str, dialect: Dialect) -> io::Result<Client> {
        let mut client = Client::greet(target)?;
        client.negotiate(dialect)?;
        if dialect > Dialect::Simple {
            let mut queries = 1u32.to_be_bytes().to_vec();
            queries.extend(name_and("base:allocation", &[]));
            for reply in client.option(OPT_SET_META_CONTEXT, &name_and(export, &queries))? {
                if reply.kind == REP_META_CONTEXT {
                    client.allocation = Some(be32(&reply.data));
                }
            }
        }
        client.go(export)?;
        Ok(client)
    }

    /// Negotiates how replies look.
    pub fn negotiate(&mut self, dialect: Dialect) -> io::Result<()> {
        let option = match dialect {
            Dialect::Simple => return Ok(()),
            Dialect::Structured => OPT_STRUCTURED_REPLY,
            Dialect::Extended => OPT_EXTENDED_HEADERS,
        };
        match self.option(option, &[])?.last() {
            Some(last) if last.kind == REP_ACK => self.dialect = dialect,
            other => return Err(bad(format!("{dialect:?} replies refused: {other:?}"))),
        }
        Ok(())
    }

    /// How long to wait for the server; `None` for ever.
    pub fn patience(&mut self, patience: Option<Duration>) -> io::Result<()> {
        self.stream.limit(patience)
    }

    /// Sends raw bytes.
    pub fn say(&mut self, data: &[u8]) -> io::Result<()> {
        self.stream.write_all(data)
    }

    /// Receives raw bytes.
    pub fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Sends an option's header and data without waiting.
    pub fn send_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = MAGIC_OPTION.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.say(&bytes)
    }

    /// Receives one option reply.
    pub fn option_reply(&mut self, option: u32) -> io::Result<OptionReply> {
        let header = self.take(20)?;
        if be64(&header) != MAGIC_OPTION_REPLY || be32(&header[8..]) != option {
            return Err(bad("an option reply with a wrong magic or option"));
        }
        let len = u64::from(be32(&header[16..]));
        if len > SANE {
            return Err(bad("an absurdly long option reply"));
        }
        Ok(OptionReply {
            kind: be32(&header[12..]),
            data: self.take(len as usize)?,
        })
    }

    /// Sends an option and gathers its replies up to the acknowledgement or the error.
    pub fn option(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<OptionReply>> {
        self.send_option(option, data)?;
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option)?;
            let last = reply.kind == REP_ACK || reply.kind & REP_ERROR != 0;
            replies.push(reply);
            if last {
                return Ok(replies);
            }
        }
    }

    /// Attaches to an export with GO, asking for everything there is to know. A refusal is `PermissionDenied` with
    /// the server's text.
    pub fn go(&mut self, name: &str) -> io::Result<Export> {
        let mut wanted = 2u16.to_be_bytes().to_vec();
        wanted.extend(0u16.to_be_bytes());
        wanted.extend(3u16.to_be_bytes());
        for reply in self.option(OPT_GO, &name_and(name, &wanted))? {
            match reply.kind {
                REP_INFO if be16(&reply.data) == 0 => {
                    self.export.size = be64(&reply.data[2..]);
                    self.export.flags = be16(&reply.data[10..]);
                }
                REP_INFO if be16(&reply.data) == 3 => {
                    self.export.minimum_block = be32(&reply.data[2..]);
                    self.export.preferred_block = be32(&reply.data[6..]);
                    self.export.maximum_payload = be32(&reply.data[10..]);
                }
                kind if kind & REP_ERROR != 0 => {
                    return Err(Error::new(ErrorKind::PermissionDenied, reply.text()));
                }
                _ => {}
            }
        }
        Ok(self.export)
    }

    /// Sends a request and returns its cookie. `payload` follows writes; `len` is what the header says.
    pub fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = Vec::with_capacity(32 + payload.len());
        if self.dialect == Dialect::Extended {
            bytes.extend(MAGIC_REQUEST_EXT.to_be_bytes());
        } else {
            bytes.extend(MAGIC_REQUEST.to_be_bytes());
        }
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if self.dialect == Dialect::Extended {
            bytes.extend(len.to_be_bytes());
        } else {
            bytes.extend((len as u32).to_be_bytes());
        }
        bytes.extend(payload);
        if command == CMD_READ {
            self.reads.push((cookie, len as usize));
        }
        self.say(&bytes)?;
        Ok(cookie)
    }

    /// Sends a write of `data`.
    pub fn send_write(&mut self, flags: u16, offset: u64, data: &[u8]) -> io::Result<u64> {
        let payload = if self.dialect == Dialect::Extended {
            FLAG_PAYLOAD_LEN
        } else {
            0
        };
        self.send(CMD_WRITE, flags | payload, offset, data.len() as u64, data)
    }

    /// Waits for the next complete answer, whichever request it belongs to.
    pub fn answer(&mut self) -> io::Result<Answer> {
        loop {
            let magic = be32(&self.take(4)?);
            let whole = match (magic, self.dialect) {
                (MAGIC_SIMPLE, Dialect::Simple | Dialect::Structured) => Some(self.simple()?),
                (MAGIC_STRUCTURED, Dialect::Structured) => self.chunk(false)?,
                (MAGIC_EXTENDED, Dialect::Extended) => self.chunk(true)?,
                _ => {
                    return Err(bad(format!(
                        "reply magic {magic:#x} in the dialect {:?}",
                        self.dialect
                    )));
                }
            };
            if let Some(answer) = whole {
                self.reads.retain(|(cookie, _)| *cookie != answer.cookie);
                return Ok(answer);
            }
        }
    }

    fn simple(&mut self) -> io::Result<Answer> {
        let rest = self.take(12)?;
        let (errno, cookie) = (be32(&rest), be64(&rest[4..]));
        let read = self
            .reads
            .iter()
            .find(|(c, _)| *c == cookie)
            .map(|(_, len)| *len);
        if read.is_some() && self.dialect == Dialect::Structured {
            return Err(bad(
                "a simple reply to a read although structured replies were negotiated",
            ));
        }
        let mut chunks = Vec::new();
        if let (Some(len), 0) = (read, errno) {
            let data = self.take(len)?;
            chunks.push(Chunk::Data { offset: 0, data });
        }
        Ok(Answer {
            cookie,
            errno,
            chunks,
            echoed_offset: None,
        })
    }

    fn chunk(&mut self, extended: bool) -> io::Result<Option<Answer>> {
        let head = self.take(if extended { 28 } else { 16 })?;
        let (flags, kind, cookie) = (be16(&head), be16(&head[2..]), be64(&head[4..]));
        let (echoed, len) = if extended {
            (Some(be64(&head[12..])), be64(&head[20..]))
        } else {
            (None, u64::from(be32(&head[12..])))
        };
        if len > SANE {
            return Err(bad("an absurdly long chunk"));
        }
        let data = self.take(len as usize)?;
        let at = self
            .partial
            .iter()
            .position(|a| a.cookie == cookie)
            .unwrap_or_else(|| {
                self.partial.push(Answer {
                    cookie,
                    errno: 0,
                    chunks: Vec::new(),
                    echoed_offset: echoed,
                });
                self.partial.len() - 1
            });
        let answer = &mut self.partial[at];
        if answer.echoed_offset != echoed {
            return Err(bad("chunks of one reply echo different offsets"));
        }
        if let Some(chunk) = parse_chunk(kind, &data)? {
            if let Chunk::Error { errno, .. } = chunk {
                answer.errno = errno;
            }
            answer.chunks.push(chunk);
        }
        Ok((flags & CHUNK_DONE != 0).then(|| self.partial.swap_remove(at)))
    }

    /// Sends a request and waits for its answer; only for connections with nothing else in flight.
    pub fn call(&mut self, command: u16, flags: u16, offset: u64, len: u64) -> io::Result<Answer> {
        let cookie = self.send(command, flags, offset, len, &[])?;
        self.expect(cookie)
    }

    /// Waits for an answer that must be to this request.
    pub fn expect(&mut self, cookie: u64) -> io::Result<Answer> {
        let answer = self.answer()?;
        if answer.cookie == cookie {
            Ok(answer)
        } else {
            Err(bad("the answer to another request"))
        }
    }

    /// Writes and waits; an error reply is an error.
    pub fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> io::Result<()> {
        let cookie = self.send_write(flags, offset, data)?;
        succeed(&self.expect(cookie)?)
    }

    /// Reads and waits; holes come as zeroes, an error reply is an error.
    pub fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let answer = self.call(CMD_READ, 0, offset, len as u64)?;
        succeed(&answer)?;
        assemble(&answer, offset, len, self.dialect)
    }

    /// Flushes and waits.
    pub fn flush(&mut self) -> io::Result<()> {
        succeed(&self.call(CMD_FLUSH, 0, 0, 0)?)
    }

    /// Says goodbye.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.send(CMD_DISC, 0, 0, 0, &[]).map(|_| ())
    }
}

fn parse_chunk(kind: u16, data: &[u8]) -> io::Result<Option<Chunk>> {
    let chunk = match kind {
        CHUNK_NONE => return Ok(None),
        CHUNK_DATA if data.len() > 8 => Chunk::Data {
            offset: be64(data),
            data: data[8..].to_vec(),
        },
        CHUNK_HOLE if data.len() == 12 => Chunk::Hole {
            offset: be64(data),
            len: u64::from(be32(&data[8..])),
        },
        CHUNK_STATUS if data.len() >= 12 && data.len() % 8 == 4 => Chunk::Status {
            context: be32(data),
            extents: data[4..]
                .chunks(8)
                .map(|e| (u64::from(be32(e)), u64::from(be32(&e[4..]))))
                .collect(),
        },
        CHUNK_STATUS_EXT if data.len() >= 24 && data.len() % 16 == 8 => {
            let extents: Vec<_> = data[8..]
                .chunks(16)
                .map(|e| (be64(e), be64(&e[8..])))
                .collect();
            let claimed = be32(&data[4..]);
            if claimed != 0 && claimed as usize != extents.len() {
                return Err(bad("the count of extents is not the number of extents"));
            }
            Chunk::Status {
                context: be32(data),
                extents,
            }
        }
        CHUNK_ERROR | CHUNK_ERROR_OFFSET if data.len() >= 6 => {
            let len = usize::from(be16(&data[4..]));
            let text = data
                .get(6..6 + len)
                .ok_or_else(|| bad("an error text longer than its chunk"))?;
            Chunk::Error {
                errno: be32(data),
                text: String::from_utf8_lossy(text).into_owned(),
            }
        }
        _ => return Err(bad(format!("chunk type {kind} with {} bytes", data.len()))),
    };
    Ok(Some(chunk))
}

/// An error reply as an error.
pub fn succeed(answer: &Answer) -> io::Result<()> {
    if answer.errno == 0 {
        Ok(())
    } else {
        Err(Error::other(format!(
            "the server answers with error {}: {}",
            answer.errno,
            answer.text()
        )))
    }
}

/// The content of a read from its chunks, which must cover it exactly once.
pub fn assemble(answer: &Answer, offset: u64, len: usize, dialect: Dialect) -> io::Result<Vec<u8>> {
    let mut content = vec![0u8; len];
    let mut covered = 0;
    let mut seen: Vec<(u64, u64)> = Vec::new();
    for chunk in &answer.chunks {
        let (at, size) = match chunk {
            Chunk::Data { offset: at, data } => {
                let at = if dialect == Dialect::Simple {
                    offset
                } else {
                    *at
                };
                (at, data.len() as u64)
            }
            Chunk::Hole { offset: at, len } => (*at, *len),
            other => return Err(bad(format!("{other:?} in the reply to a read"))),
        };
        if at < offset || at + size > offset + len as u64 {
            return Err(bad("a chunk outside of what was asked"));
        }
        if seen.iter().any(|(a, s)| at < a + s && *a < at + size) {
            return Err(bad("chunks that overlap"));
        }
        seen.push((at, size));
        covered += size;
        if let Chunk::Data { data, .. } = chunk {
            let start = (at - offset) as usize;
            content[start..start + data.len()].copy_from_slice(data);
        }
    }
    if covered == len as u64 {
        Ok(content)
    } else {
        Err(bad(format!("{covered} of {len} bytes")))
    }
}
