//! Operations that are part of the history and not yet in the homes.
//!
//! An operation enters with [`Store::admit`], gets its content with [`Store::attach`], may be applied once
//! [`Store::allow`] covers it, is handed out by [`Store::next_apply`] and leaves with [`Store::applied`]. Until it
//! leaves, reads see it through the overlay: for every byte the newest operation that touches it.
//!
//! # Invariants
//! - Nothing above the allowed LSN (committed, and durable in the local journal) is ever handed out: the WAL rule.
//! - Applies that overlap complete in LSN order, because one starts only after the earlier ones completed.
//! - An operation leaves the overlay only after its own apply completed, so that no read ever looks at a part of a home
//!   that is being written.
//!
//! # What it must not know
//! Files, the journal's layout, peers and roles. It does no IO; the caller carries the applies out.

mod content;
mod overlay;
mod plan;
mod policy;
mod schedule;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

pub use self::content::Content;
pub use self::plan::{Piece, ReadPlan, Source, StatusPiece, StatusPlan, StatusSource};
pub use self::policy::Policy;
pub use self::schedule::HoldId;

use self::overlay::Overlay;
use self::schedule::{Offer, Schedule, Span};
use crate::base::{ByteRange, Lsn, Op, OpKind, VolumeId};

/// An operation to be carried out on a home, or, if it is a control operation, on the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Apply {
    /// Its LSN, for [`Store::applied`].
    pub lsn: Lsn,
    /// What it does and where.
    pub op: Op,
    /// Its content.
    pub content: Content,
}

/// Operations between the homes and the end of the history.
///
/// After every `allow`, `attach`, `applied` and `release`, call [`Store::next_apply`] until it has nothing more.
#[derive(Debug)]
pub struct Store {
    /// The operations after `applied`, without gaps.
    slots: VecDeque<Slot>,
    /// All up to here are in the homes.
    applied: Lsn,
    allowed: Lsn,
    /// The first operation that was not yet considered for applying.
    next: Lsn,
    overlays: BTreeMap<VolumeId, Overlay>,
    schedule: Schedule,
    policy: Policy,
    ops: usize,
    bytes: u64,
    allocating_bytes: u64,
    allocating_total: u64,
}

/// Memory that an operation is counted with beside its data, in bytes: its slot and its place in the overlay.
pub const OP_BYTES: u64 = 128;
const _: () = assert!(size_of::<Slot>() + 24 <= OP_BYTES as usize);

#[derive(Debug)]
struct Slot {
    op: Op,
    /// `None` until attached, and again once applied.
    content: Option<Content>,
    done: bool,
}

impl Store {
    /// Nothing to apply; the homes hold everything up to `applied`.
    pub fn new(applied: Lsn) -> Store {
        Store::with_policy(applied, Policy::default())
    }

    /// As [`Store::new`], with a policy other than the default.
    pub fn with_policy(applied: Lsn, policy: Policy) -> Store {
        Store {
            slots: VecDeque::new(),
            applied,
            allowed: applied,
            next: applied.next(),
            overlays: BTreeMap::new(),
            schedule: Schedule::default(),
            policy,
            ops: 0,
            bytes: 0,
            allocating_bytes: 0,
            allocating_total: 0,
        }
    }

    /// Enters the next operation of the history; its range must lie within its volume. From now on reads see it.
    ///
    /// Trims and write-zeroes bring their content with them; that of writes and control operations may follow later.
    ///
    /// # Panics
    /// If `lsn` is not the one after the last.
    pub fn admit(&mut self, lsn: Lsn, op: &Op) {
        let expected = self.last_lsn().next();
        assert_eq!(lsn, expected, "operations enter in LSN order");
        if !op.kind.is_control() {
            self.overlays
                .entry(op.volume)
                .or_default()
                .insert(op.range, lsn);
        }
        self.count(op);
        self.slots.push_back(Slot {
            op: *op,
            content: Content::implied(op),
            done: false,
        });
    }

    /// Gives an admitted operation its content.
    ///
    /// # Panics
    /// If the operation is not here, or the content is not one that its kind and length can have.
    pub fn attach(&mut self, lsn: Lsn, content: Content) {
        let index = self.index(lsn).filter(|&at| !self.slots[at].done);
        let index = index.unwrap_or_else(|| panic!("LSN {lsn} is not in the store"));
        let slot = &mut self.slots[index];
        assert!(
            content.fits(&slot.op),
            "content of LSN {lsn} does not fit {:?}",
            slot.op
        );
        slot.content = Some(content);
    }

    /// The homes may hold everything up to here, which is everything that is committed and durable in the local
    /// journal. Never goes back.
    pub fn allow(&mut self, lsn: Lsn) {
        self.allowed = self.allowed.max(lsn);
    }

