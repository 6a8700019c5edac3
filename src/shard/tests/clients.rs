//! NBD clients, good and bad.

use std::net::Shutdown;
use std::time::Instant;

use super::*;

#[test]
fn what_a_client_writes_reads_back_in_all_sizes() {
    let shard = Shard::start("g");
    let mut client = shard.client();
    let mut state = 1_u32;
    let mut content: Vec<u8> = Vec::with_capacity(32 << 20);
    while content.len() < 32 << 20 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        content.extend(state.to_le_bytes());
    }
    for (offset, len) in [
        (0, 1),
        (511, 513),
        (4096, 4096),
        (10_000, 70_001),
        (1 << 20, 32 << 20),
    ] {
        client.write(offset, &content[..len]);
        assert!(
            client.read(offset, len) == content[..len],
            "{len} bytes at {offset}"
        );
    }
    let cookies = [
        client.ask(TRIM, 1 << 20, 4096, &[]),
        client.ask(WRITE_ZEROES, (1 << 20) + 4096, 4096, &[]),
        client.ask(FLUSH, 0, 0, &[]),
    ];
    let mut answered: Vec<u64> = cookies.iter().map(|_| client.reply(|_| 0).0).collect();
    answered.sort_unstable();
    assert_eq!(answered, cookies);
    let read = client.read(1 << 20, 12288);
    assert!(read[..8192].iter().all(|b| *b == 0));
    assert_eq!(read[8192..], content[8192..12288]);
    let home = std::fs::read(shard.dir.path().join("g/v.home")).unwrap();
    shard.stop();
    assert!(home[(1 << 20) + 8192..][..30 << 20] == content[8192..][..30 << 20]);
}

#[test]
fn requests_that_came_with_the_handshake_are_answered_first() {
    let shard = Shard::start("g");
    let mut early = header(WRITE, 77, 0, 3);
    early.extend(b"abc");
    early.extend(header(READ, 78, 8192, 3));
    let mut client = shard.client_that_sent(&early[..40]);
    client.socket.write_all(&early[40..]).unwrap();
    let len = |cookie| if cookie == 78 { 3 } else { 0 };
    let mut answered = [client.reply(len).0, client.reply(len).0];
    answered.sort_unstable();
    assert_eq!(answered, [77, 78]);
    assert_eq!(client.read(0, 3), b"abc");
    shard.stop();
}

#[test]
fn a_batch_costs_less_than_a_system_call_for_each_request() {
    let shard = Shard::start("g");
    let mut client = shard.client();
    client.write(0, &[1; 4096]);
    let before = shard.handle.stats();
    let rounds = 20;
    for _ in 0..rounds {
        let mut batch = Vec::new();
        for cookie in 0..32 {
            batch.extend(header(READ, cookie, 0, 4096));
        }
        client.socket.write_all(&batch).unwrap();
        for _ in 0..32 {
            assert_eq!(client.reply(|_| 4096).1, [1; 4096]);
        }
    }
    let after = shard.handle.stats();
    let enters = after.ring_enters - before.ring_enters;
    assert!(
        enters < rounds * 32,
        "{enters} calls for {} requests",
        rounds * 32
    );
    shard.stop();
}

#[test]
fn a_client_that_leaves_gets_the_answers_it_is_owed_then_the_end() {
    let mut shard = Shard::start("g");
    let mut leaver = shard.client();
    leaver.ask(WRITE, 0, 4, b"left");
    leaver.ask(READ, 8192, 1 << 20, &[]);
    leaver.ask(DISC, 0, 0, &[]);
    let len = |cookie| if cookie == 2 { 1 << 20 } else { 0 };
    let mut answered = [leaver.reply(len).0, leaver.reply(len).0];
    answered.sort_unstable();
    assert_eq!(answered, [1, 2]);
    leaver.expect_end();
    shard.until("client closed");

    let mut half_closed = shard.client();
    half_closed.ask(READ, 0, 4, &[]);
    half_closed.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half_closed.reply(|_| 4).1, b"left");
    half_closed.expect_end();
    shard.until("client closed");
    shard.stop();
}

#[test]
fn a_request_that_is_cut_off_is_not_executed() {
    let mut shard = Shard::start("g");
    let mut client = shard.client();
    client.write(0, &[1; 8192]);
    for sent in [0, 1, 4095, 8191] {
        let mut cut = shard.client();
        cut.ask(WRITE, 0, 8192, &vec![2; sent]);
        drop(cut);
        shard.until("client closed");
    }
    let mut cut = shard.client();
    cut.ask(WRITE, 0, 16 << 20, &vec![2; 9 << 20]);
    cut.socket.shutdown(Shutdown::Write).unwrap();
    cut.expect_end();
    shard.until("client closed");
    let mut confused = shard.client();
    confused
        .socket
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    confused.expect_end();
    shard.until("client closed");
    assert_eq!(client.read(0, 8192), [1; 8192]);
    shard.stop();
}

