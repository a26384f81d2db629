//! Roles that stopped jobs.

use crate::ffi::area::Memory;
use crate::ffi::session;
use crate::registry::layout::{BatchRecord, JobRecord, Place, StopRequester};
use crate::registry::lists;

/// The number of a role among those that have stopped jobs of the batch. 0 = there is no memory for it.
pub fn requester_number(memory: &mut Memory, batch: Place, role: &[u8]) -> u32 {
    let mut role = role.to_vec();
    if memory.get::<BatchRecord>(batch).encoding != session::encoding() {
        // The batch's texts are in its own encoding.
        role.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    }
    if let Some(known) = all(memory, batch).find(|at| name(memory, *at) == role) {
        return memory.get::<StopRequester>(known).number;
    }
    let Some(place) = memory.allocate(size_of::<StopRequester>() + role.len()) else { return 0 };
    let next = memory.get::<BatchRecord>(batch).stop_requesters;
    let number = if next == 0 { 1 } else { memory.get::<StopRequester>(next).number + 1 };
    *memory.get_mut::<StopRequester>(place) = StopRequester { next, number, length: role.len() as u32 };
    memory.slice_mut::<u8>(place + size_of::<StopRequester>() as u64, role.len()).copy_from_slice(&role);
    memory.get_mut::<BatchRecord>(batch).stop_requesters = place;
    number
}

/// The name of the role that stopped this job of the batch.
pub fn of_job<'a>(memory: &'a Memory, batch: Place, job: &JobRecord) -> Option<&'a [u8]> {
    let place = all(memory, batch).find(|at| memory.get::<StopRequester>(*at).number == job.stop_requester)?;
    Some(name(memory, place))
}

/// Forgets those of a batch.
pub fn discard_of_batch(memory: &mut Memory, batch: Place) {
    let places: Vec<Place> = all(memory, batch).collect();
    places.into_iter().for_each(|place| memory.free(place));
    memory.get_mut::<BatchRecord>(batch).stop_requesters = 0;
}

/// The last one first.
fn all(memory: &Memory, batch: Place) -> impl Iterator<Item = Place> + '_ {
    lists::chain(memory.get::<BatchRecord>(batch).stop_requesters, |stopper| memory.get::<StopRequester>(stopper).next)
}

fn name(memory: &Memory, place: Place) -> &[u8] {
    let length = memory.get::<StopRequester>(place).length;
    memory.slice(place + size_of::<StopRequester>() as u64, length as usize)
}
