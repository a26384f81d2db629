//! Rows of a relation of the extension, read and written without SQL (heapam.c, indexing.c, genam.c).
//!
//! Nothing runs that others may have put on the relation: neither the executor nor the planner sees what is done here,
//! so there are no triggers, rules, defaults, checks, policies or foreign keys; and where an index has an expression, a
//! predicate, or an operator class of others, nothing is done ([`Unfit::Altered`]).
//!
//! The next look at a row in the same transaction sees what was done with it.

use crate::compat::catalog::F_TIMESTAMPTZ_LT;
use crate::compat::exec::list_of_oids;
use crate::compat::tuple_desc_attr;
use crate::ffi::datum::{text_bytes, SqlValue};
use crate::ffi::internal_sql::is_of_server;
use crate::ffi::memory::Context;
use crate::ffi::raise::c_text;
use crate::ffi::sys;
use crate::ffi::tuple::Output;
use crate::time::Timestamp;
use pgrx::pg_sys;

/// Strategies of a B-tree (stratnum.h).
const LESS: pg_sys::StrategyNumber = pg_sys::BTLessStrategyNumber as pg_sys::StrategyNumber;
const EQUAL: pg_sys::StrategyNumber = pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber;

/// Tells what is done with a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Rows are read as they are now, whatever the transaction's snapshot.
    Read,
    /// Rows are changed in a transaction of others, which may last.
    Change,
    /// Rows are written in a transaction of the extension's own.
    Write,
}

impl Access {
    /// Returns the lock that indexes need.
    fn lock(self) -> i32 {
        (match self {
            Access::Read => pg_sys::AccessShareLock,
            Access::Change | Access::Write => pg_sys::RowExclusiveLock,
        }) as i32
    }
}

/// Tells why a relation cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Gone: dropped since it was found.
    Gone,
    /// Emptied by its owner (REFRESH ... WITH NO DATA), so that no query can read it.
    Empty,
    /// Changed from what the extension has made: to write it could run code of others.
    Altered,
}

/// An open relation. Columns are counted from 1.
pub struct Heap {
    relation: pg_sys::Relation,
    access: Access,
    indexes: Vec<pg_sys::Relation>,
    /// Serves to insert into the indexes; null if the relation is only read.
    writer: pg_sys::CatalogIndexState,
    /// Emptied after each row that is written.
    memory: Context,
}

/// Runs `body` with the materialized view with this oid, whose columns are to have these types. Inside a transaction
/// that holds the locks that it needs, or waits for those of the indexes.
///
/// # Errors
/// [`Unfit`]: `body` did not run.
pub fn with<T>(oid: u32, types: &[pg_sys::Oid], access: Access, body: impl FnOnce(&Heap) -> T) -> Result<T, Unfit> {
    // SAFETY: the relation is closed below; after an error the abort of the transaction does that. The snapshot is also
    // for TOAST.
    unsafe {
        // So that what is done here is counted, for autovacuum (relation.c, `pgstat_init_relation`).
        let relation = pg_sys::try_relation_open(oid.into(), pg_sys::NoLock as i32);
        if relation.is_null() {
            return Err(Unfit::Gone);
        }
        let memory = Context::in_current(c"pg_background_mgr written row");
        let mut heap = Heap { relation, access, indexes: Vec::new(), writer: std::ptr::null_mut(), memory };
        if !(is_as_made(relation, types) && heap.open_indexes()) {
            heap.close();
            return Err(Unfit::Altered);
        }
        if access != Access::Read && !(*(*relation).rd_rel).relispopulated {
            if access == Access::Change {
                // The change of its state would wait for the end of that transaction, and with it all others.
                heap.close();
                return Err(Unfit::Empty);
            }
            sys::SetMatViewPopulatedState(relation, true);
        }
        pg_sys::PushActiveSnapshot(match access {
            Access::Read => pg_sys::GetLatestSnapshot(),
            Access::Change | Access::Write => pg_sys::GetTransactionSnapshot(),
        });
        let value = body(&heap);
        pg_sys::PopActiveSnapshot();
        heap.close();
        Ok(value)
    }
}

