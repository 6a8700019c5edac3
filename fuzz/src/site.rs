//! A site in miniature, held against a simple model: operations go through a real journal and a real store to homes in
//! memory; power fails at any step; and what is read is what an array of blocks says that had every operation at once.
//!
//! The journal's disk tears its writes at 512 bytes and finishes them in any order; the homes lose what was not synced.

use doublure::base::{
    AckMode, BLOCK, ByteRange, Compress, Epoch, Lineage, Lsn, MAX_WRITE_OP, Op, OpKind, VolumeId,
};
use doublure::journal::{
    Compressor, Encoding, Frame, FrameBuilder, Log, Position, Recovered, Recovery, Write,
    encode_epoch, segment_bytes,
};
use doublure::store::{Apply, Content, Source, Store};
use uuid::Uuid;

use crate::{Disk, Input};

/// The unit in which contents are told apart, bytes.
const UNIT: u64 = 512;
/// Units of a volume.
const UNITS: u64 = 2 * MAX_WRITE_OP / UNIT;
/// What a home holds where a write is under way.
const TORN: u8 = 255;
/// Journal writes under way at once.
const IN_FLIGHT: usize = 3;

/// Content of two volumes, unit by unit; zero where nothing is.
#[derive(Clone)]
struct Blocks(Vec<u8>);

impl Blocks {
    fn new() -> Blocks {
        Blocks(vec![0; 2 * UNITS as usize])
    }

    fn get(&self, (volume, unit): (u32, u64)) -> u8 {
        self.0[(u64::from(volume) * UNITS + unit) as usize]
    }

    fn set(&mut self, (volume, unit): (u32, u64), tag: u8) {
        self.0[(u64::from(volume) * UNITS + unit) as usize] = tag;
    }
}

/// A frame and its write to the journal.
struct Sealed {
    frame: Frame,
    write: Write,
    /// The write has not completed.
    in_flight: bool,
}

impl Sealed {
    /// Where the frame lies: the header of a new segment may come before it in the same write.
    fn offset(&self) -> u64 {
        self.write.offset + (self.write.bytes.len() - self.frame.len()) as u64
    }
}

/// The site, and what is known about it.
pub struct Site {
    disk: Disk,
    log: Log,
    chain: u32,
    lineage: Lineage,
    epochs: u64,
    checkpoint: Position,
    store: Store,
    /// What a read of the homes returns, and what of it is durable.
    homes: Blocks,
    durable_homes: Blocks,
    /// Unit by unit, in the order of completion.
    unsynced: Vec<((u32, u64), u8)>,
    applying: Vec<Apply>,
    open: Option<FrameBuilder>,
    sealed: Vec<Sealed>,
    /// What this site knows to be committed: a crash makes it forget some.
    commit: Lsn,
    /// What ever was: no other primary lacks it.
    committed: Lsn,
    /// The operation with LSN n is at n - 1, with what it puts into every unit.
    history: Vec<(Op, u8)>,
    /// All of the history in one map.
    model: Blocks,
    compressor: Compressor,
    tag: u8,
}

fn capacity() -> u64 {
    3 * segment_bytes(0)
}

fn group() -> Uuid {
    Uuid::from_u128(1)
}

fn units(op: &Op) -> impl Iterator<Item = (u32, u64)> {
    let volume = op.volume.0;
    (op.range.offset / UNIT..op.range.end() / UNIT).map(move |unit| (volume, unit))
}

fn put(blocks: &mut Blocks, op: &Op, tag: u8) {
    for place in units(op) {
        blocks.set(place, tag);
    }
}

fn tag_of(data: &[u8]) -> u8 {
    assert!(
        data.iter().all(|b| *b == data[0]),
        "a write was mixed with another"
    );
    data[0]
}

impl Default for Site {
    fn default() -> Site {
        let log = Log::new(capacity(), group());
        let mut site = Site {
            disk: Disk::default(),
            chain: log.chain(),
            checkpoint: log.position(Lsn::ZERO),
            log,
            lineage: Lineage::default(),
            epochs: 0,
            store: Store::new(Lsn::ZERO),
            homes: Blocks::new(),
            durable_homes: Blocks::new(),
            unsynced: Vec::new(),
            applying: Vec::new(),
            open: None,
            sealed: Vec::new(),
            commit: Lsn::ZERO,
            committed: Lsn::ZERO,
            history: Vec::new(),
            model: Blocks::new(),
            compressor: Compressor::default(),
            tag: 0,
        };
        site.open_epoch();
        site
    }
}

