//! Values of every kind, typed and as text, also when what they came from has gone.

use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, wait_until, Db, Session};

/// Reads `expression` of type `column` typed and as text; both must be what the session itself sees.
#[track_caller]
fn assert_round_trip(session: &mut Session, expression: &str, column: &str) {
    let query = format!("select {expression}, null::{column}");
    let expected = session.rows(&query);
    assert_eq!(session.job(&query, &format!("a {column}, b {column}")), expected, "{query}");
    assert_eq!(session.job(&query, "a text, b text"), expected, "{query}, as text");
    let pid = session.launch(&query);
    let same =
        format!("select a::text = ({expression})::text from pg_background_result({pid}) as (a {column}, b {column})");
    assert_eq!(session.rows(&same), ["t"], "{query}");
}

#[case]
fn built_in_types_come_through(db: &Db) {
    let mut session = db.session();
    let values = [
        ("true", "boolean"),
        ("(-32768)::smallint", "smallint"),
        ("2147483647", "integer"),
        ("(-9223372036854775808)::bigint", "bigint"),
        ("1.1::real", "real"),
        ("'NaN'::float8", "double precision"),
        ("'-Infinity'::float8", "double precision"),
        ("12345678901234567890.0987654321::numeric", "numeric"),
        ("'NaN'::numeric", "numeric"),
        ("12.3::numeric(10,4)", "numeric(10,4)"),
        ("'12.34'::money", "money"),
        ("''::text", "text"),
        ("'ünïcödé \u{1f600}'::text", "text"),
        ("'abc'::varchar(5)", "varchar(5)"),
        ("'abc'::char(5)", "char(5)"),
        ("'a'::\"char\"", "\"char\""),
        ("'name'::name", "name"),
        ("'\\x00ff41'::bytea", "bytea"),
        ("B'101'::bit(3)", "bit(3)"),
        ("B'10101'::varbit", "varbit"),
        ("'2001-02-03'::date", "date"),
        ("'infinity'::date", "date"),
        ("'04:05:06.789'::time", "time"),
        ("'04:05:06+02'::timetz", "timetz"),
        ("'2001-02-03 04:05:06.789012'::timestamp", "timestamp"),
        ("'4714-11-24 00:00:00+00 BC'::timestamptz", "timestamptz"),
        ("'1 year -2 days 03:04:05.6'::interval", "interval"),
        ("'00112233-4455-6677-8899-aabbccddeeff'::uuid", "uuid"),
        ("'{\"a\": [1, 2 ]}'::json", "json"),
        ("'{\"a\": [1, {\"b\": null}]}'::jsonb", "jsonb"),
        ("'$.a[*] ? (@ > 1)'::jsonpath", "jsonpath"),
        ("'192.168.0.1/24'::inet", "inet"),
        ("'2001:db8::/32'::cidr", "cidr"),
        ("'08:00:2b:01:02:03'::macaddr", "macaddr"),
        ("'08:00:2b:01:02:03:04:05'::macaddr8", "macaddr8"),
        ("'(1,2)'::point", "point"),
        ("'{1,2,3}'::line", "line"),
        ("'((0,0),(1,1))'::lseg", "lseg"),
        ("'((0,0),(1,1))'::box", "box"),
        ("'[(0,0),(1,1),(2,0)]'::path", "path"),
        ("'((0,0),(1,1),(2,0))'::polygon", "polygon"),
        ("'<(1,2),3>'::circle", "circle"),
        ("to_tsvector('simple', 'a fat cat')", "tsvector"),
        ("'fat & !cat'::tsquery", "tsquery"),
        ("'[1,10)'::int4range", "int4range"),
        ("'empty'::numrange", "numrange"),
        ("'[2001-01-01,)'::tstzrange", "tstzrange"),
        ("'16/B374D848'::pg_lsn", "pg_lsn"),
        ("4294967295::oid", "oid"),
        ("'pg_class'::regclass", "regclass"),
        ("'integer'::regtype", "regtype"),
        ("'now'::regproc", "regproc"),
        ("'(7,3)'::tid", "tid"),
        ("'123'::xid", "xid"),
        ("'10:20:10,14,15'::txid_snapshot", "txid_snapshot"),
        ("'1 2 3'::oidvector", "oidvector"),
        ("array[[1,2],[3,null]]", "int[]"),
        ("'[2:3]={5,6}'::int[]", "int[]"),
        ("'{}'::text[]", "text[]"),
        ("array['a', null, 'quo\"ted, {x}', '']", "text[]"),
        ("array['{\"a\": 1}'::jsonb]", "jsonb[]"),
        ("array['[1,2]'::int4range, 'empty']", "int4range[]"),
    ];
    for (expression, column) in values {
        assert_round_trip(&mut session, expression, column);
    }
}

