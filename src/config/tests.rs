use std::path::Path;
use std::time::Duration;

use super::{Address, Config, ConfigError};
use crate::base::{AckMode, Compress, OnPeerLoss, Role};

const SITE: &str = r#"
[site]
name = "clichy"
data = "/var/lib/doublure"
nbd  = "unix:/run/doublure/nbd.sock"
link = "0.0.0.0:10810"
"#;

const GROUP: &str = r#"
[[group]]
name  = "registry"
role  = "primary"
peers = [{ site = "chelles", link = "10.0.0.2:10810" }]
"#;

const VOLUME: &str = r#"
[[group.volume]]
name = "registry-data"
size = "10GiB"
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("site.toml")).map_err(|report| report.to_string())
}

fn valid() -> String {
    format!("{SITE}{GROUP}{VOLUME}")
}

/// What is said about the valid configuration after a change; it must be exactly one error.
#[track_caller]
fn only_error(text: &str) -> String {
    let report = Config::parse(text, Path::new("site.toml")).expect_err("an error");
    assert_eq!(report.problems.len(), 1, "{report}");
    report.problems[0].to_string()
}

#[track_caller]
fn replaced(from: &str, to: &str) -> String {
    let text = valid();
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

#[test]
fn the_example_of_the_package_is_fine() {
    let text = include_str!("../../packaging/doublure.toml");
    let config = parse(text).expect("valid");
    assert_eq!(config.site.name, "clichy");
    assert_eq!(config.volume_count(), 1);
}

#[test]
fn every_configuration_in_the_readme_is_fine() {
    let readme = include_str!("../../README.md");
    let mut blocks = readme.split("```toml\n").skip(1).peekable();
    assert!(blocks.peek().is_some());
    for block in blocks {
        let (text, _) = block.split_once("```").expect("a closed block");
        parse(text).expect(text);
    }
}

#[test]
fn what_the_file_says_is_what_the_engine_gets() {
    let text = r#"
[site]
name    = "clichy"
data    = "/var/lib/doublure"
nbd     = ["0.0.0.0:10809", "unix:/run/doublure/nbd.sock"]
link    = "0.0.0.0:10810"
control = "unix:/run/doublure/c.sock"
http    = "127.0.0.1:10811"

[[group]]
name         = "registry"
role         = "mirror"
ack          = "memsync"
compress     = "auto"
journal      = "2GiB"
peers        = [{ site = "chelles", link = "[fd00::2]:10810" }]
on_peer_loss = "freeze"
timeout      = "1500ms"

[[group.volume]]
name = "registry-data"
size = "10GiB"
home = "/dev/vg0/registry"

[[group.volume]]
name = "left to the primary"
"#;
    let config = parse(text).expect("valid");
    let group = config.group("registry").expect("the group");
    let engine = config.engine(group);
    assert_eq!(engine.site, "clichy");
    assert_eq!(engine.group, "registry");
    assert_eq!(engine.role, Role::Mirror);
    assert_eq!(engine.ack, AckMode::Memsync);
    assert_eq!(engine.compress, Compress::Auto);
    assert_eq!(engine.on_peer_loss, OnPeerLoss::Freeze);
    assert_eq!(engine.timeout, Duration::from_millis(1500));
    assert_eq!(engine.journal_bytes, 2 << 30);
    assert_eq!(engine.peers, ["chelles"]);
    assert_eq!(engine.volumes, [("registry-data".to_owned(), 10 << 30)]);

    let paths = config.paths(group);
    assert_eq!(paths.dir, Path::new("/var/lib/doublure/registry"));
    assert_eq!(paths.homes.len(), 1);
    assert_eq!(paths.homes["registry-data"], Path::new("/dev/vg0/registry"));

    assert_eq!(config.site.nbd.len(), 2);
    assert_eq!(config.site.control, Path::new("/run/doublure/c.sock"));
    assert_eq!(
        group.peers[0].link,
        Address::Tcp {
            host: "fd00::2".to_owned(),
            port: 10810
        }
    );
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let config = parse(&valid()).expect("valid");
    assert_eq!(config.site.control, Path::new("/run/doublure/control.sock"));
    assert_eq!(config.site.http, None);
    let group = &config.groups[0];
    assert_eq!(group.ack, AckMode::Sync);
    assert_eq!(group.compress, Compress::Off);
    assert_eq!(group.on_peer_loss, OnPeerLoss::Continue);
    assert_eq!(group.timeout, Duration::from_secs(5));
    assert_eq!(group.journal_bytes, 1 << 30);
}

#[test]
fn a_site_without_groups_is_fine() {
    assert_eq!(parse(SITE).expect("valid").groups, []);
}

#[test]
fn a_file_with_many_mistakes_gets_all_of_them_reported_in_one_go() {
    let text = r#"[site]
name    = ".clichy"
data    = "var/lib/doublure"
ndb     = "0.0.0.0:10809"
control = "/run/doublure/control.sock"
http    = "127.0.0.1"

[[group]]
name    = "registry"
role    = "primry"
ack     = "fast"
journal = "1G"
peers   = [{ site = "chelles", link = "10.0.0.2" }, { site = "melun", lnik = "10.0.0.3:1" }]
timeout = "5"
archive = "1d"

[[group.volume]]
name = "data"
size = "0"

[[group]]
name = "registry"
role = "primary"
on_peer_loss = true

[[group]]
name = "schools"
role = "primary"

[[group.volume]]
name = "data"
size = 1000

[gruop]
name = "taxes"
"#;
    insta::assert_snapshot!(parse(text).unwrap_err());
}

#[test]
fn every_syntax_error_is_reported_with_its_line() {
    let text = "[site]\nname = clichy\ndata = \"/var/lib\"\ndata = \"/srv\"\n[group\n";
    insta::assert_snapshot!(parse(text).unwrap_err());
}

#[test]
fn an_empty_file_lacks_the_site() {
    assert_eq!(
        only_error(""),
        "1: site: missing\n    allowed: a table, [site]"
    );
}

#[test]
fn an_unreadable_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/site.toml")).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }));
    assert_eq!(
        error.to_string(),
        "cannot read /nonexistent/site.toml: No such file or directory (os error 2)"
    );
}

