//! What a chunk holds at this site. One whose home fails is read again block by block, so that it is known what can be read
//! of it and what cannot.

use bytes::Bytes;

use super::questions::Question;
use super::{DiskOp, DiskResult, File, Group, LinkId, Pending};
use crate::base::{BLOCK, ByteRange, VolumeId};
use crate::store::{Content, HoldId};

/// The content of a chunk.
pub(super) struct ChunkRead {
    /// Zeroes where it could not be read.
    pub data: Bytes,
    /// Blocks that could not be read, the first in the lowest bit.
    pub unreadable: u64,
}

/// Who wants to know.
pub(super) enum Reader {
    /// A verification of this site as the primary.
    Part { link: LinkId, part: u64 },
    /// The primary.
    Answer {
        question: Question,
        overlay: Vec<(ByteRange, Content)>,
        hold: HoldId,
    },
}

/// A chunk that is being read block by block.
pub(super) struct BlockRead {
    reader: Reader,
    range: ByteRange,
    data: Vec<u8>,
    unreadable: u64,
    left: u32,
}

/// One block of a chunk.
pub(super) fn block_of(chunk: ByteRange, index: u32) -> ByteRange {
    let at = u64::from(index) * BLOCK as u64;
    ByteRange::new(chunk.offset + at, (BLOCK as u64).min(chunk.len - at))
}

/// How many blocks a chunk has.
pub(super) fn blocks_in(chunk: ByteRange) -> u32 {
    chunk.len.div_ceil(BLOCK as u64) as u32
}

/// The blocks of a chunk that a range touches.
pub(super) fn blocks_touched(chunk: ByteRange, range: ByteRange) -> u64 {
    let Some(part) = chunk.intersection(range) else {
        return 0;
    };
    let block = BLOCK as u64;
    let first = (part.offset - chunk.offset) / block;
    let after = (part.end() - chunk.offset).div_ceil(block);
    (u64::MAX >> (64 - (after - first))) << first
}

impl Group {
    pub(super) fn read_blocks(
        &mut self,
        reader: Reader,
        volume: VolumeId,
        range: ByteRange,
        medium: bool,
    ) {
        let count = blocks_in(range);
        let read = self.block_reads.insert(BlockRead {
            reader,
            range,
            data: vec![0; range.len as usize],
            unreadable: 0,
            left: count,
        });
        for block in 0..count {
            let place = block_of(range, block);
            self.submit(
                Pending::ReadBlock { read, block },
                DiskOp::Read {
                    file: File::Home(volume),
                    offset: place.offset,
                    len: place.len,
                    medium,
                },
            );
        }
    }

    pub(super) fn block_read(&mut self, read: usize, block: u32, result: DiskResult) {
        let state = &mut self.block_reads[read];
        match result {
            DiskResult::Data(data) => {
                let at = block as usize * BLOCK;
                state.data[at..at + data.len()].copy_from_slice(&data);
            }
            _ => state.unreadable |= 1 << block,
        }
        state.left -= 1;
        if state.left > 0 {
            return;
        }
        let BlockRead {
            reader,
            range,
            data,
            unreadable,
            ..
        } = self.block_reads.remove(read);
        let data = Bytes::from(data);
        match reader {
            Reader::Part { link, part } => self.part_read(link, part, data, unreadable),
            Reader::Answer {
                question,
                overlay,
                hold,
            } => {
                self.store.release(hold);
                let read = laid_over(data, unreadable, range, &overlay);
                self.answer_content(&question, read);
            }
        }
    }
}

/// The home's content of a range with these pieces over it. What they cover as a whole need not be readable.
pub(super) fn laid_over(
    home: Bytes,
    mut unreadable: u64,
    range: ByteRange,
    overlay: &[(ByteRange, Content)],
) -> ChunkRead {
    if overlay.is_empty() {
        return ChunkRead {
            data: home,
            unreadable,
        };
    }
    let mut all = home.to_vec();
    for (piece, content) in overlay {
        let from = (piece.offset - range.offset) as usize;
        let to = from + piece.len as usize;
        match content {
            Content::Data(data) => all[from..to].copy_from_slice(data),
            Content::Zero { .. } => all[from..to].fill(0),
            Content::Control(_) => {}
        }
        for block in 0..blocks_in(range) {
            let place = block_of(range, block);
            if unreadable != 0 && piece.offset <= place.offset && place.end() <= piece.end() {
                unreadable &= !(1 << block);
            }
        }
    }
    ChunkRead {
        data: Bytes::from(all),
        unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_of_a_chunk_are_told_apart() {
        let chunk = ByteRange::new(1 << 18, 1 << 18);
        let touched =
            |offset: u64, len| blocks_touched(chunk, ByteRange::new((1 << 18) + offset, len));
        assert_eq!(touched(0, 1), 1);
        assert_eq!(touched(4095, 2), 3);
        assert_eq!(touched(63 << 12, 4096), 1 << 63);
        assert_eq!(touched(0, 1 << 18), u64::MAX);
        assert_eq!(blocks_touched(chunk, ByteRange::new(0, 1 << 20)), u64::MAX);
        assert_eq!(blocks_touched(chunk, ByteRange::new(0, 1 << 18)), 0);
        let last = ByteRange::new(0, 4096 + 512);
        assert_eq!(blocks_in(last), 2);
        assert_eq!(block_of(last, 1), ByteRange::new(4096, 512));
    }

    #[test]
    fn what_waits_to_be_applied_to_an_unreadable_block_makes_it_known() {
        let range = ByteRange::new(0, 3 * 4096);
        let piece = |offset, len: usize| {
            let data = Content::Data(vec![7; len].into());
            (ByteRange::new(offset, len as u64), data)
        };
        let home = Bytes::from(vec![1; 3 * 4096]);
        let read = laid_over(home, 0b111, range, &[piece(0, 4096), piece(4096, 100)]);
        assert_eq!(read.unreadable, 0b110);
        assert_eq!((read.data[0], read.data[4196]), (7, 1));
    }
}
