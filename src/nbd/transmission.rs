//! The transmission phase: requests out of bytes.

use bytes::{Buf, BytesMut};
use zerocopy::FromBytes;

use super::request::Shape;
use super::wire::{
    ALLOCATION_ID, COMPACT_REQUEST_MAGIC, CompactRequest, EXTENDED_REQUEST_MAGIC, ExtendedRequest,
    StatusFilter, command, command_flag as flag,
};
use super::{
    Command, Errno, MAX_PAYLOAD, Outbox, Replies, Reply, ReplyTo, Request, Session, reply,
};
use crate::base::ByteRange;

/// What a client did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A valid request.
    Request(Request),
    /// A request that is refused: send this. Its payload is gone already.
    Reject(Reply),
    /// The client takes its leave: answer what is outstanding, then close.
    Disconnect,
    /// The client broke the protocol in a way that leaves no common framing: close. The sentence is for the log.
    Violation(String),
}

/// What the parser needs before it can go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wants {
    /// This many more bytes of a header; more are welcome.
    Header(usize),
    /// More of a payload that will be kept. Make room for all of it, against a budget, before receiving the rest.
    Payload {
        /// Bytes of the whole payload; the first of them may be in the input already.
        len: usize,
        /// Bytes of it still to receive.
        missing: usize,
    },
    /// More of a payload that is skipped as it comes: any amount of room will do.
    Skip(u64),
    /// Nothing: the client took its leave or broke the protocol.
    Nothing,
}

/// Parses the requests of one connection and encodes the replies to them.
///
/// Receive into a buffer, call [`next`](Transmission::next) until it returns `None`, then ask
/// [`wants`](Transmission::wants) how much room the next reception needs. The payload of a write is split off that
/// buffer, not copied: it holds on to the buffer's memory for as long as it lives.
#[derive(Debug)]
pub struct Transmission {
    session: Session,
    state: State,
}

#[derive(Debug)]
enum State {
    Header,
    /// Waits for all of a payload that is wanted.
    Payload {
        len: usize,
        then: Then,
    },
    /// Skips the payload of a refused request, then refuses it. Not before: a client may not expect the reply to a
    /// request that it has not finished sending (libnbd gives the connection up).
    Skip {
        left: u64,
        reply: Reply,
    },
    Over,
}

/// What a payload is for.
#[derive(Clone, Copy, Debug)]
enum Then {
    Write {
        reply_to: ReplyTo,
        fua: bool,
    },
    /// The payload says which contexts and how many bytes.
    Status {
        reply_to: ReplyTo,
    },
}

/// A request's header, of either size.
#[derive(Clone, Copy)]
struct Header {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    /// Bytes the command concerns, or of payload.
    len: u64,
    /// Bytes that follow the header.
    payload_len: u64,
}

/// A header that holds.
enum Valid {
    Request(Command),
    Payload(Then),
}

/// Why a request is refused.
type Refusal = (Errno, String);

impl Transmission {
    /// The connection as it comes out of the handshake.
    pub fn new(session: Session) -> Transmission {
        Transmission {
            session,
            state: State::Header,
        }
    }

    /// What was negotiated.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Takes the next event out of `input`; `None` if more bytes are needed.
    pub fn next(&mut self, input: &mut BytesMut) -> Option<Event> {
        loop {
            match &mut self.state {
                State::Header => {
                    let header = match self.header(input)? {
                        Ok(header) => header,
                        Err(reason) => return Some(self.violation(reason)),
                    };
                    if let Some(event) = self.begin(header) {
                        return Some(event);
                    }
                }
                &mut State::Payload { len, then } => {
                    if input.len() < len {
                        return None;
                    }
                    let payload = input.split_to(len);
                    self.state = State::Header;
                    return Some(self.with_payload(then, payload));
                }
                State::Skip { left, reply } => {
                    let skipped = (input.len() as u64).min(*left);
                    input.advance(skipped as usize);
                    *left -= skipped;
                    if *left > 0 {
                        return None;
                    }
                    let reply = reply.clone();
                    self.state = State::Header;
                    return Some(Event::Reject(reply));
                }
                State::Over => return None,
            }
        }
    }

    /// What is needed beyond `input`, in which [`next`](Transmission::next) found nothing more.
    pub fn wants(&self, input: &BytesMut) -> Wants {
        match self.state {
            State::Header => Wants::Header(self.header_len().saturating_sub(input.len())),
            State::Payload { len, .. } => Wants::Payload {
                len,
                missing: len.saturating_sub(input.len()),
            },
            State::Skip { left, .. } => Wants::Skip(left),
            State::Over => Wants::Nothing,
        }
    }

    /// Appends the bytes of a reply to `out`. Content is passed on, not copied.
    pub fn encode(&self, reply: Reply, out: &mut Outbox) {
        reply::encode(&self.session, reply, out);
    }

    fn extended(&self) -> bool {
        self.session.replies == Replies::Extended
    }