#[test]
fn an_unknown_key_is_an_error_that_guesses_what_was_meant() {
    let error = only_error(&replaced("role ", "time_out = \"5s\"\nrole "));
    assert!(
        error.starts_with("10: group[0].time_out: unknown key; did you mean \"timeout\"?"),
        "{error}"
    );
}

#[test]
fn an_unknown_key_like_no_other_gets_no_guess() {
    let error = only_error(&replaced("role ", "xyzzy = 1\nrole "));
    assert!(
        error.starts_with("10: group[0].xyzzy: unknown key\n"),
        "{error}"
    );
}

#[test]
fn a_missing_key_is_reported_at_its_table() {
    let error = only_error(&replaced("size = \"10GiB\"", ""));
    assert!(
        error.starts_with("13: group[0].volume[0].size: missing"),
        "{error}"
    );
}

#[test]
fn a_list_that_must_name_something_is_not_empty() {
    let error = only_error(&replaced("\"unix:/run/doublure/nbd.sock\"", "[]"));
    assert!(error.contains("site.nbd: found an empty list"), "{error}");
}

#[test]
fn a_wrong_member_of_a_list_is_named_by_its_index() {
    let list = "[\"0.0.0.0:10809\", \"0.0.0.0\"]";
    let error = only_error(&replaced("\"unix:/run/doublure/nbd.sock\"", list));
    assert!(
        error.starts_with("5: site.nbd[1]: found \"0.0.0.0\""),
        "{error}"
    );
}

#[test]
fn a_group_is_written_as_a_list_of_tables() {
    let error = only_error(&format!("{SITE}\n[group]\nname = \"registry\"\n"));
    assert!(
        error.contains("group: found a table\n    allowed: tables, [[group]]"),
        "{error}"
    );
}

#[test]
fn two_listeners_do_not_share_an_address() {
    let error = only_error(&replaced("link = ", "http = \"127.0.0.1:10810\"\nlink = "));
    assert!(
        error.contains("site.http: found \"127.0.0.1:10810\", where site.link listens already"),
        "{error}"
    );
    let error = only_error(&replaced("nbd.sock", "control.sock"));
    assert!(
        error.contains("where site.control listens already"),
        "{error}"
    );
}

#[test]
fn two_groups_do_not_share_a_name() {
    let second = GROUP.to_owned() + &VOLUME.replace("registry-data", "other");
    let error = only_error(&(valid() + &second));
    assert!(
        error.contains("group[1].name: found \"registry\", used already in line 9"),
        "{error}"
    );
}

#[test]
fn two_volumes_of_a_site_do_not_share_a_name_even_in_different_groups() {
    let second = GROUP.replace("\"registry\"", "\"schools\"") + VOLUME;
    let error = only_error(&(valid() + &second));
    assert!(
        error.contains("group[1].volume[0].name: found \"registry-data\", used already in line 14"),
        "{error}"
    );
}

