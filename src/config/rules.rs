//! What must hold between several keys of a configuration.
//!
//! A value that was wrong by itself is missing here, so that no error is reported twice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::document::{Located, Problems};
use super::value::Address;
use super::{DEFAULT_CONTROL, Draft, GroupDraft};
use crate::base::Role;

/// Reports every rule that is broken.
pub fn check(draft: &Draft, problems: &Problems) {
    listeners_differ(draft, problems);
    names_are_unique(draft, problems);
    for group in &draft.groups {
        peers_make_sense(draft, group, problems);
        let is_primary = group
            .role
            .as_ref()
            .is_some_and(|role| role.value == Role::Primary);
        if is_primary && group.volumes.is_empty() {
            problems.at(
                &group.here,
                "a primary without a volume",
                "one [[group.volume]] or more, with name and size",
            );
        }
    }
    homes_are_apart(draft, problems);
}

fn listeners_differ(draft: &Draft, problems: &Problems) {
    let control = match &draft.control {
        Some(control) => control.clone(),
        None => Located {
            value: PathBuf::from(DEFAULT_CONTROL),
            line: 0,
            key: "site.control".to_owned(),
        },
    };
    let control = Located {
        value: Address::Unix(control.value),
        line: control.line,
        key: control.key,
    };
    let mut seen: Vec<&Located<Address>> = vec![&control];
    for listener in draft.nbd.iter().chain(&draft.link).chain(&draft.http) {
        if let Some(other) = seen.iter().find(|other| collide(other, listener)) {
            problems.at(
                listener,
                format!(
                    "found {:?}, where {} listens already",
                    listener.to_string(),
                    other.key
                ),
                "an address of its own for each",
            );
        }
        seen.push(listener);
    }
}

fn collide(a: &Address, b: &Address) -> bool {
    let wildcard = |host: &str| matches!(host, "0.0.0.0" | "::");
    match (a, b) {
        (
            Address::Tcp { host, port },
            Address::Tcp {
                host: other,
                port: other_port,
            },
        ) => port == other_port && (host == other || wildcard(host) || wildcard(other)),
        _ => a == b,
    }
}

fn names_are_unique(draft: &Draft, problems: &Problems) {
    unique(
        draft.groups.iter().filter_map(|group| group.name.as_ref()),
        "a name no other group of this site has",
        problems,
    );
    let volumes = draft.groups.iter().flat_map(|group| &group.volumes);
    unique(
        volumes.filter_map(|volume| volume.name.as_ref()),
        "a name no other volume of this site has, whatever its group",
        problems,
    );
}

fn unique<'n>(
    names: impl Iterator<Item = &'n Located<String>>,
    allowed: &str,
    problems: &Problems,
) {
    let mut lines: HashMap<&str, usize> = HashMap::new();
    for name in names {
        match lines.get(name.as_str()) {
            Some(line) => {
                let found = format!("found {:?}, used already in line {line}", name.value);
                problems.at(name, found, allowed);
            }
            None => drop(lines.insert(name, name.line)),
        }
    }
}

fn peers_make_sense(draft: &Draft, group: &GroupDraft, problems: &Problems) {
    let is_mirror = group
        .role
        .as_ref()
        .is_some_and(|role| role.value == Role::Mirror);
    if is_mirror && group.peers.is_empty() {
        problems.at(
            &group.here,
            "a mirror without peers",
            "peers = [{ site = \"NAME\", link = \"HOST:PORT\" }], the site it mirrors",
        );
    }
    if let Some(second) = group.peers.get(1) {
        problems.at(
            &second.here,
            format!("a list of {} peers", group.peers.len()),
            "one peer: this release keeps one mirror per group",
        );
    }
    // A wrong `link` is a problem of its own; a missing one is visible only here.
    if let Some(peer) = group.peers.first()
        && draft.name.is_some()
        && draft.link.is_none()
        && !problems.mentions("site.link")
    {
        problems.at(
            &peer.here,
            "a peer, but site.link is missing",
            "peers together with link = \"HOST:PORT\" under [site], where the peer connects to",
        );
    }
    for peer in &group.peers {
        if let (Some(site), Some(own)) = (&peer.site, &draft.name)
            && site.value == own.value
        {
            let found = format!("found {:?}, this site's own name", site.value);
            problems.at(site, found, "the name of another site");
        }
        if let (Some(link), Some(own)) = (&peer.link, &draft.link)
            && link.value == own.value
        {
            let found = format!("found {:?}, this site's own link", link.value.to_string());
            problems.at(link, found, "the address where the peer's link listens");
        }
    }
}

/// Two volumes in one file destroy each other, and a journal does not survive a home written over it.
fn homes_are_apart(draft: &Draft, problems: &Problems) {
    let Some(data) = &draft.data else { return };
    let names = draft.groups.iter().filter_map(|group| group.name.as_ref());
    let dirs: Vec<PathBuf> = names.map(|name| resolve(&data.join(&name.value))).collect();
    let mut taken: Vec<(PathBuf, &str)> = Vec::new();
    for group in &draft.groups {
        let Some(name) = &group.name else { continue };
        for volume in &group.volumes {
            let Some(home) = &volume.home else { continue };
            let place = resolve(home);
            let found = format!("found \"{}\"", home.display());
            let default = volume.name.as_ref().map(|volume| {
                let file = format!("{}.home", volume.value);
                resolve(&data.join(&name.value).join(file))
            });
            if let Some((_, other)) = taken.iter().find(|(path, _)| overlap(path, &place)) {
                problems.at(
                    home,
                    format!("{found}, which overlaps {other}"),
                    "a file or block device of its own for each volume",
                );
            } else if default.is_none_or(|default| default != place)
                && let Some(dir) = dirs.iter().find(|dir| overlap(dir, &place))
            {
                problems.at(
                    home,
                    format!(
                        "{found}, which overlaps {}, the files of a group",
                        dir.display()
                    ),
                    "a path outside the groups' directories, or no home for a file in there",
                );
            } else if place.is_dir() {
                problems.at(
                    home,
                    format!("{found}, which is a directory"),
                    "a file, or a block device",
                );
            }
            taken.push((place, &home.key));
        }
    }
}

fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Where a path leads: `/dev/vg0/registry` and `/dev/mapper/vg0-registry` are one device. The path itself if nothing
/// is there yet.
fn resolve(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
