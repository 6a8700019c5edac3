//! What two sites say to each other. `core` gives it meaning, `link` gives it bytes.

use bytes::Bytes;
use uuid::Uuid;

use super::{AckMode, ByteRange, ChunkSet, Lineage, Lsn, Verified, VolumeId, VolumeSpec};

/// What a site is for a group at the moment it introduces itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stance {
    /// Primary, serving clients in an epoch it opened.
    Serving,
    /// Primary by its record, not serving yet: it wants to learn whether it still may.
    Returning,
    /// It handed the group over to the other side and waits for that to be taken.
    HandedOver,
    /// Mirror.
    Mirror,
    /// Only asks (before a promotion); never streams.
    Probe,
}

/// First message of both sides of a link: who I am and how far my history goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Identity of the group; nil while a new site has none yet.
    pub group_id: Uuid,
    /// Name of the group.
    pub group: String,
    /// Name of the sending site.
    pub site: String,
    /// Name of the site it means to talk to.
    pub to_site: String,
    /// What the sender is.
    pub stance: Stance,
    /// The sender's epochs.
    pub lineage: Lineage,
    /// Last LSN in the sender's journal.
    pub tail: Lsn,
    /// Highest LSN the sender knows to be committed.
    pub commit: Lsn,
    /// Checksum of the frame that ends at `tail` (0 before the first frame).
    pub chain: u32,
    /// Highest LSN the sender was told is durable at the receiver.
    pub told_durable: Lsn,
    /// The sender's own highest LSN it ever held durable; above `tail` after its disk lost history.
    pub floor: Lsn,
    /// `Some(X)` while the sender's homes are not a prefix of any history: consistent once X is durable.
    pub inconsistent_until: Option<Lsn>,
    /// The sender acknowledges alone (its durable record says so).
    pub alone: bool,
    /// The sender's acknowledgement mode.
    pub ack: AckMode,
    /// The sender's volumes.
    pub volumes: Vec<VolumeSpec>,
    /// Oldest LSN the sender's journal can still stream; `tail + 1` if none.
    pub journal_first: Lsn,
    /// The last epoch of a fork that an operator gave up, on whichever side it is; nil if none.
    pub given_up: Uuid,
    /// The sender was promoted in the middle of a copy and has not opened its epoch yet: its content is a mixture of which no
    /// epoch tells. Names the fork that this is; nil if none.
    pub mixture: Uuid,
    /// No operation of the sender after this LSN does anything but open an epoch. `None` if it cannot say: then there may be some.
    pub written: Option<Lsn>,
}

/// Why a link is refused. The text that goes with it is for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Versions or feature bits that this side does not know.
    Incompatible,
    /// No such group here, or another group of the same name, or not one of its peers.
    WrongGroup,
    /// Both sides have a history and share no epoch.
    Unrelated,
    /// Both sides serve as primary.
    BothPrimary,
    /// Both sides went on after their last common LSN.
    Forked,
    /// This side serves and the other, by its record primary, must become its mirror.
    StepDown,
    /// The sides disagree on something that an operator must settle (see the text).
    Disagree,
    /// Not now: busy or starting; try again.
    Busy,
    /// This side follows another site, of which it has heard a moment ago; try again.
    Following,
    /// The operator of this side cut the link.
    Cut,
    /// A disk of this side failed for this group.
    Fenced,
    /// A disk of this side has no room for what it is sent.
    NoSpace,
}

/// What the connecting side proposes after both greetings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Start {
    /// Frames follow from this LSN on; the mirror drops its own tail from there.
    Stream {
        /// LSN of the first frame that will be sent.
        from: Lsn,
    },
    /// The returning primary asks for the mirror's longer tail, from this LSN on.
    Fetch {
        /// First LSN wanted.
        from: Lsn,
    },
    /// A full copy: the mirror forgets everything and becomes inconsistent until the copy ends.
    Copy {
        /// The group's identity.
        group_id: Uuid,
        /// Frames follow from the LSN after this one; the copied content is as of this LSN or later.
        base: Lsn,
        /// Checksum of the frame that ends at `base`.
        chain: u32,
        /// The epochs up to `base`.
        lineage: Lineage,
        /// The volumes as of `base`.
        volumes: Vec<VolumeSpec>,
        /// Acknowledgement mode.
        ack: AckMode,
        /// The sender's frame clock: no earlier than the frame that ends at `base`, which the mirror never sees.
        /// Nanoseconds since 1970.
        time_ns: u64,
    },
    /// The sender handed the group over at this point; the receiver takes the role.
    Handover {
        /// Last epoch of the sender.
        epoch_id: Uuid,
        /// Last LSN of the sender; the receiver has it.
        lsn: Lsn,
    },
}

