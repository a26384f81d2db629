//! Sets of rows that a function returns (funcapi.h, materialize mode; tuplestore.c).

use crate::error::Error;
use crate::ffi::datum::SqlValue;
use crate::ffi::memory::{Context, MemoryContextGuard};
use crate::ffi::spi;
use crate::ffi::tuple::TupleDesc;
use pgrx::pg_sys;
use std::ffi::c_int;

/// The rows that a set-returning call returns.
pub struct Rows {
    info: *mut pg_sys::ReturnSetInfo,
    store: *mut pg_sys::Tuplestorestate,
}

impl Rows {
    /// Prepares to return a set of rows. Returns `None` if the caller cannot take one.
    ///
    /// # Safety
    /// `resultinfo` is that of a call that runs: null or a node.
    pub(super) unsafe fn of_call(resultinfo: *mut pg_sys::Node) -> Option<Self> {
        // SAFETY: by contract; the tag of the node tells whether it is a ReturnSetInfo.
        unsafe {
            let info = resultinfo.cast::<pg_sys::ReturnSetInfo>();
            let accepts_set = !info.is_null()
                && (*info).type_ == pg_sys::NodeTag::T_ReturnSetInfo
                && (*info).allowedModes & pg_sys::SetFunctionReturnMode::SFRM_Materialize as c_int != 0;
            accepts_set.then_some(Rows { info, store: std::ptr::null_mut() })
        }
    }

    fn query_lifetime(&self) -> MemoryContextGuard {
        // SAFETY: the executor's context of the calling expression is valid for the call.
        MemoryContextGuard::to(unsafe { (*(*self.info).econtext).ecxt_per_query_memory })
    }

    /// Returns the columns that the caller listed, or `None` in a select list.
    pub fn expected(&self) -> Option<TupleDesc> {
        // SAFETY: set by the executor, valid for the call.
        let desc = unsafe { (*self.info).expectedDesc };
        // SAFETY: as above.
        (!desc.is_null()).then(|| unsafe { TupleDesc::from_raw(desc) })
    }

    /// Runs `build` in memory that lives as long as the query, for what is handed to the executor.
    pub fn for_query<T>(&self, build: impl FnOnce() -> T) -> T {
        let _context = self.query_lifetime();
        build()
    }

    /// Returns the tuplestore that takes the rows: bounded by `work_mem`, then a file.
    pub fn store(&mut self) -> *mut pg_sys::Tuplestorestate {
        if self.store.is_null() {
            let _context = self.query_lifetime();
            // SAFETY: the store belongs to the query, as its memory does.
            self.store = unsafe {
                let random =
                    (*self.info).allowedModes & pg_sys::SetFunctionReturnMode::SFRM_Materialize_Random as c_int;
                pg_sys::tuplestore_begin_heap(random != 0, false, pg_sys::work_mem)
            };
        }
        self.store
    }

    /// Hands the rows to the executor.
    pub fn finish(mut self, desc: TupleDesc) {
        let store = self.store();
        // SAFETY: the executor reads these when the call returns; both live as long as the query.
        unsafe {
            (*self.info).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*self.info).setResult = store;
            (*self.info).setDesc = desc.as_raw();
        }
    }
}

/// The rows of a call whose declaration lists their columns (`RETURNS TABLE`).
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
            let _context = self.memory.enter();
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
