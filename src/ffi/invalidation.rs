//! Messages of other processes about changes of the catalogs (sinval.c, inval.c).

use crate::compat::callback;
use crate::ffi::{report, sys, transaction};
use pgrx::pg_sys;

/// Returns a number that grows with every change of a catalog. A transaction is open.
pub fn changes() -> u64 {
    // SAFETY: the caller's transaction is open; a counter of this process.
    unsafe {
        sys::AcceptInvalidationMessages();
        pg_sys::SharedInvalidMessageCounter
    }
}

/// Returns the same number, or `None` if a message could not be processed. No transaction is open, and none is begun as
/// long as nothing changes: the statistics of the database count each one.
pub fn changes_between_transactions() -> Option<u64> {
    let accepted = report::catch(|| {
        // SAFETY: the worker is at the top of its loop; the server calls the functions on this thread, and allows them
        // to begin a transaction, which accepts messages itself.
        unsafe { pg_sys::ReceiveSharedInvalidMessages(Some(accept), Some(reset)) };
        if transaction::is_open() {
            transaction::finish_command();
        }
    });
    if accepted.is_err() {
        transaction::recover();
        return None;
    }
    // SAFETY: a counter of this process.
    Some(unsafe { pg_sys::SharedInvalidMessageCounter })
}

/// Begins a transaction: the server may read catalogs to process a message.
fn begin() {
    if !transaction::is_open() {
        transaction::start_command();
    }
}

callback! {
    fn accept(message: *mut pg_sys::SharedInvalidationMessage) {
        begin();
        // SAFETY: the message that the server passes.
        unsafe { pg_sys::LocalExecuteInvalidationMessage(message) };
    }
}

callback! {
    fn reset() {
        begin();
        // SAFETY: inside a transaction, as in ProcessCatchupInterrupt.
        unsafe { sys::InvalidateSystemCaches() };
    }
}
