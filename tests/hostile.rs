//! Hostile and confused clients get the specification's error, cost bounded memory, and disturb nobody else.

mod support;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use support::nbd::{
    CMD_READ, CMD_WRITE, Client, Dialect, MAGIC_OPTION, MAGIC_REQUEST, OPT_ABORT, OPT_GO, OPT_INFO,
    REP_ACK, REP_ERR_TOO_BIG, REP_ERR_UNSUP, REP_ERROR, name_and,
};
use support::{Checker, MIB, Pair, Plan, Setup};

/// What hostile clients together may make a site use beyond what it uses anyway.
const ALLOWANCE: u64 = 192 * MIB;

/// Where the honest client's half of the volume ends.
const FOREIGN: u64 = 32 * MIB;

/// Runs something hostile beside a checker; afterwards the site is as it was and the checker was never disturbed.
fn beside_an_honest_client(hostile: impl FnOnce(&Pair)) {
    let mut pair = Pair::start(Setup::default());
    let honest = Plan {
        connections: 2,
        longest: 256,
        ..Plan::new(77, FOREIGN)
    };
    let checker = Checker::start(honest, vec![pair.clichy.target()]);
    checker.wait_for(1000);
    let before = pair.clichy.resident_bytes();
    hostile(&pair);
    let after = pair.clichy.resident_bytes();
    assert!(
        after < before + ALLOWANCE,
        "memory went from {before} to {after} bytes"
    );
    checker.wait_for(1000);
    let mut verdict = checker.stop();
    assert_eq!(
        verdict.connected, 2,
        "the honest client never lost a connection"
    );
    verdict.assert_agrees(&pair.clichy.target());
    pair.stop_and_compare();
}

fn greet(pair: &Pair) -> Client {
    Client::greet(&pair.clichy.target()).unwrap()
}

fn attach(pair: &Pair) -> Client {
    Client::attach(&pair.clichy.target(), "demo", Dialect::Structured).unwrap()
}

#[test]
fn an_oversized_option_is_refused_without_room_being_made_for_it() {
    beside_an_honest_client(|pair| {
        for claimed in [1 << 20, u32::MAX] {
            let mut client = greet(pair);
            let mut option = MAGIC_OPTION.to_be_bytes().to_vec();
            option.extend(OPT_INFO.to_be_bytes());
            option.extend(claimed.to_be_bytes());
            client.say(&option).unwrap();
            client.patience(Some(Duration::from_secs(10))).unwrap();
            // An error that came without waiting for the data, or the end of the connection.
            match client.option_reply(OPT_INFO) {
                Ok(reply) => assert_eq!(reply.kind, REP_ERR_TOO_BIG, "{}", reply.text()),
                Err(error) => assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                    ),
                    "{claimed} bytes claimed: {error}"
                ),
            }
        }
    });
}

