//! Errors and notices of the server as plain data (elog.c).
//!
//! A caught error has lost fields by the time pgrx hands it over, so a worker watches the server's own: a callback at
//! the bottom of `error_context_stack` runs last for every report, when its context is complete, and copies it.

use crate::compat::callback;
use crate::error::Error;
use crate::ffi::alloc::copy_c_string;
use crate::ffi::allocator::SPARE_BYTES;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
pub use crate::ffi::raise::{emit, Log, ERROR, LOG, NOTICE};
use crate::ffi::raise::{is_logged, is_passed_on, to_error_data};
use crate::ffi::sys::unguarded;
use crate::ffi::{alloc, allocator, interrupt, memory};
use crate::protocol::{Report, ERRCODE_INTERNAL_ERROR};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{c_void, CStr};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};

thread_local! {
    /// Names the place that a report is copied to.
    static REPORT: Cell<Option<&'static memory::Context>> = const { Cell::new(None) };
    static LAST_ERROR: ProcessCell<Option<Captured>> = const { process_cell(None) };
    static ON_NOTICE: Cell<Option<fn(Report)>> = const { Cell::new(None) };
    /// Inside [`catch_call`]: its own callback takes the errors.
    static IN_CALL: Cell<bool> = const { Cell::new(false) };
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
    static PREVIOUS_LOG_HOOK: Cell<pg_sys::emit_log_hook_type> = const { Cell::new(None) };
}

/// A report and how the server log would show it.
#[derive(Debug, Clone)]
pub struct Captured {
    pub report: Report,
    to_server: bool,
    hide_statement: bool,
    hide_context: bool,
}

impl From<Report> for Captured {
    fn from(report: Report) -> Self {
        Captured { report, to_server: true, hide_statement: false, hide_context: false }
    }
}

/// Copies of a report in memory until it is sent or logged, at most: it is copied, located, and written into a text
/// that grows.
const REPORT_COPIES: usize = 6;

/// Copies the server's report.
///
/// # Safety
/// `edata` is valid.
unsafe fn from_error_data(edata: &pg_sys::ErrorData) -> Report {
    let texts = [edata.message, edata.detail, edata.detail_log, edata.hint, edata.context, edata.internalquery];
    // SAFETY: every text of a report is null or a C string.
    unsafe {
        let bytes = texts.iter().filter(|text| !text.is_null()).map(|text| CStr::from_ptr(*text).count_bytes());
        alloc::ensure(REPORT_COPIES * bytes.sum::<usize>());
        Report {
            level: edata.elevel,
            sqlstate: edata.sqlerrcode,
            message: copy_c_string(edata.message).unwrap_or_default(), // a report need not have one
            detail: copy_c_string(edata.detail),
            detail_log: copy_c_string(edata.detail_log),
            hint: copy_c_string(edata.hint),
            context: copy_c_string(edata.context),
            schema: copy_c_string(edata.schema_name),
            table: copy_c_string(edata.table_name),
            column: copy_c_string(edata.column_name),
            datatype: copy_c_string(edata.datatype_name),
            constraint: copy_c_string(edata.constraint_name),
            position: edata.cursorpos,
            internal_position: edata.internalpos,
            internal_query: copy_c_string(edata.internalquery),
            file: copy_c_string(edata.filename),
            line: edata.lineno,
            function: copy_c_string(edata.funcname),
        }
    }
}

