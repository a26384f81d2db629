//! A server that cannot fork: what waits for a new worker ends with that reason, and the rest of the queue goes on.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{array, counts, drain, retry, times, wait_at_barrier, Batch};
use crate::support::job_stage::Paused;
use pg_background_mgr_tests::cluster::Baseline;
use pg_background_mgr_tests::{case, wait_until, Cluster, Session, FOREVER};

/// A server, and sessions that are there already.
struct Scene {
    cluster: Cluster,
    before: Baseline,
    watcher: Session,
    session: Session,
    weak: Session,
}

impl Scene {
    fn set(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster::start_with_extension(&[&[("max_worker_processes", "8")], settings].concat());
        let before = cluster.baseline();
        let mut watcher = cluster.session("postgres");
        watcher.run(
            "create table ran (a int); create role weak login; grant select, insert on ran to weak; \
             select pg_background_grant('weak')",
        );
        let session = cluster.session("postgres");
        let weak = cluster.client("postgres").user("weak").connect();
        Scene { before, watcher, session, weak, cluster }
    }

    /// Ends the workers that are there already, but these.
    #[track_caller]
    fn dismiss_but(&mut self, workers: &[String]) {
        let others = format!(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where backend_type = 'pg_background' and pid <> all ('{{{}}}')",
            workers.join(",")
        );
        self.watcher.run(&others);
        wait_until("the end of other workers", || self.cluster.workers().len() == workers.len());
    }

    /// Keeps the server from forking from now on, and leaves no workers but these.
    #[track_caller]
    fn refuse_but(&mut self, workers: &[String]) {
        self.dismiss_but(workers);
        self.cluster.refuse_forks(&mut self.watcher);
    }

    #[track_caller]
    fn refuse(&mut self) {
        self.refuse_but(&[]);
    }

    /// Lets the server fork again.
    #[track_caller]
    fn allow(&mut self) {
        self.cluster.allow_forks(&mut self.watcher);
    }

    /// Lets the server fork again, and asserts that the rows of all jobs are in the log, that the next jobs run, and
    /// that nothing is left.
    #[track_caller]
    fn end(mut self) {
        self.allow();
        drain(&mut self.watcher);
        let open = "select count(*) from background_mgr.log where status = 'queued'";
        wait_until("the rows of all jobs", || self.watcher.value(open) == "0");
        for session in [&mut self.session, &mut self.weak] {
            Batch::launch(session, &times("select 1", 5)).succeed(session);
        }
        let Scene { cluster, before, .. } = self;
        cluster.assert_sound(&before);
    }

    fn ran(&mut self) -> String {
        self.watcher.value("select count(*) from ran")
    }
}

const INSERT: &str = "insert into ran values (1)";
/// SQL expression for how a job ended, and why.
const END: &str = "concat_ws(' ', status, sqlstate, message)";
const REFUSED: &str = "failed 53000 could not start background process";

#[case]
fn what_no_worker_can_be_started_for_fails() {
    let mut scene = Scene::set(&[]);
    scene.refuse();
    let batch = Batch::launch(&mut scene.session, &times(INSERT, 20));
    // Nobody has to look for it to be so, and there is nobody to write it down.
    assert_eq!(batch.column(&mut scene.watcher, END), times(REFUSED, 20));
    let tried = "concat_ws(' ', attempts, pid, start_time_exec, hint)";
    assert_eq!(batch.column(&mut scene.watcher, tried), times("1 The server log may tell why.", 20));
    // It is so for the next one, of whomever.
    let next = Batch::launch(&mut scene.weak, &[INSERT]);
    assert_eq!(next.column(&mut scene.weak, END), [REFUSED]);
    assert_eq!(next.finish(&mut scene.weak), ["failed"]);
    scene.allow();
    let failed = "select count(*) from background_mgr.log where status = 'failed'";
    wait_until("the rows of the jobs", || scene.watcher.value(failed) == "21");
    assert_eq!(scene.ran(), "0");
    assert_eq!(batch.column(&mut scene.watcher, END), times(REFUSED, 20));
    // They can be launched again.
    assert_eq!(retry(&mut scene.session, &batch.parent).len(), 20);
    batch.succeed(&mut scene.session);
    assert_eq!(scene.ran(), "20");
    scene.end();
}

