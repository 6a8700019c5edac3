//! An independent checker client: several connections write, trim, zero, flush and read overlapping ranges; every
//! acknowledgement is recorded, and afterwards the disk is held against the record.
//!
//! It survives the death of servers: it reconnects to whichever of its targets accepts it. Which operations a
//! connection sends is decided by the seed alone.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::nbd::{
    CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE_ZEROES, Client, Dialect, FLAG_FUA, FLAG_NO_HOLE,
    Target, assemble,
};
use super::record::{BLOCK, Content, OpId, Reading, Record, Violation, fill};

/// What the checker does.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub export: String,
    pub size: u64,
    pub connections: u16,
    /// Requests in flight per connection.
    pub depth: usize,
    /// Longest write, in blocks.
    pub longest: u64,
    pub dialect: Dialect,
}

impl Plan {
    /// Four connections that fight over a disk of this size.
    pub fn new(seed: u64, size: u64) -> Plan {
        Plan {
            seed,
            export: "demo".into(),
            size,
            connections: 4,
            depth: 8,
            longest: 2048,
            dialect: Dialect::Structured,
        }
    }
}

/// A small generator; the same seed gives the same operations.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.roll() >> 11) % limit.max(1)
    }
}

struct Shared {
    plan: Plan,
    record: Mutex<Record>,
    targets: Vec<Target>,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    connected: AtomicU64,
    violations: Mutex<Vec<Violation>>,
    errors: Mutex<Vec<String>>,
}

/// A running checker.
pub struct Checker {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// What a checker knows after it stopped.
pub struct Verdict {
    record: Record,
    export: String,
    dialect: Dialect,
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Connections that were made.
    pub connected: u64,
    /// What reads returned during the run and must not have.
    pub violations: Vec<Violation>,
    /// Error replies.
    pub errors: Vec<String>,
}

enum Pending {
    Change(OpId),
    Read(Reading, u64),
    Flush,
}

impl Checker {
    /// Starts against servers of which at least one accepts at a time. The disk must be all zeroes.
    pub fn start(plan: Plan, targets: Vec<Target>) -> Checker {
        let record = Record::new(plan.size / BLOCK as u64);
        Checker::resume(plan, targets, record)
    }

