//! What may lie in an undo file: a head and three entries, with the input changing single bytes of them and cutting the file
//! short. The first byte says whether what was changed gets right checksums (1) and how much of the file is left.
#![no_main]

use std::sync::OnceLock;

use bytes::Bytes;
use doublure::base::{AckMode, AlignedBuf, ByteRange, Epoch, Lineage, Lsn, Role, VolumeId};
use doublure::base::{CHUNK_BYTES, Verified};
use doublure::journal::{
    Log, StateRecord, UNDO_ENTRY_BYTES, UndoEntry, UndoHead, UndoPlace, UndoRead,
};
use doublure_fuzz::{Input, mend};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(3);

/// The file before anything is changed, where its entries begin, and what they hold.
struct Kept {
    file: Vec<u8>,
    entries: Vec<usize>,
    contents: Vec<UndoEntry>,
}

fn head() -> UndoHead {
    let epoch = Epoch {
        number: 1,
        id: Uuid::from_u128(2),
        site: "clichy".into(),
        first_lsn: Lsn(1),
        ack: AckMode::Sync,
        alone: false,
        complete: false,
        mixture: false,
        time_ns: 7,
    };
    let record = StateRecord {
        sequence: 5,
        group_id: Uuid::from_u128(1),
        site: "clichy".into(),
        group: "registry".into(),
        role: Role::Mirror,
        ack: AckMode::Sync,
        lineage: Lineage::new(vec![epoch]).expect("one epoch"),
        handed: None,
        floor: Lsn(1),
        ever_in_sync: true,
        inconsistent_until: None,
        checkpoint: Log::new(32 << 20, Uuid::from_u128(1)).position(Lsn::ZERO),
        commit: Lsn(8),
        clean_shutdown: false,
        frame_time_ns: 99,
        journal_bytes: 32 << 20,
        volumes: Vec::new(),
        peers: Vec::new(),
        given_up: Uuid::nil(),
        given_up_ns: 0,
        forks: Vec::new(),
        mixture: None,
        written: None,
        undo: ID,
        readable_from: Lsn(0),
        verified: Verified::default(),
    };
    UndoHead {
        id: ID,
        clones: false,
        point: Lsn(9),
        homes: Lsn(8),
        time_ns: 99,
        chain: 7,
        frames_len: 0,
        record,
    }
}

fn keep() -> Kept {
    let mut file = head().encode().to_vec();
    let (mut entries, mut contents) = (Vec::new(), Vec::new());
    for (number, content) in [vec![7; 8192], vec![0; CHUNK_BYTES as usize], vec![9; 512]]
        .into_iter()
        .enumerate()
    {
        let number = number as u64;
        let range = ByteRange::new(number * CHUNK_BYTES, content.len() as u64);
        let place = UndoPlace {
            id: ID,
            number,
            durable: number,
        };
        entries.push(file.len());
        let mut entry = AlignedBuf::with_capacity(UNDO_ENTRY_BYTES as usize);
        UndoEntry::encode(place, VolumeId(0), range, &content, &mut entry);
        file.extend_from_slice(&entry);
        let is_zero = content.iter().all(|b| *b == 0);
        contents.push(UndoEntry {
            volume: VolumeId(0),
            range,
            content: (!is_zero).then(|| content.into()),
        });
    }
    Kept {
        file,
        entries,
        contents,
    }
}

fuzz_target!(|data: &[u8]| {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    let kept = KEPT.get_or_init(keep);
    let mut input = Input::new(data);
    let Some(mode) = input.byte() else { return };
    let mut file = kept.file.clone();
    let untouched = !change(&mut file, kept, mode, &mut input);
    // A crash may leave any part of the end.
    let cut = usize::from(mode >> 1) * 512;
    file.truncate(file.len() - cut.min(file.len()));
    let beginning = &file[..file.len().min(kept.entries[0])];
    let head = match UndoHead::decode(beginning) {
        Ok(head) => head,
        Err(error) => {
            assert!(!untouched || file.len() < kept.entries[0], "{error}");
            return;
        }
    };
    if untouched {
        assert_eq!(head, self::head());
    }
    let again = UndoHead::decode(&head.encode()).expect("what was read can be written");
    assert_eq!(head, again);
    let found = read_entries(&Bytes::from(file), &head);
    if untouched && cut == 0 {
        assert_eq!(found, kept.contents);
    }
});

/// Changes bytes as the input says: (which part, place, place, value) each. Whether anything was.
fn change(file: &mut [u8], kept: &Kept, mode: u8, input: &mut Input<'_>) -> bool {
    let mut changed = false;
    while let Some([which, low, high, value]) =
        (|| Some([input.byte()?, input.byte()?, input.byte()?, input.byte()?]))()
    {
        let place = usize::from(u16::from_le_bytes([low, high]));
        let at = match which % 5 {
            0 => place % 72,
            1 => 4096 + place % 2048,
            entry => {
                kept.entries[usize::from(entry) - 2] + place % if which < 128 { 68 } else { 8192 }
            }
        };
        if let Some(byte) = file.get_mut(at) {
            *byte = value;
            changed = true;
        }
    }
    if mode & 1 != 0 && changed {
        let (head, _) = file.split_at_mut(kept.entries[0]);
        mend::undo_head(head);
        for at in &kept.entries {
            mend::undo_entry(&mut file[*at..]);
        }
    }
    changed
}

/// Reads the entries one after the other, as a site that goes back does.
fn read_entries(file: &Bytes, head: &UndoHead) -> Vec<UndoEntry> {
    let mut found = Vec::new();
    let mut at = head.entries_at();
    while at < file.len() as u64 {
        let from = at as usize;
        let to = file.len().min(from + UNDO_ENTRY_BYTES as usize);
        let (bytes, number) = (file.slice(from..to), found.len() as u64);
        let peeked = UndoEntry::peek(head.id, number, &bytes);
        match UndoEntry::decode(head.id, number, &bytes) {
            UndoRead::Entry(entry, len) => {
                let (volume, range, length, _) = peeked.expect("a whole entry has a beginning");
                assert_eq!((volume, range, length), (entry.volume, entry.range, len));
                assert!(len >= 4096 && entry.range.end() >= entry.range.offset);
                assert!(
                    entry
                        .content
                        .as_ref()
                        .is_none_or(|c| c.len() as u64 == range.len)
                );
                at += len;
                found.push(entry);
            }
            UndoRead::Broken => break,
            UndoRead::Nothing => {
                assert_eq!(peeked, None);
                break;
            }
        }
    }
    found
}
