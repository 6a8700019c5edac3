//! The engine under a simulated disk that loses power, a simulated network and virtual time.

mod disk;
mod power_cut;
mod resync;
mod rules;
mod sim;

/// Rules that a test may switch off, to see that another test notices.
#[derive(Clone, Copy, Default)]
pub struct Sabotage {
    /// Lets the homes hold what is not committed.
    pub no_wal_rule: bool,
    /// Records a checkpoint before the homes are synced.
    pub checkpoint_before_sync: bool,
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
