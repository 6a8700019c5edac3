//! The handshake's truth table: what two sites do with each other, given what both said in their greetings.
//!
//! [`decide`] is a pure function of the two greetings, connecting side first. Both sides call it with the same
//! arguments, so they cannot disagree about the outcome; there is exactly one for every pair.
//!
//! | connecting \ accepting | mirror | serving | returning | handed over |
//! | --- | --- | --- | --- | --- |
//! | serving | stream, copy, forked | both primary | acceptor steps down, forked | acceptor steps down, forked |
//! | returning | stream, fetch, copy, forked | initiator steps down, forked | by lineage | acceptor steps down, forked |
//! | handed over | handover | initiator steps down, forked | initiator steps down, forked | disagree |
//! | probe | probe | probe | probe | probe |
//! | mirror | disagree | disagree | disagree | disagree |
//!
//! With more than two sites the same table holds for each pair. Mirrors never greet each other, except to ask (probe) before
//! a promotion: only who is or wants to be primary opens links. A mirror has one primary at a time: while it follows one, it
//! answers the greeting of another with 'not now' (`Refusal::Following`), which is no outcome of this table. What a third
//! site wrote is judged by its epochs: whether acknowledgements waited for the one that goes on.

use uuid::Uuid;

#[cfg(test)]
use crate::base::sabotage::{Sabotage, sabotaged};
use crate::base::{AckMode, Common, Epoch, Hello, Lsn, Stance};

/// What follows from two greetings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Frames go from the connecting side to the accepting mirror, from this LSN on. The mirror first drops its
    /// own tail from there, which is not committed.
    Stream {
        /// First LSN to send.
        from: Lsn,
    },
    /// The mirror's tail is longer and of the same history: the returning primary takes it over first.
    Fetch {
        /// First LSN wanted.
        from: Lsn,
    },
    /// The mirror needs chunks of the volumes besides the journal's frames: of all that changed after this LSN.
    Copy {
        /// Last LSN of the history that both share.
        shared: Lsn,
    },
    /// The mirror takes the role that was handed to it.
    Handover,
    /// The connecting side becomes a mirror of the accepting one.
    InitiatorStepsDown,
    /// The accepting side becomes a mirror of the connecting one.
    AcceptorStepsDown,
    /// Both serve.
    BothPrimary,
    /// Both went on after the last LSN they share, and what one would lose was or may have been acknowledged.
    Forked {
        /// The last LSN they share.
        common: Lsn,
    },
    /// Two histories without a shared epoch.
    Unrelated,
    /// Not the same group, or not the site that was meant.
    WrongGroup(String),
    /// Nothing the sites may settle by themselves.
    Disagree(String),
    /// The connecting side only asked.
    Probe,
}

/// Tells what the site that connected (`init`) and the site that accepted (`acc`) do.
pub fn decide(init: &Hello, acc: &Hello) -> Outcome {
    if let Some(text) = wrong_group(init, acc) {
        return Outcome::WrongGroup(text);
    }
    if init.stance == Stance::Probe {
        return Outcome::Probe;
    }
    let Some(common) = init.lineage.common(init.tail, &acc.lineage, acc.tail) else {
        return Outcome::Unrelated;
    };
    let keep = common.lsn();
    if let Some(text) = volumes_differ(init, acc, keep) {
        return Outcome::Disagree(text);
    }
    let init_steps_down = || steps_down(init, acc, keep, Outcome::InitiatorStepsDown);
    let acc_steps_down = || steps_down(acc, init, keep, Outcome::AcceptorStepsDown);
    match (init.stance, acc.stance) {
        (Stance::Mirror | Stance::Probe, _) | (_, Stance::Probe) => {
            Outcome::Disagree("a mirror does not open links; only a primary does".into())
        }
        (Stance::Serving, Stance::Serving) => Outcome::BothPrimary,
        (Stance::Returning | Stance::HandedOver, Stance::Serving) => init_steps_down(),
        (Stance::Serving, Stance::Returning | Stance::HandedOver)
        | (Stance::Returning, Stance::HandedOver) => acc_steps_down(),
        (Stance::HandedOver, Stance::Returning) => init_steps_down(),
        (Stance::Returning, Stance::Returning) => match (common.i_went_on, common.they_went_on) {
            (true, false) => acc_steps_down(),
            (false, true) => init_steps_down(),
            (true, true) if given_up(init, acc) => Outcome::InitiatorStepsDown,
            (true, true) if given_up(acc, init) => Outcome::AcceptorStepsDown,
            (true, true) => match [init, acc].map(|side| wrote_nothing_after(side, keep)) {
                [true, false] => init_steps_down(),
                [false, true] => acc_steps_down(),
                // Nobody has anything to lose: both say the same of whose epoch stays.
                [true, true] if stays(init) > stays(acc) => acc_steps_down(),
                [true, true] => init_steps_down(),
                [false, false] => Outcome::Forked { common: keep },
            },
            (false, false) if !init.mixture.is_nil() && !given_up(acc, init) => init_steps_down(),
            (false, false) if !acc.mixture.is_nil() && !given_up(init, acc) => acc_steps_down(),
            (false, false) if !init.mixture.is_nil() => acc_steps_down(),
            (false, false) if !acc.mixture.is_nil() => init_steps_down(),
            // The one that wrote last, or was to write next.
            (false, false) => match acc.lineage.last().map(|e| &e.site) {
                Some(site) if *site == init.site => acc_steps_down(),
                Some(site) if *site == acc.site => init_steps_down(),
                _ => Outcome::Disagree(
                    "both sites are primary by their records and neither has gone on; demote one of them".into(),
                ),
            },
        },
        (Stance::HandedOver, Stance::HandedOver) => Outcome::Disagree(
            "each site handed the group over to the other; promote one of them".into(),
        ),
        (Stance::HandedOver, Stance::Mirror) => handover(init, acc, common),
        (Stance::Serving | Stance::Returning, Stance::Mirror) => to_mirror(init, acc, common),
    }
}

