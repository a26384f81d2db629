//! Life cycle of a worker in its slot: start, idleness, succession, exit and crash.

use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::process;
use crate::guc;
use crate::ids::{DatabaseId, RoleId};
use crate::registry::layout::{BatchPtr, Pool, PoolPtr, State, WorkerSlot, WorkerState, MESSAGE_BYTES};
use crate::registry::root::{slot_mut, slots};
use crate::registry::{batches, lists, pools, watchers};
use crate::scheduler::capacity::{is_needed, most_underserved_pool, next_pool, staying_workers};
use crate::scheduler::job_order::runnable_jobs;
use crate::scheduler::slots;
use crate::scheduler::slots::{
    is_alone, is_exiting_unreplaced, reserve_slot, set_lacks_processes, terminate_worker, SlotReservation,
};
use crate::scheduler::{capacity, completion, job_order};
use crate::time::Timestamp;
use std::time::Duration;

/// Instruction to a new worker.
#[derive(Debug, Clone, Copy)]
pub enum Arrival {
    /// Log in to this database with this role, or with [`RoleId::NONE`].
    LogIn { database: DatabaseId, login: RoleId },
    /// The process before it is not gone yet: ask again.
    NotYet,
    /// The work is not due yet: ask again after a while.
    Later,
    /// There is nothing to do.
    Nothing,
}

/// Records that the postmaster has registered the worker.
pub fn worker_registered(memory: &mut Memory, start: SlotReservation, worker: WorkerHandle) {
    set_lacks_processes(memory, false);
    if let Some(slot) = slot_mut(memory, start.slot).filter(|slot| slot.serial == start.serial) {
        slot.handle = worker.to_words();
        slot.has_handle = 1;
    }
}

/// Records that the server has no process for the worker. Asks an idle worker to exit if it is not the last one, or if
/// a session waits for a process. Sessions that follow queued jobs are woken and ask again.
pub fn registration_failed(memory: &mut Memory, start: SlotReservation) {
    set_lacks_processes(memory, true);
    let Some(slot) = slots(memory).get(start.slot).copied().filter(|slot| slot.serial == start.serial) else { return };
    if !slot.pool.is_null() {
        if slots(memory).iter().filter(|slot| slots::is_staying(slot)).count() > 2 || job_order::is_awaited(memory) {
            capacity::free_a_process_for(memory, slot.pool);
        }
        let batches: Vec<BatchPtr> = lists::queued_batches(memory, slot.pool).collect();
        batches.into_iter().for_each(|batch| watchers::wake_all(memory, batch));
    }
    release_reservation(memory, start);
}

/// Releases a reserved slot: no worker will start in it.
pub fn release_reservation(memory: &mut Memory, start: SlotReservation) {
    let Some(slot) = slots(memory).get(start.slot).copied().filter(|slot| slot.serial == start.serial) else { return };
    leave_pool(memory, start.slot);
    if slot.waits_for_slot != 0 {
        if let Some(before) = slot_mut(memory, slot.waits_for_slot as usize - 1) {
            before.has_successor = 0;
        }
    }
    if let Some(slot) = slot_mut(memory, start.slot) {
        *slot = WorkerSlot { serial: slot.serial, ..bytemuck::Zeroable::zeroed() };
    }
}

/// Removes the worker from its pool, and the pool if it is not used any more.
fn leave_pool(memory: &mut Memory, index: usize) {
    let Some(slot) = slot_mut(memory, index) else { return };
    let pool = std::mem::replace(&mut slot.pool, PoolPtr::NULL);
    if !pool.is_null() {
        let record = memory.get_mut(pool);
        record.workers = record.workers.saturating_sub(1);
        record.limit = 0;
        pools::remove_if_unused(memory, pool);
    }
}

