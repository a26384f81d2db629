//! Takes what a queued job returns, for the log.

use crate::error::Error;
use crate::ffi::json::JsonRows;
use crate::ffi::remote_dest::Message;
use crate::ffi::report::Log;
use crate::ffi::statement::RowSink;
use crate::ffi::tuple::TupleDesc;
use crate::ffi::{alloc, report, session, tuple};
use crate::guc;
use crate::protocol::{json_string, Outcome, Report};
use crate::worker::collected_rows::CollectedRows;
use crate::worker::simple_query::StatementObserver;
use crate::worker::state::state;

/// Memory that JSON of a line of COPY takes, as a multiple of the line, at most.
const JSON_GROWTH: usize = 24;

fn start() {
    state().collected_rows.replace(Some(CollectedRows::new(guc::log_result_limit())));
}

fn with(work: impl FnOnce(&mut CollectedRows)) {
    if let Some(kept) = state().collected_rows.borrow_mut().as_mut() {
        work(kept);
    }
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
                kept.row(|free| {
                    (line.len() < free).then(|| {
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
    state().collected_rows.replace(None);
}

/// Returns the outcome of a job that succeeded with these command tags.
pub fn outcome(tags: &[Vec<u8>]) -> Outcome {
    let kept = state().collected_rows.take();
    let counted = tags.last().and_then(|tag| count_in(tag));
    let row_count = counted.or(kept.as_ref().map(CollectedRows::count));
    let is_truncated = kept.as_ref().is_some_and(CollectedRows::is_full);
    let result = match kept {
        Some(kept) => kept.into_json(),
        None => tags.join(&b"\n"[..]),
    };
    let command_tag = tags.last().cloned();
    Outcome { result: Some(result), row_count, is_truncated, command_tag, ..Outcome::default() }
}

/// Returns the number at the end of a command tag.
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
    /// The first set of rows is complete, and is the result of the statement.
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
            with(|kept| kept.row(|free| json.row(&row, free)));
        }
    }
}
