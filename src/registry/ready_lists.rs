//! The batches of a pool that have queued jobs, in two lists: those that are ready for a worker, oldest first, and
//! those that are delayed until a time, soonest first. There may be very many delayed ones, which nobody has to look
//! through.

use crate::ffi::area::Memory;
use crate::registry::layout::{BatchPtr, Pool, PoolPtr, QueueState};

/// Puts a batch into the list where it belongs after a change: into none if nothing of it is queued, else behind those
/// that are ready, unless it is one of them. Whether it has to be delayed is seen when a worker looks for jobs.
pub fn update_queue_state(memory: &mut Memory, place: BatchPtr) {
    let batch = memory.get(place);
    let (pool, is_queued) = (batch.pool, batch.queued > 0 && batch.is_open != 0);
    if is_queued && batch.queue_state() == QueueState::Ready {
        return;
    }
    remove(memory, place);
    if is_queued {
        let last = memory.get(pool).ready_tail;
        insert(memory, place, last, QueueState::Ready);
    }
}

/// Delays a batch until a time: microseconds as the server counts them.
pub fn delay_until(memory: &mut Memory, place: BatchPtr, due: i64) {
    remove(memory, place);
    let mut before = memory.get(memory.get(place).pool).delayed_tail;
    // Delays are the same, mostly.
    while !before.is_null() && memory.get(before).due > due {
        before = memory.get(before).previous_in_queue;
    }
    memory.get_mut(place).due = due;
    insert(memory, place, before, QueueState::Delayed);
}

/// Moves batches whose time has come to those that are ready, in the order of their age.
pub fn move_due_to_ready(memory: &mut Memory, pool: PoolPtr, now: i64) {
    let mut due: Vec<(u64, BatchPtr)> = Vec::new();
    let mut next_due = memory.get(pool).delayed_head;
    while !next_due.is_null() && memory.get(next_due).due <= now {
        let batch = memory.get(next_due);
        due.push((batch.number, next_due));
        next_due = batch.next_in_queue;
    }
    due.sort_unstable_by_key(|(number, _)| *number);
    let (mut before, mut next) = (BatchPtr::NULL, memory.get(pool).ready_head);
    for (number, place) in due {
        while !next.is_null() && memory.get(next).number < number {
            before = next;
            next = memory.get(next).next_in_queue;
        }
        remove(memory, place);
        insert(memory, place, before, QueueState::Ready);
        before = place;
    }
}

/// Returns the time until which the first delayed batch of the pool waits.
pub fn next_due(memory: &Memory, pool: PoolPtr) -> Option<i64> {
    memory.get(pool).delayed_head.some().map(|first| memory.get(first).due)
}

/// Takes a batch out of its list.
pub fn remove(memory: &mut Memory, place: BatchPtr) {
    let batch = memory.get_mut(place);
    let queue_state = batch.queue_state();
    batch.queue_state = QueueState::NotQueued as u8;
    let (pool, previous, next) = (batch.pool, batch.previous_in_queue, batch.next_in_queue);
    link(memory, pool, queue_state, previous, next);
}

/// Puts a batch that is in no list behind `previous`, or before all others if that is null.
fn insert(memory: &mut Memory, place: BatchPtr, previous: BatchPtr, queue_state: QueueState) {
    let pool = memory.get(place).pool;
    let next = match previous.some() {
        None => list_ends(memory.get_mut(pool), queue_state).map_or(BatchPtr::NULL, |(first, _)| *first),
        Some(previous) => memory.get(previous).next_in_queue,
    };
    memory.get_mut(place).queue_state = queue_state as u8;
    link(memory, pool, queue_state, previous, place);
    link(memory, pool, queue_state, place, next);
}

/// Makes two batches neighbours in a list of the pool; null is its end.
fn link(memory: &mut Memory, pool: PoolPtr, queue_state: QueueState, previous: BatchPtr, next: BatchPtr) {
    let Some((first, last)) = list_ends(memory.get_mut(pool), queue_state) else { return };
    if previous.is_null() {
        *first = next;
    }
    if next.is_null() {
        *last = previous;
    }
    if !previous.is_null() {
        memory.get_mut(previous).next_in_queue = next;
    }
    if !next.is_null() {
        memory.get_mut(next).previous_in_queue = previous;
    }
}

/// Returns the first and the last batch of a list of a pool.
fn list_ends(pool: &mut Pool, queue_state: QueueState) -> Option<(&mut BatchPtr, &mut BatchPtr)> {
    match queue_state {
        QueueState::NotQueued => None,
        QueueState::Ready => Some((&mut pool.ready_head, &mut pool.ready_tail)),
        QueueState::Delayed => Some((&mut pool.delayed_head, &mut pool.delayed_tail)),
    }
}
