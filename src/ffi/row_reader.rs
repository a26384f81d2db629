//! Rows on their way in (tuplestore.c): those that fit the caller's columns are taken as they are.

use crate::error::{DbText, Error};
use crate::ffi::alloc::copy_text;
use crate::ffi::memory::Context;
use crate::ffi::row_type::is_as_before;
use crate::ffi::tuple::{Attribute, Input, Output, TupleDesc, TupleSlot};
use crate::protocol::{frame, Column, ColumnEncoding, Description, Kind, Malformed, RowsIter, ALIGNMENT, FRAME_BYTES};
use pgrx::pg_sys;

/// Tells how a column of the caller is made.
enum Source {
    /// The value of this column as it is.
    Same(usize),
    /// The value of this column through its output function.
    DbText(usize, Output),
    /// Sends the value through its output function, and then through the input function of the caller's column, whose
    /// type modifier says more.
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
    /// For the row's second tuple, which has its texts; null if there is none.
    text_slot: *mut pg_sys::TupleTableSlot,
    /// Row types of which values are given as they are: type, fingerprint.
    row_types: Vec<(u32, u64)>,
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
        let is_current =
            |column: &Column| column.wire != ColumnEncoding::Both || is_as_before(column.type_oid, column.fingerprint);
        let current: Vec<bool> = columns.iter().map(is_current).collect();
        let mut travelling: Vec<_> =
            columns.iter().zip(&current).map(|(column, current)| travelling_column(column, *current)).collect();
        // Values are numbered through both tuples of a row.
        let mut shadow_of = vec![None; columns.len()];
        for (position, index) in (columns.len()..).zip(description.text_copies()) {
            shadow_of[index] = Some(position);
            travelling.push((columns[index].name.clone(), pg_sys::TEXTOID, -1));
        }
        let mut sources = Vec::with_capacity(columns.len());
        let target = match expected {
            Some(expected) => {
                for ((index, column), attribute) in columns.iter().enumerate().zip(expected.attributes()) {
                    sources.push(source(index, column, shadow_of[index], current[index], &attribute)?);
                }
                // SAFETY: the executor's descriptor is valid; the copy is ours to hand over.
                unsafe { TupleDesc::from_raw(pg_sys::CreateTupleDescCopy(expected.as_raw())) }
            }
            None => {
                let mut wanted = Vec::with_capacity(columns.len());
                for index in 0..columns.len() {
                    let shadow = shadow_of[index].filter(|_| !current[index]);
                    sources.push(Source::Same(shadow.unwrap_or(index)));
                    wanted.push(travelling[shadow.unwrap_or(index)].clone());
                }
                // SAFETY: blessing registers the row type, so that each row can be a record.
                unsafe { TupleDesc::from_raw(pg_sys::BlessTupleDesc(TupleDesc::build(&wanted).as_raw())) }
            }
        };
        let is_same = travelling.len() == columns.len()
            && sources.iter().enumerate().all(|(index, source)| matches!(source, Source::Same(from) if *from == index));
        let slot = |columns: &[_]| {
            let desc = TupleDesc::build(columns);
            // SAFETY: the slot is freed with the memory that it is in.
            unsafe { pg_sys::MakeSingleTupleTableSlot(desc.as_raw(), &raw const pg_sys::TTSOpsMinimalTuple) }
        };
        let (values, texts) = travelling.split_at(columns.len());
        let wire_slot = slot(values);
        let text_slot = if texts.is_empty() { std::ptr::null_mut() } else { slot(texts) };
        let given = |source: &Source| match source {
            Source::Same(index) | Source::DbText(index, _) | Source::Modified(index, ..) => columns.get(*index),
            Source::Void => None,
        };
        let of_rows = sources.iter().filter_map(given).filter(|column| column.wire == ColumnEncoding::Both);
        let row_types = of_rows.map(|column| (column.type_oid, column.fingerprint)).collect();
        let memory = Context::in_current(c"pg_background_mgr row reader");
        Ok(RowReader { target, sources, is_same, wire_slot, text_slot, row_types, memory })
    }

    /// Returns the columns of the rows as the caller gets them.
    pub fn target(&self) -> TupleDesc {
        self.target
    }

    /// Returns whether a row type has been altered since the reader was made: what it has read does not fit any more.
    pub fn is_outdated(&self) -> bool {
        !self.row_types.iter().all(|(type_oid, fingerprint)| is_as_before(*type_oid, *fingerprint))
    }

    /// Returns whether rows are taken as they travel.
    pub fn is_same(&self) -> bool {
        self.is_same
    }

    /// Puts the rows of a frame into a tuplestore; returns their number.
    ///
    /// # Errors
    /// [`Error::Malformed`] (XX000)
    pub fn read(&mut self, payload: &[u8], store: *mut pg_sys::Tuplestorestate) -> Result<usize, Error> {
        let mut count = 0;
        let mut tuples = RowsIter::new(payload);
        while let Some(tuple) = tuples.next() {
            crate::ffi::alloc::check();
            let (copy, text_copy);
            copy = Tuple::aligned(tuple?);
            let texts = if self.text_slot.is_null() { None } else { Some(tuples.next().ok_or(Malformed)??) };
            // SAFETY: the slots' descriptors describe the tuples, which stay valid in this pass.
            unsafe {
                pg_sys::ExecStoreMinimalTuple(copy.as_raw(), self.wire_slot, false);
                if let Some(texts) = texts {
                    text_copy = Tuple::aligned(texts);
                    pg_sys::ExecStoreMinimalTuple(text_copy.as_raw(), self.text_slot, false);
                }
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
            let _context = self.memory.enter();
            // SAFETY: the slots were filled by the caller.
            let row = unsafe { TupleSlot::from_raw(self.wire_slot) };
            let (mut from, mut from_null) = row.values();
            let (both, both_null);
            if !self.text_slot.is_null() {
                // SAFETY: as above.
                let texts = unsafe { TupleSlot::from_raw(self.text_slot) };
                let (more, more_null) = texts.values();
                both = [from, more].concat();
                both_null = [from_null, more_null].concat();
                (from, from_null) = (&both, &both_null);
            }
            let mut values = Vec::with_capacity(self.sources.len());
            let mut nulls = Vec::with_capacity(self.sources.len());
            for source in &self.sources {
                let (value, null) = match *source {
                    Source::Same(index) => (from[index], from_null[index]),
                    Source::DbText(index, _) | Source::Modified(index, ..) if from_null[index] => (from[index], true),
                    Source::DbText(index, output) => (output.to_text(from[index]), false),
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
                TupleSlot::from_raw(self.wire_slot).append_to(&mut rows);
                if rows.len() >= FRAME_BYTES {
                    each(std::mem::replace(&mut rows, frame(Kind::Rows)))?;
                }
            }
        }
        each(rows)
    }
}

/// A tuple at an address that the server can read it at.
enum Tuple<'a> {
    There(&'a [u8]),
    /// The queue and the allocator align; should one ever not, the server must still get an aligned tuple.
    Copied(Vec<u64>),
}

impl<'a> Tuple<'a> {
    fn aligned(tuple: &'a [u8]) -> Self {
        if tuple.as_ptr().addr().is_multiple_of(ALIGNMENT) {
            return Tuple::There(tuple);
        }
        let mut copy = Vec::new();
        crate::ffi::alloc::reserve(&mut copy, tuple.len().div_ceil(ALIGNMENT));
        copy.extend(tuple.chunks(ALIGNMENT).map(word));
        Tuple::Copied(copy)
    }

    fn as_raw(&self) -> pg_sys::MinimalTuple {
        match self {
            Tuple::There(bytes) => bytes.as_ptr().cast_mut().cast(),
            Tuple::Copied(words) => words.as_ptr().cast_mut().cast(),
        }
    }
}

/// Returns up to eight bytes as the word that they are in memory.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    u64::from_ne_bytes(word)
}

