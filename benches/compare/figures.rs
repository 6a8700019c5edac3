//! What was measured: samples by round, their medians and spreads.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cases::Point;

/// One interval of one candidate.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    pub per_second: f64,
    pub bytes_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// CPU time per operation by process, microseconds; the kernel's share included. Empty where fio measured.
    pub cpu_us: BTreeMap<&'static str, f64>,
    /// The same for the load itself.
    pub load_cpu_us: f64,
    /// Of all the time of all CPUs, whoever used it.
    pub machine_busy: f64,
    /// The part of it that neither the load nor the candidate used: the kernel's own threads, and whoever else is here.
    pub others_busy: f64,
    /// Calls of `io_uring_enter` per operation, all sites together.
    pub ring_enters: f64,
    /// How often the journal was written from end to end.
    pub journal_turnovers: f64,
    pub checkpoints: u64,
    /// Resident memory at its highest, by process, bytes.
    pub memory_peak: BTreeMap<&'static str, u64>,
    pub checked_blocks: u64,
}

/// A median with the lowest and the highest.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
    pub rounds: usize,
}

impl Spread {
    /// `None` without a value.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rounds = sorted.len();
        let median = match rounds {
            0 => return None,
            n if n % 2 == 0 => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
            n => sorted[n / 2],
        };
        Some(Spread {
            median,
            low: sorted[0],
            high: sorted[rounds - 1],
            rounds,
        })
    }
}

/// Everything that was measured, by round.
#[derive(Default)]
pub struct Record {
    points: BTreeMap<Point, Vec<Sample>>,
    scalars: BTreeMap<String, Vec<f64>>,
}

impl Record {
    pub fn add(&mut self, point: Point, sample: Sample) {
        self.points.entry(point).or_default().push(sample);
    }

    /// A number that belongs to no point, by its name.
    pub fn note(&mut self, name: &str, value: f64) {
        self.scalars.entry(name.to_owned()).or_default().push(value);
    }

    pub fn points(&self) -> impl Iterator<Item = (&Point, &[Sample])> {
        self.points
            .iter()
            .map(|(point, samples)| (point, &samples[..]))
    }

    pub fn scalars(&self) -> &BTreeMap<String, Vec<f64>> {
        &self.scalars
    }

    pub fn scalar(&self, name: &str) -> &[f64] {
        self.scalars.get(name).map_or(&[], |values| &values[..])
    }

    /// What a round measured at a point.
    pub fn sample(&self, point: &Point, round: usize) -> Option<&Sample> {
        self.points.get(point)?.get(round)
    }

    /// One number of a point, over the rounds.
    pub fn spread(&self, point: &Point, field: impl Fn(&Sample) -> f64) -> Option<Spread> {
        let values: Vec<f64> = self.points.get(point)?.iter().map(field).collect();
        Spread::of(&values)
    }
}

/// Three digits that count, with the usual letters for thousands.
pub fn short(value: f64) -> String {
    let (scaled, letter) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{letter}")
}
