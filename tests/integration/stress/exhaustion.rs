//! Jobs when there is not enough of something: processes, segments, memory.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{
    array, counts, drain, log, states_after, stop, times, wait_at_barrier, wait_gone, Batch, LOCK_LOG,
};
use crate::support::job_stage::{settle, terminate};
use pg_background_mgr_tests::{case, wait_until, Cluster, ServerError, Session, FOREVER};
use std::collections::HashMap;

#[track_caller]
fn assert_no_process(error: &ServerError) {
    assert_eq!(error.brief(), ("53000".to_owned(), "could not register background process".to_owned()));
    assert_eq!(error.hint().as_deref(), Some("You may need to increase max_worker_processes."));
}

#[case(slow)]
fn a_launch_without_a_free_process_fails_and_leaves_nothing() {
    // One is the server's own, for logical replication.
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "3")]);
    let before = cluster.baseline();
    settle(&cluster);
    let mut barrier = Barrier::close(cluster.session("postgres"));
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    session.run("create table ran (a int)");
    let pids = [session.launch(barrier::WAIT), session.launch(barrier::WAIT)];
    pids.iter().for_each(|pid| barrier.wait_for(*pid));
    let segments = cluster.segments().len();
    for _ in 0..50 {
        assert_no_process(&session.error("select pg_background_launch('insert into ran values (1)')"));
        assert_no_process(&other.error("select background_launch('insert into ran values (1)')"));
    }
    assert_eq!(cluster.segments().len(), segments);
    // The two that run are as they were.
    barrier.open();
    for pid in pids {
        assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(\"\")"]);
    }
    settle(&cluster);
    assert_eq!(other.job("insert into ran values (2)", "tag text"), ["INSERT 0 1"]);
    assert_eq!(session.rows("table ran"), ["2"]);
    drop((session, other));
    settle(&cluster);
    cluster.assert_sound(&before);
}

#[case(slow)]
fn a_server_without_background_processes_refuses_each_launch() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "0")]);
    let mut session = cluster.session("postgres");
    let before = cluster.segments().len();
    for _ in 0..3 {
        assert_no_process(&session.error("select pg_background_launch('select 1')"));
    }
    assert_eq!(cluster.segments().len(), before);
}

/// Launches a job whose result is too large for the session's own memory, as soon as a process is free.
fn try_launch(session: &mut Session, number: i32) -> Result<i32, ServerError> {
    let call = format!("select pg_background_launch('select {number}, repeat(''x'', 70000)', 100000)");
    let mut outcome = None;
    wait_until("a free process", || {
        let reply = session.ask(&call);
        outcome = Some(match reply.error {
            Some(error) if error.message() == "could not register background process" => return false,
            Some(error) => Err(error),
            None => Ok(reply.last_rows().expect("a row").text_rows().concat().parse().expect("a process id")),
        });
        true
    });
    outcome.expect("an outcome")
}

/// Reads the number of such a job.
fn number_of(session: &mut Session, pid: i32) -> String {
    session.value(&format!("select a from pg_background_result({pid}) as (a int, b text)"))
}

/// A cluster with about a hundred segments.
fn cluster_with_few_segments(settings: &[(&str, &str)]) -> Cluster {
    let few = [
        ("max_connections", "6"),
        ("superuser_reserved_connections", "0"),
        ("max_worker_processes", "6"),
        ("max_wal_senders", "0"),
        ("autovacuum_max_workers", "1"),
        ("pg_background_mgr.max_unread_results", "1000"),
    ];
    Cluster::start_with_extension(&[&few, settings].concat())
}

/// Launches jobs until there is no segment for another; they, and how it was refused.
fn take_all_segments(session: &mut Session) -> (Vec<i32>, ServerError) {
    let mut pids = Vec::new();
    let refusal = loop {
        match try_launch(session, 7) {
            Ok(pid) => pids.push(pid),
            Err(error) => break error,
        }
        assert!(pids.len() < 2000, "the server has no end of segments");
    };
    assert!(pids.len() > 50, "{} segments", pids.len());
    (pids, refusal)
}

