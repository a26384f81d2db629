//! Start of another worker in the place of one that goes.

use crate::ffi::interrupt::CancelHeld;
use crate::ffi::{area, latch};
use crate::scheduler;
use crate::scheduler::{start, SlotReservation, StartStatus};
use std::time::{Duration, Instant};

/// Time that a worker that goes waits until the server has started another one, or has said that it cannot.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_millis(300);
/// Interval at which it looks whether the server has.
const START_CHECK: Duration = Duration::from_millis(1);

/// Registers a worker in the place of this one, which goes. Returns `false` if the server starts this one again.
pub fn register_successor(index: usize, start: SlotReservation) -> bool {
    let is_succeeded = start::register_after(index, start);
    if !is_succeeded {
        area::write(|memory| scheduler::keep_for_restart(memory, index));
    }
    is_succeeded
}

/// Waits until the server has started the worker. Returns `false` if it has not in time, or if no job waits for that
/// any more.
pub fn await_successor(start: SlotReservation) -> bool {
    let began = Instant::now();
    loop {
        match area::write(|memory| scheduler::start_status(memory, start)) {
            StartStatus::Started => return true,
            StartStatus::PendingNeeded if began.elapsed() < SUCCESSOR_TIMEOUT => {}
            StartStatus::PendingNeeded | StartStatus::PendingUnneeded => return false,
        }
        start::start_workers();
        let _held = CancelHeld::new();
        latch::wait(Some(START_CHECK));
    }
}
