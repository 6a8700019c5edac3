//! The ring: owned operations in, completions with their buffers out.
//!
//! All `unsafe` of the shard but one call (in `sync`). What makes it sound:
//!
//! - An [`Op`] owns everything the kernel touches on its behalf: the buffer and the file. Both rest in the ring's table
//!   from submission until the kernel's completion was reaped, so that no buffer is freed and no descriptor closed
//!   under an operation in flight. Buffers are reached through pointers to the heap; the table may move.
//! - Dropping the ring cancels and reaps what is in flight; what cannot be reaped is leaked rather than freed.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use slab::Slab;

use crate::base::{AlignedBuf, ByteRange};

/// Most parts of one [`Op::Send`].
pub const PARTS_MAX: usize = 128;

/// Submissions that fit one system call; more are made in several.
const SUBMISSIONS: u32 = 512;

/// Completions that fit the ring. The kernel keeps more than that aside, at a price.
const COMPLETIONS: u32 = 4096;

/// Marks completions that nobody waits for.
const NOBODY: u64 = u64::MAX;

/// How long a ring that is dropped waits for what it cancelled.
const DROP_LIMIT_SECONDS: u32 = 30;

/// One operation with all it needs.
pub enum Op {
    /// Reads up to `len` bytes at `offset`, appended to `into`, which has room for them.
    Read {
        /// The file.
        file: Arc<OwnedFd>,
        /// Where in the file, bytes.
        offset: u64,
        /// Grows by what was read.
        into: ReadBuf,
        /// At most this many bytes.
        len: usize,
    },
    /// Writes at `offset`; may write less than all.
    Write {
        /// The file.
        file: Arc<OwnedFd>,
        /// Where in the file, bytes.
        offset: u64,
        /// What.
        data: Bytes,
        /// On stable storage when it completes (`RWF_DSYNC`).
        durable: bool,
    },
    /// `fdatasync`.
    Sync {
        /// The file.
        file: Arc<OwnedFd>,
    },
    /// `fallocate`.
    Allocate {
        /// The file.
        file: Arc<OwnedFd>,
        /// `FALLOC_FL_*`.
        mode: i32,
        /// Where.
        range: ByteRange,
    },
    /// Receives up to `len` bytes, appended to `into`, which has room for them.
    Receive {
        /// The socket, in blocking mode.
        socket: Arc<OwnedFd>,
        /// Grows by what was received.
        into: ReadBuf,
        /// At most this many bytes; not 0.
        len: usize,
        /// Not less either, unless the stream ends.
        all: bool,
    },
    /// Sends at most [`PARTS_MAX`] parts, in order; all of them unless the connection breaks.
    Send {
        /// The socket, in blocking mode.
        socket: Arc<OwnedFd>,
        /// What.
        parts: Vec<Bytes>,
    },
}

/// Memory to read into.
pub enum ReadBuf {
    /// Any.
    Plain(BytesMut),
    /// For direct IO.
    Aligned(AlignedBuf),
}

impl ReadBuf {
    /// Shared and immutable from now on.
    pub fn freeze(self) -> Bytes {
        match self {
            ReadBuf::Plain(buf) => buf.freeze(),
            ReadBuf::Aligned(buf) => Bytes::from_owner(buf),
        }
    }
}

/// An operation that is over.
pub struct Done<T> {
    /// From its submission.
    pub token: T,
    /// The operation, with its buffer.
    pub op: Op,
    /// Bytes read, written, received or sent; 0 of other operations.
    pub result: io::Result<usize>,
}

/// What the kernel reads to send several parts at once.
struct SendHeader {
    message: libc::msghdr,
    vectors: [libc::iovec; PARTS_MAX],
}

struct Flight<T> {
    token: T,
    op: Op,
    header: Option<Box<SendHeader>>,
}

/// Counts since the ring was made.
#[derive(Clone, Copy, Default, Debug)]
pub struct RingCounts {
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Of those, calls that waited for a completion.
    pub waits: u64,
    /// Operations submitted.
    pub submitted: u64,
    /// Operations completed.
    pub completed: u64,
}

