//! What must happen when this process ends (ipc.c). FATAL and `proc_exit` run no `Drop`.

use super::process_local::{slot, ProcessLocal, Slot};
use crate::compat::callback;
use pgrx::pg_sys;
use std::ffi::c_int;

thread_local! {
    static BEFORE_EXIT: Slot<Vec<fn()>> = const { slot(Vec::new()) };
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

/// Ends this process with a status.
pub fn now(status: c_int) -> ! {
    // SAFETY: runs the server's own callbacks and ends the process; nothing above needs a Drop any more.
    unsafe { pg_sys::proc_exit(status) };
    #[allow(unreachable_code, reason = "not every binding says that it does not return")]
    std::process::abort()
}

/// Is the server going down without having told anybody? (pmsignal.c)
pub fn is_postmaster_gone() -> bool {
    mod server {
        #![allow(non_snake_case, reason = "the server's name")]
        extern "C" {
            pub fn PostmasterIsAliveInternal() -> bool;
        }
    }
    // SAFETY: looks at a pipe, and cannot raise.
    unsafe { !server::PostmasterIsAliveInternal() }
}
