//! Peers until they have said which group they mean: reads the greeting of a link, then hands the socket with
//! everything received to the shard of that group.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::BytesMut;

use super::listen::Socket;
use super::lobby::RateLimit;
use super::shards::{Condition, Shards};
use crate::base::{Hello, Message, Refusal};
use crate::shard::ToShard;

/// How long a peer may take to introduce itself.
pub const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// How many peers may be introducing themselves at the same time.
pub const GREETINGS_MAX: usize = 64;

/// Longest greeting in bytes: room for the lineage of a group that opened some thousands of epochs.
const GREETING_MAX: usize = 1 << 20;

/// Finds out which group a peer means and hands it over, or tells it why not.
pub async fn greet(mut socket: Socket, shards: Shards, refusals: Arc<RateLimit>) {
    let mut received = BytesMut::new();
    let outcome = match read_greeting(&mut socket, &mut received).await {
        Ok(Message::Hello(hello)) => recipient(&hello, &shards),
        Ok(_) => Err((
            Refusal::Incompatible,
            "the first message of a link must be a greeting".to_owned(),
        )),
        Err(error) => {
            complain(&refusals, &socket.peer, &format!("{error:#}"));
            return;
        }
    };
    match outcome {
        Ok(group) => {
            tracing::info!(peer = socket.peer, group, "link accepted");
            hand_over(socket, group, received, &shards);
        }
        Err((refusal, text)) => {
            complain(&refusals, &socket.peer, &text);
            refuse(&mut socket, refusal, text).await;
        }
    }
}

fn hand_over(socket: Socket, group: String, received: BytesMut, shards: &Shards) {
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
            Refusal::Busy,
            format!("group {} is fenced at {site}: {why}", hello.group),
        )),
    }
}

/// Receives until the first message is complete; leaves all bytes in `received`.
async fn read_greeting(socket: &mut Socket, received: &mut BytesMut) -> anyhow::Result<Message> {
    loop {
        if let Some(message) = first_message(received)? {
            return Ok(message);
        }
        if received.len() > GREETING_MAX {
            bail!("a greeting of more than {GREETING_MAX} bytes");
        }
        if socket
            .read(received)
            .await
            .context("receiving a greeting")?
            == 0
        {
            bail!("the connection ended before a greeting was complete");
        }
    }
}

fn first_message(_received: &BytesMut) -> anyhow::Result<Option<Message>> {
    Ok(None)
}

/// Says why and closes. What the peer still sends is read and dropped first: closing a socket with unread bytes
/// resets the connection, and the answer could be lost with it.
async fn refuse(socket: &mut Socket, refusal: Refusal, text: String) {
    let mut bytes = BytesMut::new();
    let _ = (refusal, text);
    if socket.write_all(&bytes).await.is_err() || socket.finish().await.is_err() {
        return; // gone already
    }
    while let Ok(1..) = socket.read(&mut bytes).await {
        bytes.clear();
    }
}
