//! Launching a job.

use super::table::{self, Job};
use crate::error::Error;
use crate::ffi::bgworker::{Registration, Start, Worker, WORDS};
use crate::ffi::{area, latch, report, session, shm_mq};
use crate::job::channel::Channel;
use crate::job::registry;
use crate::job::{LIBRARY, WORKER_FUNCTION, WORKER_KIND};
use crate::protocol::{MAX_QUEUE_BYTES, MAX_SQL_BYTES};
use std::cell::Cell;
use std::time::Duration;

/// `queue_size` when the caller does not say, in bytes: the default in the SQL declaration.
pub const DEFAULT_QUEUE_BYTES: i32 = 65536;

/// How often a launch looks whether an idle worker that was asked to leave is gone.
const ROOM_CHECK: Duration = Duration::from_millis(2);

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
    let request = super::request()?;
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

/// Registers the worker and waits until it runs.
fn start(channel: &Channel, registered: &Cell<Option<Worker>>) -> Result<(i32, Worker), Error> {
    let registration =
        Registration { function: WORKER_FUNCTION, argument: channel.handle(), words: [0; WORDS], restart_after: None };
    let worker = loop {
        match Worker::register(LIBRARY, WORKER_KIND, &registration) {
            Some(worker) => break worker,
            // Workers of the manager that have nothing to do are in nobody's way.
            None if area::is_made() && area::write(registry::make_room) => latch::wait(Some(ROOM_CHECK)),
            None => return Err(Error::SlotsExhausted),
        }
    };
    registered.set(Some(worker));
    match worker.wait_for_start() {
        Start::Started(pid) => Ok((pid, worker)),
        // It may have come and gone in the meantime: then it has left its number, and the reason.
        Start::Stopped => channel.pid().map(|pid| (pid, worker)).ok_or(Error::NotStarted),
        Start::PostmasterDied => Err(Error::PostmasterDied),
    }
}
