//! A client of the control API: HTTP/1.1 over the Unix socket of a running site.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::offers;
use crate::config::DEFAULT_CONTROL;
use crate::status::{CommandAnswer, CommandRequest, GroupStatus, SiteStatus};

/// A running site tells its status at once. Commands may take as long as there is work to drain.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no answer, or not the one that was wanted.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such socket.
    #[error(
        "is `doublure serve` running? Looked at {}, and there is nothing there. Another place: -s PATH",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// The socket's file is left over.
    #[error(
        "is `doublure serve` running? Looked at {}, and nobody listens there any more",
        .0.display()
    )]
    NobodyListens(PathBuf),
    /// Whoever may open the socket may steer the site, so not everybody may.
    #[error(
        "permission denied for {}. Run this as root or as the user or group that `doublure serve` runs as",
        .0.display()
    )]
    Denied(PathBuf),
    /// The operating system said something else.
    #[error("cannot talk to {}: {error}", socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The connection broke off or did not speak HTTP.
    #[error("no answer from {}: {error}", socket.display())]
    Http {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: hyper::Error,
    },
    /// Somebody listens and says nothing.
    #[error("no answer from {} within {} s", .0.display(), STATUS_LIMIT.as_secs())]
    Silent(PathBuf),
    /// The site refused, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The answer is not one of `doublure`.
    #[error("{} does not answer as doublure does ({status}): {detail}", socket.display())]
    Strange {
        /// The socket.
        socket: PathBuf,
        /// Of the answer.
        status: StatusCode,
        /// What is strange.
        detail: String,
    },
}

/// Talks to one site. Each request is a connection of its own, so a restart of the site in between does no harm.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the site with this control socket.
    pub fn new(socket: PathBuf) -> Client {
        Client { socket }
    }

    /// Status of the site and all its groups.
    pub async fn site_status(&self) -> Result<SiteStatus, ClientError> {
        self.status("/v1/status").await
    }

    /// Status of one group. The name must be one a group can have.
    pub async fn group_status(&self, group: &str) -> Result<GroupStatus, ClientError> {
        self.status(&format!("/v1/groups/{group}/status")).await
    }

    /// Sends a command to a group and waits until it is done; says what was done. The name must be one a group can
    /// have.
    pub async fn command(
        &self,
        group: &str,
        word: &str,
        request: &CommandRequest,
    ) -> Result<String, ClientError> {
        let path = format!("/v1/groups/{group}/{word}");
        let body = serde_json::to_vec(request).expect("plain data is JSON");
        let (status, body) = self.exchange(Method::POST, &path, body).await?;
        let answer: CommandAnswer = self.parse(status, &body)?;
        if answer.ok {
            Ok(self.complete(&answer.message))
        } else {
            Err(ClientError::Refused(self.complete(&answer.message)))
        }
    }

    /// A text in which the commands that it offers reach the same site: with the socket that was given, if one was.
    pub fn complete(&self, text: &str) -> String {
        if self.socket == Path::new(DEFAULT_CONTROL) {
            return text.to_owned();
        }
        offers::complete(text, &self.socket)
    }

    async fn status<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let exchange = self.exchange(Method::GET, path, Vec::new());
        let (status, body) = tokio::time::timeout(STATUS_LIMIT, exchange)
            .await
            .map_err(|_| ClientError::Silent(self.socket.clone()))??;
        if status.is_success() {
            return self.parse(status, &body);
        }
        let answer: CommandAnswer = self.parse(status, &body)?;
        Err(ClientError::Refused(self.complete(&answer.message)))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let http = |error| ClientError::Http {
            socket: self.socket.clone(),
            error,
        };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.cannot_connect(error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(http)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "doublure")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("the parts of a request are valid");
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok((status, body))
        };
        // The connection only moves while it is polled; once the answer is whole it is of no more use.
        tokio::pin!(connection, exchange);
        let result = tokio::select! {
            result = &mut exchange => result,
            ended = &mut connection => match ended {
                Err(error) => Err(error),
                Ok(()) => exchange.await,
            },
        };
        result.map_err(http)
    }

    fn parse<T: DeserializeOwned>(
        &self,
        status: StatusCode,
        body: &[u8],
    ) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| ClientError::Strange {
            socket: self.socket.clone(),
            status,
            detail: error.to_string(),
        })
    }

    fn cannot_connect(&self, error: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ClientError::NoSocket(socket),
            io::ErrorKind::ConnectionRefused => ClientError::NobodyListens(socket),
            io::ErrorKind::PermissionDenied => ClientError::Denied(socket),
            _ => ClientError::Io { socket, error },
        }
    }
}
