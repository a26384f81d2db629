//! Launch of an attached job.
//!
//! A launch tries one way after the other until a worker has the job: an idle worker that this session has a channel
//! to, any idle worker, a prestarted worker, a new process. Each way acquires a channel; the job is written into it
//! once; then the worker is told.

use crate::channel::attached_jobs::{AttachedJob, ChannelEnd, Unread};
use crate::channel::{attached_jobs, Channel};
use crate::error::Error;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::{area, latch, login, report, role, session, shm_mq};
use crate::protocol::{to_bytes, Request, MAX_QUEUE_BYTES, MAX_SQL_BYTES};
use crate::registry::starved_launches;
use crate::scheduler::LoginKey;
use crate::session::launch_request::request;
use crate::session::{prestart, start_worker};
use crate::{guc, scheduler};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Default of `queue_size` in the SQL declaration, in bytes; 0 means the same.
pub const DEFAULT_QUEUE_BYTES: i32 = 65536;

/// Maximum bytes of a job's text that are remembered for messages.
const SQL_HEAD_BYTES: usize = 1024;

/// Launches a job in a worker. Returns the worker's process id. When this returns, the job will run, whatever happens
/// to the caller's transaction; when it raises, the job never runs.
///
/// # Errors
/// 22023 or 54000 for bad arguments, 42501 for a caller that must not launch, 53000 for exhausted resources.
pub fn launch(sql: &[u8], queue_size: i32) -> Result<i32, Error> {
    let queue_bytes = checked_queue_size(queue_size)?;
    if sql.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::EmptySql);
    }
    if sql.len() > MAX_SQL_BYTES {
        return Err(Error::SqlTooLong(sql.len()));
    }
    free_result_memory(queue_bytes)?;
    let request = request()?;
    let launch = Launch {
        encoded_request: to_bytes(&request),
        request,
        sql,
        queue_bytes,
        began: Instant::now(),
        found_idle_worker: Cell::default(),
    };
    loop {
        if let Some(pid) = launch.in_idle_worker() {
            return Ok(pid);
        }
        // To wait for a worker whose job has ended takes less than a new process.
        if launch.began.elapsed() < SHORT_WAIT && launch.will_have_idle_worker() {
            latch::wait(Some(WORKER_CHECK));
        } else if let Some(pid) = launch.in_new_process()? {
            return Ok(pid);
        }
    }
}

/// Time that a launch waits for a worker whose job has ended, before it has a new process started: about what that
/// takes.
const SHORT_WAIT: Duration = Duration::from_millis(3);
/// Interval at which it looks for such a worker.
const WORKER_CHECK: Duration = Duration::from_millis(1);

/// Makes sure that this session may have another result, with a queue of this many bytes.
///
/// # Errors
/// [`Error::TooManyUnread`] (53000), [`Error::ResultMemory`] (53400)
fn free_result_memory(queue_bytes: usize) -> Result<(), Error> {
    let check = || {
        let Unread { count, bytes } = attached_jobs::unread();
        let (max_count, limit) = (guc::max_unread_results(), guc::max_result_memory());
        if count >= max_count {
            Err(Error::TooManyUnread { unread: count, limit: max_count })
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
            Err(_) if attached_jobs::is_one_detaching() && began.elapsed() < start_worker::EXIT_TIMEOUT => {
                latch::wait(Some(start_worker::EXIT_CHECK));
            }
            outcome => return outcome,
        }
    }
}

/// Job that is being launched.
struct Launch<'a> {
    request: Request,
    encoded_request: Vec<u8>,
    sql: &'a [u8],
    queue_bytes: usize,
    began: Instant,
    /// A worker was idle while the launch waited for a process.
    found_idle_worker: Cell<bool>,
}

