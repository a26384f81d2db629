//! The libraries that a worker has loaded: which of them a job may have left something in (dfmgr.c).

use crate::ffi::guc::loaded_libraries;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::CStr;

/// Libraries of the server that keep nothing of a session but caches and settings, and settings are reset. Conversions
/// of encodings, which have `_and_` in their names, are as such.
const STATELESS: &[&str] = &[
    // Of the server itself.
    "plpgsql",
    "dict_snowball",
    "llvmjit",
    "pgoutput",
    "libpqwalreceiver",
    // Types, operators, index support.
    "bloom",
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "hstore",
    "_int",
    "ltree",
    "pg_trgm",
    "seg",
    // Functions.
    "fuzzystrmatch",
    "pgcrypto",
    "tablefunc",
    "unaccent",
    "uuid-ossp",
    "pgxml",
    "sslinfo",
    "dict_int",
    "dict_xsyn",
    "tsm_system_rows",
    "tsm_system_time",
    // What looks at the server.
    "amcheck",
    "auto_explain",
    "file_fdw",
    "pageinspect",
    "pg_buffercache",
    "pg_freespacemap",
    "pg_prewarm",
    "pg_stat_statements",
    "pg_visibility",
    "pg_walinspect",
    "pgrowlocks",
    "pgstattuple",
    "test_decoding",
    // Triggers.
    "autoinc",
    "insert_username",
    "lo",
    "moddatetime",
    "refint",
    "tcn",
];

/// Libraries whose connections to other servers outlive a transaction: also one that each session has may have been
/// used.
const CONNECTING: &[&str] = &["dblink", "postgres_fdw"];

thread_local! {
    /// Libraries that were there before the first job.
    static FIRST: ProcessCell<Vec<Vec<u8>>> = const { process_cell(Vec::new()) };
    /// Size of the list of libraries, and whether something may be left with a list of this size.
    static KNOWN: Cell<(usize, bool)> = const { Cell::new((0, false)) };
}

/// Remembers what is loaded before the first job, which every session of the role has.
pub fn remember() {
    FIRST.set(names());
    KNOWN.set((0, false));
}

/// Returns whether a job may have left something in a library that no reset takes back: one that it has loaded and that
/// is not known to keep nothing, or one that connects to other servers.
pub fn may_keep_state() -> bool {
    // SAFETY: reads the list of this process. Nothing is ever taken off it, so it is the same as long as its size is.
    let size = unsafe { pg_sys::EstimateLibraryStateSpace() };
    let (known, answer) = KNOWN.get();
    if known == size {
        return answer;
    }
    let answer = FIRST.with_borrow(|first| {
        names().iter().any(|path| {
            let name = name_of(path);
            CONNECTING.contains(&name) || !(first.contains(path) || is_of_server(path) && is_stateless(name))
        })
    });
    KNOWN.set((size, answer));
    answer
}

fn is_stateless(name: &str) -> bool {
    STATELESS.contains(&name) || name.contains("_and_")
}

/// Returns the files of the loaded libraries.
fn names() -> Vec<Vec<u8>> {
    loaded_libraries().split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Returns the name of a library, without directory and suffix.
fn name_of(path: &[u8]) -> &str {
    let file = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let name = std::str::from_utf8(file).unwrap_or_default(); // no library that is known has such a name
    name.rsplit_once('.').map_or(name, |(name, _)| name)
}

/// Returns whether the file is in the directory of the server's libraries: others may have libraries of the same names.
fn is_of_server(path: &[u8]) -> bool {
    // SAFETY: a C string that the server has set when it started.
    let directory = unsafe { CStr::from_ptr((&raw const pg_sys::pkglib_path).cast()) }.to_bytes();
    let rest = path.strip_prefix(directory).and_then(|rest| rest.strip_prefix(b"/"));
    rest.is_some_and(|file| !file.contains(&b'/'))
}
