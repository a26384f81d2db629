//! A worker of a pool, which has a database and a login role: its session, from the login on.

use crate::channel::attached_jobs;
use crate::ffi::interrupt::CancelHeld;
use crate::ffi::spin::SpinThenWait;
use crate::ffi::{area, discard_all, invalidation, latch, lock, login, remote_dest, statement};
use crate::ids::{DatabaseId, RoleId};
use crate::log;
use crate::protocol::{Report, Request};
use crate::scheduler;
use crate::scheduler::PoolPeers;
use crate::time::Timestamp;
use crate::worker::connection_limit::check_connection_limits;
use crate::worker::memory_watchdog::MemoryWatchdog;
use crate::worker::next::{exit_if, Next, CONTINUE, EXIT};
use crate::worker::session_setup::{prepare_session, reset_session};
use crate::worker::state::state;
use crate::worker::{attached_job, exit, result_collector, signals};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Interval at which an idle worker looks whether its database is wanted, and whether there is something to do that
/// nobody tells.
pub const IDLE_CHECK: Duration = Duration::from_millis(500);
/// Interval at which a worker looks whether others, whose connections count, are gone.
const REFUSAL_CHECK: Duration = Duration::from_millis(1);
/// Time that the last worker of a role waits for those to go that are too many.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of the lock of a database under which its orphans become rows.
const IMPORT_LOCK: u32 = 0x666f_6c64;

/// A worker that runs one job after the other.
pub struct PoolWorker {
    /// Index of its slot.
    pub index: usize,
    pub database: DatabaseId,
    pub login: RoleId,
    /// State of what the login depended on; `None` if this worker has not looked at the queue yet.
    pub fingerprint: Option<(u64, Vec<u8>)>,
    /// Number of the last batch, and the request of its launcher.
    pub request: Option<(u64, Rc<Request>)>,
    /// Nothing has run since the session was reset.
    pub is_clean: bool,
    /// The last job was short.
    pub is_short: bool,
    /// The role or the database may have only so many connections.
    pub is_limited: bool,
    /// This worker is counted wherever connections are counted.
    pub is_counted: bool,
    /// Time at which old rows were deleted; `None` if they were not yet.
    pub pruned: Option<Instant>,
    /// Time of the next try to import orphans, and count of failed ones; `None` if all are imported.
    pub next_import: Option<(Timestamp, u16)>,
    pub watchdog: MemoryWatchdog,
    /// Time of the last look whether it is still what a new worker would be.
    looked: Instant,
    /// Changes of the catalogs ([`invalidation::changes`]) after which it was so; `None` if it never was.
    checked_changes: Option<u64>,
    /// Wait for a session's next job.
    pub spin: SpinThenWait,
    /// Time since which there is nothing to do.
    pub idle_since: Option<Timestamp>,
    /// The configuration has changed in what this process cannot follow any more.
    pub is_stale: bool,
    /// The last task was a pause.
    pub is_paused: bool,
    /// There was no process for a worker in its place: it runs a job of its own before it tries again.
    pub keeps_turn: bool,
    /// Time since which there has been none.
    pub unsucceeded_since: Option<Instant>,
}

