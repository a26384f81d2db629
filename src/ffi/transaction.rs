//! Transactions (xact.c, postgres.c).

use crate::compat;
use crate::compat::callback;
use crate::ffi::sys;
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{c_int, CStr};
use std::time::Duration;

thread_local! {
    /// The statement timer runs. 12 has no way to ask the server.
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

/// Returns whether a transaction is open.
pub fn is_open() -> bool {
    // SAFETY: reads this process's state.
    unsafe { pg_sys::IsTransactionState() }
}

/// Returns whether a transaction block is open.
pub fn in_block() -> bool {
    // SAFETY: reads this process's state.
    unsafe { pg_sys::IsTransactionBlock() }
}

/// Starts `statement_timeout` for the next statement, unless it runs already (postgres.c, `enable_statement_timeout`).
/// `left` = milliseconds that the whole job still has, if they are bounded.
pub fn start_statement_timeout(left: Option<i64>) {
    // SAFETY: a setting of this process.
    let timeout = i64::from(unsafe { pg_sys::StatementTimeout });
    match left {
        Some(left) if timeout <= 0 || left < timeout => start_timeout(left),
        _ if timeout <= 0 => stop_statement_timeout(),
        _ => start_timeout(timeout),
    }
}

/// Limits what is left of the transaction before its commit: so many milliseconds. Not the commit itself, which may
/// wait for a standby (syncrep.c, `SyncRepWaitForLSN`).
pub fn limit_deferred_work(milliseconds: i64) {
    thread_local! {
        static IS_REGISTERED: Cell<bool> = const { Cell::new(false) };
    }
    if !IS_REGISTERED.replace(true) {
        // SAFETY: the function lives as long as the process.
        unsafe { pg_sys::RegisterXactCallback(Some(before_commit), std::ptr::null_mut()) };
    }
    start_timeout(milliseconds);
}

callback! {
    /// Stops the timer: all that was deferred to the commit is done.
    fn before_commit(event: pg_sys::XactEvent::Type, _argument: *mut std::ffi::c_void) {
        if event == pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT && STATEMENT_TIMER.get() {
            stop_statement_timeout();
            // One that came in the last moment is for the job: it can still be undone.
            crate::ffi::interrupt::check();
        }
    }
}

/// Cancels after so many milliseconds, one at least, unless the statement timer runs already.
fn start_timeout(milliseconds: i64) {
    /// No timer is for longer.
    const CENTURY: i64 = 100 * 366 * 24 * 60 * 60 * 1000;
    if !STATEMENT_TIMER.replace(true) {
        let time = crate::ffi::process::now() + Duration::from_millis(milliseconds.clamp(1, CENTURY).unsigned_abs());
        // SAFETY: InitPostgres has registered the timer.
        unsafe { sys::enable_timeout_at(sys::STATEMENT_TIMEOUT, time.micros()) };
    }
}

/// Stops `statement_timeout`.
pub fn stop_statement_timeout() {
    if STATEMENT_TIMER.replace(false) {
        // SAFETY: InitPostgres has registered the timer.
        unsafe { sys::disable_timeout(sys::STATEMENT_TIMEOUT, false) };
    }
}

/// Cleans up after an error as the main loop of a session does (postgres.c, `PostgresMain`), but leaves the error's own
/// memory alone. Everything that was open is rolled back.
pub fn recover() {
    STATEMENT_TIMER.set(false);
    // SAFETY: the error was caught and is off the stack; the order is that of PostgresMain.
    unsafe {
        pg_sys::InterruptHoldoffCount += 1;
        sys::disable_all_timeouts(false);
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

/// Lets the transaction write, whatever the session's default is. For the extension's own transactions.
pub fn allow_writes() {
    // SAFETY: a variable of this process; in recovery nothing can write, and nobody asks.
    unsafe { pg_sys::XactReadOnly = false };
}

/// Makes this transaction see what is committed when each statement starts, whatever the session's default is. Before
/// its first snapshot.
pub fn read_committed() {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as c_int };
}

/// Puts `lock_timeout` back, also while unwinding.
struct LockTimeout(c_int);

impl LockTimeout {
    /// Sets it for waits that begin now; milliseconds.
    fn set(milliseconds: c_int) -> Self {
        // SAFETY: a variable of this process, which the server reads when it begins to wait for a lock.
        LockTimeout(unsafe { std::ptr::replace(&raw mut pg_sys::LockTimeout, milliseconds) })
    }
}

impl Drop for LockTimeout {
    fn drop(&mut self) {
        // SAFETY: a variable of this process.
        unsafe { pg_sys::LockTimeout = self.0 };
    }
}

/// Runs `body`; its waits for locks end after so many milliseconds.
pub fn with_lock_timeout<T>(milliseconds: c_int, body: impl FnOnce() -> T) -> T {
    let _timeout = LockTimeout::set(milliseconds);
    body()
}

/// Returns whether the transaction must not write.
pub fn is_read_only() -> bool {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::XactReadOnly }
}

/// Raises 25006 if the transaction must not write, 25000 in a parallel operation; `command`: what is refused.
pub fn require_writable(command: &CStr) {
    // SAFETY: the name is a C string.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(command.as_ptr());
        pg_sys::PreventCommandIfParallelMode(command.as_ptr());
    }
}

