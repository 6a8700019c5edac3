//! Do the checks bite? Every rule that can be switched off is, and within so many seeds a check must notice.

use std::time::Instant;

use super::plan::Plan;
use super::{quietly, run};
use crate::base::sabotage::Sabotage::{self, *};

/// So many seeds are tried for each.
const SEEDS: u64 = 400;

/// The mistake, and the seed to begin with.
///
/// Not in it are two that no world can notice as long as every other rule holds, and that are tested for themselves:
/// `SkipChecksumChain` (an LSN of an epoch is used once and by one site, so a frame of the right epoch at the right LSN follows
/// the right one) and `AcceptOldEpochs` (an old primary speaks on a link that nobody follows any more).
const TABLE: [(Sabotage, u64); 44] = [
    (LeaveTheFence, 980_000_007_715),
    (AcknowledgeBeforeDurable, 3),
    (AcknowledgeBeforePeer, 0),
    (FlushBeforePeer, 0),
    (WaitForOnePeer, 1),
    (ForgetTheThird, 317),
    (HandToAnybody, 1026),
    (FollowAnybody, 441),
    (ConfirmBeforeDurable, 0),
    (ReceivedIsDurable, 0),
    (SkipPayloadChecksums, 137),
    (CompareEpochNumbers, 99),
    (ReuseLsns, 4),
    (ApplyUncommitted, 0),
    (ApplyBeforeDurable, 0),
    (ApplyOutOfOrder, 0),
    (ReadWithoutOverlay, 1),
    (ReadUncommitted, 0),
    (ReleaseBeforeCheckpoint, 223),
    (CheckpointBeforeSync, 3),
    (IgnoreFailedSync, 151),
    (IgnoreFailedJournalWrite, 25),
    (NoDsync, 0),
    (RecordNotDurable, 2),
    (SaveInOneSlot, 2),
    (PromoteWithoutTail, 31),
    (PromoteInconsistent, 6),
    (ServeWithoutAsking, 1),
    (GoAloneWithoutRecord, 4),
    (InSyncByInference, 1),
    (AdmitForTheDead, 170),
    (TurnBackFrameClock, 0),
    (UnboundedMemory, 59),
    (ForgetForks, 194),
    (ForgetLineage, 34),
    (ClearDirtyByInference, 67),
    (WriteBeforeKept, 257),
    (IgnoreHolds, 257),
    (CopyWithoutOverlay, 133),
    (CopyOnlyTheHome, 950_000_000_097),
    (CopyEndsEarly, 930_000_001_006),
    (IgnoreFloor, 12),
    (ConfirmBeforeSync, 940_000_000_709),
    (RememberOnlyTheOwn, 930_000_001_068),
];

/// The first seed that notices, and what it says.
fn noticed(sabotage: Sabotage, first: u64) -> Option<(u64, String)> {
    sabotage.during(|| {
        (first..first + SEEDS).find_map(|seed| {
            let report = quietly(|| run(Plan::draw(seed), false));
            report.violation.map(|text| (seed, text))
        })
    })
}

#[test]
fn every_mistake_is_noticed() {
    // Each thread has its own mistake.
    let (even, odd): (Vec<_>, Vec<_>) = TABLE.iter().enumerate().partition(|(n, _)| n % 2 == 0);
    let unnoticed = std::thread::scope(|scope| {
        let work = [even, odd].map(|part| scope.spawn(move || unnoticed_of(&part)));
        work.map(|part| part.join().expect("panics are caught"))
            .concat()
    });
    assert!(unnoticed.is_empty(), "nothing notices {unnoticed:?}");
}

fn unnoticed_of(part: &[(usize, &(Sabotage, u64))]) -> Vec<Sabotage> {
    // For who looks for better seeds.
    let only = std::env::var("SIM_ONLY").ok();
    let first = std::env::var("SIM_FIRST")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut unnoticed = Vec::new();
    for (_, (sabotage, known)) in part {
        if only
            .as_ref()
            .is_some_and(|only| *only != format!("{sabotage:?}"))
        {
            continue;
        }
        let start = Instant::now();
        match noticed(*sabotage, first.unwrap_or(*known)) {
            Some((seed, text)) => {
                let text: String = text.chars().take(150).collect();
                println!("{sabotage:?}: seed {seed}, {:?}: {text}", start.elapsed());
            }
            None => {
                println!("{sabotage:?}: unnoticed, {:?}", start.elapsed());
                unnoticed.push(*sabotage);
            }
        }
    }
    unnoticed
}
