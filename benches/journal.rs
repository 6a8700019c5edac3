//! Frames: filling and closing them, checking them, giving them their place.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use doublure::base::{ByteRange, Compress, Lsn, Op, OpKind, VolumeId};
use doublure::journal::{Compressor, Encoding, Frame, FrameBuilder, Log};
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
            b.iter(|| frame(Lsn(1), 0, ops, black_box(&data)))
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
    let mut group = c.benchmark_group("LZ4 of 4096 bytes");
    group.throughput(Throughput::Bytes(4096));
    group.bench_function("half repeating", |b| {
        let mut compressor = Compressor::default();
        b.iter(|| compressor.compress(Compress::Lz4, black_box(&data)));
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
