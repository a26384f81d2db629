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
const GOING_CHECKS: u32 = 20;

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
    let worker = Worker::register(LIBRARY, WORKER_KIND, &registration)
        .or_else(|| take_place_of_ahead().then(|| Worker::register(LIBRARY, WORKER_KIND, &registration))?);
    area::write(|memory| match worker {
        Some(worker) => registry::register(memory, start, worker),
        None => registry::cannot_register(memory, start),
    });
    worker.is_some()
}

/// Sends a process away that was started ahead of its job, and waits until it is gone. False = there is none. Interrupts are
/// not served: whatever wants a worker has been promised already.
fn take_place_of_ahead() -> bool {
    if !area::write(registry::make_room_ahead) {
        return false;
    }
    for _ in 0..GOING_CHECKS {
        if !area::read(registry::is_one_leaving_ahead) {
            return true;
        }
        latch::pause(GOING_CHECK);
    }
    true
}

/// Ends this process in a way that has the server start another one in its place.
pub fn die() {
    exit::now(1);
}
