//! The record of state: the same in both slots of a file of their own, written to one after the other, each with one
//! durable write.
//!
//! Slot 0 begins at byte 0, slot 1 at 1 MiB. The valid one with the higher sequence number counts. A record is saved once
//! it is durable in both: then a slot that rots or a write that is torn never brings an older one back, with promises
//! forgotten. All numbers little endian; length and checksum stay where they are in every version:
//!
//! ```text
//! offset size  header
//!      0    8  magic "DBLRSTA1"
//!      8    2  version (1)
//!     10    1  role: 0 primary, 1 mirror
//!     11    1  ack mode: 0 sync, 1 memsync, 2 async
//!     12    4  incompat bits
//!     16    8  sequence number of the record
//!     24    4  length of the record, bytes
//!     28    4  CRC-32 of the record (this field zero)
//!     32   16  group id
//!     48    4  flags: 1 ever in sync, 4 handed, 8 inconsistent, 16 clean shutdown, 32 mixture,
//!              64 what is written is known
//!     52    2  length of the site's name
//!     54    2  length of the group's name
//!     56   64  site's name
//!    120   64  group's name
//!    184    8  floor LSN
//!    192    8  commit LSN
//!    200    8  inconsistent until LSN
//!    208    8  journal size, bytes
//!    216    8  checkpoint: LSN
//!    224    8  checkpoint: LSN of the frame at its place
//!    232    8  checkpoint: segment
//!    240    4  checkpoint: offset in the segment, bytes
//!    244    4  checkpoint: checksum of the frame before
//!    248   18  reserved, zero
//!    266    2  length of the name of the site handed to
//!    268    4  number of epochs
//!    272    4  number of volumes
//!    276    4  number of peers
//!    280   16  the mixture that is in the homes: names the fork that it is
//!    296    8  mixture: the LSN at which this site was promoted
//!    304    8  mixture: since when, ns since the Unix epoch
//!    312   32  reserved, zero
//!    344   64  name of the site handed to
//!    408   16  handed: epoch
//!    424    8  handed: LSN
//!    432   16  last epoch of a fork that was given up
//!    448    8  length of what is known of verifications, bytes
//!    456   16  id of the undo file that counts, or zero
//!    472    8  frames before this LSN do not tell what the homes hold
//!    480    4  number of forks
//!    484    4  reserved, zero
//!    488    8  when the fork was given up, ns since the Unix epoch
//!    496    8  no operation after this LSN does anything but open an epoch
//!    504    8  frame clock: time of the newest closed frame, ns since the Unix epoch
//!    512       epochs (144 bytes each), volumes (104 each), peers (112 each: name length 2, flags 2 (1: it has a set of
//!              chunks, 2: acknowledging without it), length of the set 4, told durable LSN 8, the set holds what changed
//!              after this LSN 8 and up to this one 8, without it since 8 (ns since the Unix epoch) and from this LSN
//!              on 8, name 64), the peers' sets in the same order, what is known of verifications (as `base::Verified`
//!              says), forks that are not resolved (280 each: name length 2, flags 2 (1: the peer served, 2: it was primary
//!              by its record, 4: it has an epoch, 8: its content is a
//!              mixture, 16: the content here is, 32: an operator goes past it), reserved 4, shared LSN 8, the peer's last LSN 8, commit LSN 8, epochs
//!              opened since 8, oldest LSN of its journal 8, reserved 8, what names its side 16, name 64, its last epoch 144), then zeroes to a
//!              multiple of 4096
//! ```
//!
//! Incompat bits: 1, somebody who does not know of forks or orders on record would serve: set while there are any. 2, the homes or an
//! epoch are a mixture, which is not the history that it pretends to continue.

use bytes::Bytes;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::log::Position;
use super::records::{
    EPOCH_LEN, VOLUME_LEN, ack_byte, ack_of, decode_epoch, decode_volume, encode_epoch,
    encode_volume, name_field, name_of,
};
use crate::base::{
    AckMode, AlignedBuf, BLOCK, ChunkSet, Epoch, Lineage, Lsn, NAME_MAX, Role, VERIFIED_MAX,
    Verified, VolumeSpec, round_up,
};

const MAGIC: [u8; 8] = *b"DBLRSTA1";
const SLOT: usize = 1 << 20;

/// Size of the state file, bytes.
pub const STATE_FILE_BYTES: u64 = 2 * SLOT as u64;

/// Most epochs in a record. Of a longer lineage the newest are kept: a peer whose history ends before them gets a full
/// copy.
const MAX_EPOCHS: usize = 4096;

