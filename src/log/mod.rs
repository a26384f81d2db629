//! The durable log: what is written into it, and when.
//!
//! Rows are written by workers, straight into the log: no code of others runs. What cannot be written now is written
//! later; the registry knows it meanwhile, and notes tell of it after a crash.

pub mod attempt_file;
mod directory;
mod file_format;
mod insert;
pub mod outcome_file;
mod reader;
mod recovery;
mod rows;
pub mod spool;

use crate::error::Error;
use crate::ffi::heap::Access;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::report::{Captured, Log};
use crate::ffi::{heap, lock, login, process, report, role, session, spi, transaction};
pub use crate::log::directory::remove_dropped_databases;
pub use crate::log::insert::insert_batch;
use crate::log::outcome_file::End;
pub use crate::log::reader::{is_readable, jobs_query, jobs_to_retry, row_state, states, LoggedJob, RowState};
pub use crate::log::recovery::{import_orphans, orphaned_batches, remove_unknown, store_begun, store_end};
use crate::log::rows::Rows;
pub use crate::log::rows::{end_cells, outcome_cells};
use crate::protocol::{decode, sqlstate, Outcome, Report};
use crate::registry::{JobStatus, Reason, State};
use crate::scheduler::UnloggedJob;
use crate::{guc, queries};

use std::cell;
use std::time::{Duration, Instant};

/// Time that a write waits for a lock on the log. Nobody needs one for longer; if somebody has one, the row is written
/// later.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// The same in milliseconds, and short enough for a worker to give way before anybody is told of a deadlock.
fn lock_timeout() -> i32 {
    let limit = LOCK_TIMEOUT.min(session::deadlock_timeout() / 2);
    i32::try_from(limit.as_millis()).unwrap_or(1).max(1)
}

/// Shortest interval at which a process tells the server's log the same reason why rows cannot be written.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// A final row, or what is known after an attempt that will be repeated.
pub struct FinalRow {
    pub uuid: [u8; 16],
    pub end: End,
}

thread_local! {
    /// The schema of the extension, quoted.
    static SCHEMA: ProcessCell<Vec<u8>> = const { process_cell(Vec::new()) };
    static RELATIONS: cell::Cell<Option<Relations>> = const { cell::Cell::new(None) };
}

/// The oids of the log and of the sequence of its column `id`; 0 = it is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Relations {
    log: u32,
    sequence: u32,
}

/// Finds the extension. False = it is not in this database (any more). Inside a transaction.
pub fn locate() -> bool {
    let schema = spi::select(queries::SCHEMA).concat();
    let is_there = !schema.is_empty();
    SCHEMA.set(schema);
    RELATIONS.set(None);
    is_there
}

/// A table or view that users read, with its schema.
fn qualified_name(name: &str) -> Vec<u8> {
    SCHEMA.with_borrow(|schema| [schema.as_slice(), b".", name.as_bytes()].concat())
}

/// Forgets what was found, after an error.
fn forget_log_oids() {
    RELATIONS.set(None);
}

/// Takes the locks that writing the log needs, before all else and all at once: a worker that has one of them never
/// waits for another, so whoever drops the extension or changes the log wins. `waits`: for the log, if nothing else is
/// held.
fn lock_log(waits: bool) -> Relations {
    let held = RELATIONS.get().unwrap_or_else(relations);
    require_log(held);
    if !(lock::try_to_write(held.log, waits) && lock::try_to_use(held.sequence)) {
        report::emit(&Report::from(Error::LogLocked), Log::Here);
    }
    RELATIONS.set(Some(held));
    held
}

/// Raises [`Error::LogMissing`] (55000) where the extension has no log: its SQL is that of another version.
fn require_log(relations: Relations) {
    if relations.log == 0 || relations.sequence == 0 {
        report::emit(&Report::from(Error::LogMissing), Log::Here);
    }
}

/// Opens the log that is held; [`Access::Write`] in [`in_own_transaction`].
fn open_log<T>(held: Relations, access: Access, body: impl FnOnce(&Rows) -> T) -> Option<T> {
    rows::open(held.log, held.sequence, access, body)
}

fn relations() -> Relations {
    let mut found = Relations::default();
    for row in spi::select_rows(queries::LOG) {
        let mut row = row.into_iter().flatten();
        let (kind, oid) = (row.next(), number(row.next()));
        match kind.as_deref() {
            Some(b"m") => found.log = oid,
            _ => found.sequence = oid,
        }
    }
    found
}

