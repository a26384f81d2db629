//! Session settings: what a job takes over from its launcher, and what it leaves behind.

use crate::support::barrier::{self, Barrier};
use crate::support::compare_with_client::assert_like_client;
use pg_background_mgr_tests::{case, wait_for, Db, Session};

/// Settings that the user has made up need no library, and loading one takes time.
#[case(library = "pg_trgm")]
fn libraries_are_loaded_for_their_settings_only(db: &Db) {
    let mut session = db.session();
    session.run("load 'pg_trgm'; set my.own = 'mine'; set pg_background_mgr.log_result_limit = '1MB'");
    let text = "select pg_backend_pid() || ' ' || current_setting('my.own') || ' ' || \
                current_setting('pg_background_mgr.log_result_limit')";
    let libraries = |session: &mut Session| {
        let barrier = Barrier::close(db.session());
        let pid = session.launch(&format!("{text} where {}", barrier::OPENED));
        let maps = wait_for("the job's process is a session", || {
            let waits = db.session().value(&format!("select count(*) from pg_locks where pid = {pid} and not granted"));
            (waits == "1").then(|| std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its libraries"))
        });
        barrier.open();
        assert_eq!(session.result(pid, "a text"), [format!("{pid} mine 1MB")]);
        maps.contains("pg_trgm")
    };
    assert!(!libraries(&mut session));
    session.run("set pg_trgm.similarity_threshold = 0.5");
    assert!(libraries(&mut session));
}

#[case]
fn session_settings_are_the_jobs(db: &Db) {
    let setup =
        "set work_mem = '7MB'; set enable_seqscan = off; set extra_float_digits = -5; set vacuum_cost_delay = '5ms'";
    let text = "select current_setting('work_mem'), current_setting('enable_seqscan'), pi(), \
                current_setting('vacuum_cost_delay')";
    assert_like_client(db, setup, text, "");
}

#[case]
fn search_path_and_formats_are_the_jobs(db: &Db) {
    let setup =
        "create schema \"Odd name\"; create table \"Odd name\".here (a int); set search_path = \"Odd name\", stage; \
                 set datestyle = 'German, DMY'; set intervalstyle = iso_8601; set timezone = 'Asia/Tokyo'; \
                 set bytea_output = escape";
    let text =
        "select count(*) over (), '2001-02-03 04:05:06+00'::timestamptz::text, '1 day 2 hours'::interval::text, \
                '\\x0102'::bytea::text, current_schemas(false)::text from here right join (select 1) s on true";
    // The schema is made once for the client and once for the job.
    let setup = format!("drop schema if exists \"Odd name\" cascade; {setup}");
    assert_like_client(db, &setup, text, "");
}

#[case]
fn settings_of_the_startup_message_are_the_jobs(db: &Db) {
    let mut session =
        db.client().parameter("options", "-c work_mem=6MB -c my.own=x").parameter("TimeZone", "Asia/Tokyo").connect();
    let query = "select current_setting('work_mem'), current_setting('my.own'), current_setting('timezone')";
    assert_eq!(session.rows(query), ["6MB|x|Asia/Tokyo"]);
    assert_eq!(session.job(query, "a text, b text, c text"), ["6MB|x|Asia/Tokyo"]);
}

#[case]
fn settings_of_the_role_and_the_database_are_the_jobs(db: &Db) {
    let role = db.role("tuned", "login");
    let name = &db.name;
    db.session().run(&format!(
        "alter database {name} set work_mem = '9MB'; alter database {name} set my.database = 'd'; \
         alter role {role} set my.role = 'r'; alter role {role} in database {name} set my.twice = 'b'"
    ));
    let mut session = db.client().user(&role).connect();
    let query = "select current_setting('work_mem'), current_setting('my.database'), current_setting('my.role'), \
                 current_setting('my.twice')";
    assert_eq!(session.job(query, "a text, b text, c text, d text"), ["9MB|d|r|b"]);
}

#[case]
fn a_setting_reset_in_the_session_is_not_carried(db: &Db) {
    let mut session = db.session();
    session.run("set work_mem = '7MB'; set my.own = 'x'");
    session.run("reset work_mem; reset my.own");
    let expected = session.rows("select current_setting('work_mem'), coalesce(current_setting('my.own', true), '')");
    let job = "select current_setting('work_mem'), coalesce(current_setting('my.own', true), '')";
    assert_eq!(session.job(job, "a text, b text"), expected);
}

#[case]
fn set_local_of_the_caller_is_the_jobs(db: &Db) {
    let mut session = db.session();
    session.run("begin; set local work_mem = '8MB'");
    assert_eq!(session.job("show work_mem", "a text"), ["8MB"]);
    session.run("commit");
    assert_eq!(session.job("show work_mem", "a text"), ["4MB"]);
}

#[case]
fn a_setting_of_the_calling_function_is_the_jobs(db: &Db) {
    let mut session = db.session();
    session.run(
        "create function start() returns int language sql set work_mem = '8MB' as \
         $$ select pg_background_launch('show work_mem') $$",
    );
    let pid = session.number("select start()");
    assert_eq!(session.rows(&format!("select * from pg_background_result({pid}) as (a text)")), ["8MB"]);
}

#[case]
fn own_settings_of_the_user_are_the_jobs(db: &Db) {
    let setup = "set my.own = 'first'; set my.other.name = ''; select set_config('my.third', 'x', false)";
    let text = "select current_setting('my.own'), current_setting('my.other.name'), current_setting('my.third')";
    assert_like_client(db, setup, text, "");
}

/// A module that only the launcher has loaded: in the worker its setting is a placeholder until the module comes.
#[case]
fn settings_of_a_module_are_the_jobs(db: &Db) {
    let setup = "load 'plpgsql'; set plpgsql.extra_warnings = 'all'; set plpgsql.check_asserts = off";
    let text = "do $$ begin assert false; raise notice '%', current_setting('plpgsql.extra_warnings'); end $$; \
                select current_setting('plpgsql.check_asserts')";
    assert_like_client(db, setup, text, "");
}

#[case(library = "auto_explain")]
fn settings_of_a_module_preloaded_are_the_jobs(db: &Db) {
    let setup = "set auto_explain.log_min_duration = '1h'; set auto_explain.log_format = 'json'";
    let text = "select current_setting('auto_explain.log_min_duration'), current_setting('auto_explain.log_format')";
    assert_like_client(db, setup, text, "");
}

#[case]
fn a_value_with_quotes_and_newlines_arrives_whole(db: &Db) {
    let setup =
        r#"set my.own = E'it''s "quoted" \\ and\non two lines, ünïcödé'; set search_path = "a ""b""", 'c''d', public"#;
    assert_like_client(db, setup, "select current_setting('my.own'), current_setting('search_path')", "");
}

#[case]
fn reset_in_a_job_gives_the_default_of_a_new_session(db: &Db) {
    db.session().run(&format!("alter database {} set work_mem = '9MB'", db.name));
    let mut session = db.session();
    session.run("set work_mem = '7MB'; set enable_sort = off");
    let text = "reset work_mem; reset all; select current_setting('work_mem'), current_setting('enable_sort')";
    assert_eq!(session.job(text, "a text, b text"), ["9MB|on"]);
}

#[case]
fn show_all_gives_a_jobs_settings_as_a_clients(db: &Db) {
    let mut session = db.session();
    session.run("set work_mem = '7MB'; set datestyle = 'SQL, DMY'; set my.own = 'x'; set enable_nestloop = off");
    // The session has the settings of the extension when it has called it once.
    session.job("select 1", "n int");
    // What a login sets and a worker has no use for.
    let query = "select name, setting from pg_settings where name not in ('client_encoding', 'application_name') \
                 and context <> 'internal' order by name";
    let expected = session.rows(query);
    let got = session.job(query, "name text, setting text");
    let changed: Vec<_> = got.iter().filter(|line| !expected.contains(line)).collect();
    let missing: Vec<_> = expected.iter().filter(|line| !got.contains(line)).collect();
    assert!(changed.is_empty() && missing.is_empty(), "in the job: {changed:?}, in the session: {missing:?}");
}

#[case]
fn set_holds_until_the_end_of_the_text(db: &Db) {
    assert_like_client(db, "", "set work_mem = '5MB'; begin; commit; show work_mem", "");
    assert_like_client(db, "", "begin; set work_mem = '5MB'; rollback; show work_mem", "");
}

#[case]
fn set_local_holds_until_the_end_of_the_transaction(db: &Db) {
    assert_like_client(db, "", "set local work_mem = '5MB'; show work_mem", "");
    let text = "begin; set local work_mem = '5MB'; create table made as select current_setting('work_mem'); commit; \
                select *, current_setting('work_mem') from made";
    assert_like_client(db, "", text, "");
}

#[case]
fn set_in_a_job_stays_in_the_job(db: &Db) {
    let mut session = db.session();
    assert_eq!(session.job("set work_mem = '5MB'; set my.own = 'x'; show work_mem", "a text"), ["5MB"]);
    assert_eq!(session.value("show work_mem"), "4MB");
    let query = "select current_setting('work_mem'), coalesce(current_setting('my.own', true), '') = ''";
    assert_eq!(session.job(query, "a text, b bool"), ["4MB|t"]);
}

#[case]
fn set_in_a_failed_statement_is_undone(db: &Db) {
    let mut session = db.session();
    session.job_error("set work_mem = '5MB'; select 1 / 0");
    assert_eq!(session.job("show work_mem", "a text"), ["4MB"]);
}

/// A SECURITY DEFINER function of a superuser may set them; the caller's job must not fail for it.
#[case]
fn settings_that_only_superusers_set_are_carried_for_others(db: &Db) {
    let role = db.role("plain", "login");
    db.session().run(&format!("alter role {role} set log_min_duration_statement = '1h'"));
    let mut session = db.client().user(&role).connect();
    let expected = session.value("show log_min_duration_statement");
    assert_eq!(expected, "1h");
    assert_eq!(session.job("show log_min_duration_statement", "a text"), ["1h"]);
    assert_eq!(session.job_error("set log_min_duration_statement = 0").sqlstate(), "42501");
}

#[case]
fn the_seed_of_random_stays_in_the_job(db: &Db) {
    let mut session = db.session();
    let seeded = session.job("select setseed(0.5); select random()", "n float8");
    assert_eq!(session.job("select setseed(0.5); select random()", "n float8"), seeded);
    assert_ne!(session.job("select random()", "n float8"), session.job("select random()", "n float8"));
}

#[case]
fn temp_tables_work_within_the_text(db: &Db) {
    let text =
        "create temp table x (a int); insert into x values (1), (2); create index on x (a); select sum(a) from x";
    assert_like_client(db, "", text, "");
    let text =
        "create temp table x (a int); begin; insert into x values (1); rollback; insert into x values (5); table x";
    assert_like_client(db, "", text, "");
}

#[case]
fn temp_tables_end_with_the_job(db: &Db) {
    let mut session = db.session();
    session.job("create temp table x (a int); create temp sequence s", "result text");
    assert_eq!(session.job_error("table x").sqlstate(), "42P01");
    let query = "select count(*) from pg_class where relpersistence = 't'";
    pg_background_mgr_tests::wait_until("no temp relation is left", || session.value(query) == "0");
    // Rows that have to wait in the worker do not keep its temp tables.
    let pid = session.launch("create temp table x as select generate_series(1, 300000) as a; table x");
    pg_background_mgr_tests::wait_until("the job has ended", || {
        session.rows(&format!("select state from pg_stat_activity where pid = {pid}")) == ["idle"]
    });
    assert_eq!(
        session.rows(&format!("select count(*), sum(a) from pg_background_result({pid}) as (a int)")),
        ["300000|45000150000"]
    );
    pg_background_mgr_tests::wait_until("no temp relation is left", || session.value(query) == "0");
}

#[case]
fn the_launchers_temp_tables_are_not_there(db: &Db) {
    let mut session = db.session();
    session.run("create temp table x (a int)");
    let error = session.job_error("select * from x");
    assert_eq!(error.brief(), ("42P01".to_owned(), "relation \"x\" does not exist".to_owned()));
}

#[case]
fn a_temp_table_on_commit_drop_works(db: &Db) {
    let text = "create temp table x on commit drop as select 4 as a; table x";
    assert_like_client(db, "", text, "");
    assert_like_client(
        db,
        "",
        "begin; create temp table x (a int) on commit delete rows; insert into x values (1); commit; table x",
        "",
    );
}

#[case]
fn sequences_of_the_session_are_the_jobs_own(db: &Db) {
    let mut session = db.session();
    session.run("create sequence s; select nextval('s')");
    assert_eq!(session.job_error("select currval('s')").sqlstate(), "55000");
    assert_eq!(session.job("select nextval('s'); select currval('s'), lastval()", "a bigint, b bigint"), ["2|2"]);
    assert_eq!(session.value("select currval('s')"), "1");
}

#[case]
fn settings_that_change_the_parser_are_the_jobs(db: &Db) {
    let setup =
        "set standard_conforming_strings = off; set escape_string_warning = off; set quote_all_identifiers = on";
    assert_like_client(db, setup, "select 'a\\tb', quote_ident('x')", "");
    assert_like_client(db, "set transform_null_equals = on", "select null = null", "");
}

#[case]
fn session_replication_role_is_the_jobs(db: &Db) {
    let setup = "create table t (a int check (a > 0)); create function refuse() returns trigger language plpgsql as \
                 $$ begin raise 'refused'; end $$; \
                 create trigger refuse before insert on t for each row execute function refuse(); \
                 set session_replication_role = replica";
    assert_like_client(db, setup, "insert into t values (1)", "table t");
}

/// A worker has no client whose connection could be looked at.
#[case(since = 14)]
fn settings_that_watch_the_client_do_no_harm(db: &Db) {
    let setup = "set client_connection_check_interval = '10ms'; set tcp_keepalives_idle = 5; set tcp_user_timeout = 5";
    // Long enough for thirty checks.
    assert_like_client(db, setup, "select pg_sleep(0.3)::text, 1", "");
}

#[case]
fn settings_of_diagnosis_do_no_harm(db: &Db) {
    let setup = "set log_parser_stats = on; set log_planner_stats = on; set log_executor_stats = on; \
                 set track_activities = off; set debug_print_plan = on; set jit = on; set jit_above_cost = 0; \
                 set trace_sort = on; set log_lock_waits = on";
    assert_like_client(db, setup, "select count(*), sum(a) from generate_series(1, 1000) a", "");
    let mut session = db.session();
    session.run("set client_min_messages = debug5");
    assert_eq!(session.job("select 5", "n int"), ["5"]);
}

#[case(since = 15)]
fn settings_of_the_extension_that_do_not_exist_are_refused(db: &Db) {
    let mut session = db.session();
    // Before the library is loaded nobody knows.
    session.run("set pg_background_mgr.nosuch = 1");
    session.notices();
    session.run("load 'pg_background_mgr'");
    let expected = "WARNING: invalid configuration parameter name \"pg_background_mgr.nosuch\", removing it";
    assert_eq!(session.notice_texts(), [expected]);
    for name in ["nosuch", "max_worker"] {
        let error = session.error(&format!("set pg_background_mgr.{name} = 1"));
        let message = format!("invalid configuration parameter name \"pg_background_mgr.{name}\"");
        assert_eq!(error.brief(), ("42602".to_owned(), message));
    }
    assert_eq!(session.value("show pg_background_mgr.max_workers"), "-1");
}

#[case]
fn a_bad_value_from_before_the_library_was_loaded_is_a_warning(db: &Db) {
    let mut session = db.session();
    session.run("set pg_background_mgr.log_result_limit = 'much'");
    session.notices();
    assert_eq!(session.job("select 7", "n int"), ["7"]);
    let expected = "WARNING: invalid value for parameter \"pg_background_mgr.log_result_limit\": \"much\"";
    assert_eq!(session.notice_texts(), [expected]);
    assert_eq!(session.value("show pg_background_mgr.log_result_limit"), "64kB");
}