/// Of two that wrote nothing, the one with the later epoch goes on.
fn stays(side: &Hello) -> Option<(u64, Uuid)> {
    side.lineage.last().map(|e| (e.number, e.id))
}

fn wrong_group(init: &Hello, acc: &Hello) -> Option<String> {
    if init.group != acc.group {
        return Some(format!(
            "{} speaks of group '{}', {} of '{}'",
            init.site, init.group, acc.site, acc.group
        ));
    }
    if init.to_site != acc.site {
        return Some(format!(
            "{} looks for site '{}' and reached '{}'; check the peer's address in its configuration",
            init.site, init.to_site, acc.site
        ));
    }
    let both_known = !init.group_id.is_nil() && !acc.group_id.is_nil();
    if both_known && init.group_id != acc.group_id {
        return Some(format!(
            "group '{}' of {} has the id {}, that of {} has {}: they were created separately. Empty the site whose content \
             does not count (stop it, move the group's folder in its data directory away), set role = \"mirror\" there, and \
             start it: it gets a copy",
            init.group, init.site, init.group_id, acc.site, acc.group_id
        ));
    }
    None
}

/// Volumes of the history that both share are the same. If both went on, those of the same number may have been made by each
/// after it: that is part of a fork, as everything else that they wrote since. Where only one did, the other one has but
/// volumes of the shared history, and that gives a number once.
fn volumes_differ(init: &Hello, acc: &Hello, keep: Lsn) -> Option<String> {
    let went_on = |side: &Hello| side.tail.max(side.floor) > keep;
    // The volumes in the middle of a copy are as of a later LSN than its tail may be, and are replaced by the next one.
    let copying = |side: &Hello| side.inconsistent_until.is_some();
    if went_on(init) && went_on(acc) || copying(init) || copying(acc) {
        return None;
    }
    for theirs in &acc.volumes {
        let Some(mine) = init.volumes.iter().find(|v| v.id == theirs.id) else {
            continue;
        };
        // The sizes may differ while the operation that grows it is on its way.
        if mine.uuid != theirs.uuid {
            return Some(format!(
                "volume {} is '{}' ({}, {} bytes) on {} and '{}' ({}, {} bytes) on {}",
                mine.id.0,
                mine.name,
                mine.uuid,
                mine.size,
                init.site,
                theirs.name,
                theirs.uuid,
                theirs.size,
                acc.site
            ));
        }
    }
    None
}

/// Whether the side with this greeting may drop its history after `keep`, because nothing there was acknowledged.
///
/// What is committed may have been acknowledged. Beyond the commit LSN that it wrote down there may be more; that depends on
/// who wrote it and for whom its acknowledgements waited, not on the role that the side has now: a demotion gives nothing up.
fn may_drop_after(side: &Hello, winner: &Hello, keep: Lsn) -> bool {
    #[cfg(test)]
    if sabotaged(Sabotage::ForgetForks) {
        return true;
    }
    // What its disk lost it once held, and may have acknowledged.
    let end = side.tail.max(side.floor);
    let keep = if end > side.tail {
        let shared = side.lineage.common(end, &winner.lineage, winner.tail);
        shared.map_or(keep, Common::lsn)
    } else {
        keep
    };
    if end <= keep {
        return true;
    }
    if wrote_nothing_after(side, keep) {
        return true;
    }
    if side.commit > keep {
        return false;
    }
    let epochs = side.lineage.epochs();
    let ends = |at: usize| epochs.get(at + 1).map_or(end, |e| e.first_lsn.prev());
    epochs
        .iter()
        .enumerate()
        .filter(|(at, _)| ends(*at) > keep)
        .all(|(_, epoch)| is_unacknowledged(epoch, side, winner, keep))
}

/// Whether this side knows, of all that it ever held after `keep`, that it only opened epochs: nobody was told of that.
fn wrote_nothing_after(side: &Hello, keep: Lsn) -> bool {
    side.floor <= side.tail && side.written.is_some_and(|written| written <= keep)
}

