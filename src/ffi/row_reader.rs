//! Rows on their way in (tuplestore.c): those that fit the caller's columns are taken as they are.

use super::memory::{copy_c_string, Context};
use super::tuple::{Attribute, Input, Output, Slot, TupleDesc};
use crate::error::{Error, Text};
use crate::protocol::{frame, Column, Description, Kind, RowsIter, Wire, ALIGNMENT, FRAME_BYTES};
use pgrx::pg_sys;

/// How a column of the caller is made.
enum Source {
    /// The value of this column as it is.
    Same(usize),
    /// The value of this column through its output function.
    Text(usize, Output),
    /// The same, and then through the input function of the caller's column, whose type modifier says more.
    Modified(usize, Output, Input),
    /// Always the void value.
    Void,
}

/// Reads rows into what the caller wants.
pub struct RowReader {
    target: TupleDesc,
    sources: Vec<Source>,
    is_same: bool,
    wire_slot: *mut pg_sys::TupleTableSlot,
    memory: Context,
}

impl RowReader {
    /// Matches the columns of a result with those that the caller listed, if it did. What it builds is in the current
    /// memory context, which must live as long as the rows.
    ///
    /// # Errors
    /// [`Error::ColumnCount`], [`Error::ColumnType`] (42804).
    pub fn new(description: &Description, expected: Option<TupleDesc>) -> Result<Self, Error> {
        let columns = &description.columns;
        if let Some(expected) = expected.filter(|expected| expected.len() != columns.len()) {
            return Err(Error::ColumnCount { result: columns.len(), listed: expected.len() });
        }
        let mut travelling: Vec<_> = columns.iter().map(travelling_column).collect();
        let mut shadow_of = vec![None; columns.len()];
        for (position, index) in (columns.len()..).zip(description.shadowed()) {
            shadow_of[index] = Some(position);
            travelling.push((columns[index].name.clone(), pg_sys::TEXTOID, -1));
        }
        let mut sources = Vec::with_capacity(columns.len());
        let target = match expected {
            Some(expected) => {
                for ((index, column), attribute) in columns.iter().enumerate().zip(expected.attributes()) {
                    sources.push(source(index, column, shadow_of[index], &attribute)?);
                }
                // SAFETY: the executor's descriptor is valid; the copy is ours to hand over.
                unsafe { TupleDesc::from_raw(pg_sys::CreateTupleDescCopy(expected.as_raw())) }
            }
            None => {
                let mut wanted = Vec::with_capacity(columns.len());
                for (index, column) in columns.iter().enumerate() {
                    let gone = column.wire == Wire::TypedAndText && !type_exists(column.type_oid);
                    let shadow = shadow_of[index].filter(|_| gone);
                    sources.push(Source::Same(shadow.unwrap_or(index)));
                    wanted.push(travelling[shadow.unwrap_or(index)].clone());
                }
                // SAFETY: blessing registers the row type, so that each row can be a record.
                unsafe { TupleDesc::from_raw(pg_sys::BlessTupleDesc(TupleDesc::build(&wanted).as_raw())) }
            }
        };
        let is_same = travelling.len() == columns.len()
            && sources.iter().enumerate().all(|(index, source)| matches!(source, Source::Same(from) if *from == index));
        let wire = TupleDesc::build(&travelling);
        // SAFETY: the slot is freed with the memory that it is in.
        let wire_slot =
            unsafe { pg_sys::MakeSingleTupleTableSlot(wire.as_raw(), &raw const pg_sys::TTSOpsMinimalTuple) };
        let memory = Context::in_current(c"pg_background_mgr row reader");
        Ok(RowReader { target, sources, is_same, wire_slot, memory })
    }

    /// The columns of the rows as the caller gets them.
    pub fn target(&self) -> TupleDesc {
        self.target
    }

    /// Are rows taken as they travel?
    pub fn is_same(&self) -> bool {
        self.is_same
    }

    /// Puts the rows of a frame into a tuplestore; gives their number.
    ///
    /// # Errors
    /// [`Error::Malformed`] (XX000)
    pub fn read(&mut self, payload: &[u8], store: *mut pg_sys::Tuplestorestate) -> Result<usize, Error> {
        let mut count = 0;
        for row in RowsIter::new(payload) {
            let row = row?;
            super::alloc::check();
            // The queue and the allocator align; should one ever not, the server must still get an aligned tuple.
            let copy: Vec<u64>;
            let mut start = row.as_ptr();
            if !start.addr().is_multiple_of(ALIGNMENT) {
                super::alloc::ensure(row.len() + ALIGNMENT);
                copy = row.chunks(ALIGNMENT).map(word).collect();
                start = copy.as_ptr().cast();
            }
            // SAFETY: the row is a minimal tuple that the slot's descriptor describes; it stays valid in this pass.
            unsafe {
                pg_sys::ExecStoreMinimalTuple(start.cast_mut().cast(), self.wire_slot, false);
                if self.is_same {
                    pg_sys::tuplestore_puttupleslot(store, self.wire_slot);
                } else {
                    self.convert(store);
                }
            }
            count += 1;
        }
        Ok(count)
    }

