//! What verifications found, and where the one under way goes on: kept in the record of state, and told to the mirror, so
//! that whoever is primary next knows it, too.
//!
//! As bytes: the runs one after the other, each with its findings behind it. All numbers little endian.
//!
//! ```text
//! offset size  run
//!      0    1  length of the primary's name
//!      1    1  length of the mirror's name
//!      2    1  flags: 1 repair, 2 scrub, 4 keep what the primary holds, 8 keep what the mirror holds
//!      3    1  number of findings
//!      4    4  goes on at: volume
//!      8    8  goes on at: offset, bytes
//!     16    8  began, seconds since the Unix epoch
//!     24    8  ended, likewise; zero while it is under way
//!     32    8  took, ms
//!     40    8  LSN when it ended
//!     48    8  bytes compared
//!     56    8  bytes to be compared in all
//!     64   48  bytes that differ; of them: wrong at the primary, wrong at the mirror, undecided, unreadable, repaired
//!    112   64  primary's name
//!    176   64  mirror's name
//!    240       findings, 24 bytes each: offset 8, length 8, volume 4, wrong on 1, unreadable on 1 (1 primary, 2 mirror),
//!              repaired 1, zero 1
//! ```

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ByteRange, Lsn, NAME_MAX, VolumeId};

/// Differing ranges that are kept one by one.
pub const FINDINGS_MAX: usize = 32;

/// Longest encoding of [`Verified`], bytes.
pub const VERIFIED_MAX: usize = 2 * (size_of::<RunRecord>() + FINDINGS_MAX * FINDING);

/// The sites of a pair, by their roles in a run: none, one or both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sides(u8);

impl Sides {
    /// Neither.
    pub const NONE: Sides = Sides(0);
    /// The site that compares.
    pub const PRIMARY: Sides = Sides(1);
    /// The other one.
    pub const MIRROR: Sides = Sides(2);
    /// Both.
    pub const BOTH: Sides = Sides(3);

    /// Whether all of these are among them.
    pub fn has(self, other: Sides) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and those.
    #[must_use]
    pub fn and(self, other: Sides) -> Sides {
        Sides(self.0 | other.0)
    }

    /// The same sites after they changed roles.
    fn swapped(self) -> Sides {
        Sides(self.0 >> 1 | (self.0 & 1) << 1)
    }
}

/// A range in which the sites differed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Volume.
    pub volume: VolumeId,
    /// Where.
    pub range: ByteRange,
    /// Whose content is wrong; `NONE` if nothing shows which.
    pub wrong: Sides,
    /// Whose home could not be read.
    pub unreadable: Sides,
    /// Both sites hold the same since.
    pub repaired: bool,
}

/// Sums over all differing ranges, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// All of them.
    pub differing: u64,
    /// Wrong at the primary.
    pub primary: u64,
    /// Wrong at the mirror.
    pub mirror: u64,
    /// Nothing shows which site is wrong.
    pub undecided: u64,
    /// Could not be read on one site or both.
    pub unreadable: u64,
    /// The same again.
    pub repaired: u64,
}

/// What is done about differences.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Remedy {
    /// What is shown to be wrong is mended.
    pub repair: bool,
    /// Whose content is kept where nothing shows what is right; `NONE` leaves it.
    pub keep: Sides,
}

/// One verification.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyRun {
    /// The site that compares.
    pub primary: String,
    /// The site it is compared with.
    pub mirror: String,
    /// What it does about differences.
    pub remedy: Remedy,
    /// It began by itself.
    pub scrub: bool,
    /// When, seconds since the Unix epoch.
    pub began_unix_seconds: u64,
    /// When it ended, likewise; 0 while it is under way.
    pub ended_unix_seconds: u64,
    /// How long it has been at it, ms.
    pub took_ms: u64,
    /// The LSN when it ended.
    pub lsn: Lsn,
    /// Everything before this place is done.
    pub next: (VolumeId, u64),
    /// Bytes compared.
    pub done_bytes: u64,
    /// Bytes to be compared in all.
    pub total_bytes: u64,
    /// What differs.
    pub found: Found,
    /// The first of it.
    pub findings: Vec<Finding>,
}

