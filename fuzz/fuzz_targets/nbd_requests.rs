//! What a client may say once it has an export. The first byte chooses what was negotiated.
#![no_main]

use bytes::{Bytes, BytesMut};
use doublure::nbd::{
    Command, Event, Extent, Outbox, Piece, Replies, Reply, ReplyBody, Request, Session,
    Transmission, Wants,
};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 1 << 30;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else {
        return;
    };
    let replies = [Replies::Simple, Replies::Structured, Replies::Extended][usize::from(kind) % 3];
    let session = Session {
        export: "a".into(),
        size: SIZE,
        replies,
        allocation: kind & 0x80 != 0,
    };
    let mut transmission = Transmission::new(session);
    let mut input = BytesMut::new();
    for part in data.chunks(67) {
        input.extend_from_slice(part);
        while let Some(event) = transmission.next(&mut input) {
            let mut out = Outbox::new();
            match event {
                Event::Request(request) => transmission.encode(answer(request), &mut out),
                Event::Reject(reply) => transmission.encode(reply, &mut out),
                Event::Disconnect | Event::Violation(_) => return,
            }
            let sent: usize = out.drain().map(|bytes| bytes.len()).sum();
            assert!(sent >= 16, "every request is answered");
        }
        if let Wants::Payload { missing, .. } = transmission.wants(&input) {
            assert!(missing > 0);
        }
    }
});

/// An answer such as the engine would give.
fn answer(Request { reply_to, command }: Request) -> Reply {
    let inside = |offset: u64, len: u64| {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= SIZE),
            "a request out of range was let through"
        );
    };
    let body = match command {
        Command::Write { offset, data, .. } => {
            inside(offset, data.len() as u64);
            ReplyBody::Done
        }
        Command::Read { range, holes } => {
            inside(range.offset, range.len);
            let data = range.len.min(1000);
            let mut pieces = vec![Piece::Data(Bytes::from(vec![1; data as usize]))];
            if range.len > data {
                assert!(range.len <= 32 << 20);
                // Where no holes are wanted zeroes are content all the same.
                pieces.push(Piece::Hole(range.len - data));
            }
            let _ = holes;
            ReplyBody::Data {
                offset: range.offset,
                pieces,
            }
        }
        Command::BlockStatus { range, .. } => {
            inside(range.offset, range.len);
            assert!(range.len > 0);
            let extent = Extent {
                len: range.len,
                hole: true,
                zero: true,
            };
            ReplyBody::Status {
                offset: range.offset,
                extents: vec![extent],
            }
        }
        Command::Trim { range, .. }
        | Command::WriteZeroes { range, .. }
        | Command::Cache { range } => {
            inside(range.offset, range.len);
            ReplyBody::Done
        }
        Command::Flush => ReplyBody::Done,
    };
    Reply { reply_to, body }
}
