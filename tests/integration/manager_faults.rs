//! Somebody dies or is told to stop while there are jobs, and the log tells the truth afterwards.

use crate::faults::wait_restarted;
use crate::gate::{self, Gate};
use crate::manager::{
    array, counts, crash, drain, retry, times, wait_at_gate, wait_gone, Batch, NEVER_STARTED, RUNNING, SLEEPING,
    STUBBORN, UNKNOWN,
};
use crate::stage::{assert_nothing_fatal, terminate, Paused};
use crate::warm;
use pg_background_mgr_tests::cluster::signal_process;
use pg_background_mgr_tests::{case, private_case, wait_for, wait_until, Case, Cluster, Db, Session, Signal, Stop};

pub fn cases() -> Vec<Case> {
    vec![
        // The server dies.
        private_case!(a_killed_worker_leaves_no_job_that_seems_to_run),
        private_case!(a_killed_postmaster_leaves_no_job_that_seems_to_run),
        private_case!(an_immediate_shutdown_leaves_no_job_that_seems_to_run),
        private_case!(a_fast_shutdown_leaves_no_job_that_seems_to_run),
        private_case!(a_smart_shutdown_leaves_no_job_that_seems_to_run),
        private_case!(a_server_that_does_not_restart_by_itself_leaves_no_job_that_seems_to_run),
        private_case!(lost_jobs_are_lost_in_every_database),
        private_case!(lost_jobs_stay_lost_over_restarts),
        private_case!(lost_jobs_are_run_again_when_asked_for),
        private_case!(a_job_between_attempts_is_lost_too),
        private_case!(a_lost_job_says_which_attempt_was_lost),
        private_case!(jobs_that_a_worker_had_not_begun_are_told_from_the_one_that_it_ran),
        private_case!(what_had_ended_stays_as_it_was),
        private_case!(a_killed_idle_worker_loses_nothing),
        private_case!(a_launch_answered_before_a_crash_is_in_the_log),
        private_case!(a_shutdown_does_not_wait_for_stubborn_jobs),
        private_case!(a_server_that_insists_does_not_outrun_the_first_termination),
        // A worker goes.
        case!(a_terminated_worker_stops_its_job_only),
        case!(a_cancelled_worker_fails_its_job_only),
        case!(a_terminated_idle_worker_is_replaced),
        case!(a_job_that_ends_its_own_process_is_stopped),
        case!(a_terminated_worker_is_not_tried_again),
        case!(workers_terminated_at_random_lose_no_job),
        // The launcher goes.
        case!(a_launcher_that_goes_leaves_its_batch),
        case!(a_terminated_launcher_leaves_its_batch),
        case!(a_launch_cancelled_at_random_is_all_or_nothing),
        private_case!(a_killed_launcher_loses_its_jobs),
        private_case!(a_launcher_terminated_while_it_waits_for_a_place_leaves_nothing),
    ]
}

/// A cluster with room for two jobs, a role `weak`, and a table that jobs write.
fn cluster(settings: &[(&str, &str)]) -> Cluster {
    let mut all = vec![("max_worker_processes", "4")];
    all.extend(settings);
    let cluster = Cluster::start_with_extension(&all);
    cluster.session("postgres").run(
        "create table ran (a int); create role weak login; grant select, insert on ran to weak; select pg_background_grant('weak')",
    );
    cluster
}

/// Two jobs that run and three that wait, of a role without rights, and one of each end.
struct Scene {
    ended: Batch,
    open: Batch,
    gate: Gate,
    launcher: Session,
}

fn set_scene(cluster: &Cluster) -> Scene {
    let mut session = cluster.client("postgres").user("weak").connect();
    let ended = Batch::launch(&mut session, &["insert into ran values (0)", "select 1 / 0"]);
    ended.wait(&mut session);
    // One that is between two short jobs would claim several of those that are to wait.
    warm::rest_all(&mut session);
    let gate = Gate::close(cluster.session("postgres"));
    let text = format!("insert into ran values (1); {}", gate::WAIT);
    let open = Batch::launch(&mut session, &times(&text, 5));
    wait_at_gate(&mut session, 2);
    Scene { ended, open, gate, launcher: session }
}

