//! Monitoring of jobs: waits for a batch, reports in notices what changes in it, and records the progress of a job.

use crate::channel::nesting;
use crate::error::Error;
use crate::ffi::report::Log;
use crate::ffi::{area, exit_hooks, latch, report, session};
use crate::ids::{AnyId, JobId};
use crate::protocol::{decode, Report};
use crate::registry::{Follower, JobDetails, LiveState, State, WakeOn};
use crate::scheduler::start;
use crate::session::access::no_such_job;
use crate::session::deadlock;
use crate::session::deadlock::{Awaited, VICTIM_TIMEOUT};
use crate::session::visibility::{live_states, logged_states, rights_on, visible, BatchFilter, RegistryView};
use crate::{log, registry, scheduler};
use std::cell::Cell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Interval at which a session that follows queued jobs tries again to start workers for which there was no process.
const RETRY: Duration = Duration::from_millis(500);

/// Maximum time between two deadlock checks of a session that follows jobs.
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);

/// Pause before the jobs are read again, as a multiple of the time that the last reading and its report took: many jobs
/// are not read after each change.
const PAUSE: u32 = 10;
/// Pause that is too short to be worth a wait.
const SHORT_PAUSE: Duration = Duration::from_millis(1);
/// Maximum pause: the process itself may have been held up while it read the jobs.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Minimum interval of progress reports.
const NOTICE_INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which a session that follows more than a few jobs reads them. Only their end wakes it.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum bytes of a job's query that name it in a notice.
const QUERY_BYTES: usize = 60;

/// Wait of this process for changes of a batch.
pub struct Watch {
    id: AnyId,
    /// Time of the last reading, and earliest time of the next one.
    looked: Instant,
    next: Instant,
    follower: Option<Follower>,
    /// Changes that wake this process.
    wake_on: WakeOn,
    /// Set while these changes wake this process; not set if there was no memory for that.
    is_armed: bool,
}

impl Watch {
    /// Returns the jobs as they are now. The first change after that wakes this process.
    pub fn jobs(&mut self) -> Vec<LiveState> {
        loop {
            let pause = self.next.saturating_duration_since(Instant::now());
            if pause < SHORT_PAUSE {
                break;
            }
            latch::wait(Some(pause));
        }
        self.looked = Instant::now();
        self.is_armed = area::write(|memory| registry::arm(memory, self.id, self.follower, self.wake_on));
        area::read(|memory| registry::live_states(memory, self.id))
    }

    /// Waits for a change since the last reading, or for the end, but not longer than `timeout`.
    pub fn wait(&mut self, timeout: Option<Duration>) {
        let pause = (PAUSE * self.looked.elapsed()).min(LONGEST_PAUSE);
        let timeout = match self.wake_on {
            WakeOn::TheEnd => Some(timeout.unwrap_or(CHECK_INTERVAL).min(CHECK_INTERVAL).max(pause)),
            _ => {
                self.next = Instant::now() + pause;
                timeout
            }
        };
        if !area::read(|memory| registry::is_armed(memory, self.id)) {
            return;
        }
        latch::wait(if self.is_armed { timeout } else { Some(timeout.unwrap_or(RETRY).min(RETRY)) });
    }
}

