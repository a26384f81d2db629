//! The two views, and progress that jobs report.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{array, drain, half_way, retry, times, wait_at_barrier, Batch};
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Db, Session};
use std::time::Instant;

const PROGRESS: &str = "select progress, progress_message from pg_background_jobs where uuid_child = ";

#[case]
fn progress_shows_at_once(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let text = format!(
        "begin; select pg_background_report_progress(0); \
         select pg_background_report_progress(37, 'größe: 日本'); {}; commit; \
         select pg_background_report_progress(100, null)",
        barrier::WAIT
    );
    let batch = Batch::launch(&mut session, &[&text]);
    wait_at_barrier(&mut session, 1);
    let query = format!("{PROGRESS}'{}'", batch.children[0]);
    assert_eq!(session.rows(&query), ["37|größe: 日本"], "before the job commits");
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn progress_outside_a_job_does_nothing(db: &Db) {
    let mut session = db.session();
    assert_eq!(session.rows("select pg_background_report_progress(50, 'x')"), [""]);
    assert_eq!(session.job("select pg_background_report_progress(50, 'x')", "t text"), [""]);
    assert_eq!(session.value("select count(*) from pg_background_jobs where database = current_database()"), "0");
}

#[case]
fn progress_out_of_range_is_refused(db: &Db) {
    let mut session = db.session();
    for percent in ["-1", "101", "2147483647", "-2147483648"] {
        let text = format!("select pg_background_report_progress({percent})");
        let batch = Batch::launch(&mut session, &[&text]);
        assert_eq!(batch.finish(&mut session), ["failed"], "{percent}");
        assert_eq!(batch.log(&mut session, 0, "sqlstate"), "22023");
    }
    let batch = Batch::launch(&mut session, &["select pg_background_report_progress(null)"]);
    assert_ne!(batch.finish(&mut session), ["lost"]);
}

#[case]
fn progress_of_one_job_is_not_the_next_ones(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let texts = ["select pg_background_report_progress(90, 'nearly')", barrier::WAIT];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut session, 1);
    let shown = session.value(&format!("{PROGRESS}'{}'", batch.children[1]));
    assert!(["∅|∅", "0|∅"].contains(&shown.as_str()), "{shown}");
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn long_messages_of_progress_do_no_harm(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let text = format!("select pg_background_report_progress(5, repeat('日本', 100000)); {}", barrier::WAIT);
    let batch = Batch::launch(&mut session, &[&text]);
    wait_at_barrier(&mut session, 1);
    let shown = session.value(&format!("{PROGRESS}'{}'", batch.children[0]));
    let message = shown.strip_prefix("5|").expect("the progress");
    assert!("日本".repeat(100_000).starts_with(message) && !message.is_empty(), "a beginning of it, in whole letters");
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn jobs_of_every_state_are_in_one_view(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    let bad = Batch::launch(&mut session, &["select 1 / 0"]);
    bad.wait(&mut session);
    let shown = session.rows(
        "select status, name, user_name, database = current_database(), query, coalesce(result, '-'), \
         coalesce(sqlstate, '-'), coalesce(message, '-'), attempts \
         from pg_background_jobs where database = current_database() \
         and (sqlstate is not null or query like 'select _ as a') order by query",
    );
    let row = |state: &str, query: &str, rest: &str| format!("{state}|∅|postgres|t|{query}|{rest}");
    let shown: Vec<String> = shown.iter().map(|line| line.replace("half way", "∅").replace("\": ", "\":")).collect();
    assert_eq!(
        shown,
        [
            row("failed", "select 1 / 0", "-|22012|division by zero|1"),
            row("succeeded", "select 1 as a", "[{\"a\":1}]|-|-|1"),
            row("queued", "select 3 as a", "-|-|-|0"),
            row("queued", "select 4 as a", "-|-|-|0"),
        ]
    );
    session.run(&format!("select pg_background_stop('{}')", batch.children[3]));
    let states =
        "select string_agg(status, ' ' order by status) from pg_background_jobs where database = current_database()";
    assert_eq!(session.value(states), "failed queued running stopped succeeded");
    assert_eq!(
        session.value(
            "select count(*) || ' ' || count(distinct uuid_child) from pg_background_jobs \
             where database = current_database()"
        ),
        "5 5"
    );
    barrier.open();
    batch.wait(&mut session);
    assert_eq!(session.value(states), "failed stopped succeeded succeeded succeeded");
}

#[case]
fn the_place_in_the_queue_is_shown(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    let places = |session: &mut Session| -> Vec<i64> {
        let query = format!(
            "select queue_position from pg_background_jobs where uuid_parent = '{}' and status = 'queued' \
             order by query",
            batch.parent
        );
        session.rows(&query).iter().map(|place| place.parse().expect("a place")).collect()
    };
    let seen = places(&mut session);
    assert!(seen.len() == 2 && seen[0] >= 1 && seen[0] < seen[1], "{seen:?}");
    assert_eq!(session.value("select count(queue_position) from pg_background_jobs where status <> 'queued'"), "0");
    session.run(&format!("select pg_background_stop('{}')", batch.children[2]));
    let left = places(&mut session);
    assert!(left.len() == 1 && left[0] >= 1, "{left:?}");
    barrier.open();
    batch.wait(&mut session);
}

#[case]
fn what_a_job_waits_for_is_shown(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    let query = format!(
        "select j.wait_event_type, j.wait_event, j.pid = a.pid from pg_background_jobs j \
         join pg_stat_activity a on a.pid = j.pid \
         where uuid_child = '{}'",
        batch.children[1]
    );
    assert_eq!(session.rows(&query), ["Lock|advisory|t"]);
    barrier.open();
    batch.succeed(&mut session);
    let query = format!(
        "select wait_event_type, wait_event from pg_background_jobs where uuid_child = '{}'",
        batch.children[1]
    );
    assert_eq!(session.rows(&query), ["∅|∅"]);
}

#[case]
fn an_idle_worker_is_shown_as_idle(db: &Db) {
    let mut session = db.session();
    for text in ["select 1", "select 1 / 0", "begin; select 1; commit", "vacuum"] {
        let batch = Batch::launch(&mut session, &[text]);
        batch.wait(&mut session);
        let pid = batch.log(&mut session, 0, "pid");
        let query = format!("select state from pg_stat_activity where pid = {pid}");
        wait_until("the worker is idle", || {
            let state = session.rows(&query);
            state.is_empty() || state == ["idle"]
        });
    }
}

#[case]
fn times_of_running_jobs_go_on(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = half_way(&mut session);
    let query = format!("select elapsed from pg_background_jobs where uuid_child = '{}'", batch.children[1]);
    let first = session.value(&query);
    wait_until("a longer time", || session.value(&format!("select '{first}'::interval < ({query})")) == "t");
    barrier.open();
    batch.succeed(&mut session);
    let ended = session.value(&query);
    assert_eq!(session.value(&query), ended);
}

const COUNTS: &str =
    "select name, user_name, queued, running, succeeded, failed, stopped, lost, total, round(percent), progress_bar \
    from pg_background_batches where uuid_parent = ";

#[case]
fn batches_count_their_jobs(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let texts = ["select 1", "select 2 / 0", barrier::WAIT, "select 4", "select 5"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential", "name": "counted"}"#);
    wait_at_barrier(&mut session, 1);
    let query = format!("{COUNTS}'{}'", batch.parent);
    assert_eq!(session.rows(&query), ["counted|postgres|2|1|1|1|0|0|5|40|[########------------]"]);
    session.run(&format!("select pg_background_stop('{}')", batch.children[3]));
    assert_eq!(session.rows(&query), ["counted|postgres|1|1|1|1|1|0|5|60|[############--------]"]);
    let times = format!(
        "select queued_at is not null, elapsed > '0', estimate >= '0' from pg_background_batches \
         where uuid_parent = '{}'",
        batch.parent
    );
    assert_eq!(session.rows(&times), ["t|t|t"]);
    barrier.open();
    batch.wait(&mut session);
    assert_eq!(session.rows(&query), ["counted|postgres|0|0|3|1|1|0|5|100|[####################]"]);
}

#[case]
fn a_batch_that_has_ended_has_no_estimate(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch(&mut session, &[barrier::WAIT, barrier::WAIT]);
    wait_at_barrier(&mut session, 2);
    let query = format!(
        "select round(percent), progress_bar, estimate from pg_background_batches where uuid_parent = '{}'",
        batch.parent
    );
    assert_eq!(session.rows(&query), ["0|[--------------------]|∅"]);
    barrier.open();
    batch.wait(&mut session);
    assert_eq!(session.rows(&query), ["100|[####################]|∅"]);
}

/// Its first jobs may have been launched days ago.
#[case]
fn a_batch_that_was_launched_again_has_no_estimate(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let fails = format!("{}; select 1 / 0", barrier::WAIT);
    let batch = Batch::launch(&mut session, &["select 1", &fails]);
    batch.wait_state(&mut session, 0, "succeeded");
    let query = format!(
        "select running, elapsed > '0', estimate >= '0' from pg_background_batches where uuid_parent = '{}'",
        batch.parent
    );
    wait_at_barrier(&mut session, 1);
    assert_eq!(session.rows(&query), ["1|t|t"]);
    barrier.open();
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    let barrier = Barrier::close(db.session());
    retry(&mut session, &batch.parent);
    wait_at_barrier(&mut session, 1);
    assert_eq!(session.rows(&query), ["1|t|∅"]);
    barrier.open();
    batch.wait(&mut session);
}

#[case]
fn the_progress_bar_is_twenty_wide(db: &Db) {
    let mut session = db.session();
    for count in [1, 3, 7, 19, 33] {
        let batch = Batch::launch(&mut session, &times("select 1", count));
        let query = format!(
            "select progress_bar ~ '^\\[#*-*\\]$' and length(progress_bar) = 22 \
             from pg_background_batches where uuid_parent = '{}'",
            batch.parent
        );
        assert_eq!(session.rows(&query), ["t"]);
        batch.succeed(&mut session);
        assert_eq!(session.rows(&query), ["t"]);
    }
    drain(&mut session);
}

#[case]
fn jobs_of_other_databases_are_in_the_view() {
    let cluster = Cluster::start_with_extension(&[]);
    cluster.session("postgres").run("create database other");
    cluster.session("other").run("create extension pg_background_mgr");
    let (mut here, mut there, barrier) =
        (cluster.session("postgres"), cluster.session("other"), Barrier::close(cluster.session("other")));
    let batch =
        Batch::call(&mut there, &format!("pg_background_launch_num({})", array(&[barrier::WAIT, "select 1 / 0"])));
    wait_at_barrier(&mut there, 1);
    batch.wait_state(&mut there, 1, "failed");
    let live = "select database, status, query from pg_background_jobs where status in ('queued', 'running')";
    assert_eq!(here.rows(live), [format!("other|running|{}", barrier::WAIT)]);
    barrier.open();
    batch.wait(&mut there);
    assert_eq!(here.rows("select count(*) from pg_background_jobs"), ["0"]);
    assert_eq!(there.rows("select count(*) from pg_background_jobs"), ["2"]);
}

/// Nothing is quadratic with 20,000 queued jobs around, and who asks for one small batch does not pay for the others.
#[case]
fn a_look_costs_what_it_shows() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "2")]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let many = format!("array_fill({}::text, array[10000])", literal(barrier::WAIT));
    let recorded = Batch::call(&mut session, &format!("pg_background_launch_num({many})"));
    wait_at_barrier(&mut session, 2);
    assert_eq!(session.value("select count(*) from background_mgr.log"), "10000");
    Batch::call(&mut session, &format!("pg_background_launch_num({many})"));
    let small = Batch::launch(&mut session, &["select 1", "select 2"]);
    // Quadratic, they would take minutes.
    session.run("set statement_timeout = '20s'");
    for source in ["log_background", "pg_background_jobs", "pg_background_monitor()"] {
        assert_eq!(session.value(&format!("select count(*) from {source}")), "20002", "{source}");
    }
    assert_eq!(session.rows("select total from pg_background_batches order by queued_at"), ["10000", "10000", "2"]);
    let positions = format!(
        "select min(queue_position), max(queue_position) from pg_background_jobs where uuid_parent = '{}'",
        small.parent
    );
    let before: Vec<i64> = session.rows(&positions)[0].split('|').map(|at| at.parse().expect("a number")).collect();
    assert_eq!(before, [19999, 20000]);
    let mut time = |query: &str| {
        let began = Instant::now();
        session.rows(query);
        began.elapsed()
    };
    let of = |batch: &Batch| format!("select count(*) from pg_background_monitor('{}', false, '0')", batch.parent);
    let whole = time("select count(*) from pg_background_monitor()");
    let best = (0..5).map(|_| time(&of(&small))).min().expect("some");
    assert!(best * 10 < whole, "{best:?} for two jobs, {whole:?} for all");
    time(&of(&recorded));
    let stopped = "select was, now, count(*) from pg_background_stop('{}', '0') group by was, now order by 1";
    assert_eq!(session.rows(&stopped.replace("{}", &small.parent)), ["queued|stopped|2"]);
    let all = session.rows(&stopped.replace("{}", &recorded.parent));
    assert_eq!(all, ["queued|stopped|9998", "running|stopped|2"]);
    barrier.open();
}

/// No look at jobs that run one after the other sees one that has begun behind one that has not.
#[case]
fn a_query_sees_a_batch_at_one_moment(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let mut texts = vec![barrier::WAIT];
    texts.extend(times("select 1", 1000));
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    wait_at_barrier(&mut session, 1);
    barrier.open();
    let query = format!(
        "select max(uuid_child::text) filter (where status <> 'queued') < min(uuid_child::text) filter \
         (where status = 'queued') \
         from pg_background_jobs where uuid_parent = '{}'",
        batch.parent
    );
    let mut looks = 0;
    loop {
        match session.value(&query).as_str() {
            "t" => looks += 1,
            "∅" => break,
            other => panic!("{other} after {looks} looks"),
        }
    }
    assert!(looks > 0);
    batch.succeed(&mut session);
}
