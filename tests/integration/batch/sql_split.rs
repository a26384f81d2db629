//! `pg_background_launch_num` of a text: where it is cut into jobs.

use crate::support::batch::Batch;
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Db, Session};

/// Launches the text; the texts of its jobs, without the space around them.
#[track_caller]
fn pieces(session: &mut Session, text: &str, delimiter: &str) -> Vec<String> {
    let call = format!("pg_background_launch_num({}, {delimiter})", literal(text));
    let batch = Batch::call(session, &call);
    // Some of them fail, for what they name is not there.
    batch.wait(session);
    let queries = batch.column(session, "query");
    queries.iter().map(|query| query.trim().to_owned()).collect()
}

#[track_caller]
fn assert_pieces(db: &Db, delimiter: &str, cases: &[(&str, &[&str])]) {
    let mut session = db.session();
    for (text, expected) in cases {
        assert_eq!(pieces(&mut session, text, &literal(delimiter)), *expected, "{text}");
    }
}

#[case]
fn a_delimiter_between_complete_texts_cuts(db: &Db) {
    assert_pieces(
        db,
        ",",
        &[
            ("select 1", &["select 1"]),
            ("select 1,select 2", &["select 1", "select 2"]),
            (" select 1 , select 2 ", &["select 1", "select 2"]),
            ("select version();,select version(),select 3;  ", &["select version();", "select version()", "select 3;"]),
            ("table a, table b", &["table a", "table b"]),
            ("select 1, values (2), table c", &["select 1", "values (2)", "table c"]),
            ("select 1, with a as (select 2) select * from a", &["select 1", "with a as (select 2) select * from a"]),
            ("vacuum a, analyze b", &["vacuum a", "analyze b"]),
            ("delete from a, update a set x = 1", &["delete from a", "update a set x = 1"]),
            ("create table a (x int), drop table a", &["create table a (x int)", "drop table a"]),
            ("explain select 1, explain select 2", &["explain select 1", "explain select 2"]),
            ("SELECT 1, SeLeCt 2", &["SELECT 1", "SeLeCt 2"]),
        ],
    );
}

#[case]
fn a_delimiter_within_a_statement_does_not_cut(db: &Db) {
    assert_pieces(
        db,
        ",",
        &[
            ("select a, b from t, select 2", &["select a, b from t", "select 2"]),
            ("select 1, 2, select 3, 4", &["select 1, 2", "select 3, 4"]),
            ("select greatest(1, 2), select least(3, 4)", &["select greatest(1, 2)", "select least(3, 4)"]),
            (
                "with a as (select 1, 2), b as (select 3) select * from a, b, select 4",
                &["with a as (select 1, 2), b as (select 3) select * from a, b", "select 4"],
            ),
            (
                "select array[1, 2], array[[1,2],[3,4]], select '{1,2}'::int[]",
                &["select array[1, 2], array[[1,2],[3,4]]", "select '{1,2}'::int[]"],
            ),
            ("select 1 where 1 in (1, 2), select 2", &["select 1 where 1 in (1, 2)", "select 2"]),
            ("vacuum a, b", &["vacuum a, b"]),
            ("vacuum a, b, select 1", &["vacuum a, b", "select 1"]),
            ("vacuum (verbose, analyze) a (x, y), b, select 1", &["vacuum (verbose, analyze) a (x, y), b", "select 1"]),
            ("update a set x = 1, y = 2, delete from a", &["update a set x = 1, y = 2", "delete from a"]),
            ("select x from a order by x, y, select 2", &["select x from a order by x, y", "select 2"]),
            ("select x from a group by x, y, select 2", &["select x from a group by x, y", "select 2"]),
            ("lock table a, b, select 1", &["lock table a, b", "select 1"]),
            ("truncate a, b, select 1", &["truncate a, b", "select 1"]),
            ("grant select, insert on a, b to c, d, select 1", &["grant select, insert on a, b to c, d", "select 1"]),
            ("set search_path = a, public, show search_path", &["set search_path = a, public", "show search_path"]),
            ("select * from a, lateral (select 1) x, select 2", &["select * from a, lateral (select 1) x", "select 2"]),
            ("select (1, 2), row(3, 4), select 5", &["select (1, 2), row(3, 4)", "select 5"]),
            ("create table a (x int, y int), select 1", &["create table a (x int, y int)", "select 1"]),
            (
                "prepare p (int, int) as select $1, $2, execute p(1, 2)",
                &["prepare p (int, int) as select $1, $2", "execute p(1, 2)"],
            ),
            (
                "select rank() over (partition by 1, 2 order by 3, 4), select 5",
                &["select rank() over (partition by 1, 2 order by 3, 4)", "select 5"],
            ),
        ],
    );
}

