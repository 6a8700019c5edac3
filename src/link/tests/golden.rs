//! The bytes of every message as version 1 wrote them. They never change: a site that was not upgraded sends them.

use super::*;

/// Each message of `one_of_each`, 16 bytes a line: the header on the first. Of the frame only the header.
const GOLDEN: [(Kind, &[&str]); 20] = [
    (
        Kind::Hello,
        &[
            "44424c4b010000002f0100008e7bf5f8",
            "01000100000000000000000000000000",
            "00000000000000000000000000000000",
            "00000000000000a00101000000000000",
            "02010000000000000301000000000000",
            "04010000000000000501000000000000",
            "0601000000000000bebafeca02000000",
            "01000000040303080607000000000000",
            "000000000000000000000000000000b0",
            "7265676973747279636c696368796368",
            "656c6c65730100000000000000000000",
            "000000000000000000000000e1640000",
            "00000000004433221100000000020006",
            "0000000000636c696368790200000000",
            "00000000000000000000000000000000",
            "0000e2c8000000000000004433221100",
            "00000002010700000000006368656c6c",
            "65730000000000000000000000000000",
            "00f00000008002000000030000000d00",
            "000072656769737472792d64617461",
        ],
    ),
    (
        Kind::Refuse,
        &[
            "44424c4b0200000016000000ae0764f7",
            "05000000626f74682073697465732077",
            "656e74206f6e",
        ],
    ),
    (
        Kind::StartStream,
        &["44424c4b030000000800000024913577", "0102000000000000"],
    ),
    (
        Kind::StartFetch,
        &["44424c4b0400000008000000b26e4304", "0202000000000000"],
    ),
    (
        Kind::StartCopy,
        &[
            "44424c4b050000009b000000f0923016",
            "000000000000000000000000000000a0",
            "03020000000000000050000000000000",
            "03000000bebafeca0100000001000000",
            "01010000000000000100000000000000",
            "000000000000000000000000000000e1",
            "64000000000000004433221100000000",
            "0200060000000000636c696368790000",
            "00000000000000000000000000f00000",
            "008002000000030000000d0000007265",
            "6769737472792d64617461",
        ],
    ),
    (
        Kind::StartHandover,
        &[
            "44424c4b0600000018000000536a7dbd",
            "000000000000000000000000000000e1",
            "0402000000000000",
        ],
    ),
    (Kind::Started, &["44424c4b070000000000000023991014"]),
    (Kind::Frame, &["44424c4b0800000000100000ff2816d1"]),
    (
        Kind::Ack,
        &[
            "44424c4b090000003800000091d65646",
            "01030000000000000203000000000000",
            "03030000000000000403000000000000",
            "ffffffffffffffff0060000000000000",
            "0300000003000000",
        ],
    ),
    (
        Kind::Commit,
        &["44424c4b0a00000008000000c0aa9ec9", "0104000000000000"],
    ),
    (
        Kind::Ping,
        &["44424c4b0b00000008000000a91f751b", "ffffffffffffffff"],
    ),
    (
        Kind::Pong,
        &["44424c4b0c0000000800000090c8783c", "0105000000000000"],
    ),
    (
        Kind::Chunk,
        &[
            "44424c4b0d0000002c000000faf21f6d",
            "00500000000000000c00000000000000",
            "030000003f311f430100000000000000",
            "736f6d6520636f6e74656e74",
        ],
    ),
    (
        Kind::ChunksEnd,
        &["44424c4b0e000000080000006ef7308a", "0106000000000000"],
    ),
    (
        Kind::FetchEnd,
        &["44424c4b0f000000080000001c61d7aa", "0206000000000000"],
    ),
    (Kind::Taken, &["44424c4b100000000000000011a16e62"]),
    (
        Kind::Bye,
        &["44424c4b11000000070000001225a292", "73746f70706564"],
    ),
    (
        Kind::Touched,
        &[
            "44424c4b12000000170000009ba4870a",
            "030000000f0000003b30000001000002",
            "00010000000200",
        ],
    ),
    (
        Kind::Compare,
        &[
            "44424c4b1300000020000000ae5aace9",
            "00000400000000000000040000000000",
            "03000000010000000107000000000000",
        ],
    ),
    (
        Kind::Compared,
        &[
            "44424c4b14000000380000005ffb918f",
            "00000400000000000000040000000000",
            "0300000000000000b3b3b3b3b3b3b3b3",
            "b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3",
            "b3b3b3b3b3b3b3b3",
        ],
    ),
];

fn unhex(lines: &[&str]) -> Vec<u8> {
    let digits = lines.concat();
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two hex digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

#[test]
fn every_message_is_written_as_ever() {
    for ((kind, golden), message) in GOLDEN.into_iter().zip(arbitrary::one_of_each()) {
        let mut written = encoded(&message);
        if kind == Kind::Frame {
            written.truncate(HEADER);
        }
        assert_eq!(written, unhex(golden), "{kind}");
    }
}

#[test]
fn every_message_is_read_as_ever() {
    for ((kind, golden), message) in GOLDEN.into_iter().zip(arbitrary::one_of_each()) {
        let mut bytes = input(&unhex(golden));
        if let Message::Frame(frame) = &message {
            bytes.extend_from_slice(frame);
        }
        assert_eq!(greeted().next(&mut bytes), Ok(Some(message)), "{kind}");
        assert!(bytes.is_empty());
    }
}

#[test]
fn the_golden_messages_are_all_there_are() {
    assert_eq!(GOLDEN.map(|(kind, _)| kind), Kind::ALL);
    assert_eq!(
        Kind::ALL.map(|kind| kind as usize).to_vec(),
        (1..=20).collect::<Vec<_>>()
    );
}
