//! From a fresh process to a session like the launcher's, and the way out.

use super::{executor, outbox};
use crate::error::{Error, Text};
use crate::ffi::dsm::Handle;
use crate::ffi::process_local::{slot, ProcessLocal, Slot};
use crate::ffi::report::Captured;
use crate::ffi::{area, client, exit, guc, interrupt, latch, report, role, session, spi, statement, transaction};
use crate::job::channel::{Channel, Gate};
use crate::job::{catalog, nesting};
use crate::protocol::{Done, Report, Request};
use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::time::Duration;

/// How often a worker whose launch is not complete looks whether its launcher still lives.
const LAUNCHER_CHECK: Duration = Duration::from_secs(1);

thread_local! {
    static CHANNEL: Cell<Option<Channel>> = const { Cell::new(None) };
    static SQL: Slot<Vec<u8>> = const { slot(Vec::new()) };
    static REPORTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs the one job of this worker.
pub fn main(segment: Handle) {
    // Before signals are served: a worker that dies without the segment would leave it pinned.
    let Some(channel) = Channel::attach(segment) else {
        return; // the launch was given up: there is nobody to tell
    };
    interrupt::take_signals();
    area::count_outside(1);
    exit::before_exit(|| area::count_outside(-1));
    channel.set_pid(session::pid());
    CHANNEL.set(Some(channel));
    exit::before_exit(leave_last_words);
    report::watch(outbox::notice);
    let sender = channel.sender();
    let Ok((request, sql)) = channel.job() else { return };
    SQL.set(sql.clone());
    let Ok(sql) = CString::new(sql) else { return }; // a text of the server has no zero inside
    session::connect(request.database, request.login);
    if !is_launched(channel) {
        REPORTED.set(true);
        return;
    }
    nesting::set_depth(request.nesting);
    // The server keeps pointers to the text as long as the process shows it.
    let sql: &'static CStr = Box::leak(sql.into_boxed_c_str());
    outbox::open(sender);
    statement::announce(sql);
    let outcome = report::catch(|| {
        prepare_session(outbox::message);
        transaction::start_command();
        check_connection_limits(&request)?;
        become_session(&request, false);
        transaction::finish_command();
        client::speak_database_encoding();
        executor::run(sql, &mut outbox::Reader, None)
    });
    conclude(outcome);
    statement::announce_idle();
    outbox::deliver();
    REPORTED.set(true);
}

/// Waits until the launch is complete. False = it was given up, and the job must not run.
fn is_launched(channel: Channel) -> bool {
    loop {
        match channel.gate() {
            Gate::Open => return true,
            Gate::Abandoned => return false,
            Gate::Closed if !session::launcher_lives() => return false,
            Gate::Closed => latch::wait(Some(LAUNCHER_CHECK)),
        }
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

/// What every worker needs before it runs its first text.
pub fn prepare_session(on_message: fn(client::Message)) {
    statement::init();
    client::pretend(on_message);
    session::load_session_libraries();
}

/// Takes over what the launcher's session has set. A transaction is open. `may_reset`: what the launcher's client has
/// set counts as set by the session, so that it can be reset.
pub fn become_session(request: &Request, may_reset: bool) {
    if let Some(libraries) = &request.libraries {
        guc::load_libraries(libraries.clone());
    }
    request.settings.iter().for_each(|setting| guc::restore(setting, may_reset));
    if let Some(role) = &request.role {
        guc::set_role(role);
    }
}

/// Jobs count as connections. The server's own check leaves background workers out (miscinit.c,
/// `InitializeSessionUserId`; postinit.c, `CheckMyDatabase`).
pub fn check_connection_limits(request: &Request) -> Result<(), Error> {
    if role::is_superuser(request.login) {
        return Ok(());
    }
    let number = |sql: String| spi::select(&sql).first().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    role::as_cluster_owner(|| {
        let exceeded = |limit: Option<i64>, count: String| match limit {
            Some(limit) if limit >= 0 => number(count).is_some_and(|count: i64| count > limit),
            _ => false,
        };
        if exceeded(number(catalog::limit_of_role(request.login)), catalog::connections_of_role(request.login)) {
            let name = session::role_name(request.login).unwrap_or_default();
            return Err(Error::RoleConnections(Text::new(&name)));
        }
        let database = request.database;
        if exceeded(number(catalog::limit_of_database(database)), catalog::connections_to_database(database)) {
            let name = spi::select(&catalog::name_of_database(database)).pop().unwrap_or_default();
            return Err(Error::DatabaseConnections(Text::new(&name)));
        }
        Ok(())
    })
}

/// What ends this process without an outcome (a refused login, a termination) is told to the launcher.
fn leave_last_words() {
    if let (Some(channel), false) = (CHANNEL.get(), REPORTED.get()) {
        if let Some(report) = report::take_last_error() {
            channel.leave_last_words(&located(report));
        }
    }
}

/// The text that positions of errors point into.
pub fn set_job_text(sql: &[u8]) {
    SQL.set(sql.to_vec());
}

/// The report with its position in the job's text.
pub fn located(report: Report) -> Report {
    SQL.with_borrow(|sql| report.locate_in(sql))
}
