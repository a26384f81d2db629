//! Options of `pg_background_launch_num`: order, number of workers, what an error does, time limits, attempts.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{stubborn, times, wait_at_barrier, Batch, COUNTED, PEAK};
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Db, FOREVER, SLEEP_FOREVER};

const SEQUENTIAL: &str = r#"{"mode": "sequential"}"#;

#[case]
fn a_sequential_batch_runs_one_after_the_other(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a serial, n int)");
    let texts: Vec<String> = (0..30).map(|number| format!("insert into ran (n) values ({number})")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = Batch::launch_with(&mut session, &texts, SEQUENTIAL);
    batch.succeed(&mut session);
    let order: Vec<String> = (0..30).map(|number| number.to_string()).collect();
    assert_eq!(session.rows("select n from ran order by a"), order);
    let overlaps = format!(
        "select count(*) from log_background a join log_background b on a.uuid_parent = b.uuid_parent and b.id > a.id \
         where a.uuid_parent = '{}' and b.start_time_exec < a.end_time_exec",
        batch.parent
    );
    assert_eq!(session.value(&overlaps), "0");
}

#[case]
fn a_sequential_batch_waits_for_the_job_before(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run(PEAK);
    let mut texts = vec![barrier::WAIT];
    texts.extend(times(COUNTED, 10));
    let batch = Batch::launch_with(&mut session, &texts, SEQUENTIAL);
    wait_at_barrier(&mut session, 1);
    let states = batch.states(&mut session);
    assert_eq!(states[0], "running");
    assert!(states[1..].iter().all(|state| state == "queued"), "{states:?}");
    barrier.open();
    batch.succeed(&mut session);
    assert_eq!(session.value("select count(*) || ' ' || max(n) from peak"), "10 1");
}

#[case]
fn a_sequential_batch_goes_on_after_an_error(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch_with(&mut session, &["select 1", "select 1 / 0", "select 3"], SEQUENTIAL);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed", "succeeded"]);
}

#[case]
fn two_sequential_batches_run_beside_each_other(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let held = Batch::launch_with(&mut session, &[barrier::WAIT, "select 2"], SEQUENTIAL);
    wait_at_barrier(&mut session, 1);
    let other = Batch::launch_with(&mut session, &["select 1", "select 2"], SEQUENTIAL);
    other.succeed(&mut session);
    assert_eq!(held.states(&mut session), ["running", "queued"]);
    barrier.open();
    held.succeed(&mut session);
}

#[case]
fn a_batch_has_no_more_workers_than_it_asked_for(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run(PEAK);
    let mut texts = times(barrier::WAIT, 3);
    texts.extend(times(COUNTED, 40));
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 3}"#);
    wait_at_barrier(&mut session, 3);
    let states = batch.states(&mut session);
    assert_eq!(states.iter().filter(|state| *state == "queued").count(), 40);
    // Another batch is not held up by it.
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    barrier.open();
    batch.succeed(&mut session);
    let (ran, peak) = (session.number("select count(*) from peak"), session.number("select max(n) from peak"));
    assert!(ran == 40 && (1..=3).contains(&peak), "{ran} jobs, {peak} at once");
}

#[case]
fn a_batch_with_one_worker_runs_in_the_order_of_the_call(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a serial, n int)");
    let texts: Vec<String> = (0..30).map(|number| format!("insert into ran (n) values ({number})")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Batch::launch_with(&mut session, &texts, r#"{"max_workers": 1}"#).succeed(&mut session);
    let order: Vec<String> = (0..30).map(|number| number.to_string()).collect();
    assert_eq!(session.rows("select n from ran order by a"), order);
}

/// A worker takes several at once when they are short.
#[case]
fn short_jobs_do_not_wait_for_the_end_of_a_long_one() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "8")]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let mut texts = times("select 1", 500);
    let long = [100, 200, 300];
    long.iter().for_each(|place| texts[*place] = barrier::WAIT);
    let batch = Batch::launch(&mut session, &texts);
    let count = |state| {
        format!("select count(*) from log_background where uuid_parent = '{}' and status = '{state}'", batch.parent)
    };
    let short = (texts.len() - long.len()).to_string();
    wait_until("the end of the short ones", || session.value(&count("succeeded")) == short);
    assert_eq!(session.value(&count("running")), long.len().to_string());
    barrier.open();
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, "attempts"), times("1", texts.len()));
}

