//! The undo file: what a site held before a copy began, so that it can go back to it while the copy is not complete.
//!
//! The history ends at the *point*. What the homes lack of it (not committed when the copy began) lies in the file as
//! frames. The homes themselves are either kept as clones beside them, or chunk by chunk in entries: a chunk's old content
//! is durable here before its home is written to. All places and lengths are multiples of 4096; all numbers little endian:
//!
//! ```text
//! offset size  header
//!      0    8  magic "DBLRUND1"
//!      8    2  version (1)
//!     10    2  kind: 0 entries, 1 clones
//!     12    4  incompat bits
//!     16   16  id, by which the record of state names this file
//!     32    8  the point: LSN
//!     40    8  the homes hold everything up to this LSN
//!     48    8  frame time of the point, ns since the Unix epoch
//!     56    4  checksum of the frame that ends at the point
//!     60    4  CRC-32 of the header and the record of state (this field zero)
//!     64    8  length of the frames, bytes
//!     72       zero; at 4096 the record of state as of the point (1 MiB); then the frames, then entries
//!
//! offset size  entry
//!      0    8  magic "DBLRUNDC"
//!      8   16  id of the file
//!     24    8  number of the entry, from 0
//!     32    4  volume
//!     36    4  CRC-32 of the content
//!     40    8  offset in the volume, bytes
//!     48    8  length, bytes; the top bit says that all of it is zero and nothing follows
//!     56    8  entries that were durable when this one was written
//!     64    4  CRC-32 of the entry (this field zero)
//!     68       zero; at 4096 the content
//! ```
//!
//! A hole among the entries is damage if a later entry says that it was durable, else the torn tail of a crash: then no home
//! was written to in these chunks.

use bytes::Bytes;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{StateRecord, is_zero};
use crate::base::{AlignedBuf, BLOCK, ByteRange, CHUNK_BYTES, Lsn, VolumeId, round_up};

const MAGIC: [u8; 8] = *b"DBLRUND1";
const ENTRY_MAGIC: [u8; 8] = *b"DBLRUNDC";
const RECORD_AT: usize = BLOCK;
const RECORD_BYTES: usize = 1 << 20;
const ZERO: u64 = 1 << 63;

/// More bytes of frames than any journal holds.
const MAX_FRAMES: u64 = 1 << 50;

/// Bytes of the header with the record of state.
pub const UNDO_HEAD_BYTES: u64 = (RECORD_AT + RECORD_BYTES) as u64;

/// Bytes of the longest entry.
pub const UNDO_ENTRY_BYTES: u64 = BLOCK as u64 + CHUNK_BYTES;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U16,
    kind: U16,
    incompat: U32,
    id: [u8; 16],
    point: U64,
    homes: U64,
    time: U64,
    chain: U32,
    crc: U32,
    frames_len: U64,
}

const _: () = assert!(size_of::<Header>() == 72);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    magic: [u8; 8],
    id: [u8; 16],
    number: U64,
    volume: U32,
    content_crc: U32,
    offset: U64,
    len: U64,
    durable: U64,
    crc: U32,
}

const _: () = assert!(size_of::<Entry>() == 68);

/// What the undo file says at its beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UndoHead {
    /// By which the record of state names it.
    pub id: Uuid,
    /// The old homes are kept as clones.
    pub clones: bool,
    /// The old history ends here.
    pub point: Lsn,
    /// The kept homes hold everything up to here, and nothing beyond.
    pub homes: Lsn,
    /// When the point was written, nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// Checksum of the frame that ends at the point.
    pub chain: u32,
    /// Bytes of the frames between the two.
    pub frames_len: u64,
    /// The record of state.
    pub record: StateRecord,
}

