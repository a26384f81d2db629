//! The durable log: what is written into it, and when.
//!
//! Rows are written by workers, straight into the log: no code of others runs. What cannot be written now is written
//! later; the registry knows it meanwhile, and outcome files tell of it after a crash.

mod accepted;
mod access;
pub mod attempt_file;
mod directory;
mod end;
mod file_format;
mod file_name;
mod insert;
pub mod outcome_file;
mod outcome_file_0_1_0;
mod prune;
mod reader;
mod recovery;
mod rows;
pub mod spool;
mod writer;

pub use crate::log::accepted::{AcceptedBatch, AcceptedJob};
pub use crate::log::access::{databases, fingerprint, in_own_transaction, is_empty, locate, log_oid};
pub use crate::log::directory::remove_dropped_databases;
pub use crate::log::end::{outcome_of, row_of, stopped, End, FinalRow};
pub use crate::log::insert::insert_batch;
pub use crate::log::prune::{delete, prune, prune_old};
pub use crate::log::reader::{is_readable, jobs_query, jobs_to_retry, row_state, states, LoggedJob, RowState};
pub use crate::log::recovery::{import_orphans, orphaned_batches, remove_unknown, store_begun, store_end};
pub use crate::log::rows::{end_cells, outcome_cells};
pub use crate::log::writer::{mark_started, write_rows, write_with_job};
