//! Launching a job.

use crate::channel::attached_jobs::{AttachedJob, ChannelEnd, Unread};
use crate::channel::{attached_jobs, Channel};
use crate::error::Error;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::shm_mq::Receiver;
use crate::ffi::{area, latch, login, report, role, session, shm_mq};
use crate::protocol::{to_bytes, Request, MAX_QUEUE_BYTES, MAX_SQL_BYTES};
use crate::session::launch_request::request;
use crate::session::{prestart, start_worker};
use crate::{guc, scheduler};
use std::cell::Cell;
use std::time::Instant;

/// `queue_size` when the caller does not say, or says 0, in bytes: the default in the SQL declaration.
pub const DEFAULT_QUEUE_BYTES: i32 = 65536;

/// Bytes of a job's text that are remembered for messages, at most.
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
    make_room(queue_bytes)?;
    let request = request()?;
    let encoded_request = to_bytes(&request);
    if let Some(pid) = launch_warm(&request, &encoded_request, sql, queue_bytes) {
        return Ok(pid);
    }
    launch_cold(&request, &encoded_request, sql, queue_bytes)
}

/// Sees to it that this session may have another result, with a queue of so many bytes.
///
/// # Errors
/// [`Error::TooManyUnread`] (53000), [`Error::ResultMemory`] (53400)
fn make_room(queue_bytes: usize) -> Result<(), Error> {
    let check = || {
        let Unread { count, bytes } = attached_jobs::unread();
        let (most, limit) = (guc::max_unread_results(), guc::max_result_memory());
        if count >= most {
            Err(Error::TooManyUnread { unread: count, limit: most })
        } else if bytes.saturating_add(queue_bytes) > limit {
            Err(Error::ResultMemory { wanted: queue_bytes, held: bytes, limit })
        } else {
            Ok(())
        }
    };
    attached_jobs::collect(false);
    if check().is_ok() {
        return Ok(());
    }
    attached_jobs::collect(true);
    let began = Instant::now();
    loop {
        match check() {
            Err(_) if attached_jobs::is_one_detaching() && began.elapsed() < start_worker::ROOM_PATIENCE => {
                latch::wait(Some(start_worker::ROOM_CHECK));
            }
            outcome => return outcome,
        }
    }
}

/// Creates a segment with the job in it. None = the server has no segment left, not even in place of one that this
/// session does not need.
fn create(encoded_request: &[u8], sql: &[u8], queue_bytes: usize) -> Option<(Channel, Receiver)> {
    Channel::create(encoded_request, sql, queue_bytes).or_else(|| {
        attached_jobs::collect(true);
        Channel::create(encoded_request, sql, queue_bytes)
    })
}

/// Names a login: the database, the role, and what it depends on.
type Key = (u32, u32, u64);

/// Gives the job to a worker that is there and has nothing to do, if there is one: first to one that this session has a
/// channel to.
fn launch_warm(request: &Request, encoded_request: &[u8], sql: &[u8], queue_bytes: usize) -> Option<i32> {
    if !area::is_made() {
        return None; // no worker has ever stayed
    }
    let key = (request.database, request.login, login::version(request.database, request.login));
    if let Some(pid) = launch_again(key, encoded_request, sql, queue_bytes) {
        return Some(pid);
    }
    if !area::read(|memory| scheduler::has_idle_worker(memory, key)) {
        return attached_jobs::await_idle_channel(queue_bytes)
            .then(|| launch_again(key, encoded_request, sql, queue_bytes))
            .flatten();
    }
    let (channel, receiver) = create(encoded_request, sql, queue_bytes)?;
    channel.open();
    channel.pin();
    let segment = channel.handle().to_number();
    let given = area::write(|memory| {
        let given = scheduler::assign_job(memory, key, segment, None);
        if let Some((slot_id, _)) = given {
            channel.set_slot_id(slot_id);
        }
        given
    });
    match given {
        Some((_, pid)) => Some(remember(pid, channel, receiver, queue_bytes, sql)),
        None => {
            receiver.close();
            channel.abandon();
            None
        }
    }
}

