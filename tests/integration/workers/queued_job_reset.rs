//! The state that a job leaves in its process never reaches the next job there.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{cell, stop, times, wait_at_barrier, Batch};
use crate::support::idle_worker;
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session, FOREVER};

/// Two jobs of one process: what the second gave as `v`, and how the first ended.
#[track_caller]
fn after(session: &mut Session, first: &str, second: &str) -> (String, String) {
    for _ in 0..10 {
        let batch = Batch::launch_with(session, &[first, second], r#"{"mode": "sequential"}"#);
        let states = batch.finish(session);
        let pids = batch.column(session, "pid");
        // Its worker may have made room for somebody else's in between.
        if pids[0] != pids[1] {
            continue;
        }
        if states[1] != "succeeded" {
            panic!("{second}: {:?}", batch.log(session, 1, "sqlstate || ' ' || message"));
        }
        return (batch.log(session, 1, &cell("v")), states[0].clone());
    }
    panic!("no two jobs ran in one process: {first}; {second}");
}

/// The second job gives `expected`, which is not what the first would have left it.
#[track_caller]
fn assert_next(session: &mut Session, first: &str, second: &str, expected: &str) {
    // Within one job it is there: the case tests something.
    let inside = Batch::launch(session, &[&format!("{first}; {second}")]);
    if inside.finish(session) == ["succeeded"] {
        assert_ne!(inside.log(session, 0, &cell("v")), expected, "{first}; {second}");
    }
    assert_eq!(after(session, first, second), (expected.to_owned(), "succeeded".to_owned()), "{first}; {second}");
}

#[case]
fn settings_are_reset(db: &Db) {
    let mut session = db.session();
    for (first, name) in [
        ("set work_mem = '77MB'", "work_mem"),
        ("set session enable_seqscan = off", "enable_seqscan"),
        ("select set_config('datestyle', 'German, DMY', false)", "datestyle"),
        ("set timezone = 'Asia/Tokyo'", "timezone"),
        ("begin; set bytea_output = escape; commit", "bytea_output"),
        ("set session_replication_role = replica", "session_replication_role"),
        ("set default_transaction_read_only = on", "default_transaction_read_only"),
        ("set session characteristics as transaction isolation level serializable", "default_transaction_isolation"),
        ("set row_security = off", "row_security"),
        ("set standard_conforming_strings = off", "standard_conforming_strings"),
        ("set client_min_messages = error", "client_min_messages"),
        ("set synchronous_commit = off", "synchronous_commit"),
        ("set pg_background_mgr.log_result_limit = '1MB'", "pg_background_mgr.log_result_limit"),
    ] {
        // In the form of a job's own session, not of the test's.
        let fresh = Batch::launch(&mut session, &[&format!("select current_setting('{name}') as v")]);
        fresh.succeed(&mut session);
        let default = fresh.log(&mut session, 0, &cell("v"));
        assert_next(&mut session, first, &format!("select current_setting('{name}') as v"), &default);
    }
}

#[case]
fn settings_of_a_users_own_are_reset(db: &Db) {
    let mut session = db.session();
    for first in ["set my.own = 'x'", "select set_config('my.own', 'x', false)", "do $$ begin set my.own = 'x'; end $$"]
    {
        let second = "select coalesce(current_setting('my.own', true), '') as v";
        assert_next(&mut session, first, second, "");
    }
}

#[case]
fn the_search_path_is_reset(db: &Db) {
    let mut session = db.session();
    session.run("create schema s; create table s.t as select 'wrong' as v; create table t as select 'right' as v");
    assert_next(&mut session, "set search_path = s", "select v from t", "right");
    assert_next(&mut session, "set search_path = s", "select current_schemas(false)::text as v", "{public}");
}

#[case]
fn time_limits_are_reset(db: &Db) {
    let mut session = db.session();
    for name in ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"] {
        assert_next(
            &mut session,
            &format!("set {name} = '250ms'"),
            &format!("select current_setting('{name}') as v"),
            "0",
        );
    }
    // Four times the timeout that the job before it has set.
    let slow = "select pg_sleep(0.4), 'done' as v";
    let (value, _) = after(&mut session, "set statement_timeout = '100ms'", slow);
    assert_eq!(value, "done");
}

