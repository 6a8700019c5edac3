//! The directory of `doublure try`: two configurations, the data of two sites, their logs and sockets.
//!
//! What is there is kept: a second run finds the same data and the ports and settings of the first.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;

use crate::config::{Address, Config, UNIX_PATH_MAX};

/// The one group of both sites.
pub const GROUP: &str = "demo";
/// Its one volume, which is the export's name.
pub const VOLUME: &str = "demo";
/// Size of the volume, as people read it.
pub const VOLUME_SIZE: &str = "1GiB";
const JOURNAL_SIZE: &str = "128MiB";

/// The sites: the first is the primary of the first run.
pub const NAMES: [&str; 2] = ["lead", "understudy"];

/// The files of one site.
#[derive(Debug)]
pub struct SiteFiles {
    /// Name of the site.
    pub name: &'static str,
    /// Its configuration.
    pub config: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its control socket.
    pub control: PathBuf,
    /// Where it serves NBD.
    pub nbd: PathBuf,
}

/// A directory that is ready to run in. Others are locked out while it exists.
#[derive(Debug)]
pub struct Place {
    /// The directory, absolute.
    pub dir: PathBuf,
    /// The sites, in the order of [`NAMES`].
    pub sites: [SiteFiles; 2],
    /// What was done that the user should know.
    pub notes: Vec<String>,
    _lock: File,
}

impl Place {
    /// Makes the directory ready: takes its lock, writes what is missing.
    pub fn prepare(dir: &Path) -> anyhow::Result<Place> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir
            .canonicalize()
            .with_context(|| format!("cannot find out where {} is", dir.display()))?;
        if dir
            .to_str()
            .is_none_or(|text| text.chars().any(char::is_control))
        {
            bail!(
                "{} cannot stand in a configuration: choose a --dir named in plain text",
                dir.display()
            );
        }
        let lock = lock(&dir)?;
        let mut notes = Vec::new();
        match existing(&dir, &mut notes)? {
            Some(ports) => move_taken_ports(&dir, ports, &mut notes)?,
            None => write_configs(&dir)?,
        }
        let [lead, understudy] = NAMES.map(|name| site_files(&dir, name));
        Ok(Place {
            sites: [lead?, understudy?],
            dir,
            notes,
            _lock: lock,
        })
    }
}

fn config_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.toml"))
}

/// Two runs in one directory would fight for the same data.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another `doublure try` runs in {}: stop it, or choose another place with --dir",
            dir.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Link ports of the configurations that are there; `None` if new ones are to be written.
fn existing(dir: &Path, notes: &mut Vec<String>) -> anyhow::Result<Option<[u16; 2]>> {
    let mut ports = [0; 2];
    for (name, port) in NAMES.iter().zip(&mut ports) {
        let file = config_file(dir, name);
        if !file.exists() {
            return Ok(None);
        }
        let config = Config::load(&file)?;
        if config.site.data != dir.join(name) {
            notes.push("the directory was moved: its configurations are written anew".to_owned());
            return Ok(None);
        }
        match config.site.link {
            Some(Address::Tcp { port: found, .. }) => *port = found,
            _ => bail!(
                "{} has no link: remove the file to have it written anew",
                file.display()
            ),
        }
    }
    Ok(Some(ports))
}

/// Somebody else may have got a port since the last run.
fn move_taken_ports(dir: &Path, ports: [u16; 2], notes: &mut Vec<String>) -> anyhow::Result<()> {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    for port in ports {
        if is_free(port) {
            continue;
        }
        let [new, _] = free_ports()?;
        for name in NAMES {
            let file = config_file(dir, name);
            let text = fs::read_to_string(&file)?;
            let text = text.replace(
                &format!("127.0.0.1:{port}\""),
                &format!("127.0.0.1:{new}\""),
            );
            write_whole(&file, &text)?;
        }
        notes.push(format!(
            "port {port} is taken by another program: {new} takes its place"
        ));
    }
    Ok(())
}

fn free_ports() -> anyhow::Result<[u16; 2]> {
    // Both are held until both are known, so that they differ.
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on loopback");
    let (first, second) = (bind()?, bind()?);
    Ok([first.local_addr()?.port(), second.local_addr()?.port()])
}

