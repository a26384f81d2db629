//! Facts about this process and its session (globals.c, miscinit.c).

pub use crate::compat::process::applies_as_table_owner;
use crate::compat::{database_of_oid, database_oid, process, role_oid};
use crate::error::DbText;
use crate::ids::{DatabaseId, RoleId};
use pgrx::pg_sys;
use std::ffi::CStr;
use std::time::Duration;

/// Returns this process's id.
pub fn pid() -> i32 {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::MyProcPid }
}

/// Returns whether this process has a postmaster, which starts background workers; not in single-user mode.
pub fn has_postmaster() -> bool {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::IsUnderPostmaster }
}

/// Returns the database of this session.
pub fn database() -> DatabaseId {
    // SAFETY: a variable of this process.
    database_of_oid(unsafe { pg_sys::MyDatabaseId })
}

/// Returns the encoding of this session's database.
pub fn encoding() -> u32 {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::GetDatabaseEncoding() as u32 }
}

/// Returns `deadlock_timeout`.
pub fn deadlock_timeout() -> Duration {
    // SAFETY: a setting of this process, in milliseconds.
    Duration::from_millis(unsafe { pg_sys::DeadlockTimeout }.max(1) as u64)
}

/// Returns `work_mem` in bytes.
pub fn work_mem() -> usize {
    // SAFETY: a setting of this process, in kilobytes.
    (unsafe { pg_sys::work_mem } as usize).saturating_mul(1024)
}

/// Returns `temp_file_limit` in bytes, or `None` if there is no limit.
pub fn temp_file_limit() -> Option<usize> {
    // SAFETY: a setting of this process, in kilobytes; -1 = no limit.
    usize::try_from(unsafe { pg_sys::temp_file_limit }).ok().map(|limit| limit.saturating_mul(1024))
}

/// Returns the text that the client sent and that runs now.
pub fn current_query() -> Option<Vec<u8>> {
    // SAFETY: null or a C string.
    unsafe { crate::ffi::alloc::copy_c_string(pg_sys::debug_query_string) }
}

/// Returns the kind of this process if it must not launch jobs.
pub fn forbidden_kind() -> Option<&'static str> {
    // SAFETY: a variable of this process.
    if unsafe { pg_sys::ParallelWorkerNumber } >= 0 {
        Some("a parallel worker")
    } else if process::is_autovacuum_worker() {
        Some("an autovacuum worker")
    } else if process::is_walsender() {
        Some("a walsender")
    } else {
        None
    }
}

/// Connects this worker to a database as a role; both are checked as a login's are, except for the password
/// (postinit.c, `InitPostgres`). A refusal ends the process.
pub fn connect(database: DatabaseId, role: RoleId) {
    // SAFETY: called once, at the start of a worker.
    unsafe { pg_sys::BackgroundWorkerInitializeConnectionByOid(database_oid(database), role_oid(role), 0) };
}

/// Loads `session_preload_libraries` and `local_preload_libraries`, as a session does when it starts.
pub fn load_session_libraries() {
    // SAFETY: called once, after connecting, outside of a transaction.
    unsafe { pg_sys::process_session_preload_libraries() };
}

/// Cuts a text to at most `limit` bytes, at a character of the database's encoding (mbutils.c).
pub fn clip(text: &[u8], limit: usize) -> &[u8] {
    if text.len() <= limit {
        return text;
    }
    // SAFETY: reads at most that many bytes.
    let length = unsafe { pg_sys::pg_mbcliplen(text.as_ptr().cast(), text.len() as i32, limit as i32) };
    text.get(..length.max(0) as usize).unwrap_or(text)
}

/// Part of a user's text that an error shows, in bytes: an error is copied where nothing may fail.
const SHOWN_BYTES: usize = 200;

/// Returns a text of a user, which may be of any length, as an error shows it.
pub fn shown(text: &[u8]) -> DbText {
    DbText::new(clip(text, SHOWN_BYTES))
}

/// Returns the number of characters of a text (mbutils.c).
pub fn characters(text: &[u8]) -> usize {
    // SAFETY: reads at most that many bytes.
    unsafe { pg_sys::pg_mbstrlen_with_len(text.as_ptr().cast(), text.len() as i32) }.max(0) as usize
}

/// Bytes that the first characters of a text take (mbutils.c).
pub fn bytes_of_characters(text: &[u8], characters: usize) -> usize {
    if text.get(..characters).is_some_and(<[u8]>::is_ascii) {
        return characters;
    }
    let characters = characters.min(text.len()) as i32;
    // SAFETY: reads at most that many bytes.
    unsafe { pg_sys::pg_mbcharcliplen(text.as_ptr().cast(), text.len() as i32, characters) }.max(0) as usize
}

/// Returns whether the text is valid in the database's encoding.
pub fn is_valid_text(text: &[u8]) -> bool {
    // SAFETY: reads that many bytes; "no error" makes it answer instead of raising.
    unsafe { pg_sys::pg_verifymbstr(text.as_ptr().cast(), text.len() as i32, true) }
}

/// Returns the name of a role, or `None` if it is gone.
pub fn role_name(role: RoleId) -> Option<Vec<u8>> {
    // SAFETY: "missing is ok" gives null; the name is a C string.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role_oid(role), true);
        (!name.is_null()).then(|| CStr::from_ptr(name).to_bytes().to_vec())
    }
}

/// Returns whether the session that registered this background worker still lives.
pub fn launcher_lives() -> bool {
    // SAFETY: a worker has an entry; the lookup takes and releases a lock.
    unsafe { !pg_sys::BackendPidGetProc((*pg_sys::MyBgworkerEntry).bgw_notify_pid).is_null() }
}

/// Returns the name of a database, or `None` if it is gone. Inside a transaction.
pub fn database_name(database: DatabaseId) -> Option<Vec<u8>> {
    // SAFETY: a catalog lookup, which gives a C string or null.
    unsafe {
        let name = pg_sys::get_database_name(database_oid(database));
        (!name.is_null()).then(|| crate::ffi::alloc::copy_c_string(name)).flatten()
    }
}

/// Runs `body` as if no script of an extension ran: what it grants are not rights that the extension comes with
/// (aclchk.c, `recordExtensionInitPriv`). An error in it ends the script, and the server leaves it (extension.c,
/// `execute_extension_script`).
pub fn outside_of_script(body: impl FnOnce()) {
    // SAFETY: a variable of this process; a script that runs goes on after it.
    let before = unsafe { pg_sys::creating_extension };
    // SAFETY: as above.
    unsafe { pg_sys::creating_extension = false };
    body();
    // SAFETY: as above.
    unsafe { pg_sys::creating_extension = before };
}
