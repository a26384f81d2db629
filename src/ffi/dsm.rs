//! Dynamic shared memory segments (dsm.c).
//!
//! A segment begins with words that both sides read and write as atomics; behind them lie areas of bytes that one side
//! writes before it tells the other.

use crate::error::SHARED_MEMORY_HINT;
use crate::ffi::report;
use crate::protocol::sqlstate;
use pgrx::pg_sys;
use std::sync::atomic::AtomicU64;

/// Returns how many segments the whole server may have (dsm.c, `dsm_postmaster_startup`).
pub fn most_segments() -> usize {
    const FIXED: usize = 64;
    const OF_EACH_BACKEND: usize = 5;
    // SAFETY: a variable that the server sets when it starts.
    FIXED + OF_EACH_BACKEND * usize::try_from(unsafe { pg_sys::MaxBackends }).unwrap_or(0)
}

/// Names a segment to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle(u32);

impl Handle {
    /// Names none.
    pub const NONE: Handle = Handle(0);

    /// Returns the handle as the argument of a background worker.
    pub fn to_datum(self) -> pg_sys::Datum {
        pg_sys::Datum::from(self.0)
    }

    /// Returns the handle as others can keep it.
    pub fn to_number(self) -> u32 {
        self.0
    }

    /// Takes the number of [`to_number`](Self::to_number).
    pub fn from_number(number: u32) -> Self {
        Handle(number)
    }

    /// Takes the argument of a background worker.
    pub fn from_datum(datum: pg_sys::Datum) -> Self {
        Handle(datum.value() as u32)
    }
}

/// A mapped segment. It stays mapped until [`close`](Self::close) or the end of the process.
#[derive(Clone, Copy)]
pub struct Segment {
    segment: *mut pg_sys::dsm_segment,
    address: *mut u8,
    length: usize,
}

impl Segment {
    /// Creates a segment of zeros that belongs to this process, not to its transaction. Returns `None` if the server
    /// has no segment left (its number is bounded: dsm.c, `dsm_postmaster_startup`).
    pub fn create(length: usize) -> Option<Self> {
        // SAFETY: no special state is needed; the mapping is pinned at once, so that it outlives the transaction.
        let created =
            report::catch_call(|| unsafe { pg_sys::dsm_create(length, pg_sys::DSM_CREATE_NULL_IF_MAXSEGMENTS as i32) });
        let segment = match created {
            Ok(segment) => segment,
            Err(captured) => {
                let mut captured = *captured;
                // With dynamic_shared_memory_type = mmap another error may hide the first one (dsm_impl.c,
                // `dsm_impl_mmap`).
                if [sqlstate(b"53100"), sqlstate(b"53200"), sqlstate(b"58P01")].contains(&captured.report.sqlstate) {
                    captured.report.hint.get_or_insert_with(|| SHARED_MEMORY_HINT.into());
                }
                report::raise(captured);
                return None;
            }
        };
        // SAFETY: created just now.
        let segment = unsafe {
            if segment.is_null() {
                return None;
            }
            pg_sys::dsm_pin_mapping(segment);
            segment
        };
        Some(Segment::mapped(segment))
    }

    /// Lets the segment live without anybody who maps it, until [`unpin`](Self::unpin).
    pub fn pin(&self) {
        // SAFETY: the segment is mapped, and not pinned yet: its creator calls this once.
        unsafe { pg_sys::dsm_pin_segment(self.segment) };
    }

    /// Lets the segment go with the last that maps it. Once for each [`pin`](Self::pin).
    pub fn unpin(&self) {
        // SAFETY: by contract the segment is pinned.
        unsafe { pg_sys::dsm_unpin_segment(self.handle().0) };
    }

    /// Maps a segment that another process created. Returns `None` if it is gone.
    pub fn attach(handle: Handle) -> Option<Self> {
        // SAFETY: an unknown handle gives null. A worker has no resource owner outside of a
        // transaction, so the mapping is the process's.
        let segment = unsafe { pg_sys::dsm_attach(handle.0) };
        (!segment.is_null()).then(|| Segment::mapped(segment))
    }

    /// Returns whether there is such a segment, which this process has not mapped.
    pub fn exists(handle: Handle) -> bool {
        Segment::attach(handle).map(Segment::close).is_some()
    }

    fn mapped(segment: *mut pg_sys::dsm_segment) -> Self {
        // SAFETY: the segment is mapped in this process.
        unsafe {
            Segment {
                segment,
                address: pg_sys::dsm_segment_address(segment).cast(),
                length: pg_sys::dsm_segment_map_length(segment),
            }
        }
    }

    /// Returns what other processes attach to.
    pub fn handle(&self) -> Handle {
        // SAFETY: the segment is mapped.
        Handle(unsafe { pg_sys::dsm_segment_handle(self.segment) })
    }

    pub(super) fn as_raw(&self) -> *mut pg_sys::dsm_segment {
        self.segment
    }

    pub(super) fn address(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.length);
        // SAFETY: within the mapping.
        unsafe { self.address.add(offset) }
    }

    /// Returns the word with this index.
    pub fn word(&self, index: usize) -> &AtomicU64 {
        assert!((index + 1) * size_of::<u64>() <= self.length);
        // SAFETY: in bounds and aligned, for mappings begin on a page; any bits are a valid u64.
        unsafe { &*self.address.cast::<AtomicU64>().add(index) }
    }

    /// Writes bytes at an offset.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.length));
        // SAFETY: in bounds; nobody reads the area before a word says that it is written.
        unsafe { self.address.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Copies bytes from an offset; none if they are not inside the segment.
    pub fn read(&self, offset: usize, length: usize) -> Option<Vec<u8>> {
        offset.checked_add(length).filter(|end| *end <= self.length)?;
        // SAFETY: in bounds; the area was written before a word said so, and is not written again.
        Some(crate::ffi::alloc::copy(unsafe { std::slice::from_raw_parts(self.address.add(offset), length) }))
    }

    /// Returns whether these are the bytes at this offset.
    pub fn holds(&self, offset: usize, bytes: &[u8]) -> bool {
        offset.checked_add(bytes.len()).is_some_and(|end| end <= self.length) && {
            // SAFETY: as `read`.
            (unsafe { std::slice::from_raw_parts(self.address.add(offset), bytes.len()) }) == bytes
        }
    }

    /// Unmaps the segment. The last process to do so frees it.
    ///
    /// All copies of this value and queues in it must be gone.
    pub fn close(self) {
        // SAFETY: the segment is mapped; by contract nothing points into it.
        unsafe { pg_sys::dsm_detach(self.segment) };
    }
}
