//! `pg_background_monitor`: what it gives, how long it waits, what it tells meanwhile, what it costs.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{array, half_way, times, wait_at_barrier, Batch, NOBODY};
use crate::support::idle_worker::count_sleeps;
use pg_background_mgr_tests::{case, literal, wait_until, Db, Session, FOREVER};
use std::time::{Duration, Instant};

/// Monitors at once, in one line for each job.
#[track_caller]
fn now(session: &mut Session, columns: &str, uuid: &str) -> Vec<String> {
    session.rows(&format!("select {columns} from pg_background_monitor('{uuid}', false, '0')"))
}

/// Returns a query for whether a session waits within its statement.
fn waiting(session: &Session) -> String {
    format!(
        "select count(*) from pg_stat_activity where pid = {} and state = 'active' and wait_event is not null",
        session.pid()
    )
}

#[case]
fn without_a_uuid_every_job_is_shown_at_once(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("select * from pg_background_monitor()");
    let batch = half_way(&mut session);
    Batch::launch(&mut session, &["select 1 / 0"]).wait(&mut session);
    // Of other databases it shows those that have not ended.
    let shown = "select status, count(*) from pg_background_monitor() where uuid_child in \
                 (select uuid_child from log_background) group by status order by status";
    let expected = ["failed|1", "queued|2", "running|1", "succeeded|1"];
    assert_eq!(session.rows(shown), expected);
    for call in ["null::text", "null::uuid", "uuid_father => null::text", "p_show_verbose => false"] {
        assert_eq!(session.rows(&shown.replace("()", &format!("({call})"))), expected, "{call}");
    }
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn a_batch_is_followed_until_its_end(db: &Db) {
    let (mut session, mut watcher, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    let query = format!(
        "select status, trim(query), result::jsonb -> 0 ->> 'a' from pg_background_monitor('{}', false)",
        batch.parent
    );
    session.send(&query);
    let waits = waiting(&session);
    wait_until("the monitor waits", || watcher.value(&waits) == "1");
    barrier.open();
    let reply = session.finish(&query);
    assert!(reply.error.is_none(), "{:?}", reply.error);
    let expected = [
        "succeeded|select 1 as a|1".to_owned(),
        format!("succeeded|{}|∅", barrier::WAIT),
        "succeeded|select 3 as a|3".to_owned(),
        "succeeded|select 4 as a|4".to_owned(),
    ];
    assert_eq!(reply.last_rows().expect("rows").text_rows(), expected);
}

#[case]
fn a_job_is_followed_until_its_end(db: &Db) {
    let (mut session, mut watcher, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    let query = format!(
        "select status, uuid_parent, uuid_child from pg_background_monitor('{}'::uuid, false)",
        batch.children[2]
    );
    session.send(&query);
    let first = format!("select status from pg_background_monitor('{}', false)", batch.children[0]);
    assert_eq!(watcher.rows(&first), ["succeeded"], "not the others");
    barrier.open();
    let reply = session.finish(&query);
    let expected = format!("succeeded|{}|{}", batch.parent, batch.children[2]);
    assert_eq!(reply.last_rows().expect("a row").text_rows(), [expected]);
    batch.succeed(&mut session);
}

#[case]
fn a_uuid_is_a_text_or_a_uuid(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["select 1"]);
    let parent = &batch.parent;
    for uuid in [
        format!("'{parent}'"),
        format!("'{parent}'::text"),
        format!("'{parent}'::uuid"),
        format!("'{}'", parent.to_uppercase()),
        format!("'{{{parent}}}'"),
        format!("'{}'", parent.replace('-', "")),
    ] {
        assert_eq!(
            session.rows(&format!("select status from pg_background_monitor({uuid}, false)")),
            ["succeeded"],
            "{uuid}"
        );
    }
}

#[case]
fn an_unknown_uuid_is_refused(db: &Db) {
    let mut session = db.session();
    for call in [
        format!("pg_background_monitor('{NOBODY}')"),
        format!("pg_background_monitor('{NOBODY}'::uuid, false, '0')"),
        "pg_background_monitor('00000000-0000-0000-0000-000000000000')".to_owned(),
    ] {
        let error = session.error(&format!("select * from {call}"));
        assert_eq!(error.sqlstate(), "42704", "{error}");
    }
    assert!(session.error(&format!("select * from pg_background_monitor('{NOBODY}')")).message().contains(NOBODY));
}

#[case]
fn a_text_that_is_no_uuid_is_refused(db: &Db) {
    let mut session = db.session();
    for text in ["", "x", "01234567-89ab-cdef-0123-456789abcde", "ñ", "'; drop table t; --"] {
        let error = session.error(&format!("select * from pg_background_monitor({}::text)", literal(text)));
        assert_eq!(error.sqlstate(), "22P02", "{text}: {error}");
    }
}

#[case]
fn columns_say_what_each_job_did(db: &Db) {
    let mut session = db.session();
    let jobs = r#"[{"query": "select 7 as a", "name": "good"}, {"query": "select 1 / 0", "name": "bad"}]"#;
    let batch = Batch::launch_json(&mut session, jobs);
    let rows = session.rows(&format!(
        "select status, name, query, result, message, queue_position, pid > 0, uuid_parent = '{}', \
         start_time_exec <= end_time_exec, elapsed = end_time_exec - start_time_exec \
         from pg_background_monitor('{}', false)",
        batch.parent, batch.parent
    ));
    assert_eq!(rows[0].replace(' ', ""), "succeeded|good|select7asa|[{\"a\":7}]|∅|∅|t|t|t|t");
    assert_eq!(rows[1], "failed|bad|select 1 / 0|∅|division by zero|∅|t|t|t|t");
}

#[case]
fn a_batch_that_has_ended_is_shown_at_once(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["select 1", "select 1 / 0"]);
    batch.wait(&mut session);
    for timeout in ["null", "'0'", "'1 hour'"] {
        let rows =
            session.rows(&format!("select status from pg_background_monitor('{}', true, {timeout})", batch.parent));
        assert_eq!(rows, ["succeeded", "failed"], "{timeout}");
    }
}

#[case]
fn a_timeout_of_zero_does_not_wait(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    assert_eq!(now(&mut session, "status", &batch.parent), ["succeeded", "running", "queued", "queued"]);
    let row =
        "status, pid > 0, queue_position is null, start_time_exec is not null, end_time_exec is null, elapsed > '0'";
    assert_eq!(now(&mut session, row, &batch.children[1]), ["running|t|t|t|t|t"]);
    let row = "status, pid, queue_position > 0, start_time_exec, end_time_exec";
    assert_eq!(now(&mut session, row, &batch.children[2]), ["queued|∅|t|∅|∅"]);
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn a_timeout_ends_the_wait(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    let began = Instant::now();
    let rows = session.rows(&format!("select status from pg_background_monitor('{}', false, '0.3 s')", batch.parent));
    assert_eq!(rows, ["succeeded", "running", "queued", "queued"]);
    assert!(began.elapsed() >= Duration::from_millis(300));
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn a_negative_timeout_is_none(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("set statement_timeout = '20s'");
    let batch = half_way(&mut session);
    for timeout in ["-1 s", "-1 month", "0"] {
        let rows =
            session.rows(&format!("select status from pg_background_monitor('{}', false, '{timeout}')", batch.parent));
        assert_eq!(rows, ["succeeded", "running", "queued", "queued"], "{timeout}");
    }
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn nulls_are_what_is_not_given(db: &Db) {
    let mut session = db.session();
    session.run("set statement_timeout = '20s'");
    let batch = Batch::launch(&mut session, &["select pg_sleep(0.1)"]);
    session.notices();
    let call = format!("select status from pg_background_monitor('{}', null, null)", batch.parent);
    assert_eq!(session.rows(&call), ["succeeded"]);
    assert!(!session.notices().is_empty());
    for argument in ["null::text", "null::uuid"] {
        let all = session.rows(&format!("select uuid_child from pg_background_monitor({argument}, null, null)"));
        assert!(all.contains(&batch.children[0]), "{argument}: {all:?}");
    }
}

#[case(since = 17)]
fn a_timeout_without_end_is_waited_for(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let mut watcher = db.session();
    session.run("set statement_timeout = '30s'");
    let batch = half_way(&mut session);
    let call = format!("select status from pg_background_monitor('{}', false, 'infinity')", batch.parent);
    session.send(&call);
    wait_until("the follower", || watcher.value(&waiting(&session)) == "1");
    barrier.open();
    let reply = session.finish(&call);
    assert!(reply.error.is_none(), "{:?}", reply.error);
    let now =
        |timeout: &str| format!("select status from pg_background_monitor('{}', false, '{timeout}')", batch.parent);
    assert_eq!(session.rows(&now("-infinity")), ["succeeded"; 4]);
}

#[case]
fn a_follower_can_be_cancelled(db: &Db) {
    let (mut session, mut watcher, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    let query = format!("select * from pg_background_monitor('{}')", batch.parent);
    for _ in 0..3 {
        session.send(&query);
        let waits = waiting(&session);
        wait_until("the monitor waits", || watcher.value(&waits) == "1");
        session.canceller().cancel();
        assert_eq!(session.finish(&query).error.expect("an error").sqlstate(), "57014");
    }
    assert_eq!(now(&mut session, "status", &batch.parent), ["succeeded", "running", "queued", "queued"]);
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn a_follower_has_its_statement_timeout(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    session.run("set statement_timeout = '200ms'");
    assert_eq!(session.error(&format!("select * from pg_background_monitor('{}')", batch.parent)).sqlstate(), "57014");
    session.run("reset statement_timeout");
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn a_batch_is_followed_from_another_session(db: &Db) {
    let user = db.role("user", "login");
    let client = db.client().user(&user);
    let (mut launcher, mut follower) = (client.connect(), client.application_name("pooler").connect());
    let batch = Batch::launch(&mut launcher, &times("select pg_sleep(0.02)", 5));
    batch.succeed(&mut follower);
}

#[case]
fn many_sessions_follow_one_batch(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    let query = format!("select status from pg_background_monitor('{}', false)", batch.parent);
    let mut followers: Vec<Session> = (0..20).map(|_| db.session()).collect();
    for follower in &mut followers {
        follower.send(&query);
    }
    barrier.open();
    for follower in &mut followers {
        let reply = follower.finish(&query);
        assert_eq!(reply.last_rows().expect("rows").text_rows(), times("succeeded", 4));
    }
}

#[case]
fn a_batch_is_followed_after_its_launcher_has_gone(db: &Db) {
    let (mut launcher, mut session) = (db.session(), db.session());
    let batch = Batch::launch(&mut launcher, &times("select pg_sleep(0.02)", 5));
    drop(launcher);
    batch.succeed(&mut session);
}

#[case]
fn jobs_are_followed_through_their_attempts(db: &Db) {
    let mut session = db.session();
    session.run("create sequence tries");
    let text = "do $$ begin if nextval('tries') < 4 then raise 'not yet'; end if; end $$";
    let batch = Batch::launch_with(&mut session, &[text], r#"{"max_attempts": 5, "retry_delay": 0.05}"#);
    let rows = session.rows(&format!("select status from pg_background_monitor('{}', false)", batch.parent));
    assert_eq!(rows, ["succeeded"]);
}

/// The build waits for every older snapshot, and the follower for the build.
#[case]
fn an_index_built_concurrently_ends_although_it_is_followed(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t as select i as a from generate_series(1, 100) i");
    for level in ["read committed", "repeatable read"] {
        session.run(&format!("set default_transaction_isolation = '{level}'"));
        let batch = Batch::launch(&mut watcher, &["create index concurrently on t (a)"]);
        let reply = session.ask(&format!("select status from pg_background_monitor('{}', false)", batch.parent));
        // It may be told to stop waiting.
        assert!(reply.error.is_none_or(|error| error.sqlstate() == "40P01"), "{level}");
        batch.succeed(&mut watcher);
    }
    assert_eq!(watcher.value("select count(*) from pg_index where indrelid = 't'::regclass and indisvalid"), "2");
}

#[case]
fn each_end_of_a_few_jobs_is_told(db: &Db) {
    let (mut session, mut watcher, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    let jobs = format!(
        r#"[{{"query": "{}", "name": "first"}}, "select  1\n/ 0", {{"query": "select '{}'"}},
            {{"query": "select 1 / (nextval('tries') - 1)", "max_attempts": 2}}, "select {FOREVER}"]"#,
        barrier::WAIT,
        "x".repeat(100)
    );
    session.run("create sequence tries");
    let options = r#"{"mode": "sequential", "name": "all"}"#;
    let batch = Batch::call(
        &mut session,
        &format!("pg_background_launch_num({}::jsonb, p_options => '{options}')", literal(&jobs)),
    );
    wait_at_barrier(&mut watcher, 1);
    let query = format!("select * from pg_background_monitor('{}')", batch.parent);
    session.send(&query);
    let waits = waiting(&session);
    wait_until("the monitor waits", || watcher.value(&waits) == "1");
    barrier.open();
    batch.wait_state(&mut watcher, 4, "running");
    watcher.run(&format!("select pg_background_stop('{}')", batch.children[4]));
    let reply = session.finish(&query);
    assert!(reply.error.is_none());
    let notices = session.notices();
    assert!(notices.iter().all(|notice| notice.severity() == "NOTICE"), "{notices:?}");
    let mut told: Vec<String> = notices.iter().map(pg_background_mgr_tests::ServerError::message).collect();
    // An attempt that follows at once may be over before the next look.
    told.retain(|line| !line.ends_with("is queued again"));
    let of_job = |start: &str, end: &str| {
        let count = told.iter().filter(|line| line.starts_with(start) && line.ends_with(end)).count();
        assert_eq!(count, 1, "{start} ... {end}: {told:#?}");
    };
    of_job("job 1 \"first\" succeeded after ", " s");
    of_job("job 2 (select 1 / 0) failed after ", " s: division by zero");
    of_job(&format!("job 3 (select '{}...) succeeded after ", "x".repeat(52)), " s");
    of_job("job 4 (select 1 / (nextval('tries') - 1)) succeeded after ", " s");
    of_job(&format!("job 5 (select {FOREVER}) stopped after "), " s: stopped by user \"postgres\"");
    let last = "progress: [####################] 5/5 jobs ended (100%), 1 failed, 1 stopped";
    assert_eq!(told.last().map(String::as_str), Some(last), "{told:#?}");
    // What had ended before is told as well.
    session.run(&query);
    let again: Vec<String> = session.notices().iter().map(pg_background_mgr_tests::ServerError::message).collect();
    assert_eq!(again[again.len() - 6..], told[told.len() - 6..]);
}

#[case]
fn many_jobs_are_told_of_at_most_once_a_second(db: &Db) {
    let mut session = db.session();
    let texts = times("select pg_sleep(0.02)", 100);
    let began = Instant::now();
    let call = format!("pg_background_launch_num({}, p_exec_type => 'sync')", array(&texts));
    let sync = Batch::call(&mut session, &call);
    let seconds = began.elapsed().as_secs() as usize;
    let told = session.notice_texts();
    assert!((1..=seconds + 1).contains(&told.len()), "in {seconds} s: {told:#?}");
    assert_eq!(
        told.last().map(String::as_str),
        Some("NOTICE: progress: [####################] 100/100 jobs ended (100%)")
    );
    assert_eq!(sync.states(&mut session), times("succeeded", 100));
    // As well for one that follows from elsewhere, and waits no longer than it is told to.
    let (mut watcher, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch_with(&mut session, &times(barrier::WAIT, 6), r#"{"mode": "sequential"}"#);
    wait_at_barrier(&mut session, 1);
    watcher.run(&format!("select * from pg_background_monitor('{}', p_timeout => '0.1 s')", batch.parent));
    assert_eq!(watcher.notice_texts(), ["NOTICE: progress: [--------------------] 0/6 jobs ended (0%), 1 running"]);
    barrier.open();
    batch.succeed(&mut session);
}

/// Ends of jobs wake those that follow their batch neither one by one nor all at once.
#[case(alone)]
fn a_follower_of_many_jobs_is_not_woken_by_each(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let texts = [vec![barrier::WAIT], times("select 1", 2000)].concat();
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    wait_at_barrier(&mut session, 1);
    let mut watcher = db.session();
    let query = format!("select status from pg_background_monitor('{}', false)", batch.parent);
    watcher.send(&query);
    let waits = waiting(&watcher);
    wait_until("the monitor waits", || session.value(&waits) == "1");
    let before = count_sleeps(&watcher.pid().to_string()).expect("a session");
    let began = Instant::now();
    barrier.open();
    let ended =
        format!("select count(*) from log_background where uuid_parent = '{}' and status = 'succeeded'", batch.parent);
    wait_until("the end of the jobs", || session.value(&ended) == "2001");
    assert_eq!(watcher.finish(&query).last_rows().expect("rows").text_rows(), times("succeeded", 2001));
    let count = count_sleeps(&watcher.pid().to_string()).expect("a session") - before;
    let seconds = began.elapsed().as_secs();
    // Each second, and at the end, when it waits for locks and for the rows.
    assert!(count < 50 + 5 * seconds, "woken {count} times in {seconds} s");
}

#[case]
fn a_quiet_monitor_tells_nothing(db: &Db) {
    let (mut session, mut watcher, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    let query = format!("select * from pg_background_monitor('{}', false)", batch.parent);
    session.send(&query);
    let waits = waiting(&session);
    wait_until("the monitor waits", || watcher.value(&waits) == "1");
    barrier.open();
    session.finish(&query);
    assert_eq!(session.notice_texts(), [""; 0]);
    // And none when nothing is followed.
    session.run("select * from pg_background_monitor()");
    assert_eq!(session.notice_texts(), [""; 0]);
}

/// Sleeps while another session does three thousand things.
#[case(alone)]
fn a_follower_costs_nothing_while_nothing_changes(db: &Db) {
    let (mut session, mut watcher, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    let batch = Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut watcher, 1);
    let query = format!("select status from pg_background_monitor('{}')", batch.parent);
    session.send(&query);
    let waits = waiting(&session);
    wait_until("the monitor waits", || watcher.value(&waits) == "1");
    let before = count_sleeps(&session.pid().to_string()).expect("a session");
    for _ in 0..3000 {
        watcher.run("select 1");
    }
    let count = count_sleeps(&session.pid().to_string()).expect("a session") - before;
    assert_eq!(watcher.value(&waits), "1");
    // It looks whether a worker is missing now and then.
    assert!(count < 20, "the follower has gone to sleep {count} times");
    barrier.open();
    let reply = session.finish(&query);
    assert_eq!(reply.last_rows().expect("a row").text_rows(), ["succeeded"]);
}

/// A follower that looked now and then, as it does each second besides, would be late by half of that in the middle.
#[case(alone)]
fn a_change_is_seen_at_once(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    let mut delays = Vec::new();
    for _ in 0..20 {
        let barrier = Barrier::close(db.session());
        let batch = Batch::launch(&mut session, &[barrier::WAIT]);
        wait_at_barrier(&mut watcher, 1);
        let query = format!("select status from pg_background_monitor('{}', false)", batch.parent);
        session.send(&query);
        let waits = waiting(&session);
        wait_until("the monitor waits", || watcher.value(&waits) == "1");
        let began = Instant::now();
        barrier.open();
        let reply = session.finish(&query);
        delays.push(began.elapsed());
        assert_eq!(reply.last_rows().expect("a row").text_rows(), ["succeeded"]);
    }
    delays.sort();
    assert!(delays[5] < Duration::from_millis(200), "{delays:?}");
}
