//! Rows of jobs that were accepted and have not ended, written for the first time.

use super::{hold, table};
use crate::ffi::typed_rows::Cell;
use crate::ffi::{area, session, spi, transaction};
use crate::job::registry::{self, JobView, Place, Recorded};
use crate::job::spool::Spooled;

/// How many rows go into the log with one statement, and about how many bytes of text.
const PORTION: (usize, usize) = (10_000, 16 << 20);

/// What the rows of a batch have in common.
struct Batch<'a> {
    epoch: i64,
    uuid: [u8; 16],
    owner: u32,
    login: u32,
    owner_name: &'a [u8],
    client: &'a [u8],
    name: Option<&'a [u8]>,
    queued_at: i64,
}

/// What they have not.
struct Job {
    uuid: [u8; 16],
    name: Option<Vec<u8>>,
    query: Vec<u8>,
    /// How it is run: a JSON object.
    options: Option<Vec<u8>>,
    attempts: u32,
    is_begun: bool,
}

/// Writes the rows of a batch: of its jobs that have no final row. None of them has been launched again: that is possible
/// only when they are written. Inside [`super::in_own_transaction`].
pub fn record(place: Place, uuid: &[u8; 16]) -> Recorded {
    let log = hold(true);
    let mut jobs = area::read(|memory| registry::jobs_of(memory, place, uuid));
    // Of a batch that is recorded again, for the log was dropped and made again.
    jobs.retain(|job| !job.now.is_logged);
    if let Some(first) = jobs.first() {
        let JobView { batch, owner_name, client, batch_name, queued_at, .. } = first.clone();
        let batch = Batch {
            epoch: area::epoch(),
            uuid: batch.uuid,
            owner: batch.owner,
            login: batch.login,
            owner_name: &owner_name,
            client: &client,
            name: batch_name.as_deref(),
            queued_at,
        };
        let jobs = jobs.into_iter().map(|job| Job {
            uuid: job.uuid,
            name: job.name,
            query: job.query,
            options: job.manner.to_options(),
            attempts: job.now.attempts,
            is_begun: job.is_begun,
        });
        insert(&batch, jobs, "");
    }
    Recorded { log, by: transaction::current_id() }
}

/// Writes the rows of a batch that a server accepted that has died, unless they are there: those of this launch or of one
/// after it.
pub(super) fn recover(batch: &Spooled) {
    let head = Batch {
        epoch: batch.epoch,
        uuid: batch.uuid,
        owner: batch.owner,
        login: batch.login,
        owner_name: &batch.owner_name,
        client: &batch.client,
        name: batch.name.as_deref(),
        queued_at: batch.queued_at,
    };
    let jobs = batch.jobs.iter().map(|job| Job {
        uuid: job.uuid,
        name: job.name.clone(),
        query: job.query.clone(),
        options: job.options.clone(),
        attempts: job.attempts,
        is_begun: false,
    });
    insert(&head, jobs, " WHERE l.queued_at OPERATOR(pg_catalog.<) excluded.queued_at");
}

/// A job that was launched before has a row, which is that of this launch from now on; `which`: of some only. All are of
/// this database.
fn insert(batch: &Batch, jobs: impl Iterator<Item = Job>, which: &str) {
    let sql = [
        b"INSERT INTO ".as_slice(),
        &table(),
        b" AS l (status, epoch, database, uuid_parent, owner, login, user_name, ip_client, batch_name, queued_at, uuid_child, name, \
          query, options, attempts, is_started) \
          SELECT 'queued', $1, $15::pg_catalog.oid, $2, $3::pg_catalog.oid, $4::pg_catalog.oid, $5::pg_catalog.name, $6::pg_catalog.inet, $7, $8, \
          j.uuid::pg_catalog.uuid, j.name, j.query, j.options::pg_catalog.jsonb, j.attempts::pg_catalog.int4, \
          j.is_started::pg_catalog.bool \
          FROM ROWS FROM (pg_catalog.unnest($9), pg_catalog.unnest($10), pg_catalog.unnest($11), \
          pg_catalog.unnest($12), pg_catalog.unnest($13), pg_catalog.unnest($14)) \
          AS j (uuid, name, query, options, attempts, is_started) \
          ON CONFLICT (uuid_child) DO UPDATE SET status = 'queued', epoch = excluded.epoch, database = excluded.database, \
          is_started = excluded.is_started, queued_at = excluded.queued_at, attempts = excluded.attempts, start_time_exec = NULL, \
          end_time_exec = NULL, result = NULL, row_count = NULL, result_truncated = NULL, command_tag = NULL, sqlstate = NULL, message = NULL, \
          detail = NULL, hint = NULL, context = NULL",
        which.as_bytes(),
    ]
    .concat();
    let database = Cell::BigInt(session::database().into());
    let mut jobs = jobs.peekable();
    while jobs.peek().is_some() {
        let (rows, bytes) = PORTION;
        let mut left = bytes;
        let mut columns: [Vec<Option<Vec<u8>>>; 6] = Default::default();
        while let Some(job) = jobs.next_if(|_| columns[0].len() < rows && left > 0) {
            left = left.saturating_sub(job.query.len());
            let uuid = uuid::Uuid::from_bytes(job.uuid).hyphenated().to_string().into_bytes();
            let attempts = job.attempts.to_string().into_bytes();
            let is_begun = if job.is_begun { b"t" } else { b"f" };
            let row = [Some(uuid), job.name, Some(job.query), job.options, Some(attempts), Some(is_begun.into())];
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
        let head = [
            Cell::BigInt(batch.epoch),
            Cell::Uuid(batch.uuid),
            Cell::BigInt(batch.owner.into()),
            Cell::BigInt(batch.login.into()),
            batch.owner_name.into(),
            batch.client.into(),
            batch.name.into(),
            Cell::Timestamp(batch.queued_at),
        ];
        let parameters: Vec<Cell> =
            head.into_iter().chain(columns.map(Cell::Texts)).chain([database.clone()]).collect();
        spi::query(&sql, &parameters, false);
    }
}
