//! Replies, rule by rule.

use bytes::{Buf, Bytes};

use super::*;
use crate::nbd::{Errno, Extent, MAX_PAYLOAD, Piece, ReplyBody, ReplyTo};

const ALL: [Replies; 3] = [Replies::Simple, Replies::Structured, Replies::Extended];
const CHUNKED: [Replies; 2] = [Replies::Structured, Replies::Extended];

const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const STATUS: u16 = 5;
const STATUS_EXT: u16 = 6;
const ERROR: u16 = 0x8001;

/// Where the reply to this request goes.
fn reply_to(session: &Session, flags: u16, command: u16, offset: u64, len: u64) -> ReplyTo {
    let stream = request(session.replies, flags, command, offset, len);
    accepted(session, &stream).reply_to
}

fn data(content: &'static [u8]) -> Piece {
    Piece::Data(Bytes::from_static(content))
}

/// What a client receives for these pieces of a read from 1000.
fn read(session: &Session, flags: u16, len: u64, pieces: Vec<Piece>) -> Vec<Received> {
    let reply_to = reply_to(session, flags, READ, 1000, len);
    let offset = 1000;
    let body = ReplyBody::Data { offset, pieces };
    received(session, Reply { reply_to, body })
}

fn chunk(done: bool, kind: u16, payload: &[&[u8]]) -> Received {
    let payload = payload.concat();
    Received::Chunk {
        done,
        kind,
        payload,
    }
}

fn simple(error: u32) -> Received {
    let content = vec![];
    Received::Simple { error, content }
}

/// The errno of a reply that is one error chunk with a text.
fn error_chunk(received: &[Received]) -> u32 {
    match received {
        [
            Received::Chunk {
                done: true,
                kind: ERROR,
                payload,
            },
        ] => {
            let mut payload = &payload[..];
            let errno = payload.get_u32();
            assert_eq!(usize::from(payload.get_u16()), payload.len());
            assert!(!payload.is_empty() && std::str::from_utf8(payload).is_ok());
            errno
        }
        other => panic!("not one error: {other:?}"),
    }
}

#[test]
fn a_reply_without_content_is_simple_unless_headers_are_extended() {
    for (replies, expected) in [
        (Replies::Simple, simple(0)),
        (Replies::Structured, simple(0)),
        (Replies::Extended, chunk(true, NONE, &[])),
    ] {
        let session = session(replies);
        let to = reply_to(&session, 0, TRIM, 77, 8);
        assert_eq!(received(&session, Reply::done(to)), [expected]);
    }
}

#[test]
fn errors_are_numbers_in_simple_replies_and_chunks_with_text_in_others() {
    for (errno, number) in [
        (Errno::Perm, 1),
        (Errno::Io, 5),
        (Errno::NoMem, 12),
        (Errno::Inval, 22),
        (Errno::NoSpc, 28),
        (Errno::Overflow, 75),
        (Errno::NotSup, 95),
        (Errno::Shutdown, 108),
    ] {
        for replies in ALL {
            let session = session(replies);
            for (kind, len) in [(READ, 8), (TRIM, 8), (FLUSH, 0)] {
                let offset = if kind == FLUSH { 0 } else { 77 };
                let to = reply_to(&session, 0, kind, offset, len);
                let received = received(&session, Reply::error(to, errno, "no, because"));
                if replies == Replies::Simple {
                    assert_eq!(received, [simple(number)]);
                } else {
                    let head = [0, 0, 0, number as u8, 0, 11];
                    assert_eq!(received, [chunk(true, ERROR, &[&head, b"no, because"])]);
                }
            }
        }
    }
}

#[test]
fn early_errors_of_a_read_are_structured_and_carry_the_offset_of_the_request() {
    for replies in CHUNKED {
        let session = session(replies);
        for stream in [
            request(replies, NO_HOLE, READ, 77, 8),
            request(replies, 0, READ, SIZE, 1),
        ] {
            let reply = rejected(&session, &stream);
            assert_eq!(error_chunk(&received(&session, reply)), 22);
        }
    }
}

