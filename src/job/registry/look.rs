//! What others see of it.

use super::record::{Batch, Job, Life, Place, Slot, State};
use super::{batch, slots, stopper};
use crate::ffi::area::Memory;
use crate::ffi::session;
use crate::job::manner::Manner;

/// Everything that can be said of a job.
#[derive(Debug, Clone)]
pub struct JobView {
    pub uuid_parent: [u8; 16],
    pub uuid: [u8; 16],
    pub state: State,
    pub is_logged: bool,
    /// It became known as ended before its final row was written.
    pub is_late: bool,
    pub is_recorded: bool,
    /// The transaction that wrote its first row; 0 = none.
    pub recorded_by: u32,
    pub database: u32,
    pub owner: u32,
    pub owner_name: Vec<u8>,
    pub client: Vec<u8>,
    pub batch_name: Option<Vec<u8>>,
    pub name: Option<Vec<u8>>,
    pub query: Vec<u8>,
    pub queued_at: i64,
    pub started: Option<i64>,
    pub ended: Option<i64>,
    pub attempts: u32,
    pub pid: Option<i32>,
    /// From 1, in the order in which jobs were accepted.
    pub queue_position: Option<i64>,
    pub progress: Option<i32>,
    pub message: Option<Vec<u8>>,
    /// What came of it, until that is in the log.
    pub outcome: Option<Vec<u8>>,
    pub reason: super::Reason,
    /// Who stopped it: a role.
    pub stopper: Option<Vec<u8>>,
    /// Its attempts are those of all launches.
    pub manner: Manner,
}

/// Where a uuid leads.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub batch: Place,
    pub owner: u32,
    /// The job; none = the whole batch.
    pub job: Option<u32>,
}

/// The batches and jobs of a uuid. A batch has several entries when some of its jobs were launched again.
pub fn find(memory: &Memory, uuid: &[u8; 16]) -> Vec<Found> {
    let ordinal = uuid.last_chunk::<4>().map_or(0, |last| u32::from_be_bytes(*last));
    let found = batch::batches_of_uuid(memory, uuid).filter_map(|place| {
        let record = memory.get::<Batch>(place);
        if record.is_open == 0 {
            return None;
        }
        let job = match ordinal {
            0 => None,
            _ => Some(index_of(memory, place, ordinal)?),
        };
        Some(Found { batch: place, owner: record.owner, job })
    });
    found.collect()
}

fn index_of(memory: &Memory, place: Place, ordinal: u32) -> Option<u32> {
    batch::jobs(memory, place).binary_search_by_key(&ordinal, |job| job.ordinal).ok().map(|index| index as u32)
}

/// The indexes of the jobs that were found.
pub fn of_batch(memory: &Memory, found: &Found) -> Vec<u32> {
    match found.job {
        Some(job) => vec![job],
        None => (0..memory.get::<Batch>(found.batch).jobs).collect(),
    }
}

/// Jobs that are here, in the order in which they were accepted: those that `wanted` (owner, uuid of the batch) lets
/// pass. Queue positions count all.
pub fn snapshot(memory: &Memory, wanted: impl Fn(u32, &[u8; 16]) -> bool) -> Vec<JobView> {
    let mut views = Vec::new();
    let mut position = 0;
    for place in batch::batches(memory) {
        let record = memory.get::<Batch>(place);
        if record.is_open == 0 {
            continue;
        }
        if !wanted(record.owner, &record.uuid) {
            position += i64::from(record.queued);
            continue;
        }
        for job in batch::jobs(memory, place) {
            if job.state == State::Queued as u8 {
                position += 1;
            }
            views.push(view(memory, place, record, job, position));
        }
    }
    views
}

/// The one job that was found; its position in the queue is not looked up.
pub fn view_of(memory: &Memory, found: &Found) -> Option<JobView> {
    let index = found.job?;
    let job = batch::job(memory, found.batch, index);
    Some(JobView { queue_position: None, ..view(memory, found.batch, memory.get::<Batch>(found.batch), job, 0) })
}

