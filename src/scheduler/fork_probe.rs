//! Detection of workers that the server should have started and has not. The postmaster keeps a worker that it could
//! not fork, tries again each second, and until then reports it like one that it has not come to yet (postmaster.c,
//! `do_start_bgworker`; bgworker.c, `GetBackgroundWorkerPid`). So it is asked for a probe: a process that it must not
//! retry, and whose failure it reports. When the probe fails, the jobs that wait for such a worker end with that
//! reason.

use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::process;
use crate::registry::layout::{ForkProbe, PoolPtr, Root, WorkerSlot, WorkerState};
use crate::registry::lists;
use crate::registry::root::slots;
use crate::scheduler::completion;
use crate::scheduler::coverage::{awaits_start, has_started, is_start_pending};
use crate::scheduler::slots;
use crate::scheduler::slots::{next_serial, SlotReservation};
use crate::time::Timestamp;
use std::time::Duration;

/// Time that the postmaster waits before it restarts a worker that died or that it could not fork, in seconds.
pub const RESTART_AFTER: i32 = 1;
/// Value of a slot's index for a process that is a probe.
pub const PROBE: usize = usize::MAX;

/// Maximum time of a start if nothing is wrong.
const START_TIME: Duration = Duration::from_millis(100);
/// Time without another probe after one has started or could not be registered.
const PROBE_INTERVAL: Duration = Duration::from_secs(RESTART_AFTER as u64);

/// Action to take about overdue workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverdueAction {
    /// None: no worker is overdue, or the reason is not known yet.
    Nothing,
    /// Register a probe with this number.
    StartProbe(u64),
    /// Wake the postmaster, so that it looks at its requests.
    WakePostmaster,
    /// The server cannot start processes, as a probe of this time has shown: call [`fail_overdue_jobs`].
    ForkFailed(Timestamp),
}

/// Looks for overdue workers that jobs wait for, and returns the action to take.
pub fn check_overdue_starts(memory: &mut Memory) -> OverdueAction {
    let now = process::now();
    if overdue_pools(memory, now).is_empty() {
        return OverdueAction::Nothing;
    }
    let root = memory.root::<Root>();
    let probe = memory.get(root).probe;
    let is_long_ago = |time: Duration| probe.asked_at + time <= now;
    let worker = WorkerHandle::from_words(probe.handle);
    let must_probe = match probe {
        ForkProbe { serial: 0, .. } => true,
        ForkProbe { has_handle: 0, .. } | ForkProbe { has_come: 1, .. } => is_long_ago(PROBE_INTERVAL),
        _ if worker.is_to_start() && is_long_ago(START_TIME) => return OverdueAction::WakePostmaster,
        _ if worker.is_gone() => {
            memory.get_mut(root).probe = bytemuck::Zeroable::zeroed();
            // The probe tells nothing about a worker that became overdue later.
            if !overdue_pools(memory, probe.asked_at).is_empty() {
                return OverdueAction::ForkFailed(probe.asked_at);
            }
            true
        }
        _ => false,
    };
    if !must_probe {
        return OverdueAction::Nothing;
    }
    let serial = next_serial(memory);
    memory.get_mut(root).probe = ForkProbe { serial, asked_at: now, ..bytemuck::Zeroable::zeroed() };
    OverdueAction::StartProbe(serial)
}

fn probe_mut(memory: &mut Memory, serial: u64) -> Option<&mut ForkProbe> {
    let root = memory.root::<Root>();
    let probe = (!root.is_null()).then(|| &mut memory.get_mut(root).probe)?;
    (probe.serial == serial).then_some(probe)
}

/// Records that the probe has been registered.
pub fn register_probe(memory: &mut Memory, serial: u64, worker: WorkerHandle) {
    if let Some(probe) = probe_mut(memory, serial) {
        (probe.handle, probe.has_handle) = (worker.to_words(), 1);
    }
}

/// Records that the probe, which is this process, has started.
pub fn probe_started(memory: &mut Memory, serial: u64) {
    if let Some(probe) = probe_mut(memory, serial) {
        probe.has_come = 1;
    }
}

/// Fails jobs because the server could not start workers at this time: each job that waited for a worker overdue then
/// has had an attempt that failed with this outcome.
pub fn fail_overdue_jobs(memory: &mut Memory, asked_at: Timestamp, outcome: &[u8]) {
    for pool in overdue_pools(memory, asked_at) {
        completion::fail_unstarted(memory, pool, asked_at, outcome);
    }
}

/// Progress of the start of a worker that was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartStatus {
    /// The process has started.
    Started,
    /// The postmaster is still to start the process, and jobs wait for that.
    PendingNeeded,
    /// The postmaster is still to start the process, and no job waits for that.
    PendingUnneeded,
}

/// Returns the progress of the start of the worker in this slot.
pub fn start_status(memory: &mut Memory, start: SlotReservation) -> StartStatus {
    let slot = slots(memory).get(start.slot).copied().filter(|slot| slot.serial == start.serial);
    match slot.filter(is_start_pending) {
        None => StartStatus::Started,
        Some(slot) if awaits_start(memory, slot.pool, process::now()) => StartStatus::PendingNeeded,
        Some(_) => StartStatus::PendingUnneeded,
    }
}

/// Returns whether the postmaster should have started the worker by this time and has not.
fn is_overdue(slot: &WorkerSlot, at: Timestamp) -> bool {
    match slot.state() {
        WorkerState::Starting => slot.since + START_TIME <= at && is_start_pending(slot),
        // The postmaster reports a worker as gone until it has restarted it.
        WorkerState::Restarting => {
            slot.since + PROBE_INTERVAL + START_TIME <= at && WorkerHandle::from_words(slot.handle).is_gone()
        }
        _ => false,
    }
}

/// Returns the pools whose jobs wait for a worker that was overdue at this time.
fn overdue_pools(memory: &mut Memory, at: Timestamp) -> Vec<PoolPtr> {
    let now = process::now();
    let overdue: Vec<PoolPtr> =
        slots(memory).iter().filter(|slot| is_overdue(slot, at)).map(|slot| slot.pool).collect();
    if overdue.is_empty() {
        return Vec::new();
    }
    let has_any_started = slots(memory).iter().any(has_started);
    let mut pools: Vec<PoolPtr> =
        lists::pools(memory).filter(|pool| !has_any_started || overdue.contains(pool)).collect();
    pools.retain(|pool| awaits_start(memory, *pool, now));
    pools
}

/// Returns whether a job may wait for a worker that was not started, or could not be.
pub fn may_lack_workers(memory: &Memory) -> bool {
    let is_expected = |slot: &WorkerSlot| {
        slot.state() == WorkerState::Restarting || slot.state() == WorkerState::Starting && slot.pid == 0
    };
    slots::lacks_processes(memory) || slots(memory).iter().any(is_expected)
}
