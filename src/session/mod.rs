//! What runs in the session that launches jobs: the jobs that it has launched, and how it reads their results.

mod ahead;
mod blocked;
mod launch;
mod manage;
mod process;
mod request;
mod result;

pub use launch::{launch, DEFAULT_QUEUE_BYTES};
pub use manage::{
    follow, has_ended, has_lost_its_log, is_recorded, launch_batch, left_behind, look, prune, read_jobs,
    report_progress, retry, states_of, stop, uuid_of, Among, ExecType, Following, Sight, Tells,
};
use request::request;
pub use result::{detach, result};
