//! `log_background`: what it says of each job, who changes it, and that nothing that keeps it from being written fails a job.

use crate::gate::{self, Gate};
use crate::manager::{cell, counts, drain, log, times, wait_at_gate, Batch};
use pg_background_mgr_tests::{case, literal, private_case, wait_for, wait_until, Case, Cluster, Db, Session};
use std::net::{IpAddr, TcpListener, UdpSocket};

pub fn cases() -> Vec<Case> {
    vec![
        // What a row says.
        case!(a_job_that_gave_rows_is_shown_whole),
        case!(a_job_without_rows_is_shown_by_its_tags),
        case!(row_counts_and_tags_are_those_of_the_statements),
        case!(rows_are_kept_as_json),
        case!(values_that_json_has_no_form_for_are_kept),
        case!(columns_of_one_name_are_all_kept),
        case!(a_long_result_is_cut_between_rows),
        case!(a_row_that_does_not_fit_is_left_out),
        case!(the_limit_of_results_is_the_superusers),
        case!(a_million_rows_do_not_fill_the_log),
        case!(a_job_that_failed_is_shown_with_its_error),
        case!(an_error_keeps_each_of_its_parts),
        case!(a_long_text_is_kept_whole),
        case!(times_of_a_job_are_in_order),
        case!(a_running_job_is_shown_with_its_worker),
        case!(a_queued_job_is_shown_without_a_worker),
        case!(the_address_of_a_local_session_is_the_hosts_own),
        private_case!(the_address_of_a_remote_session_is_kept),
        case!(a_log_in_latin1_keeps_letters),
        // Who writes it.
        case!(the_owner_deletes_rows),
        case!(nobody_writes_by_hand),
        case!(a_deleted_row_of_a_job_that_has_not_ended_does_no_harm),
        // With what the job does.
        case!(a_jobs_row_commits_with_its_work),
        case!(explicit_transactions_are_logged),
        case!(an_unfinished_transaction_is_a_failure),
        case!(a_deferred_constraint_fails_the_job),
        case!(commands_outside_transactions_are_logged),
        case!(a_procedure_that_commits_is_logged),
        case!(a_prepared_transaction_is_logged),
        case!(a_read_only_job_is_logged),
        case!(jobs_of_any_isolation_level_are_logged),
        case!(serializable_jobs_do_not_conflict_over_the_log),
        case!(an_empty_text_of_comments_is_logged),
        case!(settings_of_a_job_do_not_disturb_the_log),
        case!(triggers_cannot_be_hung_on_the_log),
        case!(session_replication_role_does_not_disturb_the_log),
        // When it cannot be written.
        case!(a_locked_log_does_not_fail_a_job),
        case!(a_locked_log_does_not_hide_states),
        case!(a_locked_log_does_not_hold_up_jobs_for_ever),
        // Who reads it when.
        case!(no_job_is_lost_while_the_server_lives),
        case!(a_caller_with_an_old_snapshot_sees_the_truth_by_functions),
        // Its size.
        case!(old_rows_are_pruned),
        case!(only_what_has_ended_is_pruned),
        case!(a_null_age_is_refused),
        case!(others_prune_their_own_rows),
        private_case!(old_rows_go_by_themselves),
    ]
}

