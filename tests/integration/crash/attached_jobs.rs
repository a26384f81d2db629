//! Processes die, or are told to stop, at every stage of a job.

use crate::support::barrier::{self, Barrier};
use crate::support::job_stage::{committed, prepare, settle, JobStage, Paused, Scene, STAGES};
use pg_background_mgr_tests::cluster::{is_alive, signal_process};
use pg_background_mgr_tests::env::env;
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Session, Signal, SLEEP_FOREVER};

/// Brings a job to each of `stages`, lets `happen` what happens, and looks whether all is well afterwards. `happen`
/// gives whether the job must have committed.
fn at_each_stage(stages: &[JobStage], happen: impl Fn(&Cluster, Scene) -> bool) {
    let cluster = Cluster::start_with_extension(&[]);
    prepare(&cluster);
    let before = cluster.baseline();
    for stage in stages {
        let scene = Scene::reach(&cluster, *stage);
        let commits = happen(&cluster, scene);
        assert_eq!(committed(&cluster), i64::from(commits), "commits of the job at stage {stage:?}");
        cluster.assert_sound(&before);
    }
}

fn wait_closed(session: &mut Session) {
    wait_until("the end of the session", || session.is_closed());
}

/// A job that has not been told to begin never runs; any other runs to its end.
#[case]
fn a_terminated_launcher_leaves_a_job_that_was_launched() {
    at_each_stage(&STAGES, |_, mut scene| {
        let pid = scene.launcher.pid();
        scene.signal("pg_terminate_backend", pid);
        if scene.stage == JobStage::Attached {
            scene.resume();
        }
        // At stage Registered the postmaster still stands still: the launcher waits for nobody.
        wait_closed(&mut scene.launcher);
        scene.resume();
        scene.open_barrier();
        scene.stage >= JobStage::Running
    });
}

/// Waits until the server has ended this session, with all others, and is there again.
pub fn wait_restarted(cluster: &Cluster, watcher: &mut Session) {
    wait_closed(watcher);
    cluster.wait_ready();
}

#[case]
fn a_killed_launcher_restarts_the_server() {
    at_each_stage(&STAGES, |cluster, mut scene| {
        signal_process(scene.launcher.pid(), Signal::SIGKILL);
        scene.resume();
        wait_restarted(cluster, &mut scene.watcher);
        scene.stage == JobStage::Ended
    });
}

#[case]
fn a_cancelled_launcher_launches_nothing_and_reads_again() {
    at_each_stage(&STAGES, |_, mut scene| {
        let pid = scene.launcher.pid();
        scene.signal("pg_cancel_backend", pid);
        if scene.stage == JobStage::Attached {
            scene.resume();
        }
        if scene.is_launcher_busy() {
            let error = scene.launcher.finish("what is cancelled").error.expect("an error");
            assert_eq!(
                error.brief(),
                ("57014".to_owned(), "canceling statement due to user request".to_owned()),
                "{:?}",
                scene.stage
            );
        }
        scene.resume();
        scene.open_barrier();
        let is_launched = scene.stage >= JobStage::Running;
        if is_launched {
            scene.assert_whole();
        }
        assert_eq!(scene.launcher.job("select 1", "n int"), ["1"], "the session launches again");
        is_launched
    });
}

/// The launch was complete as far as the server knows: the job runs.
#[case]
fn a_launcher_that_goes_leaves_its_job() {
    at_each_stage(&STAGES, |_, scene| {
        let Scene { stage, launcher, .. } = &scene;
        let (stage, pid) = (*stage, launcher.pid());
        let mut rest = scene.without_launcher();
        if stage == JobStage::Running || stage == JobStage::Ended {
            wait_until("the end of the launcher", || !is_alive(pid));
        }
        rest.resume();
        rest.open_barrier();
        wait_until("the end of the launcher", || !is_alive(pid));
        true
    });
}

