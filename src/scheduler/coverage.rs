//! Coverage: whether there is a worker, or will be, that runs the queued jobs.

use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::process;
use crate::guc;
use crate::ids::{BatchId, RoleId};
use crate::registry::layout::{BatchPtr, PoolPtr, WorkerSlot, WorkerState};
use crate::registry::root::slots;
use crate::registry::unregistered;
use crate::registry::{lists, watchers};
use crate::scheduler::job_order::{self, runnable_jobs};
use crate::scheduler::slots::{is_staying, reclaim};
use crate::time::Timestamp;

/// Workers with which a worker shares the connections of its role and database.
pub enum PoolPeers {
    /// Other workers of its pool.
    Active,
    /// The worker is the only one, but others are still exiting.
    Exiting,
    None,
}

/// Returns the workers that exist beside this one.
pub fn pool_peers(memory: &mut Memory, index: usize) -> PoolPeers {
    reclaim(memory);
    let pool = slots(memory).get(index).map_or(PoolPtr::NULL, |own| own.pool);
    if !pool.is_null() && memory.get(pool).workers > 1 {
        return PoolPeers::Active;
    }
    let is_exiting = |slot: &WorkerSlot| {
        matches!(slot.state(), WorkerState::Exiting | WorkerState::Restarting)
            && slot.has_handle != 0
            && !WorkerHandle::from_words(slot.handle).is_gone()
    };
    if !pool.is_null() && slots(memory).iter().any(is_exiting) {
        PoolPeers::Exiting
    } else {
        PoolPeers::None
    }
}

/// Coverage of a batch by workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Workers will look at the batch, or none of its jobs is queued.
    Covered,
    /// Workers are still to start, or have nothing to do with the batch and may find no process for another worker.
    Uncertain,
    Uncovered,
}

/// Returns the coverage of this batch. `uuid`: that of the batch or of one of its jobs.
pub fn coverage(memory: &mut Memory, batch: BatchPtr, id: BatchId) -> Coverage {
    reclaim(memory);
    // By now it may have been finished and removed.
    if !lists::batches_of(memory, id).any(|at| at == batch && memory.get(batch).queued > 0) {
        return Coverage::Covered;
    }
    let awaits_start = awaits_start(memory, memory.get(batch).pool, process::now());
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

/// Returns whether every running job waits for others, and there is no capacity for a worker that would run those.
/// Attached jobs take capacity, too.
pub fn is_stuck(memory: &mut Memory) -> bool {
    let waiting = watchers::waiting_workers(memory);
    if waiting < guc::cap() {
        return false;
    }
    let runs = |slot: &&WorkerSlot| matches!(slot.state(), WorkerState::RunningQueued | WorkerState::RunningAttached);
    let running = slots(memory).iter().filter(runs).count() + unregistered::count();
    running <= waiting && job_order::has_work(memory)
}

/// Returns whether the postmaster is still to start the worker in this slot.
pub fn is_start_pending(slot: &WorkerSlot) -> bool {
    slot.state() == WorkerState::Starting
        && slot.pid == 0
        && slot.has_handle != 0
        && WorkerHandle::from_words(slot.handle).is_to_start()
}

/// Returns whether the process in this slot has started, and looks for work sooner or later.
pub fn has_started(slot: &WorkerSlot) -> bool {
    match slot.state() {
        WorkerState::Ready | WorkerState::RunningQueued | WorkerState::RunningAttached | WorkerState::Idle => true,
        WorkerState::Starting => slot.has_handle != 0 && !is_start_pending(slot),
        WorkerState::Free | WorkerState::Exiting | WorkerState::Restarting => false,
    }
}

/// Returns whether a job of the pool can start only when the postmaster has started a worker, because no worker of the
/// pool has started, or none at all.
pub fn awaits_start(memory: &mut Memory, pool: PoolPtr, now: Timestamp) -> bool {
    let is_its_own = |slot: &WorkerSlot| slot.pool == pool;
    let there: Vec<&WorkerSlot> = slots(memory).iter().filter(|slot| has_started(slot)).collect();
    let is_requested = || slots(memory).iter().any(|slot| is_its_own(slot) && is_start_pending(slot));
    let awaits = there.is_empty() || !there.iter().any(|slot| is_its_own(slot)) && is_requested();
    awaits && memory.get(pool).login != RoleId::NONE && runnable_jobs(memory, pool, now, 1) > 0
}