/// An `io_uring` of one thread. `T` tells the owner what an operation was for.
pub struct Ring<T> {
    uring: IoUring,
    flights: Slab<Flight<T>>,
    /// Built, not yet in the submission queue.
    backlog: VecDeque<squeue::Entry>,
    /// Boxed: the kernel holds their addresses.
    #[allow(clippy::vec_box)]
    headers: Vec<Box<SendHeader>>,
    counts: RingCounts,
}

impl<T> Ring<T> {
    /// A ring for the calling thread, which must be the only one that uses it.
    ///
    /// # Errors
    /// Says what to do where the kernel or a sandbox forbids `io_uring`.
    pub fn new() -> io::Result<Ring<T>> {
        Ok(Ring {
            uring: build().map_err(|error| explain(&error))?,
            flights: Slab::new(),
            backlog: VecDeque::new(),
            headers: Vec::new(),
            counts: RingCounts::default(),
        })
    }

    /// Queues an operation; the next [`Ring::enter`] submits it.
    pub fn push(&mut self, token: T, op: Op) {
        let slot = self.flights.vacant_entry();
        let key = slot.key() as u64;
        let flight = slot.insert(Flight {
            token,
            op,
            header: None,
        });
        let entry = match &mut flight.op {
            Op::Read {
                file,
                offset,
                into,
                len,
            } => {
                let start = spare(into, *len);
                opcode::Read::new(Fd(file.as_raw_fd()), start, bytes_32(*len))
                    .offset(*offset)
                    .build()
            }
            Op::Write {
                file,
                offset,
                data,
                durable,
            } => opcode::Write::new(Fd(file.as_raw_fd()), data.as_ptr(), bytes_32(data.len()))
                .offset(*offset)
                .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 })
                .build(),
            Op::Sync { file } => opcode::Fsync::new(Fd(file.as_raw_fd()))
                .flags(FsyncFlags::DATASYNC)
                .build(),
            Op::Allocate { file, mode, range } => {
                opcode::Fallocate::new(Fd(file.as_raw_fd()), range.len)
                    .offset(range.offset)
                    .mode(*mode)
                    .build()
            }
            Op::Receive {
                socket,
                into,
                len,
                all,
            } => {
                let start = spare(into, *len);
                assert!(
                    *len > 0,
                    "to receive nothing would look like the end of the stream"
                );
                opcode::Recv::new(Fd(socket.as_raw_fd()), start, bytes_32(*len))
                    .flags(if *all { libc::MSG_WAITALL } else { 0 })
                    .build()
            }
            Op::Send { socket, parts } => {
                let mut header = self.headers.pop().unwrap_or_else(SendHeader::boxed);
                header.point_to(parts);
                let message: *const libc::msghdr = &raw const header.message;
                let entry = opcode::SendMsg::new(Fd(socket.as_raw_fd()), message)
                    .flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32)
                    .build();
                flight.header = Some(header);
                entry
            }
        };
        self.backlog.push_back(entry.user_data(key));
    }

    /// Submits what is queued, looks for completions for as long as `patience`, and sleeps only then.
    ///
    /// # Errors
    /// As [`Ring::enter`].
    pub fn enter_patiently(
        &mut self,
        patience: Duration,
        limit: Option<Duration>,
    ) -> io::Result<()> {
        self.enter(false, None)?;
        let begin = Instant::now();
        while !self.has_news() && begin.elapsed() < patience {
            // Whoever else has something to do goes first.
            std::thread::yield_now();
        }
        self.enter(true, limit)
    }

    /// Whether something completed, or will with the next call.
    fn has_news(&mut self) -> bool {
        !self.uring.completion().is_empty() || self.uring.submission().taskrun()
    }

    /// Submits what is queued and, if `wait`, waits for a completion, at most for `limit`.
    ///
    /// # Errors
    /// Only what leaves the ring unusable.
    pub fn enter(&mut self, wait: bool, limit: Option<Duration>) -> io::Result<()> {
        while self.fill() {
            // More than fits one call: hand over what does.
            if !self.call(0, None)? {
                return Ok(()); // completions have to be reaped first
            }
        }
        let least = usize::from(wait && self.uring.completion().is_empty());
        if least > 0 || !self.uring.submission().is_empty() || self.uring.submission().taskrun() {
            self.call(least, limit)?;
        }
        Ok(())
    }

    /// The next operation that is over.
    pub fn reap(&mut self) -> Option<Done<T>> {
        loop {
            let entry = self.uring.completion().next()?;
            if entry.user_data() == NOBODY {
                continue;
            }
            let key = usize::try_from(entry.user_data()).expect("a key of this table");
            let Flight { token, op, header } = self.flights.remove(key);
            self.headers.extend(header);
            self.counts.completed += 1;
            return Some(finish(token, op, entry.result()));
        }
    }

    /// What it did so far.
    pub fn counts(&self) -> RingCounts {
        self.counts
    }

    /// Moves queued entries to the submission queue; `true` if some are left.
    fn fill(&mut self) -> bool {
        if self.backlog.is_empty() {
            return false;
        }
        let mut queue = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the entry was built in `push` (or `cancel_all`, without memory) from an operation that rests in
            // `flights`, which keeps its buffer and its file until the completion was reaped.
            if unsafe { queue.push(entry) }.is_err() {
                return true;
            }
            self.backlog.pop_front();
            self.counts.submitted += 1;
        }
        false
    }

    /// One `io_uring_enter`; `false` if the kernel wants completions reaped before it takes more.
    fn call(&mut self, want: usize, limit: Option<Duration>) -> io::Result<bool> {
        self.counts.enters += 1;
        self.counts.waits += u64::from(want > 0);
        let submitter = self.uring.submitter();
        let result = match limit {
            Some(limit) if want > 0 => {
                let limit = Timespec::from(limit);
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(&limit))
            }
            _ => submitter.submit_and_wait(want),
        };
        match result {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) => Ok(true),
                Some(libc::EBUSY | libc::EAGAIN) => Ok(false),
                _ => Err(error),
            },
        }
    }

    fn cancel_all(&mut self) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        self.backlog.push_back(entry.user_data(NOBODY));
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        self.cancel_all();
        for _ in 0..DROP_LIMIT_SECONDS {
            while self.reap().is_some() {}
            if self.flights.is_empty() {
                return;
            }
            if self.enter(true, Some(Duration::from_secs(1))).is_err() {
                break;
            }
        }
        while self.reap().is_some() {}
        if !self.flights.is_empty() {
            // The kernel may still write there.
            mem::forget(mem::take(&mut self.flights));
        }
    }
}

