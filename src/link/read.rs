//! Bodies of messages to messages, field by field.

use bytes::Bytes;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::error::LinkError;
use super::fields::{
    ACK_MODES, BELOW_2_63, CHUNK_ALLOWED, Codes, NAME_ALLOWED, RANGE_ALLOWED, REFUSALS, STANCES,
    UNTIL_ALLOWED, chunk_fits, is_chunk, is_name, is_until,
};
use super::wire::{
    ACK_INCONSISTENT, AckRecord, CHUNK_DATA, COMPARE_CONTENT, COMPARE_MEDIUM, COMPARED_UNREADABLE,
    ChunkRecord, CompareRecord, ComparedRecord, CopyRecord, EPOCH_ALONE, EPOCH_COMPLETE,
    EPOCH_MIXTURE, EpochRecord, GrowRecord, HELLO_ALONE, HELLO_INCONSISTENT, HELLO_WRITTEN,
    HandoverRecord, HelloPrefix, HelloRecord, HelloTail, INCOMPAT, Kind, MAX_EPOCHS, MAX_VOLUMES,
    RefuseRecord, VERSIONS, Versions, VolumeRecord,
};
use crate::base::{
    ByteRange, ChunkSet, Epoch, Hello, Lineage, Lsn, Message, Start, Verified, VolumeId, VolumeSpec,
};

/// A message other than frames and chunks from its body.
pub(super) fn body(kind: Kind, body: &[u8]) -> Result<Message, LinkError> {
    let mut r = Reader {
        kind,
        rest: body,
        lenient: false,
    };
    let message = match kind {
        Kind::Hello => Message::Hello(Box::new(r.hello()?)),
        Kind::Refuse => {
            let record: RefuseRecord = r.record("the record")?;
            r.zero("reserved bytes", &record.reserved)?;
            Message::Refuse {
                refusal: r.code("refusal", &REFUSALS, record.refusal)?,
                text: r.text()?,
            }
        }
        Kind::StartStream => start(Start::Stream {
            from: r.lsn("from")?,
        }),
        Kind::StartFetch => start(Start::Fetch {
            from: r.lsn("from")?,
        }),
        Kind::StartCopy => start(r.copy()?),
        Kind::StartHandover => {
            let record: HandoverRecord = r.record("the record")?;
            start(Start::Handover {
                epoch_id: Uuid::from_bytes(record.epoch_id),
                lsn: Lsn(r.below_2_63("LSN", record.lsn)?),
            })
        }
        Kind::Started => Message::Started,
        Kind::Ack => r.ack()?,
        Kind::Commit => Message::Commit { lsn: r.lsn("LSN")? },
        Kind::Ping => Message::Ping { token: r.token()? },
        Kind::Pong => Message::Pong { token: r.token()? },
        Kind::ChunksEnd => Message::ChunksEnd { lsn: r.lsn("LSN")? },
        Kind::FetchEnd => Message::FetchEnd {
            tail: r.lsn("tail")?,
        },
        Kind::Taken => Message::Taken,
        Kind::Bye => Message::Bye { reason: r.text()? },
        Kind::Touched => Message::Touched {
            chunks: r.chunks()?,
        },
        Kind::Confirmed => Message::Confirmed {
            chunks: r.chunks()?,
        },
        Kind::Placed => {
            let bytes = r.record("bytes")?;
            Message::Placed {
                bytes: r.below_2_63("bytes", bytes)?,
            }
        }
        Kind::Compare => {
            let record: CompareRecord = r.record("the record")?;
            r.zero("reserved bytes", &record.reserved)?;
            r.flags(record.flags, COMPARE_MEDIUM | COMPARE_CONTENT)?;
            Message::Compare {
                volume: VolumeId(record.volume.get()),
                range: r.compared_range(record.offset, record.len)?,
                lsn: Lsn(r.below_2_63("LSN", record.lsn)?),
                medium: record.flags & COMPARE_MEDIUM != 0,
                content: record.flags & COMPARE_CONTENT != 0,
            }
        }
        Kind::Compared => {
            let record: ComparedRecord = r.record("the record")?;
            r.zero("reserved bytes", &record.reserved)?;
            r.flags(record.flags, COMPARED_UNREADABLE)?;
            let readable = record.flags & COMPARED_UNREADABLE == 0;
            if !readable {
                r.present("the hash", false, record.hash)?;
            }
            Message::Compared {
                volume: VolumeId(record.volume.get()),
                range: r.compared_range(record.offset, record.len)?,
                hash: readable.then_some(record.hash),
            }
        }
        Kind::Verified => {
            let bytes = std::mem::take(&mut r.rest);
            let verified = Verified::decode(bytes)
                .map_err(|found| r.error("the verifications", found, "what `encode` writes"))?;
            Message::Verified(Box::new(verified))
        }
        Kind::CanGrow => {
            let (volume, size) = r.grow()?;
            Message::CanGrow { volume, size }
        }
        Kind::MayGrow => {
            let (volume, size) = r.grow()?;
            let refusal = r.text()?;
            Message::MayGrow {
                volume,
                size,
                refusal,
            }
        }
        Kind::Frame | Kind::Chunk | Kind::Content => {
            unreachable!("the codec keeps their content apart")
        }
    };
    r.end()?;
    Ok(message)
}

