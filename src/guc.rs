//! The settings `pg_background_mgr.*`.

use crate::error::{DbText, Error};
use crate::ffi::guc::{define_int, own_settings_given, reserve_prefix, IntDefinition, IntSetting, Scope, Unit};
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::{dsm, guc};
use std::time::Duration;

/// Workers of the extension in the whole server; -1 = as many as `max_worker_processes` and `reserved_workers` leave.
static MAX_WORKERS: IntSetting = IntSetting::new(-1);
static RESERVED_WORKERS: IntSetting = IntSetting::new(2);
/// kB
static QUEUE_MEMORY_LIMIT: IntSetting = IntSetting::new(64 * 1024);
/// kB
static LOG_RESULT_LIMIT: IntSetting = IntSetting::new(64);
/// ms
static WORKER_IDLE_TIMEOUT: IntSetting = IntSetting::new(10_000);
/// -1 = an eighth of the segments of the server.
static MAX_UNREAD_RESULTS: IntSetting = IntSetting::new(-1);
/// kB
static MAX_RESULT_MEMORY: IntSetting = IntSetting::new(256 * 1024);
/// s; -1 = for ever
static LOG_RETENTION: IntSetting = IntSetting::new(-1);

thread_local! {
    /// A setting of which a value that was given for this session was refused.
    static REFUSED: ProcessCell<Option<Vec<u8>>> = const { process_cell(None) };
}

/// Defines the settings. Called once a process.
pub fn define() {
    let given = own_settings_given();
    DEFINITIONS.iter().for_each(define_int);
    reserve_prefix(c"pg_background_mgr");
    if !given.is_empty() {
        let accepted = own_settings_given();
        let is_refused = |name: &Vec<u8>| !accepted.contains(name) && guc::value(name).is_some();
        REFUSED.set(given.into_iter().find(is_refused));
    }
}

/// Raises an error where the values of the settings are not those of the configuration.
///
/// # Errors
/// [`Error::SettingRefused`] (55P02): before the library is loaded, a client may give any value, in place of that of
/// the configuration, which this process does not know then.
pub fn check() -> Result<(), Error> {
    REFUSED.with_borrow(|name| name.as_ref().map_or(Ok(()), |name| Err(Error::SettingRefused(DbText::new(name)))))
}

/// The settings.
const DEFINITIONS: [IntDefinition; 8] = [
    IntDefinition {
        name: c"pg_background_mgr.max_workers",
        short: c"Sets the maximum number of background workers of pg_background_mgr in the whole server.",
        long: c"-1 means max_worker_processes - pg_background_mgr.reserved_workers.",
        setting: &MAX_WORKERS,
        bounds: (-1, 262_143),
        scope: Scope::Server,
        unit: Unit::None,
    },
    IntDefinition {
        name: c"pg_background_mgr.reserved_workers",
        short: c"Sets the number of background processes that pg_background_mgr leaves to others.",
        long: c"",
        setting: &RESERVED_WORKERS,
        bounds: (0, 262_143),
        scope: Scope::Server,
        unit: Unit::None,
    },
    IntDefinition {
        name: c"pg_background_mgr.queue_memory_limit",
        short: c"Sets the maximum shared memory that queued and running jobs take.",
        long: c"",
        setting: &QUEUE_MEMORY_LIMIT,
        bounds: (64, i32::MAX),
        scope: Scope::Server,
        unit: Unit::Kilobytes,
    },
    IntDefinition {
        name: c"pg_background_mgr.log_result_limit",
        short: c"Sets how much of a job's rows the log keeps.",
        long: c"Whole rows are kept, as many as fit.",
        setting: &LOG_RESULT_LIMIT,
        bounds: (0, 1024 * 1024),
        scope: Scope::Superuser,
        unit: Unit::Kilobytes,
    },
    IntDefinition {
        name: c"pg_background_mgr.max_unread_results",
        short: c"Sets the maximum number of unread results of a session that are in dynamic shared memory.",
        long: c"-1 means an eighth of the segments that the server may have.",
        setting: &MAX_UNREAD_RESULTS,
        bounds: (-1, i32::MAX),
        scope: Scope::Superuser,
        unit: Unit::None,
    },
    IntDefinition {
        name: c"pg_background_mgr.max_result_memory",
        short: c"Sets the maximum memory for unread results of a session.",
        long: c"This counts the queue_size of each job, and the bytes of small results that are in the session's own \
              memory.",
        setting: &MAX_RESULT_MEMORY,
        bounds: (64, i32::MAX),
        scope: Scope::Superuser,
        unit: Unit::Kilobytes,
    },
    IntDefinition {
        name: c"pg_background_mgr.worker_idle_timeout",
        short: c"Sets how long a worker waits for another job.",
        long: c"",
        setting: &WORKER_IDLE_TIMEOUT,
        bounds: (0, i32::MAX),
        scope: Scope::Server,
        unit: Unit::Milliseconds,
    },
    IntDefinition {
        name: c"pg_background_mgr.log_retention",
        short: c"Sets how long the log keeps jobs that have ended.",
        long: c"-1 means for ever.",
        setting: &LOG_RETENTION,
        bounds: (-1, i32::MAX),
        scope: Scope::Server,
        unit: Unit::Seconds,
    },
];

/// Returns the maximum number of workers of the extension in the whole server.
pub fn cap() -> usize {
    let automatic = crate::ffi::bgworker::max_worker_processes() - RESERVED_WORKERS.get();
    let cap = match MAX_WORKERS.get() {
        limit if limit >= 0 => limit.min(automatic),
        _ => automatic,
    };
    usize::try_from(cap).unwrap_or(0)
}

/// Returns the number of workers that may be idle for more than a moment: half of what there may be, so that others who
/// want processes, as parallel queries, find some.
pub fn half_cap() -> usize {
    match cap() {
        0 => 0,
        cap => (cap / 2).max(1),
    }
}

/// Returns the number of workers that may have nothing to do and stay.
pub fn idle_limit() -> usize {
    match WORKER_IDLE_TIMEOUT.get() {
        0 => 0,
        _ => half_cap(),
    }
}

/// Bytes
pub fn queue_memory_limit() -> u64 {
    u64::try_from(QUEUE_MEMORY_LIMIT.get()).unwrap_or(0) * 1024
}

/// Bytes
pub fn log_result_limit() -> usize {
    usize::try_from(LOG_RESULT_LIMIT.get()).unwrap_or(0) * 1024
}

/// Returns how many results in shared memory a session may leave unread.
pub fn max_unread_results() -> usize {
    usize::try_from(MAX_UNREAD_RESULTS.get()).unwrap_or_else(|_| dsm::most_segments() / 8)
}

/// Returns how many bytes a session's queues and its unread results may have.
pub fn max_result_memory() -> usize {
    usize::try_from(MAX_RESULT_MEMORY.get()).unwrap_or(0).saturating_mul(1024)
}

/// Returns how long a worker stays that has nothing to do.
pub fn worker_idle_timeout() -> Duration {
    Duration::from_millis(u64::try_from(WORKER_IDLE_TIMEOUT.get()).unwrap_or(0))
}

/// Returns how long rows are kept, or `None` if for ever.
pub fn log_retention() -> Option<Duration> {
    u64::try_from(LOG_RETENTION.get()).ok().map(Duration::from_secs)
}
