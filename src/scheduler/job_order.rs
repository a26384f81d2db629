//! Order of jobs: the next job of a batch, how many jobs could start now, and which final rows are to be written.

use crate::ffi::area::Memory;
use crate::ids::DatabaseId;
use crate::registry::layout::{BatchPtr, BatchRecord, PoolPtr, Root, State, WorkerSlot, WorkerState};
use crate::registry::root::slots;
use crate::registry::{lists, ready_lists};
use crate::time::Timestamp;
use std::time::Duration;

/// Upper bound on the batches examined per claim.
pub const MAX_EXAMINED: usize = 256;

/// Returns how many more workers may work on a batch.
pub fn free_concurrency(memory: &Memory, batch: BatchPtr) -> u32 {
    let record = memory.get(batch);
    let limit = if record.is_sequential != 0 { 1 } else { record.max_workers };
    limit.saturating_sub(record.workers)
}

/// Returns the next job of the batch and the time at which it is due, which may not have come, or `None` if no job is
/// left. Jobs that wait for another attempt come first when they are due.
fn next_job(memory: &mut Memory, batch: BatchPtr, now: Timestamp) -> Option<(u32, Timestamp)> {
    let retry = loop {
        let first = memory.get(batch).retry_head;
        if first == 0 {
            break None;
        }
        let job = *lists::job(memory, batch, first - 1);
        if job.state == State::Queued as u8 && job.slot == 0 {
            break Some((first - 1, job.not_before));
        }
        memory.get_mut(batch).retry_head = job.next_retry;
    };
    let (mut next, count, is_sequential) = {
        let record = memory.get(batch);
        (record.next, record.jobs, record.is_sequential != 0)
    };
    while next < count && lists::job(memory, batch, next).state != State::Queued as u8 {
        next += 1;
    }
    memory.get_mut(batch).next = next;
    match retry {
        // In a sequential batch, no job overtakes one that waits for another attempt.
        Some((job, not_before)) if not_before <= now || next == count || is_sequential => Some((job, not_before)),
        _ if next < count => Some((next, lists::job(memory, batch, next).not_before)),
        _ => None,
    }
}

/// Takes the next job that may start now, or returns `None` if there is none.
pub fn take_next_job(memory: &mut Memory, batch: BatchPtr, now: Timestamp) -> Option<u32> {
    let (index, _) = next_job(memory, batch, now).filter(|(_, due)| *due <= now)?;
    let next_retry = lists::job(memory, batch, index).next_retry;
    let record = memory.get_mut(batch);
    if record.retry_head == index + 1 {
        record.retry_head = next_retry;
        lists::job_mut(memory, batch, index).next_retry = 0;
    } else {
        record.next = index + 1;
    }
    Some(index)
}

/// Puts a job that was taken back into the queue. `not_before`: time before which it must not start.
pub fn requeue(memory: &mut Memory, batch: BatchPtr, index: u32, not_before: Timestamp) {
    let (first, last) = (memory.get(batch).retry_head, memory.get(batch).retry_tail);
    // Delays are mostly the same, so that the job comes last.
    let is_last = first != 0 && last != 0 && lists::job(memory, batch, last - 1).not_before <= not_before;
    let (mut before, mut at) = if is_last { (last, 0) } else { (0, first) };
    while at != 0 && lists::job(memory, batch, at - 1).not_before <= not_before {
        before = at;
        at = lists::job(memory, batch, at - 1).next_retry;
    }
    let job = lists::job_mut(memory, batch, index);
    job.state = State::Queued as u8;
    job.slot = 0;
    job.not_before = not_before;
    job.next_retry = at;
    match before {
        0 => memory.get_mut(batch).retry_head = index + 1,
        before => lists::job_mut(memory, batch, before - 1).next_retry = index + 1,
    }
    let record = memory.get_mut(batch);
    if at == 0 {
        record.retry_tail = index + 1;
    }
    record.queued += 1;
    ready_lists::update_queue_state(memory, batch);
}

/// Run time of a job after which other workers may run the rest of its claim.
const RELEASE_CLAIM_AFTER: Duration = Duration::from_millis(20);

/// Returns the time at which the job of a busy worker started, or `None` if the worker runs no queued job.
pub fn busy_since(memory: &Memory, slot: &WorkerSlot) -> Option<Timestamp> {
    (slot.state() == WorkerState::RunningQueued).then(|| lists::job(memory, slot.batch, slot.job).started)
}

/// Returns the time from which other workers could run the rest of a busy worker's claim, as its job has run for too
/// long.
fn overdue_from(memory: &Memory, slot: &WorkerSlot) -> Option<Timestamp> {
    busy_since(memory, slot)
        .filter(|_| free_concurrency(memory, slot.batch) > 0)
        .map(|started| started + RELEASE_CLAIM_AFTER)
}

