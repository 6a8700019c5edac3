//! Buffers that direct IO accepts.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// The unit of the journal: frames begin and end at multiples of it. Bytes.
pub const BLOCK: usize = 4096;

/// The smallest multiple of `unit` (a power of two) that is not below `value`.
pub const fn round_up(value: usize, unit: usize) -> usize {
    (value + unit - 1) & !(unit - 1)
}

/// Zero-initialised memory aligned to [`BLOCK`], as `O_DIRECT` requires.
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
    /// `len` zero bytes; the capacity is `len` rounded up to [`BLOCK`].
    pub fn zeroed(len: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::with_capacity(len);
        buf.len = len;
        buf
    }

    /// Empty, with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> AlignedBuf {
        let capacity = round_up(capacity.max(1), BLOCK);
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

    /// Bytes it can hold without moving.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the length; bytes beyond the old length are what was last written there, initially zero.
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

#[allow(unsafe_code)]
impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let layout = Layout::from_size_align(self.capacity, BLOCK).expect("checked at allocation");
        // SAFETY: allocated in `with_capacity` with this very layout.
        unsafe { dealloc(self.ptr.as_ptr(), layout) }
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
