//! Lists of the registry's records, and access to the jobs and the texts of a batch.

use crate::ffi::area::Memory;
use crate::ffi::dsa_ref::DsaPtr;
use crate::ids::BatchId;
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

/// Returns the batches with this identifier: jobs that are launched again are a batch of their own.
pub fn batches_of(memory: &Memory, id: BatchId) -> impl Iterator<Item = BatchPtr> + '_ {
    let first = root(memory).map_or(BatchPtr::NULL, |root| root.buckets[bucket(id)]);
    chain(first, |batch| memory.get(batch).next_in_bucket).filter(move |batch| memory.get(*batch).uuid == id)
}

/// Returns whether a batch that was found before is still in the registry: its reference is followed only then.
pub fn is_there(memory: &Memory, batch: BatchPtr, id: BatchId) -> bool {
    batches_of(memory, id).any(|at| at == batch)
}

/// Returns the index of the bucket that has the batches with this identifier.
pub fn bucket(id: BatchId) -> usize {
    // It is random: any of its bytes will do.
    let bytes = id.bytes();
    usize::from(u16::from_ne_bytes([bytes[2], bytes[3]])) % BUCKETS
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

/// Returns the index of the job with this ordinal, or `None` if it is not in the batch.
pub fn index_of(memory: &Memory, batch: BatchPtr, ordinal: u32) -> Option<u32> {
    jobs(memory, batch).binary_search_by_key(&ordinal, |job| job.ordinal).ok().map(|index| index as u32)
}
