//! Arguments and rows of SQL-callable functions.

use crate::api::function::sql_function;
use crate::error::Error;
use crate::ffi::datum::SqlValue;
use crate::ffi::fmgr::{Call, Value};
use crate::time::Timestamp;

/// Gives its arguments back.
fn echo(call: &Call) -> Result<Value, Error> {
    let mut rows = call.typed_rows()?;
    let array = call.text_array(1).map(|items| {
        let items: Vec<_> = items.into_iter().map(|item| item.unwrap_or(b"(null)".to_vec())).collect();
        items.join(&b"/"[..])
    });
    rows.put(&[
        call.bool(0).map_or(SqlValue::Null, SqlValue::Bool),
        array.into(),
        call.jsonb(2).into(),
        call.uuid(3).into(),
        call.interval(4).map_or(SqlValue::Null, SqlValue::Interval),
        call.interval(4).map_or(SqlValue::Null, SqlValue::BigInt),
        call.int(5).into(),
        SqlValue::Timestamp(Timestamp::NONE),
    ])?;
    rows.put(&[
        SqlValue::Null,
        SqlValue::Null,
        SqlValue::Null,
        SqlValue::Null,
        SqlValue::Null,
        SqlValue::Null,
        SqlValue::Null,
        SqlValue::Null,
    ])?;
    rows.finish();
    Ok(Value::Void)
}

/// Gives a row of one `int4`.
fn one(call: &Call) -> Result<Value, Error> {
    let mut rows = call.typed_rows()?;
    rows.put(&[SqlValue::Int(1)])?;
    rows.finish();
    Ok(Value::Void)
}

/// Gives a number that is no `int4`.
fn large(_call: &Call) -> Result<Value, Error> {
    Ok(Value::BigInt(-5_000_000_000))
}

sql_function!(pgbm_test_echo, pg_finfo_pgbm_test_echo, echo);
sql_function!(pgbm_test_one, pg_finfo_pgbm_test_one, one);
sql_function!(pgbm_test_large, pg_finfo_pgbm_test_large, large);

#[pgrx::pg_schema]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use pgrx::prelude::*;

    fn create(function: &str, symbol: &str) {
        let library = Spi::get_one::<String>(
            "select probin::text from pg_proc where proname = 'background_launch' and prolang = 13",
        );
        let library = library.unwrap().unwrap();
        Spi::run(&format!("create function {function} as '{library}', '{symbol}' language c")).unwrap();
    }

    fn create_echo() {
        create(
            "echo(bool, text[], jsonb, uuid, interval, int4) returns table
             (a bool, b text, c text, d uuid, e interval, f int8, g int4, h timestamptz)",
            "pgbm_test_echo",
        );
    }

    const ARGUMENTS: &str = r#"true, '[0:1][1:2]={{a,NULL},{"c,d",é}}', '{"b": [1, "é"], "a": null}',
        '00112233-4455-6677-8899-aabbccddeeff', '1 mon 2 days 03:00:00.5', 7"#;

    #[pg_test]
    fn arguments_and_rows_are_what_was_declared() {
        create_echo();
        Spi::run("set timezone = 'UTC'").unwrap();
        let rows = format!("select string_agg(x::text, ' ' order by a) from echo({ARGUMENTS}) x");
        assert_eq!(
            Spi::get_one::<String>(&rows).unwrap().as_deref(),
            Some(
                "(t,\"a/(null)/c,d/é\",\"{\"\"a\"\": null, \"\"b\"\": [1, \"\"é\"\"]}\",\
                 00112233-4455-6677-8899-aabbccddeeff,\
                 \"32 days 03:00:00.5\",2775600500000,7,\"2000-01-01 00:00:00+00\") (,,,,,,,)"
            )
        );
        let nulls = "select count(*) from echo(null, null, null, null, null, null) where b is null and g is null";
        assert_eq!(Spi::get_one::<i64>(nulls).unwrap(), Some(2));
        let empty = "select b from echo(null, '{}', null, null, null, null) where h is not null";
        assert_eq!(Spi::get_one::<String>(empty).unwrap().as_deref(), Some(""));
    }

    #[pg_test]
    fn rows_come_in_a_select_list_too() {
        create_echo();
        let rows = format!("select count(d) from (select (echo({ARGUMENTS})).*) x");
        assert_eq!(Spi::get_one::<i64>(&rows).unwrap(), Some(1));
        let rows = format!("select count(*) from generate_series(1, 1000), lateral echo({ARGUMENTS})");
        assert_eq!(Spi::get_one::<i64>(&rows).unwrap(), Some(2000));
    }

    #[pg_test]
    fn large_numbers_come_whole() {
        create("large() returns int8", "pgbm_test_large");
        assert_eq!(Spi::get_one::<i64>("select large()").unwrap(), Some(-5_000_000_000));
    }

    #[pg_test(error = "the function is declared otherwise than the library of pg_background_mgr expects")]
    fn another_type_is_refused() {
        create("one() returns table (a int8, b int4)", "pgbm_test_one");
        Spi::run("select * from one()").unwrap();
    }

    #[pg_test(error = "the function is declared otherwise than the library of pg_background_mgr expects")]
    fn a_declaration_without_columns_is_refused() {
        create("one() returns setof record", "pgbm_test_one");
        Spi::run("select one()").unwrap();
    }
}
