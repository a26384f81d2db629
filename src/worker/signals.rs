//! Answers of a worker to signals, to errors, and to the end of its job's time.

use crate::ffi::interrupt::{signal_handler, Signal, SignalHandler};
use crate::ffi::{interrupt, latch};
use crate::worker::next::{exit_if, Next};
use crate::worker::state::state;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time by which a timer may be too early.
const TIMER_SLACK: Duration = Duration::from_millis(10);

// A handler may read and write them at any time, so they are atomic, and not part of the worker's state.
/// The process is to end when it can.
static IS_ENDING: AtomicBool = AtomicBool::new(false);
/// The configuration is to be read again.
static RELOAD_REQUESTED: AtomicBool = AtomicBool::new(false);
/// A queued job runs.
static IN_JOB: AtomicBool = AtomicBool::new(false);
/// The job that runs is a session's: SIGTERM ends it as it ends any session.
static IN_ATTACHED_JOB: AtomicBool = AtomicBool::new(false);
/// The outcome of a job is being written down.
static IS_FINISHING: AtomicBool = AtomicBool::new(false);
/// The process is a worker that runs one job after the other.
static IS_POOL_WORKER: AtomicBool = AtomicBool::new(false);

signal_handler! {
    fn on_terminate() {
        let is_in_job = IN_JOB.load(Ordering::Relaxed);
        // Then a second termination is none for the job: it has not noticed the first.
        let is_unnoticed = is_in_job && interrupt::is_cancel_pending();
        if IN_ATTACHED_JOB.load(Ordering::Relaxed)
            || IS_ENDING.swap(true, Ordering::Relaxed) && !is_unnoticed && !IS_FINISHING.load(Ordering::Relaxed)
        {
            interrupt::set_die_pending();
        } else if is_in_job {
            interrupt::set_cancel_pending();
        }
        interrupt::recheck();
        latch::set();
    }
}

signal_handler! {
    fn on_reload() {
        RELOAD_REQUESTED.store(true, Ordering::Relaxed);
        latch::set();
    }
}

/// Makes a worker that runs one job after the other take signals: SIGTERM cancels its job, so that what came of it can
/// be written down, and ends the process then; SIGHUP has it read the configuration between two jobs. To be called when
/// it has logged in; until then [`install_session_handlers`] holds.
pub fn install_worker_handlers() {
    IS_POOL_WORKER.store(true, Ordering::Relaxed);
    interrupt::call_on_error(on_error);
    interrupt::set_handler(Signal::Terminate, Some(on_terminate));
    interrupt::set_handler(Signal::Hangup, Some(on_reload));
    adopt_pending_termination();
}

/// Takes a termination that came as to a session, and too late for its job, as one of the worker.
fn adopt_pending_termination() {
    if interrupt::is_dying() {
        IS_ENDING.store(true, Ordering::Relaxed);
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
    install_handlers(interrupt::session_terminate_handler());
    // A termination that came before there was a job is for it, too.
    if is_ending() {
        interrupt::set_die_pending();
    }
}

fn install_handlers(on_terminate: SignalHandler) {
    interrupt::set_handler(Signal::Terminate, on_terminate);
    interrupt::set_handler(Signal::Hangup, Some(on_reload));
    interrupt::unblock_signals();
}

/// Returns whether the process is to end when it can.
pub fn is_ending() -> bool {
    IS_ENDING.load(Ordering::Relaxed)
}

/// Returns whether the configuration is to be read again, and forgets it.
pub fn take_reload_request() -> bool {
    RELOAD_REQUESTED.swap(false, Ordering::Relaxed)
}

/// Sets the time at which the job must end.
pub fn set_deadline(deadline: Option<Instant>) {
    state().deadline.set(deadline);
}

/// Returns whether the job's time is over. The server's timers may be a little early.
pub fn is_past_deadline() -> bool {
    state().deadline.get().is_some_and(|deadline| Instant::now() + TIMER_SLACK >= deadline)
}

/// Begins a queued job: a cancel of the one before does not reach it. No job begins if the process is to end.
pub fn begin_job() -> Next {
    IN_JOB.store(true, Ordering::SeqCst);
    interrupt::clear_cancel();
    // From here on a termination cancels the job.
    let begins = !IS_ENDING.load(Ordering::SeqCst);
    IN_JOB.store(begins, Ordering::SeqCst);
    exit_if(!begins)
}

/// Ends a job: nothing of it can be cancelled any more.
pub fn end_job() {
    IN_JOB.store(false, Ordering::Relaxed);
    state().deadline.set(None);
    // A signal that was sent before this process is here arrives on the way out of a system call at the latest: any.
    let _ = std::os::unix::process::parent_id();
    interrupt::clear_cancel();
    if IS_POOL_WORKER.load(Ordering::Relaxed) {
        interrupt::clear_die();
    }
}

/// Begins or ends the job of a session in a worker that runs one job after the other: meanwhile SIGTERM ends the worker
/// at the next safe point, as it ends a session.
pub fn set_attached_job(is_session: bool) {
    IN_ATTACHED_JOB.store(is_session, Ordering::Relaxed);
    if !is_session {
        adopt_pending_termination();
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

/// Takes note of an error. A job that catches the cancel of a worker that is to end, or that of its own time limit,
/// does not go on: the next safe point ends the process. One that does not is over before there is a safe point.
fn on_error() {
    if IN_JOB.load(Ordering::Relaxed) && (is_ending() || is_past_deadline()) {
        interrupt::set_die_pending();
    }
}
