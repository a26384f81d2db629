//! Visibility of jobs: rights on them, and their states in the registry and in the log.

use crate::error::Error;
use crate::ffi::datum::SqlValue;
use crate::ffi::set_returning::TypedRows;
use crate::ffi::{area, process, report, role, session, transaction};
use crate::ids::{AnyId, BatchId, Epoch, JobId, RoleId};
use crate::log::outcome_file::CrashTrace;
use crate::log::spool::Spooled;
use crate::log::{outcome_file, End, RowState};
use crate::protocol::Outcome;
use crate::registry::{BatchSummary, FoundJobs, JobDetails, JobStatus, LiveState, State};
use crate::{log, registry};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};

/// Returns whether the caller may see jobs of this owner.
pub fn rights_on(owner: RoleId) -> bool {
    let current = role::current();
    role::has_rights_of(current, owner) || role::reads_all_stats(current)
}

/// Returns the part of a job's outcome that the caller may see. A role that only reads statistics sees neither the rows
/// nor what an error says about them.
pub fn visible(owner: RoleId, state: State, outcome: Outcome) -> Outcome {
    if role::has_rights_of(role::current(), owner) {
        return outcome;
    }
    // The message of a stopped job is the extension's own: it names the role that stopped the job.
    let message = outcome.message.filter(|_| state == State::Stopped);
    Outcome { result: None, message, detail: None, hint: None, context: None, ..outcome }
}

thread_local! {
    /// Batch that the running query is about: the views cannot pass it to their functions.
    static MONITORED_BATCH: Cell<Option<AnyId>> = const { Cell::new(None) };
}

/// Batches of the registry that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchFilter {
    All,
    /// Batches of this database whose rows the reader's snapshot does not have.
    Unrecorded,
    /// Batches of other databases.
    Elsewhere,
}

/// Returns whether the rows of the batch, which is of this database, are in a log that does not exist any more, because
/// the extension was created again.
pub fn has_lost_its_log(batch: &BatchSummary) -> bool {
    batch.recorded.is_some_and(|rows| rows.log != log::log_oid())
}

/// Returns whether the rows of the batch are in the log that the reader sees.
pub fn is_recorded(batch: &BatchSummary) -> bool {
    batch.recorded.is_some_and(|rows| transaction::is_visible(rows.by)) && !has_lost_its_log(batch)
}

/// Returns the numbers of the batches in the registry that the caller may see and that `among` accepts.
fn batches(id: Option<BatchId>, filter: BatchFilter) -> HashSet<u64> {
    // Catalogs and snapshots are read before the registry's lock is taken.
    let mut rights: HashMap<RoleId, bool> = HashMap::new();
    let mut is_wanted = |batch: &BatchSummary| {
        let passes = match filter {
            BatchFilter::All => true,
            BatchFilter::Unrecorded => batch.database == session::database() && !is_recorded(batch),
            BatchFilter::Elsewhere => batch.database != session::database(),
        };
        passes && *rights.entry(batch.owner).or_insert_with(|| rights_on(batch.owner))
    };
    let summaries = area::read(|memory| registry::batch_summaries(memory, id));
    summaries.into_iter().filter(|batch| is_wanted(batch)).map(|batch| batch.number).collect()
}

/// View of the registry for one query: each batch as it was when the query first read one of its jobs, but no job as
/// running that did not run when the query first read the registry. So there are never more running jobs than workers.
#[derive(Debug, Default)]
pub struct RegistryView {
    running: Option<registry::Running>,
    batches: HashMap<BatchId, HashMap<JobId, JobStatus>>,
    left: outcome_file::Orphans,
}

impl RegistryView {
    /// Returns the jobs in the registry that the caller may see.
    pub fn jobs(&mut self, filter: BatchFilter) -> Vec<JobDetails> {
        self.jobs_of(MONITORED_BATCH.get(), filter)
    }

