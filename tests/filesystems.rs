//! Real file systems on a replicated volume: nbdfuse and the loop driver make it a disk for ext4 and xfs.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use support::mount::{Mount, NbdFuse};
use support::site::PATIENCE;
use support::tools::{command, eventually, root_or_skip, source};
use support::{Dice, MIB, Pair, Setup, need, run, shell};

/// A file system under test.
struct Kind {
    make: &'static [&'static str],
    /// Read-only check of an image.
    check: &'static [&'static str],
}

const EXT4: Kind = Kind {
    make: &["mkfs.ext4", "-q", "-F"],
    check: &["e2fsck", "-f", "-n"],
};
const XFS: Kind = Kind {
    make: &["mkfs.xfs", "-q", "-f"],
    check: &["xfs_repair", "-n"],
};

fn ready(kind: &Kind) -> bool {
    need(&[
        "nbdfuse",
        "losetup",
        "mount",
        "tar",
        "cc",
        "cp",
        kind.make[0],
        kind.check[0],
    ]);
    root_or_skip("mounting a file system")
}

/// Room for the smallest xfs.
fn pair() -> Pair {
    Pair::start(Setup {
        size: 384 * MIB,
        journal: "256MiB",
        timeout: "2s",
        ..Setup::default()
    })
}

fn tool(words: &[&str], file: &Path) -> String {
    run(command(words[0]).args(&words[1..]).arg(file))
}

/// Stops both, and neither image needs repair.
fn both_homes_are_clean(pair: &mut Pair, kind: &Kind) {
    pair.stop_and_compare();
    for home in [pair.clichy.home(), pair.chelles.home()] {
        tool(kind.check, &home);
    }
}

/// Unpacks this project's sources and a C program, builds the program, and runs it.
fn untar_and_build(top: &Path) {
    let (top, source) = (top.display(), source().display().to_string());
    shell(&format!(
        "mkdir {top}/pack {top}/c
         for n in $(seq 1 60); do echo \"int f$n(int x) {{ return x + $n; }}\" > {top}/pack/f$n.c; done
         {{ seq -f 'int f%g(int);' 60; echo 'int main(void) {{ int x = 0;'; seq -f 'x = f%g(x);' 60
            echo 'return x == 1830 ? 0 : 1; }}'; }} > {top}/pack/main.c
         tar -C {top}/pack -cf {top}/c.tar . && tar -C {top}/c -xf {top}/c.tar && rm -r {top}/pack
         tar -C {source} -cf {top}/source.tar src tests Cargo.toml && mkdir {top}/source
         tar -C {top}/source -xf {top}/source.tar && sync -f {top}
         cd {top}/c && for f in *.c; do cc -O1 -c $f; done && cc *.o -o sum && ./sum && rm *.o && sync -f {top}"
    ));
}

fn same_sources(top: &Path) {
    shell(&format!(
        "diff -r {}/source/src {}/src && {}/c/sum",
        top.display(),
        source().display(),
        top.display()
    ));
}

fn is_used_unmounted_and_clean_on_both_sites(kind: &Kind) {
    if !ready(kind) {
        return;
    }
    let mut pair = pair();
    {
        let fuse = NbdFuse::new(pair.scratch(), &pair.clichy.uri());
        tool(kind.make, &fuse.path());
        let mount = Mount::new(pair.scratch(), &fuse.path(), "rw");
        untar_and_build(mount.path());
        mount.unmount();
        let again = Mount::new(pair.scratch(), &fuse.path(), "rw");
        same_sources(again.path());
        shell(&format!(
            "rm -r {}/source; fstrim {}",
            again.path().display(),
            again.path().display()
        ));
        again.unmount();
    }
    both_homes_are_clean(&mut pair, kind);
}

#[test]
fn ext4_is_used_unmounted_and_clean_on_both_sites() {
    is_used_unmounted_and_clean_on_both_sites(&EXT4);
}

#[test]
fn xfs_is_used_unmounted_and_clean_on_both_sites() {
    is_used_unmounted_and_clean_on_both_sites(&XFS);
}

/// Content of a file that its name determines.
fn content(number: u64) -> Vec<u8> {
    let mut dice = Dice::new(number + 1);
    let len = 1 + dice.below(60_000) as usize;
    (0..len).map(|_| dice.roll() as u8).collect()
}

