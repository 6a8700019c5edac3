//! Files: creation, locks, and disk requests on a ring.

use std::os::unix::fs::MetadataExt;

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;

use super::super::disk::{Files, Step, too_large};
use super::super::job::{Begun, Job, Next, begin, do_slowly};
use super::super::ring::{Done, Op, Ring};
use super::*;
use crate::base::ByteRange;

fn files(dir: &TempDir) -> Files {
    Files::open(paths(dir.path())).unwrap()
}

/// Carries a request out.
fn run(files: &mut Files, op: DiskOp) -> DiskResult {
    let mut ring: Ring<()> = Ring::new().unwrap();
    let (mut job, op): (Job, Op) = match begin(files, op) {
        Begun::Job(job, op) => (job, op),
        Begun::Answer(result) => return result,
        Begun::Slow(work) => return do_slowly(work),
        // As without the threads for that.
        Begun::Home(file, what) => Job::at_home(file, what),
    };
    ring.push((), op);
    loop {
        ring.enter(true, Some(Duration::from_mins(1))).unwrap();
        let Some(Done { op, result, .. }) = ring.reap() else {
            continue;
        };
        match job.advance(op, result) {
            Next::Submit(op) => ring.push((), op),
            Next::Done(result) => return result,
        }
    }
}

fn home(files: &mut Files) -> File {
    files.create_home(&volume(7, "v", SIZE), false).unwrap();
    File::Home(VolumeId(7))
}

#[test]
fn journal_and_state_are_whole_when_they_exist_and_left_alone_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("g/journal");
    {
        let mut files = files(&dir);
        assert_eq!(files.len(File::Journal).unwrap(), None);
        // What a creation that was cut off has left behind.
        std::fs::write(dir.path().join("g/journal.new"), "half").unwrap();
        files.create(File::Journal, 4 << 20).unwrap();
        assert_eq!(files.len(File::Journal).unwrap(), Some(4 << 20));
        let meta = path.metadata().unwrap();
        assert!(meta.blocks() * 512 >= 4 << 20, "allocated");
        let flags = fcntl_getfl(files.handle(File::Journal).unwrap().fd()).unwrap();
        assert!(flags.contains(OFlags::DIRECT));
        files
            .write(File::Journal, 4096, &[5; 4096], true)
            .unwrap_err(); // memory that is not aligned
        let mut block = AlignedBuf::zeroed(4096);
        block.fill(5);
        files.write(File::Journal, 4096, &block, true).unwrap();
    }
    let mut files = files(&dir);
    files.create(File::Journal, 4 << 20).unwrap();
    let refused = files
        .create(File::Journal, 8 << 20)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("4194304 bytes instead of 8388608"),
        "{refused}"
    );
    let mut block = AlignedBuf::zeroed(8192);
    files.read(File::Journal, 4096, &mut block).unwrap();
    assert_eq!((block[0], block[4096]), (5, 0));
    assert_eq!(path.metadata().unwrap().len(), 4 << 20);
    assert!(!path.with_extension("new").exists());
}

#[test]
fn a_directory_and_a_home_have_one_user_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = files(&dir);
    let refused = Files::open(paths(dir.path())).err().unwrap();
    assert!(refused.message.contains("in use"), "{}", refused.message);
    home(&mut first);
    let mut other = paths(&dir.path().join("other"));
    other.homes.insert("w".into(), dir.path().join("g/v.home"));
    let mut second = Files::open(other).unwrap();
    let refused = second
        .create_home(&volume(1, "w", SIZE), false)
        .unwrap_err();
    assert!(refused.message.contains("in use"), "{}", refused.message);
    drop(first);
    second.create_home(&volume(1, "w", SIZE), false).unwrap();
}