/// Runs `body` and returns its error as a report. The transaction is still to be aborted by the caller.
///
/// # Errors
/// The report of the server's error or of the panic that ended `body`.
pub fn catch<T>(body: impl FnOnce() -> T) -> Result<T, Box<Captured>> {
    if !allocator::keep_reserve() {
        return Err(Box::new(Captured::from(Report::from(Error::OutOfMemory(SPARE_BYTES)))));
    }
    LAST_ERROR.set(None);
    let caught = |error| {
        use pg_sys::panic::CaughtError::{ErrorReport, PostgresError, RustPanic};
        let (PostgresError(reduced) | ErrorReport(reduced) | RustPanic { ereport: reduced, .. }) = &error;
        let sqlstate = reduced.sql_error_code() as i32;
        // What the callback saw last may be an error that was handled on the way; then only the reduced one is left.
        // Its SQLSTATE tells nothing: pgrx knows only the server's own.
        let is_same = |captured: &Captured| String::from_utf8_lossy(&captured.report.message) == reduced.message();
        let complete = LAST_ERROR.with_borrow_mut(Option::take).filter(is_same);
        Err(Box::new(complete.unwrap_or_else(|| {
            Captured::from(Report {
                level: ERROR,
                sqlstate: if sqlstate == 0 { ERRCODE_INTERNAL_ERROR } else { sqlstate },
                message: reduced.message().as_bytes().to_vec(),
                detail: reduced.detail().map(|detail| detail.as_bytes().to_vec()),
                hint: reduced.hint().map(|hint| hint.as_bytes().to_vec()),
                ..Report::default()
            })
        })))
    };
    let outcome = pg_sys::PgTryBuilder::new(AssertUnwindSafe(|| Ok(body()))).catch_others(caught).execute();
    outcome.inspect_err(|_| interrupt::recheck())
}

/// Works as [`catch`], for a function that a statement calls: the report has the context up to the caller, who adds
/// the rest when it is raised again.
///
/// # Errors
/// As [`catch`].
pub fn catch_call<T>(body: impl FnOnce() -> T) -> Result<T, Box<Captured>> {
    // SAFETY: a variable of this process.
    let previous = unsafe { pg_sys::error_context_stack };
    let mut callback =
        pg_sys::ErrorContextCallback { previous, callback: Some(on_call_report), arg: std::ptr::null_mut() };
    let nested = IN_CALL.replace(true);
    // SAFETY: the callback is off the stack again before this frame ends; `catch` lets nothing pass.
    unsafe { pg_sys::error_context_stack = &raw mut callback };
    let outcome = catch(body);
    // SAFETY: as above.
    unsafe { pg_sys::error_context_stack = previous };
    IN_CALL.set(nested);
    outcome
}

/// Raises a caught error again, from inside Rust.
pub fn raise(captured: Captured) {
    emit(&captured.report, Log::Here);
}

/// Runs `body`; if it raises, runs `rescue` and lets the error go on.
pub fn on_error<T>(body: impl FnOnce() -> T, rescue: impl FnOnce()) -> T {
    attempt(body).unwrap_or_else(|error| {
        rescue();
        error.go_on()
    })
}

/// An error on its way out.
#[must_use = "the server still has the error: it must go on"]
pub struct Interrupted(Box<dyn std::any::Any + Send>);

impl Interrupted {
    /// Lets the error go on.
    pub fn go_on(self) -> ! {
        resume_unwind(self.0)
    }
}

/// Runs `body`; holds its error so that something can be put in order before it goes on.
///
/// # Errors
/// The error, which the caller must let go on.
pub fn attempt<T>(body: impl FnOnce() -> T) -> Result<T, Interrupted> {
    catch_unwind(AssertUnwindSafe(body)).map_err(Interrupted)
}

/// Takes the last error that [`watch`] saw in this process, if it has not been taken.
pub fn take_last_error() -> Option<Report> {
    LAST_ERROR.with_borrow_mut(Option::take).map(|captured| captured.report)
}

/// Sends every message for the client of this process to `on_notice` from now on.
pub fn send_notices_to(on_notice: fn(Report)) {
    ON_NOTICE.set(Some(on_notice));
}

/// Remembers every error of this process complete from now on, and sends every message for its client to `on_notice`.
/// Called once, when a worker starts.
pub fn watch(on_notice: fn(Report)) {
    send_notices_to(on_notice);
    let callback = Box::leak(Box::new(pg_sys::ErrorContextCallback {
        // SAFETY: a variable of this process.
        previous: unsafe { pg_sys::error_context_stack },
        callback: Some(on_report),
        arg: std::ptr::null_mut(),
    }));
    // SAFETY: the callback is never freed.
    unsafe { pg_sys::error_context_stack = callback };
}

