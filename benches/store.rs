//! What an operation costs between its admission and its home, and what a read's plan costs.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use doublure::base::{ByteRange, Lsn, Op, OpKind, VolumeId};
use doublure::store::{Content, Store};

const VOLUME: u64 = 10 << 30;
const BLOCK: u64 = 4096;

/// A seeded generator, so that every run sees the same offsets.
struct Offsets(u64);

impl Offsets {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 20) % (VOLUME / BLOCK) * BLOCK
    }
}

fn write(offset: u64) -> Op {
    Op {
        kind: OpKind::Write,
        volume: VolumeId(0),
        range: ByteRange::new(offset, BLOCK),
        fua: false,
    }
}

fn filled(count: u64, offsets: &mut Offsets, data: &Bytes) -> Store {
    let mut store = Store::new(Lsn::ZERO);
    for lsn in 1..=count {
        let lsn = Lsn(lsn);
        store.admit(lsn, &write(offsets.next()));
        store.attach(lsn, Content::Data(data.clone()));
    }
    store
}

fn bench(c: &mut Criterion) {
    let data = Bytes::from(vec![7; BLOCK as usize]);
    let mut group = c.benchmark_group("store");
    group.throughput(Throughput::Elements(1));
    for behind in [0u64, 10_000] {
        let mut offsets = Offsets(1);
        let mut store = filled(behind, &mut offsets, &data);
        let mut tail = Lsn(behind);
        group.bench_function(format!("admit to applied, {behind} unapplied"), |b| {
            b.iter(|| {
                tail = tail.next();
                store.admit(tail, &write(offsets.next()));
                store.attach(tail, Content::Data(data.clone()));
                store.allow(Lsn(tail.0 - behind));
                let apply = store.next_apply().expect("allowed");
                store.applied(black_box(apply).lsn);
            });
        });
    }
    let mut offsets = Offsets(2);
    let store = filled(10_000, &mut offsets, &data);
    group.bench_function("read plan of 64 KiB, 10000 unapplied", |b| {
        b.iter(|| {
            store.read_plan(
                VolumeId(0),
                ByteRange::new(black_box(offsets.next() / 2), 64 << 10),
            )
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
