//! Do the checks bite? Every rule that can be switched off is, and within so many seeds a check must notice.

use super::plan::Plan;
use super::{quietly, run};
use crate::base::sabotage::Sabotage::{self, *};

/// So many seeds are tried for each.
const SEEDS: u64 = 400;

/// The mistake, and the seed to begin with.
const TABLE: [(Sabotage, u64); 32] = [
    (AcknowledgeBeforeDurable, 0),
    (AcknowledgeBeforePeer, 0),
    (FlushBeforePeer, 0),
    (ConfirmBeforeDurable, 0),
    (ReceivedIsDurable, 0),
    (SkipPayloadChecksums, 0),
    (ForgetForks, 0),
    (CompareEpochNumbers, 0),
    (ReuseLsns, 0),
    (ApplyUncommitted, 0),
    (ApplyBeforeDurable, 0),
    (ApplyOutOfOrder, 0),
    (IgnoreHolds, 0),
    (ReadWithoutOverlay, 0),
    (ReadUncommitted, 0),
    (ReleaseBeforeCheckpoint, 0),
    (CheckpointBeforeSync, 0),
    (IgnoreFailedSync, 0),
    (IgnoreFailedJournalWrite, 0),
    (NoDsync, 0),
    (RecordNotDurable, 0),
    (PromoteWithoutTail, 0),
    (PromoteInconsistent, 0),
    (IgnoreFloor, 0),
    (ServeWithoutAsking, 0),
    (GoAloneWithoutRecord, 0),
    (InSyncByInference, 0),
    (CopyWithoutOverlay, 0),
    (CopyEndsEarly, 0),
    (AdmitForTheDead, 0),
    (TurnBackFrameClock, 0),
    (UnboundedMemory, 0),
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
    let mut unnoticed = Vec::new();
    for (sabotage, first) in TABLE {
        let start = std::time::Instant::now();
        match noticed(sabotage, first) {
            Some((seed, text)) => {
                let text: String = text.chars().take(150).collect();
                println!("{sabotage:?}: seed {seed}, {:?}: {text}", start.elapsed());
            }
            None => {
                println!("{sabotage:?}: unnoticed, {:?}", start.elapsed());
                unnoticed.push(sabotage);
            }
        }
    }
    assert!(unnoticed.is_empty(), "nothing notices {unnoticed:?}");
}
