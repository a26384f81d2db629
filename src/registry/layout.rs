//! Layout of batches, jobs and workers in shared memory: plain integers; references are offsets in the area.

use crate::ffi::dsa_ref::{DsaArray, DsaPtr};
use bytemuck::Zeroable;
use serde::{Deserialize, Serialize};

/// State of a job: what it is doing, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum State {
    Queued,
    Running,
    Succeeded,
    Failed,
    Stopped,
}

impl State {
    pub const ALL: [State; 5] = [State::Queued, State::Running, State::Succeeded, State::Failed, State::Stopped];

    /// Converts what [`JobRecord::state`] holds.
    pub fn from_byte(byte: u8) -> Self {
        State::ALL.into_iter().find(|state| *state as u8 == byte).unwrap_or(State::Failed)
    }

    /// Returns its name, as users see it.
    pub const fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Stopped => "stopped",
        }
    }

    /// Returns whether nothing more will happen to the job.
    pub const fn is_final(self) -> bool {
        !matches!(self, State::Queued | State::Running)
    }
}

/// Tells why a job ended that has no outcome of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// There is an outcome.
    None,
    /// The job was stopped before it ran.
    Stopped,
    /// Another job of its batch failed.
    OtherFailed,
    /// The job was stopped while it ran.
    Cancelled,
}

impl Reason {
    pub fn from_byte(byte: u8) -> Self {
        [Reason::Stopped, Reason::OtherFailed, Reason::Cancelled]
            .into_iter()
            .find(|reason| *reason as u8 == byte)
            .unwrap_or(Reason::None)
    }
}

/// Tells what a batch waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueState {
    /// None of its jobs is queued.
    NotQueued,
    Ready,
    /// All that could come next waits for another attempt.
    Delayed,
}

/// Reference to a batch.
pub type BatchPtr = DsaPtr<BatchRecord>;
/// Reference to a pool.
pub type PoolPtr = DsaPtr<Pool>;

pub const BUCKETS: usize = 1024;

/// Tells what wakes a session that follows jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum WakeOn {
    /// Nothing: it was woken already.
    Nothing,
    EachChange,
    /// The end of what it follows. Many jobs of many followers would wake many processes otherwise.
    TheEnd,
}

/// Record from which all others are reached.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Root {
    /// Bytes that batches take, and what came of their jobs until that is logged.
    pub used: u64,
    /// The last batch's number.
    pub last_batch_number: u64,
    /// The last number given to a worker's place.
    pub last_serial: u64,
    /// The last turn that a pool had.
    pub last_turn: u64,
    /// All batches, oldest first.
    pub oldest_batch: BatchPtr,
    pub newest_batch: BatchPtr,
    pub pools: PoolPtr,
    pub slots: DsaArray<WorkerSlot>,
    /// The server had no process for the last worker that was asked for.
    pub is_starved: u64,
    /// Number of batches with final rows that are to be written.
    pub unlogged: u64,
    /// Time at which batches that are done were last looked for.
    pub swept_at: i64,
    /// Processes that wait for their first job.
    pub ahead: [Prestarted; MAX_PRESTARTED],
    pub probe: ForkProbe,
    /// Batches by the hash of their uuid.
    pub buckets: [BatchPtr; BUCKETS],
}

/// Number of processes that may be started ahead of their job.
pub const MAX_PRESTARTED: usize = 8;

/// A process that was started ahead of its job.
#[derive(Clone, Copy, PartialEq, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Prestarted {
    /// 0 = there is none.
    pub is_there: u64,
    pub handle: [u64; 2],
    /// The process was told to go.
    pub exit_requested: u64,
}

/// A process that was asked for only to see whether the server can start one.
#[derive(Clone, Copy, PartialEq, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct ForkProbe {
    /// Its number; 0 = there is none.
    pub serial: u64,
    pub handle: [u64; 2],
    pub has_handle: u64,
    pub asked_at: i64,
    /// The server has started it.
    pub has_come: u64,
}

