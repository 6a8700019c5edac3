//! What a peer may send.
#![no_main]

use bytes::BytesMut;
use doublure::link::Decoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut decoder = Decoder::new();
    let mut input = BytesMut::new();
    for part in data.chunks(113) {
        input.extend_from_slice(part);
        loop {
            match decoder.next(&mut input) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
