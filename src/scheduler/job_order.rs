//! Next work: the order of the jobs of a batch, how many could start now, which final rows are to be written.

use crate::ffi::area::Memory;
use crate::registry::layout::{BatchPtr, BatchRecord, PoolPtr, Root, State, WorkerSlot, WorkerState};
use crate::registry::root::slots;
use crate::registry::{lists, ready_lists};

/// More batches than anybody looks at who looks for work.
pub const MAX_EXAMINED: usize = 256;

/// Returns how many more workers may work on a batch.
pub fn free_concurrency(memory: &Memory, place: BatchPtr) -> u32 {
    let batch = memory.get(place);
    let limit = if batch.is_sequential != 0 { 1 } else { batch.max_workers };
    limit.saturating_sub(batch.workers)
}

/// The job of the batch that comes next, whether its time has come or not, and when it comes. Jobs that wait for
/// another attempt come first when they are due.
fn next_job(memory: &mut Memory, place: BatchPtr, now: i64) -> Option<(u32, i64)> {
    let again = loop {
        let first = memory.get(place).retry_head;
        if first == 0 {
            break None;
        }
        let job = *lists::job(memory, place, first - 1);
        if job.state == State::Queued as u8 && job.slot == 0 {
            break Some((first - 1, job.not_before));
        }
        memory.get_mut(place).retry_head = job.next_retry;
    };
    let (mut next, count, is_sequential) = {
        let batch = memory.get(place);
        (batch.next, batch.jobs, batch.is_sequential != 0)
    };
    while next < count && lists::job(memory, place, next).state != State::Queued as u8 {
        next += 1;
    }
    memory.get_mut(place).next = next;
    match again {
        // In a sequential batch nothing overtakes a job that waits for another attempt.
        Some((job, not_before)) if not_before <= now || next == count || is_sequential => Some((job, not_before)),
        _ if next < count => Some((next, lists::job(memory, place, next).not_before)),
        _ => None,
    }
}

/// Takes the next job that may start now.
pub fn take_next_job(memory: &mut Memory, place: BatchPtr, now: i64) -> Option<u32> {
    let (index, _) = next_job(memory, place, now).filter(|(_, due)| *due <= now)?;
    let again = lists::job(memory, place, index).next_retry;
    let record = memory.get_mut(place);
    if record.retry_head == index + 1 {
        record.retry_head = again;
        lists::job_mut(memory, place, index).next_retry = 0;
    } else {
        record.next = index + 1;
    }
    Some(index)
}

/// Puts a job that was taken back among the queued.
pub fn requeue(memory: &mut Memory, place: BatchPtr, index: u32, not_before: i64) {
    let (first, last) = (memory.get(place).retry_head, memory.get(place).retry_tail);
    // Delays are the same, mostly, so that it comes behind all others.
    let is_last = first != 0 && last != 0 && lists::job(memory, place, last - 1).not_before <= not_before;
    let (mut before, mut at) = if is_last { (last, 0) } else { (0, first) };
    while at != 0 && lists::job(memory, place, at - 1).not_before <= not_before {
        before = at;
        at = lists::job(memory, place, at - 1).next_retry;
    }
    let job = lists::job_mut(memory, place, index);
    job.state = State::Queued as u8;
    job.slot = 0;
    job.not_before = not_before;
    job.next_retry = at;
    match before {
        0 => memory.get_mut(place).retry_head = index + 1,
        before => lists::job_mut(memory, place, before - 1).next_retry = index + 1,
    }
    let record = memory.get_mut(place);
    if at == 0 {
        record.retry_tail = index + 1;
    }
    record.queued += 1;
    ready_lists::update_queue_state(memory, place);
}

/// Time that a job runs before those that its worker has claimed with it are free for others, in microseconds.
const RELEASE_CLAIM_AFTER: i64 = 20_000;

/// Returns the time since which a busy worker runs its job.
pub fn busy_since(memory: &Memory, slot: &WorkerSlot) -> Option<i64> {
    (slot.state() == WorkerState::RunningQueued).then(|| lists::job(memory, slot.batch, slot.job).started)
}

/// Returns the time from which the job of a busy worker has run for so long that others could run what was claimed with
/// it.
fn overdue_from(memory: &Memory, slot: &WorkerSlot) -> Option<i64> {
    busy_since(memory, slot)
        .filter(|_| free_concurrency(memory, slot.batch) > 0)
        .map(|started| started + RELEASE_CLAIM_AFTER)
}

