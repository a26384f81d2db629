//! Batches that are accepted and not in the log's table yet, as files in the data directory.
//!
//! The caller's transaction cannot write a row that survives its rollback, and a worker may not be free for hours; a
//! file can be written by the caller, at once. A worker turns it into rows later. After a crash it is still there, and
//! tells that its jobs were accepted and never started.

use crate::ffi::{area, file};
use crate::log::outcome_file::OUTCOME_SUFFIX;
use crate::protocol::{decode, to_bytes};
use crate::registry;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// In the data directory, where every process of the server works.
const DIRECTORY: &str = "pg_background_mgr";

/// A job in a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpooledJob {
    pub uuid: [u8; 16],
    pub name: Option<Vec<u8>>,
    pub query: Vec<u8>,
    /// Manner in which it is run: a JSON object.
    pub options: Option<Vec<u8>>,
    /// Attempts of launches before this one.
    pub attempts: u32,
}

/// A batch in a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spooled {
    pub epoch: i64,
    pub database: u32,
    pub uuid: [u8; 16],
    /// The role whose rights its jobs have.
    pub owner: u32,
    /// The role that their worker logs in as.
    pub login: u32,
    pub owner_name: Vec<u8>,
    pub client: Vec<u8>,
    pub name: Option<Vec<u8>>,
    pub queued_at: i64,
    pub jobs: Vec<SpooledJob>,
}

impl Spooled {
    /// The uuid of its first job, which names its file: jobs of a batch that are launched again have the uuid of the
    /// batch.
    pub fn first(&self) -> [u8; 16] {
        self.jobs.first().map_or(self.uuid, |job| job.uuid)
    }
}

/// The name tells what must be known before it is read: epoch, database, job.
pub(super) fn path(epoch: i64, database: u32, job: &[u8; 16], kind: &str) -> PathBuf {
    let uuid: String = job.iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new(DIRECTORY).join(format!("{epoch:016x}-{database}-{uuid}{kind}"))
}

/// End of the name of a batch.
const BATCH_SUFFIX: &str = "";

/// Writes a batch down; when this returns it is on disk.
pub fn write(batch: &Spooled) -> io::Result<()> {
    let path = path(batch.epoch, batch.database, &batch.first(), BATCH_SUFFIX);
    file::put(&path, &to_bytes(batch)).inspect_err(|_| {
        let _ = fs::remove_file(&path);
    })
}

/// Forgets a batch: it is in the table now, or was never launched.
pub fn remove(epoch: i64, database: u32, first: &[u8; 16]) {
    // A file that stays is seen to be in the table already.
    let _ = fs::remove_file(path(epoch, database, first, BATCH_SUFFIX));
}

/// Batches of this database that a server accepted that has died since, oldest first.
pub fn orphaned(epoch: i64, database: u32) -> Vec<Spooled> {
    let mut left: Vec<Spooled> = read_orphaned(epoch, database, BATCH_SUFFIX);
    left.sort_by_key(|batch| batch.queued_at);
    left
}

/// The same, with each job only in the last of its launches.
pub fn orphaned_first(epoch: i64, database: u32) -> Vec<Spooled> {
    let mut left = orphaned(epoch, database);
    let mut seen = HashSet::new();
    left.iter_mut().rev().for_each(|batch| batch.jobs.retain(|job| seen.insert(job.uuid)));
    left
}

/// The files of a kind for this database, of servers that have died since.
pub(super) fn read_orphaned<T: DeserializeOwned>(epoch: i64, database: u32, kind: &str) -> Vec<T> {
    orphaned_paths(epoch, database, kind).iter().filter_map(|path| decode(&fs::read(path).ok()?).ok()).collect()
}

/// Removes them.
pub(super) fn remove_orphaned(epoch: i64, database: u32, kind: &str) {
    for path in orphaned_paths(epoch, database, kind) {
        let _ = fs::remove_file(path);
    }
}

fn orphaned_paths(epoch: i64, database: u32, kind: &str) -> Vec<PathBuf> {
    paths(|of| of != epoch, database, kind).into_iter().map(|(_, path)| path).collect()
}

/// The files of a kind for a database, by servers that are meant: the jobs in their names, and where they are.
fn paths(is_meant: impl Fn(i64) -> bool, database: u32, kind: &str) -> Vec<([u8; 16], PathBuf)> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return Vec::new() };
    let database = database.to_string();
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let mut parts = name.split('-');
            let epoch = u64::from_str_radix(parts.next()?, 16).ok()?;
            let is_here = parts.next()? == database;
            let (uuid, ending) = parts.next()?.split_at_checked(32)?;
            let is_wanted = is_meant(epoch.cast_signed()) && is_here && ending == kind;
            let job = u128::from_str_radix(uuid, 16).ok()?.to_be_bytes();
            is_wanted.then(|| (job, entry.path()))
        })
        .collect()
}

/// Removes files of databases that are gone, and unfinished ones of servers that are gone.
pub fn remove_dropped_databases(epoch: i64, exists: impl Fn(u32) -> bool) {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return };
    let own = format!("{epoch:016x}");
    for entry in entries.filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let mut parts = name.split('-');
        let is_own = parts.next() == Some(&own);
        let database = parts.next().and_then(|part| part.parse().ok());
        if !is_own && (name.ends_with(file::UNFINISHED) || database.is_some_and(|database| !exists(database))) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes the files of this server for jobs of a database that it has nothing to write of any more: the log that was
/// to be told is gone. First those of batches, for without its notes a batch reads as one that never began.
pub fn remove_unknown(epoch: i64, database: u32) {
    for kind in [BATCH_SUFFIX, OUTCOME_SUFFIX] {
        for (uuid, path) in paths(|of| of == epoch, database, kind) {
            let batch = registry::job_uuid(&uuid, 0);
            // Under the lock, for it could be launched again in that moment.
            area::read(|memory| {
                if !registry::is_pending(memory, &batch) {
                    let _ = fs::remove_file(path);
                }
            });
        }
    }
}