/// Whether nothing that this epoch wrote after `keep`, and that is not on record as committed, was acknowledged.
///
/// Whatever was acknowledged in sync with the winner the winner has. In `sync` mode that needs no more proof; in `memsync`
/// the one who went on must say that its memory was not lost in between, also of what it wrote itself.
fn is_unacknowledged(epoch: &Epoch, side: &Hello, winner: &Hello, keep: Lsn) -> bool {
    let kept_its_memory = || next_epoch(side, winner).is_some_and(|next| next.complete);
    // In the other modes its own journal holds whatever it acknowledged.
    if epoch.site == winner.site {
        return epoch.ack != AckMode::Memsync || kept_its_memory();
    }
    let without_winner = if epoch.site == side.site {
        // A third site took over first, and `alone` speaks of the winner only: then the epoch tells of anybody.
        let third = next_epoch(side, winner).is_some_and(|next| is_third(next, side, winner));
        // The winner had confirmed more than it has now: its disk lost what was acknowledged.
        side.alone || third && epoch.alone || side.told_durable > keep
    } else {
        epoch.alone
    };
    !without_winner
        && match epoch.ack {
            AckMode::Sync => true,
            AckMode::Memsync => kept_its_memory(),
            AckMode::Async => false,
        }
}

/// The epoch in which the winner's history left this side's last one.
fn next_epoch<'a>(side: &Hello, winner: &'a Hello) -> Option<&'a Epoch> {
    winner.lineage.after(side.lineage.last()?.id)
}

fn is_third(epoch: &Epoch, one: &Hello, other: &Hello) -> bool {
    epoch.site != one.site && epoch.site != other.site
}

/// What names this side in an order to discard it: its last epoch, or the mixture of which no epoch tells yet.
pub(super) fn side_id(side: &Hello) -> Option<Uuid> {
    let untold = Some(side.mixture).filter(|id| !id.is_nil());
    untold.or(side.lineage.last().map(|e| e.id))
}

/// Whether an operator gave up what this side wrote in its last epoch. Said on either side.
fn given_up(side: &Hello, other: &Hello) -> bool {
    side_id(side).is_some_and(|id| id == side.given_up || id == other.given_up)
}

/// Whether the content of this side is a mixture that the other one does not share.
pub(super) fn mixes(side: &Hello, other: &Hello) -> bool {
    let unknown = |e: &Epoch| e.mixture && !other.lineage.contains(e.id);
    !side.mixture.is_nil() || side.lineage.epochs().iter().any(unknown)
}

/// Whether this side holds a whole copy, and the winner a mixture that pretends to continue its history. However the LSNs
/// compare, what is acknowledged may be nowhere else; that somebody promoted the mixture by force gave up nothing here.
fn is_whole_against_a_mixture(side: &Hello, winner: &Hello) -> bool {
    let whole = !side.lineage.is_empty() && side.inconsistent_until.is_none();
    whole && mixes(winner, side) && !mixes(side, winner)
}

/// This side becomes a mirror of the other, if nothing acknowledged is lost by it, or an operator gave it up.
fn steps_down(side: &Hello, winner: &Hello, keep: Lsn, outcome: Outcome) -> Outcome {
    let may = may_drop_after(side, winner, keep) && !is_whole_against_a_mixture(side, winner);
    if may || given_up(side, winner) {
        outcome
    } else {
        Outcome::Forked { common: keep }
    }
}

fn handover(init: &Hello, acc: &Hello, common: Common) -> Outcome {
    let same_end = acc.mixture.is_nil()
        && !common.i_went_on
        && !common.they_went_on
        && common.mine == common.theirs;
    if same_end && acc.inconsistent_until.is_none() {
        Outcome::Handover
    } else {
        Outcome::Disagree(format!(
            "{} handed the group over at LSN {}, but {} is at LSN {}; promote the site that has more",
            init.site, init.tail, acc.site, acc.tail
        ))
    }
}

fn to_mirror(init: &Hello, acc: &Hello, common: Common) -> Outcome {
    let shared = common.lsn();
    if is_whole_against_a_mixture(acc, init) {
        return if given_up(acc, init) {
            Outcome::Copy { shared }
        } else {
            Outcome::Forked { common: shared }
        };
    }
    if is_whole_against_a_mixture(init, acc) {
        // Never a stream: what its journal says its homes do not hold.
        return if may_drop_after(acc, init, shared) || given_up(acc, init) {
            Outcome::Copy { shared }
        } else {
            Outcome::Forked { common: shared }
        };
    }
    to_like_mirror(init, acc, common)
}

