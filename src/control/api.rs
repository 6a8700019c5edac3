//! The control API: JSON over HTTP on the Unix socket, and its read-only part with the metrics over TCP.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/status` | [`SiteStatus`](crate::status::SiteStatus) |
//! | `GET /v1/groups/NAME/status` | [`GroupStatus`](crate::status::GroupStatus) |
//! | `POST /v1/groups/NAME/COMMAND`, optional body [`CommandRequest`] | [`CommandAnswer`] |
//! | `GET /v1/health` | [`CommandAnswer`]: whether all shards answer |
//!
//! Every error has a [`CommandAnswer`] as its body: 400 the request makes no sense, 404 there is no such thing,
//! 409 refused by rule, 413 the body is too long, 503 the group did not answer.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, extract::rejection::BytesRejection};

use super::metrics;
use super::shards::{Refused, Shards};
use crate::engine::{Command, Force};
use crate::status::{CommandAnswer, CommandRequest};

/// Largest body of a request, in bytes.
const BODY_MAX: usize = 64 << 10;

/// How long all shards together may take to prove that they live.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// What a promotion may override, by the names operators use.
const FORCES: [(&str, Force); 3] = [
    ("peer-unreachable", Force::PeerUnreachable),
    ("inconsistent", Force::Inconsistent),
    ("behind", Force::Behind),
];

const COMMANDS: &str = "promote, demote, switchover, connect, disconnect, verify, resolve, resize";

/// All of the API, for the Unix socket: whoever may open it may steer the site.
pub fn control(shards: Shards) -> Router {
    Router::new()
        .route("/v1/status", get(site_status))
        .route("/v1/health", get(health))
        .route("/v1/groups/{group}/status", get(group_status))
        .route("/v1/groups/{group}/{command}", post(command))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(shards)
}

/// What may be seen over TCP. No commands: nobody is authenticated there.
pub fn public(shards: Shards) -> Router {
    Router::new()
        .route("/", get(front_page))
        .route("/metrics", get(scrape))
        .route("/v1/status", get(site_status))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(shards)
}

async fn site_status(State(shards): State<Shards>) -> Response {
    Json(shards.status().await).into_response()
}

async fn group_status(State(shards): State<Shards>, Path(group): Path<String>) -> Response {
    let status = shards.status().await;
    match status.groups.into_iter().find(|g| g.name == group) {
        Some(status) => Json(status).into_response(),
        None => failure(StatusCode::NOT_FOUND, shards.unknown(&group)),
    }
}

async fn health(State(shards): State<Shards>) -> Response {
    let silent = shards.ask(HEALTH_LIMIT).await.silent;
    if silent.is_empty() {
        success("all shards answer".to_owned())
    } else {
        failure(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("shards that do not answer: {silent:?}"),
        )
    }
}

