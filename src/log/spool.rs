//! Batches that are accepted and not in the log's table yet, as files in the data directory.
//!
//! The caller's transaction cannot write a row that survives its rollback, and a worker may not be free for hours; a
//! file can be written by the caller, at once. A worker turns it into rows later. After a crash it is still there, and
//! tells that its jobs were accepted and never started.

use crate::ffi::file;
use crate::ids::{DatabaseId, Epoch, JobId};
use crate::log::accepted::{AcceptedBatch, AcceptedJob};
use crate::log::directory::{self, OrphanFiles};
use crate::log::file_format::{self, FileContent};
use crate::log::file_name::FileName;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;

/// A batch in a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spooled {
    pub head: AcceptedBatch,
    pub jobs: Vec<AcceptedJob>,
}

impl Spooled {
    /// Returns the uuid of its first job, which names its file: jobs of a batch that are launched again have the uuid
    /// of the batch.
    pub fn first(&self) -> JobId {
        self.jobs.first().map_or(self.head.uuid.job(0), |job| job.uuid)
    }
}

impl FileContent for Spooled {
    const KIND: &'static [u8; 4] = b"spol";
    const SUFFIX: &'static str = "";

    fn is_named(&self, name: &FileName) -> bool {
        (self.head.epoch, self.head.database, self.first().bytes()) == (name.epoch, name.database, name.key)
    }
}

fn name_of(epoch: Epoch, database: DatabaseId, first: &JobId) -> FileName {
    FileName::new(epoch, database, &first.bytes(), Spooled::SUFFIX)
}

/// Writes a batch down; when this returns it is on disk.
pub fn write(batch: &Spooled) -> io::Result<()> {
    let name = name_of(batch.head.epoch, batch.head.database, &batch.first());
    file::put(&name.path(), &file_format::encode(batch)).inspect_err(|_| name.remove())
}

/// Forgets a batch: it is in the table now, or was never launched.
pub fn remove(epoch: Epoch, database: DatabaseId, first: &JobId) {
    // A file that stays is seen to be in the table already.
    name_of(epoch, database, first).remove();
}

/// Returns the batches of this database that a server accepted that has died since, oldest first.
pub fn orphans(epoch: Epoch, database: DatabaseId) -> OrphanFiles<Spooled> {
    let mut files = directory::read_orphans::<Spooled>(epoch, database);
    files.readable.sort_by_key(|(_, batch)| batch.head.queued_at);
    files
}

/// Returns the same, with each job only in the last of its launches.
pub fn last_launches(epoch: Epoch, database: DatabaseId) -> Vec<Spooled> {
    let mut batches = orphans(epoch, database).contents();
    let mut seen = HashSet::new();
    batches.iter_mut().rev().for_each(|batch| batch.jobs.retain(|job| seen.insert(job.uuid)));
    batches
}
