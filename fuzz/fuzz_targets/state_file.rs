//! What may lie in a state file.
#![no_main]

use doublure::journal::{STATE_FILE_BYTES, StateFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut file = vec![0; STATE_FILE_BYTES as usize];
    let (first, second) = data.split_at(data.len() / 2);
    let half = file.len() / 2;
    file[..first.len().min(half)].copy_from_slice(&first[..first.len().min(half)]);
    file[half..half + second.len().min(half)].copy_from_slice(&second[..second.len().min(half)]);
    if let Ok(Some((mut state, record))) = StateFile::load(&file) {
        let _ = state.plan_write(&record);
    }
});
