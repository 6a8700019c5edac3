//! Log and recovery together, over a disk on which only durable writes surely survive.

use std::collections::VecDeque;

use std::io;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::base::sabotage::Sabotage;
use crate::base::{AckMode, BLOCK, ByteRange, Epoch, Lineage, Lsn, Op, OpKind, VolumeId};

const CAPACITY: u64 = 5 * ((4 << 20) + BLOCK as u64);

fn group() -> Uuid {
    Uuid::from_u128(1)
}

fn epoch(number: u64, first: u64) -> Epoch {
    Epoch {
        number,
        id: Uuid::from_u128(1000 + u128::from(number)),
        site: "clichy".into(),
        first_lsn: Lsn(first),
        ack: AckMode::Sync,
        alone: false,
        complete: false,
        mixture: false,
        time_ns: number,
    }
}

struct Disk {
    bytes: Vec<u8>,
}

impl ReadJournal for Disk {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = offset as usize;
        buf.copy_from_slice(&self.bytes[from..from + buf.len()]);
        Ok(())
    }
}

impl Disk {
    fn new() -> Disk {
        Disk {
            bytes: vec![0; CAPACITY as usize],
        }
    }

    fn write(&mut self, write: &Write) {
        let from = write.offset as usize;
        self.bytes[from..from + write.bytes.len()].copy_from_slice(&write.bytes);
    }
}

/// A journal with its disk: what a site has, without the rest of the site.
struct Journal {
    disk: Disk,
    log: Log,
    lineage: Lineage,
    frames: Vec<Frame>,
}

impl Journal {
    fn new() -> Journal {
        Journal {
            disk: Disk::new(),
            log: Log::new(CAPACITY, group()),
            lineage: Lineage::default(),
            frames: Vec::new(),
        }
    }

    fn build(&mut self, kind: OpKind, count: u64, payload: &[u8], commit: u64) -> Frame {
        let first = self.log.tail().next();
        let epoch = self.lineage.last().expect("an epoch is open").id;
        let mut builder = FrameBuilder::new(group(), epoch, first, 0);
        for n in 0..count {
            let len = if kind.is_control() {
                0
            } else {
                payload.len() as u64
            };
            let op = Op {
                kind,
                volume: VolumeId(0),
                range: ByteRange::new(n * 4096, len),
                fua: false,
            };
            builder.push(&op, payload, Encoding::Raw);
        }
        builder.seal(self.log.chain(), Lsn(commit), first.0)
    }

    fn plan(&mut self, count: u64, len: usize, commit: u64) -> Write {
        let fill = self.log.tail().0 as u8 | 1;
        let frame = self.build(OpKind::Write, count, &vec![fill; len], commit);
        self.frames.push(frame.clone());
        self.log.append(&frame)
    }

    fn append(&mut self, count: u64, len: usize, commit: u64) {
        let write = self.plan(count, len, commit);
        self.disk.write(&write);
    }

    fn open_epoch(&mut self, number: u64) {
        let epoch = epoch(number, self.log.tail().0 + 1);
        self.lineage.push(epoch.clone()).unwrap();
        let frame = self.build(
            OpKind::OpenEpoch,
            1,
            &encode_epoch(&epoch),
            self.log.tail().0,
        );
        self.frames.push(frame.clone());
        let write = self.log.append(&frame);
        self.disk.write(&write);
    }

    fn recover(&mut self, from: Position) -> (Recovered, Vec<Frame>) {
        recover_from(&mut self.disk, from, &self.lineage)
    }
}

fn recover_from(disk: &mut Disk, from: Position, lineage: &Lineage) -> (Recovered, Vec<Frame>) {
    let mut recovery = Recovery::new(CAPACITY, group(), from, lineage);
    let mut frames = Vec::new();
    while let Some(frame) = recovery.next(disk).unwrap() {
        frames.push(frame);
    }
    (recovery.finish(disk).unwrap(), frames)
}

fn start() -> Position {
    Log::new(CAPACITY, group()).position(Lsn::ZERO)
}

