//! A worker that stays, or a session that uses one, is cancelled, terminated, killed.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{wait_gone, Batch};
use crate::support::idle_worker::{get_idle_worker, read, run, run_and_wait_idle, wait_idle};
use crate::support::job_stage::Paused;
use pg_background_mgr_tests::cluster::{signal_process, Baseline};
use pg_background_mgr_tests::{case, wait_until, Cluster, Session, Signal};

/// Workers stay for as long as the case may take.
fn cluster() -> (Cluster, Baseline) {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let before = cluster.baseline();
    (cluster, before)
}

/// A job that waits at the barrier, in the worker `pid`.
#[track_caller]
fn launch_at_barrier(session: &mut Session, barrier: &mut Barrier, pid: i32) {
    assert_eq!(session.launch(barrier::WAIT), pid);
    barrier.wait_for(pid);
}

#[case]
fn a_cancel_reaches_one_job_only() {
    let (cluster, before) = cluster();
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    let mut barrier = Barrier::close(cluster.session("postgres"));
    let pid = get_idle_worker(&mut session);
    for _ in 0..5 {
        launch_at_barrier(&mut session, &mut barrier, pid);
        assert!(other.holds(&format!("select pg_cancel_backend({pid})")));
        let error = read(&mut session, pid).error.expect("an error");
        assert_eq!((error[&'C'].as_str(), error[&'M'].as_str()), ("57014", "canceling statement due to user request"));
        assert_eq!(run(&mut session, "select 1").1.rows, ["(1)"]);
        wait_idle(&mut session, pid);
    }
    // One that comes as the job ends, and is for none or for it.
    for number in 0..60 {
        assert_eq!(session.launch(&format!("select {number}")), pid);
        other.run(&format!("select pg_cancel_backend({pid})"));
        if let Some(error) = read(&mut session, pid).error {
            assert_eq!(error[&'C'], "57014");
        }
        assert_eq!(run(&mut session, "select 1, pg_sleep(0.001)").1.rows, ["(1,\"\")"]);
    }
    barrier.open();
    drop((session, other));
    cluster.assert_sound(&before);
}

/// Before a database is dropped every process lets go of its files, and says so. Here it is asked to in the moment in
/// which its job is cancelled.
#[case(since = 15)]
fn a_cancelled_worker_holds_up_no_drop_of_a_database() {
    let (cluster, before) = cluster();
    let (mut session, mut other, mut admin) =
        (cluster.session("postgres"), cluster.session("postgres"), cluster.session("postgres"));
    let mut barrier = Barrier::close(cluster.session("postgres"));
    let pid = get_idle_worker(&mut session);
    for is_queued in [false, true] {
        other.run("create database passing");
        let batch = is_queued.then(|| Batch::launch(&mut session, &[barrier::WAIT]));
        match batch {
            Some(_) => barrier.wait_for(pid),
            None => launch_at_barrier(&mut session, &mut barrier, pid),
        }
        let paused = Paused::new(pid);
        assert!(other.holds(&format!("select pg_cancel_backend({pid})")));
        admin.send("drop database passing");
        let waits = "select count(*) from pg_stat_activity where wait_event = 'ProcSignalBarrier'";
        wait_until("the drop waits for the worker", || other.value(waits) == "1");
        drop(paused);
        let dropped = admin.finish("the drop");
        assert!(dropped.error.is_none(), "{:?}", dropped.error);
        match batch {
            Some(batch) => assert_eq!(batch.finish(&mut session), ["failed"]),
            None => assert_eq!(read(&mut session, pid).error.expect("an error")[&'C'], "57014"),
        }
        wait_idle(&mut session, pid);
    }
    drop((session, barrier));
    cluster.assert_sound(&before);
}

