//! Requests that are larger than what may be under way at once: they enter the journal as it has room, so that it always has some for
//! what opens an epoch.

use std::time::Duration;

use super::sim::{Sim, config};
use crate::base::{AckMode, ByteRange, OnPeerLoss, Role, VolumeId};
use crate::engine::File;
use crate::status::GroupState;

const MIB: u64 = 1 << 20;

/// Two sites in sync, with such journals and a volume of this size.
fn pair(journal_bytes: u64, size: u64) -> Sim {
    let (ack, policy) = (AckMode::Sync, OnPeerLoss::Continue);
    let mut primary = config("a", Some("b"), Role::Primary, ack, policy);
    let mut mirror = config("b", Some("a"), Role::Mirror, ack, policy);
    primary.volumes = vec![("v".into(), size)];
    primary.journal_bytes = journal_bytes;
    mirror.journal_bytes = journal_bytes;
    let mut sim = Sim::with(19, primary, mirror);
    for at in [1, 0] {
        sim.start(at).expect("a first start");
    }
    sim.heal();
    assert!(sim.attach(0));
    sim
}

fn equal(sim: &mut Sim) -> bool {
    sim.pass(Duration::from_secs(1));
    let home = File::Home(VolumeId(0));
    let disks = sim.sites.iter_mut().map(|site| &mut site.disk);
    let all: Vec<Vec<u8>> = disks.map(|disk| disk.content(home, 0, 64 << 20)).collect();
    all.windows(2).all(|two| two[0] == two[1])
}

#[test]
fn what_is_larger_than_the_journal_is_written_without_a_lost_link() {
    let mut sim = pair(32 * MIB, 128 * MIB);
    let epoch = sim.status(0).epoch.expect("serving").number;
    for n in 0..3 {
        sim.write_filled(0, ByteRange::new(n * 32 * MIB, 32 * MIB), 1 + n as u8);
    }
    sim.pass(Duration::from_secs(4));
    assert_eq!(sim.outstanding(), 0, "{}", sim.logs());
    let now = sim.status(0).epoch.expect("serving").number;
    assert_eq!(now, epoch, "it was never alone:\n{}", sim.logs());
    assert!(sim.in_sync() && equal(&mut sim));
}

#[test]
fn a_primary_goes_on_alone_in_the_middle_of_a_large_request() {
    for journal in [32 * MIB, 64 * MIB] {
        for killed in [false, true] {
            let mut sim = pair(journal, 64 * MIB);
            if killed {
                sim.kill(1);
            } else {
                sim.hang(1);
            }
            for n in 0..15 {
                sim.write_filled(0, ByteRange::new(n * MIB, MIB), 1 + n as u8);
            }
            sim.write_filled(0, ByteRange::new(16 * MIB, 32 * MIB), 99);
            sim.pass(Duration::from_secs(12));
            let status = sim.status(0);
            assert_eq!(status.state, GroupState::Alone, "{}", sim.logs());
            assert_eq!(sim.outstanding(), 0, "{}", sim.logs());
            if killed {
                sim.start(1).expect("a restart");
                sim.heal();
                assert!(sim.in_sync() && equal(&mut sim));
            }
        }
    }
}

#[test]
fn what_a_large_trim_holds_in_memory_is_bounded() {
    let size = 16 << 40;
    let mut sim = pair(32 * MIB, size);
    for at in 0..2 {
        sim.hold_homes(at, true);
    }
    sim.trim(0, ByteRange::new(0, size));
    sim.settle();
    assert_eq!(sim.outstanding(), 1);
    for at in 0..2 {
        let held = sim.status(at).unapplied_bytes;
        assert!((7 * MIB..=9 * MIB).contains(&held), "{held} at {at}");
    }
}

#[test]
fn a_request_whose_connection_ends_enters_no_further() {
    let mut sim = pair(32 * MIB, 64 * MIB);
    let before = sim.status(0).tail_lsn;
    sim.hold_journal(0, true);
    sim.write_filled(0, ByteRange::new(0, 32 * MIB), 1);
    sim.settle();
    let entered = sim.status(0).tail_lsn;
    assert!(entered > before);
    sim.detach(0);
    sim.hold_journal(0, false);
    sim.settle();
    let status = sim.status(0);
    assert_eq!((status.tail_lsn, status.commit_lsn), (entered, entered));
    assert!(entered.since(before) < 32, "all of it had an LSN already");
    assert!(equal(&mut sim));
}
