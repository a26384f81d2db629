//! Attached jobs of this session, and its channels to workers that have finished one.
//!
//! They live as long as the session, whatever happens to the transaction that launched the jobs.

use crate::channel::overflow_queue::OverflowQueue;
use crate::channel::Channel;
use crate::error::Error;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::dsm::{Handle, Segment};
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::shm_mq::Receiver;
use crate::ffi::spin::SpinThenWait;
use crate::ffi::{alloc, area, exit_hooks, latch};
use crate::ids::RoleId;
use crate::protocol::{split, Description, Kind};
use crate::registry::unregistered;
use crate::scheduler;
use crate::scheduler::SlotId;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Job whose result can still be read.
pub struct AttachedJob {
    pub pid: i32,
    /// OID of the role that was in effect at the launch. The result belongs to that role.
    pub role: RoleId,
    /// Channel that brings the result; `None` when all that was to be received has been received.
    pub channel_end: Option<ChannelEnd>,
    /// Worker that has the process id, when the channel is no longer there to tell.
    pub holder: Option<WorkerSegment>,
    /// Beginning of the job's text, for messages.
    pub sql: Vec<u8>,
    /// Columns of the result, if they have been received.
    pub description: Option<Description>,
    /// Frames that were received, but not passed to a reader.
    pub kept: Option<OverflowQueue>,
}

/// This session's end of a channel from a worker. When a result has been read, the next job may use the same channel.
pub struct ChannelEnd {
    pub channel: Channel,
    pub receiver: Receiver,
    /// Size of the queue, in bytes.
    pub queue_bytes: usize,
    /// The result of the last job was given up, and is still in the queue.
    is_owing: bool,
    /// The whole of the last result has been received: its worker detaches from the segment.
    has_ended: bool,
    /// Time at which the last job was written to the channel.
    since: Instant,
}

impl ChannelEnd {
    /// Returns a channel end for a job that is launched now.
    pub fn new(channel: Channel, receiver: Receiver, queue_bytes: usize) -> Self {
        ChannelEnd { channel, receiver, queue_bytes, is_owing: false, has_ended: false, since: Instant::now() }
    }

    /// Returns whether the worker can take no other job from this channel: it is gone, or the segment is too large to
    /// be kept.
    fn has_lost_worker(&self) -> bool {
        !self.channel.is_kept()
            || match (self.channel.slot_id(), self.channel.worker()) {
                (Some(slot_id), _) => !area::read(|memory| scheduler::is_worker_there(memory, slot_id)),
                (None, worker) => worker.is_none_or(WorkerHandle::is_gone),
            }
    }

    /// Removes a result that was given up from the queue. Returns `false` if its job has not ended.
    pub fn settle(&mut self) -> bool {
        if self.is_owing && self.channel.delivered().is_some() {
            self.is_owing = !self.receive_all(|_| true);
        }
        !self.is_owing
    }

    /// Receives the whole result of a job that has ended, as long as `keep` accepts frames. Returns `false` if that was
    /// not all.
    fn receive_all(&mut self, mut keep: impl FnMut(&[u8]) -> bool) -> bool {
        while let Ok(frame) = self.receiver.try_receive(|| false) {
            let is_last = matches!(split(frame), Ok((Kind::Error | Kind::Done, _)));
            if !keep(frame) {
                return false;
            }
            if is_last {
                return true;
            }
        }
        false
    }

    /// Returns the worker that was started for the job, or `None` if it has joined a pool since.
    fn own_worker(&self) -> Option<WorkerHandle> {
        self.channel.worker().filter(|_| self.channel.slot_id().is_none())
    }

    /// Closes the channel. A worker that still sends notices that, and goes on without a reader.
    pub fn close(self) {
        if is_lost(self.channel) {
            self.channel.unpin();
        }
        if !self.channel.is_kept() {
            let segment =
                GivenUp { handle: self.channel.handle(), queue_bytes: self.queue_bytes, has_ended: self.has_ended };
            GIVEN_UP.with_borrow_mut(|given_up| given_up.push(segment));
        }
        close(self.channel, self.receiver);
    }
}

/// Worker that has the process id of a job: its slot, and the segment of the job.
pub type WorkerSegment = (SlotId, Handle);

/// Holder of a process id, which no other job gets meanwhile.
#[derive(Clone, Copy)]
enum PidHolder {
    Channel(Channel),
    Worker(WorkerSegment),
    Nothing,
}

