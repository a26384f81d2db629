//! Ends that nobody chose: processes and servers that are terminated, killed, shut down, and what is known afterwards.

mod attached_jobs;
mod batches;
mod lost_processes;
mod orphaned_files;
mod outcome_files;
mod reused_workers;
mod shutdown;
mod unreadable_files;
