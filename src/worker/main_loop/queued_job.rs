//! Work of a worker for the queue: the jobs of a claim, and the rows of the log that tell of them.

use crate::channel::nesting;
use crate::error::Error;
use crate::ffi::interrupt::FinishingGuard;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::report::Captured;
use crate::ffi::{
    alloc, area, discard_all, interrupt, lock, process, remote_dest, report, session, statement, transaction,
};
use crate::log::attempt_file::Attempt;
use crate::log::{attempt_file, outcome_file, spool, End, FinalRow};
use crate::protocol::{decode, sqlstate, to_bytes, Outcome, Report};
use crate::registry::{BatchPtr, Reason, RunningJob, State};
use crate::scheduler::{Claim, Finish};
use crate::worker::main_loop::exit::is_interrupt;
use crate::worker::main_loop::{PoolWorker, SLOT};
use crate::worker::result_collector::ResultCollector;
use crate::worker::session_setup::{assume_identity, located, reload_if_behind, set_job_text};
use crate::worker::{result_collector, simple_query};
use crate::{log, registry, scheduler};
use std::cell::Cell;
use std::ffi::CString;
use std::time::{Duration, Instant};

/// Key of the lock of whoever makes rows of what a server has left behind, with the database in the lower half.
const IMPORT_LOCK: u64 = 0x666f_6c64_0000_0000;
/// Jobs that are shorter are claimed several at a time.
const SHORT: Duration = Duration::from_millis(5);

thread_local! {
    static PENDING_OUTCOME: ProcessCell<Option<PendingOutcome>> = const { process_cell(None) };
}

/// End of a job whose worker is still busy with it.
struct PendingOutcome {
    state: State,
    outcome: Outcome,
    /// The job ends so if this transaction is committed.
    commits: Option<u32>,
}

/// Tells what there is of a job beside its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutcomeFileState {
    Absent,
    Maybe,
    /// The end of the job if its transaction is committed.
    HasEnd,
}

fn set_pending_outcome(state: State, outcome: &Outcome) {
    PENDING_OUTCOME.set(Some(PendingOutcome { state, outcome: outcome.clone(), commits: None }));
}

/// Returns the outcome of a job that failed. Whoever reads the log reads all of it: no text is longer than so many
/// bytes.
pub fn failed(report: &Report) -> Outcome {
    const TEXT_BYTES: usize = 64 * 1024;
    let mut outcome = Outcome::failed(report);
    let Outcome { message, detail, hint, context, is_truncated, .. } = &mut outcome;
    for text in [message, detail, hint, context].into_iter().flatten() {
        let whole = session::clip(text, TEXT_BYTES).len();
        *is_truncated |= whole < text.len();
        text.truncate(whole);
    }
    outcome
}

/// Takes how the job ended; if a transaction decides it, only when that was committed.
pub fn take_pending_outcome() -> Option<(State, Outcome)> {
    let decided = PENDING_OUTCOME.with_borrow_mut(Option::take)?;
    decided.commits.is_none_or(transaction::is_committed).then_some((decided.state, decided.outcome))
}

/// Rolls back an attempt that did not succeed, and tells how it ended. `stopping`: somebody has it stopped, perhaps
/// known by name.
fn interrupted_outcome(mut failure: Captured, stopping: Option<Option<Vec<u8>>>, attempt: u32) -> (State, Outcome) {
    let is_late = interrupt::is_past_deadline();
    let state = if stopping.is_some() || interrupt::is_ending() { State::Stopped } else { State::Failed };
    if is_late && state == State::Failed && failure.report.sqlstate == sqlstate(b"57014") {
        let context = failure.report.context.take();
        failure.report = Report { context, ..Error::JobTimeout.into() };
    }
    report::log(&failure);
    transaction::recover();
    let outcome = if let Some(stopper) = stopping {
        let stopped = log::stopped(Reason::Cancelled, stopper.as_deref(), attempt);
        Outcome { context: failure.report.context, ..stopped }
    } else if state == State::Stopped {
        failed(&Report { context: failure.report.context, ..Error::Terminated.into() })
    } else {
        failed(&located(failure.report))
    };
    (state, outcome)
}

