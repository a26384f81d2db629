//! Calls of SQL-callable functions: arguments, value, errors (fmgr.h, version 1 calling convention).

use crate::compat::tuple_desc_attr;
use crate::error::Error;
use crate::ffi::datum::text_bytes;
use crate::ffi::raise::{internal_error, Log, Raised};
use crate::ffi::set_returning::{Rows, TypedRows};
use crate::ffi::tuple::{Output, TupleDesc};
use crate::ffi::{alloc, allocator, report};
use crate::ids::{DatabaseId, Epoch};
use crate::protocol::Report;
use pgrx::pg_sys;
use std::ffi::{c_char, CStr};

/// The value that a function returns.
pub enum Value {
    Void,
    Bool(bool),
    Int(i32),
    BigInt(i64),
    /// The row that a trigger returns; with `None` nothing is done with it.
    Row(Option<OldRow>),
}

/// The row that a trigger was called for.
pub struct OldRow(pg_sys::HeapTuple);

enum Outcome {
    Return(pg_sys::Datum),
    Raise(Raised),
}

/// Runs the body of a SQL-callable function: the frame where errors leave Rust.
pub fn call(fcinfo: pg_sys::FunctionCallInfo, body: fn(&Call) -> Result<Value, Error>) -> pg_sys::Datum {
    let run = || {
        if !allocator::keep_reserve() {
            return Outcome::Raise(Raised::out_of_memory());
        }
        match report::catch_call(|| body(&Call(fcinfo))) {
            Ok(Ok(Value::Void)) => Outcome::Return(pg_sys::Datum::from(0_usize)),
            Ok(Ok(Value::Bool(value))) => Outcome::Return(pg_sys::Datum::from(value)),
            Ok(Ok(Value::Int(value))) => Outcome::Return(pg_sys::Datum::from(value)),
            Ok(Ok(Value::BigInt(value))) => Outcome::Return(pg_sys::Datum::from(value)),
            Ok(Ok(Value::Row(row))) => {
                Outcome::Return(row.map_or(pg_sys::Datum::from(0_usize), |row| pg_sys::Datum::from(row.0)))
            }
            Ok(Err(error)) => {
                let log = if matches!(error, Error::Job(_)) { Log::Done } else { Log::Here };
                Outcome::Raise(Raised::new(&Report::from(error), log))
            }
            // The server's own error: complete, and in the database's encoding, which pgrx's own way out is not.
            Err(captured) => Outcome::Raise(Raised::new(&captured.report, Log::Here)),
        }
    };
    // SAFETY: the server calls functions on its only thread.
    match unsafe { pg_sys::panic::pgrx_extern_c_guard(run) } {
        Outcome::Return(value) => value,
        // SAFETY: this frame and the entry point above it hold nothing with a Drop.
        Outcome::Raise(raised) => unsafe { raised.throw() },
    }
}

/// A call of a SQL-callable function.
pub struct Call(pg_sys::FunctionCallInfo);

impl Call {
    fn argument(&self, index: usize) -> Option<pg_sys::Datum> {
        // SAFETY: the server passes a valid call; the index is checked against the number of its arguments.
        unsafe {
            let arguments = (*self.0).args.as_slice((*self.0).nargs as usize);
            arguments.get(index).filter(|argument| !argument.isnull).map(|argument| argument.value)
        }
    }

    /// Returns an `int4` argument, or `None` for NULL.
    pub fn int(&self, index: usize) -> Option<i32> {
        self.argument(index).map(|datum| datum.value() as i32)
    }

    /// Returns an `oid` argument, or `None` for NULL.
    pub fn oid(&self, index: usize) -> Option<u32> {
        self.argument(index).map(|datum| datum.value() as u32)
    }

    /// Returns an `oid` argument that names a database, or `None` for NULL.
    pub fn database(&self, index: usize) -> Option<DatabaseId> {
        self.oid(index).map(DatabaseId::of_oid)
    }

    /// Returns an `int8` argument that is an epoch, or `None` for NULL.
    pub fn epoch(&self, index: usize) -> Option<Epoch> {
        self.argument(index).map(|datum| Epoch::of_number(datum.value() as i64))
    }

    /// Returns a `bool` argument, or `None` for NULL.
    pub fn bool(&self, index: usize) -> Option<bool> {
        self.argument(index).map(|datum| datum.value() as u8 != 0)
    }

    /// Returns a `text` argument in the database's encoding, or `None` for NULL.
    pub fn text(&self, index: usize) -> Option<Vec<u8>> {
        // SAFETY: the SQL declaration makes the argument a text.
        self.argument(index).map(|datum| unsafe { text_bytes(datum) })
    }

    /// Returns the elements of a `text[]` argument, whatever its dimensions, or `None` for NULL.
    pub fn text_array(&self, index: usize) -> Option<Vec<Option<Vec<u8>>>> {
        let datum = self.argument(index)?;
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: the SQL declaration makes the argument a text[]; the server gives `count` values and flags.
        unsafe {
            let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
            let (length, align) = (-1, b'i' as c_char); // those of text
            let type_oid = pg_sys::TEXTOID;
            pg_sys::deconstruct_array(array, type_oid, length, false, align, &mut values, &mut nulls, &mut count);
            let element = |at| (!*nulls.add(at)).then(|| text_bytes(*values.add(at)));
            let mut elements = Vec::new();
            alloc::reserve(&mut elements, count as usize);
            for at in 0..count as usize {
                alloc::check();
                elements.push(element(at));
            }
            Some(elements)
        }
    }

