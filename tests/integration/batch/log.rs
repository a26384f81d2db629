//! `log_background`: what it says of each job, who changes it, and its size.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{
    cell, counts, drain, fill_log, log, set_server, times, wait_at_barrier, Batch, FREEZE_LOG,
};
use pg_background_mgr_tests::{case, literal, wait_for, wait_until, Cluster, Db, Session};
use std::net::{IpAddr, TcpListener, UdpSocket};

#[case]
fn a_job_that_gave_rows_is_shown_whole(db: &Db) {
    let mut session = db.session();
    let text = "select i as n, 'x' || i as t from generate_series(1, 3) i";
    let batch = Batch::launch_json(&mut session, &format!(r#"[{{"query": "{text}", "name": "the name"}}]"#));
    batch.succeed(&mut session);
    let row = batch.log(
        &mut session,
        0,
        "concat_ws('|', status, host(ip_client), user_name, uuid_parent, uuid_child, query, name, attempts, row_count, \
         command_tag)",
    );
    let expected =
        format!("succeeded|127.0.0.1|postgres|{}|{}|{text}|the name|1|3|SELECT 3", batch.parent, batch.children[0]);
    assert_eq!(row, expected);
    let result = r#"result::jsonb = '[{"n": 1, "t": "x1"}, {"n": 2, "t": "x2"}, {"n": 3, "t": "x3"}]'"#;
    assert_eq!(batch.log(&mut session, 0, result), "t");
    let rest =
        "id > 0 and pid > 0 and start_time_exec is not null and end_time_exec is not null and queued_at is not null \
                and elapsed is not null and sqlstate is null and message is null and detail is null and hint is null \
                and context is null";
    assert_eq!(batch.log(&mut session, 0, rest), "t");
}

#[case]
fn a_job_without_rows_is_shown_by_its_tags(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let texts = [
        "insert into t values (1), (2)",
        "create table u (a int); drop table u; update t set a = a where a = 1",
        "vacuum t",
    ];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, "result"), ["INSERT 0 2", "CREATE TABLE\nDROP TABLE\nUPDATE 1", "VACUUM"]);
    assert_eq!(batch.column(&mut session, "command_tag"), ["INSERT 0 2", "UPDATE 1", "VACUUM"]);
}

#[case]
fn row_counts_and_tags_are_those_of_the_statements(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    for (text, count, tag) in [
        ("insert into t select generate_series(1, 7)", "7", "INSERT 0 7"),
        ("update t set a = a + 1 where a > 5", "2", "UPDATE 2"),
        ("delete from t where a = 1", "1", "DELETE 1"),
        ("select * from t where a < 4", "2", "SELECT 2"),
        ("select * from t where false", "0", "SELECT 0"),
        ("insert into t values (100) returning a", "1", "INSERT 0 1"),
        ("select 1; select 2 union all select 3", "2", "SELECT 2"),
        ("create table u as select * from t limit 3", "3", "SELECT 3"),
    ] {
        let batch = Batch::launch(&mut session, &[text]);
        batch.succeed(&mut session);
        assert_eq!(batch.log(&mut session, 0, "row_count || '|' || command_tag"), format!("{count}|{tag}"), "{text}");
    }
}

#[case]
fn rows_are_kept_as_json(db: &Db) {
    let mut session = db.session();
    let text =
        "select 1 as i, 2.50 as n, true as b, null as z, 'a \"b\" \\ c' || chr(10) || 'ñ日' as t, array[1, 2] as a, \
                row(1, 'x') as r, '{\"k\": [1]}'::jsonb as j, '2001-02-03'::date as d, '\\x01ff'::bytea as y";
    let batch = Batch::launch(&mut session, &[text]);
    batch.succeed(&mut session);
    let expected = session.value(&format!("select json_agg(q)::jsonb from ({text}) q"));
    assert_eq!(batch.log(&mut session, 0, "result::jsonb"), expected);
    for text in ["select 1 where false", "select from generate_series(1, 2)"] {
        let batch = Batch::launch(&mut session, &[text]);
        batch.succeed(&mut session);
        let expected = session.value(&format!("select coalesce(json_agg(q), '[]')::jsonb from ({text}) q"));
        assert_eq!(batch.log(&mut session, 0, "result::jsonb"), expected, "{text}");
    }
    // Rows of the last statement that gives some.
    let batch = Batch::launch(&mut session, &["select 1 as a; select 2 as a; create table t (a int)"]);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, &cell("a")), "2");
    assert_eq!(batch.log(&mut session, 0, "row_count || ' ' || command_tag"), "1 CREATE TABLE");
}

