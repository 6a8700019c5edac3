//! What concerns the process as a whole: its log, its limits, and that there is only one for a data directory.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit};

/// Human lines on stderr, or JSON with `DOUBLURE_LOG_FORMAT=json`; filtered by `DOUBLURE_LOG`, default `info`.
pub fn init_log() {
    use tracing_subscriber::EnvFilter;
    let wanted = std::env::var("DOUBLURE_LOG").unwrap_or_default();
    let filter = match log_filter(&wanted) {
        Ok(filter) => filter,
        Err(why) => {
            eprintln!("doublure: DOUBLURE_LOG is {wanted:?}: {why}; logging at \"info\"");
            EnvFilter::new("info")
        }
    };
    let format = std::env::var("DOUBLURE_LOG_FORMAT").unwrap_or_default();
    if !["", "json", "text"].contains(&format.as_str()) {
        eprintln!("doublure: DOUBLURE_LOG_FORMAT is {format:?}; allowed: json, text");
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let json = format == "json";
    // A program that embeds this one may have its own log already.
    let _ = if json {
        log.json().try_init()
    } else {
        log.compact()
            .with_target(false)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init()
    };
}

/// The filter of these words; `info` for none.
fn log_filter(wanted: &str) -> Result<tracing_subscriber::EnvFilter, String> {
    const ALLOWED: &str = "allowed: off, error, warn, info, debug, trace, or TARGET=LEVEL,...";
    if wanted.is_empty() {
        return Ok(tracing_subscriber::EnvFilter::new("info"));
    }
    // A single word that is no level would be taken for a target, and silence everything else.
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let bare = |part: &&str| !part.contains(['=', '[']) && !levels.contains(&part.trim());
    if let Some(word) = wanted.split(',').find(bare) {
        return Err(format!("{word:?} is no level; {ALLOWED}"));
    }
    tracing_subscriber::EnvFilter::builder()
        .parse(wanted)
        .map_err(|error| format!("{error}; {ALLOWED}"))
}

/// A thousand clients need more descriptors than the usual soft limit of 1024.
pub fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, soft_limit = limit.current, "cannot raise the limit of open files");
    }
}

/// Makes sure that nobody else serves from this directory. The lock goes with the process, however that ends.
///
/// # Errors
/// Names the process that has it.
pub fn lock_data(data: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(data)
        .with_context(|| format!("cannot create the data directory {}", data.display()))?;
    let path = data.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let holder = std::io::read_to_string(&file).unwrap_or_default();
        bail!(
            "another doublure (process {}) serves from {}; stop it or configure another data directory",
            holder.trim_end(),
            data.display()
        );
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_does_not_exist_is_told_and_not_taken_for_silence() {
        assert!(log_filter("").is_ok() && log_filter("debug,doublure=trace").is_ok());
        assert!(log_filter("verbose").unwrap_err().contains("no level"));
        assert!(log_filter("garbage=[").is_err());
    }

    #[test]
    fn a_data_directory_serves_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("site");
        let held = lock_data(&data).unwrap();
        let error = lock_data(&data).unwrap_err().to_string();
        let me = format!("process {}", std::process::id());
        assert!(error.contains(&me) && error.contains("site"), "{error}");
        drop(held);
        lock_data(&data).unwrap();
    }
}
