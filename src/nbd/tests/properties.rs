//! What holds for every stream.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::nbd::{
    Export, Exports, Handshake, OPTION_DATA_MAX, Piece, ReplyBody, Step, Unavailable, Wants,
};

fn any_replies() -> impl Strategy<Value = Replies> {
    prop_oneof![
        Just(Replies::Simple),
        Just(Replies::Structured),
        Just(Replies::Extended)
    ]
}

/// A well-framed request, valid or not.
fn any_request(replies: Replies) -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![0..SIZE, Just(u64::MAX), any::<u64>()];
    let commands = prop_oneof![3 => 0..8_u16, 1 => any::<u16>()];
    let flags = prop_oneof![3 => 0..64_u16, 1 => any::<u16>()];
    (flags, commands, offset, 0..300_u64).prop_map(move |(flags, kind, offset, len)| {
        let kind = if kind == DISC { WRITE } else { kind };
        let mut bytes = request(replies, flags, kind, offset, len);
        let announced = replies == Replies::Extended && flags & PAYLOAD_LEN != 0;
        let has_payload = kind == WRITE || announced;
        if has_payload {
            bytes.resize(bytes.len() + len as usize, 0xa5);
        }
        bytes
    })
}

fn any_stream() -> impl Strategy<Value = (Session, usize, Vec<u8>)> {
    (any_replies(), any::<bool>()).prop_flat_map(|(replies, allocation)| {
        prop::collection::vec(any_request(replies), 1..20).prop_map(move |requests| {
            let session = Session {
                allocation,
                ..session(replies)
            };
            (session, requests.len(), requests.concat())
        })
    })
}

/// The events of a stream that arrives in pieces, with what must hold on the way asserted.
fn in_pieces<'a>(session: &Session, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Event> {
    let mut transmission = Transmission::new(session.clone());
    let (mut input, mut events) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        while let Some(event) = transmission.next(&mut input) {
            events.push(event);
        }
        match transmission.wants(&input) {
            Wants::Header(missing) => {
                let len = if session.replies == Replies::Extended {
                    32
                } else {
                    28
                };
                assert_eq!(input.len() + missing, len);
                assert!(missing > 0);
            }
            Wants::Payload { len, missing } => {
                assert_eq!(input.len() + missing, len);
                assert!(missing > 0 && len <= 32 << 20);
            }
            Wants::Skip(left) => assert!(left > 0 && input.is_empty()),
            Wants::Nothing => break,
        }
    }
    events
}

struct OneDisk;

impl Exports for OneDisk {
    fn list(&self) -> Vec<String> {
        vec!["disk".into()]
    }

    fn find(&self, name: &str) -> Result<Export, Unavailable> {
        if name != "disk" {
            return Err(Unavailable::Unknown);
        }
        Ok(Export {
            name: "disk".into(),
            size: SIZE,
            description: String::new(),
        })
    }
}

/// Pieces of a read: content is never zero, so that holes can be told from it.
fn any_pieces() -> impl Strategy<Value = Vec<Piece>> {
    let content = prop::collection::vec(1..=255_u8, 0..200);
    prop::collection::vec(
        prop_oneof![
            content.prop_map(|content| Piece::Data(Bytes::from(content))),
            (0..200_000_u64).prop_map(Piece::Hole),
        ],
        0..12,
    )
}

