//! What a seed stands for: the group, its clients, and what goes wrong when. A plan is data, so that a failing one can
//! be made smaller.

use std::time::Duration;

use crate::base::{AckMode, Compress, OnPeerLoss};
use crate::engine::Force;
use crate::engine::tests::Rng;
use crate::engine::tests::disk::Damage;

/// Everything about a run that is fixed before it begins.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// How many sites there are: the first is the primary at first, the others are its mirrors.
    pub sites: usize,
    pub ack: AckMode,
    pub policy: OnPeerLoss,
    pub compress: Compress,
    pub timeout: Duration,
    pub journal_bytes: u64,
    pub volumes: Vec<u64>,
    pub clients: usize,
    /// Requests are large, so that the journal goes round.
    pub large: bool,
    /// Whose file system clones files.
    pub clones: [bool; 3],
    /// Who keeps what it holds while it is copied to.
    pub undo: [bool; 3],
    /// Times of trouble; the world heals after each.
    pub phases: Vec<Duration>,
    pub events: Vec<Event>,
}

/// Something that goes wrong, or that an operator does.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    pub phase: usize,
    /// Since the phase began.
    pub at: Duration,
    pub fault: Fault,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Fault {
    /// The site loses power. `silent`: nothing tells the peer.
    Crash {
        site: usize,
        down: Duration,
        silent: bool,
        damage: Option<Damage>,
    },
    /// All lose power at the same moment.
    CrashAll {
        down: [Duration; 3],
    },
    /// The site dies, and another one is promoted by force while it is dead.
    Failover {
        site: usize,
        silent: bool,
        after: Duration,
        down: Duration,
    },
    /// Nobody reaches anybody, and this one is promoted by force.
    Split {
        site: usize,
        after: Duration,
        lasting: Duration,
    },
    /// The site gets a new, empty disk. `alone_after`: its peer dies meanwhile, and it is promoted by force.
    Replace {
        site: usize,
        alone_after: Option<Duration>,
    },
    /// The process stands still; its disk goes on.
    Pause {
        site: usize,
        lasting: Duration,
    },
    /// Every connection breaks, at any byte.
    CutLinks,
    /// Nothing reaches this site any more.
    Deaf {
        site: usize,
        lasting: Duration,
    },
    /// Nobody reaches anybody.
    Partition {
        lasting: Duration,
    },
    /// These two do not reach each other, although both may reach a third.
    Apart {
        sites: [usize; 2],
        lasting: Duration,
    },
    /// Messages take long.
    SlowLink {
        by: Duration,
        lasting: Duration,
    },
    /// The disk takes long.
    SlowDisk {
        site: usize,
        factor: u32,
        lasting: Duration,
    },
    /// Syncs of the homes take long while clients are busy, and then the power goes.
    SlowSync {
        site: usize,
        crash_after: Duration,
    },
    FailJournalWrite {
        site: usize,
    },
    FailHomeSync {
        site: usize,
    },
    FailHomeWrite {
        site: usize,
    },
    /// The file system of the homes has only this left.
    LittleSpace {
        site: usize,
        free_bytes: u64,
        lasting: Duration,
    },
    /// The site is away while clients write so much that it must be copied to; in the middle of that, after this long, its
    /// peer dies, and an operator takes what the site held before.
    Behind {
        site: usize,
        away: Duration,
        within: Duration,
    },
    /// The mirror is away while clients write so much that it must be copied to. These homes are slow then, and clients
    /// write into what is being copied.
    Copy {
        /// How much slower the homes of the mirror, and of its primary.
        slow: [u32; 2],
        within: Duration,
        ending: Ending,
    },
    /// The primary's disk loses part of the journal that the mirror has, neither reaches the other, and an operator who
    /// does not know tells it to serve.
    LostHistory {
        damage: Damage,
        down: Duration,
        lasting: Duration,
    },
    /// Neither reaches the other. The primary goes on alone, the mirror is promoted by force; then, both serving for a while,
    /// the first one loses power and comes back to the second one.
    Fork {
        /// It dies when it has just acknowledged alone what was under way: no frame and no record says so yet.
        quiet: bool,
        within: Duration,
        down: Duration,
    },
    /// A slot of the state file rots.
    RotState {
        site: usize,
    },
    /// The wall clock jumps.
    ClockJump {
        site: usize,
        by_ms: i64,
    },
    Order {
        site: usize,
        order: Order,
    },
}