impl Site {
    /// Does what the input says until it is used up, then crashes and looks at everything.
    pub fn run(mut self, mut input: Input<'_>) {
        while let Some(step) = input.byte() {
            match self.step(step, &mut input) {
                Some(true) => {}
                Some(false) => return,
                None => break,
            }
        }
        self.crash(&mut Input::new(&[]));
    }

    /// False at the end of this site's life.
    fn step(&mut self, step: u8, input: &mut Input<'_>) -> Option<bool> {
        match step % 20 {
            0..=4 => {
                let (kind, len) = (input.byte()?, 1 + input.below(16)? as u64);
                self.change(kind, len, input)?;
            }
            5 => self.change(0, MAX_WRITE_OP / UNIT, input)?,
            6..=8 => self.seal(),
            9 | 10 => self.complete(input.byte()?),
            11 => {
                self.commit = self.commit.max(Lsn(
                    self.durable().0 - self.durable().0.min(u64::from(input.byte()? % 4))
                ))
            }
            12 | 13 => drop(self.apply()),
            14 => self.finish_apply(input.byte()?),
            15 => {
                let len = 1 + input.below(64)? as u64;
                let first = input.below((UNITS - len) as usize)? as u64;
                self.read(VolumeId(0), ByteRange::new(first * UNIT, len * UNIT));
            }
            16 => self.sync(),
            17 => self.crash(input),
            18 => self.give_way(input.byte()?),
            _ => return Some(!self.rot(input)?),
        }
        self.committed = self.committed.max(self.commit);
        self.store.allow(self.commit);
        Some(true)
    }

    fn tail(&self) -> Lsn {
        Lsn(self.history.len() as u64)
    }

    /// All up to here is durable in the journal.
    fn durable(&self) -> Lsn {
        let waits = self.sealed.iter().find(|s| s.in_flight);
        waits.map_or(self.log.tail(), |s| s.frame.first_lsn().prev())
    }

    fn change(&mut self, kind: u8, len: u64, input: &mut Input<'_>) -> Option<()> {
        let first = input.below((UNITS - len + 1) as usize)? as u64;
        let kind_of = match kind % 8 {
            6 => OpKind::Trim,
            7 => OpKind::WriteZeroes {
                no_hole: kind & 8 != 0,
            },
            _ => OpKind::Write,
        };
        let op = Op {
            kind: kind_of,
            volume: VolumeId(u32::from(kind & 16 != 0)),
            range: ByteRange::new(first * UNIT, len * UNIT),
            fua: kind & 32 != 0,
        };
        let tag = if kind_of == OpKind::Write {
            self.tag = self.tag % 250 + 1;
            self.tag
        } else {
            0
        };
        let data = vec![tag; if tag == 0 { 0 } else { op.range.len as usize }];
        let packed = (kind & 64 != 0 && tag != 0)
            .then(|| self.compressor.compress(Compress::Lz4, &data))
            .flatten();
        let (stored, encoding) = match &packed {
            Some(packed) => (packed.as_slice(), Encoding::Lz4),
            None => (data.as_slice(), Encoding::Raw),
        };
        if self
            .open
            .as_ref()
            .is_some_and(|open| !open.fits(stored.len()))
        {
            self.seal();
        }
        let builder = self.builder();
        // The journal is full: writers wait.
        if builder.fits(stored.len()) {
            builder.push(&op, stored, encoding);
            let content = Content::of(&op, data.into());
            self.admit(&op, content, tag);
        }
        Some(())
    }

    fn builder(&mut self) -> &mut FrameBuilder {
        let epoch = self.lineage.last().expect("an epoch is open").id;
        let first = self.tail().next();
        self.open
            .get_or_insert_with(|| FrameBuilder::new(group(), epoch, first, 0))
    }