/// At the first look after the next start, by somebody without rights: what ran and what waited is lost, and nothing
/// else.
#[track_caller]
fn assert_lost(cluster: &Cluster, ended: &Batch, open: &Batch, running: &str) {
    let mut weak = cluster.client("postgres").user("weak").connect();
    let states = open.states(&mut weak);
    assert_eq!(states[..2], times(running, 2));
    assert_eq!(states[2..], times("lost", 3));
    let told = open.column(&mut weak, "message");
    assert!(told[..2].iter().all(|line| (line == RUNNING) == (running == "lost")), "{told:?}");
    assert_eq!(told[2..], times(NEVER_STARTED, 3));
    assert_eq!(ended.states(&mut weak), ["succeeded", "failed"]);
    for mut session in [weak, cluster.session("postgres")] {
        let live = "where status in ('queued', 'running')";
        for view in ["log_background", "pg_background_jobs", "pg_background_monitor()"] {
            assert_eq!(session.value(&format!("select count(*) from {view} {live}")), "0", "{view}");
        }
        let batch = format!(
            "select queued, running, lost + stopped, total, percent from pg_background_batches where uuid_parent = '{}'",
            open.parent
        );
        assert!(session.value(&batch).starts_with("0|0|5|5|100"));
        let followed = session.rows(&format!("select status from pg_background_monitor('{}', false)", open.parent));
        assert_eq!(followed, states);
        let stopped = session.rows(&format!("select was, now from pg_background_stop('{}')", open.parent));
        assert_eq!(stopped, states.iter().map(|state| format!("{state}|{state}")).collect::<Vec<_>>());
        // The next jobs run, and only they.
        let next = Batch::launch(&mut session, &["insert into ran values (2)"]);
        next.succeed(&mut session);
    }
    let mut session = cluster.session("postgres");
    assert_eq!(session.rows("select a, count(*) from ran group by a order by a"), ["0|1", "2|2"]);
    assert_eq!(open.states(&mut session), states);
}

/// A worker that runs a job.
#[track_caller]
fn worker(session: &mut Session) -> i32 {
    let query = "select min(pid) from pg_stat_activity where backend_type = 'pg_background' and state = 'active'";
    session.value(query).parse().expect("a running worker")
}

fn a_killed_worker_leaves_no_job_that_seems_to_run() {
    let cluster = cluster(&[]);
    let scene = set_scene(&cluster);
    let mut watcher = cluster.session("postgres");
    signal_process(worker(&mut watcher), Signal::SIGKILL);
    wait_restarted(&cluster, &mut watcher);
    assert_lost(&cluster, &scene.ended, &scene.open, "lost");
}

fn a_killed_postmaster_leaves_no_job_that_seems_to_run() {
    let cluster = cluster(&[]);
    let scene = set_scene(&cluster);
    let workers = cluster.workers();
    assert_eq!(workers.len(), 2);
    // Processes end one by one: the gate is not to be open for those that are left.
    let paused = Paused::new(scene.gate.pid());
    cluster.signal_postmaster(Signal::SIGKILL);
    workers.into_iter().for_each(wait_gone);
    drop(paused);
    cluster.wait_stopped();
    cluster.start();
    assert_lost(&cluster, &scene.ended, &scene.open, "lost");
}

fn an_immediate_shutdown_leaves_no_job_that_seems_to_run() {
    let cluster = cluster(&[]);
    let scene = set_scene(&cluster);
    cluster.stop(Stop::Immediate);
    cluster.start();
    assert_lost(&cluster, &scene.ended, &scene.open, "lost");
}

