//! How deep this process is in jobs that launch jobs.

use std::cell::Cell;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// The number of jobs that this process is inside of; 0 in a client's session.
pub fn depth() -> u32 {
    DEPTH.get()
}

/// Worker: the process runs a job with this many above it.
pub fn set_depth(depth: u32) {
    DEPTH.set(depth);
}
