//! One area of shared memory that all processes of the server share (shmem.c, dsa.c, lwlock.c).
//!
//! A header of a few bytes lies in the slack that the server leaves to libraries that were not preloaded; it names an
//! area that grows on demand. Both are made by whoever comes first, and gone after a restart or a crash: then the
//! *epoch*, a random number in the header, is another one.
//!
//! The area holds plain data ([`Pod`]). References to it ([`DsaPtr`], [`DsaArray`]) are offsets with a type: only an
//! allocation makes them. They are followed under one lock only.

use crate::compat::area::create_dsa;
use crate::error::Error;
use crate::ffi::dsa_ref::{DsaArray, DsaPtr};
use crate::ffi::lwlock::{with_init_lock, LwLockGuard};
use crate::ffi::memory::MemoryContextGuard;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::{random, report};
use crate::ids::Epoch;
use crate::protocol::Report;
use bytemuck::Pod;
use pgrx::pg_sys;
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// The layout is part of the name: two versions of the library may be loaded in one server.
const NAME: &std::ffi::CStr = c"pg_background_mgr registry 6";
const TRANCHE: &std::ffi::CStr = c"pg_background_mgr";

/// Numbers that the owner of the area may keep beside it.
pub const COUNTERS: usize = 4;

#[repr(C)]
struct Header {
    epoch: AtomicU64,
    /// Numbers of the owner that are there without the area, and need no lock.
    counters: [AtomicI64; COUNTERS],
    tranche: AtomicU32,
    /// The area: `dsa_handle`; 0 = not made yet.
    handle: AtomicU32,
    /// Start of the owner's data: set once.
    root: AtomicU64,
    /// Numbers of segments of their own: those that there are, and those that have been given back.
    own_segments: AtomicU32,
    released: AtomicU32,
    lock: pg_sys::LWLock,
}

thread_local! {
    static HEADER: Cell<Option<&'static Header>> = const { Cell::new(None) };
    static AREA: Cell<*mut pg_sys::dsa_area> = const { Cell::new(std::ptr::null_mut()) };
    /// The segments of their own that this process has mapped: their handles and their addresses.
    static MAPPED: ProcessCell<Vec<(u32, *mut pg_sys::dsm_segment)>> = const { process_cell(Vec::new()) };
    /// The segments stay mapped; and the number that had been given back when they were mapped.
    static KEEPS: Cell<bool> = const { Cell::new(false) };
    static RELEASED: Cell<u32> = const { Cell::new(0) };
}

/// An allocation as large as this has a segment of its own, which goes back to the system with it: the area keeps
/// what it has for good
/// (dsa.c, `dsa_free` of a large object).
pub const LARGE: usize = 256 * 1024;
/// Maximum number of these. The server's number of segments is bounded; an allocation without one is in the area.
const OWN_SEGMENTS: u32 = 32;
/// References into such a segment: this bit, its handle, and the offset. Those of the area are lower (dsa.h,
/// `DSA_MAX_SEGMENTS`).
const OWN: u64 = 1 << 63;
const OFFSET_BITS: u32 = 31;

fn header() -> &'static Header {
    if let Some(header) = HEADER.get() {
        return header;
    }
    let header = with_init_lock(|| {
        let mut found = false;
        // SAFETY: the struct lives as long as shared memory. Zeros are a valid header; the lock is made before anybody
        // else can see it.
        unsafe {
            let header = pg_sys::ShmemInitStruct(NAME.as_ptr(), size_of::<Header>(), &mut found).cast::<Header>();
            if !found {
                header.cast::<u8>().write_bytes(0, size_of::<Header>());
                let tranche = pg_sys::LWLockNewTrancheId();
                pg_sys::LWLockInitialize(&raw mut (*header).lock, tranche);
                (*header).tranche.store(tranche as u32, Ordering::Relaxed);
                (*header).epoch.store(random::random_u64() | 1, Ordering::Release);
            }
            &*header
        }
    });
    // SAFETY: the name is a constant.
    unsafe { pg_sys::LWLockRegisterTranche(header.tranche.load(Ordering::Relaxed) as i32, TRANCHE.as_ptr()) };
    HEADER.set(Some(header));
    header
}

/// Returns a number of the owner that is there without the area, and needs no lock: 0 at first.
pub fn counter(index: usize) -> &'static AtomicI64 {
    &header().counters[index % COUNTERS]
}

/// Returns the epoch of this server.
pub fn epoch() -> Epoch {
    Epoch::of_word(header().epoch.load(Ordering::Acquire))
}

/// Returns whether the area has been made. A process that only looks whether something is there need not make it.
pub fn is_made() -> bool {
    header().handle.load(Ordering::Acquire) != 0
}

/// While this lives, errors can be caught also in a process that ends (elog.c, `errstart`), and what is made belongs
/// to no transaction.
struct Alone {
    owner: pg_sys::ResourceOwner,
    is_ending: bool,
}

