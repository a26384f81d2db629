//! Progress of jobs: following a batch, telling what changes in it, and what a job says of itself.

use crate::channel::nesting;
use crate::error::Error;
use crate::ffi::report::Log;
use crate::ffi::{area, exit_hooks, latch, report, session};
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

/// Interval at which a session that follows queued jobs tries to have workers started that there was no process for.
const RETRY: Duration = Duration::from_millis(500);

/// Longest time between two looks whether the jobs that are followed wait for who follows them.
const LONGEST_PATIENCE: Duration = Duration::from_secs(10);

/// Pause before the next look at the jobs, as a multiple of the time that the last look and telling of it took: many
/// jobs are not looked at after each change.
const PAUSE: u32 = 10;
/// Time that is not worth a pause.
const SHORT_PAUSE: Duration = Duration::from_millis(1);
/// The process itself may have been held up in its look.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Shortest interval at which progress is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Interval at which a session that follows more than a few jobs looks at them. Only their end wakes it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bytes of a job's query that name it in a notice, at most.
const QUERY_BYTES: usize = 60;

/// Wait of this process for changes of a batch.
pub struct Watch<'a> {
    uuid: &'a [u8; 16],
    /// Time of the last look, and earliest time of the next one.
    looked: Instant,
    next: Instant,
    follower: Option<Follower>,
    /// Changes that wake this process.
    hears: WakeOn,
    /// The process is woken by them; false = there was no memory for that.
    is_heard: bool,
}

impl Watch<'_> {
    /// The jobs as they are now. The first change after that wakes this process.
    pub fn jobs(&mut self) -> Vec<LiveState> {
        loop {
            let pause = self.next.saturating_duration_since(Instant::now());
            if pause < SHORT_PAUSE {
                break;
            }
            latch::wait(Some(pause));
        }
        self.looked = Instant::now();
        self.is_heard = area::write(|memory| registry::arm(memory, self.uuid, self.follower, self.hears));
        area::read(|memory| registry::live_states(memory, self.uuid))
    }

    /// Waits for a change since the last look, or for the end.
    pub fn wait(&mut self, timeout: Option<Duration>) {
        let pause = (PAUSE * self.looked.elapsed()).min(LONGEST_PAUSE);
        let timeout = match self.hears {
            WakeOn::TheEnd => Some(timeout.unwrap_or(LOOK_EVERY).min(LOOK_EVERY).max(pause)),
            _ => {
                self.next = Instant::now() + pause;
                timeout
            }
        };
        if !area::read(|memory| registry::is_armed(memory, self.uuid)) {
            return;
        }
        latch::wait(if self.is_heard { timeout } else { Some(timeout.unwrap_or(RETRY).min(RETRY)) });
    }
}

