//! A job that a session gives to a worker directly, and whose result it reads: the only job of a new process, or one
//! after the other in a worker that stays.

use crate::channel::{nesting, Channel, Gate};
use crate::error::Error;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::dsm::Handle;
use crate::ffi::interrupt::CancelHeld;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::report::Captured;
use crate::ffi::shm_mq::Sender;
use crate::ffi::{alloc, exit_hooks, guc, interrupt, latch, remote_dest, report, session, statement, transaction};
use crate::protocol::{decode, Done, Report, Request};
use crate::registry::unregistered;
use crate::worker::session_setup::{
    assume_identity, check_connection_limits, located, prepare_session, reload_if_behind, reset_session, set_job_text,
};
use crate::worker::{main_loop, result_sender, simple_query};
use std::cell::Cell;
use std::ffi::CString;
use std::time::{Duration, Instant};

/// Interval at which a worker whose launch is not complete looks whether its launcher still lives.
const LAUNCHER_CHECK: Duration = Duration::from_secs(1);
/// Time that a process that was started ahead of its job waits for one.
const PRESTART_WAIT: Duration = Duration::from_millis(100);

thread_local! {
    static CHANNEL: Cell<Option<Channel>> = const { Cell::new(None) };
    /// The sending end of the channel, while no job runs. None = the reader has gone.
    static SENDER: ProcessCell<Option<Sender>> = const { process_cell(None) };
    /// The last request as it came, and what it says.
    static REQUEST: ProcessCell<(Vec<u8>, Request)> = process_cell(Default::default());
    /// The launcher knows how the job has ended, or need not know.
    static REPORTED: Cell<bool> = const { Cell::new(true) };
    /// This process counts as one that is not in the registry.
    static IS_UNREGISTERED: Cell<bool> = const { Cell::new(false) };
    /// Worker as which the server has started this process.
    static WORKER: Cell<Option<WorkerHandle>> = const { Cell::new(None) };
    /// Version of the login that this process has made, as the launcher knew it.
    static LOGIN_VERSION: Cell<u64> = const { Cell::new(0) };
}

/// A new process: runs its job, and stays for others if it may.
pub fn main(segment: Handle) {
    exit_hooks::skip_destructors();
    // Before signals are served: a worker that dies without the segment would leave it pinned.
    let Some(channel) = Channel::attach(segment) else {
        return; // the launch was given up: there is nobody to tell
    };
    CHANNEL.set(Some(channel));
    // The last one is the first to be called: it tells the launcher why.
    exit_hooks::before_exit(main_loop::on_exit);
    exit_hooks::before_exit(on_exit);
    channel.set_process(session::pid());
    if !await_job(channel) {
        return;
    }
    REPORTED.set(false);
    IS_UNREGISTERED.set(true);
    unregistered::add();
    LOGIN_VERSION.set(channel.login_version());
    report::watch(result_sender::notice);
    SENDER.set(Some(channel.sender()));
    interrupt::install_session_handlers();
    if !read_request(channel) {
        return;
    }
    let (database, login) = REQUEST.with_borrow(|(_, request)| (request.database, request.login));
    session::connect(database, login);
    if !await_launch(channel) {
        REPORTED.set(true);
        return;
    }
    // The launcher has noted it by now.
    WORKER.set(channel.worker());
    prepare_session(result_sender::message);
    run(channel, true);
    main_loop::join_pool(database, login);
    // While the launcher is awake, not when this process has ended.
    detach_channel();
}

/// A process may be started ahead of its job. False = there will be none.
fn await_job(channel: Channel) -> bool {
    if channel.has_job() {
        return true;
    }
    interrupt::install_prestart_handlers();
    let began = Instant::now();
    let mut is_stale = false;
    while !channel.has_job() {
        let left = PRESTART_WAIT.saturating_sub(began.elapsed());
        is_stale |= interrupt::take_reload_request();
        let is_over = left.is_zero() || is_stale || interrupt::is_ending() || channel.gate() == Gate::Abandoned;
        if is_over && channel.decline() {
            return false;
        }
        latch::wait(Some(left));
    }
    if is_stale || interrupt::take_reload_request() {
        guc::reload();
    }
    true
}

/// A worker that stays has been given another job.
pub fn run_assigned(segment: Handle) {
    let Some(channel) = attach_channel(segment) else {
        return; // the launcher has gone before anybody could have its job
    };
    // A cancel that came before is for nothing that runs, as in any session that waits for a command.
    interrupt::clear_cancel();
    interrupt::set_attached_job(true);
    REPORTED.set(false);
    if read_request(channel) {
        report::send_notices_to(result_sender::notice);
        remote_dest::send_messages_to(result_sender::message);
        run(channel, false);
    }
    interrupt::set_attached_job(false);
}

/// The channel of a job that this worker was given: the one that it holds, or another in its place. None = the launcher
/// has gone.
fn attach_channel(segment: Handle) -> Option<Channel> {
    let held = CHANNEL.get().filter(|held| held.handle() == segment);
    held.or_else(|| {
        detach_channel();
        let channel = Channel::attach(segment)?;
        // The server tells the launcher nothing of this process.
        let mut sender = channel.sender();
        sender.attach();
        SENDER.set(Some(sender));
        CHANNEL.set(Some(channel));
        Some(channel)
    })
}

