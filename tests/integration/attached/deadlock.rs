//! A wait that can never end is an error: the job is blocked by the session that waits for it.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{drain, wait_at_barrier, Batch};
use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, wait_until, Db, ServerError, Session};

/// Reads the job, which must be told as a deadlock of `text` with the reading statement.
#[track_caller]
fn assert_deadlock(session: &mut Session, pid: i32, text: &str) {
    let read = format!("select * from pg_background_result({pid}) as (result text)");
    let error = session.error(&read);
    assert_told(&error, &read, text);
}

#[track_caller]
fn assert_told(error: &ServerError, read: &str, text: &str) {
    assert_eq!(error.brief(), ("40P01".to_owned(), "deadlock detected".to_owned()));
    let detail = error.detail().unwrap_or_default();
    assert!(detail.contains(read), "the reading statement is not in: {detail}");
    assert!(detail.contains(text), "the job's text is not in: {detail}");
}

#[case]
fn a_row_lock_of_the_waiting_session_is_a_deadlock(db: &Db) {
    let mut session = db.session();
    session.run("create table t (id int primary key, n int); insert into t values (1, 0)");
    session.run("begin; update t set n = 1 where id = 1");
    let text = "update t set n = n + 10 where id = 1";
    let pid = session.launch(text);
    assert_deadlock(&mut session, pid, text);
    session.run("rollback");
    assert_eq!(session.result(pid, "result text"), ["UPDATE 1"]);
    assert_eq!(session.rows("table t"), ["1|10"]);
}

#[case]
fn a_table_lock_of_the_waiting_session_is_a_deadlock(db: &Db) {
    let mut session = db.session();
    session.run("create table t (n int)");
    session.run("begin; lock table t in access exclusive mode");
    let text = "select count(*)::text from t";
    let pid = session.launch(text);
    assert_deadlock(&mut session, pid, text);
    session.run("rollback; begin; insert into t values (1)");
    let text = "alter table t add m int";
    let pid = session.launch(text);
    assert_deadlock(&mut session, pid, text);
    session.run("rollback");
    assert_eq!(session.result(pid, "result text"), ["ALTER TABLE"]);
}

#[case]
fn an_advisory_lock_of_the_waiting_session_is_a_deadlock(db: &Db) {
    let mut session = db.session();
    session.run("select pg_advisory_lock(3)");
    let text = "select pg_advisory_xact_lock(3)";
    let pid = session.launch(text);
    assert_deadlock(&mut session, pid, text);
    session.run("select pg_advisory_unlock(3)");
    assert_eq!(session.result(pid, "nothing text"), [""]);
}

#[case]
fn a_unique_key_of_the_waiting_session_is_a_deadlock(db: &Db) {
    let mut session = db.session();
    session.run("create table t (id int primary key)");
    session.run("begin; insert into t values (1)");
    let text = "insert into t values (1)";
    let pid = session.launch(text);
    assert_deadlock(&mut session, pid, text);
    session.run("rollback");
    assert_eq!(session.result(pid, "result text"), ["INSERT 0 1"]);
}

#[case]
fn a_concurrent_index_build_on_a_written_table_is_a_deadlock(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run("begin; insert into t values (1)");
    let text = "create index concurrently i on t (a)";
    let pid = session.launch(text);
    assert_deadlock(&mut session, pid, text);
    session.run("rollback");
    wait_until("the end of the process", || !is_alive(pid));
    assert_eq!(session.result(pid, "result text"), ["CREATE INDEX"]);
    assert!(session.holds("select indisvalid from pg_index where indexrelid = 'i'::regclass"));
}

#[case]
fn a_concurrent_index_build_read_in_the_same_statement_is_a_deadlock(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select generate_series(1, 100) as a");
    let text = "create index concurrently i on t (a)";
    let read = format!("select * from pg_background_result(pg_background_launch('{text}')) as (result text)");
    let error = session.error(&read);
    assert_told(&error, &read, text);
    let valid = "select count(*) from pg_index where indrelid = 't'::regclass and indisvalid";
    wait_until("the index, without anybody waiting for it", || session.value(valid) == "1");
}

