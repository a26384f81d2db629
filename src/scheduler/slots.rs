//! Worker slots: reserving and freeing them, telling what their workers do, waking and evicting idle workers.

use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::process;
use crate::ffi::spin::Nanos;
use crate::ids::DatabaseId;
use crate::registry::layout::{PoolPtr, Root, WorkerSlot, WorkerState};
use crate::registry::root::{slot_mut, slots};
use crate::scheduler::job_order;

/// Slot that is reserved for a worker to be registered.
#[derive(Debug, Clone, Copy)]
pub struct SlotReservation {
    pub slot: usize,
    pub serial: u64,
}

/// Returns the index of a free slot, or `None` if all are taken.
pub fn free_slot(memory: &Memory) -> Option<usize> {
    slots(memory).iter().position(|slot| slot.state() == WorkerState::Free)
}

/// Returns a number that no process in any slot had before.
pub fn next_serial(memory: &mut Memory) -> u64 {
    let root = memory.root::<Root>();
    let record = memory.get_mut(root);
    record.last_serial += 1;
    record.last_serial
}

/// Reserves a slot for a worker of a pool. `after`: slot whose process must be gone before the worker begins. Returns
/// `None` if no slot is free.
pub fn reserve_slot(memory: &mut Memory, pool: PoolPtr, after: Option<usize>) -> Option<SlotReservation> {
    let index = free_slot(memory)?;
    let serial = next_serial(memory);
    if let Some(slot) = slot_mut(memory, index) {
        *slot = WorkerSlot {
            serial,
            pool,
            state: WorkerState::Starting as u32,
            progress: -1,
            since: process::now(),
            waits_for_slot: after.map_or(0, |after| after as u32 + 1),
            ..bytemuck::Zeroable::zeroed()
        };
    }
    if let Some(before) = after.and_then(|after| slot_mut(memory, after)) {
        before.has_successor = 1;
    }
    let turn = job_order::next_turn(memory);
    let pool = memory.get_mut(pool);
    pool.workers += 1;
    pool.turn = turn;
    Some(SlotReservation { slot: index, serial })
}

/// Frees the slots of exiting workers that are gone.
pub fn reclaim(memory: &mut Memory) {
    let gone: Vec<usize> = slots(memory)
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.state() == WorkerState::Exiting && slot.has_handle != 0)
        .filter(|(_, slot)| WorkerHandle::from_words(slot.handle).is_gone())
        .map(|(index, _)| index)
        .collect();
    for index in gone {
        if let Some(slot) = slot_mut(memory, index) {
            *slot = WorkerSlot { serial: slot.serial, ..bytemuck::Zeroable::zeroed() };
        }
    }
}

/// Returns whether the slot has a worker, or will have one, that is not exiting.
pub fn is_staying(slot: &WorkerSlot) -> bool {
    !matches!(slot.state(), WorkerState::Free | WorkerState::Exiting)
}

/// Returns whether a worker is exiting, and no successor waits for that.
pub fn is_exiting_unreplaced(slot: &WorkerSlot) -> bool {
    slot.state() == WorkerState::Exiting && slot.has_successor == 0
}

/// Returns whether a worker looks for work, or will at once.
pub fn looks_for_work(slot: &WorkerSlot) -> bool {
    slot.exit_requested == 0 && matches!(slot.state(), WorkerState::Starting | WorkerState::Ready | WorkerState::Idle)
}

/// Returns whether there is any worker that is not exiting.
pub fn has_workers(memory: &Memory) -> bool {
    slots(memory).iter().any(is_staying)
}

/// Returns whether there is no other worker, now or soon.
pub fn is_alone(memory: &Memory, index: usize) -> bool {
    !slots(memory).iter().enumerate().any(|(at, slot)| at != index && is_staying(slot))
}

/// Returns whether a worker other than the caller's, in slot `index`, is exiting, so that another process will be
/// available in a moment.
pub fn is_one_exiting(memory: &mut Memory, index: usize) -> bool {
    reclaim(memory);
    slots(memory)
        .iter()
        .enumerate()
        .any(|(at, slot)| at != index && slot.state() == WorkerState::Exiting && slot.has_handle != 0)
}

/// Counts the idle workers.
pub fn idle_count(memory: &Memory) -> usize {
    slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle).count()
}

