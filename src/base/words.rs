//! Numbers and times in texts, the same in every part.

use std::time::{Duration, UNIX_EPOCH};

/// `1 group`, `3 groups`, `12,345 operations`.
pub fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(count))
}

/// `1,234,567`
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `0 bytes`, `1 byte`, `512 bytes`, `1.5 GiB`
pub fn counted_bytes(count: u64) -> String {
    if count < 1024 {
        return counted(count, "byte");
    }
    bytesize::ByteSize(count).display().iec().to_string()
}

/// `2026-11-23 01:59:12 UTC`
pub fn utc(unix_seconds: u64) -> String {
    // Year 9999 is as far as the format goes.
    let at = UNIX_EPOCH + Duration::from_secs(unix_seconds.min(253_402_300_799));
    let text = humantime::format_rfc3339_seconds(at).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}
