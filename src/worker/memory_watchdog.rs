//! Memory of a worker that stays, which is a reason for it to go in the end.

use crate::ffi::process;

/// Counts what jobs leave in a process that no reset takes back: caches, libraries, what procedural languages keep.
#[derive(Default)]
pub struct MemoryWatchdog {
    /// Jobs since the last look at it.
    jobs: usize,
}

impl MemoryWatchdog {
    /// Limits the memory of its own that a worker may have, in bytes.
    const LIMIT: u64 = 64 << 20;
    /// Jobs between two looks at it.
    const EVERY: usize = 256;

    /// Returns whether another process is to come in the place of this one, after so many jobs more.
    pub fn limit_exceeded(&mut self, jobs: usize) -> bool {
        self.jobs += jobs;
        if self.jobs < Self::EVERY {
            return false;
        }
        self.jobs = 0;
        process::memory().is_some_and(|memory| memory > Self::LIMIT)
    }
}
