//! Roles and their rights (miscinit.c).

use crate::compat::catalog::{ROLE_PG_READ_ALL_STATS, ROLE_PG_SIGNAL_BACKEND};
use crate::compat::{role_of_oid, role_oid};
use crate::ids::RoleId;
use pgrx::pg_sys;
use std::ffi::c_int;

/// The roles whose rights a job of this call may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The role to log in as.
    pub login: RoleId,
    /// The role to set after that.
    pub role: Option<RoleId>,
    /// Marks that of a local change, which the job must not leave: see [`confine`].
    pub is_confined: bool,
}

/// Returns the identity of the caller: the definer inside a SECURITY DEFINER function; else the session's user, with
/// its SET ROLE if one is active. Never a role that has more rights than the one in effect could reach by itself.
pub fn effective() -> Identity {
    // SAFETY: these read variables of this process.
    unsafe {
        let user = pg_sys::GetUserId();
        if pg_sys::InLocalUserIdChange() || user != pg_sys::GetOuterUserId() {
            return Identity { login: role_of_oid(user), role: None, is_confined: true };
        }
        let role = pg_sys::GetCurrentRoleId();
        Identity {
            login: role_of_oid(pg_sys::GetSessionUserId()),
            role: (role != pg_sys::Oid::INVALID).then(|| role_of_oid(role)),
            is_confined: false,
        }
    }
}

/// Makes the server refuse every change of the role and of the session's user, as inside a SECURITY DEFINER function
/// (guc.c, `GUC_NOT_WHILE_SEC_REST`), until [`release`]. Outside of a transaction: each one that begins later, also in
/// a procedure, keeps what it finds, and an abort goes back to that (xact.c, `StartTransaction`, `AbortTransaction`).
pub fn confine() {
    // A server with assertions checks that nothing is set outside of a transaction, and would end.
    if crate::ffi::guc::value(b"debug_assertions").as_deref() != Some(b"on") {
        set_context(pg_sys::SECURITY_LOCAL_USERID_CHANGE as c_int);
    }
}

/// Ends what [`confine`] began. Outside of a transaction.
pub fn release() {
    set_context(0);
}

/// Sets the security context of this process, and leaves the user as it is.
fn set_context(context: c_int) {
    let (mut user, mut before) = (pg_sys::Oid::INVALID, 0);
    // SAFETY: variables of this process.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut before);
        if before != context {
            pg_sys::SetUserIdAndSecContext(user, context);
        }
    }
}

/// Returns the role that was set, or [`RoleId::NONE`].
pub fn set_role() -> RoleId {
    // SAFETY: reads a variable of this process.
    role_of_oid(unsafe { pg_sys::GetCurrentRoleId() })
}

/// Returns whether nothing may outlive the current operation (index expressions, REFRESH MATERIALIZED VIEW, ANALYZE).
pub fn in_restricted_operation() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::InSecurityRestrictedOperation() }
}

/// Returns whether a role is in effect that was set (`SET ROLE`).
pub fn is_set() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::GetCurrentRoleId() != pg_sys::Oid::INVALID }
}

/// Returns the role whose rights are in effect.
pub fn current() -> RoleId {
    // SAFETY: reads a variable of this process.
    role_of_oid(unsafe { pg_sys::GetUserId() })
}

/// Returns whether this role is a superuser.
pub fn is_superuser(role: RoleId) -> bool {
    // SAFETY: a catalog lookup.
    unsafe { pg_sys::superuser_arg(role_oid(role)) }
}

/// Returns whether `member` has the rights of `role`.
pub fn has_rights_of(member: RoleId, role: RoleId) -> bool {
    // SAFETY: a catalog lookup.
    unsafe { pg_sys::has_privs_of_role(role_oid(member), role_oid(role)) }
}

/// Returns whether the code that runs now may use what belongs to this role: it runs as this role, or with its rights.
/// Where the server lends code the rights of another (a SECURITY DEFINER function, a trigger of ON DELETE CASCADE),
/// only as this role itself: membership is for sessions, not for what they call.
pub fn may_act_as(role: RoleId) -> bool {
    let current = current();
    // SAFETY: reads a variable of this process.
    current == role || !unsafe { pg_sys::InLocalUserIdChange() } && has_rights_of(current, role)
}

/// Returns whether the role has the rights of `pg_read_all_stats` (pg_authid.dat).
pub fn reads_all_stats(role: RoleId) -> bool {
    has_rights_of(role, RoleId::of_oid(ROLE_PG_READ_ALL_STATS))
}

/// Returns whether the role has the rights of `pg_signal_backend` (pg_authid.dat).
pub fn signals_backends(role: RoleId) -> bool {
    has_rights_of(role, RoleId::of_oid(ROLE_PG_SIGNAL_BACKEND))
}

/// Runs `body` with the rights of the superuser that owns the cluster, and with a search path in which no other role
/// can create anything; its statements reach no relation of others ([`super::internal_sql`]). Only for constant SQL
/// that names everything with its schema all the same, and calls no function but those of `pg_catalog`: others can have
/// a namesake in the schema of the extension. It changes no rows ([`super::heap`] does). An error leaves the rights
/// raised until the transaction is aborted, which the server does next.
pub fn as_cluster_owner<T>(body: impl FnOnce() -> T) -> T {
    let mut user = pg_sys::Oid::INVALID;
    let mut context: c_int = 0;
    let local = pg_sys::SECURITY_LOCAL_USERID_CHANGE as c_int;
    // SAFETY: the identity is put back below, or by the abort of the transaction.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID), context | local);
    }
    let value = crate::ffi::internal_sql::checked(|| crate::ffi::guc::with_pinned_search_path(body));
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(user, context) };
    value
}