#[case]
fn an_error_does_not_stop_a_batch_by_itself(db: &Db) {
    let mut session = db.session();
    for options in ["{}", r#"{"on_error": "continue", "max_workers": 1}"#] {
        let batch = Batch::launch_with(&mut session, &["select 1 / 0", "select 2", "select 3"], options);
        assert_eq!(batch.finish(&mut session), ["failed", "succeeded", "succeeded"]);
    }
}

#[case]
fn a_batch_stops_at_its_first_error(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    for options in [r#"{"on_error": "stop", "mode": "sequential"}"#, r#"{"on_error": "stop", "max_workers": 1}"#] {
        let texts = ["select 1", "select 1 / 0", "insert into ran values (3)", "insert into ran values (4)"];
        let batch = Batch::launch_with(&mut session, &texts, options);
        assert_eq!(batch.finish(&mut session), ["succeeded", "failed", "stopped", "stopped"]);
        let told = batch.column(&mut session, "coalesce(message, '')");
        assert_eq!(told[1], "division by zero");
        assert!(!told[2].is_empty() && told[2] == told[3], "{told:?}");
        let untouched = "start_time_exec is null and end_time_exec is not null and pid is null and attempts = 0";
        assert_eq!(batch.column(&mut session, untouched)[2..], ["t", "t"]);
    }
    assert_eq!(session.rows("table ran"), [""; 0]);
}

#[case]
fn a_batch_that_stops_lets_running_jobs_go_on(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let fails = "do $$ begin while not exists (select from pg_locks where locktype = 'advisory' and objid = 4711 \
                 and not granted and database = (select oid from pg_database where datname = current_database())) \
                 loop perform pg_sleep(0.01); end loop; raise 'no'; end $$";
    let texts = [barrier::WAIT, fails, "select 3", "select 4"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"on_error": "stop", "max_workers": 2}"#);
    wait_at_barrier(&mut session, 1);
    wait_until("the others are stopped", || {
        batch.states(&mut session)[1..] == ["failed".to_owned(), "stopped".to_owned(), "stopped".to_owned()]
    });
    assert_eq!(batch.states(&mut session)[0], "running");
    barrier.open();
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed", "stopped", "stopped"]);
}

/// Returns the text of a job that fails until its sequence has come to `times`; failed attempts leave no other trace.
fn fails_until(sequence: &str, times: u32) -> String {
    format!(
        "do $$ begin if nextval('{sequence}') < {times} then raise 'not yet: %', currval('{sequence}'); end if; end $$"
    )
}

#[case]
fn a_batch_stops_only_when_the_last_attempt_has_failed(db: &Db) {
    let mut session = db.session();
    session.run("create sequence tries; create sequence others");
    let (late, never) = (fails_until("tries", 3), fails_until("others", 1000));
    let texts = [late.as_str(), "select 2", &never, "select 4"];
    let options = r#"{"on_error": "stop", "mode": "sequential", "max_attempts": 3}"#;
    let batch = Batch::launch_with(&mut session, &texts, options);
    assert_eq!(batch.finish(&mut session), ["succeeded", "succeeded", "failed", "stopped"]);
    assert_eq!(batch.column(&mut session, "attempts"), ["3", "1", "3", "0"]);
}

const TOO_LATE: &str = "canceling job due to timeout";