/// Returns the jobs that a busy worker has claimed and not started.
fn claimed<'a>(memory: &'a Memory, index: usize, slot: &WorkerSlot) -> impl Iterator<Item = u32> + 'a {
    let batch = slot.batch;
    let after = move |job: u32| lists::job(memory, batch, job).next_retry.checked_sub(1);
    std::iter::successors(after(slot.job), move |job| after(*job)).filter(move |job| {
        let job = lists::job(memory, batch, *job);
        job.state == State::Queued as u8 && job.slot == index as u32 + 1
    })
}

/// Puts claimed jobs back into the queue that wait for a long job of the same claim to end.
pub fn release_overdue_claims(memory: &mut Memory, now: Timestamp) {
    for index in 0..slots(memory).len() {
        let slot = slots(memory)[index];
        if overdue_from(memory, &slot).is_none_or(|due| due > now) {
            continue;
        }
        let overdue: Vec<u32> = claimed(memory, index, &slot).collect();
        lists::job_mut(memory, slot.batch, slot.job).next_retry = 0;
        for job in overdue {
            requeue(memory, slot.batch, job, Timestamp::NONE);
        }
    }
}

/// Returns the time at which the next claim of the pool is overdue, or `None` if there is none.
pub fn next_overdue_claim(memory: &Memory, pool: PoolPtr) -> Option<Timestamp> {
    let slots = slots(memory).iter().enumerate().filter(|(_, slot)| slot.pool == pool);
    let due = slots.filter_map(|(index, slot)| {
        let due = overdue_from(memory, slot)?;
        claimed(memory, index, slot).next().map(|_| due)
    });
    due.min()
}

/// Returns the batches of a pool from which a worker could take a job now, oldest first, and at most `most`.
pub fn runnable_batches(memory: &mut Memory, pool: PoolPtr, now: Timestamp, most: usize) -> Vec<BatchPtr> {
    ready_lists::move_due_to_ready(memory, pool, now);
    let mut runnable = Vec::new();
    let mut next = memory.get(pool).ready_head;
    while !next.is_null() && runnable.len() < most {
        let batch = next;
        next = memory.get(batch).next_in_queue;
        match next_job(memory, batch, now) {
            Some((_, due)) if due > now => ready_lists::delay_until(memory, batch, due),
            Some(_) if free_concurrency(memory, batch) > 0 => runnable.push(batch),
            _ => {}
        }
    }
    runnable
}

/// Counts the workers of a pool that could start a job now, up to `enough`.
pub fn runnable_jobs(memory: &mut Memory, pool: PoolPtr, now: Timestamp, enough: u32) -> u32 {
    let mut total = 0;
    // Each of these batches could have at least one worker.
    for batch in runnable_batches(memory, pool, now, MAX_EXAMINED.min(enough as usize)) {
        // Jobs that wait for another attempt may not be due; a superfluous worker finds that out.
        total += free_concurrency(memory, batch).min(memory.get(batch).queued);
        if total >= enough {
            return enough;
        }
    }
    total
}

/// Returns the batches whose jobs may run.
fn open_batches(memory: &Memory) -> impl Iterator<Item = &BatchRecord> {
    lists::batches(memory).map(|batch| memory.get(batch)).filter(|record| record.is_open != 0)
}

/// Returns whether a job is queued, or a final row is still to be written.
pub fn has_work(memory: &Memory) -> bool {
    is_queued(memory) || unlogged(memory).any(|batch| memory.get(batch).is_open != 0)
}

/// Returns whether any job is queued.
pub fn is_queued(memory: &Memory) -> bool {
    lists::pools(memory).any(|pool| memory.get(pool).has_queue())
}

/// Returns the batches with final rows to write.
pub fn unlogged(memory: &Memory) -> impl Iterator<Item = BatchPtr> + '_ {
    // There are seldom any, among perhaps many: the search ends with the last one.
    let count = if memory.root::<Root>().is_null() { 0 } else { memory.get(memory.root::<Root>()).unlogged };
    lists::batches(memory).filter(|batch| memory.get(*batch).unlogged > 0).take(count as usize)
}

/// Returns whether a session waits for queued jobs. It has workers started when the server has processes for them.
pub fn is_awaited(memory: &Memory) -> bool {
    open_batches(memory).any(|record| record.queued > 0 && !record.watchers.is_null())
}

/// Returns a batch of this database with final rows to write now, or `None` if there is none.
pub fn batch_to_log(memory: &Memory, database: DatabaseId, now: Timestamp) -> Option<BatchPtr> {
    unlogged(memory).find(|batch| {
        let record = memory.get(*batch);
        record.database == database && record.log_writer == 0 && record.retry_log_at <= now
    })
}

/// Returns the time at which the next final rows of this database are to be tried, or `None` if there are none.
pub fn next_log_write(memory: &Memory, database: DatabaseId) -> Option<Timestamp> {
    let batches = unlogged(memory).map(|batch| memory.get(batch));
    batches.filter(|record| record.database == database).map(|record| record.retry_log_at).min()
}

/// Returns the number of a new turn.
pub fn next_turn(memory: &mut Memory) -> u64 {
    let root = memory.root::<Root>();
    let record = memory.get_mut(root);
    record.last_turn += 1;
    record.last_turn
}
