//! Deletion of rows: by age, and by hand.

use crate::ffi::heap::Access;
use crate::ffi::{process, transaction};
use crate::guc;
use crate::ids::{JobId, RoleId};
use crate::log::access::{locate, lock_log, open_for_caller, open_log};
use crate::log::recovery::is_orphaned;
use std::time::Duration;

/// Number of rows that a worker deletes at once: its queue waits for that.
const PRUNE_LIMIT: i64 = 10_000;

/// Deletes rows of jobs that ended longer ago than `log_retention`. Returns `false` if there are more of them. Inside
/// [`crate::log::in_own_transaction`].
pub fn prune_old() -> bool {
    let Some(retention) = guc::log_retention().filter(|_| locate()) else { return true };
    let limit = process::now() - retention;
    // What another deletes now is gone without this one.
    let pruned =
        open_log(lock_log(true), Access::Write, |rows| rows.prune(limit, None, Some(PRUNE_LIMIT), false, is_orphaned));
    pruned.is_none_or(|count| count < PRUNE_LIMIT)
}

/// Deletes rows of jobs that ended longer ago than `older_than`, of one owner or of all. Returns how many.
pub fn prune(older_than: Duration, owner: Option<RoleId>) -> i64 {
    transaction::require_writable(c"pg_background_prune()");
    let limit = process::now() - older_than;
    open_for_caller(|rows| rows.prune(limit, owner, None, true, is_orphaned)).unwrap_or(0)
}

/// Deletes the row of a job that has ended, if `may` lets its owner's be deleted. Returns `false` if it stays, or is
/// not there.
pub fn delete(uuid: &JobId, may: impl FnOnce(RoleId) -> bool) -> bool {
    !is_orphaned(uuid) && open_for_caller(|rows| rows.delete(uuid, may)).unwrap_or(false)
}
