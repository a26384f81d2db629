//! Workers and launchers that go while there are jobs.

use crate::crash::batches::cluster;
use crate::support::barrier::{self, Barrier};
use crate::support::batch::{array, counts, crash, drain, times, wait_at_barrier, wait_gone, Batch};
use crate::support::job_stage::{terminate, Paused};
use pg_background_mgr_tests::{case, wait_until, Db, Session, FOREVER};

/// The process that waits at the barrier for a job.
#[track_caller]
fn at_barrier(session: &mut Session) -> i32 {
    wait_at_barrier(session, 1);
    let query = "select pid from pg_locks where locktype = 'advisory' and objid = 4711 and not granted \
                 and database = (select oid from pg_database where datname = current_database())";
    session.value(query).parse().expect("a process")
}

#[case]
fn a_terminated_worker_stops_its_job_only(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int)");
    let held = format!("insert into ran values (1); {}", barrier::WAIT);
    let texts = ["insert into ran values (0)", &held, "insert into ran values (2)", "insert into ran values (3)"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    let pid = at_barrier(&mut session);
    session.run(&format!("select pg_terminate_backend({pid})"));
    assert_eq!(batch.finish(&mut session), ["succeeded", "stopped", "succeeded", "succeeded"]);
    assert_eq!(
        batch.log(&mut session, 1, "sqlstate || ' ' || message"),
        r#"57P01 terminating background worker "pg_background" due to administrator command"#
    );
    assert_eq!(batch.log(&mut session, 1, "pid"), pid.to_string());
    assert_eq!(batch.log(&mut session, 1, "end_time_exec is not null"), "t");
    assert_eq!(session.rows("select a from ran order by a"), ["0", "2", "3"]);
    wait_gone(pid);
    drop(barrier);
}

#[case]
fn a_cancelled_worker_fails_its_job_only(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch_with(
        &mut session,
        &[barrier::WAIT, "select pg_sleep(0.05)", "select 3"],
        r#"{"mode": "sequential"}"#,
    );
    let pid = at_barrier(&mut session);
    session.run(&format!("select pg_cancel_backend({pid})"));
    assert_eq!(batch.finish(&mut session), ["failed", "succeeded", "succeeded"]);
    assert_eq!(
        batch.log(&mut session, 0, "sqlstate || ' ' || message"),
        "57014 canceling statement due to user request"
    );
    drop(barrier);
}

