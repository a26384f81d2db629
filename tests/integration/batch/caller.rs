//! The caller of `pg_background_launch_num`: whose rights and settings its jobs have, and what its transaction is to
//! them.

use crate::support::batch::{array, cell, counts, drain, times, Batch};
use pg_background_mgr_tests::{case, literal, Cluster, Db, Session};

/// `session user|current user|role` of each job.
const WHO: &str = "select session_user::text as s, current_user::text as c, current_setting('role') as r";

#[track_caller]
fn who(session: &mut Session, call: &str) -> String {
    let batch = Batch::call(session, call);
    batch.succeed(session);
    let shown =
        batch.column(session, &format!("concat_ws('|', {}, {}, {}, user_name)", cell("s"), cell("c"), cell("r")));
    assert!(shown.iter().all(|other| *other == shown[0]), "{shown:?}");
    shown[0].clone()
}

fn two() -> String {
    format!("pg_background_launch_num({})", array(&[WHO, WHO]))
}

#[case]
fn jobs_have_the_launchers_identity(db: &Db) {
    let user = db.role("user", "login");
    let mut session = db.client().user(&user).connect();
    assert_eq!(who(&mut session, &two()), format!("{user}|{user}|none|{user}"));
    assert_eq!(who(&mut db.session(), &two()), "postgres|postgres|none|postgres");
    // What it may not, its jobs may not.
    let batch = Batch::launch(&mut session, &["set role postgres", "select * from pg_authid", "reset role; reset all"]);
    assert_eq!(batch.finish(&mut session), ["failed", "failed", "succeeded"]);
    assert_eq!(batch.column(&mut session, "sqlstate"), ["42501", "42501", "∅"]);
}

#[case]
fn jobs_have_the_role_that_is_set(db: &Db) {
    let (user, group) = (db.role("user", "login"), db.role("group", "nologin"));
    let mut admin = db.session();
    admin.run(&format!("grant {group} to {user}"));
    let mut session = db.client().user(&user).connect();
    session.run(&format!("set role {group}"));
    let call = two();
    let batch = Batch::call(&mut session, &call);
    batch.succeed(&mut admin);
    let shown = batch.column(&mut admin, &format!("concat_ws('|', {}, {}, {})", cell("s"), cell("c"), cell("r")));
    assert_eq!(shown, times(&format!("{user}|{group}|{group}"), 2));
    session.run("reset role");
    assert_eq!(who(&mut session, &call), format!("{user}|{user}|none|{user}"));
}

#[case]
fn jobs_of_a_definers_function_are_the_definers(db: &Db) {
    let (user, owner) = (db.role("user", "login"), db.role("owner", "login"));
    let mut admin = db.session();
    admin.run(&format!(
        "create function launch_as(text) returns uuid language sql security definer as \
         $$ select uuid_parent from public.pg_background_launch_num(array[$1, $1]) limit 1 $$; \
         alter function launch_as owner to {owner}"
    ));
    for client in [db.client().user(&user), db.client()] {
        let parent = client.connect().value(&format!("select launch_as({})", literal(WHO)));
        admin.run(&format!("select * from pg_background_monitor('{parent}')"));
        let shown = format!(
            "select distinct concat_ws('|', status, {}, {}, {}, user_name) from log_background \
             where uuid_parent = '{parent}'",
            cell("s"),
            cell("c"),
            cell("r")
        );
        assert_eq!(admin.rows(&shown), [format!("succeeded|{owner}|{owner}|none|{owner}")]);
    }
}

#[case]
fn jobs_have_the_launchers_settings(db: &Db) {
    let mut session = db.client().parameter("options", "-c my.startup=yes").connect();
    session.run(
        "create schema s; create table s.t as select 7 as a; set search_path = s, public; set work_mem = '7MB'; \
         set my.own = 'it''s, \"mine\"'; set datestyle = 'German, DMY'",
    );
    session.run("begin; set local timezone = 'Asia/Tokyo'");
    let text = "select a, current_setting('search_path') as p, current_setting('work_mem') as w, \
                current_setting('my.own') as o, current_setting('my.startup') as s, '2001-02-03'::date::text as d, \
                current_setting('timezone') as z from t";
    let batch = Batch::launch(&mut session, &[text, text, text]);
    session.run("commit");
    batch.succeed(&mut session);
    let columns: Vec<String> = ["a", "p", "w", "o", "s", "d", "z"].into_iter().map(cell).collect();
    let shown = batch.column(&mut session, &format!("concat_ws('|', {})", columns.join(", ")));
    assert_eq!(shown, times("7|s, public|7MB|it's, \"mine\"|yes|03.02.2001|Asia/Tokyo", 3));
}

/// Jobs of several batches take turns on the same workers.
#[case]
fn batches_of_one_role_keep_their_own_settings(db: &Db) {
    let mut session = db.session();
    let text = "select current_setting('my.own', true) as o, current_setting('work_mem') as w";
    let mut batches = Vec::new();
    for number in 1..=10 {
        session.run(&format!("set my.own = 'number {number}'; set work_mem = '{number}MB'"));
        batches.push(Batch::launch(&mut session, &times(text, 5)));
    }
    for (number, batch) in (1..).zip(&batches) {
        batch.succeed(&mut session);
        let shown = batch.column(&mut session, &format!("concat_ws('|', {}, {})", cell("o"), cell("w")));
        assert_eq!(shown, times(&format!("number {number}|{number}MB"), 5));
    }
}

