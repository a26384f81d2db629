//! End of jobs, and of their batches: what came of a job, who stopped it, its final row, and when all of it is
//! forgotten.

use crate::ffi::area::Memory;
use crate::ffi::process;
use crate::registry::layout::{BatchPtr, BatchRecord, JobRecord, PoolPtr, Reason, State, WorkerSlot, WorkerState};
use crate::registry::outcomes::StoredOutcome;
use crate::registry::root::{slot_mut, slots};
use crate::registry::{batches, lists, outcomes, ready_lists, stopped_by, watchers};
use crate::scheduler::job_order;
use crate::scheduler::job_order::requeue;
use crate::scheduler::stop;
use crate::scheduler::stop::stop_queued;

/// Number of final rows that are written in one transaction at most.
const LOG_LIMIT: usize = 1000;
/// Time after which rows that could not be written are tried again at first, in microseconds.
const LOG_RETRY: i64 = 500_000;
/// Number of times that this time doubles, if they still cannot be written: to 16 seconds.
const LOG_RETRY_DOUBLINGS: u16 = 5;
/// Time after which a worker is sent again to write final rows into a database that has refused one, in microseconds.
const REFUSED_RETRY: i64 = 10_000_000;

/// Number of jobs up to which followers of a batch are told when each one has ended, and what came of it.
pub const FEW: u32 = 5;

