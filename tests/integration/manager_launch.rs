//! `pg_background_launch_num`: its forms and arguments, whose rights and settings its jobs have, its caller.

use crate::gate::{self, Gate};
use crate::manager::{array, cell, counts, drain, times, Batch};
use pg_background_mgr_tests::{case, literal, private_case, Case, Cluster, Db, Session};

pub fn cases() -> Vec<Case> {
    vec![
        // As people call it.
        case!(the_authors_call_runs_each_piece),
        case!(inserts_with_text_commas_and_accents_are_launched),
        case!(the_interface_is_as_documented),
        // Its three forms.
        case!(a_text_an_array_and_json_launch_the_same),
        case!(named_arguments_can_be_left_out),
        case!(the_rows_are_in_the_order_of_the_call),
        case!(json_gives_each_job_its_name),
        case!(texts_of_an_array_are_not_parsed_before_they_run),
        case!(a_text_of_an_array_is_not_cut),
        // When it returns.
        case!(async_does_not_wait),
        case!(sync_waits_and_gives_the_final_states),
        case!(sync_tells_its_progress),
        case!(a_cancelled_sync_call_leaves_its_jobs),
        case!(the_rows_of_the_log_are_there_when_it_returns),
        // Arguments that make no sense.
        case!(null_arguments_launch_nothing_by_mistake),
        case!(null_and_empty_texts_are_refused_by_their_number),
        case!(a_batch_without_jobs_is_refused),
        case!(jobs_that_are_no_json_array_are_refused),
        case!(unknown_keys_of_a_job_are_named),
        case!(bad_values_of_a_job_are_named),
        case!(unknown_options_are_named),
        case!(bad_values_of_options_are_named),
        case!(options_that_are_no_object_are_refused),
        case!(options_that_are_null_are_not_given),
        case!(other_types_of_execution_are_refused),
        // Whose rights and settings.
        case!(jobs_have_the_launchers_identity),
        case!(jobs_have_the_role_that_is_set),
        case!(jobs_of_a_definers_function_are_the_definers),
        case!(jobs_have_the_launchers_settings),
        case!(batches_of_one_role_keep_their_own_settings),
        // The caller.
        case!(the_callers_rollback_leaves_jobs_and_rows),
        case!(a_caught_error_of_the_caller_leaves_the_jobs),
        case!(jobs_run_before_the_caller_commits),
        case!(a_do_block_launches),
        case!(a_procedure_that_commits_launches),
        case!(a_query_launches_for_each_row),
        case!(a_caller_with_any_isolation_level_launches),
        case!(a_read_only_caller_launches),
        private_case!(a_transaction_that_creates_the_extension_cannot_launch),
    ]
}

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

fn inserts_with_text_commas_and_accents_are_launched(db: &Db) {
    let mut session = db.session();
    session.run("create table empleados (nombre text, puesto text, salario numeric)");
    let text = "  INSERT INTO empleados (nombre, puesto, salario) VALUES ('taizon Gómez', 'Desarrolladora', 85000.00);,\n\
        INSERT INTO empleados (nombre, puesto, salario) VALUES ('O''Brien, Seán', 'Jefe, señor', 1.2), ('李, 小龍', $$it's, $$, -3);, ";
    let batch = Batch::call(&mut session, &format!("pg_background_launch_num({})", literal(text)));
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, "result || ' ' || row_count"), ["INSERT 0 1 1", "INSERT 0 2 2"]);
    assert_eq!(
        session.rows("select * from empleados order by salario"),
        ["李, 小龍|it's, |-3", "O'Brien, Seán|Jefe, señor|1.2", "taizon Gómez|Desarrolladora|85000.00"]
    );
}

fn the_interface_is_as_documented(db: &Db) {
    let mut session = db.session();
    let functions = session.rows(
        "select p.proname || '(' || replace(replace(pg_get_function_arguments(p.oid), '::text', ''), '::jsonb', '') || ') ' \
         || replace(pg_get_function_result(p.oid), 'timestamp with time zone', 'timestamptz') \
         from pg_proc p join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e' \
         join pg_extension e on e.oid = d.refobjid and d.refclassid = 'pg_extension'::regclass \
         where e.extname = 'pg_background_mgr'",
    );
    let launched = "TABLE(pid integer, status text, uuid_parent uuid, uuid_child uuid)";
    let rest = "p_monitor boolean DEFAULT true, p_exec_type text DEFAULT 'async', p_options jsonb DEFAULT '{}')";
    let followed = "p_show_verbose boolean DEFAULT true, p_timeout interval DEFAULT NULL::interval) \
        TABLE(pid integer, status text, uuid_parent uuid, uuid_child uuid, name text, query text, result text, message text, \
        queue_position bigint, start_time_exec timestamptz, end_time_exec timestamptz, elapsed interval)";
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
        "id bigint, pid integer, status text, ip_client inet, user_name name, uuid_parent uuid, uuid_child uuid, query text, \
         result text, start_time_exec timestamp with time zone, end_time_exec timestamp with time zone, name text, \
         queued_at timestamp with time zone, attempts integer, row_count bigint, command_tag text, sqlstate text, \
         message text, detail text, hint text, context text, epoch bigint"
    );
}

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

