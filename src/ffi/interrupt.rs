//! Interrupts: cancel, termination, barriers (miscadmin.h, postgres.c).

use crate::compat::process;
use pgrx::pg_sys;
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

/// Makes this background worker take signals as a session does: SIGTERM ends it at the next safe point. SIGINT and
/// SIGUSR1 are so already; SIGHUP is ignored, as one text never sees two configurations (bgworker.c,
/// `BackgroundWorkerMain`).
pub fn take_signals() {
    const SIGTERM: c_int = 15;
    // SAFETY: the server's own handler; signals are blocked until the last line.
    unsafe {
        process::set_signal_handler(SIGTERM, process::terminate_handler());
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}
