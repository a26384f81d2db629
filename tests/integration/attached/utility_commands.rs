//! Commands that work only alone, outside a transaction block.

use crate::support::compare_with_client::assert_like_client;
use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, wait_until, Db, Session};

/// A command that waits for older snapshots would wait for that of the statement that reads it: reads afterwards.
#[track_caller]
fn job_read_afterwards(session: &mut Session, text: &str) -> Vec<String> {
    let pid = session.launch(text);
    wait_until("the end of the job's process", || !is_alive(pid));
    session.result(pid, "result text")
}

#[case]
fn vacuum_works_alone(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    assert_eq!(session.job("vacuum t", "result text"), ["VACUUM"]);
    assert_eq!(session.job("vacuum (analyze, verbose) t", "result text"), ["VACUUM"]);
    assert_eq!(session.job("vacuum", "result text"), ["VACUUM"]);
    assert_eq!(session.job("; vacuum t ; -- done", "result text"), ["VACUUM"]);
    assert_eq!(session.job("analyze t", "result text"), ["ANALYZE"]);
}

#[case]
fn vacuum_analyze_cleans_and_counts(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select generate_series(1, 1000) as a");
    session.run("delete from t where a > 400");
    session.job("vacuum analyze t", "result text");
    assert_eq!(session.value("select reltuples from pg_class where oid = 't'::regclass"), "400");
    assert_eq!(session.value("select count(*) from pg_stats where tablename = 't'"), "1");
}

#[case]
fn vacuum_full_rewrites_the_table(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select generate_series(1, 1000) as a");
    let before = session.value("select pg_relation_filenode('t')");
    assert_eq!(session.job("vacuum full t", "result text"), ["VACUUM"]);
    assert_ne!(session.value("select pg_relation_filenode('t')"), before);
}

#[case]
fn create_index_concurrently_makes_a_valid_index(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select generate_series(1, 1000) as a");
    assert_eq!(job_read_afterwards(&mut session, "create index concurrently i on t (a)"), ["CREATE INDEX"]);
    assert_eq!(session.rows("select indisvalid, indisready from pg_index where indexrelid = 'i'::regclass"), ["t|t"]);
}

#[case]
fn create_index_concurrently_that_fails_leaves_an_invalid_index_as_for_a_client(db: &Db) {
    let setup = "create table t (a int); insert into t values (1), (1)";
    let probe = "select indexrelid::regclass, indisvalid from pg_index where indrelid = 't'::regclass";
    assert_like_client(db, setup, "create unique index concurrently i on t (a)", probe);
}

#[case]
fn drop_index_concurrently_works(db: &Db) {
    let setup = "create table t (a int); create index i on t (a)";
    assert_like_client(
        db,
        setup,
        "drop index concurrently i",
        "select count(*) from pg_index where indrelid = 't'::regclass",
    );
}

#[case]
fn reindex_concurrently_works(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int primary key); create index i on t (a)");
    let before = session.value("select pg_relation_filenode('i')");
    assert_eq!(job_read_afterwards(&mut session, "reindex index concurrently i"), ["REINDEX"]);
    assert_ne!(session.value("select pg_relation_filenode('i')"), before);
    assert_eq!(job_read_afterwards(&mut session, "reindex table concurrently t"), ["REINDEX"]);
    assert_eq!(session.value("select count(*) from pg_index where indrelid = 't'::regclass and indisvalid"), "2");
}

#[case]
fn reindex_of_a_schema_works(db: &Db) {
    let setup = "create table t (a int primary key)";
    assert_like_client(db, setup, "reindex schema stage", "");
}

#[case]
fn cluster_works_alone(db: &Db) {
    let setup = "create table t (a int primary key); insert into t select generate_series(10, 1, -1)";
    assert_like_client(db, setup, "cluster t using t_pkey", "table t");
    assert_like_client(db, setup, "cluster", "");
}

