//! The layout of the link's messages, version 2.
//!
//! Integers are little endian. Reserved bytes and bits are zero. A value that is absent is zero, beside a flag that says
//! so. LSNs, epoch numbers, offsets and lengths are below 2^63, so that sums of two never overflow; only
//! `inconsistent_until` may also be 2^64 - 1, for 'not known yet'. Names are at most 64 bytes of UTF-8 without control
//! characters, texts at most 4096 bytes of UTF-8.
//!
//! # Header, 16 bytes, before every message
//!
//! | at | bytes | field | |
//! | --- | --- | --- | --- |
//! | 0 | 4 | magic | `DBLK` |
//! | 4 | 2 | kind | which message |
//! | 6 | 2 | flags | none known yet |
//! | 8 | 4 | length | of the body, bytes |
//! | 12 | 4 | crc | CRC-32 of bytes 0 to 11 and of the covered part of the body |
//!
//! # Bodies
//!
//! | kind | message | body | covered |
//! | --- | --- | --- | --- |
//! | 1 | hello | [`HelloPrefix`], [`HelloRecord`], names of group, site and addressed site, epochs, volumes; from version 2 on [`HelloTail`] | all |
//! | 2 | refuse | [`RefuseRecord`], text | all |
//! | 3 | start stream | LSN | all |
//! | 4 | start fetch | LSN | all |
//! | 5 | start copy | [`CopyRecord`], epochs, volumes | all |
//! | 6 | start handover | [`HandoverRecord`] | all |
//! | 7 | started | nothing | |
//! | 8 | frame | the frame, a multiple of 4096 bytes | nothing: a frame has its own checksums |
//! | 9 | ack | [`AckRecord`] | all |
//! | 10 | commit | LSN | all |
//! | 11 | ping | token, 8 bytes | all |
//! | 12 | pong | token, 8 bytes | all |
//! | 13 | chunk | [`ChunkRecord`], content | the record: the content has a CRC in it |
//! | 14 | chunks end | LSN | all |
//! | 15 | fetch end | LSN | all |
//! | 16 | taken | nothing | |
//! | 17 | bye | text | all |
//! | 18 | touched | a set of chunks, as `ChunkSet::encode` gives it | all |
//! | 19 | compare | [`CompareRecord`] | all |
//! | 20 | compared | [`ComparedRecord`] | all |
//! | 21 | can grow | [`GrowRecord`] | all |
//! | 22 | may grow | [`GrowRecord`], text, empty for yes | all |
//! | 23 | content | [`ContentRecord`], content | the record: the content has a CRC in it |
//! | 24 | verified | verifications, as `Verified::encode` gives them | all |
//! | 25 | confirmed | a set of chunks, as `ChunkSet::encode` gives it | all |
//!
//! An epoch is an [`EpochRecord`] and the name of its site; a volume is a [`VolumeRecord`] and its name.
//!
//! # Other versions
//!
//! Header, [`HelloPrefix`] and refuse are the same in all versions. A greeting says which versions its sender speaks and
//! which features it has: `compat` bits may be ignored, an unknown `incompat` bit ends the link. A sender that speaks
//! newer versions besides ours may use reserved bytes and flags of its greeting and append to it; we ignore both.

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::{BLOCK, CHUNK_BYTES, NAME_MAX, VERIFIED_MAX};

/// How every message begins.
pub(super) const MAGIC: [u8; 4] = *b"DBLK";

/// The protocol versions that this program speaks.
pub const VERSIONS: Versions = Versions::OURS;

/// Feature: a mixture of old and new content is told of, by an epoch or in the greeting. Who does not know that would take it
/// for the history that it pretends to continue. Asked for only by who has one.
pub(super) const MIXTURES: u64 = 1;
/// Incompatible features that this program knows.
pub(super) const INCOMPAT: u64 = MIXTURES;

