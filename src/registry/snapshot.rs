//! Views of the registry: what others see of its batches and jobs.

use crate::ffi::area::Memory;
use crate::ffi::{alloc, session};
use crate::registry::layout::{BatchPtr, BatchRecord, JobRecord, Reason, State, WorkerSlot, WorkerState, RELAUNCHED};
use crate::registry::root::slots;
use crate::registry::{lists, outcomes, stopped_by};
use crate::spec::options::RunOptions;
use std::collections::{HashMap, HashSet};

/// Properties of a batch as a whole.
#[derive(Debug, Clone, Copy)]
pub struct BatchSummary {
    /// No other batch has had it.
    pub number: u64,
    pub uuid: [u8; 16],
    pub database: u32,
    pub owner: u32,
    /// The role that its workers log in as.
    pub login: u32,
    /// None = its rows are not written.
    pub recorded: Option<Recorded>,
}

/// Tells where the rows of a batch are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// The log: its oid.
    pub log: u32,
    /// The transaction that has written them.
    pub by: u64,
}

/// Returns where the rows of the batch are, if they are written.
pub fn log_location(memory: &Memory, place: BatchPtr) -> Option<Recorded> {
    location_in(memory.get(place))
}

fn location_in(batch: &BatchRecord) -> Option<Recorded> {
    (batch.recorded_in != 0).then_some(Recorded { log: batch.recorded_in as u32, by: batch.recorded_by })
}

/// Properties of a job that change.
#[derive(Debug, Clone)]
pub struct JobStatus {
    /// The role whose rights it has.
    pub owner: u32,
    pub state: State,
    /// Its final row is written.
    pub is_logged: bool,
    pub started: Option<i64>,
    pub ended: Option<i64>,
    pub attempts: u32,
    pub pid: Option<i32>,
    /// From 1, in the order in which jobs were accepted.
    pub queue_position: Option<i64>,
    /// Progress that the job reports: percent, and a message.
    pub progress: Option<(i32, Vec<u8>)>,
    /// Outcome of the job, until that is in the log.
    pub outcome: Option<Vec<u8>>,
    /// Content of its row, which was written with the end of the job: for those that are told of it.
    pub written: Option<Vec<u8>>,
    pub reason: Reason,
    /// Name of the role that stopped it.
    pub stop_requester: Option<Vec<u8>>,
}

/// Everything that can be said of a job.
#[derive(Debug, Clone)]
pub struct JobDetails {
    pub batch: BatchSummary,
    pub uuid: [u8; 16],
    pub now: JobStatus,
    pub owner_name: Vec<u8>,
    pub client: Vec<u8>,
    pub batch_name: Option<Vec<u8>>,
    pub name: Option<Vec<u8>>,
    pub query: Vec<u8>,
    pub queued_at: i64,
    /// The job has been begun, in an attempt that is over or not.
    pub is_begun: bool,
    /// Its attempts are those of all launches.
    pub run_options: RunOptions,
}

/// Tells where a uuid leads.
#[derive(Debug, Clone, Copy)]
pub struct FoundJobs {
    pub batch: BatchPtr,
    pub owner: u32,
    /// The role that its worker logs in as.
    pub login: u32,
    /// The job; none = the whole batch.
    pub job: Option<u32>,
}

/// The batches and jobs of a uuid. A batch has several entries when some of its jobs were launched again.
pub fn find(memory: &Memory, uuid: &[u8; 16]) -> Vec<FoundJobs> {
    let ordinal = lists::ordinal_of(uuid);
    let found = lists::batches_of_uuid(memory, uuid).filter_map(|place| {
        let record = memory.get(place);
        if record.is_open == 0 {
            return None;
        }
        let job = match ordinal {
            0 => None,
            _ => {
                let index = lists::index_of(memory, place, ordinal)?;
                Some(Some(index).filter(|index| is_current(lists::job(memory, place, *index)))?)
            }
        };
        Some(FoundJobs { batch: place, owner: record.owner, login: login(memory, record), job })
    });
    found.collect()
}

/// Returns whether the job is here: it was not launched again.
fn is_current(job: &JobRecord) -> bool {
    job.is_logged != RELAUNCHED
}

/// The indexes of the jobs that were found.
pub fn of_batch(memory: &Memory, found: &FoundJobs) -> Vec<u32> {
    match found.job {
        Some(job) => vec![job],
        None => {
            let here = (0..).zip(lists::jobs(memory, found.batch)).filter(|(_, job)| is_current(job));
            here.map(|(index, _)| index).collect()
        }
    }
}

