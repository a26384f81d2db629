//! Limits on connections of roles and databases, which a worker counts for.

use crate::error::{DbText, Error};
use crate::ffi::{bgworker, role, session, spi};
use crate::protocol::Request;
use crate::queries;

/// Checks that the request's role and database may have this connection, for jobs count as connections. The server's
/// own check leaves background workers out (miscinit.c, `InitializeSessionUserId`; postinit.c, `CheckMyDatabase`).
///
/// # Errors
/// [`Error::RoleConnections`], [`Error::DatabaseConnections`] (53300)
pub fn check_connection_limits(request: &Request) -> Result<(), Error> {
    if role::is_superuser(request.login) {
        return Ok(());
    }
    let number = |sql: String| spi::select(&sql).first().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    role::as_cluster_owner(|| {
        let exceeded = |limit: Option<i64>, count: String| match limit {
            Some(limit) if limit >= 0 => {
                // Of several that come at once, the last one that is shown sees all.
                bgworker::wait_until_shown();
                number(count).is_some_and(|count: i64| count > limit)
            }
            _ => false,
        };
        if exceeded(number(queries::limit_of_role(request.login)), queries::connections_of_role(request.login)) {
            let name = session::role_name(request.login).unwrap_or_default();
            return Err(Error::RoleConnections(DbText::new(&name)));
        }
        let database = request.database;
        if exceeded(number(queries::limit_of_database(database)), queries::connections_to_database(database)) {
            let name = spi::select(&queries::name_of_database(database)).pop().unwrap_or_default();
            return Err(Error::DatabaseConnections(DbText::new(&name)));
        }
        Ok(())
    })
}