    fn admit(&mut self, op: &Op, content: Content, tag: u8) {
        self.history.push((*op, tag));
        put(&mut self.model, op, tag);
        let lsn = self.tail();
        self.store.admit(lsn, op);
        self.store.attach(lsn, content);
    }

    /// Opens the next epoch. Its record is durable before its frame is sealed.
    fn open_epoch(&mut self) {
        assert!(self.open.is_none());
        self.epochs += 1;
        let epoch = Epoch {
            number: self.epochs,
            id: Uuid::from_u128(u128::from(self.epochs) << 64),
            site: "clichy".into(),
            first_lsn: self.tail().next(),
            ack: AckMode::Sync,
            alone: false,
            complete: false,
            mixture: false,
            time_ns: 0,
        };
        self.lineage.push(epoch.clone()).expect("it follows");
        let op = Op {
            kind: OpKind::OpenEpoch,
            volume: VolumeId(0),
            range: ByteRange::new(0, 0),
            fua: false,
        };
        let payload = encode_epoch(&epoch);
        self.builder().push(&op, &payload, Encoding::Raw);
        self.admit(&op, Content::of(&op, payload.into()), 0);
        self.seal();
    }

    /// Closes the open frame and begins to write it, if the journal takes it.
    fn seal(&mut self) {
        let Some(open) = self.open.take() else { return };
        let opens = self.history[open_first(&open, self.history.len())].0.kind == OpKind::OpenEpoch;
        let busy = self.sealed.iter().filter(|s| s.in_flight).count() >= IN_FLIGHT;
        if busy || !self.log.can_append(open.frame_len(), opens) {
            assert!(!opens, "there is always room to open an epoch");
            self.open = Some(open);
            return;
        }
        let frame = open.seal(self.chain, self.commit, self.history.len() as u64);
        self.chain = frame.checksum();
        let write = self.log.append(&frame);
        self.sealed.push(Sealed {
            frame,
            write,
            in_flight: true,
        });
    }

    /// One of the writes under way completes.
    fn complete(&mut self, which: u8) {
        let mut waiting: Vec<_> = self.sealed.iter_mut().filter(|s| s.in_flight).collect();
        let count = waiting.len().max(1);
        if let Some(sealed) = waiting.get_mut(usize::from(which) % count) {
            self.disk.write(sealed.write.offset, &sealed.write.bytes);
            sealed.in_flight = false;
        }
    }

    /// Starts the next apply.
    fn apply(&mut self) -> bool {
        let Some(apply) = self.store.next_apply() else {
            return false;
        };
        assert!(
            apply.lsn <= self.commit && apply.lsn <= self.durable(),
            "the WAL rule"
        );
        put(&mut self.homes, &apply.op, TORN);
        self.applying.push(apply);
        true
    }

    fn finish_apply(&mut self, which: u8) {
        if self.applying.is_empty() {
            return;
        }
        let apply = self
            .applying
            .swap_remove(usize::from(which) % self.applying.len());
        let (op, tag) = self.history[apply.lsn.0 as usize - 1];
        assert_eq!(op, apply.op);
        match &apply.content {
            Content::Data(data) => assert_eq!(tag_of(data), tag),
            Content::Zero { .. } | Content::Control(_) => assert_eq!(tag, 0),
        }
        put(&mut self.homes, &op, tag);
        self.unsynced.extend(units(&op).map(|place| (place, tag)));
        self.store.applied(apply.lsn);
    }

    /// Syncs the homes, records a checkpoint, and gives the journal's space back.
    fn sync(&mut self) {
        for (place, tag) in self.unsynced.drain(..) {
            self.durable_homes.set(place, tag);
        }
        self.checkpoint = self.log.position(self.store.applied_lsn());
        self.log.release_before(self.checkpoint.lsn.next());
        // Recovery reads nothing older, and its place may be used again.
        self.sealed
            .retain(|s| s.frame.last_lsn() >= self.checkpoint.next);
    }

    /// Everything committed and durable reaches the homes.
    fn drain(&mut self) {
        loop {
            while self.apply() {}
            if self.applying.is_empty() {
                return;
            }
            self.finish_apply(0);
        }
    }

