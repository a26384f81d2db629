//! Jobs that are run again, by a retry or for their next attempt, and what happens meanwhile.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{
    array, crash, drain, retry, set_server, states_after, stop, times, wait_at_barrier, Batch, FREEZE_LOG, LOCK_LOG,
    NEVER_STARTED, NOBODY, RUNNING,
};
use pg_background_mgr_tests::{case, wait_until, Cluster, Session};

/// Runs when the table `wanted` has a row, and says so.
const WANTS: &str = "insert into ran select 1 / (select count(*) from wanted)";
const TABLES: &str = "create table ran (a int); create table wanted (a int)";

fn cluster(max_workers: &str) -> (Cluster, Session) {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", max_workers)]);
    let mut session = cluster.session("postgres");
    session.run(TABLES);
    (cluster, session)
}

/// Returns what a follower is told of a batch now, in the order of its jobs.
#[track_caller]
fn now(session: &mut Session, batch: &Batch, columns: &str) -> Vec<String> {
    let parent = &batch.parent;
    session.rows(&format!("select {columns} from pg_background_monitor('{parent}', false, '0') order by uuid_child"))
}

/// Waits until a job that has ended is known from the log alone.
#[track_caller]
fn wait_forgotten(session: &mut Session, child: &str) {
    let known = format!("select count(*) from background_mgr.live() where uuid_child = '{child}'");
    wait_until("it is forgotten", || session.value(&known) == "0");
}

