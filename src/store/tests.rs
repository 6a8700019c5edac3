use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const SIZE: u64 = 64;
const VOLUME: VolumeId = VolumeId(0);

fn write(offset: u64, len: u64) -> Op {
    Op {
        kind: OpKind::Write,
        volume: VOLUME,
        range: ByteRange::new(offset, len),
        fua: false,
    }
}

fn enter(store: &mut Store, lsn: u64, op: Op) {
    store.admit(Lsn(lsn), &op);
    let content = match op.kind {
        OpKind::Write => Content::Data(Bytes::from(vec![lsn as u8; op.range.len as usize])),
        _ => Content::Zero { keep: false },
    };
    store.attach(Lsn(lsn), content);
}

#[test]
fn nothing_is_applied_beyond_what_is_allowed() {
    let mut store = Store::new(Lsn(0));
    enter(&mut store, 1, write(0, 8));
    enter(&mut store, 2, write(16, 8));
    assert_eq!(store.next_apply(), None);
    store.allow(Lsn(1));
    assert_eq!(store.next_apply().map(|a| a.lsn), Some(Lsn(1)));
    assert_eq!(store.next_apply(), None);
}

#[test]
fn an_overlapping_operation_waits_for_the_one_before() {
    let mut store = Store::new(Lsn(0));
    enter(&mut store, 1, write(0, 8));
    enter(&mut store, 2, write(4, 8));
    store.allow(Lsn(2));
    assert_eq!(store.next_apply().map(|a| a.lsn), Some(Lsn(1)));
    assert_eq!(store.next_apply(), None);
    store.applied(Lsn(1));
    assert_eq!(store.next_apply().map(|a| a.lsn), Some(Lsn(2)));
}

#[test]
fn a_held_range_lets_no_apply_start_until_it_is_released() {
    let mut store = Store::new(Lsn(0));
    let hold = store.hold(VOLUME, ByteRange::new(4, 2));
    enter(&mut store, 1, write(0, 8));
    store.allow(Lsn(1));
    assert_eq!(store.next_apply(), None);
    assert!(store.quiet(VOLUME, ByteRange::new(0, 8)));
    store.release(hold);
    assert!(store.next_apply().is_some());
    assert!(!store.quiet(VOLUME, ByteRange::new(0, 8)));
}

#[test]
fn an_operation_on_the_group_is_a_barrier() {
    let mut store = Store::new(Lsn(0));
    enter(&mut store, 1, write(0, 8));
    let create = Op {
        kind: OpKind::CreateVolume,
        volume: VolumeId(1),
        range: ByteRange::new(0, 0),
        fua: false,
    };
    store.admit(Lsn(2), &create);
    store.attach(Lsn(2), Content::Control(Bytes::new()));
    enter(
        &mut store,
        3,
        Op {
            volume: VolumeId(1),
            ..write(0, 8)
        },
    );
    store.allow(Lsn(3));
    assert_eq!(store.next_apply().map(|a| a.lsn), Some(Lsn(1)));
    assert_eq!(
        store.next_apply(),
        None,
        "creation waits for what came before"
    );
    store.applied(Lsn(1));
    assert_eq!(store.next_apply().map(|a| a.lsn), Some(Lsn(2)));
    assert_eq!(
        store.next_apply(),
        None,
        "and what comes after waits for it"
    );
    store.applied(Lsn(2));
    assert_eq!(store.next_apply().map(|a| a.lsn), Some(Lsn(3)));
}

#[test]
fn a_truncated_tail_uncovers_what_was_there_before() {
    let mut store = Store::new(Lsn(0));
    enter(&mut store, 1, write(0, 16));
    enter(&mut store, 2, write(4, 4));
    store.truncate_after(Lsn(1));
    let plan = store.read_plan(VOLUME, ByteRange::new(0, 16));
    assert_eq!(plan.newest, Some(Lsn(1)));
    assert_eq!(plan.pieces.len(), 1);
    enter(&mut store, 2, write(0, 1));
    assert_eq!(store.unapplied_ops(), 2);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Trim(u64, u64),
    Allow(u64),
    Start,
    Finish(usize),
    Read(u64, u64),
    Truncate(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SIZE, 1..=16u64).prop_map(|(o, l)| (o, l.min(SIZE - o)));
    prop_oneof![
        4 => range().prop_map(|(o, l)| Step::Write(o, l)),
        1 => range().prop_map(|(o, l)| Step::Trim(o, l)),
        3 => (1..4u64).prop_map(Step::Allow),
        4 => Just(Step::Start),
        4 => (0..8usize).prop_map(Step::Finish),
        3 => range().prop_map(|(o, l)| Step::Read(o, l)),
        1 => (0..4u64).prop_map(Step::Truncate),
    ]
}

