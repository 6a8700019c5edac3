//! What fields may hold: shared by the writing and the reading side, so that both draw the same lines.

use super::wire::MAX_CHUNK;
use crate::base::{AckMode, ByteRange, CHUNK_BYTES, MAX_DATALESS_OP, NAME_MAX, Refusal, Stance};

/// Numbers of the acknowledgement modes.
pub(super) const ACK_MODES: Codes<AckMode, 3> = Codes([
    (1, AckMode::Sync),
    (2, AckMode::Memsync),
    (3, AckMode::Async),
]);

pub(super) const STANCES: Codes<Stance, 5> = Codes([
    (1, Stance::Serving),
    (2, Stance::Returning),
    (3, Stance::HandedOver),
    (4, Stance::Mirror),
    (5, Stance::Probe),
]);

pub(super) const REFUSALS: Codes<Refusal, 12> = Codes([
    (1, Refusal::Incompatible),
    (2, Refusal::WrongGroup),
    (3, Refusal::Unrelated),
    (4, Refusal::BothPrimary),
    (5, Refusal::Forked),
    (6, Refusal::StepDown),
    (7, Refusal::Disagree),
    (8, Refusal::Busy),
    (9, Refusal::Following),
    (10, Refusal::Cut),
    (11, Refusal::Fenced),
    (12, Refusal::NoSpace),
]);

/// The numbers of the values of a type.
pub(super) struct Codes<T, const N: usize>([(u8, T); N]);

impl<T: Copy + PartialEq, const N: usize> Codes<T, N> {
    pub(super) fn code(&self, value: T) -> u8 {
        let known = self.0.iter().find(|(_, v)| *v == value);
        known.expect("every value has a number").0
    }

    pub(super) fn value(&self, code: u8) -> Option<T> {
        let known = self.0.iter().find(|(c, _)| *c == code);
        known.map(|(_, value)| *value)
    }
}

/// The largest LSN, epoch number, offset or length.
pub(super) const BELOW_2_63: u64 = u64::MAX >> 1;
/// 'Not known yet' in place of the LSN until which a mirror is inconsistent.
pub(super) const UNKNOWN: u64 = u64::MAX;

pub(super) const UNTIL_ALLOWED: &str = "below 2^63, or 2^64 - 1";

pub(super) fn is_until(value: u64) -> bool {
    value <= BELOW_2_63 || value == UNKNOWN
}

pub(super) const NAME_ALLOWED: &str = "at most 64 bytes of UTF-8 without control characters";

pub(super) fn is_name(name: &str) -> bool {
    name.len() <= NAME_MAX && !name.chars().any(char::is_control)
}

pub(super) const CHUNK_ALLOWED: &str =
    "1 byte to 1 MiB of content as long as the range, or none and a range of up to 64 MiB";

pub(super) fn chunk_fits(range: ByteRange, content: Option<u64>) -> bool {
    let end = range.offset.checked_add(range.len);
    let most = content.map_or(MAX_DATALESS_OP, |_| MAX_CHUNK as u64);
    end.is_some_and(|end| end <= BELOW_2_63)
        && (1..=most).contains(&range.len)
        && content.is_none_or(|len| len == range.len)
}

pub(super) const RANGE_ALLOWED: &str = "1 byte to 256 KiB, ending below 2^63";

/// Whether a range may be compared.
pub(super) fn is_chunk(range: ByteRange) -> bool {
    let end = range.offset.checked_add(range.len);
    end.is_some_and(|end| end <= BELOW_2_63) && (1..=CHUNK_BYTES).contains(&range.len)
}
