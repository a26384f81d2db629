//! Submission of batches: a launch, until its rows are inserted or a worker will insert them.

use crate::error::Error;
use crate::ffi::interrupt::CancelHeld;
use crate::ffi::random;
use crate::ffi::{alloc, area, latch, report, role, session, spi, transaction};
use crate::ids::{BatchId, DatabaseId, RoleId};
use crate::log::spool::{self, Spooled};
use crate::log::{AcceptedBatch, AcceptedJob};
use crate::protocol::{to_bytes, Request};
use crate::registry::{BatchPtr, NewBatch, NewJob, State};
use crate::scheduler::{start, Coverage, SlotReservation};
use crate::session::launch_request::request;
use crate::session::monitor::with_watch;
use crate::spec::options::RunOptions;
use crate::spec::BatchSpec;
use crate::time::Timestamp;
use crate::{queries, registry, scheduler};
use std::time::{Duration, Instant};

/// Interval at which a session that waits for a first worker tries again to start one: nothing wakes it when others
/// give processes back.
const WORKER_CHECK: Duration = Duration::from_millis(50);

/// Maximum time that a launch whose jobs must not wait for workers waits for those that it has started.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that a launch whose jobs must not wait for workers waits for those that have just ended a job, and interval at
/// which it checks them.
const SETTLING: Duration = Duration::from_secs(1);
const SETTLING_CHECK: Duration = Duration::from_millis(1);

/// Number of copies of a batch in memory while it is accepted: for the registry, for its spool file, and as that file,
/// which grows.
const ACCEPTED_COPIES: usize = 5;
/// Maximum bytes that a job takes beside its texts.
const JOB_BYTES: usize = 512;

/// Time at which a launch returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecType {
    /// The launch returns as soon as the jobs are accepted and on disk.
    Async,
    /// The launch returns when all jobs have ended.
    Sync,
}

impl ExecType {
    /// Parses the SQL argument.
    ///
    /// # Errors
    /// [`Error::ExecType`] (22023)
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        match text {
            b"async" => Ok(ExecType::Async),
            b"sync" => Ok(ExecType::Sync),
            _ => Err(Error::ExecType(session::shown(text))),
        }
    }
}

/// Accepts a batch and returns its uuid. When this returns, its jobs will run, whatever happens to the caller's
/// transaction, and are on disk; when it raises, none of them exists. `may_wait`: jobs that find no worker wait for
/// one.
///
/// # Errors
/// 42501 or 54000 if the caller must not launch. [`Error::InRecovery`] (25006), [`Error::NoWorkers`] and
/// [`Error::TooFewWorkers`] (53000), [`Error::QueueFull`] (53400), [`Error::NotCommitted`] (55000).
pub fn launch_batch(spec: &BatchSpec, may_wait: bool) -> Result<BatchId, Error> {
    let uuid = BatchId::of_random(random::random_bytes());
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
    submit(uuid, spec, &jobs, may_wait, None)?;
    Ok(uuid)
}

/// Identity of the jobs of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Role whose rights the jobs have.
    pub owner: RoleId,
    /// Role that launched the jobs, perhaps after SET ROLE.
    pub login: RoleId,
}