impl Alone {
    fn new() -> Self {
        // SAFETY: variables of this process.
        unsafe {
            Alone {
                owner: std::ptr::replace(&raw mut pg_sys::CurrentResourceOwner, std::ptr::null_mut()),
                is_ending: std::ptr::replace(&raw mut pg_sys::proc_exit_inprogress, false),
            }
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // SAFETY: variables of this process.
        unsafe {
            pg_sys::CurrentResourceOwner = self.owner;
            pg_sys::proc_exit_inprogress = self.is_ending;
        }
    }
}

/// The area as it may be read while the lock is held.
pub struct Memory {
    header: &'static Header,
    area: *mut pg_sys::dsa_area,
    root: u64,
}

/// Attaches to the area; `makes`: and makes it if nobody has. Null = it is not there, or there is no memory for it.
fn attach(header: &'static Header, makes: bool) -> *mut pg_sys::dsa_area {
    if !AREA.get().is_null() || !makes && header.handle.load(Ordering::Acquire) == 0 {
        return AREA.get();
    }
    let _context = MemoryContextGuard::to_process_lifetime();
    // SAFETY: variables of this process.
    let holds = unsafe { (pg_sys::InterruptHoldoffCount, pg_sys::QueryCancelHoldoffCount) };
    let held = lock(header, pg_sys::LWLockMode::LW_EXCLUSIVE);
    // A mapping is pinned, so it belongs to the process and not to its transaction.
    let area = match header.handle.load(Ordering::Acquire) {
        0 => {
            // SAFETY: under the lock; memory contexts are those of the process.
            let made = report::catch_call(|| unsafe {
                let _alone = Alone::new();
                create_dsa(header.tranche.load(Ordering::Relaxed) as i32)
            });
            let Ok(area) = made else {
                // SAFETY: as after any error; our lock is the only one.
                unsafe {
                    (pg_sys::InterruptHoldoffCount, pg_sys::QueryCancelHoldoffCount) = holds;
                    pg_sys::LWLockReleaseAll();
                }
                std::mem::forget(held);
                return std::ptr::null_mut();
            };
            // SAFETY: just made.
            unsafe {
                pg_sys::dsa_pin(area);
                pg_sys::dsa_pin_mapping(area);
                header.handle.store(pg_sys::dsa_get_handle(area), Ordering::Release);
            }
            area
        }
        // SAFETY: the area is there, and pinned.
        handle => unsafe {
            let area = pg_sys::dsa_attach(handle);
            pg_sys::dsa_pin_mapping(area);
            area
        },
    };
    AREA.set(area);
    area
}

/// While this lives, what has a segment of its own stays mapped from one look to the next. Without it an idle process
/// would hold memory that is of no use any more.
pub struct Mapped(());

impl Mapped {
    pub fn new() -> Self {
        KEEPS.set(true);
        Mapped(())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        KEEPS.set(false);
        unmap(|_| true);
    }
}

/// Unmaps segments of their own.
fn unmap(is_meant: impl Fn(u32) -> bool) {
    let meant = MAPPED.with_borrow_mut(|mapped| {
        let (meant, kept) = std::mem::take(mapped).into_iter().partition::<Vec<_>, _>(|(handle, _)| is_meant(*handle));
        *mapped = kept;
        meant
    });
    for (_, segment) in meant {
        // SAFETY: mapped by this process, and no reference into it is left: those live as long as a look.
        unsafe { pg_sys::dsm_detach(segment) };
    }
}

/// Unmaps those that may have been given back since this process mapped them.
fn unmap_released(header: &Header) {
    let released = header.released.load(Ordering::Acquire);
    if RELEASED.replace(released) != released {
        unmap(|_| true);
    }
}

/// Unmaps what was mapped for a look, at its end.
struct Look;

impl Drop for Look {
    fn drop(&mut self) {
        if !KEEPS.get() && MAPPED.with_borrow(|mapped| !mapped.is_empty()) {
            unmap(|_| true);
        }
    }
}

fn lock(header: &'static Header, mode: pg_sys::LWLockMode::Type) -> LwLockGuard {
    // SAFETY: initialised with the header; no code of ours takes it twice.
    unsafe { LwLockGuard::acquire((&raw const header.lock).cast_mut(), mode) }
}

/// Looks at the area, of which there may be none. `body` must not raise on purpose, and must not wait.
pub fn read<T>(body: impl FnOnce(&Memory) -> T) -> T {
    let header = header();
    let area = attach(header, false);
    let _held = lock(header, pg_sys::LWLockMode::LW_SHARED);
    let _look = Look;
    unmap_released(header);
    if area.is_null() {
        return body(&Memory { header, area, root: 0 });
    }
    body(&Memory { header, area, root: header.root.load(Ordering::Acquire) })
}

/// Changes the area; without memory for it nothing is there, and nothing can be allocated. `body` must not wait; should
/// it raise, what it has changed so far stays changed.
pub fn write<T>(body: impl FnOnce(&mut Memory) -> T) -> T {
    let header = header();
    let area = attach(header, true);
    let _held = lock(header, pg_sys::LWLockMode::LW_EXCLUSIVE);
    let _look = Look;
    unmap_released(header);
    let root = if area.is_null() { 0 } else { header.root.load(Ordering::Acquire) };
    let mut memory = Memory { header, area, root };
    body(&mut memory)
}

/// The segment of such a reference.
fn handle_of(pointer: u64) -> u32 {
    ((pointer & !OWN) >> OFFSET_BITS) as u32
}

/// Returns where a segment of its own lies in this process.
fn map(handle: u32) -> *mut u8 {
    let mapped = MAPPED.with_borrow(|mapped| mapped.iter().find(|(at, _)| *at == handle).map(|(_, segment)| *segment));
    let segment = mapped.unwrap_or_else(|| {
        let _context = MemoryContextGuard::to_process_lifetime();
        let _alone = Alone::new();
        // SAFETY: what is referred to is there. The mapping belongs to the process, for there is no resource owner.
        let segment = unsafe { pg_sys::dsm_attach(handle) };
        if segment.is_null() {
            report::emit(&Report::from(Error::SharedMemory), report::Log::Here);
        }
        MAPPED.with_borrow_mut(|mapped| mapped.push((handle, segment)));
        segment
    });
    // SAFETY: mapped.
    unsafe { pg_sys::dsm_segment_address(segment).cast() }
}

impl Memory {
    /// Returns the first record of the owner, which always asks for the same type; null = nothing is there yet.
    pub fn root<T: Pod>(&self) -> DsaPtr<T> {
        DsaPtr::new(self.root)
    }

