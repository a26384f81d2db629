//! Traces of a worker that ends before its time.

use crate::error::Error;
use crate::ffi::dsm::Handle;
use crate::ffi::process_local::ProcessLocal;
use crate::ffi::{area, exit_hooks, interrupt, report, session};
use crate::protocol::{sqlstate, to_bytes, Report};
use crate::registry::State;
use crate::scheduler;
use crate::scheduler::Refusal;
use crate::worker::attached_job;
use crate::worker::main_loop::{
    await_successor, queued_job, register_successor, EXIT_REPORT, LOGGED_IN, SLOT, WAS_COUNTED_ALONE,
};

/// Leaves what others need of a worker that ends before its time. To be registered before the process connects.
pub fn on_exit() {
    let Some(index) = SLOT.take() else { return };
    if exit_hooks::is_postmaster_gone() {
        return; // everything that is here goes with the server
    }
    refuse_assigned_job(index);
    let report = EXIT_REPORT.with_borrow_mut(Option::take).or_else(report::take_last_error).unwrap_or_default();
    let is_late = interrupt::is_past_deadline();
    let report = if is_late { Report::from(Error::JobTimeout) } else { report };
    let state = if report.sqlstate == sqlstate(b"57P01") { State::Stopped } else { State::Failed };
    let refused = refusal(&report);
    let report = match refused {
        Some(Refusal::Login) => with_login_hint(report),
        _ => report,
    };
    let report = if report.sqlstate == 0 { Report::from(Error::WorkerLost(session::pid())) } else { report };
    let (state, outcome) = match queued_job::take_pending_outcome() {
        Some((state, outcome)) => (state, to_bytes(&outcome)),
        None if state == State::Stopped && area::read(|memory| scheduler::stop_request(memory, index).is_some()) => {
            (state, Vec::new()) // the job's record says who stopped it
        }
        None => (state, to_bytes(&queued_job::failed(&report))),
    };
    if let Some(start) = area::write(|memory| scheduler::worker_died(memory, index, state, &outcome, refused)) {
        if register_successor(index, start) {
            area::read(|memory| scheduler::terminate_worker(memory, index));
            await_successor(start);
        }
    }
}

/// Returns why the server did not let this worker in. None = it did, or the worker ended, or was ended: another
/// one may have more luck.
fn refusal(report: &Report) -> Option<Refusal> {
    let is = |code| report.sqlstate == sqlstate(code);
    if LOGGED_IN.get() || is_interrupt(report) || report.sqlstate == 0 || is(b"55P03") {
        None
    } else if is(b"53300") {
        Some(Refusal::TooMany { is_alone: WAS_COUNTED_ALONE.get() })
    } else if is(b"3D000") && report.detail.is_none() {
        Some(Refusal::NoDatabase) // with a detail it may be renamed just now, or have lost its files
    } else {
        Some(Refusal::Login)
    }
}

/// Adds to the error of a refused login who logs in.
fn with_login_hint(mut report: Report) -> Report {
    if report.sqlstate == sqlstate(b"28000") && report.hint.is_none() {
        report.hint = Some(b"Workers log in as the role that has launched the jobs.".to_vec());
    }
    report
}

/// A job that a session has given to this worker, which goes before it has begun it, is told so.
pub(super) fn refuse_assigned_job(index: usize) {
    if let Some(segment) = area::write(|memory| scheduler::refuse_assignments(memory, index)) {
        let is_ending = interrupt::is_ending() || interrupt::is_dying();
        let error = if is_ending { Error::Terminated } else { Error::NotRun };
        attached_job::refuse(Handle::from_number(segment), error.into());
        area::write(|memory| scheduler::drop_assignment(memory, index));
    }
}

/// Returns whether it was cancelled or terminated.
pub(super) fn is_interrupt(report: &Report) -> bool {
    [sqlstate(b"57014"), sqlstate(b"57P01")].contains(&report.sqlstate)
}
