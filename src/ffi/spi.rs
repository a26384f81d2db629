//! SQL that the extension itself runs (spi.c).

use crate::ffi::alloc::copy_c_string;
use crate::ffi::datum::SqlValue;
use pgrx::pg_sys;
use std::ffi::CString;

/// Texts of the columns of a row; none = NULL.
pub type Row = Vec<Option<Vec<u8>>>;

/// Runs a text that only looks, and gives the first column of its rows as text.
pub fn select(sql: &str) -> Vec<Vec<u8>> {
    select_rows(sql).into_iter().filter_map(|row| row.into_iter().next().flatten()).collect()
}

/// Runs a text that only looks, and gives its rows as texts.
pub fn select_rows(sql: &str) -> Vec<Row> {
    // SAFETY: connected while this runs.
    run(sql.as_bytes(), true, || unsafe { rows() })
}

/// Runs a text that changes something.
pub fn execute(sql: &[u8]) {
    run(sql, false, || ());
}

fn run<T>(sql: &[u8], read_only: bool, take: impl FnOnce() -> T) -> T {
    let sql = CString::new(sql).unwrap_or_default();
    // SAFETY: connect and finish are paired; an error in between is cleaned up with the transaction. A failed SELECT or
    // utility command raises; other results cannot come from our texts.
    unsafe {
        pg_sys::SPI_connect();
        if !read_only {
            pg_sys::SPI_execute(sql.as_ptr(), false, 0);
        } else {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            pg_sys::SPI_execute(sql.as_ptr(), true, 0);
            pg_sys::PopActiveSnapshot();
        }
        let value = take();
        pg_sys::SPI_finish();
        value
    }
}

/// An identifier, quoted if it needs to be (ruleutils.c).
pub fn quote_identifier(name: &[u8]) -> Vec<u8> {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: gives back its argument or a copy, both C strings.
    unsafe { copy_c_string(pg_sys::quote_identifier(name.as_ptr())) }.unwrap_or_default()
}

/// Runs a text that only looks, as things are now, even in a transaction with an older snapshot; hands on the server's
/// own table of rows.
pub(super) fn query_with<T>(
    sql: &[u8],
    parameters: &[SqlValue],
    take: impl FnOnce(*mut pg_sys::SPITupleTable) -> T,
) -> T {
    let sql = CString::new(sql).unwrap_or_default();
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
        pg_sys::SPI_execute_with_args(
            sql.as_ptr(),
            types.len() as i32,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr(),
            true,
            0,
        );
        pg_sys::PopActiveSnapshot();
        let value = take(pg_sys::SPI_tuptable);
        pg_sys::SPI_finish();
        value
    }
}

/// The rows of the statement that ran last.
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
