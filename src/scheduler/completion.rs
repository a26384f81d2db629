//! Completion of attempts, jobs and batches: outcomes, final rows, and the removal of finished batches.

use crate::ffi::area::Memory;
use crate::ffi::process;
use crate::ids::{BatchId, DatabaseId, JobId};
use crate::registry::layout::{BatchPtr, BatchRecord, JobRecord, PoolPtr, Reason, State, WorkerSlot, WorkerState};
use crate::registry::outcomes::StoredOutcome;
use crate::registry::root::{slot_mut, slots};
use crate::registry::{batches, lists, outcomes, ready_lists, stopped_by, watchers};
use crate::scheduler::job_order;
use crate::scheduler::job_order::requeue;
use crate::scheduler::stop;
use crate::scheduler::stop::stop_queued;
use crate::time::Timestamp;
use std::time::Duration;

/// Maximum number of final rows that are written in one transaction.
const LOG_LIMIT: usize = 1000;
/// First delay after which rows that could not be written are tried again.
const LOG_RETRY: Duration = Duration::from_millis(500);
/// Number of times that this delay doubles while the rows still cannot be written: to 16 seconds.
const LOG_RETRY_DOUBLINGS: u16 = 5;
/// Delay after which a worker is started again to write final rows in a database that has refused one.
const REFUSED_RETRY: Duration = Duration::from_secs(10);

/// Number of jobs up to which followers of a batch are told of the end of each job, and of its outcome.
pub const FEW: u32 = 5;

