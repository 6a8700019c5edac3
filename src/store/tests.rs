use bytes::Bytes;

use super::*;

mod model;

const A: VolumeId = VolumeId(0);
const B: VolumeId = VolumeId(1);

fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len)
}

fn op(kind: OpKind, volume: VolumeId, range: ByteRange) -> Op {
    Op {
        kind,
        volume,
        range,
        fua: false,
    }
}

/// A store together with the applies it started.
struct Bench {
    store: Store,
}

impl Bench {
    fn new() -> Bench {
        Bench::with_policy(Policy::default())
    }

    fn with_policy(policy: Policy) -> Bench {
        Bench {
            store: Store::with_policy(Lsn::ZERO, policy),
        }
    }

    /// Admits a write of one repeated letter, with its content.
    fn write(&mut self, volume: VolumeId, at: ByteRange, letter: u8) -> Lsn {
        let lsn = self.write_without_content(volume, at);
        let data = Bytes::from(vec![letter; at.len as usize]);
        self.store.attach(lsn, Content::Data(data));
        lsn
    }

    fn write_without_content(&mut self, volume: VolumeId, at: ByteRange) -> Lsn {
        let lsn = self.store.last_lsn().next();
        self.store.admit(lsn, &op(OpKind::Write, volume, at));
        lsn
    }

    fn admit(&mut self, kind: OpKind, volume: VolumeId, at: ByteRange) -> Lsn {
        let lsn = self.store.last_lsn().next();
        self.store.admit(lsn, &op(kind, volume, at));
        lsn
    }

    fn control(&mut self) -> Lsn {
        let lsn = self.admit(OpKind::CreateVolume, VolumeId(0), range(0, 0));
        let record = Bytes::from_static(b"a volume");
        self.store.attach(lsn, Content::Control(record));
        lsn
    }

    fn allow_all(&mut self) {
        self.store.allow(self.store.last_lsn());
    }

    fn start_all(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.store.next_apply())
            .map(|apply| apply.lsn.0)
            .collect()
    }

    fn pieces(&self, volume: VolumeId, at: ByteRange) -> Vec<(u64, u64, Source)> {
        let plan = self.store.read_plan(volume, at);
        let piece = |p: &Piece| (p.range.offset, p.range.len, p.source);
        plan.pieces.iter().map(piece).collect()
    }
}

fn over(lsn: u64) -> Source {
    Source::Overlay(Lsn(lsn))
}

#[test]
fn a_read_sees_the_newest_operation_for_every_byte_and_the_home_elsewhere() {
    let mut t = Bench::new();
    t.write(A, range(10, 20), b'a');
    t.write(A, range(15, 5), b'b');
    t.write(A, range(28, 4), b'c');
    assert_eq!(
        t.pieces(A, range(0, 40)),
        [
            (0, 10, Source::Home),
            (10, 5, over(1)),
            (15, 5, over(2)),
            (20, 8, over(1)),
            (28, 4, over(3)),
            (32, 8, Source::Home),
        ]
    );
    assert_eq!(t.pieces(A, range(16, 2)), [(16, 2, over(2))]);
    assert_eq!(t.pieces(B, range(10, 5)), [(10, 5, Source::Home)]);
    assert_eq!(t.pieces(A, range(12, 0)), []);
}

#[test]
fn what_waits_up_to_an_lsn_is_told_also_where_something_newer_covers_it() {
    let mut t = Bench::new();
    let first = t.write(A, range(0, 8), b'a');
    t.write(A, range(4, 8), b'b');
    t.write(B, range(0, 64), b'x');
    let third = t.write(A, range(6, 2), b'c');
    t.write(A, range(0, 64), b'd');
    t.store.allow(first);
    assert_eq!(t.start_all(), [first.0]);
    t.store.applied(first);
    let mut content = *b"aaaaaaaa........";
    for (part, laid) in t.store.waiting(A, range(0, 16), third) {
        let Content::Data(data) = laid else {
            panic!("{laid:?}");
        };
        content[part.offset as usize..part.end() as usize].copy_from_slice(&data);
    }
    assert_eq!(&content, b"aaaabbccbbbb....");
}

