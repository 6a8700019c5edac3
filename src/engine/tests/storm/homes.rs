//! The mirror's homes betray their owner while the pair is in sync. `verify` must name what is damaged, no more and no less
//! and while clients write, and with `--repair` both sites hold the same again.
//!
//! No failover comes before that: nobody could know yet that the mirror's homes are not what they should be.

use std::time::Duration;

use super::world::{Happening, NAMES, World, site_named};
use crate::base::{BLOCK, ByteRange, VolumeId};
use crate::engine::tests::disk::Damage;
use crate::engine::{Command, File};
use crate::status::{DifferingRange, GroupState, VerifyState, VerifyStatus};

/// A walk over all chunks must have ended by then.
const VERIFIED_WITHIN: Duration = Duration::from_secs(60);

/// What was repaired must be safe from power cuts by then.
const SYNCED_WITHIN: Duration = Duration::from_secs(30);

/// The blocks that a verification of the whole group names must be those that are damaged.
fn names_what_is_damaged(
    named: &[DifferingRange],
    damaged: &[(VolumeId, ByteRange)],
) -> Result<(), String> {
    let is = |n: &DifferingRange, (volume, block): &(VolumeId, ByteRange)| {
        n.volume == format!("v{}", volume.0) && block.overlaps(ByteRange::new(n.offset, n.bytes))
    };
    if let Some(missed) = damaged.iter().find(|d| !named.iter().any(|n| is(n, d))) {
        return Err(format!("verify misses {missed:?} and names {named:?}"));
    }
    if let Some(wrong) = named.iter().find(|n| !damaged.iter().any(|d| is(n, d))) {
        return Err(format!("verify names {wrong:?}; damaged is {damaged:?}"));
    }
    Ok(())
}

impl World {
    /// Both are in sync and at rest.
    pub fn examine(&mut self) {
        let serving = |s: crate::status::GroupStatus| s.state == GroupState::Serving;
        let sites = self.sites.len();
        let primary = (0..sites).find(|at| self.status(*at).is_some_and(serving));
        let primary = primary.unwrap_or(sites - 1);
        let Some(mirror) = self.verified_mirror(primary) else {
            return;
        };
        self.examined = Some(mirror);
        self.damage_homes(mirror);
        let until = self.now + Duration::from_millis(200);
        while self.step(until) {}
        self.rest();
        self.sites[mirror].disk.betrayals.clear();
        self.damaged = self.differing_blocks([primary, mirror]);
        self.note(|| format!("the homes of {} are damaged", NAMES[mirror]));
        for repair in [false, true] {
            let Some(verified) = self.verify_under_load(primary, repair) else {
                return;
            };
            let damaged = std::mem::take(&mut self.damaged);
            let result = names_what_is_damaged(&verified.differing, &damaged);
            self.check(result);
            let expected = match (damaged.is_empty(), repair) {
                (true, _) => VerifyState::Equal,
                (_, true) => VerifyState::Repaired,
                (_, false) => VerifyState::Differs,
            };
            if verified.state != expected {
                self.violate(format!("verify says {:?}", verified.state));
            }
            if !repair {
                self.damaged = damaged;
            }
        }
        self.rest();
        let deadline = self.now + SYNCED_WITHIN;
        while self.violation.is_none() && !self.sites[mirror].disk.homes_are_synced() {
            if self.now >= deadline {
                self.violate("what was repaired would be lost with the power".into());
            }
            let until = self.now + Duration::from_millis(20);
            while self.step(until) {}
        }
        self.examined = None;
        for at in 0..sites {
            let result = self.compare(at);
            self.check(result);
        }
        let result = self.homes_are_equal();
        self.check(result.map_err(|text| format!("{text}, and verified")));
    }

    /// A verification compares the primary with the first of its peers that is in sync.
    fn verified_mirror(&self, primary: usize) -> Option<usize> {
        let group = self.sites[primary].group.as_ref()?;
        let peer = group.core.peers().iter().find(|p| p.in_sync)?;
        Some(site_named(&peer.name))
    }

    /// Rot, and writes that are lost or go elsewhere, while clients write.
    fn damage_homes(&mut self, at: usize) {
        for _ in 0..self.decay.below(4) {
            let n = self.decay.below(self.plan.volumes.len() as u64);
            let offset = self.decay.below(self.plan.volumes[n as usize]);
            let disk = &mut self.sites[at].disk;
            let damage = match self.decay.below(3) {
                0 => {
                    disk.rot(File::Home(VolumeId(n as u32)), offset);
                    continue;
                }
                1 => Damage::Lost,
                _ => Damage::Misdirected,
            };
            let write = disk.home_writes + self.decay.below(20);
            disk.betrayals.insert(write, (damage, offset));
        }
        self.ask_some();
    }

    /// Clients ask for a while.
    fn ask_some(&mut self) {
        self.resting = false;
        for client in 0..self.clients.len() {
            self.clients[client].left = 20 + self.decay.below(40);
            self.later(Duration::ZERO, Happening::Client(client));
        }
    }

    fn differing_blocks(&mut self, sites: [usize; 2]) -> Vec<(VolumeId, ByteRange)> {
        let mut found = Vec::new();
        for (n, size) in self.sizes(0).into_iter().enumerate() {
            let volume = VolumeId(n as u32);
            let file = File::Home(volume);
            let [a, b] = sites.map(|at| self.sites[at].disk.content(file, 0, size as usize));
            let blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK)).enumerate();
            found.extend(blocks.filter(|(_, (a, b))| a != b).map(|(n, _)| {
                let offset = (n * BLOCK) as u64;
                (volume, ByteRange::new(offset, BLOCK as u64))
            }));
        }
        found
    }

    /// Clients leave alone what is damaged, so that it stays.
    pub fn is_spared(&self, volume: usize, range: ByteRange) -> bool {
        let volume = VolumeId(volume as u32);
        self.damaged
            .iter()
            .any(|(v, block)| *v == volume && block.overlaps(range))
    }

    fn verify_under_load(&mut self, primary: usize, repair: bool) -> Option<VerifyStatus> {
        self.ask_some();
        let until = self.now + Duration::from_millis(self.decay.below(20));
        while self.step(until) {}
        // What the journal does not prove is as the primary has it: only the mirror was damaged.
        let keep = repair.then(|| NAMES[primary].to_owned());
        self.command(primary, Command::Verify { repair, keep });
        let deadline = self.now + VERIFIED_WITHIN;
        while self.violation.is_none() {
            let verified = self.status(primary).and_then(|s| s.verify);
            if let Some(verified) = verified.filter(|v| v.repair == repair)
                && verified.state != VerifyState::Running
            {
                return Some(verified);
            }
            if self.now >= deadline {
                self.violate(format!("verify does not end within {VERIFIED_WITHIN:?}"));
            }
            let until = self.now + Duration::from_millis(20);
            while self.step(until) {}
        }
        None
    }
}
