//! Clients: each attached to a volume at whichever site exports it, with several requests under way.

use std::time::Duration;

use bytes::Bytes;

use super::history::SECTOR;
use super::ledger::{Asked, What};
use super::plan::Plan;
use super::world::{Happening, NAMES, World};
use crate::base::{ByteRange, VolumeId};
use crate::engine::{ClientId, Input};
use crate::nbd::{Command, Errno, Reply, ReplyBody, ReplyTo, Request};

/// Requests that a client has under way at most.
const DEPTH: usize = 24;

/// One client.
pub struct Client {
    pub id: ClientId,
    pub volume: usize,
    pub at: Option<usize>,
    /// Of the volume, bytes, as it was told when it attached.
    pub size: u64,
    /// Requests that are left to it in this phase.
    pub left: u64,
    /// When it attached.
    pub since: Duration,
}

impl Client {
    pub fn new(number: usize, plan: &Plan) -> Client {
        Client {
            id: ClientId(0),
            // The first two share a volume, so that their ranges overlap.
            volume: number.saturating_sub(1) % plan.volumes.len(),
            at: None,
            size: 0,
            left: 0,
            since: Duration::ZERO,
        }
    }
}

impl World {
    pub fn client_turn(&mut self, client: usize) {
        let pause = if self.clients[client].at.is_some() {
            self.burst(client);
            Duration::from_micros(100 + self.rng.below(1000) * self.rng.below(1500))
        } else {
            self.attach(client);
            Duration::from_millis(1 + self.rng.below(300))
        };
        if self.clients[client].left > 0 {
            self.later(pause, Happening::Client(client));
        }
    }

    fn attach(&mut self, client: usize) {
        let sites = self.sites.len();
        let first = self.rng.below(sites as u64) as usize;
        let id = self.fresh_client();
        for at in (first..first + sites).map(|at| at % sites) {
            let volume = VolumeId(self.clients[client].volume as u32);
            let exports = self.sites[at].exports.as_ref();
            let exports = exports.filter(|exports| exports.open.is_ok());
            let known = exports.and_then(|e| e.volumes.iter().find(|v| v.id == volume));
            if let Some(size) = known.map(|v| v.size)
                && self.alive(at)
            {
                self.note(|| format!("client {client} attaches to {}", NAMES[at]));
                self.clients[client].at = Some(at);
                self.clients[client].since = self.now;
                self.clients[client].size = size;
                self.clients[client].id = id;
                let (site, life) = (at, self.sites[at].life);
                let input = Input::ClientOpened { client: id, volume };
                self.later(Duration::ZERO, Happening::Input { site, life, input });
                return;
            }
        }
    }

    /// The client is not connected any more; what it asked may have been done or not.
    pub fn client_lost(&mut self, client: usize) {
        self.clients[client].at = None;
        self.ledger.forget_client(client);
    }

    pub fn closed_by_site(&mut self, at: usize, id: ClientId) {
        let found = self
            .clients
            .iter()
            .position(|c| c.id == id && c.at == Some(at));
        if let Some(client) = found {
            self.close_admission(at, client, "its client was sent away before");
            self.client_lost(client);
        }
    }

    /// What has no LSN by now must not get one: whoever asked may go on elsewhere.
    fn close_admission(&mut self, at: usize, client: usize, why: &'static str) {
        let chain = &self.sites[at].chain;
        let head = chain.head().0;
        let tail = self.tail(at);
        let asked: Vec<u64> = self
            .ledger
            .open
            .values()
            .filter(|a| a.client == client)
            .map(|a| a.number)
            .collect();
        for number in asked {
            // What is in a frame that is not closed yet cannot be told from what is not admitted.
            if head == tail && self.ledger.place(number).is_none() {
                self.ledger.never(number, why);
            }
        }
    }

    /// The client goes away by itself.
    pub fn client_leaves(&mut self, client: usize) {
        // In this very moment the site may not have heard yet that it came.
        let here = self.clients[client].at;
        let Some(at) = here.filter(|_| self.clients[client].since < self.now) else {
            return;
        };
        let id = self.clients[client].id;
        self.note(|| format!("client {client} leaves {}", NAMES[at]));
        if self.paused(at) {
            let (site, life) = (at, self.sites[at].life);
            let input = Input::ClientClosed { client: id };
            self.later(Duration::ZERO, Happening::Input { site, life, input });
        } else {
            self.input(at, Input::ClientClosed { client: id });
            self.close_admission(at, client, "its client had left before");
        }
        self.client_lost(client);
    }

    pub fn paused(&self, at: usize) -> bool {
        self.sites[at].paused_until > self.now
    }