/// Database and login role of workers, and of the jobs that they can run. Lives as long as it has batches or workers.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Pool {
    pub next: PoolPtr,
    pub database: u32,
    /// The role to log in as; 0 = no role: such workers write the log, and run nothing.
    pub login: u32,
    /// Batches with queued jobs that wait for a worker, oldest first.
    pub ready_head: BatchPtr,
    pub ready_tail: BatchPtr,
    /// Batches that wait for their time, soonest first.
    pub delayed_head: BatchPtr,
    pub delayed_tail: BatchPtr,
    /// Batches of the pool, whatever their state.
    pub batches: u32,
    /// Slots of workers that come or are there.
    pub workers: u32,
    /// Number of these workers that run a job.
    pub busy: u32,
    /// No more workers than this are of use now: the role or the database has no more connections. 0 = any number.
    pub limit: u32,
    /// Turn in which it had a worker last.
    pub turn: u64,
}

impl Pool {
    /// Returns whether any of its jobs are queued.
    pub fn has_queue(&self) -> bool {
        !self.ready_head.is_null() || !self.delayed_head.is_null()
    }
}

/// The jobs of one call. Behind it, in the same allocation, lie its jobs and their texts.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct BatchRecord {
    pub number: u64,
    /// The uuid of the batch; those of its jobs differ in the last four bytes.
    pub uuid: [u8; 16],
    pub bytes: u64,
    pub pool: PoolPtr,
    pub created: i64,
    pub jobs: u32,
    /// The role whose rights the jobs have.
    pub owner: u32,
    pub database: u32,
    pub max_workers: u32,
    /// Workers that have claimed jobs of it.
    pub workers: u32,
    /// Queued jobs that no worker has claimed.
    pub queued: u32,
    /// Jobs that have ended and whose final row is not written yet.
    pub unlogged: u32,
    /// Jobs whose final row is written.
    pub logged: u32,
    /// Jobs before this one have been taken.
    pub next: u32,
    /// Index + 1 of the first job that waits for another attempt; the list is in the order of their times.
    pub retry_head: u32,
    /// Index + 1 of the last job of that list, if there is one.
    pub retry_tail: u32,
    /// Jobs before this one have their final rows.
    pub first_unlogged: u32,
    /// Its jobs must not set a role.
    pub is_confined: u16,
    /// Number of times that its rows could not be written since they were last.
    pub log_failures: u16,
    pub is_sequential: u8,
    pub stops_on_error: u8,
    /// Its jobs may run.
    pub is_open: u8,
    /// [`QueueState`]: the list of its pool that it is in.
    pub queue_state: u8,
    /// The slot of the worker that records it or writes its final rows now, + 1.
    pub log_writer: u32,
    /// Encoding of its texts: that of its database.
    pub encoding: u32,
    /// Rows could not be written: not to be tried again before.
    pub retry_log_at: i64,
    /// Its rows are in the table with this oid; 0 = they are not written.
    pub recorded_in: u64,
    /// Time at which they were written, and the transaction that wrote them: an older snapshot does not see them.
    pub recorded_at: i64,
    pub recorded_by: u64,
    /// The request: where in the texts, and how long.
    pub request: TextRef,
    pub name: TextRef,
    pub owner_name: TextRef,
    pub client: TextRef,
    pub job_records: DsaArray<JobRecord>,
    pub texts: DsaArray<u8>,
    pub previous: BatchPtr,
    pub following: BatchPtr,
    pub next_in_bucket: BatchPtr,
    pub previous_in_queue: BatchPtr,
    pub next_in_queue: BatchPtr,
    /// Time until which it waits, when it waits for its time.
    pub due: i64,
    /// Processes that are to be woken when something changes.
    pub watchers: DsaPtr<Watcher>,
    /// Roles that have stopped jobs of it, the last one first.
    pub stop_requesters: DsaPtr<StopRequester>,
}

impl BatchRecord {
    pub fn queue_state(&self) -> QueueState {
        [QueueState::Ready, QueueState::Delayed]
            .into_iter()
            .find(|queue_state| *queue_state as u8 == self.queue_state)
            .unwrap_or(QueueState::NotQueued)
    }
}

/// Bytes in a batch's texts.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct TextRef {
    pub offset: u64,
    pub length: u32,
    pub is_set: u32,
}

/// Value of [`JobRecord::is_logged`]: another batch has the job now.
pub const RELAUNCHED: u8 = 3;

