//! Tuples and their descriptors (tupdesc.c, heaptuple.c, execTuples.c).
//!
//! Rows travel as minimal tuples: [`super::row_writer`] makes them, [`super::row_reader`] takes them.

use crate::compat::{oid_to_u32, tuple_desc_attr, wire};
use crate::ffi::alloc::copy_text;
use crate::ffi::raise::c_text;
use crate::protocol::{Column, ColumnEncoding, Description, ALIGNMENT};
use pgrx::pg_sys;

/// Columns, as the server describes them.
#[derive(Clone, Copy)]
pub struct TupleDesc(pg_sys::TupleDesc);

/// A column of a [`TupleDesc`].
pub(super) struct Attribute {
    pub name: Vec<u8>,
    pub type_oid: pg_sys::Oid,
    pub typmod: i32,
    pub is_varlena: bool,
}

impl TupleDesc {
    /// # Safety
    /// `desc` is valid as long as this value is used.
    pub(super) unsafe fn from_raw(desc: pg_sys::TupleDesc) -> Self {
        TupleDesc(desc)
    }

    pub(super) fn as_raw(self) -> pg_sys::TupleDesc {
        self.0
    }

    /// Returns the number of columns.
    pub fn len(self) -> usize {
        // SAFETY: valid by the contract of `from_raw`.
        unsafe { (*self.0).natts as usize }
    }

    pub(super) fn attributes(self) -> impl Iterator<Item = Attribute> {
        // SAFETY: valid by the contract of `from_raw`; indexes are below natts; names are zero-terminated.
        (0..self.len()).map(move |index| unsafe {
            let attribute = tuple_desc_attr(self.0, index);
            Attribute {
                name: copy_text(attribute.attname.data.as_ptr()),
                type_oid: attribute.atttypid,
                typmod: attribute.atttypmod,
                is_varlena: attribute.attlen == -1,
            }
        })
    }

    /// Builds a descriptor in the current memory context. Each type must exist.
    pub(super) fn build(columns: &[(Vec<u8>, pg_sys::Oid, i32)]) -> Self {
        // SAFETY: attribute numbers run from 1 to natts; names are C strings, which the server copies.
        unsafe {
            let desc = pg_sys::CreateTemplateTupleDesc(columns.len() as i32);
            for (number, (name, type_oid, typmod)) in (1..).zip(columns) {
                let name = c_text(name);
                pg_sys::TupleDescInitEntry(desc, number, name.as_ptr(), *type_oid, *typmod, 0);
            }
            TupleDesc(desc)
        }
    }
}

/// A row that the executor holds out.
#[derive(Clone, Copy)]
pub struct TupleSlot(*mut pg_sys::TupleTableSlot);

impl TupleSlot {
    /// # Safety
    /// `slot` is valid and filled as long as this value is used.
    pub(super) unsafe fn from_raw(slot: *mut pg_sys::TupleTableSlot) -> Self {
        TupleSlot(slot)
    }

    /// All values and NULL flags of the row (tuptable.h, `slot_getallattrs`).
    pub(super) fn values(&self) -> (&[pg_sys::Datum], &[bool]) {
        // SAFETY: by the contract of `from_raw`; the server keeps natts of each.
        unsafe {
            let natts = (*(*self.0).tts_tupleDescriptor).natts;
            if i32::from((*self.0).tts_nvalid) < natts {
                pg_sys::slot_getsomeattrs_int(self.0, natts);
            }
            let natts = natts as usize;
            (
                std::slice::from_raw_parts((*self.0).tts_values, natts),
                std::slice::from_raw_parts((*self.0).tts_isnull, natts),
            )
        }
    }

    /// The columns that the executor has for the row.
    pub(super) fn desc(&self) -> TupleDesc {
        // SAFETY: by the contract of `from_raw`.
        TupleDesc(unsafe { (*self.0).tts_tupleDescriptor })
    }

    /// Appends the row as a minimal tuple, padded.
    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        let mut must_free = false;
        // SAFETY: by the contract of `from_raw`.
        unsafe {
            let tuple = pg_sys::ExecFetchSlotMinimalTuple(self.0, &mut must_free);
            append_tuple(out, tuple);
            if must_free {
                pg_sys::pfree(tuple.cast());
            }
        }
    }
}

