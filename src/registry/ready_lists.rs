//! The batches of a key that have queued jobs, in two lists: those that wait for a worker, oldest first, and those
//! that wait for their time, soonest first. Of these there may be very many, which nobody has to look through.

use crate::ffi::area::Memory;
use crate::registry::layout::{Batch, Key, Place, Waits};

/// Puts a batch where it belongs after a change: nowhere if nothing of it is queued, else behind those that wait for a
/// worker, unless it is there. Whether it has to wait for its time is seen when somebody looks for work.
pub fn update(memory: &mut Memory, place: Place) {
    let batch = memory.get::<Batch>(place);
    let (key, is_queued) = (batch.key, batch.queued > 0 && batch.is_open != 0);
    if is_queued && batch.waits() == Waits::ForWorker {
        return;
    }
    leave(memory, place);
    if is_queued {
        let last = memory.get::<Key>(key).last;
        insert(memory, place, last, Waits::ForWorker);
    }
}

/// The batch waits for its time: microseconds as the server counts them.
pub fn wait_until(memory: &mut Memory, place: Place, due: i64) {
    leave(memory, place);
    let mut before = memory.get::<Key>(memory.get::<Batch>(place).key).latest;
    // Delays are the same, mostly.
    while before != 0 && memory.get::<Batch>(before).due > due {
        before = memory.get::<Batch>(before).previous_in_line;
    }
    memory.get_mut::<Batch>(place).due = due;
    insert(memory, place, before, Waits::ForTime);
}

/// Puts batches whose time has come among those that wait for a worker, in the order of their age.
pub fn come_due(memory: &mut Memory, key: Place, now: i64) {
    let mut due: Vec<(u64, Place)> = Vec::new();
    let mut soonest = memory.get::<Key>(key).soonest;
    while soonest != 0 && memory.get::<Batch>(soonest).due <= now {
        let batch = memory.get::<Batch>(soonest);
        due.push((batch.number, soonest));
        soonest = batch.next_in_line;
    }
    due.sort_unstable();
    let (mut before, mut next) = (0, memory.get::<Key>(key).first);
    for (number, place) in due {
        while next != 0 && memory.get::<Batch>(next).number < number {
            before = next;
            next = memory.get::<Batch>(next).next_in_line;
        }
        leave(memory, place);
        insert(memory, place, before, Waits::ForWorker);
        before = place;
    }
}

/// Returns the time at which the next batch of the key that waits for its time may start.
pub fn next_due(memory: &Memory, key: Place) -> Option<i64> {
    let soonest = memory.get::<Key>(key).soonest;
    (soonest != 0).then(|| memory.get::<Batch>(soonest).due)
}

/// Takes a batch out.
pub fn leave(memory: &mut Memory, place: Place) {
    let batch = memory.get_mut::<Batch>(place);
    let waits = batch.waits();
    batch.waits = Waits::NotAtAll as u8;
    let (key, previous, next) = (batch.key, batch.previous_in_line, batch.next_in_line);
    connect(memory, key, waits, previous, next);
}

/// Puts a batch that is in no list behind `previous`; 0 = before all.
fn insert(memory: &mut Memory, place: Place, previous: Place, waits: Waits) {
    let key = memory.get::<Batch>(place).key;
    let next = match previous {
        0 => ends(memory.get_mut::<Key>(key), waits).map_or(0, |(first, _)| *first),
        _ => memory.get::<Batch>(previous).next_in_line,
    };
    memory.get_mut::<Batch>(place).waits = waits as u8;
    connect(memory, key, waits, previous, place);
    connect(memory, key, waits, place, next);
}

/// Makes two batches neighbours in a list of the key; 0 = its end.
fn connect(memory: &mut Memory, key: Place, waits: Waits, previous: Place, next: Place) {
    let Some((first, last)) = ends(memory.get_mut::<Key>(key), waits) else { return };
    if previous == 0 {
        *first = next;
    }
    if next == 0 {
        *last = previous;
    }
    if previous != 0 {
        memory.get_mut::<Batch>(previous).next_in_line = next;
    }
    if next != 0 {
        memory.get_mut::<Batch>(next).previous_in_line = previous;
    }
}

/// Returns where a list of a key begins, and where it ends.
fn ends(key: &mut Key, waits: Waits) -> Option<(&mut Place, &mut Place)> {
    match waits {
        Waits::NotAtAll => None,
        Waits::ForWorker => Some((&mut key.first, &mut key.last)),
        Waits::ForTime => Some((&mut key.soonest, &mut key.latest)),
    }
}