#[test]
fn what_was_appended_is_recovered_and_appending_goes_on() {
    let mut j = Journal::new();
    j.open_epoch(1);
    for n in 0..20 {
        j.append(3, 4096, n);
    }
    let (recovered, frames) = j.recover(start());
    assert_eq!(frames, j.frames);
    assert_eq!(
        (recovered.tail, recovered.chain),
        (j.log.tail(), j.log.chain())
    );
    assert_eq!((recovered.torn, recovered.damage), (None, None));
    j.log = recovered.log;
    j.append(1, 512, 0);
    assert_eq!(j.recover(start()).1, j.frames);
}

#[test]
fn the_lineage_on_record_may_lag_behind_the_journal_or_run_ahead_of_it() {
    let mut j = Journal::new();
    j.open_epoch(1);
    j.append(1, 512, 1);
    j.open_epoch(2);
    j.append(1, 512, 1);
    let lagging = Lineage::new(vec![epoch(1, 1)]).unwrap();
    assert_eq!(recover_from(&mut j.disk, start(), &lagging).1, j.frames);
    j.lineage.push(epoch(3, 5)).unwrap();
    assert_eq!(j.recover(start()).1, j.frames);
}

#[test]
fn segments_wrap_around_many_times() {
    let mut j = Journal::new();
    j.open_epoch(1);
    let mut checkpoint = start();
    for n in 0..200 {
        j.append(1, 1 << 20, n);
        let tail = j.log.tail();
        if n % 3 == 0 {
            checkpoint = j.log.position(tail.prev());
            j.log.release_before(tail);
        }
    }
    let (recovered, frames) = j.recover(checkpoint);
    assert_eq!(recovered.tail, j.log.tail());
    let replayed: Vec<Lsn> = frames.iter().map(Frame::last_lsn).collect();
    assert!(replayed.contains(&checkpoint.lsn.next()));
    assert_eq!((recovered.torn, recovered.damage), (None, None));
    assert_eq!(
        recovered.log.first_lsn(),
        j.log.first_lsn(),
        "older segments are found again"
    );
}

#[test]
fn a_full_journal_takes_no_data_but_still_opens_an_epoch() {
    let mut j = Journal::new();
    j.open_epoch(1);
    while j.log.can_append((1 << 20) + 4096, false) {
        j.append(1, 1 << 20, 0);
    }
    assert!(j.log.can_append(4096, true));
    let tail = j.log.tail();
    j.open_epoch(2);
    assert_eq!(j.recover(start()).0.tail, tail.next());
    j.log.release_before(tail);
    assert!(j.log.can_append((1 << 20) + 4096, false));
}

#[test]
fn a_torn_tail_is_dropped_and_overwritten() {
    let mut j = Journal::new();
    j.open_epoch(1);
    j.append(1, 4096, 1);
    let torn = j.plan(1, 4096, 1);
    let half = Write {
        offset: torn.offset,
        bytes: torn.bytes.slice(..4096),
    };
    j.disk.write(&half);
    // The one behind it made it to the disk.
    j.append(1, 4096, 1);
    let (recovered, frames) = j.recover(start());
    assert_eq!(frames.len(), 2);
    assert_eq!((recovered.torn, recovered.damage), (Some(Lsn(2)), None));
    j.log = recovered.log;
    j.frames.truncate(2);
    j.open_epoch(2);
    let (recovered, frames) = j.recover(start());
    assert_eq!(frames, j.frames);
    assert_eq!(
        recovered.damage, None,
        "the abandoned frame behind is no damage"
    );
}

#[test]
fn a_damaged_middle_is_found_and_never_taken_for_the_end() {
    let mut j = Journal::new();
    j.open_epoch(1);
    for n in 0..10 {
        j.append(1, 4096, n);
    }
    let place = j.log.position(Lsn(4));
    j.disk.bytes
        [place.offset as usize + 4096 + BLOCK + 7 - BLOCK + segment_bytes(CAPACITY) as usize] ^= 1;
    let (recovered, frames) = j.recover(start());
    assert_eq!(frames.len(), 4);
    let damage = recovered.damage.expect("damage");
    assert_eq!((damage.lsn, damage.claims), (Lsn(5), Lsn(9)));
}

