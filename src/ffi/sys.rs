//! Functions, variables and constants of the server that `pg_sys` lacks, or has with a guard where none may be.
//!
//! pgrx binds the headers that it includes; each of these is in another one, which is named. What has not the same form
//! in every version is in `compat`.

#![allow(non_snake_case, non_upper_case_globals, reason = "the server's names")]

use pgrx::pg_sys;
use std::ffi::c_int;

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    // utils/timeout.h
    pub fn enable_timeout_at(id: c_int, time: pg_sys::TimestampTz);
    pub fn disable_timeout(id: c_int, keep_indicator: bool);
    pub fn disable_all_timeouts(keep_indicators: bool);
    // commands/async.h
    pub fn Async_UnlistenAll();
    // commands/matview.h
    pub fn SetMatViewPopulatedState(relation: pg_sys::Relation, is_populated: bool);
    // commands/sequence.h
    pub fn nextval_internal(sequence: pg_sys::Oid, checks_rights: bool) -> i64;
    pub fn ResetSequenceCaches();
    // replication/origin.h
    pub fn replorigin_session_reset();
    // utils/inval.h
    pub fn AcceptInvalidationMessages();
    pub fn InvalidateSystemCaches();
}

extern "C" {
    // storage/pmsignal.h; cannot raise.
    pub fn PostmasterIsAliveInternal() -> bool;
    // replication/origin.h
    pub static mut replorigin_session_origin: u16;
    pub static mut replorigin_session_origin_lsn: pg_sys::XLogRecPtr;
    pub static mut replorigin_session_origin_timestamp: pg_sys::TimestampTz;
}

/// Functions without a guard (utils/elog.h): that of pgrx 0.18.1 would reduce the error that is raised.
pub mod unguarded {
    use pgrx::pg_sys;
    extern "C-unwind" {
        pub fn ThrowErrorData(edata: *mut pg_sys::ErrorData);
        pub fn ReThrowError(edata: *mut pg_sys::ErrorData) -> !;
    }
}

/// Number of a timeout (utils/timeout.h, `TimeoutId`); the order up to here is the same in every version.
pub const STATEMENT_TIMEOUT: c_int = 3;
/// Number of a lock of the server (storage/lwlocknames.h), the same in every version.
pub const AddinShmemInitLock: usize = 21;
/// Oids (catalog/pg_db_role_setting.h).
pub const DbRoleSettingRelationId: pg_sys::Oid = pg_sys::Oid::from_u32(2964);
pub const DbRoleSettingDatidRolidIndexId: u32 = 2965;
