//! Values of SQL types, to and from the server's form of them (postgres.h, `Datum`).

use crate::ffi::{alloc, interval};
use crate::ids::{DatabaseId, Epoch, RoleId};
use crate::time::Timestamp;
use pgrx::pg_sys;

/// Types of columns.
pub mod types {
    pub use pgrx::pg_sys::{
        Oid, BOOLOID as BOOL, INETOID as INET, INT4OID as INT4, INT8OID as INT8, JSONBOID as JSONB, NAMEOID as NAME,
        OIDOID as OID, TEXTOID as TEXT, TIMESTAMPTZOID as TIMESTAMPTZ, UUIDOID as UUID,
    };
}

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
    /// `timestamptz`
    Timestamp(Timestamp),
    /// Microseconds.
    Interval(i64),
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
        SqlValue::Text(alloc::copy(text))
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

/// Makes an `int8` of the oid, which a column of type `oid` takes as well.
impl From<RoleId> for SqlValue {
    fn from(role: RoleId) -> Self {
        SqlValue::BigInt(role.oid().into())
    }
}

/// Makes an `int8` of the oid, which a column of type `oid` takes as well.
impl From<DatabaseId> for SqlValue {
    fn from(database: DatabaseId) -> Self {
        SqlValue::BigInt(database.oid().into())
    }
}

impl From<Epoch> for SqlValue {
    fn from(epoch: Epoch) -> Self {
        SqlValue::BigInt(epoch.number())
    }
}

impl From<Timestamp> for SqlValue {
    fn from(value: Timestamp) -> Self {
        SqlValue::Timestamp(value)
    }
}

impl From<[u8; 16]> for SqlValue {
    fn from(value: [u8; 16]) -> Self {
        SqlValue::Uuid(value)
    }
}

impl SqlValue {
    /// Returns the type of a column that takes it, or `None` if any does.
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

    /// Makes the server's form of the value in the current memory context.
    pub(super) fn to_datum(&self) -> pg_sys::Datum {
        match self {
            SqlValue::Null => pg_sys::Datum::from(0_usize),
            SqlValue::Bool(value) => pg_sys::Datum::from(*value),
            SqlValue::Int(value) => pg_sys::Datum::from(*value),
            SqlValue::BigInt(value) => pg_sys::Datum::from(*value),
            SqlValue::Timestamp(value) => pg_sys::Datum::from(value.micros()),
            SqlValue::Interval(value) => interval::to_datum(*value),
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

/// Copies a text of the server, in the database's encoding.
///
/// # Safety
/// `datum` is a `text`.
pub(super) unsafe fn text_bytes(datum: pg_sys::Datum) -> Vec<u8> {
    // SAFETY: by contract; the copy is detoasted, whatever its header was.
    unsafe {
        let text = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        let start = pgrx::varlena::vardata_any(text).cast::<u8>();
        alloc::copy(std::slice::from_raw_parts(start, pgrx::varlena::varsize_any_exhdr(text)))
    }
}
