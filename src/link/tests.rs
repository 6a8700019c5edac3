use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::wire::{Header, HelloPrefix, MAGIC};
use super::*;
use crate::base::{
    AckMode, AlignedBuf, BLOCK, ByteRange, CHUNK_BYTES, ChunkSet, Epoch, Hello, Lineage, Lsn,
    Message, Refusal, Stance, Start, VolumeId, VolumeSpec,
};

mod arbitrary;
mod golden;
mod hostile;

fn encoded(message: &Message) -> Vec<u8> {
    let mut out: Vec<Bytes> = Vec::new();
    encode(message, &mut out).unwrap_or_else(|e| panic!("{e}"));
    out.concat()
}

fn input(bytes: &[u8]) -> BytesMut {
    BytesMut::from(bytes)
}

fn epoch(number: u64, site: &str) -> Epoch {
    Epoch {
        number,
        id: Uuid::from_u128(0xE0 + u128::from(number)),
        site: site.into(),
        first_lsn: Lsn(number * 100),
        ack: AckMode::Memsync,
        alone: number == 2,
        complete: number == 3,
        mixture: false,
        time_ns: 0x1122_3344,
    }
}

fn volume() -> VolumeSpec {
    VolumeSpec {
        id: VolumeId(3),
        uuid: Uuid::from_u128(0xF0),
        name: "registry-data".into(),
        size: 10 << 30,
    }
}

fn hello() -> Message {
    Message::Hello(Box::new(Hello {
        group_id: Uuid::from_u128(0xA0),
        group: "registry".into(),
        site: "clichy".into(),
        to_site: "chelles".into(),
        stance: Stance::Mirror,
        lineage: Lineage::new(vec![epoch(1, "clichy"), epoch(2, "chelles")]).unwrap(),
        tail: Lsn(0x101),
        commit: Lsn(0x102),
        chain: 0xCAFE_BABE,
        told_durable: Lsn(0x103),
        floor: Lsn(0x104),
        inconsistent_until: Some(Lsn(0x105)),
        alone: true,
        ack: AckMode::Async,
        volumes: vec![volume()],
        journal_first: Lsn(0x106),
        given_up: Uuid::from_u128(0xB0),
        mixture: Uuid::from_u128(0xC0),
        written: Some(Lsn(0x107)),
    }))
}

fn chunk(content: &'static [u8]) -> Message {
    Message::Chunk {
        volume: VolumeId(3),
        range: ByteRange::new(0x5000, content.len() as u64),
        data: Some(Bytes::from_static(content)),
        crc: crc32fast::hash(content),
    }
}

/// A decoder that was greeted, and nothing else happened.
fn greeted() -> Decoder {
    let mut decoder = Decoder::new();
    let mut bytes = input(&encoded(&hello()));
    assert!(decoder.next(&mut bytes).unwrap().is_some());
    decoder
}

/// All of the messages in these bytes, received in pieces of these sizes, over and over.
fn receive(
    decoder: &mut Decoder,
    bytes: &[u8],
    sizes: &[usize],
) -> Result<Vec<Message>, LinkError> {
    let mut sizes = sizes.iter().cycle();
    let (mut rest, mut buffer, mut messages) = (bytes, BytesMut::new(), Vec::new());
    loop {
        while let Some(message) = decoder.next(&mut buffer)? {
            messages.push(message);
        }
        if rest.is_empty() {
            return Ok(messages);
        }
        let piece;
        let size = *sizes.next().expect("at least one size");
        (piece, rest) = rest.split_at(size.clamp(1, rest.len()));
        buffer.extend_from_slice(piece);
    }
}

#[test]
fn the_content_of_frames_and_chunks_is_passed_through_without_a_copy() {
    let frame = Bytes::from(vec![7; 8192]);
    let mut out: Vec<Bytes> = Vec::new();
    encode(&Message::Frame(frame.clone()), &mut out).unwrap();
    assert_eq!(out.len(), 2);
    assert_eq!(out[1].as_ptr(), frame.as_ptr());

    let content = Bytes::from(vec![8; 100]);
    let message = Message::Chunk {
        volume: VolumeId(0),
        range: ByteRange::new(0, 100),
        crc: crc32fast::hash(&content),
        data: Some(content.clone()),
    };
    out.clear();
    encode(&message, &mut out).unwrap();
    assert_eq!(out.len(), 2);
    assert_eq!(out[1].as_ptr(), content.as_ptr());
}

#[test]
fn a_frame_arrives_in_memory_that_direct_io_accepts_and_leaves_what_follows() {
    let frame: Vec<u8> = (0..3 * BLOCK).map(|at| (at % 251) as u8).collect();
    let mut bytes = input(&encoded(&Message::Frame(frame.clone().into())));
    bytes.extend_from_slice(&encoded(&Message::Started));
    let mut decoder = greeted();
    let Some(Message::Frame(received)) = decoder.next(&mut bytes).unwrap() else {
        panic!("not a frame");
    };
    assert_eq!(received.as_ptr().align_offset(BLOCK), 0);
    assert_eq!(received, frame);
    assert_eq!(decoder.next(&mut bytes).unwrap(), Some(Message::Started));
}

