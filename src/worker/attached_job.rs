//! One job of a session, which reads its result itself.

use crate::channel::{nesting, Channel};
use crate::error::Error;
use crate::ffi::dsm::Handle;
use crate::ffi::interrupt::CancelHeld;
use crate::ffi::report::Captured;
use crate::ffi::{alloc, area, discard_all, interrupt, remote_dest, report, statement, transaction};
use crate::ids::{DatabaseId, RoleId};
use crate::protocol::{decode, Done, Report};
use crate::registry::unregistered;
use crate::worker::connection_limit::check_connection_limits;
use crate::worker::result_queue::Delivery;
use crate::worker::session_setup::{assume_identity, located, reload_if_behind, reset_session, set_job_text};
use crate::worker::state::state;
use crate::worker::{result_sender, signals, simple_query};
use crate::{guc, scheduler};
use std::ffi::{CStr, CString};

/// Runs another job that a worker has been given.
pub fn run_assigned(segment: Handle) {
    let Some(channel) = attach_channel(segment) else {
        return; // the launcher has gone before anybody could have its job
    };
    // A cancel that came before is for nothing that runs, as in any session that waits for a command.
    interrupt::clear_cancel();
    signals::set_attached_job(true);
    state().is_reported.set(false);
    let request_read = read_request(channel);
    report::send_notices_to(result_sender::notice);
    remote_dest::send_messages_to(result_sender::message);
    run(channel, false, request_read);
    signals::set_attached_job(false);
}

/// Returns the channel of a job that this worker was given: the one that it holds, or another in its place; `None` if
/// the launcher has gone.
fn attach_channel(segment: Handle) -> Option<Channel> {
    let held = state().channel.get().filter(|held| held.handle() == segment);
    held.or_else(|| {
        detach_channel();
        let channel = Channel::attach(segment)?;
        // The server tells the launcher nothing of this process.
        let mut sender = channel.sender();
        sender.attach();
        state().sender.replace(Some(sender));
        state().channel.set(Some(channel));
        Some(channel)
    })
}

/// Returns whether the result of the last job is just being read.
pub fn is_being_read() -> bool {
    state().channel.get().is_some_and(|channel| channel.is_being_read())
}

/// Forgets the last channel if its segment is too large to be kept for another job: until its result has been read it
/// is the session's alone.
pub fn detach_if_large() {
    if state().channel.get().is_some_and(|channel| !channel.is_kept()) {
        detach_channel();
    }
}

/// Forgets the last channel: its reader has gone, or another has come.
pub fn detach_channel() {
    if let Some(sender) = state().sender.take() {
        sender.close();
    }
    if let Some(channel) = state().channel.take() {
        channel.close();
    }
}

/// Keeps sessions from giving this worker another job, if the last one has left what cannot be reset. To be called
/// before the session knows that it is done.
fn refuse_jobs_if_spent() {
    if let Some(index) = state().slot.get().filter(|_| discard_all::is_spent()) {
        area::write(|memory| scheduler::request_exit(memory, index));
    }
}

/// Returns whether a process that runs a job of its own may stay for others. No session would give another to one whose
/// login it cannot tell from what a new one would be: each is to log in anew.
pub fn may_stay() -> bool {
    guc::idle_limit() > 0 && state().login_version.get() != 0 && !interrupt::is_dying() && !discard_all::is_spent()
}

/// Reads the request of a job, unless it is that of the job before.
///
/// # Errors
/// [`Error::Internal`] (XX000) if the segment has none.
pub fn read_request(channel: Channel) -> Result<(), Error> {
    let is_known = |bytes: &[u8]| !bytes.is_empty() && channel.has_request(bytes);
    if is_known(&state().request.borrow().0) {
        return Ok(());
    }
    let bytes = channel.request().ok_or(Error::Internal("an attached job without a request"))?;
    alloc::ensure(3 * bytes.len()); // its texts grow while they are read
    let request = decode(&bytes).map_err(|_| Error::Internal("an unreadable request of an attached job"))?;
    state().request.replace((bytes, request));
    Ok(())
}

/// Returns the database and the login role of the last request.
pub fn requested_login() -> (DatabaseId, RoleId) {
    let (_, request) = &*state().request.borrow();
    (request.database, request.login)
}

/// Runs the job to its outcome, and delivers it. `is_new`: nothing has run in this process before.
pub fn run(channel: Channel, is_new: bool, request_read: Result<(), Error>) {
    let number = channel.number();
    let text = read_text(channel);
    // A reader that has gone is no reason not to run the job.
    if let Some(sender) = state().sender.take() {
        result_sender::open(sender, channel);
    }
    let outcome = match request_read.and(text) {
        Ok(text) => run_text(statement::announce_kept(text), is_new),
        Err(error) => Ok(Err(error)),
    };
    refuse_jobs_if_spent();
    send_outcome(outcome);
    statement::announce_idle();
    if is_new && !may_stay() {
        unregistered::note_exiting();
    }
    deliver_result(channel, number);
}

/// Reads the job's text, which positions of errors point into from now on.
fn read_text(channel: Channel) -> Result<CString, Error> {
    let text = channel.sql().ok_or(Error::Internal("an attached job without a text"))?;
    set_job_text(&text);
    CString::new(text).map_err(|_| Error::Internal("a zero byte in the text of an attached job"))
}

/// Runs the text as the request says. The error inside is the extension's, the one outside any other.
fn run_text(text: &CStr, is_new: bool) -> Result<Result<Done, Error>, Box<Captured>> {
    let (_, request) = &*state().request.borrow();
    // A job that was given to this worker runs, also if the worker cannot follow the configuration any more.
    reload_if_behind(request);
    nesting::begin_job(&request.ancestors);
    report::catch(|| {
        if is_new {
            transaction::start_command();
            check_connection_limits(request)?;
            transaction::finish_command();
        }
        assume_identity(request)?;
        simple_query::run(text, &mut result_sender::AttachedReader, None)
    })
}

/// Delivers what the job has returned, and waits for its reader if there is no room.
fn deliver_result(channel: Channel, number: u64) {
    if result_sender::deliver_at_once() == Delivery::Blocked {
        channel.set_waiting();
        if channel.is_read() {
            result_sender::forget_reader();
        } else {
            // Nobody knows when it will be read: until then it holds no more than one whose result fits.
            release_session();
            result_sender::deliver();
        }
    }
    state().is_reported.set(true);
    match result_sender::close() {
        Some((sender, bytes)) => {
            channel.set_delivered(number, bytes);
            state().sender.replace(Some(sender));
        }
        None => detach_channel(),
    }
}

/// Releases what a job leaves in its session for the next one to find: locks, slots, temporary tables.
fn release_session() {
    let _held = CancelHeld::new();
    reset_session();
}

/// Cleans up after the job and puts its outcome behind what it has sent already.
fn send_outcome(outcome: Result<Result<Done, Error>, Box<Captured>>) {
    let failure = match outcome {
        Ok(Ok(done)) => return result_sender::done(&done),
        Ok(Err(error)) => Captured::from(Report::from(error)),
        Err(captured) => *captured,
    };
    report::log(&failure);
    transaction::recover();
    result_sender::failed(&located(failure.report));
}

/// Ends a job that this worker was given, and will not run, with this error. The worker goes then.
pub fn refuse(segment: Handle, error: Report) {
    // As the sender, so that the launcher sees it go.
    if let Some(channel) = attach_channel(segment) {
        channel.leave_exit_error(&error);
    }
}