thread_local! {
    /// This process knows that it must take back its watches when it ends.
    static IS_PREPARED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` while this process is woken by changes of the batch.
pub fn with_watch<T>(uuid: &[u8; 16], body: impl FnOnce(&mut Watch) -> Result<T, Error>) -> Result<T, Error> {
    with_watch_as(None, uuid, body)
}

/// The same; who waits for the end is known to others.
fn with_watch_as<T>(
    follower: Option<Follower>,
    uuid: &[u8; 16],
    body: impl FnOnce(&mut Watch) -> Result<T, Error>,
) -> Result<T, Error> {
    if !IS_PREPARED.replace(true) {
        exit_hooks::before_exit(unwatch_all);
    }
    let done = || area::write(|memory| registry::unwatch(memory, uuid));
    if !area::write(|memory| registry::watch(memory, uuid, follower)) {
        done();
        return Err(Error::SharedMemory);
    }
    let now = Instant::now();
    let mut watch = Watch { uuid, looked: now, next: now, follower, hears: WakeOn::EachChange, is_heard: true };
    let outcome = report::on_error(|| body(&mut watch), done);
    done();
    outcome
}

/// Takes back what is left of a wait when the process ends in the middle of it.
fn unwatch_all() {
    if !exit_hooks::is_postmaster_gone() {
        area::write(registry::unwatch_all);
    }
}

/// Tells how to follow a batch or a job.
#[derive(Debug, Clone, Copy)]
pub struct Following {
    /// Notices tell how far it is, and of a few jobs how each has ended.
    pub is_verbose: bool,
    /// Longest wait; none = until all jobs have ended.
    pub timeout: Option<Duration>,
}

/// Follows a batch or a job until all has ended; then looks, and what has ended is still in the registry: there is no
/// need of the log, which somebody may have for himself.
///
/// # Errors
/// [`Error::NoSuchJob`] (42704), [`Error::Stuck`] (53000), [`Error::Deadlock`] (40P01), [`Error::FollowsItself`]
/// (55000), those of `look`.
pub fn follow<T>(uuid: &[u8; 16], following: Following, look: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    if live_states(uuid, rights_on).is_empty() {
        return match logged_states(uuid, |known| rights_on(known.owner))?.is_empty() {
            true => Err(no_such_job(uuid)),
            false => look(),
        };
    }
    let is_worker = nesting::is_job();
    with_watch_as(Some(Follower { pid: session::pid(), is_worker }), uuid, |watch| {
        wait_for_end(watch, following)?;
        area::write(|memory| registry::unfollow(memory, uuid));
        look()
    })
}

/// Waits until all jobs have ended, and for their rows.
fn wait_for_end(watch: &mut Watch, following: Following) -> Result<(), Error> {
    let is_worker = watch.follower.is_some_and(|follower| follower.is_worker);
    if following.timeout.is_none() {
        check_self_wait()?;
    }
    let deadline = following.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut reporter = ProgressReporter::new(watch.uuid, following.is_verbose);
    let mut patience = session::deadlock_timeout();
    let mut look_at = Instant::now() + patience;
    let mut is_victim_fallback = false;
    let mut try_at = Instant::now() + RETRY;
    loop {
        let jobs = watch.jobs();
        reporter.tell(&jobs);
        if Instant::now() >= try_at {
            start::start_workers();
            try_at = Instant::now() + RETRY;
        }
        if Instant::now() >= look_at {
            is_victim_fallback = check_blocked(is_victim_fallback)?;
            // What was no deadlock so far may become one, but seldom does.
            patience = (2 * patience).min(LONGEST_PATIENCE);
            look_at = Instant::now() + if is_victim_fallback { VICTIM_TIMEOUT } else { patience };
        }
        if jobs.iter().all(|job| job.state.is_final()) {
            reporter.tell_progress(&jobs);
            watch.hears = WakeOn::EachChange;
            wait_for_rows(watch, deadline);
            return Ok(());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            reporter.tell_progress(&jobs);
            return Ok(());
        }
        watch.hears = if jobs.len() <= scheduler::FEW as usize { WakeOn::EachChange } else { WakeOn::TheEnd };
        if is_worker && area::write(scheduler::is_stuck) {
            return Err(Error::Stuck);
        }
        // Only a job that runs can wait for this session. Of one that begins, not all who follow it are woken.
        let may_run = watch.hears == WakeOn::TheEnd || jobs.iter().any(|job| job.state == State::Running);
        let look_at = may_run.then_some(look_at);
        // Others give processes back without telling, and a worker that goes does not tell whom it leaves stuck.
        let is_queued = jobs.iter().any(|job| job.state == State::Queued);
        let try_at = (is_queued && (is_worker || area::read(scheduler::may_lack_workers))).then_some(try_at);
        let until = look_at.into_iter().chain(deadline).chain(try_at).chain(reporter.due()).min();
        watch.wait(until.map(|until| until.saturating_duration_since(Instant::now())));
    }
}

/// The running jobs that this process waits for.
fn awaited_jobs() -> Vec<(i32, [u8; 16])> {
    area::read(|memory| registry::awaited_by(memory, session::pid()))
}

/// A job cannot wait for what ends only after it.
fn check_self_wait() -> Result<(), Error> {
    match awaited_jobs().iter().any(|(pid, _)| *pid == session::pid()) {
        true => Err(Error::FollowsItself),
        false => Ok(()),
    }
}

/// Checks whether a job that this session waits for waits for this session, which will never go on. True = it does, but
/// another one is to be told.
fn check_blocked(is_victim_fallback: bool) -> Result<bool, Error> {
    let mut is_victim_elsewhere = false;
    for (pid, uuid) in awaited_jobs().into_iter().filter(|(pid, _)| *pid != session::pid()) {
        let sql = area::read(|memory| {
            registry::find(memory, &uuid).iter().find_map(|found| registry::query_of(memory, found))
        });
        is_victim_elsewhere |= deadlock::check(&Awaited { pid, sql: &sql.unwrap_or_default() }, is_victim_fallback)?;
    }
    Ok(is_victim_elsewhere)
}

/// Waits until the final rows of jobs that have ended are in the log, for that is where they are read; not longer than
/// it takes to see that they cannot be written now.
pub fn wait_for_rows(watch: &mut Watch, deadline: Option<Instant>) {
    let patience = Instant::now() + Duration::from_secs(1);
    let until = deadline.map_or(patience, |deadline| deadline.min(patience));
    while watch.jobs().iter().any(LiveState::is_row_due) && Instant::now() < until {
        start::start_workers();
        watch.wait(Some(until.saturating_duration_since(Instant::now())));
    }
}

/// Tells how jobs end, and how far they are.
struct ProgressReporter<'a> {
    uuid: &'a [u8; 16],
    is_verbose: bool,
    /// State and attempts of each of a few jobs, as of the last look.
    seen: HashMap<[u8; 16], (State, u32)>,
    reported: HashMap<[u8; 16], (i32, Vec<u8>)>,
    /// The last line of progress, and when it was told, or when there was nothing to tell.
    told: String,
    told_at: Instant,
    /// There is another line, to be told later.
    is_due: bool,
}

impl<'a> ProgressReporter<'a> {
    fn new(uuid: &'a [u8; 16], is_verbose: bool) -> Self {
        ProgressReporter {
            uuid,
            is_verbose,
            seen: HashMap::new(),
            reported: HashMap::new(),
            told: String::new(),
            told_at: Instant::now(),
            is_due: false,
        }
    }

    /// A notice for each of a few jobs that has ended since the last look, and now and then a line of progress.
    fn tell(&mut self, jobs: &[LiveState]) {
        if !self.is_verbose {
            return;
        }
        if jobs.len() <= scheduler::FEW as usize {
            self.tell_each(jobs);
        }
        self.is_due = jobs.iter().any(|job| !job.state.is_final()) && progress(jobs) != self.told;
        if self.is_due && self.told_at.elapsed() >= TELL_EVERY {
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
        let views = RegistryView::default().jobs_of(Some(self.uuid), BatchFilter::All);
        for job in changed {
            if let Some(view) = views.iter().find(|view| view.uuid == job.uuid) {
                notice(&line_of(job, view));
            }
        }
    }

    /// A line of progress, if it says anything new.
    fn tell_progress(&mut self, jobs: &[LiveState]) {
        let line = progress(jobs);
        if self.is_verbose && line != self.told {
            notice(line.as_bytes());
            self.told = line;
            self.told_at = Instant::now();
        }
        self.is_due = false;
    }

    /// Returns the time at which there is something to tell although nothing may have changed.
    fn due(&self) -> Option<Instant> {
        self.is_due.then(|| self.told_at + TELL_EVERY)
    }
}

/// Returns how far jobs are, with a bar as that of `pg_background_batches`.
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

/// Returns what is told of a job: its number, its name or its query, how it has ended and after how long, and why.
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
    let mut line = [format!("job {} ", registry::ordinal_of(&job.uuid)).as_bytes(), &name, b" "].concat();
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
        line.extend(format!(" after {:.3} s", ended.saturating_sub(started) as f64 / 1e6).as_bytes());
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

/// Reports how far the job is that this process runs; elsewhere nothing.
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
