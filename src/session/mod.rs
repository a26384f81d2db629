//! Part that runs in the session that launches jobs: the jobs that it has launched, and how it reads their results.

mod ahead;
mod blocked;
mod launch;
mod manage;
mod process;
mod request;
mod result;

pub use launch::{launch, DEFAULT_QUEUE_BYTES};
pub use manage::{
    delete, end_of, follow, has_lost_its_log, is_in_log_only, is_recorded, launch_batch, left_behind, prune, read_jobs,
    report_progress, retry, states_of, stop, uuid_of, visible, Among, ExecType, Following, Sight, Standing,
};
use request::request;
pub use result::{detach, result};
