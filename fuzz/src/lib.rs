//! What the fuzz targets share: choices out of bytes, checksums made right again, disks in memory.

pub mod mend;
pub mod site;

use std::collections::BTreeMap;
use std::io;

use doublure::base::BLOCK;
use doublure::journal::ReadJournal;

/// Choices out of the fuzzer's bytes; nothing more is chosen once they are used up.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Of these bytes.
    pub fn new(data: &'a [u8]) -> Input<'a> {
        Input(data)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// A number below `limit`, at least 1 and at most 65536; from one byte where that is enough.
    pub fn below(&mut self, limit: usize) -> Option<usize> {
        let mut value = usize::from(self.byte()?);
        if limit > 256 {
            value = value << 8 | usize::from(self.byte()?);
        }
        Some(value % limit)
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// A journal file in memory, zero where nothing was written.
#[derive(Clone, Default)]
pub struct Disk(BTreeMap<u64, Box<[u8; BLOCK]>>);

impl Disk {
    /// The block that begins at this offset, to be changed.
    pub fn block(&mut self, offset: u64) -> &mut [u8; BLOCK] {
        self.0.entry(offset).or_insert_with(|| Box::new([0; BLOCK]))
    }

    /// Writes whole blocks.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, block) in (offset..).step_by(BLOCK).zip(bytes.as_chunks::<BLOCK>().0) {
            if block.iter().all(|b| *b == 0) {
                self.0.remove(&at);
            } else {
                *self.block(at) = *block;
            }
        }
    }

    /// Reads whole blocks.
    pub fn get(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        for (at, block) in self.0.range(offset..offset + buf.len() as u64) {
            buf[(at - offset) as usize..][..BLOCK].copy_from_slice(&block[..]);
        }
    }
}

impl ReadJournal for Disk {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.get(offset, buf);
        Ok(())
    }
}