/// The oid of the log; 0 = there is none. Inside a transaction.
pub fn log_oid() -> u32 {
    thread_local! {
        /// Change of the catalogs at which the log was found, and its oid.
        static KNOWN: cell::Cell<(u64, u32)> = const { cell::Cell::new((0, 0)) };
    }
    // What this transaction has changed is told to nobody yet, and may be undone.
    let changes_something = transaction::current_id_if_any() != 0;
    let changes = login::changes();
    let (at, known) = KNOWN.get();
    if known != 0 && at == changes && !changes_something {
        return known;
    }
    let Relations { log, .. } = relations();
    KNOWN.set(if changes_something { (0, 0) } else { (changes, log) });
    log
}

/// Runs `body` in a transaction of the extension's own, with the rights of the cluster's owner; `is_durable`: when this
/// returns, it is on the disk of this server.
///
/// # Errors
/// The report of the error; everything is rolled back.
pub fn in_own_transaction<T>(is_durable: bool, body: impl FnOnce() -> T) -> Result<T, Box<Captured>> {
    let outcome = crate::ffi::report::catch(|| {
        transaction::start_command();
        transaction::allow_writes();
        transaction::read_committed();
        let value = transaction::with_lock_timeout(lock_timeout(), || role::as_cluster_owner(body));
        if is_durable {
            transaction::force_sync_commit();
        }
        let _no_standby = transaction::NoStandby::new();
        transaction::finish_command();
        value
    });
    if let Err(captured) = &outcome {
        transaction::recover();
        forget_log_oids();
        log_write_failure(captured);
    }
    outcome
}

/// Tells the server's log that the jobs' log could not be written: nobody else would hear of it. Not of each row: many
/// may wait for the same.
fn log_write_failure(captured: &Captured) {
    thread_local! {
        /// Last text that was told, and when.
        static TOLD: ProcessCell<Option<(Vec<u8>, Instant)>> = const { process_cell(None) };
    }
    let Captured { report, .. } = captured;
    let text = [b"could not write the log of pg_background_mgr, will try again: ".as_slice(), &report.message].concat();
    let is_told = |told: &Option<(Vec<u8>, Instant)>| {
        told.as_ref().is_some_and(|(last, at)| *last == text && at.elapsed() < TELL_EVERY)
    };
    if !TOLD.with_borrow(is_told) {
        crate::compat::process::log_line(&text);
        TOLD.set(Some((text, Instant::now())));
    }
}

/// Writes a row as part of the job's own transaction, in the log that has it. False = that is not there any more.
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
        forget_log_oids();
        log_write_failure(captured);
    })
}

/// Writes rows in the log that has them. False = that is not there any more. Inside [`in_own_transaction`].
pub fn write_rows(log: u32, rows: &[FinalRow]) -> bool {
    let held = lock_log(true);
    held.log == log && open_log(held, Access::Write, |log| rows.iter().for_each(|row| log.write(row))).is_some()
}

/// The final row of a job that ended without writing it.
pub fn row_of(ended: &UnloggedJob) -> FinalRow {
    let outcome = match (&ended.outcome, ended.state) {
        (Some(bytes), _) => decode(bytes).unwrap_or_default(),
        (None, State::Stopped) => stopped(ended.reason, ended.stop_requester.as_deref(), ended.attempts),
        (None, _) => Outcome::default(),
    };
    FinalRow {
        uuid: ended.uuid,
        end: End {
            state: ended.state,
            pid: ended.pid,
            started: Some(ended.started).filter(|at| *at != 0),
            ended: Some(ended.ended),
            attempts: ended.attempts,
            outcome,
        },
    }
}

/// Returns the outcome of a job that was stopped, after so many attempts.
pub fn stopped(reason: Reason, stopper: Option<&[u8]>, attempts: u32) -> Outcome {
    let by = stopper.map_or(Vec::new(), |role| [b" by user \"", role, b"\""].concat());
    let before = if attempts == 0 { b" before it started".as_slice() } else { b" before its next attempt" };
    let message = match reason {
        Reason::OtherFailed => b"another job of the batch failed".to_vec(),
        Reason::Cancelled => [b"stopped".as_slice(), &by].concat(),
        Reason::None | Reason::Stopped => [b"the job was stopped".as_slice(), &by, before].concat(),
    };
    Outcome { sqlstate: sqlstate(b"57014"), message: Some(message), ..Outcome::default() }
}

