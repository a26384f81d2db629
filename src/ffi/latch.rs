//! The one wait (latch.c).

use super::interrupt;
use pgrx::pg_sys;
use std::time::Duration;

/// Sleeps until this process's latch is set or the time is over, then serves interrupts: cancel, termination,
/// barriers. Ends the process when the postmaster is gone. Callers test their condition before each call.
pub fn wait(timeout: Option<Duration>) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    if timeout.is_some() {
        events |= pg_sys::WL_TIMEOUT;
    }
    let milliseconds = timeout.map_or(-1, |timeout| timeout.as_millis().clamp(1, i32::MAX as u128) as i64);
    // SAFETY: MyLatch is this process's own.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds as _, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    interrupt::check();
}
