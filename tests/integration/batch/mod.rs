//! Batches of queued jobs: `pg_background_launch_num`, the log, the views, and what follows, stops and retries jobs.

mod caller;
mod extension_update;
mod job_states;
mod launch;
mod log;
mod log_coverage;
mod monitor;
mod options;
mod relaunch_races;
mod retry;
mod shared_memory;
mod shared_server;
mod sql_split;
mod stop;
mod update_from_0_1;
mod views;
