//! Roles that change while their jobs wait.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{cell, times, wait_at_barrier, Batch};
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session};

/// A batch of `user` in the queue, behind a job of the superuser's that waits at the barrier: `max_workers` is 1.
struct Waiting {
    cluster: Cluster,
    admin: Session,
    barrier: Barrier,
    held: Batch,
    batch: Batch,
    others: Batch,
}

fn set_waiting(change: &str) -> Waiting {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "1")]);
    let mut admin = cluster.session("postgres");
    admin.run(
        "create table ran (a int); grant insert on ran to public; \
         grant execute on all functions in schema public to public; \
         grant select on log_background to public; create role weak login; create role other login",
    );
    let barrier = Barrier::close(cluster.session("postgres"));
    let held = Batch::launch(&mut admin, &[barrier::WAIT]);
    wait_at_barrier(&mut admin, 1);
    let mut session = cluster.client("postgres").user("weak").connect();
    let batch = Batch::launch(&mut session, &times("insert into ran values (1)", 3));
    drop(session);
    let mut session = cluster.client("postgres").user("other").connect();
    let others = Batch::launch(&mut session, &times("insert into ran values (2)", 3));
    drop(session);
    wait_until("only this session", || {
        admin.value("select count(*) from pg_stat_activity where usename in ('weak', 'other')") == "0"
    });
    admin.run(change);
    Waiting { cluster, admin, barrier, held, batch, others }
}

impl Waiting {
    /// The queue goes on; each job of the batch has failed with this, and all others have succeeded.
    #[track_caller]
    fn assert_fails(mut self, sqlstate: &str, message: &str) {
        self.barrier.open();
        self.held.succeed(&mut self.admin);
        self.others.succeed(&mut self.admin);
        assert_eq!(self.batch.finish(&mut self.admin), times("failed", 3));
        let told = self.batch.column(&mut self.admin, "concat_ws(' ', sqlstate, message, hint)");
        assert!(told.iter().all(|line| line.starts_with(sqlstate) && line.contains(message)), "{told:?}");
        assert_eq!(self.admin.rows("select a, count(*) from ran group by a"), ["2|3"]);
        Batch::launch(&mut self.admin, &["select 1"]).succeed(&mut self.admin);
        assert!(self.cluster.is_running());
    }
}

#[case]
fn jobs_of_a_dropped_role_fail() {
    set_waiting("drop role weak").assert_fails("28000", "does not exist");
}

#[case]
fn jobs_of_a_role_that_may_not_log_in_fail() {
    set_waiting("alter role weak nologin")
        .assert_fails("28000", "is not permitted to log in Workers log in as the role that has launched the jobs.");
}

#[case]
fn jobs_of_a_role_without_connect_fail() {
    set_waiting("revoke connect on database postgres from public; grant connect on database postgres to other")
        .assert_fails("42501", "permission denied for database");
}

#[case]
fn jobs_beyond_a_connection_limit_do_not_run(db: &Db) {
    let user = db.role("user", "login connection limit 3");
    let (mut session, mut admin, barrier) =
        (db.client().user(&user).connect(), db.session(), Barrier::close(db.session()));
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 6));
    let at_barrier = "select count(*) from log_background where status = 'running'";
    wait_until("a job runs", || {
        let open = "select count(*) from log_background where status in ('queued', 'running')";
        assert!(admin.number(open) > 0, "{:?}", batch.column(&mut admin, "coalesce(sqlstate, '')"));
        admin.number(at_barrier) >= 1
    });
    assert!(admin.number(at_barrier) <= 2);
    barrier.open();
    let states = batch.finish(&mut admin);
    let told = batch.column(&mut admin, "coalesce(sqlstate, '')");
    // They wait for their turn, or say why they did not get one.
    for (state, sqlstate) in states.iter().zip(&told) {
        assert!(state == "succeeded" || (state == "failed" && sqlstate == "53300"), "{states:?} {told:?}");
    }
}

#[case]
fn rights_revoked_while_a_job_waits_are_revoked() {
    set_waiting("revoke insert on ran from public; grant insert on ran to other")
        .assert_fails("42501", "permission denied for table ran");
}

#[case]
fn a_warm_worker_takes_no_job_that_its_role_may_not_run() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let mut admin = cluster.session("postgres");
    admin.run("create role weak login; select pg_background_grant('weak')");
    let mut session = cluster.client("postgres").user("weak").connect();
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    // Its worker waits for more; the role may do nothing more.
    admin.run("alter role weak nologin");
    let batch = Batch::launch(&mut session, &["select 1", "select 2"]);
    assert_eq!(batch.finish(&mut session), ["failed", "failed"]);
    assert_eq!(batch.column(&mut session, "sqlstate"), ["28000", "28000"]);
    admin.run("alter role weak login");
    Batch::launch(&mut session, &["select 1", "select 2"]).succeed(&mut session);
}

#[case]
fn a_superuser_that_is_one_no_more_has_no_such_jobs() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let mut admin = cluster.session("postgres");
    admin.run("create role strong login superuser; select pg_background_grant('strong')");
    let mut session = cluster.client("postgres").user("strong").connect();
    let secret = "select count(*) > 0 as a, current_setting('is_superuser') as s from pg_authid";
    let batch = Batch::launch(&mut session, &[secret]);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, &cell("s")), "on");
    admin.run("alter role strong nosuperuser");
    let batch = Batch::launch(&mut session, &[secret, "select current_setting('is_superuser') as s"]);
    assert_eq!(batch.finish(&mut admin), ["failed", "succeeded"]);
    assert_eq!(batch.log(&mut admin, 0, "sqlstate"), "42501");
    assert_eq!(batch.log(&mut admin, 1, &cell("s")), "off");
    admin.run("alter role strong superuser");
    Batch::launch(&mut session, &[secret]).succeed(&mut session);
}
