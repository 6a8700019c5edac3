//! `/metrics`: the status as text in the `OpenMetrics` format. Every scrape is computed from one [`SiteStatus`], so the numbers of a
//! scrape belong together and agree with `doublure status`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::base::Role;
use crate::status::{
    GroupState, GroupStatus, Latency, PeerState, PeerStatus, SiteStatus, VolumeStatus,
};

/// What `/metrics` answers with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A number of something of type `T`: name with its unit, what it means, where it is found.
struct Metric<T, V> {
    name: &'static str,
    help: &'static str,
    value: fn(&T) -> V,
}

/// `None` leaves the sample out: there is no such number.
type Gauge<T> = Metric<T, Option<f64>>;
/// The encoder appends `_total` to the name.
type Counter<T> = Metric<T, u64>;

const fn metric<T, V>(name: &'static str, help: &'static str, value: fn(&T) -> V) -> Metric<T, V> {
    Metric { name, help, value }
}

#[rustfmt::skip]
const GROUP_GAUGES: &[Gauge<GroupStatus>] = &[
    metric("doublure_group_healthy", "1 if nothing is missing: the group serves or follows, with every peer in sync, no known difference and room for writes.", |g| flag(g.healthy)),
    metric("doublure_group_frozen", "1 if the primary acknowledges nothing until its peer is back (on_peer_loss = freeze).", |g| flag(g.state == GroupState::Frozen)),
    metric("doublure_group_alone", "1 if the primary acknowledges without a peer that the rule would need.", |g| flag(g.alone.is_some())),
    metric("doublure_group_inconsistent", "1 if the homes here are in the middle of a copy and not usable as they are.", |g| flag(g.inconsistent)),
    metric("doublure_group_alone_operations", "Operations acknowledged here that are not known to be on stable storage at the peer, while this site is alone.", |g| number(g.alone.as_ref().map_or(0, |a| a.operations))),
    metric("doublure_group_tail_lsn", "Last LSN in the journal or on its way there.", |g| number(g.tail_lsn.0)),
    metric("doublure_group_durable_lsn", "Last LSN that is durable in the journal here.", |g| number(g.durable_lsn.0)),
    metric("doublure_group_commit_lsn", "Last LSN that has met the acknowledgement rule.", |g| number(g.commit_lsn.0)),
    metric("doublure_group_applied_lsn", "Last LSN that is in the homes.", |g| number(g.applied_lsn.0)),
    metric("doublure_group_checkpoint_lsn", "Last LSN that is durable in the homes; recovery starts there.", |g| number(g.checkpoint_lsn.0)),
    metric("doublure_group_in_flight_requests", "Requests received and not yet answered.", |g| number(g.in_flight_requests)),
    metric("doublure_group_unapplied_bytes", "Bytes of operations not yet in the homes.", |g| number(g.unapplied_bytes)),
    metric("doublure_group_clients", "Attached NBD clients.", |g| number(g.clients)),
    metric("doublure_group_journal_capacity_bytes", "Size of the journal.", |g| number(g.journal.capacity_bytes)),
    metric("doublure_group_journal_used_bytes", "Bytes of the journal in use.", |g| number(g.journal.used_bytes)),
    metric("doublure_group_journal_fill_ratio", "Used part of the journal, 0 to 1.", journal_fill),
    metric("doublure_group_journal_writers_wait", "1 if writers wait because the journal is full.", |g| flag(g.journal.writers_wait)),
    metric("doublure_group_no_space", "1 if a home's file system, here or at a mirror in sync, has no room and writes are refused.", |g| flag(g.no_space)),
    metric("doublure_group_home_hangs_seconds", "How long a write to a home has been under way, above five seconds; absent if none is.", |g| g.home_hangs_seconds),
    metric("doublure_group_space_left_bytes", "What may still be promised to writers before the homes here are full; absent if that is not known or without bounds.", |g| g.space_left_bytes.map(|n| n as f64)),
    metric("doublure_group_state_since_timestamp_seconds", "When the group entered its state, in seconds since the Unix epoch.", |g| number(g.state_since_unix_seconds)),
    metric("doublure_group_forked", "1 if both sites went on after the last LSN they share, and nobody has decided which counts.", |g| flag(g.fork.is_some())),
    metric("doublure_group_verified_differing_bytes", "Bytes that the last complete verification found to differ; absent if there was none.", |g| g.last_verify.as_ref().map(|v| v.differing_bytes as f64)),
    metric("doublure_group_verified_unrepaired_bytes", "Bytes that verifications found to differ and nobody mended.", |g| number(g.unrepaired_bytes)),
    metric("doublure_group_verify_progress_ratio", "How far the verification under way is, 0 to 1; absent if there is none.", verify_progress),
    metric("doublure_group_verified_bytes", "Bytes compared by the last verification, or by the one under way; absent if there was none.", |g| g.verify.as_ref().map(|v| v.done_bytes as f64)),
    metric("doublure_group_verified_timestamp_seconds", "When the last complete verification ended, in seconds since the Unix epoch.", |g| g.last_verify.as_ref()?.ended_unix_seconds.map(|s| s as f64)),
    metric("doublure_group_next_scrub_timestamp_seconds", "When the next verification begins by itself, in seconds since the Unix epoch; absent if scrub is off.", |g| g.next_scrub_unix_seconds.map(|s| s as f64)),
    metric("doublure_group_disagreements", "Settings in which the configuration differs from the state on disk (the disk wins).", |g| number(g.disagreements.len() as u64)),
];

