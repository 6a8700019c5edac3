//! Connecting to a peer, once. When to try again is the core's business.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::net::TcpStream;

/// Why there is no connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The peer's machine is up and said that nothing listens there.
    pub refused: bool,
    /// For people.
    pub reason: String,
}

/// Connects to `HOST:PORT`; every address of the name is tried, in order, all within `timeout`.
///
/// # Errors
/// `refused` only if every address refused: one that is silent may be a living peer behind a cut line.
pub async fn connect(address: &str, timeout: Duration) -> Result<OwnedFd, Failure> {
    tokio::time::timeout(timeout, try_all(address))
        .await
        .unwrap_or_else(|_| {
            Err(Failure {
                refused: false,
                reason: format!("{address} did not answer within {timeout:?}"),
            })
        })
}

async fn try_all(address: &str) -> Result<OwnedFd, Failure> {
    let addresses = tokio::net::lookup_host(address)
        .await
        .map_err(|e| Failure {
            refused: false,
            reason: format!("cannot resolve {address}: {e}"),
        })?;
    let mut failure = None;
    for candidate in addresses {
        match try_one(candidate).await {
            Ok(fd) => return Ok(fd),
            Err(error) => failure = Some(merge(failure, candidate, &error)),
        }
    }
    Err(failure.unwrap_or_else(|| Failure {
        refused: false,
        reason: format!("{address} resolves to no address"),
    }))
}

async fn try_one(address: std::net::SocketAddr) -> io::Result<OwnedFd> {
    let stream = TcpStream::connect(address).await?;
    if stream.local_addr()? == stream.peer_addr()? {
        // While nothing listens on a local port in the ephemeral range, TCP may connect a socket to itself.
        return Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "nothing listens there (the connection met itself)",
        ));
    }
    stream.set_nodelay(true)?;
    Ok(OwnedFd::from(stream.into_std()?))
}

fn merge(earlier: Option<Failure>, address: std::net::SocketAddr, error: &io::Error) -> Failure {
    let refused = error.kind() == io::ErrorKind::ConnectionRefused;
    let reason = format!("cannot connect to {address}: {error}");
    match earlier {
        None => Failure { refused, reason },
        Some(earlier) => Failure {
            refused: refused && earlier.refused,
            reason: format!("{}; {reason}", earlier.reason),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[tokio::test]
    async fn a_name_leads_to_a_socket_without_delay() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let fd = connect(&address, Duration::from_secs(5)).await.unwrap();
        let mut stream = std::net::TcpStream::from(fd);
        stream.set_nonblocking(false).unwrap();
        assert!(stream.nodelay().unwrap());
        stream.write_all(b"bonjour").unwrap();
        let mut buf = [0; 7];
        listener.accept().unwrap().0.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"bonjour");
    }

    #[tokio::test]
    async fn a_machine_that_refuses_is_told_from_one_that_is_silent() {
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let refused = connect(&free.to_string(), Duration::from_secs(5))
            .await
            .unwrap_err();
        assert!(
            refused.refused && refused.reason.contains(&free.to_string()),
            "{refused:?}"
        );

        // A full backlog drops what comes: as silent as a machine that is gone.
        let full = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let address = full.local_addr().unwrap().to_string();
        let mut taken = Vec::new();
        let silent = loop {
            match connect(&address, Duration::from_millis(200)).await {
                Ok(fd) => taken.push(fd),
                Err(failure) => break failure,
            }
        };
        assert!(
            !silent.refused && silent.reason.contains("did not answer"),
            "{silent:?}"
        );
    }

    #[tokio::test]
    async fn an_unknown_name_is_no_refusal() {
        let failure = connect("no-such-host.invalid:1", Duration::from_secs(5))
            .await
            .unwrap_err();
        assert!(
            !failure.refused && failure.reason.contains("no-such-host.invalid"),
            "{failure:?}"
        );
    }
}