/// Returns the column as its values travel. A row type that is gone, or not what it was, has a stand-in of the same
/// storage.
fn travelling_column(column: &Column, is_current: bool) -> (Vec<u8>, pg_sys::Oid, i32) {
    let (type_oid, typmod) = match column.wire {
        ColumnEncoding::Text => (pg_sys::TEXTOID, -1),
        ColumnEncoding::Both if !is_current => (pg_sys::RECORDOID, -1),
        _ => (pg_sys::Oid::from(column.type_oid), column.typmod),
    };
    (column.name.clone(), type_oid, typmod)
}

/// Decides how the caller's column is made from the result's.
fn source(
    index: usize,
    column: &Column,
    shadow: Option<usize>,
    is_current: bool,
    wanted: &Attribute,
) -> Result<Source, Error> {
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
        ColumnEncoding::Binary if is_coercible(from) => Ok(modified(from, column.typmod)),
        ColumnEncoding::Binary if is_text => Ok(Source::DbText(index, Output::of(from))),
        ColumnEncoding::Text if from == pg_sys::VOIDOID && wanted.type_oid == pg_sys::VOIDOID => Ok(Source::Void),
        ColumnEncoding::Text if is_coercible(pg_sys::TEXTOID) => Ok(modified(pg_sys::TEXTOID, -1)),
        ColumnEncoding::Both if is_text => Ok(Source::Same(shadow.unwrap_or(index))),
        ColumnEncoding::Both if is_current && (from == wanted.type_oid || is_coercible(from)) => {
            Ok(Source::Same(index))
        }
        // Its values are no values of the type any more; their texts may be.
        ColumnEncoding::Both if from == wanted.type_oid => {
            let text = Output::of(pg_sys::TEXTOID);
            Ok(Source::Modified(shadow.unwrap_or(index), text, Input::of(wanted)))
        }
        _ => Err(Error::ColumnType {
            number: index + 1,
            name: DbText::new(&column.name),
            result: type_name(from),
            listed: type_name(wanted.type_oid),
        }),
    }
}

/// Returns the name of a type for a message.
fn type_name(type_oid: pg_sys::Oid) -> DbText {
    const ALLOW_INVALID: u16 = pg_sys::FORMAT_TYPE_ALLOW_INVALID as u16;
    // SAFETY: gives a C string, also for a type that is gone.
    let name = unsafe { copy_text(pg_sys::format_type_extended(type_oid, -1, ALLOW_INVALID)) };
    DbText::new(&name)
}