impl VerifyRun {
    /// Differs, and was not repaired, bytes.
    pub fn unrepaired(&self) -> u64 {
        self.found.differing.saturating_sub(self.found.repaired)
    }

    /// Counts a range, and keeps it if there is room.
    pub fn note(&mut self, finding: Finding) {
        let bytes = finding.range.len;
        let of = |is: bool| if is { bytes } else { 0 };
        self.found.differing += bytes;
        self.found.primary += of(finding.wrong.has(Sides::PRIMARY));
        self.found.mirror += of(finding.wrong.has(Sides::MIRROR));
        self.found.undecided += of(finding.wrong == Sides::NONE);
        self.found.unreadable += of(finding.unreadable != Sides::NONE);
        self.found.repaired += of(finding.repaired);
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// The same run, seen from the other site: the roles have changed.
    pub fn swap(&mut self) {
        std::mem::swap(&mut self.primary, &mut self.mirror);
        std::mem::swap(&mut self.found.primary, &mut self.found.mirror);
        self.remedy.keep = self.remedy.keep.swapped();
        for finding in &mut self.findings {
            finding.wrong = finding.wrong.swapped();
            finding.unreadable = finding.unreadable.swapped();
        }
    }
}

/// What is known of the verifications of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// The last one that came to its end.
    pub last: Option<VerifyRun>,
    /// The one under way, as far as it was at some moment.
    pub under_way: Option<VerifyRun>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RunRecord {
    primary_len: u8,
    mirror_len: u8,
    flags: u8,
    findings: u8,
    volume: U32,
    offset: U64,
    began: U64,
    ended: U64,
    took_ms: U64,
    lsn: U64,
    done: U64,
    total: U64,
    found: [U64; 6],
    primary: [u8; NAME_MAX],
    mirror: [u8; NAME_MAX],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FindingRecord {
    offset: U64,
    len: U64,
    volume: U32,
    wrong: u8,
    unreadable: u8,
    repaired: u8,
    reserved: u8,
}

const FINDING: usize = size_of::<FindingRecord>();
const _: () = assert!(size_of::<RunRecord>() == 240);
const _: () = assert!(FINDING == 24);

const REPAIR: u8 = 1;
const SCRUB: u8 = 2;
/// [`Sides`] in the flags begin at this bit.
const KEEP_SHIFT: u8 = 2;

impl Verified {
    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.last.is_none() && self.under_way.is_none()
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for run in self.last.iter().chain(&self.under_way) {
            let mut record = RunRecord::new_zeroed();
            (record.primary_len, record.primary) = name_field(&run.primary);
            (record.mirror_len, record.mirror) = name_field(&run.mirror);
            record.flags = if run.remedy.repair { REPAIR } else { 0 }
                | if run.scrub { SCRUB } else { 0 }
                | run.remedy.keep.0 << KEEP_SHIFT;
            let findings = &run.findings[..run.findings.len().min(FINDINGS_MAX)];
            record.findings = findings.len() as u8;
            record.volume = U32::new(run.next.0.0);
            record.offset = U64::new(run.next.1);
            record.began = U64::new(run.began_unix_seconds);
            record.ended = U64::new(run.ended_unix_seconds);
            record.took_ms = U64::new(run.took_ms);
            record.lsn = U64::new(run.lsn.0);
            record.done = U64::new(run.done_bytes);
            record.total = U64::new(run.total_bytes);
            let found = &run.found;
            record.found = [
                found.differing,
                found.primary,
                found.mirror,
                found.undecided,
                found.unreadable,
                found.repaired,
            ]
            .map(U64::new);
            out.extend_from_slice(record.as_bytes());
            for finding in findings {
                let record = FindingRecord {
                    offset: U64::new(finding.range.offset),
                    len: U64::new(finding.range.len),
                    volume: U32::new(finding.volume.0),
                    wrong: finding.wrong.0,
                    unreadable: finding.unreadable.0,
                    repaired: u8::from(finding.repaired),
                    reserved: 0,
                };
                out.extend_from_slice(record.as_bytes());
            }
        }
        out
    }

    /// What such bytes say.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn decode(mut bytes: &[u8]) -> Result<Verified, String> {
        let mut verified = Verified::default();
        while !bytes.is_empty() {
            let (run, rest) = decode_run(bytes)?;
            bytes = rest;
            let place = if run.ended_unix_seconds == 0 {
                &mut verified.under_way
            } else if verified.under_way.is_none() {
                &mut verified.last
            } else {
                return Err("a verification that ended follows the one under way".into());
            };
            if place.replace(run).is_some() {
                return Err("two verifications of a kind".into());
            }
        }
        Ok(verified)
    }
}

