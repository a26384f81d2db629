//! pg_background_mgr: SQL in background workers of PostgreSQL.
//!
//! A session launches a job: it writes the job's text and its own identity and settings into a segment of shared
//! memory and has the server start a worker. The worker logs in as the launcher, runs the text as if a client had sent
//! it, and sends back rows, notices and the outcome. `docs/` tells why it is built so.
//!
//! Layers, each importing only from those below: `api`; `session` and `worker` (two processes, which never import each
//! other); `channel` and `log`; `scheduler`; `registry`; `spec`; `sql_split`; `ffi`; `compat`. Beside them are
//! `protocol`, plain data, with `ids` and `time`, types in it, `queries`, the text of the extension's own SQL, and
//! `error`.

#[cfg(not(feature = "__ge18"))]
extern crate pgrx_013 as pgrx;
#[cfg(feature = "__ge18")]
extern crate pgrx_018 as pgrx;
#[cfg(all(test, feature = "pgrx_tests_013"))]
extern crate pgrx_tests_013 as pgrx_tests;
#[cfg(all(test, feature = "pgrx_tests_018"))]
extern crate pgrx_tests_018 as pgrx_tests;

mod api;
mod channel;
mod compat;
mod error;
mod ffi;
mod guc;
mod ids;
mod log;
mod protocol;
mod queries;
mod registry;
mod scheduler;
mod session;
mod spec;
mod sql_split;
mod time;
mod worker;

use pgrx::prelude::*;

pgrx::pg_module_magic!();

pgrx::extension_sql_file!("../sql/functions.sql", name = "functions");
pgrx::extension_sql_file!("../sql/manager.sql", name = "manager", requires = ["functions"]);
pgrx::extension_sql_file!("../sql/grants.sql", name = "grants", requires = ["manager"], finalize);

/// Runs once in each process that loads the library.
#[allow(non_snake_case, reason = "the server looks for this name")]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    ffi::report::filter_log();
    guc::define();
    compat::utility::after_discard_all(channel::attached_jobs::clear);
}

#[cfg(any(test, feature = "pg_test"))]
mod pg_tests;

/// Functions that `cargo pgrx test` asks of a crate.
#[cfg(test)]
pub mod pg_test {
    /// Prepares nothing.
    pub fn setup(_options: Vec<&str>) {}

    /// Jobs that launch jobs want a few workers.
    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["max_worker_processes = 16"]
    }
}