fn a_job_that_gave_rows_is_shown_whole(db: &Db) {
    let mut session = db.session();
    let text = "select i as n, 'x' || i as t from generate_series(1, 3) i";
    let batch = Batch::launch_json(&mut session, &format!(r#"[{{"query": "{text}", "name": "the name"}}]"#));
    batch.succeed(&mut session);
    let row = batch.log(
        &mut session,
        0,
        "concat_ws('|', status, host(ip_client), user_name, uuid_parent, uuid_child, query, name, attempts, row_count, command_tag)",
    );
    let expected =
        format!("succeeded|127.0.0.1|postgres|{}|{}|{text}|the name|1|3|SELECT 3", batch.parent, batch.children[0]);
    assert_eq!(row, expected);
    let result = r#"result::jsonb = '[{"n": 1, "t": "x1"}, {"n": 2, "t": "x2"}, {"n": 3, "t": "x3"}]'"#;
    assert_eq!(batch.log(&mut session, 0, result), "t");
    let rest =
        "id > 0 and pid > 0 and start_time_exec is not null and end_time_exec is not null and queued_at is not null \
                and epoch is not null and sqlstate is null and message is null and detail is null and hint is null \
                and context is null";
    assert_eq!(batch.log(&mut session, 0, rest), "t");
}

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

fn values_that_json_has_no_form_for_are_kept(db: &Db) {
    let mut session = db.session();
    session.run("create type mood as enum ('sad', 'ok'); create domain positive as int check (value > 0); create type pair as (a int, b text)");
    let text = "select 'NaN'::float8 as f, 'infinity'::timestamptz as t, 'ok'::mood as m, 5::positive as p, (1, 'x')::pair as c, \
                '(1,2)'::point as g, '1 day'::interval as i, 'NaN'::numeric as n, '[1,3)'::int4range as r, pg_sleep(0) as v, \
                'pg_class'::regclass as k";
    let batch = Batch::launch(&mut session, &[text]);
    batch.succeed(&mut session);
    let expected = session.value(&format!("select json_agg(q)::jsonb from ({text}) q"));
    assert_eq!(batch.log(&mut session, 0, "result::jsonb"), expected);
}

fn columns_of_one_name_are_all_kept(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["select 1 as a, 2 as a, 3, 4"]);
    batch.succeed(&mut session);
    let result = batch.log(&mut session, 0, "result");
    for value in 1..=4 {
        assert!(result.contains(&value.to_string()), "{result}");
    }
}

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

fn the_limit_of_results_is_the_superusers(db: &Db) {
    let user = db.role("user", "login");
    let mut session = db.client().user(&user).connect();
    crate::manager::load(&mut session);
    assert_eq!(session.value("show pg_background_mgr.log_result_limit"), "64kB");
    assert_eq!(session.error("set pg_background_mgr.log_result_limit = '1GB'").sqlstate(), "42501");
    for name in ["max_workers", "reserved_workers", "queue_memory_limit", "worker_idle_timeout", "log_retention"] {
        for mut session in [db.client().user(&user).connect(), db.session()] {
            crate::manager::load(&mut session);
            let error = session.error(&format!("set pg_background_mgr.{name} = '100'"));
            assert_eq!(error.sqlstate(), "55P02", "{name}: {error}");
        }
    }
}

fn a_million_rows_do_not_fill_the_log(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["select i, md5(i::text) from generate_series(1, 1000000) i"]);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, "row_count || ' ' || (octet_length(result) <= 65536)"), "1000000 true");
}

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

fn a_long_text_is_kept_whole(db: &Db) {
    let mut session = db.session();
    let text = format!("select length('{}') as n", "ñ, 'x'' ".replace('\'', "''").repeat(20000));
    let batch = Batch::launch(&mut session, &[&text]);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, &cell("n")), "160000");
    assert_eq!(batch.log(&mut session, 0, &format!("query = {}", literal(&text))), "t");
}

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

fn a_running_job_is_shown_with_its_worker(db: &Db) {
    let (mut session, gate) = (db.session(), Gate::close(db.session()));
    let batch = Batch::launch(&mut session, &[gate::WAIT]);
    wait_at_gate(&mut session, 1);
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
    assert_eq!(session.rows(&activity), [format!("pg_background|postgres|t|{}", gate::WAIT)]);
    gate.open();
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, "pid"), pid);
}