#[test]
fn a_home_is_sparse_of_its_size_and_never_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let odd = volume(1, "../a b/Ünd", SIZE);
    {
        let mut files = files(&dir);
        files.attach(&odd, Duration::ZERO).unwrap();
        assert_eq!(
            files.len(File::Home(odd.id)).unwrap(),
            None,
            "attaching does not create"
        );
        files.create_home(&odd, false).unwrap();
        files
            .write(File::Home(odd.id), SIZE - 3, b"end", false)
            .unwrap();
    }
    let path = dir.path().join("g/%2E.%2Fa%20b%2F%C3%9Cnd.home");
    assert_eq!(path.metadata().unwrap().len(), SIZE);
    assert!(path.metadata().unwrap().blocks() < 1000);
    let mut files = files(&dir);
    files.attach(&odd, Duration::ZERO).unwrap();
    files.create_home(&odd, false).unwrap();
    let mut end = [0; 3];
    files.read(File::Home(odd.id), SIZE - 3, &mut end).unwrap();
    assert_eq!(&end, b"end");
    let larger = VolumeSpec {
        size: SIZE * 2,
        ..volume(2, "../a b/Ünd", 0)
    };
    drop(files);
    let mut files = super::disk::files(&dir);
    let refused = files.create_home(&larger, false).unwrap_err();
    assert!(
        refused.message.contains(&format!("needs {}", SIZE * 2)),
        "{}",
        refused.message
    );
    assert_eq!(path.metadata().unwrap().len(), SIZE);
    files.create_home(&larger, true).unwrap();
    assert_eq!(path.metadata().unwrap().len(), SIZE * 2);
    files
        .read(File::Home(larger.id), SIZE - 3, &mut end)
        .unwrap();
    assert_eq!(&end, b"end");
}

#[test]
fn what_a_volume_held_that_is_gone_is_put_aside_and_never_the_home_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (volume(1, "x", SIZE), volume(1, "y", 2 * SIZE));
    let y = VolumeSpec {
        uuid: uuid::Uuid::from_u128(9),
        ..y
    };
    let other_x = VolumeSpec {
        name: "x".into(),
        ..y.clone()
    };
    let file = File::Home(x.id);
    let aside = dir.path().join(format!("g/x.home.discarded-{}", x.uuid));
    {
        let mut files = files(&dir);
        files.create_home(&x, false).unwrap();
        files.write(file, 0, b"given up", false).unwrap();
        for other in [&y, &other_x] {
            let refused = files.create_home(other, false).unwrap_err();
            let is_another = refused.message.contains("another one");
            assert!(is_another, "{}", refused.message);
        }
        files.put_aside(&x).unwrap();
        files.put_aside(&x).unwrap(); // again after a crash
        assert!(files.handle(file).is_err(), "closed");
        for other in [&y, &other_x] {
            files.create_home(other, false).unwrap();
            let mut found = [1; 8];
            files.read(file, 0, &mut found).unwrap();
            assert_eq!(found, [0; 8], "nothing of what another one held");
            files.put_aside(other).unwrap();
        }
        files.check_blank(&[]).unwrap();
        assert_eq!(&std::fs::read(&aside).unwrap()[..8], b"given up");
    }
    // The record that does without it was never written.
    let mut files = files(&dir);
    files.attach(&x, Duration::ZERO).unwrap();
    let mut found = [0; 8];
    files.read(file, 0, &mut found).unwrap();
    assert_eq!(&found, b"given up");
    assert!(!aside.exists());
}

