//! Workers that wait sleep, and show that they have nothing to do.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{
    array, counts, load, set_server, times, wait_at_barrier, wait_gone, Batch, LOCK_LOG, WORKERS,
};
use crate::support::idle_worker::{count_sleeps, get_idle_worker};
use pg_background_mgr_tests::{case, wait_for, wait_until, Cluster, Session};

/// A cluster whose workers have been idle for long after a tenth of a second.
fn cluster() -> Cluster {
    Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "100ms")])
}

/// Idle workers that would have gone if they had nothing to wait for.
const IDLE: &str = "select pid from pg_stat_activity where backend_type = 'pg_background' and state = 'idle' \
                    and state_change < clock_timestamp() - interval '700 ms'";

/// Checks that the only idle worker, of `workers`, stays asleep while a session does three thousand things.
#[track_caller]
fn assert_sleeps(session: &mut Session, workers: usize, what: &str) {
    let count = wait_for("an idle worker that stays", || {
        if session.value(WORKERS) != workers.to_string() {
            return None;
        }
        let [pid] = <[String; 1]>::try_from(session.rows(IDLE)).ok()?;
        let before = count_sleeps(&pid)?;
        for _ in 0..3000 {
            session.run("select 1");
        }
        // One that has read the configuration again may have gone for that; another one comes.
        Some(count_sleeps(&pid)? - before)
    });
    // It looks whether its database is wanted, each two seconds.
    assert!(count < 20, "{what}: the worker has gone to sleep {count} times");
}