/// Of two that hold what their histories say, or neither does.
fn to_like_mirror(init: &Hello, acc: &Hello, common: Common) -> Outcome {
    let lost = acc.floor > acc.tail && !acc.lineage.is_empty();
    if lost && !may_drop_after(acc, init, common.lsn()) && !given_up(acc, init) {
        return Outcome::Forked {
            common: common.lsn(),
        };
    }
    // A copy that was cut off leaves nothing to build on, also if its end is known: what of it reached the homes is not.
    if acc.inconsistent_until.is_some() {
        return if init.inconsistent_until.is_some() {
            both_unusable(init, acc)
        } else {
            Outcome::Copy {
                shared: common.lsn(),
            }
        };
    }
    if acc.lineage.is_empty() {
        return stream_or_copy(init, Lsn::ZERO);
    }
    let mirror_has_more = common.theirs > common.mine || common.they_went_on;
    if !mirror_has_more {
        return stream_or_copy(init, common.theirs);
    }
    if common.i_went_on || init.stance == Stance::Serving {
        // The primary wrote on without the mirror's tail. What the mirror holds beyond must not be committed.
        let keep = common.lsn();
        return if may_drop_after(acc, init, keep) && acc.commit <= keep {
            stream_or_copy(init, common.lsn())
        } else if wrote_nothing_after(acc, keep) {
            // What is committed leaves a journal only by a copy, though there is nothing in it that would differ.
            Outcome::Copy {
                shared: common.lsn(),
            }
        } else if given_up(acc, init) {
            Outcome::Copy {
                shared: common.lsn(),
            }
        } else {
            Outcome::Forked {
                common: common.lsn(),
            }
        };
    }
    if common.mine > common.theirs && wrote_nothing_after(acc, common.lsn()) {
        return Outcome::Copy {
            shared: common.lsn(),
        };
    }
    if common.mine > common.theirs {
        // The mirror was primary in between, and this side holds a tail that it never saw.
        return Outcome::Forked {
            common: common.lsn(),
        };
    }
    if acc.journal_first > init.tail.next() {
        return Outcome::Disagree(format!(
            "{} has history up to LSN {} that {} (at LSN {}) lacks, but its journal begins at LSN {}; promote {}",
            acc.site, acc.tail, init.site, init.tail, acc.journal_first, acc.site
        ));
    }
    Outcome::Fetch {
        from: init.tail.next(),
    }
}

fn stream_or_copy(init: &Hello, have: Lsn) -> Outcome {
    if init.journal_first <= have.next() {
        Outcome::Stream { from: have.next() }
    } else {
        Outcome::Copy { shared: have }
    }
}