#[test]
fn damage_at_the_end_of_a_segment_is_seen_through_the_next_segments() {
    let mut j = Journal::new();
    j.open_epoch(1);
    for n in 0..12 {
        j.append(1, 1 << 20, n);
    }
    let hit = j.frames[2].clone();
    let at = j
        .disk
        .bytes
        .windows(8)
        .position(|w| w == &hit.bytes()[56..64])
        .unwrap();
    j.disk.bytes[at] ^= 1;
    let (recovered, _) = j.recover(start());
    assert_eq!(recovered.damage.map(|d| d.lsn), Some(hit.first_lsn()));
}

#[test]
fn a_rotten_segment_header_does_not_hide_the_damage_behind_it() {
    let mut j = Journal::new();
    j.open_epoch(1);
    let mut headers = Vec::new();
    while headers.len() < 2 {
        let write = j.plan(1, 1 << 20, j.log.tail().0);
        j.disk.write(&write);
        // Only the first write to a segment has a header in front.
        if write.bytes.len() > j.frames.last().unwrap().len() {
            headers.push((write.offset, j.log.tail()));
        }
    }
    let (offset, first) = headers[0];
    j.disk.bytes[offset as usize + 33] ^= 1;
    let (recovered, _) = j.recover(start());
    let damage = recovered.damage.expect("damage");
    assert_eq!((damage.lsn, recovered.tail), (first, first.prev()));

    // What is in the last segment is claimed by nothing but itself.
    let (offset, first) = headers[1];
    j.append(1, 512, first.0);
    let (recovered, _) = {
        j.disk.bytes[headers[0].0 as usize + 33] ^= 1;
        j.disk.bytes[offset as usize + 33] ^= 1;
        j.recover(start())
    };
    assert_eq!(recovered.damage.expect("damage").lsn, first);
}

/// Two writes are under way at once: the first of a segment may be lost, header and all, and the one behind it not.
#[test]
fn a_segment_header_that_the_crash_lost_does_not_hide_the_damage_before_it() {
    let mut j = Journal::new();
    j.open_epoch(1);
    let mut second = None;
    let before = loop {
        let before = j.log.tail();
        let write = j.plan(1, 1 << 20, before.0);
        if write.bytes.len() > j.frames.last().unwrap().len() {
            break before;
        }
        second.get_or_insert(write.offset as usize);
        j.disk.write(&write);
    };
    j.append(1, 512, before.0);
    j.disk.bytes[second.unwrap() + 33] ^= 1;
    let (recovered, _) = j.recover(start());
    assert_eq!(recovered.damage.expect("damage").lsn, Lsn(2));
}

/// The checkpoint names a place in the middle of a segment whose beginning the disk lost: appending there from its
/// beginning would put frames where the next recovery does not look.
#[test]
fn a_segment_that_lost_its_beginning_is_not_begun_anew() {
    let mut j = Journal::new();
    j.open_epoch(1);
    let (offset, len) = loop {
        let write = j.plan(1, 1 << 20, j.log.tail().0);
        j.disk.write(&write);
        if write.bytes.len() > j.frames.last().unwrap().len() {
            break (write.offset as usize, write.bytes.len());
        }
    };
    let tail = j.log.tail();
    let checkpoint = j.log.position(tail);
    j.disk.bytes[offset..offset + len].fill(0);
    let (recovered, frames) = j.recover(checkpoint);
    assert_eq!(
        (recovered.tail, recovered.damage, frames.len()),
        (tail, None, 0)
    );
    assert_eq!(
        recovered.log.first_lsn(),
        tail.next(),
        "what is before cannot be read"
    );
    j.log = recovered.log;
    j.append(1, 512, tail.0);
    j.append(1, 512, tail.0 + 1);
    let last = j.log.tail();
    let (recovered, _) = j.recover(checkpoint);
    assert_eq!((recovered.tail, recovered.damage), (last, None));
}

