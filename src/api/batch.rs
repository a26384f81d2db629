//! `pg_background_launch_num`, `_monitor`, `_stop`, `_retry`, `_report_progress`, `_prune`.

use crate::api::function::sql_function;
use crate::error::Error;
use crate::ffi::datum::SqlValue;
use crate::ffi::fmgr::{Call, Value};
use crate::ffi::session::shown;
use crate::ffi::set_returning::TypedRows;
use crate::ids::{AnyId, BatchId, JobId};
use crate::session;
use crate::session::{ExecType, Following};
use crate::spec::BatchSpec;
use std::time::Duration;
use uuid::Uuid;

/// `pg_background_launch_num(p_querys text, p_delimiter text, p_monitor bool, p_exec_type text, p_options jsonb)`
fn launch_text(call: &Call) -> Result<Value, Error> {
    let text = call.text(0).ok_or(Error::NullArgument("SQL text"))?;
    let spec = BatchSpec::from_text(&text, call.text(1).as_deref(), call.jsonb(4).as_deref())?;
    launch(call, &spec, 2)
}

/// `pg_background_launch_num(p_querys text[], p_monitor bool, p_exec_type text, p_options jsonb)`
fn launch_array(call: &Call) -> Result<Value, Error> {
    let queries = call.text_array(0).ok_or(Error::NullArgument("array of SQL texts"))?;
    let spec = BatchSpec::from_array(queries, call.jsonb(3).as_deref())?;
    launch(call, &spec, 1)
}

/// `pg_background_launch_num(p_jobs jsonb, p_monitor bool, p_exec_type text, p_options jsonb)`
fn launch_json(call: &Call) -> Result<Value, Error> {
    let jobs = call.jsonb(0).ok_or(Error::NullArgument("list of jobs"))?;
    let spec = BatchSpec::from_json(&jobs, call.jsonb(3).as_deref())?;
    launch(call, &spec, 1)
}

/// `first` = which argument is `p_monitor`; `p_exec_type` follows.
fn launch(call: &Call, spec: &BatchSpec, first: usize) -> Result<Value, Error> {
    let may_wait = call.bool(first).ok_or(Error::NullArgument("p_monitor"))?;
    let exec_type = ExecType::parse(&call.text(first + 1).ok_or(Error::NullArgument("p_exec_type"))?)?;
    let rows = call.typed_rows()?;
    let batch = session::launch_batch(spec, may_wait)?;
    let jobs: Vec<JobId> = (1..=spec.jobs.len() as u32).map(|ordinal| batch.job(ordinal)).collect();
    let look = || give_states(rows, batch, &jobs);
    match exec_type {
        ExecType::Async => look(),
        ExecType::Sync => session::follow(batch.into(), Following { is_verbose: true, timeout: None }, look),
    }
}

/// Rows of `pid, status, uuid_parent, uuid_child`.
fn give_states(mut rows: TypedRows, batch: BatchId, jobs: &[JobId]) -> Result<Value, Error> {
    for (job, (pid, state)) in jobs.iter().zip(session::states_of(batch.into(), jobs)) {
        rows.put(&[pid.into(), state.into(), SqlValue::Uuid(batch.bytes()), SqlValue::Uuid(job.bytes())])?;
    }
    rows.finish();
    Ok(Value::Void)
}

fn parse_uuid(text: &[u8]) -> Result<AnyId, Error> {
    Uuid::try_parse_ascii(text.trim_ascii())
        .map(|uuid| AnyId::of_bytes(uuid.into_bytes()))
        .map_err(|_| Error::Uuid(shown(text)))
}

/// `pg_background_monitor(uuid_father text, p_show_verbose bool, p_timeout interval)`
fn monitor_text(call: &Call) -> Result<Value, Error> {
    monitor(call, call.text(0).map(|text| parse_uuid(&text)).transpose()?)
}

/// `pg_background_monitor(uuid_father uuid, p_show_verbose bool, p_timeout interval)`
fn monitor_uuid(call: &Call) -> Result<Value, Error> {
    monitor(call, call.uuid(0).map(AnyId::of_bytes))
}