#[test]
fn there_is_one_mirror_in_this_release() {
    let two = "[{ site = \"chelles\", link = \"10.0.0.2:1\" }, { site = \"melun\", link = \"10.0.0.3:1\" }]";
    let error = only_error(&replaced(
        "[{ site = \"chelles\", link = \"10.0.0.2:10810\" }]",
        two,
    ));
    assert!(
        error.contains("group[0].peers[1]: a list of 2 peers"),
        "{error}"
    );
    assert!(error.contains("one mirror per group"), "{error}");
}

#[test]
fn a_site_is_not_its_own_peer() {
    let error = only_error(&replaced("\"chelles\"", "\"clichy\""));
    assert!(
        error.contains("peers[0].site: found \"clichy\", this site's own name"),
        "{error}"
    );
    let error = only_error(&replaced("10.0.0.2:10810", "0.0.0.0:10810"));
    assert!(
        error.contains("peers[0].link: found \"0.0.0.0:10810\", this site's own link"),
        "{error}"
    );
}

#[test]
fn a_peer_needs_a_link_to_connect_to() {
    let error = only_error(&replaced("link = \"0.0.0.0:10810\"", ""));
    assert!(
        error.contains("peers[0]: a peer, but site.link is missing"),
        "{error}"
    );
}

#[test]
fn a_primary_has_a_volume() {
    let error = only_error(&format!("{SITE}{GROUP}"));
    assert!(
        error.contains("group[0]: a primary without a volume"),
        "{error}"
    );
}

#[test]
fn a_mirror_has_a_peer_and_leaves_volumes_and_sizes_to_it() {
    let mirror = GROUP.replace("primary", "mirror");
    assert!(parse(&format!("{SITE}{mirror}")).is_ok());
    let volume = VOLUME.replace("size = \"10GiB\"", "home = \"/dev/vg0/registry\"");
    let config = parse(&format!("{SITE}{mirror}{volume}")).expect("valid");
    assert_eq!(config.groups[0].volumes[0].size_bytes, None);
    let peerless = mirror.replace("[{ site = \"chelles\", link = \"10.0.0.2:10810\" }]", "[]");
    let error = only_error(&format!("{SITE}{peerless}"));
    assert!(
        error.contains("group[0]: a mirror without peers"),
        "{error}"
    );
}

fn with_homes(first: &str, second: &str) -> String {
    let volume = |name: &str, home: &str| {
        VOLUME.replace("registry-data", name) + &format!("home = \"{home}\"\n")
    };
    format!("{SITE}{GROUP}{}{}", volume("a", first), volume("b", second))
}

#[test]
fn two_volumes_do_not_share_a_home_nor_does_one_lie_in_the_other() {
    assert!(parse(&with_homes("/srv/a", "/srv/ab")).is_ok());
    for second in ["/srv/a", "/srv//./a/", "/srv/a/b"] {
        let error = only_error(&with_homes("/srv/a", second));
        assert!(
            error.contains("which overlaps group[0].volume[0].home"),
            "{error}"
        );
    }
}

#[test]
fn a_home_is_a_file_or_a_block_device_and_no_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("home");
    std::fs::write(&file, "").expect("a file");
    let text = with_homes(file.to_str().unwrap(), "/dev/null");
    assert!(
        only_error(&text).contains("neither a file nor a block device"),
        "{text}"
    );
    let place = tempfile::tempdir().expect("a directory");
    let text = with_homes(file.to_str().unwrap(), place.path().to_str().unwrap());
    assert!(only_error(&text).contains(", a directory"), "{text}");
}

#[test]
fn two_names_of_one_file_are_one_home() {
    let dir = tempfile::tempdir().expect("a directory");
    let (real, alias) = (dir.path().join("real"), dir.path().join("alias"));
    std::fs::write(&real, "").expect("a file");
    std::os::unix::fs::symlink(&real, &alias).expect("a link");
    let text = with_homes(real.to_str().unwrap(), alias.to_str().unwrap());
    assert!(only_error(&text).contains("which overlaps"), "{text}");
}

#[test]
fn a_home_does_not_lie_over_the_files_of_a_group() {
    for home in [
        "/var/lib/doublure/registry/journal",
        "/var/lib/doublure",
        "/var",
    ] {
        let error = only_error(&with_homes("/srv/a", home));
        assert!(error.contains("the files of a group"), "{error}");
    }
    assert!(parse(&with_homes("/srv/a", "/var/lib/doublure/registry/b.home")).is_ok());
}
