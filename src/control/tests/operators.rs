//! The control API, the metrics, and the life of a site as an operator meets it.

use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::*;
use crate::control::api;
use crate::control::site::{Opening, Site};
use crate::control::visitors::{VISITORS_MAX, Visitors};
use crate::status::CommandAnswer;

/// One request on its own connection: the status code and the body.
async fn exchange<S>(mut stream: S, request: &str, body: &str) -> (u16, String)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let length = body.len();
    let text = format!(
        "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, body.to_owned())
}

async fn over_unix(dir: &Path, request: &str, body: &str) -> (u16, String) {
    let stream = UnixStream::connect(dir.join("control.sock")).await.unwrap();
    exchange(stream, request, body).await
}

fn json<T: DeserializeOwned>(body: &str) -> T {
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"))
}

/// The control API of these shards in a directory of its own.
fn control_api(shards: Shards) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
    tokio::spawn(async move { axum::serve(listener, api::control(shards)).await });
    dir
}

#[tokio::test]
async fn the_status_of_all_shards_is_one_document_in_the_order_of_names() {
    let dir = control_api(shards(vec![
        FakeShard::answering(vec![group_status("registry")]),
        FakeShard::answering(vec![group_status("archive")]),
    ]));
    let (code, body) = over_unix(dir.path(), "GET /v1/status", "").await;
    assert_eq!(code, 200);
    let status: SiteStatus = json(&body);
    let names: Vec<_> = status.groups.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(
        (status.site.as_str(), names),
        ("clichy", vec!["archive", "registry"])
    );

    let (code, body) = over_unix(dir.path(), "GET /v1/groups/registry/status", "").await;
    assert_eq!(
        (code, json::<GroupStatus>(&body)),
        (200, group_status("registry"))
    );
    let (code, body) = over_unix(dir.path(), "GET /v1/groups/regstry/status", "").await;
    let answer: CommandAnswer = json(&body);
    assert_eq!((code, answer.ok), (404, false));
    assert!(
        answer.message.contains("archive, registry"),
        "{}",
        answer.message
    );
}

