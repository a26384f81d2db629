//! Shared memory areas.

use pgrx::pg_sys;
use std::ffi::c_int;

/// Makes an area (dsa.c).
///
/// # Safety
/// The current memory context outlives the mapping.
pub unsafe fn create_dsa(tranche: c_int) -> *mut pg_sys::dsa_area {
    #[cfg(not(feature = "__ge17"))]
    // SAFETY: by contract.
    return unsafe { pg_sys::dsa_create(tranche) };
    #[cfg(feature = "__ge17")]
    // SAFETY: by contract; the sizes are the server's own defaults (DSA_DEFAULT_INIT_SEGMENT_SIZE,
    // DSA_MAX_SEGMENT_SIZE).
    return unsafe { pg_sys::dsa_create_ext(tranche, 1 << 20, 1 << 40) };
}
