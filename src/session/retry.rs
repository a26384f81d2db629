//! Jobs that have ended: launches them again, and deletes their rows.

use crate::error::{DbText, Error};
use crate::ffi::{role, spi, transaction};
use crate::ids::{AnyId, JobId, RoleId};
use crate::log::LoggedJob;
use crate::registry::{NewJob, State};
use crate::session::access::{no_such_job, reaches_superusers};
use crate::session::monitor::{wait_for_rows, with_watch};
use crate::session::submit::{submit, Identity};
use crate::session::visibility::live_states;
use crate::spec::{BatchSpec, JobSpec};
use crate::{log, queries};
use std::collections::HashMap;
use std::time::Duration;

/// Launches the jobs of a batch that failed, were stopped or were lost again, or one such job, with the options of
/// their first launch. Returns their uuids.
///
/// # Errors
/// [`Error::NoSuchJob`] (42704), [`Error::OfSuperuser`] (42501), [`Error::NothingToRetry`] and [`Error::NotLogged`]
/// (55000), those of [`crate::session::submit::launch_batch`].
pub fn retry(id: AnyId) -> Result<Vec<JobId>, Error> {
    if transaction::in_recovery() {
        return Err(Error::InRecovery);
    }
    let current = role::current();
    let is_there = !live_states(id, |owner| role::has_rights_of(current, owner)).is_empty();
    if is_there {
        // Jobs that have just been stopped are launched again, too: waits for their rows.
        with_watch(id, |watch| {
            wait_for_rows(watch, None);
            Ok(())
        })?;
    }
    let states = log::states(id)?;
    let own: Vec<_> = states.into_iter().filter(|known| role::has_rights_of(current, known.owner)).collect();
    if own.is_empty() && !is_there {
        return Err(no_such_job(id));
    }
    if own.iter().any(|known| !reaches_superusers(known.owner, known.login)) {
        return Err(Error::OfSuperuser);
    }
    // A job whose final row is written stays in the registry for a moment only.
    let live: HashMap<JobId, State> =
        live_states(id, |_| true).into_iter().filter(|job| !job.is_logged).map(|job| (job.uuid, job.state)).collect();
    let has_ended_badly = |known: &&LoggedJob| {
        !live.contains_key(&known.uuid) && [b"failed".as_slice(), b"stopped", b"lost"].contains(&known.state.as_slice())
    };
    let wanted: Vec<JobId> = own.iter().filter(has_ended_badly).map(|known| known.uuid).collect();
    // The jobs of a batch have one owner.
    let run_as = own.first().map(|known| Identity { owner: known.owner, login: known.login });
    let rows = log::jobs_to_retry(&wanted);
    let specs: Vec<(BatchSpec, JobSpec)> = rows
        .iter()
        .map(|row| BatchSpec::from_stored_options(row.job.options.as_deref()))
        .collect::<Result<_, Error>>()?;
    let jobs: Vec<NewJob> = rows
        .iter()
        .zip(&specs)
        .map(|(row, (_, run_options))| NewJob {
            ordinal: row.job.uuid.ordinal(),
            query: &row.job.query,
            name: row.job.name.as_deref(),
            timeout: run_options.timeout,
            attempts: row.job.attempts,
            max_attempts: row.job.attempts.saturating_add(run_options.max_attempts),
            retry_delay: run_options.retry_delay,
        })
        .collect();
    let (Some((spec, _)), Some(row)) = (specs.first(), rows.first()) else {
        let ended = live.iter().find(|(_, state)| matches!(state, State::Failed | State::Stopped));
        return Err(match ended {
            Some((job, _)) => Error::NotLogged(DbText::new(job.to_string().as_bytes())),
            None => Error::NothingToRetry(DbText::new(id.to_string().as_bytes())),
        });
    };
    let spec = BatchSpec { name: row.batch_name.clone(), ..spec.clone() };
    submit(id.batch(), &spec, &jobs, true, run_as)?;
    Ok(rows.iter().map(|row| row.job.uuid).collect())
}

/// Deletes rows of jobs that ended longer ago than `older_than`: those of all roles for the owner of the
/// extension, otherwise those of the caller. Returns their number.
pub fn prune(older_than: Duration) -> i64 {
    let current = role::current();
    let owner = spi::select(queries::EXTENSION_OWNER).concat();
    let owner: Option<RoleId> = std::str::from_utf8(&owner).ok().and_then(|owner| owner.parse().ok());
    let is_all = owner.is_some_and(|owner| role::has_rights_of(current, owner));
    log::prune(older_than, (!is_all).then_some(current))
}

/// Deletes the row of a job that has ended and whose owner's rights the caller has. Returns `false` if no row was
/// deleted.
pub fn delete(uuid: &JobId) -> bool {
    let current = role::current();
    log::delete(uuid, |owner| role::has_rights_of(current, owner))
}
