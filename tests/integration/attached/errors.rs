//! Errors of jobs: complete, on the job's text, once in the server's log.

use crate::support::compare_with_client::assert_like_client;
use pg_background_mgr_tests::{case, wait_for, wait_until, Db, FOREVER};
use std::path::Path;

#[case]
fn violated_constraints_name_everything(db: &Db) {
    let setup = "create table p (a int primary key); \
                 create table t (a int constraint small check (a < 10), b text not null default '', \
                 c int constraint known references p, d int constraint single unique, e int, \
                 constraint apart exclude using btree (e with =)); \
                 create domain word as text constraint short check (length(value) < 3); create table w (a word); \
                 insert into t (a, d, e) values (1, 1, 1)";
    let texts = [
        "insert into t (a) values (10)",
        "insert into t (b) values (null)",
        "insert into t (c) values (7)",
        "insert into t (d) values (1)",
        "insert into t (e) values (1)",
        "select 'long'::word",
        "insert into w values ('long')",
        "insert into p values (1), (1)",
        "drop table p",
        "drop type word",
    ];
    for text in texts {
        assert_like_client(db, setup, text, "select count(*) from t");
    }
    let mut session = db.session();
    session.run("create table public.q (a int constraint small check (a < 10))");
    let error = session.job_error("insert into q values (11)");
    let fields: Vec<_> = "CstnMD".chars().map(|letter| error.field(letter).unwrap_or_default()).collect();
    let message = "new row for relation \"q\" violates check constraint \"small\"";
    assert_eq!(fields, ["23514", "public", "q", "small", message, "Failing row contains (11)."]);
}

/// The place in the server's source, as for a client.
#[case]
fn an_error_says_where_it_was_raised(db: &Db) {
    let mut session = db.session();
    for text in ["select 1 / 0", "select * from nowhere", "selct", "do $$ begin raise 'x'; end $$"] {
        let (own, job) = (session.error(text), session.job_error(text));
        for letter in ['F', 'L', 'R'] {
            let place = own.field(letter);
            assert!(place.is_some(), "{text}: {own:?}");
            assert_eq!(job.field(letter), place, "{text}: {letter}");
        }
    }
}

#[case]
fn raised_fields_arrive_all(db: &Db) {
    let text = "do $$ begin raise exception 'the message: %', 'ünï' using errcode = 'ZX123', detail = 'two\nlines', \
                hint = 'a \"hint\"', column = 'col', constraint = 'con', datatype = 'typ', table = 'tab', \
                    schema = 'sch'; end $$";
    assert_like_client(db, "", text, "");
    let error = db.session().job_error(text);
    let fields: Vec<_> = "VCMDHcndts".chars().map(|letter| error.field(letter).unwrap_or_default()).collect();
    assert_eq!(
        fields,
        ["ERROR", "ZX123", "the message: ünï", "two\nlines", "a \"hint\"", "col", "con", "typ", "tab", "sch"]
    );
    assert_eq!(error.context().as_deref(), Some("PL/pgSQL function inline_code_block line 1 at RAISE"));
}

const NESTED: &str = "create function inner_one(n int) returns int language plpgsql as $$ begin return 1 / n; end $$; \
    create function middle_one(n int) returns int language sql as 'select inner_one(n) + 1'; \
    create function outer_one(n int) returns int language plpgsql as $$ declare r int; begin \
    execute 'select middle_one($1)' into r using n; return r; end $$";

#[case]
fn the_context_of_nested_functions_arrives(db: &Db) {
    assert_like_client(db, NESTED, "select outer_one(0)", "");
    assert_like_client(db, NESTED, "do $$ begin perform outer_one(0); end $$", "");
    let mut session = db.session();
    session.run(NESTED);
    let context = session.job_error("select outer_one(0)").context().unwrap_or_default();
    assert!(
        context.contains("inner_one(integer) line 1 at RETURN")
            && context.contains("outer_one(integer) line 1 at EXECUTE"),
        "{context}"
    );
}

#[case]
fn positions_are_on_the_jobs_text(db: &Db) {
    let texts = [
        "select missing from pg_am",
        "select * from missing_table",
        "selec 1",
        "select 1 +",
        "insert into pg_am (nothing) values (1)",
        "select 'x'::int",
        "select 1 where 'a'",
        "create table t (a missing_type)",
        "select missing_function(1)",
        "select '\\' from\n\n\n t t t t",
        "\n\n  select\n missing",
    ];
    for text in texts {
        assert_like_client(db, "", text, "");
    }
    let error = db.session().job_error("select missing from pg_am");
    assert_eq!(error.position(), None, "it would be taken for one in the launcher's text");
    assert_eq!(error.internal_position().as_deref(), Some("8"));
    assert_eq!(error.internal_query().as_deref(), Some("select missing from pg_am"));
}

