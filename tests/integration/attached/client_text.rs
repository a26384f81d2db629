//! Statements, result sets and tags.

use crate::support::compare_with_client::assert_like_client;
use pg_background_mgr_tests::env::{env, forced_parallel};
use pg_background_mgr_tests::{case, literal, wait_until, Db};

#[case]
fn statements_see_each_others_work(db: &Db) {
    let text =
        "insert into t select generate_series(1, 10); update t set a = a * 2 where a > 5; delete from t where a = 20; \
                select count(*), sum(a) from t";
    assert_like_client(db, "create table t (a int)", text, "select count(*), sum(a) from t");
    db.session().run("create table u (a int)");
    assert_eq!(db.session().job("insert into u values (1); select a + 1 from u", "n int"), ["2"]);
}

#[case]
fn a_volatile_function_sees_the_statements_before_it(db: &Db) {
    let setup =
        "create table t (a int); create function total() returns bigint language sql as 'select count(*) from t'";
    assert_like_client(db, setup, "insert into t values (1), (2); select total(); insert into t values (3)", "table t");
}

#[case]
fn a_syntax_error_anywhere_runs_nothing(db: &Db) {
    let text = "insert into t values (1); commit; selec 2";
    assert_like_client(db, "create table t (a int)", text, "table t");
    let mut session = db.session();
    session.run("create table u (a int)");
    let error = session.job_error("insert into u values (1); commit; selec 2");
    assert_eq!(error.brief(), ("42601".to_owned(), "syntax error at or near \"selec\"".to_owned()));
    assert_eq!(session.value("select count(*) from u"), "0");
}

#[case]
fn an_unknown_table_in_a_later_statement_undoes_the_earlier_ones(db: &Db) {
    assert_like_client(db, "create table t (a int)", "insert into t values (1); select * from missing", "table t");
}

#[case]
fn a_table_made_in_the_text_is_used_in_the_text(db: &Db) {
    let text = "create table made (a int primary key, b text); insert into made values (1, 'x'); \
                alter table made add c int default 5; select * from made";
    assert_like_client(db, "", text, "table made");
}

#[case]
fn empty_statements_between_others_do_not_count(db: &Db) {
    assert_like_client(db, "", ";;select 1;; ;", "");
    assert_like_client(db, "create table t (a int)", "; insert into t values (1) ; -- last\n ; /* done */", "table t");
}

#[case]
fn comment_only_text_gives_no_rows(db: &Db) {
    let mut session = db.session();
    for text in ["-- nothing", "/* nothing /* nested */ */", ";", " ; ; ", "--\n;"] {
        assert_eq!(session.job(text, "result text"), [""; 0], "{text}");
        let pid = session.launch(text);
        assert_eq!(session.rows(&format!("select pg_background_result({pid})")), [""; 0], "{text}");
    }
}

#[case]
fn empty_text_is_refused(db: &Db) {
    let mut session = db.session();
    for text in ["", " ", "\n\t  \r\n"] {
        let error = session.error(&format!("select pg_background_launch({})", literal(text)));
        assert_eq!(error.brief(), ("22023".to_owned(), "SQL text must not be empty".to_owned()));
    }
    let error = session.error("select pg_background_launch(null)");
    assert_eq!(error.brief(), ("22004".to_owned(), "SQL text must not be null".to_owned()));
}

#[case]
fn the_last_result_set_is_the_result(db: &Db) {
    assert_like_client(db, "", "select 1, 'a'; select 2; select 'x', 'y', 3", "");
    assert_like_client(db, "create table t (a int)", "select 7; insert into t values (1)", "table t");
    assert_like_client(db, "", "values (1), (2); create table made (); show search_path; drop table made", "");
}

#[case]
fn the_last_result_set_counts_although_empty(db: &Db) {
    let mut session = db.session();
    assert_eq!(session.job("select 1; select 'x'::text where false", "c text"), [""; 0]);
}

#[case]
fn statements_without_rows_give_their_tags(db: &Db) {
    let mut session = db.session();
    let text = "create table t (a int); insert into t values (1), (2); update t set a = 3 where a = 1; delete from t";
    assert_eq!(session.job(text, "result text"), ["CREATE TABLE", "INSERT 0 2", "UPDATE 1", "DELETE 2"]);
}

