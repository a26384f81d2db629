//! Adds, opens and removes batches.

use crate::error::Error;
use crate::ffi::area::{Memory, LARGE};
use crate::ffi::{process, session};
use crate::registry::layout::{BatchPtr, BatchRecord, JobRecord, Root, State, TextRef, RELAUNCHED};
use crate::registry::lists::{batches, batches_of_uuid, bucket, index_of, job, job_mut, jobs};
use crate::registry::root::{get_or_create_root, root, root_mut};
use crate::registry::{outcomes, pools, ready_lists, stopped_by, watchers};
use crate::{error, guc};

/// Time that a finished batch stays after its rows were written, in microseconds: statements with an older snapshot do
/// not see those rows.
const KEEP_FINISHED_BATCH: i64 = 5_000_000;
/// Interval between searches for finished batches, in microseconds.
const SWEEP_EVERY: i64 = 500_000;

/// Job of a new batch.
pub struct NewJob<'a> {
    /// The last four bytes of its uuid.
    pub ordinal: u32,
    pub query: &'a [u8],
    pub name: Option<&'a [u8]>,
    /// Milliseconds
    pub timeout: Option<i64>,
    pub attempts: u32,
    pub max_attempts: u32,
    /// Milliseconds
    pub retry_delay: i64,
}

/// New batch.
pub struct NewBatch<'a> {
    pub uuid: [u8; 16],
    pub database: u32,
    pub login: u32,
    pub owner: u32,
    pub owner_name: &'a [u8],
    pub client: &'a [u8],
    pub name: Option<&'a [u8]>,
    pub request: &'a [u8],
    pub is_sequential: bool,
    pub max_workers: Option<u32>,
    pub stops_on_error: bool,
    pub is_confined: bool,
    pub jobs: &'a [NewJob<'a>],
}

fn append_text(texts: &mut Vec<u8>, bytes: Option<&[u8]>) -> TextRef {
    let Some(bytes) = bytes else { return TextRef { offset: 0, length: 0, is_set: 0 } };
    let offset = texts.len() as u64;
    texts.extend_from_slice(bytes);
    TextRef { offset, length: bytes.len() as u32, is_set: 1 }
}

fn format_uuid(uuid: &[u8; 16]) -> Vec<u8> {
    uuid::Uuid::from_bytes(*uuid).hyphenated().to_string().into_bytes()
}

/// Adds a batch. It is not visible, and none of its jobs runs, before [`open_batch`] opens it.
///
/// # Errors
/// [`Error::QueueFull`] (53400), [`Error::SharedMemory`] (53200), [`Error::NothingToRetry`] (55000): another session
/// has launched one of its jobs again.
pub fn add_batch(memory: &mut Memory, new: &NewBatch) -> Result<BatchPtr, Error> {
    let uuid = new.uuid;
    get_or_create_root(memory)?;
    let mut texts = Vec::new();
    let request = append_text(&mut texts, Some(new.request));
    let name = append_text(&mut texts, new.name);
    let owner_name = append_text(&mut texts, Some(new.owner_name));
    let client = append_text(&mut texts, Some(new.client));
    let jobs: Vec<JobRecord> = new
        .jobs
        .iter()
        .map(|job| JobRecord {
            ordinal: job.ordinal,
            attempts: job.attempts,
            max_attempts: job.max_attempts,
            query: append_text(&mut texts, Some(job.query)),
            name: append_text(&mut texts, job.name),
            timeout: job.timeout.unwrap_or(0),
            retry_delay: job.retry_delay,
            state: State::Queued as u8,
            ..bytemuck::Zeroable::zeroed()
        })
        .collect();
    let bytes = size_of::<BatchRecord>() + jobs.len() * size_of::<JobRecord>() + texts.len();
    let is_stale = |new: &NewJob| {
        let known = places_of_job(memory, &uuid, new.ordinal).map(|(batch, index)| job(memory, batch, index));
        // Launched by another session since the caller has read it, and perhaps finished by now.
        known.filter(|job| job.is_logged != RELAUNCHED).any(|job| job.is_logged == 0 || job.attempts != new.attempts)
    };
    if new.jobs.iter().any(is_stale) {
        return Err(Error::NothingToRetry(error::DbText::new(&format_uuid(&uuid))));
    }
    // The jobs are launched again: their earlier states are in the log.
    remove_done(memory, &new.uuid);
    let limit = guc::queue_memory_limit();
    if used(memory) + bytes as u64 > limit {
        remove_done_batches(memory, true);
    }
    let used = used(memory);
    if used + bytes as u64 > limit {
        return Err(Error::QueueFull { wanted: bytes as u64, free: limit.saturating_sub(used), limit });
    }
    let mut pool = pools::get_or_create(memory, new.database, new.login)?;
    let allocate = |memory: &mut Memory| memory.allocate_with::<BatchRecord, JobRecord>(jobs.len(), texts.len());
    let mut allocated = allocate(memory);
    if allocated.is_none() {
        // Removing finished batches frees memory. Another session may have removed the pool while the lock was
        // released.
        remove_done_batches(memory, true);
        pool = pools::get_or_create(memory, new.database, new.login)?;
        allocated = allocate(memory);
    }
    let Some((batch, job_records, texts_at)) = allocated else {
        // Another session may have removed the pool.
        if let Some(pool) = pools::find(memory, new.database, new.login) {
            pools::remove_if_unused(memory, pool);
        }
        return Err(Error::SharedMemory);
    };
    let bucket = bucket(&new.uuid);
    let root_record = get_or_create_root(memory)?;
    root_record.used += bytes as u64;
    root_record.last_batch_number += 1;
    let (number, previous, next_in_bucket) =
        (root_record.last_batch_number, root_record.newest_batch, root_record.buckets[bucket]);
    root_record.buckets[bucket] = batch;
    root_record.newest_batch = batch;
    if previous.is_null() {
        root_record.oldest_batch = batch;
    } else {
        memory.get_mut(previous).following = batch;
    }
    memory.slice_mut(job_records).copy_from_slice(&jobs);
    memory.slice_mut(texts_at).copy_from_slice(&texts);
    memory.get_mut(pool).batches += 1;
    *memory.get_mut(batch) = BatchRecord {
        number,
        uuid: new.uuid,
        bytes: bytes as u64,
        pool,
        created: process::now(),
        jobs: jobs.len() as u32,
        owner: new.owner,
        database: new.database,
        encoding: session::encoding(),
        max_workers: new.max_workers.unwrap_or(u32::MAX),
        queued: jobs.len() as u32,
        is_sequential: u8::from(new.is_sequential),
        stops_on_error: u8::from(new.stops_on_error),
        is_confined: u16::from(new.is_confined),
        request,
        name,
        owner_name,
        client,
        job_records,
        texts: texts_at,
        previous,
        next_in_bucket,
        ..bytemuck::Zeroable::zeroed()
    };
    Ok(batch)
}