#[case]
fn positions_count_characters(db: &Db) {
    assert_like_client(db, "", "select 'ünïcödé \u{4e2d}\u{6587} \u{1f600}', missing", "");
    let error = db.session().job_error("select 'ü', missing");
    assert_eq!(error.internal_position().as_deref(), Some("13"));
}

#[case]
fn positions_inside_functions_stay_on_the_functions_text(db: &Db) {
    let setup = "set check_function_bodies = off; \
                 create function broken() returns int language plpgsql as $$ begin return (select missing from pg_am); \
                 end $$; \
                 create function broken_sql() returns int language sql as 'select missing from pg_am'";
    assert_like_client(db, setup, "select 1; select broken()", "");
    assert_like_client(db, setup, "select broken_sql()", "");
    assert_like_client(db, setup, "do $$ begin execute 'select 1 +'; end $$", "");
    assert_like_client(db, setup, "create function f() returns int language sql as 'select missing'", "");
}

#[case]
fn an_error_of_a_later_statement_points_into_the_whole_text(db: &Db) {
    let text = "create table t (a int); insert into t values (1); select b from t";
    assert_like_client(db, "", text, "");
    let error = db.session().job_error(text);
    assert_eq!(error.internal_position().as_deref(), Some("58"));
    assert_eq!(error.internal_query().as_deref(), Some(text));
}

#[case]
fn errors_of_every_phase_are_the_clients(db: &Db) {
    let setup = "create table t (a int primary key); insert into t values (1); create view v as select 1 as a; \
                 create function stable_writer() returns int language plpgsql stable as $$ begin \
                 insert into t values (2); return 1; end $$";
    let texts = [
        "select 1; select 1 / 0; select 2",
        "select 10 / (a - 1) from t",
        "select cast('300' as \"char\"), '99999999999'::int",
        "insert into v values (1)",
        "select stable_writer()",
        "alter table t add a int",
        "create table t ()",
        "drop table missing",
        "explain (nonsense) select 1",
        "set work_mem = 'much'",
        "set nonsense.is.fine = 1; set nonsense = 1",
        "execute missing",
        "fetch missing",
        "call missing()",
        "do language missing 'x'",
        "select $1",
        "select * from generate_series(1, 3) for update",
        "prepare transaction 'outside'",
        "vacuum missing",
        "create index concurrently on missing (a)",
        "grant select on missing to public",
        "select array[1,2] || array['x']",
        "select repeat('x', 1100000000)",
        "select pg_read_file('/nonexistent/file')",
        "set role missing_role",
        "begin; set transaction isolation level nonsense; commit",
        "lock table t",
        "select nextval('missing')",
        "load 'missing_library'",
        "create extension missing_extension",
    ];
    for text in texts {
        assert_like_client(db, setup, text, "select count(*) from t");
    }
}

#[case]
fn an_error_caught_inside_the_job_does_not_fail_it(db: &Db) {
    let text =
        "do $$ begin perform 1 / 0; exception when division_by_zero then raise notice 'caught'; end $$; select 7";
    assert_like_client(db, "", text, "");
}

#[case]
fn the_last_of_several_errors_counts(db: &Db) {
    let text = "do $$ begin perform 1 / 0; exception when division_by_zero then \
                raise exception 'the second' using errcode = 'ZZ002'; end $$";
    assert_like_client(db, "", text, "");
}

#[case]
fn errors_while_handling_errors_arrive(db: &Db) {
    let setup = "create table t (a int); create function late() returns trigger language plpgsql as \
                 $$ begin begin perform 1 / 0; exception when others then null; end; raise 'from the trigger'; end $$; \
                 create constraint trigger late after insert on t deferrable initially deferred \
                 for each row execute function late()";
    assert_like_client(db, setup, "insert into t values (1)", "table t");
    let text = "do $$ begin begin perform 1 / 0; exception when others then perform 'x'::int; end; exception \
        when others then raise; end $$";
    assert_like_client(db, "", text, "");
}

#[case]
fn fatal_arrives_as_an_error(db: &Db) {
    let mut session = db.session();
    let error = session
        .job_error(&format!("do $$ begin perform pg_terminate_backend(pg_backend_pid()); perform {FOREVER}; end $$"));
    assert_eq!((error.severity(), error.sqlstate()), ("ERROR".to_owned(), "57P01".to_owned()));
    assert!(error.message().starts_with("terminating "), "{error}");
    // The launcher's session is as good as before.
    assert_eq!(session.job("select 5", "n int"), ["5"]);
}