/// Tells what came of an attempt.
pub enum Finish<'a> {
    /// Its final row is written, and says this.
    Logged(State, &'a [u8]),
    /// Its final row is to be written from this.
    Unlogged(State, &'a [u8]),
    /// The job is to be tried again, when its delay is over.
    Again,
}

/// A job that has ended and has no final row yet.
pub struct UnloggedJob {
    pub index: u32,
    pub uuid: [u8; 16],
    pub state: State,
    pub reason: Reason,
    /// Name of the role that stopped it.
    pub stop_requester: Option<Vec<u8>>,
    pub attempts: u32,
    pub pid: Option<i32>,
    pub started: i64,
    pub ended: i64,
    pub outcome: Option<Vec<u8>>,
}

/// Notes that nothing of the job that this worker has begun can be cancelled any more.
pub fn mark_uncancellable(memory: &mut Memory, index: usize) {
    if let Some(own) = slot_mut(memory, index) {
        own.is_uncancellable = 1;
    }
}

/// The final row of a job that has come to its end.
enum Row {
    /// Content of the row, if those that follow the job are told.
    Written(Option<StoredOutcome>),
    /// The row is to be written from this; from nothing = the job's record says why, or nobody knows any more.
    Due(Option<StoredOutcome>),
}

/// Ends an attempt. The job was begun by this worker.
pub fn finish_attempt(memory: &mut Memory, index: usize, place: BatchPtr, job_index: u32, finish: &Finish) {
    let kept = match finish {
        Finish::Unlogged(_, outcome) => outcomes::store(memory, outcome),
        // Sessions that follow it are told why.
        Finish::Logged(State::Failed | State::Stopped, outcome) if memory.get(place).jobs <= FEW => {
            outcomes::store(memory, outcome)
        }
        _ => None,
    };
    let Some(own) = slots(memory).get(index).copied() else { return };
    leave_running(memory, index, own);
    complete_attempt(memory, place, job_index, finish, kept);
}

/// An attempt is over; `kept`: what came of it.
fn complete_attempt(
    memory: &mut Memory,
    place: BatchPtr,
    job_index: u32,
    finish: &Finish,
    kept: Option<StoredOutcome>,
) {
    match finish {
        // Who wanted it stopped came while its attempt was written down: there is none after it.
        Finish::Again if lists::job(memory, place, job_index).is_stopping != 0 => {
            end_job(memory, place, job_index, State::Stopped, Row::Due(None));
        }
        Finish::Again => {
            let delay = lists::job(memory, place, job_index).retry_delay.saturating_mul(1000);
            requeue(memory, place, job_index, process::now().saturating_add(delay));
        }
        Finish::Logged(state, _) => end_job(memory, place, job_index, *state, Row::Written(kept)),
        Finish::Unlogged(state, _) => end_job(memory, place, job_index, *state, Row::Due(kept)),
    }
    let failed = matches!(finish, Finish::Logged(State::Failed, _) | Finish::Unlogged(State::Failed, _));
    if failed && memory.get(place).stops_on_error != 0 {
        stop_queued(memory, place, Reason::OtherFailed);
    }
    watchers::wake(memory, place);
}

fn leave_running(memory: &mut Memory, index: usize, own: WorkerSlot) {
    if own.state() == WorkerState::RunningQueued {
        let pool = memory.get_mut(own.pool);
        pool.busy = pool.busy.saturating_sub(1);
    }
    if let Some(own) = slot_mut(memory, index) {
        own.state = WorkerState::Ready as u32;
    }
}

/// A job has come to its end.
fn end_job(memory: &mut Memory, place: BatchPtr, index: u32, state: State, row: Row) {
    let job = lists::job_mut(memory, place, index);
    job.state = state as u8;
    job.slot = 0;
    job.ended = process::now();
    job.is_logged = u8::from(matches!(row, Row::Written(_)));
    match row {
        Row::Written(_) => memory.get_mut(place).logged += 1,
        Row::Due(_) => batches::count_unlogged(memory, place, 1),
    }
    let (Row::Written(kept) | Row::Due(kept)) = row;
    if let Some(kept) = kept {
        outcomes::attach(memory, place, index, kept);
    }
}

/// Final rows that are to be written, a few at a time.
pub fn unlogged_jobs(memory: &Memory, place: BatchPtr) -> Vec<UnloggedJob> {
    let record = memory.get(place);
    lists::jobs(memory, place)
        .iter()
        .zip(0..)
        .skip(record.first_unlogged as usize)
        .filter(|(job, _)| State::from_byte(job.state).is_final() && job.is_logged == 0)
        .take(LOG_LIMIT.min(record.unlogged as usize))
        .map(|(job, index)| UnloggedJob {
            index,
            uuid: lists::job_uuid(&record.uuid, job.ordinal),
            state: State::from_byte(job.state),
            reason: Reason::from_byte(job.reason),
            stop_requester: stopped_by::of_job(memory, place, job).map(<[u8]>::to_vec),
            attempts: job.attempts,
            pid: Some(job.pid).filter(|pid| *pid != 0),
            started: job.started,
            ended: job.ended,
            outcome: outcomes::of_job(memory, job).map(<[u8]>::to_vec),
        })
        .collect()
}

/// Tells that these final rows are written; none = they could not be, and are to be tried again later.
pub fn rows_written(memory: &mut Memory, place: BatchPtr, uuid: &[u8; 16], indexes: Option<&[u32]>) {
    // It may have been forgotten with its database.
    if !lists::batches_of_uuid(memory, uuid).any(|at| at == place) {
        return;
    }
    mark_logged(memory, place, indexes.unwrap_or_default());
    log_write_tried(memory, place, indexes.is_some());
    watchers::wake(memory, place);
    batches::remove_if_done(memory, place);
}

/// Tells that rows of the batch were written, or could not be: the longer that lasts, the later it is tried again, so
/// that many such batches hold up nobody's jobs.
pub fn log_write_tried(memory: &mut Memory, place: BatchPtr, is_written: bool) {
    let batch = memory.get_mut(place);
    batch.log_writer = 0;
    if is_written {
        batch.log_failures = 0;
    } else {
        batch.retry_log_at = next_log_try(batch.log_failures);
        batch.log_failures = batch.log_failures.saturating_add(1);
    }
}

/// Returns the time at which what could not be written into the log is tried again: now and, before, so often.
pub fn next_log_try(failures: u16) -> i64 {
    process::now() + (LOG_RETRY << failures.min(LOG_RETRY_DOUBLINGS))
}

/// Notes that nothing more is to be written of these jobs.
fn mark_logged(memory: &mut Memory, place: BatchPtr, indexes: &[u32]) {
    let mut settled = 0;
    for index in indexes {
        let job: &mut JobRecord = lists::job_mut(memory, place, *index);
        settled += u32::from(job.is_logged == 0);
        job.is_logged = job.is_logged.max(2);
    }
    batches::count_unlogged(memory, place, -(settled as i32));
    let first = memory.get(place).first_unlogged as usize;
    let before = lists::jobs(memory, place).iter().skip(first).take_while(|job| job.is_logged != 0).count();
    let record = memory.get_mut(place);
    record.logged += settled;
    record.first_unlogged += before as u32;
}

/// Postpones the final rows of this database, for which no worker can log in: they are not tried again for a while, in
/// which those of others are written.
pub fn postpone_log(memory: &mut Memory, database: u32) {
    let retry_at = process::now() + REFUSED_RETRY;
    let unlogged: Vec<BatchPtr> = job_order::unlogged(memory).collect();
    for place in unlogged {
        let batch = memory.get_mut(place);
        if batch.database == database {
            batch.retry_log_at = retry_at;
        }
    }
}

/// Every queued job of the pool, which has a worker, ends with this outcome: nobody can run it.
pub fn fail_queued(memory: &mut Memory, pool: PoolPtr, outcome: &[u8]) {
    let mut outcome = outcome;
    'batches: loop {
        let Some(place) = lists::queued_batches(memory, pool).next() else { return };
        for index in 0..memory.get(place).jobs {
            let job = lists::job(memory, place, index);
            if job.state != State::Queued as u8 || job.slot != 0 {
                continue;
            }
            let kept = outcomes::store(memory, outcome);
            if kept.is_none() && !outcome.is_empty() {
                // From now on without it: what was seen may have changed.
                outcome = &[];
                continue 'batches;
            }
            memory.get_mut(place).queued -= 1;
            end_job(memory, place, index, State::Failed, Row::Due(kept));
        }
        ready_lists::update_queue_state(memory, place);
        watchers::wake(memory, place);
    }
}

