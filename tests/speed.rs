//! The least that speed must be: as fast as what QEMU offers for the same job, on the same files in the same run.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use support::site::{PATIENCE, free_address};
use support::tools::{Running, command, eventually};
use support::{MIB, Pair, Setup, fio, need, run};

const SIZE: u64 = 256 * MIB;

/// 4 KiB random writes at depth 32, after everything was written once.
const JOB: &str = "[global]\nioengine=nbd\nuri=${URI}\niodepth=32\nsize=256M\n\
    [fill]\nrw=write\nbs=1M\n\
    [measure]\nstonewall\nrw=randwrite\nbs=4k\ntime_based=1\nruntime=6\nramp_time=1\nnorandommap=1\n";

fn iops(dir: &Path, uri: &str) -> f64 {
    let text = run(&mut fio::job(dir, uri, JOB, &["--output-format=json"]));
    // fio prints that it connected before its report.
    let report: serde_json::Value =
        serde_json::from_str(&text[text.find('{').expect("a report")..]).unwrap();
    report["jobs"].as_array().unwrap().last().unwrap()["write"]["iops"]
        .as_f64()
        .unwrap()
}

/// Two `qemu-storage-daemon`s of which the first mirrors each write to the second before it answers.
struct Qemu {
    uri: String,
    _daemons: [Running; 2],
}

/// A conversation with a daemon about its block devices.
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn connect(socket: &Path) -> Qmp {
        eventually("qemu-storage-daemon listens", PATIENCE, || {
            UnixStream::connect(socket).is_ok()
        });
        let mut qmp = Qmp(BufReader::new(UnixStream::connect(socket).unwrap()));
        qmp.next(|message| message.get("QMP").is_some());
        qmp.ask(r#"{"execute": "qmp_capabilities"}"#);
        qmp
    }

    fn next(&mut self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        loop {
            let mut line = String::new();
            assert!(
                self.0.read_line(&mut line).unwrap() > 0,
                "qemu-storage-daemon closed the conversation"
            );
            let message: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(message.get("error").is_none(), "{message}");
            if wanted(&message) {
                return message;
            }
        }
    }

    fn ask(&mut self, command: &str) {
        writeln!(self.0.get_mut(), "{command}").unwrap();
        self.next(|message| message.get("return").is_some());
    }
}

impl Qemu {
    fn start(dir: &Path, near: &Path, far: &Path) -> Qemu {
        let address = free_address();
        let (host, port) = (address.ip(), address.port());
        let (control, served) = (dir.join("qmp"), dir.join("served"));
        let daemon = |words: &[String]| Running::start(command("qemu-storage-daemon").args(words));
        let file = |path: &Path| {
            format!(
                "driver=file,node-name=disk,filename={},cache.direct=on,discard=unmap",
                path.display()
            )
        };
        let second = daemon(&[
            "--blockdev".into(),
            file(far),
            "--nbd-server".into(),
            format!("addr.type=inet,addr.host={host},addr.port={port}"),
            "--export".into(),
            "type=nbd,id=e,node-name=disk,name=far,writable=on".into(),
        ]);
        eventually("the second listens", PATIENCE, || {
            std::net::TcpStream::connect(address).is_ok()
        });
        let first = daemon(&[
            "--chardev".into(),
            format!(
                "socket,id=qmp,path={},server=on,wait=off",
                control.display()
            ),
            "--monitor".into(),
            "chardev=qmp".into(),
            "--blockdev".into(),
            file(near),
            "--blockdev".into(),
            format!(
                "driver=nbd,node-name=far,export=far,server.type=inet,server.host={host},server.port={port}"
            ),
            "--nbd-server".into(),
            format!("addr.type=unix,addr.path={}", served.display()),
            "--export".into(),
            "type=nbd,id=e,node-name=disk,name=demo,writable=on".into(),
        ]);
        let mut qmp = Qmp::connect(&control);
        qmp.ask(
            r#"{"execute": "blockdev-mirror", "arguments": {"job-id": "mirror", "device": "disk", "target": "far",
               "sync": "full", "copy-mode": "write-blocking"}}"#
                .replace('\n', " ")
                .as_str(),
        );
        qmp.next(|message| message["event"] == "BLOCK_JOB_READY");
        Qemu {
            uri: format!("nbd+unix:///demo?socket={}", served.display()),
            _daemons: [first, second],
        }
    }
}

#[test]
fn small_random_writes_in_sync_mode_are_at_least_as_fast_as_qemu_mirroring_them() {
    need(&["fio", "qemu-storage-daemon"]);
    let mut pair = Pair::start(Setup {
        size: SIZE,
        journal: "512MiB",
        ..Setup::default()
    });
    let ours = iops(pair.scratch(), &pair.clichy.uri());
    pair.stop_and_compare();
    let theirs = {
        let qemu = Qemu::start(pair.scratch(), &pair.clichy.home(), &pair.chelles.home());
        iops(pair.scratch(), &qemu.uri)
    };
    println!(
        "4 KiB random writes at depth 32: doublure {ours:.0}/s, qemu-storage-daemon {theirs:.0}/s, ratio {:.1}",
        ours / theirs
    );
    assert!(
        ours >= theirs,
        "{ours:.0} writes a second against QEMU's {theirs:.0}"
    );
}
