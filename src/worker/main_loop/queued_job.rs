//! Work of a worker for the queue: the jobs of a claim, and the rows of the log that tell of them.

use crate::channel::nesting;
use crate::error::Error;
use crate::ffi::report::Captured;
use crate::ffi::{alloc, area, discard_all, process, remote_dest, report, session, statement, transaction};
use crate::ids::DatabaseId;
use crate::log::attempt_file::Attempt;
use crate::log::{attempt_file, outcome_file, End, FinalRow};
use crate::protocol::{decode, sqlstate, to_bytes, Done, Outcome, Report, Request};
use crate::registry::{BatchPtr, Reason, RunningJob, State};
use crate::scheduler::{Claim, Finish};
use crate::time::Timestamp;
use crate::worker::next::{exit_if, Exit, Next, CONTINUE};
use crate::worker::outcome::{failed, is_interrupt, PendingOutcome};
use crate::worker::pool_worker::PoolWorker;
use crate::worker::result_collector::ResultCollector;
use crate::worker::session_setup::{assume_identity, located, reload_if_behind, set_job_text};
use crate::worker::state::state;
use crate::worker::{result_collector, signals, simple_query};
use crate::{log, registry, scheduler};
use std::ffi::{CStr, CString};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Jobs that are shorter are claimed several at a time.
const SHORT: Duration = Duration::from_millis(5);

/// Tells what the outcome file of a job has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutcomeFileState {
    /// There is none.
    Absent,
    /// There may be one, which does not tell the end.
    Maybe,
    /// The end of the job if its transaction is committed.
    HasEnd,
}

/// Records of one attempt of a job in the log and in files, so far.
struct AttemptLog {
    /// Batch, and index of the job in it.
    job: (BatchPtr, u32),
    attempt: Attempt,
    /// Number of attempts of the job up to this one.
    number: u32,
    max_attempts: u32,
    /// Time at which it began.
    started: Timestamp,
    /// Log that has the job's row; `None` if it has none yet.
    log: Option<u32>,
    /// The job's last transaction has written the final row.
    is_row_written: bool,
    file: OutcomeFileState,
}

impl AttemptLog {
    /// Notes that the attempt begins. `is_marked`: a row of the log says so.
    fn begin(batch: BatchPtr, index: u32, job: &RunningJob, log: Option<u32>, is_marked: bool) -> Self {
        state().pending_outcome.replace(None);
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
        let is_file_possible = !is_marked || job.attempt > 1;
        AttemptLog {
            job: (batch, index),
            attempt,
            number: job.attempt,
            max_attempts: job.max_attempts,
            started: job.started,
            log,
            is_row_written: false,
            file: if is_file_possible { OutcomeFileState::Maybe } else { OutcomeFileState::Absent },
        }
    }

    /// Returns the row that tells how the attempt ended; without a time, that the job is queued again.
    fn row(&self, state: State, ended: Option<Timestamp>, outcome: Outcome) -> FinalRow {
        let started = Some(self.started).filter(|_| ended.is_some());
        let end = End { state, pid: Some(session::pid()), started, ended, attempts: self.number, outcome };
        FinalRow { uuid: self.attempt.uuid, end }
    }

    /// Writes the end of the job in its last transaction, which is about to be committed, or beside it.
    fn before_commit(&mut self, outcome: Outcome) {
        let row = self.row(State::Succeeded, Some(process::now()), outcome);
        if let Some(log) = self.log.filter(|_| !transaction::is_read_only()) {
            match log::write_with_job(log, &row) {
                Ok(is_there) => self.is_row_written = is_there,
                // A cancel is for the job, which has not been committed.
                Err(captured) if is_interrupt(&captured.report) => report::raise(*captured),
                Err(_) => {}
            }
        }
        let commits = Some(transaction::current_id_if_any());
        if self.is_row_written && self.file != OutcomeFileState::Absent {
            transaction::force_sync_commit(); // before the note goes
        } else if !self.is_row_written && commits != Some(0) {
            self.file = OutcomeFileState::HasEnd;
            log::store_end(&row, self.attempt, Some(transaction::log_id()));
        }
        let pending = PendingOutcome { state: State::Succeeded, outcome: row.end.outcome, commits };
        state().pending_outcome.replace(Some(pending));
    }

    /// Notes that the job's last transaction was not committed.
    fn was_rolled_back(&mut self) {
        if self.file == OutcomeFileState::HasEnd {
            self.file = OutcomeFileState::Maybe;
        }
    }

    /// Sees to it that there is a file with the end if there is no row, and none if there is.
    fn settle(&self, database: DatabaseId, row: &FinalRow, is_written: bool) {
        match (is_written, self.file) {
            (true, OutcomeFileState::Absent) | (false, OutcomeFileState::HasEnd) => {}
            (true, _) => outcome_file::remove(area::epoch(), database, &row.uuid),
            (false, _) => log::store_end(row, self.attempt, None),
        }
    }
}

/// Rows of a claim's jobs.
struct StartedRows {
    /// Log that has them, if one has.
    log: Option<u32>,
    /// Rows that say that their jobs begin, in the order of the claim; a missing one does not.
    marks: Vec<bool>,
}

