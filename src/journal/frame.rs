//! The frame: a batch of operations with consecutive LSNs, exactly as it lies in the journal and travels on the link.
//!
//! A frame is a multiple of 4096 bytes, all numbers little endian:
//!
//! ```text
//! offset size  header
//!      0    8  magic "DBLRFRM1"
//!      8    2  version (1)
//!     10    2  reserved, zero
//!     12    4  compat bits: may be ignored
//!     16    4  ro-compat bits: an unknown one forbids writing on
//!     20    4  incompat bits: an unknown one forbids reading
//!     24   16  group id
//!     40   16  epoch id
//!     56    8  first LSN
//!     64    8  commit LSN known when the frame was closed
//!     72    8  time, nanoseconds since the Unix epoch; rises along the history
//!     80    4  operations
//!     84    4  length of the descriptors, bytes
//!     88    4  length of the stored payloads, bytes
//!     92    4  length of the frame, bytes, a multiple of 4096
//!     96    4  checksum of the predecessor (0 for the first frame)
//!    100    4  checksum: CRC-32 of header (this field zero) and descriptors
//!    104   24  reserved, zero
//!    128       descriptors, then payloads at the offsets they name, zeroes in between
//!
//! offset size  descriptor
//!      0    2  its length, bytes (48; longer ones are skipped by their length)
//!      2    1  kind: 1 write, 2 write zeroes, 3 trim, 16 open epoch, 17 create volume, 18 resize volume
//!      3    1  encoding of the payload: 0 raw, 1 LZ4 block
//!      4    4  flags: 1 FUA, 2 keep allocated
//!      8    4  volume
//!     12    4  stored length of the payload, bytes
//!     16    8  offset in the volume, bytes
//!     24    8  length in the volume, bytes
//!     32    4  CRC-32 of the payload as stored
//!     36    4  offset of the payload in the frame, bytes; 0 if there is none
//!     40    8  reserved, zero
//! ```
//!
//! The payloads' CRCs stand in the descriptors, so that the frame's checksum vouches for all of it. The checksum names
//! the predecessor's: frames form a chain that an old frame in a recycled place cannot join.

use bytes::Bytes;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::{
    AlignedBuf, BLOCK, ByteRange, Lsn, MAX_DATALESS_OP, MAX_WRITE_OP, Op, OpKind, VolumeId,
    round_up,
};

const MAGIC: [u8; 8] = *b"DBLRFRM1";
const VERSION: u16 = 1;
const HEADER: usize = size_of::<FrameHeader>();
const DESCRIPTOR: usize = size_of::<Descriptor>();

/// Longest frame, bytes.
pub const MAX_FRAME: usize = 4 << 20;

/// Most operations in one frame.
pub const MAX_OPS: usize = 4096;

const FLAG_FUA: u32 = 1;
const FLAG_KEEP: u32 = 2;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
struct FrameHeader {
    magic: [u8; 8],
    version: U16,
    reserved0: U16,
    compat: U32,
    ro_compat: U32,
    incompat: U32,
    group: [u8; 16],
    epoch: [u8; 16],
    first_lsn: U64,
    commit_lsn: U64,
    time_ns: U64,
    count: U32,
    descriptors_len: U32,
    payload_len: U32,
    frame_len: U32,
    prev: U32,
    checksum: U32,
    reserved1: [u8; 24],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
struct Descriptor {
    len: U16,
    kind: u8,
    encoding: u8,
    flags: U32,
    volume: U32,
    stored_len: U32,
    offset: U64,
    range_len: U64,
    crc: U32,
    payload_at: U32,
    reserved: U64,
}

const _: () = assert!(HEADER == 128);
const _: () = assert!(DESCRIPTOR == 48);
const _: () = assert!(HEADER + DESCRIPTOR <= BLOCK);
const _: () = assert!(HEADER + MAX_OPS * DESCRIPTOR + MAX_WRITE_OP as usize <= MAX_FRAME);

/// What is wrong with bytes that should be a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame at all.
    #[error("no frame here")]
    NotAFrame,
    /// Made by a program that knows more than this one.
    #[error(
        "frame version {version}, incompat bits {incompat:#x}, ro-compat bits {ro_compat:#x}; this program knows version 1 and no bits: upgrade it"
    )]
    Unknown {
        /// Its version.
        version: u16,
        /// Its incompat bits.
        incompat: u32,
        /// Its ro-compat bits.
        ro_compat: u32,
    },
    /// Torn or damaged.
    #[error("damaged frame: {0}")]
    Damaged(&'static str),
}

