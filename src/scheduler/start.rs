//! Registration of workers with the postmaster.

use crate::error::Error;
use crate::ffi::bgworker::{Registration, WorkerHandle};
use crate::ffi::dsm::Handle;
use crate::ffi::{area, exit_hooks, latch, process};
use crate::protocol::{to_bytes, Outcome};
use crate::registry::unregistered;
use crate::scheduler;
use crate::scheduler::{OverdueAction, SlotReservation};
use std::ffi::CStr;
use std::time::{Duration, Instant};

/// `backend_type` of workers in `pg_stat_activity`.
pub const WORKER_KIND: &CStr = c"pg_background";
/// Library of the extension, as the server finds it.
pub const LIBRARY: &CStr = c"pg_background_mgr";
/// Entry point of a worker that starts for an attached job.
pub const WORKER_FUNCTION: &CStr = c"pg_background_mgr_worker_main";
/// Entry point of a worker that runs queued jobs.
pub const POOL_FUNCTION: &CStr = c"pg_background_mgr_pool_main";

/// Interval of checks for the end of an exiting process. That takes a millisecond or two; if something holds it up, the
/// worker is started another time.
const GOING_CHECK: Duration = Duration::from_millis(1);
const GOING_CHECKS: u32 = 100;
/// Time that an exiting worker waits for a process for its successor, while other workers exit.
const EXIT_TIMEOUT: Duration = Duration::from_millis(300);

/// Starts the workers that are needed now and for which there is capacity, and handles overdue ones.
pub fn start_workers() {
    let (starts, overdue) =
        area::write(|memory| (scheduler::plan_starts(memory), scheduler::check_overdue_starts(memory)));
    for start in starts {
        register(start);
    }
    match overdue {
        OverdueAction::Nothing => {}
        OverdueAction::WakePostmaster => process::wake_postmaster(),
        OverdueAction::StartProbe(serial) => {
            let registration = registration(scheduler::PROBE, serial, None);
            if let Some(worker) = WorkerHandle::register(LIBRARY, WORKER_KIND, &registration) {
                area::write(|memory| scheduler::register_probe(memory, serial, worker));
            }
        }
        // A stopping server starts no process.
        OverdueAction::ForkFailed(_) if process::is_server_stopping() => {}
        OverdueAction::ForkFailed(asked_at) => {
            let outcome = to_bytes(&Outcome::failed(&Error::NotStarted.into()));
            area::write(|memory| scheduler::fail_overdue_jobs(memory, asked_at, &outcome));
        }
    }
}

fn registration(slot: usize, serial: u64, restart_after: Option<i32>) -> Registration {
    Registration {
        function: POOL_FUNCTION,
        argument: Handle::NONE,
        words: [area::epoch().word(), slot as u64, serial],
        restart_after,
    }
}

/// Registers a worker for its slot. Returns `false` if the server has no process for it.
pub fn register(start: SlotReservation) -> bool {
    register_with(start, retry_registration)
}

/// Registers the successor of the worker in slot `index`, which exits. Waits for a process while other workers of the
/// pool exit. Returns `false` if the server has no process for it.
pub fn register_after(index: usize, start: SlotReservation) -> bool {
    let began = Instant::now();
    register_with(start, |ask| loop {
        let may_wait = began.elapsed() < EXIT_TIMEOUT && area::write(|memory| scheduler::is_one_exiting(memory, index));
        if !may_wait {
            return retry_registration(ask);
        }
        latch::pause(GOING_CHECK);
        if let Some(worker) = ask() {
            return Some(worker);
        }
    })
}

/// Registers the successor of a worker that goes on until there is a process for it. Tries for as long as `patience`,
/// and does not serve interrupts meanwhile. Returns `false` if there is no process yet.
pub fn try_register(start: SlotReservation, timeout: Duration) -> bool {
    let began = Instant::now();
    loop {
        if let Some(worker) = ask(start) {
            area::write(|memory| scheduler::worker_registered(memory, start, worker));
            return true;
        }
        if began.elapsed() >= timeout {
            area::write(|memory| scheduler::release_reservation(memory, start));
            return false;
        }
        latch::pause(GOING_CHECK);
    }
}

fn ask(start: SlotReservation) -> Option<WorkerHandle> {
    let registration = registration(start.slot, start.serial, Some(scheduler::RESTART_AFTER));
    WorkerHandle::register(LIBRARY, WORKER_KIND, &registration)
}

/// Registers a worker. `retry`: called when the server has no process for it.
fn register_with(
    start: SlotReservation,
    retry: impl FnOnce(&dyn Fn() -> Option<WorkerHandle>) -> Option<WorkerHandle>,
) -> bool {
    let ask = || ask(start);
    let worker = ask().or_else(|| retry(&ask));
    area::write(|memory| match worker {
        Some(worker) => scheduler::worker_registered(memory, start, worker),
        None => scheduler::registration_failed(memory, start),
    });
    worker.is_some()
}

/// Tries again to register a worker while another process is exiting, or while a prestarted worker can be evicted. Does
/// not serve interrupts: the worker has been promised already.
fn retry_registration(ask: &dyn Fn() -> Option<WorkerHandle>) -> Option<WorkerHandle> {
    // After one caller has waited in vain, others do not wait: otherwise each claim would take so long.
    let may_wait = !area::read(scheduler::lacks_processes);
    for _ in 0..GOING_CHECKS {
        let is_one_exiting = area::write(scheduler::evict_for_another) || may_wait && unregistered::is_one_exiting();
        if !is_one_exiting {
            return None;
        }
        latch::pause(GOING_CHECK);
        if let Some(worker) = ask() {
            return Some(worker);
        }
    }
    None
}

/// Ends this process such that the postmaster restarts it in the same slot.
pub fn exit_for_restart() {
    exit_hooks::now(1);
}