#[case(since = 14)]
fn types_of_newer_servers_come_through(db: &Db) {
    let mut session = db.session();
    let values = [
        ("'123'::xid8", "xid8"),
        ("'10:20:10,14,15'::pg_snapshot", "pg_snapshot"),
        ("'{[1,3), [5,8)}'::int4multirange", "int4multirange"),
        ("'Infinity'::numeric", "numeric"),
    ];
    for (expression, column) in values {
        assert_round_trip(&mut session, expression, column);
    }
}

#[case]
fn user_defined_types_come_through(db: &Db) {
    let mut session = db.session();
    session.run(
        "create type mood as enum ('sad', 'happy'); create domain positive as int check (value > 0); \
         create domain nested as positive check (value < 100); create domain numbers as int[]; \
         create type pair as (a int, b text); create type tree as (value pair, children pair[], mood mood); \
         create domain checked_pair as pair check ((value).a > 0); create type span as range (subtype = text); \
         create table kept (id int, p pair, t text); create type \"Odd type\" as (\"Odd, column\" mood[])",
    );
    let values = [
        ("'happy'::mood", "mood"),
        ("array['sad', null]::mood[]", "mood[]"),
        ("5::positive", "positive"),
        ("5::nested", "nested"),
        ("array[1,2]::positive[]", "positive[]"),
        ("'{1,2}'::numbers", "numbers"),
        ("row(1, 'x, \"y\"')::pair", "pair"),
        ("row(null, null)::pair", "pair"),
        ("array[row(1, 'x'), null, row(2, null)]::pair[]", "pair[]"),
        ("row(row(1, 'x'), array[row(2, 'y')]::pair[], 'sad')::tree", "tree"),
        ("row(1, 'x')::checked_pair", "checked_pair"),
        ("'[a,c)'::span", "span"),
        ("row(1, row(2, 'y'), 'z')::kept", "kept"),
        ("row(array['sad']::mood[])::\"Odd type\"", "\"Odd type\""),
    ];
    for (expression, column) in values {
        assert_round_trip(&mut session, expression, column);
    }
    let pid = session.launch("select row(row(1, 'x'), array[row(2, 'y')]::pair[], 'happy')::tree");
    let query = format!(
        "select (t.value).b, (t.children[1]).a + 1, t.mood > 'sad' from pg_background_result({pid}) as (t tree)"
    );
    assert_eq!(session.rows(&query.replace("t.", "(t).")), ["x|3|t"]);
}

#[case]
fn anonymous_records_read_as_text(db: &Db) {
    let mut session = db.session();
    let values = [
        ("row(1, 'a')", "(1,a)"),
        ("row(1, row(2, 'x y'))", "(1,\"(2,\"\"x y\"\")\")"),
        ("row()", "()"),
        ("array[row(1, 2), row(3, null)]", "{\"(1,2)\",\"(3,)\"}"),
        ("(select s from (select 1 as a, now() is null as b) s)", "(1,f)"),
    ];
    for (expression, expected) in values {
        assert_eq!(session.job(&format!("select {expression}"), "a text"), [expected], "{expression}");
        let pid = session.launch(&format!("select {expression}"));
        let read = session.rows(&format!("select (r).a from pg_background_result({pid}) as r (a text)"));
        assert_eq!(read, [expected]);
    }
    // Types of records are numbered by each process for itself: no such number may arrive in the launcher.
    session.run("select row(1, 2, 3), row('x'::text, now())");
    let pid = session.launch("select row('b'::text, 2.5), row(1)");
    assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(\"(b,2.5)\",\"(1)\")"]);
}

