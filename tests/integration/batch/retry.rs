//! `pg_background_retry`.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{crash, log, retry, stop, times, wait_at_barrier, Batch, FREEZE_LOG, NOBODY};
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Db, Session, Stop, FOREVER, SLEEP_FOREVER};

#[case]
fn what_did_not_succeed_is_run_again(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int); create table wanted (a int)");
    let fails = "insert into ran values (2); select 1 / (select count(*) from wanted)";
    let held = format!("insert into ran values (3); {}", barrier::WAIT);
    let texts = ["insert into ran values (1)", fails, &held, "insert into ran values (4)"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    wait_at_barrier(&mut session, 1);
    stop(&mut session, &batch.parent, None);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed", "stopped", "stopped"]);
    barrier.open();
    session.run("insert into wanted values (1)");
    let rows =
        session.rows(&format!("select status, uuid_parent, uuid_child from pg_background_retry('{}')", batch.parent));
    assert_eq!(rows.len(), 3);
    for (row, child) in rows.iter().zip(&batch.children[1..]) {
        assert!(row.ends_with(&format!("|{}|{child}", batch.parent)), "{row}");
        assert!(["queued", "running", "succeeded"].iter().any(|state| row.starts_with(state)), "{row}");
    }
    batch.succeed(&mut session);
    assert_eq!(session.rows("select a from ran order by a"), ["1", "2", "3", "4"]);
    // Nothing of the earlier ends is left.
    let clean = "sqlstate is null and message is null and detail is null and context is null";
    assert_eq!(batch.column(&mut session, clean), times("t", 4));
    assert_eq!(session.value("select count(*) from log_background"), "4");
}

#[case]
fn one_job_is_run_again(db: &Db) {
    let mut session = db.session();
    session.run("create table wanted (a int)");
    let fails = "select 1 / (select count(*) from wanted)";
    let batch = Batch::launch(&mut session, &[fails, fails, "select 3"]);
    assert_eq!(batch.finish(&mut session), ["failed", "failed", "succeeded"]);
    session.run("insert into wanted values (1)");
    assert_eq!(retry(&mut session, &batch.children[1]), batch.children[1..2]);
    assert_eq!(batch.finish(&mut session), ["failed", "succeeded", "succeeded"]);
    // Also by the other form.
    session.run(&format!("select * from pg_background_retry('{}'::uuid)", batch.children[0]));
    batch.succeed(&mut session);
}

#[case]
fn what_succeeded_is_not_run_again(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int)");
    let batch = Batch::launch(&mut session, &["insert into ran values (1)"]);
    batch.succeed(&mut session);
    for uuid in [&batch.parent, &batch.children[0]] {
        assert_eq!(session.error(&format!("select * from pg_background_retry('{uuid}')")).sqlstate(), "55000");
    }
    let live = Batch::launch_with(&mut session, &[barrier::WAIT, "select 2"], r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut session, 1);
    for uuid in [&live.parent, &live.children[0], &live.children[1]] {
        assert_eq!(session.error(&format!("select * from pg_background_retry('{uuid}')")).sqlstate(), "55000");
    }
    barrier.open();
    live.succeed(&mut session);
    assert_eq!(session.rows("table ran"), ["1"]);
}