impl PoolWorker {
    /// Runs the jobs of a claim. False = the worker is to go.
    pub(super) fn run(&mut self, claim: &Claim) -> bool {
        let _mapped = area::Mapped::new();
        let goes_on = self.run_claim(claim);
        if SLOT.get().is_some() {
            area::write(|memory| scheduler::release_claim(memory, self.index, claim));
        }
        goes_on
    }

    fn run_claim(&mut self, claim: &Claim) -> bool {
        if !self.is_clean && !self.reset() {
            return false;
        }
        if self.request.as_ref().is_none_or(|(number, _)| *number != claim.number) {
            let bytes = area::read(|memory| registry::request(memory, claim.batch));
            alloc::ensure(3 * bytes.len()); // its texts grow while they are read
            match decode(&bytes) {
                Ok(request) => {
                    self.request = Some((claim.number, request));
                    // How long the jobs of one batch take says nothing of those of another.
                    self.is_short = false;
                }
                Err(_) => return false,
            }
        }
        if self.request.as_ref().is_some_and(|(_, request)| !reload_if_behind(request)) {
            return false;
        }
        if self.is_limited && !self.is_counted {
            statement::announce_ready(); // what is idle does not count
        }
        if !self.is_within_limits() {
            return self.refuse();
        }
        let (uuids, recorded, uuid) = area::read(|memory| {
            let place = claim.batch;
            (
                scheduler::claimed_uuids(memory, claim),
                registry::log_location(memory, place),
                scheduler::batch_uuid(memory, place),
            )
        });
        let checked = log::in_own_transaction(true, || {
            let is_same = Some(log::fingerprint(self.database, self.login)) == self.fingerprint;
            let rows =
                recorded.filter(|_| is_same).map_or(Some(Vec::new()), |rows| log::mark_started(rows.log, &uuids));
            (is_same, rows)
        });
        let marks = match checked {
            // What this worker was when it logged in is not what it would be now: another one comes in its place.
            Ok((false, _)) => {
                if !self.is_extension_there() {
                    self.forget_database();
                }
                return false;
            }
            Ok((true, Some(marks))) => marks,
            // The extension was dropped, and made again: they are recorded again before they run.
            Ok((true, None)) => {
                let log = recorded.map_or(0, |rows| rows.log);
                area::write(|memory| scheduler::forget_rows(memory, claim.batch, &uuid, log));
                return true;
            }
            Err(_) => Vec::new(), // the log cannot be written now: the jobs run all the same
        };
        for (job, is_marked) in claim.indexes.iter().zip(marks.into_iter().chain(std::iter::repeat(false))) {
            // Before others can see that it runs, and stop it.
            if !interrupt::begin_job() {
                return false;
            }
            if !area::write(|memory| scheduler::begin_job(memory, self.index, claim.batch, *job)) {
                interrupt::end_job(); // it was stopped in the meantime
            } else {
                let began = Instant::now();
                self.run_job(claim.batch, *job, recorded.filter(|_| is_marked).map(|rows| rows.log));
                self.is_short = began.elapsed() < SHORT;
                if !self.reset() || discard_all::is_spent() {
                    return false;
                }
            }
        }
        true
    }

    fn is_extension_there(&self) -> bool {
        log::in_own_transaction(false, log::locate).unwrap_or(true)
    }

