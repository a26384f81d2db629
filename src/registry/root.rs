//! Root record of the registry, and the table of worker slots.

use crate::error::Error;
use crate::ffi::area::Memory;
use crate::ffi::bgworker;
use crate::registry::layout::{Root, WorkerSlot};

/// Returns the root record, or `None` if it was never created.
pub fn root(memory: &Memory) -> Option<&Root> {
    memory.root().some().map(|root| memory.get(root))
}

/// Returns the root record, to be changed, or `None` if it was never created.
pub fn root_mut(memory: &mut Memory) -> Option<&mut Root> {
    memory.root().some().map(|root| memory.get_mut(root))
}

/// Returns the root record, and creates it if there is none.
///
/// # Errors
/// [`Error::SharedMemory`] (53200)
pub fn get_or_create_root(memory: &mut Memory) -> Result<&mut Root, Error> {
    if memory.root::<Root>().is_null() {
        // An exiting worker and its successor have a slot each.
        let count = 2 * usize::try_from(bgworker::max_worker_processes()).unwrap_or(0) + 2;
        let root = memory.allocate::<Root>().ok_or(Error::SharedMemory)?;
        let Some(slots) = memory.allocate_array(count) else {
            memory.free(root);
            return Err(Error::SharedMemory);
        };
        memory.get_mut(root).slots = slots;
        memory.set_root(root);
    }
    Ok(memory.get_mut(memory.root()))
}

/// Returns all worker slots.
pub fn slots(memory: &Memory) -> &[WorkerSlot] {
    root(memory).map_or(&[], |root| memory.slice(root.slots))
}

/// Returns a worker slot, to be changed, or `None` if there is none with this index.
pub fn slot_mut(memory: &mut Memory, index: usize) -> Option<&mut WorkerSlot> {
    let slots = root(memory)?.slots;
    memory.slice_mut(slots).get_mut(index)
}
