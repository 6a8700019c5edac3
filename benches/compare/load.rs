//! Our own load: any number of requests in flight on any number of connections from one thread, cheaply.
//!
//! Requests are encoded once per use of a slot, payloads are slices of a pool, all that is ready is sent with one system call
//! per connection and turn, and replies are received in large pieces. So the load costs a fraction of what the server
//! under it costs, which `fio` does not achieve on two cores. Every acknowledged write is remembered and can be checked.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use super::dice::Dice;
use super::nbd::{self, Connection, Door, FLUSH, FUA, READ, REPLY, WRITE};
use super::payload::{Data, Pool};

/// What makes a write durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Durable {
    /// Nothing but the server's own promise.
    No,
    /// FUA with each write.
    Fua,
    /// A flush after each write; both count as one operation.
    Flush,
}

/// Where the requests go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pattern {
    Random,
    /// As if at random, but to no place twice: the load ends when all were visited. So nothing comes from a cache that the
    /// load itself has filled.
    Scattered,
    Sequential,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Job {
    /// Of 100 requests so many are writes.
    pub writes_percent: u8,
    pub pattern: Pattern,
    /// Length of a request, bytes.
    pub block: u32,
    /// Requests in flight over all connections.
    pub depth: usize,
    pub connections: usize,
    pub durable: Durable,
    pub data: Data,
    /// Only so many bytes at the beginning of the volume; 0 for all.
    pub span: u64,
}

/// When a load ends.
#[derive(Clone, Copy)]
pub enum Until<'a> {
    Elapsed(Duration),
    /// After this time, as soon as this is set.
    Both(Duration, &'a AtomicBool),
    /// Soon after this is set.
    Told(&'a AtomicBool),
}

/// What came of it; the warm-up is counted only in `issued_writes`.
#[derive(Clone)]
pub struct Outcome {
    pub operations: u64,
    pub seconds: f64,
    /// Nanoseconds from the sending of a request to its reply.
    pub latency: Histogram<u64>,
    /// Write requests sent and answered, warm-up and all.
    pub issued_writes: u64,
    /// Blocks read back afterwards and found to be what was last written there.
    pub checked_blocks: u64,
}

impl Outcome {
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.seconds
    }
}

/// The instants between which it is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    Begin,
    End,
}

/// Longest wait for a reply.
const SILENCE: Duration = Duration::from_mins(1);
/// As much is received at once, bytes.
const RECEIVE: usize = 256 << 10;
/// Requests sent at once; each takes two slices, and the kernel takes 1024.
const SEND: usize = 500;
/// Blocks that are read back after a load.
const CHECKED: usize = 128;

struct Slot {
    header: [u8; nbd::REQUEST],
    pick: u32,
    /// Length of the payload that follows the header.
    payload: usize,
    block: u64,
    write: bool,
    flushing: bool,
    sent: Instant,
}

/// One connection.
struct Lane {
    connection: Connection,
    slots: Vec<Slot>,
    idle: Vec<usize>,
    /// Slots whose request is to be sent, and how much of the first one has been.
    queue: VecDeque<usize>,
    begun: usize,
    buffer: Vec<u8>,
    /// Bytes of an incomplete reply header at the beginning of the buffer.
    partial: usize,
    /// Payload still to come, of this slot's reply.
    incoming: Option<(usize, usize)>,
    blocks: std::ops::Range<u64>,
    cursor: u64,
    visited: u64,
    dice: Dice,
    /// By block: what was last written there (0: nothing), and whether a write is in flight.
    last: Vec<u32>,
    busy: Vec<bool>,
    waits_to_send: bool,
}

/// Connections to one or several volumes.
pub struct Load {
    lanes: Vec<Lane>,
    job: Job,
    pool: Pool,
    epoll: std::os::fd::OwnedFd,
}

