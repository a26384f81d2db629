//! SQL that the extension itself runs (spi.c).

use super::memory::copy_c_string;
use pgrx::pg_sys;
use std::ffi::CString;

/// Runs a text that only looks, and gives the first column of its rows as text.
pub fn select(sql: &str) -> Vec<Vec<u8>> {
    run(sql.as_bytes(), true, || {
        // SAFETY: after a SELECT the table is set, and rows are numbered from 0.
        unsafe {
            let table = pg_sys::SPI_tuptable;
            let value = |row| copy_c_string(pg_sys::SPI_getvalue(*(*table).vals.add(row), (*table).tupdesc, 1));
            (0..pg_sys::SPI_processed as usize).filter_map(value).collect()
        }
    })
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
