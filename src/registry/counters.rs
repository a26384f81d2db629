//! Numbers beside the registry, which need no lock and are there before it.

use crate::ffi::{area, process};
use crate::time::Timestamp;
use std::sync::atomic::{AtomicI64, Ordering};

/// Use of each number.
#[derive(Debug, Clone, Copy)]
pub enum Counter {
    /// Count of the workers without a slot.
    Unregistered,
    /// Time at which the last of them began to exit.
    ExitingSince,
    /// Time at which the last of them was registered.
    StartingSince,
    /// Time at which a launch that has waited for long said so last.
    LaunchWaiting,
}

/// Returns the number itself.
pub fn counter(counter: Counter) -> &'static AtomicI64 {
    const { assert!(Counter::LaunchWaiting as usize + 1 == area::COUNTERS) };
    area::counter(counter as usize)
}

/// Sets a time to now.
pub fn note_now(at: Counter) {
    counter(at).store(process::now().micros(), Ordering::Release);
}

/// Returns a time; [`Timestamp::NONE`] if it was never set.
pub fn time(at: Counter) -> Timestamp {
    Timestamp::of_micros(counter(at).load(Ordering::Acquire))
}