impl Load {
    /// Connects: `job.connections` connections to each of the volumes.
    pub fn connect(doors: &[Door], job: Job, seed: u64) -> anyhow::Result<Load> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let lane_depth = (job.depth / (job.connections * doors.len())).max(1);
        let mut lanes = Vec::new();
        for door in doors {
            for part in 0..job.connections as u64 {
                let lane = Lane::open(door, &job, lane_depth, part, seed + lanes.len() as u64)?;
                let data = epoll::EventData::new_u64(lanes.len() as u64);
                epoll::add(&epoll, &lane.connection.socket, data, epoll::EventFlags::IN)?;
                lanes.push(lane);
            }
        }
        let pool = Pool::new(job.data);
        Ok(Load {
            lanes,
            job,
            pool,
            epoll,
        })
    }

    /// Runs. `at` is called at the beginning and at the end of what is measured.
    pub fn run(
        &mut self,
        warm_up: Duration,
        until: Until,
        mut at: impl FnMut(Moment) -> anyhow::Result<()>,
    ) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome {
            operations: 0,
            seconds: 0.0,
            latency: histogram(),
            issued_writes: 0,
            checked_blocks: 0,
        };
        let begin = Instant::now() + warm_up;
        let mut measuring: Option<Instant> = None;
        let mut stopping = false;
        let mut now = Instant::now();
        for lane in &mut self.lanes {
            lane.issue(&self.job, &self.pool, now)?;
        }
        self.watch_sending()?;
        let mut ready = Vec::with_capacity(self.lanes.len());
        while !stopping || self.lanes.iter().any(Lane::in_flight) {
            self.wait(&mut ready)?;
            let received = Instant::now();
            let mut finished = 0;
            for lane in ready.iter().map(|lane| *lane as usize) {
                let lane = &mut self.lanes[lane];
                let measured = measuring.filter(|_| !stopping);
                let latency = measured.map(|since| (&mut outcome.latency, since));
                finished +=
                    lane.receive(&self.job, received, latency, &mut outcome.issued_writes)?;
            }
            now = Instant::now();
            if !stopping {
                match measuring {
                    None if now >= begin => {
                        at(Moment::Begin)?;
                        measuring = Some(Instant::now());
                    }
                    None => {}
                    Some(since) => {
                        outcome.operations += finished;
                        stopping = match until {
                            Until::Elapsed(limit) => now - since >= limit,
                            Until::Both(limit, flag) => now - since >= limit && flag.load(Relaxed),
                            Until::Told(flag) => flag.load(Relaxed),
                        } || self.lanes.iter().any(|lane| lane.visited >= lane.count());
                        if stopping {
                            outcome.seconds = (now - since).as_secs_f64();
                            at(Moment::End)?;
                        }
                    }
                }
            }
            for lane in ready.iter().map(|lane| *lane as usize) {
                let lane = &mut self.lanes[lane];
                if stopping {
                    lane.send(&self.pool)?;
                } else {
                    lane.issue(&self.job, &self.pool, now)?;
                }
            }
            self.watch_sending()?;
        }
        outcome.checked_blocks = self.check()?;
        Ok(outcome)
    }

    /// The lanes at which something can be done.
    fn wait(&self, ready: &mut Vec<u64>) -> anyhow::Result<()> {
        ready.clear();
        if let [lane] = &self.lanes[..]
            && lane.queue.is_empty()
        {
            // To receive is to wait.
            ready.push(0);
            return Ok(());
        }
        let mut events = Vec::with_capacity(self.lanes.len());
        let limit = SILENCE.try_into().expect("a minute");
        epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&limit),
        )?;
        ensure!(!events.is_empty(), "no reply within {SILENCE:?}");
        ready.extend(events.iter().map(|event| event.data.u64()));
        Ok(())
    }

    fn watch_sending(&mut self) -> anyhow::Result<()> {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let blocked = !lane.queue.is_empty();
            if blocked != lane.waits_to_send {
                let mut flags = epoll::EventFlags::IN;
                flags.set(epoll::EventFlags::OUT, blocked);
                let data = epoll::EventData::new_u64(index as u64);
                epoll::modify(&self.epoll, &lane.connection.socket, data, flags)?;
                lane.waits_to_send = blocked;
            }
        }
        Ok(())
    }

    /// Reads some of what was written.
    fn check(&mut self) -> anyhow::Result<u64> {
        let share = (CHECKED / self.lanes.len()).max(1);
        let mut checked = 0;
        for lane in &mut self.lanes {
            checked += lane.check(&self.pool, self.job.block, share)?;
        }
        Ok(checked)
    }
}