#[case]
fn a_very_long_message_arrives_whole(db: &Db) {
    let text = "do $$ begin raise exception '%', repeat('long ', 200000) using detail = repeat('d', 300000); end $$";
    assert_like_client(db, "", text, "");
}

#[case]
fn a_very_deep_context_arrives(db: &Db) {
    let setup = "create function deep(n int) returns int language plpgsql as $$ begin \
                 if n = 0 then raise 'bottom'; end if; return deep(n - 1); end $$";
    assert_like_client(db, setup, "select deep(100)", "");
}

#[case]
fn an_error_after_rows_discards_the_rows(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 100000 / (100000 - i) from generate_series(1, 200000) i");
    assert_eq!(session.error(&format!("select pg_background_result({pid})")).sqlstate(), "22012");
    assert_eq!(session.job_error("select 1; select 1 / 0").sqlstate(), "22012");
}

#[case]
fn an_error_is_logged_once_by_the_worker(db: &Db) {
    let mut session = db.session();
    let mark = db.log_mark();
    let word = format!("unmistakable {}", db.name);
    let text = format!("select 1; select '{word}'::int");
    let pid = session.launch(&text);
    assert_eq!(session.result_error(pid).sqlstate(), "22P02");
    let line = wait_for("the worker's error in the log", || {
        db.log_of(mark, pid).into_iter().find(|line| line.kind == "ERROR")
    });
    assert_eq!((line.sqlstate.as_str(), line.text.contains(&word)), ("22P02", true), "{line:?}");
    assert!(db.log_of(mark, pid).iter().any(|line| line.kind == "STATEMENT" && line.text == text));
    // What follows in this session comes later in the log.
    session.error("select unmistakable_end");
    db.cluster.wait_log(mark, "a later error", |line| line.text.contains("unmistakable_end"));
    let errors: Vec<_> = db
        .cluster
        .log_since(mark)
        .into_iter()
        .filter(|line| line.kind == "ERROR" && line.text.contains(&word))
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[case]
fn an_error_with_every_field_is_logged_as_a_clients(db: &Db) {
    let mut session = db.session();
    let text = "do $$ begin raise exception 'the message' using errcode = 'ZX123', detail = 'the detail', hint \
        = 'the hint'; end $$";
    let mark = db.log_mark();
    session.error(text);
    let pid = session.launch(text);
    session.result_error(pid);
    let shown = |pid: i32| {
        wait_for("the error with its statement", || {
            let lines = db.log_of(mark, pid);
            let shown: Vec<_> = lines.into_iter().map(|line| (line.sqlstate, line.kind, line.text)).collect();
            shown.iter().any(|(_, kind, _)| kind == "STATEMENT").then_some(shown)
        })
    };
    let client = shown(session.pid());
    assert_eq!(
        client.iter().map(|(_, kind, _)| kind.as_str()).collect::<Vec<_>>(),
        ["ERROR", "DETAIL", "HINT", "CONTEXT", "STATEMENT"]
    );
    assert_eq!(shown(pid), client);
}

#[case]
fn an_error_caught_by_the_launcher_is_logged_once(db: &Db) {
    let mut session = db.session();
    let mark = db.log_mark();
    let word = format!("caught_{}", db.name);
    session.run(&format!(
        "do $$ begin perform * from pg_background_result(pg_background_launch('select {word}')) as (n int); \
         exception when undefined_column then raise notice '%', sqlerrm; end $$"
    ));
    assert_eq!(session.notice_texts(), [format!("NOTICE: column \"{word}\" does not exist")]);
    db.cluster.wait_log(mark, "the worker's error", |line| line.kind == "ERROR" && line.text.contains(&word));
    session.error("select caught_end");
    db.cluster.wait_log(mark, "a later error", |line| line.text.contains("caught_end"));
    let count =
        db.cluster.log_since(mark).iter().filter(|line| line.kind == "ERROR" && line.text.contains(&word)).count();
    assert_eq!(count, 1);
}

#[case]
fn an_error_of_a_nested_job_is_logged_once(db: &Db) {
    let mut session = db.session();
    let mark = db.log_mark();
    let word = format!("nested_{}", db.name);
    let inner = format!("select * from pg_background_result(pg_background_launch('select {word}')) as (n int)");
    assert_eq!(session.job_error(&inner).sqlstate(), "42703");
    db.cluster.wait_log(mark, "the inner worker's error", |line| line.kind == "ERROR" && line.text.contains(&word));
    session.error("select nested_end");
    db.cluster.wait_log(mark, "a later error", |line| line.text.contains("nested_end"));
    let count =
        db.cluster.log_since(mark).iter().filter(|line| line.kind == "ERROR" && line.text.contains(&word)).count();
    assert_eq!(count, 1);
}

#[case]
fn errors_are_diagnosed_in_plpgsql(db: &Db) {
    let mut session = db.session();
    session.run("create table q (a int constraint small check (a < 10))");
    session.run(
        "do $$ declare s text; m text; d text; t text; c text; begin \
         perform * from pg_background_result(pg_background_launch('insert into q values (11)')) as (r text); \
         exception when check_violation then get stacked diagnostics s = returned_sqlstate, m = message_text, \
         d = pg_exception_detail, t = table_name, c = constraint_name; \
         raise notice '% | % | % | % | %', s, m, d, t, c; end $$",
    );
    let expected = "NOTICE: 23514 | new row for relation \"q\" violates check constraint \"small\" | \
                    Failing row contains (11). | q | small";
    assert_eq!(session.notice_texts(), [expected]);
}

#[case]
fn an_error_of_a_nested_job_arrives_through_both(db: &Db) {
    let mut session = db.session();
    let text = "select * from pg_background_result(pg_background_launch('select 1 / 0')) as (n int)";
    assert_eq!(session.job_error(text).brief(), ("22012".to_owned(), "division by zero".to_owned()));
}

#[case]
fn a_statement_that_needs_a_privilege_fails_as_for_a_client(db: &Db) {
    let role = db.role("weak", "login");
    db.session().run("create table secret (a int)");
    let mut weak = db.client().user(&role).connect();
    for text in
        ["select * from secret", "alter system set work_mem = '5MB'", "create role x", "copy secret to '/tmp/x'"]
    {
        let expected = weak.error(text);
        let got = weak.job_error(text);
        assert_eq!(
            (got.brief(), got.hint(), got.detail()),
            (expected.brief(), expected.hint(), expected.detail()),
            "{text}"
        );
    }
}

#[case]
fn running_out_of_stack_is_an_error(db: &Db) {
    let mut session = db.session();
    session.run("create function deep(n int) returns int language plpgsql as $$ begin return deep(n + 1); end $$");
    let error = session.job_error("select deep(0)");
    assert_eq!(error.brief(), ("54001".to_owned(), "stack depth limit exceeded".to_owned()));
    assert_eq!(session.job("select 5", "n int"), ["5"]);
}

#[case]
fn an_error_made_fatal_arrives_as_itself(db: &Db) {
    let mut session = db.session();
    let text = "set exit_on_error = on; select 1 / 0";
    let error = session.job_error(text);
    assert_eq!(
        (error.severity(), error.brief()),
        ("ERROR".to_owned(), ("22012".to_owned(), "division by zero".to_owned()))
    );
    assert_eq!(session.job("select 5", "n int"), ["5"]);
}

/// A process that ends with another exit code than 0 is worth a line of the postmaster.
#[case]
fn a_failed_job_is_no_failed_process(db: &Db) {
    let mut session = db.session();
    let mark = db.log_mark();
    let pid = session.launch("select 1 / 0");
    session.result_error(pid);
    wait_until("the postmaster has noticed", || !Path::new(&format!("/proc/{pid}")).exists());
    session.error("select after_the_failure");
    db.cluster.wait_log(mark, "a later error", |line| line.text.contains("after_the_failure"));
    let about = format!("PID {pid}");
    let lines: Vec<_> = db.cluster.log_since(mark).into_iter().filter(|line| line.text.contains(&about)).collect();
    assert_eq!(lines, []);
}

#[case]
fn a_terminated_job_is_logged_once(db: &Db) {
    let mut session = db.session();
    let mark = db.log_mark();
    let pid = session
        .launch(&format!("do $$ begin perform pg_terminate_backend(pg_backend_pid()); perform {FOREVER}; end $$"));
    assert_eq!(session.result_error(pid).sqlstate(), "57P01");
    wait_until("the end of the process", || !Path::new(&format!("/proc/{pid}")).exists());
    let lines: Vec<_> = db.log_of(mark, pid).into_iter().filter(|line| line.sqlstate == "57P01").collect();
    assert_eq!(lines.iter().filter(|line| matches!(line.kind.as_str(), "FATAL" | "ERROR")).count(), 1, "{lines:?}");
}