    fn resume(plan: Plan, targets: Vec<Target>, record: Record) -> Checker {
        let shared = Arc::new(Shared {
            record: Mutex::new(record),
            targets,
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            violations: Mutex::default(),
            errors: Mutex::default(),
            plan,
        });
        let workers = (0..shared.plan.connections)
            .map(|connection| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || Worker::new(&shared, connection).run())
            })
            .collect();
        Checker { shared, workers }
    }

    /// Operations acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(SeqCst)
    }

    /// Waits until this many more operations are acknowledged.
    pub fn wait_for(&self, more: u64) {
        let goal = self.acknowledged() + more;
        let deadline = Instant::now() + Duration::from_secs(90);
        while self.acknowledged() < goal {
            assert!(
                Instant::now() < deadline,
                "no progress: {} of {goal} operations acknowledged; errors: {:?}",
                self.acknowledged(),
                self.shared.errors.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets every connection finish what it has in flight, and ends.
    pub fn stop(self) -> Verdict {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers {
            worker.join().expect("a checker connection");
        }
        let shared = Arc::into_inner(self.shared).expect("all workers are gone");
        Verdict {
            record: shared.record.into_inner().unwrap(),
            export: shared.plan.export,
            dialect: shared.plan.dialect,
            acknowledged: shared.acknowledged.into_inner(),
            connected: shared.connected.into_inner(),
            violations: shared.violations.into_inner().unwrap(),
            errors: shared.errors.into_inner().unwrap(),
        }
    }
}

impl Verdict {
    /// Goes on from here: what is on the disk now is held against the same record.
    pub fn resume(self, plan: Plan, targets: Vec<Target>) -> Checker {
        self.assert_clean();
        Checker::resume(plan, targets, self.record)
    }

    /// Reads the whole disk over NBD and reports every block that holds what it must not.
    pub fn verify(&mut self, target: &Target) -> io::Result<Vec<Violation>> {
        const STEP: u64 = 2048;
        let mut client = Client::attach(target, &self.export, self.dialect)?;
        let mut violations = Vec::new();
        let total = self.record.block_count();
        for first in (0..total).step_by(STEP as usize) {
            let count = STEP.min(total - first);
            let reading = self.record.begin_read(first, count);
            let data = client.read(first * BLOCK as u64, count as usize * BLOCK)?;
            violations.extend(self.record.finish_read(&reading, &data));
        }
        client.disconnect()?;
        Ok(violations)
    }

    /// Holds an image against the record.
    pub fn verify_image(&self, image: &Path) -> io::Result<Vec<Violation>> {
        // The checker may have used only the beginning of the volume.
        let mut data = std::fs::read(image)?;
        data.truncate(self.record.block_count() as usize * BLOCK);
        Ok(self.record.compare(0, &data))
    }

    /// Strikes out the error replies with this number, which a test has provoked; says how many there were.
    pub fn forgive(&mut self, errno: u32) -> usize {
        let before = self.errors.len();
        let start = format!("error {errno}:");
        self.errors.retain(|error| !error.starts_with(&start));
        before - self.errors.len()
    }

    /// Fails if a read during the run returned what it must not have, or an operation got an error reply.
    pub fn assert_clean(&self) {
        assert!(
            self.errors.is_empty(),
            "error replies: {:#?}",
            &self.errors[..self.errors.len().min(5)]
        );
        complain("during the run", &self.violations);
    }

    /// Fails unless the whole disk agrees with the record, and so did every read during the run.
    pub fn assert_agrees(&mut self, target: &Target) {
        self.assert_clean();
        let violations = self.verify(target).expect("the disk can be read");
        complain(&format!("read from {target:?}"), &violations);
    }

    /// Fails unless an image agrees with the record.
    pub fn assert_image_agrees(&self, image: &Path) {
        complain(
            &image.display().to_string(),
            &self.verify_image(image).expect("the image can be read"),
        );
    }
}

fn complain(place: &str, violations: &[Violation]) {
    let some: Vec<String> = violations.iter().take(8).map(ToString::to_string).collect();
    assert!(
        violations.is_empty(),
        "{place}: {} blocks are wrong:\n  {}",
        violations.len(),
        some.join("\n  ")
    );
}

/// One connection.
struct Worker<'a> {
    shared: &'a Shared,
    connection: u16,
    dice: Dice,
    sequence: u64,
    pending: HashMap<u64, Pending>,
    orphans: Vec<OpId>,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, connection: u16) -> Worker<'a> {
        let plan = &shared.plan;
        Worker {
            shared,
            connection,
            dice: Dice::new(plan.seed ^ u64::from(connection + 1).rotate_left(40)),
            // Another seed gets other sequence numbers, so that a resumed run never writes the same content again.
            sequence: plan.seed << 32,
            pending: HashMap::new(),
            orphans: Vec::new(),
        }
    }

    fn stopping(&self) -> bool {
        self.shared.stop.load(SeqCst)
    }

    fn run(mut self) {
        while !self.stopping() {
            let Some(mut client) = self.connect() else {
                continue;
            };
            self.shared.connected.fetch_add(1, SeqCst);
            for orphan in self.orphans.drain(..) {
                self.shared.record.lock().unwrap().settled(orphan);
            }
            match self.drive(&mut client) {
                Ok(()) => drop(client.disconnect()),
                // A dead server is what this client is for; a server that breaks the protocol is not.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.shared.errors.lock().unwrap().push(error.to_string());
                }
                Err(_) => {}
            }
            self.lose();
        }
    }

    fn connect(&mut self) -> Option<Client> {
        let plan = &self.shared.plan;
        let client = self.shared.targets.iter().find_map(|target| {
            let mut client = Client::attach(target, &plan.export, plan.dialect).ok()?;
            // A frozen group answers nothing for as long as the test likes.
            client.patience(Some(Duration::from_mins(3))).ok()?;
            Some(client)
        });
        if client.is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        client
    }

    /// Until an error or the end: keeps `depth` requests in flight.
    fn drive(&mut self, client: &mut Client) -> io::Result<()> {
        loop {
            while self.pending.len() < self.shared.plan.depth && !self.stopping() {
                self.send_one(client)?;
            }
            if self.pending.is_empty() {
                return Ok(());
            }
            self.take_one(client)?;
        }
    }

    fn send_one(&mut self, client: &mut Client) -> io::Result<()> {
        let blocks = self.shared.plan.size / BLOCK as u64;
        let fua = if self.dice.below(10) == 0 {
            FLAG_FUA
        } else {
            0
        };
        let kind = self.dice.below(100);
        // Mostly small, sometimes as long as it gets; half of them near the start, where connections collide.
        let limit = [8, 8, 8, 64, 256, self.shared.plan.longest][self.dice.below(6) as usize];
        let count = 1 + self
            .dice
            .below(limit.min(self.shared.plan.longest).min(blocks));
        let span = if self.dice.below(2) == 0 {
            blocks.min(count + 512)
        } else {
            blocks
        };
        let first = self.dice.below(span - count + 1);
        let offset = first * BLOCK as u64;
        let len = count * BLOCK as u64;
        match kind {
            0..72 => {
                self.sequence += 1;
                let mut data = vec![0; len as usize];
                for (at, bytes) in data.chunks_exact_mut(BLOCK).enumerate() {
                    fill(bytes, first + at as u64, self.connection, self.sequence);
                }
                let content = Content::Written {
                    connection: self.connection,
                    sequence: self.sequence,
                };
                self.change(
                    content,
                    first,
                    count,
                    |client| client.send_write(fua, offset, &data),
                    client,
                )
            }
            72..78 => self.change(
                Content::Zero,
                first,
                count,
                |c| c.send(CMD_TRIM, fua, offset, len, &[]),
                client,
            ),
            78..84 => {
                let flags = fua
                    | if self.dice.below(2) == 0 {
                        FLAG_NO_HOLE
                    } else {
                        0
                    };
                let send = |c: &mut Client| c.send(CMD_WRITE_ZEROES, flags, offset, len, &[]);
                self.change(Content::Zero, first, count, send, client)
            }
            84..88 => {
                let cookie = client.send(CMD_FLUSH, 0, 0, 0, &[])?;
                self.pending.insert(cookie, Pending::Flush);
                Ok(())
            }
            _ => {
                // Short, so that the replies in flight fit the socket and neither side waits for the other to read.
                let count = count.min(16);
                let reading = self.shared.record.lock().unwrap().begin_read(first, count);
                match client.send(CMD_READ, 0, offset, count * BLOCK as u64, &[]) {
                    Ok(cookie) => {
                        self.pending.insert(cookie, Pending::Read(reading, offset));
                        Ok(())
                    }
                    Err(error) => {
                        self.shared.record.lock().unwrap().abandon_read(&reading);
                        Err(error)
                    }
                }
            }
        }
    }

    fn change(
        &mut self,
        content: Content,
        first: u64,
        count: u64,
        send: impl FnOnce(&mut Client) -> io::Result<u64>,
        client: &mut Client,
    ) -> io::Result<()> {
        let id = self
            .shared
            .record
            .lock()
            .unwrap()
            .begin(content, first, count);
        match send(client) {
            Ok(cookie) => {
                self.pending.insert(cookie, Pending::Change(id));
                Ok(())
            }
            Err(error) => {
                self.orphans.push(id);
                Err(error)
            }
        }
    }

    fn take_one(&mut self, client: &mut Client) -> io::Result<()> {
        let answer = client.answer()?;
        let pending = self
            .pending
            .remove(&answer.cookie)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer to nothing"))?;
        let mut record = self.shared.record.lock().unwrap();
        if answer.errno != 0 {
            match pending {
                Pending::Change(id) => record.refused(id),
                Pending::Read(reading, _) => record.abandon_read(&reading),
                Pending::Flush => {}
            }
            let text = format!("error {}: {}", answer.errno, answer.text());
            self.shared.errors.lock().unwrap().push(text);
            return Ok(());
        }
        match pending {
            Pending::Change(id) => record.acknowledged(id),
            Pending::Flush => {}
            Pending::Read(reading, offset) => {
                let data = assemble(&answer, offset, reading.len(), client.dialect);
                let data = data.inspect_err(|_| record.abandon_read(&reading))?;
                let violations = record.finish_read(&reading, &data);
                self.shared.violations.lock().unwrap().extend(violations);
            }
        }
        self.shared.acknowledged.fetch_add(1, SeqCst);
        Ok(())
    }

    /// The connection is gone: what was in flight may or may not have happened.
    fn lose(&mut self) {
        let mut record = self.shared.record.lock().unwrap();
        for (_, pending) in self.pending.drain() {
            match pending {
                Pending::Change(id) => self.orphans.push(id),
                Pending::Read(reading, _) => record.abandon_read(&reading),
                Pending::Flush => {}
            }
        }
    }
}
