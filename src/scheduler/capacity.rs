//! Capacity for workers: how many there may be, which pool needs one most, and which worker must yield.
//!
//! There are never more workers than the cap. A worker that must make room for one of another role or database
//! registers its successor itself, which begins when the worker is gone. So there is always a worker for queued jobs.

use crate::error::Error;
use crate::ffi::area::Memory;
use crate::ffi::process;
use crate::guc;
use crate::ids::{DatabaseId, RoleId};
use crate::registry::layout::{PoolPtr, Root, WorkerSlot, WorkerState, MAX_PRESTARTED};
use crate::registry::root::{get_or_create_root, slots};
use crate::registry::unregistered;
use crate::registry::{lists, pools};
use crate::scheduler::job_order::runnable_jobs;
use crate::scheduler::slots::{
    evict_idle, has_workers, idle_count, is_alone, is_exiting_unreplaced, looks_for_work, reclaim, reserve_slot,
    wake_idle, SlotReservation,
};
use crate::scheduler::{job_order, prestart};
use crate::time::Timestamp;
use std::collections::HashMap;
use std::time::Duration;

/// Counts the workers of the extension in the whole server, including those that are still to start.
pub fn worker_count(memory: &mut Memory) -> usize {
    count_with_job(memory) + prestart::count(memory)
}

/// Counts the same workers, without the prestarted ones.
fn count_with_job(memory: &mut Memory) -> usize {
    reclaim(memory);
    slots(memory).iter().filter(|slot| slot.state() != WorkerState::Free && slot.has_successor == 0).count()
        + unregistered::count()
}

/// Counts the workers that are neither exiting nor prestarted: prestarted workers exit as soon as another process is
/// needed.
pub fn staying_workers(memory: &mut Memory) -> usize {
    let all = count_with_job(memory);
    all - slots(memory).iter().filter(|slot| is_exiting_unreplaced(slot)).count()
}

/// Consequence of the cap for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapDecision {
    Keep,
    /// There are too many workers: this one exits.
    Exit,
    /// There are too many workers, but no other one would take up the queued jobs when there is capacity again.
    Pause,
}

/// Returns the consequence of the cap for a worker that looks for work.
pub fn cap_decision(memory: &mut Memory, index: usize) -> CapDecision {
    if staying_workers(memory) <= guc::cap() {
        return CapDecision::Keep;
    }
    match is_alone(memory, index) && job_order::has_work(memory) {
        true => CapDecision::Pause,
        false => CapDecision::Exit,
    }
}

/// Returns whether no other worker would take up the jobs that are queued for later. A busy worker does not count, as
/// it looks for jobs only when its own is done.
pub fn is_needed(memory: &Memory, index: usize) -> bool {
    let others = slots(memory).iter().enumerate().filter(|(at, _)| *at != index);
    !others.into_iter().any(|(_, slot)| looks_for_work(slot)) && job_order::has_work(memory)
}

/// Counts the workers that a call could have at once for this pool.
fn available_workers(memory: &mut Memory, database: DatabaseId, login: RoleId) -> usize {
    let free = guc::cap().saturating_sub(worker_count(memory));
    let idle =
        slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle && !slot.pool.is_null()).filter(|slot| {
            let pool = memory.get(slot.pool);
            pool.database == database && pool.login == login
        });
    free + idle.count()
}

/// Numbers of workers: of each role, and those of each pool that will look for work soon. They are counted by walking
/// through the workers, which are few: there may be very many pools.
#[derive(Default)]
struct Shares {
    of_role: HashMap<RoleId, u32>,
    coming: HashMap<PoolPtr, u32>,
}

impl Shares {
    fn count(memory: &Memory) -> Self {
        let mut shares = Shares::default();
        for slot in slots(memory).iter().filter(|slot| !slot.pool.is_null()) {
            *shares.of_role.entry(memory.get(slot.pool).login).or_default() += 1;
            if slot.batch.is_null() && matches!(slot.state(), WorkerState::Starting | WorkerState::Ready) {
                *shares.coming.entry(slot.pool).or_default() += 1;
            }
        }
        shares
    }

    fn of_role(&self, login: RoleId) -> u32 {
        self.of_role.get(&login).copied().unwrap_or(0)
    }
}

/// Returns the pool other than `except` that needs a worker most: the one whose role has the fewest workers and whose
/// last turn is longest ago. Returns `None` if no other pool needs one.
pub fn most_underserved_pool(memory: &mut Memory, now: Timestamp, except: PoolPtr) -> Option<PoolPtr> {
    let pools: Vec<PoolPtr> = lists::pools(memory).filter(|pool| *pool != except).collect();
    let shares = Shares::count(memory);
    let mut best = None;
    for pool in pools {
        let record = *memory.get(pool);
        if record.login == RoleId::NONE || !record.has_queue() || record.limit != 0 && record.workers >= record.limit {
            continue;
        }
        let rank = (shares.of_role(record.login), record.workers, record.turn);
        if best.is_some_and(|(least, _)| rank >= least) {
            continue;
        }
        let coming = shares.coming.get(&pool).copied().unwrap_or(0);
        if runnable_jobs(memory, pool, now, coming + 1) > coming {
            best = Some((rank, pool));
        }
    }
    best.map(|(_, pool)| pool)
}

