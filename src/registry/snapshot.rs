//! Read-only snapshots of the registry for sessions and views.

use crate::ffi::area::Memory;
use crate::ffi::{alloc, session};
use crate::ids::{AnyId, BatchId, DatabaseId, JobId, RoleId};
use crate::registry::layout::{BatchPtr, BatchRecord, JobRecord, Reason, State, WorkerSlot, WorkerState, RELAUNCHED};
use crate::registry::root::slots;
use crate::registry::{lists, outcomes, stopped_by};
use crate::spec::options::RunOptions;
use crate::time::Timestamp;
use std::collections::{HashMap, HashSet};

/// Properties of a batch as a whole.
#[derive(Debug, Clone, Copy)]
pub struct BatchSummary {
    /// Number that no other batch has had.
    pub number: u64,
    pub uuid: BatchId,
    pub database: DatabaseId,
    pub owner: RoleId,
    /// Role that the workers log in as.
    pub login: RoleId,
    /// Location of the batch's rows, or `None` if they are not written.
    pub recorded: Option<Recorded>,
}

/// Location of the rows of a batch in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// OID of the log.
    pub log: u32,
    /// Transaction that wrote the rows.
    pub by: u64,
}

/// Returns the location of the batch's rows, or `None` if they are not written.
pub fn log_location(memory: &Memory, batch: BatchPtr) -> Option<Recorded> {
    location_in(memory.get(batch))
}

fn location_in(record: &BatchRecord) -> Option<Recorded> {
    (record.recorded_in != 0).then_some(Recorded { log: record.recorded_in as u32, by: record.recorded_by })
}

/// Properties of a job that change.
#[derive(Debug, Clone)]
pub struct JobStatus {
    /// Role whose rights the job has.
    pub owner: RoleId,
    pub state: State,
    /// The final row is written.
    pub is_logged: bool,
    pub started: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    pub attempts: u32,
    pub pid: Option<i32>,
    /// Position in the queue from 1, in the order in which jobs were accepted.
    pub queue_position: Option<i64>,
    /// Progress that the job reports: percent and message.
    pub progress: Option<(i32, Vec<u8>)>,
    /// Outcome of the job, until it is in the log.
    pub outcome: Option<Vec<u8>>,
    /// Outcome in the final row, if that was written with the job's work: for sessions that report it.
    pub written: Option<Vec<u8>>,
    pub reason: Reason,
    /// Name of the role that stopped the job, if it is known.
    pub stop_requester: Option<Vec<u8>>,
}

/// All properties of a job.
#[derive(Debug, Clone)]
pub struct JobDetails {
    pub batch: BatchSummary,
    pub uuid: JobId,
    pub now: JobStatus,
    pub owner_name: Vec<u8>,
    pub client: Vec<u8>,
    pub batch_name: Option<Vec<u8>>,
    pub name: Option<Vec<u8>>,
    pub query: Vec<u8>,
    pub queued_at: Timestamp,
    /// The job has been started at least once.
    pub is_begun: bool,
    /// Options of the run; its attempts are those of all launches.
    pub run_options: RunOptions,
}

/// Batch or job that a uuid refers to.
#[derive(Debug, Clone, Copy)]
pub struct FoundJobs {
    pub batch: BatchPtr,
    pub owner: RoleId,
    /// Role that the workers log in as.
    pub login: RoleId,
    /// Index of the job, or `None` for the whole batch.
    pub job: Option<u32>,
}

/// Returns the batches and jobs of a uuid. A batch has several entries if some of its jobs were launched again.
pub fn find(memory: &Memory, id: AnyId) -> Vec<FoundJobs> {
    let ordinal = id.ordinal();
    let found = lists::batches_of(memory, id.batch()).filter_map(|batch| {
        let record = memory.get(batch);
        if record.is_open == 0 {
            return None;
        }
        let job = match ordinal {
            0 => None,
            _ => {
                let index = lists::index_of(memory, batch, ordinal)?;
                Some(Some(index).filter(|index| is_current(lists::job(memory, batch, *index)))?)
            }
        };
        Some(FoundJobs { batch, owner: record.owner, login: login(memory, record), job })
    });
    found.collect()
}