#[case]
fn a_delimiter_in_a_string_does_not_cut(db: &Db) {
    assert_pieces(
        db,
        ",",
        &[
            ("select 'a, select 1', select 'it''s, select 2'", &["select 'a, select 1'", "select 'it''s, select 2'"]),
            ("select ',', select ','", &["select ','", "select ','"]),
            (r"select E'a\', select 1', select 2", &[r"select E'a\', select 1'", "select 2"]),
            (
                r"select e'\\', select 1, select e'\'', select 2",
                &[r"select e'\\'", "select 1", r"select e'\''", "select 2"],
            ),
            (r"select '\', select 1", &[r"select '\'", "select 1"]),
            (r"select U&'\0061, select 1', select 2", &[r"select U&'\0061, select 1'", "select 2"]),
            ("select b'1', select x'1f', select 2", &["select b'1'", "select x'1f'", "select 2"]),
            ("select 'a'\n', select 1', select 2", &["select 'a'\n', select 1'", "select 2"]),
            ("select 'a\n, select 1\n', select 2", &["select 'a\n, select 1\n'", "select 2"]),
            ("select '-- ', select 2", &["select '-- '", "select 2"]),
            ("select '/* ', select ' */'", &["select '/* '", "select ' */'"]),
            ("select '$$', select '$$'", &["select '$$'", "select '$$'"]),
        ],
    );
}

