//! COPY in a job.

use crate::support::compare_with_client::assert_same_error;
use pg_background_mgr_tests::{case, Db, Session};

const TABLE: &str = "create table t (a int, b text); \
    insert into t values (1, E'tab\\there'), (2, null), (3, E'two\\nlines'), (4, ''), (5, 'ü')";

/// The lines that a client gets.
fn client_lines(session: &mut Session, text: &str) -> Vec<String> {
    let copied = session.run(text).statements.pop().expect("a statement").copied;
    String::from_utf8(copied).expect("UTF-8").lines().map(str::to_owned).collect()
}

#[case]
fn copy_to_stdout_gives_its_lines(db: &Db) {
    let mut session = db.session();
    session.run(TABLE);
    assert_eq!(
        session.job("copy t to stdout", "line text"),
        ["1\ttab\\there", "2\t\\N", "3\ttwo\\nlines", "4\t", "5\tü"]
    );
    let pid = session.launch("copy t (a) to stdout");
    assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(1)", "(2)", "(3)", "(4)", "(5)"]);
}

#[case]
fn copy_to_stdout_of_a_query_gives_its_lines(db: &Db) {
    let mut session = db.session();
    session.run(TABLE);
    let text = "copy (delete from t where a < 3 returning a * 10, b) to stdout";
    assert_eq!(session.job(text, "line text"), ["10\ttab\\there", "20\t\\N"]);
    assert_eq!(session.value("select count(*) from t"), "3");
}

#[case]
fn copy_to_stdout_in_every_text_format(db: &Db) {
    let mut session = db.session();
    session.run(TABLE);
    for options in
        ["(delimiter '|', null 'nothing')", "(format csv, quote '''', force_quote *)", "(format csv, header)"]
    {
        let text = format!("copy (select a, b from t where a <> 3) to stdout with {options}");
        let expected = client_lines(&mut session, &text);
        assert_eq!(session.job(&text, "line text"), expected, "{text}");
    }
    // A newline inside a quoted value belongs to the row.
    let rows = session.job("copy (select a, b from t where a >= 3) to stdout (format csv)", "line text");
    assert_eq!(rows, ["3,\"two\nlines\"", "4,\"\"", "5,ü"]);
}

#[case]
fn copy_to_stdout_of_nothing_gives_no_rows(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    assert_eq!(session.job("copy t to stdout", "line text"), [""; 0]);
    session.run("insert into t values (null)");
    assert_eq!(session.job("copy t to stdout (null '')", "line text"), [""]);
}

#[case]
fn copy_to_stdout_is_a_result_set_like_others(db: &Db) {
    let mut session = db.session();
    session.run(TABLE);
    assert_eq!(session.job("copy t to stdout; select 7", "n int"), ["7"]);
    assert_eq!(session.job("select 7; copy (select 8) to stdout; delete from t", "line text"), ["8"]);
    assert_eq!(session.value("select count(*) from t"), "0");
}

#[case]
fn copy_to_stdout_of_many_rows_arrives_whole(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("copy (select i, repeat('x', 100) from generate_series(1, 100000) i) to stdout");
    let query = format!(
        "select count(*), sum(split_part(line, e'\\t', 1)::int), max(length(line)) from \
         pg_background_result({pid}) as (line text)"
    );
    assert_eq!(session.rows(&query), ["100000|5000050000|107"]);
}

#[case]
fn copy_to_stdout_that_fails_gives_the_error(db: &Db) {
    let mut session = db.session();
    let text = "copy (select 1 / (3 - i) from generate_series(1, 5) i) to stdout";
    let expected = session.error(text);
    assert_same_error(&expected, &session.job_error(text), text);
}

#[case]
fn copy_binary_to_stdout_is_refused(db: &Db) {
    let mut session = db.session();
    session.run(TABLE);
    assert_eq!(session.job_error("copy t to stdout (format binary)").sqlstate(), "0A000");
    assert_eq!(session.job_error("insert into t values (9, ''); copy t to stdout binary").sqlstate(), "0A000");
    assert_eq!(session.value("select count(*) from t"), "5");
}

#[case]
fn copy_from_stdin_is_refused(db: &Db) {
    let mut session = db.session();
    session.run(TABLE);
    for text in ["copy t from stdin", "copy t from stdin (format csv)", "copy t from stdin (format binary)"] {
        let error = session.job_error(text);
        assert_eq!(error.sqlstate(), "0A000", "{error}");
        assert!(error.message().contains("COPY FROM STDIN"), "{error}");
    }
}

#[case]
fn copy_from_stdin_undoes_the_statements_before_it(db: &Db) {
    let mut session = db.session();
    session.run(TABLE);
    assert_eq!(session.job_error("delete from t; copy t from stdin").sqlstate(), "0A000");
    assert_eq!(session.value("select count(*) from t"), "5");
}

#[case]
fn copy_to_and_from_a_file_works(db: &Db) {
    let mut session = db.session();
    session.run(TABLE);
    let file = db.cluster.data().with_file_name(format!("copy_{}", db.name));
    let text = format!("copy t to '{0}'; delete from t; copy t from '{0}'", file.display());
    assert_eq!(session.job(&text, "result text"), ["COPY 5", "DELETE 5", "COPY 5"]);
    let text = format!("copy t to '{0}' (format binary); copy t from '{0}' (format binary)", file.display());
    assert_eq!(session.job(&text, "result text"), ["COPY 5", "COPY 5"]);
}

#[case]
fn copy_to_and_from_a_program_works(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let text = "copy t from program 'seq 1 5'; copy t to program 'cat > /dev/null'";
    assert_eq!(session.job(text, "result text"), ["COPY 5", "COPY 5"]);
    let error = session.job_error("copy t from program 'exit 3'");
    assert_eq!(error.sqlstate(), "38000");
}
