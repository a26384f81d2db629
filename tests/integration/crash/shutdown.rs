//! The server goes down while there are jobs.

use crate::support::barrier::Barrier;
use crate::support::job_stage::{committed, prepare, JobStage, Scene};
use pg_background_mgr_tests::cluster::{is_alive, Baseline};
use pg_background_mgr_tests::{case, wait_until, Cluster, Session, Signal, Stop, FOREVER, SLEEP_FOREVER};

/// Sessions with jobs in every state; one job has committed.
struct Busy {
    _sessions: Vec<Session>,
}

/// Launches jobs of which none waits for another session: that could let it go on when it ends first.
fn keep_busy(cluster: &Cluster) -> Busy {
    prepare(cluster);
    let rows = "select i from generate_series(1, 200000) i";
    let half = format!("{rows} where i <> 100000 or {FOREVER}::text = ''");
    let mut watcher = cluster.session("postgres");
    let mut sessions = Vec::new();
    // (what it does, whether its session waits for it, whether it sleeps)
    for (text, is_awaited, sleeps) in
        [(SLEEP_FOREVER, false, true), (SLEEP_FOREVER, true, true), (&half, true, true), (rows, false, false)]
    {
        let mut session = cluster.session("postgres");
        let pid = session.launch(&format!("insert into ran values (1); {text}"));
        let expected = if sleeps { "active|PgSleep" } else { "idle|MessageQueueSend" };
        let query = format!("select state, wait_event from pg_stat_activity where pid = {pid}");
        wait_until("the job sleeps, or has come to rest", || watcher.rows(&query) == [expected]);
        if is_awaited {
            session.send(&format!("select pg_background_result({pid})"));
        }
        sessions.push(session);
    }
    let mut detached = cluster.session("postgres");
    let pid = detached.launch(&format!("insert into ran values (1); select {FOREVER}"));
    detached.run(&format!("select pg_background_detach({pid})"));
    sessions.push(detached);
    Busy { _sessions: sessions }
}

/// After the next start: what had committed is there, nothing else is, and jobs run.
fn assert_intact(cluster: &Cluster, fresh: &Baseline, commits: i64) {
    assert_eq!(committed(cluster), commits, "what had committed before the end of the server");
    cluster.assert_sound(fresh);
}

fn assert_ends(how: Stop) {
    let cluster = Cluster::start_with_extension(&[]);
    let fresh = cluster.baseline();
    let busy = keep_busy(&cluster);
    cluster.stop(how);
    drop(busy);
    cluster.start();
    assert_intact(&cluster, &fresh, 1);
}

#[case]
fn a_fast_shutdown_ends_every_job() {
    assert_ends(Stop::Fast);
}

#[case]
fn an_immediate_shutdown_ends_every_job() {
    assert_ends(Stop::Immediate);
}

/// New sessions are refused; those that are there go on, launch and read.
#[case]
fn a_smart_shutdown_lets_sessions_finish_with_their_jobs() {
    let cluster = Cluster::start_with_extension(&[]);
    let fresh = cluster.baseline();
    prepare(&cluster);
    let mut session = cluster.session("postgres");
    let unread = session.launch("insert into ran values (1); select generate_series(1, 100000)");
    let barrier = Barrier::close(cluster.session("postgres"));
    let running = session.launch(&format!("{}; insert into ran values (1)", crate::support::barrier::WAIT));
    cluster.signal_postmaster(Signal::SIGTERM);
    wait_until("new sessions are refused", || {
        cluster.client("postgres").try_connect().is_err_and(|error| error.sqlstate() == "57P03")
    });
    assert_eq!(session.rows(&format!("select count(*) from pg_background_result({unread}) as (n int)")), ["100000"]);
    assert_eq!(session.job("insert into ran values (1)", "tag text"), ["INSERT 0 1"]);
    barrier.open();
    session.run(&format!("select pg_background_result({running})"));
    assert!(cluster.is_running());
    drop(session);
    cluster.wait_stopped();
    cluster.start();
    assert_intact(&cluster, &fresh, 3);
}

#[case]
fn a_smart_shutdown_does_not_wait_for_jobs_without_a_session() {
    let cluster = Cluster::start_with_extension(&[]);
    let fresh = cluster.baseline();
    prepare(&cluster);
    let mut session = cluster.session("postgres");
    for text in [SLEEP_FOREVER, "select generate_series(1, 100000)"] {
        let pid = session.launch(&format!("insert into ran values (1); {text}"));
        session.run(&format!("select pg_background_detach({pid})"));
    }
    wait_until("the second job has committed", || session.value("select count(*) from ran") == "1");
    cluster.signal_postmaster(Signal::SIGTERM);
    drop(session);
    cluster.wait_stopped();
    cluster.start();
    assert_intact(&cluster, &fresh, 1);
}

#[case]
fn processes_end_when_the_postmaster_is_gone() {
    let cluster = Cluster::start_with_extension(&[]);
    let fresh = cluster.baseline();
    let busy = keep_busy(&cluster);
    cluster.signal_postmaster(Signal::SIGKILL);
    cluster.wait_stopped();
    drop(busy);
    cluster.start();
    assert_intact(&cluster, &fresh, 1);
}

#[case]
fn processes_end_when_the_postmaster_goes_while_a_worker_starts() {
    for stage in [JobStage::Registered, JobStage::Attached] {
        end_while_a_worker_starts(stage, Signal::SIGKILL);
    }
}

#[case]
fn a_shutdown_while_a_worker_starts_runs_nothing() {
    for how in [Stop::Fast, Stop::Immediate] {
        for stage in [JobStage::Registered, JobStage::Attached] {
            end_while_a_worker_starts(stage, if how == Stop::Fast { Signal::SIGINT } else { Signal::SIGQUIT });
        }
    }
}

/// The signal for the postmaster while a launch is at this stage; the job must not run.
#[track_caller]
fn end_while_a_worker_starts(stage: JobStage, signal: Signal) {
    let cluster = Cluster::start_with_extension(&[]);
    let fresh = cluster.baseline();
    prepare(&cluster);
    let mut scene = Scene::reach(&cluster, stage);
    cluster.signal_postmaster(signal);
    if let Some(worker) = scene.worker {
        wait_until("the end of the worker", || !is_alive(worker));
    }
    scene.resume();
    cluster.wait_stopped();
    drop(scene);
    cluster.start();
    assert_intact(&cluster, &fresh, 0);
}

/// A cancel can be caught by the job's text; what ends a process cannot.
#[case]
fn a_job_that_catches_its_cancel_does_not_stop_a_shutdown() {
    let cluster = Cluster::start_with_extension(&[]);
    let fresh = cluster.baseline();
    prepare(&cluster);
    let mut session = cluster.session("postgres");
    let stubborn = &format!(
        "do $$ begin loop begin perform {FOREVER}; \
         exception when query_canceled then raise notice 'still here'; end; end loop; end $$"
    );
    let pid = session.launch(stubborn);
    let mut watcher = cluster.session("postgres");
    watcher.wait_asleep(pid);
    session.send(&format!("select pg_background_result({pid})"));
    watcher.run(&format!("select pg_cancel_backend({pid})"));
    assert_eq!(session.next_notice().message(), "still here");
    cluster.stop(Stop::Fast);
    drop((session, watcher));
    cluster.start();
    assert_intact(&cluster, &fresh, 0);
}