#[case]
fn values_that_json_has_no_form_for_are_kept(db: &Db) {
    let mut session = db.session();
    session.run(
        "create type mood as enum ('sad', 'ok'); create domain positive as int check (value > 0); \
         create type pair as (a int, b text)",
    );
    let text = "select 'NaN'::float8 as f, 'infinity'::timestamptz as t, 'ok'::mood as m, 5::positive as p, \
                (1, 'x')::pair as c, '(1,2)'::point as g, '1 day'::interval as i, 'NaN'::numeric as n, \
                '[1,3)'::int4range as r, pg_sleep(0) as v, \
                'pg_class'::regclass as k";
    let batch = Batch::launch(&mut session, &[text]);
    batch.succeed(&mut session);
    let expected = session.value(&format!("select json_agg(q)::jsonb from ({text}) q"));
    assert_eq!(batch.log(&mut session, 0, "result::jsonb"), expected);
}

#[case]
fn columns_of_one_name_are_all_kept(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["select 1 as a, 2 as a, 3, 4"]);
    batch.succeed(&mut session);
    let result = batch.log(&mut session, 0, "result");
    for value in 1..=4 {
        assert!(result.contains(&value.to_string()), "{result}");
    }
}

/// The log is read by clients of any encoding, and by others than who wrote it.
#[case]
fn lines_of_another_encoding_are_refused(db: &Db) {
    let mut session = db.session();
    let texts = ["copy (select 'plain') to stdout", "copy (select 'gr\u{fc}n') to stdout (encoding 'LATIN1')"];
    let batch = Batch::launch(&mut session, &texts);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    assert_eq!(batch.log(&mut session, 0, "result"), r#"[{"copy":"plain"}]"#);
    assert_eq!(batch.log(&mut session, 1, "sqlstate"), "22021");
    assert_eq!(batch.log(&mut session, 1, "result is null"), "t");
}

#[case]
fn a_long_result_is_cut_between_rows(db: &Db) {
    let mut session = db.session();
    session.run("set pg_background_mgr.log_result_limit = '4kB'");
    let batch = Batch::launch(&mut session, &["select i, repeat('ñ', 40) as t from generate_series(1, 1000) i"]);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, "row_count"), "1000");
    let kept =
        "octet_length(result) <= 4096 and octet_length(result) > 3500 and jsonb_array_length(result::jsonb) > 10";
    assert_eq!(batch.log(&mut session, 0, kept), "t");
    let whole = "(select bool_and(r -> 'i' = to_jsonb(n) and length(r ->> 't') = 40) \
                 from jsonb_array_elements(result::jsonb) with ordinality as e (r, n))";
    assert_eq!(batch.log(&mut session, 0, whole), "t");
}

#[case]
fn a_row_that_does_not_fit_is_left_out(db: &Db) {
    let mut session = db.session();
    session.run("set pg_background_mgr.log_result_limit = '1kB'");
    let batch = Batch::launch(
        &mut session,
        &[
            "select repeat('x', 5000) as t",
            "select case i when 2 then repeat('x', 5000) else 'y' end as t from generate_series(1, 3) i",
        ],
    );
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, "result || ' ' || row_count"), "[] 1");
    // What comes after it would look as if it came next.
    assert_eq!(batch.log(&mut session, 1, "(result::jsonb = '[{\"t\": \"y\"}]') || ' ' || row_count"), "true 3");
}

/// A result says that it was cut also as long as the log cannot be written.
#[case]
fn what_is_cut_says_so(db: &Db) {
    let (mut session, mut locker) = (db.session(), db.session());
    session.run("set pg_background_mgr.log_result_limit = '1kB'");
    let texts = [
        "select i from generate_series(1, 1000) as i",
        "select 1",
        "copy (select repeat('x', 2000)) to stdout",
        "select 2 where false",
        "do $$ begin raise exception '%', repeat('m', 70000); end $$",
        "do $$ begin raise exception 'm' using detail = repeat('d', 70000); end $$",
        "do $$ begin raise exception 'm' using hint = repeat('h', 70000); end $$",
        "select 1 / 0",
        "vacuum pg_namespace",
    ];
    let cut = ["t", "f", "t", "f", "t", "t", "t", "f", "f"];
    for lock in [None, Some(FREEZE_LOG)] {
        if let Some(lock) = lock {
            locker.run(lock);
        }
        let batch = Batch::launch(&mut session, &texts);
        batch.wait(&mut session);
        assert_eq!(batch.column(&mut session, "result_truncated"), cut, "{lock:?}");
        if lock.is_some() {
            assert_eq!(batch.written(&mut session), [""; 0]);
            locker.run("rollback");
            wait_until("the rows", || {
                batch.written(&mut session).iter().filter(|state| *state != "queued").count() == 9
            });
            assert_eq!(batch.column(&mut session, "result_truncated"), cut, "written later");
        }
        let longest = "greatest(length(message), length(detail), length(hint), length(context)) <= 65536";
        assert!(batch.column(&mut session, longest).iter().all(|is_short| is_short != "f"));
    }
}

