//! Layout of the registry in shared memory: records of batches, jobs, pools and worker slots, made of plain integers.
//! References between records are offsets in the shared memory area.

use crate::ffi::dsa_ref::{DsaArray, DsaPtr};
use crate::ffi::process::ProcessRef;
use crate::ffi::spin::Nanos;
use crate::ids::{BatchId, DatabaseId, RoleId};
use crate::time::Timestamp;
use bytemuck::Zeroable;
use serde::{Deserialize, Serialize};

/// State of a job: waiting, running, or how it ended.
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

    /// Returns the state that a byte of [`JobRecord::state`] stands for; an unknown byte stands for [`State::Failed`].
    pub fn from_byte(byte: u8) -> Self {
        State::ALL.into_iter().find(|state| *state as u8 == byte).unwrap_or(State::Failed)
    }

    /// Returns the name of the state as users see it.
    pub const fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Stopped => "stopped",
        }
    }

    /// Returns whether the job has ended for good.
    pub const fn is_final(self) -> bool {
        !matches!(self, State::Queued | State::Running)
    }
}

/// Reason of the end of a job that has no outcome of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The job has an outcome.
    None,
    /// The job was stopped before it ran.
    Stopped,
    /// Another job of its batch failed.
    OtherFailed,
    /// The job was stopped while it ran.
    Cancelled,
}

impl Reason {
    /// Returns the reason that a byte of [`JobRecord::reason`] stands for.
    pub fn from_byte(byte: u8) -> Self {
        [Reason::Stopped, Reason::OtherFailed, Reason::Cancelled]
            .into_iter()
            .find(|reason| *reason as u8 == byte)
            .unwrap_or(Reason::None)
    }
}

/// List of its pool that a batch is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueState {
    /// None of its jobs is queued.
    NotQueued,
    Ready,
    /// Every job that could run next waits for the time of its next attempt.
    Delayed,
}

/// Reference to a batch.
pub type BatchPtr = DsaPtr<BatchRecord>;
/// Reference to a pool.
pub type PoolPtr = DsaPtr<Pool>;

pub const BUCKETS: usize = 1024;

/// Changes that wake a watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum WakeOn {
    /// None: the watcher was woken already.
    Nothing,
    EachChange,
    /// Only the end of the job or batch that it follows. Many followers of many jobs would be woken too often
    /// otherwise.
    TheEnd,
}

/// Record from which all others are reached.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Root {
    /// Bytes of all batches, and of outcomes that are not in the log yet.
    pub used: u64,
    /// Number of the batch that was added last.
    pub last_batch_number: u64,
    /// Last number that was given to a process in a worker slot, or to a probe.
    pub last_serial: u64,
    /// Last turn that was given to a pool ([`Pool::turn`]).
    pub last_turn: u64,
    /// All batches, oldest first.
    pub oldest_batch: BatchPtr,
    pub newest_batch: BatchPtr,
    pub pools: PoolPtr,
    pub slots: DsaArray<WorkerSlot>,
    /// The server had no process for the worker that was requested last.
    pub is_starved: u64,
    /// Number of batches with finished jobs whose final rows are not written yet.
    pub unlogged: u64,
    /// Time of the last search for finished batches.
    pub swept_at: Timestamp,
    /// Files that were reported as unreadable.
    pub reported_files: DsaPtr<ReportedFile>,
    /// Prestarted workers, which wait for their first job.
    pub prestarted: [Prestarted; MAX_PRESTARTED],
    pub probe: ForkProbe,
    /// Batches, by the hash of their uuid.
    pub buckets: [BatchPtr; BUCKETS],
}

/// Maximum number of prestarted workers.
pub const MAX_PRESTARTED: usize = 8;

/// Worker that was started before there was a job for it.
#[derive(Clone, Copy, PartialEq, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Prestarted {
    /// 1 if there is such a worker.
    pub is_there: u64,
    pub handle: [u64; 2],
    /// The process was told to exit.
    pub exit_requested: u64,
}

/// Worker that was requested only to find out whether the server can start one.
#[derive(Clone, Copy, PartialEq, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct ForkProbe {
    /// Number of the probe; 0 means that there is none.
    pub serial: u64,
    pub handle: [u64; 2],
    pub has_handle: u64,
    pub asked_at: Timestamp,
    /// The process of the probe has started.
    pub has_come: u64,
}