impl AttachedJob {
    fn pid_holder(&self) -> PidHolder {
        match (&self.channel_end, self.holder) {
            (Some(channel_end), _) => PidHolder::Channel(channel_end.channel),
            (None, Some(holder)) => PidHolder::Worker(holder),
            (None, None) => PidHolder::Nothing,
        }
    }

    /// Returns the bytes that the job takes in this session's memory.
    fn bytes(&self) -> usize {
        size_of::<AttachedJob>() + self.sql.capacity() + self.kept.as_ref().map_or(0, OverflowQueue::bytes)
    }

    /// Gives the result up.
    fn close(self) {
        release(self.pid_holder(), false);
        if let Some(channel_end) = self.channel_end {
            channel_end.close();
        }
    }

    /// Returns whether the whole result is in the queue, is small and has not been read, and the process id is known
    /// without the channel.
    fn is_collectable(&self) -> bool {
        let Some(ChannelEnd { channel, .. }) = &self.channel_end else { return false };
        self.kept.is_none()
            && channel.delivered().is_some_and(|bytes| bytes <= COLLECTED_BYTES)
            && (channel.slot_id().is_some() || channel.worker().is_none_or(WorkerHandle::is_gone))
    }

    /// Receives the whole result into memory. Returns `false` if it is not in the queue as a whole, and must be read
    /// from there.
    fn collect(&mut self) -> bool {
        let Some(channel_end) = &mut self.channel_end else { return false };
        // A frame that has been received and cannot be kept would be lost.
        if !alloc::has(2 * COLLECTED_BYTES) {
            return false;
        }
        let kept = self.kept.get_or_insert_with(|| OverflowQueue::new(usize::MAX));
        channel_end.receive_all(|frame| kept.push(frame.to_vec()).is_ok())
    }
}

/// Returns whether no process will send anything.
/// Caller: no process has attached to the queue as its sender.
pub fn is_lost(channel: Channel) -> bool {
    match (channel.worker(), channel.slot_id()) {
        (Some(worker), _) => worker.is_gone(),
        (None, Some(slot_id)) => {
            let segment = channel.handle().to_number();
            !area::read(|memory| scheduler::holds_job(memory, slot_id, segment))
        }
        (None, None) => false,
    }
}

/// Closes a channel that is of no use any more.
fn close(channel: Channel, receiver: Receiver) {
    receiver.close();
    channel.close();
}

/// Releases the process id of a worker: other jobs may have it from now on. `is_whole`: the result was read to its end.
fn release(holder: PidHolder, is_whole: bool) {
    let (slot_id, segment) = match holder {
        PidHolder::Nothing => return,
        PidHolder::Worker(holder) => holder,
        PidHolder::Channel(channel) => {
            channel.set_read();
            match channel.slot_id() {
                Some(slot_id) => (slot_id, channel.handle()),
                None if is_whole => return unregistered::note_exiting(),
                None => return,
            }
        }
    };
    area::write(|memory| scheduler::release_result(memory, slot_id, segment.to_number(), is_whole));
}

/// Reason why a result is not there any more.
#[derive(Clone, Copy)]
pub enum ResultFate {
    Read,
    GivenUp,
}

/// Maximum number of idle channels: each is a segment with a queue in it.
const MAX_IDLE_CHANNELS: usize = 8;
/// Size up to which an unread result is moved to the session's memory, in bytes.
const COLLECTED_BYTES: usize = 64 * 1024;

/// Maximum number of past results that are remembered, so that asking for one again gets a precise error.
const MAX_FATES: usize = 1024;

/// Job that was taken out of the table to be read.
struct BeingRead {
    pid: i32,
    role: RoleId,
    holder: PidHolder,
    queue_bytes: usize,
}

#[derive(Default)]
struct Table {
    /// Jobs whose results come from a segment.
    jobs: HashMap<i32, AttachedJob>,
    /// Jobs whose results are in memory, and the bytes of all of them.
    collected: HashMap<i32, AttachedJob>,
    collected_bytes: usize,
    /// Jobs that are being read.
    reading: Vec<BeingRead>,
    gone: VecDeque<(i32, RoleId, ResultFate)>,
    idle: Vec<ChannelEnd>,
    /// Channel to a prestarted worker.
    prestarted: Option<ChannelEnd>,
}

