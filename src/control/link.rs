//! Peers until they have said which group they mean: reads the greeting of a link, then hands the socket with
//! everything received to the shard of that group.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::listen::Socket;
use super::lobby::RateLimit;
use super::shards::{Condition, Shards};
use crate::base::{Hello, Message, Refusal};
use crate::link::{Decoder, HEADER, LinkError, encode};
use crate::shard::ToShard;

/// How long a peer may take to introduce itself.
pub const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// How many peers may be introducing themselves at the same time. A greeting can be long (some MiB for a group that
/// opened very many epochs), so this bounds memory, too.
pub const GREETINGS_MAX: usize = 32;

/// Finds out which group a peer means and hands it over, or tells it why not.
pub async fn greet(mut socket: Socket, shards: Shards, refusals: Arc<RateLimit>) {
    let mut received = BytesMut::new();
    let outcome = match read_greeting(&mut socket, &mut received).await {
        Ok(hello) => recipient(&hello, &shards),
        Err(Trouble::Understanding(error)) => Err((Refusal::Incompatible, error.to_string())),
        Err(Trouble::Silence(why)) => return complain(&refusals, &socket.peer, &why),
    };
    match outcome {
        Ok(group) => hand_over(socket, group, received, &shards),
        Err((refusal, text)) => {
            complain(&refusals, &socket.peer, &text);
            refuse(&mut socket, refusal, text).await;
        }
    }
}

fn hand_over(socket: Socket, group: String, received: BytesMut, shards: &Shards) {
    // Whether it comes to anything the group says. A peer that is in a conflict knocks every other second.
    tracing::debug!(peer = socket.peer, group, "link accepted");
    match socket.into_fd() {
        Ok(socket) => {
            let name = group.clone();
            shards.post(
                &name,
                ToShard::LinkAccepted {
                    group,
                    socket,
                    received,
                },
            );
        }
        Err(error) => tracing::error!(group, "cannot hand over a link: {error}"),
    }
}

fn complain(refusals: &RateLimit, peer: &str, why: &str) {
    if let Some(suppressed) = refusals.permit() {
        tracing::warn!(peer, suppressed, "link refused: {why}");
    }
}

/// The group a greeting is for, or why this is the wrong place for it.
fn recipient(hello: &Hello, shards: &Shards) -> Result<String, (Refusal, String)> {
    let site = shards.site();
    let wrong = |text| Err((Refusal::WrongGroup, text));
    if hello.to_site != site {
        return wrong(format!(
            "this is site {site}, not {}; check the link address of the peer",
            hello.to_site
        ));
    }
    let Some(member) = shards.members().get(&hello.group) else {
        return wrong(shards.unknown(&hello.group));
    };
    if !member.config.peers.contains(&hello.site) {
        return wrong(format!(
            "{site} has no peer {:?} for group {}; its peers are {}",
            hello.site,
            hello.group,
            member.config.peers.join(", ")
        ));
    }
    match shards.condition(&hello.group) {
        Condition::Open => Ok(hello.group.clone()),
        Condition::Opening => Err((
            Refusal::Busy,
            format!("group {} is being opened at {site}", hello.group),
        )),
        Condition::Fenced(why) => Err((
            Refusal::Fenced,
            format!("group {} is fenced at {site}: {why}", hello.group),
        )),
    }
}

/// Why there is no greeting.
enum Trouble {
    /// What came cannot be understood; the peer is told so.
    Understanding(LinkError),
    /// Nobody is there to be told, or nobody who would listen.
    Silence(String),
}

/// Receives until the first message is complete; leaves all bytes in `received`. The decoder bounds their number.
async fn read_greeting(socket: &mut Socket, received: &mut BytesMut) -> Result<Hello, Trouble> {
    let mut needed = HEADER;
    loop {
        while received.len() < needed {
            match socket.read(received).await {
                Ok(0) => {
                    return Err(Trouble::Silence(
                        "it closed before its greeting was complete".to_owned(),
                    ));
                }
                Ok(_) => {}
                Err(error) => {
                    return Err(Trouble::Silence(format!("receiving its greeting: {error}")));
                }
            }
        }
        // The shard wants every byte, so the decoder gets a copy; that is once for the header and once for all.
        let mut decoder = Decoder::new();
        match decoder.next(&mut received.clone()) {
            Ok(Some(Message::Hello(hello))) => return Ok(*hello),
            Ok(Some(_)) => {
                return Err(Trouble::Silence(
                    "it ended the link without a greeting".to_owned(),
                ));
            }
            Ok(None) => needed = received.len() + decoder.wants(),
            // A stranger would not understand the answer either.
            Err(error @ LinkError::Magic { .. }) => {
                return Err(Trouble::Silence(error.to_string()));
            }
            Err(error) => return Err(Trouble::Understanding(error)),
        }
    }
}

/// Says why and closes. What the peer still sends is read and dropped first: closing a socket with unread bytes
/// resets the connection, and the answer could be lost with it.
async fn refuse(socket: &mut Socket, refusal: Refusal, text: String) {
    let mut parts: Vec<Bytes> = Vec::new();
    if let Err(error) = encode(&Message::Refuse { refusal, text }, &mut parts) {
        tracing::error!("cannot say why a link is refused: {error}");
        return;
    }
    if socket.write_all(&parts.concat()).await.is_err() || socket.finish().await.is_err() {
        return; // gone already
    }
    let mut rest = BytesMut::new();
    while let Ok(1..) = socket.read(&mut rest).await {
        rest.clear();
    }
}