impl UndoHead {
    /// As it is written at the beginning of the file.
    pub fn encode(&self) -> Bytes {
        let mut out = AlignedBuf::zeroed(UNDO_HEAD_BYTES as usize);
        let record = self.record.encode();
        out[RECORD_AT..RECORD_AT + record.len()].copy_from_slice(&record);
        let mut header = Header {
            magic: MAGIC,
            version: U16::new(1),
            kind: U16::new(u16::from(self.clones)),
            incompat: U32::new(0),
            id: self.id.into_bytes(),
            point: U64::new(self.point.0),
            homes: U64::new(self.homes.0),
            time: U64::new(self.time_ns),
            chain: U32::new(self.chain),
            crc: U32::new(0),
            frames_len: U64::new(self.frames_len),
        };
        out[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        header.crc = U32::new(crc32fast::hash(&out));
        out[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        Bytes::from_owner(out)
    }

    /// What the first [`UNDO_HEAD_BYTES`] of the file say.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<UndoHead, String> {
        if bytes.len() as u64 != UNDO_HEAD_BYTES {
            return Err("it is cut short".into());
        }
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| "it is cut short")?;
        if header.magic != MAGIC {
            return Err("it does not begin like an undo file".into());
        }
        let (version, kind) = (header.version.get(), header.kind.get());
        if version != 1 || header.incompat.get() != 0 || kind > 1 {
            return Err(format!(
                "it has version {version}, kind {kind} and incompat bits {:#x}, which this program does not know",
                header.incompat.get()
            ));
        }
        let blank = Header {
            crc: U32::new(0),
            ..header
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(blank.as_bytes());
        crc.update(&bytes[size_of::<Header>()..]);
        if crc.finalize() != header.crc.get() {
            return Err("its checksum is wrong".into());
        }
        let frames_len = header.frames_len.get();
        if frames_len > MAX_FRAMES || !frames_len.is_multiple_of(BLOCK as u64) {
            return Err(format!("it claims to hold {frames_len} bytes of frames"));
        }
        Ok(UndoHead {
            id: Uuid::from_bytes(header.id),
            clones: kind == 1,
            point: Lsn(header.point.get()),
            homes: Lsn(header.homes.get()),
            time_ns: header.time.get(),
            chain: header.chain.get(),
            frames_len,
            record: StateRecord::decode_alone(&bytes[RECORD_AT..])?,
        })
    }

    /// Where the frames begin in the file, bytes.
    pub fn frames_at() -> u64 {
        UNDO_HEAD_BYTES
    }

    /// Where the entries begin in the file, bytes.
    pub fn entries_at(&self) -> u64 {
        UNDO_HEAD_BYTES + self.frames_len
    }
}

/// Where an entry is among the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UndoPlace {
    /// The file.
    pub id: Uuid,
    /// Its number, from 0.
    pub number: u64,
    /// Entries that are durable.
    pub durable: u64,
}

/// The old content of a range within one chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UndoEntry {
    /// The volume.
    pub volume: VolumeId,
    /// The range.
    pub range: ByteRange,
    /// Its content; `None` if all of it is zero.
    pub content: Option<Bytes>,
}

/// What lies at a place where an entry may begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UndoRead {
    /// An entry, of this length in the file.
    Entry(UndoEntry, u64),
    /// The beginning of an entry whose content is damaged or cut short.
    Broken,
    /// No entry begins here.
    Nothing,
}

impl UndoEntry {
    /// Appends the entry for this content to what is to be written.
    ///
    /// # Panics
    /// If the content is not as long as the range, or longer than a chunk, or there is no room for it.
    pub fn encode(
        place: UndoPlace,
        volume: VolumeId,
        range: ByteRange,
        content: &[u8],
        out: &mut AlignedBuf,
    ) {
        assert!(content.len() as u64 == range.len && range.len <= CHUNK_BYTES);
        let zero = is_zero(content);
        let mut entry = Entry {
            magic: ENTRY_MAGIC,
            id: place.id.into_bytes(),
            number: U64::new(place.number),
            volume: U32::new(volume.0),
            content_crc: U32::new(if zero { 0 } else { crc32fast::hash(content) }),
            offset: U64::new(range.offset),
            len: U64::new(range.len | if zero { ZERO } else { 0 }),
            durable: U64::new(place.durable),
            crc: U32::new(0),
        };
        entry.crc = U32::new(crc32fast::hash(entry.as_bytes()));
        out.extend_from_slice(entry.as_bytes());
        pad(out);
        if !zero {
            out.extend_from_slice(content);
            pad(out);
        }
    }

