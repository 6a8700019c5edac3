//! The checker itself is checked: it passes honest servers and catches every kind of liar.

mod support;

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use support::nbd::{
    CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, MAGIC_INIT, MAGIC_OPTION,
    MAGIC_OPTION_REPLY, MAGIC_REQUEST, MAGIC_SIMPLE, OPT_GO,
};
use support::record::{BLOCK, Content, Record, fill};
use support::tools::{Running, command, eventually};
use support::{Checker, Dialect, MIB, Plan, Target, Verdict, need};

const SIZE: u64 = 4 * MIB;

/// How a server lies.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Lie {
    None,
    /// Acknowledges one write in 50 and forgets it.
    LosesWrites,
    /// Acknowledges trims and zeroes nothing.
    KeepsTrimmed,
    /// Writes all but the last 100 bytes of one request in 50.
    Tears,
    /// Puts one write in 50 a block too far.
    Misplaces,
    /// Loses the last acknowledged write when it is killed.
    LosesTheLastAtDeath,
}

/// A tiny server in memory.
struct Liar {
    path: std::path::PathBuf,
    disk: Arc<Disk>,
    _dir: tempfile::TempDir,
}

struct Disk {
    lie: Lie,
    count: AtomicU64,
    state: Mutex<State>,
}

struct State {
    data: Vec<u8>,
    /// The last write: where, and what was there before.
    last: Option<(usize, Vec<u8>)>,
    open: Vec<UnixStream>,
}

impl Liar {
    fn start(lie: Lie) -> Liar {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd");
        let listener = UnixListener::bind(&path).unwrap();
        let state = State {
            data: vec![0; SIZE as usize],
            last: None,
            open: Vec::new(),
        };
        let disk = Arc::new(Disk {
            lie,
            count: AtomicU64::new(0),
            state: Mutex::new(state),
        });
        let accepting = Arc::clone(&disk);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let disk = Arc::clone(&accepting);
                disk.state
                    .lock()
                    .unwrap()
                    .open
                    .push(stream.try_clone().unwrap());
                thread::spawn(move || serve(stream, &disk));
            }
        });
        Liar {
            path,
            disk,
            _dir: dir,
        }
    }

    fn target(&self) -> Target {
        Target::Unix(self.path.clone())
    }

    /// Drops every connection, as a killed server does.
    fn die(&self) {
        let mut state = self.disk.state.lock().unwrap();
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if self.disk.lie == Lie::LosesTheLastAtDeath
            && let Some((at, before)) = state.last.take()
        {
            state.data[at..at + before.len()].copy_from_slice(&before);
        }
    }
}

fn serve(mut stream: UnixStream, disk: &Disk) -> io::Result<()> {
    stream.write_all(
        &[
            &MAGIC_INIT.to_be_bytes()[..],
            &MAGIC_OPTION.to_be_bytes(),
            &[0, 3],
        ]
        .concat(),
    )?;
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    let len = u32::from_be_bytes(head[16..20].try_into().unwrap());
    stream.read_exact(&mut vec![0; len as usize])?;
    let reply = |kind: u32, data: &[u8]| {
        let len = data.len() as u32;
        [
            &MAGIC_OPTION_REPLY.to_be_bytes()[..],
            &OPT_GO.to_be_bytes(),
            &kind.to_be_bytes(),
            &len.to_be_bytes(),
            data,
        ]
        .concat()
    };
    stream.write_all(&reply(
        3,
        &[&[0, 0][..], &SIZE.to_be_bytes(), &[1, 0x6d]].concat(),
    ))?;
    stream.write_all(&reply(1, &[]))?;
    loop {
        let mut head = [0; 28];
        stream.read_exact(&mut head)?;
        assert_eq!(head[..4], MAGIC_REQUEST.to_be_bytes());
        let command = u16::from_be_bytes([head[6], head[7]]);
        let offset = u64::from_be_bytes(head[16..24].try_into().unwrap()) as usize;
        let len = u32::from_be_bytes(head[24..28].try_into().unwrap()) as usize;
        let mut content = vec![0; len];
        if command == CMD_WRITE {
            stream.read_exact(&mut content)?;
        }
        let mut state = disk.state.lock().unwrap();
        match command {
            CMD_READ => content.copy_from_slice(&state.data[offset..offset + len]),
            CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES => {
                change(disk, &mut state, command, offset, content.as_slice());
            }
            CMD_FLUSH => {}
            _ => return Ok(()),
        }
        let mut answer = [&MAGIC_SIMPLE.to_be_bytes()[..], &[0; 4], &head[8..16]].concat();
        if command == CMD_READ {
            answer.extend(&content);
        }
        stream.write_all(&answer)?;
    }
}

fn change(disk: &Disk, state: &mut State, command: u16, offset: usize, content: &[u8]) {
    let unlucky = command == CMD_WRITE && disk.count.fetch_add(1, SeqCst) % 50 == 49;
    let (mut at, mut end) = (offset, offset + content.len());
    match disk.lie {
        Lie::LosesWrites if unlucky => return,
        Lie::KeepsTrimmed if command == CMD_TRIM => return,
        Lie::Tears if unlucky => end -= 100,
        Lie::Misplaces if unlucky && end + BLOCK <= state.data.len() => {
            at += BLOCK;
            end += BLOCK;
        }
        _ => {}
    }
    state.last = Some((at, state.data[at..end].to_vec()));
    state.data[at..end].copy_from_slice(&content[..end - at]);
}

