//! Part that runs in a background worker: jobs that sessions give to it directly, and jobs of the queue, one after the
//! other.

mod bootstrap;
mod direct;
mod executor;
mod outbox;
mod pool;
mod recorder;

use crate::ffi::dsm::Handle;
use pgrx::{pg_guard, pg_sys};

/// Entry point of a worker (bgworker.c, `BackgroundWorkerMain`).
#[pg_guard]
#[no_mangle]
pub extern "C-unwind" fn pg_background_mgr_worker_main(segment: pg_sys::Datum) {
    direct::main(Handle::from_datum(segment));
}

/// Entry point of a worker of the manager.
#[pg_guard]
#[no_mangle]
pub extern "C-unwind" fn pg_background_mgr_pool_main(_argument: pg_sys::Datum) {
    pool::main();
}
