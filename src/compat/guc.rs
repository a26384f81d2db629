//! Settings: how a server writes them down for its workers, and how one is made.

use crate::protocol::Setting;
use pgrx::pg_sys;
use std::ffi::{c_char, c_int};

/// Whether a serialized setting ends with the role that made it (guc.c, `serialize_variable`).
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
        let role = pg_sys::Oid::from(setting.role);
        pg_sys::set_config_option_ext(name, value, context, source, role, action, true, level, true)
    };
}
