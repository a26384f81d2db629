//! Making a worker as it was when it had logged in (discard.c, `DiscardAll`; postgres.c).

use crate::compat::{self, role_oid};
use crate::ffi::{guc, role, sys, transaction};
use crate::ids::RoleId;
use pgrx::pg_sys;

/// Forgets what a job has left in the session. Inside a transaction of its own, before any other work.
pub fn session() {
    // As a client's DISCARD ALL has one, which toasted catalog values are read with. Whatever the isolation level of
    // the job was: others wait, or keep what they have read.
    transaction::read_committed();
    // SAFETY: a transaction is open; popped below, or by its abort.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    // SAFETY: the functions and their order are those of DISCARD ALL, which may run in any session; there is no open
    // transaction block. Cached plans stay: the plan cache checks role, row security and search path itself.
    unsafe {
        pg_sys::PortalHashTableDeleteAll();
        pg_sys::SetPGVariable(c"session_authorization".as_ptr(), std::ptr::null_mut(), false);
        pg_sys::ResetAllOptions();
        pg_sys::DropAllPreparedStatements();
        sys::Async_UnlistenAll();
        pg_sys::LockReleaseAll(pg_sys::USER_LOCKMETHOD as _, true);
        pg_sys::ResetTempTableNamespace();
        sys::ResetSequenceCaches();
    }
    // ALTER ROLE and ALTER DATABASE can set one for each login; which one a job has its launcher says.
    if role::is_set() {
        guc::set_role(b"none");
    }
    compat::process::cleanup_replication_slots();
    forget_replication_origin();
    reseed();
    // SAFETY: pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
}

/// Ends the use of a replication origin, which marks all that the session writes as replicated (origin.c,
/// `pg_replication_origin_session_reset`).
fn forget_replication_origin() {
    // SAFETY: variables of this process; the function fails only if there is none.
    unsafe {
        if sys::replorigin_session_origin != 0 {
            sys::replorigin_session_reset();
            sys::replorigin_session_origin = 0;
            sys::replorigin_session_origin_lsn = 0;
            sys::replorigin_session_origin_timestamp = 0;
        }
    }
}

/// Returns whether the job has left what only the end of the process takes back: a base backup that is not finished
/// (xlogfuncs.c), or something in a library.
pub fn is_spent() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe {
        pg_sys::get_backup_status() != pg_sys::SessionBackupState::SESSION_BACKUP_NONE
            || crate::ffi::library::may_keep_state()
    }
}

/// Makes the seed of `random()` unknown again, as in a new session: a job may have called `setseed`.
fn reseed() {
    let random = i32::from_ne_bytes(crate::ffi::random::random_bytes());
    let seed = f64::from(random) / (f64::from(i32::MAX) + 1.0);
    let seed = pg_sys::Datum::from(seed.clamp(-1.0, 1.0).to_bits());
    // SAFETY: a function of the server with one float8, which is passed by value on all platforms that pgrx knows.
    unsafe { pg_sys::OidFunctionCall1Coll(pg_sys::F_SETSEED.into(), pg_sys::Oid::INVALID, seed) };
}

/// Returns whether the identity is that of the login.
pub fn is_login(login: RoleId) -> bool {
    let login = role_oid(login);
    // SAFETY: these read variables of this process.
    unsafe {
        pg_sys::GetSessionUserId() == login
            && pg_sys::GetUserId() == login
            && pg_sys::GetOuterUserId() == login
            && pg_sys::GetCurrentRoleId() == pg_sys::Oid::INVALID
            && !pg_sys::InLocalUserIdChange()
    }
}
