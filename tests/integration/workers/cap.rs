//! Workers at once: how many there are, what waits in the queue, and from where none may be launched.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{
    array, counts, drain, load, set_server, times, wait_at_barrier, Batch, COUNTED, PEAK, WORKERS,
};
use crate::support::job_stage::{terminate, Paused};
use pg_background_mgr_tests::env::forced_parallel;
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, ServerError, Session, Stop};

/// A cluster whose cap is this; one more slot is the server's own, for logical replication.
fn cluster(cap: u32, settings: &[(&str, &str)]) -> Cluster {
    let processes = (cap + 2).to_string();
    let mut all = vec![("max_worker_processes", processes.as_str())];
    all.extend(settings);
    Cluster::start_with_extension(&all)
}

fn without_a_queue(texts: &[&str]) -> String {
    format!("pg_background_launch_num({}, p_monitor => false)", array(texts))
}

#[case]
fn without_a_queue_all_jobs_start_at_once() {
    let cluster = cluster(3, &[]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let call = without_a_queue(&times(barrier::WAIT, 3));
    Batch::call(&mut session, &call);
    wait_at_barrier(&mut session, 3);
    barrier.open();
    drain(&mut session);
    assert_eq!(counts(&mut session, "true"), ["succeeded 3"]);
}

#[track_caller]
fn assert_too_few(error: &ServerError, wanted: usize, free: usize) {
    let jobs = if wanted == 1 { "job" } else { "jobs" };
    assert_eq!(error.brief(), ("53000".to_owned(), format!("could not start {wanted} background {jobs} at once")));
    let workers = if free == 1 { "1 worker is".to_owned() } else { format!("{free} workers are") };
    assert_eq!(error.detail(), Some(format!("{workers} free.")));
}

#[case]
fn without_a_queue_and_with_too_few_workers_nothing_is_launched() {
    let cluster = cluster(2, &[]);
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    let insert = "insert into ran values (1)";
    assert_too_few(&session.error(&format!("select * from {}", without_a_queue(&times(insert, 3)))), 3, 2);
    let barrier = Barrier::close(cluster.session("postgres"));
    let held = Batch::call(&mut session, &without_a_queue(&[barrier::WAIT]));
    wait_at_barrier(&mut session, 1);
    assert_too_few(&session.error(&format!("select * from {}", without_a_queue(&times(insert, 2)))), 2, 1);
    let fits = Batch::call(&mut session, &without_a_queue(&[insert]));
    fits.succeed(&mut session);
    barrier.open();
    held.succeed(&mut session);
    assert_eq!(session.rows("table ran"), ["1"]);
    assert_eq!(counts(&mut session, "true"), ["succeeded 2"]);
}

#[case]
fn without_a_queue_jobs_that_wait_come_first() {
    let cluster = cluster(2, &[]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 5));
    wait_at_barrier(&mut session, 2);
    assert_too_few(&session.error(&format!("select * from {}", without_a_queue(&["select 1"]))), 1, 0);
    barrier.open();
    batch.succeed(&mut session);
    assert_eq!(counts(&mut session, "true"), ["succeeded 5"]);
}

#[case]
fn without_a_queue_all_of_the_cap_can_be_had_again_and_again() {
    let cluster = cluster(4, &[]);
    let mut session = cluster.session("postgres");
    for _ in 0..20 {
        Batch::call(&mut session, &without_a_queue(&times("select 1", 4))).succeed(&mut session);
    }
    assert_eq!(counts(&mut session, "true"), ["succeeded 80"]);
}

