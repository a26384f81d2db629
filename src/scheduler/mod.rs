//! Decisions about the jobs in the registry: how many workers there may be and for whom, what a worker does next, and
//! what becomes of jobs and workers that end.
//!
//! Everything is decided under the registry's lock; nothing here waits but for the server to start a process
//! ([`start`]), and nothing here talks to the catalogs.

pub mod capacity;
pub mod claim;
pub mod completion;
pub mod dispatch;
pub mod fork_probe;
pub mod job_order;
pub mod prestart;
pub mod start;
pub mod worker_lifecycle;

pub use crate::scheduler::capacity::{
    attendance, company, has_room_ahead, is_one_going, is_settling, is_stuck, make_room, plan, reserve, Attendance,
    Company, Start,
};
pub use crate::scheduler::claim::{
    begin, claim, forget_rows, recorded, undo, uuid, uuid_of_first, uuids, withdraw, Claim, Seeker, Task,
};
pub use crate::scheduler::completion::{
    deafen, ended, finish, forget_database, next_try, stop, written, Ended, Finish, FEW,
};
pub use crate::scheduler::dispatch::{
    close, give, has_errand, has_idle, has_job, is_there, is_unread, join, offer, refuse_more, release, retire, served,
    take_back, Newcomer, SlotId,
};
pub use crate::scheduler::fork_probe::{
    coming, look_late, may_lack_workers, probe_came, refuse_jobs, register_probe, Coming, Late, PROBE, RESTART_AFTER,
};
pub use crate::scheduler::prestart::{add_ahead, dismiss_ahead, make_room_ahead, take_ahead};
pub use crate::scheduler::worker_lifecycle::{
    arrive, cannot_register, died, dismiss, give_up, hand_over, has_own_work, idle, is_starved, leave_idle, may_go,
    of_process, recall, register, report_progress, reserve_successor, starts_again, stays_on, stopping, terminate_jobs,
    Arrival, Refusal, Succession,
};