fn decode_run(bytes: &[u8]) -> Result<(VerifyRun, &[u8]), String> {
    let (record, mut rest) = RunRecord::read_from_prefix(bytes)
        .map_err(|_| format!("a verification is cut off after {} bytes", bytes.len()))?;
    let known = REPAIR | SCRUB | Sides::BOTH.0 << KEEP_SHIFT;
    let keep = record.flags >> KEEP_SHIFT;
    if record.flags & !known != 0 || keep == Sides::BOTH.0 {
        return Err(format!(
            "a verification has the flags {:#04x}",
            record.flags
        ));
    }
    let count = usize::from(record.findings);
    if count > FINDINGS_MAX {
        return Err(format!(
            "a verification has {count} findings, at most {FINDINGS_MAX}"
        ));
    }
    let mut findings = Vec::with_capacity(count);
    for _ in 0..count {
        let (finding, after) = FindingRecord::read_from_prefix(rest)
            .map_err(|_| format!("the findings of a verification end after {}", rest.len()))?;
        rest = after;
        findings.push(decode_finding(&finding)?);
    }
    let [differing, primary, mirror, undecided, unreadable, repaired] = record.found.map(U64::get);
    let run = VerifyRun {
        primary: name_of(record.primary_len, &record.primary)?,
        mirror: name_of(record.mirror_len, &record.mirror)?,
        remedy: Remedy {
            repair: record.flags & REPAIR != 0,
            keep: Sides(keep),
        },
        scrub: record.flags & SCRUB != 0,
        began_unix_seconds: record.began.get(),
        ended_unix_seconds: record.ended.get(),
        took_ms: record.took_ms.get(),
        lsn: Lsn(record.lsn.get()),
        next: (VolumeId(record.volume.get()), record.offset.get()),
        done_bytes: record.done.get(),
        total_bytes: record.total.get(),
        found: Found {
            differing,
            primary,
            mirror,
            undecided,
            unreadable,
            repaired,
        },
        findings,
    };
    let sums = [run.took_ms, run.done_bytes, run.total_bytes, run.next.1];
    let found = record.found.map(U64::get);
    if sums.iter().chain(&found).any(|n| *n > u64::MAX >> 1) || run.lsn.0 > u64::MAX >> 1 {
        return Err("a verification counts beyond 2^63".into());
    }
    Ok((run, rest))
}

fn decode_finding(record: &FindingRecord) -> Result<Finding, String> {
    let range = ByteRange::new(record.offset.get(), record.len.get());
    let end = range.offset.checked_add(range.len);
    let sides = |bits: u8| bits <= Sides::BOTH.0;
    if end.is_none_or(|end| end > u64::MAX >> 1)
        || !sides(record.wrong)
        || !sides(record.unreadable)
        || record.repaired > 1
        || record.reserved != 0
    {
        return Err(format!("a finding of a verification is wrong: {range:?}"));
    }
    Ok(Finding {
        volume: VolumeId(record.volume.get()),
        range,
        wrong: Sides(record.wrong),
        unreadable: Sides(record.unreadable),
        repaired: record.repaired == 1,
    })
}

fn name_field(name: &str) -> (u8, [u8; NAME_MAX]) {
    let mut field = [0; NAME_MAX];
    let len = name.len().min(NAME_MAX);
    field[..len].copy_from_slice(&name.as_bytes()[..len]);
    (len as u8, field)
}

