//! What may lie in a journal: a history of four epochs over two segments, with the input changing single bytes of
//! frames and of segment headers. The first byte says where recovery begins, and whether what was changed gets right
//! checksums (1) and the chain is tied again behind it (2).
#![no_main]

use std::sync::OnceLock;

use doublure::base::{AckMode, BLOCK, ByteRange, Epoch, Lineage, Lsn, Op, OpKind, VolumeId};
use doublure::journal::{
    Cursor, Encoding, Frame, FrameBuilder, Log, Next, Position, Recovery, encode_epoch,
    segment_bytes,
};
use doublure_fuzz::{Disk, Input, mend};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

fn capacity() -> u64 {
    3 * segment_bytes(0)
}

const GROUP: Uuid = Uuid::from_u128(1);

/// What lies on the disk before anything is changed.
struct History {
    disk: Disk,
    /// Where each frame lies, and its length.
    frames: Vec<(u64, usize)>,
    /// Where recovery may begin.
    positions: Vec<Position>,
    lineage: Lineage,
}

fn epoch(number: u64, first: u64) -> Epoch {
    Epoch {
        number,
        id: Uuid::from_u128(u128::from(number) + 1),
        site: "clichy".into(),
        first_lsn: Lsn(first),
        ack: AckMode::Sync,
        alone: false,
        complete: false,
        mixture: false,
        time_ns: number,
    }
}

fn write_history() -> History {
    let mut log = Log::new(capacity(), GROUP);
    let mut history = History {
        disk: Disk::default(),
        frames: Vec::new(),
        positions: vec![log.position(Lsn::ZERO)],
        lineage: Lineage::default(),
    };
    let op = |kind, offset, len| Op {
        kind,
        volume: VolumeId(0),
        range: ByteRange::new(offset, len),
        fua: false,
    };
    let mut lsn = 0;
    let mut number = 0;
    for n in 0..24_u64 {
        if n % 6 == 0 {
            number += 1;
            history
                .lineage
                .push(epoch(number, lsn + 1))
                .expect("it follows");
        }
        let current = history
            .lineage
            .last()
            .expect("the first frame opens one")
            .clone();
        let mut builder = FrameBuilder::new(GROUP, current.id, Lsn(lsn + 1), 0);
        let before = lsn;
        match n % 6 {
            0 => builder.push(
                &op(OpKind::OpenEpoch, 0, 0),
                &encode_epoch(&current),
                Encoding::Raw,
            ),
            1 => builder.push(
                &op(OpKind::Write, n * 512, 512),
                &[n as u8; 512],
                Encoding::Raw,
            ),
            2 => {
                builder.push(&op(OpKind::Trim, 0, 8192), &[], Encoding::Raw);
                builder.push(
                    &op(OpKind::WriteZeroes { no_hole: true }, 4096, 4096),
                    &[],
                    Encoding::Raw,
                );
                builder.push(
                    &op(OpKind::Write, 8192, 100),
                    &[n as u8; 100],
                    Encoding::Raw,
                );
            }
            3 => {
                let packed = lz4(&[n as u8; 8192]);
                builder.push(&op(OpKind::Write, 8192, 8192), &packed, Encoding::Lz4);
            }
            // Three of these nearly fill a segment.
            4 => builder.push(
                &op(OpKind::Write, 1 << 20, 1 << 20),
                &[0; 1 << 20],
                Encoding::Raw,
            ),
            _ => builder.push(&op(OpKind::Trim, n << 20, 64 << 20), &[], Encoding::Raw),
        }
        lsn += builder.op_count() as u64;
        let frame = builder.seal(log.chain(), Lsn(before), n + 1);
        let write = log.append(&frame);
        history.disk.write(write.offset, &write.bytes);
        let from = write.offset + (write.bytes.len() - frame.len()) as u64;
        history.frames.push((from, frame.len()));
        log.release_before(Lsn(lsn));
        history.positions.push(log.position(Lsn(before)));
    }
    history
}

fn lz4(data: &[u8]) -> Vec<u8> {
    let mut compressor = doublure::journal::Compressor::default();
    compressor
        .compress(doublure::base::Compress::Lz4, data)
        .expect("it shrinks")
}

