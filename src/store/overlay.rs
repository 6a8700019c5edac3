//! Which operation was the last to cover each byte, among those not yet applied.

use std::collections::BTreeMap;

use rangemap::RangeMap;

use crate::base::{ByteRange, Lsn, VolumeId};

/// An interval map per volume. The newest operation wins.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    volumes: BTreeMap<VolumeId, RangeMap<u64, Lsn>>,
}

impl Overlay {
    /// The operation at `lsn`, newer than all so far, covers the range.
    pub fn cover(&mut self, volume: VolumeId, range: ByteRange, lsn: Lsn) {
        if range.len > 0 {
            self.volumes
                .entry(volume)
                .or_default()
                .insert(range.offset..range.end(), lsn);
        }
    }

    /// The operation at `lsn` is in the home: what it still covers comes from there.
    pub fn uncover(&mut self, volume: VolumeId, range: ByteRange, lsn: Lsn) {
        let Some(map) = self.volumes.get_mut(&volume).filter(|_| range.len > 0) else {
            return;
        };
        let own: smallvec::SmallVec<[_; 4]> = map
            .overlapping(&(range.offset..range.end()))
            .filter(|(_, owner)| **owner == lsn)
            .map(|(covered, _)| covered.clone())
            .collect();
        for covered in own {
            map.remove(covered);
        }
    }

    /// What covers the range, in order; gaps come from the home.
    pub fn covering(
        &self,
        volume: VolumeId,
        range: ByteRange,
    ) -> impl Iterator<Item = (ByteRange, Lsn)> {
        let wanted = range.offset..range.end();
        self.volumes
            .get(&volume)
            .filter(|_| range.len > 0)
            .into_iter()
            .flat_map(move |map| {
                map.overlapping(&wanted)
                    .map(|(r, l)| (r.clone(), *l))
                    .collect::<Vec<_>>()
            })
            .map(move |(covered, lsn)| {
                let from = covered.start.max(range.offset);
                let to = covered.end.min(range.end());
                (ByteRange::new(from, to - from), lsn)
            })
    }
}