    pub fn set_root<T: Pod>(&mut self, root: DsaPtr<T>) {
        self.root = root.offset();
        self.header.root.store(root.offset(), Ordering::Release);
    }

    /// Takes a zeroed record. Returns `None` if the server has no memory for it, or no segment; then the lock was let
    /// go for a moment, and what the caller has seen may have changed.
    pub fn allocate<T: Pod>(&mut self) -> Option<DsaPtr<T>> {
        self.allocate_bytes(size_of::<T>()).map(|start| DsaPtr::new(start))
    }

    /// Takes zeroed records in a row. Returns `None` as [`allocate`](Self::allocate) does.
    pub fn allocate_array<T: Pod>(&mut self, length: usize) -> Option<DsaArray<T>> {
        let start = self.allocate_bytes(length * size_of::<T>())?;
        Some(DsaArray::new(start, length))
    }

    /// Takes a zeroed record, and behind it records of another type and bytes, which live as long as it does. Returns
    /// `None` as [`allocate`](Self::allocate) does.
    pub fn allocate_with<T: Pod, U: Pod>(
        &mut self,
        records: usize,
        bytes: usize,
    ) -> Option<(DsaPtr<T>, DsaArray<U>, DsaArray<u8>)> {
        const { assert!(size_of::<T>().is_multiple_of(align_of::<U>()), "what follows the record is aligned") };
        let start = self.allocate_bytes(size_of::<T>() + records * size_of::<U>() + bytes)?;
        let records_at = start + size_of::<T>() as u64;
        let bytes_at = records_at + (records * size_of::<U>()) as u64;
        Some((DsaPtr::new(start), DsaArray::new(records_at, records), DsaArray::new(bytes_at, bytes)))
    }

    /// Takes zeroed bytes.
    fn allocate_bytes(&mut self, bytes: usize) -> Option<u64> {
        if self.area.is_null() {
            return None;
        }
        let has_own = (LARGE..1 << OFFSET_BITS).contains(&bytes)
            && self.header.own_segments.load(Ordering::Acquire) < OWN_SEGMENTS;
        if let Some(pointer) = has_own.then(|| self.allocate_segment(bytes)).flatten() {
            return Some(pointer);
        }
        let flags = pg_sys::DSA_ALLOC_HUGE | pg_sys::DSA_ALLOC_NO_OOM | pg_sys::DSA_ALLOC_ZERO;
        let area = self.area;
        // SAFETY: attached. A segment belongs to the process, so that none is left to a transaction by an error.
        let pointer = self.catching(|| unsafe { pg_sys::dsa_allocate_extended(area, bytes.max(8), flags as i32) });
        pointer.filter(|pointer| *pointer != 0)
    }