#[case]
fn tags_are_those_of_a_client(db: &Db) {
    let setup = "create table t (a int primary key); create function f() returns int language sql as 'select 1'";
    let texts = [
        "create table made (a int)",
        "create table made as select generate_series(1, 5)",
        "select 1 as a into made",
        "insert into t values (1), (2)",
        "insert into t values (1) on conflict do nothing",
        "update t set a = a",
        "delete from t",
        "truncate t",
        "alter table t add b int",
        "create index on t (a)",
        "create materialized view made as select 1",
        "comment on table t is 'x'",
        "grant select on t to public",
        "set work_mem = '5MB'",
        "reset work_mem",
        "discard plans",
        "do $$ begin null; end $$",
        "prepare p as select 1",
        "lock table t; select 1; commit",
        "begin; insert into t values (1); commit",
        "begin; rollback",
        "begin; savepoint s; release s; commit",
        "drop table t",
        "analyze t",
        "checkpoint",
        "create role nobody_at_all; drop role nobody_at_all",
        "load 'plpgsql'",
        "refresh materialized view missing",
        "drop function f()",
        "copy t from program 'echo 5'",
        "copy t to program 'cat > /dev/null'",
    ];
    for text in texts {
        assert_like_client(db, setup, text, "");
    }
}

#[case]
fn returning_gives_rows(db: &Db) {
    let setup = "create table t (a int, b text); insert into t values (1, 'x'), (2, 'y')";
    assert_like_client(db, setup, "insert into t values (3, 'z'), (4, null) returning a, b", "table t");
    assert_like_client(db, setup, "update t set a = a + 10 returning *", "table t");
    assert_like_client(db, setup, "delete from t where a = 1 returning b", "table t");
    let moved = "with gone as (delete from t returning a) insert into t select a * 100 from gone returning a";
    assert_like_client(db, setup, moved, "table t");
    assert_like_client(db, setup, "insert into t values (5) returning a; delete from t", "table t");
}

#[case(since = 15)]
fn merge_gives_its_tag(db: &Db) {
    let setup = "create table t (a int primary key, b int); insert into t values (1, 1)";
    let text = "merge into t using (values (1), (2)) s (a) on s.a = t.a \
                when matched then update set b = 5 when not matched then insert values (s.a, 7)";
    assert_like_client(db, setup, text, "table t");
    db.session().run("create table public.m (a int)");
    let text = "merge into m using (values (1), (2)) s (a) on s.a = m.a when not matched then insert values (s.a)";
    assert_eq!(db.session().job(text, "result text"), ["MERGE 2"]);
}

#[case(since = 17)]
fn merge_returning_gives_rows(db: &Db) {
    let setup = "create table t (a int primary key, b int); insert into t values (1, 1)";
    let text = "merge into t using (values (1), (2)) s (a) on s.a = t.a when matched then update set b = 5 \
                when not matched then insert values (s.a, 7) returning merge_action(), t.*";
    assert_like_client(db, setup, text, "table t");
}

#[case]
fn rules_and_triggers_leave_the_tag_of_the_statement(db: &Db) {
    let setup = "create table t (a int); create table log (a int); \
                 create rule logged as on insert to t do also insert into log values (new.a); \
                 create rule shown as on update to t do instead select 'instead' as word; insert into t values (1)";
    assert_like_client(db, setup, "insert into t values (8), (9)", "table log");
    assert_like_client(db, setup, "update t set a = 2", "table t");
}

#[case]
fn explain_gives_its_lines(db: &Db) {
    let setup = "create table t (a int primary key)";
    assert_like_client(db, setup, "explain (costs off) select * from t where a = 1", "");
    assert_like_client(db, setup, "explain (costs off, format json) select * from t", "");
    assert_like_client(db, setup, "explain (costs off) insert into t values (1)", "table t");
}

#[case]
fn explain_analyze_executes(db: &Db) {
    let options = "analyze, costs off, timing off, summary off, buffers off";
    let text = format!("explain ({options}) insert into t select 1");
    assert_like_client(db, "create table t (a int)", &text, "table t");
}