#[test]
fn an_unknown_option_is_refused_by_name_and_the_handshake_goes_on() {
    let pair = Pair::start(Setup::default());
    let mut client = greet(&pair);
    for option in [0, 4, 77, 0x8000_0000, u32::MAX] {
        let replies = client.option(option, &[5; 300]).unwrap();
        assert_eq!(replies.len(), 1);
        assert_eq!(replies[0].kind, REP_ERR_UNSUP, "option {option}");
        assert!(!replies[0].data.is_empty(), "an error carries a text");
    }
    client.go("demo").unwrap();
    assert_eq!(client.read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn an_abort_is_acknowledged_even_with_data_and_a_client_that_is_already_gone_is_no_trouble() {
    beside_an_honest_client(|pair| {
        let mut client = greet(pair);
        assert_eq!(
            client
                .option(OPT_ABORT, b"why not")
                .unwrap()
                .last()
                .unwrap()
                .kind,
            REP_ACK
        );
        assert!(client.take(1).is_err(), "and the connection ends");
        for _ in 0..50 {
            let mut gone = greet(pair);
            gone.send_option(OPT_ABORT, &[]).unwrap();
        }
        for _ in 0..50 {
            let mut gone = greet(pair);
            gone.send_option(OPT_GO, &name_and("demo", &[0, 0]))
                .unwrap();
        }
    });
}

#[test]
fn names_and_strings_that_cannot_be_are_refused() {
    let pair = Pair::start(Setup::default());
    let long = "x".repeat(4097);
    for name in [long.as_str(), "de\0mo"] {
        let mut client = greet(&pair);
        let refused = match client.option(OPT_GO, &name_and(name, &[0, 0])) {
            Ok(replies) => replies.last().unwrap().kind & REP_ERROR != 0,
            Err(_) => true,
        };
        assert!(refused, "{name:?}");
    }
    let mut client = greet(&pair);
    client.say(b"this is no option header").unwrap();
    assert!(client.take(1).is_err(), "a wrong magic ends the connection");
    attach(&pair).flush().unwrap();
}

#[test]
fn a_write_above_the_largest_payload_costs_no_memory() {
    beside_an_honest_client(|pair| {
        let mut client = attach(pair);
        client
            .send(CMD_WRITE, 0, 0, u64::from(u32::MAX), &[])
            .unwrap();
        client.patience(Some(Duration::from_secs(20))).unwrap();
        // Either it says so at once, or it closes; reading four gigabytes to be polite would be right too, and then
        // nothing comes back before they were sent.
        if let Ok(answer) = client.answer() {
            assert!(answer.errno != 0, "{answer:?}");
        }
    });
}

#[test]
fn a_payload_cut_off_in_the_middle_changes_nothing() {
    beside_an_honest_client(|pair| {
        let mut witness = attach(pair);
        let offset = FOREIGN;
        for sent in [0usize, 1, 511, 4096, 700_000] {
            let mut client = attach(pair);
            let mut request = MAGIC_REQUEST.to_be_bytes().to_vec();
            request.extend([0, 0, 0, 1]);
            request.extend(9u64.to_be_bytes());
            request.extend(offset.to_be_bytes());
            request.extend((MIB as u32).to_be_bytes());
            request.extend(vec![0xee; sent]);
            client.say(&request).unwrap();
            drop(client);
            let now = witness.read(offset, MIB as usize).unwrap();
            assert!(
                now.iter().all(|b| *b == 0),
                "of {sent} bytes of a payload of 1 MiB some were written"
            );
        }
    });
}

#[test]
fn requests_out_of_range_are_drained_and_the_stream_stays_in_step() {
    let pair = Pair::start(Setup::default());
    let mut client = attach(&pair);
    let size = pair.setup.size;
    let mut open = Vec::new();
    for n in 0..50u64 {
        open.push((
            client
                .send_write(0, size - 100 + n, &[n as u8; 5000])
                .unwrap(),
            true,
        ));
        open.push((
            client.send_write(0, n * 512, &[n as u8; 512]).unwrap(),
            false,
        ));
        open.push((
            client.send(CMD_READ, 0, u64::MAX - n, 5000, &[]).unwrap(),
            true,
        ));
    }
    for _ in 0..open.len() {
        let answer = client.answer().unwrap();
        let (_, wrong) = open
            .iter()
            .find(|(cookie, _)| *cookie == answer.cookie)
            .unwrap();
        assert_eq!(answer.errno != 0, *wrong, "{answer:?}");
    }
    for n in 0..50u64 {
        assert_eq!(client.read(n * 512, 512).unwrap(), [n as u8; 512]);
    }
}

#[test]
fn a_wrong_request_magic_ends_that_connection_only() {
    beside_an_honest_client(|pair| {
        let mut client = attach(pair);
        client.say(&[0x42; 28]).unwrap();
        client.patience(Some(Duration::from_secs(10))).unwrap();
        // It may say what is wrong before it closes.
        let end = (0..1000)
            .find_map(|_| client.take(1).err())
            .expect("the end of the connection");
        assert!(
            matches!(
                end.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
            ),
            "{end}"
        );
    });
}

#[test]
fn clients_that_never_read_their_replies_are_held_back_and_everyone_else_goes_on() {
    beside_an_honest_client(|pair| {
        let mut deaf: Vec<Client> = Vec::new();
        for _ in 0..16 {
            let mut client = attach(pair);
            client.patience(Some(Duration::from_millis(500))).unwrap();
            // Reads of 1 MiB until nothing more is taken: 400 would be 400 MiB of replies.
            for _ in 0..400 {
                if client.send(CMD_READ, 0, 0, MIB, &[]).is_err() {
                    break;
                }
            }
            deaf.push(client);
        }
        assert!(deaf.iter().all(|c| c.export.size > 0));
        attach(pair).flush().unwrap();
    });
}

#[test]
fn payloads_that_trickle_in_hold_no_one_up() {
    beside_an_honest_client(|pair| {
        let mut slow: Vec<Client> = (0..32).map(|_| attach(pair)).collect();
        for client in &mut slow {
            // The header promises 32 MiB each, a gigabyte in all; only a little of it ever comes.
            client.send(CMD_WRITE, 0, 0, 32 * MIB, &[1; 100]).unwrap();
        }
        let mut quick = attach(pair);
        let started = Instant::now();
        for n in 0..200 {
            quick.write(0, FOREIGN + n * 4096, &[3; 4096]).unwrap();
        }
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "200 writes took {:?}",
            started.elapsed()
        );
    });
}

#[test]
fn a_thousand_connections_are_served_and_leave_nothing_behind() {
    beside_an_honest_client(|pair| {
        let mut crowd: Vec<Client> = (0..1000).map(|_| attach(pair)).collect();
        for client in &mut crowd {
            client.read(0, 4096).unwrap();
        }
        assert!(pair.clichy.group().clients >= 1000);
        drop(crowd);
        pair.clichy.wait_until("they are gone", |g| g.clients <= 2);
    });
}
