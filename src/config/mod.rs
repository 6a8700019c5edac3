//! The configuration of a site: one TOML file, read and judged as a whole.
//!
//! [`Config::load`] answers with a configuration in which everything holds that can be known from the file alone, or
//! with all that is wrong at once. `value` reads single values, `document` knows keys and lines, `rules` holds
//! what ties several keys together.

mod document;
mod rules;
mod value;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

pub use document::Problem;
pub use value::{Address, UNIX_PATH_MAX, is_plain_name};

use crate::base::{AckMode, Compress, OnPeerLoss, Role};
use crate::engine::GroupConfig;
use crate::shard::GroupPaths;
use document::{Located, Problems, Section};

/// Where a site's control socket is unless the configuration or `-s` says otherwise.
pub const DEFAULT_CONTROL: &str = "/run/doublure/control.sock";

const DEFAULT_JOURNAL_BYTES: u64 = 1 << 30;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Rot that nobody looks for is found when the other copy is gone.
const DEFAULT_SCRUB: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The configuration of a site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The site.
    pub site: Site,
    /// Its groups, in the order of the file; names are unique.
    pub groups: Vec<Group>,
}

/// `[site]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// Name of the site.
    pub name: String,
    /// Directory of journals, homes and state. Absolute.
    pub data: PathBuf,
    /// Where NBD clients connect; at least one.
    pub nbd: Vec<Address>,
    /// Where peers connect, TCP; there is one if any group has a peer.
    pub link: Option<Address>,
    /// Path of the control socket.
    pub control: PathBuf,
    /// Web page and `/metrics`, TCP.
    pub http: Option<Address>,
}

/// `[[group]]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// Name of the group.
    pub name: String,
    /// Role at the first start.
    pub role: Role,
    /// Acknowledgement mode.
    pub ack: AckMode,
    /// Compression of payloads.
    pub compress: Compress,
    /// What to do when the peer is lost.
    pub on_peer_loss: OnPeerLoss,
    /// A peer without progress for this long is dead.
    pub timeout: Duration,
    /// Size of the journal.
    pub journal_bytes: u64,
    /// Bytes per second that a copy or verification may read at most, 0 for no limit. `None`: no limit either, but a copy gives
    /// way to clients.
    pub resync_rate: Option<u64>,
    /// Keep what a copy replaces until it is complete.
    pub resync_undo: bool,
    /// How old the last complete verification may get before the next begins by itself; zero for never.
    pub scrub: Duration,
    /// Its peers; at most one in this release.
    pub peers: Vec<Peer>,
    /// Its volumes; a primary has at least one.
    pub volumes: Vec<Volume>,
}

/// One of `peers`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Name of its site.
    pub site: String,
    /// Its `link` address, TCP.
    pub link: Address,
}

/// `[[group.volume]]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    /// Export name, unique on the site.
    pub name: String,
    /// Size; a mirror may leave it to its primary.
    pub size_bytes: Option<u64>,
    /// Its image file or block device; `None` for a sparse file under `data`.
    pub home: Option<PathBuf>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {error}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Something is wrong with what it says.
    #[error(transparent)]
    Invalid(#[from] Report),
}

