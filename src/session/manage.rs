//! Batches of jobs, from any session: launching, following, stopping, launching again.

use super::blocked::{self, Awaited};
use crate::error::{Error, Text};
use crate::ffi::interrupt::CancelHeld;
use crate::ffi::report::{self, Log};
use crate::ffi::typed_rows::{Cell, TypedRows};
use crate::ffi::{area, latch, process, role, session, spi, transaction};
use crate::job::manner::Manner;
use crate::job::registry::{self, Found, Header, JobView, Moment, NewBatch, NewJob, Place, Pulse, Start, State};
use crate::job::spec::{BatchSpec, JobSpec};
use crate::job::spool::{self, Left, Spooled, SpooledJob};
use crate::job::{catalog, log, pool};
use crate::protocol::{to_bytes, Report, Request};
use std::cell::Cell as Variable;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a session that waits for a first worker waits before it tries again to get one: others give processes back
/// without telling.
const WORKER_CHECK: Duration = Duration::from_millis(50);

/// How often a session that follows queued jobs tries to have workers started that there was no process for.
const RETRY: Duration = Duration::from_millis(500);

/// How long a launch that is not to wait for workers waits for those that it has started.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// How long a launch that is not to wait for workers gives those that have just ended a job, and how often it looks.
const SETTLING: Duration = Duration::from_secs(1);
const SETTLING_CHECK: Duration = Duration::from_millis(1);

/// Longest time between two looks whether the jobs that are followed wait for who follows them.
const LONGEST_PATIENCE: Duration = Duration::from_secs(10);

/// When a launch returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecType {
    /// As soon as the jobs are accepted and written down.
    Async,
    /// When all of them have ended.
    Sync,
}

impl ExecType {
    /// # Errors
    /// [`Error::ExecType`] (22023)
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        match text {
            b"async" => Ok(ExecType::Async),
            b"sync" => Ok(ExecType::Sync),
            _ => Err(Error::ExecType(Text::new(text))),
        }
    }
}

/// Accepts a batch; gives its uuid. When this returns, its jobs will run, whatever becomes of the caller's transaction,
/// and are written down; when it raises, none of them exists. `may_wait`: what finds no worker waits.
///
/// # Errors
/// 42501, 54000: the caller must not launch. [`Error::InRecovery`] (25006), [`Error::NoWorkers`] and
/// [`Error::TooFewWorkers`] (53000), [`Error::QueueFull`] (53400), [`Error::NotCommitted`] (55000).
pub fn launch_batch(spec: &BatchSpec, may_wait: bool) -> Result<[u8; 16], Error> {
    let uuid = new_uuid();
    let jobs: Vec<NewJob> = (1..)
        .zip(&spec.jobs)
        .map(|(ordinal, job)| NewJob {
            ordinal,
            query: &job.query,
            name: job.name.as_deref(),
            timeout: job.timeout,
            attempts: 0,
            max_attempts: job.max_attempts,
            retry_delay: job.retry_delay,
        })
        .collect();
    accept(uuid, spec, &jobs, may_wait, None)?;
    Ok(uuid)
}

/// A uuid of version 8 (RFC 9562, section 5.8): random, with zeros where its jobs have their numbers.
fn new_uuid() -> [u8; 16] {
    let mut uuid = registry::uuid_of(&area::random_bytes(), 0);
    uuid[6] = 0x80 | (uuid[6] & 0x0f);
    uuid[8] = 0x80 | (uuid[8] & 0x3f);
    uuid
}

