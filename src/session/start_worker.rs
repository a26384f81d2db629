//! Start of a background worker for a segment.

use crate::channel::attached_jobs::ChannelEnd;
use crate::channel::{attached_jobs, Channel};
use crate::error::Error;
use crate::ffi::bgworker::{Registration, StartupStatus, WorkerHandle};
use crate::ffi::{area, latch};
use crate::registry::{starved_launches, unregistered};
use crate::scheduler;
use crate::scheduler::start::{LIBRARY, WORKER_FUNCTION, WORKER_KIND};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Interval at which a launch checks whether a worker that must exit is gone.
pub const EXIT_CHECK: Duration = Duration::from_millis(2);
/// Maximum time that a launch waits for such a worker, or while others begin and end short jobs.
pub const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time that a launch waits when no worker is to exit, and none begins or ends a job.
const PROCESS_TIMEOUT: Duration = Duration::from_millis(250);

/// Takes the segment of a worker that is gone, and makes it ready for another one. Returns `None` if there is none with
/// such a queue into which a job with this payload fits, both in bytes.
pub fn take_used_channel(payload: usize, queue_bytes: usize) -> Option<ChannelEnd> {
    let ChannelEnd { channel, receiver, .. } = attached_jobs::take_reusable_channel(queue_bytes)?;
    receiver.close();
    // A process that exited before it had attached to the segment has left the pin to the next one.
    channel.unpin();
    if !channel.fits(payload) {
        channel.close();
        return None;
    }
    Some(ChannelEnd::new(channel, channel.renew(queue_bytes), queue_bytes))
}

/// Registers a worker for the segment and waits until it runs. Returns its process id. `registered`: set to the worker.
/// `began`: when the launch began. `has_idle_worker`: returns whether a worker is idle that can have the job as well.
///
/// # Errors
/// [`Error::SlotsExhausted`] (53000), also when a worker is idle; [`Error::NotStarted`] (53000)
pub fn start(
    channel: &Channel,
    registered: &Cell<Option<WorkerHandle>>,
    began: Instant,
    has_idle_worker: impl Fn() -> bool,
) -> Result<i32, Error> {
    let worker = loop {
        if let Some(worker) = register(channel) {
            break worker;
        }
        let waited = began.elapsed();
        if waited < EXIT_TIMEOUT && has_idle_worker() {
            return Err(Error::SlotsExhausted);
        }
        // Idle workers of others are evicted for this one.
        let will_have_process = area::is_made() && area::write(scheduler::free_a_process)
            || attached_jobs::is_one_ending()
            || unregistered::is_one_exiting()
            || unregistered::is_one_starting();
        if waited > if will_have_process { EXIT_TIMEOUT } else { PROCESS_TIMEOUT } {
            return Err(Error::SlotsExhausted);
        }
        starved_launches::note_waiting(waited);
        latch::wait(Some(EXIT_CHECK));
    };
    registered.set(Some(worker));
    started(channel)
}

/// Asks the server to start a process that attaches to this segment. Returns `None` if it has no slot for one.
pub fn register(channel: &Channel) -> Option<WorkerHandle> {
    let registration =
        Registration { function: WORKER_FUNCTION, argument: channel.handle(), words: [0; 3], restart_after: None };
    channel.pin();
    let worker = WorkerHandle::register(LIBRARY, WORKER_KIND, &registration);
    match worker {
        Some(worker) => {
            unregistered::note_starting();
            channel.set_worker(worker);
        }
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
        // It may have started and exited in the meantime: then it has left its process id, and the reason.
        StartupStatus::Stopped => channel.pid().ok_or(Error::NotStarted),
    }
}
