//! The jobs that this session has launched, and the channels to workers that have done one.
//!
//! They live as long as the session, whatever becomes of the transaction that launched them.

use crate::channel::overflow_queue::OverflowQueue;
use crate::channel::Channel;
use crate::error::Error;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::dsm::{Handle, Segment};
use crate::ffi::latch::SpinThenWait;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::shm_mq::Receiver;
use crate::ffi::{alloc, area, exit_hooks, latch};
use crate::protocol::{split, Description, Kind};
use crate::registry::unregistered;
use crate::scheduler;
use crate::scheduler::SlotId;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// A job whose result can still be read.
pub struct AttachedJob {
    pub pid: i32,
    /// The role that was in effect when it was launched: oid. Its result belongs to that role.
    pub role: u32,
    /// Brings the result; none = all that was to be received has been.
    pub channel_end: Option<ChannelEnd>,
    /// The worker that has the process id, when that is known no more from the channel.
    pub holder: Option<WorkerSegment>,
    /// The beginning of its text, for messages.
    pub sql: Vec<u8>,
    /// Columns of the result, if they have been received.
    pub description: Option<Description>,
    /// Frames that were received, but not given to anybody.
    pub kept: Option<OverflowQueue>,
}

/// The way on which results come from a worker. When one has been read, the next job may go the same way.
pub struct ChannelEnd {
    pub channel: Channel,
    pub receiver: Receiver,
    /// Bytes of the queue.
    pub queue_bytes: usize,
    /// The result of the last job was given up, and is not out of the queue yet.
    is_owing: bool,
    /// All of the last result has been received: its worker lets go of the segment.
    has_ended: bool,
    /// Time at which the last job was given to it.
    since: Instant,
}

impl ChannelEnd {
    /// Makes one for a job that is launched now.
    pub fn new(channel: Channel, receiver: Receiver, queue_bytes: usize) -> Self {
        ChannelEnd { channel, receiver, queue_bytes, is_owing: false, has_ended: false, since: Instant::now() }
    }

    /// Returns whether its worker can have no other job this way: it has gone, or the segment is too large to be kept.
    fn has_lost_worker(&self) -> bool {
        !self.channel.is_kept()
            || match (self.channel.slot_id(), self.channel.worker()) {
                (Some(slot_id), _) => !area::read(|memory| scheduler::is_worker_there(memory, slot_id)),
                (None, worker) => worker.is_none_or(WorkerHandle::is_gone),
            }
    }

    /// Takes what was given up out of the queue. False = its job has not ended.
    pub fn settle(&mut self) -> bool {
        if self.is_owing && self.channel.delivered().is_some() {
            self.is_owing = !self.receive_all(|_| true);
        }
        !self.is_owing
    }

    /// Receives the whole result of a job that has ended, as long as `keep` wants more. False = that was not all.
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

    /// Returns the worker that was started for it, if that has not become one that stays.
    fn own_worker(&self) -> Option<WorkerHandle> {
        self.channel.worker().filter(|_| self.channel.slot_id().is_none())
    }

    /// Gives it up. A worker that still sends notices, and goes on without a reader.
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

/// A worker whose process id is a job's: its place, and the segment in which it was given the job.
pub type WorkerSegment = (SlotId, Handle);

/// Keeps a process id for a job.
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

    /// Returns the bytes that it takes in this session's memory.
    fn bytes(&self) -> usize {
        size_of::<AttachedJob>() + self.sql.capacity() + self.kept.as_ref().map_or(0, OverflowQueue::bytes)
    }

    /// Gives up the result.
    fn close(self) {
        release(self.pid_holder(), false);
        if let Some(channel_end) = self.channel_end {
            channel_end.close();
        }
    }

    /// Returns whether the whole result is in the queue, small, and unread so far, and its process id is still known
    /// without the channel.
    fn is_collectable(&self) -> bool {
        let Some(ChannelEnd { channel, .. }) = &self.channel_end else { return false };
        self.kept.is_none()
            && channel.delivered().is_some_and(|bytes| bytes <= COLLECTED_BYTES)
            && (channel.slot_id().is_some() || channel.worker().is_none_or(WorkerHandle::is_gone))
    }