/// The launch that is followed is old enough to be forgotten when the job that was launched again runs.
#[case]
fn a_follower_sees_the_end_of_what_is_run_again() {
    let (cluster, mut session) = cluster("1");
    let (mut holder, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    holder.run("select pg_advisory_lock(815)");
    let held = "select pg_advisory_xact_lock_shared(815)";
    let batch = Batch::launch_with(&mut session, &[WANTS, held], r#"{"mode": "sequential"}"#);
    batch.wait_state(&mut session, 0, "failed");
    batch.wait_state(&mut session, 1, "running");
    let mut follower = cluster.session("postgres");
    follower.run("set statement_timeout = '40s'");
    let call = format!("select status from pg_background_monitor('{}', false)", batch.parent);
    follower.send(&call);
    let follows = format!("select wait_event_type from pg_stat_activity where pid = {}", follower.pid());
    wait_until("the follower", || session.value(&follows) == "Extension");
    session.run("insert into wanted values (1)");
    // It has its turn before the retry.
    let other = Batch::launch(&mut session, &[barrier::WAIT]);
    assert_eq!(retry(&mut session, &batch.children[0]), batch.children[..1]);
    // What has ended stays until its rows are some seconds old.
    let is_old = "clock_timestamp() > start_time_exec + '6 s'";
    wait_until("the age to be forgotten", || batch.log(&mut session, 1, is_old) == "t");
    holder.run("select pg_advisory_unlock(815)");
    wait_at_barrier(&mut session, 1);
    assert_eq!(batch.states(&mut session), ["queued", "succeeded"]);
    barrier.open();
    other.succeed(&mut session);
    let states = follower.finish(&call);
    assert!(states.error.is_none(), "{:?}", states.error);
    assert_eq!(states.last_rows().expect("rows").text_rows(), ["succeeded", "succeeded"]);
    assert_eq!(session.rows("table ran"), ["1"]);
    // Nobody follows it any more.
    batch.children.iter().for_each(|child| wait_forgotten(&mut session, child));
}

#[case]
fn jobs_that_are_run_again_one_by_one_are_written_once_each() {
    const COUNT: usize = 60;
    let (cluster, mut session) = cluster("6");
    let batch = Batch::launch(&mut session, &times(WANTS, COUNT));
    assert_eq!(batch.finish(&mut session), times("failed", COUNT));
    session.run("insert into wanted values (1)");
    let barrier = Barrier::close(cluster.session("postgres"));
    let held = Batch::launch(&mut session, &times(barrier::WAIT, 6));
    wait_at_barrier(&mut session, 6);
    let again = format!(
        "select count(*) from log_background l, lateral pg_background_retry(l.uuid_child) where l.uuid_parent = '{}'",
        batch.parent
    );
    assert_eq!(session.value(&again), COUNT.to_string());
    barrier.open();
    held.succeed(&mut session);
    batch.succeed(&mut session);
    let written = format!(
        "select count(*) from background_mgr.log where uuid_parent = '{}' and status = 'succeeded'",
        batch.parent
    );
    wait_until("the final rows", || session.value(&written) == COUNT.to_string());
    assert_eq!(session.value("select count(*) from ran"), COUNT.to_string());
    // Processes tell what they have counted when they end. First that each job would begin and that it has failed;
    // then that it is launched again, that it will begin and that it has succeeded.
    set_server(&cluster, &mut session, "pg_background_mgr.worker_idle_timeout", "0");
    let updated = "select pg_stat_get_tuples_updated('background_mgr.log'::regclass)";
    wait_until("the server has counted", || session.number(updated) >= 5 * COUNT as i64);
    let updates = session.number(updated) - 2 * COUNT as i64;
    assert!(updates <= 6 * COUNT as i64, "{updates} updates of {COUNT} rows");
}

#[case]
fn a_retry_that_no_worker_came_to_is_known_after_a_crash() {
    let (cluster, mut session) = cluster("1");
    let batch = Batch::launch_with(&mut session, &[WANTS], r#"{"name": "the name", "timeout": "1 hour"}"#);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    session.run("insert into wanted values (1)");
    let barrier = Barrier::close(cluster.session("postgres"));
    Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut session, 1);
    assert_eq!(retry(&mut session, &batch.parent), batch.children);
    assert_eq!(batch.states(&mut session), ["queued"]);
    let mut session = crash(&cluster);
    drop(barrier);
    let told = "concat_ws('|', status, message, sqlstate)";
    let lost = format!("lost|{NEVER_STARTED}");
    assert_eq!(batch.column(&mut session, told), std::slice::from_ref(&lost));
    assert_eq!(now(&mut session, &batch, "concat_ws('|', status, message)"), std::slice::from_ref(&lost));
    let summary =
        format!("select failed, lost, total from pg_background_batches where uuid_parent = '{}'", batch.parent);
    assert_eq!(session.rows(&summary), ["0|1|1"]);
    // The next worker makes rows of what is in files.
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    assert_eq!(batch.column(&mut session, told), std::slice::from_ref(&lost));
    assert_eq!(now(&mut session, &batch, "concat_ws('|', status, message)"), [lost]);
    assert_eq!(session.rows(&summary), ["0|1|1"]);
    assert_eq!(session.value("select count(*) from ran"), "0");
    assert_eq!(retry(&mut session, &batch.parent), batch.children);
    batch.succeed(&mut session);
    assert_eq!(session.rows("table ran"), ["1"]);
    assert_eq!(batch.log(&mut session, 0, "name"), "the name");
}

#[case]
fn a_retry_that_was_written_and_not_begun_has_not_started() {
    let (cluster, mut session) = cluster("1");
    let barrier = Barrier::close(cluster.session("postgres"));
    let held = format!("{WANTS}; {}", barrier::WAIT);
    let batch = Batch::launch_with(&mut session, &[&held, WANTS], r#"{"mode": "sequential"}"#);
    assert_eq!(batch.finish(&mut session), ["failed", "failed"]);
    session.run("insert into wanted values (1)");
    assert_eq!(retry(&mut session, &batch.parent), batch.children);
    wait_at_barrier(&mut session, 1);
    assert_eq!(batch.written(&mut session), ["queued", "queued"]);
    let mut session = crash(&cluster);
    drop(barrier);
    for _ in 0..2 {
        assert_eq!(batch.states(&mut session), ["lost", "lost"]);
        assert_eq!(batch.column(&mut session, "message"), [RUNNING, NEVER_STARTED]);
        assert_eq!(now(&mut session, &batch, "message"), [RUNNING, NEVER_STARTED]);
        Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    }
    assert_eq!(retry(&mut session, &batch.parent), batch.children);
    batch.succeed(&mut session);
    assert_eq!(session.rows("table ran"), ["1", "1"]);
}

/// The worker of another database leaves no room for one that would make rows of the files.
#[case]
fn a_job_of_two_files_is_one_job() {
    let (cluster, mut session) = cluster("1");
    session.run("create database other");
    cluster.session("other").run("create extension pg_background_mgr");
    let occupy = || {
        let (mut other, barrier) = (cluster.session("other"), Barrier::close(cluster.session("other")));
        Batch::launch(&mut other, &[barrier::WAIT]);
        wait_at_barrier(&mut other, 1);
        barrier
    };
    let assert_once = |session: &mut Session, batch: &Batch, state: &str| {
        let states = [state, state];
        assert_eq!(batch.states(session), states);
        assert_eq!(now(session, batch, "status"), states);
        let counted =
            format!("select {state}, total from pg_background_batches where uuid_parent = '{}'", batch.parent);
        assert_eq!(session.rows(&counted), ["2|2"]);
    };
    let barrier = occupy();
    let texts = ["insert into ran values (1)", "insert into ran values (2)"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"name": "the name"}"#);
    assert_once(&mut session, &batch, "queued");
    let mut session = crash(&cluster);
    drop(barrier);
    assert_once(&mut session, &batch, "lost");
    let barrier = occupy();
    assert_eq!(retry(&mut session, &batch.parent), batch.children);
    assert_eq!(session.value("select count(*) from background_mgr.log"), "0");
    assert_once(&mut session, &batch, "queued");
    let mut session = crash(&cluster);
    drop(barrier);
    assert_once(&mut session, &batch, "lost");
    assert_eq!(batch.column(&mut session, "message"), [NEVER_STARTED, NEVER_STARTED]);
    assert_eq!(retry(&mut session, &batch.parent), batch.children);
    batch.succeed(&mut session);
    assert_once(&mut session, &batch, "succeeded");
    drain(&mut session);
    assert_eq!(session.rows("select a from ran order by a"), ["1", "2"]);
    assert_eq!(batch.column(&mut session, "name || attempts"), ["the name1", "the name1"]);
}

#[case]
fn a_job_is_stopped_while_its_failed_attempt_is_written() {
    // No write waits for a lock for longer than half of it.
    let cluster = Cluster::start_with_extension(&[("deadlock_timeout", "1min")]);
    let mut session = cluster.session("postgres");
    let (mut holder, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let text = format!("{}; select 1 / 0", barrier::WAIT);
    let batch = Batch::launch_with(&mut session, &[&text], r#"{"max_attempts": 2, "retry_delay": "1 h"}"#);
    wait_at_barrier(&mut session, 1);
    holder.run(FREEZE_LOG);
    barrier.open();
    // It does not wait for long; whoever comes later finds the job queued.
    let writes = "select exists (select from pg_locks join pg_stat_activity using (pid) where not granted \
                  and relation = 'background_mgr.log'::regclass and backend_type = 'pg_background') \
                  or (select status || attempts from log_background) = 'queued1'";
    wait_until("the worker is to write of the attempt", || session.holds(writes));
    session.run("set statement_timeout = '20s'");
    assert_eq!(states_after(&stop(&mut session, &batch.parent, None)), ["stopped"]);
    holder.run("rollback");
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    wait_until("the final row", || batch.written(&mut session) == ["stopped"]);
    let told = "concat_ws(' ', status, sqlstate, attempts, end_time_exec is not null)";
    assert_eq!(batch.log(&mut session, 0, told), "stopped 57014 1 t");
    assert_eq!(batch.log(&mut session, 0, "message like '%stopped by user \"postgres\"%'"), "t");
}

#[case]
fn a_job_that_is_tried_without_end_is_stopped() {
    let (_cluster, mut session) = cluster("2");
    session.run("set statement_timeout = '20s'");
    for _ in 0..20 {
        let options = r#"{"max_attempts": 1000000, "retry_delay": 0}"#;
        let batch = Batch::launch_with(&mut session, &["select 1 / 0"], options);
        wait_until("some attempts", || batch.log(&mut session, 0, "attempts >= 3") == "t");
        assert_eq!(states_after(&stop(&mut session, &batch.parent, None)), ["stopped"]);
        let tried = batch.log(&mut session, 0, "attempts");
        assert_eq!(batch.finish(&mut session), ["stopped"]);
        Batch::launch(&mut session, &["select 1", "select 2"]).succeed(&mut session);
        let told = batch.log(&mut session, 0, "concat_ws(' ', status, sqlstate, attempts)");
        assert_eq!(told, format!("stopped 57014 {tried}"));
    }
}

#[case]
fn jobs_behind_many_that_wait_for_an_attempt_run() {
    let (_cluster, mut session) = cluster("4");
    session.run(
        r#"select count(*) from generate_series(1, 300) i, lateral pg_background_launch_num(
            array['select 1 / 0 --' || i], p_options => '{"max_attempts": 2, "retry_delay": "1 hour"}')"#,
    );
    let waiting = "select count(*) from log_background where status = 'queued' and attempts = 1";
    wait_until("the first attempts", || session.value(waiting) == "300");
    session.run("set statement_timeout = '20s'");
    let launch = "select status from pg_background_launch_num(array['select 1'], p_exec_type => 'sync')";
    assert_eq!(session.rows(launch), ["succeeded"]);
    assert_eq!(session.value(waiting), "300");
}

#[case]
fn batches_that_have_waited_come_before_later_ones() {
    let (cluster, mut session) = cluster("1");
    session.run("create table came (id serial, a int)");
    let options = r#"{"mode": "sequential", "max_attempts": 2, "retry_delay": "1 s"}"#;
    let mut waiting = Vec::new();
    for number in 1..=3 {
        let then = format!("insert into came (a) values ({number})");
        waiting.push(Batch::launch_with(&mut session, &["select 1 / 0", &then], options));
    }
    for batch in &waiting {
        wait_until("the first attempt", || batch.log(&mut session, 0, "attempts::text") != "0");
    }
    let tried = session.value("select clock_timestamp()");
    let barrier = Barrier::close(cluster.session("postgres"));
    let held = Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut session, 1);
    let later = Batch::launch(&mut session, &["insert into came (a) values (4)"]);
    let is_due = format!("select clock_timestamp() > timestamptz '{tried}' + interval '1 s'");
    wait_until("their time has come", || session.value(&is_due) == "t");
    barrier.open();
    held.succeed(&mut session);
    later.succeed(&mut session);
    assert_eq!(session.rows("select a from came order by id"), ["1", "2", "3", "4"]);
}

#[case]
fn a_sequence_goes_on_when_the_job_that_waits_is_stopped() {
    let (_cluster, mut session) = cluster("1");
    session.run("set statement_timeout = '20s'");
    let options = r#"{"mode": "sequential", "max_attempts": 2, "retry_delay": "1 hour"}"#;
    let texts = ["select 1 / 0", "select 1 / 0", "insert into ran values (3)"];
    let batch = Batch::launch_with(&mut session, &texts, options);
    for job in 0..2 {
        wait_until("its first attempt", || batch.log(&mut session, job, "status || attempts") == "queued1");
        assert_eq!(states_after(&stop(&mut session, &batch.children[job], None)), ["stopped"]);
    }
    assert_eq!(batch.finish(&mut session), ["stopped", "stopped", "succeeded"]);
    assert_eq!(session.rows("table ran"), ["3"]);
}

/// The worker that has tried it does not stay until then, and nobody else asks for one.
#[case]
fn an_attempt_comes_in_time_while_others_run() {
    for idle_timeout in ["200ms", "0"] {
        let cluster = Cluster::start_with_extension(&[
            ("pg_background_mgr.worker_idle_timeout", idle_timeout),
            ("pg_background_mgr.max_workers", "3"),
        ]);
        let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
        let held = Batch::launch(&mut session, &[barrier::WAIT]);
        wait_at_barrier(&mut session, 1);
        let options = r#"{"max_attempts": 2, "retry_delay": "3 s"}"#;
        let batch = Batch::launch_with(&mut session, &["select 1 / 0"], options);
        batch.wait_state(&mut session, 0, "failed");
        let told = "attempts || ' ' || (start_time_exec - queued_at between '3 s' and '20 s')";
        assert_eq!(batch.log(&mut session, 0, told), "2 true");
        assert_eq!(held.states(&mut session), ["running"]);
        barrier.open();
        held.succeed(&mut session);
    }
}

/// The first signal is for the job; the second ends the process at once, and the server starts another in its place,
/// which knows nothing of what sessions had with the first.
#[case]
fn a_job_that_ends_its_process_twice_ends_no_other() {
    let (_cluster, mut session) = cluster("1");
    session.run("set statement_timeout = '20s'");
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    let idle = "select pid from pg_stat_activity where backend_type = 'pg_background' and state = 'idle'";
    wait_until("the worker is idle", || !session.rows(idle).is_empty());
    let first = session.rows(idle);
    assert_eq!(session.job("select pg_backend_pid()", "n int"), first);
    let ends = "select pg_terminate_backend(pg_backend_pid()), pg_terminate_backend(pg_backend_pid())";
    let batch = Batch::launch(&mut session, &[ends, "select 2"]);
    assert_eq!(batch.finish(&mut session), ["stopped", "succeeded"]);
    wait_until("another is idle", || !session.rows(idle).is_empty());
    assert_ne!(session.rows(idle), first);
    let pid = session.launch("insert into ran values (1)");
    assert_eq!(session.result(pid, "tag text"), ["INSERT 0 1"]);
    assert_eq!(session.rows("table ran"), ["1"]);
}

/// One of the jobs would have to wait for the end of the other.
#[case]
fn without_a_queue_jobs_that_would_wait_are_refused() {
    let (_cluster, mut session) = cluster("4");
    session.run("set statement_timeout = '20s'");
    let insert = "insert into ran values (1)";
    let call = |count: usize, options: &str| {
        let texts = array(&times(insert, count));
        format!("pg_background_launch_num({texts}, p_monitor => false, p_options => '{options}')")
    };
    let all = [r#"{"mode": "sequential"}"#, r#"{"max_workers": 1}"#];
    for options in all {
        let error = session.error(&format!("select * from {}", call(2, options)));
        assert_eq!(error.sqlstate(), "53000", "{options}: {error}");
        assert_eq!(session.value("select count(*) from log_background"), "0");
    }
    assert_eq!(session.value("select count(*) from background_mgr.live()"), "0");
    for options in all {
        Batch::call(&mut session, &call(1, options)).succeed(&mut session);
    }
    assert_eq!(session.rows("table ran"), ["1", "1"]);
    Batch::call(&mut session, &call(2, r#"{"max_workers": 2}"#)).succeed(&mut session);
}

#[case]
fn what_cannot_be_looked_up_is_not_said_to_be_unknown() {
    let (cluster, mut session) = cluster("2");
    let batch = Batch::launch(&mut session, &[WANTS]);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    session.run("insert into wanted values (1)");
    wait_forgotten(&mut session, &batch.children[0]);
    let mut holder = cluster.session("postgres");
    holder.run(LOCK_LOG);
    session.run("set statement_timeout = '20s'");
    let calls = |uuid: &str| {
        let calls = ["monitor", "stop", "retry"].map(|name| format!("select * from pg_background_{name}('{uuid}'"));
        calls.into_iter().flat_map(|call| [format!("{call})"), format!("{call}::uuid)")])
    };
    for call in [&batch.parent, &batch.children[0], NOBODY].into_iter().flat_map(calls) {
        assert_eq!(session.error(&call).sqlstate(), "55P03", "{call}");
    }
    holder.run("rollback");
    for call in calls(NOBODY) {
        assert_eq!(session.error(&call).sqlstate(), "42704", "{call}");
    }
    assert_eq!(now(&mut session, &batch, "status"), ["failed"]);
    assert_eq!(states_after(&stop(&mut session, &batch.parent, None)), ["failed"]);
    assert_eq!(retry(&mut session, &batch.parent), batch.children);
    batch.succeed(&mut session);
    assert_eq!(session.rows("table ran"), ["1"]);
}

#[case]
fn a_long_error_is_cut_in_the_log() {
    let (_cluster, mut session) = cluster("2");
    let raises = "do $$ begin raise exception '%', repeat('x', 1000000) using detail = repeat('y', 1000000); end $$";
    let batch = Batch::launch(&mut session, &[raises]);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    let told = "concat_ws(' ', sqlstate, left(message, 3), left(detail, 3))";
    assert_eq!(batch.log(&mut session, 0, told), "P0001 xxx yyy");
    for column in ["message", "detail"] {
        let length: usize = batch.log(&mut session, 0, &format!("length({column})")).parse().expect("a length");
        assert!((1000..=65_536).contains(&length), "{column}: {length}");
    }
}