/// Refuses jobs of a pool of which no worker could be started at this time: what one would have begun then has had an
/// attempt that failed with this outcome.
pub fn fail_unstarted(memory: &mut Memory, pool: PoolPtr, at: i64, outcome: &[u8]) {
    loop {
        // Without memory for it, jobs end without it.
        let kept = outcomes::store(memory, outcome);
        // What was seen may have changed then.
        let is_there = lists::pools(memory).any(|there| there == pool);
        let next = is_there.then(|| job_order::runnable_batches(memory, pool, at, 1).first().copied()).flatten();
        let next = next.filter(|place| memory.get(*place).created <= at);
        let Some((place, index)) = next.and_then(|place| Some((place, job_order::take_next_job(memory, place, at)?)))
        else {
            return kept.into_iter().for_each(|kept| outcomes::discard(memory, kept));
        };
        memory.get_mut(place).queued -= 1;
        ready_lists::update_queue_state(memory, place);
        let job = lists::job_mut(memory, place, index);
        job.attempts += 1;
        if job.attempts < job.max_attempts {
            kept.into_iter().for_each(|kept| outcomes::discard(memory, kept));
            complete_attempt(memory, place, index, &Finish::Again, None);
        } else {
            complete_attempt(memory, place, index, &Finish::Unlogged(State::Failed, outcome), kept);
        }
    }
}

/// Ends what a worker that dies leaves: its job, and its claim.
pub fn abandon_work(memory: &mut Memory, index: usize, state: State, outcome: &[u8]) {
    let Some(own) = slots(memory).get(index).copied() else { return };
    let slot = index as u32 + 1;
    let place = own.batch;
    if own.state() == WorkerState::RunningQueued {
        let job = lists::job(memory, place, own.job);
        // What has ended its worker has ended this attempt only.
        let end = if state == State::Failed && job.attempts < job.max_attempts {
            Finish::Again
        } else {
            Finish::Unlogged(state, outcome)
        };
        finish_attempt(memory, index, place, own.job, &end);
    }
    if !place.is_null() {
        let claimed: Vec<u32> = (0..memory.get(place).jobs)
            .filter(|job| {
                let job = lists::job(memory, place, *job);
                job.state == State::Queued as u8 && job.slot == slot
            })
            .collect();
        return_claimed(memory, index, place, &claimed);
    }
    let writing: Vec<BatchPtr> = lists::batches(memory).filter(|place| memory.get(*place).log_writer == slot).collect();
    for place in writing {
        memory.get_mut(place).log_writer = 0;
    }
}

/// Forgets every batch of a database that has no log any more: the extension is gone from it, or the database itself
/// is. By the worker in this slot, which writes none of them now; those that another one writes are forgotten when it
/// is done, and those that are still being launched by who runs them.
pub fn forget_database(memory: &mut Memory, database: u32, index: usize) {
    let is_meant = |batch: &BatchRecord| batch.database == database && batch.is_open != 0;
    let places: Vec<BatchPtr> = lists::batches(memory).filter(|place| is_meant(memory.get(*place))).collect();
    for place in places {
        for index in 0..memory.get(place).jobs {
            stop::stop_if_queued(memory, place, index, Reason::Stopped);
        }
        let batch = memory.get_mut(place);
        if batch.log_writer == index as u32 + 1 {
            batch.log_writer = 0;
        }
        let unlogged: Vec<u32> = (0..memory.get(place).jobs)
            .filter(|index| {
                let job = lists::job(memory, place, *index);
                State::from_byte(job.state).is_final() && job.is_logged == 0
            })
            .collect();
        mark_logged(memory, place, &unlogged);
        watchers::wake(memory, place);
        batches::remove_if_done(memory, place);
    }
}

/// Gives back what is left of the jobs that this worker has claimed, and looks whether the batch is done.
pub fn return_claimed(memory: &mut Memory, index: usize, place: BatchPtr, jobs: &[u32]) {
    let slot = index as u32 + 1;
    for job in jobs {
        let record = lists::job(memory, place, *job);
        if record.state == State::Queued as u8 && record.slot == slot {
            requeue(memory, place, *job, 0);
        }
    }
    memory.get_mut(place).workers -= 1;
    if let Some(own) = slot_mut(memory, index) {
        own.batch = BatchPtr::NULL;
    }
    batches::remove_if_done(memory, place);
}
