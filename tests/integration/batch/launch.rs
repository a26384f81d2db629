//! `pg_background_launch_num`: its forms and arguments, and when it returns.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{array, cell, counts, drain, times, Batch};
use pg_background_mgr_tests::{case, literal, Db, Session};

#[case]
fn the_authors_call_runs_each_piece(db: &Db) {
    let mut session = db.session();
    let reply = session.run(
        " select * from pg_background_launch_num('select version();,select version(),select version(),select version(),\
         select version(),select version(),select version();  ');",
    );
    let statement = reply.last_rows().expect("rows");
    let names: Vec<&str> =
        statement.columns.as_ref().expect("columns").iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["pid", "status", "uuid_parent", "uuid_child"]);
    let rows: Vec<Vec<String>> =
        statement.text_rows().iter().map(|row| row.split('|').map(str::to_owned).collect()).collect();
    assert_eq!(rows.len(), 7);
    for row in &rows {
        assert!(["queued", "running", "succeeded"].contains(&row[1].as_str()), "{row:?}");
        assert_eq!(row[2], rows[0][2]);
    }
    let ended = session.rows(&format!(
        "select status, trim(query), result::jsonb -> 0 ->> 'version' = version() from pg_background_monitor('{}')",
        rows[0][2]
    ));
    let texts = times("succeeded|select version()|t", 5);
    let expected: Vec<&str> = ["succeeded|select version();|t"].into_iter().chain(texts).collect();
    assert_eq!(ended[..6], expected[..]);
    assert_eq!(ended[6], expected[0]);
    assert_eq!(session.value("select count(*) from log_background where status = 'succeeded'"), "7");
}

#[case]
fn inserts_with_text_commas_and_accents_are_launched(db: &Db) {
    let mut session = db.session();
    session.run("create table empleados (nombre text, puesto text, salario numeric)");
    let text = "  INSERT INTO empleados (nombre, puesto, salario) \
        VALUES ('taizon Gómez', 'Desarrolladora', 85000.00);,\n\
        INSERT INTO empleados (nombre, puesto, salario) \
        VALUES ('O''Brien, Seán', 'Jefe, señor', 1.2), ('李, 小龍', $$it's, $$, -3);, ";
    let batch = Batch::call(&mut session, &format!("pg_background_launch_num({})", literal(text)));
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, "result || ' ' || row_count"), ["INSERT 0 1 1", "INSERT 0 2 2"]);
    assert_eq!(
        session.rows("select * from empleados order by salario"),
        ["李, 小龍|it's, |-3", "O'Brien, Seán|Jefe, señor|1.2", "taizon Gómez|Desarrolladora|85000.00"]
    );
}

#[case]
fn the_interface_is_as_documented(db: &Db) {
    let mut session = db.session();
    let functions = session.rows(
        "select p.proname || '(' \
         || replace(replace(pg_get_function_arguments(p.oid), '::text', ''), '::jsonb', '') || ') ' \
         || replace(pg_get_function_result(p.oid), 'timestamp with time zone', 'timestamptz') \
         from pg_proc p join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e' \
         join pg_extension e on e.oid = d.refobjid and d.refclassid = 'pg_extension'::regclass \
         where e.extname = 'pg_background_mgr'",
    );
    let launched = "TABLE(pid integer, status text, uuid_parent uuid, uuid_child uuid)";
    let rest = "p_monitor boolean DEFAULT true, p_exec_type text DEFAULT 'async', p_options jsonb DEFAULT '{}')";
    let followed = "p_show_verbose boolean DEFAULT true, p_timeout interval DEFAULT NULL::interval) \
        TABLE(pid integer, status text, uuid_parent uuid, uuid_child uuid, name text, query text, result text, \
        message text, queue_position bigint, start_time_exec timestamptz, end_time_exec timestamptz, \
        elapsed interval)";
    let grace = "p_grace interval DEFAULT '00:00:05'::interval) TABLE(uuid_child uuid, was text, now text)";
    for wanted in [
        format!("pg_background_launch_num(p_querys text, p_delimiter text DEFAULT ',', {rest} {launched}"),
        format!("pg_background_launch_num(p_querys text[], {rest} {launched}"),
        format!("pg_background_launch_num(p_jobs jsonb, {rest} {launched}"),
        format!("pg_background_monitor(uuid_father text DEFAULT NULL, {followed}"),
        format!("pg_background_monitor(uuid_father uuid, {followed}"),
        format!("pg_background_stop(uuid_father_or_child text, {grace}"),
        format!("pg_background_stop(uuid_father_or_child uuid, {grace}"),
        format!("pg_background_retry(uuid text) {launched}"),
        format!("pg_background_retry(uuid uuid) {launched}"),
        "pg_background_prune(older_than interval) bigint".to_owned(),
        "pg_background_report_progress(pct integer, message text DEFAULT NULL) void".to_owned(),
    ] {
        assert!(functions.contains(&wanted), "{wanted}\nis not in: {functions:#?}");
    }
    let columns = "select string_agg(attname || ' ' || format_type(atttypid, null), ', ' order by attnum) \
                   from pg_attribute where attrelid = 'log_background'::regclass and attnum > 0";
    assert_eq!(
        session.value(columns),
        "id bigint, pid integer, status text, ip_client inet, user_name name, uuid_parent uuid, uuid_child uuid, \
         query text, result text, start_time_exec timestamp with time zone, \
         end_time_exec timestamp with time zone, name text, \
         batch_name text, queued_at timestamp with time zone, elapsed interval, attempts integer, row_count bigint, \
         result_truncated boolean, command_tag text, sqlstate text, message text, \
         detail text, hint text, context text"
    );
}

