//! Texts, servers and batches at the ends of what is possible.

use crate::support::batch::{array, drain, stubborn, Batch};
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session, SLEEP_FOREVER};

/// The SQLSTATE of a launch of this text expression, and how many jobs there are otherwise.
fn cut(session: &mut Session, text: &str, delimiter: &str) -> Result<i64, String> {
    let reply = session.ask(&format!("select count(*) from pg_background_launch_num({text}, {delimiter})"));
    match reply.error {
        Some(error) => Err(error.sqlstate()),
        None => Ok(reply.last_rows().expect("a row").text_rows()[0].parse().expect("a number")),
    }
}

#[case(slow)]
fn texts_that_are_hard_to_cut_are_cut_or_refused() {
    let cluster = Cluster::start_with_extension(&[]);
    let mut session = cluster.session("postgres");
    session.run("set statement_timeout = '40s'");
    let refused = |sqlstate: &str| Err(sqlstate.to_owned());
    for (text, delimiter, expected) in [
        // Delimiters alone: nothing to run.
        ("repeat(',', 1000000)", "','", refused("22023")),
        // One query whatever its commas are.
        ("'select ' || repeat('1,', 1000000) || '1'", "','", Ok(1)),
        ("'select 1' || repeat(' union all select 1', 100000)", "' union '", Ok(1)),
        ("'select ' || repeat('(', 2000) || '1,1' || repeat(')', 2000)", "','", Ok(1)),
        ("'select ' || repeat('(', 100000) || '1,1' || repeat(')', 100000)", "','", refused("42601")),
        ("'select 1' || repeat(' /* , */', 500000)", "','", Ok(1)),
        ("'select 1' || repeat(', $a$,$a$', 500000)", "','", Ok(1)),
        ("'select 1, select 2'", "repeat('x', 15000000)", refused("42601")),
        ("'select 1' || repeat('x', 1000000) || ';select 2'", "repeat('x', 1000000) || ';'", Ok(2)),
        ("repeat('select 1;', 1000002)", "';'", refused("54000")),
        // Quotes and comments without an end.
        ("'select 1,' || repeat('/*', 500000)", "','", refused("42601")),
        ("'select 1 ' || repeat('/*', 500000)", "','", refused("42601")),
        ("'select 1,' || repeat('$a$', 100001)", "','", refused("42601")),
        ("'select 1,' || repeat('''', 99999)", "','", refused("42601")),
    ] {
        assert_eq!(cut(&mut session, text, delimiter), expected, "{text}");
    }
    drain(&mut session);
    assert_eq!(session.job("select 42", "n int"), ["42"]);
}

#[case(slow)]
fn cutting_can_be_cancelled(db: &Db) {
    let mut session = db.session();
    session.run("set statement_timeout = '100ms'");
    // Each comma is in doubt, and the text is long.
    let text = "'select ' || repeat('greatest(1, 2) in (1, 2), ', 300000) || 'x('";
    let error = session.error(&format!("select count(*) from pg_background_launch_num({text})"));
    assert_eq!(error.sqlstate(), "57014", "{error}");
    session.run("reset statement_timeout");
    assert_eq!(session.value("select count(*) from log_background"), "0");
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
}

#[case(slow)]
fn a_server_with_few_processes_works_or_says_what_it_lacks() {
    for number in 0..5 {
        let cluster = Cluster::start_with_extension(&[("max_worker_processes", &number.to_string())]);
        let mut session = cluster.session("postgres");
        // One is the server's own, for logical replication.
        let call = "select count(*) from pg_background_launch_num(array['select 1', 'select 2'])";
        if number < 3 {
            let error = session.error(call);
            let expected = ("53000".to_owned(), "no background workers are available to pg_background_mgr".to_owned());
            assert_eq!(error.brief(), expected, "{number}");
        } else {
            Batch::launch(&mut session, &["select 1", "select 2", "select 3"]).succeed(&mut session);
        }
        if number < 2 {
            let error = session.error("select pg_background_launch('select 1')");
            assert_eq!(error.brief(), ("53000".to_owned(), "could not register background process".to_owned()));
        } else {
            let mut pid = 0;
            wait_until("a process is free", || {
                let reply = session.ask("select pg_background_launch('select 42')");
                pid = reply.last_rows().and_then(|rows| rows.text_rows().first()?.parse().ok()).unwrap_or(0);
                pid != 0
            });
            assert_eq!(session.result(pid, "n int"), ["42"], "{number}");
        }
    }
}

