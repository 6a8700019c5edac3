//! A connection's byte stream: what is queued to be sent, and at most one send and one receive on the ring.
//!
//! Client connections and links are plain streams today; TLS goes between this queue and the ring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{AddressFamily, Shutdown, sockopt};

use super::budget::Charge;
use super::ring::{Op, PARTS_MAX, ReadBuf};

/// Bytes of one send at most, so that progress is seen.
const SEND_MAX: usize = 1 << 20;

/// A peer that is silent this long is asked by TCP whether it is still there, this many times at this interval.
const KEEPALIVE: (Duration, u32, Duration) = (Duration::from_secs(30), 3, Duration::from_secs(10));

/// A socket, and what is queued on it.
pub struct Stream {
    socket: Arc<OwnedFd>,
    queue: VecDeque<Part>,
    /// Bytes queued or being sent.
    queued: usize,
    /// Of the parts being sent.
    charges: Vec<Vec<Charge>>,
    sending: bool,
    receiving: bool,
    spare: Vec<Bytes>,
}

struct Part {
    bytes: Bytes,
    /// Given back when the part was sent.
    charges: Vec<Charge>,
}

impl Stream {
    /// Takes a connected socket over.
    pub fn adopt(socket: OwnedFd) -> io::Result<Stream> {
        // The ring waits for sockets in blocking mode; in non-blocking mode it would answer EAGAIN.
        let flags = fcntl_getfl(&socket)?;
        fcntl_setfl(&socket, flags - OFlags::NONBLOCK)?;
        let domain = sockopt::socket_domain(&socket)?;
        if [AddressFamily::INET, AddressFamily::INET6].contains(&domain) {
            let (idle, count, interval) = KEEPALIVE;
            sockopt::set_tcp_nodelay(&socket, true)?;
            sockopt::set_socket_keepalive(&socket, true)?;
            sockopt::set_tcp_keepidle(&socket, idle)?;
            sockopt::set_tcp_keepcnt(&socket, count)?;
            sockopt::set_tcp_keepintvl(&socket, interval)?;
            // The sizes of the buffers are left to the kernel: set by hand they would no longer grow as needed.
        }
        Ok(Stream {
            socket: Arc::new(socket),
            queue: VecDeque::new(),
            queued: 0,
            charges: Vec::new(),
            sending: false,
            receiving: false,
            spare: Vec::new(),
        })
    }

    /// Queues bytes; the charges are given back when they were sent.
    pub fn queue(&mut self, bytes: Bytes, charges: Vec<Charge>) {
        if !bytes.is_empty() {
            self.queued += bytes.len();
            self.queue.push_back(Part { bytes, charges });
        }
    }

    /// Bytes queued or being sent.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Whether a send is on the ring.
    pub fn is_sending(&self) -> bool {
        self.sending
    }

    /// Whether a receive is on the ring.
    pub fn is_receiving(&self) -> bool {
        self.receiving
    }

    /// Whether nothing of it is on the ring.
    pub fn is_idle(&self) -> bool {
        !self.sending && !self.receiving
    }

    /// The next send, if there is something to send and no send under way.
    pub fn send(&mut self) -> Option<Op> {
        if self.sending || self.queue.is_empty() {
            return None;
        }
        let mut parts = std::mem::take(&mut self.spare);
        let mut len = 0;
        while let Some(part) = self.queue.front_mut() {
            let room = SEND_MAX - len;
            if parts.len() == PARTS_MAX || room == 0 {
                break;
            }
            if part.bytes.len() > room {
                parts.push(part.bytes.split_to(room));
                self.charges.push(Vec::new());
                break;
            }
            len += part.bytes.len();
            let part = self.queue.pop_front().expect("just seen");
            parts.push(part.bytes);
            self.charges.push(part.charges);
        }
        self.sending = true;
        Some(Op::Send {
            socket: self.socket.clone(),
            parts,
        })
    }

