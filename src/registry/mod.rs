//! Registry of the jobs of the whole server, in shared memory: batches, jobs, pools, worker slots.
//!
//! A batch is in the registry from its acceptance until the final rows of all its jobs are in the log, and every
//! statement sees them. All access is under one lock; no function of the registry waits or reads the catalogs.

pub mod batches;
pub mod counters;
pub mod layout;
pub mod lists;
pub mod outcomes;
pub mod pools;
pub mod ready_lists;
pub mod reported_files;
pub mod root;
pub mod snapshot;
pub mod starved_launches;
pub mod stopped_by;
pub mod unregistered;
pub mod watchers;

pub use crate::registry::batches::{
    add_batch, discard_unstarted_batch, open_batch, unwatch, unwatch_all, NewBatch, NewJob,
};
pub use crate::registry::layout::{BatchPtr, Reason, State, WakeOn, MESSAGE_BYTES};
pub use crate::registry::reported_files::is_first_report;
pub use crate::registry::snapshot::{
    accepted_at, batch_summaries, find, is_pending, job_of, jobs_of, live_states, log_location, query_of, request,
    running, snapshot, statuses, uuid_of_job, BatchSummary, FoundJobs, JobDetails, JobStatus, LiveState, Recorded,
    Running, RunningJob,
};
pub use crate::registry::watchers::{arm, awaited_by, is_armed, unfollow, watch, Follower};
