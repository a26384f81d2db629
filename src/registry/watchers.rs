//! Processes that wait for changes of a batch.

use crate::ffi::area::Memory;
use crate::ffi::dsa_ref::DsaPtr;
use crate::ffi::process;
use crate::ids::{AnyId, JobId};
use crate::registry::layout::{BatchPtr, BatchRecord, JobRecord, State, WakeOn, Watcher, WorkerState};
use crate::registry::lists;
use crate::registry::root::slots;
use std::collections::HashSet;

/// Process that waits for the end of a batch or of a job.
#[derive(Debug, Clone, Copy)]
pub struct Follower {
    pub pid: i32,
    /// The process runs a job itself.
    pub is_worker: bool,
}

/// Makes this process a watcher of the batches of a uuid, woken at each change. `follower`: set if it waits for the end
/// of the batch, or of the job whose uuid it is. Returns `false` if there is no memory for that.
pub fn watch(memory: &mut Memory, id: AnyId, follower: Option<Follower>) -> bool {
    let batches: Vec<BatchPtr> = lists::batches_of(memory, id.batch()).collect();
    batches.into_iter().all(|batch| add_watcher(memory, batch, id, follower, WakeOn::EachChange))
}

fn add_watcher(memory: &mut Memory, batch: BatchPtr, id: AnyId, follower: Option<Follower>, wake_on: WakeOn) -> bool {
    let Some(watcher) = memory.allocate::<Watcher>() else { return false };
    *memory.get_mut(watcher) = Watcher {
        next: memory.get(batch).watchers,
        process: process::own(),
        wake_on: wake_on as u32,
        pid: follower.map_or(0, |follower| follower.pid),
        ordinal: id.ordinal(),
        is_follower: follower.is_some().into(),
        is_worker: follower.is_some_and(|follower| follower.is_worker).into(),
    };
    memory.get_mut(batch).watchers = watcher;
    true
}

/// Removes this process from the watchers of a batch. Returns `false` if it was not one of them.
pub fn remove_own(memory: &mut Memory, batch: BatchPtr) -> bool {
    let own = process::own();
    let (mut kept, mut has_watched) = (DsaPtr::NULL, false);
    let mut at = std::mem::replace(&mut memory.get_mut(batch).watchers, DsaPtr::NULL);
    while !at.is_null() {
        let watcher = *memory.get(at);
        if watcher.process == own {
            memory.free(at);
            has_watched = true;
        } else {
            memory.get_mut(at).next = kept;
            kept = at;
        }
        at = watcher.next;
    }
    memory.get_mut(batch).watchers = kept;
    has_watched
}

/// Records that this process does not wait for the end any more; it remains a watcher.
pub fn unfollow(memory: &mut Memory, id: AnyId) {
    let batches: Vec<BatchPtr> = lists::batches_of(memory, id.batch()).collect();
    for batch in batches {
        update_own(memory, batch, |watcher| (watcher.is_follower, watcher.is_worker) = (0, 0));
    }
}

/// Changes the watchers of a batch that belong to this process. Returns `false` if there are none.
fn update_own(memory: &mut Memory, batch: BatchPtr, change: impl Fn(&mut Watcher)) -> bool {
    let own = process::own();
    let mut is_there = false;
    let mut at = memory.get(batch).watchers;
    while !at.is_null() {
        let watcher = memory.get_mut(at);
        if watcher.process == own {
            change(watcher);
            is_there = true;
        }
        at = watcher.next;
    }
    is_there
}

/// Frees all watchers of a batch.
pub fn forget(memory: &mut Memory, batch: BatchPtr) {
    let mut at = std::mem::replace(&mut memory.get_mut(batch).watchers, DsaPtr::NULL);
    while !at.is_null() {
        let next = memory.get(at).next;
        memory.free(at);
        at = next;
    }
}

/// Arms this process: the next change, or the end, wakes it again, also for jobs that were launched again since, as a
/// batch of their own. `follower`: as for [`watch`]. Returns `false` if there is no memory for that.
pub fn arm(memory: &mut Memory, id: AnyId, follower: Option<Follower>, wake_on: WakeOn) -> bool {
    let batches: Vec<BatchPtr> = lists::batches_of(memory, id.batch()).collect();
    batches.into_iter().all(|batch| {
        update_own(memory, batch, |watcher| watcher.wake_on = wake_on as u32)
            || add_watcher(memory, batch, id, follower, wake_on)
    })
}

