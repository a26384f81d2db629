//! Temporary files that outlive a transaction (buffile.c): bounded by `temp_file_limit`, gone with the process.

use crate::compat::wire::buffile_write;
use crate::error::Error;
use crate::ffi::memory::MemoryContextGuard;
use pgrx::pg_sys;
use std::ffi::c_int;

/// While this lives, `temp_file_limit` does not bind.
#[must_use = "the limit is lifted only while the guard lives"]
pub struct TempFileUnlimited(c_int);

impl TempFileUnlimited {
    pub fn new() -> Self {
        // SAFETY: a setting of this process, which the server reads when it writes.
        unsafe {
            let limit = pg_sys::temp_file_limit;
            pg_sys::temp_file_limit = -1;
            TempFileUnlimited(limit)
        }
    }
}

impl Drop for TempFileUnlimited {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pg_sys::temp_file_limit = self.0 };
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Position {
    segment: c_int,
    offset: i64,
}

/// Messages in a file, first in, first out.
pub struct File {
    file: *mut pg_sys::BufFile,
    read: Position,
    written: Position,
    /// The file's own position is at the end of what is written; else at what is read next.
    writing: bool,
}

impl File {
    /// Creates an empty file. It is in the temporary tablespaces of the session.
    pub fn create() -> Self {
        let _context = MemoryContextGuard::to_process_lifetime();
        // SAFETY: the file belongs to the process, as its memory does.
        let file = unsafe { pg_sys::BufFileCreateTemp(true) };
        File { file, read: Position::default(), written: Position::default(), writing: true }
    }

    fn tell(&self) -> Position {
        let mut position = Position::default();
        // SAFETY: the file is open; the server writes both numbers.
        unsafe { pg_sys::BufFileTell(self.file, &mut position.segment, &mut position.offset) };
        position
    }

    fn seek(&self, to: Position) -> Result<(), Error> {
        // SAFETY: the file is open.
        let status = unsafe { pg_sys::BufFileSeek(self.file, to.segment, to.offset, libc::SEEK_SET) };
        if status == 0 {
            Ok(())
        } else {
            Err(Error::Spill)
        }
    }

    /// Appends a message.
    ///
    /// # Errors
    /// [`Error::Spill`] (58030); a full disk and `temp_file_limit` are errors of the server's own.
    pub fn push(&mut self, message: &[u8]) -> Result<(), Error> {
        let _context = MemoryContextGuard::to_process_lifetime();
        if !self.writing {
            self.read = self.tell();
            self.seek(self.written)?;
            self.writing = true;
        }
        // SAFETY: the file is open.
        let complete = unsafe {
            buffile_write(self.file, &(message.len() as u64).to_ne_bytes()) && buffile_write(self.file, message)
        };
        if complete {
            Ok(())
        } else {
            Err(Error::Spill)
        }
    }

    /// Takes the oldest message. Returns `None` if all have been taken.
    ///
    /// # Errors
    /// [`Error::Spill`] (58030)
    pub fn pop(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let _context = MemoryContextGuard::to_process_lifetime();
        if self.writing {
            self.written = self.tell();
            self.seek(self.read)?;
            self.writing = false;
        }
        if self.tell() == self.written {
            return Ok(None);
        }
        let mut length = [0; 8];
        self.read_exactly(&mut length)?;
        let mut message = crate::ffi::alloc::zeroed(u64::from_ne_bytes(length) as usize);
        self.read_exactly(&mut message)?;
        Ok(Some(message))
    }

    fn read_exactly(&self, bytes: &mut [u8]) -> Result<(), Error> {
        // SAFETY: the file is open; the buffer has that length.
        let read = unsafe { pg_sys::BufFileRead(self.file, bytes.as_mut_ptr().cast(), bytes.len()) };
        if read as usize == bytes.len() {
            Ok(())
        } else {
            Err(Error::Spill)
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // A server call that raises while a panic unwinds would abort the process; the file then goes with it.
        if !std::thread::panicking() {
            // SAFETY: the file is open and not used again.
            unsafe { pg_sys::BufFileClose(self.file) };
        }
    }
}