    /// Takes zeroed bytes in a segment of their own.
    fn allocate_segment(&mut self, bytes: usize) -> Option<u64> {
        // SAFETY: pinned, so that it outlives the mapping.
        let segment = self.catching(|| unsafe {
            let segment = pg_sys::dsm_create(bytes, pg_sys::DSM_CREATE_NULL_IF_MAXSEGMENTS as i32);
            if !segment.is_null() {
                pg_sys::dsm_pin_segment(segment);
                pg_sys::dsm_segment_address(segment).cast::<u8>().write_bytes(0, bytes);
            }
            segment
        })?;
        if segment.is_null() {
            return None;
        }
        self.header.own_segments.fetch_add(1, Ordering::AcqRel);
        // SAFETY: mapped.
        let handle = unsafe { pg_sys::dsm_segment_handle(segment) };
        MAPPED.with_borrow_mut(|mapped| mapped.push((handle, segment)));
        Some(OWN | u64::from(handle) << OFFSET_BITS)
    }

    /// Takes memory. None = it raised: then the lock was let go for a moment.
    fn catching<T>(&mut self, take: impl FnOnce() -> T) -> Option<T> {
        let _context = MemoryContextGuard::to_process_lifetime();
        // SAFETY: variables of this process.
        let holds = unsafe { (pg_sys::InterruptHoldoffCount, pg_sys::QueryCancelHoldoffCount) };
        let outcome = report::catch_call(|| {
            let _alone = Alone::new();
            take()
        });
        if outcome.is_err() {
            // An area that cannot grow raises with its own locks held, which have no names (dsa.c,
            // `make_new_segment`). SAFETY: as after any error (errfinish sets the counts to zero); our lock is the
            // only other one, and is taken again.
            unsafe {
                (pg_sys::InterruptHoldoffCount, pg_sys::QueryCancelHoldoffCount) = (holds.0 - 1, holds.1);
                pg_sys::LWLockReleaseAll();
            }
            std::mem::forget(lock(self.header, pg_sys::LWLockMode::LW_EXCLUSIVE));
            self.root = self.header.root.load(Ordering::Acquire);
        }
        outcome.ok()
    }

    /// Gives back a record and what was allocated with it. Nothing may refer to them any more.
    pub fn free<T: Pod>(&mut self, record: DsaPtr<T>) {
        self.free_bytes(record.offset());
    }

    /// Gives back records in a row. Nothing may refer to them any more.
    pub fn free_array<T: Pod>(&mut self, array: DsaArray<T>) {
        self.free_bytes(array.offset());
    }

    fn free_bytes(&mut self, pointer: u64) {
        if pointer & OWN != 0 {
            let handle = handle_of(pointer);
            // SAFETY: pinned when it was made. Processes that have it mapped unmap it when they look next.
            unsafe { pg_sys::dsm_unpin_segment(handle) };
            unmap(|mapped| mapped == handle);
            self.header.own_segments.fetch_sub(1, Ordering::AcqRel);
            self.header.released.fetch_add(1, Ordering::AcqRel);
            return;
        }
        // SAFETY: references are made by allocations alone.
        unsafe { pg_sys::dsa_free(self.area, pointer) };
    }

    fn address(&self, pointer: u64) -> *mut u8 {
        if pointer & OWN != 0 {
            let offset = (pointer & ((1 << OFFSET_BITS) - 1)) as usize;
            // SAFETY: within the segment.
            return unsafe { map(handle_of(pointer)).add(offset) };
        }
        // SAFETY: attached; pointers come from `allocate`.
        unsafe { pg_sys::dsa_get_address(self.area, pointer).cast() }
    }

    /// Returns a record.
    pub fn get<T: Pod>(&self, record: DsaPtr<T>) -> &T {
        debug_assert!(!record.is_null());
        // SAFETY: allocated with this type; any bits are a valid one, and the lock keeps others from it.
        unsafe { &*self.address(record.offset()).cast::<T>() }
    }

    /// Returns a record, to be changed.
    pub fn get_mut<T: Pod>(&mut self, record: DsaPtr<T>) -> &mut T {
        debug_assert!(!record.is_null());
        // SAFETY: as above; `&mut self` says that the lock is held alone and that nothing else is borrowed.
        unsafe { &mut *self.address(record.offset()).cast::<T>() }
    }

    /// Returns records in a row.
    pub fn slice<T: Pod>(&self, array: DsaArray<T>) -> &[T] {
        if array.is_empty() {
            return &[];
        }
        // SAFETY: as `get`; the length is that of the allocation.
        unsafe { std::slice::from_raw_parts(self.address(array.offset()).cast(), array.len() as usize) }
    }

    /// Returns records in a row, to be changed.
    pub fn slice_mut<T: Pod>(&mut self, array: DsaArray<T>) -> &mut [T] {
        if array.is_empty() {
            return &mut [];
        }
        // SAFETY: as `get_mut`; the length is that of the allocation.
        unsafe { std::slice::from_raw_parts_mut(self.address(array.offset()).cast(), array.len() as usize) }
    }
}