/// Returns whether a relation has these columns, and the server's own way to keep rows.
///
/// # Safety
/// The relation is open.
unsafe fn is_as_made(relation: pg_sys::Relation, types: &[pg_sys::Oid]) -> bool {
    // SAFETY: by contract.
    unsafe {
        let (form, columns) = ((*relation).rd_rel, (*relation).rd_att);
        (*form).relkind as u8 == b'm'
            && (*form).relpersistence as u8 == b'p'
            && (*form).relam == pg_sys::HEAP_TABLE_AM_OID
            && (*columns).natts as usize == types.len()
            && types.iter().enumerate().all(|(index, type_oid)| {
                let column = tuple_desc_attr(columns, index);
                !column.attisdropped && column.atttypid == *type_oid
            })
    }
}

/// Returns whether an index has columns only, and operator classes that call functions of the server.
///
/// # Safety
/// The index is open.
unsafe fn is_plain(index: pg_sys::Relation) -> bool {
    // SAFETY: by contract; there are as many support functions for each column of the key as the access method says.
    unsafe {
        let is_null = |column: u32| pg_sys::heap_attisnull((*index).rd_indextuple, column as i32, std::ptr::null_mut());
        let count = (*(*index).rd_index).indnkeyatts as usize * usize::from((*(*index).rd_indam).amsupport);
        is_null(pg_sys::Anum_pg_index_indexprs)
            && is_null(pg_sys::Anum_pg_index_indpred)
            && is_of_server((*(*index).rd_rel).relam)
            && (0..count).all(|at| is_of_server(*(*index).rd_support.add(at)))
    }
}

impl Heap {
    /// Opens the indexes, as `CatalogOpenIndexes` does, but looks at each one before its expressions are read: that
    /// would run them. Returns `false` if one of them could run code of others.
    ///
    /// # Safety
    /// The relation is open and locked.
    unsafe fn open_indexes(&mut self) -> bool {
        // SAFETY: by contract; the arrays have room for all indexes.
        unsafe {
            let list = pg_sys::RelationGetIndexList(self.relation);
            let oids = list_of_oids(list);
            pg_sys::list_free(list);
            for oid in oids {
                let index = pg_sys::index_open(oid, self.access.lock());
                self.indexes.push(index);
                if !is_plain(index) {
                    return false;
                }
            }
            if self.access != Access::Read {
                let writer = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast::<pg_sys::ResultRelInfo>();
                (*writer).type_ = pg_sys::NodeTag::T_ResultRelInfo;
                (*writer).ri_RelationDesc = self.relation;
                let size = size_of::<usize>() * self.indexes.len().max(1);
                (*writer).ri_IndexRelationDescs = pg_sys::palloc(size).cast();
                (*writer).ri_IndexRelationInfo = pg_sys::palloc(size).cast();
                for (at, index) in self.indexes.iter().enumerate() {
                    *(*writer).ri_IndexRelationDescs.add(at) = *index;
                    *(*writer).ri_IndexRelationInfo.add(at) = pg_sys::BuildIndexInfo(*index);
                }
                (*writer).ri_NumIndices = self.indexes.len() as i32;
                self.writer = writer;
            }
            true
        }
    }

    /// Closes the relation and its indexes; locks stay until the end of the transaction, but for those of indexes that
    /// were taken here.
    ///
    /// # Safety
    /// They are open, and not used any more.
    unsafe fn close(self) {
        // SAFETY: by contract.
        unsafe {
            if self.writer.is_null() {
                self.indexes.iter().for_each(|index| pg_sys::index_close(*index, self.access.lock()));
            } else {
                pg_sys::CatalogCloseIndexes(self.writer);
            }
            pg_sys::relation_close(self.relation, pg_sys::NoLock as i32);
        }
    }

    /// Returns the row with this value in a `uuid` column, whatever the transaction's snapshot.
    pub fn find(&self, column: usize, uuid: &[u8; 16]) -> Option<Row> {
        let mut found = None;
        let latest = &raw mut pg_sys::SnapshotSelfData;
        self.scan(column, EQUAL, pg_sys::F_UUID_EQ, pg_sys::Datum::from(uuid.as_ptr()), latest, |row| {
            found = Some(row);
            false
        });
        found
    }

