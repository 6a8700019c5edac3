//! Requests, rule by rule.

use bytes::{Bytes, BytesMut};

use super::*;
use crate::base::ByteRange;
use crate::nbd::{Command, Errno, MAX_PAYLOAD, ReplyBody, Wants};

const ALL: [Replies; 3] = [Replies::Simple, Replies::Structured, Replies::Extended];

/// The errno of a request that must be refused, with a text.
fn errno(session: &Session, stream: &[u8]) -> Errno {
    let reply = rejected(session, stream);
    assert_eq!(reply.reply_to.cookie(), COOKIE);
    match reply.body {
        ReplyBody::Error { errno, message } => {
            assert!(!message.is_empty());
            errno
        }
        other => panic!("not an error: {other:?}"),
    }
}

fn command(session: &Session, stream: &[u8]) -> Command {
    let request = accepted(session, stream);
    assert_eq!(request.reply_to.cookie(), COOKIE);
    request.command
}

#[test]
fn every_command_is_understood_with_every_kind_of_header() {
    for replies in ALL {
        let session = session(replies);
        let range = ByteRange::new(512, 1024);
        let ask = |flags, kind| command(&session, &request(replies, flags, kind, 512, 1024));
        let holes = replies >= Replies::Structured;
        assert_eq!(ask(0, READ), Command::Read { range, holes });
        assert_eq!(ask(0, CACHE), Command::Cache { range });
        for (flags, fua) in [(0, false), (FUA, true)] {
            assert_eq!(ask(flags, TRIM), Command::Trim { range, fua });
            let no_hole = false;
            let zeroes = Command::WriteZeroes {
                range,
                fua,
                no_hole,
            };
            assert_eq!(ask(flags, WRITE_ZEROES), zeroes);
            assert_eq!(
                command(&session, &write(replies, flags, 3, b"abc")),
                Command::Write {
                    offset: 3,
                    data: Bytes::from_static(b"abc"),
                    fua
                }
            );
        }
        let flush = request(replies, 0, FLUSH, 0, 0);
        assert_eq!(command(&session, &flush), Command::Flush);
        if replies >= Replies::Structured {
            let one = false;
            assert_eq!(ask(0, BLOCK_STATUS), Command::BlockStatus { range, one });
            let one = true;
            assert_eq!(
                ask(REQ_ONE, BLOCK_STATUS),
                Command::BlockStatus { range, one }
            );
        }
    }
}

#[test]
fn flags_of_write_zeroes_and_read_reach_the_request() {
    for replies in ALL {
        let session = session(replies);
        let range = ByteRange::new(0, 9);
        for (flags, no_hole) in [
            (NO_HOLE, true),
            (FAST_ZERO, false),
            (NO_HOLE | FAST_ZERO, true),
        ] {
            let fua = false;
            assert_eq!(
                command(&session, &request(replies, flags, WRITE_ZEROES, 0, 9)),
                Command::WriteZeroes {
                    range,
                    fua,
                    no_hole
                }
            );
        }
        if replies >= Replies::Structured {
            let holes = false;
            assert_eq!(
                command(&session, &request(replies, DF, READ, 0, 9)),
                Command::Read { range, holes }
            );
        }
    }
}

#[test]
fn equal_cookies_are_nobodys_business() {
    let session = session(Replies::Simple);
    let mut stream = request(Replies::Simple, 0, READ, 0, 1);
    stream.extend(request(Replies::Simple, 0, READ, 0, 1));
    let events = events(&session, &stream);
    assert_eq!(events.len(), 2);
    assert_eq!(events[0], events[1]);
}