impl Table {
    /// Adds a job. Returns the job that had the same process id, if there was one.
    fn add(&mut self, job: AttachedJob) -> Option<AttachedJob> {
        let before = self.remove(job.pid);
        if job.channel_end.is_some() {
            self.jobs.insert(job.pid, job);
        } else {
            self.collected_bytes += job.bytes();
            self.collected.insert(job.pid, job);
        }
        before
    }

    fn remove(&mut self, pid: i32) -> Option<AttachedJob> {
        let collected = self.collected.remove(&pid).inspect(|job| self.collected_bytes -= job.bytes());
        collected.or_else(|| self.jobs.remove(&pid))
    }

    fn get(&self, pid: i32) -> Option<&AttachedJob> {
        self.jobs.get(&pid).or_else(|| self.collected.get(&pid))
    }

    fn all(&self) -> impl Iterator<Item = &AttachedJob> {
        self.jobs.values().chain(self.collected.values())
    }
}

/// Age up to which a launched job may end before a new process would have started.
const JUST_LAUNCHED: Duration = Duration::from_millis(1);
/// Time in which a session does not wait for the end of a job again, after it has waited in vain.
const FAILED_WAIT: Duration = Duration::from_millis(100);

thread_local! {
    static LAST_FAILED_WAIT: Cell<Option<Instant>> = const { Cell::new(None) };
    static SPIN: SpinThenWait = const { SpinThenWait::new() };
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
    static TABLE: ProcessCell<Table> = process_cell(Table::default());
    static GIVEN_UP: ProcessCell<Vec<GivenUp>> = const { process_cell(Vec::new()) };
}

/// Large segment that this session has given up, and that its worker has not detached from yet.
struct GivenUp {
    handle: Handle,
    queue_bytes: usize,
    /// The job has ended.
    has_ended: bool,
}

/// Adds a job. If there is an old job with the same process id, its worker has exited and the id was reused: the old
/// result is closed, as it cannot be asked for any more.
pub fn insert(job: AttachedJob) {
    if !IS_WATCHED.replace(true) {
        // The results will not be read any more: tells the workers.
        exit_hooks::before_exit(|| {
            TABLE.with_borrow(|table| {
                let unread = table.all().map(AttachedJob::pid_holder);
                unread
                    .chain(table.reading.iter().map(|reading| reading.holder))
                    .for_each(|holder| release(holder, false));
                table.prestarted.iter().for_each(|prestarted| prestarted.channel.give_up());
            });
        });
    }
    let replaced = TABLE.with_borrow_mut(|table| {
        table.gone.retain(|(pid, ..)| *pid != job.pid);
        table.add(job)
    });
    if let Some(replaced) = replaced {
        replaced.close();
    }
}

/// Takes a job out of the table to work with it. `may_act_as`: returns whether the caller may use the jobs of a role;
/// for other callers the job does not exist.
///
/// # Errors
/// [`Error::NotAttached`], [`Error::AlreadyRead`], [`Error::GivenUp`] (42704); [`Error::BeingRead`] (55000).
pub fn take(pid: i32, may_act_as: impl Fn(RoleId) -> bool) -> Result<AttachedJob, Error> {
    TABLE.with_borrow_mut(|table| {
        if table.get(pid).is_some_and(|job| !may_act_as(job.role)) {
            return Err(Error::NotAttached(pid));
        }
        if let Some(job) = table.remove(pid) {
            let queue_bytes = job.channel_end.as_ref().map_or(0, |channel_end| channel_end.queue_bytes);
            job.channel_end.iter().for_each(|channel_end| channel_end.channel.set_being_read(true));
            table.reading.push(BeingRead { pid, role: job.role, holder: job.pid_holder(), queue_bytes });
            return Ok(job);
        }
        if table.reading.iter().any(|reading| reading.pid == pid && may_act_as(reading.role)) {
            return Err(Error::BeingRead(pid));
        }
        Err(match table.gone.iter().find(|(gone, role, _)| *gone == pid && may_act_as(*role)) {
            Some((_, _, ResultFate::Read)) => Error::AlreadyRead(pid),
            Some((_, _, ResultFate::GivenUp)) => Error::GivenUp(pid),
            None => Error::NotAttached(pid),
        })
    })
}

/// Puts a job back into the table: its result can be read again.
pub fn put_back(job: AttachedJob) {
    TABLE.with_borrow_mut(|table| {
        table.reading.retain(|reading| reading.pid != job.pid);
        job.channel_end.iter().for_each(|channel_end| channel_end.channel.set_being_read(false));
        table.add(job);
    });
}

