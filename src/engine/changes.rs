//! Which chunks the operations of the journal touch, and which ones a peer may lack whose part of the journal is gone.
//!
//! While the journal holds everything that a peer needs, it is streamed to. Before a frame is given up that a peer does not
//! have, its chunks enter the peer's set, durably. A set is only ever too large: it is thrown away when the peer is in sync,
//! and never made smaller by inference.
//!
//! While a copy is under way, and when it was cut off, the mirror itself knows which chunks of its homes are not what its own
//! journal says: that set is on its record, and shrinks by what is confirmed and durable there. It contains all that the
//! primary knew of when the copy began, so that the primary begins a new set then.

use std::collections::{BTreeMap, VecDeque};

use crate::base::{ChunkSet, Lsn, OpKind, VolumeSpec};
use crate::journal::{Dirty, Frame};

/// Frames whose chunks are kept together, as a share of the journal.
const SPANS: u64 = 32;

/// What changed where.
pub(super) struct Changes {
    /// Oldest first, without gaps between them.
    spans: VecDeque<Span>,
    /// The end of the history: also what waits for the journal counts, which is in no home yet.
    end: Lsn,
    span_bytes: u64,
    peers: BTreeMap<String, Dirty>,
    /// Chunks of the homes here that are not what the journal here says. `None` when there is none, or nothing is known.
    own: Option<ChunkSet>,
}

/// A stretch of history.
struct Span {
    first: Lsn,
    last: Lsn,
    bytes: u64,
    chunks: ChunkSet,
    /// A volume was made in it.
    creates: bool,
}

impl Changes {
    /// Of a journal of this size in bytes, whose peers lack this according to the record. What follows `end` is to be noted.
    pub fn new(
        capacity: u64,
        end: Lsn,
        peers: BTreeMap<String, Dirty>,
        own: Option<ChunkSet>,
    ) -> Changes {
        Changes {
            spans: VecDeque::new(),
            end,
            span_bytes: capacity / SPANS,
            peers,
            own,
        }
    }

    /// A frame enters the journal.
    pub fn note(&mut self, frame: &Frame) {
        let first = frame.first_lsn();
        self.end = frame.last_lsn();
        if self.spans.back().is_some_and(|s| s.last.next() != first) {
            // What lies between is not known; nothing before it can be vouched for.
            self.spans.clear();
        }
        if self.spans.back().is_none_or(|s| s.bytes >= self.span_bytes) {
            self.spans.push_back(Span {
                first,
                last: first,
                bytes: 0,
                chunks: ChunkSet::new(),
                creates: false,
            });
        }
        let span = self.spans.back_mut().expect("just pushed");
        span.last = frame.last_lsn();
        span.bytes += frame.len() as u64;
        for (_, op, _) in frame.ops() {
            span.creates |= op.kind == OpKind::CreateVolume;
            if op.kind != OpKind::OpenEpoch {
                span.chunks.insert(op.volume, op.range);
            }
        }
    }

    /// Chunks touched after this LSN; everything if that is not known any more.
    pub fn after(&self, lsn: Lsn) -> ChunkSet {
        if lsn >= self.end {
            return ChunkSet::new();
        }
        if self.spans.front().is_none_or(|s| s.first > lsn.next()) {
            return ChunkSet::everything();
        }
        let mut chunks = ChunkSet::new();
        for span in self.spans.iter().filter(|s| s.last > lsn) {
            chunks.union(&span.chunks);
        }
        chunks
    }

    /// From which LSN on it is known which chunks were touched.
    pub fn known_from(&self) -> Option<Lsn> {
        self.spans.front().map(|span| span.first)
    }

    /// The first LSN from this one on that may concern one of these chunks.
    pub fn next_touching(&self, from: Lsn, wanted: &ChunkSet) -> Lsn {
        let mut at = from;
        for span in &self.spans {
            let within = span.first <= at && at <= span.last;
            if within && !span.creates && !span.chunks.meets(wanted) {
                at = span.last.next();
            }
        }
        at
    }

    /// Chunks in which a peer's homes, which hold our history up to `shared`, may differ from ours.
    pub fn lacking(&self, peer: &str, shared: Lsn) -> ChunkSet {
        match self.peers.get(peer) {
            Some(dirty) if dirty.chunks.is_everything() => ChunkSet::everything(),
            Some(dirty) if dirty.since <= shared && self.continues(dirty.until) => {
                let mut chunks = dirty.chunks.clone();
                for span in self.spans.iter().filter(|s| s.last > shared) {
                    chunks.union(&span.chunks);
                }
                chunks
            }
            _ => self.after(shared),
        }
    }

    /// Whether everything after this LSN is known.
    fn continues(&self, until: Lsn) -> bool {
        until >= self.end || self.spans.front().is_some_and(|s| s.first <= until.next())
    }

