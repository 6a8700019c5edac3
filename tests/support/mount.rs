//! File systems on a replicated volume: nbdfuse makes it a file, the loop driver a block device.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::tools::{Running, command, eventually, run};

/// Makes a directory of a name that is free below `dir`.
fn fresh_dir(dir: &Path, name: &str) -> PathBuf {
    // Mounted over; removed with the directory of the pair.
    tempfile::Builder::new()
        .prefix(name)
        .tempdir_in(dir)
        .expect("a directory")
        .keep()
}

/// A volume as a file.
pub struct NbdFuse {
    mountpoint: PathBuf,
    _program: Running,
}

impl NbdFuse {
    /// Mounts it below `dir`.
    pub fn new(dir: &Path, uri: &str) -> NbdFuse {
        let mountpoint = fresh_dir(dir, "fuse");
        let mut nbdfuse = command("nbdfuse");
        nbdfuse.arg(&mountpoint).arg(uri).stdout(Stdio::null());
        let fuse = NbdFuse {
            _program: Running::start(&mut nbdfuse),
            mountpoint,
        };
        eventually("nbdfuse shows the volume", Duration::from_secs(30), || {
            fuse.path().exists()
        });
        fuse
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.mountpoint.join("nbd")
    }
}

impl Drop for NbdFuse {
    fn drop(&mut self) {
        let _ = command("umount")
            .arg("--lazy")
            .arg(&self.mountpoint)
            .output();
    }
}

/// A mounted file system.
pub struct Mount {
    device: String,
    mountpoint: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts the file system in `image` below `dir`, replaying its journal. Needs root.
    pub fn new(dir: &Path, image: &Path, options: &str) -> Mount {
        let mountpoint = fresh_dir(dir, "mnt");
        let device = run(command("losetup").args(["--find", "--show"]).arg(image))
            .trim()
            .to_owned();
        let mut mount = Mount {
            device,
            mountpoint,
            mounted: false,
        };
        run(command("mount")
            .args(["-o", options, &mount.device])
            .arg(&mount.mountpoint));
        mount.mounted = true;
        mount
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// Unmounts; everything is written by then.
    pub fn unmount(mut self) {
        run(command("umount").arg(&self.mountpoint));
        self.mounted = false;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = command("umount")
                .arg("--lazy")
                .arg(&self.mountpoint)
                .output();
        }
        let _ = command("losetup").args(["--detach", &self.device]).output();
    }
}

/// A small file system of its own, to be filled up.
pub struct SmallDisk {
    mount: Option<Mount>,
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// Makes and mounts it. Needs root.
    pub fn new(bytes: u64) -> SmallDisk {
        let dir = tempfile::Builder::new()
            .prefix("dbldisk")
            .tempdir()
            .expect("a temporary directory");
        let image = dir.path().join("image");
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(bytes))
            .expect("an image");
        run(command("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        SmallDisk {
            mount: Some(Mount::new(dir.path(), &image, "noatime")),
            dir,
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.mount.as_ref().expect("mounted").path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Takes all space but this much.
    pub fn fill(&self, leave_bytes: u64) {
        let stat = rustix::fs::statvfs(self.path()).expect("a file system");
        let take = (stat.f_bavail * stat.f_frsize).saturating_sub(leave_bytes);
        if take > 0 {
            run(command("fallocate")
                .arg("--length")
                .arg(take.to_string())
                .arg(self.ballast()));
        }
    }

    /// Gives it back.
    pub fn empty(&self) {
        let _ = std::fs::remove_file(self.ballast());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Before its directory, in which it is mounted.
        drop(self.mount.take());
        let _ = &self.dir;
    }
}
