//! Commands that work only alone, and plans with processes of their own, in a worker that has served others.

use crate::support::compare_with_client::assert_same_error;
use crate::support::idle_worker::{
    get_idle_worker, run, run_and_wait_idle, run_in_new_process, wait_free, wait_idle, wait_idle_after, Outcome,
};
use pg_background_mgr_tests::env::forced_parallel;
use pg_background_mgr_tests::{case, Db, Session};

/// The worker `pid` has nothing of `command` left, and is the next job's: a transaction of its own, committed by
/// itself.
#[track_caller]
fn assert_serves_on(session: &mut Session, pid: i32, command: &str) {
    wait_free(session, pid);
    session.run("create table if not exists ran (a int); truncate ran");
    let text = "insert into ran values (1); select count(*) from ran";
    assert_eq!(session.launch(text), pid, "after: {command}");
    assert_eq!(session.result(pid, "n bigint"), ["1"], "after: {command}");
    assert_eq!(session.value("select count(*) from ran"), "1", "after: {command}");
    wait_idle(session, pid);
}

/// `command` does its work in the worker `pid`, after and before a job as any other.
#[track_caller]
fn assert_alone(session: &mut Session, pid: i32, command: &str, tag: &str) {
    assert_eq!(session.launch(command), pid, "{command}");
    // It may wait for older snapshots, as that of the statement that reads it.
    wait_idle_after(session, pid, command);
    assert_eq!(session.result(pid, "tag text"), [tag], "{command}");
    wait_idle(session, pid);
    assert_serves_on(session, pid, command);
}

#[case]
fn indexes_are_built_concurrently(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select generate_series(1, 1000) a");
    let pid = get_idle_worker(&mut session);
    assert_alone(&mut session, pid, "create index concurrently i on t (a)", "CREATE INDEX");
    let valid = "select indisvalid, indisready from pg_index where indexrelid = 'i'::regclass";
    assert_eq!(session.rows(valid), ["t|t"]);
    for command in ["reindex index concurrently i", "reindex table concurrently t"] {
        let before = session.value("select pg_relation_filenode('i')");
        assert_alone(&mut session, pid, command, "REINDEX");
        assert_ne!(session.value("select pg_relation_filenode('i')"), before, "{command}");
        assert_eq!(session.rows(valid), ["t|t"], "{command}");
    }
    assert_alone(&mut session, pid, "drop index concurrently i", "DROP INDEX");
    assert_eq!(session.value("select count(*) from pg_index where indrelid = 't'::regclass"), "0");
}

#[case(since = 14)]
fn a_partition_is_detached_concurrently(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table p (a int) partition by list (a); create table p1 partition of p for values in (1); \
         create table p2 partition of p for values in (2)",
    );
    let pid = get_idle_worker(&mut session);
    assert_alone(&mut session, pid, "alter table p detach partition p1 concurrently", "ALTER TABLE");
    assert_eq!(session.rows("select inhrelid::regclass from pg_inherits where inhparent = 'p'::regclass"), ["p2"]);
}

#[case]
fn tables_are_vacuumed_and_rewritten(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select generate_series(1, 1000) a; create index i on t (a)");
    let pid = get_idle_worker(&mut session);
    assert_eq!(run_and_wait_idle(&mut session, "delete from t where a > 400"), pid);
    assert_alone(&mut session, pid, "vacuum (analyze) t", "VACUUM");
    assert_eq!(session.value("select reltuples from pg_class where oid = 't'::regclass"), "400");
    for (command, tag) in [("vacuum full t", "VACUUM"), ("cluster t using i", "CLUSTER"), ("cluster", "CLUSTER")] {
        let before = session.value("select pg_relation_filenode('t')");
        assert_alone(&mut session, pid, command, tag);
        assert_ne!(session.value("select pg_relation_filenode('t')"), before, "{command}");
    }
    assert_eq!(session.value("select count(*) from t"), "400");
}