const EVER_IN_SYNC: u32 = 1;
const HANDED: u32 = 4;
const INCONSISTENT: u32 = 8;
const CLEAN: u32 = 16;
const MIXTURE: u32 = 32;
const WRITTEN: u32 = 64;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StateHeader {
    magic: [u8; 8],
    version: U16,
    role: u8,
    ack: u8,
    incompat: U32,
    sequence: U64,
    len: U32,
    crc: U32,
    group_id: [u8; 16],
    flags: U32,
    site_len: U16,
    group_len: U16,
    site: [u8; NAME_MAX],
    group: [u8; NAME_MAX],
    floor: U64,
    commit: U64,
    inconsistent_until: U64,
    journal_bytes: U64,
    checkpoint_lsn: U64,
    checkpoint_next: U64,
    checkpoint_segment: U64,
    checkpoint_offset: U32,
    checkpoint_chain: U32,
    reserved_1: [u8; 18],
    handed_len: U16,
    epochs: U32,
    volumes: U32,
    peers: U32,
    mixture: [u8; 16],
    mixture_lsn: U64,
    mixture_since: U64,
    reserved_2: [u8; 32],
    handed_to: [u8; NAME_MAX],
    handed_epoch: [u8; 16],
    handed_lsn: U64,
    given_up: [u8; 16],
    verified_len: U64,
    undo: [u8; 16],
    readable_from: U64,
    forks: U32,
    reserved_3: [u8; 4],
    given_up_ns: U64,
    written: U64,
    frame_time: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PeerEntry {
    name_len: U16,
    flags: U16,
    dirty_len: U32,
    told_durable: U64,
    dirty_since: U64,
    dirty_until: U64,
    alone_since: U64,
    alone_from: U64,
    name: [u8; NAME_MAX],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ForkEntry {
    name_len: U16,
    flags: U16,
    reserved_1: [u8; 4],
    shared: U64,
    tail: U64,
    commit: U64,
    openings: U64,
    journal_first: U64,
    reserved_2: [u8; 8],
    id: [u8; 16],
    name: [u8; NAME_MAX],
    epoch: [u8; EPOCH_LEN],
}

const HEADER: usize = size_of::<StateHeader>();
const PEER: usize = size_of::<PeerEntry>();
const FORK: usize = size_of::<ForkEntry>();
const _: () = assert!(HEADER == 512);
const _: () = assert!(PEER == 112);
const _: () = assert!(FORK == 280);
const _: () = assert!(
    HEADER
        + MAX_EPOCHS * EPOCH_LEN
        + 1024 * VOLUME_LEN
        + 64 * PEER
        + 64 * FORK
        + MAX_DIRTY
        + VERIFIED_MAX
        <= SLOT
);

/// Incompat bit: forks or an order about one are on record.
const FORKS: u32 = 1;
/// Incompat bit: a mixture is told of.
const MIXTURES: u32 = 2;
/// The incompat bits that this program knows.
const INCOMPAT: u32 = FORKS | MIXTURES;

/// Flags of a fork: what the peer was when the two last met, and whether it has an epoch.
const SERVED: u16 = 1;
const WAS_PRIMARY: u16 = 2;
const HAS_EPOCH: u16 = 4;
/// And whose content is a mixture.
const THEIR_MIXTURE: u16 = 8;
const MY_MIXTURE: u16 = 16;
/// An operator lets this site serve past the peer.
const PAST: u16 = 32;

/// Flag of a peer: it has a set of chunks.
const DIRTY: u16 = 1;

/// Flag of a peer: this site acknowledges without it.
const ALONE: u16 = 2;

/// Most bytes of all sets of chunks together. A larger one is recorded as everything: its chunks are compared anyway.
const MAX_DIRTY: usize = 256 << 10;

/// Acknowledging without a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AloneRecord {
    /// Since when, nanoseconds since the Unix epoch.
    pub since_ns: u64,
    /// From this LSN on.
    pub from_lsn: Lsn,
}

/// The role was handed over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandedRecord {
    /// To whom.
    pub to: String,
    /// In this epoch.
    pub epoch_id: Uuid,
    /// At this LSN.
    pub lsn: Lsn,
}

/// The site was promoted in the middle of a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MixtureRecord {
    /// Names the fork that this is.
    pub id: Uuid,
    /// At this LSN.
    pub lsn: Lsn,
    /// Since when, nanoseconds since the Unix epoch.
    pub since_ns: u64,
}

/// What is known of a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerRecord {
    /// Its site.
    pub site: String,
    /// Highest LSN it confirmed durable.
    pub told_durable: Lsn,
    /// This site acknowledges without it.
    pub alone: Option<AloneRecord>,
    /// Chunks in which its homes and those here may differ.
    pub dirty: Option<Dirty>,
}

/// Chunks in which the homes of two sites may differ once the journal no longer tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dirty {
    /// What was changed after this LSN ...
    pub since: Lsn,
    /// ... and up to this one is in the set.
    pub until: Lsn,
    /// The chunks.
    pub chunks: ChunkSet,
}

/// A fork for which the link with a peer was refused, and what the peer told of itself then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForkRecord {
    /// The peer.
    pub peer: String,
    /// The last LSN that both share.
    pub shared: Lsn,
    /// Its last LSN.
    pub tail: Lsn,
    /// It had committed up to here.
    pub commit: Lsn,
    /// Its last epoch.
    pub epoch: Option<Epoch>,
    /// Epochs it opened since.
    pub openings: u64,
    /// Oldest LSN of its journal.
    pub journal_first: Lsn,
    /// It served.
    pub serving: bool,
    /// It was primary by its record.
    pub primary: bool,
    /// What names its side in an order to discard it.
    pub id: Uuid,
    /// Its content is a mixture, which pretends to continue the history here.
    pub their_mixture: bool,
    /// The same the other way round.
    pub my_mixture: bool,
    /// An operator lets this site serve although the peer was silent.
    pub past: bool,
}