fn monitor(call: &Call, id: Option<AnyId>) -> Result<Value, Error> {
    let mut rows = call.typed_rows()?;
    let mut look = || session::read_jobs(id, &mut rows);
    match id {
        None => look()?,
        Some(id) => {
            let is_verbose = call.bool(1).unwrap_or(true);
            session::follow(id, Following { is_verbose, timeout: call.interval(2).map(duration) }, look)?;
        }
    }
    rows.finish();
    Ok(Value::Void)
}

/// An interval; a negative one is none at all.
fn duration(microseconds: i64) -> Duration {
    Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
}

/// `pg_background_stop(uuid_father_or_child text, p_grace interval)`
fn stop_text(call: &Call) -> Result<Value, Error> {
    stop(call, parse_uuid(&call.text(0).ok_or(Error::NullArgument("uuid"))?)?)
}

/// `pg_background_stop(uuid_father_or_child uuid, p_grace interval)`
fn stop_uuid(call: &Call) -> Result<Value, Error> {
    stop(call, AnyId::of_bytes(call.uuid(0).ok_or(Error::NullArgument("uuid"))?))
}

fn stop(call: &Call, id: AnyId) -> Result<Value, Error> {
    let grace = call.interval(1).ok_or(Error::NullArgument("p_grace"))?;
    let mut rows = call.typed_rows()?;
    for stopped in session::stop(id, duration(grace))? {
        rows.put(&[SqlValue::Uuid(stopped.uuid.bytes()), SqlValue::Text(stopped.was), stopped.now.into()])?;
    }
    rows.finish();
    Ok(Value::Void)
}

/// `pg_background_retry(uuid text)`
fn retry_text(call: &Call) -> Result<Value, Error> {
    retry(call, parse_uuid(&call.text(0).ok_or(Error::NullArgument("uuid"))?)?)
}

/// `pg_background_retry(uuid uuid)`
fn retry_uuid(call: &Call) -> Result<Value, Error> {
    retry(call, AnyId::of_bytes(call.uuid(0).ok_or(Error::NullArgument("uuid"))?))
}

fn retry(call: &Call, id: AnyId) -> Result<Value, Error> {
    let rows = call.typed_rows()?;
    let jobs = session::retry(id)?;
    give_states(rows, id.batch(), &jobs)
}

/// `pg_background_report_progress(pct int4, message text) RETURNS void`
fn report_progress(call: &Call) -> Result<Value, Error> {
    let percent = call.int(0).ok_or(Error::NullArgument("percentage"))?;
    session::report_progress(percent, &call.text(1).unwrap_or_default())?;
    Ok(Value::Void)
}

/// `pg_background_prune(older_than interval) RETURNS int8`
fn prune(call: &Call) -> Result<Value, Error> {
    match call.interval(0) {
        None => Err(Error::NullArgument("age")),
        Some(..0) => Err(Error::NegativeAge),
        Some(age) => Ok(Value::BigInt(session::prune(duration(age)))),
    }
}

sql_function!(pg_background_launch_text, pg_finfo_pg_background_launch_text, launch_text);
sql_function!(pg_background_launch_array, pg_finfo_pg_background_launch_array, launch_array);
sql_function!(pg_background_launch_json, pg_finfo_pg_background_launch_json, launch_json);
sql_function!(pg_background_monitor_text, pg_finfo_pg_background_monitor_text, monitor_text);
sql_function!(pg_background_monitor_uuid, pg_finfo_pg_background_monitor_uuid, monitor_uuid);
sql_function!(pg_background_stop_text, pg_finfo_pg_background_stop_text, stop_text);
sql_function!(pg_background_stop_uuid, pg_finfo_pg_background_stop_uuid, stop_uuid);
sql_function!(pg_background_retry_text, pg_finfo_pg_background_retry_text, retry_text);
sql_function!(pg_background_retry_uuid, pg_finfo_pg_background_retry_uuid, retry_uuid);
sql_function!(pg_background_report_progress, pg_finfo_pg_background_report_progress, report_progress);
sql_function!(pg_background_prune, pg_finfo_pg_background_prune, prune);