fn a_queued_job_is_shown_without_a_worker(db: &Db) {
    let (mut session, gate) = (db.session(), Gate::close(db.session()));
    let batch = Batch::launch_with(&mut session, &[gate::WAIT, "select 2"], r#"{"max_workers": 1}"#);
    wait_at_gate(&mut session, 1);
    let row =
        "status = 'queued' and pid is null and attempts = 0 and start_time_exec is null and end_time_exec is null \
               and queued_at is not null and result is null and query = 'select 2'";
    assert_eq!(batch.log(&mut session, 1, row), "t");
    gate.open();
    batch.succeed(&mut session);
}

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
        "copy (values ('local all all trust'), ('host all all {address}/' || masklen('{address}'::inet) || ' trust')) to {}; \
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
        "update pg_background_log set status = 'failed'",
        "delete from pg_background_log",
        "insert into pg_background_log select * from pg_background_log",
        "truncate pg_background_log",
        "select * from pg_background_log",
        "delete from pg_background_jobs",
        "delete from pg_background_batches",
        "begin; lock table pg_background_log",
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

fn a_deleted_row_of_a_job_that_has_not_ended_does_no_harm(db: &Db) {
    let (mut session, gate) = (db.session(), Gate::close(db.session()));
    session.run("create table ran (a int)");
    let text = format!("{}; insert into ran values (1)", gate::WAIT);
    let batch = Batch::launch_with(&mut session, &[&text, "insert into ran values (2)"], r#"{"max_workers": 1}"#);
    wait_at_gate(&mut session, 1);
    session.run("delete from log_background");
    gate.open();
    wait_until("the jobs' rows", || session.value("select count(*) from ran") == "2");
    let live = "select count(*) from pg_background_jobs where database = current_database() and status in ('queued', 'running')";
    wait_until("nothing is left", || session.value(live) == "0");
    let states =
        session.rows(&format!("select distinct status from log_background where uuid_parent = '{}'", batch.parent));
    assert!(states.iter().all(|state| state == "succeeded"), "{states:?}");
}

fn a_jobs_row_commits_with_its_work(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table ran (a int)");
    for number in 0..100 {
        let batch = Batch::launch(&mut session, &[&format!("insert into ran values ({number})")]);
        // One snapshot has either both or none.
        let both = format!(
            "select (select count(*) from ran where a = {number}) || ' ' || (select status from log_background where uuid_child = '{}')",
            batch.children[0]
        );
        wait_until("the end of the job", || {
            let seen = watcher.value(&both);
            assert!(["0 queued", "0 running", "1 succeeded"].contains(&seen.as_str()), "{seen}");
            seen == "1 succeeded"
        });
    }
}

fn explicit_transactions_are_logged(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    for (text, state, result) in [
        ("begin; insert into ran values (1); commit", "succeeded", "BEGIN\nINSERT 0 1\nCOMMIT"),
        ("begin; insert into ran values (2); rollback", "succeeded", "BEGIN\nINSERT 0 1\nROLLBACK"),
        ("begin; insert into ran values (3); commit; begin; insert into ran values (4); commit", "succeeded", "BEGIN\nINSERT 0 1\nCOMMIT\nBEGIN\nINSERT 0 1\nCOMMIT"),
        ("insert into ran values (5); commit; insert into ran values (6); rollback", "succeeded", ""),
        ("begin; insert into ran values (7); savepoint s; insert into ran values (8); rollback to s; commit and chain; commit", "succeeded", ""),
        ("begin; insert into ran values (9); commit; select 1 / 0", "failed", ""),
        ("begin; insert into ran values (10); select 1 / 0; commit", "failed", ""),
    ] {
        let batch = Batch::launch(&mut session, &[text]);
        assert_eq!(batch.finish(&mut session), [state], "{text}");
        if !result.is_empty() {
            assert_eq!(batch.log(&mut session, 0, "result"), result, "{text}");
        }
    }
    assert_eq!(session.rows("select a from ran order by a"), ["1", "3", "4", "5", "7", "9"]);
}

fn an_unfinished_transaction_is_a_failure(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let texts = [
        "begin; insert into ran values (1)",
        "select 2",
        "begin; insert into ran values (3); select 1 / 0",
        "select 4",
    ];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 1}"#);
    assert_eq!(batch.finish(&mut session), ["failed", "succeeded", "failed", "succeeded"]);
    assert_eq!(batch.column(&mut session, "sqlstate"), ["25000", "∅", "22012", "∅"]);
    assert_eq!(session.rows("table ran"), [""; 0]);
}

fn a_deferred_constraint_fails_the_job(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int unique deferrable initially deferred)");
    let texts =
        ["insert into t values (1), (1)", "begin; insert into t values (2), (2); commit", "insert into t values (3)"];
    let batch = Batch::launch(&mut session, &texts);
    assert_eq!(batch.finish(&mut session), ["failed", "failed", "succeeded"]);
    assert_eq!(batch.column(&mut session, "sqlstate"), ["23505", "23505", "∅"]);
    assert_eq!(session.rows("table t"), ["3"]);
}

