//! Functions for the views, which ask the registry: `pg_background_live`, `_spooled`, `_state`; what fills the log
//! when it is made or refreshed, `pg_background_log_rows`; and what happens to a row that is deleted from
//! `log_background`, `pg_background_delete_job` and `_has_triggers_of_others`.

use crate::api::function::sql_function;
use crate::error::Error;
use crate::ffi::datum::SqlValue;
use crate::ffi::fmgr::{Call, Value};
use crate::ffi::session::{database, database_name};
use crate::ffi::{area, internal_sql, transaction};
use crate::ids::JobId;
use crate::log::attempt_file::Attempt;
use crate::log::outcome_file::CrashTrace;
use crate::log::spool::Spooled;
use crate::log::End;
use crate::protocol::Outcome;
use crate::registry::{JobDetails, JobStatus};
use crate::session::{BatchFilter, QueuedRowStatus, RegistryView};
use crate::{log, session};
use std::collections::HashMap;

/// `pg_background_live(only_unrecorded bool, only_elsewhere bool) RETURNS TABLE (…)`
fn live(call: &Call) -> Result<Value, Error> {
    let mut rows = call.typed_rows()?;
    let here = database();
    let filter = match (call.bool(0).unwrap_or(false), call.bool(1).unwrap_or(false)) {
        (true, _) => BatchFilter::Unrecorded,
        (false, true) => BatchFilter::Elsewhere,
        (false, false) => BatchFilter::All,
    };
    // The snapshot and the catalogs are asked once a batch, not once a job.
    let mut asked = HashMap::new();
    for job in call.with_memory_of_query(|view: &mut RegistryView| view.jobs(filter)) {
        let now = &job.now;
        let batch = &job.batch;
        let (is_recorded, has_lost_its_log) = *asked
            .entry(batch.number)
            .or_insert_with(|| (session::is_recorded(batch), session::has_lost_its_log(batch)));
        // A query adds those that the log of this database does not have.
        if filter == BatchFilter::Unrecorded && job.batch.database != here {
            continue;
        }
        // Of other databases only what has not ended: nobody here sees their logs. The same of a log that is gone.
        if now.is_logged && (job.batch.database != here || has_lost_its_log) {
            continue;
        }
        rows.put(&live_cells(&job, is_recorded, &live_end(&job, filter)))?;
    }
    rows.finish();
    Ok(Value::Void)
}

/// Returns how a job stands, or how it ended as far as the caller may see that.
fn live_end(job: &JobDetails, filter: BatchFilter) -> End {
    let now = &job.now;
    // The query is to see what came of a job beside its row, which it does not see.
    let in_log =
        (filter == BatchFilter::Unrecorded && session::is_in_log_only(now)).then(|| session::end_of(&job.uuid));
    in_log.flatten().unwrap_or_else(|| End {
        state: now.state,
        pid: now.pid,
        started: now.started,
        ended: now.ended,
        attempts: now.attempts,
        // It is in the encoding of its database.
        outcome: match job.batch.database == database() {
            true => session::visible(now.owner, now.state, log::outcome_of(now)),
            false => Outcome::default(),
        },
    })
}

fn live_cells(job: &JobDetails, is_recorded: bool, end: &End) -> Vec<SqlValue> {
    let first = [
        SqlValue::Uuid(job.batch.uuid.bytes()),
        SqlValue::Uuid(job.uuid.bytes()),
        SqlValue::Text(end.state.name().into()),
        SqlValue::Bool(is_recorded),
        job.batch.database.into(),
        job.batch.owner.into(),
        SqlValue::Text(job.owner_name.clone()),
        SqlValue::Text(job.client.clone()),
        job.batch_name.clone().into(),
        job.name.clone().into(),
        SqlValue::Text(job.query.clone()),
        SqlValue::Timestamp(job.queued_at),
        end.started.into(),
        end.ended.into(),
        SqlValue::Int(end.attempts as i32),
        end.pid.into(),
    ];
    let last = [area::epoch().into(), job.run_options.to_options().into()];
    let name = [database_name(job.batch.database).into()];
    [&first[..], &progress_cells(&job.now), &last, &log::outcome_cells(&end.outcome), &name].concat()
}

/// Returns how far a job is, as cells: queue_position, progress, progress_message.
fn progress_cells(job: &JobStatus) -> [SqlValue; 3] {
    let (percent, message) = job.progress.clone().unzip();
    [job.queue_position.into(), percent.into(), message.filter(|message| !message.is_empty()).into()]
}

/// `pg_background_spooled() RETURNS TABLE (…)`
fn spooled(call: &Call) -> Result<Value, Error> {
    let mut rows = call.typed_rows()?;
    for Spooled { head, jobs } in session::orphaned_batches() {
        for job in jobs {
            rows.put(&[
                SqlValue::Uuid(head.uuid.bytes()),
                SqlValue::Uuid(job.uuid.bytes()),
                head.owner.into(),
                SqlValue::Text(head.owner_name.clone()),
                SqlValue::Text(head.client.clone()),
                head.name.clone().into(),
                job.name.into(),
                SqlValue::Text(job.query),
                SqlValue::Timestamp(head.queued_at),
                head.epoch.into(),
                job.options.into(),
                SqlValue::Int(job.attempts as i32),
            ])?;
        }
    }
    rows.finish();
    Ok(Value::Void)
}