/// Records that a process starts in this slot. Returns its instruction.
pub fn worker_started(memory: &mut Memory, index: usize, serial: u64, pid: i32) -> Arrival {
    let Some(slot) = slots(memory).get(index).copied().filter(|slot| slot.serial == serial) else {
        return Arrival::Nothing;
    };
    match slot.state() {
        WorkerState::Starting => {
            let before = slots(memory).get((slot.waits_for_slot as usize).wrapping_sub(1)).copied();
            if before.is_some_and(|before| {
                before.state() != WorkerState::Free
                    && before.has_successor != 0
                    && !(before.has_handle != 0 && WorkerHandle::from_words(before.handle).is_gone())
            }) {
                return Arrival::NotYet;
            }
        }
        WorkerState::Restarting => {
            let pool = next_pool(memory, index, PoolPtr::NULL);
            if let Some(pool) = pool.filter(|pool| is_log_write_early(memory, *pool)) {
                pools::remove_if_unused(memory, pool);
                return Arrival::Later;
            }
            let turn = job_order::next_turn(memory);
            let Some(pool) = pool else {
                if let Some(slot) = slot_mut(memory, index) {
                    slot.state = WorkerState::Exiting as u32;
                }
                return Arrival::Nothing;
            };
            let record = memory.get_mut(pool);
            record.workers += 1;
            record.turn = turn;
            if let Some(slot) = slot_mut(memory, index) {
                slot.pool = pool;
                slot.exit_requested = 0;
            }
        }
        _ => return Arrival::Nothing,
    }
    let now = process::now();
    let Some(slot) = slot_mut(memory, index) else { return Arrival::Nothing };
    slot.state = WorkerState::Starting as u32;
    slot.waits_for_slot = 0;
    slot.pid = pid;
    slot.process = process::own();
    slot.since = now;
    let pool = memory.get(slots(memory).get(index).map_or(PoolPtr::NULL, |slot| slot.pool));
    Arrival::LogIn { database: pool.database, login: pool.login }
}

/// Returns whether a worker of this pool would start only to write final rows that cannot be written yet.
fn is_log_write_early(memory: &Memory, pool: PoolPtr) -> bool {
    let pool = memory.get(pool);
    pool.login == RoleId::NONE
        && job_order::next_log_write(memory, pool.database).is_some_and(|due| due > process::now())
}

/// Time for which a worker stays that is one too many to be idle: a session that launches one job after the other has
/// its next one by then.
const BETWEEN_JOBS: Duration = Duration::from_millis(50);

/// Consequence for a worker that has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idleness {
    /// There is work for it again, or it must exit.
    None,
    Idle,
    /// More workers are idle than may stay: it looks again at this time.
    Surplus(Timestamp),
}

/// Makes the worker idle. If more are idle than may stay, the one that has been idle for longest is asked to exit, but
/// not before this one has been idle for [`BETWEEN_JOBS`].
pub fn become_idle(memory: &mut Memory, index: usize) -> Idleness {
    let Some(own) = slots(memory).get(index).copied() else { return Idleness::Idle };
    let now = process::now();
    let database = memory.get(own.pool).database;
    if own.exit_requested != 0
        || own.assigned_segment != 0
        || runnable_jobs(memory, own.pool, now, 1) > 0
        || job_order::batch_to_log(memory, database, now).is_some()
    {
        return Idleness::None;
    }
    let is_new = own.state() != WorkerState::Idle;
    let since = if is_new { now } else { own.since };
    if let Some(slot) = slot_mut(memory, index) {
        slot.state = WorkerState::Idle as u32;
        slot.since = since;
    }
    let limit = guc::idle_limit();
    if slots::idle_count(memory) <= limit || is_needed(memory, index) || keeps_memory(memory, index) {
        return Idleness::Idle;
    }
    let until = since + BETWEEN_JOBS;
    // The clock may have been set back.
    if limit > 0 && (since..until).contains(&now) {
        return Idleness::Surplus(until);
    }
    match limit {
        0 => slots::evict(memory, index),
        _ => slots::evict_idle(memory, PoolPtr::NULL),
    };
    match slots(memory).get(index).map(WorkerSlot::state) {
        Some(WorkerState::Idle) => Idleness::Idle,
        _ => Idleness::None,
    }
}

/// Returns whether this is the last worker, and there is a large finished batch that readers may still read: the worker
/// stays to free the memory of the batch.
fn keeps_memory(memory: &Memory, index: usize) -> bool {
    let mut others = slots(memory).iter().enumerate().filter(|(at, _)| *at != index);
    !others.any(|(_, slot)| slots::is_staying(slot) && slot.exit_requested == 0) && batches::is_large_one_done(memory)
}

