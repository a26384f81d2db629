//! Dispatch of attached jobs to idle workers.

use crate::error::Error;
use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::process;
use crate::ffi::spin;
use crate::guc;
use crate::ids::{DatabaseId, RoleId};
use crate::registry::layout::{BatchPtr, WorkerSlot, WorkerState};
use crate::registry::pools;
use crate::registry::root::{get_or_create_root, slot_mut, slots};
use crate::scheduler::slots;
use crate::scheduler::{capacity, job_order, worker_lifecycle};

/// Worker slot: its index, and the serial number of the process in it.
pub type SlotId = (usize, u64);

/// Process that joins its pool after its first job.
pub struct NewWorker {
    pub database: DatabaseId,
    pub login: RoleId,
    pub version: u64,
    pub pid: i32,
    pub worker: WorkerHandle,
    /// Segment of the job that the process has run.
    pub segment: u32,
}

/// Login: the database, the role, and the version of what the login depends on; 0 means that the role cannot log in.
pub type LoginKey = (DatabaseId, RoleId, u64);

/// Returns whether the worker has such a login, and takes attached jobs.
fn is_of_login(memory: &Memory, slot: &WorkerSlot, (database, login, version): LoginKey) -> bool {
    if slot.pool.is_null() || version == 0 || slot.version != version || slot.exit_requested != 0 {
        return false;
    }
    let pool = memory.get(slot.pool);
    (pool.database, pool.login) == (database, login)
}

fn is_assignable(memory: &Memory, slot: &WorkerSlot, key: LoginKey) -> bool {
    (slot.result_pending, slot.assigned_segment) == (0, 0) && is_of_login(memory, slot, key)
}

/// Returns whether there is an idle worker to which [`assign_job`] would assign a job.
pub fn has_idle_worker(memory: &Memory, key: LoginKey) -> bool {
    slots(memory).iter().any(|slot| slot.state() == WorkerState::Idle && is_assignable(memory, slot, key))
}

/// Returns whether a worker to which [`assign_job`] would assign a job is idle in a moment: its attached job has ended,
/// and the result was read.
pub fn will_be_assignable(memory: &Memory, key: LoginKey) -> bool {
    slots(memory).iter().any(|slot| {
        slot.state() == WorkerState::RunningAttached && slot.result_consumed != 0 && is_of_login(memory, slot, key)
    })
}

/// Assigns the job in this segment to a worker of the pool whose login is up to date: to the one in the `preferred`
/// slot, which may not have finished its last job yet, or to any that is idle. Returns its slot and process id, or
/// `None` if there is no such worker.
pub fn assign_job(
    memory: &mut Memory,
    key: LoginKey,
    segment: u32,
    preferred: Option<SlotId>,
) -> Option<(SlotId, i32)> {
    let index = match preferred {
        Some((index, serial)) => {
            // The worker has another segment if another session has assigned a job to it.
            let slot = slots(memory).get(index).filter(|slot| slot.serial == serial && slot.segment == segment)?;
            matches!(slot.state(), WorkerState::Idle | WorkerState::RunningAttached).then_some(index)?
        }
        None => {
            let idle = slots(memory)
                .iter()
                .enumerate()
                .filter(|(_, slot)| slot.state() == WorkerState::Idle && is_assignable(memory, slot, key));
            idle.max_by_key(|(_, slot)| slot.since).map(|(index, _)| index)?
        }
    };
    let slot = slots(memory).get(index).copied()?;
    if !is_assignable(memory, &slot, key) {
        return None;
    }
    let own = slot_mut(memory, index)?;
    own.assigned_segment = segment;
    own.segment = segment;
    own.assigned_at = spin::clock();
    own.result_pending = 1;
    own.result_consumed = 0;
    if own.state() == WorkerState::Idle {
        own.state = WorkerState::Ready as u32;
    }
    process::wake(own.process);
    Some(((index, slot.serial), slot.pid))
}

/// Starts the job that was assigned to the worker. Returns its segment, or `None` if there is no such job.
pub fn begin_assigned_job(memory: &mut Memory, index: usize) -> Option<u32> {
    let own = slot_mut(memory, index).filter(|own| own.assigned_segment != 0)?;
    own.state = WorkerState::RunningAttached as u32;
    own.batch = BatchPtr::NULL;
    own.since = process::now();
    Some(std::mem::take(&mut own.assigned_segment))
}