fn write_configs(dir: &Path) -> anyhow::Result<()> {
    let sockets = socket_dir(dir)?;
    let ports = free_ports()?;
    for (own, other) in [(0, 1), (1, 0)] {
        let (name, peer) = (NAMES[own], NAMES[other]);
        let quoted = |text: String| toml::Value::String(text).to_string();
        let unix = |kind: &str| {
            let path = sockets.join(format!("{name}.{kind}.sock"));
            quoted(format!("unix:{}", path.display()))
        };
        let mut text =
            format!("# Site {name} of `doublure try`. Edit it as you like: it is kept.\n\n");
        let role = if own == 0 { "primary" } else { "mirror" };
        let lines = [
            "[site]".to_owned(),
            format!("name    = \"{name}\""),
            format!("data    = {}", quoted(dir.join(name).display().to_string())),
            format!("nbd     = {}", unix("nbd")),
            format!("link    = \"127.0.0.1:{}\"", ports[own]),
            format!("control = {}", unix("control")),
            String::new(),
            "[[group]]".to_owned(),
            format!("name    = \"{GROUP}\""),
            format!("role    = \"{role}\""),
            "ack     = \"sync\"".to_owned(),
            format!("journal = \"{JOURNAL_SIZE}\""),
            format!(
                "peers   = [{{ site = \"{peer}\", link = \"127.0.0.1:{}\" }}]",
                ports[other]
            ),
            String::new(),
            "[[group.volume]]".to_owned(),
            format!("name = \"{VOLUME}\""),
            format!("size = \"{VOLUME_SIZE}\""),
        ];
        for line in lines {
            let _ = writeln!(text, "{line}");
        }
        write_whole(&config_file(dir, name), &text)?;
    }
    Ok(())
}

/// Never leaves half a file behind.
fn write_whole(file: &Path, text: &str) -> anyhow::Result<()> {
    let draft = file.with_extension("toml.new");
    fs::write(&draft, text)
        .and_then(|()| fs::rename(&draft, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Where the sockets go: into the directory, unless that would make their paths longer than a socket address holds.
fn socket_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    let fits = |dir: &Path| dir.join("understudy.control.sock").as_os_str().len() <= UNIX_PATH_MAX;
    if fits(dir) {
        return Ok(dir.to_owned());
    }
    let hash = blake3::hash(dir.as_os_str().as_encoded_bytes()).to_hex();
    let name = format!("doublure-try-{}", &hash[..16]);
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let bases = runtime_dir
        .into_iter()
        .filter(|base| base.is_dir())
        .chain([PathBuf::from("/tmp")]);
    for base in bases {
        let short = base.join(&name);
        if fits(&short) {
            own_dir(&short)?;
            return Ok(short);
        }
    }
    bail!(
        "paths of sockets in {} would be longer than the {UNIX_PATH_MAX} bytes that Unix sockets allow: choose a \
         shorter --dir",
        dir.display()
    )
}

/// A directory in a place where everybody may write: it must be ours alone.
fn own_dir(dir: &Path) -> anyhow::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot create {}", dir.display()));
        }
    }
    let found = fs::symlink_metadata(dir)?;
    let ours = found.uid() == rustix::process::geteuid().as_raw();
    if !found.is_dir() || !ours || found.mode() & 0o077 != 0 {
        bail!(
            "{} belongs to somebody else: choose a shorter --dir, so that sockets fit into it",
            dir.display()
        );
    }
    Ok(())
}

