//! Messages to the bodies of messages, field by field.

use std::fmt::Display;

use bytes::Bytes;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::error::LinkError;
use super::fields::{
    ACK_MODES, BELOW_2_63, CHUNK_ALLOWED, NAME_ALLOWED, RANGE_ALLOWED, REFUSALS, STANCES,
    UNTIL_ALLOWED, chunk_fits, is_chunk, is_name, is_until,
};
use super::wire::{
    ACK_INCONSISTENT, AckRecord, CHUNK_DATA, COMPARE_CONTENT, COMPARE_MEDIUM, COMPARED_UNREADABLE,
    ChunkRecord, CompareRecord, ComparedRecord, ContentRecord, CopyRecord, EPOCH_ALONE,
    EPOCH_COMPLETE, EPOCH_MIXTURE, EpochRecord, GrowRecord, HELLO_ALONE, HELLO_INCONSISTENT,
    HELLO_WRITTEN, HandoverRecord, HelloPrefix, HelloRecord, HelloTail, Kind, MAX_EPOCHS, MAX_TEXT,
    MAX_VOLUMES, MIXTURES, RefuseRecord, VERSIONS, VolumeRecord,
};
use crate::base::{ByteRange, ChunkSet, Hello, Lineage, Lsn, Message, Start, VolumeId, VolumeSpec};

/// What the receiver of a greeting must know.
fn features(hello: &Hello) -> u64 {
    let tells = hello.lineage.last_mixture().is_some() || !hello.mixture.is_nil();
    if tells { MIXTURES } else { 0 }
}

/// Appends the covered part of a message's body to `out`; returns the content that follows, if any.
pub(super) fn body(
    kind: Kind,
    message: &Message,
    out: &mut Vec<u8>,
) -> Result<Option<Bytes>, LinkError> {
    let mut w = Writer { kind, out };
    let mut content = None;
    match message {
        Message::Hello(hello) => w.hello(hello)?,
        Message::Refuse { refusal, text } => {
            w.put(&RefuseRecord {
                refusal: REFUSALS.code(*refusal),
                reserved: [0; 3],
            });
            w.text(text);
        }
        Message::Start(start) => w.start(start)?,
        Message::Started | Message::Taken => {}
        Message::Frame(frame) => {
            let allowed = Kind::Frame.limits();
            let found = || format!("{} bytes", frame.len());
            w.check(allowed.allow(frame.len()), "its length", found, &allowed)?;
            content = Some(frame.clone());
        }
        Message::Ack {
            received,
            durable,
            applied,
            credit_bytes,
            inconsistent_until,
        } => {
            let mut flags = 0;
            let until = absent_or(*inconsistent_until, &mut flags, ACK_INCONSISTENT, |lsn| {
                lsn.0
            });
            w.put(&AckRecord {
                received: w.below_2_63("received", received.0)?,
                durable: w.below_2_63("durable", durable.0)?,
                applied: w.below_2_63("applied", applied.0)?,
                credit_bytes: (*credit_bytes).into(),
                inconsistent_until: w.until(until)?,
                reserved: [0; 12],
                flags,
                reserved_end: [0; 3],
            });
        }
        Message::Commit { lsn } | Message::ChunksEnd { lsn } => w.lsn("LSN", *lsn)?,
        Message::FetchEnd { tail } => w.lsn("tail", *tail)?,
        Message::Ping { token } | Message::Pong { token } => w.put(&U64::new(*token)),
        Message::Chunk {
            volume,
            range,
            data,
            crc,
        } => {
            let chunk = w.chunk(*volume, *range, data.as_ref(), *crc)?;
            w.put(&chunk);
            content.clone_from(data);
        }
        Message::Bye { reason } => w.text(reason),
        Message::Touched { chunks } => {
            let bytes = chunks.encode();
            let fits = Kind::Touched.limits().allow(bytes.len());
            // Everything is a safe thing to say, and short.
            let bytes = if fits {
                bytes
            } else {
                ChunkSet::everything().encode()
            };
            w.out.extend_from_slice(&bytes);
        }
        Message::Confirmed { chunks } => {
            let bytes = chunks.encode();
            // Nothing is a safe thing to say.
            if Kind::Confirmed.limits().allow(bytes.len()) {
                w.out.extend_from_slice(&bytes);
            }
        }
        Message::Placed { bytes } => {
            let bytes = w.below_2_63("bytes", *bytes)?;
            w.put(&bytes);
        }
        Message::Compare {
            volume,
            range,
            lsn,
            medium,
            content: wants_content,
        } => {
            w.compared_range(*range)?;
            w.put(&CompareRecord {
                offset: range.offset.into(),
                len: range.len.into(),
                volume: volume.0.into(),
                flags: if *medium { COMPARE_MEDIUM } else { 0 }
                    | if *wants_content { COMPARE_CONTENT } else { 0 },
                reserved: [0; 3],
                lsn: w.below_2_63("LSN", lsn.0)?,
            });
        }
        Message::CanGrow { volume, size } => w.grow(*volume, *size)?,
        Message::MayGrow {
            volume,
            size,
            refusal,
        } => {
            w.grow(*volume, *size)?;
            w.text(refusal);
        }
        Message::Compared {
            volume,
            range,
            hash,
        } => {
            w.compared_range(*range)?;
            w.put(&ComparedRecord {
                offset: range.offset.into(),
                len: range.len.into(),
                volume: volume.0.into(),
                flags: if hash.is_some() {
                    0
                } else {
                    COMPARED_UNREADABLE
                },
                reserved: [0; 3],
                hash: hash.unwrap_or_default(),
            });
        }
        Message::Content {
            volume,
            range,
            data,
            unreadable,
            crc,
        } => {
            w.compared_range(*range)?;
            let chunk = w.chunk(*volume, *range, data.as_ref(), *crc)?;
            w.put(&ContentRecord {
                chunk,
                unreadable: (*unreadable).into(),
            });
            content.clone_from(data);
        }
        Message::Verified(verified) => w.out.extend_from_slice(&verified.encode()),
    }
    Ok(content)
}

