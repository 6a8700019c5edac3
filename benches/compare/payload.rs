//! What is written: slices of one pool, so that a load costs no time to generate and every block can be checked later.

use super::dice::Dice;

/// How well the data shrinks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Data {
    /// Not at all.
    Random,
    /// To about half by LZ4, like text and tables.
    Compressible,
}

/// Slices begin at multiples of this, bytes.
const STEP: usize = 512;
const STARTS: usize = (16 << 20) / STEP;
const LONGEST: usize = 1 << 20;

/// The pool.
pub struct Pool(Vec<u8>);

impl Pool {
    /// The same bytes at each run.
    pub fn new(data: Data) -> Pool {
        let mut dice = Dice::new(0x00d0_0b1e);
        let mut bytes = vec![0; STARTS * STEP + LONGEST];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&dice.next().to_le_bytes());
        }
        if data == Data::Compressible {
            // Every second run of 64 bytes repeats one that came shortly before.
            for at in (128..bytes.len()).step_by(128) {
                bytes.copy_within(at - 128..at - 64, at);
            }
        }
        Pool(bytes)
    }

    /// A beginning at random, to be kept beside what was written.
    pub fn pick(dice: &mut Dice) -> u32 {
        dice.below(STARTS as u64) as u32
    }

    /// The bytes from this beginning.
    pub fn slice(&self, pick: u32, len: usize) -> &[u8] {
        assert!(len <= LONGEST);
        &self.0[pick as usize * STEP..][..len]
    }
}