#[case]
fn the_client_encoding_is_reset(db: &Db) {
    let mut session = db.session();
    assert_next(
        &mut session,
        "set client_encoding = 'LATIN1'",
        "select current_setting('client_encoding') as v",
        "UTF8",
    );
    let (value, _) = after(&mut session, "set client_encoding = 'LATIN1'", "select '日本' as v");
    assert_eq!(value, "日本");
}

#[case]
fn the_name_of_the_application_is_reset(db: &Db) {
    let mut session = db.session();
    let second = "select application_name as v from pg_stat_activity where pid = pg_backend_pid()";
    let fresh = Batch::launch(&mut session, &[second]);
    fresh.succeed(&mut session);
    let default = fresh.log(&mut session, 0, &cell("v"));
    assert_next(&mut session, "set application_name = 'the first job'", second, &default);
}

#[case]
fn settings_that_the_launcher_made_are_there_again(db: &Db) {
    let mut session = db.session();
    session.run("set work_mem = '9MB'; set my.own = 'kept'");
    let second = "select current_setting('work_mem') || ' ' || current_setting('my.own') as v";
    for first in ["set work_mem = '1MB'; set my.own = 'x'", "reset work_mem; reset my.own", "reset all", "discard all"]
    {
        assert_eq!(after(&mut session, first, second).0, "9MB kept", "{first}");
    }
}

