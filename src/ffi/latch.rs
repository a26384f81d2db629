//! The one wait (latch.c).

use crate::ffi::interrupt;
use pgrx::pg_sys;
use std::time::Duration;

/// Sleeps until this process's latch is set or the time is over, then serves interrupts: cancel, termination,
/// barriers. Ends the process when the postmaster is gone. Callers test their condition before each call.
pub fn wait(timeout: Option<Duration>) {
    wait_in(timeout, pg_sys::PG_WAIT_EXTENSION);
}

/// Waits like [`wait`], with `event` as the wait event (wait_event.h).
pub fn wait_in(timeout: Option<Duration>, event: u32) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    if timeout.is_some() {
        events |= pg_sys::WL_TIMEOUT;
    }
    // Rounded up: a wait that ends before its time is followed by another one.
    let milliseconds =
        timeout.map_or(-1, |timeout| timeout.as_micros().div_ceil(1000).clamp(1, i32::MAX as u128) as i64);
    // SAFETY: MyLatch is this process's own.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds as _, event);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    interrupt::check();
}

/// Returns whether the latch of this process is set, without waiting.
pub fn is_set() -> bool {
    // SAFETY: MyLatch is this process's own, in memory that others write.
    unsafe { (&raw const (*pg_sys::MyLatch).is_set).read_volatile() != 0 }
}

/// Sets the latch of this process, also from a signal handler.
pub fn set() {
    // SAFETY: MyLatch is this process's own, and handlers may set it.
    unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
}

/// Lets some time go by, and serves no interrupts: for what must not end in between. Ends the process when the
/// postmaster is gone.
pub fn pause(time: Duration) {
    let events = pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let milliseconds = time.as_millis().clamp(1, i32::MAX as u128) as i64;
    // SAFETY: waits for no latch, so none is named.
    unsafe {
        pg_sys::WaitLatch(std::ptr::null_mut(), events as i32, milliseconds as _, pg_sys::PG_WAIT_EXTENSION);
    }
}