/// Returns whether this record of the job is the current one: the job was not launched again.
fn is_current(job: &JobRecord) -> bool {
    job.is_logged != RELAUNCHED
}

/// Returns the indexes of the jobs that were found.
pub fn of_batch(memory: &Memory, found: &FoundJobs) -> Vec<u32> {
    match found.job {
        Some(job) => vec![job],
        None => {
            let current = (0..).zip(lists::jobs(memory, found.batch)).filter(|(_, job)| is_current(job));
            current.map(|(index, _)| index).collect()
        }
    }
}

fn login(memory: &Memory, record: &BatchRecord) -> RoleId {
    memory.get(record.pool).login
}

fn summary_of(memory: &Memory, record: &BatchRecord) -> BatchSummary {
    BatchSummary {
        number: record.number,
        uuid: record.uuid,
        database: record.database,
        owner: record.owner,
        login: login(memory, record),
        recorded: location_in(record),
    }
}

/// Returns all open batches; with `uuid`, only that batch, or the batch of that job.
pub fn batch_summaries(memory: &Memory, id: Option<BatchId>) -> Vec<BatchSummary> {
    let open = |batch: &BatchPtr| memory.get(*batch).is_open != 0;
    let summary = |batch| summary_of(memory, memory.get(batch));
    match id {
        Some(id) => lists::batches_of(memory, id).filter(open).map(summary).collect(),
        None => lists::batches(memory).filter(open).map(summary).collect(),
    }
}

/// Attempts that run at one moment: the number of the batch, the ordinal of the job, and the number of the attempt.
#[derive(Debug, Clone, Default)]
pub struct Running(HashSet<(u64, u32, u32)>);

impl Running {
    fn has(&self, record: &BatchRecord, job: &JobRecord) -> bool {
        self.0.contains(&(record.number, job.ordinal, job.attempts))
    }
}

/// Returns the attempts that run now: one for each busy worker.
pub fn running(memory: &Memory) -> Running {
    let busy = slots(memory).iter().filter(|slot| slot.state() == WorkerState::RunningQueued && !slot.batch.is_null());
    let attempts = busy.map(|slot| {
        let job = lists::job(memory, slot.batch, slot.job);
        (memory.get(slot.batch).number, job.ordinal, job.attempts)
    });
    Running(attempts.collect())
}

/// Returns the results of `visit` for the jobs of the batches whose numbers `is_wanted` accepts, in the order of
/// acceptance. The last argument of `visit` is the queue position: it counts the jobs of all batches, but other batches
/// cost next to nothing. `running`: attempts that began after these were running are shown as queued.
fn walk<T>(
    memory: &Memory,
    is_wanted: impl Fn(u64) -> bool,
    running: Option<&Running>,
    visit: impl Fn(BatchPtr, &BatchRecord, &JobRecord, i64) -> T,
) -> Vec<T> {
    let mut results = Vec::new();
    let mut position = 0;
    for batch in lists::batches(memory) {
        let record = memory.get(batch);
        if record.is_open == 0 {
            continue;
        }
        if !is_wanted(record.number) {
            position += i64::from(record.queued);
            continue;
        }
        for job in lists::jobs(memory, batch).iter().filter(|job| is_current(job)) {
            let mut job = *job;
            if job.state == State::Running as u8 && running.is_some_and(|running| !running.has(record, &job)) {
                job.state = State::Queued as u8;
                job.attempts = job.attempts.saturating_sub(1);
            }
            if job.state == State::Queued as u8 {
                position += 1;
            }
            results.push(visit(batch, record, &job, position));
        }
    }
    results
}

/// Returns the properties of the jobs of these batches. `running`: at the time when these attempts ran, as far as that
/// is still known.
pub fn snapshot(memory: &Memory, batches: &HashSet<u64>, running: Option<&Running>) -> Vec<JobDetails> {
    walk(
        memory,
        |number| batches.contains(&number),
        running,
        |batch, record, job, position| details_of(memory, batch, record, job, position),
    )
}

/// Returns the time at which a batch was accepted, which is also in its rows.
pub fn accepted_at(memory: &Memory, batch: BatchPtr) -> Timestamp {
    memory.get(batch).created
}