#[test]
fn out_of_range_is_enospc_for_writes_and_einval_for_the_rest() {
    for replies in ALL {
        let session = session(replies);
        let max = if replies == Replies::Extended {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        for (offset, len) in [
            (SIZE, 1),
            (SIZE - 1, 2),
            (SIZE + 1, 0),
            (u64::MAX, 1),
            (u64::MAX - 4, 5),
            (1, max),
        ] {
            let ask = |kind| errno(&session, &request(replies, 0, kind, offset, len));
            assert_eq!(ask(READ), Errno::Inval, "{offset} {len}");
            assert_eq!(ask(TRIM), Errno::Inval);
            assert_eq!(ask(CACHE), Errno::Inval);
            assert_eq!(ask(WRITE_ZEROES), Errno::NoSpc);
            if replies >= Replies::Structured {
                assert_eq!(ask(BLOCK_STATUS), Errno::Inval);
            }
            if len < 10 {
                let data = vec![0; len as usize];
                assert_eq!(
                    errno(&session, &write(replies, 0, offset, &data)),
                    Errno::NoSpc
                );
            }
        }
    }
}

#[test]
fn the_last_byte_is_in_range() {
    for replies in ALL {
        let session = session(replies);
        for kind in [READ, TRIM, CACHE, WRITE_ZEROES] {
            accepted(&session, &request(replies, 0, kind, SIZE - 1, 1));
        }
        accepted(&session, &write(replies, 0, SIZE - 1, b"x"));
    }
}

#[test]
fn a_refused_write_is_skipped_and_the_connection_goes_on() {
    for replies in ALL {
        let session = session(replies);
        let mut stream = write(replies, 0, SIZE, &[0xee; 5000]);
        stream.extend(request(replies, 0, FLUSH, 0, 0));
        let events = events(&session, &stream);
        assert!(matches!(events[0], Event::Reject(_)), "{events:?}");
        assert!(matches!(&events[1], Event::Request(r) if r.command == Command::Flush));
        assert_eq!(events.len(), 2);
    }
}

#[test]
fn a_refused_write_is_skipped_as_it_comes_and_refused_at_its_end() {
    let mut transmission = Transmission::new(session(Replies::Simple));
    let len = 3_000_000_000_u64;
    let mut input = BytesMut::from(&request(Replies::Simple, 0, WRITE, 0, len)[..]);
    assert_eq!(transmission.next(&mut input), None);
    assert_eq!(transmission.wants(&input), Wants::Skip(len));
    for part in 1..=2999_u64 {
        input.resize(1_000_000, 0);
        assert_eq!(transmission.next(&mut input), None);
        assert!(input.is_empty(), "nothing is kept");
        assert_eq!(
            transmission.wants(&input),
            Wants::Skip(len - part * 1_000_000)
        );
    }
    input.resize(1_000_000, 0);
    assert!(matches!(
        transmission.next(&mut input),
        Some(Event::Reject(_))
    ));
    assert_eq!(transmission.wants(&input), Wants::Header(28));
}

#[test]
fn unknown_commands_are_einval() {
    for replies in ALL {
        for kind in [8, 9, 0xffff] {
            let stream = request(replies, 0, kind, 0, 100);
            assert_eq!(errno(&session(replies), &stream), Errno::Inval);
        }
    }
}

#[test]
fn a_flag_that_does_not_apply_is_einval() {
    for replies in ALL {
        let session = session(replies);
        let extended = replies == Replies::Extended;
        let structured = replies >= Replies::Structured;
        for (kind, allowed) in [
            (READ, if structured { DF } else { 0 }),
            (TRIM, 0),
            (CACHE, 0),
            (WRITE_ZEROES, NO_HOLE | FAST_ZERO),
            (BLOCK_STATUS, if structured { REQ_ONE } else { 0 }),
            (FLUSH, 0),
        ] {
            for bit in (0..16).map(|shift| 1 << shift) {
                if bit & (allowed | FUA) != 0 {
                    continue;
                }
                let len = if kind == FLUSH { 0 } else { 8 };
                let mut stream = request(replies, bit, kind, 0, len);
                if extended && bit == PAYLOAD_LEN {
                    stream.resize(stream.len() + len as usize, 0);
                }
                assert_eq!(errno(&session, &stream), Errno::Inval, "{kind} {bit:#x}");
            }
        }
        for bit in [NO_HOLE, DF, REQ_ONE, FAST_ZERO, 1 << 6, 1 << 15] {
            assert_eq!(
                errno(&session, &write(replies, bit, 0, b"abc")),
                Errno::Inval
            );
        }
    }
}

#[test]
fn payload_len_does_not_apply_to_a_compact_write_whose_payload_is_skipped_all_the_same() {
    let session = session(Replies::Structured);
    let stream = write(Replies::Structured, PAYLOAD_LEN, 0, b"abc");
    assert_eq!(errno(&session, &stream), Errno::Inval);
}

#[test]
fn fua_is_accepted_on_every_command() {
    for replies in ALL {
        let session = session(replies);
        for kind in [READ, TRIM, CACHE, WRITE_ZEROES] {
            accepted(&session, &request(replies, FUA, kind, 0, 8));
        }
        accepted(&session, &request(replies, FUA, FLUSH, 0, 0));
        accepted(&session, &write(replies, FUA, 0, b"abc"));
        if replies >= Replies::Structured {
            accepted(&session, &request(replies, FUA, BLOCK_STATUS, 0, 8));
        }
    }
}

#[test]
fn a_length_of_zero_never_disconnects() {
    for replies in ALL {
        let session = session(replies);
        for kind in [READ, TRIM, CACHE, WRITE_ZEROES] {
            for offset in [0, SIZE] {
                accepted(&session, &request(replies, 0, kind, offset, 0));
            }
        }
        let empty = Command::Write {
            offset: SIZE,
            data: Bytes::new(),
            fua: false,
        };
        assert_eq!(command(&session, &write(replies, 0, SIZE, b"")), empty);
        let status = request(replies, 0, BLOCK_STATUS, 0, 0);
        assert_eq!(errno(&session, &status), Errno::Inval);
    }
}

#[test]
fn flush_has_no_range() {
    for replies in ALL {
        for (offset, len) in [(1, 0), (0, 1)] {
            let stream = request(replies, 0, FLUSH, offset, len);
            assert_eq!(errno(&session(replies), &stream), Errno::Inval);
        }
    }
}

#[test]
fn a_read_of_32_mib_is_accepted_and_a_longer_one_refused() {
    for (replies, expected) in [
        (Replies::Simple, Errno::Inval),
        (Replies::Structured, Errno::Overflow),
        (Replies::Extended, Errno::Overflow),
    ] {
        let session = session(replies);
        let max = u64::from(MAX_PAYLOAD);
        accepted(&session, &request(replies, 0, READ, 1, max));
        let stream = request(replies, 0, READ, 1, max + 1);
        assert_eq!(errno(&session, &stream), expected);
        if replies >= Replies::Structured {
            accepted(&session, &request(replies, DF, READ, 1, max));
        }
    }
}

#[test]
fn a_write_of_32_mib_is_accepted() {
    for replies in ALL {
        let data = vec![0x11; MAX_PAYLOAD as usize];
        let written = command(&session(replies), &write(replies, 0, 5, &data));
        assert!(matches!(written, Command::Write { data: got, .. } if got == data));
    }
}

#[test]
fn a_write_above_32_mib_is_skipped_with_compact_headers_and_ends_the_connection_with_extended() {
    let len = u64::from(MAX_PAYLOAD) + 1;
    let mut compact = request(Replies::Simple, 0, WRITE, 0, len);
    compact.resize(compact.len() + len as usize, 0);
    assert_eq!(errno(&session(Replies::Simple), &compact), Errno::Inval);

    for kind in [WRITE, READ, BLOCK_STATUS, 99] {
        for len in [len, u64::MAX] {
            let flags = if kind == WRITE { 0 } else { PAYLOAD_LEN };
            let extended = request(Replies::Extended, flags, kind, 0, len);
            let event = event(&session(Replies::Extended), &extended);
            assert!(matches!(event, Event::Violation(_)), "{event:?}");
        }
    }
}

#[test]
fn trim_write_zeroes_and_cache_may_be_longer_than_a_payload() {
    let big = Session {
        size: 1 << 50,
        ..session(Replies::Extended)
    };
    for kind in [TRIM, WRITE_ZEROES, CACHE] {
        accepted(&big, &request(Replies::Extended, 0, kind, 0, 1 << 50));
    }
    let small = session(Replies::Simple);
    for kind in [TRIM, WRITE_ZEROES, CACHE] {
        accepted(&small, &request(Replies::Simple, 0, kind, 0, SIZE));
    }
}

#[test]
fn block_status_without_a_context_is_einval() {
    for replies in ALL {
        let session = Session {
            allocation: false,
            ..session(replies)
        };
        let stream = request(replies, 0, BLOCK_STATUS, 0, 8);
        assert_eq!(errno(&session, &stream), Errno::Inval);
    }
}

#[test]
fn an_extended_write_has_a_payload_even_if_payload_len_is_missing_as_qemu_sends_it() {
    let session = session(Replies::Extended);
    let mut stream = request(Replies::Extended, FUA, WRITE, 9, 3);
    stream.extend(b"abc");
    let expected = Command::Write {
        offset: 9,
        data: Bytes::from_static(b"abc"),
        fua: true,
    };
    assert_eq!(command(&session, &stream), expected);
}

#[test]
fn an_unwanted_extended_payload_is_skipped_then_einval() {
    let session = session(Replies::Extended);
    for kind in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, 99] {
        let mut stream = request(Replies::Extended, PAYLOAD_LEN, kind, 0, 100);
        stream.extend([0x21; 100]);
        assert_eq!(errno(&session, &stream), Errno::Inval);
    }
}

