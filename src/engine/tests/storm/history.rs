//! The histories of a run as a tree of frames, learnt from what the sites write to their journals, and what the volumes
//! hold at each end of it. It is made of observed bytes only: nothing here asks the engine.

use std::collections::BTreeMap;

use bytes::Bytes;
use uuid::Uuid;

use crate::base::{BLOCK, ByteRange, Lsn, OpKind, VolumeId};
use crate::journal::{Frame, decode_epoch, decode_volume};

/// Unit of content: every write fills whole sectors with its number.
pub const SECTOR: u64 = 512;

/// Marks the number of a request that zeroes.
pub const ZEROES: u64 = 1 << 63;

/// A position in the tree: last LSN and checksum of a frame. Zero is the root.
pub type Place = (Lsn, u32);

/// The root.
pub const ROOT: Place = (Lsn::ZERO, 0);

/// One operation.
#[derive(Clone, Debug)]
pub struct Entry {
    pub lsn: Lsn,
    pub kind: OpKind,
    pub volume: VolumeId,
    pub range: ByteRange,
    /// Number of the request it belongs to; 0 for control operations.
    pub request: u64,
}

/// One frame.
#[derive(Debug)]
pub struct Node {
    pub parent: Place,
    pub epoch: Uuid,
    /// The site that wrote it first.
    pub writer: usize,
    pub time_ns: u64,
    pub entries: Vec<Entry>,
    /// Volumes it creates or grows, with their sizes.
    pub sized: Vec<(VolumeId, u64)>,
}

/// All frames of a run.
#[derive(Debug, Default)]
pub struct History {
    nodes: BTreeMap<Place, Node>,
    /// An LSN of an epoch is used once.
    used: BTreeMap<(Uuid, Lsn), Place>,
    writers: BTreeMap<Uuid, usize>,
}

/// The frames in the bytes of a write to the journal; the first of a segment comes behind the segment's header.
pub fn frames_of(bytes: &Bytes) -> Option<Vec<Frame>> {
    let mut rest = bytes.clone();
    let mut frames = Vec::new();
    while !rest.is_empty() {
        if frames.is_empty() && Frame::peek_len(&rest).is_err() {
            rest = rest.slice(BLOCK..);
        }
        let len = Frame::peek_len(&rest).ok()?;
        frames.push(Frame::parse(rest.split_to(len)).ok()?);
    }
    Some(frames)
}

pub fn place_of(frame: &Frame) -> Place {
    (frame.last_lsn(), frame.checksum())
}

impl History {
    pub fn get(&self, place: Place) -> Option<&Node> {
        self.nodes.get(&place)
    }

    pub fn knows(&self, place: Place) -> bool {
        place == ROOT || self.nodes.contains_key(&place)
    }

    /// Enters a frame that a site writes to its journal. `request` tells which request an operation belongs to, by its
    /// content. `Ok(true)` if nobody wrote it before.
    pub fn enter(
        &mut self,
        frame: &Frame,
        site: usize,
        names: [&str; 3],
        mut request: impl FnMut(OpKind, VolumeId, ByteRange, &[u8]) -> Result<u64, String>,
    ) -> Result<bool, String> {
        let place = place_of(frame);
        if self.nodes.contains_key(&place) {
            return Ok(false);
        }
        let parent = (frame.first_lsn().prev(), frame.prev());
        if !self.knows(parent) {
            return Err(format!("LSN {} follows nothing", frame.first_lsn()));
        }
        let epoch = frame.epoch_id();
        if let Some(other) = self.used.insert((epoch, frame.first_lsn()), place) {
            return Err(format!(
                "LSN {} was used twice in the epoch {epoch}: {other:?} and {place:?}",
                frame.first_lsn()
            ));
        }
        let writer = *self.writers.entry(epoch).or_insert(site);
        if writer != site {
            return Err(format!("two sites write in the epoch {epoch}"));
        }
        if self
            .get(parent)
            .is_some_and(|p| p.time_ns >= frame.time_ns())
        {
            return Err(format!("the frame clock stands at LSN {}", place.0));
        }
        let (mut entries, mut sized, mut opens) = (Vec::new(), Vec::new(), false);
        for (lsn, op, payload) in frame.ops() {
            let content = payload.content().map_err(|e| e.to_string())?;
            let mut number = 0;
            match op.kind {
                OpKind::OpenEpoch => {
                    opens = true;
                    let opened = decode_epoch(&content).map_err(|e| e.to_string())?;
                    if opened.id != epoch || opened.site != names[site] {
                        return Err(format!("{} opens an epoch of {}", names[site], opened.site));
                    }
                }
                OpKind::CreateVolume | OpKind::ResizeVolume => {
                    let volume = decode_volume(&content).map_err(|e| e.to_string())?;
                    sized.push((volume.id, volume.size));
                }
                _ => number = request(op.kind, op.volume, op.range, &content)?,
            }
            entries.push(Entry {
                lsn,
                kind: op.kind,
                volume: op.volume,
                range: op.range,
                request: number,
            });
        }
        if !opens && self.get(parent).is_none_or(|p| p.epoch != epoch) {
            return Err(format!(
                "LSN {} is of an epoch that was not opened before it",
                frame.first_lsn()
            ));
        }
        let node = Node {
            parent,
            epoch,
            writer,
            time_ns: frame.time_ns(),
            entries,
            sized,
        };
        self.nodes.insert(place, node);
        Ok(true)
    }
}

