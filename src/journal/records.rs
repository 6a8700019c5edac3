//! Records of fixed layout that operations and the state file carry. Little endian, zero-padded.
//!
//! ```text
//! offset size  epoch (144 bytes)                 offset size  volume (104 bytes)
//!      0    8  number                                 0    4  number
//!      8   16  id                                     4    4  reserved, zero
//!     24    8  first LSN                              8   16  uuid
//!     32    8  time, ns since the Unix epoch         24    8  size, bytes
//!     40    1  ack mode: 0 sync, 1 memsync, 2 async  32    2  length of the name, bytes
//!     41    1  flags: 1 alone, 2 complete, 4 mixture 34    6  reserved, zero
//!     42    2  length of the site's name             40   64  name, UTF-8
//!     44    4  reserved, zero
//!     48   64  site's name, UTF-8
//!    112   32  reserved, zero
//! ```

use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::{AckMode, Epoch, Lsn, NAME_MAX, VolumeId, VolumeSpec};

/// Why a record means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad {what} record: {why}")]
pub struct RecordError {
    what: &'static str,
    why: &'static str,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EpochRecord {
    number: U64,
    id: [u8; 16],
    first_lsn: U64,
    time_ns: U64,
    ack: u8,
    flags: u8,
    site_len: U16,
    reserved0: U32,
    site: [u8; NAME_MAX],
    reserved1: [u8; 32],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct VolumeRecord {
    id: U32,
    reserved0: U32,
    uuid: [u8; 16],
    size: U64,
    name_len: U16,
    reserved1: [u8; 6],
    name: [u8; NAME_MAX],
}

/// Length of an encoded epoch, bytes.
pub(super) const EPOCH_LEN: usize = size_of::<EpochRecord>();
/// Length of an encoded volume, bytes.
pub(super) const VOLUME_LEN: usize = size_of::<VolumeRecord>();

const _: () = assert!(EPOCH_LEN == 144);
const _: () = assert!(VOLUME_LEN == 104);

/// A name in a field of fixed size: its length, and its bytes.
pub(super) fn name_field(name: &str) -> (U16, [u8; NAME_MAX]) {
    let mut field = [0; NAME_MAX];
    let len = name.len().min(NAME_MAX);
    field[..len].copy_from_slice(&name.as_bytes()[..len]);
    (U16::new(len as u16), field)
}

/// The name in such a field.
pub(super) fn name_of(len: U16, field: &[u8; NAME_MAX]) -> Option<String> {
    let bytes = field.get(..len.get() as usize)?;
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// An ack mode as a number.
pub(super) fn ack_byte(ack: AckMode) -> u8 {
    match ack {
        AckMode::Sync => 0,
        AckMode::Memsync => 1,
        AckMode::Async => 2,
    }
}

/// The ack mode of a number.
pub(super) fn ack_of(byte: u8) -> Option<AckMode> {
    [AckMode::Sync, AckMode::Memsync, AckMode::Async]
        .get(byte as usize)
        .copied()
}

/// The payload of the operation that opens an epoch.
pub fn encode_epoch(epoch: &Epoch) -> Vec<u8> {
    let mut record = EpochRecord::new_zeroed();
    record.number = U64::new(epoch.number);
    record.id = epoch.id.into_bytes();
    record.first_lsn = U64::new(epoch.first_lsn.0);
    record.time_ns = U64::new(epoch.time_ns);
    record.ack = ack_byte(epoch.ack);
    record.flags =
        u8::from(epoch.alone) | (u8::from(epoch.complete) << 1) | (u8::from(epoch.mixture) << 2);
    (record.site_len, record.site) = name_field(&epoch.site);
    record.as_bytes().to_vec()
}

/// Reads such a payload.
///
/// # Errors
/// Says what is wrong with it.
pub fn decode_epoch(bytes: &[u8]) -> Result<Epoch, RecordError> {
    let bad = |why| RecordError { what: "epoch", why };
    let record = EpochRecord::read_from_bytes(bytes).map_err(|_| bad("its length is wrong"))?;
    if record.flags > 7 || record.reserved0.get() != 0 || record.reserved1 != [0; 32] {
        return Err(bad("reserved bits are used"));
    }
    Ok(Epoch {
        number: record.number.get(),
        id: Uuid::from_bytes(record.id),
        site: name_of(record.site_len, &record.site).ok_or(bad("the site's name is no UTF-8"))?,
        first_lsn: Lsn(record.first_lsn.get()),
        ack: ack_of(record.ack).ok_or(bad("the ack mode is unknown"))?,
        alone: record.flags & 1 != 0,
        complete: record.flags & 2 != 0,
        mixture: record.flags & 4 != 0,
        time_ns: record.time_ns.get(),
    })
}

/// The payload of the operation that creates a volume.
pub fn encode_volume(volume: &VolumeSpec) -> Vec<u8> {
    let mut record = VolumeRecord::new_zeroed();
    record.id = U32::new(volume.id.0);
    record.uuid = volume.uuid.into_bytes();
    record.size = U64::new(volume.size);
    (record.name_len, record.name) = name_field(&volume.name);
    record.as_bytes().to_vec()
}

/// Reads such a payload.
///
/// # Errors
/// Says what is wrong with it.
pub fn decode_volume(bytes: &[u8]) -> Result<VolumeSpec, RecordError> {
    let bad = |why| RecordError {
        what: "volume",
        why,
    };
    let record = VolumeRecord::read_from_bytes(bytes).map_err(|_| bad("its length is wrong"))?;
    if record.reserved0.get() != 0 || record.reserved1 != [0; 6] {
        return Err(bad("reserved bytes are used"));
    }
    let size = record.size.get();
    if size == 0 || size > i64::MAX as u64 {
        return Err(bad("the size is zero or larger than any disk"));
    }
    Ok(VolumeSpec {
        id: VolumeId(record.id.get()),
        uuid: Uuid::from_bytes(record.uuid),
        name: name_of(record.name_len, &record.name)
            .filter(|n| !n.is_empty())
            .ok_or(bad("the name is no UTF-8"))?,
        size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_an_epoch_are_these_and_mean_it() {
        let epoch = Epoch {
            number: 0x0102,
            id: Uuid::from_u128(0xaa),
            site: "clichy".into(),
            first_lsn: Lsn(0x0304),
            ack: AckMode::Async,
            alone: true,
            complete: true,
            mixture: true,
            time_ns: 0x0506,
        };
        let bytes = encode_epoch(&epoch);
        let mut wanted = vec![0; 144];
        wanted[..2].copy_from_slice(&[2, 1]);
        wanted[23] = 0xaa;
        wanted[24..26].copy_from_slice(&[4, 3]);
        wanted[32..34].copy_from_slice(&[6, 5]);
        wanted[40..44].copy_from_slice(&[2, 7, 6, 0]);
        wanted[48..54].copy_from_slice(b"clichy");
        assert_eq!(bytes, wanted);
        assert_eq!(decode_epoch(&bytes), Ok(epoch));
        for (at, value) in [(40, 3), (41, 8), (44, 1), (120, 1), (42, 65), (48, 0xff)] {
            let mut bad = bytes.clone();
            bad[at] = value;
            assert!(decode_epoch(&bad).is_err(), "byte {at} = {value}");
        }
        assert!(decode_epoch(&bytes[..143]).is_err());
    }

    #[test]
    fn the_bytes_of_a_volume_are_these_and_mean_it() {
        let volume = VolumeSpec {
            id: VolumeId(7),
            uuid: Uuid::from_u128(0xbb),
            name: "registry-data".into(),
            size: 10 << 30,
        };
        let bytes = encode_volume(&volume);
        let mut wanted = vec![0; 104];
        wanted[0] = 7;
        wanted[23] = 0xbb;
        wanted[24..32].copy_from_slice(&(10u64 << 30).to_le_bytes());
        wanted[32] = 13;
        wanted[40..53].copy_from_slice(b"registry-data");
        assert_eq!(bytes, wanted);
        assert_eq!(decode_volume(&bytes), Ok(volume));
        for (at, value) in [(4, 1), (34, 1), (32, 0), (32, 65), (31, 0x80)] {
            let mut bad = bytes.clone();
            bad[at] = value;
            assert!(decode_volume(&bad).is_err(), "byte {at} = {value}");
        }
    }
}
