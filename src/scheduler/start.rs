//! Having workers started.

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
/// The library, as the server finds it.
pub const LIBRARY: &CStr = c"pg_background_mgr";
/// The worker's entry point in the library.
pub const WORKER_FUNCTION: &CStr = c"pg_background_mgr_worker_main";
/// The entry point of the manager's workers.
pub const POOL_FUNCTION: &CStr = c"pg_background_mgr_pool_main";

/// A process that is to go takes a millisecond or two; if something holds it up, the worker is started another time.
const GOING_CHECK: Duration = Duration::from_millis(1);
const GOING_CHECKS: u32 = 100;
/// Time that a worker that ends waits for a process for the one after it, while other workers end.
const GOING_PATIENCE: Duration = Duration::from_millis(300);

/// Starts the workers that are wanted now and that there is room for, and sees to those that the server has not
/// started.
pub fn start_workers() {
    let (starts, late) =
        area::write(|memory| (scheduler::plan_starts(memory), scheduler::check_overdue_starts(memory)));
    for start in starts {
        register(start);
    }
    match late {
        OverdueAction::Nothing => {}
        OverdueAction::WakePostmaster => process::wake_postmaster(),
        OverdueAction::StartProbe(serial) => {
            let registration = registration(scheduler::PROBE, serial, None);
            if let Some(worker) = WorkerHandle::register(LIBRARY, WORKER_KIND, &registration) {
                area::write(|memory| scheduler::register_probe(memory, serial, worker));
            }
        }
        // Then it starts nothing, either.
        OverdueAction::ForkFailed(_) if process::is_server_stopping() => {}
        OverdueAction::ForkFailed(asked_at) => {
            let outcome = to_bytes(&Outcome::failed(&Error::NotStarted.into()));
            area::write(|memory| scheduler::fail_overdue_jobs(memory, asked_at, &outcome));
        }
    }
}

fn registration(place: usize, serial: u64, restart_after: Option<i32>) -> Registration {
    Registration {
        function: POOL_FUNCTION,
        argument: Handle::NONE,
        words: [area::epoch() as u64, place as u64, serial],
        restart_after,
    }
}

/// Registers a worker for its place. False = the server has no process for it.
pub fn register(start: SlotReservation) -> bool {
    register_with(start, retry_registration)
}

/// Registers a worker that comes after the one in the place `index`, which ends. While others of the pool end, too,
/// there will be a process for it: waits for that.
pub fn register_after(index: usize, start: SlotReservation) -> bool {
    let began = Instant::now();
    register_with(start, |ask| loop {
        let is_patient =
            began.elapsed() < GOING_PATIENCE && area::write(|memory| scheduler::is_one_exiting(memory, index));
        if !is_patient {
            return retry_registration(ask);
        }
        latch::pause(GOING_CHECK);
        if let Some(worker) = ask() {
            return Some(worker);
        }
    })
}

/// Registers a worker that comes after one which goes on until there is a process for it. False = there is none yet;
/// `patience` = how long that one has time. Interrupts are not served meanwhile.
pub fn try_register(start: SlotReservation, patience: Duration) -> bool {
    let began = Instant::now();
    loop {
        if let Some(worker) = ask(start) {
            area::write(|memory| scheduler::worker_registered(memory, start, worker));
            return true;
        }
        if began.elapsed() >= patience {
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

/// `again`: what to do when the server has no process for it.
fn register_with(
    start: SlotReservation,
    again: impl FnOnce(&dyn Fn() -> Option<WorkerHandle>) -> Option<WorkerHandle>,
) -> bool {
    let ask = || ask(start);
    let worker = ask().or_else(|| again(&ask));
    area::write(|memory| match worker {
        Some(worker) => scheduler::worker_registered(memory, start, worker),
        None => scheduler::registration_failed(memory, start),
    });
    worker.is_some()
}

/// Asks for a process while one is on its way out, or can be sent away as it was started ahead of its job. Interrupts
/// are not served: whatever wants the worker has been promised already.
fn retry_registration(ask: &dyn Fn() -> Option<WorkerHandle>) -> Option<WorkerHandle> {
    // When somebody has waited in vain, others do not: not each claim of a job is to take so long.
    let is_patient = !area::read(scheduler::lacks_processes);
    for _ in 0..GOING_CHECKS {
        let one_goes = area::write(scheduler::evict_for_another) || is_patient && unregistered::is_one_exiting();
        if !one_goes {
            return None;
        }
        latch::pause(GOING_CHECK);
        if let Some(worker) = ask() {
            return Some(worker);
        }
    }
    None
}

/// Ends this process in a way that has the server start another one in its place.
pub fn exit_for_restart() {
    exit_hooks::now(1);
}
