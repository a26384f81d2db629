//! One server for the jobs of all: fair turns, full queues, extensions and databases that are dropped.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{
    array, counts, drain, load, log, retry, set_server, states_after, stop, times, wait_at_barrier, Batch, COUNTED,
    FREEZE_LOG, OF_THE_GONE, PEAK, SLEEPING, WORKERS,
};
use pg_background_mgr_tests::server_log::LogMark;
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session, SLEEP_FOREVER};

const STEP: &str = "insert into ran (who) values (current_user)";

/// One role has filled the queue; another comes later and does not wait for its end.
#[case]
fn roles_take_turns() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "2")]);
    let mut admin = cluster.session("postgres");
    admin.run(
        "create table ran (a serial, who text); grant insert, select on ran to public; \
         grant usage on sequence ran_a_seq to public; \
         create role greedy login; create role modest login; select pg_background_grant('greedy'); \
         select pg_background_grant('modest')",
    );
    let barrier = Barrier::close(cluster.session("postgres"));
    let held = Batch::launch(&mut admin, &times(barrier::WAIT, 2));
    wait_at_barrier(&mut admin, 2);
    let mut greedy = cluster.client("postgres").user("greedy").connect();
    let many = Batch::launch(&mut greedy, &times(STEP, 400));
    let mut modest = cluster.client("postgres").user("modest").connect();
    let few = Batch::launch(&mut modest, &times(STEP, 10));
    barrier.open();
    held.succeed(&mut admin);
    few.succeed(&mut modest);
    many.succeed(&mut greedy);
    let last = admin
        .number("select count(*) from ran where who = 'greedy' and a < (select max(a) from ran where who = 'modest')");
    assert!(last < 200, "{last} of 400 jobs of the other came first");
}

#[case]
fn one_batch_after_the_other_does_not_starve_a_role() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "1")]);
    let mut admin = cluster.session("postgres");
    admin.run(
        "create table ran (a serial, who text); grant insert, select on ran to public; \
         grant usage on sequence ran_a_seq to public; \
         create role greedy login; create role modest login; select pg_background_grant('greedy'); \
         select pg_background_grant('modest')",
    );
    let mut greedy = cluster.client("postgres").user("greedy").connect();
    let mut modest = cluster.client("postgres").user("modest").connect();
    Batch::launch(&mut greedy, &times(STEP, 50));
    let batch = Batch::launch(&mut modest, &[STEP]);
    let ended = format!("select status from log_background where uuid_child = '{}'", batch.children[0]);
    // As long as the one waits, the other comes with more.
    wait_until("the turn of the modest role", || {
        Batch::launch(&mut greedy, &times(STEP, 5));
        modest.value(&ended) == "succeeded"
    });
    drain(&mut admin);
}

/// Roles that may launch, and a session for each.
fn many_roles(cluster: &Cluster, count: usize) -> Vec<Session> {
    let mut admin = cluster.session("postgres");
    admin.run(&format!("{PEAK}; grant insert on peak to public"));
    let role = |number: usize| {
        admin.run(&format!("create role tenant{number} login; select pg_background_grant('tenant{number}')"));
        cluster.client("postgres").user(&format!("tenant{number}")).connect()
    };
    (0..count).map(role).collect()
}

/// Checks that few processes have ended as ones that failed: those that came when another had just taken the last
/// place. When that was usual, it was a third of them all.
#[track_caller]
fn assert_few_failed_processes(cluster: &Cluster, mark: LogMark) {
    let ended: Vec<_> =
        cluster.log_since(mark).into_iter().filter(|line| line.text.contains("exited with exit code")).collect();
    assert!(ended.len() <= 3, "{} processes: {:?}", ended.len(), ended.first());
}

/// All but one process of the server may be workers, so that one at a time makes room for another role.
#[case(alone)]
fn many_roles_take_turns_with_few_failed_processes() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "10")]);
    let mut admin = cluster.session("postgres");
    let mut tenants = many_roles(&cluster, 14);
    let mark = cluster.log_mark();
    let job = format!("{COUNTED}; select pg_sleep(0.02)");
    let batches: Vec<Batch> = tenants.iter_mut().map(|tenant| Batch::launch(tenant, &times(&job, 10))).collect();
    batches.iter().for_each(|batch| batch.succeed(&mut admin));
    let (ran, peak) = (admin.number("select count(*) from peak"), admin.number("select max(n) from peak"));
    assert!(ran == 140 && peak <= 8, "{ran} jobs, {peak} at once");
    assert_few_failed_processes(&cluster, mark);
}

