//! Surroundings of the extension: a caller that catches errors, memberships, other libraries, other kinds of shared
//! memory, a schema that is renamed.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{crash, drain, wait_at_barrier, Batch, LOCK_LOG};
use pg_background_mgr_tests::{case, wait_until, Cluster, Db};

/// The log is written and read with other rights, and with a search path of its own.
#[case]
fn a_caught_error_leaves_the_caller_who_and_where_he_was(db: &Db) {
    let plain = db.role("plain", "login");
    let mut admin = db.session();
    admin.run(&format!(
        "create schema own authorization {plain}; create table caught (sqlstate text); \
         grant insert on caught to {plain}; create function own.work(call text) returns text language plpgsql as $$ \
         begin execute call; return 'none'; exception when query_canceled or others then return sqlstate; end $$"
    ));
    let mut session = db.client().user(&plain).connect();
    let batch = Batch::launch(&mut session, &["select 1", "select 1 / 0"]);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    let calls = [
        "select pg_background_prune('0')".to_owned(),
        format!("select * from pg_background_retry('{}')", batch.parent),
        format!("select * from pg_background_stop('{}')", batch.parent),
        format!("select * from pg_background_monitor('{}', p_timeout => '1s')", batch.parent),
        "select * from log_background".to_owned(),
        "select * from pg_background_jobs".to_owned(),
        "select count(*) from pg_background_launch_num(array['select 2', null])".to_owned(),
        "select * from pg_background_result(pg_background_launch('select 3')) as (n text, m text)".to_owned(),
    ];
    let here = "concat_ws(' ', current_user, session_user, current_setting('search_path'), current_setting('role'), \
                current_setting('session_replication_role'), current_setting('lock_timeout'))";
    let mut states: Vec<String> = Vec::new();
    for (limit, name) in [("lock_timeout", "lock"), ("statement_timeout", "statement")] {
        for (number, call) in calls.iter().enumerate() {
            let mut locker = db.session();
            locker.run(LOCK_LOG);
            session.run("set search_path = own, public; begin");
            let before = session.value(&format!("select {here}"));
            session.run(&format!("set local {limit} = '300ms'"));
            let caught = session.ask(&format!("select work($call${call}$call$)"));
            session.run(&format!("set local {limit} = 0"));
            assert!(caught.error.is_none(), "{call}: {caught:?}");
            states.extend(caught.last_rows().expect("a row").text_rows());
            assert_eq!(session.value(&format!("select {here}")), before, "{call}");
            assert_eq!(session.value("select work('select rolpassword from pg_authid')"), "42501", "{call}");
            session.run(&format!("create table {name}_{number} (a int)"));
            locker.run("rollback");
            session.run("commit; reset all");
            let owner = format!("select tableowner, schemaname from pg_tables where tablename = '{name}_{number}'");
            assert_eq!(session.rows(&owner), [format!("{plain}|own")], "{call}");
        }
    }
    // The errors were there, also those of what runs with other rights.
    for sqlstate in ["55P03", "57014", "22004", "42804"] {
        assert!(states.iter().any(|state| state == sqlstate), "{sqlstate}: {states:?}");
    }
    drain(&mut session);
}

#[case(since = 16)]
fn a_member_that_does_not_inherit_sees_nothing(db: &Db) {
    let owner = db.role("owner", "login");
    let mut admin = db.session();
    let mut session = db.client().user(&owner).connect();
    let barrier = Barrier::close(db.session());
    let batch = Batch::launch(&mut session, &["select 1 / 0", barrier::WAIT]);
    wait_at_barrier(&mut admin, 1);
    wait_until("the job that fails", || batch.states(&mut session)[0] == "failed");
    for (name, options, may_set) in [
        ("admin", "admin true, inherit false, set false", false),
        ("setter", "admin false, inherit false, set true", true),
        ("heir", "admin false, inherit true, set false", false),
    ] {
        let member = db.role(name, "login");
        admin.run(&format!("grant {owner} to {member} with {options}"));
        let mut session = db.client().user(&member).connect();
        let seen = "select count(*) from log_background";
        let parent = &batch.parent;
        if name == "heir" {
            assert_eq!(session.value(seen), "2");
            assert_eq!(session.error(&format!("set role {owner}")).sqlstate(), "42501");
            continue;
        }
        for view in ["log_background", "pg_background_jobs", "pg_background_batches"] {
            assert_eq!(session.value(&format!("select count(*) from {view}")), "0", "{name}");
        }
        for call in ["stop", "retry", "monitor"] {
            let error = session.error(&format!("select * from pg_background_{call}('{parent}')"));
            assert_eq!(error.sqlstate(), "42704", "{name}: {error}");
        }
        assert_eq!(session.value("select pg_background_prune('0')"), "0");
        if may_set {
            session.run(&format!("set role {owner}"));
            assert_eq!(session.value(seen), "2");
        } else {
            assert_eq!(session.error(&format!("set role {owner}")).sqlstate(), "42501");
        }
    }
    barrier.open();
    drain(&mut session);
}

