//! Mirrors that were away and come back.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::ensure;
use doublure::status::{GroupState, PeerState};

use crate::candidates::doublure::{Pair, Setup, in_sync};
use crate::candidates::{STEP, check_copies, forget, settle};
use crate::cases::Case;
use crate::figures::Record;
use crate::lineup::Lineup;
use crate::load::{Load, Outcome, Pattern, Until};
use crate::probe;
use crate::process::{PATIENCE, eventually};

/// A mirror that is not in sync again after so long under load will never be.
const ENDLESS: Duration = Duration::from_mins(3);

/// The mirror is killed, clients write for a minute at depth 32, the mirror returns while they go on. How fast are they
/// then, against before?
pub fn under_load(lineup: &mut Lineup, record: &mut Record) -> anyhow::Result<()> {
    let options = lineup.options.clone();
    let setup = lineup.setup("away", "sync", options.journal());
    let mut pair = Pair::filled(lineup.place.path(), setup)?;
    let case = Case::write(32);
    let times = options.times(&case);
    let before = load(
        &pair,
        case,
        1,
        times.warm_up,
        Until::Elapsed(times.interval),
    )?;
    settle(&mut pair)?;

    pair.lose_mirror()?;
    let lonely = load(
        &pair,
        case,
        2,
        Duration::ZERO,
        Until::Elapsed(options.away()),
    )?;

    pair.mirror.spawn()?;
    let group = || pair.primary.group();
    eventually("the mirror begins to catch up", STEP, PATIENCE, || {
        let state = group()?.peers[0].state;
        let begun = [PeerState::CatchingUp, PeerState::Copying, PeerState::InSync];
        Ok(begun.contains(&state).then_some(()))
    })?;
    let since = Instant::now();
    let done = AtomicBool::new(false);
    let meanwhile = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&pair, case, 3, Duration::ZERO, Until::Told(&done)));
        let result = eventually(
            "the mirror is in sync again",
            Duration::from_millis(50),
            ENDLESS,
            || {
                ensure!(!load.is_finished(), "the load ended by itself");
                Ok(in_sync(&group()?).then_some(()))
            },
        );
        done.store(true, Relaxed);
        let outcome = load.join().expect("no panic")?;
        result.map(|()| outcome)
    })?;
    let seconds = since.elapsed().as_secs_f64();
    eprintln!(
        "    in sync {:.0}/s, alone {:.0}/s, catching up {:.0}/s for {seconds:.1} s",
        before.per_second(),
        lonely.per_second(),
        meanwhile.per_second(),
    );
    let p999 = |outcome: &Outcome| outcome.latency.value_at_quantile(0.999) as f64 / 1e3;
    record.note(
        "catching_up_ratio",
        meanwhile.per_second() / before.per_second(),
    );
    record.note("in_sync_per_second", before.per_second());
    record.note("catching_up_per_second", meanwhile.per_second());
    record.note("in_sync_p999_us", p999(&before));
    record.note("catching_up_p999_us", p999(&meanwhile));
    record.note("catching_up_p999_ratio", p999(&meanwhile) / p999(&before));
    record.note("catching_up_seconds", seconds);
    check_copies(&mut pair)?;
    pair.remove()
}

fn load(
    pair: &Pair,
    case: Case,
    seed: u64,
    warm_up: Duration,
    until: Until,
) -> anyhow::Result<Outcome> {
    Load::connect(&[pair.primary.door(0)], case.job, seed)?.run(warm_up, until, |_| Ok(()))
}

/// The link is cut, writes fill half a large journal, the link comes back.
pub fn from_the_journal(lineup: &mut Lineup, record: &mut Record) -> anyhow::Result<()> {
    let bytes = lineup.options.size() / 2;
    for (name, pattern, block) in [
        ("catch_up_small", Pattern::Random, 4096),
        ("catch_up_large", Pattern::Sequential, 1 << 20),
    ] {
        let setup = lineup.setup("catch-up", "sync", 4 * bytes);
        let mut pair = Pair::filled(lineup.place.path(), setup)?;
        cut(&pair)?;
        pair.fill(pattern, block, bytes, 7)?;
        let lag = pair.primary.group()?;
        ensure!(
            lag.journal.first_lsn <= lag.peers[0].durable_lsn.next(),
            "the journal no longer reaches back to where the mirror is"
        );
        let took = come_back(&mut pair)?;
        against_a_copy(lineup, record, name, &mut pair, bytes, took)?;
    }
    Ok(())
}

/// The link is cut, the whole volume is written anew, more than the journal holds, the link comes back.
pub fn by_ranges(lineup: &mut Lineup, record: &mut Record) -> anyhow::Result<()> {
    let bytes = lineup.options.size();
    for (name, undo) in [("resync", true), ("resync_without_undo", false)] {
        let setup = Setup {
            undo,
            ..lineup.setup("resync", "sync", 32 << 20)
        };
        let mut pair = Pair::filled(lineup.place.path(), setup)?;
        cut(&pair)?;
        pair.fill(Pattern::Sequential, 1 << 20, bytes, 7)?;
        let took = come_back(&mut pair)?;
        against_a_copy(lineup, record, name, &mut pair, bytes, took)?;
    }
    Ok(())
}

fn cut(pair: &Pair) -> anyhow::Result<()> {
    pair.primary.order(&["disconnect", "g0"])?;
    eventually("the primary goes on alone", STEP, PATIENCE, || {
        Ok((pair.primary.group()?.state == GroupState::Alone).then_some(()))
    })
}

/// From the order to connect until the mirror is in sync, with nothing of the homes in memory.
fn come_back(pair: &mut Pair) -> anyhow::Result<Duration> {
    forget(pair)?;
    let since = Instant::now();
    pair.primary.order(&["connect", "g0"])?;
    pair.wait_in_sync(ENDLESS)?;
    Ok(since.elapsed())
}

/// Notes the speed as a ratio to that of a copy of as many bytes on the same disk, and makes sure that it was one.
fn against_a_copy(
    lineup: &Lineup,
    record: &mut Record,
    name: &str,
    pair: &mut Pair,
    bytes: u64,
    took: Duration,
) -> anyhow::Result<()> {
    check_copies(pair)?;
    let target = lineup.place.path().join("copy");
    let copy = probe::copy(&pair.primary.home(0), &target, bytes)?;
    std::fs::remove_file(target)?;
    eprintln!(
        "    {name}: {} MiB in {:.2} s, a direct copy takes {:.2} s",
        bytes >> 20,
        took.as_secs_f64(),
        copy.as_secs_f64()
    );
    record.note(
        &format!("{name}_ratio"),
        copy.as_secs_f64() / took.as_secs_f64(),
    );
    record.note(&format!("{name}_seconds"), took.as_secs_f64());
    record.note(&format!("{name}_copy_seconds"), copy.as_secs_f64());
    pair.remove()
}
