//! Batches come and go.

use crate::error::Error;
use crate::ffi::area::{Memory, LARGE};
use crate::ffi::{process, session};
use crate::registry::layout::{BatchPtr, BatchRecord, JobRecord, Root, State, TextRef, RELAUNCHED};
use crate::registry::lists::{batches, batches_of_uuid, bucket, index_of, job, job_mut, jobs};
use crate::registry::root::{get_or_create_root, root, root_mut};
use crate::registry::{outcomes, pools, ready_lists, stopped_by, watchers};
use crate::{error, guc};

/// Time that a batch that is done stays after its rows were written, in microseconds: for statements with an older
/// snapshot.
const KEEP_FINISHED_BATCH: i64 = 5_000_000;
/// Interval at which batches that are done are looked for, in microseconds.
const SWEEP_EVERY: i64 = 500_000;

/// A job of a new batch.
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

/// A new batch.
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

/// Adds a batch. Nobody sees it and none of its jobs runs before it is [`open_batch`]ed.
///
/// # Errors
/// [`Error::QueueFull`] (53400), [`Error::SharedMemory`] (53200), [`Error::NothingToRetry`] (55000): somebody else has
/// launched one of its jobs again.
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
        let known = places_of_job(memory, &uuid, new.ordinal).map(|(place, index)| job(memory, place, index));
        // Launched by somebody else since the caller looked, and perhaps at its end by now.
        known.filter(|job| job.is_logged != RELAUNCHED).any(|job| job.is_logged == 0 || job.attempts != new.attempts)
    };
    if new.jobs.iter().any(is_stale) {
        return Err(Error::NothingToRetry(error::DbText::new(&format_uuid(&uuid))));
    }
    // Jobs that are launched again: what they were before is in the table.
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
        // What is done and lingers makes room; somebody else may have forgotten the pool.
        remove_done_batches(memory, true);
        pool = pools::get_or_create(memory, new.database, new.login)?;
        allocated = allocate(memory);
    }
    let Some((place, job_records, texts_at)) = allocated else {
        // Somebody else may have forgotten it.
        if let Some(pool) = pools::find(memory, new.database, new.login) {
            pools::remove_if_unused(memory, pool);
        }
        return Err(Error::SharedMemory);
    };
    let bucket = bucket(&new.uuid);
    let record = get_or_create_root(memory)?;
    record.used += bytes as u64;
    record.last_batch_number += 1;
    let (number, previous, next_in_bucket) = (record.last_batch_number, record.newest_batch, record.buckets[bucket]);
    record.buckets[bucket] = place;
    record.newest_batch = place;
    if previous.is_null() {
        record.oldest_batch = place;
    } else {
        memory.get_mut(previous).following = place;
    }
    memory.slice_mut(job_records).copy_from_slice(&jobs);
    memory.slice_mut(texts_at).copy_from_slice(&texts);
    memory.get_mut(pool).batches += 1;
    *memory.get_mut(place) = BatchRecord {
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
    Ok(place)
}

/// Returns the bytes that all batches take.
fn used(memory: &Memory) -> u64 {
    root(memory).map_or(0, |root| root.used)
}

/// Finds where a job is: jobs of a batch that are launched again are a batch beside it, with the same uuid.
fn places_of_job<'a>(memory: &'a Memory, uuid: &[u8; 16], ordinal: u32) -> impl Iterator<Item = (BatchPtr, u32)> + 'a {
    batches_of_uuid(memory, uuid).filter_map(move |place| index_of(memory, place, ordinal).map(|index| (place, index)))
}

/// Opens a batch: from now on its jobs may run, and are not looked for elsewhere.
pub fn open_batch(memory: &mut Memory, place: BatchPtr) {
    let uuid = memory.get(place).uuid;
    let is_alone = batches_of_uuid(memory, &uuid).all(|at| at == place);
    let ordinals: Vec<u32> =
        if is_alone { Vec::new() } else { jobs(memory, place).iter().map(|job| job.ordinal).collect() };
    for ordinal in ordinals {
        let elsewhere: Vec<_> = places_of_job(memory, &uuid, ordinal).filter(|(at, _)| *at != place).collect();
        for (at, index) in elsewhere {
            job_mut(memory, at, index).is_logged = RELAUNCHED;
        }
    }
    memory.get_mut(place).is_open = 1;
    ready_lists::update_queue_state(memory, place);
    // Who follows the uuid follows these jobs from now on.
    let places: Vec<BatchPtr> = batches_of_uuid(memory, &uuid).collect();
    places.into_iter().for_each(|place| watchers::wake_all(memory, place));
}