/// Gives the job to a worker that this session has a channel to.
fn launch_again(key: Key, encoded_request: &[u8], sql: &[u8], queue_bytes: usize) -> Option<i32> {
    let mut later = Vec::new();
    let mut given = None;
    while let Some(mut idle) = attached_jobs::take_idle_channel() {
        let Some(slot_id) = idle.channel.slot_id() else {
            // Its worker is on its way: it will be there for another job; or gone, then a new worker may have it.
            later.push(idle);
            continue;
        };
        if idle.queue_bytes != queue_bytes || !idle.settle() && !attached_jobs::is_lost(idle.channel) {
            later.push(idle);
            continue;
        }
        if idle.settle() && idle.channel.write_job(encoded_request, sql) {
            let segment = idle.channel.handle().to_number();
            if let Some((_, pid)) = area::write(|memory| scheduler::assign_job(memory, key, segment, Some(slot_id))) {
                given = Some((pid, idle));
                break;
            }
        }
        idle.close();
    }
    later.into_iter().rev().for_each(attached_jobs::put_back_idle_channel);
    given.map(|(pid, ChannelEnd { channel, receiver, .. })| remember(pid, channel, receiver, queue_bytes, sql))
}

fn remember(pid: i32, channel: Channel, receiver: Receiver, queue_bytes: usize, sql: &[u8]) -> i32 {
    let sql = session::clip(sql, SQL_HEAD_BYTES).to_vec();
    attached_jobs::insert(AttachedJob {
        pid,
        role: role::current(),
        channel_end: Some(ChannelEnd::new(channel, receiver, queue_bytes)),
        holder: None,
        sql,
        description: None,
        kept: None,
    });
    pid
}

/// Gives the job to a new process: to one that was started ahead, or has the server start one.
fn launch_cold(request: &Request, encoded_request: &[u8], sql: &[u8], queue_bytes: usize) -> Result<i32, Error> {
    // What the worker logs in to is at least as new.
    let version = login::version(request.database, request.login);
    let is_followed = prestart::is_launch_series();
    let given = match prestart::take(encoded_request, sql, queue_bytes) {
        Some(ChannelEnd { channel, receiver, .. }) => {
            let given = complete(channel, receiver, |registered| {
                registered.set(channel.worker());
                channel.offer(version);
                channel.pid().map_or_else(|| start_worker::started(&channel), Ok)
            });
            match given {
                // The server could not start it, perhaps for lack of something that is there again.
                Err(Error::NotStarted) => None,
                given => given?,
            }
        }
        None => None,
    };
    let (pid, channel, receiver) = match given {
        Some(given) => given,
        None => {
            let made = || create(encoded_request, sql, queue_bytes);
            let used = || start_worker::used_segment(encoded_request, sql, queue_bytes);
            // What is left of a launch before is for the process that is started ahead of the next.
            let segment = if is_followed { made().or_else(used) } else { used().or_else(made) };
            let (channel, receiver) =
                segment.ok_or_else(|| Error::SegmentsExhausted { own: attached_jobs::segments() })?;
            channel.offer(version);
            complete(channel, receiver, |registered| start_worker::start(&channel, registered))?
                .ok_or(Error::NotStarted)?
        }
    };
    let pid = remember(pid, channel, receiver, queue_bytes, sql);
    if is_followed {
        prestart::start(queue_bytes);
    }
    Ok(pid)
}

/// Completes a launch, or sees to it that the job never runs: cancelled, terminated or out of memory while the process
/// starts. `start` says which one it is, and gives its process id. None = the process has gone before it had the job.
fn complete(
    channel: Channel,
    receiver: Receiver,
    start: impl FnOnce(&Cell<Option<WorkerHandle>>) -> Result<i32, Error>,
) -> Result<Option<(i32, Channel, Receiver)>, Error> {
    let mut receiver = Some(receiver);
    let registered = Cell::new(None);
    let started = report::on_error(
        || start(&registered),
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
        Ok(pid) if channel.open() => Ok(Some((pid, channel, receiver))),
        started => {
            receiver.close();
            channel.abandon();
            started.map(|_| None)
        }
    }
}

fn checked_queue_size(queue_size: i32) -> Result<usize, Error> {
    let minimum = shm_mq::minimum_size();
    match usize::try_from(queue_size) {
        Ok(0) => Ok(DEFAULT_QUEUE_BYTES as usize),
        Ok(size) if size > MAX_QUEUE_BYTES => Err(Error::QueueTooLarge),
        Ok(size) if size >= minimum => Ok(size),
        _ => Err(Error::QueueTooSmall(minimum)),
    }
}