/// Result of an attempt.
pub enum Finish<'a> {
    /// The final row is written, with this state and outcome.
    Logged(State, &'a [u8]),
    /// The final row must be written, with this state and outcome.
    Unlogged(State, &'a [u8]),
    /// The job must be tried again, when its delay is over.
    Again,
}

/// Job that has ended and has no final row yet.
pub struct UnloggedJob {
    pub index: u32,
    pub uuid: JobId,
    pub state: State,
    pub reason: Reason,
    /// Name of the role that stopped the job.
    pub stop_requester: Option<Vec<u8>>,
    pub attempts: u32,
    pub pid: Option<i32>,
    pub started: Timestamp,
    pub ended: Timestamp,
    pub outcome: Option<Vec<u8>>,
}

/// Records that the job of this worker cannot be cancelled any more.
pub fn mark_uncancellable(memory: &mut Memory, index: usize) {
    if let Some(own) = slot_mut(memory, index) {
        own.is_uncancellable = 1;
    }
}

/// Final row of a job that has ended.
enum Row {
    /// The row is written. The outcome is stored if followers of the job are told of it.
    Written(Option<StoredOutcome>),
    /// The row must be written from this outcome; `None` means that the job's record has the reason, or that nothing is
    /// known any more.
    Due(Option<StoredOutcome>),
}

/// Ends an attempt of a job that this worker has started.
pub fn finish_attempt(memory: &mut Memory, index: usize, batch: BatchPtr, job_index: u32, finish: &Finish) {
    let stored = match finish {
        Finish::Unlogged(_, outcome) => outcomes::store(memory, outcome),
        // Sessions that follow the job are told the reason.
        Finish::Logged(State::Failed | State::Stopped, outcome) if memory.get(batch).jobs <= FEW => {
            outcomes::store(memory, outcome)
        }
        _ => None,
    };
    let Some(own) = slots(memory).get(index).copied() else { return };
    leave_running(memory, index, own);
    complete_attempt(memory, batch, job_index, finish, stored);
}

/// Records the result of an attempt. `stored`: its outcome.
fn complete_attempt(
    memory: &mut Memory,
    batch: BatchPtr,
    job_index: u32,
    finish: &Finish,
    stored: Option<StoredOutcome>,
) {
    match finish {
        // A stop was requested while the attempt was being logged: no other attempt follows.
        Finish::Again if lists::job(memory, batch, job_index).is_stopping != 0 => {
            end_job(memory, batch, job_index, State::Stopped, Row::Due(None));
        }
        Finish::Again => {
            let delay = Duration::from_millis(lists::job(memory, batch, job_index).retry_delay.unsigned_abs());
            requeue(memory, batch, job_index, process::now() + delay);
        }
        Finish::Logged(state, _) => end_job(memory, batch, job_index, *state, Row::Written(stored)),
        Finish::Unlogged(state, _) => end_job(memory, batch, job_index, *state, Row::Due(stored)),
    }
    let failed = matches!(finish, Finish::Logged(State::Failed, _) | Finish::Unlogged(State::Failed, _));
    if failed && memory.get(batch).stops_on_error != 0 {
        stop_queued(memory, batch, Reason::OtherFailed);
    }
    watchers::wake(memory, batch);
}

/// Records that the worker does not run a job any more.
fn leave_running(memory: &mut Memory, index: usize, own: WorkerSlot) {
    if own.state() == WorkerState::RunningQueued {
        let pool = memory.get_mut(own.pool);
        pool.busy = pool.busy.saturating_sub(1);
    }
    if let Some(own) = slot_mut(memory, index) {
        own.state = WorkerState::Ready as u32;
    }
}

/// Records the end of a job.
fn end_job(memory: &mut Memory, batch: BatchPtr, index: u32, state: State, row: Row) {
    let job = lists::job_mut(memory, batch, index);
    job.state = state as u8;
    job.slot = 0;
    job.ended = process::now();
    job.is_logged = u8::from(matches!(row, Row::Written(_)));
    match row {
        Row::Written(_) => memory.get_mut(batch).logged += 1,
        Row::Due(_) => batches::count_unlogged(memory, batch, 1),
    }
    let (Row::Written(stored) | Row::Due(stored)) = row;
    if let Some(stored) = stored {
        outcomes::attach(memory, batch, index, stored);
    }
}

/// Returns jobs whose final rows are to be written, a limited number at a time.
pub fn unlogged_jobs(memory: &Memory, batch: BatchPtr) -> Vec<UnloggedJob> {
    let record = memory.get(batch);
    lists::jobs(memory, batch)
        .iter()
        .zip(0..)
        .skip(record.first_unlogged as usize)
        .filter(|(job, _)| State::from_byte(job.state).is_final() && job.is_logged == 0)
        .take(LOG_LIMIT.min(record.unlogged as usize))
        .map(|(job, index)| UnloggedJob {
            index,
            uuid: record.uuid.job(job.ordinal),
            state: State::from_byte(job.state),
            reason: Reason::from_byte(job.reason),
            stop_requester: stopped_by::of_job(memory, batch, job).map(<[u8]>::to_vec),
            attempts: job.attempts,
            pid: Some(job.pid).filter(|pid| *pid != 0),
            started: job.started,
            ended: job.ended,
            outcome: outcomes::of_job(memory, job).map(<[u8]>::to_vec),
        })
        .collect()
}

/// Records that the final rows of these jobs are written. `indexes`: `None` if they could not be written and must be
/// tried again later.
pub fn rows_written(memory: &mut Memory, batch: BatchPtr, id: BatchId, indexes: Option<&[u32]>) {
    // The batch may have been removed with its database.
    if !lists::is_there(memory, batch, id) {
        return;
    }
    mark_logged(memory, batch, indexes.unwrap_or_default());
    log_write_tried(memory, batch, indexes.is_some());
    watchers::wake(memory, batch);
    batches::remove_if_done(memory, batch);
}

/// Records that rows of the batch were written, or could not be. The longer that lasts, the later they are tried again,
/// so that many such batches do not hold up other jobs.
pub fn log_write_tried(memory: &mut Memory, batch: BatchPtr, is_written: bool) {
    let record = memory.get_mut(batch);
    record.log_writer = 0;
    if is_written {
        record.log_failures = 0;
    } else {
        record.retry_log_at = next_log_try(record.log_failures);
        record.log_failures = record.log_failures.saturating_add(1);
    }
}

/// Returns the time at which rows are tried again that could not be written now, nor `failures` times before.
pub fn next_log_try(failures: u16) -> Timestamp {
    process::now() + LOG_RETRY * (1 << failures.min(LOG_RETRY_DOUBLINGS))
}

/// Records that nothing more is to be written for these jobs.
fn mark_logged(memory: &mut Memory, batch: BatchPtr, indexes: &[u32]) {
    let mut newly_logged = 0;
    for index in indexes {
        let job: &mut JobRecord = lists::job_mut(memory, batch, *index);
        newly_logged += u32::from(job.is_logged == 0);
        job.is_logged = job.is_logged.max(2);
    }
    batches::count_unlogged(memory, batch, -(newly_logged as i32));
    let first = memory.get(batch).first_unlogged as usize;
    let before = lists::jobs(memory, batch).iter().skip(first).take_while(|job| job.is_logged != 0).count();
    let record = memory.get_mut(batch);
    record.logged += newly_logged;
    record.first_unlogged += before as u32;
}

/// Postpones the final rows of this database, for which no worker can log in: they are not tried again for a while, in
/// which those of other databases are written.
pub fn postpone_log(memory: &mut Memory, database: DatabaseId) {
    let retry_at = process::now() + REFUSED_RETRY;
    let unlogged: Vec<BatchPtr> = job_order::unlogged(memory).collect();
    for batch in unlogged {
        let record = memory.get_mut(batch);
        if record.database == database {
            record.retry_log_at = retry_at;
        }
    }
}

/// Ends every queued job of the pool with this outcome, because no worker can run it.
/// Caller: the pool has a worker, so that it is not removed.
pub fn fail_queued(memory: &mut Memory, pool: PoolPtr, outcome: &[u8]) {
    let mut outcome = outcome;
    'batches: loop {
        let Some(batch) = lists::queued_batches(memory, pool).next() else { return };
        for index in 0..memory.get(batch).jobs {
            let job = lists::job(memory, batch, index);
            if job.state != State::Queued as u8 || job.slot != 0 {
                continue;
            }
            let stored = outcomes::store(memory, outcome);
            if stored.is_none() && !outcome.is_empty() {
                // Goes on without the outcome. Anything that was read before may have changed.
                outcome = &[];
                continue 'batches;
            }
            memory.get_mut(batch).queued -= 1;
            end_job(memory, batch, index, State::Failed, Row::Due(stored));
        }
        ready_lists::update_queue_state(memory, batch);
        watchers::wake(memory, batch);
    }
}