#[case(slow, oldest_and_newest)]
fn thousands_of_batches_hold_up_nobody() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "1")]);
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    let held = Batch::launch(&mut session, &[SLEEP_FOREVER]);
    held.wait_state(&mut session, 0, "running");
    session.run(
        "create table batches as select b.uuid_parent from generate_series(1, 2000) i, \
         lateral pg_background_launch_num(array['select ' || i]) as b",
    );
    other.run("set statement_timeout = '10s'");
    assert_eq!(other.value("select count(*) from pg_background_jobs where status = 'queued'"), "2000");
    assert_eq!(other.job("select 42", "n int"), ["42"]);
    let last = Batch::launch(&mut other, &["select 43"]);
    other.run("reset statement_timeout");
    session.run(&format!("select pg_background_stop('{}')", held.parent));
    drain(&mut session);
    last.succeed(&mut other);
    let ended = "select count(*) || ' ' || count(distinct uuid_parent) from log_background \
                 where status = 'succeeded' and uuid_parent in (select uuid_parent from batches)";
    assert_eq!(session.value(ended), "2000 2000");
}

#[case(slow)]
fn attempts_without_end_are_stopped_and_begun_again(db: &Db) {
    let mut session = db.session();
    let endless = r#"{"max_attempts": 2147483647, "retry_delay": "280000 years"}"#;
    let batch = Batch::launch_with(&mut session, &["select 1 / 0", &stubborn()], endless);
    for _ in 0..2 {
        batch.wait_state(&mut session, 1, "running");
        wait_until("the attempt has failed", || {
            batch.log(&mut session, 0, "status || ' ' || sqlstate") == "queued 22012"
        });
        let stopped = format!("select now from pg_background_stop('{}', '0')", batch.parent);
        assert_eq!(session.rows(&stopped), ["stopped", "stopped"]);
        wait_until("both are stopped", || batch.states(&mut session) == ["stopped", "stopped"]);
        assert_eq!(crate::support::batch::retry(&mut session, &batch.parent).len(), 2);
    }
    session.run(&format!("select pg_background_stop('{}', '0')", batch.parent));
    drain(&mut session);
}

#[case(slow)]
fn a_job_gives_many_odd_columns_to_the_log(db: &Db) {
    let mut session = db.session();
    let columns: Vec<String> =
        (0..45).map(|number| format!("repeat('é\"\\', 20)::text as \"c {number}\"\"\\\"")).collect();
    let odd = [
        format!("select {}", columns.join(", ")),
        "select 1 as a, 2 as a, '{}'::jsonb as j, 'NaN'::float8 as n, '\\x00ff'::bytea as b".to_owned(),
        "select from generate_series(1, 3)".to_owned(),
        "select chr(i) as c from generate_series(1, 300) i".to_owned(),
        "select array[row(1, 'a'), null] as r, '[1,2)'::int4range as g, 'infinity'::timestamptz as t".to_owned(),
    ];
    let odd: Vec<&str> = odd.iter().map(String::as_str).collect();
    let batch = Batch::launch(&mut session, &odd);
    batch.succeed(&mut session);
    // Each is valid JSON with as many rows as the job gave.
    let rows = "json_array_length(result::json) = row_count";
    assert_eq!(batch.column(&mut session, rows), ["t", "t", "t", "t", "t"]);
    assert_eq!(batch.log(&mut session, 0, "(select count(*) from json_object_keys(result::json -> 0))"), "45");
    let first = batch.log(&mut session, 0, "result::json -> 0 ->> 'c 0\"\\'");
    assert_eq!(first, "é\"\\".repeat(20));
}

#[case(slow, oldest_and_newest)]
fn a_loop_that_catches_errors_launches_thousands_of_jobs(db: &Db) {
    let mut session = db.session();
    // Of both kinds; some fail, some are refused, some are given up.
    let calls = array(&["select 1 / 0", "select 1"]);
    let hundred = format!(
        "do $$ declare job int; begin for i in 1 .. 100 loop \
         begin perform * from pg_background_result(pg_background_launch('select 1 / 0')) as (a int); \
         exception when others then null; end; \
         begin job := pg_background_launch('select 1'); perform pg_background_detach(job); \
         exception when others then null; end; \
         begin perform pg_background_launch_num({calls}, p_options => '{{\"timeout\": -1}}'); \
         exception when others then null; end; \
         begin perform pg_background_launch_num({calls}); perform 1 / 0; \
         exception when division_by_zero then null; end; end loop; end $$"
    );
    let memory = |session: &Session| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", session.pid())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
        line.trim().split(' ').next().and_then(|size| size.parse::<u64>().ok()).expect("a size")
    };
    session.run(&hundred);
    session.run(&hundred);
    let early = memory(&session);
    (0..6).for_each(|_| drop(session.run(&hundred)));
    let late = memory(&session);
    assert!(late <= early + 2048, "{early} kB, then {late} kB");
    drain(&mut session);
    assert_eq!(session.value("select count(*) from log_background"), "1600");
}