#[test]
fn a_reply_waits_for_the_newest_operation_that_touches_the_range_and_for_no_other() {
    let mut t = Bench::new();
    t.write(A, range(0, 8), b'a');
    t.write(A, range(8, 8), b'b');
    t.write(A, range(0, 4), b'c');
    let newest = |at| t.store.read_plan(A, at).newest.map(|lsn| lsn.0);
    assert_eq!(newest(range(0, 16)), Some(3));
    assert_eq!(newest(range(4, 12)), Some(2));
    assert_eq!(newest(range(4, 4)), Some(1));
    assert_eq!(newest(range(16, 4)), None);
}

#[test]
fn content_taken_for_a_held_read_stays_valid_after_the_operation_left() {
    let mut t = Bench::new();
    let lsn = t.write(A, range(100, 8), b'a');
    let taken = t.store.content(lsn, range(102, 3));
    t.allow_all();
    t.start_all();
    t.store.applied(lsn);
    assert_eq!(t.store.content(lsn, range(102, 3)), None);
    assert_eq!(taken, Some(Content::Data(Bytes::from_static(b"aaa"))));
}

#[test]
fn an_operation_stays_in_the_overlay_until_its_own_apply_completed() {
    let mut t = Bench::new();
    t.write(A, range(0, 8), b'a');
    t.write(A, range(8, 8), b'b');
    t.allow_all();
    assert_eq!(t.start_all(), [1, 2]);
    assert_eq!(
        t.pieces(A, range(0, 16)),
        [(0, 8, over(1)), (8, 8, over(2))]
    );
    t.store.applied(Lsn(2));
    assert_eq!(
        t.pieces(A, range(0, 16)),
        [(0, 8, over(1)), (8, 8, Source::Home)]
    );
    assert_eq!(t.store.applied_lsn(), Lsn::ZERO);
    t.store.applied(Lsn(1));
    assert_eq!(t.store.applied_lsn(), Lsn(2));
    assert!(t.store.idle());
}

#[test]
fn an_apply_uncovers_only_what_no_newer_operation_covers() {
    let mut t = Bench::new();
    t.write(A, range(0, 12), b'a');
    t.write(A, range(4, 4), b'b');
    t.store.allow(Lsn(1));
    assert_eq!(t.start_all(), [1]);
    t.store.applied(Lsn(1));
    assert_eq!(
        t.pieces(A, range(0, 12)),
        [(0, 4, Source::Home), (4, 4, over(2)), (8, 4, Source::Home)]
    );
}

#[test]
fn nothing_is_applied_beyond_what_is_allowed() {
    let mut t = Bench::new();
    for at in 0..4 {
        t.write(A, range(at * 8, 8), b'a');
    }
    assert_eq!(t.start_all(), [0; 0]);
    t.store.allow(Lsn(2));
    t.store.allow(Lsn(1));
    assert_eq!(t.start_all(), [1, 2]);
    t.store.allow(Lsn(9));
    assert_eq!(t.start_all(), [3, 4]);
}

#[test]
fn an_overlapping_operation_waits_and_others_overtake_it() {
    let mut t = Bench::new();
    t.write(A, range(0, 8), b'a');
    t.write(A, range(4, 8), b'b');
    t.write(A, range(10, 8), b'c');
    t.write(A, range(32, 8), b'd');
    t.write(B, range(0, 8), b'e');
    t.allow_all();
    assert_eq!(t.start_all(), [1, 4, 5], "3 overlaps 2, which waits for 1");
    t.store.applied(Lsn(4));
    assert_eq!(t.start_all(), [0; 0]);
    t.store.applied(Lsn(1));
    assert_eq!(t.start_all(), [2]);
    t.store.applied(Lsn(2));
    assert_eq!(t.start_all(), [3]);
}

#[test]
fn trims_and_zeroes_wait_for_writes_they_overlap_and_writes_for_them() {
    let mut t = Bench::new();
    t.write(A, range(0, 8), b'a');
    t.admit(OpKind::Trim, A, range(4, 64));
    t.write(A, range(60, 4), b'b');
    t.allow_all();
    assert_eq!(t.start_all(), [1]);
    t.store.applied(Lsn(1));
    assert_eq!(t.start_all(), [2]);
    t.store.applied(Lsn(2));
    assert_eq!(t.start_all(), [3]);
}

