//! Interrupts: cancel, termination, barriers (miscadmin.h, postgres.c).

use crate::compat::{process, signal_handler, SignalHandler};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Serves what is pending (`CHECK_FOR_INTERRUPTS`). May raise, may end the process.
pub fn check() {
    // SAFETY: flags of this process that its signal handlers set.
    unsafe {
        if (&raw const pg_sys::InterruptPending).read_volatile() != 0 {
            pg_sys::ProcessInterrupts();
        }
    }
}

/// An error was caught. A cancel or a timeout that was one leaves unserved what else was pending, and unmarked
/// (postgres.c, `ProcessInterrupts`): the next safe point looks again. Without that a DROP DATABASE waits for this
/// process for good, which has not served its barrier.
pub fn recheck() {
    // SAFETY: a flag of this process; with nothing pending nothing is done.
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

/// Time by which a timer may be too early.
const TIMER_SLACK: Duration = Duration::from_millis(10);
const SIGHUP: c_int = 1;
const SIGTERM: c_int = 15;

/// The process is to end when it can.
static IS_ENDING: AtomicBool = AtomicBool::new(false);
/// The configuration is to be read again.
static RELOAD_REQUESTED: AtomicBool = AtomicBool::new(false);
/// A job runs.
static IN_JOB: AtomicBool = AtomicBool::new(false);
/// The job that runs is a session's: SIGTERM ends it as it ends any session.
static IN_ATTACHED_JOB: AtomicBool = AtomicBool::new(false);
/// The outcome of a job is being written down.
static IS_FINISHING: AtomicBool = AtomicBool::new(false);
/// The process is a worker that runs one job after the other.
static IS_POOL_WORKER: AtomicBool = AtomicBool::new(false);

/// Makes a worker that runs one job after the other take signals: SIGTERM cancels its job, so that what came of it can
/// be written down, and ends the process then; SIGHUP has it read the configuration between two jobs. To be called when
/// it has logged in; until then [`install_session_handlers`] holds.
pub fn install_worker_handlers() {
    IS_POOL_WORKER.store(true, Ordering::Relaxed);
    // SAFETY: the handlers do what handlers may: they set flags and a latch.
    unsafe {
        process::set_signal_handler(SIGTERM, Some(on_terminate));
        process::set_signal_handler(SIGHUP, Some(on_reload));
    }
    adopt_pending_termination();
}

/// A termination that came as to a session, and too late for its job, is for the worker.
fn adopt_pending_termination() {
    if is_dying() {
        IS_ENDING.store(true, Ordering::Relaxed);
    }
}

signal_handler! {
    fn on_terminate() {
        // SAFETY: flags of this process that its handlers may set; the latch is its own.
        unsafe {
            let is_in_job = IN_JOB.load(Ordering::Relaxed);
            // Then a second termination is none for the job: it has not noticed the first.
            let is_unnoticed = is_in_job && (&raw const pg_sys::QueryCancelPending).read_volatile() != 0;
            if IN_ATTACHED_JOB.load(Ordering::Relaxed)
                || IS_ENDING.swap(true, Ordering::Relaxed) && !is_unnoticed && !IS_FINISHING.load(Ordering::Relaxed)
            {
                (&raw mut pg_sys::ProcDiePending).write_volatile(1 as _);
            } else if is_in_job {
                (&raw mut pg_sys::QueryCancelPending).write_volatile(1 as _);
            }
            (&raw mut pg_sys::InterruptPending).write_volatile(1 as _);
            pg_sys::SetLatch(pg_sys::MyLatch);
        }
    }
}

signal_handler! {
    fn on_reload() {
        RELOAD_REQUESTED.store(true, Ordering::Relaxed);
        // SAFETY: the latch is this process's own.
        unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
    }
}

/// Returns whether the process is to end when it can.
pub fn is_ending() -> bool {
    IS_ENDING.load(Ordering::Relaxed)
}

/// Returns whether the server has been asked to end this process.
pub fn is_dying() -> bool {
    // SAFETY: a flag of this process.
    unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() != 0 }
}

/// Returns whether the configuration is to be read again, and forgets it.
pub fn take_reload_request() -> bool {
    RELOAD_REQUESTED.swap(false, Ordering::Relaxed)
}

