//! Prestarting: a process that is started before the launch that will need it.
//!
//! While launches that need a new process follow each other, the next process is started as soon as one has its job:
//! the fork and the loading of the library go on beside that job. Before it has a job the process has not logged in; it
//! ends when no job comes soon, or when another process is wanted in its place.

use crate::channel::attached_jobs;
use crate::channel::attached_jobs::ChannelEnd;
use crate::ffi::area;
use crate::session::start_worker::{register, take_used_channel};
use crate::{guc, scheduler};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// A launch that comes so soon after the one before will be followed by another: half of the time for which a process
/// waits for its job.
const SOON: Duration = Duration::from_millis(50);

thread_local! {
    /// Time at which this session last had a new process.
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Notes that a job gets a new process now, and returns whether the next one will want one soon.
pub fn is_launch_series() -> bool {
    let now = Instant::now();
    LAST.replace(Some(now)).is_some_and(|last| now - last < SOON)
}

/// Takes the channel to the prestarted process. Returns `None` if there is none, or if a job with so many bytes of
/// payload and such a queue is not for it: then the process ends.
pub fn take(payload: usize, queue_bytes: usize) -> Option<ChannelEnd> {
    let prestarted = attached_jobs::take_prestarted()?;
    let worker = prestarted.channel.worker()?;
    let fits = prestarted.queue_bytes == queue_bytes && prestarted.channel.fits(payload);
    if fits && area::write(|memory| scheduler::take_prestarted(memory, worker)) {
        return Some(prestarted);
    }
    prestarted.channel.give_up();
    area::write(|memory| scheduler::terminate_prestarted(memory, worker));
    attached_jobs::put_back_idle_channel(prestarted);
    None
}

/// Starts a process for the next launch, if there is room and a segment for it.
pub fn start(queue_bytes: usize) {
    if guc::spare_limit() == 0 || !area::write(scheduler::has_room_to_prestart) {
        return;
    }
    // A new one could be refused, and the launch is complete. Large ones are not kept, so they are never used again.
    let Some(prestarted) = take_used_channel(0, queue_bytes) else { return };
    match register(&prestarted.channel) {
        Some(worker) => {
            area::write(|memory| scheduler::add_prestarted(memory, worker));
            attached_jobs::set_prestarted(prestarted);
        }
        None => prestarted.close(),
    }
}
