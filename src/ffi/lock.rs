//! Who waits for whom (lockfuncs.c).

use pgrx::{pg_sys, FromDatum};

/// `pg_blocking_pids(integer)`: its oid is fixed.
const F_PG_BLOCKING_PIDS: u32 = 2561;

/// The processes that keep this one from getting the lock that it waits for: those that hold it, and those that wait
/// before it.
pub fn blocking_pids(pid: i32) -> Vec<i32> {
    // SAFETY: a function of the server, called with an int4; it gives an int4[] without NULLs.
    unsafe {
        let function = pg_sys::Oid::from(F_PG_BLOCKING_PIDS);
        let pids = pg_sys::OidFunctionCall1Coll(function, pg_sys::Oid::INVALID, pg_sys::Datum::from(pid));
        Vec::<i32>::from_datum(pids, false).unwrap_or_default()
    }
}

/// Does somebody want this database for himself (DROP, RENAME, TEMPLATE; dbcommands.c)? Then who only sits in it is in the
/// way.
pub fn is_database_wanted() -> bool {
    // SAFETY: a lock tag as SET_LOCKTAG_OBJECT makes it; the lock is the session's, taken without waiting, and given
    // back at once.
    unsafe {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: 0,
            locktag_field2: DATABASE_RELATION,
            locktag_field3: crate::compat::oid_to_u32(pg_sys::MyDatabaseId),
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        };
        let mode = pg_sys::RowExclusiveLock as i32;
        let outcome = pg_sys::LockAcquire(&tag, mode, true, true);
        if outcome == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
            return true;
        }
        pg_sys::LockRelease(&tag, mode, true);
        false
    }
}

/// Takes the lock that reading a table needs, if nobody is in the way.
pub fn try_to_read(table: &[u8]) -> bool {
    let sql = [
        b"SELECT '".as_slice(),
        &table.iter().flat_map(|byte| double(*byte)).collect::<Vec<u8>>(),
        b"'::pg_catalog.regclass::pg_catalog.oid",
    ]
    .concat();
    let oid = super::spi::query(&sql, &[], false).pop().and_then(|mut row| row.pop()).flatten();
    let oid: u32 = oid.and_then(|oid| std::str::from_utf8(&oid).ok()?.parse().ok()).unwrap_or(0);
    // SAFETY: the table exists; the lock belongs to the transaction.
    oid != 0 && unsafe { pg_sys::ConditionalLockRelationOid(oid.into(), pg_sys::AccessShareLock as i32) }
}

/// A byte of a literal.
fn double(byte: u8) -> impl Iterator<Item = u8> {
    std::iter::repeat_n(byte, if byte == b'\'' { 2 } else { 1 })
}

/// `pg_database`: its oid is fixed.
const DATABASE_RELATION: u32 = 1262;