thread_local! {
    /// The callback that removes this process from its watched batches at exit is registered.
    static IS_PREPARED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` while changes of the batch wake this process.
///
/// # Errors
/// [`Error::SharedMemory`] (53200), those of `body`.
pub fn with_watch<T>(id: AnyId, body: impl FnOnce(&mut Watch) -> Result<T, Error>) -> Result<T, Error> {
    with_watch_as(None, id, body)
}

/// Runs `body` as [`with_watch`] does. `follower`: set if the process waits for the end, which deadlock checks must
/// know.
fn with_watch_as<T>(
    follower: Option<Follower>,
    id: AnyId,
    body: impl FnOnce(&mut Watch) -> Result<T, Error>,
) -> Result<T, Error> {
    if !IS_PREPARED.replace(true) {
        exit_hooks::before_exit(unwatch_all);
    }
    let done = || area::write(|memory| registry::unwatch(memory, id.batch()));
    if !area::write(|memory| registry::watch(memory, id, follower)) {
        done();
        return Err(Error::SharedMemory);
    }
    let now = Instant::now();
    let mut watch = Watch { id, looked: now, next: now, follower, wake_on: WakeOn::EachChange, is_armed: true };
    let outcome = report::on_error(|| body(&mut watch), done);
    done();
    outcome
}

/// Removes this process from its watched batches when it exits in the middle of a wait.
fn unwatch_all() {
    if !exit_hooks::is_postmaster_gone() {
        area::write(registry::unwatch_all);
    }
}

/// Options for following a batch or a job.
#[derive(Debug, Clone, Copy)]
pub struct Following {
    /// Notices report the progress, and the end of each of a few jobs.
    pub is_verbose: bool,
    /// Maximum wait; `None` means until all jobs have ended.
    pub timeout: Option<Duration>,
}

/// Follows a batch or a job until all jobs have ended; then returns the result of `read`. Jobs that have ended are
/// still in the registry at that time, so that `read` does not need the log, which another session may have locked.
///
/// # Errors
/// [`Error::NoSuchJob`] (42704), [`Error::Stuck`] (53000), [`Error::Deadlock`] (40P01), [`Error::FollowsItself`]
/// (55000), those of `read`.
pub fn follow<T>(id: AnyId, following: Following, read: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    if live_states(id, rights_on).is_empty() {
        return match logged_states(id, |known| rights_on(known.owner))?.is_empty() {
            true => Err(no_such_job(id)),
            false => read(),
        };
    }
    let is_worker = nesting::is_job();
    with_watch_as(Some(Follower { pid: session::pid(), is_worker }), id, |watch| {
        wait_for_end(watch, following)?;
        area::write(|memory| registry::unfollow(memory, id));
        read()
    })
}

/// Waits until all jobs have ended, and for their rows, or until the timeout.
fn wait_for_end(watch: &mut Watch, following: Following) -> Result<(), Error> {
    let is_worker = watch.follower.is_some_and(|follower| follower.is_worker);
    if following.timeout.is_none() {
        check_self_wait()?;
    }
    let deadline = following.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut reporter = ProgressReporter::new(watch.id, following.is_verbose);
    let mut interval = session::deadlock_timeout();
    let mut check_at = Instant::now() + interval;
    let mut is_victim_fallback = false;
    let mut start_at = Instant::now() + RETRY;
    loop {
        let jobs = watch.jobs();
        reporter.tell(&jobs);
        if Instant::now() >= start_at {
            start::start_workers();
            start_at = Instant::now() + RETRY;
        }
        if Instant::now() >= check_at {
            is_victim_fallback = check_blocked(is_victim_fallback)?;
            // A wait that is no deadlock so far may become one, but seldom does.
            interval = (2 * interval).min(LONGEST_INTERVAL);
            check_at = Instant::now() + if is_victim_fallback { VICTIM_TIMEOUT } else { interval };
        }
        if jobs.iter().all(|job| job.state.is_final()) {
            reporter.tell_progress(&jobs);
            watch.wake_on = WakeOn::EachChange;
            wait_for_rows(watch, deadline);
            return Ok(());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            reporter.tell_progress(&jobs);
            return Ok(());
        }
        watch.wake_on = if jobs.len() <= scheduler::FEW as usize { WakeOn::EachChange } else { WakeOn::TheEnd };
        if is_worker && area::write(scheduler::is_stuck) {
            return Err(Error::Stuck);
        }
        // Only a running job can wait for this session. The start of a job does not wake all of its followers.
        let may_run = watch.wake_on == WakeOn::TheEnd || jobs.iter().any(|job| job.state == State::Running);
        let check_at = may_run.then_some(check_at);
        // Nothing wakes this process when others give processes back, or when a worker exits and leaves jobs stuck.
        let is_queued = jobs.iter().any(|job| job.state == State::Queued);
        let start_at = (is_queued && (is_worker || area::read(scheduler::may_lack_workers))).then_some(start_at);
        let until = check_at.into_iter().chain(deadline).chain(start_at).chain(reporter.due()).min();
        watch.wait(until.map(|until| until.saturating_duration_since(Instant::now())));
    }
}

/// Returns the running jobs that this process waits for: the processes that run them, and their uuids.
fn awaited_jobs() -> Vec<(i32, JobId)> {
    area::read(|memory| registry::awaited_by(memory, session::pid()))
}

/// Rejects a job that waits for the end of itself.
fn check_self_wait() -> Result<(), Error> {
    match awaited_jobs().iter().any(|(pid, _)| *pid == session::pid()) {
        true => Err(Error::FollowsItself),
        false => Ok(()),
    }
}

/// Checks for a deadlock between this session and the jobs it waits for. Returns `true` if one exists but another
/// session is the victim.
fn check_blocked(is_victim_fallback: bool) -> Result<bool, Error> {
    let mut is_victim_elsewhere = false;
    for (pid, uuid) in awaited_jobs().into_iter().filter(|(pid, _)| *pid != session::pid()) {
        let sql = area::read(|memory| {
            registry::find(memory, uuid.into()).iter().find_map(|found| registry::query_of(memory, found))
        });
        is_victim_elsewhere |= deadlock::check(&Awaited { pid, sql: &sql.unwrap_or_default() }, is_victim_fallback)?;
    }
    Ok(is_victim_elsewhere)
}

/// Waits until the final rows of ended jobs are in the log, where they are read; not longer than it takes to see that
/// they cannot be written now.
pub fn wait_for_rows(watch: &mut Watch, deadline: Option<Instant>) {
    let latest = Instant::now() + Duration::from_secs(1);
    let until = deadline.map_or(latest, |deadline| deadline.min(latest));
    while watch.jobs().iter().any(LiveState::is_row_due) && Instant::now() < until {
        start::start_workers();
        watch.wait(Some(until.saturating_duration_since(Instant::now())));
    }
}

/// Reports the ends of jobs, and their progress, in notices.
struct ProgressReporter {
    id: AnyId,
    is_verbose: bool,
    /// State and attempts of each of a few jobs, as of the last report.
    seen: HashMap<JobId, (State, u32)>,
    reported: HashMap<JobId, (i32, Vec<u8>)>,
    /// Last line of progress, and the time at which it was reported, or at which there was nothing to report.
    last_line: String,
    last_line_at: Instant,
    /// Another line is to be reported later.
    is_due: bool,
}

impl ProgressReporter {
    fn new(id: AnyId, is_verbose: bool) -> Self {
        ProgressReporter {
            id,
            is_verbose,
            seen: HashMap::new(),
            reported: HashMap::new(),
            last_line: String::new(),
            last_line_at: Instant::now(),
            is_due: false,
        }
    }

    /// Reports each of a few jobs that has ended since the last call, and from time to time the progress of all.
    fn tell(&mut self, jobs: &[LiveState]) {
        if !self.is_verbose {
            return;
        }
        if jobs.len() <= scheduler::FEW as usize {
            self.tell_each(jobs);
        }
        self.is_due = jobs.iter().any(|job| !job.state.is_final()) && progress(jobs) != self.last_line;
        if self.is_due && self.last_line_at.elapsed() >= NOTICE_INTERVAL {
            self.tell_progress(jobs);
        }
    }

    fn tell_each(&mut self, jobs: &[LiveState]) {
        let is_first = self.seen.is_empty();
        let mut changed = Vec::new();
        for job in jobs {
            let now = (job.state, job.attempts);
            let is_new = self.seen.insert(job.uuid, now) != Some(now);
            let is_retried = job.state == State::Queued && job.attempts > 0;
            let is_reported = job
                .progress
                .as_ref()
                .is_some_and(|report| self.reported.insert(job.uuid, report.clone()).as_ref() != Some(report));
            if is_reported || is_new && (job.state.is_final() || is_retried && !is_first) {
                changed.push(job);
            }
        }
        if changed.is_empty() {
            return;
        }
        let views = RegistryView::default().jobs_of(Some(self.id), BatchFilter::All);
        for job in changed {
            if let Some(view) = views.iter().find(|view| view.uuid == job.uuid) {
                notice(&line_of(job, view));
            }
        }
    }

    /// Reports the progress of all jobs, if it has changed.
    fn tell_progress(&mut self, jobs: &[LiveState]) {
        let line = progress(jobs);
        if self.is_verbose && line != self.last_line {
            notice(line.as_bytes());
            self.last_line = line;
            self.last_line_at = Instant::now();
        }
        self.is_due = false;
    }

    /// Returns the time at which a report is due even if nothing changes, or `None` if none is.
    fn due(&self) -> Option<Instant> {
        self.is_due.then(|| self.last_line_at + NOTICE_INTERVAL)
    }
}

/// Returns the progress of jobs as a line, with a bar like that of `pg_background_batches`.
fn progress(jobs: &[LiveState]) -> String {
    const WIDTH: usize = 20;
    let count = |state| jobs.iter().filter(|job| job.state == state).count();
    let (total, ended) = (jobs.len(), jobs.iter().filter(|job| job.state.is_final()).count());
    let full = WIDTH * ended / total.max(1);
    let bar = ["#".repeat(full), "-".repeat(WIDTH - full)].concat();
    let mut line = format!("progress: [{bar}] {ended}/{total} jobs ended ({}%)", 100 * ended / total.max(1));
    for state in [State::Failed, State::Stopped, State::Running] {
        match count(state) {
            0 => {}
            count => line += &format!(", {count} {}", state.name()),
        }
    }
    line
}

/// Returns the notice about a job: its number, its name or its query, how it ended and after how long, and why.
fn line_of(job: &LiveState, view: &JobDetails) -> Vec<u8> {
    let name = view.name.as_ref().filter(|name| Some(*name) != view.batch_name.as_ref()).map_or_else(
        || {
            let words = view.query.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            let query = words.collect::<Vec<_>>().join(&b' ');
            let start = session::clip(&query, QUERY_BYTES);
            let more = if start.len() < query.len() { "..." } else { "" };
            [b"(", start, more.as_bytes(), b")"].concat()
        },
        |name| [b"\"", name.as_slice(), b"\""].concat(),
    );
    let mut line = [format!("job {} ", job.uuid.ordinal()).as_bytes(), &name, b" "].concat();
    let now = &view.now;
    if !job.state.is_final() {
        match &job.progress {
            Some((percent, message)) => line.extend([format!("is at {percent}% ").as_bytes(), message].concat()),
            None => line.extend(format!("failed in attempt {}, and is queued again", job.attempts).as_bytes()),
        }
        return line.trim_ascii_end().to_vec();
    }
    line.extend(job.state.name().as_bytes());
    if let Some((started, ended)) = now.started.zip(now.ended) {
        line.extend(format!(" after {:.3} s", ended.micros_since(started) as f64 / 1e6).as_bytes());
    }
    let written = now.written.as_deref().and_then(|bytes| decode(bytes).ok());
    let outcome = visible(now.owner, job.state, written.unwrap_or_else(|| log::outcome_of(now)));
    if let Some(message) = outcome.message.filter(|_| job.state != State::Succeeded) {
        line.extend([b": ", message.as_slice()].concat());
    }
    line
}

fn notice(message: &[u8]) {
    let report = Report { level: report::NOTICE, message: message.to_vec(), ..Report::default() };
    report::emit(&report, Log::Here);
}

/// Records the progress of the job that this process runs; does nothing in other processes.
///
/// # Errors
/// [`Error::Progress`] (22023)
pub fn report_progress(percent: i32, message: &[u8]) -> Result<(), Error> {
    if !(0..=100).contains(&percent) {
        return Err(Error::Progress);
    }
    let message = session::clip(message, registry::MESSAGE_BYTES);
    if let Some(index) = area::read(|memory| scheduler::slot_of_process(memory, session::pid())) {
        area::write(|memory| scheduler::report_progress(memory, index, percent, message));
    }
    Ok(())
}