/// The jobs that a busy worker has claimed and not begun.
fn claimed<'a>(memory: &'a Memory, index: usize, slot: &WorkerSlot) -> impl Iterator<Item = u32> + 'a {
    let batch = slot.batch;
    let after = move |job: u32| lists::job(memory, batch, job).next_retry.checked_sub(1);
    std::iter::successors(after(slot.job), move |job| after(*job)).filter(move |job| {
        let job = lists::job(memory, batch, *job);
        job.state == State::Queued as u8 && job.slot == index as u32 + 1
    })
}

/// Puts jobs back in the queue that wait for the end of a long one, as they were claimed by the same worker.
pub fn release_overdue_claims(memory: &mut Memory, now: i64) {
    for index in 0..slots(memory).len() {
        let slot = slots(memory)[index];
        if overdue_from(memory, &slot).is_none_or(|due| due > now) {
            continue;
        }
        let held_up: Vec<u32> = claimed(memory, index, &slot).collect();
        lists::job_mut(memory, slot.batch, slot.job).next_retry = 0;
        for job in held_up {
            requeue(memory, slot.batch, job, 0);
        }
    }
}

/// Returns the time at which the next jobs of the pool are held up.
pub fn next_overdue_claim(memory: &Memory, pool: PoolPtr) -> Option<i64> {
    let slots = slots(memory).iter().enumerate().filter(|(_, slot)| slot.pool == pool);
    let due = slots.filter_map(|(index, slot)| {
        let due = overdue_from(memory, slot)?;
        claimed(memory, index, slot).next().map(|_| due)
    });
    due.min()
}

/// The batches of a pool from which a worker could take a job now, oldest first: `most` at most.
pub fn runnable_batches(memory: &mut Memory, pool: PoolPtr, now: i64, most: usize) -> Vec<BatchPtr> {
    ready_lists::move_due_to_ready(memory, pool, now);
    let mut open = Vec::new();
    let mut next = memory.get(pool).ready_head;
    while !next.is_null() && open.len() < most {
        let place = next;
        next = memory.get(place).next_in_queue;
        match next_job(memory, place, now) {
            Some((_, due)) if due > now => ready_lists::delay_until(memory, place, due),
            Some(_) if free_concurrency(memory, place) > 0 => open.push(place),
            _ => {}
        }
    }
    open
}

/// Counts the workers of a pool that could start a job now, no further than to `enough`.
pub fn runnable_jobs(memory: &mut Memory, pool: PoolPtr, now: i64, enough: u32) -> u32 {
    let mut total = 0;
    // Each of them could have one worker at least.
    for place in runnable_batches(memory, pool, now, MAX_EXAMINED.min(enough as usize)) {
        // Jobs that wait for another attempt may not be due; a worker too many finds out.
        total += free_concurrency(memory, place).min(memory.get(place).queued);
        if total >= enough {
            return enough;
        }
    }
    total
}

/// The batches whose jobs may run.
fn open_batches(memory: &Memory) -> impl Iterator<Item = &BatchRecord> {
    lists::batches(memory).map(|place| memory.get(place)).filter(|batch| batch.is_open != 0)
}

/// Returns whether anything is queued, or still to be written to a log.
pub fn has_work(memory: &Memory) -> bool {
    is_queued(memory) || unlogged(memory).any(|place| memory.get(place).is_open != 0)
}

/// Returns whether any job is queued.
pub fn is_queued(memory: &Memory) -> bool {
    lists::pools(memory).any(|pool| memory.get(pool).has_queue())
}

/// The batches with final rows that are to be written.
pub fn unlogged(memory: &Memory) -> impl Iterator<Item = BatchPtr> + '_ {
    // Seldom any, of perhaps many.
    let count = if memory.root::<Root>().is_null() { 0 } else { memory.get(memory.root::<Root>()).unlogged };
    lists::batches(memory).filter(|place| memory.get(*place).unlogged > 0).take(count as usize)
}

/// Returns whether a session waits for what is queued. It has workers started when the server has processes for them.
pub fn is_awaited(memory: &Memory) -> bool {
    open_batches(memory).any(|batch| batch.queued > 0 && !batch.watchers.is_null())
}

/// A batch of this database with final rows to write.
pub fn batch_to_log(memory: &Memory, database: u32, now: i64) -> Option<BatchPtr> {
    unlogged(memory).find(|place| {
        let batch = memory.get(*place);
        batch.database == database && batch.log_writer == 0 && batch.retry_log_at <= now
    })
}

/// Returns the time at which final rows that could not be written in this database are to be tried again.
pub fn next_log_write(memory: &Memory, database: u32) -> Option<i64> {
    let batches = unlogged(memory).map(|place| memory.get(place));
    batches.filter(|batch| batch.database == database).map(|batch| batch.retry_log_at).min()
}

pub fn next_turn(memory: &mut Memory) -> u64 {
    let root = memory.root::<Root>();
    let record = memory.get_mut(root);
    record.last_turn += 1;
    record.last_turn
}
