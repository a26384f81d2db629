//! Workers: how many there are, which of them stay for the next job, and what they keep of the last one.

mod attached_job_reset;
mod cap;
mod connections;
mod fork_failures;
mod idle_waits;
mod idle_worker_eviction;
mod prestart;
mod queued_job_reset;
mod reuse;
mod unwanted_results;
mod utility_commands;