    /// Looks at the place where entry `number` of the file `id` should begin. `bytes` reach to the end of the longest entry
    /// or to the end of the file.
    pub fn decode(id: Uuid, number: u64, bytes: &Bytes) -> UndoRead {
        let Some(entry) = Entry::of(id, bytes) else {
            return UndoRead::Nothing;
        };
        if entry.number.get() != number {
            return UndoRead::Nothing;
        }
        let Some(range) = entry.range() else {
            return UndoRead::Broken;
        };
        let (len, volume) = (range.len, VolumeId(entry.volume.get()));
        if entry.len.get() & ZERO != 0 {
            let entry = UndoEntry {
                volume,
                range,
                content: None,
            };
            return UndoRead::Entry(entry, BLOCK as u64);
        }
        let padded = round_up(len as usize, BLOCK);
        if bytes.len() < BLOCK + padded {
            return UndoRead::Broken;
        }
        let content = bytes.slice(BLOCK..BLOCK + len as usize);
        if crc32fast::hash(&content) != entry.content_crc.get() {
            return UndoRead::Broken;
        }
        let entry = UndoEntry {
            volume,
            range,
            content: Some(content),
        };
        UndoRead::Entry(entry, (BLOCK + padded) as u64)
    }

    /// What the first block of entry `number` says: volume, range, the length of the entry in the file, and how many entries
    /// were durable when it was written. Whether its content is whole is not looked at.
    pub fn peek(id: Uuid, number: u64, block: &[u8]) -> Option<(VolumeId, ByteRange, u64, u64)> {
        let entry = Entry::of(id, block).filter(|e| e.number.get() == number)?;
        let range = entry.range()?;
        let stored = if entry.len.get() & ZERO == 0 {
            round_up(range.len as usize, BLOCK)
        } else {
            0
        };
        Some((
            VolumeId(entry.volume.get()),
            range,
            (BLOCK + stored) as u64,
            entry.durable.get(),
        ))
    }

    /// Whether an entry of the file `id` begins here that says that entry `number` was durable.
    pub fn vouches_for(id: Uuid, number: u64, block: &[u8]) -> bool {
        Entry::of(id, block).is_some_and(|e| e.durable.get() > number)
    }
}

/// Zeroes up to the end of the block.
fn pad(out: &mut AlignedBuf) {
    let len = out.len();
    out.set_len(round_up(len, BLOCK));
    out[len..].fill(0);
}

impl Entry {
    /// What it covers, if that can be.
    fn range(&self) -> Option<ByteRange> {
        let range = ByteRange::new(self.offset.get(), self.len.get() & !ZERO);
        let fits = range.len <= CHUNK_BYTES && range.offset.checked_add(range.len).is_some();
        fits.then_some(range)
    }