/// A chunk or the content of one from its record and its content (empty for zeroes).
pub(super) fn chunk(kind: Kind, record: &[u8], content: Bytes) -> Result<Message, LinkError> {
    let mut r = Reader {
        kind,
        rest: record,
        lenient: false,
    };
    let record: ChunkRecord = r.record("the record")?;
    r.zero("reserved bytes", &record.reserved)?;
    r.flags(record.flags, CHUNK_DATA)?;
    let range = ByteRange::new(record.offset.get(), record.len.get());
    let has_data = record.flags & CHUNK_DATA != 0;
    let present = (has_data || !content.is_empty()).then_some(content.len() as u64);
    if has_data != present.is_some() || !chunk_fits(range, present) {
        let found = format!("{range:?} with {} bytes of content", content.len());
        return Err(r.error("the range", found, CHUNK_ALLOWED));
    }
    let computed = crc32fast::hash(&content);
    let crc = record.crc.get();
    if computed != crc {
        return Err(LinkError::Checksum {
            kind,
            found: crc,
            computed,
        });
    }
    let volume = VolumeId(record.volume.get());
    let data = has_data.then_some(content);
    if kind == Kind::Chunk {
        return Ok(Message::Chunk {
            volume,
            range,
            data,
            crc,
        });
    }
    r.compared_range(record.offset, record.len)?;
    let unreadable: U64 = r.record("the unreadable blocks")?;
    Ok(Message::Content {
        volume,
        range,
        data,
        unreadable: unreadable.get(),
        crc,
    })
}

fn start(start: Start) -> Message {
    Message::Start(Box::new(start))
}

struct Reader<'a> {
    kind: Kind,
    rest: &'a [u8],
    /// A newer version wrote this: what we do not know is not an error.
    lenient: bool,
}

impl<'a> Reader<'a> {
    fn error(&self, field: &'static str, found: String, allowed: &str) -> LinkError {
        LinkError::Field {
            kind: self.kind,
            field,
            found,
            allowed: allowed.to_owned(),
        }
    }

