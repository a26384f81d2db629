//! The jobs that this session has launched, and the channels to workers that have done one.
//!
//! They live as long as the session, whatever becomes of the transaction that launched them.

use super::backlog::Backlog;
use super::channel::Channel;
use super::registry;
use crate::error::Error;
use crate::ffi::bgworker::Worker;
use crate::ffi::process_local::{slot, ProcessLocal, Slot};
use crate::ffi::shm_mq::Receiver;
use crate::ffi::{area, exit};
use crate::protocol::Description;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};

/// A job whose result can still be read.
pub struct Job {
    pub pid: i32,
    /// The role that was in effect when it was launched: oid. Its result belongs to that role.
    pub role: u32,
    pub channel: Channel,
    pub receiver: Receiver,
    /// Bytes of the queue.
    pub queue_bytes: usize,
    /// The beginning of its text, for messages.
    pub sql: Vec<u8>,
    /// What has been received of the result: its columns.
    pub description: Option<Description>,
    /// Frames that were received, but not given to anybody.
    pub kept: Option<Backlog>,
}

impl Job {
    /// Gives up the result. The worker notices, and goes on without a reader.
    fn close(self) {
        release(self.channel, false);
        if is_lost(self.channel) {
            self.channel.unpin();
        }
        close(self.channel, self.receiver);
    }
}

