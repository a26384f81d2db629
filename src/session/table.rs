//! The jobs that this session has launched.
//!
//! They live as long as the session, whatever becomes of the transaction that launched them.

use crate::error::Error;
use crate::ffi::bgworker::Worker;
use crate::ffi::process_local::{slot, ProcessLocal, Slot};
use crate::ffi::shm_mq::Receiver;
use crate::job::backlog::Backlog;
use crate::job::channel::Channel;
use crate::protocol::Description;
use std::collections::{HashMap, VecDeque};

/// A job whose result can still be read.
pub struct Job {
    pub pid: i32,
    pub channel: Channel,
    pub receiver: Receiver,
    pub worker: Worker,
    /// The beginning of its text, for messages.
    pub sql: Vec<u8>,
    /// What has been received of the result: its columns.
    pub description: Option<Description>,
    /// Frames that were received, but not given to anybody.
    pub kept: Option<Backlog>,
}

impl Job {
    /// Gives up the result. The worker notices, and goes on without a reader.
    pub fn close(self) {
        self.receiver.close();
        self.channel.close();
    }
}

/// Why a result is not there.
#[derive(Clone, Copy)]
pub enum Gone {
    Read,
    GivenUp,
}

/// How many results that are gone are remembered, so that asking again gets a good answer.
const REMEMBERED: usize = 1024;

#[derive(Default)]
struct Table {
    jobs: HashMap<i32, Job>,
    reading: Vec<i32>,
    gone: VecDeque<(i32, Gone)>,
}

thread_local! {
    static TABLE: Slot<Table> = slot(Table::default());
}

/// Adds a job. Should an old job with the same process id still be there, its worker has ended and its number was given
/// to the new one: nobody can ask for the old result any more.
pub fn insert(job: Job) {
    let replaced = TABLE.with_borrow_mut(|table| {
        table.gone.retain(|(pid, _)| *pid != job.pid);
        table.jobs.insert(job.pid, job)
    });
    if let Some(replaced) = replaced {
        replaced.close();
    }
}

/// Takes a job out to work with it.
///
/// # Errors
/// [`Error::NotAttached`] (42704); [`Error::AlreadyRead`], [`Error::GivenUp`], [`Error::BeingRead`] (55000).
pub fn take(pid: i32) -> Result<Job, Error> {
    TABLE.with_borrow_mut(|table| {
        if let Some(job) = table.jobs.remove(&pid) {
            table.reading.push(pid);
            return Ok(job);
        }
        if table.reading.contains(&pid) {
            return Err(Error::BeingRead(pid));
        }
        Err(match table.gone.iter().find(|(gone, _)| *gone == pid) {
            Some((_, Gone::Read)) => Error::AlreadyRead(pid),
            Some((_, Gone::GivenUp)) => Error::GivenUp(pid),
            None => Error::NotAttached(pid),
        })
    })
}

/// Puts a job back: its result can be read again.
pub fn put_back(job: Job) {
    TABLE.with_borrow_mut(|table| {
        table.reading.retain(|pid| *pid != job.pid);
        table.jobs.insert(job.pid, job);
    });
}

/// Ends a job that was taken.
pub fn finish(job: Job, gone: Gone) {
    TABLE.with_borrow_mut(|table| {
        table.reading.retain(|pid| *pid != job.pid);
        if table.gone.len() == REMEMBERED {
            table.gone.pop_front();
        }
        table.gone.push_back((job.pid, gone));
    });
    job.close();
}