/// Makes a worker exit whose idle time is over. Returns `false` if it stays: it alone has time for the queued jobs, or
/// a job was assigned to it.
pub fn exit_if_idle(memory: &mut Memory, index: usize) -> bool {
    let Some(own) = slots(memory).get(index).copied() else { return true };
    let is_last = !own.pool.is_null() && memory.get(own.pool).has_queue() && memory.get(own.pool).workers <= 1;
    if is_last || keeps_memory(memory, index) || is_needed(memory, index) || !slots::stop_accepting(memory, index) {
        return false;
    }
    // Another worker that checks now must not count on this one.
    if let Some(own) = slot_mut(memory, index) {
        own.exit_requested = 1;
    }
    true
}

/// Makes the worker exit, and reserves a slot for its successor in the pool that needs a worker most. Returns `None` if
/// it has no successor.
pub fn exit_and_reserve_successor(memory: &mut Memory, index: usize) -> Option<SlotReservation> {
    let own = slots(memory).get(index).copied()?;
    // The worker does not look for work any more, and may have left some to other workers of its pool.
    mark_exiting(memory, index);
    reserve_successor_of(memory, index, own.pool)
}

/// Consequence for a worker whose slot another pool needs.
#[derive(Debug, Clone, Copy)]
pub enum Handover {
    /// This successor begins when the worker is gone.
    By(SlotReservation),
    /// The worker exits without a successor.
    Leave,
    /// The worker stays: its slot is not needed any more.
    Stay,
}

/// Reserves a slot for a worker of the pool that needs one most; it begins when this worker is gone.
pub fn reserve_successor(memory: &mut Memory, index: usize) -> Handover {
    let Some(own) = slots(memory).get(index).copied() else { return Handover::Leave };
    if staying_workers(memory) > guc::cap() {
        return Handover::Leave;
    }
    let now = process::now();
    match most_underserved_pool(memory, now, own.pool) {
        Some(next) => reserve_slot(memory, next, Some(index)).map_or(Handover::Stay, Handover::By),
        None if capacity::is_wanted_elsewhere(memory, own.pool, now) => Handover::Leave,
        None => Handover::Stay,
    }
}

/// Returns whether this worker could start a job of its own pool now.
pub fn has_own_work(memory: &mut Memory, index: usize) -> bool {
    let pool = slots(memory).get(index).map_or(PoolPtr::NULL, |own| own.pool);
    !pool.is_null() && runnable_jobs(memory, pool, process::now(), 1) > 0
}

/// Keeps the worker in its slot, because its successor does not start: the postmaster need not start that one any more.
pub fn cancel_successor(memory: &mut Memory, index: usize, start: SlotReservation) {
    if slots(memory).get(start.slot).is_some_and(|slot| slot.serial == start.serial) {
        terminate_worker(memory, start.slot);
    }
    release_reservation(memory, start);
    // The worker has a turn before it tries again.
    if let Some(own) = slot_mut(memory, index) {
        own.since = process::now();
    }
}

/// Reserves a slot for the successor of this worker, which exits. `except`: pool that is chosen only if no other pool
/// needs a worker.
fn reserve_successor_of(memory: &mut Memory, index: usize, except: PoolPtr) -> Option<SlotReservation> {
    // The last worker always has a successor, which waits for capacity.
    if staying_workers(memory) >= guc::cap() && !is_alone(memory, index) {
        return None;
    }
    let is_free = |memory: &Memory| slots(memory).get(index).is_some_and(is_exiting_unreplaced);
    if !is_free(memory) {
        return None; // its successor is reserved already
    }
    let next = next_pool(memory, index, except)?;
    is_free(memory).then(|| reserve_slot(memory, next, Some(index))).flatten()
}

/// Detaches a worker from its pool, and marks it as exiting.
fn mark_exiting(memory: &mut Memory, index: usize) {
    leave_pool(memory, index);
    if let Some(slot) = slot_mut(memory, index) {
        slot.state = WorkerState::Exiting as u32;
        slot.batch = BatchPtr::NULL;
    }
}

/// Leaves this worker to be restarted by the postmaster, because its successor could not be registered.
pub fn keep_for_restart(memory: &mut Memory, index: usize) {
    if let Some(slot) = slot_mut(memory, index).filter(|slot| is_exiting_unreplaced(slot) && slot.no_restart == 0) {
        slot.state = WorkerState::Restarting as u32;
    }
}

