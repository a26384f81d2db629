//! Memory whose size or number a user decides: asking for it raises 53200 where there is none, as in the server.

use crate::error::Error;
pub use crate::ffi::allocator::has;
use crate::ffi::allocator::{is_short, SPARE_BYTES};
use crate::ffi::raise;
use crate::ffi::raise::Log;
use crate::protocol::Report;
use std::ffi::{c_char, CStr};

/// Bytes below which nothing is checked: the reserve has them.
const SMALL_BYTES: usize = 64 * 1024;

fn raise_out_of_memory(bytes: usize) {
    raise::emit(&Report::from(Error::OutOfMemory(bytes)), Log::Here);
}

/// Makes room for more elements, or raises 53200.
pub fn reserve<T>(vector: &mut Vec<T>, more: usize) {
    if vector.try_reserve(more).is_err() {
        raise_out_of_memory(more.saturating_mul(size_of::<T>()));
    }
}

/// Copies bytes, or raises 53200.
pub fn copy(bytes: &[u8]) -> Vec<u8> {
    let mut copy = Vec::new();
    if copy.try_reserve_exact(bytes.len()).is_err() {
        raise_out_of_memory(bytes.len());
    }
    copy.extend_from_slice(bytes);
    copy
}

/// Returns that many zeros, or raises 53200.
pub fn zeroed(length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(length).is_err() {
        raise_out_of_memory(length);
    }
    bytes.resize(length, 0);
    bytes
}

/// Raises 53200 unless this process can get that many bytes: before work of a library that cannot fail in another way.
/// For little there is the reserve. This process has one thread, so what is there now is there for that work.
pub fn ensure(bytes: usize) {
    if bytes >= SMALL_BYTES && !has(bytes) {
        raise_out_of_memory(bytes);
    }
}

/// Raises 53200 if the reserve had to be used and memory is still short: where much that is small is made one by one.
pub fn check() {
    if is_short() {
        raise_out_of_memory(SPARE_BYTES);
    }
}

/// Copies a C string of the server; raises 53200 if there is no memory for it.
///
/// # Safety
/// `text` is a valid C string.
pub(super) unsafe fn copy_text(text: *const c_char) -> Vec<u8> {
    // SAFETY: by contract.
    copy(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// Copies a C string of the server, if there is one; raises 53200 if there is no memory for it.
///
/// # Safety
/// `text` is null or a valid C string.
pub(super) unsafe fn copy_c_string(text: *const c_char) -> Option<Vec<u8>> {
    // SAFETY: by contract.
    (!text.is_null()).then(|| unsafe { copy_text(text) })
}