    fn of(id: Uuid, bytes: &[u8]) -> Option<Entry> {
        let (entry, _) = Entry::read_from_prefix(bytes).ok()?;
        let blank = Entry {
            crc: U32::new(0),
            ..entry
        };
        let valid = entry.magic == ENTRY_MAGIC
            && entry.id == id.into_bytes()
            && entry.crc.get() == crc32fast::hash(blank.as_bytes());
        valid.then_some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::state::tests::record;

    const ID: Uuid = Uuid::from_u128(0x11);

    fn head() -> UndoHead {
        UndoHead {
            id: ID,
            clones: true,
            point: Lsn(7),
            homes: Lsn(5),
            time_ns: 9,
            chain: 0xabcd,
            frames_len: 8192,
            record: record(),
        }
    }

    fn entry(number: u64, content: &[u8]) -> Bytes {
        let place = UndoPlace {
            id: ID,
            number,
            durable: number,
        };
        let range = ByteRange::new(CHUNK_BYTES, content.len() as u64);
        let mut out = AlignedBuf::with_capacity(UNDO_ENTRY_BYTES as usize);
        UndoEntry::encode(place, VolumeId(2), range, content, &mut out);
        Bytes::from_owner(out)
    }

    #[test]
    fn what_no_undo_file_can_hold_is_refused_although_its_checksum_is_right() {
        let long = |frames_len| UndoHead {
            frames_len,
            ..head()
        };
        for frames_len in [1, MAX_FRAMES + 4096, u64::MAX] {
            let error = UndoHead::decode(&long(frames_len).encode()).unwrap_err();
            assert!(error.contains(&frames_len.to_string()), "{error}");
        }
        let mut out = AlignedBuf::with_capacity(UNDO_ENTRY_BYTES as usize);
        let place = UndoPlace {
            id: ID,
            number: 0,
            durable: 0,
        };
        let beyond = ByteRange::new(u64::MAX - 511, 512);
        UndoEntry::encode(place, VolumeId(2), beyond, &[1; 512], &mut out);
        assert_eq!(UndoEntry::peek(ID, 0, &out), None);
        assert_eq!(
            UndoEntry::decode(ID, 0, &Bytes::from_owner(out)),
            UndoRead::Broken
        );
    }

    #[test]
    fn the_head_comes_back_as_it_was_and_any_damage_is_seen() {
        let bytes = head().encode();
        assert_eq!(UndoHead::decode(&bytes), Ok(head()));
        for at in [0, 9, 20, 33, 57, 61, 70, 4096, 5000, bytes.len() - 1] {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert!(UndoHead::decode(&bad).is_err(), "byte {at}");
        }
        assert!(UndoHead::decode(&bytes[1..]).is_err());
    }

    #[test]
    fn the_bytes_of_the_head_are_these() {
        let bytes = head().encode();
        assert_eq!(&bytes[..8], b"DBLRUND1");
        assert_eq!(bytes[8..16], [1, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[31], 0x11);
        assert_eq!(bytes[32], 7);
        assert_eq!(bytes[40], 5);
        assert_eq!(bytes[48], 9);
        assert_eq!(bytes[56..58], [0xcd, 0xab]);
        assert_eq!(bytes[64..72], [0, 32, 0, 0, 0, 0, 0, 0]);
        assert!(is_zero(&bytes[72..4096]));
    }

    #[test]
    fn an_entry_comes_back_as_it_was_and_any_damage_is_seen() {
        for content in [vec![7; 262_144], vec![7; 5000], vec![0; 262_144]] {
            let bytes = entry(4, &content);
            let UndoRead::Entry(found, len) = UndoEntry::decode(ID, 4, &bytes) else {
                panic!("not an entry")
            };
            assert_eq!(len, bytes.len() as u64);
            let expected = (!is_zero(&content)).then(|| Bytes::from(content.clone()));
            assert_eq!(found.content, expected);
            assert_eq!(
                found.range,
                ByteRange::new(CHUNK_BYTES, content.len() as u64)
            );
            let peeked = UndoEntry::peek(ID, 4, &bytes[..BLOCK]);
            assert_eq!(peeked, Some((VolumeId(2), found.range, len, 4)));
            assert!(UndoEntry::vouches_for(ID, 3, &bytes));
            assert!(!UndoEntry::vouches_for(ID, 4, &bytes));
            assert_eq!(UndoEntry::decode(ID, 5, &bytes), UndoRead::Nothing);
            let other = Uuid::from_u128(0x12);
            assert_eq!(UndoEntry::decode(other, 4, &bytes), UndoRead::Nothing);
            for at in [0, 10, 25, 33, 37, 41, 50, 57, 65] {
                let mut bad = bytes.to_vec();
                bad[at] ^= 1;
                assert_eq!(UndoEntry::decode(ID, 4, &bad.into()), UndoRead::Nothing);
            }
            if expected.is_some() {
                let mut bad = bytes.to_vec();
                bad[BLOCK + 100] ^= 1;
                assert_eq!(UndoEntry::decode(ID, 4, &bad.into()), UndoRead::Broken);
                let short = bytes.slice(..BLOCK + 4096 - 1);
                assert_eq!(UndoEntry::decode(ID, 4, &short), UndoRead::Broken);
            }
        }
    }
}
