//! Rights to act on jobs, and the names of jobs in messages.

use crate::error::{DbText, Error};
use crate::ffi::role;
use crate::registry;

use uuid::Uuid;

/// Returns the error for a uuid of which the caller has no job.
pub fn no_such_job(uuid: &[u8; 16]) -> Error {
    Error::NoSuchJob(DbText::new(&format_uuid(uuid)))
}

/// Returns whether the caller may stop or retry jobs of this owner, launched by `login`, as far as superusers are
/// concerned: membership is not enough for the jobs of a superuser (signalfuncs.c, `pg_signal_backend`). The role that
/// launched the jobs may act on them.
pub fn reaches_superusers(owner: u32, login: u32) -> bool {
    let current = role::current();
    !(role::is_superuser(owner) || role::is_superuser(login))
        || role::is_superuser(current)
        || (owner, login) == (current, role::effective().login)
}

/// Returns a uuid as text.
pub fn format_uuid(uuid: &[u8; 16]) -> Vec<u8> {
    Uuid::from_bytes(*uuid).hyphenated().to_string().into_bytes()
}

/// Returns the uuid of a batch's job.
pub fn uuid_of(batch: &[u8; 16], ordinal: u32) -> [u8; 16] {
    registry::job_uuid(batch, ordinal)
}