#[case]
fn named_composites_inside_records_read_as_text(db: &Db) {
    let mut session = db.session();
    session.run("create type pair as (a int, b text)");
    assert_eq!(
        session.job("select row(row(1, 'x')::pair, array[row(2, 'y')::pair])", "a text"),
        ["(\"(1,x)\",\"{\"\"(2,y)\"\"}\")"]
    );
}

#[case]
fn values_from_expanded_arrays_come_through(db: &Db) {
    let mut session = db.session();
    session.run(
        "create function grown(n int) returns int[] language plpgsql as $$ declare a int[] := '{}'; begin \
         for i in 1 .. n loop a[i] := i * i; end loop; return a; end $$; create type boxed as (a int[]); \
         create function boxed(n int) returns boxed language plpgsql as $$ declare b boxed; begin b.a := grown(n); \
         return b; end $$",
    );
    assert_round_trip(&mut session, "grown(100)", "int[]");
    assert_round_trip(&mut session, "boxed(3)", "boxed");
    assert_eq!(session.job("select grown(i) from generate_series(1, 3) i", "a int[]"), ["{1}", "{1,4}", "{1,4,9}"]);
}

const TOASTED: &str =
    "create table big (id int, word text, words text[]); alter table big alter word set storage external; \
    insert into big select i, string_agg(md5((i * j)::text), ''), array_agg(md5((i + j)::text)) \
    from generate_series(1, 5) i, generate_series(1, 1000) j group by i";

/// Ends the job with its rows unread, then removes the table and its TOAST pages.
fn launch_then_drop(session: &mut Session, text: &str) -> i32 {
    let pid = session.launch(text);
    wait_until("the job has ended", || {
        !is_alive(pid) || session.rows(&format!("select state from pg_stat_activity where pid = {pid}")) == ["idle"]
    });
    session.run("drop table big; create table filler as select repeat('x', 100) from generate_series(1, 10000)");
    session.run("checkpoint");
    pid
}

#[case]
fn toasted_values_outlive_their_table(db: &Db) {
    let mut session = db.session();
    session.run(TOASTED);
    let query = "select id, md5(word), md5(words::text) from big order by id";
    let expected = session.rows(query);
    assert!(session.holds("select pg_relation_size(reltoastrelid) > 100000 from pg_class where relname = 'big'"));
    let pid = launch_then_drop(&mut session, "select * from big order by id");
    let read = format!("select a, md5(b), md5(c::text) from pg_background_result({pid}) as (a int, b text, c text[])");
    assert_eq!(session.rows(&read), expected);
}

#[case]
fn toasted_values_inside_arrays_and_composites_outlive_their_table(db: &Db) {
    let mut session = db.session();
    session.run(TOASTED);
    session.run("create type holder as (id int, word text)");
    let text =
        "select row(id, word)::holder, array[row(id, word)::holder], row(id, word), array[word] from big order by id";
    let expected = session
        .rows(&format!("select md5(a::text), md5(b::text), md5(c::text), md5(d::text) from ({text}) s (a, b, c, d)"));
    let pid = launch_then_drop(&mut session, text);
    let read = format!(
        "select md5(a::text), md5(b::text), md5(c::text), md5(d::text) \
         from pg_background_result({pid}) as (a holder, b holder[], c text, d text[])"
    );
    assert_eq!(session.rows(&read), expected);
}

#[case]
fn compressed_values_come_through(db: &Db) {
    let mut session = db.session();
    session.run("create table big as select repeat('x', 5000) as a, repeat('y', 5000)::bytea as b");
    let pid = launch_then_drop(&mut session, "select a, b from big");
    let read = format!(
        "select a = repeat('x', 5000), b = repeat('y', 5000)::bytea from \
        pg_background_result({pid}) as (a text, b bytea)"
    );
    assert_eq!(session.rows(&read), ["t|t"]);
}

#[case]
fn rows_of_tables_with_dropped_columns_come_through(db: &Db) {
    let mut session = db.session();
    session
        .run("create table t (a int, gone text, b text); insert into t values (1, 'x', 'y'); alter table t drop gone");
    assert_eq!(session.job("select * from t", "a int, b text"), ["1|y"]);
    assert_eq!(session.job("select t from t", "r t"), ["(1,y)"]);
    assert_eq!(session.job("select t, a from t", "r text, a int"), ["(1,y)|1"]);
}