#[case]
fn the_limit_of_results_is_the_superusers(db: &Db) {
    let user = db.role("user", "login");
    let mut session = db.client().user(&user).connect();
    crate::support::batch::load(&mut session);
    assert_eq!(session.value("show pg_background_mgr.log_result_limit"), "64kB");
    assert_eq!(session.error("set pg_background_mgr.log_result_limit = '1GB'").sqlstate(), "42501");
    for name in ["max_workers", "reserved_workers", "queue_memory_limit", "worker_idle_timeout", "log_retention"] {
        for mut session in [db.client().user(&user).connect(), db.session()] {
            crate::support::batch::load(&mut session);
            let error = session.error(&format!("set pg_background_mgr.{name} = '100'"));
            assert_eq!(error.sqlstate(), "55P02", "{name}: {error}");
        }
    }
}

#[case]
fn a_million_rows_do_not_fill_the_log(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["select i, md5(i::text) from generate_series(1, 1000000) i"]);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, "row_count || ' ' || (octet_length(result) <= 65536)"), "1000000 true");
}

#[case]
fn a_job_that_failed_is_shown_with_its_error(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int primary key)");
    let batch = Batch::launch(&mut session, &["insert into t values (1); insert into t values (1)"]);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    let told = batch.log(&mut session, 0, "concat_ws('|', sqlstate, message, detail)");
    assert_eq!(told, "23505|duplicate key value violates unique constraint \"t_pkey\"|Key (a)=(1) already exists.");
    let rest = "pid > 0 and start_time_exec <= end_time_exec and attempts = 1 and row_count is null";
    assert_eq!(batch.log(&mut session, 0, rest), "t");
    assert_eq!(session.value("select count(*) from t"), "0");
}

#[case]
fn an_error_keeps_each_of_its_parts(db: &Db) {
    let mut session = db.session();
    session.run(
        "create function fail() returns void language plpgsql as $$ begin raise exception 'the message: ñ' \
         using errcode = 'X0X0X', detail = 'the detail: 日本', hint = 'the hint'; end $$",
    );
    let batch = Batch::launch(&mut session, &["select fail()"]);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    let told = batch.log(&mut session, 0, "concat_ws('|', sqlstate, message, detail, hint, context)");
    assert_eq!(told, "X0X0X|the message: ñ|the detail: 日本|the hint|PL/pgSQL function fail() line 1 at RAISE");
}

#[case]
fn a_long_text_is_kept_whole(db: &Db) {
    let mut session = db.session();
    let text = format!("select length('{}') as n", "ñ, 'x'' ".replace('\'', "''").repeat(20000));
    let batch = Batch::launch(&mut session, &[&text]);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, &cell("n")), "160000");
    assert_eq!(batch.log(&mut session, 0, &format!("query = {}", literal(&text))), "t");
}

#[case]
fn times_of_a_job_are_in_order(db: &Db) {
    let mut session = db.session();
    let before = session.value("select clock_timestamp()");
    let batch = Batch::launch(&mut session, &times("select pg_sleep(0.01)", 5));
    batch.succeed(&mut session);
    let in_order = format!(
        "'{before}' <= queued_at and queued_at <= start_time_exec \
         and end_time_exec - start_time_exec >= interval '0.01 s' and end_time_exec <= clock_timestamp()"
    );
    assert_eq!(batch.column(&mut session, &in_order), times("t", 5));
}

#[case]
fn a_running_job_is_shown_with_its_worker(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut session, 1);
    let pid = session.value(
        "select pid from pg_locks where locktype = 'advisory' and not granted \
         and database = (select oid from pg_database where datname = current_database())",
    );
    let row =
        "concat_ws('|', status, pid, attempts, start_time_exec is not null, end_time_exec is null, result is null)";
    assert_eq!(batch.log(&mut session, 0, row), format!("running|{pid}|1|t|t|t"));
    let activity = format!(
        "select backend_type, usename, datname = current_database(), query from pg_stat_activity where pid = {pid}"
    );
    assert_eq!(session.rows(&activity), [format!("pg_background|postgres|t|{}", barrier::WAIT)]);
    barrier.open();
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, "pid"), pid);
}

