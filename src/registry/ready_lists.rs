//! Lists of a pool's batches with queued jobs: those that are ready for a worker, oldest first, and those that are
//! delayed until a time, soonest first. A search for jobs does not walk through the delayed ones, of which there may be
//! very many.

use crate::ffi::area::Memory;
use crate::registry::layout::{BatchPtr, Pool, PoolPtr, QueueState};
use crate::time::Timestamp;

/// Moves a batch to the list where it belongs after a change: to none if none of its jobs is queued, otherwise to the
/// end of the ready list, unless it is in that already. A worker that looks for jobs finds out whether the batch must
/// be delayed.
pub fn update_queue_state(memory: &mut Memory, batch: BatchPtr) {
    let record = memory.get(batch);
    let (pool, is_queued) = (record.pool, record.queued > 0 && record.is_open != 0);
    if is_queued && record.queue_state() == QueueState::Ready {
        return;
    }
    remove(memory, batch);
    if is_queued {
        let last = memory.get(pool).ready_tail;
        insert(memory, batch, last, QueueState::Ready);
    }
}

/// Delays a batch until a time.
pub fn delay_until(memory: &mut Memory, batch: BatchPtr, due: Timestamp) {
    remove(memory, batch);
    let mut before = memory.get(memory.get(batch).pool).delayed_tail;
    // Delays are mostly the same: the search begins at the end.
    while !before.is_null() && memory.get(before).due > due {
        before = memory.get(before).previous_in_queue;
    }
    memory.get_mut(batch).due = due;
    insert(memory, batch, before, QueueState::Delayed);
}

/// Moves batches whose time has come to the ready list, which is in the order of their age.
pub fn move_due_to_ready(memory: &mut Memory, pool: PoolPtr, now: Timestamp) {
    let mut due: Vec<(u64, BatchPtr)> = Vec::new();
    let mut next_due = memory.get(pool).delayed_head;
    while !next_due.is_null() && memory.get(next_due).due <= now {
        let record = memory.get(next_due);
        due.push((record.number, next_due));
        next_due = record.next_in_queue;
    }
    due.sort_unstable_by_key(|(number, _)| *number);
    let (mut before, mut next) = (BatchPtr::NULL, memory.get(pool).ready_head);
    for (number, batch) in due {
        while !next.is_null() && memory.get(next).number < number {
            before = next;
            next = memory.get(next).next_in_queue;
        }
        remove(memory, batch);
        insert(memory, batch, before, QueueState::Ready);
        before = batch;
    }
}

/// Returns the time until which the first delayed batch of the pool waits, or `None` if no batch is delayed.
pub fn next_due(memory: &Memory, pool: PoolPtr) -> Option<Timestamp> {
    memory.get(pool).delayed_head.some().map(|first| memory.get(first).due)
}

/// Removes a batch from its list.
pub fn remove(memory: &mut Memory, batch: BatchPtr) {
    let record = memory.get_mut(batch);
    let queue_state = record.queue_state();
    record.queue_state = QueueState::NotQueued as u8;
    let (pool, previous, next) = (record.pool, record.previous_in_queue, record.next_in_queue);
    link(memory, pool, queue_state, previous, next);
}

/// Inserts a batch that is in no list behind `previous`, or at the head if `previous` is null.
fn insert(memory: &mut Memory, batch: BatchPtr, previous: BatchPtr, queue_state: QueueState) {
    let pool = memory.get(batch).pool;
    let next = match previous.some() {
        None => list_ends(memory.get_mut(pool), queue_state).map_or(BatchPtr::NULL, |(first, _)| *first),
        Some(previous) => memory.get(previous).next_in_queue,
    };
    memory.get_mut(batch).queue_state = queue_state as u8;
    link(memory, pool, queue_state, previous, batch);
    link(memory, pool, queue_state, batch, next);
}

/// Links two neighbours in a list of the pool; null stands for the end of the list.
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

/// Returns the head and the tail of a list of the pool, or `None` for [`QueueState::NotQueued`].
fn list_ends(pool: &mut Pool, queue_state: QueueState) -> Option<(&mut BatchPtr, &mut BatchPtr)> {
    match queue_state {
        QueueState::NotQueued => None,
        QueueState::Ready => Some((&mut pool.ready_head, &mut pool.ready_tail)),
        QueueState::Delayed => Some((&mut pool.delayed_head, &mut pool.delayed_tail)),
    }
}