fn commands_outside_transactions_are_logged(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select i as a from generate_series(1, 100) i");
    let texts = [
        "vacuum t",
        "vacuum full t",
        "create index concurrently i on t (a)",
        "reindex table t",
        "analyze",
        "vacuum (analyze) t",
    ];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    // Following it would keep the index waiting for the follower's snapshot.
    drain(&mut session);
    batch.succeed(&mut session);
    assert_eq!(
        batch.column(&mut session, "result"),
        ["VACUUM", "VACUUM", "CREATE INDEX", "REINDEX", "ANALYZE", "VACUUM"]
    );
    assert_eq!(session.rows("select indisvalid from pg_index where indexrelid = 'i'::regclass"), ["t"]);
    let batch = Batch::launch(
        &mut session,
        &["vacuum t; select 1", "begin; vacuum t; commit", "create index concurrently j on nothing (a)"],
    );
    assert_eq!(batch.finish(&mut session), ["failed", "failed", "failed"]);
    assert_eq!(batch.column(&mut session, "sqlstate"), ["25001", "25001", "42P01"]);
}

fn a_procedure_that_commits_is_logged(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table ran (a int); create procedure p(n int) language plpgsql as $$ begin for i in 1 .. n loop \
         insert into ran values (i); if i % 2 = 0 then commit; else rollback; end if; end loop; \
         if n > 5 then raise 'too many'; end if; end $$",
    );
    let batch = Batch::launch_with(&mut session, &["call p(4)", "call p(7)"], r#"{"mode": "sequential"}"#);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    assert_eq!(batch.log(&mut session, 0, "result"), "CALL");
    assert_eq!(batch.log(&mut session, 1, "message"), "too many");
    assert_eq!(session.rows("table ran"), ["2", "4", "2", "4", "6"]);
}

fn a_prepared_transaction_is_logged(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let name = &db.name;
    let text = format!("begin; insert into ran values (1); prepare transaction '{name}'");
    let batch = Batch::launch(&mut session, &[&text]);
    batch.succeed(&mut session);
    assert_eq!(session.value("select count(*) from ran"), "0");
    let batch = Batch::launch(&mut session, &[&format!("commit prepared '{name}'")]);
    batch.succeed(&mut session);
    assert_eq!(session.rows("table ran"), ["1"]);
}

fn a_read_only_job_is_logged(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int); set default_transaction_read_only = on");
    let texts = [
        "select count(*) as n from ran",
        "insert into ran values (1)",
        "begin; select 1; commit",
        "begin read write; insert into ran values (2); commit",
        "select 1 / 0",
    ];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed", "succeeded", "succeeded", "failed"]);
    assert_eq!(batch.log(&mut session, 1, "sqlstate"), "25006");
    assert_eq!(batch.log(&mut session, 0, &cell("n")), "0");
    assert_eq!(session.rows("table ran"), ["2"]);
    session.run("reset default_transaction_read_only");
    let batch = Batch::launch(
        &mut session,
        &["set transaction read only; select 1 as a", "begin read only; select 2 as a; commit"],
    );
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, &cell("a")), ["1", "2"]);
}

fn jobs_of_any_isolation_level_are_logged(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a text)");
    for level in ["repeatable read", "serializable", "serializable read only deferrable"] {
        let texts = [
            format!("begin isolation level {level}; select count(*) from ran; commit"),
            format!("set transaction isolation level {level}; select 1"),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        Batch::launch(&mut session, &texts).succeed(&mut session);
    }
    session.run("set default_transaction_isolation = serializable");
    let batch = Batch::launch(
        &mut session,
        &["insert into ran values (current_setting('transaction_isolation'))", "select 1 / 0"],
    );
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    assert_eq!(session.rows("table ran"), ["serializable"]);
}

/// Each reads and writes a table of its own: no conflict is possible but over the log.
fn serializable_jobs_do_not_conflict_over_the_log(db: &Db) {
    let mut session = db.session();
    session.run("set default_transaction_isolation = serializable");
    session.run("do $$ begin for i in 100 .. 199 loop execute format('create table t%s (a int primary key)', i); end loop; end $$");
    let texts: Vec<String> =
        (100..200).map(|number| format!("insert into t{number} select count(*) from t{number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for _ in 0..3 {
        session.run("do $$ begin for i in 100 .. 199 loop execute format('delete from t%s', i); end loop; end $$");
        Batch::launch(&mut session, &texts).succeed(&mut session);
    }
}

fn an_empty_text_of_comments_is_logged(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["-- nothing", ";"]);
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, "coalesce(row_count, 0)"), ["0", "0"]);
}

