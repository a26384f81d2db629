//! Batches come and go.

use crate::error::Error;
use crate::ffi::area::{Memory, LARGE};
use crate::ffi::{process, session};
use crate::registry::layout::{BatchRecord, JobRecord, Place, Pool, Root, State, TextRef, RELAUNCHED};
use crate::registry::lists::{batches, batches_of_uuid, bucket, index_of, job, job_mut, jobs, pools};
use crate::registry::{outcomes, ready_lists, root, stopped_by, watchers};
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
pub fn add_batch(memory: &mut Memory, new: &NewBatch) -> Result<Place, Error> {
    let (root, uuid) = (root(memory)?, new.uuid);
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
    if memory.get::<Root>(root).used + bytes as u64 > limit {
        remove_done_batches(memory, true);
    }
    let used = memory.get::<Root>(root).used;
    if used + bytes as u64 > limit {
        return Err(Error::QueueFull { wanted: bytes as u64, free: limit.saturating_sub(used), limit });
    }
    let mut pool = self::get_or_create_pool(memory, new.database, new.login)?;
    let mut place = memory.allocate(bytes);
    if place.is_none() {
        // What is done and lingers makes room; somebody else may have forgotten the pool.
        remove_done_batches(memory, true);
        pool = self::get_or_create_pool(memory, new.database, new.login)?;
        place = memory.allocate(bytes);
    }
    let Some(place) = place else {
        // Somebody else may have forgotten it.
        if let Some(pool) = find_pool(memory, new.database, new.login) {
            forget_pool(memory, pool);
        }
        return Err(Error::SharedMemory);
    };
    let jobs_at = place + size_of::<BatchRecord>() as u64;
    let texts_at = jobs_at + (jobs.len() * size_of::<JobRecord>()) as u64;
    let bucket = bucket(&new.uuid);
    let record = memory.get_mut::<Root>(root);
    record.used += bytes as u64;
    record.last_batch_number += 1;
    let (number, previous, next_in_bucket) = (record.last_batch_number, record.newest_batch, record.buckets[bucket]);
    record.buckets[bucket] = place;
    record.newest_batch = place;
    if previous == 0 {
        record.oldest_batch = place;
    } else {
        memory.get_mut::<BatchRecord>(previous).following = place;
    }
    memory.slice_mut::<JobRecord>(jobs_at, jobs.len()).copy_from_slice(&jobs);
    memory.slice_mut::<u8>(texts_at, texts.len()).copy_from_slice(&texts);
    memory.get_mut::<Pool>(pool).batches += 1;
    *memory.get_mut::<BatchRecord>(place) = BatchRecord {
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
        texts: texts_at,
        previous,
        next_in_bucket,
        ..bytemuck::Zeroable::zeroed()
    };
    Ok(place)
}

/// Finds where a job is: jobs of a batch that are launched again are a batch beside it, with the same uuid.
fn places_of_job<'a>(memory: &'a Memory, uuid: &[u8; 16], ordinal: u32) -> impl Iterator<Item = (Place, u32)> + 'a {
    batches_of_uuid(memory, uuid).filter_map(move |place| index_of(memory, place, ordinal).map(|index| (place, index)))
}

/// Opens a batch: from now on its jobs may run, and are not looked for elsewhere.
pub fn open_batch(memory: &mut Memory, place: Place) {
    let uuid = memory.get::<BatchRecord>(place).uuid;
    let is_alone = batches_of_uuid(memory, &uuid).all(|at| at == place);
    let ordinals: Vec<u32> =
        if is_alone { Vec::new() } else { jobs(memory, place).iter().map(|job| job.ordinal).collect() };
    for ordinal in ordinals {
        let elsewhere: Vec<_> = places_of_job(memory, &uuid, ordinal).filter(|(at, _)| *at != place).collect();
        for (at, index) in elsewhere {
            job_mut(memory, at, index).is_logged = RELAUNCHED;
        }
    }
    memory.get_mut::<BatchRecord>(place).is_open = 1;
    ready_lists::update_queue_state(memory, place);
    // Who follows the uuid follows these jobs from now on.
    let places: Vec<Place> = batches_of_uuid(memory, &uuid).collect();
    places.into_iter().for_each(|place| watchers::wake_all(memory, place));
}

/// Forgets a batch that was accepted just now, if nobody has begun to see to it. False = it goes on.
pub fn discard_unstarted_batch(memory: &mut Memory, place: Place, uuid: &[u8; 16]) -> bool {
    // By now it may have been done, and forgotten.
    let is_untouched = batches_of_uuid(memory, uuid).any(|at| at == place) && {
        let batch = memory.get::<BatchRecord>(place);
        (batch.workers, batch.log_writer, batch.recorded_in) == (0, 0, 0) && batch.queued == batch.jobs
    };
    if is_untouched {
        remove(memory, place);
    }
    is_untouched
}

