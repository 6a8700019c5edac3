//! The transmission phase: replies into bytes.

use bytes::{Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};
use zerocopy::{Immutable, IntoBytes};

use super::request::Shape;
use super::wire::{
    ALLOCATION_ID, EXTENDED_REPLY_MAGIC, ErrorHead, ExtendedChunk, OffsetData, OffsetHole,
    REPLY_DONE, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply, Status, StatusExt,
    StatusExtExtent, StatusExtent, StructuredChunk, chunk, state, string,
};
use super::{Errno, Extent, MAX_PAYLOAD, Piece, Replies, Reply, ReplyBody, ReplyTo, Session};

/// Most extents in one reply: what the specification recommends.
const EXTENTS_MAX: usize = 1 << 20;

/// Longest extent in a reply with 32-bit lengths, in bytes: the largest multiple of [`super::PREFERRED_BLOCK`].
const EXTENT_32_MAX: u64 = 0xffff_f000;

/// Zeroes for holes that have to be spelt out; sent as often as needed, never copied.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Bytes on their way to a client: small ones gathered, content passed on without a copy.
#[derive(Debug, Default)]
pub struct Outbox {
    sealed: Vec<Bytes>,
    /// Headers since the last content.
    gathered: BytesMut,
    len: usize,
}

impl Outbox {
    /// Empty.
    pub fn new() -> Outbox {
        Outbox::default()
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes all of it out, in the order of sending.
    pub fn drain(&mut self) -> impl Iterator<Item = Bytes> + '_ {
        self.seal();
        self.len = 0;
        self.sealed.drain(..)
    }

    fn seal(&mut self) {
        if !self.gathered.is_empty() {
            self.sealed.push(self.gathered.split().freeze());
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        /// Room for headers that is made at once: some hundreds of replies.
        const ROOM: usize = 8 << 10;
        if self.gathered.capacity() - self.gathered.len() < bytes.len() {
            self.gathered.reserve(ROOM.max(bytes.len()));
        }
        self.gathered.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    fn put_struct(&mut self, value: &(impl IntoBytes + Immutable)) {
        self.put(value.as_bytes());
    }

    fn pass(&mut self, content: Bytes) {
        self.seal();
        self.len += content.len();
        self.sealed.push(content);
    }

    fn zeroes(&mut self, mut len: u64) {
        while len > 0 {
            let part = len.min(ZEROES.len() as u64);
            self.pass(Bytes::from_static(&ZEROES[..part as usize]));
            len -= part;
        }
    }

    /// Content with its holes spelt out.
    fn spell_out(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        for piece in pieces {
            match piece {
                Piece::Data(content) if content.is_empty() => {}
                Piece::Data(content) => self.pass(content),
                Piece::Hole(len) => self.zeroes(len),
            }
        }
    }
}

/// Appends the bytes of `reply` to `out`.
pub(super) fn encode(session: &Session, reply: Reply, out: &mut Outbox) {
    let to = reply.reply_to;
    let mut encoder = Encoder {
        replies: session.replies,
        to,
        out,
    };
    match (reply.body, to.shape) {
        (ReplyBody::Error { errno, message }, _) => encoder.error(errno, &message),
        (ReplyBody::Done, Shape::Plain) => encoder.done(),
        (ReplyBody::Done, Shape::Read | Shape::ReadWhole) if to.len == 0 => encoder.data(vec![]),
        (ReplyBody::Data { offset, pieces }, Shape::Read | Shape::ReadWhole)
            if offset == to.offset && total_len(&pieces) == Some(to.len) =>
        {
            encoder.data(pieces);
        }
        (ReplyBody::Status { offset, extents }, Shape::Status | Shape::StatusOne)
            if offset == to.offset && extents.iter().any(|extent| extent.len > 0) =>
        {
            encoder.status(&extents);
        }
        // Whatever else, sent as it is, would be taken for the wrong bytes or shift all that follows.
        _ => encoder.error(
            Errno::Io,
            "internal error: the answer does not fit the request",
        ),
    }
}

/// Bytes that the pieces cover; `None` if that is beyond any number.
fn total_len(pieces: &[Piece]) -> Option<u64> {
    pieces.iter().try_fold(0_u64, |sum, piece| {
        sum.checked_add(match piece {
            Piece::Data(content) => content.len() as u64,
            Piece::Hole(len) => *len,
        })
    })
}

struct Encoder<'a> {
    replies: Replies,
    to: ReplyTo,
    out: &'a mut Outbox,
}

impl Encoder<'_> {
    fn done(&mut self) {
        // Structured clients take a simple reply to all but READ, and it is shorter.
        if self.replies == Replies::Extended {
            self.chunk(chunk::NONE, true, 0);
        } else {
            self.simple(0);
        }
    }

    fn error(&mut self, errno: Errno, message: &str) {
        if self.replies == Replies::Simple {
            return self.simple(errno as u32);
        }
        let text = string(message);
        let head = ErrorHead {
            error: (errno as u32).into(),
            text_len: u16::try_from(text.len())
                .expect("strings are at most 4096 bytes")
                .into(),
        };
        self.chunk(chunk::ERROR, true, size_of_val(&head) + text.len());
        self.out.put_struct(&head);
        self.out.put(text.as_bytes());
    }

    fn data(&mut self, pieces: Vec<Piece>) {
        if self.replies == Replies::Simple {
            self.simple(0);
            self.out.spell_out(pieces);
        } else if self.to.len == 0 {
            // A chunk of content has at least one byte.
            self.chunk(chunk::NONE, true, 0);
        } else if self.to.shape == Shape::ReadWhole {
            self.content(self.to.offset, self.to.len, pieces);
        } else {
            self.chunks(pieces);
        }
    }