#[test]
fn a_configured_place_that_was_given_up_may_be_taken_by_a_new_volume_of_the_name_only() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("disk");
    let mut paths = paths(dir.path());
    paths.homes.insert("x".into(), place.clone());
    let x = volume(1, "x", SIZE);
    let larger = VolumeSpec {
        uuid: uuid::Uuid::from_u128(9),
        size: 2 * SIZE,
        ..x.clone()
    };
    let file = File::Home(x.id);
    {
        let mut files = Files::open(paths.clone()).unwrap();
        files.create_home(&x, false).unwrap();
        files.write(file, 0, b"given up", false).unwrap();
    }
    let mut files = Files::open(paths.clone()).unwrap();
    files.check_blank(&[]).unwrap_err();
    files.attach(&x, Duration::ZERO).unwrap();
    let in_use = files.handle(file).unwrap().clone();
    files.put_aside(&x).unwrap();
    files.check_blank(&[]).unwrap();
    assert_eq!(&std::fs::read(&place).unwrap()[..8], b"given up");
    // A request to the old home may still be under way, and hold its lock.
    files.create_home(&larger, false).unwrap();
    assert_eq!(in_use.len().unwrap(), 2 * SIZE);
    files.check_blank(std::slice::from_ref(&larger)).unwrap();
    files.check_blank(&[]).unwrap_err();
}

#[test]
fn what_is_left_of_a_volume_that_never_came_on_record_does_not_stand_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    files(&dir)
        .create_home(&volume(1, "x", SIZE), false)
        .unwrap();
    let mut files = files(&dir);
    let larger = volume(2, "x", 2 * SIZE);
    files.create_home(&larger, false).unwrap();
    assert_eq!(files.len(File::Home(larger.id)).unwrap(), Some(2 * SIZE));
}

#[test]
fn a_size_that_a_file_system_does_not_take_is_refused_before_anything_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files(&dir);
    home(&mut files);
    // There is no file system that would.
    let mut grown = volume(7, "v", u64::MAX);
    let check = files.grow_home(grown.clone(), true).unwrap();
    let refused = check().unwrap_err().message;
    assert!(
        refused.contains("make a file of 16.0 EiB in"),
        "{refused:?}"
    );
    grown.size = 2 * SIZE;
    files.grow_home(grown, true).unwrap()().unwrap();
    let path = dir.path().join("g/v.home");
    assert_eq!(path.metadata().unwrap().len(), SIZE);
}

#[test]
fn a_home_that_its_file_system_does_not_take_says_where_to_put_it() {
    let spec = volume(7, "v", 17 << 40);
    let told = |error| too_large(Path::new("/homes/v"), &spec, error).message;
    let text = told(Errno::FBIG);
    assert!(text.starts_with("cannot set size of /homes/v: "), "{text}");
    assert!(
        text.contains("Give volume v a `home` on another one"),
        "{text}"
    );
    assert!(!told(Errno::IO).contains("`home`"));
}

#[test]
fn a_group_whose_homes_cannot_be_made_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let with = |name: &str, home: &Path| GroupPaths {
        homes: [(name.to_owned(), home.to_owned())].into(),
        ..paths(dir.path())
    };
    let told = |paths, volumes: &[(&str, u64)]| {
        let volumes = volumes.iter();
        let volumes: Vec<_> = volumes
            .map(|(name, size)| ((*name).to_owned(), *size))
            .collect();
        let files = Files::open(paths).unwrap();
        files.can_make(&volumes).map_err(|failure| failure.message)
    };
    assert_eq!(told(paths(dir.path()), &[("v", SIZE)]), Ok(()));
    let large = told(paths(dir.path()), &[("v", SIZE), ("w", u64::MAX)]).unwrap_err();
    assert!(
        large.starts_with("volume w cannot be: cannot make a file of 16.0 EiB in "),
        "{large}"
    );
    // Whether this site is to make it, or gets it from its primary.
    let nowhere = dir.path().join("nowhere/v");
    let missing = told(with("v", &nowhere), &[]).unwrap_err();
    assert!(
        missing.starts_with("volume v cannot be: cannot create "),
        "{missing}"
    );
    assert!(missing.contains("nowhere/v: No such file"), "{missing}");
    let device = told(with("v", Path::new("/dev/no-such-disk")), &[]).unwrap_err();
    assert!(
        device.contains("/dev/no-such-disk: No such file"),
        "{device}"
    );
    // What exists must be long enough, or blank and able to be.
    let file = dir.path().join("disk");
    std::fs::write(&file, vec![0; 4096]).unwrap();
    assert_eq!(told(with("v", &file), &[("v", SIZE)]), Ok(()));
    let large = told(with("v", &file), &[("v", u64::MAX)]).unwrap_err();
    assert!(large.contains("make a file of 16.0 EiB in "), "{large}");
    std::fs::write(&file, vec![1; 4096]).unwrap();
    assert_eq!(told(with("v", &file), &[("v", 4096)]), Ok(()));
    let short = told(with("v", &file), &[("v", SIZE)]).unwrap_err();
    assert!(short.contains("has 4096 bytes"), "{short}");
    let no_file = told(with("v", dir.path()), &[("v", SIZE)]).unwrap_err();
    assert!(no_file.contains("cannot open"), "{no_file}");
    // What is in the history is as long as it is.
    let mut files = files(&dir);
    home(&mut files);
    assert!(files.can_make(&[("v".into(), u64::MAX)]).is_ok());
}