#[case]
fn a_role_is_reset(db: &Db) {
    let other = db.role("other", "nologin");
    let mut session = db.session();
    let who = "select session_user || ' ' || current_user || ' ' || current_setting('role') as v";
    for first in [
        format!("set role {other}"),
        format!("select set_config('role', '{other}', false)"),
        format!("begin; set local role {other}"),
    ] {
        assert_eq!(after(&mut session, &first, who).0, "postgres postgres none", "{first}");
    }
    // A launcher's role is there again.
    let (user, group) = (db.role("user", "login"), db.role("group", "nologin"));
    session.run(&format!("grant {group} to {user}"));
    let mut weak = db.client().user(&user).connect();
    weak.run(&format!("set role {group}"));
    let batch = Batch::launch_with(&mut weak, &["reset role", who, "set role none", who], r#"{"mode": "sequential"}"#);
    batch.succeed(&mut session);
    for number in [1, 3] {
        assert_eq!(batch.log(&mut session, number, &cell("v")), format!("{user} {group} {group}"));
    }
    assert_eq!(
        session
            .value(&format!("select count(distinct pid) from log_background where uuid_parent = '{}'", batch.parent)),
        "1"
    );
}

#[case]
fn a_session_authorization_is_reset(db: &Db) {
    let other = db.role("other", "nologin");
    let mut session = db.session();
    let who = "select session_user || ' ' || current_user || ' ' || current_setting('is_superuser') as v";
    for first in [
        format!("set session authorization {other}"),
        format!("set session authorization {other}; set my.own = 1"),
        format!("begin; set local session authorization {other}"),
    ] {
        assert_eq!(after(&mut session, &first, who).0, "postgres postgres on", "{first}");
    }
}

#[case]
fn temporary_tables_are_dropped(db: &Db) {
    let mut session = db.session();
    let count = "select count(*) as v from pg_class where relname = 'mine'";
    assert_next(&mut session, "create temp table mine (a int); insert into mine values (1)", count, "0");
    assert_next(
        &mut session,
        "create temp table mine as select 1; create temp view other as select * from mine",
        count,
        "0",
    );
    assert_next(&mut session, "create temp sequence mine", count, "0");
    // A table of that name is not hidden.
    session.run("create table hidden as select 'right' as v");
    assert_next(&mut session, "create temp table hidden as select 'wrong' as v", "select v from hidden", "right");
}

#[case]
fn temporary_functions_and_types_are_dropped(db: &Db) {
    let mut session = db.session();
    let count = "select count(*) as v from pg_proc where proname = 'mine'";
    assert_next(&mut session, "create function pg_temp.mine() returns int language sql as 'select 1'", count, "0");
    let count = "select count(*) as v from pg_type where typname = 'mine'";
    assert_next(&mut session, "create type pg_temp.mine as enum ('a')", count, "0");
}

#[case]
fn prepared_statements_are_dropped(db: &Db) {
    let mut session = db.session();
    let count = "select count(*) as v from pg_prepared_statements";
    assert_next(&mut session, "prepare p as select 1", count, "0");
    let (value, _) =
        after(&mut session, "prepare p as select 'wrong' as v", "prepare p as select 'right' as v; execute p");
    assert_eq!(value, "right");
}

#[case]
fn advisory_locks_of_the_session_are_released(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    let count = "select count(*) as v from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()";
    for first in [
        "select pg_advisory_lock(77)",
        "select pg_advisory_lock_shared(7, 7), pg_advisory_lock(77), pg_advisory_lock(77)",
    ] {
        assert_next(&mut session, first, count, "0");
    }
    // Nobody waits for a job that has ended, whether another follows or not.
    for text in ["select pg_advisory_lock(77)", "select pg_advisory_lock(77); select 1 / 0"] {
        let batch = Batch::launch(&mut session, &[text]);
        batch.wait(&mut session);
        wait_until("the lock is free", || other.value("select pg_try_advisory_lock(77)") == "t");
        other.run("select pg_advisory_unlock(77)");
    }
}

#[case]
fn channels_are_not_listened_to_any_more(db: &Db) {
    let mut session = db.session();
    let count = "select count(*) as v from pg_listening_channels()";
    let (value, state) = after(&mut session, "listen a; listen b", count);
    // Newer servers do not let a background process listen.
    assert!(value == "0" && ["succeeded", "failed"].contains(&state.as_str()), "{state}");
}

#[case]
fn cursors_that_are_held_are_closed(db: &Db) {
    let mut session = db.session();
    let count = "select count(*) as v from pg_cursors";
    assert_next(&mut session, "declare c cursor with hold for select generate_series(1, 10000)", count, "0");
}

#[case]
fn sequences_have_no_current_value(db: &Db) {
    let mut session = db.session();
    session.run("create sequence s");
    for function in ["lastval()", "currval('s')"] {
        let batch = Batch::launch_with(
            &mut session,
            &["select nextval('s')", &format!("select {function} as v")],
            r#"{"mode": "sequential"}"#,
        );
        assert_eq!(batch.finish(&mut session), ["succeeded", "failed"], "{function}");
        assert_eq!(batch.log(&mut session, 1, "sqlstate"), "55000");
        let pids = batch.column(&mut session, "pid");
        assert_eq!(pids[0], pids[1]);
    }
    // Numbers that a job has cached are not handed on.
    session.run("create sequence cached cache 100");
    let (value, _) = after(&mut session, "select nextval('cached')", "select nextval('cached') as v");
    assert_ne!(value, "2");
}

#[case]
fn the_seed_of_random_is_not_the_last_jobs(db: &Db) {
    let mut session = db.session();
    let draw = "select random()::text as v";
    let seeded = Batch::launch(&mut session, &[&format!("select setseed(0.5); {draw}")]);
    seeded.succeed(&mut session);
    let known = seeded.log(&mut session, 0, &cell("v"));
    for first in ["select setseed(0.5)", "set seed = 0.5"] {
        let (value, _) = after(&mut session, first, draw);
        assert_ne!(value, known, "{first}");
    }
}

#[case]
fn an_unfinished_transaction_is_rolled_back(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let (value, state) = after(&mut session, "begin; insert into ran values (1)", "select count(*) as v from ran");
    assert_eq!((value.as_str(), state.as_str()), ("0", "failed"));
    let (value, _) = after(
        &mut session,
        "begin; savepoint a; savepoint b",
        "begin; select txid_current_if_assigned() is null as v; commit",
    );
    assert_eq!(value, "true");
}

#[case]
fn a_failed_transaction_is_rolled_back(db: &Db) {
    let mut session = db.session();
    let (value, state) = after(&mut session, "begin; select 1 / 0", "select 'fine' as v");
    assert_eq!((value.as_str(), state.as_str()), ("fine", "failed"));
    let (value, _) =
        after(&mut session, "begin; select 1 / 0; rollback; select nothing", "begin; select 'fine' as v; commit");
    assert_eq!(value, "fine");
}

#[case]
fn locks_of_an_unfinished_transaction_are_released(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    session.run("create table t (a int)");
    let held = "select count(*) as v from pg_locks where pid = pg_backend_pid() and locktype = 'relation' \
                and mode = 'AccessExclusiveLock'";
    let (value, state) = after(&mut session, "begin; lock table t", held);
    assert_eq!((value.as_str(), state.as_str()), ("0", "failed"));
    Batch::launch(&mut session, &["begin; lock table t"]).wait(&mut session);
    other.run("set lock_timeout = '10s'; select * from t");
}

#[case]
fn the_modes_of_a_transaction_are_reset(db: &Db) {
    let mut session = db.session();
    let modes =
        "select current_setting('transaction_isolation') || ' ' || current_setting('transaction_read_only') || ' ' \
                 || current_setting('transaction_deferrable') as v";
    for first in [
        "set transaction isolation level serializable, read only, deferrable",
        "begin isolation level repeatable read read only",
        "begin isolation level serializable; commit and chain",
    ] {
        let (value, _) = after(&mut session, first, modes);
        assert_eq!(value, "read committed off off", "{first}");
    }
}

/// The locks outlive the transactions of a build that does not block others.
#[case]
fn locks_of_an_unfinished_index_build_are_released() {
    let cluster = one_worker();
    let (mut session, mut blocker) = (cluster.session("postgres"), cluster.session("postgres"));
    session.run("create table built (a int); insert into built values (1)");
    let held = "select count(*) as v from pg_locks where pid = pg_backend_pid() and relation = 'built'::regclass";
    let waits = "select pid from pg_stat_activity where backend_type = 'pg_background' and wait_event_type = 'Lock'";
    let build = "create index concurrently on built (a)";
    let (_, pid) = run(&mut session, held);
    let worker: i32 = pid.parse().expect("a process id");
    for is_of_session in [false, true] {
        blocker.run("begin; insert into built values (2)");
        let wait = |session: &mut Session| wait_until("the build waits", || session.rows(waits) == [pid.as_str()]);
        idle_worker::wait_idle(&mut session, worker);
        if is_of_session {
            assert_eq!(session.launch(build), worker);
            wait(&mut session);
            session.run(&format!("select pg_cancel_backend({worker})"));
            assert_eq!(idle_worker::read(&mut session, worker).error.expect("an error")[&'C'], "57014");
            assert_eq!(
                idle_worker::run(&mut session, held),
                (worker, idle_worker::Outcome { rows: vec!["(0)".into()], error: None, notices: vec![] })
            );
        } else {
            let batch = Batch::launch(&mut session, &[build]);
            wait(&mut session);
            stop(&mut session, &batch.parent, None);
            assert_eq!(batch.finish(&mut session), ["stopped"]);
            assert_eq!(run(&mut session, held), ("0".to_owned(), pid.clone()));
        }
        blocker.run("rollback; begin; lock table built in access exclusive mode nowait; rollback");
    }
}

#[case]
fn temporary_replication_slots_are_dropped(db: &Db) {
    let mut session = db.session();
    let name = &db.name;
    let first = format!("select pg_create_physical_replication_slot('{name}', false, true)");
    let count = format!("select count(*) as v from pg_replication_slots where slot_name = '{name}'");
    assert_next(&mut session, &first, &count, "0");
}

/// Text of a job that leaves as much state as one can.
const MESS: &str = "set work_mem = '77MB'; set my.own = 'x'; set search_path = pg_catalog; \
    create temp table mine (a int); prepare p as select 1; select pg_advisory_lock(77); \
    declare c cursor with hold for select 1; set statement_timeout = '1h'";

/// Query for what is left of it.
const LEFT: &str = "select concat_ws(' ', current_setting('work_mem'), current_setting('my.own', true), \
    current_setting('search_path'), (select count(*) from pg_class where relname = 'mine'), \
    (select count(*) from pg_prepared_statements), \
    (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid() and objid = 77), \
    (select count(*) from pg_cursors), current_setting('statement_timeout')) as v";

const CLEAN: [&str; 2] = ["4MB  \"$user\", public 0 0 0 0 0", "4MB \"$user\", public 0 0 0 0 0"];

#[case]
fn a_failed_job_leaves_nothing(db: &Db) {
    let mut session = db.session();
    for (end, state) in
        [("select 1", "succeeded"), ("select 1 / 0", "failed"), ("begin; select 1 / 0", "failed"), ("selct", "failed")]
    {
        // Each in a transaction of its own, so that it stays although the job fails.
        let mess: String = MESS.split("; ").map(|statement| format!("begin; {statement}; commit; ")).collect();
        let first = if end == "selct" { format!("{MESS}; {end}") } else { format!("{mess}{end}") };
        let (left, ended) = after(&mut session, &first, LEFT);
        assert!(CLEAN.contains(&left.as_str()), "{end}: {left}");
        assert_eq!(ended, state, "{end}");
    }
}

#[case]
fn a_stopped_job_leaves_nothing(db: &Db) {
    let mut session = db.session();
    let mess: String = MESS.split("; ").map(|statement| format!("begin; {statement}; commit; ")).collect();
    let first = format!("{mess}{}", barrier::WAIT);
    for _ in 0..10 {
        let barrier = Barrier::close(db.session());
        let batch = Batch::launch_with(&mut session, &[&first, LEFT], r#"{"mode": "sequential"}"#);
        wait_at_barrier(&mut session, 1);
        session.run(&format!("select pg_background_stop('{}')", batch.children[0]));
        assert_eq!(batch.finish(&mut session), ["stopped", "succeeded"]);
        barrier.open();
        let left = batch.log(&mut session, 1, &cell("v"));
        assert!(CLEAN.contains(&left.as_str()), "{left}");
        let pids = batch.column(&mut session, "pid");
        if pids[0] == pids[1] {
            return;
        }
    }
    panic!("no two jobs ran in one process");
}

#[case]
fn a_job_that_ran_out_of_time_leaves_nothing(db: &Db) {
    let mut session = db.session();
    let mess: String = MESS.split("; ").map(|statement| format!("begin; {statement}; commit; ")).collect();
    let options = r#"{"mode": "sequential", "timeout": 0.5}"#;
    let batch = Batch::launch_with(&mut session, &[&format!("{mess}select {FOREVER}"), LEFT], options);
    assert_eq!(batch.finish(&mut session), ["failed", "succeeded"]);
    let left = batch.log(&mut session, 1, &cell("v"));
    assert!(CLEAN.contains(&left.as_str()), "{left}");
}

#[case]
fn the_command_that_is_shown_is_the_next_jobs(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch_with(&mut session, &["select 'the first'", barrier::WAIT], r#"{"mode": "sequential"}"#);
    wait_at_barrier(&mut session, 1);
    let shown = "select state, query, backend_xid is null from pg_stat_activity \
                 where backend_type = 'pg_background' and datname = current_database() and state = 'active'";
    assert_eq!(session.rows(shown), [format!("active|{}|t", barrier::WAIT)]);
    barrier.open();
    batch.succeed(&mut session);
}

/// One worker, which stays.
fn one_worker() -> Cluster {
    Cluster::start_with_extension(&[
        ("pg_background_mgr.max_workers", "1"),
        ("pg_background_mgr.worker_idle_timeout", "1h"),
    ])
}

/// Runs one job; what it gave as `v`, and its process.
#[track_caller]
fn run(session: &mut Session, text: &str) -> (String, String) {
    let batch = Batch::launch(session, &[text]);
    batch.succeed(session);
    (batch.log(session, 0, &cell("v")), batch.log(session, 0, "pid"))
}

#[case]
fn the_next_batch_has_its_own_settings() {
    let cluster = one_worker();
    let (mut first, mut second) = (cluster.session("postgres"), cluster.session("postgres"));
    first.run("set work_mem = '7MB'; set my.own = 'first'; set timezone = 'Asia/Tokyo'");
    let text = "select concat_ws(' ', current_setting('work_mem'), current_setting('my.own', true), \
                current_setting('timezone')) as v";
    let (value, worker) = run(&mut first, text);
    assert_eq!(value, "7MB first Asia/Tokyo");
    for _ in 0..3 {
        let (value, pid) = run(&mut second, text);
        assert_eq!((value.replace("  ", " "), pid), ("4MB UTC".to_owned(), worker.clone()));
        assert_eq!(run(&mut first, text), ("7MB first Asia/Tokyo".to_owned(), worker.clone()));
    }
}

/// The next job sees what a new session of its launcher sees.
#[case]
fn changed_defaults_reach_a_warm_worker() {
    let cluster = one_worker();
    let mut session = cluster.session("postgres");
    let text = "select concat_ws(' ', current_setting('work_mem'), current_setting('my.role', true)) as v";
    assert_eq!(run(&mut session, text).0.trim(), "4MB");
    session.run("alter role postgres set my.role = 'changed'; alter database postgres set work_mem = '6MB'");
    assert_eq!(run(&mut cluster.session("postgres"), text).0, "6MB changed");
    session.run("alter role postgres reset all; alter database postgres reset all");
    assert_eq!(run(&mut cluster.session("postgres"), text).0.trim(), "4MB");
    cluster.configure(&[("work_mem", "8MB")]);
    cluster.reload();
    wait_until("the new configuration", || session.value("show work_mem") == "8MB");
    wait_until("the worker has it too", || run(&mut cluster.session("postgres"), text).0.trim() == "8MB");
}

#[case]
fn changed_definitions_reach_a_warm_worker() {
    let cluster = one_worker();
    let mut session = cluster.session("postgres");
    session.run(
        "create table t as select 1 as v; \
         create function f() returns int language plpgsql as $$ begin return (select v from t); end $$",
    );
    let (value, worker) = run(&mut session, "select f() as v");
    assert_eq!(value, "1");
    session.run("drop table t; create table t as select 2 as other, 3 as v");
    assert_eq!(run(&mut session, "select f() as v"), ("3".to_owned(), worker.clone()));
    session.run("create or replace function f() returns int language plpgsql as $$ begin return 4; end $$");
    assert_eq!(run(&mut session, "select f() as v"), ("4".to_owned(), worker));
}

/// Private memory of a process in kB.
fn memory(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the resident set");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

/// No reset takes back what a procedural language keeps of its functions.
#[case]
fn a_worker_that_has_grown_is_replaced() {
    let cluster = one_worker();
    let mut session = cluster.session("postgres");
    session.run(
        "do $make$ begin for i in 1 .. 12 loop \
         execute format('create function grow%s() returns int language plpgsql as \
         $f$ declare x int := 0; begin %s return x; end $f$', i, repeat('x := x + 1; ', 3000)); end loop; end $make$",
    );
    let grow = (1..=12).map(|i| format!("grow{i}()")).collect::<Vec<_>>().join(", ");
    let grow = format!("select {grow}");
    // Of a session.
    let (first, outcome) = idle_worker::run(&mut session, &grow);
    assert_eq!(outcome.error, None);
    assert!(memory(&first.to_string()) > 64 * 1024, "the functions are large");
    let mut jobs = 0;
    while idle_worker::run(&mut session, "select 1").0 == first {
        jobs += 1;
        assert!(jobs < 2000, "it stays for ever");
    }
    // Of the queue.
    let texts: Vec<&str> = std::iter::once(grow.as_str()).chain(times("select 1", 1500)).collect();
    let batch = Batch::launch(&mut session, &texts);
    batch.succeed(&mut session);
    let pids = format!("select count(distinct pid) from log_background where uuid_parent = '{}'", batch.parent);
    assert!(session.number(&pids) > 1, "it stays for ever");
}

#[case]
fn a_worker_does_not_grow_with_its_jobs() {
    let cluster = one_worker();
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    let texts = [
        "insert into ran values (1)",
        "select i, md5(i::text) from generate_series(1, 100) i",
        "select 1 / 0",
        "set my.own = 'x'; create temp table mine (a int)",
        "begin; insert into ran values (2); commit",
    ];
    let many: Vec<&str> = texts.iter().copied().cycle().take(500).collect();
    let mut sizes = Vec::new();
    let mut worker = String::new();
    for _ in 0..4 {
        Batch::launch(&mut session, &many).wait(&mut session);
        let (_, pid) = run(&mut session, "select 1 as v");
        // A worker may be replaced after many jobs, which is a way not to grow.
        if pid != worker {
            sizes.clear();
            worker = pid;
        }
        sizes.push(memory(&worker));
    }
    let (first, last) = (sizes[0], sizes[sizes.len() - 1]);
    assert!(last <= first + 2048, "{sizes:?} kB");
}
