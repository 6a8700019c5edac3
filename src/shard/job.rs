//! Disk requests of a group on the ring: each a chain of operations, one at a time, until all of it is done.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;

use super::disk::{Failure, Files, Handle, Slow, Step, fail, first_piece, zeroes};
use super::ring::{Op, ReadBuf};
use super::writer::{HomeOp, Schedule};
use crate::base::{AlignedBuf, ByteRange};
use crate::engine::{DiskOp, DiskResult, File};

/// A disk request under way.
pub struct Job {
    file: Arc<Handle>,
    work: Work,
}

enum Work {
    /// What is still to be written.
    Write {
        offset: u64,
        data: Bytes,
        durable: bool,
    },
    /// Where the next byte comes from and how many there are.
    Read {
        offset: u64,
        left: usize,
    },
    Sync,
    /// Steps still to be taken, the present one first.
    Zero {
        steps: SmallVec<[Step; 3]>,
    },
}

/// What comes next.
pub enum Next {
    /// Another operation on the ring.
    Submit(Op),
    /// The answer to the request.
    Done(DiskResult),
}

/// What becomes of a request.
pub enum Begun {
    /// The answer could be had at once.
    Answer(DiskResult),
    /// A job and its first operation on the ring.
    Job(Job, Op),
    /// Something for the threads of the homes.
    Home(Arc<Handle>, HomeOp),
    /// Neither quick nor for the ring.
    Slow(Slow),
}

/// Begins a request.
pub fn begin(files: &mut Files, op: DiskOp) -> Begun {
    match plan(files, op) {
        Ok(Plan::Answer(result)) => Begun::Answer(result),
        Ok(Plan::Work(file, work)) => {
            let mut job = Job { file, work };
            match job.next(None) {
                Next::Submit(op) => Begun::Job(job, op),
                Next::Done(result) => Begun::Answer(result),
            }
        }
        Ok(Plan::Home(file, what)) => Begun::Home(file, what),
        Ok(Plan::Slow(work)) => Begun::Slow(work),
        Err(failure) => Begun::Answer(failed(failure)),
    }
}

/// Does it, wherever it is called.
pub fn do_slowly(work: Slow) -> DiskResult {
    match work() {
        Ok(()) => DiskResult::Done,
        Err(failure) => failed(failure),
    }
}

enum Plan {
    Answer(DiskResult),
    Work(Arc<Handle>, Work),
    Home(Arc<Handle>, HomeOp),
    Slow(Slow),
}

fn plan(files: &mut Files, op: DiskOp) -> Result<Plan, Failure> {
    let (file, work) = match op {
        DiskOp::Write {
            file: file @ File::Home(_),
            offset,
            data,
            durable: false,
        } if !data.is_empty() => {
            let home = files.handle(file)?.clone();
            return Ok(Plan::Home(home, HomeOp::Write(offset, data)));
        }
        DiskOp::Write {
            file,
            offset,
            data,
            durable,
        } => (
            file,
            Work::Write {
                offset,
                data,
                durable,
            },
        ),
        DiskOp::Read {
            file,
            offset,
            len,
            medium,
        } => {
            let left = usize::try_from(len).expect("reads fit memory");
            let work = Work::Read { offset, left };
            if medium && let Some(direct) = files.medium(file, len)? {
                return Ok(Plan::Work(direct, work));
            }
            (file, work)
        }
        DiskOp::Sync {
            file: file @ File::Home(_),
            within,
        } => {
            let home = files.handle(file)?.clone();
            let schedule = Schedule::from_now(within, files.sync_due.clone());
            return Ok(Plan::Home(home, HomeOp::Sync(schedule)));
        }
        DiskOp::Sync { file, .. } => (file, Work::Sync),
        DiskOp::Zero { file, range, keep } => {
            let steps = files.handle(file)?.zero_steps(range, keep);
            (file, Work::Zero { steps })
        }
        // The rest is quick and has no operation on the ring.
        DiskOp::Extents { file, range, limit } => {
            let extents = files.handle(file)?.extents(range, limit)?;
            return Ok(Plan::Answer(DiskResult::Extents(extents)));
        }
        DiskOp::FreeSpace => return Ok(Plan::Answer(DiskResult::FreeSpace(files.free_space()?))),
        DiskOp::GrowHome { volume, only_check } => {
            return Ok(Plan::Slow(files.grow_home(volume, only_check)?));
        }
        DiskOp::CloneHome { volume } => {
            return Ok(Plan::Slow(files.clone_home(volume)?));
        }
        DiskOp::RestoreHome { volume } => {
            return Ok(Plan::Slow(files.restore_home(volume)?));
        }
        DiskOp::RemoveUndo => {
            files.remove_undo()?;
            return Ok(Plan::Answer(DiskResult::Done));
        }
        DiskOp::PutAside { volumes } => {
            for volume in &volumes {
                files.put_aside(volume)?;
            }
            return Ok(Plan::Answer(DiskResult::Done));
        }
        DiskOp::TakeBack { volume } => {
            files.attach(&volume, Duration::ZERO)?;
            files.handle(File::Home(volume.id))?;
            return Ok(Plan::Answer(DiskResult::Done));
        }
        DiskOp::CreateHome { volume, lengthen } => {
            files.create_home(&volume, lengthen)?;
            return Ok(Plan::Answer(DiskResult::Done));
        }
    };
    if let Work::Write {
        offset,
        data,
        durable,
    } = &work
    {
        files.make(file)?;
        if *durable {
            let handle = files.for_durable(file, *offset, data)?.clone();
            return Ok(Plan::Work(handle, work));
        }
    }
    Ok(Plan::Work(files.handle(file)?.clone(), work))
}

