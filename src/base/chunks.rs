//! Sets of chunks: which parts of the volumes may differ between two sites.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use roaring::RoaringBitmap;

use super::{ByteRange, VolumeId, VolumeSpec};

/// Size of a chunk in bytes: the unit in which sites compare and copy.
pub const CHUNK_BYTES: u64 = 256 << 10;

/// Largest volume, bytes: 1 PiB, as its chunks are counted in 32 bits.
pub const VOLUME_MAX_BYTES: u64 = CHUNK_BYTES << 32;

/// Chunks of a group's volumes. Only ever too many, never too few: what is not known is `everything`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ChunkSet {
    everything: bool,
    volumes: BTreeMap<VolumeId, RoaringBitmap>,
}

impl Eq for ChunkSet {}

/// The chunks that a range which is not empty touches; `None` beyond what can be counted.
fn span(range: ByteRange) -> Option<RangeInclusive<u32>> {
    let chunk = |at: u64| u32::try_from(at / CHUNK_BYTES).ok();
    Some(chunk(range.offset)?..=chunk(range.end() - 1)?)
}

impl ChunkSet {
    /// No chunk.
    pub fn new() -> ChunkSet {
        ChunkSet::default()
    }

    /// Every chunk of every volume.
    pub fn everything() -> ChunkSet {
        ChunkSet {
            everything: true,
            volumes: BTreeMap::new(),
        }
    }

