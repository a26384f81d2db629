//! Workers of attached jobs that have no slot in the registry: they run one job and end, and count against the cap.
//!
//! Their number is beside the registry, so that a launch that needs no slot needs no lock.

use crate::ffi::{area, process};
use std::sync::atomic::Ordering;

/// Number of these workers that live now.
const COUNT: usize = 0;
/// The server's time in microseconds when the last of them began to end.
const EXITING_SINCE: usize = 1;
/// Microseconds that a process takes to end, if nothing unusual holds it up.
const EXIT_GRACE: i64 = 100_000;

/// Counts this worker among those without a slot.
pub fn add() {
    area::counter(COUNT).fetch_add(1, Ordering::AcqRel);
}

/// Counts this worker no more among those without a slot.
pub fn remove() {
    area::counter(COUNT).fetch_sub(1, Ordering::AcqRel);
}

/// Returns the number of workers without a slot.
pub fn count() -> usize {
    usize::try_from(area::counter(COUNT).load(Ordering::Acquire)).unwrap_or(0)
}

/// Notes that a worker without a slot ends now, or has nothing more to do: its process is free in a moment.
pub fn note_exiting() {
    area::counter(EXITING_SINCE).store(process::now(), Ordering::Release);
}

/// Returns whether a worker without a slot is ending, or was a moment ago.
pub fn is_one_exiting() -> bool {
    process::now() - area::counter(EXITING_SINCE).load(Ordering::Acquire) < EXIT_GRACE
}