    /// One chunk for each run of content and each run of holes. The last one may say so, as nothing can fail any more.
    fn chunks(&mut self, pieces: Vec<Piece>) {
        let mut offset = self.to.offset;
        let mut pieces = pieces
            .into_iter()
            .filter(|piece| !matches!(piece, Piece::Hole(0)))
            .filter(|piece| !matches!(piece, Piece::Data(content) if content.is_empty()))
            .peekable();
        while let Some(piece) = pieces.next() {
            let is_hole = matches!(piece, Piece::Hole(_));
            let mut run: SmallVec<[Piece; 4]> = smallvec![piece];
            while let Some(more) = pieces.next_if(|next| matches!(next, Piece::Hole(_)) == is_hole)
            {
                run.push(more);
            }
            let len = total_len(&run).expect("no more than was asked");
            if is_hole {
                self.hole(offset, len);
            } else {
                self.content(offset, len, run);
            }
            offset += len;
        }
    }

    fn content(&mut self, offset: u64, len: u64, pieces: impl IntoIterator<Item = Piece>) {
        let head = OffsetData {
            offset: offset.into(),
        };
        let done = self.is_end(offset + len);
        self.chunk(chunk::OFFSET_DATA, done, size_of_val(&head) + len as usize);
        self.out.put_struct(&head);
        self.out.spell_out(pieces);
    }

    fn hole(&mut self, offset: u64, len: u64) {
        let hole = OffsetHole {
            offset: offset.into(),
            len: len_32(len).into(),
        };
        let done = self.is_end(offset + len);
        self.chunk(chunk::OFFSET_HOLE, done, size_of_val(&hole));
        self.out.put_struct(&hole);
    }

    fn is_end(&self, offset: u64) -> bool {
        offset == self.to.offset + self.to.len
    }

    fn status(&mut self, extents: &[Extent]) {
        if self.replies == Replies::Extended {
            let extents = summarize(self.to, extents, u64::MAX);
            let head = StatusExt {
                context: ALLOCATION_ID.into(),
                count: len_32(extents.len() as u64).into(),
            };
            let len = size_of_val(&head) + extents.len() * size_of::<StatusExtExtent>();
            self.chunk(chunk::BLOCK_STATUS_EXT, true, len);
            self.out.put_struct(&head);
            for (len, state) in extents {
                self.out.put_struct(&StatusExtExtent {
                    len: len.into(),
                    state: u64::from(state).into(),
                });
            }
        } else {
            let extents = summarize(self.to, extents, EXTENT_32_MAX);
            let head = Status {
                context: ALLOCATION_ID.into(),
            };
            let len = size_of_val(&head) + extents.len() * size_of::<StatusExtent>();
            self.chunk(chunk::BLOCK_STATUS, true, len);
            self.out.put_struct(&head);
            for (len, state) in extents {
                self.out.put_struct(&StatusExtent {
                    len: len_32(len).into(),
                    state: state.into(),
                });
            }
        }
    }

    fn simple(&mut self, error: u32) {
        self.out.put_struct(&SimpleReply {
            magic: SIMPLE_REPLY_MAGIC.into(),
            error: error.into(),
            cookie: self.to.cookie.into(),
        });
    }

    /// The header of a chunk with `len` bytes of payload.
    fn chunk(&mut self, kind: u16, done: bool, len: usize) {
        let flags = if done { REPLY_DONE } else { 0 };
        if self.replies == Replies::Extended {
            self.out.put_struct(&ExtendedChunk {
                magic: EXTENDED_REPLY_MAGIC.into(),
                flags: flags.into(),
                kind: kind.into(),
                cookie: self.to.cookie.into(),
                offset: self.to.offset.into(),
                len: (len as u64).into(),
            });
        } else {
            self.out.put_struct(&StructuredChunk {
                magic: STRUCTURED_REPLY_MAGIC.into(),
                flags: flags.into(),
                kind: kind.into(),
                cookie: self.to.cookie.into(),
                len: len_32(len as u64).into(),
            });
        }
    }
}

// Chunks carry at most a payload or the extents of one reply.
const _: () = assert!(EXTENTS_MAX * size_of::<StatusExtExtent>() < u32::MAX as usize);
const _: () = assert!(MAX_PAYLOAD as usize + size_of::<OffsetData>() < u32::MAX as usize);

fn len_32(len: u64) -> u32 {
    u32::try_from(len).expect("lengths are below the limits asserted above")
}

/// The extents as `(bytes, state bits)`, neighbours of equal state joined: as many as the client may get, of which only
/// the last may go beyond what it asked about.
///
/// To tell less is always allowed, so an extent above `extent_max` is cut short and ends the list.
fn summarize(to: ReplyTo, extents: &[Extent], extent_max: u64) -> SmallVec<[(u64, u32); 16]> {
    let one = to.shape == Shape::StatusOne;
    let mut told: SmallVec<[(u64, u32); 16]> = SmallVec::new();
    let mut covered = 0_u64;
    for extent in extents.iter().filter(|extent| extent.len > 0) {
        if covered >= to.len {
            break;
        }
        let hole = if extent.hole { state::HOLE } else { 0 };
        let zero = if extent.zero { state::ZERO } else { 0 };
        let full = told.len() == if one { 1 } else { EXTENTS_MAX };
        match told.last_mut() {
            Some((len, state)) if *state == hole | zero => *len = len.saturating_add(extent.len),
            _ if full => break,
            _ => told.push((extent.len, hole | zero)),
        }
        covered = covered.saturating_add(extent.len);
    }
    if one {
        told[0].0 = told[0].0.min(to.len);
    }
    if let Some(long) = told.iter().position(|&(len, _)| len > extent_max) {
        told[long].0 = extent_max;
        told.truncate(long + 1);
    }
    told
}
