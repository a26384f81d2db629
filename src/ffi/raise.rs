//! Raises errors and notices that are plain data (elog.c, `ThrowErrorData`).

use crate::error::Error;
use crate::ffi::allocator;
use crate::ffi::memory::c_string;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::sys::unguarded;
use crate::protocol::{sqlstate, Report};
use pgrx::pg_sys;
use std::cell::UnsafeCell;
use std::collections::HashSet;
use std::ffi::{c_char, CStr, CString};

/// `ERROR` of this server.
pub const ERROR: i32 = pg_sys::PGERROR as i32;

/// `NOTICE` of this server.
pub const NOTICE: i32 = pg_sys::NOTICE as i32;

/// `LOG` of this server.
pub const LOG: i32 = pg_sys::LOG as i32;

thread_local! {
    /// Names of source files, kept for the life of the process: the server keeps pointers to them.
    static FILE_NAMES: ProcessCell<HashSet<CString>> = process_cell(HashSet::new());
    /// Names of files of reports that another process has logged: the address of the name marks the report, also when
    /// PL/pgSQL catches it and raises it again.
    static FILE_NAMES_LOGGED: ProcessCell<HashSet<CString>> = process_cell(HashSet::new());
    /// The last error that was passed on: a copy of it has another address.
    static LAST_PASSED_ON: ProcessCell<Option<Report>> = const { process_cell(None) };
    /// Written once, where there is no memory to write it to.
    static OUT_OF_MEMORY: UnsafeCell<pg_sys::ErrorData> = UnsafeCell::new(pg_sys::ErrorData {
        elevel: ERROR,
        sqlerrcode: sqlstate(b"53200"),
        message: c"out of memory".as_ptr().cast_mut(),
        ..Default::default()
    });
}

/// Tells who writes a report to the server log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// The process that raises it, if its settings say so.
    Here,
    /// The process that the report came from has done it.
    Done,
}

/// Source file of a report that names none.
const NO_FILE: &[u8] = b"pg_background_mgr";

impl From<Error> for Report {
    #[track_caller]
    fn from(error: Error) -> Self {
        error.into_report(ERROR, std::panic::Location::caller())
    }
}

/// Builds the server's form of a report in the current memory context.
pub(super) fn to_error_data(report: &Report, log: Log) -> *mut pg_sys::ErrorData {
    let text = |text: &Option<Vec<u8>>| text.as_deref().map_or(std::ptr::null_mut(), c_string);
    let edata = pg_sys::ErrorData {
        elevel: report.level,
        sqlerrcode: report.sqlstate,
        message: c_string(&report.message),
        detail: text(&report.detail),
        detail_log: text(&report.detail_log),
        hint: text(&report.hint),
        context: text(&report.context),
        schema_name: text(&report.schema),
        table_name: text(&report.table),
        column_name: text(&report.column),
        datatype_name: text(&report.datatype),
        constraint_name: text(&report.constraint),
        cursorpos: report.position,
        internalpos: report.internal_position,
        internalquery: text(&report.internal_query),
        filename: file_name(report.file.as_deref().unwrap_or(NO_FILE), log),
        lineno: report.line,
        funcname: text(&report.function),
        // SAFETY: a variable of this process.
        assoc_context: unsafe { pg_sys::CurrentMemoryContext },
        ..Default::default()
    };
    // SAFETY: the allocation has the size of what is written.
    unsafe {
        let copy = pg_sys::palloc(size_of::<pg_sys::ErrorData>()).cast::<pg_sys::ErrorData>();
        copy.write(edata);
        copy
    }
}

/// Returns the one copy of a file name that this process keeps.
fn file_name(file: &[u8], log: Log) -> *const c_char {
    let Ok(name) = CString::new(file) else {
        return std::ptr::null();
    };
    let names = match log {
        Log::Here => &FILE_NAMES,
        Log::Done => &FILE_NAMES_LOGGED,
    };
    names.with_borrow_mut(|names| {
        if !names.contains(&name) {
            names.insert(name.clone());
        }
        names.get(&name).map_or(std::ptr::null(), |kept| kept.as_ptr())
    })
}

/// A report on its way out of the extension.
#[derive(Clone, Copy)]
pub(super) struct Raised(*mut pg_sys::ErrorData);

impl Raised {
    pub(super) fn new(report: &Report, log: Log) -> Self {
        if log == Log::Done {
            LAST_PASSED_ON.set(Some(report.clone()));
        }
        allocator::free_reserve();
        Raised(to_error_data(report, log))
    }

    /// Takes no memory.
    pub(super) fn out_of_memory() -> Self {
        Raised(OUT_OF_MEMORY.with(UnsafeCell::get))
    }

    /// Raises it with all its fields.
    ///
    /// # Safety
    /// No frame between here and the server's own may hold anything with a `Drop`: they are jumped over.
    pub(super) unsafe fn throw(self) -> ! {
        // SAFETY: built by `to_error_data` at ERROR; by contract.
        unsafe { unguarded::ThrowErrorData(self.0) };
        std::process::abort() // an ERROR does not return
    }
}

/// Sends a notice or warning to the client of this session; raises an error from inside Rust, with fewer fields than
/// [`Raised::throw`] keeps.
pub fn emit(report: &Report, log: Log) {
    let edata = to_error_data(report, log);
    // SAFETY: below ERROR this returns; an error is turned into a panic by the guard.
    unsafe { pg_sys::ThrowErrorData(edata) };
}

/// Raises an error that cannot be, unless the extension has a fault.
#[track_caller]
pub fn internal_error(what: &'static str) -> ! {
    emit(&Report::from(Error::Internal(what)), Log::Here);
    std::process::abort() // an ERROR does not return
}

/// Copies a text that the server is to take as a C string.
#[track_caller]
pub fn c_text(text: &[u8]) -> CString {
    CString::new(text).unwrap_or_else(|_| internal_error("a text has a zero byte in it"))
}

/// Returns whether this is the error that was passed on last.
pub(super) fn is_passed_on(edata: &pg_sys::ErrorData) -> bool {
    LAST_PASSED_ON.with_borrow(|passed_on| {
        passed_on.as_ref().is_some_and(|passed_on| {
            passed_on.sqlstate == edata.sqlerrcode
                && passed_on.line == edata.lineno
                && !edata.message.is_null()
                // SAFETY: the message of a report is null or a C string.
                && unsafe { CStr::from_ptr(edata.message) }.to_bytes() == passed_on.message
        })
    })
}

/// Returns whether this is the file name of a report that another process has logged.
///
/// # Safety
/// `file` is null or a C string.
pub(super) unsafe fn is_logged(file: *const c_char) -> bool {
    !file.is_null()
        && FILE_NAMES_LOGGED.with_borrow(|names| {
            // SAFETY: by contract.
            let name = unsafe { CStr::from_ptr(file) };
            names.get(name).is_some_and(|kept| std::ptr::eq(kept.as_ptr(), file))
        })
}