#[case]
fn a_cancel_of_an_idle_worker_reaches_no_job() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    let pid = get_idle_worker(&mut session);
    for number in 0..50 {
        session.run(&format!("select pg_cancel_backend({pid})"));
        if number % 2 == 0 {
            wait_idle(&mut session, pid);
        }
        let (next, outcome) = run(&mut session, "select pg_sleep(0.002), 1");
        assert_eq!((next, outcome.error, outcome.rows), (pid, None, vec!["(\"\",1)".to_owned()]));
        wait_idle(&mut session, pid);
    }
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn a_terminated_job_ends_as_in_a_new_process() {
    let (cluster, before) = cluster();
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    let mut barrier = Barrier::close(cluster.session("postgres"));
    let mut seen = Vec::new();
    for is_reused in [false, true, true] {
        let pid = if is_reused { get_idle_worker(&mut session) } else { 0 };
        let launched = session.launch(barrier::WAIT);
        assert_eq!(is_reused, launched == pid);
        barrier.wait_for(launched);
        assert!(other.holds(&format!("select pg_terminate_backend({launched})")));
        let outcome = read(&mut session, launched);
        wait_gone(launched);
        assert_eq!(session.error(&format!("select pg_background_result({launched})")).sqlstate(), "42704");
        seen.push(outcome);
        assert_eq!(session.job("select 1", "n int"), ["1"]);
        let pid = get_idle_worker(&mut session);
        other.run(&format!("select pg_terminate_backend({pid})"));
        wait_gone(pid);
    }
    assert_eq!(seen[0].error.as_ref().expect("an error")[&'C'], "57P01");
    assert!(seen.iter().all(|outcome| *outcome == seen[0]), "{seen:?}");
    barrier.open();
    drop((session, other));
    cluster.assert_sound(&before);
}

#[case]
fn a_terminated_idle_worker_is_replaced() {
    let (cluster, before) = cluster();
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    for number in 0..10 {
        let pid = get_idle_worker(&mut session);
        assert_eq!(run_and_wait_idle(&mut other, "select 1"), pid);
        other.run(&format!("select pg_terminate_backend({pid})"));
        wait_gone(pid);
        let session = if number % 2 == 0 { &mut session } else { &mut other };
        let (next, outcome) = run(session, "select 7");
        assert_eq!((outcome.rows, outcome.error), (vec!["(7)".to_owned()], None));
        assert_ne!(next, pid);
        wait_idle(session, next);
    }
    drop((session, other));
    cluster.assert_sound(&before);
}

#[case]
fn a_worker_terminated_right_after_its_first_job_goes() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    for _ in 0..20 {
        let pid = session.launch("select 1");
        session.result(pid, "n int");
        session.run(&format!("select pg_terminate_backend({pid})"));
        wait_gone(pid);
    }
    drop(session);
    cluster.assert_sound(&before);
}

/// A job gives its result, or says why it does not and has not run.
#[case]
fn terminations_at_random_never_give_a_wrong_result() {
    let (cluster, before) = cluster();
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    session.run("create table ran (a int primary key)");
    let mut last = get_idle_worker(&mut session);
    let mut failed = 0;
    for number in 0..150 {
        // The termination is for a worker that has nothing to do, is about to begin, or runs.
        other.send(&format!("select pg_sleep(0.0001 * {}), pg_terminate_backend({last})", number % 10));
        // Every other job has a segment that the worker does not know.
        let size = 65536 * (1 + number % 2 * number % 20);
        let text = format!("insert into ran values ({number}) returning a");
        let reply = session.ask(&format!("select pg_background_launch('{text}', {size})"));
        other.finish("a termination");
        assert!(reply.error.is_none(), "{:?}", reply.error);
        last = reply.last_rows().expect("a row").text_rows()[0].parse().expect("a process id");
        let outcome = read(&mut session, last);
        let ran = session.value(&format!("select count(*) from ran where a = {number}"));
        match outcome.error {
            None => assert_eq!((outcome.rows, ran.as_str()), (vec![format!("({number})")], "1")),
            Some(error) => {
                assert!(["57P01", "53000"].contains(&error[&'C'].as_str()), "{error:?}");
                assert!(ran == "0" || error[&'C'] == "57P01", "{error:?}");
                failed += 1;
            }
        }
    }
    assert!(failed < 150);
    drop((session, other));
    cluster.assert_sound(&before);
}