    /// What a client would read now, held against the model.
    fn read(&self, volume: VolumeId, range: ByteRange) {
        let plan = self.store.read_plan(volume, range);
        let mut at = range.offset;
        for piece in &plan.pieces {
            assert_eq!(piece.range.offset, at, "pieces in order, without gaps");
            at = piece.range.end();
            let overlay = match piece.source {
                Source::Home => None,
                Source::Overlay(lsn) => Some(
                    match self
                        .store
                        .content(lsn, piece.range)
                        .expect("all is attached")
                    {
                        Content::Data(data) => tag_of(&data),
                        Content::Zero { .. } => 0,
                        Content::Control(_) => panic!("a read of a control operation"),
                    },
                ),
            };
            for unit in piece.range.offset / UNIT..piece.range.end() / UNIT {
                let place = (volume.0, unit);
                let home = || self.homes.get(place);
                let expected = self.model.get(place);
                assert_eq!(
                    overlay.unwrap_or_else(home),
                    expected,
                    "unit {unit} of {volume:?}, {piece:?}"
                );
            }
        }
        assert_eq!(at, range.end());
    }

    /// Power fails; recovery finds everything that was durable, and nothing that never was.
    fn crash(&mut self, input: &mut Input<'_>) {
        let durable = self.durable();
        self.lose_power(input);
        let (recovered, frames) = self.recover();
        assert_eq!(recovered.damage, None);
        let tail = recovered.tail;
        assert!(
            durable <= tail && tail <= self.log.tail(),
            "{durable} is durable, {tail} was recovered"
        );
        self.check_frames(&frames);
        let claims = frames
            .iter()
            .map(Frame::commit_lsn)
            .max()
            .unwrap_or_default();
        self.commit = claims.max(self.checkpoint.lsn);
        self.cut(tail);
        (self.log, self.chain) = (recovered.log, recovered.chain);
        self.store = Store::new(self.checkpoint.lsn);
        self.store.allow(self.commit);
        for (lsn, op, payload) in frames
            .iter()
            .flat_map(Frame::ops)
            .filter(|(lsn, ..)| *lsn > self.checkpoint.lsn)
        {
            self.store.admit(lsn, &op);
            self.store.attach(
                lsn,
                Content::of(&op, payload.content().expect("it was checked")),
            );
        }
        assert_eq!(self.store.last_lsn(), tail);
        for volume in 0..2 {
            self.read(VolumeId(volume), ByteRange::new(0, UNITS * UNIT));
        }
        self.serve();
    }

    /// Opens an epoch over what there is.
    fn serve(&mut self) {
        if !self.log.can_append(BLOCK, true) {
            // A promotion keeps and commits the whole tail.
            self.commit = self.tail();
            self.committed = self.commit;
            self.store.allow(self.commit);
            self.drain();
            self.sync();
        }
        self.open_epoch();
        self.complete(0);
    }

    /// What was in flight survives in part: the input says which sectors, and which units of the homes.
    fn lose_power(&mut self, input: &mut Input<'_>) {
        let mut dice = |at: usize, mask: &mut u8| {
            if at.is_multiple_of(8) {
                *mask = input.byte().unwrap_or(0);
            }
            *mask & 1 << (at % 8) != 0
        };
        let mut mask = 0;
        for sealed in self.sealed.iter().filter(|s| s.in_flight) {
            // Long writes are torn in longer pieces, so that a few bytes of input decide.
            let piece = (sealed.write.bytes.len() / 64).max(512);
            for (at, bytes) in sealed.write.bytes.chunks(512).enumerate() {
                if dice(at * 512 / piece, &mut mask) {
                    let offset = sealed.write.offset + (at * 512) as u64;
                    let block = self.disk.block(offset - offset % BLOCK as u64);
                    block[offset as usize % BLOCK..][..512].copy_from_slice(bytes);
                }
            }
        }
        let running = self.applying.drain(..).flat_map(|apply| {
            let tag = self.history[apply.lsn.0 as usize - 1].1;
            units(&apply.op)
                .map(move |place| (place, tag))
                .collect::<Vec<_>>()
        });
        let unsynced = std::mem::take(&mut self.unsynced);
        for (at, (place, tag)) in unsynced.into_iter().chain(running).enumerate() {
            if dice(at, &mut mask) {
                self.durable_homes.set(place, tag);
            }
        }
        self.homes = self.durable_homes.clone();
    }