fn accept(uuid: [u8; 16], spec: &BatchSpec, jobs: &[NewJob], may_wait: bool, run_as: Option<u32>) -> Result<(), Error> {
    if transaction::in_recovery() {
        return Err(Error::InRecovery);
    }
    let mut request = super::request()?;
    let owner = run_as.unwrap_or_else(role::current);
    if owner != role::current() {
        // Whoever asks for it: a job has the rights of its owner, and what the asking session has set is not the owner's.
        request = Request { login: owner, role: None, settings: Vec::new(), libraries: None, ..request };
    }
    if crate::guc::cap() == 0 {
        return Err(Error::NoWorkers);
    }
    if !is_visible() {
        return Err(Error::NotCommitted);
    }
    let owner_name = session::role_name(owner).ok_or(Error::RoleGone(owner))?;
    let client = spi::select(catalog::CLIENT_ADDRESS).concat();
    let (database, login) = (request.database, request.login);
    let new = NewBatch {
        uuid,
        database,
        login,
        owner,
        owner_name: &owner_name,
        client: &client,
        name: spec.name.as_deref(),
        request: &to_bytes(&request),
        is_sequential: spec.sequential,
        max_workers: spec.max_workers,
        stops_on_error: spec.stop_on_error,
        jobs,
    };
    let place = area::write(|memory| registry::add(memory, &new))?;
    let spooled = Spooled {
        epoch: area::epoch(),
        database,
        uuid,
        owner,
        owner_name: owner_name.clone(),
        client: client.clone(),
        name: spec.name.clone(),
        queued_at: process::now(),
        jobs: jobs
            .iter()
            .map(|job| SpooledJob {
                uuid: registry::uuid_of(&uuid, job.ordinal),
                name: job.name.or(spec.name.as_deref()).map(<[u8]>::to_vec),
                query: job.query.to_vec(),
                options: Manner {
                    sequential: spec.sequential,
                    max_workers: spec.max_workers,
                    stop_on_error: spec.stop_on_error,
                    timeout: job.timeout,
                    max_attempts: job.max_attempts - job.attempts,
                    retry_delay: job.retry_delay,
                }
                .to_options(),
            })
            .collect(),
    };
    let undo = || {
        area::write(|memory| registry::remove(memory, place));
        spool::remove(spooled.epoch, database, &spooled.first());
    };
    let begun = report::on_error(
        || {
            spool::write(&spooled).map_err(Error::Spooled)?;
            begin((place, &uuid), database, login, jobs.len(), may_wait)
        },
        undo,
    );
    begun.inspect_err(|_| undo())
}

/// Is the extension there for others, too? One that this transaction has created is not.
fn is_visible() -> bool {
    let xmin = spi::select(catalog::EXTENSION_XMIN).concat();
    let xmin = std::str::from_utf8(&xmin).ok().and_then(|xmin| xmin.parse().ok());
    xmin.is_some_and(|xmin| !transaction::is_own(xmin))
}

/// Opens the batch, and has workers started for it.
fn begin(
    (place, uuid): (Place, &[u8; 16]),
    database: u32,
    login: u32,
    jobs: usize,
    may_wait: bool,
) -> Result<(), Error> {
    if !may_wait {
        let starts = reserve(database, login, jobs)?;
        let mut registered = 0;
        for start in &starts {
            if !pool::register(*start) {
                break;
            }
            registered += 1;
        }
        if registered < starts.len() {
            // Those that came find nothing to do, and wait for other jobs.
            area::write(|memory| {
                starts.iter().skip(registered + 1).for_each(|start| registry::cannot_register(memory, *start));
            });
            let free = jobs - (starts.len() - registered);
            return Err(Error::TooFewWorkers { wanted: jobs, free });
        }
    }
    area::write(|memory| registry::open(memory, place));
    if !may_wait {
        pool::start_workers();
        return wait_for_begin(uuid);
    }
    loop {
        pool::start_workers();
        // Workers that there are see to the queue; only when there are none at all somebody must wait for one.
        if area::write(registry::is_attended) {
            return Ok(());
        }
        latch::wait(Some(WORKER_CHECK));
    }
}

