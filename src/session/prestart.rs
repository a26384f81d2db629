//! Prestart: a worker is started before the launch that will need it.
//!
//! While launches that need a new process follow each other, the next process is started as soon as one has its job:
//! the fork and the loading of the library go on in parallel to that job. A prestarted worker logs in only when it has
//! a job; it exits when no job arrives soon, or when another process needs its slot.

use crate::channel::attached_jobs;
use crate::channel::attached_jobs::ChannelEnd;
use crate::ffi::area;
use crate::session::start_worker::{register, take_used_channel};
use crate::{guc, scheduler};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time within which a launch that follows another one will be followed by a third: half of the time for which a
/// prestarted worker waits for its job.
const SOON: Duration = Duration::from_millis(50);

thread_local! {
    /// Time of this session's last launch in a new process.
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Records a launch in a new process, and returns whether the next one will probably need one soon. `began`: when the
/// launch began; one that tries again has found no process, and needs none in addition.
pub fn is_launch_series(began: Instant) -> bool {
    let is_soon = |last: Instant| last != began && began.saturating_duration_since(last) < SOON;
    LAST.replace(Some(began)).is_some_and(is_soon)
}

/// Takes the channel to the prestarted worker. Returns `None` if there is none, or if a job with this payload and
/// queue, both in bytes, does not fit: then the worker exits.
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

/// Starts a worker for the next launch, if there is capacity and a segment for it.
pub fn start(queue_bytes: usize) {
    if guc::half_cap() == 0 || !area::write(scheduler::may_prestart) {
        return;
    }
    // Only a used segment: a new one could be refused, and the launch is complete. Large segments are not kept, so they
    // are never used again.
    let Some(prestarted) = take_used_channel(0, queue_bytes) else { return };
    match register(&prestarted.channel) {
        Some(worker) => {
            area::write(|memory| scheduler::add_prestarted(memory, worker));
            attached_jobs::set_prestarted(prestarted);
        }
        None => prestarted.close(),
    }
}