#[case]
fn a_job_that_takes_too_long_fails(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch_with(&mut session, &[SLEEP_FOREVER], r#"{"timeout": 0.1}"#);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    assert_eq!(batch.log(&mut session, 0, "sqlstate || ' ' || message"), format!("57014 {TOO_LATE}"));
    assert_eq!(batch.log(&mut session, 0, "end_time_exec - start_time_exec >= interval '0.05 s'"), "t");
}

#[case]
fn a_time_limit_counts_all_statements_of_a_job(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let many = "do $$ begin for i in 1 .. 100000 loop perform pg_sleep(0.01); end loop; end $$";
    let short = vec!["select pg_sleep(0.02)"; 1000].join("; ");
    let committed = format!("begin; insert into ran values (1); commit; {short}");
    let batch = Batch::launch_with(&mut session, &[many, &short, &committed], r#"{"timeout": "300 ms"}"#);
    assert_eq!(batch.finish(&mut session), ["failed", "failed", "failed"]);
    assert_eq!(batch.column(&mut session, "message"), [TOO_LATE; 3]);
    assert_eq!(session.rows("table ran"), ["1"], "what a job has committed stays");
}

#[case]
fn a_time_limit_does_not_touch_the_next_job(db: &Db) {
    let mut session = db.session();
    // Longer than the limit of the job before each.
    let jobs = &format!(
        r#"[{{"query": "select {FOREVER}", "timeout": 0.05}}, "select pg_sleep(0.15)",
        {{"query": "select 1", "timeout": 0.1}}, "select pg_sleep(0.2)"]"#
    );
    let call = format!(r#"pg_background_launch_num({}::jsonb, p_options => '{{"max_workers": 1}}')"#, literal(jobs));
    let batch = Batch::call(&mut session, &call);
    assert_eq!(batch.finish(&mut session), ["failed", "succeeded", "succeeded", "succeeded"]);
}

#[case]
fn a_time_limit_is_given_in_seconds_or_as_an_interval(db: &Db) {
    let mut session = db.session();
    for value in ["0.1", "1e-1", "\"100 ms\"", "\"0.1\"", "\"00:00:00.1\"", "\"PT0.1S\""] {
        let batch = Batch::launch_with(&mut session, &[SLEEP_FOREVER], &format!(r#"{{"timeout": {value}}}"#));
        assert_eq!(batch.finish(&mut session), ["failed"], "{value}");
        assert_eq!(batch.log(&mut session, 0, "message"), TOO_LATE, "{value}");
    }
}

#[case]
fn a_time_limit_that_is_not_reached_does_nothing(db: &Db) {
    let mut session = db.session();
    // More milliseconds than an int4 can hold, more than there is time.
    for limit in ["\"1 hour\"", "\"3 months\"", "\"300 years\"", "9e11"] {
        let options = format!("{{\"timeout\": {limit}}}");
        let batch = Batch::launch_with(&mut session, &["select 1", "vacuum", "begin; select 2; commit"], &options);
        batch.succeed(&mut session);
    }
}

#[case]
fn a_time_limit_cannot_be_caught_by_the_job(db: &Db) {
    let mut session = db.session();
    // It ends, one way or the other, and is no success; the next job runs.
    let batch =
        Batch::launch_with(&mut session, &[&stubborn(), "select 1"], r#"{"timeout": 0.2, "mode": "sequential"}"#);
    let states = batch.finish(&mut session);
    assert_eq!(states, ["failed", "succeeded"]);
}

/// Such an attempt takes its worker along.
#[case]
fn an_attempt_that_catches_its_time_limit_is_followed_by_others(db: &Db) {
    let mut session = db.session();
    session.run("create sequence tries; create table ran (a int)");
    let text = &format!(
        "insert into ran values (1); do $$ begin if nextval('tries') < 3 then loop begin perform {FOREVER}; \
                exception when query_canceled then null; end; end loop; end if; end $$"
    );
    let batch = Batch::launch_with(&mut session, &[text], r#"{"timeout": 0.3, "max_attempts": 5}"#);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, "attempts"), "3");
    assert_eq!(session.rows("table ran"), ["1"]);
    let batch = Batch::launch_with(&mut session, &[&stubborn()], r#"{"timeout": 0.2, "max_attempts": 2}"#);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    assert_eq!(
        batch.log(&mut session, 0, "concat_ws(' ', attempts, sqlstate, message)"),
        format!("2 57014 {TOO_LATE}")
    );
}

#[case]
fn a_time_limit_counts_what_is_deferred_to_the_commit(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table deferred (seconds float); \
         create function wait() returns trigger language plpgsql as \
         $$ begin perform pg_sleep(new.seconds); return null; end $$; \
         create constraint trigger wait after insert on deferred deferrable initially deferred \
         for each row execute function wait()",
    );
    let late = [
        "insert into deferred values (600)",
        "begin; insert into deferred values (600); commit",
        "begin; insert into deferred values (600); commit; select 1",
    ];
    let batch = Batch::launch_with(&mut session, &late, r#"{"timeout": 0.3}"#);
    assert_eq!(batch.finish(&mut session), ["failed"; 3]);
    assert_eq!(batch.column(&mut session, "sqlstate || ' ' || message"), [format!("57014 {TOO_LATE}").as_str(); 3]);
    assert_eq!(session.value("select count(*) from deferred"), "0");
    let in_time = ["insert into deferred values (0.05)", "begin; insert into deferred values (0.05); commit"];
    Batch::launch_with(&mut session, &in_time, r#"{"timeout": 30}"#).succeed(&mut session);
    // The limit of a statement is over with it, as for any client.
    session.run("set statement_timeout = '0.2s'");
    Batch::launch(&mut session, &["insert into deferred values (0.5)"]).succeed(&mut db.session());
}

#[case]
fn a_jobs_own_values_win(db: &Db) {
    let mut session = db.session();
    session.run("create sequence one; create sequence three");
    // The first one is longer than the batch's limit.
    let jobs = &format!(
        r#"[{{"query": "select pg_sleep(0.3)", "timeout": "1 h", "max_attempts": 1}},
        {{"query": "select {FOREVER}", "max_attempts": 1}},
        {{"query": "select nextval('one'); select 1 / 0", "max_attempts": 1}},
        {{"query": "select nextval('three'); select 1 / 0"}}]"#
    );
    let options = r#"'{"timeout": 0.1, "max_attempts": 3, "retry_delay": 0}'"#;
    let call = format!("pg_background_launch_num({}::jsonb, p_options => {options})", literal(jobs));
    let batch = Batch::call(&mut session, &call);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed", "failed", "failed"]);
    assert_eq!(batch.column(&mut session, "attempts"), ["1", "1", "1", "3"]);
    assert_eq!(session.rows("select last_value from one union all select last_value from three"), ["1", "3"]);
}

#[case]
fn a_failed_job_is_tried_as_often_as_asked(db: &Db) {
    let mut session = db.session();
    session.run("create sequence tries");
    let text =
        "select nextval('tries'); do $$ begin raise 'failed %', currval('tries') using errcode = 'X0X0X'; end $$";
    let batch = Batch::launch_with(&mut session, &[text], r#"{"max_attempts": 4}"#);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    assert_eq!(session.value("select last_value from tries"), "4");
    assert_eq!(batch.log(&mut session, 0, "attempts || ' ' || sqlstate || ' ' || message"), "4 X0X0X failed 4");
}

#[case]
fn a_job_that_succeeds_later_has_succeeded(db: &Db) {
    let mut session = db.session();
    session.run("create sequence tries; create table ran (a int)");
    let text = format!("insert into ran values (1); {}", fails_until("tries", 3));
    let batch = Batch::launch_with(&mut session, &[&text], r#"{"max_attempts": 10}"#);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, "attempts"), "3");
    assert_eq!(session.value("select last_value from tries"), "3");
    assert_eq!(session.rows("table ran"), ["1"]);
}

#[case]
fn a_job_that_succeeds_is_not_tried_again(db: &Db) {
    let mut session = db.session();
    session.run("create sequence tries");
    let texts = times("select nextval('tries')", 20);
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_attempts": 5}"#);
    batch.succeed(&mut session);
    assert_eq!(session.value("select last_value from tries"), "20");
    assert_eq!(batch.column(&mut session, "attempts"), times("1", 20));
}

#[case]
fn each_attempt_has_its_own_time_limit(db: &Db) {
    let mut session = db.session();
    session.run("create sequence tries");
    let text = format!("select case when nextval('tries') < 3 then {FOREVER}::text end");
    let batch = Batch::launch_with(&mut session, &[&text], r#"{"max_attempts": 5, "timeout": 0.3}"#);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, "attempts"), "3");
}

#[case]
fn a_syntax_error_is_tried_again_too(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch_with(&mut session, &["selct 1"], r#"{"max_attempts": 2}"#);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    assert_eq!(batch.log(&mut session, 0, "attempts || ' ' || sqlstate"), "2 42601");
}

#[case]
fn a_retry_waits_for_its_delay(db: &Db) {
    let mut session = db.session();
    session.run("create table tries (job int, at timestamptz default clock_timestamp())");
    let jobs = r#"[{"query": "begin; insert into tries values (1); commit; select 1 / 0", "retry_delay": 0.3},
        {"query": "begin; insert into tries values (2); commit; select 1 / 0", "retry_delay": "300 ms"}]"#;
    let options = r#"'{"max_attempts": 3}'"#;
    let call = format!("pg_background_launch_num({}::jsonb, p_options => {options})", literal(jobs));
    let batch = Batch::call(&mut session, &call);
    assert_eq!(batch.finish(&mut session), ["failed", "failed"]);
    let gaps = "select job, count(*), min(gap) >= interval '0.3 s' from (\
                select job, at - lag(at) over (partition by job order by at) as gap from tries) g group by job \
                order by job";
    assert_eq!(session.rows(gaps), ["1|3|t", "2|3|t"]);
}

#[case]
fn a_job_between_attempts_is_queued_and_keeps_its_error(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch_with(&mut session, &["select 1 / 0"], r#"{"max_attempts": 2, "retry_delay": "1 hour"}"#);
    let query = "status || ' ' || attempts || ' ' || coalesce(sqlstate || ' ' || message, '')";
    wait_until("the end of the first attempt", || {
        batch.log(&mut session, 0, query) == "queued 1 22012 division by zero"
    });
    let shown = format!(
        "select status, attempts, sqlstate, message, pid from pg_background_jobs where uuid_child = '{}'",
        batch.children[0]
    );
    assert_eq!(session.rows(&shown), ["queued|1|22012|division by zero|∅"]);
    let stopped = session.rows(&format!("select was, now from pg_background_stop('{}')", batch.parent));
    assert_eq!(stopped, ["queued|stopped"]);
    assert_eq!(batch.finish(&mut session), ["stopped"]);
}

#[case]
fn a_job_between_attempts_takes_no_worker(db: &Db) {
    let mut session = db.session();
    let options = r#"{"max_workers": 1, "max_attempts": 2, "retry_delay": 3600}"#;
    let batch = Batch::launch_with(&mut session, &["select 1 / 0", "select 2", "select 3"], options);
    wait_until("the others have ended", || batch.states(&mut session) == ["queued", "succeeded", "succeeded"]);
    session.run(&format!("select pg_background_stop('{}')", batch.parent));
    assert_eq!(batch.finish(&mut session), ["stopped", "succeeded", "succeeded"]);
}

#[case]
fn a_sequential_batch_waits_for_all_attempts(db: &Db) {
    let mut session = db.session();
    session.run("create sequence tries; create table ran (a serial, n int)");
    let text = format!("insert into ran (n) values (1); {}", fails_until("tries", 3));
    let options = r#"{"mode": "sequential", "max_attempts": 3, "retry_delay": 0.05}"#;
    let batch = Batch::launch_with(&mut session, &[&text, "insert into ran (n) values (2)"], options);
    batch.succeed(&mut session);
    assert_eq!(session.rows("select n from ran order by a"), ["1", "2"]);
    assert_eq!(batch.column(&mut session, "attempts"), ["3", "1"]);
}

#[case]
fn the_effects_of_a_failed_attempt_are_gone(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let texts = [
        "insert into ran values (1); select 1 / 0",
        "insert into ran values (2); selct",
        "begin; insert into ran values (3); commit; insert into ran values (4); select 1 / 0",
    ];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_attempts": 2}"#);
    assert_eq!(batch.finish(&mut session), ["failed", "failed", "failed"]);
    assert_eq!(session.rows("select a from ran order by a"), ["3", "3"]);
}