    /// Returns a `jsonb` argument as text in the database's encoding, or `None` for NULL.
    pub fn jsonb(&self, index: usize) -> Option<Vec<u8>> {
        self.argument(index).map(|datum| Output::of(pg_sys::JSONBOID).to_bytes(datum))
    }

    /// Returns a `uuid` argument, or `None` for NULL.
    pub fn uuid(&self, index: usize) -> Option<[u8; 16]> {
        // SAFETY: the SQL declaration makes the argument a uuid: a pointer to its 16 bytes (uuid.h).
        self.argument(index).map(|datum| unsafe { datum.cast_mut_ptr::<[u8; 16]>().read() })
    }

    /// Returns an `interval` argument in microseconds, as [`interval`](crate::ffi::interval) counts them, or `None` for
    /// NULL.
    pub fn interval(&self, index: usize) -> Option<i64> {
        // SAFETY: the SQL declaration makes the argument an interval: a pointer to one.
        self.argument(index).map(|datum| unsafe { crate::ffi::interval::from_datum(datum) })
    }

    /// Returns a `name` argument, or `None` for NULL.
    pub fn name(&self, index: usize) -> Option<Vec<u8>> {
        // SAFETY: the SQL declaration makes the argument a name: zero-terminated within NAMEDATALEN bytes.
        self.argument(index).map(|datum| unsafe { alloc::copy_text(datum.cast_mut_ptr()) })
    }

    /// Returns the row that is deleted from a relation of the extension, and the value of this `uuid` column of it.
    /// Returns `None` if the function was not called by a trigger on such a relation INSTEAD OF DELETE.
    pub fn deleted_row(&self, column: &CStr) -> Option<(OldRow, Option<[u8; 16]>)> {
        // SAFETY: the server passes a valid call; that of a trigger has its data as context, with the row and the open
        // relation (trigger.h, `CALLED_AS_TRIGGER`). The column has the type that is asked for.
        unsafe {
            let context = (*self.0).context;
            if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
                return None;
            }
            let data = context.cast::<pg_sys::TriggerData>();
            let (relation, event) = ((*data).tg_relation, (*data).tg_event);
            let wanted = pg_sys::TRIGGER_EVENT_DELETE | pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_INSTEAD;
            let mask = pg_sys::TRIGGER_EVENT_OPMASK | pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_TIMINGMASK;
            let columns = (*relation).rd_att;
            let number = pg_sys::SPI_fnumber(columns, column.as_ptr());
            if event & mask != wanted || !crate::ffi::internal_sql::is_own((*relation).rd_id) || number <= 0 {
                return None;
            }
            if tuple_desc_attr(columns, number as usize - 1).atttypid != pg_sys::UUIDOID {
                return None;
            }
            let mut is_null = false;
            let datum = pg_sys::SPI_getbinval((*data).tg_trigtuple, columns, number, &raw mut is_null);
            let uuid = (!is_null).then(|| datum.cast_mut_ptr::<[u8; 16]>().read());
            Some((OldRow((*data).tg_trigtuple), uuid))
        }
    }

    /// Works with what an earlier call in this query, of any function, has left here for this type; at the first, with
    /// a new value. It is an internal error (XX000) if `work` runs a function that asks for the same type.
    pub fn with_memory_of_query<T: Default + 'static, R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: the server passes a valid call. Functions that give sets have the memory of the whole query as that
        // of their expression (execSRF.c, `ExecInitTableFunctionResult`, `ExecInitFunctionResultSet`); it outlives the
        // call.
        let value = unsafe { &*crate::ffi::memory::value_of::<T>((*(*self.0).flinfo).fn_mcxt) };
        match value.try_borrow_mut() {
            Ok(mut value) => work(&mut value),
            Err(_) => internal_error("memory of a query is in use"),
        }
    }

    /// Prepares the call to return a set of rows with the columns of its own declaration.
    ///
    /// # Errors
    /// [`Error::SetNotAccepted`] (0A000) if the caller cannot take one, [`Error::Declaration`] (42P13) if the
    /// declaration lists no columns.
    pub fn typed_rows(&self) -> Result<TypedRows, Error> {
        let rows = self.rows()?;
        let mut desc = std::ptr::null_mut();
        // SAFETY: the server passes a valid call; the descriptor is made in memory that lives as long as the query.
        let class = rows.for_query(|| unsafe { pg_sys::get_call_result_type(self.0, std::ptr::null_mut(), &mut desc) });
        if class != pg_sys::TypeFuncClass::TYPEFUNC_COMPOSITE || desc.is_null() {
            return Err(Error::Declaration);
        }
        // SAFETY: as above.
        Ok(TypedRows::new(rows, unsafe { TupleDesc::from_raw(desc) }))
    }

    /// Prepares the call to return a set of rows as a whole.
    ///
    /// # Errors
    /// [`Error::SetNotAccepted`] (0A000) if the caller cannot take one.
    pub fn rows(&self) -> Result<Rows, Error> {
        // SAFETY: the server passes a valid call: resultinfo is null or a node.
        unsafe { Rows::of_call((*self.0).resultinfo) }.ok_or(Error::SetNotAccepted)
    }
}
