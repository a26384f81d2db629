//! Other processes: waking them, signalling them (proc.h, latch.c).

use pgrx::pg_sys;

/// Returns this process as others can name it. Entries of processes lie in main shared memory for ever; waking a later
/// owner of the entry is harmless.
pub fn own() -> u64 {
    // SAFETY: a variable of this process.
    (unsafe { pg_sys::MyProc }) as u64
}

/// Sets the latch of a process.
pub fn wake(process: u64) {
    if process != 0 {
        // SAFETY: the number came from `own` of a process of this server, which maps shared memory where we do.
        unsafe { pg_sys::SetLatch(&raw mut (*(process as *mut pg_sys::PGPROC)).procLatch) };
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

/// Returns whether the server is shutting down. The postmaster writes so before it tells anybody (postmaster.c,
/// `pmdie`; miscinit.c, `LOCK_FILE_LINE_PM_STATUS`), in the data directory, which is where every process of the server
/// is.
pub fn is_server_stopping() -> bool {
    const STATUS_LINE: usize = 7;
    let file = std::fs::read_to_string("postmaster.pid").unwrap_or_default();
    file.lines().nth(STATUS_LINE).is_some_and(|status| status.trim_end() == "stopping")
}

fn send(pid: i32, signal: u32) {
    if pid > 1 {
        // SAFETY: sends a signal to a process that lives, by contract.
        unsafe { libc::kill(pid, signal as i32) };
    }
}

/// Bytes of memory that this process shares with no other; none = the system does not say (proc(5), `statm`).
pub fn memory() -> Option<u64> {
    const PAGE: u64 = 4096;
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = pages.split(' ').skip(1).map(|pages| pages.parse::<u64>().ok());
    let (resident, shared) = (pages.next()??, pages.next()??);
    Some(resident.saturating_sub(shared) * PAGE)
}

/// Returns the time in microseconds, as the server counts them (timestamp.c).
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}