#[case]
fn a_terminated_idle_worker_is_replaced(db: &Db) {
    let mut session = db.session();
    for _ in 0..30 {
        let batch = Batch::launch_with(&mut session, &["select 1", "select 2"], r#"{"max_workers": 1}"#);
        batch.succeed(&mut session);
        // At once: it may not even have come to rest.
        session.run(
            "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'pg_background' \
             and datname = current_database()",
        );
    }
    assert_eq!(counts(&mut session, "true"), ["succeeded 60"]);
}

#[case]
fn a_job_that_ends_its_own_process_is_stopped(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let text = &format!("insert into ran values (1); select pg_terminate_backend(pg_backend_pid()); select {FOREVER}");
    let batch = Batch::launch_with(&mut session, &[text, "insert into ran values (2)"], r#"{"mode": "sequential"}"#);
    assert_eq!(batch.finish(&mut session), ["stopped", "succeeded"]);
    assert_eq!(batch.log(&mut session, 0, "sqlstate"), "57P01");
    assert_eq!(session.rows("table ran"), ["2"]);
}

#[case]
fn a_terminated_worker_is_not_tried_again(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let text = format!("do $$ begin execute '{}'; end $$", barrier::WAIT);
    let batch = Batch::launch_with(&mut session, &[&text], r#"{"max_attempts": 5}"#);
    let pid = at_barrier(&mut session);
    session.run(&format!("select pg_terminate_backend({pid})"));
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    assert_eq!(batch.log(&mut session, 0, "attempts"), "1");
    assert_eq!(batch.log(&mut session, 0, "context ~ 'inline_code_block line 1 at EXECUTE'"), "t");
    drop(barrier);
}

/// Each job either did its work and says so, or was stopped and did nothing.
#[case]
fn workers_terminated_at_random_lose_no_job(db: &Db) {
    let (mut session, mut killer) = (db.session(), db.session());
    session.run("create table ran (a int)");
    let texts: Vec<String> = (0..400).map(|number| format!("insert into ran values ({number})")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 3}"#);
    let open = format!(
        "select count(*) from log_background where uuid_parent = '{}' and status in ('queued', 'running')",
        batch.parent
    );
    let mut kills = 0;
    wait_until("the end of all jobs", || {
        if kills < 60 {
            let victim = "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'pg_background' \
                          and datname = current_database() limit 1";
            kills += killer.rows(victim).len();
        }
        session.value(&open) == "0"
    });
    assert!(kills > 0);
    let told = batch.column(
        &mut session,
        "status || ' ' || (select count(*) from ran where 'insert into ran values (' || a || ')' = query)",
    );
    let others = "select distinct sqlstate, message from log_background where status = 'failed'";
    assert_eq!(session.rows(others), [""; 0]);
    for line in &told {
        assert!(["succeeded 1", "stopped 0"].contains(&line.as_str()), "{line}");
    }
    let why = format!(
        "select distinct sqlstate from log_background where uuid_parent = '{}' and status = 'stopped'",
        batch.parent
    );
    assert!(session.rows(&why).iter().all(|state| state == "57P01"));
}

#[case]
fn a_launcher_that_goes_leaves_its_batch(db: &Db) {
    let (mut session, mut watcher, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    watcher.run("create table ran (a int)");
    let text = format!("{}; insert into ran values (1)", barrier::WAIT);
    let batch = Batch::launch_with(&mut session, &times(&text, 10), r#"{"max_workers": 2}"#);
    let pid = session.pid();
    drop(session);
    wait_gone(pid);
    wait_at_barrier(&mut watcher, 2);
    barrier.open();
    batch.succeed(&mut watcher);
    assert_eq!(watcher.value("select count(*) from ran"), "10");
}

#[case]
fn a_terminated_launcher_leaves_its_batch(db: &Db) {
    let (mut session, mut watcher, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    watcher.run("create table ran (a int)");
    let text = format!("{}; insert into ran values (1)", barrier::WAIT);
    session.send(&format!(
        "select * from pg_background_launch_num({}, p_exec_type => 'sync', p_options => '{{\"max_workers\": 2}}')",
        array(&times(&text, 6))
    ));
    wait_at_barrier(&mut watcher, 2);
    watcher.run(&format!("select pg_terminate_backend({})", session.pid()));
    wait_gone(session.pid());
    barrier.open();
    drain(&mut watcher);
    assert_eq!(counts(&mut watcher, "true"), ["succeeded 6"]);
    assert_eq!(watcher.value("select count(*) from ran"), "6");
}

/// The cancel comes from another connection and hits at any moment of the call.
#[case]
fn a_launch_cancelled_at_random_is_all_or_nothing(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table ran (a int)");
    let call = format!(
        "select uuid_parent from pg_background_launch_num({})",
        array(&times("insert into ran values (1)", 10))
    );
    let mut answered = 0;
    for _ in 0..100 {
        session.send(&call);
        session.canceller().cancel();
        let reply = session.finish(&call);
        match reply.error {
            None => answered += 1,
            Some(error) => assert_eq!(error.sqlstate(), "57014"),
        }
        // A cancel that came late may hit this one.
        let _ = session.ask("select 1");
    }
    drain(&mut watcher);
    let batches = watcher.rows("select count(*), count(distinct status) from log_background group by uuid_parent");
    assert!(batches.iter().all(|batch| batch == "10|1"), "{batches:?}");
    assert!(batches.len() >= answered, "{} batches, {answered} answered", batches.len());
    let ran = watcher.number("select count(*) from ran");
    assert_eq!(ran, i64::try_from(batches.len()).expect("a count") * 10);
}

/// No worker is there but one of another role, which is asked to make room and takes its time.
#[case]
fn a_launcher_terminated_while_it_waits_for_a_place_leaves_nothing() {
    let cluster = cluster(&[("pg_background_mgr.max_workers", "1"), ("pg_background_mgr.worker_idle_timeout", "1h")]);
    let mut session = cluster.session("postgres");
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    let idle = "select pid from pg_stat_activity where backend_type = 'pg_background' and state = 'idle'";
    wait_until("the worker is idle", || !session.rows(idle).is_empty());
    let worker = session.value(idle).parse().expect("a process id");
    let paused = Paused::at_rest(worker, &mut session);
    let mut launcher = cluster.client("postgres").user("weak").connect();
    launcher.send("select * from pg_background_launch_num('insert into ran values (1)', p_monitor => false)");
    let waits = format!(
        "select state = 'active' and wait_event_type = 'Extension' from pg_stat_activity where pid = {}",
        launcher.pid()
    );
    wait_until("the launcher waits", || session.rows(&waits) == ["t"]);
    terminate(&mut session, launcher.pid());
    wait_gone(launcher.pid());
    drop(paused);
    assert_eq!(session.value("select count(*) from pg_background_jobs where status <> 'succeeded'"), "0");
    let mut session = crash(&cluster);
    assert_eq!(counts(&mut session, "true"), ["succeeded 1"], "what was not accepted is not lost");
    let mut weak = cluster.client("postgres").user("weak").connect();
    Batch::launch(&mut weak, &["insert into ran values (2)"]).succeed(&mut weak);
    assert_eq!(session.rows("table ran"), ["2"]);
}