/// All that is wrong with a configuration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// At least one, in the order of the file.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        for problem in &self.problems {
            writeln!(f, "{file}:{problem}")?;
        }
        match self.problems.len() {
            1 => write!(f, "{file} has 1 error"),
            n => write!(f, "{file} has {n} errors"),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError::Unreadable {
            file: file.to_owned(),
            error,
        })?;
        Ok(Config::parse(&text, file)?)
    }

    /// Checks a text; `file` is its name in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Config, Report> {
        let report = |problems| Report {
            file: file.to_owned(),
            problems,
        };
        let problems = Problems::new(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // What stands around a syntax error was perhaps not read as it was meant, so it is not judged.
            for error in &errors {
                let offset = error.span().map_or(0, |span| span.start);
                let found = error.message().replace('\n', "; ");
                let wrong = value::Wrong {
                    found,
                    allowed: String::new(),
                };
                problems.add(problems.line_of(offset), "", wrong);
            }
            return Err(report(problems.into_sorted()));
        }
        let draft = Draft::read(table.get_ref(), &problems);
        rules::check(&draft, &problems);
        let problems = problems.into_sorted();
        match draft.finish() {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(report(problems)),
        }
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// How many volumes it names.
    pub fn volume_count(&self) -> usize {
        self.groups.iter().map(|group| group.volumes.len()).sum()
    }

    /// What the engine has to know about a group.
    pub fn engine(&self, group: &Group) -> GroupConfig {
        let sized = |volume: &Volume| Some((volume.name.clone(), volume.size_bytes?));
        GroupConfig {
            site: self.site.name.clone(),
            group: group.name.clone(),
            role: group.role,
            ack: group.ack,
            compress: group.compress,
            on_peer_loss: group.on_peer_loss,
            timeout: group.timeout,
            journal_bytes: group.journal_bytes,
            resync_rate: group.resync_rate,
            resync_undo: group.resync_undo,
            scrub: group.scrub,
            peers: group.peers.iter().map(|peer| peer.site.clone()).collect(),
            volumes: group.volumes.iter().filter_map(sized).collect(),
        }
    }

    /// Where a group's files are.
    pub fn paths(&self, group: &Group) -> GroupPaths {
        let placed = |volume: &Volume| Some((volume.name.clone(), volume.home.clone()?));
        GroupPaths {
            dir: self.site.data.join(&group.name),
            homes: group
                .volumes
                .iter()
                .filter_map(placed)
                .collect::<HashMap<_, _>>(),
        }
    }
}

/// A configuration as far as it could be read: `None` where a value is missing or wrong, which is reported already.
struct Draft {
    name: Option<Located<String>>,
    data: Option<Located<PathBuf>>,
    nbd: Vec<Located<Address>>,
    link: Option<Located<Address>>,
    control: Option<Located<PathBuf>>,
    http: Option<Located<Address>>,
    groups: Vec<GroupDraft>,
}

struct GroupDraft {
    here: Located<()>,
    name: Option<Located<String>>,
    role: Option<Located<Role>>,
    ack: Option<Located<AckMode>>,
    compress: Option<Located<Compress>>,
    on_peer_loss: Option<Located<OnPeerLoss>>,
    timeout: Option<Located<Duration>>,
    journal: Option<Located<u64>>,
    resync_rate: Option<Located<u64>>,
    resync_undo: Option<Located<bool>>,
    scrub: Option<Located<Duration>>,
    peers: Vec<PeerDraft>,
    volumes: Vec<VolumeDraft>,
}

struct PeerDraft {
    here: Located<()>,
    site: Option<Located<String>>,
    link: Option<Located<Address>>,
}

struct VolumeDraft {
    name: Option<Located<String>>,
    size: Option<Located<u64>>,
    home: Option<Located<PathBuf>>,
}

impl Draft {
    fn read(table: &DeTable<'_>, problems: &Problems) -> Draft {
        let mut root = Section::root(table, problems);
        let mut draft = Draft {
            name: None,
            data: None,
            nbd: Vec::new(),
            link: None,
            control: None,
            http: None,
            groups: Vec::new(),
        };
        if let Some(mut site) = root.section("site") {
            draft.name = site.required("name", value::plain_name);
            draft.data = site.required("data", value::absolute_path);
            draft.nbd = site.one_or_more("nbd", value::any_address);
            draft.link = site.optional("link", value::tcp_address);
            draft.control = site.optional("control", value::unix_address);
            draft.http = site.optional("http", value::tcp_address);
            site.finish();
        }
        let groups = root.sections("group", "tables, [[group]]");
        draft.groups = groups.into_iter().map(GroupDraft::read).collect();
        root.finish();
        draft
    }

