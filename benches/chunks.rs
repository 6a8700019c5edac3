//! The map of what may differ on a mirror that is away: 256 KiB chunks of volumes.

#[path = "compare/dice.rs"]
mod dice;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dice::Dice;
use doublure::base::{ByteRange, ChunkSet, VolumeId, VolumeSpec};
use uuid::Uuid;

const VOLUME: u64 = 100 << 30;
const BLOCK: u64 = 4096;

/// Of a write like those of a database: nine of ten lie within a tenth of the volume.
fn offset(dice: &mut Dice) -> u64 {
    let all = dice.below(10) == 0;
    let span = if all { VOLUME } else { VOLUME / 10 };
    dice.below(span / BLOCK) * BLOCK
}

fn written(operations: u64, seed: u64) -> ChunkSet {
    let mut dice = Dice::new(seed);
    let mut set = ChunkSet::new();
    for _ in 0..operations {
        set.insert(VolumeId(0), ByteRange::new(offset(&mut dice), BLOCK));
    }
    set
}

fn bench(c: &mut Criterion) {
    let volume = VolumeSpec {
        id: VolumeId(0),
        uuid: Uuid::from_u128(1),
        name: "registry-data".into(),
        size: VOLUME,
    };
    let mut group = c.benchmark_group("dirty map of 100 GiB");
    group.throughput(Throughput::Elements(1));
    let mut dice = Dice::new(1);
    let mut set = ChunkSet::new();
    group.bench_function("note a write of 4 KiB", |b| {
        b.iter(|| {
            set.insert(
                VolumeId(0),
                ByteRange::new(black_box(offset(&mut dice)), BLOCK),
            );
        });
    });
    let set = written(100_000, 2);
    group.bench_function("look a chunk up, 100000 writes noted", |b| {
        b.iter(|| set.holds(VolumeId(0), black_box(offset(&mut dice))));
    });
    let segment = written(10_000, 3);
    group.bench_function("join a segment of 10000 writes", |b| {
        b.iter_batched(
            || set.clone(),
            |mut all| {
                all.union(black_box(&segment));
                all
            },
            BatchSize::SmallInput,
        );
    });
    let chunks = set.bytes(std::slice::from_ref(&volume)) / (256 << 10);
    group.throughput(Throughput::Elements(chunks));
    group.bench_function("walk all chunks", |b| {
        b.iter(|| {
            let mut at = 0;
            while let Some(chunk) = set.next(&volume, at) {
                at = black_box(chunk).end();
            }
            at
        });
    });
    group.bench_function("encode for the record", |b| b.iter(|| set.encode()));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