#[case(since = 14)]
fn a_launcher_whose_client_has_gone_ends_while_it_waits() {
    let cluster = Cluster::start_with_extension(&[("client_connection_check_interval", "50ms")]);
    prepare(&cluster);
    let before = cluster.baseline();
    for stage in [JobStage::Awaited, JobStage::Sending] {
        let scene = Scene::reach(&cluster, stage);
        let pid = scene.launcher.pid();
        let mut rest = scene.without_launcher();
        wait_until("the end of the launcher", || !is_alive(pid));
        rest.open_barrier();
        assert_eq!(committed(&cluster), 1);
        cluster.assert_sound(&before);
    }
}

#[case]
fn a_terminated_worker_is_an_error_of_its_job() {
    at_each_stage(&STAGES[1..], |_, mut scene| {
        let pid = scene.worker();
        scene.signal("pg_terminate_backend", pid);
        wait_until("the end of the worker", || !is_alive(pid));
        if scene.stage == JobStage::Attached {
            scene.resume();
            scene.finish_launch();
            assert_eq!(scene.worker(), pid);
        }
        let whom = if env().version < 14 { "connection" } else { "background worker \"pg_background\"" };
        let message = format!("terminating {whom} due to administrator command");
        assert_eq!(scene.read_error(), ("57P01".to_owned(), message), "{:?}", scene.stage);
        assert_eq!(scene.launcher.job("select 1", "n int"), ["1"], "the session goes on");
        scene.stage == JobStage::Ended
    });
}

#[case]
fn a_cancelled_worker_is_an_error_of_its_job() {
    at_each_stage(&STAGES[1..], |_, mut scene| {
        let pid = scene.worker();
        scene.signal("pg_cancel_backend", pid);
        if scene.stage == JobStage::Attached {
            wait_until("the worker has noticed", || !is_alive(pid));
            scene.resume();
            scene.finish_launch();
        }
        if scene.stage == JobStage::Ended {
            // There is nothing to cancel any more.
            scene.assert_whole();
        } else {
            let expected = ("57014".to_owned(), "canceling statement due to user request".to_owned());
            assert_eq!(scene.read_error(), expected, "{:?}", scene.stage);
        }
        assert_eq!(scene.launcher.job("select 1", "n int"), ["1"], "the session goes on");
        scene.stage == JobStage::Ended
    });
}

#[case]
fn a_killed_worker_restarts_the_server() {
    at_each_stage(&STAGES[1..], |cluster, mut scene| {
        signal_process(scene.worker(), Signal::SIGKILL);
        scene.resume();
        wait_restarted(cluster, &mut scene.watcher);
        wait_closed(&mut scene.launcher);
        scene.stage == JobStage::Ended
    });
}

#[case]
fn a_terminated_job_that_launched_leaves_its_own_job() {
    let cluster = Cluster::start_with_extension(&[]);
    prepare(&cluster);
    let before = cluster.baseline();
    let mut barrier = Barrier::close(cluster.session("postgres"));
    let mut session = cluster.session("postgres");
    let mut watcher = cluster.session("postgres");
    let inner = format!("{}; insert into ran values (1)", barrier::WAIT);
    let outer = format!(
        "insert into ran values (2); select * from pg_background_result(pg_background_launch({})) as (tag text)",
        literal(&inner)
    );
    let outer_pid = session.launch(&outer);
    let inner_pid =
        format!("select pid from pg_stat_activity where backend_type = 'pg_background' and pid <> {outer_pid}");
    wait_until("the job's job", || !watcher.rows(&inner_pid).is_empty());
    let inner_pid: i32 = watcher.value(&inner_pid).parse().expect("a process id");
    barrier.wait_for(inner_pid);
    watcher.run(&format!("select pg_terminate_backend({outer_pid})"));
    assert_eq!(session.result_error(outer_pid).sqlstate(), "57P01");
    barrier.open();
    settle(&cluster);
    assert_eq!(watcher.rows("table ran"), ["1"]);
    cluster.assert_sound(&before);
}