    /// The next apply that may start now.
    ///
    /// They start in LSN order, except that one which must wait (for an earlier overlapping one, or for a hold) is
    /// overtaken by later ones that overlap nothing that waits. A control operation is a barrier: it starts when
    /// everything before it was applied, and nothing after it starts before it was.
    pub fn next_apply(&mut self) -> Option<Apply> {
        if self.schedule.running() >= self.policy.max_in_flight {
            return None;
        }
        if let Some(lsn) = self.schedule.next_waiting() {
            return Some(self.hand_out(lsn));
        }
        while self.next <= self.allowed {
            let lsn = self.next;
            let slot = self.slots.get(self.index(lsn)?)?;
            slot.content.as_ref()?;
            match self.schedule.offer(Span::of(lsn, &slot.op), &self.policy) {
                Offer::Started => {
                    self.next = lsn.next();
                    return Some(self.hand_out(lsn));
                }
                Offer::Waits => self.next = lsn.next(),
                Offer::Refused => return None,
            }
        }
        None
    }

    fn hand_out(&self, lsn: Lsn) -> Apply {
        let slot = self
            .index(lsn)
            .and_then(|at| self.slots.get(at))
            .expect("scheduled operations stay until they are applied");
        Apply {
            lsn,
            op: slot.op,
            content: slot.content.clone().expect("checked before scheduling"),
        }
    }

    /// An apply that was handed out, once more: it failed in a way that may pass.
    ///
    /// # Panics
    /// If it was not handed out, or completed.
    pub fn again(&self, lsn: Lsn) -> Apply {
        self.hand_out(lsn)
    }

    /// An apply completed: reads of its range go to the home from now on.
    ///
    /// # Panics
    /// If this LSN was not handed out, or completed before.
    pub fn applied(&mut self, lsn: Lsn) {
        assert!(
            self.schedule.finish(lsn),
            "LSN {lsn} is not being applied, so that it cannot complete"
        );
        let index = self.index(lsn).expect("running operations are here");
        let slot = &mut self.slots[index];
        slot.content = None;
        slot.done = true;
        let op = slot.op;
        self.leave_overlay(lsn, &op);
        self.uncount(&op);
        while self.slots.front().is_some_and(|slot| slot.done) {
            self.slots.pop_front();
            self.applied = self.applied.next();
        }
    }

    /// Everything up to here is in the homes (written, not yet synced).
    pub fn applied_lsn(&self) -> Lsn {
        self.applied
    }

    /// The last operation that was admitted.
    pub fn last_lsn(&self) -> Lsn {
        self.applied.plus(self.slots.len() as u64)
    }

    /// Memory held by operations that are not yet in the homes, in bytes: the data of writes, and [`OP_BYTES`] for each.
    pub fn unapplied_bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that the homes may still allocate for operations not yet applied: writes and zeroes kept allocated.
    pub fn allocating_bytes(&self) -> u64 {
        self.allocating_bytes
    }

    /// The same, of all operations ever admitted, bytes.
    pub fn allocating_total(&self) -> u64 {
        self.allocating_total
    }

    /// Operations not yet in the homes.
    pub fn unapplied_ops(&self) -> usize {
        self.ops
    }

    /// Everything that may be in the homes is there, and nothing is on its way.
    pub fn settled(&self) -> bool {
        self.applied >= self.allowed.min(self.last_lsn()) && self.schedule.running() == 0
    }

    /// Everything admitted is in the homes.
    pub fn idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// How to answer a read of this range, which must lie within the volume, as of now.
    ///
    /// Take the content of the overlay pieces with [`Store::content`] at once: it is shared, not copied, and stays valid
    /// after the operation left the store. Only where that has none yet (not attached), plan again later. Hold the reply
    /// until `newest` is committed. A plan that was carried out like this need never be made again, so that a reader
    /// cannot be kept waiting for ever by a stream of overwrites.
    pub fn read_plan(&self, volume: VolumeId, range: ByteRange) -> ReadPlan {
        match self.overlays.get(&volume) {
            Some(overlay) => overlay.plan(range),
            None => ReadPlan::home(range),
        }
    }

    /// The content of part of an operation: `None` if it was not attached yet, or left the store.
    ///
    /// # Panics
    /// If the range is not within the operation's.
    pub fn content(&self, lsn: Lsn, range: ByteRange) -> Option<Content> {
        let slot = self.slots.get(self.index(lsn)?)?;
        Some(slot.content.as_ref()?.part(slot.op.range, range))
    }

