//! What runs in the session that launches jobs: the jobs that it has launched, and how it reads their results.

mod blocked;
mod launch;
mod manage;
mod request;
mod result;

pub use launch::{launch, DEFAULT_QUEUE_BYTES};
pub use manage::{
    follow, has_ended, launch_batch, left_behind, look, look_at, prune, read_jobs, report_progress, retry, states_of,
    stop, uuid_of, ExecType, Following, Tells,
};
use request::request;
pub use result::{detach, result};
