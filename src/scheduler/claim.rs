//! The queue: which job a worker takes next.
//!
//! A worker claims a few jobs of one batch at a time, so that what is written before they start is written for all of
//! them at once; each is begun on its own, and until then it can be stopped as any queued job.

use crate::ffi::area::Memory;
use crate::ffi::process;
use crate::registry::layout::{BatchPtr, PoolPtr, State, WorkerState};
use crate::registry::root::{slot_mut, slots};
use crate::registry::{batches, lists, ready_lists, watchers, Recorded};
use crate::scheduler::capacity::CapDecision;
use crate::scheduler::job_order::{
    batch_to_log, next_log_write, next_overdue_claim, next_turn, runnable_batches, take_next_job, MAX_EXAMINED,
};
use crate::scheduler::slots;
use crate::scheduler::{capacity, completion, dispatch, fork_probe, job_order};
use std::collections::HashSet;

/// Number of jobs that a worker claims at most.
const CLAIM_LIMIT: u32 = 64;
/// Time that a worker of a role stays when another role has none, in microseconds.
const QUANTUM: i64 = 100_000;

/// Interval at which a worker that has nothing to do looks for what nobody tells it, in microseconds.
const LOOK_EVERY: i64 = 500_000;

/// Tells what a worker does next.
pub enum Task {
    /// Write the rows of a batch.
    Record(BatchPtr),
    /// Write the final rows of jobs that ended without one.
    Log(BatchPtr),
    Run(Claim),
    /// Run the job in this segment, which a session has given to it.
    Serve(u32),
    /// Nothing until then (microseconds, none = until it is woken).
    Wait(Option<i64>),
    /// Nothing before there are fewer workers.
    Pause,
    /// There is nothing to do for it, or it is not wanted any more.
    Leave,
    /// Another worker is to have its place.
    HandOver,
}

/// Jobs that a worker will run one after the other.
#[derive(Debug, Clone)]
pub struct Claim {
    pub batch: BatchPtr,
    pub number: u64,
    pub indexes: Vec<u32>,
}

/// Tells how a worker looks for work.
#[derive(Debug, Clone, Copy)]
pub struct ClaimingWorker {
    pub index: usize,
    /// Its jobs are so short that it is to claim several.
    pub many: bool,
    /// The server has no process for another worker just now: it makes room for one only if it has nothing to do
    /// itself.
    pub keeps_turn: bool,
}

/// Decides what the worker does next.
pub fn claim(memory: &mut Memory, seeker: ClaimingWorker, now: i64) -> Task {
    let ClaimingWorker { index, .. } = seeker;
    let task = next_task(memory, seeker, now);
    if matches!(task, Task::Leave | Task::HandOver) {
        // No session gives it a job any more that it would take along.
        slots::become_ready(memory, index);
    }
    task
}

fn next_task(memory: &mut Memory, seeker: ClaimingWorker, now: i64) -> Task {
    let ClaimingWorker { index, many, keeps_turn } = seeker;
    if let Some(segment) = dispatch::begin_assigned_job(memory, index) {
        return Task::Serve(segment);
    }
    let Some(own) = slots(memory).get(index).copied() else { return Task::Leave };
    let standing = capacity::cap_decision(memory, index);
    if own.exit_requested != 0 || standing == CapDecision::Exit {
        return Task::Leave;
    }
    batches::remove_done_batches(memory, false);
    let pool = *memory.get(own.pool);
    if let Some(place) = batch_to_log(memory, pool.database, now) {
        begin_log_write(memory, index, place);
        return Task::Log(place);
    }
    if standing == CapDecision::Pause {
        return Task::Pause;
    }
    if pool.login == 0 {
        return match next_log_write(memory, pool.database) {
            None => Task::Leave,
            Some(_) if capacity::is_wanted_elsewhere(memory, own.pool, now) => Task::HandOver,
            // One that another worker writes now may have to be tried again.
            Some(due) => Task::Wait(Some(due.max(now + LOOK_EVERY))),
        };
    }
    if !keeps_turn && capacity::must_yield(memory, index, now, QUANTUM) {
        return Task::HandOver;
    }
    for place in runnable_batches(memory, own.pool, now, MAX_EXAMINED) {
        let record = memory.get(place);
        if record.recorded_in == 0 {
            if record.log_writer != 0 {
                continue;
            }
            // What cannot be recorded now runs all the same, and is recorded later.
            if record.retry_log_at <= now {
                begin_log_write(memory, index, place);
                return Task::Record(place);
            }
        }
        let share = record.queued / (4 * pool.workers.max(1)) + 1;
        let count = if many && record.is_sequential == 0 { share.min(CLAIM_LIMIT) } else { 1 };
        let indexes: Vec<u32> = (0..count).map_while(|_| take_next_job(memory, place, now)).collect();
        if indexes.is_empty() {
            continue;
        }
        let number = memory.get(place).number;
        for (job, next) in indexes.iter().zip(indexes[1..].iter().map(|next| next + 1).chain([0])) {
            let job = lists::job_mut(memory, place, *job);
            (job.slot, job.next_retry) = (index as u32 + 1, next);
        }
        let record = memory.get_mut(place);
        record.workers += 1;
        record.queued -= indexes.len() as u32;
        ready_lists::update_queue_state(memory, place);
        if let Some(own) = slot_mut(memory, index) {
            own.state = WorkerState::Ready as u32;
            own.batch = place;
        }
        let turn = next_turn(memory);
        memory.get_mut(own.pool).turn = turn;
        return Task::Run(Claim { batch: place, number, indexes });
    }
    if capacity::is_wanted_elsewhere(memory, own.pool, now) {
        return Task::HandOver;
    }
    Task::Wait(next_check(memory, own.pool, now))
}

