//! Deliberate mistakes, for the tests only: each switches one rule off, and some test must notice. What notices nothing
//! proves nothing.

use std::cell::Cell;

/// One rule that is broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Sabotage {
    /// The primary counts as durable what it has only assigned.
    AcknowledgeBeforeDurable,
    /// Acknowledgements do not wait for the peer.
    AcknowledgeBeforePeer,
    /// A fenced site goes on with what it was about to become.
    LeaveTheFence,
    /// Acknowledgements wait for one of several peers.
    WaitForOnePeer,
    /// Who took the role over does not wait for the third site.
    ForgetTheThird,
    /// A role that was handed to one peer is brought to every peer.
    HandToAnybody,
    /// A mirror takes whoever greets it last for its primary.
    FollowAnybody,
    /// A flush is answered once it is committed.
    FlushBeforePeer,
    /// A mirror confirms what it has only received.
    ConfirmBeforeDurable,
    /// What a mirror has received counts as durable there.
    ReceivedIsDurable,
    /// Recovery does not check the payloads of frames.
    SkipPayloadChecksums,
    /// Whoever has gone on gives way, whatever it has acknowledged.
    ForgetForks,
    /// Epochs of the same number count as the same epoch.
    CompareEpochNumbers,
    /// Two histories count as one as far as both reach.
    ForgetLineage,
    /// A restarted primary goes on in its old epoch.
    ReuseLsns,
    /// Homes hold what is not committed.
    ApplyUncommitted,
    /// Homes hold what is committed and not durable here.
    ApplyBeforeDurable,
    /// Applies to the same place run beside each other.
    ApplyOutOfOrder,
    /// Applies touch what a copy is reading or writing.
    IgnoreHolds,
    /// A copy leaves out what is not applied yet.
    CopyWithoutOverlay,
    /// The same only of a chunk that the open frame covers a part of.
    CopyOnlyTheHome,
    /// What follows a chunk of a copy in the stream is left out, as is what comes before it.
    AwaitWhatCame,
    /// The same of a chunk that was asked about.
    AwaitWhatWasAsked,
    /// What was copied is off the record of what is missing before it is durable.
    ConfirmBeforeSync,
    /// The record of what a copy is to bring lacks what its primary knows of.
    RememberOnlyTheOwn,
    /// A copy counts as complete while chunks are still being written.
    CopyEndsEarly,
    /// What a peer lacks is forgotten once a copy is proposed to it, before it has confirmed anything.
    ClearDirtyByInference,
    /// A home is written to in the middle of a copy before its old content is kept.
    WriteBeforeKept,
    /// A site whose disk lost history goes on as if nothing had happened.
    IgnoreFloor,
    /// Frames need not follow the one before.
    SkipChecksumChain,
    /// A mirror takes frames of any epoch that it knows.
    AcceptOldEpochs,
    /// Reads do not look at the overlay.
    ReadWithoutOverlay,
    /// Reads are not held until what they show is committed.
    ReadUncommitted,
    /// The journal gives back what is applied and not yet durable in the homes.
    ReleaseBeforeCheckpoint,
    /// A checkpoint is recorded before the homes are synced.
    CheckpointBeforeSync,
    /// A failed sync of a home counts as done, as it does for who tries it again: the second finds nothing left to write.
    IgnoreFailedSync,
    /// A failed write to the journal counts as done.
    IgnoreFailedJournalWrite,
    /// Writes to the journal are not durable when they complete.
    NoDsync,
    /// The record of state is not durable when its write completes.
    RecordNotDurable,
    /// The record of state counts as saved once one slot holds it.
    SaveInOneSlot,
    /// A promoted mirror drops what it does not know to be committed.
    PromoteWithoutTail,
    /// A mirror in the middle of a copy is promoted without a word.
    PromoteInconsistent,
    /// A restarted primary serves without asking its peer.
    ServeWithoutAsking,
    /// A lost peer is not waited for any more, without a record of it.
    GoAloneWithoutRecord,
    /// A peer counts as in sync before it has confirmed anything.
    InSyncByInference,
    /// What a client asked is admitted after it has gone.
    AdmitForTheDead,
    /// The frame clock follows the wall clock back.
    TurnBackFrameClock,
    /// Operations are admitted however many wait to be applied.
    UnboundedMemory,
}

thread_local! {
    static NOW: Cell<Option<Sabotage>> = const { Cell::new(None) };
}

/// Whether this rule is broken now, in this thread.
pub fn sabotaged(rule: Sabotage) -> bool {
    NOW.get() == Some(rule)
}

impl Sabotage {
    /// Breaks the rule for as long as `call` runs; a panic ends it, too.
    pub fn during<T>(self, call: impl FnOnce() -> T) -> T {
        struct Mend;
        impl Drop for Mend {
            fn drop(&mut self) {
                NOW.set(None);
            }
        }
        NOW.set(Some(self));
        let _mend = Mend;
        call()
    }
}
