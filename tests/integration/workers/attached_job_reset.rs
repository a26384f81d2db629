//! A job in a worker that has served others sees what it would see in a new process.

use crate::support::idle_worker::{
    get_idle_worker, read, run, run_and_wait_idle, run_in_new_process, wait_idle, Outcome,
};
use pg_background_mgr_tests::{case, wait_until, Db, Session};

/// Jobs that leave something, each in statements that are committed one by one where that is possible.
const LEAVES: &[&str] = &[
    "set work_mem = '77MB'; set enable_seqscan = off; set datestyle = 'German, DMY'; set timezone = 'Asia/Tokyo'",
    "set my.own = 'x'; set other.own = 'y'",
    "select set_config('my.own', 'x', false), set_config('bytea_output', 'escape', false)",
    "set search_path = pg_catalog; set row_security = off; set standard_conforming_strings = off",
    "set statement_timeout = '1h'; set lock_timeout = '1h'; set idle_in_transaction_session_timeout = '1h'",
    "set client_encoding = 'LATIN1'",
    "set application_name = 'another'",
    "reset application_name; reset client_encoding",
    "reset all",
    "discard all",
    "set client_min_messages = error; set log_min_messages = fatal",
    "set role pg_monitor",
    "set session authorization pg_monitor; set my.own = 'x'",
    "begin; set role pg_monitor; commit; set local role none",
    "create temp table mine (a serial primary key, b text); insert into mine (b) values ('x'); \
     create temp view v as select * from mine",
    "create temp table mine (a int) on commit delete rows; create temp sequence s",
    "create function pg_temp.mine() returns int language sql as 'select 1'; create type pg_temp.kind as enum ('a'); \
     create domain pg_temp.digits as text; create aggregate pg_temp.total(int) (sfunc = int4pl, stype = int)",
    "prepare p as select 1; prepare q (int) as select $1",
    "select pg_advisory_lock(77), pg_advisory_lock_shared(7, 7), pg_advisory_lock(77)",
    "declare c cursor with hold for select generate_series(1, 10000); declare d binary cursor with hold for select 1",
    "begin; declare c cursor for select 1; fetch c",
    "select nextval('s'), nextval('s')",
    "select setseed(0.5)",
    "begin; insert into t values (1); lock table t; savepoint a; insert into t values (2)",
    "begin; select 1 / 0",
    "select 1 / 0",
    "selct",
    "set transaction isolation level serializable, read only, deferrable",
    "begin isolation level repeatable read read only; select 1; commit and chain",
    "set session characteristics as transaction isolation level serializable, read only",
    "set default_transaction_read_only = on",
    "set session_replication_role = replica; set synchronous_commit = off; set default_transaction_deferrable = on",
    "select pg_create_physical_replication_slot(current_database(), false, true)",
    "load 'plpgsql'; do $$ begin perform 1 / 0; exception when others then null; end $$",
    "do $$ begin set my.own = 'x'; raise exception 'x'; end $$",
    "do $$ begin perform set_config('my.own', 'x', false); perform set_config('role', 'pg_monitor', false); end $$",
    "call committing()",
    "vacuum t",
    "copy t to stdout; select count(*) from t",
    "set debug_print_plan = on; set log_statement = 'all'; set log_duration = on",
    "set pg_background_mgr.log_result_limit = '1MB'",
    "select pg_notify('c', 'p')",
    "select pg_backend_pid(), pg_cancel_backend(pg_backend_pid()), pg_sleep(10)",
    "set temp_tablespaces = ''; set default_tablespace = pg_default; set temp_buffers = '2MB'; \
     create temp table mine (a int)",
    "set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; \
     set min_parallel_table_scan_size = 0; select count(*) from many",
    "set plpgsql.extra_warnings = 'all'; select 1",
    "set jit = on; set jit_above_cost = 0; select count(*) from many",
];

