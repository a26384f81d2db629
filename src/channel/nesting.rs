//! Jobs that launch jobs: which of those above a job still run.
//!
//! A job that launches another one takes a lock of its session, under a random key, and hands the key down. The lock
//! goes
//! with the job, however it ends, so a key whose lock is free is that of a job that has ended.

use crate::ffi::lock;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::random;
use std::cell::Cell;

thread_local! {
    /// This process runs a job.
    static IS_JOB: Cell<bool> = const { Cell::new(false) };
    /// The jobs above the one that runs here, as they were when it was launched.
    static ABOVE: ProcessCell<Vec<u64>> = const { process_cell(Vec::new()) };
    /// The key of the job that runs here; none = it has not launched anything.
    static OWN: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Tells that this process runs another job from now on, with these jobs above it. The locks of the last one are free.
pub fn begin_job(ancestors: &[u64]) {
    IS_JOB.set(true);
    ABOVE.set(ancestors.to_vec());
    OWN.set(None);
}

/// Returns whether this process runs jobs, and is no client's.
pub fn is_job() -> bool {
    IS_JOB.get()
}

/// Returns the jobs that run above one that is launched now, this one among them; none in a client's session.
pub fn ancestors() -> Vec<u64> {
    if !IS_JOB.get() {
        return Vec::new();
    }
    let own = OWN.get().unwrap_or_else(|| u64::from_ne_bytes(random::random_bytes()));
    // At each launch: the job may have given up all locks of its session since the last one.
    lock::take_key(own);
    OWN.set(Some(own));
    let above = ABOVE.with_borrow(Vec::clone);
    above.into_iter().filter(|key| lock::is_key_taken(*key)).chain([own]).collect()
}
