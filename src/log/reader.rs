//! State of jobs as the log has it, as things are now.

use crate::error::Error;
use crate::ffi::datum::SqlValue;
use crate::ffi::{area, lock, role, session, transaction};
use crate::ids::{AnyId, DatabaseId, Epoch, JobId, RoleId};
use crate::log::accepted::AcceptedJob;
use crate::log::access::{locate, log_oid, qualified_name, relations, require_log};
use crate::log::end::End;
use crate::log::outcome_file;
use crate::log::recovery::orphaned_batches;
use crate::log::rows::{self, Column, Entry};
use crate::log::spool::Spooled;
use crate::protocol::{sqlstate, Outcome};
use crate::queries;
use crate::registry::State;
use crate::time::Timestamp;
use std::collections::{HashMap, HashSet};

/// A job as the log has it.
pub struct LoggedJob {
    pub uuid: JobId,
    pub state: Vec<u8>,
    pub owner: RoleId,
    /// Role that launched it: not the owner if SET ROLE was active.
    pub login: RoleId,
    pub pid: Option<i32>,
}

/// Returns whether the log can be read now: somebody may have it for himself. If so, it can until the end of the
/// transaction. Raises [`Error::LogMissing`] (55000) where the extension has none.
pub fn is_readable() -> bool {
    locate() && readable().is_some()
}

/// Returns the oid of the log, if that can be read now.
fn readable() -> Option<u32> {
    let log = log_oid();
    if log == 0 && locate() {
        require_log(relations());
    }
    (log != 0 && lock::try_to_read(log)).then_some(log)
}

/// Returns what `take` makes of the rows of these jobs, or of the jobs of these batches, as they are now, or
/// `None` if somebody has the log for himself.
fn read<T>(ids: &[AnyId], take: impl Fn(Entry) -> T) -> Option<Vec<T>> {
    role::as_cluster_owner(|| readable().map(|log| rows::read(log, ids, take)))
}

/// Returns a job, or the jobs of a batch, as the log has them now. Lost ones are told from those that wait.
///
/// # Errors
/// [`Error::LogLocked`] (55P03): somebody has the log for himself.
pub fn states(id: AnyId) -> Result<Vec<LoggedJob>, Error> {
    let of_row = |row: Entry| {
        let known = LoggedJob {
            uuid: row.job_id(),
            state: row.text(Column::Status).unwrap_or_default(),
            owner: row.role(Column::Owner),
            login: row.role(Column::Login),
            pid: row.int(Column::Pid),
        };
        let launched = row.timestamp(Column::QueuedAt).unwrap_or(Timestamp::NONE);
        (known, row.epoch(), row.database(), launched)
    };
    let rows = read(&[id], of_row).ok_or(Error::LogLocked)?;
    let mut traces = outcome_file::Orphans::default();
    let mut launches = HashMap::new();
    let states: Vec<LoggedJob> = rows
        .into_iter()
        .map(|(known, epoch, database, launched)| {
            launches.insert(known.uuid, launched);
            match is_of_dead_server(&known.state, epoch, database) {
                true => LoggedJob { state: orphan_state(&mut traces, epoch, &known.uuid), ..known },
                false => known,
            }
        })
        .collect();
    let mut orphans = Vec::new();
    for Spooled { head, jobs } in orphaned_batches() {
        for job in jobs.iter().filter(|job| id == head.uuid.into() || id == job.uuid.into()) {
            let state = orphan_state(&mut traces, head.epoch, &job.uuid);
            let known = LoggedJob { uuid: job.uuid, state, owner: head.owner, login: head.login, pid: None };
            orphans.push((head.queued_at, known));
        }
    }
    Ok(with_orphans(states, orphans, |known| known.uuid, &launches))
}

/// State of a job as the log has it now.
pub enum RowState {
    /// The job has no row.
    Gone,
    /// The job has not ended. Its owner is the role whose rights it has.
    Open {
        owner: RoleId,
    },
    Ended {
        owner: RoleId,
        end: Box<End>,
    },
}

/// Returns what the log says of a job, as things are now, whatever the snapshot of the caller, or `None` if somebody
/// has the log for himself.
pub fn row_state(uuid: &JobId) -> Option<RowState> {
    let row = read(&[(*uuid).into()], row_state_of)?.pop();
    Some(row.unwrap_or(RowState::Gone))
}

fn row_state_of(row: Entry) -> RowState {
    let owner = row.role(Column::Owner);
    let name = row.text(Column::Status).unwrap_or_default();
    let state = State::ALL.into_iter().find(|state| state.is_final() && state.name().as_bytes() == name);
    let Some(state) = state else { return RowState::Open { owner } };
    let end = End {
        state,
        pid: row.int(Column::Pid),
        started: row.timestamp(Column::StartTimeExec),
        ended: row.timestamp(Column::EndTimeExec),
        attempts: attempts_of(&row),
        outcome: Outcome {
            result: row.text(Column::Result),
            row_count: row.big_int(Column::RowCount),
            is_truncated: row.bool(Column::ResultTruncated),
            command_tag: row.text(Column::CommandTag),
            sqlstate: row
                .text(Column::Sqlstate)
                .and_then(|code| code.try_into().ok())
                .map_or(0, |code| sqlstate(&code)),
            message: row.text(Column::Message),
            detail: row.text(Column::Detail),
            hint: row.text(Column::Hint),
            context: row.text(Column::Context),
        },
    };
    RowState::Ended { owner, end: Box::new(end) }
}