    /// Visits the rows with this value in a `uuid` column, as the snapshot has them.
    pub fn each_of(&self, column: usize, uuid: &[u8; 16], mut visit: impl FnMut(Row)) {
        // SAFETY: `with` has pushed it.
        let snapshot = unsafe { pg_sys::GetActiveSnapshot() };
        self.scan(column, EQUAL, pg_sys::F_UUID_EQ, pg_sys::Datum::from(uuid.as_ptr()), snapshot, |row| {
            visit(row);
            true
        });
    }

    /// Visits the rows whose `timestamptz` in a column is less than `limit`, as the transaction's snapshot has them,
    /// until `visit` returns false.
    pub fn each_before(&self, column: usize, limit: Timestamp, mut visit: impl FnMut(&Row) -> bool) {
        // SAFETY: `with` has pushed it.
        let snapshot = unsafe { pg_sys::GetActiveSnapshot() };
        self.scan(column, LESS, F_TIMESTAMPTZ_LT, pg_sys::Datum::from(limit.micros()), snapshot, |row| visit(&row));
    }

    /// Visits the rows of which `column operator value` is true, through an index on the column if there is one.
    fn scan(
        &self,
        column: usize,
        strategy: u16,
        operator: u32,
        value: pg_sys::Datum,
        snapshot: pg_sys::Snapshot,
        mut visit: impl FnMut(Row) -> bool,
    ) {
        let index = self.index_on(column);
        let oid = index.unwrap_or(pg_sys::Oid::INVALID);
        // SAFETY: the operator takes the type of the column; the scan is ended before the relation is closed. A row is
        // copied before the next is read.
        unsafe {
            let mut key = std::mem::zeroed::<pg_sys::ScanKeyData>();
            pg_sys::ScanKeyInit(&raw mut key, column as i16, strategy, operator.into(), value);
            let scan = pg_sys::systable_beginscan(self.relation, oid, index.is_some(), snapshot, 1, &raw mut key);
            loop {
                crate::ffi::interrupt::check();
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() || !visit(Row::copy_of(tuple, (*self.relation).rd_att)) {
                    break;
                }
            }
            pg_sys::systable_endscan(scan);
        }
    }

    /// Returns a B-tree that begins with a column and has all rows.
    fn index_on(&self, column: usize) -> Option<pg_sys::Oid> {
        // SAFETY: the indexes are open; a key has one column at least.
        let is_fit = |index: &&pg_sys::Relation| unsafe {
            let form = (***index).rd_index;
            (*form).indisvalid
                && (*(***index).rd_rel).relam == pg_sys::BTREE_AM_OID
                && *(*form).indkey.values.as_ptr() as usize == column
        };
        // SAFETY: as above.
        self.indexes.iter().find(is_fit).map(|index| unsafe { (**index).rd_id })
    }

