//! Overflow queue: keeps frames in memory up to a limit, then in a temporary file, first in, first out.

use crate::error::Error;
use crate::ffi::temp_file::File;
use std::collections::VecDeque;

/// Queue of frames that is limited only by `temp_file_limit`.
pub struct OverflowQueue {
    memory: VecDeque<Vec<u8>>,
    bytes: usize,
    limit: usize,
    file: Option<File>,
}

impl OverflowQueue {
    /// Returns an empty queue that keeps about `limit` bytes in memory.
    pub fn new(limit: usize) -> Self {
        OverflowQueue { memory: VecDeque::new(), bytes: 0, limit, file: None }
    }

    /// Returns the number of bytes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// [`Error::Spill`] (58030)
    pub fn push(&mut self, frame: Vec<u8>) -> Result<(), Error> {
        if self.file.is_none() && self.bytes + frame.len() <= self.limit {
            self.bytes += frame.len();
            self.memory.push_back(frame);
            return Ok(());
        }
        self.file.get_or_insert_with(File::create).push(&frame)
    }

    /// Removes the oldest frame. Returns `None` if the queue is empty.
    ///
    /// # Errors
    /// [`Error::Spill`] (58030)
    pub fn pop(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if let Some(frame) = self.memory.pop_front() {
            self.bytes -= frame.len();
            return Ok(Some(frame));
        }
        let Some(file) = &mut self.file else { return Ok(None) };
        let frame = file.pop()?;
        if frame.is_none() {
            self.file = None;
        }
        Ok(frame)
    }
}
