//! Tests of the NBD server, each rule by a sentence. The client's side of the bytes is written out here a second time,
//! by hand, so that a mistake in the structures cannot cancel itself out.

mod handshake;
mod properties;
mod reply;
mod transmission;
mod wire;

use bytes::{Buf, BytesMut};

use super::{Event, Outbox, Replies, Reply, Request, Session, Transmission};

/// Bytes of the export that most tests use: not a multiple of anything.
const SIZE: u64 = (64 << 20) + 7;

fn session(replies: Replies) -> Session {
    Session {
        export: "disk".into(),
        size: SIZE,
        replies,
        allocation: replies >= Replies::Structured,
    }
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;

/// A request as a client sends it, with the header that was negotiated.
fn request(replies: Replies, flags: u16, command: u16, offset: u64, len: u64) -> Vec<u8> {
    let extended = replies == Replies::Extended;
    let magic = if extended {
        0x21e4_1c71_u32
    } else {
        0x2560_9513
    };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(COOKIE.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    if extended {
        bytes.extend(len.to_be_bytes());
    } else {
        bytes.extend(u32::try_from(len).expect("a compact length").to_be_bytes());
    }
    bytes
}

/// A write as a client sends it.
fn write(replies: Replies, flags: u16, offset: u64, data: &[u8]) -> Vec<u8> {
    let flags = if replies == Replies::Extended {
        flags | PAYLOAD_LEN
    } else {
        flags
    };
    let mut bytes = request(replies, flags, WRITE, offset, data.len() as u64);
    bytes.extend(data);
    bytes
}

/// The cookie of every request of [`request`].
const COOKIE: u64 = 0xfeed_0000_c0ff_ee01;

/// All events of a stream that arrives at once; nothing of it may be left over.
fn events(session: &Session, stream: &[u8]) -> Vec<Event> {
    let mut transmission = Transmission::new(session.clone());
    let mut input = BytesMut::from(stream);
    let events: Vec<Event> = std::iter::from_fn(|| transmission.next(&mut input)).collect();
    assert!(input.is_empty(), "left over: {input:?}");
    events
}

/// The only event of a stream.
fn event(session: &Session, stream: &[u8]) -> Event {
    let mut events = events(session, stream);
    assert_eq!(events.len(), 1, "{events:?}");
    events.remove(0)
}

/// The only event of a stream, which is a request.
fn accepted(session: &Session, stream: &[u8]) -> Request {
    match event(session, stream) {
        Event::Request(request) => request,
        other => panic!("not accepted: {other:?}"),
    }
}

/// The only event of a stream, which is a request that is refused.
fn rejected(session: &Session, stream: &[u8]) -> Reply {
    match event(session, stream) {
        Event::Reject(reply) => reply,
        other => panic!("not rejected: {other:?}"),
    }
}

/// A reply as bytes.
fn encode(session: &Session, reply: Reply) -> Vec<u8> {
    let mut out = Outbox::new();
    Transmission::new(session.clone()).encode(reply, &mut out);
    let len = out.len();
    let bytes: Vec<u8> = out.drain().flatten().collect();
    assert_eq!(bytes.len(), len);
    bytes
}

/// A reply as a client reads it.
#[derive(PartialEq, Eq, Debug)]
enum Received {
    Simple {
        error: u32,
        content: Vec<u8>,
    },
    Chunk {
        done: bool,
        kind: u16,
        payload: Vec<u8>,
    },
}

/// Takes a stream of replies apart. A simple reply has the rest of the stream as its content.
fn receive(replies: Replies, offset: u64, mut stream: &[u8]) -> Vec<Received> {
    let mut received = Vec::new();
    while !stream.is_empty() {
        let magic = stream.get_u32();
        if magic == 0x6744_6698 {
            assert!(replies < Replies::Extended);
            let error = stream.get_u32();
            assert_eq!(stream.get_u64(), COOKIE);
            let content = std::mem::take(&mut stream).to_vec();
            received.push(Received::Simple { error, content });
            continue;
        }
        let (flags, kind) = (stream.get_u16(), stream.get_u16());
        assert_eq!(stream.get_u64(), COOKIE);
        let len = if replies == Replies::Extended {
            assert_eq!(magic, 0x6e8a_278c);
            assert_eq!(stream.get_u64(), offset, "the offset of the request");
            stream.get_u64() as usize
        } else {
            assert_eq!((magic, replies), (0x668e_33ef, Replies::Structured));
            stream.get_u32() as usize
        };
        assert!(flags <= 1);
        let (payload, rest) = stream.split_at(len);
        let done = flags == 1;
        assert_eq!(done, rest.is_empty(), "only the last chunk is marked");
        let payload = payload.to_vec();
        received.push(Received::Chunk {
            done,
            kind,
            payload,
        });
        stream = rest;
    }
    received
}

/// What a client learns from one reply.
fn received(session: &Session, reply: Reply) -> Vec<Received> {
    let offset = reply.reply_to.offset;
    receive(session.replies, offset, &encode(session, reply))
}