/// Every setting, and whatever else a session shows of itself. A library that one job has loaded stays for the next.
const SHOWN: &str = "load 'plpgsql';
    select 'setting', name, setting || ' ' || coalesce(reset_val, '') from pg_settings
    union all select 'own setting', name, coalesce(current_setting(name, true), '')
        from unnest(array['my.own', 'other.own', 'role', 'session_authorization']) name
    union all select 'user', session_user::text, current_user::text
    union all select 'schemas', current_schemas(false)::text, current_schema()
    union all select 'relation', relname, relkind::text from pg_class where relname in ('mine', 'v') \
    or relpersistence = 't'
    union all select 'function', proname, '' from pg_proc where proname in ('mine', 'total')
    union all select 'type', typname, '' from pg_type where typname in ('kind', 'digits')
    union all select 'statement', name, statement from pg_prepared_statements
    union all select 'cursor', name, statement from pg_cursors
    union all select 'lock', locktype || ' ' || coalesce(relation::regclass::text, ''), mode
        from pg_locks where pid = pg_backend_pid() and (locktype = 'advisory' or relation = 't'::regclass)
    union all select 'activity', concat_ws(' ', state, usename, datname, application_name, client_addr, backend_type),
            concat_ws(' ', backend_xid, xact_start = now(), md5(query), leader)
        from pg_stat_activity left join (values (null::int)) l (leader) on true where pid = pg_backend_pid()
    union all select 'transaction', current_setting('transaction_isolation'), txid_current_if_assigned()::text
    union all select 'slot', slot_name, '' from pg_replication_slots where slot_name = current_database()
    union all select 'rows', count(*)::text, '' from t
    order by 1, 2, 3";

/// Texts for what a job may use or see: after each that leaves something.
const WORKS: &[&str] = &[
    "select count(*), current_schema() from t",
    "select a from mine",
    "create temp table mine (a int); insert into mine values (1) returning a",
    "select to_regprocedure('pg_temp.mine()'), to_regtype('pg_temp.kind'), to_regclass('pg_temp.v')",
    "prepare p as select 'right'; execute p",
    "execute p",
    "fetch c",
    "begin; declare c cursor for select 'right'; fetch c; commit",
    "select lastval()",
    "select currval('s')",
    "select '日本', length('日本'), '\\x41'::bytea, '2000-02-01'::date, '2000-02-01 12:00Z'::timestamptz, e'\\'', 'a\\b'",
    "do $$ begin raise notice 'n'; raise warning 'w'; end $$",
    "insert into t values (7) returning a; delete from t where a = 7",
    "begin; select current_setting('transaction_isolation'), current_setting('transaction_read_only'); commit",
    "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
    "select session_user, current_user, current_setting('role'), current_setting('is_superuser')",
    "set work_mem = '1MB'; reset work_mem; select current_setting('work_mem'), current_setting('application_name')",
    "reset all; select current_setting('application_name'), current_setting('client_encoding')",
    "discard all",
    "vacuum t",
    "call committing()",
    "copy t to stdout; copy (select 1, 'x') to stdout",
    "select count(*) from many",
    "select 1; select 1 / 0",
    "select pg_sleep(0.02)",
    "commit",
    "unlisten *",
    "select count(*) from pg_stat_activity where pid = pg_backend_pid() and xact_start = now() and state = 'active'",
    "with x as (insert into t values (8) returning a) select * from x; delete from t",
];

const SETUP: &str = "create table t (a int); create sequence s; \
    create table many as select generate_series(1, 20000) a; \
    create procedure committing() language plpgsql as $$ begin insert into t values (1); commit; delete from t; \
    rollback; delete from t; commit; end $$";

/// `text` is the same in the worker `pid` as it was in a new process.
#[track_caller]
fn assert_same(session: &mut Session, pid: i32, text: &str, expected: &Outcome, after: &str) {
    let (next, outcome) = run(session, text);
    assert_eq!(next, pid, "the same process after: {after}");
    for row in &outcome.rows {
        assert!(expected.rows.contains(row), "{row} is not seen in a new process, after: {after}");
    }
    assert_eq!(&outcome, expected, "{text}, after: {after}");
}

#[case]
fn nothing_that_a_job_leaves_is_seen_by_the_next(db: &Db) {
    let mut session = db.session();
    session.run(SETUP);
    let expected = run_in_new_process(&mut session, SHOWN);
    assert!(expected.error.is_none() && expected.rows.len() > 200, "{expected:?}");
    let pid = get_idle_worker(&mut session);
    assert_same(&mut session, pid, SHOWN, &expected, "nothing");
    for first in LEAVES {
        assert_eq!(run(&mut session, first).0, pid, "{first}");
        assert_same(&mut session, pid, SHOWN, &expected, first);
    }
}