fn plan(seed: u64) -> Plan {
    Plan {
        dialect: Dialect::Simple,
        longest: 64,
        ..Plan::new(seed, SIZE)
    }
}

/// Runs the checker against a server that is killed five times.
fn meet(lie: Lie) -> (Liar, Verdict) {
    let liar = Liar::start(lie);
    let checker = Checker::start(plan(7), vec![liar.target()]);
    for _ in 0..5 {
        checker.wait_for(800);
        liar.die();
    }
    checker.wait_for(800);
    let verdict = checker.stop();
    (liar, verdict)
}

fn catches(lie: Lie) {
    let (liar, mut verdict) = meet(lie);
    let wrong = verdict.violations.len() + verdict.verify(&liar.target()).unwrap().len();
    assert!(wrong > 0, "{lie:?} went unnoticed");
}

#[test]
fn an_honest_server_passes_although_it_is_killed() {
    let (liar, mut verdict) = meet(Lie::None);
    assert!(verdict.connected > 4, "it reconnected");
    verdict.assert_agrees(&liar.target());
}

#[test]
fn a_lost_write_is_caught() {
    catches(Lie::LosesWrites);
}

#[test]
fn a_trim_that_did_nothing_is_caught() {
    catches(Lie::KeepsTrimmed);
}

#[test]
fn a_torn_write_is_caught() {
    catches(Lie::Tears);
}

#[test]
fn a_misplaced_write_is_caught() {
    catches(Lie::Misplaces);
}

#[test]
fn an_acknowledged_write_lost_at_a_crash_is_caught() {
    // Overlapping writes in flight can excuse the loss of one, so one connection writes one block at a time.
    let liar = Liar::start(Lie::LosesTheLastAtDeath);
    let lonely = Plan {
        connections: 1,
        depth: 1,
        longest: 1,
        ..plan(3)
    };
    let checker = Checker::start(lonely, vec![liar.target()]);
    for _ in 0..20 {
        checker.wait_for(50);
        liar.die();
    }
    let mut verdict = checker.stop();
    let wrong = verdict.violations.len() + verdict.verify(&liar.target()).unwrap().len();
    assert!(wrong > 0, "a lost acknowledged write went unnoticed");
}

#[test]
fn a_server_written_by_others_passes_over_structured_replies() {
    need(&["nbdkit"]);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd");
    let mut nbdkit = command("nbdkit");
    nbdkit
        .arg("--foreground")
        .arg("--unix")
        .arg(&socket)
        .args(["memory", "4M"]);
    let _nbdkit = Running::start(&mut nbdkit);
    eventually("nbdkit listens", support::site::PATIENCE, || {
        socket.exists()
    });
    let target = Target::Unix(socket);
    let checker = Checker::start(
        Plan {
            longest: 64,
            ..Plan::new(11, SIZE)
        },
        vec![target.clone()],
    );
    checker.wait_for(5000);
    checker.stop().assert_agrees(&target);
}

fn written(sequence: u64) -> Content {
    Content::Written {
        connection: 0,
        sequence,
    }
}

fn block(sequence: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK];
    fill(&mut data, 0, 0, sequence);
    data
}

fn allowed(record: &Record, data: &[u8]) -> bool {
    record.compare(0, data).is_empty()
}

#[test]
fn of_two_writes_in_flight_either_may_stand_but_not_what_was_there_before() {
    let mut record = Record::new(1);
    let (a, b) = (
        record.begin(written(1), 0, 1),
        record.begin(written(2), 0, 1),
    );
    record.acknowledged(b);
    record.acknowledged(a);
    assert!(allowed(&record, &block(1)) && allowed(&record, &block(2)));
    assert!(!allowed(&record, &vec![0; BLOCK]));
}

#[test]
fn an_unacknowledged_write_may_stand_or_not_until_a_later_one_is_acknowledged() {
    let mut record = Record::new(1);
    let a = record.begin(written(1), 0, 1);
    assert!(allowed(&record, &block(1)) && allowed(&record, &vec![0; BLOCK]));
    record.settled(a);
    assert!(allowed(&record, &block(1)) && allowed(&record, &vec![0; BLOCK]));
    let b = record.begin(written(2), 0, 1);
    record.acknowledged(b);
    assert!(allowed(&record, &block(2)));
    assert!(!allowed(&record, &block(1)) && !allowed(&record, &vec![0; BLOCK]));
}

#[test]
fn what_a_read_has_shown_may_not_be_undone_although_it_was_never_acknowledged() {
    let mut record = Record::new(1);
    record.begin(written(1), 0, 1);
    let reading = record.begin_read(0, 1);
    assert!(record.finish_read(&reading, &block(1)).is_empty());
    assert!(
        !allowed(&record, &vec![0; BLOCK]),
        "the failover undid what a read had shown"
    );
}

#[test]
fn a_read_may_return_what_was_true_at_any_moment_while_it_ran() {
    let mut record = Record::new(1);
    let reading = record.begin_read(0, 1);
    for sequence in 1..4 {
        let write = record.begin(written(sequence), 0, 1);
        record.acknowledged(write);
    }
    assert!(record.finish_read(&reading, &block(2)).is_empty());
    let late = record.begin_read(0, 1);
    assert_eq!(record.finish_read(&late, &block(2)).len(), 1);
}

#[test]
fn a_refused_write_must_not_be_there() {
    let mut record = Record::new(1);
    let a = record.begin(written(1), 0, 1);
    record.refused(a);
    assert!(!allowed(&record, &block(1)));
}
