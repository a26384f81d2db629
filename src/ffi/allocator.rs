//! The allocator of the extension, with a reserve, and spare memory to raise errors with.
//!
//! Rust's own way ends the process when there is no more memory: the server then restarts all others. Small pieces that
//! meet an exhausted process come out of the reserve, so that there is enough to raise the error with. The server
//! copies errors on their way through Rust, and cannot raise another one then (pgrx, `pg_guard_ffi_boundary`): for that
//! there is spare memory, which is given back when an error is raised and there is no more.

use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The reserve lies in the library's zeroed data: it takes no memory before it is used.
const RESERVE_BYTES: usize = 1024 * 1024;
/// Larger pieces do not come out of the reserve.
const LARGEST_BYTES: usize = 128 * 1024;
const ALIGNMENT: usize = 16;
#[repr(align(16))]
struct Reserve(UnsafeCell<[MaybeUninit<u8>; RESERVE_BYTES]>);

// SAFETY: who uses which of its bytes is agreed on through `USED`.
unsafe impl Sync for Reserve {}

static RESERVE: Reserve = Reserve(UnsafeCell::new([MaybeUninit::uninit(); RESERVE_BYTES]));
/// Bytes that have been given, and in the upper half how many pieces are in use; with the last one all bytes are free
/// again.
static USED: AtomicU64 = AtomicU64::new(0);
/// The reserve has been needed since it was last asked for.
static WAS_NEEDED: AtomicBool = AtomicBool::new(false);
const PIECE: u64 = 1 << 32;

/// The system's allocator with the reserve behind it.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn start() -> *mut u8 {
    RESERVE.0.get().cast()
}

fn is_reserved(piece: *mut u8) -> bool {
    (start().addr()..start().addr() + RESERVE_BYTES).contains(&piece.addr())
}

/// Takes a piece of the reserve. Returns null if it is too large, or the reserve is used up.
#[cold]
fn take(layout: Layout) -> *mut u8 {
    if layout.size() > LARGEST_BYTES || layout.align() > ALIGNMENT {
        return std::ptr::null_mut();
    }
    WAS_NEEDED.store(true, Ordering::Relaxed);
    let size = layout.size().next_multiple_of(ALIGNMENT) as u64;
    let taken = USED.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
        (used % PIECE + size <= RESERVE_BYTES as u64).then_some(used + PIECE + size)
    });
    // `wrapping_add` needs no proof; the bytes are within the reserve.
    taken.map_or(std::ptr::null_mut(), |used| start().wrapping_add((used % PIECE) as usize))
}

#[cold]
fn put_back() {
    let _ = USED.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
        let left = used - PIECE;
        Some(if left < PIECE { 0 } else { left })
    });
}

// SAFETY: the system's allocator keeps the contract, and so does the reserve: a piece of it is aligned, large enough,
// and nobody else's until all are given back. Nothing here unwinds or allocates.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by contract.
        let piece = unsafe { System.alloc(layout) };
        if piece.is_null() {
            take(layout)
        } else {
            piece
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if is_reserved(piece) {
            put_back();
        } else {
            // SAFETY: by contract; it is the system's.
            unsafe { System.dealloc(piece, layout) };
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let is_reserved = is_reserved(piece);
        if !is_reserved {
            // SAFETY: by contract; it is the system's.
            let moved = unsafe { System.realloc(piece, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        }
        // SAFETY: by contract the size is valid with this alignment; the pieces do not overlap.
        unsafe {
            let wanted = Layout::from_size_align_unchecked(size, layout.align());
            let moved = if is_reserved { self.alloc(wanted) } else { take(wanted) };
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(piece, layout.size().min(size));
                self.dealloc(piece, layout);
            }
            moved
        }
    }
}

thread_local! {
    /// Never written to: it takes no memory but that which the process may have.
    static SPARE: ProcessCell<Vec<u8>> = const { process_cell(Vec::new()) };
}

/// More than the reserve has, so that it is the system's.
pub const SPARE_BYTES: usize = 2 * LARGEST_BYTES;

/// Returns whether there is so much that an error can be copied.
fn is_enough() -> bool {
    has(SPARE_BYTES)
}

/// Takes spare memory, if this process has none. Returns `false` if there is no memory.
pub fn keep_reserve() -> bool {
    SPARE.with_borrow_mut(|reserve| reserve.capacity() > 0 || reserve.try_reserve_exact(SPARE_BYTES).is_ok())
}

/// Frees the spare memory, if there is no other: what is asked for next is there.
pub(super) fn free_reserve() {
    if !is_enough() {
        SPARE.set(Vec::new());
    }
}

/// Returns whether this process can get that many bytes: before work that must not stop in the middle.
pub fn has(bytes: usize) -> bool {
    Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
}

/// Returns whether memory is short: the reserve had to be used, and there still is none but that.
pub(super) fn is_short() -> bool {
    if WAS_NEEDED.load(Ordering::Relaxed) {
        if !is_enough() {
            return true;
        }
        WAS_NEEDED.store(false, Ordering::Relaxed);
    }
    false
}