/// From a microsecond to ten minutes, in nanoseconds, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("valid bounds")
}

impl Lane {
    fn open(door: &Door, job: &Job, depth: usize, part: u64, seed: u64) -> anyhow::Result<Lane> {
        let connection = door.open()?;
        let span = if job.span == 0 {
            connection.size
        } else {
            job.span.min(connection.size)
        };
        // Each connection has a part of the volume to itself, so that it knows what is there.
        let share = span / u64::from(job.block) / job.connections as u64;
        ensure!(
            share > 2 * depth as u64,
            "{} is too small for this load",
            door.uri()
        );
        let slot = |_| Slot {
            header: [0; nbd::REQUEST],
            pick: 0,
            payload: 0,
            block: 0,
            write: false,
            flushing: false,
            sent: Instant::now(),
        };
        Ok(Lane {
            connection,
            slots: (0..depth).map(slot).collect(),
            idle: (0..depth).rev().collect(),
            queue: VecDeque::with_capacity(depth),
            begun: 0,
            buffer: vec![0; RECEIVE],
            partial: 0,
            incoming: None,
            blocks: part * share..(part + 1) * share,
            cursor: 0,
            visited: 0,
            dice: Dice::new(seed << 32 | 1),
            last: vec![0; share as usize],
            busy: vec![false; share as usize],
            waits_to_send: false,
        })
    }

    fn in_flight(&self) -> bool {
        self.idle.len() < self.slots.len()
    }

    fn count(&self) -> u64 {
        self.blocks.end - self.blocks.start
    }

    /// Gives every idle slot a request, and sends.
    fn issue(&mut self, job: &Job, pool: &Pool, now: Instant) -> anyhow::Result<()> {
        while let Some(index) = self.idle.pop() {
            let write = self.dice.below(100) < u64::from(job.writes_percent);
            let block = self.choose(job.pattern, write);
            let offset = (self.blocks.start + block) * u64::from(job.block);
            let slot = &mut self.slots[index];
            slot.write = write;
            slot.block = block;
            slot.flushing = false;
            slot.sent = now;
            let cookie = index as u64;
            if write {
                slot.pick = Pool::pick(&mut self.dice);
                slot.payload = job.block as usize;
                let flags = if job.durable == Durable::Fua { FUA } else { 0 };
                slot.header = nbd::request(WRITE, flags, cookie, offset, job.block);
                self.busy[block as usize] = true;
            } else {
                slot.payload = 0;
                slot.header = nbd::request(READ, 0, cookie, offset, job.block);
            }
            self.queue.push_back(index);
        }
        self.send(pool)
    }

    /// Never two writes to one place at once: nobody could say which came last.
    fn choose(&mut self, pattern: Pattern, write: bool) -> u64 {
        loop {
            let block = match pattern {
                Pattern::Random => self.dice.below(self.count()),
                Pattern::Scattered => self.scatter(),
                Pattern::Sequential => {
                    let block = self.cursor;
                    self.cursor = (self.cursor + 1) % self.count();
                    block
                }
            };
            if !write || !self.busy[block as usize] {
                return block;
            }
        }
    }

    /// The next of a sequence that visits every block once: a congruential generator of full period, modulo the next
    /// power of two, without what lies behind the last block.
    fn scatter(&mut self) -> u64 {
        const MULTIPLIER: u64 = 0x5851_f42d_4c95_7f2d;
        const STEP: u64 = 0x1405_7b7e_f767_814f;
        let mask = self.count().next_power_of_two() - 1;
        loop {
            self.cursor = self.cursor.wrapping_mul(MULTIPLIER).wrapping_add(STEP) & mask;
            if self.cursor < self.count() {
                self.visited += 1;
                return self.cursor;
            }
        }
    }