/// Reserves workers for jobs that must not wait, or none.
fn reserve(database: u32, login: u32, jobs: usize) -> Result<Vec<Start>, Error> {
    let patience = Instant::now() + SETTLING;
    loop {
        let reserved = area::write(|memory| registry::reserve(memory, database, login, jobs));
        if reserved.is_ok()
            || Instant::now() >= patience
            || !area::write(|memory| registry::is_settling(memory, database, login, jobs))
        {
            return reserved;
        }
        latch::wait(Some(SETTLING_CHECK));
    }
}

/// Waits until all jobs of a batch run, for which workers have been started. They will, so a cancel waits as well.
fn wait_for_begin(uuid: &[u8; 16]) -> Result<(), Error> {
    let _held = CancelHeld::new();
    let patience = Instant::now() + START_PATIENCE;
    watched(uuid, || {
        while pulses(uuid, |_| true).iter().any(|job| job.state == State::Queued) && Instant::now() < patience {
            pool::start_workers();
            latch::wait(Some(WORKER_CHECK));
        }
        Ok(())
    })
}

/// May the caller see jobs of this owner?
fn rights_on(owner: u32) -> bool {
    let current = role::current();
    role::has_rights_of(current, owner) || role::reads_all_stats(current)
}

/// May the caller stop jobs of this owner? (signalfuncs.c, `pg_signal_backend`)
fn may_stop(owner: u32) -> bool {
    let current = role::current();
    role::has_rights_of(current, owner) || role::signals_backends(current) && !role::is_superuser(owner)
}

fn no_such_job(uuid: &[u8; 16]) -> Error {
    Error::NoSuchJob(Text::new(&format_uuid(uuid)))
}

/// A uuid as text.
fn format_uuid(uuid: &[u8; 16]) -> Vec<u8> {
    Uuid::from_bytes(*uuid).hyphenated().to_string().into_bytes()
}

/// The uuid of a batch's job.
pub fn uuid_of(batch: &[u8; 16], ordinal: u32) -> [u8; 16] {
    registry::uuid_of(batch, ordinal)
}

thread_local! {
    /// The batch that the query that runs is about: the views cannot tell their functions.
    static FOCUS: Variable<Option<[u8; 16]>> = const { Variable::new(None) };
}

/// Which batches of the registry are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    All,
    /// Those whose rows the reader's snapshot does not have.
    Unrecorded,
    /// Those of other databases.
    Elsewhere,
}

/// Are the rows of the batch in the log that the reader sees?
pub fn is_recorded(batch: &Header) -> bool {
    batch.recorded_by.is_some_and(transaction::is_visible)
}

/// The numbers of the batches in the registry that the caller may see and that `among` lets pass.
fn batches(uuid: Option<&[u8; 16]>, among: Among) -> HashSet<u64> {
    // Catalogs and snapshots are asked before the registry's lock is taken.
    let mut rights: HashMap<u32, bool> = HashMap::new();
    let mut is_wanted = |batch: &Header| {
        let is_among = match among {
            Among::All => true,
            Among::Unrecorded => !is_recorded(batch),
            Among::Elsewhere => batch.database != session::database(),
        };
        is_among && *rights.entry(batch.owner).or_insert_with(|| rights_on(batch.owner))
    };
    let headers = area::read(|memory| registry::headers(memory, uuid));
    headers.into_iter().filter(|batch| is_wanted(batch)).map(|batch| batch.number).collect()
}

/// Jobs in the registry that the caller may see; `uuid` = only this job, or those of this batch.
pub fn look(uuid: Option<&[u8; 16]>, among: Among) -> Vec<JobView> {
    let focus = FOCUS.get();
    let uuid = uuid.or(focus.as_ref());
    let wanted = batches(uuid, among);
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut jobs = area::read(|memory| registry::snapshot(memory, &wanted));
    if uuid.is_some_and(|uuid| uuid.last_chunk::<4>() != Some(&[0; 4])) {
        jobs.retain(|job| Some(&job.uuid) == uuid);
    }
    jobs
}

