//! `pg_background_launch`, `pg_background_result`, `pg_background_detach`.

use crate::api::function::sql_function;
use crate::error::Error;
use crate::ffi::fmgr::{Call, Value};
use crate::session;

/// `pg_background_launch(sql text, queue_size int4) RETURNS int4`
fn launch(call: &Call) -> Result<Value, Error> {
    let sql = call.text(0).ok_or(Error::NullArgument("SQL text"))?;
    let queue_size = call.int(1).ok_or(Error::NullArgument("queue size"))?;
    session::launch(&sql, queue_size).map(Value::Int)
}

/// `pg_background_result(pid int4) RETURNS SETOF record`
fn result(call: &Call) -> Result<Value, Error> {
    let pid = call.int(0).ok_or(Error::NullArgument("process ID"))?;
    session::result(pid, call.rows()?)
}

/// `pg_background_detach(pid int4) RETURNS void`
fn detach(call: &Call) -> Result<Value, Error> {
    let pid = call.int(0).ok_or(Error::NullArgument("process ID"))?;
    session::detach(pid)?;
    Ok(Value::Void)
}

/// `background_launch(sql text) RETURNS int4`
fn background_launch(call: &Call) -> Result<Value, Error> {
    let sql = call.text(0).ok_or(Error::NullArgument("SQL text"))?;
    session::launch(&sql, session::DEFAULT_QUEUE_BYTES).map(Value::Int)
}

sql_function!(pg_background_launch, pg_finfo_pg_background_launch, launch);
sql_function!(pg_background_result, pg_finfo_pg_background_result, result);
sql_function!(pg_background_detach, pg_finfo_pg_background_detach, detach);
sql_function!(pg_background_launch_default, pg_finfo_pg_background_launch_default, background_launch);