#[case]
fn the_workers_never_exceed_the_cap() {
    let cluster = cluster(5, &[]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    session.run(PEAK);
    let held = Batch::launch(&mut session, &times(barrier::WAIT, 20));
    wait_at_barrier(&mut session, 5);
    let counted: Vec<Batch> = (0..10).map(|_| Batch::launch(&mut session, &times(COUNTED, 20))).collect();
    assert_eq!(session.value(WORKERS), "5");
    assert_eq!(counts(&mut session, "true"), ["queued 215", "running 5"]);
    let live = "select status || ' ' || count(*) from pg_background_jobs group by status order by status";
    assert_eq!(session.rows(live), ["queued 215", "running 5"]);
    barrier.open();
    held.succeed(&mut session);
    counted.iter().for_each(|batch| batch.succeed(&mut session));
    let (ran, peak) = (session.number("select count(*) from peak"), session.number("select max(n) from peak"));
    assert!(ran == 200 && (2..=5).contains(&peak), "{ran} jobs, {peak} at once");
}

#[case]
fn the_cap_holds_for_all_databases_together() {
    let cluster = cluster(3, &[]);
    let mut admin = cluster.session("postgres");
    admin.run("create database other");
    cluster.session("other").run("create extension pg_background_mgr");
    let (mut here, mut there) = (cluster.session("postgres"), cluster.session("other"));
    let (barrier, other_barrier) =
        (Barrier::close(cluster.session("postgres")), Barrier::close(cluster.session("other")));
    let first = Batch::launch(&mut here, &times(barrier::WAIT, 3));
    wait_at_barrier(&mut here, 3);
    let second = Batch::launch(&mut there, &times(barrier::WAIT, 3));
    assert_eq!(admin.value(WORKERS), "3");
    assert_eq!(second.states(&mut there), times("queued", 3));
    barrier.open();
    first.succeed(&mut here);
    wait_at_barrier(&mut there, 3);
    assert_eq!(admin.value(WORKERS), "3");
    other_barrier.open();
    second.succeed(&mut there);
}

#[case]
fn the_cap_can_be_lowered_and_raised() {
    let cluster = cluster(6, &[]);
    let mut session = cluster.session("postgres");
    session.run(PEAK);
    load(&mut session);
    set_server(&cluster, &mut session, "pg_background_mgr.max_workers", "2");
    let barrier = Barrier::close(cluster.session("postgres"));
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 6));
    wait_at_barrier(&mut session, 2);
    let counted = Batch::launch(&mut session, &times(COUNTED, 50));
    assert_eq!(session.value(WORKERS), "2");
    barrier.open();
    batch.succeed(&mut session);
    counted.succeed(&mut session);
    assert!(session.number("select max(n) from peak") <= 2);
    // What the server can have is the limit, whatever the setting says.
    let barrier = Barrier::close(cluster.session("postgres"));
    set_server(&cluster, &mut session, "pg_background_mgr.max_workers", "100");
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 20));
    wait_at_barrier(&mut session, 6);
    assert_eq!(batch.states(&mut session).iter().filter(|state| *state == "queued").count(), 14);
    barrier.open();
    batch.succeed(&mut session);
    // And what is left to others.
    let barrier = Barrier::close(cluster.session("postgres"));
    set_server(&cluster, &mut session, "pg_background_mgr.reserved_workers", "5");
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 5));
    wait_at_barrier(&mut session, 3);
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn idle_workers_make_room_for_other_roles_and_databases() {
    // An idle worker would stay for an hour.
    let cluster = cluster(2, &[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let mut admin = cluster.session("postgres");
    admin.run("create database other");
    admin.run("create role weak login; select pg_background_grant('weak')");
    cluster.session("other").run("create extension pg_background_mgr");
    let mut weak = cluster.client("postgres").user("weak").connect();
    let mut other = cluster.session("other");
    for _ in 0..5 {
        for session in [&mut admin, &mut weak, &mut other] {
            Batch::launch(session, &["select 1", "select 2"]).succeed(session);
        }
    }
    assert!(admin.number(WORKERS) <= 2);
}

/// The cap allows for more than the server has.
#[case]
fn idle_workers_make_room_when_the_server_has_no_process() {
    for (processes, reserved, idle_timeout) in
        [("2", "1", "1h"), ("2", "0", "1h"), ("3", "0", "1h"), ("4", "0", "200ms")]
    {
        let cluster = Cluster::start_with_extension(&[
            ("max_worker_processes", processes), // one is the server's own
            ("pg_background_mgr.reserved_workers", reserved),
            ("pg_background_mgr.worker_idle_timeout", idle_timeout),
        ]);
        let mut session = cluster.session("postgres");
        session.run("create role weak login; select pg_background_grant('weak')");
        let mut weak = cluster.client("postgres").user("weak").connect();
        for is_followed in [false, true] {
            for launcher in [&mut weak, &mut session] {
                // Of the classic interface: the server does not start their processes again.
                let pids: Vec<i32> = (0..10).map(|_| launcher.launch("select 1")).collect();
                for pid in pids {
                    launcher.result(pid, "n int");
                }
            }
            let batch = Batch::launch(&mut weak, &["select 1", "select 2"]);
            if is_followed {
                batch.succeed(&mut weak);
            } else {
                for job in 0..2 {
                    batch.wait_state(&mut weak, job, "succeeded");
                }
            }
        }
    }
}

#[case]
fn idle_workers_go_after_their_time() {
    let cluster = cluster(3, &[("pg_background_mgr.worker_idle_timeout", "200ms")]);
    let mut session = cluster.session("postgres");
    Batch::launch(&mut session, &times("select 1", 5)).succeed(&mut session);
    wait_until("the end of all workers", || session.value(WORKERS) == "0");
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
}

#[track_caller]
fn assert_no_workers(session: &mut Session) {
    for monitor in ["true", "false"] {
        let error = session.error(&format!("select * from pg_background_launch_num('select 1', ',', {monitor})"));
        assert_eq!(error.sqlstate(), "53000", "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("max_worker_processes")), "{error}");
    }
    assert_eq!(session.value("select count(*) from log_background"), "0");
}

#[case]
fn a_cap_of_none_refuses_to_launch() {
    for settings in [
        &[("max_worker_processes", "2")][..],
        &[("max_worker_processes", "0")],
        &[("pg_background_mgr.max_workers", "0")],
        &[("pg_background_mgr.reserved_workers", "100")],
    ] {
        let cluster = Cluster::start_with_extension(settings);
        assert_no_workers(&mut cluster.session("postgres"));
    }
}

#[case]
fn a_worker_drains_many_jobs() {
    let cluster = cluster(1, &[]);
    let mut session = cluster.session("postgres");
    let batch = Batch::launch(&mut session, &times("select pg_backend_pid() as p", 50));
    batch.succeed(&mut session);
    let query = format!(
        "select count(distinct result), count(distinct pid) from log_background where uuid_parent = '{}'",
        batch.parent
    );
    assert_eq!(session.rows(&query), ["1|1"]);
    assert_eq!(batch.log(&mut session, 0, "(result::jsonb -> 0 ->> 'p')::int = pid"), "t");
}

#[case]
fn ten_thousand_jobs_of_one_call_run_once_each() {
    let cluster = Cluster::start_with_extension(&[("fsync", "off")]);
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    let texts =
        "(select array_agg('insert into ran values (' || i || ')' order by i) from generate_series(1, 10000) i)";
    let batch = Batch::call(&mut session, &format!("pg_background_launch_num({texts})"));
    assert_eq!(batch.children.len(), 10000);
    drain(&mut session);
    assert_eq!(counts(&mut session, "true"), ["succeeded 10000"]);
    assert_eq!(session.rows("select count(*), count(distinct a), min(a), max(a) from ran"), ["10000|10000|1|10000"]);
    // The rows are those of the call, in its order, each run once.
    let wrong =
        "select count(*) from (select row_number() over (order by uuid_child) as i, * from log_background) as l \
                 where query <> 'insert into ran values (' || i || ')' or attempts <> 1 or row_count <> 1";
    assert_eq!(session.value(wrong), "0");
}

#[case]
fn a_preloaded_library_changes_nothing() {
    let cluster = Cluster::start_with_extension(&[
        ("shared_preload_libraries", "pg_background_mgr"),
        ("pg_background_mgr.max_workers", "3"),
        ("pg_background_mgr.worker_idle_timeout", "1s"),
    ]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    assert_eq!(session.value("show pg_background_mgr.max_workers"), "3");
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 5));
    wait_at_barrier(&mut session, 3);
    assert_eq!(batch.states(&mut session), ["running", "running", "running", "queued", "queued"]);
    // The postmaster has set it, so it can be read again without a new start.
    cluster.configure(&[("pg_background_mgr.max_workers", "4")]);
    cluster.reload();
    wait_until("the new cap", || session.value("show pg_background_mgr.max_workers") == "4");
    barrier.open();
    batch.succeed(&mut session);
    assert_eq!(session.job("select 42", "n int"), ["42"]);
    let held = Barrier::close(cluster.session("postgres"));
    let lost = Batch::launch(&mut session, &times(barrier::WAIT, 5));
    wait_at_barrier(&mut session, 4);
    cluster.stop(Stop::Immediate);
    cluster.start();
    drop(held);
    let mut session = cluster.session("postgres");
    assert_eq!(lost.states(&mut session), times("lost", 5));
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
}

/// Jobs of the classic interface start at once or not at all; the workers left to others are theirs too.
#[case]
fn classic_jobs_are_not_held_up_by_a_full_queue() {
    let cluster =
        Cluster::start_with_extension(&[("pg_background_mgr.reserved_workers", "3"), ("max_worker_processes", "6")]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 10));
    wait_at_barrier(&mut session, 3);
    assert_eq!(session.job("select 7", "n int"), ["7"]);
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn a_launch_does_not_wait_for_classic_jobs_that_fill_the_cap() {
    let cluster = cluster(1, &[]);
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    // It counts when its process has begun.
    let mut barrier = Barrier::close(cluster.session("postgres"));
    let pid = other.launch(barrier::WAIT);
    barrier.wait_for(pid);
    let batch = Batch::launch(&mut session, &["select 1", "select 2"]);
    assert_eq!(batch.states(&mut session), times("queued", 2));
    terminate(&mut other, pid);
    batch.succeed(&mut session);
}

#[case]
fn a_job_launches_jobs(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let inner = "select * from pg_background_launch_num('insert into ran values (1), insert into ran values (2)')";
    Batch::launch(&mut session, &[inner, inner]).succeed(&mut session);
    drain(&mut session);
    assert_eq!(counts(&mut session, "true"), ["succeeded 6"]);
    assert_eq!(session.value("select count(*) || ' ' || sum(a) from ran"), "4 6");
}

#[case]
fn a_job_waits_for_its_jobs(db: &Db) {
    let mut session = db.session();
    let inner = "select status from pg_background_launch_num('select 1, select 2 / 0', p_exec_type => 'sync')";
    let middle = format!("select status from pg_background_launch_num({}, p_exec_type => 'sync')", array(&[inner]));
    let batch = Batch::launch(&mut session, &[&middle]);
    batch.succeed(&mut session);
    drain(&mut session);
    assert_eq!(counts(&mut session, "true"), ["failed 1", "succeeded 3"]);
    let followed = "select status from pg_background_monitor((select uuid_parent::text from \
                    pg_background_launch_num('select 1')), false)";
    Batch::launch(&mut session, &[followed]).succeed(&mut session);
}

#[case]
fn jobs_that_wait_for_jobs_are_not_nested_without_end(db: &Db) {
    let mut session = db.session();
    session.run(
        "create function spawn() returns void language plpgsql as $$ begin \
         perform pg_background_launch_num('select spawn()', p_exec_type => 'sync'); end $$",
    );
    session.run("select spawn()");
    drain(&mut session);
    let last = session.rows("select sqlstate, message from log_background where status = 'failed'");
    assert_eq!(last, ["54000|background jobs are nested too deeply"]);
    assert_eq!(session.number("select count(*) from log_background"), 16);
}

/// Every worker waits for a job for which there is no worker.
#[case]
fn a_job_that_waits_for_jobs_that_have_no_worker_fails() {
    for cap in [1, 2] {
        let cluster = cluster(cap, &[]);
        let mut session = cluster.session("postgres");
        let inner = "select status from pg_background_launch_num('select 1', p_exec_type => 'sync')";
        let batch = Batch::launch(&mut session, &times(inner, cap as usize));
        batch.wait(&mut session);
        drain(&mut session);
        let states = batch.states(&mut session);
        assert!(states.contains(&"failed".to_owned()), "{states:?}");
        let told = batch.column(&mut session, "coalesce(sqlstate, '')");
        assert!(told.iter().all(|state| ["53000", ""].contains(&state.as_str())), "{told:?}");
        let inner = "select status, count(*) from log_background where query = 'select 1' group by status";
        assert_eq!(session.rows(inner), [format!("succeeded|{cap}")], "what was launched runs");
    }
}

/// The workers are there for jobs that sessions have launched themselves, and those wait for the queue.
#[case]
fn a_classic_job_that_waits_for_jobs_that_have_no_worker_fails() {
    for cap in [1, 2] {
        let cluster = cluster(cap, &[]);
        let inner = "select status from pg_background_launch_num('select 1', p_exec_type => 'sync')";
        let text = format!("{}; {inner}", barrier::WAIT);
        // In new processes, then in workers that are there.
        for round in 1..3 {
            let mut session = cluster.session("postgres");
            let mut barrier = Barrier::close(cluster.session("postgres"));
            let jobs: Vec<i32> = (0..cap).map(|_| session.launch(&text)).collect();
            jobs.iter().for_each(|pid| barrier.wait_for(*pid));
            barrier.open();
            let told = jobs.into_iter().map(|pid| {
                let reply = session.ask(&format!("select * from pg_background_result({pid}) as (state text)"));
                reply.error.map_or("succeeded".to_owned(), |error| error.sqlstate())
            });
            let told: Vec<String> = told.collect();
            assert!(told.contains(&"53000".to_owned()), "{told:?}");
            assert!(told.iter().all(|state| ["53000", "succeeded"].contains(&state.as_str())), "{told:?}");
            drain(&mut session);
            let ran = "select status, count(*) from log_background where query = 'select 1' group by status";
            assert_eq!(session.rows(ran), [format!("succeeded|{}", round * cap)], "what was launched runs");
        }
    }
}

/// Waits until the only job of a batch follows another; its process.
fn wait_following(session: &mut Session, batch: &Batch) -> String {
    batch.wait_state(session, 0, "running");
    let pid = batch.log(session, 0, "pid");
    let waits = format!("select count(*) from pg_stat_activity where pid = {pid} and wait_event_type = 'Extension'");
    wait_until("the job follows", || session.value(&waits) == "1");
    pid
}

/// The process of the job gets no time to see that what it waited for has ended.
#[case]
fn a_job_that_is_about_to_go_on_keeps_nobody_from_waiting() {
    let cluster = cluster(2, &[]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let inner =
        |text: &str| format!("select status from pg_background_launch_num({}, p_exec_type => 'sync')", array(&[text]));
    let first = Batch::launch(&mut session, &[&inner(barrier::WAIT)]);
    wait_at_barrier(&mut session, 1);
    let pid = wait_following(&mut session, &first);
    let paused = Paused::at_rest(pid.parse().expect("a number"), &mut session);
    barrier.open();
    let second = Batch::launch(&mut session, &[&inner("select 1")]);
    wait_following(&mut session, &second);
    drop(paused);
    first.succeed(&mut session);
    second.succeed(&mut session);
}

/// A job that was ended while it waited does not wait any more.
#[case]
fn a_job_that_was_ended_while_it_followed_is_forgotten() {
    let cluster = cluster(2, &[]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    session.run("create table followed (u uuid)");
    let other = Batch::launch(&mut session, &[barrier::WAIT]);
    session.run(&format!("insert into followed values ('{}')", other.parent));
    wait_at_barrier(&mut session, 1);
    let follow = "select count(*) from pg_background_monitor((select u from followed), false)";
    let batch = Batch::launch(&mut session, &[follow]);
    let pid = wait_following(&mut session, &batch);
    session.run(&format!("select pg_terminate_backend({pid})"));
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    // There is one place for a job beside the one that waits.
    let inner = "select status from pg_background_launch_num('select 1', p_exec_type => 'sync')";
    let nested = Batch::launch(&mut session, &[inner]);
    wait_following(&mut session, &nested);
    barrier.open();
    nested.succeed(&mut session);
    other.succeed(&mut session);
}

#[case]
fn a_job_that_follows_jobs_that_have_no_worker_fails() {
    let cluster = cluster(1, &[]);
    let mut session = cluster.session("postgres");
    let other = Batch::launch(
        &mut session,
        &["do $$ declare p uuid; begin select uuid_parent into p from pg_background_launch_num('select 1'); \
           perform pg_background_monitor(p, false); end $$"],
    );
    assert_eq!(other.finish(&mut session), ["failed"]);
    assert_eq!(other.log(&mut session, 0, "sqlstate"), "53000");
    drain(&mut session);
    assert_eq!(session.value("select status from log_background where query = 'select 1'"), "succeeded");
}

#[case]
fn a_restricted_operation_does_not_launch(db: &Db) {
    let weak = db.role("weak", "login");
    let mut session = db.session();
    session.run(&format!(
        "create table ran (a int); grant insert on ran to public; \
         create table t as select i as a from generate_series(1, 10) i; alter table t owner to {weak}; \
         create function trap(int) returns int immutable language plpgsql as $$ begin \
         if current_setting('my.armed', true) = 'on' then \
         perform public.pg_background_launch_num('insert into public.ran values (1)'); \
         end if; return $1; end $$; alter function trap owner to {weak}; \
         create index trapped on t (trap(a)); set my.armed = 'on'"
    ));
    for command in ["create index on t (trap(a))", "reindex table t", "analyze t", "vacuum full t"] {
        let error = session.error(command);
        let refusal = "cannot launch a background job within a security-restricted operation";
        assert_eq!(error.brief(), ("42501".to_owned(), refusal.to_owned()), "{command}");
    }
    assert_eq!(session.value("select count(*) from ran"), "0");
    assert_eq!(session.value("select count(*) from log_background"), "0");
}

#[case]
fn a_parallel_worker_does_not_launch(db: &Db) {
    let mut session = db.session();
    let force = forced_parallel();
    session.run(&format!(
        "create function sneak() returns int parallel safe language plpgsql as \
         $$ begin perform pg_background_launch_num('select 1'); return 1; end $$; set {force} = on"
    ));
    assert_eq!(session.error("select sneak()").sqlstate(), "42501");
    session.run(&format!("reset {force}"));
    assert_eq!(session.value("select count(*) from log_background"), "0");
}

#[case]
fn a_walsender_does_not_launch(db: &Db) {
    let mut session = db.client().parameter("replication", "database").connect();
    let error = session.error("select * from pg_background_launch_num('select 1')");
    assert_eq!(error.sqlstate(), "42501");
}

#[case]
fn a_standby_shows_and_does_not_launch() {
    let primary = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1s")]);
    let mut session = primary.session("postgres");
    let batch = Batch::launch(&mut session, &["select 1", "select 1 / 0"]);
    batch.wait(&mut session);
    drop(session);
    let standby = Cluster::start_standby(&primary);
    let mut session = standby.session("postgres");
    for call in ["'select 1'", "array['select 1']", "'[\"select 1\"]'::jsonb", "'select 1', ',', false, 'sync'"] {
        let error = session.error(&format!("select * from pg_background_launch_num({call})"));
        assert_eq!(error.sqlstate(), "25006", "{error}");
    }
    assert_eq!(batch.states(&mut session), ["succeeded", "failed"]);
    let jobs = "select status from pg_background_jobs order by uuid_child = '{}'";
    let jobs = jobs.replace("{}", &batch.children[1]);
    assert_eq!(session.rows(&jobs), ["succeeded", "failed"]);
    assert_eq!(session.rows("select succeeded, failed, total from pg_background_batches"), ["1|1|2"]);
    let monitor = "select status from pg_background_monitor() order by uuid_child = '{}'";
    assert_eq!(session.rows(&monitor.replace("{}", &batch.children[1])), ["succeeded", "failed"]);
    let error = session.error(&format!("select * from pg_background_stop('{}')", batch.parent));
    assert_eq!(error.sqlstate(), "25006", "{error}");
    // What runs on the primary is not lost because the standby does not know it.
    let (mut origin, barrier) = (primary.session("postgres"), Barrier::close(primary.session("postgres")));
    let held = Batch::launch(&mut origin, &[barrier::WAIT, barrier::WAIT]);
    let arrived = format!("select count(*) from log_background where uuid_parent = '{}'", held.parent);
    wait_until("the rows on the standby", || session.value(&arrived) == "2");
    let lost = format!("{} and status = 'lost'", arrived);
    assert_eq!(session.value(&lost), "0");
    barrier.open();
    held.succeed(&mut origin);
    wait_until("the final states on the standby", || {
        let ended = format!("{} and status = 'succeeded'", arrived);
        session.value(&ended) == "2"
    });
    assert_eq!(session.job("select 'still here'", "t text"), ["still here"]);
}