    fn header_len(&self) -> usize {
        if self.extended() {
            size_of::<ExtendedRequest>()
        } else {
            size_of::<CompactRequest>()
        }
    }

    /// Takes a header out of `input`, or says how it breaks the protocol.
    fn header(&self, input: &mut BytesMut) -> Option<Result<Header, String>> {
        // The magic is judged as soon as it is here: a client that believes in shorter headers would wait for ever.
        let magic = u32::from_be_bytes(*input.first_chunk()?);
        let expected = if self.extended() {
            EXTENDED_REQUEST_MAGIC
        } else {
            COMPACT_REQUEST_MAGIC
        };
        if magic != expected {
            return Some(Err(format!("a request begins with {magic:#010x}")));
        }
        let header = if self.extended() {
            let (raw, _) = ExtendedRequest::ref_from_prefix(input).ok()?;
            let (flags, command, len) = (raw.flags.get(), raw.command.get(), raw.len.get());
            // QEMU (10.0) sends the payload of a WRITE without announcing it.
            let has_payload = flags & flag::PAYLOAD_LEN != 0 || command == command::WRITE;
            Header {
                flags,
                command,
                cookie: raw.cookie.get(),
                offset: raw.offset.get(),
                len,
                payload_len: if has_payload { len } else { 0 },
            }
        } else {
            let (raw, _) = CompactRequest::ref_from_prefix(input).ok()?;
            let (command, len) = (raw.command.get(), u64::from(raw.len.get()));
            Header {
                flags: raw.flags.get(),
                command,
                cookie: raw.cookie.get(),
                offset: raw.offset.get(),
                len,
                payload_len: if command == command::WRITE { len } else { 0 },
            }
        };
        input.advance(self.header_len());
        Some(Ok(header))
    }

    /// Acts on a header; `None` if a payload, wanted or not, comes first.
    fn begin(&mut self, header: Header) -> Option<Event> {
        if header.command == command::DISC {
            self.state = State::Over;
            return Some(Event::Disconnect);
        }
        // With compact headers a payload too large is still skipped: at most 4 GiB that the client has to send.
        if self.extended() && header.payload_len > u64::from(MAX_PAYLOAD) {
            return Some(self.violation(format!("a payload of {} bytes", header.payload_len)));
        }
        let reply_to = header.reply_to();
        match self.validate(&header) {
            Ok(Valid::Request(command)) => {
                return Some(Event::Request(Request { reply_to, command }));
            }
            Ok(Valid::Payload(then)) => {
                self.state = State::Payload {
                    len: header.payload_len as usize,
                    then,
                };
            }
            Err((errno, message)) => {
                self.state = State::Skip {
                    left: header.payload_len,
                    reply: Reply::error(reply_to, errno, message),
                };
            }
        }
        None
    }

    fn violation(&mut self, reason: String) -> Event {
        self.state = State::Over;
        Event::Violation(reason)
    }

    /// Whether the request may be asked, as far as its header tells.
    fn validate(&self, header: &Header) -> Result<Valid, Refusal> {
        self.check_flags(header)?;
        let has = |bit| header.flags & bit != 0;
        let fua = has(flag::FUA);
        let range = ByteRange::new(header.offset, header.len);
        Ok(Valid::Request(match header.command {
            command::READ => {
                self.check_range(header.command, header.offset, header.len, Errno::Inval)?;
                self.check_read_len(header)?;
                Command::Read {
                    range,
                    holes: self.session.replies >= Replies::Structured && !has(flag::DF),
                }
            }
            command::WRITE => {
                self.check_range(header.command, header.offset, header.len, Errno::NoSpc)?;
                if header.len > u64::from(MAX_PAYLOAD) {
                    return Err((Errno::Inval, too_long(header)));
                }
                let reply_to = header.reply_to();
                return Ok(Valid::Payload(Then::Write { reply_to, fua }));
            }
            command::FLUSH => {
                if header.offset != 0 || header.len != 0 {
                    return Err((Errno::Inval, "FLUSH has no offset and no length".into()));
                }
                Command::Flush
            }
            command::TRIM => {
                self.check_range(header.command, header.offset, header.len, Errno::Inval)?;
                Command::Trim { range, fua }
            }
            command::CACHE => {
                self.check_range(header.command, header.offset, header.len, Errno::Inval)?;
                Command::Cache { range }
            }
            command::WRITE_ZEROES => {
                self.check_range(header.command, header.offset, header.len, Errno::NoSpc)?;
                // FAST_ZERO needs no look: no payload is written, whatever the length.
                Command::WriteZeroes {
                    range,
                    fua,
                    no_hole: has(flag::NO_HOLE),
                }
            }
            command::BLOCK_STATUS => {
                if !self.session.allocation {
                    let message = "BLOCK_STATUS without a metadata context selected";
                    return Err((Errno::Inval, message.into()));
                }
                if has(flag::PAYLOAD_LEN) {
                    return check_filter_len(header);
                }
                self.status(header.reply_to(), header.len)?
            }
            other => return Err((Errno::Inval, format!("command {other} is not known here"))),
        }))
    }

