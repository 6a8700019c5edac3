//! Connections between the sites, as bytes: what a site sends goes through the link's encoder and decoder, arrives in
//! pieces of any size and can be cut at any byte.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::base::Message;
use crate::engine::tests::Rng;
use crate::link::{Decoder, encode};

/// One direction of a connection.
#[derive(Default)]
pub struct Pipe {
    /// When each piece arrives; `None` is the end.
    flying: VecDeque<(Duration, Option<Bytes>)>,
    flying_bytes: u64,
    input: BytesMut,
    decoder: Decoder,
    /// The receiver closed its end, or was told of the end.
    deaf: bool,
}

/// One connection.
pub struct Wire {
    /// Who is at its ends, in the order of the sites.
    pub ends: [usize; 2],
    /// What leads to each of them.
    pipes: [Pipe; 2],
}

impl Wire {
    pub fn between(one: usize, other: usize) -> Wire {
        Wire {
            ends: [one.min(other), one.max(other)],
            pipes: Default::default(),
        }
    }

    /// Who is at the end that is not this site's.
    pub fn other(&self, at: usize) -> usize {
        self.ends[usize::from(self.ends[0] == at)]
    }

    /// What leads to this site.
    pub fn to(&mut self, at: usize) -> &mut Pipe {
        &mut self.pipes[usize::from(self.ends[1] == at)]
    }

    /// Bytes on their way from this site.
    pub fn flying_from(&self, at: usize) -> u64 {
        let to = usize::from(self.ends[0] == at);
        if self.ends.contains(&at) {
            self.pipes[to].flying_bytes()
        } else {
            0
        }
    }
}

/// What arrived.
pub enum Arrival {
    Message(Message),
    End,
}

impl Pipe {
    /// Sends; returns when it arrives.
    pub fn send(&mut self, message: &Message, at: Duration) -> Result<Duration, String> {
        let mut parts: Vec<Bytes> = Vec::new();
        encode(message, &mut parts).map_err(|e| format!("cannot be sent: {e}"))?;
        let at = self.flying.back().map_or(at, |last| at.max(last.0));
        if self.flying.back().is_some_and(|last| last.1.is_none()) {
            return Ok(at);
        }
        for part in parts {
            self.flying_bytes += part.len() as u64;
            self.flying.push_back((at, Some(part)));
        }
        Ok(at)
    }

    /// The sender is done.
    pub fn end(&mut self, at: Duration) -> Duration {
        let at = self.flying.back().map_or(at, |last| at.max(last.0));
        self.flying.push_back((at, None));
        at
    }

    pub fn flying_bytes(&self) -> u64 {
        self.flying_bytes
    }

    pub fn deafen(&mut self) {
        self.deaf = true;
        self.flying.clear();
        self.flying_bytes = 0;
    }

    pub fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// The connection breaks: some of the bytes that fly still arrive, then it ends.
    pub fn cut(&mut self, now: Duration, rng: &mut Rng) {
        let mut keep = rng.below(self.flying_bytes + 1);
        let flying = std::mem::take(&mut self.flying);
        self.flying_bytes = 0;
        for part in flying.into_iter().filter_map(|(_, part)| part) {
            let part = part.slice(..part.len().min(keep as usize));
            keep -= part.len() as u64;
            if !part.is_empty() {
                self.flying_bytes += part.len() as u64;
                self.flying.push_back((now, Some(part)));
            }
        }
        self.flying.push_back((now, None));
    }

    /// What has arrived by now. Now and then the last piece arrives in two; then says when the rest does.
    pub fn receive(
        &mut self,
        now: Duration,
        rng: &mut Rng,
    ) -> Result<(Vec<Arrival>, Option<Duration>), String> {
        let mut arrived = Vec::new();
        let mut later = None;
        while let Some((at, _)) = self.flying.front()
            && *at <= now
            && later.is_none()
        {
            let (_, part) = self.flying.pop_front().expect("just seen");
            let Some(mut part) = part else {
                arrived.push(Arrival::End);
                self.deafen();
                break;
            };
            if part.len() > 1 && rng.below(16) == 0 {
                let at = 1 + rng.below(part.len() as u64 - 1) as usize;
                let rest = part.split_off(at);
                let due = now + Duration::from_micros(1 + rng.below(200));
                self.flying.push_front((due, Some(rest)));
                later = Some(due);
            }
            self.flying_bytes -= part.len() as u64;
            self.decode(&part, &mut arrived)?;
        }
        Ok((arrived, later))
    }

    /// As the shard does it: the rest of a frame goes straight where the journal will take it from.
    fn decode(&mut self, mut part: &[u8], arrived: &mut Vec<Arrival>) -> Result<(), String> {
        loop {
            if let Some((mut frame, missing)) = self.decoder.lend() {
                let count = missing.min(part.len());
                frame.extend_from_slice(&part[..count]);
                self.decoder.give_back(frame);
                part = &part[count..];
            } else {
                self.input.extend_from_slice(part);
                part = &[];
            }
            while let Some(message) = self
                .decoder
                .next(&mut self.input)
                .map_err(|e| format!("what was sent cannot be decoded: {e}"))?
            {
                arrived.push(Arrival::Message(message));
            }
            if part.is_empty() {
                return Ok(());
            }
        }
    }
}