/// A `BLOCK_STATUS` whose payload asks for `len` bytes in these contexts.
fn filtered(flags: u16, offset: u64, len: u64, contexts: &[u32]) -> Vec<u8> {
    let payload_len = 8 + 4 * contexts.len() as u64;
    let flags = flags | PAYLOAD_LEN;
    let mut bytes = request(Replies::Extended, flags, BLOCK_STATUS, offset, payload_len);
    bytes.extend(len.to_be_bytes());
    bytes.extend(contexts.iter().flat_map(|context| context.to_be_bytes()));
    bytes
}

#[test]
fn the_payload_of_block_status_names_contexts_and_length() {
    let session = session(Replies::Extended);
    for (flags, one) in [(0, false), (REQ_ONE, true)] {
        let range = ByteRange::new(7, SIZE - 7);
        assert_eq!(
            command(&session, &filtered(flags, 7, SIZE - 7, &[1])),
            Command::BlockStatus { range, one }
        );
    }
}

#[test]
fn unknown_and_duplicate_contexts_in_the_payload_of_block_status_are_einval() {
    let session = session(Replies::Extended);
    for contexts in [&[][..], &[0], &[2], &[1, 1], &[1, 2]] {
        let stream = filtered(0, 0, 8, contexts);
        assert_eq!(errno(&session, &stream), Errno::Inval, "{contexts:?}");
    }
    assert_eq!(errno(&session, &filtered(0, 1, SIZE, &[1])), Errno::Inval);
    assert_eq!(errno(&session, &filtered(0, 0, 0, &[1])), Errno::Inval);
    for len in [1, 7, 9, 13] {
        let mut stream = request(Replies::Extended, PAYLOAD_LEN, BLOCK_STATUS, 0, len);
        stream.resize(stream.len() + len as usize, 0);
        assert_eq!(errno(&session, &stream), Errno::Inval, "{len}");
    }
}

