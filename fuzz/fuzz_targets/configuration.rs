//! What an operator may write.
#![no_main]

use doublure::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(report) = Config::parse(text, "doublure.toml".as_ref()) {
        assert!(!report.to_string().is_empty());
    }
});