fn both_unusable(init: &Hello, acc: &Hello) -> Outcome {
    Outcome::Disagree(format!(
        "the homes of {} and of {} are both in the middle of a copy",
        init.site, acc.site
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Lineage;

    fn hello(stance: Stance, epochs: &[(u128, u64)], tail: u64, commit: u64) -> Hello {
        let (site, to) = ("a", "b");
        let epochs = epochs.iter().enumerate().map(|(i, &(id, first))| Epoch {
            number: i as u64 + 1,
            id: Uuid::from_u128(id),
            site: site.into(),
            first_lsn: Lsn(first),
            ack: AckMode::Sync,
            alone: false,
            complete: false,
            mixture: false,
            time_ns: 0,
        });
        Hello {
            group_id: Uuid::from_u128(7),
            group: "g".into(),
            site: site.into(),
            to_site: to.into(),
            stance,
            lineage: Lineage::new(epochs.collect()).unwrap(),
            tail: Lsn(tail),
            commit: Lsn(commit),
            chain: 0,
            told_durable: Lsn::ZERO,
            floor: Lsn::ZERO,
            inconsistent_until: None,
            alone: false,
            ack: AckMode::Sync,
            volumes: Vec::new(),
            journal_first: Lsn(1),
            given_up: Uuid::nil(),
            mixture: uuid::Uuid::nil(),
            written: None,
        }
    }

    fn accepting(stance: Stance, epochs: &[(u128, u64)], tail: u64, commit: u64) -> Hello {
        let mut hello = hello(stance, epochs, tail, commit);
        std::mem::swap(&mut hello.site, &mut hello.to_site);
        hello
    }

    const ONE: &[(u128, u64)] = &[(1, 1)];
    const TWO: &[(u128, u64)] = &[(1, 1), (2, 11)];

    #[test]
    fn a_mirror_behind_is_streamed_to_and_a_new_one_gets_all_of_it() {
        let init = hello(Stance::Serving, TWO, 20, 20);
        assert_eq!(
            decide(&init, &accepting(Stance::Mirror, ONE, 5, 5)),
            Outcome::Stream { from: Lsn(6) }
        );
        assert_eq!(
            decide(&init, &accepting(Stance::Mirror, &[], 0, 0)),
            Outcome::Stream { from: Lsn(1) }
        );
    }

    #[test]
    fn a_mirror_that_the_journal_no_longer_reaches_is_copied() {
        let mut init = hello(Stance::Serving, TWO, 20, 20);
        init.journal_first = Lsn(8);
        assert_eq!(
            decide(&init, &accepting(Stance::Mirror, ONE, 5, 5)),
            Outcome::Copy { shared: Lsn(5) }
        );
        assert_eq!(
            decide(&init, &accepting(Stance::Mirror, ONE, 7, 5)),
            Outcome::Stream { from: Lsn(8) }
        );
    }

    #[test]
    fn a_returning_primary_adopts_the_mirrors_longer_tail() {
        let init = hello(Stance::Returning, ONE, 8, 8);
        assert_eq!(
            decide(&init, &accepting(Stance::Mirror, ONE, 10, 8)),
            Outcome::Fetch { from: Lsn(9) }
        );
        assert_eq!(
            decide(&init, &accepting(Stance::Mirror, TWO, 11, 8)),
            Outcome::Fetch { from: Lsn(9) }
        );
    }

    #[test]
    fn a_mirrors_uncommitted_tail_gives_way_and_a_committed_one_is_a_fork() {
        let init = hello(Stance::Serving, TWO, 20, 20);
        assert_eq!(
            decide(&init, &accepting(Stance::Mirror, ONE, 12, 10)),
            Outcome::Stream { from: Lsn(11) }
        );
        assert_eq!(
            decide(&init, &accepting(Stance::Mirror, ONE, 12, 11)),
            Outcome::Forked { common: Lsn(10) }
        );
    }

    #[test]
    fn an_old_primary_steps_down_if_it_ran_in_sync_and_is_a_fork_otherwise() {
        let acc = accepting(Stance::Serving, TWO, 20, 20);
        let mut init = hello(Stance::Returning, ONE, 12, 10);
        assert_eq!(decide(&init, &acc), Outcome::InitiatorStepsDown);
        init.alone = true;
        assert_eq!(decide(&init, &acc), Outcome::Forked { common: Lsn(10) });
        init.alone = false;
        with_last(&mut init, |e| e.ack = AckMode::Memsync);
        assert_eq!(decide(&init, &acc), Outcome::Forked { common: Lsn(10) });
        let mut complete = acc.clone();
        let mut epochs = acc.lineage.epochs().to_vec();
        epochs[1].complete = true;
        complete.lineage = Lineage::new(epochs).unwrap();
        assert_eq!(decide(&init, &complete), Outcome::InitiatorStepsDown);
        with_last(&mut init, |e| e.ack = AckMode::Async);
        assert_eq!(
            decide(&init, &complete),
            Outcome::Forked { common: Lsn(10) }
        );
        init.tail = Lsn(10);
        assert_eq!(decide(&init, &acc), Outcome::InitiatorStepsDown);
    }

    /// Changes the last epoch of a lineage.
    fn with_last(hello: &mut Hello, change: impl Fn(&mut Epoch)) {
        let mut epochs = hello.lineage.epochs().to_vec();
        change(epochs.last_mut().unwrap());
        hello.lineage = Lineage::new(epochs).unwrap();
    }

    #[test]
    fn what_a_third_site_wrote_gives_way_only_if_it_waited_for_the_one_that_serves() {
        let init = hello(Stance::Serving, TWO, 20, 20);
        let of_a_third = |ack, alone| {
            let mut acc = accepting(Stance::Mirror, ONE, 12, 10);
            with_last(&mut acc, |e| {
                (e.site, e.ack, e.alone) = ("c".into(), ack, alone);
            });
            acc
        };
        let stream = Outcome::Stream { from: Lsn(11) };
        let fork = Outcome::Forked { common: Lsn(10) };
        assert_eq!(decide(&init, &of_a_third(AckMode::Sync, false)), stream);
        assert_eq!(decide(&init, &of_a_third(AckMode::Sync, true)), fork);
        assert_eq!(decide(&init, &of_a_third(AckMode::Async, false)), fork);
        // It had all of that in its memory, or not.
        assert_eq!(decide(&init, &of_a_third(AckMode::Memsync, false)), fork);
        let mut complete = init.clone();
        with_last(&mut complete, |e| e.complete = true);
        let memsync = of_a_third(AckMode::Memsync, false);
        assert_eq!(decide(&complete, &memsync), stream);
    }

    #[test]
    fn what_the_one_that_goes_on_wrote_itself_gives_way_unless_only_its_memory_held_it() {
        let init = hello(Stance::Serving, TWO, 20, 20);
        let mut complete = init.clone();
        with_last(&mut complete, |e| e.complete = true);
        let stream = Outcome::Stream { from: Lsn(11) };
        let fork = Outcome::Forked { common: Lsn(10) };
        for (ack, after_a_crash) in [
            (AckMode::Sync, &stream),
            (AckMode::Async, &stream),
            (AckMode::Memsync, &fork),
        ] {
            let mut acc = accepting(Stance::Mirror, ONE, 12, 10);
            with_last(&mut acc, |e| (e.ack, e.alone) = (ack, true));
            assert_eq!(decide(&init, &acc), *after_a_crash, "{ack:?}");
            assert_eq!(decide(&complete, &acc), stream, "{ack:?}");
        }
    }

    #[test]
    fn an_old_primary_that_went_without_anybody_waits_if_a_third_site_took_over() {
        let mut init = hello(Stance::Returning, ONE, 12, 10);
        with_last(&mut init, |e| e.alone = true);
        let mut acc = accepting(Stance::Serving, TWO, 20, 20);
        with_last(&mut acc, |e| e.site = "b".into());
        assert_eq!(decide(&init, &acc), Outcome::InitiatorStepsDown);
        with_last(&mut acc, |e| e.site = "c".into());
        assert_eq!(decide(&init, &acc), Outcome::Forked { common: Lsn(10) });
    }

    #[test]
    fn a_demotion_gives_nothing_up() {
        let init = hello(Stance::Serving, TWO, 20, 20);
        let mut acc = accepting(Stance::Mirror, ONE, 12, 10);
        with_last(&mut acc, |e| e.site = "b".into());
        assert_eq!(decide(&init, &acc), Outcome::Stream { from: Lsn(11) });
        acc.alone = true;
        assert_eq!(decide(&init, &acc), Outcome::Forked { common: Lsn(10) });
        // An operator did.
        acc.given_up = Uuid::from_u128(1);
        assert_eq!(decide(&init, &acc), Outcome::Copy { shared: Lsn(10) });
    }

    #[test]
    fn what_the_one_that_went_on_had_confirmed_and_lost_may_be_acknowledged() {
        let acc = accepting(Stance::Serving, TWO, 20, 20);
        let mut init = hello(Stance::Returning, ONE, 12, 10);
        init.told_durable = Lsn(10);
        assert_eq!(decide(&init, &acc), Outcome::InitiatorStepsDown);
        init.told_durable = Lsn(11);
        assert_eq!(decide(&init, &acc), Outcome::Forked { common: Lsn(10) });
    }

    #[test]
    fn of_two_primaries_by_record_with_one_history_the_one_that_wrote_it_stays() {
        let init = hello(Stance::Returning, ONE, 10, 10);
        let acc = accepting(Stance::Returning, ONE, 10, 10);
        assert_eq!(decide(&init, &acc), Outcome::AcceptorStepsDown);
        assert_eq!(decide(&acc, &init), Outcome::InitiatorStepsDown);
        let of_a_third = |mut hello: Hello| {
            with_last(&mut hello, |e| e.site = "c".into());
            hello
        };
        let outcome = decide(&of_a_third(init), &of_a_third(acc));
        assert!(matches!(outcome, Outcome::Disagree(_)), "{outcome:?}");
    }

    #[test]
    fn two_serving_sites_are_refused_whatever_their_histories() {
        let acc = accepting(Stance::Serving, TWO, 20, 20);
        assert_eq!(
            decide(&hello(Stance::Serving, ONE, 10, 10), &acc),
            Outcome::BothPrimary
        );
        assert_eq!(
            decide(&hello(Stance::Serving, TWO, 20, 20), &acc),
            Outcome::BothPrimary
        );
    }

    #[test]
    fn a_handover_is_taken_only_at_the_very_point_where_it_was_made() {
        let init = hello(Stance::HandedOver, ONE, 10, 10);
        assert_eq!(
            decide(&init, &accepting(Stance::Mirror, ONE, 10, 9)),
            Outcome::Handover
        );
        assert!(matches!(
            decide(&init, &accepting(Stance::Mirror, ONE, 9, 9)),
            Outcome::Disagree(_)
        ));
    }

    #[test]
    fn volumes_that_both_made_after_the_history_they_share_are_part_of_the_fork() {
        let mut init = hello(Stance::Returning, &[(1, 1), (3, 11)], 12, 12);
        let mut acc = accepting(Stance::Serving, TWO, 20, 20);
        let volume = |uuid| crate::base::VolumeSpec {
            id: crate::base::VolumeId(1),
            uuid: Uuid::from_u128(uuid),
            name: "x".into(),
            size: 4096,
        };
        (init.volumes, acc.volumes) = (vec![volume(1)], vec![volume(2)]);
        assert_eq!(decide(&init, &acc), Outcome::Forked { common: Lsn(10) });
        init.given_up = Uuid::from_u128(3);
        assert_eq!(decide(&init, &acc), Outcome::InitiatorStepsDown);
        // Of the history that both share they must be the same.
        let init = Hello {
            volumes: vec![volume(1)],
            ..hello(Stance::Returning, ONE, 10, 10)
        };
        let outcome = decide(&init, &acc);
        assert!(matches!(outcome, Outcome::Disagree(_)), "{outcome:?}");
        // What the disk lost of the own history may have made it.
        let init = Hello {
            floor: Lsn(12),
            ..init
        };
        let outcome = decide(&init, &acc);
        assert!(!matches!(outcome, Outcome::Disagree(_)), "{outcome:?}");
    }

    #[test]
    fn a_mixture_never_replaces_a_whole_copy_of_the_history_that_it_pretends_to_continue() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut mixture = hello(Stance::Serving, TWO, 20, 20);
        with_last(&mut mixture, |e| e.mixture = true);
        let fork = Outcome::Forked { common: Lsn(10) };
        let whole = |stance, tail| accepting(stance, ONE, tail, tail);
        // However far it got: what the mixture holds of it nobody knows.
        for tail in [5, 10, 12] {
            for stance in [Stance::Mirror, Stance::Returning] {
                let outcome = decide(&mixture, &whole(stance, tail));
                let common = Lsn(tail.min(10));
                assert_eq!(outcome, Outcome::Forked { common }, "{stance:?} {tail}");
            }
        }
        // An operator decides, in either direction.
        let mut decided = whole(Stance::Mirror, 10);
        decided.given_up = one;
        assert_eq!(
            decide(&mixture, &decided),
            Outcome::Copy { shared: Lsn(10) }
        );
        decided.stance = Stance::Returning;
        assert_eq!(decide(&mixture, &decided), Outcome::AcceptorStepsDown);
        let mut serving = hello(Stance::Serving, ONE, 10, 10);
        let mut demoted = accepting(Stance::Mirror, TWO, 20, 20);
        with_last(&mut demoted, |e| {
            e.mixture = true;
            e.site = "b".into();
        });
        assert_eq!(decide(&serving, &demoted), fork);
        serving.given_up = two;
        assert_eq!(
            decide(&serving, &demoted),
            Outcome::Copy { shared: Lsn(10) }
        );
        // Who holds the same mixture follows, and so does who holds nothing whole.
        let mut same = accepting(Stance::Mirror, TWO, 15, 15);
        with_last(&mut same, |e| e.mixture = true);
        assert_eq!(decide(&mixture, &same), Outcome::Stream { from: Lsn(16) });
        let mut unusable = whole(Stance::Mirror, 10);
        unusable.inconsistent_until = Some(Lsn(u64::MAX));
        assert_eq!(
            decide(&mixture, &unusable),
            Outcome::Copy { shared: Lsn(10) }
        );
    }

    #[test]
    fn a_mixture_of_which_no_epoch_tells_yet_is_one_all_the_same() {
        let mut mixture = hello(Stance::Returning, ONE, 10, 10);
        mixture.mixture = Uuid::from_u128(77);
        let fork = Outcome::Forked { common: Lsn(10) };
        let whole = |stance| accepting(stance, ONE, 10, 10);
        assert_eq!(decide(&mixture, &whole(Stance::Mirror)), fork);
        // Nobody wrote to it yet: where the whole copy can serve, it does.
        for stance in [Stance::Returning, Stance::Serving] {
            let outcome = decide(&mixture, &whole(stance));
            assert_eq!(outcome, Outcome::InitiatorStepsDown, "{stance:?}");
        }
        // It gives way to a whole copy, and is compared then; an order names it, not the epoch that both share.
        let serving = hello(Stance::Serving, ONE, 10, 10);
        let mut demoted = accepting(Stance::Mirror, ONE, 10, 10);
        demoted.mixture = mixture.mixture;
        let copy = Outcome::Copy { shared: Lsn(10) };
        assert_eq!(decide(&serving, &demoted), copy);
        let mut returning = accepting(Stance::Returning, ONE, 10, 10);
        returning.given_up = mixture.mixture;
        assert_eq!(decide(&mixture, &returning), Outcome::InitiatorStepsDown);
        returning.given_up = Uuid::from_u128(1);
        assert_eq!(decide(&mixture, &returning), Outcome::AcceptorStepsDown);
    }

    #[test]
    fn who_only_opened_epochs_gives_way_if_it_knows_that() {
        let acc = accepting(Stance::Serving, TWO, 20, 20);
        let mut init = hello(Stance::Returning, &[(1, 1), (3, 11)], 11, 11);
        init.alone = true;
        let fork = Outcome::Forked { common: Lsn(10) };
        assert_eq!(decide(&init, &acc), fork, "it does not say");
        init.written = Some(Lsn(11));
        assert_eq!(decide(&init, &acc), fork, "it wrote");
        // What it wrote before lies in what both share.
        init.written = Some(Lsn(10));
        assert_eq!(decide(&init, &acc), Outcome::InitiatorStepsDown);
        init.floor = Lsn(12);
        assert_eq!(decide(&init, &acc), fork, "what its disk lost nobody knows");
        init.floor = Lsn::ZERO;
        // As a mirror it is copied to: what it has committed is not cut off.
        init.stance = Stance::Mirror;
        std::mem::swap(&mut init.site, &mut init.to_site);
        let mut serving = acc.clone();
        std::mem::swap(&mut serving.site, &mut serving.to_site);
        let copy = Outcome::Copy { shared: Lsn(10) };
        assert_eq!(decide(&serving, &init), copy);
        init.written = None;
        assert_eq!(decide(&serving, &init), fork);
    }

    #[test]
    fn of_two_by_record_that_both_went_on_the_one_that_wrote_stays() {
        let returning = |id, written| {
            let mut hello = hello(Stance::Returning, &[(1, 1), (id, 11)], 12, 12);
            hello.alone = true;
            hello.written = written;
            hello
        };
        let other = |mut hello: Hello| {
            std::mem::swap(&mut hello.site, &mut hello.to_site);
            hello
        };
        let (nothing, something) = (Some(Lsn(10)), Some(Lsn(12)));
        for (a, b, outcome) in [
            (nothing, something, Outcome::InitiatorStepsDown),
            (something, nothing, Outcome::AcceptorStepsDown),
            (something, something, Outcome::Forked { common: Lsn(10) }),
            (nothing, None, Outcome::InitiatorStepsDown),
            (None, None, Outcome::Forked { common: Lsn(10) }),
            // The same one whoever calls.
            (nothing, nothing, Outcome::InitiatorStepsDown),
        ] {
            let (a, b) = (returning(2, a), returning(3, b));
            assert_eq!(decide(&a, &other(b.clone())), outcome);
            let swapped = match outcome {
                Outcome::InitiatorStepsDown => Outcome::AcceptorStepsDown,
                Outcome::AcceptorStepsDown => Outcome::InitiatorStepsDown,
                same => same,
            };
            assert_eq!(decide(&b, &other(a)), swapped);
        }
    }

    #[test]
    fn strangers_are_told_apart() {
        let init = hello(Stance::Serving, ONE, 10, 10);
        let mut acc = accepting(Stance::Mirror, &[(9, 1)], 3, 3);
        assert_eq!(decide(&init, &acc), Outcome::Unrelated);
        acc.group_id = Uuid::from_u128(8);
        assert!(matches!(decide(&init, &acc), Outcome::WrongGroup(_)));
        acc.group_id = Uuid::nil();
        acc.site = "c".into();
        assert!(matches!(decide(&init, &acc), Outcome::WrongGroup(_)));
    }

    /// Walks every combination of stances, lineages, tails and commit LSNs, and holds the outcome against what must
    /// hold for all of them: nothing committed is ever dropped, and nobody serves beside another.
    #[test]
    fn every_pair_has_one_outcome_and_none_drops_what_is_committed() {
        let stances = [
            Stance::Serving,
            Stance::Returning,
            Stance::HandedOver,
            Stance::Mirror,
            Stance::Probe,
        ];
        let lineages: [&[(u128, u64)]; 5] = [&[], ONE, TWO, &[(1, 1), (3, 9)], &[(4, 1)]];
        let mut seen = 0;
        for a in stances {
            for b in stances {
                for la in lineages {
                    for lb in lineages {
                        for ta in [0u64, 8, 10, 12] {
                            for tb in [0u64, 8, 10, 12] {
                                // What has no epoch has no operations, and an epoch begins within the history.
                                let starts_before = |l: &[(u128, u64)], t| {
                                    l.is_empty() == (t == 0)
                                        && l.iter().all(|&(_, first)| first <= t)
                                };
                                if !starts_before(la, ta) || !starts_before(lb, tb) {
                                    continue;
                                }
                                for ca in [0, ta.saturating_sub(2), ta] {
                                    for cb in [0, tb.saturating_sub(2), tb] {
                                        let init = hello(a, la, ta, ca);
                                        let acc = accepting(b, lb, tb, cb);
                                        check(&init, &acc, &decide(&init, &acc));
                                        seen += 1;
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        assert!(seen > 5000, "{seen} combinations");
    }

    fn check(init: &Hello, acc: &Hello, outcome: &Outcome) {
        match outcome {
            Outcome::Stream { from } => {
                assert_eq!(acc.stance, Stance::Mirror);
                assert!(from.prev() <= init.tail, "{init:?} {acc:?}");
                let keeps = from.prev();
                assert!(
                    acc.tail <= keeps || acc.commit <= keeps,
                    "dropped committed history: {init:?} {acc:?}"
                );
            }
            Outcome::Fetch { from } => {
                assert_eq!(init.stance, Stance::Returning);
                assert_eq!(*from, init.tail.next());
                assert!(acc.tail >= *from, "{init:?} {acc:?}");
            }
            Outcome::InitiatorStepsDown => {
                assert!(matches!(acc.stance, Stance::Serving | Stance::Returning));
                assert!(init.stance != Stance::Serving && init.stance != Stance::Mirror);
            }
            Outcome::AcceptorStepsDown => {
                assert!(matches!(init.stance, Stance::Serving | Stance::Returning));
                assert!(acc.stance != Stance::Serving && acc.stance != Stance::Mirror);
            }
            Outcome::Handover => assert_eq!(init.tail, acc.tail),
            Outcome::BothPrimary => {
                assert_eq!(
                    (init.stance, acc.stance),
                    (Stance::Serving, Stance::Serving)
                );
            }
            _ => {}
        }
    }
}
