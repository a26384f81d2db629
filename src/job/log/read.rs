//! What the log says of jobs, as things are now.

use super::{find, launches_left, number, parse_uuid, relation, relations, require, table};
use crate::error::Error;
use crate::ffi::typed_rows::Cell;
use crate::ffi::{area, lock, role, session, spi, transaction};
use crate::job::note::{self, End};
use crate::job::registry::State;
use crate::protocol::{sqlstate, Outcome};
use std::collections::{HashMap, HashSet};

/// A job as the log has it.
pub struct Known {
    pub uuid: [u8; 16],
    pub state: Vec<u8>,
    pub owner: u32,
    /// Who launched it: not the owner if SET ROLE was active.
    pub login: u32,
    pub pid: Option<i32>,
}

/// Can the log be read now? Somebody may have it for himself. If so, it can until the end of the transaction. Raises
/// [`Error::LogMissing`] (55000) where the extension has none.
pub fn is_readable() -> bool {
    if !find() {
        return false;
    }
    let found = relations();
    require(found);
    lock::try_to_read(found.log)
}

/// A job, or the jobs of a batch, as the log has them now. Lost ones are told from those that wait.
///
/// # Errors
/// [`Error::LogLocked`] (55P03): somebody has the log for himself.
pub fn states(uuid: &[u8; 16]) -> Result<Vec<Known>, Error> {
    let rows = role::as_cluster_owner(|| {
        if !is_readable() {
            return None;
        }
        let sql = [
            b"SELECT uuid_child, status, owner, login, pid, epoch, database, ".as_slice(),
            &microseconds("queued_at"),
            b" FROM ",
            &table(),
            b" WHERE uuid_parent OPERATOR(pg_catalog.=) $1 OR uuid_child OPERATOR(pg_catalog.=) $1",
        ]
        .concat();
        Some(spi::query(&sql, &[Cell::Uuid(*uuid)], true))
    });
    let rows = rows.ok_or(Error::LogLocked)?;
    let mut notes = note::Left::default();
    let mut launches = HashMap::new();
    let states: Vec<Known> = rows
        .into_iter()
        .filter_map(|row| {
            let mut row = row.into_iter();
            let (uuid, state) = (parse_uuid(row.next()?)?, row.next()??);
            let (owner, login) = (number(row.next()?), number(row.next()?));
            let pid = row.next()?.map(|pid| number(Some(pid)));
            let (epoch, database) = (number(row.next()?), number(row.next()?));
            launches.insert(uuid, number(row.next()?));
            let state = if is_left(&state, epoch, database) { state_left(&mut notes, epoch, &uuid) } else { state };
            Some(Known { uuid, state, owner, login, pid })
        })
        .collect();
    let mut left = Vec::new();
    for batch in launches_left() {
        for job in batch.jobs.iter().filter(|job| *uuid == batch.uuid || *uuid == job.uuid) {
            let state = state_left(&mut notes, batch.epoch, &job.uuid);
            let known = Known { uuid: job.uuid, state, owner: batch.owner, login: batch.login, pid: None };
            left.push((batch.queued_at, known));
        }
    }
    Ok(with_left(states, left, |known| known.uuid, &launches))
}

/// What the log says of a job, as things are now.
pub enum Fate {
    /// It has no row.
    Gone,
    /// It has not ended. The role whose rights it has.
    Open {
        owner: u32,
    },
    Ended {
        owner: u32,
        end: Box<End>,
    },
}

/// What the log says of a job, as things are now, whatever the snapshot of the caller. None = somebody has the log
/// for himself.
pub fn fate(uuid: &[u8; 16]) -> Option<Fate> {
    let row = role::as_cluster_owner(|| {
        if !is_readable() {
            return None;
        }
        let sql = [
            b"SELECT owner, status, pid, ".as_slice(),
            &microseconds("start_time_exec"),
            b", ",
            &microseconds("end_time_exec"),
            b", attempts, result, row_count, result_truncated, command_tag, sqlstate, message, detail, hint, context FROM ",
            &table(),
            b" WHERE uuid_child OPERATOR(pg_catalog.=) $1",
        ]
        .concat();
        Some(spi::query(&sql, &[Cell::Uuid(*uuid)], true).pop())
    })?;
    Some(row.map_or(Fate::Gone, fate_of))
}

fn fate_of(row: spi::Row) -> Fate {
    let mut row = row.into_iter();
    let mut next = || row.next().flatten();
    let owner = number(next());
    let name = next().unwrap_or_default();
    let state = State::ALL.into_iter().find(|state| state.is_final() && state.name().as_bytes() == name);
    let Some(state) = state else { return Fate::Open { owner } };
    let end = End {
        state,
        pid: next().map(|pid| number(Some(pid))),
        started: next().map(|at| number(Some(at))),
        ended: next().map(|at| number(Some(at))),
        attempts: number(next()),
        outcome: Outcome {
            result: next(),
            row_count: next().map(|count| number(Some(count))),
            is_truncated: next().is_some_and(|is_truncated| is_truncated == b"t"),
            command_tag: next(),
            sqlstate: next().and_then(|code| code.try_into().ok()).map_or(0, |code| sqlstate(&code)),
            message: next(),
            detail: next(),
            hint: next(),
            context: next(),
        },
    };
    Fate::Ended { owner, end: Box::new(end) }
}

