//! Rows that workers write: what a job's end is, and that it is about to start.

use crate::error::Error;
use crate::ffi::heap::Access;
use crate::ffi::report::{Captured, Log};
use crate::ffi::{heap, report, role, transaction};
use crate::ids::JobId;
use crate::log::access::{forget_relations, lock_log, lock_timeout, open_log, report_failure};
use crate::log::end::FinalRow;
use crate::log::rows::Rows;
use crate::protocol::Report;

/// Writes a row as part of the job's own transaction, in the log that has it. Returns `false` if that is not there any
/// more.
///
/// # Errors
/// The report of the error; what was done is undone, and the job's transaction goes on.
pub fn write_with_job(log: u32, row: &FinalRow) -> Result<bool, Box<Captured>> {
    let write = || {
        // The job has locks of its own: it does not wait.
        let held = lock_log(false);
        if held.log == log && !heap::is_populated(log) {
            // Not in a transaction that may last: the row follows in one of the extension's own.
            report::emit(&Report::from(Error::LogLocked), Log::Here);
        }
        held.log == log && open_log(held, Access::Change, |rows| rows.write(row)).is_some()
    };
    let written = transaction::attempt(lock_timeout(), || role::as_cluster_owner(write));
    written.inspect_err(|captured| {
        forget_relations();
        report_failure(captured);
    })
}

/// Writes rows in the log that has them. Returns `false` if that is not there any more. Inside
/// [`crate::log::in_own_transaction`].
pub fn write_rows(log: u32, rows: &[FinalRow]) -> bool {
    let held = lock_log(true);
    held.log == log && open_log(held, Access::Write, |log| rows.iter().for_each(|row| log.write(row))).is_some()
}

/// Writes down that jobs are about to start, in the log that has their rows; returns for each whether a row says so
/// then, or `None` if that log is not there any more. Inside [`crate::log::in_own_transaction`].
pub fn mark_started(log: u32, jobs: &[JobId]) -> Option<Vec<bool>> {
    let held = lock_log(true);
    let mark = |rows: &Rows| jobs.iter().map(|uuid| rows.mark_started(uuid)).collect();
    (held.log == log).then(|| open_log(held, Access::Write, mark)).flatten()
}
