//! Do the checks bite? Every rule that can be switched off is, and within so many seeds a check must notice.

use std::time::Instant;

use super::plan::Plan;
use super::{quietly, run};
use crate::base::sabotage::Sabotage::{self, *};

/// So many seeds are tried for each, of worlds that have a third site if the mistake is about that.
const SEEDS: usize = 400;

/// The mistake, and the seed to begin with.
///
/// Not in it are `AwaitWhatCame` and `CopyOnlyTheHome`, for which volumes would have to be large (they have tests among the
/// copies), `HandToAnybody` and `FollowAnybody`, for which a third site has to come at one moment (see below), `LeaveTheFence`,
/// for which a disk has to fail in the middle of a promotion (a test of the core), and two that no world can notice as long as
/// every other rule holds, and that are tested for themselves: `SkipChecksumChain` (an LSN of an epoch is used once and by one
/// site, so a frame of the right epoch at the right LSN follows the right one) and `AcceptOldEpochs` (an old primary speaks on a
/// link that nobody follows any more).
const TABLE: [(Sabotage, u64); 41] = [
    (AcknowledgeBeforeDurable, 3),
    (AcknowledgeBeforePeer, 0),
    (FlushBeforePeer, 0),
    (WaitForOnePeer, 1),
    (ForgetTheThird, 317),
    (ConfirmBeforeDurable, 0),
    (ReceivedIsDurable, 0),
    (SkipPayloadChecksums, 461),
    (CompareEpochNumbers, 99),
    (ReuseLsns, 25),
    (ApplyUncommitted, 0),
    (ApplyBeforeDurable, 0),
    (ApplyOutOfOrder, 0),
    (ReadWithoutOverlay, 1),
    (ReadUncommitted, 0),
    (ReleaseBeforeCheckpoint, 267),
    (CheckpointBeforeSync, 13),
    (IgnoreFailedSync, 151),
    (IgnoreFailedJournalWrite, 71),
    (NoDsync, 0),
    (RecordNotDurable, 2),
    (SaveInOneSlot, 2),
    (PromoteWithoutTail, 105),
    (PromoteInconsistent, 38),
    (ServeWithoutAsking, 1),
    (GoAloneWithoutRecord, 4),
    (InSyncByInference, 1),
    (AdmitForTheDead, 212),
    (TurnBackFrameClock, 0),
    (UnboundedMemory, 64),
    (ForgetForks, 660),
    (ForgetLineage, 37),
    (ClearDirtyByInference, 203),
    (WriteBeforeKept, 257),
    (IgnoreHolds, 3_066),
    (CopyWithoutOverlay, 133),
    (AwaitWhatWasAsked, 930_000_000_924),
    (CopyEndsEarly, 133),
    (IgnoreFloor, 87),
    (ConfirmBeforeSync, 940_000_002_591),
    (RememberOnlyTheOwn, 931_000_000_176),
];

/// The first seed that notices, and what it says.
fn noticed(sabotage: Sabotage, first: u64) -> Option<(u64, String)> {
    let of_three = matches!(sabotage, WaitForOnePeer | ForgetTheThird);
    let plans = (first..).map(|seed| (seed, Plan::draw(seed)));
    let mut plans = plans.filter(|(_, plan)| !of_three || plan.sites > 2);
    sabotage.during(|| {
        plans.by_ref().take(SEEDS).find_map(|(seed, plan)| {
            let report = quietly(|| run(plan, false));
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

#[test]
fn mistakes_about_a_third_site_are_noticed_where_it_comes_at_the_worst_moment() {
    use crate::engine::tests::three;
    let tests: [(Sabotage, fn()); 2] = [
        (
            HandToAnybody,
            three::who_was_handed_to_another_site_is_no_reason_to_promote_a_third,
        ),
        (
            FollowAnybody,
            three::a_mirror_that_follows_one_primary_is_not_taken_by_another,
        ),
    ];
    for (sabotage, test) in tests {
        let noticed = quietly(|| sabotage.during(|| std::panic::catch_unwind(test)));
        assert!(noticed.is_err(), "nothing notices {sabotage:?}");
    }
}
