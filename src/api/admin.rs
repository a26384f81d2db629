//! `pg_background_grant`, `pg_background_revoke`.

use crate::api::function::sql_function;
use crate::error::{DbText, Error};
use crate::ffi::fmgr::{Call, Value};
use crate::ffi::{role, spi};
use crate::queries::{self, privileges};

/// `pg_background_grant(role_name name) RETURNS void`
fn grant(call: &Call) -> Result<Value, Error> {
    let role = granted_role(call)?;
    let schema = spi::select(queries::SCHEMA).concat();
    spi::execute(&privileges::grant_usage(&schema, &role));
    spi::execute(&privileges::grant_execute(&interface(), &role));
    spi::execute(&privileges::grant_select(&views(), &role));
    Ok(Value::Void)
}

/// `pg_background_revoke(role_name name) RETURNS void`
///
/// The schema stays usable: others than this extension may rely on that.
fn revoke(call: &Call) -> Result<Value, Error> {
    let role = granted_role(call)?;
    spi::execute(&privileges::revoke_execute(&interface(), &role));
    spi::execute(&privileges::revoke_select(&views(), &role));
    Ok(Value::Void)
}

fn interface() -> Vec<u8> {
    spi::select(queries::INTERFACE).join(&b", "[..])
}

fn views() -> Vec<u8> {
    spi::select(queries::VIEWS).join(&b", "[..])
}

/// Returns the role, quoted. Only the extension's owner and superusers may give and take.
fn granted_role(call: &Call) -> Result<Vec<u8>, Error> {
    let name = call.name(0).ok_or(Error::NullArgument("role name"))?;
    // In GRANT it is a keyword, also in quotes, and no role can have it as its name.
    if name == b"public" {
        return Err(Error::NoRole(DbText::new(&name)));
    }
    let owner = spi::select(queries::EXTENSION_OWNER).concat();
    let owner = std::str::from_utf8(&owner).ok().and_then(|owner| owner.parse().ok());
    match owner {
        Some(owner) if role::has_rights_of(role::current(), owner) => Ok(spi::quote_identifier(&name)),
        _ => Err(Error::NotOwner),
    }
}

sql_function!(pg_background_grant, pg_finfo_pg_background_grant, grant);
sql_function!(pg_background_revoke, pg_finfo_pg_background_revoke, revoke);
