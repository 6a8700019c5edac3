//! Frames: filling and closing them, checking them, giving them their place.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use doublure::base::{ByteRange, Compress, Lsn, Op, OpKind, VolumeId};
use doublure::journal::{Compressor, Encoding, Frame, FrameBuilder, Log, Next};
use uuid::Uuid;

/// Half of it repeats, as in a file of records.
fn payload(len: usize) -> Vec<u8> {
    let mut seed = 1u64;
    (0..len)
        .map(|n| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if n / 64 % 2 == 0 {
                (seed >> 56) as u8
            } else {
                (n % 64) as u8
            }
        })
        .collect()
}

fn frame(first: Lsn, prev: u32, ops: u64, data: &[u8]) -> Frame {
    let expected = data.len() * ops as usize;
    let mut builder = FrameBuilder::new(Uuid::from_u128(1), Uuid::from_u128(2), first, expected);
    for n in 0..ops {
        let range = ByteRange::new(n << 20, data.len() as u64);
        builder.push(
            &Op {
                kind: OpKind::Write,
                volume: VolumeId(0),
                range,
                fua: false,
            },
            data,
            Encoding::Raw,
        );
    }
    builder.seal(prev, first.prev(), 1)
}

fn bench(c: &mut Criterion) {
    for (ops, len) in [(1u64, 4096usize), (32, 4096), (1, 1 << 20)] {
        let data = payload(len);
        let mut group = c.benchmark_group(format!("frame of {ops} x {len} bytes"));
        group.throughput(Throughput::Bytes(ops * len as u64));
        group.bench_function("fill and close", |b| {
            b.iter(|| frame(Lsn(1), 0, ops, black_box(&data)));
        });
        let closed = frame(Lsn(1), 0, ops, &data);
        group.bench_function("parse and verify", |b| {
            b.iter(|| {
                Frame::parse(black_box(closed.bytes().clone())).and_then(|f| f.verify_payloads())
            });
        });
        group.finish();
    }
    let data = payload(4096);
    c.bench_function("append a frame of 32 x 4096 bytes", |b| {
        b.iter_batched(
            || {
                (
                    Log::new(1 << 30, Uuid::from_u128(1)),
                    frame(Lsn(1), 0, 32, &data),
                )
            },
            |(mut log, frame)| log.append(&frame),
            BatchSize::SmallInput,
        );
    });
    catch_up_read(c, &data);
    lz4(c);
}

/// What a primary reads for a mirror that catches up: frames of 32 writes, checked one by one, 1 MiB or more at a time.
fn catch_up_read(c: &mut Criterion, data: &[u8]) {
    const FRAMES: u64 = 128;
    const CAPACITY: usize = 64 << 20;
    let mut log = Log::new(CAPACITY as u64, Uuid::from_u128(1));
    let mut file = vec![0; CAPACITY];
    for _ in 0..FRAMES {
        let frame = frame(log.tail().next(), log.chain(), 32, data);
        let write = log.append(&frame);
        file[write.offset as usize..][..write.bytes.len()].copy_from_slice(&write.bytes);
    }
    let file = Bytes::from(file);
    let mut group = c.benchmark_group("catch-up");
    group.throughput(Throughput::Bytes(FRAMES * 32 * 4096));
    group.bench_function("read 128 frames of 32 x 4096 bytes", |b| {
        b.iter(|| {
            let mut cursor = log.cursor(Lsn(1)).expect("it is there");
            let mut frames = 0;
            while let Next::Read { offset, len } = cursor.next_read(&log, log.tail()) {
                let part = file.slice(offset as usize..(offset + len) as usize);
                frames += cursor.feed(part).expect("whole frames").len();
            }
            assert_eq!(frames as u64, FRAMES);
        });
    });
    group.finish();
}

/// Blocks of text, of a half that repeats, and of noise.
fn lz4(c: &mut Criterion) {
    let text = include_bytes!("../ARCHITECTURE.md")[..4096].to_vec();
    let mut noise = payload(8192);
    noise = noise.chunks(128).flat_map(|c| c[..64].to_vec()).collect();
    let mut group = c.benchmark_group("LZ4 of 4096 bytes");
    group.throughput(Throughput::Bytes(4096));
    for (name, data) in [
        ("text", text),
        ("half repeating", payload(4096)),
        ("noise", noise),
    ] {
        group.bench_function(name, |b| {
            let mut compressor = Compressor::default();
            b.iter(|| compressor.compress(Compress::Lz4, black_box(&data)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