#[test]
fn the_rest_of_a_long_frame_is_received_where_it_will_stay() {
    let frame: Vec<u8> = (0..2 * BLOCK).map(|at| (at % 251) as u8).collect();
    let bytes = encoded(&Message::Frame(frame.clone().into()));
    let mut decoder = greeted();
    let mut buffer = input(&bytes[..HEADER + 1000]);
    assert_eq!(decoder.next(&mut buffer).unwrap(), None);
    assert!(buffer.is_empty());
    let missing = 2 * BLOCK - 1000;
    assert_eq!(decoder.wants(), missing);

    let (mut lent, room) = decoder.lend().unwrap();
    assert_eq!((lent.len(), room), (1000, missing));
    assert!(decoder.lend().is_none(), "there is only one");
    lent.extend_from_slice(&frame[1000..6000]);
    let place = lent.as_ptr();
    decoder.give_back(lent);
    assert_eq!(decoder.wants(), missing - 5000);
    assert_eq!(decoder.next(&mut buffer).unwrap(), None);
    assert_eq!(decoder.wants(), missing - 5000);
    let (mut lent, _) = decoder.lend().unwrap();
    lent.extend_from_slice(&frame[6000..]);
    decoder.give_back(lent);
    assert!(decoder.lend().is_none(), "it is complete");
    let Some(Message::Frame(received)) = decoder.next(&mut buffer).unwrap() else {
        panic!("not a frame");
    };
    assert_eq!(received, frame);
    assert_eq!(received.as_ptr(), place);
    assert!(decoder.lend().is_none());
    assert_eq!(decoder.wants(), HEADER);
}

#[test]
fn nothing_is_decoded_while_a_frame_is_lent() {
    let frame = encoded(&Message::Frame(vec![1; BLOCK].into()));
    let mut decoder = greeted();
    assert_eq!(decoder.next(&mut input(&frame[..HEADER])), Ok(None));
    let (mut lent, _) = decoder.lend().unwrap();
    let mut buffer = input(&frame[HEADER + 100..]);
    assert_eq!(decoder.next(&mut buffer), Ok(None));
    assert_eq!(buffer.len(), BLOCK - 100);
    lent.extend_from_slice(&frame[HEADER..HEADER + 100]);
    decoder.give_back(lent);
    assert!(decoder.next(&mut buffer).unwrap().is_some());
}

#[test]
#[should_panic(expected = "a frame of 4096 bytes came back with 5000")]
fn a_frame_does_not_come_back_longer_than_it_is() {
    let frame = encoded(&Message::Frame(vec![1; BLOCK].into()));
    let mut decoder = greeted();
    assert_eq!(decoder.next(&mut input(&frame[..HEADER])), Ok(None));
    assert!(decoder.lend().is_some());
    decoder.give_back(AlignedBuf::zeroed(5000));
}

#[test]
fn an_absent_message_says_how_much_is_missing() {
    let bytes = encoded(&Message::Ping { token: 5 });
    let mut decoder = greeted();
    assert_eq!(decoder.wants(), HEADER);
    for have in 0..bytes.len() {
        assert_eq!(decoder.next(&mut input(&bytes[..have])).unwrap(), None);
        let step = if have < HEADER { HEADER } else { bytes.len() };
        assert_eq!(decoder.wants(), step - have);
    }
    assert!(decoder.next(&mut input(&bytes)).unwrap().is_some());
    assert_eq!(decoder.wants(), HEADER);
}

#[test]
fn a_link_begins_with_a_hello_or_with_its_end() {
    for message in arbitrary::one_of_each() {
        let mut bytes = input(&encoded(&message));
        let first = Decoder::new().next(&mut bytes);
        match message {
            Message::Hello(_) | Message::Refuse { .. } | Message::Bye { .. } => {
                assert_eq!(first, Ok(Some(message)));
            }
            _ => assert!(matches!(first, Err(LinkError::NoHello { .. })), "{first:?}"),
        }
    }
}

#[test]
fn a_refusal_does_not_stand_for_a_greeting() {
    let refuse = Message::Refuse {
        refusal: Refusal::Busy,
        text: String::new(),
    };
    let mut bytes = input(&encoded(&refuse));
    bytes.extend_from_slice(&encoded(&Message::Started));
    let mut decoder = Decoder::new();
    assert_eq!(decoder.next(&mut bytes), Ok(Some(refuse)));
    let kind = Kind::Started;
    assert_eq!(decoder.next(&mut bytes), Err(LinkError::NoHello { kind }));
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let reason = "é".repeat(MAX_TEXT);
    let mut bytes = input(&encoded(&Message::Bye {
        reason: format!("x{reason}"),
    }));
    let Some(Message::Bye { reason: received }) = Decoder::new().next(&mut bytes).unwrap() else {
        panic!("not a bye");
    };
    assert_eq!(received.len(), MAX_TEXT - 1);
    assert!(format!("x{reason}").starts_with(&received));
}

