//! Intervals as a number of microseconds (timestamp.c): a month counts as 30 days and a day as 24 hours, as when the
//! server compares them. Infinite ones (17 and later) are the largest and the smallest number.

use crate::ffi::memory::c_string;
use crate::ffi::report;
use crate::ffi::report::Captured;
use pgrx::pg_sys;

const DAY: i64 = 24 * 60 * 60 * 1_000_000;

/// # Safety
/// `datum` is an `interval`.
pub(super) unsafe fn from_datum(datum: pg_sys::Datum) -> i64 {
    // SAFETY: by contract, a pointer to one.
    let interval = unsafe { &*datum.cast_mut_ptr::<pg_sys::Interval>() };
    let days = i64::from(interval.month) * 30 + i64::from(interval.day);
    days.saturating_mul(DAY).saturating_add(interval.time)
}

/// An `interval` datum in the current memory context, with whole days apart.
pub(super) fn to_datum(microseconds: i64) -> pg_sys::Datum {
    let interval = pg_sys::Interval { time: microseconds % DAY, day: (microseconds / DAY) as i32, month: 0 };
    // SAFETY: the allocation has the size of what is written.
    unsafe {
        let copy = pg_sys::palloc(size_of::<pg_sys::Interval>()).cast::<pg_sys::Interval>();
        copy.write(interval);
        pg_sys::Datum::from(copy)
    }
}

/// Reads an interval as the server's input function does.
///
/// # Errors
/// The server's report.
pub fn parse(text: &[u8]) -> Result<i64, Box<Captured>> {
    // SAFETY: the function takes a C string and gives an interval; it reads settings, no catalog, so nothing has to be
    // rolled back when it raises.
    let run = || unsafe {
        let value =
            pg_sys::OidInputFunctionCall(pg_sys::F_INTERVAL_IN.into(), c_string(text), pg_sys::Oid::INVALID, -1);
        from_datum(value)
    };
    report::catch_call(run)
}