#[test]
fn a_missing_device_does_not_become_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = paths(dir.path());
    let device = std::path::PathBuf::from("/dev/doublure-no-such-device");
    paths.homes.insert("v".into(), device.clone());
    let mut files = Files::open(paths).unwrap();
    let refused = files.create_home(&volume(1, "v", SIZE), false).unwrap_err();
    assert!(
        refused.message.contains("doublure-no-such-device"),
        "{}",
        refused.message
    );
    assert!(!device.exists());
}

#[test]
fn durable_writes_ask_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files(&dir);
    files.create(File::State, 8192).unwrap();
    for durable in [true, false] {
        let data = Bytes::from_owner(AlignedBuf::zeroed(4096));
        let op = DiskOp::Write {
            file: File::State,
            offset: 0,
            data,
            durable,
        };
        let Begun::Job(_, Op::Write { durable: asked, .. }) = begin(&mut files, op.clone()) else {
            panic!()
        };
        assert_eq!(asked, durable);
        assert_eq!(run(&mut files, op), DiskResult::Done);
    }
}

#[test]
fn zeroes_give_space_back_or_keep_it_and_extents_tell() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files(&dir);
    let file = home(&mut files);
    let blocks = || dir.path().join("g/v.home").metadata().unwrap().blocks() * 512;
    let mib = 1 << 20;
    let data = Bytes::from(vec![9; 8 << 20]);
    let write = DiskOp::Write {
        file,
        offset: mib,
        data,
        durable: false,
    };
    assert_eq!(run(&mut files, write), DiskResult::Done);
    assert_eq!(run(&mut files, DiskOp::sync(file)), DiskResult::Done);
    let full = blocks();
    let all = ByteRange::new(0, SIZE);
    let extents = |files: &mut Files| {
        run(
            files,
            DiskOp::Extents {
                file,
                range: all,
                limit: 100,
            },
        )
    };
    let expected = vec![(mib, false), (8 * mib, true), (SIZE - 9 * mib, false)];
    assert_eq!(extents(&mut files), DiskResult::Extents(expected));

    let keep = ByteRange::new(2 * mib, mib);
    assert_eq!(
        run(
            &mut files,
            DiskOp::Zero {
                file,
                range: keep,
                keep: true
            }
        ),
        DiskResult::Done
    );
    assert_eq!(blocks(), full, "kept");
    let punch = ByteRange::new(4 * mib, 2 * mib);
    assert_eq!(
        run(
            &mut files,
            DiskOp::Zero {
                file,
                range: punch,
                keep: false
            }
        ),
        DiskResult::Done
    );
    assert!(blocks() <= full - 2 * mib, "given back");
    let DiskResult::Extents(found) = extents(&mut files) else {
        panic!()
    };
    assert_eq!(found.iter().map(|(len, _)| len).sum::<u64>(), SIZE);
    assert!(found.contains(&(2 * mib, false)), "{found:?}");

    let odd = ByteRange::new(7 * mib + 11, 5000);
    assert_eq!(
        run(
            &mut files,
            DiskOp::Zero {
                file,
                range: odd,
                keep: false
            }
        ),
        DiskResult::Done
    );
    let read = DiskOp::Read {
        file,
        offset: 0,
        len: 16 << 20,
        medium: false,
    };
    let DiskResult::Data(data) = run(&mut files, read) else {
        panic!()
    };
    for (at, byte) in data.iter().enumerate() {
        let at = at as u64;
        let within = |range: ByteRange| at >= range.offset && at < range.end();
        let zero =
            !within(ByteRange::new(mib, 8 * mib)) || [keep, punch, odd].into_iter().any(within);
        assert_eq!(*byte, if zero { 0 } else { 9 }, "at {at}");
    }
}