#[case]
fn hundreds_of_roles_have_one_job_each() {
    let cluster =
        Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "3"), ("max_worker_processes", "5")]);
    let mut admin = cluster.session("postgres");
    admin.run(&format!("{PEAK}; grant insert on peak to public"));
    admin.run(
        "do $$ begin for i in 1 .. 300 loop execute format('create role tenant%s login', i);          \
         perform pg_background_grant(format('tenant%s', i)); end loop; end $$",
    );
    let mark = cluster.log_mark();
    admin.run(&format!(
        "do $do$ begin for i in 1 .. 300 loop execute format('set session authorization tenant%s', i);          \
         perform pg_background_launch_num(array[$${COUNTED}$$]); reset session authorization; end loop; end $do$"
    ));
    drain(&mut admin);
    assert_eq!(counts(&mut admin, "true"), ["succeeded 300"]);
    let (ran, peak) = (admin.number("select count(*) from peak"), admin.number("select max(n) from peak"));
    assert!(ran == 300 && peak <= 3, "{ran} jobs, {peak} at once");
    assert_few_failed_processes(&cluster, mark);
}

/// There are no more processes than workers, so that a worker can have no other one started before it has gone.
#[case]
fn a_place_that_is_left_is_taken_without_a_launch() {
    let cluster = Cluster::start_with_extension(&[
        ("max_worker_processes", "3"),
        ("pg_background_mgr.reserved_workers", "0"),
        ("pg_background_mgr.max_workers", "2"),
    ]);
    let (mut admin, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let held = Batch::launch(&mut admin, &[barrier::WAIT]);
    wait_at_barrier(&mut admin, 1);
    let mut tenants = many_roles(&cluster, 3);
    let batches: Vec<Batch> = tenants.iter_mut().map(|tenant| Batch::launch(tenant, &times(COUNTED, 3))).collect();
    for batch in &batches {
        batch.succeed(&mut admin);
    }
    assert_eq!(admin.value("select max(n) from peak"), "1", "the other worker waits");
    barrier.open();
    held.succeed(&mut admin);
}

const FULL: &str = "53400";

/// Memory for about twenty batches of 50 kB.
fn small_queue() -> Cluster {
    Cluster::start_with_extension(&[
        ("pg_background_mgr.max_workers", "2"),
        ("pg_background_mgr.queue_memory_limit", "1MB"),
    ])
}

/// An array of texts of `size` bytes each.
fn long_jobs(count: usize, size: usize) -> String {
    format!(
        "(select array_agg('insert into ran values (' || i || ') --' || repeat('x', {size})) \
         from generate_series(1, {count}) i)"
    )
}

#[case]
fn a_full_queue_refuses_the_whole_call() {
    let cluster = small_queue();
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    session.run("create table ran (a int)");
    let held = Batch::launch(&mut session, &times(barrier::WAIT, 2));
    wait_at_barrier(&mut session, 2);
    let error = session.error(&format!("select * from pg_background_launch_num({})", long_jobs(100, 100_000)));
    assert_eq!(error.sqlstate(), FULL);
    assert!(error.hint().is_some_and(|hint| hint.contains("queue_memory_limit")), "{error}");
    let error = session.error(&format!("select * from pg_background_launch_num({})", long_jobs(1, 5_000_000)));
    assert_eq!(error.sqlstate(), FULL);
    assert_eq!(counts(&mut session, "true"), ["running 2"]);
    assert_eq!(session.value("select count(*) from pg_background_jobs"), "2");
    // What fits is taken.
    let small = Batch::launch(&mut session, &["insert into ran values (0)"]);
    barrier.open();
    held.succeed(&mut session);
    small.succeed(&mut session);
    assert_eq!(session.rows("table ran"), ["0"]);
}

#[case]
fn a_full_queue_is_free_again() {
    let cluster = small_queue();
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    let mut first = None;
    for _ in 0..5 {
        let barrier = Barrier::close(cluster.session("postgres"));
        let held = Batch::launch(&mut session, &times(barrier::WAIT, 2));
        wait_at_barrier(&mut session, 2);
        let mut count = 0;
        let call = format!("select * from pg_background_launch_num({})", long_jobs(5, 10_000));
        loop {
            match session.ask(&call).error {
                None => count += 1,
                Some(error) => {
                    assert_eq!(error.sqlstate(), FULL);
                    break;
                }
            }
            assert!(count < 1000, "the queue has no end");
        }
        assert!(count > 1, "a megabyte holds more than {count} batches of 50 kB");
        // Each time as much as the first time, give or take what is cut up.
        let before = *first.get_or_insert(count);
        assert!(count * 10 >= before * 7, "{before} batches at first, now {count}");
        barrier.open();
        held.succeed(&mut session);
        drain(&mut session);
        assert_eq!(session.number("select count(*) from ran"), count * 5);
        session.run("truncate ran");
    }
    // A larger limit holds at once.
    load(&mut session);
    set_server(&cluster, &mut session, "pg_background_mgr.queue_memory_limit", "20MB");
    let batch = Batch::call(&mut session, &format!("pg_background_launch_num({})", long_jobs(50, 100_000)));
    batch.succeed(&mut session);
}

#[case]
fn a_hundred_batches_of_twenty_sessions_run() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "8")]);
    let mut admin = cluster.session("postgres");
    admin.run("create table ran (a int); grant insert on ran to public");
    let mut sessions = Vec::new();
    for number in 0..20 {
        admin.run(&format!("create role r{number} login; select pg_background_grant('r{number}')"));
        sessions.push(cluster.client("postgres").user(&format!("r{number}")).connect());
    }
    for _ in 0..5 {
        let call = format!(
            "select uuid_child from pg_background_launch_num({})",
            array(&times("insert into ran values (1)", 10))
        );
        for session in &mut sessions {
            session.send(&call);
        }
        for session in &mut sessions {
            let reply = session.finish(&call);
            assert!(reply.error.is_none(), "{:?}", reply.error);
            assert_eq!(reply.last_rows().expect("rows").rows.len(), 10);
        }
    }
    drain(&mut admin);
    assert_eq!(counts(&mut admin, "true"), ["succeeded 1000"]);
    assert_eq!(admin.value("select count(*) from ran"), "1000");
    assert_eq!(admin.value("select count(*) from pg_background_batches where succeeded = 10"), "100");
}

