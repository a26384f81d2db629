//! Processes die or are told to stop while there are jobs, and the log tells the truth afterwards.

use crate::crash::attached_jobs::wait_restarted;
use crate::support::barrier::{self, Barrier};
use crate::support::batch::{
    crash, retry, stubborn, times, wait_at_barrier, wait_gone, Batch, NEVER_STARTED, RUNNING, SLEEPING, UNKNOWN,
};
use crate::support::idle_worker;
use crate::support::job_stage::{assert_nothing_fatal, Paused};
use pg_background_mgr_tests::cluster::signal_process;
use pg_background_mgr_tests::{case, wait_for, wait_until, Cluster, Session, Signal, Stop, FOREVER, SLEEP_FOREVER};

/// A cluster with room for two jobs, a role `weak`, and a table that jobs write.
pub fn cluster(settings: &[(&str, &str)]) -> Cluster {
    let mut all = vec![("max_worker_processes", "4")];
    all.extend(settings);
    let cluster = Cluster::start_with_extension(&all);
    cluster.session("postgres").run(
        "create table ran (a int); create role weak login; grant select, insert on ran to weak; \
         select pg_background_grant('weak')",
    );
    cluster
}

/// Two jobs that run and three that wait, of a role without rights, and one of each end.
struct Scene {
    ended: Batch,
    open: Batch,
    barrier: Barrier,
    launcher: Session,
}

fn set_scene(cluster: &Cluster) -> Scene {
    let mut session = cluster.client("postgres").user("weak").connect();
    let ended = Batch::launch(&mut session, &["insert into ran values (0)", "select 1 / 0"]);
    ended.wait(&mut session);
    // One that is between two short jobs would claim several of those that are to wait.
    idle_worker::wait_all_idle(&mut session);
    let barrier = Barrier::close(cluster.session("postgres"));
    let text = format!("insert into ran values (1); {}", barrier::WAIT);
    let open = Batch::launch(&mut session, &times(&text, 5));
    wait_at_barrier(&mut session, 2);
    Scene { ended, open, barrier, launcher: session }
}

/// Asserts, at the first look after the next start, by somebody without rights, that what ran and what waited is lost,
/// and nothing else.
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
            "select queued, running, lost + stopped, total, percent from pg_background_batches \
             where uuid_parent = '{}'",
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

#[case]
fn a_killed_worker_leaves_no_job_that_seems_to_run() {
    let cluster = cluster(&[]);
    let scene = set_scene(&cluster);
    let mut watcher = cluster.session("postgres");
    signal_process(worker(&mut watcher), Signal::SIGKILL);
    wait_restarted(&cluster, &mut watcher);
    assert_lost(&cluster, &scene.ended, &scene.open, "lost");
}

#[case]
fn a_killed_postmaster_leaves_no_job_that_seems_to_run() {
    let cluster = cluster(&[]);
    let scene = set_scene(&cluster);
    let workers = cluster.workers();
    assert_eq!(workers.len(), 2);
    // Processes end one by one: the barrier is not to be open for those that are left.
    let paused = Paused::new(scene.barrier.pid());
    cluster.signal_postmaster(Signal::SIGKILL);
    workers.into_iter().for_each(wait_gone);
    drop(paused);
    cluster.wait_stopped();
    cluster.start();
    assert_lost(&cluster, &scene.ended, &scene.open, "lost");
}

#[case]
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
    let open = Batch::launch(&mut session, &times(&format!("insert into ran values (1); select {FOREVER}"), 5));
    wait_until("two jobs sleep", || session.value(SLEEPING) == "2");
    cluster.signal_postmaster(if how == Stop::Fast { Signal::SIGINT } else { Signal::SIGTERM });
    drop(session);
    cluster.wait_stopped();
    cluster.start();
    assert_lost(&cluster, &ended, &open, "stopped");
}

#[case]
fn a_fast_shutdown_leaves_no_job_that_seems_to_run() {
    assert_shutdown(Stop::Fast);
}

#[case]
fn a_smart_shutdown_leaves_no_job_that_seems_to_run() {
    assert_shutdown(Stop::Smart);
}

#[case]
fn a_server_that_does_not_restart_by_itself_leaves_no_job_that_seems_to_run() {
    let cluster = cluster(&[("restart_after_crash", "off")]);
    let scene = set_scene(&cluster);
    signal_process(worker(&mut cluster.session("postgres")), Signal::SIGKILL);
    cluster.wait_stopped();
    cluster.start();
    assert_lost(&cluster, &scene.ended, &scene.open, "lost");
}

#[case]
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

#[case]
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

#[case]
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

