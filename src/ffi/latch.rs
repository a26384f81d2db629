//! The one wait (latch.c).

use crate::ffi::interrupt;
use pgrx::pg_sys;
use std::cell::Cell;
use std::time::{Duration, Instant};

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

/// Time that a process looks for its latch before it sleeps: about what falling asleep and being woken costs.
const LOOK: Duration = Duration::from_micros(30);
/// An event that came within this time was nearly there when the process fell asleep.
const SOON: Duration = Duration::from_micros(150);

/// Waits for one kind of thing, again and again. When it came soon the last time, the process does not sleep at once
/// the next time, but looks a little: to be woken takes longer than most short jobs.
pub struct SpinThenWait {
    came_soon: Cell<bool>,
    since: Cell<Option<Instant>>,
}

impl SpinThenWait {
    pub const fn new() -> Self {
        SpinThenWait { came_soon: Cell::new(false), since: Cell::new(None) }
    }

    /// Polls the latch before the first sleep of a wait, if that is worth it. Returns whether it is set.
    pub fn spin(&self) -> bool {
        let began = Instant::now();
        self.since.set(Some(began));
        if !self.came_soon.get() || !has_processors() {
            return false;
        }
        loop {
            // SAFETY: MyLatch is this process's own, in memory that others write.
            if unsafe { (&raw const (*pg_sys::MyLatch).is_set).read_volatile() } != 0 {
                return true;
            }
            if began.elapsed() > LOOK {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Notes that what was waited for has come.
    pub fn record_wakeup(&self) {
        if let Some(since) = self.since.take() {
            self.came_soon.set(since.elapsed() < SOON);
        }
    }
}

/// Returns whether there is a processor for the process that is waited for, while this one looks.
fn has_processors() -> bool {
    thread_local! {
        static COUNT: Cell<usize> = const { Cell::new(0) };
    }
    if COUNT.get() == 0 {
        COUNT.set(std::thread::available_parallelism().map_or(1, usize::from));
    }
    COUNT.get() > 1
}