#[case]
fn databases_and_settings_come_and_go(db: &Db) {
    let mut session = db.session();
    let pid = get_idle_worker(&mut session);
    let other = format!("{}_other", db.name);
    let exists = format!("select count(*) from pg_database where datname = '{other}'");
    assert_alone(&mut session, pid, &format!("create database {other}"), "CREATE DATABASE");
    assert_eq!(session.value(&exists), "1");
    assert_alone(&mut session, pid, &format!("drop database {other}"), "DROP DATABASE");
    assert_eq!(session.value(&exists), "0");
    let set = "select setting from pg_file_settings where name = 'bgwriter_delay'";
    assert_alone(&mut session, pid, "alter system set bgwriter_delay = '201ms'", "ALTER SYSTEM");
    assert_eq!(session.rows(set), ["201ms"]);
    assert_alone(&mut session, pid, "alter system reset bgwriter_delay", "ALTER SYSTEM");
    assert_eq!(session.rows(set), [""; 0]);
}

#[case]
fn a_transaction_is_prepared_and_committed(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let (pid, name) = (get_idle_worker(&mut session), &db.name);
    let prepared = format!("select count(*) from pg_prepared_xacts where gid = '{name}'");
    for end in ["rollback", "commit"] {
        let prepare = format!("begin; insert into t values (1); prepare transaction '{name}'");
        assert_eq!(run_and_wait_idle(&mut session, &prepare), pid);
        assert_serves_on(&mut session, pid, &prepare);
        assert_eq!(session.value(&prepared), "1");
        let tag = format!("{} PREPARED", end.to_uppercase());
        assert_alone(&mut session, pid, &format!("{end} prepared '{name}'"), &tag);
        assert_eq!(session.value(&prepared), "0");
    }
    assert_eq!(session.value("select count(*) from t"), "1");
}

#[case]
fn an_index_that_cannot_be_built_is_left_as_by_a_client(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int); insert into t values (1), (2), (2)");
    let command = "create unique index concurrently i on t (a)";
    let index =
        "select indexrelid::regclass, indisvalid, indisready, indislive from pg_index where indrelid = 't'::regclass";
    let (expected, left) = (session.error(command), session.rows(index));
    session.run("drop index i");
    let pid = get_idle_worker(&mut session);
    assert_eq!(session.launch(command), pid);
    wait_idle_after(&mut session, pid, command);
    assert_same_error(&expected, &session.result_error(pid), command);
    assert_eq!(session.rows(index), left);
    wait_idle(&mut session, pid);
    assert_serves_on(&mut session, pid, command);
    // What a client does about it, a job does.
    assert_eq!(run_and_wait_idle(&mut session, "delete from t where ctid = '(0,3)'"), pid);
    assert_alone(&mut session, pid, "reindex index concurrently i", "REINDEX");
    assert_eq!(session.rows(index), ["i|t|t|t"]);
}

/// Returns how many workers a plan that was explained wanted, and got.
fn workers(outcome: &Outcome) -> Vec<&str> {
    let told = outcome.rows.iter().filter_map(|line| line.split_once("Workers "));
    told.map(|(_, rest)| rest.trim_end_matches(['"', ')'])).collect()
}

#[case]
fn parallel_plans_get_their_workers(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select generate_series(1, 20000) a; analyze t");
    let forced = forced_parallel();
    let cheap = "set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; \
                 set min_parallel_table_scan_size = 0";
    for (settings, expected) in
        [(cheap, ["Planned: 2", "Launched: 2"]), (&*format!("set {forced} = on"), ["Planned: 1", "Launched: 1"])]
    {
        let explain = format!("{settings}; explain (analyze, costs off, timing off, summary off) select sum(a) from t");
        assert_eq!(workers(&run_in_new_process(&mut session, &explain)), expected);
        let pid = get_idle_worker(&mut session);
        let sum = format!("{settings}; select sum(a) from t");
        // The last two fail in a parallel worker, and while there may be some.
        for before in [
            "select 1",
            "set max_parallel_workers_per_gather = 0; set max_parallel_workers = 0; select 1",
            "vacuum t",
            "begin; select 1 / 0",
            &sum,
            &format!("{settings}; select sum(1 / (a - 20000)) from t"),
            &format!("{settings}; begin; declare c cursor for select a from t; fetch c; select 1 / 0"),
        ] {
            assert_eq!(run(&mut session, before).0, pid, "{before}");
            let (next, outcome) = run(&mut session, &explain);
            assert_eq!((next, workers(&outcome)), (pid, expected.to_vec()), "{outcome:?}, after: {before}");
            assert_eq!(run(&mut session, &sum).1.rows, ["(200010000)"], "after: {before}");
        }
    }
}
