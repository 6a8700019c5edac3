//! What clients asked and were told, and what follows from that: which operations must never be lost, and which were
//! given up by an operator's decision.

use std::collections::BTreeMap;

use super::history::{Place, Version, ZEROES, reads_as};
use crate::base::{ByteRange, Lsn, OpKind, VolumeId};

/// A request of a client.
#[derive(Clone, Debug)]
pub struct Asked {
    pub number: u64,
    pub client: usize,
    pub site: usize,
    pub volume: VolumeId,
    pub what: What,
    /// Last LSN at the site when it came.
    pub tail: Lsn,
}

#[derive(Clone, Debug)]
pub enum What {
    Write {
        range: ByteRange,
        /// Zeroes, by trimming or writing them.
        zeroes: bool,
        fua: bool,
    },
    Flush {
        /// The last write that was acknowledged at this site before.
        after: Option<Promise>,
    },
    Read(ByteRange),
    Status,
}

/// An operation that somebody was told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promise {
    pub number: u64,
    pub place: Place,
    /// Where it was acknowledged.
    pub site: usize,
}

/// What became of a promise that is not kept any more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Waiver {
    /// An operator emptied the site that had it.
    Discarded,
    /// It was in the memory of both sites only, and both lost power.
    Memory,
}

/// All requests of a run.
#[derive(Debug, Default)]
pub struct Ledger {
    next: u64,
    /// Not answered yet.
    pub open: BTreeMap<u64, Asked>,
    /// Every mutating request: what it wrote where, where it went in the history, and whether it may still.
    writes: BTreeMap<u64, Write>,
    pub promises: BTreeMap<Place, Promise>,
    pub waived: BTreeMap<Place, Waiver>,
    pub acknowledged: u64,
    pub reads: u64,
    pub refused: u64,
}

#[derive(Debug)]
struct Write {
    site: usize,
    volume: VolumeId,
    range: ByteRange,
    zeroes: bool,
    /// The frame it is in.
    place: Option<Place>,
    /// It was answered with an error, or its client was gone before it got an LSN.
    never: Option<&'static str>,
}

impl Ledger {
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn ask(&mut self, asked: Asked) {
        if let What::Write { range, zeroes, .. } = asked.what {
            let write = Write {
                site: asked.site,
                volume: asked.volume,
                range,
                zeroes,
                place: None,
                never: None,
            };
            self.writes.insert(asked.number, write);
        }
        self.open.insert(asked.number, asked);
    }

    /// Nobody can be told of what this client asked.
    pub fn forget_client(&mut self, client: usize) {
        self.open.retain(|_, asked| asked.client != client);
    }

    /// A write that must not become part of the history any more.
    pub fn never(&mut self, number: u64, why: &'static str) {
        if let Some(write) = self.writes.get_mut(&number) {
            write.never = Some(why);
        }
    }

    /// Which request an operation in a frame of this site belongs to.
    pub fn find(
        &mut self,
        site: usize,
        place: Place,
        kind: OpKind,
        volume: VolumeId,
        range: ByteRange,
        content: &[u8],
    ) -> Result<u64, String> {
        let number = if kind == OpKind::Write {
            let number = content
                .first_chunk()
                .map_or(0, |first| u64::from_le_bytes(*first));
            let same = content.as_chunks::<8>().0.iter();
            if !same.clone().all(|word| *word == number.to_le_bytes()) {
                return Err(format!("an operation at {range:?} mixes contents"));
            }
            number
        } else {
            // Those that zero the same range are alike: the oldest that is not found yet and still to be answered.
            let alike = |w: &Write| {
                w.zeroes
                    && w.site == site
                    && (w.volume, w.range) == (volume, range)
                    && w.place.is_none()
            };
            let found = self.writes.iter().filter(|(_, w)| alike(w));
            *found
                .min_by_key(|(n, w)| (w.never.is_some(), !self.open.contains_key(n), **n))
                .ok_or_else(|| format!("nobody asked to zero {range:?}"))?
                .0
        };
        let Some(write) = self.writes.get_mut(&number) else {
            return Err(format!("nobody asked for what is written to {range:?}"));
        };
        if (write.volume, write.range, write.site) != (volume, range, site) {
            return Err(format!(
                "request {number} ({write:?}) was not for {range:?}"
            ));
        }
        if let Some(why) = write.never {
            return Err(format!(
                "request {number} entered the history although {why}"
            ));
        }
        if write.place.replace(place).is_some() {
            return Err(format!("request {number} entered the history twice"));
        }
        Ok(if write.zeroes {
            number | ZEROES
        } else {
            number
        })
    }

    /// Where a write went.
    pub fn place(&self, number: u64) -> Option<Place> {
        let write = self.writes.get(&number)?;
        let alike = |w: &&Write| {
            w.zeroes && (w.site, w.volume, w.range) == (write.site, write.volume, write.range)
        };
        // Which of those that zero the same range an operation belongs to cannot be told.
        let any = || {
            self.writes
                .values()
                .filter(alike)
                .filter_map(|w| w.place)
                .max()
        };
        write.place.or_else(|| any().filter(|_| write.zeroes))
    }

    pub fn promise(&mut self, promise: Promise) {
        self.promises.insert(promise.place, promise);
    }

    /// Promises that still stand.
    pub fn standing(&self) -> impl DoubleEndedIterator<Item = &Promise> {
        self.promises
            .iter()
            .filter(|(key, _)| !self.waived.contains_key(key))
            .map(|(_, promise)| promise)
    }

    pub fn waive(&mut self, promise: &Promise, waiver: Waiver) {
        self.waived.insert(promise.place, waiver);
    }
}

/// Which of these versions a read may return that came when `tail` was the last LSN, if everything up to `commit` is
/// committed when it is answered: the last before it came, or a later one.
pub fn readable(versions: &[Version], tail: Lsn, commit: Lsn, found: u64) -> Option<Lsn> {
    let start = versions.partition_point(|v| v.0 <= tail);
    let from = start.saturating_sub(1);
    if start == 0 && found == 0 {
        return Some(Lsn::ZERO);
    }
    versions[from..]
        .iter()
        .rev()
        .find(|v| v.0 <= commit && reads_as(v.1) == found)
        .map(|v| v.0)
}
