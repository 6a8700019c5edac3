//! Measurements that are more than a load on a candidate: mirrors that come back, recoveries, many groups.

mod groups;
mod recovery;
mod returning;

use super::figures::Record;
use super::lineup::Lineup;

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scenario {
    /// Round trips and durable writes of the machine itself.
    Steps,
    /// Writes while a mirror that was away catches up.
    Away,
    /// A mirror gets from the journal what it lacks.
    CatchUp,
    /// A mirror gets a copy of a volume in which everything differs.
    Resync,
    /// A killed primary comes back.
    Recovery,
    /// 1, 8 and 100 groups, and their memory.
    Groups,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Steps => "the machine's own steps",
            Scenario::Away => "a mirror comes back under load",
            Scenario::CatchUp => "catch-up from the journal",
            Scenario::Resync => "range resync",
            Scenario::Recovery => "recovery after a kill",
            Scenario::Groups => "1, 8 and 100 groups",
        }
    }

    /// Runs it once; what it finds is noted.
    pub fn run(self, lineup: &mut Lineup, record: &mut Record) -> anyhow::Result<()> {
        match self {
            Scenario::Steps => {
                let steps = lineup.steps()?;
                for (name, time) in [
                    ("client_us", steps.client),
                    ("link_us", steps.link),
                    ("durable_us", steps.durable),
                    ("floor_us", steps.floor()),
                ] {
                    record.note(name, time.as_secs_f64() * 1e6);
                }
                Ok(())
            }
            Scenario::Away => returning::under_load(lineup, record),
            Scenario::CatchUp => returning::from_the_journal(lineup, record),
            Scenario::Resync => returning::by_ranges(lineup, record),
            Scenario::Recovery => recovery::after_a_kill(lineup, record),
            Scenario::Groups => groups::side_by_side(lineup, record),
        }
    }
}
