//! Locks, and the processes that wait for them (lockfuncs.c).

use crate::ffi::raise::internal_error;
use crate::ids::DatabaseId;
use pgrx::{pg_sys, FromDatum};

/// Returns the processes that keep this one from getting the lock that it waits for: those that hold it, and those that
/// wait before it.
pub fn blocking_pids(pid: i32) -> Vec<i32> {
    // SAFETY: a function of the server, called with an int4; it gives an int4[] without NULLs.
    unsafe {
        let function = pg_sys::Oid::from(pg_sys::F_PG_BLOCKING_PIDS);
        let pids = pg_sys::OidFunctionCall1Coll(function, pg_sys::Oid::INVALID, pg_sys::Datum::from(pid));
        Vec::<i32>::from_datum(pids, false).unwrap_or_else(|| internal_error("pg_blocking_pids gave NULL"))
    }
}

/// Returns whether another session wants this database for itself (DROP, RENAME, TEMPLATE; dbcommands.c): sessions that
/// are idle in it are in its way.
pub fn is_database_wanted() -> bool {
    // As SET_LOCKTAG_OBJECT makes it.
    let tag = pg_sys::LOCKTAG {
        locktag_field1: 0,
        locktag_field2: crate::compat::oid_to_u32(pg_sys::DatabaseRelationId),
        // SAFETY: a variable of this process.
        locktag_field3: crate::compat::oid_to_u32(unsafe { pg_sys::MyDatabaseId }),
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    with_lock(&tag, pg_sys::RowExclusiveLock, || ()).is_none()
}

/// Runs `body` with a lock, taken for the session without waiting, and released afterwards. Returns `None` if another
/// session has a lock that conflicts. `body` raises no error: the lock would stay until the session ends or is reset.
fn with_lock<T>(tag: &pg_sys::LOCKTAG, mode: u32, body: impl FnOnce() -> T) -> Option<T> {
    // SAFETY: a complete lock tag.
    let outcome = unsafe { pg_sys::LockAcquire(tag, mode as i32, true, true) };
    if outcome == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
        return None;
    }
    let value = body();
    // SAFETY: it is held since.
    unsafe { pg_sys::LockRelease(tag, mode as i32, true) };
    Some(value)
}

/// Returns the lock of a key, among those that transactions do not release (lock.h; the server uses the type for
/// nothing else).
fn tag_of_key(key: u64) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        locktag_field1: (key >> 32) as u32,
        locktag_field2: key as u32,
        locktag_field3: 0,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_USERLOCK as u8,
        locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
    }
}

/// Takes the lock of a random key until the session ends or is reset.
pub fn take_key(key: u64) {
    // SAFETY: a complete lock tag; nobody else has this key, so there is nothing to wait for.
    unsafe { pg_sys::LockAcquire(&tag_of_key(key), pg_sys::ExclusiveLock as i32, true, true) };
}

/// Returns whether another session has the lock of a key.
pub fn is_key_taken(key: u64) -> bool {
    with_lock(&tag_of_key(key), pg_sys::ShareLock, || ()).is_none()
}

/// Runs `body`, which raises no error, with a lock of a database, which no other session has then. Returns `None` if
/// another session has it.
pub fn while_alone<T>(number: u32, database: DatabaseId, body: impl FnOnce() -> T) -> Option<T> {
    let key = u64::from(number) << 32 | u64::from(database.oid());
    with_lock(&tag_of_key(key), pg_sys::ExclusiveLock, body)
}

/// Takes the lock that reading a table needs, if no other session is in the way.
pub fn try_to_read(table: u32) -> bool {
    // SAFETY: inside a transaction, which the lock belongs to; numbers of relations that are gone may be locked.
    unsafe { pg_sys::ConditionalLockRelationOid(table.into(), pg_sys::AccessShareLock as i32) }
}

/// Takes every lock that a change of a table's rows needs. `waits`: for the table itself; never for its parts, so that
/// sessions that hold nothing else are in no other's way (deadlocks). Returns `false` if another session has one of
/// them, or the table is gone.
pub fn try_to_write(table: u32, waits: bool) -> bool {
    // SAFETY: inside a transaction, which the locks belong to; numbers of relations that are gone may be locked.
    unsafe {
        if waits {
            pg_sys::LockRelationOid(table.into(), pg_sys::RowExclusiveLock as i32);
        } else if !try_lock(table.into()) {
            return false;
        }
        let Some(toast) = lock_indexes(table.into()) else { return false };
        toast == pg_sys::Oid::INVALID || try_lock(toast) && lock_indexes(toast).is_some()
    }
}

/// Takes the lock that a sequence needs to be used. Returns `false` if another session has one.
pub fn try_to_use(sequence: u32) -> bool {
    // SAFETY: inside a transaction, which the lock belongs to.
    unsafe { try_lock(sequence.into()) }
}

/// # Safety
/// Inside a transaction.
unsafe fn try_lock(relation: pg_sys::Oid) -> bool {
    // SAFETY: by contract.
    unsafe { pg_sys::ConditionalLockRelationOid(relation, pg_sys::RowExclusiveLock as i32) }
}

/// Locks the indexes of a table; returns its TOAST table, or `None` if another session has a lock on one of them or the
/// table is gone.
///
/// # Safety
/// Inside a transaction that has locked the table.
unsafe fn lock_indexes(table: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: by contract; the entry and the list, a copy, are given back.
    unsafe {
        let relation = pg_sys::RelationIdGetRelation(table);
        if relation.is_null() {
            return None;
        }
        let toast = (*(*relation).rd_rel).reltoastrelid;
        let list = pg_sys::RelationGetIndexList(relation);
        pg_sys::RelationClose(relation);
        let indexes = crate::compat::exec::list_of_oids(list);
        pg_sys::list_free(list);
        indexes.into_iter().all(|index| try_lock(index)).then_some(toast)
    }
}
