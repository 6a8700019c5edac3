//! NBD clients at the door, over real sockets.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use super::*;
use crate::control::exports::Directory;
use crate::control::lobby::Lobby;
use crate::control::nbd;

const GO: u32 = 7;
const ACK: u32 = 1;
const REP_INFO: u32 = 3;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_UNKNOWN: u32 = 0x8000_0006;

fn option(number: u32, claimed_len: usize, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(claimed_len).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

fn go(export: &str) -> Vec<u8> {
    let mut data = u32::try_from(export.len()).unwrap().to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend([0, 0]);
    option(GO, data.len(), &data)
}

/// Reads the greeting and answers it.
pub async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.unwrap();
    assert!(greeting.starts_with(b"NBDMAGICIHAVEOPT"));
    stream.write_all(&3_u32.to_be_bytes()).await.unwrap();
}

/// The answer that ends an option: its kind and its text.
async fn answer<S: AsyncRead + Unpin>(stream: &mut S) -> (u32, String) {
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).await.unwrap();
        let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut data = vec![0; field(16) as usize];
        stream.read_exact(&mut data).await.unwrap();
        if field(12) != REP_INFO {
            return (field(12), String::from_utf8(data).unwrap());
        }
    }
}

/// Attaches to an export and returns the first byte that its shard sends.
pub async fn attach<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, export: &str) -> u8 {
    greet(&mut stream).await;
    stream.write_all(&go(export)).await.unwrap();
    assert_eq!(answer(&mut stream).await.0, ACK);
    stream.read_u8().await.unwrap()
}

/// Group, volume and the bytes that came with a client.
type Seen = (String, VolumeId, Vec<u8>);

/// A shard that sends `byte` to every client, keeps it attached, and reports what came with it. Its group `registry` serves.
pub fn welcoming(byte: u8, seen: mpsc::UnboundedSender<Seen>) -> FakeShard {
    let mut attached = Vec::new();
    FakeShard::new(move |message| {
        match message {
            ToShard::Client {
                group,
                volume,
                socket,
                received,
                ..
            } => {
                // TCP and Unix sockets alike.
                rustix::io::write(&socket, &[byte]).unwrap();
                attached.push(socket);
                let _ = seen.send((group, volume, received.to_vec()));
            }
            ToShard::Status { done } => drop(done.send(vec![group_status("registry")])),
            ToShard::Shutdown => return false,
            _ => {}
        }
        true
    })
}

/// A door with these limits. Returns the address it listens on and what its shard sees.
fn door(
    address: &str,
    capacity: usize,
    limit: Duration,
) -> (String, Directory, mpsc::UnboundedReceiver<Seen>) {
    let (tx, seen) = mpsc::unbounded_channel();
    let shards = shards(vec![welcoming(7, tx)]);
    let exports = Directory::default();
    exports.update("registry", &open_exports("registry"));
    let listener = Listener::bind(address).unwrap();
    let address = listener.address.clone();
    let directory = exports.clone();
    tokio::spawn(
        listener.accept_all(Lobby::new(capacity, limit), move |socket| {
            nbd::greet(socket, directory.clone(), shards.clone())
        }),
    );
    (address, exports, seen)
}

#[tokio::test]
async fn a_client_reaches_its_shard_with_what_it_sent_ahead_over_tcp_and_unix() {
    let (address, _, mut seen) = door("127.0.0.1:0", 10, LONG);
    let mut client = TcpStream::connect(&address).await.unwrap();
    greet(&mut client).await;
    let mut eager = go("registry-data");
    eager.extend(b"a request behind it");
    client.write_all(&eager).await.unwrap();
    assert_eq!(answer(&mut client).await.0, ACK);
    assert_eq!(client.read_u8().await.unwrap(), 7);
    let (group, volume, received) = seen.recv().await.unwrap();
    assert_eq!((group.as_str(), volume), ("registry", VolumeId(1)));
    assert_eq!(received, b"a request behind it");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let (_, _, mut seen) = door(&format!("unix:{}", path.display()), 10, LONG);
    let client = UnixStream::connect(&path).await.unwrap();
    assert_eq!(attach(client, "registry-data").await, 7);
    assert_eq!(seen.recv().await.unwrap().2, b"");
}

#[tokio::test]
async fn a_client_of_a_mirror_is_told_where_the_primary_is_and_may_ask_again() {
    let (address, exports, _seen) = door("127.0.0.1:0", 10, LONG);
    let mut closed = open_exports("registry");
    closed.open = Err("the primary is chelles".to_owned());
    exports.update("registry", &closed);
    let mut client = TcpStream::connect(&address).await.unwrap();
    greet(&mut client).await;
    client.write_all(&go("registry-data")).await.unwrap();
    assert_eq!(
        answer(&mut client).await,
        (ERR_POLICY, "the primary is chelles".to_owned())
    );
    client.write_all(&go("nothing")).await.unwrap();
    assert_eq!(answer(&mut client).await.0, ERR_UNKNOWN);
    exports.update("registry", &open_exports("registry"));
    client.write_all(&go("registry-data")).await.unwrap();
    assert_eq!(answer(&mut client).await.0, ACK);
}

#[tokio::test]
async fn a_client_that_is_too_slow_is_closed() {
    let (address, ..) = door("127.0.0.1:0", 10, Duration::from_millis(100));
    let start = Instant::now();
    let mut client = TcpStream::connect(&address).await.unwrap();
    greet(&mut client).await;
    client.write_all(&go("registry-data")[..9]).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn an_option_that_claims_too_much_costs_nothing_and_ends_the_connection() {
    let (address, ..) = door("127.0.0.1:0", 10, LONG);
    let mut client = TcpStream::connect(&address).await.unwrap();
    greet(&mut client).await;
    let claims = option(GO, u32::MAX as usize, b"x");
    client.write_all(&claims).await.unwrap();
    // The byte behind the header is never read, so the end may come as a reset.
    assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
    let client = TcpStream::connect(&address).await.unwrap();
    assert_eq!(attach(client, "registry-data").await, 7);
}

#[tokio::test]
async fn a_client_that_asks_and_never_listens_stops_being_read() {
    let (address, ..) = door("127.0.0.1:0", 10, Duration::from_secs(2));
    let mut client = TcpStream::connect(&address).await.unwrap();
    greet(&mut client).await;
    // Each option of 16 bytes is answered with more than that, so both directions fill up.
    let questions = option(0x7777, 0, b"").repeat(4096);
    let mut sent = 0;
    let stuck = loop {
        match tokio::time::timeout(Duration::from_millis(500), client.write_all(&questions)).await {
            Ok(Ok(())) => sent += questions.len(),
            Ok(Err(_)) => break false,
            Err(_) => break true,
        }
    };
    assert!(
        stuck && sent < 64 << 20,
        "{sent} bytes were taken from a client that does not listen"
    );
}

#[tokio::test]
async fn a_thousand_connections_that_never_speak_keep_nobody_out() {
    crate::control::process::raise_descriptor_limit();
    let (address, ..) = door("127.0.0.1:0", 200, LONG);
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    let client = TcpStream::connect(&address).await.unwrap();
    assert_eq!(attach(client, "registry-data").await, 7);
    // The oldest were given up for it: their streams end behind the greeting.
    let mut rest = Vec::new();
    silent[0].read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest.len(), 18);
}

#[test]
fn the_socket_of_a_door_is_gone_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        door(&format!("unix:{}", path.display()), 1, LONG);
        tokio::task::yield_now().await;
        assert!(Path::exists(&path));
    });
    drop(runtime);
    assert!(!path.exists());
}
