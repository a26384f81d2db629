//! Outcome files: what the log could not be told in time, beside the files of [`crate::log::spool`].
//!
//! The registry knows it for as long as the server lives. After a crash such a file tells that a job was begun, or how
//! it ended: also of one whose work is committed without its row.

use crate::ffi::{area, file, session, spi, transaction};
use crate::ids::{DatabaseId, Epoch, JobId};
use crate::log::attempt_file::{self, Attempt, AttemptFile};
use crate::log::directory::{self, OrphanFiles};
use crate::log::end::End;
use crate::log::file_format::{self, FileContent};
use crate::log::file_name::FileName;
use crate::log::outcome_file_0_1_0;
use crate::queries;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;

/// Content of the file of a job that was begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutcomeFile {
    pub epoch: Epoch,
    pub database: DatabaseId,
    pub attempt: Attempt,
    /// End of the attempt; with a transaction, only if that was committed.
    end: Option<(End, Option<u64>)>,
}

impl FileContent for OutcomeFile {
    const KIND: &'static [u8; 4] = b"outc";
    const SUFFIX: &'static str = ".note2";

    fn is_named(&self, name: &FileName) -> bool {
        (self.epoch, self.database, self.attempt.uuid.bytes()) == (name.epoch, name.database, name.key)
    }
}

impl OutcomeFile {
    /// Returns the content that says that the attempt was begun, and no more.
    pub fn begun(epoch: Epoch, database: DatabaseId, attempt: Attempt) -> Self {
        OutcomeFile { epoch, database, attempt, end: None }
    }

    /// Adds how it ended: if `transaction` was committed, or in any case.
    pub fn with_end(self, end: End, transaction: Option<u64>) -> Self {
        OutcomeFile { end: Some((end, transaction)), ..self }
    }

    /// Writes the file; when this returns it is on disk, and what the job has committed as well.
    pub fn write(&self) -> io::Result<()> {
        transaction::flush_commits();
        let name = FileName::new(self.epoch, self.database, &self.attempt.uuid.bytes(), Self::SUFFIX);
        file::put(&name.path(), &file_format::encode(self))
    }

    /// Returns how the job ended, if that is known. Inside a transaction.
    pub fn end(&self) -> Option<&End> {
        let (end, transaction) = self.end.as_ref()?;
        transaction.is_none_or(was_committed).then_some(end)
    }
}

/// Returns whether a transaction, as [`transaction::log_id`] gave it, was committed, perhaps by a server that has died;
/// `false` if it is so old that nobody knows. Inside a transaction.
fn was_committed(transaction: u64) -> bool {
    spi::select(&queries::transaction_status(transaction)) == [b"committed"]
}

/// Trace of a job: what a server wrote of it that has died since.
#[derive(Debug, Clone)]
pub struct CrashTrace {
    /// The last attempt that is known.
    pub attempt: Attempt,
    pub end: Option<End>,
}

/// Traces by epoch and job.
type CrashTraces = HashMap<(Epoch, JobId), (Attempt, Option<OutcomeFile>)>;

/// Traces of jobs of this database, by servers that have died since; read when they are needed first.
#[derive(Debug, Default)]
pub struct Orphans(Option<CrashTraces>);

impl Orphans {
    /// Returns the trace of a job of the server with this epoch. Inside a transaction.
    pub fn of(&mut self, epoch: Epoch, uuid: &JobId) -> Option<CrashTrace> {
        let traces = self.0.get_or_insert_with(read_traces);
        let (attempt, file) = traces.get(&(epoch, *uuid))?;
        Some(CrashTrace { attempt: *attempt, end: file.as_ref().and_then(OutcomeFile::end).cloned() })
    }
}

fn read_traces() -> CrashTraces {
    let (epoch, database) = (area::epoch(), session::database());
    let mut traces = CrashTraces::new();
    for AttemptFile { epoch, attempt } in attempt_file::orphans(epoch, database).contents() {
        if let Some(attempt) = attempt {
            traces.insert((epoch, attempt.uuid), (attempt, None));
        }
    }
    for file in orphans(epoch, database).contents() {
        let trace = traces.entry((file.epoch, file.attempt.uuid)).or_insert((file.attempt, None));
        if trace.0.attempts < file.attempt.attempts {
            trace.0 = file.attempt;
        }
        trace.1 = Some(file);
    }
    traces
}

/// Removes the file of a job: the log says more, on disk.
pub fn remove(epoch: Epoch, database: DatabaseId, uuid: &JobId) {
    // A file that stays is of no interest once the row is final.
    for suffix in [OutcomeFile::SUFFIX, outcome_file_0_1_0::OutcomeFile::SUFFIX] {
        FileName::new(epoch, database, &uuid.bytes(), suffix).remove();
    }
}

/// Returns the outcome files for this database of servers that have died since.
pub fn orphans(epoch: Epoch, database: DatabaseId) -> OrphanFiles<OutcomeFile> {
    let mut files = directory::read_orphans::<OutcomeFile>(epoch, database);
    let of_0_1_0 = directory::read_orphans::<outcome_file_0_1_0::OutcomeFile>(epoch, database);
    files.readable.extend(of_0_1_0.readable.into_iter().map(|(name, file)| {
        let (epoch, database) = (file.epoch, file.database);
        let (attempt, end) = file.convert();
        (name, OutcomeFile { epoch, database, attempt, end })
    }));
    files.unreadable.extend(of_0_1_0.unreadable);
    files
}
