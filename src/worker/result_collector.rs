//! Result of a job of the manager, kept for the log.

use crate::error::Error;
use crate::ffi::json::JsonRows;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::remote_dest::Message;
use crate::ffi::report::Log;
use crate::ffi::statement::RowSink;
use crate::ffi::tuple::TupleDesc;
use crate::ffi::{alloc, report, session, tuple};
use crate::guc;
use crate::protocol::{json_string, Outcome, Report};
use crate::worker::simple_query::StatementObserver;

/// Memory that JSON of a line of COPY takes, as a multiple of the line, at most.
const JSON_GROWTH: usize = 24;

/// The rows of the last statement that gave rows.
#[derive(Default)]
struct CollectedRows {
    json: Vec<u8>,
    rows: i64,
    is_full: bool,
    limit: usize,
}

impl CollectedRows {
    /// Keeps a row, if `row` gives one that is not longer than what there is room for.
    fn row(&mut self, row: impl FnOnce(usize) -> Option<Vec<u8>>) {
        self.rows += 1;
        if self.is_full {
            return;
        }
        // Whole rows, and the brackets.
        let room = self.limit.checked_sub(self.json.len() + 3);
        let Some(row) = room.and_then(|room| row(room).filter(|row| row.len() <= room)) else {
            self.is_full = true;
            return;
        };
        alloc::reserve(&mut self.json, row.len() + 2);
        self.json.push(if self.json.is_empty() { b'[' } else { b',' });
        self.json.extend_from_slice(&row);
    }

    fn into_json(mut self) -> Vec<u8> {
        if self.json.is_empty() {
            self.json.push(b'[');
        }
        self.json.push(b']');
        self.json
    }
}

thread_local! {
    /// Rows that are kept; what COPY TO STDOUT adds to them comes through a callback without context.
    static COLLECTED: ProcessCell<Option<CollectedRows>> = const { process_cell(None) };
}

fn start() {
    COLLECTED.set(Some(CollectedRows { limit: guc::log_result_limit(), ..CollectedRows::default() }));
}

fn with(work: impl FnOnce(&mut CollectedRows)) {
    COLLECTED.with_borrow_mut(|kept| {
        if let Some(kept) = kept {
            work(kept);
        }
    });
}

/// Takes what the server sends to its client beside rows and notices.
pub fn message(message: Message) {
    let refused = match message {
        Message::CopyFrom => Error::CopyIn,
        Message::CopyTo { binary: true } => Error::BinaryCopyOut,
        Message::CopyTo { binary: false } => return start(),
        Message::Line(line) => {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if !session::is_valid_text(line) {
                return report::emit(&Report::from(Error::CopyEncoding), Log::Here);
            }
            return with(|kept| {
                kept.row(|room| {
                    (line.len() < room).then(|| {
                        // Each byte may become six, in two copies that grow.
                        alloc::ensure(JSON_GROWTH * line.len());
                        [b"{\"copy\":", json_string(line).as_slice(), b"}"].concat()
                    })
                })
            });
        }
    };
    report::emit(&Report::from(refused), Log::Here);
}

/// Drops a notice: nobody waits for it; the server log has it if its settings say so.
pub fn notice(_report: Report) {}

/// Forgets what is kept, before the first statement of a job.
pub fn reset() {
    COLLECTED.set(None);
}

/// Returns the outcome of a job that succeeded with these command tags.
pub fn outcome(tags: &[Vec<u8>]) -> Outcome {
    let kept = COLLECTED.with_borrow_mut(Option::take);
    let counted = tags.last().and_then(|tag| count_in(tag));
    let row_count = counted.or(kept.as_ref().map(|kept| kept.rows));
    let is_truncated = kept.as_ref().is_some_and(|kept| kept.is_full);
    let result = match kept {
        Some(kept) => kept.into_json(),
        None => tags.join(&b"\n"[..]),
    };
    let command_tag = tags.last().cloned();
    Outcome { result: Some(result), row_count, is_truncated, command_tag, ..Outcome::default() }
}

/// The number at the end of a command tag.
fn count_in(tag: &[u8]) -> Option<i64> {
    std::str::from_utf8(tag).ok()?.rsplit_once(' ')?.1.parse().ok()
}

/// Takes the rows of a job, and has its end written before its last commit.
pub struct ResultCollector<F: FnMut(Outcome)> {
    pub before_commit: F,
}

impl<F: FnMut(Outcome)> StatementObserver for ResultCollector<F> {
    fn statement(
        &mut self,
        _is_last: bool,
        run: &mut dyn FnMut(&mut dyn RowSink) -> Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        Ok(run(&mut Rows { json: None, is_over: false }))
    }

    fn before_commit(&mut self, tags: &[Vec<u8>]) {
        (self.before_commit)(outcome(tags));
    }
}

/// The rows of one statement.
struct Rows {
    json: Option<JsonRows>,
    /// The first set of rows of a statement is its result.
    is_over: bool,
}

impl RowSink for Rows {
    fn start(&mut self, columns: TupleDesc) {
        if self.json.is_some() {
            self.is_over = true;
            return;
        }
        self.json = Some(JsonRows::new(columns));
        start();
    }

    fn row(&mut self, row: tuple::TupleSlot) {
        if let (Some(json), false) = (&self.json, self.is_over) {
            with(|kept| kept.row(|room| json.row(&row, room)));
        }
    }
}
