//! Reasons for a worker that stays to go in the end; the deletion of old rows meanwhile.

use crate::ffi::process;
use crate::guc;
use std::time::Duration;

/// Longest time between two looks for old rows.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// Counts what jobs leave in a process that no reset takes back: caches, libraries, what procedural languages keep.
#[derive(Default)]
pub(super) struct MemoryWatchdog {
    /// Jobs since it was looked at.
    jobs: usize,
}

impl MemoryWatchdog {
    /// Limits the memory of its own that a worker may have, in bytes.
    const LIMIT: u64 = 64 << 20;
    /// Jobs between two looks at it.
    const EVERY: usize = 256;

    /// Returns whether another process is to come in the place of this one, after so many jobs more.
    pub(super) fn limit_exceeded(&mut self, jobs: usize) -> bool {
        self.jobs += jobs;
        if self.jobs < Self::EVERY {
            return false;
        }
        self.jobs = 0;
        process::memory().is_some_and(|memory| memory > Self::LIMIT)
    }
}

/// Time between two deletions of old rows: often enough for the log to be about as long as it may be.
pub(super) fn prune_every() -> Duration {
    let retention = guc::log_retention().map_or(PRUNE_EVERY, |seconds| Duration::from_secs(seconds.unsigned_abs()));
    (retention / 20).clamp(Duration::from_secs(1), PRUNE_EVERY)
}
