//! Rows as JSON (json.c).

use crate::compat::catalog::F_ROW_TO_JSON_RECORD;
use crate::compat::wire::{heap_form_tuple, raw_datum_size};
use crate::ffi::memory::Context;
use crate::ffi::tuple::{TupleDesc, TupleSlot};
use pgrx::pg_sys;
use std::cell::Cell;

/// Turns rows into JSON objects.
pub struct JsonRows {
    /// Names and types; a row's own descriptor may have other names.
    columns: TupleDesc,
    /// Columns whose values are at least as long in JSON.
    texts: Vec<bool>,
    /// Lives as long as the process: a statement may end the transaction that it began in.
    memory: &'static Context,
}

thread_local! {
    static MEMORY: Cell<Option<&'static Context>> = const { Cell::new(None) };
}

fn memory() -> &'static Context {
    let memory = MEMORY.get().unwrap_or_else(|| Box::leak(Box::new(Context::new(c"pg_background_mgr json"))));
    MEMORY.set(Some(memory));
    memory
}

/// Returns whether JSON has the bytes of values of a type as they are, or more for them.
fn is_text(type_oid: pg_sys::Oid) -> bool {
    // SAFETY: a catalog lookup; the type exists while a statement gives its values.
    let base = unsafe { pg_sys::getBaseType(type_oid) };
    let texts =
        [pg_sys::TEXTOID, pg_sys::VARCHAROID, pg_sys::BPCHAROID, pg_sys::BYTEAOID, pg_sys::JSONOID, pg_sys::XMLOID];
    texts.contains(&base)
}

impl JsonRows {
    /// Prepares for rows with these columns; the descriptor outlives this value.
    pub fn new(columns: TupleDesc) -> Self {
        // SAFETY: registers the row type, if it has none, for this process (execTuples.c, BlessTupleDesc).
        unsafe { pg_sys::BlessTupleDesc(columns.as_raw()) };
        let texts = columns.attributes().map(|attribute| is_text(attribute.type_oid)).collect();
        JsonRows { columns, texts, memory: memory() }
    }

    /// Returns a row in the database's encoding, or `None` if it has more than `limit` bytes. Of one with a longer text
    /// in it no JSON is made.
    pub fn row(&self, row: &TupleSlot, limit: usize) -> Option<Vec<u8>> {
        let (values, nulls) = row.values();
        let mut texts = values.iter().zip(nulls).zip(&self.texts).filter(|((_, null), is_text)| **is_text && !**null);
        // SAFETY: the column is a varlena.
        let is_long = texts.any(|((value, _), _)| unsafe { raw_datum_size(*value) } > limit + size_of::<u32>());
        if is_long {
            return None;
        }
        let text = {
            let _context = self.memory.enter();
            let (mut values, mut nulls) = (values.to_vec(), nulls.to_vec());
            // SAFETY: a value for each column, whose type is registered; the function gives a text.
            unsafe {
                let columns = self.columns.as_raw();
                let tuple = heap_form_tuple(columns, &mut values, &mut nulls);
                let record = pg_sys::heap_copy_tuple_as_datum(tuple, columns);
                let function = pg_sys::Oid::from(F_ROW_TO_JSON_RECORD);
                let json = pg_sys::OidFunctionCall1Coll(function, pg_sys::Oid::INVALID, record);
                (raw_datum_size(json) <= limit + size_of::<u32>()).then(|| crate::ffi::datum::text_bytes(json))
            }
        };
        self.memory.reset();
        text
    }
}