/// Database and login role of workers, and of the jobs that they can run. Exists as long as it has batches or workers.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Pool {
    pub next: PoolPtr,
    pub database: DatabaseId,
    /// Role to log in as; [`RoleId::NONE`] means no role: such workers write the log and run no jobs.
    pub login: RoleId,
    /// Ready batches: their queued jobs wait for a worker; oldest first.
    pub ready_head: BatchPtr,
    pub ready_tail: BatchPtr,
    /// Delayed batches: their queued jobs wait for a time; soonest first.
    pub delayed_head: BatchPtr,
    pub delayed_tail: BatchPtr,
    /// Batches of the pool, whatever their state.
    pub batches: u32,
    /// Number of its workers, including those that are starting.
    pub workers: u32,
    /// Number of these workers that run a job.
    pub busy: u32,
    /// Maximum number of workers that are of use now, because the role or the database has no more connections; 0 means
    /// no maximum.
    pub limit: u32,
    /// Turn in which the pool was last given a worker.
    pub turn: u64,
}

impl Pool {
    /// Returns whether any job of the pool is queued.
    pub fn has_queue(&self) -> bool {
        !self.ready_head.is_null() || !self.delayed_head.is_null()
    }
}

/// The jobs of one call. Its job records and texts follow it in the same allocation.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct BatchRecord {
    pub number: u64,
    /// The uuid of the batch; those of its jobs differ in the last four bytes.
    pub uuid: BatchId,
    pub bytes: u64,
    pub pool: PoolPtr,
    pub created: Timestamp,
    pub jobs: u32,
    /// The role whose rights the jobs have.
    pub owner: RoleId,
    pub database: DatabaseId,
    pub max_workers: u32,
    /// Number of workers that have claimed jobs of the batch.
    pub workers: u32,
    /// Number of queued jobs that no worker has claimed.
    pub queued: u32,
    /// Number of finished jobs whose final row is not written yet.
    pub unlogged: u32,
    /// Number of jobs whose final row is written.
    pub logged: u32,
    /// Index of the next job to claim: jobs before it have been claimed once.
    pub next: u32,
    /// Index + 1 of the first job that waits for another attempt; the list is sorted by their times.
    pub retry_head: u32,
    /// Index + 1 of the last job of that list, if there is one.
    pub retry_tail: u32,
    /// Index of the first job that may have no final row: all jobs before it have one.
    pub first_unlogged: u32,
    /// The jobs must not set a role.
    pub is_confined: u16,
    /// Number of times that writing its rows has failed since it last succeeded.
    pub log_failures: u16,
    pub is_sequential: u8,
    pub stops_on_error: u8,
    /// The jobs may run.
    pub is_open: u8,
    /// List of the pool that the batch is in, as [`QueueState`].
    pub queue_state: u8,
    /// Index + 1 of the slot of the worker that inserts the batch's rows or writes their final state now.
    pub log_writer: u32,
    /// Encoding of the texts: that of the database.
    pub encoding: u32,
    /// Time before which rows that could not be written must not be tried again.
    pub retry_log_at: Timestamp,
    /// OID of the table that has the batch's rows; 0 means that they are not written.
    pub recorded_in: u64,
    /// Time at which the rows were written, and the transaction that wrote them: an older snapshot does not see them.
    pub recorded_at: Timestamp,
    pub recorded_by: u64,
    /// The request, in the texts.
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
    /// Time until which a delayed batch waits.
    pub due: Timestamp,
    /// Processes to wake when the batch changes.
    pub watchers: DsaPtr<Watcher>,
    /// Roles that have stopped jobs of the batch, the most recent first.
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

/// Range of bytes in the texts of a batch.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct TextRef {
    pub offset: u64,
    pub length: u32,
    pub is_set: u32,
}

/// Value of [`JobRecord::is_logged`]: the job was launched again, and another batch has it now.
pub const RELAUNCHED: u8 = 3;

#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct JobRecord {
    /// The last four bytes of the job's uuid.
    pub ordinal: u32,
    /// [`State`]
    pub state: u8,
    /// State of the final row: 0 means not written, 1 written together with the job's work, 2 written later,
    /// [`RELAUNCHED`] written and the job launched again since.
    pub is_logged: u8,
    /// A stop of the job was requested.
    pub is_stopping: u8,
    /// Reason of the job's end, as [`Reason`].
    pub reason: u8,
    pub attempts: u32,
    pub max_attempts: u32,
    /// Index + 1 of the slot of the worker that has claimed or runs the job.
    pub slot: u32,
    /// Index + 1 of the next job that waits for another attempt; for a claimed job, of the next job of the claim.
    pub next_retry: u32,
    /// Process that runs the job, or ran it last.
    pub pid: i32,
    /// Number of the [`StopRequester`] of the batch that stopped the job first; 0 means that there is none, or that it
    /// is unknown.
    pub stop_requester: u32,
    pub query: TextRef,
    pub name: TextRef,
    /// Milliseconds; 0 means no timeout.
    pub timeout: i64,
    /// Milliseconds
    pub retry_delay: i64,
    /// The job must not start before this time.
    pub not_before: Timestamp,
    /// Start of the last attempt; [`Timestamp::NONE`] means that there was none.
    pub started: Timestamp,
    /// End of the job; [`Timestamp::NONE`] means that it has not ended.
    pub ended: Timestamp,
    /// Outcome of the job, until it is in the log.
    pub outcome: DsaArray<u8>,
}