#[case(slow)]
fn a_launch_without_a_free_segment_fails_until_a_result_is_given_up() {
    let cluster = cluster_with_few_segments(&[]);
    let before = cluster.baseline();
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    let (pids, refusal) = take_all_segments(&mut session);
    let expected = ("53000".to_owned(), "too many dynamic shared memory segments".to_owned());
    assert_eq!(refusal.brief(), expected);
    assert_eq!(refusal.hint().as_deref(), Some("Read or detach the results of jobs that have ended."));
    // The same for everybody, and again.
    assert_eq!(try_launch(&mut other, 7).expect_err("no segment").brief(), expected);
    assert_eq!(try_launch(&mut session, 7).expect_err("no segment").brief(), expected);
    // Each result that is given up or read makes room for one.
    session.run(&format!("select pg_background_detach({})", pids[0]));
    let next = try_launch(&mut other, 8).expect("a free segment");
    assert_eq!(try_launch(&mut session, 7).expect_err("no segment").brief(), expected);
    assert_eq!(number_of(&mut session, pids[1]), "7");
    let last = try_launch(&mut session, 9).expect("a free segment");
    // Nothing of what had to wait has suffered.
    for pid in &pids[2..] {
        assert_eq!(number_of(&mut session, *pid), "7");
    }
    assert_eq!(number_of(&mut other, next), "8");
    assert_eq!(number_of(&mut session, last), "9");
    drop((session, other));
    settle(&cluster);
    cluster.assert_sound(&before);
}