#[rustfmt::skip]
const GROUP_COUNTERS: &[Counter<GroupStatus>] = &[
    metric("doublure_group_reads", "Read requests answered.", |g| g.totals.reads),
    metric("doublure_group_read_bytes", "Bytes read by clients.", |g| g.totals.read_bytes),
    metric("doublure_group_writes", "Write, trim and write-zeroes requests acknowledged.", |g| g.totals.writes),
    metric("doublure_group_write_bytes", "Bytes of write requests acknowledged.", |g| g.totals.write_bytes),
    metric("doublure_group_flushes", "Flush requests acknowledged.", |g| g.totals.flushes),
    metric("doublure_group_request_errors", "Requests answered with an error.", |g| g.totals.errors),
    metric("doublure_group_refused_no_space", "Writes refused because the homes' file systems have no space left.", |g| g.totals.refused_no_space),
    metric("doublure_group_journal_frames", "Frames written to the journal.", |g| g.totals.frames),
    metric("doublure_group_journal_written_bytes", "Bytes written to the journal.", |g| g.totals.journal_bytes),
    metric("doublure_group_link_sent_bytes", "Frame bytes sent to peers.", |g| g.totals.link_bytes),
    metric("doublure_group_home_written_bytes", "Bytes written to the homes.", |g| g.totals.home_bytes),
    metric("doublure_group_checkpoints", "Checkpoints completed.", |g| g.totals.checkpoints),
];

#[rustfmt::skip]
const PEER_GAUGES: &[Gauge<PeerStatus>] = &[
    metric("doublure_peer_in_sync", "1 if the peer is consistent, streaming, and acknowledgements wait for it; only at the primary.", in_sync),
    metric("doublure_peer_needs_copy", "1 while a copy to the peer is not complete, under way or cut off: it is not usable.", |p| flag(p.needs_copy)),
    metric("doublure_peer_behind_operations", "Operations that the peer lacks.", |p| number(p.lag_operations)),
    metric("doublure_peer_behind_bytes", "Journal bytes that the peer lacks.", |p| number(p.lag_bytes)),
    metric("doublure_peer_behind_seconds", "How far the peer is behind in time.", |p| Some(p.lag_seconds)),
    metric("doublure_peer_received_lsn", "Last LSN that the peer has received.", |p| number(p.received_lsn.0)),
    metric("doublure_peer_durable_lsn", "Last LSN that is durable at the peer.", |p| number(p.durable_lsn.0)),
    metric("doublure_peer_applied_lsn", "Last LSN that is in the peer's homes.", |p| number(p.applied_lsn.0)),
    metric("doublure_peer_last_heard_seconds", "Time since the peer was last heard of; absent if it never was.", |p| p.last_heard_seconds),
    metric("doublure_peer_space_left_bytes", "What may still be promised to writers before the peer's homes are full; absent if that is not known or without bounds.", |p| p.space_left_bytes.map(|n| n as f64)),
    metric("doublure_peer_copied_bytes", "Bytes done of a running full copy.", |p| number(p.copied_bytes)),
    metric("doublure_peer_copy_size_bytes", "Bytes in all of a running full copy; 0 if none runs.", |p| number(p.copy_total_bytes)),
];

