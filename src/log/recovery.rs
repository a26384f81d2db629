//! Files of what could not be written in time, and their import once the server that wrote them has died.

use crate::ffi::heap::Access;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::{area, process, session, transaction};
use crate::guc;
use crate::ids::{DatabaseId, Epoch, JobId};
use crate::log::accepted::NewRow;
use crate::log::access::{lock_log, open_log};
use crate::log::attempt_file::{self, Attempt, AttemptFile};
use crate::log::directory;
use crate::log::end::FinalRow;
use crate::log::file_format::FileContent;
use crate::log::file_name::FileName;
use crate::log::outcome_file::{self, OutcomeFile};
use crate::log::rows::Rows;
use crate::log::spool::{self, Spooled};
use std::collections::HashSet;

/// Writes to a file that an attempt was begun of which the log does not say so.
pub fn store_begun(attempt: Attempt) {
    write_file(&OutcomeFile::begun(area::epoch(), session::database(), attempt));
}

/// Writes to a file how a job ended that the log cannot be told now: if `transaction` was committed, or in any case.
pub fn store_end(row: &FinalRow, attempt: Attempt, transaction: Option<u64>) {
    let file = OutcomeFile::begun(area::epoch(), session::database(), attempt);
    write_file(&file.with_end(row.end.clone(), transaction));
}

fn write_file(file: &OutcomeFile) {
    // The job is not to fail for it; the registry knows what the file says.
    if let Err(error) = file.write() {
        let text = format!("could not write outcome file of pg_background_mgr: {error}");
        crate::compat::process::log_line(text.as_bytes());
    }
}

/// Returns whether a batch is so young that the log would still have it. A copy of the data directory has files of
/// batches whose rows came into its table later, and may have been deleted from there since.
fn is_kept(batch: &Spooled) -> bool {
    let oldest = guc::log_retention().map(|retention| process::now() - retention);
    oldest.is_none_or(|oldest| batch.head.queued_at >= oldest)
}

/// Returns the jobs of this database that are in files, for the server that accepted them has died, each in the last of
/// its launches. A standby has no files of its own: those that it was copied with tell of its primary, as its table
/// does.
pub fn orphaned_batches() -> Vec<Spooled> {
    if transaction::in_recovery() {
        return Vec::new();
    }
    let mut batches = spool::last_launches(area::epoch(), session::database());
    batches.retain(is_kept);
    batches
}

/// Returns whether a job of this database is in a file of a server that has died. Its row, if the log has one, is not
/// to be deleted: the file would bring it back, as it was before. Inside a transaction.
pub fn is_orphaned(uuid: &JobId) -> bool {
    thread_local! {
        /// The jobs that are, as a transaction has found them: there will be no more of them.
        static ORPHANS: ProcessCell<Option<(u64, HashSet<JobId>)>> = const { process_cell(None) };
    }
    let now = transaction::current_id();
    let known = ORPHANS.with_borrow(|orphans| {
        let (_, jobs) = orphans.as_ref().filter(|(by, jobs)| *by == now || jobs.is_empty())?;
        Some(jobs.contains(uuid))
    });
    known.unwrap_or_else(|| {
        let jobs: HashSet<_> = orphaned_batches().iter().flat_map(|batch| &batch.jobs).map(|job| job.uuid).collect();
        let is_orphan = jobs.contains(uuid);
        ORPHANS.set(Some((now, jobs)));
        is_orphan
    })
}

/// The files of batches and jobs whose rows are written.
#[derive(Default)]
pub struct ImportedFiles {
    /// Files of batches, and outcome files.
    files: Vec<FileName>,
    attempts: Vec<FileName>,
    /// `false` if others remain, for a transaction is deleting rows of their jobs. Those that cannot be read do not
    /// count.
    pub is_all: bool,
}

impl ImportedFiles {
    /// Removes them, once the rows are on disk.
    pub fn remove(&self) {
        self.files.iter().for_each(FileName::remove);
        if self.is_all {
            self.attempts.iter().for_each(FileName::remove);
        }
    }
}

/// Files that dead servers left for a database.
struct Orphans {
    batches: Vec<(FileName, Spooled)>,
    outcomes: Vec<(FileName, OutcomeFile)>,
    attempts: Vec<(FileName, AttemptFile)>,
    /// Outcome files that cannot be read: their jobs had begun.
    begun: Vec<FileName>,
}