/// Forgets a batch.
pub fn remove(memory: &mut Memory, place: Place) {
    watchers::wake_all(memory, place);
    ready_lists::remove(memory, place);
    let batch = *memory.get::<BatchRecord>(place);
    outcomes::discard_of_batch(memory, place);
    stopped_by::discard_of_batch(memory, place);
    watchers::forget(memory, place);
    let bucket = bucket(&batch.uuid);
    let root = memory.root();
    let first = memory.get::<Root>(root).buckets[bucket];
    if first == place {
        memory.get_mut::<Root>(root).buckets[bucket] = batch.next_in_bucket;
    } else {
        let mut at = first;
        while at != 0 {
            let next = memory.get::<BatchRecord>(at).next_in_bucket;
            if next == place {
                memory.get_mut::<BatchRecord>(at).next_in_bucket = batch.next_in_bucket;
                break;
            }
            at = next;
        }
    }
    match batch.previous {
        0 => memory.get_mut::<Root>(root).oldest_batch = batch.following,
        previous => memory.get_mut::<BatchRecord>(previous).following = batch.following,
    }
    match batch.following {
        0 => memory.get_mut::<Root>(root).newest_batch = batch.previous,
        following => memory.get_mut::<BatchRecord>(following).previous = batch.previous,
    }
    let record = memory.get_mut::<Root>(root);
    record.used -= batch.bytes;
    record.unlogged -= u64::from(batch.unlogged > 0);
    memory.get_mut::<Pool>(batch.pool).batches -= 1;
    memory.free(place);
    forget_pool(memory, batch.pool);
}

/// The pool of workers that can run jobs of this role in this database.
pub fn get_or_create_pool(memory: &mut Memory, database: u32, login: u32) -> Result<Place, Error> {
    let root = root(memory)?;
    if let Some(found) = find_pool(memory, database, login) {
        return Ok(found);
    }
    let place = memory.allocate(size_of::<Pool>()).ok_or(Error::SharedMemory)?;
    let next = memory.get::<Root>(root).pools;
    *memory.get_mut::<Pool>(place) = Pool { next, database, login, ..bytemuck::Zeroable::zeroed() };
    memory.get_mut::<Root>(root).pools = place;
    Ok(place)
}

fn find_pool(memory: &Memory, database: u32, login: u32) -> Option<Place> {
    pools(memory).find(|place| {
        let pool = memory.get::<Pool>(*place);
        pool.database == database && pool.login == login
    })
}

/// Forgets a pool that nobody has any use for.
pub fn forget_pool(memory: &mut Memory, place: Place) {
    let pool = *memory.get::<Pool>(place);
    if pool.batches > 0 || pool.workers > 0 {
        return;
    }
    let before = pools(memory).find(|at| memory.get::<Pool>(*at).next == place);
    match before {
        Some(before) => memory.get_mut::<Pool>(before).next = pool.next,
        None => {
            let root = memory.root();
            memory.get_mut::<Root>(root).pools = pool.next;
        }
    }
    memory.free(place);
}

/// There are more jobs, or fewer, that have ended and have no final row.
pub fn count_unlogged(memory: &mut Memory, place: Place, change: i32) {
    let batch = memory.get_mut::<BatchRecord>(place);
    let before = u64::from(batch.unlogged > 0);
    batch.unlogged = batch.unlogged.saturating_add_signed(change);
    let after = u64::from(batch.unlogged > 0);
    let root = memory.root();
    let root = memory.get_mut::<Root>(root);
    root.unlogged = root.unlogged + after - before;
}

/// Returns whether a batch may be forgotten. Whoever watches it still wants to see how it ended.
fn is_done(batch: &BatchRecord) -> bool {
    batch.logged == batch.jobs && batch.workers == 0 && batch.log_writer == 0 && batch.watchers == 0
}

/// Returns whether there is a large batch that has ended, and is still to be forgotten. Whoever watches it will have
/// looked soon.
pub fn is_large_one_done(memory: &Memory) -> bool {
    batches(memory)
        .map(|place| memory.get::<BatchRecord>(place))
        .any(|batch| batch.bytes >= LARGE as u64 && batch.logged == batch.jobs)
}

pub fn remove_if_done(memory: &mut Memory, place: Place) {
    let record = memory.get::<BatchRecord>(place);
    if is_done(record) && record.recorded_at + KEEP_FINISHED_BATCH <= process::now() {
        remove(memory, place);
    }
}

/// Stops watching the jobs of the uuid, for this process.
pub fn unwatch(memory: &mut Memory, uuid: &[u8; 16]) {
    let places: Vec<Place> = batches_of_uuid(memory, uuid).collect();
    unwatch_places(memory, places);
}

/// Stops watching anything, for this process, which ends.
pub fn unwatch_all(memory: &mut Memory) {
    let places: Vec<Place> = batches(memory).collect();
    unwatch_places(memory, places);
}

fn unwatch_places(memory: &mut Memory, places: Vec<Place>) {
    for place in places {
        if watchers::remove_own(memory, place) {
            remove_if_done(memory, place);
        }
    }
}

/// Forgets what is done of a batch that has jobs that are launched again.
pub fn remove_done(memory: &mut Memory, uuid: &[u8; 16]) {
    let done: Vec<Place> =
        batches_of_uuid(memory, uuid).filter(|place| is_done(memory.get::<BatchRecord>(*place))).collect();
    done.into_iter().for_each(|place| remove(memory, place));
}

/// Forgets batches that are done and that every reader sees in the table by now; `all` = whether or not.
pub fn remove_done_batches(memory: &mut Memory, all: bool) {
    let now = process::now();
    let root = memory.root();
    let swept_at = &mut memory.get_mut::<Root>(root).swept_at;
    if !all && (0..SWEEP_EVERY).contains(&(now - *swept_at)) {
        return;
    }
    *swept_at = now;
    let oldest = now - KEEP_FINISHED_BATCH;
    let done: Vec<Place> = batches(memory)
        // They are in the order of their acceptance, so of their recording, more or less.
        .take_while(|place| all || memory.get::<BatchRecord>(*place).created <= oldest)
        .filter(|place| {
            let batch = memory.get::<BatchRecord>(*place);
            is_done(batch) && (all || batch.recorded_at <= oldest)
        })
        .collect();
    done.into_iter().for_each(|place| remove(memory, place));
}
