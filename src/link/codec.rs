//! Whole messages: headers, checksums, lengths, and where the bytes of frames and chunks go.

use bytes::{Buf, Bytes, BytesMut};
use zerocopy::{FromBytes, IntoBytes};

use super::error::LinkError;
use super::wire::{HEADER, Header, Kind, MAGIC};
use super::{read, write};
use crate::base::{AlignedBuf, Message};

/// Appends the bytes of a message to `out`. Frames and chunks are not copied.
///
/// # Errors
/// [`LinkError::Unsendable`] if the peer would refuse it; `out` is unchanged then.
pub fn encode(message: &Message, out: &mut impl Extend<Bytes>) -> Result<(), LinkError> {
    let kind = write::kind_of(message);
    // Exactly enough for all but texts and lists: `Bytes` needs no second allocation then.
    let mut head = Vec::with_capacity(HEADER + kind.covered(kind.limits().min));
    head.resize(HEADER, 0);
    let content = write::body(kind, message, &mut head)?;
    let length = head.len() - HEADER + content.as_ref().map_or(0, Bytes::len);
    debug_assert!(kind.limits().allow(length));
    let mut header = Header {
        magic: MAGIC,
        kind: (kind as u16).into(),
        flags: 0.into(),
        length: (length as u32).into(),
        crc: 0.into(),
    };
    // What is not covered is not in `head`, but in `content`.
    header.crc = header.checksum(&head[HEADER..]).into();
    head[..HEADER].copy_from_slice(header.as_bytes());
    out.extend([Bytes::from(head)].into_iter().chain(content));
    Ok(())
}

/// Turns what arrives on one link into messages.
///
/// Append what arrives to an input buffer and call [`Decoder::next`] until it gives `None`. If there then is a frame to
/// [`Decoder::lend`], receive the rest of it there and [give it back](Decoder::give_back): that saves copying it. Either
/// way [`Decoder::wants`] tells how much to expect.
///
/// After an error the place in the stream is lost: drop the link.
#[derive(Debug)]
pub struct Decoder {
    greeted: bool,
    frame: Option<Incoming>,
    /// Length of the frame that is lent.
    lent: Option<usize>,
    /// Bytes missing until `next` can get further.
    wants: usize,
}

/// A frame under way, in memory that direct IO accepts.
#[derive(Debug)]
struct Incoming {
    buffer: AlignedBuf,
    filled: usize,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// For a new connection: expects the peer's greeting first.
    pub fn new() -> Decoder {
        Decoder {
            greeted: false,
            frame: None,
            lent: None,
            wants: HEADER,
        }
    }