use FrameError::Damaged;

/// How a payload is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// As it is.
    Raw,
    /// An LZ4 block; its length when decompressed is the operation's.
    Lz4,
}

/// The payload of an operation, as stored.
#[derive(Clone, Debug)]
pub struct Payload {
    stored: Bytes,
    encoding: Encoding,
    len: usize,
    crc: u32,
}

impl Payload {
    /// The bytes as stored, if that is also what they mean; empty otherwise.
    pub fn raw(&self) -> Bytes {
        match self.encoding {
            Encoding::Raw => self.stored.clone(),
            Encoding::Lz4 => Bytes::new(),
        }
    }

    /// The bytes as the client sent them.
    ///
    /// # Errors
    /// If a compressed payload does not decompress to its length.
    pub fn content(&self) -> Result<Bytes, FrameError> {
        match self.encoding {
            Encoding::Raw => Ok(self.stored.clone()),
            Encoding::Lz4 => {
                let mut out = vec![0; self.len];
                match lz4_flex::block::decompress_into(&self.stored, &mut out) {
                    Ok(n) if n == self.len => Ok(Bytes::from(out)),
                    _ => Err(Damaged("a compressed payload does not decompress")),
                }
            }
        }
    }

    fn verify(&self) -> Result<(), FrameError> {
        if crc32fast::hash(&self.stored) == self.crc {
            Ok(())
        } else {
            Err(Damaged("a payload's checksum is wrong"))
        }
    }
}

/// A closed frame. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Frame {
    bytes: Bytes,
    header: FrameHeader,
}

impl PartialEq for Frame {
    fn eq(&self, other: &Frame) -> bool {
        self.bytes == other.bytes
    }
}

impl Frame {
    /// Length of the frame whose first bytes these are (at least 128).
    ///
    /// # Errors
    /// If no valid frame begins so. The descriptors are not looked at.
    pub fn peek_len(start: &[u8]) -> Result<usize, FrameError> {
        header_of(start).map(|h| h.frame_len.get() as usize)
    }

    /// Takes exactly one frame and checks all but the payloads' CRCs: see [`Frame::verify_payloads`].
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(bytes: Bytes) -> Result<Frame, FrameError> {
        let header = header_of(&bytes)?;
        if bytes.len() != header.frame_len.get() as usize {
            return Err(Damaged("the frame is cut short"));
        }
        let descriptors_end = HEADER + header.descriptors_len.get() as usize;
        if checksum(&header, &bytes[HEADER..descriptors_end]) != header.checksum.get() {
            return Err(Damaged("the checksum is wrong"));
        }
        let frame = Frame { bytes, header };
        frame.check_descriptors(descriptors_end)?;
        Ok(frame)
    }

    fn check_descriptors(&self, end: usize) -> Result<(), FrameError> {
        let mut at = HEADER;
        for n in 0..self.count() {
            let rest = &self.bytes[at..end];
            let (d, _) = Descriptor::ref_from_prefix(rest)
                .map_err(|_| Damaged("descriptors are cut short"))?;
            let len = d.len.get() as usize;
            if len < DESCRIPTOR || !len.is_multiple_of(8) || len > rest.len() {
                return Err(Damaged("a descriptor's length is wrong"));
            }
            let op = op_of(d)?;
            let from = d.payload_at.get() as usize;
            let stored = d.stored_len.get() as usize;
            let inside = from >= end
                && from
                    .checked_add(stored)
                    .is_some_and(|to| to <= self.bytes.len());
            // What is not there lies nowhere.
            if !(inside || stored == 0 && from == 0) {
                return Err(Damaged("a payload lies outside the frame"));
            }
            let fits = match (op.kind, d.encoding) {
                (OpKind::Write, 0) => stored as u64 == op.range.len,
                (OpKind::Write, 1) => stored > 0 && (stored as u64) < op.range.len,
                (OpKind::OpenEpoch | OpKind::CreateVolume | OpKind::ResizeVolume, 0) => stored > 0,
                (OpKind::WriteZeroes { .. } | OpKind::Trim, 0) => stored == 0,
                _ => false,
            };
            if !fits {
                return Err(Damaged("a payload's length does not match its operation"));
            }
            if op.kind == OpKind::OpenEpoch && n > 0 {
                return Err(Damaged("an epoch opens in the middle of a frame"));
            }
            at += len;
        }
        if at != end {
            return Err(Damaged("bytes are left behind the descriptors"));
        }
        Ok(())
    }

