//! Notes of what the log could not be told in time, as files beside those of [`crate::log::spool`].
//!
//! The registry knows it for as long as the server lives. After a crash such a file tells that a job was begun, or how
//! it ended: also of one whose work is committed without its row.

use crate::ffi::{area, file, session, spi, transaction};
use crate::log::attempt_file::{self, Attempt, AttemptFile};
use crate::log::directory::{self, FileName, OrphanFiles};
use crate::log::file_format::{self, FileContent};
use crate::protocol::Outcome;
use crate::queries;
use crate::registry::State;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;

/// Note of a job that was begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutcomeFile {
    pub epoch: i64,
    pub database: u32,
    pub attempt: Attempt,
    /// Its end; with a transaction, if that was committed.
    end: Option<(End, Option<u64>)>,
}

/// End of a job, or of an attempt of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct End {
    pub state: State,
    pub pid: Option<i32>,
    pub started: Option<i64>,
    pub ended: Option<i64>,
    pub attempts: u32,
    pub outcome: Outcome,
}

impl FileContent for OutcomeFile {
    const KIND: &'static [u8; 4] = b"outc";
    const SUFFIX: &'static str = ".note2";

    fn is_named(&self, name: &FileName) -> bool {
        (self.epoch, self.database, self.attempt.uuid) == (name.epoch, name.database, name.key)
    }
}

impl OutcomeFile {
    /// Makes a note that the attempt was begun, and of no more.
    pub fn begun(epoch: i64, database: u32, attempt: Attempt) -> Self {
        OutcomeFile { epoch, database, attempt, end: None }
    }

    /// Adds how it ended: if `transaction` was committed, or in any case.
    pub fn with_end(self, end: End, transaction: Option<u64>) -> Self {
        OutcomeFile { end: Some((end, transaction)), ..self }
    }

    /// Writes it down; when this returns it is on disk, and what the job has committed as well.
    pub fn write(&self) -> io::Result<()> {
        transaction::flush_commits();
        let name = FileName::new(self.epoch, self.database, &self.attempt.uuid, Self::SUFFIX);
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

/// Trace of a job that a server began which has died.
#[derive(Debug, Clone)]
pub struct CrashTrace {
    /// The last attempt that is known.
    pub attempt: Attempt,
    pub end: Option<End>,
}

/// By epoch and job.
type CrashTraces = HashMap<(i64, [u8; 16]), (Attempt, Option<OutcomeFile>)>;

/// Traces that servers which have died left of jobs of this database; read when they are asked for first.
#[derive(Debug, Default)]
pub struct Orphans(Option<CrashTraces>);

impl Orphans {
    /// Returns what a server of this epoch left of a job. Inside a transaction.
    pub fn of(&mut self, epoch: i64, uuid: &[u8; 16]) -> Option<CrashTrace> {
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

/// Forgets it: the log says more, on disk.
pub fn remove(epoch: i64, database: u32, uuid: &[u8; 16]) {
    // One that stays is of no interest once the row is final.
    for suffix in [OutcomeFile::SUFFIX, of_0_1_0::OutcomeFile::SUFFIX] {
        FileName::new(epoch, database, uuid, suffix).remove();
    }
}

/// Returns the outcome files for this database of servers that have died since.
pub fn orphans(epoch: i64, database: u32) -> OrphanFiles<OutcomeFile> {
    let mut files = directory::read_orphans::<OutcomeFile>(epoch, database);
    let of_0_1_0 = directory::read_orphans::<of_0_1_0::OutcomeFile>(epoch, database);
    files.readable.extend(of_0_1_0.readable.into_iter().map(|(name, file)| (name, OutcomeFile::from(file))));
    files.unreadable.extend(of_0_1_0.unreadable);
    files
}

/// Outcome files as version 0.1.0 wrote them, for a server that has gone down with it and comes up with a newer one.
mod of_0_1_0 {
    use super::{Attempt, State};
    use crate::log::directory::FileName;
    use crate::log::file_format::FileContent;
    use crate::protocol::Outcome;
    use serde::Deserialize;

    #[derive(Deserialize)]
    pub struct OutcomeFile {
        epoch: i64,
        database: u32,
        uuid: [u8; 16],
        owner: u32,
        end: Option<(End, Option<u64>)>,
    }

    impl FileContent for OutcomeFile {
        const KIND: &'static [u8; 4] = b"note";
        const SUFFIX: &'static str = ".note";

        fn is_named(&self, name: &FileName) -> bool {
            (self.epoch, self.database, self.uuid) == (name.epoch, name.database, name.key)
        }
    }

    #[derive(Deserialize)]
    struct End {
        state: State,
        pid: Option<i32>,
        started: Option<i64>,
        ended: Option<i64>,
        attempts: u32,
        result: Option<Vec<u8>>,
        row_count: Option<i64>,
        command_tag: Option<Vec<u8>>,
        sqlstate: i32,
        message: Option<Vec<u8>>,
        detail: Option<Vec<u8>>,
        hint: Option<Vec<u8>>,
        context: Option<Vec<u8>>,
    }

    impl From<OutcomeFile> for super::OutcomeFile {
        fn from(note: OutcomeFile) -> Self {
            let end = note.end.as_ref().map(|(end, _)| end);
            let attempt = Attempt {
                uuid: note.uuid,
                owner: note.owner,
                pid: end.and_then(|end| end.pid),
                started: end.and_then(|end| end.started),
                attempts: end.map(|end| end.attempts),
            };
            let end = note.end.map(|(end, transaction)| (super::End::from(end), transaction));
            super::OutcomeFile { epoch: note.epoch, database: note.database, attempt, end }
        }
    }

    impl From<End> for super::End {
        fn from(end: End) -> Self {
            let End { state, pid, started, ended, attempts, .. } = end;
            let outcome = Outcome {
                result: end.result,
                row_count: end.row_count,
                is_truncated: false,
                command_tag: end.command_tag,
                sqlstate: end.sqlstate,
                message: end.message,
                detail: end.detail,
                hint: end.hint,
                context: end.context,
            };
            super::End { state, pid, started, ended, attempts, outcome }
        }
    }
}