#[test]
fn a_client_that_never_reads_is_not_read_from_and_hinders_nobody() {
    let shard = Shard::start("g");
    let mut deaf = shard.client();
    deaf.socket.set_nonblocking(true).unwrap();
    let len = 1 << 20;
    let mut asked = Vec::new();
    // Until neither the socket nor the shard takes any more.
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < Duration::from_millis(300) {
        let cookie = asked.len() as u64;
        let request = header(READ, cookie, cookie * 4096, len);
        match deaf.socket.write(&request) {
            Ok(sent) => {
                assert_eq!(sent, request.len(), "the socket takes whole requests");
                asked.push(cookie);
                quiet_since = Instant::now();
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                std::thread::yield_now();
            }
        }
        if asked.len() > 2000 {
            break;
        }
    }
    let taken = shard.handle.stats().requests;
    assert!(
        taken * len as u64 <= 72 << 20,
        "{taken} requests of {len} bytes were taken"
    );

    let mut client = shard.client();
    client.write(0, &[7; 1 << 20]);
    assert_eq!(client.read(0, 1 << 20), [7; 1 << 20]);
    // Nothing was lost: once it listens, the client gets all it asked for.
    deaf.socket.set_nonblocking(false).unwrap();
    for _ in 0..asked.len().min(300) {
        deaf.reply(|_| len);
    }
    shard.stop();
}

#[test]
fn whoever_hoards_memory_that_others_wait_for_is_disconnected() {
    let limits = Limits {
        group_bytes: 33 << 20,
        patience: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut shard = Shard::with("g", limits, Duration::from_secs(3600));
    // Announces much and sends little.
    let mut hoarder = shard.client();
    hoarder.ask(WRITE, 0, 32 << 20, &[1; 100_000]);
    shard.until("client opened");
    let mut client = shard.client();
    shard.until("client opened");
    while shard.handle.stats().client_received_bytes < 4096 {
        std::thread::yield_now(); // the payload's memory is taken when the first of it has arrived
    }
    client.write(0, &[2; 4096]); // small requests always get through
    client.write(0, &[2; 16 << 20]);
    shard.until("client closed");
    hoarder.expect_end();
    assert_eq!(client.read(0, 4096), [2; 4096]);
    shard.stop();
}

#[test]
fn writers_of_a_frozen_group_wait_within_their_budget_and_go_on_when_it_thaws() {
    let shard = Shard::start(FROZEN);
    let mut client = shard.client();
    let mut sender = Client {
        socket: client.socket.try_clone().unwrap(),
        cookie: 0,
    };
    let (len, count) = (1 << 20, 150);
    let writer = std::thread::spawn(move || {
        let data = vec![3; len];
        for at in 0..count {
            sender.ask(WRITE, at % 60 * len as u64, len, &data);
        }
    });
    // The client may have 64 MiB outstanding.
    while shard.handle.stats().requests < 64 {
        std::thread::yield_now();
    }
    let mut other = shard.client();
    assert_eq!(other.read(0, 4096), [0; 4096]);
    assert_eq!(shard.handle.stats().requests, 65);
    let mut answered = 0;
    while answered < count {
        shard.command(Command::Promote { force: vec![] }).unwrap();
        client
            .socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let mut head = [0; 16];
        while client.socket.read_exact(&mut head).is_ok() {
            answered += 1;
        }
    }
    writer.join().unwrap();
    assert_eq!(answered, count);
    shard.stop();
}

#[test]
fn hundreds_of_clients_are_served_at_once() {
    let mut shard = Shard::start("g");
    let mut clients: Vec<Client> = (0..300).map(|_| shard.client()).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.ask(WRITE, at as u64 * 4096, 4096, &[at as u8; 4096]);
    }
    for client in &mut clients {
        client.reply(|_| 0);
    }
    for (at, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.read(at as u64 * 4096, 4096), [at as u8; 4096]);
    }
    drop(clients);
    for _ in 0..300 {
        shard.until("client closed");
    }
    shard.stop();
}

#[test]
fn the_engine_closes_a_client_after_its_replies() {
    let shard = Shard::start("g");
    let mut client = shard.client();
    let len = 8 << 20;
    client.write(0, &vec![4; len]);
    client.ask(READ, 0, len, &[]);
    client.reply_head();
    shard.command(Command::Demote).unwrap();
    let mut content = vec![0; len];
    client.socket.read_exact(&mut content).unwrap();
    assert!(content.iter().all(|b| *b == 4));
    client.expect_end();
    shard.stop();
}

#[test]
fn a_client_that_does_not_read_its_last_replies_does_not_hold_up_the_stop() {
    let limits = Limits {
        close_grace: Duration::from_millis(100),
        ..Limits::default()
    };
    let mut shard = Shard::with("g", limits, Duration::from_secs(3600));
    let mut deaf = shard.client();
    deaf.ask(READ, 0, 8 << 20, &[]);
    deaf.reply_head();
    shard.handle.send(ToShard::Shutdown);
    shard.until("stopped");
    shard.stop();
    let mut rest = Vec::new();
    deaf.socket.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 8 << 20);
}

#[test]
fn a_group_ticks_when_it_asks_for_it_and_stops_when_it_is_told() {
    let mut shard = Shard::with("g", Limits::default(), Duration::from_millis(5));
    let before = Instant::now();
    shard.until("ten ticks");
    shard.until("ten ticks");
    assert!(before.elapsed() >= Duration::from_millis(50));
    let waits = shard.handle.stats().ring_waits;
    assert!(waits < 100, "{waits} waits for 20 ticks");
    let taken = shard.add_group(Duration::from_secs(1)).unwrap_err();
    assert!(taken.contains("in use"), "{taken}");
    assert!(
        shard
            .command(Command::Switchover)
            .unwrap()
            .ends_with("ticks")
    );
    shard.command(Command::Shutdown).unwrap();
    shard.until("stopped");
    let gone = shard.command(Command::Connect).unwrap_err();
    assert!(gone.contains("does not run"), "{gone}");
    // Its files are free again.
    shard.add_group(Duration::from_secs(3600)).unwrap();
    shard.until("up");
    let mut client = shard.client();
    client.write(0, b"again");
    drop(client);
    shard.stop();
}
