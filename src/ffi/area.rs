//! One area of shared memory that all processes of the server share (shmem.c, dsa.c, lwlock.c).
//!
//! A header of a few bytes lies in the slack that the server leaves to libraries that were not preloaded; it names an
//! area that grows on demand. Both are made by whoever comes first, and gone after a restart or a crash: then the
//! *epoch*, a random number in the header, is another one.
//!
//! What lies in the area is plain data ([`Pod`]); references to it are offsets, and are looked at under one lock only.

use super::memory::Switch;
use super::{process, report};
use crate::compat::area::create_dsa;
use bytemuck::Pod;
use pgrx::pg_sys;
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// The layout is part of the name: two versions of the library may be loaded in one server.
const NAME: &std::ffi::CStr = c"pg_background_mgr registry 3";
const TRANCHE: &std::ffi::CStr = c"pg_background_mgr";
/// `AddinShmemInitLock` among the server's individual locks (lwlocknames.h), the same in 12 to 18.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// How long a process is on its way out at most, in microseconds, if nothing unusual holds it up.
const WAY_OUT: i64 = 100_000;

#[repr(C)]
struct Header {
    epoch: AtomicU64,
    /// Workers of the classic interface that live now; they count against the cap.
    outside: AtomicI64,
    /// When the last of them began to end: the server's time in microseconds.
    left: AtomicI64,
    tranche: AtomicU32,
    /// The area: `dsa_handle`; 0 = not made yet.
    handle: AtomicU32,
    /// Where the owner of the area begins: set once.
    root: AtomicU64,
    lock: pg_sys::LWLock,
}

thread_local! {
    static HEADER: Cell<Option<&'static Header>> = const { Cell::new(None) };
    static AREA: Cell<*mut pg_sys::dsa_area> = const { Cell::new(std::ptr::null_mut()) };
}

/// Runs `body` under the lock that guards the making of shared structures.
pub(super) fn with_init_lock<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: one of the server's own locks; the guard releases it, also while unwinding.
    let _held = unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
        Held::acquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE)
    };
    body()
}

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
                (*header).epoch.store(random_u64() | 1, Ordering::Release);
            }
            &*header
        }
    });
    // SAFETY: the name is a constant.
    unsafe { pg_sys::LWLockRegisterTranche(header.tranche.load(Ordering::Relaxed) as i32, TRANCHE.as_ptr()) };
    HEADER.set(Some(header));
    header
}

/// Bytes that nobody can guess.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    // SAFETY: writes that many bytes; without a source of randomness the server would not have started.
    unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), N) };
    bytes
}

fn random_u64() -> u64 {
    u64::from_ne_bytes(random_bytes())
}

/// A number that is another one after each restart and each crash of the server.
pub fn epoch() -> i64 {
    header().epoch.load(Ordering::Acquire) as i64
}

/// Has anybody made the area? Who only looks whether something is there need not make it.
pub fn is_made() -> bool {
    header().handle.load(Ordering::Acquire) != 0
}

/// Counts a worker that is not in the registry; `change` is 1 or -1.
pub fn count_outside(change: i64) {
    header().outside.fetch_add(change, Ordering::AcqRel);
}

/// Such a worker ends now, or has nothing more to do: there is a process more in a moment.
pub fn note_leaving() {
    header().left.store(process::now(), Ordering::Release);
}

/// Is one on its way out, or was a moment ago?
pub fn is_one_leaving() -> bool {
    process::now() - header().left.load(Ordering::Acquire) < WAY_OUT
}

/// How many such workers live now.
pub fn outside() -> usize {
    usize::try_from(header().outside.load(Ordering::Acquire)).unwrap_or(0)
}

/// A held lock; released when dropped.
struct Held(*mut pg_sys::LWLock);

impl Held {
    /// # Safety
    /// `lock` is initialised and not held by this process.
    unsafe fn acquire(lock: *mut pg_sys::LWLock, mode: pg_sys::LWLockMode::Type) -> Self {
        // SAFETY: by contract.
        unsafe { pg_sys::LWLockAcquire(lock, mode) };
        Held(lock)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: held by this process. An error in between has set the count of holds to zero (errfinish), and the
        // release takes one off: as LWLockReleaseAll does.
        unsafe {
            if pg_sys::InterruptHoldoffCount == 0 {
                pg_sys::InterruptHoldoffCount = 1;
            }
            pg_sys::LWLockRelease(self.0);
        }
    }
}

/// While this lives, errors can be caught also in a process that ends (elog.c, `errstart`), and what is made belongs to no
/// transaction.
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

/// Attaches to the area, and makes it if nobody has.
fn attach(header: &'static Header) -> *mut pg_sys::dsa_area {
    if !AREA.get().is_null() {
        return AREA.get();
    }
    let _switch = Switch::to_process_lifetime();
    let _held = hold(header, pg_sys::LWLockMode::LW_EXCLUSIVE);
    // SAFETY: under the lock; the mapping is pinned, so it belongs to the process and not to its transaction.
    let area = unsafe {
        match header.handle.load(Ordering::Acquire) {
            0 => {
                let area = create_dsa(header.tranche.load(Ordering::Relaxed) as i32);
                pg_sys::dsa_pin(area);
                pg_sys::dsa_pin_mapping(area);
                header.handle.store(pg_sys::dsa_get_handle(area), Ordering::Release);
                area
            }
            handle => {
                let area = pg_sys::dsa_attach(handle);
                pg_sys::dsa_pin_mapping(area);
                area
            }
        }
    };
    AREA.set(area);
    area
}