#[case]
fn the_next_job_works_as_in_a_new_process(db: &Db) {
    let mut session = db.session();
    session.run(SETUP);
    assert_works(&mut session);
}

/// `session` is of a role that may use what [`SETUP`] makes.
#[track_caller]
fn assert_works(session: &mut Session) {
    let expected: Vec<Outcome> = WORKS.iter().map(|text| run_in_new_process(session, text)).collect();
    let pid = get_idle_worker(session);
    // Each with some of the others: all together are too many.
    for (number, first) in LEAVES.iter().chain(WORKS).enumerate() {
        for (second, expected) in WORKS.iter().zip(&expected).skip(number % 3).step_by(3) {
            assert_eq!(run(session, first).0, pid, "{first}");
            assert_same(session, pid, second, expected, first);
        }
    }
}

#[case]
fn the_next_job_works_so_for_a_plain_role(db: &Db) {
    let mut admin = db.session();
    let weak = db.role("weak", "login");
    admin.run(&format!("grant pg_monitor to {weak}; grant create on schema public to {weak}"));
    admin.run(&format!("grant pg_signal_backend to {weak}"));
    let mut session = db.client().user(&weak).connect();
    session.run(SETUP);
    assert_works(&mut session);
}

#[case]
fn settings_of_the_launcher_hold_in_each_job(db: &Db) {
    let mut session = db.session();
    let shown = "select current_setting('work_mem'), current_setting('my.own', true), current_setting('search_path'), \
                 current_setting('timezone'), current_setting('plpgsql.extra_errors')";
    let pid = get_idle_worker(&mut session);
    for change in [
        "set work_mem = '9MB'; set my.own = 'kept'; set search_path = s, public; set plpgsql.extra_errors = 'all'",
        "set work_mem = '10MB'; set timezone = 'Asia/Tokyo'",
        "reset work_mem; set my.own = ''",
        "reset all",
        "set work_mem = '9MB'",
        "discard all",
    ] {
        session.run(change);
        let (first, seen) = run(&mut session, shown);
        let (second, again) = run(&mut session, shown);
        assert_eq!((first, second, &seen), (pid, pid, &again));
        for between in
            ["set work_mem = '1MB'; set my.own = 'x'", "reset all", "discard all", "set timezone = 'PST8PDT'; selct"]
        {
            assert_eq!(run(&mut session, between).0, pid);
            assert_eq!(run(&mut session, shown), (pid, seen.clone()), "{change}, {between}");
        }
        let session_sees = session.value(
            &shown
                .replace("select ", "select row(")
                .replace(", current_setting('plpgsql.extra_errors')", ", current_setting('plpgsql.extra_errors'))"),
        );
        assert_eq!(seen.rows, [session_sees], "{change}");
    }
}

#[case]
fn what_a_client_has_set_is_what_reset_goes_back_to(db: &Db) {
    let client = db
        .client()
        .parameter("options", "-c work_mem=9MB -c my.own=client -c statement_timeout=1h -c search_path=s,public")
        .application_name("first");
    let mut session = client.connect();
    let shown =
        "select current_setting('work_mem'), current_setting('my.own', true), current_setting('application_name'), \
                 current_setting('statement_timeout'), current_setting('search_path')";
    let texts = [
        shown.to_owned(),
        format!("set work_mem = '1MB'; set my.own = 'x'; reset work_mem; reset my.own; {shown}"),
        format!("set application_name = 'x'; reset all; {shown}"),
        "select name, setting, reset_val, boot_val from pg_settings where source = 'client' \
         or name = 'work_mem' order by 1"
            .to_owned(),
    ];
    for change in [
        "",
        "set work_mem = '10MB'; set my.own = 'set'; set application_name = 'changed'",
        "reset all",
        "set my.own = 'again'",
    ] {
        session.run(change);
        for text in &texts {
            let expected = run_in_new_process(&mut session, text);
            let pid = get_idle_worker(&mut session);
            for first in ["select 1", "set work_mem = '2MB'; set my.own = 'y'", "reset all", "discard all", "selct"] {
                assert_eq!(run(&mut session, first).0, pid);
                assert_same(&mut session, pid, text, &expected, &format!("{change}; {first}"));
            }
        }
    }
}

