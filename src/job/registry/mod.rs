//! Jobs of the whole server, in shared memory: batches, their jobs, the queue, the workers.
//!
//! A job is here from its acceptance until its final row is in the log. Everything is looked at and changed under one
//! lock; nothing here waits, and nothing here talks to the catalogs.

mod ahead;
mod batch;
mod direct;
mod end;
mod line;
mod lists;
mod look;
mod order;
mod outcome;
mod probe;
mod queue;
mod record;
mod room;
mod slot;
mod stopper;
mod watch;

pub use ahead::{add_ahead, dismiss_ahead, make_room_ahead, take_ahead};
pub use batch::{add, open, take_back_batch, unwatch, unwatch_all, NewBatch, NewJob};
pub use direct::{
    close, give, has_errand, has_idle, has_job, is_there, is_unread, join, offer, refuse_more, release, retire, served,
    take_back, Newcomer, Seat,
};
pub use end::{deafen, ended, finish, forget_database, next_try, stop, written, Ended, Finish, FEW};
pub use lists::{ordinal_of, uuid_of};
pub use look::{
    accepted_at, find, headers, is_pending, job_of, jobs_of, moments, of_batch, pulses, query_of, recorded_in, request,
    running, snapshot, uuid_of_job, Found, Header, JobView, Moment, Pulse, Recorded, Running, RunningJob,
};
pub use probe::{
    coming, look_late, may_lack_workers, probe_came, refuse_jobs, register_probe, Coming, Late, PROBE, RESTART_AFTER,
};
pub use queue::{begin, claim, forget_rows, recorded, undo, uuid, uuid_of_first, uuids, withdraw, Claim, Seeker, Task};
pub use record::{Hears, Place, Reason, State, MESSAGE_BYTES};
pub use room::{
    attendance, company, has_room_ahead, is_one_going, is_settling, is_stuck, make_room, plan, reserve, Attendance,
    Company, Start,
};
pub use slot::{
    arrive, cannot_register, died, dismiss, give_up, hand_over, has_own_work, idle, is_starved, leave_idle, may_go,
    of_process, recall, register, report_progress, reserve_successor, starts_again, stays_on, stopping, terminate_jobs,
    Arrival, Refusal, Succession,
};
pub use watch::{awaited_by, is_listening, listen, unfollow, watch, Follower};

use crate::error::Error;
use crate::ffi::area::Memory;
use crate::ffi::bgworker;
use record::{Root, Slot};

/// Finds the beginning, and makes it if nobody has.
///
/// # Errors
/// [`Error::SharedMemory`] (53200)
fn root(memory: &mut Memory) -> Result<Place, Error> {
    if memory.root() != 0 {
        return Ok(memory.root());
    }
    // A worker on its way out and its successor have a place each.
    let count = 2 * usize::try_from(bgworker::max_worker_processes()).unwrap_or(0) + 2;
    let root = memory.allocate(size_of::<Root>()).ok_or(Error::SharedMemory)?;
    let Some(slots) = memory.allocate(count * size_of::<Slot>()) else {
        memory.free(root);
        return Err(Error::SharedMemory);
    };
    let record = memory.get_mut::<Root>(root);
    record.slots = slots;
    record.slot_count = count as u64;
    memory.set_root(root);
    Ok(root)
}

fn slots(memory: &Memory) -> &[Slot] {
    if memory.root() == 0 {
        return &[];
    }
    let root = memory.get::<Root>(memory.root());
    memory.slice(root.slots, root.slot_count as usize)
}

fn slot_mut(memory: &mut Memory, index: usize) -> Option<&mut Slot> {
    if memory.root() == 0 {
        return None;
    }
    let (place, count) = {
        let root = memory.get::<Root>(memory.root());
        (root.slots, root.slot_count as usize)
    };
    memory.slice_mut::<Slot>(place, count).get_mut(index)
}