/// Running jobs still say that they were stopped, also when the server insists. They wait for no session, which might
/// end first.
#[track_caller]
fn assert_shutdown(how: Stop) {
    let cluster = cluster(&[]);
    let mut session = cluster.client("postgres").user("weak").connect();
    let ended = Batch::launch(&mut session, &["insert into ran values (0)", "select 1 / 0"]);
    ended.wait(&mut session);
    let open = Batch::launch(&mut session, &times("insert into ran values (1); select pg_sleep(600)", 5));
    wait_until("two jobs sleep", || session.value(SLEEPING) == "2");
    cluster.signal_postmaster(if how == Stop::Fast { Signal::SIGINT } else { Signal::SIGTERM });
    drop(session);
    cluster.wait_stopped();
    cluster.start();
    assert_lost(&cluster, &ended, &open, "stopped");
}

fn a_fast_shutdown_leaves_no_job_that_seems_to_run() {
    assert_shutdown(Stop::Fast);
}

fn a_smart_shutdown_leaves_no_job_that_seems_to_run() {
    assert_shutdown(Stop::Smart);
}

fn a_server_that_does_not_restart_by_itself_leaves_no_job_that_seems_to_run() {
    let cluster = cluster(&[("restart_after_crash", "off")]);
    let scene = set_scene(&cluster);
    signal_process(worker(&mut cluster.session("postgres")), Signal::SIGKILL);
    cluster.wait_stopped();
    cluster.start();
    assert_lost(&cluster, &scene.ended, &scene.open, "lost");
}

fn lost_jobs_are_lost_in_every_database() {
    let cluster = cluster(&[]);
    cluster.session("postgres").run("create database other");
    let mut other = cluster.session("other");
    other.run("create extension pg_background_mgr; create table ran (a int)");
    let scene = set_scene(&cluster);
    let waiting = Batch::launch(&mut other, &["insert into ran values (1)", "insert into ran values (2)"]);
    assert_eq!(waiting.states(&mut other), ["queued", "queued"]);
    cluster.stop(Stop::Immediate);
    cluster.start();
    let mut other = cluster.session("other");
    assert_eq!(waiting.column(&mut other, "status || ': ' || message"), times(&format!("lost: {NEVER_STARTED}"), 2));
    assert_lost(&cluster, &scene.ended, &scene.open, "lost");
    Batch::launch(&mut other, &["insert into ran values (3)"]).succeed(&mut other);
    assert_eq!(other.rows("table ran"), ["3"]);
}

fn lost_jobs_stay_lost_over_restarts() {
    let cluster = cluster(&[]);
    let scene = set_scene(&cluster);
    for _ in 0..2 {
        cluster.stop(Stop::Immediate);
        cluster.start();
    }
    let mut session = cluster.session("postgres");
    let told = scene.open.column(&mut session, "status || ': ' || message");
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    assert_eq!(scene.open.column(&mut session, "status || ': ' || message"), told);
    drop(session);
    cluster.restart();
    let mut session = cluster.session("postgres");
    assert_eq!(scene.open.column(&mut session, "status || ': ' || message"), told);
    assert_eq!(told[0], format!("lost: {RUNNING}"));
    assert_eq!(told[4], format!("lost: {NEVER_STARTED}"));
    assert_eq!(session.value("select pg_background_prune('0')"), "8");
}

fn lost_jobs_are_run_again_when_asked_for() {
    let cluster = cluster(&[]);
    let scene = set_scene(&cluster);
    cluster.stop(Stop::Immediate);
    cluster.start();
    let mut session = cluster.client("postgres").user("weak").connect();
    assert_eq!(retry(&mut session, &scene.open.parent).len(), 5);
    scene.open.succeed(&mut session);
    assert_eq!(session.rows("select a, count(*) from ran group by a order by a"), ["0|1", "1|5"]);
}