fn site_files(dir: &Path, name: &'static str) -> anyhow::Result<SiteFiles> {
    let config_path = config_file(dir, name);
    let config = Config::load(&config_path)?;
    let nbd = config
        .site
        .nbd
        .into_iter()
        .find_map(|address| match address {
            Address::Unix(path) => Some(path),
            Address::Tcp { .. } => None,
        });
    let Some(nbd) = nbd else {
        bail!("{} serves NBD on no Unix socket", config_path.display());
    };
    // The socket's directory may have gone with a reboot.
    for socket in [&nbd, &config.site.control] {
        if let Some(parent) = socket.parent()
            && !parent.exists()
        {
            own_dir(parent)?;
        }
    }
    Ok(SiteFiles {
        name,
        config: config_path,
        log: dir.join(format!("{name}.log")),
        control: config.site.control,
        nbd,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs(dir: &Path) -> [String; 2] {
        NAMES.map(|name| fs::read_to_string(config_file(dir, name)).expect("a configuration"))
    }

    #[test]
    fn a_new_place_gets_two_sites_that_are_each_others_peers() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::prepare(&dir.path().join("new/place")).expect("a place");
        let [lead, understudy] = place
            .sites
            .each_ref()
            .map(|site| Config::load(&site.config).expect("valid"));
        let link_of_peer = |config: &Config| Some(config.groups[0].peers[0].link.clone());
        assert_eq!(link_of_peer(&lead), understudy.site.link);
        assert_eq!(link_of_peer(&understudy), lead.site.link);
        assert_ne!(lead.site.link, understudy.site.link);
        assert_eq!(lead.groups[0].role, crate::base::Role::Primary);
        assert_eq!(understudy.groups[0].role, crate::base::Role::Mirror);
        assert!(place.sites[0].control.starts_with(&place.dir));
    }

    #[test]
    fn a_second_run_keeps_what_the_first_wrote_and_what_the_user_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(Place::prepare(dir.path()).expect("a place"));
        let file = config_file(dir.path(), "lead");
        let edited = fs::read_to_string(&file)
            .unwrap()
            .replace("\"sync\"", "\"async\"");
        fs::write(&file, edited).unwrap();
        let before = configs(dir.path());
        let place = Place::prepare(dir.path()).expect("the same place");
        assert_eq!(configs(&place.dir), before);
        assert_eq!(place.notes, Vec::<String>::new());
    }

    #[test]
    fn a_port_that_was_taken_meanwhile_is_replaced_on_both_sites() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(Place::prepare(dir.path()).expect("a place"));
        let Some(Address::Tcp { port, .. }) = Config::load(&config_file(dir.path(), "lead"))
            .unwrap()
            .site
            .link
        else {
            panic!("no link");
        };
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("it was free");
        let place = Place::prepare(dir.path()).expect("the same place");
        assert_eq!(place.notes.len(), 1, "{:?}", place.notes);
        for text in configs(&place.dir) {
            assert!(!text.contains(&format!(":{port}\"")), "{text}");
        }
    }

    #[test]
    fn a_place_that_was_moved_gets_new_paths() {
        let dir = tempfile::tempdir().expect("a directory");
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        drop(Place::prepare(&old).expect("a place"));
        fs::rename(&old, &new).unwrap();
        let place = Place::prepare(&new).expect("the moved place");
        assert_eq!(place.notes.len(), 1);
        for text in configs(&place.dir) {
            assert!(!text.contains(old.to_str().unwrap()), "{text}");
        }
    }

    #[test]
    fn two_runs_do_not_share_a_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let _first = Place::prepare(dir.path()).expect("a place");
        let error = Place::prepare(dir.path()).unwrap_err().to_string();
        assert!(
            error.starts_with("another `doublure try` runs in"),
            "{error}"
        );
    }

    #[test]
    fn the_sockets_of_a_deep_place_are_in_a_shorter_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("d".repeat(100));
        let place = Place::prepare(&deep).expect("a place");
        for site in &place.sites {
            assert!(!site.control.starts_with(&place.dir));
            assert!(site.control.as_os_str().len() <= UNIX_PATH_MAX);
            let sockets = site.control.parent().expect("a directory");
            assert_eq!(fs::metadata(sockets).unwrap().mode() & 0o777, 0o700);
        }
        fs::remove_dir_all(place.sites[0].control.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_configuration_that_was_broken_by_hand_is_reported_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(Place::prepare(dir.path()).expect("a place"));
        let file = config_file(dir.path(), "lead");
        fs::write(&file, "[site]\n").unwrap();
        let error = Place::prepare(dir.path()).unwrap_err().to_string();
        assert!(error.contains("site.name: missing"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "[site]\n");
    }
}
