//! Operations, crashes and bit rot in any order, held against an array of blocks.
#![no_main]

use doublure_fuzz::Input;
use doublure_fuzz::site::Site;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| Site::default().run(Input::new(data)));
