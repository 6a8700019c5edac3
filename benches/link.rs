//! What it costs to put messages on a link and to take them off it.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use doublure::base::{AckMode, Hello, Lineage, Lsn, Message, Stance};
use doublure::link::{Decoder, encode};

fn hello() -> Message {
    Message::Hello(Box::new(Hello {
        group_id: uuid::Uuid::from_u128(1),
        group: "registry".into(),
        site: "clichy".into(),
        to_site: "chelles".into(),
        stance: Stance::Serving,
        lineage: Lineage::default(),
        tail: Lsn(1),
        commit: Lsn(1),
        chain: 0,
        told_durable: Lsn(1),
        floor: Lsn(1),
        inconsistent_until: None,
        alone: false,
        ack: AckMode::Sync,
        volumes: Vec::new(),
        journal_first: Lsn(1),
        given_up: uuid::Uuid::nil(),
        mixture: uuid::Uuid::nil(),
        written: Some(Lsn(1)),
    }))
}

fn ack() -> Message {
    Message::Ack {
        received: Lsn(1_000_000),
        durable: Lsn(999_990),
        applied: Lsn(999_000),
        credit_bytes: u64::MAX,
        inconsistent_until: None,
    }
}

fn bytes_of(message: &Message) -> BytesMut {
    let mut out: Vec<Bytes> = Vec::new();
    encode(message, &mut out).expect("within the limits");
    BytesMut::from(&out.concat()[..])
}

fn greeted() -> Decoder {
    let mut decoder = Decoder::new();
    let greeting = decoder.next(&mut bytes_of(&hello()));
    assert!(greeting.expect("a right greeting").is_some());
    decoder
}

fn encoding(c: &mut Criterion) {
    let mut out: Vec<Bytes> = Vec::with_capacity(2);
    let frame = Message::Frame(vec![7; 128 << 10].into());
    for (name, message) in [("ack", ack()), ("frame of 128 KiB", frame)] {
        c.bench_function(&format!("link/encode/{name}"), |b| {
            b.iter(|| {
                out.clear();
                encode(black_box(&message), &mut out)
            });
        });
    }
}

fn decoding(c: &mut Criterion) {
    let mut decoder = greeted();
    let mut received = BytesMut::new();
    let bytes = bytes_of(&ack());
    c.bench_function("link/decode/ack", |b| {
        b.iter(|| {
            received.extend_from_slice(&bytes);
            decoder.next(&mut received)
        });
    });

    let mut group = c.benchmark_group("link/decode/frame");
    for size in [4 << 10, 128 << 10, 1 << 20] {
        let bytes = bytes_of(&Message::Frame(vec![7; size].into()));
        let header = bytes.len() - size;
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("from the buffer", size), |b| {
            b.iter(|| {
                received.extend_from_slice(&bytes);
                decoder.next(&mut received)
            });
        });
        group.bench_function(BenchmarkId::new("received in place", size), |b| {
            b.iter(|| {
                received.extend_from_slice(&bytes[..header]);
                let early = decoder.next(&mut received);
                assert_eq!(early, Ok(None));
                let (mut frame, _) = decoder.lend().expect("a frame is under way");
                frame.extend_from_slice(&bytes[header..]);
                decoder.give_back(frame);
                decoder.next(&mut received)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, encoding, decoding);
criterion_main!(benches);