#[case]
fn a_schema_is_renamed_while_jobs_wait() {
    let cluster = Cluster::start_new(&[("pg_background_mgr.max_workers", "1")]);
    let (mut session, mut admin) = (cluster.session("postgres"), cluster.session("postgres"));
    admin.run("create schema bg; create extension pg_background_mgr schema bg; create table ran (a int)");
    let barrier = Barrier::close(cluster.session("postgres"));
    let launch = |schema: &str, text: &str| {
        format!(
            "select uuid_parent from {schema}.pg_background_launch_num(array[{text}, 'insert into ran values (1)'])"
        )
    };
    let waits = format!("'{}'", barrier::WAIT.replace('\'', "''"));
    let first = session.value(&format!("{} limit 1", launch("bg", &waits)));
    wait_at_barrier(&mut admin, 1);
    let reader = session.value("select bg.pg_background_launch('select 7')");
    let odd = "\"Bg \"\"of\"\" ünï; 'x'\"";
    admin.run(&format!("alter schema bg rename to {odd}"));
    let second = session.value(&format!("{} limit 1", launch(odd, "'select 1 / 0'")));
    barrier.open();
    for (parent, states) in [(&first, ["succeeded", "succeeded"]), (&second, ["failed", "succeeded"])] {
        let followed = format!("select status from {odd}.pg_background_monitor('{parent}', false) order by uuid_child");
        assert_eq!(session.rows(&followed), states);
    }
    assert_eq!(session.rows(&format!("select * from {odd}.pg_background_result({reader}) as (n int)")), ["7"]);
    let again = format!("select count(*) from {odd}.pg_background_retry('{second}')");
    assert_eq!(session.value(&again), "1");
    let log = format!("select status, count(*) from {odd}.log_background group by 1 order by 1");
    wait_until("the retried job", || session.rows(&log) == ["failed|1", "succeeded|3"]);
    assert_eq!(session.value("select count(*) from ran"), "2");
    let mut session = crash(&cluster);
    assert_eq!(session.rows(&log), ["failed|1", "succeeded|3"]);
    assert_eq!(session.value(&format!("select {odd}.pg_background_prune('0')")), "4");
}

/// Hooks are called one by the other, in whatever order the libraries are loaded.
#[case(library = "pg_stat_statements")]
fn preloaded_with_other_libraries_it_works() {
    for libraries in
        ["pg_background_mgr, pg_stat_statements, auto_explain", "auto_explain, pg_stat_statements, pg_background_mgr"]
    {
        let cluster = Cluster::start_with_extension(&[
            ("shared_preload_libraries", libraries),
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_nested_statements", "on"),
            ("auto_explain.log_analyze", "on"),
            ("pg_stat_statements.track", "all"),
        ]);
        let mut session = cluster.session("postgres");
        session.run("create extension pg_stat_statements; create table ran (a int)");
        for _ in 0..2 {
            let mark = cluster.log_mark();
            let pid = session.launch("insert into ran values (1); select count(*) from ran where a = 1");
            session.result(pid, "n bigint");
            cluster.wait_log(mark, "the plan", |line| line.pid == pid && line.text.contains("Seq Scan on ran"));
            let batch = Batch::launch(&mut session, &["insert into ran values (2)", "select 1 / 0", "vacuum ran"]);
            assert_eq!(batch.finish(&mut session), ["succeeded", "failed", "succeeded"]);
            let unread = session.launch("select 8");
            session.run("discard all");
            let error = session.error(&format!("select * from pg_background_result({unread}) as (n int)"));
            assert_eq!(error.sqlstate(), "42704");
            let calls = "select calls from pg_stat_statements where query ~ '^insert into ran values' order by 1";
            assert_eq!(session.rows(calls), ["2"]);
            session = crash(&cluster);
            session.run("select pg_stat_statements_reset(); truncate ran");
            assert_eq!(batch.states(&mut session), ["succeeded", "failed", "succeeded"]);
        }
    }
}

/// Other cases have servers with those of files and of POSIX.
#[case]
fn each_kind_of_shared_memory_works() {
    for kind in ["sysv", "posix", "mmap"] {
        let cluster = Cluster::start_with_extension(&[
            ("dynamic_shared_memory_type", kind),
            ("pg_background_mgr.worker_idle_timeout", "1h"),
        ]);
        let mut session = cluster.session("postgres");
        session.run("create table ran (a int)");
        for round in 1..=2 {
            let rows = "select count(*), sum(length(t)) from pg_background_result(pg_background_launch(\
                        'select repeat(''x'', 100) from generate_series(1, 100000)')) as (t text)";
            assert_eq!(session.rows(rows), ["100000|10000000"], "{kind}");
            let texts: Vec<String> = (1..=300).map(|number| format!("insert into ran values ({number})")).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            Batch::launch(&mut session, &texts).succeed(&mut session);
            assert_eq!(
                session.value("select count(distinct a) || ' ' || count(*) from ran"),
                format!("300 {}", 300 * round)
            );
            let barrier = Barrier::close(cluster.session("postgres"));
            let lost = Batch::launch(&mut session, &[barrier::WAIT]);
            wait_at_barrier(&mut session, 1);
            session = crash(&cluster);
            drop(barrier);
            assert_eq!(lost.states(&mut session), ["lost"], "{kind}");
        }
    }
}