/// Forgets a batch that was accepted just now, if nobody has begun to see to it. False = it goes on.
pub fn discard_unstarted_batch(memory: &mut Memory, place: BatchPtr, uuid: &[u8; 16]) -> bool {
    // By now it may have been done, and forgotten.
    let is_untouched = batches_of_uuid(memory, uuid).any(|at| at == place) && {
        let batch = memory.get(place);
        (batch.workers, batch.log_writer, batch.recorded_in) == (0, 0, 0) && batch.queued == batch.jobs
    };
    if is_untouched {
        remove(memory, place);
    }
    is_untouched
}

/// Forgets a batch.
pub fn remove(memory: &mut Memory, place: BatchPtr) {
    watchers::wake_all(memory, place);
    ready_lists::remove(memory, place);
    let batch = *memory.get(place);
    outcomes::discard_of_batch(memory, place);
    stopped_by::discard_of_batch(memory, place);
    watchers::forget(memory, place);
    let bucket = bucket(&batch.uuid);
    let root = memory.root::<Root>();
    let first = memory.get(root).buckets[bucket];
    if first == place {
        memory.get_mut(root).buckets[bucket] = batch.next_in_bucket;
    } else {
        let mut at = first;
        while !at.is_null() {
            let next = memory.get(at).next_in_bucket;
            if next == place {
                memory.get_mut(at).next_in_bucket = batch.next_in_bucket;
                break;
            }
            at = next;
        }
    }
    match batch.previous.some() {
        None => memory.get_mut(root).oldest_batch = batch.following,
        Some(previous) => memory.get_mut(previous).following = batch.following,
    }
    match batch.following.some() {
        None => memory.get_mut(root).newest_batch = batch.previous,
        Some(following) => memory.get_mut(following).previous = batch.previous,
    }
    let record = memory.get_mut(root);
    record.used -= batch.bytes;
    record.unlogged -= u64::from(batch.unlogged > 0);
    memory.get_mut(batch.pool).batches -= 1;
    memory.free(place);
    pools::remove_if_unused(memory, batch.pool);
}

/// There are more jobs, or fewer, that have ended and have no final row.
pub fn count_unlogged(memory: &mut Memory, place: BatchPtr, change: i32) {
    let batch = memory.get_mut(place);
    let before = u64::from(batch.unlogged > 0);
    batch.unlogged = batch.unlogged.saturating_add_signed(change);
    let after = u64::from(batch.unlogged > 0);
    if let Some(root) = root_mut(memory) {
        root.unlogged = root.unlogged + after - before;
    }
}

/// Returns whether a batch may be forgotten. Whoever watches it still wants to see how it ended.
fn is_done(batch: &BatchRecord) -> bool {
    batch.logged == batch.jobs && batch.workers == 0 && batch.log_writer == 0 && batch.watchers.is_null()
}

/// Returns whether there is a large batch that has ended, and is still to be forgotten. Whoever watches it will have
/// looked soon.
pub fn is_large_one_done(memory: &Memory) -> bool {
    batches(memory)
        .map(|place| memory.get(place))
        .any(|batch| batch.bytes >= LARGE as u64 && batch.logged == batch.jobs)
}

pub fn remove_if_done(memory: &mut Memory, place: BatchPtr) {
    let record = memory.get(place);
    if is_done(record) && record.recorded_at + KEEP_FINISHED_BATCH <= process::now() {
        remove(memory, place);
    }
}

/// Stops watching the jobs of the uuid, for this process.
pub fn unwatch(memory: &mut Memory, uuid: &[u8; 16]) {
    let places: Vec<BatchPtr> = batches_of_uuid(memory, uuid).collect();
    unwatch_places(memory, places);
}

/// Stops watching anything, for this process, which ends.
pub fn unwatch_all(memory: &mut Memory) {
    let places: Vec<BatchPtr> = batches(memory).collect();
    unwatch_places(memory, places);
}

fn unwatch_places(memory: &mut Memory, places: Vec<BatchPtr>) {
    for place in places {
        if watchers::remove_own(memory, place) {
            remove_if_done(memory, place);
        }
    }
}

/// Forgets what is done of a batch that has jobs that are launched again.
pub fn remove_done(memory: &mut Memory, uuid: &[u8; 16]) {
    let done: Vec<BatchPtr> = batches_of_uuid(memory, uuid).filter(|place| is_done(memory.get(*place))).collect();
    done.into_iter().for_each(|place| remove(memory, place));
}

/// Forgets batches that are done and that every reader sees in the table by now; `all` = whether or not.
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
        // They are in the order of their acceptance, so of their recording, more or less.
        .take_while(|place| all || memory.get(*place).created <= oldest)
        .filter(|place| {
            let batch = memory.get(*place);
            is_done(batch) && (all || batch.recorded_at <= oldest)
        })
        .collect();
    done.into_iter().for_each(|place| remove(memory, place));
}