/// Returns the time at which a worker of the pool that has nothing to do looks again, if nobody wakes it before.
fn next_check(memory: &Memory, pool: PoolPtr, now: i64) -> Option<i64> {
    let idle: HashSet<PoolPtr> =
        slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle).map(|slot| slot.pool).collect();
    // Jobs of a pool whose workers are busy or gone need one that has time to see to them.
    let unattended = lists::pools(memory).filter(|other| *other != pool && !idle.contains(other));
    let due = unattended.chain([pool]).filter_map(|pool| ready_lists::next_due(memory, pool));
    // Of these nobody tells when there is something to do.
    let is_untold = job_order::unlogged(memory).next().is_some()
        || fork_probe::may_lack_workers(memory) && job_order::has_work(memory);
    due.chain(next_overdue_claim(memory, pool)).chain(is_untold.then_some(now + LOOK_EVERY)).min()
}

fn begin_log_write(memory: &mut Memory, index: usize, place: BatchPtr) {
    memory.get_mut(place).log_writer = index as u32 + 1;
    if let Some(own) = slot_mut(memory, index) {
        own.state = WorkerState::Ready as u32;
    }
}

/// Tells that the rows of the batch are in the table; none = they could not be written, and are to be tried again
/// later.
pub fn rows_inserted(memory: &mut Memory, place: BatchPtr, uuid: &[u8; 16], recorded: Option<Recorded>) {
    // It may have been forgotten with its database.
    if !lists::batches_of_uuid(memory, uuid).any(|at| at == place) {
        return;
    }
    completion::log_write_tried(memory, place, recorded.is_some());
    if let Some(Recorded { log, by }) = recorded {
        let batch = memory.get_mut(place);
        batch.recorded_in = log.into();
        batch.recorded_by = by;
        batch.recorded_at = process::now();
    }
    watchers::wake(memory, place);
    // Its database may have been forgotten meanwhile.
    batches::remove_if_done(memory, place);
}

/// The log that has the rows of the batch is gone: they are to be written again.
pub fn forget_rows(memory: &mut Memory, place: BatchPtr, uuid: &[u8; 16], log: u32) {
    // It may have been forgotten with its database, or be recorded again by now.
    if lists::batches_of_uuid(memory, uuid).any(|at| at == place) {
        let batch = memory.get_mut(place);
        if batch.recorded_in == u64::from(log) {
            batch.recorded_in = 0;
        }
    }
}

/// The uuid of the batch.
pub fn batch_uuid(memory: &Memory, place: BatchPtr) -> [u8; 16] {
    memory.get(place).uuid
}

/// The uuid of its first job.
pub fn first_job_uuid(memory: &Memory, place: BatchPtr) -> [u8; 16] {
    let ordinal = lists::jobs(memory, place).first().map_or(0, |job| job.ordinal);
    lists::job_uuid(&memory.get(place).uuid, ordinal)
}

/// The uuids of claimed jobs.
pub fn claimed_uuids(memory: &Memory, claim: &Claim) -> Vec<[u8; 16]> {
    let stem = memory.get(claim.batch).uuid;
    claim.indexes.iter().map(|index| lists::job_uuid(&stem, lists::job(memory, claim.batch, *index).ordinal)).collect()
}

/// Starts a job of a claim. False = it was stopped in the meantime.
pub fn begin_job(memory: &mut Memory, index: usize, place: BatchPtr, job_index: u32) -> bool {
    let now = process::now();
    let Some(own) = slots(memory).get(index).copied() else { return false };
    let job = lists::job_mut(memory, place, job_index);
    if job.state != State::Queued as u8 || job.slot != index as u32 + 1 {
        return false;
    }
    // It was told to end, for the sake of the job before this one.
    if own.exit_requested != 0 {
        return false;
    }
    job.state = State::Running as u8;
    job.started = now;
    job.attempts += 1;
    job.pid = own.pid;
    if let Some(own) = slot_mut(memory, index) {
        own.state = WorkerState::RunningQueued as u32;
        own.batch = place;
        own.job = job_index;
        own.is_uncancellable = 0;
        own.progress = -1;
        own.message_bytes = 0;
    }
    memory.get_mut(own.pool).busy += 1;
    watchers::wake(memory, place);
    true
}

/// Gives back what is left of a claim, and looks whether the batch is done.
pub fn release_claim(memory: &mut Memory, index: usize, claim: &Claim) {
    completion::return_claimed(memory, index, claim.batch, &claim.indexes);
}

/// The worker will not do what it was told to.
pub fn undo_task(memory: &mut Memory, index: usize, task: &Task) {
    match task {
        Task::Run(claim) => release_claim(memory, index, claim),
        Task::Record(place) | Task::Log(place) => {
            memory.get_mut(*place).log_writer = 0;
            batches::remove_if_done(memory, *place);
        }
        _ => {}
    }
}
