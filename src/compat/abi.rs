//! Differences between the two pgrx versions: calling conventions and small types.

use crate::ids::{DatabaseId, RoleId};
use pgrx::pg_sys;

/// Defines a function that the server calls through a pointer. A panic or an error inside becomes an error of the
/// server. pgrx 0.13.1 declares such pointers as `extern "C"`, 0.18.1 `extern "C-unwind"`.
macro_rules! callback {
    ($(#[$attr:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        #[cfg(feature = "__ge18")]
        $(#[$attr])*
        $vis unsafe extern "C-unwind" fn $name($($arg: $ty),*) $(-> $ret)? {
            let body = move || $body;
            // SAFETY: the server calls this on its only thread; the closure's panics end in the guard.
            unsafe { pgrx::pg_sys::panic::pgrx_extern_c_guard(body) }
        }
        #[cfg(not(feature = "__ge18"))]
        $(#[$attr])*
        $vis unsafe extern "C" fn $name($($arg: $ty),*) $(-> $ret)? {
            let body = move || $body;
            // SAFETY: the server calls this on its only thread; the closure's panics end in the guard.
            unsafe { pgrx::pg_sys::panic::pgrx_extern_c_guard(body) }
        }
    };
}
pub(crate) use callback;

/// Defines a signal handler. Its body does only what a handler may; `errno` is kept (pqsignal.c).
macro_rules! signal_handler {
    (fn $name:ident() $body:block) => {
        #[cfg(feature = "__ge18")]
        unsafe extern "C-unwind" fn $name(_signal: std::ffi::c_int) {
            let _errno = $crate::compat::errno::Errno::keep();
            $body
        }
        #[cfg(not(feature = "__ge18"))]
        unsafe extern "C" fn $name(_signal: std::ffi::c_int) {
            let _errno = $crate::compat::errno::Errno::keep();
            $body
        }
    };
}
pub(crate) use signal_handler;

/// A signal handler of the server, as `pqsignal` takes it.
pub type SignalHandler = pg_sys::pqsigfunc;

/// Returns an oid as a number.
pub fn oid_to_u32(oid: pg_sys::Oid) -> u32 {
    #[cfg(feature = "__ge18")]
    return oid.to_u32();
    #[cfg(not(feature = "__ge18"))]
    return oid.as_u32();
}

/// Returns the role that an oid of the server names.
pub fn role_of_oid(oid: pg_sys::Oid) -> RoleId {
    RoleId::of_oid(oid_to_u32(oid))
}

/// Returns the oid of a role, for the server.
pub fn role_oid(role: RoleId) -> pg_sys::Oid {
    role.oid().into()
}

/// Returns the database that an oid of the server names.
pub fn database_of_oid(oid: pg_sys::Oid) -> DatabaseId {
    DatabaseId::of_oid(oid_to_u32(oid))
}

/// Returns the oid of a database, for the server.
pub fn database_oid(database: DatabaseId) -> pg_sys::Oid {
    database.oid().into()
}

/// Returns the attribute with this index, from 0 (tupdesc.h, `TupleDescAttr`). 18 keeps them behind the compact ones.
///
/// # Safety
/// `desc` is a valid tuple descriptor with more than `index` attributes, and outlives the reference.
pub unsafe fn tuple_desc_attr<'a>(desc: pg_sys::TupleDesc, index: usize) -> &'a pg_sys::FormData_pg_attribute {
    #[cfg(feature = "__ge18")]
    // SAFETY: the full attributes follow the `natts` compact ones in the same allocation.
    unsafe {
        let compact = (&raw mut (*desc).compact_attrs).cast::<pg_sys::CompactAttribute>();
        let full = compact.add((*desc).natts as usize).cast::<pg_sys::FormData_pg_attribute>();
        &*full.add(index)
    }
    #[cfg(not(feature = "__ge18"))]
    // SAFETY: by contract.
    unsafe {
        let attributes = (&raw mut (*desc).attrs).cast::<pg_sys::FormData_pg_attribute>();
        &*attributes.add(index)
    }
}

/// Returns the identifier of a transaction as a number.
pub fn transaction_number(transaction: pg_sys::TransactionId) -> u32 {
    #[cfg(feature = "__ge18")]
    return transaction.into_inner();
    #[cfg(not(feature = "__ge18"))]
    return transaction;
}

/// Returns a number as the identifier of a transaction.
pub fn transaction_id(number: u32) -> pg_sys::TransactionId {
    #[cfg(feature = "__ge18")]
    return number.into();
    #[cfg(not(feature = "__ge18"))]
    return number;
}
