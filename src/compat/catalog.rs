//! Objects of the catalogs whose names differ between versions; their oids are the same.

use crate::compat::abi::{database_oid, role_oid};
use crate::ids::{DatabaseId, RoleId};
use pgrx::pg_sys;

#[cfg(not(feature = "__ge14"))]
mod names {
    use super::pg_sys;
    pub use pg_sys::DEFAULT_ROLE_READ_ALL_STATS as ROLE_PG_READ_ALL_STATS;
    pub use pg_sys::DEFAULT_ROLE_SIGNAL_BACKENDID as ROLE_PG_SIGNAL_BACKEND;
    pub use pg_sys::F_ROW_TO_JSON as F_ROW_TO_JSON_RECORD;
    /// Named after its C function, which both types share.
    pub use pg_sys::F_TIMESTAMP_LT as F_TIMESTAMPTZ_LT;
}
#[cfg(feature = "__ge14")]
mod names {
    use super::pg_sys;
    pub use pg_sys::{F_ROW_TO_JSON_RECORD, F_TIMESTAMPTZ_LT, ROLE_PG_READ_ALL_STATS, ROLE_PG_SIGNAL_BACKEND};
}

pub use names::*;

/// Returns whether the role may connect to the database (`has_database_privilege`; acl.c).
pub fn may_connect(database: DatabaseId, role: RoleId) -> bool {
    let (database, role) = (database_oid(database), role_oid(role));
    let mode = pg_sys::ACL_CONNECT as pg_sys::AclMode;
    #[cfg(not(feature = "__ge16"))]
    // SAFETY: a catalog lookup.
    let result = unsafe { pg_sys::pg_database_aclcheck(database, role, mode) };
    #[cfg(feature = "__ge16")]
    // SAFETY: a catalog lookup.
    let result = unsafe { pg_sys::object_aclcheck(pg_sys::DatabaseRelationId, database, role, mode) };
    result == pg_sys::AclResult::ACLCHECK_OK
}

/// Returns the range type of a multirange type (lsyscache.c); invalid = it is none. Servers before 14 have none.
///
/// # Safety
/// Called where catalogs can be read.
pub unsafe fn range_of_multirange(type_oid: pg_sys::Oid) -> pg_sys::Oid {
    #[cfg(not(feature = "__ge14"))]
    {
        let _ = type_oid;
        pg_sys::Oid::INVALID
    }
    #[cfg(feature = "__ge14")]
    // SAFETY: by contract.
    unsafe {
        pg_sys::get_multirange_range(type_oid)
    }
}
