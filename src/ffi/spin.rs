//! Polling the latch for a moment in place of sleeping at once: where to be woken takes longer than what is waited for.
//!
//! Polling pays if the event comes before a process could have fallen asleep and been woken. Both are measured as it
//! goes: the process that wakes another one leaves the time in shared memory, so that the one that was woken can tell
//! how long the event took from how long its waking took, which differs by machine from 5 to 100 microseconds
//! (competitive spinning: Karlin and others, 1991, "Empirical studies of competitive spinning").

use crate::ffi::latch;
use std::cell::Cell;
use std::time::Duration;

/// Limits for the time that a process polls: what waking is taken to cost at least, and at most.
const MIN_WAKEUP: Duration = Duration::from_micros(30);
const MAX_WAKEUP: Duration = Duration::from_micros(200);
/// Time between two looks at the latch after which the processor was taken away meanwhile: more processes want to run
/// than there are processors.
const PREEMPTED: Duration = Duration::from_micros(100);
/// Maximum number of waits without polling after it did not pay.
const MAX_SKIPPED: u32 = 255;
/// Weight of the last waking in the average: one in so many.
const WEIGHT: u64 = 4;

/// Nanoseconds of the clock that all processes share ([`clock`]), or between two times of it.
pub type Nanos = u64;

/// Returns the monotonic clock of the system, which is never zero and the same in all processes (clock_gettime(2)).
pub fn clock() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct; the clock exists on all systems that the server runs on.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as Nanos * 1_000_000_000 + time.tv_nsec as Nanos).max(1)
}

/// Returns a time in the unit of [`clock`].
const fn nanos(time: Duration) -> Nanos {
    time.as_nanos() as Nanos
}

/// Wait for one kind of event, again and again.
pub struct SpinThenWait {
    /// Average time from an event until a process that slept went on.
    wakeup: Cell<Nanos>,
    /// The last event came before a process could have been woken.
    came_soon: Cell<bool>,
    /// Number of waits that are not to poll now, and after the next time that it did not pay.
    to_skip: Cell<u32>,
    next_skipped: Cell<u32>,
    since: Cell<Nanos>,
    has_slept: Cell<bool>,
}

impl SpinThenWait {
    pub const fn new() -> Self {
        SpinThenWait {
            wakeup: Cell::new(nanos(MIN_WAKEUP)),
            came_soon: Cell::new(false),
            to_skip: Cell::new(0),
            next_skipped: Cell::new(0),
            since: Cell::new(0),
            has_slept: Cell::new(false),
        }
    }

    /// Polls the latch before the first sleep of a wait, if that is worth it. Returns whether it is set.
    pub fn spin(&self) -> bool {
        let began = clock();
        self.since.set(began);
        self.has_slept.set(true);
        if !self.came_soon.get() || !has_processors() {
            return false;
        }
        if self.to_skip.get() > 0 {
            self.to_skip.set(self.to_skip.get() - 1);
            return false;
        }
        let mut looked = began;
        loop {
            if latch::is_set() {
                self.has_slept.set(false);
                self.next_skipped.set(self.next_skipped.get() / 2);
                return true;
            }
            let now = clock();
            if now - began > self.wakeup.get() || now - looked > nanos(PREEMPTED) {
                let skipped = self.next_skipped.get();
                self.to_skip.set(skipped);
                self.next_skipped.set((2 * skipped + 1).min(MAX_SKIPPED));
                return false;
            }
            looked = now;
            std::hint::spin_loop();
        }
    }

    /// Notes that what was waited for has come. `at`: when, by [`clock`]; `None` if that is not known.
    pub fn record_wakeup(&self, at: Option<Nanos>) {
        let since = self.since.replace(0);
        if since == 0 {
            return; // it was there before the wait began
        }
        let now = clock();
        let at = at.map_or(now, |at| at.clamp(since, now));
        if self.has_slept.get() && at > since && at < now {
            let average = (self.wakeup.get() * (WEIGHT - 1) + (now - at)) / WEIGHT;
            self.wakeup.set(average.clamp(nanos(MIN_WAKEUP), nanos(MAX_WAKEUP)));
        }
        self.came_soon.set(at - since < self.wakeup.get());
    }
}

/// Returns whether there is a processor for the process that is waited for, while this one polls.
fn has_processors() -> bool {
    thread_local! {
        static COUNT: Cell<usize> = const { Cell::new(0) };
    }
    if COUNT.get() == 0 {
        COUNT.set(std::thread::available_parallelism().map_or(1, usize::from));
    }
    COUNT.get() > 1
}
