//! Rows of jobs that were accepted and have not ended, written for the first time.

use super::rows::{Job, Rows};
use super::{hold, open};
use crate::ffi::{area, transaction};
use crate::job::registry::{self, JobView, Place, Recorded};
use crate::job::spool::Spooled;

/// What the rows of a batch have in common.
pub struct Batch<'a> {
    pub epoch: i64,
    pub uuid: [u8; 16],
    pub owner: u32,
    pub login: u32,
    pub owner_name: &'a [u8],
    pub client: &'a [u8],
    pub name: Option<&'a [u8]>,
    pub queued_at: i64,
}

/// Returns what the row of a job of this server says of it until it ends.
pub(super) fn parts_of(job: &JobView) -> (Batch<'_>, Job) {
    let batch = Batch {
        epoch: area::epoch(),
        uuid: job.batch.uuid,
        owner: job.batch.owner,
        login: job.batch.login,
        owner_name: &job.owner_name,
        client: &job.client,
        name: job.batch_name.as_deref(),
        queued_at: job.queued_at,
    };
    let job = Job {
        uuid: job.uuid,
        name: job.name.clone(),
        query: job.query.clone(),
        options: job.manner.to_options(),
        attempts: job.now.attempts,
        is_begun: job.is_begun,
    };
    (batch, job)
}

/// Writes the rows of a batch: of its jobs that have no final row. None of them has been launched again: that is possible
/// only when they are written. Inside [`super::in_own_transaction`].
pub fn record(place: Place, uuid: &[u8; 16]) -> Recorded {
    let held = hold(true);
    let mut jobs = area::read(|memory| registry::jobs_of(memory, place, uuid));
    // Of a batch that is recorded again, for the log was dropped and made again.
    jobs.retain(|job| !job.now.is_logged);
    open(held, |rows| {
        for job in &jobs {
            let (batch, job) = parts_of(job);
            rows.accept(&batch, &job, false);
        }
    });
    Recorded { log: held.log, by: transaction::current_id() }
}

/// Writes the rows of a batch that a server accepted that has died, unless they are there: those of this launch or of one
/// after it.
pub(super) fn recover(rows: &Rows, batch: &Spooled) {
    let head = Batch {
        epoch: batch.epoch,
        uuid: batch.uuid,
        owner: batch.owner,
        login: batch.login,
        owner_name: &batch.owner_name,
        client: &batch.client,
        name: batch.name.as_deref(),
        queued_at: batch.queued_at,
    };
    for job in &batch.jobs {
        let job = Job {
            uuid: job.uuid,
            name: job.name.clone(),
            query: job.query.clone(),
            options: job.options.clone(),
            attempts: job.attempts,
            is_begun: false,
        };
        rows.accept(&head, &job, true);
    }
}