/// Ends a job that was taken out. `is_whole`: the result was received to its end, so that its channel can take another
/// job.
pub fn finish(mut job: AttachedJob, fate: ResultFate, is_whole: bool) {
    TABLE.with_borrow_mut(|table| {
        table.reading.retain(|reading| reading.pid != job.pid);
        if table.gone.len() == MAX_FATES {
            table.gone.pop_front();
        }
        table.gone.push_back((job.pid, job.role, fate));
    });
    let is_kept = job.channel_end.as_ref().is_none_or(|channel_end| channel_end.channel.is_kept());
    let is_owing = matches!(fate, ResultFate::GivenUp);
    if let Some(channel_end) = &mut job.channel_end {
        channel_end.has_ended = is_whole;
    }
    if !is_kept || !is_whole && !is_owing {
        return job.close();
    }
    release(job.pid_holder(), is_whole);
    let Some(mut channel_end) = job.channel_end.take() else { return };
    // A worker that waits for a reader is told that there is none; the segment of a worker that is gone is given back.
    if is_owing && (channel_end.channel.is_waiting() || channel_end.has_lost_worker()) {
        return channel_end.close();
    }
    channel_end.is_owing = is_owing;
    channel_end.settle();
    keep_channel(|idle| idle.push(channel_end));
}

/// Moves small results of ended jobs from their segments into this session's memory: if the segments are of no further
/// use, or if there are many; `all`: in any case. The segments are closed, or serve the next workers.
pub fn collect(all: bool) {
    let mut channel_ends = Vec::new();
    TABLE.with_borrow_mut(|table| {
        let all = all || table.jobs.len() > MAX_IDLE_CHANNELS;
        let is_due = |job: &AttachedJob| {
            job.is_collectable() && (all || job.channel_end.as_ref().is_some_and(ChannelEnd::has_lost_worker))
        };
        let due: Vec<i32> = table.jobs.values().filter(|job| is_due(job)).map(|job| job.pid).collect();
        for pid in due {
            if !table.jobs.get_mut(&pid).is_some_and(AttachedJob::collect) {
                continue;
            }
            let Some(mut job) = table.jobs.remove(&pid) else { continue };
            if let Some(mut channel_end) = job.channel_end.take() {
                channel_end.has_ended = true;
                job.holder = channel_end.channel.slot_id().map(|slot_id| (slot_id, channel_end.channel.handle()));
                channel_ends.push(channel_end);
            }
            table.add(job);
        }
    });
    for channel_end in channel_ends {
        match channel_end.own_worker() {
            Some(worker) if worker.is_gone() && channel_end.channel.is_kept() => {
                keep_channel(|idle| idle.insert(0, channel_end))
            }
            _ => channel_end.close(),
        }
    }
}

/// Amount of results that this session has not read.
pub struct Unread {
    /// Number of results that are in shared memory, or will be.
    pub count: usize,
    /// Bytes of the queues of those, of large queues that were given up while their jobs still run, and of results in
    /// this session's memory.
    pub bytes: usize,
}

/// Returns the amount of results that this session has not read.
pub fn unread() -> Unread {
    let given_up: usize = GIVEN_UP.with_borrow_mut(|given_up| {
        given_up.retain(|segment| Segment::exists(segment.handle));
        given_up.iter().map(|segment| segment.queue_bytes).sum()
    });
    TABLE.with_borrow(|table| {
        let channel_ends = table.jobs.values().filter_map(|job| job.channel_end.as_ref());
        let unread: usize = channel_ends.map(|channel_end| channel_end.queue_bytes).sum();
        let reading: usize = table.reading.iter().map(|reading| reading.queue_bytes).sum();
        let count = table.jobs.len() + table.reading.iter().filter(|reading| reading.queue_bytes > 0).count();
        Unread { count, bytes: unread + reading + given_up + table.collected_bytes }
    })
}

/// Returns whether a worker has yet to detach from a large segment whose result was received, as of the last
/// [`unread`].
pub fn is_one_detaching() -> bool {
    GIVEN_UP.with_borrow(|given_up| given_up.iter().any(|segment| segment.has_ended))
}