/// Returns the bytes of all batches, and of outcomes that are not in the log yet.
fn used(memory: &Memory) -> u64 {
    root(memory).map_or(0, |root| root.used)
}

/// Returns the batches that have a job, and its index in each: jobs that are launched again form another batch with the
/// same uuid.
fn places_of_job<'a>(memory: &'a Memory, uuid: &[u8; 16], ordinal: u32) -> impl Iterator<Item = (BatchPtr, u32)> + 'a {
    batches_of_uuid(memory, uuid).filter_map(move |batch| index_of(memory, batch, ordinal).map(|index| (batch, index)))
}

/// Opens a batch: from now on its jobs may run, and their records in other batches are out of date.
pub fn open_batch(memory: &mut Memory, batch: BatchPtr) {
    let uuid = memory.get(batch).uuid;
    let is_alone = batches_of_uuid(memory, &uuid).all(|at| at == batch);
    let ordinals: Vec<u32> =
        if is_alone { Vec::new() } else { jobs(memory, batch).iter().map(|job| job.ordinal).collect() };
    for ordinal in ordinals {
        let elsewhere: Vec<_> = places_of_job(memory, &uuid, ordinal).filter(|(at, _)| *at != batch).collect();
        for (at, index) in elsewhere {
            job_mut(memory, at, index).is_logged = RELAUNCHED;
        }
    }
    memory.get_mut(batch).is_open = 1;
    ready_lists::update_queue_state(memory, batch);
    // Followers of the uuid follow these jobs from now on.
    let batches: Vec<BatchPtr> = batches_of_uuid(memory, &uuid).collect();
    batches.into_iter().for_each(|batch| watchers::wake_all(memory, batch));
}

/// Removes a batch that was accepted just now, if no worker has begun to run or log it. Returns `false` if it stays.
pub fn discard_unstarted_batch(memory: &mut Memory, batch: BatchPtr, uuid: &[u8; 16]) -> bool {
    // By now it may have been finished and removed.
    let is_untouched = batches_of_uuid(memory, uuid).any(|at| at == batch) && {
        let record = memory.get(batch);
        (record.workers, record.log_writer, record.recorded_in) == (0, 0, 0) && record.queued == record.jobs
    };
    if is_untouched {
        remove(memory, batch);
    }
    is_untouched
}

