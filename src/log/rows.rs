//! Rows of the log: their columns, and every way in which they are written.

use crate::error::Error;
use crate::ffi::datum::{types, SqlValue};
use crate::ffi::heap::{Access, Heap, Row, Unfit};
use crate::ffi::report::Log as LogHere;
use crate::ffi::{alloc, area, heap, report, session};
use crate::ids::{AnyId, DatabaseId, Epoch, JobId, RoleId};
use crate::log::accepted::{AcceptedBatch, NewRow};
use crate::log::attempt_file::Attempt;
use crate::log::end::{End, FinalRow};
use crate::protocol::{Outcome, Report};
use crate::registry;
use crate::registry::State;
use crate::time::Timestamp;

/// The columns of the log, numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Column {
    Id = 1,
    Pid,
    Status,
    IpClient,
    UserName,
    UuidParent,
    UuidChild,
    Query,
    Result,
    StartTimeExec,
    EndTimeExec,
    Name,
    BatchName,
    Options,
    QueuedAt,
    Attempts,
    RowCount,
    ResultTruncated,
    CommandTag,
    Sqlstate,
    Message,
    Detail,
    Hint,
    Context,
    Epoch,
    Owner,
    Login,
    Database,
    IsStarted,
}

/// The types of the columns.
const TYPES: [types::Oid; Column::IsStarted as usize] = {
    use types::*;
    [
        INT8,
        INT4,
        TEXT,
        INET,
        NAME,
        UUID,
        UUID,
        TEXT,
        TEXT,
        TIMESTAMPTZ,
        TIMESTAMPTZ,
        TEXT,
        TEXT,
        JSONB,
        TIMESTAMPTZ,
        INT4,
        INT8,
        BOOL,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        INT8,
        OID,
        OID,
        OID,
        BOOL,
    ]
};

/// Returns how a job ended, as cells: status, pid, start_time_exec, end_time_exec, attempts.
pub fn end_cells(end: &End) -> [SqlValue; 5] {
    [
        SqlValue::Text(end.state.name().into()),
        end.pid.into(),
        end.started.into(),
        end.ended.into(),
        SqlValue::Int(end.attempts as i32),
    ]
}

const END_COLUMNS: [Column; 5] =
    [Column::Status, Column::Pid, Column::StartTimeExec, Column::EndTimeExec, Column::Attempts];

/// Returns what came of a job, as cells: result, row_count, result_truncated, command_tag, sqlstate, message, detail,
/// hint, context.
pub fn outcome_cells(outcome: &Outcome) -> [SqlValue; 9] {
    [
        outcome.result.as_deref().into(),
        outcome.row_count.into(),
        SqlValue::Bool(outcome.is_truncated),
        outcome.command_tag.as_deref().into(),
        outcome.sqlstate_text().into(),
        outcome.message.as_deref().into(),
        outcome.detail.as_deref().into(),
        outcome.hint.as_deref().into(),
        outcome.context.as_deref().into(),
    ]
}

const OUTCOME_COLUMNS: [Column; 9] = [
    Column::Result,
    Column::RowCount,
    Column::ResultTruncated,
    Column::CommandTag,
    Column::Sqlstate,
    Column::Message,
    Column::Detail,
    Column::Hint,
    Column::Context,
];

/// Columns and their values.
type Changes = Vec<(usize, SqlValue)>;

fn changes<const N: usize>(columns: [Column; N], cells: [SqlValue; N]) -> impl Iterator<Item = (usize, SqlValue)> {
    columns.map(|column| column as usize).into_iter().zip(cells)
}

/// Returns what a row says of a job that is over, or of an attempt that is.
fn end_changes(end: &End) -> Changes {
    let started = [(Column::IsStarted as usize, SqlValue::Bool(true))];
    changes(END_COLUMNS, end_cells(end))
        .chain(changes(OUTCOME_COLUMNS, outcome_cells(&end.outcome)))
        .chain(started)
        .collect()
}