impl ForkRecord {
    fn encode(&self) -> ForkEntry {
        let mut entry = ForkEntry::new_zeroed();
        (entry.name_len, entry.name) = name_field(&self.peer);
        entry.shared = U64::new(self.shared.0);
        entry.tail = U64::new(self.tail.0);
        entry.commit = U64::new(self.commit.0);
        entry.openings = U64::new(self.openings);
        entry.journal_first = U64::new(self.journal_first.0);
        let mut flags = 0;
        for (on, bit) in [
            (self.serving, SERVED),
            (self.primary, WAS_PRIMARY),
            (self.epoch.is_some(), HAS_EPOCH),
            (self.their_mixture, THEIR_MIXTURE),
            (self.my_mixture, MY_MIXTURE),
            (self.past, PAST),
        ] {
            flags |= if on { bit } else { 0 };
        }
        entry.flags = U16::new(flags);
        entry.id = self.id.into_bytes();
        if let Some(epoch) = &self.epoch {
            entry.epoch.copy_from_slice(&encode_epoch(epoch));
        }
        entry
    }

    fn decode(bytes: &[u8]) -> Result<ForkRecord, DecodeError> {
        let bad = Bad("a fork in it is wrong");
        let Ok(entry) = ForkEntry::read_from_bytes(bytes) else {
            return Err(bad);
        };
        let Some(peer) = name_of(entry.name_len, &entry.name) else {
            return Err(bad);
        };
        let flags = entry.flags.get();
        let epoch = if flags & HAS_EPOCH != 0 {
            let Ok(epoch) = decode_epoch(&entry.epoch) else {
                return Err(bad);
            };
            Some(epoch)
        } else {
            None
        };
        Ok(ForkRecord {
            peer,
            shared: Lsn(entry.shared.get()),
            tail: Lsn(entry.tail.get()),
            commit: Lsn(entry.commit.get()),
            epoch,
            openings: entry.openings.get(),
            journal_first: Lsn(entry.journal_first.get()),
            serving: flags & SERVED != 0,
            primary: flags & WAS_PRIMARY != 0,
            id: Uuid::from_bytes(entry.id),
            their_mixture: flags & THEIR_MIXTURE != 0,
            my_mixture: flags & MY_MIXTURE != 0,
            past: flags & PAST != 0,
        })
    }
}

/// Everything a site remembers of a group besides journal and homes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateRecord {
    /// Counts up with every write; set by [`StateFile::plan_write`].
    pub sequence: u64,
    /// Identity of the group; nil if it is not known yet.
    pub group_id: Uuid,
    /// This site.
    pub site: String,
    /// The group.
    pub group: String,
    /// Role of this site.
    pub role: Role,
    /// Mode of acknowledgement.
    pub ack: AckMode,
    /// The epochs.
    pub lineage: Lineage,
    /// Handed over.
    pub handed: Option<HandedRecord>,
    /// Highest LSN this site was told it held.
    pub floor: Lsn,
    /// In sync with a peer at least once.
    pub ever_in_sync: bool,
    /// The homes are no prefix of the history before this LSN.
    pub inconsistent_until: Option<Lsn>,
    /// Where recovery begins.
    pub checkpoint: Position,
    /// Known to be committed.
    pub commit: Lsn,
    /// The frame clock, nanoseconds since the Unix epoch: no later frame may be older.
    pub frame_time_ns: u64,
    /// The last run ended in good order.
    pub clean_shutdown: bool,
    /// Size of the journal, bytes.
    pub journal_bytes: u64,
    /// The volumes.
    pub volumes: Vec<VolumeSpec>,
    /// The peers.
    pub peers: Vec<PeerRecord>,
    /// Last epoch of a fork that an operator gave up; nil if none.
    pub given_up: Uuid,
    /// When that was ordered, nanoseconds since the Unix epoch.
    pub given_up_ns: u64,
    /// Forks that are not resolved.
    pub forks: Vec<ForkRecord>,
    /// The homes are a mixture, and nobody has superseded it.
    pub mixture: Option<MixtureRecord>,
    /// No operation after this LSN does anything but open an epoch, as far as the journal went when this was written; `None` if
    /// that is not known.
    pub written: Option<Lsn>,
    /// The undo file by which this site can go back to before a copy; nil if none.
    pub undo: Uuid,
    /// Whoever lacks something before this LSN cannot be helped with frames: the homes here are not what they say.
    pub readable_from: Lsn,
    /// What is known of verifications.
    pub verified: Verified,
}

/// Why the state file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Both slots hold something, neither is valid.
    #[error("both slots of the state file are damaged ({0}; {1})")]
    Damaged(String, String),
    /// The very first write of the file was cut off: nothing was written to the second slot yet.
    #[error("the first record of the state file was never finished ({0})")]
    Unfinished(String),
    /// Made by a program that knows more than this one.
    #[error(
        "the state file has version {version} and incompat bits {incompat:#x}; this program knows version 1 and bits 0x3: upgrade it"
    )]
    Unknown {
        /// Its version.
        version: u16,
        /// Its bits.
        incompat: u32,
    },
}

/// What the two slots hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateFile {
    sequence: u64,
    /// Written before the other one: a slot that the last record is missing from, if there is one.
    first: usize,
    found: Found,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// The last record, both of them.
    Both,
    /// One of them the last record, the other one an older one.
    Older,
    /// One of them the last record, the other one nothing valid.
    One,
}