/// The queue's memory cannot grow, and no row can be written: what a job gave is lost, and nothing else.
#[case(slow)]
fn jobs_end_without_a_free_segment_for_what_came_of_them() {
    let cluster = cluster_with_few_segments(&[("pg_background_mgr.log_result_limit", "1MB")]);
    let (mut session, mut holder) = (cluster.session("postgres"), cluster.session("postgres"));
    let (mut locker, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    session.run("create table ran (a int)");
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    let before = cluster.baseline();
    let text = "insert into ran values (1) returning repeat('x', 250000)";
    let texts = [barrier::WAIT, text, text, text, text, text, text, "select 1 / 0"];
    let options = r#"{"mode": "sequential"}"#;
    let batch = Batch::launch_with(&mut session, &texts, options);
    wait_at_barrier(&mut session, 1);
    let (pids, _) = take_all_segments(&mut holder);
    locker.run(LOCK_LOG);
    let mark = cluster.log_mark();
    barrier.open();
    let seen = format!("select status from pg_background_monitor('{}', false, '0')", batch.parent);
    let ends = ["succeeded"; 7].into_iter().chain(["failed"]).collect::<Vec<_>>();
    wait_until("the end of the jobs", || session.rows(&seen) == ends);
    assert_eq!(session.value("select count(*) from ran"), "6");
    // Nobody is stuck in it.
    assert_eq!(states_after(&stop(&mut session, &batch.parent, None)), ends);
    locker.run("rollback");
    wait_until("the final rows", || batch.written(&mut session) == ends);
    let lost = batch.column(&mut session, "result is null")[1..7].iter().filter(|lost| *lost == "t").count();
    assert!((1..6).contains(&lost), "{lost} of 6 results are lost");
    let ended: Vec<_> = cluster.log_since(mark).into_iter().filter(|line| line.text.contains("exited")).collect();
    assert!(ended.is_empty(), "no worker has died of it: {ended:?}");
    for pid in pids {
        assert_eq!(number_of(&mut holder, pid), "7");
    }
    drop(holder);
    Batch::launch(&mut session, &["select 2"]).succeed(&mut session);
    drop((session, locker));
    settle(&cluster);
    cluster.assert_sound(&before);
}

/// A cluster with one process for jobs; another of `max_worker_processes` is the server's own.
fn cluster_with_one_process(idle_timeout: &str) -> Cluster {
    Cluster::start_with_extension(&[
        ("max_worker_processes", "2"),
        ("pg_background_mgr.worker_idle_timeout", idle_timeout),
        ("pg_background_mgr.reserved_workers", "0"),
    ])
}

/// The process that has run this drops its table before it ends, or does anything else.
fn with_a_table() -> String {
    format!("begin; create temp table held (a int); commit; {}", barrier::WAIT)
}

/// Keeps that process from doing so.
#[track_caller]
fn hold_table(other: &mut Session) {
    let shown = "select oid::regclass from pg_class where relname = 'held'";
    wait_until("the table of the job", || !other.rows(shown).is_empty());
    let held = other.value(shown);
    other.run(&format!("begin; lock table {held} in access share mode"));
}

/// A launch waits until `other` lets go.
#[track_caller]
fn assert_waits(session: &mut Session, other: &mut Session) {
    session.send("select pg_background_launch('select 42')");
    let is_waiting = format!(
        "select pg_stat_clear_snapshot(), count(*) from pg_stat_activity where state = 'active' \
         and clock_timestamp() - query_start > '200ms' and pid = {}",
        session.pid()
    );
    wait_until("a launch that waits", || other.rows(&is_waiting) == ["|1"]);
    other.run("commit");
    let reply = session.finish("the launch");
    assert!(reply.error.is_none(), "{:?}", reply.error);
    let pid = reply.last_rows().expect("a row").text_rows()[0].parse().expect("a process id");
    assert_eq!(session.result(pid, "n int"), ["42"]);
}

/// One process is enough for job after job, however long it takes to end.
#[case(slow)]
fn a_launch_waits_for_the_process_of_the_job_before() {
    let cluster = cluster_with_one_process("0");
    let before = cluster.baseline();
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    let mut barrier = Barrier::close(cluster.session("postgres"));
    let pid = session.launch(&with_a_table());
    barrier.wait_for(pid);
    hold_table(&mut other);
    barrier.open();
    session.result(pid, "nothing text");
    assert_waits(&mut session, &mut other);
    drop((session, other));
    settle(&cluster);
    cluster.assert_sound(&before);
}

#[case(slow)]
fn a_launch_waits_for_a_worker_that_will_have_nothing_to_do() {
    let cluster = cluster_with_one_process("1h");
    let mut session = cluster.session("postgres");
    session.run("create role weak login; select pg_background_grant('weak')");
    for is_queued in [false, true] {
        let mut other = cluster.session("postgres");
        let mut barrier = Barrier::close(cluster.session("postgres"));
        if is_queued {
            let batch = Batch::launch(&mut session, &[&with_a_table()]);
            batch.wait_state(&mut session, 0, "running");
            hold_table(&mut other);
            barrier.open();
            batch.succeed(&mut session);
        } else {
            let pid = session.launch(&with_a_table());
            barrier.wait_for(pid);
            hold_table(&mut other);
            barrier.open();
            session.result(pid, "nothing text");
        }
        // No session of another role can have the worker: it has to go.
        assert_waits(&mut cluster.client("postgres").user("weak").connect(), &mut other);
    }
}

#[case(slow)]
fn a_session_uses_the_segment_of_a_worker_that_is_gone_again() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "0")]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    session.run("create table ran (a text)");
    assert_eq!(session.job("insert into ran values ('first')", "tag text"), ["INSERT 0 1"]);
    settle(&cluster);
    let segments = cluster.segments();
    // Whatever the one before it was: many rows, an error, no rows, a worker that was ended.
    let rows = "select i, repeat('x', 100) from generate_series(1, 5000) i";
    assert_eq!(
        session.job(&format!("select count(*), sum(length(b)) from ({rows}) as rows (a, b)"), "a int8, b int8").len(),
        1
    );
    settle(&cluster);
    let pid = session.launch(rows);
    assert_eq!(session.value(&format!("select count(*) from pg_background_result({pid}) as (a int, b text)")), "5000");
    settle(&cluster);
    let pid = session.launch("select 1 / 0");
    assert_eq!(session.error(&format!("select pg_background_result({pid})")).sqlstate(), "22012");
    settle(&cluster);
    assert_eq!(session.job("insert into ran values ('second')", "tag text"), ["INSERT 0 1"]);
    settle(&cluster);
    for _ in 0..10 {
        assert_eq!(session.job("select 42", "n int"), ["42"]);
        settle(&cluster);
    }
    // One for the job, one for the process that ends, one for the process that is started ahead.
    assert!(cluster.segments().len() <= segments.len() + 2, "{:?}, then {:?}", segments, cluster.segments());
    let pid = session.launch(&format!("select pg_terminate_backend(pg_backend_pid()), {FOREVER}"));
    assert_eq!(session.error(&format!("select pg_background_result({pid})")).sqlstate(), "57P01");
    settle(&cluster);
    // One that is too small for the next job is not kept for it.
    let text = "y".repeat(100_000);
    assert_eq!(session.job(&format!("insert into ran values ('{text}')"), "tag text"), ["INSERT 0 1"]);
    settle(&cluster);
    assert_eq!(session.rows("select length(a) from ran order by 1"), ["5", "6", "100000"]);
    assert!(cluster.segments().len() <= segments.len() + 3, "{:?}", cluster.segments());
    // When the workers end later than the next jobs come, new ones are made: as many as a session keeps, and no more.
    for _ in 0..40 {
        assert_eq!(session.job("select 42", "n int"), ["42"]);
    }
    settle(&cluster);
    assert!(cluster.segments().len() <= segments.len() + 10, "{:?}", cluster.segments());
    drop(session);
    settle(&cluster);
    cluster.assert_sound(&before);
}

