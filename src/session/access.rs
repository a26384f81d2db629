//! Rights to act on jobs, and the names of jobs in messages.

use crate::error::{DbText, Error};
use crate::ffi::role;
use crate::ids::{AnyId, RoleId};

/// Returns the error for a uuid of which the caller has no job.
pub fn no_such_job(id: AnyId) -> Error {
    Error::NoSuchJob(DbText::new(id.to_string().as_bytes()))
}

/// Returns whether the caller may stop or retry jobs of this owner, launched by `login`, as far as superusers are
/// concerned: membership is not enough for the jobs of a superuser (signalfuncs.c, `pg_signal_backend`). The role that
/// launched the jobs may act on them.
pub fn reaches_superusers(owner: RoleId, login: RoleId) -> bool {
    let current = role::current();
    !(role::is_superuser(owner) || role::is_superuser(login))
        || role::is_superuser(current)
        || (owner, login) == (current, role::effective().login)
}
