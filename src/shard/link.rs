//! One link to a peer: messages to bytes and back. Frames are neither copied on their way out nor on their way in.

use std::io;

use bytes::{Bytes, BytesMut};

use super::ring::{Op, ReadBuf};
use super::stream::{Stream, make_room};
use crate::base::Message;
use crate::engine::LinkId;
use crate::link::{Decoder, encode};

/// Room for receiving what is not the content of a frame, bytes.
const ROOM: usize = 256 << 10;

/// A link.
pub struct Link {
    id: LinkId,
    /// Its group, by its key.
    pub group: usize,
    stream: Stream,
    decoder: Decoder,
    /// Received and not parsed; empty while a receive is on the ring.
    input: BytesMut,
    phase: Phase,
    /// Scratch.
    parts: Vec<Bytes>,
    /// The engine knows that it is gone, or said so itself.
    pub detached: bool,
}

enum Phase {
    Open,
    /// The engine closed it: send what is queued, then end.
    Closing,
    Broken(String),
}

impl Link {
    /// A connected link, with what was received on it so far.
    pub fn new(id: LinkId, group: usize, stream: Stream, received: BytesMut) -> Link {
        Link {
            id,
            group,
            stream,
            decoder: Decoder::new(),
            input: received,
            phase: Phase::Open,
            parts: Vec::new(),
            detached: false,
        }
    }

    /// Its name towards the engine.
    pub fn id(&self) -> LinkId {
        self.id
    }

    /// The next message that arrived.
    pub fn message(&mut self) -> Option<Message> {
        if !matches!(self.phase, Phase::Open) || self.stream.is_receiving() {
            return None;
        }
        match self.decoder.next(&mut self.input) {
            Ok(message) => message,
            Err(error) => {
                self.fail(error.to_string());
                None
            }
        }
    }

    /// Queues a message.
    pub fn queue(&mut self, message: &Message) {
        if self.broken().is_some() {
            return;
        }
        let mut parts = std::mem::take(&mut self.parts);
        match encode(message, &mut parts) {
            Ok(()) => parts
                .drain(..)
                .for_each(|part| self.stream.queue(part, Vec::new())),
            Err(error) => {
                tracing::error!("{error}");
                self.fail(error.to_string());
            }
        }
        self.parts = parts;
    }

    /// Bytes not sent yet.
    pub fn queued(&self) -> usize {
        self.stream.queued()
    }

    /// The next send, if one is due.
    pub fn send(&mut self) -> Option<Op> {
        self.broken()
            .is_none()
            .then(|| self.stream.send())
            .flatten()
    }

    /// A send is over.
    pub fn sent(&mut self, parts: Vec<Bytes>, result: io::Result<usize>) {
        self.stream.sent(parts, *result.as_ref().unwrap_or(&0));
        if let Err(error) = result {
            self.fail(format!("sending failed: {error}"));
        }
    }

    /// The next receive, if one is due. [`Link::message`] has nothing more to give.
    pub fn receive(&mut self) -> Option<Op> {
        if !matches!(self.phase, Phase::Open) || self.stream.is_receiving() {
            return None;
        }
        // The rest of a frame goes where the journal will take it from.
        if let Some((frame, missing)) = self.decoder.lend() {
            return Some(self.stream.receive(ReadBuf::Aligned(frame), missing, true));
        }
        let mut into = std::mem::take(&mut self.input);
        let left = into.capacity() - into.len();
        let wants = self.decoder.wants();
        let len = if left >= wants.max(ROOM / 2) {
            left
        } else {
            make_room(&mut into, wants.max(ROOM), false)
        };
        Some(self.stream.receive(ReadBuf::Plain(into), len, false))
    }

    /// A receive is over.
    pub fn received(&mut self, into: ReadBuf, result: io::Result<usize>) {
        self.stream.received();
        match into {
            ReadBuf::Plain(input) => self.input = input,
            ReadBuf::Aligned(frame) => self.decoder.give_back(frame),
        }
        match result {
            Ok(0) => self.fail("the peer closed the connection".into()),
            Ok(_) => {}
            Err(error) => self.fail(format!("receiving failed: {error}")),
        }
    }

    /// The engine is done with the link: what is queued is sent, then it ends.
    pub fn close(&mut self) {
        self.detached = true;
        if self.broken().is_none() {
            self.phase = Phase::Closing;
        }
    }

    /// Ends a link that is being closed once its last byte was sent.
    pub fn finish(&mut self) {
        if matches!(self.phase, Phase::Closing) && self.stream.queued() == 0 {
            self.fail("closed".into());
        }
    }

    /// Ends the link at once.
    pub fn fail(&mut self, reason: String) {
        if self.broken().is_none() {
            self.phase = Phase::Broken(reason);
            self.stream.shut();
        }
    }

    /// Why no more can be sent or received.
    pub fn broken(&self) -> Option<&str> {
        match &self.phase {
            Phase::Broken(reason) => Some(reason),
            Phase::Open | Phase::Closing => None,
        }
    }

    /// Whether it can be forgotten.
    pub fn is_gone(&self) -> bool {
        self.broken().is_some() && self.detached && self.stream.is_idle()
    }
}