#[case]
fn show_gives_its_value(db: &Db) {
    assert_like_client(db, "set work_mem = '7MB'", "show work_mem", "");
    assert_like_client(db, "", "show transaction_isolation", "");
}

#[case]
fn prepared_statements_work_within_the_text(db: &Db) {
    let text = "prepare p (int) as select $1 * 2; prepare q as insert into t values (1); execute q; execute p (21)";
    assert_like_client(db, "create table t (a int)", text, "table t");
    assert_like_client(
        db,
        "",
        "prepare p as select 3 as a; create table made as execute p; deallocate p",
        "table made",
    );
    assert_like_client(db, "", "prepare p as select 1; deallocate p; execute p", "");
}

#[case]
fn prepared_statements_end_with_the_job(db: &Db) {
    let mut session = db.session();
    session.job("prepare p as select 1", "result text");
    assert_eq!(session.job_error("execute p").brief().0, "26000");
    assert_eq!(session.error("execute p").sqlstate(), "26000");
}

#[case]
fn a_prepared_statement_of_the_launcher_is_not_there(db: &Db) {
    let mut session = db.session();
    session.run("prepare p as select 1");
    assert_eq!(session.job_error("execute p").message(), "prepared statement \"p\" does not exist");
}

#[case]
fn cursors_work_within_the_text(db: &Db) {
    let text = "declare c cursor for select generate_series(1, 10); fetch 2 from c; move 3 from c; fetch 4 from c";
    assert_like_client(db, "", text, "");
    assert_like_client(db, "", "declare c cursor for select 1", "");
    assert_like_client(db, "", "declare c cursor with hold for select 1", "");
    let held = "begin; declare c cursor with hold for select 5; commit; fetch c";
    assert_like_client(db, "", held, "");
}

#[case]
fn a_function_without_a_result_reads_as_an_empty_text(db: &Db) {
    let mut session = db.session();
    assert_eq!(session.job("select pg_sleep(0)", "nothing text"), [""]);
    let pid = session.launch("select pg_sleep(0), 1");
    assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(\"\",1)"]);
    // One written in SQL gives a null.
    session.run("create function nothing() returns void language sql as 'select 1'");
    let expected = session.rows("select nothing(), 1");
    assert_eq!(session.job("select nothing(), 1", "nothing text, one int"), expected);
}

#[case]
fn a_text_with_every_kind_of_quote_arrives_whole(db: &Db) {
    let text = concat!(
        r#"select 'it''s', E'tab\there', $q$dollar ' " $x$ $q$, U&'\0441\0442\043e', "c "" d" "#,
        r#"from (select 1 "c "" d") s; -- "end'"#
    );
    assert_like_client(db, "", text, "");
    assert_like_client(db, "", "select '\u{1f600} ünïcödé \u{4e2d}\u{6587}', $$\\$$, '\\'\n\t", "");
}

#[case]
fn a_text_of_a_megabyte_arrives_whole(db: &Db) {
    let mut session = db.session();
    let filler = "0123456789abcdef".repeat(65_536);
    let text = format!("select length('{filler}'), md5('{filler}')");
    let expected = session.rows(&text);
    assert_eq!(session.job(&text, "length int, md5 text"), expected);
}

#[case]
fn parallel_plans_launch_workers(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table t as select generate_series(1, 200000) as a; analyze t; set max_parallel_workers_per_gather = 2; \
         set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0",
    );
    let query = "explain (analyze, costs off, timing off, summary off) select sum(a) from t";
    let plan = session.job(query, "line text");
    assert!(plan.iter().any(|line| line.contains("Workers Launched: 2")), "{plan:?}");
    assert_eq!(session.job("select sum(a) from t", "n bigint"), ["20000100000"]);
}

#[case]
fn a_do_block_runs(db: &Db) {
    assert_like_client(
        db,
        "create table t (a int)",
        "do $$begin insert into t values (1); raise notice 'in'; end$$",
        "table t",
    );
}

