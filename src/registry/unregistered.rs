//! Workers of attached jobs that have no slot in the registry: they run one job and exit, and count against the cap.
//!
//! They are counted outside the registry, so that a launch that needs no slot needs no lock.

use crate::ffi::{area, process};
use crate::time::Timestamp;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Index of the counter of these workers.
const COUNT: usize = 0;
/// Index of the time at which the last of them began to exit, as [`Timestamp::micros`].
const EXITING_SINCE: usize = 1;
/// Time that a process takes to exit if nothing unusual holds it up.
const EXIT_GRACE: Duration = Duration::from_millis(100);

/// Adds this worker to the count of those without a slot.
pub fn add() {
    area::counter(COUNT).fetch_add(1, Ordering::AcqRel);
}

/// Removes this worker from the count of those without a slot.
pub fn remove() {
    area::counter(COUNT).fetch_sub(1, Ordering::AcqRel);
}

/// Returns the number of workers without a slot.
pub fn count() -> usize {
    usize::try_from(area::counter(COUNT).load(Ordering::Acquire)).unwrap_or(0)
}

/// Records that a worker without a slot exits, or has nothing more to do: its process will be available in a moment.
pub fn note_exiting() {
    area::counter(EXITING_SINCE).store(process::now().micros(), Ordering::Release);
}

/// Returns whether a worker without a slot is exiting, or was a moment ago.
pub fn is_one_exiting() -> bool {
    let since = Timestamp::of_micros(area::counter(EXITING_SINCE).load(Ordering::Acquire));
    process::now() < since + EXIT_GRACE
}