    /// Receives the whole result. False = it is not there as a whole, and is to be read from the queue.
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

/// Returns whether nobody will send anything. To be asked while nobody has attached to the queue as its sender.
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

/// A channel that is of no use any more.
fn close(channel: Channel, receiver: Receiver) {
    receiver.close();
    channel.close();
}

/// The worker's process id means nothing to this session any more: others may have it.
/// `is_whole`: it was read to its end.
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

/// Tells why a result is not there.
#[derive(Clone, Copy)]
pub enum ResultFate {
    Read,
    GivenUp,
}

/// Number of channels that are kept: each is a segment, with a queue in it.
const MAX_IDLE_CHANNELS: usize = 8;
/// A result of up to so many bytes goes to the session's memory when it stays unread.
const COLLECTED_BYTES: usize = 64 * 1024;

/// Number of results that are gone and are remembered, so that asking again gets a good answer.
const MAX_FATES: usize = 1024;

/// A job that was taken out to be read.
struct BeingRead {
    pid: i32,
    role: u32,
    holder: PidHolder,
    queue_bytes: usize,
}

#[derive(Default)]
struct Table {
    /// Jobs whose results come from a segment.
    jobs: HashMap<i32, AttachedJob>,
    /// Jobs whose results are in memory, and the bytes of them all.
    collected: HashMap<i32, AttachedJob>,
    collected_bytes: usize,
    /// Jobs that are being read.
    reading: Vec<BeingRead>,
    gone: VecDeque<(i32, u32, ResultFate)>,
    idle: Vec<ChannelEnd>,
    /// Channel to a process that was started ahead of its job.
    prestarted: Option<ChannelEnd>,
}

impl Table {
    /// Adds a job; gives the one with the same process id.
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

/// A job that was launched within this time may end before a new process would be there.
const JUST_LAUNCHED: Duration = Duration::from_millis(1);
/// Names the time in which a session does not wait for the end of a job again, after it did so in vain.
const FAILED_WAIT: Duration = Duration::from_millis(100);

thread_local! {
    static LAST_FAILED_WAIT: Cell<Option<Instant>> = const { Cell::new(None) };
    static SPIN: SpinThenWait = const { SpinThenWait::new() };
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
    static TABLE: ProcessCell<Table> = process_cell(Table::default());
    static GIVEN_UP: ProcessCell<Vec<GivenUp>> = const { process_cell(Vec::new()) };
}

/// A large segment that this session has given up, and its worker not yet.
struct GivenUp {
    handle: Handle,
    queue_bytes: usize,
    /// Its job has ended.
    has_ended: bool,
}

/// Adds a job. Should an old job with the same process id still be there, its worker has ended and its number was given
/// to the new one: nobody can ask for the old result any more.
pub fn insert(job: AttachedJob) {
    if !IS_WATCHED.replace(true) {
        // Nobody will read any more, and the workers learn it.
        exit_hooks::before_exit(|| {
            TABLE.with_borrow(|table| {
                let unread = table.all().map(AttachedJob::pid_holder);
                unread
                    .chain(table.reading.iter().map(|reading| reading.holder))
                    .for_each(|holder| release(holder, false));
                table.prestarted.iter().for_each(|ahead| ahead.channel.give_up());
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

/// Takes a job out to work with it. `may_act_as`: whether the caller may use what belongs to a role; to others the job
/// does not exist.
///
/// # Errors
/// [`Error::NotAttached`], [`Error::AlreadyRead`], [`Error::GivenUp`] (42704); [`Error::BeingRead`] (55000).
pub fn take(pid: i32, may_act_as: impl Fn(u32) -> bool) -> Result<AttachedJob, Error> {
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

/// Puts a job back: its result can be read again.
pub fn put_back(job: AttachedJob) {
    TABLE.with_borrow_mut(|table| {
        table.reading.retain(|reading| reading.pid != job.pid);
        job.channel_end.iter().for_each(|channel_end| channel_end.channel.set_being_read(false));
        table.add(job);
    });
}

/// Ends a job that was taken. `is_whole`: its result was received to the end, so that its channel can take another job.
pub fn finish(mut job: AttachedJob, gone: ResultFate, is_whole: bool) {
    TABLE.with_borrow_mut(|table| {
        table.reading.retain(|reading| reading.pid != job.pid);
        if table.gone.len() == MAX_FATES {
            table.gone.pop_front();
        }
        table.gone.push_back((job.pid, job.role, gone));
    });
    let is_kept = job.channel_end.as_ref().is_none_or(|channel_end| channel_end.channel.is_kept());
    let is_owing = matches!(gone, ResultFate::GivenUp);
    if let Some(channel_end) = &mut job.channel_end {
        channel_end.has_ended = is_whole;
    }
    if !is_kept || !is_whole && !is_owing {
        return job.close();
    }
    release(job.pid_holder(), is_whole);
    let Some(mut channel_end) = job.channel_end.take() else { return };
    // A worker that waits for a reader is told that there is none; the segment of one that has gone is for others.
    if is_owing && (channel_end.channel.is_waiting() || channel_end.has_lost_worker()) {
        return channel_end.close();
    }
    channel_end.is_owing = is_owing;
    channel_end.settle();
    keep_channel(|idle| idle.push(channel_end));
}

/// Takes small results of jobs that have ended out of their segments into this session's memory: if their segments
/// are of no further use, or if there are many; `all`: in any case. The segments go, or serve the next workers.
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

/// Counts of what this session has not read.
pub struct Unread {
    /// Counts the results that are in shared memory, or will be.
    pub count: usize,
    /// Bytes of the queues of those, of large ones that were given up while their jobs still run, and of results that
    /// are in this session's memory.
    pub bytes: usize,
}

/// Counts what this session has not read.
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

/// Returns whether a worker has yet to let go of a large segment whose result was received, as [`unread`] has found it.
pub fn is_one_detaching() -> bool {
    GIVEN_UP.with_borrow(|given_up| given_up.iter().any(|segment| segment.has_ended))
}

/// Counts the segments of this session.
pub fn segments() -> usize {
    TABLE.with_borrow(|table| {
        table.jobs.len() + table.reading.len() + table.idle.len() + usize::from(table.prestarted.is_some())
    })
}

/// Keeps a channel, and lets the oldest go if there are too many.
fn keep_channel(add: impl FnOnce(&mut Vec<ChannelEnd>)) {
    let too_many = TABLE.with_borrow_mut(|table| {
        add(&mut table.idle);
        (table.idle.len() > MAX_IDLE_CHANNELS).then(|| table.idle.remove(0))
    });
    if let Some(idle) = too_many {
        idle.close();
    }
}

/// Returns whether a worker is on its way out whose result was read, and which does not stay.
pub fn is_one_ending() -> bool {
    let has_ended = |idle: &ChannelEnd| !idle.is_owing || idle.channel.delivered().is_some();
    let is_ending = |idle: &ChannelEnd| has_ended(idle) && idle.own_worker().is_some_and(|worker| !worker.is_gone());
    TABLE.with_borrow(|table| table.idle.iter().any(is_ending))
}

/// Waits for the end of a job whose result was given up and that was launched just now, so that its worker can have the
/// next one; not longer than a new process takes. False = there is none that is worth it.
pub fn await_idle_channel(queue_bytes: usize) -> bool {
    let began = Instant::now();
    if LAST_FAILED_WAIT.get().is_some_and(|last| began - last < FAILED_WAIT) {
        return false;
    }
    let mut has_looked = false;
    loop {
        let (mut is_there, mut is_young) = (false, false);
        TABLE.with_borrow_mut(|table| {
            let fits = |idle: &&mut ChannelEnd| idle.queue_bytes == queue_bytes && idle.channel.slot_id().is_some();
            for idle in table.idle.iter_mut().filter(fits) {
                let is_owing = idle.is_owing;
                is_young |= is_owing && began.saturating_duration_since(idle.since) < JUST_LAUNCHED;
                is_there |= is_owing && idle.settle();
            }
        });
        if is_there {
            SPIN.with(SpinThenWait::record_wakeup);
            return true;
        }
        let left = JUST_LAUNCHED.saturating_sub(began.elapsed());
        if !is_young || left.is_zero() {
            LAST_FAILED_WAIT.set(is_young.then(Instant::now));
            return false;
        }
        if !std::mem::replace(&mut has_looked, true) && SPIN.with(SpinThenWait::spin) {
            continue;
        }
        latch::wait(Some(left));
    }
}

/// Takes a channel with such a queue out whose worker is gone: its segment can be that of a new one.
pub fn take_reusable_channel(queue_bytes: usize) -> Option<ChannelEnd> {
    TABLE.with_borrow_mut(|table| {
        let has_lost_worker =
            |idle: &ChannelEnd| idle.queue_bytes == queue_bytes && idle.own_worker().is_some_and(WorkerHandle::is_gone);
        let index = table.idle.iter().position(has_lost_worker)?;
        Some(table.idle.remove(index))
    })
}

/// Keeps the channel to a process that was started ahead of its job.
pub fn set_prestarted(ahead: ChannelEnd) {
    TABLE.with_borrow_mut(|table| table.prestarted = Some(ahead));
}

/// Takes it out.
pub fn take_prestarted() -> Option<ChannelEnd> {
    TABLE.with_borrow_mut(|table| table.prestarted.take())
}

/// Takes the channel that was used last out.
pub fn take_idle_channel() -> Option<ChannelEnd> {
    TABLE.with_borrow_mut(|table| table.idle.pop())
}

/// Puts a channel back that was not used: it is the first to go.
pub fn put_back_idle_channel(idle: ChannelEnd) {
    keep_channel(|channels| channels.insert(0, idle));
}

/// Gives everything up: this process begins another session, or its client has discarded all that it had.
pub fn clear() {
    let table = TABLE.with_borrow_mut(std::mem::take);
    table.jobs.into_values().chain(table.collected.into_values()).for_each(AttachedJob::close);
    table.prestarted.iter().for_each(|ahead| ahead.channel.give_up());
    table.idle.into_iter().chain(table.prestarted).for_each(ChannelEnd::close);
}
