//! Slots of workers: reserving and freeing them, what their workers are about, waking and evicting idle ones.

use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::process;
use crate::registry::layout::{PoolPtr, Root, WorkerSlot, WorkerState};
use crate::registry::root::{slot_mut, slots};
use crate::scheduler::job_order;

/// A worker that is to be registered.
#[derive(Debug, Clone, Copy)]
pub struct SlotReservation {
    pub slot: usize,
    pub serial: u64,
}

pub fn free_slot(memory: &Memory) -> Option<usize> {
    slots(memory).iter().position(|slot| slot.state() == WorkerState::Free)
}

/// A number that no process in any place had before.
pub fn next_serial(memory: &mut Memory) -> u64 {
    let root = memory.root::<Root>();
    let record = memory.get_mut(root);
    record.last_serial += 1;
    record.last_serial
}

/// Reserves a place for a worker of a pool; `after` = it begins when that one is gone.
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

/// Frees the places of workers that are gone.
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

/// Returns whether a worker is there, or will be, and is not on its way out.
pub fn is_staying(slot: &WorkerSlot) -> bool {
    !matches!(slot.state(), WorkerState::Free | WorkerState::Exiting)
}

/// Returns whether a worker is on its way out, and nobody waits for its place.
pub fn is_exiting_unreplaced(slot: &WorkerSlot) -> bool {
    slot.state() == WorkerState::Exiting && slot.has_successor == 0
}

/// Returns whether a worker looks for work, or will at once.
pub fn looks_for_work(slot: &WorkerSlot) -> bool {
    slot.exit_requested == 0 && matches!(slot.state(), WorkerState::Starting | WorkerState::Ready | WorkerState::Idle)
}

pub fn has_workers(memory: &Memory) -> bool {
    slots(memory).iter().any(is_staying)
}

/// Returns whether there is no other worker, now or soon.
pub fn is_alone(memory: &Memory, index: usize) -> bool {
    !slots(memory).iter().enumerate().any(|(at, slot)| at != index && is_staying(slot))
}

/// Returns whether a worker other than `index`, the one that asks, is on its way out, so that there will be a process
/// more in a moment.
pub fn is_one_exiting(memory: &mut Memory, index: usize) -> bool {
    reclaim(memory);
    slots(memory)
        .iter()
        .enumerate()
        .any(|(at, slot)| at != index && slot.state() == WorkerState::Exiting && slot.has_handle != 0)
}

/// Counts the workers that have nothing to do.
pub fn idle_count(memory: &Memory) -> usize {
    slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle).count()
}

/// Wakes an idle worker of a pool.
pub fn wake_idle(memory: &mut Memory, pool: PoolPtr) -> bool {
    let idle = slots(memory).iter().position(|slot| slot.pool == pool && slot.state() == WorkerState::Idle);
    let Some(slot) = idle.and_then(|index| slot_mut(memory, index)) else { return false };
    slot.state = WorkerState::Ready as u32;
    process::wake(slot.process);
    true
}

/// Asks one idle worker of another pool to make room. False = there is none.
pub fn evict_idle(memory: &mut Memory, pool: PoolPtr) -> bool {
    let idle = slots(memory)
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.state() == WorkerState::Idle && slot.pool != pool && slot.exit_requested == 0)
        .min_by_key(|(_, slot)| slot.since)
        .map(|(index, _)| index);
    idle.is_some_and(|index| evict(memory, index))
}

/// Asks idle workers of a pool to leave whose login is not of this version: no session gives them a job any more.
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

pub fn evict(memory: &mut Memory, index: usize) -> bool {
    let Some(slot) = slot_mut(memory, index) else { return false };
    slot.exit_requested = 1;
    slot.state = WorkerState::Ready as u32;
    process::wake(slot.process);
    true
}

/// Wakes workers of a database that have nothing to do: there are rows to write.
pub fn wake_log_writers(memory: &Memory, database: u32) {
    let idle = slots(memory).iter().find(|slot| {
        slot.state() == WorkerState::Idle && !slot.pool.is_null() && memory.get(slot.pool).database == database
    });
    if let Some(slot) = idle {
        process::wake(slot.process);
    }
}

/// Returns whether the server had no process for the worker that was asked for last.
pub fn lacks_processes(memory: &Memory) -> bool {
    !memory.root::<Root>().is_null() && memory.get(memory.root::<Root>()).is_starved != 0
}

pub fn set_lacks_processes(memory: &mut Memory, is_starved: bool) {
    let root = memory.root::<Root>();
    memory.get_mut(root).is_starved = u64::from(is_starved);
}

/// The worker looks for work again.
pub fn become_ready(memory: &mut Memory, index: usize) {
    if let Some(slot) = slot_mut(memory, index).filter(|slot| slot.state() == WorkerState::Idle) {
        slot.state = WorkerState::Ready as u32;
    }
}

/// The place of this process, if it runs a job of the manager.
pub fn slot_of_process(memory: &Memory, pid: i32) -> Option<usize> {
    slots(memory).iter().position(|slot| slot.pid == pid && slot.state() == WorkerState::RunningQueued)
}

/// The server is not to start the worker in this place, or not again.
pub fn terminate_worker(memory: &Memory, index: usize) {
    if let Some(slot) = slots(memory).get(index).filter(|slot| slot.has_handle != 0) {
        WorkerHandle::from_words(slot.handle).terminate();
    }
}

/// Returns whether the worker has been given a job that it has not begun.
pub fn has_assignment(memory: &Memory, index: usize) -> bool {
    slots(memory).get(index).is_some_and(|slot| slot.assigned_segment != 0)
}

/// The worker takes no jobs any more, for it looks at something else. False = it has been given one.
pub fn stop_accepting(memory: &mut Memory, index: usize) -> bool {
    become_ready(memory, index);
    !has_assignment(memory, index)
}
