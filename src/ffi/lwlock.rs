//! The server's lightweight locks (lwlock.c).

use crate::ffi::sys;
use pgrx::pg_sys;

/// A held lock; released when dropped.
pub(super) struct LwLockGuard(*mut pg_sys::LWLock);

impl LwLockGuard {
    /// # Safety
    /// `lock` is initialised and not held by this process.
    pub(super) unsafe fn acquire(lock: *mut pg_sys::LWLock, mode: pg_sys::LWLockMode::Type) -> Self {
        // SAFETY: by contract.
        unsafe { pg_sys::LWLockAcquire(lock, mode) };
        LwLockGuard(lock)
    }
}

impl Drop for LwLockGuard {
    fn drop(&mut self) {
        // SAFETY: held by this process. An error in between has set the count of holds to zero (errfinish), and the
        // release takes one off: as LWLockReleaseAll does.
        unsafe {
            if pg_sys::InterruptHoldoffCount == 0 {
                pg_sys::InterruptHoldoffCount = 1;
            }
            pg_sys::LWLockRelease(self.0);
        }
    }
}

/// Runs `body` under the lock that guards the making of shared structures.
pub(super) fn with_init_lock<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: one of the server's own locks; the guard releases it, also while unwinding.
    let _held = unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(sys::AddinShmemInitLock)).lock;
        LwLockGuard::acquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE)
    };
    body()
}