/// A procedure holds no snapshot between its statements; launch, commit, and read when the job is done.
#[case]
fn a_concurrent_index_build_launched_from_a_committing_procedure_works(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select generate_series(1, 100) as a");
    session.run(
        "do $$ begin perform pg_background_detach(pg_background_launch('create index concurrently i on \
        t (a)')); commit; end $$",
    );
    let valid = "select count(*) from pg_index where indrelid = 't'::regclass and indisvalid";
    wait_until("the index", || session.value(valid) == "1");
}

/// The job waits for a third session, which waits for the session that waits for the job.
struct Triangle<'a> {
    setup: &'a str,
    /// Statements of the session, and of the third one, that they have run in a transaction which is open.
    own: &'a str,
    thirds: &'a str,
    /// Statement of the third session that is to wait, and text of the job.
    blocked: &'a str,
    text: &'a str,
}

/// Asserts that the deadlock is found; lets all of them go at the end, and returns the session and the job.
#[track_caller]
fn assert_triangle(db: &Db, triangle: &Triangle) -> (Session, i32) {
    let Triangle { setup, own, thirds, blocked, text } = *triangle;
    let (mut session, mut third, mut watcher) = (db.session(), db.session(), db.session());
    session.run(setup);
    session.run(&format!("begin; {own}"));
    third.run(&format!("begin; {thirds}"));
    third.send(blocked);
    wait_blocked(&mut watcher, third.pid(), session.pid());
    let pid = session.launch(text);
    wait_blocked(&mut watcher, pid, third.pid());
    assert_deadlock(&mut session, pid, text);
    session.run("rollback");
    assert!(third.finish(blocked).error.is_none());
    third.run("commit");
    (session, pid)
}

#[case]
fn a_deadlock_through_a_third_session(db: &Db) {
    let triangle = Triangle {
        setup: "create table t (id int primary key, n int); insert into t values (1, 0), (2, 0)",
        own: "update t set n = 1 where id = 1",
        thirds: "update t set n = 2 where id = 2",
        blocked: "update t set n = 2 where id = 1",
        text: "update t set n = 3 where id = 2",
    };
    let (mut session, pid) = assert_triangle(db, &triangle);
    assert_eq!(session.result(pid, "result text"), ["UPDATE 1"]);
    assert_eq!(session.rows("select * from t order by id"), ["1|2", "2|3"]);
}

/// The build waits for the end of the third session's transaction, which waits for a row of the first.
#[case]
fn a_concurrent_index_build_through_a_third_session_is_a_deadlock(db: &Db) {
    let triangle = Triangle {
        setup: "create table t (a int); create table u (id int primary key); insert into u values (1)",
        own: "update u set id = 1",
        thirds: "insert into t values (1)",
        blocked: "update u set id = 2",
        text: "create index concurrently i on t (a)",
    };
    let (mut session, pid) = assert_triangle(db, &triangle);
    // Who waits for it before has a snapshot that it waits for.
    let valid = "select count(*) from pg_index where indrelid = 't'::regclass and indisvalid";
    wait_until("the index", || session.value(valid) == "1");
    assert_eq!(session.result(pid, "result text"), ["CREATE INDEX"]);
}

#[track_caller]
fn wait_blocked(watcher: &mut Session, pid: i32, by: i32) {
    wait_until("one session blocks the other", || {
        watcher.holds(&format!("select {by} = any (pg_blocking_pids({pid}))"))
    });
}

#[case]
fn a_deadlock_through_the_queue_for_a_lock(db: &Db) {
    let (mut session, mut third, mut watcher) = (db.session(), db.session(), db.session());
    session.run("create table t (n int)");
    session.run("begin; select * from t");
    let blocked = "lock table t in access exclusive mode";
    third.run("begin");
    third.send(blocked);
    wait_blocked(&mut watcher, third.pid(), session.pid());
    // Not in conflict with the session, but behind one who is.
    let text = "select count(*)::text from t";
    let pid = session.launch(text);
    wait_blocked(&mut watcher, pid, third.pid());
    assert_deadlock(&mut session, pid, text);
    session.run("rollback");
    assert!(third.finish(blocked).error.is_none());
    third.run("rollback");
    assert_eq!(session.result(pid, "n text"), ["0"]);
}