/// Returns whether a worker may exit although its successor could not be registered: there are other workers, or a
/// session waits for a process.
pub fn may_exit(memory: &Memory, index: usize) -> bool {
    !is_alone(memory, index) || job_order::is_awaited(memory)
}

/// Returns whether the postmaster restarts this worker, because its successor could not be registered.
pub fn will_be_restarted(memory: &Memory, index: usize) -> bool {
    slots(memory).get(index).is_some_and(|slot| slot.state() == WorkerState::Restarting)
}

/// Reason why a process cannot be a worker.
#[derive(Clone, Copy)]
pub enum Refusal {
    /// The role or the database has too many connections already; `is_alone`: the worker was the only one when that was
    /// counted.
    TooMany { is_alone: bool },
    /// The process cannot log in.
    Login,
    /// The database does not exist any more.
    NoDatabase,
}

/// Records that the worker died; its unfinished work ends in this state, with this outcome. Returns its successor, or
/// `None` if the postmaster restarts the worker or no other one is needed.
pub fn worker_died(
    memory: &mut Memory,
    index: usize,
    state: State,
    outcome: &[u8],
    refused: Option<Refusal>,
) -> Option<SlotReservation> {
    let own = slots(memory).get(index).copied()?;
    if matches!(own.state(), WorkerState::Exiting | WorkerState::Free) {
        return None;
    }
    completion::abandon_work(memory, index, state, outcome);
    if !own.pool.is_null() {
        detach_from_pool(memory, index, own.pool, outcome, refused);
    }
    let now = process::now();
    // After a failure that may happen again at once, and for ever, the postmaster waits a second before it restarts the
    // worker.
    let exits = own.exit_requested != 0
        || own.no_restart != 0
        || own.has_successor != 0
        || matches!(own.state(), WorkerState::RunningQueued | WorkerState::RunningAttached);
    if let Some(slot) = slot_mut(memory, index) {
        slot.state = if exits { WorkerState::Exiting } else { WorkerState::Restarting } as u32;
        slot.batch = BatchPtr::NULL;
        slot.process = process::ProcessRef::NONE;
        slot.pid = 0;
        slot.since = now;
        // The next process in this slot has mapped no segment, and logs in anew.
        (slot.assigned_segment, slot.segment, slot.version) = (0, 0, 0);
        (slot.result_pending, slot.result_consumed) = (0, 0);
    }
    if exits {
        return reserve_successor_of(memory, index, PoolPtr::NULL);
    }
    None
}

/// Detaches a crashed worker from its pool. If its login was refused, and no other worker of the pool can go on, ends
/// the pool's queued jobs or postpones the database's final rows.
fn detach_from_pool(memory: &mut Memory, index: usize, pool: PoolPtr, outcome: &[u8], refused: Option<Refusal>) {
    let Pool { database, login, workers, .. } = *memory.get(pool);
    let others = workers.saturating_sub(1);
    match refused {
        None => {}
        // The other workers of the pool go on. Those that were counted with this one and have exited since were perhaps
        // refused as well: the next worker checks again.
        Some(Refusal::TooMany { is_alone }) if others > 0 || !is_alone => {}
        Some(Refusal::NoDatabase) => completion::forget_database(memory, database, index),
        Some(_) if login == RoleId::NONE => completion::postpone_log(memory, database),
        Some(_) => completion::fail_queued(memory, pool, outcome),
    }
    leave_pool(memory, index);
    if matches!(refused, Some(Refusal::TooMany { .. })) && others > 0 {
        memory.get_mut(pool).limit = others;
    }
}

/// Records the progress that the job reports. `message`: cut after [`MESSAGE_BYTES`].
pub fn report_progress(memory: &mut Memory, index: usize, percent: i32, message: &[u8]) {
    let Some(slot) = slot_mut(memory, index) else { return };
    slot.progress = percent;
    let length = message.len().min(MESSAGE_BYTES);
    slot.message_bytes = length as u32;
    for (to, from) in slot.message.iter_mut().zip(message) {
        *to = *from;
    }
    let batch = slot.batch;
    if !batch.is_null() {
        watchers::wake(memory, batch);
    }
}