    /// The next message, its bytes taken from `input`; `None` if more must arrive, or while a frame is lent.
    ///
    /// # Errors
    /// What is wrong with the peer's bytes.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Message>, LinkError> {
        if self.lent.is_some() {
            return Ok(None);
        }
        if self.frame.is_none() {
            let Some(header) = self.peek(input)? else {
                return Ok(None);
            };
            if header.kind != Kind::Frame {
                return self.message(header, input);
            }
            verify(&header, &[])?;
            input.advance(HEADER);
            let mut buffer = AlignedBuf::with_capacity(header.length);
            buffer.set_len(header.length);
            self.frame = Some(Incoming { buffer, filled: 0 });
        }
        Ok(self.frame(input))
    }

    /// The frame under way and how many bytes of it are missing, while [`Decoder::next`] has nothing to give. Append them
    /// or some of them, then [give it back](Decoder::give_back). It is owned meanwhile, so that the kernel can write into it
    /// whatever becomes of the decoder.
    pub fn lend(&mut self) -> Option<(AlignedBuf, usize)> {
        let missing = |frame: &mut Incoming| frame.filled < frame.buffer.len();
        let Incoming { mut buffer, filled } = self.frame.take_if(missing)?;
        let length = buffer.len();
        self.lent = Some(length);
        buffer.set_len(filled);
        Some((buffer, length - filled))
    }

    /// Takes a lent frame back, grown by what was received; [`Decoder::next`] goes on from there.
    ///
    /// # Panics
    /// If none was lent, or it grew beyond its length.
    pub fn give_back(&mut self, mut buffer: AlignedBuf) {
        let length = self.lent.take().expect("a frame was lent");
        let filled = buffer.len();
        assert!(
            filled <= length,
            "a frame of {length} bytes came back with {filled}"
        );
        buffer.set_len(length);
        self.wants = length - filled;
        self.frame = Some(Incoming { buffer, filled });
    }

    /// Bytes missing until the last [`Decoder::next`] that gave `None` could have got further: the rest of a message, or
    /// of a header.
    pub fn wants(&self) -> usize {
        self.wants
    }

    /// The header at the start of `input`, checked as far as it can be without the body, so that the length in it may
    /// be relied on.
    fn peek(&mut self, input: &BytesMut) -> Result<Option<Checked>, LinkError> {
        let Ok((header, _)) = Header::read_from_prefix(input) else {
            self.wants = HEADER - input.len();
            return Ok(None);
        };
        if header.magic != MAGIC {
            return Err(LinkError::Magic {
                found: header.magic,
            });
        }
        let number = header.kind.get();
        let kind = Kind::of(number).ok_or(LinkError::Kind { found: number })?;
        if header.flags != 0 {
            return Err(LinkError::Flags {
                kind,
                found: header.flags.get(),
            });
        }
        if !self.greeted && !matches!(kind, Kind::Hello | Kind::Refuse | Kind::Bye) {
            return Err(LinkError::NoHello { kind });
        }
        let (length, allowed) = (header.length.get(), kind.limits());
        if !allowed.allow(length as usize) {
            return Err(LinkError::Length {
                kind,
                found: length,
                allowed,
            });
        }
        Ok(Some(Checked {
            header,
            kind,
            length: length as usize,
        }))
    }

    /// A message other than a frame.
    fn message(
        &mut self,
        header: Checked,
        input: &mut BytesMut,
    ) -> Result<Option<Message>, LinkError> {
        let total = HEADER + header.length;
        if input.len() < total {
            self.wants = total - input.len();
            return Ok(None);
        }
        verify(&header, &input[HEADER..total])?;
        let mut bytes = input.split_to(total);
        self.wants = HEADER;
        let message = if matches!(header.kind, Kind::Chunk | Kind::Content) {
            let content = bytes.split_off(HEADER + header.kind.covered(header.length));
            read::chunk(header.kind, &bytes[HEADER..], content.freeze())?
        } else {
            read::body(header.kind, &bytes[HEADER..])?
        };
        self.greeted |= header.kind == Kind::Hello;
        Ok(Some(message))
    }

    /// Moves the frame under way on with what is in `input`.
    fn frame(&mut self, input: &mut BytesMut) -> Option<Message> {
        let mut frame = self.frame.take()?;
        let rest = &mut frame.buffer[frame.filled..];
        let count = rest.len().min(input.len());
        rest[..count].copy_from_slice(&input[..count]);
        input.advance(count);
        frame.filled += count;
        self.wants = frame.buffer.len() - frame.filled;
        if self.wants > 0 {
            self.frame = Some(frame);
            return None;
        }
        self.wants = HEADER;
        Some(Message::Frame(Bytes::from_owner(frame.buffer)))
    }
}

/// A header that makes sense; its CRC is still to be verified.
#[derive(Clone, Copy)]
struct Checked {
    header: Header,
    kind: Kind,
    /// Of the body, in bytes.
    length: usize,
}

fn verify(checked: &Checked, body: &[u8]) -> Result<(), LinkError> {
    let covered = checked.kind.covered(body.len());
    let computed = checked.header.checksum(&body[..covered]);
    let found = checked.header.crc.get();
    if computed != found {
        return Err(LinkError::Checksum {
            kind: checked.kind,
            found,
            computed,
        });
    }
    Ok(())
}
