//! Coverage: whether a worker is there, or will be, that runs what is queued.

use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::process;
use crate::guc;
use crate::registry::layout::{BatchPtr, PoolPtr, WorkerSlot, WorkerState};
use crate::registry::root::slots;
use crate::registry::unregistered;
use crate::registry::{lists, watchers};
use crate::scheduler::job_order::{self, runnable_jobs};
use crate::scheduler::slots::{is_staying, reclaim};

/// Tells with whom a worker shares the connections of its role and database.
pub enum PoolPeers {
    /// Other workers of its pool.
    Active,
    /// The worker is the only one, but others are still on their way out.
    Exiting,
    None,
}

/// Returns who is there beside this worker.
pub fn pool_peers(memory: &mut Memory, index: usize) -> PoolPeers {
    reclaim(memory);
    let pool = slots(memory).get(index).map_or(PoolPtr::NULL, |own| own.pool);
    if !pool.is_null() && memory.get(pool).workers > 1 {
        return PoolPeers::Active;
    }
    let goes = |slot: &WorkerSlot| {
        matches!(slot.state(), WorkerState::Exiting | WorkerState::Restarting)
            && slot.has_handle != 0
            && !WorkerHandle::from_words(slot.handle).is_gone()
    };
    if !pool.is_null() && slots(memory).iter().any(goes) {
        PoolPeers::Exiting
    } else {
        PoolPeers::None
    }
}

/// Tells who sees to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Workers that will look at it, or nothing of it is queued.
    Covered,
    /// Workers that are still to be started, or that have nothing to do with it and may find no process for another.
    Uncertain,
    Uncovered,
}

/// Returns who sees to this batch.
pub fn coverage(memory: &mut Memory, place: BatchPtr, uuid: &[u8; 16]) -> Coverage {
    reclaim(memory);
    // By now it may have been done, and forgotten.
    if !lists::batches_of_uuid(memory, uuid).any(|at| at == place && memory.get(place).queued > 0) {
        return Coverage::Covered;
    }
    let awaits_start = awaits_start(memory, memory.get(place).pool, process::now());
    let will_look = |slot: &WorkerSlot| match slot.state() {
        WorkerState::RunningQueued | WorkerState::Starting => true,
        WorkerState::RunningAttached if slot.result_consumed == 0 => true,
        WorkerState::Ready if !slot.batch.is_null() => true,
        _ => !slot.pool.is_null() && memory.get(slot.pool).has_queue(),
    };
    let there = || slots(memory).iter().filter(|slot| slot.has_handle != 0 && is_staying(slot));
    if !awaits_start && there().any(will_look) {
        Coverage::Covered
    } else if there().next().is_some() {
        Coverage::Uncertain
    } else {
        Coverage::Uncovered
    }
}

/// Returns whether every job that runs waits for others, and there is no room for a worker that would run those. Jobs
/// that sessions have launched themselves take room, too.
pub fn is_stuck(memory: &mut Memory) -> bool {
    let waiting = watchers::waiting_workers(memory);
    if waiting < guc::cap() {
        return false;
    }
    let runs = |slot: &&WorkerSlot| matches!(slot.state(), WorkerState::RunningQueued | WorkerState::RunningAttached);
    let running = slots(memory).iter().filter(runs).count() + unregistered::count();
    running <= waiting && job_order::has_work(memory)
}

/// Returns whether the server is still to start the worker in this place.
pub fn is_start_pending(slot: &WorkerSlot) -> bool {
    slot.state() == WorkerState::Starting
        && slot.pid == 0
        && slot.has_handle != 0
        && WorkerHandle::from_words(slot.handle).is_to_start()
}

/// Returns whether its process has come, and looks for work sooner or later.
pub fn has_started(slot: &WorkerSlot) -> bool {
    match slot.state() {
        WorkerState::Ready | WorkerState::RunningQueued | WorkerState::RunningAttached | WorkerState::Idle => true,
        WorkerState::Starting => slot.has_handle != 0 && !is_start_pending(slot),
        WorkerState::Free | WorkerState::Exiting | WorkerState::Restarting => false,
    }
}

/// Returns whether a job of the pool can start only when the server has started a worker, as no other is there that is
/// of the pool, or none at all.
pub fn awaits_start(memory: &mut Memory, pool: PoolPtr, now: i64) -> bool {
    let is_its_own = |slot: &WorkerSlot| slot.pool == pool;
    let there: Vec<&WorkerSlot> = slots(memory).iter().filter(|slot| has_started(slot)).collect();
    let is_asked_for = || slots(memory).iter().any(|slot| is_its_own(slot) && is_start_pending(slot));
    let awaits = there.is_empty() || !there.iter().any(|slot| is_its_own(slot)) && is_asked_for();
    awaits && memory.get(pool).login != 0 && runnable_jobs(memory, pool, now, 1) > 0
}
