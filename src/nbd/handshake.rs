//! The handshake: fixed newstyle negotiation, until an export is chosen or the connection is given up.

use bytes::{Buf, BytesMut};
use zerocopy::{FromBytes, IntoBytes};

use super::options::{Answers, InfoQuery, MetaQuery, Refusal, check_string};
use super::wire::{
    ALLOCATION, ALLOCATION_ID, EXPORT_NAME_PADDING, GREETING_MAGIC, Greeting, OPTION_MAGIC,
    OptionHeader, STRING_MAX, answer, handshake_flag, info, option,
};
use super::{MAX_PAYLOAD, Replies, Session};

/// Most data of an option that is looked at, in bytes: a name and some dozens of queries of any length. Beyond it the
/// data is skipped and the option refused.
pub const OPTION_DATA_MAX: u32 = 64 << 10;

/// Most data of an option that is skipped, in bytes. Beyond it the connection is closed.
const OPTION_SKIP_MAX: u32 = MAX_PAYLOAD;

/// Output above which no further option is looked at, in bytes: a client that asks without listening must not make
/// the answers grow.
const OUTPUT_MAX: usize = 64 << 10;

/// What a server offers under a name. Every export can be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// Its name; not empty.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// For people.
    pub description: String,
}

/// Why there is no such export for a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unavailable {
    /// Nothing has this name.
    Unknown,
    /// It exists, but not here or not now; the sentence says why, and where else.
    Policy(String),
}

/// Knows the exports of this server at the time of each question.
pub trait Exports {
    /// Their names. A client that asks for the empty name gets the only one of them.
    fn list(&self) -> Vec<String>;
    /// The export of this name.
    fn find(&self, name: &str) -> Result<Export, Unavailable>;
}

/// What to do after [`Handshake::advance`]; always send the output first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Receive more bytes.
    More,
    /// Call again without receiving: there was more to answer than should be queued at once.
    Again,
    /// The transmission phase begins; what is left of the input belongs to it.
    Done(Session),
    /// Close the connection. The sentence is for the log.
    Close(String),
}

/// The server's side of one handshake.
///
/// Bytes go in by [`advance`](Handshake::advance), answers come out of it. At most the header and
/// [`OPTION_DATA_MAX`] bytes of one option are left in the input when it returns [`Step::More`].
#[derive(Debug)]
pub struct Handshake {
    phase: Phase,
    /// The client wants no padding after `EXPORT_NAME`.
    no_zeroes: bool,
    replies: Replies,
    /// The export for which `base:allocation` is selected.
    allocation: Option<String>,
}

#[derive(Debug)]
enum Phase {
    ClientFlags,
    Header,
    /// Waits for all data of an option.
    Data {
        option: u32,
        len: usize,
    },
    /// Skips the data of an option that is answered without looking at it.
    Skip {
        option: u32,
        left: usize,
        then: Then,
    },
    Over,
}

/// What follows data that was skipped.
#[derive(Debug)]
enum Then {
    Refuse(Refusal),
    Abort,
}

impl Handshake {
    /// Appends the greeting to `output`.
    pub fn new(output: &mut BytesMut) -> Handshake {
        let greeting = Greeting {
            magic: GREETING_MAGIC.into(),
            option_magic: OPTION_MAGIC.into(),
            flags: (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).into(),
        };
        output.extend_from_slice(greeting.as_bytes());
        Handshake {
            phase: Phase::ClientFlags,
            no_zeroes: false,
            replies: Replies::Simple,
            allocation: None,
        }
    }

    /// Consumes what it can of `input`, appends answers to `output` and says how to go on.
    pub fn advance(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
        exports: &dyn Exports,
    ) -> Step {
        loop {
            if output.len() >= OUTPUT_MAX {
                return Step::Again;
            }
            let step = match self.phase {
                Phase::ClientFlags => self.client_flags(input),
                Phase::Header => self.header(input),
                Phase::Data { option, len } => {
                    if input.len() < len {
                        return Step::More;
                    }
                    let data = input.split_to(len);
                    self.phase = Phase::Header;
                    let answers = Answers { output, option };
                    self.answer(&data, answers, exports)
                }
                Phase::Skip {
                    option,
                    ref mut left,
                    ..
                } => {
                    let skipped = input.len().min(*left);
                    input.advance(skipped);
                    *left -= skipped;
                    if *left > 0 {
                        return Step::More;
                    }
                    self.skipped(Answers { output, option })
                }
                Phase::Over => Some(Step::Close("the handshake is over".into())),
            };
            if let Some(step) = step {
                if matches!(step, Step::Done(_) | Step::Close(_)) {
                    self.phase = Phase::Over;
                }
                return step;
            }
        }
    }

