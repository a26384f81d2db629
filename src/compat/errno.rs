//! The error number of the C library, which a signal handler must leave as it was.

/// Puts `errno` back when dropped.
pub struct Errno(std::ffi::c_int);

impl Errno {
    pub fn keep() -> Self {
        // SAFETY: gives the address of this thread's errno.
        Errno(unsafe { *libc::__errno_location() })
    }
}

impl Drop for Errno {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = self.0 };
    }
}