#[case]
fn a_job_that_is_run_again_keeps_its_uuid_and_its_settings(db: &Db) {
    let user = db.role("user", "login");
    let mut session = db.client().user(&user).connect();
    db.session().run("create table wanted (a int); grant select on wanted to public");
    session.run("set my.own = 'kept'");
    let text =
        "select current_user::text as u, current_setting('my.own', true) as o, 1 / (select count(*) from wanted)";
    let jobs = format!(r#"[{{"query": "{text}", "name": "the name"}}]"#);
    let batch = Batch::launch_json(&mut session, &jobs);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    let id = batch.log(&mut session, 0, "id");
    // By somebody else, who may.
    let mut admin = db.session();
    admin.run("insert into wanted values (1)");
    assert_eq!(retry(&mut admin, &batch.parent), batch.children);
    batch.succeed(&mut session);
    let row = "concat_ws('|', id, name, user_name, result::jsonb -> 0 ->> 'u')";
    assert_eq!(batch.log(&mut session, 0, row), format!("{id}|the name|{user}|{user}"));
}

#[case]
fn a_job_that_is_run_again_has_all_its_attempts(db: &Db) {
    let mut session = db.session();
    session.run("create sequence tries");
    let text = "select nextval('tries'); select 1 / 0";
    let batch = Batch::launch_with(&mut session, &[text], r#"{"max_attempts": 2}"#);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    for tried in ["2", "4", "6"] {
        assert_eq!(session.value("select last_value from tries"), tried);
        assert_eq!(batch.log(&mut session, 0, "attempts"), tried, "they count on");
        retry(&mut session, &batch.parent);
        assert_eq!(batch.finish(&mut session), ["failed"]);
    }
}

/// Fails until the table `wanted` has a row.
const WANTS: &str = "select 1 / (select count(*) from wanted)";

#[case]
fn a_sequence_is_run_again_as_a_sequence(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table wanted (a int); create table ran (id serial, a int)");
    let texts: Vec<String> =
        (0..5).map(|n| format!("{WANTS}; {}; insert into ran (a) values ({n})", barrier::WAIT)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    assert_eq!(batch.finish(&mut session), times("failed", 5));
    session.run("insert into wanted values (1)");
    retry(&mut session, &batch.parent);
    wait_at_barrier(&mut session, 1);
    assert_eq!(batch.states(&mut session), ["running", "queued", "queued", "queued", "queued"]);
    barrier.open();
    batch.succeed(&mut session);
    assert_eq!(session.rows("select a from ran order by id"), ["0", "1", "2", "3", "4"]);
}

#[case]
fn the_time_limit_holds_again(db: &Db) {
    let mut session = db.session();
    for (value, count) in [("0.1", 1), (r#""150 ms""#, 2)] {
        let options = format!(r#"{{"timeout": {value}}}"#);
        let batch = Batch::launch_with(&mut session, &times(SLEEP_FOREVER, count), &options);
        for _ in 0..3 {
            assert_eq!(batch.finish(&mut session), times("failed", count));
            let message = batch.column(&mut session, "message");
            assert_eq!(message, times("canceling job due to timeout", count));
            retry(&mut session, &batch.parent);
        }
        batch.wait(&mut session);
    }
}

#[case]
fn the_workers_of_a_batch_are_limited_again(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table wanted (a int)");
    let text = format!("{WANTS}; {}", barrier::WAIT);
    let batch = Batch::launch_with(&mut session, &times(&text, 6), r#"{"max_workers": 2}"#);
    assert_eq!(batch.finish(&mut session), times("failed", 6));
    session.run("insert into wanted values (1)");
    retry(&mut session, &batch.parent);
    wait_at_barrier(&mut session, 2);
    // Any other job gets a worker, so a third of these would have had one.
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    let states = batch.states(&mut session);
    assert_eq!(states.iter().filter(|state| *state == "running").count(), 2, "{states:?}");
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn an_error_stops_the_rest_again(db: &Db) {
    let mut session = db.session();
    let texts = ["select 1 / 0", "select 2", "select 3"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential", "on_error": "stop"}"#);
    for attempts in ["1", "2", "3"] {
        assert_eq!(batch.finish(&mut session), ["failed", "stopped", "stopped"]);
        assert_eq!(batch.column(&mut session, "attempts"), [attempts, "0", "0"]);
        let message = batch.column(&mut session, "message");
        assert_eq!(message, ["division by zero", "another job of the batch failed", "another job of the batch failed"]);
        retry(&mut session, &batch.parent);
    }
    batch.wait(&mut session);
}

#[case]
fn each_job_has_its_own_options_again(db: &Db) {
    let mut session = db.session();
    let jobs = &format!(
        r#"[{{"query": "select {FOREVER}", "timeout": 0.1}}, {{"query": "select 1 / 0", "max_attempts": 3}},
        {{"query": "select 1 / 0", "max_attempts": 2, "retry_delay": "1 hour"}}, "select 1 / 0"]"#
    );
    let batch = Batch::launch_json(&mut session, jobs);
    let has_tried = |session: &mut Session, times: &str| {
        let row = batch.column(session, "status || attempts").join(" ");
        row == times
    };
    wait_until("the first attempts", || has_tried(&mut session, "failed1 failed3 queued1 failed1"));
    session.run(&format!("select pg_background_stop('{}')", batch.children[2]));
    batch.wait(&mut session);
    retry(&mut session, &batch.parent);
    wait_until("the second attempts", || has_tried(&mut session, "failed2 failed6 queued2 failed2"));
    session.run(&format!("select pg_background_stop('{}')", batch.children[2]));
    batch.wait(&mut session);
}

#[case]
fn a_batch_keeps_its_name(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table wanted (a int)");
    let text = format!("{WANTS}; {}", barrier::WAIT);
    let jobs = format!(r#"[{{"query": "{text}", "name": "its own"}}, "{text}"]"#);
    let options = r#"{"name": "the name"}"#;
    let call = format!("pg_background_launch_num({}::jsonb, p_options => {})", literal(&jobs), literal(options));
    let batch = Batch::call(&mut session, &call);
    assert_eq!(batch.finish(&mut session), ["failed", "failed"]);
    session.run("insert into wanted values (1)");
    retry(&mut session, &batch.parent);
    wait_at_barrier(&mut session, 2);
    for view in ["background_mgr.live()", "pg_background_jobs"] {
        let query = format!("select name from {view} where uuid_parent = '{}' order by uuid_child", batch.parent);
        assert_eq!(session.rows(&query), ["its own", "the name"], "{view}");
    }
    let live = format!("select distinct batch_name from background_mgr.live() where uuid_parent = '{}'", batch.parent);
    assert_eq!(session.rows(&live), ["the name"]);
    let batches = format!("select name from pg_background_batches where uuid_parent = '{}'", batch.parent);
    assert_eq!(session.rows(&batches), ["the name"]);
    barrier.open();
    batch.succeed(&mut session);
}

/// The options hold also when the log cannot be written between the retries.
#[case]
fn the_options_hold_for_every_retry(db: &Db) {
    let (mut session, mut holder) = (db.session(), db.session());
    let options =
        r#"{"mode": "sequential", "max_attempts": 2, "timeout": "1 day", "max_workers": 3, "retry_delay": "2 ms"}"#;
    let batch = Batch::launch_with(&mut session, &["select 1 / 0", "select 1 / 0"], options);
    let kept = "select options from background_mgr.log order by uuid_child";
    let expected = concat!(
        r#"{"mode": "sequential", "timeout": "86400000 ms", "max_workers": 3, "#,
        r#""retry_delay": "2 ms", "max_attempts": 2}"#
    );
    for attempts in ["2", "4", "6", "8"] {
        assert_eq!(batch.finish(&mut session), ["failed", "failed"]);
        assert_eq!(batch.column(&mut session, "attempts"), [attempts, attempts]);
        let rows = "select concat_ws(' ', status, attempts) from background_mgr.log";
        wait_until("the rows are final", || session.rows(rows) == times(&format!("failed {attempts}"), 2));
        assert_eq!(session.rows(kept), [expected, expected]);
        holder.run(FREEZE_LOG);
        retry(&mut session, &batch.parent);
        wait_until("both have failed", || batch.states(&mut session) == ["failed", "failed"]);
        holder.run("rollback");
    }
    // Nothing that was not said is kept.
    let plain = Batch::launch(&mut session, &["select 1"]);
    plain.succeed(&mut session);
    let kept = format!("select options is null from background_mgr.log where uuid_parent = '{}'", plain.parent);
    assert_eq!(session.value(&kept), "t");
}

/// The server crashes once before a worker has come to the batch, and once after the batch was written to the log.
#[case]
fn the_options_survive_crashes() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "1")]);
    let mut session = cluster.session("postgres");
    session.run("create table ran (id serial, a int)");
    let options = r#"{"mode": "sequential", "name": "the name", "timeout": "1 hour", "max_attempts": 2}"#;
    for is_recorded in [false, true] {
        let barrier = Barrier::close(cluster.session("postgres"));
        let first = if is_recorded { barrier::WAIT } else { "select 0" };
        let texts = [first, "insert into ran (a) values (1)", "insert into ran (a) values (2)", "select 1 / 0"];
        if !is_recorded {
            Batch::launch(&mut session, &[barrier::WAIT]);
            wait_at_barrier(&mut session, 1);
        }
        let batch = Batch::launch_with(&mut session, &texts, options);
        wait_at_barrier(&mut session, 1);
        let in_log = format!("from background_mgr.log where uuid_parent = '{}'", batch.parent);
        let count = if is_recorded { "4" } else { "0" };
        assert_eq!(session.value(&format!("select count(*) {in_log}")), count);
        session = crash(&cluster);
        drop(barrier);
        assert_eq!(batch.states(&mut session), times("lost", 4));
        assert_eq!(retry(&mut session, &batch.parent), batch.children);
        assert_eq!(batch.finish(&mut session), ["succeeded", "succeeded", "succeeded", "failed"]);
        assert_eq!(session.rows("select a from ran order by id"), ["1", "2"]);
        session.run("truncate ran");
        assert_eq!(batch.log(&mut session, 3, "attempts"), "2");
        let kept = session.rows(&format!("select distinct batch_name || ' ' || options {in_log}"));
        let expected = r#"the name {"mode": "sequential", "timeout": "3600000 ms", "max_attempts": 2}"#;
        assert_eq!(kept, [expected]);
    }
}

#[case]
fn only_who_may_run_jobs_again(db: &Db) {
    let (user, member) = (db.role("user", "login"), db.role("member", "login"));
    let signaller = db.role("signaller", "login");
    db.session().run(&format!("grant {user} to {member}; grant pg_signal_backend to {signaller}"));
    let mut session = db.client().user(&user).connect();
    let batch = Batch::launch(&mut session, &["select 1 / 0"]);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    let call = format!("select uuid_child from pg_background_retry('{}')", batch.parent);
    assert_eq!(db.client().user(&signaller).connect().error(&call).sqlstate(), "42704");
    for mut other in [db.client().user(&member).connect(), db.session()] {
        assert_eq!(other.rows(&call), batch.children);
        assert_eq!(batch.finish(&mut session), ["failed"]);
        assert_eq!(log(&mut session, &batch.children[0], "user_name"), user);
    }
}

#[case]
fn unknown_jobs_are_not_run_again(db: &Db) {
    let mut session = db.session();
    for (uuid, sqlstate) in [
        (format!("'{NOBODY}'"), "42704"),
        (format!("'{NOBODY}'::uuid"), "42704"),
        ("'x'".to_owned(), "22P02"),
        ("null::text".to_owned(), "22004"),
        ("null::uuid".to_owned(), "22004"),
    ] {
        assert_eq!(session.error(&format!("select * from pg_background_retry({uuid})")).sqlstate(), sqlstate, "{uuid}");
    }
}

#[case]
fn jobs_are_not_run_again_on_a_standby() {
    let primary = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1s")]);
    let mut session = primary.session("postgres");
    let batch = Batch::launch(&mut session, &["select 1 / 0"]);
    batch.wait(&mut session);
    drop(session);
    let standby = Cluster::start_standby(&primary);
    let error = standby.session("postgres").error(&format!("select * from pg_background_retry('{}')", batch.parent));
    assert_eq!(error.sqlstate(), "25006");
    standby.stop(Stop::Fast);
}

/// The rest of its batch still runs.
#[case]
fn a_job_is_run_again_beside_its_batch(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table wanted (a int)");
    let held = format!("{WANTS}; {}", barrier::WAIT);
    let batch = Batch::launch(&mut session, &[&held, barrier::WAIT]);
    batch.wait_state(&mut session, 0, "failed");
    session.run("insert into wanted values (1)");
    let call = format!("select status, uuid_child from pg_background_retry('{}')", batch.parent);
    let told = session.rows(&call);
    assert!(told.len() == 1 && !told[0].starts_with("failed") && told[0].ends_with(&batch.children[0]), "{told:?}");
    wait_at_barrier(&mut session, 2);
    for view in ["log_background", "pg_background_jobs"] {
        let query =
            format!("select status, attempts from {view} where uuid_parent = '{}' order by uuid_child", batch.parent);
        assert_eq!(session.rows(&query), ["running|2", "running|1"], "{view}");
    }
    for uuid in [&batch.parent, &batch.children[0]] {
        let query = format!("select distinct status from pg_background_monitor('{uuid}', false, '0')");
        assert_eq!(session.rows(&query), ["running"]);
    }
    // A second time it is not there to be launched.
    assert_eq!(session.error(&call).sqlstate(), "55000");
    let stopped = format!("select uuid_child, was, now from pg_background_stop('{}')", batch.parent);
    let expected: Vec<String> = batch.children.iter().map(|child| format!("{child}|running|stopped")).collect();
    assert_eq!(session.rows(&stopped), expected);
    barrier.open();
    assert_eq!(batch.finish(&mut session), ["stopped", "stopped"]);
}

/// The log is asked all the time: between the job's row and the word of its worker there is next to no time.
/// Many rows that one waits for, each a fifth of a second, would keep every worker from the jobs of others.
#[case]
fn rows_that_are_being_deleted_hold_up_no_worker() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "1")]);
    let (mut session, mut pruner) = (cluster.session("postgres"), cluster.session("postgres"));
    let batches: Vec<Batch> = (0..5).map(|_| Batch::launch(&mut session, &["select 1 / 0"])).collect();
    for batch in &batches {
        wait_until("the row is written", || batch.written(&mut session) == ["failed"]);
    }
    pruner.run("begin");
    assert_eq!(pruner.value("select pg_background_prune('0')"), "5");
    let mark = cluster.log_mark();
    batches.iter().for_each(|batch| drop(retry(&mut session, &batch.parent)));
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    for batch in &batches {
        assert_eq!(batch.finish(&mut session), ["failed"]);
    }
    let lines: Vec<String> = cluster.log_since(mark).into_iter().map(|line| line.text).collect();
    let refused = "could not write the log of pg_background_mgr, will try again: ";
    let reasons: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix(refused)).collect();
    assert!(!reasons.is_empty(), "{lines:?}");
    assert!(reasons.iter().all(|reason| *reason == "the log of pg_background_mgr is locked"), "{reasons:?}");
    pruner.run("commit");
    for batch in &batches {
        wait_until("the row is written again", || batch.written(&mut session) == ["failed"]);
    }
}