/// What one query sees of the registry: each batch as it was when the query first came to one of its jobs.
#[derive(Debug, Default)]
pub struct Sight {
    batches: HashMap<[u8; 16], HashMap<[u8; 16], Moment>>,
}

impl Sight {
    /// What a job is doing, if it is in the registry and the caller may see it.
    pub fn of(&mut self, uuid: &[u8; 16]) -> Option<&Moment> {
        let batch = registry::uuid_of(uuid, 0);
        let jobs = self.batches.entry(batch).or_insert_with(|| {
            let wanted = batches(Some(&batch), Among::All);
            area::read(|memory| registry::moments(memory, &wanted))
        });
        jobs.get(uuid)
    }
}

/// The states of a job, or of the jobs of a batch, as far as they are in the registry.
fn pulses(uuid: &[u8; 16], may: impl Fn(u32) -> bool) -> Vec<Pulse> {
    let found = area::read(|memory| registry::find(memory, uuid));
    let allowed: Vec<Found> = found.into_iter().filter(|found| may(found.owner)).collect();
    if allowed.is_empty() {
        return Vec::new();
    }
    area::read(|memory| registry::pulses(memory, uuid))
}

/// What jobs are doing: the process that runs them, and their state.
pub fn states_of(batch: &[u8; 16], jobs: &[[u8; 16]]) -> Vec<(Option<i32>, Vec<u8>)> {
    let live: HashMap<[u8; 16], Pulse> = pulses(batch, |_| true).into_iter().map(|pulse| (pulse.uuid, pulse)).collect();
    // What is not there any more is in the log.
    let logged: HashMap<[u8; 16], log::Known> = match jobs.iter().all(|job| live.contains_key(job)) {
        true => HashMap::new(),
        false => log::states(batch).into_iter().map(|known| (known.uuid, known)).collect(),
    };
    let state = |job| match (live.get(job), logged.get(job)) {
        (Some(pulse), _) => (pulse.pid, pulse.state.name().into()),
        (None, Some(known)) => (known.pid, known.state.clone()),
        // Deleted from the log in the meantime.
        (None, None) => (None, State::Succeeded.name().into()),
    };
    jobs.iter().map(state).collect()
}

/// The rows of `pg_background_monitor`: as things are now, whatever the caller's snapshot.
///
/// # Errors
/// [`Error::Declaration`] (42P13)
pub fn read_jobs(uuid: Option<&[u8; 16]>, rows: &mut TypedRows) -> Result<(), Error> {
    if log::is_readable() {
        let (sql, parameters) = log::jobs_query(uuid);
        let before = FOCUS.replace(uuid.copied());
        let outcome = report::on_error(|| rows.put_query(&sql, &parameters), || FOCUS.set(before));
        FOCUS.set(before);
        return outcome;
    }
    // Somebody has the log for himself: what has not ended is known all the same.
    let present = process::now();
    for job in look(uuid, Among::All) {
        let time = |at: Option<i64>| at.map_or(Cell::Null, Cell::Timestamp);
        let now = &job.now;
        let outcome = log::outcome_of(now);
        rows.put(&[
            now.pid.into(),
            Cell::Text(now.state.name().into()),
            Cell::Uuid(job.batch.uuid),
            Cell::Uuid(job.uuid),
            job.name.clone().into(),
            Cell::Text(job.query.clone()),
            outcome.result.into(),
            outcome.message.into(),
            now.queue_position.into(),
            time(now.started),
            time(now.ended),
            now.started.map_or(Cell::Null, |started| Cell::Interval(now.ended.unwrap_or(present) - started)),
        ])?;
    }
    Ok(())
}

/// Is the end of a job in the log, as things are now? What is gone from there has ended, too.
pub fn has_ended(uuid: &[u8; 16]) -> bool {
    logged_states(uuid, |_| true).iter().all(|(_, state)| state != b"queued" && state != b"lost")
}