#[case]
fn the_extension_is_dropped_with_jobs_in_every_state() {
    let cluster = Cluster::start_with_extension(&[
        ("pg_background_mgr.max_workers", "2"),
        ("pg_background_mgr.worker_idle_timeout", "2s"),
    ]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    session.run("create table ran (a int)");
    Batch::launch(&mut session, &["select 1", "select 1 / 0"]).wait(&mut session);
    let text = format!("{}; insert into ran values (1)", barrier::WAIT);
    Batch::launch(&mut session, &times(&text, 5));
    wait_at_barrier(&mut session, 2);
    let mut admin = cluster.session("postgres");
    admin.run("set statement_timeout = '30s'; drop extension pg_background_mgr; reset statement_timeout");
    barrier.open();
    // The two that ran do their work, which no log can be told; the others are forgotten with the log.
    wait_until("the end of all workers", || admin.value(WORKERS) == "0");
    assert_eq!(admin.value("select count(*) from ran"), "2");
    admin.run("create extension pg_background_mgr");
    assert_eq!(admin.value("select count(*) from log_background"), "0");
    assert_eq!(admin.value("select count(*) from pg_background_jobs where status in ('queued', 'running')"), "0");
    let batch = Batch::launch(&mut admin, &["insert into ran values (2)", "select 1 / 0"]);
    assert_eq!(batch.finish(&mut admin), ["succeeded", "failed"]);
    assert_eq!(admin.rows("select a, count(*) from ran group by a order by a"), ["1|2", "2|1"]);
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
}

#[case]
fn the_extension_is_dropped_and_made_again_at_once() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "6")]);
    let (mut session, mut admin) = (cluster.session("postgres"), cluster.session("postgres"));
    for _ in 0..20 {
        let batch = Batch::launch(&mut session, &times("select 1", 5));
        batch.succeed(&mut session);
        Batch::launch(&mut session, &times("select pg_sleep(0.001)", 20));
        admin
            .run("set statement_timeout = '30s'; drop extension pg_background_mgr; create extension pg_background_mgr");
    }
    let batch = Batch::launch(&mut session, &times("select 1", 5));
    batch.succeed(&mut session);
    wait_until("nothing of the others is left", || {
        session.value("select count(*) from pg_background_jobs where status in ('queued', 'running')") == "0"
    });
}

