//! Having the server start a process for a segment.

use crate::channel::attached_jobs::ChannelEnd;
use crate::channel::{attached_jobs, Channel};
use crate::error::Error;
use crate::ffi::bgworker::{Registration, StartupStatus, WorkerHandle};
use crate::ffi::shm_mq::Receiver;
use crate::ffi::{area, latch};
use crate::scheduler;
use crate::scheduler::start::{LIBRARY, WORKER_FUNCTION, WORKER_KIND};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Interval at which a launch looks whether a worker that is to leave is gone.
pub const ROOM_CHECK: Duration = Duration::from_millis(2);
/// Time that it waits at most for one that takes its time.
pub const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// The segment of a worker that is gone, made ready for another.
pub fn used_segment(encoded_request: &[u8], sql: &[u8], queue_bytes: usize) -> Option<(Channel, Receiver)> {
    let ChannelEnd { channel, receiver, .. } = attached_jobs::take_reusable_channel(queue_bytes)?;
    receiver.close();
    // A process that ended before it had mapped the segment has left that to whoever comes next.
    channel.unpin();
    let renewed = channel.renew(encoded_request, sql, queue_bytes);
    if renewed.is_none() {
        channel.close();
    }
    Some((channel, renewed?))
}

/// Registers the worker and waits until it runs.
pub fn start(channel: &Channel, registered: &Cell<Option<WorkerHandle>>) -> Result<i32, Error> {
    let began = Instant::now();
    let mut was_hopeless = false;
    let worker = loop {
        if let Some(worker) = register(channel) {
            break worker;
        }
        // Workers that have nothing to do are in nobody's way.
        let will_have_room = area::is_made() && area::write(scheduler::free_a_process);
        let is_hopeless = !will_have_room && !attached_jobs::is_one_ending() && !area::is_one_exiting();
        // Twice: between the two questions the last one may have gone.
        if is_hopeless && was_hopeless || began.elapsed() > ROOM_PATIENCE {
            return Err(Error::SlotsExhausted);
        }
        was_hopeless = is_hopeless;
        if !is_hopeless {
            latch::wait(Some(ROOM_CHECK));
        }
    };
    registered.set(Some(worker));
    started(channel)
}

/// Asks the server to start a process that will come for this segment. None = there is no room for one.
pub fn register(channel: &Channel) -> Option<WorkerHandle> {
    let registration =
        Registration { function: WORKER_FUNCTION, argument: channel.handle(), words: [0; 3], restart_after: None };
    channel.pin();
    let worker = WorkerHandle::register(LIBRARY, WORKER_KIND, &registration);
    match worker {
        Some(worker) => channel.set_worker(worker),
        None => channel.unpin(),
    }
    worker
}

/// Waits until the worker runs that was registered for this segment; gives its process id.
pub fn started(channel: &Channel) -> Result<i32, Error> {
    let Some(worker) = channel.worker() else { return Err(Error::NotStarted) };
    match worker.wait_for_start() {
        StartupStatus::Started(pid) => Ok(pid),
        // It may have come and gone in the meantime: then it has left its number, and the reason.
        StartupStatus::Stopped => channel.pid().ok_or(Error::NotStarted),
    }
}
