//! Messages of every kind.

use super::*;
use crate::base::{FINDINGS_MAX, Finding, Remedy, Sides, Verified, VerifyRun};

fn lsn() -> impl Strategy<Value = Lsn> {
    prop_oneof![0..1000u64, 0..=u64::MAX >> 1].prop_map(Lsn)
}

fn until() -> impl Strategy<Value = Option<Lsn>> {
    prop_oneof![Just(None), Just(Some(Lsn(u64::MAX))), lsn().prop_map(Some)]
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn name() -> impl Strategy<Value = String> {
    // 16 characters of at most 4 bytes.
    "\\P{Cc}{0,16}"
}

fn ack_mode() -> impl Strategy<Value = AckMode> {
    prop_oneof![
        Just(AckMode::Sync),
        Just(AckMode::Memsync),
        Just(AckMode::Async)
    ]
}

fn lineage() -> impl Strategy<Value = Lineage> {
    let epoch = (
        1..50u64,
        1..50u64,
        uuid(),
        name(),
        ack_mode(),
        any::<(bool, bool, bool)>(),
        any::<u64>(),
    );
    prop::collection::vec(epoch, 0..5).prop_map(|steps| {
        let (mut number, mut first_lsn) = (0, 0);
        let mut epochs = Vec::new();
        for (step, ops, id, site, ack, (alone, complete, mixture), time_ns) in steps {
            number += step;
            first_lsn += ops;
            epochs.push(Epoch {
                number,
                id,
                site,
                first_lsn: Lsn(first_lsn),
                ack,
                alone,
                complete,
                mixture,
                time_ns,
            });
        }
        Lineage::new(epochs).unwrap()
    })
}

fn volumes() -> impl Strategy<Value = Vec<VolumeSpec>> {
    let volume =
        (any::<u32>(), uuid(), name(), 0..=u64::MAX >> 1).prop_map(|(id, uuid, name, size)| {
            VolumeSpec {
                id: VolumeId(id),
                uuid,
                name,
                size,
            }
        });
    prop::collection::vec(volume, 0..4)
}

fn hello() -> impl Strategy<Value = Message> {
    let stance = prop_oneof![
        Just(Stance::Serving),
        Just(Stance::Returning),
        Just(Stance::HandedOver),
        Just(Stance::Mirror),
        Just(Stance::Probe),
    ];
    let who = (
        uuid(),
        name(),
        name(),
        name(),
        stance,
        any::<bool>(),
        ack_mode(),
    );
    let how_far = (lsn(), lsn(), lsn(), lsn(), lsn(), until(), any::<u32>());
    let rest = (lineage(), volumes(), uuid());
    (who, how_far, rest).prop_map(|(who, how_far, (lineage, volumes, given_up))| {
        let (group_id, group, site, to_site, stance, alone, ack) = who;
        let (tail, commit, told_durable, floor, journal_first, inconsistent_until, chain) = how_far;
        Message::Hello(Box::new(Hello {
            group_id,
            group,
            site,
            to_site,
            stance,
            lineage,
            tail,
            commit,
            chain,
            told_durable,
            floor,
            inconsistent_until,
            alone,
            ack,
            volumes,
            journal_first,
            given_up,
            mixture: given_up,
            written: None,
        }))
    })
}

fn start() -> impl Strategy<Value = Message> {
    let copy = (
        uuid(),
        lsn(),
        any::<u32>(),
        lineage(),
        volumes(),
        ack_mode(),
        any::<u64>(),
    );
    prop_oneof![
        lsn().prop_map(|from| Start::Stream { from }),
        lsn().prop_map(|from| Start::Fetch { from }),
        (uuid(), lsn()).prop_map(|(epoch_id, lsn)| Start::Handover { epoch_id, lsn }),
        copy.prop_map(
            |(group_id, base, chain, lineage, volumes, ack, time_ns)| Start::Copy {
                group_id,
                base,
                chain,
                lineage,
                volumes,
                ack,
                time_ns
            }
        ),
    ]
    .prop_map(|start| Message::Start(Box::new(start)))
}

fn refuse() -> impl Strategy<Value = Message> {
    let refusal = prop_oneof![
        Just(Refusal::Incompatible),
        Just(Refusal::WrongGroup),
        Just(Refusal::Unrelated),
        Just(Refusal::BothPrimary),
        Just(Refusal::Forked),
        Just(Refusal::StepDown),
        Just(Refusal::Following),
        Just(Refusal::Cut),
        Just(Refusal::Fenced),
        Just(Refusal::NoSpace),
        Just(Refusal::Disagree),
        Just(Refusal::Busy),
    ];
    (refusal, ".{0,200}").prop_map(|(refusal, text)| Message::Refuse { refusal, text })
}

fn ack() -> impl Strategy<Value = Message> {
    (lsn(), lsn(), lsn(), any::<u64>(), until()).prop_map(
        |(received, durable, applied, credit_bytes, inconsistent_until)| Message::Ack {
            received,
            durable,
            applied,
            credit_bytes,
            inconsistent_until,
        },
    )
}

fn chunk() -> impl Strategy<Value = Message> {
    let volume = || any::<u32>().prop_map(VolumeId);
    let content = prop::collection::vec(any::<u8>(), 1..3000).prop_map(Bytes::from);
    prop_oneof![
        (volume(), 0..1u64 << 62, content).prop_map(|(volume, at, data)| Message::Chunk {
            volume,
            range: ByteRange::new(at, data.len() as u64),
            crc: crc32fast::hash(&data),
            data: Some(data),
        }),
        (volume(), 0..1u64 << 62, 1..=64u64 << 20).prop_map(|(volume, at, len)| Message::Chunk {
            volume,
            range: ByteRange::new(at, len),
            crc: 0,
            data: None,
        }),
    ]
}

fn chunks() -> impl Strategy<Value = ChunkSet> {
    let ranges = prop::collection::vec((0..3u32, 0..1u64 << 40, 0..1u64 << 26), 0..20);
    (any::<bool>(), ranges).prop_map(|(everything, ranges)| {
        let mut set = ChunkSet::new();
        for (volume, offset, len) in ranges {
            set.insert(VolumeId(volume), ByteRange::new(offset, len));
        }
        if everything {
            ChunkSet::everything()
        } else {
            set
        }
    })
}

fn comparison() -> impl Strategy<Value = Message> {
    let range = (0..1u64 << 62, 1..=CHUNK_BYTES).prop_map(|(at, len)| ByteRange::new(at, len));
    let volume = any::<u32>().prop_map(VolumeId);
    let hash = any::<Option<[u8; 32]>>();
    let flags = any::<(bool, bool, bool)>();
    (volume, range, hash, lsn(), flags).prop_map(|(volume, range, hash, lsn, flags)| match flags {
        (true, medium, content) => Message::Compare {
            volume,
            range,
            lsn,
            medium,
            content,
        },
        _ => Message::Compared {
            volume,
            range,
            hash,
        },
    })
}

fn content() -> impl Strategy<Value = Message> {
    let data = prop::collection::vec(any::<u8>(), 1..9000);
    let place = (any::<u32>(), 0..1u64 << 62, any::<u64>());
    (place, data, any::<bool>()).prop_map(|((volume, at, unreadable), data, zero)| {
        let data = bytes::Bytes::from(data);
        Message::Content {
            volume: VolumeId(volume),
            range: ByteRange::new(at, data.len() as u64),
            crc: if zero { 0 } else { crc32fast::hash(&data) },
            data: (!zero).then_some(data),
            unreadable,
        }
    })
}

fn finding() -> impl Strategy<Value = Finding> {
    let sides = || {
        prop::sample::select(vec![
            Sides::NONE,
            Sides::PRIMARY,
            Sides::MIRROR,
            Sides::BOTH,
        ])
    };
    let place = (any::<u32>(), 0..1u64 << 62, 0..1u64 << 20);
    (place, sides(), sides(), any::<bool>()).prop_map(|(place, wrong, unreadable, repaired)| {
        Finding {
            volume: VolumeId(place.0),
            range: ByteRange::new(place.1, place.2),
            wrong,
            unreadable,
            repaired,
        }
    })
}

fn run() -> impl Strategy<Value = VerifyRun> {
    let keep = prop::sample::select(vec![Sides::NONE, Sides::PRIMARY, Sides::MIRROR]);
    let findings = prop::collection::vec(finding(), 0..=FINDINGS_MAX);
    let numbers = prop::collection::vec(0..1u64 << 63, 5);
    (
        name(),
        name(),
        keep,
        any::<(bool, bool)>(),
        numbers,
        findings,
    )
        .prop_map(
            |(primary, mirror, keep, (repair, scrub), numbers, findings)| VerifyRun {
                primary,
                mirror,
                remedy: Remedy { repair, keep },
                scrub,
                began_unix_seconds: numbers[0],
                took_ms: numbers[1],
                lsn: Lsn(numbers[2]),
                next: (VolumeId(7), numbers[3]),
                done_bytes: numbers[4],
                findings,
                ..VerifyRun::default()
            },
        )
}

fn verified() -> impl Strategy<Value = Message> {
    let runs = (prop::option::of(run()), prop::option::of(run()));
    (runs, 1..u64::MAX).prop_map(|((last, under_way), ended_unix_seconds)| {
        let last = last.map(|run| VerifyRun {
            ended_unix_seconds,
            ..run
        });
        Message::Verified(Box::new(Verified { last, under_way }))
    })
}

/// Any message of at most three blocks or so.
pub(super) fn message() -> impl Strategy<Value = Message> {
    let frame = (1..=3usize, any::<u8>()).prop_map(|(blocks, first)| {
        let bytes = (0..blocks * BLOCK).map(|at| first.wrapping_add((at % 253) as u8));
        Message::Frame(bytes.collect())
    });
    prop_oneof![
        hello(),
        start(),
        refuse(),
        ack(),
        chunk(),
        frame,
        Just(Message::Started),
        Just(Message::Taken),
        lsn().prop_map(|lsn| Message::Commit { lsn }),
        lsn().prop_map(|lsn| Message::ChunksEnd { lsn }),
        lsn().prop_map(|tail| Message::FetchEnd { tail }),
        any::<u64>().prop_map(|token| Message::Ping { token }),
        any::<u64>().prop_map(|token| Message::Pong { token }),
        ".{0,200}".prop_map(|reason| Message::Bye { reason }),
        chunks().prop_map(|chunks| Message::Touched { chunks }),
        chunks().prop_map(|chunks| Message::Confirmed { chunks }),
        (0..1u64 << 63).prop_map(|bytes| Message::Placed { bytes }),
        (any::<u32>(), 0..1u64 << 63, ".{0,200}").prop_map(|(volume, size, refusal)| {
            Message::MayGrow {
                volume: VolumeId(volume),
                size,
                refusal,
            }
        }),
        (any::<u32>(), 0..1u64 << 63).prop_map(|(volume, size)| Message::CanGrow {
            volume: VolumeId(volume),
            size,
        }),
        comparison(),
        content(),
        verified(),
    ]
}

/// One message of each kind, in the order of their numbers.
pub(super) fn one_of_each() -> Vec<Message> {
    let start = |start| Message::Start(Box::new(start));
    vec![
        super::hello(),
        Message::Refuse {
            refusal: Refusal::Forked,
            text: "both sites went on".into(),
        },
        start(Start::Stream { from: Lsn(0x201) }),
        start(Start::Fetch { from: Lsn(0x202) }),
        start(Start::Copy {
            group_id: Uuid::from_u128(0xA0),
            base: Lsn(0x203),
            chain: 0xCAFE_BABE,
            lineage: Lineage::new(vec![epoch(1, "clichy")]).unwrap(),
            volumes: vec![volume()],
            ack: AckMode::Sync,
            time_ns: 0x65,
        }),
        start(Start::Handover {
            epoch_id: Uuid::from_u128(0xE1),
            lsn: Lsn(0x204),
        }),
        Message::Started,
        Message::Frame(vec![0xF7; BLOCK].into()),
        Message::Ack {
            received: Lsn(0x301),
            durable: Lsn(0x302),
            applied: Lsn(0x303),
            credit_bytes: 0x304,
            inconsistent_until: Some(Lsn(u64::MAX)),
        },
        Message::Commit { lsn: Lsn(0x401) },
        Message::Ping { token: u64::MAX },
        Message::Pong { token: 0x501 },
        super::chunk(b"some content"),
        Message::ChunksEnd { lsn: Lsn(0x601) },
        Message::FetchEnd { tail: Lsn(0x602) },
        Message::Taken,
        Message::Bye {
            reason: "stopped".into(),
        },
        Message::Touched {
            chunks: {
                let mut chunks = ChunkSet::new();
                chunks.insert(VolumeId(3), ByteRange::new(0, 3 * CHUNK_BYTES));
                chunks
            },
        },
        Message::Compare {
            volume: VolumeId(3),
            range: ByteRange::new(0x40000, 0x40000),
            lsn: Lsn(0x701),
            medium: true,
            content: true,
        },
        Message::Compared {
            volume: VolumeId(3),
            range: ByteRange::new(0x40000, 0x40000),
            hash: Some([0xB3; 32]),
        },
        Message::CanGrow {
            volume: VolumeId(3),
            size: 0x8_0000,
        },
        Message::MayGrow {
            volume: VolumeId(3),
            size: 0x8_0000,
            refusal: "too small".into(),
        },
        Message::Content {
            volume: VolumeId(3),
            range: ByteRange::new(0x40000, 12),
            data: Some(bytes::Bytes::from_static(b"some content")),
            unreadable: 0x0102_0304_0506_0708,
            crc: crc32fast::hash(b"some content"),
        },
        Message::Verified(Box::new(Verified {
            last: Some(VerifyRun {
                primary: "clichy".into(),
                mirror: "chelles".into(),
                ended_unix_seconds: 0x901,
                ..VerifyRun::default()
            }),
            under_way: None,
        })),
        Message::Confirmed {
            chunks: {
                let mut chunks = ChunkSet::new();
                chunks.insert(VolumeId(3), ByteRange::new(CHUNK_BYTES, CHUNK_BYTES));
                chunks
            },
        },
        Message::Placed { bytes: 0xA01 },
    ]
}