/// Accepts a batch: checks it, adds it to the registry, spools it, and waits until its rows are inserted or a worker
/// will insert them. `run_as` is the identity of the first launch, when it may differ from the caller's; `may_wait` is
/// whether jobs may wait for workers.
pub fn submit(
    uuid: BatchId,
    spec: &BatchSpec,
    jobs: &[NewJob],
    may_wait: bool,
    run_as: Option<Identity>,
) -> Result<(), Error> {
    let (request, owner) = request_as(run_as, spec)?;
    check_acceptable(spec, jobs, may_wait)?;
    let owner_name = session::role_name(owner).ok_or(Error::RoleGone(owner))?;
    let client = spi::select(queries::CLIENT_ADDRESS).concat();
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
        is_confined: request.is_confined,
        jobs,
    };
    // A session that waits for slots may be terminated meanwhile: so it waits before there is anything to undo.
    let starts = if may_wait { Vec::new() } else { reserve_workers(database, login, jobs.len())? };
    let batch =
        area::write(|memory| registry::add_batch(memory, &new)).inspect_err(|_| release_reservations(&starts))?;
    let spooled = spooled(&new, spec, area::read(|memory| registry::accepted_at(memory, batch)));
    let undo = || {
        // A batch that a worker has begun goes on, as after an answer that does not arrive.
        if area::write(|memory| registry::discard_unstarted_batch(memory, batch, uuid)) {
            spool::remove(spooled.head.epoch, database, &spooled.first());
        }
    };
    let begun = report::on_error(
        || {
            spool::write(&spooled).map_err(Error::Spooled).inspect_err(|_| release_reservations(&starts))?;
            if !may_wait {
                start(starts, database, login, jobs.len())?;
            }
            await_insert((batch, &uuid), may_wait)
        },
        undo,
    );
    begun.inspect_err(|_| undo())
}

/// Returns the request of a batch, and the role whose rights its jobs have.
///
/// # Errors
/// [`Error::InRecovery`] (25006); those of a caller that must not launch (42501, 54000).
fn request_as(run_as: Option<Identity>, spec: &BatchSpec) -> Result<(Request, RoleId), Error> {
    if transaction::in_recovery() {
        return Err(Error::InRecovery);
    }
    let mut request = request()?;
    let current = Identity { owner: role::current(), login: request.login };
    let Identity { owner, .. } = run_as.unwrap_or(current);
    if run_as.is_some_and(|wanted| wanted != current) {
        // A job has the rights of its owner, whichever session launches it again. The settings of the calling session
        // are not the owner's, nor is its login, to which RESET ROLE leads.
        request = Request { login: owner, role: None, settings: Vec::new(), libraries: None, ..request };
    }
    request.is_confined |= spec.is_confined;
    Ok((request, owner))
}

/// Checks that the batch can be accepted, and that there is memory for it in this process.
///
/// # Errors
/// [`Error::FewerAllowed`] (53000), [`Error::NoWorkers`] (53000), [`Error::NotCommitted`] (55000)
fn check_acceptable(spec: &BatchSpec, jobs: &[NewJob], may_wait: bool) -> Result<(), Error> {
    let allowed = if spec.sequential { 1 } else { spec.max_workers.map_or(usize::MAX, |workers| workers as usize) };
    if !may_wait && jobs.len() > allowed {
        return Err(Error::FewerAllowed { wanted: jobs.len(), allowed });
    }
    if crate::guc::cap() == 0 {
        return Err(Error::NoWorkers);
    }
    if !is_visible() {
        return Err(Error::NotCommitted);
    }
    let bytes = |job: &NewJob| job.query.len() + job.name.map_or(0, <[u8]>::len);
    alloc::ensure(ACCEPTED_COPIES * jobs.iter().map(|job| bytes(job) + JOB_BYTES).sum::<usize>());
    Ok(())
}

/// Returns the batch as its spool file has it.
fn spooled(new: &NewBatch, spec: &BatchSpec, queued_at: Timestamp) -> Spooled {
    let options = |job: &NewJob| RunOptions {
        sequential: spec.sequential,
        max_workers: spec.max_workers,
        stop_on_error: spec.stop_on_error,
        timeout: job.timeout,
        max_attempts: job.max_attempts - job.attempts,
        retry_delay: job.retry_delay,
        is_confined: new.is_confined,
    };
    let job = |job: &NewJob| AcceptedJob {
        uuid: new.uuid.job(job.ordinal),
        name: job.name.or(new.name).map(<[u8]>::to_vec),
        query: alloc::copy(job.query),
        options: options(job).to_options(),
        attempts: job.attempts,
    };
    let head = AcceptedBatch {
        epoch: area::epoch(),
        database: new.database,
        uuid: new.uuid,
        owner: new.owner,
        login: new.login,
        owner_name: new.owner_name.to_vec(),
        client: new.client.to_vec(),
        name: spec.name.clone(),
        queued_at,
    };
    Spooled { head, jobs: new.jobs.iter().map(job).collect() }
}