#[case]
fn a_queued_job_is_shown_without_a_worker(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch_with(&mut session, &[barrier::WAIT, "select 2"], r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut session, 1);
    let row =
        "status = 'queued' and pid is null and attempts = 0 and start_time_exec is null and end_time_exec is null \
               and queued_at is not null and result is null and query = 'select 2'";
    assert_eq!(batch.log(&mut session, 1, row), "t");
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn the_address_of_a_local_session_is_the_hosts_own(db: &Db) {
    let mut session = db.session();
    let inner = "select 1 from pg_background_launch_num('select 2')";
    Batch::launch(&mut session, &[inner]).succeed(&mut session);
    drain(&mut session);
    let shown = session.rows("select distinct host(ip_client), user_name from log_background");
    assert_eq!(shown, ["127.0.0.1|postgres"]);
}

/// An address of this machine that is not the one of local sessions, on which the server can listen.
fn address() -> Option<IpAddr> {
    let own = || {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        // Nothing is sent: only the address that this machine would use is wanted.
        socket.connect("192.0.2.1:9").ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    let addresses = [Some(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])), own()];
    let is_free = |address: &IpAddr| TcpListener::bind((*address, 5432)).is_ok();
    addresses.into_iter().flatten().find(|address| *address != IpAddr::from([127, 0, 0, 1]) && is_free(address))
}

#[case]
fn the_address_of_a_remote_session_is_kept() {
    let Some(address) = address() else {
        eprintln!("no address to listen on");
        return;
    };
    let address = address.to_string();
    let cluster = Cluster::start_with_extension(&[("listen_addresses", &address)]);
    let mut session = cluster.session("postgres");
    // From nowhere but the same machine.
    let rules = cluster.data().join("pg_hba.conf");
    session.run(&format!(
        "copy (values ('local all all trust'), ('host all all {address}/' || masklen('{address}'::inet) || ' trust')) \
         to {}; \
         select pg_reload_conf()",
        literal(&rules.display().to_string())
    ));
    let launch = "select uuid_child from pg_background_launch_num('select 1', p_exec_type => 'sync')";
    let arguments = ["--host", &address, "-At", "-c", launch];
    let child = wait_for("a connection over TCP", || {
        let output = cluster.psql("postgres", &arguments);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    });
    assert_eq!(log(&mut session, &child, "status || ' ' || host(ip_client)"), format!("succeeded {address}"));
}

#[case]
fn a_log_in_latin1_keeps_letters(db: &Db) {
    let name = format!("{}_latin1", db.name);
    let mut admin = db.session();
    admin.run(&format!("create database {name} template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"));
    let mut session = db.cluster.session(&name);
    session.run("create extension pg_background_mgr");
    let jobs =
        r#"[{"query": "select 'café' as a", "name": "größe"}, "do $$ begin raise 'müde' using detail = 'ñ'; end $$"]"#;
    let batch = Batch::launch_json(&mut session, jobs);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    assert_eq!(
        batch.log(&mut session, 0, &format!("concat_ws('|', query, name, {})", cell("a"))),
        "select 'café' as a|größe|café"
    );
    assert_eq!(batch.log(&mut session, 1, "concat_ws('|', message, detail)"), "müde|ñ");
    drop(session);
    let remove = format!("drop database {name}");
    wait_until("nobody uses the database", || admin.ask(&remove).error.is_none());
}

#[case]
fn the_owner_deletes_rows(db: &Db) {
    let user = db.role("user", "login");
    let (mut session, mut weak) = (db.session(), db.client().user(&user).connect());
    let first = Batch::launch(&mut session, &["select 1", "select 2"]);
    first.succeed(&mut session);
    Batch::launch(&mut weak, &["select 3"]).succeed(&mut weak);
    let delete = format!("delete from log_background where uuid_child = '{}'", first.children[0]);
    assert_eq!(session.run(&delete).tags(), ["DELETE 1"]);
    assert_eq!(session.rows("select trim(query) from log_background order by id"), ["select 2", "select 3"]);
    assert_eq!(session.run("delete from log_background where query = 'select 3'").tags(), ["DELETE 1"]);
    session.run("delete from log_background");
    assert_eq!(session.value("select count(*) from log_background"), "0");
    assert_eq!(session.value("select count(*) from pg_background_jobs where database = current_database()"), "0");
    Batch::launch(&mut session, &["select 4"]).succeed(&mut session);
}