    /// Runs one attempt of one job, to the row that tells of it. `marked`: in which log a row says that it begins.
    fn run_job(&mut self, batch: BatchPtr, index: u32, marked: Option<u32>) {
        let (job, recorded) =
            area::read(|memory| (RunningJob::read(memory, batch, index), registry::log_location(memory, batch)));
        let log = recorded.map(|rows| rows.log);
        let is_marked = log.is_some() && marked == log;
        let Some((_, request)) = &self.request else { return };
        self.is_clean = false;
        set_job_text(&job.query);
        report::send_notices_to(result_collector::notice);
        remote_dest::send_messages_to(result_collector::message);
        result_collector::reset();
        nesting::begin_job(&request.ancestors);
        let Ok(sql) = CString::new(job.query.clone()) else { return };
        let sql = statement::announce_kept(sql);
        let deadline =
            job.timeout.and_then(|limit| Instant::now().checked_add(Duration::from_millis(limit.unsigned_abs())));
        interrupt::set_deadline(deadline);
        let final_row = |state, ended: Option<i64>, outcome| {
            let started = Some(job.started).filter(|_| ended.is_some());
            let end = End { state, pid: Some(session::pid()), started, ended, attempts: job.attempt, outcome };
            FinalRow { uuid: job.uuid, end }
        };
        PENDING_OUTCOME.set(None);
        let attempt = Attempt {
            uuid: job.uuid,
            owner: job.owner,
            pid: Some(session::pid()),
            started: Some(job.started),
            attempts: Some(job.attempt),
        };
        if !is_marked {
            log::store_begun(attempt);
        }
        attempt_file::set(Some(&attempt));
        // An attempt before this one may have left one.
        let outcome_file =
            Cell::new(if !is_marked || job.attempt > 1 { OutcomeFileState::Maybe } else { OutcomeFileState::Absent });
        let is_written = Cell::new(false);
        let mut audience = ResultCollector {
            before_commit: |outcome: Outcome| {
                let row = final_row(State::Succeeded, Some(process::now()), outcome);
                if let Some(log) = log.filter(|_| !transaction::is_read_only()) {
                    match log::write_with_job(log, &row) {
                        Ok(is_there) => is_written.set(is_there),
                        // A cancel is for the job, which has not been committed.
                        Err(captured) if is_interrupt(&captured.report) => report::raise(*captured),
                        Err(_) => {}
                    }
                }
                let commits = Some(transaction::current_id_if_any());
                if is_written.get() && outcome_file.get() != OutcomeFileState::Absent {
                    transaction::force_sync_commit(); // before the note goes
                } else if !is_written.get() && commits != Some(0) {
                    outcome_file.set(OutcomeFileState::HasEnd);
                    log::store_end(&row, attempt, Some(transaction::log_id()));
                }
                PENDING_OUTCOME.set(Some(PendingOutcome {
                    state: State::Succeeded,
                    outcome: row.end.outcome,
                    commits,
                }));
            },
        };
        let outcome = report::catch(|| {
            assume_identity(request)?;
            simple_query::run(sql, &mut audience, deadline)
        });
        let failure = match outcome {
            Ok(Ok(done)) => {
                let decided = PENDING_OUTCOME.with_borrow_mut(Option::take);
                let outcome = decided.map_or_else(|| result_collector::outcome(&done.tags), |decided| decided.outcome);
                let row = final_row(State::Succeeded, Some(process::now()), outcome);
                let is_written = is_written.get() || {
                    set_pending_outcome(State::Succeeded, &row.end.outcome);
                    self.write(log, &row, outcome_file.get() != OutcomeFileState::Absent)
                };
                self.settle(&row, attempt, is_written, outcome_file.get());
                return self.finish(batch, index, State::Succeeded, is_written, &row.end.outcome);
            }
            Ok(Err(error)) => Captured::from(Report::from(error)),
            Err(captured) => *captured,
        };
        let stopping = area::read(|memory| scheduler::stop_request(memory, self.index));
        let (state, outcome) = interrupted_outcome(failure, stopping, job.attempt);
        if state == State::Failed && job.attempt < job.max_attempts {
            self.write(log, &final_row(State::Queued, None, outcome), false);
            area::write(|memory| scheduler::finish_attempt(memory, self.index, batch, index, &Finish::Again));
            attempt_file::set(None);
            return interrupt::end_job();
        }
        set_pending_outcome(state, &outcome);
        let row = final_row(state, Some(process::now()), outcome);
        let is_written = self.write(log, &row, outcome_file.get() != OutcomeFileState::Absent);
        // It was not committed.
        let outcome_file =
            if outcome_file.get() == OutcomeFileState::HasEnd { OutcomeFileState::Maybe } else { outcome_file.get() };
        self.settle(&row, attempt, is_written, outcome_file);
        self.finish(batch, index, state, is_written, &row.end.outcome);
    }

    /// Writes a row in a transaction of its own, in the log that has it, if one has; `is_durable`: it is on disk then,
    /// whatever the settings.
    fn write(&mut self, log: Option<u32>, row: &FinalRow, is_durable: bool) -> bool {
        let Some(log) = log else { return false };
        area::write(|memory| scheduler::mark_uncancellable(memory, self.index));
        let _concluding = FinishingGuard::new();
        interrupt::end_job();
        // The job's settings are not the extension's.
        let write = || log::write_rows(log, std::slice::from_ref(row));
        self.reset() && log::in_own_transaction(is_durable, write).unwrap_or(false)
    }

