//! Launch request: the right to launch, and the settings of the launching session that a worker needs.

use crate::channel::nesting;
use crate::error::Error;
use crate::ffi::{alloc, guc, role, session};
use crate::protocol::{Request, MAX_NESTING};

/// Returns the request of this session, as it is now.
///
/// # Errors
/// 42501, 54000 or 42704 if the caller must not launch.
pub fn request() -> Result<Request, Error> {
    if !session::has_postmaster() {
        return Err(Error::SingleUser);
    }
    if role::in_restricted_operation() {
        return Err(match session::applies_as_table_owner() {
            true => Error::RestrictedApply,
            false => Error::RestrictedOperation,
        });
    }
    if let Some(kind) = session::forbidden_kind() {
        return Err(Error::ForbiddenProcess(kind));
    }
    let ancestors = nesting::ancestors();
    if ancestors.len() >= MAX_NESTING {
        return Err(Error::TooDeep);
    }
    let identity = role::effective();
    let settings = guc::session_settings();
    // The settings are encoded next, into a text that grows.
    alloc::ensure(3 * settings.iter().map(|setting| setting.name.len() + setting.value.len()).sum::<usize>());
    // A setting of a library means something only where the library is loaded.
    let libraries = settings.iter().any(guc::is_of_library).then(guc::loaded_libraries);
    // A role that was dropped while it is set leaves its session without rights; a job without that role would have
    // more.
    if let Some(role) = identity.role.filter(|role| session::role_name(*role).is_none()) {
        return Err(Error::RoleGone(role));
    }
    Ok(Request {
        database: session::database(),
        login: identity.login,
        role: identity.role,
        is_confined: identity.is_confined,
        ancestors,
        settings,
        configured: guc::configured(),
        libraries,
    })
}
