//! Rows of jobs that were accepted and have not ended, written for the first time.

use crate::ffi::heap::Access;
use crate::ffi::{area, transaction};
use crate::ids::BatchId;
use crate::log::accepted::{AcceptedBatch, NewRow};
use crate::log::access::{lock_log, open_log};
use crate::registry;
use crate::registry::{BatchPtr, Recorded};

/// Writes the rows of a batch: of its jobs that have no final row. None of them has been launched again: that is
/// possible only when they are written. Inside [`crate::log::in_own_transaction`].
pub fn insert_batch(batch: BatchPtr, id: BatchId) -> Recorded {
    let held = lock_log(true);
    let mut jobs = area::read(|memory| registry::jobs_of(memory, batch, id));
    // Of a batch that is recorded again, for the log was dropped and made again.
    jobs.retain(|job| !job.now.is_logged);
    if let Some(head) = jobs.first().map(AcceptedBatch::of_job) {
        open_log(held, Access::Write, |rows| {
            jobs.into_iter().for_each(|job| rows.accept(&head, NewRow::from(job), false));
        });
    }
    Recorded { log: held.log, by: transaction::current_id() }
}
