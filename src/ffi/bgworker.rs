//! Background workers (bgworker.c).

use crate::ffi::{dsm, latch, process};
use pgrx::pg_sys;
use std::ffi::{c_char, CStr};
use std::time::{Duration, Instant};

/// Time that a process waits for a worker to be started before it wakes the postmaster.
const START_TIMEOUT: Duration = Duration::from_millis(100);

/// A registered worker: a slot and its generation, so that a later worker in the slot is never taken for it. The layout
/// is the server's `struct BackgroundWorkerHandle`, the same in every version.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct WorkerHandle {
    slot: i32,
    generation: u64,
}

/// Tells what became of a registered worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupStatus {
    /// The worker runs, with this process id.
    Started(i32),
    /// The worker has ended already, or the server could not start it.
    Stopped,
}

fn copy_text<const N: usize>(text: &CStr) -> [c_char; N] {
    let mut copy = [0; N];
    for (to, from) in copy.iter_mut().take(N - 1).zip(text.to_bytes()) {
        *to = *from as c_char;
    }
    copy
}

/// Words that a worker is bgw_extra when it is registered.
pub const WORDS: usize = 3;

/// Returns `max_worker_processes`.
pub fn max_worker_processes() -> i32 {
    // SAFETY: a setting of the server.
    unsafe { pg_sys::max_worker_processes }
}

/// Returns the words that this worker was registered with (`bgw_extra`).
pub fn bgw_extra() -> [u64; WORDS] {
    // SAFETY: a worker has an entry; its extra bytes are what `register` wrote there, or zeros.
    unsafe {
        let extra = &(*pg_sys::MyBgworkerEntry).bgw_extra;
        std::ptr::from_ref(extra).cast::<[u64; WORDS]>().read_unaligned()
    }
}

/// Waits until `pg_stat_activity` shows this worker as one. The postmaster notes its process id after the fork, and
/// the process may be faster; until then it has no `backend_type` (postmaster.c, `do_start_bgworker`; bgworker.c,
/// `GetBackgroundWorkerTypeByPid`). Not longer than a second, and serves no interrupts.
pub fn wait_until_shown() {
    const CHECK: Duration = Duration::from_millis(1);
    const SPIN: Duration = Duration::from_secs(1);
    let began = Instant::now();
    // SAFETY: reads the server's list of workers.
    while unsafe { pg_sys::GetBackgroundWorkerTypeByPid(pg_sys::MyProcPid) }.is_null() && began.elapsed() < SPIN {
        latch::pause(CHECK);
    }
}

/// Tells how a worker is registered.
pub struct Registration {
    pub function: &'static CStr,
    pub argument: dsm::Handle,
    pub words: [u64; WORDS],
    /// Start it again, after so many seconds, when it ends with another status than 0.
    pub restart_after: Option<i32>,
}

impl WorkerHandle {
    /// Registers a worker that connects to a database, and wakes this process when its state changes. Returns `None` if
    /// no slot is free.
    pub fn register(library: &CStr, kind: &CStr, registration: &Registration) -> Option<Self> {
        let mut extra = [0 as c_char; pg_sys::BGW_EXTRALEN as usize];
        for (to, from) in extra.iter_mut().zip(registration.words.iter().flat_map(|word| word.to_ne_bytes())) {
            *to = from as c_char;
        }
        let mut worker = pg_sys::BackgroundWorker {
            bgw_name: copy_text(kind),
            bgw_type: copy_text(kind),
            bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32,
            bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState,
            bgw_restart_time: registration.restart_after.unwrap_or(pg_sys::BGW_NEVER_RESTART),
            bgw_library_name: copy_text(library),
            bgw_function_name: copy_text(registration.function),
            bgw_main_arg: registration.argument.to_datum(),
            bgw_extra: extra,
            // SAFETY: a variable of this process.
            bgw_notify_pid: unsafe { pg_sys::MyProcPid },
        };
        let mut handle = std::ptr::null_mut::<pg_sys::BackgroundWorkerHandle>();
        // SAFETY: both are ours; the server copies the worker and allocates the handle, which we copy and free.
        unsafe {
            if !pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle) {
                return None;
            }
            let copy = handle.cast::<WorkerHandle>().read();
            pg_sys::pfree(handle.cast());
            Some(copy)
        }
    }

    /// Returns the worker as words that any process can keep.
    pub fn to_words(self) -> [u64; 2] {
        [self.slot as u64, self.generation]
    }

    /// Takes the words of [`to_words`](Self::to_words).
    pub fn from_words([slot, generation]: [u64; 2]) -> Self {
        WorkerHandle { slot: slot as i32, generation }
    }

    fn as_raw(&mut self) -> *mut pg_sys::BackgroundWorkerHandle {
        std::ptr::from_mut(self).cast()
    }

    /// Waits until the server has started the worker, or given up. Interrupts are served meanwhile.
    pub fn wait_for_start(self) -> StartupStatus {
        loop {
            match self.status() {
                (pg_sys::BgwHandleStatus::BGWH_STARTED, pid) => return StartupStatus::Started(pid),
                (pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED, _) => {}
                _ => return StartupStatus::Stopped,
            }
            let began = Instant::now();
            latch::wait_in(Some(START_TIMEOUT), pg_sys::WaitEventIPC::WAIT_EVENT_BGWORKER_STARTUP);
            if began.elapsed() >= START_TIMEOUT {
                process::wake_postmaster();
            }
        }
    }

    /// Returns whether the server is still to start the worker.
    pub fn is_to_start(self) -> bool {
        self.status().0 == pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED
    }

    /// Returns whether the worker has ended, or will never start.
    pub fn is_gone(self) -> bool {
        let (status, _) = self.status();
        status != pg_sys::BgwHandleStatus::BGWH_STARTED && status != pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED
    }

    /// Returns what the server says of the worker, and its process id (bgworker.c, `GetBackgroundWorkerPid`).
    fn status(mut self) -> (pg_sys::BgwHandleStatus::Type, i32) {
        let mut pid = 0;
        // SAFETY: the handle is only read.
        (unsafe { pg_sys::GetBackgroundWorkerPid(self.as_raw(), &mut pid) }, pid)
    }

    /// Asks the server to end the worker; one that has not started never will.
    pub fn terminate(mut self) {
        // SAFETY: the handle is only read; the server checks its generation.
        unsafe { pg_sys::TerminateBackgroundWorker(self.as_raw()) };
    }
}