/// FATAL inside the job: the process ends where it stands.
#[case]
fn a_worker_that_exits_by_itself_is_an_error_of_its_job() {
    let cluster = Cluster::start_with_extension(&[]);
    prepare(&cluster);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    let pid = session.launch("insert into ran values (1); select pg_terminate_backend(pg_backend_pid())");
    assert_eq!(session.result_error(pid).sqlstate(), "57P01");
    let pid = session.launch("insert into ran values (1); select pg_cancel_backend(pg_backend_pid())");
    assert_eq!(session.result_error(pid).sqlstate(), "57014");
    assert_eq!(committed(&cluster), 0);
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn a_session_that_ends_gives_up_all_its_jobs() {
    let cluster = Cluster::start_with_extension(&[]);
    prepare(&cluster);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    let barrier = Barrier::close(cluster.session("postgres"));
    for number in 0..12 {
        let wait = if number % 2 == 0 { barrier::WAIT } else { "select 1" };
        session.launch(&format!("{wait}; insert into ran values (1); select generate_series(1, 50000)"));
    }
    drop(session);
    barrier.open();
    assert_eq!(committed(&cluster), 12);
    cluster.assert_sound(&before);
}

#[case]
fn a_cancelled_launch_that_is_caught_launches_nothing() {
    let cluster = Cluster::start_with_extension(&[]);
    prepare(&cluster);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    let mut watcher = cluster.session("postgres");
    let paused = Paused::new(cluster.postmaster());
    let text = "do $$ declare job int; begin \
                begin perform pg_background_launch('insert into ran values (1)'); \
                exception when query_canceled then raise notice 'caught'; end; \
                job := pg_background_launch('insert into ran values (2)'); \
                perform * from pg_background_result(job) as (tag text); end $$";
    session.send(text);
    let waits =
        format!("select wait_event ilike 'bgworkerstartup' from pg_stat_activity where pid = {}", session.pid());
    wait_until("the launcher waits for the worker to start", || watcher.rows(&waits) == ["t"]);
    watcher.run(&format!("select pg_cancel_backend({})", session.pid()));
    assert_eq!(session.next_notice().message(), "caught");
    drop(paused);
    let reply = session.finish(text);
    assert!(reply.error.is_none(), "{:?}", reply.error);
    assert_eq!(watcher.rows("table ran"), ["2"]);
    drop(session);
    cluster.assert_sound(&before);
}

/// Every job that was launched runs, once, wherever the cancels come. (One that was cancelled may run too: a cancel can
/// find the statement after its launch.)
#[case]
fn cancels_at_random_lose_no_job_that_was_launched() {
    let cluster = Cluster::start_with_extension(&[]);
    prepare(&cluster);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    let mut killer = cluster.session("postgres");
    let cancels = format!(
        "do $$ begin for i in 1 .. 300 loop perform pg_sleep(random() * 0.01); \
         perform pg_cancel_backend({}); end loop; end $$",
        session.pid()
    );
    killer.send(&cancels);
    let (mut launched, mut cancelled) = (Vec::new(), 0);
    for number in 0..600 {
        let reply = session.ask(&format!("select pg_background_launch('insert into ran values ({number})')"));
        if let Some(error) = &reply.error {
            assert_eq!(error.sqlstate(), "57014", "{error}");
            cancelled += 1;
        } else {
            launched.push(number);
            let pid = reply.last_rows().expect("a row").text_rows().concat();
            // Gives the segment back; a cancel may come here too.
            session.ask(&format!("select pg_background_detach({pid})"));
        }
    }
    killer.finish(&cancels);
    assert!(cancelled > 0, "no cancel came in time");
    settle(&cluster);
    let ran = killer.rows("select a from ran order by a");
    let mut distinct = ran.clone();
    distinct.dedup();
    assert_eq!(distinct.len(), ran.len(), "no job runs twice");
    let lost: Vec<i32> = launched.into_iter().filter(|number| !ran.contains(&number.to_string())).collect();
    assert!(lost.is_empty(), "launched, but not run: {lost:?}");
    drop(session);
    cluster.assert_sound(&before);
}

/// Launches, reads, gives up and forgets, in turns.
const TURMOIL: &str = "do $$ declare job int; begin for i in 1 .. 1000 loop begin \
    job := pg_background_launch('select i, repeat(''x'', 200) from generate_series(1, ' || (random() * 5000)::int || \
        ') i'); \
    case i % 4 \
    when 0 then perform count(*) from pg_background_result(job) as (a int, b text); \
    when 1 then perform count(*) from pg_background_result(job) as (a text, b text); \
    when 2 then perform pg_background_detach(job); \
    else perform pg_background_result(pg_background_launch('select pg_sleep(0.01)')); end case; \
    exception when others then null; end; end loop; end $$";

#[case]
fn ends_at_random_leave_nothing() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mark = cluster.log_mark();
    let mut killer = cluster.session("postgres");
    let connect = || {
        let mut session = cluster.session("postgres");
        session.run("set work_mem = '64kB'");
        session.send(TURMOIL);
        session
    };
    let mut sessions: Vec<Session> = (0..4).map(|_| connect()).collect();
    for round in 0..150 {
        let function = if round % 3 == 0 { "pg_terminate_backend" } else { "pg_cancel_backend" };
        let kind = if round % 2 == 0 { "pg_background" } else { "client backend" };
        killer.run(&format!(
            "select {function}(pid) from pg_stat_activity where backend_type = '{kind}' and pid <> pg_backend_pid() \
             order by random() limit 1; select pg_sleep(random() * 0.01)"
        ));
        for session in &mut sessions {
            if session.is_closed() {
                *session = connect();
            }
        }
    }
    drop(sessions);
    killer.run(
        "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' \
         and pid <> pg_backend_pid()",
    );
    cluster.assert_sound(&before);
    let told: Vec<String> = cluster.log_since(mark).into_iter().map(|line| line.text).collect();
    for word in ["terminated by signal", "panicked", "PANIC"] {
        let lines: Vec<_> = told.iter().filter(|text| text.contains(word)).collect();
        assert!(lines.is_empty(), "{lines:?}");
    }
}