#[case]
fn the_settings_of_one_client_are_not_those_of_the_next(db: &Db) {
    let options = [
        ("one", "-c work_mem=9MB -c my.own=one"),
        ("two", "-c my.own=two -c work_mem=10MB -c enable_seqscan=off"),
        ("three", ""),
        ("", "-c timezone=Asia/Tokyo -c other.own=four"),
        ("five", "-c client_encoding=LATIN1 -c datestyle=German -c session_replication_role=replica"),
    ];
    let texts = [
        "select name, setting, reset_val from pg_settings where name not in ('transaction_isolation') order by 1",
        "select current_setting('my.own', true), current_setting('other.own', true)",
        "set work_mem = '1MB'; reset all; \
         select current_setting('work_mem'), coalesce(current_setting('my.own', true), ''), '日本'",
    ];
    let mut sessions: Vec<Session> = options
        .iter()
        .map(|(name, options)| db.client().application_name(name).parameter("options", options).connect())
        .collect();
    let mut expected = Vec::new();
    for session in &mut sessions {
        expected.push(texts.map(|text| blank(run_in_new_process(session, text))));
    }
    let pid = get_idle_worker(&mut sessions[0]);
    for step in [1, 2] {
        for number in 0..2 * options.len() {
            let client = number * step % options.len();
            let session = &mut sessions[client];
            for (text, expected) in texts.iter().zip(&expected[client]) {
                let (next, outcome) = run(session, text);
                assert_eq!(next, pid);
                assert_eq!(&blank(outcome), expected, "{:?}: {text}", options[client]);
                wait_idle(session, pid);
            }
        }
    }
}

/// A user's own setting that nobody has set any more is empty, where it was never set it is null; so it is in any
/// session.
fn blank(mut outcome: Outcome) -> Outcome {
    for row in &mut outcome.rows {
        *row = row.replace("\"\"", "");
    }
    outcome
}

#[case]
fn the_settings_of_a_definers_caller_do_not_stay(db: &Db) {
    let mut admin = db.session();
    let owner = db.role("owner", "login");
    admin.run(&format!(
        "create function launch_as(text) returns int language sql security definer as \
         'select pg_background_launch($1)'; alter function launch_as owner to {owner}"
    ));
    let shown = "select session_user::text, current_setting('session_replication_role'), current_setting('work_mem')";
    let mut plain = db.client().user(&owner).connect();
    let (pid, before) = run(&mut plain, shown);
    wait_idle(&mut admin, pid);
    let mut strong = db.client().parameter("options", "-c session_replication_role=replica -c work_mem=9MB").connect();
    for _ in 0..3 {
        let launched = strong.value(&format!("select launch_as($q${shown}$q$)"));
        assert_eq!(launched, pid.to_string());
        assert_eq!(read(&mut strong, pid).rows, [format!("({owner},replica,9MB)")]);
        wait_idle(&mut admin, pid);
        assert_eq!(run(&mut plain, shown), (pid, before.clone()));
        wait_idle(&mut admin, pid);
    }
}

#[case]
fn the_seed_of_random_is_nobodys(db: &Db) {
    let mut session = db.session();
    let pid = get_idle_worker(&mut session);
    let known = run(&mut session, "select setseed(0.5); select random()").1;
    for first in ["select setseed(0.5)", "set seed = 0.5", "select setseed(0.5); select 1 / 0"] {
        run(&mut session, first);
        let (next, outcome) = run(&mut session, "select random()");
        assert_eq!(next, pid);
        assert_ne!(outcome, known, "{first}");
        assert_ne!(run(&mut session, "select random()").1, outcome);
    }
}