fn a_job_between_attempts_is_lost_too() {
    let cluster = cluster(&[]);
    let mut session = cluster.session("postgres");
    let batch = Batch::launch_with(&mut session, &["select 1 / 0"], r#"{"max_attempts": 2, "retry_delay": "1 h"}"#);
    wait_until("the first attempt", || batch.log(&mut session, 0, "status || ' ' || attempts") == "queued 1");
    drop(session);
    let mut session = crash(&cluster);
    assert_eq!(batch.states(&mut session), ["lost"]);
}

/// Each says which process ran it, since when and in which attempt, so that the server's log leads to the one that did
/// it.
fn a_lost_job_says_which_attempt_was_lost() {
    let cluster = cluster(&[]);
    let (mut session, _gate) = (cluster.session("postgres"), Gate::close(cluster.session("postgres")));
    session.run("create sequence tries");
    // Its first attempt fails.
    let again = format!("select 1 / (nextval('tries') - 1); {}", gate::WAIT);
    let options = r#"{"max_attempts": 2, "retry_delay": 0}"#;
    let batch = Batch::launch_with(&mut session, &[again.as_str(), gate::WAIT, "select 3"], options);
    wait_at_gate(&mut session, 2);
    let attempts = batch.column(&mut session, "concat_ws('|', status, attempts, pid, start_time_exec)");
    assert!(attempts[0].starts_with("running|2|") && attempts[1].starts_with("running|1|"), "{attempts:?}");
    assert_eq!(attempts[2], "queued|0");
    let pids = batch.column(&mut session, "pid");
    signal_process(pids[1].parse().expect("a process id"), Signal::SIGKILL);
    wait_restarted(&cluster, &mut session);
    let told = "concat_ws('|', status, attempts, pid, start_time_exec, message)";
    let lost = |attempt: &str, message: &str| format!("{}|{message}", attempt.replace("running|", "lost|"));
    let expected = [lost(&attempts[0], RUNNING), lost(&attempts[1], RUNNING), format!("lost|0|{NEVER_STARTED}")];
    let mut session = cluster.session("postgres");
    assert_eq!(batch.column(&mut session, told), expected);
    // The next worker writes it down, and the server after this one knows it, too.
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    assert_eq!(batch.column(&mut session, told), expected);
    drop(session);
    let mut session = crash(&cluster);
    assert_eq!(batch.column(&mut session, told), expected);
    assert_eq!(retry(&mut session, &batch.parent).len(), 3);
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, "attempts"), ["3", "2", "1"]);
}

fn jobs_that_a_worker_had_not_begun_are_told_from_the_one_that_it_ran() {
    let cluster = cluster(&[]);
    let (mut session, _gate) = (cluster.session("postgres"), Gate::close(cluster.session("postgres")));
    // A worker that has run short jobs takes several at once.
    let mut texts = times("select 1", 81);
    texts[40] = gate::WAIT;
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 1}"#);
    wait_at_gate(&mut session, 1);
    let pid = batch.log(&mut session, 40, "pid");
    drop(session);
    let mut session = crash(&cluster);
    let told = batch.column(&mut session, "concat_ws('|', status, attempts, pid, message)");
    assert_eq!(told[..40], batch.column(&mut session, "concat_ws('|', 'succeeded', 1, pid)")[..40]);
    assert_eq!(told[40], format!("lost|1|{pid}|{RUNNING}"));
    let not_begun = [format!("lost|0|{UNKNOWN}"), format!("lost|0|{NEVER_STARTED}")];
    assert!(told[41..].iter().all(|line| not_begun.contains(line)), "{told:?}");
}

fn what_had_ended_stays_as_it_was() {
    let cluster = cluster(&[]);
    let mut session = cluster.session("postgres");
    let texts = [
        "insert into ran values (1)",
        "select 1 / 0",
        "vacuum",
        "begin; insert into ran values (2); commit",
        "select 5 as a",
    ];
    let batch = Batch::launch(&mut session, &texts);
    batch.wait(&mut session);
    let row = "concat_ws('|', id, pid, status, query, result, attempts, sqlstate, message, start_time_exec, end_time_exec, queued_at)";
    let before = batch.column(&mut session, row);
    // Told as ended, it has ended, also in a crash the moment after.
    cluster.signal_postmaster(Signal::SIGKILL);
    cluster.wait_stopped();
    cluster.start();
    let mut session = cluster.session("postgres");
    assert_eq!(batch.column(&mut session, row), before);
    assert_eq!(session.rows("select a from ran order by a"), ["1", "2"]);
}

