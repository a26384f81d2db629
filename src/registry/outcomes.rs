//! Outcomes of jobs, until the log has them.

use crate::ffi::area::Memory;
use crate::registry::layout::{JobRecord, Place, Root};
use crate::registry::lists;

/// An outcome that is no job's yet.
#[derive(Debug, Clone, Copy)]
pub struct StoredOutcome {
    place: Place,
    bytes: u64,
}

/// Keeps an outcome for a job that ends now. None = it is empty, or there is no memory for it: then what the caller
/// has seen may have changed ([`Memory::allocate`]).
pub fn store(memory: &mut Memory, outcome: &[u8]) -> Option<StoredOutcome> {
    if outcome.is_empty() {
        return None;
    }
    let place = memory.allocate(outcome.len())?;
    memory.slice_mut::<u8>(place, outcome.len()).copy_from_slice(outcome);
    let (root, bytes) = (memory.root(), outcome.len() as u64);
    memory.get_mut::<Root>(root).used += bytes;
    Some(StoredOutcome { place, bytes })
}

/// Discards a kept outcome: it is to be no job's.
pub fn discard(memory: &mut Memory, kept: Option<StoredOutcome>) {
    let Some(StoredOutcome { place, bytes }) = kept else { return };
    let root = memory.root();
    memory.free(place);
    memory.get_mut::<Root>(root).used -= bytes;
}

/// Gives a kept outcome to this job, which has none.
pub fn attach(memory: &mut Memory, batch: Place, index: u32, kept: StoredOutcome) {
    let job = lists::job_mut(memory, batch, index);
    (job.outcome, job.outcome_bytes) = (kept.place, kept.bytes);
}

/// Returns the outcome of a job.
pub fn of_job<'a>(memory: &'a Memory, job: &JobRecord) -> Option<&'a [u8]> {
    (job.outcome != 0).then(|| memory.slice(job.outcome, job.outcome_bytes as usize))
}

/// Forgets those of a batch.
pub fn discard_of_batch(memory: &mut Memory, batch: Place) {
    let jobs = lists::jobs(memory, batch).iter().filter(|job| job.outcome != 0);
    let kept: Vec<StoredOutcome> =
        jobs.map(|job| StoredOutcome { place: job.outcome, bytes: job.outcome_bytes }).collect();
    kept.into_iter().for_each(|kept| discard(memory, Some(kept)));
}