/// The extension is made again in one transaction: no worker sees that it was gone, and their rows are.
#[case]
fn jobs_outlive_an_extension_that_is_made_again() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "1")]);
    let (mut session, mut admin) = (cluster.session("postgres"), cluster.session("postgres"));
    session.run("create table ran (a int)");
    for held_work in ["insert into ran values (1)", "vacuum ran", "select 1 / 0"] {
        let barrier = Barrier::close(cluster.session("postgres"));
        let held = format!("{}; {held_work}", barrier::WAIT);
        let texts = [
            if held_work.starts_with("vacuum") { barrier::WAIT } else { &held },
            "insert into ran values (2)",
            "select 1 / 0",
            "vacuum ran",
        ];
        let batch = Batch::launch_with(&mut session, &texts, r#"{"name": "the name"}"#);
        wait_at_barrier(&mut session, 1);
        admin.run("begin; drop extension pg_background_mgr; create extension pg_background_mgr; commit");
        assert_eq!(batch.states(&mut session), ["running", "queued", "queued", "queued"], "{held_work}");
        barrier.open();
        let first = if held_work == "select 1 / 0" { "failed" } else { "succeeded" };
        let ends = [first, "succeeded", "failed", "succeeded"];
        assert_eq!(batch.finish(&mut session), ends, "{held_work}");
        wait_until("the rows of all", || batch.written(&mut session) == ends);
        let named = "select count(*) from background_mgr.log where batch_name = 'the name'";
        assert_eq!(session.value(named), "4");
    }
    assert_eq!(session.rows("select a, count(*) from ran group by a order by a"), ["1|1", "2|3"]);
}

/// A database `other` with the extension, in a cluster whose idle workers would stay for an hour.
fn with_other() -> (Cluster, Session) {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let mut admin = cluster.session("postgres");
    admin.run("create database other");
    cluster.session("other").run("create extension pg_background_mgr; create table ran (a int)");
    (cluster, admin)
}

#[track_caller]
fn wait_alone(admin: &mut Session) {
    let sessions = "select count(*) from pg_stat_activity where datname = 'other' and backend_type = 'client backend'";
    wait_until("the end of the sessions", || admin.value(sessions) == "0");
}

#[case]
fn a_database_with_idle_workers_is_dropped() {
    let (cluster, mut admin) = with_other();
    let mut session = cluster.session("other");
    Batch::launch(&mut session, &times("select pg_sleep(0.05)", 6)).succeed(&mut session);
    assert_ne!(admin.value(WORKERS), "0");
    drop(session);
    wait_alone(&mut admin);
    // It waits up to five seconds for others by itself.
    admin.run("drop database other");
    wait_until("the end of the workers", || admin.value(WORKERS) == "0");
    Batch::launch(&mut admin, &["select 1"]).succeed(&mut admin);
}

#[case]
fn a_database_with_running_jobs_is_not_dropped() {
    let (cluster, mut admin) = with_other();
    let barrier = Barrier::close(cluster.session("other"));
    let mut session = cluster.session("other");
    let batch = Batch::launch(&mut session, &[SLEEP_FOREVER]);
    batch.wait_state(&mut session, 0, "running");
    wait_until("the job sleeps", || admin.value(SLEEPING) == "1");
    drop((session, barrier));
    wait_alone(&mut admin);
    assert_eq!(admin.error("drop database other").sqlstate(), "55006");
    assert_eq!(admin.value(SLEEPING), "1");
    let mut session = cluster.session("other");
    session.run(&format!("select * from pg_background_stop('{}')", batch.parent));
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    drop(session);
    wait_alone(&mut admin);
    admin.run("drop database other");
}

