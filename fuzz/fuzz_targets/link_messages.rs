//! What a peer may send. The first byte asks for right checksums (1), for a decoder that was greeted already (2), and
//! for frames to be received where they will lie (4).
#![no_main]

use bytes::{Bytes, BytesMut};
use doublure::base::Message;
use doublure::journal::Frame;
use doublure::link::{Decoder, Kind, encode};
use doublure_fuzz::mend;
use libfuzzer_sys::fuzz_target;

/// A greeting as the encoder writes it.
const GREETING: &[u8] = include_bytes!("../seeds/link_messages/greeting");

fuzz_target!(|data: &[u8]| {
    let Some((&mode, data)) = data.split_first() else {
        return;
    };
    let mut data = data.to_vec();
    if mode & 1 != 0 {
        mend::link(&mut data);
    }
    let mut decoder = Decoder::new();
    if mode & 2 != 0 {
        let hello = decoder
            .next(&mut BytesMut::from(&GREETING[1..]))
            .expect("a good greeting");
        assert!(hello.is_some());
    }
    let mut input = BytesMut::new();
    let mut rest = &data[..];
    while !rest.is_empty() {
        let lent = if mode & 4 != 0 { decoder.lend() } else { None };
        if let Some((mut buffer, missing)) = lent {
            let (part, after) = rest.split_at(missing.min(rest.len()).min(1000));
            buffer.extend_from_slice(part);
            decoder.give_back(buffer);
            rest = after;
        } else {
            let (part, after) = rest.split_at(rest.len().min(113));
            input.extend_from_slice(part);
            rest = after;
        }
        loop {
            match decoder.next(&mut input) {
                Ok(Some(message)) => look_at(&message),
                Ok(None) => break,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    return;
                }
            }
            assert!(decoder.wants() > 0);
        }
    }
});

/// What was accepted can be sent on, and means the same.
fn look_at(message: &Message) {
    if let Message::Frame(bytes) = message
        && let Ok(frame) = Frame::parse(bytes.clone())
        && frame.verify_payloads().is_ok()
    {
        assert!(frame.last_lsn() >= frame.first_lsn() && frame.commit_lsn() <= frame.last_lsn());
        // Only some: each may say that it decompresses to a mebibyte.
        for (lsn, op, payload) in frame.ops().take(4) {
            assert!(lsn <= frame.last_lsn());
            if let Ok(content) = payload.content() {
                assert!(
                    op.kind.is_control()
                        || content.is_empty()
                        || content.len() as u64 == op.range.len
                );
            }
        }
    }
    let mut sent: Vec<Bytes> = Vec::new();
    encode(message, &mut sent).expect("what one site may say, another may");
    let sent = sent.concat();
    let mut decoder = Decoder::new();
    let mut input = BytesMut::new();
    if sent[4..6] != (Kind::Hello as u16).to_le_bytes() {
        input.extend_from_slice(&GREETING[1..]);
        decoder.next(&mut input).expect("a good greeting");
    }
    input.extend_from_slice(&sent);
    let again = decoder
        .next(&mut input)
        .expect("what we send is right")
        .expect("and complete");
    assert_eq!(again, *message);
}