#[case]
fn a_text_an_array_and_json_launch_the_same(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a text)");
    for (form, call) in [
        ("text", "'insert into ran values (''text 1''), insert into ran values (''text 2'')'"),
        ("array", "array['insert into ran values (''array 1'')', 'insert into ran values (''array 2'')']"),
        (
            "json",
            r#"'["insert into ran values (''json 1'')", {"query": "insert into ran values (''json 2'')"}]'::jsonb"#,
        ),
    ] {
        let batch = Batch::call(&mut session, &format!("pg_background_launch_num({call})"));
        assert_eq!(batch.children.len(), 2, "{form}");
        batch.succeed(&mut session);
        assert_eq!(
            batch.column(&mut session, "trim(query)"),
            [1, 2].map(|number| format!("insert into ran values ('{form} {number}')"))
        );
    }
    assert_eq!(session.value("select count(distinct a) from ran"), "6");
}

#[case]
fn named_arguments_can_be_left_out(db: &Db) {
    let mut session = db.session();
    for call in [
        "p_querys => 'select 1'",
        "p_querys => 'select 1', p_delimiter => ';'",
        "'select 1', ',', true, 'async', '{}'",
        "'select 1', p_exec_type => 'sync'",
        "p_querys => array['select 1']",
        "array['select 1'], true, 'sync', '{}'",
        "p_jobs => '[\"select 1\"]'",
        "'[\"select 1\"]'::jsonb, true, 'async', '{}'",
    ] {
        let batch = Batch::call(&mut session, &format!("pg_background_launch_num({call})"));
        batch.succeed(&mut session);
        assert_eq!(batch.log(&mut session, 0, "query"), "select 1", "{call}");
    }
}

#[case]
fn the_rows_are_in_the_order_of_the_call(db: &Db) {
    let mut session = db.session();
    let texts: Vec<String> = (0..40).map(|number| format!("select {number}")).collect();
    let list: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = Batch::launch(&mut session, &list);
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, "query"), texts);
    let by_id = format!("select query from log_background where uuid_parent = '{}' order by id", batch.parent);
    assert_eq!(session.rows(&by_id), texts);
    let followed = session.rows(&format!("select query from pg_background_monitor('{}'::uuid)", batch.parent));
    assert_eq!(followed, texts);
}

#[case]
fn json_gives_each_job_its_name(db: &Db) {
    let mut session = db.session();
    let jobs = r#"[{"query": "select 1", "name": "first"}, "select 2", {"name": "größe, 日本", "query": "select 3"},
        {"query": "select 4", "name": null, "timeout": null, "max_attempts": null, "retry_delay": null}]"#;
    let options = r#"'{"name": "the batch"}'"#;
    let call = format!("pg_background_launch_num({}::jsonb, p_options => {options})", literal(jobs));
    let batch = Batch::call(&mut session, &call);
    batch.succeed(&mut session);
    let names = batch.column(&mut session, "name");
    assert_eq!((names[0].as_str(), names[2].as_str()), ("first", "größe, 日本"));
    let shown = format!("select name from pg_background_batches where uuid_parent = '{}'", batch.parent);
    assert_eq!(session.value(&shown), "the batch");
    assert_eq!(batch.column(&mut session, &cell("?column?")), ["1", "2", "3", "4"]);
}

