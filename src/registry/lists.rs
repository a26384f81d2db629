//! The lists that the registry's records make, and what lies behind the record of a batch: its jobs, its texts.

use crate::ffi::area::Memory;
use crate::ffi::dsa_ref::DsaPtr;
use crate::registry::layout::{BatchPtr, JobRecord, PoolPtr, TextRef, BUCKETS};
use crate::registry::root::root;

/// A list of records from its first one on.
pub fn chain<T>(first: DsaPtr<T>, next: impl Fn(DsaPtr<T>) -> DsaPtr<T>) -> impl Iterator<Item = DsaPtr<T>> {
    std::iter::successors(first.some(), move |record| next(*record).some())
}

/// Returns all pools.
pub fn pools(memory: &Memory) -> impl Iterator<Item = PoolPtr> + '_ {
    chain(root(memory).map_or(PoolPtr::NULL, |root| root.pools), |pool| memory.get(pool).next)
}

/// All batches, oldest first.
pub fn batches(memory: &Memory) -> impl Iterator<Item = BatchPtr> + '_ {
    chain(root(memory).map_or(BatchPtr::NULL, |root| root.oldest_batch), |batch| memory.get(batch).following)
}

/// Batches with queued jobs of a pool: those that wait for a worker, oldest first, then those that wait for their time.
pub fn queued_batches(memory: &Memory, pool: PoolPtr) -> impl Iterator<Item = BatchPtr> + '_ {
    let pool = memory.get(pool);
    let lists = [pool.ready_head, pool.delayed_head].into_iter();
    lists.flat_map(|first| chain(first, |batch| memory.get(batch).next_in_queue))
}

/// Batches whose uuid or whose jobs' uuids differ from this one in the last four bytes only.
pub fn batches_of_uuid<'a>(memory: &'a Memory, uuid: &[u8; 16]) -> impl Iterator<Item = BatchPtr> + 'a {
    let (stem, bucket) = (batch_prefix(uuid), bucket(uuid));
    let first = root(memory).map_or(BatchPtr::NULL, |root| root.buckets[bucket]);
    chain(first, |batch| memory.get(batch).next_in_bucket)
        .filter(move |batch| self::batch_prefix(&memory.get(*batch).uuid) == stem)
}

fn batch_prefix(uuid: &[u8; 16]) -> [u8; 12] {
    uuid.first_chunk().copied().unwrap_or_default()
}

/// Returns the index of the bucket with the batches of such a uuid.
pub fn bucket(uuid: &[u8; 16]) -> usize {
    // The stem is random: any of its bytes will do.
    usize::from(u16::from_ne_bytes([uuid[2], uuid[3]])) % BUCKETS
}

/// Returns the jobs of a batch.
pub fn jobs(memory: &Memory, batch: BatchPtr) -> &[JobRecord] {
    memory.slice(memory.get(batch).job_records)
}

/// Returns one of its jobs. The index is one that the registry gave.
pub fn job(memory: &Memory, batch: BatchPtr, index: u32) -> &JobRecord {
    &jobs(memory, batch)[index as usize]
}

/// Returns one of its jobs, to be changed.
pub fn job_mut(memory: &mut Memory, batch: BatchPtr, index: u32) -> &mut JobRecord {
    let jobs = memory.get(batch).job_records;
    &mut memory.slice_mut(jobs)[index as usize]
}

/// Returns one of its texts.
pub fn bytes(memory: &Memory, batch: BatchPtr, text: TextRef) -> Option<&[u8]> {
    let start = text.offset as usize;
    (text.is_set != 0).then(|| memory.slice(memory.get(batch).texts).get(start..start + text.length as usize)).flatten()
}

/// The uuid of the job with this ordinal; 0 = of the batch itself.
pub fn job_uuid(stem: &[u8; 16], ordinal: u32) -> [u8; 16] {
    let mut uuid = *stem;
    if let Some(last) = uuid.last_chunk_mut::<4>() {
        *last = ordinal.to_be_bytes();
    }
    uuid
}

/// The ordinal in a uuid; 0 = it is that of a batch.
pub fn ordinal_of(uuid: &[u8; 16]) -> u32 {
    uuid.last_chunk::<4>().map_or(0, |last| u32::from_be_bytes(*last))
}

/// The index of the job with this ordinal.
pub fn index_of(memory: &Memory, place: BatchPtr, ordinal: u32) -> Option<u32> {
    jobs(memory, place).binary_search_by_key(&ordinal, |job| job.ordinal).ok().map(|index| index as u32)
}