    fn finish(self) -> Option<Config> {
        let control = self.control.map(|located| located.value);
        Some(Config {
            site: Site {
                name: self.name?.value,
                data: self.data?.value,
                nbd: self.nbd.into_iter().map(|located| located.value).collect(),
                link: self.link.map(|located| located.value),
                control: control.unwrap_or_else(|| DEFAULT_CONTROL.into()),
                http: self.http.map(|located| located.value),
            },
            groups: self
                .groups
                .into_iter()
                .map(GroupDraft::finish)
                .collect::<Option<_>>()?,
        })
    }
}

impl GroupDraft {
    fn read(mut group: Section<'_>) -> GroupDraft {
        let name = group.required("name", value::plain_name);
        let role = group.required("role", value::role);
        // Without a role it is not known whether volumes need a size, and the missing role is reported.
        let sized = role
            .as_ref()
            .is_some_and(|role| role.value == Role::Primary);
        let draft = GroupDraft {
            here: group.here(),
            name,
            role,
            ack: group.optional("ack", value::ack),
            compress: group.optional("compress", value::compress),
            on_peer_loss: group.optional("on_peer_loss", value::on_peer_loss),
            timeout: group.optional("timeout", value::timeout),
            journal: group.optional("journal", value::journal_size),
            resync_rate: group.optional("resync_rate", value::rate),
            resync_undo: group.optional("resync_undo", value::boolean),
            scrub: group.optional("scrub", value::scrub),
            peers: group
                .sections(
                    "peers",
                    "a list of { site = \"NAME\", link = \"HOST:PORT\" }",
                )
                .into_iter()
                .map(PeerDraft::read)
                .collect(),
            volumes: group
                .sections("volume", "tables, [[group.volume]]")
                .into_iter()
                .map(|volume| VolumeDraft::read(volume, sized))
                .collect(),
        };
        group.finish();
        draft
    }

    fn finish(self) -> Option<Group> {
        Some(Group {
            name: self.name?.value,
            role: self.role?.value,
            ack: self.ack.map(|ack| ack.value).unwrap_or_default(),
            compress: self
                .compress
                .map(|compress| compress.value)
                .unwrap_or_default(),
            on_peer_loss: self
                .on_peer_loss
                .map(|policy| policy.value)
                .unwrap_or_default(),
            timeout: self
                .timeout
                .map_or(DEFAULT_TIMEOUT, |timeout| timeout.value),
            journal_bytes: self
                .journal
                .map_or(DEFAULT_JOURNAL_BYTES, |journal| journal.value),
            resync_rate: self.resync_rate.map(|rate| rate.value),
            resync_undo: self.resync_undo.is_none_or(|undo| undo.value),
            scrub: self.scrub.map_or(DEFAULT_SCRUB, |scrub| scrub.value),
            peers: self
                .peers
                .into_iter()
                .map(PeerDraft::finish)
                .collect::<Option<_>>()?,
            volumes: self
                .volumes
                .into_iter()
                .map(VolumeDraft::finish)
                .collect::<Option<_>>()?,
        })
    }
}

impl PeerDraft {
    fn read(mut peer: Section<'_>) -> PeerDraft {
        let draft = PeerDraft {
            here: peer.here(),
            site: peer.required("site", value::plain_name),
            link: peer.required("link", value::tcp_address),
        };
        peer.finish();
        draft
    }

    fn finish(self) -> Option<Peer> {
        Some(Peer {
            site: self.site?.value,
            link: self.link?.value,
        })
    }
}

impl VolumeDraft {
    fn read(mut volume: Section<'_>, sized: bool) -> VolumeDraft {
        let draft = VolumeDraft {
            name: volume.required("name", value::volume_name),
            size: if sized {
                volume.required("size", value::volume_size)
            } else {
                volume.optional("size", value::volume_size)
            },
            home: volume.optional("home", value::absolute_path),
        };
        volume.finish();
        draft
    }

    fn finish(self) -> Option<Volume> {
        Some(Volume {
            name: self.name?.value,
            size_bytes: self.size.map(|size| size.value),
            home: self.home.map(|home| home.value),
        })
    }
}

#[cfg(test)]
mod tests;
