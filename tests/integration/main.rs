//! Integration tests: real servers, seen from their clients.
//!
//! `PGBM_PG_BIN` names the directory of the server's programs; the extension is installed in that server.

use std::process::ExitCode;

mod attached;
mod batch;
mod crash;
mod security;
mod stress;
mod support;
mod workers;

fn main() -> ExitCode {
    pg_background_mgr_tests::case::run()
}
