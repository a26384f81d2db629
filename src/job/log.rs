//! The durable log: the SQL, and when it is run.
//!
//! Rows are written by workers, with the rights of the cluster's owner and everything named with its schema. What cannot
//! be written now is written later; the registry knows it meanwhile, and notes tell of it after a crash.

mod accepted;
mod left;
mod read;

pub use accepted::record;
pub use left::{fold_left_behind, launches_left, note_begun, note_end};
pub use read::{fate, is_readable, jobs_query, states, to_repeat, Fate, Known};

use super::catalog;
use super::note::End;
use super::registry::{Ended, Moment, Reason, State};
use crate::error::Error;
use crate::ffi::area;
use crate::ffi::process_local::{slot, ProcessLocal, Slot};
use crate::ffi::report::{self, Captured, Log};
use crate::ffi::spi::{self, Plan};
use crate::ffi::typed_rows::Cell;
use crate::ffi::{lock, login, process, role, session, transaction};
use crate::guc;
use crate::protocol::{decode, sqlstate, Outcome, Report};
use std::cell;
use std::time::Duration;

/// How long a write waits for a lock on the log. Nobody needs one for longer; if somebody has one, the row is written
/// later.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// The same in milliseconds, and short enough for a worker to give way before anybody is told of a deadlock.
fn lock_timeout() -> i32 {
    let limit = LOCK_TIMEOUT.min(session::deadlock_timeout() / 2);
    i32::try_from(limit.as_millis()).unwrap_or(1).max(1)
}

/// A final row, or what is known after an attempt that will be repeated.
pub struct FinalRow<'a> {
    pub uuid: [u8; 16],
    /// Where the row was last, as text: spares the search, and the search's predicate locks.
    pub place: Option<&'a [u8]>,
    pub end: End,
}

impl FinalRow<'_> {
    fn cells(&self) -> Vec<Cell> {
        let outcome = outcome_cells(&self.end.outcome);
        [Cell::Uuid(self.uuid)].into_iter().chain(end_cells(&self.end)).chain(outcome).collect()
    }
}

/// How a job ended, as cells: status, pid, start_time_exec, end_time_exec, attempts.
pub fn end_cells(end: &End) -> [Cell; 5] {
    [
        Cell::Text(end.state.name().into()),
        end.pid.into(),
        Cell::timestamp(end.started),
        Cell::timestamp(end.ended),
        Cell::Int(end.attempts as i32),
    ]
}

/// Returns what came of a job, as cells: result, row_count, result_truncated, command_tag, sqlstate, message, detail,
/// hint, context.
pub fn outcome_cells(outcome: &Outcome) -> [Cell; 9] {
    [
        outcome.result.clone().into(),
        outcome.row_count.into(),
        Cell::Bool(outcome.is_truncated),
        outcome.command_tag.clone().into(),
        outcome.sqlstate_text().into(),
        outcome.message.clone().into(),
        outcome.detail.clone().into(),
        outcome.hint.clone().into(),
        outcome.context.clone().into(),
    ]
}

/// The types of [`FinalRow::cells`], also where a value is NULL.
fn types() -> Vec<Cell> {
    let text = || Cell::Text(Vec::new());
    let (time, int) = (Cell::Timestamp(0), Cell::Int(0));
    let first =
        [Cell::Uuid([0; 16]), text(), int.clone(), time.clone(), time, int, text(), Cell::BigInt(0), Cell::Bool(false)];
    first.into_iter().chain(std::iter::repeat_with(text).take(6)).collect()
}

const SET_FINAL: &str =
    "SET is_started = true, status = $2, pid = $3, start_time_exec = $4, end_time_exec = $5, attempts = $6, result = $7, \
     row_count = $8, result_truncated = $9, command_tag = $10, sqlstate = $11, message = $12, detail = $13, hint = $14, \
     context = $15 \
     WHERE uuid_child OPERATOR(pg_catalog.=) $1 AND status OPERATOR(pg_catalog.=) 'queued'::pg_catalog.text";

struct Plans {
    by_place: Plan,
    by_uuid: Plan,
    mark: Plan,
}

thread_local! {
    /// The schema of the extension, quoted.
    static SCHEMA: Slot<Vec<u8>> = const { slot(Vec::new()) };
    static PLANS: Slot<Option<Plans>> = const { slot(None) };
    /// The log, and the sequence of its column `id`.
    static RELATIONS: cell::Cell<Option<(u32, u32)>> = const { cell::Cell::new(None) };
}

