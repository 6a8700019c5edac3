//! Single values of the configuration: how each is written and what it may be.
//!
//! A parser answers with the value or with [`Wrong`]; it knows nothing of keys, lines or other values.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use toml::de::DeValue;

use crate::base::{AckMode, Compress, NAME_MAX, OnPeerLoss, Role};

/// Smallest journal: segments of 4 MiB at least, with two of them held back for control frames.
const JOURNAL_MIN_BYTES: u64 = 32 << 20;
/// Largest journal.
const JOURNAL_MAX_BYTES: u64 = 1 << 40;
/// Block devices and NBD clients count in sectors.
const SECTOR_BYTES: u64 = 512;
/// File offsets are signed.
const VOLUME_MAX_BYTES: u64 = i64::MAX as u64 / SECTOR_BYTES * SECTOR_BYTES;
/// The slowest that copies may be told to be, bytes per second.
const RATE_MIN_BYTES: u64 = 1 << 20;
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_mins(10);
/// A scrub that never rests is no scrub, and one of more than a century never comes.
const SCRUB_MIN: Duration = Duration::from_hours(1);
const SCRUB_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);
/// `sun_path` of a socket address, less its final NUL.
pub const UNIX_PATH_MAX: usize = 107;

/// What is wrong with a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// What was found, a phrase that follows the key: `found "5"`.
    pub found: String,
    /// What is allowed, a phrase that follows "allowed:".
    pub allowed: String,
}

impl Wrong {
    /// A value was found that is not allowed.
    pub fn value(found: impl fmt::Display, allowed: impl Into<String>) -> Wrong {
        Wrong {
            found: format!("found {found}"),
            allowed: allowed.into(),
        }
    }
}

/// Outcome of reading one value.
pub type Read<T> = Result<T, Wrong>;

/// Where to listen or to connect to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// A host name, an IPv4 address or an IPv6 address (without its brackets), and a port.
    Tcp {
        /// Host.
        host: String,
        /// 1 to 65535.
        port: u16,
    },
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
}

/// As the configuration writes it: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What kind of value it is and, in short, which: for messages.
pub fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn text<'v>(value: &'v DeValue<'_>, allowed: &str) -> Read<&'v str> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(Wrong::value(describe(other), allowed)),
    }
}

fn one_of<T: Copy>(value: &DeValue<'_>, choices: &[(&str, T)]) -> Read<T> {
    let quoted: Vec<String> = choices
        .iter()
        .map(|(name, _)| format!("{name:?}"))
        .collect();
    let allowed = quoted.join(" or ");
    let found = text(value, &allowed)?;
    choices
        .iter()
        .find(|(name, _)| *name == found)
        .map(|(_, choice)| *choice)
        .ok_or_else(|| Wrong::value(describe(value), allowed))
}

/// `"primary"` or `"mirror"`.
pub fn role(value: &DeValue<'_>) -> Read<Role> {
    one_of(
        value,
        &[("primary", Role::Primary), ("mirror", Role::Mirror)],
    )
}

/// `"sync"`, `"memsync"` or `"async"`.
pub fn ack(value: &DeValue<'_>) -> Read<AckMode> {
    one_of(
        value,
        &[
            ("sync", AckMode::Sync),
            ("memsync", AckMode::Memsync),
            ("async", AckMode::Async),
        ],
    )
}

/// `"off"`, `"lz4"` or `"auto"`.
pub fn compress(value: &DeValue<'_>) -> Read<Compress> {
    one_of(
        value,
        &[
            ("off", Compress::Off),
            ("lz4", Compress::Lz4),
            ("auto", Compress::Auto),
        ],
    )
}

/// `"continue"` or `"freeze"`.
pub fn on_peer_loss(value: &DeValue<'_>) -> Read<OnPeerLoss> {
    one_of(
        value,
        &[
            ("continue", OnPeerLoss::Continue),
            ("freeze", OnPeerLoss::Freeze),
        ],
    )
}

/// Whether a name may be a site's or a group's: they become names of directories and parts of URLs.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Name of a site or of a group.
pub fn plain_name(value: &DeValue<'_>) -> Read<String> {
    let allowed =
        format!("1 to {NAME_MAX} letters a-z A-Z, digits, '.', '_' or '-', not beginning with '.'");
    let name = text(value, &allowed)?;
    if is_plain_name(name) {
        Ok(name.to_owned())
    } else {
        Err(Wrong::value(describe(value), allowed))
    }
}

