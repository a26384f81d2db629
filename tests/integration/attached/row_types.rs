//! Row types that are altered between a job and the reading of its result, and results of many columns of row types.

use crate::support::barrier::{self, Barrier};
use pg_background_mgr_tests::{case, wait_until, Db, Session};

/// Types over the row type `c`: how a column is declared, and a value of it that is made of a row.
fn forms(session: &mut Session) -> Vec<(&'static str, &'static str)> {
    session.run(
        "create type c as (x int8, y int8); create type n as (a int, c c); create domain d as c; \
         create domain da as c[]; \
         create function less(c, c) returns bool language sql immutable as 'select $1.x < $2.x'; \
         create type r as range (subtype = c)",
    );
    let mut forms = vec![
        ("c", "row(16000, 99999999999999)::c"),
        ("c[]", "array[row(16000, 99999999999999)::c, null]"),
        ("n", "row(1, row(16000, 99999999999999)::c)::n"),
        ("n[]", "array[row(1, row(16000, 99999999999999)::c)::n]"),
        ("d", "row(16000, 99999999999999)::c::d"),
        ("da", "array[row(16000, 99999999999999)::c]::da"),
        ("r", "r(row(16000, 1)::c, row(16000, 99999999999999)::c)"),
        ("r[]", "array[r(row(16000, 1)::c, row(16000, 99999999999999)::c)]"),
    ];
    if session.number("select current_setting('server_version_num')") >= 140_000 {
        forms.push(("r_multirange", "r_multirange(r(row(16000, 1)::c, row(16000, 99999999999999)::c))"));
    }
    forms
}

fn read(pid: i32, declared: &str) -> String {
    format!("select v::text from pg_background_result({pid}) as (v {declared})")
}

/// Launches a job that gives a value, waits until it has ended, and tells the value's text.
fn launch(session: &mut Session, value: &str) -> (i32, String) {
    let text = session.value(&format!("select ({value})::text"));
    session.run("create table if not exists done (n int); truncate done");
    let pid = session.launch(&format!("select {value} as v; insert into done values (1)"));
    wait_until("the end of the job", || session.value("select count(*) from done") == "1");
    (pid, text)
}

#[case(slow)]
fn values_of_an_altered_row_type_are_read_as_their_texts_say(db: &Db) {
    let mut session = db.session();
    for (declared, value) in forms(&mut session) {
        let (pid, text) = launch(&mut session, value);
        let (as_text, _) = launch(&mut session, value);
        let (as_listed, _) = launch(&mut session, value);
        session.run("alter type c alter attribute x type text cascade, alter attribute y type text cascade");
        assert_eq!(session.rows(&read(pid, declared)), [text.as_str()], "{declared}");
        assert_eq!(session.rows(&read(as_text, "text")), [text.as_str()], "{declared}");
        // Without a column list it is a text.
        let listed = format!("select pg_background_result({as_listed})::text");
        assert!(session.value(&listed).contains("16000"), "{declared}");
        session.run("alter type c alter attribute x type int8 cascade, alter attribute y type int8 cascade");
    }
}

#[case(slow)]
fn texts_that_do_not_fit_an_altered_row_type_are_errors_and_stay(db: &Db) {
    let mut session = db.session();
    for (declared, value) in forms(&mut session) {
        let (pid, text) = launch(&mut session, value);
        session.run("alter type c alter attribute x type int8 cascade, alter attribute y type uuid cascade");
        for _ in 0..2 {
            assert_eq!(session.error(&read(pid, declared)).sqlstate(), "22P02", "{declared}");
        }
        assert_eq!(session.rows(&read(pid, "text")), [text.as_str()], "{declared}");
        session.run("alter type c alter attribute y type int8 cascade");
    }
}

#[case(slow)]
fn a_row_type_altered_at_any_depth_is_seen(db: &Db) {
    let mut session = db.session();
    session.run(
        "create type t0 as (v int8); create domain d0 as t0[]; create type t1 as (v d0); create type t2 as (v t1[]); \
         create type t3 as (k int, v t2)",
    );
    let value = "row(1, row(array[row(array[row(16000)::t0]::d0)::t1])::t2)::t3";
    let (pid, text) = launch(&mut session, value);
    session.run("alter type t0 alter attribute v type bytea cascade");
    let said = session.ask(&read(pid, "t3"));
    match said.error {
        Some(error) => assert_eq!(error.sqlstate(), "22P02"),
        None => assert!(said.last_rows().expect("rows").text_rows()[0].contains("3136303030")),
    }
    let (pid, _) = launch(&mut session, "1");
    assert_eq!(session.rows(&read(pid, "int")), ["1"]);
    assert!(text.contains("16000"));
}