#[case(slow)]
fn five_hundred_launches_in_a_transaction_survive_its_abort() {
    let cluster = Cluster::start_with_extension(&[("max_connections", "300"), ("max_worker_processes", "8")]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    session.run(
        "create table ran (a int); create table pids (a int, pid int); \
         create function launch_patiently(sql text) returns int language plpgsql as $$ begin \
         loop begin return pg_background_launch(sql); \
         exception when insufficient_resources then perform pg_sleep(0.002); end; end loop; end $$",
    );
    session.run("begin");
    let pids = session.rows(
        "select launch_patiently(format('insert into ran values (%s) returning a', i)) from generate_series(1, 500) i",
    );
    assert_eq!(pids.len(), 500);
    session.run("rollback");
    settle(&cluster);
    assert_eq!(session.value("select count(*) || ' ' || count(distinct a) from ran"), "500 500");
    // The results outlive the transaction that launched them.
    for number in [500, 1, 250, 77] {
        let pid: i32 = pids[number - 1].parse().expect("a process id");
        assert_eq!(session.result(pid, "a int"), [number.to_string()]);
    }
    let pid: i32 = pids[2].parse().expect("a process id");
    session.run(&format!("select pg_background_detach({pid})"));
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    // Those that are still unread are in the session's memory.
    assert!(cluster.segments().len() < 40, "{:?}", cluster.segments());
    drop(session);
    cluster.assert_sound(&before);
}

/// Memory and files that a process holds, as the system sees it.
#[derive(Debug, Clone, Copy)]
struct Holdings {
    /// Private memory in kB.
    memory: u64,
    mappings: usize,
    files: usize,
}

impl Holdings {
    fn of(pid: i32) -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).expect("a live process");
        let status = read("status");
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok())
            .expect("the resident set");
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a live process").count();
        Holdings { memory, mappings: read("maps").lines().count(), files }
    }

    /// Asserts that nothing has grown by more than what an allocator may keep in reserve.
    #[track_caller]
    fn assert_flat(before: Self, after: Self) {
        let is_flat = after.memory <= before.memory + 512
            && after.mappings <= before.mappings + 4
            && after.files <= before.files + 2;
        assert!(is_flat, "before: {before:?}, after: {after:?}");
    }
}

#[case(slow, oldest_and_newest)]
fn ten_thousand_jobs_in_a_session_do_not_fill_its_memory() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    let thousand = "do $$ declare n int; begin for i in 1 .. 1000 loop \
                    select a into n from \
                    pg_background_result(pg_background_launch('select ' || i || ', repeat(''x'', 100)')) \
                    as (a int, b text); \
                    if n <> i then raise 'got % for %', n, i; end if; end loop; end $$";
    session.run(thousand);
    // One, mostly; another when that is not back from its job in time.
    let workers = || cluster.workers().into_iter().map(|pid| (pid, Holdings::of(pid))).collect::<HashMap<_, _>>();
    let (early, early_workers) = (Holdings::of(session.pid()), workers());
    assert!(!early_workers.is_empty());
    let segments = cluster.segments().len();
    for _ in 0..9 {
        session.run(thousand);
    }
    Holdings::assert_flat(early, Holdings::of(session.pid()));
    let late_workers = workers();
    let stayed: Vec<_> = early_workers.keys().filter(|pid| late_workers.contains_key(pid)).collect();
    assert!(!stayed.is_empty(), "no worker has stayed");
    stayed.into_iter().for_each(|pid| Holdings::assert_flat(early_workers[pid], late_workers[pid]));
    assert!(cluster.segments().len() <= segments + late_workers.len(), "each launch makes a segment");
    drop(session);
    cluster.assert_sound(&before);
}

