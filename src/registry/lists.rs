//! Lists of the registry's records, and access to the jobs and the texts of a batch.

use crate::ffi::area::Memory;
use crate::ffi::dsa_ref::DsaPtr;
use crate::registry::layout::{BatchPtr, JobRecord, PoolPtr, TextRef, BUCKETS};
use crate::registry::root::root;

/// Returns the records of a list, from `first` on.
pub fn chain<T>(first: DsaPtr<T>, next: impl Fn(DsaPtr<T>) -> DsaPtr<T>) -> impl Iterator<Item = DsaPtr<T>> {
    std::iter::successors(first.some(), move |record| next(*record).some())
}

/// Returns all pools.
pub fn pools(memory: &Memory) -> impl Iterator<Item = PoolPtr> + '_ {
    chain(root(memory).map_or(PoolPtr::NULL, |root| root.pools), |pool| memory.get(pool).next)
}

/// Returns all batches, oldest first.
pub fn batches(memory: &Memory) -> impl Iterator<Item = BatchPtr> + '_ {
    chain(root(memory).map_or(BatchPtr::NULL, |root| root.oldest_batch), |batch| memory.get(batch).following)
}

/// Returns the batches of a pool that have queued jobs: the ready ones, oldest first, then the delayed ones.
pub fn queued_batches(memory: &Memory, pool: PoolPtr) -> impl Iterator<Item = BatchPtr> + '_ {
    let pool = memory.get(pool);
    let lists = [pool.ready_head, pool.delayed_head].into_iter();
    lists.flat_map(|first| chain(first, |batch| memory.get(batch).next_in_queue))
}

/// Returns the batches whose uuid, or whose jobs' uuids, differ from this one in the last four bytes only.
pub fn batches_of_uuid<'a>(memory: &'a Memory, uuid: &[u8; 16]) -> impl Iterator<Item = BatchPtr> + 'a {
    let (prefix, bucket) = (batch_prefix(uuid), bucket(uuid));
    let first = root(memory).map_or(BatchPtr::NULL, |root| root.buckets[bucket]);
    chain(first, |batch| memory.get(batch).next_in_bucket)
        .filter(move |batch| self::batch_prefix(&memory.get(*batch).uuid) == prefix)
}

fn batch_prefix(uuid: &[u8; 16]) -> [u8; 12] {
    uuid.first_chunk().copied().unwrap_or_default()
}

/// Returns the index of the bucket that has the batches of a uuid.
pub fn bucket(uuid: &[u8; 16]) -> usize {
    // The prefix is random: any of its bytes will do.
    usize::from(u16::from_ne_bytes([uuid[2], uuid[3]])) % BUCKETS
}

/// Returns the jobs of a batch.
pub fn jobs(memory: &Memory, batch: BatchPtr) -> &[JobRecord] {
    memory.slice(memory.get(batch).job_records)
}

/// Returns a job of a batch.
/// Caller: `index` comes from the registry.
pub fn job(memory: &Memory, batch: BatchPtr, index: u32) -> &JobRecord {
    &jobs(memory, batch)[index as usize]
}

/// Returns a job of a batch, to be changed.
/// Caller: `index` comes from the registry.
pub fn job_mut(memory: &mut Memory, batch: BatchPtr, index: u32) -> &mut JobRecord {
    let jobs = memory.get(batch).job_records;
    &mut memory.slice_mut(jobs)[index as usize]
}

/// Returns a text of a batch, or `None` if it is not set.
pub fn bytes(memory: &Memory, batch: BatchPtr, text: TextRef) -> Option<&[u8]> {
    let start = text.offset as usize;
    (text.is_set != 0).then(|| memory.slice(memory.get(batch).texts).get(start..start + text.length as usize)).flatten()
}

/// Returns the uuid of the job with this ordinal, or that of the batch for ordinal 0.
pub fn job_uuid(prefix: &[u8; 16], ordinal: u32) -> [u8; 16] {
    let mut uuid = *prefix;
    if let Some(last) = uuid.last_chunk_mut::<4>() {
        *last = ordinal.to_be_bytes();
    }
    uuid
}

/// Returns the ordinal in a uuid; 0 means that the uuid is that of a batch.
pub fn ordinal_of(uuid: &[u8; 16]) -> u32 {
    uuid.last_chunk::<4>().map_or(0, |last| u32::from_be_bytes(*last))
}

/// Returns the index of the job with this ordinal, or `None` if it is not in the batch.
pub fn index_of(memory: &Memory, batch: BatchPtr, ordinal: u32) -> Option<u32> {
    jobs(memory, batch).binary_search_by_key(&ordinal, |job| job.ordinal).ok().map(|index| index as u32)
}