fn name_of(len: u8, field: &[u8; NAME_MAX]) -> Result<String, String> {
    let name = field
        .split_at_checked(usize::from(len))
        .filter(|(_, rest)| rest.iter().all(|b| *b == 0))
        .and_then(|(name, _)| std::str::from_utf8(name).ok())
        .filter(|name| !name.chars().any(char::is_control));
    name.map(str::to_owned)
        .ok_or_else(|| "the name of a site in a verification is wrong".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ended: u64) -> VerifyRun {
        let mut run = VerifyRun {
            primary: "clichy".into(),
            mirror: "chelles".into(),
            remedy: Remedy {
                repair: true,
                keep: Sides::MIRROR,
            },
            scrub: false,
            began_unix_seconds: 0x11,
            ended_unix_seconds: ended,
            took_ms: 0x22,
            lsn: Lsn(0x33),
            next: (VolumeId(4), 0x55),
            done_bytes: 0x66,
            total_bytes: 0x77,
            ..VerifyRun::default()
        };
        run.note(Finding {
            volume: VolumeId(3),
            range: ByteRange::new(0x8000, 0x1000),
            wrong: Sides::PRIMARY,
            unreadable: Sides::PRIMARY,
            repaired: true,
        });
        run
    }

    #[test]
    fn what_was_encoded_means_the_same_and_damage_is_an_error() {
        let verified = Verified {
            last: Some(run(9)),
            under_way: Some(run(0)),
        };
        let bytes = verified.encode();
        assert_eq!(Verified::decode(&bytes), Ok(verified.clone()));
        for cut in 1..bytes.len() {
            let whole = cut == bytes.len() / 2;
            assert_eq!(Verified::decode(&bytes[..cut]).is_ok(), whole, "{cut}");
        }
        let twice = [bytes.clone(), bytes].concat();
        assert!(Verified::decode(&twice).is_err());
        assert_eq!(Verified::decode(&[]), Ok(Verified::default()));
    }

    #[test]
    fn the_bytes_of_a_run_are_these() {
        let bytes = Verified {
            last: Some(run(9)),
            under_way: None,
        }
        .encode();
        assert_eq!(bytes.len(), 240 + 24);
        assert_eq!(bytes[..8], [6, 7, 1 | 8, 1, 4, 0, 0, 0]);
        let numbers = [
            0x55, 0x11, 9, 0x22, 0x33, 0x66, 0x77, 0x1000, 0x1000, 0, 0, 0x1000, 0x1000,
        ];
        for (n, number) in numbers.into_iter().enumerate() {
            let at = 8 + n * 8;
            assert_eq!(bytes[at..at + 8], u64::to_le_bytes(number), "at {at}");
        }
        assert_eq!(&bytes[112..119], b"clichy\0");
        assert_eq!(&bytes[176..184], b"chelles\0");
        assert_eq!(bytes[240..248], 0x8000_u64.to_le_bytes());
        assert_eq!(bytes[248..256], 0x1000_u64.to_le_bytes());
        assert_eq!(bytes[256..], [3, 0, 0, 0, 1, 1, 1, 0]);
    }

    #[test]
    fn a_run_seen_from_the_other_site_has_its_sides_swapped() {
        let mut swapped = run(9);
        swapped.swap();
        assert_eq!(swapped.primary, "chelles");
        assert_eq!(swapped.findings[0].wrong, Sides::MIRROR);
        assert_eq!((swapped.found.primary, swapped.found.mirror), (0, 0x1000));
        assert_eq!(swapped.remedy.keep, Sides::PRIMARY);
        swapped.swap();
        assert_eq!(swapped, run(9));
    }

    #[test]
    fn more_findings_than_are_kept_are_counted() {
        let mut many = run(9);
        for _ in 0..100 {
            many.note(run(9).findings[0]);
        }
        assert_eq!(many.findings.len(), FINDINGS_MAX);
        assert_eq!(many.found.differing, 101 * 0x1000);
        let longest = Verified {
            under_way: Some(VerifyRun {
                ended_unix_seconds: 0,
                ..many.clone()
            }),
            last: Some(many),
        };
        assert_eq!(longest.encode().len(), VERIFIED_MAX);
    }
}