fn a_killed_idle_worker_loses_nothing() {
    let cluster = cluster(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let mut session = cluster.session("postgres");
    let texts = ["insert into ran values (1)", "select 1 / 0"];
    // A second one that comes late has the first one leave.
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 1}"#);
    batch.wait(&mut session);
    let workers = "select state, pid from pg_stat_activity where backend_type = 'pg_background'";
    let pid: i32 = wait_for("its one worker", || match session.rows(workers).as_slice() {
        [worker] => worker.strip_prefix("idle|").map(|pid| pid.parse().expect("a process id")),
        _ => None,
    });
    signal_process(pid, Signal::SIGKILL);
    wait_restarted(&cluster, &mut session);
    let mut session = cluster.session("postgres");
    assert_eq!(batch.states(&mut session), ["succeeded", "failed"]);
    Batch::launch(&mut session, &["insert into ran values (2)"]).succeed(&mut session);
    assert_eq!(session.rows("select a from ran order by a"), ["1", "2"]);
}

/// Also when the launcher's session does not wait for its own commits.
fn a_launch_answered_before_a_crash_is_in_the_log() {
    let cluster = cluster(&[]);
    for commit in ["on", "off"] {
        let mut session = cluster.session("postgres");
        session.run(&format!("set synchronous_commit = {commit}"));
        let batch = Batch::launch(&mut session, &times("select pg_sleep(600)", 20));
        cluster.signal_postmaster(Signal::SIGKILL);
        cluster.wait_stopped();
        cluster.start();
        let mut session = cluster.session("postgres");
        assert_eq!(batch.states(&mut session), times("lost", 20), "synchronous_commit {commit}");
    }
}

fn a_shutdown_does_not_wait_for_stubborn_jobs() {
    let cluster = cluster(&[]);
    let mut session = cluster.session("postgres");
    let batch = Batch::launch(&mut session, &times(STUBBORN, 3));
    wait_until("two jobs sleep", || session.value(SLEEPING) == "2");
    cluster.stop(Stop::Fast);
    cluster.start();
    let states = batch.states(&mut cluster.session("postgres"));
    assert!(states.iter().all(|state| ["lost", "stopped"].contains(&state.as_str())), "{states:?}");
}

/// As in a smart shutdown whose last session goes before the job, which looks for signals a few times a second, has
/// noticed.
fn a_server_that_insists_does_not_outrun_the_first_termination() {
    let cluster = cluster(&[]);
    let mut session = cluster.session("postgres");
    let text = "do $$ declare long text := repeat('x', 100000000); begin \
                perform pg_background_report_progress(1); loop perform md5(long); end loop; end $$";
    let mark = cluster.log_mark();
    let batch = Batch::launch(&mut session, &[text]);
    let progress =
        format!("select pid from pg_background_jobs where uuid_child = '{}' and progress = 1", batch.children[0]);
    let pid = wait_for("the loop", || session.rows(&progress).pop()).parse().expect("a process");
    for _ in 0..2 {
        signal_process(pid, Signal::SIGTERM);
        wait_until("the signal has been taken", || !has_pending(pid, Signal::SIGTERM));
    }
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    wait_gone(pid);
    assert_nothing_fatal(&cluster, mark);
}

/// Whether a signal has been sent to a process that has not taken it yet.
fn has_pending(pid: i32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let sets = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    sets.filter_map(|set| u64::from_str_radix(set.trim(), 16).ok()).any(|set| set >> (signal as u64 - 1) & 1 == 1)
}

/// The process that waits at the gate for a job.
#[track_caller]
fn at_gate(session: &mut Session) -> i32 {
    wait_at_gate(session, 1);
    let query = "select pid from pg_locks where locktype = 'advisory' and objid = 4711 and not granted \
                 and database = (select oid from pg_database where datname = current_database())";
    session.value(query).parse().expect("a process")
}