thread_local! {
    /// End of the time that the job has.
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The job must end then.
pub fn set_deadline(deadline: Option<Instant>) {
    DEADLINE.set(deadline);
}

/// Returns whether the job's time is over. The server's timers may be a little early.
pub fn is_past_deadline() -> bool {
    DEADLINE.get().is_some_and(|deadline| Instant::now() + TIMER_SLACK >= deadline)
}

/// A job begins: what was to cancel the one before does not reach it. False = the process is to end, and no job begins.
pub fn begin_job() -> bool {
    IN_JOB.store(true, Ordering::SeqCst);
    // SAFETY: a flag of this process.
    unsafe { (&raw mut pg_sys::QueryCancelPending).write_volatile(0 as _) };
    // From here on a termination cancels the job.
    let begins = !IS_ENDING.load(Ordering::SeqCst);
    IN_JOB.store(begins, Ordering::SeqCst);
    begins
}

/// The job has ended, nothing of it can be cancelled any more.
pub fn end_job() {
    IN_JOB.store(false, Ordering::Relaxed);
    DEADLINE.set(None);
    // A signal that was sent before this process is here arrives on the way out of a system call at the latest: any.
    let _ = std::os::unix::process::parent_id();
    // SAFETY: flags of this process.
    unsafe {
        (&raw mut pg_sys::QueryCancelPending).write_volatile(0 as _);
        if IS_POOL_WORKER.load(Ordering::Relaxed) {
            (&raw mut pg_sys::ProcDiePending).write_volatile(0 as _);
        }
    }
}

/// While this lives, a process that is to end anyway is not ended by a second SIGTERM, as a smart shutdown sends it
/// when the last session has gone: it writes down what came of its job, which waits for nothing for long.
#[must_use = "it is so only while the guard lives"]
pub struct FinishingGuard(());

impl FinishingGuard {
    pub fn new() -> Self {
        IS_FINISHING.store(true, Ordering::Relaxed);
        FinishingGuard(())
    }
}

impl Drop for FinishingGuard {
    fn drop(&mut self) {
        IS_FINISHING.store(false, Ordering::Relaxed);
    }
}

/// An error is on its way. A job that catches the cancel of a worker that is to end, or that of its own time limit,
/// does not go on: the next safe point ends the process. One that does not is over before there is a safe point.
pub fn on_error() {
    if IN_JOB.load(Ordering::Relaxed) && (is_ending() || is_past_deadline()) {
        set_die_pending();
    }
}

/// Makes a background worker that has not been given anything to do take signals: SIGTERM has it end when it can,
/// SIGHUP is only remembered. [`install_session_handlers`] is to follow.
pub fn install_prestart_handlers() {
    install_handlers(Some(on_terminate));
}

/// Makes this background worker take signals as a session does: SIGTERM ends it at the next safe point. SIGINT and
/// SIGUSR1 are so already; SIGHUP is only remembered, as one text never sees two configurations (bgworker.c,
/// `BackgroundWorkerMain`).
pub fn install_session_handlers() {
    install_handlers(process::terminate_handler());
    // What came before there was a job is for it, too.
    if is_ending() {
        set_die_pending();
    }
}

fn install_handlers(on_terminate: SignalHandler) {
    // SAFETY: the server's own handler or ours, which set flags and a latch; signals are blocked until the last line,
    // or served already.
    unsafe {
        process::set_signal_handler(SIGTERM, on_terminate);
        process::set_signal_handler(SIGHUP, Some(on_reload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// The next safe point ends the process.
fn set_die_pending() {
    // SAFETY: flags of this process.
    unsafe {
        (&raw mut pg_sys::ProcDiePending).write_volatile(1 as _);
        (&raw mut pg_sys::InterruptPending).write_volatile(1 as _);
    }
}

/// A worker that runs one job after the other runs that of a session now: SIGTERM ends it at the next safe point, as it
/// ends a session; or it does not any more.
pub fn set_attached_job(is_session: bool) {
    IN_ATTACHED_JOB.store(is_session, Ordering::Relaxed);
    if !is_session {
        adopt_pending_termination();
    }
}

/// Drops a cancel that came while there was nothing to cancel.
pub fn clear_cancel() {
    // SAFETY: a flag of this process.
    unsafe { (&raw mut pg_sys::QueryCancelPending).write_volatile(0 as _) };
}