/// Returns as what the server has started this process; none = for the queue.
pub fn worker() -> Option<WorkerHandle> {
    WORKER.get()
}

/// The channel that this worker holds; none = its reader has gone.
pub fn channel() -> Option<Channel> {
    CHANNEL.get()
}

/// Returns whether the result of the last job is just being read.
pub fn is_being_read() -> bool {
    CHANNEL.get().is_some_and(|channel| channel.is_being_read())
}

/// Forgets the last channel if its segment is too large to be kept for another job: until its result has been read it
/// is the session's alone.
pub fn detach_if_large() {
    if CHANNEL.get().is_some_and(|channel| !channel.is_kept()) {
        detach_channel();
    }
}

/// Forgets the last channel: its reader has gone, or another has come.
fn detach_channel() {
    if let Some(sender) = SENDER.with_borrow_mut(Option::take) {
        sender.close();
    }
    if let Some(channel) = CHANNEL.take() {
        channel.close();
    }
}

/// Notes that this process is in the registry from now on, or goes. False = it was, or has gone.
pub fn count_as_registered() -> bool {
    let was_outside = IS_UNREGISTERED.replace(false);
    if was_outside {
        unregistered::remove();
    }
    was_outside
}

/// Returns what the session knew of the login of this process; 0 = it logged in for the queue.
pub fn login_version() -> u64 {
    LOGIN_VERSION.get()
}

/// Reads who the job is, unless it is the one of before.
fn read_request(channel: Channel) -> bool {
    if REQUEST.with_borrow(|(bytes, _)| !bytes.is_empty() && channel.has_request(bytes)) {
        return true;
    }
    let Some(bytes) = channel.request() else { return false };
    alloc::ensure(3 * bytes.len()); // its texts grow while they are read
    let Ok(request) = decode(&bytes) else { return false };
    REQUEST.set((bytes, request));
    true
}

/// Waits until the launch is complete. False = it was given up, and the job must not run.
fn await_launch(channel: Channel) -> bool {
    loop {
        // Before the gate: a launcher that opens it may be gone a moment later.
        let launcher_lives = session::launcher_lives();
        match channel.gate() {
            Gate::Open => return true,
            Gate::Abandoned => return false,
            Gate::Closed if !launcher_lives => return false,
            Gate::Closed => latch::wait(Some(LAUNCHER_CHECK)),
        }
    }
}

/// Runs the job to its outcome, and delivers it. `is_new`: nothing has run in this process before.
fn run(channel: Channel, is_new: bool) {
    let number = channel.number();
    let sql = channel.sql().unwrap_or_default();
    set_job_text(&sql);
    let Ok(sql) = CString::new(sql) else { return }; // a text of the server has no zero inside
                                                     // A reader that has gone is no reason not to run the job.
    if let Some(sender) = SENDER.with_borrow_mut(Option::take) {
        result_sender::open(sender, channel);
    }
    let sql = statement::announce_kept(sql);
    let outcome = REQUEST.with_borrow(|(_, request)| {
        // What it was given it runs.
        reload_if_behind(request);
        nesting::begin_job(&request.ancestors);
        report::catch(|| {
            if is_new {
                transaction::start_command();
                check_connection_limits(request)?;
                transaction::finish_command();
            }
            assume_identity(request)?;
            simple_query::run(sql, &mut result_sender::AttachedReader, None)
        })
    });
    main_loop::refuse_jobs_if_spent();
    send_outcome(outcome);
    statement::announce_idle();
    if is_new && !main_loop::may_stay() {
        unregistered::note_exiting();
    }
    if !result_sender::deliver_at_once() {
        channel.set_waiting();
        if channel.is_read() {
            result_sender::forget_reader();
        } else {
            // Nobody knows when it will be read: until then it holds no more than one whose result fits.
            release_session();
            result_sender::deliver();
        }
    }
    REPORTED.set(true);
    match result_sender::close() {
        Some((sender, bytes)) => {
            channel.set_delivered(number, bytes);
            SENDER.set(Some(sender));
        }
        None => detach_channel(),
    }
}

/// Lets go of what a job leaves in its session for the next one to find: locks, slots, temporary tables.
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

/// A job that this worker was given and will not run ends with this error; then the worker goes.
pub fn refuse(segment: Handle, error: Report) {
    // As the sender, so that the launcher sees it go.
    if let Some(channel) = attach_channel(segment) {
        channel.leave_exit_error(&error);
    }
}

/// Tells the launcher what ends this process without an outcome (a refused login, a termination). To be registered
/// before the process connects.
pub fn on_exit() {
    if let Some(channel) = CHANNEL.get() {
        // Without a job so far, it takes none any more.
        if REPORTED.get() {
            channel.decline();
        } else if let Some(report) = report::take_last_error() {
            channel.leave_exit_error(&located(report));
        }
    }
    if count_as_registered() {
        unregistered::note_exiting();
    }
}
