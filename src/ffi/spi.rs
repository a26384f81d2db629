//! SQL that the extension itself runs (spi.c).

use crate::ffi::alloc::{copy_c_string, copy_text};
use crate::ffi::datum::SqlValue;
use crate::ffi::raise::{c_text, internal_error};
use pgrx::pg_sys;

/// Texts of the columns of a row; `None` is NULL.
pub type Row = Vec<Option<Vec<u8>>>;

/// Runs a text that only reads, and returns the first column of its rows as text.
pub fn select(sql: &str) -> Vec<Vec<u8>> {
    select_rows(sql).into_iter().filter_map(|row| row.into_iter().next().flatten()).collect()
}

/// Runs a text that only reads, and returns its rows as texts.
pub fn select_rows(sql: &str) -> Vec<Row> {
    // SAFETY: connected while this runs.
    run(sql.as_bytes(), true, || unsafe { rows() })
}

/// Runs a text that changes something.
pub fn execute(sql: &[u8]) {
    run(sql, false, || ());
}

fn run<T>(sql: &[u8], read_only: bool, take: impl FnOnce() -> T) -> T {
    let sql = c_text(sql);
    // SAFETY: connect and finish are paired; an error in between is cleaned up with the transaction.
    unsafe {
        pg_sys::SPI_connect();
        if !read_only {
            check(pg_sys::SPI_execute(sql.as_ptr(), false, 0));
        } else {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            check(pg_sys::SPI_execute(sql.as_ptr(), true, 0));
            pg_sys::PopActiveSnapshot();
        }
        let value = take();
        pg_sys::SPI_finish();
        value
    }
}

/// Raises an internal error if a text has not run. One that fails raises its own; it cannot be one that SPI refuses
/// (`SPI_ERROR_COPY`, `SPI_ERROR_TRANSACTION`).
fn check(code: i32) {
    if code < 0 {
        internal_error("SPI refused a statement");
    }
}

/// Returns an identifier, quoted if it needs to be (ruleutils.c).
pub fn quote_identifier(name: &[u8]) -> Vec<u8> {
    let name = c_text(name);
    // SAFETY: gives back its argument or a copy, both C strings.
    unsafe { copy_text(pg_sys::quote_identifier(name.as_ptr())) }
}

/// Runs a text that only reads, as things are now, even in a transaction with an older snapshot; hands on the server's
/// own table of rows.
pub(super) fn query_with<T>(
    sql: &[u8],
    parameters: &[SqlValue],
    take: impl FnOnce(*mut pg_sys::SPITupleTable) -> T,
) -> T {
    let sql = c_text(sql);
    let mut types: Vec<pg_sys::Oid> =
        parameters.iter().map(|cell| cell.type_oid().unwrap_or(pg_sys::TEXTOID)).collect();
    // SAFETY: connect and finish are paired, so are push and pop; an error in between is cleaned up with the
    // transaction.
    unsafe {
        let mut values: Vec<pg_sys::Datum> = parameters.iter().map(SqlValue::to_datum).collect();
        let nulls: Vec<std::ffi::c_char> =
            parameters.iter().map(|cell| if *cell == SqlValue::Null { b'n' } else { b' ' } as _).collect();
        pg_sys::SPI_connect();
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let (count, types, values) = (types.len() as i32, types.as_mut_ptr(), values.as_mut_ptr());
        check(pg_sys::SPI_execute_with_args(sql.as_ptr(), count, types, values, nulls.as_ptr(), true, 0));
        pg_sys::PopActiveSnapshot();
        let value = take(pg_sys::SPI_tuptable);
        pg_sys::SPI_finish();
        value
    }
}

/// Returns the rows of the statement that ran last.
///
/// # Safety
/// Connected.
unsafe fn rows() -> Vec<Row> {
    // SAFETY: by contract; the table is null or that of the last statement, columns are numbered from 1.
    unsafe {
        let table = pg_sys::SPI_tuptable;
        if table.is_null() {
            return Vec::new();
        }
        let columns = (*(*table).tupdesc).natts;
        (0..pg_sys::SPI_processed as usize)
            .map(|row| {
                let tuple = *(*table).vals.add(row);
                (1..=columns)
                    .map(|column| copy_c_string(pg_sys::SPI_getvalue(tuple, (*table).tupdesc, column)))
                    .collect()
            })
            .collect()
    }
}
