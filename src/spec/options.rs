//! Options of a job's run, as the log keeps them for a launch that repeats it.

use serde_json::{Map, Value};

/// Milliseconds
const DAY: i64 = 24 * 60 * 60 * 1000;

/// Options that a job and its batch were launched with, names apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOptions {
    pub sequential: bool,
    pub max_workers: Option<u32>,
    pub stop_on_error: bool,
    /// Milliseconds
    pub timeout: Option<i64>,
    pub max_attempts: u32,
    /// Milliseconds
    pub retry_delay: i64,
    /// The job was launched with the rights of a definer, which it must not leave.
    pub is_confined: bool,
}

/// The key of [`RunOptions::is_confined`], which is none of `p_options`.
pub const CONFINED: &str = "confined";

impl RunOptions {
    /// Returns them in the words of `p_options`, or `None` if all are the defaults.
    pub fn to_options(self) -> Option<Vec<u8>> {
        // Servers before 15 read no more than 2147483647 of a unit.
        let milliseconds = |value: i64| match i32::try_from(value) {
            Ok(value) => Value::from(format!("{value} ms")),
            Err(_) => Value::from(format!("{} days {} ms", value / DAY, value % DAY)),
        };
        let said = [
            ("mode", self.sequential.then(|| "sequential".into())),
            ("max_workers", self.max_workers.map(Value::from)),
            ("on_error", self.stop_on_error.then(|| "stop".into())),
            ("timeout", self.timeout.map(milliseconds)),
            ("max_attempts", (self.max_attempts > 1).then(|| self.max_attempts.into())),
            ("retry_delay", (self.retry_delay > 0).then(|| milliseconds(self.retry_delay))),
            (CONFINED, self.is_confined.then(|| true.into())),
        ];
        let map: Map<String, Value> =
            said.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        (!map.is_empty()).then(|| Value::Object(map).to_string().into_bytes())
    }
}
