//! Room for workers: how many there may be, where they are wanted, and who gets a place.
//!
//! There are never more than the cap. A worker that is to make room for one of another role or database registers its
//! successor itself, which begins when it is gone; so no moment comes in which there is work and nobody to see it.

use crate::error::Error;
use crate::ffi::area::Memory;
use crate::ffi::process;
use crate::guc;
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
use std::collections::HashMap;

/// Counts the workers of the extension that are in the whole server, or will be.
pub fn worker_count(memory: &mut Memory) -> usize {
    count_with_job(memory) + prestart::count(memory)
}

/// Counts the same without those that wait for their first job.
fn count_with_job(memory: &mut Memory) -> usize {
    reclaim(memory);
    slots(memory).iter().filter(|slot| slot.state() != WorkerState::Free && slot.has_successor == 0).count()
        + unregistered::count()
}

/// Counts the workers that neither are on their way out nor go as soon as somebody wants their place.
pub fn staying_workers(memory: &mut Memory) -> usize {
    let all = count_with_job(memory);
    all - slots(memory).iter().filter(|slot| is_exiting_unreplaced(slot)).count()
}

/// Tells where a worker stands with regard to the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapDecision {
    Keep,
    /// There are too many: it goes.
    Exit,
    /// There are too many, but no other worker would see to what is queued when there is room again.
    Pause,
}

/// Returns where a worker that looks for work stands.
pub fn cap_decision(memory: &mut Memory, index: usize) -> CapDecision {
    if staying_workers(memory) <= guc::cap() {
        return CapDecision::Keep;
    }
    match is_alone(memory, index) && job_order::has_work(memory) {
        true => CapDecision::Pause,
        false => CapDecision::Exit,
    }
}

/// Returns whether nobody else would see to what is queued for later. A worker that is busy looks when it is done.
pub fn is_needed(memory: &Memory, index: usize) -> bool {
    let others = slots(memory).iter().enumerate().filter(|(at, _)| *at != index);
    !others.into_iter().any(|(_, slot)| looks_for_work(slot)) && job_order::has_work(memory)
}

/// Counts the workers that a call could have at once for this pool.
fn available_workers(memory: &mut Memory, database: u32, login: u32) -> usize {
    let free = guc::cap().saturating_sub(worker_count(memory));
    let idle =
        slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle && !slot.pool.is_null()).filter(|slot| {
            let pool = memory.get(slot.pool);
            pool.database == database && pool.login == login
        });
    free + idle.count()
}

/// Counts the workers of each role, and those of each pool that will look for work soon. Goes through the workers,
/// which are few: there may be very many pools.
#[derive(Default)]
struct Shares {
    of_role: HashMap<u32, u32>,
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

    fn of_role(&self, login: u32) -> u32 {
        self.of_role.get(&login).copied().unwrap_or(0)
    }
}

/// The pool that wants a worker most: whose role has the fewest, and whose last turn is longest ago.
pub fn most_underserved_pool(memory: &mut Memory, now: i64, but: PoolPtr) -> Option<PoolPtr> {
    let pools: Vec<PoolPtr> = lists::pools(memory).filter(|place| *place != but).collect();
    let shares = Shares::count(memory);
    let mut best = None;
    for place in pools {
        let pool = *memory.get(place);
        if pool.login == 0 || !pool.has_queue() || pool.limit != 0 && pool.workers >= pool.limit {
            continue;
        }
        let rank = (shares.of_role(pool.login), pool.workers, pool.turn);
        if best.is_some_and(|(least, _)| rank >= least) {
            continue;
        }
        let coming = shares.coming.get(&place).copied().unwrap_or(0);
        if runnable_jobs(memory, place, now, coming + 1) > coming {
            best = Some((rank, place));
        }
    }
    best.map(|(_, place)| place)
}

/// Returns whether the place of a worker of this pool, which has nothing to do, is wanted for another one.
pub fn is_wanted_elsewhere(memory: &mut Memory, pool: PoolPtr, now: i64) -> bool {
    worker_count(memory) >= guc::cap()
        && (most_underserved_pool(memory, now, pool).is_some() || database_without_log_writer(memory, now).is_some())
}

/// Returns whether the worker in this slot is to make room for another role: only when there is no other room.
pub fn must_yield(memory: &mut Memory, index: usize, now: i64, quantum: i64) -> bool {
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
    // With one worker for two roles, they take turns.
    their_share + 1 < my_share || their_share == 0 && (my_share > 1 || now - own.since > quantum)
}

/// Returns whether one more worker may have nothing to do. The one that had nothing to do for longest makes room.
pub fn may_one_more_idle(memory: &mut Memory) -> bool {
    let limit = guc::idle_limit();
    idle_count(memory) < limit || limit > 0 && evict_idle(memory, PoolPtr::NULL)
}

/// Room for one more worker: beside the others, or in the place of one that is on its way out.
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

/// Reserves a place for a worker of a pool, if there is room for it.
fn reserve_if_free(memory: &mut Memory, pool: PoolPtr) -> Option<SlotReservation> {
    match free_capacity(memory)? {
        Capacity::Free => reserve_slot(memory, pool, None),
        Capacity::After(before) => reserve_slot(memory, pool, Some(before)),
    }
}