#[case]
fn nobody_writes_by_hand(db: &Db) {
    let user = db.role("user", "login");
    let mut weak = db.client().user(&user).connect();
    let batch = Batch::launch(&mut weak, &["select 1"]);
    batch.succeed(&mut weak);
    let writes = [
        "update log_background set status = 'failed'",
        "delete from log_background",
        "insert into log_background (status, query) values ('succeeded', 'x')",
        "truncate log_background",
        "update background_mgr.log set status = 'failed'",
        "delete from background_mgr.log",
        "insert into background_mgr.log select * from background_mgr.log",
        "truncate background_mgr.log",
        "select * from background_mgr.log",
        "delete from pg_background_jobs",
        "delete from pg_background_batches",
        "begin; lock table background_mgr.log",
    ];
    for text in writes {
        let error = weak.error(text);
        assert!(["42501", "55000", "42809"].contains(&error.sqlstate().as_str()), "{text}: {error}");
        weak.run("rollback");
    }
    assert_eq!(batch.states(&mut weak), ["succeeded"]);
    // Nor by a view that a superuser may write.
    let mut session = db.session();
    for text in &writes[2..4] {
        assert!(session.ask(text).error.is_some(), "{text}");
    }
    assert_eq!(batch.states(&mut session), ["succeeded"]);
}

#[case]
fn rows_of_jobs_that_have_not_ended_are_not_deleted(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int)");
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    let text = format!("{}; insert into ran values (1)", barrier::WAIT);
    let batch = Batch::launch_with(&mut session, &[&text, "insert into ran values (2)"], r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut session, 1);
    wait_until("its rows", || batch.written(&mut session).len() == 2);
    assert_eq!(session.run("delete from log_background").tags(), ["DELETE 1"]);
    assert_eq!(session.run("delete from log_background").tags(), ["DELETE 0"]);
    assert_eq!(batch.states(&mut session), ["running", "queued"]);
    assert_eq!(session.value("select count(*) from pg_background_jobs where database = current_database()"), "2");
    barrier.open();
    batch.succeed(&mut session);
    assert_eq!(session.value("select count(*) from ran"), "2");
    wait_until("the final rows", || batch.written(&mut session) == ["succeeded", "succeeded"]);
    assert_eq!(session.run("delete from log_background").tags(), ["DELETE 2"]);
}

/// A plan that joins the log with itself, made for the few rows that it once had, would take an hour.
#[case]
fn any_number_of_rows_is_deleted_whatever_is_known_of_them(db: &Db) {
    let mut session = db.session();
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    let many = "background_mgr.log, generate_series(1, 40000) as i";
    fill_log(&mut session, many, &[("uuid_child", "md5(i::text)::uuid")]);
    session.run("update pg_class set reltuples = 0 where oid = 'background_mgr.log'::regclass");
    session.run("set statement_timeout = '60s'");
    assert_eq!(session.run("delete from log_background").tags(), ["DELETE 40000"]);
    assert_eq!(session.value("select count(*) from background_mgr.log"), "0");
}

#[case]
fn old_rows_are_pruned(db: &Db) {
    let mut session = db.session();
    let old = Batch::launch(&mut session, &["select 1", "select 1 / 0"]);
    old.wait(&mut session);
    assert_eq!(session.value("select pg_background_prune('1 hour')"), "0");
    let border = session.value("select clock_timestamp()");
    let young = Batch::launch(&mut session, &["select 3"]);
    young.succeed(&mut session);
    assert_eq!(session.value(&format!("select pg_background_prune(clock_timestamp() - '{border}')")), "2");
    assert_eq!(session.rows("select query from log_background"), ["select 3"]);
    assert_eq!(session.value("select pg_background_prune('0')"), "1");
    assert_eq!(session.value("select count(*) from log_background"), "0");
}