#[test]
fn a_recycled_frame_never_follows_a_new_one() {
    let mut j = Journal::new();
    j.open_epoch(1);
    // Same sizes in every turn, so that old frames lie exactly behind new ones.
    for n in 0..23 {
        j.append(1, 1 << 20, n);
        j.log.release_before(j.log.tail());
    }
    let tail = j.log.tail();
    let from = j.log.position(tail.prev());
    let (recovered, frames) = j.recover(from);
    assert_eq!((recovered.tail, frames.len()), (tail, 1));
    assert_eq!((recovered.torn, recovered.damage), (None, None));
}

/// No seed of the simulator brings this about, nor can it: an LSN of an epoch is used once, so a frame of the right epoch at
/// the right LSN has one predecessor only. The chain is for what breaks that rule unnoticed: a cloned disk, a bug.
#[test]
fn a_frame_of_the_right_lsn_and_epoch_that_follows_another_frame_is_not_recovered() {
    let [mut here, mut there] = [(); 2].map(|()| {
        let mut j = Journal::new();
        j.open_epoch(1);
        j
    });
    here.append(1, 4096, 1);
    let other = there.build(OpKind::Write, 1, &[0xee; 4096], 1);
    there.log.append(&other);
    let foreign = there.plan(1, 4096, 1);
    here.disk.write(&foreign);
    assert_eq!(here.recover(start()).0.tail, Lsn(2));
    let unchecked = Sabotage::SkipChecksumChain.during(|| here.recover(start()));
    assert_eq!(unchecked.0.tail, Lsn(3), "nothing else refuses it");
}

#[test]
fn a_cut_tail_is_gone_and_what_replaces_it_is_recovered() {
    for cut in [3u64, 9, 12, 13] {
        let mut j = Journal::new();
        j.open_epoch(1);
        for _ in 0..12 {
            j.append(1, 1 << 20, 1);
        }
        j.log.truncate_after(Lsn(cut));
        j.lineage.truncate_after(Lsn(cut));
        j.frames.truncate(cut as usize);
        assert_eq!(
            (j.log.tail(), j.log.chain()),
            (Lsn(cut), j.frames.last().unwrap().checksum())
        );
        j.open_epoch(2);
        j.append(2, 700_000, 1);
        let (recovered, frames) = j.recover(start());
        assert_eq!(frames, j.frames, "cut after {cut}");
        assert_eq!(recovered.damage, None);
    }
}

#[test]
fn a_cursor_reads_every_frame_once_across_segments() {
    let mut j = Journal::new();
    j.open_epoch(1);
    for n in 0..15 {
        j.append(1 + n % 3, 300_000, n);
    }
    for from in [1u64, 2, 7, 14] {
        assert_eq!(
            read_all(&j.log, &j.disk, Lsn(from)),
            frames_from(&j.frames, Lsn(from))
        );
        let (recovered, _) = recover_from(&mut j.disk, j.log.position(Lsn(12)), &j.lineage);
        assert_eq!(
            read_all(&recovered.log, &j.disk, Lsn(from)),
            frames_from(&j.frames, Lsn(from)),
            "after recovery"
        );
    }
    assert!(j.log.cursor(j.log.tail().next()).is_none());
}

fn frames_from(frames: &[Frame], from: Lsn) -> Vec<Frame> {
    frames
        .iter()
        .filter(|f| f.last_lsn() >= from)
        .cloned()
        .collect()
}

