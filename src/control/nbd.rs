//! NBD clients until they have chosen an export: carries bytes between a socket and [`Handshake`], then hands
//! the socket to the shard of the export's group.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::BytesMut;

use super::exports::Directory;
use super::listen::Socket;
use super::shards::Shards;
use crate::nbd::{Handshake, Session, Step};
use crate::shard::ToShard;

/// How long a client may take to choose an export.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// How many clients may be choosing at the same time. What each costs is bounded by the handshake: it keeps at most
/// one option of its input and stops answering before its output grows.
pub const HANDSHAKES_MAX: usize = 1000;

/// Negotiates with a client and hands it over. What goes wrong is the client's affair and only worth a debug line.
pub async fn greet(mut socket: Socket, exports: Directory, shards: Shards) {
    let peer = socket.peer.clone();
    exports.settled().await;
    let outcome = match negotiate(&mut socket, &exports).await {
        Ok((session, received)) => hand_over(socket, session, received, &exports, &shards),
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        tracing::debug!(peer, "NBD handshake ended: {error:#}");
    }
}

/// Runs the handshake. Returns what was negotiated and the bytes received beyond it.
async fn negotiate(
    socket: &mut Socket,
    exports: &Directory,
) -> anyhow::Result<(Session, BytesMut)> {
    let mut input = BytesMut::new();
    let mut output = BytesMut::new();
    let mut handshake = Handshake::new(&mut output);
    loop {
        let step = handshake.advance(&mut input, &mut output, exports);
        // Sent before anything more is read: a client that does not listen stops being listened to.
        socket.write_all(&output).await.context("sending")?;
        output.clear();
        match step {
            Step::Again => {}
            Step::More => {
                if socket.read(&mut input).await.context("receiving")? == 0 {
                    bail!("the client closed the connection");
                }
            }
            Step::Done(session) => return Ok((session, input)),
            Step::Close(why) => bail!(why),
        }
    }
}

fn hand_over(
    socket: Socket,
    session: Session,
    received: BytesMut,
    exports: &Directory,
    shards: &Shards,
) -> anyhow::Result<()> {
    // The export may have closed since it was promised; the client then sees the connection end, and comes back.
    let (group, volume) = exports
        .route(&session.export)
        .with_context(|| format!("export {} closed during the handshake", session.export))?;
    tracing::info!(
        peer = socket.peer,
        export = session.export,
        group,
        "client attached"
    );
    shards.post(
        &group.clone(),
        ToShard::Client {
            group,
            volume,
            socket: socket.into_fd().context("letting go of the socket")?,
            session,
            received,
        },
    );
    Ok(())
}