#[rustfmt::skip]
const VOLUME_GAUGES: &[Gauge<VolumeStatus>] = &[
    metric("doublure_volume_size_bytes", "Size of the volume.", |v| number(v.size_bytes)),
    metric("doublure_volume_clients", "NBD clients attached to the volume.", |v| number(v.clients)),
];

const ROLES: [Role; 2] = [Role::Primary, Role::Mirror];

const GROUP_STATES: [GroupState; 14] = [
    GroupState::Starting,
    GroupState::WaitingForPeer,
    GroupState::Serving,
    GroupState::Alone,
    GroupState::Suspect,
    GroupState::Frozen,
    GroupState::Draining,
    GroupState::HandedOver,
    GroupState::Following,
    GroupState::Disconnected,
    GroupState::Inconsistent,
    GroupState::BothPrimary,
    GroupState::Forked,
    GroupState::Fenced,
];

const PEER_STATES: [PeerState; 9] = [
    PeerState::InSync,
    PeerState::CatchingUp,
    PeerState::Copying,
    PeerState::Suspect,
    PeerState::Connecting,
    PeerState::CutByOperator,
    PeerState::Refused,
    PeerState::Connected,
    PeerState::Absent,
];

#[allow(clippy::unnecessary_wraps)] // the shape of a gauge's value
fn flag(on: bool) -> Option<f64> {
    Some(f64::from(u8::from(on)))
}

#[allow(clippy::unnecessary_wraps)]
fn number(n: u64) -> Option<f64> {
    Some(n as f64)
}

/// Only a primary can say: a mirror's peer is its primary.
fn in_sync(peer: &PeerStatus) -> Option<f64> {
    match peer.state {
        PeerState::Connected | PeerState::Absent => None,
        state => flag(state == PeerState::InSync),
    }
}

fn verify_progress(group: &GroupStatus) -> Option<f64> {
    let verify = group.verify.as_ref()?;
    let under_way = verify.ended_unix_seconds.is_none() && verify.total_bytes > 0;
    under_way.then(|| verify.done_bytes as f64 / verify.total_bytes as f64)
}

fn journal_fill(group: &GroupStatus) -> Option<f64> {
    let journal = &group.journal;
    (journal.capacity_bytes > 0).then(|| journal.used_bytes as f64 / journal.capacity_bytes as f64)
}

/// The whole scrape.
pub fn render(status: SiteStatus) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(status)));
    let mut text = String::with_capacity(32 << 10);
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot(SiteStatus);

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Page { encoder };
        self.site(&mut page)?;
        self.groups(&mut page)?;
        self.peers(&mut page)?;
        self.volumes(&mut page)
    }
}

impl Snapshot {
    fn site(&self, page: &mut Page) -> fmt::Result {
        let site = &self.0;
        page.gauge(
            "doublure_build",
            "1, labelled with the version of the program.",
            [(
                vec![("site", site.site.as_str()), ("version", &site.version)],
                Some(1.0),
            )],
        )?;
        page.gauge(
            "doublure_uptime_seconds",
            "Time since the daemon started.",
            [(
                vec![("site", site.site.as_str())],
                number(site.uptime_seconds),
            )],
        )
    }

    fn groups(&self, page: &mut Page) -> fmt::Result {
        let groups = || self.0.groups.iter().map(|g| (self.group_labels(g), g));
        for metric in GROUP_GAUGES {
            let samples = groups().map(|(labels, g)| (labels, (metric.value)(g)));
            page.gauge(metric.name, metric.help, samples)?;
        }
        for metric in GROUP_COUNTERS {
            let samples = groups().map(|(labels, g)| (labels, (metric.value)(g)));
            page.counter(metric.name, metric.help, samples)?;
        }
        let roles: Vec<_> = ROLES.iter().map(|r| (word(r), *r)).collect();
        page.gauge(
            "doublure_group_role",
            "1 for the role this site has for the group, 0 for the other one.",
            groups().flat_map(|(l, g)| choices(&l, "role", &roles, g.role)),
        )?;
        let states: Vec<_> = GROUP_STATES.iter().map(|s| (word(s), *s)).collect();
        page.gauge(
            "doublure_group_state",
            "1 for the state the group is in, 0 for every other one.",
            groups().flat_map(|(l, g)| choices(&l, "state", &states, g.state)),
        )?;
        page.gauge(
            "doublure_group_latency_seconds",
            "Latency over the last seconds, by stage; quantile 1 is the largest.",
            groups().flat_map(|(l, g)| stages(g).into_iter().flat_map(move |s| quantiles(&l, s))),
        )
    }