    /// FUA applies to everything, as it was offered; the rest to the commands that know them.
    fn check_flags(&self, header: &Header) -> Result<(), Refusal> {
        let applicable = match header.command {
            command::READ if self.session.replies >= Replies::Structured => flag::DF,
            command::WRITE if self.extended() => flag::PAYLOAD_LEN,
            command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
            command::BLOCK_STATUS if self.extended() => flag::REQ_ONE | flag::PAYLOAD_LEN,
            command::BLOCK_STATUS => flag::REQ_ONE,
            _ => 0,
        };
        let strange = header.flags & !(applicable | flag::FUA);
        if strange == 0 {
            return Ok(());
        }
        let name = name(header.command);
        let message = format!("flags {strange:#x} do not apply to {name}");
        Err((Errno::Inval, message))
    }

    fn check_range(
        &self,
        command: u16,
        offset: u64,
        len: u64,
        errno: Errno,
    ) -> Result<(), Refusal> {
        let (size, name) = (self.session.size, name(command));
        if offset.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(());
        }
        let message =
            format!("{name} of {len} bytes at {offset} goes beyond the end of the export, {size}");
        Err((errno, message))
    }

    fn check_read_len(&self, header: &Header) -> Result<(), Refusal> {
        if header.len <= u64::from(MAX_PAYLOAD) {
            return Ok(());
        }
        // EOVERFLOW is for clients that could have been told in chunks; the others know EINVAL only.
        let errno = if self.session.replies >= Replies::Structured {
            Errno::Overflow
        } else {
            Errno::Inval
        };
        Err((errno, too_long(header)))
    }

    /// A `BLOCK_STATUS` of this many bytes.
    fn status(&self, reply_to: ReplyTo, len: u64) -> Result<Command, Refusal> {
        let offset = reply_to.offset;
        if len == 0 {
            return Err((Errno::Inval, "BLOCK_STATUS of no bytes".into()));
        }
        self.check_range(command::BLOCK_STATUS, offset, len, Errno::Inval)?;
        Ok(Command::BlockStatus {
            range: ByteRange::new(offset, len),
            one: reply_to.shape == Shape::StatusOne,
        })
    }

    /// All of a payload is here.
    fn with_payload(&self, then: Then, payload: BytesMut) -> Event {
        match then {
            Then::Write { reply_to, fua } => Event::Request(Request {
                reply_to,
                command: Command::Write {
                    offset: reply_to.offset,
                    data: payload.freeze(),
                    fua,
                },
            }),
            Then::Status { mut reply_to } => {
                let filter =
                    StatusFilter::ref_from_bytes(&payload).expect("its length was checked");
                reply_to.len = filter.len.get();
                let command = if filter.context == ALLOCATION_ID {
                    self.status(reply_to, reply_to.len)
                } else {
                    let message = format!("metadata context {} is not known", filter.context);
                    Err((Errno::Inval, message))
                };
                match command {
                    Ok(command) => Event::Request(Request { reply_to, command }),
                    Err((errno, message)) => Event::Reject(Reply::error(reply_to, errno, message)),
                }
            }
        }
    }
}

impl Header {
    fn reply_to(&self) -> ReplyTo {
        let has = |bit| self.flags & bit != 0;
        ReplyTo {
            cookie: self.cookie,
            offset: self.offset,
            len: self.len,
            shape: match self.command {
                command::READ if has(flag::DF) => Shape::ReadWhole,
                command::READ => Shape::Read,
                command::BLOCK_STATUS if has(flag::REQ_ONE) => Shape::StatusOne,
                command::BLOCK_STATUS => Shape::Status,
                _ => Shape::Plain,
            },
        }
    }
}

/// One context is known, so it is named once or the payload is wrong.
fn check_filter_len(header: &Header) -> Result<Valid, Refusal> {
    if header.payload_len == size_of::<StatusFilter>() as u64 {
        return Ok(Valid::Payload(Then::Status {
            reply_to: header.reply_to(),
        }));
    }
    let message = format!(
        "{} bytes do not name the one selected context once",
        header.payload_len
    );
    Err((Errno::Inval, message))
}

fn too_long(header: &Header) -> String {
    let name = name(header.command);
    format!(
        "{name} of {} bytes, at most {MAX_PAYLOAD} are allowed",
        header.len
    )
}

/// The command as the specification calls it, without its prefix.
fn name(command: u16) -> &'static str {
    match command {
        command::READ => "READ",
        command::WRITE => "WRITE",
        command::FLUSH => "FLUSH",
        command::TRIM => "TRIM",
        command::CACHE => "CACHE",
        command::WRITE_ZEROES => "WRITE_ZEROES",
        command::BLOCK_STATUS => "BLOCK_STATUS",
        _ => "an unknown command",
    }
}
