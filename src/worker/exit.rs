//! Traces that a worker leaves when it ends, for its jobs, its session and its pool.

use crate::error::Error;
use crate::ffi::dsm::Handle;
use crate::ffi::{area, exit_hooks, interrupt, report, session};
use crate::protocol::{sqlstate, to_bytes, Report};
use crate::registry::{unregistered, State};
use crate::scheduler;
use crate::scheduler::Refusal;
use crate::worker::outcome::{failed, is_interrupt, PendingOutcome};
use crate::worker::session_setup::located;
use crate::worker::state::state;
use crate::worker::succession::{await_successor, register_successor};
use crate::worker::{attached_job, signals};

/// Leaves its slot, with what others need of a worker that ends before its time. To be registered before the process
/// connects.
pub fn leave_slot() {
    let Some(index) = state().slot.take() else { return };
    if exit_hooks::is_postmaster_gone() {
        return; // shared memory goes with the server
    }
    refuse_assigned_job(index);
    let report = state().exit_report.take().or_else(report::take_last_error).unwrap_or_default();
    let is_late = signals::is_past_deadline();
    let report = if is_late { Report::from(Error::JobTimeout) } else { report };
    let job_state = if report.sqlstate == sqlstate(b"57P01") { State::Stopped } else { State::Failed };
    let refused = refusal(&report);
    let report = match refused {
        Some(Refusal::Login) => with_login_hint(report),
        _ => report,
    };
    let report = if report.sqlstate == 0 { Report::from(Error::WorkerLost(session::pid())) } else { report };
    let (job_state, outcome) = match state().pending_outcome.take().and_then(PendingOutcome::decided) {
        Some((job_state, outcome)) => (job_state, to_bytes(&outcome)),
        None if job_state == State::Stopped
            && area::read(|memory| scheduler::stop_request(memory, index).is_some()) =>
        {
            (job_state, Vec::new()) // the job's record says who stopped it
        }
        None => (job_state, to_bytes(&failed(&report))),
    };
    if let Some(start) = area::write(|memory| scheduler::worker_died(memory, index, job_state, &outcome, refused)) {
        if register_successor(index, start) {
            area::read(|memory| scheduler::terminate_worker(memory, index));
            await_successor(start);
        }
    }
}

/// Returns why the server did not let this worker in; `None` if it did, or if the worker ended, or was ended: another
/// one may have more luck.
fn refusal(report: &Report) -> Option<Refusal> {
    let is = |code| report.sqlstate == sqlstate(code);
    if state().is_logged_in.get() || is_interrupt(report) || report.sqlstate == 0 || is(b"55P03") {
        None
    } else if is(b"53300") {
        Some(Refusal::TooMany { is_alone: state().was_counted_alone.get() })
    } else if is(b"3D000") && report.detail.is_none() {
        Some(Refusal::NoDatabase) // with a detail it may be renamed just now, or have lost its files
    } else {
        Some(Refusal::Login)
    }
}

/// Adds to the error of a refused login the role that logs in.
fn with_login_hint(mut report: Report) -> Report {
    if report.sqlstate == sqlstate(b"28000") && report.hint.is_none() {
        report.hint = Some(b"Workers log in as the role that has launched the jobs.".to_vec());
    }
    report
}

/// Tells a session that has given a job to this worker that the worker goes before it has begun it.
pub fn refuse_assigned_job(index: usize) {
    if let Some(segment) = area::write(|memory| scheduler::refuse_assignments(memory, index)) {
        let is_ending = signals::is_ending() || interrupt::is_dying();
        let error = if is_ending { Error::Terminated } else { Error::NotRun };
        attached_job::refuse(Handle::from_number(segment), error.into());
        area::write(|memory| scheduler::drop_assignment(memory, index));
    }
}

/// Tells the launcher what ends this process without an outcome (a refused login, a termination). To be registered
/// before the process connects.
pub fn leave_channel() {
    if let Some(channel) = state().channel.get() {
        // Without a job so far, it takes none any more.
        if state().is_reported.get() {
            channel.decline();
        } else if let Some(report) = report::take_last_error() {
            channel.leave_exit_error(&located(report));
        }
    }
    if count_as_registered() {
        unregistered::note_exiting();
    }
}

/// Notes that this process is in the registry from now on, or goes. Returns `false` if it was, or has gone.
pub fn count_as_registered() -> bool {
    let was_outside = state().is_unregistered.replace(false);
    if was_outside {
        unregistered::remove();
    }
    was_outside
}
