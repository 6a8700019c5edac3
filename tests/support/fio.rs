//! fio's nbd engine, which checks what it reads against what it wrote.

use std::path::Path;
use std::process::Child;

use super::tools::{Command, command};

/// Sections of a job on a volume of 64 MiB: sizes from 512 bytes to 1 MiB, small ones, and trims beside them.
const JOB: &str = "
[global]
ioengine=nbd
uri=${URI}
iodepth=32
verify=crc32c
verify_fatal=1
randseed=7
[mixed]
rw=randwrite
bssplit=512/20:4k/30:12k/10:64k/20:256k/10:1m/10
size=32M
fsync=128
loops=${LOOPS}
rate=${RATE}
[unaligned]
rw=randwrite
offset=48M
size=8M
bsrange=512-16k
rate=${RATE}
[trim]
rw=randtrim
verify=0
offset=56M
size=8M
bsrange=512-64k
rate=${RATE}
";

/// Writes and trims at depth 32, then reads back what it wrote.
pub fn write_and_verify(dir: &Path, uri: &str) -> Command {
    fio(dir, uri, &[])
}

/// The same, but slow enough (bytes a second and job, as fio writes them) that things can happen meanwhile.
pub fn write_slowly_and_verify(dir: &Path, uri: &str, rate: &str) -> Child {
    let mut fio = fio(dir, uri, &[]);
    fio.env("RATE", rate);
    fio.stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    fio.spawn().expect("fio starts")
}

/// Only reads back what the others wrote.
pub fn verify_again(dir: &Path, uri: &str) -> Command {
    fio(
        dir,
        uri,
        &["--verify_only=1", "--section=mixed", "--section=unaligned"],
    )
}

/// Any other job.
pub fn job(dir: &Path, uri: &str, text: &str, words: &[&str]) -> Command {
    let file = dir.join("job.fio");
    std::fs::write(&file, text).expect("a job file");
    let mut fio = command("fio");
    // fio takes a colon in a URI literally only from the environment.
    fio.args(words)
        .arg(file)
        .env("URI", uri)
        .env("LOOPS", "1")
        .env("RATE", "0")
        .current_dir(dir);
    fio
}

fn fio(dir: &Path, uri: &str, words: &[&str]) -> Command {
    job(dir, uri, JOB, words)
}
