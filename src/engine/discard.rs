//! Keeping what a site gives up after a fork: the frames, as they lie in its journal, in a file of their own.

use super::{DiskOp, DiskResult, File, Group, NO_SPACE, Pending};
use crate::base::Lsn;
use crate::core::{Event, Severity};
use crate::journal::{Cursor, Next};

/// Under way.
pub(super) struct Keeping {
    /// Requests of an earlier one, whose link was lost, count no more.
    id: u64,
    file: File,
    cursor: Cursor,
    /// Bytes written so far.
    len: u64,
    /// First LSN to be kept.
    from: Lsn,
}

/// A request for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum KeepStep {
    Read,
    Write,
    Sync,
}

impl Group {
    /// Copies the frames after this LSN, as far as the journal holds them, into a file named after the epoch they end in.
    pub(super) fn keep_after(&mut self, after: Lsn) {
        let from = after.next();
        let epoch = self.core.lineage().last().map(|e| e.id);
        // What the journal no longer holds cannot be kept; the operator was told so before.
        let held = from.max(self.log.first_lsn());
        if held > from {
            self.log_line(
                Severity::Warn,
                format!(
                    "what is given up begins at LSN {from}, but the journal at LSN {held}: only what is from there on is kept"
                ),
            );
        }
        let Some((cursor, epoch)) = self.log.cursor(held).zip(epoch) else {
            self.log_line(
                Severity::Warn,
                format!("the journal holds nothing of what is given up from LSN {from} on: nothing is kept"),
            );
            self.event(Event::Kept);
            return;
        };
        self.keepings += 1;
        self.keeping = Some(Keeping {
            id: self.keepings,
            file: File::Discarded(epoch),
            cursor,
            len: 0,
            from,
        });
        self.keep_more();
    }

    /// What came of a request for this. Only what is there may be given up.
    pub(super) fn keep_done(&mut self, id: u64, step: KeepStep, result: DiskResult) {
        if self.keeping.as_ref().is_none_or(|k| k.id != id) {
            return;
        }
        match (step, result) {
            (KeepStep::Read, DiskResult::Data(data)) => self.kept_read(data),
            (KeepStep::Write, DiskResult::Done) => self.keep_more(),
            (KeepStep::Sync, DiskResult::Done) => {
                self.keeping = None;
                self.event(Event::Kept);
            }
            // Nothing is lost by that, and all of it is written again with the next attempt of the primary.
            (KeepStep::Write | KeepStep::Sync, DiskResult::Failed { errno, message })
                if NO_SPACE.contains(&errno) =>
            {
                self.keeping = None;
                self.copy_has_no_space(&format!(
                    "no space to keep what is given up, so that it is not given up yet: {message}"
                ));
            }
            (_, DiskResult::Failed { message, .. }) => self.event(Event::DiskFailed(message)),
            (step, other) => {
                let text = format!("the driver answered {step:?} with {other:?}");
                self.event(Event::DiskFailed(text));
            }
        }
    }

    fn keep_more(&mut self) {
        let Some(keeping) = self.keeping.as_mut() else {
            return;
        };
        let id = keeping.id;
        match keeping.cursor.next_read(&self.log, self.frames.durable()) {
            Next::Read { offset, len } => self.submit(
                Pending::Keep(id, KeepStep::Read),
                DiskOp::Read {
                    file: File::Journal,
                    offset,
                    len,
                    medium: false,
                },
            ),
            Next::CaughtUp | Next::Recycled => {
                let file = keeping.file;
                self.submit(Pending::Keep(id, KeepStep::Sync), DiskOp::sync(file));
            }
        }
    }

    fn kept_read(&mut self, data: bytes::Bytes) {
        let Some(keeping) = self.keeping.as_mut() else {
            return;
        };
        let frames = match keeping.cursor.feed(data) {
            Ok(frames) => frames,
            Err(error) => {
                let text = format!("what is given up cannot be read from the journal: {error}");
                self.event(Event::DiskFailed(text));
                return;
            }
        };
        let mut bytes = Vec::new();
        for frame in frames.iter().filter(|f| f.last_lsn() >= keeping.from) {
            bytes.extend_from_slice(frame.bytes());
        }
        if bytes.is_empty() {
            self.keep_more();
            return;
        }
        let (id, file, offset) = (keeping.id, keeping.file, keeping.len);
        keeping.len += bytes.len() as u64;
        self.submit(
            Pending::Keep(id, KeepStep::Write),
            DiskOp::Write {
                file,
                offset,
                data: bytes.into(),
                durable: false,
            },
        );
    }
}
