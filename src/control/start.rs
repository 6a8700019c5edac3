//! Starting the shards and spreading the groups over them.

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::shards::{Member, Post, Shards, Tally};
use super::site::Opening;
use crate::config::{Config, Group};
use crate::shard::{FromShard, ToShard};

/// A shard's thread, just started.
pub struct Thread {
    /// Sends to it.
    pub post: Post,
    /// Reads its counts.
    pub tally: Tally,
    /// What it has to say. Ends when the thread does.
    pub events: UnboundedReceiver<FromShard>,
}

/// All shards, started, their groups being opened.
pub struct Started {
    /// The shards.
    pub shards: Shards,
    /// What each of them has to say.
    pub events: Vec<UnboundedReceiver<FromShard>>,
    /// For each group, what will come of its opening.
    pub opening: Vec<Opening>,
}

/// Starts as many shards as there are cores, but not more than groups, and tells them to open their groups. `spawn`
/// starts the thread of the shard with the given number.
///
/// # Errors
/// If a thread cannot be started.
pub fn start(
    config: &Config,
    cores: usize,
    spawn: impl FnMut(usize) -> anyhow::Result<Thread>,
) -> anyhow::Result<Started> {
    let count = cores.min(config.groups.len()).max(1);
    let threads = (0..count).map(spawn).collect::<anyhow::Result<Vec<_>>>()?;
    let (mut posts, mut tallies, mut events) = (Vec::new(), Vec::new(), Vec::new());
    for thread in threads {
        posts.push(thread.post);
        tallies.push(thread.tally);
        events.push(thread.events);
    }
    let groups = config.groups.iter().enumerate();
    let members = groups
        .map(|(index, group)| member(config, group, index % count))
        .collect();
    // Before the groups are opened: a group that is new is created then.
    let notes = unnamed_groups(config);
    for note in &notes {
        tracing::warn!("{note}");
    }
    let shards = Shards::new(&config.site.name, members, posts, tallies, notes);
    let opening = config
        .groups
        .iter()
        .map(|group| open(config, group, &shards))
        .collect();
    Ok(Started {
        shards,
        events,
        opening,
    })
}

/// Folders that hold a group which the configuration does not name, such as one that was renamed in it.
fn unnamed_groups(config: &Config) -> Vec<String> {
    let data = &config.site.data;
    let named = |name: &str| config.groups.iter().any(|group| group.name == name);
    let folders = std::fs::read_dir(data).into_iter().flatten().flatten();
    let mut found: Vec<String> = folders
        .filter(|folder| folder.path().join("state").is_file())
        .map(|folder| folder.file_name().to_string_lossy().into_owned())
        .filter(|name| !named(name))
        .map(|name| {
            format!(
                "{}/{name} holds a group that the configuration does not name: nobody is served from it. A group cannot be \
                 renamed in the configuration; under another name it begins anew, and empty. If that was not meant, stop \
                 doublure, name it '{name}' again and start doublure",
                data.display()
            )
        })
        .collect();
    found.sort();
    found
}

fn member(config: &Config, group: &Group, shard: usize) -> Member {
    let addresses = group
        .peers
        .iter()
        .map(|p| (p.site.clone(), p.link.to_string()));
    Member {
        config: config.engine(group),
        addresses: addresses.collect(),
        exports: group.volumes.iter().map(|v| v.name.clone()).collect(),
        shard,
    }
}

fn open(config: &Config, group: &Group, shards: &Shards) -> Opening {
    let (done, outcome) = oneshot::channel();
    let message = ToShard::AddGroup {
        config: Box::new(config.engine(group)),
        paths: config.paths(group),
        done,
    };
    shards.post(&group.name, message);
    Opening {
        group: group.name.clone(),
        done: outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::mpsc;

    use super::*;
    use crate::control::tests::FakeShard;
    use crate::status::ShardStatus;

    fn config(groups: &[&str]) -> Config {
        let site = "[site]\nname = \"clichy\"\ndata = \"/data\"\n\
                    nbd = [\"127.0.0.1:10809\"]\nlink = \"127.0.0.1:10810\"\n";
        let groups = groups.iter().map(|group| {
            format!(
                "[[group]]\nname = \"{group}\"\nrole = \"primary\"\n\
                 peers = [{{ site = \"chelles\", link = \"10.0.0.2:10810\" }}]\n\
                 [[group.volume]]\nname = \"{group}-data\"\nsize = \"1GiB\"\nhome = \"/dev/{group}\"\n"
            )
        });
        let text: String = std::iter::once(site.to_owned()).chain(groups).collect();
        Config::parse(&text, Path::new("test.toml")).unwrap()
    }

    #[tokio::test]
    async fn the_status_tells_what_every_shard_has_done() {
        let started = start(&config(&["a", "b"]), 2, |shard| {
            let fake = FakeShard::answering(Vec::new());
            Ok(Thread {
                post: fake.post,
                tally: Box::new(move || ShardStatus {
                    requests: 100 + shard as u64,
                    ..ShardStatus::default()
                }),
                events: fake.events,
            })
        })
        .unwrap();
        let told = started.shards.status().await.shards;
        let requests: Vec<_> = told.iter().map(|shard| shard.requests).collect();
        assert_eq!(requests, [100, 101]);
    }

    #[test]
    fn a_folder_of_a_group_that_the_configuration_does_not_name_is_told() {
        let data = tempfile::tempdir().unwrap();
        for group in ["a", "mairie", "lost+found"] {
            std::fs::create_dir(data.path().join(group)).unwrap();
        }
        for group in ["a", "mairie"] {
            std::fs::write(data.path().join(group).join("state"), b"").unwrap();
        }
        let mut config = config(&["a"]);
        config.site.data = data.path().to_owned();
        let told = unnamed_groups(&config);
        assert_eq!(told.len(), 1, "{told:?}");
        let begin = format!(
            "{}/mairie holds a group that the configuration does not name",
            data.path().display()
        );
        assert!(told[0].starts_with(&begin), "{told:?}");
    }

    #[test]
    fn groups_are_spread_over_no_more_shards_than_there_are_cores_or_groups() {
        for (cores, groups, expected) in [(2, 3, 2), (8, 3, 3), (0, 1, 1)] {
            let (tx, seen) = mpsc::channel();
            let started = start(&config(&["a", "b", "c"][..groups]), cores, |shard| {
                let tx = tx.clone();
                let fake = FakeShard::new(move |message| {
                    if let ToShard::AddGroup {
                        config,
                        paths,
                        done,
                    } = message
                    {
                        tx.send((shard, config.group.clone(), paths)).unwrap();
                        done.send(Ok(())).unwrap();
                    }
                    true
                });
                Ok(Thread {
                    post: fake.post,
                    tally: Box::new(ShardStatus::default),
                    events: fake.events,
                })
            })
            .unwrap();
            assert_eq!(
                (started.events.len(), started.opening.len()),
                (expected, groups)
            );
            let mut added: Vec<_> = seen.iter().take(groups).collect();
            added.sort_by(|a, b| a.1.cmp(&b.1));
            for (index, (shard, group, paths)) in added.into_iter().enumerate() {
                assert_eq!(shard, index % expected);
                assert_eq!(paths.dir, Path::new("/data").join(&group));
                assert_eq!(
                    paths.homes[&format!("{group}-data")],
                    PathBuf::from(format!("/dev/{group}"))
                );
                let member = &started.shards.members()[&group];
                assert_eq!(
                    (member.shard, member.addresses["chelles"].as_str()),
                    (shard, "10.0.0.2:10810")
                );
            }
        }
    }
}