#[test]
fn what_the_peer_would_refuse_is_not_sent() {
    let with = |change: fn(&mut Hello)| {
        let Message::Hello(mut hello) = hello() else {
            unreachable!()
        };
        change(&mut hello);
        Message::Hello(hello)
    };
    let many_volumes = |hello: &mut Hello| hello.volumes = vec![volume(); MAX_VOLUMES + 1];
    let chunk = |range, len| Message::Chunk {
        volume: VolumeId(0),
        range,
        data: Some(vec![0; len].into()),
        crc: 0,
    };
    let messages = [
        Message::Frame(vec![0; MAX_FRAME + BLOCK].into()),
        Message::Frame(vec![0; BLOCK + 1].into()),
        Message::Frame(Bytes::new()),
        chunk(ByteRange::new(0, 9), 8),
        chunk(ByteRange::new(0, 0), 0),
        chunk(ByteRange::new(0, MAX_CHUNK as u64 + 1), MAX_CHUNK + 1),
        chunk(ByteRange::new(u64::MAX, 8), 8),
        chunk(ByteRange::new((1 << 63) - 4, 8), 8),
        with(|hello| hello.group = "x".repeat(65)),
        with(|hello| hello.site = "two\nlines".into()),
        with(|hello| hello.tail = Lsn(1 << 63)),
        with(|hello| hello.inconsistent_until = Some(Lsn(u64::MAX - 1))),
        with(many_volumes),
    ];
    for message in messages {
        let mut out = vec![Bytes::from_static(b"before")];
        let error = encode(&message, &mut out).unwrap_err();
        assert!(matches!(error, LinkError::Unsendable { .. }), "{error}");
        assert_eq!(out.len(), 1);
    }
}

#[test]
fn limits_can_be_reached() {
    let site = "s".repeat(64);
    let epochs = (1..=MAX_EPOCHS as u64).map(|n| epoch(n, &site)).collect();
    let Message::Hello(mut longest) = hello() else {
        unreachable!()
    };
    longest.lineage = Lineage::new(epochs).unwrap();
    longest.volumes = vec![volume(); MAX_VOLUMES];
    let messages = vec![
        Message::Hello(longest),
        Message::Frame(vec![1; MAX_FRAME].into()),
        Message::Chunk {
            volume: VolumeId(0),
            range: ByteRange::new(0, MAX_CHUNK as u64),
            data: Some(vec![1; MAX_CHUNK].into()),
            crc: crc32fast::hash(&vec![1; MAX_CHUNK]),
        },
        Message::Bye {
            reason: "b".repeat(MAX_TEXT),
        },
    ];
    let bytes: Vec<u8> = messages.iter().flat_map(encoded).collect();
    let received = receive(&mut Decoder::new(), &bytes, &[256 << 10]).unwrap();
    assert!(received == messages);
}

proptest! {
    #[test]
    fn messages_survive_any_splitting(
        messages in prop::collection::vec(arbitrary::message(), 1..6),
        sizes in prop::collection::vec(1..9000usize, 1..5),
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(encoded).collect();
        prop_assert_eq!(receive(&mut greeted(), &bytes, &sizes).unwrap(), messages);
    }

    #[test]
    fn frames_received_in_place_are_as_those_received_through_the_buffer(
        messages in prop::collection::vec(arbitrary::message(), 1..6),
        sizes in prop::collection::vec(1..9000usize, 1..5),
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(encoded).collect();
        let (mut decoder, mut buffer, mut received) = (greeted(), BytesMut::new(), Vec::new());
        let (mut rest, mut sizes) = (&bytes[..], sizes.iter().cycle());
        loop {
            while let Some(message) = decoder.next(&mut buffer).unwrap() {
                received.push(message);
            }
            if rest.is_empty() {
                break;
            }
            let size = *sizes.next().unwrap();
            let wants = decoder.wants();
            prop_assert!(wants > 0);
            if let Some((mut frame, missing)) = decoder.lend() {
                prop_assert!(buffer.is_empty());
                prop_assert_eq!(missing, wants);
                let size = size.min(missing).min(rest.len());
                frame.extend_from_slice(&rest[..size]);
                rest = &rest[size..];
                decoder.give_back(frame);
            } else {
                let size = size.min(rest.len());
                buffer.extend_from_slice(&rest[..size]);
                rest = &rest[size..];
            }
        }
        prop_assert_eq!(received, messages);
    }
}
