//! What may lie in a state file: the first half of the input in one slot, the second in the other, with checksums that
//! the first byte may ask to be right.
#![no_main]

use doublure::journal::{STATE_FILE_BYTES, StateFile};
use doublure_fuzz::mend;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, data)) = data.split_first() else {
        return;
    };
    let mut file = vec![0; STATE_FILE_BYTES as usize];
    let half = file.len() / 2;
    let (first, second) = data.split_at(data.len().div_ceil(2));
    for (slot, content) in [(0, first), (half, second)] {
        let content = &content[..content.len().min(half)];
        file[slot..slot + content.len()].copy_from_slice(content);
        if mode & 1 != 0 {
            mend::state_slot(&mut file[slot..slot + half]);
        }
    }
    let Ok(Some((mut state, record))) = StateFile::load(&file) else {
        return;
    };
    if record.sequence >= u64::MAX - 1 {
        return;
    }
    // What was read can be written, and is then what counts: as soon as one slot holds it, and whichever is lost later.
    let (offsets, bytes) = state.plan_write(&record);
    let load = |file: &[u8]| {
        StateFile::load(file)
            .expect("it was just written")
            .expect("a record")
    };
    for offset in offsets {
        file[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        assert_eq!(load(&file).1.sequence, record.sequence + 1);
    }
    for offset in offsets {
        let mut lost = file.clone();
        lost[offset as usize] ^= 1;
        assert_eq!(load(&lost).1.sequence, record.sequence + 1);
    }
    let (written, again) = load(&file);
    assert!(!written.is_at_risk());
    assert_eq!(
        (again.lineage, again.volumes, again.peers),
        (record.lineage, record.volumes, record.peers)
    );
    assert_eq!(
        (again.handed, again.checkpoint, again.verified),
        (record.handed, record.checkpoint, record.verified)
    );
});