/// Finds the log. False = the extension is not in this database (any more). Inside a transaction.
pub fn find() -> bool {
    let schema = spi::select(catalog::SCHEMA).concat();
    let is_there = !schema.is_empty();
    SCHEMA.set(schema);
    RELATIONS.set(None);
    is_there
}

/// A table or view of the extension, with its schema.
fn relation(name: &str) -> Vec<u8> {
    SCHEMA.with_borrow(|schema| [schema.as_slice(), b".", name.as_bytes()].concat())
}

fn table() -> Vec<u8> {
    relation("pg_background_log")
}

fn with_plans<T>(body: impl FnOnce(&Plans) -> T) -> T {
    if PLANS.with_borrow(Option::is_none) {
        let prepare = |parts: &[&[u8]], with_place: bool| {
            let mut types = types();
            if with_place {
                types.push(Cell::Text(Vec::new()));
            }
            Plan::prepare(&parts.concat(), &types)
        };
        let update: &[u8] = b"UPDATE ";
        let table = table();
        let set = format!(" {SET_FINAL}");
        let plans = Plans {
            by_place: prepare(
                &[update, &table, set.as_bytes(), b" AND ctid OPERATOR(pg_catalog.=) $16::pg_catalog.tid RETURNING 1"],
                true,
            ),
            by_uuid: prepare(&[update, &table, set.as_bytes(), b" RETURNING 1"], false),
            mark: Plan::prepare(
                &[
                    update,
                    &table,
                    b" SET is_started = true WHERE uuid_child OPERATOR(pg_catalog.=) $1 \
                      AND status OPERATOR(pg_catalog.=) 'queued'::pg_catalog.text RETURNING ctid",
                ]
                .concat(),
                &[Cell::Uuid([0; 16])],
            ),
        };
        PLANS.set(Some(plans));
    }
    // Taken out while it is used: a trigger on the log could lead here again.
    let plans = PLANS.with_borrow_mut(Option::take);
    let plans = plans.unwrap_or_else(|| Plans { by_place: Plan::none(), by_uuid: Plan::none(), mark: Plan::none() });
    let value = body(&plans);
    PLANS.set(Some(plans));
    value
}

/// Forgets what was planned, after an error.
pub fn forget_plans() {
    PLANS.set(None);
    RELATIONS.set(None);
}

/// Takes the locks that writing the log needs, before all else and all at once: a worker that has one of them never waits
/// for another, so whoever drops the extension or changes the log wins. `waits`: for the table, if nothing else is held.
/// Gives the table.
fn hold(waits: bool) -> u32 {
    let (table, sequence) = RELATIONS.get().unwrap_or_else(|| {
        find();
        relations()
    });
    let is_held = table != 0 && lock::try_to_write(table, waits) && (sequence == 0 || lock::try_to_use(sequence));
    if !is_held {
        report::emit(&Report::from(Error::LogLocked), Log::Here);
    }
    refuse_code_of_others(table);
    RELATIONS.set(Some((table, sequence)));
    table
}

/// Raises [`Error::LogAltered`] (55000) if writing the log would run code of an owner that is not a superuser. A lock
/// on it is
/// held.
fn refuse_code_of_others(table: u32) {
    if table != 0 && lock::runs_code_of_others(table) {
        report::emit(&Report::from(Error::LogAltered), Log::Here);
    }
}

/// The log, and the sequence of its column `id`: oids; 0 = it is not there.
fn relations() -> (u32, u32) {
    let mut oids = spi::select(catalog::LOG).into_iter();
    (number(oids.next()), number(oids.next()))
}

/// The oid of the log; 0 = there is none. Inside a transaction.
pub fn number_of_log() -> u32 {
    thread_local! {
        /// At which change of the catalogs.
        static KNOWN: cell::Cell<(u64, u32)> = const { cell::Cell::new((0, 0)) };
    }
    // What this transaction has changed is told to nobody yet, and may be undone.
    let changes_something = transaction::current_id_if_any() != 0;
    let changes = login::changes();
    let (at, known) = KNOWN.get();
    if known != 0 && at == changes && !changes_something {
        return known;
    }
    let (log, _) = relations();
    KNOWN.set(if changes_something { (0, 0) } else { (changes, log) });
    log
}