/// Will nobody send anything? Asked while nobody has attached to the queue as its sender.
pub fn is_lost(channel: Channel) -> bool {
    match (channel.worker(), channel.seat()) {
        (Some(worker), _) => worker.is_gone(),
        (None, Some(seat)) => {
            let segment = channel.handle().to_number();
            !area::read(|memory| registry::has_job(memory, seat, segment))
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
fn release(channel: Channel, is_whole: bool) {
    channel.set_read();
    if let Some(seat) = channel.seat() {
        area::write(|memory| registry::release(memory, seat, channel.handle().to_number(), is_whole));
    } else if is_whole {
        area::note_leaving();
    }
}

/// A channel to a worker whose last result has been read: the next job may go the same way.
pub struct Spare {
    pub channel: Channel,
    pub receiver: Receiver,
    pub queue_bytes: usize,
}

impl Spare {
    /// The worker that was started for it, if it has not become one that stays.
    fn own_worker(&self) -> Option<Worker> {
        self.channel.worker().filter(|_| self.channel.seat().is_none())
    }

    /// Gives it up.
    pub fn close(self) {
        close(self.channel, self.receiver);
    }
}

/// Why a result is not there.
#[derive(Clone, Copy)]
pub enum Gone {
    Read,
    GivenUp,
}

/// How many channels are kept: each is a segment, with a queue in it.
const SPARES: usize = 8;
/// Only queues of usual size are kept, and as much room for texts, in bytes.
const SPARE_QUEUE_BYTES: usize = 256 * 1024;

/// How many results that are gone are remembered, so that asking again gets a good answer.
const REMEMBERED: usize = 1024;

#[derive(Default)]
struct Table {
    jobs: HashMap<i32, Job>,
    /// Those that are being read, and whose they are.
    reading: Vec<(i32, u32, Channel)>,
    gone: VecDeque<(i32, u32, Gone)>,
    spares: Vec<Spare>,
    /// To a process that was started ahead of its job.
    ahead: Option<Spare>,
}

thread_local! {
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
    static TABLE: Slot<Table> = slot(Table::default());
}

/// Adds a job. Should an old job with the same process id still be there, its worker has ended and its number was given
/// to the new one: nobody can ask for the old result any more.
pub fn insert(job: Job) {
    if !IS_WATCHED.replace(true) {
        // Nobody will read any more, and the workers learn it.
        exit::before_exit(|| {
            TABLE.with_borrow(|table| {
                let unread = table.jobs.values().map(|job| job.channel);
                unread
                    .chain(table.reading.iter().map(|(_, _, channel)| *channel))
                    .for_each(|channel| release(channel, false));
                table.ahead.iter().for_each(|ahead| ahead.channel.give_up());
            });
        });
    }
    let replaced = TABLE.with_borrow_mut(|table| {
        table.gone.retain(|(pid, ..)| *pid != job.pid);
        table.jobs.insert(job.pid, job)
    });
    if let Some(replaced) = replaced {
        replaced.close();
    }
}

/// Takes a job out to work with it. `may_act_as`: whether the caller may use what belongs to a role; to others the
/// job does not
/// exist.
///
/// # Errors
/// [`Error::NotAttached`], [`Error::AlreadyRead`], [`Error::GivenUp`] (42704); [`Error::BeingRead`] (55000).
pub fn take(pid: i32, may_act_as: impl Fn(u32) -> bool) -> Result<Job, Error> {
    TABLE.with_borrow_mut(|table| {
        if table.jobs.get(&pid).is_some_and(|job| !may_act_as(job.role)) {
            return Err(Error::NotAttached(pid));
        }
        if let Some(job) = table.jobs.remove(&pid) {
            table.reading.push((pid, job.role, job.channel));
            return Ok(job);
        }
        if table.reading.iter().any(|(reading, role, _)| *reading == pid && may_act_as(*role)) {
            return Err(Error::BeingRead(pid));
        }
        Err(match table.gone.iter().find(|(gone, role, _)| *gone == pid && may_act_as(*role)) {
            Some((_, _, Gone::Read)) => Error::AlreadyRead(pid),
            Some((_, _, Gone::GivenUp)) => Error::GivenUp(pid),
            None => Error::NotAttached(pid),
        })
    })
}

/// Puts a job back: its result can be read again.
pub fn put_back(job: Job) {
    TABLE.with_borrow_mut(|table| {
        table.reading.retain(|(pid, ..)| *pid != job.pid);
        table.jobs.insert(job.pid, job);
    });
}

/// Ends a job that was taken. `is_whole`: its result was received to the end, so that its channel can take another job.
pub fn finish(job: Job, gone: Gone, is_whole: bool) {
    TABLE.with_borrow_mut(|table| {
        table.reading.retain(|(pid, ..)| *pid != job.pid);
        if table.gone.len() == REMEMBERED {
            table.gone.pop_front();
        }
        table.gone.push_back((job.pid, job.role, gone));
    });
    if !is_whole || job.queue_bytes > SPARE_QUEUE_BYTES || job.channel.room() > SPARE_QUEUE_BYTES {
        return job.close();
    }
    release(job.channel, true);
    let Job { channel, receiver, queue_bytes, .. } = job;
    keep(|spares| spares.push(Spare { channel, receiver, queue_bytes }));
}

/// Keeps a channel, and lets the oldest go if there are too many.
fn keep(add: impl FnOnce(&mut Vec<Spare>)) {
    let too_many = TABLE.with_borrow_mut(|table| {
        add(&mut table.spares);
        (table.spares.len() > SPARES).then(|| table.spares.remove(0))
    });
    if let Some(spare) = too_many {
        spare.close();
    }
}

/// Is a worker on its way out whose result was read, and which does not stay?
pub fn is_one_ending() -> bool {
    let is_ending = |spare: &Spare| spare.own_worker().is_some_and(|worker| !worker.is_gone());
    TABLE.with_borrow(|table| table.spares.iter().any(is_ending))
}

/// Takes a channel with such a queue out whose worker is gone: its segment can be that of a new one.
pub fn take_widowed(queue_bytes: usize) -> Option<Spare> {
    TABLE.with_borrow_mut(|table| {
        let is_widowed =
            |spare: &Spare| spare.queue_bytes == queue_bytes && spare.own_worker().is_some_and(Worker::is_gone);
        let index = table.spares.iter().position(is_widowed)?;
        Some(table.spares.remove(index))
    })
}

/// Keeps the channel to a process that was started ahead of its job.
pub fn set_ahead(ahead: Spare) {
    TABLE.with_borrow_mut(|table| table.ahead = Some(ahead));
}

/// Takes it out.
pub fn take_ahead() -> Option<Spare> {
    TABLE.with_borrow_mut(|table| table.ahead.take())
}

/// Takes the channel that was used last out.
pub fn take_spare() -> Option<Spare> {
    TABLE.with_borrow_mut(|table| table.spares.pop())
}

/// Puts a channel back that was not used: it is the first to go.
pub fn put_back_spare(spare: Spare) {
    keep(|spares| spares.insert(0, spare));
}

/// Gives everything up: this process begins another session, or its client has discarded all that it had.
pub fn clear() {
    let table = TABLE.with_borrow_mut(std::mem::take);
    table.jobs.into_values().for_each(Job::close);
    table.ahead.iter().for_each(|ahead| ahead.channel.give_up());
    table.spares.into_iter().chain(table.ahead).for_each(Spare::close);
}