    /// Sees to it that there is a note of the end if there is no row, and none if there is.
    fn settle(&self, row: &FinalRow, attempt: Attempt, is_written: bool, outcome_file: OutcomeFileState) {
        match (is_written, outcome_file) {
            (true, OutcomeFileState::Absent) | (false, OutcomeFileState::HasEnd) => {}
            (true, _) => outcome_file::remove(area::epoch(), self.database, &row.uuid),
            (false, _) => log::store_end(row, attempt, None),
        }
    }

    fn finish(&self, batch: BatchPtr, index: u32, state: State, is_written: bool, outcome: &Outcome) {
        let bytes = to_bytes(outcome);
        let finish = if is_written { Finish::Logged(state, &bytes) } else { Finish::Unlogged(state, &bytes) };
        area::write(|memory| scheduler::finish_attempt(memory, self.index, batch, index, &finish));
        attempt_file::set(None);
        PENDING_OUTCOME.set(None);
        interrupt::end_job();
    }

    /// Makes rows of what a server that has died left behind; what cannot be written now is tried again.
    pub(super) fn import_orphans(&mut self) {
        let folded = lock::while_alone(IMPORT_LOCK | u64::from(self.database), || {
            log::in_own_transaction(true, || log::import_orphans(self.database)).map(|folded| {
                folded.remove();
                folded.is_all
            })
        });
        let is_all = matches!(folded, Some(Ok(true)));
        let failures = self.next_import.map_or(0, |(_, failures)| failures);
        self.next_import = (!is_all).then(|| (scheduler::next_log_try(failures), failures.saturating_add(1)));
        if is_all {
            log::remove_unknown(area::epoch(), self.database);
            // Files of databases that are gone concern nobody else.
            let databases = log::in_own_transaction(false, log::databases).unwrap_or_default();
            if !databases.is_empty() {
                log::remove_dropped_databases(area::epoch(), |database| databases.contains(&database));
            }
        }
    }

    /// The extension is not in this database any more: forgets its jobs, and what was noted of them.
    pub(super) fn forget_database(&self) {
        area::write(|memory| scheduler::forget_database(memory, self.database, self.index));
        log::remove_unknown(area::epoch(), self.database);
    }

    /// Writes the rows of a batch that was accepted.
    pub(super) fn record(&mut self, place: BatchPtr) {
        let (uuid, first) =
            area::read(|memory| (scheduler::batch_uuid(memory, place), scheduler::first_job_uuid(memory, place)));
        let recorded = if self.is_clean || self.reset() {
            log::in_own_transaction(true, || log::locate().then(|| log::insert_batch(place, &uuid))).ok().flatten()
        } else {
            None
        };
        if recorded.is_none() && !self.is_extension_there() {
            return self.forget_database();
        }
        // Before a session can launch its jobs again, which has a file of the same name.
        if recorded.is_some() {
            spool::remove(area::epoch(), self.database, &first);
        }
        area::write(|memory| scheduler::rows_inserted(memory, place, &uuid, recorded));
    }

    /// Writes final rows that are still to be written.
    pub(super) fn write_log(&mut self, place: BatchPtr) {
        let Some(recorded) = area::read(|memory| registry::log_location(memory, place)) else {
            return self.record(place);
        };
        let (uuid, ended) =
            area::read(|memory| (scheduler::batch_uuid(memory, place), scheduler::unlogged_jobs(memory, place)));
        let rows: Vec<FinalRow> = ended.iter().map(log::row_of).collect();
        let outcome = (self.is_clean || self.reset())
            .then(|| log::in_own_transaction(true, || log::write_rows(recorded.log, &rows)).ok())
            .flatten();
        if outcome == Some(false) {
            area::write(|memory| scheduler::forget_rows(memory, place, &uuid, recorded.log));
            return self.record(place);
        }
        let written = outcome.is_some();
        if !written && !self.is_extension_there() {
            return self.forget_database();
        }
        let indexes: Option<Vec<u32>> = written.then(|| ended.iter().map(|ended| ended.index).collect());
        if written {
            let (epoch, begun) = (area::epoch(), ended.iter().filter(|ended| ended.attempts > 0));
            begun.for_each(|ended| outcome_file::remove(epoch, self.database, &ended.uuid));
        }
        area::write(|memory| scheduler::rows_written(memory, place, &uuid, indexes.as_deref()));
    }
}
