//! Peers at the door, and the way to them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::*;
use crate::base::{Hello, Lineage, Message, Refusal, Stance};
use crate::control::link;
use crate::control::lobby::Lobby;
use crate::control::site::Site;
use crate::link::{Decoder, encode};

/// What site chelles says to clichy about group registry.
fn hello() -> Hello {
    Hello {
        group_id: Uuid::from_u128(7),
        group: "registry".to_owned(),
        site: "chelles".to_owned(),
        to_site: "clichy".to_owned(),
        stance: Stance::Mirror,
        lineage: Lineage::default(),
        tail: Lsn::ZERO,
        commit: Lsn::ZERO,
        chain: 0,
        told_durable: Lsn::ZERO,
        floor: Lsn::ZERO,
        inconsistent_until: None,
        alone: false,
        ack: AckMode::Sync,
        volumes: Vec::new(),
        journal_first: Lsn(1),
        given_up: Uuid::nil(),
        mixture: uuid::Uuid::nil(),
        written: None,
    }
}

fn encoded(message: &Message) -> BytesMut {
    let mut parts: Vec<Bytes> = Vec::new();
    encode(message, &mut parts).unwrap();
    parts.concat().as_slice().into()
}

/// What a shard was handed: a link with all its bytes, or the outcome of connecting.
enum Seen {
    Accepted(String, OwnedFd, BytesMut),
    Connected(String, Result<OwnedFd, (bool, String)>),
}

fn watching(seen: mpsc::UnboundedSender<Seen>) -> FakeShard {
    FakeShard::new(move |message| {
        let _ = match message {
            ToShard::LinkAccepted {
                group,
                socket,
                received,
            } => seen.send(Seen::Accepted(group, socket, received)),
            ToShard::LinkConnected { peer, outcome, .. } => {
                seen.send(Seen::Connected(peer, outcome))
            }
            ToShard::Shutdown => return false,
            _ => Ok(()),
        };
        true
    })
}

/// Makes a greeting wrong.
type Spoil = fn(&mut Hello);

/// A door for peers, its shards, and what they are handed.
fn door(limit: Duration) -> (String, Shards, mpsc::UnboundedReceiver<Seen>) {
    let (tx, seen) = mpsc::unbounded_channel();
    let shards = shards(vec![watching(tx)]);
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.address.clone();
    let refusals = Arc::default();
    let greeted = shards.clone();
    tokio::spawn(listener.accept_all(Lobby::new(8, limit), move |socket| {
        link::greet(socket, greeted.clone(), Arc::clone(&refusals))
    }));
    (address, shards, seen)
}

async fn say(address: &str, bytes: &[u8]) -> TcpStream {
    let mut peer = TcpStream::connect(address).await.unwrap();
    peer.write_all(bytes).await.unwrap();
    peer
}

/// Everything until the end of the stream: one message.
async fn answer(mut peer: TcpStream) -> Message {
    let mut bytes = BytesMut::new();
    while peer.read_buf(&mut bytes).await.unwrap() > 0 {}
    // A refusal may stand where a greeting is expected.
    Decoder::new().next(&mut bytes).unwrap().unwrap()
}

#[tokio::test]
async fn a_greeting_brings_the_link_to_its_group_with_every_byte() {
    let (address, _, mut seen) = door(LONG);
    let mut bytes = encoded(&Message::Hello(Box::new(hello())));
    bytes.extend_from_slice(&encoded(&Message::Ping { token: 3 }));
    // In two pieces, so that the first read does not have it all.
    let mut peer = say(&address, &bytes[..10]).await;
    tokio::task::yield_now().await;
    peer.write_all(&bytes[10..]).await.unwrap();
    let Some(Seen::Accepted(group, socket, mut received)) = seen.recv().await else {
        panic!("not accepted");
    };
    assert_eq!(group, "registry");
    let rest = bytes.split_off(received.len());
    assert_eq!(received, bytes);
    received.clear();
    // What had not arrived by then is still in the socket, which is now the shard's.
    rustix::io::write(&socket, b"!").unwrap();
    assert_eq!(peer.read_u8().await.unwrap(), b'!');
    let mut buf = vec![0; rest.len()];
    if !rest.is_empty() {
        assert_eq!(rustix::io::read(&socket, &mut buf).unwrap(), rest.len());
    }
    assert_eq!(buf, rest);
}