/// Runs `body` in a transaction of the extension's own, with the rights of the cluster's owner; `is_durable`: when this
/// returns, it is on the disk of this server.
///
/// # Errors
/// The report of the error; everything is rolled back.
pub fn in_own_transaction<T>(is_durable: bool, body: impl FnOnce() -> T) -> Result<T, Box<Captured>> {
    let outcome = crate::ffi::report::catch(|| {
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
        forget_plans();
        tell(captured);
    }
    outcome
}

/// Tells the server's log that the jobs' log could not be written: nobody else would hear of it.
fn tell(captured: &Captured) {
    let Captured { report, .. } = captured;
    let text = [b"could not write the log of pg_background_mgr, will try again: ".as_slice(), &report.message].concat();
    crate::compat::process::log_line(&text);
}

fn write(row: &FinalRow) {
    let mut cells = row.cells();
    with_plans(|plans| {
        if let Some(place) = row.place {
            cells.push(Cell::Text(place.to_vec()));
            if !plans.by_place.run(&cells).is_empty() {
                return;
            }
            cells.pop();
        }
        // A row that is not there was deleted.
        plans.by_uuid.run(&cells);
    });
}

/// Writes a row as part of the job's own transaction, in the log that has it. False = that is not there any more.
///
/// # Errors
/// The report of the error; what was done is undone, and the job's transaction goes on.
pub fn write_with_job(log: u32, row: &FinalRow) -> Result<bool, Box<Captured>> {
    let write = || {
        // The job has locks of its own: it does not wait.
        let is_there = hold(false) == log;
        if is_there {
            write(row);
        }
        is_there
    };
    let written = transaction::attempt(lock_timeout(), || role::as_cluster_owner(write));
    written.inspect_err(|captured| {
        forget_plans();
        tell(captured);
    })
}

/// Writes rows in the log that has them. False = that is not there any more. Inside [`in_own_transaction`].
pub fn write_rows(log: u32, rows: &[FinalRow]) -> bool {
    let is_there = hold(true) == log;
    if is_there {
        rows.iter().for_each(write);
    }
    is_there
}

/// The final row of a job that ended without writing it.
pub fn row_of(ended: &Ended) -> FinalRow<'static> {
    let outcome = match (&ended.outcome, ended.state) {
        (Some(bytes), _) => decode(bytes).unwrap_or_default(),
        (None, State::Stopped) => stopped(ended.reason, ended.stopper.as_deref(), ended.attempts),
        (None, _) => Outcome::default(),
    };
    FinalRow {
        uuid: ended.uuid,
        place: None,
        end: End {
            state: ended.state,
            pid: ended.pid,
            started: Some(ended.started).filter(|at| *at != 0),
            ended: Some(ended.ended),
            attempts: ended.attempts,
            outcome,
        },
    }
}

/// What is said of a job that was stopped, after so many attempts.
pub fn stopped(reason: Reason, stopper: Option<&[u8]>, attempts: u32) -> Outcome {
    let by = stopper.map_or(Vec::new(), |role| [b" by user \"", role, b"\""].concat());
    let before = if attempts == 0 { b" before it started".as_slice() } else { b" before its next attempt" };
    let message = match reason {
        Reason::OtherFailed => b"another job of the batch failed".to_vec(),
        Reason::Cancelled => [b"stopped".as_slice(), &by].concat(),
        Reason::None | Reason::Stopped => [b"the job was stopped".as_slice(), &by, before].concat(),
    };
    Outcome { sqlstate: sqlstate(b"57014"), message: Some(message), ..Outcome::default() }
}

/// Writes down that jobs are about to start, in the log that has their rows; gives where each row is then. None = that log is
/// not there any more. Inside [`in_own_transaction`].
pub fn mark_started(log: u32, jobs: &[[u8; 16]]) -> Option<Vec<Option<Vec<u8>>>> {
    let mark = |uuid: &[u8; 16]| {
        with_plans(|plans| plans.mark.run(&[Cell::Uuid(*uuid)]).pop().and_then(|mut row| row.pop()).flatten())
    };
    (hold(true) == log).then(|| jobs.iter().map(mark).collect())
}

/// The databases that there are: oids.
pub fn databases() -> Vec<u32> {
    let oids = spi::select("SELECT oid FROM pg_catalog.pg_database");
    oids.into_iter().map(|oid| number(Some(oid))).collect()
}

