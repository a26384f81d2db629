//! Parts that both processes share: how a job lies in shared memory, and what is asked of the catalogs about it.

pub mod attempt;
pub mod backlog;
pub mod catalog;
pub mod channel;
pub mod cut;
pub mod log;
pub mod manner;
pub mod nesting;
pub mod note;
pub mod pool;
pub mod registry;
pub mod rights;
pub mod spec;
pub mod spool;
pub mod table;

use std::ffi::CStr;

/// `backend_type` of workers in `pg_stat_activity`.
pub const WORKER_KIND: &CStr = c"pg_background";
/// The library, as the server finds it.
pub const LIBRARY: &CStr = c"pg_background_mgr";
/// The worker's entry point in the library.
pub const WORKER_FUNCTION: &CStr = c"pg_background_mgr_worker_main";
/// The entry point of the manager's workers.
pub const POOL_FUNCTION: &CStr = c"pg_background_mgr_pool_main";