#[case]
fn columns_added_with_a_default_come_through(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table t (a int); insert into t values (1); alter table t add b text default 'added', \
        add c int default 5",
    );
    assert_eq!(session.job("select * from t", "a int, b text, c int"), ["1|added|5"]);
    assert_eq!(session.job("select t from t", "r t"), ["(1,added,5)"]);
}

#[case]
fn a_type_made_in_the_job_reads_after_its_commit(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("create type made as (a int); select row(5)::made");
    wait_until("the type is there", || session.holds("select to_regtype('made') is not null"));
    assert_eq!(session.result(pid, "r made"), ["(5)"]);
}

#[case]
fn a_type_made_in_a_temp_schema_reads_as_text(db: &Db) {
    let mut session = db.session();
    let text = "create temp table made (a int, b text); insert into made values (5, 'x'); select m, a from made m";
    assert_eq!(session.job(text, "r text, a int"), ["(5,x)|5"]);
}

/// The type goes with the session of the job, before anybody can read the result.
#[case]
fn values_of_temporary_types_are_read_as_text(db: &Db) {
    let mut session = db.session();
    for (create, value, text) in [
        ("create type pg_temp.kind as enum ('a', 'b')", "'b'::pg_temp.kind", "b"),
        ("create type pg_temp.kind as enum ('a', 'b')", "array['b', 'a']::pg_temp.kind[]", "{b,a}"),
        ("create domain pg_temp.digits as text check (value ~ '^[0-9]+$')", "'12'::pg_temp.digits", "12"),
        ("create type pg_temp.span as range (subtype = int)", "pg_temp.span(1, 5)", "[1,5)"),
    ] {
        let pid = session.launch(&format!("{create}; select {value}, 1"));
        assert_eq!(session.result(pid, "a text, b int"), [format!("{text}|1")]);
        // In a worker that has been there before, and in a select list.
        let pid = session.launch(&format!("{create}; select {value}"));
        assert_eq!(
            session.value(&format!("select (pg_background_result({pid}))::text")).replace('"', ""),
            format!("({text})")
        );
    }
}

#[case]
fn nulls_of_every_kind_come_through(db: &Db) {
    let mut session = db.session();
    session.run("create type pair as (a int, b text)");
    let text = "select null::int, null::text, null::pair, null::pair[], null::jsonb, null";
    assert_eq!(session.job(text, "a int, b text, c pair, d pair[], e jsonb, f text"), ["∅|∅|∅|∅|∅|∅"]);
    let pid = session.launch("select null::record, null::int");
    assert_eq!(session.result(pid, "a text, b int"), ["∅|∅"]);
}

#[case]
fn untyped_literals_are_text(db: &Db) {
    let mut session = db.session();
    assert_eq!(session.job("select 'word', null", "a text, b text"), ["word|∅"]);
}

#[case]
fn a_set_returning_function_in_the_job_comes_through(db: &Db) {
    let mut session = db.session();
    session
        .run("create function pairs() returns table (a int, b text) language sql as $$ values (1, 'x'), (2, null) $$");
    assert_eq!(session.job("select * from pairs()", "a int, b text"), ["1|x", "2|∅"]);
    assert_eq!(session.job("select pairs()", "r text"), ["(1,x)", "(2,)"]);
    assert_eq!(
        session.job("select generate_series(1, 2), unnest(array['a', 'b', 'c'])", "a int, b text"),
        ["1|a", "2|b", "∅|c"]
    );
}

#[case]
fn a_type_dropped_before_the_read_does_no_harm(db: &Db) {
    let mut session = db.session();
    session.run("create type pair as (a int, b text); create type mood as enum ('sad')");
    let pids = [session.launch("select row(1, 'x')::pair"), session.launch("select 'sad'::mood")];
    for pid in pids {
        wait_until("the end of the process", || !is_alive(pid));
    }
    session.run("drop type pair; drop type mood");
    for pid in pids {
        // Whether the value can still be shown depends on what the session remembers of the type.
        let reply = session.ask(&format!("select pg_background_result({pid})"));
        assert!(!reply.closed, "{reply:?}");
    }
    assert_eq!(session.job("select 5", "n int"), ["5"]);
}