fn hold(header: &'static Header, mode: pg_sys::LWLockMode::Type) -> Held {
    // SAFETY: initialised with the header; no code of ours takes it twice.
    unsafe { Held::acquire((&raw const header.lock).cast_mut(), mode) }
}

/// Looks at the area. `body` must not raise on purpose, and must not wait.
pub fn read<T>(body: impl FnOnce(&Memory) -> T) -> T {
    let header = header();
    let area = attach(header);
    let _held = hold(header, pg_sys::LWLockMode::LW_SHARED);
    body(&Memory { header, area, root: header.root.load(Ordering::Acquire) })
}

/// Changes the area. `body` must not wait; should it raise, what it has changed so far stays changed.
pub fn write<T>(body: impl FnOnce(&mut Memory) -> T) -> T {
    let header = header();
    let area = attach(header);
    let _held = hold(header, pg_sys::LWLockMode::LW_EXCLUSIVE);
    let mut memory = Memory { header, area, root: header.root.load(Ordering::Acquire) };
    body(&mut memory)
}

impl Memory {
    /// Where the owner's data begins; 0 = nothing is there yet.
    pub fn root(&self) -> u64 {
        self.root
    }

    pub fn set_root(&mut self, root: u64) {
        self.root = root;
        self.header.root.store(root, Ordering::Release);
    }

    /// Takes zeroed bytes. None = the server has no memory for them, or no segment; then the lock was let go for a moment,
    /// and what the caller has seen may have changed.
    pub fn allocate(&mut self, bytes: usize) -> Option<u64> {
        let flags = pg_sys::DSA_ALLOC_HUGE | pg_sys::DSA_ALLOC_NO_OOM | pg_sys::DSA_ALLOC_ZERO;
        let _switch = Switch::to_process_lifetime();
        // SAFETY: variables of this process.
        let holds = unsafe { (pg_sys::InterruptHoldoffCount, pg_sys::QueryCancelHoldoffCount) };
        // SAFETY: attached. A segment belongs to the process, so that none is left to a transaction by an error.
        let outcome = report::catch_call(|| unsafe {
            let _alone = Alone::new();
            pg_sys::dsa_allocate_extended(self.area, bytes.max(8), flags as i32)
        });
        if outcome.is_err() {
            // An area that cannot grow raises with its own locks held, which have no names (dsa.c, `make_new_segment`).
            // SAFETY: as after any error (errfinish sets the counts to zero); our lock is the only other one, and is taken
            // again.
            unsafe {
                (pg_sys::InterruptHoldoffCount, pg_sys::QueryCancelHoldoffCount) = (holds.0 - 1, holds.1);
                pg_sys::LWLockReleaseAll();
            }
            std::mem::forget(hold(self.header, pg_sys::LWLockMode::LW_EXCLUSIVE));
            self.root = self.header.root.load(Ordering::Acquire);
        }
        outcome.ok().filter(|pointer| *pointer != 0)
    }

    /// Gives bytes back. Nothing may refer to them any more.
    pub fn free(&mut self, pointer: u64) {
        // SAFETY: by contract the pointer came from `allocate`.
        unsafe { pg_sys::dsa_free(self.area, pointer) };
    }

    fn address(&self, pointer: u64) -> *mut u8 {
        // SAFETY: attached; pointers come from `allocate`.
        unsafe { pg_sys::dsa_get_address(self.area, pointer).cast() }
    }

    /// The record at this place.
    pub fn get<T: Pod>(&self, pointer: u64) -> &T {
        debug_assert!(pointer != 0);
        // SAFETY: a record of this type was put there; any bits are a valid one, and the lock keeps others from it.
        unsafe { &*self.address(pointer).cast::<T>() }
    }

    /// The record at this place, to be changed.
    pub fn get_mut<T: Pod>(&mut self, pointer: u64) -> &mut T {
        debug_assert!(pointer != 0);
        // SAFETY: as above; `&mut self` says that the lock is held alone and that nothing else is borrowed.
        unsafe { &mut *self.address(pointer).cast::<T>() }
    }

    /// Records in a row.
    pub fn slice<T: Pod>(&self, pointer: u64, count: usize) -> &[T] {
        if count == 0 {
            return &[];
        }
        // SAFETY: as `get`.
        unsafe { std::slice::from_raw_parts(self.address(pointer).cast(), count) }
    }

    /// Records in a row, to be changed.
    pub fn slice_mut<T: Pod>(&mut self, pointer: u64, count: usize) -> &mut [T] {
        if count == 0 {
            return &mut [];
        }
        // SAFETY: as `get_mut`.
        unsafe { std::slice::from_raw_parts_mut(self.address(pointer).cast(), count) }
    }
}