/// Which message it is.
pub(super) fn kind_of(message: &Message) -> Kind {
    match message {
        Message::Hello(_) => Kind::Hello,
        Message::Refuse { .. } => Kind::Refuse,
        Message::Start(start) => match **start {
            Start::Stream { .. } => Kind::StartStream,
            Start::Fetch { .. } => Kind::StartFetch,
            Start::Copy { .. } => Kind::StartCopy,
            Start::Handover { .. } => Kind::StartHandover,
        },
        Message::Started => Kind::Started,
        Message::Frame(_) => Kind::Frame,
        Message::Ack { .. } => Kind::Ack,
        Message::Commit { .. } => Kind::Commit,
        Message::Ping { .. } => Kind::Ping,
        Message::Pong { .. } => Kind::Pong,
        Message::Chunk { .. } => Kind::Chunk,
        Message::ChunksEnd { .. } => Kind::ChunksEnd,
        Message::FetchEnd { .. } => Kind::FetchEnd,
        Message::Taken => Kind::Taken,
        Message::Bye { .. } => Kind::Bye,
        Message::Touched { .. } => Kind::Touched,
        Message::Confirmed { .. } => Kind::Confirmed,
        Message::Placed { .. } => Kind::Placed,
        Message::Compare { .. } => Kind::Compare,
        Message::Compared { .. } => Kind::Compared,
        Message::Content { .. } => Kind::Content,
        Message::Verified(_) => Kind::Verified,
        Message::CanGrow { .. } => Kind::CanGrow,
        Message::MayGrow { .. } => Kind::MayGrow,
    }
}

/// Sets the flag and gives the value, or gives zero.
fn absent_or<T, U: Default>(value: Option<T>, flags: &mut u8, flag: u8, map: impl Fn(T) -> U) -> U {
    let Some(value) = value else {
        return U::default();
    };
    *flags |= flag;
    map(value)
}