    /// Returns the jobs in the registry that the caller may see. `id`: only this job, or the jobs of this batch.
    pub fn jobs_of(&mut self, id: Option<AnyId>, filter: BatchFilter) -> Vec<JobDetails> {
        let wanted = batches(id.map(AnyId::batch), filter);
        if wanted.is_empty() {
            return Vec::new();
        }
        let mut jobs = area::read(|memory| {
            let running = self.running.get_or_insert_with(|| registry::running(memory));
            registry::snapshot(memory, &wanted, Some(running))
        });
        if let Some(uuid) = id.and_then(AnyId::job) {
            jobs.retain(|job| job.uuid == uuid);
        }
        jobs
    }

    /// Returns the status of a job, or `None` if it is not in the registry or the caller may not see it.
    pub fn of(&mut self, uuid: &JobId) -> Option<&JobStatus> {
        let batch = uuid.batch();
        let RegistryView { running, batches: known, .. } = self;
        let jobs = known.entry(batch).or_insert_with(|| {
            let wanted = batches(Some(batch), BatchFilter::All);
            area::read(|memory| {
                let running = running.get_or_insert_with(|| registry::running(memory));
                registry::statuses(memory, &wanted, running)
            })
        });
        jobs.get(uuid)
    }

    /// Forgets a batch that has changed since.
    fn forget(&mut self, uuid: &JobId) {
        self.batches.remove(&uuid.batch());
    }

    /// Returns the trace of a job that a dead server had started, or `None` if there is none or the caller may not see
    /// it.
    pub fn trace(&mut self, epoch: Epoch, uuid: &JobId) -> Option<CrashTrace> {
        let CrashTrace { attempt, end } = self.left.of(epoch, uuid).filter(|trace| rights_on(trace.attempt.owner))?;
        Some(CrashTrace { attempt, end: end.map(|end| seen(attempt.owner, end)) })
    }
}

/// Returns the states of a job, or of the jobs of a batch, as far as they are in the registry and `may` accepts their
/// owner.
pub fn live_states(id: AnyId, may: impl Fn(RoleId) -> bool) -> Vec<LiveState> {
    let found = area::read(|memory| registry::find(memory, id));
    let allowed: Vec<FoundJobs> = found.into_iter().filter(|found| may(found.owner)).collect();
    if allowed.is_empty() {
        return Vec::new();
    }
    area::read(|memory| registry::live_states(memory, id))
}

/// Returns the process and the state of each of these jobs. The state is `None` if the row was deleted meanwhile, or if
/// it is in the log only, which another session has locked. `id`: that of the batch, or of the only job.
pub fn states_of(id: AnyId, jobs: &[JobId]) -> Vec<(Option<i32>, Option<Vec<u8>>)> {
    let live: HashMap<JobId, LiveState> =
        live_states(id, |_| true).into_iter().map(|live_state| (live_state.uuid, live_state)).collect();
    // Jobs that are not in the registry any more are in the log, which is read last.
    let logged: HashMap<JobId, log::LoggedJob> = match jobs.iter().all(|job| live.contains_key(job)) {
        true => HashMap::new(),
        false => log::states(id).unwrap_or_default().into_iter().map(|known| (known.uuid, known)).collect(),
    };
    let state = |job| match (live.get(job), logged.get(job)) {
        (Some(live_state), _) => (live_state.pid, Some(live_state.state.name().into())),
        (None, Some(known)) => (known.pid, Some(known.state.clone())),
        (None, None) => (None, None),
    };
    jobs.iter().map(state).collect()
}