#[test]
fn a_control_operation_runs_alone_and_in_its_place() {
    let mut t = Bench::new();
    t.write(A, range(0, 8), b'a');
    t.control();
    t.write(A, range(32, 8), b'b');
    t.allow_all();
    assert_eq!(t.start_all(), [1]);
    t.store.applied(Lsn(1));
    let apply = t.store.next_apply().unwrap();
    assert_eq!(apply.lsn, Lsn(2));
    assert_eq!(
        apply.content,
        Content::Control(Bytes::from_static(b"a volume"))
    );
    assert_eq!(t.start_all(), [0; 0]);
    t.store.applied(Lsn(2));
    assert_eq!(t.start_all(), [3]);
}

#[test]
fn control_operations_cover_no_bytes_whatever_range_they_carry() {
    let mut t = Bench::new();
    t.admit(OpKind::CreateVolume, A, range(0, 64));
    assert_eq!(t.pieces(A, range(0, 8)), [(0, 8, Source::Home)]);
    t.write(A, range(0, 4), b'a');
    t.store.truncate_after(Lsn(1));
    assert_eq!(t.pieces(A, range(0, 8)), [(0, 8, Source::Home)]);
}

#[test]
fn an_operation_without_content_is_not_applied_and_holds_back_what_follows() {
    let mut t = Bench::new();
    t.write_without_content(A, range(0, 8));
    t.admit(OpKind::Trim, A, range(8, 8));
    t.allow_all();
    assert_eq!(t.start_all(), [0; 0]);
    assert_eq!(t.store.content(Lsn(1), range(0, 8)), None);
    let data = Bytes::from_static(b"aaaaaaaa");
    t.store.attach(Lsn(1), Content::Data(data));
    assert_eq!(t.start_all(), [1, 2]);
}

#[test]
fn no_more_applies_are_in_flight_than_the_policy_says() {
    let mut t = Bench::with_policy(Policy {
        max_in_flight: 2,
        ..Policy::default()
    });
    for at in 0..4 {
        t.write(A, range(at * 8, 8), b'a');
    }
    t.allow_all();
    assert_eq!(t.start_all(), [1, 2]);
    t.store.applied(Lsn(2));
    assert_eq!(t.start_all(), [3]);
}

#[test]
fn no_more_operations_are_overtaken_than_the_policy_says() {
    let mut t = Bench::with_policy(Policy {
        max_waiting: 2,
        ..Policy::default()
    });
    for _ in 0..4 {
        t.write(A, range(0, 8), b'a');
    }
    t.write(A, range(8, 8), b'b');
    t.allow_all();
    assert_eq!(t.start_all(), [1], "2 and 3 wait, so that 4 stops the rest");
    t.store.applied(Lsn(1));
    assert_eq!(t.start_all(), [2, 5], "3 and 4 wait");
}

#[test]
fn a_held_range_is_left_alone_until_it_is_released() {
    let mut t = Bench::new();
    t.write(A, range(0, 8), b'a');
    t.allow_all();
    assert_eq!(t.start_all(), [1]);
    let hold = t.store.hold(A, range(4, 8));
    assert!(!t.store.quiet(A, range(4, 8)));
    assert!(t.store.quiet(A, range(8, 4)));
    t.write(A, range(8, 8), b'b');
    t.write(A, range(16, 8), b'c');
    t.write(B, range(4, 8), b'd');
    t.allow_all();
    assert_eq!(t.start_all(), [3, 4]);
    t.store.applied(Lsn(1));
    assert!(t.store.quiet(A, range(4, 8)));
    assert_eq!(t.start_all(), [0; 0]);
    t.store.release(hold);
    assert_eq!(t.start_all(), [2]);
}

#[test]
fn a_range_held_for_what_comes_later_takes_what_came_before() {
    let mut t = Bench::new();
    t.write(A, range(0, 8), b'a');
    let hold = t.store.hold_after(A, range(4, 8), Lsn(1));
    t.write(A, range(8, 8), b'b');
    t.allow_all();
    assert_eq!(t.start_all(), [1]);
    t.store.applied(Lsn(1));
    assert_eq!(t.start_all(), [0; 0]);
    t.store.release(hold);
    assert_eq!(t.start_all(), [2]);
}

#[test]
fn a_dropped_tail_makes_visible_again_what_it_covered() {
    let mut t = Bench::new();
    t.write(A, range(0, 16), b'a');
    t.write(A, range(4, 4), b'b');
    t.store.allow(Lsn(2));
    t.write(A, range(0, 32), b'c');
    t.admit(OpKind::Trim, B, range(0, 8));
    t.store.truncate_after(Lsn(2));
    assert_eq!(
        t.pieces(A, range(0, 32)),
        [
            (0, 4, over(1)),
            (4, 4, over(2)),
            (8, 8, over(1)),
            (16, 16, Source::Home)
        ]
    );
    assert_eq!(t.pieces(B, range(0, 8)), [(0, 8, Source::Home)]);
    assert_eq!(
        (t.store.unapplied_ops(), t.store.unapplied_bytes()),
        (2, 20 + 2 * OP_BYTES)
    );
    assert_eq!(t.write(A, range(40, 8), b'd'), Lsn(3));
}