/// Makes files until it fails or is told to stop; a file is named in `kept` once its fsync returned.
fn make_files(top: &Path, kept: &Mutex<Vec<u64>>, enough: &AtomicBool) -> std::io::Result<()> {
    let dir = File::open(top)?;
    for number in 0.. {
        if enough.load(SeqCst) {
            break;
        }
        let mut file = File::create(top.join(format!("file{number}")))?;
        file.write_all(&content(number))?;
        file.sync_all()?;
        dir.sync_all()?;
        kept.lock().unwrap().push(number);
    }
    Ok(())
}

fn assert_whole(top: &Path, kept: &[u64]) {
    for number in kept {
        let name: PathBuf = top.join(format!("file{number}"));
        let found = fs::read(&name)
            .unwrap_or_else(|e| panic!("{}, which was fsynced: {e}", name.display()));
        assert!(
            found == content(*number),
            "{} is not what was fsynced",
            name.display()
        );
    }
}

fn survives_the_death_of_the_primary_on_the_promoted_mirror(kind: &Kind) {
    if !ready(kind) {
        return;
    }
    let mut pair = pair();
    let kept = Mutex::default();
    let enough = AtomicBool::new(false);
    {
        let fuse = NbdFuse::new(pair.scratch(), &pair.clichy.uri());
        tool(kind.make, &fuse.path());
        let mount = Mount::new(pair.scratch(), &fuse.path(), "rw");
        let (top, kept, enough, clichy) = (mount.path(), &kept, &enough, &mut pair.clichy);
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || make_files(top, kept, enough));
            eventually("150 files are fsynced", PATIENCE, || {
                kept.lock().unwrap().len() >= 150
            });
            clichy.kill();
            // The file system finds its disk gone, or this test ends it.
            enough.store(true, SeqCst);
            let _ = writer.join().expect("a writer");
        });
    }
    let kept = kept.into_inner().unwrap();
    pair.chelles
        .order(&["promote", "demo", "--force", "peer-unreachable"]);
    {
        let fuse = NbdFuse::new(pair.scratch(), &pair.chelles.uri());
        let mount = Mount::new(pair.scratch(), &fuse.path(), "rw");
        assert_whole(mount.path(), &kept);
        mount.unmount();
        tool(kind.check, &fuse.path());
        let mount = Mount::new(pair.scratch(), &fuse.path(), "rw");
        untar_and_build(mount.path());
        mount.unmount();
    }
    pair.clichy.start();
    pair.wait_in_sync();
    both_homes_are_clean(&mut pair, kind);
}

#[test]
fn ext4_survives_the_death_of_the_primary_with_every_fsynced_file_whole_on_the_promoted_mirror() {
    survives_the_death_of_the_primary_on_the_promoted_mirror(&EXT4);
}

#[test]
fn xfs_survives_the_death_of_the_primary_with_every_fsynced_file_whole_on_the_promoted_mirror() {
    survives_the_death_of_the_primary_on_the_promoted_mirror(&XFS);
}

#[test]
fn ext4_does_not_notice_the_death_of_the_mirror() {
    if !ready(&EXT4) {
        return;
    }
    let mut pair = pair();
    let kept = Mutex::default();
    let enough = AtomicBool::new(false);
    {
        let fuse = NbdFuse::new(pair.scratch(), &pair.clichy.uri());
        tool(EXT4.make, &fuse.path());
        let mount = Mount::new(pair.scratch(), &fuse.path(), "rw,errors=remount-ro");
        let (top, kept, enough, chelles) = (mount.path(), &kept, &enough, &mut pair.chelles);
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || make_files(top, kept, enough));
            for _ in 0..3 {
                let goal = kept.lock().unwrap().len() + 40;
                eventually("more files are fsynced", PATIENCE, || {
                    kept.lock().unwrap().len() >= goal
                });
                chelles.crash();
            }
            enough.store(true, SeqCst);
            writer
                .join()
                .expect("a writer")
                .expect("no error reached the file system");
        });
        assert_whole(mount.path(), &kept.lock().unwrap());
        mount.unmount();
    }
    pair.wait_in_sync();
    both_homes_are_clean(&mut pair, &EXT4);
}
