//! Kinds of processes, their signals, their titles.

use crate::compat::SignalHandler;
use pgrx::pg_sys;
use std::ffi::{c_char, c_int, CStr};

/// Returns whether this is an autovacuum worker.
pub fn is_autovacuum_worker() -> bool {
    #[cfg(not(feature = "__ge17"))]
    {
        extern "C" {
            fn IsAutoVacuumWorkerProcess() -> bool;
        }
        // SAFETY: reads one variable (autovacuum.c) and cannot raise.
        unsafe { IsAutoVacuumWorkerProcess() }
    }
    #[cfg(feature = "__ge17")]
    // SAFETY: a variable of this process.
    unsafe {
        pg_sys::MyBackendType == pg_sys::BackendType::B_AUTOVAC_WORKER
    }
}

/// Returns whether this is a walsender.
pub fn is_walsender() -> bool {
    #[cfg(not(feature = "__ge14"))]
    extern "C" {
        static am_walsender: bool;
    }
    #[cfg(feature = "__ge14")]
    use pg_sys::am_walsender;
    // SAFETY: a variable of this process, set before it runs anything.
    unsafe { am_walsender }
}

/// Returns whether this process applies changes of a subscription as the owner of each table, which it does from 16 on
/// unless the subscription says `run_as_owner` (worker.c, usercontext.c).
pub fn applies_as_table_owner() -> bool {
    #[cfg(feature = "__ge16")]
    {
        // SAFETY: reads one variable (worker.c).
        unsafe { pg_sys::IsLogicalWorker() }
    }
    #[cfg(not(feature = "__ge16"))]
    false
}

/// Installs a signal handler.
///
/// # Safety
/// `handler` does only what a signal handler may.
pub unsafe fn set_signal_handler(signal: c_int, handler: SignalHandler) {
    #[cfg(not(feature = "__ge18"))]
    // SAFETY: by contract.
    unsafe {
        pg_sys::pqsignal(signal, handler);
    }
    #[cfg(feature = "__ge18")]
    // SAFETY: by contract.
    unsafe {
        pg_sys::pqsignal_be(signal, handler);
    }
}

/// Returns the server's handler for "end at the next safe point".
pub fn terminate_handler() -> SignalHandler {
    mod raw {
        #[cfg(not(feature = "__ge18"))]
        extern "C" {
            pub fn die(signal: std::ffi::c_int);
        }
        #[cfg(feature = "__ge18")]
        extern "C-unwind" {
            pub fn die(signal: std::ffi::c_int);
        }
    }
    Some(raw::die)
}

/// Shows `activity` in the process title (ps_status.c).
pub fn set_ps_display(activity: &CStr) {
    #[cfg(not(feature = "__ge13"))]
    {
        #[pgrx::pg_guard]
        unsafe extern "C-unwind" {
            fn set_ps_display(activity: *const std::ffi::c_char, force: bool);
        }
        // SAFETY: copies the text into the process title.
        unsafe { set_ps_display(activity.as_ptr(), false) };
    }
    #[cfg(all(feature = "__ge13", not(feature = "__ge16")))]
    {
        #[pgrx::pg_guard]
        unsafe extern "C-unwind" {
            fn set_ps_display(activity: *const std::ffi::c_char);
        }
        // SAFETY: copies the text into the process title.
        unsafe { set_ps_display(activity.as_ptr()) };
    }
    #[cfg(feature = "__ge16")]
    {
        #[pgrx::pg_guard]
        unsafe extern "C-unwind" {
            fn set_ps_display_with_len(activity: *const std::ffi::c_char, length: usize);
        }
        // SAFETY: copies that many bytes into the process title.
        unsafe { set_ps_display_with_len(activity.as_ptr(), activity.count_bytes()) };
    }
}

/// Writes a line to the server log, at level LOG, without a STATEMENT line: the text is in it (elog.c).
pub fn log_line(text: &[u8]) {
    let mut text = text.to_vec();
    text.push(0);
    let level = pg_sys::LOG as c_int;
    // SAFETY: texts are C strings; reporting at LOG returns. The guard's closure holds nothing.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| report_line(level, text.as_ptr().cast())) };
}

#[cfg(not(feature = "__ge13"))]
unsafe fn report_line(level: c_int, text: *const c_char) {
    extern "C-unwind" {
        fn errstart(
            level: c_int,
            file: *const c_char,
            line: c_int,
            function: *const c_char,
            domain: *const c_char,
        ) -> bool;
        fn errfinish(dummy: c_int, ...);
    }
    // SAFETY: the calls and their order are those of the ereport macro.
    unsafe {
        if errstart(level, c"executor.rs".as_ptr(), 0, c"run".as_ptr(), std::ptr::null()) {
            pg_sys::errmsg_internal(c"%s".as_ptr(), text);
            errfinish(pg_sys::errhidestmt(true));
        }
    }
}

#[cfg(feature = "__ge13")]
unsafe fn report_line(level: c_int, text: *const c_char) {
    extern "C-unwind" {
        fn errstart(level: c_int, domain: *const c_char) -> bool;
        fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
    }
    // SAFETY: the calls and their order are those of the ereport macro.
    unsafe {
        if errstart(level, std::ptr::null()) {
            pg_sys::errmsg_internal(c"%s".as_ptr(), text);
            pg_sys::errhidestmt(true);
            errfinish(c"executor.rs".as_ptr(), 0, c"run".as_ptr());
        }
    }
}

/// Drops the temporary replication slots of this session (slot.c).
pub fn cleanup_replication_slots() {
    #[cfg(not(feature = "__ge17"))]
    // SAFETY: called outside of any use of a slot.
    unsafe {
        pg_sys::ReplicationSlotCleanup()
    };
    #[cfg(feature = "__ge17")]
    // SAFETY: as above; false = not only those that a standby synchronizes.
    unsafe {
        pg_sys::ReplicationSlotCleanup(false)
    };
}