    fn peers(&self, page: &mut Page) -> fmt::Result {
        let peers = || {
            self.0.groups.iter().flat_map(|g| {
                g.peers.iter().map(move |p| {
                    let mut labels = self.group_labels(g);
                    labels.push(("peer", &p.site));
                    (labels, p)
                })
            })
        };
        for metric in PEER_GAUGES {
            let samples = peers().map(|(labels, p)| (labels, (metric.value)(p)));
            page.gauge(metric.name, metric.help, samples)?;
        }
        let states: Vec<_> = PEER_STATES.iter().map(|s| (word(s), *s)).collect();
        page.gauge(
            "doublure_peer_state",
            "1 for the state the peer is in, 0 for every other one.",
            peers().flat_map(|(l, p)| choices(&l, "state", &states, p.state)),
        )
    }

    fn volumes(&self, page: &mut Page) -> fmt::Result {
        for metric in VOLUME_GAUGES {
            let samples = self.0.groups.iter().flat_map(|g| {
                g.volumes.iter().map(|v| {
                    let mut labels = self.group_labels(g);
                    labels.push(("volume", &v.name));
                    (labels, (metric.value)(v))
                })
            });
            page.gauge(metric.name, metric.help, samples)?;
        }
        Ok(())
    }

    fn group_labels<'a>(&'a self, group: &'a GroupStatus) -> Labels<'a> {
        vec![("site", &self.0.site), ("group", &group.name)]
    }
}

/// The word by which the status knows a state.
pub fn word(state: &impl serde::Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => unreachable!("roles and states are serialised as words"),
    }
}

/// One sample for each possible state: 1 for the actual one.
fn choices<'a, S: Copy + PartialEq>(
    labels: &Labels<'a>,
    name: &'static str,
    all: &'a [(String, S)],
    actual: S,
) -> Vec<(Labels<'a>, Option<f64>)> {
    all.iter()
        .map(|(word, state)| {
            let mut labels = labels.clone();
            labels.push((name, word));
            (labels, flag(*state == actual))
        })
        .collect()
}