    fn client_flags(&mut self, input: &mut BytesMut) -> Option<Step> {
        let Some((&flags, _)) = input.split_first_chunk::<4>() else {
            return Some(Step::More);
        };
        input.advance(4);
        let flags = u32::from_be_bytes(flags);
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !known != 0 {
            return Some(Step::Close(format!("unknown client flags {flags:#x}")));
        }
        // A client without FIXED_NEWSTYLE only knows EXPORT_NAME; if it sends other options it does get answers.
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.phase = Phase::Header;
        None
    }

    fn header(&mut self, input: &mut BytesMut) -> Option<Step> {
        let Ok((header, _)) = OptionHeader::read_from_prefix(input) else {
            return Some(Step::More);
        };
        input.advance(size_of::<OptionHeader>());
        if header.magic != OPTION_MAGIC {
            return Some(Step::Close("not an option: wrong magic".into()));
        }
        let (option, len) = (header.option.get(), header.len.get());
        if len > OPTION_SKIP_MAX {
            return Some(Step::Close(format!(
                "option {option} claims {len} bytes of data"
            )));
        }
        let skip = |then| Phase::Skip {
            option,
            left: len as usize,
            then,
        };
        self.phase = match option {
            option::ABORT => skip(Then::Abort),
            option::EXPORT_NAME if len as usize > STRING_MAX => {
                return Some(Step::Close(format!("an export name of {len} bytes")));
            }
            option::LIST
            | option::STARTTLS
            | option::STRUCTURED_REPLY
            | option::EXTENDED_HEADERS
                if len > 0 =>
            {
                skip(Then::Refuse(Refusal::invalid("this option takes no data")))
            }
            // Here TLS will begin; until then the answer is that of a server without it, never TLS_REQD.
            option::STARTTLS => skip(Then::Refuse(Refusal::new(
                answer::ERR_UNSUP,
                "this server does not offer TLS",
            ))),
            option::EXPORT_NAME
            | option::LIST
            | option::INFO
            | option::GO
            | option::STRUCTURED_REPLY
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT
            | option::EXTENDED_HEADERS => {
                if len > OPTION_DATA_MAX {
                    if option == option::SET_META_CONTEXT {
                        self.allocation = None;
                    }
                    skip(Then::Refuse(Refusal::new(
                        answer::ERR_TOO_BIG,
                        format!("{len} bytes of data, at most {OPTION_DATA_MAX} are read"),
                    )))
                } else {
                    Phase::Data {
                        option,
                        len: len as usize,
                    }
                }
            }
            _ => skip(Then::Refuse(Refusal::new(
                answer::ERR_UNSUP,
                format!("option {option} is not known here"),
            ))),
        };
        None
    }

    /// The data of an option was skipped.
    fn skipped(&mut self, mut answers: Answers) -> Option<Step> {
        let Phase::Skip { then, .. } = std::mem::replace(&mut self.phase, Phase::Header) else {
            unreachable!("only called while skipping");
        };
        match then {
            Then::Refuse(refusal) => {
                answers.refuse(&refusal);
                None
            }
            Then::Abort => {
                answers.ack();
                Some(Step::Close("the client gave up".into()))
            }
        }
    }

    /// All data of an option that is known and not refused for its length is here.
    fn answer(&mut self, data: &[u8], mut answers: Answers, exports: &dyn Exports) -> Option<Step> {
        let outcome = match answers.option {
            option::EXPORT_NAME => return Some(self.export_name(data, answers, exports)),
            option::LIST => {
                for name in exports.list() {
                    answers.server(&name);
                }
                Ok(None)
            }
            option::STRUCTURED_REPLY => self.structured_reply(),
            option::EXTENDED_HEADERS => {
                self.replies = Replies::Extended;
                Ok(None)
            }
            option::INFO => self.info(data, &mut answers, exports).map(|_| None),
            option::GO => self.info(data, &mut answers, exports).map(Some),
            option::LIST_META_CONTEXT => self.list_contexts(data, &mut answers, exports),
            option::SET_META_CONTEXT => self.set_contexts(data, &mut answers, exports),
            other => unreachable!("option {other} is answered at its header"),
        };
        match outcome {
            Ok(session) => {
                answers.ack();
                session.map(Step::Done)
            }
            Err(refusal) => {
                answers.refuse(&refusal);
                None
            }
        }
    }

