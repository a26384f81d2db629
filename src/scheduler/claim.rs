//! Claims: the next task of a worker.
//!
//! A worker claims a few jobs of one batch at a time, so that the rows written before they start are written for all of
//! them at once. Each job starts on its own, and until then it can be stopped like any queued job.

use crate::ffi::area::Memory;
use crate::ffi::process;
use crate::ids::{BatchId, JobId, RoleId};
use crate::registry::layout::{BatchPtr, BatchRecord, PoolPtr, State, WorkerState};
use crate::registry::root::{slot_mut, slots};
use crate::registry::{batches, lists, ready_lists, watchers, Recorded};
use crate::scheduler::capacity::CapDecision;
use crate::scheduler::job_order::{
    batch_to_log, next_log_write, next_overdue_claim, next_turn, runnable_batches, take_next_job, MAX_EXAMINED,
};
use crate::scheduler::slots;
use crate::scheduler::{capacity, completion, dispatch, fork_probe, job_order};
use crate::time::Timestamp;
use std::collections::HashSet;
use std::time::Duration;

/// Maximum number of jobs in a claim.
const CLAIM_LIMIT: u32 = 64;
/// Time for which a worker may keep another role that has no worker waiting.
const QUANTUM: Duration = Duration::from_millis(100);

/// Interval at which a worker that has nothing to do looks for work that it is not woken for.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Next task of a worker.
pub enum Task {
    /// Insert the rows of a batch.
    Record(BatchPtr),
    /// Write the final rows of jobs that ended without one.
    Log(BatchPtr),
    Run(Claim),
    /// Run the attached job in this segment.
    Serve(u32),
    /// Wait until this time, or until woken if `None`.
    Wait(Option<Timestamp>),
    /// Wait until there are fewer workers.
    Pause,
    /// Exit: there is nothing to do, or the worker is not needed any more.
    Leave,
    /// Hand the slot over to a worker of another pool.
    HandOver,
}

/// Jobs that a worker will run one after the other.
#[derive(Debug, Clone)]
pub struct Claim {
    pub batch: BatchPtr,
    pub number: u64,
    pub indexes: Vec<u32>,
}

/// Worker that looks for a task.
#[derive(Debug, Clone, Copy)]
pub struct ClaimingWorker {
    pub index: usize,
    /// The worker's jobs are so short that it claims several.
    pub many: bool,
    /// The server has no process for another worker at this time: this worker yields only if it has nothing to do
    /// itself.
    pub keeps_turn: bool,
}

/// Decides on the worker's next task, and claims its jobs.
/// Caller: registry locked exclusively.
pub fn claim(memory: &mut Memory, worker: ClaimingWorker, now: Timestamp) -> Task {
    let ClaimingWorker { index, .. } = worker;
    let task = next_task(memory, worker, now);
    if matches!(task, Task::Leave | Task::HandOver) {
        // From now on, no session assigns a job to the worker, which would be lost when it exits.
        slots::become_ready(memory, index);
    }
    task
}

fn next_task(memory: &mut Memory, worker: ClaimingWorker, now: Timestamp) -> Task {
    let ClaimingWorker { index, keeps_turn, .. } = worker;
    if let Some(segment) = dispatch::begin_assigned_job(memory, index) {
        return Task::Serve(segment);
    }
    let Some(own) = slots(memory).get(index).copied() else { return Task::Leave };
    let decision = capacity::cap_decision(memory, index);
    if own.exit_requested != 0 || decision == CapDecision::Exit {
        return Task::Leave;
    }
    batches::remove_done_batches(memory, false);
    let pool = *memory.get(own.pool);
    if let Some(batch) = batch_to_log(memory, pool.database, now) {
        begin_log_write(memory, index, batch);
        return Task::Log(batch);
    }
    if decision == CapDecision::Pause {
        return Task::Pause;
    }
    if pool.login == RoleId::NONE {
        return match next_log_write(memory, pool.database) {
            None => Task::Leave,
            Some(_) if capacity::is_wanted_elsewhere(memory, own.pool, now) => Task::HandOver,
            // Rows that another worker writes now may have to be tried again.
            Some(due) => Task::Wait(Some(due.max(now + CHECK_INTERVAL))),
        };
    }
    if !keeps_turn && capacity::must_yield(memory, index, now, QUANTUM) {
        return Task::HandOver;
    }
    for batch in runnable_batches(memory, own.pool, now, MAX_EXAMINED) {
        if let Some(task) = task_of_batch(memory, worker, batch, now) {
            return task;
        }
    }
    if capacity::is_wanted_elsewhere(memory, own.pool, now) {
        return Task::HandOver;
    }
    Task::Wait(next_check(memory, own.pool, now))
}

/// Returns what a worker of its pool does for a batch that has runnable jobs: inserts its rows, or claims jobs. Returns
/// `None` if another worker inserts its rows, or all jobs have been taken.
fn task_of_batch(memory: &mut Memory, worker: ClaimingWorker, batch: BatchPtr, now: Timestamp) -> Option<Task> {
    let ClaimingWorker { index, many, .. } = worker;
    let record = memory.get(batch);
    if record.recorded_in == 0 {
        if record.log_writer != 0 {
            return None;
        }
        // Jobs whose rows cannot be inserted now run all the same; their rows are inserted later.
        if record.retry_log_at <= now {
            begin_log_write(memory, index, batch);
            return Some(Task::Record(batch));
        }
    }
    let BatchRecord { number, pool, .. } = *record;
    let share = record.queued / (4 * memory.get(pool).workers.max(1)) + 1;
    let count = if many && record.is_sequential == 0 { share.min(CLAIM_LIMIT) } else { 1 };
    let indexes: Vec<u32> = (0..count).map_while(|_| take_next_job(memory, batch, now)).collect();
    if indexes.is_empty() {
        return None;
    }
    for (job, next) in indexes.iter().zip(indexes[1..].iter().map(|next| next + 1).chain([0])) {
        let job = lists::job_mut(memory, batch, *job);
        (job.slot, job.next_retry) = (index as u32 + 1, next);
    }
    let record = memory.get_mut(batch);
    record.workers += 1;
    record.queued -= indexes.len() as u32;
    ready_lists::update_queue_state(memory, batch);
    if let Some(own) = slot_mut(memory, index) {
        own.state = WorkerState::Ready as u32;
        own.batch = batch;
    }
    memory.get_mut(pool).turn = next_turn(memory);
    Some(Task::Run(Claim { batch, number, indexes }))
}

