//! Names of the roles that stopped jobs, kept with the batch until the log has them.

use crate::ffi::area::Memory;
use crate::ffi::dsa_ref::DsaPtr;
use crate::ffi::session;
use crate::registry::layout::{BatchPtr, JobRecord, StopRequester};
use crate::registry::lists;

/// Returns the number of a role among those that have stopped jobs of the batch, and adds the role if it is missing.
/// Returns `None` if there is no memory for it: then anything that the caller has read may have changed
/// ([`Memory::allocate`]).
pub fn requester_number(memory: &mut Memory, batch: BatchPtr, role: &[u8]) -> Option<u32> {
    let mut role = role.to_vec();
    if memory.get(batch).encoding != session::encoding() {
        // The batch's texts are in its own encoding.
        role.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    }
    if let Some(known) = requesters(memory, batch).find(|at| name(memory, *at) == role) {
        return Some(memory.get(known).number);
    }
    let (requester, _, name) = memory.allocate_with::<StopRequester, u8>(0, role.len())?;
    memory.slice_mut(name).copy_from_slice(&role);
    let next = memory.get(batch).stop_requesters;
    let number = next.some().map_or(1, |next| memory.get(next).number + 1);
    *memory.get_mut(requester) = StopRequester { next, name, number, ..bytemuck::Zeroable::zeroed() };
    memory.get_mut(batch).stop_requesters = requester;
    Some(number)
}

/// Returns the name of the role that stopped this job of the batch, or `None` if it is unknown.
pub fn of_job<'a>(memory: &'a Memory, batch: BatchPtr, job: &JobRecord) -> Option<&'a [u8]> {
    let requester = requesters(memory, batch).find(|at| memory.get(*at).number == job.stop_requester)?;
    Some(name(memory, requester))
}

/// Frees the names of the roles that have stopped jobs of a batch.
pub fn discard_of_batch(memory: &mut Memory, batch: BatchPtr) {
    let requesters: Vec<DsaPtr<StopRequester>> = requesters(memory, batch).collect();
    requesters.into_iter().for_each(|requester| memory.free(requester));
    memory.get_mut(batch).stop_requesters = DsaPtr::NULL;
}

/// Returns the roles that have stopped jobs of a batch, the most recent first.
fn requesters(memory: &Memory, batch: BatchPtr) -> impl Iterator<Item = DsaPtr<StopRequester>> + '_ {
    lists::chain(memory.get(batch).stop_requesters, |requester| memory.get(requester).next)
}

fn name(memory: &Memory, requester: DsaPtr<StopRequester>) -> &[u8] {
    memory.slice(memory.get(requester).name)
}
