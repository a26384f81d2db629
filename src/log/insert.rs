//! Rows of jobs that were accepted and have not ended, written for the first time.

use crate::ffi::heap::Access;
use crate::ffi::{alloc, area, transaction};
use crate::log::rows::{NewRow, Rows};
use crate::log::spool::Spooled;
use crate::log::{lock_log, open_log};
use crate::registry;
use crate::registry::{BatchPtr, JobDetails, Recorded};

/// Properties that the rows of a batch have in common.
pub struct BatchColumns {
    pub epoch: i64,
    pub uuid: [u8; 16],
    pub owner: u32,
    pub login: u32,
    pub owner_name: Vec<u8>,
    pub client: Vec<u8>,
    pub name: Option<Vec<u8>>,
    pub queued_at: i64,
}

/// Returns what the rows of a batch of this server have in common.
pub(super) fn batch_of(job: &JobDetails) -> BatchColumns {
    BatchColumns {
        epoch: area::epoch(),
        uuid: job.batch.uuid,
        owner: job.batch.owner,
        login: job.batch.login,
        owner_name: alloc::copy(&job.owner_name),
        client: alloc::copy(&job.client),
        name: job.batch_name.as_deref().map(alloc::copy),
        queued_at: job.queued_at,
    }
}

/// Returns what the row of a job of this server says of it until it ends.
pub(super) fn row_of(job: JobDetails) -> NewRow {
    NewRow {
        uuid: job.uuid,
        name: job.name,
        query: job.query,
        options: job.run_options.to_options(),
        attempts: job.now.attempts,
        is_begun: job.is_begun,
    }
}

/// Writes the rows of a batch: of its jobs that have no final row. None of them has been launched again: that is
/// possible only when they are written. Inside [`crate::log::in_own_transaction`].
pub fn insert_batch(place: BatchPtr, uuid: &[u8; 16]) -> Recorded {
    let held = lock_log(true);
    let mut jobs = area::read(|memory| registry::jobs_of(memory, place, uuid));
    // Of a batch that is recorded again, for the log was dropped and made again.
    jobs.retain(|job| !job.now.is_logged);
    if let Some(batch) = jobs.first().map(batch_of) {
        open_log(held, Access::Write, |rows| jobs.into_iter().for_each(|job| rows.accept(&batch, row_of(job), false)));
    }
    Recorded { log: held.log, by: transaction::current_id() }
}

/// Writes the rows of a batch that a server accepted that has died, unless they are there: those of this launch or of
/// one after it.
pub(super) fn insert_spooled(rows: &Rows, batch: &Spooled) {
    let head = BatchColumns {
        epoch: batch.epoch,
        uuid: batch.uuid,
        owner: batch.owner,
        login: batch.login,
        owner_name: alloc::copy(&batch.owner_name),
        client: alloc::copy(&batch.client),
        name: batch.name.as_deref().map(alloc::copy),
        queued_at: batch.queued_at,
    };
    for job in &batch.jobs {
        let job = NewRow {
            uuid: job.uuid,
            name: job.name.as_deref().map(alloc::copy),
            query: alloc::copy(&job.query),
            options: job.options.as_deref().map(alloc::copy),
            attempts: job.attempts,
            is_begun: false,
        };
        rows.accept(&head, job, true);
    }
}
