use clap::CommandFactory;
use clap::error::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Arguments::try_parse_from(line.split_whitespace()).map(|arguments| arguments.command)
}

#[test]
fn the_command_line_is_well_formed() {
    Arguments::command().debug_assert();
}

#[test]
fn serve_and_check_take_a_file() {
    assert!(matches!(
        parse("doublure serve -c a.toml"),
        Ok(Command::Serve { .. })
    ));
    assert!(matches!(
        parse("doublure check --config a.toml"),
        Ok(Command::Check { .. })
    ));
    for line in ["doublure serve", "doublure check"] {
        assert_eq!(
            parse(line).unwrap_err().kind(),
            ErrorKind::MissingRequiredArgument
        );
    }
}

#[test]
fn try_has_a_directory_of_its_own_by_default() {
    let Ok(Command::Try { dir }) = parse("doublure try") else {
        panic!("no try");
    };
    assert_eq!(dir, Path::new("doublure-try"));
    let Ok(Command::Try { dir }) = parse("doublure try --dir /tmp/x") else {
        panic!("no try");
    };
    assert_eq!(dir, Path::new("/tmp/x"));
}

#[test]
fn every_client_command_takes_a_socket_with_or_without_its_scheme() {
    for word in ["promote", "demote", "switchover", "connect", "disconnect"] {
        for socket in [
            "-s unix:/run/x",
            "-s /run/x",
            "--socket /run/x",
            "--socket=unix:/run/x",
        ] {
            let command = parse(&format!("doublure {word} registry {socket}")).expect(word);
            let (Command::Promote { target, .. }
            | Command::Demote { target }
            | Command::Switchover { target }
            | Command::Connect { target }
            | Command::Disconnect { target }) = command
            else {
                panic!("{word} is another command");
            };
            assert_eq!(target.group, "registry");
            assert_eq!(target.site.socket, Path::new("/run/x"));
        }
    }
    let Ok(Command::Status {
        site,
        group,
        json,
        watch,
    }) = parse("doublure status")
    else {
        panic!("no status");
    };
    assert_eq!(site.socket, Path::new("/run/doublure/control.sock"));
    assert_eq!((group, json, watch), (None, false, false));
}

#[test]
fn force_may_be_repeated_and_comma_separated() {
    let line = "doublure promote g --force peer-unreachable,behind --force inconsistent";
    let Ok(Command::Promote { force, .. }) = parse(line) else {
        panic!("no promote");
    };
    assert_eq!(
        force,
        [Force::PeerUnreachable, Force::Behind, Force::Inconsistent]
    );
}

#[test]
fn force_names_exactly_what_it_overrides() {
    let error = parse("doublure promote g --force all").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue);
    let text = error.to_string();
    assert!(
        text.contains("peer-unreachable, inconsistent, behind"),
        "{text}"
    );
    assert!(parse("doublure demote g --force behind").is_err());
}

#[test]
fn wrong_usage_ends_with_2() {
    assert_eq!(
        parse("doublure frobnicate").unwrap_err().exit_code(),
        i32::from(EXIT_USAGE)
    );
    assert_eq!(
        parse("doublure promote").unwrap_err().exit_code(),
        i32::from(EXIT_USAGE)
    );
}

#[test]
fn a_group_that_cannot_be_is_refused_before_it_is_asked_for() {
    assert!(refuse_group("registry").is_none());
    assert!(refuse_group("../status").is_some());
    assert!(refuse_group("a b").is_some());
}

/// Answers one request with this and returns the request.
async fn answer_once(listener: UnixListener, answer: String) -> String {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut request = Vec::new();
    let complete = |request: &[u8]| {
        let text = String::from_utf8_lossy(request).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return false;
        };
        let length = head.split_once("content-length: ").map_or(0, |(_, rest)| {
            rest.lines()
                .next()
                .unwrap_or("")
                .trim()
                .parse()
                .unwrap_or(0)
        });
        body.len() >= length
    };
    while !complete(&request) {
        assert_ne!(stream.read_buf(&mut request).await.expect("a request"), 0);
    }
    stream
        .write_all(answer.as_bytes())
        .await
        .expect("room for the answer");
    String::from_utf8(request).expect("text")
}

fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a promotion to a site that answers with this; says what went over the wire and what came of it.
fn promote_against(answer: String) -> (String, Result<String, ClientError>) {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("control.sock");
    terminal::runtime().expect("a runtime").block_on(async {
        let listener = UnixListener::bind(&socket).expect("a socket");
        let client = Client::new(socket);
        let request = CommandRequest {
            force: vec!["behind".to_owned()],
            ..CommandRequest::default()
        };
        tokio::join!(
            answer_once(listener, answer),
            client.command("registry", "promote", &request)
        )
    })
}

#[test]
fn a_command_is_posted_and_its_message_is_returned() {
    let (request, result) = promote_against(http("200 OK", r#"{"ok":true,"message":"done"}"#));
    assert!(
        request.starts_with("POST /v1/groups/registry/promote HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.ends_with("\r\n\r\n{\"force\":[\"behind\"]}"),
        "{request}"
    );
    assert_eq!(result.expect("done"), "done");
}

#[test]
fn a_refused_command_fails_in_the_words_of_the_site() {
    let body = r#"{"ok":false,"message":"chelles answers as primary"}"#;
    let (_, result) = promote_against(http("409 Conflict", body));
    let error = result.unwrap_err();
    assert!(matches!(error, ClientError::Refused(_)));
    assert_eq!(error.to_string(), "chelles answers as primary");
}

#[test]
fn an_answer_that_is_not_ours_is_told_apart() {
    let (_, result) = promote_against(http("200 OK", "<html>"));
    assert!(
        matches!(result, Err(ClientError::Strange { .. })),
        "{result:?}"
    );
    let (_, result) = promote_against("SSH-2.0\r\n\r\n".to_owned());
    assert!(
        matches!(result, Err(ClientError::Http { .. })),
        "{result:?}"
    );
}

fn status_at(socket: PathBuf) -> ClientError {
    let status = terminal::runtime()
        .expect("a runtime")
        .block_on(async { Client::new(socket).site_status().await });
    status.expect_err("nobody is there")
}

#[test]
fn a_missing_socket_and_a_left_over_one_are_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("control.sock");
    let error = status_at(socket.clone());
    assert!(matches!(error, ClientError::NoSocket(_)), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("is `doublure serve` running? Looked at "),
        "{error}"
    );
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    let error = status_at(socket);
    assert!(matches!(error, ClientError::NobodyListens(_)), "{error}");
}

#[test]
fn help_of_help_is_help() {
    let words = |line: &str| {
        let words = line.split_whitespace().map(OsString::from);
        typed(words).len()
    };
    assert_eq!(words("doublure help --help"), 2);
    assert_eq!(words("doublure help status -h"), 3);
    assert_eq!(words("doublure status --help"), 3);
}