#[test]
fn a_text_too_long_for_the_protocol_is_cut() {
    let session = session(Replies::Structured);
    let to = reply_to(&session, 0, FLUSH, 0, 0);
    let reply = Reply::error(to, Errno::Io, "x".repeat(5000));
    let received = received(&session, reply);
    assert_eq!(error_chunk(&received), 5);
    assert!(matches!(&received[0], Received::Chunk { payload, .. } if payload.len() == 6 + 4096));
}

#[test]
fn a_simple_read_has_its_holes_spelt_out() {
    let session = session(Replies::Simple);
    let pieces = vec![data(b"ab"), Piece::Hole(3), data(b"cd")];
    let content = b"ab\0\0\0cd".to_vec();
    assert_eq!(
        read(&session, 0, 7, pieces),
        [Received::Simple { error: 0, content }]
    );
}

#[test]
fn a_read_in_chunks_has_one_for_each_run_and_marks_the_last() {
    for replies in CHUNKED {
        let session = session(replies);
        let pieces = vec![
            Piece::Hole(0),
            data(b"ab"),
            data(b""),
            data(b"cd"),
            Piece::Hole(3),
            Piece::Hole(4),
            data(b"e"),
        ];
        let at = |offset: u64| offset.to_be_bytes();
        assert_eq!(
            read(&session, 0, 12, pieces),
            [
                chunk(false, OFFSET_DATA, &[&at(1000), b"abcd"]),
                chunk(false, OFFSET_HOLE, &[&at(1004), &[0, 0, 0, 7]]),
                chunk(true, OFFSET_DATA, &[&at(1011), b"e"]),
            ]
        );
        assert_eq!(
            read(&session, 0, 9, vec![Piece::Hole(9)]),
            [chunk(true, OFFSET_HOLE, &[&at(1000), &[0, 0, 0, 9]])]
        );
    }
}

#[test]
fn df_gives_one_chunk_with_holes_as_zeroes() {
    for replies in CHUNKED {
        let session = session(replies);
        let pieces = vec![Piece::Hole(1), data(b"ab"), Piece::Hole(2)];
        assert_eq!(
            read(&session, DF, 5, pieces),
            [chunk(
                true,
                OFFSET_DATA,
                &[&1000_u64.to_be_bytes(), b"\0ab\0\0"]
            )]
        );
    }
}

