//! Having workers started.

use super::registry::{self, Start};
use super::{LIBRARY, POOL_FUNCTION, WORKER_KIND};
use crate::ffi::area;
use crate::ffi::bgworker::{Registration, Worker};
use crate::ffi::dsm::Handle;
use crate::ffi::exit;

/// How long the server waits before it starts a worker again that has died, in seconds: for what is still queued.
const RESTART_AFTER: i32 = 1;

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
    let worker = Worker::register(LIBRARY, WORKER_KIND, &registration);
    area::write(|memory| match worker {
        Some(worker) => registry::register(memory, start, worker),
        None => registry::cannot_register(memory, start),
    });
    worker.is_some()
}

/// Ends this process in a way that has the server start another one in its place.
pub fn die() {
    exit::now(1);
}
