//! Makes checksums right again after the fuzzer changed what they cover. Without this nothing behind a checksum would
//! ever be reached: no chance change survives a CRC. The offsets are those of the tables in the formats' modules.

use doublure::base::BLOCK;

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// CRC-32 of these bytes, the four at `field` counted as zero.
fn crc_without(bytes: &[u8], field: usize) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..field]);
    crc.update(&[0; 4]);
    crc.update(&bytes[field + 4..]);
    crc.finalize()
}

/// A frame: the CRCs of its payloads and its own checksum, which is returned. `prev` is that of the frame before.
pub fn frame(bytes: &mut [u8], prev: Option<u32>) -> Option<u32> {
    if bytes.len() < BLOCK {
        return None;
    }
    if let Some(prev) = prev {
        put(bytes, 96, prev);
    }
    let end = (128 + u32_at(bytes, 84)).min(bytes.len());
    let mut at = 128;
    while at + 48 <= end {
        let (len, stored, from) = (
            u16_at(bytes, at),
            u32_at(bytes, at + 12),
            u32_at(bytes, at + 36),
        );
        if let Some(payload) = bytes.get(from..from.saturating_add(stored)) {
            let crc = crc32fast::hash(payload);
            // A payload that lies over the descriptors would never come to rest.
            if stored == 0 || from >= end {
                put(bytes, at + 32, crc);
            }
        }
        at += len.max(48);
    }
    let checksum = crc_without(&bytes[..end], 100);
    put(bytes, 100, checksum);
    Some(checksum)
}

/// The header of a segment.
pub fn segment(block: &mut [u8]) {
    let crc = crc_without(&block[..56], 52);
    put(block, 52, crc);
}

/// One slot of the state file.
pub fn state_slot(slot: &mut [u8]) {
    let len = u32_at(slot, 24);
    if (32..=slot.len()).contains(&len) {
        let crc = crc_without(&slot[..len], 28);
        put(slot, 28, crc);
    }
}

/// The head of an undo file.
pub fn undo_head(head: &mut [u8]) {
    const RECORD: usize = 4096;
    if head.len() > RECORD {
        state_slot(&mut head[RECORD..]);
        let crc = crc_without(head, 60);
        put(head, 60, crc);
    }
}

/// An entry of an undo file, its content included as far as it is there.
pub fn undo_entry(entry: &mut [u8]) {
    let len = u64::from_le_bytes(entry[48..56].try_into().expect("eight bytes"));
    if let Ok(len) = usize::try_from(len)
        && let Some(content) = entry.get(BLOCK..BLOCK.saturating_add(len))
    {
        let crc = crc32fast::hash(content);
        put(entry, 36, crc);
    }
    let crc = crc_without(&entry[..68], 64);
    put(entry, 64, crc);
}

/// Messages of the link, one after the other, as far as their lengths make sense.
pub fn link(mut bytes: &mut [u8]) {
    const HEADER: usize = 16;
    const FRAME: usize = 8;
    const CHUNK: usize = 13;
    const CHUNK_RECORD: usize = 32;
    const CONTENT: usize = 23;
    const CONTENT_RECORD: usize = 40;
    while bytes.len() >= HEADER {
        let (kind, len) = (u16_at(bytes, 4), u32_at(bytes, 8));
        if bytes.len() - HEADER < len {
            return;
        }
        let body = &mut bytes[HEADER..HEADER + len];
        let covered = match kind {
            FRAME => {
                frame(body, None);
                0
            }
            CHUNK if len >= CHUNK_RECORD => {
                let crc = crc32fast::hash(&body[CHUNK_RECORD..]);
                put(body, 20, crc);
                CHUNK_RECORD
            }
            CONTENT if len >= CONTENT_RECORD => {
                let crc = crc32fast::hash(&body[CONTENT_RECORD..]);
                put(body, 20, crc);
                CONTENT_RECORD
            }
            _ => len,
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[..12]);
        crc.update(&bytes[HEADER..HEADER + covered]);
        put(bytes, 12, crc.finalize());
        bytes = &mut bytes[HEADER + len..];
    }
}