proptest! {
    #[test]
    fn every_well_framed_request_is_one_event_wherever_the_stream_is_cut(
        (session, count, stream) in any_stream(),
        size in 1..50_usize,
    ) {
        let whole = events(&session, &stream);
        prop_assert_eq!(whole.len(), count);
        prop_assert_eq!(&in_pieces(&session, stream.chunks(size)), &whole);
        prop_assert_eq!(&in_pieces(&session, stream.chunks(1)), &whole);
    }

    #[test]
    fn requests_that_are_accepted_are_in_range(
        (session, _, stream) in any_stream(),
    ) {
        use crate::nbd::Command as C;
        for event in events(&session, &stream) {
            let Event::Request(request) = event else { continue };
            let (offset, len) = match request.command {
                C::Write { offset, data, .. } => (offset, data.len() as u64),
                C::Flush => continue,
                C::Read { range, .. }
                | C::Trim { range, .. }
                | C::WriteZeroes { range, .. }
                | C::Cache { range }
                | C::BlockStatus { range, .. } => (range.offset, range.len),
            };
            prop_assert!(offset.checked_add(len).is_some_and(|end| end <= SIZE));
        }
    }

    #[test]
    fn noise_after_a_request_never_panics_and_keeps_no_more_than_a_payload(
        (session, _, mut stream) in any_stream(),
        noise in prop::collection::vec(any::<u8>(), 0..2000),
        size in 1..200_usize,
    ) {
        // Without a magic the noise would end the stream at its first four bytes.
        stream.extend(&request(session.replies, 0, 0, 0, 0)[..4]);
        stream.extend(noise);
        in_pieces(&session, stream.chunks(size));
    }

    #[test]
    fn noise_in_a_handshake_never_panics_and_keeps_no_more_than_an_option(
        options in prop::collection::vec(
            (0..13_u32, prop::collection::vec(0..12_u8, 0..60), any::<bool>()),
            0..20,
        ),
        noise in prop::collection::vec(any::<u8>(), 0..500),
        size in 1..100_usize,
    ) {
        let mut stream = 3_u32.to_be_bytes().to_vec();
        for (option, data, lie) in options {
            stream.extend(b"IHAVEOPT");
            stream.extend(option.to_be_bytes());
            let len = data.len() as u32 + u32::from(lie);
            stream.extend(len.to_be_bytes());
            stream.extend(data);
        }
        stream.extend(noise);
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
        let mut server = Handshake::new(&mut output);
        for piece in stream.chunks(size) {
            input.extend_from_slice(piece);
            match server.advance(&mut input, &mut output, &OneDisk) {
                Step::More => prop_assert!(input.len() < 16 + OPTION_DATA_MAX as usize),
                Step::Again => { output.clear(); }
                Step::Done(session) => {
                    prop_assert_eq!(session.export, "disk");
                    break;
                }
                Step::Close(_) => break,
            }
        }
    }

    #[test]
    fn a_client_puts_a_read_together_again(
        replies in any_replies(),
        df in any::<bool>(),
        pieces in any_pieces(),
    ) {
        let mut content = Vec::new();
        for piece in &pieces {
            match piece {
                Piece::Data(data) => content.extend_from_slice(data),
                Piece::Hole(len) => content.resize(content.len() + *len as usize, 0),
            }
        }
        let session = session(replies);
        let flags = if df && replies > Replies::Simple { DF } else { 0 };
        let stream = request(replies, flags, READ, 1000, content.len() as u64);
        let reply_to = accepted(&session, &stream).reply_to;
        let body = ReplyBody::Data { offset: 1000, pieces };
        let received = received(&session, Reply { reply_to, body });

        let mut chunks = 0;
        let mut rebuilt = Vec::new();
        for part in received {
            match part {
                Received::Simple { error, content } => {
                    prop_assert_eq!((error, replies), (0, Replies::Simple));
                    rebuilt = content;
                }
                Received::Chunk { kind: 0, payload, .. } => prop_assert!(payload.is_empty()),
                Received::Chunk { kind, payload, .. } => {
                    chunks += 1;
                    let mut payload = &payload[..];
                    prop_assert_eq!(payload.get_u64(), 1000 + rebuilt.len() as u64);
                    prop_assert!(!payload.is_empty());
                    match kind {
                        1 => rebuilt.extend_from_slice(payload),
                        2 => rebuilt.resize(rebuilt.len() + payload.get_u32() as usize, 0),
                        _ => prop_assert!(false, "chunk of kind {}", kind),
                    }
                }
            }
        }
        prop_assert!(rebuilt == content);
        prop_assert!(chunks <= 1 || flags == 0);
    }
}
