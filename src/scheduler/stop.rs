//! Stop requests: queued jobs leave the queue, running ones are cancelled and, after their grace, terminated.

use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::process;
use crate::registry::layout::{BatchPtr, Reason, State, WorkerSlot, WorkerState};
use crate::registry::root::{slot_mut, slots};
use crate::registry::{batches, lists, ready_lists, snapshot, stopped_by, watchers};
use crate::scheduler::slots;
use std::collections::HashSet;

/// Stops a job, or all jobs of a batch, of those batches that `is_allowed` lets pass. Returns each job's uuid and what
/// it was; of one that was running, another process sees to the rest.
///
/// `role`: name of the role that stops them.
pub fn stop_jobs(
    memory: &mut Memory,
    uuid: &[u8; 16],
    is_allowed: impl Fn(BatchPtr) -> bool,
    role: &[u8],
) -> Vec<([u8; 16], State)> {
    let mut jobs = Vec::new();
    for found in snapshot::find(memory, uuid).into_iter().filter(|found| is_allowed(found.batch)) {
        let indexes = snapshot::of_batch(memory, &found).into_iter();
        jobs.extend(indexes.map(|index| (found.batch, index, snapshot::uuid_of_job(memory, found.batch, index))));
    }
    jobs.into_iter().map(|(batch, index, uuid)| (uuid, stop_job(memory, batch, index, &uuid, role))).collect()
}

/// Stops a job in the name of a role: a queued one is out of the queue, one that runs is cancelled. Gives what it was;
/// `Running` = somebody will see to it.
fn stop_job(memory: &mut Memory, place: BatchPtr, index: u32, uuid: &[u8; 16], role: &[u8]) -> State {
    let is_there = |memory: &Memory| lists::batches_of_uuid(memory, uuid).any(|at| at == place);
    if !is_there(memory) {
        return State::Stopped;
    }
    let state = State::from_byte(lists::job(memory, place, index).state);
    if state.is_final() {
        return state;
    }
    let stopper = stopped_by::requester_number(memory, place, role);
    // Without memory for it, all may have ended in the meantime, and be forgotten.
    if stopper.is_none() && !is_there(memory) {
        return State::Stopped;
    }
    let job = *lists::job(memory, place, index);
    let state = State::from_byte(job.state);
    match state {
        State::Queued => {
            lists::job_mut(memory, place, index).stop_requester = stopper.unwrap_or(0);
            stop_if_queued(memory, place, index, Reason::Stopped);
        }
        State::Running => {
            let is_uncancellable =
                slots(memory).get((job.slot as usize).wrapping_sub(1)).is_none_or(|slot| slot.is_uncancellable != 0);
            if job.is_stopping == 0 {
                let job = lists::job_mut(memory, place, index);
                (job.is_stopping, job.reason, job.stop_requester) = (1, Reason::Cancelled as u8, stopper.unwrap_or(0));
            }
            if !is_uncancellable {
                // The worker leaves this state under the lock that is held here: the signal reaches this job, or none.
                process::cancel(job.pid);
            }
        }
        _ => {}
    }
    watchers::wake(memory, place);
    state
}

/// Stops every queued job of a batch that nobody has claimed or that is only claimed.
pub fn stop_queued(memory: &mut Memory, place: BatchPtr, reason: Reason) {
    for index in 0..memory.get(place).jobs {
        stop_if_queued(memory, place, index, reason);
    }
}

pub fn stop_if_queued(memory: &mut Memory, place: BatchPtr, index: u32, reason: Reason) -> bool {
    let job = lists::job_mut(memory, place, index);
    if job.state != State::Queued as u8 {
        return false;
    }
    let is_claimed = job.slot != 0;
    job.state = State::Stopped as u8;
    job.reason = reason as u8;
    job.slot = 0;
    job.ended = process::now();
    batches::count_unlogged(memory, place, 1);
    let batch = memory.get_mut(place);
    let database = batch.database;
    if !is_claimed {
        batch.queued -= 1;
        // Others of it may have waited for this one.
        ready_lists::update_queue_state(memory, place);
    }
    slots::wake_log_writers(memory, database);
    true
}

/// Ends the processes that run these jobs, if they still do.
pub fn terminate_jobs(memory: &mut Memory, jobs: &HashSet<[u8; 16]>) {
    let is_meant = |slot: &WorkerSlot| {
        slot.state() == WorkerState::RunningQueued
            && !slot.batch.is_null()
            && slot.has_handle != 0
            && jobs.contains(&crate::registry::uuid_of_job(memory, slot.batch, slot.job))
    };
    let found: Vec<usize> =
        slots(memory).iter().enumerate().filter(|(_, slot)| is_meant(slot)).map(|(index, _)| index).collect();
    for index in found {
        if let Some(slot) = slot_mut(memory, index) {
            slot.no_restart = 1;
            // Should the job end by itself now, it is to begin no other.
            slot.exit_requested = 1;
            WorkerHandle::from_words(slot.handle).terminate();
        }
    }
}

/// Returns who wants the job stopped that runs in this place: a role, if it is known. None = nobody.
pub fn stop_request(memory: &Memory, index: usize) -> Option<Option<Vec<u8>>> {
    let slot =
        slots(memory).get(index).filter(|slot| slot.state() == WorkerState::RunningQueued && !slot.batch.is_null())?;
    let job = lists::job(memory, slot.batch, slot.job);
    (job.is_stopping != 0).then(|| stopped_by::of_job(memory, slot.batch, job).map(<[u8]>::to_vec))
}