    /// Inserts a row: a value for each column.
    pub fn insert(&self, cells: &[SqlValue]) {
        let entered = self.memory.enter();
        let (values, nulls): (Vec<_>, Vec<_>) =
            cells.iter().enumerate().map(|(index, cell)| self.datum(index, cell)).unzip();
        let (mut values, mut nulls) = (values, nulls);
        // SAFETY: a value of the right type for each column.
        unsafe {
            assert!(values.len() == (*(*self.relation).rd_att).natts as usize);
            let tuple = pg_sys::heap_form_tuple((*self.relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::CatalogTupleInsertWithInfo(self.relation, tuple, self.writer);
        }
        drop(entered);
        self.be_seen();
    }

    /// Changes columns of a row.
    pub fn update(&self, row: &Row, changes: impl IntoIterator<Item = (usize, SqlValue)>) {
        let entered = self.memory.enter();
        let mut values = vec![pg_sys::Datum::from(0_usize); row.values.len()];
        let mut nulls = vec![false; row.values.len()];
        let mut is_changed = vec![false; row.values.len()];
        for (column, cell) in changes {
            (values[column - 1], nulls[column - 1]) = self.datum(column - 1, &cell);
            is_changed[column - 1] = true;
        }
        // SAFETY: values of the right types for the columns that are changed.
        unsafe {
            let tuple = pg_sys::heap_modify_tuple(
                row.tuple,
                (*self.relation).rd_att,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
                is_changed.as_mut_ptr(),
            );
            let ctid = &raw mut (*row.tuple).t_self;
            pg_sys::CatalogTupleUpdateWithInfo(self.relation, ctid, tuple, self.writer);
        }
        drop(entered);
        self.be_seen();
    }

    /// Deletes a row. Returns `false` if another transaction has changed or deleted it since, or is about to and
    /// `waits` is false.
    pub fn delete(&self, row: &Row, waits: bool) -> bool {
        // SAFETY: the relation is open and locked; the row was read from it.
        unsafe {
            let mut failure = std::mem::zeroed::<pg_sys::TM_FailureData>();
            let outcome = pg_sys::heap_delete(
                self.relation,
                &raw mut (*row.tuple).t_self,
                pg_sys::GetCurrentCommandId(true),
                std::ptr::null_mut(),
                waits,
                &raw mut failure,
                false,
            );
            outcome == pg_sys::TM_Result::TM_Ok
        }
    }

    /// Makes what was written visible to the next look.
    fn be_seen(&self) {
        self.memory.reset();
        crate::ffi::transaction::command_counter_increment();
    }

    /// Returns the value of a column, and whether it is null. In the current memory context.
    fn datum(&self, index: usize, cell: &SqlValue) -> (pg_sys::Datum, bool) {
        // SAFETY: there is such a column; the input function of a type takes a C string.
        unsafe {
            let wanted = tuple_desc_attr((*self.relation).rd_att, index).atttypid;
            let datum = match cell {
                cell if cell.type_oid().is_none_or(|own| own == wanted) => cell.to_datum(),
                SqlValue::BigInt(number) if wanted == pg_sys::OIDOID => pg_sys::Datum::from(*number as u32),
                SqlValue::Text(text) => {
                    let (mut function, mut parameter) = (pg_sys::Oid::INVALID, pg_sys::Oid::INVALID);
                    pg_sys::getTypeInputInfo(wanted, &raw mut function, &raw mut parameter);
                    let text = c_text(text);
                    pg_sys::OidInputFunctionCall(function, text.as_ptr().cast_mut(), parameter, -1)
                }
                _ => unreachable!("a value of another type than its column"),
            };
            (datum, *cell == SqlValue::Null)
        }
    }
}

/// A copy of a row, in the memory context in which it was read.
pub struct Row {
    tuple: pg_sys::HeapTuple,
    values: Vec<Option<pg_sys::Datum>>,
}

impl Row {
    /// # Safety
    /// The row has these columns.
    unsafe fn copy_of(tuple: pg_sys::HeapTuple, columns: pg_sys::TupleDesc) -> Self {
        // SAFETY: by contract; there is room for each column.
        unsafe {
            let tuple = pg_sys::heap_copytuple(tuple);
            let count = (*columns).natts as usize;
            let (mut values, mut nulls) = (vec![pg_sys::Datum::from(0_usize); count], vec![false; count]);
            pg_sys::heap_deform_tuple(tuple, columns, values.as_mut_ptr(), nulls.as_mut_ptr());
            let values = values.into_iter().zip(nulls).map(|(value, is_null)| (!is_null).then_some(value)).collect();
            Row { tuple, values }
        }
    }

    /// Returns whether another transaction, which has not ended, has changed or deleted the row: to change it waits for
    /// that one (heapam.c, `heap_update`).
    pub fn is_taken(&self) -> bool {
        // SAFETY: the header of a copy; who is in progress is asked of shared memory.
        unsafe {
            let header = (*self.tuple).t_data;
            let mask = u32::from((*header).t_infomask);
            let other = (*header).t_choice.t_heap.t_xmax;
            // Nobody locks rows of a materialized view, so none has several.
            mask & (pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_IS_MULTI) == 0
                && !pg_sys::TransactionIdIsCurrentTransactionId(other)
                && pg_sys::TransactionIdIsInProgress(other)
        }
    }

    fn value(&self, column: usize) -> Option<pg_sys::Datum> {
        self.values.get(column - 1).copied().flatten()
    }

    /// Returns the value of a `text` column.
    pub fn text(&self, column: usize) -> Option<Vec<u8>> {
        // SAFETY: the callers know their columns, whose types `with` has checked.
        self.value(column).map(|datum| unsafe { text_bytes(datum) })
    }

    /// Returns the value of an `int4` column.
    pub fn int(&self, column: usize) -> Option<i32> {
        self.value(column).map(|datum| datum.value() as i32)
    }

    /// Returns the value of an `int8` or a `timestamptz` column.
    pub fn big_int(&self, column: usize) -> Option<i64> {
        self.value(column).map(|datum| datum.value() as i64)
    }

    /// Returns the value of a `timestamptz` column.
    pub fn timestamp(&self, column: usize) -> Option<Timestamp> {
        self.big_int(column).map(Timestamp::of_micros)
    }

    /// Returns the value of a `bool` column.
    pub fn bool(&self, column: usize) -> Option<bool> {
        self.value(column).map(|datum| datum.value() as u8 != 0)
    }

    /// Returns the value of a `uuid` column.
    pub fn uuid(&self, column: usize) -> Option<[u8; 16]> {
        // SAFETY: a pointer to 16 bytes (uuid.h) within the copy of the row.
        self.value(column).map(|datum| unsafe { datum.cast_mut_ptr::<[u8; 16]>().read() })
    }

    /// Returns the value of a `jsonb` column, as text.
    pub fn json(&self, column: usize) -> Option<Vec<u8>> {
        self.value(column).map(|datum| Output::of(pg_sys::JSONBOID).to_bytes(datum))
    }

    /// Returns the value of an `oid` column.
    pub fn oid(&self, column: usize) -> Option<u32> {
        self.value(column).map(|datum| datum.value() as u32)
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        // A server call that raises while a panic unwinds would abort the process.
        if !std::thread::panicking() {
            // SAFETY: a copy of our own, whose memory context is still there.
            unsafe { pg_sys::heap_freetuple(self.tuple) };
        }
    }
}

/// Returns the next value of a sequence that this transaction has locked, whatever rights the role has on it.
pub fn next_value(sequence: u32) -> i64 {
    // SAFETY: the oid of a sequence, inside a transaction that may write.
    unsafe { sys::nextval_internal(sequence.into(), false) }
}

/// Returns whether there is a relation with this oid.
pub fn is_there(relation: u32) -> bool {
    with_relation(relation, |_| ()).is_some()
}

/// Returns whether queries can read a materialized view. One that is not there counts as such.
pub fn is_populated(relation: u32) -> bool {
    // SAFETY: the relation is open.
    with_relation(relation, |relation| unsafe { (*(*relation).rd_rel).relispopulated }).unwrap_or(true)
}

/// Returns whether a relation has no rows, dead or alive. It is locked; one that is not there has none.
pub fn is_empty(relation: u32) -> bool {
    let main = pg_sys::ForkNumber::MAIN_FORKNUM;
    // SAFETY: the relation is open, and has a file.
    let blocks = |relation| unsafe { pg_sys::RelationGetNumberOfBlocksInFork(relation, main) };
    with_relation(relation, blocks).is_none_or(|blocks| blocks == 0)
}

fn with_relation<T>(relation: u32, look: impl FnOnce(pg_sys::Relation) -> T) -> Option<T> {
    // SAFETY: inside a transaction; the relation is closed again, after an error by the abort.
    unsafe {
        let relation = pg_sys::RelationIdGetRelation(relation.into());
        if relation.is_null() {
            return None;
        }
        let value = look(relation);
        pg_sys::RelationClose(relation);
        Some(value)
    }
}
