//! Jobs that the caller may act on, and how they are named.

use crate::error::{DbText, Error};
use crate::ffi::role;
use crate::registry;

use uuid::Uuid;

pub fn no_such_job(uuid: &[u8; 16]) -> Error {
    Error::NoSuchJob(DbText::new(&format_uuid(uuid)))
}

/// Returns whether the caller may stop or retry jobs of this owner, launched by `login`, as far as superusers are
/// concerned:
/// membership is not enough for those of a superuser (signalfuncs.c, `pg_signal_backend`). Who launched them, may.
pub fn reaches_superusers(owner: u32, login: u32) -> bool {
    let current = role::current();
    !(role::is_superuser(owner) || role::is_superuser(login))
        || role::is_superuser(current)
        || (owner, login) == (current, role::effective().login)
}

/// A uuid as text.
pub fn format_uuid(uuid: &[u8; 16]) -> Vec<u8> {
    Uuid::from_bytes(*uuid).hyphenated().to_string().into_bytes()
}

/// The uuid of a batch's job.
pub fn uuid_of(batch: &[u8; 16], ordinal: u32) -> [u8; 16] {
    registry::job_uuid(batch, ordinal)
}
