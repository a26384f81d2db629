//! Rows of a statement on their way out: values that lie elsewhere are brought in, and types that mean nothing in
//! another process become text.

use crate::compat::{oid_to_u32, wire};
use crate::ffi::memory::Context;
use crate::ffi::row_type;
use crate::ffi::tuple::{append_tuple, Output, TupleDesc, TupleSlot};
use crate::protocol::{Column, ColumnEncoding, Description};
use pgrx::pg_sys;

/// Returns how values of a type travel.
fn wire_of(type_oid: pg_sys::Oid) -> ColumnEncoding {
    let mut at = Some(type_oid);
    while let Some(this) = at {
        // SAFETY: catalog lookups; the type exists while a statement gives its values.
        unsafe {
            let is_row = pg_sys::type_is_rowtype(pg_sys::getBaseType(this));
            let is_pseudo = pg_sys::get_typtype(this) as u8 == pg_sys::TYPTYPE_PSEUDO;
            if is_pseudo || is_temporary(this) && !is_row {
                return ColumnEncoding::Text;
            }
        }
        at = row_type::inner(this);
    }
    if row_type::is_over_row_type(type_oid) {
        ColumnEncoding::Both
    } else {
        ColumnEncoding::Binary
    }
}

/// Returns whether the type is one of this session's only, which goes with it.
///
/// # Safety
/// The type exists.
unsafe fn is_temporary(type_oid: pg_sys::Oid) -> bool {
    const NAMESPACE: pg_sys::AttrNumber = pg_sys::Anum_pg_type_typnamespace as pg_sys::AttrNumber;
    let types = pg_sys::SysCacheIdentifier::TYPEOID as i32;
    let nothing = pg_sys::Datum::from(0_usize);
    // SAFETY: by contract; the row is held while it is looked at.
    unsafe {
        let row = pg_sys::SearchSysCache(types, pg_sys::Datum::from(type_oid), nothing, nothing, nothing);
        if row.is_null() {
            return false;
        }
        let mut is_null = false;
        let namespace = pg_sys::SysCacheGetAttr(types, row, NAMESPACE, &mut is_null);
        pg_sys::ReleaseSysCache(row);
        pg_sys::isTempNamespace(pg_sys::Oid::from(namespace.value() as u32))
    }
}

/// Writes the rows of one statement.
pub struct RowWriter {
    columns: Vec<WriterColumn>,
    /// Rows must be formed anew: some values become text.
    form: Option<TupleDesc>,
    /// A second tuple has the texts of values that travel as they are and as text.
    texts: Option<TupleDesc>,
    has_varlena: bool,
    /// Emptied after each row.
    memory: Context,
    /// Holds `form` and `texts`.
    _lasting: Context,
}

struct WriterColumn {
    is_varlena: bool,
    wire: ColumnEncoding,
    output: Option<Output>,
}

impl RowWriter {
    /// Prepares for the columns of a statement; returns their description for the reader.
    pub fn new(desc: TupleDesc) -> (Self, Description) {
        let lasting = Context::of_text(c"pg_background_mgr row writer");
        let memory = Context::of_text(c"pg_background_mgr row");
        let context_guard = lasting.enter();
        let mut description = Description::default();
        let mut columns = Vec::new();
        let mut formed = Vec::new();
        let mut shadows = Vec::new();
        for attribute in desc.attributes() {
            let wire = wire_of(attribute.type_oid);
            let shadow = (attribute.name.clone(), pg_sys::TEXTOID, -1);
            match wire {
                ColumnEncoding::Binary => formed.push((attribute.name.clone(), attribute.type_oid, attribute.typmod)),
                ColumnEncoding::Text => formed.push(shadow),
                ColumnEncoding::Both => {
                    formed.push((attribute.name.clone(), attribute.type_oid, attribute.typmod));
                    shadows.push(shadow);
                }
            }
            columns.push(WriterColumn {
                is_varlena: attribute.is_varlena,
                wire,
                output: (wire != ColumnEncoding::Binary).then(|| Output::of(attribute.type_oid)),
            });
            description.columns.push(Column {
                name: attribute.name,
                type_oid: oid_to_u32(attribute.type_oid),
                typmod: attribute.typmod,
                wire,
                fingerprint: if wire == ColumnEncoding::Both { row_type::fingerprint(attribute.type_oid) } else { 0 },
            });
        }
        let form =
            columns.iter().any(|column| column.wire != ColumnEncoding::Binary).then(|| TupleDesc::build(&formed));
        let texts = (!shadows.is_empty()).then(|| TupleDesc::build(&shadows));
        let has_varlena = columns.iter().any(|column| column.is_varlena);
        drop(context_guard);
        (RowWriter { columns, form, texts, has_varlena, memory, _lasting: lasting }, description)
    }

    /// Appends a row. Toasted values are brought in: their table may be gone when the row is read.
    pub fn append(&mut self, row: TupleSlot, out: &mut Vec<u8>) {
        crate::ffi::alloc::check();
        if self.form.is_none() && !(self.has_varlena && self.has_external(&row)) {
            row.append_to(out);
            return;
        }
        {
            let _context = self.memory.enter();
            let (values, nulls) = row.values();
            let (mut values, mut nulls) = (values.to_vec(), nulls.to_vec());
            let (mut texts, mut text_nulls) = (Vec::new(), Vec::new());
            for ((value, null), column) in values.iter_mut().zip(&nulls).zip(&self.columns) {
                let text = |value: pg_sys::Datum| match column.output {
                    Some(output) if !null => output.to_text(value),
                    _ => pg_sys::Datum::from(0_usize),
                };
                match column.wire {
                    ColumnEncoding::Text => *value = text(*value),
                    ColumnEncoding::Both => {
                        texts.push(text(*value));
                        text_nulls.push(*null);
                    }
                    ColumnEncoding::Binary => {}
                }
                if column.wire != ColumnEncoding::Text && column.is_varlena && !null && is_external(*value) {
                    // SAFETY: a varlena with an external header.
                    *value = pg_sys::Datum::from(unsafe { wire::detoast_external(value.cast_mut_ptr()) });
                }
            }
            // SAFETY: the executor's own descriptor is valid with its slot; ours has a column for each value.
            unsafe {
                let desc = self.form.unwrap_or_else(|| row.desc()).as_raw();
                append_tuple(out, wire::heap_form_minimal_tuple(desc, &mut values, &mut nulls));
                if let Some(desc) = self.texts {
                    append_tuple(out, wire::heap_form_minimal_tuple(desc.as_raw(), &mut texts, &mut text_nulls));
                }
            }
        }
        self.memory.reset();
    }

    fn has_external(&self, row: &TupleSlot) -> bool {
        let (values, nulls) = row.values();
        let columns = values.iter().zip(nulls).zip(&self.columns);
        columns.into_iter().any(|((value, null), column)| column.is_varlena && !null && is_external(*value))
    }
}

/// Returns whether this varlena lies elsewhere (postgres.h, `VARATT_IS_EXTERNAL`).
fn is_external(value: pg_sys::Datum) -> bool {
    // SAFETY: the caller has a non-NULL value of a variable-length type: it begins with a header byte.
    unsafe { pgrx::varlena::varatt_is_1b_e(value.cast_mut_ptr()) }
}
