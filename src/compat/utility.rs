//! The hook of utility commands (utility.c, `ProcessUtility`).

use crate::compat::callback;
use pgrx::pg_sys;
use std::cell::Cell;

thread_local! {
    /// The hook that was there before; it is called first.
    static PREVIOUS: Cell<pg_sys::ProcessUtility_hook_type> = const { Cell::new(None) };
    static AFTER_DISCARD_ALL: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Calls `body` in this process after each DISCARD ALL that has succeeded. To be called once, when the library is
/// loaded.
pub fn after_discard_all(body: fn()) {
    AFTER_DISCARD_ALL.set(Some(body));
    // SAFETY: a variable of this process; the hook is a function of this library, which is never unloaded.
    unsafe {
        PREVIOUS.set(pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(on_utility);
    }
}

callback! {
    fn has_discarded_all() {
        if let Some(body) = AFTER_DISCARD_ALL.get() {
            body();
        }
    }
}

/// Returns whether the command is DISCARD ALL.
///
/// # Safety
/// `statement` is a planned utility command.
unsafe fn is_discard_all(statement: *const pg_sys::PlannedStmt) -> bool {
    // SAFETY: by contract; each node begins with its tag.
    unsafe {
        let command = (*statement).utilityStmt;
        (*command).type_ == pg_sys::NodeTag::T_DiscardStmt
            && (*command.cast::<pg_sys::DiscardStmt>()).target == pg_sys::DiscardMode::DISCARD_ALL
    }
}

/// Defines the hook. It has no guard: an error of the server passes through its frame, which holds nothing to be
/// dropped, and keeps all its fields.
macro_rules! utility_hook {
    ($abi:literal, $($argument:ident: $type:ty),*) => {
        mod server {
            #![allow(non_snake_case, reason = "the server's name")]
            use pgrx::pg_sys;
            extern $abi {
                pub fn standard_ProcessUtility(statement: *mut pg_sys::PlannedStmt, $($argument: $type),*);
            }
        }

        unsafe extern $abi fn on_utility(statement: *mut pg_sys::PlannedStmt, $($argument: $type),*) {
            // SAFETY: the server's own arguments, handed on as they came. DISCARD ALL may free the command.
            unsafe {
                let discards_all = is_discard_all(statement);
                match PREVIOUS.get() {
                    Some(previous) => previous(statement, $($argument),*),
                    None => server::standard_ProcessUtility(statement, $($argument),*),
                }
                if discards_all {
                    has_discarded_all();
                }
            }
        }
    };
}

#[cfg(not(feature = "__ge13"))]
utility_hook!(
    "C",
    text: *const std::ffi::c_char,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    tag: *mut std::ffi::c_char
);
#[cfg(all(feature = "__ge13", not(feature = "__ge14")))]
utility_hook!(
    "C",
    text: *const std::ffi::c_char,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion
);
#[cfg(all(feature = "__ge14", not(feature = "__ge18")))]
utility_hook!(
    "C",
    text: *const std::ffi::c_char,
    is_read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion
);
#[cfg(feature = "__ge18")]
utility_hook!(
    "C-unwind",
    text: *const std::ffi::c_char,
    is_read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion
);
