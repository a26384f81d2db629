//! The queue: which job a worker takes next.
//!
//! A worker claims a few jobs of one batch at a time, so that what is written before they start is written for all of
//! them at once; each is begun on its own, and until then it can be stopped as any queued job.

use super::end::{remove_if_done, sweep};
use super::record::{Batch, Key, Life, Place, Root, State};
use super::room::{self, Standing};
use super::{batch, direct, slot, slot_mut, slots, watch};
use crate::ffi::area::Memory;
use crate::ffi::process;
use crate::guc;

/// How many jobs a worker claims at most.
const CLAIM_LIMIT: u32 = 64;
/// How long a worker of a role stays when another role has none, in microseconds.
const QUANTUM: i64 = 100_000;

/// What a worker does next.
pub enum Task {
    /// Write the rows of a batch.
    Record(Place),
    /// Write the final rows of jobs that ended without one.
    Log(Place),
    Run(Claim),
    /// Run the job in this segment, which a session has given to it.
    Serve(u32),
    /// Nothing until then (microseconds, none = until it is woken).
    Wait(Option<i64>),
    /// Nothing before there are fewer workers.
    Pause,
    /// There is nothing to do for it, or it is not wanted any more.
    Leave,
    /// Somebody else is to have its place.
    HandOver,
}

/// Jobs that a worker will run one after the other.
#[derive(Debug, Clone)]
pub struct Claim {
    pub batch: Place,
    pub number: u64,
    pub indexes: Vec<u32>,
}

/// What the worker in this slot does next. `many`: its jobs are so short that it is to claim several.
pub fn claim(memory: &mut Memory, index: usize, now: i64, many: bool) -> Task {
    let task = next_task(memory, index, now, many);
    if matches!(task, Task::Leave | Task::HandOver) {
        // No session gives it a job any more that it would take along.
        slot::ready(memory, index);
    }
    task
}

fn next_task(memory: &mut Memory, index: usize, now: i64, many: bool) -> Task {
    if let Some(segment) = direct::begin(memory, index) {
        return Task::Serve(segment);
    }
    let Some(own) = slots(memory).get(index).copied() else { return Task::Leave };
    let standing = room::standing(memory, index);
    if own.is_unwanted != 0 || standing == Standing::Goes {
        return Task::Leave;
    }
    sweep(memory, false);
    let key = *memory.get::<Key>(own.key);
    if let Some(place) = log_duty(memory, key.database, now) {
        begin_to_write(memory, index, place);
        return Task::Log(place);
    }
    if standing == Standing::Pauses {
        return Task::Pause;
    }
    if key.login == 0 {
        return log_due(memory, key.database).map_or(Task::Leave, |due| Task::Wait(Some(due)));
    }
    if room::gives_way(memory, index, now, QUANTUM) {
        return Task::HandOver;
    }
    let places: Vec<Place> =
        batch::batches_of_key(memory, own.key).filter(|place| vacancies(memory, *place) > 0).take(256).collect();
    for place in places {
        if !is_due(memory, place, now) {
            continue;
        }
        let record = memory.get::<Batch>(place);
        if record.is_recorded == 0 {
            if record.writer != 0 {
                continue;
            }
            // What cannot be recorded now runs all the same, and is recorded later.
            if record.retry_log_at <= now {
                begin_to_write(memory, index, place);
                return Task::Record(place);
            }
        }
        let share = record.queued / (4 * key.workers.max(1)) + 1;
        let count = if many && record.is_sequential == 0 { share.min(CLAIM_LIMIT) } else { 1 };
        let indexes: Vec<u32> = (0..count).map_while(|_| pop(memory, place, now)).collect();
        if indexes.is_empty() {
            continue;
        }
        let number = memory.get::<Batch>(place).number;
        for job in &indexes {
            batch::job_mut(memory, place, *job).slot = index as u32 + 1;
        }
        let record = memory.get_mut::<Batch>(place);
        record.workers += 1;
        record.queued -= indexes.len() as u32;
        batch::unlink_if_done(memory, place);
        if let Some(own) = slot_mut(memory, index) {
            own.life = Life::Ready as u32;
            own.batch = place;
        }
        let turn = next_turn(memory);
        memory.get_mut::<Key>(own.key).turn = turn;
        return Task::Run(Claim { batch: place, number, indexes });
    }
    if room::is_wanted_elsewhere(memory, own.key, now) && room::live(memory) >= guc::cap() {
        return Task::HandOver;
    }
    Task::Wait(next_due(memory, own.key, now))
}