#[case]
fn a_delimiter_in_an_identifier_does_not_cut(db: &Db) {
    assert_pieces(
        db,
        ",",
        &[
            (r#"select 1 as "a, select 2", select 3"#, &[r#"select 1 as "a, select 2""#, "select 3"]),
            (r#"select 1 as "a"", select 2", select 3"#, &[r#"select 1 as "a"", select 2""#, "select 3"]),
            (r#"select 1 as "it's", select '"', select 2"#, &[r#"select 1 as "it's""#, r#"select '"'"#, "select 2"]),
            (r#"select 1 as U&"a\0062, c", select 2"#, &[r#"select 1 as U&"a\0062, c""#, "select 2"]),
        ],
    );
}

#[case]
fn a_delimiter_in_a_comment_does_not_cut(db: &Db) {
    assert_pieces(
        db,
        ",",
        &[
            ("select 1 -- , select 9\n, select 2", &["select 1 -- , select 9", "select 2"]),
            ("select 1 /* , select 9 */, select 2", &["select 1 /* , select 9 */", "select 2"]),
            (
                "select 1 /* , select 8 /* , select 9 */ , select 7 */, select 2",
                &["select 1 /* , select 8 /* , select 9 */ , select 7 */", "select 2"],
            ),
            ("select 1 /* ' */, select 2 -- '\n, select 3", &["select 1 /* ' */", "select 2 -- '", "select 3"]),
            ("select 1, /* two */ select 2", &["select 1", "/* two */ select 2"]),
            ("select 1 -- , select 2", &["select 1 -- , select 2"]),
        ],
    );
}

#[case]
fn a_delimiter_in_a_dollar_quote_does_not_cut(db: &Db) {
    assert_pieces(
        db,
        ",",
        &[
            ("select $$a, select 1$$, select 2", &["select $$a, select 1$$", "select 2"]),
            ("select $x$a $$, select 1 $y$ $x$, select 2", &["select $x$a $$, select 1 $y$ $x$", "select 2"]),
            (
                "do $body$ begin perform 1, 2; end $body$, select 3",
                &["do $body$ begin perform 1, 2; end $body$", "select 3"],
            ),
            ("select $$'$$, select $$'$$", &["select $$'$$", "select $$'$$"]),
            ("select 1 as a$b$, select 2 as c$b$", &["select 1 as a$b$", "select 2 as c$b$"]),
            (
                "create function f() returns int language sql as 'select 1, 2', select 3",
                &["create function f() returns int language sql as 'select 1, 2'", "select 3"],
            ),
        ],
    );
}

#[case]
fn a_piece_never_starts_with_a_parenthesis(db: &Db) {
    db.session().run("create table t (a int)");
    assert_pieces(
        db,
        ",",
        &[
            ("insert into t values (1), (2)", &["insert into t values (1), (2)"]),
            ("insert into t values (1), (2), select 3", &["insert into t values (1), (2)", "select 3"]),
            (
                "insert into t values (1), insert into t values (2)",
                &["insert into t values (1)", "insert into t values (2)"],
            ),
            ("values (1), (2), (3)", &["values (1), (2), (3)"]),
            ("select 1, (select 2), select 3", &["select 1, (select 2)", "select 3"]),
            ("insert into t values (1), /* two */ (2)", &["insert into t values (1), /* two */ (2)"]),
        ],
    );
    assert_eq!(db.session().value("select count(*) || ' ' || sum(a) from t"), "8 12");
}

#[case]
fn pieces_that_say_nothing_are_dropped(db: &Db) {
    assert_pieces(
        db,
        ",",
        &[
            (",select 1", &["select 1"]),
            (",,select 1,,select 2,", &["select 1", "select 2"]),
            (" , \n, select 1 , \t", &["select 1"]),
            ("select 1, /* nothing */, -- nothing\n , select 2", &["select 1", "select 2"]),
        ],
    );
    assert_pieces(
        db,
        ";",
        &[
            ("select 1;", &["select 1"]),
            (";;select 1;;;select 2;;", &["select 1", "select 2"]),
            ("select 1; -- the end", &["select 1"]),
        ],
    );
}

#[case]
fn a_piece_may_have_several_statements(db: &Db) {
    assert_pieces(
        db,
        ",",
        &[
            ("select 1; select 2, select 3; select 4", &["select 1; select 2", "select 3; select 4"]),
            ("select 1; select 2, 3, select 4", &["select 1; select 2, 3", "select 4"]),
            ("begin; select 1, 2; commit, select 3;", &["begin; select 1, 2; commit", "select 3;"]),
        ],
    );
}

#[case]
fn other_delimiters_cut(db: &Db) {
    assert_pieces(
        db,
        ";",
        &[
            ("select 1; select 2", &["select 1", "select 2"]),
            ("select 1, 2; select ';'; select 3 /* ; */;", &["select 1, 2", "select ';'", "select 3 /* ; */"]),
            (
                "do $$ begin perform 1; perform 2; end $$; select 3",
                &["do $$ begin perform 1; perform 2; end $$", "select 3"],
            ),
            (
                "create rule r as on insert to a do also (select 1; select 2); select 3",
                &["create rule r as on insert to a do also (select 1; select 2)", "select 3"],
            ),
        ],
    );
    assert_pieces(db, "\n", &[("select 1\nselect 2,\n3\n\nselect 4\n", &["select 1", "select 2,\n3", "select 4"])]);
    assert_pieces(db, "\t", &[("select 1\tselect 2,\t3", &["select 1", "select 2,\t3"])]);
    assert_pieces(db, "|", &[("select 1 | 2 | select 3 || 'x'", &["select 1 | 2", "select 3 || 'x'"])]);
}

#[case]
fn delimiters_of_several_characters_cut(db: &Db) {
    assert_pieces(
        db,
        "|||",
        &[
            (
                "select 1 ||| select 'a ||| b' ||| select 'x' || 'y', 2",
                &["select 1", "select 'a ||| b'", "select 'x' || 'y', 2"],
            ),
            ("select 1 |||||| select 2", &["select 1", "select 2"]),
        ],
    );
    assert_pieces(db, "\r\n", &[("select 1\r\nselect\r\n2\r\nselect 3", &["select 1", "select\r\n2", "select 3"])]);
    assert_pieces(
        db,
        "<next>",
        &[("select 1, 2<next>select 3 -- <next>\n<next>select 4", &["select 1, 2", "select 3 -- <next>", "select 4"])],
    );
    assert_pieces(db, ";;", &[("select 1; select 2;; select 3", &["select 1; select 2", "select 3"])]);
}

#[case]
fn delimiters_that_are_part_of_the_language_cut_where_they_can(db: &Db) {
    assert_pieces(
        db,
        "-",
        &[
            ("select 1 - 2 - select 3", &["select 1 - 2", "select 3"]),
            ("select 1 -- 2 - 3\n- select 4", &["select 1 -- 2 - 3", "select 4"]),
        ],
    );
    assert_pieces(
        db,
        " then ",
        &[("select case when true then 1 end then select 2", &["select case when true then 1 end", "select 2"])],
    );
    assert_pieces(db, " as ", &[("select 1 as a as select 2 as b", &["select 1 as a", "select 2 as b"])]);
}

#[case]
fn letters_beyond_ascii_are_left_whole(db: &Db) {
    assert_pieces(
        db,
        ",",
        &[
            (
                r#"select 'ünï, ç' as "é, è", select '日本, select 1' as año, select '🙂'"#,
                &[r#"select 'ünï, ç' as "é, è""#, "select '日本, select 1' as año", "select '🙂'"],
            ),
            ("select 1 /* ñ, */, select 2 -- ß,\n", &["select 1 /* ñ, */", "select 2 -- ß,"]),
        ],
    );
    assert_pieces(db, "→", &[("select 1 → select '→' → select 3", &["select 1", "select '→'", "select 3"])]);
    assert_pieces(db, "、", &[("select '日、本'、select 2", &["select '日、本'", "select 2"])]);
}

#[case(since = 14)]
fn a_body_of_statements_is_not_cut(db: &Db) {
    let function = "create function g() returns int begin atomic select 1; select 2; end";
    assert_pieces(db, ";", &[(&format!("{function}; select 3"), &[function, "select 3"])]);
    let procedure = "create procedure h() begin atomic select 1, 2; select case when true then 3 end; end";
    assert_pieces(db, ";", &[(&format!("select 1; {procedure};select 3"), &["select 1", procedure, "select 3"])]);
}

#[case]
fn no_delimiter_does_not_cut(db: &Db) {
    let mut session = db.session();
    for delimiter in ["null", "''"] {
        assert_eq!(pieces(&mut session, "select 1; select 2", delimiter), ["select 1; select 2"]);
    }
}

#[case]
fn backslashes_follow_the_sessions_setting(db: &Db) {
    let mut session = db.session();
    session.run("set standard_conforming_strings = off; set escape_string_warning = off");
    let text = r"select 'a\', select 1', select 2";
    assert_eq!(pieces(&mut session, text, "','"), [r"select 'a\', select 1'", "select 2"]);
}

/// Texts that have no valid cut, and the place of the piece that is at fault.
const BROKEN: [(&str, &str); 11] = [
    ("select 1, selct 2, select 3", "selct 2"),
    ("selct 1", "selct 1"),
    ("select 1, select 'open, select 2", "select 'open, select 2"),
    ("select 1, select $$open, select 2", "select $$open"),
    ("select 1 /* open, select 2", "/* open"),
    ("select 1,/* open", "/* open"),
    ("select 1, ;/* open /* not */, select 2", ";/* open"),
    ("/* open", "/* open"),
    ("select 1, select \"open, select 2", "select \"open"),
    ("select (1, select 2", "select (1"),
    ("select 1 from, select 2", "select 1 from"),
];

#[case]
fn a_text_without_a_cut_launches_nothing(db: &Db) {
    let mut session = db.session();
    for (text, _) in BROKEN {
        let error = session.error(&format!("select * from pg_background_launch_num({})", literal(text)));
        assert_eq!(error.sqlstate(), "42601", "{text}: {error}");
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains("array"), "{text}: {error}");
    }
    assert_eq!(session.value("select count(*) from log_background"), "0");
    assert_eq!(session.value("select count(*) from pg_background_jobs where database = current_database()"), "0");
}

#[case]
fn the_place_of_an_error_is_shown_in_the_whole_text(db: &Db) {
    let mut session = db.session();
    let fillers: String = (0..50).map(|number| format!("select {number} as ñandú, ")).collect();
    for (text, at) in BROKEN {
        let text = format!("{fillers}{text}");
        let error = session.error(&format!("select * from pg_background_launch_num({})", literal(&text)));
        assert_eq!(error.internal_query().as_deref(), Some(text.as_str()), "{error}");
        // In characters, from 1; the parser shows the word that it cannot have, or the end.
        let begin = text[..text.rfind(at).expect("the piece")].chars().count() + 1;
        let place: usize = error.internal_position().expect("a place").parse().expect("a number");
        assert!((begin..=text.chars().count() + 1).contains(&place), "{at} is at {begin}: {error}");
    }
}

#[case]
fn a_literal_without_a_cast_is_a_text(db: &Db) {
    let mut session = db.session();
    for (text, cast) in [("[{\"query\": \"select 1\"}]", "jsonb"), ("{select 1,select 2}", "text[]")] {
        let error = session.error(&format!("select pg_background_launch_num('{text}')"));
        assert_eq!(error.sqlstate(), "42601");
        assert_eq!(error.hint().as_deref(), Some("Cast JSON to jsonb, and an array to text[]."));
        Batch::call(&mut session, &format!("pg_background_launch_num('{text}'::{cast})")).succeed(&mut session);
    }
    let hint = "Pass the queries as an array if the delimiter also stands within them.";
    assert_eq!(session.error("select pg_background_launch_num('selct 1')").hint().as_deref(), Some(hint));
}

#[case]
fn a_text_that_says_nothing_is_refused(db: &Db) {
    let mut session = db.session();
    for text in ["", "  \n", ",", " , ,", "-- nothing", "/* nothing */, -- nothing"] {
        let error = session.error(&format!("select * from pg_background_launch_num({})", literal(text)));
        assert_eq!(error.sqlstate(), "22023", "{text}: {error}");
    }
    for text in ["", " \n "] {
        let error = session.error(&format!("select * from pg_background_launch_num({}, null)", literal(text)));
        assert_eq!(error.sqlstate(), "22023", "{text}: {error}");
    }
    assert_eq!(session.value("select count(*) from log_background"), "0");
}

#[case]
fn a_text_of_another_encoding_is_cut(db: &Db) {
    let name = format!("{}_latin1", db.name);
    let mut admin = db.session();
    admin.run(&format!("create database {name} template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"));
    let mut session = db.cluster.session(&name);
    session.run("create extension pg_background_mgr; create table t (a text)");
    let text = "insert into t values ('café, crème'), insert into t values ('ñ'), insert into t values ('ß')";
    assert_eq!(
        pieces(&mut session, text, "','"),
        ["insert into t values ('café, crème')", "insert into t values ('ñ')", "insert into t values ('ß')"]
    );
    assert_eq!(session.rows("select a from t order by a collate \"C\""), ["café, crème", "ß", "ñ"]);
    assert_eq!(pieces(&mut session, "select 1 § select '§'", "'§'"), ["select 1", "select '§'"]);
    drop(session);
    let remove = format!("drop database {name}");
    wait_until("nobody uses the database", || admin.ask(&remove).error.is_none());
}

#[case]
fn a_job_of_a_cut_text_shows_errors_on_its_own_text(db: &Db) {
    let mut session = db.session();
    let batch = Batch::call(&mut session, "pg_background_launch_num('select 1, select nothing, select 3')");
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed", "succeeded"]);
    assert_eq!(batch.log(&mut session, 1, "trim(query)"), "select nothing");
    assert_eq!(batch.log(&mut session, 1, "sqlstate"), "42703");
}

#[case]
fn ten_thousand_pieces_are_cut_at_once() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "12")]);
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    // A text in which no place is free of doubt: each delimiter also stands in strings, lists and calls.
    let piece = "'insert into ran select greatest(' || i || ', 0) where '','' in ('','', '' x'')'";
    let list = format!("(select string_agg({piece}, ', ' order by i) from generate_series(1, 10000) i)");
    // It takes well under a second; the tests run a debug build beside others.
    session.run("set statement_timeout = '15s'");
    let batch = Batch::call(&mut session, &format!("pg_background_launch_num({list})"));
    session.run("reset statement_timeout");
    assert_eq!(batch.children.len(), 10000);
    crate::support::batch::drain(&mut session);
    assert_eq!(crate::support::batch::counts(&mut session, "true"), ["succeeded 10000"]);
    assert_eq!(
        session.value("select count(*) || ' ' || count(distinct a) || ' ' || sum(a) from ran"),
        "10000 10000 50005000"
    );
    let told = format!(
        "select count(*) || ' ' || count(distinct uuid_child) || ' ' || min(status) || ' ' || max(status) || ' ' || \
         sum(row_count) from log_background where uuid_parent = '{}'",
        batch.parent
    );
    assert_eq!(session.value(&told), "10000 10000 succeeded succeeded 10000");
}
