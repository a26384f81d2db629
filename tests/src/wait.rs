//! Waiting for conditions, with a deadline.

use std::time::{Duration, Instant};

/// Time that anything may take before a test fails. Generous: it is reached only by what is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// SQL expression that takes longer than any test waits: for jobs that run until something ends them.
pub const FOREVER: &str = "pg_sleep(600)";

/// Statement that takes as long as [`FOREVER`].
pub const SLEEP_FOREVER: &str = "select pg_sleep(600)";

/// Waits until `condition` holds.
///
/// # Panics
/// Panics when it does not within [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()))
}

/// Waits until `probe` gives something.
///
/// # Panics
/// Panics when it does not within [`PATIENCE`].
#[track_caller]
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    match poll(PATIENCE, &mut probe) {
        Some(found) => found,
        None => panic!("gave up after {PATIENCE:?} waiting for: {what}"),
    }
}

/// Waits until `probe` gives something, or `patience` is over.
pub fn poll<T>(patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    let mut step = Duration::from_millis(1);
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        pause(step);
        step = (step * 2).min(Duration::from_millis(20));
    }
}

/// Sleeps between two looks at a condition. The one sleep of the tests: `dev/check` knows this function by its name.
fn pause(step: Duration) {
    std::thread::sleep(step);
}