#[case]
fn a_cancelled_wait_can_be_repeated() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    let pid = get_idle_worker(&mut session);
    for rows in [3, 50_000] {
        let mut barrier = Barrier::close(cluster.session("postgres"));
        let text = format!("select i from generate_series(1, {rows}) i where i < {rows} or {}", barrier::OPENED);
        assert_eq!(session.launch(&text), pid);
        barrier.wait_for(pid);
        let wait = format!("select count(*), sum(a) from pg_background_result({pid}) as (a int)");
        session.run("set statement_timeout = '50ms'");
        assert_eq!(session.error(&wait).sqlstate(), "57014");
        session.run("reset statement_timeout");
        session.send(&wait);
        let mut other = cluster.session("postgres");
        let waits = format!(
            "select state = 'active' and wait_event is not null from pg_stat_activity where pid = {}",
            session.pid()
        );
        wait_until("the session waits", || other.holds(&waits));
        session.canceller().cancel();
        assert_eq!(session.finish("a wait").error.expect("an error").sqlstate(), "57014");
        barrier.open();
        let sum = i64::from(rows) * i64::from(rows + 1) / 2;
        assert_eq!(session.rows(&wait), [format!("{rows}|{sum}")]);
        wait_idle(&mut session, pid);
        assert_eq!(run_and_wait_idle(&mut session, "select 1"), pid);
    }
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn a_terminated_launcher_leaves_its_worker_to_others() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    let pid = get_idle_worker(&mut session);
    for number in 1..=4 {
        let (mut launcher, mut barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
        assert_eq!(launcher.launch(&format!("{}; insert into ran values ({number})", barrier::WAIT)), pid);
        barrier.wait_for(pid);
        if number % 2 == 0 {
            launcher.send(&format!("select pg_background_result({pid})"));
        }
        let process = launcher.pid();
        session.run(&format!("select pg_terminate_backend({process})"));
        wait_gone(process);
        barrier.open();
        wait_idle(&mut session, pid);
        assert_eq!(session.value("select count(*) from ran"), number.to_string(), "the job runs on");
        assert_eq!(run_and_wait_idle(&mut session, "select 1"), pid);
    }
    drop(session);
    cluster.assert_sound(&before);
}

/// The worker is held up when it has been given the job, by a session that it has served and by one that it has not.
#[case]
fn a_job_that_was_given_and_not_begun_runs_without_its_launcher() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    let mut number = 0;
    for is_known in [true, false] {
        for is_terminated in [true, false] {
            number += 1;
            let mut launcher = cluster.session("postgres");
            let pid = get_idle_worker(if is_known { &mut launcher } else { &mut session });
            let paused = Paused::at_rest(pid, &mut session);
            assert_eq!(launcher.launch(&format!("insert into ran values ({number})")), pid);
            let process = launcher.pid();
            if is_terminated {
                session.run(&format!("select pg_terminate_backend({process})"));
            } else {
                drop(launcher);
            }
            wait_gone(process);
            assert_eq!(session.number("select count(*) from ran"), number - 1);
            drop(paused);
            wait_until("the job's work", || session.number("select count(*) from ran") == number);
            wait_idle(&mut session, pid);
            assert_eq!(run_and_wait_idle(&mut session, "select 1"), pid);
        }
    }
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn a_killed_idle_worker_loses_nothing_but_the_servers_memory() {
    let (cluster, before) = cluster();
    for _ in 0..2 {
        let mut session = cluster.session("postgres");
        let pid = get_idle_worker(&mut session);
        signal_process(pid, Signal::SIGKILL);
        wait_until("the end of the session", || session.is_closed());
        cluster.wait_ready();
        let mut session = cluster.session("postgres");
        assert_eq!(session.job("select 1", "n int"), ["1"]);
        let pid = get_idle_worker(&mut session);
        assert_eq!(run_and_wait_idle(&mut session, "select 1"), pid);
    }
    cluster.assert_sound(&before);
}
