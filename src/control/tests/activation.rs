//! A site under a service manager: sockets passed in, notifications out, few descriptors. The environment belongs
//! to a process, so each of these sites is one: this test program again, running only `site_as_a_child`.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::clients::{attach, welcoming};
use super::*;
use crate::control::site::{Opening, Site};

const DIR: &str = "DOUBLURE_TEST_DIR";
const SILENT: &str = "DOUBLURE_TEST_SILENT_SHARD";
const DESCRIPTORS: u64 = 64;

#[test]
#[ignore = "a process that the other tests of this file start"]
fn site_as_a_child() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let limit = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(DESCRIPTORS),
    };
    rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
    let nbd = Listener::inherited().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(child(Path::new(&dir), nbd));
}

async fn child(dir: &Path, nbd: Vec<Listener>) {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let (seen, _clients) = mpsc::unbounded_channel();
    let shard = if std::env::var_os(SILENT).is_some() {
        FakeShard::silent()
    } else {
        welcoming(7, seen)
    };
    let shards = Shards::new(
        "clichy",
        vec![member("registry", 0)],
        vec![shard.post],
        Vec::new(),
        Vec::new(),
    );
    let mut site = Site::new(shards, vec![shard.events]);
    let listeners = Listeners {
        nbd,
        link: None,
        control: Listener::bind(&format!("unix:{}", dir.join("control.sock").display())).unwrap(),
        http: None,
    };
    let (opened, done) = oneshot::channel();
    opened.send(Ok(())).unwrap();
    let opening = Opening {
        group: "registry".to_owned(),
        done,
    };
    let exports = FromShard::Exports {
        group: "registry".to_owned(),
        exports: open_exports("registry"),
    };
    shard.voice.upgrade().unwrap().send(exports).unwrap();
    tokio::select! {
        ended = site.live(listeners, vec![opening]) => panic!("{ended:?}"),
        _ = terminate.recv() => {}
    }
    site.stop(Duration::from_secs(30)).await.unwrap();
}

/// Starts the child with this socket as its descriptor 0.
fn start(dir: &Path, socket: TcpListener, environment: &[(&str, &str)]) -> Child {
    Process::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "control::tests::activation::site_as_a_child",
        ])
        .env(DIR, dir)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDS_FIRST_FD", "0")
        .env("LISTEN_FDNAMES", "nbd")
        .envs(environment.iter().copied())
        .stdin(std::os::fd::OwnedFd::from(socket))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn stop(mut child: Child) {
    let pid = Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn clients_come_in_through_an_inherited_socket_even_when_descriptors_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut silent = Vec::new();
    for _ in 0..2 * DESCRIPTORS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let child = start(dir.path(), socket, &[]);
    let client = TcpStream::connect(address).await.unwrap();
    assert_eq!(attach(client, "registry-data").await, 7);
    drop(silent);
    stop(child);
}

/// The next notification that starts like this; none of those before it may start like `never`.
fn wait_for(manager: &UnixDatagram, wanted: &str, never: &str) -> String {
    let mut buf = [0; 4096];
    loop {
        let len = manager.recv(&mut buf).unwrap();
        let text = std::str::from_utf8(&buf[..len]).unwrap().trim_end();
        assert!(!text.starts_with(never), "{text}");
        if text.starts_with(wanted) {
            return text.to_owned();
        }
    }
}

/// A child whose service manager is the socket returned with it, with a watchdog of 200 ms.
fn start_managed(dir: &Path, silent: bool) -> (Child, UnixDatagram) {
    let path = dir.join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_mins(1)))
        .unwrap();
    let mut environment = vec![
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "200000"),
    ];
    if silent {
        environment.push((SILENT, "1"));
    }
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    (start(dir, socket, &environment), manager)
}

#[test]
fn the_service_manager_hears_ready_a_summary_heartbeats_and_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (child, manager) = start_managed(dir.path(), false);
    wait_for(&manager, "READY=1", "STATUS");
    wait_for(&manager, "WATCHDOG=1", "STOPPING");
    let status = wait_for(&manager, "STATUS=", "STOPPING");
    assert_eq!(status, "STATUS=registry: primary serving, chelles in_sync");
    wait_for(&manager, "WATCHDOG=1", "STATUS"); // said again only when it changes
    stop(child);
    wait_for(&manager, "STOPPING=1", "READY");
}

#[test]
fn a_shard_that_hangs_gets_no_heartbeat_for_its_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let (child, manager) = start_managed(dir.path(), true);
    wait_for(&manager, "READY=1", "WATCHDOG");
    let status = wait_for(&manager, "STATUS=", "WATCHDOG");
    assert!(status.contains("do not answer: [0]"), "{status}");
    stop(child);
}
