//! Numbers as an operator reads them: few digits, a unit, plain ASCII (a serial console shows nothing else).

use bytesize::ByteSize;

pub use crate::base::{counted, grouped, lsns, utc};

/// `512 B`, `1.5 GiB`
pub fn bytes(count: u64) -> String {
    ByteSize(count).display().iec().to_string()
}

/// `0 B/s`, `48.1 MiB/s`
pub fn bytes_per_second(rate: f64) -> String {
    // Rates are not negative, and the cast saturates.
    #[expect(clippy::cast_sign_loss)]
    let rate = rate.round() as u64;
    format!("{}/s", bytes(rate))
}

/// `0`, `0.3`, `982`, `12.3k`, `1.2M`
pub fn rate(per_second: f64) -> String {
    match per_second {
        r if r < 0.05 => "0".to_owned(),
        r if r < 9.95 => format!("{r:.1}"),
        r if r < 999.5 => format!("{r:.0}"),
        r if r < 999_950.0 => format!("{:.1}k", r / 1e3),
        r => format!("{:.1}M", r / 1e6),
    }
}

/// `90us`, `1.2ms`, `4.0s`
pub fn microseconds(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{us:.0}us"),
        us if us < 99_950.0 => format!("{:.1}ms", us / 1e3),
        us if us < 999_500.0 => format!("{:.0}ms", us / 1e3),
        us => format!("{:.1}s", us / 1e6),
    }
}

/// `0.2s`, `12s`, `3m 12s`, `4h 5m`, `3d 4h`
pub fn seconds(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{:.1}s", seconds.max(0.0));
    }
    // Not negative here, and the cast saturates.
    #[expect(clippy::cast_sign_loss)]
    let whole = seconds.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{minutes}m {}s", whole % 60),
        3600..86400 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// `[#####---------------]`, 20 wide.
pub fn bar(part: u64, whole: u64) -> String {
    const WIDTH: u64 = 20;
    let part = part.min(whole);
    let filled = (u128::from(part) * u128::from(WIDTH))
        .div_ceil(u128::from(whole.max(1)))
        .min(u128::from(WIDTH)) as usize;
    format!(
        "[{}{}]",
        "#".repeat(filled),
        "-".repeat(WIDTH as usize - filled)
    )
}

/// `27%`; a part that is not all of it is never 100 %.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0%".to_owned();
    }
    let percent = u128::from(part.min(whole)) * 100 / u128::from(whole);
    format!("{percent}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_separators_and_a_plural() {
        assert_eq!(counted(0, "group"), "0 groups");
        assert_eq!(counted(1, "group"), "1 group");
        assert_eq!(counted(1_234_567, "operation"), "1,234,567 operations");
        assert_eq!(grouped(123), "123");
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn rates_have_two_or_three_digits() {
        let shown: Vec<_> = [0.0, 0.3, 9.96, 982.4, 999.7, 12_345.0, 1_200_000.0]
            .map(rate)
            .into();
        assert_eq!(shown, ["0", "0.3", "10", "982", "1.0k", "12.3k", "1.2M"]);
        assert_eq!(bytes_per_second(50_436_505.6), "48.1 MiB/s");
    }

    #[test]
    fn times_show_their_two_largest_units() {
        let shown: Vec<_> = [0.0, 0.24, 12.0, 192.0, 14_700.0, 273_600.0]
            .map(seconds)
            .into();
        assert_eq!(shown, ["0.0s", "0.2s", "12s", "3m 12s", "4h 5m", "3d 4h"]);
        let shown: Vec<_> = [0.0, 90.2, 999.6, 1240.0, 250_000.0, 4e6]
            .map(microseconds)
            .into();
        assert_eq!(shown, ["0us", "90us", "1.0ms", "1.2ms", "250ms", "4.0s"]);
        assert_eq!(utc(1_795_399_152), "2026-11-23 01:59:12 UTC");
    }

    #[test]
    fn a_bar_is_empty_only_for_nothing_and_100_percent_only_for_all() {
        assert_eq!(bar(0, 100), "[--------------------]");
        assert_eq!(bar(1, 100), "[#-------------------]");
        assert_eq!(bar(100, 100), "[####################]");
        assert_eq!(bar(5, 0), "[--------------------]");
        assert_eq!(percent(999, 1000), "99%");
        assert_eq!(percent(1000, 1000), "100%");
        assert_eq!(percent(5, 0), "0%");
    }
}
