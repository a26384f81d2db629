//! What the log says of jobs, as things are now.

use super::{find, function, number, parse_uuid, table};
use crate::ffi::typed_rows::Cell;
use crate::ffi::{area, lock, role, spi};

/// A job as the log has it.
pub struct Known {
    pub uuid: [u8; 16],
    pub state: Vec<u8>,
    pub owner: u32,
    pub pid: Option<i32>,
}

/// Can the log be read now? Somebody may have it for himself. If so, it can until the end of the transaction.
pub fn is_readable() -> bool {
    find() && lock::try_to_read(&table())
}

/// A job, or the jobs of a batch, as the log has them now. Lost ones are told from those that wait. None if the log
/// cannot be read.
pub fn states(uuid: &[u8; 16]) -> Vec<Known> {
    let rows = role::as_cluster_owner(|| {
        if !is_readable() {
            return Vec::new();
        }
        let epoch = area::epoch();
        let sql = [
            // A standby says queued of what nobody runs there: there is nothing to wait for.
            b"SELECT j.uuid_child, CASE WHEN NOT j.is_left THEN j.status ELSE (SELECT CASE s.status WHEN 'queued' THEN 'lost' \
              ELSE s.status END FROM "
                .as_slice(),
            &function("pg_background_state"),
            b"(j.uuid_child, j.epoch, true) AS s) END, j.owner, j.pid FROM (SELECT uuid_child, status, owner, pid, epoch, ",
            format!(
                "status OPERATOR(pg_catalog.=) 'queued'::pg_catalog.text \
                 AND epoch OPERATOR(pg_catalog.<>) ({epoch})::pg_catalog.int8 AS is_left FROM "
            )
            .as_bytes(),
            &table(),
            b" WHERE uuid_parent OPERATOR(pg_catalog.=) $1 OR uuid_child OPERATOR(pg_catalog.=) $1 \
              UNION ALL SELECT uuid_child, 'queued', owner::pg_catalog.oid, NULL, epoch, true FROM ",
            &function("pg_background_spooled"),
            b"() AS v WHERE (uuid_parent OPERATOR(pg_catalog.=) $1 OR uuid_child OPERATOR(pg_catalog.=) $1) \
              AND NOT EXISTS (SELECT FROM ",
            &table(),
            b" AS l WHERE l.uuid_child OPERATOR(pg_catalog.=) v.uuid_child)) AS j ORDER BY 1",
        ]
        .concat();
        spi::query(&sql, &[Cell::Uuid(*uuid)], true)
    });
    rows.into_iter()
        .filter_map(|row| {
            let mut row = row.into_iter();
            Some(Known {
                uuid: parse_uuid(row.next()?)?,
                state: row.next()??,
                owner: number(row.next()?),
                pid: row.next()?.map(|pid| number(Some(pid))),
            })
        })
        .collect()
}

/// A job that is to run once more.
pub struct Repeat {
    pub uuid: [u8; 16],
    pub query: Vec<u8>,
    pub name: Option<Vec<u8>>,
    pub attempts: u32,
    pub batch_name: Option<Vec<u8>>,
    /// How it was run: a JSON object.
    pub options: Option<Vec<u8>>,
}

/// Those of these jobs that did not succeed, in the order of their uuids.
pub fn to_repeat(jobs: &[[u8; 16]]) -> Vec<Repeat> {
    let rows = role::as_cluster_owner(|| {
        let list: Vec<String> = jobs.iter().map(|job| uuid::Uuid::from_bytes(*job).hyphenated().to_string()).collect();
        let epoch = area::epoch();
        let is_repeatable = format!(
            " AND (status OPERATOR(pg_catalog.=) ANY (ARRAY['failed', 'stopped']::pg_catalog.text[]) \
              OR status OPERATOR(pg_catalog.=) 'queued'::pg_catalog.text \
              AND epoch OPERATOR(pg_catalog.<>) ({epoch})::pg_catalog.int8)"
        );
        let sql = [
            b"SELECT uuid_child, query, name, attempts, batch_name, options FROM ".as_slice(),
            &table(),
            b" WHERE uuid_child OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.uuid[])",
            is_repeatable.as_bytes(),
            b" UNION ALL SELECT uuid_child, query, name, 0, batch_name, options::pg_catalog.jsonb FROM ",
            &function("pg_background_spooled"),
            b"() AS s WHERE uuid_child OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.uuid[]) \
              AND NOT EXISTS (SELECT FROM ",
            &table(),
            b" AS l WHERE l.uuid_child OPERATOR(pg_catalog.=) s.uuid_child) ORDER BY 1",
        ]
        .concat();
        spi::query(&sql, &[Cell::Text(format!("{{{}}}", list.join(",")).into_bytes())], true)
    });
    rows.into_iter()
        .filter_map(|row| {
            let mut row = row.into_iter();
            Some(Repeat {
                uuid: parse_uuid(row.next()?)?,
                query: row.next()??,
                name: row.next()?,
                attempts: number(row.next()?),
                batch_name: row.next()?,
                options: row.next()?,
            })
        })
        .collect()
}

/// The rows of `pg_background_monitor`, and their parameters.
pub fn jobs_query(uuid: Option<&[u8; 16]>) -> (Vec<u8>, Vec<Cell>) {
    let columns = b"SELECT pid, status, uuid_parent, uuid_child, name, query, result, message, queue_position, \
                    start_time_exec, end_time_exec, elapsed FROM "
        .as_slice();
    let view = function("pg_background_jobs");
    let order = b" ORDER BY queued_at, uuid_child".as_slice();
    match uuid {
        None => ([columns, &view, order].concat(), Vec::new()),
        Some(uuid) => {
            let condition =
                b" WHERE uuid_parent OPERATOR(pg_catalog.=) $1 OR uuid_child OPERATOR(pg_catalog.=) $1".as_slice();
            ([columns, &view, condition, order].concat(), vec![Cell::Uuid(*uuid)])
        }
    }
}