fn begin_to_write(memory: &mut Memory, index: usize, place: Place) {
    memory.get_mut::<Batch>(place).writer = index as u32 + 1;
    if let Some(own) = slot_mut(memory, index) {
        own.life = Life::Ready as u32;
    }
}

pub(super) fn next_turn(memory: &mut Memory) -> u64 {
    let root = memory.root();
    let record = memory.get_mut::<Root>(root);
    record.last_turn += 1;
    record.last_turn
}

/// How many more workers may work on a batch.
fn vacancies(memory: &Memory, place: Place) -> u32 {
    let batch = memory.get::<Batch>(place);
    let limit = if batch.is_sequential != 0 { 1 } else { batch.max_workers };
    limit.saturating_sub(batch.workers)
}

/// Is there a job that may start now?
fn is_due(memory: &mut Memory, place: Place, now: i64) -> bool {
    match peek(memory, place) {
        Some(job) => batch::job(memory, place, job).not_before <= now,
        None => false,
    }
}

/// The job of the batch that comes next, whether its time has come or not. Jobs that wait for another attempt come first
/// when they are due.
fn peek(memory: &mut Memory, place: Place) -> Option<u32> {
    let now = process::now();
    let again = loop {
        let first = memory.get::<Batch>(place).again;
        if first == 0 {
            break None;
        }
        let job = *batch::job(memory, place, first - 1);
        if job.state == State::Queued as u8 && job.slot == 0 {
            break Some((first - 1, job.not_before));
        }
        memory.get_mut::<Batch>(place).again = job.again;
    };
    let (mut next, count, is_sequential) = {
        let batch = memory.get::<Batch>(place);
        (batch.next, batch.jobs, batch.is_sequential != 0)
    };
    while next < count && batch::job(memory, place, next).state != State::Queued as u8 {
        next += 1;
    }
    memory.get_mut::<Batch>(place).next = next;
    match again {
        // In a sequential batch nothing overtakes a job that waits for another attempt.
        Some((job, not_before)) if not_before <= now || next == count || is_sequential => Some(job),
        _ if next < count => Some(next),
        _ => None,
    }
}

/// Takes the next job that may start now.
fn pop(memory: &mut Memory, place: Place, now: i64) -> Option<u32> {
    let index = peek(memory, place)?;
    let job = *batch::job(memory, place, index);
    if job.not_before > now {
        return None;
    }
    let record = memory.get_mut::<Batch>(place);
    if record.again == index + 1 {
        record.again = job.again;
        batch::job_mut(memory, place, index).again = 0;
    } else {
        record.next = index + 1;
    }
    Some(index)
}

/// Puts a job that was taken back among the queued.
pub(super) fn push(memory: &mut Memory, place: Place, index: u32, not_before: i64) {
    let mut before = 0;
    let mut at = memory.get::<Batch>(place).again;
    while at != 0 && batch::job(memory, place, at - 1).not_before <= not_before {
        before = at;
        at = batch::job(memory, place, at - 1).again;
    }
    let job = batch::job_mut(memory, place, index);
    job.state = State::Queued as u8;
    job.slot = 0;
    job.not_before = not_before;
    job.again = at;
    match before {
        0 => memory.get_mut::<Batch>(place).again = index + 1,
        before => batch::job_mut(memory, place, before - 1).again = index + 1,
    }
    memory.get_mut::<Batch>(place).queued += 1;
    batch::link(memory, place);
}

/// When the next queued job of the key that waits for its time may start.
fn next_due(memory: &mut Memory, key: Place, now: i64) -> Option<i64> {
    let places: Vec<Place> = batch::batches_of_key(memory, key).take(256).collect();
    let due =
        places.into_iter().filter_map(|place| peek(memory, place).map(|job| batch::job(memory, place, job).not_before));
    let due: Vec<i64> = due.collect();
    due.into_iter().filter(|due| *due > now).min()
}

/// How many workers of a key could start a job now; counts no further than `enough`.
pub(super) fn demand(memory: &mut Memory, key: Place, now: i64, enough: u32) -> u32 {
    let places: Vec<Place> = batch::batches_of_key(memory, key).take(256).collect();
    let mut total = 0;
    for place in places {
        let room = vacancies(memory, place);
        if room > 0 && is_due(memory, place, now) {
            // Jobs that wait for another attempt may not be due; a worker too many finds out.
            total += room.min(memory.get::<Batch>(place).queued);
        }
        if total >= enough {
            return enough;
        }
    }
    total
}