fn settings_of_a_job_do_not_disturb_the_log(db: &Db) {
    let mut session = db.session();
    session.run(
        "create schema evil; create table evil.log_background (a int); create table evil.pg_background_log (a int); \
         create function evil.now() returns timestamptz language plpgsql as $$ begin raise 'a shadow was used'; end $$",
    );
    let texts = [
        "set search_path = evil, pg_catalog; select 1 as a",
        "set datestyle = 'German'; set intervalstyle = iso_8601; set timezone = 'Asia/Tokyo'; set bytea_output = escape; select 1 as a",
        "set standard_conforming_strings = off; set escape_string_warning = on; select 1 as a",
        "select 1 as a; set lock_timeout = '1ms'; set statement_timeout = '1ms'",
        "set row_security = off; set client_encoding = 'LATIN1'; select 1 as a",
        "set extra_float_digits = -15; set xmloption = document; set array_nulls = off; set transform_null_equals = on; select 1 as a",
        "set enable_seqscan = off; set enable_indexscan = off; set enable_bitmapscan = off; select 1 as a",
        "set default_transaction_isolation = serializable; set default_transaction_deferrable = on; select 1 as a",
        "set client_min_messages = debug5; set log_min_messages = debug5; set log_error_verbosity = verbose; select 1 as a",
        "set session_replication_role = replica; select 1 as a",
        "set synchronous_commit = off; select 1 as a",
        "set quote_all_identifiers = on; set plan_cache_mode = force_generic_plan; set jit_above_cost = 0; select 1 as a",
    ];
    let batch = Batch::launch(&mut session, &texts);
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, &cell("a")), times("1", texts.len()));
    session.run("set search_path = evil, pg_catalog");
    let batch = Batch::launch(&mut session, &["select 1 as a"]);
    batch.succeed(&mut session);
    let stopped = session.rows(&format!("select was from public.pg_background_stop('{}')", batch.parent));
    assert_eq!(stopped, ["succeeded"]);
    session.run("select * from public.pg_background_jobs");
    session.run("select * from public.pg_background_batches");
}

fn triggers_cannot_be_hung_on_the_log(db: &Db) {
    let user = db.role("user", "login");
    db.session().run(&format!("grant create on schema public to {user}"));
    let mut weak = db.client().user(&user).connect();
    weak.run("create function trap() returns trigger language plpgsql as $$ begin raise 'trapped'; end $$");
    for target in ["log_background", "pg_background_log"] {
        let error =
            weak.error(&format!("create trigger t before update on {target} for each row execute function trap()"));
        assert!(["42501", "42809"].contains(&error.sqlstate().as_str()), "{error}");
        let error = weak.error(&format!("create rule r as on update to {target} do instead nothing"));
        assert_eq!(error.sqlstate(), "42501", "{error}");
    }
}

fn session_replication_role_does_not_disturb_the_log(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int); set session_replication_role = replica");
    let batch = Batch::launch(&mut session, &["insert into ran values (1)", "select 1 / 0"]);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
}

/// The names of the table that is behind the view.
const LOCK: &str = "begin; lock table pg_background_log in access exclusive mode";

fn a_locked_log_does_not_fail_a_job(db: &Db) {
    let (mut session, mut locker, mut watcher, gate) =
        (db.session(), db.session(), db.session(), Gate::close(db.session()));
    session.run("create table ran (a int)");
    let text = format!("{}; insert into ran values (1)", gate::WAIT);
    let failing = format!("{}; select 1 / 0", gate::WAIT);
    let batch = Batch::launch(&mut session, &[&text, &failing]);
    wait_at_gate(&mut session, 2);
    locker.run(LOCK);
    gate.open();
    wait_until("the job's work", || watcher.value("select count(*) from ran") == "1");
    locker.run("rollback");
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    let rows = batch.column(&mut session, "end_time_exec is not null and pid is not null and attempts = 1");
    assert_eq!(rows, ["t", "t"]);
    assert_eq!(batch.log(&mut session, 1, "sqlstate"), "22012");
    assert_eq!(session.value("select count(*) from ran"), "1");
}