/// 300 MB through 4 MB of `work_mem`, read while they come and when all are there.
#[case(slow, oldest_and_newest)]
fn the_memory_of_a_result_does_not_grow_with_it() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let before = cluster.baseline();
    let (mut session, mut watcher) = (cluster.session("postgres"), cluster.session("postgres"));
    let launch = |session: &mut Session, rows: u32| {
        session.launch(&format!("select i, repeat(md5(i::text), 32) from generate_series(1, {rows}) i"))
    };
    let read = |session: &mut Session, pid: i32, rows: u32| {
        let query = format!("select count(*), sum(length(b)) from pg_background_result({pid}) as (a int, b text)");
        assert_eq!(session.rows(&query), [format!("{rows}|{}", u64::from(rows) * 1024)]);
    };
    let pid = launch(&mut session, 20_000);
    read(&mut session, pid, 20_000);
    let early = (Holdings::of(session.pid()), Holdings::of(pid));
    for is_awaited in [true, false] {
        let pid = launch(&mut session, 300_000);
        if is_awaited {
            let ended = format!("select wait_event from pg_stat_activity where pid = {pid} and state = 'idle'");
            wait_until("the end of the job", || !watcher.rows(&ended).is_empty());
        }
        read(&mut session, pid, 300_000);
        for (pid, early) in [(session.pid(), early.0), (pid, early.1)] {
            let late = Holdings::of(pid);
            assert!(late.memory < early.memory + 8192, "{is_awaited}: {early:?}, then {late:?}");
        }
    }
    drop((session, watcher));
    cluster.assert_sound(&before);
}

#[case(slow)]
fn failed_jobs_do_not_fill_the_memory_of_their_session() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    // An error of the job, a mismatch and then a detach, an argument that is refused.
    let hundred = "do $$ declare job int; begin for i in 1 .. 100 loop \
                   begin perform * from pg_background_result(pg_background_launch('select 1 / 0')) as (a int); \
                   exception when division_by_zero then null; end; \
                   job := pg_background_launch('select 1'); \
                   begin perform * from pg_background_result(job) as (a uuid); \
                   exception when datatype_mismatch then perform pg_background_detach(job); end; \
                   begin perform pg_background_launch('select 1', 1); \
                   exception when invalid_parameter_value then null; end; \
                   end loop; end $$";
    for _ in 0..2 {
        session.run(hundred);
    }
    let early = Holdings::of(session.pid());
    for _ in 0..4 {
        session.run(hundred);
    }
    Holdings::assert_flat(early, Holdings::of(session.pid()));
    drop(session);
    cluster.assert_sound(&before);
}

/// Sleepers of the classic interface, as many as the server lets in.
fn take_all_processes(session: &mut Session) -> Vec<i32> {
    let mut pids = Vec::new();
    loop {
        let reply = session.ask(&format!("select pg_background_launch('select {FOREVER}')"));
        match reply.error {
            None => pids.push(reply.last_rows().expect("a row").text_rows()[0].parse().expect("a process id")),
            Some(error) => {
                assert_eq!(error.sqlstate(), "53000");
                return pids;
            }
        }
    }
}

#[case(slow)]
fn jobs_wait_while_others_have_all_processes() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "4")]);
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    session.run("create table ran (a int)");
    let pids = take_all_processes(&mut other);
    assert!(pids.len() >= 3, "{pids:?}");
    let call =
        format!("select uuid_parent from pg_background_launch_num({})", array(&times("insert into ran values (1)", 5)));
    session.send(&call);
    let mut watcher = cluster.session("postgres");
    let error =
        watcher.error("select * from pg_background_launch_num('insert into ran values (2)', p_monitor => false)");
    assert_eq!(error.sqlstate(), "53000");
    // Whether it has its answer before there is a process depends on who writes the rows; nothing may have run.
    assert_eq!(watcher.value("select count(*) from ran"), "0");
    for pid in pids {
        terminate(&mut watcher, pid);
    }
    let reply = session.finish(&call);
    assert!(reply.error.is_none(), "{:?}", reply.error);
    drain(&mut watcher);
    assert_eq!(counts(&mut watcher, "true"), ["succeeded 5"]);
    assert_eq!(watcher.value("select count(*) from ran"), "5");
}

#[case(slow)]
fn one_free_process_drains_the_queue() {
    // The sleepers count against the cap: one place in it is to be free, too.
    let settings = [("max_worker_processes", "4"), ("pg_background_mgr.reserved_workers", "1")];
    let cluster = Cluster::start_with_extension(&settings);
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    session.run("create table ran (a int)");
    let pids = take_all_processes(&mut other);
    terminate(&mut other, pids[0]);
    wait_gone(pids[0]);
    let batch = Batch::launch(&mut session, &times("insert into ran values (1)", 100));
    batch.succeed(&mut session);
    assert_eq!(session.value("select count(*) from ran"), "100");
    assert_eq!(log(&mut session, &batch.children[99], "attempts"), "1");
}
