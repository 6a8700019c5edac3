//! What `doublure try` tells its user: commands that can be pasted into a shell as they stand.

use std::fmt::Write as _;
use std::path::Path;

use super::place::{GROUP, SiteFiles, VOLUME, VOLUME_SIZE};

/// What the text is about.
pub struct Guide<'g> {
    /// How to call this program.
    pub program: &'g Path,
    /// The directory of `try`.
    pub dir: &'g Path,
    /// Whether commands that need root must ask for it.
    pub root: bool,
}

impl Guide<'_> {
    /// The disk is ready at `primary`: its address, three ways to use it, and how to see a failover.
    pub fn ready(&self, primary: (&SiteFiles, u32), mirror: (&SiteFiles, u32)) -> String {
        let (files, pid) = primary;
        let (other, other_pid) = mirror;
        let uri = shell(&uri(files));
        let mut text = format!(
            "\n\
             A disk of {VOLUME_SIZE} on two sites is ready. Each site here is a process; in earnest it is a machine room.\n\
             \n  \
             primary  {:<11} process {pid:<8} log {}\n  \
             mirror   {:<11} process {other_pid:<8} log {}\n\
             \n\
             Its address for any NBD client:\n\
             \n  \
             {}\n\
             \n\
             Use it from another terminal, in one of three ways (they write over each other):\n",
            files.name,
            files.log.display(),
            other.name,
            other.log.display(),
            self::uri(files),
        );
        let _ = writeln!(text, "\n  {}", self.fio(&uri));
        let _ = writeln!(text, "\n  {}", self.qemu_io(&uri));
        for line in self.mount(&uri) {
            let gap = if line.starts_with("mkdir") { "\n" } else { "" };
            let _ = writeln!(text, "{gap}  {line}");
        }
        // A disk that goes away under a mounted file system takes along what was not written yet.
        let _ = writeln!(
            text,
            "\nBefore the end, if it was mounted:\n\n  {}",
            self.unmount()
        );
        let program = shell(&self.program.display().to_string());
        let control = shell(&files.control.display().to_string());
        let _ = write!(
            text,
            "\nLook closely, stage by stage:\n\
             \n  \
             {program} status --watch -s {control}\n\
             \n\
             See a failover: kill the primary as a power cut would, then promote the mirror.\n\
             \n  \
             kill -9 {pid}\n  \
             {}\n\n",
            self.promote(other),
        );
        text
    }

    /// The command that makes this site the primary while the other is gone.
    pub fn promote(&self, files: &SiteFiles) -> String {
        format!(
            "{} promote {GROUP} --force peer-unreachable -s {}",
            shell(&self.program.display().to_string()),
            shell(&files.control.display().to_string()),
        )
    }

    /// The command that runs a site by hand.
    pub fn serve(&self, files: &SiteFiles) -> String {
        format!(
            "{} serve -c {}",
            shell(&self.program.display().to_string()),
            shell(&files.config.display().to_string()),
        )
    }

    fn fio(&self, uri: &str) -> String {
        let _ = self;
        format!(
            "fio --name=try --ioengine=nbd --uri={uri} --rw=randwrite --bs=4k --iodepth=32 --size=256m \
             --verify=crc32c"
        )
    }

    fn qemu_io(&self, uri: &str) -> String {
        let _ = self;
        format!(
            "qemu-io -f raw -c 'write -P 0x5a 512M 1M' -c flush -c 'read -P 0x5a 512M 1M' {uri}"
        )
    }

    fn unmount(&self) -> String {
        let path = |name: &str| shell(&self.dir.join(name).display().to_string());
        let sudo = if self.root { "" } else { "sudo " };
        format!(
            "{sudo}umount {}; {sudo}umount {}",
            path("mnt"),
            path("fuse")
        )
    }

    /// A mount needs root, and root cannot look into another user's FUSE, so all of it runs as root. A file system that
    /// is there already is not made again.
    fn mount(&self, uri: &str) -> Vec<String> {
        let path = |name: &str| shell(&self.dir.join(name).display().to_string());
        let (fuse, disk, mnt) = (path("fuse"), path("fuse/disk"), path("mnt"));
        let (sudo, ask) = if self.root {
            ("", "")
        } else {
            ("sudo ", "sudo -v; ")
        };
        vec![
            format!("mkdir -p {fuse} {mnt}; {ask}{sudo}nbdfuse {disk} {uri} &"),
            format!("until {sudo}test -f {disk}; do sleep 0.1; done"),
            format!("{sudo}blkid {disk} || {sudo}mkfs.ext4 -q -F {disk}"),
            format!("{sudo}mount -o loop {disk} {mnt}"),
        ]
    }
}

/// The address of the disk at a site.
pub fn uri(files: &SiteFiles) -> String {
    let mut socket = String::new();
    for byte in files.nbd.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                socket.push(char::from(*byte));
            }
            other => {
                let _ = write!(socket, "%{other:02X}");
            }
        }
    }
    format!("nbd+unix:///{VOLUME}?socket={socket}")
}

/// A word as a POSIX shell takes it literally.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn site(name: &'static str, dir: &str) -> SiteFiles {
        let dir = PathBuf::from(dir);
        SiteFiles {
            name,
            config: dir.join(format!("{name}.toml")),
            log: dir.join(format!("{name}.log")),
            control: dir.join(format!("{name}.control.sock")),
            nbd: dir.join(format!("{name}.nbd.sock")),
        }
    }

    #[test]
    fn a_path_with_odd_characters_survives_the_uri_and_the_shell() {
        let odd = site("lead", "/srv/it's & more");
        let address = uri(&odd);
        assert_eq!(
            address,
            "nbd+unix:///demo?socket=/srv/it%27s%20%26%20more/lead.nbd.sock"
        );
        assert_eq!(shell(&address), format!("'{address}'"));
        assert_eq!(shell("it's"), r"'it'\''s'");
        assert_eq!(shell("/srv/plain-1.toml"), "/srv/plain-1.toml");
        assert_eq!(shell(""), "''");
    }

    #[test]
    fn the_guide_tells_the_address_three_uses_and_a_failover() {
        let (lead, understudy) = (site("lead", "/srv/try"), site("understudy", "/srv/try"));
        let guide = Guide {
            program: Path::new("target/release/doublure"),
            dir: Path::new("/srv/try"),
            root: false,
        };
        insta::assert_snapshot!(guide.ready((&lead, 4242), (&understudy, 4243)));
    }
}