/// Name of a volume, which is its NBD export name and part of a file's name.
pub fn volume_name(value: &DeValue<'_>) -> Read<String> {
    let allowed = format!("1 to {NAME_MAX} bytes of text, without '/' and control characters");
    let name = text(value, &allowed)?;
    let fits = !name.is_empty() && name.len() <= NAME_MAX;
    if fits && !name.chars().any(|c| c == '/' || c.is_control()) {
        Ok(name.to_owned())
    } else {
        Err(Wrong::value(describe(value), allowed))
    }
}

/// A path that means the same from every working directory, without `.` and `..`.
pub fn absolute_path(value: &DeValue<'_>) -> Read<PathBuf> {
    let allowed = "an absolute path without \"..\"";
    let path = Path::new(text(value, allowed)?);
    let plain = !path.components().any(|c| c.as_os_str() == "..");
    if path.is_absolute() && plain && !path.as_os_str().as_encoded_bytes().contains(&0) {
        // Collecting the components drops doubled and trailing slashes and ".".
        Ok(path.components().collect())
    } else {
        Err(Wrong::value(describe(value), allowed))
    }
}

/// A number of bytes: an integer, or a text such as `"10GiB"` (1024s) or `"10GB"` (1000s).
fn bytes(value: &DeValue<'_>, allowed: &str) -> Read<u64> {
    let wrong = || Wrong::value(describe(value), allowed);
    match value {
        DeValue::Integer(number) => {
            u64::from_str_radix(number.as_str(), number.radix()).map_err(|_| wrong())
        }
        DeValue::String(text) => parse_bytes(text).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

/// `"4096"`, `"10GiB"` (1024s) or `"10GB"` (1000s). `"10G"` is refused: tools disagree on what it means.
fn parse_bytes(text: &str) -> Option<u64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    if !unit.is_empty() && !unit.ends_with(['b', 'B']) {
        return None;
    }
    let ByteSize(bytes) = text.parse().ok()?;
    // The parser saturates; a number too large to hold is not the largest one.
    (bytes != u64::MAX).then_some(bytes)
}

/// Size of a journal.
pub fn journal_size(value: &DeValue<'_>) -> Read<u64> {
    let allowed = "a size from \"32MiB\" to \"1TiB\"";
    let size = bytes(value, allowed)?;
    if (JOURNAL_MIN_BYTES..=JOURNAL_MAX_BYTES).contains(&size) {
        Ok(size)
    } else {
        Err(Wrong::value(describe(value), allowed))
    }
}

/// Size of a volume.
pub fn volume_size(value: &DeValue<'_>) -> Read<u64> {
    let allowed = "a size such as \"10GiB\" (1024s) or \"10GB\" (1000s), a multiple of 512 bytes \
                   (of 4096 for best speed), more than 0 and less than 8EiB";
    let size = bytes(value, allowed)?;
    if (SECTOR_BYTES..=VOLUME_MAX_BYTES).contains(&size) && size.is_multiple_of(SECTOR_BYTES) {
        Ok(size)
    } else {
        Err(Wrong::value(describe(value), allowed))
    }
}

/// How long a silent peer is believed in.
pub fn timeout(value: &DeValue<'_>) -> Read<Duration> {
    let allowed = "a time from \"100ms\" to \"10min\", such as \"5s\"";
    let time = humantime::parse_duration(text(value, allowed)?)
        .map_err(|_| Wrong::value(describe(value), allowed))?;
    if (TIMEOUT_MIN..=TIMEOUT_MAX).contains(&time) {
        Ok(time)
    } else {
        Err(Wrong::value(describe(value), allowed))
    }
}

/// How often everything is verified; zero for never.
pub fn scrub(value: &DeValue<'_>) -> Read<Duration> {
    let allowed = "a time of at least \"1h\", such as \"30d\", or \"off\"";
    let wrong = || Wrong::value(describe(value), allowed);
    let period = match text(value, allowed)? {
        "off" => Duration::ZERO,
        period => humantime::parse_duration(period).map_err(|_| wrong())?,
    };
    if period.is_zero() || (SCRUB_MIN..=SCRUB_MAX).contains(&period) {
        Ok(period)
    } else {
        Err(wrong())
    }
}

/// Bytes per second.
pub fn rate(value: &DeValue<'_>) -> Read<u64> {
    let allowed = "bytes per second of at least \"1MiB\", such as \"100MiB\", or 0 for no limit";
    match bytes(value, allowed)? {
        rate if rate == 0 || rate >= RATE_MIN_BYTES => Ok(rate),
        _ => Err(Wrong::value(describe(value), allowed)),
    }
}

/// `true` or `false`.
pub fn boolean(value: &DeValue<'_>) -> Read<bool> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        _ => Err(Wrong::value(describe(value), "true or false")),
    }
}