#[case]
fn a_deadlock_through_a_job_of_the_job(db: &Db) {
    let mut session = db.session();
    session.run("create table t (n int); insert into t values (0)");
    session.run("begin; update t set n = 1");
    let inner = "update t set n = n + 10";
    let outer = format!("select * from pg_background_result(pg_background_launch('{inner}')) as (result text)");
    let pid = session.launch(&outer);
    let error = session.result_error(pid);
    assert_eq!(error.brief(), ("40P01".to_owned(), "deadlock detected".to_owned()));
    session.run("rollback");
    wait_until("no process of a job is left", || {
        let left = "select count(*) from pg_stat_activity where backend_type = 'pg_background' and datname = \
            current_database()";
        session.value(left) == "0"
    });
    assert_eq!(session.value("select n from t"), "10");
}

#[case]
fn a_deadlock_is_found_again_after_a_savepoint(db: &Db) {
    let mut session = db.session();
    session.run("create table t (n int); insert into t values (0)");
    session.run("begin; update t set n = 1; savepoint s");
    let text = "update t set n = n + 10";
    let pid = session.launch(text);
    for _ in 0..3 {
        assert_deadlock(&mut session, pid, text);
        session.run("rollback to s");
    }
    session.run("commit");
    assert_eq!(session.result(pid, "result text"), ["UPDATE 1"]);
    assert_eq!(session.value("select n from t"), "11");
}

#[case]
fn a_deadlock_can_be_caught(db: &Db) {
    let mut session = db.session();
    session.run("create table t (n int); insert into t values (0)");
    session.run(
        "do $$ declare job int; begin update t set n = 1; job := pg_background_launch('update t set n = n + 10'); \
         begin perform * from pg_background_result(job) as (r text); \
         exception when deadlock_detected then raise notice 'caught'; end; \
         commit; perform * from pg_background_result(job) as (r text); end $$",
    );
    assert_eq!(session.notice_texts(), ["NOTICE: caught"]);
    assert_eq!(session.value("select n from t"), "11");
}

#[case]
fn the_job_goes_on_when_the_session_gives_way(db: &Db) {
    let mut session = db.session();
    session.run("create table t (n int); insert into t values (0)");
    session.run("begin; update t set n = 1");
    let text = "update t set n = n + 10";
    let pid = session.launch(text);
    assert_deadlock(&mut session, pid, text);
    session.run("rollback");
    wait_until("the end of the process", || !is_alive(pid));
    assert_eq!(session.value("select n from t"), "10");
}

#[case]
fn a_job_blocked_by_another_session_is_waited_for(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    session.run("create table t (n int); insert into t values (0)");
    other.run("begin; update t set n = 1");
    let pid = session.launch("update t set n = n + 10");
    let read = format!("select * from pg_background_result({pid}) as (result text)");
    session.send(&read);
    let holder = other.pid();
    wait_blocked(&mut other, pid, holder);
    // Five times deadlock_timeout, on the server's clock.
    other.run("select pg_sleep(1)");
    other.run("commit");
    assert_eq!(session.finish(&read).last_rows().expect("rows").text_rows(), ["UPDATE 1"]);
    assert_eq!(session.value("select n from t"), "11");
}

#[case]
fn a_wait_that_ends_soon_is_no_deadlock(db: &Db) {
    let mut session = db.session();
    session.run("create table t (n int); insert into t values (0)");
    session.run("begin; update t set n = 1");
    let pid = session.launch("update t set n = n + 10");
    session.run("commit");
    assert_eq!(session.result(pid, "result text"), ["UPDATE 1"]);
}

#[case]
fn two_jobs_in_a_deadlock_are_told_by_the_server(db: &Db) {
    let (mut session, mut barrier) = (db.session(), db.session());
    session.run("create table t (id int primary key, n int); insert into t values (1, 0), (2, 0)");
    barrier.run("select pg_advisory_lock(8)");
    let text = |first: i32, second: i32| {
        format!(
            "update t set n = n + 1 where id = {first}; select pg_advisory_xact_lock_shared(8); \
             update t set n = n + 1 where id = {second}"
        )
    };
    let pids = [session.launch(&text(1, 2)), session.launch(&text(2, 1))];
    for pid in pids {
        wait_blocked(&mut session, pid, barrier.pid());
    }
    barrier.run("select pg_advisory_unlock(8)");
    let states: Vec<String> = pids
        .iter()
        .map(|pid| {
            session
                .ask(&format!("select pg_background_result({pid})"))
                .error
                .map(|error| error.sqlstate())
                .unwrap_or_default()
        })
        .collect();
    assert!(states == ["40P01", ""] || states == ["", "40P01"], "{states:?}");
    assert_eq!(session.rows("select n from t"), ["1", "1"]);
}

