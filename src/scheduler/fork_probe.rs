//! Workers that the server should have started and has not. It keeps one that it could not fork, tries again each
//! second, and says of it until then what it says of one whose turn has not come (postmaster.c, `do_start_bgworker`;
//! bgworker.c, `GetBackgroundWorkerPid`). So it is asked for a process that it is not to try again, of which it says
//! so: a probe. When that is refused, the jobs that wait for such a worker end with that reason.

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

/// Time that the server waits before it starts a worker again that has died or that it could not fork, in seconds.
pub const RESTART_AFTER: i32 = 1;
/// Value in place of a worker's place: the process is a probe.
pub const PROBE: usize = usize::MAX;

/// Time that a start takes at most if nothing is wrong, in microseconds.
const START_TIME: i64 = 100_000;
/// Time in which nobody asks again after a probe was started or could not be registered, in microseconds.
const ASK_EVERY: i64 = RESTART_AFTER as i64 * 1_000_000;

/// Tells what is to be done about workers that are late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverdueAction {
    /// There are none, or it is not known yet why.
    Nothing,
    /// A probe with this number is to be registered.
    StartProbe(u64),
    /// The server is to look at what it was asked for.
    WakePostmaster,
    /// The server cannot start processes, as a probe of this time says: [`fail_overdue_jobs`].
    ForkFailed(i64),
}

/// Looks for workers that are late and that jobs wait for.
pub fn check_overdue_starts(memory: &mut Memory) -> OverdueAction {
    let now = process::now();
    if overdue_pools(memory, now).is_empty() {
        return OverdueAction::Nothing;
    }
    let root = memory.root::<Root>();
    let probe = memory.get(root).probe;
    let is_long_ago = |time: i64| probe.asked_at + time <= now;
    let worker = WorkerHandle::from_words(probe.handle);
    let asks = match probe {
        ForkProbe { serial: 0, .. } => true,
        ForkProbe { has_handle: 0, .. } | ForkProbe { has_come: 1, .. } => is_long_ago(ASK_EVERY),
        _ if worker.is_to_start() && is_long_ago(START_TIME) => return OverdueAction::WakePostmaster,
        _ if worker.is_gone() => {
            memory.get_mut(root).probe = bytemuck::Zeroable::zeroed();
            // It says nothing of a worker that is late since then.
            if !overdue_pools(memory, probe.asked_at).is_empty() {
                return OverdueAction::ForkFailed(probe.asked_at);
            }
            true
        }
        _ => false,
    };
    if !asks {
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

/// The server has been asked for the probe.
pub fn register_probe(memory: &mut Memory, serial: u64, worker: WorkerHandle) {
    if let Some(probe) = probe_mut(memory, serial) {
        (probe.handle, probe.has_handle) = (worker.to_words(), 1);
    }
}

/// Notes that this process is the probe.
pub fn probe_started(memory: &mut Memory, serial: u64) {
    if let Some(probe) = probe_mut(memory, serial) {
        probe.has_come = 1;
    }
}

/// The server could not start workers at this time: what waited for one that was late then has had an attempt that
/// failed with this outcome.
pub fn fail_overdue_jobs(memory: &mut Memory, asked_at: i64, outcome: &[u8]) {
    for pool in overdue_pools(memory, asked_at) {
        completion::fail_unstarted(memory, pool, asked_at, outcome);
    }
}

/// Tells what has become of a worker that the server has been asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartStatus {
    /// Its process is there.
    Started,
    /// The server is still to start it, and jobs wait for that.
    PendingNeeded,
    /// The server is still to start it, and no job waits for that.
    PendingUnneeded,
}

/// Returns what has become of the worker that was to come in this place.
pub fn start_status(memory: &mut Memory, start: SlotReservation) -> StartStatus {
    let slot = slots(memory).get(start.slot).copied().filter(|slot| slot.serial == start.serial);
    match slot.filter(is_start_pending) {
        None => StartStatus::Started,
        Some(slot) if awaits_start(memory, slot.pool, process::now()) => StartStatus::PendingNeeded,
        Some(_) => StartStatus::PendingUnneeded,
    }
}

/// Returns whether the server has not started the worker, which it should have at this time.
fn is_overdue(slot: &WorkerSlot, at: i64) -> bool {
    match slot.state() {
        WorkerState::Starting => slot.since + START_TIME <= at && is_start_pending(slot),
        // Of one that it is to start again it says meanwhile that it is gone.
        WorkerState::Restarting => {
            slot.since + ASK_EVERY + START_TIME <= at && WorkerHandle::from_words(slot.handle).is_gone()
        }
        _ => false,
    }
}

/// The pools of which the same is true, and the worker was late at this time.
fn overdue_pools(memory: &mut Memory, at: i64) -> Vec<PoolPtr> {
    let now = process::now();
    let late: Vec<PoolPtr> = slots(memory).iter().filter(|slot| is_overdue(slot, at)).map(|slot| slot.pool).collect();
    if late.is_empty() {
        return Vec::new();
    }
    let is_anybody_there = slots(memory).iter().any(has_started);
    let mut pools: Vec<PoolPtr> =
        lists::pools(memory).filter(|pool| !is_anybody_there || late.contains(pool)).collect();
    pools.retain(|pool| awaits_start(memory, *pool, now));
    pools
}

/// Returns whether a job may wait for a worker that nobody has started, or could start.
pub fn may_lack_workers(memory: &Memory) -> bool {
    let is_expected = |slot: &WorkerSlot| {
        slot.state() == WorkerState::Restarting || slot.state() == WorkerState::Starting && slot.pid == 0
    };
    slots::lacks_processes(memory) || slots(memory).iter().any(is_expected)
}
