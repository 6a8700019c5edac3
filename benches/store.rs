//! What an operation costs between its admission and its home, and what a read's plan costs.

#[path = "compare/dice.rs"]
mod dice;

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dice::Dice;
use doublure::base::{ByteRange, Lsn, Op, OpKind, VolumeId};
use doublure::store::{Content, Store};

const VOLUME: u64 = 10 << 30;
const BLOCK: u64 = 4096;

fn offset(dice: &mut Dice) -> u64 {
    dice.below(VOLUME / BLOCK) * BLOCK
}

fn write(offset: u64) -> Op {
    Op {
        kind: OpKind::Write,
        volume: VolumeId(0),
        range: ByteRange::new(offset, BLOCK),
        fua: false,
    }
}

fn filled(count: u64, dice: &mut Dice, data: &Bytes) -> Store {
    let mut store = Store::new(Lsn::ZERO);
    for lsn in 1..=count {
        let lsn = Lsn(lsn);
        store.admit(lsn, &write(offset(dice)));
        store.attach(lsn, Content::Data(data.clone()));
    }
    store
}

fn bench(c: &mut Criterion) {
    let data = Bytes::from(vec![7; BLOCK as usize]);
    let mut group = c.benchmark_group("store");
    group.throughput(Throughput::Elements(1));
    for behind in [0u64, 10_000] {
        let mut dice = Dice::new(1);
        let mut store = filled(behind, &mut dice, &data);
        let mut tail = Lsn(behind);
        group.bench_function(format!("admit to applied, {behind} unapplied"), |b| {
            b.iter(|| {
                tail = tail.next();
                store.admit(tail, &write(offset(&mut dice)));
                store.attach(tail, Content::Data(data.clone()));
                store.allow(Lsn(tail.0 - behind));
                let apply = store.next_apply().expect("allowed");
                store.applied(black_box(apply).lsn);
            });
        });
    }
    let mut dice = Dice::new(2);
    let store = filled(10_000, &mut dice, &data);
    group.bench_function("read plan of 64 KiB, 10000 unapplied", |b| {
        b.iter(|| {
            store.read_plan(
                VolumeId(0),
                ByteRange::new(black_box(offset(&mut dice) / 2), 64 << 10),
            )
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