/// Returns whether nothing has woken this process since it was armed last. Its latch does not tell, as any other wait
/// of the process may reset it.
pub fn is_armed(memory: &Memory, id: AnyId) -> bool {
    let own = process::own();
    let batches = lists::batches_of(memory, id.batch()).map(|batch| memory.get(batch));
    batches
        .flat_map(|record| watchers(memory, record))
        .all(|watcher| watcher.process != own || watcher.wake_on != WakeOn::Nothing as u32)
}

/// Wakes the armed watchers of a batch for which this change counts: those that wait for each change, and those whose
/// jobs have ended.
pub fn wake(memory: &mut Memory, batch: BatchPtr) {
    wake_if(memory, batch, |memory, watcher| {
        watcher.wake_on != WakeOn::TheEnd as u32 || has_ended(memory, batch, watcher.ordinal)
    });
}

/// Wakes all armed watchers of a batch: each finds out by itself what has changed.
pub fn wake_all(memory: &mut Memory, batch: BatchPtr) {
    wake_if(memory, batch, |_, _| true);
}

fn wake_if(memory: &mut Memory, batch: BatchPtr, must_wake: impl Fn(&Memory, &Watcher) -> bool) {
    let mut at = memory.get(batch).watchers;
    while !at.is_null() {
        let watcher = *memory.get(at);
        if watcher.wake_on != WakeOn::Nothing as u32 && must_wake(memory, &watcher) {
            memory.get_mut(at).wake_on = WakeOn::Nothing as u32;
            process::wake(watcher.process);
        }
        at = watcher.next;
    }
}

/// Returns the running jobs whose end a process waits for: the processes that run them, and their uuids.
pub fn awaited_by(memory: &Memory, pid: i32) -> Vec<(i32, JobId)> {
    let mut awaited = Vec::new();
    for batch in lists::batches(memory) {
        let record = memory.get(batch);
        for watcher in watchers(memory, record).filter(|watcher| watcher.pid == pid && watcher.is_follower != 0) {
            let in_batch =
                slots(memory).iter().filter(|slot| slot.state() == WorkerState::RunningQueued && slot.batch == batch);
            let jobs = in_batch.map(|slot| (slot.pid, lists::job(memory, batch, slot.job)));
            let wanted = jobs.filter(|(_, job)| ends_before(memory, batch, job, watcher.ordinal));
            awaited.extend(wanted.map(|(pid, job)| (pid, record.uuid.job(job.ordinal))));
        }
    }
    awaited
}

/// Counts the workers whose job waits for the end of other jobs.
pub fn waiting_workers(memory: &Memory) -> usize {
    let mut waiting = HashSet::new();
    for batch in lists::batches(memory) {
        let workers = watchers(memory, memory.get(batch)).filter(|watcher| watcher.is_worker != 0);
        // A worker that is about to see that its wait is over will go on.
        waiting.extend(workers.filter(|watcher| !has_ended(memory, batch, watcher.ordinal)).map(|watcher| watcher.pid));
    }
    waiting.len()
}

/// Returns whether the job with the ordinal has ended or is not in the batch; for ordinal 0, whether all jobs have
/// ended.
fn has_ended(memory: &Memory, batch: BatchPtr, ordinal: u32) -> bool {
    if ordinal == 0 {
        let record = memory.get(batch);
        return record.logged + record.unlogged == record.jobs;
    }
    let index = lists::index_of(memory, batch, ordinal);
    index.is_none_or(|index| State::from_byte(lists::job(memory, batch, index).state).is_final())
}

/// Returns whether this running job ends before the job with the ordinal does; for ordinal 0, before all jobs have
/// ended.
fn ends_before(memory: &Memory, batch: BatchPtr, running: &JobRecord, ordinal: u32) -> bool {
    let record = memory.get(batch);
    let is_queued = || {
        let index = lists::index_of(memory, batch, ordinal);
        index.is_some_and(|index| lists::job(memory, batch, index).state == State::Queued as u8)
    };
    let one_by_one = record.is_sequential != 0 || record.max_workers == 1;
    ordinal == 0 || running.ordinal == ordinal || one_by_one && is_queued()
}

fn watchers<'a>(memory: &'a Memory, record: &BatchRecord) -> impl Iterator<Item = &'a Watcher> {
    lists::chain(record.watchers, |watcher| memory.get(watcher).next).map(|watcher| memory.get(watcher))
}
