//! Nested launches: the running jobs above a job.
//!
//! A job that launches another one takes a lock of its session, under a random key, and passes the key down. The lock
//! is released when the job ends, however it ends, so that a key whose lock is free is that of a job that has ended.

use crate::ffi::lock;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::random;
use std::cell::Cell;

thread_local! {
    /// This process runs a job.
    static IS_JOB: Cell<bool> = const { Cell::new(false) };
    /// Keys of the jobs above the one that runs here, as of its launch.
    static ABOVE: ProcessCell<Vec<u64>> = const { process_cell(Vec::new()) };
    /// Key of the job that runs here; `None` if it has not launched anything.
    static OWN: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Records that this process runs another job from now on, below these jobs. The locks of its last job are free.
pub fn begin_job(ancestors: &[u64]) {
    IS_JOB.set(true);
    ABOVE.set(ancestors.to_vec());
    OWN.set(None);
}

/// Returns whether this process runs jobs, and does not serve a client.
pub fn is_job() -> bool {
    IS_JOB.get()
}

/// Returns the keys of the running jobs above one that is launched now, including this one; none in a client's session.
pub fn ancestors() -> Vec<u64> {
    if !IS_JOB.get() {
        return Vec::new();
    }
    let own = OWN.get().unwrap_or_else(|| u64::from_ne_bytes(random::random_bytes()));
    // Taken at each launch: the job may have released all locks of its session since the last one.
    lock::take_key(own);
    OWN.set(Some(own));
    let above = ABOVE.with_borrow(Vec::clone);
    above.into_iter().filter(|key| lock::is_key_taken(*key)).chain([own]).collect()
}