    fn convert(&mut self, store: *mut pg_sys::Tuplestorestate) {
        {
            let _switch = self.memory.enter();
            // SAFETY: the slot was filled by the caller.
            let row = unsafe { Slot::from_raw(self.wire_slot) };
            let (from, from_null) = row.values();
            let mut values = Vec::with_capacity(self.sources.len());
            let mut nulls = Vec::with_capacity(self.sources.len());
            for source in &self.sources {
                let (value, null) = match *source {
                    Source::Same(index) => (from[index], from_null[index]),
                    Source::Text(index, _) | Source::Modified(index, ..) if from_null[index] => (from[index], true),
                    Source::Text(index, output) => (output.to_text(from[index]), false),
                    Source::Modified(index, output, input) => (input.value_of(output, from[index]), false),
                    Source::Void => (pg_sys::Datum::from(0_usize), false),
                };
                values.push(value);
                nulls.push(null);
            }
            // SAFETY: one value for each column of the target.
            unsafe {
                pg_sys::tuplestore_putvalues(store, self.target.as_raw(), values.as_mut_ptr(), nulls.as_mut_ptr())
            };
        }
        self.memory.reset();
    }

    /// Takes the first `count` rows that [`read`](Self::read) put into a tuplestore out again, in frames. Only for rows
    /// that are taken as they travel.
    ///
    /// # Errors
    /// [`Error::Spill`] (58030) if the store has fewer rows; those of `each`.
    pub fn take_back(
        &mut self,
        store: *mut pg_sys::Tuplestorestate,
        count: usize,
        mut each: impl FnMut(Vec<u8>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut rows = frame(Kind::Rows);
        // SAFETY: the store and the slot have the same columns.
        unsafe {
            pg_sys::tuplestore_rescan(store);
            for _ in 0..count {
                if !pg_sys::tuplestore_gettupleslot(store, true, false, self.wire_slot) {
                    return Err(Error::Spill);
                }
                Slot::from_raw(self.wire_slot).append_to(&mut rows);
                if rows.len() >= FRAME_BYTES {
                    each(std::mem::replace(&mut rows, frame(Kind::Rows)))?;
                }
            }
        }
        each(rows)
    }
}

/// Up to eight bytes as the word that they are in memory.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    u64::from_ne_bytes(word)
}

fn type_exists(type_oid: u32) -> bool {
    // SAFETY: a catalog lookup.
    unsafe {
        pg_sys::SearchSysCacheExists(
            pg_sys::SysCacheIdentifier::TYPEOID as i32,
            pg_sys::Datum::from(type_oid),
            pg_sys::Datum::from(0_usize),
            pg_sys::Datum::from(0_usize),
            pg_sys::Datum::from(0_usize),
        )
    }
}

/// The column as its values travel. A row type that is gone has a stand-in of the same storage.
fn travelling_column(column: &Column) -> (Vec<u8>, pg_sys::Oid, i32) {
    let (type_oid, typmod) = match column.wire {
        Wire::Text => (pg_sys::TEXTOID, -1),
        Wire::TypedAndText if !type_exists(column.type_oid) => (pg_sys::RECORDOID, -1),
        _ => (pg_sys::Oid::from(column.type_oid), column.typmod),
    };
    (column.name.clone(), type_oid, typmod)
}

/// Decides how the caller's column is made from the result's.
fn source(index: usize, column: &Column, shadow: Option<usize>, wanted: &Attribute) -> Result<Source, Error> {
    let from = pg_sys::Oid::from(column.type_oid);
    // SAFETY: a catalog lookup.
    let is_coercible = |from| unsafe { pg_sys::IsBinaryCoercible(from, wanted.type_oid) };
    let is_text = wanted.type_oid == pg_sys::TEXTOID;
    // numeric(10,2), varchar(3), timestamp(0): nobody looks again whether a value keeps to it.
    let modified = |travels_as: pg_sys::Oid, typmod| {
        let is_kept = wanted.typmod < 0 || (travels_as, typmod) == (wanted.type_oid, wanted.typmod);
        if is_kept {
            Source::Same(index)
        } else {
            Source::Modified(index, Output::of(travels_as), Input::of(wanted))
        }
    };
    match column.wire {
        Wire::Typed if is_coercible(from) => Ok(modified(from, column.typmod)),
        Wire::Typed if is_text => Ok(Source::Text(index, Output::of(from))),
        Wire::Text if from == pg_sys::VOIDOID && wanted.type_oid == pg_sys::VOIDOID => Ok(Source::Void),
        Wire::Text if is_coercible(pg_sys::TEXTOID) => Ok(modified(pg_sys::TEXTOID, -1)),
        Wire::TypedAndText if is_text => Ok(Source::Same(shadow.unwrap_or(index))),
        Wire::TypedAndText if from == wanted.type_oid || type_exists(column.type_oid) && is_coercible(from) => {
            Ok(Source::Same(index))
        }
        _ => Err(Error::ColumnType {
            number: index + 1,
            name: Text::new(&column.name),
            result: type_name(from),
            listed: type_name(wanted.type_oid),
        }),
    }
}

/// The name of a type for a message.
fn type_name(type_oid: pg_sys::Oid) -> Text {
    // SAFETY: gives a C string, also for a type that is gone.
    let name = unsafe { copy_c_string(pg_sys::format_type_be(type_oid)) };
    Text::new(&name.unwrap_or_default())
}
