//! Work that must be done when this process ends (ipc.c). FATAL and `proc_exit` run no `Drop`.

use crate::compat::callback;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::sys;
use pgrx::pg_sys;
use std::ffi::c_int;

thread_local! {
    static BEFORE_EXIT: ProcessCell<Vec<fn()>> = const { process_cell(Vec::new()) };
}

/// Runs `body` when this process ends, while it can still reach shared memory. What is registered later runs earlier,
/// so what a worker registers before it connects runs after its transaction was aborted and its locks are free. `body`
/// must not raise.
pub fn before_exit(body: fn()) {
    let index = BEFORE_EXIT.with_borrow_mut(|bodies| {
        bodies.push(body);
        bodies.len() - 1
    });
    // SAFETY: the callback is a function of this library, which is never unloaded.
    unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(index)) };
}

callback! {
    fn on_exit(_code: c_int, index: pg_sys::Datum) {
        if let Some(body) = BEFORE_EXIT.with_borrow(|bodies| bodies.get(index.value()).copied()) {
            body();
        }
    }
}

/// Ends this process, when it is to end, without the destructors of the libraries that the postmaster has loaded
/// (exit(3)): they give memory back piece by piece, page by page of what was shared with the postmaster, that goes
/// with the process in any case. To be called before anything else is registered with `on_proc_exit`, so that it is
/// what comes last (ipc.c, `proc_exit`).
pub fn skip_destructors() {
    // SAFETY: the callback is a function of this library, which is never unloaded.
    unsafe { pg_sys::on_proc_exit(Some(on_last), pg_sys::Datum::from(0)) };
}

callback! {
    fn on_last(status: c_int, _argument: pg_sys::Datum) {
        // -1 = somebody has called exit(3) past the server, with a status that is not known here.
        if status >= 0 {
            // SAFETY: whatever the server and its extensions had to do at the end is done.
            unsafe { libc::_exit(status) };
        }
    }
}

/// Ends this process with a status.
pub fn now(status: c_int) -> ! {
    // SAFETY: runs the server's own callbacks and ends the process; nothing above needs a Drop any more.
    unsafe { pg_sys::proc_exit(status) };
    #[allow(unreachable_code, reason = "not every binding says that it does not return")]
    std::process::abort()
}

/// Returns whether the server is going down without having told anybody (pmsignal.c).
pub fn is_postmaster_gone() -> bool {
    // SAFETY: looks at a pipe, and cannot raise.
    unsafe { !sys::PostmasterIsAliveInternal() }
}