fn texts_of_an_array_are_not_parsed_before_they_run(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["selct 1", "select 'open", "select 3"]);
    assert_eq!(batch.finish(&mut session), ["failed", "failed", "succeeded"]);
    assert_eq!(batch.column(&mut session, "sqlstate"), ["42601", "42601", "∅"]);
    let batch = Batch::launch_json(&mut session, r#"["selct 1", {"query": "select 2"}]"#);
    assert_eq!(batch.finish(&mut session), ["failed", "succeeded"]);
}

fn a_text_of_an_array_is_not_cut(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["select 1, 2", "select 1; select 2"]);
    assert_eq!(batch.children.len(), 2);
    batch.succeed(&mut session);
}

fn async_does_not_wait(db: &Db) {
    let (mut session, gate) = (db.session(), Gate::close(db.session()));
    let batch = Batch::launch(&mut session, &[gate::WAIT, gate::WAIT]);
    assert!(batch.states(&mut session).iter().all(|state| ["queued", "running"].contains(&state.as_str())));
    gate.open();
    batch.succeed(&mut session);
}

fn sync_waits_and_gives_the_final_states(db: &Db) {
    let (mut session, mut watcher, gate) = (db.session(), db.session(), Gate::close(db.session()));
    let call = format!(
        "select status, pid is not null from pg_background_launch_num({}, p_exec_type => 'sync')",
        array(&[gate::WAIT, "select 1 / 0", "select 3"])
    );
    session.send(&call);
    crate::manager::wait_at_gate(&mut watcher, 1);
    pg_background_mgr_tests::wait_until("the others have ended", || {
        counts(&mut watcher, "true") == ["failed 1", "running 1", "succeeded 1"]
    });
    gate.open();
    let reply = session.finish(&call);
    assert!(reply.error.is_none(), "{:?}", reply.error);
    assert_eq!(reply.last_rows().expect("rows").text_rows(), ["succeeded|t", "failed|t", "succeeded|t"]);
}

fn sync_tells_its_progress(db: &Db) {
    let mut session = db.session();
    session.run("select * from pg_background_launch_num('select 1, select 2, select 3', p_exec_type => 'sync')");
    let notices = session.notice_texts();
    assert!(!notices.is_empty() && notices.iter().all(|notice| notice.starts_with("NOTICE: ")), "{notices:?}");
}

fn a_cancelled_sync_call_leaves_its_jobs(db: &Db) {
    let (mut session, mut watcher, gate) = (db.session(), db.session(), Gate::close(db.session()));
    watcher.run("create table ran (a int)");
    let text = format!("{}; insert into ran values (1)", gate::WAIT);
    let call = format!("select * from pg_background_launch_num({}, p_exec_type => 'sync')", array(&[&text, &text]));
    session.send(&call);
    crate::manager::wait_at_gate(&mut watcher, 2);
    session.canceller().cancel();
    assert_eq!(session.finish(&call).error.expect("an error").sqlstate(), "57014");
    assert_eq!(counts(&mut watcher, "true"), ["running 2"]);
    gate.open();
    drain(&mut watcher);
    assert_eq!(counts(&mut watcher, "true"), ["succeeded 2"]);
    assert_eq!(watcher.value("select count(*) from ran"), "2");
}

fn the_rows_of_the_log_are_there_when_it_returns(db: &Db) {
    let (mut session, mut other, gate) = (db.session(), db.session(), Gate::close(db.session()));
    for _ in 0..20 {
        let batch = Batch::launch(&mut session, &times(gate::WAIT, 5));
        let query = format!("select count(*) from log_background where uuid_parent = '{}'", batch.parent);
        assert_eq!(other.value(&query), "5");
    }
    gate.open();
    drain(&mut session);
}

/// Nothing was launched by what was refused.
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

fn null_arguments_launch_nothing_by_mistake(db: &Db) {
    let mut session = db.session();
    for argument in ["null::text", "null::text[]", "null::jsonb", "null"] {
        assert_refused(&mut session, argument, "22004", &[]);
    }
    assert_nothing_launched(&mut session);
    // A null for what has a default is an error or the default.
    for arguments in
        ["'select 1', p_monitor => null", "'select 1', p_exec_type => null", "'select 1', p_options => null"]
    {
        let before = session.number("select count(*) from log_background");
        let reply = session.ask(&format!("select * from pg_background_launch_num({arguments})"));
        let launched = match reply.error {
            Some(error) => {
                assert!(["22004", "22023"].contains(&error.sqlstate().as_str()), "{arguments}: {error}");
                0
            }
            None => 1,
        };
        assert_eq!(session.number("select count(*) from log_background"), before + launched, "{arguments}");
    }
    drain(&mut session);
}

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