impl SendHeader {
    fn boxed() -> Box<SendHeader> {
        const NOTHING: libc::iovec = libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        };
        Box::new(SendHeader {
            // SAFETY: a C struct of integers and pointers, for which all zeroes is a valid and empty value.
            message: unsafe { mem::zeroed() },
            vectors: [NOTHING; PARTS_MAX],
        })
    }

    fn point_to(&mut self, parts: &[Bytes]) {
        assert!(parts.len() <= PARTS_MAX, "{} parts to send", parts.len());
        for (vector, part) in self.vectors.iter_mut().zip(parts) {
            // The kernel only reads from there.
            vector.iov_base = part.as_ptr().cast_mut().cast();
            vector.iov_len = part.len();
        }
        self.message.msg_iov = self.vectors.as_mut_ptr();
        self.message.msg_iovlen = parts.len();
    }
}

/// Where `buf` goes on.
///
/// # Panics
/// If it has no room for `len` more bytes: the kernel would write beyond its end.
fn spare(buf: &mut ReadBuf, len: usize) -> *mut u8 {
    let (start, room) = match buf {
        ReadBuf::Plain(buf) => {
            let spare = buf.spare_capacity_mut();
            (spare.as_mut_ptr().cast(), spare.len())
        }
        ReadBuf::Aligned(buf) => {
            let (old, capacity) = (buf.len(), buf.capacity());
            buf.set_len(capacity);
            let start = buf[old..].as_mut_ptr();
            buf.set_len(old);
            (start, capacity - old)
        }
    };
    assert!(len <= room, "{len} bytes into room for {room}");
    start
}

