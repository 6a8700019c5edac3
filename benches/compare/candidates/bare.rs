//! The bare file: what the disk and its file system can do, with nobody in between.

use std::path::{Path, PathBuf};

use super::filled_file;

/// A file like everybody's volume.
pub struct Bare {
    pub path: PathBuf,
}

impl Bare {
    pub fn start(dir: &Path, size: u64) -> anyhow::Result<Bare> {
        let path = dir.join("bare");
        filled_file(&path, size)?;
        Ok(Bare { path })
    }
}