/// Rolls back an attempt that did not succeed. Returns how it ended. `stopping`: somebody has it stopped, perhaps known
/// by name.
fn interrupted_outcome(mut failure: Captured, stopping: Option<Option<Vec<u8>>>, attempt: u32) -> (State, Outcome) {
    let is_late = signals::is_past_deadline();
    let state = if stopping.is_some() || signals::is_ending() { State::Stopped } else { State::Failed };
    if is_late && state == State::Failed && failure.report.sqlstate == sqlstate(b"57014") {
        let context = failure.report.context.take();
        failure.report = Report { context, ..Error::JobTimeout.into() };
    }
    report::log(&failure);
    transaction::recover();
    let outcome = if let Some(requester) = stopping {
        let stopped = log::stopped(Reason::Cancelled, requester.as_deref(), attempt);
        Outcome { context: failure.report.context, ..stopped }
    } else if state == State::Stopped {
        failed(&Report { context: failure.report.context, ..Error::Terminated.into() })
    } else {
        failed(&located(failure.report))
    };
    (state, outcome)
}

/// Makes the session ready for a job of the queue. Returns its text, and its request.
///
/// # Errors
/// [`Error::Internal`] (XX000) if there is none, which ends the job as any error does.
fn prepare_job<'a>(job: &RunningJob, request: Option<&'a Request>) -> Result<(&'static CStr, &'a Request), Error> {
    set_job_text(&job.query);
    report::send_notices_to(result_collector::notice);
    remote_dest::send_messages_to(result_collector::message);
    result_collector::reset();
    let request = request.ok_or(Error::Internal("an unreadable request of a batch"))?;
    nesting::begin_job(&request.ancestors);
    let text =
        CString::new(job.query.clone()).map_err(|_| Error::Internal("a zero byte in the text of a queued job"))?;
    Ok((statement::announce_kept(text), request))
}

impl PoolWorker {
    /// Runs the jobs of a claim.
    pub fn run(&mut self, claim: &Claim) -> Next {
        let _mapped = area::Mapped::new();
        let next = self.run_claim(claim);
        if state().slot.get().is_some() {
            area::write(|memory| scheduler::release_claim(memory, self.index, claim));
        }
        next
    }

    fn run_claim(&mut self, claim: &Claim) -> Next {
        self.reset()?;
        let request = self.request_of(claim);
        exit_if(request.as_deref().is_some_and(|request| !reload_if_behind(request)))?;
        if self.is_limited && !self.is_counted {
            statement::announce_ready(); // what is idle does not count
        }
        if !self.is_within_limits() {
            return self.refuse();
        }
        let Some(StartedRows { log, marks }) = self.mark_started(claim)? else { return CONTINUE };
        for (job, is_marked) in claim.indexes.iter().zip(marks.into_iter().chain(std::iter::repeat(false))) {
            // Before others can see that it runs, and stop it.
            signals::begin_job()?;
            if !area::write(|memory| scheduler::begin_job(memory, self.index, claim.batch, *job)) {
                signals::end_job(); // it was stopped in the meantime
                continue;
            }
            let began = Instant::now();
            self.run_job(claim.batch, *job, request.as_deref(), log.filter(|_| is_marked));
            self.is_short = began.elapsed() < SHORT;
            self.reset()?;
            exit_if(discard_all::is_spent())?;
        }
        CONTINUE
    }

    /// Returns the request of the claim's batch; `None` if it cannot be read, and none of the jobs can be run.
    fn request_of(&mut self, claim: &Claim) -> Option<Rc<Request>> {
        if let Some((_, request)) = self.request.as_ref().filter(|(number, _)| *number == claim.number) {
            return Some(Rc::clone(request));
        }
        let bytes = area::read(|memory| registry::request(memory, claim.batch));
        // Its texts grow while they are read.
        alloc::ensure(3 * bytes.len());
        // How long the jobs of one batch take says nothing of those of another.
        self.is_short = false;
        let request = Rc::new(decode(&bytes).ok()?);
        self.request = Some((claim.number, Rc::clone(&request)));
        Some(request)
    }

    /// Writes into the rows of the claim's jobs that they begin. Returns `None` if the log is another one now, and the
    /// jobs are to be recorded before they run.
    fn mark_started(&mut self, claim: &Claim) -> ControlFlow<Exit, Option<StartedRows>> {
        let (uuids, recorded, uuid) = area::read(|memory| {
            let batch = claim.batch;
            (
                scheduler::claimed_uuids(memory, claim),
                registry::log_location(memory, batch),
                scheduler::batch_uuid(memory, batch),
            )
        });
        let log = recorded.map(|rows| rows.log);
        let checked = log::in_own_transaction(true, || {
            let is_same = Some(log::fingerprint(self.database, self.login)) == self.fingerprint;
            let marks = log.filter(|_| is_same).map_or(Some(Vec::new()), |log| log::mark_started(log, &uuids));
            (is_same, marks)
        });
        match checked {
            // What this worker was when it logged in is not what it would be now: another one comes in its place.
            Ok((false, _)) => {
                if !self.is_extension_there() {
                    self.forget_database();
                }
                ControlFlow::Break(Exit)
            }
            Ok((true, Some(marks))) => ControlFlow::Continue(Some(StartedRows { log, marks })),
            // The extension was dropped, and made again.
            Ok((true, None)) => {
                area::write(|memory| scheduler::forget_rows(memory, claim.batch, uuid, log.unwrap_or(0)));
                ControlFlow::Continue(None)
            }
            // The log cannot be written now: the jobs run all the same.
            Err(_) => ControlFlow::Continue(Some(StartedRows { log, marks: Vec::new() })),
        }
    }

