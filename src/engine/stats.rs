//! Counters, rates and latencies of a group: plain numbers, read when somebody asks.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::status::{Latency, Rates, StageLatencies, Totals};

/// Latencies and rates cover between one and two of these.
const WINDOW: Duration = Duration::from_secs(5);

/// The stages whose latency is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// A write request, from its arrival to its reply.
    Write,
    /// A read request, from its arrival to its reply.
    Read,
    /// A frame's write to the journal.
    Journal,
    /// A frame, from its sending to the peer's durable acknowledgement.
    Link,
    /// An operation's write to the home.
    Apply,
}

/// What is counted.
#[derive(Debug)]
pub struct Stats {
    /// Since the start.
    pub totals: Totals,
    current: Window,
    previous: Option<Window>,
}

#[derive(Debug)]
struct Window {
    began: Duration,
    at_start: Totals,
    histograms: [Histogram<u64>; 5],
}

impl Window {
    fn new(began: Duration, at_start: Totals) -> Window {
        // From 1 us to 1000 s at two digits: 17 KiB each.
        let histogram = || Histogram::new_with_bounds(1, 1_000_000_000, 2).expect("valid bounds");
        Window {
            began,
            at_start,
            histograms: std::array::from_fn(|_| histogram()),
        }
    }
}

impl Stats {
    /// Nothing counted.
    pub fn new(now: Duration) -> Stats {
        Stats {
            totals: Totals::default(),
            current: Window::new(now, Totals::default()),
            previous: None,
        }
    }

    /// Records how long something took.
    pub fn record(&mut self, stage: Stage, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        self.current.histograms[stage as usize].saturating_record(us);
    }

    /// Begins a new window when the current one is full. Call it before anything is counted.
    pub fn turn(&mut self, now: Duration) {
        let age = now.saturating_sub(self.current.began);
        if age < WINDOW {
            return;
        }
        let fresh = Window::new(now, self.totals);
        let full = std::mem::replace(&mut self.current, fresh);
        // Nothing came for long, or this would have been called: what the full window counted is no longer of the last
        // seconds, which were idle.
        let idle = age >= 2 * WINDOW;
        self.previous = Some(if idle {
            Window::new(now.saturating_sub(WINDOW), self.totals)
        } else {
            full
        });
    }

    /// Averages over the window and the one before.
    pub fn rates(&self, now: Duration) -> Rates {
        let (began, start) = self
            .previous
            .as_ref()
            .map_or((self.current.began, &self.current.at_start), |w| {
                (w.began, &w.at_start)
            });
        let seconds = now.saturating_sub(began).as_secs_f64().max(0.001);
        let per_second = |now: u64, then: u64| (now - then) as f64 / seconds;
        Rates {
            window_seconds: seconds,
            reads_per_second: per_second(self.totals.reads, start.reads),
            writes_per_second: per_second(self.totals.writes, start.writes),
            read_bytes_per_second: per_second(self.totals.read_bytes, start.read_bytes),
            write_bytes_per_second: per_second(self.totals.write_bytes, start.write_bytes),
        }
    }

    /// Distributions over the window and the one before.
    pub fn latencies(&self) -> StageLatencies {
        let of = |stage: Stage| {
            let mut all = self.current.histograms[stage as usize].clone();
            if let Some(previous) = &self.previous {
                all.add(&previous.histograms[stage as usize])
                    .expect("same bounds");
            }
            if all.is_empty() {
                return Latency::default();
            }
            Latency {
                count: all.len(),
                p50_us: all.value_at_quantile(0.5) as f64,
                p99_us: all.value_at_quantile(0.99) as f64,
                max_us: all.max() as f64,
            }
        };
        StageLatencies {
            write: of(Stage::Write),
            read: of(Stage::Read),
            journal: of(Stage::Journal),
            link: of(Stage::Link),
            apply: of(Stage::Apply),
        }
    }
}

/// How many journal bytes, and how much time, lie between two LSNs: marks along the history, thinned with age.
#[derive(Debug, Default)]
pub struct Marks {
    ends: VecDeque<Mark>,
    bytes: u64,
    /// When a client last wrote, by the frame clock.
    last_write_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    lsn: u64,
    bytes: u64,
    time_ns: u64,
}

impl Marks {
    /// A frame that ends at `lsn` was closed.
    pub fn push(&mut self, lsn: u64, len: u64, time_ns: u64) {
        const MOST: usize = 4096;
        self.bytes += len;
        self.ends.push_back(Mark {
            lsn,
            bytes: self.bytes,
            time_ns,
        });
        if self.ends.len() > MOST {
            let mut keep = false;
            self.ends.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// Journal bytes after `lsn`.
    pub fn bytes_after(&self, lsn: u64) -> u64 {
        let at = self.ends.partition_point(|m| m.lsn <= lsn);
        let before = if at == 0 {
            self.ends.front().map_or(self.bytes, |m| m.bytes)
        } else {
            self.ends[at - 1].bytes
        };
        self.bytes - before
    }

    /// A client wrote. Frames also hold what no client asked for, such as the beginning of an epoch.
    pub fn wrote(&mut self, time_ns: u64) {
        self.last_write_ns = Some(time_ns);
    }

    /// When a client last wrote, by the frame clock; `None` if that was before the daemon started.
    pub fn last_write(&self) -> Option<u64> {
        self.last_write_ns
    }

    /// When the first operation after `lsn` was made, by the frame clock.
    pub fn time_after(&self, lsn: u64) -> Option<u64> {
        let at = self.ends.partition_point(|m| m.lsn <= lsn);
        self.ends.get(at).map(|m| m.time_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_bytes_and_time_behind_a_position() {
        let mut marks = Marks::default();
        for n in 1..=10 {
            marks.push(n * 10, 4096, n);
        }
        assert_eq!(marks.bytes_after(100), 0);
        assert_eq!(marks.bytes_after(50), 5 * 4096);
        assert_eq!(marks.time_after(50), Some(6));
        assert_eq!(marks.time_after(100), None);
    }

    #[test]
    fn after_a_long_rest_the_rates_are_those_of_the_rest() {
        let mut stats = Stats::new(Duration::ZERO);
        stats.totals.writes = 1000;
        stats.record(Stage::Write, Duration::from_millis(1));
        let hour = Duration::from_hours(1);
        stats.turn(hour);
        stats.totals.writes += 10;
        let rates = stats.rates(hour);
        assert!((rates.window_seconds - 5.0).abs() < 1e-9, "{rates:?}");
        assert!((rates.writes_per_second - 2.0).abs() < 1e-9, "{rates:?}");
        assert_eq!(stats.latencies().write.count, 0);
    }

    #[test]
    fn rates_are_of_the_last_windows_only() {
        let mut stats = Stats::new(Duration::ZERO);
        stats.totals.writes = 1000;
        stats.turn(Duration::from_secs(5));
        stats.turn(Duration::from_secs(10));
        stats.totals.writes = 1500;
        let rates = stats.rates(Duration::from_secs(15));
        assert!((rates.writes_per_second - 50.0).abs() < 1e-9, "{rates:?}");
    }
}