fn stages(group: &GroupStatus) -> [(&'static str, Latency); 5] {
    let latency = &group.latency;
    [
        ("write", latency.write),
        ("read", latency.read),
        ("journal", latency.journal),
        ("link", latency.link),
        ("apply", latency.apply),
    ]
}

/// Quantiles of a stage; none while nothing was measured, because 0 would look like 'very fast'.
fn quantiles<'a>(
    labels: &Labels<'a>,
    (stage, latency): (&'static str, Latency),
) -> Vec<(Labels<'a>, Option<f64>)> {
    [
        ("0.5", latency.p50_us),
        ("0.99", latency.p99_us),
        ("1", latency.max_us),
    ]
    .into_iter()
    .map(|(quantile, micros)| {
        let mut labels = labels.clone();
        labels.extend([("stage", stage), ("quantile", quantile)]);
        (labels, (latency.count > 0).then_some(micros / 1e6))
    })
    .collect()
}

/// Writes whole families, as the format wants them: all samples of a name together.
struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, Option<f64>)>,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            if let Some(value) = value {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::control::tests::{group_status, site_status};

    /// One line of a scrape, checked as strictly as a scraper would.
    struct Sample {
        name: String,
        labels: HashMap<String, String>,
        value: f64,
    }

    fn parse(text: &str) -> Vec<Sample> {
        assert!(text.ends_with("# EOF\n"));
        let mut samples = Vec::new();
        let mut types: HashMap<&str, &str> = HashMap::new();
        let mut helped = HashSet::new();
        let mut family = "";
        for line in text.lines().take_while(|l| *l != "# EOF") {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(help.ends_with('.') && helped.insert(name), "{line}");
                family = name;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family);
                types.insert(name, kind);
            } else {
                let sample = parse_sample(line);
                let expected = match types[family] {
                    "counter" => format!("{family}_total"),
                    _ => family.to_owned(),
                };
                assert_eq!(sample.name, expected, "outside its family: {line}");
                samples.push(sample);
            }
        }
        samples
    }

    fn parse_sample(line: &str) -> Sample {
        let (name, rest) = line.split_once('{').unwrap();
        let (labels, value) = rest.rsplit_once("} ").unwrap();
        let labels = labels
            .split(',')
            .map(|l| {
                let (key, value) = l.split_once('=').unwrap();
                let value = value.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
                (key.to_owned(), value.to_owned())
            })
            .collect();
        Sample {
            name: name.to_owned(),
            labels,
            value: value.parse().unwrap(),
        }
    }

    fn find(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = samples.iter().filter(|s| {
            s.name == name
                && labels
                    .iter()
                    .all(|(k, v)| s.labels.get(*k).is_some_and(|l| l == v))
        });
        let value = found.next().map(|s| s.value);
        assert!(found.next().is_none(), "{name} {labels:?} is ambiguous");
        value
    }

    #[test]
    fn a_scrape_tells_in_flight_behind_inconsistent_and_frozen_apart() {
        let mut group = group_status("registry");
        group.state = GroupState::Frozen;
        group.in_flight_requests = 7;
        group.totals.writes = 12_345_678_901_234_567;
        group.journal.capacity_bytes = 1 << 30;
        group.journal.used_bytes = 1 << 28;
        group.peers[0].lag_bytes = 4096;
        group.latency.journal = Latency {
            count: 3,
            p50_us: 90.0,
            p99_us: 250.0,
            max_us: 1000.0,
        };
        let samples = parse(&render(site_status(vec![group])).unwrap());
        let of = |name: &str, labels: &[(&str, &str)]| find(&samples, name, labels);

        let group = ("group", "registry");
        assert_eq!(of("doublure_group_frozen", &[group]), Some(1.0));
        assert_eq!(of("doublure_group_inconsistent", &[group]), Some(0.0));
        assert_eq!(of("doublure_group_in_flight_requests", &[group]), Some(7.0));
        assert_eq!(
            of("doublure_group_journal_fill_ratio", &[group]),
            Some(0.25)
        );
        assert_eq!(
            of("doublure_peer_behind_bytes", &[group, ("peer", "chelles")]),
            Some(4096.0)
        );
        assert_eq!(
            of(
                "doublure_group_latency_seconds",
                &[("stage", "journal"), ("quantile", "0.99")]
            ),
            Some(0.00025)
        );
        assert_eq!(
            of(
                "doublure_group_latency_seconds",
                &[("stage", "link"), ("quantile", "1")]
            ),
            None
        );
        assert_eq!(
            of("doublure_group_state", &[("state", "frozen")]),
            Some(1.0)
        );
        assert_eq!(
            of("doublure_group_state", &[("state", "serving")]),
            Some(0.0)
        );
        assert_eq!(of("doublure_group_role", &[("role", "primary")]), Some(1.0));
        assert_eq!(of("doublure_group_role", &[("role", "mirror")]), Some(0.0));
    }

    #[test]
    fn counters_keep_every_digit() {
        let mut group = group_status("registry");
        group.totals.writes = (1 << 53) + 1;
        let text = render(site_status(vec![group])).unwrap();
        assert!(text.contains(
            "doublure_group_writes_total{site=\"clichy\",group=\"registry\"} 9007199254740993\n"
        ));
    }

    #[test]
    fn a_family_stays_together_over_several_groups_and_is_there_without_any() {
        let two = site_status(vec![group_status("a"), group_status("b")]);
        let samples = parse(&render(two).unwrap());
        assert!(find(&samples, "doublure_group_healthy", &[("group", "b")]).is_some());
        let none = parse(&render(site_status(vec![])).unwrap());
        assert_eq!(find(&none, "doublure_uptime_seconds", &[]), Some(61.0));
    }

    #[test]
    fn every_state_is_in_the_tables() {
        // A state without its row would show a group in no state at all. Serde knows all names and lists them in
        // the error for an unknown one.
        let listed = |error: serde_json::Error| error.to_string().matches('`').count() / 2 - 1;
        let groups = serde_json::from_str::<GroupState>("\"?\"").unwrap_err();
        assert_eq!(
            listed(groups),
            GROUP_STATES.iter().map(word).collect::<HashSet<_>>().len()
        );
        let peers = serde_json::from_str::<PeerState>("\"?\"").unwrap_err();
        assert_eq!(
            listed(peers),
            PEER_STATES.iter().map(word).collect::<HashSet<_>>().len()
        );
    }
}