/// Length of a header in bytes.
pub const HEADER: usize = 16;
/// Longest body of a control message (all but frames and chunks) in bytes.
pub const MAX_CONTROL: usize = 8 << 20;
/// Longest frame in bytes.
pub const MAX_FRAME: usize = 4 << 20;
/// Most content of one chunk in bytes.
pub const MAX_CHUNK: usize = 1 << 20;
/// Longest text for people in bytes; longer ones are cut when they are sent.
pub const MAX_TEXT: usize = 4096;
/// Most epochs in a message.
pub const MAX_EPOCHS: usize = 65536;
/// Most volumes in a message.
pub const MAX_VOLUMES: usize = 1024;

// Whatever keeps to the other limits keeps to this one.
const _: () = assert!(
    size_of::<HelloPrefix>()
        + size_of::<HelloRecord>()
        + 3 * NAME_MAX
        + MAX_EPOCHS * (size_of::<EpochRecord>() + NAME_MAX)
        + MAX_VOLUMES * (size_of::<VolumeRecord>() + NAME_MAX)
        <= MAX_CONTROL
);

/// A range of protocol versions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Versions {
    /// The first.
    pub oldest: u16,
    /// The last.
    pub newest: u16,
}

impl Versions {
    /// What this program speaks.
    pub const OURS: Versions = Versions {
        oldest: 2,
        newest: 2,
    };

    /// Whether any version is in both.
    pub fn meet(self, other: Versions) -> bool {
        self.oldest <= other.newest && other.oldest <= self.newest
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "version {}", self.newest)
        } else {
            write!(f, "versions {} to {}", self.oldest, self.newest)
        }
    }
}

/// Which message it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum Kind {
    /// Introduction.
    Hello = 1,
    /// The link is refused.
    Refuse,
    /// Proposal to stream frames.
    StartStream,
    /// Proposal to fetch the tail.
    StartFetch,
    /// Proposal of a full copy.
    StartCopy,
    /// Proposal to take over.
    StartHandover,
    /// Agreement to a proposal.
    Started,
    /// A frame.
    Frame,
    /// Progress of a mirror.
    Ack,
    /// Progress of the commit LSN.
    Commit,
    /// Sign of life wanted.
    Ping,
    /// Sign of life.
    Pong,
    /// Part of a full copy.
    Chunk,
    /// End of a full copy.
    ChunksEnd,
    /// End of a fetched tail.
    FetchEnd,
    /// A handover was taken.
    Taken,
    /// The link is closed on purpose.
    Bye,
    /// Chunks of the mirror's homes that history does not explain.
    Touched,
    /// Question for the hash of a range.
    Compare,
    /// The hash.
    Compared,
    /// Question whether a home can grow.
    CanGrow,
    /// Whether it can.
    MayGrow,
    /// The content that was asked for.
    Content,
    /// What is known of verifications.
    Verified,
    /// Chunks of a copy that the mirror has.
    Confirmed,
    /// How much of what was sent as chunks is in the homes.
    Placed,
}

impl Kind {
    /// All of them, in the order of their numbers, which start at 1.
    pub const ALL: [Kind; 26] = [
        Kind::Hello,
        Kind::Refuse,
        Kind::StartStream,
        Kind::StartFetch,
        Kind::StartCopy,
        Kind::StartHandover,
        Kind::Started,
        Kind::Frame,
        Kind::Ack,
        Kind::Commit,
        Kind::Ping,
        Kind::Pong,
        Kind::Chunk,
        Kind::ChunksEnd,
        Kind::FetchEnd,
        Kind::Taken,
        Kind::Bye,
        Kind::Touched,
        Kind::Compare,
        Kind::Compared,
        Kind::CanGrow,
        Kind::MayGrow,
        Kind::Content,
        Kind::Verified,
        Kind::Confirmed,
        Kind::Placed,
    ];

    /// The message of this number.
    pub(super) fn of(number: u16) -> Option<Kind> {
        let at = usize::from(number).checked_sub(1)?;
        Kind::ALL.get(at).copied()
    }