impl Orphans {
    fn read(epoch: Epoch, database: DatabaseId) -> Self {
        let batches = spool::orphans(epoch, database);
        let outcomes = outcome_file::orphans(epoch, database);
        let attempts = attempt_file::orphans(epoch, database);
        batches.report_unreadable();
        outcomes.report_unreadable();
        attempts.report_unreadable();
        let begun = outcomes.unreadable.into_iter().map(|(name, _)| name).collect();
        Orphans { batches: batches.readable, outcomes: outcomes.readable, attempts: attempts.readable, begun }
    }

    fn is_empty(&self) -> bool {
        let Orphans { batches, outcomes, attempts, begun } = self;
        batches.is_empty() && outcomes.is_empty() && attempts.is_empty() && begun.is_empty()
    }

    /// Takes out what is of jobs whose rows a transaction is deleting. Returns whether that is nothing.
    fn retain_free(&mut self, rows: &Rows) -> bool {
        let count = |orphans: &Self| orphans.batches.len() + orphans.outcomes.len() + orphans.attempts.len();
        let before = count(self);
        // Such a row keeps back what is known of its job, and of its batch.
        let mut held = HashSet::new();
        self.batches.retain(|(_, batch)| {
            let is_free = !batch.jobs.iter().any(|job| rows.is_taken(&job.uuid));
            if !is_free {
                held.extend(batch.jobs.iter().map(|job| job.uuid));
            }
            is_free
        });
        let mut is_free = |uuid: &JobId| {
            let is_free = !held.contains(uuid) && !rows.is_taken(uuid);
            if !is_free {
                held.insert(*uuid);
            }
            is_free
        };
        self.outcomes.retain(|(_, file)| is_free(&file.attempt.uuid));
        self.begun.retain(|name| is_free(&JobId::of_bytes(name.key)));
        self.attempts.retain(|(_, file)| file.attempt.is_none_or(|attempt| is_free(&attempt.uuid)));
        before == count(self)
    }

    /// Writes the rows of those that no transaction is deleting.
    fn import(mut self, rows: &Rows) -> ImportedFiles {
        let is_all = self.retain_free(rows);
        let mut imported = ImportedFiles { is_all, ..ImportedFiles::default() };
        for (name, batch) in self.batches {
            if is_kept(&batch) {
                insert_spooled(rows, batch);
            }
            imported.files.push(name);
        }
        for (name, file) in self.attempts {
            if let Some(attempt) = &file.attempt {
                rows.import_attempt(file.epoch, attempt);
            }
            imported.attempts.push(name);
        }
        self.begun.iter().for_each(|name| rows.import_begun(name.epoch, &JobId::of_bytes(name.key)));
        for (name, file) in self.outcomes {
            match file.end() {
                Some(end) => rows.import_end(file.epoch, &file.attempt.uuid, end),
                None => rows.import_attempt(file.epoch, &file.attempt),
            }
            imported.files.push(name);
        }
        imported
    }
}

/// Writes the rows of a batch that a server accepted that has died, unless they are there: those of this launch or of
/// one after it.
fn insert_spooled(rows: &Rows, batch: Spooled) {
    for job in batch.jobs {
        rows.accept(&batch.head, NewRow { job, is_begun: false }, true);
    }
}

/// Writes the rows of batches that a server that has died accepted, and what it wrote down of its jobs. Inside
/// [`crate::log::in_own_transaction`]; nobody else does so until the files are removed.
pub fn import_orphans(database: DatabaseId) -> ImportedFiles {
    let orphans = Orphans::read(area::epoch(), database);
    if orphans.is_empty() {
        return ImportedFiles { is_all: true, ..ImportedFiles::default() };
    }
    open_log(lock_log(true), Access::Write, |rows| orphans.import(rows)).unwrap_or_default()
}

/// Removes the files of this server for jobs of a database that it has nothing to write of any more: the log that was
/// to be told is gone. First those of batches, for without its outcome files a batch reads as one that never began.
pub fn remove_unknown(epoch: Epoch, database: DatabaseId) {
    directory::remove_unknown(epoch, database, &[Spooled::SUFFIX, OutcomeFile::SUFFIX]);
}