    /// A send is over: `sent` bytes went out, the rest goes back to the front of the queue.
    pub fn sent(&mut self, mut parts: Vec<Bytes>, sent: usize) {
        self.sending = false;
        self.queued -= sent;
        let mut left = sent;
        let mut unsent = Vec::new();
        for (mut bytes, charges) in parts.drain(..).zip(self.charges.drain(..)) {
            let gone = left.min(bytes.len());
            left -= gone;
            bytes.advance(gone);
            if !bytes.is_empty() {
                unsent.push(Part { bytes, charges });
            }
        }
        for part in unsent.into_iter().rev() {
            self.queue.push_front(part);
        }
        self.spare = parts;
    }

    /// A receive of up to `len` bytes.
    pub fn receive(&mut self, into: ReadBuf, len: usize, all: bool) -> Op {
        assert!(!self.receiving, "one receive at a time");
        self.receiving = true;
        Op::Receive {
            socket: self.socket.clone(),
            into,
            len,
            all,
        }
    }

    /// A receive is over.
    pub fn received(&mut self) {
        self.receiving = false;
    }

    /// Ends the connection both ways, so that what is on the ring comes back, and forgets what is queued. The socket
    /// itself is closed when the ring lets go of it.
    pub fn shut(&mut self) {
        // It may be broken already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        for part in self.queue.drain(..) {
            self.queued -= part.bytes.len();
        }
    }
}

/// Makes room for `len` more bytes, for exactly that if `exact`; returns the room there is.
pub fn make_room(buf: &mut BytesMut, len: usize, exact: bool) -> usize {
    if buf.capacity() - buf.len() < len && (exact || !buf.try_reclaim(len)) {
        // Not `reserve`, which doubles and remembers how large the buffer once was.
        let mut larger = BytesMut::with_capacity(buf.len() + len);
        larger.extend_from_slice(buf);
        *buf = larger;
    }
    if exact {
        len
    } else {
        buf.capacity() - buf.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::*;

    fn stream() -> Stream {
        Stream::adopt(std::os::unix::net::UnixStream::pair().unwrap().0.into()).unwrap()
    }

    fn sending(stream: &mut Stream) -> Vec<Bytes> {
        match stream.send() {
            Some(Op::Send { parts, .. }) => parts,
            _ => panic!("nothing to send"),
        }
    }

    #[test]
    fn what_was_not_sent_goes_out_next_and_memory_comes_back_with_the_last_byte() {
        let budget = Budget::root(100);
        let mut stream = stream();
        stream.queue(Bytes::from_static(b"abc"), vec![budget.take(10).unwrap()]);
        stream.queue(Bytes::from_static(b"defg"), vec![budget.take(20).unwrap()]);
        let parts = sending(&mut stream);
        assert_eq!(parts, ["abc", "defg"]);
        stream.queue(Bytes::from_static(b"h"), vec![]);
        assert!(stream.send().is_none(), "one send at a time");
        stream.sent(parts, 5);
        assert_eq!((stream.queued(), budget.held()), (3, 20));
        let parts = sending(&mut stream);
        assert_eq!(parts, ["fg", "h"]);
        stream.sent(parts, 3);
        assert_eq!((stream.queued(), budget.held()), (0, 0));
        assert!(stream.send().is_none());
    }

    #[test]
    fn large_parts_and_many_parts_are_sent_in_steps() {
        let mut stream = stream();
        stream.queue(Bytes::from(vec![1; SEND_MAX + 10]), vec![]);
        for _ in 0..PARTS_MAX {
            stream.queue(Bytes::from_static(b"x"), vec![]);
        }
        let total = stream.queued();
        let parts = sending(&mut stream);
        assert_eq!(parts.iter().map(Bytes::len).collect::<Vec<_>>(), [SEND_MAX]);
        stream.sent(parts, SEND_MAX);
        let parts = sending(&mut stream);
        assert_eq!((parts.len(), parts[0].len()), (PARTS_MAX, 10));
        stream.sent(parts, 10 + PARTS_MAX - 1);
        assert_eq!(stream.queued(), total - SEND_MAX - 10 - PARTS_MAX + 1);
        assert_eq!(sending(&mut stream).len(), 1);
    }
}
