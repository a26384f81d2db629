//! Having workers started.

use super::registry::{self, Start};
use super::{LIBRARY, POOL_FUNCTION, WORKER_KIND};
use crate::ffi::area;
use crate::ffi::bgworker::{Registration, Worker};
use crate::ffi::dsm::Handle;
use crate::ffi::{exit, latch};
use std::time::Duration;

/// How long the server waits before it starts a worker again that has died, in seconds: for what is still queued.
const RESTART_AFTER: i32 = 1;

/// A process that is to go takes a millisecond or two; if something holds it up, the worker is started another time.
const GOING_CHECK: Duration = Duration::from_millis(1);
const GOING_CHECKS: u32 = 100;

/// Starts the workers that are wanted now and that there is room for.
pub fn start_workers() {
    let starts = area::write(registry::plan);
    for start in starts {
        register(start);
    }
}

/// Registers a worker for its place. False = the server has no process for it.
pub fn register(start: Start) -> bool {
    let registration = Registration {
        function: POOL_FUNCTION,
        argument: Handle::NONE,
        words: [area::epoch() as u64, start.slot as u64, start.serial],
        restart_after: Some(RESTART_AFTER),
    };
    let ask = || Worker::register(LIBRARY, WORKER_KIND, &registration);
    let worker = ask().or_else(|| ask_again(ask));
    area::write(|memory| match worker {
        Some(worker) => registry::register(memory, start, worker),
        None => registry::cannot_register(memory, start),
    });
    worker.is_some()
}

/// Asks for a process while one is on its way out, or can be sent away as it was started ahead of its job. Interrupts are not
/// served: whatever wants the worker has been promised already.
fn ask_again(ask: impl Fn() -> Option<Worker>) -> Option<Worker> {
    // When somebody has waited in vain, others do not: not each claim of a job is to take so long.
    let is_patient = !area::read(registry::is_starved);
    for _ in 0..GOING_CHECKS {
        let one_goes = area::write(registry::make_room_ahead) || is_patient && area::is_one_leaving();
        if !one_goes {
            return None;
        }
        latch::pause(GOING_CHECK);
        if let Some(worker) = ask() {
            return Some(worker);
        }
    }
    None
}

/// Ends this process in a way that has the server start another one in its place.
pub fn die() {
    exit::now(1);
}
