//! Rows of what could not be written in time, and of what a server that has died left behind.

use super::rows::Rows;
use super::{accepted, hold, open, FinalRow};
use crate::ffi::{area, process, session, transaction};
use crate::guc;
use crate::job::attempt::{self, Attempt};
use crate::job::note::{self, Note};
use crate::job::spool::{self, Spooled};

/// Notes that an attempt was begun of which the log does not say so.
pub fn note_begun(attempt: Attempt) {
    keep(&Note::begun(area::epoch(), session::database(), attempt));
}

/// Notes how a job ended that the log cannot be told now: if `transaction` was committed, or in any case.
pub fn note_end(row: &FinalRow, attempt: Attempt, transaction: Option<u64>) {
    let note = Note::begun(area::epoch(), session::database(), attempt);
    keep(&note.with_end(row.end.clone(), transaction));
}

fn keep(note: &Note) {
    // The job is not to fail for it; the registry knows what the note says.
    if let Err(error) = note.write() {
        let text = format!("could not write a note for the log of pg_background_mgr: {error}");
        crate::compat::process::log_line(text.as_bytes());
    }
}

/// Returns whether a batch is so young that the log would still have it. A copy of the data directory has files of
/// batches whose rows came into its table later, and may have been deleted from there since.
fn is_kept(batch: &Spooled) -> bool {
    let oldest = guc::log_retention().map(|seconds| process::now().saturating_sub(seconds.saturating_mul(1_000_000)));
    oldest.is_none_or(|oldest| batch.queued_at >= oldest)
}

/// The jobs of this database that are in files, for the server that accepted them has died, each in the last of its
/// launches. A standby has no files of its own: those that it was copied with tell of its primary, as its table does.
pub fn launches_left() -> Vec<Spooled> {
    if transaction::in_recovery() {
        return Vec::new();
    }
    let mut left = spool::launches_left(area::epoch(), session::database());
    left.retain(is_kept);
    left
}

/// The files of batches and jobs whose rows are written.
pub struct Folded {
    batches: Vec<Spooled>,
    notes: Vec<Note>,
    /// Attempts that were running.
    attempts: Vec<(i64, Attempt)>,
}

impl Folded {
    /// Removes them, once the rows are on disk.
    pub fn remove(&self) {
        self.batches.iter().for_each(|batch| spool::remove(batch.epoch, batch.database, &batch.first()));
        self.notes.iter().for_each(|note| note::remove(note.epoch, note.database, &note.attempt.uuid));
        attempt::remove_left_behind(area::epoch(), session::database());
    }
}

/// Writes the rows of batches that a server that has died accepted, and what it noted of its jobs. Inside
/// [`super::in_own_transaction`].
pub fn fold_left_behind(database: u32) -> Folded {
    let epoch = area::epoch();
    let folded = Folded {
        batches: spool::left_behind(epoch, database),
        notes: note::left_behind(epoch, database),
        attempts: attempt::left_behind(epoch, database),
    };
    if folded.batches.is_empty() && folded.notes.is_empty() && folded.attempts.is_empty() {
        return folded;
    }
    open(hold(true), |rows| {
        folded.batches.iter().filter(|batch| is_kept(batch)).for_each(|batch| accepted::recover(rows, batch));
        folded.attempts.iter().for_each(|(epoch, attempt)| rows.fold_attempt(*epoch, attempt));
        folded.notes.iter().for_each(|note| fold_note(rows, note));
    });
    folded
}

fn fold_note(rows: &Rows, note: &Note) {
    match note.end() {
        Some(end) => rows.fold_end(note.epoch, &note.attempt.uuid, end),
        None => rows.fold_attempt(note.epoch, &note.attempt),
    }
}
