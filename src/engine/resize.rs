//! `doublure resize`: growing a volume while it is in use.
//!
//! Every site is asked first whether its home can have the new size; nothing is changed before all have said yes. The
//! operation then goes through the journal like a write, so that all sites grow at the same place of the history.

use std::fmt::Write;

use super::{DiskOp, DiskResult, File, Group, LinkId, Output, Pending};
use crate::base::{
    ByteRange, Lsn, Message, Op, OpKind, VOLUME_MAX_BYTES, VolumeId, VolumeSpec, counted_bytes,
    exact_bytes,
};
use crate::core::{Event, Peer, Severity};
use crate::journal;

/// Volumes are a multiple of this long, bytes.
const UNIT: u64 = 512;

/// A resize that an operator waits for.
pub(super) struct Resizing {
    command: u64,
    /// With the new size.
    volume: VolumeSpec,
    /// Sites that have not answered, by their links; `None` is this one.
    asked: Vec<Option<LinkId>>,
    /// The operation, once it was entered.
    lsn: Option<Lsn>,
}

impl Group {
    /// Asks every site, this one too.
    pub(super) fn begin_resize(&mut self, command: u64, name: &str, size: u64) {
        let known = self.volumes.iter().find(|v| v.name == name);
        if known.is_some_and(|v| v.size == size) && self.core.admitting() {
            let text = format!(
                "volume {name} has {} already; nothing was changed",
                exact_bytes(size)
            );
            return self.answer(command, Ok(text));
        }
        match self.may_resize(name, size) {
            Err(text) => self.answer(command, Err(text)),
            Ok(volume) => {
                let links = self.core.peers().iter().filter_map(Peer::streaming_link);
                let links: Vec<LinkId> = links.map(|l| LinkId(l.0)).collect();
                let mut asked = vec![None];
                for link in links {
                    asked.push(Some(link));
                    let volume = volume.id;
                    self.send(link, Message::CanGrow { volume, size });
                }
                self.check_grow(None, volume.clone());
                self.resizing = Some(Resizing {
                    command,
                    volume,
                    asked,
                    lsn: None,
                });
            }
        }
    }

    fn may_resize(&self, name: &str, size: u64) -> Result<VolumeSpec, String> {
        let group = &self.config.group;
        if !self.core.admitting() {
            return Err(format!(
                "{} is not serving {group}; give the command to its primary",
                self.config.site
            ));
        }
        if self.resizing.is_some() {
            return Err("another resize is under way".into());
        }
        let Some(volume) = self.volumes.iter().find(|v| v.name == name) else {
            let names: Vec<&str> = self.volumes.iter().map(|v| v.name.as_str()).collect();
            return Err(format!(
                "{group} has no volume '{name}'; it has {}",
                names.join(", ")
            ));
        };
        if size <= volume.size {
            return Err(format!(
                "volume {name} has {} and never shrinks; {} is not more",
                exact_bytes(volume.size),
                exact_bytes(size)
            ));
        }
        if !size.is_multiple_of(UNIT) || size > VOLUME_MAX_BYTES {
            return Err(format!(
                "a volume of {} cannot be: allowed is a multiple of {UNIT} bytes, at most {}",
                exact_bytes(size),
                exact_bytes(VOLUME_MAX_BYTES)
            ));
        }
        if let Some(peer) = self.core.peers().iter().find(|p| !p.in_sync) {
            return Err(format!(
                "{} is not in sync, and every site must say that it can hold the new size before anything is changed; \
                 `doublure explain {group}` tells what keeps it away",
                peer.name
            ));
        }
        Ok(VolumeSpec {
            size,
            ..volume.clone()
        })
    }

    fn answer(&mut self, id: u64, result: Result<String, String>) {
        self.outputs.push(Output::CommandDone { id, result });
    }

    fn check_grow(&mut self, link: Option<LinkId>, volume: VolumeSpec) {
        let pending = Pending::CheckGrow {
            link,
            volume: volume.id,
            size: volume.size,
        };
        self.submit(
            pending,
            DiskOp::GrowHome {
                volume,
                only_check: true,
            },
        );
    }

    /// The primary asks.
    pub(super) fn asked_to_grow(&mut self, link: LinkId, volume: VolumeId, size: u64) {
        match self.volumes.iter().find(|v| v.id == volume) {
            Some(spec) => {
                let grown = VolumeSpec {
                    size,
                    ..spec.clone()
                };
                self.check_grow(Some(link), grown);
            }
            None => self.send(
                link,
                Message::MayGrow {
                    volume,
                    size,
                    refusal: format!("there is no volume {} here yet", volume.0),
                },
            ),
        }
    }

    pub(super) fn grow_checked(
        &mut self,
        link: Option<LinkId>,
        volume: VolumeId,
        size: u64,
        result: DiskResult,
    ) {
        let refusal = match result {
            DiskResult::Failed { message, .. } => message,
            _ => String::new(),
        };
        match link {
            None => self.site_answered(None, volume, size, &refusal),
            Some(link) => self.send(
                link,
                Message::MayGrow {
                    volume,
                    size,
                    refusal,
                },
            ),
        }
    }

    /// A mirror answered.
    pub(super) fn may_grow(&mut self, link: LinkId, volume: VolumeId, size: u64, refusal: &str) {
        self.site_answered(Some(link), volume, size, refusal);
    }