fn attempts_of(row: &Entry) -> u32 {
    row.int(Column::Attempts).map_or(0, i32::unsigned_abs)
}

/// Returns jobs as the log has them, and those of files instead that were launched later; in the order of their uuids.
/// `launches`: when those of the log were launched last.
fn with_orphans<T>(
    mut logged: Vec<T>,
    mut orphans: Vec<(Timestamp, T)>,
    uuid: impl Fn(&T) -> JobId,
    launches: &HashMap<JobId, Timestamp>,
) -> Vec<T> {
    if !orphans.is_empty() {
        orphans.retain(|(queued_at, job)| launches.get(&uuid(job)).is_none_or(|logged| logged < queued_at));
        let later: HashSet<JobId> = orphans.iter().map(|(_, job)| uuid(job)).collect();
        logged.retain(|job| !later.contains(&uuid(job)));
        logged.extend(orphans.into_iter().map(|(_, job)| job));
    }
    logged.sort_by_key(uuid);
    logged
}

/// Returns whether the job is one of a server that has died since, or of the database that this one was copied from.
fn is_of_dead_server(state: &[u8], epoch: Epoch, database: DatabaseId) -> bool {
    state == State::Queued.name().as_bytes() && (epoch != area::epoch() || database != session::database())
}

/// Returns what has become of a job whose server has died. A standby says queued of what nobody
/// runs there: there is nothing to wait for.
fn orphan_state(traces: &mut outcome_file::Orphans, epoch: Epoch, uuid: &JobId) -> Vec<u8> {
    let trace = if transaction::in_recovery() { None } else { traces.of(epoch, uuid) };
    trace.and_then(|trace| trace.end).map_or(b"lost".to_vec(), |end| end.state.name().into())
}

/// A job that is to run once more, as it was launched last.
pub struct JobToRetry {
    pub job: AcceptedJob,
    pub batch_name: Option<Vec<u8>>,
}

/// Returns those of these jobs that have not succeeded, as they were launched last; in the order of their uuids.
pub fn jobs_to_retry(jobs: &[JobId]) -> Vec<JobToRetry> {
    let of_row = |row: Entry| {
        let job = AcceptedJob {
            uuid: row.job_id(),
            name: row.text(Column::Name),
            query: row.text(Column::Query).unwrap_or_default(),
            options: row.json(Column::Options),
            attempts: attempts_of(&row),
        };
        let job = JobToRetry { job, batch_name: row.text(Column::BatchName) };
        let state = row.text(Column::Status).unwrap_or_default();
        let launched = row.timestamp(Column::QueuedAt).unwrap_or(Timestamp::NONE);
        (job, state, row.epoch(), row.database(), launched)
    };
    let ids: Vec<AnyId> = jobs.iter().map(|job| (*job).into()).collect();
    let rows = read(&ids, of_row).unwrap_or_default();
    let mut traces = outcome_file::Orphans::default();
    let mut launches = HashMap::new();
    let logged: Vec<JobToRetry> = rows
        .into_iter()
        .filter_map(|(mut found, state, epoch, database, launched)| {
            let job = &mut found.job;
            launches.insert(job.uuid, launched);
            // Somebody else may have launched it again since the caller looked.
            let has_ended = [State::Failed, State::Stopped].iter().any(|end| state == end.name().as_bytes());
            let is_orphan = is_of_dead_server(&state, epoch, database);
            if let Some(trace) = is_orphan.then(|| traces.of(epoch, &job.uuid)).flatten() {
                job.attempts = job.attempts.max(trace.attempt.attempts.unwrap_or(0));
            }
            (has_ended || is_orphan).then_some(found)
        })
        .collect();
    let wanted: HashSet<&JobId> = jobs.iter().collect();
    let mut orphans = Vec::new();
    for batch in orphaned_batches() {
        for job in batch.jobs.into_iter().filter(|job| wanted.contains(&job.uuid)) {
            orphans.push((batch.head.queued_at, JobToRetry { job, batch_name: batch.head.name.clone() }));
        }
    }
    with_orphans(logged, orphans, |found| found.job.uuid, &launches)
}

/// Returns the query for the rows of `pg_background_monitor`, and its parameters.
pub fn jobs_query(id: Option<AnyId>) -> (Vec<u8>, Vec<SqlValue>) {
    let view = qualified_name("pg_background_jobs");
    match id {
        None => (queries::jobs(&view), Vec::new()),
        Some(id) => (queries::jobs_of(&view), vec![SqlValue::Uuid(id.bytes())]),
    }
}