/// Returns the properties of the jobs of one batch, or nothing if the batch was removed.
pub fn jobs_of(memory: &Memory, batch: BatchPtr, id: BatchId) -> Vec<JobDetails> {
    let is_there = lists::is_there(memory, batch, id);
    let number = is_there.then(|| memory.get(batch).number);
    snapshot(memory, &number.into_iter().collect(), None)
}

/// Returns whether a job of the uuid's batches has no final row yet, or one of the batches is still being accepted.
pub fn is_pending(memory: &Memory, id: BatchId) -> bool {
    lists::batches_of(memory, id)
        .any(|batch| memory.get(batch).is_open == 0 || lists::jobs(memory, batch).iter().any(|job| job.is_logged == 0))
}

/// Returns the properties of a job, or `None` if it is not in the registry.
pub fn job_of(memory: &Memory, uuid: &JobId) -> Option<JobDetails> {
    let found = find(memory, (*uuid).into()).into_iter().next()?;
    Some(details_of(memory, found.batch, memory.get(found.batch), lists::job(memory, found.batch, found.job?), 0))
}

/// Returns the states of the jobs of these batches, by their uuids. `running`: as for [`snapshot`].
pub fn statuses(memory: &Memory, batches: &HashSet<u64>, running: &Running) -> HashMap<JobId, JobStatus> {
    let results = walk(
        memory,
        |number| batches.contains(&number),
        Some(running),
        |batch, record, job, position| (record.uuid.job(job.ordinal), status_of(memory, batch, job, position)),
    );
    results.into_iter().collect()
}

/// Returns the query of the job that was found, or `None` for a whole batch.
pub fn query_of(memory: &Memory, found: &FoundJobs) -> Option<Vec<u8>> {
    let job = lists::job(memory, found.batch, found.job?);
    lists::bytes(memory, found.batch, job.query).map(alloc::copy)
}

/// Returns a text of a batch in the encoding of this database.
fn own_text(record: &BatchRecord, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = alloc::copy(bytes);
    if record.encoding != session::encoding() {
        // In the encoding of another database: bytes that are not ASCII have no meaning here.
        bytes.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    }
    bytes
}

fn status_of(memory: &Memory, batch: BatchPtr, job: &JobRecord, position: i64) -> JobStatus {
    let state = State::from_byte(job.state);
    let (stored, is_written) = (outcomes::of_job(memory, job).map(<[u8]>::to_vec), job.is_logged == 1);
    JobStatus {
        owner: memory.get(batch).owner,
        state,
        is_logged: job.is_logged != 0,
        started: job.started.some().filter(|_| state != State::Queued),
        ended: job.ended.some().filter(|_| state.is_final()),
        attempts: job.attempts,
        pid: pid_of(job),
        queue_position: (state == State::Queued).then_some(position),
        progress: progress_of(memory, memory.get(batch), job),
        outcome: stored.clone().filter(|_| !is_written),
        written: stored.filter(|_| is_written),
        reason: Reason::from_byte(job.reason),
        stop_requester: stopped_by::of_job(memory, batch, job).map(|role| own_text(memory.get(batch), role)),
    }
}

fn details_of(memory: &Memory, batch: BatchPtr, record: &BatchRecord, job: &JobRecord, position: i64) -> JobDetails {
    let text = |text| lists::bytes(memory, batch, text).map(|bytes| own_text(record, bytes));
    JobDetails {
        batch: summary_of(memory, record),
        uuid: record.uuid.job(job.ordinal),
        now: status_of(memory, batch, job, position),
        owner_name: text(record.owner_name).unwrap_or_default(),
        client: text(record.client).unwrap_or_default(),
        batch_name: text(record.name),
        name: text(job.name).or_else(|| text(record.name)),
        query: text(job.query).unwrap_or_default(),
        queued_at: record.created,
        is_begun: job.started != Timestamp::NONE,
        run_options: RunOptions {
            sequential: record.is_sequential != 0,
            max_workers: Some(record.max_workers).filter(|workers| *workers != u32::MAX),
            stop_on_error: record.stops_on_error != 0,
            timeout: Some(job.timeout).filter(|timeout| *timeout > 0),
            max_attempts: job.max_attempts,
            retry_delay: job.retry_delay,
            is_confined: record.is_confined != 0,
        },
    }
}

