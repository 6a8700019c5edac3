//! What may lie in a journal: some frames of the group's history, with the input written over them.
#![no_main]

use std::io;

use doublure::base::{AckMode, ByteRange, Epoch, Lineage, Lsn, Op, OpKind, VolumeId};
use doublure::journal::{Encoding, FrameBuilder, Log, ReadJournal, Recovery, encode_epoch};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

const CAPACITY: u64 = 32 << 20;

/// Zero but for its beginning.
struct Disk(Vec<u8>);

impl ReadJournal for Disk {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        let from = (offset as usize).min(self.0.len());
        let have = &self.0[from..(from + buf.len()).min(self.0.len())];
        buf[..have.len()].copy_from_slice(have);
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let group = Uuid::from_u128(1);
    let epoch = Epoch {
        number: 1,
        id: Uuid::from_u128(2),
        site: "a".into(),
        first_lsn: Lsn(1),
        ack: AckMode::Sync,
        alone: false,
        complete: false,
        time_ns: 0,
    };
    let mut log = Log::new(CAPACITY, group);
    let from = log.position(Lsn::ZERO);
    let base = log.append(&first(group, &epoch)).offset;
    let mut disk = Disk(Vec::new());
    let mut log = Log::new(CAPACITY, group);
    for n in 0..4u64 {
        let frame = if n == 0 { first(group, &epoch) } else { write(group, &epoch, n + 1, log.chain()) };
        let write = log.append(&frame);
        let end = write.offset as usize + write.bytes.len();
        disk.0.resize(disk.0.len().max(end), 0);
        disk.0[write.offset as usize..end].copy_from_slice(&write.bytes);
    }
    // Triples of (place, place, value) change single bytes.
    for change in data.chunks_exact(3) {
        let at = base as usize + usize::from(u16::from_le_bytes([change[0], change[1]]));
        if let Some(byte) = disk.0.get_mut(at) {
            *byte = change[2];
        }
    }
    let mut recovery = Recovery::new(CAPACITY, group, from, &Lineage::default());
    let mut next = Lsn(1);
    while let Ok(Some(frame)) = recovery.next(&mut disk) {
        assert_eq!(frame.first_lsn(), next, "recovery skipped something");
        next = frame.last_lsn().next();
    }
    if let Ok(recovered) = recovery.finish(&mut disk) {
        assert_eq!(recovered.tail.next(), next);
    }
});

fn first(group: Uuid, epoch: &Epoch) -> doublure::journal::Frame {
    let op = Op { kind: OpKind::OpenEpoch, volume: VolumeId(0), range: ByteRange::new(0, 0), fua: false };
    let mut builder = FrameBuilder::new(group, epoch.id, Lsn(1), 0);
    builder.push(&op, &encode_epoch(epoch), Encoding::Raw);
    builder.seal(0, Lsn::ZERO, 1)
}

fn write(group: Uuid, epoch: &Epoch, lsn: u64, chain: u32) -> doublure::journal::Frame {
    let op = Op { kind: OpKind::Write, volume: VolumeId(0), range: ByteRange::new(0, 512), fua: false };
    let mut builder = FrameBuilder::new(group, epoch.id, Lsn(lsn), 0);
    builder.push(&op, &[lsn as u8; 512], Encoding::Raw);
    builder.seal(chain, Lsn(lsn - 1), lsn)
}
