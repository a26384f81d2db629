//! Adds, opens and removes batches.

use crate::error::Error;
use crate::ffi::area::{Memory, LARGE};
use crate::ffi::dsa_ref::DsaArray;
use crate::ffi::{process, session};
use crate::ids::{BatchId, DatabaseId, RoleId};
use crate::registry::layout::{BatchPtr, BatchRecord, JobRecord, PoolPtr, Root, State, TextRef, RELAUNCHED};
use crate::registry::lists::{batches, batches_of, bucket, index_of, job, job_mut, jobs};
use crate::registry::root::{get_or_create_root, root, root_mut};
use crate::registry::{outcomes, pools, ready_lists, stopped_by, watchers};
use crate::{error, guc};
use std::time::Duration;

/// Time from the insertion of its rows for which a batch stays at least: statements with an older snapshot do not see
/// those rows.
const KEEP_FINISHED_BATCH: Duration = Duration::from_secs(5);
/// Interval between searches for finished batches.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

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
    pub uuid: BatchId,
    pub database: DatabaseId,
    pub login: RoleId,
    pub owner: RoleId,
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

/// Adds a batch. It is not visible, and none of its jobs runs, before [`open_batch`] opens it.
///
/// # Errors
/// [`Error::QueueFull`] (53400), [`Error::SharedMemory`] (53200), [`Error::NothingToRetry`] (55000): another session
/// has launched one of its jobs again.
pub fn add_batch(memory: &mut Memory, new: &NewBatch) -> Result<BatchPtr, Error> {
    get_or_create_root(memory)?;
    check_current(memory, new)?;
    let (record, jobs, texts) = records_of(new);
    // The jobs are launched again: their earlier states are in the log.
    remove_done(memory, new.uuid);
    check_limit(memory, record.bytes)?;
    let (pool, batch, job_records, texts_at) = allocate(memory, new, jobs.len(), texts.len())?;
    memory.slice_mut(job_records).copy_from_slice(&jobs);
    memory.slice_mut(texts_at).copy_from_slice(&texts);
    memory.get_mut(pool).batches += 1;
    *memory.get_mut(batch) = BatchRecord { pool, job_records, texts: texts_at, created: process::now(), ..record };
    append(memory, batch)?;
    Ok(batch)
}

/// Checks that no other session has launched one of the jobs again since the caller has read it.
///
/// # Errors
/// [`Error::NothingToRetry`] (55000)
fn check_current(memory: &Memory, new: &NewBatch) -> Result<(), Error> {
    let is_stale = |new_job: &NewJob| {
        let known = places_of_job(memory, new.uuid, new_job.ordinal).map(|(batch, index)| job(memory, batch, index));
        // It may have finished by now.
        known
            .filter(|job| job.is_logged != RELAUNCHED)
            .any(|job| job.is_logged == 0 || job.attempts != new_job.attempts)
    };
    match new.jobs.iter().any(is_stale) {
        true => Err(Error::NothingToRetry(error::DbText::new(new.uuid.to_string().as_bytes()))),
        false => Ok(()),
    }
}

/// Returns the records of a batch and of its jobs, and their texts; what is not known before they are allocated is
/// zero.
fn records_of(new: &NewBatch) -> (BatchRecord, Vec<JobRecord>, Vec<u8>) {
    let mut texts = Vec::new();
    let request = append_text(&mut texts, Some(new.request));
    let name = append_text(&mut texts, new.name);
    let owner_name = append_text(&mut texts, Some(new.owner_name));
    let client = append_text(&mut texts, Some(new.client));
    let job = |job: &NewJob| JobRecord {
        ordinal: job.ordinal,
        attempts: job.attempts,
        max_attempts: job.max_attempts,
        query: append_text(&mut texts, Some(job.query)),
        name: append_text(&mut texts, job.name),
        timeout: job.timeout.unwrap_or(0),
        retry_delay: job.retry_delay,
        state: State::Queued as u8,
        ..bytemuck::Zeroable::zeroed()
    };
    let jobs: Vec<JobRecord> = new.jobs.iter().map(job).collect();
    let record = BatchRecord {
        uuid: new.uuid,
        bytes: (size_of::<BatchRecord>() + jobs.len() * size_of::<JobRecord>() + texts.len()) as u64,
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
        ..bytemuck::Zeroable::zeroed()
    };
    (record, jobs, texts)
}

/// Checks that a batch of so many bytes fits into the queue, and removes finished batches if it does not.
///
/// # Errors
/// [`Error::QueueFull`] (53400)
fn check_limit(memory: &mut Memory, bytes: u64) -> Result<(), Error> {
    let limit = guc::queue_memory_limit();
    if used(memory) + bytes > limit {
        remove_done_batches(memory, true);
    }
    let used = used(memory);
    match used + bytes > limit {
        true => Err(Error::QueueFull { wanted: bytes, free: limit.saturating_sub(used), limit }),
        false => Ok(()),
    }
}

