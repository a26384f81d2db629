//! Functions for the scripts that make and update the extension, with the rights of the role that runs them.

use crate::api::function::sql_function;
use crate::error::Error;
use crate::ffi::fmgr::{Call, Value};
use crate::ffi::{session, spi};
use crate::queries::privileges;

/// `background_mgr.take_back() RETURNS void`, and `take_back(regnamespace)` for what is in a schema
///
/// Takes away what others may do with the members of the extension: what a new object gives to PUBLIC, and what default
/// privileges have given.
fn take_back(call: &Call) -> Result<Value, Error> {
    execute(&call.oid(0).map_or_else(privileges::of_others, privileges::of_others_in_schema));
    Ok(Value::Void)
}

/// `background_mgr.copy_rights(source regclass, target regclass) RETURNS void`
fn copy_rights_of_relation(call: &Call) -> Result<Value, Error> {
    let (source, target) = source_and_target(call)?;
    execute(&privileges::of_others_on_relation(target));
    give(&privileges::of_relation(source, target));
    Ok(Value::Void)
}

/// `background_mgr.copy_rights(source regprocedure, target regprocedure) RETURNS void`
fn copy_rights_of_function(call: &Call) -> Result<Value, Error> {
    let (source, target) = source_and_target(call)?;
    give(&privileges::of_function(source, target));
    Ok(Value::Void)
}

fn source_and_target(call: &Call) -> Result<(u32, u32), Error> {
    call.oid(0).zip(call.oid(1)).ok_or(Error::NullArgument("source and target"))
}

/// Grants what users have granted: not as rights that come with the extension (`pg_init_privs`), which pg_dump leaves
/// out.
fn give(grants: &str) {
    session::outside_of_script(|| execute(grants));
}

/// Runs the commands that a query returns.
fn execute(query: &str) {
    spi::select(query).iter().for_each(|command| spi::execute(command));
}

sql_function!(pg_background_take_back, pg_finfo_pg_background_take_back, take_back);
sql_function!(pg_background_copy_relation_rights, pg_finfo_pg_background_copy_relation_rights, copy_rights_of_relation);
sql_function!(pg_background_copy_function_rights, pg_finfo_pg_background_copy_function_rights, copy_rights_of_function);
