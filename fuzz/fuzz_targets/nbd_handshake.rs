//! What a client may say before it has an export.
#![no_main]

use bytes::BytesMut;
use doublure::nbd::{Export, Exports, Handshake, Step, Unavailable};
use libfuzzer_sys::fuzz_target;

struct Two;

impl Exports for Two {
    fn list(&self) -> Vec<String> {
        vec!["a".into(), "b".into()]
    }

    fn find(&self, name: &str) -> Result<Export, Unavailable> {
        match name {
            "a" => Ok(Export {
                name: "a".into(),
                size: 1 << 30,
                description: String::new(),
            }),
            "b" => Err(Unavailable::Policy("b is elsewhere".into())),
            _ => Err(Unavailable::Unknown),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut output = BytesMut::new();
    let mut handshake = Handshake::new(&mut output);
    let mut input = BytesMut::new();
    for part in data.chunks(61) {
        input.extend_from_slice(part);
        loop {
            output.clear();
            match handshake.advance(&mut input, &mut output, &Two) {
                Step::Again => {}
                Step::More => break,
                Step::Done(_) | Step::Close(_) => return,
            }
            assert!(output.len() < 1 << 20, "the output is bounded");
        }
    }
});