    /// Checks the CRC of every payload.
    ///
    /// # Errors
    /// If one is wrong.
    pub fn verify_payloads(&self) -> Result<(), FrameError> {
        self.ops().try_for_each(|(_, _, payload)| payload.verify())
    }

    /// The operations, with their LSNs and payloads.
    pub fn ops(&self) -> impl Iterator<Item = (Lsn, Op, Payload)> {
        let lsns = (0..).map(|n| self.first_lsn().plus(n));
        lsns.zip(self.descriptors()).map(|(lsn, d)| {
            let op = op_of(d).expect("checked when parsed");
            let from = d.payload_at.get() as usize;
            let stored = self.bytes.slice(from..from + d.stored_len.get() as usize);
            let encoding = if d.encoding == 1 {
                Encoding::Lz4
            } else {
                Encoding::Raw
            };
            let payload = Payload {
                stored,
                encoding,
                len: op.range.len as usize,
                crc: d.crc.get(),
            };
            (lsn, op, payload)
        })
    }

    fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        let mut at = HEADER;
        (0..self.header.count.get()).map(move |_| {
            let (d, _) =
                Descriptor::ref_from_prefix(&self.bytes[at..]).expect("checked when parsed");
            at += d.len.get() as usize;
            d
        })
    }

    /// Bytes of its payloads as they were before they were compressed.
    pub fn content_len(&self) -> u64 {
        let lens = self.descriptors().map(|d| match d.encoding {
            1 => d.range_len.get(),
            _ => u64::from(d.stored_len.get()),
        });
        lens.sum()
    }

    /// The frame, as it is stored and sent.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// LSN of the first operation.
    pub fn first_lsn(&self) -> Lsn {
        Lsn(self.header.first_lsn.get())
    }

    /// LSN of the last operation.
    pub fn last_lsn(&self) -> Lsn {
        Lsn(self.header.first_lsn.get() + u64::from(self.header.count.get()) - 1)
    }

    /// Number of operations; at least 1.
    pub fn count(&self) -> u32 {
        self.header.count.get()
    }

    /// Commit LSN known when the frame was closed.
    pub fn commit_lsn(&self) -> Lsn {
        Lsn(self.header.commit_lsn.get())
    }

    /// Time of the frame, nanoseconds since the Unix epoch.
    pub fn time_ns(&self) -> u64 {
        self.header.time_ns.get()
    }

    /// Its group.
    pub fn group_id(&self) -> Uuid {
        Uuid::from_bytes(self.header.group)
    }

    /// Its epoch.
    pub fn epoch_id(&self) -> Uuid {
        Uuid::from_bytes(self.header.epoch)
    }

    /// Checksum of its predecessor.
    pub fn prev(&self) -> u32 {
        self.header.prev.get()
    }

    /// Its checksum.
    pub fn checksum(&self) -> u32 {
        self.header.checksum.get()
    }

    /// Whether it opens an epoch: such a frame may use the space that is held back for it.
    pub fn opens_epoch(&self) -> bool {
        self.ops()
            .next()
            .is_some_and(|(_, op, _)| op.kind == OpKind::OpenEpoch)
    }
}