/// Is anything queued, or still to be written to a log?
pub(super) fn has_work(memory: &Memory) -> bool {
    batch::batches(memory).any(|place| {
        let batch = memory.get::<Batch>(place);
        batch.is_open != 0 && (batch.queued > 0 || batch.unlogged > 0)
    })
}

/// A batch of this database with final rows to write.
pub(super) fn log_duty(memory: &Memory, database: u32, now: i64) -> Option<Place> {
    batch::batches(memory).find(|place| {
        let batch = memory.get::<Batch>(*place);
        batch.unlogged > 0 && batch.database == database && batch.writer == 0 && batch.retry_log_at <= now
    })
}

/// When final rows that could not be written in this database are to be tried again.
fn log_due(memory: &Memory, database: u32) -> Option<i64> {
    let batches = batch::batches(memory).map(|place| memory.get::<Batch>(place));
    batches.filter(|batch| batch.unlogged > 0 && batch.database == database).map(|batch| batch.retry_log_at).min()
}

/// The rows of the batch are in the table, or could not be written and are to be tried again not before `retry_at`.
pub fn recorded(memory: &mut Memory, place: Place, by: Option<u32>, retry_at: i64) {
    // It may have been forgotten with its database.
    if !batch::batches(memory).any(|at| at == place) {
        return;
    }
    let batch = memory.get_mut::<Batch>(place);
    batch.writer = 0;
    if let Some(by) = by {
        batch.is_recorded = 1;
        batch.recorded_by = by.into();
        batch.recorded_at = process::now();
    } else {
        batch.retry_log_at = retry_at;
    }
    watch::wake(memory, place);
}

/// Are the rows of the batch in the table?
pub fn is_recorded(memory: &Memory, place: Place) -> bool {
    memory.get::<Batch>(place).is_recorded != 0
}

/// The uuid of the batch.
pub fn uuid(memory: &Memory, place: Place) -> [u8; 16] {
    memory.get::<Batch>(place).uuid
}

/// The uuid of its first job.
pub fn uuid_of_first(memory: &Memory, place: Place) -> [u8; 16] {
    let ordinal = batch::jobs(memory, place).first().map_or(0, |job| job.ordinal);
    batch::uuid_of(&memory.get::<Batch>(place).uuid, ordinal)
}

/// The uuids of claimed jobs.
pub fn uuids(memory: &Memory, claim: &Claim) -> Vec<[u8; 16]> {
    let stem = memory.get::<Batch>(claim.batch).uuid;
    claim.indexes.iter().map(|index| batch::uuid_of(&stem, batch::job(memory, claim.batch, *index).ordinal)).collect()
}

/// Starts a job of a claim. False = it was stopped in the meantime.
pub fn begin(memory: &mut Memory, index: usize, place: Place, job_index: u32) -> bool {
    let now = process::now();
    let Some(own) = slots(memory).get(index).copied() else { return false };
    let job = batch::job_mut(memory, place, job_index);
    if job.state != State::Queued as u8 || job.slot != index as u32 + 1 {
        return false;
    }
    job.state = State::Running as u8;
    job.started = now;
    job.attempts += 1;
    job.pid = own.pid;
    if let Some(own) = slot_mut(memory, index) {
        own.life = Life::Busy as u32;
        own.batch = place;
        own.job = job_index;
        own.is_waiting = 0;
        own.is_deaf = 0;
        own.progress = -1;
        own.message_bytes = 0;
    }
    memory.get_mut::<Key>(own.key).busy += 1;
    watch::wake(memory, place);
    true
}

/// Gives back what is left of a claim, and looks whether the batch is done.
pub fn withdraw(memory: &mut Memory, index: usize, claim: &Claim) {
    let slot = index as u32 + 1;
    for job in claim.indexes.iter().rev() {
        let record = batch::job(memory, claim.batch, *job);
        if record.state == State::Queued as u8 && record.slot == slot {
            push(memory, claim.batch, *job, 0);
        }
    }
    memory.get_mut::<Batch>(claim.batch).workers -= 1;
    if let Some(own) = slot_mut(memory, index) {
        own.batch = 0;
    }
    remove_if_done(memory, claim.batch);
}
