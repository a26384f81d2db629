//! Processes that were started ahead of their job. They are in nobody's way: who wants a process sends them away.

use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::registry::layout::Prestarted;
use crate::registry::root::{root, root_mut};

fn all(memory: &Memory) -> &[Prestarted] {
    root(memory).map_or(&[], |root| &root.ahead)
}

fn all_mut(memory: &mut Memory) -> &mut [Prestarted] {
    root_mut(memory).map_or(&mut [], |root| &mut root.ahead)
}

fn worker(ahead: &Prestarted) -> WorkerHandle {
    WorkerHandle::from_words(ahead.handle)
}

/// Forgets those that are gone.
fn reclaim(memory: &mut Memory) {
    for ahead in all_mut(memory).iter_mut().filter(|ahead| ahead.is_there != 0) {
        if worker(ahead).is_gone() {
            *ahead = bytemuck::Zeroable::zeroed();
        }
    }
}

/// Counts the processes that wait for a job.
pub fn count(memory: &mut Memory) -> usize {
    reclaim(memory);
    all(memory).iter().filter(|ahead| (ahead.is_there, ahead.exit_requested) == (1, 0)).count()
}

/// A process was asked for ahead of its job.
pub fn add_prestarted(memory: &mut Memory, worker: WorkerHandle) {
    reclaim(memory);
    match all_mut(memory).iter_mut().find(|ahead| ahead.is_there == 0) {
        Some(free) => *free = Prestarted { is_there: 1, handle: worker.to_words(), exit_requested: 0 },
        None => worker.terminate(),
    }
}

/// Takes a process that is to have a job. False = it was told to go.
pub fn take_prestarted(memory: &mut Memory, worker: WorkerHandle) -> bool {
    let found = find(memory, worker).filter(|found| found.exit_requested == 0);
    found.map(|found| *found = bytemuck::Zeroable::zeroed()).is_some()
}

/// Marks a process that will have no job, and knows it.
pub fn terminate_prestarted(memory: &mut Memory, worker: WorkerHandle) {
    if let Some(found) = find(memory, worker) {
        found.exit_requested = 1;
    }
}

fn find(memory: &mut Memory, worker: WorkerHandle) -> Option<&mut Prestarted> {
    let words = worker.to_words();
    all_mut(memory).iter_mut().find(|ahead| (ahead.is_there, ahead.handle) == (1, words))
}

/// Sends one away. False = there is none.
pub fn evict_prestarted(memory: &mut Memory) -> bool {
    reclaim(memory);
    let found = all_mut(memory).iter_mut().find(|ahead| (ahead.is_there, ahead.exit_requested) == (1, 0));
    found.is_some_and(|found| {
        found.exit_requested = 1;
        worker(found).terminate();
        true
    })
}

/// Returns whether a process that was told to go is still there.
fn is_one_exiting(memory: &Memory) -> bool {
    all(memory).iter().any(|ahead| ahead.exit_requested != 0 && !worker(ahead).is_gone())
}

/// Tells one to go if none is leaving. False = there is none.
pub fn evict_for_another(memory: &mut Memory) -> bool {
    is_one_exiting(memory) || evict_prestarted(memory)
}