struct Writer<'a> {
    kind: Kind,
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn put(&mut self, record: &(impl IntoBytes + Immutable)) {
        self.out.extend_from_slice(record.as_bytes());
    }

    fn check(
        &self,
        right: bool,
        field: &'static str,
        found: impl FnOnce() -> String,
        allowed: &dyn Display,
    ) -> Result<(), LinkError> {
        if right {
            return Ok(());
        }
        Err(LinkError::Unsendable {
            kind: self.kind,
            field,
            found: found(),
            allowed: allowed.to_string(),
        })
    }

    fn below_2_63(&self, field: &'static str, value: u64) -> Result<U64, LinkError> {
        self.check(
            value <= BELOW_2_63,
            field,
            || value.to_string(),
            &"below 2^63",
        )?;
        Ok(value.into())
    }

    fn until(&self, value: u64) -> Result<U64, LinkError> {
        let found = || value.to_string();
        self.check(is_until(value), "inconsistent until", found, &UNTIL_ALLOWED)?;
        Ok(value.into())
    }

    fn lsn(&mut self, field: &'static str, lsn: Lsn) -> Result<(), LinkError> {
        let lsn = self.below_2_63(field, lsn.0)?;
        self.put(&lsn);
        Ok(())
    }

    /// The length of a name that may be sent.
    fn name_len(&self, field: &'static str, name: &str) -> Result<u8, LinkError> {
        let found = || format!("{name:?}");
        self.check(is_name(name), field, found, &NAME_ALLOWED)?;
        Ok(name.len() as u8)
    }

    fn name(&mut self, name: &str) {
        self.out.extend_from_slice(name.as_bytes());
    }

    fn chunk(
        &self,
        volume: VolumeId,
        range: ByteRange,
        data: Option<&Bytes>,
        crc: u32,
    ) -> Result<ChunkRecord, LinkError> {
        let present = data.map(|data| data.len() as u64);
        let found = || format!("{range:?} with {present:?} bytes of content");
        self.check(
            chunk_fits(range, present),
            "the range",
            found,
            &CHUNK_ALLOWED,
        )?;
        Ok(ChunkRecord {
            offset: range.offset.into(),
            len: range.len.into(),
            volume: volume.0.into(),
            crc: crc.into(),
            flags: if data.is_some() { CHUNK_DATA } else { 0 },
            reserved: [0; 7],
        })
    }

    fn grow(&mut self, volume: VolumeId, size: u64) -> Result<(), LinkError> {
        let record = GrowRecord {
            size: self.below_2_63("size", size)?,
            volume: volume.0.into(),
            reserved: [0; 4],
        };
        self.put(&record);
        Ok(())
    }

    fn compared_range(&self, range: ByteRange) -> Result<(), LinkError> {
        let found = || format!("{range:?}");
        self.check(is_chunk(range), "the range", found, &RANGE_ALLOWED)
    }

    fn text(&mut self, text: &str) {
        let end = text.floor_char_boundary(MAX_TEXT);
        self.out.extend_from_slice(&text.as_bytes()[..end]);
    }

    fn count(&self, field: &'static str, count: usize, most: usize) -> Result<U32, LinkError> {
        let found = || count.to_string();
        self.check(count <= most, field, found, &format_args!("at most {most}"))?;
        Ok((count as u32).into())
    }

    fn hello(&mut self, hello: &Hello) -> Result<(), LinkError> {
        let mut flags = if hello.alone { HELLO_ALONE } else { 0 };
        let until = absent_or(
            hello.inconsistent_until,
            &mut flags,
            HELLO_INCONSISTENT,
            |lsn| lsn.0,
        );
        self.put(&HelloPrefix {
            newest: VERSIONS.newest.into(),
            oldest: VERSIONS.oldest.into(),
            reserved: [0; 4],
            compat: 0.into(),
            incompat: features(hello).into(),
        });
        let record = HelloRecord {
            group_id: hello.group_id.into_bytes(),
            tail: self.below_2_63("tail", hello.tail.0)?,
            commit: self.below_2_63("commit", hello.commit.0)?,
            told_durable: self.below_2_63("told durable", hello.told_durable.0)?,
            floor: self.below_2_63("floor", hello.floor.0)?,
            inconsistent_until: self.until(until)?,
            journal_first: self.below_2_63("journal first", hello.journal_first.0)?,
            chain: hello.chain.into(),
            epochs: self.count("number of epochs", hello.lineage.epochs().len(), MAX_EPOCHS)?,
            volumes: self.count("number of volumes", hello.volumes.len(), MAX_VOLUMES)?,
            stance: STANCES.code(hello.stance),
            ack: ACK_MODES.code(hello.ack),
            flags,
            group_len: self.name_len("name of the group", &hello.group)?,
            site_len: self.name_len("name of the site", &hello.site)?,
            to_site_len: self.name_len("name of the addressed site", &hello.to_site)?,
            reserved: [0; 6],
            given_up: hello.given_up.into_bytes(),
        };
        self.put(&record);
        self.name(&hello.group);
        self.name(&hello.site);
        self.name(&hello.to_site);
        self.lineage(&hello.lineage)?;
        self.volumes(&hello.volumes)?;
        let mut flags = 0;
        let written = absent_or(hello.written, &mut flags, HELLO_WRITTEN, |lsn| lsn.0);
        let tail = HelloTail {
            mixture: hello.mixture.into_bytes(),
            written: self.below_2_63("last written", written)?,
            flags,
            reserved: [0; 7],
        };
        self.put(&tail);
        Ok(())
    }

    fn start(&mut self, start: &Start) -> Result<(), LinkError> {
        match start {
            Start::Stream { from } | Start::Fetch { from } => self.lsn("from", *from),
            Start::Handover { epoch_id, lsn } => {
                let record = HandoverRecord {
                    epoch_id: epoch_id.into_bytes(),
                    lsn: self.below_2_63("LSN", lsn.0)?,
                };
                self.put(&record);
                Ok(())
            }
            Start::Copy {
                group_id,
                base,
                chain,
                lineage,
                volumes,
                ack,
                time_ns,
            } => {
                let record = CopyRecord {
                    group_id: group_id.into_bytes(),
                    base: self.below_2_63("base", base.0)?,
                    time_ns: (*time_ns).into(),
                    reserved: [0; 4],
                    chain: (*chain).into(),
                    epochs: self.count("number of epochs", lineage.epochs().len(), MAX_EPOCHS)?,
                    volumes: self.count("number of volumes", volumes.len(), MAX_VOLUMES)?,
                    ack: ACK_MODES.code(*ack),
                    reserved_end: [0; 7],
                };
                self.put(&record);
                self.lineage(lineage)?;
                self.volumes(volumes)
            }
        }
    }

    fn lineage(&mut self, lineage: &Lineage) -> Result<(), LinkError> {
        for epoch in lineage.epochs() {
            let record = EpochRecord {
                number: self.below_2_63("epoch number", epoch.number)?,
                id: epoch.id.into_bytes(),
                first_lsn: self.below_2_63("first LSN of an epoch", epoch.first_lsn.0)?,
                time_ns: epoch.time_ns.into(),
                ack: ACK_MODES.code(epoch.ack),
                flags: if epoch.alone { EPOCH_ALONE } else { 0 }
                    | if epoch.complete { EPOCH_COMPLETE } else { 0 }
                    | if epoch.mixture { EPOCH_MIXTURE } else { 0 },
                site_len: self.name_len("site of an epoch", &epoch.site)?,
                reserved: [0; 5],
            };
            self.put(&record);
            self.name(&epoch.site);
        }
        Ok(())
    }

    fn volumes(&mut self, volumes: &[VolumeSpec]) -> Result<(), LinkError> {
        for volume in volumes {
            let record = VolumeRecord {
                uuid: volume.uuid.into_bytes(),
                size: self.below_2_63("size of a volume", volume.size)?,
                id: volume.id.0.into(),
                name_len: self.name_len("name of a volume", &volume.name)?,
                reserved: [0; 3],
            };
            self.put(&record);
            self.name(&volume.name);
        }
        Ok(())
    }
}
