//! Rows of a function whose declaration lists their columns (`RETURNS TABLE`; funcapi.h, tuplestore.c).

use crate::error::Error;
use crate::ffi::fmgr::Rows;
use crate::ffi::memory::Context;
use crate::ffi::spi;
use crate::ffi::tuple::TupleDesc;
use pgrx::pg_sys;

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SqlValue {
    Null,
    Bool(bool),
    Int(i32),
    BigInt(i64),
    /// In the database's encoding.
    Text(Vec<u8>),
    Uuid([u8; 16]),
    /// `timestamptz`: microseconds since 2000-01-01 00:00 UTC, as the server counts them.
    Timestamp(i64),
    /// Microseconds.
    Interval(i64),
}

impl SqlValue {
    /// A moment that may not be known.
    pub fn timestamp(at: Option<i64>) -> Self {
        at.map_or(SqlValue::Null, SqlValue::Timestamp)
    }
}

impl<T: Into<SqlValue>> From<Option<T>> for SqlValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(SqlValue::Null, Into::into)
    }
}

impl From<Vec<u8>> for SqlValue {
    fn from(text: Vec<u8>) -> Self {
        SqlValue::Text(text)
    }
}

impl From<&[u8]> for SqlValue {
    fn from(text: &[u8]) -> Self {
        SqlValue::Text(crate::ffi::alloc::copy(text))
    }
}

impl From<i32> for SqlValue {
    fn from(value: i32) -> Self {
        SqlValue::Int(value)
    }
}

impl From<i64> for SqlValue {
    fn from(value: i64) -> Self {
        SqlValue::BigInt(value)
    }
}

impl From<[u8; 16]> for SqlValue {
    fn from(value: [u8; 16]) -> Self {
        SqlValue::Uuid(value)
    }
}

impl SqlValue {
    /// The type of a column that takes it; none = any.
    pub(super) fn type_oid(&self) -> Option<pg_sys::Oid> {
        Some(match self {
            SqlValue::Null => return None,
            SqlValue::Bool(_) => pg_sys::BOOLOID,
            SqlValue::Int(_) => pg_sys::INT4OID,
            SqlValue::BigInt(_) => pg_sys::INT8OID,
            SqlValue::Text(_) => pg_sys::TEXTOID,
            SqlValue::Uuid(_) => pg_sys::UUIDOID,
            SqlValue::Timestamp(_) => pg_sys::TIMESTAMPTZOID,
            SqlValue::Interval(_) => pg_sys::INTERVALOID,
        })
    }

    /// The value in the current memory context.
    pub(super) fn to_datum(&self) -> pg_sys::Datum {
        match self {
            SqlValue::Null => pg_sys::Datum::from(0_usize),
            SqlValue::Bool(value) => pg_sys::Datum::from(*value),
            SqlValue::Int(value) => pg_sys::Datum::from(*value),
            SqlValue::BigInt(value) | SqlValue::Timestamp(value) => pg_sys::Datum::from(*value),
            SqlValue::Interval(value) => crate::ffi::interval::to_datum(*value),
            SqlValue::Text(text) => text_datum(text),
            // SAFETY: the allocation has the size of what is written.
            SqlValue::Uuid(uuid) => unsafe {
                let copy = pg_sys::palloc(uuid.len()).cast::<[u8; 16]>();
                copy.write(*uuid);
                pg_sys::Datum::from(copy)
            },
        }
    }
}

fn text_datum(text: &[u8]) -> pg_sys::Datum {
    // SAFETY: the server copies that many bytes.
    unsafe { pg_sys::Datum::from(pg_sys::cstring_to_text_with_len(text.as_ptr().cast(), text.len() as i32)) }
}

/// Takes the rows that a call gives back.
pub struct TypedRows {
    rows: Rows,
    desc: TupleDesc,
    types: Vec<pg_sys::Oid>,
    /// Emptied after each row.
    memory: Context,
}

impl TypedRows {
    /// `desc` lives as long as the query.
    pub(super) fn new(rows: Rows, desc: TupleDesc) -> Self {
        let types = desc.attributes().map(|attribute| attribute.type_oid).collect();
        TypedRows { rows, desc, types, memory: Context::in_current(c"pg_background_mgr typed row") }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`Error::Declaration`] (42P13) if the values do not fit the declared columns.
    pub fn put(&mut self, row: &[SqlValue]) -> Result<(), Error> {
        let fits = |(cell, declared): (&SqlValue, &pg_sys::Oid)| cell.type_oid().is_none_or(|own| own == *declared);
        if row.len() != self.types.len() || !row.iter().zip(&self.types).all(fits) {
            return Err(Error::Declaration);
        }
        let store = self.rows.store();
        {
            let _switch = self.memory.enter();
            let mut values: Vec<_> = row.iter().map(SqlValue::to_datum).collect();
            let mut nulls: Vec<_> = row.iter().map(|cell| *cell == SqlValue::Null).collect();
            // SAFETY: there is a value of the right type for each column; the store copies them.
            unsafe {
                pg_sys::tuplestore_putvalues(store, self.desc.as_raw(), values.as_mut_ptr(), nulls.as_mut_ptr());
            }
        }
        self.memory.reset();
        Ok(())
    }

    /// Adds the rows of a query, as things are now, even in a transaction with an older snapshot.
    ///
    /// # Errors
    /// [`Error::Declaration`] (42P13) if they do not fit the declared columns.
    pub fn put_query(&mut self, sql: &[u8], parameters: &[SqlValue]) -> Result<(), Error> {
        let store = self.rows.store();
        let types = &self.types;
        spi::query_with(sql, parameters, |table| {
            // SAFETY: the table of the query that ran; its rows are copied into the store.
            unsafe {
                let columns = TupleDesc::from_raw((*table).tupdesc);
                if !columns.attributes().map(|attribute| attribute.type_oid).eq(types.iter().copied()) {
                    return Err(Error::Declaration);
                }
                for row in 0..pg_sys::SPI_processed as usize {
                    pg_sys::tuplestore_puttuple(store, *(*table).vals.add(row));
                }
            }
            Ok(())
        })
    }

    /// Hands the rows to the executor.
    pub fn finish(self) {
        self.rows.finish(self.desc);
    }
}