#[case]
fn a_launch_that_waits_for_its_jobs_sees_them_fail() {
    let mut scene = Scene::set(&[]);
    scene.refuse();
    for options in ["p_exec_type => 'sync'", "p_monitor => false"] {
        let call = format!("pg_background_launch_num({}, {options})", array(&times(INSERT, 3)));
        let batch = Batch::call(&mut scene.session, &call);
        assert_eq!(batch.column(&mut scene.watcher, END), times(REFUSED, 3));
    }
    scene.end();
}

/// Jobs that wait for more workers are done by the workers that there are.
#[case]
fn workers_of_the_role_that_are_there_go_on() {
    let mut scene = Scene::set(&[]);
    let barrier = Barrier::close(scene.cluster.session("postgres"));
    let first = Batch::launch(&mut scene.session, &[barrier::WAIT]);
    wait_at_barrier(&mut scene.watcher, 1);
    let worker = first.log(&mut scene.watcher, 0, "pid");
    scene.refuse_but(&[worker]);
    let mark = scene.cluster.log_mark();
    let batch = Batch::launch(&mut scene.session, &times(INSERT, 10));
    scene.session.send(&format!("select * from pg_background_monitor('{}')", batch.parent));
    wait_until("several refused forks", || {
        let log = scene.cluster.log_since(mark);
        log.iter().filter(|line| line.text.contains("could not fork")).count() > 2 * 5
    });
    assert_eq!(batch.states(&mut scene.watcher), times("queued", 10));
    barrier.open();
    assert!(scene.session.finish("monitor").error.is_none());
    batch.succeed(&mut scene.session);
    first.succeed(&mut scene.session);
    assert_eq!(scene.ran(), "10");
    scene.end();
}

#[case]
fn jobs_of_others_go_on() {
    let mut scene = Scene::set(&[]);
    let barrier = Barrier::close(scene.cluster.session("postgres"));
    let texts = [barrier::WAIT, INSERT, INSERT, INSERT];
    let others = Batch::launch_with(&mut scene.weak, &texts, r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut scene.watcher, 1);
    let worker = others.log(&mut scene.watcher, 0, "pid");
    scene.refuse_but(&[worker]);
    let batch = Batch::launch(&mut scene.session, &times(INSERT, 3));
    assert_eq!(batch.column(&mut scene.watcher, END), times(REFUSED, 3));
    assert_eq!(others.states(&mut scene.watcher), ["running", "queued", "queued", "queued"]);
    barrier.open();
    others.succeed(&mut scene.weak);
    assert_eq!(scene.ran(), "3");
    // The worker that is there writes down what became of those that had none.
    wait_until("the rows of the jobs", || batch.written(&mut scene.watcher) == times("failed", 3));
    // Another worker is no use to them.
    let batch = Batch::launch(&mut scene.session, &[INSERT]);
    assert_eq!(batch.column(&mut scene.watcher, END), [REFUSED]);
    Batch::launch(&mut scene.weak, &times(INSERT, 3)).succeed(&mut scene.weak);
    assert_eq!(scene.ran(), "6");
    scene.end();
}

#[case]
fn a_refused_start_is_an_attempt() {
    let mut scene = Scene::set(&[]);
    scene.refuse();
    let often = r#"{"max_attempts": 3, "retry_delay": 1}"#;
    let batch = Batch::launch_with(&mut scene.session, &times(INSERT, 3), often);
    assert_eq!(batch.column(&mut scene.watcher, "status || ' ' || attempts"), times("queued 1", 3));
    scene.allow();
    batch.succeed(&mut scene.session);
    assert_eq!(batch.column(&mut scene.watcher, "attempts"), times("2", 3));
    assert_eq!(scene.ran(), "3");
    // All of them.
    scene.refuse();
    let call = format!(
        "pg_background_launch_num({}, p_exec_type => 'sync', \
         p_options => '{{\"max_attempts\": 3, \"retry_delay\": 0.1}}')",
        array(&[INSERT])
    );
    let batch = Batch::call(&mut scene.session, &call);
    assert_eq!(batch.column(&mut scene.watcher, &format!("attempts || ' ' || {END}")), [format!("3 {REFUSED}")]);
    assert_eq!(scene.ran(), "3");
    scene.end();
}

