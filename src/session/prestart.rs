//! A process that is started ahead of the next launch.
//!
//! While launches that need a new process follow each other, the next process is started as soon as one has its job:
//! the fork and the loading of the library go on beside that job. It is nobody's before it has a job: it has not
//! logged in, and it leaves when none comes soon, or when somebody else wants a process.

use crate::channel::attached_jobs;
use crate::channel::attached_jobs::ChannelEnd;
use crate::ffi::area;
use crate::session::start_worker::{register, used_segment};
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

/// The channel to the process that was started ahead, with the job in it; none = there is no such process any more, or
/// the job does not fit.
pub fn take(encoded_request: &[u8], sql: &[u8], queue_bytes: usize) -> Option<ChannelEnd> {
    let ahead = attached_jobs::take_prestarted()?;
    let worker = ahead.channel.worker()?;
    let fits = ahead.queue_bytes == queue_bytes && ahead.channel.write_job(encoded_request, sql);
    if fits && area::write(|memory| scheduler::take_prestarted(memory, worker)) {
        return Some(ahead);
    }
    ahead.channel.give_up();
    area::write(|memory| scheduler::terminate_prestarted(memory, worker));
    attached_jobs::put_back_idle_channel(ahead);
    None
}

/// Starts one, if there is room and a segment for it.
pub fn start(queue_bytes: usize) {
    if guc::spare_limit() == 0 || !area::write(scheduler::has_room_to_prestart) {
        return;
    }
    // A new one could be refused, and the launch is complete. Large ones are not kept, so they are never used again.
    let Some((channel, receiver)) = used_segment(&[], &[], queue_bytes) else { return };
    let ahead = ChannelEnd::new(channel, receiver, queue_bytes);
    match register(&ahead.channel) {
        Some(worker) => {
            area::write(|memory| scheduler::add_prestarted(memory, worker));
            attached_jobs::set_prestarted(ahead);
        }
        None => ahead.close(),
    }
}
