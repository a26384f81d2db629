//! Other processes: waking them, signalling them (proc.h, latch.c).

use crate::time::Timestamp;
use pgrx::pg_sys;

/// A process as others can name it, to wake it: the number of its entry in shared memory, from 1, or 0. Entries
/// have new owners in time, and waking one of these is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct ProcessRef(u64);

impl ProcessRef {
    pub const NONE: ProcessRef = ProcessRef(0);

    /// Makes a word of it that can be shared.
    pub fn to_word(self) -> u64 {
        self.0
    }

    /// Makes it of a word that was shared; another number names another process, or none.
    pub fn from_word(word: u64) -> Self {
        ProcessRef(word)
    }
}

/// Returns this process as others can name it.
pub fn own() -> ProcessRef {
    // SAFETY: variables of this process; its entry is one of the array (proc.c, `InitProcess`).
    let index = unsafe { pg_sys::MyProc.offset_from((*pg_sys::ProcGlobal).allProcs) };
    ProcessRef(index as u64 + 1)
}

/// Sets the latch of a process.
pub fn wake(process: ProcessRef) {
    // SAFETY: the array of entries is as long as the server says, and lies in main shared memory for ever.
    unsafe {
        let all = pg_sys::ProcGlobal;
        if (1..=u64::from((*all).allProcCount)).contains(&process.0) {
            pg_sys::SetLatch(&raw mut (*(*all).allProcs.add(process.0 as usize - 1)).procLatch);
        }
    }
}

/// Cancels what a worker runs, as pg_cancel_backend does. The caller holds the lock under which the worker would leave
/// the job, so the number is that of a process that runs it.
pub fn cancel(pid: i32) {
    send(pid, pg_sys::SIGINT);
}

/// Makes the postmaster look once more for workers that it is to start, or to say of that it cannot (postmaster.c,
/// SIGUSR1). Before PostgreSQL 16 it sleeps for up to a minute when it could not fork a worker for a signal that came
/// between its look at what is to be done and its sleep (`ServerLoop`).
pub fn wake_postmaster() {
    // SAFETY: a variable of this process.
    send(unsafe { pg_sys::PostmasterPid }, pg_sys::SIGUSR1);
}

/// Returns whether the server is shutting down. The postmaster writes so before it signals others (postmaster.c,
/// `pmdie`; miscinit.c, `LOCK_FILE_LINE_PM_STATUS`), in the data directory, which is where every process of the server
/// is.
pub fn is_server_stopping() -> bool {
    const STATUS_LINE: usize = 7;
    // A file that cannot be read says nothing.
    let file = std::fs::read_to_string("postmaster.pid").unwrap_or_default();
    file.lines().nth(STATUS_LINE).is_some_and(|status| status.trim_end() == "stopping")
}

fn send(pid: i32, signal: u32) {
    if pid > 1 {
        // SAFETY: sends a signal to a process that lives, by contract.
        unsafe { libc::kill(pid, signal as i32) };
    }
}

/// Returns the bytes of memory that this process shares with no other, if the system says (proc(5), `statm`).
pub fn memory() -> Option<u64> {
    const PAGE: u64 = 4096;
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = pages.split(' ').skip(1).map(|pages| pages.parse::<u64>().ok());
    let (resident, shared) = (pages.next()??, pages.next()??);
    Some(resident.saturating_sub(shared) * PAGE)
}

/// Returns the time (timestamp.c).
pub fn now() -> Timestamp {
    // SAFETY: reads the clock.
    Timestamp::of_micros(unsafe { pg_sys::GetCurrentTimestamp() })
}