/// Allocates the record of a batch, with its jobs and texts, and finds its pool.
///
/// # Errors
/// [`Error::SharedMemory`] (53200)
fn allocate(
    memory: &mut Memory,
    new: &NewBatch,
    jobs: usize,
    text_bytes: usize,
) -> Result<(PoolPtr, BatchPtr, DsaArray<JobRecord>, DsaArray<u8>), Error> {
    let mut pool = pools::get_or_create(memory, new.database, new.login)?;
    let mut allocated = memory.allocate_with(jobs, text_bytes);
    if allocated.is_none() {
        // Removing finished batches frees memory. Another session may have removed the pool while the lock was
        // released.
        remove_done_batches(memory, true);
        pool = pools::get_or_create(memory, new.database, new.login)?;
        allocated = memory.allocate_with(jobs, text_bytes);
    }
    if let Some((batch, job_records, texts)) = allocated {
        return Ok((pool, batch, job_records, texts));
    }
    // Another session may have removed the pool.
    if let Some(pool) = pools::find(memory, new.database, new.login) {
        pools::remove_if_unused(memory, pool);
    }
    Err(Error::SharedMemory)
}

/// Gives a batch its number, and appends it to the list of all batches and to that of its bucket.
fn append(memory: &mut Memory, batch: BatchPtr) -> Result<(), Error> {
    let BatchRecord { uuid, bytes, .. } = *memory.get(batch);
    let root = get_or_create_root(memory)?;
    root.used += bytes;
    root.last_batch_number += 1;
    let number = root.last_batch_number;
    let next_in_bucket = std::mem::replace(&mut root.buckets[bucket(uuid)], batch);
    let previous = std::mem::replace(&mut root.newest_batch, batch);
    if previous.is_null() {
        root.oldest_batch = batch;
    }
    let record = memory.get_mut(batch);
    (record.number, record.previous, record.next_in_bucket) = (number, previous, next_in_bucket);
    if !previous.is_null() {
        memory.get_mut(previous).following = batch;
    }
    Ok(())
}

/// Returns the bytes of all batches, and of outcomes that are not in the log yet.
fn used(memory: &Memory) -> u64 {
    root(memory).map_or(0, |root| root.used)
}

/// Returns the batches that have a job, and its index in each: jobs that are launched again form another batch with the
/// same uuid.
fn places_of_job(memory: &Memory, uuid: BatchId, ordinal: u32) -> impl Iterator<Item = (BatchPtr, u32)> + '_ {
    batches_of(memory, uuid).filter_map(move |batch| index_of(memory, batch, ordinal).map(|index| (batch, index)))
}

/// Opens a batch: from now on its jobs may run, and their records in other batches are out of date.
pub fn open_batch(memory: &mut Memory, batch: BatchPtr) {
    let uuid = memory.get(batch).uuid;
    let is_alone = batches_of(memory, uuid).all(|at| at == batch);
    let ordinals: Vec<u32> =
        if is_alone { Vec::new() } else { jobs(memory, batch).iter().map(|job| job.ordinal).collect() };
    for ordinal in ordinals {
        let elsewhere: Vec<_> = places_of_job(memory, uuid, ordinal).filter(|(at, _)| *at != batch).collect();
        for (at, index) in elsewhere {
            job_mut(memory, at, index).is_logged = RELAUNCHED;
        }
    }
    memory.get_mut(batch).is_open = 1;
    ready_lists::update_queue_state(memory, batch);
    // Followers of the uuid follow these jobs from now on.
    let batches: Vec<BatchPtr> = batches_of(memory, uuid).collect();
    batches.into_iter().for_each(|batch| watchers::wake_all(memory, batch));
}

/// Removes a batch that was accepted just now, if no worker has begun to run or log it. Returns `false` if it stays.
pub fn discard_unstarted_batch(memory: &mut Memory, batch: BatchPtr, uuid: BatchId) -> bool {
    // By now it may have been finished and removed.
    let is_untouched = batches_of(memory, uuid).any(|at| at == batch) && {
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
    let bucket = bucket(record.uuid);
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
pub fn unwatch(memory: &mut Memory, uuid: BatchId) {
    let batches: Vec<BatchPtr> = batches_of(memory, uuid).collect();
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
pub fn remove_done(memory: &mut Memory, uuid: BatchId) {
    let done: Vec<BatchPtr> = batches_of(memory, uuid).filter(|batch| is_done(memory.get(*batch))).collect();
    done.into_iter().for_each(|batch| remove(memory, batch));
}

/// Removes finished batches that every reader sees in the log by now; `all`: also those that some readers may not see.
pub fn remove_done_batches(memory: &mut Memory, all: bool) {
    let now = process::now();
    let root = memory.root::<Root>();
    let swept_at = &mut memory.get_mut(root).swept_at;
    if !all && (*swept_at..*swept_at + SWEEP_INTERVAL).contains(&now) {
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
