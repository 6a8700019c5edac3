//! What a client may say once it has an export. The first byte chooses what was negotiated.
#![no_main]

use bytes::BytesMut;
use doublure::nbd::{Event, Outbox, Replies, Session, Transmission};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 1 << 30;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    let replies = [Replies::Simple, Replies::Structured, Replies::Extended][usize::from(kind) % 3];
    let session = Session { export: "a".into(), size: SIZE, replies, allocation: kind & 0x80 != 0 };
    let mut transmission = Transmission::new(session);
    let mut input = BytesMut::new();
    for part in data.chunks(67) {
        input.extend_from_slice(part);
        while let Some(event) = transmission.next(&mut input) {
            let mut out = Outbox::new();
            match event {
                Event::Request(request) => {
                    let range = match &request.command {
                        doublure::nbd::Command::Write { offset, data, .. } => offset.checked_add(data.len() as u64),
                        doublure::nbd::Command::Read { range, .. } => range.offset.checked_add(range.len),
                        _ => Some(0),
                    };
                    assert!(range.is_some_and(|end| end <= SIZE), "a request out of range was let through");
                }
                Event::Reject(reply) => transmission.encode(reply, &mut out),
                Event::Disconnect | Event::Violation(_) => return,
            }
        }
    }
});