async fn command(
    State(shards): State<Shards>,
    Path((group, word)): Path<(String, String)>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return failure(rejection.status(), rejection.body_text()),
    };
    let parsed =
        parse_body(&body).and_then(|request| Ok((parse_command(&word, &request)?, request)));
    let (command, request) = match parsed {
        Ok((Some(command), request)) => (command, request),
        Ok((None, _)) => {
            return failure(
                StatusCode::NOT_FOUND,
                format!("there is no command {word:?}; there is {COMMANDS}"),
            );
        }
        Err(why) => return failure(StatusCode::BAD_REQUEST, why),
    };
    tracing::info!(
        group,
        "{} ordered at the control socket",
        in_words(&word, &request)
    );
    match shards.command(&group, command).await {
        Ok(message) => success(message),
        Err(Refused::UnknownGroup(why)) => failure(StatusCode::NOT_FOUND, why),
        Err(Refused::ByRule(why)) => {
            tracing::warn!(group, word, "command refused: {why}");
            failure(StatusCode::CONFLICT, why)
        }
        Err(Refused::NoAnswer(why)) => failure(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

/// A command as it is typed, without the group.
fn in_words(word: &str, request: &CommandRequest) -> String {
    let mut text = word.to_owned();
    let mut add = |part: String| text.extend([" ".to_owned(), part]);
    if let Some(volume) = &request.volume {
        add(volume.clone());
    }
    if let Some(size) = request.size_bytes {
        add(size.to_string());
    }
    if !request.force.is_empty() {
        add(format!("--force {}", request.force.join(",")));
    }
    if let Some(site) = &request.discard {
        add(format!("--discard {site}"));
    }
    if request.repair {
        add("--repair".to_owned());
    }
    if let Some(site) = &request.keep {
        add(format!("--keep {site}"));
    }
    text
}

fn parse_body(body: &[u8]) -> Result<CommandRequest, String> {
    if body.is_empty() {
        return Ok(CommandRequest::default());
    }
    serde_json::from_slice(body).map_err(|e| format!("the body is not a command request: {e}"))
}

/// `None` for a word that is no command.
fn parse_command(word: &str, request: &CommandRequest) -> Result<Option<Command>, String> {
    let command = match word {
        "promote" => {
            let force = request.force.iter().map(|f| parse_force(f));
            Command::Promote {
                force: force.collect::<Result<_, _>>()?,
            }
        }
        "demote" => Command::Demote,
        "switchover" => Command::Switchover,
        "connect" => Command::Connect,
        "disconnect" => Command::Disconnect,
        "verify" => Command::Verify {
            repair: request.repair,
            keep: request.keep.clone(),
        },
        "resize" => Command::Resize {
            volume: request
                .volume
                .clone()
                .ok_or("resize needs `volume`: the name of one")?,
            size: request
                .size_bytes
                .ok_or("resize needs `size_bytes`: the new size")?,
        },
        "resolve" => Command::Resolve {
            discard: request
                .discard
                .clone()
                .ok_or("resolve needs `discard`: the site that gives up what it wrote")?,
        },
        _ => return Ok(None),
    };
    let stray = [
        ("force", "promote", !request.force.is_empty()),
        ("discard", "resolve", request.discard.is_some()),
        ("repair", "verify", request.repair),
        ("keep", "verify", request.keep.is_some()),
        ("volume", "resize", request.volume.is_some()),
        ("size_bytes", "resize", request.size_bytes.is_some()),
    ];
    match stray.iter().find(|(_, of, set)| *set && *of != word) {
        Some((field, of, _)) => Err(format!("{word} takes no `{field}`; only {of} does")),
        None => Ok(Some(command)),
    }
}

fn parse_force(word: &str) -> Result<Force, String> {
    let found = FORCES.iter().find(|(name, _)| *name == word);
    found.map(|(_, force)| *force).ok_or_else(|| {
        let names = FORCES.map(|(name, _)| name).join(", ");
        format!("{word:?} cannot be overridden by force; allowed: {names}")
    })
}

async fn scrape(State(shards): State<Shards>) -> Response {
    match metrics::render(shards.status().await) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics could not be written".to_owned(),
        ),
    }
}

async fn front_page(State(shards): State<Shards>) -> String {
    format!(
        "doublure {} at site {}\n\n\
         /metrics     for Prometheus\n\
         /v1/status   the status as JSON\n\n\
         Commands are given on the site's machine: `doublure status`, `doublure --help`.\n",
        env!("CARGO_PKG_VERSION"),
        shards.site()
    )
}

async fn unknown_path() -> Response {
    failure(
        StatusCode::NOT_FOUND,
        "nothing is here; see GET /v1/status".to_owned(),
    )
}

async fn wrong_method() -> Response {
    failure(
        StatusCode::METHOD_NOT_ALLOWED,
        "status is read with GET, commands are given with POST".to_owned(),
    )
}

fn success(message: String) -> Response {
    Json(CommandAnswer { ok: true, message }).into_response()
}

fn failure(code: StatusCode, message: String) -> Response {
    (code, Json(CommandAnswer { ok: false, message })).into_response()
}
