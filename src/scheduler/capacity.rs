//! Room for workers: how many there may be, where they are wanted, and who gets a place.
//!
//! There are never more than the cap. A worker that is to make room for one of another role or database registers its
//! successor itself, which begins when it is gone; so no moment comes in which there is work and nobody to see it.

use crate::error::Error;
use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::{area, process};
use crate::guc;
use crate::registry::layout::{BatchPtr, PoolPtr, Root, WorkerSlot, WorkerState, MAX_PRESTARTED};
use crate::registry::root::{get_or_create_root, slot_mut, slots};
use crate::registry::{lists, pools, watchers};
use crate::scheduler::job_order::runnable_jobs;
use crate::scheduler::{fork_probe, job_order, prestart};
use std::collections::HashMap;

/// A worker that is to be registered.
#[derive(Debug, Clone, Copy)]
pub struct SlotReservation {
    pub slot: usize,
    pub serial: u64,
}

/// Frees the places of workers that are gone.
fn reclaim(memory: &mut Memory) {
    let gone: Vec<usize> = slots(memory)
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.state() == WorkerState::Exiting && slot.has_handle != 0)
        .filter(|(_, slot)| WorkerHandle::from_words(slot.handle).is_gone())
        .map(|(index, _)| index)
        .collect();
    for index in gone {
        if let Some(slot) = slot_mut(memory, index) {
            *slot = WorkerSlot { serial: slot.serial, ..bytemuck::Zeroable::zeroed() };
        }
    }
}

/// Returns whether a worker other than `index`, the one that asks, is on its way out, so that there will be a process
/// more in a moment.
pub fn is_one_exiting(memory: &mut Memory, index: usize) -> bool {
    reclaim(memory);
    slots(memory)
        .iter()
        .enumerate()
        .any(|(at, slot)| at != index && slot.state() == WorkerState::Exiting && slot.has_handle != 0)
}

/// Counts the workers of the extension that are in the whole server, or will be.
pub fn worker_count(memory: &mut Memory) -> usize {
    count_with_job(memory) + prestart::count(memory)
}

/// Counts the same without those that wait for their first job.
fn count_with_job(memory: &mut Memory) -> usize {
    reclaim(memory);
    slots(memory).iter().filter(|slot| slot.state() != WorkerState::Free && slot.has_successor == 0).count()
        + area::unregistered()
}

