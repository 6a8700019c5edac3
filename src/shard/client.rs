//! One NBD client after its handshake: bytes to requests, replies to bytes, and how much of either the shard holds.
//!
//! A client that has too much outstanding, does not read its replies, or finds no memory for its next request is not
//! read from until that changes; nothing else happens to it, and nothing at all to the others.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::budget::{Budget, Charge};
use super::ring::{Op, ReadBuf};
use super::stream::{Stream, make_room};
use crate::engine::ClientId;
use crate::nbd::{
    Command, Event, MAX_PAYLOAD, Outbox, Reply, ReplyTo, Request, Session, Transmission, Wants,
};

/// Requests of one client that are not answered yet, at most.
const REQUESTS_MAX: usize = 1024;

/// Bytes of unsent replies beyond which no further request is taken.
const UNSENT_MAX: usize = 4 << 20;

/// Memory that one client may make the shard hold, bytes.
const CLIENT_BYTES: usize = 64 << 20;

/// Of this, what it may have however much the others hold, bytes.
const ALLOWANCE: usize = 64 << 10;

/// Room for receiving, bytes: between these, by how much comes.
const ROOM_MIN: usize = 4 << 10;
const ROOM_MAX: usize = 256 << 10;

/// Payloads above this many bytes are received into memory of their own.
const LARGE: usize = 64 << 10;

/// A client.
pub struct Client {
    id: ClientId,
    /// Its group, by its key.
    pub group: usize,
    stream: Stream,
    codec: Transmission,
    phase: Phase,
    /// Received and not parsed; empty while a receive is on the ring.
    input: BytesMut,
    room: usize,
    /// Receptions in a row that would have fitted a quarter of the room.
    roomy: u32,
    /// Room of the receive on the ring.
    offered: usize,
    /// The client will send no more.
    ended: bool,
    memory: Arc<Budget>,
    /// For the payload that is being received.
    payload: Option<Charge>,
    /// Taken from the input, waits for memory.
    stalled: Option<Request>,
    /// Asked of the engine and not answered.
    outstanding: usize,
    /// Memory for the answers to come.
    reads: VecDeque<(ReplyTo, Charge)>,
    /// Encoded since the last send.
    outbox: Outbox,
    answered: Vec<Charge>,
    /// Since when there is no memory for its next request.
    pub starving_since: Option<Duration>,
    /// Since when it is the client's turn to take replies.
    sending_since: Option<Duration>,
    /// Since when it is the client's turn to send the rest of a payload.
    payload_since: Option<Duration>,
    /// The engine knows that it is gone, or said so itself.
    pub detached: bool,
}

/// How far a client's leave has come.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    Open,
    /// It sends no more: answer what is outstanding, then close.
    Leaving,
    /// The engine has nothing more to say to it: send what is queued, then close.
    Closing,
    /// No byte can be sent any more.
    Broken(String),
}

impl Client {
    /// A client as it comes out of the handshake, with what was received beyond it.
    pub fn new(
        id: ClientId,
        group: usize,
        stream: Stream,
        session: Session,
        received: BytesMut,
        memory: &Arc<Budget>,
    ) -> Client {
        Client {
            id,
            group,
            stream,
            codec: Transmission::new(session),
            phase: Phase::Open,
            input: received,
            room: ROOM_MIN,
            roomy: 0,
            offered: 0,
            ended: false,
            memory: memory.child(CLIENT_BYTES, ALLOWANCE),
            payload: None,
            stalled: None,
            outstanding: 0,
            reads: VecDeque::new(),
            outbox: Outbox::new(),
            answered: Vec::new(),
            starving_since: None,
            sending_since: None,
            payload_since: None,
            detached: false,
        }
    }

    /// Its name towards the engine.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Name of its export.
    pub fn export(&self) -> &str {
        &self.codec.session().export
    }

    /// The next request for the engine.
    pub fn request(&mut self, now: Duration) -> Option<Request> {
        if let Some(request) = self.stalled.take() {
            return self.admit(request, now);
        }
        while self.phase == Phase::Open && !self.is_full() && !self.stream.is_receiving() {
            match self.codec.next(&mut self.input) {
                Some(Event::Request(request)) => return self.admit(request, now),
                Some(Event::Reject(reply)) => self.codec.encode(reply, &mut self.outbox),
                Some(Event::Disconnect) => self.phase = Phase::Leaving,
                Some(Event::Violation(reason)) => self.fail(reason),
                None => {
                    if self.ended {
                        self.end();
                    }
                    return None;
                }
            }
        }
        None
    }

