//! What runs in the session that launches jobs: the jobs that it has launched, and how it reads their results.

mod blocked;
mod launch;
mod result;
mod table;

pub use launch::{launch, DEFAULT_QUEUE_BYTES};
pub use result::{detach, result};