/// Decides which workers are to be registered now, and wakes idle ones that have something to do.
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
                // Others fill the cap: one worker waits for room, so that nobody else has to.
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

/// Time that a job runs before its worker is not expected to look for something else soon, in microseconds.
const LONG_JOB: i64 = 1_000_000;

/// A database with final rows to write and no worker that will see to them.
fn database_without_log_writer(memory: &Memory, now: i64) -> Option<u32> {
    let looks_soon = |slot: &WorkerSlot| {
        looks_for_work(slot) || job_order::busy_since(memory, slot).is_some_and(|started| started + LONG_JOB > now)
    };
    let is_attended = |database: u32| {
        let here = |slot: &&WorkerSlot| !slot.pool.is_null() && memory.get(slot.pool).database == database;
        slots(memory).iter().filter(here).any(looks_soon)
    };
    let unlogged = job_order::unlogged(memory).map(|place| memory.get(place));
    let due = unlogged.filter(|batch| batch.log_writer == 0 && batch.retry_log_at <= now);
    due.map(|batch| batch.database).find(|database| !is_attended(*database))
}

/// The pool of a worker that writes final rows in such a database.
fn pool_without_log_writer(memory: &mut Memory, now: i64) -> Option<PoolPtr> {
    let database = database_without_log_writer(memory, now)?;
    pools::get_or_create(memory, database, 0).ok()
}

/// The pool of a worker that waits until there is something to do.
fn pool_with_delayed_work(memory: &mut Memory) -> Option<PoolPtr> {
    let with_queue = lists::pools(memory).find(|place| {
        let pool = memory.get(*place);
        pool.login != 0 && pool.has_queue()
    });
    if with_queue.is_some() {
        return with_queue;
    }
    let unlogged = job_order::unlogged(memory).map(|place| memory.get(place));
    let database = unlogged.min_by_key(|batch| batch.retry_log_at)?.database;
    pools::get_or_create(memory, database, 0).ok()
}

/// Chooses the pool of a worker that comes in this place, or in the place after it: another than `but` if one is
/// wanted.
pub fn next_pool(memory: &mut Memory, index: usize, but: PoolPtr) -> Option<PoolPtr> {
    let now = process::now();
    let wanted = most_underserved_pool(memory, now, but)
        .or_else(|| most_underserved_pool(memory, now, PoolPtr::NULL))
        .or_else(|| pool_without_log_writer(memory, now));
    match wanted {
        None if is_alone(memory, index) => pool_with_delayed_work(memory),
        wanted => wanted,
    }
}

/// Returns whether a worker is between its job and rest, with nothing queued that it could take up.
fn is_one_becoming_idle(memory: &Memory) -> bool {
    let will_rest = |slot: &WorkerSlot| match slot.state() {
        WorkerState::Starting | WorkerState::Ready => true,
        WorkerState::RunningAttached => slot.result_consumed != 0,
        _ => false,
    };
    slots(memory).iter().any(will_rest) && !job_order::is_queued(memory)
}

/// Asks an idle worker to leave: a session wants a process for itself. False = there is none, and none will be soon.
pub fn free_a_process(memory: &mut Memory) -> bool {
    free_a_process_for(memory, PoolPtr::NULL) || is_one_becoming_idle(memory)
}

/// Asks one that is not of this pool to leave, if none is leaving.
pub fn free_a_process_for(memory: &mut Memory, pool: PoolPtr) -> bool {
    let asked = |slot: &WorkerSlot| slot.state() == WorkerState::Exiting || slot.exit_requested != 0;
    if slots(memory).iter().any(asked) {
        reclaim(memory);
        if slots(memory).iter().any(asked) {
            return true;
        }
    }
    prestart::evict_for_another(memory) || evict_idle(memory, pool)
}

/// Reserves places for `wanted` workers of a pool, idle ones included, or none.
///
/// # Errors
/// [`Error::TooFewWorkers`] (53000)
pub fn reserve(memory: &mut Memory, database: u32, login: u32, wanted: usize) -> Result<Vec<SlotReservation>, Error> {
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

/// Returns whether [`reserve`] could have these places soon, when those workers have come to rest that are between two
/// jobs or on their way out. Asks one that is idle and of no use here to leave.
pub fn is_settling(memory: &mut Memory, database: u32, login: u32, wanted: usize) -> bool {
    let now = process::now();
    let pools: Vec<PoolPtr> = lists::pools(memory).collect();
    // Jobs that wait come first.
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
    let own = lists::pools(memory).find(|place| {
        let pool = memory.get(*place);
        pool.database == database && pool.login == login
    });
    evict_idle(memory, own.unwrap_or(PoolPtr::NULL))
}

/// Returns whether one more process may have nothing to do for a while.
pub fn has_room_to_prestart(memory: &mut Memory) -> bool {
    if get_or_create_root(memory).is_err() {
        return false;
    }
    let idle = prestart::count(memory) + idle_count(memory);
    idle < guc::spare_limit().min(MAX_PRESTARTED) && worker_count(memory) < guc::cap()
}
