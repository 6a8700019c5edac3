//! The mirror's side of comparisons: what a chunk holds as of the frame that the primary names.

use std::collections::VecDeque;

use super::blocks::{ChunkRead, Reader, laid_over};
use super::{DiskOp, DiskResult, File, Group, LinkId, Pending};
use crate::base::{ByteRange, Lsn, Message, VolumeId};
use crate::journal::is_zero;
use crate::store::{Content, HoldId};

/// What the mirror is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub link: LinkId,
    pub volume: VolumeId,
    pub range: ByteRange,
    pub lsn: Lsn,
    /// Past the page cache.
    pub medium: bool,
    /// The content, not its hash.
    pub content: bool,
}

/// The mirror's side of comparisons.
#[derive(Default)]
pub(super) struct Questions {
    /// Their frames have not all come.
    waiting: VecDeque<Question>,
    /// As of their LSN, but a chunk that came before is still on its way into the home.
    held: Vec<Held>,
}

/// A question whose overlay was taken along.
struct Held {
    question: Question,
    overlay: Vec<(ByteRange, Content)>,
    hold: HoldId,
}

impl Group {
    /// The primary asks for a hash.
    pub(super) fn asked_to_compare(&mut self, question: Question) -> Result<(), String> {
        let Question {
            volume, range, lsn, ..
        } = question;
        let Some(spec) = self.volumes.iter().find(|v| v.id == volume) else {
            return Err(format!(
                "a question about volume {}, which does not exist",
                volume.0
            ));
        };
        if range.end() > spec.size {
            return Err(format!(
                "a question beyond the end of volume '{}'",
                spec.name
            ));
        }
        let sealed = self.frames.sealed();
        if lsn < sealed
            || self.questions.waiting.len() + self.questions.held.len() > super::walk::PARTS
        {
            return Err(format!(
                "a question as of LSN {lsn}, with {} waiting; this site has LSN {sealed}",
                self.questions.waiting.len()
            ));
        }
        self.questions.waiting.push_back(question);
        self.answer_questions();
        Ok(())
    }

    /// Takes up the questions as of the frame that came last.
    pub(super) fn answer_questions(&mut self) {
        let sealed = self.frames.sealed();
        while self
            .questions
            .waiting
            .front()
            .is_some_and(|q| q.lsn <= sealed)
        {
            let question = self.questions.waiting.pop_front().expect("just seen");
            let (volume, range) = (question.volume, question.range);
            let overlay = self
                .overlay_of(volume, range)
                .expect("a mirror has no open frame");
            let hold = self.store.hold_after(volume, range, sealed);
            self.questions.held.push(Held {
                question,
                overlay,
                hold,
            });
        }
        self.read_held_questions();
    }

    /// Reads for the questions whose homes are at rest.
    pub(super) fn read_held_questions(&mut self) {
        let receive = &self.receive;
        let ready = |held: &mut Held| receive.quiet(held.question.volume, held.question.range);
        for held in self
            .questions
            .held
            .extract_if(.., ready)
            .collect::<Vec<_>>()
        {
            let question = held.question;
            // The primary takes what it is told for good: a power cut must not take it back.
            if let Some(chunk) = self.receive.unsynced(question.volume)
                && question.content
            {
                let pending = Pending::AnswerSync {
                    question,
                    chunk,
                    overlay: held.overlay,
                    hold: held.hold,
                };
                let file = File::Home(question.volume);
                self.submit(pending, DiskOp::sync(file));
                continue;
            }
            self.read_for_answer(question, held.overlay, held.hold);
        }
    }

    pub(super) fn read_for_answer(
        &mut self,
        question: Question,
        overlay: Vec<(ByteRange, Content)>,
        hold: HoldId,
    ) {
        let pending = Pending::AnswerRead {
            question,
            overlay,
            hold,
        };
        let read = DiskOp::Read {
            file: File::Home(question.volume),
            offset: question.range.offset,
            len: question.range.len,
            medium: question.medium,
        };
        self.submit(pending, read);
    }

    pub(super) fn answer_read(
        &mut self,
        question: Question,
        overlay: Vec<(ByteRange, Content)>,
        hold: HoldId,
        result: DiskResult,
    ) {
        let Question {
            link,
            volume,
            range,
            medium,
            content,
            ..
        } = question;
        match result {
            DiskResult::Data(home) => {
                self.store.release(hold);
                let read = laid_over(home, 0, range, &overlay);
                if content {
                    self.answer_content(&question, read);
                    return;
                }
                let hash = Some(*blake3::hash(&read.data).as_bytes());
                self.send(
                    link,
                    Message::Compared {
                        volume,
                        range,
                        hash,
                    },
                );
            }
            _ if content => {
                let reader = Reader::Answer {
                    question,
                    overlay,
                    hold,
                };
                self.read_blocks(reader, volume, range, medium);
            }
            // It is for the primary to find out what of it can be read.
            _ => {
                self.store.release(hold);
                let hash = None;
                self.send(
                    link,
                    Message::Compared {
                        volume,
                        range,
                        hash,
                    },
                );
            }
        }
    }

    pub(super) fn answer_content(&mut self, question: &Question, read: ChunkRead) {
        let data = (!is_zero(&read.data)).then_some(read.data);
        let crc = data.as_ref().map_or(0, |d| crc32fast::hash(d));
        self.send(
            question.link,
            Message::Content {
                volume: question.volume,
                range: question.range,
                data,
                unreadable: read.unreadable,
                crc,
            },
        );
    }
}

impl Questions {
    /// Nobody waits for the answers any more.
    pub fn drop_link(&mut self, link: LinkId) {
        self.waiting.retain(|q| q.link != link);
    }

    /// The history they are about is replaced, and with it the store that holds their ranges.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.held.clear();
    }
}