#[tokio::test]
async fn a_command_is_done_or_refused_by_rule_or_told_what_is_wrong_with_it() {
    let dir = control_api(shards(vec![FakeShard::answering(vec![group_status(
        "registry",
    )])]));
    let ask = |request: &'static str, body: &'static str| {
        let dir = dir.path();
        async move {
            let (code, body) = over_unix(dir, &format!("POST /v1/groups/{request}"), body).await;
            let answer: CommandAnswer = json(&body);
            assert_eq!(answer.ok, code == 200);
            (code, answer.message)
        }
    };
    let all_forces = r#"{"force": ["peer-unreachable", "inconsistent", "behind"]}"#;
    let (code, message) = ask("registry/promote", all_forces).await;
    assert_eq!(code, 200);
    assert!(
        message.contains("[PeerUnreachable, Inconsistent, Behind]"),
        "{message}"
    );
    for command in ["switchover", "connect", "disconnect"] {
        let (code, message) = ask(format!("registry/{command}").leak(), "").await;
        assert_eq!(code, 200);
        assert!(message.to_lowercase().contains(command), "{message}");
    }

    let cases = [
        ("registry/demote", "{}", 409, "attached clients"),
        (
            "registry/promote",
            r#"{"force": ["all"]}"#,
            400,
            "peer-unreachable, inconsistent, behind",
        ),
        (
            "registry/demote",
            r#"{"force": ["behind"]}"#,
            400,
            "only promote",
        ),
        ("registry/promote", r#"{"forse": []}"#, 400, "forse"),
        ("registry/promote", "yes", 400, "not a command request"),
        (
            "registry/format",
            "",
            404,
            "promote, demote, switchover, connect, disconnect",
        ),
        ("tax/promote", "", 404, "there is registry"),
    ];
    for (request, body, expected, part) in cases {
        let (code, message) = ask(request, body).await;
        assert_eq!(code, expected, "{request} {body}: {message}");
        assert!(message.contains(part), "{request} {body}: {message}");
    }
    let long = " ".repeat(100 << 10).leak();
    assert_eq!(ask("registry/promote", long).await.0, 413);
}

#[tokio::test]
async fn a_shard_that_does_not_answer_is_named_and_the_others_are_not_held_up() {
    let shards = shards(vec![
        FakeShard::answering(vec![group_status("registry")]),
        FakeShard::silent(),
    ]);
    let answers = shards.ask(Duration::from_millis(50)).await;
    assert_eq!(answers.silent, [1]);
    let by_name = |name| answers.groups.iter().find(|g| g.name == name).unwrap();
    assert!(by_name("registry").healthy);
    let archive = by_name("archive");
    assert!(
        !archive.healthy && archive.reason.contains("shard 1 does not answer"),
        "{}",
        archive.reason
    );

    let dir = control_api(shards);
    let (code, body) = over_unix(dir.path(), "GET /v1/health", "").await;
    assert_eq!(code, 503);
    assert!(json::<CommandAnswer>(&body).message.contains("[1]"));
}

#[tokio::test]
async fn a_shard_that_falls_silent_is_shown_as_it_was_last_known() {
    let mut first = true;
    let shards = shards(vec![FakeShard::new(move |message| {
        if let ToShard::Status { done } = message
            && std::mem::take(&mut first)
        {
            let _ = done.send(vec![group_status("registry")]);
        }
        true
    })]);
    assert!(shards.ask(Duration::from_secs(2)).await.groups[0].healthy);
    let group = &shards.ask(Duration::from_secs(2)).await.groups[0];
    assert_eq!(group.commit_lsn, Lsn(98));
    assert!(
        !group.healthy && group.reason.contains("0 s old"),
        "{}",
        group.reason
    );
}

#[tokio::test]
async fn a_shard_whose_thread_ended_fences_its_groups() {
    let mut fake = FakeShard::new(|_| false);
    (fake.post)(ToShard::Shutdown);
    assert!(fake.events.recv().await.is_none());
    let shards = shards(vec![fake]);
    let answers = shards.ask(Duration::from_secs(2)).await;
    assert_eq!(
        (answers.groups[0].state, answers.silent),
        (GroupState::Fenced, vec![0])
    );
    let dir = control_api(shards);
    let (code, body) = over_unix(dir.path(), "POST /v1/groups/registry/demote", "").await;
    assert_eq!(code, 409);
    assert!(body.contains("ended unexpectedly"), "{body}");
}

#[tokio::test]
async fn over_tcp_there_are_metrics_and_status_but_no_commands() {
    let shards = shards(vec![FakeShard::answering(vec![group_status("registry")])]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, api::public(shards)).await });
    let ask = |request: &'static str| async move {
        exchange(TcpStream::connect(address).await.unwrap(), request, "").await
    };
    let (code, text) = ask("GET /metrics").await;
    assert_eq!(code, 200);
    assert!(text.contains(
        "doublure_peer_in_sync{site=\"clichy\",group=\"registry\",peer=\"chelles\"} 1.0\n"
    ));
    let (code, body) = ask("GET /v1/status").await;
    assert_eq!((code, json::<SiteStatus>(&body).groups.len()), (200, 1));
    let (code, text) = ask("GET /").await;
    assert!(
        code == 200 && text.contains("/metrics") && text.contains("clichy"),
        "{text}"
    );
    assert_eq!(ask("POST /v1/groups/registry/promote").await.0, 404);
    assert_eq!(ask("POST /v1/status").await.0, 405);
}