fn header_of(start: &[u8]) -> Result<FrameHeader, FrameError> {
    let (header, _) = FrameHeader::read_from_prefix(start).map_err(|_| FrameError::NotAFrame)?;
    if header.magic != MAGIC {
        return Err(FrameError::NotAFrame);
    }
    let (version, incompat, ro_compat) = (
        header.version.get(),
        header.incompat.get(),
        header.ro_compat.get(),
    );
    if version != VERSION || incompat != 0 || ro_compat != 0 {
        // Unknown bits count only where they were written: a bit that flipped is damage, which a peer can mend.
        let descriptors = start[HEADER..].get(..header.descriptors_len.get() as usize);
        if version == VERSION
            && descriptors.is_some_and(|d| checksum(&header, d) != header.checksum.get())
        {
            return Err(Damaged("the checksum is wrong"));
        }
        return Err(FrameError::Unknown {
            version,
            incompat,
            ro_compat,
        });
    }
    let len = header.frame_len.get() as usize;
    let count = header.count.get() as usize;
    let descriptors = header.descriptors_len.get() as usize;
    if !(BLOCK..=MAX_FRAME).contains(&len) || !len.is_multiple_of(BLOCK) {
        return Err(Damaged("the length is wrong"));
    }
    if count == 0
        || count > MAX_OPS
        || descriptors < count * DESCRIPTOR
        || descriptors > len - HEADER
    {
        return Err(Damaged("the number of operations is wrong"));
    }
    let first = header.first_lsn.get();
    if first == 0
        || first.checked_add(count as u64).is_none()
        || header.commit_lsn.get() >= first + count as u64
    {
        return Err(Damaged("the LSNs are wrong"));
    }
    if header.reserved0.get() != 0 || header.reserved1 != [0; 24] {
        return Err(Damaged("reserved bytes are not zero"));
    }
    Ok(header)
}

fn checksum(header: &FrameHeader, descriptors: &[u8]) -> u32 {
    let mut plain = *header;
    plain.checksum = U32::ZERO;
    let mut crc = crc32fast::Hasher::new();
    crc.update(plain.as_bytes());
    crc.update(descriptors);
    crc.finalize()
}

fn op_of(d: &Descriptor) -> Result<Op, FrameError> {
    let flags = d.flags.get();
    if flags & !(FLAG_FUA | FLAG_KEEP) != 0 || d.reserved.get() != 0 {
        return Err(Damaged("a descriptor uses what is reserved"));
    }
    let kind = match d.kind {
        1 => OpKind::Write,
        2 => OpKind::WriteZeroes {
            no_hole: flags & FLAG_KEEP != 0,
        },
        3 => OpKind::Trim,
        16 => OpKind::OpenEpoch,
        17 => OpKind::CreateVolume,
        18 => OpKind::ResizeVolume,
        _ => return Err(Damaged("an operation of unknown kind")),
    };
    let range = ByteRange::new(d.offset.get(), d.range_len.get());
    let most = match kind {
        OpKind::Write => MAX_WRITE_OP,
        OpKind::WriteZeroes { .. } | OpKind::Trim => MAX_DATALESS_OP,
        OpKind::OpenEpoch | OpKind::CreateVolume | OpKind::ResizeVolume => 0,
    };
    if range.len > most
        || (most > 0 && range.len == 0)
        || range.offset.checked_add(range.len).is_none()
    {
        return Err(Damaged("an operation's range is wrong"));
    }
    Ok(Op {
        kind,
        volume: VolumeId(d.volume.get()),
        range,
        fua: flags & FLAG_FUA != 0,
    })
}

/// A frame being filled.
///
/// Payloads are copied once, to where they will lie: behind the first block, which holds header and descriptors. Only
/// a frame that would fit one block, and one with very many operations, is moved when it closes.
#[derive(Debug)]
pub struct FrameBuilder {
    group: Uuid,
    epoch: Uuid,
    first: Lsn,
    descriptors: Vec<Descriptor>,
    buf: AlignedBuf,
    payload_len: usize,
}