impl Job {
    /// What the threads of the homes would do.
    ///
    /// # Panics
    /// If it is a write of nothing.
    pub fn at_home(file: Arc<Handle>, what: HomeOp) -> (Job, Op) {
        let work = match what {
            HomeOp::Write(offset, data) => Work::Write {
                offset,
                data,
                durable: false,
            },
            HomeOp::Sync(_) => Work::Sync,
        };
        let mut job = Job { file, work };
        let Next::Submit(op) = job.next(None) else {
            panic!("a write of nothing");
        };
        (job, op)
    }

    /// Goes on after an operation, with its buffer and what came of it.
    pub fn advance(&mut self, op: Op, result: io::Result<usize>) -> Next {
        if matches!(self.work, Work::Write { .. } | Work::Zero { .. }) {
            self.file.note_other_change();
        }
        let count = match result {
            Ok(count) => count,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => return Next::Submit(op),
            Err(error) => return self.failed(&error),
        };
        let mut buf = None;
        match (&mut self.work, op) {
            (Work::Write { offset, data, .. }, _) => {
                if count == 0 {
                    return self.failed(&io::Error::from_raw_os_error(libc::EIO));
                }
                data.advance(count);
                *offset += count as u64;
            }
            (Work::Read { offset, left }, Op::Read { into, .. }) => {
                *offset += count as u64;
                *left -= count;
                if count == 0 && *left > 0 {
                    return Next::Done(failed(self.file.short(*offset)));
                }
                buf = Some(into);
            }
            (Work::Zero { steps }, Op::Write { .. }) => {
                let range = steps[0].range();
                steps[0] = Step::Fill(ByteRange::new(
                    range.offset + count as u64,
                    range.len - count as u64,
                ));
                if steps[0].range().len == 0 {
                    steps.remove(0);
                }
            }
            (Work::Zero { steps }, _) => {
                steps.remove(0);
            }
            _ => return Next::Done(DiskResult::Done),
        }
        self.next(buf)
    }

    /// The next operation; `buf` holds what was read so far.
    fn next(&mut self, buf: Option<ReadBuf>) -> Next {
        let file = self.file.fd().clone();
        match &self.work {
            Work::Write { data, .. } if data.is_empty() => Next::Done(DiskResult::Done),
            Work::Write {
                offset,
                data,
                durable,
            } => Next::Submit(Op::Write {
                file,
                offset: *offset,
                data: data.slice(..data.len().min(self.file.write_piece(*durable))),
                durable: *durable,
            }),
            Work::Read { left: 0, .. } => Next::Done(DiskResult::Data(
                buf.map_or_else(Bytes::new, ReadBuf::freeze),
            )),
            Work::Read { offset, left } => Next::Submit(Op::Read {
                file,
                offset: *offset,
                into: buf.unwrap_or_else(|| self.room(*left)),
                len: *left,
            }),
            Work::Sync => Next::Submit(Op::Sync { file }),
            Work::Zero { steps } => match steps.first() {
                None => Next::Done(DiskResult::Done),
                Some(Step::Allocate(flags, range)) => Next::Submit(Op::Allocate {
                    file,
                    mode: flags.bits().cast_signed(),
                    range: *range,
                }),
                Some(Step::Fill(range)) => Next::Submit(Op::Write {
                    file,
                    offset: range.offset,
                    data: zeroes(first_piece(*range)),
                    durable: false,
                }),
            },
        }
    }

    fn room(&self, len: usize) -> ReadBuf {
        if self.file.is_direct() {
            ReadBuf::Aligned(AlignedBuf::with_capacity(len))
        } else {
            ReadBuf::Plain(BytesMut::with_capacity(len))
        }
    }

    fn failed(&mut self, error: &io::Error) -> Next {
        let what = match &mut self.work {
            Work::Zero { steps } => {
                let instead = self
                    .file
                    .instead_of(steps[0], error.raw_os_error().unwrap_or(0));
                if let Some(step) = instead {
                    steps[0] = step;
                    return self.next(None);
                }
                let range = steps[0].range();
                format!("zero {} bytes at {} of", range.len, range.offset)
            }
            Work::Write { offset, data, .. } => {
                format!("write {} bytes at {offset} of", data.len())
            }
            Work::Read { offset, left } => format!("read {left} bytes at {offset} of"),
            Work::Sync => "sync".to_owned(),
        };
        Next::Done(failed(fail(self.file.path(), &what, clone_of(error))))
    }
}

fn failed(failure: Failure) -> DiskResult {
    DiskResult::Failed {
        errno: failure.errno,
        message: failure.message,
    }
}

fn clone_of(error: &io::Error) -> io::Error {
    io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))
}