    /// Sends as much as the socket takes.
    fn send(&mut self, pool: &Pool) -> anyhow::Result<()> {
        while !self.queue.is_empty() {
            let mut slices = Vec::with_capacity(2 * self.queue.len().min(SEND));
            for index in self.queue.iter().take(SEND) {
                let slot = &self.slots[*index];
                slices.push(IoSlice::new(&slot.header));
                if slot.payload > 0 {
                    slices.push(IoSlice::new(pool.slice(slot.pick, slot.payload)));
                }
            }
            let mut rest = &mut slices[..];
            IoSlice::advance_slices(&mut rest, self.begun);
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let mut nothing = SendAncillaryBuffer::default();
            let sent = match sendmsg(&self.connection.socket, rest, &mut nothing, flags) {
                Ok(sent) => sent,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error).context("sending requests"),
            };
            self.begun += sent;
            while let Some(first) = self.queue.front() {
                let whole = nbd::REQUEST + self.slots[*first].payload;
                if self.begun < whole {
                    break;
                }
                self.begun -= whole;
                self.queue.pop_front();
            }
        }
        Ok(())
    }

    /// Takes what has arrived, waiting for it if nothing has; says how many operations are finished.
    fn receive(
        &mut self,
        job: &Job,
        now: Instant,
        mut latency: Option<(&mut Histogram<u64>, Instant)>,
        writes: &mut u64,
    ) -> anyhow::Result<u64> {
        // With requests to send, only the poll may wait.
        let flags = if self.waits_to_send {
            RecvFlags::DONTWAIT
        } else {
            RecvFlags::empty()
        };
        let into = &mut self.buffer[self.partial..];
        let len = match recv(&self.connection.socket, into, flags) {
            Ok((len, _)) => len,
            Err(Errno::AGAIN) if self.waits_to_send => return Ok(0),
            Err(error) => return Err(error).context("waiting for replies"),
        };
        ensure!(len > 0, "the server closed the connection");
        // Measured when the reply is here, not when the wait began.
        let now = Instant::now().max(now);
        let end = self.partial + len;
        let mut at = 0;
        let mut finished = 0;
        loop {
            if let Some((slot, missing)) = self.incoming {
                let here = missing.min(end - at);
                at += here;
                if here < missing {
                    self.incoming = Some((slot, missing - here));
                    break;
                }
                self.incoming = None;
                let latency = latency.as_mut().map(|(all, since)| (&mut **all, *since));
                finished += self.finish(slot, job, now, latency, writes);
            }
            let Some(head) = self.buffer[at..end].first_chunk::<REPLY>() else {
                break;
            };
            let slot = nbd::reply(head)? as usize;
            ensure!(slot < self.slots.len(), "an answer to nothing");
            at += REPLY;
            let payload = if self.slots[slot].write {
                0
            } else {
                job.block as usize
            };
            self.incoming = Some((slot, payload));
        }
        self.buffer.copy_within(at..end, 0);
        self.partial = end - at;
        Ok(finished)
    }

    fn finish(
        &mut self,
        index: usize,
        job: &Job,
        now: Instant,
        latency: Option<(&mut Histogram<u64>, Instant)>,
        writes: &mut u64,
    ) -> u64 {
        let slot = &mut self.slots[index];
        if slot.write && !slot.flushing {
            *writes += 1;
            self.last[slot.block as usize] = slot.pick + 1;
            self.busy[slot.block as usize] = false;
            if job.durable == Durable::Flush {
                slot.flushing = true;
                slot.payload = 0;
                slot.header = nbd::request(FLUSH, 0, index as u64, 0, 0);
                self.queue.push_back(index);
                return 0;
            }
        }
        // What was under way at the beginning may have been kept waiting by our own bookkeeping.
        if let Some((latency, since)) = latency
            && slot.sent >= since
        {
            latency.saturating_record((now - slot.sent).as_nanos() as u64);
        }
        self.idle.push(index);
        1
    }

    fn check(&mut self, pool: &Pool, len: u32, share: usize) -> anyhow::Result<u64> {
        let mut checked = 0;
        for _ in 0..share * 8 {
            let block = self.dice.below(self.count());
            let Some(pick) = self.last[block as usize].checked_sub(1) else {
                continue;
            };
            let offset = (self.blocks.start + block) * u64::from(len);
            let found = self.connection.read(offset, len)?;
            ensure!(
                found == pool.slice(pick, len as usize),
                "the block at {offset} is not what was acknowledged as written"
            );
            checked += 1;
            if checked == share as u64 {
                break;
            }
        }
        Ok(checked)
    }
}