/// The content of a volume after each LSN, and a home that applies write to.
struct Model {
    versions: Vec<Vec<u8>>,
    home: Vec<u8>,
    allowed: u64,
    running: Vec<Apply>,
}

fn check_read(store: &Store, model: &Model, offset: u64, len: u64) {
    let plan = store.read_plan(VOLUME, ByteRange::new(offset, len));
    let mut content = Vec::new();
    for piece in plan.pieces {
        assert_eq!(
            piece.range.offset,
            offset + content.len() as u64,
            "a gap in {piece:?}"
        );
        let (from, to) = (piece.range.offset as usize, piece.range.end() as usize);
        match piece.source {
            Source::Home => content.extend_from_slice(&model.home[from..to]),
            Source::Overlay(lsn) => match store.content(lsn, piece.range).expect("attached") {
                Content::Data(data) => content.extend_from_slice(&data),
                _ => content.resize(content.len() + (to - from), 0),
            },
        }
    }
    let newest = model.versions.last().expect("the beginning");
    assert_eq!(content, newest[offset as usize..(offset + len) as usize]);
}

proptest! {
    #[test]
    fn reads_see_the_newest_and_homes_end_as_the_history_says(steps in proptest::collection::vec(step(), 1..120)) {
        let mut store = Store::new(Lsn(0));
        let mut model = Model {
            versions: vec![vec![0; SIZE as usize]],
            home: vec![0; SIZE as usize],
            allowed: 0,
            running: Vec::new(),
        };
        for step in steps {
            let tail = model.versions.len() as u64 - 1;
            match step {
                Step::Write(o, l) | Step::Trim(o, l) => {
                    let lsn = tail + 1;
                    let trim = matches!(step, Step::Trim(..));
                    let kind = if trim { OpKind::Trim } else { OpKind::Write };
                    enter(&mut store, lsn, Op { kind, ..write(o, l) });
                    let mut next = model.versions.last().unwrap().clone();
                    next[o as usize..(o + l) as usize].fill(if trim { 0 } else { lsn as u8 });
                    model.versions.push(next);
                }
                Step::Allow(n) => {
                    model.allowed = (model.allowed + n).min(tail);
                    store.allow(Lsn(model.allowed));
                }
                Step::Start => {
                    if let Some(apply) = store.next_apply() {
                        prop_assert!(apply.lsn.0 <= model.allowed);
                        for other in &model.running {
                            prop_assert!(!other.op.range.overlaps(apply.op.range));
                        }
                        model.running.push(apply);
                    }
                }
                Step::Finish(n) => {
                    if !model.running.is_empty() {
                        let apply = model.running.swap_remove(n % model.running.len());
                        finish(&mut store, &mut model, &apply);
                    }
                }
                Step::Read(o, l) => check_read(&store, &model, o, l),
                Step::Truncate(n) => {
                    let keep = tail.saturating_sub(n).max(model.allowed);
                    store.truncate_after(Lsn(keep));
                    model.versions.truncate(keep as usize + 1);
                }
            }
        }
        let tail = model.versions.len() as u64 - 1;
        model.allowed = tail;
        store.allow(Lsn(tail));
        loop {
            while let Some(apply) = store.next_apply() {
                model.running.push(apply);
            }
            if model.running.is_empty() {
                break;
            }
            let apply = model.running.swap_remove(0);
            finish(&mut store, &mut model, &apply);
        }
        prop_assert_eq!(store.applied_lsn(), Lsn(tail));
        prop_assert_eq!(&model.home, model.versions.last().unwrap());
        prop_assert_eq!(store.unapplied_bytes(), 0);
    }
}

fn finish(store: &mut Store, model: &mut Model, apply: &Apply) {
    let (from, to) = (
        apply.op.range.offset as usize,
        apply.op.range.end() as usize,
    );
    match &apply.content {
        Content::Data(data) => model.home[from..to].copy_from_slice(data),
        _ => model.home[from..to].fill(0),
    }
    store.applied(apply.lsn);
}