fn a_locked_log_does_not_hide_states(db: &Db) {
    let (mut session, mut locker, gate) = (db.session(), db.session(), Gate::close(db.session()));
    session.run("create table ran (a int)");
    let texts = [format!("{}; select 1", gate::WAIT), format!("{}; select 1 / 0", gate::WAIT)];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = Batch::launch(&mut session, &texts);
    wait_at_gate(&mut session, 2);
    locker.run(LOCK);
    // The log itself cannot be read; what the server knows without it can.
    session.run("set statement_timeout = '20s'");
    let now = format!("select status from pg_background_monitor('{}', false, '0') order by 1", batch.parent);
    assert_eq!(session.rows(&now), ["running", "running"]);
    gate.open();
    let followed = format!("select status from pg_background_monitor('{}', false) order by 1", batch.parent);
    assert_eq!(session.rows(&followed), ["failed", "succeeded"]);
    locker.run("rollback");
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
}

fn a_locked_log_does_not_hold_up_jobs_for_ever(db: &Db) {
    let (mut session, mut locker, mut watcher) = (db.session(), db.session(), db.session());
    session.run("create table ran (a int)");
    let gate = Gate::close(db.session());
    let text = format!("{}; insert into ran values (1)", gate::WAIT);
    let batch = Batch::launch_with(&mut session, &times(&text, 6), r#"{"max_workers": 2}"#);
    wait_at_gate(&mut session, 2);
    locker.run(LOCK);
    gate.open();
    wait_until("the jobs' work", || watcher.value("select count(*) from ran") == "6");
    // Nobody waits for the lock but those who read.
    locker.run("rollback");
    batch.succeed(&mut session);
    let waiting = "select count(*) from pg_locks where relation = 'pg_background_log'::regclass and not granted \
                   and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(watcher.value(waiting), "0");
}

/// A reader's snapshot may be older than what the server knows of a job, and newer.
fn no_job_is_lost_while_the_server_lives(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table ran (a int)");
    let texts = times("insert into ran values (1)", 500);
    let batch = Batch::launch(&mut session, &texts);
    let of_batch = format!("where uuid_parent = '{}'", batch.parent);
    wait_until("the end of all jobs", || {
        let look = format!("select count(*), count(*) filter (where status = 'lost') from log_background {of_batch}");
        assert_eq!(watcher.rows(&look), ["500|0"]);
        let look =
            format!("select count(*), count(*) filter (where status = 'lost') from pg_background_jobs {of_batch}");
        assert_eq!(watcher.rows(&look), ["500|0"]);
        let look = format!(
            "select total, lost, queued + running + succeeded, queued + running from pg_background_batches {of_batch}"
        );
        let seen = watcher.value(&look);
        assert!(seen.starts_with("500|0|500|"), "{seen}");
        seen.ends_with("|0")
    });
    assert_eq!(session.value("select count(*) from ran"), "500");
}

fn a_caller_with_an_old_snapshot_sees_the_truth_by_functions(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    for level in ["repeatable read", "serializable"] {
        session.run(&format!("begin isolation level {level}; select count(*) from pg_class"));
        let batch = Batch::launch(&mut other, &["select 1", "select 1 / 0"]);
        let followed =
            session.rows(&format!("select status from pg_background_monitor('{}', false) order by 1", batch.parent));
        assert_eq!(followed, ["failed", "succeeded"], "{level}");
        let own = Batch::launch(&mut session, &["select 2"]);
        let followed =
            session.rows(&format!("select status, query from pg_background_monitor('{}', false)", own.parent));
        assert_eq!(followed, ["succeeded|select 2"], "{level}");
        let stopped = session.rows(&format!("select was, now from pg_background_stop('{}')", own.parent));
        assert_eq!(stopped, ["succeeded|succeeded"], "{level}");
        session.run("commit");
    }
}

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

fn only_what_has_ended_is_pruned(db: &Db) {
    let (mut session, gate) = (db.session(), Gate::close(db.session()));
    let batch = Batch::launch_with(&mut session, &["select 1", gate::WAIT, "select 3"], r#"{"mode": "sequential"}"#);
    wait_at_gate(&mut session, 1);
    assert_eq!(session.value("select pg_background_prune('0')"), "1");
    assert_eq!(counts(&mut session, "true"), ["queued 1", "running 1"]);
    gate.open();
    batch.wait(&mut session);
    assert_eq!(counts(&mut session, "true"), ["succeeded 2"]);
}

fn a_null_age_is_refused(db: &Db) {
    let mut session = db.session();
    assert_eq!(session.error("select pg_background_prune(null)").sqlstate(), "22004");
}

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

/// Also while there are always jobs.
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

#[track_caller]
fn assert_some_jobs(session: &mut Session) {
    Batch::launch(session, &["select 1", "select 2"]).wait(session);
}