    /// `EXPORT_NAME`: it has no answer that says no.
    fn export_name(&self, data: &[u8], mut answers: Answers, exports: &dyn Exports) -> Step {
        if self.replies == Replies::Extended {
            return Step::Close("EXPORT_NAME after EXTENDED_HEADERS".into());
        }
        let found = check_string(data)
            .map_err(Refusal::from)
            .and_then(|name| resolve(name, exports));
        match found {
            Ok(export) => {
                let session = self.session(export);
                let padding = if self.no_zeroes {
                    0
                } else {
                    EXPORT_NAME_PADDING
                };
                answers.export_name(&session, padding);
                Step::Done(session)
            }
            Err(refusal) => Step::Close(format!("EXPORT_NAME: {}", refusal.text)),
        }
    }

    fn structured_reply(&mut self) -> Result<Option<Session>, Refusal> {
        if self.replies == Replies::Extended {
            return Err(Refusal::new(
                answer::ERR_EXT_HEADER_REQD,
                "extended headers were negotiated already",
            ));
        }
        self.replies = Replies::Structured;
        Ok(None)
    }

    /// INFO and GO tell the same.
    fn info(
        &self,
        data: &[u8],
        answers: &mut Answers,
        exports: &dyn Exports,
    ) -> Result<Session, Refusal> {
        let query = InfoQuery::parse(data)?;
        let export = resolve(query.name, exports)?;
        if query.wants_name {
            answers.text(info::NAME, &export.name);
        }
        if query.wants_description {
            answers.text(info::DESCRIPTION, &export.description);
        }
        if query.wants_block_size {
            answers.block_size();
        }
        let session = self.session(export);
        answers.export(&session);
        Ok(session)
    }

    fn list_contexts(
        &self,
        data: &[u8],
        answers: &mut Answers,
        exports: &dyn Exports,
    ) -> Result<Option<Session>, Refusal> {
        let query = self.meta_query(data)?;
        resolve(query.name, exports)?;
        let asked = query
            .queries
            .iter()
            .any(|&q| q == ALLOCATION || q == "base:");
        if asked || query.queries.is_empty() {
            answers.context(0, ALLOCATION);
        }
        Ok(None)
    }

    fn set_contexts(
        &mut self,
        data: &[u8],
        answers: &mut Answers,
        exports: &dyn Exports,
    ) -> Result<Option<Session>, Refusal> {
        // The old selection goes even if this one fails.
        self.allocation = None;
        let query = self.meta_query(data)?;
        let export = resolve(query.name, exports)?;
        if query.queries.contains(&ALLOCATION) {
            answers.context(ALLOCATION_ID, ALLOCATION);
            self.allocation = Some(export.name);
        }
        Ok(None)
    }

    fn meta_query<'a>(&self, data: &'a [u8]) -> Result<MetaQuery<'a>, Refusal> {
        if self.replies == Replies::Simple {
            return Err(Refusal::invalid(
                "metadata contexts need structured replies or extended headers first",
            ));
        }
        Ok(MetaQuery::parse(data)?)
    }

    fn session(&self, export: Export) -> Session {
        Session {
            allocation: self.allocation.as_ref() == Some(&export.name),
            export: export.name,
            size: export.size,
            replies: self.replies,
        }
    }
}

/// The export of this name; the empty name means the only one there is.
fn resolve(name: &str, exports: &dyn Exports) -> Result<Export, Refusal> {
    let found = if name.is_empty() {
        let names = exports.list();
        let [only] = names.as_slice() else {
            return Err(Refusal::new(
                answer::ERR_UNKNOWN,
                format!("there is no default export: name one of {}", names.len()),
            ));
        };
        exports.find(only)
    } else {
        exports.find(name)
    };
    found.map_err(|unavailable| match unavailable {
        Unavailable::Unknown => {
            Refusal::new(answer::ERR_UNKNOWN, format!("there is no export {name:?}"))
        }
        Unavailable::Policy(text) => Refusal::new(answer::ERR_POLICY, text),
    })
}
