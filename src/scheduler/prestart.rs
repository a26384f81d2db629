//! Prestarted workers: processes that were started before there is a job for them. They are evicted as soon as another
//! process is needed.

use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::registry::layout::Prestarted;
use crate::registry::root::{root, root_mut};

fn all(memory: &Memory) -> &[Prestarted] {
    root(memory).map_or(&[], |root| &root.prestarted)
}

fn all_mut(memory: &mut Memory) -> &mut [Prestarted] {
    root_mut(memory).map_or(&mut [], |root| &mut root.prestarted)
}

fn worker(prestarted: &Prestarted) -> WorkerHandle {
    WorkerHandle::from_words(prestarted.handle)
}

/// Frees the records of processes that are gone.
fn reclaim(memory: &mut Memory) {
    for prestarted in all_mut(memory).iter_mut().filter(|prestarted| prestarted.is_there != 0) {
        if worker(prestarted).is_gone() {
            *prestarted = bytemuck::Zeroable::zeroed();
        }
    }
}

/// Counts the prestarted workers that wait for a job.
pub fn count(memory: &mut Memory) -> usize {
    reclaim(memory);
    all(memory).iter().filter(|prestarted| (prestarted.is_there, prestarted.exit_requested) == (1, 0)).count()
}

/// Records a prestarted worker that was registered; terminates it if there are too many.
pub fn add_prestarted(memory: &mut Memory, worker: WorkerHandle) {
    reclaim(memory);
    match all_mut(memory).iter_mut().find(|prestarted| prestarted.is_there == 0) {
        Some(free) => *free = Prestarted { is_there: 1, handle: worker.to_words(), exit_requested: 0 },
        None => worker.terminate(),
    }
}

/// Takes a prestarted worker for a job. Returns `false` if it was told to exit.
pub fn take_prestarted(memory: &mut Memory, worker: WorkerHandle) -> bool {
    let found = find(memory, worker).filter(|found| found.exit_requested == 0);
    found.map(|found| *found = bytemuck::Zeroable::zeroed()).is_some()
}

/// Records that a prestarted worker exits by itself, without a job.
pub fn terminate_prestarted(memory: &mut Memory, worker: WorkerHandle) {
    if let Some(found) = find(memory, worker) {
        found.exit_requested = 1;
    }
}

fn find(memory: &mut Memory, worker: WorkerHandle) -> Option<&mut Prestarted> {
    let words = worker.to_words();
    all_mut(memory).iter_mut().find(|prestarted| (prestarted.is_there, prestarted.handle) == (1, words))
}

/// Evicts a prestarted worker. Returns `false` if there is none.
pub fn evict_prestarted(memory: &mut Memory) -> bool {
    reclaim(memory);
    let found =
        all_mut(memory).iter_mut().find(|prestarted| (prestarted.is_there, prestarted.exit_requested) == (1, 0));
    found.is_some_and(|found| {
        found.exit_requested = 1;
        worker(found).terminate();
        true
    })
}

/// Returns whether a process that was told to exit is still there.
fn is_one_exiting(memory: &Memory) -> bool {
    all(memory).iter().any(|prestarted| prestarted.exit_requested != 0 && !worker(prestarted).is_gone())
}

/// Evicts a prestarted worker, unless one is exiting already. Returns `false` if there is none.
pub fn evict_for_another(memory: &mut Memory) -> bool {
    is_one_exiting(memory) || evict_prestarted(memory)
}