/// What becomes of a copy.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Ending {
    /// It completes.
    Nothing,
    /// The links break while the mirror makes sure that it can go back.
    CutBefore,
    /// The links break in the middle of it.
    Cut,
    /// The mirror loses power in the middle of it.
    MirrorDies,
    /// The primary does, and an operator takes what the mirror held before.
    PrimaryDies,
    /// The mirror loses power when it says that it is consistent.
    MirrorDiesAfter,
}

/// What an operator orders in the middle of trouble.
#[derive(Clone, PartialEq, Debug)]
pub enum Order {
    Promote(Vec<Force>),
    Demote,
    Switchover,
    Disconnect,
    Connect,
    Stop,
    /// A volume grows by so many bytes.
    Grow {
        volume: usize,
        by: u64,
    },
}

fn millis(rng: &mut Rng, from: u64, to: u64) -> Duration {
    // Most are short: what is decided within milliseconds shows the races.
    let span = to - from;
    let part = rng.below(1000) * rng.below(1000);
    Duration::from_millis(from + span * part / 1_000_000)
}

impl Plan {
    pub fn draw(seed: u64) -> Plan {
        let mut rng = Rng::new(seed);
        let rng = &mut rng;
        for _ in 0..4 {
            rng.next();
        }
        let large = rng.below(4) == 0;
        let ack = match rng.below(6) {
            0 => AckMode::Async,
            1 | 2 => AckMode::Memsync,
            _ => AckMode::Sync,
        };
        let policy = match rng.below(3) {
            0 => OnPeerLoss::Freeze,
            _ => OnPeerLoss::Continue,
        };
        let compress = match rng.below(4) {
            0 => Compress::Lz4,
            1 => Compress::Auto,
            _ => Compress::Off,
        };
        let volumes = if large {
            vec![2 << 20]
        } else {
            (0..=rng.below(4)).map(|_| 128 << 10).collect()
        };
        let phases: Vec<Duration> = (0..=rng.below(3))
            .map(|_| millis(rng, 500, 40_000))
            .collect();
        let mut events = Vec::new();
        for (phase, lasting) in phases.iter().enumerate() {
            for _ in 0..=rng.below(7) {
                let at = Duration::from_micros(rng.below(lasting.as_micros() as u64 + 1));
                let fault = Fault::draw(rng);
                events.push(Event { phase, at, fault });
            }
        }
        // Drawn last, so that what they were before them stays.
        let more = &mut Rng::new(seed ^ 0x000b_ad0d_15c5);
        for (phase, lasting) in phases.iter().enumerate() {
            if more.below(3) == 0 {
                let at = Duration::from_micros(more.below(lasting.as_micros() as u64 + 1));
                let fault = Fault::RotState {
                    site: more.below(2) as usize,
                };
                events.push(Event { phase, at, fault });
            }
            if large && more.below(2) == 0 {
                let at = Duration::from_micros(more.below(lasting.as_micros() as u64 / 2 + 1));
                let fault = Fault::Behind {
                    site: more.below(2) as usize,
                    away: millis(more, 6_000, 12_000),
                    within: millis(more, 0, 300),
                };
                events.push(Event { phase, at, fault });
            }
        }
        let clones = [more.below(2) == 0, more.below(2) == 0, false];
        let undo = [more.below(4) > 0, more.below(4) > 0, false];
        Plan::draw_growth(seed, &phases, volumes.len(), &mut events);
        let mut plan = Plan {
            seed,
            sites: 2,
            ack,
            policy,
            compress,
            timeout: Duration::from_millis([500, 2000, 5000][rng.below(3) as usize]),
            journal_bytes: if large { 13 << 20 } else { 32 << 20 },
            volumes,
            clients: 2 + rng.below(2) as usize,
            large,
            clones,
            undo,
            phases,
            events,
        };
        draw_rare(&mut plan);
        draw_third(&mut plan);
        plan.events.sort_by_key(|e| (e.phase, e.at));
        plan
    }
}

