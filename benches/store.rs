//! What an operation costs in the store, from its admission to the completion of its apply.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use doublure::base::{ByteRange, Lsn, Op, OpKind, VolumeId};
use doublure::store::{Content, Store};

const VOLUME: VolumeId = VolumeId(0);
const BLOCKS: u64 = (10 << 30) / 4096;
const BLOCK: u64 = 4096;

/// Splitmix64: the same blocks in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn block(&mut self, blocks: u64) -> ByteRange {
        ByteRange::new(self.next() % blocks * BLOCK, BLOCK)
    }
}

struct Load {
    store: Store,
    random: Random,
    blocks: u64,
    data: Bytes,
}

impl Load {
    /// A store that holds `unapplied` random writes, none of which may be applied yet.
    fn new(unapplied: u64, blocks: u64) -> Load {
        let mut load = Load {
            store: Store::new(Lsn::ZERO),
            random: Random(7),
            blocks,
            data: Bytes::from(vec![0xA5; BLOCK as usize]),
        };
        for _ in 0..unapplied {
            load.admit();
        }
        load
    }

    fn admit(&mut self) -> Lsn {
        let lsn = self.store.last_lsn().next();
        let op = Op {
            kind: OpKind::Write,
            volume: VOLUME,
            range: self.random.block(self.blocks),
            fua: false,
        };
        self.store.admit(lsn, &op);
        self.store.attach(lsn, Content::Data(self.data.clone()));
        lsn
    }

    /// `count` operations enter and as many leave, by 32 as a busy group would do it.
    fn turn(&mut self, count: u64, unapplied: u64) {
        for _ in 0..count / 32 {
            for _ in 0..32 {
                self.admit();
            }
            let allowed = self.store.last_lsn().0 - unapplied;
            self.store.allow(Lsn(allowed));
            while self.store.applied_lsn() < Lsn(allowed) {
                let started: Vec<Lsn> = std::iter::from_fn(|| self.store.next_apply())
                    .map(|apply| black_box(apply).lsn)
                    .collect();
                for lsn in started {
                    self.store.applied(lsn);
                }
            }
        }
    }
}

fn operations(c: &mut Criterion) {
    const COUNT: u64 = 1024;
    let mut group = c.benchmark_group("store/operation");
    group.throughput(Throughput::Elements(COUNT));
    for (name, unapplied, blocks) in [
        ("random, 10k unapplied", 10_000, BLOCKS),
        ("random, 100k unapplied", 100_000, BLOCKS),
        ("one hot block", 1_000, 1),
        ("64 hot blocks", 1_000, 64),
    ] {
        let mut load = Load::new(unapplied, blocks);
        group.bench_function(name, |b| b.iter(|| load.turn(COUNT, unapplied)));
    }
    group.finish();
}

fn reads(c: &mut Criterion) {
    let mut load = Load::new(10_000, BLOCKS);
    let mut random = Random(8);
    c.bench_function("store/read_plan/4 KiB, 10k unapplied", |b| {
        b.iter(|| load.store.read_plan(VOLUME, random.block(BLOCKS)));
    });
    let lsn = load.admit();
    let plan = load
        .store
        .read_plan(VOLUME, ByteRange::new(0, BLOCKS * BLOCK));
    let newest = plan
        .pieces
        .iter()
        .find(|p| p.source == doublure::store::Source::Overlay(lsn));
    let range = newest.expect("just admitted").range;
    c.bench_function("store/read_plan/4 KiB and its content", |b| {
        b.iter(|| {
            black_box(load.store.read_plan(VOLUME, range));
            load.store.content(lsn, range)
        });
    });
    let hot = Load::new(10_000, 256);
    c.bench_function("store/read_plan/1 MiB, all of it in 256 pieces", |b| {
        b.iter(|| hot.store.read_plan(VOLUME, ByteRange::new(0, 1 << 20)));
    });
}

fn truncation(c: &mut Criterion) {
    c.bench_function("store/truncate_after/1 of 10k", |b| {
        b.iter_batched(
            || Load::new(10_000, BLOCKS),
            |mut load| {
                load.store.truncate_after(Lsn(9_999));
                load
            },
            BatchSize::LargeInput,
        );
    });
}

criterion_group!(benches, operations, reads, truncation);
criterion_main!(benches);