#[case]
fn the_callers_rollback_leaves_jobs_and_rows(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    session.run("begin");
    let batch = Batch::launch(&mut session, &["insert into ran values (1)", "select 1 / 0"]);
    session.run("rollback");
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    assert_eq!(session.rows("table ran"), ["1"]);
    session.error(
        "select 1 / (length(status) - length(status)) from pg_background_launch_num('insert into ran values (2)')",
    );
    drain(&mut session);
    assert_eq!(counts(&mut session, "true"), ["failed 1", "succeeded 2"]);
    assert_eq!(session.rows("select a from ran order by a"), ["1", "2"]);
}

#[case]
fn a_caught_error_of_the_caller_leaves_the_jobs(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    session.run(
        "do $$ begin \
         begin perform pg_background_launch_num('insert into ran values (1)'); raise 'no'; \
         exception when raise_exception then null; end; \
         begin perform pg_background_launch_num('selct 1'); exception when syntax_error then null; end; \
         perform pg_background_launch_num('insert into ran values (2)'); end $$",
    );
    drain(&mut session);
    assert_eq!(counts(&mut session, "true"), ["succeeded 2"]);
    assert_eq!(session.rows("select a from ran order by a"), ["1", "2"]);
}

#[case]
fn jobs_run_before_the_caller_commits(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run("begin; insert into t values (1)");
    let batch = Batch::launch(&mut session, &["select count(*) as n from t"]);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, &cell("n")), "0", "a job does not see its caller's uncommitted rows");
    session.run("commit");
}

#[case]
fn a_do_block_launches(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    session.run(
        "do $$ declare parent uuid; begin for i in 1 .. 10 loop \
         select uuid_parent into parent from pg_background_launch_num(format('insert into ran values (%s)', i)); \
         perform pg_background_monitor(parent, false); end loop; end $$",
    );
    assert_eq!(session.value("select count(*) || ' ' || sum(a) from ran"), "10 55");
    assert_eq!(counts(&mut session, "true"), ["succeeded 10"]);
}

#[case]
fn a_procedure_that_commits_launches(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table ran (a int); create procedure p() language plpgsql as $$ begin for i in 1 .. 3 loop \
         perform pg_background_launch_num(format('insert into ran values (%s)', i)); \
         if i % 2 = 0 then rollback; else commit; end if; end loop; end $$",
    );
    session.run("call p()");
    drain(&mut session);
    assert_eq!(counts(&mut session, "true"), ["succeeded 3"]);
    assert_eq!(session.rows("select a from ran order by a"), ["1", "2", "3"]);
}

#[case]
fn a_query_launches_for_each_row(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let rows = session.rows(
        "select i, l.uuid_parent from generate_series(1, 30) i, \
         lateral pg_background_launch_num(format('insert into ran values (%s), insert into ran values (-%s)', i, i)) l",
    );
    assert_eq!(rows.len(), 60);
    drain(&mut session);
    assert_eq!(session.value("select count(*) || ' ' || sum(a) from ran"), "60 0");
    assert_eq!(session.value("select count(distinct uuid_parent) from log_background"), "30");
    // In a select list too.
    assert_eq!(session.rows("select (pg_background_launch_num('select 1, select 2')).uuid_child").len(), 2);
    drain(&mut session);
}

#[case]
fn a_caller_with_any_isolation_level_launches(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a text)");
    for level in ["read committed", "repeatable read", "serializable"] {
        session.run(&format!("begin isolation level {level}; select count(*) from ran"));
        let text = "insert into ran select current_setting('transaction_isolation')";
        let batch = Batch::launch(&mut session, &[text]);
        let states =
            session.rows(&format!("select status, message from pg_background_monitor('{}', false)", batch.parent));
        assert_eq!(states, ["succeeded|∅"], "{level}");
        session.run("commit");
    }
    // The caller's level is its transaction's own.
    assert_eq!(session.rows("table ran"), times("read committed", 3));
}

#[case]
fn a_read_only_caller_launches(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    session.run("begin read only");
    let batch = Batch::launch(&mut session, &["insert into ran values (1)"]);
    batch.succeed(&mut session);
    session.run("rollback");
    assert_eq!(session.rows("table ran"), ["1"]);
}

#[case]
fn a_transaction_that_creates_the_extension_cannot_launch() {
    let cluster = Cluster::start_new(&[]);
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    session.run("begin; create extension pg_background_mgr");
    let error = session.error("select * from pg_background_launch_num('insert into ran values (1)')");
    assert_eq!(error.sqlstate(), "55000");
    assert!(error.hint().is_some_and(|hint| hint.contains("ommit")), "{error}");
    session.run("rollback; begin; create extension pg_background_mgr; commit");
    let batch = Batch::launch(&mut session, &["insert into ran values (2)"]);
    batch.succeed(&mut session);
    assert_eq!(session.rows("table ran"), ["2"]);
}
