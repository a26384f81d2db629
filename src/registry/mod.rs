//! Jobs of the whole server, in shared memory: batches, their jobs, the queue, the workers.
//!
//! A job is here from its acceptance until its final row is in the log. Everything is looked at and changed under one
//! lock; nothing here waits, and nothing here talks to the catalogs.

pub mod batches;
pub mod layout;
pub mod lists;
pub mod outcomes;
pub mod ready_lists;
pub mod snapshot;
pub mod stopped_by;
pub mod watchers;

use crate::error::Error;
use crate::ffi::area::Memory;
use crate::ffi::bgworker;
pub use crate::registry::batches::{
    add_batch, discard_unstarted_batch, open_batch, unwatch, unwatch_all, NewBatch, NewJob,
};
pub use crate::registry::layout::{Place, Reason, State, WakeOn, MESSAGE_BYTES};
use crate::registry::layout::{Root, WorkerSlot};
pub use crate::registry::lists::{job_uuid, ordinal_of};
pub use crate::registry::snapshot::{
    accepted_at, batch_summaries, find, is_pending, job_of, jobs_of, live_states, log_location, of_batch, query_of,
    request, running, snapshot, statuses, uuid_of_job, BatchSummary, FoundJobs, JobDetails, JobStatus, LiveState,
    Recorded, Running, RunningJob,
};
pub use crate::registry::watchers::{arm, awaited_by, is_armed, unfollow, watch, Follower};

/// Finds the beginning, and makes it if nobody has.
///
/// # Errors
/// [`Error::SharedMemory`] (53200)
pub fn root(memory: &mut Memory) -> Result<Place, Error> {
    if memory.root() != 0 {
        return Ok(memory.root());
    }
    // A worker on its way out and its successor have a place each.
    let count = 2 * usize::try_from(bgworker::max_worker_processes()).unwrap_or(0) + 2;
    let root = memory.allocate(size_of::<Root>()).ok_or(Error::SharedMemory)?;
    let Some(slots) = memory.allocate(count * size_of::<WorkerSlot>()) else {
        memory.free(root);
        return Err(Error::SharedMemory);
    };
    let record = memory.get_mut::<Root>(root);
    record.slots = slots;
    record.slot_count = count as u64;
    memory.set_root(root);
    Ok(root)
}

pub fn slots(memory: &Memory) -> &[WorkerSlot] {
    if memory.root() == 0 {
        return &[];
    }
    let root = memory.get::<Root>(memory.root());
    memory.slice(root.slots, root.slot_count as usize)
}

pub fn slot_mut(memory: &mut Memory, index: usize) -> Option<&mut WorkerSlot> {
    if memory.root() == 0 {
        return None;
    }
    let (place, count) = {
        let root = memory.get::<Root>(memory.root());
        (root.slots, root.slot_count as usize)
    };
    memory.slice_mut::<WorkerSlot>(place, count).get_mut(index)
}