/// Returns whether the server is a standby.
pub fn in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Makes the commit of this transaction wait until it is on disk, whatever `synchronous_commit` says (xact.c).
pub fn force_sync_commit() {
    // SAFETY: writes a variable of this process.
    unsafe { pg_sys::ForceSyncCommit() };
}

/// While this lives, a commit waits for no standby (syncrep.c, `SyncRepWaitForLSN`): nothing would end that wait of a
/// process that is to end, and that takes its time to write down what it has done.
#[must_use = "it is so only while the guard lives"]
pub struct NoStandby(c_int);

impl NoStandby {
    pub fn new() -> Self {
        let local = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH as c_int;
        // SAFETY: a setting of this process; no code of the server runs in between.
        unsafe {
            let before = pg_sys::synchronous_commit;
            pg_sys::synchronous_commit = before.min(local);
            NoStandby(before)
        }
    }
}

impl Drop for NoStandby {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pg_sys::synchronous_commit = self.0 };
    }
}

/// Runs `body` in a subtransaction: what it did is undone if it raises. Waits for locks end after `lock_timeout`
/// milliseconds.
///
/// # Errors
/// The report of the error.
pub fn attempt<T>(lock_timeout: c_int, body: impl FnOnce() -> T) -> Result<T, Box<crate::ffi::report::Captured>> {
    // SAFETY: inside a transaction; memory context and resource owner are put back as plpgsql does (pl_exec.c,
    // exec_stmt_block).
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        let _timeout = LockTimeout::set(lock_timeout);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::CurrentMemoryContext = context;
        let outcome = crate::ffi::report::catch_call(|| {
            let value = body();
            pg_sys::ReleaseCurrentSubTransaction();
            value
        });
        if outcome.is_err() {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::CurrentMemoryContext = context;
        pg_sys::CurrentResourceOwner = owner;
        outcome
    }
}

/// Returns this transaction, the outermost that is open, which writes: a number that none before it had.
pub fn current_id() -> u64 {
    // SAFETY: inside a transaction.
    unsafe { pg_sys::GetTopFullTransactionId().value }
}

/// Returns the outermost transaction that is open, or 0 if it has not written anything.
pub fn current_id_if_any() -> u32 {
    // SAFETY: reads this process's state.
    compat::transaction_number(unsafe { pg_sys::GetTopTransactionIdIfAny() })
}

/// Brings to disk that this transaction exists, which has written something, so that no other one has its number after
/// a crash; returns the number.
pub fn log_id() -> u64 {
    // A record that says nothing but whose it is (xlog.c, `xlog_redo`).
    let (manager, kind) = (pg_sys::RmgrIds::RM_XLOG_ID as pg_sys::RmgrId, pg_sys::XLOG_NOOP as u8);
    // SAFETY: inside a transaction of a server that is no standby.
    unsafe {
        pg_sys::GetCurrentTransactionId(); // of a savepoint, if there is one: younger
        pg_sys::XLogBeginInsert();
        compat::wire::xlog_register_data(&[0]);
        pg_sys::XLogFlush(pg_sys::XLogInsert(manager, kind));
        pg_sys::GetTopFullTransactionIdIfAny().value
    }
}

/// Brings to disk what this process has committed, also without `synchronous_commit`.
pub fn flush_commits() {
    // SAFETY: a variable of this process; what is on disk is not written again.
    unsafe { pg_sys::XLogFlush(pg_sys::XactLastCommitEnd) };
}

/// Returns whether a transaction of this process, which is over, was committed; false for 0.
pub fn is_committed(transaction: u32) -> bool {
    // SAFETY: a transaction that was not long ago; what has become of it is in shared memory.
    unsafe { pg_sys::TransactionIdDidCommit(compat::transaction_id(transaction)) }
}

/// Returns whether the statement that runs sees what this transaction, as [`current_id`] gave it, has committed.
pub fn is_visible(transaction: u64) -> bool {
    /// No snapshot is older than so many transactions: the server would have stopped (varsup.c).
    const OLDEST: u64 = 1 << 31;
    // SAFETY: a statement runs, so it has a snapshot; it is only read.
    unsafe {
        let next = pg_sys::ReadNextFullTransactionId().value;
        next.saturating_sub(transaction) >= OLDEST
            || !pg_sys::ActiveSnapshotSet()
            || !pg_sys::XidInMVCCSnapshot(compat::transaction_id(transaction as u32), pg_sys::GetActiveSnapshot())
    }
}

/// Returns whether this is a transaction, or a subtransaction, that is open in this session.
pub fn is_own(transaction: u32) -> bool {
    // SAFETY: reads this process's state.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(compat::transaction_id(transaction)) }
}