#[case]
fn what_the_log_says_has_failed_is_run_again(db: &Db) {
    let mut session = db.session();
    session.run("create table retried (n int)");
    for _ in 0..100 {
        let batch = Batch::launch(&mut session, &["select 1 / 0"]);
        session.run(&format!(
            "do $$ begin loop perform from background_mgr.log where uuid_child = '{0}' and status = 'failed'; \
             exit when found; end loop; insert into retried select count(*) from pg_background_retry('{0}'); end $$",
            batch.children[0]
        ));
        batch.wait(&mut session);
    }
    assert_eq!(session.rows("select count(*), sum(n) from retried"), ["100|100"]);
}

/// Each session asks for the same jobs at the same time.
#[case]
fn sessions_at_once_run_a_job_again_once(db: &Db) {
    let mut session = db.session();
    session.run("create table wanted (a int); create table ran (a int)");
    for _ in 0..20 {
        session.run("truncate wanted; truncate ran");
        let text = format!("{WANTS}; insert into ran values (1)");
        let batch = Batch::launch(&mut session, &times(&text, 5));
        assert_eq!(batch.finish(&mut session), times("failed", 5));
        session.run("insert into wanted values (1)");
        let call = format!("select uuid_child from pg_background_retry('{}')", batch.parent);
        let mut others: Vec<Session> = (0..4).map(|_| db.session()).collect();
        others.iter_mut().for_each(|other| other.send(&call));
        let replies: Vec<_> = others.iter_mut().map(|other| other.finish(&call)).collect();
        let refused = replies.iter().filter_map(|reply| reply.error.as_ref());
        refused.for_each(|error| assert_eq!(error.sqlstate(), "55000"));
        assert_eq!(replies.iter().filter(|reply| reply.error.is_none()).count(), 1);
        batch.succeed(&mut session);
        assert_eq!(session.value("select count(*) from ran"), "5");
    }
}