impl PoolWorker {
    pub fn new(index: usize, database: DatabaseId, login: RoleId) -> Self {
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
            checked_changes: None,
            spin: SpinThenWait::new(),
            idle_since: None,
            is_stale: false,
            is_paused: false,
            keeps_turn: false,
            unsucceeded_since: None,
        }
    }

    /// Makes the fresh process a session. The worker goes if the extension is not in this database any more, or if the
    /// role has too many connections.
    pub fn prepare(&mut self) -> Next {
        prepare_session(result_collector::message);
        let found = log::in_own_transaction(false, || {
            let is_there = log::locate();
            if is_there {
                self.fingerprint = Some(log::fingerprint(self.database, self.login));
            }
            if is_there && self.login != RoleId::NONE {
                let version = login::version(self.database, self.login);
                area::write(|memory| scheduler::accept_attached_jobs(memory, self.index, version));
            }
            is_there
        });
        match found {
            Ok(true) => {}
            Ok(false) => {
                self.forget_database();
                return EXIT;
            }
            Err(captured) => {
                state().exit_report.replace(Some(captured.report));
                return self.refuse();
            }
        }
        self.look_at_limits();
        if !self.is_within_limits() {
            return self.refuse();
        }
        remote_dest::speak_database_encoding();
        self.import_orphans();
        CONTINUE
    }

    /// Looks at the queue for the first time, as a worker that came with a job of its own. It goes if it is not what a
    /// new one would be.
    pub fn prepare_for_queue(&mut self) -> Next {
        if self.fingerprint.is_some() {
            return CONTINUE;
        }
        self.reset()?;
        let found = log::in_own_transaction(false, || {
            let is_current = login::version(self.database, self.login) == state().login_version.get();
            (is_current && log::locate()).then(|| log::fingerprint(self.database, self.login))
        });
        self.fingerprint = found.ok().flatten();
        if self.fingerprint.is_none() {
            return EXIT;
        }
        self.look_at_limits();
        self.import_orphans();
        CONTINUE
    }

    fn look_at_limits(&mut self) {
        self.is_limited =
            log::in_own_transaction(false, || login::look(self.database, self.login).is_limited).unwrap_or(true);
    }

    /// Returns whether the role may have this connection.
    pub fn is_within_limits(&mut self) -> bool {
        self.is_counted = self.is_counted || !self.is_limited || self.may_be_counted();
        self.is_counted
    }

    fn may_be_counted(&self) -> bool {
        let request = Request { database: self.database, login: self.login, ..Request::default() };
        let mut alone_since = None;
        let report = loop {
            let peers = area::write(|memory| scheduler::pool_peers(memory, self.index));
            state().was_counted_alone.set(!matches!(peers, PoolPeers::Active));
            match log::in_own_transaction(false, || check_connection_limits(&request)) {
                Ok(Ok(())) => return true,
                // Those that came with it, and were refused as well, count until they are gone.
                Ok(Err(_))
                    if matches!(peers, PoolPeers::Exiting)
                        && alone_since.get_or_insert_with(Instant::now).elapsed() < REFUSAL_TIMEOUT =>
                {
                    latch::wait(Some(REFUSAL_CHECK));
                }
                Ok(Err(error)) => break Report::from(error),
                Err(captured) => break captured.report,
            }
        };
        state().exit_report.replace(Some(report));
        false
    }

    /// Ends as a refused login does.
    pub fn refuse(&mut self) -> Next {
        state().is_logged_in.set(false);
        exit::leave_slot();
        EXIT
    }

    /// Cleans up after an attached job, and shows that the worker may have another one.
    pub fn become_free(&mut self) -> Next {
        signals::end_job();
        attached_job::detach_if_large();
        {
            let _held = CancelHeld::new();
            self.is_clean = false;
            self.reset()?;
            exit_if(discard_all::is_spent())?;
        }
        area::write(|memory| scheduler::attached_job_done(memory, self.index));
        CONTINUE
    }

    /// Shows that this worker has nothing to do, which counts as no connection.
    pub fn become_idle(&mut self) {
        statement::announce_idle();
        self.is_counted = false;
    }

    /// Makes the session as it was after the login. The worker goes if that cannot be done.
    pub fn reset(&mut self) -> Next {
        if self.is_clean {
            return CONTINUE;
        }
        attached_jobs::clear();
        let is_reset = reset_session();
        statement::forget();
        self.is_clean = is_reset && (self.login == RoleId::NONE || discard_all::is_login(self.login));
        exit_if(!self.is_clean)
    }

    /// Returns whether a worker that logs in now would be another, or none, as the role, the database, their settings
    /// or the extension have changed. Looks no more often than an idle worker that nobody wakes.
    pub fn is_outdated(&mut self) -> bool {
        if self.looked.elapsed() < IDLE_CHECK {
            return false;
        }
        self.looked = Instant::now();
        // A worker that waits for long is not to be seen in the statistics of its database.
        let changes = invalidation::changes_between_transactions();
        if changes.is_some() && changes == self.checked_changes {
            return false;
        }
        self.checked_changes = None;
        let checked = log::in_own_transaction(false, || {
            let changes = invalidation::changes();
            let is_same = match &self.fingerprint {
                Some(fingerprint) => *fingerprint == log::fingerprint(self.database, self.login),
                None => login::version(self.database, self.login) == state().login_version.get(),
            };
            is_same.then_some(changes)
        });
        self.checked_changes = checked.ok().flatten();
        self.checked_changes.is_none()
    }

    /// Makes rows of orphans, which a dead server has left; what cannot be written now is tried again.
    pub fn import_orphans(&mut self) {
        let imported = lock::while_alone(IMPORT_LOCK, self.database, || {
            log::in_own_transaction(true, || log::import_orphans(self.database)).map(|imported| {
                imported.remove();
                imported.is_all
            })
        });
        let is_all = matches!(imported, Some(Ok(true)));
        let failures = self.next_import.map_or(0, |(_, failures)| failures);
        self.next_import = (!is_all).then(|| (scheduler::next_log_try(failures), failures.saturating_add(1)));
        if is_all {
            log::remove_unknown(area::epoch(), self.database);
            // Files of databases that are gone concern nobody else.
            let databases = log::in_own_transaction(false, log::databases).unwrap_or_default();
            if !databases.is_empty() {
                log::remove_dropped_databases(area::epoch(), |database| databases.contains(&database));
            }
        }
    }

    /// Returns whether the extension is still in this database, as far as that can be told.
    pub fn is_extension_there(&self) -> bool {
        log::in_own_transaction(false, log::locate).unwrap_or(true)
    }

    /// Forgets the jobs of this database, and what was noted of them: the extension is not in it any more.
    pub fn forget_database(&self) {
        area::write(|memory| scheduler::forget_database(memory, self.database, self.index));
        log::remove_unknown(area::epoch(), self.database);
    }
}
