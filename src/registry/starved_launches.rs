//! Launches that have waited for long without a process: others let them have the next one.
//!
//! Of sessions that launch one job after the other, each would keep its worker for as long as it goes on. Nothing is to
//! be undone when a session that waits ends: it says again and again that it waits.

use crate::ffi::process;
use crate::registry::counters::{note_now, time, Counter};
use std::time::Duration;

/// Time after which a launch has waited for long.
const LONG: Duration = Duration::from_millis(100);
/// Time for which others let it go first after it has said that it waits: it does so each 2 milliseconds.
const TURN: Duration = Duration::from_millis(10);

/// Records that a launch has waited for so much time, and still waits.
pub fn note_waiting(waited: Duration) {
    if waited >= LONG {
        note_now(Counter::LaunchWaiting);
    }
}

/// Returns whether a launch that has waited for so much time must let others go first.
pub fn must_yield(waited: Duration) -> bool {
    let at = time(Counter::LaunchWaiting);
    waited < LONG && at.some().is_some() && (at..at + TURN).contains(&process::now())
}