    /// The journal is about to give up what is before `keep`. Enters it into the sets of the peers that lack it; `confirmed`
    /// tells how far each peer is known to be, if it follows this site. `true` if a set changed, and must be durable before the
    /// journal is reused.
    pub fn give_up_before(&mut self, keep: Lsn, confirmed: &[(String, Option<Lsn>)]) -> bool {
        let mut grew = false;
        while self.spans.front().is_some_and(|s| s.last < keep) {
            let span = self.spans.pop_front().expect("just seen");
            for (peer, lsn) in confirmed {
                let has_it = lsn.is_some_and(|lsn| span.last <= lsn);
                match self.peers.get_mut(peer) {
                    None if has_it || lsn.is_none() => continue,
                    // It lacks nothing, and goes on lacking nothing.
                    Some(dirty)
                        if has_it
                            && dirty.chunks.is_empty()
                            && span.first <= dirty.until.next() =>
                    {
                        (dirty.since, dirty.until) = (span.last, span.last);
                        grew = true;
                        continue;
                    }
                    _ => {}
                }
                let dirty = self.peers.entry(peer.clone()).or_insert_with(|| Dirty {
                    since: span.first.prev(),
                    until: span.first.prev(),
                    chunks: ChunkSet::new(),
                });
                if span.first <= dirty.until.next() {
                    dirty.chunks.union(&span.chunks);
                } else {
                    // Something between was given up unseen.
                    dirty.chunks = ChunkSet::everything();
                }
                dirty.until = dirty.until.max(span.last);
                grew = true;
            }
        }
        grew
    }

    /// The sets, for the record.
    pub fn set_of(&self, peer: &str) -> Option<&Dirty> {
        self.peers.get(peer)
    }

    /// The peer has on its own record what its homes lacked at this LSN. From here on only what it does not get counts.
    pub fn lacks_nothing_after(&mut self, peer: &str, lsn: Lsn) {
        let dirty = Dirty {
            since: lsn,
            until: lsn,
            chunks: ChunkSet::new(),
        };
        self.peers.insert(peer.to_owned(), dirty);
    }

    /// Chunks of the homes here that are not what the journal here says.
    pub fn own(&self) -> Option<&ChunkSet> {
        self.own.as_ref()
    }

    /// A copy begins, of these.
    pub fn begin_own(&mut self, chunks: ChunkSet) {
        self.peers.clear();
        self.own = Some(chunks);
    }

    /// These are as they should be, durably.
    pub fn confirm_own(&mut self, chunks: &ChunkSet, volumes: &[VolumeSpec]) {
        if let Some(own) = &mut self.own {
            own.subtract(chunks, volumes);
        }
    }

    /// The homes are what the journal says, or nothing is known of them.
    pub fn forget_own(&mut self) {
        self.own = None;
    }

    /// Chunks in which the homes here may differ from this peer's at `lsn`, besides those noted already.
    pub fn put(&mut self, peer: &str, lsn: Lsn, chunks: &ChunkSet) {
        let dirty = self.peers.entry(peer.to_owned()).or_insert_with(|| Dirty {
            since: lsn,
            until: lsn,
            chunks: ChunkSet::new(),
        });
        dirty.chunks.union(chunks);
    }

    /// The peer's homes and ours are the same: it confirmed.
    pub fn forget(&mut self, peer: &str) {
        self.peers.remove(peer);
    }

    /// The set exists and says that nothing differs.
    #[cfg(test)]
    pub fn empty(&mut self, peer: &str) {
        if let Some(dirty) = self.peers.get_mut(peer) {
            dirty.chunks = ChunkSet::new();
        }
    }

    /// The tail after `lsn` is dropped; none of it reached a home.
    pub fn truncate_after(&mut self, lsn: Lsn) {
        self.end = self.end.min(lsn);
        while self.spans.back().is_some_and(|s| s.first > lsn) {
            self.spans.pop_back();
        }
        if let Some(span) = self.spans.back_mut() {
            span.last = span.last.min(lsn);
        }
    }

    /// Nothing is known any more.
    #[cfg(test)]
    pub fn clear(&mut self) {
        self.spans.clear();
        self.peers.clear();
        self.own = None;
    }