#[case]
fn what_was_stopped_just_now_is_run_again(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch_with(&mut session, &times(barrier::WAIT, 5), r#"{"max_workers": 2}"#);
    wait_at_barrier(&mut session, 2);
    for _ in 0..5 {
        stop(&mut session, &batch.parent, None);
        assert_eq!(retry(&mut session, &batch.parent), batch.children);
        wait_at_barrier(&mut session, 2);
    }
    barrier.open();
    batch.succeed(&mut session);
}

/// A retry must not take the job for one that needs none.
#[case]
fn a_job_whose_end_cannot_be_written_is_run_again_later(db: &Db) {
    let (mut session, mut holder) = (db.session(), db.session());
    holder.run(FREEZE_LOG);
    let batch = Batch::launch(&mut session, &["select 1 / 0", "select 2"]);
    wait_until("both have ended", || batch.states(&mut session) == ["failed", "succeeded"]);
    for uuid in [&batch.parent, &batch.children[0]] {
        let error = session.error(&format!("select * from pg_background_retry('{uuid}')"));
        let message = format!("the end of background job \"{}\" is not in the log yet", batch.children[0]);
        assert_eq!((error.sqlstate(), error.message()), ("55000".to_owned(), message));
        assert!(error.hint().is_some_and(|hint| hint.contains("Try again")), "{error:?}");
    }
    holder.run("rollback");
    wait_until("the end is written", || batch.written(&mut session) == ["failed", "succeeded"]);
    assert_eq!(retry(&mut session, &batch.parent), batch.children[..1]);
}

/// No worker is free to write it.
#[case]
fn what_is_not_in_the_log_yet_is_there_all_the_same() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "1")]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut session, 1);
    let batch = Batch::launch(&mut session, &["select 1", "select 2"]);
    stop(&mut session, &batch.parent, None);
    let call = format!("select uuid_child from pg_background_retry('{}')", batch.parent);
    assert_eq!(session.error(&call).sqlstate(), "55000", "it cannot be launched yet, but it exists");
    barrier.open();
    wait_until("it is in the log", || session.ask(&call).error.is_none());
    batch.succeed(&mut session);
}
