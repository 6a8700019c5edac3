//! Whether a shard looks again for a while before it sleeps.
//!
//! Most of what a small write waits for is waking processors: on virtual machines twenty to thirty microseconds each time, at
//! four places. Who looks again for a moment instead is awake when it comes. That pays only where the next thing comes soon,
//! and where there is nothing else to do meanwhile: under many requests at once the waits are short anyway, and looking would
//! only take time from others, and take in pieces what else comes in batches. So a shard does it while its waits have been
//! short, each brought little, and all of it came from a few.

use std::time::Duration;

use smallvec::SmallVec;

/// A wait that ends so soon is worth being awake for; nobody looks for longer.
const SHORT: Duration = Duration::from_micros(150);

/// So many short waits in a row, and it begins.
const BEGIN: u32 = 8;

/// What counts as much: bytes on sockets in one turn. A write of 4 KiB makes 13 KiB of them at its primary.
const MUCH_BYTES: u64 = 24 << 10;

/// So many connections are few: say a client each, and a link each, of three groups.
const FEW: usize = 6;

/// What the last waits were like.
#[derive(Default, Debug)]
pub struct Spin {
    /// Counts short waits that brought little up to twice [`BEGIN`], long ones down, and begins anew with much.
    score: u32,
    /// From whom something came last, the last one first.
    senders: SmallVec<[Sender; FEW + 1]>,
}

/// A connection, by its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// A client's.
    Client(usize),
    /// A link.
    Link(usize),
}

impl Spin {
    /// How long to look before sleeping.
    pub fn patience(&self) -> Option<Duration> {
        (self.score >= BEGIN).then_some(SHORT)
    }

    /// Something came from this one.
    pub fn heard(&mut self, sender: Sender) {
        if let Some(at) = self.senders.iter().position(|known| *known == sender) {
            self.senders[..=at].rotate_right(1);
            return;
        }
        self.senders.insert(0, sender);
        if self.senders.len() > FEW {
            self.senders.truncate(FEW);
            self.score = 0;
        }
    }

    /// A wait of this length ended, and so many bytes had been sent or had come.
    pub fn waited(&mut self, length: Duration, bytes: u64) {
        if bytes > MUCH_BYTES {
            self.score = 0;
        } else if length > SHORT {
            // One slow write to a disk changes nothing; an idle shard has stopped after three.
            self.score = self.score.saturating_sub(BEGIN / 2);
        } else {
            self.score = (self.score + 1).min(2 * BEGIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(40);
    const LATE: Duration = Duration::from_millis(5);

    fn after(waits: impl IntoIterator<Item = (Duration, u64)>) -> Option<Duration> {
        let mut spin = Spin::default();
        for (length, bytes) in waits {
            spin.waited(length, bytes);
        }
        spin.patience()
    }

    #[test]
    fn a_shard_with_one_request_at_a_time_looks_again_and_stops_when_nothing_comes() {
        assert_eq!(after([]), None);
        assert_eq!(after([(SOON, 4096); 7]), None);
        assert_eq!(after([(SOON, 4096); 8]), Some(SHORT));
        let busy = || std::iter::repeat_n((SOON, 4096), 100);
        assert_eq!(after(busy().chain([(LATE, 0); 2])), Some(SHORT));
        assert_eq!(after(busy().chain([(LATE, 0); 3])), None);
    }

    #[test]
    fn a_shard_with_one_request_at_a_time_of_each_of_many_does_not() {
        let looks = |clients: usize| {
            let mut spin = Spin::default();
            for turn in 0..200 {
                spin.heard(Sender::Client(turn % clients));
                spin.waited(SOON, 4096);
            }
            spin.patience().is_some()
        };
        assert!(looks(1) && looks(FEW));
        assert!(!looks(FEW + 1) && !looks(50));
        // Who comes and goes is not many.
        let mut spin = Spin::default();
        for turn in 0..200 {
            spin.heard(Sender::Link(turn / 20));
            spin.heard(Sender::Client(0));
            spin.waited(SOON, 4096);
        }
        assert_eq!(spin.patience(), Some(SHORT));
    }

    #[test]
    fn a_shard_with_much_to_do_does_not() {
        assert_eq!(after([(SOON, 1 << 20); 100]), None);
        // Batches of requests, with what their disks and peers say in between.
        let batches = [(SOON, 100_000), (SOON, 64), (SOON, 64), (SOON, 64)];
        assert_eq!(after(batches.into_iter().cycle().take(100)), None);
    }
}
