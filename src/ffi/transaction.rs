//! Transactions (xact.c, postgres.c).

use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::c_int;

/// Identifiers of timeouts (timeout.h); their order up to here is the same in every version.
const STATEMENT_TIMEOUT: c_int = 3;

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    fn enable_timeout_after(id: c_int, delay_ms: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
    fn disable_all_timeouts(keep_indicators: bool);
}

thread_local! {
    /// Does the statement timer run? 12 has no way to ask the server.
    static STATEMENT_TIMER: Cell<bool> = const { Cell::new(false) };
}

/// Starts a transaction command.
pub fn start_command() {
    // SAFETY: the caller is a worker at the top of its loop, or inside a transaction block.
    unsafe { pg_sys::StartTransactionCommand() };
}

/// Ends a transaction command: outside of a transaction block, commits.
pub fn finish_command() {
    // SAFETY: follows start_command.
    unsafe { pg_sys::CommitTransactionCommand() };
}

/// Makes what this command did visible to the next one of the same transaction.
pub fn command_counter_increment() {
    // SAFETY: called between two statements of one transaction.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Makes several statements of one text one transaction.
pub fn begin_implicit_block() {
    // SAFETY: called inside a started transaction command, before the statement runs.
    unsafe { pg_sys::BeginImplicitTransactionBlock() };
}

/// Ends what [`begin_implicit_block`] began; the transaction command is still to be finished.
pub fn end_implicit_block() {
    // SAFETY: called inside a transaction command.
    unsafe { pg_sys::EndImplicitTransactionBlock() };
}

/// Is a transaction block open?
pub fn in_block() -> bool {
    // SAFETY: reads this process's state.
    unsafe { pg_sys::IsTransactionBlock() }
}

/// Starts `statement_timeout` for the next statement, unless it runs already (postgres.c, `enable_statement_timeout`).
pub fn start_statement_timeout() {
    // SAFETY: a setting of this process.
    let timeout = unsafe { pg_sys::StatementTimeout };
    if timeout <= 0 {
        stop_statement_timeout();
    } else if !STATEMENT_TIMER.replace(true) {
        // SAFETY: InitPostgres has registered the timer.
        unsafe { enable_timeout_after(STATEMENT_TIMEOUT, timeout) };
    }
}

/// Stops `statement_timeout`.
pub fn stop_statement_timeout() {
    if STATEMENT_TIMER.replace(false) {
        // SAFETY: InitPostgres has registered the timer.
        unsafe { disable_timeout(STATEMENT_TIMEOUT, false) };
    }
}

/// Cleans up after an error as the main loop of a session does (postgres.c, `PostgresMain`), but leaves the error's own
/// memory alone. Everything that was open is rolled back.
pub fn recover() {
    STATEMENT_TIMER.set(false);
    // SAFETY: the error was caught and is off the stack; the order is that of PostgresMain.
    unsafe {
        pg_sys::InterruptHoldoffCount += 1;
        disable_all_timeouts(false);
        pg_sys::QueryCancelPending = 0 as _;
        pg_sys::AbortOutOfAnyTransaction();
        pg_sys::PortalErrorCleanup();
        if !pg_sys::MyReplicationSlot.is_null() {
            pg_sys::ReplicationSlotRelease();
        }
        pg_sys::jit_reset_after_error();
        pg_sys::InterruptHoldoffCount -= 1;
    }
}