/// The log, held and open to be written.
pub struct Rows<'a> {
    heap: &'a Heap,
    /// The sequence of the column `id`.
    sequence: u32,
}

/// Opens the log to write its rows. A lock on it is held. Raises [`Error::LogAltered`] (55000) if that could run code
/// of others. Returns `None` if it is gone.
pub fn open<T>(log: u32, sequence: u32, access: Access, body: impl FnOnce(&Rows) -> T) -> Option<T> {
    with(log, access, |heap| body(&Rows { heap, sequence }))
}

fn with<T>(log: u32, access: Access, body: impl FnOnce(&Heap) -> T) -> Option<T> {
    match heap::with(log, &TYPES, access, body) {
        Ok(value) => return Some(value),
        Err(Unfit::Gone | Unfit::Empty) => {}
        Err(Unfit::Altered) => report::emit(&Report::from(Error::LogAltered), LogHere::Here),
    }
    None
}

/// A row as the log has it.
pub struct Entry(Row);

impl Entry {
    pub fn text(&self, column: Column) -> Option<Vec<u8>> {
        self.0.text(column as usize)
    }

    pub fn json(&self, column: Column) -> Option<Vec<u8>> {
        self.0.json(column as usize)
    }

    pub fn job_id(&self) -> JobId {
        JobId::of_bytes(self.0.uuid(Column::UuidChild as usize).unwrap_or_default())
    }

    pub fn int(&self, column: Column) -> Option<i32> {
        self.0.int(column as usize)
    }

    pub fn big_int(&self, column: Column) -> Option<i64> {
        self.0.big_int(column as usize)
    }

    pub fn timestamp(&self, column: Column) -> Option<Timestamp> {
        self.0.timestamp(column as usize)
    }

    pub fn role(&self, column: Column) -> RoleId {
        role_in(&self.0, column).unwrap_or_default()
    }

    pub fn epoch(&self) -> Epoch {
        epoch_in(&self.0).unwrap_or(Epoch::NONE)
    }

    pub fn database(&self) -> DatabaseId {
        database_in(&self.0).unwrap_or_default()
    }

    pub fn bool(&self, column: Column) -> bool {
        self.0.bool(column as usize).unwrap_or(false)
    }
}

fn role_in(row: &Row, column: Column) -> Option<RoleId> {
    row.oid(column as usize).map(RoleId::of_oid)
}

fn epoch_in(row: &Row) -> Option<Epoch> {
    row.big_int(Column::Epoch as usize).map(Epoch::of_number)
}

fn database_in(row: &Row) -> Option<DatabaseId> {
    row.oid(Column::Database as usize).map(DatabaseId::of_oid)
}

/// Returns what `take` makes of the rows of these jobs, or of the jobs of these batches, as they are now. A lock on the
/// log is held. Raises [`Error::LogAltered`] (55000).
pub fn read<T>(log: u32, ids: &[AnyId], take: impl Fn(Entry) -> T) -> Vec<T> {
    let mut found = Vec::new();
    with(log, Access::Read, |heap| {
        for id in ids {
            let column = if id.job().is_none() { Column::UuidParent } else { Column::UuidChild };
            heap.each_of(column as usize, &id.bytes(), |row| {
                alloc::check();
                found.push(take(Entry(row)));
            });
        }
    });
    found
}

