//! Keeping what a site gives up after a fork: the frames, as they lie in its journal, in a file of their own.

use super::{DiskOp, File, Group, Pending};
use crate::base::Lsn;
use crate::core::{Event, Severity};
use crate::journal::{Cursor, Next};

/// Under way.
pub(super) struct Keeping {
    file: File,
    cursor: Cursor,
    /// Bytes written so far.
    len: u64,
    /// First LSN to be kept.
    from: Lsn,
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
        self.keeping = Some(Keeping {
            file: File::Discarded(epoch),
            cursor,
            len: 0,
            from,
        });
        self.keep_more();
    }

    pub(super) fn keep_more(&mut self) {
        let Some(keeping) = self.keeping.as_mut() else {
            return;
        };
        match keeping.cursor.next_read(&self.log, self.frames.durable()) {
            Next::Read { offset, len } => self.submit(
                Pending::KeepRead,
                DiskOp::Read {
                    file: File::Journal,
                    offset,
                    len,
                    medium: false,
                },
            ),
            Next::CaughtUp | Next::Recycled => {
                let file = keeping.file;
                self.keeping = None;
                self.submit(Pending::KeepSync, DiskOp::Sync { file });
            }
        }
    }

    pub(super) fn kept_read(&mut self, data: bytes::Bytes) {
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
        let (file, offset) = (keeping.file, keeping.len);
        keeping.len += bytes.len() as u64;
        self.submit(
            Pending::KeepWrite,
            DiskOp::Write {
                file,
                offset,
                data: bytes.into(),
                durable: false,
            },
        );
    }
}