fn bytes_32(len: usize) -> u32 {
    u32::try_from(len).expect("operations are below 4 GiB")
}

fn finish<T>(token: T, mut op: Op, result: i32) -> Done<T> {
    let result = match u32::try_from(result) {
        Ok(count) => Ok(count as usize),
        Err(_) => Err(io::Error::from_raw_os_error(-result)),
    };
    if let Ok(count) = result {
        match &mut op {
            Op::Read { into, .. } | Op::Receive { into, .. } => match into {
                // SAFETY: the kernel wrote this many bytes behind the old length, within the room that `spare` found.
                ReadBuf::Plain(into) => unsafe { into.advance_mut(count) },
                ReadBuf::Aligned(into) => into.set_len(into.len() + count),
            },
            Op::Write { .. } | Op::Sync { .. } | Op::Allocate { .. } | Op::Send { .. } => {}
        }
    }
    Done { token, op, result }
}

/// The best ring this kernel has.
fn build() -> io::Result<IoUring> {
    let builder = |deferred: bool, cooperative: bool| {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).dontfork();
        if cooperative {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if deferred {
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_submit_all();
        }
        builder.build(SUBMISSIONS)
    };
    // Kernels from 6.1 on have all, from 5.19 on the middle one; both only save time.
    let uring = builder(true, true)
        .or_else(|error| {
            if is_unknown_flag(&error) {
                builder(false, true)
            } else {
                Err(error)
            }
        })
        .or_else(|error| {
            if is_unknown_flag(&error) {
                builder(false, false)
            } else {
                Err(error)
            }
        })?;
    let params = uring.params();
    if !(params.is_feature_nodrop() && params.is_feature_ext_arg() && params.is_feature_fast_poll())
    {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    Ok(uring)
}

fn is_unknown_flag(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// What the operator should do when there is no ring to be had.
fn explain(error: &io::Error) -> io::Error {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default();
    io::Error::new(error.kind(), advice(error.raw_os_error(), &disabled, error))
}

fn advice(errno: Option<i32>, disabled: &str, error: &io::Error) -> String {
    let sandbox = "a container or service sandbox has to allow the system calls io_uring_setup, io_uring_enter and \
                   io_uring_register";
    match errno {
        Some(libc::EPERM) if disabled == "2" => {
            "io_uring is disabled on this host (kernel.io_uring_disabled = 2): run 'sysctl -w \
             kernel.io_uring_disabled=0' and make it last in /etc/sysctl.d"
                .into()
        }
        Some(libc::EPERM) if disabled == "1" => {
            "io_uring is restricted on this host (kernel.io_uring_disabled = 1): give the daemon CAP_SYS_ADMIN, add its \
             group as kernel.io_uring_group, or run 'sysctl -w kernel.io_uring_disabled=0'"
                .into()
        }
        Some(libc::EPERM | libc::EACCES) => format!("io_uring is forbidden here: {sandbox}"),
        Some(libc::ENOSYS) => {
            format!("io_uring is missing here: Linux 5.11 or newer is needed, and {sandbox}")
        }
        Some(libc::ENOMEM) => {
            "no memory for an io_uring: raise the limit on locked memory (LimitMEMLOCK= of the service, ulimit -l)".into()
        }
        _ => format!("cannot set up an io_uring: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Arc<OwnedFd>, Arc<OwnedFd>) {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        (Arc::new(a.into()), Arc::new(b.into()))
    }

    fn receive(socket: Arc<OwnedFd>, mut into: BytesMut, all: bool) -> Op {
        let len = 4 * PARTS_MAX;
        into.reserve(len);
        let into = ReadBuf::Plain(into);
        Op::Receive {
            socket,
            into,
            len,
            all,
        }
    }

    fn next(ring: &mut Ring<u32>) -> Done<u32> {
        loop {
            if let Some(done) = ring.reap() {
                return done;
            }
            ring.enter(true, Some(Duration::from_secs(10))).unwrap();
        }
    }

    #[test]
    fn parts_are_sent_in_one_go_and_received_behind_what_is_there() {
        let mut ring = Ring::new().unwrap();
        let (a, b) = pair();
        let parts = (0..PARTS_MAX)
            .map(|i| Bytes::from(vec![i as u8; 3]))
            .collect();
        ring.push(1, Op::Send { socket: a, parts });
        let sent = next(&mut ring);
        assert_eq!((sent.token, sent.result.unwrap()), (1, 3 * PARTS_MAX));
        ring.push(2, receive(b, BytesMut::from(&b"head"[..]), false));
        let Op::Receive { into, .. } = next(&mut ring).op else {
            panic!()
        };
        let into = into.freeze();
        assert_eq!(&into[..7], b"head\0\0\0");
        assert_eq!(into.len(), 4 + 3 * PARTS_MAX);
        assert_eq!(into.last(), Some(&((PARTS_MAX - 1) as u8)));
    }

    #[test]
    fn more_operations_than_the_queue_holds_are_all_done() {
        let mut ring = Ring::new().unwrap();
        let count = SUBMISSIONS * 10;
        let file = Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        for token in 0..count {
            let data = Bytes::copy_from_slice(&token.to_le_bytes());
            let offset = u64::from(token) * 4;
            ring.push(
                token,
                Op::Write {
                    file: file.clone(),
                    offset,
                    data,
                    durable: false,
                },
            );
        }
        let mut seen: Vec<u32> = (0..count).map(|_| next(&mut ring).token).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..count).collect::<Vec<_>>());
        assert_eq!(ring.flights.len(), 0);
        let into = ReadBuf::Aligned(AlignedBuf::with_capacity(4 * count as usize));
        ring.push(
            0,
            Op::Read {
                file,
                offset: 0,
                into,
                len: 4 * count as usize,
            },
        );
        let Op::Read { into, .. } = next(&mut ring).op else {
            panic!()
        };
        let all: Vec<u8> = (0..count).flat_map(u32::to_le_bytes).collect();
        assert_eq!(into.freeze(), all);
    }

    #[test]
    fn a_wait_ends_at_its_limit_and_a_dropped_ring_cancels_what_waits() {
        let mut ring: Ring<u32> = Ring::new().unwrap();
        let (a, b) = pair();
        ring.push(1, receive(a, BytesMut::new(), false));
        let before = std::time::Instant::now();
        ring.enter(true, Some(Duration::from_millis(20))).unwrap();
        assert!(ring.reap().is_none());
        assert!(before.elapsed() >= Duration::from_millis(20));
        let watch = Arc::downgrade(&b);
        ring.push(2, receive(b, BytesMut::new(), true));
        drop(ring);
        assert!(watch.upgrade().is_none(), "the descriptor is still held");
    }

    #[test]
    fn a_host_without_io_uring_is_told_what_to_do() {
        let say =
            |errno, disabled| advice(Some(errno), disabled, &io::Error::from_raw_os_error(errno));
        assert!(say(libc::EPERM, "2").contains("kernel.io_uring_disabled=0"));
        assert!(say(libc::EPERM, "1").contains("kernel.io_uring_group"));
        assert!(say(libc::EPERM, "0").contains("io_uring_setup"));
        assert!(say(libc::ENOSYS, "").contains("5.11"));
        assert!(say(libc::EMFILE, "0").contains("Too many open files"));
    }
}
