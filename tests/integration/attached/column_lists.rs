//! The caller's column list: checked before anything is consumed.

use pg_background_mgr_tests::{case, literal, Db};

#[case]
fn a_wrong_number_of_columns_is_refused_and_leaves_the_result(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1, 'x'::text from generate_series(1, 50000)");
    for columns in ["a int", "a int, b text, c text"] {
        let error = session.error(&format!("select * from pg_background_result({pid}) as ({columns})"));
        assert_eq!(error.sqlstate(), "42804", "{error}");
    }
    let query = format!("select count(*) from pg_background_result({pid}) as (a int, b text)");
    assert_eq!(session.rows(&query), ["50000"]);
}

#[case]
fn a_wrong_type_is_refused_and_leaves_the_result(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1, now()");
    let error = session.error(&format!("select * from pg_background_result({pid}) as (a int, moment uuid)"));
    assert_eq!(error.sqlstate(), "42804");
    let message = "result column 2 (\"now\") has type timestamp with time zone, but the column list says uuid";
    assert_eq!(error.message(), message);
    let error = session.error(&format!("select * from pg_background_result({pid}) as (a date, moment timestamptz)"));
    assert!(error.message().contains("integer") && error.message().contains("date"), "{error}");
    assert_eq!(
        session.rows(&format!("select a from pg_background_result({pid}) as (a int, moment timestamptz)")),
        ["1"]
    );
}

#[case]
fn a_wrong_type_is_refused_although_there_are_no_rows(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1 where false");
    assert_eq!(session.error(&format!("select * from pg_background_result({pid}) as (a uuid)")).sqlstate(), "42804");
    assert_eq!(session.result(pid, "a int"), [""; 0]);
    let pid = session.launch("create table t (a int)");
    assert_eq!(session.error(&format!("select * from pg_background_result({pid}) as (a int)")).sqlstate(), "42804");
    assert_eq!(session.result(pid, "tag text"), ["CREATE TABLE"]);
}

#[case]
fn a_wrong_column_list_of_a_failed_job_gives_its_error(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1 / 0");
    let error = session.error(&format!("select * from pg_background_result({pid}) as (a uuid, b uuid)"));
    assert_eq!(error.sqlstate(), "22012");
}

#[case]
fn any_column_is_read_as_text(db: &Db) {
    let mut session = db.session();
    session.run("set datestyle = 'SQL, DMY'; set bytea_output = escape; set extra_float_digits = 0");
    let query = "select 1, 2.50::numeric, true, '2001-02-03'::date, array[1, null], row(1, 'a'), null::uuid, \
        '\\x41'::bytea, pi()";
    let columns = "a text, b text, c text, d text, e text, f text, g text, h text, i text";
    assert_eq!(session.job(query, columns), ["1|2.50|t|03/02/2001|{1,NULL}|(1,a)|∅|A|3.14159265358979"]);
}

#[case]
fn binary_coercible_types_are_read_as_each_other(db: &Db) {
    let mut session = db.session();
    session.run("create domain positive as int check (value > 0); create domain words as text[]");
    let pairs = [
        ("'x'::varchar", "text", "x"),
        ("'x'::varchar(3)", "varchar", "x"),
        ("'x'::text", "varchar", "x"),
        ("5::positive", "int", "5"),
        ("'{a,b}'::words", "text[]", "{a,b}"),
        ("7", "oid", "7"),
        ("'pg_am'::regclass", "oid", "2601"),
        ("'10.0.0.1/32'::cidr", "inet", "10.0.0.1"),
    ];
    for (value, column, expected) in pairs {
        assert_eq!(session.job(&format!("select {value}"), &format!("a {column}")), [expected], "{value} as {column}");
    }
}

#[case]
fn a_wider_number_is_refused(db: &Db) {
    let mut session = db.session();
    for (value, column) in [("1::int", "bigint"), ("1::bigint", "int"), ("1::int", "numeric"), ("1::float4", "float8")]
    {
        let pid = session.launch(&format!("select {value}"));
        let error = session.error(&format!("select * from pg_background_result({pid}) as (a {column})"));
        assert_eq!(error.sqlstate(), "42804", "{value} as {column}");
        assert_eq!(session.result(pid, "a text"), ["1"]);
    }
}

/// The values are cut and checked as when they are assigned to such a column; a table that they go into does not look
/// again.
#[case]
fn what_the_listed_type_says_more_holds_for_each_value(db: &Db) {
    let mut session = db.session();
    session.run("create table t (n numeric(10,2), v varchar(3), m timestamp(0), b bit(4))");
    let text = "select 1.23456::numeric, 'abc'::text, timestamp '2001-02-03 04:05:06.7', B'1010'::varbit \
                union all select null, null, null, null";
    let insert = |text: &str| {
        let launch = format!("pg_background_launch({})", literal(text));
        let columns = "n numeric(10,2), v varchar(3), m timestamp(0), b bit(4)";
        format!("insert into t select * from pg_background_result({launch}) as ({columns})")
    };
    session.run(&insert(text));
    assert_eq!(session.rows("select * from t where n is not null"), ["1.23|abc|2001-02-03 04:05:07|1010"]);
    assert_eq!(session.value("select count(*) from t"), "2");
    for (longer, sqlstate) in [("'abc'::text", "22001"), ("B'1010'::varbit", "22026")] {
        let text = text.replace(longer, &longer.replace("abc", "abcd").replace("1010", "10101"));
        assert_eq!(session.error(&insert(&text)).sqlstate(), sqlstate);
    }
    assert_eq!(session.value("select count(*) from t"), "2");
    // A modifier that the result has itself changes nothing; the error loses nothing.
    let pid = session.launch("select 1.5::numeric(10,2), 'abcd'::varchar(4)");
    let query = format!("select * from pg_background_result({pid}) as (n numeric(10,2), v varchar(3))");
    assert_eq!(session.error(&query).sqlstate(), "22001");
    assert_eq!(session.result(pid, "n numeric(10,2), v varchar(4)"), ["1.50|abcd"]);
}

#[case]
fn a_result_without_rows_keeps_its_columns(db: &Db) {
    let mut session = db.session();
    assert_eq!(session.job("select 1, 'x'::text where false", "a int, b text"), [""; 0]);
}