/// Removes a batch.
pub fn remove(memory: &mut Memory, batch: BatchPtr) {
    watchers::wake_all(memory, batch);
    ready_lists::remove(memory, batch);
    let record = *memory.get(batch);
    outcomes::discard_of_batch(memory, batch);
    stopped_by::discard_of_batch(memory, batch);
    watchers::forget(memory, batch);
    let bucket = bucket(&record.uuid);
    let root = memory.root::<Root>();
    let first = memory.get(root).buckets[bucket];
    if first == batch {
        memory.get_mut(root).buckets[bucket] = record.next_in_bucket;
    } else {
        let mut at = first;
        while !at.is_null() {
            let next = memory.get(at).next_in_bucket;
            if next == batch {
                memory.get_mut(at).next_in_bucket = record.next_in_bucket;
                break;
            }
            at = next;
        }
    }
    match record.previous.some() {
        None => memory.get_mut(root).oldest_batch = record.following,
        Some(previous) => memory.get_mut(previous).following = record.following,
    }
    match record.following.some() {
        None => memory.get_mut(root).newest_batch = record.previous,
        Some(following) => memory.get_mut(following).previous = record.previous,
    }
    let root_record = memory.get_mut(root);
    root_record.used -= record.bytes;
    root_record.unlogged -= u64::from(record.unlogged > 0);
    memory.get_mut(record.pool).batches -= 1;
    memory.free(batch);
    pools::remove_if_unused(memory, record.pool);
}

/// Adjusts the batch's count of finished jobs whose final row is not written yet.
pub fn count_unlogged(memory: &mut Memory, batch: BatchPtr, change: i32) {
    let record = memory.get_mut(batch);
    let before = u64::from(record.unlogged > 0);
    record.unlogged = record.unlogged.saturating_add_signed(change);
    let after = u64::from(record.unlogged > 0);
    if let Some(root) = root_mut(memory) {
        root.unlogged = root.unlogged + after - before;
    }
}

/// Returns whether a batch may be removed. Its watchers must have seen how it ended.
fn is_done(record: &BatchRecord) -> bool {
    record.logged == record.jobs && record.workers == 0 && record.log_writer == 0 && record.watchers.is_null()
}

/// Returns whether a large batch has ended and is still to be removed. Its watchers will have seen its end soon.
pub fn is_large_one_done(memory: &Memory) -> bool {
    batches(memory)
        .map(|batch| memory.get(batch))
        .any(|record| record.bytes >= LARGE as u64 && record.logged == record.jobs)
}

/// Removes a batch that is finished and that every reader sees in the log by now.
pub fn remove_if_done(memory: &mut Memory, batch: BatchPtr) {
    let record = memory.get(batch);
    if is_done(record) && record.recorded_at + KEEP_FINISHED_BATCH <= process::now() {
        remove(memory, batch);
    }
}

/// Removes this process from the watchers of the jobs of the uuid.
pub fn unwatch(memory: &mut Memory, uuid: &[u8; 16]) {
    let batches: Vec<BatchPtr> = batches_of_uuid(memory, uuid).collect();
    unwatch_places(memory, batches);
}

/// Removes this process, which exits, from all watchers.
pub fn unwatch_all(memory: &mut Memory) {
    let batches: Vec<BatchPtr> = batches(memory).collect();
    unwatch_places(memory, batches);
}

fn unwatch_places(memory: &mut Memory, batches: Vec<BatchPtr>) {
    for batch in batches {
        if watchers::remove_own(memory, batch) {
            remove_if_done(memory, batch);
        }
    }
}

/// Removes the finished batches of a uuid, some of whose jobs are launched again.
pub fn remove_done(memory: &mut Memory, uuid: &[u8; 16]) {
    let done: Vec<BatchPtr> = batches_of_uuid(memory, uuid).filter(|batch| is_done(memory.get(*batch))).collect();
    done.into_iter().for_each(|batch| remove(memory, batch));
}

/// Removes finished batches that every reader sees in the log by now; `all`: also those that some readers may not see.
pub fn remove_done_batches(memory: &mut Memory, all: bool) {
    let now = process::now();
    let root = memory.root::<Root>();
    let swept_at = &mut memory.get_mut(root).swept_at;
    if !all && (0..SWEEP_EVERY).contains(&(now - *swept_at)) {
        return;
    }
    *swept_at = now;
    let oldest = now - KEEP_FINISHED_BATCH;
    let done: Vec<BatchPtr> = batches(memory)
        // Batches are in the order of their acceptance, and so roughly in that in which their rows were written.
        .take_while(|batch| all || memory.get(*batch).created <= oldest)
        .filter(|batch| {
            let record = memory.get(*batch);
            is_done(record) && (all || record.recorded_at <= oldest)
        })
        .collect();
    done.into_iter().for_each(|batch| remove(memory, batch));
}
