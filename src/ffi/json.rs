//! Rows as JSON (json.c).

use super::memory::Context;
use super::tuple::{Slot, TupleDesc};
use crate::compat::wire::heap_form_tuple;
use pgrx::pg_sys;
use std::cell::Cell;

/// `row_to_json(record)`: oid (pg_proc.dat), the same in every version.
const ROW_TO_JSON: u32 = 3155;

/// Turns rows into JSON objects.
pub struct JsonRows {
    /// Names and types; a row's own descriptor may have other names.
    columns: TupleDesc,
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

impl JsonRows {
    /// For rows with these columns; the descriptor outlives this value.
    pub fn new(columns: TupleDesc) -> Self {
        // SAFETY: registers the row type, if it has none, for this process (execTuples.c, BlessTupleDesc).
        unsafe { pg_sys::BlessTupleDesc(columns.as_raw()) };
        JsonRows { columns, memory: memory() }
    }

    /// A row in the database's encoding.
    pub fn row(&self, row: &Slot) -> Vec<u8> {
        let text = {
            let _switch = self.memory.enter();
            let (values, nulls) = row.values();
            let (mut values, mut nulls) = (values.to_vec(), nulls.to_vec());
            // SAFETY: a value for each column, whose type is registered; the function gives a text.
            unsafe {
                let columns = self.columns.as_raw();
                let tuple = heap_form_tuple(columns, &mut values, &mut nulls);
                let record = pg_sys::heap_copy_tuple_as_datum(tuple, columns);
                let function = pg_sys::Oid::from(ROW_TO_JSON);
                super::fmgr::text_bytes(pg_sys::OidFunctionCall1Coll(function, pg_sys::Oid::INVALID, record))
            }
        };
        self.memory.reset();
        text
    }
}