/// Situations that chance alone hardly ever brings about, in a phase of their own after the others: what those were without
/// them they still are.
fn draw_rare(plan: &mut Plan) {
    let rng = &mut Rng::new(plan.seed ^ 0x0ddc_a5e5_0000);
    let phase = plan.phases.len();
    let kind = rng.below(8);
    let (fault, lasting) = match plan.policy {
        // What clients write compresses to nothing: it takes long to fill a journal with that.
        OnPeerLoss::Continue if plan.large && plan.compress == Compress::Off => {
            let mut slow = || [1, 20, 80, 300][rng.below(4) as usize];
            let slow = [slow(), slow()];
            let fault = Fault::Copy {
                slow,
                // A copy to homes that are not slow takes some 400 us.
                within: Duration::from_micros(rng.below(400 * u64::from(slow[0].max(slow[1])))),
                ending: match kind {
                    0 => Ending::Nothing,
                    1..=2 => Ending::CutBefore,
                    3 => Ending::Cut,
                    4 => Ending::MirrorDies,
                    5..=6 => Ending::PrimaryDies,
                    _ => Ending::MirrorDiesAfter,
                },
            };
            (fault, Duration::from_secs(14))
        }
        OnPeerLoss::Continue if kind == 0 => {
            let fault = Fault::Fork {
                quiet: rng.below(2) == 0,
                within: millis(rng, 1, 1_000),
                down: millis(rng, 1, 1_000),
            };
            (fault, plan.timeout + Duration::from_secs(8))
        }
        _ if kind == 1 && plan.ack != AckMode::Async => {
            let damage = [Damage::Rot, Damage::Lost, Damage::Misdirected];
            let fault = Fault::LostHistory {
                damage: damage[rng.below(3) as usize],
                down: millis(rng, 1, 2_000),
                lasting: millis(rng, 500, 5_000),
            };
            (fault, Duration::from_secs(8))
        }
        _ => return,
    };
    plan.phases.push(lasting);
    let at = Duration::from_micros(300_000 + rng.below(200_000));
    plan.events.push(Event { phase, at, fault });
    if rng.below(3) == 0 {
        let at = Duration::from_micros(rng.below(lasting.as_micros() as u64));
        let fault = Fault::draw(rng);
        plan.events.push(Event { phase, at, fault });
    }
}

/// A third of the plans without such a situation, a quarter of all, get a second mirror: what goes wrong may be at any of the
/// three sites, and a link may be down while the others are up. The others stay what they are.
fn draw_third(plan: &mut Plan) {
    let rng = &mut Rng::new(plan.seed ^ 0x0000_7414_d517_e000);
    let rare = |e: &Event| {
        matches!(
            e.fault,
            Fault::Copy { .. } | Fault::LostHistory { .. } | Fault::Fork { .. }
        )
    };
    if rng.below(3) > 0 || plan.events.iter().any(rare) {
        return;
    }
    plan.sites = 3;
    (plan.clones[2], plan.undo[2]) = (rng.below(2) == 0, rng.below(4) > 0);
    let mut more = Vec::new();
    for event in &mut plan.events {
        match &mut event.fault {
            Fault::CrashAll { down } => down[2] = millis(rng, 1, 8_000),
            // Of those at each site one will be where it can be carried out.
            Fault::Order {
                site: 0,
                order: order @ Order::Grow { .. },
            } => {
                let (site, order) = (2, order.clone());
                let fault = Fault::Order { site, order };
                more.push(Event { fault, ..*event });
            }
            Fault::Order {
                order: Order::Grow { .. },
                ..
            } => {}
            fault => {
                if let Some(site) = fault.site() {
                    *site = rng.below(3) as usize;
                }
            }
        }
    }
    for (phase, lasting) in plan.phases.iter().enumerate() {
        for _ in 0..rng.below(3) {
            let at = Duration::from_micros(rng.below(lasting.as_micros() as u64 + 1));
            let one = rng.below(3) as usize;
            let sites = [one, (one + 1 + rng.below(2) as usize) % 3];
            let lasting = millis(rng, 1, 15_000);
            let fault = Fault::Apart { sites, lasting };
            more.push(Event { phase, at, fault });
        }
    }
    plan.events.append(&mut more);
}

impl Plan {
    /// In every fourth plan volumes grow while things go wrong.
    fn draw_growth(seed: u64, phases: &[Duration], volumes: usize, events: &mut Vec<Event>) {
        let rng = &mut Rng::new(seed ^ 0x0000_96ec_0457_ab1e);
        if rng.below(4) > 0 {
            return;
        }
        for (phase, lasting) in phases.iter().enumerate() {
            // Where something else happens is where it hurts.
            let near: Vec<Duration> = events
                .iter()
                .filter(|e| e.phase == phase)
                .map(|e| e.at)
                .collect();
            for _ in 0..rng.below(3) {
                let at = if rng.below(2) == 0 {
                    let at = near[rng.below(near.len() as u64) as usize];
                    at.saturating_sub(Duration::from_micros(rng.below(3000)))
                } else {
                    Duration::from_micros(rng.below(lasting.as_micros() as u64 + 1))
                };
                let order = Order::Grow {
                    volume: rng.below(volumes as u64) as usize,
                    by: (1 + rng.below(128)) * 512,
                };
                for site in 0..2 {
                    let order = order.clone();
                    let fault = Fault::Order { site, order };
                    events.push(Event { phase, at, fault });
                }
            }
        }
    }
}