/// Returns whether other transactions can see the extension: not if this one has created it.
fn is_visible() -> bool {
    let xmin = spi::select(queries::EXTENSION_XMIN).concat();
    let xmin = std::str::from_utf8(&xmin).ok().and_then(|xmin| xmin.parse().ok());
    xmin.is_some_and(|xmin| !transaction::is_own(xmin))
}

/// Registers the workers that were reserved for these jobs, in addition to idle ones.
///
/// # Errors
/// [`Error::TooFewWorkers`] (53000): other sessions were faster, or the server has no processes for them.
fn start(mut starts: Vec<SlotReservation>, database: DatabaseId, login: RoleId, jobs: usize) -> Result<(), Error> {
    // Workers that were idle then may have something to do by now.
    let others = jobs - starts.len();
    let more = area::write(|memory| scheduler::reserve(memory, database, login, others));
    starts.extend(more.inspect_err(|_| release_reservations(&starts))?);
    let count = starts.iter().take_while(|start| start::register(**start)).count();
    if count == starts.len() {
        return Ok(());
    }
    // Workers that have started find nothing to do, and wait for other jobs.
    release_reservations(&starts[count..]);
    Err(Error::TooFewWorkers { wanted: jobs, free: jobs - (starts.len() - count) })
}

/// Releases slots that were reserved, and starts other workers that may have been refused because of them.
fn release_reservations(starts: &[SlotReservation]) {
    if !starts.is_empty() {
        area::write(|memory| starts.iter().for_each(|start| scheduler::release_reservation(memory, *start)));
        start::start_workers();
    }
}

/// Opens the batch, and waits until its jobs are covered by workers.
fn await_insert((batch, uuid): (BatchPtr, &BatchId), may_wait: bool) -> Result<(), Error> {
    area::write(|memory| registry::open_batch(memory, batch));
    start::start_workers();
    if !may_wait {
        return await_begin(uuid);
    }
    // Workers that exist take jobs from the queue; only if there are none at all, this session must wait for one.
    let current_coverage = || area::write(|memory| scheduler::coverage(memory, batch, *uuid));
    if current_coverage() == Coverage::Covered {
        return Ok(());
    }
    // A worker that yields takes a moment. It exits because a session waits for that here.
    let began = Instant::now();
    with_watch((*uuid).into(), |watch| loop {
        let waited = began.elapsed();
        match current_coverage() {
            Coverage::Covered => return Ok(()),
            Coverage::Uncertain if waited > START_TIMEOUT => return Ok(()),
            Coverage::Uncertain | Coverage::Uncovered => {}
        }
        watch.wait(Some(if waited < WORKER_CHECK { SETTLING_CHECK } else { WORKER_CHECK }));
        start::start_workers();
    })
}

/// Reserves workers for jobs that must not wait, or none.
fn reserve_workers(database: DatabaseId, login: RoleId, jobs: usize) -> Result<Vec<SlotReservation>, Error> {
    let deadline = Instant::now() + SETTLING;
    loop {
        let reserved = area::write(|memory| scheduler::reserve(memory, database, login, jobs));
        if reserved.is_ok()
            || Instant::now() >= deadline
            || !area::write(|memory| scheduler::is_settling(memory, database, login, jobs))
        {
            return reserved;
        }
        latch::wait(Some(SETTLING_CHECK));
    }
}

/// Waits until all jobs of a batch run, for which workers have been started. They will run, so a cancel waits as well.
fn await_begin(uuid: &BatchId) -> Result<(), Error> {
    let _held = CancelHeld::new();
    let deadline = Instant::now() + START_TIMEOUT;
    with_watch((*uuid).into(), |watch| {
        while watch.jobs().iter().any(|job| job.state == State::Queued) && Instant::now() < deadline {
            start::start_workers();
            watch.wait(Some(WORKER_CHECK));
        }
        Ok(())
    })
}