    pub fn burst(&mut self, client: usize) {
        if self.rng.below(60) == 0 {
            self.client_leaves(client);
            return;
        }
        let outstanding = self
            .ledger
            .open
            .values()
            .filter(|a| a.client == client)
            .count();
        let room = DEPTH.saturating_sub(outstanding) as u64;
        let left = self.clients[client].left;
        let count = (1 + self.rng.below(16)).min(room).min(left);
        self.clients[client].left -= count;
        for _ in 0..count {
            self.ask(client);
        }
    }

    fn range(&mut self, client: usize) -> ByteRange {
        let size = self.clients[client].size;
        let sectors = if self.plan.large {
            [8, 256, 1024, 2048][self.rng.below(4) as usize]
        } else {
            [1, 1, 3, 8, 8, 16, 40][self.rng.below(7) as usize]
        };
        let len = (sectors * SECTOR).min(size);
        // Half of the requests go to a narrow part, so that they overlap.
        let space = if self.rng.below(2) == 0 || self.plan.large {
            size
        } else {
            (24 << 10).min(size)
        };
        let last = (space.max(len) - len) / SECTOR;
        let offset = self.rng.below(last + 1) * SECTOR;
        match self.half.filter(|_| self.plan.large) {
            Some(half) => {
                // Grown volumes need not halve into whole sectors.
                let part = size / 2 / SECTOR * SECTOR;
                let len = len.min(part);
                let offset = offset % (part - len + SECTOR);
                ByteRange::new(offset + part * half as u64, len)
            }
            None => ByteRange::new(offset, len),
        }
    }

    fn ask(&mut self, client: usize) {
        let Some(at) = self.clients[client].at else {
            return;
        };
        let range = self.range(client);
        let kind = match self.rng.below(20) {
            _ if self.is_spared(self.clients[client].volume, range) => 0,
            kind => kind,
        };
        let fua = self.rng.below(8) == 0;
        let number = self.ledger.number();
        let (what, command) = match kind {
            0..=3 => {
                let holes = self.rng.below(2) == 0;
                (What::Read(range), Command::Read { range, holes })
            }
            4 => {
                let after = self.ledger.promises.values().rfind(|p| p.site == at);
                let after = after.copied();
                (What::Flush { after }, Command::Flush)
            }
            5 => (What::Status, Command::BlockStatus { range, one: fua }),
            6 | 7 => {
                let what = What::Write {
                    range,
                    zeroes: true,
                    fua,
                };
                let no_hole = self.rng.below(2) == 0;
                let command = if kind == 6 {
                    Command::Trim { range, fua }
                } else {
                    Command::WriteZeroes {
                        range,
                        fua,
                        no_hole,
                    }
                };
                (what, command)
            }
            _ => {
                let data = Bytes::from(number.to_le_bytes().repeat(range.len as usize / 8));
                let offset = range.offset;
                let what = What::Write {
                    range,
                    zeroes: false,
                    fua,
                };
                (what, Command::Write { offset, data, fua })
            }
        };
        let volume = VolumeId(self.clients[client].volume as u32);
        self.note(|| format!("client {client} asks {}: {number} {what:?}", NAMES[at]));
        let tail = self.tail(at);
        self.ledger.ask(Asked {
            number,
            client,
            site: at,
            volume,
            what,
            tail,
        });
        let request = Request {
            reply_to: ReplyTo::plain(number),
            command,
        };
        let input = Input::Request {
            client: self.clients[client].id,
            request,
        };
        let (site, life) = (at, self.sites[at].life);
        self.later(Duration::ZERO, Happening::Input { site, life, input });
    }

    pub fn replied(&mut self, at: usize, id: ClientId, reply: Reply) {
        let known = self.clients.iter().any(|c| c.id == id && c.at == Some(at));
        if !known {
            return;
        }
        let Some(asked) = self.ledger.open.remove(&reply.reply_to.cookie()) else {
            return self.violate(format!("an answer to nothing: {reply:?}"));
        };
        let result = match (&asked.what, reply.body) {
            (
                What::Write { .. },
                ReplyBody::Error {
                    errno: Errno::NoSpc,
                    ..
                },
            ) => {
                self.ledger.refused += 1;
                self.ledger
                    .never(asked.number, "it was refused for lack of space");
                Ok(())
            }
            (What::Write { fua, .. }, ReplyBody::Done) => self.write_acknowledged(&asked, *fua),
            (What::Flush { after }, ReplyBody::Done) => self.flush_acknowledged(&asked, *after),
            (What::Read(range), ReplyBody::Data { offset, pieces }) => {
                self.read_answered(&asked, *range, offset, pieces)
            }
            (What::Status, ReplyBody::Status { extents, .. }) if !extents.is_empty() => Ok(()),
            (what, body) => Err(format!("{what:?} was answered with {body:?}")),
        };
        let result = result
            .map_err(|text| format!("{} answered request {}: {text}", NAMES[at], asked.number));
        self.check(result);
    }
}