callback! {
    fn on_report(_arg: *mut c_void) {
        capture(!IN_CALL.get(), true);
    }
}

callback! {
    fn on_call_report(_arg: *mut c_void) {
        capture(true, false);
    }
}

/// Ends the protection against reports about reports, also while unwinding.
struct Capturing;

impl Drop for Capturing {
    fn drop(&mut self) {
        CAPTURING.set(false);
    }
}

/// Copies the report that is being made.
fn capture(errors: bool, notices: bool) {
    if CAPTURING.replace(true) {
        return;
    }
    let _done = Capturing;
    // It is copied here, and by whoever catches it.
    allocator::free_reserve();
    // SAFETY: called by errfinish, so a report is on the stack; the copy must not go to ErrorContext.
    let captured = unsafe {
        let memory = REPORT.get().map(|memory| {
            memory.reset(); // of a copy that an error broke off
            memory.enter()
        });
        let _context = memory.unwrap_or_else(memory::MemoryContextGuard::to_process_lifetime);
        let edata = pg_sys::CopyErrorData();
        let wanted = if (*edata).elevel >= ERROR { errors } else { notices && (*edata).output_to_client };
        let captured = wanted.then(|| Captured {
            report: from_error_data(&*edata),
            to_server: (*edata).output_to_server && !is_passed_on(&*edata),
            hide_statement: (*edata).hide_stmt,
            hide_context: (*edata).hide_ctx,
        });
        pg_sys::FreeErrorData(edata);
        captured
    };
    match captured {
        Some(captured) if captured.report.level >= ERROR => {
            LAST_ERROR.set(Some(captured));
            interrupt::on_error();
        }
        Some(captured) => {
            if let Some(on_notice) = ON_NOTICE.get() {
                on_notice(captured.report);
            }
            allocator::keep_reserve();
        }
        None => {}
    }
}

/// Writes a caught error to the server log, with the statement, as a session does with an error of its own.
pub fn log(captured: &Captured) {
    let edata = to_error_data(&captured.report, Log::Here);
    // SAFETY: edata was built above. The jump skips only the closure, which holds nothing; after it the error is on
    // the server's stack, as it is in a PG_CATCH block, and leaves it with FlushErrorState.
    unsafe {
        (*edata).output_to_server = captured.to_server;
        (*edata).hide_stmt = captured.hide_statement;
        (*edata).hide_ctx = captured.hide_context;
        let context = pg_sys::CurrentMemoryContext;
        let exceptions = pg_sys::PG_exception_stack;
        let callbacks = pg_sys::error_context_stack;
        cee_scape::call_with_sigsetjmp(false, |landing| {
            pg_sys::PG_exception_stack = std::ptr::from_ref(landing).cast_mut().cast();
            unguarded::ReThrowError(edata)
        });
        pg_sys::PG_exception_stack = exceptions;
        pg_sys::error_context_stack = callbacks;
        pg_sys::EmitErrorReport();
        pg_sys::CurrentMemoryContext = context;
        pg_sys::FlushErrorState();
    }
}

/// Keeps reports that a worker has logged out of the log of the session that passes them on. Called once a process.
pub fn filter_log() {
    allocator::keep_reserve();
    REPORT.set(Some(Box::leak(Box::new(memory::Context::new(c"pg_background_mgr report")))));
    // SAFETY: a variable of this process; the previous hook is called by ours.
    unsafe {
        PREVIOUS_LOG_HOOK.set(pg_sys::emit_log_hook);
        pg_sys::emit_log_hook = Some(on_log);
    }
}

callback! {
    fn on_log(edata: *mut pg_sys::ErrorData) {
        // SAFETY: the server hands over the report that it is about to log.
        unsafe {
            if is_logged((*edata).filename) {
                (*edata).output_to_server = false;
            }
            if let Some(previous) = PREVIOUS_LOG_HOOK.get() {
                crate::ffi::pg_guard_ffi_boundary(|| previous(edata));
            }
        }
    }
}