/// Returns whether another pool needs the slot of a worker of this pool that has nothing to do.
pub fn is_wanted_elsewhere(memory: &mut Memory, pool: PoolPtr, now: Timestamp) -> bool {
    worker_count(memory) >= guc::cap()
        && (most_underserved_pool(memory, now, pool).is_some() || database_without_log_writer(memory, now).is_some())
}

/// Returns whether the worker in this slot must yield to a worker of another role: only if there is no other capacity.
/// `quantum`: time for which the worker of one role may keep another role waiting.
pub fn must_yield(memory: &mut Memory, index: usize, now: Timestamp, quantum: Duration) -> bool {
    let Some(own) = slots(memory).get(index).copied() else { return false };
    if worker_count(memory) < guc::cap() {
        return false;
    }
    let Some(other) = most_underserved_pool(memory, now, own.pool) else { return false };
    let (mine, theirs) = (*memory.get(own.pool), *memory.get(other));
    let (my_share, their_share) = if mine.login == theirs.login {
        (mine.workers, theirs.workers)
    } else {
        let shares = Shares::count(memory);
        (shares.of_role(mine.login), shares.of_role(theirs.login))
    };
    // Two roles that share one worker take turns.
    their_share + 1 < my_share || their_share == 0 && (my_share > 1 || own.since + quantum < now)
}

/// Capacity for one more worker: beside the others, or after an exiting one.
enum Capacity {
    Free,
    After(usize),
}

fn free_capacity(memory: &mut Memory) -> Option<Capacity> {
    let cap = guc::cap();
    if worker_count(memory) < cap {
        return Some(Capacity::Free);
    }
    if staying_workers(memory) < cap {
        return slots(memory).iter().position(is_exiting_unreplaced).map(Capacity::After);
    }
    None
}

/// Reserves a slot for a worker of a pool, or returns `None` if there is no capacity for it.
fn reserve_if_free(memory: &mut Memory, pool: PoolPtr) -> Option<SlotReservation> {
    match free_capacity(memory)? {
        Capacity::Free => reserve_slot(memory, pool, None),
        Capacity::After(before) => reserve_slot(memory, pool, Some(before)),
    }
}

/// Decides which workers to register now, and wakes idle workers that have something to do.
pub fn plan_starts(memory: &mut Memory) -> Vec<SlotReservation> {
    let now = process::now();
    let mut starts = Vec::new();
    if memory.root::<Root>().is_null() {
        return starts;
    }
    job_order::release_overdue_claims(memory, now);
    while let Some(pool) = most_underserved_pool(memory, now, PoolPtr::NULL) {
        if wake_idle(memory, pool) {
            continue;
        }
        match reserve_if_free(memory, pool) {
            Some(start) => starts.push(start),
            None if prestart::evict_prestarted(memory) => {}
            None => {
                evict_idle(memory, pool);
                // Other processes fill the cap: one worker waits for capacity, so that no session has to.
                if !has_workers(memory) {
                    starts.extend(reserve_slot(memory, pool, None));
                }
                break;
            }
        }
    }
    if free_capacity(memory).is_some() {
        starts.extend(pool_without_log_writer(memory, now).and_then(|pool| reserve_if_free(memory, pool)));
    }
    starts
}

/// Run time after which the worker of a job is not expected to look for other work soon.
const LONG_JOB: Duration = Duration::from_secs(1);

/// Returns a database with final rows to write and no worker that will write them soon, or `None`.
fn database_without_log_writer(memory: &Memory, now: Timestamp) -> Option<DatabaseId> {
    let looks_soon = |slot: &WorkerSlot| {
        looks_for_work(slot) || job_order::busy_since(memory, slot).is_some_and(|started| started + LONG_JOB > now)
    };
    let is_covered = |database: DatabaseId| {
        let here = |slot: &&WorkerSlot| !slot.pool.is_null() && memory.get(slot.pool).database == database;
        slots(memory).iter().filter(here).any(looks_soon)
    };
    let unlogged = job_order::unlogged(memory).map(|batch| memory.get(batch));
    let due = unlogged.filter(|record| record.log_writer == 0 && record.retry_log_at <= now);
    due.map(|record| record.database).find(|database| !is_covered(*database))
}

/// Returns the pool of a worker that writes final rows in such a database, or `None` if there is no such database.
fn pool_without_log_writer(memory: &mut Memory, now: Timestamp) -> Option<PoolPtr> {
    let database = database_without_log_writer(memory, now)?;
    pools::get_or_create(memory, database, RoleId::NONE).ok()
}

/// Returns the pool of a worker that waits until its work is due, or `None` if there is no such work.
fn pool_with_delayed_work(memory: &mut Memory) -> Option<PoolPtr> {
    let with_queue = lists::pools(memory).find(|pool| {
        let record = memory.get(*pool);
        record.login != RoleId::NONE && record.has_queue()
    });
    if with_queue.is_some() {
        return with_queue;
    }
    let unlogged = job_order::unlogged(memory).map(|batch| memory.get(batch));
    let database = unlogged.min_by_key(|record| record.retry_log_at)?.database;
    pools::get_or_create(memory, database, RoleId::NONE).ok()
}

