//! A worker that stays: one job after the other, for one role in one database.

mod exit;
mod memory_watchdog;
mod queued_job;

use crate::channel::attached_jobs;
use crate::ffi::dsm::Handle;
use crate::ffi::interrupt::CancelHeld;
use crate::ffi::latch::SpinThenWait;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::{
    area, bgworker, discard_all, exit_hooks, guc as settings, interrupt, latch, lock, login, process, remote_dest,
    report, session, statement,
};
use crate::protocol::{Report, Request};
use crate::scheduler::{
    start, Arrival, ClaimingWorker, NewWorker, PoolPeers, SlotReservation, StartStatus, Succession, Task,
};
pub use crate::worker::main_loop::exit::on_exit;
use crate::worker::main_loop::exit::refuse_assigned_job;
use crate::worker::main_loop::memory_watchdog::{prune_every, MemoryWatchdog};
use crate::worker::session_setup::{check_connection_limits, has_been_client, prepare_session, reset_session};
use crate::worker::{attached_job, result_collector};
use crate::{guc, log, scheduler};

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Interval at which an idle worker looks whether its database is wanted, and whether there is something to do that
/// nobody tells.
const IDLE_CHECK: Duration = Duration::from_millis(500);
/// Interval at which one that has been idle for [`LONG_IDLE`] does so. DROP DATABASE waits five seconds for others to
/// leave (procarray.c, `CountOtherDBBackends`).
const LONG_IDLE_CHECK: Duration = Duration::from_secs(2);
const LONG_IDLE: Duration = Duration::from_secs(2);
/// Limits, in microseconds, how long a worker has nothing to do whose last result is unread: nobody but its session
/// could give it a job, and who polls until its process is gone waits for that.
const UNREAD_TIMEOUT: i64 = 500_000;
/// Interval at which a worker that goes tries again to have another one started.
const SUCCESSOR_CHECK: Duration = Duration::from_millis(50);
/// Time that a worker that goes waits until the server has started another one, or has said that it cannot.
const SUCCESSOR_PATIENCE: Duration = Duration::from_millis(300);
/// Interval at which a worker looks whether the one before it is gone, or the one after it there, at first.
const TURN_CHECK: Duration = Duration::from_millis(1);
/// Interval at which it does so when that takes longer than [`LONG_TURN`].
const LONG_TURN_CHECK: Duration = Duration::from_millis(50);
const LONG_TURN: Duration = Duration::from_millis(200);
/// Time that the last worker of a role waits for those to go that are too many.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);
/// Time that a worker that makes room for another role waits for a process at a time, if it has nothing to do itself.
const PROCESS_CHECK: Duration = Duration::from_millis(20);
/// Time in which it tries to get one. Then it goes without: its own process is free when it has gone.
const PROCESS_PATIENCE: Duration = Duration::from_millis(500);

thread_local! {
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
    static LOGGED_IN: Cell<bool> = const { Cell::new(false) };
    /// This was the only worker of its key when connections were counted.
    static WAS_COUNTED_ALONE: Cell<bool> = const { Cell::new(false) };
    static EXIT_REPORT: ProcessCell<Option<Report>> = const { process_cell(None) };
}

/// The life of a worker.
pub fn main() {
    let [epoch, index, serial] = bgworker::bgw_extra();
    if area::epoch() as u64 != epoch {
        return; // the server has crashed since, and started this place again
    }
    exit_hooks::skip_destructors();
    interrupt::install_session_handlers();
    let index = index as usize;
    if index == scheduler::PROBE {
        return area::write(|memory| scheduler::probe_started(memory, serial));
    }
    let began = Instant::now();
    let (database, login) = loop {
        match area::write(|memory| scheduler::worker_started(memory, index, serial, session::pid())) {
            Arrival::LogIn { database, login } => break (database, login),
            Arrival::NotYet if began.elapsed() < LONG_TURN => latch::wait(Some(TURN_CHECK)),
            Arrival::NotYet => latch::wait(Some(LONG_TURN_CHECK)),
            Arrival::Later => latch::wait(Some(IDLE_CHECK)),
            Arrival::Nothing => return,
        }
    };
    SLOT.set(Some(index));
    exit_hooks::before_exit(on_exit);
    exit_hooks::before_exit(attached_job::on_exit);
    report::watch(result_collector::notice);
    session::connect(database, login);
    let mut worker = PoolWorker::new(index, database, login);
    if worker.prepare() {
        LOGGED_IN.set(true);
        interrupt::install_worker_handlers();
        worker.work();
    }
    worker.leave();
}

