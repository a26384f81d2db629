//! Waiting for conditions, with a deadline.

use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Time that anything may take before a test fails. Generous: it is reached only by what is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

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

/// The same with a deadline of the caller's, and without a panic.
pub fn poll<T>(patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    // Nobody ever sends: the timeout is the pause between two looks.
    let (_silent, pause) = mpsc::channel::<()>();
    let mut step = Duration::from_millis(1);
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        let _ = pause.recv_timeout(step);
        step = (step * 2).min(Duration::from_millis(20));
    }
}