#[case]
fn only_what_has_ended_is_pruned(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch_with(&mut session, &["select 1", barrier::WAIT, "select 3"], r#"{"mode": "sequential"}"#);
    wait_at_barrier(&mut session, 1);
    assert_eq!(session.value("select pg_background_prune('0')"), "1");
    assert_eq!(counts(&mut session, "true"), ["queued 1", "running 1"]);
    barrier.open();
    batch.wait(&mut session);
    assert_eq!(counts(&mut session, "true"), ["succeeded 2"]);
}

#[case]
fn a_bad_age_is_refused(db: &Db) {
    let mut session = db.session();
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    assert_eq!(session.error("select pg_background_prune(null)").sqlstate(), "22004");
    // Who writes it means the past, and would lose everything.
    let error = session.error("select pg_background_prune('-1 day')");
    assert_eq!(error.brief(), ("22023".to_owned(), "age must not be negative".to_owned()));
    assert_eq!(session.value("select count(*) from log_background"), "1");
}

#[case]
fn others_prune_their_own_rows(db: &Db) {
    let user = db.role("user", "login");
    let (mut session, mut weak) = (db.session(), db.client().user(&user).connect());
    let mine = Batch::launch(&mut session, &["select 1"]);
    mine.succeed(&mut session);
    Batch::launch(&mut weak, &["select 2", "select 3"]).succeed(&mut weak);
    assert_eq!(weak.value("select pg_background_prune('0')"), "2");
    assert_eq!(weak.value("select pg_background_prune('0')"), "0");
    assert_eq!(log(&mut session, &mine.children[0], "status"), "succeeded");
    Batch::launch(&mut weak, &["select 4"]).succeed(&mut weak);
    assert_eq!(session.value("select pg_background_prune('0')"), "2");
}

/// Old rows go also while there are always jobs.
#[case]
fn old_rows_go_by_themselves() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.log_retention", "1s")]);
    let mut session = cluster.session("postgres");
    let first = Batch::launch(&mut session, &times("select 1", 20));
    first.succeed(&mut session);
    let gone = format!("select count(*) from log_background where uuid_parent = '{}'", first.parent);
    wait_until("the end of old rows", || {
        assert_some_jobs(&mut session);
        session.value(&gone) == "0"
    });
}

#[case]
fn any_number_of_old_rows_goes_by_itself() {
    let cluster = Cluster::start_with_extension(&[]);
    let mut session = cluster.session("postgres");
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    let old = "now() - interval '2 h'";
    fill_log(
        &mut session,
        "background_mgr.log, generate_series(1, 45000) as i",
        &[("uuid_child", "md5(i::text)::uuid"), ("queued_at", old), ("end_time_exec", old)],
    );
    set_server(&cluster, &mut session, "pg_background_mgr.log_retention", "10s");
    assert_some_jobs(&mut session);
    let old = "select count(*) from background_mgr.log where queued_at < now() - interval '1 h'";
    wait_until("the end of old rows", || session.value(old) == "0");
    assert_some_jobs(&mut session);
}

/// Each worker leaves when it has done what there is.
#[case]
fn old_rows_go_although_no_worker_stays() {
    let cluster = Cluster::start_with_extension(&[
        ("pg_background_mgr.worker_idle_timeout", "0"),
        ("pg_background_mgr.log_retention", "1h"),
    ]);
    let mut session = cluster.session("postgres");
    assert_some_jobs(&mut session);
    let old = "now() - interval '2 h'";
    fill_log(&mut session, "background_mgr.log", &[("queued_at", old), ("end_time_exec", old)]);
    let old = "select count(*) from background_mgr.log where queued_at < now() - interval '1 h'";
    assert_eq!(session.value(old), "2");
    assert_some_jobs(&mut session);
    wait_until("the end of old rows", || session.value(old) == "0");
}

#[track_caller]
fn assert_some_jobs(session: &mut Session) {
    Batch::launch(session, &["select 1", "select 2"]).wait(session);
}

#[case]
fn an_open_prune_of_an_emptied_log_is_in_nobodys_way(db: &Db) {
    let (mut session, mut pruner) = (db.session(), db.session());
    let batch = Batch::launch(&mut session, &["select 1"]);
    batch.succeed(&mut session);
    wait_until("the row is written", || batch.written(&mut session) == ["succeeded"]);
    session.run("refresh materialized view background_mgr.log with no data");
    pruner.run("begin");
    assert_eq!(pruner.value("select pg_background_prune('0')"), "0");
    let batch = Batch::call(&mut session, "pg_background_launch_num(array['select 1'])");
    wait_until("the log is there again", || {
        let reply = session.ask("select status from background_mgr.log");
        reply.error.is_none() && reply.last_rows().is_some_and(|rows| rows.text_rows() == ["succeeded"])
    });
    assert_eq!(batch.states(&mut session), ["succeeded"]);
    pruner.run("rollback");
}