/// `HOST:PORT`.
pub fn tcp_address(value: &DeValue<'_>) -> Read<Address> {
    let allowed = "\"HOST:PORT\" or \"[IPV6]:PORT\", port 1 to 65535";
    parse_tcp(text(value, allowed)?).ok_or_else(|| Wrong::value(describe(value), allowed))
}

/// `unix:PATH`.
pub fn unix_address(value: &DeValue<'_>) -> Read<PathBuf> {
    let allowed = format!("\"unix:PATH\" with an absolute path of at most {UNIX_PATH_MAX} bytes");
    match parse_unix(text(value, &allowed)?) {
        Some(Address::Unix(path)) => Ok(path),
        _ => Err(Wrong::value(describe(value), allowed)),
    }
}

/// `HOST:PORT` or `unix:PATH`.
pub fn any_address(value: &DeValue<'_>) -> Read<Address> {
    let allowed = format!(
        "\"HOST:PORT\", \"[IPV6]:PORT\" (port 1 to 65535), or \"unix:PATH\" with an absolute path \
         of at most {UNIX_PATH_MAX} bytes"
    );
    let text = text(value, &allowed)?;
    parse_unix(text)
        .or_else(|| parse_tcp(text))
        .ok_or_else(|| Wrong::value(describe(value), allowed))
}

fn parse_tcp(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    // `u16::from_str` also takes a sign.
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.strip_suffix(']')?;
            inner.parse::<std::net::Ipv6Addr>().ok()?;
            inner
        }
        None => host,
    };
    let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let bracketed = text.starts_with('[');
    // What looks like an IPv4 address must be one: "10.0.0.256" is a slip, not the name of a host.
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let fine = bracketed
        || (!host.is_empty()
            && host.bytes().all(named)
            && (!numeric || host.parse::<std::net::Ipv4Addr>().is_ok()));
    fine.then(|| Address::Tcp {
        host: host.to_owned(),
        port,
    })
}