#[tokio::test]
async fn a_greeting_for_somebody_else_is_refused_in_words() {
    let (address, shards, _seen) = door(LONG);
    let cases: [(Spoil, &str); 3] = [
        (
            |h| h.group = "tax".to_owned(),
            "there is no group \"tax\" at clichy",
        ),
        (
            |h| h.to_site = "cergy".to_owned(),
            "this is site clichy, not cergy",
        ),
        (
            |h| h.site = "creteil".to_owned(),
            "has no peer \"creteil\" for group registry",
        ),
    ];
    for (spoil, expected) in cases {
        let mut wrong = hello();
        spoil(&mut wrong);
        let bytes = encoded(&Message::Hello(Box::new(wrong)));
        let Message::Refuse { refusal, text } = answer(say(&address, &bytes).await).await else {
            panic!("no refusal");
        };
        assert_eq!(refusal, Refusal::WrongGroup);
        assert!(text.contains(expected), "{text}");
    }
    shards.set_condition("registry", Condition::Opening);
    let bytes = encoded(&Message::Hello(Box::new(hello())));
    let busy = answer(say(&address, &bytes).await).await;
    assert!(
        matches!(
            busy,
            Message::Refuse {
                refusal: Refusal::Busy,
                ..
            }
        ),
        "{busy:?}"
    );
}

#[tokio::test]
async fn what_is_no_greeting_is_closed_whatever_it_is() {
    let (address, ..) = door(LONG);
    let ping = encoded(&Message::Ping { token: 1 });
    let refused = answer(say(&address, &ping).await).await;
    assert!(
        matches!(
            refused,
            Message::Refuse {
                refusal: Refusal::Incompatible,
                ..
            }
        ),
        "{refused:?}"
    );
    let mut web = say(
        &address,
        b"GET / HTTP/1.1\r\nhost: clichy\r\nuser-agent: a lost browser\r\n\r\n",
    )
    .await;
    assert!(matches!(web.read(&mut [0]).await, Ok(0) | Err(_)));

    let (address, ..) = door(Duration::from_millis(50));
    let mut silent = say(&address, b"").await;
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_group_that_asks_for_a_connection_gets_it_or_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let chelles = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (tx, mut seen) = mpsc::unbounded_channel();
    let fake = watching(tx);
    let mut group = member("registry", 0);
    let address = chelles.local_addr().unwrap().to_string();
    group.addresses.insert("chelles".to_owned(), address);
    let shards = Shards::new(
        "clichy",
        vec![group],
        vec![fake.post],
        Vec::new(),
        Vec::new(),
    );
    let mut site = Site::new(shards, vec![fake.events]);
    let voice = fake.voice;
    let connect = |peer: &str| {
        let (group, peer) = ("registry".to_owned(), peer.to_owned());
        let asks = FromShard::Connect { group, peer };
        voice.upgrade().unwrap().send(asks).unwrap();
    };
    let observe = async {
        connect("chelles");
        let (_stream, _) = chelles.accept().await.unwrap();
        assert!(
            matches!(seen.recv().await, Some(Seen::Connected(peer, Ok(_))) if peer == "chelles")
        );
        drop(chelles);
        connect("chelles");
        assert!(matches!(
            seen.recv().await,
            Some(Seen::Connected(_, Err((true, _))))
        ));
        connect("creteil");
        let Some(Seen::Connected(_, Err((refused, reason)))) = seen.recv().await else {
            panic!("connected to a peer without an address");
        };
        assert!(
            !refused && reason.contains("no address of creteil"),
            "{reason}"
        );
    };
    tokio::select! {
        ended = site.live(listeners(dir.path()), Vec::new()) => panic!("{ended:?}"),
        () = observe => {}
    }
    site.stop(Duration::from_secs(30)).await.unwrap();
}
