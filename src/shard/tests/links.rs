//! Links between two shards, and between a shard and a stranger.

use std::net::{TcpListener, TcpStream};

use super::*;

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    // As they come from an asynchronous runtime.
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

fn connect(shard: &Shard, outcome: Result<TcpStream, (bool, String)>) {
    let group = shard.group.clone();
    let outcome = outcome.map(Into::into);
    shard.handle.send(ToShard::LinkConnected {
        group,
        peer: "chelles".into(),
        outcome,
    });
}

fn accept(shard: &Shard, socket: TcpStream, received: &[u8]) {
    let group = shard.group.clone();
    let received = BytesMut::from(received);
    shard.handle.send(ToShard::LinkAccepted {
        group,
        socket: socket.into(),
        received,
    });
}

#[test]
fn frames_go_from_memory_to_the_other_sites_journal_and_are_acknowledged() {
    let (mut primary, mut mirror) = (Shard::start("g"), Shard::start("g"));
    let (near, far) = tcp();
    connect(&primary, Ok(near));
    accept(&mirror, far, &[]);
    assert_eq!(primary.until("connected"), "connected to chelles");
    assert_eq!(mirror.until("hello"), "hello from clichy");
    // Acknowledgements may overtake each other here, as journal writes may.
    for _ in 0..FRAMES {
        primary.until("ack");
    }
    assert!(mirror.handle.stats().link_received_bytes > FRAMES * FRAME as u64);
    assert_eq!(
        primary.handle.stats().link_sent_bytes,
        mirror.handle.stats().link_received_bytes
    );
    // The operator cuts it: what was sent before arrives, and only the other side is told.
    primary.command(Command::Disconnect).unwrap();
    assert_eq!(mirror.until("bye"), "bye: the operator");
    mirror.until("link closed: the peer closed the connection");
    let journal = mirror.dir.path().join("g/journal");
    let journal = std::fs::read(journal).unwrap();
    for (lsn, frame) in journal.chunks(FRAME).enumerate() {
        assert!(frame.iter().all(|b| usize::from(*b) == lsn), "frame {lsn}");
    }
    primary.stop();
    mirror.stop();
}

#[test]
fn what_came_with_the_greeting_is_read_first() {
    let mut shard = Shard::start("g");
    let (near, far) = tcp();
    let config = GroupConfig {
        site: "chelles".into(),
        group: "g".into(),
        role: Role::Mirror,
        ack: AckMode::Sync,
        compress: Compress::Off,
        on_peer_loss: OnPeerLoss::Continue,
        timeout: Duration::from_secs(1),
        journal_bytes: 0,
        resync_rate: None,
        resync_undo: true,
        scrub: Duration::ZERO,
        peers: vec![],
        volumes: vec![],
    };
    let mut parts: Vec<Bytes> = Vec::new();
    crate::link::encode(&Message::Hello(Box::new(hello(&config))), &mut parts).unwrap();
    crate::link::encode(
        &Message::Bye {
            reason: "so soon".into(),
        },
        &mut parts,
    )
    .unwrap();
    let bytes = parts.concat();
    let (first, rest) = bytes.split_at(bytes.len() - 5);
    accept(&shard, far, first);
    near.set_nonblocking(false).unwrap();
    (&near).write_all(rest).unwrap();
    assert_eq!(shard.until("hello"), "hello from chelles");
    assert_eq!(shard.until("bye"), "bye: so soon");
    shard.stop();
}

#[test]
fn strangers_and_failures_are_told_to_the_engine_by_name() {
    let mut shard = Shard::start("g");
    connect(&shard, Err((true, "nobody listens".into())));
    let report = shard.until("no connection");
    assert_eq!(report, "no connection to chelles: nobody listens (true)");
    let (near, far) = tcp();
    accept(&shard, far, &[]);
    near.set_nonblocking(false).unwrap();
    (&near)
        .write_all(b"GET / HTTP/1.1\r\nHost: clichy\r\n\r\n")
        .unwrap();
    let report = shard.until("link closed");
    assert!(
        report.contains("not a message of a doublure link"),
        "{report}"
    );
    let mut rest = Vec::new();
    let _ = (&near).read_to_end(&mut rest); // a greeting, then the end or a reset
    shard.command(Command::Connect).unwrap();
    assert_eq!(shard.until("connect"), "chelles");
    shard.stop();
}