#[case(since = 13)]
fn a_database_dropped_by_force_takes_its_jobs_along() {
    let (cluster, mut admin) = with_other();
    let mut session = cluster.session("other");
    let options = r#"{"max_workers": 2}"#;
    Batch::launch_with(&mut session, &times(SLEEP_FOREVER, 5), options);
    wait_until("two jobs sleep", || admin.value(SLEEPING) == "2");
    wait_until("the drop", || admin.ask("drop database other with (force)").error.is_none());
    wait_until("the end of the workers", || admin.value(WORKERS) == "0");
    let live = "select count(*) from pg_background_jobs where status in ('queued', 'running')";
    wait_until("nothing of it waits", || admin.value(live) == "0");
    wait_until("nothing of it is kept", || admin.value(OF_THE_GONE) == "0");
    Batch::launch(&mut admin, &["select 1"]).succeed(&mut admin);
}

/// Calls [`with_other`], and holds the one worker that there may be at a barrier.
fn with_other_held_up() -> (Cluster, Session, Barrier, Batch) {
    let (cluster, mut admin) = with_other();
    load(&mut admin);
    set_server(&cluster, &mut admin, "pg_background_mgr.max_workers", "1");
    let barrier = Barrier::close(cluster.session("postgres"));
    let held = Batch::launch(&mut admin, &[barrier::WAIT]);
    wait_at_barrier(&mut admin, 1);
    (cluster, admin, barrier, held)
}

#[case]
fn a_database_is_renamed_while_jobs_wait() {
    let (cluster, mut admin, barrier, held) = with_other_held_up();
    let mut session = cluster.session("other");
    let batch = Batch::launch(&mut session, &["insert into ran values (1)", "insert into ran values (2)"]);
    assert_eq!(batch.states(&mut session), ["queued", "queued"]);
    drop(session);
    wait_alone(&mut admin);
    admin.run("alter database other rename to renamed");
    let shown = "select distinct database from pg_background_jobs where status = 'queued'";
    assert_eq!(admin.rows(shown), ["renamed"]);
    barrier.open();
    held.succeed(&mut admin);
    let mut session = cluster.session("renamed");
    batch.succeed(&mut session);
    assert_eq!(session.rows("select a from ran order by a"), ["1", "2"]);
}

#[case]
fn a_database_with_idle_workers_is_a_template() {
    let (cluster, mut admin) = with_other();
    let mut session = cluster.session("other");
    let batch = Batch::launch(&mut session, &["insert into ran values (1)"]);
    batch.succeed(&mut session);
    drop(session);
    wait_alone(&mut admin);
    admin.run("create database copy template other");
    let mut copy = cluster.session("copy");
    assert_eq!(log(&mut copy, &batch.children[0], "status"), "succeeded");
    Batch::launch(&mut copy, &["insert into ran values (2)"]).succeed(&mut copy);
    assert_eq!(copy.rows("select a from ran order by a"), ["1", "2"]);
    assert_eq!(cluster.session("other").rows("table ran"), ["1"]);
}

#[case]
fn open_jobs_of_a_database_are_not_those_of_its_copy() {
    let (cluster, mut admin) = with_other();
    let mut session = cluster.session("other");
    let batch = Batch::launch_json(
        &mut session,
        concat!(
            r#"[{"query": "insert into ran values (1 / (select count(*) from ran))", "#,
            r#""max_attempts": 2, "retry_delay": 3600},
            {"query": "select 1 / 0", "max_attempts": 2, "retry_delay": 3600}]"#
        ),
    );
    wait_until("the first attempts' end", || batch.column(&mut session, "status || attempts") == ["queued1"; 2]);
    drop(session);
    wait_alone(&mut admin);
    admin.run("create database copy template other");
    let mut copy = cluster.session("copy");
    let lost = "lost|this database was copied from that of the job before the job ended";
    let shown = "concat_ws('|', status, message)";
    assert_eq!(batch.column(&mut copy, shown), [lost; 2]);
    assert_eq!(copy.rows("select lost, total from pg_background_batches"), ["2|2"]);
    // One of them at a time.
    let again = format!("select pg_background_retry('{}')", batch.parent);
    assert_eq!(copy.error(&again).sqlstate(), "55000");
    let mut session = cluster.session("other");
    assert_eq!(batch.states(&mut session), ["queued"; 2]);
    assert_eq!(states_after(&stop(&mut session, &batch.parent, None)), ["stopped"; 2]);
    wait_until("the rows of the jobs", || batch.written(&mut session) == ["stopped"; 2]);
    assert_eq!(batch.column(&mut copy, shown), [lost; 2]);
    copy.run("insert into ran values (0)");
    assert_eq!(retry(&mut copy, &batch.children[0]), batch.children[..1]);
    assert_eq!(batch.finish(&mut copy), ["succeeded", "lost"]);
    assert_eq!(copy.rows("table ran"), ["0", "1"]);
    assert_eq!(batch.states(&mut session), ["stopped"; 2]);
    // What it was copied with goes with what is old.
    assert_eq!(copy.value("select pg_background_prune('0')"), "2");
}

