//! A group's log lines on their way to the daemon's log, without the repetitions.

use std::collections::HashMap;
use std::time::Duration;

use crate::engine::Level;

/// The same line is not written again within this time.
const INTERVAL: Duration = Duration::from_secs(10);

/// Different lines remembered, at most.
const LINES_MAX: usize = 64;

/// What was said lately.
#[derive(Default)]
pub struct Log {
    lines: HashMap<String, Line>,
}

struct Line {
    written: Duration,
    suppressed: u64,
}

impl Log {
    /// Writes a line unless it was written a moment ago.
    pub fn write(&mut self, group: &str, level: Level, text: &str, now: Duration) {
        let Some(suppressed) = self.admit(text, now) else {
            return;
        };
        let again = if suppressed > 0 {
            format!(" (and {suppressed} times since)")
        } else {
            String::new()
        };
        match level {
            Level::Info => tracing::info!(group, "{text}{again}"),
            Level::Warn => tracing::warn!(group, "{text}{again}"),
            Level::Error => tracing::error!(group, "{text}{again}"),
        }
    }

    /// Whether the line may be written, and how often it was not since the last time.
    fn admit(&mut self, text: &str, now: Duration) -> Option<u64> {
        if let Some(line) = self.lines.get_mut(text) {
            if now < line.written + INTERVAL {
                line.suppressed += 1;
                return None;
            }
            line.written = now;
            return Some(std::mem::take(&mut line.suppressed));
        }
        if self.lines.len() >= LINES_MAX {
            self.lines.retain(|_, line| now < line.written + INTERVAL);
        }
        if self.lines.len() < LINES_MAX {
            let line = Line {
                written: now,
                suppressed: 0,
            };
            self.lines.insert(text.to_owned(), line);
        }
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_repeats_is_counted_instead_of_written() {
        let mut log = Log::default();
        let at = Duration::from_secs;
        assert_eq!(log.admit("lost", at(0)), Some(0));
        assert_eq!(log.admit("lost", at(1)), None);
        assert_eq!(log.admit("found", at(1)), Some(0));
        assert_eq!(log.admit("lost", at(9)), None);
        assert_eq!(log.admit("lost", at(10)), Some(2));
        assert_eq!(log.admit("lost", at(20)), Some(0));
        for i in 0..1000 {
            assert_eq!(log.admit(&format!("line {i}"), at(21)), Some(0));
        }
        assert!(log.lines.len() <= LINES_MAX);
    }
}
