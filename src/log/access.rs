//! Access to the log: where it is, its locks, the transactions in which it is written.

use crate::error::Error;
use crate::ffi::heap::Access;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::report::{Captured, Log};
use crate::ffi::{heap, invalidation, lock, login, report, role, session, spi, transaction};
use crate::ids::{DatabaseId, RoleId};
use crate::log::rows::{self, Rows};
use crate::protocol::{Report, ERRCODE_INTERNAL_ERROR};
use crate::queries;
use std::cell;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Time that a write waits for a lock on the log. Nobody needs one for longer; if somebody has one, the row is written
/// later.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// Returns the same in milliseconds, and short enough for a worker to give way before anybody is told of a deadlock.
pub fn lock_timeout() -> i32 {
    let limit = LOCK_TIMEOUT.min(session::deadlock_timeout() / 2);
    i32::try_from(limit.as_millis()).unwrap_or(1).max(1)
}

/// Shortest interval at which a process tells the server's log the same reason why rows cannot be written.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

thread_local! {
    /// The schema of the extension, quoted.
    static SCHEMA: ProcessCell<Vec<u8>> = const { process_cell(Vec::new()) };
    static RELATIONS: cell::Cell<Option<Relations>> = const { cell::Cell::new(None) };
}

/// The oids of the log and of the sequence of its column `id`; 0 = it is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Relations {
    pub log: u32,
    pub sequence: u32,
}

/// Finds the extension. Returns `false` if it is not in this database (any more). Inside a transaction.
pub fn locate() -> bool {
    let schema = spi::select(queries::SCHEMA).concat();
    let is_there = !schema.is_empty();
    SCHEMA.set(schema);
    RELATIONS.set(None);
    is_there
}

/// Returns the name of a table or view that users read, with its schema.
pub fn qualified_name(name: &str) -> Vec<u8> {
    SCHEMA.with_borrow(|schema| [schema.as_slice(), b".", name.as_bytes()].concat())
}

/// Forgets where the log is, after an error.
pub fn forget_relations() {
    RELATIONS.set(None);
}

/// Takes the locks that writing the log needs, before all else and all at once: a worker that has one of them never
/// waits for another, so whoever drops the extension or changes the log wins. `waits`: for the log, if nothing else is
/// held.
pub fn lock_log(waits: bool) -> Relations {
    let held = RELATIONS.get().unwrap_or_else(relations);
    require_log(held);
    if !(lock::try_to_write(held.log, waits) && lock::try_to_use(held.sequence)) {
        report::emit(&Report::from(Error::LogLocked), Log::Here);
    }
    RELATIONS.set(Some(held));
    held
}

/// Raises [`Error::LogMissing`] (55000) where the extension has no log: its SQL is that of another version.
pub fn require_log(relations: Relations) {
    if relations.log == 0 || relations.sequence == 0 {
        report::emit(&Report::from(Error::LogMissing), Log::Here);
    }
}

/// Opens the log that is held; [`Access::Write`] in [`in_own_transaction`].
pub fn open_log<T>(held: Relations, access: Access, body: impl FnOnce(&Rows) -> T) -> Option<T> {
    rows::open(held.log, held.sequence, access, body)
}

/// Looks for the log. Inside a transaction.
pub fn relations() -> Relations {
    let mut found = Relations::default();
    for row in spi::select_rows(queries::LOG) {
        let mut row = row.into_iter().flatten();
        let (kind, oid) = (row.next(), oid(row.next()));
        match kind.as_deref() {
            Some(b"m") => found.log = oid,
            _ => found.sequence = oid,
        }
    }
    found
}

/// Returns the oid of the log; 0 = there is none. Inside a transaction.
pub fn log_oid() -> u32 {
    thread_local! {
        /// Change of the catalogs at which the log was found, and its oid.
        static KNOWN: cell::Cell<(u64, u32)> = const { cell::Cell::new((0, 0)) };
    }
    // What this transaction has changed is told to nobody yet, and may be undone.
    let changes_something = transaction::current_id_if_any() != 0;
    let changes = invalidation::changes();
    let (at, known) = KNOWN.get();
    if known != 0 && at == changes && !changes_something {
        return known;
    }
    let Relations { log, .. } = relations();
    KNOWN.set(if changes_something { (0, 0) } else { (changes, log) });
    log
}

/// Returns whether the log has no rows at all, or is not there. It is locked.
pub fn is_empty() -> bool {
    let Relations { log, .. } = relations();
    log == 0 || heap::is_empty(log)
}