/// One message of the link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Introduction; first message of each side.
    Hello(Box<Hello>),
    /// The link ends here; why.
    Refuse {
        /// For the program.
        refusal: Refusal,
        /// For people.
        text: String,
    },
    /// The connecting side's proposal.
    Start(Box<Start>),
    /// The accepting side agreed, did what it had to (durably) and is ready.
    Started,
    /// A frame, exactly as it lies in the journal.
    Frame(Bytes),
    /// The mirror's progress, cumulative.
    Ack {
        /// Contiguous and validated in memory up to here.
        received: Lsn,
        /// Durable in the journal up to here.
        durable: Lsn,
        /// In the homes up to here.
        applied: Lsn,
        /// Free bytes the mirror can still promise for allocating writes (`u64::MAX` if unlimited).
        credit_bytes: u64,
        /// `Some` while the mirror's homes are not a prefix of the history.
        inconsistent_until: Option<Lsn>,
    },
    /// The commit LSN moved while there was no frame to carry it.
    Commit {
        /// Everything up to it is committed.
        lsn: Lsn,
    },
    /// Are you there? Answered by `Pong` with the same token, by the thread that does the work.
    Ping {
        /// Echoed.
        token: u64,
    },
    /// Answer to `Ping`.
    Pong {
        /// From the ping.
        token: u64,
    },
    /// Part of a full copy: the content of a range as of the point in the stream where it stands.
    Chunk {
        /// Volume.
        volume: VolumeId,
        /// Range within the volume.
        range: ByteRange,
        /// Content; `None` for zeroes.
        data: Option<Bytes>,
        /// CRC-32 of the content (0 for zeroes).
        crc: u32,
    },
    /// The chunks that a copy is about. The primary says before it proposes one which it knows of; the mirror adds what its
    /// homes may hold, or lack, beside the history that both sides share, and says before `Started` which that makes in all.
    /// They are on its record by then.
    Touched {
        /// The chunks.
        chunks: ChunkSet,
    },
    /// These chunks of a copy were found to be the same or were sent, as of an LSN that is committed and was sent before.
    /// The mirror takes them off its record once it holds all that durably.
    Confirmed {
        /// The chunks.
        chunks: ChunkSet,
    },
    /// So much of what was sent as chunks is in the homes now, since this was last said. Its sender has only so much under way.
    Placed {
        /// Bytes of the ranges.
        bytes: u64,
    },
    /// What is the content of this range right after the frame that ends at this LSN?
    Compare {
        /// Volume.
        volume: VolumeId,
        /// Range within the volume.
        range: ByteRange,
        /// The LSN. Frames up to it were sent or will be; none after it was.
        lsn: Lsn,
        /// Read what is in the home from the medium, past every cache.
        medium: bool,
        /// Answer with the content, not with its hash.
        content: bool,
    },
    /// Answer to `Compare`, once for each, in any order.
    Compared {
        /// Volume.
        volume: VolumeId,
        /// Range within the volume.
        range: ByteRange,
        /// BLAKE3 of the content; `None` if the home could not be read.
        hash: Option<[u8; 32]>,
    },
    /// Answer to a `Compare` that asks for the content.
    Content {
        /// Volume.
        volume: VolumeId,
        /// Range within the volume.
        range: ByteRange,
        /// Content; `None` for zeroes.
        data: Option<Bytes>,
        /// Blocks of 4 KiB that could not be read, the first of the range in the lowest bit; they are zeroes in `data`.
        unreadable: u64,
        /// CRC-32 of the content (0 for zeroes).
        crc: u32,
    },
    /// What the primary knows of verifications: the mirror keeps it for the time when it is primary.
    Verified(Box<Verified>),
    /// Can the home of this volume grow to this size?
    CanGrow {
        /// Volume.
        volume: VolumeId,
        /// The new size in bytes.
        size: u64,
    },
    /// Answer to `CanGrow`.
    MayGrow {
        /// Volume.
        volume: VolumeId,
        /// The size that was asked for, bytes.
        size: u64,
        /// Why it cannot; empty if it can.
        refusal: String,
    },
    /// The full copy is complete; the mirror is consistent once this LSN is durable and applied.
    ChunksEnd {
        /// The LSN.
        lsn: Lsn,
    },
    /// End of a fetched tail.
    FetchEnd {
        /// The tail's last LSN.
        tail: Lsn,
    },
    /// The receiver of a handover opened its epoch durably; the sender is its mirror now.
    Taken,
    /// The sender closes the link on purpose (stop, demotion, operator).
    Bye {
        /// For people.
        reason: String,
    },
}