/// Wakes an idle worker of a pool. Returns `false` if there is none.
pub fn wake_idle(memory: &mut Memory, pool: PoolPtr) -> bool {
    let idle = slots(memory).iter().position(|slot| slot.pool == pool && slot.state() == WorkerState::Idle);
    let Some(slot) = idle.and_then(|index| slot_mut(memory, index)) else { return false };
    slot.state = WorkerState::Ready as u32;
    process::wake(slot.process);
    true
}

/// Asks the worker of another pool that has been idle for longest to exit. Returns `false` if there is none.
pub fn evict_idle(memory: &mut Memory, pool: PoolPtr) -> bool {
    let idle = slots(memory)
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.state() == WorkerState::Idle && slot.pool != pool && slot.exit_requested == 0)
        .min_by_key(|(_, slot)| slot.since)
        .map(|(index, _)| index);
    idle.is_some_and(|index| evict(memory, index))
}

/// Asks idle workers of a pool to exit whose login is not of this version: no session assigns jobs to them any more.
pub fn evict_outdated(memory: &mut Memory, pool: PoolPtr, version: u64) {
    let is_outdated = |slot: &WorkerSlot| {
        slot.pool == pool
            && slot.state() == WorkerState::Idle
            && slot.exit_requested == 0
            && ![0, version].contains(&slot.version)
    };
    while let Some(index) = slots(memory).iter().position(is_outdated) {
        evict(memory, index);
    }
}

/// Asks the worker in this slot to exit. Returns `false` if there is no such slot.
pub fn evict(memory: &mut Memory, index: usize) -> bool {
    let Some(slot) = slot_mut(memory, index) else { return false };
    slot.exit_requested = 1;
    slot.state = WorkerState::Ready as u32;
    process::wake(slot.process);
    true
}

/// Wakes an idle worker of a database, to write rows.
pub fn wake_log_writers(memory: &Memory, database: DatabaseId) {
    let idle = slots(memory).iter().find(|slot| {
        slot.state() == WorkerState::Idle && !slot.pool.is_null() && memory.get(slot.pool).database == database
    });
    if let Some(slot) = idle {
        process::wake(slot.process);
    }
}

/// Returns whether the server had no process for the worker that was requested last.
pub fn lacks_processes(memory: &Memory) -> bool {
    !memory.root::<Root>().is_null() && memory.get(memory.root::<Root>()).is_starved != 0
}

/// Records whether the server had no process for the worker that was requested last.
pub fn set_lacks_processes(memory: &mut Memory, is_starved: bool) {
    let root = memory.root::<Root>();
    memory.get_mut(root).is_starved = u64::from(is_starved);
}

/// Records that the worker looks for work again.
pub fn become_ready(memory: &mut Memory, index: usize) {
    if let Some(slot) = slot_mut(memory, index).filter(|slot| slot.state() == WorkerState::Idle) {
        slot.state = WorkerState::Ready as u32;
    }
}

/// Returns the slot of this process, or `None` if it runs no queued job.
pub fn slot_of_process(memory: &Memory, pid: i32) -> Option<usize> {
    slots(memory).iter().position(|slot| slot.pid == pid && slot.state() == WorkerState::RunningQueued)
}

/// Tells the postmaster not to start the worker in this slot, or not again.
pub fn terminate_worker(memory: &Memory, index: usize) {
    if let Some(slot) = slots(memory).get(index).filter(|slot| slot.has_handle != 0) {
        WorkerHandle::from_words(slot.handle).terminate();
    }
}

/// Returns when the job was assigned that the worker has not started ([`clock`](crate::ffi::spin::clock)), or `None`
/// if there is none.
pub fn assigned_at(memory: &Memory, index: usize) -> Option<Nanos> {
    slots(memory).get(index).filter(|slot| slot.assigned_segment != 0).map(|slot| slot.assigned_at)
}

/// Returns whether a job has been assigned to the worker that it has not started.
fn has_assignment(memory: &Memory, index: usize) -> bool {
    slots(memory).get(index).is_some_and(|slot| slot.assigned_segment != 0)
}

/// Stops accepting attached jobs. Returns `false` if one was assigned in the meantime.
pub fn stop_accepting(memory: &mut Memory, index: usize) -> bool {
    become_ready(memory, index);
    !has_assignment(memory, index)
}