/// Counts the segments of this session.
pub fn segments() -> usize {
    TABLE.with_borrow(|table| {
        table.jobs.len() + table.reading.len() + table.idle.len() + usize::from(table.prestarted.is_some())
    })
}

/// Keeps an idle channel, and closes the oldest one if there are too many.
fn keep_channel(add: impl FnOnce(&mut Vec<ChannelEnd>)) {
    let surplus = TABLE.with_borrow_mut(|table| {
        add(&mut table.idle);
        (table.idle.len() > MAX_IDLE_CHANNELS).then(|| table.idle.remove(0))
    });
    if let Some(idle) = surplus {
        idle.close();
    }
}

/// Returns whether a worker is exiting whose result was read, and which does not join a pool.
pub fn is_one_ending() -> bool {
    let has_ended = |idle: &ChannelEnd| !idle.is_owing || idle.channel.delivered().is_some();
    let is_ending = |idle: &ChannelEnd| has_ended(idle) && idle.own_worker().is_some_and(|worker| !worker.is_gone());
    TABLE.with_borrow(|table| table.idle.iter().any(is_ending))
}

/// Waits for the end of a job that was launched just now and whose result was given up, so that its worker can take the
/// next job; not longer than a new process takes. Returns `false` if there is no job that is worth waiting for.
pub fn await_idle_channel(queue_bytes: usize) -> bool {
    let began = Instant::now();
    if LAST_FAILED_WAIT.get().is_some_and(|last| began - last < FAILED_WAIT) {
        return false;
    }
    let mut has_spun = false;
    loop {
        let (mut settled, mut is_young) = (None, false);
        TABLE.with_borrow_mut(|table| {
            let fits = |idle: &&mut ChannelEnd| idle.queue_bytes == queue_bytes && idle.channel.slot_id().is_some();
            for idle in table.idle.iter_mut().filter(fits) {
                let is_owing = idle.is_owing;
                is_young |= is_owing && began.saturating_duration_since(idle.since) < JUST_LAUNCHED;
                if is_owing && idle.settle() {
                    settled = Some(idle.channel.sent_at());
                }
            }
        });
        if let Some(sent_at) = settled {
            SPIN.with(|spin| spin.record_wakeup(sent_at));
            return true;
        }
        let remaining = JUST_LAUNCHED.saturating_sub(began.elapsed());
        if !is_young || remaining.is_zero() {
            LAST_FAILED_WAIT.set(is_young.then(Instant::now));
            return false;
        }
        if !std::mem::replace(&mut has_spun, true) && SPIN.with(SpinThenWait::spin) {
            continue;
        }
        latch::wait(Some(remaining));
    }
}

/// Takes an idle channel with such a queue whose worker is gone: its segment can serve a new worker. Returns `None` if
/// there is none.
pub fn take_reusable_channel(queue_bytes: usize) -> Option<ChannelEnd> {
    TABLE.with_borrow_mut(|table| {
        let has_lost_worker =
            |idle: &ChannelEnd| idle.queue_bytes == queue_bytes && idle.own_worker().is_some_and(WorkerHandle::is_gone);
        let index = table.idle.iter().position(has_lost_worker)?;
        Some(table.idle.remove(index))
    })
}

/// Keeps the channel to a prestarted worker.
pub fn set_prestarted(channel_end: ChannelEnd) {
    TABLE.with_borrow_mut(|table| table.prestarted = Some(channel_end));
}

/// Takes the channel to the prestarted worker, or returns `None` if there is none.
pub fn take_prestarted() -> Option<ChannelEnd> {
    TABLE.with_borrow_mut(|table| table.prestarted.take())
}

/// Takes the idle channel that was used last, or returns `None` if there is none.
pub fn take_idle_channel() -> Option<ChannelEnd> {
    TABLE.with_borrow_mut(|table| table.idle.pop())
}

/// Puts an idle channel back that was not used: it is the first to be closed.
pub fn put_back_idle_channel(idle: ChannelEnd) {
    keep_channel(|channels| channels.insert(0, idle));
}

/// Gives all jobs and channels up: this process begins another session, or its client has discarded its state.
pub fn clear() {
    let table = TABLE.with_borrow_mut(std::mem::take);
    table.jobs.into_values().chain(table.collected.into_values()).for_each(AttachedJob::close);
    table.prestarted.iter().for_each(|prestarted| prestarted.channel.give_up());
    table.idle.into_iter().chain(table.prestarted).for_each(ChannelEnd::close);
}
