//! Numbers and times in texts, the same in every part.

use std::time::{Duration, UNIX_EPOCH};

use super::Lsn;

/// `1 group`, `3 groups`, `12,345 operations`.
pub fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(count))
}

/// `LSN 24`, `LSN 24 to 30`
pub fn lsns(first: Lsn, last: Lsn) -> String {
    if first == last {
        format!("LSN {first}")
    } else {
        format!("LSN {first} to {last}")
    }
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

/// `512.0 MiB (536,870,912 bytes)`: to be read, and to be typed.
pub fn exact_bytes(count: u64) -> String {
    if count < 1024 {
        return counted_bytes(count);
    }
    format!("{} ({} bytes)", counted_bytes(count), grouped(count))
}

/// `2026-11-23 01:59:12 UTC`
pub fn utc(unix_seconds: u64) -> String {
    // Year 9999 is as far as the format goes.
    let at = UNIX_EPOCH + Duration::from_secs(unix_seconds.min(253_402_300_799));
    let text = humantime::format_rfc3339_seconds(at).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_size_is_told_with_a_unit_and_in_bytes() {
        assert_eq!(exact_bytes(536_870_912), "512.0 MiB (536,870,912 bytes)");
        assert_eq!(exact_bytes(1), "1 byte");
    }

    #[test]
    fn a_range_of_one_lsn_is_that_lsn() {
        assert_eq!(lsns(Lsn(24), Lsn(24)), "LSN 24");
        assert_eq!(lsns(Lsn(24), Lsn(30)), "LSN 24 to 30");
    }
}
