//! A group on its shard: the engine, its files, and what belongs to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::budget::Budget;
use super::disk::Files;
use super::log::Log;
use crate::engine::{Command, Disk, Group, GroupConfig, Input, Now, Output};
use crate::status::GroupStatus;

/// What a shard runs: [`Group`], and in tests a stand-in for it.
pub trait Machine: Sized + Send + 'static {
    /// As [`Group::open`].
    fn open(config: GroupConfig, disk: &mut dyn Disk, seed: u128, now: Now)
    -> Result<Self, String>;
    /// As [`Group::handle`].
    fn handle(&mut self, now: Now, input: Input);
    /// As [`Group::finish_batch`].
    fn finish_batch(&mut self, now: Now);
    /// As [`Group::take_outputs`].
    fn take_outputs(&mut self, spare: Vec<Output>) -> Vec<Output>;
    /// As [`Group::deadline`].
    fn deadline(&self) -> Option<Duration>;
    /// As [`Group::sync_due`].
    fn sync_due(&self) -> f64;
    /// As [`Group::status`].
    fn status(&mut self, now: Now) -> GroupStatus;
}

impl Machine for Group {
    fn open(
        config: GroupConfig,
        disk: &mut dyn Disk,
        seed: u128,
        now: Now,
    ) -> Result<Self, String> {
        Group::open(config, disk, seed, now).map_err(|error| error.to_string())
    }

    fn handle(&mut self, now: Now, input: Input) {
        Group::handle(self, now, input);
    }

    fn finish_batch(&mut self, now: Now) {
        Group::finish_batch(self, now);
    }

    fn take_outputs(&mut self, spare: Vec<Output>) -> Vec<Output> {
        Group::take_outputs(self, spare)
    }

    fn deadline(&self) -> Option<Duration> {
        Group::deadline(self)
    }

    fn sync_due(&self) -> f64 {
        Group::sync_due(self)
    }

    fn status(&mut self, now: Now) -> GroupStatus {
        Group::status(self, now)
    }
}

/// The shard's clock.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts now.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Since the start.
    pub fn mono(self) -> Duration {
        self.0.elapsed()
    }

    /// For the engine.
    pub fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Now {
            mono: self.mono(),
            wall_ns: wall.map_or(0, |wall| u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX)),
        }
    }
}

/// A group that runs, or has stopped and is being cleared away.
pub struct Slot<M> {
    /// Its name.
    pub name: String,
    /// `None` once it has stopped.
    pub machine: Option<M>,
    /// `None` once it has stopped and nothing of it is on the ring.
    pub files: Option<Files>,
    /// It got inputs since its last batch ended.
    pub touched: bool,
    /// When the engine wants to hear of the time, as of its last batch: asking all groups in every turn is a tenth of the work
    /// where there are many.
    pub deadline: Option<Duration>,
    /// Disk requests on the ring, and with threads.
    pub jobs: usize,
    /// Connections, of clients and links, that are not gone.
    pub connections: usize,
    /// Memory for its clients.
    pub memory: Arc<Budget>,
    /// Its log.
    pub log: Log,
    commands: HashMap<u64, oneshot::Sender<Result<String, String>>>,
    next_command: u64,
}

impl<M: Machine> Slot<M> {
    /// A group that was opened.
    pub fn new(name: String, machine: M, files: Files, memory: Arc<Budget>) -> Slot<M> {
        Slot {
            name,
            machine: Some(machine),
            files: Some(files),
            touched: false,
            deadline: None,
            jobs: 0,
            connections: 0,
            memory,
            log: Log::default(),
            commands: HashMap::new(),
            next_command: 0,
        }
    }

    /// The input that carries a command, whose outcome will go to `done`.
    pub fn command(
        &mut self,
        command: Command,
        done: Option<oneshot::Sender<Result<String, String>>>,
    ) -> Input {
        let id = self.next_command;
        self.next_command += 1;
        if let Some(done) = done {
            self.commands.insert(id, done);
        }
        Input::Command { id, command }
    }

    /// A command is done.
    pub fn command_done(&mut self, id: u64, result: Result<String, String>) {
        if let Some(done) = self.commands.remove(&id) {
            let _ = done.send(result); // who asked may have gone
        }
    }

    /// The engine has stopped: no more inputs, no more outputs.
    pub fn stop(&mut self) {
        self.machine = None;
        self.deadline = None;
        if let Some(files) = &self.files {
            files.sync_due.set(1.0);
        }
        self.commands.clear();
    }
}
