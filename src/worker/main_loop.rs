//! Loop of a worker of a pool: claims a task, does it, or waits for one.

mod log_tasks;
mod queued_job;

use crate::ffi::dsm::Handle;
use crate::ffi::interrupt::CancelHeld;
use crate::ffi::{area, guc as settings, interrupt, latch, lock, process};
use crate::scheduler::{start, ClaimingWorker, Handover, Idleness, Task};
use crate::time::Timestamp;
use crate::worker::exit::refuse_assigned_job;
use crate::worker::next::{exit_if, Exit, Next, CONTINUE, EXIT};
use crate::worker::pool_worker::{PoolWorker, IDLE_CHECK};
use crate::worker::session_setup::has_been_client;
use crate::worker::state::state;
use crate::worker::succession::{await_successor, register_successor};
use crate::worker::{attached_job, signals};
use crate::{guc, log, scheduler};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Interval of [`IDLE_CHECK`] of a worker that has been idle for [`LONG_IDLE`]. DROP DATABASE waits
/// five seconds for others to leave (procarray.c, `CountOtherDBBackends`).
const LONG_IDLE_CHECK: Duration = Duration::from_secs(2);
const LONG_IDLE: Duration = Duration::from_secs(2);
/// Limits how long a worker has nothing to do whose last result is unread: nobody but its session
/// could give it a job, and who polls until its process is gone waits for that.
const UNREAD_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval at which a worker that goes tries again to have another one started.
const SUCCESSOR_CHECK: Duration = Duration::from_millis(50);
/// Time that a worker that makes room for another pool waits for a process at a time, if it has nothing to do itself.
const PROCESS_CHECK: Duration = Duration::from_millis(20);
/// Time in which it tries to get one. Then it goes without: its own process is free when it has gone.
const PROCESS_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest time between two deletions of old rows.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// Returns the time between two deletions of old rows: often enough for the log to be about as long as it may be.
fn prune_interval() -> Duration {
    let retention = guc::log_retention().unwrap_or(PRUNE_INTERVAL);
    (retention / 20).clamp(Duration::from_secs(1), PRUNE_INTERVAL)
}

impl PoolWorker {
    /// Performs one task after the other, until the worker must go.
    pub fn work(&mut self) {
        while self.turn().is_continue() {}
    }

    fn turn(&mut self) -> Next {
        self.serve_signals()?;
        let now = process::now();
        let task = self.claim(now)?;
        self.perform(task, now)?;
        self.maintain_log();
        CONTINUE
    }

    fn serve_signals(&mut self) -> Next {
        {
            // There is nothing to cancel.
            let _held = CancelHeld::new();
            interrupt::check();
        }
        exit_if(signals::is_ending())?;
        if signals::take_reload_request() {
            settings::reload();
            self.is_stale = has_been_client();
        }
        CONTINUE
    }

    /// Claims the next task. The worker goes if the task is one of the queue, and it must not run those.
    fn claim(&mut self, now: Timestamp) -> ControlFlow<Exit, Task> {
        let claiming = ClaimingWorker { index: self.index, many: self.is_short, keeps_turn: self.keeps_turn };
        let task = area::write(|memory| scheduler::claim(memory, claiming, now));
        self.keeps_turn = false;
        if !matches!(task, Task::Wait(_)) {
            self.idle_since = None;
        }
        let is_of_queue = matches!(task, Task::Run(_) | Task::Record(_) | Task::Log(_));
        if is_of_queue && (self.is_stale || self.prepare_for_queue().is_break()) {
            area::write(|memory| scheduler::undo_task(memory, self.index, &task));
            return ControlFlow::Break(Exit);
        }
        ControlFlow::Continue(task)
    }

    fn perform(&mut self, task: Task, now: Timestamp) -> Next {
        let was_paused = std::mem::replace(&mut self.is_paused, matches!(task, Task::Pause));
        match task {
            Task::Serve(segment) => {
                attached_job::run_assigned(Handle::from_number(segment));
                self.is_clean = false;
                self.is_counted = false;
                self.become_free()
            }
            Task::Wait(_) if self.is_stale && self.stops_accepting() => EXIT,
            Task::Wait(due) => self.wait(now, due),
            Task::Run(ref claim) if self.watchdog.limit_exceeded(claim.indexes.len()) => {
                area::write(|memory| scheduler::undo_task(memory, self.index, &task));
                EXIT
            }
            Task::Run(claim) => {
                start::start_workers();
                self.run(&claim)
            }
            Task::Record(batch) => {
                self.record(batch);
                CONTINUE
            }
            Task::Log(batch) => {
                self.write_log(batch);
                CONTINUE
            }
            Task::Pause => self.pause(was_paused),
            Task::HandOver => exit_if(self.is_taken_over()),
            Task::Leave => EXIT,
        }
    }