fn parse_unix(text: &str) -> Option<Address> {
    let path = text.strip_prefix("unix:")?;
    let fits = path.starts_with('/') && path.len() <= UNIX_PATH_MAX && !path.contains('\0');
    fits.then(|| Address::Unix(PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(parse: fn(&DeValue<'_>) -> Read<T>, toml: &str) -> Read<T> {
        parse(DeValue::parse(toml).expect("a TOML value").get_ref())
    }

    #[test]
    fn a_size_counts_in_1024s_with_an_i_and_in_1000s_without() {
        assert_eq!(parse_bytes("10GiB"), Some(10 << 30));
        assert_eq!(parse_bytes("10GB"), Some(10_000_000_000));
        assert_eq!(parse_bytes("10 MiB"), Some(10 << 20));
        assert_eq!(parse_bytes("1.5KiB"), Some(1536));
        assert_eq!(parse_bytes("4096"), Some(4096));
        assert_eq!(parse_bytes("4096B"), Some(4096));
    }

    #[test]
    fn a_size_that_is_ambiguous_negative_or_too_large_is_refused() {
        for text in [
            "10G",
            "10Gi",
            "-1GiB",
            "",
            "GiB",
            "1e3",
            "99999999999EiB",
            "1GiBB",
        ] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn a_bare_integer_is_a_number_of_bytes() {
        assert_eq!(read(volume_size, "4096"), Ok(4096));
        assert_eq!(read(volume_size, "0x1000"), Ok(4096));
        assert!(read(volume_size, "-4096").is_err());
        assert!(read(volume_size, "4096.0").is_err());
    }

    #[test]
    fn a_volume_is_a_positive_number_of_sectors() {
        assert_eq!(read(volume_size, "512"), Ok(512));
        for toml in ["0", "513", "\"1000B\"", "\"16EiB\"", "9223372036854775807"] {
            assert!(read(volume_size, toml).is_err(), "{toml}");
        }
    }

    #[test]
    fn a_journal_is_between_32_mib_and_1_tib() {
        assert_eq!(read(journal_size, "\"32MiB\""), Ok(32 << 20));
        assert_eq!(read(journal_size, "\"1TiB\""), Ok(1 << 40));
        for toml in ["\"31MiB\"", "\"1025GiB\""] {
            assert!(read(journal_size, toml).is_err(), "{toml}");
        }
    }

    #[test]
    fn a_rate_is_at_least_a_mebibyte_a_second_or_none() {
        assert_eq!(read(rate, "\"100MiB\""), Ok(100 << 20));
        assert_eq!(read(rate, "0"), Ok(0));
        for toml in ["\"1KiB\"", "-1", "\"fast\"", "true"] {
            assert!(read(rate, toml).is_err(), "{toml}");
        }
    }

    #[test]
    fn a_timeout_is_between_100_ms_and_10_min_and_has_a_unit() {
        assert_eq!(read(timeout, "\"5s\""), Ok(Duration::from_secs(5)));
        assert_eq!(read(timeout, "\"500ms\""), Ok(Duration::from_millis(500)));
        assert_eq!(read(timeout, "\"10min\""), Ok(Duration::from_mins(10)));
        for toml in ["\"99ms\"", "\"11min\"", "\"5\"", "5", "\"soon\""] {
            assert!(read(timeout, toml).is_err(), "{toml}");
        }
    }

    #[test]
    fn a_scrub_has_a_period_or_is_off() {
        let hours = |h: u64| Ok(Duration::from_secs(h * 3600));
        assert_eq!(read(scrub, "\"30d\""), hours(720));
        assert_eq!(read(scrub, "\"1h\""), hours(1));
        assert_eq!(read(scrub, "\"off\""), hours(0));
        assert_eq!(read(scrub, "\"0s\""), hours(0));
        for toml in ["\"59min\"", "\"200y\"", "0", "\"30\"", "\"never\""] {
            assert!(read(scrub, toml).is_err(), "{toml}");
        }
    }

    #[test]
    fn an_address_reads_back_as_it_was_written() {
        for text in [
            "0.0.0.0:10809",
            "[::1]:10809",
            "chelles.example:1",
            "unix:/run/doublure/nbd.sock",
        ] {
            let address = read(any_address, &format!("{text:?}")).expect(text);
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn an_address_without_host_or_port_is_refused() {
        for text in [
            "0.0.0.0",
            ":10809",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "::1:10809",
            "[::1]",
            "[host]:1",
            "10.0.0.256:1",
            "a b:1",
            "unix:relative.sock",
            "unix:",
        ] {
            assert!(read(any_address, &format!("{text:?}")).is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_path_fits_into_a_socket_address() {
        let path = |len: usize| format!("\"unix:/{}\"", "x".repeat(len - 1));
        assert!(read(unix_address, &path(UNIX_PATH_MAX)).is_ok());
        assert!(read(unix_address, &path(UNIX_PATH_MAX + 1)).is_err());
    }

    #[test]
    fn a_path_is_absolute_and_says_directly_where_it_leads() {
        assert_eq!(
            read(absolute_path, "\"/var//lib/./doublure/\""),
            Ok(PathBuf::from("/var/lib/doublure"))
        );
        for toml in ["\"var/lib\"", "\"/var/../etc\"", "\"\"", "\"/a\\u0000b\""] {
            assert!(read(absolute_path, toml).is_err(), "{toml}");
        }
    }

    #[test]
    fn a_site_or_group_is_named_so_that_it_can_be_a_directory() {
        assert!(is_plain_name("registry-2.a_B"));
        assert!(is_plain_name(&"x".repeat(64)));
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(!is_plain_name(name), "{name}");
        }
    }

    #[test]
    fn a_volume_name_may_be_any_text_that_can_be_a_file_name() {
        assert!(read(volume_name, "\"État civil\"").is_ok());
        for toml in ["\"\"", "\"a/b\"", "\"a\\u0000\"", "\"a\\n\""] {
            assert!(read(volume_name, toml).is_err(), "{toml}");
        }
        assert!(read(volume_name, &format!("{:?}", "é".repeat(33))).is_err());
    }

    #[test]
    fn a_choice_names_its_alternatives() {
        let wrong = read(ack, "\"fast\"").unwrap_err();
        assert_eq!(wrong.found, "found \"fast\"");
        assert_eq!(wrong.allowed, "\"sync\" or \"memsync\" or \"async\"");
    }
}
