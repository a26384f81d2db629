//! Decisions about the jobs in the registry: how many workers there may be and for which pools, what a worker does
//! next, and what happens to jobs and workers that end.
//!
//! Every decision is made under the registry's lock. Nothing here waits, except for the server to start a process
//! ([`start`]), and nothing here reads the catalogs.

pub mod capacity;
pub mod claim;
pub mod completion;
pub mod coverage;
pub mod dispatch;
pub mod fork_probe;
pub mod job_order;
pub mod prestart;
pub mod slots;
pub mod start;
pub mod stop;
pub mod worker_lifecycle;

pub use crate::scheduler::capacity::{free_a_process, is_settling, may_prestart, plan_starts, reserve};
pub use crate::scheduler::claim::{
    batch_uuid, begin_job, claim, claimed_uuids, first_job_uuid, forget_rows, release_claim, rows_inserted, undo_task,
    Claim, ClaimingWorker, Task,
};
pub use crate::scheduler::completion::{
    finish_attempt, forget_database, mark_uncancellable, next_log_try, rows_written, unlogged_jobs, Finish,
    UnloggedJob, FEW,
};
pub use crate::scheduler::coverage::{coverage, is_stuck, pool_peers, Coverage, PoolPeers};
pub use crate::scheduler::dispatch::{
    accept_attached_jobs, add_worker, assign_job, attached_job_done, drop_assignment, has_idle_worker, holds_job,
    is_result_pending, is_worker_there, refuse_assignments, release_result, request_exit, will_be_assignable, LoginKey,
    NewWorker, SlotId,
};
pub use crate::scheduler::fork_probe::{
    check_overdue_starts, fail_overdue_jobs, may_lack_workers, probe_started, register_probe, start_status,
    OverdueAction, StartStatus, PROBE, RESTART_AFTER,
};
pub use crate::scheduler::prestart::{add_prestarted, evict_for_another, take_prestarted, terminate_prestarted};
pub use crate::scheduler::slots::{
    assigned_at, is_one_exiting, lacks_processes, slot_of_process, stop_accepting, terminate_worker, SlotReservation,
};
pub use crate::scheduler::stop::{stop_jobs, stop_request, terminate_jobs};
pub use crate::scheduler::worker_lifecycle::{
    become_idle, cancel_successor, exit_and_reserve_successor, exit_if_idle, has_own_work, keep_for_restart, may_exit,
    registration_failed, release_reservation, report_progress, reserve_successor, will_be_restarted, worker_died,
    worker_registered, worker_started, Arrival, Handover, Idleness, Refusal,
};
