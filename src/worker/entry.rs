//! The two ways in which a worker process begins, up to its loop.

use crate::channel::{Channel, Gate};
use crate::ffi::dsm::Handle;
use crate::ffi::{area, bgworker, exit_hooks, guc, latch, report, session};
use crate::ids::{DatabaseId, Epoch, RoleId};
use crate::protocol::Report;
use crate::registry::unregistered;
use crate::scheduler;
use crate::scheduler::{Arrival, NewWorker};
use crate::worker::pool_worker::{PoolWorker, IDLE_CHECK};
use crate::worker::session_setup::prepare_session;
use crate::worker::state::state;
use crate::worker::{attached_job, exit, result_collector, result_sender, signals};
use std::time::{Duration, Instant};

/// Interval at which a worker whose launch is not complete looks whether its launcher still lives.
const LAUNCHER_CHECK: Duration = Duration::from_secs(1);
/// Time that a process that was started ahead of its job waits for one.
const PRESTART_WAIT: Duration = Duration::from_millis(100);
/// Interval at which a worker looks whether the one before it is gone, at first.
const TURN_CHECK: Duration = Duration::from_millis(1);
/// Interval at which it does so when that takes longer than [`LONG_TURN`].
const LONG_TURN_CHECK: Duration = Duration::from_millis(50);
const LONG_TURN: Duration = Duration::from_millis(200);

/// Runs a process that was started for the queue.
pub fn pool_main() {
    let [epoch, index, serial] = bgworker::bgw_extra();
    if area::epoch() != Epoch::of_word(epoch) {
        return; // the server has crashed since, and started this place again
    }
    exit_hooks::skip_destructors();
    signals::install_session_handlers();
    let index = index as usize;
    if index == scheduler::PROBE {
        return area::write(|memory| scheduler::probe_started(memory, serial));
    }
    let Some((database, login)) = await_turn(index, serial) else { return };
    state().slot.set(Some(index));
    exit_hooks::before_exit(exit::leave_slot);
    exit_hooks::before_exit(exit::leave_channel);
    report::watch(result_collector::notice);
    session::connect(database, login);
    let mut worker = PoolWorker::new(index, database, login);
    if worker.prepare().is_continue() {
        state().is_logged_in.set(true);
        signals::install_worker_handlers();
        worker.work();
    }
    worker.leave();
}

/// Waits until the slot is this worker's. Returns the database and the login role of its pool; `None` if it is not
/// needed any more.
fn await_turn(index: usize, serial: u64) -> Option<(DatabaseId, RoleId)> {
    let began = Instant::now();
    loop {
        match area::write(|memory| scheduler::worker_started(memory, index, serial, session::pid())) {
            Arrival::LogIn { database, login } => return Some((database, login)),
            Arrival::NotYet if began.elapsed() < LONG_TURN => latch::wait(Some(TURN_CHECK)),
            Arrival::NotYet => latch::wait(Some(LONG_TURN_CHECK)),
            Arrival::Later => latch::wait(Some(IDLE_CHECK)),
            Arrival::Nothing => return None,
        }
    }
}

/// Runs a process that was started for the job of a session: runs that, then stays for others if it may.
pub fn attached_main(segment: Handle) {
    exit_hooks::skip_destructors();
    // Before signals are served: a worker that dies without the segment would leave it pinned.
    let Some(channel) = Channel::attach(segment) else {
        return; // the launch was given up: there is nobody to tell
    };
    let state = state();
    state.channel.set(Some(channel));
    // The last one is the first to be called: it tells the launcher why.
    exit_hooks::before_exit(exit::leave_slot);
    exit_hooks::before_exit(exit::leave_channel);
    channel.set_process(session::pid());
    if !await_job(channel) {
        return;
    }
    state.is_reported.set(false);
    state.is_unregistered.set(true);
    unregistered::add();
    state.login_version.set(channel.login_version());
    report::watch(result_sender::notice);
    state.sender.replace(Some(channel.sender()));
    signals::install_session_handlers();
    if let Err(error) = attached_job::read_request(channel) {
        return channel.leave_exit_error(&Report::from(error));
    }
    let (database, login) = attached_job::requested_login();
    session::connect(database, login);
    if !await_launch(channel) {
        state.is_reported.set(true);
        return;
    }
    // The launcher has noted it by now.
    state.worker.set(channel.worker());
    prepare_session(result_sender::message);
    attached_job::run(channel, true, Ok(()));
    join_pool(database, login);
    // While the launcher is awake, not when this process has ended.
    attached_job::detach_channel();
}

/// Waits until a process that was started ahead of its job has one. Returns `false` if there will be none.
fn await_job(channel: Channel) -> bool {
    if channel.has_job() {
        return true;
    }
    signals::install_prestart_handlers();
    let began = Instant::now();
    let mut is_stale = false;
    while !channel.has_job() {
        let left = PRESTART_WAIT.saturating_sub(began.elapsed());
        is_stale |= signals::take_reload_request();
        let is_over = left.is_zero() || is_stale || signals::is_ending() || channel.gate() == Gate::Abandoned;
        if is_over && channel.decline() {
            return false;
        }
        latch::wait(Some(left));
    }
    if is_stale || signals::take_reload_request() {
        guc::reload();
    }
    true
}

/// Waits until the launch is complete. Returns `false` if it was given up, and the job must not run.
fn await_launch(channel: Channel) -> bool {
    loop {
        // Before the gate: a launcher that opens it may be gone a moment later.
        let launcher_lives = session::launcher_lives();
        match channel.gate() {
            Gate::Open => return true,
            Gate::Abandoned => return false,
            Gate::Closed if !launcher_lives => return false,
            Gate::Closed => latch::wait(Some(LAUNCHER_CHECK)),
        }
    }
}

/// Takes a slot in the registry, if a process that has run a job of its own may stay and is wanted; also when nobody
/// wants the result any more. Then runs further jobs.
fn join_pool(database: DatabaseId, login: RoleId) {
    let Some(worker) = state().worker.get().filter(|_| attached_job::may_stay()) else { return };
    let channel = state().channel.get();
    let segment = channel.map_or(Handle::NONE, |channel| channel.handle()).to_number();
    let version = state().login_version.get();
    let new_worker = NewWorker { database, login, version, pid: session::pid(), worker, segment };
    let slot_id = area::write(|memory| {
        // Without memory for it, it goes as it would have.
        let slot_id = scheduler::add_worker(memory, &new_worker).ok().flatten()?;
        let is_read = channel.is_none_or(|channel| {
            channel.set_slot_id(slot_id);
            channel.is_read()
        });
        if is_read {
            scheduler::release_result(memory, slot_id, segment, true);
        }
        Some(slot_id)
    });
    let Some((index, _)) = slot_id else { return };
    exit::count_as_registered();
    state().slot.set(Some(index));
    state().is_logged_in.set(true);
    signals::install_worker_handlers();
    let mut worker = PoolWorker::new(index, database, login);
    if worker.become_free().is_continue() {
        worker.work();
    }
    worker.leave();
}