/// Batches of this database that a server accepted that has died since, as far as the caller may see them.
pub fn left_behind() -> Vec<Left> {
    let left = spool::left_behind(area::epoch(), session::database());
    left.into_iter().filter(|left| rights_on(left.batch.owner)).collect()
}

/// What became of a job that was to be stopped.
#[derive(Debug, Clone)]
pub struct Stopped {
    pub uuid: [u8; 16],
    pub was: Vec<u8>,
    pub now: Vec<u8>,
}

/// Stops a job, or all jobs of a batch: queued ones at once, running ones are cancelled, and their worker ended if they
/// outlive `grace`.
///
/// # Errors
/// [`Error::NoSuchJob`] (42704), also for those of others.
pub fn stop(uuid: &[u8; 16], grace: Duration) -> Result<Vec<Stopped>, Error> {
    let in_log = logged_states(uuid, may_stop);
    let found: Vec<Found> =
        area::read(|memory| registry::find(memory, uuid)).into_iter().filter(|found| may_stop(found.owner)).collect();
    if found.is_empty() && in_log.is_empty() {
        return Err(no_such_job(uuid));
    }
    let stopper = session::role_name(role::current()).unwrap_or_default();
    watched(uuid, || {
        let stopped: Vec<([u8; 16], State)> = area::write(|memory| {
            let mut stopped = Vec::new();
            for found in
                registry::find(memory, uuid).into_iter().filter(|at| found.iter().any(|ok| ok.batch == at.batch))
            {
                for index in registry::of_batch(memory, &found) {
                    let was = registry::stop(memory, found.batch, index, &stopper);
                    stopped.push((registry::uuid_of_job(memory, found.batch, index), was));
                }
            }
            stopped
        });
        pool::start_workers();
        let running: HashSet<[u8; 16]> =
            stopped.iter().filter(|(_, was)| *was == State::Running).map(|(uuid, _)| *uuid).collect();
        if !running.is_empty() {
            wait_for_end(uuid, &running, grace);
        }
        let now: HashMap<[u8; 16], Vec<u8>> = logged_states(uuid, |_| true).into_iter().collect();
        let live: HashMap<[u8; 16], State> =
            pulses(uuid, |_| true).into_iter().map(|job| (job.uuid, job.state)).collect();
        let mut answer: Vec<Stopped> = stopped
            .iter()
            .map(|(uuid, was)| Stopped {
                uuid: *uuid,
                was: was.name().into(),
                now: live.get(uuid).map_or_else(
                    || now.get(uuid).cloned().unwrap_or_else(|| State::Stopped.name().into()),
                    |state| state.name().into(),
                ),
            })
            .collect();
        let answered: HashSet<[u8; 16]> = answer.iter().map(|stopped| stopped.uuid).collect();
        for (uuid, state) in &in_log {
            if !answered.contains(uuid) {
                answer.push(Stopped { uuid: *uuid, was: state.clone(), now: state.clone() });
            }
        }
        answer.sort_by_key(|stopped| stopped.uuid);
        Ok(answer)
    })
}

/// Waits until none of the jobs runs; ends the workers of those that still do after `grace`.
fn wait_for_end(uuid: &[u8; 16], jobs: &HashSet<[u8; 16]>, grace: Duration) {
    let deadline = Instant::now() + grace;
    // A worker that was told to end does so at its next safe point; one that has none is not waited for for ever.
    let mut terminated: Option<Instant> = None;
    loop {
        let running = |job: &Pulse| job.state == State::Running && jobs.contains(&job.uuid);
        if !pulses(uuid, |_| true).iter().any(running) {
            return;
        }
        let now = Instant::now();
        if let Some(at) = terminated {
            if now >= at + Duration::from_secs(10) {
                return;
            }
        } else if now >= deadline {
            area::write(|memory| registry::terminate_jobs(memory, jobs));
            terminated = Some(now);
        }
        let until = if terminated.is_some() { now + Duration::from_secs(1) } else { deadline };
        latch::wait(Some(until.saturating_duration_since(now)));
    }
}

