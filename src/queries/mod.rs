//! SQL that the extension runs itself. Everything is named with its schema, so nothing that a user creates is taken
//! for it.

use crate::ids::{DatabaseId, RoleId};
pub mod privileges;

/// Sessions, and jobs that have not ended: a worker whose job has ended is idle, on its way out or waiting for a
/// reader.
const IS_CONNECTION: &str = "(backend_type OPERATOR(pg_catalog.=) 'client backend'::pg_catalog.text \
     OR backend_type OPERATOR(pg_catalog.=) 'pg_background'::pg_catalog.text \
     AND COALESCE(state, '') OPERATOR(pg_catalog.<>) 'idle'::pg_catalog.text)";

/// Returns a query for the number of sessions and jobs of a role: oid.
pub fn connections_of_role(role: RoleId) -> String {
    format!(
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity \
         WHERE usesysid OPERATOR(pg_catalog.=) {role}::pg_catalog.oid AND {IS_CONNECTION}"
    )
}

/// Returns a query for the number of sessions and jobs in a database: oid.
pub fn connections_to_database(database: DatabaseId) -> String {
    format!(
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity \
         WHERE datid OPERATOR(pg_catalog.=) {database}::pg_catalog.oid AND {IS_CONNECTION}"
    )
}

/// Returns a query for the number of connections that a role may have; -1 = any number.
pub fn limit_of_role(role: RoleId) -> String {
    format!("SELECT rolconnlimit FROM pg_catalog.pg_roles WHERE oid OPERATOR(pg_catalog.=) {role}::pg_catalog.oid")
}

/// Returns a query for the number of connections that a database may have; -1 = any number.
pub fn limit_of_database(database: DatabaseId) -> String {
    format!(
        "SELECT datconnlimit FROM pg_catalog.pg_database WHERE oid OPERATOR(pg_catalog.=) {database}::pg_catalog.oid"
    )
}

/// Returns a query for the name of a database: oid.
pub fn name_of_database(database: DatabaseId) -> String {
    format!("SELECT datname FROM pg_catalog.pg_database WHERE oid OPERATOR(pg_catalog.=) {database}::pg_catalog.oid")
}

/// The owner of the extension: oid.
pub const EXTENSION_OWNER: &str = "SELECT extowner::pg_catalog.int8 FROM pg_catalog.pg_extension \
     WHERE extname OPERATOR(pg_catalog.=) 'pg_background_mgr'::pg_catalog.name";

/// The functions that users call, and those that the views call for them, ready for GRANT.
pub const INTERFACE: &str = "SELECT pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, \
         pg_catalog.pg_get_function_identity_arguments(p.oid)) \
     FROM pg_catalog.pg_depend AS d \
     JOIN pg_catalog.pg_extension AS e ON e.oid OPERATOR(pg_catalog.=) d.refobjid \
     JOIN pg_catalog.pg_proc AS p ON p.oid OPERATOR(pg_catalog.=) d.objid \
     JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
     WHERE e.extname OPERATOR(pg_catalog.=) 'pg_background_mgr'::pg_catalog.name \
     AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass \
     AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
     AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog.\"char\" \
     AND p.prosrc OPERATOR(pg_catalog.<>) \
         ALL ('{pg_background_grant,pg_background_revoke,pg_background_take_back,pg_background_log_rows,\
pg_background_delete_job}'::pg_catalog.text[]) \
     ORDER BY 1";

/// The schema of the extension, ready for GRANT.
pub const SCHEMA: &str = "SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension AS e \
     JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace \
     WHERE e.extname OPERATOR(pg_catalog.=) 'pg_background_mgr'::pg_catalog.name";

/// The log, which is the only materialized view of the extension, and the sequence of its column `id`, whatever their
/// owner calls them: kinds and oids.
pub const LOG: &str = "SELECT c.relkind, c.oid::pg_catalog.int8 \
     FROM pg_catalog.pg_extension AS e \
     JOIN pg_catalog.pg_depend AS d ON d.refobjid OPERATOR(pg_catalog.=) e.oid \
     JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) d.objid \
     WHERE e.extname OPERATOR(pg_catalog.=) 'pg_background_mgr'::pg_catalog.name \
     AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass \
     AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
     AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog.\"char\" \
     AND c.relkind OPERATOR(pg_catalog.=) ANY ('{m,S}'::pg_catalog.\"char\"[])";

/// Row versions of the extension and of its schema, and the transactions that wrote them.
pub const EXTENSION_VERSION: &str = "SELECT pg_catalog.concat(e.oid, e.xmin, e.ctid, n.xmin, n.ctid) \
     FROM pg_catalog.pg_extension AS e \
     JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace \
     WHERE e.extname OPERATOR(pg_catalog.=) 'pg_background_mgr'::pg_catalog.name";

/// The transaction that wrote the extension's row.
pub const EXTENSION_XMIN: &str = "SELECT xmin FROM pg_catalog.pg_extension \
     WHERE extname OPERATOR(pg_catalog.=) 'pg_background_mgr'::pg_catalog.name";

/// Address of this session's client; a local one is at 127.0.0.1.
pub const CLIENT_ADDRESS: &str =
    "SELECT COALESCE(pg_catalog.host(pg_catalog.inet_client_addr()), '127.0.0.1'::pg_catalog.text)";

/// The views that users read, ready for GRANT.
pub const VIEWS: &str = "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_depend AS d \
     JOIN pg_catalog.pg_extension AS e ON e.oid OPERATOR(pg_catalog.=) d.refobjid \
     JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) d.objid \
     JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
     WHERE e.extname OPERATOR(pg_catalog.=) 'pg_background_mgr'::pg_catalog.name \
     AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass \
     AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
     AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog.\"char\" \
     AND c.relkind OPERATOR(pg_catalog.=) 'v'::pg_catalog.\"char\" \
     AND c.relnamespace OPERATOR(pg_catalog.=) e.extnamespace ORDER BY 1";

/// All databases: oids.
pub const DATABASES: &str = "SELECT oid FROM pg_catalog.pg_database";

/// Returns a query for what became of a transaction of this server or of one before it; no row if its number was not
/// given yet (xid8funcs.c, `pg_xact_status`).
pub fn transaction_status(transaction: u64) -> String {
    format!(
        "SELECT pg_catalog.txid_status({transaction}) WHERE {transaction} OPERATOR(pg_catalog.<) \
         pg_catalog.txid_snapshot_xmax(pg_catalog.txid_current_snapshot())"
    )
}

const JOBS: &[u8] = b"SELECT pid, status, uuid_parent, uuid_child, name, query, result, message, queue_position, \
     start_time_exec, end_time_exec, elapsed FROM ";

const JOBS_ORDER: &[u8] = b" ORDER BY queued_at, uuid_child";

/// Returns a query for the rows of `pg_background_monitor`, from the view of all jobs.
pub fn jobs(view: &[u8]) -> Vec<u8> {
    [JOBS, view, JOBS_ORDER].concat()
}

/// Returns the same for one job, or the jobs of one batch: its uuid is the parameter.
pub fn jobs_of(view: &[u8]) -> Vec<u8> {
    let condition = b" WHERE uuid_parent OPERATOR(pg_catalog.=) $1 OR uuid_child OPERATOR(pg_catalog.=) $1".as_slice();
    [JOBS, view, condition, JOBS_ORDER].concat()
}