/// Returns whether a worker is on its way out, and nobody waits for its place.
pub fn is_exiting_unreplaced(slot: &WorkerSlot) -> bool {
    slot.state() == WorkerState::Exiting && slot.has_successor == 0
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

/// Returns whether a worker is there, or will be, and is not on its way out.
pub fn is_staying(slot: &WorkerSlot) -> bool {
    !matches!(slot.state(), WorkerState::Free | WorkerState::Exiting)
}

fn has_workers(memory: &Memory) -> bool {
    slots(memory).iter().any(is_staying)
}

/// Returns whether there is no other worker, now or soon.
pub fn is_alone(memory: &Memory, index: usize) -> bool {
    !slots(memory).iter().enumerate().any(|(at, slot)| at != index && is_staying(slot))
}

/// Returns whether a worker looks for work, or will at once.
fn looks_for_work(slot: &WorkerSlot) -> bool {
    slot.exit_requested == 0 && matches!(slot.state(), WorkerState::Starting | WorkerState::Ready | WorkerState::Idle)
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

pub fn free_slot(memory: &Memory) -> Option<usize> {
    slots(memory).iter().position(|slot| slot.state() == WorkerState::Free)
}

/// A number that no process in any place had before.
pub fn next_serial(memory: &mut Memory) -> u64 {
    let root = memory.root::<Root>();
    let record = memory.get_mut(root);
    record.last_serial += 1;
    record.last_serial
}

/// Returns whether one more worker may have nothing to do. The one that had nothing to do for longest makes room.
pub fn may_one_more_idle(memory: &mut Memory) -> bool {
    let limit = guc::idle_limit();
    idle_count(memory) < limit || limit > 0 && evict_idle(memory, PoolPtr::NULL)
}

/// Asks idle workers of a pool to leave whose login is not of this version: no session gives them a job any more.
pub fn evict_outdated(memory: &mut Memory, pool: PoolPtr, version: u64) {
    let is_outdated = |slot: &WorkerSlot| {
        slot.pool == pool
            && slot.state() == WorkerState::Idle
            && slot.exit_requested == 0
            && ![0, version].contains(&slot.version)
    };
    while let Some(index) = slots(memory).iter().position(is_outdated) {
        evict(memory, index);
    }
}

/// Counts the workers that have nothing to do.
pub fn idle_count(memory: &Memory) -> usize {
    slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle).count()
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

/// Reserves a place for a worker of a pool; `after` = it begins when that one is gone.
pub fn reserve_slot(memory: &mut Memory, pool: PoolPtr, after: Option<usize>) -> Option<SlotReservation> {
    let index = free_slot(memory)?;
    let serial = next_serial(memory);
    if let Some(slot) = slot_mut(memory, index) {
        *slot = WorkerSlot {
            serial,
            pool,
            state: WorkerState::Starting as u32,
            progress: -1,
            since: process::now(),
            waits_for_slot: after.map_or(0, |after| after as u32 + 1),
            ..bytemuck::Zeroable::zeroed()
        };
    }
    if let Some(before) = after.and_then(|after| slot_mut(memory, after)) {
        before.has_successor = 1;
    }
    let turn = job_order::next_turn(memory);
    let pool = memory.get_mut(pool);
    pool.workers += 1;
    pool.turn = turn;
    Some(SlotReservation { slot: index, serial })
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

/// Wakes an idle worker of a pool.
fn wake_idle(memory: &mut Memory, pool: PoolPtr) -> bool {
    let idle = slots(memory).iter().position(|slot| slot.pool == pool && slot.state() == WorkerState::Idle);
    let Some(slot) = idle.and_then(|index| slot_mut(memory, index)) else { return false };
    slot.state = WorkerState::Ready as u32;
    process::wake(slot.process);
    true
}

/// Asks one idle worker of another pool to make room. False = there is none.
fn evict_idle(memory: &mut Memory, pool: PoolPtr) -> bool {
    let idle = slots(memory)
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.state() == WorkerState::Idle && slot.pool != pool && slot.exit_requested == 0)
        .min_by_key(|(_, slot)| slot.since)
        .map(|(index, _)| index);
    idle.is_some_and(|index| evict(memory, index))
}

fn evict(memory: &mut Memory, index: usize) -> bool {
    let Some(slot) = slot_mut(memory, index) else { return false };
    slot.exit_requested = 1;
    slot.state = WorkerState::Ready as u32;
    process::wake(slot.process);
    true
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

/// Wakes workers of a database that have nothing to do: there are rows to write.
pub fn wake_log_writers(memory: &Memory, database: u32) {
    let idle = slots(memory).iter().find(|slot| {
        slot.state() == WorkerState::Idle && !slot.pool.is_null() && memory.get(slot.pool).database == database
    });
    if let Some(slot) = idle {
        process::wake(slot.process);
    }
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
    if guc::cap().saturating_sub(area::unregistered() + busy + queued) < wanted {
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

/// Tells with whom a worker shares the connections of its role and database.
pub enum PoolPeers {
    /// Other workers of its pool.
    Active,
    /// The worker is the only one, but others are still on their way out.
    Exiting,
    None,
}

/// Returns who is there beside this worker.
pub fn pool_peers(memory: &mut Memory, index: usize) -> PoolPeers {
    reclaim(memory);
    let pool = slots(memory).get(index).map_or(PoolPtr::NULL, |own| own.pool);
    if !pool.is_null() && memory.get(pool).workers > 1 {
        return PoolPeers::Active;
    }
    let goes = |slot: &WorkerSlot| {
        matches!(slot.state(), WorkerState::Exiting | WorkerState::Restarting)
            && slot.has_handle != 0
            && !WorkerHandle::from_words(slot.handle).is_gone()
    };
    if !pool.is_null() && slots(memory).iter().any(goes) {
        PoolPeers::Exiting
    } else {
        PoolPeers::None
    }
}

/// Tells who sees to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Workers that will look at it, or nothing of it is queued.
    Covered,
    /// Workers that are still to be started, or that have nothing to do with it and may find no process for another.
    Uncertain,
    Uncovered,
}

/// Returns who sees to this batch.
pub fn coverage(memory: &mut Memory, place: BatchPtr, uuid: &[u8; 16]) -> Coverage {
    reclaim(memory);
    // By now it may have been done, and forgotten.
    if !lists::batches_of_uuid(memory, uuid).any(|at| at == place && memory.get(place).queued > 0) {
        return Coverage::Covered;
    }
    let awaits_start = fork_probe::awaits_start(memory, memory.get(place).pool, process::now());
    let will_look = |slot: &WorkerSlot| match slot.state() {
        WorkerState::RunningQueued | WorkerState::Starting => true,
        WorkerState::RunningAttached if slot.result_consumed == 0 => true,
        WorkerState::Ready if !slot.batch.is_null() => true,
        _ => !slot.pool.is_null() && memory.get(slot.pool).has_queue(),
    };
    let there = || slots(memory).iter().filter(|slot| slot.has_handle != 0 && is_staying(slot));
    if !awaits_start && there().any(will_look) {
        Coverage::Covered
    } else if there().next().is_some() {
        Coverage::Uncertain
    } else {
        Coverage::Uncovered
    }
}

/// Returns whether every job that runs waits for others, and there is no room for a worker that would run those. Jobs
/// that sessions have launched themselves take room, too.
pub fn is_stuck(memory: &mut Memory) -> bool {
    let waiting = watchers::waiting_workers(memory);
    if waiting < guc::cap() {
        return false;
    }
    let runs = |slot: &&WorkerSlot| matches!(slot.state(), WorkerState::RunningQueued | WorkerState::RunningAttached);
    let running = slots(memory).iter().filter(runs).count() + area::unregistered();
    running <= waiting && job_order::has_work(memory)
}

/// Returns whether one more process may have nothing to do for a while.
pub fn has_room_to_prestart(memory: &mut Memory) -> bool {
    if get_or_create_root(memory).is_err() {
        return false;
    }
    let idle = prestart::count(memory) + idle_count(memory);
    idle < guc::spare_limit().min(MAX_PRESTARTED) && worker_count(memory) < guc::cap()
}
