//! The data of options, and the answers to them.

use bytes::BytesMut;
use zerocopy::IntoBytes;

use super::wire::{
    ANSWER_MAGIC, AnswerHeader, ExportNameAnswer, InfoBlockSize, InfoExport, STRING_MAX, answer,
    info, string,
};
use super::{MAX_PAYLOAD, MIN_BLOCK, PREFERRED_BLOCK, Session};

/// Why the data of an option cannot be read; a sentence for the client.
pub(super) type Malformed = &'static str;

/// Data of INFO and GO.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct InfoQuery<'a> {
    pub name: &'a str,
    pub wants_name: bool,
    pub wants_description: bool,
    pub wants_block_size: bool,
}

impl<'a> InfoQuery<'a> {
    /// Name length 4, name, count 2, then count x fact 2. Facts we do not know are ignored.
    pub fn parse(data: &'a [u8]) -> Result<InfoQuery<'a>, Malformed> {
        let mut fields = Fields(data);
        let mut query = InfoQuery {
            name: fields.string()?,
            wants_name: false,
            wants_description: false,
            wants_block_size: false,
        };
        for _ in 0..fields.u16()? {
            match fields.u16()? {
                info::NAME => query.wants_name = true,
                info::DESCRIPTION => query.wants_description = true,
                info::BLOCK_SIZE => query.wants_block_size = true,
                _ => {}
            }
        }
        fields.end()?;
        Ok(query)
    }
}

/// Data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct MetaQuery<'a> {
    pub name: &'a str,
    pub queries: Vec<&'a str>,
}

impl<'a> MetaQuery<'a> {
    /// Name length 4, name, count 4, then count x (length 4, query).
    pub fn parse(data: &'a [u8]) -> Result<MetaQuery<'a>, Malformed> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = fields.u32()?;
        // Not collected by count: the client's claim is not a reason to allocate.
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(fields.string()?);
        }
        fields.end()?;
        Ok(MetaQuery { name, queries })
    }
}

/// A string as the protocol allows it, or why it is not one.
pub(super) fn check_string(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_MAX {
        return Err("a string is longer than 4096 bytes");
    }
    if bytes.contains(&0) {
        return Err("a string contains a NUL");
    }
    std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")
}

/// What is left to read of an option's data.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (field, rest) = self
            .0
            .split_at_checked(len)
            .ok_or("a length inside the option exceeds its data")?;
        self.0 = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.bytes(N)?.try_into().expect("N bytes were read"))
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Length 4, string.
    fn string(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u32()?;
        check_string(self.bytes(len as usize)?)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err("the option has data beyond its last field")
        }
    }
}

/// Why an option is refused: a kind of [`answer`] and a sentence for people.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub kind: u32,
    pub text: String,
}

impl Refusal {
    pub fn new(kind: u32, text: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            text: text.into(),
        }
    }

    pub fn invalid(text: impl Into<String>) -> Refusal {
        Refusal::new(answer::ERR_INVALID, text)
    }
}

impl From<Malformed> for Refusal {
    fn from(text: Malformed) -> Refusal {
        Refusal::invalid(text)
    }
}

/// Writes the answers to one option.
pub(super) struct Answers<'a> {
    pub output: &'a mut BytesMut,
    pub option: u32,
}

impl Answers<'_> {
    fn put(&mut self, kind: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let header = AnswerHeader {
            magic: ANSWER_MAGIC.into(),
            option: self.option.into(),
            kind: kind.into(),
            len: u32::try_from(len)
                .expect("answers are a few strings")
                .into(),
        };
        self.output.extend_from_slice(header.as_bytes());
        for part in parts {
            self.output.extend_from_slice(part);
        }
    }

    pub fn ack(&mut self) {
        self.put(answer::ACK, &[]);
    }

    pub fn refuse(&mut self, refusal: &Refusal) {
        self.put(refusal.kind, &[string(&refusal.text).as_bytes()]);
    }

    pub fn server(&mut self, name: &str) {
        let len = u32::try_from(name.len()).expect("names are short");
        self.put(answer::SERVER, &[&len.to_be_bytes(), name.as_bytes()]);
    }

    pub fn export(&mut self, session: &Session) {
        let fact = InfoExport {
            kind: info::EXPORT.into(),
            size: session.size.into(),
            flags: session.flags().into(),
        };
        self.put(answer::INFO, &[fact.as_bytes()]);
    }

    pub fn block_size(&mut self) {
        let fact = InfoBlockSize {
            kind: info::BLOCK_SIZE.into(),
            minimum: MIN_BLOCK.into(),
            preferred: PREFERRED_BLOCK.into(),
            maximum: MAX_PAYLOAD.into(),
        };
        self.put(answer::INFO, &[fact.as_bytes()]);
    }

    /// [`info::NAME`] or [`info::DESCRIPTION`].
    pub fn text(&mut self, kind: u16, text: &str) {
        self.put(
            answer::INFO,
            &[&kind.to_be_bytes(), string(text).as_bytes()],
        );
    }

    pub fn context(&mut self, id: u32, name: &str) {
        self.put(answer::META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
    }

    /// The answer to `EXPORT_NAME`, which has no header.
    pub fn export_name(&mut self, session: &Session, padding: usize) {
        let body = ExportNameAnswer {
            size: session.size.into(),
            flags: session.flags().into(),
        };
        self.output.extend_from_slice(body.as_bytes());
        self.output.resize(self.output.len() + padding, 0);
    }
}
