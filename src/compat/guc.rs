//! Settings: how a server writes them down for its workers, and how one is made.

use crate::protocol::Setting;
use pgrx::pg_sys;
use std::ffi::{c_char, c_int};

/// Tells whether a serialized setting ends with the role that made it (guc.c, `serialize_variable`).
pub const SERIALIZED_WITH_ROLE: bool = cfg!(feature = "__ge15");

/// Makes a setting as a worker does that restores its leader's (guc.c, `RestoreGUCState`): what may be set is checked
/// against the role that has set it.
///
/// # Safety
/// `name` and `value` are C strings; a transaction is open.
pub unsafe fn restore_setting(name: *const c_char, value: *const c_char, setting: &Setting, level: c_int) {
    let action = pg_sys::GucAction::GUC_ACTION_SET;
    let (context, source) = (setting.context as _, setting.source as _);
    #[cfg(not(feature = "__ge15"))]
    // SAFETY: by contract.
    unsafe {
        pg_sys::set_config_option(name, value, context, source, action, true, level, true)
    };
    #[cfg(feature = "__ge15")]
    // SAFETY: by contract.
    unsafe {
        let role = crate::compat::role_oid(setting.role);
        pg_sys::set_config_option_ext(name, value, context, source, role, action, true, level, true)
    };
}

/// Tells the server that settings whose names begin with this prefix are this library's: those that it has not defined
/// are refused from now on, and forgotten with a warning if they are there already (guc.c). Before 15 there is only the
/// warning.
pub fn reserve_prefix(prefix: &'static std::ffi::CStr) {
    #[cfg(not(feature = "__ge15"))]
    // SAFETY: a C string that lives as long as the library.
    unsafe {
        pg_sys::EmitWarningsOnPlaceholders(prefix.as_ptr())
    };
    #[cfg(feature = "__ge15")]
    // SAFETY: as above.
    unsafe {
        pg_sys::MarkGUCPrefixReserved(prefix.as_ptr())
    };
}