#[test]
fn a_hole_of_32_mib_is_spelt_out_without_memory() {
    for (replies, flags) in [(Replies::Simple, 0), (Replies::Structured, DF)] {
        let session = session(replies);
        let len = u64::from(MAX_PAYLOAD);
        let reply_to = reply_to(&session, flags, READ, 0, len);
        let pieces = vec![Piece::Hole(len)];
        let body = ReplyBody::Data { offset: 0, pieces };
        let mut out = Outbox::new();
        Transmission::new(session).encode(Reply { reply_to, body }, &mut out);
        let slices: Vec<Bytes> = out.drain().collect();
        assert_eq!(slices.len(), 1 + 512);
        let zeroes = &slices[1..];
        assert!(
            zeroes
                .iter()
                .all(|slice| slice.as_ptr() == zeroes[0].as_ptr())
        );
        assert!(zeroes.iter().all(|slice| slice.len() == 64 << 10));
        assert!(zeroes[0].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_read_of_no_bytes_succeeds_without_content() {
    for (replies, expected) in [
        (Replies::Simple, simple(0)),
        (Replies::Structured, chunk(true, NONE, &[])),
        (Replies::Extended, chunk(true, NONE, &[])),
    ] {
        let session = session(replies);
        for pieces in [vec![], vec![data(b"")]] {
            let received = read(&session, 0, 0, pieces);
            assert_eq!(received, std::slice::from_ref(&expected));
        }
        let to = reply_to(&session, 0, READ, 1000, 0);
        assert_eq!(received(&session, Reply::done(to)), [expected]);
    }
}

#[test]
fn an_answer_of_the_wrong_length_or_kind_becomes_an_error_and_keeps_the_framing() {
    for replies in ALL {
        let session = session(replies);
        let is_eio = |received: Vec<Received>| {
            if replies == Replies::Simple {
                received == [simple(5)]
            } else {
                error_chunk(&received) == 5
            }
        };
        for pieces in [
            vec![],
            vec![data(b"abc")],
            vec![data(b"abcde")],
            vec![data(b"ab"), Piece::Hole(u64::MAX)],
        ] {
            assert!(is_eio(read(&session, 0, 4, pieces)));
        }
        let read = reply_to(&session, 0, READ, 1000, 4);
        let trim = reply_to(&session, 0, TRIM, 1000, 4);
        let content = |offset| ReplyBody::Data {
            offset,
            pieces: vec![data(b"abcd")],
        };
        let status = ReplyBody::Status {
            offset: 1000,
            extents: vec![extent(4, true, true)],
        };
        for (reply_to, body) in [
            (read, ReplyBody::Done),
            (read, content(1001)),
            (read, status),
            (trim, content(1000)),
        ] {
            assert!(is_eio(received(&session, Reply { reply_to, body })));
        }
    }
}

fn extent(len: u64, hole: bool, zero: bool) -> Extent {
    Extent { len, hole, zero }
}

/// What a client receives for these extents from 1000: (bytes, state) for each.
fn status(session: &Session, flags: u16, len: u64, extents: Vec<Extent>) -> Vec<(u64, u64)> {
    let reply_to = reply_to(session, flags, BLOCK_STATUS, 1000, len);
    let offset = 1000;
    let body = ReplyBody::Status { offset, extents };
    let received = received(session, Reply { reply_to, body });
    let [
        Received::Chunk {
            done: true,
            kind,
            payload,
        },
    ] = &received[..]
    else {
        panic!("not one chunk: {received:?}");
    };
    let mut payload = &payload[..];
    assert_eq!(payload.get_u32(), 1, "the number of base:allocation");
    if session.replies == Replies::Extended {
        assert_eq!(*kind, STATUS_EXT);
        let count = payload.get_u32() as usize;
        assert_eq!(payload.len(), count * 16);
        (0..count)
            .map(|_| (payload.get_u64(), payload.get_u64()))
            .collect()
    } else {
        assert_eq!(*kind, STATUS);
        assert_eq!(payload.len() % 8, 0);
        (0..payload.len() / 8)
            .map(|_| (payload.get_u32().into(), payload.get_u32().into()))
            .collect()
    }
}

#[test]
fn block_status_is_one_chunk_with_hole_1_and_zero_2() {
    for replies in CHUNKED {
        let extents = vec![
            extent(1, false, false),
            extent(2, true, false),
            extent(3, false, true),
            extent(4, true, true),
        ];
        assert_eq!(
            status(&session(replies), 0, 10, extents),
            [(1, 0), (2, 1), (3, 2), (4, 3)]
        );
    }
}

#[test]
fn extents_of_no_bytes_are_left_out_and_equal_neighbours_joined() {
    for replies in CHUNKED {
        let extents = vec![
            extent(0, false, false),
            extent(2, true, true),
            extent(0, false, false),
            extent(3, true, true),
            extent(5, false, false),
        ];
        assert_eq!(status(&session(replies), 0, 10, extents), [(5, 3), (5, 0)]);
    }
}

#[test]
fn only_the_last_extent_may_overrun_what_was_asked() {
    for replies in CHUNKED {
        let extents = vec![
            extent(4, true, true),
            extent(100, false, false),
            extent(7, true, true),
        ];
        let session = session(replies);
        assert_eq!(status(&session, 0, 10, extents.clone()), [(4, 3), (100, 0)]);
        assert_eq!(status(&session, 0, 4, extents), [(4, 3)]);
    }
}

#[test]
fn req_one_gives_one_extent_no_longer_than_asked() {
    for replies in CHUNKED {
        let session = session(replies);
        let extents = vec![extent(4, true, true), extent(100, false, false)];
        assert_eq!(status(&session, REQ_ONE, 10, extents.clone()), [(4, 3)]);
        assert_eq!(status(&session, REQ_ONE, 3, extents), [(3, 3)]);
        let joined = vec![extent(4, true, true), extent(100, true, true)];
        assert_eq!(status(&session, REQ_ONE, 10, joined), [(10, 3)]);
    }
}

#[test]
fn extents_beyond_4_gib_are_cut_in_the_32_bit_form_and_whole_in_the_64_bit_form() {
    let extents = vec![
        extent(1 << 20, false, false),
        extent(5 << 30, true, true),
        extent(5 << 30, true, true),
        extent(1 << 20, false, false),
    ];
    for replies in CHUNKED {
        let session = Session {
            size: 1 << 40,
            ..session(replies)
        };
        let expected = if replies == Replies::Extended {
            vec![(1 << 20, 0), (5 << 30, 3)]
        } else {
            vec![(1 << 20, 0), (0xffff_f000, 3)]
        };
        let asked = u64::from(u32::MAX);
        assert_eq!(status(&session, 0, asked, extents.clone()), expected);
    }
}

#[test]
fn one_reply_has_at_most_a_mebi_of_extents() {
    let extents: Vec<Extent> = (0..3 << 20).map(|i| extent(8, i % 2 == 0, false)).collect();
    for replies in CHUNKED {
        let told = status(&session(replies), 0, 3 << 23, extents.clone());
        assert_eq!(told.len(), 1 << 20);
    }
}

#[test]
fn the_length_inside_the_payload_of_block_status_bounds_the_answer() {
    let session = session(Replies::Extended);
    let flags = PAYLOAD_LEN | REQ_ONE;
    let mut stream = request(Replies::Extended, flags, BLOCK_STATUS, 1000, 12);
    stream.extend(50_u64.to_be_bytes());
    stream.extend(1_u32.to_be_bytes());
    let reply_to = accepted(&session, &stream).reply_to;
    let body = ReplyBody::Status {
        offset: 1000,
        extents: vec![extent(99, true, true)],
    };
    let received = received(&session, Reply { reply_to, body });
    let expected = [
        &[0, 0, 0, 1, 0, 0, 0, 1][..],
        &50_u64.to_be_bytes(),
        &3_u64.to_be_bytes(),
    ];
    assert_eq!(received, [chunk(true, STATUS_EXT, &expected)]);
}

#[test]
fn headers_are_gathered_and_content_is_passed_on() {
    let session = session(Replies::Simple);
    let transmission = Transmission::new(session.clone());
    let mut out = Outbox::new();
    assert!(out.is_empty());
    for _ in 0..32 {
        transmission.encode(Reply::done(ReplyTo::plain(7)), &mut out);
    }
    let reply_to = reply_to(&session, 0, READ, 0, 4096);
    let content = Bytes::from(vec![0x5a; 4096]);
    let pieces = vec![Piece::Data(content.clone())];
    let body = ReplyBody::Data { offset: 0, pieces };
    transmission.encode(Reply { reply_to, body }, &mut out);
    transmission.encode(Reply::done(ReplyTo::plain(7)), &mut out);
    assert_eq!(out.len(), 34 * 16 + 4096);
    let parts: Vec<Bytes> = out.drain().collect();
    let lens: Vec<usize> = parts.iter().map(Bytes::len).collect();
    assert_eq!(lens, [33 * 16, 4096, 16]);
    assert_eq!(parts[1].as_ptr(), content.as_ptr());
    assert!(out.is_empty());
    assert_eq!(out.drain().count(), 0);
}