/// With as many reads under way as there may be.
fn read_all(log: &Log, disk: &Disk, from: Lsn) -> Vec<Frame> {
    let mut cursor = log.cursor(from).unwrap();
    let (mut reads, mut all) = (VecDeque::new(), Vec::new());
    loop {
        while reads.len() < 5
            && let Next::Read { offset, len } = cursor.next_read(log, log.tail())
        {
            reads.push_back(offset as usize..(offset + len) as usize);
        }
        assert_eq!(cursor.asked(), reads.len());
        let Some(read) = reads.pop_front() else {
            return frames_from(&all, from);
        };
        let data = bytes::Bytes::copy_from_slice(&disk.bytes[read]);
        all.extend(cursor.feed(data).unwrap());
    }
}

#[test]
fn a_cursor_stops_at_what_is_durable_and_notices_that_its_place_was_reused() {
    let mut j = Journal::new();
    j.open_epoch(1);
    for n in 0..6 {
        j.append(1, 4096, n);
    }
    let mut cursor = j.log.cursor(Lsn(1)).unwrap();
    let Next::Read { offset, len } = cursor.next_read(&j.log, Lsn(3)) else {
        panic!("nothing to read")
    };
    let data =
        bytes::Bytes::copy_from_slice(&j.disk.bytes[offset as usize..(offset + len) as usize]);
    assert_eq!(
        cursor.feed(data).unwrap().last().unwrap().last_lsn(),
        Lsn(3)
    );
    assert_eq!(cursor.next_read(&j.log, Lsn(3)), Next::CaughtUp);
    for n in 0..30 {
        j.append(1, 1 << 20, n);
        j.log.release_before(j.log.tail());
    }
    assert_eq!(cursor.next_read(&j.log, j.log.tail()), Next::Recycled);
}

#[test]
fn a_cursor_does_not_wait_for_the_rest_of_a_frame_that_lies_where_a_shorter_one_was_lost() {
    let mut j = Journal::new();
    j.open_epoch(1);
    j.append(1, 300_000, 1);
    let longer = j.frames[1].bytes().clone();
    j.append(1, 4096, 2);
    let (first, lost) = (j.log.cursor(Lsn(1)).unwrap(), j.log.cursor(Lsn(3)).unwrap());
    for mut cursor in [first, lost] {
        let Next::Read { offset, len } = cursor.next_read(&j.log, Lsn(3)) else {
            panic!("nothing to read")
        };
        let mut data = j.disk.bytes[offset as usize..(offset + len) as usize].to_vec();
        let at = data.len() - j.frames[2].len();
        let shown = data.len() - at;
        data[at..].copy_from_slice(&longer[..shown]);
        let error = cursor.feed(data.into()).unwrap_err();
        assert!(
            error.to_string().contains("longer than its place"),
            "{error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Writes complete in any order, and of those under way at the crash any sectors survive: what is recovered is a
    /// prefix that holds at least every frame up to the last one that was confirmed in order.
    #[test]
    fn any_crash_leaves_a_prefix_with_everything_confirmed(
        sizes in proptest::collection::vec((1u64..4, 1usize..200_000), 1..60),
        confirmed in 0usize..60,
        survivors in proptest::collection::vec(any::<u64>(), 8),
    ) {
        let mut j = Journal::new();
        j.open_epoch(1);
        let mut writes = Vec::new();
        for (count, len) in sizes {
            let total = (count as usize * len) + 2 * BLOCK;
            if !j.log.can_append(total, false) {
                break;
            }
            writes.push(j.plan(count, len, 1));
        }
        let confirmed = confirmed.min(writes.len());
        for write in &writes[..confirmed] {
            j.disk.write(write);
        }
        // At most four are under way.
        for (n, write) in writes[confirmed..].iter().take(4).enumerate() {
            for (at, sector) in write.bytes.chunks(512).enumerate() {
                if survivors[n] >> (at % 64) & 1 == 1 {
                    j.disk.write(&Write {
                        offset: write.offset + at as u64 * 512,
                        bytes: bytes::Bytes::copy_from_slice(sector),
                    });
                }
            }
        }
        let (recovered, frames) = j.recover(start());
        prop_assert!(frames.len() > confirmed);
        prop_assert_eq!(&frames[..], &j.frames[..frames.len()]);
        prop_assert_eq!(recovered.damage, None);
    }
}
