//! The store against the plainest possible model: the whole content of every volume after every operation.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::*;
use bytes::Bytes;

const VOLUMES: usize = 2;
const SIZE: u64 = 64;
/// What a home holds where a write is on its way.
const TORN: u8 = 0xEE;

type Volumes = [Vec<u8>; VOLUMES];

#[derive(Clone, Debug)]
enum Step {
    Admit {
        kind: OpKind,
        volume: u32,
        range: ByteRange,
        late: bool,
    },
    Attach,
    Allow(u8),
    Apply,
    Complete(Index),
    Read {
        volume: u32,
        range: ByteRange,
    },
    Hold {
        volume: u32,
        range: ByteRange,
    },
    Release(Index),
    Truncate(Index),
}

fn range() -> impl Strategy<Value = ByteRange> {
    (0..SIZE).prop_flat_map(|at| {
        // Short ones mostly, so that chains of overlaps and gaps both come up.
        prop_oneof![4 => 0..=(SIZE - at).min(12), 1 => 0..=SIZE - at]
            .prop_map(move |len| ByteRange::new(at, len))
    })
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        6 => Just(OpKind::Write),
        1 => Just(OpKind::Trim),
        1 => any::<bool>().prop_map(|no_hole| OpKind::WriteZeroes { no_hole }),
        1 => Just(OpKind::CreateVolume),
    ];
    let volume = 0..VOLUMES as u32;
    prop_oneof![
        8 => (kind, volume.clone(), range(), any::<bool>())
            .prop_map(|(kind, volume, range, late)| Step::Admit { kind, volume, range, late }),
        4 => Just(Step::Attach),
        4 => (1..6u8).prop_map(Step::Allow),
        8 => Just(Step::Apply),
        6 => any::<Index>().prop_map(Step::Complete),
        6 => (volume.clone(), range()).prop_map(|(volume, range)| Step::Read { volume, range }),
        1 => (volume, range()).prop_map(|(volume, range)| Step::Hold { volume, range }),
        1 => any::<Index>().prop_map(Step::Release),
        1 => any::<Index>().prop_map(Step::Truncate),
    ]
}

#[derive(Clone, Debug)]
struct Entry {
    op: Op,
    late: Option<Content>,
    started: bool,
    done: bool,
}

struct Model {
    store: Store,
    policy: Policy,
    /// Content of the volumes after every LSN, from 0 on.
    versions: Vec<Volumes>,
    homes: Volumes,
    /// The operation with LSN n is at n - 1.
    entries: Vec<Entry>,
    in_flight: Vec<Apply>,
    allowed: u64,
    holds: Vec<(HoldId, VolumeId, ByteRange)>,
    letters: u8,
}

fn bytes_of(range: ByteRange) -> std::ops::Range<usize> {
    range.offset as usize..range.end() as usize
}

fn put(volumes: &mut Volumes, op: &Op, content: &Content) {
    let target = &mut volumes[op.volume.0 as usize][bytes_of(op.range)];
    match content {
        Content::Data(data) => target.copy_from_slice(data),
        Content::Zero { .. } => target.fill(0),
        Content::Control(_) => {}
    }
}

impl Model {
    fn new(policy: Policy) -> Model {
        let blank = [vec![0; SIZE as usize], vec![0; SIZE as usize]];
        Model {
            store: Store::with_policy(Lsn::ZERO, policy),
            policy,
            versions: vec![blank.clone()],
            homes: blank,
            entries: Vec::new(),
            in_flight: Vec::new(),
            allowed: 0,
            holds: Vec::new(),
            letters: 0,
        }
    }

    fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Admit {
                kind,
                volume,
                range,
                late,
            } => self.admit(kind, volume, range, late),
            Step::Attach => {
                if let Some(at) = self.entries.iter().position(|e| e.late.is_some()) {
                    self.attach(at);
                }
            }
            Step::Allow(more) => {
                self.allowed = (self.allowed + u64::from(more)).min(self.last());
                self.store.allow(Lsn(self.allowed));
            }
            Step::Apply => {
                self.apply();
            }
            Step::Complete(which) if !self.in_flight.is_empty() => {
                self.complete(which.index(self.in_flight.len()));
            }
            Step::Read { volume, range } => self.read(VolumeId(volume), range),
            Step::Hold { volume, range } => {
                let volume = VolumeId(volume);
                self.holds
                    .push((self.store.hold(volume, range), volume, range));
            }
            Step::Release(which) if !self.holds.is_empty() => {
                let (hold, ..) = self.holds.remove(which.index(self.holds.len()));
                self.store.release(hold);
            }
            Step::Truncate(to) => {
                let to = self.allowed + to.index((self.last() - self.allowed) as usize + 1) as u64;
                self.entries.truncate(to as usize);
                self.versions.truncate(to as usize + 1);
                self.store.truncate_after(Lsn(to));
            }
            Step::Complete(_) | Step::Release(_) => {}
        }
        self.check_counters();
    }

    fn admit(&mut self, kind: OpKind, volume: u32, range: ByteRange, late: bool) {
        let (volume, range) = if kind.is_control() {
            (VolumeId(0), ByteRange::new(0, 0))
        } else {
            (VolumeId(volume), range)
        };
        let op = Op {
            kind,
            volume,
            range,
            fua: false,
        };
        self.letters = self.letters % 200 + 1;
        // Every byte tells which write and which place it is from; none is 0.
        let letter = |at: u64| self.letters.wrapping_add(at as u8 * 3) | 1;
        let payload: Bytes = (0..range.len).map(letter).collect();
        let content = Content::of(&op, payload);
        let mut version = self.versions.last().unwrap().clone();
        put(&mut version, &op, &content);
        self.versions.push(version);
        self.entries.push(Entry {
            op,
            late: (kind == OpKind::Write || kind.is_control()).then_some(content),
            started: false,
            done: false,
        });
        self.store.admit(Lsn(self.last()), &op);
        if !late && self.entries.last().unwrap().late.is_some() {
            self.attach(self.entries.len() - 1);
        }
    }

    fn attach(&mut self, at: usize) {
        let content = self.entries[at].late.take().unwrap();
        self.store.attach(Lsn(at as u64 + 1), content);
    }

    /// Starts the next apply and checks that it may; if there is none, checks that none could.
    fn apply(&mut self) -> bool {
        let Some(apply) = self.store.next_apply() else {
            self.check_stuck();
            return false;
        };
        let at = apply.lsn.0 as usize - 1;
        let entry = &self.entries[at];
        assert!(apply.lsn.0 <= self.allowed, "the WAL rule");
        assert!(!entry.started, "LSN {} was started twice", apply.lsn);
        assert_eq!(entry.op, apply.op);
        assert!(self.in_flight.len() < self.policy.max_in_flight);
        assert_eq!(self.blocked(at), None, "LSN {} had to wait", apply.lsn);
        self.entries[at].started = true;
        let op = apply.op;
        self.homes[op.volume.0 as usize][bytes_of(op.range)].fill(TORN);
        self.in_flight.push(apply);
        true
    }

    /// What an operation must wait for.
    fn blocked(&self, at: usize) -> Option<String> {
        let op = self.entries[at].op;
        for (earlier, e) in self.entries[..at].iter().enumerate() {
            let control = op.kind.is_control() || e.op.kind.is_control();
            let overlaps = e.op.volume == op.volume && e.op.range.overlaps(op.range);
            if !e.done && (control || overlaps) {
                return Some(format!("LSN {}", earlier + 1));
            }
        }
        self.holds
            .iter()
            .find(|h| !op.kind.is_control() && h.1 == op.volume && h.2.overlaps(op.range))
            .map(|h| format!("{:?}", h.0))
    }

    /// The oldest operation that is not started must have a reason.
    fn check_stuck(&self) {
        let Some(at) = self.entries.iter().position(|e| !e.started) else {
            return;
        };
        assert!(
            at as u64 + 1 > self.allowed
                || self.entries[at].late.is_some()
                || self.in_flight.len() >= self.policy.max_in_flight
                || self.blocked(at).is_some(),
            "LSN {} waits for nothing",
            at + 1
        );
    }

    fn complete(&mut self, which: usize) {
        let apply = self.in_flight.remove(which);
        put(&mut self.homes, &apply.op, &apply.content);
        self.entries[apply.lsn.0 as usize - 1].done = true;
        self.store.applied(apply.lsn);
    }

    fn read(&self, volume: VolumeId, range: ByteRange) {
        let plan = self.store.read_plan(volume, range);
        let expected = &self.versions.last().unwrap()[volume.0 as usize];
        let mut at = range.offset;
        for piece in &plan.pieces {
            assert_eq!(piece.range.offset, at, "pieces in order, without gaps");
            assert!(piece.range.len > 0);
            at = piece.range.end();
            let expected = &expected[bytes_of(piece.range)];
            match piece.source {
                Source::Home => assert_eq!(
                    &self.homes[volume.0 as usize][bytes_of(piece.range)],
                    expected
                ),
                Source::Overlay(lsn) => match self.store.content(lsn, piece.range) {
                    Some(Content::Data(data)) => assert_eq!(data, expected),
                    Some(Content::Zero { .. }) => assert!(expected.iter().all(|b| *b == 0)),
                    Some(Content::Control(_)) => panic!("a read of a control operation"),
                    None => assert!(self.entries[lsn.0 as usize - 1].late.is_some()),
                },
            }
        }
        assert_eq!(at, range.end());
        let newest = self.entries.iter().rposition(|e| {
            !e.done && e.op.volume == volume && range.len > 0 && shares_a_byte(e.op.range, range)
        });
        assert_eq!(plan.newest, newest.map(|at| Lsn(at as u64 + 1)));
    }

    fn check_counters(&self) {
        let open = || self.entries.iter().filter(|e| !e.done);
        let done = self.entries.iter().take_while(|e| e.done).count();
        let bytes = open().filter(|e| e.op.kind == OpKind::Write);
        assert_eq!(self.store.applied_lsn(), Lsn(done as u64));
        assert_eq!(self.store.last_lsn(), Lsn(self.last()));
        assert_eq!(self.store.unapplied_ops(), open().count());
        assert_eq!(self.store.idle(), open().count() == 0);
        assert_eq!(
            self.store.unapplied_bytes(),
            bytes.map(|e| e.op.range.len).sum::<u64>() + open().count() as u64 * OP_BYTES
        );
        for (_, volume, range) in &self.holds {
            let mut flights = self.in_flight.iter().filter(|a| !a.op.kind.is_control());
            assert_eq!(
                self.store.quiet(*volume, *range),
                !flights.any(|a| a.op.volume == *volume && a.op.range.overlaps(*range))
            );
        }
    }

    /// Lets everything reach the homes.
    fn drain(&mut self) {
        for (hold, ..) in std::mem::take(&mut self.holds) {
            self.store.release(hold);
        }
        for at in 0..self.entries.len() {
            if self.entries[at].late.is_some() {
                self.attach(at);
            }
        }
        self.allowed = self.last();
        self.store.allow(Lsn(self.allowed));
        while !self.store.idle() {
            while self.apply() {}
            assert!(!self.in_flight.is_empty(), "nothing moves any more");
            self.complete(0);
        }
        assert_eq!(&self.homes, self.versions.last().unwrap());
        for volume in 0..VOLUMES as u32 {
            let plan = self
                .store
                .read_plan(VolumeId(volume), ByteRange::new(0, SIZE));
            assert_eq!(plan, ReadPlan::home(ByteRange::new(0, SIZE)));
        }
        self.check_counters();
    }
}

fn shares_a_byte(a: ByteRange, b: ByteRange) -> bool {
    a.offset.max(b.offset) < a.end().min(b.end())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn reads_and_homes_agree_with_the_model_at_every_step(
        steps in prop::collection::vec(step(), 1..120),
        max_in_flight in 1..8usize,
        max_waiting in 0..6usize,
    ) {
        let mut model = Model::new(Policy { max_in_flight, max_waiting });
        for step in steps {
            model.step(&step);
        }
        model.drain();
    }
}