/// Runs `body` while this process is woken by changes of the batch.
fn watched<T>(uuid: &[u8; 16], body: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    if !area::write(|memory| registry::watch(memory, uuid)) {
        return Err(Error::SharedMemory);
    }
    let own_place = area::read(|memory| registry::of_process(memory, session::pid()));
    let set_waiting = |is_waiting| {
        if let Some(index) = own_place {
            area::write(|memory| registry::set_waiting(memory, index, is_waiting));
        }
    };
    set_waiting(true);
    let done = || {
        area::write(|memory| registry::unwatch(memory, uuid));
        set_waiting(false);
    };
    let outcome = report::on_error(body, done);
    done();
    outcome
}

/// What is told while a batch is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tells {
    Nothing,
    /// How far it is.
    Progress,
    /// Each change, and how far it is.
    Changes,
}

/// How to follow a batch or a job.
#[derive(Debug, Clone, Copy)]
pub struct Following {
    pub tells: Tells,
    /// Longest wait; none = until all jobs have ended.
    pub timeout: Option<Duration>,
}

/// Follows a batch or a job until all has ended.
///
/// # Errors
/// [`Error::NoSuchJob`] (42704), [`Error::Stuck`] (53000).
pub fn follow(uuid: &[u8; 16], following: Following) -> Result<(), Error> {
    if pulses(uuid, rights_on).is_empty() {
        return match logged_states(uuid, rights_on).is_empty() {
            true => Err(no_such_job(uuid)),
            false => Ok(()),
        };
    }
    let deadline = following.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let is_job = area::read(|memory| registry::of_process(memory, session::pid())).is_some();
    let mut patience = session::deadlock_timeout();
    watched(uuid, || {
        let mut teller = Teller::new(*uuid, following.tells);
        let mut look_at = Instant::now() + patience;
        let mut try_at = Instant::now() + RETRY;
        loop {
            let jobs = pulses(uuid, |_| true);
            teller.tell(&jobs);
            if Instant::now() >= try_at {
                pool::start_workers();
                try_at = Instant::now() + RETRY;
            }
            if Instant::now() >= look_at {
                check_blocked(&jobs)?;
                // What was no deadlock so far may become one, but seldom does.
                patience = (2 * patience).min(LONGEST_PATIENCE);
                look_at = Instant::now() + patience;
            }
            if jobs.iter().all(|job| job.state.is_final()) {
                return wait_for_rows(uuid, deadline);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(());
            }
            if is_job && area::write(registry::is_stuck) {
                return Err(Error::Stuck);
            }
            // Only a job that runs can wait for this session.
            let look_at = jobs.iter().any(|job| job.state == State::Running).then_some(look_at);
            // Others give processes back without telling, and a worker that goes does not tell whom it leaves stuck.
            let is_queued = jobs.iter().any(|job| job.state == State::Queued);
            let try_at = (is_queued && (is_job || area::read(registry::is_starved))).then_some(try_at);
            let until = look_at.into_iter().chain(deadline).chain(try_at).min();
            latch::wait(until.map(|until| until.saturating_duration_since(Instant::now())));
        }
    })
}

/// Does a job that this session waits for wait for this session, which will never go on?
fn check_blocked(jobs: &[Pulse]) -> Result<(), Error> {
    for job in jobs.iter().filter(|job| job.state == State::Running) {
        if let Some(pid) = job.pid {
            let sql = area::read(|memory| {
                registry::find(memory, &job.uuid).iter().find_map(|found| registry::query_of(memory, found))
            });
            let sql = sql.unwrap_or_default();
            blocked::check(&Awaited { pid, sql: &sql })?;
        }
    }
    Ok(())
}