    /// Whether it is every chunk of every volume.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Whether no chunk is in it.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.volumes.values().all(RoaringBitmap::is_empty)
    }

    /// Adds the chunks that a range touches.
    pub fn insert(&mut self, volume: VolumeId, range: ByteRange) {
        if range.len == 0 || self.everything {
            return;
        }
        let Some(chunks) = span(range) else {
            *self = ChunkSet::everything();
            return;
        };
        self.volumes.entry(volume).or_default().insert_range(chunks);
    }

    /// Whether the chunk is in the set that begins at `offset`, or in which it lies.
    pub fn holds(&self, volume: VolumeId, offset: u64) -> bool {
        let chunk = u32::try_from(offset / CHUNK_BYTES);
        let Ok(chunk) = chunk else {
            return self.everything;
        };
        self.everything || self.volumes.get(&volume).is_some_and(|v| v.contains(chunk))
    }

    /// Whether every chunk is in the set that a range touches.
    pub fn covers(&self, volume: VolumeId, range: ByteRange) -> bool {
        if self.everything || range.len == 0 {
            return true;
        }
        let held = self.volumes.get(&volume);
        held.zip(span(range))
            .is_some_and(|(held, chunks)| held.contains_range(chunks))
    }

    /// Whether any chunk is in both.
    pub fn meets(&self, other: &ChunkSet) -> bool {
        let meets = |(volume, chunks): (&VolumeId, &RoaringBitmap)| {
            let others = other.volumes.get(volume);
            others.is_some_and(|others| !chunks.is_disjoint(others))
        };
        self.everything && !other.is_empty()
            || other.everything && !self.is_empty()
            || self.volumes.iter().any(meets)
    }

    /// Adds all that is in another set.
    pub fn union(&mut self, other: &ChunkSet) {
        if self.everything {
            return;
        }
        if other.everything {
            *self = ChunkSet::everything();
            return;
        }
        for (volume, chunks) in &other.volumes {
            *self.volumes.entry(*volume).or_default() |= chunks;
        }
    }

    /// Takes away what is in another set. Of everything that leaves the other chunks of these volumes, which are all there are.
    pub fn subtract(&mut self, other: &ChunkSet, volumes: &[VolumeSpec]) {
        if other.everything {
            *self = ChunkSet::new();
            return;
        }
        if std::mem::take(&mut self.everything) {
            for volume in volumes {
                self.insert(volume.id, ByteRange::new(0, volume.size));
            }
        }
        for (volume, chunks) in &other.volumes {
            if let Some(mine) = self.volumes.get_mut(volume) {
                *mine -= chunks;
            }
        }
    }

    /// The range of the first chunk of this volume that is in the set and begins at `offset` or after.
    pub fn next(&self, volume: &VolumeSpec, offset: u64) -> Option<ByteRange> {
        let from = offset.div_ceil(CHUNK_BYTES);
        let chunk = if self.everything {
            from
        } else {
            let from = u32::try_from(from).ok()?;
            u64::from(self.volumes.get(&volume.id)?.range(from..).next()?)
        };
        let start = chunk * CHUNK_BYTES;
        (start < volume.size).then(|| ByteRange::new(start, CHUNK_BYTES.min(volume.size - start)))
    }

    /// Forgets chunks that none of these volumes has.
    pub fn clip(&mut self, volumes: &[VolumeSpec]) {
        self.volumes.retain(|id, chunks| {
            let Some(volume) = volumes.iter().find(|v| v.id == *id) else {
                return false;
            };
            if let Ok(end) = u32::try_from(volume.size.div_ceil(CHUNK_BYTES)) {
                chunks.remove_range(end..);
            }
            !chunks.is_empty()
        });
    }

    /// Bytes of its chunks, in these volumes.
    pub fn bytes(&self, volumes: &[VolumeSpec]) -> u64 {
        let of = |volume: &VolumeSpec| {
            if self.everything {
                return volume.size;
            }
            let chunks = self.volumes.get(&volume.id);
            chunks.map_or(0, |c| (c.len() * CHUNK_BYTES).min(volume.size))
        };
        volumes.iter().map(of).sum()
    }

    /// As bytes: for each volume its id and the length of what follows (both u32, little endian), then its chunks in the
    /// portable format of roaring bitmaps. One byte 1 stands for everything; nothing for nothing.
    pub fn encode(&self) -> Vec<u8> {
        if self.everything {
            return vec![1];
        }
        let mut out = Vec::new();
        for (volume, chunks) in self.volumes.iter().filter(|(_, c)| !c.is_empty()) {
            out.extend_from_slice(&volume.0.to_le_bytes());
            out.extend_from_slice(&(chunks.serialized_size() as u32).to_le_bytes());
            chunks
                .serialize_into(&mut out)
                .expect("memory takes everything");
        }
        out
    }

    /// The set of such bytes.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn decode(mut bytes: &[u8]) -> Result<ChunkSet, String> {
        if bytes == [1] {
            return Ok(ChunkSet::everything());
        }
        let mut set = ChunkSet::new();
        while !bytes.is_empty() {
            let (Some((volume, rest)), cut) = (bytes.split_first_chunk::<4>(), bytes.len()) else {
                return Err(format!("a set of chunks ends with {} bytes", bytes.len()));
            };
            let Some((len, rest)) = rest.split_first_chunk::<4>() else {
                return Err(format!("a set of chunks ends with {cut} bytes"));
            };
            let volume = VolumeId(u32::from_le_bytes(*volume));
            let len = u32::from_le_bytes(*len) as usize;
            let Some((mut chunks, rest)) = rest.split_at_checked(len) else {
                return Err(format!(
                    "a bitmap of {len} bytes is cut off after {}",
                    rest.len()
                ));
            };
            let bitmap = RoaringBitmap::deserialize_from(&mut chunks)
                .map_err(|error| format!("a bitmap is damaged: {error}"))?;
            if bitmap.is_empty() || !chunks.is_empty() {
                return Err(format!(
                    "a bitmap of {} chunks leaves {} of {len} bytes",
                    bitmap.len(),
                    chunks.len()
                ));
            }
            if set.volumes.insert(volume, bitmap).is_some() {
                return Err(format!("volume {} has two bitmaps", volume.0));
            }
            bytes = rest;
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn volume(id: u32, size: u64) -> VolumeSpec {
        VolumeSpec {
            id: VolumeId(id),
            uuid: Uuid::nil(),
            name: format!("v{id}"),
            size,
        }
    }

    fn ranges(set: &ChunkSet, volume: &VolumeSpec) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(range) = set.next(volume, at) {
            found.push((range.offset, range.len));
            at = range.end();
        }
        found
    }

    #[test]
    fn what_no_volume_has_is_clipped() {
        let mut set = ChunkSet::new();
        set.insert(VolumeId(1), ByteRange::new(0, 10 * CHUNK_BYTES));
        set.insert(VolumeId(2), ByteRange::new(0, 1));
        set.insert(VolumeId(3), ByteRange::new(5 * CHUNK_BYTES, 1));
        set.clip(&[volume(1, 2 * CHUNK_BYTES + 1), volume(3, CHUNK_BYTES)]);
        let mut left = ChunkSet::new();
        left.insert(VolumeId(1), ByteRange::new(0, 3 * CHUNK_BYTES));
        assert_eq!(set, left);
        let mut all = ChunkSet::everything();
        all.clip(&[]);
        assert!(all.is_everything());
    }

    #[test]
    fn a_set_holds_every_chunk_that_a_range_touches_and_no_other() {
        let mut set = ChunkSet::new();
        let v = volume(0, 10 * CHUNK_BYTES + 512);
        assert!(set.is_empty());
        set.insert(v.id, ByteRange::new(5, 0));
        assert!(set.is_empty());
        set.insert(v.id, ByteRange::new(CHUNK_BYTES - 1, 2));
        set.insert(v.id, ByteRange::new(10 * CHUNK_BYTES, 1));
        let wanted = [
            (0, CHUNK_BYTES),
            (CHUNK_BYTES, CHUNK_BYTES),
            (10 * CHUNK_BYTES, 512),
        ];
        assert_eq!(ranges(&set, &v), wanted);
        assert_eq!(ranges(&set, &volume(1, 1 << 30)), []);
        assert!(set.covers(v.id, ByteRange::new(4096, 2 * CHUNK_BYTES - 4096)));
        assert!(!set.covers(v.id, ByteRange::new(4096, 2 * CHUNK_BYTES - 4095)));
        assert!(!set.covers(VolumeId(1), ByteRange::new(0, 1)));
    }

    #[test]
    fn everything_is_every_chunk_of_every_volume_and_stays_so() {
        let mut set = ChunkSet::new();
        set.insert(VolumeId(3), ByteRange::new(0, 1));
        set.union(&ChunkSet::everything());
        set.insert(VolumeId(3), ByteRange::new(0, 1));
        let v = volume(7, 2 * CHUNK_BYTES + 1);
        assert_eq!(ranges(&set, &v).len(), 3);
        assert_eq!(set.bytes(&[v]), 2 * CHUNK_BYTES + 1);
        assert!(set.is_everything() && !set.is_empty());
    }

    #[test]
    fn what_was_encoded_means_the_same_and_damage_is_an_error() {
        let mut set = ChunkSet::new();
        set.insert(VolumeId(1), ByteRange::new(0, 40 * CHUNK_BYTES));
        set.insert(VolumeId(9), ByteRange::new(1 << 40, 1));
        let bytes = set.encode();
        assert_eq!(ChunkSet::decode(&bytes), Ok(set.clone()));
        // One byte of it could be the sign for everything.
        for cut in 2..bytes.len() {
            let whole_volume =
                cut == 8 + u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
            assert_eq!(
                ChunkSet::decode(&bytes[..cut]).is_ok(),
                whole_volume,
                "{cut}"
            );
        }
        let twice = [bytes.clone(), bytes].concat();
        assert!(ChunkSet::decode(&twice).unwrap_err().contains("two"));
        assert_eq!(
            ChunkSet::decode(&ChunkSet::everything().encode()),
            Ok(ChunkSet::everything())
        );
        assert_eq!(ChunkSet::decode(&[]), Ok(ChunkSet::new()));
        // What no encoder writes: a bitmap without chunks, and one that ends before its length does.
        let mut one = ChunkSet::new();
        one.insert(VolumeId(1), ByteRange::new(0, 1));
        let mut none = Vec::new();
        RoaringBitmap::new().serialize_into(&mut none).unwrap();
        for bitmap in [none, [one.encode().split_off(8), vec![0]].concat()] {
            let mut bytes = vec![1, 0, 0, 0, bitmap.len() as u8, 0, 0, 0];
            bytes.extend(bitmap);
            assert!(ChunkSet::decode(&bytes).unwrap_err().contains("leaves"));
        }
    }

    #[test]
    fn what_is_taken_away_from_everything_leaves_the_rest_of_the_volumes() {
        let volumes = [volume(1, 2 * CHUNK_BYTES + 1), volume(2, CHUNK_BYTES)];
        let mut one = ChunkSet::new();
        one.insert(VolumeId(1), ByteRange::new(CHUNK_BYTES, 1));
        let mut left = ChunkSet::everything();
        left.subtract(&one, &volumes);
        let last = (2 * CHUNK_BYTES, 1);
        assert_eq!(ranges(&left, &volumes[0]), [(0, CHUNK_BYTES), last]);
        assert_eq!(ranges(&left, &volumes[1]), [(0, CHUNK_BYTES)]);
        left.subtract(&one, &volumes);
        assert_eq!(left.bytes(&volumes), 3 * CHUNK_BYTES);
        left.subtract(&ChunkSet::everything(), &volumes);
        assert!(left.is_empty());
    }

    #[test]
    fn sets_meet_where_a_chunk_is_in_both() {
        let mut a = ChunkSet::new();
        a.insert(VolumeId(1), ByteRange::new(0, 1));
        let mut b = ChunkSet::new();
        b.insert(VolumeId(2), ByteRange::new(0, 1));
        b.insert(VolumeId(1), ByteRange::new(CHUNK_BYTES, 1));
        assert!(!a.meets(&b) && a.meets(&a));
        b.insert(VolumeId(1), ByteRange::new(CHUNK_BYTES - 1, 1));
        assert!(a.meets(&b) && b.meets(&a));
        let all = ChunkSet::everything();
        assert!(all.meets(&a) && a.meets(&all));
        assert!(!all.meets(&ChunkSet::new()));
    }

    #[test]
    fn a_union_has_the_chunks_of_both() {
        let v = volume(0, 1 << 30);
        let mut a = ChunkSet::new();
        a.insert(v.id, ByteRange::new(0, 1));
        let mut b = ChunkSet::new();
        b.insert(v.id, ByteRange::new(5 * CHUNK_BYTES, 1));
        a.union(&b);
        assert_eq!(
            ranges(&a, &v),
            [(0, CHUNK_BYTES), (5 * CHUNK_BYTES, CHUNK_BYTES)]
        );
    }
}