    /// The history starts over after `base`.
    pub fn restart(&mut self, base: Lsn) {
        self.end = base;
        self.spans.clear();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::base::{ByteRange, CHUNK_BYTES, Op, VolumeId, VolumeSpec};
    use crate::journal::{Encoding, FrameBuilder};

    /// A frame of one write to this chunk.
    fn frame(lsn: u64, chunk: u64) -> Frame {
        let mut builder = FrameBuilder::new(Uuid::nil(), Uuid::nil(), Lsn(lsn), 0);
        let op = Op {
            kind: OpKind::Write,
            volume: VolumeId(0),
            range: ByteRange::new(chunk * CHUNK_BYTES, 512),
            fua: false,
        };
        builder.push(&op, &[1; 512], Encoding::Raw);
        builder.seal(0, Lsn::ZERO, 1)
    }

    /// A journal so small that each frame is a span of its own, with these chunks written one after the other.
    fn changes(chunks: &[u64]) -> Changes {
        let mut changes = Changes::new(SPANS, Lsn::ZERO, BTreeMap::new(), None);
        for (lsn, chunk) in (1..).zip(chunks) {
            changes.note(&frame(lsn, *chunk));
        }
        changes
    }

    fn chunks(set: &ChunkSet) -> Vec<u64> {
        let volume = VolumeSpec {
            id: VolumeId(0),
            uuid: Uuid::nil(),
            name: "v".into(),
            size: 1 << 30,
        };
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(range) = set.next(&volume, at) {
            found.push(range.offset / CHUNK_BYTES);
            at = range.end();
        }
        found
    }

    #[test]
    fn what_was_touched_after_an_lsn_is_known_as_long_as_its_frames_are() {
        let mut changes = changes(&[7, 3, 9]);
        assert_eq!(chunks(&changes.after(Lsn(1))), [3, 9]);
        assert!(changes.after(Lsn(3)).is_empty());
        changes.give_up_before(Lsn(3), &[]);
        assert!(changes.after(Lsn(1)).is_everything());
        assert_eq!(chunks(&changes.after(Lsn(2))), [9]);
    }

    #[test]
    fn what_a_peer_lacks_enters_its_set_before_it_is_given_up() {
        let mut changes = changes(&[7, 3, 9, 5]);
        let behind = [("b".to_owned(), Some(Lsn(1)))];
        assert!(!changes.give_up_before(Lsn(2), &behind), "it has that");
        assert!(changes.give_up_before(Lsn(4), &behind));
        assert_eq!(changes.set_of("b").unwrap().since, Lsn(1));
        // What is still in the journal counts, too.
        assert_eq!(chunks(&changes.lacking("b", Lsn(1))), [3, 5, 9]);
        // A peer that lacks more than the set knows of.
        assert!(changes.lacking("b", Lsn(0)).is_everything());
        changes.forget("b");
        assert!(changes.lacking("b", Lsn(1)).is_everything());
    }

    #[test]
    fn a_set_that_exists_grows_whatever_the_peer_confirmed() {
        let mut changes = changes(&[7, 3]);
        changes.put("b", Lsn(0), &ChunkSet::new());
        assert!(changes.give_up_before(Lsn(3), &[("b".to_owned(), None)]));
        assert_eq!(chunks(&changes.lacking("b", Lsn(0))), [3, 7]);
    }

    #[test]
    fn a_peer_that_lacks_nothing_and_follows_goes_on_lacking_nothing() {
        let mut changes = changes(&[7, 3, 9, 5]);
        changes.lacks_nothing_after("b", Lsn(1));
        assert!(changes.give_up_before(Lsn(3), &[("b".to_owned(), Some(Lsn(2)))]));
        assert_eq!(chunks(&changes.lacking("b", Lsn(2))), [5, 9]);
        // What it had confirmed it has lost.
        assert!(changes.lacking("b", Lsn(1)).is_everything());
        changes.give_up_before(Lsn(5), &[("b".to_owned(), Some(Lsn(3)))]);
        assert_eq!(chunks(&changes.lacking("b", Lsn(3))), [5]);
    }

    #[test]
    fn a_set_from_the_record_counts_only_if_nothing_is_unknown_since() {
        let recorded = |until| {
            let dirty = Dirty {
                since: Lsn(1),
                until: Lsn(until),
                chunks: ChunkSet::new(),
            };
            let mut changes = Changes::new(
                SPANS,
                Lsn(8),
                BTreeMap::from([("b".to_owned(), dirty)]),
                None,
            );
            // Recovery begins at its checkpoint.
            changes.note(&frame(9, 4));
            changes
        };
        assert_eq!(chunks(&recorded(8).lacking("b", Lsn(1))), [4]);
        assert!(recorded(7).lacking("b", Lsn(1)).is_everything());
        let mut changes = recorded(7);
        changes.give_up_before(Lsn(10), &[("b".to_owned(), Some(Lsn(0)))]);
        assert!(changes.lacking("b", Lsn(1)).is_everything());
    }

    #[test]
    fn a_gap_makes_everything_before_it_unknown() {
        let mut changes = changes(&[7]);
        changes.note(&frame(5, 2));
        assert!(changes.after(Lsn(0)).is_everything());
        assert_eq!(chunks(&changes.after(Lsn(4))), [2]);
    }

    #[test]
    fn stretches_that_touch_none_of_some_chunks_are_passed_over() {
        let changes = changes(&[7, 3, 9, 3]);
        let mut wanted = ChunkSet::new();
        wanted.insert(VolumeId(0), ByteRange::new(3 * CHUNK_BYTES, 1));
        let next = |from| changes.next_touching(Lsn(from), &wanted).0;
        assert_eq!([1, 2, 3, 4].map(next), [2, 2, 4, 4]);
        // What is not known may concern them.
        assert_eq!([0, 5].map(next), [0, 5]);
    }

    #[test]
    fn a_truncated_tail_is_followed_by_another() {
        let mut changes = changes(&[7, 3, 9]);
        changes.truncate_after(Lsn(1));
        changes.note(&frame(2, 4));
        assert_eq!(chunks(&changes.after(Lsn(1))), [4]);
    }
}
