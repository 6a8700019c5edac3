//! Buffers that direct IO accepts.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// The unit of the journal: frames begin and end at multiples of it. Bytes.
pub const BLOCK: usize = 4096;

/// The smallest multiple of `unit` (a power of two) that is not below `value`.
pub const fn round_up(value: usize, unit: usize) -> usize {
    (value + unit - 1) & !(unit - 1)
}

/// Buffers that each thread keeps for the next who needs one, in bytes, and the largest of them. Without them every frame would
/// be zeroed, and its pages be had from the kernel and given back: a fifth of a shard's time under small writes.
const SPARE_BYTES: usize = 4 << 20;
const SPARE_LARGEST: usize = 2 << 20;

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare::new()) };
}

/// What a thread keeps, by capacity.
struct Spare {
    buffers: BTreeMap<usize, Vec<AlignedBuf>>,
    bytes: usize,
}

impl Spare {
    const fn new() -> Spare {
        Spare {
            buffers: BTreeMap::new(),
            bytes: 0,
        }
    }

    fn take(&mut self, capacity: usize) -> Option<AlignedBuf> {
        let same = self.buffers.get_mut(&capacity)?;
        let buffer = same.pop()?;
        if same.is_empty() {
            self.buffers.remove(&capacity);
        }
        self.bytes -= capacity;
        Some(buffer)
    }

    /// Keeps one, if it may; others than those of its kind make room for it, the largest first. Gives back what is not kept.
    fn keep(&mut self, buffer: AlignedBuf) -> Vec<AlignedBuf> {
        let mut rest = Vec::new();
        let capacity = buffer.capacity;
        if capacity > SPARE_LARGEST {
            return vec![buffer];
        }
        while self.bytes + capacity > SPARE_BYTES {
            let mut others = self.buffers.keys().rev().filter(|k| **k != capacity);
            let Some(other) = others.next().copied() else {
                break;
            };
            rest.extend(self.take(other));
        }
        if self.bytes + capacity <= SPARE_BYTES {
            self.bytes += capacity;
            self.buffers.entry(capacity).or_default().push(buffer);
        } else {
            rest.push(buffer);
        }
        rest
    }
}

/// The capacities there are: whole blocks, and beyond four of them four steps to each doubling, so that buffers find users.
fn capacity_for(len: usize) -> usize {
    let len = len.max(1);
    round_up(len, (len.next_power_of_two() / 8).max(BLOCK))
}

/// Initialised memory aligned to [`BLOCK`], as `O_DIRECT` requires.
///
/// Turn it into shared, immutable `bytes::Bytes` with `Bytes::from_owner`.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its memory exclusively, like a `Vec<u8>`.
#[allow(unsafe_code)]
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference only gives read access.
#[allow(unsafe_code)]
unsafe impl Sync for AlignedBuf {}

#[allow(unsafe_code)]
impl AlignedBuf {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let capacity = capacity_for(len);
        let mut buf = match AlignedBuf::spare(capacity) {
            Some(mut old) => {
                old.len = len;
                old.fill(0);
                old
            }
            None => AlignedBuf::allocate(capacity),
        };
        buf.len = len;
        buf
    }

    /// Empty, with room for `capacity` bytes at least. What the room holds is what somebody left there.
    pub fn with_capacity(capacity: usize) -> AlignedBuf {
        let capacity = capacity_for(capacity);
        AlignedBuf::spare(capacity).unwrap_or_else(|| AlignedBuf::allocate(capacity))
    }

    /// An empty one that this thread has kept.
    fn spare(capacity: usize) -> Option<AlignedBuf> {
        let mut buf = SPARE.try_with(|s| s.borrow_mut().take(capacity)).ok()??;
        buf.len = 0;
        Some(buf)
    }

    /// An empty one from the allocator, all zero.
    fn allocate(capacity: usize) -> AlignedBuf {
        let layout = Layout::from_size_align(capacity, BLOCK).expect("a buffer below isize::MAX");
        // SAFETY: the layout has a size above zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })
            .unwrap_or_else(|| handle_alloc_error(layout));
        AlignedBuf {
            ptr,
            len: 0,
            capacity,
        }
    }

    /// Gives the memory back to the allocator.
    fn free(self) {
        let this = std::mem::ManuallyDrop::new(self);
        let layout = Layout::from_size_align(this.capacity, BLOCK).expect("checked at allocation");
        // SAFETY: allocated in `allocate` with this very layout, and never dropped.
        unsafe { dealloc(this.ptr.as_ptr(), layout) }
    }

    /// Bytes it can hold without moving.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the length; bytes beyond the old length are what somebody left there: whoever does not fill them clears them.
    ///
    /// # Panics
    /// If `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity,
            "length {len} above the capacity {}",
            self.capacity
        );
        self.len = len;
    }

    /// Appends a copy of `data`.
    ///
    /// # Panics
    /// If it does not fit the capacity.
    pub fn extend_from_slice(&mut self, data: &[u8]) {
        let start = self.len;
        self.set_len(start + data.len());
        self[start..].copy_from_slice(data);
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let this = AlignedBuf {
            ptr: self.ptr,
            len: 0,
            capacity: self.capacity,
        };
        let mut this = Some(this);
        let keep = |spare: &RefCell<Spare>| spare.borrow_mut().keep(this.take().expect("once"));
        // Without it the thread is ending.
        let rest = SPARE.try_with(keep);
        for buffer in rest.into_iter().flatten().chain(this) {
            buffer.free();
        }
    }
}

#[allow(unsafe_code)]
impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity`, and all of the memory was initialised when it was allocated.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

#[allow(unsafe_code)]
impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_by_whoever_needs_as_much_and_zeroed_only_for_whoever_asks() {
        let mut first = AlignedBuf::with_capacity(5 * BLOCK);
        first.extend_from_slice(&[7; 100]);
        let place = first.as_ptr();
        drop(first);
        let again = AlignedBuf::with_capacity(5 * BLOCK - 3);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        drop(again);
        let zeroed = AlignedBuf::zeroed(5 * BLOCK);
        assert_eq!(zeroed.as_ptr(), place);
        assert!(zeroed.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_thread_keeps_no_more_than_it_may() {
        let many: Vec<_> = (0..64)
            .map(|_| AlignedBuf::with_capacity(1 << 20))
            .collect();
        drop(many);
        drop(AlignedBuf::with_capacity(SPARE_LARGEST + 1));
        let bytes = || SPARE.with(|spare| spare.borrow().bytes);
        assert_eq!(bytes(), SPARE_BYTES);
        // Those of another time make room for those of now.
        let small = AlignedBuf::with_capacity(3 * BLOCK);
        let place = small.as_ptr();
        drop(small);
        assert!(bytes() <= SPARE_BYTES);
        assert_eq!(AlignedBuf::with_capacity(3 * BLOCK).as_ptr(), place);
    }

    #[test]
    fn capacities_waste_a_quarter_at_most() {
        for len in [
            0,
            1,
            BLOCK,
            BLOCK + 1,
            5 * BLOCK,
            70_000,
            1 << 20,
            (1 << 20) + 1,
            3 << 20,
        ] {
            let capacity = capacity_for(len);
            assert!(capacity >= len && capacity.is_multiple_of(BLOCK));
            assert!(capacity <= len + len / 4 + BLOCK, "{len}: {capacity}");
        }
    }
}
