//! The seeds of the fuzz targets, as the real encoders write them. `DOUBLURE_SEEDS=write cargo test --test seeds` makes
//! them again after a format has changed.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use doublure::base::{
    AckMode, ByteRange, ChunkSet, Compress, Epoch, Finding, Hello, Lineage, Lsn, Message, Op,
    OpKind, Refusal, Remedy, Role, Sides, Stance, Start, Verified, VerifyRun, VolumeId, VolumeSpec,
};
use doublure::journal::{
    AloneRecord, Compressor, Dirty, Encoding, FrameBuilder, HandedRecord, Log, PeerRecord,
    StateFile, StateRecord, encode_epoch, encode_volume,
};
use doublure::link::encode;
use support::Dice;
use support::nbd::*;
use uuid::Uuid;

/// By target and name.
type Seeds = BTreeMap<(&'static str, String), Vec<u8>>;

fn add(seeds: &mut Seeds, target: &'static str, name: impl Into<String>, bytes: Vec<u8>) {
    assert!(
        seeds.insert((target, name.into()), bytes).is_none(),
        "a seed's name is taken"
    );
}

#[test]
fn the_seeds_of_the_fuzz_targets_are_what_the_encoders_write() {
    let mut seeds = Seeds::new();
    nbd_handshake(&mut seeds);
    nbd_requests(&mut seeds);
    link_messages(&mut seeds);
    state_file(&mut seeds);
    undo_file(&mut seeds);
    journal_recovery(&mut seeds);
    configuration(&mut seeds);
    operations(&mut seeds);
    let top = support::tools::source().join("fuzz/seeds");
    let path = |(target, name): &(&str, String)| top.join(target).join(name);
    if std::env::var_os("DOUBLURE_SEEDS").is_some_and(|order| order == "write") {
        let _ = fs::remove_dir_all(&top);
        for (seed, bytes) in &seeds {
            fs::create_dir_all(top.join(seed.0)).unwrap();
            fs::write(path(seed), bytes).unwrap();
        }
    }
    for (seed, bytes) in &seeds {
        let stale = fs::read(path(seed)).ok().as_ref() != Some(bytes);
        assert!(
            !stale,
            "{} is not what the encoders write today: DOUBLURE_SEEDS=write cargo test --test seeds",
            path(seed).display()
        );
    }
    assert_eq!(
        files_below(&top).len(),
        seeds.len(),
        "seeds that nobody makes"
    );
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC_OPTION.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn nbd_handshake(seeds: &mut Seeds) {
    let mut wanted = 2u16.to_be_bytes().to_vec();
    wanted.extend([0, 0, 0, 3]);
    let mut queries = 1u32.to_be_bytes().to_vec();
    queries.extend(name_and("base:allocation", &[]));
    let session =
        |flags: u32, options: &[Vec<u8>]| [&flags.to_be_bytes()[..], &options.concat()].concat();
    let go = || option(OPT_GO, &name_and("a", &wanted));
    let context = |number| option(number, &name_and("a", &queries));
    for (name, bytes) in [
        ("plain", session(3, &[go()])),
        (
            "structured",
            session(
                3,
                &[
                    option(OPT_STRUCTURED_REPLY, &[]),
                    context(OPT_SET_META_CONTEXT),
                    go(),
                ],
            ),
        ),
        (
            "extended",
            session(
                3,
                &[
                    option(OPT_EXTENDED_HEADERS, &[]),
                    context(OPT_LIST_META_CONTEXT),
                    context(OPT_SET_META_CONTEXT),
                    option(OPT_INFO, &name_and("b", &[0, 0])),
                    go(),
                ],
            ),
        ),
        (
            "list",
            session(1, &[option(OPT_LIST, &[]), option(OPT_ABORT, &[])]),
        ),
        ("export-name", session(1, &[option(OPT_EXPORT_NAME, b"a")])),
        (
            "starttls",
            session(3, &[option(5, &[]), option(99, b"who knows"), go()]),
        ),
    ] {
        add(seeds, "nbd_handshake", name, bytes);
    }
}

fn nbd_requests(seeds: &mut Seeds) {
    let sizes = [(0, 512, 100), (1 << 29, 4096, 4096), ((1 << 30) - 1, 1, 1)];
    // The target takes the form of replies from the remainder by three, and contexts from the highest bit.
    for (name, kind, extended) in [
        ("simple", 0, false),
        ("structured", 0x80 + 2, false),
        ("extended", 0x80 + 3, true),
    ] {
        assert_eq!(
            usize::from(kind % 3_u8),
            ["simple", "structured", "extended"]
                .iter()
                .position(|n| *n == name)
                .unwrap()
        );
        let mut bytes = vec![kind];
        for command in 0..8_u16 {
            if command == CMD_DISC {
                continue;
            }
            for (offset, len, data) in sizes {
                let mut flags = if command == CMD_WRITE_ZEROES {
                    FLAG_NO_HOLE
                } else {
                    FLAG_FUA
                };
                if command == CMD_WRITE && extended {
                    flags |= FLAG_PAYLOAD_LEN;
                }
                let len = if command == CMD_WRITE { data } else { len };
                let magic = if extended {
                    MAGIC_REQUEST_EXT
                } else {
                    MAGIC_REQUEST
                };
                bytes.extend(magic.to_be_bytes());
                bytes.extend(flags.to_be_bytes());
                bytes.extend(command.to_be_bytes());
                bytes.extend(u64::from(command).to_be_bytes());
                bytes.extend(u64::to_be_bytes(offset));
                if extended {
                    bytes.extend(u64::to_be_bytes(len));
                } else {
                    bytes.extend((len as u32).to_be_bytes());
                }
                if command == CMD_WRITE {
                    bytes.extend(vec![0xa5; data as usize]);
                }
            }
        }
        add(seeds, "nbd_requests", name, bytes);
    }
}

fn epoch(number: u64, first_lsn: u64) -> Epoch {
    Epoch {
        number,
        id: Uuid::from_u128(u128::from(number) + 1),
        site: "clichy".into(),
        first_lsn: Lsn(first_lsn),
        ack: AckMode::Sync,
        alone: number == 2,
        complete: false,
        mixture: false,
        time_ns: 7,
    }
}

fn lineage() -> Lineage {
    Lineage::new(vec![epoch(1, 1), epoch(2, 5)]).unwrap()
}

fn volume() -> VolumeSpec {
    VolumeSpec {
        id: VolumeId(0),
        uuid: Uuid::from_u128(9),
        name: "data".into(),
        size: 1 << 30,
    }
}

fn chunks() -> ChunkSet {
    let mut chunks = ChunkSet::new();
    chunks.insert(VolumeId(0), ByteRange::new(1 << 20, 5 << 20));
    chunks.insert(VolumeId(7), ByteRange::new(0, 1));
    chunks
}

fn op(kind: OpKind, offset: u64, len: u64) -> Op {
    Op {
        kind,
        volume: VolumeId(0),
        range: ByteRange::new(offset, len),
        fua: false,
    }
}

/// Frames with every kind of operation.
fn frames() -> Vec<Bytes> {
    let group = Uuid::from_u128(1);
    let epoch = epoch(1, 1);
    let mut first = FrameBuilder::new(group, epoch.id, Lsn(1), 0);
    first.push(
        &op(OpKind::OpenEpoch, 0, 0),
        &encode_epoch(&epoch),
        Encoding::Raw,
    );
    first.push(
        &op(OpKind::CreateVolume, 0, 0),
        &encode_volume(&volume()),
        Encoding::Raw,
    );
    let first = first.seal(0, Lsn::ZERO, 1);
    let mut second = FrameBuilder::new(group, epoch.id, Lsn(3), 0);
    let packed = Compressor::default()
        .compress(Compress::Lz4, &[7; 8192])
        .unwrap();
    second.push(&op(OpKind::Write, 100, 5), b"hello", Encoding::Raw);
    second.push(&op(OpKind::Write, 8192, 8192), &packed, Encoding::Lz4);
    second.push(&op(OpKind::Trim, 0, 4096), &[], Encoding::Raw);
    second.push(
        &op(OpKind::WriteZeroes { no_hole: true }, 0, 4096),
        &[],
        Encoding::Raw,
    );
    let second = second.seal(first.checksum(), Lsn(2), 2);
    vec![first.bytes().clone(), second.bytes().clone()]
}

fn hello() -> Hello {
    Hello {
        group_id: Uuid::from_u128(1),
        group: "registry".into(),
        site: "clichy".into(),
        to_site: "chelles".into(),
        stance: Stance::Serving,
        lineage: lineage(),
        tail: Lsn(9),
        commit: Lsn(8),
        chain: 5,
        told_durable: Lsn(8),
        floor: Lsn(1),
        inconsistent_until: None,
        alone: true,
        ack: AckMode::Sync,
        volumes: vec![volume()],
        journal_first: Lsn(1),
        given_up: Uuid::nil(),
        mixture: Uuid::nil(),
        written: None,
    }
}

fn link_messages(seeds: &mut Seeds) {
    let start = |start| Message::Start(Box::new(start));
    let content = Bytes::from_static(b"some content");
    let chunk = |data: Option<Bytes>| Message::Chunk {
        volume: VolumeId(0),
        range: ByteRange::new(4096, data.as_ref().map_or(1 << 20, |d| d.len() as u64)),
        crc: data.as_deref().map_or(0, crc32fast::hash),
        data,
    };
    let copy = Start::Copy {
        group_id: Uuid::from_u128(1),
        base: Lsn(4),
        chain: 5,
        lineage: lineage(),
        volumes: vec![volume()],
        ack: AckMode::Memsync,
        time_ns: 6,
    };
    let handover = Start::Handover {
        epoch_id: Uuid::from_u128(3),
        lsn: Lsn(9),
    };
    let ack = Message::Ack {
        received: Lsn(6),
        durable: Lsn(5),
        applied: Lsn(4),
        credit_bytes: 1 << 30,
        inconsistent_until: Some(Lsn(u64::MAX)),
    };
    let refuse = Message::Refuse {
        refusal: Refusal::Forked,
        text: "both went on".into(),
    };
    let mut stream: Vec<Message> = frames().into_iter().map(Message::Frame).collect();
    stream.extend([Message::Commit { lsn: Lsn(6) }, Message::Ping { token: 1 }]);
    for (name, mode, messages) in [
        // The target takes its greeting from this one.
        ("greeting", 1, vec![Message::Hello(Box::new(hello()))]),
        ("stream", 7, stream),
        (
            "copy",
            3,
            vec![
                start(copy),
                chunk(Some(content)),
                chunk(None),
                Message::Confirmed { chunks: chunks() },
                Message::Placed { bytes: 1 << 20 },
                Message::ChunksEnd { lsn: Lsn(9) },
            ],
        ),
        (
            "compare",
            3,
            vec![
                Message::Touched { chunks: chunks() },
                Message::Compare {
                    volume: VolumeId(0),
                    range: ByteRange::new(0, 4096),
                    lsn: Lsn(9),
                    medium: true,
                    content: true,
                },
                Message::Compared {
                    volume: VolumeId(0),
                    range: ByteRange::new(0, 4096),
                    hash: Some([7; 32]),
                },
                Message::Content {
                    volume: VolumeId(0),
                    range: ByteRange::new(0, 12),
                    data: Some(Bytes::from_static(b"some content")),
                    unreadable: 1,
                    crc: crc32fast::hash(b"some content"),
                },
                Message::Verified(Box::new(verified())),
            ],
        ),
        (
            "mirror",
            3,
            vec![
                Message::Started,
                ack,
                Message::Pong { token: 1 },
                Message::Taken,
            ],
        ),
        (
            "proposals",
            3,
            vec![
                start(Start::Stream { from: Lsn(5) }),
                start(Start::Fetch { from: Lsn(5) }),
                start(handover),
                Message::FetchEnd { tail: Lsn(9) },
                Message::Bye {
                    reason: "stopped".into(),
                },
            ],
        ),
        ("refusal", 1, vec![refuse]),
    ] {
        let mut bytes = vec![mode];
        for message in messages {
            let mut parts: Vec<Bytes> = Vec::new();
            encode(&message, &mut parts).unwrap();
            bytes.extend(parts.concat());
        }
        add(seeds, "link_messages", name, bytes);
    }
}

/// One verification that ended and one under way.
fn verified() -> Verified {
    let mut run = VerifyRun {
        primary: "clichy".into(),
        mirror: "chelles".into(),
        remedy: Remedy {
            repair: true,
            keep: Sides::MIRROR,
        },
        began_unix_seconds: 5,
        done_bytes: 4096,
        total_bytes: 1 << 30,
        ..VerifyRun::default()
    };
    run.note(Finding {
        volume: VolumeId(0),
        range: ByteRange::new(4096, 4096),
        wrong: Sides::PRIMARY,
        unreadable: Sides::PRIMARY,
        repaired: true,
    });
    Verified {
        last: Some(VerifyRun {
            ended_unix_seconds: 6,
            lsn: Lsn(8),
            ..run.clone()
        }),
        under_way: Some(run),
    }
}

/// The target holds the file itself; these are changes of it.
fn undo_file(seeds: &mut Seeds) {
    let (plain, mended) = (0, 1);
    for (name, bytes) in [
        ("untouched", &[plain][..]),
        ("cut-short", &[6 << 1]),
        ("magic", &[plain, 0, 0, 0, 1]),
        ("clones", &[mended, 0, 10, 0, 1]),
        ("frames", &[mended, 0, 65, 0, 16]),
        ("record", &[mended, 1, 48, 0, 31]),
        ("entry-number", &[mended, 2, 24, 0, 9]),
        ("entry-length", &[mended, 2, 49, 0, 0xff]),
        ("entry-beyond", &[mended, 4, 47, 0, 0xff, 4, 46, 0, 0xff]),
        ("content", &[plain, 130, 5, 16, 1]),
    ] {
        add(seeds, "undo_file", name, bytes.to_vec());
    }
}

fn state_file(seeds: &mut Seeds) {
    let mut record = StateRecord {
        sequence: 0,
        group_id: Uuid::from_u128(1),
        site: "clichy".into(),
        group: "registry".into(),
        role: Role::Primary,
        ack: AckMode::Sync,
        lineage: lineage(),
        handed: None,
        floor: Lsn(1),
        ever_in_sync: true,
        inconsistent_until: None,
        checkpoint: Log::new(32 << 20, Uuid::from_u128(1)).position(Lsn::ZERO),
        commit: Lsn(8),
        clean_shutdown: true,
        frame_time_ns: 99,
        journal_bytes: 32 << 20,
        volumes: vec![volume()],
        peers: vec![PeerRecord {
            site: "chelles".into(),
            told_durable: Lsn(8),
            alone: None,
            dirty: Some(Dirty {
                since: Lsn(2),
                until: Lsn(7),
                chunks: chunks(),
            }),
        }],
        given_up: Uuid::nil(),
        given_up_ns: 0,
        forks: Vec::new(),
        mixture: None,
        written: None,
        undo: Uuid::nil(),
        readable_from: Lsn(0),
        verified: verified(),
    };
    let mut file = StateFile::new();
    let slot = |bytes: &[u8]| {
        let used = u32::from_le_bytes(bytes[24..28].try_into().unwrap()) as usize;
        bytes[..used].to_vec()
    };
    let serving = slot(&file.plan_write(&record).1);
    add(
        seeds,
        "state_file",
        "one-slot",
        [&[0][..], &serving].concat(),
    );
    record.peers[0].alone = Some(AloneRecord {
        since_ns: 1,
        from_lsn: Lsn(8),
    });
    record.handed = Some(HandedRecord {
        to: "chelles".into(),
        epoch_id: Uuid::from_u128(3),
        lsn: Lsn(8),
    });
    record.inconsistent_until = Some(Lsn(20));
    let troubled = slot(&file.plan_write(&record).1);
    assert_eq!(serving.len(), troubled.len(), "the target halves its input");
    let both = [&[1][..], &serving, &troubled].concat();
    add(seeds, "state_file", "two-slots", both);
}

fn journal_recovery(seeds: &mut Seeds) {
    // Single changes: (frame, place, place, value); see the target.
    for (name, bytes) in [
        ("whole", vec![0]),
        ("from-a-checkpoint", vec![20 << 2]),
        ("torn-tail", vec![0, 23, 100, 0, 1]),
        ("damage", vec![0, 3, 100, 0, 1]),
        ("another-commit", vec![3, 5, 64, 0, 9]),
        (
            "another-epoch",
            vec![3, 6, 8 + 144, 0, 9, 6, 128 + 2, 0, 17],
        ),
        ("a-segment-header", vec![1, 25, 32, 0, 7]),
    ] {
        add(seeds, "journal_recovery", name, bytes);
    }
}

fn configuration(seeds: &mut Seeds) {
    let source = support::tools::source();
    let example = fs::read(source.join("packaging/doublure.toml")).unwrap();
    add(seeds, "configuration", "example", example);
    let readme = fs::read_to_string(source.join("README.md")).unwrap();
    for (n, part) in readme.split("```toml\n").skip(1).enumerate() {
        let text = part.split("```").next().unwrap();
        add(seeds, "configuration", format!("readme-{n}"), text.into());
    }
}

fn operations(seeds: &mut Seeds) {
    for seed in 1..=6 {
        let mut dice = Dice::new(seed);
        let bytes = (0..400).map(|_| dice.below(256) as u8).collect();
        add(seeds, "operations", format!("random-{seed}"), bytes);
    }
    // Write, close, complete, commit, apply, read, sync; twice, then a crash.
    let calm = [0, 0, 3, 0, 9, 6, 9, 0, 11, 0, 12, 14, 0, 15, 30, 0, 0, 16];
    let bytes = [&calm[..], &calm, &[17, 0]].concat();
    add(seeds, "operations", "calm", bytes);
    // Writes of a mebibyte until the second segment has two; then the header of that segment rots.
    let long = [5, 0, 0, 6, 9, 0, 9, 0, 11, 0].repeat(5);
    let bytes = [&long[..], &[19, 4, 255, 0]].concat();
    add(seeds, "operations", "rotten-header", bytes);
}