#[case]
fn the_extension_is_dropped_under_its_jobs() {
    let cluster = Cluster::start_with_extension(&[]);
    prepare(&cluster);
    let before = cluster.baseline();
    let barrier = Barrier::close(cluster.session("postgres"));
    let mut session = cluster.session("postgres");
    let running = session.launch(&format!("{}; insert into ran values (1)", barrier::WAIT));
    let ended = session.launch("insert into ran values (1); select generate_series(1, 100000)");
    cluster.session("postgres").run("drop extension pg_background_mgr");
    assert_eq!(session.error("select pg_background_launch('select 1')").sqlstate(), "42883");
    barrier.open();
    cluster.session("postgres").run("create extension pg_background_mgr");
    // The session has its jobs all the same.
    session.run(&format!("select pg_background_result({running})"));
    assert_eq!(session.rows(&format!("select count(*) from pg_background_result({ended}) as (n int)")), ["100000"]);
    assert_eq!(committed(&cluster), 2);
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn a_database_is_not_dropped_under_a_job() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mut admin = cluster.session("postgres");
    admin.run("create database other");
    let mut session = cluster.session("other");
    session.run("create extension pg_background_mgr; create table ran (a int)");
    let pid = session.launch(SLEEP_FOREVER);
    session.run(&format!("select pg_background_detach({pid})"));
    let launcher = session.pid();
    drop(session);
    wait_until("the end of the launcher", || !is_alive(launcher));
    admin.wait_asleep(pid);
    assert_eq!(admin.error("drop database other").sqlstate(), "55006");
    admin.run(&format!("select pg_terminate_backend({pid})"));
    wait_until("the end of the job", || !is_alive(pid));
    wait_until("nobody uses the database", || admin.ask("drop database other").error.is_none());
    cluster.assert_sound(&before);
}

#[case(since = 13)]
fn a_database_dropped_by_force_ends_its_jobs() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mut admin = cluster.session("postgres");
    admin.run("create database other");
    let mut session = cluster.session("other");
    session.run("create extension pg_background_mgr");
    for text in [SLEEP_FOREVER, "select generate_series(1, 100000)"] {
        session.launch(text);
    }
    admin.run("drop database other with (force)");
    wait_closed(&mut session);
    cluster.assert_sound(&before);
}
