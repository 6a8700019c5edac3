//! The engine under a simulated disk that loses power, a simulated network and virtual time.

mod checkpoints;
mod disk;
mod forks;
mod frames;
mod power_cut;
mod requests;
mod resync;
mod rules;
mod sim;
mod storm;
mod three;
mod undo;
mod verify;
mod volumes;

use super::{DiskOp, DiskResult, Pending};
use crate::base::sabotage::{Sabotage, sabotaged};

/// A write as this sabotage leaves it.
pub fn without_dsync(op: DiskOp, sabotage: Sabotage) -> DiskOp {
    match op {
        DiskOp::Write {
            file, offset, data, ..
        } if sabotaged(sabotage) => DiskOp::Write {
            file,
            offset,
            data,
            durable: false,
        },
        op => op,
    }
}

/// The result of a disk request, failures forgiven where they are sabotaged away.
pub fn forgiven(pending: &Pending, result: DiskResult) -> DiskResult {
    let forgiven = match pending {
        Pending::HomeSync => sabotaged(Sabotage::IgnoreFailedSync),
        Pending::JournalWrite { .. } => sabotaged(Sabotage::IgnoreFailedJournalWrite),
        _ => false,
    };
    match result {
        DiskResult::Failed { .. } if forgiven => DiskResult::Done,
        result => result,
    }
}

/// A small seeded generator (xorshift*), for the tests only.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}
