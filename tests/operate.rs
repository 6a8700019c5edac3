//! What an operator does and sees: status, promotion and its refusals, demotion, switchover, wrong configurations,
//! `doublure try`.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use doublure::base::Role;
use doublure::status::{CommandAnswer, GroupState, PeerState, SiteStatus};
use support::site::program;
use support::tools::{command, eventually, said};
use support::{Checker, Client, Dialect, Dice, Pair, Plan, Setup, Site, need, run};

fn pair() -> Pair {
    Pair::start(Setup {
        timeout: "2s",
        ..Setup::default()
    })
}

fn attach(site: &Site) -> std::io::Result<Client> {
    Client::attach(&site.target(), "demo", Dialect::Structured)
}

#[test]
fn status_as_json_has_the_documented_schema_and_exit_code_0_when_nothing_is_missing() {
    let pair = pair();
    attach(&pair.clichy)
        .unwrap()
        .write(0, 0, &[1; 8192])
        .unwrap();
    for (site, role, state) in [
        (&pair.clichy, Role::Primary, GroupState::Serving),
        (&pair.chelles, Role::Mirror, GroupState::Following),
    ] {
        let text = site.order(&["status", "--json"]);
        let status: SiteStatus =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(status.site, site.name);
        let group = &status.groups[0];
        assert_eq!(
            (group.role, group.state, group.healthy),
            (role, state, true),
            "{text}"
        );
        assert_eq!(group.volumes[0].size_bytes, pair.setup.size);
        // The schema is exactly what the types say: nothing more, nothing less.
        let raw: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_value(&status).unwrap(), raw);
        assert_eq!(site.cli(&["status"]).status.code(), Some(0));
        assert_eq!(site.cli(&["status", "demo"]).status.code(), Some(0));
    }
    let group = pair.clichy.wait_until("the mirror confirms", |g| {
        g.peers[0].durable_lsn == g.commit_lsn
    });
    assert_eq!(
        (group.peers[0].site.as_str(), group.peers[0].state),
        ("chelles", PeerState::InSync)
    );
    assert!(
        group.totals.writes >= 1 && group.totals.write_bytes >= 8192,
        "{:?}",
        group.totals
    );
}