impl Fault {
    /// Where it strikes, if that is one site.
    fn site(&mut self) -> Option<&mut usize> {
        match self {
            Fault::Crash { site, .. }
            | Fault::Failover { site, .. }
            | Fault::Split { site, .. }
            | Fault::Replace { site, .. }
            | Fault::Pause { site, .. }
            | Fault::Deaf { site, .. }
            | Fault::SlowDisk { site, .. }
            | Fault::SlowSync { site, .. }
            | Fault::FailJournalWrite { site }
            | Fault::FailHomeSync { site }
            | Fault::FailHomeWrite { site }
            | Fault::LittleSpace { site, .. }
            | Fault::Behind { site, .. }
            | Fault::RotState { site }
            | Fault::ClockJump { site, .. }
            | Fault::Order { site, .. } => Some(site),
            Fault::CrashAll { .. }
            | Fault::Copy { .. }
            | Fault::LostHistory { .. }
            | Fault::Fork { .. }
            | Fault::CutLinks
            | Fault::Partition { .. }
            | Fault::Apart { .. }
            | Fault::SlowLink { .. } => None,
        }
    }

    fn draw(rng: &mut Rng) -> Fault {
        let site = rng.below(2) as usize;
        let lasting = millis(rng, 1, 15_000);
        match rng.below(55) {
            0..=9 => Fault::Crash {
                site,
                down: millis(rng, 1, 12_000),
                silent: rng.below(3) == 0,
                damage: match rng.below(6) {
                    0 => Some(Damage::Rot),
                    1 => Some(Damage::Lost),
                    2 => Some(Damage::Misdirected),
                    _ => None,
                },
            },
            10..=11 => Fault::CrashAll {
                down: [millis(rng, 1, 8_000), millis(rng, 1, 8_000), Duration::ZERO],
            },
            12 => Fault::Pause { site, lasting },
            13..=15 => Fault::CutLinks,
            16 => Fault::Deaf { site, lasting },
            17..=18 => Fault::Partition { lasting },
            19 => Fault::SlowLink {
                by: millis(rng, 1, 3_000),
                lasting,
            },
            20..=22 => Fault::SlowDisk {
                site,
                factor: [10, 100, 3000][rng.below(3) as usize],
                lasting,
            },
            23 => Fault::FailJournalWrite { site },
            24 => Fault::FailHomeSync { site },
            25 => Fault::FailHomeWrite { site },
            26 => Fault::LittleSpace {
                site,
                free_bytes: (64 << 20) + rng.below(1 << 20),
                lasting,
            },
            27 => Fault::ClockJump {
                site,
                by_ms: rng.below(7_200_000).cast_signed() - 3_600_000,
            },
            28..=31 => Fault::Order {
                site,
                order: Order::Promote(vec![Force::PeerUnreachable]),
            },
            32 => Fault::Order {
                site,
                order: Order::Promote(Vec::new()),
            },
            33 => Fault::Order {
                site,
                order: Order::Demote,
            },
            34..=36 => Fault::Order {
                site,
                order: Order::Switchover,
            },
            37 => Fault::Order {
                site,
                order: Order::Disconnect,
            },
            38 => Fault::Order {
                site,
                order: Order::Stop,
            },
            39 => Fault::Order {
                site,
                order: Order::Connect,
            },
            40..=44 => Fault::Failover {
                site,
                silent: rng.below(3) == 0,
                after: millis(rng, 0, 6_000),
                down: millis(rng, 500, 20_000),
            },
            45..=48 => Fault::Split {
                site,
                after: millis(rng, 0, 8_000),
                lasting: millis(rng, 500, 20_000),
            },
            49..=51 => Fault::SlowSync {
                site,
                crash_after: millis(rng, 5, 3_000),
            },
            _ => Fault::Replace {
                site,
                alone_after: (rng.below(2) == 0).then(|| millis(rng, 1, 200)),
            },
        }
    }
}