fn login(memory: &Memory, record: &BatchRecord) -> u32 {
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

/// All batches; `uuid` = only this one, or that of this job.
pub fn batch_summaries(memory: &Memory, uuid: Option<&[u8; 16]>) -> Vec<BatchSummary> {
    let open = |place: &BatchPtr| memory.get(*place).is_open != 0;
    let header = |place| summary_of(memory, memory.get(place));
    match uuid {
        Some(uuid) => lists::batches_of_uuid(memory, uuid).filter(open).map(header).collect(),
        None => lists::batches(memory).filter(open).map(header).collect(),
    }
}

/// The attempts that run at one moment: the number of their batch, the ordinal of their job, and which attempt it is.
#[derive(Debug, Clone, Default)]
pub struct Running(HashSet<(u64, u32, u32)>);

impl Running {
    fn has(&self, record: &BatchRecord, job: &JobRecord) -> bool {
        self.0.contains(&(record.number, job.ordinal, job.attempts))
    }
}

/// The attempts that run now: one for each busy worker.
pub fn running(memory: &Memory) -> Running {
    let busy = slots(memory).iter().filter(|slot| slot.state() == WorkerState::RunningQueued && !slot.batch.is_null());
    let attempts = busy.map(|slot| {
        let job = lists::job(memory, slot.batch, slot.job);
        (memory.get(slot.batch).number, job.ordinal, job.attempts)
    });
    Running(attempts.collect())
}

/// The jobs of batches, in the order in which they were accepted: of those whose numbers `is_wanted` lets pass, what
/// `look` makes of each. Queue positions count all; batches that are not wanted cost next to nothing. `running`:
/// attempts that have begun since these ran are still queued.
fn walk<T>(
    memory: &Memory,
    is_wanted: impl Fn(u64) -> bool,
    running: Option<&Running>,
    look: impl Fn(BatchPtr, &BatchRecord, &JobRecord, i64) -> T,
) -> Vec<T> {
    let mut seen = Vec::new();
    let mut position = 0;
    for place in lists::batches(memory) {
        let record = memory.get(place);
        if record.is_open == 0 {
            continue;
        }
        if !is_wanted(record.number) {
            position += i64::from(record.queued);
            continue;
        }
        for job in lists::jobs(memory, place).iter().filter(|job| is_current(job)) {
            let mut job = *job;
            if job.state == State::Running as u8 && running.is_some_and(|running| !running.has(record, &job)) {
                job.state = State::Queued as u8;
                job.attempts = job.attempts.saturating_sub(1);
            }
            if job.state == State::Queued as u8 {
                position += 1;
            }
            seen.push(look(place, record, &job, position));
        }
    }
    seen
}

/// Everything of the jobs of these batches; `running`: when these attempts ran, as far as it can still be told.
pub fn snapshot(memory: &Memory, batches: &HashSet<u64>, running: Option<&Running>) -> Vec<JobDetails> {
    walk(
        memory,
        |number| batches.contains(&number),
        running,
        |place, record, job, position| details_of(memory, place, record, job, position),
    )
}

/// Returns the time at which a batch was accepted: its rows have it, too.
pub fn accepted_at(memory: &Memory, place: BatchPtr) -> i64 {
    memory.get(place).created
}

/// Everything of the jobs of one batch; nothing if it was forgotten.
pub fn jobs_of(memory: &Memory, place: BatchPtr, uuid: &[u8; 16]) -> Vec<JobDetails> {
    let is_there = lists::batches_of_uuid(memory, uuid).any(|at| at == place);
    let number = is_there.then(|| memory.get(place).number);
    snapshot(memory, &number.into_iter().collect(), None)
}

/// Returns whether something is still to be written of a batch, or it is still being accepted.
pub fn is_pending(memory: &Memory, uuid: &[u8; 16]) -> bool {
    lists::batches_of_uuid(memory, uuid)
        .any(|place| memory.get(place).is_open == 0 || lists::jobs(memory, place).iter().any(|job| job.is_logged == 0))
}

/// Everything of a job that is here.
pub fn job_of(memory: &Memory, uuid: &[u8; 16]) -> Option<JobDetails> {
    let found = find(memory, uuid).into_iter().next()?;
    Some(details_of(memory, found.batch, memory.get(found.batch), lists::job(memory, found.batch, found.job?), 0))
}

/// Returns what the jobs of these batches are doing, by their uuids; `running`: as for [`snapshot`].
pub fn statuses(memory: &Memory, batches: &HashSet<u64>, running: &Running) -> HashMap<[u8; 16], JobStatus> {
    let seen = walk(
        memory,
        |number| batches.contains(&number),
        Some(running),
        |place, record, job, position| {
            (lists::job_uuid(&record.uuid, job.ordinal), status_of(memory, place, job, position))
        },
    );
    seen.into_iter().collect()
}

/// The text of the job that was found.
pub fn query_of(memory: &Memory, found: &FoundJobs) -> Option<Vec<u8>> {
    let job = lists::job(memory, found.batch, found.job?);
    lists::bytes(memory, found.batch, job.query).map(alloc::copy)
}

/// A text of a batch in this database's encoding.
fn own_text(record: &BatchRecord, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = alloc::copy(bytes);
    if record.encoding != session::encoding() {
        // Another database's encoding: what is not ASCII has no meaning here.
        bytes.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    }
    bytes
}

fn status_of(memory: &Memory, place: BatchPtr, job: &JobRecord, position: i64) -> JobStatus {
    let state = State::from_byte(job.state);
    let (kept, is_written) = (outcomes::of_job(memory, job).map(<[u8]>::to_vec), job.is_logged == 1);
    JobStatus {
        owner: memory.get(place).owner,
        state,
        is_logged: job.is_logged != 0,
        started: Some(job.started).filter(|at| *at != 0 && state != State::Queued),
        ended: Some(job.ended).filter(|at| *at != 0 && state.is_final()),
        attempts: job.attempts,
        pid: pid_of(job),
        queue_position: (state == State::Queued).then_some(position),
        progress: progress_of(memory, memory.get(place), job),
        outcome: kept.clone().filter(|_| !is_written),
        written: kept.filter(|_| is_written),
        reason: crate::registry::Reason::from_byte(job.reason),
        stop_requester: stopped_by::of_job(memory, place, job).map(|role| own_text(memory.get(place), role)),
    }
}

fn details_of(memory: &Memory, place: BatchPtr, record: &BatchRecord, job: &JobRecord, position: i64) -> JobDetails {
    let text = |text| lists::bytes(memory, place, text).map(|bytes| own_text(record, bytes));
    JobDetails {
        batch: summary_of(memory, record),
        uuid: lists::job_uuid(&record.uuid, job.ordinal),
        now: status_of(memory, place, job, position),
        owner_name: text(record.owner_name).unwrap_or_default(),
        client: text(record.client).unwrap_or_default(),
        batch_name: text(record.name),
        name: text(job.name).or_else(|| text(record.name)),
        query: text(job.query).unwrap_or_default(),
        queued_at: record.created,
        is_begun: job.started != 0,
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

/// The process that runs it, or ran it last.
fn pid_of(job: &JobRecord) -> Option<i32> {
    Some(job.pid).filter(|pid| *pid != 0 && job.state != State::Queued as u8)
}

/// The place of the worker that runs it.
fn slot_of<'a>(memory: &'a Memory, job: &JobRecord) -> Option<&'a WorkerSlot> {
    let slot = slots(memory).get((job.slot as usize).wrapping_sub(1))?;
    (slot.state() == WorkerState::RunningQueued && job.state == State::Running as u8).then_some(slot)
}

/// The little of a job that changes.
#[derive(Debug, Clone)]
pub struct LiveState {
    pub uuid: [u8; 16],
    pub state: State,
    pub attempts: u32,
    pub pid: Option<i32>,
    pub is_logged: bool,
    /// Its row says already how it ended, or is about to; it still seems to run.
    is_concluding: bool,
    /// Progress that the job reports: percent, and a message.
    pub progress: Option<(i32, Vec<u8>)>,
}

impl LiveState {
    /// Returns whether its final row is still to be written, or its worker has just written it and will say so next.
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

/// A job, or the jobs of a batch, in their order.
pub fn live_states(memory: &Memory, uuid: &[u8; 16]) -> Vec<LiveState> {
    let mut pulses = Vec::new();
    for found in find(memory, uuid) {
        let record = memory.get(found.batch);
        for index in of_batch(memory, &found) {
            let job = lists::job(memory, found.batch, index);
            pulses.push(LiveState {
                uuid: lists::job_uuid(&record.uuid, job.ordinal),
                state: State::from_byte(job.state),
                attempts: job.attempts,
                pid: pid_of(job),
                is_logged: job.is_logged != 0,
                is_concluding: slot_of(memory, job).is_some_and(|slot| slot.is_uncancellable != 0),
                progress: progress_of(memory, record, job),
            });
        }
    }
    pulses
}

/// The uuid of a job.
pub fn uuid_of_job(memory: &Memory, place: BatchPtr, index: u32) -> [u8; 16] {
    lists::job_uuid(&memory.get(place).uuid, lists::job(memory, place, index).ordinal)
}

/// Returns what a worker must know of a batch: its request, as it was written.
pub fn request(memory: &Memory, place: BatchPtr) -> Vec<u8> {
    let record = memory.get(place);
    alloc::copy(lists::bytes(memory, place, record.request).unwrap_or_default())
}

/// Properties of a job that a worker must know.
#[derive(Debug, Clone)]
pub struct RunningJob {
    pub uuid: [u8; 16],
    /// The role whose rights it has.
    pub owner: u32,
    pub query: Vec<u8>,
    /// Milliseconds
    pub timeout: Option<i64>,
    pub attempt: u32,
    pub max_attempts: u32,
    pub started: i64,
}

impl RunningJob {
    /// Reads it.
    pub fn read(memory: &Memory, place: BatchPtr, index: u32) -> Self {
        let record = memory.get(place);
        let job = lists::job(memory, place, index);
        RunningJob {
            uuid: lists::job_uuid(&record.uuid, job.ordinal),
            owner: record.owner,
            query: alloc::copy(lists::bytes(memory, place, job.query).unwrap_or_default()),
            timeout: Some(job.timeout).filter(|timeout| *timeout > 0),
            attempt: job.attempts,
            max_attempts: job.max_attempts,
            started: job.started,
        }
    }
}