    /// Whether [`Client::request`] may find something without a further reception.
    pub fn has_input(&self) -> bool {
        self.stalled.is_some()
            || self.phase == Phase::Open
                && !self.stream.is_receiving()
                && (self.ended || !self.input.is_empty())
    }

    /// Passes a request on if there is memory for what it needs, else keeps it.
    fn admit(&mut self, mut request: Request, now: Duration) -> Option<Request> {
        let (bytes, paid) = match &request.command {
            Command::Write { data, .. } => {
                self.payload_since = None;
                (data.len(), self.payload.take())
            }
            Command::Read { range, .. } => (range.len as usize, None),
            // The engine reads no more than this.
            Command::Cache { range } => (range.len.min(u64::from(MAX_PAYLOAD)) as usize, None),
            _ => (0, None),
        };
        let Some(charge) = paid.or_else(|| self.memory.take(bytes)) else {
            self.stalled = Some(request);
            self.starving_since.get_or_insert(now);
            return None;
        };
        self.starving_since = None;
        self.outstanding += 1;
        match &mut request.command {
            Command::Write { data, .. } => *data = charge.around(std::mem::take(data)),
            _ if bytes > 0 => self.reads.push_back((request.reply_to, charge)),
            _ => {}
        }
        Some(request)
    }

    /// An answer of the engine.
    pub fn answer(&mut self, reply: Reply) {
        self.outstanding = self.outstanding.saturating_sub(1);
        if let Some(at) = self.reads.iter().position(|(to, _)| *to == reply.reply_to) {
            let (_, charge) = self.reads.remove(at).expect("just found");
            self.answered.push(charge);
        }
        if !self.is_broken() {
            self.codec.encode(reply, &mut self.outbox);
        }
    }

    /// The next send, if one is due.
    pub fn send(&mut self, now: Duration) -> Option<Op> {
        if self.stream.is_sending() || self.is_broken() {
            return None;
        }
        let mut parts: Vec<Bytes> = self.outbox.drain().collect();
        if let Some(last) = parts.pop() {
            for part in parts {
                self.stream.queue(part, Vec::new());
            }
            self.stream.queue(last, std::mem::take(&mut self.answered));
        }
        let send = self.stream.send();
        if send.is_some() {
            self.sending_since = Some(now);
        }
        send
    }

    /// A send is over.
    pub fn sent(&mut self, parts: Vec<Bytes>, result: io::Result<usize>) {
        self.sending_since = None;
        let sent = *result.as_ref().unwrap_or(&0);
        self.stream.sent(parts, sent);
        if let Err(error) = result {
            self.fail(format!("sending failed: {error}"));
        }
    }

    /// The next receive, if one is due. `generous`: there is room to spare for all.
    pub fn receive(&mut self, now: Duration, generous: bool) -> Option<Op> {
        let due = self.phase == Phase::Open
            && !self.ended
            && !self.stream.is_receiving()
            && self.stalled.is_none()
            && !self.is_full();
        if !due {
            return None;
        }
        let room = if generous { self.room } else { ROOM_MIN };
        let (len, all) = match self.codec.wants(&self.input) {
            Wants::Nothing => return None,
            Wants::Header(_) => (room, false),
            Wants::Skip(left) => (
                room.max(LARGE).min(usize::try_from(left).unwrap_or(LARGE)),
                false,
            ),
            Wants::Payload { len, missing } if len <= LARGE => (room.max(missing), false),
            Wants::Payload { len, missing } => {
                if self.payload.is_none() {
                    let Some(charge) = self.memory.take(len) else {
                        self.starving_since.get_or_insert(now);
                        return None;
                    };
                    self.payload = Some(charge);
                }
                self.starving_since = None;
                self.payload_since.get_or_insert(now);
                (missing, true)
            }
        };
        let mut into = std::mem::take(&mut self.input);
        if into.is_empty() && into.capacity() > 2 * room {
            into = BytesMut::new(); // it was busier once
        }
        // Half a room left over from the last time will do, if nothing in particular is asked for.
        let left = into.capacity() - into.len();
        let len = if !all && left >= room / 2 && left >= ROOM_MIN {
            left
        } else {
            make_room(&mut into, len, all)
        };
        self.offered = len;
        Some(self.stream.receive(ReadBuf::Plain(into), len, all))
    }

