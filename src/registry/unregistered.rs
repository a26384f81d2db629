//! Workers of attached jobs that have no slot in the registry: they run one job and exit, and count against the cap.
//!
//! They are counted outside the registry, so that a launch that needs no slot needs no lock.

use crate::ffi::process;
use crate::registry::counters::{counter, note_now, time, Counter};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Time within which a process has started and run a short job if nothing unusual holds it up.
const START_GRACE: Duration = Duration::from_millis(500);
/// Time that a process takes to exit if nothing unusual holds it up.
const EXIT_GRACE: Duration = Duration::from_millis(100);

/// Adds this worker to the count of those without a slot.
pub fn add() {
    counter(Counter::Unregistered).fetch_add(1, Ordering::AcqRel);
}

/// Removes this worker from the count of those without a slot.
pub fn remove() {
    counter(Counter::Unregistered).fetch_sub(1, Ordering::AcqRel);
}

/// Returns the number of workers without a slot.
pub fn count() -> usize {
    usize::try_from(counter(Counter::Unregistered).load(Ordering::Acquire)).unwrap_or(0)
}

/// Records that a worker without a slot was registered.
pub fn note_starting() {
    note_now(Counter::StartingSince);
}

/// Returns whether a worker without a slot was registered a moment ago.
pub fn is_one_starting() -> bool {
    process::now() < time(Counter::StartingSince) + START_GRACE
}

/// Records that a worker without a slot exits, or has nothing more to do: its process will be available in a moment.
pub fn note_exiting() {
    note_now(Counter::ExitingSince);
}

/// Returns whether a worker without a slot is exiting, or was a moment ago.
pub fn is_one_exiting() -> bool {
    process::now() < time(Counter::ExitingSince) + EXIT_GRACE
}
