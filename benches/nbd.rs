//! What parsing requests and encoding replies costs, without sockets.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use doublure::nbd::{
    Command, Event, Outbox, Piece, Replies, Reply, ReplyBody, ReplyTo, Session, Transmission,
};

const REQUESTS: usize = 32;
const BLOCK: usize = 4096;

fn transmission(replies: Replies) -> Transmission {
    Transmission::new(Session {
        export: "registry-data".into(),
        size: 1 << 30,
        replies,
        allocation: false,
    })
}

/// A compact request as a client sends it.
fn request(flags: u16, command: u16, cookie: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(0x2560_9513_u32.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend((cookie * len as u64).to_be_bytes());
    bytes.extend(u32::try_from(len).expect("short").to_be_bytes());
    bytes
}

/// Where the reply to a read of `len` bytes goes.
fn read(transmission: &mut Transmission, len: usize) -> ReplyTo {
    let mut input = BytesMut::from(&request(0, 0, 0, len)[..]);
    match transmission.next(&mut input) {
        Some(Event::Request(request)) => request.reply_to,
        other => panic!("a read, not {other:?}"),
    }
}

fn parse_writes(c: &mut Criterion) {
    let mut stream = BytesMut::new();
    for cookie in 0..REQUESTS as u64 {
        stream.extend_from_slice(&request(0, 1, cookie, BLOCK));
        stream.extend_from_slice(&[0xa5; BLOCK]);
    }
    let mut transmission = transmission(Replies::Simple);
    let mut group = c.benchmark_group("nbd");
    group.throughput(Throughput::Elements(REQUESTS as u64));
    group.bench_function("parse 32 writes of 4 KiB", |b| {
        b.iter_batched(
            || stream.clone(),
            |mut input| {
                let mut count = 0;
                while let Some(event) = transmission.next(&mut input) {
                    match black_box(event) {
                        Event::Request(request) => {
                            assert!(matches!(request.command, Command::Write { .. }));
                        }
                        other => panic!("a write, not {other:?}"),
                    }
                    count += 1;
                }
                assert_eq!(count, REQUESTS);
                // Freed outside the measurement.
                input
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn encode_replies(c: &mut Criterion) {
    let mut group = c.benchmark_group("nbd");
    group.throughput(Throughput::Elements(REQUESTS as u64));

    let simple = transmission(Replies::Simple);
    let mut out = Outbox::new();
    group.bench_function("encode 32 replies to writes", |b| {
        b.iter(|| {
            for cookie in 0..REQUESTS as u64 {
                simple.encode(Reply::done(ReplyTo::plain(cookie)), &mut out);
            }
            for bytes in out.drain() {
                black_box(bytes);
            }
        });
    });

    for replies in [Replies::Simple, Replies::Structured] {
        let mut transmission = transmission(replies);
        let reply_to = read(&mut transmission, BLOCK);
        let content = Bytes::from(vec![0x5a; BLOCK]);
        group.bench_function(format!("encode 32 reads of 4 KiB, {replies:?}"), |b| {
            b.iter(|| {
                for _ in 0..REQUESTS {
                    let body = ReplyBody::Data {
                        offset: 0,
                        pieces: vec![Piece::Data(content.clone())],
                    };
                    transmission.encode(Reply { reply_to, body }, &mut out);
                }
                for bytes in out.drain() {
                    black_box(bytes);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, parse_writes, encode_replies);
criterion_main!(benches);
