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
