//! Processes that wait for changes of a batch.

use crate::ffi::area::Memory;
use crate::ffi::dsa_ref::DsaPtr;
use crate::ffi::process;
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

/// Wakes this process when something of the batch changes. `follower`: it waits for the end of the batch, or of the job
/// whose uuid it is. False = there is no memory for that.
pub fn watch(memory: &mut Memory, uuid: &[u8; 16], follower: Option<Follower>) -> bool {
    let places: Vec<BatchPtr> = lists::batches_of_uuid(memory, uuid).collect();
    places.into_iter().all(|place| add_watcher(memory, place, uuid, follower, WakeOn::EachChange))
}

fn add_watcher(
    memory: &mut Memory,
    place: BatchPtr,
    uuid: &[u8; 16],
    follower: Option<Follower>,
    hears: WakeOn,
) -> bool {
    let Some(watcher) = memory.allocate::<Watcher>() else { return false };
    *memory.get_mut(watcher) = Watcher {
        next: memory.get(place).watchers,
        process: process::own(),
        hears: hears as u32,
        pid: follower.map_or(0, |follower| follower.pid),
        ordinal: lists::ordinal_of(uuid),
        is_follower: follower.is_some().into(),
        is_worker: follower.is_some_and(|follower| follower.is_worker).into(),
    };
    memory.get_mut(place).watchers = watcher;
    true
}

/// Takes that back, for one batch. False = this process has not watched it.
pub fn remove_own(memory: &mut Memory, place: BatchPtr) -> bool {
    let own = process::own();
    let (mut kept, mut has_watched) = (DsaPtr::NULL, false);
    let mut at = std::mem::replace(&mut memory.get_mut(place).watchers, DsaPtr::NULL);
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
    memory.get_mut(place).watchers = kept;
    has_watched
}

/// Notes that this process does not wait for the end any more; it goes on watching.
pub fn unfollow(memory: &mut Memory, uuid: &[u8; 16]) {
    let places: Vec<BatchPtr> = lists::batches_of_uuid(memory, uuid).collect();
    for place in places {
        update_own(memory, place, |watcher| (watcher.is_follower, watcher.is_worker) = (0, 0));
    }
}

/// Changes what this process has hung on a batch. False = nothing.
fn update_own(memory: &mut Memory, place: BatchPtr, change: impl Fn(&mut Watcher)) -> bool {
    let own = process::own();
    let mut is_there = false;
    let mut at = memory.get(place).watchers;
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

/// Forgets those of a batch.
pub fn forget(memory: &mut Memory, place: BatchPtr) {
    let mut at = std::mem::replace(&mut memory.get_mut(place).watchers, DsaPtr::NULL);
    while !at.is_null() {
        let next = memory.get(at).next;
        memory.free(at);
        at = next;
    }
}

/// Lets the next change, or the end, wake this process again, also of jobs that were launched again since, as a batch
/// of their own. `follower` as for [`watch`]. False = there is no memory for that.
pub fn arm(memory: &mut Memory, uuid: &[u8; 16], follower: Option<Follower>, hears: WakeOn) -> bool {
    let places: Vec<BatchPtr> = lists::batches_of_uuid(memory, uuid).collect();
    places.into_iter().all(|place| {
        update_own(memory, place, |watcher| watcher.hears = hears as u32)
            || add_watcher(memory, place, uuid, follower, hears)
    })
}

/// Returns whether nothing has woken this process since it looked last. Its latch may be reset by whatever else it
/// waits for.
pub fn is_armed(memory: &Memory, uuid: &[u8; 16]) -> bool {
    let own = process::own();
    let batches = lists::batches_of_uuid(memory, uuid).map(|place| memory.get(place));
    batches
        .flat_map(|batch| watchers(memory, batch))
        .all(|watcher| watcher.process != own || watcher.hears != WakeOn::Nothing as u32)
}

/// Wakes those that watch a batch, have looked since they were woken, and hear of such a change: all, or those whose
/// jobs have ended.
pub fn wake(memory: &mut Memory, place: BatchPtr) {
    wake_if(memory, place, |memory, watcher| {
        watcher.hears != WakeOn::TheEnd as u32 || has_ended(memory, place, watcher.ordinal)
    });
}

/// Wakes all that watch a batch and have looked since they were woken: each is to look for itself.
pub fn wake_all(memory: &mut Memory, place: BatchPtr) {
    wake_if(memory, place, |_, _| true);
}

fn wake_if(memory: &mut Memory, place: BatchPtr, is_meant: impl Fn(&Memory, &Watcher) -> bool) {
    let mut at = memory.get(place).watchers;
    while !at.is_null() {
        let watcher = *memory.get(at);
        if watcher.hears != WakeOn::Nothing as u32 && is_meant(memory, &watcher) {
            memory.get_mut(at).hears = WakeOn::Nothing as u32;
            process::wake(watcher.process);
        }
        at = watcher.next;
    }
}

/// The jobs that run and whose end a process waits for: their processes, and their uuids.
pub fn awaited_by(memory: &Memory, pid: i32) -> Vec<(i32, [u8; 16])> {
    let mut awaited = Vec::new();
    for place in lists::batches(memory) {
        let batch = memory.get(place);
        for watcher in watchers(memory, batch).filter(|watcher| watcher.pid == pid && watcher.is_follower != 0) {
            let in_batch =
                slots(memory).iter().filter(|slot| slot.state() == WorkerState::RunningQueued && slot.batch == place);
            let jobs = in_batch.map(|slot| (slot.pid, lists::job(memory, place, slot.job)));
            let wanted = jobs.filter(|(_, job)| ends_before(memory, place, job, watcher.ordinal));
            awaited.extend(wanted.map(|(pid, job)| (pid, lists::job_uuid(&batch.uuid, job.ordinal))));
        }
    }
    awaited
}

/// Counts the workers whose job waits for the end of others.
pub fn waiting_workers(memory: &Memory) -> usize {
    let mut waiting = HashSet::new();
    for place in lists::batches(memory) {
        let workers = watchers(memory, memory.get(place)).filter(|watcher| watcher.is_worker != 0);
        // Who is about to see that it need not wait any more goes on.
        waiting.extend(workers.filter(|watcher| !has_ended(memory, place, watcher.ordinal)).map(|watcher| watcher.pid));
    }
    waiting.len()
}

/// Returns whether the job with the ordinal has ended, if it is one of the batch; 0 = whether all have.
fn has_ended(memory: &Memory, place: BatchPtr, ordinal: u32) -> bool {
    if ordinal == 0 {
        let batch = memory.get(place);
        return batch.logged + batch.unlogged == batch.jobs;
    }
    let index = lists::index_of(memory, place, ordinal);
    index.is_none_or(|index| State::from_byte(lists::job(memory, place, index).state).is_final())
}

/// Returns whether this job, which runs, ends before the one with the ordinal does; 0 = before all have ended.
fn ends_before(memory: &Memory, place: BatchPtr, running: &JobRecord, ordinal: u32) -> bool {
    let batch = memory.get(place);
    let is_queued = || {
        let index = lists::index_of(memory, place, ordinal);
        index.is_some_and(|index| lists::job(memory, place, index).state == State::Queued as u8)
    };
    let one_by_one = batch.is_sequential != 0 || batch.max_workers == 1;
    ordinal == 0 || running.ordinal == ordinal || one_by_one && is_queued()
}

fn watchers<'a>(memory: &'a Memory, batch: &BatchRecord) -> impl Iterator<Item = &'a Watcher> {
    lists::chain(batch.watchers, |watcher| memory.get(watcher).next).map(|watcher| memory.get(watcher))
}
