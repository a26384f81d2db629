//! Starting a background worker for a segment, and waiting until it runs.

use crate::channel::attached_jobs::ChannelEnd;
use crate::channel::{attached_jobs, Channel};
use crate::error::Error;
use crate::ffi::bgworker::{Registration, StartupStatus, WorkerHandle};
use crate::ffi::{area, latch};
use crate::registry::unregistered;
use crate::scheduler;
use crate::scheduler::start::{LIBRARY, WORKER_FUNCTION, WORKER_KIND};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Interval at which a launch looks whether a worker that is to leave is gone.
pub const ROOM_CHECK: Duration = Duration::from_millis(2);
/// Time that it waits at most for one that takes its time.
pub const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// Takes the segment of a worker that is gone, and makes it ready for another one. Returns `None` if there is none with
/// such a queue into which so many bytes of payload fit.
pub fn take_used_channel(payload: usize, queue_bytes: usize) -> Option<ChannelEnd> {
    let ChannelEnd { channel, receiver, .. } = attached_jobs::take_reusable_channel(queue_bytes)?;
    receiver.close();
    // A process that ended before it had mapped the segment has left that to whoever comes next.
    channel.unpin();
    if !channel.fits(payload) {
        channel.close();
        return None;
    }
    Some(ChannelEnd::new(channel, channel.renew(queue_bytes), queue_bytes))
}

/// Registers a worker for the segment and waits until it runs. Returns its process id.
///
/// # Errors
/// [`Error::SlotsExhausted`] (53000), [`Error::NotStarted`] (53000)
pub fn start(channel: &Channel, registered: &Cell<Option<WorkerHandle>>) -> Result<i32, Error> {
    let began = Instant::now();
    let mut was_hopeless = false;
    let worker = loop {
        if let Some(worker) = register(channel) {
            break worker;
        }
        // Workers that have nothing to do are in nobody's way.
        let will_have_room = area::is_made() && area::write(scheduler::free_a_process);
        let is_hopeless = !will_have_room && !attached_jobs::is_one_ending() && !unregistered::is_one_exiting();
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

/// Asks the server to start a process that will come for this segment. Returns `None` if it has no slot for one.
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

/// Waits until the worker runs that was registered for this segment. Returns its process id.
///
/// # Errors
/// [`Error::NotStarted`] (53000)
pub fn started(channel: &Channel) -> Result<i32, Error> {
    let Some(worker) = channel.worker() else { return Err(Error::NotStarted) };
    match worker.wait_for_start() {
        StartupStatus::Started(pid) => Ok(pid),
        // It may have come and gone in the meantime: then it has left its number, and the reason.
        StartupStatus::Stopped => channel.pid().ok_or(Error::NotStarted),
    }
}