#[test]
fn a_dropped_tail_leaves_out_what_was_applied_out_of_order() {
    let mut t = Bench::new();
    t.write(A, range(0, 8), b'a');
    t.write(A, range(8, 8), b'b');
    t.allow_all();
    t.start_all();
    t.store.applied(Lsn(2));
    t.write(A, range(0, 16), b'c');
    t.store.truncate_after(Lsn(2));
    assert_eq!(
        t.pieces(A, range(0, 16)),
        [(0, 8, over(1)), (8, 8, Source::Home)]
    );
}

#[test]
#[should_panic(expected = "the homes may hold all up to LSN 2")]
fn what_the_homes_may_hold_cannot_be_dropped() {
    let mut t = Bench::new();
    t.write(A, range(0, 8), b'a');
    t.write(A, range(8, 8), b'b');
    t.allow_all();
    t.store.truncate_after(Lsn(1));
}

#[test]
#[should_panic(expected = "operations enter in LSN order")]
fn a_gap_in_the_history_is_refused() {
    let mut t = Bench::new();
    t.store.admit(Lsn(2), &op(OpKind::Trim, A, range(0, 8)));
}

#[test]
#[should_panic(expected = "does not fit")]
fn content_of_another_length_is_refused() {
    let mut t = Bench::new();
    let lsn = t.write_without_content(A, range(0, 8));
    t.store
        .attach(lsn, Content::Data(Bytes::from_static(b"short")));
}

#[test]
#[should_panic(expected = "is not being applied")]
fn an_apply_that_was_not_handed_out_cannot_complete() {
    let mut t = Bench::new();
    let lsn = t.write(A, range(0, 8), b'a');
    t.store.applied(lsn);
}

#[test]
fn block_status_tells_data_from_zeroes_from_holes_and_merges_neighbours() {
    let mut t = Bench::new();
    t.write(A, range(0, 8), b'a');
    t.write_without_content(A, range(8, 8));
    t.admit(OpKind::Trim, A, range(16, 8));
    t.admit(OpKind::WriteZeroes { no_hole: false }, A, range(24, 8));
    t.admit(OpKind::WriteZeroes { no_hole: true }, A, range(32, 8));
    let stored_as_zeroes = t.write_without_content(A, range(48, 8));
    t.store
        .attach(stored_as_zeroes, Content::Zero { keep: true });
    let plan = t.store.status_plan(A, range(4, 56));
    let told: Vec<_> = plan
        .pieces
        .iter()
        .map(|p| (p.range.offset, p.range.len, p.source))
        .collect();
    assert_eq!(
        told,
        [
            (4, 12, StatusSource::Data),
            (16, 16, StatusSource::Zero { keep: false }),
            (32, 8, StatusSource::Zero { keep: true }),
            (40, 8, StatusSource::Home),
            (48, 8, StatusSource::Zero { keep: true }),
            (56, 4, StatusSource::Home),
        ]
    );
    assert_eq!(plan.newest, Some(stored_as_zeroes));
}

#[test]
fn memory_and_space_are_counted_until_the_apply_completed() {
    let mut t = Bench::new();
    t.write(A, range(0, 100), b'a');
    t.admit(OpKind::Trim, A, range(1000, 100));
    t.admit(OpKind::WriteZeroes { no_hole: true }, A, range(2000, 100));
    t.allow_all();
    t.start_all();
    let counted = |t: &Bench| {
        let store = &t.store;
        (
            store.unapplied_ops(),
            store.unapplied_bytes(),
            store.allocating_bytes(),
        )
    };
    assert_eq!(counted(&t), (3, 100 + 3 * OP_BYTES, 200));
    t.store.applied(Lsn(3));
    assert_eq!(counted(&t), (2, 100 + 2 * OP_BYTES, 100));
    t.store.applied(Lsn(1));
    t.store.applied(Lsn(2));
    assert_eq!(counted(&t), (0, 0, 0));
}
