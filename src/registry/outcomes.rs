//! Outcomes of jobs that are not in the log yet.

use crate::ffi::area::Memory;
use crate::ffi::dsa_ref::DsaArray;
use crate::registry::layout::{BatchPtr, JobRecord};
use crate::registry::lists;
use crate::registry::root::root_mut;

/// Outcome in shared memory that no job has yet.
#[derive(Debug, Clone, Copy)]
pub struct StoredOutcome(DsaArray<u8>);

/// Stores the outcome of a job that ends now. Returns `None` if it is empty, or if there is no memory for it; in the
/// latter case, anything that the caller has read may have changed ([`Memory::allocate`]).
pub fn store(memory: &mut Memory, outcome: &[u8]) -> Option<StoredOutcome> {
    if outcome.is_empty() {
        return None;
    }
    let stored = memory.allocate_array(outcome.len())?;
    memory.slice_mut(stored).copy_from_slice(outcome);
    if let Some(root) = root_mut(memory) {
        root.used += stored.len();
    }
    Some(StoredOutcome(stored))
}

/// Frees a stored outcome that is not attached to a job.
pub fn discard(memory: &mut Memory, outcome: StoredOutcome) {
    memory.free_array(outcome.0);
    if let Some(root) = root_mut(memory) {
        root.used -= outcome.0.len();
    }
}

/// Attaches a stored outcome to a job, which has none.
pub fn attach(memory: &mut Memory, batch: BatchPtr, index: u32, outcome: StoredOutcome) {
    lists::job_mut(memory, batch, index).outcome = outcome.0;
}

/// Returns the outcome of a job, or `None` if it has none in shared memory.
pub fn of_job<'a>(memory: &'a Memory, job: &JobRecord) -> Option<&'a [u8]> {
    (!job.outcome.is_empty()).then(|| memory.slice(job.outcome))
}

/// Frees the outcomes of the jobs of a batch.
pub fn discard_of_batch(memory: &mut Memory, batch: BatchPtr) {
    let outcomes = lists::jobs(memory, batch).iter().map(|job| job.outcome).filter(|outcome| !outcome.is_empty());
    let outcomes: Vec<StoredOutcome> = outcomes.map(StoredOutcome).collect();
    outcomes.into_iter().for_each(|outcome| discard(memory, outcome));
}
