//! Jobs that were accepted, as files and rows keep them.

use crate::ffi::{alloc, area, session};
use crate::ids::{BatchId, DatabaseId, Epoch, JobId, RoleId};
use crate::registry::JobDetails;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// A job that was accepted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AcceptedJob {
    pub uuid: JobId,
    pub name: Option<Vec<u8>>,
    pub query: Vec<u8>,
    /// Options of its run: a JSON object.
    pub options: Option<Vec<u8>>,
    /// Attempts so far; in a file, of launches before this one.
    pub attempts: u32,
}

/// Properties that the jobs of a batch have in common.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AcceptedBatch {
    pub epoch: Epoch,
    pub database: DatabaseId,
    pub uuid: BatchId,
    /// The role whose rights its jobs have.
    pub owner: RoleId,
    /// The role that their worker logs in as.
    pub login: RoleId,
    pub owner_name: Vec<u8>,
    pub client: Vec<u8>,
    pub name: Option<Vec<u8>>,
    pub queued_at: Timestamp,
}

impl AcceptedBatch {
    /// Returns the batch of a job of this server.
    pub fn of_job(job: &JobDetails) -> Self {
        AcceptedBatch {
            epoch: area::epoch(),
            database: session::database(),
            uuid: job.batch.uuid,
            owner: job.batch.owner,
            login: job.batch.login,
            owner_name: alloc::copy(&job.owner_name),
            client: alloc::copy(&job.client),
            name: job.batch_name.as_deref().map(alloc::copy),
            queued_at: job.queued_at,
        }
    }
}

impl From<JobDetails> for AcceptedJob {
    fn from(job: JobDetails) -> Self {
        AcceptedJob {
            uuid: job.uuid,
            name: job.name,
            query: job.query,
            options: job.run_options.to_options(),
            attempts: job.now.attempts,
        }
    }
}

/// A job as its row says it until it ends.
pub struct NewRow {
    pub job: AcceptedJob,
    pub is_begun: bool,
}

impl From<JobDetails> for NewRow {
    fn from(job: JobDetails) -> Self {
        NewRow { is_begun: job.is_begun, job: job.into() }
    }
}