#[case]
fn a_database_that_is_dropped_while_its_jobs_wait_harms_nobody() {
    let (cluster, mut admin, barrier, held) = with_other_held_up();
    let mut session = cluster.session("other");
    let batch = Batch::launch(&mut session, &times("insert into ran values (1)", 3));
    let after = Batch::launch(&mut admin, &["select 1", "select 2"]);
    drop(session);
    wait_alone(&mut admin);
    let mark = cluster.log_mark();
    admin.run("drop database other");
    barrier.open();
    held.succeed(&mut admin);
    after.succeed(&mut admin);
    wait_until("nothing of it is kept", || kept(&mut admin, &batch).is_empty());
    Batch::launch(&mut admin, &["select 1"]).succeed(&mut admin);
    let refused = cluster.log_since(mark).into_iter().filter(|line| line.kind == "FATAL").count();
    assert_eq!(refused, 1);
}

/// The states of a batch's jobs as the server knows them without any log.
fn kept(admin: &mut Session, batch: &Batch) -> Vec<String> {
    admin.rows(&format!("select status from background_mgr.live() where uuid_parent = '{}'", batch.parent))
}

/// A job of database postgres ends while its log is locked; then the one place for workers is another's. Gives the
/// job, and who has the lock.
fn end_unwritten(cluster: &Cluster, admin: &mut Session, elsewhere: &mut Session) -> (Batch, Session) {
    let mut holder = cluster.session("postgres");
    holder.run(FREEZE_LOG);
    let batch = Batch::launch(admin, &["select 1"]);
    wait_until("its end", || batch.states(admin) == ["succeeded"]);
    Batch::launch(elsewhere, &["select 2"]).succeed(elsewhere);
    (batch, holder)
}

#[case]
fn rows_of_a_database_without_a_worker_are_written() {
    let (cluster, mut admin, barrier, held) = with_other_held_up();
    barrier.open();
    held.succeed(&mut admin);
    let (batch, mut holder) = end_unwritten(&cluster, &mut admin, &mut cluster.session("other"));
    holder.run("rollback");
    wait_until("its row is final", || batch.written(&mut admin) == ["succeeded"]);
}

#[case]
fn rows_of_a_database_that_refuses_workers_hold_up_no_others() {
    let (cluster, mut admin, barrier, held) = with_other_held_up();
    admin.run("create database third");
    let mut third = cluster.session("third");
    third.run("create extension pg_background_mgr");
    let refused = Batch::launch(&mut cluster.session("other"), &["select 1", "select 2"]);
    wait_alone(&mut admin);
    admin.run("alter database other allow_connections false");
    barrier.open();
    held.succeed(&mut admin);
    wait_until("its jobs have failed", || kept(&mut admin, &refused) == ["failed", "failed"]);
    let (batch, mut holder) = end_unwritten(&cluster, &mut admin, &mut third);
    holder.run("rollback");
    wait_until("the row of the other is final", || batch.written(&mut admin) == ["succeeded"]);
    admin.run("alter database other allow_connections true");
    // Before 16 the postmaster may sleep for a minute before it starts a worker again, unless somebody connects.
    wait_until("its rows are final, too", || refused.written(&mut cluster.session("other")) == ["failed", "failed"]);
    let mut other = cluster.session("other");
    let message = refused.log(&mut other, 0, "message");
    assert_eq!(message, r#"database "other" is not currently accepting connections"#);
}

#[case]
fn the_log_is_no_obstacle_to_a_drop_of_its_extension(db: &Db) {
    let mut session = db.session();
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    let user = db.role("user", "login");
    session.run("drop extension pg_background_mgr");
    let left = "select count(*) from pg_class where relname like '%background%'";
    assert_eq!(session.value(left), "0");
    session.run(&format!("drop owned by {user}; drop role {user}; create extension pg_background_mgr"));
}