/// How many rows a worker deletes at once: its queue waits for that.
const PRUNE_LIMIT: i64 = 10_000;

/// Deletes rows of jobs that ended longer ago than `log_retention`; false = there are more of them. Inside
/// [`in_own_transaction`].
pub fn prune_old() -> bool {
    let Some(seconds) = guc::log_retention().filter(|_| find()) else { return true };
    hold(true);
    prune(seconds.saturating_mul(1_000_000), None, Some(PRUNE_LIMIT)) < PRUNE_LIMIT
}

/// Deletes rows of jobs that ended longer ago than `older_than` microseconds, of one owner or of all, so many or all; gives
/// how many. With the rights of the cluster's owner.
pub fn prune(older_than: i64, owner: Option<u32>, limit: Option<i64>) -> i64 {
    if !find() {
        return 0;
    }
    let (table_oid, _) = relations();
    if table_oid != 0 {
        // Of its indexes somebody may have locks: they are waited for below.
        let _ = lock::try_to_write(table_oid, true);
        refuse_code_of_others(table_oid);
    }
    let (epoch, database) = (area::epoch(), session::database());
    let of_owner =
        owner.map_or(String::new(), |owner| format!(" AND owner OPERATOR(pg_catalog.=) {owner}::pg_catalog.oid"));
    // What has ended before was queued before: there is an index on that, and no end of a job changes it.
    let is_old = format!(
        " WHERE queued_at OPERATOR(pg_catalog.<) $1 \
          AND (status OPERATOR(pg_catalog.<>) 'queued'::pg_catalog.text AND end_time_exec OPERATOR(pg_catalog.<) $1 \
            OR status OPERATOR(pg_catalog.=) 'queued'::pg_catalog.text \
            AND (epoch OPERATOR(pg_catalog.<>) ({epoch})::pg_catalog.int8 \
              OR database OPERATOR(pg_catalog.<>) {database}::pg_catalog.oid)){of_owner}"
    );
    let before = Cell::Timestamp(process::now().saturating_sub(older_than));
    let delete = [b"DELETE FROM ".as_slice(), &table()].concat();
    let Some(limit) = limit else {
        return spi::change(&[&delete, is_old.as_bytes()].concat(), &[before]);
    };
    // What another deletes now is gone without this one.
    let sql = [
        b"SELECT ctid FROM ".as_slice(),
        &table(),
        format!("{is_old} LIMIT {limit} FOR UPDATE SKIP LOCKED").as_bytes(),
    ]
    .concat();
    let places = spi::query(&sql, &[before], false).into_iter().filter_map(|row| row.into_iter().next()).collect();
    let these = b" WHERE ctid OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.tid[])".as_slice();
    spi::change(&[&delete, these].concat(), &[Cell::Texts(places)])
}

fn number<T: std::str::FromStr + Default>(text: Option<Vec<u8>>) -> T {
    text.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or_default()
}

fn parse_uuid(text: Option<Vec<u8>>) -> Option<[u8; 16]> {
    uuid::Uuid::try_parse_ascii(&text?).ok().map(uuid::Uuid::into_bytes)
}

/// What came of a job that is in the registry.
pub fn outcome_of(job: &Moment) -> Outcome {
    match (&job.outcome, job.state) {
        (Some(bytes), _) => decode(bytes).unwrap_or_default(),
        (None, State::Stopped) => stopped(job.reason, job.stopper.as_deref(), job.attempts),
        (None, _) => Outcome::default(),
    }
}

/// What must not change while a worker is logged in: what its login depends on, and the extension. Inside a transaction.
pub fn fingerprint(database: u32, login: u32) -> (u64, Vec<u8>) {
    thread_local! {
        /// Of the extension, and at which change of the catalogs.
        static KNOWN: Slot<Option<(u64, Vec<u8>)>> = const { slot(None) };
    }
    let changes = login::changes();
    let known = KNOWN.with_borrow(|known| known.clone()).filter(|(at, _)| *at == changes);
    let (_, extension) = known.unwrap_or_else(|| {
        let now = (changes, spi::select(catalog::EXTENSION_VERSION).concat());
        KNOWN.set(Some(now.clone()));
        now
    });
    (login::look(database, login).state, extension)
}