    /// How long its body may be.
    pub(super) fn limits(self) -> Limits {
        let exactly = |len| Limits {
            min: len,
            max: len,
            unit: 1,
        };
        let between = |min, max| Limits { min, max, unit: 1 };
        match self {
            Kind::Hello => between(size_of::<HelloPrefix>(), MAX_CONTROL),
            Kind::Refuse => between(
                size_of::<RefuseRecord>(),
                size_of::<RefuseRecord>() + MAX_TEXT,
            ),
            Kind::StartCopy => between(size_of::<CopyRecord>(), MAX_CONTROL),
            Kind::StartHandover => exactly(size_of::<HandoverRecord>()),
            Kind::Started | Kind::Taken => exactly(0),
            Kind::Frame => Limits {
                min: BLOCK,
                max: MAX_FRAME,
                unit: BLOCK,
            },
            Kind::Ack => exactly(size_of::<AckRecord>()),
            Kind::StartStream
            | Kind::StartFetch
            | Kind::Commit
            | Kind::Ping
            | Kind::Pong
            | Kind::ChunksEnd
            | Kind::FetchEnd
            | Kind::Placed => exactly(size_of::<U64>()),
            Kind::Chunk => between(
                size_of::<ChunkRecord>(),
                size_of::<ChunkRecord>() + MAX_CHUNK,
            ),
            Kind::Bye => between(0, MAX_TEXT),
            Kind::Touched | Kind::Confirmed => between(0, MAX_CONTROL),
            Kind::Compare => exactly(size_of::<CompareRecord>()),
            Kind::Compared => exactly(size_of::<ComparedRecord>()),
            Kind::CanGrow => exactly(size_of::<GrowRecord>()),
            Kind::MayGrow => between(size_of::<GrowRecord>(), size_of::<GrowRecord>() + MAX_TEXT),
            Kind::Content => between(
                size_of::<ContentRecord>(),
                size_of::<ContentRecord>() + CHUNK_BYTES as usize,
            ),
            Kind::Verified => between(0, VERIFIED_MAX),
        }
    }

    /// How much of a body of this length the header's CRC covers, in bytes.
    pub(super) fn covered(self, body: usize) -> usize {
        match self {
            Kind::Frame => 0,
            Kind::Chunk => size_of::<ChunkRecord>(),
            Kind::Content => size_of::<ContentRecord>(),
            _ => body,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Hello => "hello",
            Kind::Refuse => "refuse",
            Kind::StartStream => "start stream",
            Kind::StartFetch => "start fetch",
            Kind::StartCopy => "start copy",
            Kind::StartHandover => "start handover",
            Kind::Started => "started",
            Kind::Frame => "frame",
            Kind::Ack => "ack",
            Kind::Commit => "commit",
            Kind::Ping => "ping",
            Kind::Pong => "pong",
            Kind::Chunk => "chunk",
            Kind::ChunksEnd => "chunks end",
            Kind::FetchEnd => "fetch end",
            Kind::Taken => "taken",
            Kind::Bye => "bye",
            Kind::Touched => "touched",
            Kind::Compare => "compare",
            Kind::Compared => "compared",
            Kind::CanGrow => "can grow",
            Kind::MayGrow => "may grow",
            Kind::Content => "content",
            Kind::Verified => "verified",
            Kind::Confirmed => "confirmed",
            Kind::Placed => "placed",
        })
    }
}

/// How long a body may be, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// At least.
    pub min: usize,
    /// At most.
    pub max: usize,
    /// A multiple of this.
    pub unit: usize,
}

impl Limits {
    pub(super) fn allow(self, len: usize) -> bool {
        (self.min..=self.max).contains(&len) && len.is_multiple_of(self.unit)
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.min)?;
        if self.max != self.min {
            write!(f, " to {}", self.max)?;
        }
        if self.unit != 1 {
            write!(f, ", a multiple of {}", self.unit)?;
        }
        Ok(())
    }
}