#[tokio::test]
async fn over_tcp_only_so_many_connections_are_served_at_once() {
    let shards = shards(vec![FakeShard::answering(vec![group_status("registry")])]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let visitors = Visitors::new(listener);
    tokio::spawn(async move { axum::serve(visitors, api::public(shards)).await });
    let mut silent = Vec::new();
    for _ in 0..VISITORS_MAX {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let late = TcpStream::connect(address).await.unwrap();
    let mut answer = std::pin::pin!(exchange(late, "GET /metrics", ""));
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut answer).await;
    assert!(waits.is_err(), "served beside {VISITORS_MAX} others");
    silent.pop();
    assert_eq!(answer.await.0, 200);
}

/// A site of one group each on these shards, whose opening ends as given.
fn site(fakes: Vec<FakeShard>, outcomes: Vec<Result<(), String>>) -> (Site, Shards, Vec<Opening>) {
    let names = ["registry", "archive", "tax"];
    let (posts, events): (Vec<_>, Vec<_>) = fakes.into_iter().map(|f| (f.post, f.events)).unzip();
    let members = (0..posts.len()).map(|i| member(names[i], i)).collect();
    let shards = Shards::new("clichy", members, posts, Vec::new(), Vec::new());
    let opening = outcomes.into_iter().zip(names).map(|(outcome, name)| {
        let (tx, done) = oneshot::channel();
        tx.send(outcome).unwrap();
        Opening {
            group: name.to_owned(),
            done,
        }
    });
    let opening = opening.collect();
    (Site::new(shards.clone(), events), shards, opening)
}

#[tokio::test]
async fn a_group_that_cannot_be_opened_is_fenced_and_the_others_run() {
    let dir = tempfile::tempdir().unwrap();
    let fakes = vec![
        FakeShard::answering(vec![group_status("registry")]),
        FakeShard::answering(vec![]),
    ];
    let (mut site, _, opening) = site(
        fakes,
        vec![Ok(()), Err("journal: damaged at LSN 7".to_owned())],
    );
    let observe = async {
        // Answered at once, before and after the groups are open: ask until both are settled.
        loop {
            let (_, body) = over_unix(dir.path(), "GET /v1/status", "").await;
            let groups = json::<SiteStatus>(&body).groups;
            assert_eq!(groups.len(), 2);
            if groups[0].state == GroupState::Fenced {
                assert!(
                    groups[0].reason.contains("damaged at LSN 7"),
                    "{}",
                    groups[0].reason
                );
                assert!(groups[1].healthy && !groups[0].healthy);
                break;
            }
        }
    };
    tokio::select! {
        ended = site.live(listeners(dir.path()), opening) => panic!("{ended:?}"),
        () = observe => {}
    }
    site.stop(Duration::from_secs(30)).await.unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "socket files were left behind: {left:?}");
}

#[tokio::test]
async fn a_site_without_any_group_that_opens_ends() {
    let dir = tempfile::tempdir().unwrap();
    let failure = Err("state: both slots are damaged".to_owned());
    let (mut site, _, opening) = site(vec![FakeShard::answering(vec![])], vec![failure]);
    let ended = site.live(listeners(dir.path()), opening).await;
    assert!(
        ended
            .unwrap_err()
            .to_string()
            .contains("no group could be opened")
    );
    site.stop(Duration::from_secs(30)).await.unwrap();
}

#[tokio::test]
async fn a_group_that_stops_by_itself_is_shown_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeShard::answering(vec![]);
    let voice = fake.voice.clone();
    let (mut site, shards, opening) = site(vec![fake], vec![Ok(())]);
    let stopped = FromShard::Stopped {
        group: "registry".to_owned(),
    };
    let observe = async {
        while shards.condition("registry") != Condition::Open {
            tokio::task::yield_now().await;
        }
        voice.upgrade().unwrap().send(stopped).unwrap();
        while shards.condition("registry") == Condition::Open {
            tokio::task::yield_now().await;
        }
        let group = shards.status().await.groups.remove(0);
        assert_eq!(group.state, GroupState::Fenced);
        assert!(
            group.reason.contains("stopped by itself"),
            "{}",
            group.reason
        );
    };
    tokio::select! {
        ended = site.live(listeners(dir.path()), opening) => panic!("{ended:?}"),
        () = observe => {}
    }
}

#[tokio::test]
async fn a_stop_that_hangs_names_the_group_that_did_not_finish() {
    let hangs = FakeShard::new(|_| true);
    let stops = FakeShard::answering(vec![]);
    let (mut site, shards, _) = site(vec![stops, hangs], vec![]);
    for name in ["registry", "archive"] {
        shards.set_condition(name, Condition::Open);
    }
    let error = site
        .stop(Duration::from_millis(200))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("group archive") && !error.contains("registry"),
        "{error}"
    );
}

#[tokio::test]
async fn a_site_goes_on_without_one_shard_and_ends_without_any() {
    let dir = tempfile::tempdir().unwrap();
    let fakes = vec![FakeShard::answering(vec![]), FakeShard::answering(vec![])];
    let (mut site, shards, opening) = site(fakes, vec![Ok(()), Ok(())]);
    let lose_one = async {
        while shards.condition("archive") != Condition::Open {
            tokio::task::yield_now().await;
        }
        shards.post("registry", ToShard::Shutdown);
        while shards.condition("registry") == Condition::Open {
            tokio::task::yield_now().await;
        }
        assert_eq!(shards.condition("archive"), Condition::Open);
        shards.post("archive", ToShard::Shutdown);
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = site.live(listeners(dir.path()), opening) => ended.unwrap_err(),
        () = lose_one => unreachable!(),
    };
    assert_eq!(ended.to_string(), "every shard has ended");
}