#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct JobRecord {
    /// The last four bytes of its uuid.
    pub ordinal: u32,
    /// [`State`]
    pub state: u8,
    /// Its final row is written: 1 = with its work, 2 = later, [`RELAUNCHED`] = and it was launched again since
    pub is_logged: u8,
    /// Its stop was requested.
    pub is_stopping: u8,
    /// Reason of its stop: [`Reason`]
    pub reason: u8,
    pub attempts: u32,
    pub max_attempts: u32,
    /// The slot of the worker that runs it, + 1.
    pub slot: u32,
    /// Index + 1 of the next job that waits for another attempt; of one that a worker has claimed, of the next one of
    /// the claim.
    pub next_retry: u32,
    /// The process that runs it, or ran it last.
    pub pid: i32,
    /// The role that stopped it first: the number of a [`StopRequester`] of its batch; 0 = none, or it is not known.
    pub stop_requester: u32,
    pub query: TextRef,
    pub name: TextRef,
    /// Milliseconds; 0 = none.
    pub timeout: i64,
    pub retry_delay: i64,
    /// Not to be started before.
    pub not_before: i64,
    pub started: i64,
    pub ended: i64,
    /// Its outcome, until that is logged.
    pub outcome: DsaArray<u8>,
}

/// State of the process in a worker's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum WorkerState {
    /// There is none.
    Free,
    /// The process was asked for.
    Starting,
    /// The process looks for work, or writes the log.
    Ready,
    /// The process runs a job of the queue.
    RunningQueued,
    /// The process runs a job that a session gave it directly.
    RunningAttached,
    /// The process has nothing to do.
    Idle,
    /// The process is on its way out; its place is free when the server says that it is gone.
    Exiting,
    /// The process died; the server starts another one in its place, for whatever there is to do then.
    Restarting,
}

impl WorkerState {
    fn from_number(number: u32) -> Self {
        use WorkerState::*;
        [Free, Starting, Ready, RunningQueued, RunningAttached, Idle, Exiting, Restarting]
            .into_iter()
            .find(|state| *state as u32 == number)
            .unwrap_or(Free)
    }
}

pub const MESSAGE_BYTES: usize = 256;

/// A worker's place.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct WorkerSlot {
    pub serial: u64,
    pub pool: PoolPtr,
    /// The job that it runs.
    pub batch: BatchPtr,
    pub job: u32,
    /// [`WorkerState`]
    pub state: u32,
    pub pid: i32,
    /// The worker is wanted elsewhere: it is to leave when it has nothing to do.
    pub exit_requested: u32,
    pub progress: i32,
    pub padding: u32,
    /// The process, for its latch.
    pub process: u64,
    /// The server's handle of the worker.
    pub handle: [u64; 2],
    pub has_handle: u32,
    pub message_bytes: u32,
    /// Index + 1 of the place whose process must be gone before this one's begins.
    pub waits_for_slot: u32,
    /// Another place has taken over from this one: it does not count any more.
    pub has_successor: u32,
    /// The worker's job cannot be cancelled any more.
    pub is_uncancellable: u32,
    /// The server does not start it again when it dies, or was told to end it.
    pub no_restart: u32,
    /// Version of what its login depended on when it logged in; 0 = it takes no jobs from sessions.
    pub version: u64,
    /// The segment of a job that a session has given it and that it has not begun; 0 = none.
    pub assigned_segment: u32,
    /// The segment of the last job that a session gave it.
    pub segment: u32,
    /// The result of that job has not been read: nobody else gets the worker, for the job has its process id.
    pub result_pending: u32,
    /// The result was read to its end: the worker will have nothing to do in a moment.
    pub result_consumed: u32,
    pub since: i64,
    pub message: [u8; MESSAGE_BYTES],
}

impl WorkerSlot {
    /// Returns how far its worker is.
    pub fn state(&self) -> WorkerState {
        WorkerState::from_number(self.state)
    }
}

/// A role that has stopped jobs of a batch. Behind it, in the same allocation, lies its name: roles can be renamed and
/// dropped before a log says who it was.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct StopRequester {
    pub next: DsaPtr<StopRequester>,
    pub name: DsaArray<u8>,
    /// From 1 on, in a batch.
    pub number: u32,
    pub padding: u32,
}

/// Process that waits for changes of a batch.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Watcher {
    pub next: DsaPtr<Watcher>,
    pub process: u64,
    /// Changes that wake it, [`WakeOn`]; it has looked since it was woken.
    pub hears: u32,
    pub pid: i32,
    /// The job that it waits for, as [`JobRecord::ordinal`]; 0 = all of the batch.
    pub ordinal: u32,
    /// The process waits for the end.
    pub is_follower: u16,
    /// The process runs a job itself.
    pub is_worker: u16,
}