    fn record<T>(&mut self, field: &'static str) -> Result<T, LinkError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let Ok((record, rest)) = T::read_from_prefix(self.rest) else {
            let found = format!("cut off after {} bytes", self.rest.len());
            let allowed = format!("{} bytes", size_of::<T>());
            return Err(self.error(field, found, &allowed));
        };
        self.rest = rest;
        Ok(record)
    }

    fn bytes(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], LinkError> {
        let Some((bytes, rest)) = self.rest.split_at_checked(len) else {
            let found = format!("cut off after {} bytes", self.rest.len());
            return Err(self.error(field, found, &format!("the {len} bytes announced")));
        };
        self.rest = rest;
        Ok(bytes)
    }

    fn name(&mut self, field: &'static str, len: u8) -> Result<String, LinkError> {
        let bytes = self.bytes(field, usize::from(len))?;
        match std::str::from_utf8(bytes) {
            Ok(name) if is_name(name) => Ok(name.to_owned()),
            _ => {
                let found = format!("\"{}\"", bytes.escape_ascii());
                Err(self.error(field, found, NAME_ALLOWED))
            }
        }
    }

    /// All that is left, as text for people.
    fn text(&mut self) -> Result<String, LinkError> {
        let bytes = std::mem::take(&mut self.rest);
        let text = std::str::from_utf8(bytes);
        let text = text.map_err(|e| self.error("the text", e.to_string(), "UTF-8"))?;
        Ok(text.to_owned())
    }

    /// All that is left, as a set of chunks.
    fn chunks(&mut self) -> Result<ChunkSet, LinkError> {
        let bytes = std::mem::take(&mut self.rest);
        ChunkSet::decode(bytes).map_err(|found| self.error("the set", found, "a set of chunks"))
    }

    fn end(&self) -> Result<(), LinkError> {
        if self.rest.is_empty() || self.lenient {
            return Ok(());
        }
        let found = format!("followed by {} more bytes", self.rest.len());
        Err(self.error("the last field", found, "nothing after it"))
    }

    fn zero(&self, field: &'static str, bytes: &[u8]) -> Result<(), LinkError> {
        if self.lenient || bytes.iter().all(|b| *b == 0) {
            return Ok(());
        }
        Err(self.error(field, format!("{bytes:02x?}"), "zeroes"))
    }

    fn flags(&self, found: u8, known: u8) -> Result<(), LinkError> {
        if self.lenient || found & !known == 0 {
            return Ok(());
        }
        let found = format!("{found:#04x}");
        Err(self.error("flags", found, &format!("the bits of {known:#04x}")))
    }

    /// `Some` if the flag is set; else the value must be zero.
    fn present<T: Default + PartialEq>(
        &self,
        field: &'static str,
        flag: bool,
        value: T,
    ) -> Result<Option<T>, LinkError> {
        if flag {
            return Ok(Some(value));
        }
        if value == T::default() {
            return Ok(None);
        }
        let found = "set, though its flag says it is absent".to_owned();
        Err(self.error(field, found, "zero when absent"))
    }

    fn code<T: Copy + PartialEq, const N: usize>(
        &self,
        field: &'static str,
        codes: &Codes<T, N>,
        code: u8,
    ) -> Result<T, LinkError> {
        let known = codes.value(code);
        known.ok_or_else(|| self.error(field, code.to_string(), &format!("1 to {N}")))
    }

    fn below_2_63(&self, field: &'static str, value: U64) -> Result<u64, LinkError> {
        match value.get() {
            value if value <= BELOW_2_63 => Ok(value),
            value => Err(self.error(field, value.to_string(), "below 2^63")),
        }
    }

    fn until(&self, flag: bool, value: U64) -> Result<Option<Lsn>, LinkError> {
        let value = value.get();
        if !is_until(value) {
            return Err(self.error("inconsistent until", value.to_string(), UNTIL_ALLOWED));
        }
        let until = self.present("inconsistent until", flag, value)?;
        Ok(until.map(Lsn))
    }

    fn lsn(&mut self, field: &'static str) -> Result<Lsn, LinkError> {
        let value = self.record(field)?;
        Ok(Lsn(self.below_2_63(field, value)?))
    }

    fn grow(&mut self) -> Result<(VolumeId, u64), LinkError> {
        let record: GrowRecord = self.record("the record")?;
        self.zero("reserved bytes", &record.reserved)?;
        let size = self.below_2_63("size", record.size)?;
        Ok((VolumeId(record.volume.get()), size))
    }

    fn compared_range(&self, offset: U64, len: U64) -> Result<ByteRange, LinkError> {
        let range = ByteRange::new(offset.get(), len.get());
        if is_chunk(range) {
            return Ok(range);
        }
        Err(self.error("the range", format!("{range:?}"), RANGE_ALLOWED))
    }

    fn token(&mut self) -> Result<u64, LinkError> {
        let token: U64 = self.record("the token")?;
        Ok(token.get())
    }

    fn count(&self, field: &'static str, count: U32, most: usize) -> Result<usize, LinkError> {
        match count.get() as usize {
            count if count <= most => Ok(count),
            count => Err(self.error(field, count.to_string(), &format!("at most {most}"))),
        }
    }

    fn hello(&mut self) -> Result<Hello, LinkError> {
        let prefix: HelloPrefix = self.record("the version")?;
        let theirs = Versions {
            oldest: prefix.oldest.get(),
            newest: prefix.newest.get(),
        };
        if theirs.oldest > theirs.newest {
            let found = format!("{} to {}", theirs.oldest, theirs.newest);
            return Err(self.error("range of versions", found, "oldest to newest"));
        }
        if !theirs.meet(VERSIONS) {
            let ours = VERSIONS;
            return Err(LinkError::Version { theirs, ours });
        }
        let unknown = prefix.incompat.get() & !INCOMPAT;
        if unknown != 0 {
            return Err(LinkError::Features { unknown });
        }
        self.lenient = theirs.newest > VERSIONS.newest;
        self.zero("reserved bytes of the version", &prefix.reserved)?;

        let record: HelloRecord = self.record("the record")?;
        self.zero("reserved bytes", &record.reserved)?;
        self.flags(record.flags, HELLO_ALONE | HELLO_INCONSISTENT)?;
        let epochs = self.count("number of epochs", record.epochs, MAX_EPOCHS)?;
        let volumes = self.count("number of volumes", record.volumes, MAX_VOLUMES)?;
        let inconsistent = record.flags & HELLO_INCONSISTENT != 0;
        let group = self.name("name of the group", record.group_len)?;
        let site = self.name("name of the site", record.site_len)?;
        let to_site = self.name("name of the addressed site", record.to_site_len)?;
        let lineage = self.lineage(epochs)?;
        let volumes = self.volumes(volumes)?;
        let tail: HelloTail = self.record("the end")?;
        self.zero("reserved bytes of the end", &tail.reserved)?;
        self.flags(tail.flags, HELLO_WRITTEN)?;
        let written = self.below_2_63("last written", tail.written)?;
        let known = tail.flags & HELLO_WRITTEN != 0;
        Ok(Hello {
            group_id: Uuid::from_bytes(record.group_id),
            group,
            site,
            to_site,
            stance: self.code("stance", &STANCES, record.stance)?,
            lineage,
            tail: Lsn(self.below_2_63("tail", record.tail)?),
            commit: Lsn(self.below_2_63("commit", record.commit)?),
            chain: record.chain.get(),
            told_durable: Lsn(self.below_2_63("told durable", record.told_durable)?),
            floor: Lsn(self.below_2_63("floor", record.floor)?),
            inconsistent_until: self.until(inconsistent, record.inconsistent_until)?,
            alone: record.flags & HELLO_ALONE != 0,
            ack: self.code("ack mode", &ACK_MODES, record.ack)?,
            volumes,
            journal_first: Lsn(self.below_2_63("journal first", record.journal_first)?),
            given_up: Uuid::from_bytes(record.given_up),
            mixture: Uuid::from_bytes(tail.mixture),
            written: self.present("last written", known, written)?.map(Lsn),
        })
    }

    fn copy(&mut self) -> Result<Start, LinkError> {
        let record: CopyRecord = self.record("the record")?;
        self.zero("reserved bytes", &record.reserved)?;
        self.zero("reserved bytes at the end", &record.reserved_end)?;
        let epochs = self.count("number of epochs", record.epochs, MAX_EPOCHS)?;
        let volumes = self.count("number of volumes", record.volumes, MAX_VOLUMES)?;
        Ok(Start::Copy {
            group_id: Uuid::from_bytes(record.group_id),
            base: Lsn(self.below_2_63("base", record.base)?),
            chain: record.chain.get(),
            lineage: self.lineage(epochs)?,
            volumes: self.volumes(volumes)?,
            ack: self.code("ack mode", &ACK_MODES, record.ack)?,
            time_ns: record.time_ns.get(),
        })
    }

    fn ack(&mut self) -> Result<Message, LinkError> {
        let record: AckRecord = self.record("the record")?;
        self.zero("reserved bytes", &record.reserved)?;
        self.zero("reserved bytes at the end", &record.reserved_end)?;
        self.flags(record.flags, ACK_INCONSISTENT)?;
        let inconsistent = record.flags & ACK_INCONSISTENT != 0;
        Ok(Message::Ack {
            received: Lsn(self.below_2_63("received", record.received)?),
            durable: Lsn(self.below_2_63("durable", record.durable)?),
            applied: Lsn(self.below_2_63("applied", record.applied)?),
            credit_bytes: record.credit_bytes.get(),
            inconsistent_until: self.until(inconsistent, record.inconsistent_until)?,
        })
    }

    fn lineage(&mut self, count: usize) -> Result<Lineage, LinkError> {
        // Room for what can be in the body, not for what it claims.
        let room = count.min(self.rest.len() / size_of::<EpochRecord>());
        let mut epochs = Vec::with_capacity(room);
        for _ in 0..count {
            let record: EpochRecord = self.record("an epoch")?;
            self.zero("reserved bytes of an epoch", &record.reserved)?;
            self.flags(record.flags, EPOCH_ALONE | EPOCH_COMPLETE | EPOCH_MIXTURE)?;
            epochs.push(Epoch {
                number: self.below_2_63("epoch number", record.number)?,
                id: Uuid::from_bytes(record.id),
                site: self.name("site of an epoch", record.site_len)?,
                first_lsn: Lsn(self.below_2_63("first LSN of an epoch", record.first_lsn)?),
                ack: self.code("ack mode of an epoch", &ACK_MODES, record.ack)?,
                alone: record.flags & EPOCH_ALONE != 0,
                complete: record.flags & EPOCH_COMPLETE != 0,
                mixture: record.flags & EPOCH_MIXTURE != 0,
                time_ns: record.time_ns.get(),
            });
        }
        let lineage = Lineage::new(epochs);
        lineage.map_err(|why| self.error("the lineage", why, "epochs in order"))
    }

    fn volumes(&mut self, count: usize) -> Result<Vec<VolumeSpec>, LinkError> {
        let room = count.min(self.rest.len() / size_of::<VolumeRecord>());
        let mut volumes = Vec::with_capacity(room);
        for _ in 0..count {
            let record: VolumeRecord = self.record("a volume")?;
            self.zero("reserved bytes of a volume", &record.reserved)?;
            volumes.push(VolumeSpec {
                id: VolumeId(record.id.get()),
                uuid: Uuid::from_bytes(record.uuid),
                name: self.name("name of a volume", record.name_len)?,
                size: self.below_2_63("size of a volume", record.size)?,
            });
        }
        Ok(volumes)
    }
}