#[case]
fn a_job_between_attempts_is_lost_too() {
    let cluster = cluster(&[]);
    let mut session = cluster.session("postgres");
    let batch = Batch::launch_with(&mut session, &["select 1 / 0"], r#"{"max_attempts": 2, "retry_delay": "1 h"}"#);
    wait_until("the first attempt", || batch.log(&mut session, 0, "status || ' ' || attempts") == "queued 1");
    drop(session);
    let mut session = crash(&cluster);
    assert_eq!(batch.states(&mut session), ["lost"]);
}

/// A lost job says which process ran it, since when and in which attempt, so that the server's log leads to the one
/// that did it.
#[case]
fn a_lost_job_says_which_attempt_was_lost() {
    let cluster = cluster(&[]);
    let (mut session, _gate) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    session.run("create sequence tries");
    // Its first attempt fails.
    let again = format!("select 1 / (nextval('tries') - 1); {}", barrier::WAIT);
    let options = r#"{"max_attempts": 2, "retry_delay": 0}"#;
    let batch = Batch::launch_with(&mut session, &[again.as_str(), barrier::WAIT, "select 3"], options);
    wait_at_barrier(&mut session, 2);
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

#[case]
fn jobs_that_a_worker_had_not_begun_are_told_from_the_one_that_it_ran() {
    let cluster = cluster(&[]);
    let (mut session, _gate) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    // A worker that has run short jobs takes several at once.
    let mut texts = times("select 1", 81);
    texts[40] = barrier::WAIT;
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut session, 1);
    let pid = batch.log(&mut session, 40, "pid");
    drop(session);
    let mut session = crash(&cluster);
    let told = batch.column(&mut session, "concat_ws('|', status, attempts, pid, message)");
    assert_eq!(told[..40], batch.column(&mut session, "concat_ws('|', 'succeeded', 1, pid)")[..40]);
    assert_eq!(told[40], format!("lost|1|{pid}|{RUNNING}"));
    let not_begun = [format!("lost|0|{UNKNOWN}"), format!("lost|0|{NEVER_STARTED}")];
    assert!(told[41..].iter().all(|line| not_begun.contains(line)), "{told:?}");
}

#[case]
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
    let row = "concat_ws('|', id, pid, status, query, result, attempts, sqlstate, message, start_time_exec, \
               end_time_exec, queued_at)";
    let before = batch.column(&mut session, row);
    // Told as ended, it has ended, also in a crash the moment after.
    cluster.signal_postmaster(Signal::SIGKILL);
    cluster.wait_stopped();
    cluster.start();
    let mut session = cluster.session("postgres");
    assert_eq!(batch.column(&mut session, row), before);
    assert_eq!(session.rows("select a from ran order by a"), ["1", "2"]);
}

#[case]
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

/// The row is there also when the launcher's session does not wait for its own commits.
#[case]
fn a_launch_answered_before_a_crash_is_in_the_log() {
    let cluster = cluster(&[]);
    for commit in ["on", "off"] {
        let mut session = cluster.session("postgres");
        session.run(&format!("set synchronous_commit = {commit}"));
        let batch = Batch::launch(&mut session, &times(SLEEP_FOREVER, 20));
        cluster.signal_postmaster(Signal::SIGKILL);
        cluster.wait_stopped();
        cluster.start();
        let mut session = cluster.session("postgres");
        assert_eq!(batch.states(&mut session), times("lost", 20), "synchronous_commit {commit}");
    }
}

#[case]
fn a_shutdown_does_not_wait_for_stubborn_jobs() {
    let cluster = cluster(&[]);
    let mut session = cluster.session("postgres");
    let batch = Batch::launch(&mut session, &times(&stubborn(), 3));
    wait_until("two jobs sleep", || session.value(SLEEPING) == "2");
    cluster.stop(Stop::Fast);
    cluster.start();
    let states = batch.states(&mut cluster.session("postgres"));
    assert!(states.iter().all(|state| ["lost", "stopped"].contains(&state.as_str())), "{states:?}");
}

/// A second termination comes as in a smart shutdown whose last session goes before the job, which looks for signals a
/// few times a second, has noticed.
#[case]
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

/// Returns whether a signal has been sent to a process that has not taken it yet.
fn has_pending(pid: i32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let sets = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    sets.filter_map(|set| u64::from_str_radix(set.trim(), 16).ok()).any(|set| set >> (signal as u64 - 1) & 1 == 1)
}

#[case]
fn a_killed_launcher_loses_its_jobs() {
    let cluster = cluster(&[]);
    let scene = set_scene(&cluster);
    let mut watcher = cluster.session("postgres");
    signal_process(scene.launcher.pid(), Signal::SIGKILL);
    wait_restarted(&cluster, &mut watcher);
    assert_lost(&cluster, &scene.ended, &scene.open, "lost");
}