impl FrameBuilder {
    /// An empty frame. `expected` is a guess at its payload, bytes.
    pub fn new(group: Uuid, epoch: Uuid, first: Lsn, expected: usize) -> FrameBuilder {
        let mut buf = AlignedBuf::with_capacity(BLOCK + expected.clamp(BLOCK, 1 << 20));
        buf.set_len(BLOCK);
        FrameBuilder {
            group,
            epoch,
            first,
            descriptors: Vec::with_capacity(32),
            buf,
            payload_len: 0,
        }
    }

    /// Adds an operation, whose payload is stored in this encoding.
    ///
    /// # Panics
    /// If it does not fit: see [`FrameBuilder::fits`].
    pub fn push(&mut self, op: &Op, payload: &[u8], encoding: Encoding) {
        assert!(
            self.fits(payload.len()),
            "an operation that does not fit its frame"
        );
        let at = self.buf.len();
        self.make_room(payload.len());
        self.buf.extend_from_slice(payload);
        self.payload_len += payload.len();
        let (kind, keep) = match op.kind {
            OpKind::Write => (1, false),
            OpKind::WriteZeroes { no_hole } => (2, no_hole),
            OpKind::Trim => (3, false),
            OpKind::OpenEpoch => (16, false),
            OpKind::CreateVolume => (17, false),
            OpKind::ResizeVolume => (18, false),
        };
        let flags = if op.fua { FLAG_FUA } else { 0 } | if keep { FLAG_KEEP } else { 0 };
        self.descriptors.push(Descriptor {
            len: U16::new(DESCRIPTOR as u16),
            kind,
            encoding: u8::from(encoding == Encoding::Lz4),
            flags: U32::new(flags),
            volume: U32::new(op.volume.0),
            stored_len: U32::new(payload.len() as u32),
            offset: U64::new(op.range.offset),
            range_len: U64::new(op.range.len),
            crc: U32::new(crc32fast::hash(payload)),
            payload_at: U32::new(if payload.is_empty() { 0 } else { at as u32 }),
            reserved: U64::ZERO,
        });
    }

    fn make_room(&mut self, len: usize) {
        let need = self.buf.len() + len;
        if need > self.buf.capacity() {
            let mut bigger = AlignedBuf::with_capacity(need.max(self.buf.capacity() * 2));
            bigger.extend_from_slice(&self.buf);
            self.buf = bigger;
        }
    }

    /// Whether one more operation with a payload of this length fits.
    pub fn fits(&self, payload: usize) -> bool {
        let descriptors = HEADER + (self.descriptors.len() + 1) * DESCRIPTOR;
        self.descriptors.len() < MAX_OPS
            && round_up(descriptors, BLOCK) + self.payload_len + payload <= MAX_FRAME - BLOCK
    }

    /// Bytes of payload so far.
    pub fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// Operations so far.
    pub fn op_count(&self) -> usize {
        self.descriptors.len()
    }

    /// Length the frame would have if it were closed now, bytes; never too small.
    pub fn frame_len(&self) -> usize {
        round_up(
            round_up(HEADER + self.descriptors.len() * DESCRIPTOR, BLOCK) + self.payload_len,
            BLOCK,
        )
    }

    /// Closes the frame.
    ///
    /// # Panics
    /// If it is empty.
    pub fn seal(mut self, prev: u32, commit: Lsn, time_ns: u64) -> Frame {
        assert!(!self.descriptors.is_empty(), "a frame without operations");
        let descriptors_end = HEADER + self.descriptors.len() * DESCRIPTOR;
        let small = round_up(descriptors_end, 64);
        if small + self.payload_len <= BLOCK {
            self.move_payloads(small);
        } else if descriptors_end > BLOCK {
            self.move_payloads(round_up(descriptors_end, BLOCK));
        } else {
            self.buf[descriptors_end..BLOCK].fill(0);
        }
        let len = round_up(self.buf.len(), BLOCK);
        let used = self.buf.len();
        self.make_room(len - used);
        self.buf.set_len(len);
        self.buf[used..].fill(0);
        let mut header = FrameHeader::new_zeroed();
        header.magic = MAGIC;
        header.version = U16::new(VERSION);
        header.group = self.group.into_bytes();
        header.epoch = self.epoch.into_bytes();
        header.first_lsn = U64::new(self.first.0);
        header.commit_lsn = U64::new(commit.0);
        header.time_ns = U64::new(time_ns);
        header.count = U32::new(self.descriptors.len() as u32);
        header.descriptors_len = U32::new((self.descriptors.len() * DESCRIPTOR) as u32);
        header.payload_len = U32::new(self.payload_len as u32);
        header.frame_len = U32::new(len as u32);
        header.prev = U32::new(prev);
        let descriptors = self.descriptors.as_slice().as_bytes();
        header.checksum = U32::new(checksum(&header, descriptors));
        self.buf[..HEADER].copy_from_slice(header.as_bytes());
        self.buf[HEADER..descriptors_end].copy_from_slice(descriptors);
        Frame {
            bytes: Bytes::from_owner(self.buf),
            header,
        }
    }

