//! Who waits for changes of a batch.

use super::lists;
use super::record::{Batch, Place, Watcher};
use crate::ffi::area::Memory;
use crate::ffi::process;

/// Wakes this process when something of the batch changes. False = there is no memory for that.
pub fn watch(memory: &mut Memory, uuid: &[u8; 16]) -> bool {
    let places: Vec<Place> = lists::batches_of_uuid(memory, uuid).collect();
    for place in places {
        let Some(watcher) = memory.allocate(size_of::<Watcher>()) else { return false };
        let next = memory.get::<Batch>(place).watchers;
        *memory.get_mut::<Watcher>(watcher) = Watcher { next, process: process::own(), is_listening: 1 };
        memory.get_mut::<Batch>(place).watchers = watcher;
    }
    true
}

/// Takes that back; a batch that is gone has taken its watchers along.
pub fn unwatch(memory: &mut Memory, uuid: &[u8; 16]) {
    let own = process::own();
    let places: Vec<Place> = lists::batches_of_uuid(memory, uuid).collect();
    for place in places {
        let mut kept = 0;
        let mut at = std::mem::take(&mut memory.get_mut::<Batch>(place).watchers);
        while at != 0 {
            let watcher = *memory.get::<Watcher>(at);
            if watcher.process == own {
                memory.free(at);
            } else {
                memory.get_mut::<Watcher>(at).next = kept;
                kept = at;
            }
            at = watcher.next;
        }
        memory.get_mut::<Batch>(place).watchers = kept;
    }
}

/// Forgets those of a batch.
pub(super) fn forget(memory: &mut Memory, place: Place) {
    let mut at = std::mem::take(&mut memory.get_mut::<Batch>(place).watchers);
    while at != 0 {
        let next = memory.get::<Watcher>(at).next;
        memory.free(at);
        at = next;
    }
}

/// The next change wakes this process again.
pub fn listen(memory: &mut Memory, uuid: &[u8; 16]) {
    let own = process::own();
    let places: Vec<Place> = lists::batches_of_uuid(memory, uuid).collect();
    for place in places {
        let mut at = memory.get::<Batch>(place).watchers;
        while at != 0 {
            let watcher = memory.get_mut::<Watcher>(at);
            if watcher.process == own {
                watcher.is_listening = 1;
            }
            at = watcher.next;
        }
    }
}

/// Wakes all that watch a batch and have looked since they were woken.
pub fn wake(memory: &mut Memory, place: Place) {
    let mut at = memory.get::<Batch>(place).watchers;
    while at != 0 {
        let watcher = memory.get_mut::<Watcher>(at);
        if std::mem::take(&mut watcher.is_listening) != 0 {
            process::wake(watcher.process);
        }
        at = watcher.next;
    }
}