/// Before every message.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 4],
    pub kind: U16,
    pub flags: U16,
    pub length: U32,
    pub crc: U32,
}

impl Header {
    /// The checksum of this header and the covered part of its body.
    pub(super) fn checksum(&self, covered: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.as_bytes()[..HEADER - size_of::<U32>()]);
        crc.update(covered);
        crc.finalize()
    }
}

/// The part of a greeting that never changes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct HelloPrefix {
    /// Newest protocol version that the sender speaks.
    pub newest: U16,
    /// Oldest one.
    pub oldest: U16,
    pub reserved: [u8; 4],
    /// Features that a receiver may ignore.
    pub compat: U64,
    /// Features without which a receiver must not go on.
    pub incompat: U64,
}

/// The rest of a greeting, before its names and lists.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct HelloRecord {
    pub group_id: [u8; 16],
    pub tail: U64,
    pub commit: U64,
    pub told_durable: U64,
    pub floor: U64,
    pub inconsistent_until: U64,
    pub journal_first: U64,
    pub chain: U32,
    pub epochs: U32,
    pub volumes: U32,
    /// 1 serving, 2 returning, 3 handed over, 4 mirror, 5 probe.
    pub stance: u8,
    /// 1 sync, 2 memsync, 3 async; so everywhere.
    pub ack: u8,
    /// [`HELLO_ALONE`], [`HELLO_INCONSISTENT`].
    pub flags: u8,
    pub group_len: u8,
    pub site_len: u8,
    pub to_site_len: u8,
    pub reserved: [u8; 6],
    /// The last epoch of a fork that was given up; nil if none.
    pub given_up: [u8; 16],
}

/// What version 2 appends to a greeting, behind its lists.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct HelloTail {
    /// The mixture that the sender holds and no epoch tells of yet; nil if none.
    pub mixture: [u8; 16],
    /// Its last operation that does not open an epoch.
    pub written: U64,
    /// [`HELLO_WRITTEN`].
    pub flags: u8,
    pub reserved: [u8; 7],
}

/// Flag of the end of a greeting: `written` is known.
pub(super) const HELLO_WRITTEN: u8 = 1;

/// Flag of a greeting: its sender acknowledges alone.
pub(super) const HELLO_ALONE: u8 = 1;
/// Flag of a greeting: `inconsistent_until` is present.
pub(super) const HELLO_INCONSISTENT: u8 = 2;

/// One epoch, before the name of its site.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct EpochRecord {
    pub number: U64,
    pub id: [u8; 16],
    pub first_lsn: U64,
    pub time_ns: U64,
    pub ack: u8,
    /// [`EPOCH_ALONE`], [`EPOCH_COMPLETE`], [`EPOCH_MIXTURE`].
    pub flags: u8,
    pub site_len: u8,
    pub reserved: [u8; 5],
}

/// Flag of an epoch: opened to serve alone.
pub(super) const EPOCH_ALONE: u8 = 1;
/// Flag of an epoch: opened by a site that held all the epoch before can have acknowledged in sync.
pub(super) const EPOCH_COMPLETE: u8 = 2;
/// Flag of an epoch: opened on homes in the middle of a copy.
pub(super) const EPOCH_MIXTURE: u8 = 4;

/// One volume, before its name.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct VolumeRecord {
    pub uuid: [u8; 16],
    pub size: U64,
    pub id: U32,
    pub name_len: u8,
    pub reserved: [u8; 3],
}

/// A refusal, before its text.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RefuseRecord {
    /// 1 incompatible, 2 wrong group, 3 unrelated, 4 both primary, 5 forked, 6 step down, 7 disagree, 8 busy,
    /// 9 following another site.
    pub refusal: u8,
    pub reserved: [u8; 3],
}

