//! Peers that are broken, or mean it.

use super::*;

/// A message with a right checksum around any body.
fn sealed(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut header = Header {
        magic: MAGIC,
        kind: U16::new(kind),
        flags: U16::new(0),
        length: U32::new(body.len() as u32),
        crc: U32::new(0),
    };
    let covered = match Kind::of(kind) {
        Some(kind) => &body[..kind.covered(body.len()).min(body.len())],
        None => body,
    };
    header.crc = header.checksum(covered).into();
    [header.as_bytes(), body].concat()
}

/// The encoded message with one change to its body and a right checksum.
fn changed(message: &Message, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let bytes = encoded(message);
    let header = Header::read_from_bytes(&bytes[..HEADER]).unwrap();
    let mut body = bytes[HEADER..].to_vec();
    change(&mut body);
    sealed(header.kind.get(), &body)
}

fn error(bytes: &[u8]) -> LinkError {
    let mut decoder = greeted();
    let result = receive(&mut decoder, bytes, &[bytes.len()]);
    result.expect_err("the decoder accepted it")
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated_or_awaited() {
    for kind in Kind::ALL {
        for claimed in [u32::MAX, 1 << 31, (16 << 20) + 4096] {
            let header = Header {
                magic: MAGIC,
                kind: U16::new(kind as u16),
                flags: U16::new(0),
                length: U32::new(claimed),
                crc: U32::new(0),
            };
            let mut decoder = greeted();
            let mut buffer = input(header.as_bytes());
            let capacity = buffer.capacity();
            let refused = decoder.next(&mut buffer);
            let allowed = kind.limits();
            assert_eq!(
                refused,
                Err(LinkError::Length {
                    kind,
                    found: claimed,
                    allowed
                })
            );
            assert!(decoder.lend().is_none());
            assert_eq!(decoder.wants(), HEADER);
            assert_eq!(buffer.capacity(), capacity);
        }
    }
}

#[test]
fn every_kind_is_refused_just_outside_its_limits() {
    for kind in Kind::ALL {
        let limits = kind.limits();
        let outside = [
            limits.min.checked_sub(limits.unit),
            Some(limits.max + limits.unit),
            (limits.unit > 1).then_some(limits.min + 1),
        ];
        for len in outside.into_iter().flatten() {
            let found = len as u32;
            let refused = error(&sealed(kind as u16, &vec![0; len]));
            let expected = LinkError::Length {
                kind,
                found,
                allowed: limits,
            };
            assert_eq!(refused, expected);
        }
    }
}

#[test]
fn a_frame_header_that_was_damaged_allocates_nothing() {
    let mut bytes = encoded(&Message::Frame(vec![0; BLOCK].into()));
    bytes[9] ^= 0x20; // Twice as long.
    bytes.truncate(HEADER);
    let mut decoder = greeted();
    let refused = decoder.next(&mut input(&bytes)).unwrap_err();
    assert!(matches!(
        refused,
        LinkError::Checksum {
            kind: Kind::Frame,
            ..
        }
    ));
    assert!(decoder.lend().is_none());
}

#[test]
fn a_peer_that_speaks_something_else_is_told_apart_by_its_first_bytes() {
    let refused = error(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(refused, LinkError::Magic { found: *b"GET " });
    assert!(matches!(
        error(&sealed(0, b"")),
        LinkError::Kind { found: 0 }
    ));
    assert!(matches!(
        error(&sealed(27, b"")),
        LinkError::Kind { found: 27 }
    ));
    let mut bytes = encoded(&Message::Started);
    bytes[7] = 0x80;
    assert!(matches!(
        error(&bytes),
        LinkError::Flags { found: 0x8000, .. }
    ));
}

/// What a greeting has behind its lists.
const END: usize = 32;

/// A greeting of a site that speaks these versions.
fn hello_of(newest: u16, oldest: u16, incompat: u64) -> Vec<u8> {
    changed(&hello(), |body| {
        let prefix = HelloPrefix {
            newest: newest.into(),
            oldest: oldest.into(),
            reserved: [0; 4],
            compat: 0xFF.into(),
            incompat: incompat.into(),
        };
        body[..size_of::<HelloPrefix>()].copy_from_slice(prefix.as_bytes());
    })
}

#[test]
fn a_peer_without_a_version_in_common_is_told_both_versions() {
    let refused = error(&hello_of(4, 3, 0));
    assert_eq!(
        refused.to_string(),
        "the peer speaks link protocol versions 3 to 4, this site version 2: upgrade the older one"
    );
    assert!(matches!(
        error(&hello_of(0, 0, 0)),
        LinkError::Version { .. }
    ));
    assert!(matches!(error(&hello_of(1, 2, 0)), LinkError::Field { .. }));
}

#[test]
fn a_greeting_of_an_unknown_layout_still_tells_its_version() {
    let bytes = sealed(Kind::Hello as u16, &hello_of(9, 7, 0)[HEADER..HEADER + 24]);
    assert!(matches!(error(&bytes), LinkError::Version { .. }));
}

#[test]
fn a_peer_that_requires_an_unknown_feature_is_refused_and_other_features_are_ignored() {
    let refused = error(&hello_of(2, 2, 0x10));
    assert_eq!(refused, LinkError::Features { unknown: 0x10 });
    assert_eq!(
        greeted().next(&mut input(&hello_of(2, 2, 0))),
        Ok(Some(hello()))
    );
}

#[test]
fn a_newer_peer_that_also_speaks_our_version_may_say_more_than_we_know() {
    let more = |newest| {
        let mut body = hello_of(newest, 2, 0)[HEADER..].to_vec();
        body.extend_from_slice(b"something new");
        sealed(Kind::Hello as u16, &body)
    };
    assert_eq!(greeted().next(&mut input(&more(3))), Ok(Some(hello())));
    assert!(matches!(error(&more(2)), LinkError::Field { .. }));
}

/// Where the fields of the greeting in `hello()` are, from the start of its body.
const TAIL: usize = 24 + 16;
const RECORD: usize = 24;
const NAMES: usize = 24 + 104;

#[test]
fn a_field_that_makes_no_sense_is_refused_by_name() {
    let refused = |at: usize, bytes: &[u8]| {
        let message = changed(&hello(), |body| {
            body[at..at + bytes.len()].copy_from_slice(bytes);
        });
        match error(&message) {
            LinkError::Field { field, .. } => field,
            other => panic!("{other}"),
        }
    };
    assert_eq!(refused(TAIL, &u64::MAX.to_le_bytes()), "tail");
    assert_eq!(
        refused(RECORD + 68, &65537u32.to_le_bytes()),
        "number of epochs"
    );
    // One list too long, and nothing follows it.
    let cut = |at: usize, count: u32| {
        let mut body = encoded(&hello()).split_off(HEADER);
        body.truncate(body.len() - END);
        body[at..at + 4].copy_from_slice(&count.to_le_bytes());
        match error(&sealed(Kind::Hello as u16, &body)) {
            LinkError::Field { field, .. } => field,
            other => panic!("{other}"),
        }
    };
    assert_eq!(cut(RECORD + 68, 3), "an epoch");
    assert_eq!(
        refused(RECORD + 72, &1025u32.to_le_bytes()),
        "number of volumes"
    );
    assert_eq!(cut(RECORD + 72, 2), "a volume");
    assert_eq!(refused(RECORD + 76, &[0]), "stance");
    assert_eq!(refused(RECORD + 76, &[6]), "stance");
    assert_eq!(refused(RECORD + 77, &[4]), "ack mode");
    assert_eq!(refused(RECORD + 78, &[4]), "flags");
    assert_eq!(refused(RECORD + 78, &[0]), "inconsistent until");
    assert_eq!(refused(RECORD + 79, &[65]), "name of the group");
    assert_eq!(refused(RECORD + 82, &[1]), "reserved bytes");
    assert_eq!(refused(NAMES, b"\n"), "name of the group");
    assert_eq!(refused(NAMES, b"\xff"), "name of the group");
    let second_epoch = NAMES + "registryclichychelles".len() + 48 + "clichy".len();
    assert_eq!(refused(second_epoch, &[1]), "the lineage");
}

#[test]
fn bytes_after_the_last_field_are_refused() {
    for message in arbitrary::one_of_each() {
        if matches!(message, Message::Hello(_) | Message::Start(_)) {
            let bytes = changed(&message, |body| body.push(0));
            let refused = error(&bytes);
            assert!(
                matches!(refused, LinkError::Field { .. } | LinkError::Length { .. }),
                "{refused}"
            );
        }
    }
}

#[test]
fn a_chunk_whose_content_was_damaged_is_refused() {
    let mut bytes = encoded(&chunk(b"some content"));
    *bytes.last_mut().unwrap() ^= 1;
    let refused = error(&bytes);
    assert!(matches!(
        refused,
        LinkError::Checksum {
            kind: Kind::Chunk,
            ..
        }
    ));
}

#[test]
fn a_chunk_whose_content_does_not_fit_its_range_is_refused() {
    let message = chunk(b"some content");
    let refused = |change: fn(&mut Vec<u8>)| match error(&changed(&message, change)) {
        LinkError::Field { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(refused(|body| body[8] = 11), "the range");
    assert_eq!(refused(|body| body[24] = 0), "the range");
    assert_eq!(refused(|body| body.truncate(32)), "the range");
    assert_eq!(refused(|body| body[..8].fill(0xFF)), "the range");
    assert_eq!(refused(|body| body[7] = 0x80), "the range");
    assert_eq!(refused(|body| body[24] = 3), "flags");
    assert_eq!(refused(|body| body[31] = 1), "reserved bytes");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = receive(&mut greeted(), &bytes, &[7, 64]);
        let mut with_magic = MAGIC.to_vec();
        with_magic.extend_from_slice(&bytes);
        let _ = receive(&mut greeted(), &with_magic, &[7, 64]);
    }

    #[test]
    fn random_bodies_with_a_right_checksum_never_panic(
        kind in 0..26u16,
        body in prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..300),
    ) {
        let _ = receive(&mut greeted(), &sealed(kind, &body), &[4096]);
    }

    #[test]
    fn a_flipped_bit_outside_a_frame_is_never_taken_for_another_message(
        message in arbitrary::message(),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        let mut bytes = encoded(&message);
        let covered = if let Message::Frame(_) = message { HEADER } else { bytes.len() };
        bytes[at.index(covered)] ^= 1u8 << bit;
        // An error, or the wait for a longer message that never comes.
        if let Ok(messages) = receive(&mut greeted(), &bytes, &[4096]) {
            prop_assert_eq!(messages, []);
        }
    }

    /// A change that the checksum does not show leads to an error or to a message that is written just so: what is
    /// accepted has only one form.
    #[test]
    fn what_is_accepted_is_what_would_be_written(
        message in arbitrary::message(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let bytes = changed(&message, |body| {
            for (at, value) in changes {
                if !body.is_empty() {
                    let at = at.index(body.len());
                    body[at] = value;
                }
            }
        });
        let newer = matches!(message, Message::Hello(_)) && bytes[HEADER..HEADER + 2] != [2, 0];
        // Compat features are not kept, as nothing uses them yet.
        let features = matches!(message, Message::Hello(_)) && bytes[HEADER + 8..HEADER + 16] != [0; 8];
        if let Ok(messages) = receive(&mut greeted(), &bytes, &[4096])
            && !newer
            && !features
            // A bitmap can be written in more than one way.
            && !matches!(message, Message::Touched { .. } | Message::Confirmed { .. })
        {
            prop_assert_eq!(messages.iter().flat_map(encoded).collect::<Vec<_>>(), bytes);
        }
    }

    #[test]
    fn a_message_cut_off_anywhere_is_awaited(
        message in arbitrary::message(),
        at in any::<prop::sample::Index>(),
    ) {
        let bytes = encoded(&message);
        let cut = at.index(bytes.len());
        prop_assert_eq!(receive(&mut greeted(), &bytes[..cut], &[4096]), Ok(vec![]));
    }
}