    /// Runs one attempt of one job, to the row that tells of it. `marked`: in which log a row says that it begins.
    fn run_job(&mut self, batch: BatchPtr, index: u32, request: Option<&Request>, marked: Option<u32>) {
        let (job, recorded) =
            area::read(|memory| (RunningJob::read(memory, batch, index), registry::log_location(memory, batch)));
        let log = recorded.map(|rows| rows.log);
        self.is_clean = false;
        let prepared = prepare_job(&job, request);
        let deadline =
            job.timeout.and_then(|limit| Instant::now().checked_add(Duration::from_millis(limit.unsigned_abs())));
        signals::set_deadline(deadline);
        let mut attempt = AttemptLog::begin(batch, index, &job, log, log.is_some() && marked == log);
        let outcome = report::catch(|| {
            let (sql, request) = prepared?;
            assume_identity(request)?;
            let mut collector = ResultCollector { before_commit: |outcome| attempt.before_commit(outcome) };
            simple_query::run(sql, &mut collector, deadline)
        });
        match outcome {
            Ok(Ok(done)) => self.finish_success(&attempt, &done),
            Ok(Err(error)) => self.finish_failure(attempt, Captured::from(Report::from(error))),
            Err(captured) => self.finish_failure(attempt, *captured),
        }
    }

    fn finish_success(&mut self, attempt: &AttemptLog, done: &Done) {
        let decided = state().pending_outcome.take();
        let outcome = decided.map_or_else(|| result_collector::outcome(&done.tags), |decided| decided.outcome);
        let row = attempt.row(State::Succeeded, Some(process::now()), outcome);
        let is_written = attempt.is_row_written || self.write_final(attempt, &row);
        self.finish(attempt, &row, is_written);
    }

    fn finish_failure(&mut self, mut attempt: AttemptLog, failure: Captured) {
        let stopping = area::read(|memory| scheduler::stop_request(memory, self.index));
        let (state, outcome) = interrupted_outcome(failure, stopping, attempt.number);
        if state == State::Failed && attempt.number < attempt.max_attempts {
            self.write(attempt.log, &attempt.row(State::Queued, None, outcome), false);
            let (batch, index) = attempt.job;
            area::write(|memory| scheduler::finish_attempt(memory, self.index, batch, index, &Finish::Again));
            attempt_file::set(None);
            return signals::end_job();
        }
        let row = attempt.row(state, Some(process::now()), outcome);
        let is_written = self.write_final(&attempt, &row);
        attempt.was_rolled_back();
        self.finish(&attempt, &row, is_written);
    }

    /// Writes the final row of a job that has not done so itself. Returns whether it is there.
    fn write_final(&mut self, attempt: &AttemptLog, row: &FinalRow) -> bool {
        let FinalRow { end: End { state: job_state, outcome, .. }, .. } = row;
        let pending = PendingOutcome { state: *job_state, outcome: outcome.clone(), commits: None };
        state().pending_outcome.replace(Some(pending));
        self.write(attempt.log, row, attempt.file != OutcomeFileState::Absent)
    }

    /// Writes a row in a transaction of its own, in the log that has it, if one has. Returns whether it is there.
    /// `is_durable`: it is on disk then, whatever the settings.
    fn write(&mut self, log: Option<u32>, row: &FinalRow, is_durable: bool) -> bool {
        let Some(log) = log else { return false };
        area::write(|memory| scheduler::mark_uncancellable(memory, self.index));
        let _finishing = signals::FinishingGuard::new();
        signals::end_job();
        // The job's settings are not the extension's.
        let write = || log::write_rows(log, std::slice::from_ref(row));
        self.reset().is_continue() && log::in_own_transaction(is_durable, write).unwrap_or(false)
    }

    /// Shows everybody how the job ended.
    fn finish(&self, attempt: &AttemptLog, row: &FinalRow, is_written: bool) {
        attempt.settle(self.database, row, is_written);
        let bytes = to_bytes(&row.end.outcome);
        let job_state = row.end.state;
        let finish = if is_written { Finish::Logged(job_state, &bytes) } else { Finish::Unlogged(job_state, &bytes) };
        let (batch, index) = attempt.job;
        area::write(|memory| scheduler::finish_attempt(memory, self.index, batch, index, &finish));
        attempt_file::set(None);
        state().pending_outcome.replace(None);
        signals::end_job();
    }
}