#[test]
fn a_disconnect_ends_the_stream_whatever_follows() {
    for replies in ALL {
        let mut transmission = Transmission::new(session(replies));
        let mut input = BytesMut::from(&request(replies, 0, FLUSH, 0, 0)[..]);
        input.extend_from_slice(&request(replies, FUA, DISC, 5, 5));
        input.extend_from_slice(&request(replies, 0, FLUSH, 0, 0));
        assert!(matches!(
            transmission.next(&mut input),
            Some(Event::Request(_))
        ));
        assert_eq!(transmission.next(&mut input), Some(Event::Disconnect));
        assert_eq!(transmission.next(&mut input), None);
        assert_eq!(transmission.wants(&input), Wants::Nothing);
    }
}

#[test]
fn a_wrong_magic_is_a_violation_before_the_header_is_complete() {
    for replies in ALL {
        let other = if replies == Replies::Extended {
            Replies::Simple
        } else {
            Replies::Extended
        };
        for start in [&request(other, 0, FLUSH, 0, 0)[..4], b"GET "] {
            let mut transmission = Transmission::new(session(replies));
            let mut input = BytesMut::from(start);
            let event = transmission.next(&mut input);
            assert!(matches!(event, Some(Event::Violation(_))), "{event:?}");
            input.extend_from_slice(&request(replies, 0, FLUSH, 0, 0));
            assert_eq!(transmission.next(&mut input), None);
            assert_eq!(transmission.wants(&input), Wants::Nothing);
        }
    }
}

#[test]
fn the_caller_learns_of_a_payload_before_it_makes_room() {
    let mut transmission = Transmission::new(session(Replies::Simple));
    let stream = write(Replies::Simple, 0, 0, &[0x42; 1000]);
    let mut input = BytesMut::from(&stream[..10]);
    assert_eq!(transmission.next(&mut input), None);
    assert_eq!(transmission.wants(&input), Wants::Header(18));
    input.extend_from_slice(&stream[10..128]);
    assert_eq!(transmission.next(&mut input), None);
    let (len, missing) = (1000, 900);
    assert_eq!(transmission.wants(&input), Wants::Payload { len, missing });
    input.extend_from_slice(&stream[128..]);
    assert!(matches!(
        transmission.next(&mut input),
        Some(Event::Request(_))
    ));
    assert_eq!(transmission.wants(&input), Wants::Header(28));
}

#[test]
fn a_payload_is_split_off_and_not_copied() {
    let mut transmission = Transmission::new(session(Replies::Simple));
    let mut input = BytesMut::from(&write(Replies::Simple, 0, 0, &[0x42; 4096])[..]);
    let received_at = input[28..].as_ptr();
    match transmission.next(&mut input) {
        Some(Event::Request(Request {
            command: Command::Write { data, .. },
            ..
        })) => assert_eq!(data.as_ptr(), received_at),
        other => panic!("not a write: {other:?}"),
    }
}