/// State of the process in a worker slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum WorkerState {
    /// There is no process.
    Free,
    /// The process was requested.
    Starting,
    /// The process looks for jobs, or writes the log.
    Ready,
    /// The process runs a queued job.
    RunningQueued,
    /// The process runs an attached job.
    RunningAttached,
    /// The process has nothing to do.
    Idle,
    /// The process is exiting; its slot is free when the server says that the process is gone.
    Exiting,
    /// The process died; the postmaster starts another one in its slot, for any pool that needs a worker then.
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

/// Slot of a worker.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct WorkerSlot {
    /// Number of the process: none had it before.
    pub serial: u64,
    pub pool: PoolPtr,
    /// Batch of the job that the worker runs or has claimed.
    pub batch: BatchPtr,
    pub job: u32,
    /// [`WorkerState`]
    pub state: u32,
    pub pid: i32,
    /// The slot is needed elsewhere: the worker must exit when it has nothing to do.
    pub exit_requested: u32,
    /// Percent that the job reports; negative means none.
    pub progress: i32,
    pub padding: u32,
    /// The process, to set its latch.
    pub process: ProcessRef,
    /// Background worker handle of the process.
    pub handle: [u64; 2],
    pub has_handle: u32,
    pub message_bytes: u32,
    /// Index + 1 of the slot whose process must be gone before the process of this slot begins.
    pub waits_for_slot: u32,
    /// Another slot has replaced this one, which does not count any more.
    pub has_successor: u32,
    /// The running job cannot be cancelled any more.
    pub is_uncancellable: u32,
    /// The postmaster does not start the worker again when it dies, or was told to end it.
    pub no_restart: u32,
    /// Version of what the login depended on when the worker logged in; 0 means that the worker takes no attached jobs.
    pub version: u64,
    /// Segment of the attached job that was assigned to the worker and has not begun; 0 means none.
    pub assigned_segment: u32,
    /// Segment of the last attached job of the worker.
    pub segment: u32,
    /// The result of that job has not been read: the worker is assigned no other job, because this job has its process
    /// id.
    pub result_pending: u32,
    /// The result of that job was read to its end: the worker will be idle in a moment.
    pub result_consumed: u32,
    /// Time at which the last attached job was assigned ([`clock`](crate::ffi::spin::clock)).
    pub assigned_at: Nanos,
    /// Time since which the worker starts, is idle or runs its attached job; of one that runs queued jobs, the time at
    /// which its turn began.
    pub since: Timestamp,
    pub message: [u8; MESSAGE_BYTES],
}

impl WorkerSlot {
    /// Returns the state of the process in the slot.
    pub fn state(&self) -> WorkerState {
        WorkerState::from_number(self.state)
    }
}

/// Role that has stopped jobs of a batch. Its name follows it in the same allocation: the role can be renamed or
/// dropped before the log records the name.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct StopRequester {
    pub next: DsaPtr<StopRequester>,
    pub name: DsaArray<u8>,
    /// Number of the role in the batch, from 1.
    pub number: u32,
    pub padding: u32,
}

/// A file that was reported as unreadable.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct ReportedFile {
    pub next: DsaPtr<ReportedFile>,
    pub name_hash: u64,
}

/// Process that waits for changes of a batch.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Watcher {
    pub next: DsaPtr<Watcher>,
    pub process: ProcessRef,
    /// Changes that wake the process, as [`WakeOn`]: anything but [`WakeOn::Nothing`] means that it is armed.
    pub wake_on: u32,
    pub pid: i32,
    /// Job that the process waits for, as [`JobRecord::ordinal`]; 0 means all jobs of the batch.
    pub ordinal: u32,
    /// The process waits for the end of the job or of the batch.
    pub is_follower: u16,
    /// The process runs a job itself.
    pub is_worker: u16,
}
