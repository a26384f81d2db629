//! A lock that holds jobs up until a test lets them go on.

use pg_background_mgr_tests::{wait_until, Session};

/// Statement that waits until the barrier is open.
pub const WAIT: &str = "select pg_advisory_xact_lock_shared(4711)";

/// Condition that waits until the barrier is open, then is true.
pub const OPENED: &str = "pg_advisory_xact_lock_shared(4711)::text = ''";

/// A closed barrier in the database of its session.
pub struct Barrier {
    session: Session,
}

impl Barrier {
    /// Closes the barrier of a database.
    #[track_caller]
    pub fn close(mut session: Session) -> Self {
        session.run("select pg_advisory_lock(4711)");
        Barrier { session }
    }

    /// The process that holds it closed.
    pub fn pid(&self) -> i32 {
        self.session.pid()
    }

    /// Waits until a process waits at the barrier.
    #[track_caller]
    pub fn wait_for(&mut self, pid: i32) {
        let query =
            format!("select count(*) from pg_locks where pid = {pid} and locktype = 'advisory' and not granted");
        wait_until("the job waits at the barrier", || self.session.value(&query) == "1");
    }

    /// Lets all go on.
    #[track_caller]
    pub fn open(mut self) {
        self.session.run("select pg_advisory_unlock(4711)");
    }
}
