//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::cases::Case;
use super::measure::Times;

/// Compares doublure with what one would use instead, side by side on the same disk, and holds it to its bars.
#[derive(Clone, Parser, Debug)]
#[command(name = "tools/bench", bin_name = "tools/bench")]
#[allow(clippy::doc_markdown)]
pub struct Options {
    /// The bars only, briefly: less than two minutes, and less than it takes to be sure
    #[arg(long)]
    pub quick: bool,
    /// The bars only, as thoroughly as with everything else: half an hour
    #[arg(long)]
    pub bars: bool,
    /// Only these bars (--list names them), or `cases` for the comparison without bars
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub only: Vec<String>,
    /// Of the comparison only the cases whose title contains this, without the bars: "depth 1", "cold", "1 MiB"
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["only", "bars"])]
    pub case: Option<String>,
    /// Names the bars
    #[arg(long)]
    pub list: bool,
    /// DRBD in the kernel of an emulated machine and doublure beside it, and nothing else
    #[arg(long)]
    pub drbd: bool,
    /// Repetitions of everything, alternating between the candidates [default: 3, with --quick 1]
    #[arg(long, value_name = "N")]
    pub rounds: Option<usize>,
    /// Size of the journals, MiB [default: 1024 as for every group, with --quick 32]
    #[arg(long, value_name = "MIB")]
    pub journal: Option<u64>,
    /// Size of the volumes, MiB [default: 1024, with --quick 256]
    #[arg(long, value_name = "MIB")]
    pub size: Option<u64>,
    /// Seconds of each measurement after its warm-up [default: 5, with --quick 1]; for a bar at least so long, and until the
    /// journal was written three times from end to end
    #[arg(long, value_name = "S")]
    pub seconds: Option<f64>,
    /// Clients connect over loopback TCP instead of a unix socket
    #[arg(long)]
    pub tcp: bool,
    /// Directory on the disk to be measured
    #[arg(long, value_name = "DIR", default_value = "target")]
    pub dir: PathBuf,
    /// Where the table, the JSON and the charts go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub out: PathBuf,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    pub fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 }).max(1)
    }

    /// Bytes.
    pub fn journal(&self) -> u64 {
        self.journal.unwrap_or(if self.quick { 32 } else { 1024 }) << 20
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size.unwrap_or(if self.quick { 256 } else { 1024 }) << 20
    }

    /// Bytes of frames that a recovery has to replay.
    pub fn replay(&self) -> u64 {
        if self.quick { 128 << 20 } else { 1 << 30 }
    }

    /// How long a mirror is away.
    pub fn away(&self) -> Duration {
        Duration::from_secs(if self.quick { 10 } else { 60 })
    }

    /// Of a point of a bar: checkpoints and the write-back of the homes belong to it.
    pub fn times_of_bar(&self, case: &Case) -> Times {
        let turns = case.job.writes_percent == 100 && !self.quick;
        Times {
            turnovers: if turns { 3 } else { 0 },
            ..self.times(case)
        }
    }

    /// Writes at depth 1 take longer to fill the journal as often as others.
    pub fn times(&self, case: &Case) -> Times {
        let seconds = self.seconds.unwrap_or(if self.quick { 1.0 } else { 5.0 });
        let slow = case.job.writes_percent == 100 && case.job.depth == 1;
        let factor = if slow && !self.quick { 2.0 } else { 1.0 };
        Times {
            warm_up: Duration::from_secs_f64(match (case.cold, self.quick) {
                (true, _) => 0.0,
                (false, true) => 0.2,
                (false, false) => 1.0,
            }),
            interval: Duration::from_secs_f64(seconds * factor),
            turnovers: 0,
        }
    }
}