/// A process that has run a job of its own stays for others, if it is wanted; also when nobody wants the result any
/// more.
pub fn join_pool(database: u32, login: u32) {
    let Some(worker) = attached_job::worker().filter(|_| may_stay()) else { return };
    let channel = attached_job::channel();
    let segment = channel.map_or(Handle::NONE, |channel| channel.handle()).to_number();
    let version = attached_job::login_version();
    let newcomer = NewWorker { database, login, version, pid: session::pid(), worker, segment };
    let slot_id = area::write(|memory| {
        // Without memory for it, it goes as it would have.
        let slot_id = scheduler::add_worker(memory, &newcomer).ok().flatten()?;
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
    attached_job::count_as_registered();
    SLOT.set(Some(index));
    LOGGED_IN.set(true);
    interrupt::install_worker_handlers();
    let mut worker = PoolWorker::new(index, database, login);
    if worker.become_free() {
        worker.work();
    }
    worker.leave();
}

/// Makes sure that no session gives this worker another job, if the last one has left what cannot be reset. Before the
/// session knows that it is done.
pub fn refuse_jobs_if_spent() {
    if let Some(index) = SLOT.get().filter(|_| discard_all::is_spent()) {
        area::write(|memory| scheduler::request_exit(memory, index));
    }
}

/// Returns whether a process that runs a job of its own may stay. No session would give another to one whose login it
/// cannot tell from what a new one would be: each is to log in anew.
pub fn may_stay() -> bool {
    guc::idle_limit() > 0 && attached_job::login_version() != 0 && !interrupt::is_dying() && !discard_all::is_spent()
}

/// Registers a worker in the place of this one, which goes. False = the server starts this one again.
fn register_successor(index: usize, start: SlotReservation) -> bool {
    let is_succeeded = start::register_after(index, start);
    if !is_succeeded {
        area::write(|memory| scheduler::keep_for_restart(memory, index));
    }
    is_succeeded
}

/// Waits until the server has started the worker. False = it has not in time, or no job waits for that any more.
fn await_successor(start: SlotReservation) -> bool {
    let began = Instant::now();
    loop {
        match area::write(|memory| scheduler::start_status(memory, start)) {
            StartStatus::Started => return true,
            StartStatus::PendingNeeded if began.elapsed() < SUCCESSOR_PATIENCE => {}
            StartStatus::PendingNeeded | StartStatus::PendingUnneeded => return false,
        }
        start::start_workers();
        let _held = CancelHeld::new();
        latch::wait(Some(TURN_CHECK));
    }
}

struct PoolWorker {
    index: usize,
    database: u32,
    login: u32,
    /// State of what the login depended on; none = this worker has not looked at the queue yet.
    fingerprint: Option<(u64, Vec<u8>)>,
    /// Number of the batch, and what its launcher has set: the request.
    request: Option<(u64, Request)>,
    /// Nothing has run since the session was reset.
    is_clean: bool,
    /// The last job was short.
    is_short: bool,
    /// The role or the database may have only so many connections.
    is_limited: bool,
    /// This worker is counted wherever connections are counted.
    is_counted: bool,
    /// Time at which old rows were deleted; none = not yet.
    pruned: Option<Instant>,
    /// Time of the next try to write what a server has left behind, and count of failed ones; none = all is written.
    next_import: Option<(i64, u16)>,
    watchdog: MemoryWatchdog,
    /// Time of the last look whether it is still what a new worker would be.
    looked: Instant,
    /// Patience of the wait for a session's next job.
    spin: SpinThenWait,
    /// There was no process for a worker in its place: it runs a job of its own before it tries again.
    keeps_turn: bool,
    /// Time since which there has been none.
    unsucceeded_since: Option<Instant>,
}

impl PoolWorker {
    fn new(index: usize, database: u32, login: u32) -> Self {
        PoolWorker {
            index,
            database,
            login,
            fingerprint: None,
            request: None,
            is_clean: true,
            is_short: false,
            is_limited: true,
            is_counted: false,
            pruned: None,
            next_import: None,
            watchdog: MemoryWatchdog::default(),
            looked: Instant::now(),
            spin: SpinThenWait::new(),
            keeps_turn: false,
            unsucceeded_since: None,
        }
    }

    /// Makes the fresh process a session. False = the extension is not in this database any more, or the role has too
    /// many connections.
    fn prepare(&mut self) -> bool {
        prepare_session(result_collector::message);
        let found = log::in_own_transaction(false, || {
            let is_there = log::locate();
            if is_there {
                self.fingerprint = Some(log::fingerprint(self.database, self.login));
            }
            if is_there && self.login != 0 {
                let version = login::version(self.database, self.login);
                area::write(|memory| scheduler::accept_attached_jobs(memory, self.index, version));
            }
            is_there
        });
        match found {
            Ok(true) => {}
            Ok(false) => {
                self.forget_database();
                return false;
            }
            Err(captured) => {
                EXIT_REPORT.set(Some(captured.report));
                return self.refuse();
            }
        }
        self.look_at_limits();
        if !self.is_within_limits() {
            return self.refuse();
        }
        remote_dest::speak_database_encoding();
        self.import_orphans();
        true
    }

    /// A worker that came with a job of its own looks at the queue for the first time. False = it must not: it is not
    /// what a new one would be.
    fn prepare_for_queue(&mut self) -> bool {
        if self.fingerprint.is_some() {
            return true;
        }
        if !self.is_clean && !self.reset() {
            return false;
        }
        let found = log::in_own_transaction(false, || {
            let is_current = login::version(self.database, self.login) == attached_job::login_version();
            (is_current && log::locate()).then(|| log::fingerprint(self.database, self.login))
        });
        self.fingerprint = found.ok().flatten();
        if self.fingerprint.is_some() {
            self.look_at_limits();
            self.import_orphans();
        }
        self.fingerprint.is_some()
    }

    fn look_at_limits(&mut self) {
        self.is_limited =
            log::in_own_transaction(false, || login::look(self.database, self.login).is_limited).unwrap_or(true);
    }

    /// Returns whether the role may have this connection.
    fn is_within_limits(&mut self) -> bool {
        self.is_counted = self.is_counted || !self.is_limited || self.may_be_counted();
        self.is_counted
    }

    fn may_be_counted(&self) -> bool {
        let request = Request { database: self.database, login: self.login, ..Request::default() };
        let mut alone_since = None;
        let report = loop {
            let company = area::write(|memory| scheduler::pool_peers(memory, self.index));
            WAS_COUNTED_ALONE.set(!matches!(company, PoolPeers::Active));
            match log::in_own_transaction(false, || check_connection_limits(&request)) {
                Ok(Ok(())) => return true,
                // Those that came with it, and were refused as well, count until they are gone.
                Ok(Err(_))
                    if matches!(company, PoolPeers::Exiting)
                        && alone_since.get_or_insert_with(Instant::now).elapsed() < REFUSAL_PATIENCE =>
                {
                    latch::wait(Some(TURN_CHECK));
                }
                Ok(Err(error)) => break Report::from(error),
                Err(captured) => break captured.report,
            }
        };
        EXIT_REPORT.set(Some(report));
        false
    }

    /// Ends as a refused login does.
    fn refuse(&mut self) -> bool {
        LOGGED_IN.set(false);
        on_exit();
        false
    }

    fn work(&mut self) {
        let mut idle_since = None;
        let (mut is_stale, mut is_paused) = (false, false);
        loop {
            {
                // There is nothing to cancel.
                let _held = CancelHeld::new();
                interrupt::check();
            }
            if interrupt::is_ending() {
                return;
            }
            if interrupt::take_reload_request() {
                settings::reload();
                is_stale = has_been_client();
            }
            let now = process::now();
            let seeker = ClaimingWorker { index: self.index, many: self.is_short, keeps_turn: self.keeps_turn };
            let task = area::write(|memory| scheduler::claim(memory, seeker, now));
            self.keeps_turn = false;
            if !matches!(task, Task::Wait(_)) {
                idle_since = None;
            }
            let was_paused = std::mem::replace(&mut is_paused, matches!(task, Task::Pause));
            let is_of_queue = matches!(task, Task::Run(_) | Task::Record(_) | Task::Log(_));
            if is_of_queue && (is_stale || !self.prepare_for_queue()) {
                return area::write(|memory| scheduler::undo_task(memory, self.index, &task));
            }
            match task {
                Task::Serve(segment) => {
                    attached_job::run_assigned(Handle::from_number(segment));
                    self.is_clean = false;
                    self.is_counted = false;
                    if !self.become_free() {
                        return;
                    }
                }
                Task::Wait(_) if is_stale && area::write(|memory| scheduler::stop_accepting(memory, self.index)) => {
                    return
                }
                Task::Run(ref claim) if self.watchdog.limit_exceeded(claim.indexes.len()) => {
                    return area::write(|memory| scheduler::undo_task(memory, self.index, &task));
                }
                Task::Run(claim) => {
                    start::start_workers();
                    if !self.run(&claim) {
                        return;
                    }
                }
                Task::Record(place) => self.record(place),
                Task::Log(place) => self.write_log(place),
                Task::Wait(due) => {
                    let since = *idle_since.get_or_insert(now);
                    if !self.wait(now, since, due) {
                        return;
                    }
                }
                Task::Pause => {
                    if !self.is_clean && !self.reset() {
                        return;
                    }
                    if !was_paused {
                        self.become_idle();
                    }
                    {
                        let _held = CancelHeld::new();
                        // A cap of none changes with the configuration, of which the server tells its processes. Of
                        // jobs of the classic interface that fill the cap nobody tells that they have ended.
                        latch::wait(Some(if guc::cap() == 0 { LONG_IDLE_CHECK } else { IDLE_CHECK }));
                    }
                    interrupt::clear_cancel();
                    if lock::is_database_wanted() && area::write(|memory| scheduler::stop_accepting(memory, self.index))
                    {
                        return;
                    }
                }
                Task::HandOver if !self.is_taken_over() => {}
                Task::Leave | Task::HandOver => return,
            }
            if self.next_import.is_some_and(|(at, _)| at <= process::now()) && (self.is_clean || self.reset()) {
                self.import_orphans();
            }
            // Also of one that does not stay for long.
            if self.pruned.is_none_or(|at| at.elapsed() > prune_every()) && self.fingerprint.is_some() {
                // A log that cannot be written now is pruned another time.
                if log::in_own_transaction(false, log::prune_old).unwrap_or(true) {
                    self.pruned = Some(Instant::now());
                }
            }
        }
    }

    /// The job that a session had given is done. False = the worker is to go.
    fn become_free(&mut self) -> bool {
        interrupt::end_job();
        attached_job::detach_if_large();
        let is_reset = {
            let _held = CancelHeld::new();
            self.is_clean = false;
            self.reset() && !discard_all::is_spent()
        };
        if is_reset {
            area::write(|memory| scheduler::attached_job_done(memory, self.index));
        }
        is_reset
    }

    /// Shows that this worker has nothing to do, which counts as no connection.
    fn become_idle(&mut self) {
        statement::announce_idle();
        self.is_counted = false;
    }

    /// Waits for work. False = the worker is to go.
    fn wait(&mut self, now: i64, since: i64, due: Option<i64>) -> bool {
        let is_left =
            area::read(|memory| scheduler::is_result_pending(memory, self.index)) && !attached_job::is_being_read();
        let timeout = match is_left {
            true => guc::worker_idle_timeout().min(UNREAD_TIMEOUT),
            false => guc::worker_idle_timeout(),
        };
        let over = since.saturating_add(timeout);
        if now >= over && area::write(|memory| scheduler::exit_if_idle(memory, self.index)) {
            return false;
        }
        if self.watchdog.limit_exceeded(1) && area::write(|memory| scheduler::stop_accepting(memory, self.index)) {
            return false;
        }
        if !self.is_clean && !self.reset() {
            return false;
        }
        if now == since {
            self.become_idle();
        }
        start::start_workers();
        if !area::write(|memory| scheduler::become_idle(memory, self.index)) {
            return true; // there is something to do again
        }
        // A time that has come and with it nothing to do is nothing to wait for.
        let until = due.into_iter().chain([over]).filter(|until| *until > now).min();
        let check = if now - since < LONG_IDLE.as_micros() as i64 { IDLE_CHECK } else { LONG_IDLE_CHECK };
        let pause = until.map_or(check, |until| Duration::from_micros(until.abs_diff(now)).min(check));
        {
            // A cancel that comes now is for nothing that runs.
            let _held = CancelHeld::new();
            self.spin.spin();
            latch::wait(Some(pause));
        }
        if area::read(|memory| scheduler::has_assignment(memory, self.index)) {
            self.spin.record_wakeup();
            return true;
        }
        interrupt::clear_cancel();
        let is_to_go = lock::is_database_wanted() || self.is_outdated();
        !(is_to_go && area::write(|memory| scheduler::stop_accepting(memory, self.index)))
    }

    /// Returns whether a worker that logs in now would be another, or none, as the role, the database, their settings
    /// or the extension have changed. Looks no more often than an idle worker that nobody wakes.
    fn is_outdated(&mut self) -> bool {
        if self.looked.elapsed() < IDLE_CHECK {
            return false;
        }
        self.looked = Instant::now();
        let is_same = log::in_own_transaction(false, || match &self.fingerprint {
            Some(fingerprint) => *fingerprint == log::fingerprint(self.database, self.login),
            None => login::version(self.database, self.login) == attached_job::login_version(),
        });
        !is_same.unwrap_or(false)
    }

    /// Makes the session as it was after the login. False = it cannot be made so: the worker must go.
    fn reset(&mut self) -> bool {
        if self.is_clean {
            return true;
        }
        attached_jobs::clear();
        let is_reset = reset_session();
        statement::forget();
        self.is_clean = is_reset && (self.login == 0 || discard_all::is_login(self.login));
        self.is_clean
    }

    /// Lets another worker take the place of this one, which stays until the server has started that one. False = it
    /// has not, and this one goes on.
    fn is_taken_over(&mut self) -> bool {
        let start = match area::write(|memory| scheduler::reserve_successor(memory, self.index)) {
            Succession::By(start) => start,
            Succession::Leave => return true,
            Succession::Stay => return false,
        };
        let has_work = area::write(|memory| scheduler::has_own_work(memory, self.index));
        if !start::try_register(start, if has_work { Duration::ZERO } else { PROCESS_CHECK }) {
            // Mostly another worker is just making room, too, and its process is free in a moment.
            self.keeps_turn = true;
            let since = *self.unsucceeded_since.get_or_insert_with(Instant::now);
            return since.elapsed() > PROCESS_PATIENCE;
        }
        self.unsucceeded_since = None;
        if await_successor(start) {
            return true;
        }
        area::write(|memory| scheduler::cancel_successor(memory, self.index, start));
        false
    }

    /// Goes, and sees to it that what is queued is not forgotten.
    fn leave(&mut self) {
        if SLOT.take().is_none() {
            return start::exit_for_restart();
        }
        refuse_assigned_job(self.index);
        loop {
            match area::write(|memory| scheduler::exit_and_reserve_successor(memory, self.index)) {
                None => return start::start_workers(),
                Some(start) if register_successor(self.index, start) => {
                    await_successor(start);
                    return;
                }
                Some(_) if area::read(|memory| scheduler::will_be_restarted(memory, self.index)) => {
                    return start::exit_for_restart()
                }
                Some(_) if interrupt::is_ending() || area::read(|memory| scheduler::may_exit(memory, self.index)) => {
                    return
                }
                // The server does not start this one again: there must be another first.
                Some(_) => latch::wait(Some(SUCCESSOR_CHECK)),
            }
        }
    }
}