#[case]
fn no_job_overtakes_one_that_is_tried_again() {
    let mut scene = Scene::set(&[]);
    scene.refuse();
    let texts = ["insert into ran values (1)", "insert into ran values (2)", "insert into ran values (3)"];
    let options = r#"{"mode": "sequential", "max_attempts": 2, "retry_delay": 1}"#;
    let batch = Batch::launch_with(&mut scene.session, &texts, options);
    assert_eq!(batch.column(&mut scene.watcher, "status || ' ' || attempts"), ["queued 1", "queued 0", "queued 0"]);
    scene.allow();
    batch.succeed(&mut scene.session);
    assert_eq!(scene.watcher.rows("select a from ran order by ctid"), ["1", "2", "3"]);
    assert_eq!(batch.column(&mut scene.watcher, "attempts"), ["2", "1", "1"]);
    // One that has failed stops the others.
    scene.refuse();
    let batch = Batch::launch_with(&mut scene.session, &texts, r#"{"mode": "sequential", "on_error": "stop"}"#);
    assert_eq!(batch.column(&mut scene.watcher, END)[0], REFUSED);
    assert_eq!(batch.states(&mut scene.watcher)[1..], ["stopped", "stopped"]);
    scene.end();
}

#[case]
fn what_a_terminated_worker_leaves_fails() {
    let mut scene = Scene::set(&[("pg_background_mgr.max_workers", "1")]);
    let barrier = Barrier::close(scene.cluster.session("postgres"));
    let batch = Batch::launch(&mut scene.session, &[barrier::WAIT, INSERT, INSERT]);
    let other = Batch::launch(&mut scene.weak, &[INSERT]);
    wait_at_barrier(&mut scene.watcher, 1);
    let worker = batch.log(&mut scene.watcher, 0, "pid");
    scene.refuse_but(std::slice::from_ref(&worker));
    scene.watcher.run(&format!("select pg_terminate_backend({worker})"));
    drain(&mut scene.watcher);
    assert_eq!(batch.states(&mut scene.watcher), ["stopped", "failed", "failed"]);
    assert_eq!(batch.column(&mut scene.watcher, END)[1..], times(REFUSED, 2));
    assert_eq!(other.column(&mut scene.watcher, END), [REFUSED]);
    assert_eq!(scene.ran(), "0");
    drop(barrier);
    scene.end();
}

#[case]
fn what_a_dead_worker_leaves_fails() {
    let mut scene = Scene::set(&[("pg_background_mgr.max_workers", "1")]);
    let barrier = Barrier::close(scene.cluster.session("postgres"));
    let stubborn = format!(
        "do $$ begin perform pg_advisory_lock_shared(4711); \
         exception when query_canceled then perform {FOREVER}; end $$"
    );
    let jobs = [(stubborn.as_str(), 0.5), (INSERT, 60.0), (INSERT, 60.0)];
    let jobs: Vec<String> =
        jobs.iter().map(|(text, timeout)| format!(r#"{{"query": "{text}", "timeout": {timeout}}}"#)).collect();
    let batch = Batch::launch_json(&mut scene.session, &format!("[{}]", jobs.join(",")));
    wait_at_barrier(&mut scene.watcher, 1);
    let worker = batch.log(&mut scene.watcher, 0, "pid");
    scene.refuse_but(&[worker]);
    drain(&mut scene.watcher);
    assert_eq!(batch.column(&mut scene.watcher, "concat_ws(' ', status, sqlstate)")[0], "failed 57014");
    assert_eq!(batch.column(&mut scene.watcher, END)[1..], times(REFUSED, 2));
    assert_eq!(scene.ran(), "0");
    drop(barrier);
    scene.end();
}

/// Jobs of the other role end, and nobody follows them.
#[case]
fn a_worker_that_cannot_make_room_goes_on() {
    for workers in [1, 2] {
        let mut scene = Scene::set(&[("pg_background_mgr.max_workers", &workers.to_string())]);
        let barrier = Barrier::close(scene.cluster.session("postgres"));
        let texts = [times(barrier::WAIT, workers), times(INSERT, 200)].concat();
        let own = Batch::launch(&mut scene.weak, &texts);
        wait_at_barrier(&mut scene.watcher, workers);
        let others = Batch::launch(&mut scene.session, &times(INSERT, 3));
        let pids = own.column(&mut scene.watcher, "pid");
        scene.refuse_but(&pids[..workers]);
        barrier.open();
        drain(&mut scene.watcher);
        assert_eq!(own.states(&mut scene.watcher), times("succeeded", 200 + workers));
        assert_eq!(others.column(&mut scene.watcher, END), times(REFUSED, 3));
        assert_eq!(scene.ran(), "200");
        scene.end();
    }
}

/// An earlier refusal says nothing of a launch after it.
#[case]
fn a_refusal_of_before_says_nothing() {
    let mut scene = Scene::set(&[]);
    scene.refuse();
    let first = Batch::launch(&mut scene.session, &[INSERT]);
    assert_eq!(first.column(&mut scene.watcher, END), [REFUSED]);
    // One that asks the server, and does not hear its answer.
    let paused = Paused::new(scene.cluster.postmaster());
    let call = format!("select * from pg_background_launch_num({})", array(&[INSERT]));
    scene.session.send(&call);
    let queued = "select count(*) from log_background where status = 'queued'";
    wait_until("a launch that waits", || scene.watcher.value(queued) == "1");
    scene.watcher.run(&format!("select pg_cancel_backend({})", scene.session.pid()));
    assert_eq!(scene.session.finish(&call).error.map(|error| error.sqlstate().to_owned()), Some("57014".to_owned()));
    let mark = scene.cluster.log_mark();
    drop(paused);
    scene.cluster.wait_log(mark, "the refused fork", |line| line.text.contains("could not fork"));
    scene.allow();
    Batch::launch(&mut scene.session, &[INSERT]).succeed(&mut scene.session);
    assert_eq!(scene.ran(), "1");
    scene.end();
}

/// No place is free to ask the server for one more process.
#[case]
fn what_nobody_knows_of_waits() {
    let mut scene = Scene::set(&[("max_worker_processes", "2"), ("pg_background_mgr.reserved_workers", "0")]);
    scene.refuse();
    let batch = Batch::launch(&mut scene.session, &times(INSERT, 5));
    assert_eq!(batch.column(&mut scene.watcher, "status || ' ' || attempts"), times("queued 0", 5));
    scene.allow();
    batch.succeed(&mut scene.session);
    assert_eq!(scene.ran(), "5");
    scene.end();
}

/// The server has not refused it.
#[case]
fn a_start_that_takes_its_time_is_none_that_was_refused() {
    let mut scene = Scene::set(&[]);
    scene.dismiss_but(&[]);
    let paused = Paused::new(scene.cluster.postmaster());
    scene.session.send(&format!("select * from pg_background_launch_num({})", array(&times(INSERT, 3))));
    let age = "select coalesce(max(clock_timestamp() - queued_at), '0') > '0.5 s' from log_background \
               where status = 'queued'";
    wait_until("a start that takes its time", || scene.watcher.value(age) == "t");
    drop(paused);
    assert!(scene.session.finish("launch").error.is_none());
    drain(&mut scene.watcher);
    assert_eq!(counts(&mut scene.watcher, "query like 'insert%'"), ["succeeded 3"]);
    assert_eq!(scene.ran(), "3");
    scene.end();
}