    /// A receive is over.
    pub fn received(&mut self, into: ReadBuf, result: io::Result<usize>) {
        self.stream.received();
        let offered = std::mem::take(&mut self.offered);
        let ReadBuf::Plain(into) = into else {
            unreachable!("clients receive into plain memory")
        };
        self.input = into;
        match result {
            Ok(0) => self.ended = true,
            Ok(count) => self.adapt_room(count, offered),
            Err(error) => self.fail(format!("receiving failed: {error}")),
        }
    }

    fn adapt_room(&mut self, received: usize, offered: usize) {
        const ROOMY_MAX: u32 = 16;
        if received >= offered {
            self.room = (self.room * 2).min(ROOM_MAX);
        }
        self.roomy = if received < self.room / 4 {
            self.roomy + 1
        } else {
            0
        };
        if self.roomy > ROOMY_MAX {
            self.room = (self.room / 2).max(ROOM_MIN);
            self.roomy = 0;
        }
    }

    /// The client ended its stream.
    fn end(&mut self) {
        // At the end of a request it may only have closed its side, and still wants its answers.
        if self.input.is_empty() && matches!(self.codec.wants(&self.input), Wants::Header(_)) {
            self.phase = Phase::Leaving;
        } else {
            self.fail("the client closed the connection in the middle of a request".into());
        }
    }

    /// Nothing can be said to the client any more.
    pub fn fail(&mut self, reason: String) {
        if !self.is_broken() {
            self.phase = Phase::Broken(reason);
            self.stream.shut();
            self.forget();
        }
    }

    /// The engine is done with the client: what is queued is sent, then the connection ends.
    pub fn close(&mut self) {
        self.detached = true;
        if !self.is_broken() {
            self.phase = Phase::Closing;
            self.stalled = None;
            self.starving_since = None;
        }
    }

    /// Ends the connection once its last byte was sent.
    pub fn finish(&mut self) {
        let done = match self.phase {
            Phase::Open | Phase::Broken(_) => false,
            Phase::Leaving => self.outstanding == 0 && self.stalled.is_none(),
            Phase::Closing => true,
        };
        if done && self.unsent() == 0 {
            self.fail(String::new());
        }
    }

    /// Drops what will never be used.
    fn forget(&mut self) {
        self.stalled = None;
        self.starving_since = None;
        self.sending_since = None;
        self.payload_since = None;
        self.payload = None;
        self.reads.clear();
        self.answered.clear();
        self.outbox = Outbox::new();
        self.input = BytesMut::new();
    }

    /// Whether no byte can be sent any more.
    pub fn is_broken(&self) -> bool {
        matches!(self.phase, Phase::Broken(_))
    }

    /// Why it is broken; `None` if it was ended on purpose.
    pub fn reason(&self) -> Option<&str> {
        match &self.phase {
            Phase::Broken(reason) if !reason.is_empty() => Some(reason),
            _ => None,
        }
    }

    /// Whether it can be forgotten.
    pub fn is_gone(&self) -> bool {
        self.is_broken() && self.detached && self.stream.is_idle()
    }

    /// Room of the receive on the ring beyond what every client has.
    pub fn extra_room(&self) -> usize {
        self.offered.saturating_sub(ROOM_MIN)
    }

    /// Bytes it makes the shard hold although it is the client's turn, since before `since`.
    pub fn hoards(&self, since: Duration) -> usize {
        let slow = [self.sending_since, self.payload_since];
        if slow.iter().flatten().any(|slow| *slow <= since) {
            self.memory.held()
        } else {
            0
        }
    }

    fn unsent(&self) -> usize {
        self.stream.queued() + self.outbox.len()
    }

    fn is_full(&self) -> bool {
        self.outstanding >= REQUESTS_MAX || self.unsent() >= UNSENT_MAX
    }
}