/// Writes the rows of `pg_background_monitor`: the jobs as they are now, whatever the caller's snapshot.
///
/// # Errors
/// [`Error::Declaration`] (42P13)
pub fn read_jobs(id: Option<AnyId>, rows: &mut TypedRows) -> Result<(), Error> {
    if log::is_readable() {
        let (sql, parameters) = log::jobs_query(id);
        let before = MONITORED_BATCH.replace(id);
        let outcome = report::on_error(|| rows.put_query(&sql, &parameters), || MONITORED_BATCH.set(before));
        MONITORED_BATCH.set(before);
        return outcome;
    }
    // Another session has locked the log: jobs that have not ended are known all the same.
    let present = process::now();
    for job in RegistryView::default().jobs_of(id, BatchFilter::All) {
        let now = &job.now;
        let outcome = visible(now.owner, now.state, log::outcome_of(now));
        rows.put(&[
            now.pid.into(),
            SqlValue::Text(now.state.name().into()),
            SqlValue::Uuid(job.batch.uuid.bytes()),
            SqlValue::Uuid(job.uuid.bytes()),
            job.name.clone().into(),
            SqlValue::Text(job.query.clone()),
            outcome.result.into(),
            outcome.message.into(),
            now.queue_position.into(),
            now.started.into(),
            now.ended.into(),
            now.started.map_or(SqlValue::Null, |started| {
                SqlValue::Interval(now.ended.unwrap_or(present).micros_since(started))
            }),
        ])?;
    }
    Ok(())
}

/// Status of a job whose row is queued in the snapshot of the query.
pub enum QueuedRowStatus {
    /// Status of the job in the registry.
    Live(JobStatus),
    /// End of the job, as the log has it by now.
    Ended(End),
    /// The server that accepted the job has not run it to its end, and does not know it any more.
    Lost,
    /// The row was deleted since, or the caller may not see it.
    Gone,
}

/// Maximum number of searches for a job that is launched again meanwhile.
const LOOKS: usize = 10;

impl RegistryView {
    /// Returns the status of a job of this server whose row is queued in the snapshot of the query.
    pub fn status_of_queued_row(&mut self, uuid: &JobId) -> QueuedRowStatus {
        for _ in 0..LOOKS {
            let live = self.of(uuid).cloned();
            if let Some(job) = live.as_ref().filter(|job| !is_in_log_only(job)) {
                return QueuedRowStatus::Live(job.clone());
            }
            match (log::row_state(uuid), live) {
                (Some(RowState::Ended { owner, end }), _) if rights_on(owner) => {
                    return QueuedRowStatus::Ended(seen(owner, *end))
                }
                (_, Some(job)) => return QueuedRowStatus::Live(job),
                (Some(RowState::Open { owner }), None) if rights_on(owner) => self.forget(uuid),
                _ => return QueuedRowStatus::Gone,
            }
        }
        QueuedRowStatus::Lost
    }
}

/// Returns whether the outcome of a job that has ended is in its row only.
pub fn is_in_log_only(job: &JobStatus) -> bool {
    job.is_logged && job.outcome.is_none()
}

/// Returns the end of a job, or `None` if the log does not have it yet or the caller may not see it.
pub fn end_of(uuid: &JobId) -> Option<End> {
    match log::row_state(uuid) {
        Some(RowState::Ended { owner, end }) if rights_on(owner) => Some(seen(owner, *end)),
        _ => None,
    }
}

fn seen(owner: RoleId, end: End) -> End {
    End { outcome: visible(owner, end.state, end.outcome), ..end }
}

/// Returns the batches of this database that a dead server had accepted, as far as the caller may see them.
pub fn orphaned_batches() -> Vec<Spooled> {
    log::orphaned_batches().into_iter().filter(|batch| rights_on(batch.head.owner)).collect()
}

/// Jobs and their states.
type LoggedStates = Vec<(JobId, Vec<u8>)>;

/// Returns the jobs of a uuid that are in the log and that `may` accepts, with their current states there.
///
/// # Errors
/// [`Error::LogLocked`] (55P03)
pub fn logged_states(id: AnyId, may: impl Fn(&log::LoggedJob) -> bool) -> Result<LoggedStates, Error> {
    Ok(log::states(id)?.into_iter().filter(&may).map(|known| (known.uuid, known.state)).collect())
}
