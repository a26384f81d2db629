//! The batches of a pool that have queued jobs, in two lists: those that wait for a worker, oldest first, and those
//! that wait for their time, soonest first. Of these there may be very many, which nobody has to look through.

use crate::ffi::area::Memory;
use crate::registry::layout::{BatchRecord, Place, Pool, QueueState};

/// Puts a batch where it belongs after a change: nowhere if nothing of it is queued, else behind those that wait for a
/// worker, unless it is there. Whether it has to wait for its time is seen when somebody looks for work.
pub fn update_queue_state(memory: &mut Memory, place: Place) {
    let batch = memory.get::<BatchRecord>(place);
    let (pool, is_queued) = (batch.pool, batch.queued > 0 && batch.is_open != 0);
    if is_queued && batch.queue_state() == QueueState::Ready {
        return;
    }
    remove(memory, place);
    if is_queued {
        let last = memory.get::<Pool>(pool).ready_tail;
        insert(memory, place, last, QueueState::Ready);
    }
}

/// The batch waits for its time: microseconds as the server counts them.
pub fn delay_until(memory: &mut Memory, place: Place, due: i64) {
    remove(memory, place);
    let mut before = memory.get::<Pool>(memory.get::<BatchRecord>(place).pool).delayed_tail;
    // Delays are the same, mostly.
    while before != 0 && memory.get::<BatchRecord>(before).due > due {
        before = memory.get::<BatchRecord>(before).previous_in_queue;
    }
    memory.get_mut::<BatchRecord>(place).due = due;
    insert(memory, place, before, QueueState::Delayed);
}

/// Puts batches whose time has come among those that wait for a worker, in the order of their age.
pub fn move_due_to_ready(memory: &mut Memory, pool: Place, now: i64) {
    let mut due: Vec<(u64, Place)> = Vec::new();
    let mut delayed_head = memory.get::<Pool>(pool).delayed_head;
    while delayed_head != 0 && memory.get::<BatchRecord>(delayed_head).due <= now {
        let batch = memory.get::<BatchRecord>(delayed_head);
        due.push((batch.number, delayed_head));
        delayed_head = batch.next_in_queue;
    }
    due.sort_unstable();
    let (mut before, mut next) = (0, memory.get::<Pool>(pool).ready_head);
    for (number, place) in due {
        while next != 0 && memory.get::<BatchRecord>(next).number < number {
            before = next;
            next = memory.get::<BatchRecord>(next).next_in_queue;
        }
        remove(memory, place);
        insert(memory, place, before, QueueState::Ready);
        before = place;
    }
}

/// Returns the time at which the next batch of the pool that waits for its time may start.
pub fn next_due(memory: &Memory, pool: Place) -> Option<i64> {
    let delayed_head = memory.get::<Pool>(pool).delayed_head;
    (delayed_head != 0).then(|| memory.get::<BatchRecord>(delayed_head).due)
}

/// Takes a batch out.
pub fn remove(memory: &mut Memory, place: Place) {
    let batch = memory.get_mut::<BatchRecord>(place);
    let queue_state = batch.queue_state();
    batch.queue_state = QueueState::NotQueued as u8;
    let (pool, previous, next) = (batch.pool, batch.previous_in_queue, batch.next_in_queue);
    link(memory, pool, queue_state, previous, next);
}

/// Puts a batch that is in no list behind `previous`; 0 = before all.
fn insert(memory: &mut Memory, place: Place, previous: Place, queue_state: QueueState) {
    let pool = memory.get::<BatchRecord>(place).pool;
    let next = match previous {
        0 => list_ends(memory.get_mut::<Pool>(pool), queue_state).map_or(0, |(first, _)| *first),
        _ => memory.get::<BatchRecord>(previous).next_in_queue,
    };
    memory.get_mut::<BatchRecord>(place).queue_state = queue_state as u8;
    link(memory, pool, queue_state, previous, place);
    link(memory, pool, queue_state, place, next);
}

/// Makes two batches neighbours in a list of the pool; 0 = its end.
fn link(memory: &mut Memory, pool: Place, queue_state: QueueState, previous: Place, next: Place) {
    let Some((first, last)) = list_ends(memory.get_mut::<Pool>(pool), queue_state) else { return };
    if previous == 0 {
        *first = next;
    }
    if next == 0 {
        *last = previous;
    }
    if previous != 0 {
        memory.get_mut::<BatchRecord>(previous).next_in_queue = next;
    }
    if next != 0 {
        memory.get_mut::<BatchRecord>(next).previous_in_queue = previous;
    }
}

/// Returns where a list of a pool begins, and where it ends.
fn list_ends(pool: &mut Pool, queue_state: QueueState) -> Option<(&mut Place, &mut Place)> {
    match queue_state {
        QueueState::NotQueued => None,
        QueueState::Ready => Some((&mut pool.ready_head, &mut pool.ready_tail)),
        QueueState::Delayed => Some((&mut pool.delayed_head, &mut pool.delayed_tail)),
    }
}
