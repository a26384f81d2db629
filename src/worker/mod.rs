//! What runs in a background worker: one job, from the segment that names it to its outcome.

mod bootstrap;
mod executor;
mod outbox;

use crate::ffi::dsm::Handle;
use pgrx::{pg_guard, pg_sys};

/// Entry point of a worker (bgworker.c, `BackgroundWorkerMain`).
#[pg_guard]
#[no_mangle]
pub extern "C-unwind" fn pg_background_mgr_worker_main(segment: pg_sys::Datum) {
    bootstrap::main(Handle::from_datum(segment));
}
