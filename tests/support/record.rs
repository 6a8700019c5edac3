//! What may legally stand on a disk: for every 512-byte block, the operations that may have had the last word.
//!
//! Each block is a register. An operation takes effect at one instant between its start and its end; its end is its
//! acknowledgement or, if its connection died, the moment when a new connection to the group was accepted (by then a
//! server must have finished or dropped it). So an operation may be the last word unless another one that surely
//! happened began after its end. A read that returned an operation's content proves that the operation happened:
//! after that, no failover may undo it.

use std::collections::BTreeMap;
use std::fmt;

/// The unit of the record. Bytes.
pub const BLOCK: usize = 512;

/// Marks a block that the checker wrote.
const MARK: u64 = 0x646f_7562_6c75_7265;

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// Zeroes: never written, trimmed, or written with zeroes.
    Zero,
    /// What the write of this connection with this sequence number puts here.
    Written { connection: u16, sequence: u64 },
    /// Neither: torn, of another block, or not ours.
    Garbage,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Zero => f.write_str("zeroes"),
            Content::Written {
                connection,
                sequence,
            } => write!(f, "write {connection}:{sequence}"),
            Content::Garbage => f.write_str("garbage"),
        }
    }
}

/// Fills one block of a write so that it can be recognised.
pub fn fill(data: &mut [u8], block: u64, connection: u16, sequence: u64) {
    let mut word = MARK ^ block.rotate_left(32) ^ sequence ^ u64::from(connection).rotate_left(48);
    let head = [MARK, block, u64::from(connection), sequence];
    for (at, bytes) in data.chunks_exact_mut(8).enumerate() {
        word = word
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        bytes.copy_from_slice(&head.get(at).copied().unwrap_or(word).to_le_bytes());
    }
}

/// Recognises a block.
pub fn recognise(data: &[u8], block: u64) -> Content {
    if data.iter().all(|b| *b == 0) {
        return Content::Zero;
    }
    let word =
        |at: usize| u64::from_le_bytes(data[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
    let (connection, sequence) = (word(2) as u16, word(3));
    let mut expected = [0; BLOCK];
    fill(&mut expected, block, connection, sequence);
    if data == expected {
        Content::Written {
            connection,
            sequence,
        }
    } else {
        Content::Garbage
    }
}

/// Names an operation of the record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OpId(u64);

#[derive(Clone, Debug)]
struct Op {
    content: Content,
    start: u64,
    /// When it had surely happened or surely never would.
    end: u64,
    /// Whether it surely happened.
    happened: bool,
    blocks: (u64, u64),
    /// How many blocks still list it.
    listed: u64,
}

const OPEN: u64 = u64::MAX;

/// A block that holds what it must not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    pub block: u64,
    pub found: Content,
    pub allowed: Vec<Content>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "block {} holds {:?}; allowed: {:?}",
            self.block, self.found, self.allowed
        )
    }
}

/// The record of a disk that began as zeroes.
pub struct Record {
    clock: u64,
    next: u64,
    ops: BTreeMap<OpId, Op>,
    blocks: Vec<Vec<OpId>>,
    /// Starts of reads in flight: what they may return must not be forgotten.
    reading: Vec<u64>,
}

/// A read in flight.
#[derive(Debug)]
pub struct Reading {
    start: u64,
    first: u64,
    count: u64,
}

impl Reading {
    /// Bytes that it reads.
    pub fn len(&self) -> usize {
        self.count as usize * BLOCK
    }
}