#[case]
fn texts_of_an_array_are_not_parsed_before_they_run(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["selct 1", "select 'open", "select 3"]);
    assert_eq!(batch.finish(&mut session), ["failed", "failed", "succeeded"]);
    assert_eq!(batch.column(&mut session, "sqlstate"), ["42601", "42601", "∅"]);
    let batch = Batch::launch_json(&mut session, r#"["selct 1", {"query": "select 2"}]"#);
    assert_eq!(batch.finish(&mut session), ["failed", "succeeded"]);
}

#[case]
fn a_text_of_an_array_is_not_cut(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["select 1, 2", "select 1; select 2"]);
    assert_eq!(batch.children.len(), 2);
    batch.succeed(&mut session);
}

#[case]
fn async_does_not_wait(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch(&mut session, &[barrier::WAIT, barrier::WAIT]);
    assert!(batch.states(&mut session).iter().all(|state| ["queued", "running"].contains(&state.as_str())));
    barrier.open();
    batch.succeed(&mut session);
}

#[case]
fn sync_waits_and_gives_the_final_states(db: &Db) {
    let (mut session, mut watcher, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    let call = format!(
        "select status, pid is not null from pg_background_launch_num({}, p_exec_type => 'sync')",
        array(&[barrier::WAIT, "select 1 / 0", "select 3"])
    );
    session.send(&call);
    crate::support::batch::wait_at_barrier(&mut watcher, 1);
    pg_background_mgr_tests::wait_until("the others have ended", || {
        counts(&mut watcher, "true") == ["failed 1", "running 1", "succeeded 1"]
    });
    barrier.open();
    let reply = session.finish(&call);
    assert!(reply.error.is_none(), "{:?}", reply.error);
    assert_eq!(reply.last_rows().expect("rows").text_rows(), ["succeeded|t", "failed|t", "succeeded|t"]);
}

#[case]
fn sync_tells_its_progress(db: &Db) {
    let mut session = db.session();
    session.run("select * from pg_background_launch_num('select 1, select 2, select 3', p_exec_type => 'sync')");
    let notices = session.notice_texts();
    assert!(!notices.is_empty() && notices.iter().all(|notice| notice.starts_with("NOTICE: ")), "{notices:?}");
}

#[case]
fn a_cancelled_sync_call_leaves_its_jobs(db: &Db) {
    let (mut session, mut watcher, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    watcher.run("create table ran (a int)");
    let text = format!("{}; insert into ran values (1)", barrier::WAIT);
    let call = format!("select * from pg_background_launch_num({}, p_exec_type => 'sync')", array(&[&text, &text]));
    session.send(&call);
    crate::support::batch::wait_at_barrier(&mut watcher, 2);
    session.canceller().cancel();
    assert_eq!(session.finish(&call).error.expect("an error").sqlstate(), "57014");
    assert_eq!(counts(&mut watcher, "true"), ["running 2"]);
    barrier.open();
    drain(&mut watcher);
    assert_eq!(counts(&mut watcher, "true"), ["succeeded 2"]);
    assert_eq!(watcher.value("select count(*) from ran"), "2");
}

#[case]
fn the_rows_of_the_log_are_there_when_it_returns(db: &Db) {
    let (mut session, mut other, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    for _ in 0..20 {
        let batch = Batch::launch(&mut session, &times(barrier::WAIT, 5));
        let query = format!("select count(*) from log_background where uuid_parent = '{}'", batch.parent);
        assert_eq!(other.value(&query), "5");
    }
    barrier.open();
    drain(&mut session);
}

/// Asserts that nothing was launched by what was refused.
#[track_caller]
fn assert_nothing_launched(session: &mut Session) {
    assert_eq!(session.value("select count(*) from log_background"), "0");
    assert_eq!(session.value("select count(*) from pg_background_jobs where database = current_database()"), "0");
}

/// The SQLSTATE and the text that the message and what follows it must have.
#[track_caller]
fn assert_refused(session: &mut Session, arguments: &str, sqlstate: &str, words: &[&str]) {
    let error = session.error(&format!("select * from pg_background_launch_num({arguments})"));
    assert_eq!(error.sqlstate(), sqlstate, "{arguments}: {error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word}, {arguments}: {error}");
    }
}

#[case]
fn null_arguments_launch_nothing_by_mistake(db: &Db) {
    let mut session = db.session();
    for argument in ["null::text", "null::text[]", "null::jsonb", "null"] {
        assert_refused(&mut session, argument, "22004", &[]);
    }
    assert_nothing_launched(&mut session);
    // A null for what has a default.
    for argument in ["'select 1', p_monitor => null", "'select 1', p_exec_type => null"] {
        assert_refused(&mut session, argument, "22004", &[]);
    }
    assert_nothing_launched(&mut session);
    Batch::call(&mut session, "pg_background_launch_num('select 1', p_options => null)").succeed(&mut session);
}

#[case]
fn an_array_is_taken_element_by_element(db: &Db) {
    let mut session = db.session();
    let array = "array[['select 1 as a', 'select 2 as a'], ['select 3 as a', 'select 4 as a']]";
    let batch = Batch::call(&mut session, &format!("pg_background_launch_num({array})"));
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, "result::jsonb -> 0 ->> 'a'"), ["1", "2", "3", "4"]);
    // Also one that does not begin at 1.
    let batch = Batch::call(&mut session, "pg_background_launch_num('[7:8]={select 5 as a,select 6 as a}'::text[])");
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, "result::jsonb -> 0 ->> 'a'"), ["5", "6"]);
}