    fn site_answered(&mut self, from: Option<LinkId>, volume: VolumeId, size: u64, refusal: &str) {
        let Some(resizing) = self
            .resizing
            .as_mut()
            .filter(|r| r.lsn.is_none() && r.volume.id == volume && r.volume.size == size)
        else {
            return;
        };
        if !refusal.is_empty() {
            let id = resizing.command;
            self.resizing = None;
            let who = match from {
                None => self.config.site.clone(),
                Some(link) => self
                    .core
                    .peer_name(crate::core::Link(link.0))
                    .unwrap_or_default(),
            };
            let text = format!("{who} cannot hold the new size, nothing was changed: {refusal}");
            self.answer(id, Err(text));
            return;
        }
        resizing.asked.retain(|asked| *asked != from);
        self.enter_resize();
    }

    /// Enters the operation once all have said yes and operations are admitted.
    fn enter_resize(&mut self) {
        let Some(resizing) = self
            .resizing
            .as_mut()
            .filter(|r| r.asked.is_empty() && r.lsn.is_none())
        else {
            return;
        };
        let volume = resizing.volume.clone();
        if !self.core.admitting() {
            let id = resizing.command;
            self.resizing = None;
            self.answer(
                id,
                Err("this site stopped serving; nothing was changed".into()),
            );
            return;
        }
        let op = Op {
            kind: OpKind::ResizeVolume,
            volume: volume.id,
            range: ByteRange::new(0, 0),
            fua: false,
        };
        let lsn = self.core.assign(1);
        self.enter(lsn, &op, &journal::encode_volume(&volume).into());
        self.resizing.as_mut().expect("just seen").lsn = Some(lsn);
    }

    /// A link is gone: who was asked on it will not answer.
    pub(super) fn resize_lost(&mut self, link: LinkId) {
        if let Some(resizing) = self
            .resizing
            .take_if(|r| r.lsn.is_none() && r.asked.contains(&Some(link)))
        {
            let text = "a mirror was lost before it answered; nothing was changed";
            self.answer(resizing.command, Err(text.into()));
        }
    }

    /// The operation is committed: the home first.
    pub(super) fn grow_volume(&mut self, lsn: Lsn, payload: &[u8]) {
        match journal::decode_volume(payload) {
            Ok(volume) => {
                let pending = Pending::GrowHome {
                    lsn,
                    volume: volume.clone(),
                };
                self.submit(
                    pending,
                    DiskOp::GrowHome {
                        volume,
                        only_check: false,
                    },
                );
            }
            Err(error) => self.event(Event::DiskFailed(format!("operation {lsn}: {error}"))),
        }
    }

    /// What a volume grows by reads as zeroes on every site, whatever its device held there.
    pub(super) fn clear_grown(&mut self, lsn: Lsn, volume: VolumeSpec) {
        let known = self.volumes.iter().find(|v| v.id == volume.id);
        let size = known.map_or(0, |v| v.size);
        if volume.size <= size {
            self.home_grown(lsn, &volume);
            return;
        }
        let file = File::Home(volume.id);
        let range = ByteRange::new(size, volume.size - size);
        self.submit(
            Pending::ClearGrown { lsn, volume },
            DiskOp::Zero {
                file,
                range,
                keep: false,
            },
        );
    }

    /// The record may hold the new size before the next checkpoint, and a recovery would not clear it again.
    pub(super) fn sync_grown(&mut self, lsn: Lsn, volume: VolumeSpec) {
        let file = File::Home(volume.id);
        self.submit(Pending::SyncGrown { lsn, volume }, DiskOp::sync(file));
    }

    /// This site serves no more: what comes of the operation is decided by whoever does.
    pub(super) fn resize_abandoned(&mut self) {
        if let Some(resizing) = self.resizing.take() {
            let text = "this site stopped serving before the volume had grown; `doublure status` at the primary shows its size";
            self.answer(resizing.command, Err(text.into()));
        }
    }

    /// The home is as long as the volume is from now on.
    pub(super) fn home_grown(&mut self, lsn: Lsn, volume: &VolumeSpec) {
        let text = format!(
            "volume {} has {} now",
            volume.name,
            exact_bytes(volume.size)
        );
        self.log_line(Severity::Info, text);
        let mut size = 0;
        if let Some(known) = self.volumes.iter_mut().find(|v| v.id == volume.id) {
            size = std::mem::replace(&mut known.size, volume.size);
        }
        self.homes.touch(volume.id);
        self.applied(lsn, None);
        let open = self.core.open_to_clients();
        self.exports(open);
        if let Some(resizing) = self.resizing.take_if(|r| r.lsn == Some(lsn)) {
            let mut text = format!(
                "volume {} has {} now; clients see it when they connect again. Set `size` in the configuration, too, which is \
                 only read when a volume is made: else `status` tells that the two disagree",
                volume.name,
                exact_bytes(volume.size)
            );
            // A sparse home takes what is written to it, and no more: that is allowed, and may end in ENOSPC.
            let grown = volume.size - size.min(volume.size);
            let there = self.core.peers().iter();
            let there = there.filter_map(|p| Some((p.name.clone(), self.space_left_at(p)?)));
            let here = self
                .space_left()
                .map(|left| (self.config.site.clone(), left));
            for (site, left) in here
                .into_iter()
                .chain(there)
                .filter(|(_, left)| *left < grown)
            {
                let left = counted_bytes(left);
                let _ = write!(
                    text,
                    ". {site} has space for {left} more only: writes beyond that are refused (ENOSPC) unless some is freed there"
                );
            }
            self.answer(resizing.command, Ok(text));
        }
    }
}