#[test]
fn where_the_file_system_cannot_zero_a_range_zeroes_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files(&dir);
    let file = home(&mut files);
    let range = ByteRange::new(100, 3 << 20);
    files.write(file, 0, &vec![3; 4 << 20], false).unwrap();
    let handle = files.handle(file).unwrap().clone();
    for keep in [true, false] {
        let [step] = handle.zero_steps(range, keep)[..] else {
            panic!()
        };
        assert_eq!(
            handle.instead_of(step, libc::EIO),
            None,
            "an error is no lack of support"
        );
        assert_eq!(
            handle.instead_of(step, libc::EOPNOTSUPP),
            Some(Step::Fill(range))
        );
        assert_eq!(
            handle.zero_steps(range, keep)[..],
            [Step::Fill(range)],
            "remembered"
        );
    }
    assert_eq!(
        run(
            &mut files,
            DiskOp::Zero {
                file,
                range,
                keep: false
            }
        ),
        DiskResult::Done
    );
    let DiskResult::Data(data) = run(
        &mut files,
        DiskOp::Read {
            file,
            offset: 0,
            len: 4 << 20,
            medium: false,
        },
    ) else {
        panic!()
    };
    assert!(data[..100].iter().all(|b| *b == 3));
    assert!(data[100..range.end() as usize].iter().all(|b| *b == 0));
    assert!(data[range.end() as usize..].iter().all(|b| *b == 3));
}

#[test]
fn what_fails_says_which_file_and_what_was_tried() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files(&dir);
    let file = home(&mut files);
    let read = DiskOp::Read {
        file,
        offset: SIZE - 10,
        len: 20,
        medium: false,
    };
    let DiskResult::Failed { errno, message } = run(&mut files, read) else {
        panic!()
    };
    assert_eq!(errno, libc::EIO);
    assert!(
        message.contains("v.home ends at byte 67108864"),
        "{message}"
    );
    let other = File::Home(VolumeId(99));
    let DiskResult::Failed { message, .. } = run(&mut files, DiskOp::sync(other)) else {
        panic!()
    };
    assert!(message.contains("volume 99"), "{message}");
    files.create(File::State, 8192).unwrap();
    let data = Bytes::from_static(b"not a block");
    let write = DiskOp::Write {
        file: File::State,
        offset: 0,
        data,
        durable: true,
    };
    let DiskResult::Failed { errno, message } = run(&mut files, write) else {
        panic!()
    };
    assert_eq!(errno, libc::EINVAL);
    assert!(
        message.contains("write 11 bytes at 0 of") && message.contains("/state"),
        "{message}"
    );
}

#[test]
fn free_space_is_that_of_the_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files(&dir);
    home(&mut files);
    let DiskResult::FreeSpace(free) = run(&mut files, DiskOp::FreeSpace) else {
        panic!()
    };
    let stat = rustix::fs::statvfs(dir.path()).unwrap();
    let expected = stat.f_bavail * stat.f_frsize;
    assert!(free.abs_diff(expected) < 1 << 30, "{free} {expected}");
}
