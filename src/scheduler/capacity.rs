//! Room for workers: how many there may be, where they are wanted, and who gets a place.
//!
//! There are never more than the cap. A worker that is to make room for one of another role or database registers its
//! successor itself, which begins when it is gone; so no moment comes in which there is work and nobody to see it.

use crate::error::Error;
use crate::ffi::area::Memory;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::{area, process};
use crate::guc;
use crate::registry::layout::{BatchRecord, Place, Pool, Root, WorkerSlot, WorkerState, MAX_PRESTARTED};
use crate::registry::{batches, lists, root, slot_mut, slots, watchers};
use crate::scheduler::job_order::demand;
use crate::scheduler::{fork_probe, job_order, prestart};
use std::collections::HashMap;

/// A worker that is to be registered.
#[derive(Debug, Clone, Copy)]
pub struct Start {
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
pub fn is_one_going(memory: &mut Memory, index: usize) -> bool {
    reclaim(memory);
    slots(memory)
        .iter()
        .enumerate()
        .any(|(at, slot)| at != index && slot.state() == WorkerState::Exiting && slot.has_handle != 0)
}

/// Counts the workers of the extension that are in the whole server, or will be.
pub fn live(memory: &mut Memory) -> usize {
    with_a_job(memory) + prestart::count(memory)
}

/// Counts the same without those that wait for their first job.
fn with_a_job(memory: &mut Memory) -> usize {
    reclaim(memory);
    slots(memory).iter().filter(|slot| slot.state() != WorkerState::Free && slot.has_successor == 0).count()
        + area::outside()
}

/// Returns whether a worker is on its way out, and nobody waits for its place.
pub fn is_ceding(slot: &WorkerSlot) -> bool {
    slot.state() == WorkerState::Exiting && slot.has_successor == 0
}

/// Counts the workers that neither are on their way out nor go as soon as somebody wants their place.
pub fn staying(memory: &mut Memory) -> usize {
    let all = with_a_job(memory);
    all - slots(memory).iter().filter(|slot| is_ceding(slot)).count()
}

/// Tells where a worker stands with regard to the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Stays,
    /// There are too many: it goes.
    Goes,
    /// There are too many, but no other worker would see to what is queued when there is room again.
    Pauses,
}