impl Default for StateFile {
    fn default() -> StateFile {
        StateFile::new()
    }
}

impl StateFile {
    /// Of a file that holds nothing yet.
    pub fn new() -> StateFile {
        StateFile {
            sequence: 0,
            first: 0,
            found: Found::Both,
        }
    }

    /// Finds the record in the content of the whole file; `None` if nothing was ever written.
    ///
    /// # Errors
    /// If there is something, but nothing valid.
    pub fn load(file: &[u8]) -> Result<Option<(StateFile, StateRecord)>, StateError> {
        let mut records = Vec::new();
        let mut bad = Vec::new();
        let mut unknown = None;
        for slot in 0..2 {
            let bytes = file.get(slot * SLOT..(slot + 1) * SLOT).unwrap_or_default();
            if super::is_zero(&bytes[..bytes.len().min(HEADER)]) {
                continue;
            }
            match StateRecord::decode(bytes) {
                Ok(record) => records.push((slot, record)),
                Err(DecodeError::Unknown { version, incompat }) => {
                    let error = StateError::Unknown { version, incompat };
                    // Else it may be rot that looks like a later version, and the other slot tells.
                    if sum_is_right(bytes) {
                        return Err(error);
                    }
                    unknown = Some(error);
                }
                Err(DecodeError::Bad(why)) => bad.push(format!("slot {slot}: {why}")),
            }
        }
        records.sort_by_key(|(_, record)| record.sequence);
        let Some((slot, record)) = records.pop() else {
            return match (unknown, bad.as_slice()) {
                (Some(unknown), _) => Err(unknown),
                (_, [one, two]) => Err(StateError::Damaged(one.clone(), two.clone())),
                (_, [one]) if one.starts_with("slot 0") => Err(StateError::Unfinished(one.clone())),
                (_, [one]) => Err(StateError::Damaged(
                    one.clone(),
                    "the other is empty".into(),
                )),
                (_, _) => Ok(None),
            };
        };
        let found = match records.pop() {
            Some((_, other)) if other.sequence == record.sequence => Found::Both,
            Some(_) => Found::Older,
            None => Found::One,
        };
        let first = if found == Found::Both { 0 } else { 1 - slot };
        let file = StateFile {
            sequence: record.sequence,
            first,
            found,
        };
        Ok(Some((file, record)))
    }

    /// One slot only holds the record that counts: until it is written again, a single fault brings an older one back.
    pub fn is_at_risk(&self) -> bool {
        self.found != Found::Both
    }

    /// The slot that held nothing valid.
    pub fn lost_slot(&self) -> Option<usize> {
        (self.found == Found::One).then_some(self.first)
    }

    /// The next write: the places where, one after the other, and the encoded record with its new sequence number.
    pub fn plan_write(&mut self, record: &StateRecord) -> ([u64; 2], Bytes) {
        // `decode` refuses the last number there is.
        self.sequence += 1;
        let first = std::mem::take(&mut self.first);
        self.found = Found::Both;
        let record = StateRecord {
            sequence: self.sequence,
            ..record.clone()
        };
        let offsets = [first, 1 - first].map(|slot| (slot * SLOT) as u64);
        (offsets, Bytes::from_owner(record.encode()))
    }
}

/// Whether the checksum of what lies in a slot is right, whatever its version.
fn sum_is_right(slot: &[u8]) -> bool {
    let Ok((h, _)) = StateHeader::read_from_prefix(slot) else {
        return false;
    };
    let len = h.len.get() as usize;
    if !(HEADER..=slot.len()).contains(&len) {
        return false;
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&slot[..28]);
    crc.update(&[0; 4]);
    crc.update(&slot[32..len]);
    crc.finalize() == h.crc.get()
}