    /// Keeps sessions from giving this worker another job. Returns `false` if one has just done so.
    fn stops_accepting(&self) -> bool {
        area::write(|memory| scheduler::stop_accepting(memory, self.index))
    }

    /// Imports orphans, and deletes old rows, when it is time to.
    fn maintain_log(&mut self) {
        if self.next_import.is_some_and(|(at, _)| at <= process::now()) && self.reset().is_continue() {
            self.import_orphans();
        }
        // Also of one that does not stay for long.
        if guc::log_retention().is_some()
            && self.pruned.is_none_or(|at| at.elapsed() > prune_interval())
            && self.fingerprint.is_some()
        {
            // A log that cannot be written now is pruned another time.
            if log::in_own_transaction(false, log::prune_old).unwrap_or(true) {
                self.pruned = Some(Instant::now());
            }
        }
    }

    /// Waits while there is work, and the cap leaves no room for it.
    fn pause(&mut self, was_paused: bool) -> Next {
        self.reset()?;
        if !was_paused {
            self.become_idle();
        }
        {
            let _held = CancelHeld::new();
            // A cap of none changes with the configuration, of which the server tells its processes. Of attached jobs
            // that fill the cap nobody tells that they have ended.
            latch::wait(Some(if guc::cap() == 0 { LONG_IDLE_CHECK } else { IDLE_CHECK }));
        }
        interrupt::clear_cancel();
        exit_if(lock::is_database_wanted() && self.stops_accepting())
    }

    /// Waits for work, at most until a job is due.
    fn wait(&mut self, now: Timestamp, due: Option<Timestamp>) -> Next {
        let since = *self.idle_since.get_or_insert(now);
        let is_left =
            area::read(|memory| scheduler::is_result_pending(memory, self.index)) && !attached_job::is_being_read();
        let timeout = match is_left {
            true => guc::worker_idle_timeout().min(UNREAD_TIMEOUT),
            false => guc::worker_idle_timeout(),
        };
        let over = since + timeout;
        exit_if(now >= over && area::write(|memory| scheduler::exit_if_idle(memory, self.index)))?;
        exit_if(self.watchdog.limit_exceeded(1) && self.stops_accepting())?;
        self.reset()?;
        if now == since {
            self.become_idle();
        }
        start::start_workers();
        let surplus_until = match area::write(|memory| scheduler::become_idle(memory, self.index)) {
            Idleness::None => return CONTINUE,
            Idleness::Idle => None,
            Idleness::Surplus(until) => Some(until),
        };
        // A time that has come and with it nothing to do is nothing to wait for.
        let until = due.into_iter().chain([over]).chain(surplus_until).filter(|until| *until > now).min();
        let check = if now < since + LONG_IDLE { IDLE_CHECK } else { LONG_IDLE_CHECK };
        let pause = until.map_or(check, |until| until.since(now).min(check));
        {
            // A cancel that comes now is for nothing that runs.
            let _held = CancelHeld::new();
            self.spin.spin();
            latch::wait(Some(pause));
        }
        if let Some(at) = area::read(|memory| scheduler::assigned_at(memory, self.index)) {
            self.spin.record_wakeup(Some(at));
            return CONTINUE;
        }
        interrupt::clear_cancel();
        exit_if((lock::is_database_wanted() || self.is_outdated()) && self.stops_accepting())
    }

    /// Lets another worker take the place of this one, which stays until the server has started that one. Returns
    /// `false` if it has not, and this one goes on.
    fn is_taken_over(&mut self) -> bool {
        let start = match area::write(|memory| scheduler::reserve_successor(memory, self.index)) {
            Handover::By(start) => start,
            Handover::Leave => return true,
            Handover::Stay => return false,
        };
        let has_work = area::write(|memory| scheduler::has_own_work(memory, self.index));
        if !start::try_register(start, if has_work { Duration::ZERO } else { PROCESS_CHECK }) {
            // Mostly another worker is just making room, too, and its process is free in a moment.
            self.keeps_turn = true;
            let since = *self.unsucceeded_since.get_or_insert_with(Instant::now);
            return since.elapsed() > PROCESS_TIMEOUT;
        }
        self.unsucceeded_since = None;
        if await_successor(start) {
            return true;
        }
        area::write(|memory| scheduler::cancel_successor(memory, self.index, start));
        false
    }

    /// Ends the worker, and has another one started if there is work left that nobody else will do.
    pub fn leave(&mut self) {
        if state().slot.take().is_none() {
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
                Some(_) if signals::is_ending() || area::read(|memory| scheduler::may_exit(memory, self.index)) => {
                    return
                }
                // The server does not start this one again: there must be another first.
                Some(_) => latch::wait(Some(SUCCESSOR_CHECK)),
            }
        }
    }
}