/// Returns where a worker that looks for work stands.
pub fn standing(memory: &mut Memory, index: usize) -> Standing {
    if staying(memory) <= guc::cap() {
        return Standing::Stays;
    }
    match is_alone(memory, index) && job_order::has_work(memory) {
        true => Standing::Pauses,
        false => Standing::Goes,
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
fn has_time(slot: &WorkerSlot) -> bool {
    slot.exit_requested == 0 && matches!(slot.state(), WorkerState::Starting | WorkerState::Ready | WorkerState::Idle)
}

/// Returns whether nobody else would see to what is queued for later. A worker that is busy looks when it is done.
pub fn is_needed(memory: &Memory, index: usize) -> bool {
    let others = slots(memory).iter().enumerate().filter(|(at, _)| *at != index);
    !others.into_iter().any(|(_, slot)| has_time(slot)) && job_order::has_work(memory)
}

/// Counts the workers that a call could have at once for this pool.
fn free_places(memory: &mut Memory, database: u32, login: u32) -> usize {
    let free = guc::cap().saturating_sub(live(memory));
    let idle = slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle && slot.pool != 0).filter(|slot| {
        let pool = memory.get::<Pool>(slot.pool);
        pool.database == database && pool.login == login
    });
    free + idle.count()
}

/// Counts the workers of each role, and those of each pool that will look for work soon. Goes through the workers, which
/// are few: there may be very many pools.
#[derive(Default)]
struct Shares {
    of_role: HashMap<u32, u32>,
    coming: HashMap<Place, u32>,
}

impl Shares {
    fn count(memory: &Memory) -> Self {
        let mut shares = Shares::default();
        for slot in slots(memory).iter().filter(|slot| slot.pool != 0) {
            *shares.of_role.entry(memory.get::<Pool>(slot.pool).login).or_default() += 1;
            if slot.batch == 0 && matches!(slot.state(), WorkerState::Starting | WorkerState::Ready) {
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
pub fn hungriest(memory: &mut Memory, now: i64, but: Place) -> Option<Place> {
    let pools: Vec<Place> = lists::pools(memory).filter(|place| *place != but).collect();
    let shares = Shares::count(memory);
    let mut best = None;
    for place in pools {
        let pool = *memory.get::<Pool>(place);
        if pool.login == 0 || !pool.has_queue() || pool.limit != 0 && pool.workers >= pool.limit {
            continue;
        }
        let rank = (shares.of_role(pool.login), pool.workers, pool.turn);
        if best.is_some_and(|(least, _)| rank >= least) {
            continue;
        }
        let coming = shares.coming.get(&place).copied().unwrap_or(0);
        if demand(memory, place, now, coming + 1) > coming {
            best = Some((rank, place));
        }
    }
    best.map(|(_, place)| place)
}

/// Returns whether the place of a worker of this pool, which has nothing to do, is wanted for another one.
pub fn is_wanted_elsewhere(memory: &mut Memory, pool: Place, now: i64) -> bool {
    live(memory) >= guc::cap() && (hungriest(memory, now, pool).is_some() || unattended_database(memory, now).is_some())
}

/// Returns whether the worker in this slot is to make room for another role: only when there is no other room.
pub fn gives_way(memory: &mut Memory, index: usize, now: i64, quantum: i64) -> bool {
    let Some(own) = slots(memory).get(index).copied() else { return false };
    if live(memory) < guc::cap() {
        return false;
    }
    let Some(other) = hungriest(memory, now, own.pool) else { return false };
    let (mine, theirs) = (*memory.get::<Pool>(own.pool), *memory.get::<Pool>(other));
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
    let root = memory.root();
    let record = memory.get_mut::<Root>(root);
    record.last_serial += 1;
    record.last_serial
}

/// Returns whether one more worker may have nothing to do. The one that had nothing to do for longest makes room.
pub fn has_idle_room(memory: &mut Memory) -> bool {
    let limit = guc::idle_limit();
    idle_count(memory) < limit || limit > 0 && ask_idle_to_leave(memory, 0)
}

/// Asks idle workers of a pool to leave whose login is not of this version: no session gives them a job any more.
pub fn ask_outdated_to_leave(memory: &mut Memory, pool: Place, version: u64) {
    let is_outdated = |slot: &WorkerSlot| {
        slot.pool == pool
            && slot.state() == WorkerState::Idle
            && slot.exit_requested == 0
            && ![0, version].contains(&slot.version)
    };
    while let Some(index) = slots(memory).iter().position(is_outdated) {
        send_away(memory, index);
    }
}

/// Counts the workers that have nothing to do.
pub fn idle_count(memory: &Memory) -> usize {
    slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle).count()
}

/// Room for one more worker: beside the others, or in the place of one that is on its way out.
enum Room {
    Beside,
    After(usize),
}

fn room(memory: &mut Memory) -> Option<Room> {
    let cap = guc::cap();
    if live(memory) < cap {
        return Some(Room::Beside);
    }
    if staying(memory) < cap {
        return slots(memory).iter().position(is_ceding).map(Room::After);
    }
    None
}

/// Reserves a place for a worker of a pool, if there is room for it.
fn prepare_in_room(memory: &mut Memory, pool: Place) -> Option<Start> {
    match room(memory)? {
        Room::Beside => prepare(memory, pool, None),
        Room::After(before) => prepare(memory, pool, Some(before)),
    }
}

/// Reserves a place for a worker of a pool; `after` = it begins when that one is gone.
pub fn prepare(memory: &mut Memory, pool: Place, after: Option<usize>) -> Option<Start> {
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
    let pool = memory.get_mut::<Pool>(pool);
    pool.workers += 1;
    pool.turn = turn;
    Some(Start { slot: index, serial })
}

/// Decides which workers are to be registered now, and wakes idle ones that have something to do.
pub fn plan(memory: &mut Memory) -> Vec<Start> {
    let now = process::now();
    let mut starts = Vec::new();
    if memory.root() == 0 {
        return starts;
    }
    job_order::free_held_up(memory, now);
    while let Some(pool) = hungriest(memory, now, 0) {
        if wake_idle(memory, pool) {
            continue;
        }
        match prepare_in_room(memory, pool) {
            Some(start) => starts.push(start),
            None if prestart::send_away(memory) => {}
            None => {
                ask_idle_to_leave(memory, pool);
                // Others fill the cap: one worker waits for room, so that nobody else has to.
                if !has_workers(memory) {
                    starts.extend(prepare(memory, pool, None));
                }
                break;
            }
        }
    }
    if room(memory).is_some() {
        starts.extend(unattended(memory, now).and_then(|pool| prepare_in_room(memory, pool)));
    }
    starts
}

/// Time that a job runs before its worker is not expected to look for something else soon, in microseconds.
const LONG: i64 = 1_000_000;

/// A database with final rows to write and no worker that will see to them.
fn unattended_database(memory: &Memory, now: i64) -> Option<u32> {
    let looks_soon = |slot: &WorkerSlot| {
        has_time(slot) || job_order::busy_since(memory, slot).is_some_and(|started| started + LONG > now)
    };
    let is_attended = |database: u32| {
        let here = |slot: &&WorkerSlot| slot.pool != 0 && memory.get::<Pool>(slot.pool).database == database;
        slots(memory).iter().filter(here).any(looks_soon)
    };
    let unlogged = job_order::unlogged(memory).map(|place| memory.get::<BatchRecord>(place));
    let due = unlogged.filter(|batch| batch.log_writer == 0 && batch.retry_log_at <= now);
    due.map(|batch| batch.database).find(|database| !is_attended(*database))
}

/// The pool of a worker that writes final rows in such a database.
fn unattended(memory: &mut Memory, now: i64) -> Option<Place> {
    let database = unattended_database(memory, now)?;
    batches::pool(memory, database, 0).ok()
}

/// The pool of a worker that waits until there is something to do.
fn in_time(memory: &mut Memory) -> Option<Place> {
    let with_queue = lists::pools(memory).find(|place| {
        let pool = memory.get::<Pool>(*place);
        pool.login != 0 && pool.has_queue()
    });
    if with_queue.is_some() {
        return with_queue;
    }
    let unlogged = job_order::unlogged(memory).map(|place| memory.get::<BatchRecord>(place));
    let database = unlogged.min_by_key(|batch| batch.retry_log_at)?.database;
    batches::pool(memory, database, 0).ok()
}

/// Chooses the pool of a worker that comes in this place, or in the place after it: another than `but` if one is wanted.
pub fn next_pool(memory: &mut Memory, index: usize, but: Place) -> Option<Place> {
    let now = process::now();
    let wanted = hungriest(memory, now, but).or_else(|| hungriest(memory, now, 0)).or_else(|| unattended(memory, now));
    match wanted {
        None if is_alone(memory, index) => in_time(memory),
        wanted => wanted,
    }
}

/// Wakes an idle worker of a pool.
fn wake_idle(memory: &mut Memory, pool: Place) -> bool {
    let idle = slots(memory).iter().position(|slot| slot.pool == pool && slot.state() == WorkerState::Idle);
    let Some(slot) = idle.and_then(|index| slot_mut(memory, index)) else { return false };
    slot.state = WorkerState::Ready as u32;
    process::wake(slot.process);
    true
}

/// Asks one idle worker of another pool to make room. False = there is none.
fn ask_idle_to_leave(memory: &mut Memory, pool: Place) -> bool {
    let idle = slots(memory)
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.state() == WorkerState::Idle && slot.pool != pool && slot.exit_requested == 0)
        .min_by_key(|(_, slot)| slot.since)
        .map(|(index, _)| index);
    idle.is_some_and(|index| send_away(memory, index))
}

fn send_away(memory: &mut Memory, index: usize) -> bool {
    let Some(slot) = slot_mut(memory, index) else { return false };
    slot.exit_requested = 1;
    slot.state = WorkerState::Ready as u32;
    process::wake(slot.process);
    true
}

/// Returns whether a worker is between its job and rest, with nothing queued that it could take up.
fn is_one_coming_to_rest(memory: &Memory) -> bool {
    let will_rest = |slot: &WorkerSlot| match slot.state() {
        WorkerState::Starting | WorkerState::Ready => true,
        WorkerState::RunningAttached => slot.result_consumed != 0,
        _ => false,
    };
    slots(memory).iter().any(will_rest) && !job_order::is_queued(memory)
}

/// Asks an idle worker to leave: a session wants a process for itself. False = there is none, and none will be soon.
pub fn make_room(memory: &mut Memory) -> bool {
    make_room_for(memory, 0) || is_one_coming_to_rest(memory)
}

/// Asks one that is not of this pool to leave, if none is leaving.
pub fn make_room_for(memory: &mut Memory, pool: Place) -> bool {
    let asked = |slot: &WorkerSlot| slot.state() == WorkerState::Exiting || slot.exit_requested != 0;
    if slots(memory).iter().any(asked) {
        reclaim(memory);
        if slots(memory).iter().any(asked) {
            return true;
        }
    }
    prestart::make_room_ahead(memory) || ask_idle_to_leave(memory, pool)
}

/// Wakes workers of a database that have nothing to do: there are rows to write.
pub fn wake_writers(memory: &Memory, database: u32) {
    let idle = slots(memory).iter().find(|slot| {
        slot.state() == WorkerState::Idle && slot.pool != 0 && memory.get::<Pool>(slot.pool).database == database
    });
    if let Some(slot) = idle {
        process::wake(slot.process);
    }
}

/// Reserves places for `wanted` workers of a pool, idle ones included, or none.
///
/// # Errors
/// [`Error::TooFewWorkers`] (53000)
pub fn reserve(memory: &mut Memory, database: u32, login: u32, wanted: usize) -> Result<Vec<Start>, Error> {
    let mut free = free_places(memory, database, login);
    while free < wanted && prestart::send_away(memory) {
        free += 1;
    }
    if free < wanted {
        return Err(Error::TooFewWorkers { wanted, free });
    }
    let pool = batches::pool(memory, database, login)?;
    let idle = slots(memory).iter().filter(|slot| slot.state() == WorkerState::Idle && slot.pool == pool).count();
    Ok((idle..wanted).filter_map(|_| prepare(memory, pool, None)).collect())
}

/// Returns whether [`reserve`] could have these places soon, when those workers have come to rest that are between two
/// jobs or on their way out. Asks one that is idle and of no use here to leave.
pub fn is_settling(memory: &mut Memory, database: u32, login: u32, wanted: usize) -> bool {
    let now = process::now();
    let pools: Vec<Place> = lists::pools(memory).collect();
    // Jobs that wait come first.
    let queued: usize = pools.into_iter().map(|pool| demand(memory, pool, now, wanted as u32) as usize).sum();
    let busy = slots(memory).iter().filter(|slot| slot.state() == WorkerState::RunningQueued).count();
    if guc::cap().saturating_sub(area::outside() + busy + queued) < wanted {
        return false;
    }
    let is_moving =
        |slot: &WorkerSlot| matches!(slot.state(), WorkerState::Starting | WorkerState::Ready | WorkerState::Exiting);
    if slots(memory).iter().any(is_moving) {
        return true;
    }
    let own = lists::pools(memory).find(|place| {
        let pool = memory.get::<Pool>(*place);
        pool.database == database && pool.login == login
    });
    ask_idle_to_leave(memory, own.unwrap_or(0))
}

/// Tells with whom a worker shares the connections of its role and database.
pub enum Company {
    /// Other workers of its pool.
    Others,
    /// The worker is the only one, but others are still on their way out.
    Leaving,
    Nobody,
}

/// Returns who is there beside this worker.
pub fn company(memory: &mut Memory, index: usize) -> Company {
    reclaim(memory);
    let pool = slots(memory).get(index).map_or(0, |own| own.pool);
    if pool != 0 && memory.get::<Pool>(pool).workers > 1 {
        return Company::Others;
    }
    let goes = |slot: &WorkerSlot| {
        matches!(slot.state(), WorkerState::Exiting | WorkerState::Restarting)
            && slot.has_handle != 0
            && !WorkerHandle::from_words(slot.handle).is_gone()
    };
    if pool != 0 && slots(memory).iter().any(goes) {
        Company::Leaving
    } else {
        Company::Nobody
    }
}

/// Tells who sees to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attendance {
    /// Workers that will look at it, or nothing of it is queued.
    Sure,
    /// Workers that are still to be started, or that have nothing to do with it and may find no process for another.
    Unsure,
    Nobody,
}

/// Returns who sees to this batch.
pub fn attendance(memory: &mut Memory, place: Place, uuid: &[u8; 16]) -> Attendance {
    reclaim(memory);
    // By now it may have been done, and forgotten.
    if !lists::batches_of_uuid(memory, uuid).any(|at| at == place && memory.get::<BatchRecord>(place).queued > 0) {
        return Attendance::Sure;
    }
    let awaits_start = fork_probe::awaits_start(memory, memory.get::<BatchRecord>(place).pool, process::now());
    let will_look = |slot: &WorkerSlot| match slot.state() {
        WorkerState::RunningQueued | WorkerState::Starting => true,
        WorkerState::RunningAttached if slot.result_consumed == 0 => true,
        WorkerState::Ready if slot.batch != 0 => true,
        _ => slot.pool != 0 && memory.get::<Pool>(slot.pool).has_queue(),
    };
    let there = || slots(memory).iter().filter(|slot| slot.has_handle != 0 && is_staying(slot));
    if !awaits_start && there().any(will_look) {
        Attendance::Sure
    } else if there().next().is_some() {
        Attendance::Unsure
    } else {
        Attendance::Nobody
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
    let running = slots(memory).iter().filter(runs).count() + area::outside();
    running <= waiting && job_order::has_work(memory)
}

/// Returns whether one more process may have nothing to do for a while.
pub fn has_room_ahead(memory: &mut Memory) -> bool {
    if root(memory).is_err() {
        return false;
    }
    let idle = prestart::count(memory) + idle_count(memory);
    idle < guc::spare_limit().min(MAX_PRESTARTED) && live(memory) < guc::cap()
}