/// Runs `body` in a transaction of the extension's own, with the rights of the cluster's owner; `is_durable`: when this
/// returns, it is on the disk of this server.
///
/// # Errors
/// The report of the error; everything is rolled back.
pub fn in_own_transaction<T>(is_durable: bool, body: impl FnOnce() -> T) -> Result<T, Box<Captured>> {
    let outcome = report::catch(|| {
        transaction::start_command();
        transaction::allow_writes();
        transaction::read_committed();
        let value = transaction::with_lock_timeout(lock_timeout(), || role::as_cluster_owner(body));
        if is_durable {
            transaction::force_sync_commit();
        }
        let _no_standby = transaction::NoStandby::new();
        transaction::finish_command();
        value
    });
    if let Err(captured) = &outcome {
        transaction::recover();
        forget_relations();
        report_failure(captured);
    }
    outcome
}

/// Tells the server's log that the jobs' log could not be written: nobody else would hear of it. Not of each row: many
/// may wait for the same.
pub fn report_failure(captured: &Captured) {
    thread_local! {
        /// The last text, and when it was written.
        static LAST: ProcessCell<Option<(Vec<u8>, Instant)>> = const { process_cell(None) };
    }
    let Captured { report, .. } = captured;
    let text = [b"could not write the log of pg_background_mgr, will try again: ".as_slice(), &report.message].concat();
    let is_recent = |last: &Option<(Vec<u8>, Instant)>| {
        last.as_ref().is_some_and(|(last, at)| *last == text && at.elapsed() < REPORT_INTERVAL)
    };
    if !LAST.with_borrow(is_recent) {
        crate::compat::process::log_line(&text);
        LAST.set(Some((text, Instant::now())));
    }
}

/// Opens the log for a statement of the caller, which waits for locks as long as his settings let it.
pub fn open_for_caller<T>(body: impl FnOnce(&Rows) -> T) -> Option<T> {
    thread_local! {
        /// The log, as a transaction has found it.
        static HELD: cell::Cell<(u64, Relations)> = const { cell::Cell::new((0, Relations { log: 0, sequence: 0 })) };
    }
    let transaction = transaction::current_id();
    let (by, held) = HELD.get();
    let mut known = Some(held).filter(|held| by == transaction && held.log != 0);
    let held = loop {
        let found = known.take().unwrap_or_else(|| role::as_cluster_owner(relations));
        require_log(found);
        // Each time, for a ROLLBACK TO SAVEPOINT gives it back. Of its indexes somebody may have locks: they are waited
        // for.
        let _ = lock::try_to_write(found.log, true);
        if heap::is_there(found.log) {
            break found;
        }
    };
    HELD.set((transaction, held));
    open_log(held, Access::Change, body)
}

/// Returns the databases that there are.
pub fn databases() -> Vec<DatabaseId> {
    spi::select(queries::DATABASES).into_iter().map(|text| oid(Some(text))).collect()
}

/// Returns the oid that a query of the extension has returned as text. Raises an internal error (XX000) if it is none.
fn oid<T: FromStr + Default>(text: Option<Vec<u8>>) -> T {
    let oid = text.as_ref().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    oid.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(text.as_deref().unwrap_or(b"null")).into_owned();
        let message =
            format!("a catalog query of pg_background_mgr returned \"{text}\" in place of an oid").into_bytes();
        let report = Report { level: report::ERROR, sqlstate: ERRCODE_INTERNAL_ERROR, message, ..Report::default() };
        report::emit(&report, Log::Here);
        T::default()
    })
}

/// Returns what must not change while a worker is logged in: what its login depends on, and the extension. Inside a
/// transaction.
pub fn fingerprint(database: DatabaseId, login: RoleId) -> (u64, Vec<u8>) {
    thread_local! {
        /// Version of the extension, and the change of the catalogs at which it was read.
        static KNOWN: ProcessCell<Option<(u64, Vec<u8>)>> = const { process_cell(None) };
    }
    let changes = invalidation::changes();
    let known = KNOWN.with_borrow(|known| known.clone()).filter(|(at, _)| *at == changes);
    let (_, extension) = known.unwrap_or_else(|| {
        let now = (changes, spi::select(queries::EXTENSION_VERSION).concat());
        KNOWN.set(Some(now.clone()));
        now
    });
    (login::look(database, login).state, extension)
}