    /// Lets the payloads begin at another place.
    fn move_payloads(&mut self, to: usize) {
        let end = BLOCK + self.payload_len;
        if to > BLOCK {
            self.make_room(to - BLOCK);
            let len = self.buf.len() + (to - BLOCK);
            self.buf.set_len(len);
        }
        self.buf.copy_within(BLOCK..end, to);
        self.buf.set_len(to + self.payload_len);
        for d in self
            .descriptors
            .iter_mut()
            .filter(|d| d.stored_len.get() > 0)
        {
            d.payload_at = U32::new((d.payload_at.get() as usize - BLOCK + to) as u32);
        }
        // What moved away leaves zeroes: the header's block is written in full.
        let descriptors_end = HEADER + self.descriptors.len() * DESCRIPTOR;
        self.buf[descriptors_end..to].fill(0);
    }
}

/// Whether all bytes are zero.
pub fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<64>();
    words.iter().all(|w| *w == [0; 64]) && rest.iter().all(|b| *b == 0)
}

/// Decides what is worth compressing, and compresses it.
#[derive(Debug, Default)]
pub struct Compressor {
    /// `auto`: payloads to let pass before trying again, and how long the next pause is.
    skip: u32,
    pause: u32,
}

impl Compressor {
    /// The payload compressed, if the mode asks for it and it gets smaller by an eighth at least.
    pub fn compress(&mut self, mode: crate::base::Compress, payload: &[u8]) -> Option<Vec<u8>> {
        use crate::base::Compress;
        const LONGEST_PAUSE: u32 = 256;
        if mode == Compress::Off || payload.len() < 512 {
            return None;
        }
        if mode == Compress::Auto && self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let small = lz4_flex::block::compress(payload);
        if small.len() <= payload.len() - payload.len() / 8 {
            (self.skip, self.pause) = (0, 0);
            return Some(small);
        }
        self.pause = (self.pause * 2).clamp(4, LONGEST_PAUSE);
        self.skip = self.pause;
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::Compress;

    fn op(kind: OpKind, offset: u64, len: u64) -> Op {
        Op {
            kind,
            volume: VolumeId(3),
            range: ByteRange::new(offset, len),
            fua: false,
        }
    }

    fn builder() -> FrameBuilder {
        FrameBuilder::new(Uuid::from_u128(1), Uuid::from_u128(2), Lsn(10), 0)
    }

    #[test]
    fn a_frame_says_what_was_put_in() {
        let mut b = builder();
        b.push(&op(OpKind::Write, 4096, 5), b"hello", Encoding::Raw);
        b.push(&op(OpKind::Trim, 0, 4096), b"", Encoding::Raw);
        let packed = lz4_flex::block::compress(&[7; 8192]);
        b.push(&op(OpKind::Write, 8192, 8192), &packed, Encoding::Lz4);
        let frame = b.seal(77, Lsn(9), 5);
        let parsed = Frame::parse(frame.bytes().clone()).unwrap();
        parsed.verify_payloads().unwrap();
        assert_eq!(
            (parsed.first_lsn(), parsed.last_lsn(), parsed.prev()),
            (Lsn(10), Lsn(12), 77)
        );
        let ops: Vec<_> = parsed
            .ops()
            .map(|(l, o, p)| (l, o.kind, p.content().unwrap()))
            .collect();
        assert_eq!(
            ops[0],
            (Lsn(10), OpKind::Write, Bytes::from_static(b"hello"))
        );
        assert_eq!(ops[1], (Lsn(11), OpKind::Trim, Bytes::new()));
        assert_eq!(ops[2], (Lsn(12), OpKind::Write, Bytes::from(vec![7; 8192])));
        assert_eq!(parsed.len(), BLOCK, "a small frame takes one block");
        assert_eq!(parsed.content_len(), 5 + 8192);
    }

    #[test]
    fn payloads_of_whole_blocks_lie_on_block_borders() {
        let mut b = builder();
        b.push(&op(OpKind::Write, 0, 4096), &[1; 4096], Encoding::Raw);
        b.push(&op(OpKind::Write, 4096, 4096), &[2; 4096], Encoding::Raw);
        let frame = b.seal(0, Lsn(0), 1);
        assert_eq!(frame.len(), 3 * BLOCK);
        assert_eq!(frame.bytes()[BLOCK], 1);
        assert_eq!(frame.bytes()[2 * BLOCK], 2);
        assert_eq!(frame.bytes().as_ptr() as usize % BLOCK, 0);
    }

    #[test]
    fn nothing_of_an_earlier_frame_is_left_in_a_buffer_that_is_used_again() {
        for (operations, len) in [(1, 0), (1, 3), (1, 4096), (3, 4096), (100, 512)] {
            let make = || {
                let mut b = builder();
                for n in 0..operations {
                    let payload = vec![n as u8; len];
                    b.push(
                        &op(OpKind::Write, n * 4096, len as u64),
                        &payload,
                        Encoding::Raw,
                    );
                }
                b.seal(7, Lsn(9), 5).bytes().clone()
            };
            let fresh = make();
            for capacity in 1..16 {
                let mut dirty = AlignedBuf::with_capacity(capacity * BLOCK);
                dirty.set_len(capacity * BLOCK);
                dirty.fill(0xee);
            }
            assert!(fresh == make(), "{operations} operations of {len} bytes");
        }
    }

    #[test]
    fn very_many_operations_still_make_a_valid_frame() {
        let mut b = builder();
        for n in 0..500u64 {
            b.push(
                &op(OpKind::Write, n * 512, 512),
                &[n as u8; 512],
                Encoding::Raw,
            );
        }
        let guess = b.frame_len();
        let frame = b.seal(0, Lsn(0), 1);
        assert!(frame.len() <= guess);
        let parsed = Frame::parse(frame.bytes().clone()).unwrap();
        parsed.verify_payloads().unwrap();
        assert!(
            parsed
                .ops()
                .enumerate()
                .all(|(n, (.., p))| p.raw()[..] == [n as u8; 512])
        );
    }

    #[test]
    fn the_bytes_of_a_frame_are_these() {
        let mut b = builder();
        b.push(
            &Op {
                fua: true,
                ..op(OpKind::Write, 0x1122, 3)
            },
            b"abc",
            Encoding::Raw,
        );
        let frame = b.seal(0x0a0b_0c0d, Lsn(9), 0x0102_0304_0506_0708);
        let bytes = frame.bytes();
        assert_eq!(&bytes[..8], b"DBLRFRM1");
        assert_eq!(
            &bytes[8..24],
            [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&bytes[24..40], Uuid::from_u128(1).as_bytes());
        assert_eq!(&bytes[40..56], Uuid::from_u128(2).as_bytes());
        assert_eq!(
            &bytes[56..80],
            [
                10, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1
            ]
        );
        assert_eq!(
            &bytes[80..96],
            [1, 0, 0, 0, 48, 0, 0, 0, 3, 0, 0, 0, 0, 16, 0, 0]
        );
        assert_eq!(&bytes[96..100], [0x0d, 0x0c, 0x0b, 0x0a]);
        assert_eq!(&bytes[104..128], [0; 24]);
        assert_eq!(
            &bytes[128..144],
            [48, 0, 1, 0, 1, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0]
        );
        assert_eq!(
            &bytes[144..160],
            [0x22, 0x11, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&bytes[160..164], crc32fast::hash(b"abc").to_le_bytes());
        assert_eq!(&bytes[164..176], [192, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[192..195], b"abc");
        assert!(is_zero(&bytes[195..]));
        let mut covered = bytes[..176].to_vec();
        covered[100..104].fill(0);
        assert_eq!(bytes[100..104], crc32fast::hash(&covered).to_le_bytes());
    }

    #[test]
    fn unknown_incompat_bits_are_refused_by_name_and_unknown_compat_bits_ignored() {
        let mut b = builder();
        b.push(&op(OpKind::Write, 0, 3), b"abc", Encoding::Raw);
        let bytes = b.seal(0, Lsn(9), 1).bytes().to_vec();
        let with = |at: usize| {
            let mut changed = bytes.clone();
            changed[at] = 1;
            changed[100..104].fill(0);
            let crc = crc32fast::hash(&changed[..176]);
            changed[100..104].copy_from_slice(&crc.to_le_bytes());
            Frame::parse(Bytes::from(changed))
        };
        assert!(with(12).is_ok());
        assert!(matches!(
            with(16),
            Err(FrameError::Unknown { ro_compat: 1, .. })
        ));
        assert!(matches!(
            with(20),
            Err(FrameError::Unknown { incompat: 1, .. })
        ));
        let mut rotten = bytes.clone();
        rotten[20] ^= 1;
        assert!(matches!(
            Frame::parse(Bytes::from(rotten)),
            Err(FrameError::Damaged(_))
        ));
    }

    #[test]
    fn a_payload_outside_the_frame_is_refused_also_one_of_no_bytes() {
        for (kind, payload) in [(OpKind::Write, &b"abc"[..]), (OpKind::Trim, b"")] {
            let mut b = builder();
            b.push(&op(kind, 0, 3), payload, Encoding::Raw);
            let mut bytes = b.seal(0, Lsn(9), 1).bytes().to_vec();
            bytes[128 + 36..128 + 40].copy_from_slice(&4_194_304_000_u32.to_le_bytes());
            bytes[100..104].fill(0);
            let crc = crc32fast::hash(&bytes[..176]);
            bytes[100..104].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(
                Frame::parse(Bytes::from(bytes)).unwrap_err(),
                Damaged("a payload lies outside the frame")
            );
        }
    }

    #[test]
    fn auto_stops_trying_on_what_does_not_shrink_and_tries_again() {
        let mut compressor = Compressor::default();
        let mut seed = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .take(4096)
        .collect();
        assert!(compressor.compress(Compress::Auto, &noise).is_none());
        assert!(
            compressor.compress(Compress::Auto, &[1; 4096]).is_none(),
            "pausing"
        );
        let tries = (0..10)
            .filter(|_| compressor.compress(Compress::Auto, &[1; 4096]).is_some())
            .count();
        assert!(tries > 3);
        assert!(compressor.compress(Compress::Lz4, &[1; 4096]).is_some());
        assert!(compressor.compress(Compress::Off, &[1; 4096]).is_none());
    }

    proptest! {
        #[test]
        fn changed_bytes_are_never_taken_for_a_frame(at in 0usize..4272, bit in 0u8..8) {
            let mut b = builder();
            b.push(&op(OpKind::Write, 0, 4096), &[5; 4096], Encoding::Raw);
            let mut bytes = b.seal(1, Lsn(3), 1).bytes().to_vec();
            // Behind the descriptor comes padding, then the payload from 4096 on.
            let at = if at < 176 { at } else { at - 176 + 4096 };
            bytes[at] ^= 1 << bit;
            let result = Frame::parse(Bytes::from(bytes)).and_then(|f| f.verify_payloads());
            prop_assert!(result.is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..8192), fix in any::<bool>()) {
            if fix && bytes.len() >= 24 {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..24].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            }
            let _ = Frame::peek_len(&bytes);
            let _ = Frame::parse(Bytes::from(bytes)).map(|f| f.verify_payloads());
        }
    }
}