enum DecodeError {
    Bad(&'static str),
    Unknown { version: u16, incompat: u32 },
}

use DecodeError::Bad;

impl StateRecord {
    pub(super) fn encode(&self) -> AlignedBuf {
        let epochs = self.lineage.epochs();
        let epochs = &epochs[epochs.len().saturating_sub(MAX_EPOCHS)..];
        let dirty = self.dirty_sets();
        let verified = self.verified.encode();
        let len = HEADER
            + epochs.len() * EPOCH_LEN
            + self.volumes.len() * VOLUME_LEN
            + self.peers.len() * PEER
            + dirty.iter().map(Vec::len).sum::<usize>()
            + verified.len()
            + self.forks.len() * FORK;
        assert!(len <= SLOT, "a record of {len} bytes does not fit its slot");
        let mut out = AlignedBuf::zeroed(round_up(len, BLOCK));
        let mut h = StateHeader::new_zeroed();
        h.magic = MAGIC;
        h.version = U16::new(1);
        h.incompat = U32::new(self.incompat());
        h.role = u8::from(self.role == Role::Mirror);
        h.ack = ack_byte(self.ack);
        h.sequence = U64::new(self.sequence);
        h.len = U32::new(len as u32);
        h.group_id = self.group_id.into_bytes();
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        h.flags = U32::new(
            flag(self.ever_in_sync, EVER_IN_SYNC)
                | flag(self.handed.is_some(), HANDED)
                | flag(self.inconsistent_until.is_some(), INCONSISTENT)
                | flag(self.clean_shutdown, CLEAN)
                | flag(self.mixture.is_some(), MIXTURE)
                | flag(self.written.is_some(), WRITTEN),
        );
        if let Some(mixture) = &self.mixture {
            h.mixture = mixture.id.into_bytes();
            h.mixture_lsn = U64::new(mixture.lsn.0);
            h.mixture_since = U64::new(mixture.since_ns);
        }
        (h.site_len, h.site) = name_field(&self.site);
        (h.group_len, h.group) = name_field(&self.group);
        h.floor = U64::new(self.floor.0);
        h.commit = U64::new(self.commit.0);
        h.frame_time = U64::new(self.frame_time_ns);
        h.inconsistent_until = U64::new(self.inconsistent_until.unwrap_or_default().0);
        h.journal_bytes = U64::new(self.journal_bytes);
        h.checkpoint_lsn = U64::new(self.checkpoint.lsn.0);
        h.checkpoint_next = U64::new(self.checkpoint.next.0);
        h.checkpoint_segment = U64::new(self.checkpoint.segment);
        h.checkpoint_offset = U32::new(self.checkpoint.offset);
        h.checkpoint_chain = U32::new(self.checkpoint.chain);
        if let Some(handed) = &self.handed {
            (h.handed_len, h.handed_to) = name_field(&handed.to);
            h.handed_epoch = handed.epoch_id.into_bytes();
            h.handed_lsn = U64::new(handed.lsn.0);
        }
        h.epochs = U32::new(epochs.len() as u32);
        h.volumes = U32::new(self.volumes.len() as u32);
        h.peers = U32::new(self.peers.len() as u32);
        let mut at = HEADER;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        for epoch in epochs {
            put(&encode_epoch(epoch));
        }
        for volume in &self.volumes {
            put(&encode_volume(volume));
        }
        for (peer, set) in self.peers.iter().zip(&dirty) {
            let mut entry = PeerEntry::new_zeroed();
            (entry.name_len, entry.name) = name_field(&peer.site);
            entry.told_durable = U64::new(peer.told_durable.0);
            let mut flags = 0;
            if let Some(dirty) = &peer.dirty {
                flags |= DIRTY;
                entry.dirty_since = U64::new(dirty.since.0);
                entry.dirty_until = U64::new(dirty.until.0);
                entry.dirty_len = U32::new(set.len() as u32);
            }
            if let Some(alone) = &peer.alone {
                flags |= ALONE;
                entry.alone_since = U64::new(alone.since_ns);
                entry.alone_from = U64::new(alone.from_lsn.0);
            }
            entry.flags = U16::new(flags);
            put(entry.as_bytes());
        }
        for set in &dirty {
            put(set);
        }
        put(&verified);
        for fork in &self.forks {
            put(fork.encode().as_bytes());
        }
        h.forks = U32::new(self.forks.len() as u32);
        h.written = U64::new(self.written.unwrap_or_default().0);
        h.given_up_ns = U64::new(self.given_up_ns);
        h.verified_len = U64::new(verified.len() as u64);
        h.given_up = self.given_up.into_bytes();
        h.undo = self.undo.into_bytes();
        h.readable_from = U64::new(self.readable_from.0);
        out[..HEADER].copy_from_slice(h.as_bytes());
        let crc = crc32fast::hash(&out[..len]);
        out[28..32].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// What a program must know to read this without doing harm. Only what is used is asked for.
    fn incompat(&self) -> u32 {
        let mixture = self.mixture.is_some() || self.lineage.last_mixture().is_some();
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        bit(!self.forks.is_empty(), FORKS) | bit(mixture, MIXTURES)
    }

    /// The peers' sets of chunks as bytes, all of them within [`MAX_DIRTY`].
    fn dirty_sets(&self) -> Vec<Vec<u8>> {
        let each = MAX_DIRTY / self.peers.len().max(1);
        let set = |peer: &PeerRecord| {
            let bytes = peer.dirty.as_ref().map(|d| d.chunks.encode());
            match bytes.unwrap_or_default() {
                bytes if bytes.len() > each => ChunkSet::everything().encode(),
                bytes => bytes,
            }
        };
        self.peers.iter().map(set).collect()
    }

    fn decode(slot: &[u8]) -> Result<StateRecord, DecodeError> {
        let (h, _) = StateHeader::read_from_prefix(slot).map_err(|_| Bad("it is cut short"))?;
        if h.magic != MAGIC {
            return Err(Bad("it does not begin like a record"));
        }
        let (version, incompat) = (h.version.get(), h.incompat.get());
        if version != 1 || incompat & !INCOMPAT != 0 {
            return Err(DecodeError::Unknown { version, incompat });
        }
        let len = h.len.get() as usize;
        if len < HEADER || len > slot.len() {
            return Err(Bad("its length is wrong"));
        }
        if !sum_is_right(slot) {
            return Err(Bad("its checksum is wrong"));
        }
        if h.sequence.get() == u64::MAX {
            return Err(Bad("no record could follow it"));
        }
        let mut rest = &slot[HEADER..len];
        let mut take = |n: usize| {
            let (item, after) = rest
                .split_at_checked(n)
                .ok_or(Bad("its lists are cut short"))?;
            rest = after;
            Ok(item)
        };
        let mut epochs = Vec::new();
        for _ in 0..h.epochs.get() {
            epochs
                .push(decode_epoch(take(EPOCH_LEN)?).map_err(|_| Bad("an epoch in it is wrong"))?);
        }
        let mut volumes = Vec::new();
        for _ in 0..h.volumes.get() {
            volumes.push(
                decode_volume(take(VOLUME_LEN)?).map_err(|_| Bad("a volume in it is wrong"))?,
            );
        }
        let mut entries = Vec::new();
        for _ in 0..h.peers.get() {
            let entry = PeerEntry::read_from_bytes(take(PEER)?);
            entries.push(entry.map_err(|_| Bad("a peer in it is wrong"))?);
        }
        let mut peers = Vec::new();
        for entry in entries {
            let set = take(entry.dirty_len.get() as usize)?;
            let dirty = Dirty {
                since: Lsn(entry.dirty_since.get()),
                until: Lsn(entry.dirty_until.get()),
                chunks: ChunkSet::decode(set).map_err(|_| Bad("a set of chunks in it is wrong"))?,
            };
            peers.push(PeerRecord {
                site: name_of(entry.name_len, &entry.name).ok_or(Bad("a peer's name is wrong"))?,
                told_durable: Lsn(entry.told_durable.get()),
                alone: (entry.flags.get() & ALONE != 0).then_some(AloneRecord {
                    since_ns: entry.alone_since.get(),
                    from_lsn: Lsn(entry.alone_from.get()),
                }),
                dirty: (entry.flags.get() & DIRTY != 0).then_some(dirty),
            });
        }
        let verified_len = usize::try_from(h.verified_len.get()).unwrap_or(usize::MAX);
        let verified = Verified::decode(take(verified_len)?)
            .map_err(|_| Bad("what it says of verifications is wrong"))?;
        let mut forks = Vec::new();
        for _ in 0..h.forks.get() {
            forks.push(ForkRecord::decode(take(FORK)?)?);
        }
        let flags = h.flags.get();
        let name =
            |len, field: &[u8; NAME_MAX]| name_of(len, field).ok_or(Bad("a name in it is wrong"));
        let handed = HandedRecord {
            to: name(h.handed_len, &h.handed_to)?,
            epoch_id: Uuid::from_bytes(h.handed_epoch),
            lsn: Lsn(h.handed_lsn.get()),
        };
        Ok(StateRecord {
            sequence: h.sequence.get(),
            group_id: Uuid::from_bytes(h.group_id),
            site: name(h.site_len, &h.site)?,
            group: name(h.group_len, &h.group)?,
            role: if h.role == 0 {
                Role::Primary
            } else {
                Role::Mirror
            },
            ack: ack_of(h.ack).ok_or(Bad("the ack mode is unknown"))?,
            lineage: Lineage::new(epochs)
                .map_err(|_| Bad("its epochs do not follow each other"))?,
            handed: (flags & HANDED != 0).then_some(handed),
            floor: Lsn(h.floor.get()),
            ever_in_sync: flags & EVER_IN_SYNC != 0,
            inconsistent_until: (flags & INCONSISTENT != 0)
                .then_some(Lsn(h.inconsistent_until.get())),
            checkpoint: Position {
                lsn: Lsn(h.checkpoint_lsn.get()),
                next: Lsn(h.checkpoint_next.get()),
                segment: h.checkpoint_segment.get(),
                offset: h.checkpoint_offset.get(),
                chain: h.checkpoint_chain.get(),
            },
            commit: Lsn(h.commit.get()),
            frame_time_ns: h.frame_time.get(),
            clean_shutdown: flags & CLEAN != 0,
            journal_bytes: h.journal_bytes.get(),
            volumes,
            peers,
            given_up: Uuid::from_bytes(h.given_up),
            given_up_ns: h.given_up_ns.get(),
            forks,
            mixture: (flags & MIXTURE != 0).then_some(MixtureRecord {
                id: Uuid::from_bytes(h.mixture),
                lsn: Lsn(h.mixture_lsn.get()),
                since_ns: h.mixture_since.get(),
            }),
            written: (flags & WRITTEN != 0).then_some(Lsn(h.written.get())),
            undo: Uuid::from_bytes(h.undo),
            readable_from: Lsn(h.readable_from.get()),
            verified,
        })
    }

    /// A record that lies by itself in another file.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(super) fn decode_alone(bytes: &[u8]) -> Result<StateRecord, String> {
        StateRecord::decode(bytes).map_err(|error| match error {
            Bad(why) => format!("in its record of state, {why}"),
            DecodeError::Unknown { version, incompat } => {
                format!("its record of state has version {version} and incompat bits {incompat:#x}")
            }
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::{ByteRange, CHUNK_BYTES, Epoch, VerifyRun, VolumeId};

    pub fn record() -> StateRecord {
        let epoch = |number, first| Epoch {
            number,
            id: Uuid::from_u128(u128::from(number)),
            site: "clichy".into(),
            first_lsn: Lsn(first),
            ack: AckMode::Sync,
            alone: false,
            complete: false,
            mixture: false,
            time_ns: 1,
        };
        StateRecord {
            sequence: 0,
            group_id: Uuid::from_u128(5),
            site: "clichy".into(),
            group: "registry".into(),
            role: Role::Mirror,
            ack: AckMode::Memsync,
            lineage: Lineage::new(vec![epoch(1, 1), epoch(2, 10)]).unwrap(),
            handed: Some(HandedRecord {
                to: "chelles".into(),
                epoch_id: Uuid::from_u128(2),
                lsn: Lsn(11),
            }),
            floor: Lsn(6),
            ever_in_sync: true,
            inconsistent_until: Some(Lsn(u64::MAX)),
            checkpoint: Position {
                lsn: Lsn(9),
                next: Lsn(8),
                segment: 3,
                offset: 4096,
                chain: 0xabcd,
            },
            commit: Lsn(10),
            frame_time_ns: 12,
            clean_shutdown: true,
            journal_bytes: 1 << 30,
            volumes: vec![VolumeSpec {
                id: VolumeId(0),
                uuid: Uuid::from_u128(8),
                name: "data".into(),
                size: 1 << 30,
            }],
            peers: vec![PeerRecord {
                site: "chelles".into(),
                told_durable: Lsn(7),
                alone: Some(AloneRecord {
                    since_ns: 3,
                    from_lsn: Lsn(4),
                }),
                dirty: Some(Dirty {
                    since: Lsn(0x55),
                    until: Lsn(0x66),
                    chunks: {
                        let mut chunks = ChunkSet::new();
                        chunks.insert(VolumeId(2), ByteRange::new(3 * CHUNK_BYTES, 1));
                        chunks
                    },
                }),
            }],
            given_up: Uuid::from_u128(0x77),
            given_up_ns: 0,
            forks: Vec::new(),
            mixture: None,
            written: None,
            undo: Uuid::from_u128(0x99),
            readable_from: Lsn(0x88),
            verified: Verified {
                last: Some(VerifyRun {
                    primary: "clichy".into(),
                    ended_unix_seconds: 0x88,
                    ..VerifyRun::default()
                }),
                under_way: None,
            },
        }
    }

    fn file_with(writes: &[(u64, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; STATE_FILE_BYTES as usize];
        for (offset, bytes) in writes {
            file[*offset as usize..*offset as usize + bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    /// With a right checksum.
    fn changed(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let len = u32::from_le_bytes(bytes[24..28].try_into().unwrap()) as usize;
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes[28..32].fill(0);
        let crc = crc32fast::hash(&bytes[..len]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let mut state = StateFile::new();
        let ([one, two], bytes) = state.plan_write(&record());
        let file = file_with(&[(one, &bytes), (two, &bytes)]);
        let (next, found) = StateFile::load(&file).unwrap().unwrap();
        assert_eq!(
            found,
            StateRecord {
                sequence: 1,
                ..record()
            }
        );
        assert_eq!(next, state);
        assert!(!next.is_at_risk());
    }

    #[test]
    fn one_bad_slot_never_brings_a_record_back_that_was_superseded() {
        let mut state = StateFile::new();
        let ([one, two], old) = state.plan_write(&record());
        let commit = Lsn(20);
        let (offsets, new) = state.plan_write(&StateRecord { commit, ..record() });
        assert_eq!(offsets, [one, two]);
        let torn = &new[..512];
        // What the slots hold, the commit LSN that counts, which slot is noted, and which is written first then.
        for (slots, commit, lost, first) in [
            ([&old[..], &old[..]], 10, None, one),
            ([torn, &old], 10, Some(0), one),
            ([&new, &old], 20, None, two),
            ([&new, torn], 20, Some(1), two),
            ([&new, &new], 20, None, one),
            ([torn, &new], 20, Some(0), one),
            ([&[], &new], 20, Some(0), one),
        ] {
            let file = file_with(&[(one, slots[0]), (two, slots[1])]);
            let (mut next, found) = StateFile::load(&file).unwrap().unwrap();
            assert_eq!(found.commit, Lsn(commit));
            assert_eq!(next.lost_slot(), lost);
            assert_eq!(next.is_at_risk(), slots[0] != slots[1]);
            // Never the only slot that holds the record.
            assert_eq!(next.plan_write(&record()).0[0], first);
            assert_eq!(next.plan_write(&record()).0, [one, two]);
        }
    }

    #[test]
    fn an_unwritten_file_is_told_from_a_damaged_one() {
        assert_eq!(StateFile::load(&file_with(&[])), Ok(None));
        let ([one, two], bytes) = StateFile::new().plan_write(&record());
        let mut bad = bytes.to_vec();
        bad[600] ^= 1;
        let error = StateFile::load(&file_with(&[(one, &bad)])).unwrap_err();
        assert!(matches!(error, StateError::Unfinished(_)), "{error}");
        let error = StateFile::load(&file_with(&[(two, &bad)])).unwrap_err();
        assert!(matches!(error, StateError::Damaged(..)), "{error}");
        let error = StateFile::load(&file_with(&[(one, &bad), (two, &bad)]));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
    }

    #[test]
    fn a_later_version_is_refused_by_name_and_rot_that_looks_like_one_is_not() {
        let ([one, two], bytes) = StateFile::new().plan_write(&record());
        let newer = changed(&bytes, 8, &[2]);
        let mut rotten = bytes.to_vec();
        rotten[8] = 2;
        for slots in [
            [&bytes[..], &newer],
            [&newer, &bytes],
            [&newer, &newer],
            [&rotten, &rotten],
        ] {
            let file = file_with(&[(one, slots[0]), (two, slots[1])]);
            let error = StateFile::load(&file).unwrap_err().to_string();
            assert!(error.contains("upgrade"), "{error}");
        }
        let file = file_with(&[(one, &rotten), (two, &bytes)]);
        let (state, _) = StateFile::load(&file).unwrap().unwrap();
        assert_eq!(state.lost_slot(), Some(0));
    }

    #[test]
    fn a_record_after_which_none_can_come_is_refused() {
        let ([one, _], bytes) = StateFile::new().plan_write(&record());
        let last = changed(&bytes, 16, &[0xff; 8]);
        let error = StateFile::load(&file_with(&[(one, &last)])).unwrap_err();
        assert!(error.to_string().contains("follow"), "{error}");
    }

    #[test]
    fn forks_and_mixtures_on_record_have_these_bytes_and_bits_that_forbid_reading() {
        let forked = StateRecord {
            sequence: 1,
            given_up_ns: 0x66,
            forks: vec![ForkRecord {
                peer: "chelles".into(),
                shared: Lsn(5),
                tail: Lsn(9),
                commit: Lsn(8),
                epoch: Some(record().lineage.epochs()[1].clone()),
                openings: 2,
                journal_first: Lsn(3),
                serving: true,
                primary: true,
                id: Uuid::from_u128(0x55),
                their_mixture: false,
                my_mixture: true,
                past: true,
            }],
            mixture: Some(MixtureRecord {
                id: Uuid::from_u128(0x44),
                lsn: Lsn(7),
                since_ns: 6,
            }),
            written: Some(Lsn(0x101)),
            ..record()
        };
        let bytes = forked.encode();
        assert_eq!(bytes[12..16], [3, 0, 0, 0]);
        assert_eq!(bytes[48..52], [29 + 32 + 64, 0, 0, 0]);
        assert_eq!(bytes[295..297], [0x44, 7]);
        assert_eq!(bytes[304], 6);
        assert_eq!(bytes[496..504], [1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[480..489], [1, 0, 0, 0, 0, 0, 0, 0, 0x66]);
        let plain = StateRecord {
            sequence: 1,
            ..record()
        };
        let len = |bytes: &[u8]| u32::from_le_bytes(bytes[24..28].try_into().unwrap()) as usize;
        let at = len(&plain.encode());
        assert_eq!(len(&bytes), at + 280);
        let mut wanted = vec![0; 280];
        wanted[..4].copy_from_slice(&[7, 0, 32 + 16 + 7, 0]);
        for (at, value) in [(8, 5), (16, 9), (24, 8), (32, 2), (40, 3)] {
            wanted[at] = value;
        }
        wanted[71] = 0x55;
        wanted[72..79].copy_from_slice(b"chelles");
        wanted[136..].copy_from_slice(&encode_epoch(&record().lineage.epochs()[1]));
        assert_eq!(bytes[at..at + 280], wanted);
        let Ok(decoded) = StateRecord::decode(&bytes) else {
            panic!("it is refused");
        };
        assert_eq!(decoded, forked);
        let unknown = changed(&bytes, 12, &[4]);
        assert!(matches!(
            StateRecord::decode(&unknown),
            Err(DecodeError::Unknown { incompat: 4, .. })
        ));
    }

    #[test]
    fn the_bytes_of_a_record_are_these() {
        let mut state = StateFile::new();
        let (_, bytes) = state.plan_write(&record());
        assert_eq!(bytes.len(), 4096);
        assert_eq!(&bytes[..16], b"DBLRSTA1\x01\0\x01\x01\0\0\0\0");
        assert_eq!(&bytes[16..28], [1, 0, 0, 0, 0, 0, 0, 0, 2, 5, 0, 0]);
        assert_eq!(bytes[48..56], [29, 0, 0, 0, 6, 0, 8, 0]);
        assert_eq!(&bytes[56..62], b"clichy");
        assert_eq!(&bytes[120..128], b"registry");
        assert_eq!(
            bytes[184..200],
            [6, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(bytes[200..208], [0xff; 8]);
        assert_eq!(
            bytes[216..232],
            [9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            bytes[232..248],
            [3, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0xcd, 0xab, 0, 0]
        );
        assert_eq!(
            bytes[264..280],
            [0, 0, 7, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
        );
        assert!(super::super::is_zero(&bytes[248..266]));
        assert!(super::super::is_zero(&bytes[280..344]));
        assert_eq!(&bytes[344..351], b"chelles");
        assert_eq!(bytes[424..432], [11, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[447], 0x77);
        assert!(super::super::is_zero(&bytes[456..471]));
        assert_eq!(bytes[471..473], [0x99, 0x88]);
        assert!(super::super::is_zero(&bytes[473..504]));
        assert_eq!(bytes[448..456], [240, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            bytes[904..920],
            [7, 0, 3, 0, 26, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            bytes[936..952],
            [3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&bytes[952..959], b"chelles");
        assert_eq!(&bytes[1042 + 112..][..6], b"clichy");
        assert_eq!(bytes[504..512], [12, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            &bytes[512..512 + EPOCH_LEN],
            encode_epoch(&record().lineage.epochs()[0])
        );
    }
}