fn a_batch_without_jobs_is_refused(db: &Db) {
    let mut session = db.session();
    for arguments in ["''", "'  '", "array[]::text[]", "'[]'::jsonb"] {
        assert_refused(&mut session, arguments, "22023", &[]);
    }
    assert_nothing_launched(&mut session);
}

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

fn unknown_keys_of_a_job_are_named(db: &Db) {
    let mut session = db.session();
    for key in ["querys", "Query", "priority", "mode", "max_workers", "on_error", "", "año"] {
        let jobs = format!(r#"'[{{"query": "select 1"}}, {{"query": "select 2", "{key}": 1}}]'::jsonb"#);
        assert_refused(&mut session, &jobs, "22023", &[&format!("\"{key}\""), "2"]);
    }
    assert_refused(&mut session, r#"'[{"name": "no query"}]'::jsonb"#, "22004", &[]);
    assert_nothing_launched(&mut session);
}

/// Values that make no sense for a job, wherever they are given.
const BAD_VALUES: [(&str, &[&str]); 4] = [
    ("name", &["5", "true", "[]", "{}"]),
    ("timeout", &["-1", "\"-1 s\"", "\"soon\"", "\"\"", "true", "[]", "{}", "1e300"]),
    ("max_attempts", &["0", "-1", "1.5", "\"x\"", "true", "[]", "1e300", "9999999999"]),
    ("retry_delay", &["-0.5", "\"-1 minute\"", "\"later\"", "false", "{}"]),
];

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

fn unknown_options_are_named(db: &Db) {
    let mut session = db.session();
    for key in ["Mode", "workers", "query", "max_worker", "", "ñ"] {
        let arguments = format!(r#"'select 1', p_options => '{{"name": "x", "{key}": 1}}'"#);
        assert_refused(&mut session, &arguments, "22023", &[&format!("\"{key}\"")]);
    }
    assert_nothing_launched(&mut session);
}

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

fn options_that_are_no_object_are_refused(db: &Db) {
    let mut session = db.session();
    for options in ["[]", "5", "true", r#""name""#, r#"[{"name": "x"}]"#] {
        assert_refused(&mut session, &format!("'select 1', p_options => '{options}'"), "22023", &["p_options"]);
    }
    assert_nothing_launched(&mut session);
}

fn options_that_are_null_are_not_given(db: &Db) {
    let mut session = db.session();
    let options = r#"{"name": null, "mode": null, "max_workers": null, "on_error": null, "timeout": null,
        "max_attempts": null, "retry_delay": null}"#;
    Batch::launch_with(&mut session, &["select 1", "select 2"], options).succeed(&mut session);
}

fn other_types_of_execution_are_refused(db: &Db) {
    let mut session = db.session();
    for kind in ["", "synchronous", " async", "a", "both"] {
        assert_refused(&mut session, &format!("'select 1', p_exec_type => '{kind}'"), "22023", &[kind]);
    }
    assert_nothing_launched(&mut session);
}

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
            "select distinct concat_ws('|', status, {}, {}, {}, user_name) from log_background where uuid_parent = '{parent}'",
            cell("s"),
            cell("c"),
            cell("r")
        );
        assert_eq!(admin.rows(&shown), [format!("succeeded|{owner}|{owner}|none|{owner}")]);
    }
}

fn jobs_have_the_launchers_settings(db: &Db) {
    let mut session = db.client().parameter("options", "-c my.startup=yes").connect();
    session.run(
        "create schema s; create table s.t as select 7 as a; set search_path = s, public; set work_mem = '7MB'; \
         set my.own = 'it''s, \"mine\"'; set datestyle = 'German, DMY'; begin; set local timezone = 'Asia/Tokyo'",
    );
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

fn jobs_run_before_the_caller_commits(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run("begin; insert into t values (1)");
    let batch = Batch::launch(&mut session, &["select count(*) as n from t"]);
    batch.succeed(&mut session);
    assert_eq!(batch.log(&mut session, 0, &cell("n")), "0", "a job does not see its caller's uncommitted rows");
    session.run("commit");
}

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

fn a_read_only_caller_launches(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    session.run("begin read only");
    let batch = Batch::launch(&mut session, &["insert into ran values (1)"]);
    batch.succeed(&mut session);
    session.run("rollback");
    assert_eq!(session.rows("table ran"), ["1"]);
}

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
