//! Points in time, as the server counts them.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};
use std::time::Duration;

/// Point in time: microseconds since 2000-01-01 00:00 UTC (timestamp.h, `TimestampTz`).
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    bytemuck::Pod,
    bytemuck::Zeroable,
)]
#[serde(transparent)]
#[repr(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// No time, in a record whose bytes are zero; before every time that the clock has shown.
    pub const NONE: Self = Timestamp(0);

    /// Takes a number of the server for a time.
    pub const fn of_micros(micros: i64) -> Self {
        Timestamp(micros)
    }

    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Returns the time, or `None` if it is [`Timestamp::NONE`].
    pub fn some(self) -> Option<Self> {
        Some(self).filter(|time| *time != Timestamp::NONE)
    }

    /// Returns the time that has passed since an earlier one, or zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.micros_since(earlier)).unwrap_or(0))
    }

    /// Returns the microseconds since another time. They are negative if that is later: the clock can be set back.
    pub fn micros_since(self, other: Self) -> i64 {
        self.0.saturating_sub(other.0)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Ends at the last time that there is.
impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Timestamp(self.0.saturating_add(micros(duration)))
    }
}

/// Ends at the first time that there is.
impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Timestamp(self.0.saturating_sub(micros(duration)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Timestamp = Timestamp::of_micros(5_000_000);

    #[test]
    fn durations_are_added_and_taken_away() {
        let later = TIME + Duration::from_millis(1500);
        assert_eq!(later.micros(), 6_500_000);
        assert_eq!(later - Duration::from_millis(1500), TIME);
        assert_eq!((TIME - Duration::from_secs(6)).micros(), -1_000_000);
        assert_eq!((TIME + Duration::MAX).micros(), i64::MAX);
        assert_eq!((Timestamp::of_micros(i64::MIN) - Duration::MAX).micros(), i64::MIN);
    }

    #[test]
    fn a_clock_that_is_set_back_shows() {
        let later = TIME + Duration::from_secs(1);
        assert_eq!((later.since(TIME), TIME.since(later)), (Duration::from_secs(1), Duration::ZERO));
        assert_eq!((later.micros_since(TIME), TIME.micros_since(later)), (1_000_000, -1_000_000));
    }

    #[test]
    fn times_are_encoded_as_numbers() {
        for number in [0, -1, 1_000_000, i64::MAX] {
            let bytes = postcard::to_allocvec(&number);
            assert_eq!(postcard::to_allocvec(&Timestamp::of_micros(number)), bytes);
        }
        assert_eq!((Timestamp::NONE.some(), TIME.some()), (None, Some(TIME)));
    }
}
