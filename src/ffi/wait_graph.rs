//! The waits of sessions for jobs: a small table in main shared memory (shmem.c).
//!
//! The server knows who waits for whose lock, but not that a session waits for a worker. A session that has waited for
//! `deadlock_timeout` writes its wait down here, so that the search of another one can go through it. The table lies in
//! the slack that the server leaves to libraries that were not preloaded, so it is small; when it is full, a wait is
//! not seen by others, but still sees itself.

use crate::ffi::exit_hooks;
use crate::ffi::lwlock::with_init_lock;
use crate::ffi::session::pid;
use pgrx::pg_sys;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

const EDGES: usize = 384;
/// The layout is part of the name: two versions of the library may be loaded in one server.
const NAME: &std::ffi::CStr = c"pg_background_mgr wait graph 1";

thread_local! {
    static TABLE: Cell<Option<&'static [AtomicU64; EDGES]>> = const { Cell::new(None) };
}

fn table() -> &'static [AtomicU64; EDGES] {
    if let Some(table) = TABLE.get() {
        return table;
    }
    let table = with_init_lock(|| {
        let mut found = false;
        // SAFETY: the lock guards the creation; the struct lives as long as shared memory; any bits are valid atomics.
        unsafe {
            let table = pg_sys::ShmemInitStruct(NAME.as_ptr(), size_of::<[AtomicU64; EDGES]>(), &mut found);
            if !found {
                table.cast::<u8>().write_bytes(0, size_of::<[AtomicU64; EDGES]>());
            }
            &*table.cast::<[AtomicU64; EDGES]>()
        }
    });
    TABLE.set(Some(table));
    exit_hooks::before_exit(forget_all);
    table
}

fn edge(waiter: i32, target: i32) -> u64 {
    u64::from(waiter as u32) << 32 | u64::from(target as u32)
}

/// This process's wait for a job, visible to others until it is dropped.
pub struct Wait(Option<&'static AtomicU64>);

impl Wait {
    /// Writes down that this process waits for the process `target`.
    pub fn publish(target: i32) -> Self {
        let edge = edge(pid(), target);
        let free = |slot: &&AtomicU64| slot.compare_exchange(0, edge, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        Wait(table().iter().find(free))
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.store(0, Ordering::Release);
        }
    }
}

/// Returns the processes that `waiter` waits for as a launcher.
pub fn targets(waiter: i32) -> impl Iterator<Item = i32> {
    table().iter().filter_map(move |slot| {
        let edge = slot.load(Ordering::Acquire);
        (edge != 0 && (edge >> 32) as i32 == waiter).then_some(edge as u32 as i32)
    })
}

/// Removes the waits of this process, which ends in the middle of one.
fn forget_all() {
    let own = pid();
    for slot in TABLE.get().into_iter().flatten() {
        if (slot.load(Ordering::Acquire) >> 32) as i32 == own {
            slot.store(0, Ordering::Release);
        }
    }
}
