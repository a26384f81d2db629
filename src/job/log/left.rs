//! What could not be written in time, and what a server that has died left behind, become rows.

use super::{accepted, hold, table, write, FinalRow};
use crate::ffi::typed_rows::Cell;
use crate::ffi::{area, process, session, spi, transaction};
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

/// Is a batch so young that the log would still have it? A copy of the data directory has files of batches whose rows came
/// into its table later, and may have been deleted from there since.
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
    /// Which attempts were running.
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
    hold(true);
    folded.batches.iter().filter(|batch| is_kept(batch)).for_each(accepted::recover);
    folded.attempts.iter().for_each(|(epoch, attempt)| fold_attempt(*epoch, attempt));
    folded.notes.iter().for_each(fold_note);
    folded
}

/// Writes which attempt of a job the server was running when it died.
fn fold_attempt(epoch: i64, attempt: &Attempt) {
    let sql = [
        b"UPDATE ".as_slice(),
        &table(),
        b" SET is_started = true, pid = $3, start_time_exec = $4, attempts = $5 \
          WHERE uuid_child OPERATOR(pg_catalog.=) $1 AND epoch OPERATOR(pg_catalog.=) $2 \
          AND attempts OPERATOR(pg_catalog.<=) $5 AND status OPERATOR(pg_catalog.=) 'queued'::pg_catalog.text",
    ]
    .concat();
    let of_attempt = [
        Cell::Uuid(attempt.uuid),
        Cell::BigInt(epoch),
        Cell::Int(attempt.pid),
        Cell::Timestamp(attempt.started),
        Cell::Int(attempt.attempts as i32),
    ];
    spi::change(&sql, &of_attempt);
}

fn fold_note(note: &Note) {
    let Some(end) = note.end() else { return fold_attempt(note.epoch, &note.attempt) };
    let uuid = note.attempt.uuid;
    let is_open = [
        b"SELECT 1 FROM ".as_slice(),
        &table(),
        b" WHERE uuid_child OPERATOR(pg_catalog.=) $1 AND epoch OPERATOR(pg_catalog.=) $2 \
          AND status OPERATOR(pg_catalog.=) 'queued'::pg_catalog.text",
    ]
    .concat();
    // It may have been launched again since.
    if !spi::query(&is_open, &[Cell::Uuid(uuid), Cell::BigInt(note.epoch)], false).is_empty() {
        write(&FinalRow { uuid, place: None, end: end.clone() });
    }
}