/// Writes down that jobs are about to start, in the log that has their rows; gives for each whether a row says so then.
/// None = that log is not there any more. Inside [`in_own_transaction`].
pub fn mark_started(log: u32, jobs: &[[u8; 16]]) -> Option<Vec<bool>> {
    let held = lock_log(true);
    let mark = |rows: &Rows| jobs.iter().map(|uuid| rows.mark_started(uuid)).collect();
    (held.log == log).then(|| open_log(held, Access::Write, mark)).flatten()
}

/// The databases that there are: oids.
pub fn databases() -> Vec<u32> {
    let oids = spi::select(queries::DATABASES);
    oids.into_iter().map(|oid| number(Some(oid))).collect()
}

/// Number of rows that a worker deletes at once: its queue waits for that.
const PRUNE_LIMIT: i64 = 10_000;

/// Deletes rows of jobs that ended longer ago than `log_retention`; false = there are more of them. Inside
/// [`in_own_transaction`].
pub fn prune_old() -> bool {
    let Some(seconds) = guc::log_retention().filter(|_| locate()) else { return true };
    let limit = process::now().saturating_sub(seconds.saturating_mul(1_000_000));
    // What another deletes now is gone without this one.
    let pruned = open_log(lock_log(true), Access::Write, |rows| {
        rows.prune(limit, None, Some(PRUNE_LIMIT), false, recovery::is_orphaned)
    });
    pruned.is_none_or(|count| count < PRUNE_LIMIT)
}

/// Deletes rows of jobs that ended longer ago than `older_than` microseconds, of one owner or of all; gives how many.
pub fn prune(older_than: i64, owner: Option<u32>) -> i64 {
    transaction::require_writable(c"pg_background_prune()");
    let limit = process::now().saturating_sub(older_than);
    open_for_caller(|rows| rows.prune(limit, owner, None, true, recovery::is_orphaned)).unwrap_or(0)
}

/// Deletes the row of a job that has ended, if `may` lets its owner's be deleted. False = it stays, or is not there.
pub fn delete(uuid: &[u8; 16], may: impl FnOnce(u32) -> bool) -> bool {
    !recovery::is_orphaned(uuid) && open_for_caller(|rows| rows.delete(uuid, may)).unwrap_or(false)
}

/// Opens the log for a statement of the caller, which waits for locks as long as his settings let it.
fn open_for_caller<T>(body: impl FnOnce(&Rows) -> T) -> Option<T> {
    thread_local! {
        /// The log, as a transaction has found it.
        static HELD: cell::Cell<(u64, Relations)> = const { cell::Cell::new((0, Relations { log: 0, sequence: 0 })) };
    }
    let transaction = transaction::current_id();
    let (by, held) = HELD.get();
    let mut known = Some(held).filter(|held| by == transaction && held.log != 0);
    let held = loop {
        let found = known.take().unwrap_or_else(|| role::as_cluster_owner(relations));
        require_log(found);
        // Each time, for a ROLLBACK TO SAVEPOINT gives it back. Of its indexes somebody may have locks: they are waited
        // for.
        let _ = lock::try_to_write(found.log, true);
        if heap::is_there(found.log) {
            break found;
        }
    };
    HELD.set((transaction, held));
    open_log(held, Access::Change, body)
}

/// Returns whether the log has no rows at all, or is not there. It is locked.
pub fn is_empty() -> bool {
    let Relations { log, .. } = relations();
    log == 0 || heap::is_empty(log)
}

fn number<T: std::str::FromStr + Default>(text: Option<Vec<u8>>) -> T {
    text.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or_default()
}

/// Returns the outcome of a job that is in the registry.
pub fn outcome_of(job: &JobStatus) -> Outcome {
    match (&job.outcome, job.state) {
        (Some(bytes), _) => decode(bytes).unwrap_or_default(),
        (None, State::Stopped) => stopped(job.reason, job.stop_requester.as_deref(), job.attempts),
        (None, _) => Outcome::default(),
    }
}

/// Returns what must not change while a worker is logged in: what its login depends on, and the extension. Inside a
/// transaction.
pub fn fingerprint(database: u32, login: u32) -> (u64, Vec<u8>) {
    thread_local! {
        /// Version of the extension, and the change of the catalogs at which it was read.
        static KNOWN: ProcessCell<Option<(u64, Vec<u8>)>> = const { process_cell(None) };
    }
    let changes = login::changes();
    let known = KNOWN.with_borrow(|known| known.clone()).filter(|(at, _)| *at == changes);
    let (_, extension) = known.unwrap_or_else(|| {
        let now = (changes, spi::select(queries::EXTENSION_VERSION).concat());
        KNOWN.set(Some(now.clone()));
        now
    });
    (login::look(database, login).state, extension)
}