/// Returns the process that runs the job or ran it last, or `None` if the job is queued or never ran.
fn pid_of(job: &JobRecord) -> Option<i32> {
    Some(job.pid).filter(|pid| *pid != 0 && job.state != State::Queued as u8)
}

/// Returns the slot of the worker that runs the job, or `None` if the job does not run.
fn slot_of<'a>(memory: &'a Memory, job: &JobRecord) -> Option<&'a WorkerSlot> {
    let slot = slots(memory).get((job.slot as usize).wrapping_sub(1))?;
    (slot.state() == WorkerState::RunningQueued && job.state == State::Running as u8).then_some(slot)
}

/// Properties of a job that change while it runs.
#[derive(Debug, Clone)]
pub struct LiveState {
    pub uuid: JobId,
    pub state: State,
    pub attempts: u32,
    pub pid: Option<i32>,
    pub is_logged: bool,
    /// The final row is written or about to be, but the job still counts as running.
    is_concluding: bool,
    /// Progress that the job reports: percent and message.
    pub progress: Option<(i32, Vec<u8>)>,
}

impl LiveState {
    /// Returns whether the final row is still to be written, or was just written but is not marked as written yet.
    pub fn is_row_due(&self) -> bool {
        self.is_concluding || self.state.is_final() && !self.is_logged
    }
}

/// Returns the progress that the job reports.
fn progress_of(memory: &Memory, record: &BatchRecord, job: &JobRecord) -> Option<(i32, Vec<u8>)> {
    let slot = slot_of(memory, job).filter(|slot| slot.progress >= 0)?;
    let message = slot.message.get(..slot.message_bytes as usize).unwrap_or_default();
    Some((slot.progress, own_text(record, message)))
}

/// Returns the state of a job, or of the jobs of a batch in their order.
pub fn live_states(memory: &Memory, id: AnyId) -> Vec<LiveState> {
    let mut states = Vec::new();
    for found in find(memory, id) {
        let record = memory.get(found.batch);
        for index in of_batch(memory, &found) {
            let job = lists::job(memory, found.batch, index);
            states.push(LiveState {
                uuid: record.uuid.job(job.ordinal),
                state: State::from_byte(job.state),
                attempts: job.attempts,
                pid: pid_of(job),
                is_logged: job.is_logged != 0,
                is_concluding: slot_of(memory, job).is_some_and(|slot| slot.is_uncancellable != 0),
                progress: progress_of(memory, record, job),
            });
        }
    }
    states
}

/// Returns the uuid of a job.
pub fn uuid_of_job(memory: &Memory, batch: BatchPtr, index: u32) -> JobId {
    memory.get(batch).uuid.job(lists::job(memory, batch, index).ordinal)
}

/// Returns the request of a batch as it was written, for the worker that runs its jobs.
pub fn request(memory: &Memory, batch: BatchPtr) -> Vec<u8> {
    let record = memory.get(batch);
    alloc::copy(lists::bytes(memory, batch, record.request).unwrap_or_default())
}

/// Properties of a job that its worker needs.
#[derive(Debug, Clone)]
pub struct RunningJob {
    pub uuid: JobId,
    /// Role whose rights the job has.
    pub owner: RoleId,
    pub query: Vec<u8>,
    /// Milliseconds
    pub timeout: Option<i64>,
    pub attempt: u32,
    pub max_attempts: u32,
    pub started: Timestamp,
}

impl RunningJob {
    /// Reads the properties of a job of a batch.
    pub fn read(memory: &Memory, batch: BatchPtr, index: u32) -> Self {
        let record = memory.get(batch);
        let job = lists::job(memory, batch, index);
        RunningJob {
            uuid: record.uuid.job(job.ordinal),
            owner: record.owner,
            query: alloc::copy(lists::bytes(memory, batch, job.query).unwrap_or_default()),
            timeout: Some(job.timeout).filter(|timeout| *timeout > 0),
            attempt: job.attempts,
            max_attempts: job.max_attempts,
            started: job.started,
        }
    }
}