#[case(slow)]
fn added_and_dropped_columns_are_seen(db: &Db) {
    let mut session = db.session();
    session.run("create table t (x int8, y int8); insert into t values (16000, 1)");
    for alter in ["alter table t add z text", "alter table t drop x", "alter table t drop y, add y uuid"] {
        let (pid, text) = launch(&mut session, "(select t from t)");
        session.run(alter);
        let error = session.error(&read(pid, "t"));
        assert_eq!(error.sqlstate(), "22P02", "{alter}: {error:?}");
        assert_eq!(session.rows(&read(pid, "text")), [text.as_str()], "{alter}");
        session.run("drop table t; create table t (x int8, y int8); insert into t values (16000, 1)");
    }
}

#[case(slow)]
fn a_row_type_made_anew_under_its_name_is_another(db: &Db) {
    let mut session = db.session();
    session.run("create type c as (x int8, y int8)");
    let (pid, text) = launch(&mut session, "row(16000, 2)::c");
    session.run("drop type c; create type c as (x text, y text)");
    assert_eq!(session.error(&read(pid, "c")).sqlstate(), "42804");
    assert_eq!(session.rows(&read(pid, "text")), [text.as_str()]);
}

#[case(slow)]
fn a_row_type_altered_by_the_job_itself_is_seen(db: &Db) {
    let mut session = db.session();
    session.run("create table t (x int8, y int8); insert into t values (1234567890123456, 99999999999999)");
    let text = "select t as v from t; alter table t alter x type text using 'abc', alter y type text using 'def'";
    let pid = session.launch(text);
    assert_eq!(session.rows(&read(pid, "t")), ["(1234567890123456,99999999999999)"]);
}

#[case(slow)]
fn a_row_type_altered_while_it_is_read_is_seen(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    session.run("create type c as (x int8, y int8)");
    let mut barrier = Barrier::close(db.session());
    // Enough rows that the reader has some of them before the end.
    let rows = "select row(g, g)::c as v from generate_series(1, 5000) g";
    let pid = session.launch(&format!("{rows} union all (select row(0, 0)::c from ({}) as q(w))", barrier::WAIT));
    barrier.wait_for(pid);
    let call = format!("select count(*) from pg_background_result({pid}) as (v c)");
    session.send(&call);
    let reader = session.pid();
    wait_until("a reader that waits", || {
        other.value(&format!(
            "select count(*) from pg_stat_activity where pid = {reader} and wait_event_type = 'Extension'"
        )) == "1"
    });
    other.run("alter type c alter attribute x type text cascade");
    barrier.open();
    let error = session.finish(&call).error.expect("an error");
    assert_eq!(error.brief().1, "a row type of the result was altered while the result was read");
    assert_eq!(error.sqlstate(), "42804");
    assert_eq!(session.value(&call), "5001");
}

#[case(slow)]
fn a_row_type_that_stays_is_read_as_it_is(db: &Db) {
    let mut session = db.session();
    for (declared, value) in forms(&mut session) {
        let (pid, text) = launch(&mut session, value);
        session.run("alter type c rename attribute x to z");
        assert_eq!(session.rows(&read(pid, declared)), [text.as_str()], "{declared}");
        session.run("alter type c rename attribute z to x");
    }
}

#[case(slow)]
fn a_row_of_1664_row_types_is_read(db: &Db) {
    let mut session = db.session();
    session.run("create type c as (x int8, y text)");
    let job = |count: usize| {
        let values: Vec<String> = (1..=count).map(|n| format!("row({n}, 'x')::c as c{n}")).collect();
        format!("select {}", values.join(", "))
    };
    // The server's limits: so many columns in a column list, and in a row.
    for kind in ["c", "text"] {
        let list: Vec<String> = (1..=1600).map(|n| format!("c{n} {kind}")).collect();
        let pid = session.launch(&job(1600));
        let call = format!(
            "select c1::text, c833::text, c1600::text from pg_background_result({pid}) as ({})",
            list.join(",")
        );
        assert_eq!(session.rows(&call), ["(1,x)|(833,x)|(1600,x)"]);
    }
    let pid = session.launch(&job(1664));
    let row = session.value(&format!("select pg_background_result({pid})::text"));
    assert!(row.starts_with("(\"(1,x)\",") && row.ends_with(",\"(1664,x)\")"), "{row}");
}
