//! What a shard counts. Written by its thread alone, read by whoever wants to.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::ring::RingCounts;

/// One count with one writer.
#[derive(Default, Debug)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds. Only the shard's thread does.
    pub fn add(&self, count: usize) {
        self.set(self.get() + count as u64);
    }

    /// As of now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }
}

/// The counts.
#[derive(Default, Debug)]
pub struct Counters {
    pub received: Count,
    pub sent: Count,
    pub link_received: Count,
    pub link_sent: Count,
    pub requests: Count,
    enters: Count,
    waits: Count,
    operations: Count,
}

impl Counters {
    /// Takes the ring's counts over.
    pub fn note_ring(&self, counts: RingCounts) {
        self.enters.set(counts.enters);
        self.waits.set(counts.waits);
        self.operations.set(counts.completed);
    }

    /// Bytes on all sockets, both ways.
    pub fn bytes(&self) -> u64 {
        let counts = [
            &self.received,
            &self.sent,
            &self.link_received,
            &self.link_sent,
        ];
        counts.map(Count::get).iter().sum()
    }

    /// As of now.
    pub fn snapshot(&self) -> ShardStats {
        ShardStats {
            client_received_bytes: self.received.get(),
            client_sent_bytes: self.sent.get(),
            link_received_bytes: self.link_received.get(),
            link_sent_bytes: self.link_sent.get(),
            requests: self.requests.get(),
            ring_enters: self.enters.get(),
            ring_waits: self.waits.get(),
            ring_operations: self.operations.get(),
        }
    }
}

/// What a shard did since its start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ShardStats {
    /// Bytes received from NBD clients.
    pub client_received_bytes: u64,
    /// Bytes sent to NBD clients.
    pub client_sent_bytes: u64,
    /// Bytes received on links.
    pub link_received_bytes: u64,
    /// Bytes sent on links.
    pub link_sent_bytes: u64,
    /// Requests of clients passed to a group.
    pub requests: u64,
    /// System calls that handed operations to the kernel or waited for completions.
    pub ring_enters: u64,
    /// Of those, calls that waited.
    pub ring_waits: u64,
    /// Operations completed.
    pub ring_operations: u64,
}
