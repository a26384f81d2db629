//! The server's parser, for texts that are looked at and not run (parser.c, scan.l).

use crate::compat::exec;
use crate::ffi::memory::{c_string, Context};
use crate::ffi::report::{Captured, Log, ERROR};
use crate::ffi::{interrupt, report, session};
use crate::protocol::Report;
use crate::sql_split::ParseOutcome;
use pgrx::pg_sys;
use std::ffi::c_int;

/// Returns `standard_conforming_strings`.
pub fn standard_strings() -> bool {
    // SAFETY: a setting of this process.
    unsafe { pg_sys::standard_conforming_strings }
}

/// Parses texts, one after the other.
pub struct Parser {
    /// Emptied after each text.
    memory: Context,
}

impl Parser {
    pub fn new() -> Self {
        Parser { memory: Context::in_current(c"pg_background_mgr parser") }
    }

    /// Parses a text. Its notices are not shown: they come when the text is run.
    pub fn parse(&self, sql: &[u8]) -> ParseOutcome<Report> {
        interrupt::check();
        let outcome = {
            let _context = self.memory.enter();
            let _quiet = Quiet::new();
            // SAFETY: the parser reads settings and no catalog, so nothing has to be rolled back when it raises.
            report::catch_call(|| unsafe { exec::raw_parse(c_string(sql)) }).map(drop)
        };
        self.memory.reset();
        match outcome {
            Ok(()) => ParseOutcome::Complete,
            Err(captured) => failure(sql, *captured),
        }
    }
}

/// Returns what the parser's error says of the text. Errors that say nothing of it are raised again.
fn failure(sql: &[u8], captured: Captured) -> ParseOutcome<Report> {
    let report = captured.report;
    if is_of_server(report.sqlstate) {
        report::emit(&report, Log::Here);
    }
    // Other functions of the parser complain of what they have read, and some of them too early.
    let refused = report.function.as_deref() == Some(b"scanner_yyerror");
    let position = match usize::try_from(report.position) {
        Ok(position @ 1..) => session::bytes_of_characters(sql, position - 1),
        _ => sql.len(),
    };
    ParseOutcome::Fails { position, refused, report }
}

/// Returns whether the SQLSTATE is of a class of errors of resources, operators or faults (errcodes.txt).
fn is_of_server(sqlstate: i32) -> bool {
    use crate::protocol::sqlstate as code;
    const CLASS: i32 = 0xFFF;
    [code(b"53000"), code(b"57000"), code(b"58000"), code(b"XX000")]
        .iter()
        .any(|class| class & CLASS == sqlstate & CLASS)
}

/// While this lives, nothing below an error is shown or logged.
struct Quiet {
    client: c_int,
    log: c_int,
}

impl Quiet {
    fn new() -> Self {
        // SAFETY: settings of this process, which are put back.
        unsafe {
            let before = Quiet { client: pg_sys::client_min_messages, log: pg_sys::log_min_messages };
            pg_sys::client_min_messages = ERROR;
            pg_sys::log_min_messages = ERROR;
            before
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            pg_sys::client_min_messages = self.client;
            pg_sys::log_min_messages = self.log;
        }
    }
}