/// `pg_background_state(uuid_child uuid, epoch int8, database oid, is_started bool, is_running bool)
/// RETURNS TABLE (…)`
fn state(call: &Call) -> Result<Value, Error> {
    let mut rows = call.typed_rows()?;
    if let (Some(uuid), Some(epoch)) = (call.uuid(0).map(JobId::of_bytes), call.epoch(1)) {
        let start = match (call.bool(3).unwrap_or(true), call.bool(4).unwrap_or(false)) {
            (false, _) => Start::Never,
            (true, false) => Start::Perhaps,
            (true, true) => Start::Certain,
        };
        if call.database(2).is_some_and(|accepted_in| accepted_in != database()) {
            rows.put(&lost("this database was copied from that of the job before the job ended"))?;
        // A standby does not know what its primary is doing.
        } else if transaction::in_recovery() {
            rows.put(&from_outcome("queued", &Outcome::default()))?;
        } else if epoch == area::epoch() {
            match call.with_memory_of_query(|view: &mut RegistryView| view.status_of_queued_row(&uuid)) {
                QueuedRowStatus::Live(job) => rows.put(&from_moment(&job))?,
                QueuedRowStatus::Ended(end) => rows.put(&from_end(&end))?,
                QueuedRowStatus::Lost => rows.put(&lost(went_down(start)))?,
                QueuedRowStatus::Gone => {}
            }
        } else {
            match call.with_memory_of_query(|view: &mut RegistryView| view.trace(epoch, &uuid)) {
                Some(CrashTrace { end: Some(end), .. }) => rows.put(&from_end(&end))?,
                Some(CrashTrace { attempt, end: None }) => rows.put(&lost_in(&attempt))?,
                None => rows.put(&lost(went_down(start)))?,
            }
        }
    }
    rows.finish();
    Ok(Value::Void)
}

/// Holds what is known of the start of a job that a server had not run to its end when it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Never,
    /// A worker was about to start it.
    Perhaps,
    Certain,
}

fn went_down(start: Start) -> &'static str {
    match start {
        Start::Never => "the server went down before the job started",
        Start::Perhaps => "the server went down while the job was running or about to start; its outcome is unknown",
        Start::Certain => "the server went down while the job was running; its outcome is unknown",
    }
}

fn lost(message: &str) -> Vec<SqlValue> {
    from_outcome("lost", &Outcome { message: Some(message.into()), ..Outcome::default() })
}

/// Returns the row of a job that was lost in this attempt.
fn lost_in(attempt: &Attempt) -> Vec<SqlValue> {
    let start = if attempt.pid.is_some() { Start::Certain } else { Start::Perhaps };
    let mut row = lost(went_down(start));
    row[1] = attempt.pid.into();
    row[2] = attempt.started.into();
    row[4] = attempt.attempts.map(|attempts| attempts as i32).into();
    row
}

/// Returns the row of a job whose final row the reader does not see.
fn from_end(end: &End) -> Vec<SqlValue> {
    [&log::end_cells(end)[..], &[const { SqlValue::Null }; 3], &log::outcome_cells(&end.outcome)].concat()
}

fn from_outcome(status: &str, outcome: &Outcome) -> Vec<SqlValue> {
    let status = SqlValue::Text(status.into());
    [&[status], &[const { SqlValue::Null }; 7][..], &log::outcome_cells(outcome)].concat()
}

fn from_moment(job: &JobStatus) -> Vec<SqlValue> {
    let first = [
        SqlValue::Text(job.state.name().into()),
        job.pid.into(),
        job.started.into(),
        job.ended.into(),
        SqlValue::Int(job.attempts as i32),
    ];
    let outcome = session::visible(job.owner, job.state, log::outcome_of(job));
    [&first[..], &progress_cells(job), &log::outcome_cells(&outcome)].concat()
}

/// `pg_background_log_rows() RETURNS TABLE (…)`
///
/// The rows that a new log begins with: none.
fn log_rows(call: &Call) -> Result<Value, Error> {
    let rows = call.typed_rows()?;
    if !log::is_empty() {
        return Err(Error::LogRefresh);
    }
    rows.finish();
    Ok(Value::Void)
}

/// `pg_background_delete_job() RETURNS trigger`
fn delete_job(call: &Call) -> Result<Value, Error> {
    let (row, uuid) = call.deleted_row(c"uuid_child").ok_or(Error::NotOwnTrigger)?;
    Ok(Value::Row(uuid.is_some_and(|uuid| session::delete(&JobId::of_bytes(uuid))).then_some(row)))
}

/// `pg_background_has_triggers_of_others(relation regclass) RETURNS bool`
///
/// Raises an error for a relation with a trigger of others, which would run with the rights of who deletes. Else false.
fn has_triggers_of_others(call: &Call) -> Result<Value, Error> {
    match call.oid(0) {
        Some(relation) if internal_sql::has_trigger_of_others(relation) => Err(Error::ForeignTrigger),
        _ => Ok(Value::Bool(false)),
    }
}

sql_function!(
    pg_background_has_triggers_of_others,
    pg_finfo_pg_background_has_triggers_of_others,
    has_triggers_of_others
);
sql_function!(pg_background_log_rows, pg_finfo_pg_background_log_rows, log_rows);
sql_function!(pg_background_delete_job, pg_finfo_pg_background_delete_job, delete_job);
sql_function!(pg_background_live, pg_finfo_pg_background_live, live);
sql_function!(pg_background_spooled, pg_finfo_pg_background_spooled, spooled);
sql_function!(pg_background_state, pg_finfo_pg_background_state, state);