#[case]
fn notify_reaches_listeners_with_the_workers_pid(db: &Db) {
    let mut listener = db.session();
    listener.run("listen news");
    let mut session = db.session();
    let pid = session.launch("notify news, 'one'; select pg_notify('news', 'two')");
    session.result(pid, "nothing text");
    for payload in ["one", "two"] {
        let told = listener.notification();
        assert_eq!((told.pid, told.channel.as_str(), told.payload.as_str()), (pid, "news", payload));
    }
}

#[case]
fn notify_of_a_failed_job_reaches_nobody(db: &Db) {
    let mut listener = db.session();
    listener.run("listen news");
    let mut session = db.session();
    session.job_error("notify news, 'lost'; select 1 / 0");
    session.job("notify news, 'kept'", "result text");
    assert_eq!(listener.notification().payload, "kept");
}

/// The server refuses it there since 13; before, it must not leave a listener behind.
#[case]
fn listen_is_as_the_server_has_it_for_background_processes(db: &Db) {
    let mut session = db.session();
    if env().version >= 13 {
        let error = session.job_error("listen news");
        assert_eq!(error.brief(), ("0A000".to_owned(), "cannot execute LISTEN within a background process".to_owned()));
    } else {
        assert_eq!(session.job("listen news; notify news", "result text"), ["LISTEN", "NOTIFY"]);
    }
    assert_eq!(session.job("select count(*) from pg_listening_channels()", "n bigint"), ["0"]);
}

#[case]
fn advisory_locks_end_with_the_job(db: &Db) {
    let mut session = db.session();
    session.job("select pg_advisory_lock(5)", "nothing text");
    wait_until("the lock is free", || session.holds("select pg_try_advisory_lock(5)"));
}

#[case]
fn current_query_is_the_jobs_text(db: &Db) {
    assert_like_client(db, "", "select 1; select current_query() -- all of it", "");
}

#[case]
fn a_job_of_a_job_works(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let inner = "insert into t values (1) returning a";
    let outer = format!("select a + 1 from pg_background_result(pg_background_launch('{inner}')) as (a int)");
    assert_eq!(session.job(&outer, "n int"), ["2"]);
    assert_eq!(session.value("select count(*) from t"), "1");
}

#[case]
fn a_text_of_thousands_of_statements_runs(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let text = "insert into t values (1);".repeat(3000);
    let pid = session.launch(&text);
    let query = format!("select count(*), min(tag), max(tag) from pg_background_result({pid}) as (tag text)");
    assert_eq!(session.rows(&query), ["3000|INSERT 0 1|INSERT 0 1"]);
    assert_eq!(session.value("select count(*) from t"), "3000");
    assert_eq!(session.job(&"select 1;".repeat(3000), "n int"), ["1"]);
}

#[case]
fn an_endless_nesting_of_parentheses_fails_as_for_a_client(db: &Db) {
    let mut session = db.session();
    let text = format!("select {}1{}", "(".repeat(30_000), ")".repeat(30_000));
    assert_eq!(session.job_error(&text).brief(), session.error(&text).brief());
    assert_eq!(session.job("select 5", "n int"), ["5"]);
}

#[case]
fn event_triggers_fire(db: &Db) {
    let setup = "drop event trigger if exists watch; create table seen (tag text); \
                 create function watch() returns event_trigger language plpgsql as \
                 $$ begin insert into stage.seen values (tg_tag); end $$; \
                 create event trigger watch on ddl_command_start when tag in ('CREATE TABLE') execute function watch()";
    assert_like_client(db, setup, "create table made (a int); create view v as select 1", "table seen");
}

#[case]
fn a_job_works_where_parallelism_is_forced(db: &Db) {
    let forced = forced_parallel();
    let setup = format!("set {forced} = on; create table t as select generate_series(1, 100) as a");
    assert_like_client(db, &setup, "select sum(a) from t", "");
    let mut session = db.session();
    session.run(&format!("set {forced} = on"));
    let query = "select n + 1 from pg_background_result(pg_background_launch('select 4')) as (n int)";
    assert_eq!(session.rows(query), ["5"]);
}

#[case]
fn large_objects_work(db: &Db) {
    let mut session = db.session();
    assert_eq!(session.job("select lo_from_bytea(4711, 'bytes')", "id oid"), ["4711"]);
    assert_eq!(session.value("select convert_from(lo_get(4711), 'UTF8')"), "bytes");
}