fuzz_target!(|data: &[u8]| {
    static HISTORY: OnceLock<History> = OnceLock::new();
    let history = HISTORY.get_or_init(write_history);
    let mut input = Input::new(data);
    let Some(mode) = input.byte() else { return };
    let mut disk = history.disk.clone();
    let changed = change(&mut disk, history, mode, input);
    let from = history.positions[usize::from(mode >> 2) % history.positions.len()];
    let lineage = &history.lineage;
    let Some((mut log, epoch)) = recover(&mut disk, from, lineage, changed.is_none()) else {
        return;
    };
    read_back(&mut disk, &log);
    // What is appended behind a recovered tail is found by the next recovery.
    let next = log.tail().next();
    let mut builder = FrameBuilder::new(GROUP, epoch, next, 0);
    let op = Op {
        kind: OpKind::Trim,
        volume: VolumeId(0),
        range: ByteRange::new(0, 512),
        fua: false,
    };
    builder.push(&op, &[], Encoding::Raw);
    let frame = builder.seal(log.chain(), Lsn::ZERO, 1);
    if log.can_append(frame.len(), true) {
        let write = log.append(&frame);
        disk.write(write.offset, &write.bytes);
        let (again, _) = recover(&mut disk, from, lineage, false).expect("as good as before");
        assert!(
            again.tail() >= next,
            "{} was appended, {} was found",
            next,
            again.tail()
        );
    }
});

/// Changes bytes as the input says: (frame, place, place, value) each, with a number beyond the frames for the header of a
/// segment. `None` if nothing was changed.
fn change(disk: &mut Disk, history: &History, mode: u8, mut input: Input<'_>) -> Option<()> {
    let frames = &history.frames;
    let mut first = None;
    while let Some([which, low, high, value]) =
        (|| Some([input.byte()?, input.byte()?, input.byte()?, input.byte()?]))()
    {
        let which = usize::from(which) % (frames.len() + 3);
        let place = usize::from(u16::from_le_bytes([low, high]));
        if let Some((offset, len)) = frames.get(which) {
            let place = place % len;
            disk.block(offset + (place - place % BLOCK) as u64)[place % BLOCK] = value;
            first = Some(first.map_or(which, |f: usize| f.min(which)));
        } else {
            let base = (which - frames.len()) as u64 * segment_bytes(0);
            let block = disk.block(base);
            block[place % 56] = value;
            if mode & 1 != 0 {
                mend::segment(block);
            }
            first = first.or(Some(frames.len()));
        }
    }
    if mode & 1 != 0 {
        let mut prev = None;
        for (offset, len) in frames.iter().skip(first?) {
            let mut bytes = vec![0; *len];
            disk.get(*offset, &mut bytes);
            let checksum = mend::frame(&mut bytes, prev);
            disk.write(*offset, &bytes);
            if mode & 2 == 0 {
                break;
            }
            prev = checksum;
        }
    }
    first.map(|_| ())
}

/// Recovers; the journal and its last epoch, unless there is damage or nothing.
fn recover(disk: &mut Disk, from: Position, lineage: &Lineage, whole: bool) -> Option<(Log, Uuid)> {
    let mut recovery = Recovery::new(capacity(), GROUP, from, lineage);
    let mut next = from.next;
    let mut last: Option<Frame> = None;
    loop {
        match recovery.next(disk) {
            Ok(Some(frame)) => {
                assert_eq!(frame.first_lsn(), next, "recovery skipped something");
                next = frame.last_lsn().next();
                last = Some(frame);
            }
            Ok(None) => break,
            Err(error) => {
                assert!(!whole, "{error}");
                return None;
            }
        }
    }
    let recovered = recovery.finish(disk).expect("the disk can be read");
    assert_eq!(recovered.tail.next(), next);
    if let Some(damage) = recovered.damage {
        assert!(damage.lsn == next && damage.claims >= next && !whole);
        return None;
    }
    assert!(recovered.torn.is_none_or(|torn| torn == recovered.tail));
    Some((recovered.log, last?.epoch_id()))
}

/// Reads everything there is, as for a mirror.
fn read_back(disk: &mut Disk, log: &Log) {
    let Some(mut cursor): Option<Cursor> = log.cursor(log.first_lsn()) else {
        return;
    };
    while let Next::Read { offset, len } = cursor.next_read(log, log.tail()) {
        let mut bytes = vec![0; len as usize];
        disk.get(offset, &mut bytes);
        if cursor.feed(bytes.into()).is_err() {
            return;
        }
    }
}