/// Ends attempts of jobs in a pool for which no worker could be started at this time: each job that would have begun
/// then has had an attempt that failed with this outcome.
pub fn fail_unstarted(memory: &mut Memory, pool: PoolPtr, at: Timestamp, outcome: &[u8]) {
    loop {
        // Without memory for the outcome, jobs end without it.
        let stored = outcomes::store(memory, outcome);
        // In that case, anything that was read before may have changed.
        let is_there = lists::pools(memory).any(|there| there == pool);
        let next = is_there.then(|| job_order::runnable_batches(memory, pool, at, 1).first().copied()).flatten();
        let next = next.filter(|batch| memory.get(*batch).created <= at);
        let Some((batch, index)) = next.and_then(|batch| Some((batch, job_order::take_next_job(memory, batch, at)?)))
        else {
            return stored.into_iter().for_each(|stored| outcomes::discard(memory, stored));
        };
        memory.get_mut(batch).queued -= 1;
        ready_lists::update_queue_state(memory, batch);
        let job = lists::job_mut(memory, batch, index);
        job.attempts += 1;
        if job.attempts < job.max_attempts {
            stored.into_iter().for_each(|stored| outcomes::discard(memory, stored));
            complete_attempt(memory, batch, index, &Finish::Again, None);
        } else {
            complete_attempt(memory, batch, index, &Finish::Unlogged(State::Failed, outcome), stored);
        }
    }
}

/// Ends the work of a worker that died: its job, and its claim.
pub fn abandon_work(memory: &mut Memory, index: usize, state: State, outcome: &[u8]) {
    let Some(own) = slots(memory).get(index).copied() else { return };
    let slot = index as u32 + 1;
    let batch = own.batch;
    if own.state() == WorkerState::RunningQueued {
        let job = lists::job(memory, batch, own.job);
        // The end of the worker ends only this attempt.
        let end = if state == State::Failed && job.attempts < job.max_attempts {
            Finish::Again
        } else {
            Finish::Unlogged(state, outcome)
        };
        finish_attempt(memory, index, batch, own.job, &end);
    }
    if !batch.is_null() {
        let claimed: Vec<u32> = (0..memory.get(batch).jobs)
            .filter(|job| {
                let job = lists::job(memory, batch, *job);
                job.state == State::Queued as u8 && job.slot == slot
            })
            .collect();
        return_claimed(memory, index, batch, &claimed);
    }
    let writing: Vec<BatchPtr> = lists::batches(memory).filter(|batch| memory.get(*batch).log_writer == slot).collect();
    for batch in writing {
        memory.get_mut(batch).log_writer = 0;
    }
}

/// Removes the batches of a database that has no log any more, because the extension or the database itself was
/// dropped. Called by the worker in slot `index`, which writes none of them now. Batches that another worker writes are
/// removed when it is done, and batches that are still being launched are removed by the worker that runs them.
pub fn forget_database(memory: &mut Memory, database: DatabaseId, index: usize) {
    let is_affected = |record: &BatchRecord| record.database == database && record.is_open != 0;
    let batches: Vec<BatchPtr> = lists::batches(memory).filter(|batch| is_affected(memory.get(*batch))).collect();
    for batch in batches {
        for index in 0..memory.get(batch).jobs {
            stop::stop_if_queued(memory, batch, index, Reason::Stopped);
        }
        let record = memory.get_mut(batch);
        if record.log_writer == index as u32 + 1 {
            record.log_writer = 0;
        }
        let unlogged: Vec<u32> = (0..memory.get(batch).jobs)
            .filter(|index| {
                let job = lists::job(memory, batch, *index);
                State::from_byte(job.state).is_final() && job.is_logged == 0
            })
            .collect();
        mark_logged(memory, batch, &unlogged);
        watchers::wake(memory, batch);
        batches::remove_if_done(memory, batch);
    }
}

/// Puts the claimed jobs that this worker has not started back into the queue, and removes the batch if it is finished.
pub fn return_claimed(memory: &mut Memory, index: usize, batch: BatchPtr, jobs: &[u32]) {
    let slot = index as u32 + 1;
    for job in jobs {
        let record = lists::job(memory, batch, *job);
        if record.state == State::Queued as u8 && record.slot == slot {
            requeue(memory, batch, *job, Timestamp::NONE);
        }
    }
    memory.get_mut(batch).workers -= 1;
    if let Some(own) = slot_mut(memory, index) {
        own.batch = BatchPtr::NULL;
    }
    batches::remove_if_done(memory, batch);
}
