//! Pools: the workers of one login role in one database, and the batches whose jobs they can run.

use crate::error::Error;
use crate::ffi::area::Memory;
use crate::ids::{DatabaseId, RoleId};
use crate::registry::layout::{Pool, PoolPtr};
use crate::registry::lists::pools;
use crate::registry::root::{get_or_create_root, root_mut};

/// Returns the pool of this login role in this database, and creates it if there is none.
///
/// # Errors
/// [`Error::SharedMemory`] (53200)
pub fn get_or_create(memory: &mut Memory, database: DatabaseId, login: RoleId) -> Result<PoolPtr, Error> {
    get_or_create_root(memory)?;
    if let Some(found) = find(memory, database, login) {
        return Ok(found);
    }
    let pool = memory.allocate::<Pool>().ok_or(Error::SharedMemory)?;
    let root = get_or_create_root(memory)?;
    let next = std::mem::replace(&mut root.pools, pool);
    *memory.get_mut(pool) = Pool { next, database, login, ..bytemuck::Zeroable::zeroed() };
    Ok(pool)
}

/// Returns the pool of this login role in this database, or `None` if there is none.
pub fn find(memory: &Memory, database: DatabaseId, login: RoleId) -> Option<PoolPtr> {
    pools(memory).find(|pool| {
        let pool = memory.get(*pool);
        (pool.database, pool.login) == (database, login)
    })
}

/// Removes a pool, if it has neither workers nor batches.
pub fn remove_if_unused(memory: &mut Memory, pool: PoolPtr) {
    let Pool { next, batches, workers, .. } = *memory.get(pool);
    if batches > 0 || workers > 0 {
        return;
    }
    let before = pools(memory).find(|before| memory.get(*before).next == pool);
    match before {
        Some(before) => memory.get_mut(before).next = next,
        None => {
            if let Some(root) = root_mut(memory) {
                root.pools = next;
            }
        }
    }
    memory.free(pool);
}