    /// What the overlay knows about the allocation of this range, which must lie within the volume.
    pub fn status_plan(&self, volume: VolumeId, range: ByteRange) -> StatusPlan {
        StatusPlan::of(&self.read_plan(volume, range), |lsn| {
            let slot = self.slots.get(self.index(lsn)?)?;
            slot.content.as_ref()
        })
    }

    /// A mirror drops its uncommitted tail: everything after `lsn` never was. What it had overwritten is visible again.
    ///
    /// # Panics
    /// If something after `lsn` was allowed to be applied already.
    pub fn truncate_after(&mut self, lsn: Lsn) {
        if lsn >= self.last_lsn() {
            return;
        }
        assert!(
            lsn >= self.allowed,
            "cannot drop what follows LSN {lsn}: the homes may hold all up to LSN {}",
            self.allowed
        );
        for slot in self.slots.split_off(lsn.since(self.applied) as usize) {
            self.uncount(&slot.op);
        }
        // Rare, and the overlay does not know what lies beneath: build it again.
        self.overlays.clear();
        for (lsn, slot) in (self.applied.0 + 1..).map(Lsn).zip(&self.slots) {
            if !slot.done && !slot.op.kind.is_control() {
                let overlay = self.overlays.entry(slot.op.volume).or_default();
                overlay.insert(slot.op.range, lsn);
            }
        }
    }

    /// What is not in the home yet of this range, up to an LSN whose contents are attached: laid over the home one after the
    /// other this gives the range as of that LSN, whatever came later. Looks at every operation that waits.
    ///
    /// No apply that overlaps the range may be in flight.
    pub fn waiting(
        &self,
        volume: VolumeId,
        range: ByteRange,
        until: Lsn,
    ) -> Vec<(ByteRange, Content)> {
        let mut found = Vec::new();
        for (lsn, slot) in (self.applied.0 + 1..=until.0).map(Lsn).zip(&self.slots) {
            let op = &slot.op;
            if slot.done || op.kind.is_control() || op.volume != volume {
                continue;
            }
            if let Some(part) = op.range.intersection(range)
                && let Some(content) = self.content(lsn, part)
            {
                found.push((part, content));
            }
        }
        found
    }

    /// Keeps applies that overlap this range from starting until it is released: for a full copy, which reads
    /// the range (primary) or writes it (mirror) outside the order of operations. Those already in flight go on: wait
    /// for [`Store::quiet`]. Holds may overlap each other.
    ///
    /// A mirror that holds a range when a chunk of it arrives may write the chunk before older operations that
    /// were not applied yet: the chunk contains them, and applying them again in order leads to the same content.
    pub fn hold(&mut self, volume: VolumeId, range: ByteRange) -> HoldId {
        self.schedule.hold(volume, range, Lsn::ZERO)
    }

    /// As [`Store::hold`], but only operations after this LSN have to wait: for who has taken the overlay up to there along
    /// and lays it over what he reads. He may have to wait himself until all of that is applied.
    pub fn hold_after(&mut self, volume: VolumeId, range: ByteRange, lsn: Lsn) -> HoldId {
        self.schedule.hold(volume, range, lsn)
    }

    /// Ends a hold.
    ///
    /// # Panics
    /// If it ended before.
    pub fn release(&mut self, hold: HoldId) {
        assert!(self.schedule.release(hold), "{hold:?} was released already");
    }

    /// Whether no apply that overlaps this range is in flight.
    pub fn quiet(&self, volume: VolumeId, range: ByteRange) -> bool {
        self.schedule.quiet(volume, range)
    }

    fn index(&self, lsn: Lsn) -> Option<usize> {
        (self.applied < lsn && lsn <= self.last_lsn())
            .then(|| (lsn.since(self.applied) - 1) as usize)
    }

    fn leave_overlay(&mut self, lsn: Lsn, op: &Op) {
        if let Some(overlay) = self.overlays.get_mut(&op.volume)
            && !op.kind.is_control()
        {
            overlay.remove(op.range, lsn);
        }
    }

    fn count(&mut self, op: &Op) {
        self.ops += 1;
        self.bytes += held_bytes(op);
        self.allocating_bytes += allocated_bytes(op);
        self.allocating_total += allocated_bytes(op);
    }

    fn uncount(&mut self, op: &Op) {
        self.ops -= 1;
        self.bytes -= held_bytes(op);
        self.allocating_bytes -= allocated_bytes(op);
    }
}

fn held_bytes(op: &Op) -> u64 {
    match op.kind {
        OpKind::Write => OP_BYTES + op.range.len,
        _ => OP_BYTES,
    }
}

fn allocated_bytes(op: &Op) -> u64 {
    match op.kind {
        OpKind::Write | OpKind::WriteZeroes { no_hole: true } => op.range.len,
        _ => 0,
    }
}
