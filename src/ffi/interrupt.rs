//! Interrupts: cancel, termination, barriers; signal handlers that ask for them (miscadmin.h, postgres.c, pqsignal.h).

use crate::compat::process;
pub(crate) use crate::compat::signal_handler;
pub use crate::compat::SignalHandler;
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::c_int;

/// Serves what is pending (`CHECK_FOR_INTERRUPTS`). May raise, may end the process.
pub fn check() {
    // SAFETY: flags of this process that its signal handlers set.
    unsafe {
        if (&raw const pg_sys::InterruptPending).read_volatile() != 0 {
            pg_sys::ProcessInterrupts();
        }
    }
}

/// Makes the next safe point look for what is pending. A cancel or a timeout that was caught as an error leaves
/// unserved what else was pending, and unmarked (postgres.c, `ProcessInterrupts`); without this a DROP DATABASE waits
/// for good for this process, which has not served its barrier.
pub fn recheck() {
    // SAFETY: a flag of this process, which handlers may set; with nothing pending nothing is done.
    unsafe { (&raw mut pg_sys::InterruptPending).write_volatile(1 as _) };
}

/// While this lives, a cancel stays pending; termination works.
#[must_use = "cancels are held only while the guard lives"]
pub struct CancelHeld(());

impl CancelHeld {
    pub fn new() -> Self {
        // SAFETY: a counter of this process.
        unsafe { pg_sys::QueryCancelHoldoffCount += 1 };
        CancelHeld(())
    }
}

impl Drop for CancelHeld {
    fn drop(&mut self) {
        // SAFETY: a counter of this process; an error in between may have set it to zero (errfinish).
        unsafe { pg_sys::QueryCancelHoldoffCount = pg_sys::QueryCancelHoldoffCount.saturating_sub(1) };
    }
}

/// Returns whether a cancel is pending.
pub fn is_cancel_pending() -> bool {
    // SAFETY: a flag of this process.
    unsafe { (&raw const pg_sys::QueryCancelPending).read_volatile() != 0 }
}

/// Makes a cancel pending; [`recheck`] is to follow.
pub fn set_cancel_pending() {
    // SAFETY: a flag of this process, which handlers may set.
    unsafe { (&raw mut pg_sys::QueryCancelPending).write_volatile(1 as _) };
}

/// Drops a cancel that came while there was nothing to cancel.
pub fn clear_cancel() {
    // SAFETY: a flag of this process.
    unsafe { (&raw mut pg_sys::QueryCancelPending).write_volatile(0 as _) };
}

/// Returns whether the server has been asked to end this process.
pub fn is_dying() -> bool {
    // SAFETY: a flag of this process.
    unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() != 0 }
}

/// Makes the next safe point end the process.
pub fn set_die_pending() {
    // SAFETY: flags of this process, which handlers may set.
    unsafe {
        (&raw mut pg_sys::ProcDiePending).write_volatile(1 as _);
        (&raw mut pg_sys::InterruptPending).write_volatile(1 as _);
    }
}

/// Drops a request to end this process.
pub fn clear_die() {
    // SAFETY: a flag of this process.
    unsafe { (&raw mut pg_sys::ProcDiePending).write_volatile(0 as _) };
}

/// A signal that a background worker is told something with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Signal {
    /// SIGHUP
    Hangup = 1,
    /// SIGTERM
    Terminate = 15,
}

/// Installs a handler, made with [`signal_handler`] of nothing but atomics, [`latch::set`](crate::ffi::latch::set) and
/// the functions of this file that set what is pending; or the server's own.
pub fn set_handler(signal: Signal, handler: SignalHandler) {
    // SAFETY: the handler does what handlers may.
    unsafe { process::set_signal_handler(signal as c_int, handler) };
}

/// Returns the server's handler of SIGTERM in sessions: it ends the process at the next safe point (postgres.c, `die`).
pub fn session_terminate_handler() -> SignalHandler {
    process::terminate_handler()
}

/// Lets signals through, which the postmaster has blocked in a new background worker.
pub fn unblock_signals() {
    // SAFETY: the handlers are installed, or signals are let through already.
    unsafe { pg_sys::BackgroundWorkerUnblockSignals() };
}

thread_local! {
    static ON_ERROR: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Calls `body` for every error that is raised from now on, and that [`report::watch`](crate::ffi::report::watch) or
/// [`report::catch_call`](crate::ffi::report::catch_call) sees.
pub fn call_on_error(body: fn()) {
    ON_ERROR.set(Some(body));
}

/// Tells that an error is on its way.
pub fn on_error() {
    if let Some(body) = ON_ERROR.get() {
        body();
    }
}