impl Launch<'_> {
    fn payload(&self) -> usize {
        Channel::payload_bytes(&self.encoded_request, self.sql)
    }

    /// Writes the job into a channel.
    /// Caller: it fits into the channel.
    fn write_to(&self, channel: &Channel) {
        channel.write_job(&self.encoded_request, self.sql);
    }

    /// Records that the worker with this process id has the job, and returns the process id.
    fn launched(&self, pid: i32, channel_end: ChannelEnd) -> i32 {
        attached_jobs::insert(AttachedJob {
            pid,
            role: role::current(),
            channel_end: Some(channel_end),
            holder: None,
            sql: session::clip(self.sql, SQL_HEAD_BYTES).to_vec(),
            description: None,
            kept: None,
        });
        pid
    }

    fn login_key(&self) -> LoginKey {
        let Request { database, login, .. } = self.request;
        (database, login, login::version(database, login))
    }

    /// Assigns the job to an idle worker, first to one that this session has a channel to. Returns its process id, or
    /// `None` if there is no such worker.
    fn in_idle_worker(&self) -> Option<i32> {
        if !area::is_made() {
            return None; // no worker has ever joined a pool
        }
        if starved_launches::must_yield(self.began.elapsed()) {
            return None;
        }
        let key = self.login_key();
        if let Some(pid) = self.over_idle_channel(key) {
            return Some(pid);
        }
        if self.has_idle_worker() {
            return self.over_new_channel(key);
        }
        attached_jobs::await_idle_channel(self.queue_bytes).then(|| self.over_idle_channel(key)).flatten()
    }

    /// Returns whether the job of a worker has ended to which this one could be assigned: it is idle in a moment.
    fn will_have_idle_worker(&self) -> bool {
        let key = self.login_key();
        area::is_made() && area::read(|memory| scheduler::will_be_assignable(memory, key))
    }

    /// Assigns the job to a worker that this session has a channel to. Returns its process id, or `None` if there is
    /// none.
    fn over_idle_channel(&self, key: LoginKey) -> Option<i32> {
        let mut later = Vec::new();
        let mut assigned = None;
        while let Some(mut idle) = attached_jobs::take_idle_channel() {
            let Some(slot_id) = idle.channel.slot_id() else {
                // The worker has no slot yet. It will have one for another job, or will be gone; then a new worker may
                // have the segment.
                later.push(idle);
                continue;
            };
            let is_settled = idle.settle();
            if idle.queue_bytes != self.queue_bytes || !is_settled && !attached_jobs::is_lost(idle.channel) {
                later.push(idle);
                continue;
            }
            if is_settled && idle.channel.fits(self.payload()) {
                self.write_to(&idle.channel);
                let segment = idle.channel.handle().to_number();
                let assigned_to = area::write(|memory| scheduler::assign_job(memory, key, segment, Some(slot_id)));
                if let Some((_, pid)) = assigned_to {
                    assigned = Some((pid, idle));
                    break;
                }
            }
            idle.close();
        }
        later.into_iter().rev().for_each(attached_jobs::put_back_idle_channel);
        assigned.map(|(pid, idle)| self.launched(pid, ChannelEnd::new(idle.channel, idle.receiver, self.queue_bytes)))
    }

    /// Assigns the job to any idle worker. Returns its process id, or `None` if there is none.
    fn over_new_channel(&self, key: LoginKey) -> Option<i32> {
        let end = self.create_channel()?;
        self.write_to(&end.channel);
        end.channel.open();
        end.channel.pin();
        let segment = end.channel.handle().to_number();
        let assigned_to = area::write(|memory| {
            let assigned_to = scheduler::assign_job(memory, key, segment, None);
            if let Some((slot_id, _)) = assigned_to {
                end.channel.set_slot_id(slot_id);
            }
            assigned_to
        });
        match assigned_to {
            Some((_, pid)) => Some(self.launched(pid, end)),
            None => {
                end.receiver.close();
                end.channel.abandon();
                None
            }
        }
    }

    /// Creates a channel. Returns `None` if the server has no segment left, not even after this session has freed those
    /// that it does not need.
    fn create_channel(&self) -> Option<ChannelEnd> {
        let create = || Channel::create(self.payload(), self.queue_bytes);
        let created = create().or_else(|| {
            attached_jobs::collect(true);
            create()
        });
        created.map(|(channel, receiver)| ChannelEnd::new(channel, receiver, self.queue_bytes))
    }

    /// Gives the job to a prestarted worker, or has the server start a new process. Returns the worker's process id, or
    /// `None` if there was no process, and a worker is idle by now.
    fn in_new_process(&self) -> Result<Option<i32>, Error> {
        // The worker's login will be at least as new as this version.
        let (_, _, version) = self.login_key();
        let is_launch_series = prestart::is_launch_series(self.began);
        let assigned_to = match self.to_prestarted(version) {
            // The server could not start it, perhaps for lack of a resource that is available again.
            Ok(None) | Err(Error::NotStarted) => match self.to_new_process(version, is_launch_series) {
                // By now another launch may have it.
                Err(Error::SlotsExhausted) if self.found_idle_worker.take() => return Ok(None),
                assigned_to => assigned_to?,
            },
            assigned_to => assigned_to?,
        };
        let (pid, channel_end) = assigned_to.ok_or(Error::NotStarted)?;
        let pid = self.launched(pid, channel_end);
        if is_launch_series {
            prestart::start(self.queue_bytes);
        }
        Ok(Some(pid))
    }

    /// Returns whether there is an idle worker that this launch may have.
    fn has_idle_worker(&self) -> bool {
        let key = self.login_key();
        area::is_made()
            && !starved_launches::must_yield(self.began.elapsed())
            && area::read(|memory| scheduler::has_idle_worker(memory, key))
    }

    fn to_prestarted(&self, version: u64) -> Result<Option<(i32, ChannelEnd)>, Error> {
        let Some(end) = prestart::take(self.payload(), self.queue_bytes) else { return Ok(None) };
        let channel = end.channel;
        self.write_to(&channel);
        complete(end, |registered| {
            registered.set(channel.worker());
            channel.offer(version);
            channel.pid().map_or_else(|| start_worker::started(&channel), Ok)
        })
    }

    fn to_new_process(&self, version: u64, is_launch_series: bool) -> Result<Option<(i32, ChannelEnd)>, Error> {
        let used = || start_worker::take_used_channel(self.payload(), self.queue_bytes);
        let created = || self.create_channel();
        // In a series of launches, the segment of an earlier launch is left for the prestarted worker.
        let end = if is_launch_series { created().or_else(used) } else { used().or_else(created) };
        let end = end.ok_or_else(|| Error::SegmentsExhausted { own: attached_jobs::segments() })?;
        let channel = end.channel;
        self.write_to(&channel);
        channel.offer(version);
        let has_idle_worker = || {
            self.found_idle_worker.set(self.has_idle_worker());
            self.found_idle_worker.get()
        };
        complete(end, |registered| start_worker::start(&channel, registered, self.began, has_idle_worker))
    }
}

/// Completes a launch, or makes sure that the job never runs: if it is cancelled, terminated or out of memory while the
/// process starts. `start`: records the worker and returns its process id. Returns `None` if the process exited before
/// it had the job.
fn complete(
    end: ChannelEnd,
    start: impl FnOnce(&Cell<Option<WorkerHandle>>) -> Result<i32, Error>,
) -> Result<Option<(i32, ChannelEnd)>, Error> {
    let channel = end.channel;
    let mut end = Some(end);
    let registered = Cell::new(None);
    let started = report::on_error(
        || start(&registered),
        || {
            if let Some(worker) = registered.take() {
                worker.terminate();
            }
            if let Some(end) = end.take() {
                end.receiver.close();
            }
            channel.abandon();
        },
    );
    let Some(end) = end else {
        return Err(Error::NotStarted);
    };
    match started {
        Ok(pid) if channel.open() => Ok(Some((pid, end))),
        started => {
            end.receiver.close();
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