/// Returns the time at which a worker of the pool that has nothing to do looks for work again, if it is not woken
/// before; `None` means that it only waits to be woken.
fn next_check(memory: &Memory, pool: PoolPtr, now: Timestamp) -> Option<Timestamp> {
    let idle: HashSet<PoolPtr> =
        slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle).map(|slot| slot.pool).collect();
    // Delayed jobs of a pool whose workers are busy or gone need a worker that has time to handle them.
    let uncovered = lists::pools(memory).filter(|other| *other != pool && !idle.contains(other));
    let due = uncovered.chain([pool]).filter_map(|pool| ready_lists::next_due(memory, pool));
    // No worker is woken when these can be done.
    let is_polled = job_order::unlogged(memory).next().is_some()
        || fork_probe::may_lack_workers(memory) && job_order::has_work(memory);
    due.chain(next_overdue_claim(memory, pool)).chain(is_polled.then_some(now + CHECK_INTERVAL)).min()
}

fn begin_log_write(memory: &mut Memory, index: usize, batch: BatchPtr) {
    memory.get_mut(batch).log_writer = index as u32 + 1;
    if let Some(own) = slot_mut(memory, index) {
        own.state = WorkerState::Ready as u32;
    }
}

/// Records that the rows of the batch are in the log. `recorded`: their location, or `None` if they could not be
/// written and must be tried again later.
pub fn rows_inserted(memory: &mut Memory, batch: BatchPtr, id: BatchId, recorded: Option<Recorded>) {
    // The batch may have been removed with its database.
    if !lists::is_there(memory, batch, id) {
        return;
    }
    completion::log_write_tried(memory, batch, recorded.is_some());
    if let Some(Recorded { log, by }) = recorded {
        let record = memory.get_mut(batch);
        record.recorded_in = log.into();
        record.recorded_by = by;
        record.recorded_at = process::now();
    }
    watchers::wake(memory, batch);
    // Its database may have been dropped meanwhile.
    batches::remove_if_done(memory, batch);
}

/// Records that the log with the rows of the batch is gone: they must be written again.
pub fn forget_rows(memory: &mut Memory, batch: BatchPtr, id: BatchId, log: u32) {
    // The batch may have been removed with its database, or its rows may have been written again by now.
    if lists::is_there(memory, batch, id) {
        let record = memory.get_mut(batch);
        if record.recorded_in == u64::from(log) {
            record.recorded_in = 0;
        }
    }
}

/// Returns the uuid of the batch.
pub fn batch_uuid(memory: &Memory, batch: BatchPtr) -> BatchId {
    memory.get(batch).uuid
}

/// Returns the uuid of the batch's first job.
pub fn first_job_uuid(memory: &Memory, batch: BatchPtr) -> JobId {
    let ordinal = lists::jobs(memory, batch).first().map_or(0, |job| job.ordinal);
    memory.get(batch).uuid.job(ordinal)
}

/// Returns the uuids of claimed jobs.
pub fn claimed_uuids(memory: &Memory, claim: &Claim) -> Vec<JobId> {
    let batch = memory.get(claim.batch).uuid;
    claim.indexes.iter().map(|index| batch.job(lists::job(memory, claim.batch, *index).ordinal)).collect()
}

/// Starts a job of a claim. Returns `false` if it was stopped in the meantime, or if the worker must exit.
pub fn begin_job(memory: &mut Memory, index: usize, batch: BatchPtr, job_index: u32) -> bool {
    let now = process::now();
    let Some(own) = slots(memory).get(index).copied() else { return false };
    let job = lists::job_mut(memory, batch, job_index);
    if job.state != State::Queued as u8 || job.slot != index as u32 + 1 {
        return false;
    }
    // The worker was told to exit because of the job before this one.
    if own.exit_requested != 0 {
        return false;
    }
    job.state = State::Running as u8;
    job.started = now;
    job.attempts += 1;
    job.pid = own.pid;
    if let Some(own) = slot_mut(memory, index) {
        own.state = WorkerState::RunningQueued as u32;
        own.batch = batch;
        own.job = job_index;
        own.is_uncancellable = 0;
        own.progress = -1;
        own.message_bytes = 0;
    }
    memory.get_mut(own.pool).busy += 1;
    watchers::wake(memory, batch);
    true
}

/// Puts the jobs of a claim that have not started back into the queue, and removes the batch if it is finished.
pub fn release_claim(memory: &mut Memory, index: usize, claim: &Claim) {
    completion::return_claimed(memory, index, claim.batch, &claim.indexes);
}

/// Undoes a task that the worker will not do.
pub fn undo_task(memory: &mut Memory, index: usize, task: &Task) {
    match task {
        Task::Run(claim) => release_claim(memory, index, claim),
        Task::Record(batch) | Task::Log(batch) => {
            memory.get_mut(*batch).log_writer = 0;
            batches::remove_if_done(memory, *batch);
        }
        _ => {}
    }
}
