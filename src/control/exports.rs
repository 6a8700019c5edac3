//! What NBD clients may attach to, by name: filled from the configuration at the start, then by the groups.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::lobby::lock;
use crate::base::VolumeId;
use crate::engine;
use crate::nbd;

/// The exports of this site. Clones are the same directory.
#[derive(Clone, Default)]
pub struct Directory(Arc<Mutex<BTreeMap<String, Entry>>>, Arc<Notify>);

/// How long a client waits at the door for exports that are about to open: clients that are refused do not try again.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

struct Entry {
    group: String,
    /// Unknown until the group is open.
    volume: Option<VolumeId>,
    /// Bytes; 0 until the group is open.
    size: u64,
    /// Or why nobody may attach.
    open: Result<(), String>,
    /// Closed only for a moment: its group is starting.
    passing: bool,
}

impl Directory {
    /// Waits until no export is closed only for a moment, but not for long.
    pub async fn settled(&self) {
        let wait = async {
            loop {
                let changed = self.1.notified();
                if !lock(&self.0).values().any(|e| e.passing) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(SETTLE_LIMIT, wait).await;
    }

    /// Announces a configured volume whose group is not open yet.
    pub fn announce(&self, group: &str, volume: &str) {
        lock(&self.0).entry(volume.to_owned()).or_insert(Entry {
            group: group.to_owned(),
            volume: None,
            size: 0,
            open: Err(format!("group {group} is being opened")),
            passing: true,
        });
    }

    /// Takes over what a group says about its exports.
    pub fn update(&self, group: &str, exports: &engine::Exports) {
        let mut entries = lock(&self.0);
        entries.retain(|name, e| {
            e.group != group
                || e.volume.is_none()
                || exports.volumes.iter().any(|v| v.name == *name)
        });
        for volume in &exports.volumes {
            match entries.get(&volume.name) {
                Some(other) if other.group != group => {
                    // The names of one site are unique by its configuration, but a mirror's come from elsewhere.
                    tracing::error!(
                        volume = volume.name,
                        group,
                        other = other.group,
                        "two groups have a volume of this name; only the one of the other group is exported"
                    );
                }
                _ => {
                    entries.insert(
                        volume.name.clone(),
                        Entry {
                            group: group.to_owned(),
                            volume: Some(volume.id),
                            size: volume.size,
                            open: exports.open.clone(),
                            passing: exports.passing,
                        },
                    );
                }
            }
        }
        // A volume of the configuration that the group does not have yet opens no sooner than the group does.
        for entry in entries.values_mut() {
            if entry.group == group && entry.volume.is_none() {
                entry.open = Err(exports
                    .open
                    .clone()
                    .err()
                    .unwrap_or_else(|| format!("group {group} does not have this volume yet")));
                entry.passing = exports.passing || exports.open.is_ok();
            }
        }
        drop(entries);
        self.1.notify_waiters();
    }

    /// Nobody may attach to the volumes of this group any more.
    pub fn close(&self, group: &str, why: &str) {
        for entry in lock(&self.0).values_mut() {
            if entry.group == group {
                entry.open = Err(why.to_owned());
                entry.passing = false;
            }
        }
        self.1.notify_waiters();
    }

    /// Group and number of an export that is open.
    pub fn route(&self, name: &str) -> Option<(String, VolumeId)> {
        let entries = lock(&self.0);
        let entry = entries.get(name)?;
        entry.open.as_ref().ok()?;
        Some((entry.group.clone(), entry.volume?))
    }
}

impl nbd::Exports for Directory {
    // Closed ones are listed too, so that a client that asks a mirror learns where the primary is.
    fn list(&self) -> Vec<String> {
        lock(&self.0).keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Result<nbd::Export, nbd::Unavailable> {
        let entries = lock(&self.0);
        let entry = entries.get(name).ok_or(nbd::Unavailable::Unknown)?;
        match &entry.open {
            Ok(()) => Ok(nbd::Export {
                name: name.to_owned(),
                size: entry.size,
                description: format!("volume {name} of group {}", entry.group),
            }),
            Err(why) => Err(nbd::Unavailable::Policy(why.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::base::{Lsn, VolumeSpec};
    use crate::nbd::{Exports as _, Unavailable};

    fn exports(open: Result<(), String>, names: &[&str]) -> engine::Exports {
        let volumes = names.iter().zip(1..).map(|(name, id)| VolumeSpec {
            id: VolumeId(id),
            uuid: Uuid::from_u128(u128::from(id)),
            name: (*name).to_owned(),
            size: 1 << 20,
        });
        engine::Exports {
            open,
            volumes: volumes.collect(),
            commit: Lsn(9),
            passing: false,
        }
    }

    #[test]
    fn a_volume_opens_with_its_group_and_closes_with_the_reason() {
        let directory = Directory::default();
        directory.announce("registry", "data");
        assert!(
            matches!(directory.find("data"), Err(Unavailable::Policy(why)) if why.contains("being opened"))
        );
        assert_eq!(directory.route("data"), None);

        directory.update("registry", &exports(Ok(()), &["data"]));
        assert_eq!(directory.find("data").unwrap().size, 1 << 20);
        assert_eq!(
            directory.route("data"),
            Some(("registry".into(), VolumeId(1)))
        );

        let why = "the primary is chelles";
        directory.update("registry", &exports(Err(why.into()), &["data"]));
        assert_eq!(directory.find("data"), Err(Unavailable::Policy(why.into())));
        assert_eq!(directory.route("data"), None);
        assert_eq!(directory.list(), ["data"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_waits_for_a_group_that_is_starting_and_not_for_one_that_will_not_open() {
        let directory = Directory::default();
        let began = tokio::time::Instant::now();
        directory.announce("registry", "data");
        let opener = directory.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            opener.update("registry", &exports(Ok(()), &["data"]));
        });
        directory.settled().await;
        assert_eq!(began.elapsed(), Duration::from_millis(300));
        assert!(directory.find("data").is_ok());
        directory.update("registry", &exports(Err("a mirror".into()), &["data"]));
        directory.settled().await;
        assert_eq!(began.elapsed(), Duration::from_millis(300));
        directory.announce("tax", "rolls");
        directory.settled().await;
        assert_eq!(began.elapsed(), Duration::from_millis(300) + SETTLE_LIMIT);
    }

    #[test]
    fn a_volume_that_is_gone_is_unknown_and_another_groups_volume_keeps_its_name() {
        let directory = Directory::default();
        directory.update("a", &exports(Ok(()), &["one", "two"]));
        directory.update("b", &exports(Ok(()), &["two", "three"]));
        assert_eq!(directory.route("two"), Some(("a".into(), VolumeId(2))));
        directory.update("a", &exports(Ok(()), &["two"]));
        assert_eq!(directory.find("one"), Err(Unavailable::Unknown));
        assert_eq!(directory.list(), ["three", "two"]);
    }
}
