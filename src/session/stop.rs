//! Stop requests from any session.

use crate::error::Error;
use crate::ffi::{area, role, session, transaction};
use crate::ids::{AnyId, JobId, RoleId};
use crate::registry::{FoundJobs, LiveState, State};
use crate::scheduler::start;
use crate::session::access::{no_such_job, reaches_superusers};
use crate::session::monitor::{with_watch, Watch};
use crate::session::visibility::{live_states, logged_states, states_of};
use crate::{registry, scheduler};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Returns whether the caller may stop jobs of this owner, in a worker that has logged in as `login` (signalfuncs.c,
/// `pg_signal_backend`).
fn may_stop(owner: RoleId, login: RoleId) -> bool {
    let current = role::current();
    (role::has_rights_of(current, owner) || role::signals_backends(current)) && reaches_superusers(owner, login)
}

/// Returns whether the caller has the rights of the owner of a job, or of a batch.
fn has_rights_on(id: AnyId) -> bool {
    let may = |owner| role::has_rights_of(role::current(), owner);
    !live_states(id, may).is_empty() || logged_states(id, |known| may(known.owner)).is_ok_and(|jobs| !jobs.is_empty())
}

/// Result of the stop request for a job.
#[derive(Debug, Clone)]
pub struct Stopped {
    pub uuid: JobId,
    /// State of the job before the request.
    pub was: Vec<u8>,
    /// State of the job after the request, or `None` if its row was deleted meanwhile.
    pub now: Option<Vec<u8>>,
}

/// Stops a job, or all jobs of a batch: queued jobs at once; running jobs are cancelled, and their workers terminated
/// if they still run after `grace`.
///
/// # Errors
/// [`Error::NoSuchJob`] (42704), also for jobs of other roles; [`Error::OfSuperuser`] (42501);
/// [`Error::StopInRecovery`] (25006).
pub fn stop(id: AnyId, grace: Duration) -> Result<Vec<Stopped>, Error> {
    if transaction::in_recovery() {
        return Err(Error::StopInRecovery);
    }
    let in_log = logged_states(id, |known| may_stop(known.owner, known.login));
    let found: Vec<FoundJobs> = area::read(|memory| registry::find(memory, id))
        .into_iter()
        .filter(|found| may_stop(found.owner, found.login))
        .collect();
    // Jobs in the registry can be stopped even if another session has locked the log.
    let in_log = if found.is_empty() { in_log? } else { in_log.unwrap_or_default() };
    if found.is_empty() && in_log.is_empty() {
        return Err(match has_rights_on(id) {
            true => Error::OfSuperuser,
            false => no_such_job(id),
        });
    }
    // Rights are read from the catalogs, which must not be done under the registry's lock.
    let is_allowed = |batch| found.iter().any(|found| found.batch == batch);
    let role = session::role_name(role::current()).unwrap_or_default();
    with_watch(id, |watch| {
        let stopped = area::write(|memory| scheduler::stop_jobs(memory, id, is_allowed, &role));
        start::start_workers();
        let running: HashSet<JobId> =
            stopped.iter().filter(|(_, was)| *was == State::Running).map(|(uuid, _)| *uuid).collect();
        if !running.is_empty() {
            wait_for_end(watch, &running, grace);
        }
        let uuids: Vec<JobId> = stopped.iter().map(|(uuid, _)| *uuid).collect();
        let now = states_of(id, &uuids);
        let mut answer: Vec<Stopped> = stopped
            .iter()
            .zip(now)
            .map(|((uuid, was), (_, now))| Stopped { uuid: *uuid, was: was.name().into(), now })
            .collect();
        let answered: HashSet<JobId> = answer.iter().map(|stopped| stopped.uuid).collect();
        for (uuid, state) in &in_log {
            if !answered.contains(uuid) {
                answer.push(Stopped { uuid: *uuid, was: state.clone(), now: Some(state.clone()) });
            }
        }
        answer.sort_by_key(|stopped| stopped.uuid);
        Ok(answer)
    })
}

/// Waits until none of the jobs runs; terminates the workers of those that still run after `grace`.
fn wait_for_end(watch: &mut Watch, jobs: &HashSet<JobId>, grace: Duration) {
    let deadline = Instant::now() + grace;
    // A worker that was told to exit does so at its next safe point; the wait for one that has none is limited.
    let mut terminated: Option<Instant> = None;
    loop {
        let running = |job: &LiveState| job.state == State::Running && jobs.contains(&job.uuid);
        if !watch.jobs().iter().any(running) {
            return;
        }
        let now = Instant::now();
        if let Some(at) = terminated {
            if now >= at + Duration::from_secs(10) {
                return;
            }
        } else if now >= deadline {
            area::write(|memory| scheduler::terminate_jobs(memory, jobs));
            terminated = Some(now);
        }
        let until = if terminated.is_some() { now + Duration::from_secs(1) } else { deadline };
        watch.wait(Some(until.saturating_duration_since(now)));
    }
}
