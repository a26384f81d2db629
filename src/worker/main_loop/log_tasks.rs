//! Rows of the log that a worker writes for the queue, apart from those of its own jobs.

use crate::ffi::area;
use crate::log::{outcome_file, spool, FinalRow};
use crate::registry::BatchPtr;
use crate::worker::pool_worker::PoolWorker;
use crate::{log, registry, scheduler};

impl PoolWorker {
    /// Writes the rows of a batch that was accepted.
    pub fn record(&mut self, batch: BatchPtr) {
        let (uuid, first) =
            area::read(|memory| (scheduler::batch_uuid(memory, batch), scheduler::first_job_uuid(memory, batch)));
        let recorded = if self.reset().is_continue() {
            log::in_own_transaction(true, || log::locate().then(|| log::insert_batch(batch, uuid))).ok().flatten()
        } else {
            None
        };
        if recorded.is_none() && !self.is_extension_there() {
            return self.forget_database();
        }
        // Before a session can launch its jobs again, which has a file of the same name.
        if recorded.is_some() {
            spool::remove(area::epoch(), self.database, &first);
        }
        area::write(|memory| scheduler::rows_inserted(memory, batch, uuid, recorded));
    }

    /// Writes final rows that are still to be written.
    pub fn write_log(&mut self, batch: BatchPtr) {
        let Some(recorded) = area::read(|memory| registry::log_location(memory, batch)) else {
            return self.record(batch);
        };
        let (uuid, ended) =
            area::read(|memory| (scheduler::batch_uuid(memory, batch), scheduler::unlogged_jobs(memory, batch)));
        let rows: Vec<FinalRow> = ended.iter().map(log::row_of).collect();
        let outcome = (self.reset().is_continue())
            .then(|| log::in_own_transaction(true, || log::write_rows(recorded.log, &rows)).ok())
            .flatten();
        if outcome == Some(false) {
            area::write(|memory| scheduler::forget_rows(memory, batch, uuid, recorded.log));
            return self.record(batch);
        }
        let written = outcome.is_some();
        if !written && !self.is_extension_there() {
            return self.forget_database();
        }
        let indexes: Option<Vec<u32>> = written.then(|| ended.iter().map(|ended| ended.index).collect());
        if written {
            let (epoch, begun) = (area::epoch(), ended.iter().filter(|ended| ended.attempts > 0));
            begun.for_each(|ended| outcome_file::remove(epoch, self.database, &ended.uuid));
        }
        area::write(|memory| scheduler::rows_written(memory, batch, uuid, indexes.as_deref()));
    }
}