/// # Safety
/// `tuple` is valid.
pub(super) unsafe fn append_tuple(out: &mut Vec<u8>, tuple: pg_sys::MinimalTuple) {
    // SAFETY: by contract; a minimal tuple begins with its length.
    let bytes = unsafe { std::slice::from_raw_parts(tuple.cast::<u8>(), (*tuple).t_len as usize) };
    crate::ffi::alloc::reserve(out, bytes.len() + ALIGNMENT);
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

/// The output function of a type: value to text.
#[derive(Clone, Copy)]
pub(super) struct Output(pg_sys::Oid);

impl Output {
    pub(super) fn of(type_oid: pg_sys::Oid) -> Self {
        let mut function = pg_sys::Oid::INVALID;
        let mut is_varlena = false;
        // SAFETY: the type exists, or the server raises.
        unsafe { pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut is_varlena) };
        Output(function)
    }

    /// The value as a `text` datum in the current memory context.
    pub(super) fn to_text(self, value: pg_sys::Datum) -> pg_sys::Datum {
        // SAFETY: the value is of the type that the function is for; it gives a C string.
        unsafe {
            let text = pg_sys::OidOutputFunctionCall(self.0, value);
            pg_sys::Datum::from(pg_sys::cstring_to_text(text))
        }
    }

    /// Returns the value as text.
    pub(super) fn to_bytes(self, value: pg_sys::Datum) -> Vec<u8> {
        // SAFETY: as above.
        unsafe { copy_text(pg_sys::OidOutputFunctionCall(self.0, value)) }
    }
}

/// The input function of a column: text to value, with the column's type modifier.
#[derive(Clone, Copy)]
pub(super) struct Input {
    function: pg_sys::Oid,
    parameter: pg_sys::Oid,
    typmod: i32,
}

impl Input {
    pub(super) fn of(column: &Attribute) -> Self {
        let mut input =
            Input { function: pg_sys::Oid::INVALID, parameter: pg_sys::Oid::INVALID, typmod: column.typmod };
        // SAFETY: the type exists, or the server raises.
        unsafe { pg_sys::getTypeInputInfo(column.type_oid, &mut input.function, &mut input.parameter) };
        input
    }

    /// A value of a type with this output function, in the current memory context.
    pub(super) fn value_of(self, output: Output, value: pg_sys::Datum) -> pg_sys::Datum {
        // SAFETY: the value is of the type that the output function is for, which gives a C string.
        unsafe {
            let text = pg_sys::OidOutputFunctionCall(output.0, value);
            pg_sys::OidInputFunctionCall(self.function, text, self.parameter, self.typmod)
        }
    }
}

/// Makes a row of one `text` column, as [`RowWriter`](crate::ffi::row_writer::RowWriter) would write it.
pub fn text_row(text: &[u8], out: &mut Vec<u8>) {
    // SAFETY: the descriptor has one column; everything is freed at once.
    unsafe {
        let desc = text_desc().as_raw();
        let value = pg_sys::cstring_to_text_with_len(text.as_ptr().cast(), text.len() as i32);
        let tuple = wire::heap_form_minimal_tuple(desc, &mut [pg_sys::Datum::from(value)], &mut [false]);
        append_tuple(out, tuple);
        pg_sys::pfree(tuple.cast());
        pg_sys::pfree(value.cast());
        pg_sys::FreeTupleDesc(desc);
    }
}

fn text_desc() -> TupleDesc {
    TupleDesc::build(&[(b"result".to_vec(), pg_sys::TEXTOID, -1)])
}

/// Returns the description of one `text` column.
pub fn text_description(name: &[u8]) -> Description {
    let column = Column {
        name: name.to_vec(),
        type_oid: oid_to_u32(pg_sys::TEXTOID),
        typmod: -1,
        wire: ColumnEncoding::Binary,
        fingerprint: 0,
    };
    Description { columns: vec![column] }
}