fn a_terminated_worker_stops_its_job_only(db: &Db) {
    let (mut session, gate) = (db.session(), Gate::close(db.session()));
    session.run("create table ran (a int)");
    let held = format!("insert into ran values (1); {}", gate::WAIT);
    let texts = ["insert into ran values (0)", &held, "insert into ran values (2)", "insert into ran values (3)"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    let pid = at_gate(&mut session);
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
    drop(gate);
}

fn a_cancelled_worker_fails_its_job_only(db: &Db) {
    let (mut session, gate) = (db.session(), Gate::close(db.session()));
    let batch = Batch::launch_with(
        &mut session,
        &[gate::WAIT, "select pg_sleep(0.05)", "select 3"],
        r#"{"mode": "sequential"}"#,
    );
    let pid = at_gate(&mut session);
    session.run(&format!("select pg_cancel_backend({pid})"));
    assert_eq!(batch.finish(&mut session), ["failed", "succeeded", "succeeded"]);
    assert_eq!(
        batch.log(&mut session, 0, "sqlstate || ' ' || message"),
        "57014 canceling statement due to user request"
    );
    drop(gate);
}

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

fn a_job_that_ends_its_own_process_is_stopped(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let text = "insert into ran values (1); select pg_terminate_backend(pg_backend_pid()); select pg_sleep(600)";
    let batch = Batch::launch_with(&mut session, &[text, "insert into ran values (2)"], r#"{"mode": "sequential"}"#);
    assert_eq!(batch.finish(&mut session), ["stopped", "succeeded"]);
    assert_eq!(batch.log(&mut session, 0, "sqlstate"), "57P01");
    assert_eq!(session.rows("table ran"), ["2"]);
}

fn a_terminated_worker_is_not_tried_again(db: &Db) {
    let (mut session, gate) = (db.session(), Gate::close(db.session()));
    let text = format!("do $$ begin execute '{}'; end $$", gate::WAIT);
    let batch = Batch::launch_with(&mut session, &[&text], r#"{"max_attempts": 5}"#);
    let pid = at_gate(&mut session);
    session.run(&format!("select pg_terminate_backend({pid})"));
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    assert_eq!(batch.log(&mut session, 0, "attempts"), "1");
    assert_eq!(batch.log(&mut session, 0, "context ~ 'inline_code_block line 1 at EXECUTE'"), "t");
    drop(gate);
}

/// Each job either did its work and says so, or was stopped and did nothing.
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

fn a_launcher_that_goes_leaves_its_batch(db: &Db) {
    let (mut session, mut watcher, gate) = (db.session(), db.session(), Gate::close(db.session()));
    watcher.run("create table ran (a int)");
    let text = format!("{}; insert into ran values (1)", gate::WAIT);
    let batch = Batch::launch_with(&mut session, &times(&text, 10), r#"{"max_workers": 2}"#);
    let pid = session.pid();
    drop(session);
    wait_gone(pid);
    wait_at_gate(&mut watcher, 2);
    gate.open();
    batch.succeed(&mut watcher);
    assert_eq!(watcher.value("select count(*) from ran"), "10");
}

fn a_terminated_launcher_leaves_its_batch(db: &Db) {
    let (mut session, mut watcher, gate) = (db.session(), db.session(), Gate::close(db.session()));
    watcher.run("create table ran (a int)");
    let text = format!("{}; insert into ran values (1)", gate::WAIT);
    session.send(&format!(
        "select * from pg_background_launch_num({}, p_exec_type => 'sync', p_options => '{{\"max_workers\": 2}}')",
        array(&times(&text, 6))
    ));
    wait_at_gate(&mut watcher, 2);
    watcher.run(&format!("select pg_terminate_backend({})", session.pid()));
    wait_gone(session.pid());
    gate.open();
    drain(&mut watcher);
    assert_eq!(counts(&mut watcher, "true"), ["succeeded 6"]);
    assert_eq!(watcher.value("select count(*) from ran"), "6");
}

/// The cancel comes from another connection and hits at any moment of the call.
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

fn a_killed_launcher_loses_its_jobs() {
    let cluster = cluster(&[]);
    let scene = set_scene(&cluster);
    let mut watcher = cluster.session("postgres");
    signal_process(scene.launcher.pid(), Signal::SIGKILL);
    wait_restarted(&cluster, &mut watcher);
    assert_lost(&cluster, &scene.ended, &scene.open, "lost");
}

/// Only a worker of another role is there, which is asked to make room and takes its time.
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