/// Chooses the pool of a worker that starts in this slot, or after it: a pool other than `except` if one needs a
/// worker.
pub fn next_pool(memory: &mut Memory, index: usize, except: PoolPtr) -> Option<PoolPtr> {
    let now = process::now();
    let wanted = most_underserved_pool(memory, now, except)
        .or_else(|| most_underserved_pool(memory, now, PoolPtr::NULL))
        .or_else(|| pool_without_log_writer(memory, now));
    match wanted {
        None if is_alone(memory, index) => pool_with_delayed_work(memory),
        wanted => wanted,
    }
}

/// Returns whether a worker is about to become idle, with no queued job that it could take up.
fn is_one_becoming_idle(memory: &Memory) -> bool {
    let will_be_idle = |slot: &WorkerSlot| match slot.state() {
        WorkerState::Starting | WorkerState::Ready => true,
        WorkerState::RunningAttached => slot.result_consumed != 0,
        _ => false,
    };
    slots(memory).iter().any(will_be_idle) && !job_order::is_queued(memory)
}

/// Time for which jobs are taken to be short after one has begun or ended.
const SHORT_JOB: Duration = Duration::from_millis(250);

/// Returns whether an attached job has begun a moment ago, or a worker has become idle.
fn has_short_job(memory: &Memory) -> bool {
    let recently = process::now() - SHORT_JOB;
    let is_active = |slot: &WorkerSlot| matches!(slot.state(), WorkerState::RunningAttached | WorkerState::Idle);
    slots(memory).iter().any(|slot| is_active(slot) && slot.since > recently)
}

/// Asks an idle worker to exit, because a session needs its process. Returns `false` if none is idle or will be soon,
/// as far as can be told.
pub fn free_a_process(memory: &mut Memory) -> bool {
    free_a_process_for(memory, PoolPtr::NULL) || is_one_becoming_idle(memory) || has_short_job(memory)
}

/// Asks a worker that is not of this pool to exit, unless one is exiting already. Returns `false` if there is none.
pub fn free_a_process_for(memory: &mut Memory, pool: PoolPtr) -> bool {
    let is_leaving = |slot: &WorkerSlot| slot.state() == WorkerState::Exiting || slot.exit_requested != 0;
    if slots(memory).iter().any(is_leaving) {
        reclaim(memory);
        if slots(memory).iter().any(is_leaving) {
            return true;
        }
    }
    prestart::evict_for_another(memory) || evict_idle(memory, pool)
}

/// Reserves slots for `wanted` workers of a pool, idle ones included, or none at all.
///
/// # Errors
/// [`Error::TooFewWorkers`] (53000)
pub fn reserve(
    memory: &mut Memory,
    database: DatabaseId,
    login: RoleId,
    wanted: usize,
) -> Result<Vec<SlotReservation>, Error> {
    let mut free = available_workers(memory, database, login);
    while free < wanted && prestart::evict_prestarted(memory) {
        free += 1;
    }
    if free < wanted {
        return Err(Error::TooFewWorkers { wanted, free });
    }
    let pool = pools::get_or_create(memory, database, login)?;
    let idle = slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle && slot.pool == pool).count();
    Ok((idle..wanted).filter_map(|_| reserve_slot(memory, pool, None)).collect())
}

/// Returns whether [`reserve`] could have these slots soon, when the workers have settled that are between two jobs or
/// exiting. Asks an idle worker of another pool to exit.
pub fn is_settling(memory: &mut Memory, database: DatabaseId, login: RoleId, wanted: usize) -> bool {
    let now = process::now();
    let pools: Vec<PoolPtr> = lists::pools(memory).collect();
    // Queued jobs have priority.
    let queued: usize = pools.into_iter().map(|pool| runnable_jobs(memory, pool, now, wanted as u32) as usize).sum();
    let busy = slots(memory).iter().filter(|slot| slot.state() == WorkerState::RunningQueued).count();
    if guc::cap().saturating_sub(unregistered::count() + busy + queued) < wanted {
        return false;
    }
    let is_moving =
        |slot: &WorkerSlot| matches!(slot.state(), WorkerState::Starting | WorkerState::Ready | WorkerState::Exiting);
    if slots(memory).iter().any(is_moving) {
        return true;
    }
    let own = lists::pools(memory).find(|pool| {
        let record = memory.get(*pool);
        record.database == database && record.login == login
    });
    evict_idle(memory, own.unwrap_or(PoolPtr::NULL))
}

/// Returns whether there is capacity for one more prestarted worker.
pub fn may_prestart(memory: &mut Memory) -> bool {
    if get_or_create_root(memory).is_err() {
        return false;
    }
    let idle = prestart::count(memory) + idle_count(memory);
    idle < guc::half_cap().min(MAX_PRESTARTED) && worker_count(memory) < guc::cap()
}