/// Waits until the final rows of jobs that have ended are in the log, for that is where they are read; not longer than
/// it takes to see that they cannot be written now.
fn wait_for_rows(uuid: &[u8; 16], deadline: Option<Instant>) -> Result<(), Error> {
    let patience = Instant::now() + Duration::from_secs(1);
    let until = deadline.map_or(patience, |deadline| deadline.min(patience));
    let is_due = |job: &Pulse| job.state.is_final() && !job.is_logged;
    while pulses(uuid, |_| true).iter().any(is_due) && Instant::now() < until {
        pool::start_workers();
        latch::wait(Some(until.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// Tells what changes.
struct Teller {
    uuid: [u8; 16],
    tells: Tells,
    seen: HashMap<[u8; 16], (State, u32)>,
    progress: HashMap<[u8; 16], (i32, Vec<u8>)>,
    told: String,
}

impl Teller {
    fn new(uuid: [u8; 16], tells: Tells) -> Self {
        Teller { uuid, tells, seen: HashMap::new(), progress: HashMap::new(), told: String::new() }
    }

    /// A notice for each job whose state is another one than before, and a line of progress.
    fn tell(&mut self, jobs: &[Pulse]) {
        if self.tells == Tells::Nothing {
            return;
        }
        let is_first = self.seen.is_empty();
        self.tell_gone(jobs);
        for job in jobs {
            let now = (job.state, job.attempts);
            let before = self.seen.insert(job.uuid, now);
            if let Some((percent, message)) = &job.progress {
                let told = self.progress.insert(job.uuid, (*percent, message.clone()));
                if told.as_ref() != job.progress.as_ref() {
                    let text = [format!("{percent}% ").as_bytes(), message].concat();
                    self.tell_state(&job.uuid, text.trim_ascii_end());
                }
            }
            if before != Some(now) && !(is_first && job.state == State::Queued) {
                let pid = job.pid.filter(|_| job.state == State::Running);
                let pid = pid.map_or(String::new(), |pid| format!(" (PID {pid})"));
                self.tell_state(&job.uuid, format!("{}{pid}", job.state.name()).as_bytes());
            }
        }
        let ended = self.seen.values().filter(|(state, _)| state.is_final()).count();
        let running = self.seen.values().filter(|(state, _)| *state == State::Running).count();
        let total = self.seen.len().max(1);
        let line = format!("progress: {ended}/{total} jobs ended ({}%), {running} running", 100 * ended / total);
        if line != self.told {
            notice(line.as_bytes());
            self.told = line;
        }
    }

    /// What has ended and is written is not in the registry any more.
    fn tell_gone(&mut self, jobs: &[Pulse]) {
        let live: HashSet<[u8; 16]> = jobs.iter().map(|job| job.uuid).collect();
        let is_open = |(uuid, (state, _)): (&[u8; 16], &(State, u32))| {
            (!live.contains(uuid) && !state.is_final()).then_some(*uuid)
        };
        let gone: Vec<[u8; 16]> = self.seen.iter().filter_map(is_open).collect();
        if gone.is_empty() {
            return;
        }
        let states: HashMap<[u8; 16], Vec<u8>> = logged_states(&self.uuid, |_| true).into_iter().collect();
        for uuid in gone {
            self.tell_state(&uuid, states.get(&uuid).map(Vec::as_slice).unwrap_or_default());
            self.seen.insert(uuid, (State::Succeeded, 0));
        }
    }

    fn tell_state(&self, uuid: &[u8; 16], state: &[u8]) {
        if self.tells == Tells::Changes {
            notice(&[format!("job {}: ", Uuid::from_bytes(*uuid).hyphenated()).as_bytes(), state].concat());
        }
    }
}

fn notice(message: &[u8]) {
    let report = Report { level: report::NOTICE, message: message.to_vec(), ..Report::default() };
    report::emit(&report, Log::Here);
}

/// Jobs of a uuid that are in the log, and their states there, as things are now; those of owners that `may` lets pass.
fn logged_states(uuid: &[u8; 16], may: impl Fn(u32) -> bool) -> Vec<([u8; 16], Vec<u8>)> {
    log::states(uuid).into_iter().filter(|known| may(known.owner)).map(|known| (known.uuid, known.state)).collect()
}

/// Launches the jobs of a batch that have failed, were stopped or lost once more, or one such job, in the manner of their
/// first launch.
///
/// # Errors
/// [`Error::NoSuchJob`] (42704), [`Error::NothingToRetry`] (55000), those of [`launch_batch`].
pub fn retry(uuid: &[u8; 16]) -> Result<Vec<[u8; 16]>, Error> {
    let current = role::current();
    let is_there = !pulses(uuid, |owner| role::has_rights_of(current, owner)).is_empty();
    if is_there {
        // What has just been stopped is to be launched, too.
        watched(uuid, || wait_for_rows(uuid, None))?;
    }
    let states = log::states(uuid);
    let own: Vec<_> = states.into_iter().filter(|known| role::has_rights_of(current, known.owner)).collect();
    if own.is_empty() && !is_there {
        return Err(no_such_job(uuid));
    }
    // What has ended and is written only lingers there.
    let live: HashSet<[u8; 16]> =
        pulses(uuid, |_| true).into_iter().filter(|job| !job.is_logged).map(|job| job.uuid).collect();
    let wanted: Vec<[u8; 16]> = own
        .iter()
        .filter(|known| {
            !live.contains(&known.uuid) && [b"failed".as_slice(), b"stopped", b"lost"].contains(&known.state.as_slice())
        })
        .map(|known| known.uuid)
        .collect();
    // The jobs of a batch have one owner.
    let owner = own.first().map(|known| known.owner);
    let rows = log::to_repeat(&wanted);
    let manners: Vec<(BatchSpec, JobSpec)> =
        rows.iter().map(|row| BatchSpec::from_kept(row.options.as_deref())).collect::<Result<_, Error>>()?;
    let jobs: Vec<NewJob> = rows
        .iter()
        .zip(&manners)
        .map(|(row, (_, manner))| NewJob {
            ordinal: row.uuid.last_chunk::<4>().map_or(0, |last| u32::from_be_bytes(*last)),
            query: &row.query,
            name: row.name.as_deref(),
            timeout: manner.timeout,
            attempts: row.attempts,
            max_attempts: row.attempts.saturating_add(manner.max_attempts),
            retry_delay: manner.retry_delay,
        })
        .collect();
    let (Some((spec, _)), Some(row)) = (manners.first(), rows.first()) else {
        return Err(Error::NothingToRetry(Text::new(&format_uuid(uuid))));
    };
    let spec = BatchSpec { name: row.batch_name.clone(), ..spec.clone() };
    accept(registry::uuid_of(uuid, 0), &spec, &jobs, true, owner)?;
    Ok(rows.iter().map(|row| row.uuid).collect())
}

/// Deletes rows of jobs that ended longer ago than `older_than` microseconds: everybody's for the owner of the extension,
/// else those of the caller. Gives their number.
pub fn prune(older_than: i64) -> i64 {
    let current = role::current();
    let owner = spi::select(catalog::EXTENSION_OWNER).concat();
    let owner: Option<u32> = std::str::from_utf8(&owner).ok().and_then(|owner| owner.parse().ok());
    let is_all = owner.is_some_and(|owner| role::has_rights_of(current, owner));
    role::as_cluster_owner(|| log::prune(older_than, (!is_all).then_some(current)))
}

/// Says how far the job is that this process runs; elsewhere nothing.
///
/// # Errors
/// [`Error::Progress`] (22023)
pub fn report_progress(percent: i32, message: &[u8]) -> Result<(), Error> {
    if !(0..=100).contains(&percent) {
        return Err(Error::Progress);
    }
    let message = session::clip(message, registry::MESSAGE_BYTES);
    if let Some(index) = area::read(|memory| registry::of_process(memory, session::pid())) {
        area::write(|memory| registry::report_progress(memory, index, percent, message));
    }
    Ok(())
}