/// Records that the worker has finished its attached job and is ready for another one.
pub fn attached_job_done(memory: &mut Memory, index: usize) {
    let Some(own) = slot_mut(memory, index).filter(|own| own.assigned_segment == 0) else { return };
    own.state = WorkerState::Ready as u32;
    // Becomes idle at once, so that a session that launches its next job finds the worker so.
    worker_lifecycle::become_idle(memory, index);
}

/// Records that the session has read the result of the job in this segment to its end (`is_whole`), or given it up.
pub fn release_result(memory: &mut Memory, (index, serial): SlotId, segment: u32, is_whole: bool) {
    if let Some(slot) = slot_mut(memory, index) {
        if slot.serial == serial && slot.segment == segment {
            slot.result_pending = 0;
            slot.result_consumed = u32::from(is_whole);
        }
    }
}

/// Returns whether the worker in this slot has the job in this segment, started or not.
pub fn holds_job(memory: &Memory, (index, serial): SlotId, segment: u32) -> bool {
    slots(memory).get(index).is_some_and(|slot| {
        slot.serial == serial
            && slot.segment == segment
            && (slot.assigned_segment == segment || slot.state() == WorkerState::RunningAttached)
    })
}

/// Returns whether the session of the worker's last job has neither read nor given up the result.
pub fn is_result_pending(memory: &Memory, index: usize) -> bool {
    slots(memory).get(index).is_some_and(|slot| slot.result_pending != 0)
}

/// Returns whether the process in this slot is still the same, and not exiting.
pub fn is_worker_there(memory: &Memory, (index, serial): SlotId) -> bool {
    let is_there =
        |slot: &WorkerSlot| slot.serial == serial && !matches!(slot.state(), WorkerState::Free | WorkerState::Exiting);
    slots(memory).get(index).is_some_and(is_there)
}

/// Adds a process that has run a job of its own to the workers. Returns `None` if there are enough workers.
///
/// # Errors
/// [`Error::SharedMemory`] (53200)
pub fn add_worker(memory: &mut Memory, new: &NewWorker) -> Result<Option<SlotId>, Error> {
    get_or_create_root(memory)?;
    // The process itself is counted among the unregistered ones.
    if capacity::worker_count(memory) > guc::cap() || guc::idle_limit() == 0 {
        return Ok(None);
    }
    let Some(index) = slots::free_slot(memory) else { return Ok(None) };
    let pool = pools::get_or_create(memory, new.database, new.login)?;
    slots::evict_outdated(memory, pool, new.version);
    let (serial, turn) = (slots::next_serial(memory), job_order::next_turn(memory));
    let record = memory.get_mut(pool);
    record.workers += 1;
    record.turn = turn;
    if let Some(slot) = slot_mut(memory, index) {
        *slot = WorkerSlot {
            serial,
            pool,
            state: WorkerState::RunningAttached as u32,
            pid: new.pid,
            process: process::own(),
            handle: new.worker.to_words(),
            has_handle: 1,
            no_restart: 1,
            version: new.version,
            segment: new.segment,
            result_pending: 1,
            progress: -1,
            since: process::now(),
            ..bytemuck::Zeroable::zeroed()
        };
    }
    Ok(Some((index, serial)))
}

/// Lets a worker that runs queued jobs take attached jobs from now on. `version`: that of its login.
pub fn accept_attached_jobs(memory: &mut Memory, index: usize, version: u64) {
    if let Some(slot) = slot_mut(memory, index) {
        slot.version = version;
    }
}

/// Stops accepting attached jobs, because the worker exits. Returns the segment of the job that was assigned and will
/// not start, or `None`. The worker keeps the segment until [`drop_assignment`]: the session must not find its job gone
/// without knowing why.
pub fn refuse_assignments(memory: &mut Memory, index: usize) -> Option<u32> {
    let slot = slot_mut(memory, index)?;
    if matches!(slot.state(), WorkerState::Idle | WorkerState::RunningAttached) {
        slot.state = WorkerState::Ready as u32;
    }
    Some(slot.assigned_segment).filter(|segment| *segment != 0)
}

/// Drops the job that was assigned to the worker and will not start.
pub fn drop_assignment(memory: &mut Memory, index: usize) {
    if let Some(slot) = slot_mut(memory, index) {
        slot.assigned_segment = 0;
    }
}

/// Makes the worker exit after its job: no other job is assigned to it.
pub fn request_exit(memory: &mut Memory, index: usize) {
    if let Some(slot) = slot_mut(memory, index) {
        slot.exit_requested = 1;
    }
}