/// A full copy, before its lists.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct CopyRecord {
    pub group_id: [u8; 16],
    pub base: U64,
    pub time_ns: U64,
    pub reserved: [u8; 4],
    pub chain: U32,
    pub epochs: U32,
    pub volumes: U32,
    pub ack: u8,
    pub reserved_end: [u8; 7],
}

/// A handover.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct HandoverRecord {
    pub epoch_id: [u8; 16],
    pub lsn: U64,
}

/// Progress of a mirror.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct AckRecord {
    pub received: U64,
    pub durable: U64,
    pub applied: U64,
    pub credit_bytes: U64,
    pub inconsistent_until: U64,
    pub reserved: [u8; 12],
    /// [`ACK_INCONSISTENT`].
    pub flags: u8,
    pub reserved_end: [u8; 3],
}

/// Flag of an ack: `inconsistent_until` is present.
pub(super) const ACK_INCONSISTENT: u8 = 1;

/// Part of a copy, before its content.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ChunkRecord {
    pub offset: U64,
    /// Of the range; the content, if any, is as long.
    pub len: U64,
    pub volume: U32,
    /// CRC-32 of the content.
    pub crc: U32,
    /// [`CHUNK_DATA`].
    pub flags: u8,
    pub reserved: [u8; 7],
}

/// A question for a range's hash.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct CompareRecord {
    pub offset: U64,
    pub len: U64,
    pub volume: U32,
    /// [`COMPARE_MEDIUM`], [`COMPARE_CONTENT`].
    pub flags: u8,
    pub reserved: [u8; 3],
    pub lsn: U64,
}

/// Flag of a comparison: read from the medium.
pub(super) const COMPARE_MEDIUM: u8 = 1;
/// Flag of a comparison: answer with the content.
pub(super) const COMPARE_CONTENT: u8 = 2;

/// The answer to a comparison.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ComparedRecord {
    pub offset: U64,
    pub len: U64,
    pub volume: U32,
    /// [`COMPARED_UNREADABLE`].
    pub flags: u8,
    pub reserved: [u8; 3],
    /// BLAKE3 of the content.
    pub hash: [u8; 32],
}

/// Flag of an answer: the home could not be read, there is no hash.
pub(super) const COMPARED_UNREADABLE: u8 = 1;

/// The content of a range, before it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ContentRecord {
    /// As of a chunk.
    pub chunk: ChunkRecord,
    /// Blocks of 4 KiB that could not be read, the first in the lowest bit.
    pub unreadable: U64,
}

const _: () = assert!(size_of::<ContentRecord>() == 40);
// Each block of a chunk has its bit.
const _: () = assert!(CHUNK_BYTES <= 64 * BLOCK as u64);

/// A volume and the size it shall have.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct GrowRecord {
    pub size: U64,
    pub volume: U32,
    pub reserved: [u8; 4],
}

const _: () = assert!(size_of::<GrowRecord>() == 16);
const _: () = assert!(size_of::<CompareRecord>() == 32);
const _: () = assert!(size_of::<ComparedRecord>() == 56);

/// Flag of a chunk: content follows; else the range is zeroes.
pub(super) const CHUNK_DATA: u8 = 1;

const _: () = assert!(size_of::<Header>() == HEADER);
const _: () = assert!(size_of::<HelloPrefix>() == 24);
const _: () = assert!(size_of::<HelloRecord>() == 104);
const _: () = assert!(size_of::<HelloTail>() == 32);
const _: () = assert!(size_of::<EpochRecord>() == 48);
const _: () = assert!(size_of::<VolumeRecord>() == 32);
const _: () = assert!(size_of::<RefuseRecord>() == 4);
const _: () = assert!(size_of::<CopyRecord>() == 56);
const _: () = assert!(size_of::<HandoverRecord>() == 24);
const _: () = assert!(size_of::<AckRecord>() == 56);
const _: () = assert!(size_of::<ChunkRecord>() == 32);