#[case]
fn a_job_that_the_last_one_launched_is_unknown(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let pid = get_idle_worker(&mut session);
    let (first, outcome) = run(&mut session, "select pg_background_launch('insert into ran values (1)')");
    assert_eq!((first, outcome.error), (pid, None));
    let child = outcome.rows[0].trim_matches(['(', ')']).to_owned();
    for text in [
        format!("select * from pg_background_result({child}) as (a text)"),
        format!("select pg_background_detach({child})"),
        "select * from pg_background_result(1) as (a text)".to_owned(),
    ] {
        let (next, outcome) = run(&mut session, &text);
        assert_eq!((next, outcome.error.expect("an error")[&'C'].as_str()), (pid, "42704"), "{text}");
    }
    wait_until("the job of the job", || session.value("select count(*) from ran") == "1");
    // Its own jobs, and the process that they leave.
    let nested = "do $$ declare r int; begin for i in 1..20 loop select a into r from \
                  pg_background_result(pg_background_launch('select 5')) as (a int); assert r = 5; end loop; end $$";
    for _ in 0..3 {
        assert_eq!(run_and_wait_idle(&mut session, nested), pid);
    }
}

#[case]
fn advisory_locks_are_free_for_others(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    let pid = get_idle_worker(&mut session);
    for text in [
        "select pg_advisory_lock(77)",
        "select pg_advisory_lock(77), pg_advisory_lock(77); select 1 / 0",
        "begin; lock table t; select pg_advisory_xact_lock(77)",
        "select pg_try_advisory_lock_shared(77)",
    ] {
        assert_eq!(run(&mut session, text).0, pid);
        // As soon as the result is there, a moment may pass.
        wait_until("the lock is free", || other.value("select pg_try_advisory_lock(77)") == "t");
        other.run("select pg_advisory_unlock(77)");
    }
}

/// The definition of the function does not fit into its row of the catalog.
#[case]
fn a_long_temporary_function_is_gone(db: &Db) {
    let mut session = db.session();
    get_idle_worker(&mut session);
    let body = "select string_agg(md5(i::text), '') from generate_series(1, 300) as i";
    let create = format!(
        "do $$ begin execute format('create function pg_temp.long() returns text language sql as %L', \
         (select 'select ' || quote_literal(({body})))); end $$; select 1"
    );
    for _ in 0..5 {
        assert_eq!(run(&mut session, &create).1.rows, ["(1)"]);
        let error = run(&mut session, "select pg_temp.long()").1.error.expect("an error");
        assert_eq!(error[&'C'], "42883");
    }
}

#[case]
fn a_temporary_replication_slot_is_gone(db: &Db) {
    let (mut session, name) = (db.session(), &db.name);
    let pid = get_idle_worker(&mut session);
    for _ in 0..3 {
        let text = format!("select pg_create_physical_replication_slot('{name}', false, true)");
        let (next, outcome) = run(&mut session, &text);
        assert_eq!((next, outcome.error), (pid, None));
        wait_idle(&mut session, pid);
        assert_eq!(
            session.value(&format!("select count(*) from pg_replication_slots where slot_name = '{name}'")),
            "0"
        );
    }
}

#[case]
fn each_level_of_notices_is_the_sessions(db: &Db) {
    let mut session = db.session();
    let text =
        "do $$ begin raise debug 'd'; raise log 'l'; raise info 'i'; raise notice 'n'; raise warning 'w'; end $$";
    let pid = get_idle_worker(&mut session);
    for level in ["notice", "debug1", "error", "warning", "log", "notice"] {
        session.run(&format!("set client_min_messages = {level}"));
        session.notices();
        session.run(text);
        let expected: Vec<String> = own(session.notice_texts());
        for first in ["select 1", "set client_min_messages = debug1", "set client_min_messages = error; select 1 / 0"] {
            run(&mut session, first);
            assert_eq!(session.launch(text), pid);
            session.notices();
            session.run(&format!("select * from pg_background_result({pid}) as (a text)"));
            assert_eq!(own(session.notice_texts()), expected, "{level}, {first}");
        }
    }
}

/// Returns the notices that the text raises: at low levels the server has messages of its own.
fn own(texts: Vec<String>) -> Vec<String> {
    texts.into_iter().filter(|text| text.split_once(": ").is_some_and(|(_, message)| message.len() == 1)).collect()
}