#[case]
fn create_and_drop_database_work_alone(db: &Db) {
    let mut session = db.session();
    let other = format!("{}_other", db.name);
    assert_eq!(session.job(&format!("create database {other}"), "result text"), ["CREATE DATABASE"]);
    let exists = format!("select count(*) from pg_database where datname = '{other}'");
    assert_eq!(session.value(&exists), "1");
    assert_eq!(session.job(&format!("drop database {other}"), "result text"), ["DROP DATABASE"]);
    assert_eq!(session.value(&exists), "0");
}

#[case]
fn alter_system_works_alone(db: &Db) {
    let mut session = db.session();
    let text = "alter system set checkpoint_warning = '31s'";
    assert_eq!(session.job(text, "result text"), ["ALTER SYSTEM"]);
    let query = "select setting from pg_file_settings where name = 'checkpoint_warning'";
    assert_eq!(session.rows(query), ["31s"]);
    assert_eq!(session.job("alter system reset checkpoint_warning", "result text"), ["ALTER SYSTEM"]);
    assert_eq!(session.rows(query), [""; 0]);
}

#[case]
fn create_tablespace_works_alone(db: &Db) {
    let mut session = db.session();
    let place = db.cluster.data().with_file_name(format!("space_{}", db.name));
    session.run(&format!("copy (select where false) to program 'mkdir {}'", place.display()));
    let space = format!("{}_space", db.name);
    let text = format!("create tablespace {space} location '{}'", place.display());
    assert_eq!(session.job(&text, "result text"), ["CREATE TABLESPACE"]);
    assert_eq!(session.job(&format!("drop tablespace {space}"), "result text"), ["DROP TABLESPACE"]);
}

#[case]
fn discard_all_works_alone(db: &Db) {
    assert_like_client(db, "", "discard all", "");
    assert_eq!(db.session().job("select 1; select 2", "n int"), ["2"]);
}

#[case]
fn checkpoint_works(db: &Db) {
    assert_eq!(db.session().job("checkpoint", "result text"), ["CHECKPOINT"]);
}

#[case(since = 14)]
fn detach_partition_concurrently_works(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table p (a int) partition by list (a); create table p1 partition of p for values in (1); \
         create table p2 partition of p for values in (2)",
    );
    let text = "alter table p detach partition p1 concurrently";
    assert_eq!(job_read_afterwards(&mut session, text), ["ALTER TABLE"]);
    assert_eq!(session.rows("select inhrelid::regclass from pg_inherits where inhparent = 'p'::regclass"), ["p2"]);
}

const ALONE: [&str; 11] = [
    "vacuum t",
    "vacuum",
    "create index concurrently i on t (a)",
    "drop index concurrently t_a",
    "reindex table concurrently t",
    "reindex schema stage",
    "cluster",
    "create database never",
    "drop database never",
    "alter system set work_mem = '5MB'",
    "discard all",
];

const ALONE_SETUP: &str = "create table t (a int); create index t_a on t (a)";

#[case]
fn commands_that_work_only_alone_fail_in_a_text_of_several(db: &Db) {
    for command in ALONE {
        assert_like_client(db, ALONE_SETUP, &format!("insert into t values (1); {command}"), "table t");
        assert_like_client(db, ALONE_SETUP, &format!("{command}; insert into t values (1)"), "table t");
    }
    let error = db.session().job_error("select 1; vacuum");
    assert_eq!(error.brief(), ("25001".to_owned(), "VACUUM cannot run inside a transaction block".to_owned()));
}

#[case]
fn commands_that_work_only_alone_fail_in_a_block(db: &Db) {
    for command in ALONE {
        assert_like_client(db, ALONE_SETUP, &format!("begin; insert into t values (1); {command}; commit"), "table t");
    }
}

#[case]
fn vacuum_from_inside_a_procedure_runs_in_a_job(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select generate_series(1, 100) as a");
    session.run(
        "create procedure clean() language plpgsql as $$ begin delete from t where a > 30; commit; \
         perform * from pg_background_result(pg_background_launch('vacuum analyze t')) as (result text); end $$",
    );
    session.run("call clean()");
    assert_eq!(session.value("select reltuples from pg_class where oid = 't'::regclass"), "30");
}