#[case]
fn of_keys_that_are_given_twice_the_last_one_counts(db: &Db) {
    let mut session = db.session();
    let jobs = r#"[{"query": "select 1 / 0", "query": "select 2 as a"}]"#;
    let call =
        format!(r#"pg_background_launch_num({}::jsonb, p_options => '{{"name": "x", "name": "y"}}')"#, literal(jobs));
    let batch = Batch::call(&mut session, &call);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, "name || query"), "yselect 2 as a");
}

#[case]
fn null_and_empty_texts_are_refused_by_their_number(db: &Db) {
    let mut session = db.session();
    assert_refused(&mut session, "array['select 1', null]", "22004", &["2"]);
    assert_refused(&mut session, "array['select 1', 'select 2', '']", "22023", &["3"]);
    assert_refused(&mut session, "array['  ', 'select 2']", "22023", &["1"]);
    assert_refused(&mut session, r#"'["select 1", null]'::jsonb"#, "22004", &["2"]);
    assert_refused(&mut session, r#"'["select 1", ""]'::jsonb"#, "22023", &["2"]);
    assert_refused(&mut session, r#"'["select 1", {"query": null}]'::jsonb"#, "22004", &["2"]);
    assert_refused(&mut session, r#"'["select 1", {"query": " "}]'::jsonb"#, "22023", &["2"]);
    assert_nothing_launched(&mut session);
}

#[case]
fn a_batch_without_jobs_is_refused(db: &Db) {
    let mut session = db.session();
    for arguments in ["''", "'  '", "array[]::text[]", "'[]'::jsonb"] {
        assert_refused(&mut session, arguments, "22023", &[]);
    }
    assert_nothing_launched(&mut session);
}

#[case]
fn jobs_that_are_no_json_array_are_refused(db: &Db) {
    let mut session = db.session();
    for jobs in [r#"{"query": "select 1"}"#, r#""select 1""#, "1", "true", "null"] {
        let sqlstate = if jobs == "null" { ["22004", "22023"] } else { ["22023"; 2] };
        let error = session.error(&format!("select * from pg_background_launch_num('{jobs}'::jsonb)"));
        assert!(sqlstate.contains(&error.sqlstate().as_str()), "{jobs}: {error}");
    }
    for item in ["1", "true", "[]", r#"["select 1"]"#] {
        assert_refused(&mut session, &format!(r#"'["select 1", {item}]'::jsonb"#), "22023", &["2"]);
    }
    assert_nothing_launched(&mut session);
}

#[case]
fn unknown_keys_of_a_job_are_named(db: &Db) {
    let mut session = db.session();
    for key in ["querys", "Query", "priority", "mode", "max_workers", "on_error", "", "año"] {
        let jobs = format!(r#"'[{{"query": "select 1"}}, {{"query": "select 2", "{key}": 1}}]'::jsonb"#);
        assert_refused(&mut session, &jobs, "22023", &[&format!("\"{key}\""), "2"]);
    }
    assert_refused(&mut session, r#"'[{"name": "no query"}]'::jsonb"#, "22023", &["job 1", "\"query\""]);
    assert_nothing_launched(&mut session);
}

/// Values that make no sense for a job, wherever they are given.
const BAD_VALUES: [(&str, &[&str]); 4] = [
    ("name", &["5", "true", "[]", "{}"]),
    ("timeout", &["-1", "\"-1 s\"", "\"soon\"", "\"\"", "true", "[]", "{}", "1e300"]),
    ("max_attempts", &["0", "-1", "1.5", "\"x\"", "true", "[]", "1e300", "9999999999"]),
    ("retry_delay", &["-0.5", "\"-1 minute\"", "\"later\"", "false", "{}"]),
];

#[case]
fn bad_values_of_a_job_are_named(db: &Db) {
    let mut session = db.session();
    for (key, values) in BAD_VALUES {
        for value in values {
            let jobs = format!(r#"'["select 1", {{"query": "select 2", "{key}": {value}}}]'::jsonb"#);
            assert_refused(&mut session, &jobs, "22023", &[&format!("\"{key}\""), "2"]);
        }
    }
    for value in ["1", "true", "[]", "{}"] {
        assert_refused(&mut session, &format!(r#"'[{{"query": {value}}}]'::jsonb"#), "22023", &["query", "1"]);
    }
    assert_nothing_launched(&mut session);
}

#[case]
fn unknown_options_are_named(db: &Db) {
    let mut session = db.session();
    for key in ["Mode", "workers", "query", "max_worker", "", "ñ"] {
        let arguments = format!(r#"'select 1', p_options => '{{"name": "x", "{key}": 1}}'"#);
        assert_refused(&mut session, &arguments, "22023", &[&format!("\"{key}\"")]);
    }
    assert_nothing_launched(&mut session);
}

#[case]
fn bad_values_of_options_are_named(db: &Db) {
    let mut session = db.session();
    let more: [(&str, &[&str]); 3] = [
        ("mode", &["\"serial\"", "\"Parallel\"", "1", "true", "\"\"", "[]"]),
        ("max_workers", &["0", "-1", "2.5", "\"two\"", "true", "[]", "9999999999"]),
        ("on_error", &["\"ignore\"", "1", "false", "{}"]),
    ];
    for (key, values) in BAD_VALUES.into_iter().chain(more) {
        for value in values {
            let options = format!(r#"p_options => '{{"{key}": {value}}}'"#);
            for first in ["'select 1'", "array['select 1']", r#"'["select 1"]'::jsonb"#] {
                assert_refused(&mut session, &format!("{first}, {options}"), "22023", &[&format!("\"{key}\"")]);
            }
        }
    }
    assert_nothing_launched(&mut session);
}

#[case]
fn options_that_are_no_object_are_refused(db: &Db) {
    let mut session = db.session();
    for options in ["[]", "5", "true", r#""name""#, r#"[{"name": "x"}]"#] {
        assert_refused(&mut session, &format!("'select 1', p_options => '{options}'"), "22023", &["p_options"]);
    }
    assert_nothing_launched(&mut session);
}

#[case]
fn options_that_are_null_are_not_given(db: &Db) {
    let mut session = db.session();
    let options = r#"{"name": null, "mode": null, "max_workers": null, "on_error": null, "timeout": null,
        "max_attempts": null, "retry_delay": null}"#;
    Batch::launch_with(&mut session, &["select 1", "select 2"], options).succeed(&mut session);
}

#[case]
fn other_types_of_execution_are_refused(db: &Db) {
    let mut session = db.session();
    for kind in ["", "synchronous", " async", "a", "both"] {
        assert_refused(&mut session, &format!("'select 1', p_exec_type => '{kind}'"), "22023", &[kind]);
    }
    assert_nothing_launched(&mut session);
}
