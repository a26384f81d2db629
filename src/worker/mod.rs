//! Work of a background worker: attached jobs, and jobs of the queue, one after the other.

mod attached_job;
mod collected_rows;
mod connection_limit;
mod entry;
mod exit;
mod main_loop;
mod memory_watchdog;
mod next;
mod outcome;
mod pool_worker;
mod result_collector;
mod result_queue;
mod result_sender;
mod session_setup;
mod signals;
mod simple_query;
mod state;
mod succession;

use crate::ffi::dsm::Handle;
use pgrx::{pg_guard, pg_sys};

/// Runs a worker that was started for the job of a session (bgworker.c, `BackgroundWorkerMain`).
#[pg_guard]
#[no_mangle]
pub extern "C-unwind" fn pg_background_mgr_worker_main(segment: pg_sys::Datum) {
    entry::attached_main(Handle::from_datum(segment));
}

/// Runs a worker that was started for the queue.
#[pg_guard]
#[no_mangle]
pub extern "C-unwind" fn pg_background_mgr_pool_main(_argument: pg_sys::Datum) {
    entry::pool_main();
}