fn view(memory: &Memory, place: Place, record: &Batch, job: &Job, position: i64) -> JobView {
    let state = State::from_byte(job.state);
    let is_foreign = record.encoding != session::encoding();
    let own = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        if is_foreign {
            // Another database's encoding: what is not ASCII has no meaning here.
            bytes.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        bytes
    };
    let text = |text| batch::bytes(memory, place, text).map(own);
    let progress = slot_of(memory, job).filter(|_| state == State::Running).and_then(progress);
    JobView {
        uuid_parent: record.uuid,
        uuid: batch::uuid_of(&record.uuid, job.ordinal),
        state,
        is_logged: job.is_logged != 0,
        is_late: job.is_logged == 2,
        is_recorded: record.is_recorded != 0,
        recorded_by: record.recorded_by as u32,
        database: record.database,
        owner: record.owner,
        owner_name: text(record.owner_name).unwrap_or_default(),
        client: text(record.client).unwrap_or_default(),
        batch_name: text(record.name),
        name: text(job.name).or_else(|| text(record.name)),
        query: text(job.query).unwrap_or_default(),
        queued_at: record.created,
        started: Some(job.started).filter(|at| *at != 0 && state != State::Queued),
        ended: Some(job.ended).filter(|at| *at != 0 && state.is_final()),
        attempts: job.attempts,
        pid: Some(job.pid).filter(|pid| *pid != 0 && state != State::Queued),
        queue_position: (state == State::Queued).then_some(position),
        progress: progress.as_ref().map(|(percent, _)| *percent),
        message: progress.map(|(_, message)| message).filter(|message| !message.is_empty()),
        outcome: (job.outcome != 0).then(|| memory.slice(job.outcome, job.outcome_bytes as usize).to_vec()),
        reason: super::Reason::from_byte(job.reason),
        stopper: stopper::of_job(memory, place, job).map(own),
        manner: Manner {
            sequential: record.is_sequential != 0,
            max_workers: Some(record.max_workers).filter(|workers| *workers != u32::MAX),
            stop_on_error: record.stops_on_error != 0,
            timeout: Some(job.timeout).filter(|timeout| *timeout > 0),
            max_attempts: job.max_attempts,
            retry_delay: job.retry_delay,
        },
    }
}

fn slot_of<'a>(memory: &'a Memory, job: &Job) -> Option<&'a Slot> {
    let slot = slots(memory).get((job.slot as usize).wrapping_sub(1))?;
    (Life::from_number(slot.life) == Life::Busy).then_some(slot)
}

/// The little of a job that changes.
#[derive(Debug, Clone)]
pub struct Pulse {
    pub uuid: [u8; 16],
    pub state: State,
    pub attempts: u32,
    pub pid: Option<i32>,
    pub is_logged: bool,
    /// What the job says of itself: percent, and a message.
    pub progress: Option<(i32, Vec<u8>)>,
}

/// What the job that runs there says of its progress.
fn progress(slot: &Slot) -> Option<(i32, Vec<u8>)> {
    let message = slot.message.get(..slot.message_bytes as usize).unwrap_or_default();
    (slot.progress >= 0).then(|| (slot.progress, message.to_vec()))
}

/// A job, or the jobs of a batch, in their order.
pub fn pulses(memory: &Memory, uuid: &[u8; 16]) -> Vec<Pulse> {
    let mut pulses = Vec::new();
    for found in find(memory, uuid) {
        let record = memory.get::<Batch>(found.batch);
        for index in of_batch(memory, &found) {
            let job = batch::job(memory, found.batch, index);
            let state = State::from_byte(job.state);
            pulses.push(Pulse {
                uuid: batch::uuid_of(&record.uuid, job.ordinal),
                state,
                attempts: job.attempts,
                pid: Some(job.pid).filter(|pid| *pid != 0 && state != State::Queued),
                is_logged: job.is_logged != 0,
                progress: slot_of(memory, job).filter(|_| state == State::Running).and_then(progress),
            });
        }
    }
    pulses
}

/// The uuid of a job.
pub fn uuid_of_job(memory: &Memory, place: Place, index: u32) -> [u8; 16] {
    batch::uuid_of(&memory.get::<Batch>(place).uuid, batch::job(memory, place, index).ordinal)
}

/// Whose jobs there are.
pub fn owners(memory: &Memory) -> Vec<u32> {
    let mut owners: Vec<u32> = batch::batches(memory).map(|place| memory.get::<Batch>(place).owner).collect();
    owners.sort_unstable();
    owners.dedup();
    owners
}

/// What a worker must know of a batch: its request, as it was written.
pub fn request(memory: &Memory, place: Place) -> Vec<u8> {
    let record = memory.get::<Batch>(place);
    batch::bytes(memory, place, record.request).unwrap_or_default().to_vec()
}

/// What a worker must know of a job.
#[derive(Debug, Clone)]
pub struct RunningJob {
    pub uuid: [u8; 16],
    pub query: Vec<u8>,
    /// Milliseconds
    pub timeout: Option<i64>,
    pub attempt: u32,
    pub max_attempts: u32,
    /// Milliseconds
    pub retry_delay: i64,
    pub started: i64,
    /// Somebody wants it stopped: a role, if it is known.
    pub stopping: Option<Option<Vec<u8>>>,
}

impl RunningJob {
    /// Reads it.
    pub fn read(memory: &Memory, place: Place, index: u32) -> Self {
        let record = memory.get::<Batch>(place);
        let job = batch::job(memory, place, index);
        RunningJob {
            uuid: batch::uuid_of(&record.uuid, job.ordinal),
            query: batch::bytes(memory, place, job.query).unwrap_or_default().to_vec(),
            timeout: Some(job.timeout).filter(|timeout| *timeout > 0),
            attempt: job.attempts,
            max_attempts: job.max_attempts,
            retry_delay: job.retry_delay,
            started: job.started,
            stopping: (job.is_stopping != 0).then(|| stopper::of_job(memory, place, job).map(<[u8]>::to_vec)),
        }
    }
}
