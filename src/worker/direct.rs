//! A job that a session gives to a worker directly, and whose result it reads: the only job of a new process, or one
//! after the other in a worker that stays.

use super::bootstrap::{become_session, check_connection_limits, located, prepare_session, set_job_text};
use super::{executor, outbox, pool};
use crate::error::Error;
use crate::ffi::bgworker;
use crate::ffi::dsm::Handle;
use crate::ffi::process_local::{slot, ProcessLocal, Slot};
use crate::ffi::report::{self, Captured};
use crate::ffi::shm_mq::Sender;
use crate::ffi::{area, client, exit, interrupt, latch, session, statement, transaction};
use crate::job::channel::{Channel, Gate};
use crate::job::nesting;
use crate::protocol::{decode, Done, Report, Request};
use std::cell::Cell;
use std::ffi::CString;
use std::time::Duration;

/// How often a worker whose launch is not complete looks whether its launcher still lives.
const LAUNCHER_CHECK: Duration = Duration::from_secs(1);

thread_local! {
    static CHANNEL: Cell<Option<Channel>> = const { Cell::new(None) };
    /// The sending end of the channel, while no job runs. None = the reader has gone.
    static SENDER: Slot<Option<Sender>> = const { slot(None) };
    /// The last request as it came, and what it says.
    static REQUEST: Slot<(Vec<u8>, Request)> = slot(Default::default());
    /// The launcher knows how the job has ended, or need not know.
    static REPORTED: Cell<bool> = const { Cell::new(true) };
    /// This process counts as one that is not in the registry.
    static IS_OUTSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A new process: runs its job, and stays for others if it may.
pub fn main(segment: Handle) {
    exit::skip_destructors();
    // Before signals are served: a worker that dies without the segment would leave it pinned.
    let Some(channel) = Channel::attach(segment) else {
        return; // the launch was given up: there is nobody to tell
    };
    interrupt::take_signals();
    IS_OUTSIDE.set(true);
    area::count_outside(1);
    channel.set_pid(session::pid());
    CHANNEL.set(Some(channel));
    REPORTED.set(false);
    // The last one is the first to be called: it tells the launcher why.
    exit::before_exit(pool::on_exit);
    exit::before_exit(on_exit);
    report::watch(outbox::notice);
    SENDER.set(Some(channel.sender()));
    if !read_request(channel) {
        return;
    }
    let (database, login) = REQUEST.with_borrow(|(_, request)| (request.database, request.login));
    session::connect(database, login);
    if !is_launched(channel) {
        REPORTED.set(true);
        return;
    }
    prepare_session(outbox::message);
    run(channel, true);
    pool::stay(database, login);
    // While the launcher is awake, not when this process has ended.
    let_go();
}

/// A worker that stays has been given another job.
pub fn serve(segment: Handle) {
    let Some(channel) = take_up(segment) else {
        return; // the launcher has gone before anybody could have its job
    };
    // A cancel that came before is for nothing that runs, as in any session that waits for a command.
    interrupt::forget_cancel();
    interrupt::be_session(true);
    REPORTED.set(false);
    if read_request(channel) {
        report::send_notices_to(outbox::notice);
        client::send_messages_to(outbox::message);
        run(channel, false);
    }
    interrupt::be_session(false);
}

/// The channel of a job that this worker was given: the one that it holds, or another in its place. None = the launcher
/// has gone.
fn take_up(segment: Handle) -> Option<Channel> {
    let held = CHANNEL.get().filter(|held| held.handle() == segment);
    held.or_else(|| {
        let_go();
        let channel = Channel::attach(segment)?;
        // The server tells the launcher nothing of this process.
        let mut sender = channel.sender();
        sender.attach();
        SENDER.set(Some(sender));
        CHANNEL.set(Some(channel));
        Some(channel)
    })
}

/// The channel that this worker holds; none = its reader has gone.
pub fn channel() -> Option<Channel> {
    CHANNEL.get()
}

/// Forgets the last channel: its reader has gone, or another has come.
fn let_go() {
    if let Some(sender) = SENDER.with_borrow_mut(Option::take) {
        sender.close();
    }
    if let Some(channel) = CHANNEL.take() {
        channel.close();
    }
}

/// This process is in the registry from now on.
pub fn come_inside() {
    if IS_OUTSIDE.replace(false) {
        area::count_outside(-1);
    }
}

/// What the session said of the worker's login when it asked for the process.
pub fn told_version() -> u64 {
    let [version, ..] = bgworker::told();
    version
}

/// Reads who the job is, unless it is the one of before.
fn read_request(channel: Channel) -> bool {
    if REQUEST.with_borrow(|(bytes, _)| !bytes.is_empty() && channel.has_request(bytes)) {
        return true;
    }
    let Some(bytes) = channel.request() else { return false };
    let Ok(request) = decode(&bytes) else { return false };
    REQUEST.set((bytes, request));
    true
}

/// Waits until the launch is complete. False = it was given up, and the job must not run.
fn is_launched(channel: Channel) -> bool {
    loop {
        match channel.gate() {
            Gate::Open => return true,
            Gate::Abandoned => return false,
            Gate::Closed if !session::launcher_lives() => return false,
            // So that the launcher can wake this process; it may have opened the gate before it could.
            Gate::Closed
                if SENDER.with_borrow(|sender| sender.as_ref().is_some_and(|sender| !sender.is_attached())) =>
            {
                SENDER.with_borrow_mut(|sender| sender.as_mut().map(Sender::attach));
            }
            Gate::Closed => latch::wait(Some(LAUNCHER_CHECK)),
        }
    }
}

/// Runs the job to its outcome, and delivers it. `is_new`: nothing has run in this process before.
fn run(channel: Channel, is_new: bool) {
    let sql = channel.sql().unwrap_or_default();
    set_job_text(&sql);
    let Ok(sql) = CString::new(sql) else { return }; // a text of the server has no zero inside
                                                     // A reader that has gone is no reason not to run the job.
    if let Some(sender) = SENDER.with_borrow_mut(Option::take) {
        outbox::open(sender);
    }
    let sql = statement::announce_kept(sql);
    let outcome = REQUEST.with_borrow(|(_, request)| {
        nesting::set_depth(request.nesting);
        report::catch(|| {
            transaction::start_command();
            if is_new {
                check_connection_limits(request)?;
            }
            become_session(request);
            transaction::finish_command();
            client::speak_database_encoding();
            executor::run(sql, &mut outbox::Reader, None)
        })
    });
    conclude(outcome);
    statement::announce_idle();
    outbox::deliver();
    REPORTED.set(true);
    let sender = outbox::close();
    let is_reader_gone = sender.is_none();
    SENDER.set(sender);
    if is_reader_gone {
        let_go();
    }
}

/// Cleans up after the job and puts its outcome behind what it has sent already.
fn conclude(outcome: Result<Result<Done, Error>, Box<Captured>>) {
    let failure = match outcome {
        Ok(Ok(done)) => return outbox::done(&done),
        Ok(Err(error)) => Captured::from(Report::from(error)),
        Err(captured) => *captured,
    };
    report::log(&failure);
    transaction::recover();
    outbox::failed(&located(failure.report));
}

/// A job that this worker was given and will not run ends with this error; then the worker goes.
pub fn refuse(segment: Handle, error: Report) {
    // As the sender, so that the launcher sees it go.
    if let Some(channel) = take_up(segment) {
        channel.leave_last_words(&error);
    }
}

/// What ends this process without an outcome (a refused login, a termination) is told to the launcher. To be registered
/// before the process connects.
pub fn on_exit() {
    if let (Some(channel), false) = (CHANNEL.get(), REPORTED.get()) {
        if let Some(report) = report::take_last_error() {
            channel.leave_last_words(&located(report));
        }
    }
    come_inside();
}
