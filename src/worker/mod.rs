//! Part that runs in a background worker: jobs that sessions give to it directly, and jobs of the queue, one after the
//! other.

mod attached_job;
mod main_loop;
mod result_collector;
mod result_sender;
mod session_setup;
mod simple_query;

use crate::ffi::dsm::Handle;
use pgrx::{pg_guard, pg_sys};

/// Entry point of a worker (bgworker.c, `BackgroundWorkerMain`).
#[pg_guard]
#[no_mangle]
pub extern "C-unwind" fn pg_background_mgr_worker_main(segment: pg_sys::Datum) {
    attached_job::main(Handle::from_datum(segment));
}

/// Entry point of a worker of the manager.
#[pg_guard]
#[no_mangle]
pub extern "C-unwind" fn pg_background_mgr_pool_main(_argument: pg_sys::Datum) {
    main_loop::main();
}