#[case(alone)]
fn a_worker_that_waits_for_a_delayed_attempt_sleeps() {
    let cluster = cluster();
    let mut session = cluster.session("postgres");
    for (delays, workers) in [
        (&["1 hour"][..], 1),
        (&["280000 years"], 1),
        (&["1 hour", "3 hours", "2 hours", "10 days"], 1),
        (&["1 hour", "1 hour"], 0),
    ] {
        let jobs: Vec<String> = delays
            .iter()
            .map(|delay| format!(r#"{{"query": "select 1/0", "max_attempts": 5, "retry_delay": "{delay}"}}"#))
            .collect();
        let jobs = format!("[{}]", jobs.join(", "));
        let options = if workers == 0 { r#"{"mode": "sequential"}"# } else { "{}" };
        let batch =
            Batch::call(&mut session, &format!("pg_background_launch_num('{jobs}'::jsonb, p_options => '{options}')"));
        wait_until("the first attempt", || batch.log(&mut session, 0, "attempts") == "1");
        assert_sleeps(&mut session, 1, &format!("{delays:?}"));
        // As well after it has read the configuration again.
        load(&mut session);
        let timeout = if session.value("show pg_background_mgr.worker_idle_timeout") == "0" { "100ms" } else { "0" };
        set_server(&cluster, &mut session, "pg_background_mgr.worker_idle_timeout", timeout);
        assert_sleeps(&mut session, 1, &format!("{delays:?}, after a reload"));
        // And after it has run something else meanwhile.
        Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
        assert_sleeps(&mut session, 1, &format!("{delays:?}, after another job"));
        session.run(&format!("select pg_background_stop('{}')", batch.parent));
        wait_until("no worker", || session.value(WORKERS) == "0");
    }
}

/// The worker of that role has gone; another one sees to its time.
#[case(alone)]
fn a_worker_that_waits_for_a_delayed_attempt_of_another_role_sleeps() {
    let cluster = cluster();
    let mut session = cluster.session("postgres");
    session.run("create role weak login; select pg_background_grant('weak')");
    let mut weak = cluster.client("postgres").user("weak").connect();
    let options = r#"{"max_attempts": 2, "retry_delay": "1 hour"}"#;
    let theirs = Batch::launch_with(&mut weak, &["select 1/0"], options);
    let own = Batch::launch_with(&mut session, &["select 1/0"], options);
    for batch in [&own, &theirs] {
        wait_until("the first attempt", || batch.log(&mut session, 0, "attempts") == "1");
    }
    let mut one = || {
        session.run(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where backend_type = 'pg_background' and usename = 'weak'",
        );
        session.value(WORKERS) == "1"
    };
    wait_until("the end of a worker", &mut one);
    assert_sleeps(&mut session, 1, "of another role");
    assert_eq!(theirs.states(&mut session), ["queued"]);
}

/// A worker is idle beside others with long jobs, and cannot go as nobody else would see to what is queued.
#[case(alone)]
fn a_worker_that_waits_while_others_work_sleeps() {
    let cluster = cluster();
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let jobs = format!(r#"["{}", "{}"]"#, barrier::WAIT, barrier::WAIT);
    let held = Batch::call(
        &mut session,
        &format!("pg_background_launch_num('{jobs}'::jsonb, p_options => '{{\"max_workers\": 1}}')"),
    );
    wait_at_barrier(&mut session, 1);
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    assert_sleeps(&mut session, 2, "beside others");
    barrier.open();
    held.succeed(&mut session);
}

#[case(alone)]
fn a_paused_queue_shows_no_job_and_goes_on_after_a_reload() {
    let cluster = cluster();
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    load(&mut session);
    let calls = [times(barrier::WAIT, 2), times("select pg_sleep(0.01)", 30)].concat();
    let call = format!("pg_background_launch_num({}, p_options => '{{\"max_workers\": 2}}')", array(&calls));
    let batch = Batch::call(&mut session, &call);
    wait_at_barrier(&mut session, 2);
    set_server(&cluster, &mut session, "pg_background_mgr.max_workers", "0");
    barrier.open();
    let shown = "select state from pg_stat_activity where backend_type = 'pg_background'";
    wait_until("a worker that waits", || session.rows(shown) == ["idle"]);
    assert_eq!(counts(&mut session, "true"), ["queued 30", "succeeded 2"]);
    assert_eq!(session.rows("select status from pg_background_jobs where status = 'running'"), [""; 0]);
    assert_sleeps(&mut session, 1, "paused");
    assert_eq!(session.rows(shown), ["idle"]);
    set_server(&cluster, &mut session, "pg_background_mgr.max_workers", "-1");
    batch.succeed(&mut session);
    // One that cannot write what it has to wakes now and then, and no more.
    let (mut locker, last) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let batch = Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut session, 1);
    locker.run(LOCK_LOG);
    last.open();
    assert_sleeps(&mut session, 1, "with a locked log");
    locker.run("rollback");
    batch.succeed(&mut session);
}

/// Looking at the catalogs again and again is no transaction: the server counts those of a database.
#[case(alone)]
fn an_idle_worker_makes_no_transactions() {
    let cluster =
        Cluster::start_with_extension(&[("autovacuum", "off"), ("pg_background_mgr.worker_idle_timeout", "1h")]);
    let mut admin = cluster.session("postgres");
    admin.run("create database other");
    cluster.session("other").run("create extension pg_background_mgr");
    // A worker reports what it has done with a job, and a session at its end.
    let run = || {
        let mut session = cluster.session("other");
        let pid = get_idle_worker(&mut session);
        let own = session.pid();
        drop(session);
        wait_gone(own);
        pid
    };
    let first = run();
    let mut commits = || admin.number("select xact_commit from pg_stat_database where datname = 'other'");
    let pid = first.to_string();
    let wait_looks = |looks: u64| {
        let sleeps = count_sleeps(&pid).expect("the worker") + looks;
        wait_until("the worker has looked", || count_sleeps(&pid).expect("the worker") > sleeps);
    };
    // Reported late, and by several: it counts when it stays as it is.
    let mut run_and_count = || {
        assert_eq!(run(), first);
        let mut last = -1;
        wait_until("the same count", || {
            wait_looks(1);
            let count = commits();
            std::mem::replace(&mut last, count) == count
        });
        last
    };
    // The first ones have more to read.
    let (mut last, mut one) = (run_and_count(), 0);
    wait_until("a job is as many transactions as the one before", || {
        let count = run_and_count();
        let before = std::mem::replace(&mut one, count - std::mem::replace(&mut last, count));
        before == one
    });
    wait_looks(5);
    assert_eq!(run_and_count() - last, one);
}