/// Jobs as the log has them, and those of files instead that were launched later; in the order of their uuids. `launches`:
/// when those of the log were launched last.
fn with_left<T>(
    mut logged: Vec<T>,
    mut left: Vec<(i64, T)>,
    uuid: impl Fn(&T) -> [u8; 16],
    launches: &HashMap<[u8; 16], i64>,
) -> Vec<T> {
    if !left.is_empty() {
        left.retain(|(queued_at, job)| launches.get(&uuid(job)).is_none_or(|logged| logged < queued_at));
        let later: HashSet<[u8; 16]> = left.iter().map(|(_, job)| uuid(job)).collect();
        logged.retain(|job| !later.contains(&uuid(job)));
        logged.extend(left.into_iter().map(|(_, job)| job));
    }
    logged.sort_by_key(uuid);
    logged
}

/// A time in microseconds since 2000-01-01 00:00 UTC: the server counts so, but gives seconds since 1970.
fn microseconds(column: &str) -> Vec<u8> {
    format!(
        "pg_catalog.round((pg_catalog.date_part('epoch'::pg_catalog.text, {column}) \
         OPERATOR(pg_catalog.-) 946684800::pg_catalog.float8) OPERATOR(pg_catalog.*) 1000000::pg_catalog.float8)\
         ::pg_catalog.int8"
    )
    .into_bytes()
}

/// Has a server left the job behind that has died since, or the database that this one was copied from?
fn is_left(state: &[u8], epoch: i64, database: u32) -> bool {
    state == State::Queued.name().as_bytes() && (epoch != area::epoch() || database != session::database())
}

/// What has become of a job that a server which has died left behind. A standby says queued of what nobody runs there: there
/// is nothing to wait for.
fn state_left(notes: &mut note::Left, epoch: i64, uuid: &[u8; 16]) -> Vec<u8> {
    let trace = if transaction::in_recovery() { None } else { notes.of(epoch, uuid) };
    trace.and_then(|trace| trace.end).map_or(b"lost".to_vec(), |end| end.state.name().into())
}

/// A job that is to run once more.
pub struct Repeat {
    pub uuid: [u8; 16],
    pub query: Vec<u8>,
    pub name: Option<Vec<u8>>,
    pub attempts: u32,
    pub batch_name: Option<Vec<u8>>,
    /// How it was run: a JSON object.
    pub options: Option<Vec<u8>>,
}

/// Those of these jobs that have not succeeded, as they were launched last; in the order of their uuids.
pub fn to_repeat(jobs: &[[u8; 16]]) -> Vec<Repeat> {
    let list = jobs.iter().map(|job| Some(uuid::Uuid::from_bytes(*job).hyphenated().to_string().into_bytes()));
    let sql = [
        b"SELECT uuid_child, query, name, attempts, batch_name, options, status, epoch, database, ".as_slice(),
        &microseconds("queued_at"),
        b" FROM ",
        &table(),
        b" WHERE uuid_child OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.uuid[])",
    ]
    .concat();
    let rows = role::as_cluster_owner(|| spi::query(&sql, &[Cell::Texts(list.collect())], true));
    let mut notes = note::Left::default();
    let mut launches = HashMap::new();
    let found: Vec<Repeat> = rows
        .into_iter()
        .filter_map(|row| {
            let mut row = row.into_iter();
            let mut job = Repeat {
                uuid: parse_uuid(row.next()?)?,
                query: row.next()??,
                name: row.next()?,
                attempts: number(row.next()?),
                batch_name: row.next()?,
                options: row.next()?,
            };
            let (state, epoch, database) = (row.next()??, number(row.next()?), number(row.next()?));
            launches.insert(job.uuid, number(row.next()?));
            // Somebody else may have launched it again since the caller looked.
            let has_ended = [State::Failed, State::Stopped].iter().any(|end| state == end.name().as_bytes());
            let is_left = is_left(&state, epoch, database);
            if let Some(trace) = is_left.then(|| notes.of(epoch, &job.uuid)).flatten() {
                job.attempts = job.attempts.max(trace.attempt.attempts);
            }
            (has_ended || is_left).then_some(job)
        })
        .collect();
    let wanted: HashSet<&[u8; 16]> = jobs.iter().collect();
    let mut left = Vec::new();
    for batch in launches_left() {
        for job in batch.jobs.into_iter().filter(|job| wanted.contains(&job.uuid)) {
            let job = Repeat {
                uuid: job.uuid,
                query: job.query,
                name: job.name,
                attempts: job.attempts,
                batch_name: batch.name.clone(),
                options: job.options,
            };
            left.push((batch.queued_at, job));
        }
    }
    with_left(found, left, |job| job.uuid, &launches)
}

/// The rows of `pg_background_monitor`, and their parameters.
pub fn jobs_query(uuid: Option<&[u8; 16]>) -> (Vec<u8>, Vec<Cell>) {
    let columns = b"SELECT pid, status, uuid_parent, uuid_child, name, query, result, message, queue_position, \
                    start_time_exec, end_time_exec, elapsed FROM "
        .as_slice();
    let view = relation("pg_background_jobs");
    let order = b" ORDER BY queued_at, uuid_child".as_slice();
    match uuid {
        None => ([columns, &view, order].concat(), Vec::new()),
        Some(uuid) => {
            let condition =
                b" WHERE uuid_parent OPERATOR(pg_catalog.=) $1 OR uuid_child OPERATOR(pg_catalog.=) $1".as_slice();
            ([columns, &view, condition, order].concat(), vec![Cell::Uuid(*uuid)])
        }
    }
}