#[test]
fn status_tells_a_person_what_is_missing_and_ends_with_3() {
    let mut pair = pair();
    let fine = said(&pair.clichy.cli(&["status"]));
    for word in ["demo", "primary", "chelles", "in sync"] {
        assert!(
            fine.to_lowercase().contains(word),
            "{word:?} is missing from:\n{fine}"
        );
    }
    assert!(!fine.contains('\u{1b}'), "no colours unless on a terminal");
    pair.chelles.kill();
    pair.clichy.wait_state(GroupState::Alone);
    let output = pair.clichy.cli(&["status"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(
        said(&output).to_lowercase().contains("alone"),
        "{}",
        said(&output)
    );
    assert_eq!(
        pair.clichy.cli(&["status", "--json"]).status.code(),
        Some(3)
    );
    pair.chelles.start();
    pair.wait_in_sync();
    assert_eq!(pair.clichy.cli(&["status"]).status.code(), Some(0));
}

#[test]
fn status_watch_shows_it_again_until_it_is_stopped() {
    let pair = pair();
    let mut watch = command(program().to_str().unwrap());
    watch
        .args(["status", "--json", "--watch", "-s"])
        .arg(pair.clichy.dir.join("control"))
        .stdout(Stdio::piped());
    let mut watch = support::tools::Running::start(&mut watch);
    let lines = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    for line in lines.take(3) {
        let status: SiteStatus = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(status.site, "clichy");
    }
}

#[test]
fn commands_end_with_1_when_they_fail_and_2_when_they_make_no_sense() {
    let mut pair = pair();
    assert_eq!(
        pair.clichy.cli(&["status", "nobody"]).status.code(),
        Some(1)
    );
    assert_eq!(
        pair.clichy.cli(&["promote", "nobody"]).status.code(),
        Some(1)
    );
    assert_eq!(pair.clichy.cli(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(pair.clichy.cli(&["promote"]).status.code(), Some(2));
    assert_eq!(
        pair.clichy
            .cli(&["promote", "demo", "--force", "everything"])
            .status
            .code(),
        Some(2)
    );
    pair.clichy.stop();
    let gone = pair.clichy.cli(&["status"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(
        said(&gone).contains("control"),
        "it names the socket: {}",
        said(&gone)
    );
}

fn get(site: &Site, path: &str) -> String {
    let mut stream = TcpStream::connect(site.http).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: clichy\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn metric(page: &str, name: &str) -> Option<f64> {
    page.lines()
        .find(|line| line.starts_with(name))
        .and_then(|line| line.rsplit(' ').next()?.parse().ok())
}

#[test]
fn metrics_name_their_units_and_keep_in_flight_behind_inconsistent_and_frozen_apart() {
    let mut pair = pair();
    attach(&pair.clichy)
        .unwrap()
        .write(0, 0, &[1; 8192])
        .unwrap();
    let page = get(&pair.clichy, "/metrics");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    for (name, value) in [
        ("doublure_group_in_flight_requests", 0.0),
        ("doublure_group_inconsistent", 0.0),
        ("doublure_group_frozen", 0.0),
        ("doublure_group_alone", 0.0),
        ("doublure_group_healthy", 1.0),
        ("doublure_group_write_bytes_total", 8192.0),
        ("doublure_peer_in_sync", 1.0),
    ] {
        assert_eq!(metric(&page, name), Some(value), "{name}:\n{page}");
    }
    assert!(
        metric(&page, "doublure_peer_behind_bytes").is_some(),
        "{page}"
    );
    pair.chelles.kill();
    pair.clichy.wait_state(GroupState::Alone);
    assert_eq!(
        metric(&get(&pair.clichy, "/metrics"), "doublure_group_alone"),
        Some(1.0)
    );
    assert!(get(&pair.clichy, "/nothing").starts_with("HTTP/1.1 404"));
}

#[test]
fn a_mirror_refuses_clients_and_names_the_primary() {
    let pair = pair();
    let refusal = attach(&pair.chelles)
        .err()
        .expect("a mirror exports nothing");
    assert_eq!(refusal.kind(), ErrorKind::PermissionDenied, "{refusal}");
    assert!(refusal.to_string().contains("clichy"), "{refusal}");
}

#[test]
fn a_promotion_is_refused_while_the_primary_answers_whatever_is_forced() {
    let pair = pair();
    for force in [
        &[][..],
        &["--force", "peer-unreachable"],
        &["--force", "behind"],
        &["--force", "inconsistent"],
    ] {
        let said = pair
            .chelles
            .refused(&[&["promote", "demo"], force].concat());
        assert!(said.contains("clichy"), "{said}");
    }
    // Even with the link cut by hand the primary can be asked.
    pair.chelles.order(&["disconnect", "demo"]);
    pair.chelles
        .refused(&["promote", "demo", "--force", "peer-unreachable"]);
    pair.chelles.order(&["connect", "demo"]);
    pair.wait_in_sync();
    assert_eq!(pair.chelles.group().role, Role::Mirror);
}

#[test]
fn a_promotion_without_the_peer_says_what_may_be_lost_and_wants_to_be_told_so() {
    let mut pair = pair();
    attach(&pair.clichy)
        .unwrap()
        .write(0, 0, b"acknowledged")
        .unwrap();
    pair.clichy.kill();
    pair.chelles.wait_state(GroupState::Disconnected);
    let said = pair.chelles.refused(&["promote", "demo"]);
    assert!(
        said.contains("clichy") && said.contains("--force peer-unreachable"),
        "{said}"
    );
    pair.chelles
        .refused(&["promote", "demo", "--force", "behind"]);
    pair.chelles
        .order(&["promote", "demo", "--force", "peer-unreachable"]);
    assert_eq!(
        attach(&pair.chelles).unwrap().read(0, 12).unwrap(),
        b"acknowledged"
    );
    let group = pair.chelles.wait_state(GroupState::Alone);
    assert_eq!(group.role, Role::Primary);
    assert_eq!(group.epoch.unwrap().site, "chelles");
}

#[test]
fn an_empty_mirror_is_never_promoted() {
    let mut pair = Pair::new(Setup {
        timeout: "1s",
        ..Setup::default()
    });
    pair.chelles.start();
    let said = pair.chelles.refused(&[
        "promote",
        "demo",
        "--force",
        "peer-unreachable,behind,inconsistent",
    ]);
    assert!(!said.is_empty());
    assert!(attach(&pair.chelles).is_err());
}

#[test]
fn a_demoted_primary_serves_nobody_and_either_site_may_be_promoted_afterwards() {
    let mut pair = pair();
    attach(&pair.clichy)
        .unwrap()
        .write(0, 4096, b"before")
        .unwrap();
    pair.clichy.order(&["demote", "demo"]);
    let group = pair
        .clichy
        .wait_until("a mirror", |g| g.role == Role::Mirror);
    assert!(
        !group.healthy || group.state == GroupState::Following,
        "{group:?}"
    );
    assert!(
        attach(&pair.clichy).is_err() && attach(&pair.chelles).is_err(),
        "nobody is primary"
    );
    pair.chelles.order(&["promote", "demo"]);
    pair.chelles.wait_in_sync();
    assert_eq!(
        attach(&pair.chelles).unwrap().read(4096, 6).unwrap(),
        b"before"
    );
    pair.chelles.order(&["demote", "demo"]);
    pair.clichy.order(&["promote", "demo"]);
    pair.clichy.wait_in_sync();
    pair.stop_and_compare();
}

#[test]
fn a_demotion_survives_a_restart() {
    let mut pair = pair();
    pair.clichy.order(&["demote", "demo"]);
    pair.clichy
        .wait_until("a mirror", |g| g.role == Role::Mirror);
    pair.stop_both();
    pair.clichy.start();
    pair.chelles.start();
    let group = pair.clichy.group();
    assert_eq!(group.role, Role::Mirror);
    // Roles change hands, files do not: that is told, and no alarm.
    assert_eq!(group.configured_role, Some(Role::Primary));
    assert!(group.disagreements.is_empty(), "{:?}", group.disagreements);
    assert!(attach(&pair.clichy).is_err());
}

#[test]
fn a_switchover_under_load_loses_nothing_there_and_back() {
    let mut pair = pair();
    let checker = Checker::start(Plan::new(61, pair.setup.size), pair.targets());
    for _ in 0..6 {
        checker.wait_for(300);
        let from = pair.primary().name;
        pair.primary().order(&["switchover", "demo"]);
        pair.wait_in_sync();
        assert_ne!(pair.primary().name, from);
    }
    checker.wait_for(300);
    let mut verdict = checker.stop();
    verdict.assert_agrees(&pair.primary().target());
    pair.stop_and_compare();
    verdict.assert_image_agrees(&pair.clichy.home());
}

#[test]
fn a_switchover_interrupted_by_a_kill_at_any_step_leaves_one_primary_or_none_and_never_two() {
    let mut pair = pair();
    let mut dice = Dice::new(62);
    let checker = Checker::start(Plan::new(62, pair.setup.size), pair.targets());
    for round in 0..10 {
        checker.wait_for(100);
        // No event marks its steps; over the rounds the kill falls before, into and after all of them.
        let delay = Duration::from_micros(dice.below(12_000));
        let clichy_leads = pair.primary().name == "clichy";
        let (old, new) = if clichy_leads {
            (&mut pair.clichy, &mut pair.chelles)
        } else {
            (&mut pair.chelles, &mut pair.clichy)
        };
        let victim = if round % 2 == 0 { &*old } else { &*new };
        std::thread::scope(|scope| {
            let ordering = scope.spawn(|| old.cli(&["switchover", "demo"]));
            std::thread::sleep(delay);
            victim.signal(rustix::process::Signal::KILL);
            ordering.join().unwrap();
        });
        let serving = [&*old, &*new]
            .iter()
            .filter(|site| attach(site).is_ok())
            .count();
        assert!(serving <= 1, "both sites serve");
        if round % 2 == 0 {
            old.crash();
        } else {
            new.crash();
        }
        pair.wait_in_sync();
    }
    checker.wait_for(100);
    let mut verdict = checker.stop();
    verdict.assert_agrees(&pair.primary().target());
    pair.stop_and_compare();
    verdict.assert_image_agrees(&pair.chelles.home());
}

#[test]
fn a_switchover_without_a_peer_in_sync_is_refused_and_the_primary_goes_on() {
    let mut pair = pair();
    pair.chelles.kill();
    pair.clichy.wait_state(GroupState::Alone);
    let said = pair.clichy.refused(&["switchover", "demo"]);
    assert!(said.contains("chelles"), "{said}");
    attach(&pair.clichy)
        .unwrap()
        .write(0, 0, b"still here")
        .unwrap();
    assert!(!pair.clichy.refused(&["switchover", "nobody"]).is_empty());
}

#[test]
fn a_frozen_primary_that_slept_through_a_promotion_acknowledges_nothing_more_and_follows_by_itself()
{
    let mut pair = Pair::start(Setup {
        timeout: "1s",
        on_peer_loss: "freeze",
        ..Setup::default()
    });
    let checker = Checker::start(Plan::new(63, pair.setup.size), pair.targets());
    checker.wait_for(300);
    pair.clichy.signal(rustix::process::Signal::STOP);
    pair.chelles.wait_state(GroupState::Disconnected);
    pair.chelles
        .order(&["promote", "demo", "--force", "peer-unreachable"]);
    pair.clichy.signal(rustix::process::Signal::CONT);
    pair.chelles.wait_in_sync();
    pair.clichy.wait_state(GroupState::Following);
    checker.wait_for(100);
    // What it had acknowledged after its time would be missing on both now.
    let mut verdict = checker.stop();
    verdict.assert_agrees(&pair.chelles.target());
    pair.stop_and_compare();
}

#[test]
fn two_primaries_by_configuration_refuse_each_other_by_name() {
    let mut pair = Pair::new(Setup {
        timeout: "1s",
        ..Setup::default()
    });
    let file = fs::read_to_string(pair.chelles.config())
        .unwrap()
        .replace("role = \"mirror\"", "role = \"primary\"");
    fs::write(pair.chelles.config(), file).unwrap();
    pair.chelles.start();
    pair.clichy.start();
    for site in [&pair.clichy, &pair.chelles] {
        let group = site.wait_until("refused", |g| g.peers[0].state == PeerState::Refused);
        assert!(!group.healthy);
        assert!(!group.peers[0].detail.is_empty(), "it says why");
        assert_eq!(site.cli(&["status"]).status.code(), Some(3));
    }
}

#[test]
fn the_link_cut_by_hand_stays_cut_until_it_is_connected_by_hand() {
    let mut pair = pair();
    pair.clichy.order(&["disconnect", "demo"]);
    let group = pair.clichy.wait_state(GroupState::Alone);
    assert_eq!(group.peers[0].state, PeerState::CutByOperator);
    attach(&pair.clichy).unwrap().write(0, 0, b"alone").unwrap();
    pair.clichy.order(&["connect", "demo"]);
    pair.wait_in_sync();
    pair.stop_and_compare();
}

#[test]
fn the_state_on_disk_beats_the_file_and_the_disagreement_is_reported() {
    let mut pair = pair();
    pair.stop_both();
    let file = fs::read_to_string(pair.clichy.config()).unwrap();
    let changed = file.replace("role = \"primary\"", "role = \"mirror\"");
    let changed = changed.replace("ack = \"sync\"", "ack = \"async\"");
    fs::write(pair.clichy.config(), changed).unwrap();
    pair.start_both();
    let group = pair.clichy.group();
    assert_eq!(group.role, Role::Primary);
    assert_eq!(group.ack, doublure::base::AckMode::Sync);
    assert_eq!(group.configured_role, Some(Role::Mirror));
    assert!(
        group.disagreements.iter().any(|d| d.contains("ack")),
        "{:?}",
        group.disagreements
    );
}

#[test]
fn a_volume_of_the_primary_appears_on_a_mirror_that_was_not_told_of_it() {
    let mut pair = Pair::start(Setup {
        mirror_knows_volume: false,
        ..Setup::default()
    });
    attach(&pair.clichy)
        .unwrap()
        .write(0, 100, b"replicated")
        .unwrap();
    assert_eq!(pair.chelles.group().volumes[0].name, "demo");
    assert_eq!(
        pair.chelles.group().volumes[0].uuid,
        pair.clichy.group().volumes[0].uuid
    );
    pair.stop_and_compare();
}

#[test]
fn a_stop_under_load_keeps_everything_acknowledged_and_the_next_start_is_quick() {
    let mut pair = pair();
    let checker = Checker::start(Plan::new(64, pair.setup.size), pair.targets());
    for _ in 0..3 {
        checker.wait_for(300);
        assert!(pair.clichy.stop().success());
        pair.clichy.start();
        pair.wait_in_sync();
        checker.wait_for(100);
        assert!(pair.chelles.stop().success());
        pair.chelles.start();
        pair.wait_in_sync();
    }
    let mut verdict = checker.stop();
    verdict.assert_agrees(&pair.clichy.target());
    pair.stop_and_compare();
}

#[test]
fn a_full_journal_makes_writers_wait_visibly_and_loses_nothing() {
    let mut pair = Pair::start(Setup {
        journal: "32MiB",
        on_peer_loss: "continue",
        ..Setup::default()
    });
    let plan = Plan {
        connections: 2,
        ..Plan::new(65, pair.setup.size)
    };
    let checker = Checker::start(plan, pair.targets());
    // Several times the journal's size, so that it is full and emptied again and again.
    let journal = 32 << 20;
    pair.clichy
        .wait_until("the journal went round five times", |g| {
            g.totals.journal_bytes > 5 * journal
        });
    let mut verdict = checker.stop();
    verdict.assert_agrees(&pair.clichy.target());
    pair.stop_and_compare();
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused() {
    let mut pair = pair();
    let output = command(program().to_str().unwrap())
        .args(["serve", "-c"])
        .arg(pair.clichy.config())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    attach(&pair.clichy).unwrap().flush().unwrap();
    pair.stop_and_compare();
}

fn check(text: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("site.toml");
    fs::write(&file, text).unwrap();
    let output = command(program().to_str().unwrap())
        .args(["check", "-c"])
        .arg(&file)
        .output()
        .unwrap();
    (output.status.code(), said(&output))
}

#[test]
fn check_accepts_a_good_configuration_and_names_key_line_and_what_is_allowed_in_every_error() {
    let pair = Pair::new(Setup::default());
    let good = fs::read_to_string(pair.clichy.config()).unwrap();
    let (code, text) = check(&good);
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("note:"), "{text}");
    let peers = good.lines().find(|line| line.starts_with("peers")).unwrap();
    let (code, text) = check(&good.replace(peers, ""));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("has no peer"), "{text}");
    let line_of =
        |text: &str, what: &str| text.lines().position(|line| line.contains(what)).unwrap() + 1;
    for (old, new, words) in [
        (
            "ack = \"sync\"",
            "ack = \"fast\"",
            &["ack", "fast", "memsync"][..],
        ),
        (
            "on_peer_loss = \"continue\"",
            "on_peer_loss = \"panic\"",
            &["on_peer_loss", "panic", "freeze"],
        ),
        (
            "timeout = \"5s\"",
            "timeout = \"soon\"",
            &["timeout", "soon"],
        ),
        (
            "journal = \"64MiB\"",
            "journal = \"1MiB\"",
            &["journal", "1MiB", "32MiB"],
        ),
        (
            "role = \"primary\"",
            "role = \"king\"",
            &["role", "king", "mirror"],
        ),
        (
            "timeout = \"5s\"",
            "tiemout = \"5s\"",
            &["tiemout", "timeout"],
        ),
    ] {
        let bad = good.replace(old, new);
        assert_ne!(bad, good);
        let (code, text) = check(&bad);
        assert_eq!(code, Some(1), "{new}: {text}");
        let line = format!(":{}", line_of(&bad, new));
        assert!(
            text.contains(&line),
            "{new}: the line {line} is missing from:\n{text}"
        );
        for word in words {
            assert!(
                text.contains(word),
                "{new}: {word:?} is missing from:\n{text}"
            );
        }
    }
    let several = good.replace("sync", "fast").replace("continue", "panic");
    let (_, text) = check(&several);
    assert!(
        text.contains("fast") && text.contains("panic"),
        "all errors at once:\n{text}"
    );
    let gone = command(program().to_str().unwrap())
        .args(["check", "-c", "/nowhere.toml"])
        .output()
        .unwrap();
    assert_eq!(gone.status.code(), Some(1));
    assert!(said(&gone).contains("/nowhere.toml"), "{}", said(&gone));
}

/// `doublure try`, as a user would run it.
struct Tryout {
    child: Child,
    output: BufReader<ChildStdout>,
    printed: String,
}

impl Tryout {
    fn start(dir: &Path) -> Tryout {
        let mut command = command(program().to_str().unwrap());
        command
            .args(["try", "--dir"])
            .arg(dir)
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Tryout {
            child,
            output,
            printed: String::new(),
        }
    }

    /// The address that it prints when the disk is ready.
    fn uri(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "it ended; it printed:\n{}",
                self.printed
            );
            self.printed.push_str(&line);
            if let Some(uri) = line
                .split_whitespace()
                .find(|word| word.starts_with("nbd+unix:"))
            {
                return uri.to_owned();
            }
        }
    }

    /// Ctrl-C.
    fn interrupt(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.output.read_to_string(&mut self.printed).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}; it printed:\n{}", self.printed);
    }
}

impl Drop for Tryout {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn leftovers(dir: &Path) -> String {
    let needle = dir.display().to_string();
    let processes = run(command("ps").args(["-e", "-o", "pid,stat,args"]));
    processes
        .lines()
        .filter(|l| l.contains(&needle) && !l.contains(" Z"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn try_leads_to_a_working_disk_ends_cleanly_with_ctrl_c_and_has_its_data_at_the_second_run() {
    need(&["qemu-io", "ps"]);
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("try");
    let mut tryout = Tryout::start(&place);
    let uri = tryout.uri();
    run(command("qemu-io").args([
        "-f",
        "raw",
        "-c",
        "write -P 0x5a 1M 1M",
        "-c",
        "flush",
        &uri,
    ]));
    run(command("qemu-io").args(["-f", "raw", "-c", "read -P 0x5a 1M 1M", &uri]));
    tryout.interrupt();
    assert_eq!(leftovers(&place), "", "processes were left behind");

    let mut tryout = Tryout::start(&place);
    let uri = tryout.uri();
    let text = run(command("qemu-io").args([
        "-f",
        "raw",
        "-c",
        "read -P 0x5a 1M 1M",
        "-c",
        "read -P 0 0 1M",
        &uri,
    ]));
    assert!(!text.contains("failed"), "{text}");
    tryout.interrupt();
}

#[test]
fn the_sites_of_a_try_that_was_killed_do_not_stay() {
    need(&["ps"]);
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("try");
    let mut tryout = Tryout::start(&place);
    tryout.uri();
    drop(tryout);
    eventually("its sites are gone", Duration::from_secs(30), || {
        leftovers(&place).is_empty()
    });
}

#[test]
fn the_control_api_answers_in_json_also_when_it_refuses() {
    let pair = pair();
    let mut stream =
        std::os::unix::net::UnixStream::connect(pair.chelles.dir.join("control")).unwrap();
    let body = "{\"force\":[]}";
    write!(
        stream,
        "POST /v1/groups/demo/promote HTTP/1.1\r\nHost: chelles\r\nConnection: close\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 409"), "{head}");
    let answer: CommandAnswer = serde_json::from_str(body).unwrap();
    assert!(
        !answer.ok && answer.message.contains("clichy"),
        "{answer:?}"
    );
}

/// Other bytes at this place of a home, on its medium.
fn rot(home: &Path, offset: u64) {
    let mut file = fs::OpenOptions::new().write(true).open(home).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(b"rotten").unwrap();
    file.sync_all().unwrap();
}

#[test]
fn rot_in_a_home_is_shown_to_be_wrong_and_mended_on_either_site() {
    let mut pair = pair();
    let mut client = attach(&pair.clichy).unwrap();
    client.write(0, 0, &[7; 1 << 20]).unwrap();
    client.flush().unwrap();
    for at_primary in [false, true] {
        for site in [&pair.clichy, &pair.chelles] {
            site.wait_until("all is applied", |g| g.applied_lsn == g.tail_lsn);
        }
        let (site, other) = if at_primary {
            (&pair.clichy, &pair.chelles)
        } else {
            (&pair.chelles, &pair.clichy)
        };
        rot(&site.home(), 300 << 10);
        let found = pair.clichy.cli(&["verify", "demo"]);
        assert_eq!(found.status.code(), Some(3));
        let text = said(&found);
        let wrong = format!("at byte 307,200, 4.0 KiB: wrong on {}", site.name);
        assert!(text.contains(&wrong), "{text}");
        assert_eq!(pair.clichy.cli(&["status"]).status.code(), Some(3));
        other.wait_until("both know of it", |g| !g.healthy);
        let text = pair.clichy.order(&["explain", "demo"]);
        assert!(text.contains("verify demo --repair"), "{text}");

        let text = pair.clichy.order(&["verify", "demo", "--repair"]);
        assert!(text.contains("are the same now"), "{text}");
        assert_eq!(pair.clichy.cli(&["status"]).status.code(), Some(0));
        assert_eq!(client.read(300 << 10, 4096).unwrap(), [7; 4096]);
    }
    let refused = pair
        .clichy
        .refused(&["verify", "demo", "--repair", "--keep", "paris"]);
    assert!(refused.contains("clichy, chelles"), "{refused}");
    // The result outlives a restart, on both sites.
    let ended = pair.clichy.group().last_verify.unwrap().ended_unix_seconds;
    pair.stop_both();
    pair.start_both();
    for site in [&pair.clichy, &pair.chelles] {
        let last = site.group().last_verify.unwrap();
        assert_eq!(
            (last.ended_unix_seconds, last.repaired_bytes),
            (ended, 4096)
        );
    }
    pair.stop_and_compare();
}
