//! Stop requests: queued jobs leave the queue, running ones are cancelled and, after a grace period, terminated.

use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::process;
use crate::ids::{AnyId, BatchId, JobId};
use crate::registry::layout::{BatchPtr, Reason, State, WorkerSlot, WorkerState};
use crate::registry::root::{slot_mut, slots};
use crate::registry::{batches, lists, ready_lists, snapshot, stopped_by, watchers};
use crate::scheduler::slots;
use std::collections::HashSet;

/// Stops a job, or all jobs of a batch, in the batches that `is_allowed` accepts. Returns each job's uuid and previous
/// state; if that was `Running`, another process does the rest.
///
/// `role`: name of the role that stops them.
pub fn stop_jobs(
    memory: &mut Memory,
    id: AnyId,
    is_allowed: impl Fn(BatchPtr) -> bool,
    role: &[u8],
) -> Vec<(JobId, State)> {
    let mut jobs = Vec::new();
    for found in snapshot::find(memory, id).into_iter().filter(|found| is_allowed(found.batch)) {
        let indexes = snapshot::of_batch(memory, &found).into_iter();
        jobs.extend(indexes.map(|index| (found.batch, index, snapshot::uuid_of_job(memory, found.batch, index))));
    }
    jobs.into_iter().map(|(batch, index, uuid)| (uuid, stop_job(memory, batch, index, uuid.batch(), role))).collect()
}

/// Stops a job on behalf of a role: removes a queued job from the queue, cancels a running one. Returns the previous
/// state; after `Running`, another process does the rest.
fn stop_job(memory: &mut Memory, batch: BatchPtr, index: u32, id: BatchId, role: &[u8]) -> State {
    let is_there = |memory: &Memory| lists::is_there(memory, batch, id);
    if !is_there(memory) {
        return State::Stopped;
    }
    let state = State::from_byte(lists::job(memory, batch, index).state);
    if state.is_final() {
        return state;
    }
    let requester = stopped_by::requester_number(memory, batch, role);
    // Without memory for the name, all jobs may have ended in the meantime, and the batch may have been removed.
    if requester.is_none() && !is_there(memory) {
        return State::Stopped;
    }
    let job = *lists::job(memory, batch, index);
    let state = State::from_byte(job.state);
    match state {
        State::Queued => {
            lists::job_mut(memory, batch, index).stop_requester = requester.unwrap_or(0);
            stop_if_queued(memory, batch, index, Reason::Stopped);
        }
        State::Running => {
            let is_uncancellable =
                slots(memory).get((job.slot as usize).wrapping_sub(1)).is_none_or(|slot| slot.is_uncancellable != 0);
            if job.is_stopping == 0 {
                let job = lists::job_mut(memory, batch, index);
                (job.is_stopping, job.reason, job.stop_requester) =
                    (1, Reason::Cancelled as u8, requester.unwrap_or(0));
            }
            if !is_uncancellable {
                // The worker leaves this state under the lock that is held here: the signal reaches this job, or none.
                process::cancel(job.pid);
            }
        }
        _ => {}
    }
    watchers::wake(memory, batch);
    state
}

/// Stops every queued job of a batch, claimed or not.
pub fn stop_queued(memory: &mut Memory, batch: BatchPtr, reason: Reason) {
    for index in 0..memory.get(batch).jobs {
        stop_if_queued(memory, batch, index, reason);
    }
}

/// Stops a job if it is queued. Returns `false` if it is not.
pub fn stop_if_queued(memory: &mut Memory, batch: BatchPtr, index: u32, reason: Reason) -> bool {
    let job = lists::job_mut(memory, batch, index);
    if job.state != State::Queued as u8 {
        return false;
    }
    let is_claimed = job.slot != 0;
    job.state = State::Stopped as u8;
    job.reason = reason as u8;
    job.slot = 0;
    job.ended = process::now();
    batches::count_unlogged(memory, batch, 1);
    let record = memory.get_mut(batch);
    let database = record.database;
    if !is_claimed {
        record.queued -= 1;
        // Other jobs of the batch may have waited for this one.
        ready_lists::update_queue_state(memory, batch);
    }
    slots::wake_log_writers(memory, database);
    true
}

/// Terminates the processes that run these jobs, if they still do.
pub fn terminate_jobs(memory: &mut Memory, jobs: &HashSet<JobId>) {
    let runs_such_job = |slot: &WorkerSlot| {
        slot.state() == WorkerState::RunningQueued
            && !slot.batch.is_null()
            && slot.has_handle != 0
            && jobs.contains(&crate::registry::uuid_of_job(memory, slot.batch, slot.job))
    };
    let found: Vec<usize> =
        slots(memory).iter().enumerate().filter(|(_, slot)| runs_such_job(slot)).map(|(index, _)| index).collect();
    for index in found {
        if let Some(slot) = slot_mut(memory, index) {
            slot.no_restart = 1;
            // If the job ends by itself now, the worker must not start another.
            slot.exit_requested = 1;
            WorkerHandle::from_words(slot.handle).terminate();
        }
    }
}

/// Returns the stop request for the job running in this slot, or `None`. The requester's role name may be unknown.
pub fn stop_request(memory: &Memory, index: usize) -> Option<Option<Vec<u8>>> {
    let slot =
        slots(memory).get(index).filter(|slot| slot.state() == WorkerState::RunningQueued && !slot.batch.is_null())?;
    let job = lists::job(memory, slot.batch, slot.job);
    (job.is_stopping != 0).then(|| stopped_by::of_job(memory, slot.batch, job).map(<[u8]>::to_vec))
}
