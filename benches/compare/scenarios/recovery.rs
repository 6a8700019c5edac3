//! A primary that is killed and comes back.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::candidates::doublure::Pair;
use crate::candidates::{STEP, drop_pages};
use crate::cases::Case;
use crate::figures::Record;
use crate::lineup::Lineup;
use crate::load::{Load, Until};
use crate::nbd::FUA;
use crate::process::{PATIENCE, eventually};

const BLOCK: u64 = 4096;

/// The primary dies under random 4 KiB writes when its journal holds so many bytes that its homes may lack. How long is it
/// from its start, with nothing in memory, to the first write that it acknowledges?
pub fn after_a_kill(lineup: &mut Lineup, record: &mut Record) -> anyhow::Result<()> {
    let bytes = lineup.options.replay();
    // Checkpoints begin when 45 % of the journal was written, or ten seconds after the last.
    let setup = lineup.setup("recovery", "memsync", 5 * bytes);
    let mut pair = Pair::filled(lineup.place.path(), setup)?;
    // What filled the volume is not to be replayed.
    eventually("the homes hold everything", STEP, PATIENCE, || {
        let group = pair.primary.group()?;
        Ok((group.checkpoint_lsn == group.durable_lsn).then_some(()))
    })?;
    let case = Case::write(128);
    let over = AtomicBool::new(false);
    let door = pair.primary.door(0);
    let replay = std::thread::scope(|scope| {
        // Ends with an error when the primary is killed.
        let load = scope.spawn(|| {
            Load::connect(&[door], case.job, 11)?.run(
                Duration::ZERO,
                Until::Told(&over),
                |_| Ok(()),
            )
        });
        let reached = eventually("there is enough to replay", STEP, PATIENCE, || {
            ensure!(!load.is_finished(), "the load ended by itself");
            let group = pair.primary.group()?;
            let behind = (group.durable_lsn.0 - group.checkpoint_lsn.0) * BLOCK;
            Ok((behind >= bytes).then_some(behind))
        });
        pair.primary.kill();
        over.store(true, Relaxed);
        let _ = load.join().expect("no panic"); // its connection broke, as it should
        reached
    })?;
    for file in [pair.primary.journal(0), pair.primary.home(0)] {
        drop_pages(&file)?;
    }

    let since = Instant::now();
    pair.primary.spawn()?;
    let data = vec![0x5a; BLOCK as usize];
    eventually(
        "the primary acknowledges",
        Duration::from_millis(1),
        PATIENCE,
        || {
            let Ok(client) = pair.primary.door(0).open() else {
                return Ok(None);
            };
            Ok(client.write(FUA, 0, &data).ok())
        },
    )?;
    let took = since.elapsed().as_secs_f64();
    ensure!(
        pair.primary.door(0).open()?.read(0, BLOCK as u32)? == data,
        "the write is not there"
    );
    eprintln!("    {} MiB replayed in {took:.2} s", replay >> 20);
    record.note("recovery_seconds", took);
    record.note("recovery_mib", (replay >> 20) as f64);
    pair.remove()
}