impl Record {
    /// Of a disk of so many blocks, all zero.
    pub fn new(blocks: u64) -> Record {
        let zero = Op {
            content: Content::Zero,
            start: 0,
            end: 0,
            happened: true,
            blocks: (0, blocks),
            listed: blocks,
        };
        Record {
            clock: 1,
            next: 1,
            ops: BTreeMap::from([(OpId(0), zero)]),
            blocks: vec![vec![OpId(0)]; blocks as usize],
            reading: Vec::new(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// An operation is about to be sent. `content` is the same for all its blocks.
    pub fn begin(&mut self, content: Content, first: u64, count: u64) -> OpId {
        let id = OpId(self.next);
        self.next += 1;
        let start = self.tick();
        self.ops.insert(
            id,
            Op {
                content,
                start,
                end: OPEN,
                happened: false,
                blocks: (first, count),
                listed: count,
            },
        );
        for block in first..first + count {
            self.blocks[block as usize].push(id);
        }
        id
    }

    /// The server acknowledged it.
    pub fn acknowledged(&mut self, id: OpId) {
        self.happened(id);
    }

    /// The server refused it, so it must not have happened.
    pub fn refused(&mut self, id: OpId) {
        let Some(op) = self.ops.remove(&id) else {
            return;
        };
        for block in op.blocks.0..op.blocks.0 + op.blocks.1 {
            self.blocks[block as usize].retain(|o| *o != id);
        }
    }

    /// It was never acknowledged and its connection is gone for good: from now on it will not happen any more.
    pub fn settled(&mut self, id: OpId) {
        let now = self.tick();
        if let Some(op) = self.ops.get_mut(&id) {
            op.end = op.end.min(now);
        }
    }

    fn happened(&mut self, id: OpId) {
        let now = self.tick();
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        op.happened = true;
        op.end = op.end.min(now);
        let (first, count) = op.blocks;
        for block in first..first + count {
            self.forget(block);
        }
    }

    /// Whether `op` may be what a read that began at `start` returns.
    fn legal(&self, block: u64, op: &Op, start: u64) -> bool {
        !self.blocks[block as usize].iter().any(|other| {
            let other = &self.ops[other];
            other.happened && op.end < other.start && other.end < start
        })
    }

    /// Drops what no read, now or later, may return.
    fn forget(&mut self, block: u64) {
        if self.blocks[block as usize].len() == 1 {
            return;
        }
        let horizon = self.reading.iter().copied().min().unwrap_or(OPEN);
        let (stays, goes): (Vec<OpId>, Vec<OpId>) = self.blocks[block as usize]
            .iter()
            .partition(|id| self.legal(block, &self.ops[id], horizon));
        self.blocks[block as usize] = stays;
        for id in goes {
            let op = self.ops.get_mut(&id).expect("listed");
            op.listed -= 1;
            if op.listed == 0 {
                self.ops.remove(&id);
            }
        }
    }

    /// A read is about to be sent.
    pub fn begin_read(&mut self, first: u64, count: u64) -> Reading {
        let start = self.tick();
        self.reading.push(start);
        Reading {
            start,
            first,
            count,
        }
    }

    /// A read failed or its connection died.
    pub fn abandon_read(&mut self, reading: &Reading) {
        self.reading.retain(|start| *start != reading.start);
    }

    /// A read returned this. Reports what it must not have returned.
    pub fn finish_read(&mut self, reading: &Reading, data: &[u8]) -> Vec<Violation> {
        assert_eq!(data.len(), reading.len(), "the caller checked the length");
        let mut violations = Vec::new();
        for (at, bytes) in data.chunks_exact(BLOCK).enumerate() {
            let block = reading.first + at as u64;
            let found = recognise(bytes, block);
            let legal: Vec<OpId> = self.blocks[block as usize]
                .iter()
                .copied()
                .filter(|id| self.legal(block, &self.ops[id], reading.start))
                .collect();
            let matching: Vec<OpId> = legal
                .iter()
                .copied()
                .filter(|id| self.ops[id].content == found)
                .collect();
            match matching[..] {
                [] => {
                    let mut allowed: Vec<_> = legal.iter().map(|id| self.ops[id].content).collect();
                    allowed.dedup();
                    violations.push(Violation {
                        block,
                        found,
                        allowed,
                    });
                }
                [one] if !self.ops[&one].happened => self.happened(one),
                _ => {}
            }
        }
        self.abandon_read(reading);
        violations
    }

    /// Holds the content of the whole disk against the record without drawing conclusions from it.
    pub fn compare(&self, first: u64, data: &[u8]) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (at, bytes) in data.chunks_exact(BLOCK).enumerate() {
            let block = first + at as u64;
            let found = recognise(bytes, block);
            let allowed: Vec<Content> = self.blocks[block as usize]
                .iter()
                .map(|id| &self.ops[id])
                .filter(|op| self.legal(block, op, OPEN))
                .map(|op| op.content)
                .collect();
            if !allowed.contains(&found) {
                violations.push(Violation {
                    block,
                    found,
                    allowed,
                });
            }
        }
        violations
    }

    /// Blocks of the disk.
    pub fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }
}