/// What a sector held: since which LSN, and the request's number.
pub type Version = (Lsn, u64);

/// One end of the tree with all that leads to it, and what the volumes hold there.
#[derive(Debug, Default)]
pub struct Chain {
    places: Vec<Place>,
    /// Per volume and sector all versions, oldest first.
    volumes: BTreeMap<VolumeId, Vec<Vec<Version>>>,
}

impl Chain {
    pub fn head(&self) -> Place {
        self.places.last().copied().unwrap_or(ROOT)
    }

    pub fn contains(&self, place: Place) -> bool {
        place == ROOT || self.at(place.0) == Some(place)
    }

    /// The frame that holds this LSN.
    pub fn at(&self, lsn: Lsn) -> Option<Place> {
        let at = self.places.partition_point(|p| p.0 < lsn);
        self.places.get(at).copied()
    }

    pub fn volumes(&self) -> &BTreeMap<VolumeId, Vec<Vec<Version>>> {
        &self.volumes
    }

    /// All versions of one sector; empty where nothing was ever written.
    pub fn versions(&self, volume: VolumeId, sector: u64) -> &[Version] {
        self.volumes
            .get(&volume)
            .and_then(|sectors| sectors.get(sector as usize))
            .map_or(&[], Vec::as_slice)
    }

    /// Moves to another end of the tree; returns what it no longer holds. `None` if that end is not known (yet).
    pub fn move_to(&mut self, head: Place, history: &History) -> Option<Vec<Place>> {
        let mut added = Vec::new();
        let mut at = head;
        while !self.contains(at) {
            added.push(at);
            at = history.get(at)?.parent;
        }
        let keep = self.places.partition_point(|p| p.0 <= at.0);
        let dropped = self.places.split_off(keep);
        if !dropped.is_empty() {
            let places = std::mem::take(&mut self.places);
            self.volumes.clear();
            for place in places {
                self.extend(place, history);
            }
        }
        added.reverse();
        for place in &added {
            self.extend(*place, history);
        }
        Some(dropped)
    }

    pub fn places(&self) -> &[Place] {
        &self.places
    }

    fn extend(&mut self, place: Place, history: &History) {
        self.places.push(place);
        let node = history.get(place).expect("known");
        for (volume, size) in &node.sized {
            let sectors = self.volumes.entry(*volume).or_default();
            sectors.resize((size / SECTOR) as usize, Vec::new());
        }
        for entry in node.entries.iter().filter(|e| !e.kind.is_control()) {
            let sectors = self.volumes.get_mut(&entry.volume).expect("created before");
            for sector in entry.range.offset / SECTOR..entry.range.end() / SECTOR {
                sectors[sector as usize].push((entry.lsn, entry.request));
            }
        }
    }
}

/// What a sector reads as, if this was written to it.
pub fn reads_as(request: u64) -> u64 {
    if request & ZEROES == 0 { request } else { 0 }
}
