//! Session side: launches, follows, stops and retries jobs, and reads their results and states.

mod access;
mod deadlock;
mod launch;
mod launch_request;
mod monitor;
mod prestart;
mod result;
mod retry;
mod start_worker;
mod stop;
mod submit;
mod visibility;

pub use crate::session::launch::{launch, DEFAULT_QUEUE_BYTES};
pub use crate::session::monitor::{follow, report_progress, Following};
pub use crate::session::result::{detach, result};
pub use crate::session::retry::{delete, prune, retry};
pub use crate::session::stop::stop;
pub use crate::session::submit::{launch_batch, ExecType};
pub use crate::session::visibility::{
    end_of, has_lost_its_log, is_in_log_only, is_recorded, orphaned_batches, read_jobs, states_of, visible,
    BatchFilter, QueuedRowStatus, RegistryView,
};