    fn recover(&mut self) -> (Recovered, Vec<Frame>) {
        let mut recovery = Recovery::new(capacity(), group(), self.checkpoint, &self.lineage);
        let mut frames = Vec::new();
        while let Some(frame) = recovery
            .next(&mut self.disk)
            .expect("all versions are known")
        {
            frames.push(frame);
        }
        (
            recovery
                .finish(&mut self.disk)
                .expect("the disk can be read"),
            frames,
        )
    }

    /// What recovery found is what was written, from the checkpoint on.
    fn check_frames(&self, frames: &[Frame]) {
        let written = self
            .sealed
            .iter()
            .filter(|s| s.frame.last_lsn() >= self.checkpoint.next);
        for (found, written) in frames.iter().zip(written) {
            // Padding is covered by no checksum, and may be what a torn write left of an older frame.
            assert!(
                found.checksum() == written.frame.checksum(),
                "LSN {} is not what was written",
                found.first_lsn()
            );
        }
    }

    /// Everything after this LSN never was.
    fn cut(&mut self, tail: Lsn) {
        self.open = None;
        self.sealed.retain(|s| s.frame.last_lsn() <= tail);
        self.sealed.iter_mut().for_each(|s| s.in_flight = false);
        self.lineage.truncate_after(tail);
        self.history.truncate(tail.0 as usize);
        self.model = Blocks::new();
        for (op, tag) in &self.history {
            put(&mut self.model, op, *tag);
        }
    }

    /// As a mirror: the uncommitted tail gives way to another primary's epoch.
    fn give_way(&mut self, keep: u8) {
        while self.sealed.iter().any(|s| s.in_flight) {
            self.complete(0);
        }
        let ends: Vec<Lsn> = self
            .sealed
            .iter()
            .map(|s| s.frame.last_lsn())
            .filter(|last| *last >= self.committed)
            .collect();
        let Some(tail) = ends.get(usize::from(keep) % ends.len().max(1)).copied() else {
            return;
        };
        self.store.truncate_after(tail);
        self.log.truncate_after(tail);
        self.chain = self.log.chain();
        self.cut(tail);
        self.serve();
    }

    /// A bit rots in a frame that recovery needs, or in the header of its segment: it must not be taken for the end if a
    /// later frame says that it was committed. True if something did rot: that is the end of this site.
    fn rot(&mut self, input: &mut Input<'_>) -> Option<bool> {
        let (which, place, bit) = (input.byte()?, input.byte()?, input.byte()? % 8);
        if self.sealed.is_empty() {
            return Some(false);
        }
        let at = usize::from(which) % self.sealed.len();
        let frame = &self.sealed[at].frame;
        let (first, opens_segment) = (
            frame.first_lsn(),
            self.sealed[at].write.bytes.len() > frame.len(),
        );
        let mut offset = self.sealed[at].offset();
        let mut within = 24 + usize::from(place) % (128 + 48 - 24);
        if opens_segment && place >= 200 && first > self.checkpoint.next {
            offset -= BLOCK as u64;
            within = 12 + usize::from(place) % 44;
        }
        if first > self.durable() {
            // Recovery may end before it comes there.
            return Some(false);
        }
        self.lose_power(input);
        let survivors = |s: &&Sealed| !s.in_flight && s.frame.first_lsn() > first;
        let claims = self
            .sealed
            .iter()
            .filter(survivors)
            .map(|s| s.frame.commit_lsn())
            .max();
        self.disk.block(offset)[within] ^= 1 << bit;
        let (recovered, frames) = self.recover();
        self.check_frames(&frames);
        assert_eq!(
            recovered.tail.next(),
            first,
            "recovery stops where the journal rotted"
        );
        if claims.is_some_and(|claims| claims >= first) {
            let damage = recovered.damage.expect("committed history is missing");
            assert_eq!(damage.lsn, first);
        }
        assert!(recovered.damage.is_none_or(|d| d.claims <= self.committed));
        Some(true)
    }
}

/// Where in the history the operations of an open frame begin.
fn open_first(open: &FrameBuilder, history: usize) -> usize {
    history - open.op_count()
}
