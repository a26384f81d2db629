//! Launching a job.

use super::table::{self, Job};
use crate::error::Error;
use crate::ffi::bgworker::{Start, Worker};
use crate::ffi::{guc, report, role, session, shm_mq};
use crate::job::channel::Channel;
use crate::job::{nesting, LIBRARY, WORKER_FUNCTION, WORKER_KIND};
use crate::protocol::{Request, MAX_NESTING, MAX_QUEUE_BYTES, MAX_SQL_BYTES};
use std::cell::Cell;

/// `queue_size` when the caller does not say, in bytes: the default in the SQL declaration.
pub const DEFAULT_QUEUE_BYTES: i32 = 65536;

/// How much of a job's text is remembered for messages, in bytes.
const SQL_HEAD_BYTES: usize = 1024;

/// Starts a job in a worker; gives its process id. When this returns, the job will run, whatever becomes of the
/// caller's transaction; when it raises, the job never runs.
///
/// # Errors
/// Those of bad arguments (22023, 54000), of a caller that must not launch (42501), of exhausted resources (53000).
pub fn launch(sql: &[u8], queue_size: i32) -> Result<i32, Error> {
    let queue_bytes = checked_queue_size(queue_size)?;
    if sql.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::EmptySql);
    }
    if sql.len() > MAX_SQL_BYTES {
        return Err(Error::SqlTooLong(sql.len()));
    }
    let request = request()?;
    let (channel, receiver) = Channel::create(&request, sql, queue_bytes).ok_or(Error::SegmentsExhausted)?;
    // Cancelled, terminated or out of memory while the worker starts: then the job must never run.
    let mut receiver = Some(receiver);
    let registered = Cell::new(None);
    let started = report::on_error(
        || start(&channel, &registered),
        || {
            if let Some(worker) = registered.take() {
                worker.terminate();
            }
            if let Some(receiver) = receiver.take() {
                receiver.close();
            }
            channel.abandon();
        },
    );
    let Some(receiver) = receiver else {
        return Err(Error::NotStarted);
    };
    match started {
        Ok((pid, worker)) => {
            channel.open();
            receiver.wake_sender();
            let sql = session::clip(sql, SQL_HEAD_BYTES).to_vec();
            table::insert(Job { pid, channel, receiver, worker, sql, description: None, kept: None });
            Ok(pid)
        }
        Err(error) => {
            receiver.close();
            channel.abandon();
            Err(error)
        }
    }
}

fn checked_queue_size(queue_size: i32) -> Result<usize, Error> {
    let minimum = shm_mq::minimum_size();
    match usize::try_from(queue_size) {
        Ok(size) if size > MAX_QUEUE_BYTES => Err(Error::QueueTooLarge),
        Ok(size) if size >= minimum => Ok(size),
        _ => Err(Error::QueueTooSmall(minimum)),
    }
}

/// Who may launch, and what the worker is asked.
fn request() -> Result<Request, Error> {
    if role::in_restricted_operation() {
        return Err(Error::RestrictedOperation);
    }
    if let Some(kind) = session::forbidden_kind() {
        return Err(Error::ForbiddenProcess(kind));
    }
    let nesting = nesting::depth();
    if nesting >= MAX_NESTING {
        return Err(Error::TooDeep);
    }
    let identity = role::effective();
    let settings = guc::session_settings();
    // A setting of a library means something only where the library is loaded.
    let libraries = settings.iter().any(|setting| setting.name.contains(&b'.')).then(guc::loaded_libraries);
    // A role that was dropped while it is set leaves its session without rights; without it the job would have more.
    let role_name = |role| session::role_name(role).ok_or(Error::RoleGone(role));
    Ok(Request {
        database: session::database(),
        login: identity.login,
        role: identity.role.map(role_name).transpose()?,
        nesting: nesting + 1,
        settings,
        libraries,
    })
}

/// Registers the worker and waits until it runs.
fn start(channel: &Channel, registered: &Cell<Option<Worker>>) -> Result<(i32, Worker), Error> {
    let worker = Worker::register(LIBRARY, WORKER_FUNCTION, WORKER_KIND, channel.handle());
    let worker = worker.ok_or(Error::SlotsExhausted)?;
    registered.set(Some(worker));
    match worker.wait_for_start() {
        Start::Started(pid) => Ok((pid, worker)),
        // It may have come and gone in the meantime: then it has left its number, and the reason.
        Start::Stopped => channel.pid().map(|pid| (pid, worker)).ok_or(Error::NotStarted),
        Start::PostmasterDied => Err(Error::PostmasterDied),
    }
}
