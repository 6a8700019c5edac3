//! What the rules cost: from an operation's LSN to the release of its reply, in sync with a mirror.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use doublure::base::{AckMode, Lsn, Message, OnPeerLoss, Role};
use doublure::core::{Action, Config, Core, Event, Facts, Link, Strength, Token, View};
use uuid::Uuid;

const LINK: Link = Link(1);
const NOW: Duration = Duration::from_secs(1);
const VIEW: View = View {
    chain: 0,
    journal_first: Lsn(1),
    volumes: &[],
    undo: None,
    time_ns: 1,
};

fn core(site: &str, peer: &str, role: Role, ack: AckMode) -> Core {
    let group = if role == Role::Primary {
        Uuid::from_u128(1)
    } else {
        Uuid::nil()
    };
    let config = Config {
        site: site.into(),
        group: "registry".into(),
        peers: vec![peer.into()],
        on_peer_loss: OnPeerLoss::Continue,
        timeout: Duration::from_secs(5),
    };
    let facts = Facts::new(group, role, ack);
    let mut core = Core::new(config, facts, Lsn::ZERO, Lsn::ZERO, 1);
    core.start(NOW, &VIEW);
    core
}

/// What a mirror says that has everything, up to this LSN.
fn ack(lsn: Lsn) -> Message {
    Message::Ack {
        received: lsn,
        durable: lsn,
        applied: lsn,
        credit_bytes: u64::MAX,
        inconsistent_until: None,
    }
}

/// A primary whose mirror is in sync. Disks and wires take no time; the mirror is one until frames are to flow, which are
/// then acknowledged in its name.
fn in_sync(mode: AckMode) -> Core {
    let mut sites = [
        core("clichy", "chelles", Role::Primary, mode),
        core("chelles", "clichy", Role::Mirror, mode),
    ];
    let mut streaming = false;
    while !sites[0].peers()[0].in_sync {
        let mut idle = true;
        for at in 0..2 {
            sites[at].end_batch(NOW);
            let actions: Vec<_> = sites[at].take_actions(Vec::new());
            idle &= actions.is_empty();
            for action in actions {
                match action {
                    Action::Save(seq) => sites[at].handle(NOW, Event::Saved(seq), &VIEW),
                    Action::OpenEpoch(epoch) => {
                        sites[at].handle(NOW, Event::Durable(epoch.first_lsn), &VIEW);
                    }
                    Action::Connect(peer) => {
                        sites[1 - at].handle(NOW, Event::Accepted(LINK), &VIEW);
                        sites[at].handle(NOW, Event::Connected(LINK, peer), &VIEW);
                    }
                    Action::Ask(question) => {
                        sites[at].handle(NOW, Event::Granted(question), &VIEW);
                    }
                    Action::Send(_, message) if !streaming => {
                        sites[1 - at].handle(NOW, Event::Message(LINK, message), &VIEW);
                    }
                    Action::Stream { .. } => streaming = true,
                    _ => {}
                }
            }
        }
        if streaming {
            let tail = sites[0].tail();
            sites[0].handle(NOW, Event::Message(LINK, ack(tail)), &VIEW);
        }
        assert!(!idle || streaming, "never in sync: {:?}", sites[0]);
    }
    sites.into_iter().next().expect("the primary")
}

/// A frame of so many operations: LSNs, durable here, acknowledged there, replies released.
fn frame(core: &mut Core, spare: &mut Vec<Action>, operations: u64) -> usize {
    let first = core.assign(operations);
    for n in 0..operations {
        let lsn = first.plus(n);
        core.reply_when(lsn, Strength::Commit, Token(lsn.0));
    }
    let last = core.tail();
    core.handle(NOW, Event::Durable(last), &VIEW);
    core.handle(NOW, Event::Heard(LINK), &VIEW);
    core.handle(NOW, Event::Message(LINK, ack(last)), &VIEW);
    core.end_batch(NOW);
    let released = |action: &Action| matches!(action, Action::Reply(_));
    *spare = core.take_actions(std::mem::take(spare));
    let count = spare.iter().filter(|a| released(a)).count();
    spare.clear();
    count
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("core");
    for mode in [AckMode::Sync, AckMode::Memsync] {
        for operations in [1, 32] {
            let mut core = in_sync(mode);
            let mut spare = Vec::new();
            group.throughput(Throughput::Elements(operations));
            group.bench_function(format!("a frame of {operations}, {mode:?}"), |b| {
                b.iter(|| {
                    let released = frame(&mut core, &mut spare, black_box(operations));
                    assert_eq!(released as u64, operations);
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
