//! Rows of a queued job, kept as JSON for the log.

use crate::ffi::alloc;

/// The rows of the last statement that returned rows, up to a limit.
pub struct CollectedRows {
    json: Vec<u8>,
    count: i64,
    is_full: bool,
    /// Limits the bytes of `json`.
    limit: usize,
}

impl CollectedRows {
    /// Starts with no rows; `limit` in bytes.
    pub fn new(limit: usize) -> Self {
        CollectedRows { json: Vec::new(), count: 0, is_full: false, limit }
    }

    /// Returns how many rows there were, also without room.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// Returns whether there were rows without room.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Keeps a row, if `row` returns one that is not longer than the room that it is told.
    pub fn row(&mut self, row: impl FnOnce(usize) -> Option<Vec<u8>>) {
        self.count += 1;
        if self.is_full {
            return;
        }
        // Whole rows, and the brackets.
        let free = self.limit.checked_sub(self.json.len() + 3);
        let Some(row) = free.and_then(|free| row(free).filter(|row| row.len() <= free)) else {
            self.is_full = true;
            return;
        };
        alloc::reserve(&mut self.json, row.len() + 2);
        self.json.push(if self.json.is_empty() { b'[' } else { b',' });
        self.json.extend_from_slice(&row);
    }

    /// Returns the array of the rows that were kept.
    pub fn into_json(mut self) -> Vec<u8> {
        if self.json.is_empty() {
            self.json.push(b'[');
        }
        self.json.push(b']');
        self.json
    }
}