impl Rows<'_> {
    fn find(&self, uuid: &JobId) -> Option<Row> {
        self.heap.find(Column::UuidChild as usize, &uuid.bytes())
    }

    /// Returns the row of a job, to be written. Raises [`Error::LogLocked`] (55P03) if another transaction is deleting
    /// it, which may last: the row is written later, and the worker goes on.
    fn find_free(&self, uuid: &JobId) -> Option<Row> {
        let row = self.find(uuid);
        if row.as_ref().is_some_and(Row::is_taken) {
            report::emit(&Report::from(Error::LogLocked), LogHere::Here);
        }
        row
    }

    /// Returns the row of a job that has not ended, as far as the log says.
    fn find_open(&self, uuid: &JobId) -> Option<Row> {
        self.find_free(uuid).filter(is_open)
    }

    /// Writes the row of a job that was accepted; `is_older`: one that the log has already is changed only if it is of
    /// a launch before this one.
    pub fn accept(&self, batch: &AcceptedBatch, new: NewRow, is_older: bool) {
        let Some(row) = self.find_free(&new.job.uuid) else { return self.insert(batch, new, Vec::new()) };
        // Launched again: the row is that of this launch from now on.
        if !is_older || row.timestamp(Column::QueuedAt as usize).is_some_and(|before| before < batch.queued_at) {
            let columns = [Column::Status, Column::Epoch, Column::Database, Column::IsStarted, Column::QueuedAt];
            let now = [
                SqlValue::Text(State::Queued.name().into()),
                batch.epoch.into(),
                session::database().into(),
                SqlValue::Bool(new.is_begun),
                SqlValue::Timestamp(batch.queued_at),
            ];
            let attempts = (Column::Attempts as usize, SqlValue::Int(new.job.attempts as i32));
            let gone = [Column::StartTimeExec, Column::EndTimeExec].into_iter().chain(OUTCOME_COLUMNS);
            let gone = gone.map(|column| (column as usize, SqlValue::Null));
            self.heap.update(&row, changes(columns, now).chain([attempts]).chain(gone));
        }
    }

    fn insert(&self, batch: &AcceptedBatch, new: NewRow, more: Changes) {
        let NewRow { job, is_begun } = new;
        let mut cells = vec![SqlValue::Null; TYPES.len()];
        let mut set = |column: usize, cell: SqlValue| cells[column - 1] = cell;
        let known = [
            (Column::Id, SqlValue::BigInt(heap::next_value(self.sequence))),
            (Column::Status, SqlValue::Text(State::Queued.name().into())),
            (Column::IpClient, batch.client.as_slice().into()),
            (Column::UserName, batch.owner_name.as_slice().into()),
            (Column::UuidParent, SqlValue::Uuid(batch.uuid.bytes())),
            (Column::UuidChild, SqlValue::Uuid(job.uuid.bytes())),
            (Column::Query, SqlValue::Text(job.query)),
            (Column::Name, job.name.into()),
            (Column::BatchName, batch.name.as_deref().into()),
            (Column::Options, job.options.into()),
            (Column::QueuedAt, SqlValue::Timestamp(batch.queued_at)),
            (Column::Attempts, SqlValue::Int(job.attempts as i32)),
            (Column::Epoch, batch.epoch.into()),
            (Column::Owner, batch.owner.into()),
            (Column::Login, batch.login.into()),
            (Column::Database, session::database().into()),
            (Column::IsStarted, SqlValue::Bool(is_begun)),
        ];
        known.into_iter().for_each(|(column, cell)| set(column as usize, cell));
        more.into_iter().for_each(|(column, cell)| set(column, cell));
        self.heap.insert(&cells);
    }

    /// Writes how a job ended, or an attempt of it. A row that is gone is written anew: the registry knows all of it
    /// until the end is in the log.
    pub fn write(&self, row: &FinalRow) {
        match self.find_free(&row.uuid) {
            Some(found) if is_open(&found) => self.heap.update(&found, end_changes(&row.end)),
            Some(_) => {}
            None => {
                if let Some(job) = area::read(|memory| registry::job_of(memory, &row.uuid)) {
                    self.insert(&AcceptedBatch::of_job(&job), NewRow::from(job), end_changes(&row.end));
                }
            }
        }
    }

    /// Writes that a job is about to start. Returns `false` if it has no row.
    pub fn mark_started(&self, uuid: &JobId) -> bool {
        let row = self.find_open(uuid);
        if let Some(row) = &row {
            self.heap.update(row, [(Column::IsStarted as usize, SqlValue::Bool(true))]);
        }
        row.is_some()
    }

    /// Writes which attempt of a job was running when its server, that of `epoch`, died.
    pub fn import_attempt(&self, epoch: Epoch, attempt: &Attempt) {
        let Some(row) = self.find_orphan(epoch, &attempt.uuid) else { return };
        let Some(before) = row.int(Column::Attempts as usize) else { return };
        let attempts = attempt.attempts.map_or(before, |attempts| attempts as i32);
        if before <= attempts {
            let columns = [Column::IsStarted, Column::Pid, Column::StartTimeExec, Column::Attempts];
            let cells = [SqlValue::Bool(true), attempt.pid.into(), attempt.started.into(), SqlValue::Int(attempts)];
            self.heap.update(&row, changes(columns, cells));
        }
    }

    /// Writes that a job had begun when its server, that of `epoch`, died, and no more: what that wrote cannot be read.
    pub fn import_begun(&self, epoch: Epoch, uuid: &JobId) {
        if let Some(row) =
            self.find_orphan(epoch, uuid).filter(|row| row.bool(Column::IsStarted as usize) != Some(true))
        {
            self.heap.update(&row, [(Column::IsStarted as usize, SqlValue::Bool(true))]);
        }
    }

    /// Writes how a job ended of a server of `epoch` that has died since, unless it was launched again.
    pub fn import_end(&self, epoch: Epoch, uuid: &JobId, end: &End) {
        if let Some(row) = self.find_orphan(epoch, uuid) {
            self.heap.update(&row, end_changes(end));
        }
    }

    fn find_orphan(&self, epoch: Epoch, uuid: &JobId) -> Option<Row> {
        self.find_open(uuid).filter(|row| epoch_in(row) == Some(epoch))
    }

    /// Returns whether another transaction is deleting the row of a job.
    pub fn is_taken(&self, uuid: &JobId) -> bool {
        self.find(uuid).as_ref().is_some_and(Row::is_taken)
    }

    /// Deletes rows of jobs that ended before `limit`, of one owner or of all, so many or all, but for those of which
    /// `stays` is true; returns how many. `waits`: for transactions that are deleting one of them.
    pub fn prune(
        &self,
        limit: Timestamp,
        owner: Option<RoleId>,
        count: Option<i64>,
        waits: bool,
        stays: impl Fn(&JobId) -> bool,
    ) -> i64 {
        let mut deleted = 0;
        // What has ended before was queued before: there is an index on that, and no end of a job changes it.
        self.heap.each_before(Column::QueuedAt as usize, limit, |row| {
            let is_old = match is_open(row) {
                true => is_over(row),
                false => row.timestamp(Column::EndTimeExec as usize).is_some_and(|ended| ended < limit),
            };
            let is_meant = is_old && owner.is_none_or(|owner| role_in(row, Column::Owner) == Some(owner));
            let stays = || row.uuid(Column::UuidChild as usize).is_none_or(|uuid| stays(&JobId::of_bytes(uuid)));
            if is_meant && !stays() && self.heap.delete(row, waits) {
                deleted += 1;
            }
            count.is_none_or(|count| deleted < count)
        });
        deleted
    }

    /// Deletes the row of a job that has ended, if `may` lets its owner's be deleted. Returns `false` if it stays,
    /// or is not there.
    pub fn delete(&self, uuid: &JobId, may: impl FnOnce(RoleId) -> bool) -> bool {
        let row = self.find(uuid).filter(is_over);
        let row = row.filter(|row| role_in(row, Column::Owner).is_some_and(may));
        row.is_some_and(|row| self.heap.delete(&row, true))
    }
}

/// Returns whether the row says that the job has not ended.
fn is_open(row: &Row) -> bool {
    row.text(Column::Status as usize).as_deref() == Some(State::Queued.name().as_bytes())
}

/// Returns whether the job has ended, or the server that had it, or it is one of the database that this one was copied
/// from.
fn is_over(row: &Row) -> bool {
    !is_open(row) || epoch_in(row) != Some(area::epoch()) || database_in(row) != Some(session::database())
}