#[case]
fn a_followed_job_that_waits_for_its_follower_is_a_deadlock(db: &Db) {
    let mut session = db.session();
    session.run("create table t (n int); insert into t values (0)");
    for timeout in ["", ", p_timeout => '1 hour'"] {
        session.run("begin; update t set n = n + 1");
        let batch = Batch::launch(&mut session, &["update t set n = n + 10"]);
        let error = session.error(&format!("select * from pg_background_monitor('{}', false{timeout})", batch.parent));
        assert_eq!(error.brief(), ("40P01".to_owned(), "deadlock detected".to_owned()));
        session.run("rollback");
        batch.succeed(&mut session);
    }
    assert_eq!(session.value("select n from t"), "20");
}

#[case]
fn a_deadlock_through_a_job_that_a_job_follows(db: &Db) {
    let mut session = db.session();
    session.run("create table t (n int); insert into t values (0)");
    session.run("begin; update t set n = 1");
    let inner = "select status from pg_background_launch_num('update t set n = n + 10', p_exec_type => 'sync')";
    let batch = Batch::launch(&mut session, &[inner]);
    // One of the two is told.
    let reply = session.ask(&format!("select * from pg_background_monitor('{}', false)", batch.parent));
    let told = reply.error.map(|error| error.sqlstate());
    session.run("rollback");
    batch.wait(&mut session);
    let of_job = batch.log(&mut session, 0, "sqlstate");
    assert!(told.as_deref() == Some("40P01") || of_job == "40P01", "{told:?} {of_job}");
    drain(&mut session);
    assert_eq!(session.value("select n from t"), "10");
}

/// A job that waits at the barrier, then for the end of what the table says.
fn follower(number: u32) -> String {
    format!(
        "{}; select count(*) from pg_background_monitor((select u from followed where n = {number}), false)",
        barrier::WAIT
    )
}

#[case]
fn batches_that_follow_each_other_are_a_deadlock(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table followed (n int, u text)");
    let batches = [1, 2].map(|number| Batch::launch(&mut session, &["select 1", &follower(number)]));
    wait_at_barrier(&mut session, 2);
    let [first, second] = &batches;
    session.run(&format!("insert into followed values (1, '{}'), (2, '{}')", second.parent, first.parent));
    barrier.open();
    let mut told: Vec<String> = Vec::new();
    for batch in &batches {
        batch.wait(&mut session);
        told.extend(batch.column(&mut session, "coalesce(sqlstate, 'none')"));
    }
    assert_eq!(told.iter().filter(|state| *state == "40P01").count(), 1, "{told:?}");
    assert_eq!(told.iter().filter(|state| *state == "none").count(), 3, "{told:?}");
}

#[case]
fn a_job_that_follows_itself_is_refused(db: &Db) {
    let mut session = db.session();
    session.run("create table followed (n int, u text)");
    // Itself, its batch, the one that comes after it.
    for (options, text, target) in [
        ("{}", follower(1), 0),
        ("{}", follower(1), 2),
        (r#"{"mode": "sequential"}"#, follower(1), 1),
        (r#"{"max_workers": 1}"#, follower(1), 1),
    ] {
        let barrier = Barrier::close(db.session());
        let batch = Batch::launch_with(&mut session, &[&text, "select 2"], options);
        wait_at_barrier(&mut session, 1);
        let followed = batch.children.get(target).unwrap_or(&batch.parent);
        session.run(&format!("truncate followed; insert into followed values (1, '{followed}')"));
        barrier.open();
        assert_eq!(batch.finish(&mut session), ["failed", "succeeded"], "{options} {target}");
        assert_eq!(batch.log(&mut session, 0, "sqlstate"), "55000");
    }
    // A look at oneself is none, nor what one does not wait for.
    let barrier = Barrier::close(db.session());
    let text = follower(1).replace("false)", "false, '10ms')");
    let batch = Batch::launch(&mut session, &[&text, &follower(2)]);
    wait_at_barrier(&mut session, 2);
    let (parent, first) = (&batch.parent, &batch.children[0]);
    session.run(&format!("truncate followed; insert into followed values (1, '{parent}'), (2, '{first}')"));
    barrier.open();
    batch.succeed(&mut session);
}
